//! Instances whose program was not executed, or not yet.

use evenkeel::runtime::{ErrorKind, Runtime};
use evenkeel::state::Phase;

use crate::support::{Sandbox, request, shell};

#[tokio::test]
async fn a_start_that_is_refused_tells_how_it_left_the_instance() {
    let sandbox = Sandbox::new();
    let yaml = "image: { name: host }\ncommand: { entrypoint: [/etc/passwd] }";
    let created = sandbox.runtime.create(&request(yaml, 0)).await.unwrap();
    let error = sandbox.runtime.start(&created.as_ref()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Rejected);
    let left = error.left.expect("it is told").phase;
    let Phase::Exited(exit) = &left else { panic!("{left:?}") };
    assert_eq!((exit.code, exit.started_at), (Some(126), None));
    assert_eq!(exit.runtime_error.as_deref(), Some("/etc/passwd is not an executable file"));
    assert_eq!(sandbox.find(&created.as_ref()).await.unwrap().phase, left);
}

#[tokio::test]
async fn an_instance_runs_once_its_program_is_executed_and_not_before() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell("sleep 100")).await;
    let running = sandbox.find(&instance.as_ref()).await.unwrap().phase;
    assert!(matches!(running, Phase::Running { .. }), "{running:?}");
    // What its supervisor has there until then.
    let mark = sandbox.dir(&instance.as_ref()).join("starting");
    std::fs::write(&mark, "").unwrap();
    assert_eq!(sandbox.find(&instance.as_ref()).await.unwrap().phase, Phase::Created);
    std::fs::remove_file(&mark).unwrap();
    assert_eq!(sandbox.find(&instance.as_ref()).await.unwrap().phase, running);
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
}
