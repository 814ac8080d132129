//! The floor: the namespace, mount and exec calls of one instance, made by a program of one thread that does nothing
//! else. This program runs itself again for it, so that the calls come from a process of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, openat, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, pivot_root};

use super::timed;

const ARGUMENT: &str = "__floor";

/// Runs the floor where this process was started for it.
pub fn is_child() -> bool {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(ARGUMENT) {
        return false;
    }
    let (folder, image) = (arguments.next().expect("a folder"), arguments.next().expect("an image"));
    serve(Path::new(&folder), Path::new(&image));
    true
}

/// The program that makes the calls, kept for all figures.
struct Floor {
    _child: Child,
    orders: std::process::ChildStdin,
    answers: BufReader<std::process::ChildStdout>,
}

static FLOOR: Mutex<Option<Floor>> = Mutex::new(None);

/// One order, and one answer when it is done.
fn order(folder: &Path, image: &Path, what: &str) {
    let mut floor = FLOOR.lock().expect("the floor");
    let floor = floor.get_or_insert_with(|| {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .arg(ARGUMENT)
            .args([folder.join("floor"), image.to_owned()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the floor");
        let (orders, answers) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        Floor { _child: child, orders, answers: BufReader::new(answers) }
    });
    writeln!(floor.orders, "{what}").expect("the floor lives");
    let mut line = String::new();
    floor.answers.read_line(&mut line).expect("the floor answers");
    assert_eq!(line, "done\n");
}

pub fn to_first_byte(folder: &Path, image: &Path, net: bool) -> Duration {
    let out = folder.join("floor/out");
    std::fs::create_dir_all(&out).expect("a directory");
    let fifo = fifo(&out);
    let reader = std::thread::spawn(move || {
        let mut byte = [0];
        std::fs::File::open(fifo).and_then(|mut fifo| fifo.read_exact(&mut byte)).expect("a byte");
        Instant::now()
    });
    let began = Instant::now();
    order(folder, image, if net { "net" } else { "first" });
    let took = reader.join().expect("a reader") - began;
    order(folder, image, "reap");
    took
}

pub fn to_exit(folder: &Path, image: &Path) -> Duration {
    timed(|| order(folder, image, "exit")).0
}

pub fn many(folder: &Path, image: &Path, count: usize) -> Duration {
    let (took, ()) = timed(|| order(folder, image, &format!("many {count}")));
    order(folder, image, "kill");
    took
}

/// A new pipe of that folder.
pub fn fifo(folder: &Path) -> PathBuf {
    let path = folder.join("first");
    let _ = std::fs::remove_file(&path);
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o666), 0).expect("a pipe");
    path
}

fn serve(folder: &Path, image: &Path) {
    let mut children = Vec::new();
    let mut number = 0;
    let mut start = |command: &[&str], net: bool| {
        number += 1;
        let place = folder.join(number.to_string());
        for name in ["upper", "work", "rootfs"] {
            std::fs::create_dir_all(place.join(name)).expect("a directory");
        }
        clone(&place, image, &folder.join("out"), command, net)
    };
    for line in std::io::stdin().lines() {
        let line = line.expect("an order");
        let reap = |children: &mut Vec<i32>| {
            for pid in children.drain(..) {
                wait(pid);
            }
        };
        match line.as_str() {
            "first" | "net" => children.push(start(&["sh", "-c", "echo > /out/first"], line == "net")),
            "exit" => wait(start(&["true"], false)),
            "reap" => reap(&mut children),
            "kill" => {
                for pid in &children {
                    let pid = rustix::process::Pid::from_raw(*pid).expect("a process");
                    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("a kill");
                }
                reap(&mut children);
            }
            many => {
                let count: usize = many.strip_prefix("many ").and_then(|count| count.parse().ok()).expect("a number");
                children.extend((0..count).map(|_| start(&["sleep", "100000"], false)));
            }
        }
        println!("done");
    }
}

fn wait(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid);
    rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).expect("a child");
}

