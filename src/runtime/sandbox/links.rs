//! Paths of the machine and the links on the way to them. Links that its users made are followed when an instance is
//! created, and what they led to is written down; none is followed when it starts. A link that lies below a path which
//! a program of this installation may write, or could, is not followed at all: the program may have put it there to be
//! given what it leads to at its next start, or to have another instance read or write it.
//!
//! `ROOT/written` remembers those paths, as links to them that are never followed: an instance may be gone by the time
//! that what it left is looked at.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::layout::{Layout, make_private};
use super::record::{Launch, MountSource, Root};
use crate::runtime::file_lock;
use crate::spec::{ImageRef, ServiceSpec, Storage};

/// Most links on the way to a path: the kernel's own bound.
const MOST_LINKS: usize = 40;
/// Most paths that are remembered: each is read, in some microseconds, when a service that names paths of the machine
/// is created.
const MOST_WRITTEN: usize = 1024;
/// Longest wait for others who read or change what is remembered, which takes them some milliseconds.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

/// Paths of the machine, without links, that programs of this installation may write, or could.
#[derive(Debug, Clone, Default)]
pub struct Written(Vec<PathBuf>);

/// Why a path leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum Unresolved {
    /// It can't be looked at.
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    /// A program may have made a link on the way.
    #[error(
        "the link {} lies in {}, which programs may write, so it may lead anywhere; write the path that is meant, \
         without the link",
        .link.display(),
        .within.display()
    )]
    Untrusted {
        /// The link.
        link: PathBuf,
        /// The path above it that programs may write.
        within: PathBuf,
    },
}

impl Written {
    /// What counts when an instance of this spec is created: what is remembered, and what the spec itself lets the
    /// program write, so that its first instance is treated as all later ones.
    ///
    /// # Errors
    /// What is remembered can't be read.
    pub fn of(layout: &Layout, spec: &ServiceSpec) -> io::Result<Self> {
        let binds = spec.storage.iter().filter_map(|storage| match storage {
            Storage::Bind { source, readonly, .. } => Some((source, *readonly != Some(true))),
            _ => None,
        });
        let opened = spec.sandbox.iter().filter(|_| spec.image.name == ImageRef::Host);
        let opened = opened.flat_map(|sandbox| {
            let writable = sandbox.writable.iter().map(|path| (path, true));
            sandbox.readable.iter().map(|path| (path, false)).chain(writable)
        });
        let paths: Vec<(&String, bool)> = binds.chain(opened).collect();
        let has_gpu = spec.resources.as_ref().is_some_and(|resources| resources.gpu.is_some());
        let has_devices = has_gpu || !spec.devices.is_empty();
        if paths.is_empty() && !has_devices && !matches!(spec.image.name, ImageRef::Dir(_)) {
            return Ok(Self::default());
        }
        let own = paths.iter().filter(|(_, is_writable)| *is_writable);
        Self::with(layout, own.map(|(path, _)| Path::new(path.as_str())))
    }

    /// What counts when paths of the machine are mounted into an instance that runs, given those of them that its program
    /// may write.
    ///
    /// # Errors
    /// What is remembered can't be read.
    pub fn with<'a>(layout: &Layout, writable: impl Iterator<Item = &'a Path>) -> io::Result<Self> {
        let mut known = remembered(&layout.written())?;
        known.extend(writable.filter_map(|path| Self::default().resolve(path).ok()));
        Ok(Self(known))
    }

    /// The path among these that a path without links is, or lies in.
    pub fn around(&self, real: &Path) -> Option<&Path> {
        self.0.iter().find(|written| real.starts_with(written)).map(PathBuf::as_path)
    }

    /// The path of the machine, without links, that a path leads to.
    ///
    /// # Errors
    /// It does not exist or can't be looked at, or a program may have made a link on the way.
    pub fn resolve(&self, path: &Path) -> Result<PathBuf, Unresolved> {
        let mut left: VecDeque<OsString> = steps(&std::path::absolute(path)?);
        let (mut real, mut links) = (PathBuf::from("/"), 0);
        while let Some(step) = left.pop_front() {
            if step == ".." {
                real.pop();
                continue;
            }
            let next = real.join(&step);
            let target = match fs::read_link(&next) {
                Ok(target) => target,
                // It is there and is no link (readlink(2)).
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    real = next;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if let Some(within) = self.around(&real) {
                return Err(Unresolved::Untrusted { link: next, within: within.to_owned() });
            }
            links += 1;
            if links > MOST_LINKS {
                return Err(io::Error::from_raw_os_error(libc::ELOOP).into());
            }
            if target.is_absolute() {
                real = PathBuf::from("/");
            }
            for step in steps(&target).into_iter().rev() {
                left.push_front(step);
            }
        }
        Ok(real)
    }
}

