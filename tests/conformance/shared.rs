//! Promises about events, images, what a deployment's instances share, and what a runtime says of itself.

use std::collections::BTreeSet;

use evenkeel::runtime::{ErrorKind, RuntimeEvent, Volumes};
use evenkeel::state::{Instance, InstanceId, InstanceRef, Phase};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::timeout;

use crate::harness::{DEPLOYMENT, Harness, Program, create, id, listed, request, run, skipped, spec};

/// What a test waits to be told of an instance.
enum Awaited<'a> {
    /// It is in such a phase.
    In(&'a InstanceId, fn(&Phase) -> bool),
    /// It does not exist any more.
    Gone(&'a InstanceRef),
}

impl Awaited<'_> {
    fn is_told_by(&self, event: &RuntimeEvent) -> bool {
        match (self, event) {
            (Self::In(id, phase), RuntimeEvent::Changed(instance)) => instance.id == **id && phase(&instance.phase),
            (Self::Gone(gone), event) => *event == RuntimeEvent::Gone((*gone).clone()),
            _ => false,
        }
    }

    fn is_listed(&self, instances: &[Instance]) -> bool {
        match self {
            Self::In(id, phase) => instances.iter().any(|one| one.id == **id && phase(&one.phase)),
            Self::Gone(gone) => instances.iter().all(|one| one.as_ref() != **gone),
        }
    }
}

/// Most resyncs for one thing that is awaited: an engine under load closes its stream of events now and then (Podman's
/// does), and one that never tells an event keeps no promise.
const RESYNCS: usize = 1;

/// Reads events until what is awaited is told; a resync is answered by a list, as the contract says.
async fn told<H: Harness>(
    harness: &H,
    events: &mut BoxStream<'static, RuntimeEvent>,
    what: &str,
    awaited: Awaited<'_>,
) {
    let found = async {
        let mut resyncs = 0;
        loop {
            let event = events.next().await.expect("the stream goes on");
            if matches!(event, RuntimeEvent::Resync { .. }) {
                resyncs += 1;
                assert!(resyncs <= RESYNCS, "{event:?}");
                if awaited.is_listed(&harness.runtime().await.list().await.expect("list").instances) {
                    return;
                }
            }
            if awaited.is_told_by(&event) {
                return;
            }
        }
    };
    assert!(
        timeout(harness.patience(), found).await.is_ok(),
        "{}: no event within {:?}: {what}",
        H::NAME,
        harness.patience()
    );
}

pub async fn events_tell_start_and_exit<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let mut events = runtime.events().await.expect("events");
    let running = run(harness, &*runtime, id("web", 0), &Program::Polite).await;
    let runs = Awaited::In(&running.id, |phase| matches!(phase, Phase::Running { .. }));
    told(harness, &mut events, "a start", runs).await;
    let exiting = run(harness, &*runtime, id("job", 0), &Program::Exit(3)).await;
    let exited = Awaited::In(&exiting.id, |phase| matches!(phase, Phase::Exited(exit) if exit.code == Some(3)));
    told(harness, &mut events, "an exit", exited).await;
}

pub async fn events_tell_removal<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let running = run(harness, &*runtime, id("web", 0), &Program::Polite).await;
    let mut events = runtime.events().await.expect("events");
    runtime.remove(&running.as_ref()).await.expect("remove");
    told(harness, &mut events, "a removal", Awaited::Gone(&running.as_ref())).await;
}

pub async fn events_reach_every_handle<H: Harness>(harness: &H) {
    let (actor, watcher) = (harness.runtime().await, harness.runtime().await);
    let stranger = harness.stranger().await;
    let mut events = watcher.events().await.expect("events");
    let mut foreign = stranger.events().await.expect("events");
    let running = run(harness, &*actor, id("web", 0), &Program::Polite).await;
    told(harness, &mut events, "a start", Awaited::In(&running.id, Phase::is_ready)).await;
    actor.remove(&running.as_ref()).await.expect("remove");
    told(harness, &mut events, "a removal", Awaited::Gone(&running.as_ref())).await;
    // By now the stranger's would have come too.
    let silent = timeout(std::time::Duration::from_millis(300), foreign.next()).await;
    assert!(silent.is_err(), "a stranger is told {silent:?}");
}

pub async fn teardown_removes_and_repeats<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    runtime.teardown(&DEPLOYMENT, Volumes::Keep).await.expect("teardown of what never was");
    let running = run(harness, &*runtime, id("web", 0), &Program::Polite).await;
    let shared = runtime.list().await.expect("list").shared;
    let want = if harness.abilities().shared_networks { vec![DEPLOYMENT.clone()] } else { vec![] };
    assert_eq!(shared, BTreeSet::from_iter(want));
    runtime.remove(&running.as_ref()).await.expect("remove");
    for _ in 0..2 {
        runtime.teardown(&DEPLOYMENT, Volumes::Remove).await.expect("teardown");
        assert_eq!(runtime.list().await.expect("list").shared, BTreeSet::new());
    }
    let again = run(harness, &*runtime, id("web", 0), &Program::Polite).await;
    assert!(again.phase.is_ready(), "{:?}", again.phase);
}

pub async fn teardown_leaves_others<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let mut other = id("web", 0);
    other.deployment = format!("other-{}", *DEPLOYMENT);
    let other = run(harness, &*runtime, other, &Program::Polite).await;
    let gone = run(harness, &*runtime, id("web", 0), &Program::Polite).await;
    runtime.remove(&gone.as_ref()).await.expect("remove");
    runtime.teardown(&DEPLOYMENT, Volumes::Remove).await.expect("teardown");
    assert_eq!(listed(&*runtime, &other.id).await.expect("is listed").phase, other.phase);
    let shared = runtime.list().await.expect("list").shared;
    assert_eq!(shared.contains(&other.id.deployment), harness.abilities().shared_networks, "{shared:?}");
}

pub async fn present_image_is_success<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    for _ in 0..2 {
        runtime.ensure_image(&harness.image(), &|_| {}).await.expect("the image");
    }
}

pub async fn missing_image_is_unavailable<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let error = runtime.ensure_image(&harness.missing_image(), &|_| {}).await.expect_err("no such image");
    assert_eq!(error.kind, ErrorKind::ImageUnavailable, "{error}");
}

pub async fn missing_image_can_not_be_created<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let mut wanted = request(harness, id("web", 0), &Program::Polite);
    wanted.spec = spec(harness.missing_image(), harness.command(&Program::Polite)).into();
    let error = runtime.create(&wanted).await.expect_err("no such image");
    assert_eq!(error.kind, ErrorKind::ImageUnavailable, "{error}");
    assert_eq!(runtime.list().await.expect("list").instances, []);
}

pub async fn unsupported_transport_is_named<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let Some(image) = harness.unsupported_image() else { return skipped::<H>("it takes every transport") };
    let error = runtime.ensure_image(&image, &|_| {}).await.expect_err("not taken");
    assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
    let (name, kind) = (image.name.to_string(), runtime.kind().to_string());
    assert!(error.message.contains(&name) && error.message.contains(&kind), "{error} names {name} and {kind}");
}

pub async fn capabilities_are_told<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let first = runtime.capabilities().await.expect("capabilities");
    assert!(!first.version.is_empty());
    assert_eq!(runtime.capabilities().await.expect("capabilities"), first);
    assert!(runtime.concurrency() > 0);
    // An instance says the same of its deployment's runtime before and after.
    let created = create(harness, &*runtime, id("web", 0), &Program::Polite).await;
    assert_eq!(created.runtime, runtime.kind());
}
