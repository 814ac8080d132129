//! Promises about who sees and touches what.

use std::time::Duration;

use evenkeel::runtime::{ErrorKind, Listing, Volumes};
use evenkeel::state::{EndedBy, Phase, StopCause, StopRequest};

use crate::harness::{DEPLOYMENT, Harness, Program, armed, create, ended, id, listed, request, run, stop};

pub async fn second_handle_sees_the_same<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    create(harness, &*runtime, id("web", 0), &Program::Polite).await;
    run(harness, &*runtime, id("web", 1), &Program::Polite).await;
    let mut before = runtime.list().await.expect("list");
    drop(runtime);
    let again = harness.runtime().await;
    let mut after = again.list().await.expect("list");
    before.instances.sort_by_key(|instance| instance.id.slot);
    after.instances.sort_by_key(|instance| instance.id.slot);
    assert_eq!(before, after);
    let reference = after.instances[1].as_ref();
    let stopped = again.stop(&reference, &stop(Duration::from_secs(5))).await.expect("stop").expect("is still there");
    assert!(matches!(stopped.phase, Phase::Exited(_)), "{:?}", stopped.phase);
}

pub async fn ended_instances_are_told_apart_by_a_new_handle<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let codes = [(0, 3), (1, 5), (2, 0)];
    for (slot, code) in codes {
        run(harness, &*runtime, id("job", slot), &Program::Exit(code)).await;
    }
    drop(runtime);
    let again = harness.runtime().await;
    for (slot, code) in codes {
        assert_eq!(ended(harness, &*again, &id("job", slot)).await.code, Some(code));
    }
}

pub async fn cause_of_a_stop_is_told_by_a_new_handle<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let asked = |cause| StopRequest { cause, ..stop(Duration::from_secs(60)) };
    let causes = [(0, StopCause::Expired), (1, StopCause::Retired)];
    for (slot, cause) in causes {
        let running = run(harness, &*runtime, id("web", slot), &Program::Polite).await;
        armed(harness, &*runtime, &running.as_ref()).await;
        runtime.stop(&running.as_ref(), &asked(cause)).await.expect("stop");
    }
    run(harness, &*runtime, id("web", 2), &Program::Exit(143)).await;
    ended(harness, &*runtime, &id("web", 2)).await;
    for runtime in [runtime, harness.runtime().await] {
        for (slot, cause) in causes {
            assert_eq!(ended(harness, &*runtime, &id("web", slot)).await.ended_by, EndedBy::Request(cause));
        }
        assert_eq!(ended(harness, &*runtime, &id("web", 2)).await.ended_by, EndedBy::Itself);
    }
}

pub async fn run_after_a_stop_has_an_end_of_its_own<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let first = run(harness, &*runtime, id("job", 0), &Program::PrintsSlowly).await;
    runtime.stop(&first.as_ref(), &stop(Duration::ZERO)).await.expect("stop");
    let again = runtime.start(&first.as_ref()).await.expect("start after a stop");
    assert!(matches!(again.phase, Phase::Running { .. }), "{:?}", again.phase);
    let exit = ended(harness, &*runtime, &first.id).await;
    assert_eq!((exit.code, exit.ended_by), (Some(0), EndedBy::Itself));
    assert_eq!(ended(harness, &*harness.runtime().await, &first.id).await, exit);
}

pub async fn stranger_sees_nothing<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    run(harness, &*runtime, id("web", 0), &Program::Polite).await;
    let stranger = harness.stranger().await;
    assert_eq!(stranger.list().await.expect("list"), Listing::default());
}

pub async fn stranger_can_not_touch<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let ours = run(harness, &*runtime, id("web", 0), &Program::Polite).await;
    let before = runtime.list().await.expect("list");
    let stranger = harness.stranger().await;
    let error = stranger.start(&ours.as_ref()).await.expect_err("not theirs");
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    // To a stranger it is as good as gone.
    assert_eq!(stranger.stop(&ours.as_ref(), &stop(Duration::ZERO)).await.expect("stop"), None);
    stranger.remove(&ours.as_ref()).await.expect("remove");
    // Where it can't tell whose network it is, an error is as good.
    let _ = stranger.teardown(&DEPLOYMENT, Volumes::Remove).await;
    assert_eq!(runtime.list().await.expect("list"), before);
}

pub async fn stranger_with_the_same_names_does_no_harm<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let ours = run(harness, &*runtime, id("web", 0), &Program::Polite).await;
    let stranger = harness.stranger().await;
    let wanted = request(harness, id("web", 0), &Program::Polite);
    stranger.ensure_image(&wanted.spec.image, &|_| {}).await.expect("the image");
    match stranger.create(&wanted).await {
        Ok(theirs) => {
            assert!(harness.abilities().names_per_owner, "two owners share a name");
            stranger.remove(&theirs.as_ref()).await.expect("remove");
        }
        Err(error) => {
            assert!(!harness.abilities().names_per_owner, "{error}");
            assert_eq!(error.kind, ErrorKind::NameTaken, "{error}");
        }
    }
    assert_eq!(listed(&*runtime, &ours.id).await.expect("is listed").phase, ours.phase);
}