/// The names of a path, and its steps upwards.
fn steps(path: &Path) -> VecDeque<OsString> {
    let step = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(step).collect()
}

/// What is remembered, as nobody changes it meanwhile.
fn remembered(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match File::open(dir) {
        Ok(opened) => {
            let _others_read_too = in_time(dir, file_lock::shared(opened, dir, Instant::now() + LOCK_LIMIT))?;
            read(dir)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn in_time(dir: &Path, locked: io::Result<Option<File>>) -> io::Result<File> {
    let hangs = || format!("{} is in use by another process for more than {} s", dir.display(), LOCK_LIMIT.as_secs());
    locked?.ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, hangs()))
}

/// To be called by whoever has the lock.
fn read(dir: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(dir)?.take(MOST_WRITTEN).map(|entry| fs::read_link(entry?.path())).collect()
}

/// Forgets a path; says whether it is forgotten.
fn forget(dir: &Path, path: &Path) -> bool {
    match fs::remove_file(dir.join(name_of(path))) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Remembers which paths of the machine the program of a launch may write. To be called before it can start.
///
/// # Errors
/// The disk refuses, or there are too many.
pub fn remember(layout: &Layout, launch: &Launch) -> io::Result<()> {
    remember_paths(layout, written_by(launch))
}

/// Remembers paths of the machine, without links, that a program may write. To be called before it can.
///
/// # Errors
/// The disk refuses, or there are too many.
pub fn remember_paths(layout: &Layout, paths: Vec<PathBuf>) -> io::Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let dir = layout.written();
    make_private(&dir)?;
    // Other instances are created meanwhile, by this process and by others.
    let _alone = in_time(&dir, file_lock::exclusive(File::open(&dir)?, &dir, Instant::now() + LOCK_LIMIT))?;
    let mut known = read(&dir)?;
    for path in paths {
        // What lies below a path that is known is as little trusted.
        if !known.iter().any(|above| path.starts_with(above)) {
            make_room(&dir, &mut known)?;
            match symlink(&path, dir.join(name_of(&path))) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                Ok(()) | Err(_) => known.push(path),
            }
        }
    }
    Ok(())
}

/// Paths of the machine that a program may write.
fn written_by(launch: &Launch) -> Vec<PathBuf> {
    let mounted = launch.mounts.iter().filter(|mount| !mount.read_only).filter_map(|mount| match &mount.source {
        MountSource::Path(path) => Some(path.clone()),
        MountSource::Volume(_) | MountSource::Tmpfs { .. } => None,
    });
    let opened = launch.reach.files.iter().filter(|_| launch.root == Root::Shared);
    mounted.chain(opened.flat_map(|files| files.writable.iter().map(PathBuf::from))).collect()
}

fn name_of(path: &Path) -> String {
    Sha256::digest(path.as_os_str().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes room where there are too many: forgets paths that are gone, else remembers what holds most of them instead.
fn make_room(dir: &Path, known: &mut Vec<PathBuf>) -> io::Result<()> {
    if known.len() < MOST_WRITTEN {
        return Ok(());
    }
    known.retain(|path| {
        let is_gone = matches!(fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound);
        !is_gone || !forget(dir, path)
    });
    if known.len() >= MOST_WRITTEN
        && let Some(told) = widen(dir, known)?
    {
        tracing::warn!("{told}");
    }
    if known.len() < MOST_WRITTEN {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "programs were given more than {MOST_WRITTEN} paths of this machine to write; remove those from {} that no \
         program writes any more",
        dir.display()
    )))
}

