//! The sandbox runtime of macOS, on every Unix: with a launcher that applies no profile, so that all but the confinement is
//! shown; on macOS with the system's.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use evenkeel::runtime::io::ExecRequest;
use evenkeel::runtime::seatbelt::{PROGRAM, SeatbeltConfig, SeatbeltRuntime};
use evenkeel::runtime::{CreateRequest, Runtime};
use evenkeel::spec::Image;
use evenkeel::state::{Owner, Phase};
use futures::StreamExt;

use crate::harness::{Abilities, Harness, Program, eventually, id, listed, request, shell, spec, stop};

/// Called with `-f PROFILE PROGRAM ARGUMENTS`, as the system's is.
const WITHOUT_PROFILE: &str = "#!/bin/sh\nshift 2\nexec \"$@\"\n";

struct Seatbelt(tempfile::TempDir);

impl Seatbelt {
    fn owner(&self, name: &str) -> Owner {
        let folder = self.0.path().file_name().expect("a name").to_string_lossy();
        Owner(format!("{name}{folder}"))
    }

    fn instances(&self) -> PathBuf {
        self.0.path().join("sandbox").join(self.owner("first").0).join("instances")
    }

    fn of(&self, owner: &str) -> Arc<dyn Runtime> {
        let launcher = if cfg!(target_os = "macos") { PROGRAM.into() } else { self.0.path().join("launcher") };
        let config = SeatbeltConfig {
            root: self.0.path().join("sandbox"),
            supervisor: PathBuf::from(env!("CARGO_BIN_EXE_keel")),
            launcher,
            // Ports are the machine's, and each owner begins with another.
            owner: self.owner(owner),
            hidden: Vec::new(),
        };
        Arc::new(SeatbeltRuntime::open(config).expect("a runtime"))
    }
}

fn image(name: &str) -> Image {
    Image { name: name.parse().expect("an image"), pull_policy: None }
}

#[async_trait]
impl Harness for Seatbelt {
    const NAME: &'static str = "seatbelt";

    async fn open() -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let launcher = folder.path().join("launcher");
        let made = std::fs::write(&launcher, WITHOUT_PROFILE)
            .and_then(|()| std::fs::set_permissions(&launcher, PermissionsExt::from_mode(0o755)));
        made.map(|()| Self(folder)).map_err(|error| error.to_string())
    }

    async fn runtime(&self) -> Arc<dyn Runtime> {
        self.of("first")
    }

    async fn stranger(&self) -> Arc<dyn Runtime> {
        self.of("second")
    }

    fn image(&self) -> Image {
        image("host")
    }

    fn missing_image(&self) -> Image {
        image("dir:/no/such/root")
    }

    fn unsupported_image(&self) -> Option<Image> {
        Some(image("docker-archive:/no/such/archive.tar"))
    }

    fn command(&self, program: &Program) -> Vec<String> {
        // Processor time is told as ps(1) does, on Linux in whole seconds.
        let busy = "echo armed; while :; do echo tick; i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; done";
        match program {
            Program::Ticks => ["/bin/sh", "-c", busy].map(str::to_owned).to_vec(),
            other => shell(other),
        }
    }

    fn abilities(&self) -> Abilities {
        Abilities { shared_networks: false, names_per_owner: true, tells_memory_kills: true, keeps_bytes: true }
    }

    async fn close(self) {
        for owner in ["first", "second"] {
            let runtime = self.of(owner);
            for instance in runtime.list().await.map(|listing| listing.instances).unwrap_or_default() {
                let _ = runtime.remove(&instance.as_ref()).await;
            }
        }
    }
}

conformance!(Seatbelt, tokio::test(flavor = "multi_thread"));

/// Processes whose command line has these words.
fn running(words: &str) -> Vec<i32> {
    let output = std::process::Command::new("/bin/ps").args(["-A", "-o", "pid=", "-o", "args="]).output().expect("ps");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let pid = |line: &str| line.split_whitespace().next()?.parse().ok();
    text.lines().filter(|line| line.ends_with(words)).filter_map(pid).collect()
}

