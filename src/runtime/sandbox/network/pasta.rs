//! Pasta, which connects the network of an ordinary user's instance with that of the machine: it gives the instance the
//! machine's addresses and routes and makes its connections anew, as a process of the user.
//!
//! It is a child of the supervisor and ends with it. As another program it could be freed from that (a change of SELinux
//! domain clears the signal of a parent's death), so it is written down before it runs, and whoever deals with the instance
//! next ends it. What keeps the namespaces where pasta finds them until it has joined them is a process of a moment, as
//! pasta finds namespaces by a process only, and the first process of an instance lets nobody look.

use std::convert::Infallible;
use std::env;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Seek, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use super::handover::Place;
use super::link::INSIDE;
use crate::runtime::sandbox::init::Outside;
use crate::runtime::sandbox::layout::{Durability, read_json, write_json};
use crate::runtime::sandbox::probe::no_namespaces;
use crate::runtime::sandbox::process::{ProcessKey, boot_id, kill_and_wait};
use crate::runtime::sandbox::program;
use crate::runtime::sandbox::sys::{self, Fork, Namespaces};

/// Name of the program.
const NAME: &str = "pasta";
/// Directories that are searched for it where `PATH` says nothing.
const DIRS: &str = "/usr/local/bin:/usr/bin:/bin";
/// Longest time until it has connected a network; it takes some tens of milliseconds.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// Longest time for it to be gone once it was killed.
const DEATH_LIMIT: Duration = Duration::from_secs(2);
/// Most bytes that it may complain in; the rest is lost.
const LONGEST_COMPLAINT: u64 = 4096;
/// What tells that namespaces are where pasta finds them.
const ENTERED: u8 = b'E';
/// It never forwards by itself: ports are published by a helper, and what listens on the machine's loopback interface
/// stays there.
const OPTIONS: &[&str] = &[
    "--config-net",
    "--foreground",
    "--quiet",
    // The process that it finds the namespaces by ends before it.
    "--no-netns-quit",
    "--no-dhcp",
    "--no-dhcpv6",
    "--tcp-ports=none",
    "--udp-ports=none",
    "--tcp-ns=none",
    "--udp-ns=none",
    "--ns-ifname",
    INSIDE,
    // Its process id goes to its standard output once all is in place.
    "--pid=/proc/self/fd/1",
];

/// How an instance is connected by pasta.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pasta {
    /// Where the program is.
    pub program: PathBuf,
    /// Address at which the machine's name server answers the instance, where it listens on the loopback interface and
    /// would be out of reach.
    #[serde(default)]
    pub name_server: Option<Ipv4Addr>,
    /// Address at which the instance reaches the machine itself, its loopback interface included, where it is to: that of
    /// the machine's gateway, which is the only one that pasta translates so.
    #[serde(default)]
    pub machine: Option<Ipv4Addr>,
}

/// What is written down of a pasta before it runs.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    boot_id: String,
    process: ProcessKey,
}

/// A pasta that is connecting an instance.
#[derive(Debug)]
pub struct Connecting {
    ready: PipeReader,
    complaint: File,
}

impl Pasta {
    /// One that leaves the machine out of reach.
    pub fn new(program: PathBuf) -> Self {
        Self { program, name_server: None, machine: None }
    }

    /// Starts it for the network in a place, and leaves a note of it at a path. Returns its process, and what tells when
    /// it has connected.
    ///
    /// # Errors
    /// No process can be made.
    pub fn start(&self, place: &Place, note: &Path) -> io::Result<(Pid, OwnedFd, Connecting)> {
        self.start_for(Namespaces::default(), || place.enter(), Some(note))
    }

