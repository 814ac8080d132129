//! Follows a process and all that it starts, and kills one of them right before the n-th of its system calls that change
//! something others can see. Between two of those calls the machine looks the same to everybody, so that all numbers
//! together are all instants.

#![allow(unsafe_code, reason = "there is no safe way to trace a process; every block says why it is sound")]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ptr::null_mut;

use libc::{c_int, c_long, pid_t};

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The process that makes the runtime's calls, at its own instants.
    Controller,
    /// The spawner, at its own instants.
    Spawner,
    /// The supervisor, at its own instants and at those of the processes that it prepares the program with.
    Supervisor,
}

/// What became of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// The victim was killed.
    Killed,
    /// The calls were over before it was its turn.
    Over,
}

/// What a process is to the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Controller,
    Spawner,
    Supervisor,
    /// Below a supervisor, and not yet the program.
    Inside,
    Program,
}

impl Role {
    fn of_child(self) -> Self {
        match self {
            Self::Controller => Self::Spawner,
            Self::Spawner => Self::Supervisor,
            Self::Supervisor | Self::Inside => Self::Inside,
            Self::Program => Self::Program,
        }
    }
}

impl Victim {
    fn role(self) -> Role {
        match self {
            Self::Controller => Role::Controller,
            Self::Spawner => Role::Spawner,
            Self::Supervisor => Role::Supervisor,
        }
    }

    fn counts(self, role: Role) -> bool {
        role == self.role() || (self == Self::Supervisor && role == Role::Inside)
    }
}

/// System calls that change something outside of the calling process, or its own identity.
const CHANGES: &[c_long] = &[
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_mknodat,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_flock,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit_group,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_move_mount,
    libc::SYS_fsmount,
    libc::SYS_open_tree,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_setsid,
    libc::SYS_setresuid,
    libc::SYS_kill,
    libc::SYS_pidfd_send_signal,
    libc::SYS_wait4,
    libc::SYS_waitid,
];

/// The same, where there are older forms of them.
#[cfg(target_arch = "x86_64")]
const OLDER_CHANGES: &[c_long] = &[
    libc::SYS_rename,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_symlink,
    libc::SYS_link,
    libc::SYS_mknod,
    libc::SYS_fork,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER_CHANGES: &[c_long] = &[];

/// Bit of a stop at a system call, as `PTRACE_O_TRACESYSGOOD` has it.
const AT_CALL: c_int = 0x80;

fn ptrace(request: c_int, tid: pid_t, data: usize) -> bool {
    // SAFETY: none of the requests that are made here reads or writes this process's memory.
    unsafe { libc::ptrace(request as _, tid, null_mut::<u8>(), data) == 0 }
}

/// Waits for the next report of a process; `None` when there are none left.
fn next(flags: c_int) -> Option<(pid_t, c_int)> {
    loop {
        let mut status = 0;
        // SAFETY: the status is written to a variable that lives through the call.
        match unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | flags) } {
            0 => return None,
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return None,
            tid => return Some((tid, status)),
        }
    }
}

fn event(status: c_int) -> c_int {
    status >> 16
}

/// What the process was forked for, told by its status and that of its parents.
struct Family {
    roles: BTreeMap<pid_t, Role>,
    /// The process of each thread that was met, so that the status is read once and not at each of its calls.
    groups: BTreeMap<pid_t, pid_t>,
}

impl Family {
    fn role(&mut self, tid: pid_t) -> Role {
        if let Some(role) = self.groups.get(&tid).and_then(|group| self.roles.get(group)) {
            return *role;
        }
        let status = fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
        let number = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<pid_t>().ok());
        let group = number("Tgid:").unwrap_or(tid);
        self.groups.insert(tid, group);
        if let Some(role) = self.roles.get(&group) {
            return *role;
        }
        let parent = number("PPid:").and_then(|parent| self.roles.get(&parent));
        // One whose parent is gone already is not waited for at any instant.
        let role = parent.map_or(Role::Program, |parent| parent.of_child());
        self.roles.insert(group, role);
        role
    }

    /// Processes of a role.
    fn of(&self, role: Role) -> impl Iterator<Item = pid_t> {
        self.roles.iter().filter(move |(_, one)| **one == role).map(|(group, _)| *group)
    }
}

/// Whether a thread is about to make a call that changes something.
fn is_at_change(tid: pid_t) -> bool {
    // SAFETY: the structure is plain numbers, and its size is told to the kernel.
    let (info, size) = unsafe {
        let mut info: libc::ptrace_syscall_info = std::mem::zeroed();
        let size = libc::ptrace(
            libc::PTRACE_GET_SYSCALL_INFO as _,
            tid,
            size_of::<libc::ptrace_syscall_info>(),
            (&raw mut info).cast::<u8>(),
        );
        (info, size)
    };
    if size <= 0 || info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return false;
    }
    // SAFETY: the kernel said that it is an entry.
    let entry = unsafe { info.u.entry };
    let number = c_long::try_from(entry.nr).unwrap_or(-1);
    let [first, _, third, ..] = entry.args;
    let bit = |bit: c_int| u64::from(bit.cast_unsigned());
    match number {
        libc::SYS_openat => third & bit(libc::O_CREAT) != 0,
        // Not the many that drop capabilities one by one.
        libc::SYS_prctl => [libc::PR_SET_PDEATHSIG, libc::PR_SET_CHILD_SUBREAPER].map(bit).contains(&first),
        number => CHANGES.contains(&number) || OLDER_CHANGES.contains(&number),
    }
}

