//! From a service's spec to its system-call filter and its reach: pure, apart from the facts of the machine.

use std::path::{Path, PathBuf};

use super::landlock::{Files, Reach};
use super::probe::Probe;
use super::record::Root;
use super::sys::Namespaces;
use crate::runtime::{ErrorKind, RuntimeError};
use crate::spec::{SeccompProfile, ServiceSpec, Storage};
use crate::state::Condition;

/// Secrets of the machine that no program needs whose root is the machine's: passwords and host keys.
const SECRETS: &[&str] =
    &["/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/sudoers", "/etc/sudoers.d"];
/// Where the keys of this machine's SSH server lie.
const HOST_KEYS: &str = "/etc/ssh";

/// Paths of the machine that stay out of sight where the root is the machine's.
pub fn secrets() -> Vec<PathBuf> {
    let keys = std::fs::read_dir(HOST_KEYS).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_key = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("ssh_host_") && !name.ends_with(".pub")
    };
    SECRETS.iter().map(PathBuf::from).chain(keys.filter(is_key)).collect()
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
/// `Rejected` for a path that is not absolute.
pub fn reach(
    spec: &ServiceSpec,
    root: &Root,
    namespaces: Namespaces,
    alone: bool,
    dir: &Path,
    probe: &Probe,
    found: &mut Vec<Condition>,
) -> Result<Reach, RuntimeError> {
    let shared = *root == Root::Shared;
    let lists = spec.sandbox.as_ref().map_or((&[][..], &[][..]), |one| (&one.readable[..], &one.writable[..]));
    for path in lists.0.iter().chain(lists.1) {
        super::inside::components(path).map_err(|error| {
            RuntimeError::new(ErrorKind::Rejected, format!("sandbox: the path {path:?} can't be opened up: {error}"))
        })?;
    }
    let written = !lists.0.is_empty() || (!lists.1.is_empty() && *root != Root::Host);
    let privileged = spec.privileged == Some(true);
    let wanted = Reach {
        files: (written || (shared && !privileged)).then(|| files(spec, lists, shared, dir)),
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

fn files(spec: &ServiceSpec, (readable, writable): (&[String], &[String]), shared: bool, dir: &Path) -> Files {
    let mut writable = writable.to_vec();
    if shared {
        writable.push(scratch(dir).to_string_lossy().into_owned());
    } else {
        writable.extend(spec.storage.iter().map(|storage: &Storage| storage.target().to_owned()));
    }
    // What is mounted may be read; whether it may be written is the mount's own.
    Files { readable: (!readable.is_empty()).then(|| readable.to_vec()), writable, own_scratch: !shared }
}

/// Scratch space of a plain process, as it has no `/tmp` of its own.
pub fn scratch(dir: &Path) -> PathBuf {
    dir.join("tmp")
}

fn degraded(reason: &str, message: String) -> Condition {
    Condition::holds("Degraded", reason, message)
}
