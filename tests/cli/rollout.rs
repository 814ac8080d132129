//! Rollouts that fail go back, and are steered: from a file to processes that serve.

use std::time::Duration;

use serde_json::Value;

use crate::engine::{self, Kind};
use crate::rig::{Rig, is_alive};

/// A deployment of one service with this script and these further fields.
fn spec(script: &str, replicas: u32, fields: &str) -> String {
    format!(
        "version: v1\ndeployment: demo\nservices:\n  web:\n    image: {{ name: host }}\n    \
         command: {{ entrypoint: [sh, -c, '{script}'] }}\n    \
         scale: {{ mode: fixed, replicas: {replicas} }}\n    stop_grace_period: 1s\n    \
         rollout: {{ max_surge: 1, max_unavailable: 0, progress_deadline: 3s }}\n{fields}"
    )
}

/// A check that passes where there is a file.
const CHECK: &str = "    health: { start_grace: 1s, retries: 150, interval: 200ms, check: { type: command, command: test -e /tmp/ok } }\n";

/// A version that serves.
fn good(name: &str, replicas: u32) -> String {
    spec(&format!("touch /tmp/ok; echo {name}; exec sleep 600"), replicas, CHECK)
}

/// A version that never becomes ready.
fn bad(name: &str, replicas: u32) -> String {
    spec(&format!("echo {name}; exec sleep 600"), replicas, CHECK)
}

fn pids(rig: &Rig) -> Vec<u32> {
    rig.instances(|one| u32::try_from(one["pid"].as_u64().unwrap_or_default()).unwrap())
}

fn revisions(rig: &Rig) -> Vec<String> {
    rig.instances(|one| one["revision"].as_str().unwrap_or_default().to_owned())
}

/// The condition of this kind of the only service: its status, reason and message.
fn condition(rig: &Rig, kind: &str) -> Option<(String, String, String)> {
    let services = rig.get("services");
    let conditions = services[0]["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|condition| condition["type"] == kind)?;
    let text = |field: &str| found[field].as_str().unwrap().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

fn numbers(rig: &Rig) -> Vec<(u64, bool, bool, bool)> {
    let found = rig.keel(&["rollout", "history", "demo/web", "-o", "json"]).expect_code(0).json();
    let flags = |one: &Value| {
        let is = |field: &str| one[field].as_bool().unwrap();
        (one["number"].as_u64().unwrap(), is("declared"), is("wanted"), is("failed"))
    };
    found[0]["revisions"].as_array().unwrap().iter().map(flags).collect()
}

#[test]
fn failing_health_rolls_back_and_stays_back_until_the_file_changes() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &good("one", 2));
    let controller = rig.controller();
    rig.until_running("demo", 2);
    let done = rig.keel(&["rollout", "status", "demo"]).expect_code(0);
    assert_eq!(done.out, "service \"demo/web\" successfully rolled out\n");
    let before = pids(&rig);
    rig.write("specs/demo.yaml", &bad("two", 2));
    rig.until("the new one is there", || rig.get("instances").len() == 3);
    let done = rig.keel(&["rollout", "status", "demo", "--timeout", "60s"]).expect_code(1);
    assert!(
        done.err.contains("error: demo/web was rolled back to revision 3, as revision 2 failed: no progress"),
        "{done:?}"
    );
    assert!(
        done.out.contains("0 out of 2 new replicas have been updated") || done.out.contains("1 out of 2"),
        "{done:?}"
    );
    rig.until("the new one is gone", || pids(&rig) == before);
    let (status, reason, _) = condition(&rig, "RolledBack").unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("True", "ProgressDeadlineExceeded"));
    let (status, reason, _) = condition(&rig, "Progressing").unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "ProgressDeadlineExceeded"));
    assert_eq!(rig.state("demo"), "failed");
    assert_eq!(numbers(&rig), [(2, true, false, true), (3, false, true, false)]);
    let said = rig.keel(&["describe", "demo"]).expect_code(0).out;
    assert!(said.contains("RolledBack") && said.contains("rolling back to revision 1"), "{said}");

    // The same file again, and another controller, change nothing about it.
    let done = rig.keel(&["apply", "-f", "specs/demo.yaml"]).expect_code(1);
    assert!(done.err.contains("was rolled back") && done.err.contains("keel rollout restart demo/web"), "{done:?}");
    controller.end("KILL");
    let _controller = rig.controller();
    rig.until("the next one knows it", || rig.state("demo") == "failed");
    rig.keel(&["rollout", "status", "demo/web", "--watch=false"]).expect_code(1);
    assert_eq!(pids(&rig), before);

    // It is tried again when somebody asks for it, and fails again.
    rig.keel(&["rollout", "restart", "demo/web"]).expect_code(0);
    rig.until("it is tried", || rig.get("instances").len() == 3);
    rig.until("it failed again", || condition(&rig, "RolledBack").is_some() && pids(&rig) == before);
    rig.write("specs/demo.yaml", &good("three", 2));
    rig.until("another version is rolled out", || rig.state("demo") == "running");
    rig.keel(&["rollout", "status", "demo"]).expect_code(0);
    assert!(before.iter().all(|pid| !is_alive(*pid)));
    assert_eq!(condition(&rig, "RolledBack"), None);
}

