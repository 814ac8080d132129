//! A machine that gives no watch (`fs.inotify`): what other processes do is seen all the same, a little later.

use std::process::Command;
use std::time::Duration;

use evenkeel::runtime::io::{ExecRequest, LogOptions, Logs};
use evenkeel::runtime::{Exec, Runtime, RuntimeEvent};
use evenkeel::spec::Signal;
use evenkeel::state::{Phase, StopCause};
use futures::StreamExt;

use crate::support::{PATIENCE, Sandbox, keel, request, shell, skip, stop};

/// Set where there are no watches.
const UNWATCHED: &str = "KEEL_TEST_UNWATCHED";
const TEST: &str = "unwatched::without_watches_others_are_seen_and_output_is_followed";

#[test]
fn without_watches_others_are_seen_and_output_is_followed() {
    if std::env::var_os(UNWATCHED).is_some() {
        let driver = tokio::runtime::Runtime::new().unwrap();
        return driver.block_on(async { tokio::time::timeout(PATIENCE, others_are_seen()).await.unwrap() });
    }
    // A user namespace has bounds of its own.
    let script = "echo 0 > /proc/sys/user/max_inotify_watches || exit 99; exec \"$0\" --exact \"$1\" --nocapture";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c", script]).arg(std::env::current_exe().unwrap()).arg(TEST);
    let output = command.env(UNWATCHED, "1").env("KEEL_TEST_PROGRAM", keel()).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if output.status.code() == Some(99) || text.contains("unshare failed") {
        return skip(&text);
    }
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

async fn others_are_seen() {
    let sandbox = Sandbox::new();
    assert!(std::fs::read_to_string("/proc/sys/user/max_inotify_watches").unwrap().trim() == "0");
    let mut events = sandbox.runtime.events().await.unwrap();
    let other = sandbox.reopen();
    let script = "while [ ! -e /tmp/go ]; do sleep 0.05; done; echo late; while :; do sleep 0.05; done";
    let created = other.create(&request(&shell(script), 0)).await.unwrap();
    let instance = other.start(&created.as_ref()).await.unwrap();
    loop {
        if let RuntimeEvent::Changed(seen) = events.next().await.unwrap()
            && matches!(seen.phase, Phase::Running { .. })
        {
            assert_eq!(*seen, instance);
            break;
        }
    }
    let follow = LogOptions { follow: true, ..LogOptions::default() };
    let mut lines = Logs::logs(&sandbox.runtime, &instance.as_ref(), &follow).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(100), lines.next()).await.is_err(), "nothing is written yet");
    let command = ["touch", "/tmp/go"].map(str::to_owned).to_vec();
    let go = ExecRequest { command, ..ExecRequest::default() };
    let _session = Exec::exec(&sandbox.runtime, &instance.as_ref(), &go).await.unwrap();
    assert_eq!(lines.next().await.unwrap().unwrap().text, "late");
    let order = stop(Signal::KILL, Duration::ZERO, StopCause::Retired);
    other.stop(&instance.as_ref(), &order).await.unwrap();
    other.remove(&instance.as_ref()).await.unwrap();
    loop {
        if let RuntimeEvent::Gone(gone) = events.next().await.unwrap() {
            break assert_eq!(gone, instance.as_ref());
        }
    }
}
