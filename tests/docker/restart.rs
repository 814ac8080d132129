//! The engine goes away and comes back. These tests have a Docker Engine of their own, which ends with them.

use std::time::Duration;

use evenkeel::runtime::docker::DockerRuntime;
use evenkeel::runtime::{ErrorKind, Runtime, RuntimeEvent};
use evenkeel::state::{Owner, Phase};
use futures::stream::BoxStream;

use crate::harness::{Bench, IMAGE, next};
use crate::private::Private;

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
    assert_eq!(DockerRuntime::reach(Some(engine.socket())).await.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(runtime.list().await.unwrap_err().kind, ErrorKind::Unavailable);
    let mut events = runtime.events().await.unwrap();
    let reason = resync(&mut events).await;
    assert!(reason.contains("can't be reached"), "{reason}");
    engine.start();
    let reason = resync(&mut events).await;
    assert!(reason.contains("answers again"), "{reason}");
    assert!(runtime.list().await.unwrap().instances.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_go_on_after_the_engine_restarts() {
    let Some(mut engine) = Private::new() else { return };
    engine.start();
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
    engine.start();
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
