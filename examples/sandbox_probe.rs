//! Tells what a program may do where it runs: one line per attempt, `yes` where it worked and `no` where it did not. Run
//! it inside of a sandbox to see what its walls hold back.
//!
//!     cargo run --example sandbox_probe [--loopback PORT] [--abstract NAME] [--signal PID]
//!
//! The options name things of the machine outside: a port that listens on its loopback address, an abstract socket, and
//! a process.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use libc::{c_int, c_long};

/// Longest time for a connection that nobody answers.
const PATIENCE: Duration = Duration::from_millis(300);

fn main() {
    let option = |name: &str| {
        let mut arguments = std::env::args().skip_while(|argument| argument != name).skip(1);
        arguments.next()
    };
    for (name, possible) in files().into_iter().chain(kernel()).chain(processes()).chain(network()) {
        tell(name, possible);
    }
    if let Some(port) = option("--loopback").and_then(|port| port.parse().ok()) {
        tell("net.host_loopback", connects(SocketAddr::from(([127, 0, 0, 1], port))));
    }
    if let Some(name) = option("--abstract") {
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name);
        let connected = address.and_then(|address| std::os::unix::net::UnixStream::connect_addr(&address));
        tell("net.host_abstract_socket", connected.is_ok());
    }
    if let Some(pid) = option("--signal").and_then(|pid| pid.parse().ok()) {
        // SAFETY: signal 0 only asks whether one could be sent.
        tell("procs.signal_host", unsafe { libc::kill(pid, 0) } == 0);
    }
}

fn tell(name: &str, possible: bool) {
    println!("{name} {}", if possible { "yes" } else { "no" });
}

/// A system call that takes numbers and returns a negative one where it is refused.
fn call(number: c_long, arguments: [c_long; 6]) -> io::Result<c_long> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the callers pass numbers, null pointers, or pointers to literals and structures that outlive the call.
    match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

fn can(number: c_long, arguments: &[c_long]) -> bool {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    call(number, all).is_ok()
}

/// Whether a call is there and looks at its arguments: wrong ones are refused in another way than forbidden calls.
fn reaches(number: c_long, arguments: &[c_long]) -> bool {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    match call(number, all) {
        Ok(_) => true,
        Err(error) => !matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS)),
    }
}

fn writes(path: &str) -> bool {
    OpenOptions::new().write(true).open(path).is_ok()
}

fn creates(path: &str) -> bool {
    let made = File::create_new(path).is_ok();
    if made {
        let _ = fs::remove_file(path);
    }
    made
}

/// Reads a secret that is not empty.
fn reads(path: &str) -> bool {
    fs::read(path).is_ok_and(|text| !text.is_empty())
}

fn files() -> Vec<(&'static str, bool)> {
    let root = Path::new("/proc/1/root");
    vec![
        ("files.read_shadow", reads("/etc/shadow")),
        ("files.write_etc", creates("/etc/keel-probe")),
        ("files.write_usr", creates("/usr/keel-probe") || creates("/bin/keel-probe")),
        ("files.write_sys", writes("/sys/kernel/uevent_helper") || writes("/sys/power/state")),
        ("files.core_pattern", writes("/proc/sys/kernel/core_pattern")),
        ("files.sysrq", writes("/proc/sysrq-trigger")),
        ("files.kcore", fs::read("/proc/kcore").is_ok_and(|text| !text.is_empty()) || reads("/proc/keys")),
        ("files.cgroup_limits", cgroup_writable()),
        ("files.kernel_memory", File::open("/dev/mem").is_ok() || File::open("/dev/kmsg").is_ok()),
        ("files.disk", disk_opens()),
        ("files.make_device", makes_device()),
        ("files.open_by_handle", reaches(libc::SYS_open_by_handle_at, &[-100, 1, 0])),
        (
            "files.traverse_proc_root",
            root.join("run/docker.sock").exists()
                || root.join("etc/shadow").exists() && reads("/proc/1/root/etc/shadow"),
        ),
        ("files.link_out", link_leads_out()),
        ("files.more_descriptors", more_descriptors()),
        // FS_IOC_FSSETXATTR and FS_IOC_SETFLAGS, of no file at all.
        (
            "files.leave_project",
            reaches(libc::SYS_ioctl, &[-1, 0x401c_5820]) || reaches(libc::SYS_ioctl, &[-1, 0x4008_6602]),
        ),
    ]
}

/// Whether any limit of a control group can be opened for writing.
fn cgroup_writable() -> bool {
    let mut folders = vec![Path::new("/sys/fs/cgroup").to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
            } else if (name.contains("limit") || name.ends_with(".max") || name == "release_agent")
                && OpenOptions::new().write(true).open(&path).is_ok()
            {
                return true;
            }
        }
    }
    false
}

fn disk_opens() -> bool {
    let names = fs::read_dir("/sys/block").into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.into_iter().any(|name| File::open(Path::new("/dev").join(name)).is_ok())
}

