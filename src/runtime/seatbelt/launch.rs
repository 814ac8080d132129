//! The launch of a program under a profile. Compiles on every Unix; only macOS has the program that applies profiles.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use rustix::fs::{Access, access};
use serde::{Deserialize, Serialize};

use super::profile::Profile;
use crate::runtime::files::make_private;

/// Applies a profile to itself and executes a program.
pub const PROGRAM: &str = "/usr/bin/sandbox-exec";
/// Where programs are looked for whose environment does not say: the system's own.
const PATH: &str = "/usr/bin:/bin:/usr/sbin:/sbin";
/// Most open files of a program: macOS gives 256 by default, which servers run out of.
pub const OPEN_FILES: u64 = 4096;

/// A program under a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// What applies profiles: [`PROGRAM`].
    pub launcher: PathBuf,
    /// Where the profile is written to.
    pub profile: PathBuf,
    /// Its own copy of the image.
    pub root: PathBuf,
    /// Scratch space of its own.
    pub scratch: PathBuf,
    /// Program and arguments; never empty.
    pub command: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Directory to start in; its root when absent.
    pub workdir: Option<PathBuf>,
    /// What programs find at a path below its root, by that path: there are no mounts.
    pub links: BTreeMap<PathBuf, PathBuf>,
}

/// Why there is no program of a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoProgram {
    /// Nothing has the name.
    #[error("executable not found: {0}")]
    Missing(String),
    /// What has the name can't be executed.
    #[error("{0} can't be executed: it is no file with permission to")]
    NotExecutable(String),
    /// There is no name.
    #[error("the command is empty; name a program to run")]
    Empty,
}

impl Launch {
    /// Copies an image's root for this instance, sharing blocks where the file system can (`clonefile`), or makes an empty
    /// one where there is no image; makes its links, and writes the profile.
    ///
    /// # Errors
    /// The root exists already, or something can't be written.
    pub fn prepare(&self, image: Option<&Path>, profile: &Profile) -> io::Result<()> {
        if std::fs::symlink_metadata(&self.root).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, self.root.display().to_string()));
        }
        make_private(&self.scratch)?;
        match image {
            Some(image) => copy(image, &self.root)?,
            None => make_private(&self.root)?,
        }
        if !std::fs::symlink_metadata(&self.root)?.is_dir() {
            let message = format!("{} is no directory", self.root.display());
            return Err(io::Error::new(io::ErrorKind::NotADirectory, message));
        }
        for (at, target) in &self.links {
            self.link(at, target)?;
        }
        std::fs::write(&self.profile, profile.text())
    }

    /// The command that runs the program under its profile. Its environment is the launch's and nothing else.
    ///
    /// # Errors
    /// There is no such program.
    pub fn command(&self) -> Result<Command, NoProgram> {
        self.further(&self.command, &[], self.workdir.as_deref())
    }

    /// The command that runs a further one under the same profile.
    ///
    /// # Errors
    /// There is no such program.
    pub fn further(
        &self,
        words: &[String],
        env: &[(String, String)],
        workdir: Option<&Path>,
    ) -> Result<Command, NoProgram> {
        let (name, arguments) = words.split_first().ok_or(NoProgram::Empty)?;
        let mut all = self.env.clone();
        all.extend(env.iter().cloned());
        let workdir = workdir.map_or_else(|| self.root.clone(), |path| self.inside(path));
        let program = self.program(name, all.get("PATH").map_or(PATH, String::as_str), &workdir)?;
        let mut command = Command::new(&self.launcher);
        command.arg("-f").arg(&self.profile).arg(program).args(arguments);
        command.env_clear().envs(all).current_dir(workdir);
        Ok(command)
    }

    /// Puts a link below the root in place of what is there. No link is followed on the way, whether of the image or of its own:
    /// it may lead anywhere, and what is there is not to be changed.
    fn link(&self, at: &Path, target: &Path) -> io::Result<()> {
        let mut place = self.root.clone();
        let names: Vec<Component<'_>> = at.components().filter(|part| !matches!(part, Component::RootDir)).collect();
        for (index, name) in names.iter().enumerate() {
            let Component::Normal(name) = name else {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} has .. in it", at.display())));
            };
            place.push(name);
            let there = std::fs::symlink_metadata(&place).ok().map(|data| data.file_type());
            match (index + 1 == names.len(), there) {
                (true, Some(kind)) if kind.is_dir() => std::fs::remove_dir_all(&place)?,
                (true, Some(_)) => std::fs::remove_file(&place)?,
                (false, Some(kind)) if !kind.is_dir() => {
                    let message = format!("{} is no directory, and no link is followed", place.display());
                    return Err(io::Error::new(io::ErrorKind::NotADirectory, message));
                }
                (false, None) => std::fs::create_dir(&place)?,
                (true, None) | (false, Some(_)) => {}
            }
        }
        std::os::unix::fs::symlink(target, &place)
    }

    /// A path of the image where the image has it, else one of the system.
    fn inside(&self, path: &Path) -> PathBuf {
        let inside = self.root.join(path.strip_prefix("/").unwrap_or(path));
        if path.is_absolute() && !inside.exists() { path.to_owned() } else { inside }
    }

    /// The file of a program. What applies profiles looks at no path, and tells a missing program by an exit of its own.
    fn program(&self, name: &str, path: &str, workdir: &Path) -> Result<PathBuf, NoProgram> {
        let mut found = None;
        let candidates: Vec<PathBuf> = match name {
            "" => return Err(NoProgram::Empty),
            _ if name.starts_with('/') => vec![self.inside(Path::new(name))],
            _ if name.contains('/') => vec![workdir.join(name)],
            _ => path
                .split(':')
                .filter(|one| one.starts_with('/'))
                .map(|one| self.inside(&Path::new(one).join(name)))
                .collect(),
        };
        for candidate in candidates {
            match std::fs::metadata(&candidate) {
                Ok(data) if data.is_file() && access(&candidate, Access::EXEC_OK).is_ok() => return Ok(candidate),
                Ok(_) => found = Some(candidate),
                Err(_) => {}
            }
        }
        Err(match found {
            Some(_) => NoProgram::NotExecutable(name.to_owned()),
            None => NoProgram::Missing(name.to_owned()),
        })
    }
}

