//! Access to files by path, without mounts: Landlock. It narrows what a program sees of a root further, and is what is
//! left where the machine gives no namespaces.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::fs::{Dir, FileType, Mode, OFlags, fstat, openat};
use serde::{Deserialize, Serialize};

use super::inside::is_directory;
use super::links;
use super::own_files::{Overlap, overlap};
use super::rootfs::{by_descriptor, open_place};

/// Newest version of Landlock whose rights are asked for; a kernel that has fewer gets those that it has.
const NEWEST: ABI = ABI::V6;
/// What nearly every program reads to start at all: programs, libraries, their settings, and the kernel's own files.
const SYSTEM: &[&str] = &[
    "/bin",
    "/sbin",
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc",
    "/nix/store",
    "/dev",
    "/proc",
    "/sys",
    "/run/keel",
    "/run/current-system",
];
/// What is written to besides declared paths: devices and the kernel's own files, which have rules of their own, and
/// scratch space where it is the instance's alone.
const KERNEL: &[&str] = &["/dev", "/proc"];
const SCRATCH: &[&str] = &["/tmp", "/var/tmp", "/run"];
/// Scratch space of everybody on the machine: of no business to an instance that has none of its own there, unless its
/// spec names it.
const SHARED_SCRATCH: &[&str] = &["/tmp", "/var/tmp"];
/// Most paths that a program is let reach: each is a rule of the kernel, which takes some microseconds and less than a
/// KiB. It is met where a directory that can't be granted as a whole has very many entries.
const MOST_RULES: usize = 4096;

/// What a program may reach by path and by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// Which files.
    pub files: Option<Files>,
    /// Whether signals to processes outside are kept in; needless with a process namespace.
    #[serde(default)]
    pub no_signals: bool,
    /// Whether abstract sockets of processes outside are out of reach; needless with a network namespace.
    #[serde(default)]
    pub no_abstract_sockets: bool,
    /// Whether TCP is out of reach, where there should be no network and is no namespace for it.
    #[serde(default)]
    pub no_tcp: bool,
}

/// Files that a program may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// Paths that may be read, besides what every program needs; everything when absent.
    pub readable: Option<Vec<String>>,
    /// Paths that may be written, and read.
    pub writable: Vec<String>,
    /// Whether links are followed on the way to both.
    #[serde(default)]
    pub links: Links,
    /// Places of mounts, which may be written as far as the mounts allow; links inside lead to them.
    #[serde(default)]
    pub mounted: Vec<String>,
    /// Whether `/tmp` and the like are the instance's alone.
    pub own_scratch: bool,
    /// Paths that stay closed, whatever else is granted. As the kernel can only be told what is open, the other entries of
    /// each directory above them are granted one by one; entries that come later stay closed.
    #[serde(default)]
    pub closed: Vec<PathBuf>,
    /// Scratch directory of its own among what is closed.
    #[serde(default)]
    pub scratch: Option<PathBuf>,
}

/// What becomes of links on the way to a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Links {
    /// They are followed, as they belong to the instance's own root.
    #[default]
    Followed,
    /// There are none, as the path was resolved when the instance was created; one that came later is refused.
    Refused,
}

impl Reach {
    /// Limits of every kind, for finding out whether they can be set.
    pub fn nothing() -> Self {
        Self { files: Some(Files::default()), no_signals: true, no_abstract_sockets: true, no_tcp: true }
    }

    /// Whether anything is kept out of reach.
    pub fn is_limited(&self) -> bool {
        *self != Self::default()
    }
}

impl Files {
    /// Whether a path inside of a root of the instance's own, without links, may be read, and written where that is asked, by
    /// a program that was confined before anything was mounted there. What a link leads to counts as out of reach.
    pub fn grants(&self, path: &Path, writes: bool) -> bool {
        let lies_in = |grants: Vec<Grant<'_>>| grants.iter().any(|grant| path.starts_with(grant.path));
        lies_in(writable(self)) || (!writes && lies_in(readable(self)))
    }
}

/// How much of a limit the kernel enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extent {
    /// All of it.
    Full,
    /// What a kernel knew before the newest rights came.
    Part,
}

/// Confines this thread, and what it becomes, for good.
///
/// # Errors
/// The kernel has no Landlock, or refuses.
pub fn confine(reach: &Reach) -> std::io::Result<Extent> {
    if !reach.is_limited() {
        return Ok(Extent::Full);
    }
    match restrict(reach).map_err(std::io::Error::other)? {
        RulesetStatus::FullyEnforced => Ok(Extent::Full),
        RulesetStatus::PartiallyEnforced => Ok(Extent::Part),
        RulesetStatus::NotEnforced => Err(std::io::Error::other("this kernel has no Landlock, or it is switched off")),
    }
}

