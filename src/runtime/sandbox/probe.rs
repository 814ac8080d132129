//! What this machine lets a sandbox do, found out by doing it in a process of its own.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::cgroup::{self, Homes};
use super::failure::{Context, Failure};
use super::landlock::{self, Extent, Reach};
use super::overlay::overlay;
use super::sys::{self, Fork, Namespaces};
use super::{network, privileges, rootfs, seccomp};
use crate::spec::SeccompProfile;

/// What this machine lets a sandbox do; an error is the reason why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Whether this is root.
    pub root: bool,
    /// Mount, process, IPC and host-name namespaces, with a root file system and /proc of their own.
    pub namespaces: Result<(), String>,
    /// A network namespace besides.
    pub network: Result<(), String>,
    /// A network of their deployment, which reaches what the machine does.
    pub bridge: Result<(), String>,
    /// Where pasta is, which connects networks of an ordinary user's instances.
    pub pasta: Result<PathBuf, String>,
    /// A writable layer over a directory.
    pub layer: Result<(), String>,
    /// A system-call filter.
    pub seccomp: Result<(), String>,
    /// Limits by path and name: Landlock.
    pub landlock: Result<Extent, String>,
    /// Limits of what a directory holds.
    pub quota: Result<(), String>,
    /// Kernel parameters of an IPC namespace.
    pub ipc_sysctls: Result<(), String>,
    /// A cgroup namespace besides.
    pub cgroup_namespace: Result<(), String>,
    /// Where control groups can be made.
    pub homes: Homes,
    /// A limit of processes that counts those of one instance alone.
    pub process_limit: Result<(), String>,
    /// Leaving capabilities out for good.
    pub capability_drop: Result<(), String>,
    /// Becoming another user, with other groups.
    pub users: Result<(), String>,
    /// Lowest oom_score_adj that can be set.
    pub oom_score_floor: i32,
}

impl Probe {
    /// What is known of a machine that could not be probed.
    pub fn failed(reason: &str) -> Self {
        let no = || Err(reason.to_owned());
        Self {
            root: rustix::process::geteuid().is_root(),
            namespaces: no(),
            network: no(),
            bridge: no(),
            pasta: Err(reason.to_owned()),
            layer: no(),
            seccomp: no(),
            landlock: Err(reason.to_owned()),
            quota: no(),
            ipc_sysctls: no(),
            cgroup_namespace: no(),
            homes: Homes::none(reason),
            process_limit: no(),
            capability_drop: no(),
            users: no(),
            oom_score_floor: 0,
        }
    }

    /// Namespaces that an instance gets, with or without a network of its own.
    pub fn wanted(&self, net: bool) -> Namespaces {
        if self.namespaces.is_err() {
            return Namespaces::default();
        }
        let net = net && self.network.is_ok();
        let cgroup = self.cgroup_namespace.is_ok();
        Namespaces { user: !self.root, mount: true, pid: true, ipc: true, uts: true, net, cgroup }
    }
}