#[test]
fn a_bad_image_rolls_back_while_the_old_replicas_serve_and_crashes_do_too() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &good("one", 2));
    let _controller = rig.controller();
    rig.until_running("demo", 2);
    let before = pids(&rig);
    let image = good("two", 2).replace("name: host", "name: 'oci:/nowhere/at/all'");
    rig.write("specs/demo.yaml", &image);
    rig.until("it is rolled back", || condition(&rig, "RolledBack").is_some());
    rig.until("nothing is left of it", || pids(&rig) == before);
    rig.write(
        "specs/demo.yaml",
        &spec("echo the end; exit 7", 2, CHECK).replace("progress_deadline: 3s", "progress_deadline: 10m"),
    );
    rig.until("it crashes", || {
        condition(&rig, "ReplicaFailure").is_some_and(|(_, reason, _)| reason == "CrashLoopBackOff")
    });
    rig.until("it is rolled back again", || {
        condition(&rig, "RolledBack")
            .is_some_and(|(_, reason, message)| reason == "Crashing" && message.contains("exited 7"))
    });
    // The last run of it tells why, until another version is declared.
    let live = |rig: &Rig| pids(rig).into_iter().filter(|pid| *pid != 0).collect::<Vec<_>>();
    rig.until("all that lives is as before", || live(&rig) == before && pids(&rig).len() == 3);
    let told = rig.keel(&["logs", "--previous", "demo/web/0"]).expect_code(0);
    assert_eq!(told.out, "the end\n");
    rig.write("specs/demo.yaml", &good("three", 2));
    rig.until("all is of the next version", || {
        pids(&rig).len() == 2 && pids(&rig).iter().all(|pid| *pid != 0 && !before.contains(pid))
    });
}

#[test]
fn an_apply_that_was_rolled_back_tells_the_last_lines_of_what_crashed() {
    let rig = Rig::new("sandbox");
    let fields = "    restart_policy: { kind: always, delay: 100ms }\n";
    for with_controller in [false, true] {
        let _controller = with_controller.then(|| rig.controller());
        rig.write("demo.yaml", &spec("echo healthy; exec sleep 600", 2, fields));
        rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
        rig.write("demo.yaml", &spec("echo dying of x; exit 4", 2, fields).replace("deadline: 3s", "deadline: 10m"));
        let done = rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(1);
        assert!(done.err.contains("rolled back") && done.err.contains("exited 4"), "{}", done.err);
        assert!(done.err.contains("last 1 line of demo/web/0:\n  dying of x\n"), "{}", done.err);
        assert_eq!(rig.keel(&["logs", "-p", "demo/web/0"]).expect_code(0).out, "dying of x\n");
        assert!(rig.keel(&["logs", "demo/web/1"]).expect_code(0).out.contains("healthy"));
    }
}

