//! What a plan says in full: exact steps, texts, and order.

use std::time::Duration;

use evenkeel::plan::{Action, Plan};
use evenkeel::spec::Signal;
use evenkeel::state::{Phase, StopCause, StopRequest};

use super::dsl::{Change, Snapshot, up};

#[test]
fn every_step_of_a_launch_prints_on_its_own_line() {
    let plan = Snapshot::declared().service("web", 'a', 1, "").plan();
    assert_eq!(
        plan.to_string(),
        "get image docker.io/library/nginx:latest for demo/web/0 (aaaaaaaa, attempt 0) on docker: missing, 1 replica wanted\n\
         create demo/web/0 (aaaaaaaa, attempt 0) on docker: missing, 1 replica wanted\n\
         start demo/web/0 (aaaaaaaa, attempt 0) on docker: missing, 1 replica wanted"
    );
}

#[test]
fn a_retirement_carries_the_signal_and_grace_of_the_service() {
    let snapshot =
        Snapshot::declared().service("web", 'a', 0, "stop_signal: INT\nstop_grace_period: 5s").with([up(0, 'a')]);
    let plan = snapshot.plan();
    assert_eq!(
        plan.to_string(),
        "stop demo/web/0 (aaaaaaaa, attempt 0) on docker (SIGINT, 5s grace): scaled down to 0 replicas\n\
         remove demo/web/0 (aaaaaaaa, attempt 0) on docker: scaled down to 0 replicas"
    );
    let stop = StopRequest {
        signal: "INT".parse::<Signal>().expect("a signal"),
        grace: Duration::from_secs(5),
        cause: StopCause::Retired,
    };
    let expected = Action::Stop { instance: up(0, 'a').as_ref(), stop };
    assert_eq!(plan.lanes[0].steps[0].action, expected);
}

#[test]
fn a_service_that_is_gone_is_stopped_with_term_and_thirty_seconds() {
    let plan = Snapshot::declared().with([up(0, 'a')]).plan();
    assert_eq!(
        plan.to_string(),
        "stop demo/web/0 (aaaaaaaa, attempt 0) on docker (SIGTERM, 30s grace): service is not declared any more\n\
         remove demo/web/0 (aaaaaaaa, attempt 0) on docker: service is not declared any more"
    );
}

#[test]
fn nothing_to_do_says_so() {
    let plan = Snapshot::declared().service("web", 'a', 1, "").with([up(0, 'a')]).plan();
    assert_eq!(plan, Plan::default());
    assert_eq!(plan.to_string(), "nothing to do");
}

#[test]
fn lanes_are_sorted_by_service_slot_and_revision() {
    Snapshot::declared()
        .service("web", 'b', 2, "rollout: {max_surge: 2, max_unavailable: 1}")
        .service("api", 'a', 1, "")
        .with([up(1, 'a'), up(0, 'a')])
        .expect(
            "launch api/0 a0: missing, 1 replica wanted
             retire web/0 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
             launch web/0 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
             launch web/1 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)",
        );
}

#[test]
fn instances_with_a_step_under_way_are_left_alone() {
    Snapshot::declared()
        .service("web", 'a', 2, "")
        .with([up(0, 'a').phase(Phase::Pending), up(1, 'a').phase(Phase::Stopping), up(2, 'a').phase(Phase::Pending)])
        .expect(
            "wait for the step under way for demo/web/0 (aaaaaaaa, attempt 0)
             wait for the step under way for demo/web/1 (aaaaaaaa, attempt 0)
             wait for the step under way for demo/web/2 (aaaaaaaa, attempt 0)",
        );
}

#[test]
fn a_plan_serialises_with_its_causes() {
    let plan = Snapshot::declared().service("web", 'a', 1, "").with([up(0, 'a').phase(Phase::Created)]).plan();
    let expected = serde_json::json!({
        "lanes": [{"steps": [{
            "action": {
                "action": "start",
                "instance": {
                    "id": {
                        "deployment": "demo", "service": "web", "slot": 0, "revision": "v1-aaaaaaaaaaaaaaaa", "attempt": 0
                    },
                    "runtime": "docker",
                    "runtime_id": "demo_web_0_aaaaaaaa_0"
                }
            },
            "cause": {"cause": "not_started"}
        }]}],
        "waits": [],
        "next_look": null
    });
    assert_eq!(serde_json::to_value(&plan).expect("it serialises"), expected);
}