fn restrict(reach: &Reach) -> Result<RulesetStatus, Error> {
    let mut scopes = BitFlags::<Scope>::EMPTY;
    scopes |= if reach.no_signals { Scope::Signal.into() } else { BitFlags::EMPTY };
    scopes |= if reach.no_abstract_sockets { Scope::AbstractUnixSocket.into() } else { BitFlags::EMPTY };
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    if !scopes.is_empty() {
        ruleset = ruleset.scope(scopes)?;
    }
    if reach.no_tcp {
        ruleset = ruleset.handle_access(AccessNet::from_all(NEWEST))?;
    }
    if reach.files.is_some() {
        ruleset = ruleset.handle_access(AccessFs::from_all(NEWEST))?;
    }
    let mut created = ruleset.create()?;
    if let Some(files) = &reach.files {
        let all = AccessFs::from_all(NEWEST);
        for grant in readable(files) {
            allow(&grant, &mut |place| add(&mut created, place, AccessFs::from_read(NEWEST)))?;
        }
        for grant in writable(files) {
            allow(&grant, &mut |place| add(&mut created, place, all))?;
        }
        if let Some(Ok(place)) = files.scratch.as_deref().map(links::open) {
            add(&mut created, &place, all)?;
        }
    }
    Ok(created.restrict_self()?.ruleset)
}

/// Adds a rule that grants what is beneath a place.
fn add(created: &mut RulesetCreated, place: &OwnedFd, access: BitFlags<AccessFs>) -> Result<(), Error> {
    let access = if is_directory(place.as_fd()) { access } else { access & AccessFs::from_file(NEWEST) };
    created.add_rule(PathBeneath::new(place, access))?;
    Ok(())
}

/// A path to grant.
#[derive(Debug, PartialEq, Eq)]
struct Grant<'a> {
    path: &'a str,
    links: Links,
    /// What stays closed below it.
    closed: Vec<PathBuf>,
}

/// Grants of paths that belong to what every program needs, and of those that the spec names.
fn grants<'a>(needed: impl Iterator<Item = &'a str>, named: &'a [String], files: &Files) -> Vec<Grant<'a>> {
    let needed = needed.map(|path| (path, Links::Followed));
    let paths = needed.chain(named.iter().map(|path| (path.as_str(), files.links)));
    paths.map(|(path, links)| Grant { path, links, closed: files.closed.clone() }).collect()
}

fn readable(files: &Files) -> Vec<Grant<'_>> {
    let Some(readable) = &files.readable else {
        let scratch: &[&str] = if files.own_scratch { &[] } else { SHARED_SCRATCH };
        let closed = files.closed.iter().cloned().chain(scratch.iter().map(PathBuf::from)).collect();
        return vec![Grant { path: "/", links: Links::Followed, closed }];
    };
    let scratch: &[&str] = if files.own_scratch { SCRATCH } else { &[] };
    grants(SYSTEM.iter().chain(scratch).copied(), readable, files)
}

fn writable(files: &Files) -> Vec<Grant<'_>> {
    let scratch: &[&str] = if files.own_scratch { SCRATCH } else { &[] };
    let mounted = files.mounted.iter().map(String::as_str);
    grants(KERNEL.iter().chain(scratch).copied().chain(mounted), &files.writable, files)
}

/// Grants a path, but for what stays closed. The rule is of the place that was opened and looked at: a name may lead
/// elsewhere a moment later. What is not there, or can't be opened by this user, needs no rule.
fn allow(grant: &Grant<'_>, add: &mut dyn FnMut(&OwnedFd) -> Result<(), Error>) -> Result<(), Error> {
    let path = Path::new(grant.path);
    let opened = match grant.links {
        Links::Followed => open_place(path),
        Links::Refused => links::open(path),
    };
    let place = match opened {
        Ok(place) => place,
        Err(source) if source.kind() == io::ErrorKind::Other => return Err(Error::Link { path: path.into(), source }),
        Err(_) => return Ok(()),
    };
    if grant.closed.is_empty() {
        return add(&place);
    }
    let mut rules = 0;
    open(&place, &grant.closed, &mut |place| {
        rules += 1;
        if rules > MOST_RULES { Err(Error::TooMany(path.into())) } else { add(place) }
    })
}

/// Opens a place up, or, where something below it stays closed, each other entry of it. Links among these need no rule:
/// following one takes no right, and where it leads has a rule or none.
fn open(place: &OwnedFd, closed: &[PathBuf], add: &mut dyn FnMut(&OwnedFd) -> Result<(), Error>) -> Result<(), Error> {
    // Where the kernel does not tell what it is, it stays closed.
    let Ok(real) = fs::read_link(by_descriptor(place)) else { return Ok(()) };
    match overlap(&real, closed) {
        None => add(place),
        Some(Overlap::Inside(_)) => Ok(()),
        Some(Overlap::Around(_)) => {
            for entry in entries(place) {
                open(&entry, closed, add)?;
            }
            Ok(())
        }
    }
}

