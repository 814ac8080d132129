//! A Docker Engine that one test starts, stops and starts again.

use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::engine::{self, Kind};

/// Longest wait for the engine's socket; machines that run tests are busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Docker Engine in a directory of its own.
pub struct Private {
    dir: TempDir,
    process: Option<Child>,
    /// Whether its containers go on when it ends; else it stops them, as an engine does where nobody says otherwise.
    pub leaves_containers: bool,
    /// The machine's bridge that its default network is on. Without one it has no such network, and does not say when it started.
    pub bridge: String,
}

impl Private {
    /// An engine that was not started; `None` where the tests have no engines.
    pub fn new() -> Option<Self> {
        engine::socket(Kind::Docker)?;
        Some(Self { dir: tempfile::tempdir().unwrap(), process: None, leaves_containers: true, bridge: "none".into() })
    }

    /// An engine whose default network is on the bridge of the engine that tests share, as another engine's is not. It stops
    /// its containers when it ends.
    pub fn with_default_network() -> Option<Self> {
        let shared = engine::socket(Kind::Docker)?;
        let mut inspect = Command::new("docker");
        inspect.arg("--host").arg(format!("unix://{}", shared.display())).args(["network", "inspect", "bridge"]);
        let name = r#"{{index .Options "com.docker.network.bridge.name"}}"#;
        let output = inspect.args(["--format", name]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let bridge = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        let mut private = Self::new()?;
        (private.leaves_containers, private.bridge) = (false, bridge);
        Some(private)
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    /// Starts it and waits for its answer. Its containers have no network, so that it touches nothing of the machine.
    pub fn start(&mut self) {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(path("log")).unwrap();
        let process = Command::new("setpriv")
            // It ends with the tests, and on TERM ends its containers unless it is to leave them; killed, it would leave all.
            .args(["--pdeathsig", "TERM", "dockerd", "--bridge", &self.bridge, "--iptables=false"])
            .args(self.leaves_containers.then_some("--live-restore"))
            .args(["--host", &format!("unix://{}", self.socket().display())])
            .args(["--data-root", &path("data"), "--exec-root", &path("exec"), "--pidfile", &path("pid")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        self.process = Some(process);
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(self.socket()).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        let answered = UnixStream::connect(self.socket()).is_ok();
        assert!(answered, "{}", std::fs::read_to_string(path("log")).unwrap());
    }

    /// Ends it; its containers go on where it leaves them.
    pub fn stop(&mut self) {
        self.end(Signal::TERM);
    }

    /// Kills it; its containers go on until it starts again, and beyond where it leaves them.
    pub fn kill(&mut self) {
        self.end(Signal::KILL);
    }

    /// Kills it with everything that it runs at once, as a machine does that loses power.
    pub fn lose_power(&mut self) {
        let others = self.others();
        // Who could tell of an end goes first.
        self.kill();
        end_all(others);
    }

    /// What runs for it: containerd, one shim for each container, and their programs, in this order.
    fn others(&self) -> Vec<i32> {
        let all = processes();
        let helpers = all.iter().filter(|process| process.is_of(self.dir.path())).map(|process| process.pid);
        let mut found: Vec<i32> = helpers.collect();
        let programs = all.iter().filter(|process| found.contains(&process.parent)).map(|process| process.pid);
        let programs: Vec<i32> = programs.filter(|pid| !found.contains(pid)).collect();
        found.extend(programs);
        found
    }

    fn end(&mut self, signal: Signal) {
        let Some(mut process) = self.process.take() else { return };
        let pid = rustix::process::Pid::from_child(&process);
        let _gone = rustix::process::kill_process(pid, signal);
        let _reaped = process.wait();
        if signal == Signal::KILL {
            self.await_containerd();
            // What has these numbers by the time of the next start, also a process that nobody has reaped, would be taken for them.
            for file in ["pid", "exec/containerd/containerd.pid"] {
                let _gone = std::fs::remove_file(self.dir.path().join(file));
            }
        }
    }

    /// Waits for the end of containerd, which the kernel ends with its engine; the next engine would take it for its own.
    fn await_containerd(&self) {
        let is_there = |process: &Process| process.name() == "containerd" && process.is_of(self.dir.path());
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && processes().iter().any(is_there) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn end_all(pids: Vec<i32>) {
    for pid in pids.into_iter().filter_map(rustix::process::Pid::from_raw) {
        let _gone = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// A process of the machine.
struct Process {
    pid: i32,
    parent: i32,
    command: String,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).ok();
        let stat = String::from_utf8_lossy(&read("stat")?).into_owned();
        let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
        Some(Self { pid, parent, command: String::from_utf8_lossy(&read("cmdline")?).into_owned() })
    }

    /// Whether it is what an engine in this directory started for itself: containerd, and one shim for each container.
    fn is_of(&self, dir: &Path) -> bool {
        self.name().starts_with("containerd") && self.command.contains(&*dir.to_string_lossy())
    }

    /// Name of its program.
    fn name(&self) -> &str {
        let program = self.command.split('\0').next().unwrap_or_default();
        program.rsplit_once('/').map_or(program, |(_, name)| name)
    }
}

fn processes() -> Vec<Process> {
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(Process::read).collect()
}

impl Drop for Private {
    fn drop(&mut self) {
        self.stop();
        // What it left, or a test that failed.
        end_all(self.others());
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        let ours = |mount: &&str| mount.starts_with(&*self.dir.path().to_string_lossy());
        for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(ours) {
            let _gone = Command::new("umount").args(["--lazy", mount]).status();
        }
    }
}
