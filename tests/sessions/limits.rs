//! Time limits, in virtual time, and what claims may ask for.

use std::time::Duration;

use chrono::{DateTime, TimeZone, Utc};
use evenkeel::controller::{AcquireRequest, Acquired, Membership, SessionVerb, SessionView};
use evenkeel::runtime::sim::Faults;
use evenkeel::spec::{Control, HumanDuration};
use evenkeel::state::{LateMount, SessionId, Signal};
use tokio::time::sleep;

use crate::stage::{Stage, Trace, spec};

const POOL: &str = "    pool: {min_warm: 2, max_warm: 3, max_total: 4, warm_ttl: 10m}\n    \
                    session: {idle_timeout: 10s, detach_timeout: 20s, suspend_timeout: 30s}\n";

const MOMENT: Duration = Duration::from_millis(5);

async fn stage() -> Stage {
    of(POOL).await
}

async fn of(fields: &str) -> Stage {
    let stage = Stage::new(1, Faults::none(), spec("sim/run", fields), Trace::default()).await;
    sleep(Duration::from_secs(1)).await;
    stage
}

fn request() -> AcquireRequest {
    AcquireRequest { client: "agent".to_owned(), ..AcquireRequest::default() }
}

async fn acquire(stage: &Stage) -> Acquired {
    stage.acquire(request()).await.expect("a member")
}

async fn view(stage: &Stage, id: &SessionId) -> SessionView {
    let views = stage.sessions().await;
    views.into_iter().find(|view| view.session == *id).expect("the session")
}

async fn state(stage: &Stage, id: &SessionId) -> (String, Option<String>) {
    let view = view(stage, id).await;
    (view.state, view.reason)
}

fn lives(state: &str) -> (String, Option<String>) {
    (state.to_owned(), None)
}

fn timed_out() -> (String, Option<String>) {
    ("ended".to_owned(), Some("timeout".to_owned()))
}