    /// Starts it for the namespaces that another process has made or enters.
    fn start_for(
        &self,
        namespaces: Namespaces,
        enter: impl FnOnce() -> io::Result<()>,
        note: Option<&Path>,
    ) -> io::Result<(Pid, OwnedFd, Connecting)> {
        let (ready, told) = io::pipe()?;
        let (entered, tells) = io::pipe()?;
        let mut complaint = complaint()?;
        let parent = Some(getpid());
        let anchor = match sys::fork(namespaces)? {
            Fork::Parent { pid, .. } => pid,
            Fork::Child => {
                let Err(error) = hold(enter, parent, tells, &ready);
                let _ = write!(complaint, "entering the network of the instance: {error}");
                std::process::exit(1)
            }
        };
        match sys::fork(Namespaces::default())? {
            Fork::Parent { pid, pidfd } => Ok((pid, pidfd, Connecting { ready, complaint })),
            Fork::Child => {
                drop((tells, ready));
                if let Err(error) = prepare(parent, note, entered) {
                    let _ = write!(complaint, "{error}");
                } else if let Ok(to) = complaint.try_clone() {
                    sys::close_on_exec();
                    let error = self.command(anchor).stdout(told).stderr(to).exec();
                    let _ = write!(complaint, "{error}");
                }
                std::process::exit(1)
            }
        }
    }

    /// Its command line, for the namespaces of a process.
    fn command(&self, namespaces: Pid) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().stdin(Stdio::null()).args(OPTIONS);
        if self.machine.is_none() {
            command.arg("--no-map-gw");
        }
        if let Some(address) = self.name_server {
            command.arg("--dns-forward").arg(address.to_string());
        }
        command.arg(namespaces.as_raw_pid().to_string());
        command
    }
}

/// Makes the process what pasta is to be executed in.
fn prepare(parent: Option<Pid>, note: Option<&Path>, mut entered: PipeReader) -> io::Result<()> {
    sys::reset_signals();
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != parent {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    if let Some(note) = note {
        let process = ProcessKey::of(std::process::id().cast_signed())?;
        write_json(note, &Note { boot_id: boot_id()?.to_owned(), process }, Durability::Boot)?;
    }
    // What went wrong there is written by the other process.
    entered.read_exact(&mut [0]).map_err(|_| io::Error::other(""))
}

/// Keeps namespaces where pasta finds them, until it is ready or ended.
fn hold(
    enter: impl FnOnce() -> io::Result<()>,
    parent: Option<Pid>,
    mut tells: PipeWriter,
    ready: &PipeReader,
) -> io::Result<Infallible> {
    let _ = rustix::thread::set_name(c"keel-anchor");
    // The supervisor's own is a pipe whose end the controller waits for.
    let null = program::null()?;
    for number in 0..=2 {
        sys::replace_standard(number, null.as_fd())?;
    }
    enter()?;
    // After the change of namespaces, which may clear it.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != parent {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    tells.write_all(&[ENTERED])?;
    std::mem::forget((null, tells));
    sys::close_all_but(&[ready.as_fd()]);
    let _ = poll(&mut [PollFd::new(ready, PollFlags::IN)], None);
    std::process::exit(0)
}

impl Connecting {
    /// Waits until the network is connected.
    ///
    /// # Errors
    /// What pasta says.
    pub fn wait(self) -> Result<(), String> {
        let limit = Timespec { tv_sec: i64::try_from(CONNECT_LIMIT.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.ready, PollFlags::IN)];
        match poll(&mut fds, Some(&limit)) {
            // What it told stays for the process that holds the namespaces.
            Ok(1..) if fds.iter().any(|fd| fd.revents().contains(PollFlags::IN)) => Ok(()),
            Ok(0) => Err(format!("pasta did not connect the network within {} s", CONNECT_LIMIT.as_secs())),
            Ok(_) => Err(format!("pasta can't connect the network: {}", last_line(self.complaint))),
            Err(error) => Err(format!("waiting for pasta: {error}")),
        }
    }
}

/// Ends the pasta that an instance left behind, by the note of it.
pub fn clear(note: &Path) {
    let Ok(Some(Note { boot_id: noted, process })) = read_json(note) else { return };
    // After a reboot nothing of it is left, and numbers of processes mean others.
    if boot_id().is_ok_and(|own| own == noted) {
        kill_and_wait(process, DEATH_LIMIT);
    }
}

/// Why there is no pasta where nobody installed one.
pub const NOT_INSTALLED: &str = "pasta (package passt) is not installed";

/// Where pasta is, if it can connect a network here: tried out with one that is none.
///
/// # Errors
/// It is not installed, or what it says.
pub fn try_out() -> Result<PathBuf, String> {
    let dirs = env::var_os("PATH").unwrap_or_else(|| DIRS.into());
    let program = find(env::split_paths(&dirs)).ok_or(NOT_INSTALLED)?;
    let outside = Outside::own();
    let namespaces = Namespaces { user: true, net: true, ..Namespaces::default() };
    let started = Pasta::new(program.clone()).start_for(namespaces, || outside.map_as_root(), None);
    let (_, process, connecting) =
        started.map_err(|error| format!("starting pasta: {}", no_namespaces(namespaces, &error)))?;
    let connected = connecting.wait();
    let _ = rustix::process::pidfd_send_signal(&process, Signal::KILL);
    connected.map(|()| program)
}

fn find(mut dirs: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    let is_program =
        |path: &Path| path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0);
    dirs.find_map(|dir| Some(dir.join(NAME)).filter(|path| path.is_absolute() && is_program(path)))
}

