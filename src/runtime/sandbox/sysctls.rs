//! Kernel parameters (sysctls): those of namespaces that an instance has of its own are set in it, and those of the
//! machine never are.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::failure::{Context, Failure};
use super::probe::Probe;
use super::record::{Identity, Root};
use super::root_user;
use super::rootfs::new_proc;
use super::sys::Namespaces;
use super::unsupported::unsupported;
use crate::spec::{ServiceSpec, is_root};
use crate::state::Condition;

/// Parameters of an IPC namespace besides those of `fs.mqueue`: those that runc takes (libcontainer/configs/validate).
const IPC: &[&str] = &[
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shm_rmid_forced",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
];
/// The one of a UTS namespace that no other field sets; the kernel takes it by a call, from an ordinary user as well.
const DOMAIN_NAME: &str = "kernel/domainname";
/// One that is tried out: its value is 0 in every new namespace.
const TRIED: (&str, &str) = ("kernel/shm_rmid_forced", "0");

/// What an instance is, as far as it decides which parameters are its own.
#[derive(Debug, Clone, Copy)]
pub struct Inside<'a> {
    /// Namespaces of its own.
    pub namespaces: Namespaces,
    /// Its root file system.
    pub root: &'a Root,
    /// Who its program is, where that is known by now.
    pub identity: Option<&'a Identity>,
}

impl Inside<'_> {
    /// Whether the program is root in its namespaces: known, or as far as its name says.
    fn is_root(self, user: Option<&str>) -> bool {
        let name = user.map(|user| user.split(':').next().unwrap_or_default());
        match (self.identity, name) {
            (Some(identity), _) => root_user::is(identity),
            (None, Some(name)) => is_root(Some(name)),
            (None, None) => !matches!(self.root, Root::Host | Root::Shared),
        }
    }
}

/// The parameters of a spec that are set in an instance, as paths below `/proc/sys` with their values. The others become
/// conditions.
pub fn plan(
    spec: &ServiceSpec,
    inside: Inside<'_>,
    probe: &Probe,
    found: &mut Vec<Condition>,
) -> BTreeMap<String, String> {
    let mut own = BTreeMap::new();
    for (name, value) in &spec.sysctls {
        let path = path(name);
        match refusal(&path, spec.user.as_deref(), inside, probe) {
            None => drop(own.insert(path, value.0.clone())),
            Some(why) => found.push(unsupported(&format!("sysctls.{name}"), &why)),
        }
    }
    own
}

/// Why a parameter is not set; nothing where it is.
fn refusal(path: &str, user: Option<&str>, inside: Inside<'_>, probe: &Probe) -> Option<String> {
    let machines = |what: &str| Some(format!("the instance has the machine's {what}, which is left as it is"));
    let Namespaces { ipc, net, uts, user: has_users, .. } = inside.namespaces;
    if path.starts_with("net/") {
        return if net { None } else { machines("network") };
    }
    if IPC.contains(&path) || path.starts_with("fs/mqueue/") {
        return match &probe.ipc_sysctls {
            _ if !ipc => machines("IPC namespace"),
            Err(why) => Some(why.clone()),
            // The kernel gives them to the root of the namespace alone, and an ordinary user's instance has one user.
            Ok(()) if has_users && !inside.is_root(user) => {
                Some("keel does not run as root, so only a program that is root inside may have it set".to_owned())
            }
            Ok(()) => None,
        };
    }
    match path {
        DOMAIN_NAME if uts => None,
        DOMAIN_NAME => machines("host name"),
        "kernel/hostname" => Some("the field hostname sets it".to_owned()),
        _ => Some("it holds for the whole machine, no namespace has one of its own; set it with sysctl(8)".to_owned()),
    }
}

/// The path of a parameter below `/proc/sys`. As sysctl(8) has it, the separator that comes first separates, and the other
/// one stands for a dot in a name, such as that of the interface in `net.ipv4.conf.eth0/1.forwarding`.
fn path(name: &str) -> String {
    match name.find(['.', '/']).and_then(|at| name.get(at..=at)) {
        Some(".") => {
            let swap = |letter| match letter {
                '.' => '/',
                '/' => '.',
                other => other,
            };
            name.chars().map(swap).collect()
        }
        _ => name.to_owned(),
    }
}

/// Sets parameters in the namespaces of this process, through a `/proc` that can be written. What is not a namespace's
/// own is not there in one, or can't be written (Linux 5.13 and later).
///
/// # Errors
/// The kernel has no such parameter, or does not take the value.
pub fn apply(proc: &OwnedFd, sysctls: &BTreeMap<String, String>) -> Result<(), Failure> {
    for (path, value) in sysctls {
        set(proc, path, value).map_err(|error| refused(path, value, &error))?;
    }
    Ok(())
}

