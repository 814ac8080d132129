//! Access to files by path, without mounts: Landlock. It narrows what a program sees of a root further, and is what is
//! left where the machine gives no namespaces.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope, path_beneath_rules,
};
use serde::{Deserialize, Serialize};

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
    "/tmp",
];
/// What is written to besides declared paths: devices and the kernel's own files, which have rules of their own, and
/// scratch space where it is the instance's alone.
const KERNEL: &[&str] = &["/dev", "/proc"];
const SCRATCH: &[&str] = &["/tmp", "/var/tmp", "/run"];

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

fn restrict(reach: &Reach) -> Result<RulesetStatus, landlock::RulesetError> {
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
        let readable = files.readable.as_ref().map_or_else(|| vec!["/"], |paths| readable(paths));
        created = created.add_rules(path_beneath_rules(readable, AccessFs::from_read(NEWEST)))?;
        created = created.add_rules(path_beneath_rules(writable(files), AccessFs::from_all(NEWEST)))?;
    }
    Ok(created.restrict_self()?.ruleset)
}

fn readable(paths: &[String]) -> Vec<&str> {
    SYSTEM.iter().copied().chain(paths.iter().map(String::as_str)).collect()
}

fn writable(files: &Files) -> Vec<&str> {
    let scratch: &[&str] = if files.own_scratch { SCRATCH } else { &[] };
    KERNEL.iter().chain(scratch).copied().chain(files.writable.iter().map(String::as_str)).collect()
}
