//! What is expected to follow from a snapshot, to its end, and how it reads.

use evenkeel::plan::{End, FORECAST_LOOKS, FORECAST_PLANS, Stage, Wait};
use evenkeel::spec::RuntimeKind;
use evenkeel::state::{Fate, Phase};

use super::dsl::{Change, Snapshot, ago, all_up, up};

fn web(letter: char, replicas: u32, fields: &str) -> Snapshot {
    Snapshot::declared().service("web", letter, replicas, fields)
}

const CHECKED: &str = "health: {check: {type: tcp, port: 80}}\n";
const ONE_BY_ONE: &str = "rollout: {max_surge: 1, max_unavailable: 0}\n";

#[test]
fn a_rolling_update_is_told_to_its_end() {
    web('b', 3, "").with(all_up(0..3, 'a')).expect_course(
        "1. create and start demo/web/0 (bbbbbbbb, attempt 0) on docker from image docker.io/library/nginx:latest: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
            wait for demo/web/0 (bbbbbbbb, attempt 0) to stay ready for 1s
         2. stop and remove demo/web/0 (aaaaaaaa, attempt 0) on docker (SIGTERM, 30s grace): template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
         3. create and start demo/web/1 (bbbbbbbb, attempt 0) on docker from image docker.io/library/nginx:latest: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
            wait for demo/web/1 (bbbbbbbb, attempt 0) to stay ready for 1s
         4. stop and remove demo/web/1 (aaaaaaaa, attempt 0) on docker (SIGTERM, 30s grace): template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
         5. create and start demo/web/2 (bbbbbbbb, attempt 0) on docker from image docker.io/library/nginx:latest: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
            wait for demo/web/2 (bbbbbbbb, attempt 0) to stay ready for 1s
         6. stop and remove demo/web/2 (aaaaaaaa, attempt 0) on docker (SIGTERM, 30s grace): template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)",
    );
}

#[test]
fn waits_for_readiness_and_min_ready_are_marked() {
    let rollout = "rollout: {max_surge: 1, max_unavailable: 0, min_ready: 90s}\n";
    web('b', 1, &format!("{CHECKED}{rollout}")).with(all_up(0..1, 'a')).expect_course(
        "1. create and start demo/web/0 (bbbbbbbb, attempt 0) on docker from image docker.io/library/nginx:latest: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
            wait for demo/web/0 (bbbbbbbb, attempt 0) to become ready
            wait for demo/web/0 (bbbbbbbb, attempt 0) to stay ready for 1m30s
         2. stop and remove demo/web/0 (aaaaaaaa, attempt 0) on docker (SIGTERM, 30s grace): template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)",
    );
}

#[test]
fn recreate_ends_all_before_it_starts_any() {
    web('b', 3, "rollout: {strategy: recreate}\nstop_grace_period: 5s\n").with(all_up(0..3, 'a')).expect_course(
        "1. stop and remove demo/web/0-2 (3 instances, aaaaaaaa, attempt 0) on docker (SIGTERM, 5s grace): template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
         2. create and start demo/web/0-2 (3 instances, bbbbbbbb, attempt 0) on docker from image docker.io/library/nginx:latest: missing, 3 replicas wanted",
    );
}

#[test]
fn a_hundred_replicas_that_are_replaced_one_by_one_take_a_few_lines() {
    web('b', 100, &format!("{CHECKED}{ONE_BY_ONE}")).with(all_up(0..100, 'a')).expect_course(
        "1. create and start demo/web/0 (bbbbbbbb, attempt 0) on docker from image docker.io/library/nginx:latest: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
            wait for demo/web/0 (bbbbbbbb, attempt 0) to become ready
         2. stop and remove demo/web/0 (aaaaaaaa, attempt 0) on docker (SIGTERM, 30s grace): template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
         3-200. the same for demo/web/1-99, in 99 turns",
    );
}

#[test]
fn a_hundred_replicas_that_are_replaced_in_groups_take_a_few_lines() {
    let old = all_up(0..100, 'a').map(|one| if one.id.slot == 7 { one.attempt(3) } else { one });
    web('b', 100, "").with(old).expect_course(
        "1. stop and remove demo/web/0-24 (25 instances, aaaaaaaa) on docker (SIGTERM, 30s grace): template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
            create and start demo/web/0-24 (25 instances, bbbbbbbb, attempt 0) on docker from image docker.io/library/nginx:latest: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
         2. create and start demo/web/25-49 (25 instances, bbbbbbbb, attempt 0) on docker from image docker.io/library/nginx:latest: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
            wait for demo/web/0-49 (50 instances, bbbbbbbb, attempt 0) to stay ready for 1s
         3. stop and remove demo/web/25-74 (50 instances, aaaaaaaa, attempt 0) on docker (SIGTERM, 30s grace): template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
         4. create and start demo/web/50-74 (25 instances, bbbbbbbb, attempt 0) on docker from image docker.io/library/nginx:latest: missing, 100 replicas wanted
            create and start demo/web/75-99 (25 instances, bbbbbbbb, attempt 0) on docker from image docker.io/library/nginx:latest: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
            wait for demo/web/50-99 (50 instances, bbbbbbbb, attempt 0) to stay ready for 1s
         5. stop and remove demo/web/75-99 (25 instances, aaaaaaaa, attempt 0) on docker (SIGTERM, 30s grace): template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)",
    );
    web('a', 100, "").expect_course(
        "1. create and start demo/web/0-99 (100 instances, aaaaaaaa, attempt 0) on docker from image docker.io/library/nginx:latest: missing, 100 replicas wanted",
    );
}

