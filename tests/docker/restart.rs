//! The engine goes away and comes back. These tests have a Docker Engine of their own, which ends with them.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use evenkeel::runtime::docker::DockerRuntime;
use evenkeel::runtime::{ErrorKind, Runtime, RuntimeEvent};
use evenkeel::state::{Owner, Phase};
use futures::stream::BoxStream;
use tempfile::TempDir;

use crate::engine::{self, Kind};
use crate::harness::{Bench, IMAGE, PATIENCE, next};

/// A Docker Engine in a directory of its own.
struct Private {
    dir: TempDir,
    process: Option<Child>,
}

impl Private {
    /// An engine that was not started; `None` where the tests have no engines.
    fn new() -> Option<Self> {
        engine::socket(Kind::Docker)?;
        Some(Self { dir: tempfile::tempdir().unwrap(), process: None })
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    /// Starts it and waits for its answer. Its containers have no network, so that it touches nothing of the machine.
    async fn start(&mut self) {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(path("log")).unwrap();
        let process = Command::new("setpriv")
            // TERM lets it end its containers; a killed engine would leave them.
            .args(["--pdeathsig", "TERM", "dockerd", "--bridge", "none", "--iptables=false", "--live-restore"])
            .args(["--host", &format!("unix://{}", self.socket().display())])
            .args(["--data-root", &path("data"), "--exec-root", &path("exec"), "--pidfile", &path("pid")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        self.process = Some(process);
        let wait = async {
            while !DockerRuntime::answers(Some(self.socket())).await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let answered = tokio::time::timeout(PATIENCE, wait).await.is_ok();
        assert!(answered, "{}", std::fs::read_to_string(path("log")).unwrap());
    }

    fn stop(&mut self) {
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

/// The reason of the next request to list again.
async fn resync(events: &mut BoxStream<'static, RuntimeEvent>) -> String {
    next(events, |event| match event {
        RuntimeEvent::Resync { reason } => Some(reason.clone()),
        _ => None,
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_is_down_is_unavailable_and_used_when_it_is_up() {
    let Some(mut engine) = Private::new() else { return };
    let runtime = DockerRuntime::connect(Owner("down".to_owned()), Some(engine.socket())).await.unwrap();
    assert!(!DockerRuntime::answers(Some(engine.socket())).await);
    assert_eq!(runtime.list().await.unwrap_err().kind, ErrorKind::Unavailable);
    let mut events = runtime.events().await.unwrap();
    let reason = resync(&mut events).await;
    assert!(reason.contains("can't be reached"), "{reason}");
    engine.start().await;
    let reason = resync(&mut events).await;
    assert!(reason.contains("answers again"), "{reason}");
    assert!(runtime.list().await.unwrap().instances.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_go_on_after_the_engine_restarts() {
    let Some(mut engine) = Private::new() else { return };
    engine.start().await;
    let bench = Bench::on(engine.socket()).await;
    let rootfs = std::env::var("KEEL_TEST_ROOTFS").expect(".ci/engines start sets it");
    bench.cli(&["import", &rootfs, IMAGE]);
    let mut events = bench.runtime.events().await.unwrap();
    let lives = bench.request("web", 0, "network_mode: none\ncommand: {args: [sleep, '3600']}");
    let running = bench.run(&lives).await;
    let dies = bench.request("web", 1, "network_mode: none\ncommand: {args: [sh, -c, 'sleep 2; exit 4']}");
    bench.run(&dies).await;

    engine.stop();
    assert_eq!(bench.runtime.list().await.unwrap_err().kind, ErrorKind::Unavailable);
    while !resync(&mut events).await.contains("can't be reached") {}
    tokio::time::sleep(Duration::from_secs(3)).await;
    engine.start().await;
    while !resync(&mut events).await.contains("answers again") {}
    // What happened while nobody looked is in the list.
    let listing = bench.runtime.list().await.unwrap();
    assert_eq!(listing.instances[0], running);
    let Phase::Exited(exit) = &listing.instances[1].phase else { panic!("{listing:?}") };
    assert_eq!(exit.code, Some(4));

    bench.runtime.remove(&running.as_ref()).await.unwrap();
    next(&mut events, |event| (*event == RuntimeEvent::Gone(running.as_ref())).then_some(())).await;
    bench.clear().await;
}