/// Memory for what pasta complains of: a pipe that nobody reads any more would end it, or make it wait.
fn complaint() -> io::Result<File> {
    let memory = memfd_create(NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&memory, LONGEST_COMPLAINT)?;
    fcntl_add_seals(&memory, SealFlags::GROW)?;
    Ok(memory.into())
}

fn last_line(mut complaint: File) -> String {
    let mut bytes = Vec::new();
    let _ = complaint.rewind().and_then(|()| complaint.read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.trim_end_matches('\0').lines().map(str::trim);
    let last = lines.rev().find(|line| !line.is_empty()).unwrap_or("it says nothing");
    let hint = if last.contains("tun") { "; /dev/net/tun must be open to this user" } else { "" };
    format!("{last}{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn arguments(pasta: &Pasta) -> Vec<String> {
        let command = pasta.command(getpid());
        command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn the_machine_is_out_of_reach_unless_it_is_asked_for() {
        let plain = Pasta::new("/bin/pasta".into());
        let has = |pasta: &Pasta, option: &str| arguments(pasta).iter().any(|argument| argument == option);
        assert!(has(&plain, "--no-map-gw") && has(&plain, "--tcp-ns=none") && !has(&plain, "--dns-forward"));
        assert_eq!(arguments(&plain).last(), Some(&std::process::id().to_string()));
        let address = Some(Ipv4Addr::new(169, 254, 1, 1));
        let open = Pasta { machine: address, name_server: address, ..plain };
        assert!(!has(&open, "--no-map-gw") && has(&open, "169.254.1.1"));
    }

    #[test]
    fn it_is_a_program_of_an_absolute_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let look = || find([PathBuf::from("."), folder.path().join("none"), folder.path().into()].into_iter());
        assert_eq!(look(), None);
        fs::write(&path, "").unwrap();
        assert_eq!(look(), None, "it can't be executed");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(look(), Some(path));
    }

    #[test]
    fn the_last_word_of_it_is_told() {
        let told = |text: &str| {
            let mut memory = complaint().unwrap();
            let _ = memory.write_all(text.as_bytes());
            last_line(memory)
        };
        assert_eq!(told("first\nNo routable interface\n\n"), "No routable interface");
        assert_eq!(
            told("Failed to open /dev/net/tun"),
            "Failed to open /dev/net/tun; /dev/net/tun must be open to this user"
        );
        assert_eq!(told(""), "it says nothing");
        assert!(told(&"long ".repeat(5000)).starts_with("long "), "the rest is lost");
    }
}
