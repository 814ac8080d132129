//! How far a rollout is, by what is shown of its service.

use serde_json::json;

use super::*;

/// A service of two replicas, of which one is suspended for idleness, beside one that is on its way.
fn status(failure: Option<&str>) -> Status {
    let condition = |kind: &str, is: &str, reason: &str| json!({"type": kind, "status": is, "reason": reason, "message": format!("it is {reason}")});
    let mut conditions = vec![condition("Progressing", "False", "Stopped")];
    conditions.extend(failure.map(|reason| condition("ReplicaFailure", "True", reason)));
    let instance = |slot: u32, state: &str| {
        json!({
            "deployment": "demo", "service": "web", "slot": slot, "name": format!("demo/web/{slot}"), "runtime": "sandbox",
            "runtime_id": "x", "pid": null, "phase": if slot == 0 { "paused" } else { "running" }, "state": state,
            "ready": slot > 0, "revision": "r", "restarts": 0, "created_at": "2026-01-01T00:00:00Z", "started_at": null,
            "exit": null, "ports": [], "message": "", "conditions": [],
        })
    };
    serde_json::from_value(json!({
        "generation": 1, "synced": true, "problems": [], "hold": null, "runtimes": [],
        "deployments": [{"deployment": "demo", "source": null, "state": "progressing", "message": "", "conditions": []}],
        "services": [{
            "deployment": "demo", "service": "web", "source": null, "runtime": "sandbox", "image": "one", "desired": 2,
            "running": 1, "ready": 1, "updated": 1, "revision": "r", "conditions": conditions,
        }],
        "instances": [instance(0, "suspended"), instance(1, "running")],
    }))
    .unwrap()
}

#[test]
fn what_rests_is_rolled_out_whatever_the_rest_of_its_deployment_does() {
    let of = |status: &Status| course(status, &status.services[0]);
    assert_eq!(of(&status(None)), Course::Complete("service \"demo/web\" successfully rolled out".to_owned()));
    assert_eq!(of(&status(Some("Isolated"))), Course::Failed("it is Stopped".to_owned()));
    let mut down = status(None);
    down.services[0].kept_down = Some("stopped, `keel start demo/web/0` starts it".to_owned());
    let why = "demo/web: stopped, `keel start demo/web/0` starts it";
    assert_eq!(of(&down), Course::Failed(why.to_owned()), "what is stopped by hand is told in the same words");
}

#[test]
fn what_runs_as_declared_only_because_an_order_failed_is_no_rollout_that_succeeded() {
    for kind in ["RestartFailed", "UndoFailed"] {
        let mut status = status(None);
        let why = format!("{kind}: web depends on db");
        status.services[0].conditions.push(Condition::holds(kind, "DependencyTimeout", why.clone()));
        assert_eq!(course(&status, &status.services[0]), Course::Failed(format!("demo/web: {why}")));
    }
}