fn makes_device() -> bool {
    let path = c"/tmp/keel-probe-device";
    // SAFETY: the path is a literal with its NUL. The number is that of /dev/mem.
    let made = unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(1, 1)) } == 0;
    let opens = made && File::open("/tmp/keel-probe-device").is_ok();
    let _ = fs::remove_file("/tmp/keel-probe-device");
    opens
}

/// Whether a link to a protected file lets it be written.
fn link_leads_out() -> bool {
    let _ = fs::remove_file("/tmp/keel-probe-link");
    let wrote = symlink("/etc", "/tmp/keel-probe-link").is_ok() && creates("/tmp/keel-probe-link/keel-probe");
    let _ = fs::remove_file("/tmp/keel-probe-link");
    wrote
}

/// Whether anything but the standard descriptors was left open. The listing itself needs one.
fn more_descriptors() -> bool {
    let open = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    open.filter(|entry| {
        entry.file_name().to_str().and_then(|name| name.parse().ok()).is_some_and(|number: u32| number > 3)
    })
    .count()
        > 0
}

fn kernel() -> Vec<(&'static str, bool)> {
    vec![
        ("kernel.user_namespace", can(libc::SYS_unshare, &[c_long::from(libc::CLONE_NEWUSER)])),
        ("kernel.mount_namespace", can(libc::SYS_unshare, &[c_long::from(libc::CLONE_NEWNS)])),
        ("kernel.clone_namespace", clone_namespace()),
        ("kernel.clone3", reaches(libc::SYS_clone3, &[])),
        ("kernel.mount", reaches(libc::SYS_mount, &[])),
        ("kernel.fsopen", reaches(libc::SYS_fsopen, &[])),
        ("kernel.pivot_root", reaches(libc::SYS_pivot_root, &[])),
        ("kernel.bpf", reaches(libc::SYS_bpf, &[])),
        ("kernel.io_uring", reaches(libc::SYS_io_uring_setup, &[])),
        ("kernel.keyctl", reaches(libc::SYS_keyctl, &[])),
        ("kernel.userfaultfd", can(libc::SYS_userfaultfd, &[])),
        ("kernel.perf_event", reaches(libc::SYS_perf_event_open, &[])),
        ("kernel.kexec", reaches(libc::SYS_kexec_load, &[])),
        ("kernel.module", reaches(libc::SYS_init_module, &[])),
        ("kernel.reboot", reaches(libc::SYS_reboot, &[])),
        ("kernel.set_clock", reaches(libc::SYS_clock_settime, &[])),
        ("kernel.ptrace", reaches(libc::SYS_ptrace, &[c_long::MAX])),
        ("kernel.typed_input", typed_input()),
        ("kernel.odd_personality", can(libc::SYS_personality, &[0x0400000])),
    ]
}

/// Whether a child can be made in a network namespace.
fn clone_namespace() -> bool {
    let flags = c_long::from(libc::CLONE_NEWNET | libc::SIGCHLD);
    match call(libc::SYS_clone, [flags, 0, 0, 0, 0, 0]) {
        Ok(0) => std::process::exit(0),
        Ok(_) => true,
        Err(_) => false,
    }
}

fn typed_input() -> bool {
    let letter = 0u8;
    // SAFETY: TIOCSTI reads one byte, which outlives the call. Without a terminal it fails with another error.
    let result = unsafe { libc::ioctl(0, libc::TIOCSTI, &raw const letter) };
    result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EPERM)
}

fn status(field: &str) -> String {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default().trim().to_owned()
}

fn processes() -> Vec<(&'static str, bool)> {
    let listed = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = listed.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()));
    vec![
        ("procs.see_others", numbers.count() > 3),
        ("procs.gain_privileges", status("NoNewPrivs:") != "1"),
        ("procs.inherit_capabilities", has_any("CapInh:") || has_any("CapAmb:")),
        ("procs.administer", has_capability(21)),
    ]
}

/// Whether a set of capabilities is not empty.
fn has_any(field: &str) -> bool {
    !status(field).trim_start_matches('0').is_empty()
}

fn has_capability(number: u32) -> bool {
    u64::from_str_radix(&status("CapEff:"), 16).is_ok_and(|set| set & 1 << number != 0)
}

fn connects(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, PATIENCE).is_ok()
}

/// Whether a packet may leave towards an address at all.
fn routes(address: [u8; 4]) -> bool {
    match TcpStream::connect_timeout(&SocketAddr::from((address, 80)), PATIENCE) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::TimedOut || error.kind() == io::ErrorKind::ConnectionRefused,
    }
}

fn socket(family: c_int, kind: c_int, protocol: c_int) -> bool {
    // SAFETY: numbers only; the descriptor is closed with the process.
    unsafe { libc::socket(family, kind, protocol) >= 0 }
}

fn network() -> Vec<(&'static str, bool)> {
    vec![
        ("net.metadata", routes([169, 254, 169, 254])),
        ("net.private_range", routes([10, 0, 0, 1])),
        ("net.algorithms", socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
        ("net.virtual_machines", socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
        ("net.packet_filter", socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)),
        ("net.packets", socket(libc::AF_PACKET, libc::SOCK_RAW, 0)),
    ]
}