/// What lies in a directory, without links; nothing where it can't be listed, as that can't be granted but as a whole.
fn entries(place: &OwnedFd) -> impl Iterator<Item = OwnedFd> {
    let listed = openat(place, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let names = listed.and_then(Dir::new).into_iter().flatten().flatten();
    names.filter(|entry| !matches!(entry.file_name().to_bytes(), b"." | b"..")).filter_map(move |entry| {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = openat(place, entry.file_name(), flags, Mode::empty()).ok()?;
        let kind = FileType::from_raw_mode(fstat(&found).ok()?.st_mode);
        (kind != FileType::Symlink).then_some(found)
    })
}

/// Why a program could not be confined.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Kernel(#[from] landlock::RulesetError),
    #[error("{} can't be opened up: {source}", .path.display())]
    Link { path: PathBuf, source: io::Error },
    #[error(
        "{} has more than {MOST_RULES} entries, which are granted one by one as something below it stays closed; name \
         fewer directories in sandbox.readable, or choose a state directory elsewhere",
        .0.display()
    )]
    TooMany(PathBuf),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_closed_is_left_out_and_all_beside_it_is_granted() {
        let folder = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(folder.path()).unwrap();
        for dir in ["home/me/state/secret", "home/me/work", "home/other", "etc"] {
            fs::create_dir_all(top.join(dir)).unwrap();
        }
        fs::write(top.join("home/me/file"), "").unwrap();
        std::os::unix::fs::symlink(top.join("home"), top.join("home/me/around")).unwrap();
        let closed = vec![top.join("home/me/state"), top.join("gone")];
        let told = |path: &str| {
            let mut opened = Vec::new();
            let path = top.join(path);
            let grant = Grant { path: path.to_str().unwrap(), links: Links::Refused, closed: closed.clone() };
            allow(&grant, &mut |place| {
                let real = fs::read_link(by_descriptor(place)).unwrap();
                opened.push(real.strip_prefix(&top).unwrap().display().to_string());
                Ok(())
            })
            .unwrap();
            opened.sort();
            opened
        };
        assert_eq!(told(""), ["etc", "home/me/file", "home/me/work", "home/other"]);
        assert_eq!(told("home/me/work"), ["home/me/work"]);
        assert_eq!(told("home/me/state/secret"), Vec::<String>::new());
    }

    #[test]
    fn a_directory_with_too_many_entries_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(folder.path()).unwrap();
        for number in 0..=MOST_RULES + 1 {
            fs::write(top.join(number.to_string()), "").unwrap();
        }
        let grant = Grant { path: top.to_str().unwrap(), links: Links::Followed, closed: vec![top.join("0")] };
        let error = allow(&grant, &mut |_| Ok(())).unwrap_err();
        assert!(error.to_string().starts_with(&format!("{} has more than 4096 entries", top.display())), "{error}");
    }

    #[test]
    fn scratch_space_of_everybody_is_granted_only_by_name() {
        let files = |readable: Option<&str>| Files {
            readable: readable.map(|path| vec![path.to_owned()]),
            closed: vec!["/own".into()],
            ..Files::default()
        };
        let everything = files(None);
        let closed = ["/own", "/tmp", "/var/tmp"].map(PathBuf::from).to_vec();
        assert_eq!(readable(&everything), [Grant { path: "/", links: Links::Followed, closed }]);
        assert!(!readable(&files(Some("/srv"))).iter().any(|grant| grant.path == "/tmp"));
        let named = Grant { path: "/tmp", links: Links::Followed, closed: vec!["/own".into()] };
        assert!(readable(&files(Some("/tmp"))).contains(&named));
    }

    #[test]
    fn what_is_mounted_later_is_in_reach_below_what_was_granted_before() {
        let limited = Files {
            readable: Some(vec!["/srv".to_owned()]),
            writable: vec!["/work".to_owned()],
            own_scratch: true,
            ..Files::default()
        };
        for (path, reads, writes) in [
            ("/srv/data", true, false),
            ("/usr/share/data", true, false),
            ("/work/data", true, true),
            ("/tmp/data", true, true),
            ("/data", false, false),
            ("/srv2", false, false),
        ] {
            let told = (limited.grants(Path::new(path), false), limited.grants(Path::new(path), true));
            assert_eq!(told, (reads, writes), "{path}");
        }
        let readable = Files { readable: None, ..limited };
        let told = (readable.grants(Path::new("/data"), false), readable.grants(Path::new("/data"), true));
        assert_eq!(told, (true, false));
    }

    #[test]
    fn a_link_is_followed_to_a_place_that_is_open_alone_and_refused_where_there_was_none() {
        let folder = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(folder.path()).unwrap();
        for dir in ["state", "open"] {
            fs::create_dir(top.join(dir)).unwrap();
            std::os::unix::fs::symlink(top.join(dir), top.join(format!("to-{dir}"))).unwrap();
        }
        let told = |path: &str, links: Links| {
            let (path, mut opened) = (top.join(path), Vec::new());
            let grant = Grant { path: path.to_str().unwrap(), links, closed: vec![top.join("state")] };
            let result = allow(&grant, &mut |place| {
                opened.push(fs::read_link(by_descriptor(place)).unwrap());
                Ok(())
            });
            result.map(|()| opened).map_err(|error| error.to_string())
        };
        assert_eq!(told("to-open", Links::Followed), Ok(vec![top.join("open")]));
        assert_eq!(told("to-state", Links::Followed), Ok(vec![]));
        assert_eq!(told("gone", Links::Refused), Ok(vec![]));
        let error = told("to-open", Links::Refused).unwrap_err();
        assert!(error.contains(&format!("{}/to-open is a link", top.display())), "{error}");
    }
}
