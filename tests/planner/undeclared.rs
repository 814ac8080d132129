//! Deployments and services that nothing declares.

use evenkeel::plan::{ORPHANS_AT_ONCE, RetireCall, RetireFailure, Retired, sightings};
use evenkeel::spec::RuntimeKind;
use evenkeel::state::{Fate, Phase, Volumes};

use super::dsl::{Change, Snapshot, ago, all_up, up};

#[test]
fn a_removed_deployment_is_retired_at_once_and_then_torn_down() {
    let removed = Snapshot::undeclared(Fate::Removed).sharing(RuntimeKind::Docker);
    removed.clone().with([up(0, 'a'), up(1, 'a').exited(1, 5, 60), up(2, 'a').phase(Phase::Pending)]).expect(
        "retire web/0 a0: deployment is not declared any more
         remove web/1 a0: deployment is not declared any more
         wait for the step under way for demo/web/2 (aaaaaaaa, attempt 0)",
    );
    removed.clone().expect("tear down demo on docker keeping its volumes: deployment is not declared any more");
    let with_volumes = Snapshot { volumes: Volumes::Remove, ..removed };
    with_volumes.expect("tear down demo on docker and remove its volumes: deployment is not declared any more");
    Snapshot::undeclared(Fate::Removed).expect("");
}

#[test]
fn each_runtime_is_torn_down_when_it_is_empty() {
    Snapshot::undeclared(Fate::Removed)
        .sharing(RuntimeKind::Docker)
        .sharing(RuntimeKind::Sandbox)
        .with([up(0, 'a').on(RuntimeKind::Sandbox)])
        .expect(
            "retire web/0 a0 on sandbox: deployment is not declared any more
             tear down demo on docker keeping its volumes: deployment is not declared any more",
        );
}

#[test]
fn a_kept_deployment_is_left_alone() {
    Snapshot::undeclared(Fate::Kept)
        .sharing(RuntimeKind::Docker)
        .with(all_up(0..2, 'a'))
        .expect("keep everything: not declared any more, and not to be pruned");
}

#[test]
fn a_service_that_is_gone_is_retired_at_once() {
    Snapshot::declared()
        .service("web", 'a', 1, "")
        .with([up(0, 'a'), up(0, 'a').of("old"), up(1, 'a').of("old")])
        .expect(
            "retire old/0 a0: service is not declared any more
         retire old/1 a0: service is not declared any more",
        );
}

#[test]
fn instances_of_another_deployment_are_not_touched() {
    let foreign = up(0, 'a').change(|instance| instance.id.deployment = "other".into());
    Snapshot::undeclared(Fate::Removed).with([foreign.clone()]).expect("");
    Snapshot::declared()
        .service("web", 'a', 1, "")
        .with([foreign])
        .expect("launch web/0 a0: missing, 1 replica wanted");
}

fn orphaned(seen_ago: Option<i64>) -> Snapshot {
    let mut snapshot = Snapshot::undeclared(Fate::Orphaned);
    if let Some(seen) = seen_ago {
        for slot in 0..100 {
            snapshot.history.orphans.insert(up(slot, 'a').runtime_id, ago(seen));
        }
        snapshot.history.orphans.insert("docker/demo".into(), ago(seen));
    }
    snapshot
}

#[test]
fn an_orphan_is_removed_after_two_sightings_a_minute_apart() {
    orphaned(None).with([up(0, 'a')]).expect(
        "wait until 2026-01-01T12:01:00Z to remove demo/web/0 (aaaaaaaa, attempt 0): declared nowhere
         look again at 2026-01-01T12:01:00Z",
    );
    orphaned(Some(59)).with([up(0, 'a')]).expect(
        "wait until 2026-01-01T12:00:01Z to remove demo/web/0 (aaaaaaaa, attempt 0): declared nowhere
         look again at 2026-01-01T12:00:01Z",
    );
    orphaned(Some(60))
        .with([up(0, 'a')])
        .expect("retire web/0 a0: orphan, declared nowhere since 2026-01-01T11:59:00Z");
}

#[test]
fn an_orphan_that_was_just_created_is_given_time() {
    orphaned(Some(300)).with([up(0, 'a').since(20)]).expect(
        "wait until 2026-01-01T12:00:40Z to remove demo/web/0 (aaaaaaaa, attempt 0): declared nowhere
         look again at 2026-01-01T12:00:40Z",
    );
}

