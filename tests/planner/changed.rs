//! Instances that somebody else changed.

use evenkeel::plan::{MemberUse, Verdict, verdict};
use evenkeel::spec::RuntimeKind;
use evenkeel::state::{Condition, Instance, Phase, RunId};

use super::dsl::{Change, Snapshot, ago, all_up, now, spec, up};

const WHAT: &str = "memory is 256Mi, not 64Mi";

/// The instance, after somebody changed it.
fn changed(instance: Instance) -> Instance {
    instance.change(|one| one.conditions.push(Condition::changed_by_others(WHAT)))
}

fn web(replicas: u32, fields: &str) -> Snapshot {
    Snapshot::declared().service("web", 'a', replicas, fields)
}

#[test]
fn changed_instances_are_replaced_within_the_bounds_and_never_all_at_once() {
    let all = || all_up(0..3, 'a').map(changed);
    let fields = "rollout: {max_surge: 1, max_unavailable: 0}";
    web(3, fields).with(all()).expect("launch web/0 a1: changed by somebody else: memory is 256Mi, not 64Mi");
    web(3, fields)
        .with(all())
        .with([up(0, 'a').attempt(1).since(60)])
        .expect("retire web/0 a0: changed by somebody else: memory is 256Mi, not 64Mi");
    web(3, fields)
        .with(all())
        .with([up(0, 'a').attempt(1).unready()])
        .expect("wait for demo/web/0 (aaaaaaaa, attempt 1) to become ready");
    web(1, fields)
        .with([changed(up(0, 'a').attempt(2).restarted(2, 2))])
        .expect("launch (restarts 2, streak 0) web/0 a3: changed by somebody else: memory is 256Mi, not 64Mi");
    web(3, "rollout: {strategy: recreate}")
        .with(all())
        .expect("retire web/0 a0: changed by somebody else: memory is 256Mi, not 64Mi");
    web(3, fields).with(all()).with(all_up(0..3, 'a').map(|one| one.attempt(1))).expect(
        "retire web/0 a0: changed by somebody else: memory is 256Mi, not 64Mi
         retire web/1 a0: changed by somebody else: memory is 256Mi, not 64Mi
         retire web/2 a0: changed by somebody else: memory is 256Mi, not 64Mi",
    );
}

#[test]
fn the_verdict_waits_for_a_hold_and_for_what_is_frozen_to_run_again() {
    let judge = |fields: &str, instance: Instance, held| verdict(&changed(instance), &spec(fields), held, now());
    assert_eq!(judge("", up(0, 'a'), None), Verdict::Changed);
    assert_eq!(judge("", up(0, 'a').phase(Phase::Created), None), Verdict::Changed);
    assert_eq!(judge("", up(0, 'a'), Some(ago(1))), Verdict::Changed, "the hold is over");
    assert_eq!(judge("", up(0, 'a'), Some(ago(-30))), Verdict::Keep { next: Some(ago(-30)) });
    for phase in [Phase::Pending, Phase::Stopping, Phase::Paused { since: ago(60) }] {
        assert_eq!(judge("", up(0, 'a').phase(phase), None), Verdict::Keep { next: None });
    }
    let aged = "lifecycle: {max_lifetime: 60s, on_expiry: terminate}";
    assert_eq!(judge(aged, up(0, 'a').since(60), None), Verdict::Terminate { since: ago(60) });
}

#[test]
fn one_that_was_not_started_yet_is_made_anew_and_one_that_is_to_stay_down_is_not() {
    web(1, "rollout: {max_surge: 0, max_unavailable: 1}")
        .with([changed(up(0, 'a').phase(Phase::Created))])
        .expect("remove web/0 a0: changed by somebody else: memory is 256Mi, not 64Mi");
    web(1, "").stopped('a', &[]).with([changed(up(0, 'a'))]).expect(
        "retire web/0 a0: changed by somebody else: memory is 256Mi, not 64Mi
         keep demo/web/0 (aaaaaaaa, attempt 0) down: stopped; `keel start demo/web/0` starts it",
    );
}

#[test]
fn runs_of_jobs_and_members_that_somebody_has_go_on() {
    let run = RunId::after(None, ago(3600));
    let job = Snapshot::declared().service("web", 'a', 1, "rtype: job");
    let at_work = job.clone().with([up(0, 'a').of_run(run)]);
    assert_eq!(job.with([changed(up(0, 'a').of_run(run))]).planned(), at_work.planned());
    let pool = |member: Instance, used: Option<MemberUse>| {
        let mut snapshot = web(1, "pool: {min_warm: 1, max_warm: 4, max_total: 6, warm_ttl: 2h}").with([member]);
        let members = &mut snapshot.history.pools.entry("web".into()).or_default().members;
        let key = (RuntimeKind::Docker, up(0, 'a').runtime_id);
        members.extend(used.map(|used| (key, used)));
        snapshot.planned()
    };
    let claimed = Some(MemberUse::Claimed);
    assert_eq!(pool(changed(up(0, 'a')), claimed), pool(up(0, 'a'), claimed));
    let free = pool(changed(up(0, 'a')), None);
    assert!(free.starts_with("retire web/0 a0: changed by somebody else: memory is 256Mi, not 64Mi\n"), "{free}");
}
