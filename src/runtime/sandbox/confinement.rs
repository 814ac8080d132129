//! From a service's spec to its system-call filter and its reach: pure, apart from the facts of the machine.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::landlock::{Files, Links, Reach};
use super::links::Unresolved;
use super::probe::Probe;
use super::record::Root;
use super::sys::Namespaces;
use super::translate::Machine;
use crate::runtime::{ErrorKind, RuntimeError};
use crate::spec::{SeccompProfile, ServiceSpec, Storage};
use crate::state::Condition;

/// Secrets of the machine that no program needs whose root is the machine's: passwords.
///
/// Besides them, the names under which the tools that change them write the next ones (shadow-utils, vipw, visudo).
const SECRETS: &[&str] = &[
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/shadow+",
    "/etc/shadow.edit",
    "/etc/nshadow",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/gshadow+",
    "/etc/gshadow.edit",
    "/etc/ngshadow",
    "/etc/sudoers",
    "/etc/sudoers.tmp",
    "/etc/sudoers.d",
];
/// Where the keys of this machine's SSH server lie.
const HOST_KEYS: &str = "/etc/ssh";

/// Paths of the machine that stay out of sight where the root is the machine's, whether there is anything or not.
pub fn secrets() -> Vec<PathBuf> {
    let keys = std::fs::read_dir(HOST_KEYS).into_iter().flatten().flatten();
    let keys = keys.filter(|entry| is_host_key(entry.file_name().as_bytes())).map(|entry| entry.path());
    SECRETS.iter().map(PathBuf::from).chain(keys).collect()
}

/// Whether a file of this name in the directory of the SSH server's keys is a secret one, also one that is being made.
pub fn is_host_key(name: &[u8]) -> bool {
    name.starts_with(b"ssh_host_") && !name.ends_with(b".pub")
}

/// Whether an entry of `security_opt` switches the filter off, in either of Docker's spellings.
pub fn is_unconfined(option: &str) -> bool {
    matches!(option, "seccomp=unconfined" | "seccomp:unconfined")
}

/// The system-call filter: what is written, else none for `privileged` and the default for others, as with Docker.
pub fn filter(spec: &ServiceSpec, probe: &Probe, found: &mut Vec<Condition>) -> Option<SeccompProfile> {
    let written = spec.sandbox.as_ref().and_then(|sandbox| sandbox.seccomp);
    let off = spec.privileged == Some(true) || spec.security_opt.iter().any(|option| is_unconfined(option));
    let wanted = written.or((!off).then_some(SeccompProfile::Default))?;
    match &probe.seccomp {
        _ if wanted == SeccompProfile::Unconfined => None,
        Ok(()) => Some(wanted),
        Err(why) => {
            found.push(degraded("NoSystemCallFilter", format!("no system-call filter holds: {why}")));
            None
        }
    }
}

/// What a program may reach by path and by name.
///
/// # Errors
/// `Rejected` for a path that is not absolute, or that leads through a link which a program may have made.
pub fn reach(
    spec: &ServiceSpec,
    root: &Root,
    namespaces: Namespaces,
    alone: bool,
    machine: &Machine<'_>,
    found: &mut Vec<Condition>,
) -> Result<Reach, RuntimeError> {
    let (shared, probe) = (*root == Root::Shared, machine.probe);
    let lists = spec.sandbox.as_ref().map_or((&[][..], &[][..]), |one| (&one.readable[..], &one.writable[..]));
    for path in lists.0.iter().chain(lists.1) {
        super::inside::components(path).map_err(|error| {
            RuntimeError::new(ErrorKind::Rejected, format!("sandbox: the path {path:?} can't be opened up: {error}"))
        })?;
    }
    let written = !lists.0.is_empty() || (!lists.1.is_empty() && *root != Root::Host);
    let privileged = spec.privileged == Some(true);
    let limits_files = written || (shared && !privileged);
    let wanted = Reach {
        files: limits_files.then(|| files(spec, lists, root, machine)).transpose()?,
        no_signals: shared && !privileged,
        no_abstract_sockets: !namespaces.net && !privileged,
        no_tcp: alone && !namespaces.net,
    };
    match &probe.landlock {
        Ok(_) => Ok(wanted),
        Err(why) => {
            if written {
                found.push(degraded(
                    "PathsNotLimited",
                    format!("sandbox.readable and sandbox.writable do not hold: {why}"),
                ));
            }
            Ok(Reach::default())
        }
    }
}

