//! System calls that neither the standard library nor rustix offers as safe functions. All `unsafe` of the
//! runtime is in here.

#![allow(unsafe_code, reason = "the system-call layer; every block says why it is sound")]

pub mod bpf;
pub mod datagram;
pub mod pages;
pub mod peer;
pub mod quota;
pub mod source;

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::{Pid, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Flag of clone3(2) that puts the child into a control group.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Namespaces that [`fork`] makes for the child.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Namespaces {
    /// Users and capabilities.
    pub user: bool,
    /// Mounts.
    pub mount: bool,
    /// Processes.
    pub pid: bool,
    /// System V IPC and POSIX message queues.
    pub ipc: bool,
    /// Host name.
    pub uts: bool,
    /// Network.
    pub net: bool,
    /// Control groups. Not made by [`fork`], as its root would be the parent's group: [`own_cgroup_namespace`] makes it
    /// once the process is where it belongs.
    #[serde(default)]
    pub cgroup: bool,
}

impl Namespaces {
    /// `CLONE_NEW*` bits of the namespaces.
    fn flags(self) -> u64 {
        [
            (self.user, libc::CLONE_NEWUSER),
            (self.mount, libc::CLONE_NEWNS),
            (self.pid, libc::CLONE_NEWPID),
            (self.ipc, libc::CLONE_NEWIPC),
            (self.uts, libc::CLONE_NEWUTS),
            (self.net, libc::CLONE_NEWNET),
        ]
        .iter()
        .filter(|(wanted, _)| *wanted)
        .fold(0, |flags, (_, flag)| flags | u64::from(flag.cast_unsigned()))
    }

    /// Whether there is any.
    pub fn any(self) -> bool {
        self.flags() != 0
    }
}

/// Which side of a [`fork`] this is.
#[derive(Debug)]
pub enum Fork {
    /// The child.
    Child,
    /// The parent.
    Parent {
        /// The child's process id.
        pid: Pid,
        /// Refers to the child for as long as it is held.
        pidfd: OwnedFd,
    },
}

/// Duplicates this process into new namespaces.
///
/// The caller must be single-threaded: the child may then allocate and use the whole library. A process that has
/// other threads gets `EBUSY`.
///
/// # Errors
/// What clone3(2) reports; `EPERM` and `ENOSPC` where namespaces are refused.
pub fn fork(namespaces: Namespaces) -> io::Result<Fork> {
    fork_into(namespaces, None)
}

/// The same, with the child born in a control group of version 2, which is given as its open directory.
///
/// # Errors
/// As for [`fork`]; before Linux 5.7 children can't be born in another group.
pub fn fork_into(namespaces: Namespaces, group: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    if !is_single_threaded() {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let mut pidfd: RawFd = -1;
    // SAFETY: an all-zero clone_args is a valid value: plain integers, no extra fields in use.
    let mut arguments: libc::clone_args = unsafe { MaybeUninit::zeroed().assume_init() };
    arguments.flags = namespaces.flags() | u64::from(libc::CLONE_PIDFD.cast_unsigned());
    arguments.pidfd = (&raw mut pidfd).addr() as u64;
    arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    if let Some(group) = group {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::from(group.as_raw_fd().cast_unsigned());
    }
    // SAFETY: no stack is given and CLONE_VM is not set, so this returns twice like fork(2). The process has one
    // thread (checked above), so no lock is held by a thread that is missing in the child. `arguments` and
    // `pidfd` outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match result {
        0 => Ok(Fork::Child),
        pid if pid > 0 => {
            // SAFETY: the kernel stored a descriptor that nothing else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
            Ok(Fork::Parent { pid, pidfd })
        }
        _ => {
            let error = io::Error::last_os_error();
            // Container engines answer clone3 with ENOSYS to keep namespaces out of reach of their filters.
            if error.raw_os_error() == Some(libc::ENOSYS) && !namespaces.any() && group.is_none() {
                plain_fork()
            } else {
                Err(error)
            }
        }
    }
}

fn plain_fork() -> io::Result<Fork> {
    match OneThread(()).fork()? {
        None => Ok(Fork::Child),
        Some(pid) => {
            let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
            Ok(Fork::Parent { pid, pidfd })
        }
    }
}

/// Shows that this process has one thread, for a fork where its own `/proc` is out of sight. Whoever holds it starts no
/// thread.
#[derive(Debug)]
pub struct OneThread(());

impl OneThread {
    /// Looks whether it is so.
    ///
    /// # Errors
    /// `EBUSY` where there are other threads.
    pub fn check() -> io::Result<Self> {
        if is_single_threaded() { Ok(Self(())) } else { Err(io::Error::from_raw_os_error(libc::EBUSY)) }
    }

    /// Duplicates this process with calls that every program may make; the parent is given the child.
    ///
    /// # Errors
    /// What fork(2) reports.
    pub fn fork(&self) -> io::Result<Option<Pid>> {
        // SAFETY: the process has one thread, so no lock is held by a thread that is missing in the child, which may do
        // what the parent may.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            pid => Ok(Pid::from_raw(pid)),
        }
    }
}