#[test]
fn every_step_is_there_however_it_is_told() {
    let forecast = web('b', 100, ONE_BY_ONE).with(all_up(0..100, 'a')).forecast();
    let steps: Vec<String> = forecast.steps().map(ToString::to_string).collect();
    assert_eq!(steps.len(), 500);
    assert_eq!(
        steps[4],
        "remove demo/web/0 (aaaaaaaa, attempt 0) on docker: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)"
    );
    assert_eq!(forecast.end, End::Rest { waits: Vec::new() });
}

#[test]
fn a_forecast_as_json_has_stages_with_their_times_and_an_end() {
    let rollout = "rollout: {max_surge: 1, max_unavailable: 0, min_ready: 90s}\n";
    let forecast = web('b', 1, rollout).with(all_up(0..1, 'a')).forecast();
    let json = serde_json::to_value(forecast).expect("JSON");
    let stages = json["stages"].as_array().expect("an array");
    let kinds: Vec<(&str, &str)> = stages
        .iter()
        .map(|stage| (stage["stage"].as_str().expect("a kind"), stage["at"].as_str().expect("a time")))
        .collect();
    assert_eq!(
        kinds,
        [("act", "2026-01-01T12:00:00Z"), ("wait", "2026-01-01T12:00:00Z"), ("act", "2026-01-01T12:01:30Z")]
    );
    assert_eq!(stages[1]["waits"][0]["wait"], "not_ready");
    assert_eq!(stages[2]["lanes"][0]["steps"][1]["action"]["action"], "remove");
    assert_eq!(json["end"], serde_json::json!({"end": "rest", "waits": []}));
}

#[test]
fn instances_that_back_off_come_back_one_after_the_other() {
    let crashed = |slot, seconds| up(slot, 'a').restarted(1, 1).exited(1, 5, seconds);
    web('a', 2, "").with([crashed(0, 1), crashed(1, 5)]).expect_course(
        "1. wait to restart demo/web/1 (aaaaaaaa, attempt 0) for 6s: exited 1
         2. create and start demo/web/1 (aaaaaaaa, attempt 1) on docker from image docker.io/library/nginx:latest: exited 1, restart 2 in a row
            wait to restart demo/web/0 (aaaaaaaa, attempt 0) for 4s: exited 1
         3. create and start demo/web/0 (aaaaaaaa, attempt 1) on docker from image docker.io/library/nginx:latest: exited 1, restart 2 in a row",
    );
}

#[test]
fn a_failed_call_is_waited_for_and_tried_again() {
    web('a', 1, "").failed(0, 'a', 2, 1, true).expect_course(
        "1. wait to try demo/web/0 (aaaaaaaa, attempt 0) again for 2s: failed 2 times in a row: no space left
         2. create and start demo/web/0 (aaaaaaaa, attempt 0) on docker from image docker.io/library/nginx:latest: missing, 1 replica wanted",
    );
}

#[test]
fn what_stays_down_is_told_after_the_steps() {
    let down = up(0, 'a').exited(0, 5, 100);
    web('a', 2, "restart_policy: {kind: on_failure}\n").with([down]).expect_course(
        "1. create and start demo/web/1 (aaaaaaaa, attempt 0) on docker from image docker.io/library/nginx:latest: missing, 2 replicas wanted
         keep demo/web/0 (aaaaaaaa, attempt 0) down: exited 0, and restart_policy starts no other",
    );
}