fn set(proc: &OwnedFd, path: &str, value: &str) -> io::Result<()> {
    if path == DOMAIN_NAME {
        return Ok(rustix::system::setdomainname(value.as_bytes())?);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat2(proc.as_fd(), format!("sys/{path}"), flags, Mode::empty(), resolve)?;
    // In one call: every call is a whole value to the kernel.
    File::from(file).write_all(value.as_bytes())
}

fn refused(path: &str, value: &str, error: &io::Error) -> Failure {
    let name = path.replace('/', ".");
    Failure::wrong(match error.kind() {
        io::ErrorKind::NotFound => {
            format!("sysctls: {name}: no namespace of an instance has such a parameter on this kernel")
        }
        io::ErrorKind::PermissionDenied => {
            format!("sysctls: {name}: this kernel lets no instance change it; remove it, or set it on the machine")
        }
        _ => format!("sysctls: {name}: the kernel does not take {value:?}: {error}"),
    })
}

/// Sets a parameter of the IPC namespace of this process, which must be new, as it is anyway.
///
/// # Errors
/// This kernel does not allow it.
pub fn try_out() -> Result<(), Failure> {
    let proc = new_proc()?;
    let (path, value) = TRIED;
    set(&proc, path, value).with_context(|| format!("setting {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Namespaces =
        Namespaces { user: false, mount: true, pid: true, ipc: true, uts: true, net: true, cgroup: true };

    fn probe() -> Probe {
        Probe { root: true, namespaces: Ok(()), network: Ok(()), ipc_sysctls: Ok(()), ..Probe::failed("x") }
    }

    fn why(name: &str, user: Option<&str>, namespaces: Namespaces, root: &Root, probe: &Probe) -> Option<String> {
        refusal(&path(name), user, Inside { namespaces, root, identity: None }, probe)
    }

    #[test]
    fn parameters_of_own_namespaces_are_set_and_no_others() {
        let shared_network = Namespaces { net: false, ..ROOT };
        for (name, namespaces, expected) in [
            ("kernel.shmmax", ROOT, None),
            ("kernel.sem", ROOT, None),
            ("fs.mqueue.msg_max", ROOT, None),
            ("net.core.somaxconn", ROOT, None),
            ("net/ipv4/ip_forward", ROOT, None),
            ("kernel.domainname", ROOT, None),
            ("kernel.shmmax", shared_network, None),
            ("net.core.somaxconn", shared_network, Some("the instance has the machine's network")),
            ("kernel.shmmax", Namespaces::default(), Some("the instance has the machine's IPC namespace")),
            ("fs.mqueue.msg_max", Namespaces::default(), Some("the instance has the machine's IPC namespace")),
            ("kernel.domainname", Namespaces::default(), Some("the instance has the machine's host name")),
            ("kernel.hostname", ROOT, Some("the field hostname sets it")),
            ("kernel.pid_max", ROOT, Some("it holds for the whole machine")),
            ("kernel.msg_next_id", ROOT, Some("it holds for the whole machine")),
            ("vm.swappiness", ROOT, Some("it holds for the whole machine")),
            ("fs.mqueue", ROOT, Some("it holds for the whole machine")),
            ("network.x", ROOT, Some("it holds for the whole machine")),
        ] {
            let told = why(name, None, namespaces, &Root::Host, &probe());
            assert_eq!(told.is_none(), expected.is_none(), "{name}: {told:?}");
            assert!(told.unwrap_or_default().starts_with(expected.unwrap_or_default()), "{name}");
        }
    }

    #[test]
    fn an_ordinary_user_sets_those_of_ipc_for_programs_that_are_root_inside() {
        let namespaces = Namespaces { user: true, ..ROOT };
        let dir = Root::Copy { from: Vec::new(), read_only: false };
        for (user, root, is_set) in [
            (None, &dir, true),
            (Some("root"), &dir, true),
            (Some("0:5"), &Root::Host, true),
            (None, &Root::Host, false),
            (Some("1000"), &dir, false),
        ] {
            assert_eq!(why("kernel.shmmax", user, namespaces, root, &probe()).is_none(), is_set, "{user:?}");
            assert_eq!(why("net.core.somaxconn", user, namespaces, root, &probe()), None, "{user:?}");
        }
        let old = Probe { ipc_sysctls: Err("no".to_owned()), ..probe() };
        assert_eq!(why("kernel.shmmax", None, namespaces, &dir, &old), Some("no".to_owned()));
        let identity = Identity { uid: 7, ..Identity::default() };
        let known = Inside { namespaces, root: &dir, identity: Some(&identity) };
        assert!(refusal("kernel/shmmax", None, known, &probe()).is_some());
    }

    #[test]
    fn the_first_separator_separates() {
        for (name, expected) in [
            ("net.core.somaxconn", "net/core/somaxconn"),
            ("net/core/somaxconn", "net/core/somaxconn"),
            ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
            ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ] {
            assert_eq!(path(name), expected);
        }
    }
}