#[test]
fn five_edits_during_one_rollout_end_in_the_last() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &good("zero", 3));
    let _controller = rig.controller();
    rig.until_running("demo", 3);
    for edit in ["one", "two", "three", "four"] {
        rig.write("specs/demo.yaml", &bad(edit, 3));
        std::thread::sleep(Duration::from_millis(700));
    }
    rig.write("specs/demo.yaml", &good("five", 3));
    let edited = std::time::Instant::now();
    rig.until("the last version begins", || {
        let declared = rig.get("services")[0]["revision"].as_str().unwrap().to_owned();
        rig.keel(&["logs", "demo/web"]).out.contains("five") && revisions(&rig).contains(&declared)
    });
    assert!(edited.elapsed() < Duration::from_secs(20), "nothing waits for what is stuck");
    rig.keel(&["rollout", "status", "demo", "--timeout", "60s"]).expect_code(0);
    let said = rig.keel(&["logs", "demo/web"]).out;
    assert_eq!(said.matches("five").count(), 3, "{said}");
    assert_eq!(revisions(&rig).len(), 3);
}

#[test]
fn a_rollout_is_paused_resumed_undone_and_restarted() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &good("one", 2));
    let _controller = rig.controller();
    rig.until_running("demo", 2);
    let one = pids(&rig);
    let done = rig.keel(&["rollout", "pause", "demo"]).expect_code(0);
    assert_eq!(done.out, "service/demo/web paused\n");
    let done = rig.keel(&["rollout", "pause", "demo"]).expect_code(1);
    assert!(done.err.contains("already paused"), "{done:?}");
    rig.keel(&["rollout", "status", "demo"]).expect_code(0);
    rig.write("specs/demo.yaml", &good("two", 3));
    rig.until("it is scaled, and paused", || rig.state("demo") == "paused" && rig.get("instances").len() == 3);
    let done = rig.keel(&["rollout", "status", "demo"]).expect_code(1);
    assert!(done.err.contains("the rollout of demo/web is paused"), "{done:?}");
    assert!(one.iter().all(|pid| is_alive(*pid)));
    assert_eq!(revisions(&rig)[0], revisions(&rig)[2], "what is missing is made from what was good");
    let done = rig.keel(&["rollout", "undo", "demo"]).expect_code(1);
    assert!(done.err.contains("resume it first"), "{done:?}");
    rig.keel(&["rollout", "resume", "demo"]).expect_code(0);
    rig.keel(&["rollout", "status", "demo", "--timeout", "60s"]).expect_code(0);
    let two = pids(&rig);
    assert!(one.iter().all(|pid| !two.contains(pid)));

    let done = rig.keel(&["rollout", "undo", "demo/web"]).expect_code(0);
    assert_eq!(done.out, "service/demo/web rolled back to revision 1\n");
    // It waits for what was asked for, from the first moment on.
    let done = rig.keel(&["rollout", "status", "demo", "--timeout", "60s"]).expect_code(0);
    assert!(done.out.contains("Waiting for service \"demo/web\" to roll back to revision "), "{done:?}");
    let end = "service \"demo/web\" successfully rolled back to revision 3, as `keel rollout undo` asked, and not what is declared\n";
    assert!(done.out.ends_with(end), "{done:?}");
    assert_eq!(rig.keel(&["logs", "demo/web"]).out.matches("one").count(), 3);
    assert_eq!(rig.get("instances").len(), 3);
    assert_eq!(numbers(&rig), [(2, true, false, false), (3, false, true, false)]);
    let shown = rig.keel(&["rollout", "history", "demo/web", "--revision", "2"]).expect_code(0).out;
    assert!(shown.contains("with revision 2") && shown.contains("echo two"), "{shown}");
    rig.keel(&["rollout", "history", "demo/web", "--revision", "9"]).expect_code(1);
    let table = rig.keel(&["rollout", "history", "demo"]).expect_code(0).out;
    assert!(table.starts_with("service/demo/web\nREVISION   TEMPLATE"), "{table}");
    rig.keel(&["rollout", "undo", "demo/web", "--to-revision", "2"]).expect_code(0);
    rig.keel(&["rollout", "status", "demo", "--timeout", "60s"]).expect_code(0);
    assert_eq!(numbers(&rig), [(3, false, false, false), (4, true, true, false)]);

    let before = pids(&rig);
    let declared = rig.get("services")[0]["revision"].clone();
    rig.keel(&["rollout", "restart", "demo"]).expect_code(0);
    rig.keel(&["rollout", "status", "demo", "--timeout", "60s"]).expect_code(0);
    assert!(before.iter().all(|pid| !is_alive(*pid)));
    assert_ne!(rig.get("services")[0]["revision"], declared);
    let restarted = pids(&rig);
    rig.keel(&["apply", "-f", "specs"]).expect_code(0);
    assert_eq!(pids(&rig), restarted, "it is restarted once");
    rig.keel(&["rollout", "undo", "demo/none"]).expect_code(1);
    rig.keel(&["rollout", "status", "none"]).expect_code(1);
}

