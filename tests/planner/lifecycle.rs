//! Age and idleness.

use evenkeel::plan::{Verdict, verdict};
use evenkeel::state::{Instance, Phase, StopCause};

use super::dsl::{Change, Snapshot, ago, all_up, now, spec, up};

fn web(replicas: u32, fields: &str) -> Snapshot {
    Snapshot::declared().service("web", 'a', replicas, fields)
}

/// What is said of `web/0` once it was stopped for idleness a minute ago.
const IDLE: &str =
    "keep demo/web/0 (aaaaaaaa, attempt 0) down: idle since 2026-01-01T11:59:00Z; `keel start demo/web/0` wakes it";

#[test]
fn the_verdict_holds_from_the_exact_instant_on() {
    let aged = |fields: &str, seconds| verdict(&up(0, 'a').since(seconds), &spec(fields), None, now());
    let recycle = "lifecycle: {max_lifetime: 60s}";
    let terminate = "lifecycle: {max_lifetime: 60s, on_expiry: terminate}";
    assert_eq!(aged(recycle, 59), Verdict::Keep { next: Some(ago(-1)) });
    assert_eq!(aged(recycle, 60), Verdict::Recycle { since: ago(60) });
    assert_eq!(aged(terminate, 59), Verdict::Keep { next: Some(ago(-1)) });
    assert_eq!(aged(terminate, 60), Verdict::Terminate { since: ago(60) });
    assert_eq!(aged("", 1_000_000), Verdict::Keep { next: None });
}

#[test]
fn idleness_counts_from_the_last_activity_and_only_where_some_is_reported() {
    let fields = spec("lifecycle: {max_idle: 60s}");
    assert_eq!(verdict(&up(0, 'a'), &fields, None, now()), Verdict::Keep { next: None });
    assert_eq!(verdict(&up(0, 'a').active(59), &fields, None, now()), Verdict::Keep { next: Some(ago(-1)) });
    assert_eq!(verdict(&up(0, 'a').active(60), &fields, None, now()), Verdict::Idle { since: ago(60) });
    // What it did before it was started again does not count.
    assert_eq!(verdict(&up(0, 'a').since(5).active(600), &fields, None, now()), Verdict::Keep { next: Some(ago(-55)) });
    let suspend = spec("lifecycle: {max_idle: 60s, on_idle: suspend}");
    assert_eq!(verdict(&up(0, 'a').active(600), &suspend, None, now()), Verdict::Suspend { since: ago(600) });
}

#[test]
fn what_is_still_starting_is_not_idle() {
    let fields = spec("lifecycle: {max_idle: 60s}");
    let starting = || up(0, 'a').active(600).unready();
    assert_eq!(verdict(&starting(), &fields, None, now()), Verdict::Keep { next: None });
    let failing = up(0, 'a').active(600).never_healthy();
    assert_eq!(verdict(&failing, &fields, None, now()), Verdict::Idle { since: ago(600) });
    let aged = spec("lifecycle: {max_idle: 60s, max_lifetime: 60s}");
    assert_eq!(verdict(&starting().since(60), &aged, None, now()), Verdict::Recycle { since: ago(60) });
}

#[test]
fn idleness_wins_over_age_and_the_earlier_limit_is_looked_at() {
    let fields = spec("lifecycle: {max_idle: 60s, max_lifetime: 2h}");
    assert_eq!(verdict(&up(0, 'a').since(7200).active(60), &fields, None, now()), Verdict::Idle { since: ago(60) });
    assert_eq!(
        verdict(&up(0, 'a').since(7190).active(1), &fields, None, now()),
        Verdict::Keep { next: Some(ago(-10)) }
    );
}

#[test]
fn only_running_instances_are_judged_and_huge_limits_do_not_overflow() {
    let fields = spec("lifecycle: {max_lifetime: 1s}");
    for phase in [Phase::Pending, Phase::Created, Phase::Stopping, Phase::Paused { since: ago(60) }] {
        assert_eq!(verdict(&up(0, 'a').phase(phase), &fields, None, now()), Verdict::Keep { next: None });
    }
    let long = spec("lifecycle: {max_lifetime: 500000years}");
    assert!(matches!(verdict(&up(0, 'a'), &long, None, now()), Verdict::Keep { next: Some(_) }));
}