/// Whether the process has one thread, by the number of links of its task directory.
fn is_single_threaded() -> bool {
    std::fs::metadata("/proc/self/task").is_ok_and(|task| std::os::unix::fs::MetadataExt::nlink(&task) == 3)
}

/// Makes the control groups that this process is in the roots of what it sees of control groups.
///
/// # Errors
/// The kernel refuses.
pub fn own_cgroup_namespace() -> io::Result<()> {
    // SAFETY: this namespace only changes how paths of control groups are shown; no memory or descriptor is concerned.
    if unsafe { libc::unshare(libc::CLONE_NEWCGROUP) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Attributes that [`set_mount_attributes`] adds.
#[derive(Debug, Clone, Copy, Default)]
pub struct MountAttributes {
    /// Nothing can be written.
    pub read_only: bool,
    /// Set-user-id bits have no effect.
    pub no_suid: bool,
    /// Device nodes can't be opened.
    pub no_dev: bool,
}

/// Adds attributes to a mount and, with `recursive`, to all below it: mount_setattr(2), Linux 5.12.
///
/// # Errors
/// What the kernel reports; `ENOSYS` before 5.12.
pub fn set_mount_attributes(mount: BorrowedFd<'_>, attributes: MountAttributes, recursive: bool) -> io::Result<()> {
    let mut value = libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: 0, userns_fd: 0 };
    for (wanted, flag) in [
        (attributes.read_only, libc::MOUNT_ATTR_RDONLY),
        (attributes.no_suid, libc::MOUNT_ATTR_NOSUID),
        (attributes.no_dev, libc::MOUNT_ATTR_NODEV),
    ] {
        if wanted {
            value.attr_set |= flag;
        }
    }
    change_mount(mount, &value, recursive)
}

/// Has a mount and all below it take part in no other's changes, so that what is mounted in one of them shows nowhere else.
///
/// # Errors
/// What the kernel reports; `ENOSYS` before 5.12.
pub fn make_mounts_private(mount: BorrowedFd<'_>) -> io::Result<()> {
    change_mount(
        mount,
        &libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 },
        true,
    )
}