#[test]
fn a_restart_goes_on_with_the_next_controller() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &good("one", 3));
    let controller = rig.controller();
    rig.until_running("demo", 3);
    let before = pids(&rig);
    rig.keel(&["rollout", "restart", "demo/web"]).expect_code(0);
    rig.until("it has begun", || pids(&rig) != before);
    controller.end("KILL");
    let _controller = rig.controller();
    rig.keel(&["rollout", "status", "demo", "--timeout", "60s"]).expect_code(0);
    rig.until("all are replaced", || before.iter().all(|pid| !is_alive(*pid)));
    let after = pids(&rig);
    rig.keel(&["apply", "-f", "specs"]).expect_code(0);
    assert_eq!((pids(&rig), after.len()), (after.clone(), 3));
}

#[test]
fn what_is_suspended_is_left_alone_until_it_is_resumed_or_deleted() {
    let rig = Rig::new("sandbox");
    rig.write("demo.yaml", &good("one", 2));
    rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
    let controller = rig.controller();
    rig.until_running("demo", 2);
    let before = pids(&rig);
    assert_eq!(rig.keel(&["suspend", "demo"]).expect_code(0).out, "deployment/demo suspended\n");
    let later = "once `keel resume demo` is given: the deployment is suspended\n";
    let stopped = rig.keel(&["stop", "demo/web/0"]).expect_code(0).out;
    assert_eq!(stopped, format!("instance/demo/web/0 will be stopped {later}"));
    let started = rig.keel(&["start", "demo/web/0"]).expect_code(0).out;
    assert_eq!(started, format!("instance/demo/web/0 will be started {later}"));
    rig.keel(&["suspend", "demo"]).expect_code(1);
    rig.keel(&["suspend", "none"]).expect_code(1);
    controller.end("KILL");
    let _controller = rig.controller();
    rig.until("the next one knows it", || rig.state("demo") == "suspended");
    let done = rig.keel(&["rollout", "status", "demo"]).expect_code(1);
    assert!(done.err.contains("suspended"), "{done:?}");
    rig.write("demo.yaml", &good("two", 3));
    let done = rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(1);
    assert!(done.err.contains("keel resume demo"), "{done:?}");
    crate::rig::signal(before[0], "KILL");
    rig.until("it ended", || rig.get("instances")[0]["phase"] == "exited");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(rig.get("instances").len(), 2);
    assert!(is_alive(before[1]));
    rig.keel(&["resume", "demo"]).expect_code(0);
    rig.keel(&["rollout", "status", "demo", "--timeout", "60s"]).expect_code(0);
    assert_eq!(pids(&rig).len(), 3);
    rig.keel(&["resume", "demo"]).expect_code(1);
    rig.keel(&["suspend", "demo"]).expect_code(0);
    rig.keel(&["delete", "demo"]).expect_code(0);
    assert_eq!(rig.get("instances").len(), 0);
    // What is gone is not remembered.
    rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
    assert_eq!(rig.state("demo"), "running");
}