#[test]
fn expired_instances_are_recycled_within_the_bounds_and_never_all_at_once() {
    let fields = "lifecycle: {max_lifetime: 30m}\nrollout: {max_surge: 1, max_unavailable: 0}";
    web(3, fields)
        .with(all_up(0..3, 'a'))
        .expect("launch web/0 a1: reached its maximum age, started at 2026-01-01T11:00:00Z");
    web(3, fields).with(all_up(0..3, 'a')).with([up(0, 'a').attempt(1).since(60)]).expect(
        "retire web/0 a0: reached its maximum age, started at 2026-01-01T11:00:00Z
         look again at 2026-01-01T12:29:00Z",
    );
    let fields = "lifecycle: {max_lifetime: 30m}\nrollout: {strategy: recreate}";
    web(3, fields)
        .with(all_up(0..3, 'a'))
        .expect("retire web/0 a0: reached its maximum age, started at 2026-01-01T11:00:00Z");
}

#[test]
fn a_recycled_instance_keeps_count_of_restarts() {
    let fields = "lifecycle: {max_lifetime: 30m}";
    let old = up(0, 'a').attempt(2).restarted(2, 2);
    web(1, fields)
        .with([up(0, 'a').attempt(1).exited(1, 5, 4000), old])
        .expect("launch (restarts 2, streak 0) web/0 a3: reached its maximum age, started at 2026-01-01T11:00:00Z");
}

#[test]
fn terminate_stops_and_stays_down_until_the_template_changes() {
    let fields = "lifecycle: {max_lifetime: 30m, on_expiry: terminate}";
    web(2, fields).with([up(0, 'a'), up(1, 'a').since(60)]).expect(
        "halt web/0 a0: reached its maximum age, started at 2026-01-01T11:00:00Z
         look again at 2026-01-01T12:29:00Z",
    );
    let down =
        "keep demo/web/0 (aaaaaaaa, attempt 0) down: reached its maximum age, and lifecycle.on_expiry is terminate";
    web(1, fields).with([up(0, 'a').exited(143, 1800, 60).by(StopCause::Expired)]).expect(down);
    // A runtime that does not remember why it was stopped still knows for how long it ran.
    web(1, fields).with([up(0, 'a').exited(143, 1800, 60)]).expect(down);
    // While it is being stopped, nothing takes its place.
    web(1, fields)
        .with([up(0, 'a').phase(Phase::Stopping)])
        .expect("wait for the step under way for demo/web/0 (aaaaaaaa, attempt 0)");
    web(1, "").with([up(0, 'a').phase(Phase::Stopping)]).expect(
        "launch web/0 a1: missing, 1 replica wanted
         wait for the step under way for demo/web/0 (aaaaaaaa, attempt 0)",
    );
    Snapshot::declared()
        .service("web", 'b', 1, fields)
        .with([up(0, 'a').exited(143, 1800, 60).by(StopCause::Expired)])
        .expect("launch web/0 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)");
}

#[test]
fn an_idle_instance_stops_and_stays_down() {
    let fields = "lifecycle: {max_idle: 5m}";
    web(2, fields).with([up(0, 'a').active(300), up(1, 'a').active(100)]).expect(
        "halt web/0 a0: idle since 2026-01-01T11:55:00Z
         look again at 2026-01-01T12:03:20Z",
    );
    let idle = || up(0, 'a').exited(143, 1800, 60).by(StopCause::Idle);
    web(1, fields).with([idle()]).expect(IDLE);
    // Without the limit nothing keeps it down.
    web(1, "").with([idle()]).expect("launch web/0 a1: missing, 1 replica wanted");
}

#[test]
fn replicas_at_rest_do_not_hold_up_a_rollout() {
    let fields = "lifecycle: {max_idle: 5m}\nrollout: {max_surge: 1, max_unavailable: 0}";
    Snapshot::declared()
        .service("web", 'b', 3, fields)
        .with([up(0, 'b').exited(143, 60, 60).by(StopCause::Idle), up(1, 'a'), up(1, 'b'), up(2, 'a')])
        .expect(
            "retire web/1 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
             keep demo/web/0 (bbbbbbbb, attempt 0) down: idle since 2026-01-01T11:59:00Z; `keel start demo/web/0` wakes it",
        );
}