fn change_mount(mount: BorrowedFd<'_>, value: &libc::mount_attr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor is borrowed for the call, the path is a literal with its NUL, and `value` is a
    // mount_attr of the size that is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(value),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Blocks every signal and returns a non-blocking descriptor that delivers them instead.
///
/// # Errors
/// No descriptor is left.
pub fn take_signals() -> io::Result<OwnedFd> {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the set that it is given; the later calls only read it.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        if libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, all.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Number of the next signal that waits at a descriptor of [`take_signals`].
pub fn next_signal(signals: BorrowedFd<'_>) -> Option<i32> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer is as large as the size that is passed.
    let read = unsafe { libc::read(signals.as_raw_fd(), info.as_mut_ptr().cast(), size) };
    // SAFETY: a signalfd delivers whole structures; one of full size was read.
    (read == isize::try_from(size).ok()?).then(|| unsafe { info.assume_init() }.ssi_signo.cast_signed())
}

/// Gives every signal its default action and blocks none, as a program expects to be started.
pub fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL is a valid action; numbers that can't be set are refused without effect.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set before it is read.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}

/// Executes a file in place of this process, with this process's arguments and environment. Returns only on failure.
pub fn execute_again(file: BorrowedFd<'_>) -> io::Error {
    use std::os::unix::ffi::OsStrExt;
    // Neither can hold a NUL: they came as C strings.
    let text = |bytes: &[u8]| std::ffi::CString::new(bytes).unwrap_or_default();
    let arguments: Vec<_> = std::env::args_os().map(|argument| text(argument.as_bytes())).collect();
    let variables: Vec<_> =
        std::env::vars_os().map(|(name, value)| text(&[name.as_bytes(), b"=", value.as_bytes()].concat())).collect();
    let pointers = |texts: &[std::ffi::CString]| -> Vec<*const libc::c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argument_list, variable_list) = (pointers(&arguments), pointers(&variables));
    // SAFETY: the path is a literal with its NUL; both lists end with a null pointer and hold pointers to texts that
    // outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            argument_list.as_ptr(),
            variable_list.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Has the kernel reap the children of this process, which never waits for them.
pub fn forget_children() {
    // SAFETY: SIG_IGN is a valid action for SIGCHLD, and no handler is replaced that anything relies on.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Marks every descriptor above standard error to be closed at the next exec: close_range(2), else one by one.
pub fn close_on_exec() {
    // SAFETY: the call only sets a flag on descriptors; no descriptor becomes invalid.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result != 0 {
        for fd in 3..1024 {
            // SAFETY: setting the flag on a number that is no descriptor fails without effect.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}

/// Closes every descriptor above standard error but these, as far as the machine has close_range(2).
///
/// Descriptors that are closed still have owners in this process: it must never drop them, and end by
/// [`std::process::exit`].
pub fn close_all_but(kept: &[BorrowedFd<'_>]) {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
    kept.sort_unstable();
    let mut from = 3u32;
    for fd in kept.into_iter().map(Some).chain([None]) {
        let to = fd.map_or(u32::MAX, |fd| fd.saturating_sub(1));
        if from <= to {
            // SAFETY: only numbers are passed. The caller never uses what is closed again.
            unsafe { libc::syscall(libc::SYS_close_range, from, to, 0u32) };
        }
        from = fd.map_or(u32::MAX, |fd| fd.saturating_add(1));
    }
}

/// Makes standard descriptor `number` (0 to 2) refer to the same as `fd`.
///
/// # Errors
/// What dup2(2) reports.
pub fn replace_standard(number: RawFd, fd: BorrowedFd<'_>) -> io::Result<()> {
    debug_assert!((0..=2).contains(&number));
    // SAFETY: both are plain numbers; the standard descriptors have no owner in this library that could be
    // surprised by what they refer to.
    if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Brings the loopback interface of this network namespace up.
///
/// # Errors
/// What the socket or the ioctl reports.
pub fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: an all-zero ifreq is a valid value.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has tokio wait until a descriptor is ready.
///
/// # Errors
/// The descriptor can't be waited for.
pub fn wait_ready(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd always names the same open descriptor, and nothing but its drop closes it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// The signal of this number, where the machine knows it.
pub fn signal(number: i32) -> Option<Signal> {
    Signal::from_named_raw(number)
}
/// The user namespace that a namespace belongs to (`NS_GET_USERNS` of ioctl_ns(2)).
///
/// # Errors
/// It is no namespace, or its owner is above this process.
pub fn owner_of_namespace(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: this ioctl takes no argument and gives a new descriptor, or fails.
    let owner = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) };
    if owner < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just made for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(owner) })
}
