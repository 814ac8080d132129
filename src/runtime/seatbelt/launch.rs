//! The launch of a program under a profile. Compiles on every Unix; only macOS has the program that applies profiles.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::profile::Profile;

/// Applies a profile to itself and executes a program.
pub const PROGRAM: &str = "/usr/bin/sandbox-exec";
/// Most open files of a program: macOS gives 256 by default, which servers run out of.
pub const OPEN_FILES: u64 = 4096;

/// A program under a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// What it may do.
    pub profile: Profile,
    /// Where the profile is written to.
    pub profile_path: PathBuf,
    /// Program and arguments; never empty.
    pub command: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Directory to start in; its root when absent.
    pub workdir: Option<PathBuf>,
    /// Port that was assigned to it.
    pub port: Option<u16>,
}

impl Launch {
    /// Copies an image's root for this instance, sharing blocks where the file system can (`clonefile`), and writes the
    /// profile.
    ///
    /// # Errors
    /// The root exists already, or something can't be written.
    pub fn prepare(&self, image: &Path) -> io::Result<()> {
        if self.profile.root.exists() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, self.profile.root.display().to_string()));
        }
        std::fs::create_dir_all(&self.profile.scratch)?;
        let status = Command::new("/bin/cp").args(copy_options()).arg(image).arg(&self.profile.root).status()?;
        if !status.success() {
            return Err(io::Error::other(format!("copying {} failed: {status}", image.display())));
        }
        std::fs::write(&self.profile_path, self.profile.text())
    }

    /// The command that runs the program under its profile. Its environment is the launch's and nothing else.
    ///
    /// # Errors
    /// The command is empty.
    pub fn command(&self) -> io::Result<Command> {
        let (program, arguments) = self.command.split_first().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "the command is empty; name a program to run")
        })?;
        let mut command = Command::new(PROGRAM);
        command.arg("-f").arg(&self.profile_path).arg(self.program(program)).args(arguments);
        command.env_clear().envs(&self.env).current_dir(self.workdir.as_ref().unwrap_or(&self.profile.root));
        if let Some(port) = self.port.filter(|_| !self.env.contains_key("PORT")) {
            command.env("PORT", port.to_string());
        }
        command.env("TMPDIR", &self.profile.scratch);
        Ok(command)
    }

    /// A program of the image where the image has it, else one of the system.
    fn program(&self, name: &str) -> OsString {
        let inside = self.profile.root.join(name.trim_start_matches('/'));
        if name.starts_with('/') && inside.exists() { inside.into() } else { name.into() }
    }
}

/// Copies that share blocks: `-c` clones on macOS, `--reflink=auto` elsewhere.
const fn copy_options() -> &'static [&'static str] {
    if cfg!(target_os = "macos") { &["-Rc"] } else { &["-R", "--reflink=auto"] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::ServiceSpec;

    fn launch(folder: &Path) -> Launch {
        let spec: ServiceSpec = serde_yaml::from_str("image: { name: host }").unwrap();
        let profile = Profile::of(&spec, &folder.join("root"), &folder.join("tmp"), Some(20_001), false);
        Launch {
            profile,
            profile_path: folder.join("profile.sb"),
            command: ["/bin/server", "--verbose"].map(str::to_owned).to_vec(),
            env: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
            workdir: None,
            port: Some(20_001),
        }
    }

    #[test]
    fn every_instance_has_a_copy_of_its_own_and_a_profile() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        std::fs::create_dir_all(image.join("bin")).unwrap();
        std::fs::write(image.join("bin/server"), "program").unwrap();
        let launch = launch(folder.path());
        launch.prepare(&image).unwrap();
        std::fs::write(folder.path().join("root/bin/server"), "changed").unwrap();
        assert_eq!(std::fs::read_to_string(image.join("bin/server")).unwrap(), "program");
        assert_eq!(std::fs::read_to_string(folder.path().join("profile.sb")).unwrap(), launch.profile.text());
        assert_eq!(launch.prepare(&image).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn the_command_runs_the_images_program_with_its_environment_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("root/bin")).unwrap();
        std::fs::write(folder.path().join("root/bin/server"), "program").unwrap();
        let launch = launch(folder.path());
        let command = launch.command().unwrap();
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
        let path = |name: &str| folder.path().join(name).display().to_string();
        assert_eq!(command.get_program(), PROGRAM);
        assert_eq!(arguments, ["-f", &path("profile.sb"), &path("root/bin/server"), "--verbose"]);
        let env: BTreeMap<_, _> = command.get_envs().filter_map(|(name, value)| Some((name, value?))).collect();
        let expected = [("GREETING", "hello".to_owned()), ("PORT", "20001".to_owned()), ("TMPDIR", path("tmp"))];
        assert_eq!(env, expected.iter().map(|(name, value)| (name.as_ref(), value.as_ref())).collect());
        assert!(Launch { command: Vec::new(), ..launch }.command().is_err());
    }

    /// The whole of it, on the only system that has it.
    #[cfg(target_os = "macos")]
    #[test]
    fn a_program_under_a_profile_can_not_write_outside() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        std::fs::create_dir_all(&image).unwrap();
        let script = "touch inside && ! touch /private/var/tmp/keel-outside";
        let launch = Launch { command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(), ..launch(folder.path()) };
        launch.prepare(&image).unwrap();
        assert!(launch.command().unwrap().status().unwrap().success());
    }
}
