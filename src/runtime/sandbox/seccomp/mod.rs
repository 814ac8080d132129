//! System-call filters: what a program may ask of the kernel.
//!
//! Two programs of seccomp(2) stand one upon the other. One answers `EPERM` to certain arguments, and kills a program of
//! another architecture. The other decides by the number of a call alone: it allows what is listed, answers `EPERM` to
//! what is known and forbidden, and `ENOSYS` to all else, so that the C library falls back where a call is newer than the
//! lists. The kernel remembers which calls they always allow and does not run them for those.

mod calls;
mod tree;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::capabilities::{self, has};
use crate::spec::SeccompProfile;
use calls::{ALLOWED, BY_CAPABILITY, FORBIDDEN, STRICT};
use tree::Decision;

/// `TIOCSTI` of ioctl_tty(2): puts input into a terminal as if it were typed, also into that of a shell outside.
const TIOCSTI: u64 = 0x5412;
/// `TIOCLINUX` of ioctl_console(2): pastes into a console.
const TIOCLINUX: u64 = 0x541c;
/// `FS_IOC_FSSETXATTR` of linux/fs.h: takes a file out of the project whose quota limits it.
const FS_IOC_FSSETXATTR: u64 = 0x401c_5820;
/// `FS_IOC_SETFLAGS` of ioctl_iflags(2): can have what is made in a directory belong to no project.
const FS_IOC_SETFLAGS: u64 = 0x4008_6602;
/// What ioctl(2) is never asked for.
const IOCTLS: &[u64] = &[TIOCSTI, TIOCLINUX, FS_IOC_FSSETXATTR, FS_IOC_SETFLAGS];
/// Namespaces that clone(2) may not make, as a program that has them reaches much more of the kernel.
const NAMESPACES: &[i32] = &[
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];
/// Execution domains of personality(2) that change nothing: Linux, its 32-bit form, both with addresses as they were
/// before 2.6, and the question which one it is.
const PERSONALITIES: &[u64] = &[0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Netlink's protocol of the packet filter: a part of the kernel that had many holes, and of use only to who
/// administers a network.
const NETLINK_NETFILTER: u64 = 12;

/// `ENOSYS`: the kernel does not know the call.
const NO_SUCH_CALL: u16 = 38;
/// `EPERM`: the caller may not.
const NOT_PERMITTED: u16 = 1;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Filters of the default profile that this process, or one that it was forked from, has compiled ahead, by capabilities.
static COMPILED: OnceLock<BTreeMap<u64, Vec<BpfProgram>>> = OnceLock::new();

/// Compiles the filters of specs that say nothing about them, for this process and all that are forked from it: it takes
/// a tenth of the time of a start.
pub fn compile_usual() {
    let compiled = |capabilities| Some((capabilities, compile(SeccompProfile::Default, capabilities).ok()?));
    // Where they were compiled before, they are the same.
    let _ = COMPILED.set(capabilities::usual().into_iter().filter_map(compiled).collect());
}

/// The filters of a profile for a program with these capabilities, in the order in which they are installed. None for
/// `unconfined`.
///
/// # Errors
/// This machine's architecture has no filters here.
pub fn programs(profile: SeccompProfile, capabilities: u64) -> Result<Vec<BpfProgram>, String> {
    match COMPILED.get().and_then(|compiled| compiled.get(&capabilities)) {
        Some(programs) if profile == SeccompProfile::Default => Ok(programs.clone()),
        _ => compile(profile, capabilities),
    }
}

fn compile(profile: SeccompProfile, capabilities: u64) -> Result<Vec<BpfProgram>, String> {
    if profile == SeccompProfile::Unconfined {
        return Ok(Vec::new());
    }
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| error.to_string())?;
    let allowed = allowed(capabilities);
    let forbidden = forbidden(profile, capabilities, &allowed).map_err(|error| error.to_string())?;
    let (whole, by_arguments): (Rules, Rules) = forbidden.into_iter().partition(|(_, rules)| rules.is_empty());
    let by_number = tree::compile(&decisions(&allowed, &whole), Decision::Fail(NO_SUCH_CALL))?;
    let refused = SeccompAction::Errno(u32::from(NOT_PERMITTED));
    let by_arguments = SeccompFilter::new(by_arguments, SeccompAction::Allow, refused, arch)
        .and_then(BpfProgram::try_from)
        .map_err(|error| error.to_string())?;
    // The strict profile forbids to install another one.
    Ok(vec![by_arguments, by_number])
}

