//! A sandbox is frozen where its session is suspended and runs where it is not, whatever is asked for at once.

use std::time::Duration;

use evenkeel::controller::{AcquireRequest, Acquired, SessionVerb};
use evenkeel::runtime::sim::{Faults, Method, Rng};
use evenkeel::state::{Phase, SessionId};
use futures::FutureExt;
use futures::future::join_all;
use tokio::time::{sleep, timeout};

use crate::stage::{Stage, Trace, spec};

const POOL: &str = "    pool: {min_warm: 1, max_warm: 1, max_total: 2}\n    session: {suspend_timeout: 30s}\n";

/// A machine whose calls take a while.
async fn slow(seed: u64) -> (Stage, Acquired) {
    let faults = Faults { latency: Duration::from_millis(40), ..Faults::none() };
    let stage = Stage::new(seed, faults, spec("sim/run", POOL), Trace::default()).await;
    sleep(Duration::from_secs(2)).await;
    let request = AcquireRequest { client: "agent".to_owned(), ..AcquireRequest::default() };
    let acquired = stage.acquire(request).await.expect("a member");
    (stage, acquired)
}

/// Whether the session is suspended, and whether its sandbox is frozen.
async fn stands(stage: &Stage, id: &SessionId) -> (bool, bool) {
    let views = stage.sessions().await;
    let view = views.iter().find(|view| view.session == *id).expect("the session");
    let members = stage.members();
    let member = members.iter().find(|one| one.id.name() == view.instance).expect("its member");
    (view.state == "suspended", matches!(member.phase, Phase::Paused { .. }))
}

fn agree(stands: (bool, bool)) -> bool {
    stands == (true, true) || stands == (false, false)
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_at_once_is_done_one_after_the_other() {
    let mut seen = [0, 0];
    for seed in 0..100 {
        let (stage, Acquired { token, view, .. }) = slow(seed).await;
        let mut rng = Rng::new(seed);
        let asked = (0..5).map(|_| {
            let (verb, after) = (rng.below(3), Duration::from_millis(rng.below(60)));
            let (stage, view, token) = (&stage, &view, &token);
            async move {
                sleep(after).await;
                match verb {
                    0 => stage.change(&view.session, token, SessionVerb::Suspend).await.map(drop),
                    1 => stage.change(&view.session, token, SessionVerb::Resume).await.map(drop),
                    _ => stage.enter(&view.session.to_string(), Some(token)).await.map(drop),
                }
            }
            .boxed_local()
        });
        let asked: Vec<_> = asked.collect();
        assert!(join_all(asked).await.iter().all(Result::is_ok), "seed {seed}");
        let stands = stands(&stage, &view.session).await;
        assert!(agree(stands), "seed {seed}: {stands:?}");
        seen[usize::from(stands.0)] += 1;
    }
    assert!(seen.iter().all(|count| *count > 10), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_is_killed_while_it_freezes_is_followed_by_one_that_goes_on_with_it() {
    for seed in 0..40 {
        let (mut stage, Acquired { token, view, .. }) = slow(seed).await;
        let suspends = stage.change(&view.session, &token, SessionVerb::Suspend);
        drop(timeout(Duration::from_millis(seed + 1), suspends).await);
        stage.crash().await;
        sleep(Duration::from_secs(1)).await;
        stage.start();
        sleep(Duration::from_secs(4)).await;
        let stands = stands(&stage, &view.session).await;
        assert!(agree(stands), "seed {seed}: {stands:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_suspended_sandbox_that_somebody_lets_run_on_is_frozen_again() {
    let (stage, Acquired { token, view, .. }) = slow(1).await;
    stage.change(&view.session, &token, SessionVerb::Suspend).await.map(drop).expect("done");
    sleep(Duration::from_secs(5)).await;
    let member = stage.members().into_iter().find(|one| one.id.name() == view.instance).expect("its member");
    stage.thaw_behind_its_back(&member.as_ref()).await;
    assert_eq!(stands(&stage, &view.session).await, (true, false));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(stands(&stage, &view.session).await, (true, true));
}

#[tokio::test(start_paused = true)]
async fn a_suspended_session_ends_in_time_though_a_command_is_frozen_inside() {
    let (stage, Acquired { token, view, .. }) = slow(1).await;
    let inside = stage.enter(&view.session.to_string(), Some(&token)).await.expect("a way in");
    stage.change(&view.session, &token, SessionVerb::Suspend).await.map(drop).expect("done");
    sleep(Duration::from_secs(29)).await;
    assert_eq!(stands(&stage, &view.session).await, (true, true));
    sleep(Duration::from_secs(2)).await;
    let views = stage.sessions().await;
    assert_eq!(views[0].state, "ended");
    drop(inside);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_suspended_is_frozen_once() {
    for seed in 0..20 {
        let (stage, Acquired { token, view, .. }) = slow(seed).await;
        stage.change(&view.session, &token, SessionVerb::Suspend).await.map(drop).expect("done");
        sleep(Duration::from_secs(5)).await;
        assert_eq!(stands(&stage, &view.session).await, (true, true));
        let calls = stage.world.calls();
        assert_eq!((calls.get(&Method::Pause), calls.get(&Method::Resume)), (Some(&1), None), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_suspends_a_session_is_told_that_its_sandbox_can_not_be_frozen() {
    for seed in 0..20 {
        let (stage, Acquired { token, view, .. }) = slow(seed).await;
        let well = Faults { latency: Duration::from_millis(40), ..Faults::none() };
        stage.world.set_faults(Faults { refused: 1.0, ..well });
        let suspend = || stage.change(&view.session, &token, SessionVerb::Suspend);
        let refused = [(); 3].map(|()| suspend());
        for refused in join_all(refused).await {
            let why = refused.map(drop).expect_err("it can't be frozen").to_string();
            assert!(why.contains("simulated refusal"), "seed {seed}: {why}");
        }
        assert_eq!(stands(&stage, &view.session).await, (false, false), "seed {seed}");
        stage.world.set_faults(well.clone());
        suspend().await.map(drop).expect("what failed before counts no more");
        assert_eq!(stands(&stage, &view.session).await, (true, true), "seed {seed}");
        stage.world.set_faults(Faults { refused: 1.0, ..well });
        let resume = || stage.change(&view.session, &token, SessionVerb::Resume);
        for refused in join_all([resume(), resume()]).await {
            drop(refused.map(drop).expect_err("it can't be thawed"));
        }
        assert_eq!(stands(&stage, &view.session).await, (true, true), "seed {seed}");
    }
}
