//! What ends a wait, by what is shown of the deployments.

use serde_json::json;

use super::*;

/// A deployment whose only instance is in this phase.
fn status(phase: &str, restarts: u32, exit: Option<u8>) -> Status {
    let exit = exit.map(|code| {
        json!({"code": code, "signal": null, "oom_killed": false, "reason": "exited", "message": null, "finished_at": "2026-01-01T00:00:01Z"})
    });
    let instance = json!({
        "deployment": "demo", "service": "web", "slot": 0, "name": "demo/web/0", "runtime": "sandbox",
        "runtime_id": "x", "pid": null, "phase": phase, "ready": false, "revision": "r", "restarts": restarts,
        "created_at": "2026-01-01T00:00:00Z", "started_at": null, "exit": exit, "ports": [], "message": "",
        "conditions": [],
    });
    let deployment = json!({"deployment": "demo", "source": null, "state": "progressing", "message": "web: starting", "conditions": []});
    serde_json::from_value(json!({
        "generation": 1, "synced": true, "deployments": [deployment], "services": [], "instances": [instance],
        "problems": [], "hold": null, "runtimes": [],
    }))
    .unwrap()
}

#[test]
fn what_is_started_again_when_time_runs_out_tells_how_the_run_before_ended() {
    let goals = [("demo".to_owned(), Goal::Running)].into();
    let baseline = Baseline::of(&status("running", 3, None));
    let mut crashes = Crashes::default();
    let lacking = |status: &Status, crashes: &Crashes| {
        let failed = missing(status, &goals, &baseline, crashes).remove(0);
        (failed.why, failed.output)
    };
    let starting = status("created", 5, None);
    let output = |previous: bool| {
        let runtime_id = (!previous).then(|| "x".to_owned());
        Some(Output { instance: "demo/web/0".to_owned(), runtime_id, previous })
    };
    let unseen = "it is progressing: web: starting; demo/web/0 ended 2 times and is started again";
    assert_eq!(lacking(&starting, &crashes), (unseen.to_owned(), output(true)));
    crashes.see(&status("exited", 4, Some(7)));
    let seen = "it is progressing: web: starting; demo/web/0 ended 2 times (exit code 7) and is started again";
    assert_eq!(lacking(&starting, &crashes), (seen.to_owned(), output(true)));
    let dead = "it is progressing: web: starting";
    assert_eq!(lacking(&status("exited", 5, Some(7)), &crashes), (dead.to_owned(), output(false)));
    assert_eq!(lacking(&status("created", 3, None), &crashes), (dead.to_owned(), None), "it never ended");
}

/// A service `demo/web` of so many replicas, of which so many are ready and so many of the declared revision, with these
/// fields too.
fn service(desired: u32, ready: u32, updated: u32, more: serde_json::Value) -> ServiceView {
    let mut view = json!({
        "deployment": "demo", "service": "web", "source": null, "runtime": "sandbox", "image": "one", "desired": desired,
        "running": ready, "ready": ready, "updated": updated, "revision": "r", "conditions": [],
    });
    view.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(view).unwrap()
}

fn condition(kind: &str, is: &str, reason: &str) -> serde_json::Value {
    json!({"type": kind, "status": is, "reason": reason, "message": format!("{kind} {reason}")})
}

#[test]
fn what_was_rolled_back_may_do_better_once_a_registry_has_said_which_image_is_meant() {
    let goals = [("demo".to_owned(), Goal::Running)].into();
    let of = |progressing: serde_json::Value| {
        let mut status = status("running", 0, None);
        status.deployments[0].state = DeploymentState::Failed;
        let failures = condition("ReplicaFailure", "True", "CrashLoopBackOff");
        let rolled_back = condition("RolledBack", "True", "Crashing");
        status.services = vec![service(1, 1, 0, json!({"conditions": [progressing, rolled_back, failures]}))];
        verdict(&status, &goals, &Baseline::default())
    };
    assert_eq!(of(condition("Progressing", "True", IMAGE_ASKED)), Verdict::Pending);
    assert!(matches!(of(condition("Progressing", "False", "Crashing")), Verdict::Failed(_)));
}

