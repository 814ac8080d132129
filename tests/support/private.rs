//! A Docker Engine that one test starts, stops and starts again.

use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

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
}

impl Private {
    /// An engine that was not started; `None` where the tests have no engines.
    pub fn new() -> Option<Self> {
        engine::socket(Kind::Docker)?;
        Some(Self { dir: tempfile::tempdir().unwrap(), process: None, leaves_containers: true })
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
            // TERM lets it end its containers; a killed engine would leave them.
            .args(["--pdeathsig", "TERM", "dockerd", "--bridge", "none", "--iptables=false"])
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
        let Some(mut process) = self.process.take() else { return };
        let pid = rustix::process::Pid::from_child(&process);
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _reaped = process.wait();
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        self.stop();
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        let ours = |mount: &&str| mount.starts_with(&*self.dir.path().to_string_lossy());
        for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(ours) {
            let _gone = Command::new("umount").args(["--lazy", mount]).status();
        }
    }
}