/// Remembers the directory that most of the paths lie in, in the place of these: what is below it is as little trusted then.
/// Tells what follows from that; nothing where no two of them lie in one directory.
fn widen(dir: &Path, known: &mut Vec<PathBuf>) -> io::Result<Option<String>> {
    let mut children: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for parent in known.iter().filter_map(|path| path.parent()).filter(|parent| *parent != Path::new("/")) {
        *children.entry(parent.to_owned()).or_default() += 1;
    }
    let fullest = children.into_iter().max_by_key(|(_, count)| *count).filter(|(_, count)| *count > 1);
    let Some((parent, count)) = fullest else { return Ok(None) };
    match symlink(&parent, dir.join(name_of(&parent))) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let is_below = |path: &Path| path.starts_with(&parent) && path != parent;
    known.retain(|path| !is_below(path) || !forget(dir, path));
    let told = format!(
        "programs were given more than {MOST_WRITTEN} paths of this machine to write, {count} of them in {0}: all of {0} \
         counts as written by programs from now on, so no link below it is followed to what is mounted into an instance; \
         where that is too much, remove the links from {1} that lead to what no program writes any more, and the one to {0}",
        parent.display(),
        dir.display()
    );
    if !known.contains(&parent) {
        known.push(parent);
    }
    Ok(Some(told))
}

/// Opens a path without links as a place, not for reading.
///
/// # Errors
/// It does not exist, or there is a link on the way, which is named.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    let (flags, resolve) = (OFlags::PATH | OFlags::CLOEXEC, ResolveFlags::NO_SYMLINKS);
    match openat2(CWD, path, flags, Mode::empty(), resolve) {
        Ok(place) => Ok(place),
        Err(Errno::LOOP) => Err(io::Error::other(match first_link(path) {
            Some(link) => format!(
                "{} is a link, which was not there when the instance was created, and is not followed",
                link.display()
            ),
            None => "there was a link on the way, which is not followed".to_owned(),
        })),
        Err(error) => Err(error.into()),
    }
}