#[tokio::test(start_paused = true)]
async fn each_state_ends_after_its_own_timeout_and_not_at_it() {
    for (verb, name, limit) in [
        (SessionVerb::Touch, "active", 10),
        (SessionVerb::Detach, "detached", 20),
        (SessionVerb::Suspend, "suspended", 30),
    ] {
        let stage = stage().await;
        let Acquired { token, view, .. } = acquire(&stage).await;
        stage.change(&view.session, &token, verb).await.map(drop).expect("done");
        // The change itself takes a moment to be written down.
        sleep(Duration::from_secs(limit) - 4 * MOMENT).await;
        assert_eq!(state(&stage, &view.session).await, lives(name));
        sleep(5 * MOMENT).await;
        assert_eq!(state(&stage, &view.session).await, timed_out(), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_is_inside_keeps_a_session_in_use() {
    let stage = stage().await;
    let Acquired { token, view, .. } = acquire(&stage).await;
    let entry = stage.enter(&view.instance, Some(&token)).await.expect("a way in");
    sleep(Duration::from_secs(100)).await;
    assert_eq!(state(&stage, &view.session).await, lives("active"));
    drop(entry);
    sleep(Duration::from_secs(9)).await;
    assert_eq!(state(&stage, &view.session).await, lives("active"));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(state(&stage, &view.session).await, timed_out());
}

#[tokio::test(start_paused = true)]
async fn the_timeouts_of_those_that_somebody_may_be_inside_of_begin_with_the_next_controller_and_others_go_on() {
    let mut stage = stage().await;
    let (short, long) = (acquire(&stage).await, acquire(&stage).await);
    stage.change(&long.view.session, &long.token, SessionVerb::Detach).await.map(drop).expect("done");
    let inside = stage.enter(&short.view.session.to_string(), Some(&short.token)).await.expect("a way in");
    sleep(Duration::from_secs(14)).await;
    stage.crash().await;
    drop(inside);
    sleep(Duration::from_secs(1)).await;
    stage.start();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(state(&stage, &short.view.session).await, lives("active"));
    assert_eq!(state(&stage, &long.view.session).await, lives("detached"));
    sleep(Duration::from_secs(6)).await;
    assert_eq!(state(&stage, &long.view.session).await, timed_out());
    sleep(Duration::from_secs(10)).await;
    assert_eq!(state(&stage, &short.view.session).await, timed_out());
}

#[tokio::test(start_paused = true)]
async fn ending_tells_whoever_is_inside_and_so_does_a_takeover() {
    let stage = stage().await;
    for (verb, cause) in [
        (SessionVerb::Attach { takeover: true }, "was taken over by another client"),
        (SessionVerb::Terminate, "is over: it was terminated"),
    ] {
        let Acquired { token, view, .. } = acquire(&stage).await;
        let entry = stage.enter(&view.session.to_string(), Some(&token)).await.expect("a way in");
        let lease = entry.lease.as_ref().expect("a lease");
        stage.change(&view.session, &token, verb).await.map(drop).expect("done");
        let why = tokio::time::timeout(MOMENT, lease.ended_why()).await.expect("it is told");
        assert_eq!(why, format!("the session {} {cause}", view.session));
        let refused = stage.enter(&view.instance, Some(&token)).await.err().expect("refused").to_string();
        assert!(!refused.contains(token.reveal()), "{refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn attaching_twice_is_refused_and_a_takeover_fences_the_former_holder() {
    let stage = stage().await;
    let Acquired { token, view, .. } = acquire(&stage).await;
    let id = view.session;
    let attach = SessionVerb::Attach { takeover: false };
    let refused = stage.change(&id, &token, attach).await.err().expect("refused").to_string();
    assert!(refused.contains("--takeover"), "{refused}");
    let takeover = SessionVerb::Attach { takeover: true };
    let new = stage.change(&id, &token, takeover).await.expect("taken over").token.expect("a new token");
    assert_ne!(new.reveal(), token.reveal());
    let fenced = stage.change(&id, &token, SessionVerb::Touch).await.err().expect("fenced").to_string();
    assert!(fenced.contains("not that of the session"), "{fenced}");
    stage.change(&id, &new, SessionVerb::Detach).await.map(drop).expect("done");
    stage.change(&id, &new, attach).await.map(drop).expect("attached again");
}

#[tokio::test(start_paused = true)]
async fn a_suspended_session_is_taken_over_and_runs_on() {
    let stage = stage().await;
    let Acquired { token, view, .. } = acquire(&stage).await;
    let id = view.session;
    stage.change(&id, &token, SessionVerb::Suspend).await.map(drop).expect("suspended");
    assert_eq!(state(&stage, &id).await, lives("suspended"));
    let attach = SessionVerb::Attach { takeover: false };
    let refused = stage.change(&id, &token, attach).await.err().expect("refused").to_string();
    assert!(refused.contains("is suspended"), "{refused}");
    let takeover = SessionVerb::Attach { takeover: true };
    let new = stage.change(&id, &token, takeover).await.expect("taken over").token.expect("a new token");
    assert_eq!(state(&stage, &id).await, lives("active"));
    let fenced = stage.change(&id, &token, SessionVerb::Touch).await.err().expect("fenced").to_string();
    assert!(fenced.contains("not that of the session"), "{fenced}");
    stage.change(&id, &new, SessionVerb::Detach).await.map(drop).expect("done");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ended_says_when_and_why_to_whoever_comes_again() {
    let stage = stage().await;
    let Acquired { token, view, .. } = acquire(&stage).await;
    stage.change(&view.session, &token, SessionVerb::Release).await.map(drop).expect("released");
    let again = stage.change(&view.session, &token, SessionVerb::Release).await.err().expect("refused").to_string();
    assert_eq!(again, format!("the session {} is over: it was released at 2026-01-01T00:00:01Z", view.session));
}

#[tokio::test(start_paused = true)]
async fn when_every_place_is_claimed_it_is_told_at_once_with_the_numbers() {
    let stage = stage().await;
    for _ in 0..4 {
        acquire(&stage).await;
    }
    let before = stage.now();
    let refused = stage.acquire(request()).await.expect_err("refused").to_string();
    assert!(refused.contains("all 4 places of demo/box are claimed"), "{refused}");
    assert_eq!(stage.now(), before);
    let stats = stage.stats().await.expect("statistics");
    assert_eq!((stats.created, stats.unmet), (4, 1));
    let hits = stage.sessions().await.iter().filter(|one| one.warm).count() as f64;
    assert_eq!(stats.pool_hit_rate, Some(hits / 5.0), "who got none is no hit");
}

#[tokio::test(start_paused = true)]
async fn a_fresh_claim_gets_a_member_that_was_made_after_it_also_where_the_pool_is_full_of_warm_ones() {
    let fields = "    pool: {min_warm: 2, max_warm: 2, max_total: 2}\n";
    for fields in [POOL, fields] {
        let stage = of(fields).await;
        let asked = stage.now();
        let fresh = AcquireRequest { fresh: true, ..request() };
        let acquired = stage.acquire(fresh).await.expect("a member");
        let member = stage.members().into_iter().find(|one| one.runtime_id == acquired.view.runtime_id);
        assert!(member.expect("the member").created_at >= asked);
        assert!(!acquired.view.warm);
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_nothing_can_be_made_for_is_refused_after_its_timeout() {
    let stage = Stage::new(1, Faults::none(), spec("sim/missing", POOL), Trace::default()).await;
    let before = stage.now();
    let timeout = Some(HumanDuration(Duration::from_secs(7)));
    let refused = stage.acquire(AcquireRequest { timeout, ..request() }).await.expect_err("refused").to_string();
    assert!(refused.contains("within 7s") && refused.contains("sim/missing"), "{refused}");
    assert_eq!((stage.now() - before).num_seconds(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_pool_whose_template_crashes_does_not_spin() {
    let stage = Stage::new(1, Faults::none(), spec("sim/crash:10ms", POOL), Trace::default()).await;
    sleep(Duration::from_secs(3600)).await;
    let made =
        stage.world.changes().into_iter().filter(|one| one.what == evenkeel::runtime::sim::What::Created).count();
    // Two slots, each at once and then after 10, 20, 40, 80, 160 and every 300 seconds.
    assert!((20..=40).contains(&made), "{made}");
}

#[tokio::test(start_paused = true)]
async fn members_of_an_edited_template_are_never_handed_out_and_sessions_keep_theirs() {
    let mut stage = stage().await;
    let kept = acquire(&stage).await;
    stage.declare(spec("sim/run", &format!("    env: {{NEW: \"1\"}}\n{POOL}")));
    let new = acquire(&stage).await;
    let revision = |runtime_id: &str| {
        let members = stage.members();
        members.into_iter().find(|one| one.runtime_id == runtime_id).map(|one| one.id.revision)
    };
    let (old, fresh) = (revision(&kept.view.runtime_id), revision(&new.view.runtime_id));
    assert!(old.is_some() && fresh.is_some() && old != fresh, "{old:?} {fresh:?}");
    sleep(Duration::from_secs(5)).await;
    assert_eq!(stage.members().iter().filter(|one| Some(&one.id.revision) == old.as_ref()).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_named_sandbox_is_given_again_to_whoever_has_its_token_and_to_nobody_else() {
    let stage = stage().await;
    let named = || AcquireRequest { sandbox: Some("note.book".to_owned()), ..request() };
    let missing = stage.acquire(named()).await.expect_err("refused").to_string();
    assert!(missing.contains("there is no sandbox note.book") && missing.contains("--create-if-missing"), "{missing}");
    let first = stage.acquire(AcquireRequest { create_if_missing: true, ..named() }).await.expect("made");
    assert_eq!(first.view.sandbox.as_deref(), Some("note.book"));
    let token = Some(first.token.clone());
    let again = stage.acquire(AcquireRequest { token, ..named() }).await.expect("given again");
    assert!(again.reused && again.view.session == first.view.session);
    let stranger = stage.acquire(AcquireRequest { create_if_missing: true, ..named() }).await;
    assert!(stranger.expect_err("refused").to_string().contains("present its token"));
    stage.change(&first.view.session, &first.token, SessionVerb::Release).await.map(drop).expect("released");
    let next = stage.acquire(AcquireRequest { create_if_missing: true, ..named() }).await.expect("made anew");
    assert_ne!(next.view.runtime_id, first.view.runtime_id);
}

#[tokio::test(start_paused = true)]
async fn a_client_is_given_its_session_again_where_it_asks_for_that() {
    let stage = stage().await;
    let first = acquire(&stage).await;
    let reuse = |client: &str| AcquireRequest {
        client: client.to_owned(),
        reuse: true,
        token: Some(first.token.clone()),
        ..request()
    };
    let again = stage.acquire(reuse("agent")).await.expect("given again");
    assert!(again.reused && again.view.session == first.view.session);
    // Another client holds nothing, whatever token it has.
    assert!(!stage.acquire(reuse("other")).await.expect("another one").reused);
    let second = acquire(&stage).await;
    let wrong = AcquireRequest { token: Some(second.token), ..reuse("agent") };
    assert!(stage.acquire(wrong).await.expect("its other session").reused);
}

#[tokio::test(start_paused = true)]
async fn whoever_holds_no_session_needs_no_token_and_whoever_does_is_told_so() {
    let stage = stage().await;
    let reuse = |token| AcquireRequest { reuse: true, token, ..request() };
    let first = stage.acquire(reuse(None)).await.expect("its first session");
    assert!(!first.reused);
    let refused = stage.acquire(reuse(None)).await.expect_err("refused").to_string();
    assert!(refused.contains("agent holds a session in demo/box") && refused.contains("--token"), "{refused}");
    let again = stage.acquire(reuse(Some(first.token.clone()))).await.expect("given again");
    assert!(again.reused && again.view.session == first.view.session);
    // What is required is looked at before it is given again, and the simulator enforces everything.
    let require = vec![Control::EgressFilter];
    let again = AcquireRequest { require, ..reuse(Some(first.token)) };
    assert!(stage.acquire(again).await.expect("given again").reused);
}

#[tokio::test(start_paused = true)]
async fn a_named_sandbox_is_not_given_to_another_client_with_the_token_either() {
    let stage = stage().await;
    let named = AcquireRequest { sandbox: Some("nb".to_owned()), create_if_missing: true, ..request() };
    let first = stage.acquire(named.clone()).await.expect("made");
    let other = AcquireRequest { client: "other".to_owned(), token: Some(first.token), ..named };
    let refused = stage.acquire(other).await.expect_err("refused").to_string();
    assert!(refused.contains("the sandbox nb of demo/box is held by the client agent, not by other"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_session_is_given_again_with_the_environment_that_it_has_or_not_at_all() {
    let stage = stage().await;
    let env = |value: &str| [("A".to_owned(), value.to_owned())].into();
    let named = AcquireRequest { sandbox: Some("nb".to_owned()), create_if_missing: true, ..request() };
    let first = stage.acquire(AcquireRequest { env: env("1"), ..named.clone() }).await.expect("made");
    sleep(Duration::from_secs(1)).await;
    let token = Some(first.token.clone());
    let by_name = AcquireRequest { token: token.clone(), ..named };
    let by_client = AcquireRequest { token, reuse: true, ..request() };
    for again in [by_name.clone(), by_client] {
        for env in [[].into(), env("1")] {
            let given = stage.acquire(AcquireRequest { env, ..again.clone() }).await.expect("given again");
            assert!(given.reused && given.view.session == first.view.session);
            assert!(given.view.elapsed_ms < 1000.0, "that of this answer: {}", given.view.elapsed_ms);
        }
        let refused = stage.acquire(AcquireRequest { env: env("2"), ..again }).await.expect_err("refused").to_string();
        assert!(refused.contains("its environment is another; leave out --env"), "{refused}");
    }
    let refused = stage.acquire(AcquireRequest { fresh: true, ..by_name }).await.expect_err("refused").to_string();
    assert!(refused.contains("is not fresh; leave out --fresh"), "{refused}");
    let fresh = AcquireRequest { sandbox: Some("other".to_owned()), create_if_missing: true, fresh: true, ..request() };
    assert!(!stage.acquire(fresh).await.expect("made").reused);
}

#[tokio::test(start_paused = true)]
async fn a_suspended_session_has_no_client_that_could_detach() {
    let stage = stage().await;
    let Acquired { token, view, .. } = acquire(&stage).await;
    stage.change(&view.session, &token, SessionVerb::Suspend).await.map(drop).expect("done");
    let refused = stage.change(&view.session, &token, SessionVerb::Detach).await.err().expect("refused").to_string();
    assert!(refused.contains("is suspended already") && refused.contains("keel session resume"), "{refused}");
    assert_eq!(state(&stage, &view.session).await, lives("suspended"));
}

#[tokio::test(start_paused = true)]
async fn claims_that_wait_are_refused_once_sessions_have_every_place() {
    let stage = stage().await;
    let mut claims = Vec::new();
    for _ in 0..7 {
        claims.push(stage.claim(request()).await);
    }
    let (mut served, mut refused) = (0, Vec::new());
    for claim in claims {
        match claim.await.expect("an answer") {
            Ok(_) => served += 1,
            Err(why) => refused.push(why.to_string()),
        }
    }
    assert_eq!((served, refused.len()), (4, 3));
    assert!(refused.iter().all(|why| why.contains("all 4 places of demo/box are claimed")), "{refused:?}");
    assert!((stage.now() - Utc.with_ymd_and_hms(2026, 1, 1, 0, 0, 0).unwrap()).num_seconds() < 10, "{}", stage.now());
}

#[tokio::test(start_paused = true)]
async fn a_pool_is_filled_at_its_rate_and_a_claim_does_not_wait_for_it() {
    let stage = Stage::new(
        1,
        Faults::none(),
        spec("sim/run", "    pool: {min_warm: 6, max_warm: 6, refill_rate: 0.5}\n"),
        Trace::default(),
    )
    .await;
    let mut counts = Vec::new();
    for _ in 0..4 {
        sleep(Duration::from_secs(2)).await;
        counts.push(stage.members().len());
    }
    assert_eq!(counts, [1, 2, 3, 4], "one in two seconds, the first at once");
    let before = stage.now();
    for _ in 0..8 {
        acquire(&stage).await;
    }
    assert!((stage.now() - before).num_seconds() < 2, "{}", stage.now());
}

#[tokio::test(start_paused = true)]
async fn a_dead_member_is_not_handed_out_although_nobody_told_of_its_death() {
    let stage = stage().await;
    // Events are lost, so that only a look tells.
    stage.world.set_faults(Faults { event_lost: 1.0, ..Faults::none() });
    for member in stage.members() {
        assert!(stage.world.kill(&member.runtime_id, 137));
    }
    let dead: Vec<String> = stage.members().into_iter().map(|one| one.runtime_id).collect();
    let acquired = acquire(&stage).await;
    assert!(!dead.contains(&acquired.view.runtime_id));
    assert_eq!(stage.stats().await.expect("statistics").created, 1);
}

#[tokio::test(start_paused = true)]
async fn warm_members_are_renewed_before_they_are_too_old() {
    let stage = of("    pool: {min_warm: 2, max_warm: 4, max_total: 8, warm_ttl: 60s}\n").await;
    let first: Vec<String> = stage.members().into_iter().map(|one| one.runtime_id).collect();
    for _ in 0..120 {
        sleep(Duration::from_secs(1)).await;
        let pool = stage.view().await.and_then(|view| view.pool).expect("a pool");
        assert!((2..=4).contains(&pool.warm), "{pool:?}");
        let oldest = stage.members().into_iter().map(|one| one.created_at).min().expect("members");
        assert!((stage.now() - oldest).num_seconds() <= 60);
    }
    assert!(stage.members().iter().all(|one| !first.contains(&one.runtime_id)));
}

#[tokio::test(start_paused = true)]
async fn warm_members_are_renewed_before_they_are_too_old_where_no_more_may_be_free() {
    let stage = of("    pool: {min_warm: 2, max_warm: 2, max_total: 8, warm_ttl: 60s}\n").await;
    let first: Vec<String> = stage.members().into_iter().map(|one| one.runtime_id).collect();
    stage.world.set_faults(Faults { latency: Duration::from_millis(500), ..Faults::none() });
    for _ in 0..1200 {
        sleep(Duration::from_millis(100)).await;
        let pool = stage.view().await.and_then(|view| view.pool).expect("a pool");
        assert!((2..=4).contains(&pool.warm), "{pool:?}");
    }
    assert!(stage.members().iter().all(|one| !first.contains(&one.runtime_id)));
    // Those that were replaced do not wait until they are too old.
    sleep(Duration::from_secs(10)).await;
    assert_eq!(stage.members().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_claim_with_mounts_is_refused_where_its_runtime_makes_none_and_nothing_is_taken() {
    let stage = stage().await;
    let mount = LateMount { source: "/srv".to_owned(), target: "/data".to_owned(), readonly: true };
    let refused = stage.acquire(AcquireRequest { mounts: vec![mount], ..request() }).await.expect_err("refused");
    let why = "pool demo/box runs on sim, which can't mount into what runs already";
    assert!(refused.to_string().starts_with(why), "{refused}");
    assert_eq!(stage.sessions().await, []);
    assert!(acquire(&stage).await.view.warm);
}

/// When the session of an instance was called last, as far as is told of its use.
async fn called(stage: &Stage, instance: &str) -> Option<DateTime<Utc>> {
    let reports = stage.idle(instance).await.expect("it is known");
    let [report] = reports.as_slice() else { panic!("{reports:?}") };
    report.signals.iter().find(|one| one.signal == Signal::Session).and_then(|one| one.last)
}

#[tokio::test(start_paused = true)]
async fn every_call_of_a_session_is_a_use_of_its_member() {
    let stage = stage().await;
    let before = stage.idle("demo/box/0").await.expect("it is known");
    assert!(before.iter().flat_map(|report| &report.signals).all(|one| one.last.is_none()), "{before:?}");
    let Acquired { token, view: acquired, .. } = acquire(&stage).await;
    assert_eq!(called(&stage, &acquired.instance).await, Some(acquired.last_active_at));
    let attach = SessionVerb::Attach { takeover: false };
    for verb in [SessionVerb::Touch, SessionVerb::Detach, attach, SessionVerb::Suspend, SessionVerb::Resume] {
        sleep(Duration::from_secs(1)).await;
        let now = stage.now();
        stage.change(&acquired.session, &token, verb).await.map(drop).expect("done");
        assert_eq!(called(&stage, &acquired.instance).await, Some(now), "{verb:?}");
    }
    sleep(Duration::from_secs(1)).await;
    let again = AcquireRequest { reuse: true, token: Some(token), ..request() };
    let again = stage.acquire(again).await.expect("given again").view;
    assert_eq!(called(&stage, &again.instance).await, Some(again.last_active_at), "given again");
    assert_ne!(again.last_active_at, acquired.last_active_at);
}

#[tokio::test(start_paused = true)]
async fn sessions_of_a_deployment_that_is_gone_tell_why_they_ended_also_after_another_start() {
    let mut stage = stage().await;
    let Acquired { token, view: acquired, .. } = acquire(&stage).await;
    let id = acquired.session;
    let entry = stage.enter(&id.to_string(), Some(&token)).await.expect("a way in");
    stage.declare(String::new());
    let why = format!("the session {id} is over: it ended as its pool is not declared any more");
    assert_eq!(entry.lease.as_ref().expect("a lease").ended_why().await, why);
    drop(entry);
    // Until nothing is left of what nothing declares.
    sleep(Duration::from_secs(300)).await;
    assert_eq!(stage.members(), []);
    for _ in 0..2 {
        assert_eq!(state(&stage, &id).await, ("ended".to_owned(), Some("pool_removed".to_owned())));
        let refused = stage.change(&id, &token, SessionVerb::Release).await.err().expect("refused").to_string();
        assert!(refused.starts_with(&format!("{why} at 2026-01-01T")), "{refused}");
        assert_eq!(stage.stats().await.expect("statistics").created, 1);
        stage.crash().await;
        stage.start();
        sleep(Duration::from_secs(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn touching_a_pool_is_a_use_of_its_free_members_alone_and_says_so() {
    let stage = stage().await;
    let claimed = acquire(&stage).await.view.instance;
    sleep(Duration::from_secs(2)).await;
    let now = stage.now();
    let touched = stage.touch("demo/box").await.expect("touched");
    let free: Vec<String> = stage.members().iter().map(|one| one.id.name()).filter(|name| *name != claimed).collect();
    assert!(!free.is_empty());
    let mut expected: Vec<String> = free.iter().map(|name| format!("{name} touched")).collect();
    expected.sort();
    assert_eq!(touched, expected);
    let reports = stage.idle("demo/box").await.expect("it is known");
    let last = |report: &evenkeel::controller::IdleReport| {
        report.signals.iter().find(|one| one.signal == Signal::Touch).and_then(|one| one.last)
    };
    for report in &reports {
        assert_eq!(last(report), Some(now).filter(|_| report.name != claimed), "{}", report.name);
    }
    assert!(reports.iter().any(|report| report.name == claimed));
}

#[tokio::test(start_paused = true)]
async fn a_member_is_explained_by_its_session_or_the_time_that_it_may_be_free() {
    let stage = stage().await;
    let claimed = acquire(&stage).await.view;
    let reports = stage.idle("demo/box").await.expect("it is known");
    for report in &reports {
        match (&report.member, report.name == claimed.instance) {
            (Some(Membership::Session { id, until: Some(end) }), true) => {
                assert_eq!((id, Some(*end)), (&claimed.session.to_string(), claimed.expires_at));
            }
            (Some(Membership::Free { until }), false) => assert!(*until > stage.now()),
            (other, is_claimed) => panic!("{other:?} of {}, claimed: {is_claimed}", report.name),
        }
    }
    assert!(reports.len() > 1);
}

#[tokio::test(start_paused = true)]
async fn an_empty_pool_of_a_suspended_deployment_refuses_at_once_and_that_is_no_miss() {
    let stage = stage().await;
    acquire(&stage).await;
    sleep(Duration::from_secs(1)).await;
    stage.suspend(true).await;
    let mut refused = None;
    let before = stage.now();
    // Free members are handed out all the same.
    for _ in 0..4 {
        refused = stage.acquire(request()).await.err().map(|why| why.to_string());
        if refused.is_some() {
            break;
        }
    }
    let why =
        "demo/box has no free member, and none is made while the deployment is suspended; `keel resume demo` ends that";
    assert_eq!(refused.as_deref(), Some(why));
    assert!((stage.now() - before).num_seconds() < 1, "{}", stage.now());
    assert_eq!(stage.stats().await.expect("statistics").unmet, 0);
    stage.suspend(false).await;
    acquire(&stage).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_overdue_while_the_deployment_is_suspended_is_no_miss() {
    for (suspends, unmet) in [(true, 0), (false, 1)] {
        let stage = Stage::new(1, Faults::none(), spec("sim/missing", POOL), Trace::default()).await;
        let timeout = Some(HumanDuration(Duration::from_secs(7)));
        let claim = stage.claim(AcquireRequest { timeout, ..request() }).await;
        if suspends {
            stage.suspend(true).await;
        }
        claim.await.expect("an answer").map(drop).expect_err("refused");
        assert_eq!(stage.stats().await.expect("statistics").unmet, unmet, "suspended: {suspends}");
    }
}