#[test]
fn orphans_are_reaped_a_few_at_a_time() {
    let plan = orphaned(Some(300)).with(all_up(0..13, 'a')).plan();
    assert_eq!((plan.lanes.len(), plan.waits.len()), (ORPHANS_AT_ONCE, 3));
    assert_eq!(plan.next_look, Some(ago(-10)));
    let stopping = all_up(0..9, 'a').map(|instance| instance.phase(Phase::Stopping));
    let plan = orphaned(Some(300)).with(stopping).with(all_up(9..13, 'a')).plan();
    assert_eq!(plan.lanes.len(), 1);
    let mut others_too = orphaned(Some(300)).with(all_up(0..13, 'a'));
    others_too.history.reaped_elsewhere = ORPHANS_AT_ONCE - 2;
    let plan = others_too.plan();
    assert_eq!((plan.lanes.len(), plan.waits.len()), (2, 11));
}

#[test]
fn what_orphans_shared_goes_after_the_same_time_and_volumes_stay() {
    let shared = |seen| Snapshot { volumes: Volumes::Remove, ..orphaned(seen).sharing(RuntimeKind::Docker) };
    shared(None).expect("look again at 2026-01-01T12:01:00Z");
    shared(Some(60))
        .expect("tear down demo on docker keeping its volumes: orphan, declared nowhere since 2026-01-01T11:59:00Z");
}

#[test]
fn sightings_name_the_instances_and_what_they_share() {
    let snapshot = orphaned(None).sharing(RuntimeKind::Docker).with([up(0, 'a')]);
    assert_eq!(sightings(&snapshot.input(&snapshot.observed)), ["demo_web_0_aaaaaaaa_0", "docker/demo"]);
    let removed = Snapshot { desired: Err(Fate::Removed), ..snapshot };
    assert!(sightings(&removed.input(&removed.observed)).is_empty());
}

fn remove_failed(count: u32, seconds_ago: i64) -> RetireFailure {
    RetireFailure { count, at: ago(seconds_ago), call: RetireCall::Remove, message: "it is in use".into() }
}

#[test]
fn a_teardown_that_failed_is_told_and_tried_again_when_it_is_due() {
    let mut removed = Snapshot::undeclared(Fate::Removed).sharing(RuntimeKind::Docker);
    let shared = Retired::Shared { runtime: RuntimeKind::Docker };
    removed.history.retiring.insert(shared.clone(), remove_failed(4, 0));
    removed.clone().expect(
        "wait to remove what demo shares on docker until 2026-01-01T12:00:08Z: failed 4 times in a row: it is in use
         look again at 2026-01-01T12:00:08Z",
    );
    removed.history.retiring.insert(shared, remove_failed(1, 2));
    removed.clone().expect(
        "tear down demo on docker keeping its volumes: deployment is not declared any more
         wait to remove what demo shares on docker until 2026-01-01T11:59:59Z: failed once: it is in use",
    );
    // It is being made.
    removed.shared.clear();
    removed.expect("wait to remove what demo shares on docker until 2026-01-01T11:59:59Z: failed once: it is in use");
}

#[test]
fn an_instance_whose_removal_failed_is_left_alone_until_it_is_due_and_told_while_it_goes() {
    let mut snapshot = Snapshot::declared().service("web", 'b', 1, "").with([up(0, 'b'), up(0, 'a')]);
    let old = Retired::Instance { runtime: RuntimeKind::Docker, id: up(0, 'a').id };
    snapshot.history.retiring.insert(old, remove_failed(3, 1));
    snapshot.clone().expect(
        "wait to remove demo/web/0 (aaaaaaaa, attempt 0) until 2026-01-01T12:00:03Z: failed 3 times in a row: it is in use
         look again at 2026-01-01T12:00:03Z",
    );
    // That it could not be frozen holds back no stop.
    let mut frozen = snapshot.clone();
    frozen.history.retiring.values_mut().for_each(|failure| failure.call = RetireCall::Suspend);
    frozen.expect("retire web/0 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)");
    // What is declared again goes nowhere.
    let mut back = snapshot.clone();
    back = Snapshot { history: back.history.clone(), ..Snapshot::declared().service("web", 'a', 1, "") };
    back.with([up(0, 'a')]).expect("");
    snapshot.observed[1].phase = Phase::Stopping;
    snapshot.expect(
        "wait for the step under way for demo/web/0 (aaaaaaaa, attempt 0)
         wait to remove demo/web/0 (aaaaaaaa, attempt 0) until 2026-01-01T12:00:03Z: failed 3 times in a row: it is in use",
    );
}