fn copy(image: &Path, root: &Path) -> io::Result<()> {
    let status = Command::new("/bin/cp").args(copy_options()).arg(image).arg(root).status()?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("copying {} failed: {status}", image.display()))),
    }
}

/// Copies that share blocks: `-c` clones on macOS, `--reflink=auto` elsewhere.
const fn copy_options() -> &'static [&'static str] {
    if cfg!(target_os = "macos") { &["-Rc"] } else { &["-R", "--reflink=auto"] }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::spec::ServiceSpec;

    fn launch(folder: &Path, command: &[&str]) -> Launch {
        Launch {
            launcher: PROGRAM.into(),
            profile: folder.join("profile.sb"),
            root: folder.join("root"),
            scratch: folder.join("tmp"),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            env: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
            workdir: None,
            links: BTreeMap::new(),
        }
    }

    fn profile(folder: &Path) -> Profile {
        let spec: ServiceSpec = serde_yaml::from_str("image: { name: host }").unwrap();
        Profile::of(&spec, &folder.join("root"), &folder.join("tmp"), Some(20_001), false)
    }

    fn image(folder: &Path) -> PathBuf {
        let image = folder.join("image");
        std::fs::create_dir_all(image.join("bin")).unwrap();
        std::fs::write(image.join("bin/server"), "program").unwrap();
        std::fs::set_permissions(image.join("bin/server"), PermissionsExt::from_mode(0o755)).unwrap();
        image
    }

    #[test]
    fn every_instance_has_a_copy_of_its_own_and_a_profile() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path());
        let (launch, profile) = (launch(folder.path(), &["/bin/server"]), profile(folder.path()));
        launch.prepare(Some(&image), &profile).unwrap();
        std::fs::write(folder.path().join("root/bin/server"), "changed").unwrap();
        assert_eq!(std::fs::read_to_string(image.join("bin/server")).unwrap(), "program");
        assert_eq!(std::fs::read_to_string(folder.path().join("profile.sb")).unwrap(), profile.text());
        let again = launch.prepare(Some(&image), &profile);
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_link_is_no_image() {
        let folder = tempfile::tempdir().unwrap();
        image(folder.path());
        std::os::unix::fs::symlink("image", folder.path().join("current")).unwrap();
        let mut launch = launch(folder.path(), &["/bin/server"]);
        launch.links = [(PathBuf::from("/bin"), folder.path().join("volume"))].into();
        let error = launch.prepare(Some(&folder.path().join("current")), &profile(folder.path())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
        assert!(folder.path().join("image/bin/server").is_file(), "nothing of it was touched");
    }

    #[test]
    fn volumes_are_found_below_the_root_whatever_the_image_has_there() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path());
        std::fs::create_dir_all(image.join("data/old")).unwrap();
        std::os::unix::fs::symlink("/", image.join("out")).unwrap();
        let volume = folder.path().join("volume");
        let mut launch = launch(folder.path(), &["/bin/server"]);
        std::fs::create_dir_all(volume.join("in")).unwrap();
        std::fs::write(volume.join("in/own"), "a user's").unwrap();
        launch.links = ["/data", "/var/db"].map(|at| (PathBuf::from(at), volume.clone())).into();
        launch.prepare(Some(&image), &profile(folder.path())).unwrap();
        std::fs::write(folder.path().join("root/data/file"), "kept").unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join("root/var/db/file")).unwrap(), "kept");
        for outside in ["/out/etc", "/data/in", "/data/in/it"] {
            let error = launch.link(Path::new(outside), folder.path()).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::NotADirectory, "a link leads out: {outside}");
        }
        assert_eq!(std::fs::read_to_string(volume.join("in/own")).unwrap(), "a user's");
        assert!(launch.link(Path::new("/../etc"), &volume).is_err());
    }

    #[test]
    fn the_command_runs_the_images_program_with_its_environment_alone() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path());
        let launch = launch(folder.path(), &["/bin/server", "--verbose"]);
        launch.prepare(Some(&image), &profile(folder.path())).unwrap();
        let command = launch.command().unwrap();
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
        let path = |name: &str| folder.path().join(name).display().to_string();
        assert_eq!(command.get_program(), PROGRAM);
        assert_eq!(arguments, ["-f", &path("profile.sb"), &path("root/bin/server"), "--verbose"]);
        let env: BTreeMap<_, _> = command.get_envs().filter_map(|(name, value)| Some((name, value?))).collect();
        assert_eq!(env, BTreeMap::from([("GREETING".as_ref(), "hello".as_ref())]));
        assert_eq!(command.get_current_dir(), Some(launch.root.as_path()));
    }

    #[test]
    fn what_can_not_be_run_is_told_before_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let launch = launch(folder.path(), &[]);
        let refusal = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            launch.further(&words, &[], None).map(|_| ()).unwrap_err()
        };
        assert_eq!(launch.command().map(|_| ()), Err(NoProgram::Empty));
        assert_eq!(refusal(&["/no/such/program"]), NoProgram::Missing("/no/such/program".to_owned()));
        assert_eq!(refusal(&["no-such-program"]), NoProgram::Missing("no-such-program".to_owned()));
        assert_eq!(refusal(&["/etc/passwd"]), NoProgram::NotExecutable("/etc/passwd".to_owned()));
        assert_eq!(refusal(&["/bin"]), NoProgram::NotExecutable("/bin".to_owned()));
        assert!(launch.further(&["sh".to_owned()], &[], None).is_ok());
    }

    /// The whole of it, on the only system that has it.
    #[cfg(target_os = "macos")]
    #[test]
    fn a_program_under_a_profile_can_not_write_outside() {
        let folder = tempfile::tempdir().unwrap();
        let real = std::fs::canonicalize(folder.path()).unwrap();
        let script = "touch inside && ! touch /private/var/tmp/keel-outside";
        let launch = launch(&real, &["/bin/sh", "-c", script]);
        launch.prepare(None, &profile(&real)).unwrap();
        assert!(launch.command().unwrap().status().unwrap().success());
    }
}
