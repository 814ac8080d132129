//! Commands inside whose controller is gone: none outlives it, and none is left to be carried out.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use evenkeel::runtime::io::{Exec, ExecOutput, ExecRequest};
use evenkeel::runtime::{Control, Runtime, Support, Volumes};
use evenkeel::state::{InstanceRef, Phase, StopCause};
use futures::StreamExt;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::support::{PATIENCE, Sandbox, keel, shell, stop, without_namespaces};

/// Where the controller that is ended finds its root; it does nothing without.
const ROOT: &str = "KEEL_TEST_ABANDONED_ROOT";
/// How long its command sleeps, in seconds, which tells the command from all others.
const SLEEP: &str = "KEEL_TEST_ABANDONED_SLEEP";

/// The controller that is ended: a test of no meaning of its own.
#[tokio::test]
async fn runs_a_command() {
    let Some(root) = std::env::var_os(ROOT).map(PathBuf::from) else { return };
    let sleep = std::env::var(SLEEP).unwrap();
    let runtime = crate::support::open(&root, &crate::support::owner(&root));
    let instance = runtime.list().await.unwrap().instances.remove(0).as_ref();
    // A child that is waited for, one in a session of its own, and one that lost its parent as well.
    let script = format!("setsid sh -c 'setsid sleep {sleep} &'; setsid sleep {sleep} & echo; sleep {sleep}; true");
    let command = ["sh", "-c", &script].map(str::to_owned).to_vec();
    let request = ExecRequest { command, ..ExecRequest::default() };
    let mut session = Exec::exec(&runtime, &instance, &request).await.unwrap();
    session.output.next().await.unwrap().unwrap();
    println!("\nit runs");
    while session.output.next().await.is_some() {}
}

/// Starts it in a process group of its own, as a shell does, and waits until its command runs.
fn controller(root: &Path, sleep: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "abandoned::runs_a_command", "--nocapture"]).process_group(0);
    command.env(ROOT, root).env(SLEEP, sleep).env("KEEL_TEST_PROGRAM", keel());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line == "it runs"), "the command starts");
    child
}

/// How many processes of the machine have this argument.
fn count(argument: &str) -> usize {
    let has = |path: PathBuf| {
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|one| one == argument.as_bytes())
    };
    fs::read_dir("/proc").unwrap().flatten().filter(|entry| has(entry.path())).count()
}

async fn becomes(expected: usize, what: &str, count: impl Fn() -> usize) {
    let end = Instant::now() + PATIENCE;
    while count() != expected {
        assert!(Instant::now() < end, "{what}: {} and not {expected}", count());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_command_ends_with_its_controller_however_that_ends() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell("sleep 1000")).await.as_ref();
    let kill: fn(Pid) = |pid| kill_process(pid, Signal::KILL).unwrap();
    let interrupt: fn(Pid) = |pid| kill_process_group(pid, Signal::INT).unwrap();
    for (nth, (what, end)) in [("kill -9", kill), ("^C", interrupt)].into_iter().enumerate() {
        let sleep = format!("{}.{nth}", std::process::id());
        let mut controller = controller(sandbox.root.path(), &sleep);
        becomes(3, what, || count(&sleep)).await;
        end(Pid::from_child(&controller));
        controller.wait().unwrap();
        becomes(0, what, || count(&sleep)).await;
        becomes(0, what, || fs::read_dir(sandbox.dir(&instance).join("exec")).unwrap().count()).await;
    }
    assert!(matches!(sandbox.find(&instance).await.unwrap().phase, Phase::Running { .. }), "the instance runs on");
    sandbox.runtime.teardown("demo", Volumes::Remove).await.unwrap();
}