fn first_link(path: &Path) -> Option<PathBuf> {
    let mut way: Vec<&Path> = path.ancestors().filter(|above| above.file_name().is_some()).collect();
    way.reverse();
    way.into_iter().find(|above| above.is_symlink()).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(folder.path()).unwrap();
        for dir in ["real/deep", "ws/a"] {
            fs::create_dir_all(top.join(dir)).unwrap();
        }
        symlink("real", top.join("relative")).unwrap();
        symlink(top.join("relative/deep/.."), top.join("absolute")).unwrap();
        symlink(top.join("real"), top.join("ws/a/b")).unwrap();
        symlink("around", top.join("around")).unwrap();
        (folder, top)
    }

    #[test]
    fn links_are_followed_as_the_kernel_does() {
        let (_folder, top) = tree();
        for path in
            ["relative/deep", "absolute/deep", "absolute/./deep/../deep", "ws/a/b/deep", "real/deep", "ws/../real"]
        {
            let path = top.join(path);
            assert_eq!(Written::default().resolve(&path).unwrap(), fs::canonicalize(&path).unwrap(), "{path:?}");
        }
        for (path, number) in [("gone", libc::ENOENT), ("around", libc::ELOOP)] {
            let error = Written::default().resolve(&top.join(path)).unwrap_err();
            assert!(matches!(&error, Unresolved::Unreadable(error) if error.raw_os_error() == Some(number)), "{error}");
        }
    }

    #[test]
    fn a_link_below_what_programs_may_write_is_not_followed() {
        let (_folder, top) = tree();
        let written = Written(vec![top.join("ws"), top.join("real")]);
        for path in ["ws/a/b", "ws/a/b/deep", "absolute/../ws/a/b"] {
            let error = written.resolve(&top.join(path)).unwrap_err();
            let told = format!("the link {0}/ws/a/b lies in {0}/ws, which programs may write", top.display());
            assert!(error.to_string().starts_with(&told), "{error}");
        }
        assert_eq!(written.resolve(&top.join("absolute")).unwrap(), top.join("real"), "the link lies elsewhere");
        assert_eq!(written.resolve(&top.join("ws/a")).unwrap(), top.join("ws/a"));
    }

    #[test]
    fn a_place_is_opened_without_links_alone_and_the_link_is_named() {
        let (_folder, top) = tree();
        open(&top.join("real/deep")).unwrap();
        let error = open(&top.join("relative/deep")).unwrap_err();
        assert!(error.to_string().starts_with(&format!("{}/relative is a link", top.display())), "{error}");
    }

    #[test]
    fn what_programs_may_write_is_looked_up_for_every_spec_that_names_paths_of_the_machine() {
        let (folder, top) = tree();
        let layout = Layout::new(folder.path());
        make_private(&layout.written()).unwrap();
        symlink(top.join("ws"), layout.written().join("one")).unwrap();
        for (fields, is_looked_up) in [
            ("", false),
            ("resources: { memory: 1Gi }", false),
            ("resources: { gpu: { count: 1 } }", true),
            ("devices: [{ path: /dev/full }]", true),
            ("storage: [{ type: bind, source: /srv, target: /srv }]", true),
            ("sandbox: { readable: [/srv] }", true),
        ] {
            let spec = serde_yaml::from_str(&format!("image: {{ name: host }}\n{fields}")).unwrap();
            let written = Written::of(&layout, &spec).unwrap();
            assert_eq!(written.around(&top.join("ws/a")).is_some(), is_looked_up, "{fields}");
        }
    }

    #[test]
    fn where_too_many_paths_are_remembered_those_that_are_gone_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let mut known: Vec<PathBuf> = (0..MOST_WRITTEN).map(|number| folder.path().join(number.to_string())).collect();
        fs::create_dir(&known[0]).unwrap();
        let dir = folder.path().join("written");
        make_private(&dir).unwrap();
        known.iter().for_each(|path| symlink(path, dir.join(name_of(path))).unwrap());
        make_room(&dir, &mut known).unwrap();
        assert_eq!((remembered(&dir).unwrap(), known.len()), (known.clone(), 1));
    }

    #[test]
    fn where_too_many_paths_are_there_still_the_directory_that_holds_most_of_them_stands_for_these() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("written");
        make_private(&dir).unwrap();
        let claims = folder.path().join("claims");
        let alone = folder.path().join("alone");
        let mut known: Vec<PathBuf> = (1..MOST_WRITTEN).map(|number| claims.join(number.to_string())).collect();
        known.push(alone.clone());
        for path in &known {
            fs::create_dir_all(path).unwrap();
            symlink(path, dir.join(name_of(path))).unwrap();
        }
        make_room(&dir, &mut known).unwrap();
        assert_eq!(known, [alone, claims]);
        let mut found = remembered(&dir).unwrap();
        found.sort();
        assert_eq!(found, known);
        // Each in a directory of its own.
        let mut apart: Vec<PathBuf> =
            (0..MOST_WRITTEN).map(|number| folder.path().join(format!("{number}/x"))).collect();
        apart.iter().for_each(|path| fs::create_dir_all(path).unwrap());
        assert!(make_room(&dir, &mut apart).unwrap_err().to_string().contains("more than 1024 paths"));
    }

    #[test]
    fn those_who_remember_paths_at_the_limit_at_the_same_time_all_do() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        make_private(&layout.written()).unwrap();
        let gone = (0..MOST_WRITTEN).map(|number| folder.path().join(format!("gone/{number}")));
        gone.for_each(|path| symlink(&path, layout.written().join(name_of(&path))).unwrap());
        let new: Vec<PathBuf> = (0..8).map(|number| folder.path().join(format!("new{number}"))).collect();
        std::thread::scope(|scope| {
            let all: Vec<_> =
                new.iter().map(|path| scope.spawn(|| remember_paths(&layout, vec![path.clone()]))).collect();
            let readers: Vec<_> = (0..8).map(|_| scope.spawn(|| remembered(&layout.written()).map(drop))).collect();
            all.into_iter().chain(readers).for_each(|done| done.join().unwrap().unwrap());
        });
        let mut found = remembered(&layout.written()).unwrap();
        found.sort();
        assert_eq!(found, new);
    }

    #[test]
    fn what_stands_for_few_paths_is_told_with_what_follows_from_it() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        let mut known = vec![home.join("one"), home.join("other"), folder.path().join("else/where")];
        let told = widen(folder.path(), &mut known).unwrap().unwrap();
        let expected = format!("2 of them in {0}: all of {0} counts as written by programs", home.display());
        assert!(told.contains(&expected), "{told}");
        assert_eq!(known, [folder.path().join("else/where"), home]);
        assert_eq!(widen(folder.path(), &mut vec!["/a/x".into(), "/b/x".into()]).unwrap(), None);
    }
}