#[test]
fn replicas_that_are_set_by_hand_are_kept() {
    let rig = Rig::new("sandbox");
    let manual = |name: &str| good(name, 1).replace("mode: fixed, replicas: 1", "mode: manual");
    rig.write("specs/demo.yaml", &manual("one"));
    let controller = rig.controller();
    rig.until_running("demo", 1);
    assert_eq!(
        rig.keel(&["scale", "demo/web", "--replicas", "3"]).expect_code(0).out,
        "service/demo/web scaled to 3\n"
    );
    rig.until_running("demo", 3);
    rig.write("specs/demo.yaml", &manual("two"));
    rig.keel(&["apply", "-f", "specs"]).expect_code(0);
    assert_eq!(rig.get("instances").len(), 3);
    controller.end("TERM");
    let _controller = rig.controller();
    rig.until_running("demo", 3);
    rig.keel(&["scale", "demo/web", "--replicas", "100000"]).expect_code(1);
    rig.keel(&["scale", "demo", "--replicas", "1"]).expect_code(1);
    rig.keel(&["scale", "demo/web", "--replicas", "0"]).expect_code(0);
    rig.until("all are gone", || rig.get("instances").is_empty() && rig.state("demo") == "running");
    rig.write("specs/demo.yaml", &good("two", 1));
    rig.until_running("demo", 1);
    let done = rig.keel(&["scale", "demo/web", "--replicas", "2"]).expect_code(1);
    let place = format!("at {}:4", rig.path("specs/demo.yaml").display());
    assert!(done.err.contains("has scale.mode: fixed with 1 replica;") && done.err.contains(&place), "{done:?}");
}

#[test]
fn without_a_controller_orders_are_carried_out_or_recorded() {
    let rig = Rig::new("sandbox");
    // Nobody checks what runs while no controller does.
    let plain = |name: &str, replicas| spec(&format!("echo {name}; exec sleep 600"), replicas, "");
    rig.write("demo.yaml", &plain("one", 2));
    rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
    rig.write("demo.yaml", &plain("two", 2));
    rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
    rig.keel(&["rollout", "status", "demo"]).expect_code(0);
    rig.keel(&["rollout", "undo", "demo"]).expect_code(0);
    assert_eq!(rig.keel(&["logs", "demo"]).out.matches("one").count(), 2);
    rig.keel(&["rollout", "status", "demo"]).expect_code(0);
    let done = rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(1);
    assert!(done.err.contains("keel rollout undo demo/web --to-revision 2"), "{done:?}");
    rig.keel(&["rollout", "undo", "demo", "--to-revision", "2"]).expect_code(0);
    rig.keel(&["rollout", "status", "demo"]).expect_code(0);
    let before = pids(&rig);
    rig.keel(&["rollout", "restart", "demo"]).expect_code(0);
    assert!(before.iter().all(|pid| !is_alive(*pid)));
    // An undo that fails is left again, and is no success.
    let gone =
        |name: &str| spec("test -e /tmp/never && exec sleep 600; exit 1", 2, &format!("    env: {{ N: {name} }}\n"));
    rig.write("demo.yaml", &gone("bad"));
    rig.keel(&["apply", "-f", "demo.yaml", "--timeout", "60s"]).expect_code(1);
    let failed = rig.keel(&["rollout", "history", "demo", "-o", "json"]).json();
    let number =
        failed[0]["revisions"].as_array().unwrap().iter().find(|one| one["declared"] == true).unwrap()["number"]
            .to_string();
    rig.write("demo.yaml", &plain("two", 2));
    rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
    let done = rig.keel(&["rollout", "undo", "demo", "--to-revision", &number]).expect_code(1);
    assert!(done.err.contains("failed, and another revision runs"), "{done:?}");
    let done = rig.keel(&["rollout", "status", "demo"]).expect_code(1);
    // It got a number of its own when it was rolled out again.
    assert!(done.err.starts_with("error: demo/web: the undo to revision "), "{done:?}");
    assert!(done.err.contains("exited 1; what is declared runs on"), "{done:?}");
    let done = rig.keel(&["rollout", "pause", "demo"]).expect_code(0);
    assert!(done.err.contains("no controller runs"), "{done:?}");
    rig.write("demo.yaml", &plain("three", 2));
    rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(1);
    rig.keel(&["rollout", "resume", "demo"]).expect_code(0);
    rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
    // One that fails is rolled back by this command.
    rig.write("demo.yaml", &bad("four", 2));
    let before = pids(&rig);
    let done = rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(1);
    assert!(done.err.contains("was rolled back"), "{done:?}");
    assert!(before.iter().all(|pid| is_alive(*pid)));
}