/// What becomes of each call whatever its arguments are; what is forbidden counts where it is allowed as well.
fn decisions(allowed: &Rules, forbidden: &Rules) -> BTreeMap<u32, Decision> {
    let allowed = allowed.keys().map(|call| (*call, Decision::Allow));
    let forbidden = forbidden.keys().map(|call| (*call, Decision::Fail(NOT_PERMITTED)));
    let numbered = |(call, decision): (i64, Decision)| Some((u32::try_from(call).ok()?, decision));
    allowed.chain(forbidden).filter_map(numbered).collect()
}

fn allowed(capabilities: u64) -> Rules {
    let by_capability = BY_CAPABILITY.iter().filter(|(name, _)| has(capabilities, name)).flat_map(|(_, calls)| *calls);
    ALLOWED.iter().chain(by_capability).map(|call| (*call, Vec::new())).collect()
}

fn forbidden(profile: SeccompProfile, capabilities: u64, allowed: &Rules) -> Result<Rules, seccompiler::BackendError> {
    let known = BY_CAPABILITY.iter().flat_map(|(_, calls)| *calls).chain(FORBIDDEN);
    // The arguments of clone3 lie in memory, where no filter can look; told that there is no such call, the C library
    // uses clone instead.
    let known = known.filter(|call| **call != libc::SYS_clone3 && !allowed.contains_key(call));
    let mut rules: Rules = known.map(|call| (*call, Vec::new())).collect();
    let administers = has(capabilities, "SYS_ADMIN");
    if !administers {
        let flags = NAMESPACES.iter().map(|flag| u64::from(flag.cast_unsigned()));
        let rule = |flag| when(&[(0, SeccompCmpOp::MaskedEq(flag), flag)]);
        rules.insert(libc::SYS_clone, flags.map(rule).collect::<Result<_, _>>()?);
    }
    let mut sockets = vec![
        when(&[(0, SeccompCmpOp::Eq, family(libc::AF_ALG))])?,
        when(&[(0, SeccompCmpOp::Eq, family(libc::AF_VSOCK))])?,
    ];
    if !has(capabilities, "NET_ADMIN") {
        sockets
            .push(when(&[(0, SeccompCmpOp::Eq, family(libc::AF_NETLINK)), (2, SeccompCmpOp::Eq, NETLINK_NETFILTER)])?);
    }
    let other = PERSONALITIES.iter().map(|known| (0, SeccompCmpOp::Ne, *known)).collect::<Vec<_>>();
    rules.insert(libc::SYS_personality, vec![when(&other)?]);
    let ioctls = IOCTLS.iter().map(|request| when(&[(1, SeccompCmpOp::Eq, *request)]));
    rules.insert(libc::SYS_ioctl, ioctls.collect::<Result<_, _>>()?);
    if profile == SeccompProfile::Strict {
        rules.extend(STRICT.iter().map(|call| (*call, Vec::new())));
        let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];
        sockets.push(when(&families.map(|known| (0, SeccompCmpOp::Ne, family(known))))?);
        let empty_path = u64::from(libc::AT_EMPTY_PATH.cast_unsigned());
        rules.insert(libc::SYS_execveat, vec![when(&[(4, SeccompCmpOp::MaskedEq(empty_path), empty_path)])?]);
    }
    rules.insert(libc::SYS_socket, sockets);
    Ok(rules)
}

fn family(number: i32) -> u64 {
    u64::from(number.cast_unsigned())
}