#[test]
fn crashes_of_another_revision_do_not_count_for_this_one() {
    let mut before = status("exited", 7, Some(1));
    before.instances[0].revision = "old".to_owned();
    let baseline = Baseline::of(&before);
    assert_eq!(baseline.crashes(&before, &before.instances[0]), 1);
    let after = status("exited", 2, Some(1));
    assert_eq!(baseline.crashes(&after, &after.instances[0]), 3, "the first run, and two restarts");
}

#[test]
fn crashes_of_before_its_runtime_was_written_down_do_not_count() {
    let service = |revision: &str, other: &str| service(1, 0, 0, json!({"revision": revision, "equivalent": other}));
    let mut before = status("exited", 7, Some(1));
    before.services = vec![service("r", "written")];
    let baseline = Baseline::of(&before);
    let mut after = status("exited", 8, Some(1));
    after.instances[0].revision = "written".to_owned();
    after.services = vec![service("written", "r")];
    assert_eq!(baseline.crashes(&after, &after.instances[0]), 2, "the one before, and one restart");
    after.services = vec![service("written", "other")];
    assert_eq!(baseline.crashes(&after, &after.instances[0]), 9, "another template begins at zero");
}

#[test]
fn what_replaces_something_is_reached_once_its_rollout_is_over() {
    let goals = [("demo".to_owned(), Goal::Running)].into();
    let service = |rolling: bool, ready: u32| service(2, ready, ready, json!({"rolling": rolling}));
    let of = |service: ServiceView, baseline: &Baseline| {
        let mut status = status("running", 1, None);
        (status.deployments[0].state, status.deployments[0].message) = (DeploymentState::Running, String::new());
        status.services = vec![service];
        let lacking = missing(&status, &goals, baseline, &Crashes::default()).pop().map(|failed| failed.why);
        (verdict(&status, &goals, baseline), lacking)
    };
    let before = Baseline::of(&status("running", 0, None));
    let (pending, lacking) = of(service(true, 2), &before);
    let why =
        "what runs of its rollout has not run for long enough to count; demo/web/0 ended 1 time and is started again";
    assert_eq!((pending, lacking.as_deref()), (Verdict::Pending, Some(why)));
    for (service, baseline, what) in [
        (service(false, 2), &before, "complete"),
        (service(true, 0), &before, "at rest, and nothing is tried"),
        (service(true, 2), &Baseline::default(), "the first that there is"),
    ] {
        assert_eq!(of(service, baseline), (Verdict::Reached, None), "{what}");
    }
}

#[test]
fn a_way_back_that_waits_in_vain_itself_is_not_waited_for() {
    let goals = [("demo".to_owned(), Goal::Running)].into();
    let of = |trouble: serde_json::Value| {
        let mut status = status("running", 0, None);
        (status.deployments[0].state, status.deployments[0].message) = (DeploymentState::Failed, "it waits".to_owned());
        let progressing = condition("Progressing", "False", "DependencyTimeout");
        let rolled_back = condition("RolledBack", "True", "DependencyTimeout");
        let conditions = json!([progressing, rolled_back, trouble]);
        let awaits = json!([{"service": "db", "given_up": true}]);
        status.services = vec![service(1, 0, 0, json!({"rolling": true, "conditions": conditions, "awaits": awaits}))];
        verdict(&status, &goals, &Baseline::default())
    };
    let Verdict::Failed(failed) = of(condition("ReplicaFailure", "True", "DependencyTimeout")) else {
        panic!("it is waited for");
    };
    assert_eq!(failed[0].why, "it waits");
    let without = condition("Degraded", "True", "DependencyTimeout");
    assert_eq!(of(without), Verdict::Pending, "it goes on without what it depends on");
}