#[test]
fn steps_under_way_end_before_anything_follows_from_them() {
    web('b', 2, "rollout: {max_surge: 0, max_unavailable: 1}\n")
        .with([up(0, 'a').phase(Phase::Stopping), up(1, 'a')])
        .expect_course(
            "1. wait for the step under way for demo/web/0 (aaaaaaaa, attempt 0)
             2. create and start demo/web/0 (bbbbbbbb, attempt 0) on docker from image docker.io/library/nginx:latest: missing, 2 replicas wanted
                wait for demo/web/0 (bbbbbbbb, attempt 0) to stay ready for 1s
             3. stop and remove demo/web/1 (aaaaaaaa, attempt 0) on docker (SIGTERM, 30s grace): template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
             4. create and start demo/web/1 (bbbbbbbb, attempt 0) on docker from image docker.io/library/nginx:latest: missing, 2 replicas wanted",
        );
    web('a', 1, "")
        .with([up(0, 'a').phase(Phase::Pending)])
        .expect_course("1. wait for the step under way for demo/web/0 (aaaaaaaa, attempt 0)");
}

#[test]
fn a_removed_deployment_goes_with_what_it_shared() {
    Snapshot::undeclared(Fate::Removed).sharing(RuntimeKind::Docker).with(all_up(0..2, 'a')).expect_course(
        "1. stop and remove demo/web/0-1 (2 instances, aaaaaaaa, attempt 0) on docker (SIGTERM, 30s grace): deployment is not declared any more
         2. tear down demo on docker keeping its volumes: deployment is not declared any more",
    );
}

#[test]
fn orphans_settle_before_they_go() {
    let old = |one: evenkeel::state::Instance| one.since(3600);
    Snapshot::undeclared(Fate::Orphaned).sharing(RuntimeKind::Docker).with(all_up(0..2, 'a').map(old)).expect_course(
        "1. wait for 1m to remove demo/web/0-1 (2 instances, aaaaaaaa, attempt 0): declared nowhere
         2. stop and remove demo/web/0-1 (2 instances, aaaaaaaa, attempt 0) on docker (SIGTERM, 30s grace): orphan, declared nowhere
         3. tear down demo on docker keeping its volumes: orphan, declared nowhere since 2026-01-01T12:00:00Z",
    );
}

#[test]
fn what_is_as_declared_has_no_course() {
    web('a', 3, "lifecycle: {max_lifetime: 2h}\n").with(all_up(0..3, 'a')).expect_course("");
    Snapshot::undeclared(Fate::Kept)
        .with([up(0, 'a')])
        .expect_course("keep everything: not declared any more, and not to be pruned");
}

#[test]
fn instances_that_grew_old_share_a_line_whenever_they_started() {
    let old = all_up(0..2, 'a').map(|one| {
        let slot = i64::from(one.id.slot);
        one.since(9000 + slot)
    });
    web('a', 2, "lifecycle: {max_lifetime: 2h}\nrollout: {max_surge: 2}\n").with(old).expect_course(
        "1. create and start demo/web/0-1 (2 instances, aaaaaaaa, attempt 1) on docker from image docker.io/library/nginx:latest: reached its maximum age
         2. stop and remove demo/web/0-1 (2 instances, aaaaaaaa, attempt 0) on docker (SIGTERM, 30s grace): reached its maximum age",
    );
}

#[test]
fn what_never_comes_to_rest_is_cut_off_and_said_so() {
    let fields = "lifecycle: {max_lifetime: 10s}\nrollout: {max_surge: 1, max_unavailable: 0, min_ready: 30s}\n";
    let snapshot = web('b', 1, fields).with([up(0, 'a').phase(Phase::Running { since: ago(5), ready: true })]);
    let forecast = snapshot.forecast();
    assert_eq!(forecast.end, End::Beyond);
    assert!(forecast.stages.len() <= FORECAST_PLANS);
    let lines = forecast.lines();
    assert!(lines.len() <= 202, "{}", lines.len());
    assert_eq!(
        lines.last().map(String::as_str),
        Some("... and so on; this is as far as a forecast goes"),
        "{lines:#?}"
    );
}

#[test]
fn a_rollout_of_thousands_is_told_as_far_as_the_bound_allows() {
    let snapshot = web('b', 5_000, ONE_BY_ONE).with(all_up(0..5_000, 'a'));
    let forecast = snapshot.forecast();
    assert_eq!(forecast.end, End::Beyond);
    assert!(forecast.stages.len() <= FORECAST_LOOKS / 5_000, "{}", forecast.stages.len());
    assert_eq!(forecast.lines().len(), 6, "{:#?}", forecast.lines());
}

#[test]
fn time_passes_from_stage_to_stage() {
    let rollout = "rollout: {max_surge: 1, max_unavailable: 0, min_ready: 30s}\n";
    let forecast = web('b', 2, rollout).with(all_up(0..2, 'a')).forecast();
    let until: Vec<String> = forecast
        .stages
        .iter()
        .filter_map(|stage| match stage {
            Stage::Wait { waits, .. } => waits.iter().find_map(Wait::until).map(|until| until.time().to_string()),
            Stage::Act { .. } => None,
        })
        .collect();
    assert_eq!(until, ["12:00:30", "12:01:00"]);
}