/// A rule that holds when all of these arguments compare so. Only the lower half of each is looked at, as the kernel
/// does for arguments that are no pointers.
fn when(arguments: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, seccompiler::BackendError> {
    let condition = |(index, operator, value): &(u8, SeccompCmpOp, u64)| {
        SeccompCondition::new(*index, SeccompCmpArgLen::Dword, operator.clone(), *value)
    };
    SeccompRule::new(arguments.iter().map(condition).collect::<Result<_, _>>()?)
}

/// Confines this thread for good. It must not gain privileges by executing any more, which this sees to.
///
/// # Errors
/// The kernel refuses.
pub fn install(programs: &[BpfProgram]) -> std::io::Result<()> {
    for program in programs {
        seccompiler::apply_filter(program).map_err(|error| match error {
            seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
            other => std::io::Error::other(other.to_string()),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::sandbox::capabilities;
    use crate::runtime::sandbox::sys::Namespaces;

    fn default_capabilities() -> u64 {
        let spec = serde_yaml::from_str("image: { name: host }").unwrap();
        capabilities::wanted(&spec, Namespaces { net: true, ..Namespaces::default() }).unwrap()
    }

    #[test]
    fn nothing_is_both_allowed_and_forbidden_or_listed_twice() {
        let mut all: Vec<i64> = ALLOWED.iter().chain(FORBIDDEN).copied().collect();
        all.extend(
            BY_CAPABILITY.iter().flat_map(|(_, calls)| *calls).copied().collect::<std::collections::BTreeSet<_>>(),
        );
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn what_strict_forbids_is_allowed_by_default() {
        let allowed = allowed(default_capabilities());
        let odd: Vec<_> = STRICT.iter().filter(|call| !allowed.contains_key(call)).collect();
        assert_eq!(odd, Vec::<&i64>::new());
    }

    #[test]
    fn a_capability_brings_its_calls() {
        let without = allowed(default_capabilities());
        let with = allowed(default_capabilities() | 1 << 21);
        assert!(!without.contains_key(&libc::SYS_mount) && with.contains_key(&libc::SYS_mount));
        let rules = forbidden(SeccompProfile::Default, 1 << 21, &with).unwrap();
        assert!(!rules.contains_key(&libc::SYS_mount) && !rules.contains_key(&libc::SYS_clone));
    }

    #[test]
    fn no_file_leaves_its_project_under_a_filter() {
        use std::os::fd::AsFd;

        use super::super::sys::quota::{project, set_project};
        use rustix::fs::{ioctl_getflags, ioctl_setflags};
        use rustix::io::Errno;

        for profile in [SeccompProfile::Default, SeccompProfile::Strict] {
            // A filter holds for the thread that installs it.
            let confined = std::thread::spawn(move || {
                let folder = tempfile::tempdir().unwrap();
                let opened = std::fs::File::open(folder.path()).unwrap();
                rustix::thread::set_no_new_privs(true).unwrap();
                install(&programs(profile, u64::MAX).unwrap()).unwrap();
                let Ok(flags) = ioctl_getflags(&opened) else { return eprintln!("skipped: no attributes of files") };
                assert_eq!(ioctl_setflags(&opened, flags), Err(Errno::PERM));
                let Ok(own) = project(opened.as_fd()) else { return eprintln!("skipped: no projects") };
                let refused = set_project(opened.as_fd(), own).unwrap_err();
                assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
            });
            confined.join().unwrap();
        }
    }

    #[test]
    fn what_was_compiled_ahead_is_what_would_be_compiled() {
        compile_usual();
        let ahead = COMPILED.get().unwrap();
        assert!(ahead.contains_key(&default_capabilities()));
        for (capabilities, compiled) in ahead {
            assert_eq!(*compiled, compile(SeccompProfile::Default, *capabilities).unwrap(), "{capabilities:x}");
        }
    }

    #[test]
    fn every_profile_compiles_within_the_kernels_bounds() {
        assert_eq!(programs(SeccompProfile::Unconfined, 0).unwrap().len(), 0);
        for profile in [SeccompProfile::Default, SeccompProfile::Strict] {
            for capabilities in [0, default_capabilities(), u64::MAX] {
                let programs = programs(profile, capabilities).unwrap();
                assert!(programs.iter().all(|program| program.len() < 4096), "BPF_MAXINSNS");
            }
        }
    }
}