#[test]
fn a_hold_defers_idleness_and_recycling_and_no_termination() {
    let held = Some(ago(-30));
    let judge = |fields: &str, instance| verdict(&instance, &spec(fields), held, now());
    let idle = "lifecycle: {max_idle: 60s}";
    assert_eq!(judge(idle, up(0, 'a').active(600)), Verdict::Keep { next: Some(ago(-30)) });
    assert_eq!(judge(idle, up(0, 'a').active(1)), Verdict::Keep { next: Some(ago(-59)) }, "the limit lies beyond it");
    let recycle = "lifecycle: {max_lifetime: 60s}";
    assert_eq!(judge(recycle, up(0, 'a').since(60)), Verdict::Keep { next: Some(ago(-30)) });
    let terminate = "lifecycle: {max_idle: 60s, max_lifetime: 60s, on_expiry: terminate}";
    assert_eq!(judge(terminate, up(0, 'a').since(60).active(60)), Verdict::Terminate { since: ago(60) });
    // One that is over changes nothing.
    assert_eq!(verdict(&up(0, 'a').active(60), &spec(idle), Some(ago(1)), now()), Verdict::Idle { since: ago(60) });
    web(2, "lifecycle: {max_idle: 5m}").held(0, 30).with([up(0, 'a').active(400), up(1, 'a').active(400)]).expect(
        "halt web/1 a0: idle since 2026-01-01T11:53:20Z
         look again at 2026-01-01T12:00:30Z",
    );
}

#[test]
fn an_idle_instance_is_suspended_and_stays_so_until_it_is_used() {
    let fields = "lifecycle: {max_idle: 5m, on_idle: suspend}";
    web(1, fields).with([up(0, 'a').active(300)]).expect("suspend web/0 a0: idle since 2026-01-01T11:55:00Z");
    let frozen = || up(0, 'a').phase(Phase::Paused { since: ago(3600) });
    web(1, fields).with([frozen()]).suspended(&[frozen()]).expect(
        "keep demo/web/0 (aaaaaaaa, attempt 0) suspended: idle since 2026-01-01T11:59:00Z; `keel start demo/web/0` wakes it",
    );
    let used = web(1, fields).with([frozen()]).suspended(&[frozen()]).started(&[frozen()]);
    used.expect("resume web/0 a0: asked for");
    // What somebody else froze runs on, and so does what nothing keeps frozen any more.
    web(1, fields).with([frozen()]).expect(
        "resume web/0 a0: paused by somebody else
         wait for demo/web/0 (aaaaaaaa, attempt 0) to run on: paused by somebody else",
    );
    web(1, "").with([frozen()]).suspended(&[frozen()]).expect("resume web/0 a0: paused by somebody else");
}

#[test]
fn a_suspended_instance_reaches_its_age_where_that_ends_it_for_good() {
    let frozen = || up(0, 'a').phase(Phase::Paused { since: ago(3600) });
    let of = |fields: &str| web(1, fields).with([frozen()]).suspended(&[frozen()]);
    of("lifecycle: {max_idle: 5m, on_idle: suspend, max_lifetime: 1h, on_expiry: terminate}")
        .expect("halt web/0 a0: reached its maximum age, started at 2026-01-01T11:00:00Z");
    // It serves nobody, so that nothing has to take its place before it runs again.
    of("lifecycle: {max_idle: 5m, on_idle: suspend, max_lifetime: 30m}").expect(
        "keep demo/web/0 (aaaaaaaa, attempt 0) suspended: idle since 2026-01-01T11:59:00Z; `keel start demo/web/0` wakes it",
    );
}

#[test]
fn what_is_down_is_brought_back_once_somebody_asks_for_it() {
    let down = |cause| up(0, 'a').exited(143, 1800, 60).by(cause);
    for (fields, instance) in [
        ("lifecycle: {max_idle: 5m}", down(StopCause::Idle)),
        ("lifecycle: {max_lifetime: 30m, on_expiry: terminate}", down(StopCause::Expired)),
        ("restart_policy: {kind: 'no'}", up(0, 'a').exited(1, 1800, 60)),
        ("errors: {on_panic: {action: isolate}}", up(0, 'a').exited(1, 1800, 60)),
        ("errors: {on_panic: {action: shutdown}}", up(0, 'a').exited(1, 1800, 60)),
        ("restart_policy: {delay: 1h}", up(0, 'a').exited(1, 1, 1).restarted(3, 3)),
    ] {
        let restarts = instance.restarts;
        let again = if restarts == 0 { String::new() } else { format!(" (restarts {restarts}, streak 0)") };
        let asked = web(1, fields).with([instance.clone()]).started(&[instance]);
        assert_eq!(asked.planned(), format!("launch{again} web/0 a1: asked for"), "{fields}");
    }
    // A later end is another one.
    let earlier = up(0, 'a').exited(143, 60, 600).by(StopCause::Idle);
    let later = up(0, 'a').attempt(1).exited(143, 60, 60).by(StopCause::Idle);
    web(1, "lifecycle: {max_idle: 5m}").with([earlier.clone(), later]).started(&[earlier]).expect(
        "keep demo/web/0 (aaaaaaaa, attempt 1) down: idle since 2026-01-01T11:59:00Z; `keel start demo/web/0` wakes it",
    );
}

