//! Start, end, stop, survival.

use std::time::Duration;

use evenkeel::runtime::{ErrorKind, Runtime};
use evenkeel::spec::Signal;
use evenkeel::state::{EndedBy, ExitReason, Phase, StopCause};

use crate::support::{Sandbox, request, shell, stop};

#[tokio::test]
async fn a_short_program_ends_with_its_code_and_its_output_is_kept() {
    let sandbox = Sandbox::new();
    let (exit, output) = sandbox.script("echo out; echo err >&2; exit 3").await;
    assert_eq!((exit.code, exit.reason, exit.ended_by), (Some(3), ExitReason::Exited, EndedBy::Itself));
    assert!(exit.started_at.is_some_and(|started| started <= exit.finished_at));
    assert_eq!(output, "out\nerr\n");
}

#[tokio::test]
async fn a_program_that_runs_is_listed_and_stopped_by_its_signal() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell("trap 'exit 7' TERM; while :; do sleep 0.05; done")).await;
    assert!(matches!(instance.phase, Phase::Running { ready: true, .. }));
    assert_eq!(sandbox.find(&instance.as_ref()).await.unwrap(), instance);
    let order = stop(Signal::TERM, Duration::from_secs(10), StopCause::Idle);
    let stopped = sandbox.runtime.stop(&instance.as_ref(), &order).await.unwrap().unwrap();
    let Phase::Exited(exit) = stopped.phase else { panic!("{:?}", stopped.phase) };
    assert_eq!((exit.code, exit.ended_by), (Some(7), EndedBy::Request(StopCause::Idle)));
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
    assert!(!sandbox.dir(&instance.as_ref()).exists());
    assert_eq!(sandbox.runtime.stop(&instance.as_ref(), &order).await.unwrap(), None);
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
}

#[tokio::test]
async fn a_program_that_is_not_found_is_refused_by_name() {
    let sandbox = Sandbox::new();
    let created = sandbox
        .runtime
        .create(&request("image: { name: host }\ncommand: { entrypoint: [no-such-program] }", 0))
        .await
        .unwrap();
    let error = sandbox.runtime.start(&created.as_ref()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Rejected);
    assert!(error.message.contains("executable not found: \"no-such-program\""), "{error}");
    let exit = sandbox.ended(&created.as_ref()).await;
    assert_eq!((exit.code, exit.reason), (Some(127), ExitReason::RuntimeError));
}