/// Starts one and returns once its program was executed.
fn clone(place: &Path, image: &Path, out: &Path, command: &[&str], net: bool) -> i32 {
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    // SAFETY: all-zero is a valid value: plain integers, no field in use but the two that are set.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    let flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    arguments.flags = (flags | if net { libc::CLONE_NEWNET } else { 0 }) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without a stack and CLONE_VM this returns twice like fork(2), and this process has one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match pid {
        0 => {
            drop(reader);
            enter(place, image, out);
            let error = Command::new(format!("/bin/{}", command[0])).args(&command[1..]).env_clear().exec();
            panic!("{error}");
        }
        pid if pid > 0 => {
            drop(writer);
            let _ = reader.read(&mut [0]);
            i32::try_from(pid).expect("a process")
        }
        _ => panic!("{}", std::io::Error::last_os_error()),
    }
}

fn new_fs(kind: &str, options: &[(&str, &str)]) -> OwnedFd {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).expect(kind);
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value).expect(kind);
    }
    fsconfig_create(context.as_fd()).expect(kind);
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).expect(kind)
}

fn tree(path: &Path) -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags).expect("a tree")
}

fn attach(tree: &OwnedFd, path: &Path) {
    move_mount(tree.as_fd(), "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).expect("a mount");
}

/// The mounts of an instance, in the same number and of the same kinds.
fn enter(place: &Path, image: &Path, out: &Path) {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("private mounts");
    let fd = |path: &Path| openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("a directory");
    let (lower, upper, work) = (fd(image), fd(&place.join("upper")), fd(&place.join("work")));
    let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let outside = out.exists().then(|| tree(out));
    let overlay =
        new_fs("overlay", &[("lowerdir", &name(&lower)), ("upperdir", &name(&upper)), ("workdir", &name(&work))]);
    let root = place.join("rootfs");
    attach(&overlay, &root);
    attach(&new_fs("proc", &[]), &root.join("proc"));
    attach(&tree(Path::new("/sys")), &root.join("sys"));
    attach(&new_fs("tmpfs", &[("size", "64k"), ("mode", "755")]), &root.join("dev"));
    for (kind, name) in [("devpts", "pts"), ("tmpfs", "shm"), ("mqueue", "mqueue")] {
        std::fs::create_dir(root.join("dev").join(name)).expect("a directory");
        attach(&new_fs(kind, &[]), &root.join("dev").join(name));
    }
    for path in ["bus", "fs", "irq", "sys", "sysrq-trigger"] {
        let path = root.join("proc").join(path);
        if path.exists() {
            attach(&tree(&path), &path);
        }
    }
    let masked = [
        "acpi",
        "asound",
        "interrupts",
        "kcore",
        "keys",
        "latency_stats",
        "sched_debug",
        "scsi",
        "timer_list",
        "timer_stats",
    ];
    for path in masked
        .map(|name| root.join("proc").join(name))
        .into_iter()
        .chain([root.join("sys/firmware"), root.join("sys/devices/virtual/powercap")])
    {
        if path.is_dir() {
            attach(&new_fs("tmpfs", &[("size", "4k")]), &path);
        } else if path.exists() {
            attach(&tree(Path::new("/dev/null")), &path);
        }
    }
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        let target = root.join("dev").join(name);
        std::fs::File::create(&target).expect("a file");
        attach(&tree(&Path::new("/dev").join(name)), &target);
    }
    for (target, name) in [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("pts/ptmx", "ptmx"),
    ] {
        symlinkat(target, CWD, root.join("dev").join(name)).expect("a link");
    }
    if let Some(outside) = outside {
        let target = root.join("out");
        std::fs::create_dir_all(&target).expect("a directory");
        attach(&outside, &target);
    }
    chdir(&root).expect("the root");
    pivot_root(".", ".").expect("a new root");
    unmount(".", UnmountFlags::DETACH).expect("the old root");
    chdir("/").expect("the root");
}