/// A run that nobody follows any more.
pub struct Ran {
    pub run: Run,
    controller: pid_t,
    /// How the controller ended, where it was seen to.
    end: Option<c_int>,
}

/// Runs `calls` in a child, of which the result is whether all went as it should, and kills the victim before its n-th
/// change. Returns once nothing is followed any more: whoever was not killed goes on.
///
/// The child is a copy of this process, which must have a single thread.
pub fn run(victim: Victim, nth: usize, calls: impl FnOnce() -> bool) -> Ran {
    let (mut gate, mut go) = io::pipe().unwrap();
    // SAFETY: there is no other thread that could hold a lock.
    let controller = unsafe { libc::fork() };
    assert!(controller >= 0, "fork: {}", io::Error::last_os_error());
    if controller == 0 {
        drop(go);
        let _ = io::Read::read(&mut gate, &mut [0]);
        let went_well = std::panic::catch_unwind(std::panic::AssertUnwindSafe(calls)).unwrap_or(false);
        // SAFETY: ends this process without what the copied test harness would do at its end.
        unsafe { libc::_exit(c_int::from(!went_well)) };
    }
    let options = libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACEEXEC;
    let options = usize::try_from(options).unwrap();
    // The kernel lets go of all that a thread follows when the thread ends. Nobody else could: a child is followed from
    // its first instant, and its parent may end without having told of it.
    let follower = move || {
        assert!(ptrace(libc::PTRACE_SEIZE as _, controller, options), "ptrace: {}", io::Error::last_os_error());
        assert!(ptrace(libc::PTRACE_INTERRUPT as _, controller, 0));
        io::Write::write_all(&mut go, b"g").unwrap();
        follow(controller, victim, nth)
    };
    let (run, end) = std::thread::spawn(follower).join().unwrap();
    Ran { run, controller, end }
}

/// Follows until the victim is killed or the controller ended, of which the status is the second part of the result.
fn follow(controller: pid_t, victim: Victim, nth: usize) -> (Run, Option<c_int>) {
    let mut family = Family { roles: BTreeMap::from([(controller, Role::Controller)]), groups: BTreeMap::new() };
    let mut count = 0;
    while let Some((tid, status)) = next(0) {
        if !libc::WIFSTOPPED(status) {
            if tid == controller {
                return (Run::Over, Some(status));
            }
            continue;
        }
        let role = family.role(tid);
        let signal = libc::WSTOPSIG(status);
        let mut passed = 0;
        if signal == libc::SIGTRAP | AT_CALL {
            if victim.counts(role) && is_at_change(tid) {
                count += 1;
                if count == nth {
                    kill(&family, victim.role());
                    return (Run::Killed, None);
                }
            }
        } else if event(status) == libc::PTRACE_EVENT_EXEC {
            if role == Role::Inside {
                family.roles.insert(tid, Role::Program);
            }
        } else if event(status) == 0 {
            passed = usize::try_from(signal).unwrap_or(0);
        }
        let role = family.role(tid);
        let how = if victim.counts(role) { libc::PTRACE_SYSCALL } else { libc::PTRACE_CONT };
        ptrace(how as _, tid, passed);
    }
    (Run::Over, None)
}

fn kill(family: &Family, role: Role) {
    for group in family.of(role) {
        // SAFETY: a signal touches no memory. The number is that of a process that was not reaped yet, as this process
        // follows it.
        unsafe { libc::kill(group, libc::SIGKILL) };
    }
}

impl Ran {
    /// Waits for the end of the controller: whether all of its calls went as they should.
    pub fn ended_well(self) -> bool {
        let mut end = self.end;
        let status = loop {
            if let Some(status) = end {
                break status;
            }
            let Some((tid, told)) = next(0) else { return false };
            end = (tid == self.controller && !libc::WIFSTOPPED(told)).then_some(told);
        };
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    }
}

/// Has every process below this one that loses its parent become a child of this one.
pub fn inherit() {
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1)).unwrap();
}

/// Has children that end from now on be reaped at once, as the machine's first process does, or no longer.
pub fn reap_at_once(at_once: bool) {
    // SAFETY: no handler is installed that could be called.
    unsafe { libc::signal(libc::SIGCHLD, if at_once { libc::SIG_IGN } else { libc::SIG_DFL }) };
    while next(libc::WNOHANG).is_some() {}
}

/// What there is below this process.
pub fn children() -> Vec<String> {
    let own = std::process::id();
    let tasks = fs::read_dir(format!("/proc/{own}/task")).unwrap().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let name = |pid: &str| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let status = read("status");
        let state = status.lines().find(|line| line.starts_with("State:")).unwrap_or_default();
        format!("{pid} {} {state} {}", read("comm").trim(), read("cmdline").replace('\0', " "))
    };
    lists.flat_map(|list| list.split_whitespace().map(name).collect::<Vec<_>>()).collect()
}