/// Entry point of `__probe DIR`: prints the [`Probe`] as JSON. The directory is for scratch files.
pub fn main(dir: &Path) -> ExitCode {
    let root = rustix::process::geteuid().is_root();
    let base = Namespaces { user: !root, mount: true, pid: true, ipc: true, uts: true, ..Namespaces::default() };
    let probe = Probe {
        root,
        namespaces: attempt(base, rootfs::try_out),
        network: attempt(Namespaces { net: true, ..base }, || sys::loopback_up().context("bringing loopback up")),
        bridge: match root {
            true => attempt(Namespaces::default(), network::try_out),
            false => Err("keel does not run as root, and only root may make interfaces of the machine".to_owned()),
        },
        pasta: match root {
            true => Err("keel runs as root, whose instances have networks of their deployments".to_owned()),
            false => network::try_out_pasta(),
        },
        layer: attempt(base, || try_layer(dir)),
        seccomp: attempt(Namespaces::default(), try_filter),
        landlock: attempt(Namespaces::default(), || {
            landlock::confine(&Reach::nothing()).context("setting limits").and_then(|extent| match extent {
                Extent::Full => Ok(()),
                Extent::Part => Err(Failure::setup(PART)),
            })
        })
        .map(|()| Extent::Full)
        .or_else(|why| if why == PART { Ok(Extent::Part) } else { Err(why) }),
        quota: match root {
            true => attempt(Namespaces::default(), || super::quota::try_out(dir).map_err(Failure::setup)),
            false => Err("only root may limit what a directory holds".to_owned()),
        },
        ipc_sysctls: attempt(base, super::sysctls::try_out),
        cgroup_namespace: attempt(base, || sys::own_cgroup_namespace().context("making a cgroup namespace")),
        homes: cgroup::probe(),
        process_limit: match root {
            true => Err("keel runs as root, which no limit of processes holds for".to_owned()),
            false => attempt(base, || cgroup::process_limit().map_err(Failure::setup)),
        },
        // An ordinary user's programs have the capabilities of their user namespace.
        capability_drop: attempt(if root { Namespaces::default() } else { base }, privileges::try_drop),
        users: match root {
            true => attempt(Namespaces::default(), privileges::try_users),
            false => Err("keel does not run as root".to_owned()),
        },
        oom_score_floor: cgroup::oom_score_floor(),
    };
    match serde_json::to_vec(&probe).map(|text| io::stdout().write_all(&text)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Does something in a child with these namespaces.
fn attempt(namespaces: Namespaces, action: impl FnOnce() -> Result<(), Failure>) -> Result<(), String> {
    let outside = super::init::Outside::own();
    let (mut answer, mut told) = io::pipe().map_err(|error| error.to_string())?;
    match sys::fork(namespaces) {
        Ok(Fork::Child) => {
            let mapped = if namespaces.user { outside.map_as_root() } else { Ok(()) };
            let result = mapped.context("mapping the user").and_then(|()| action());
            if let Err(failure) = result {
                let _ = told.write_all(failure.message.as_bytes());
            } else {
                let _ = told.write_all(b"+");
            }
            std::process::exit(0)
        }
        Ok(Fork::Parent { .. }) => {
            drop(told);
            let mut text = String::new();
            answer.read_to_string(&mut text).map_err(|error| error.to_string())?;
            match text.as_str() {
                "+" => Ok(()),
                "" => Err("the test was killed".to_owned()),
                _ => Err(text),
            }
        }
        Err(error) => Err(no_namespaces(namespaces, &error)),
    }
}

/// Why the kernel makes no namespaces, by its limits.
pub fn no_namespaces(namespaces: Namespaces, error: &io::Error) -> String {
    refusal(namespaces, error, |file| fs::read_to_string(file).ok())
}

/// Why the kernel makes no namespaces. What it says is "no space left on device" where it means one of its limits.
fn refusal(namespaces: Namespaces, error: &io::Error, read: impl Fn(String) -> Option<String>) -> String {
    if !matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EUSERS)) {
        return format!("making namespaces: {error}");
    }
    let kinds = [
        (namespaces.user, "user"),
        (namespaces.mount, "mnt"),
        (namespaces.pid, "pid"),
        (namespaces.ipc, "ipc"),
        (namespaces.uts, "uts"),
        (namespaces.net, "net"),
        (namespaces.cgroup, "cgroup"),
    ];
    let limit = |kind: &str| Some(read(format!("/proc/sys/user/max_{kind}_namespaces"))?.trim().to_owned());
    let wanted: Vec<&str> = kinds.into_iter().filter(|(wanted, _)| *wanted).map(|(_, kind)| kind).collect();
    // One that allows none is the reason; else it is the first, which the others are made in, or that of a namespace above.
    let reason = wanted.iter().find(|kind| limit(kind).as_deref() == Some("0")).or(wanted.first());
    let kind = reason.copied().unwrap_or("user");
    let held = limit(kind).map(|limit| format!(" (it is {limit})")).unwrap_or_default();
    format!(
        "making namespaces: the kernel's limit user.max_{kind}_namespaces{held}, or the one of a surrounding container, is \
         reached; raise it with sysctl"
    )
}

/// What the test process says where the kernel enforces a part.
const PART: &str = "in part";

fn try_filter() -> Result<(), Failure> {
    rustix::thread::set_no_new_privs(true).context("setting no_new_privs")?;
    let filters = seccomp::programs(SeccompProfile::Default, 0).map_err(Failure::setup)?;
    seccomp::install(&filters).context("installing a filter")
}

fn try_layer(dir: &Path) -> Result<(), Failure> {
    let folder = |name: &str| -> Result<PathBuf, Failure> {
        let path = dir.join(name);
        fs::create_dir_all(&path).context("making a scratch directory")?;
        Ok(path)
    };
    let (lower, upper, work) = (folder("lower")?, folder("upper")?, folder("work")?);
    let place = folder("mounted")?;
    let tree = overlay(&[lower], &upper, &work, &place).context("mounting an overlay")?;
    let target = File::open(&place).context("opening a scratch directory")?;
    super::inside::attach(&tree, &target.into()).context("mounting an overlay")?;
    fs::write(place.join("file"), "x").context("writing to an overlay")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_the_kernel_is_named_where_it_refuses_namespaces() {
        let wanted = Namespaces { user: true, mount: true, pid: true, ..Namespaces::default() };
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        let told = |zero: &'static str| {
            refusal(wanted, &full, move |file| Some(if file.contains(zero) { "0\n" } else { "7\n" }.to_owned()))
        };
        let tail = ", or the one of a surrounding container, is reached; raise it with sysctl";
        let limit = |text: &str| format!("making namespaces: the kernel's limit user.{text}{tail}");
        assert_eq!(told("max_user_"), limit("max_user_namespaces (it is 0)"));
        assert_eq!(told("max_pid_"), limit("max_pid_namespaces (it is 0)"));
        assert_eq!(told("none"), limit("max_user_namespaces (it is 7)"));
        assert_eq!(refusal(wanted, &full, |_| None), limit("max_user_namespaces"));
        let denied = io::Error::from_raw_os_error(libc::EPERM);
        let text = refusal(wanted, &denied, |_| None);
        assert_eq!(text, "making namespaces: Operation not permitted (os error 1)");
    }
}