#[tokio::test]
async fn a_helper_whose_controller_is_gone_removes_the_order_and_ends() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell("sleep 1000")).await.as_ref();
    let (dir, exec) = (sandbox.dir(&instance), sandbox.dir(&instance).join("exec"));
    fs::create_dir_all(&exec).unwrap();
    fs::write(exec.join("exec-1.json"), r#"{"command":["true"],"env":[["KEY","secret"]],"workdir":null,"tty":null}"#)
        .unwrap();
    mknodat(CWD, exec.join("exec-1"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let mut helper = tokio::process::Command::new(keel());
    helper.arg("__exec").arg(dir).arg("exec-1").kill_on_drop(true);
    let status = tokio::time::timeout(PATIENCE, helper.status()).await.expect("it ends").unwrap();
    assert_eq!((status.code(), fs::read_dir(exec).unwrap().count()), (Some(1), 0));
}

#[tokio::test]
async fn what_a_command_leaves_behind_lives_on_with_the_instance() {
    let sandbox = Sandbox::new();
    let instance = leave_behind(&sandbox, if has_process_namespaces(&sandbox).await { 3 } else { 0 }).await;
    sandbox.runtime.remove(&instance.0).await.unwrap();
    assert_eq!(count(&instance.1), 0, "none outlives the instance");
}

#[tokio::test]
async fn without_namespaces_what_a_command_leaves_behind_ends_with_it() {
    if without_namespaces("abandoned::without_namespaces_what_a_command_leaves_behind_ends_with_it") {
        leave_behind(&Sandbox::new(), 0).await;
    }
}

#[tokio::test]
async fn a_command_that_runs_ends_with_its_instance() {
    let sandbox = Sandbox::new();
    let has_namespaces = has_process_namespaces(&sandbox).await;
    ends_with_instance(&sandbox, has_namespaces).await;
}

#[tokio::test]
async fn without_namespaces_a_command_that_runs_ends_with_its_instance() {
    if without_namespaces("abandoned::without_namespaces_a_command_that_runs_ends_with_its_instance") {
        ends_with_instance(&Sandbox::new(), false).await;
    }
}

/// Stops an instance, and removes another one that runs, each while a command runs inside whose processes have sessions of
/// their own, ignore signals, and lost their parents. Where they are of one namespace, the end is told once none of them is
/// left; elsewhere whoever started a command ends it, as soon as the instance has.
async fn ends_with_instance(sandbox: &Sandbox, at_once: bool) {
    let none_is_left = async |sleep: &str, what: &str| {
        if at_once {
            assert_eq!(count(sleep), 0, "{what}");
        } else {
            becomes(0, what, || count(sleep)).await;
        }
    };
    for (nth, is_stopped) in [true, false].into_iter().enumerate() {
        let instance = sandbox.run(&shell("sleep 1000")).await.as_ref();
        let sleep = format!("{}.5{nth}", std::process::id());
        let script = format!(
            "trap '' TERM HUP INT; setsid sh -c 'setsid sleep {sleep} &'; setsid sleep {sleep} & echo; sleep {sleep}; true"
        );
        let command = ["sh", "-c", &script].map(str::to_owned).to_vec();
        let request = ExecRequest { command, ..ExecRequest::default() };
        let mut session = Exec::exec(&sandbox.runtime, &instance, &request).await.unwrap();
        session.output.next().await.unwrap().unwrap();
        becomes(3, "it runs", || count(&sleep)).await;
        if is_stopped {
            let request = stop(evenkeel::spec::Signal::KILL, Duration::ZERO, StopCause::Retired);
            sandbox.runtime.stop(&instance, &request).await.unwrap();
            none_is_left(&sleep, "none outlives the stop").await;
        }
        sandbox.runtime.remove(&instance).await.unwrap();
        none_is_left(&sleep, "none outlives the removal").await;
        let rest = tokio::time::timeout(PATIENCE, session.output.collect::<Vec<_>>()).await;
        assert!(rest.is_ok(), "its output ends");
    }
}

async fn has_process_namespaces(sandbox: &Sandbox) -> bool {
    let capabilities = sandbox.runtime.capabilities().await.unwrap();
    matches!(capabilities.support(Control::PidNamespace), Support::Enforced)
}

/// Runs a command that leaves processes behind which lost their parents, in sessions of their own, and counts those that live
/// on. Gives the instance and what tells them.
async fn leave_behind(sandbox: &Sandbox, left: usize) -> (InstanceRef, String) {
    let instance = sandbox.run(&shell("sleep 1000")).await.as_ref();
    let sleep = format!("{}.9", std::process::id());
    let script = format!(
        "(setsid sh -c 'setsid sleep {sleep} & sleep {sleep} & echo; exec sleep {sleep}' &) | head -n 1; exit 5"
    );
    let request = ExecRequest { command: ["sh", "-c", &script].map(str::to_owned).to_vec(), ..ExecRequest::default() };
    let session = Exec::exec(&sandbox.runtime, &instance, &request).await.unwrap();
    let told: Vec<ExecOutput> = session.output.map(Result::unwrap).collect().await;
    assert_eq!(told, [ExecOutput::Stdout("\n".into()), ExecOutput::Exit(5)]);
    assert_eq!(count(&sleep), left, "once the end is told");
    assert!(matches!(sandbox.find(&instance).await.unwrap().phase, Phase::Running { .. }), "the instance runs on");
    (instance, sleep)
}