fn parent(pid: u32) -> String {
    let output =
        std::process::Command::new("/bin/ps").args(["-o", "ppid=", "-p", &pid.to_string()]).output().expect("ps");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A length of sleep that nobody else has.
fn mark(number: u32) -> String {
    format!("sleep {number}{}", std::process::id())
}

fn script(harness: &Seatbelt, slot: u32, script: &str) -> CreateRequest {
    let mut request = request(harness, id("web", slot), &Program::Polite);
    let words = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    request.spec = Arc::new(spec(harness.image(), words));
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_supervisor_left_is_ended_before_another_runs() {
    let harness = Seatbelt::open().await.expect("a runtime");
    let runtime = harness.runtime().await;
    let mark = mark(71);
    // Its own program ends soon, by the pipe that nobody reads any more.
    let request = script(&harness, 0, &format!("{mark} & while :; do echo tick; sleep 0.05; done"));
    let created = runtime.create(&request).await.expect("create");
    let started = runtime.start(&created.as_ref()).await.expect("start");
    eventually(&harness, "it runs", async || (running(&mark).len() == 1).then_some(())).await;
    let supervisor = parent(started.pid.expect("a process"));
    std::process::Command::new("kill").args(["-9", &supervisor]).status().expect("kill");
    let lost = eventually(&harness, "its end is told", async || match listed(&*runtime, &created.id).await?.phase {
        Phase::Exited(exit) => Some(exit),
        _ => None,
    })
    .await;
    assert_eq!((lost.code, lost.is_success()), (Some(137), false));
    assert_eq!(running(&mark).len(), 1, "it is left");
    runtime.start(&created.as_ref()).await.expect("start again");
    eventually(&harness, "one alone runs", async || (running(&mark).len() == 1).then_some(())).await;
    runtime.remove(&created.as_ref()).await.expect("remove");
    assert_eq!(running(&mark), [0; 0]);
    harness.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_what_they_left_running_end_with_their_instance() {
    let harness = Seatbelt::open().await.expect("a runtime");
    let runtime = harness.runtime().await;
    let (left, ongoing) = (mark(72), mark(73));
    let created = runtime.create(&script(&harness, 0, "exec sleep 600")).await.expect("create");
    runtime.start(&created.as_ref()).await.expect("start");
    let exec = runtime.exec().expect("exec");
    let run = async |command: &str, tty| {
        let command = ["/bin/sh", "-c", command].map(str::to_owned).to_vec();
        let request = ExecRequest { command, tty, ..Default::default() };
        exec.exec(&created.as_ref(), &request).await.expect("exec")
    };
    let ended = run(&format!("{left} >/dev/null 2>&1 & true"), None).await;
    ended.output.collect::<Vec<_>>().await;
    let _goes_on = run(&ongoing, Some((80, 24))).await;
    let both_run = async || (!running(&left).is_empty() && !running(&ongoing).is_empty()).then_some(());
    eventually(&harness, "both run", both_run).await;
    runtime.stop(&created.as_ref(), &stop(Duration::ZERO)).await.expect("stop");
    assert_eq!([running(&left), running(&ongoing)].concat(), [0; 0]);
    harness.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_half_made_is_cleared_and_made_anew() {
    let harness = Seatbelt::open().await.expect("a runtime");
    let runtime = harness.runtime().await;
    let request = script(&harness, 0, "exec sleep 600");
    let folder = harness.instances();
    for name in [request.id.runtime_name(), "other_web_0_0123abcd_0".to_owned()] {
        std::fs::create_dir_all(folder.join(&name).join("root/of/an/image")).expect("a directory");
        std::fs::write(folder.join(&name).join("making"), "").expect("a lock");
    }
    let created = runtime.create(&request).await.expect("create");
    assert!(!folder.join(&created.runtime_id).join("root/of").exists());
    let _events = runtime.events().await.expect("events");
    let names: Vec<_> = std::fs::read_dir(&folder).expect("instances").flatten().map(|one| one.file_name()).collect();
    assert_eq!(names, [created.runtime_id.as_str()]);
    harness.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_record_is_told_and_hides_no_other() {
    let harness = Seatbelt::open().await.expect("a runtime");
    let runtime = harness.runtime().await;
    let first = runtime.create(&script(&harness, 0, "exec sleep 600")).await.expect("create");
    let second = runtime.create(&script(&harness, 1, "exec sleep 600")).await.expect("create");
    let record = harness.instances().join(&first.runtime_id).join("record.json");
    std::fs::write(record, "{").expect("a record");
    let listing = runtime.list().await.expect("list").instances;
    let reasons: Vec<_> = listing.iter().map(|one| one.conditions.first().map(|told| told.reason.clone())).collect();
    assert_eq!(reasons, [Some("RecordUnreadable".to_owned()), None]);
    assert_eq!(listing[1], second);
    runtime.remove(&first.as_ref()).await.expect("remove");
    assert_eq!(runtime.list().await.expect("list").instances, [second]);
    harness.close().await;
}