#[test]
fn a_first_rollout_that_fails_says_that_there_is_no_way_back_and_goes_on() {
    let rig = Rig::new("sandbox");
    rig.write(
        "specs/demo.yaml",
        &spec("while [ ! -e /tmp/go ]; do sleep 0.1; done; touch /tmp/ok; exec sleep 600", 1, CHECK),
    );
    let _controller = rig.controller();
    let done = rig.keel(&["apply", "-f", "specs"]).expect_code(1);
    assert!(done.err.contains("there is no earlier revision to roll back to"), "{done:?}");
    assert_eq!(rig.state("demo"), "degraded");
    rig.keel(&["rollout", "status", "demo"]).expect_code(1);
    rig.keel(&["exec", "demo/web", "--", "touch", "/tmp/go"]).expect_code(0);
    rig.until_running("demo", 1);
    rig.keel(&["rollout", "status", "demo"]).expect_code(0);
}

#[test]
fn a_bad_image_of_an_engine_rolls_back() {
    let Some(socket) = engine::socket(Kind::Docker) else { return };
    let rig = Rig::on_engine(&socket);
    let image = |name: &str| {
        let script = "trap \"exit 0\" TERM; while :; do sleep 0.1; done";
        // An engine that is busy with others takes its time for a start.
        spec(script, 2, "    init_container: false\n")
            .replace("name: host", &format!("name: '{name}', pull_policy: never"))
            .replace("progress_deadline: 3s", "progress_deadline: 10s")
    };
    rig.write("specs/demo.yaml", &image("keel-test/busybox:1"));
    let _controller = rig.controller();
    rig.until_running("demo", 2);
    let before = pids(&rig);
    rig.write("specs/demo.yaml", &image("keel-test/nothing:1"));
    rig.until("it is rolled back", || condition(&rig, "RolledBack").is_some());
    rig.until("nothing is left of it", || pids(&rig) == before);
    rig.keel(&["rollout", "status", "demo"]).expect_code(1);
}

#[test]
fn a_version_that_ends_well_takes_the_place_of_nothing_that_serves() {
    for kind in ["on_failure", "'no'"] {
        let rig = Rig::new("sandbox");
        let fields = format!("    restart_policy: {{ kind: {kind} }}\n");
        let _controller = rig.controller();
        rig.write("demo.yaml", &spec("exec sleep 600", 2, &fields));
        rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
        let before = pids(&rig);
        rig.write("demo.yaml", &spec("exit 0", 2, &fields));
        let done = rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(1);
        assert!(done.err.contains("rolled back") && done.err.contains("exited 0"), "{kind}: {}", done.err);
        let live = || pids(&rig).into_iter().filter(|pid| *pid != 0).collect::<Vec<_>>();
        rig.until("the old ones serve", || live() == before);
        rig.keel(&["rollout", "status", "demo"]).expect_code(1);
    }
}

#[test]
fn what_crashed_tells_why_its_rollout_is_paused() {
    let rig = Rig::new("sandbox");
    let fields = "    restart_policy: { kind: always, delay: 100ms }\n";
    let paused = |script: &str| {
        spec(script, 2, fields).replace("progress_deadline: 3s", "progress_deadline: 10m, on_failure: pause")
    };
    let _controller = rig.controller();
    rig.write("demo.yaml", &paused("exec sleep 600"));
    rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
    rig.write("demo.yaml", &paused("echo dying of y; exit 4"));
    let done = rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(1);
    assert!(done.err.contains("dying of y"), "{}", done.err);
    assert_eq!(rig.keel(&["logs", "-p", "demo/web/0"]).expect_code(0).out, "dying of y\n");
}

#[test]
fn who_rolls_back_without_a_controller_carries_it_to_its_end() {
    let rig = Rig::new("sandbox");
    for strategy in ["strategy: recreate, min_ready: 2s", "max_surge: 0, max_unavailable: 1"] {
        let of = |script: &str| {
            let rollout = format!("rollout: {{ {strategy} }}");
            spec(script, 2, "    restart_policy: { delay: 100ms }\n")
                .replace("rollout: { max_surge: 1, max_unavailable: 0, progress_deadline: 3s }", &rollout)
        };
        rig.write("demo.yaml", &of("exec sleep 600"));
        rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
        let good = revisions(&rig);
        rig.write("demo.yaml", &of("sleep 0.2; exit 9"));
        let done = rig.keel(&["apply", "-f", "demo.yaml", "--timeout", "60s"]).expect_code(1);
        assert!(done.err.contains("was rolled back to revision 3"), "{strategy}: {done:?}");
        let running = rig.instances(|one| (one["phase"] == "running").then(|| one["revision"].clone()));
        let running: Vec<_> = running.into_iter().flatten().collect();
        assert_eq!(running, good, "{strategy}");
        rig.keel(&["delete", "demo"]).expect_code(0);
    }
}