fn files(
    spec: &ServiceSpec,
    (readable, writable): (&[String], &[String]),
    root: &Root,
    machine: &Machine<'_>,
) -> Result<Files, RuntimeError> {
    let links = if matches!(root, Root::Host | Root::Shared) { Links::Refused } else { Links::Followed };
    let resolved = |paths: &[String]| match links {
        Links::Refused => paths.iter().map(|path| machine_path(path, machine)).collect(),
        Links::Followed => Ok(paths.to_vec()),
    };
    let readable = (!readable.is_empty()).then(|| resolved(readable)).transpose()?;
    let writable = resolved(writable)?;
    if *root == Root::Shared {
        let secrets = if machine.probe.root { secrets() } else { Vec::new() };
        let closed = [machine.own_files, &secrets].concat();
        let scratch = Some(scratch(machine.dir.path()));
        return Ok(Files { readable, writable, links, closed, scratch, ..Files::default() });
    }
    // What is mounted may be read; whether it may be written is the mount's own.
    let mounted = spec.storage.iter().map(|storage: &Storage| storage.target().to_owned()).collect();
    Ok(Files { readable, writable, links, mounted, own_scratch: true, ..Files::default() })
}

/// Where a path of the machine leads. One that is not there yet may be there when the program starts.
fn machine_path(path: &String, machine: &Machine<'_>) -> Result<String, RuntimeError> {
    match machine.written.resolve(Path::new(path)) {
        Ok(real) => Ok(real.to_string_lossy().into_owned()),
        Err(Unresolved::Unreadable(_)) => Ok(path.clone()),
        Err(error @ Unresolved::Untrusted { .. }) => {
            Err(RuntimeError::new(ErrorKind::Rejected, format!("sandbox: {path} can't be opened up: {error}")))
        }
    }
}

/// What a plain process is not kept from; none where nothing is missing.
pub fn not_isolated(spec: &ServiceSpec, reach: &Reach, filtered: bool, machine: &Machine<'_>) -> Vec<Condition> {
    let confined = match (filtered, reach.files.is_some()) {
        (true, true) => "is confined by a system-call filter and Landlock alone",
        (true, false) => "is confined by a system-call filter alone",
        (false, true) => "is confined by Landlock alone",
        (false, false) => "is not confined at all",
    };
    let why = machine.probe.namespaces.clone().err().unwrap_or_default();
    let mut found = vec![degraded(
        "NotIsolated",
        format!(
            "the program runs as a plain process of this machine, without a root file system, /tmp, process list \
             or host name of its own, and {confined}: {why}"
        ),
    )];
    if reach.files.is_none() {
        let why = match &machine.probe.landlock {
            Err(why) => why.as_str(),
            Ok(_) if spec.privileged == Some(true) => "privileged: true switches Landlock off",
            Ok(_) => "",
        };
        found.push(degraded("StateExposed", format!("{EXPOSED}: {why}")));
    }
    found
}

/// What it means that nothing keeps a program from files.
pub const EXPOSED: &str = "a program of keel's own user can read everything that this user can, Evenkeel's state directory \
                           with the environments and secrets of every instance included";

/// Scratch space of a plain process, as it has no `/tmp` of its own.
pub fn scratch(dir: &Path) -> PathBuf {
    dir.join("tmp")
}

fn degraded(reason: &str, message: String) -> Condition {
    Condition::holds("Degraded", reason, message)
}