#[test]
fn what_is_stopped_by_hand_stays_down_until_its_template_changes() {
    let halt = "halt web/0 a0: stopped with keel stop";
    web(1, "").stopped('a', &[]).with([up(0, 'a')]).expect(halt);
    web(1, "").stopped('a', &[]).with([up(0, 'a').phase(Phase::Paused { since: ago(60) })]).expect(halt);
    let down = || up(0, 'a').exited(143, 60, 60).by(StopCause::Asked);
    let kept = "keep demo/web/0 (aaaaaaaa, attempt 0) down: stopped; `keel start demo/web/0` starts it";
    web(1, "").stopped('a', &[]).with([down()]).expect(kept);
    web(1, "").stopped('a', &[]).expect(kept);
    // A crash on the way down is none that anybody answers.
    web(1, "").stopped('a', &[]).with([up(0, 'a').exited(1, 60, 60)]).expect(kept);
    web(1, "").with([down()]).expect("launch web/0 a1: missing, 1 replica wanted");
    web(2, "").stopped('a', &[1]).with([up(0, 'a'), up(1, 'a')]).expect("halt web/1 a0: stopped with keel stop");
    let changed = Snapshot::declared().service("web", 'b', 1, "").stopped('a', &[]).with([down()]);
    changed.expect("launch web/0 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)");
}

#[test]
fn a_longer_lifetime_lets_the_same_instance_live_on() {
    let aged = |limit: &str| web(1, &format!("lifecycle: {{max_lifetime: {limit}}}")).with([up(0, 'a')]);
    aged("1h").expect("launch web/0 a1: reached its maximum age, started at 2026-01-01T11:00:00Z");
    aged("2h").expect("look again at 2026-01-01T13:00:00Z");
}

#[test]
fn what_is_frozen_for_idleness_goes_in_a_rollout_as_what_serves_does() {
    let frozen = |slot| up(slot, 'a').phase(Phase::Paused { since: ago(3600) });
    let of = |rollout: &str, observed: Vec<Instance>| {
        let fields = format!("lifecycle: {{max_idle: 5m, on_idle: suspend}}\nrollout: {{{rollout}}}");
        Snapshot::declared().service("web", 'b', 2, &fields).with(observed).suspended(&[frozen(0), frozen(1)])
    };
    let changed = "template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)";
    let surge = "max_surge: 1, max_unavailable: 0";
    of(surge, vec![frozen(0), frozen(1)]).expect(&format!("launch web/0 b0: {changed}"));
    // What is to take its place is there, and another time it is not.
    of(surge, vec![frozen(0), up(0, 'b'), frozen(1)]).expect(&format!("retire web/0 a0: {changed}"));
    let young = up(0, 'b').unready();
    of(surge, vec![frozen(0), young.clone(), frozen(1)])
        .expect("wait for demo/web/0 (bbbbbbbb, attempt 0) to become ready");
    // Within the budget, as what serves.
    let one_less = "max_surge: 0, max_unavailable: 1";
    of(one_less, vec![frozen(0), frozen(1)]).expect(&format!("retire web/0 a0: {changed}"));
    of(one_less, vec![frozen(0), up(1, 'a')]).expect(&format!("retire web/0 a0: {changed}"));
    of(one_less, vec![frozen(1), up(0, 'b').unready()])
        .expect("wait for demo/web/0 (bbbbbbbb, attempt 0) to become ready");
    // A bad template takes none.
    let crashed = up(0, 'b').attempt(1).restarted(1, 1).exited(1, 5, 1);
    let plan = of("max_surge: 1, max_unavailable: 1", vec![frozen(0), crashed, frozen(1)]).planned();
    assert!(!plan.contains("retire"), "{plan}");
    // Whoever uses it has it run on, though its successor may never come.
    of(surge, vec![frozen(0), young, frozen(1)]).started(&[frozen(1)]).expect(
        "resume web/1 a0: asked for
         wait for demo/web/0 (bbbbbbbb, attempt 0) to become ready",
    );
}