#[test]
fn who_waits_for_one_rollback_waits_for_the_other_service_too() {
    let rig = Rig::new("sandbox");
    let service = |name: &str, script: &str, delay: &str| {
        format!(
            "  {name}:\n    image: {{ name: host }}\n    command: {{ entrypoint: [sh, -c, '{script}'] }}\n    \
             stop_grace_period: 1s\n    rollout: {{ strategy: recreate }}\n    restart_policy: {{ delay: {delay} }}\n"
        )
    };
    let both = |web: &str, other: &str| {
        let services = service("web", web, "100ms") + &service("other", other, "2s");
        format!("version: v1\ndeployment: demo\nservices:\n{services}")
    };
    rig.write("demo.yaml", &both("exec sleep 600", "exec sleep 600"));
    rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
    let good = revisions(&rig);
    rig.write("demo.yaml", &both("sleep 0.2; exit 9", "sleep 0.2; exit 8"));
    let done = rig.keel(&["apply", "-f", "demo.yaml", "--timeout", "60s"]).expect_code(1);
    assert!(done.err.contains("was rolled back to revision 3"), "{done:?}");
    let running = rig.instances(|one| (one["phase"] == "running").then(|| one["revision"].clone()));
    assert_eq!(running.into_iter().flatten().collect::<Vec<_>>(), good, "{done:?}");
    rig.keel(&["delete", "demo"]).expect_code(0);
}

#[test]
fn a_rollback_that_is_over_holds_nobody_up() {
    let rig = Rig::new("sandbox");
    let of = |script: &str| spec(script, 2, "    restart_policy: { delay: 100ms }\n");
    rig.write("demo.yaml", &of("exec sleep 600"));
    let _controller = rig.controller();
    rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
    rig.write("demo.yaml", &of("sleep 0.2; exit 9"));
    rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(1);
    let rolling = || rig.get("services")[0]["rolling"] == true;
    rig.until("it is over", || !rolling());
    rig.keel(&["stop", "demo/web/0"]).expect_code(0);
    rig.until("one is down", || rig.get("services")[0]["ready"] == 1);
    assert!(!rolling());
    let done = rig.keel(&["apply", "-f", "demo.yaml", "--timeout", "20s"]).expect_code(1);
    assert!(done.err.contains("was rolled back"), "{done:?}");
}

#[test]
fn the_status_of_a_rollout_is_of_what_was_saved_a_moment_ago() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &good("one", 1));
    let _controller = rig.controller();
    rig.until_running("demo", 1);
    rig.keel(&["rollout", "status", "demo"]).expect_code(0);
    for script in ["exit 1", "exit 2", "exit 3"] {
        rig.write("specs/demo.yaml", &spec(script, 1, CHECK));
        let done = rig.keel(&["rollout", "status", "demo", "--watch=false"]).expect_code(1);
        assert!(done.out.starts_with("Waiting for service \"demo/web\" rollout to finish"), "{script}: {done:?}");
    }
}

#[test]
fn a_bad_version_that_was_declared_without_replicas_is_rolled_back_once_some_are_to_run() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &good("one", 2));
    let _controller = rig.controller();
    rig.until("it serves", || rig.get("services")[0]["ready"] == 2);
    rig.write("specs/demo.yaml", &good("one", 0));
    rig.until("none is left", || rig.get("instances").is_empty());
    rig.write("specs/demo.yaml", &bad("two", 0));
    rig.keel(&["rollout", "status", "demo", "--timeout", "60s"]).expect_code(0);
    rig.write("specs/demo.yaml", &bad("two", 2));
    let done = rig.keel(&["rollout", "status", "demo", "--timeout", "60s"]).expect_code(1);
    assert!(done.err.contains("demo/web was rolled back to revision 3, as revision 2 failed"), "{done:?}");
    rig.until("the one that served is back", || {
        rig.get("services")[0]["ready"] == 2 && rig.instances(|one| one["revision"].clone()).len() == 2
    });
}
