//! Access to files by path, without mounts: Landlock. It narrows what a program sees of a root further, and is what is
//! left where the machine gives no namespaces.

use std::fs;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope, path_beneath_rules,
};
use serde::{Deserialize, Serialize};

use super::own_files::{Overlap, overlap};

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
        let (readable, writable) = (granted(readable(files))?, granted(writable(files))?);
        created = created.add_rules(path_beneath_rules(readable, AccessFs::from_read(NEWEST)))?;
        created = created.add_rules(path_beneath_rules(writable, AccessFs::from_all(NEWEST)))?;
        created = created.add_rules(path_beneath_rules(&files.scratch, AccessFs::from_all(NEWEST)))?;
    }
    Ok(created.restrict_self()?.ruleset)
}

/// Paths to grant, each with what stays closed below it.
type Grants<'a> = Vec<(&'a str, Vec<PathBuf>)>;

fn readable(files: &Files) -> Grants<'_> {
    let Some(readable) = &files.readable else {
        let scratch: &[&str] = if files.own_scratch { &[] } else { SHARED_SCRATCH };
        return vec![("/", files.closed.iter().cloned().chain(scratch.iter().map(PathBuf::from)).collect())];
    };
    let scratch: &[&str] = if files.own_scratch { SCRATCH } else { &[] };
    let paths = SYSTEM.iter().chain(scratch).copied().chain(readable.iter().map(String::as_str));
    paths.map(|path| (path, files.closed.clone())).collect()
}

fn writable(files: &Files) -> Grants<'_> {
    let scratch: &[&str] = if files.own_scratch { SCRATCH } else { &[] };
    let paths = KERNEL.iter().chain(scratch).copied().chain(files.writable.iter().map(String::as_str));
    paths.map(|path| (path, files.closed.clone())).collect()
}

/// The paths of rules that grant this and nothing that stays closed.
fn granted(grants: Grants<'_>) -> Result<Vec<PathBuf>, Error> {
    let mut opened = Vec::new();
    for (path, closed) in grants {
        match fs::canonicalize(path) {
            Ok(real) if !closed.is_empty() => open(real, &closed, &mut opened)?,
            _ => opened.push(PathBuf::from(path)),
        }
    }
    Ok(opened)
}

/// Opens a path without links, or, where something below it stays closed, each other entry of it. Links among these need
/// no rule: following one takes no right, and where it leads has a rule or none.
fn open(path: PathBuf, closed: &[PathBuf], opened: &mut Vec<PathBuf>) -> Result<(), Error> {
    match overlap(&path, closed) {
        None => opened.push(path),
        Some(Overlap::Inside(_)) => {}
        Some(Overlap::Around(_)) => {
            // What can't be listed can't be granted but as a whole.
            for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| !kind.is_symlink()) {
                    open(entry.path(), closed, opened)?;
                }
                if opened.len() > MOST_RULES {
                    return Err(Error::TooMany(path));
                }
            }
        }
    }
    Ok(())
}

/// Why a program could not be confined.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Kernel(#[from] landlock::RulesetError),
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
            open(top.join(path), &closed, &mut opened).unwrap();
            let mut opened: Vec<String> =
                opened.iter().map(|path| path.strip_prefix(&top).unwrap().display().to_string()).collect();
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
        let error = open(top.clone(), &[top.join("0")], &mut Vec::new()).unwrap_err();
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
        assert_eq!(readable(&everything), [("/", closed)]);
        assert!(!readable(&files(Some("/srv"))).iter().any(|(path, _)| *path == "/tmp"));
        assert!(readable(&files(Some("/tmp"))).contains(&("/tmp", vec!["/own".into()])));
    }
}
