//! Limits on idleness and age end to end: real programs in sandboxes, what keeps them, and what wakes them.

use serde_json::Value;

use crate::rig::{Rig, is_alive, signal, spec};

/// A service that counts seconds in a file of its own, and sleeps.
fn agent(lifecycle: &str) -> String {
    format!(
        "version: v1\ndeployment: demo\nservices:\n  agent:\n    image: {{ name: host }}\n    \
         command: {{ entrypoint: [sh, -c, 'trap \"exit 0\" TERM; while :; do sleep 0.2; done'] }}\n    \
         stop_grace_period: 2s\n    lifecycle: {lifecycle}\n"
    )
}

fn running(rig: &Rig) -> Vec<Value> {
    rig.get("instances").into_iter().filter(|one| one["phase"] == "running").collect()
}

fn state(rig: &Rig) -> String {
    rig.get("services")[0]["state"].as_str().unwrap().to_owned()
}

fn until_state(rig: &Rig, expected: &str) {
    rig.until(&format!("it is {expected}"), || state(rig) == expected);
}

#[test]
fn exec_keeps_an_idle_limit_away_and_starts_what_it_stopped() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &agent("{ max_idle: 2s }"));
    let controller = rig.controller();
    rig.until_running("demo", 1);
    // Longer than the limit.
    let done = rig.keel(&["exec", "demo/agent", "--", "sh", "-c", "sleep 4; echo done"]).expect_code(0);
    assert_eq!(done.out, "done\n");
    assert_eq!(running(&rig).len(), 1, "a command inside is a use for as long as it runs");
    until_state(&rig, "idle");
    let message = rig.get("services")[0]["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("idle since ") && message.ends_with("`keel start demo/agent` wakes it"), "{message}");
    assert!(rig.keel(&["get", "instances"]).out.contains(" idle "));
    assert_eq!(rig.state("demo"), "running", "it is as it should be");
    let done = rig.keel(&["exec", "demo/agent", "--", "echo", "awake"]).expect_code(0);
    assert_eq!(done.out, "awake\n");
    let woken = running(&rig);
    assert_eq!((woken.len(), &woken[0]["restarts"]), (1, &Value::from(0)), "that is no restart");
    until_state(&rig, "idle");
    // Without a controller nobody would wake it.
    controller.end("TERM");
    let done = rig.keel(&["exec", "demo/agent", "--", "true"]).expect_code(125);
    assert!(done.err.contains("no controller runs"), "{done:?}");
    let done = rig.keel(&["start", "demo/agent"]).expect_code(0);
    assert_eq!((done.out.as_str(), running(&rig).len()), ("service/demo/agent started\n", 1));
}

#[test]
fn a_suspended_agent_keeps_its_process_over_a_killed_controller_and_runs_on_when_it_is_used() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &agent("{ max_idle: 2s, on_idle: suspend }"));
    let controller = rig.controller();
    rig.until_running("demo", 1);
    let pid = running(&rig)[0]["pid"].clone();
    until_state(&rig, "suspended");
    controller.end("KILL");
    assert_eq!(state(&rig), "suspended", "so it is without a controller");
    let _controller = rig.controller();
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(state(&rig), "suspended");
    rig.keel(&["touch", "demo/agent"]).expect_code(0);
    until_state(&rig, "running");
    assert_eq!(running(&rig)[0]["pid"], pid);
    until_state(&rig, "suspended");
    let done = rig.keel(&["exec", "demo/agent", "--", "echo", "thawed"]).expect_code(0);
    assert_eq!((done.out.as_str(), &running(&rig)[0]["pid"]), ("thawed\n", &pid));
    assert!(is_alive(u32::try_from(pid.as_u64().unwrap()).unwrap()));
}

#[test]
fn a_stop_lasts_over_a_restart_of_the_controller_until_the_start_or_another_template() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &agent("{}"));
    let controller = rig.controller();
    rig.until_running("demo", 1);
    let done = rig.keel(&["stop", "demo/agent"]).expect_code(0);
    assert_eq!(done.out, "service/demo/agent stopped\n");
    until_state(&rig, "stopped");
    let how = "agent: stopped, `keel start demo/agent` starts it";
    let done = rig.keel(&["rollout", "status", "demo"]).expect_code(1);
    assert_eq!(done.err, format!("error: demo/{how}\n"));
    assert_eq!(rig.get("deployments")[0]["message"], how);
    controller.end("KILL");
    let _controller = rig.controller();
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(state(&rig), "stopped");
    let done = rig.keel(&["exec", "demo/agent", "--", "true"]).expect_code(125);
    assert!(done.err.contains("demo/agent/0 is stopped; `keel start demo/agent/0` starts it"), "{done:?}");
    let done = rig.keel(&["hold", "demo/agent", "--for", "1h"]).expect_code(1);
    assert!(done.err.contains("demo/agent/0 is stopped; `keel start demo/agent/0` starts it"), "{done:?}");
    rig.keel(&["start", "demo/agent/0"]).expect_code(0);
    rig.until_running("demo", 1);
    rig.keel(&["stop", "demo"]).expect_code(0);
    until_state(&rig, "stopped");
    // A limit is no part of the template; the environment is.
    rig.write("specs/demo.yaml", &agent("{ max_idle: 1h }"));
    rig.write("specs/demo.yaml", &format!("{}    env: {{ A: b }}\n", agent("{ max_idle: 1h }")));
    rig.until_running("demo", 1);
}

#[test]
fn a_hold_keeps_what_is_idle_and_explain_tells_what_strikes_next() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &agent("{ max_idle: 2s }"));
    let controller = rig.controller();
    rig.until_running("demo", 1);
    rig.keel(&["hold", "demo/agent", "--for", "1h"]).expect_code(0);
    let explain = || rig.keel(&["explain", "idle", "demo/agent", "-o", "json"]).expect_code(0).json()[0].clone();
    rig.until("it would be idle", || explain()["doing"] == "idle");
    let report = explain();
    assert_eq!((&report["next"]["limit"], &report["next"]["strike"]), (&"max_idle".into(), &"stop".into()));
    assert_eq!(report["next"]["at"], report["held_until"]);
    assert_eq!(running(&rig).len(), 1);
    rig.keel(&["touch", "demo/agent/0"]).expect_code(0);
    let report = explain();
    let touch = report["signals"].as_array().unwrap().iter().find(|one| one["signal"] == "touch").unwrap().clone();
    assert_eq!((&touch["weight"], touch["last"].is_string()), (&100.into(), true));
    assert_eq!(report["doing"], "waiting_for_input");
    let text = rig.keel(&["explain", "idle", "demo/agent"]).expect_code(0).out;
    assert!(text.starts_with("demo/agent/0 is waiting for input\n"), "{text}");
    rig.keel(&["hold", "demo/agent", "--release"]).expect_code(0);
    until_state(&rig, "idle");
    // What is to be kept alive is woken, and held by the next controller too.
    rig.keel(&["hold", "demo/agent", "--for", "1h"]).expect_code(0);
    until_state(&rig, "running");
    controller.end("TERM");
    let _controller = rig.controller();
    let held = explain()["held_until"].clone();
    assert!(held.is_string(), "{held}");
    let done = rig.keel(&["hold", "demo/agent", "--for", "10s"]).expect_code(0);
    assert!(done.out.ends_with(", as was asked for before; keel hold --release ends it\n"), "{done:?}");
    assert_eq!(explain()["held_until"], held, "the longer one stays");
    let done = rig.keel(&["hold", "demo/agent", "--for", "25h"]).expect_code(1);
    assert!(done.err.contains("at most 1d"), "{done:?}");
    rig.keel(&["touch", "demo/nobody"]).expect_code(1);
}

#[test]
fn a_busy_agent_is_not_idle_and_a_terminated_one_comes_back_when_it_is_started() {
    let rig = Rig::new("sandbox");
    let busy = agent("{ max_idle: 2s, max_lifetime: 6s, on_expiry: terminate }").replace("sleep 0.2", "true");
    rig.write("specs/demo.yaml", &busy);
    let _controller = rig.controller();
    rig.until_running("demo", 1);
    until_state(&rig, "terminated");
    let events = rig.keel(&["describe", "demo/agent"]).expect_code(0).out;
    assert!(events.contains("demo/agent/0 reaches lifecycle.max_lifetime at "), "{events}");
    assert!(events.contains("reached its maximum age") && !events.contains("idle since"), "{events}");
    rig.keel(&["exec", "demo/agent", "--", "true"]).expect_code(125);
    let done = rig.keel(&["hold", "demo/agent/0", "--for", "1h"]).expect_code(1);
    assert!(done.err.contains("demo/agent/0 is terminated; `keel start demo/agent/0` starts it"), "{done:?}");
    let text = rig.keel(&["explain", "idle", "demo/agent"]).expect_code(0).out;
    assert!(text.starts_with("demo/agent/0 is not running: it ended at "), "{text}");
    let cpu = text.lines().find(|line| line.trim_start().starts_with("cpu ")).unwrap();
    assert!(cpu.ends_with("ago)"), "what was seen before is remembered: {text}");
    rig.keel(&["start", "demo/agent"]).expect_code(0);
    until_state(&rig, "running");
    assert_eq!(running(&rig)[0]["restarts"], 0);
}

#[test]
fn a_busy_agent_runs_on_after_a_controller_that_stood_still() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &agent("{ max_idle: 2s }").replace("sleep 0.2", "true"));
    let controller = rig.controller();
    rig.until_running("demo", 1);
    let pid = running(&rig)[0]["pid"].clone();
    controller.signal("STOP");
    std::thread::sleep(std::time::Duration::from_secs(5));
    controller.signal("CONT");
    std::thread::sleep(std::time::Duration::from_secs(1));
    let events = rig.keel(&["describe", "demo/agent"]).expect_code(0).out;
    assert_eq!((&running(&rig)[0]["pid"], events.contains("idle since")), (&pid, false), "{events}");
}

/// An agent with a workspace.
fn with_workspace(replicas: u32, version: &str, keep: &str) -> String {
    format!(
        "{}    scale: {{ mode: fixed, replicas: {replicas} }}\n    env: {{ VERSION: {version} }}\n    \
         storage: [{{ type: workspace{keep} }}]\n",
        agent("{ max_idle: 1h }")
    )
}

/// What its workspace has a note of.
fn read_note(rig: &Rig, slot: u32) -> String {
    let name = format!("demo/agent/{slot}");
    rig.keel(&["exec", &name, "--", "sh", "-c", "cat /workspace/note || true"]).expect_code(0).out
}

fn write_note(rig: &Rig, slot: u32) {
    let (name, script) = (format!("demo/agent/{slot}"), format!("echo of {slot} > /workspace/note"));
    rig.keel(&["exec", &name, "--", "sh", "-c", &script]).expect_code(0);
}

#[test]
fn a_workspace_that_is_to_be_kept_outlives_what_declared_it_before_an_instance_was_made_from_that() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &with_workspace(1, "one", ""));
    let controller = rig.controller();
    rig.until_running("demo", 1);
    write_note(&rig, 0);
    rig.keel(&["rollout", "pause", "demo"]).expect_code(0);
    rig.write("specs/demo.yaml", &with_workspace(1, "two", ", keep: true"));
    rig.until("its rollout is held", || rig.get("services").iter().any(|one| one["updated"] == 0));
    controller.end("KILL");
    rig.remove("specs/demo.yaml");
    let _controller = rig.controller();
    rig.until("all is gone", || rig.get("deployments").is_empty());
    rig.write("specs/demo.yaml", &with_workspace(1, "two", ", keep: true"));
    rig.until_running("demo", 1);
    assert_eq!(read_note(&rig, 0), "of 0\n");
}

#[test]
fn a_workspace_outlives_its_instances_and_goes_with_its_slot_unless_it_is_kept() {
    let rig = Rig::new("sandbox");
    let spec = with_workspace;
    let (read, write) = (|slot| read_note(&rig, slot), |slot| write_note(&rig, slot));
    rig.write("specs/demo.yaml", &spec(2, "one", ""));
    let _controller = rig.controller();
    rig.until_running("demo", 2);
    write(0);
    write(1);
    rig.keel(&["stop", "demo/agent/0"]).expect_code(0);
    rig.until("it is stopped", || running(&rig).len() == 1);
    rig.keel(&["start", "demo/agent/0"]).expect_code(0);
    rig.until_running("demo", 2);
    assert_eq!((read(0), read(1)), ("of 0\n".into(), "of 1\n".into()), "each slot has its own");
    rig.write("specs/demo.yaml", &spec(2, "two", ""));
    rig.keel(&["rollout", "status", "demo"]).expect_code(0);
    rig.until_running("demo", 2);
    assert_eq!(read(0), "of 0\n", "over a rollout too");
    rig.write("specs/demo.yaml", &spec(1, "two", ""));
    rig.until_running("demo", 1);
    rig.until("the surplus is gone", || rig.get("instances").len() == 1);
    rig.write("specs/demo.yaml", &spec(2, "two", ""));
    rig.until_running("demo", 2);
    assert_eq!((read(0), read(1)), ("of 0\n".into(), String::new()), "it went with its slot");
    rig.write("specs/demo.yaml", &spec(1, "two", ", keep: true"));
    rig.until("the surplus is gone", || rig.get("instances").len() == 1);
    rig.keel(&["rollout", "status", "demo"]).expect_code(0);
    rig.remove("specs/demo.yaml");
    rig.until("all is gone", || rig.get("deployments").is_empty());
    rig.write("specs/demo.yaml", &spec(1, "two", ", keep: true"));
    rig.until_running("demo", 1);
    assert_eq!(read(0), "of 0\n", "it is kept");
}

#[test]
fn exec_does_not_wait_for_what_a_killed_controller_created_and_nobody_starts() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &spec("demo", 1, "hello"));
    let controller = rig.controller();
    rig.until_running("demo", 1);
    controller.end("KILL");
    // As it is between its creation and its start.
    let mut instances = std::fs::read_dir(rig.path("state/sandbox/instances")).unwrap();
    let instance = instances.next().unwrap().unwrap().path();
    let run: serde_json::Value = serde_json::from_slice(&std::fs::read(instance.join("run.json")).unwrap()).unwrap();
    let supervisor = u32::try_from(run["supervisor"]["pid"].as_u64().unwrap()).unwrap();
    signal(supervisor, "KILL");
    rig.until("its supervisor is gone", || !is_alive(supervisor));
    std::fs::remove_file(instance.join("run.json")).unwrap();

    let refused = rig.keel(&["exec", "demo/web/0", "--", "true"]).expect_code(125);
    assert!(
        refused.err.contains("demo/web/0 is not started yet, and only a running controller starts it"),
        "{refused:?}"
    );
}

#[test]
fn what_a_suspended_deployment_keeps_asleep_is_not_woken_and_told_at_once() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &agent("{ max_idle: 1s, on_idle: suspend }"));
    let _controller = rig.controller();
    rig.until_running("demo", 1);
    until_state(&rig, "suspended");
    rig.keel(&["suspend", "demo"]).expect_code(0);
    let begun = std::time::Instant::now();
    let refused = rig.keel(&["exec", "demo/agent", "--", "true"]).expect_code(125);
    assert!(refused.err.contains("; `keel resume demo` ends that"), "{}", refused.err);
    assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{:?}", begun.elapsed());
    let touched = rig.keel(&["touch", "demo/agent"]).expect_code(0).out;
    let later = "it is not woken while the deployment is suspended, `keel resume demo` ends that\n";
    assert_eq!(touched, format!("instance/demo/agent/0 touched; {later}"));
    assert_eq!(rig.instances(|one| one["state"].clone()), ["suspended"], "not paused by somebody else");
    // Nothing of that is remembered.
    rig.keel(&["resume", "demo"]).expect_code(0);
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(state(&rig), "suspended");
    rig.keel(&["suspend", "demo"]).expect_code(0);
    let held = rig.keel(&["hold", "demo/agent", "--for", "1h"]).expect_code(0).out;
    let later = ", and what is idle is woken once `keel resume demo` is given: the deployment is suspended\n";
    assert!(held.ends_with(later), "{held}");
    rig.keel(&["resume", "demo"]).expect_code(0);
    until_state(&rig, "running");
}

#[test]
fn what_can_not_be_woken_is_told_with_the_reason() {
    let rig = Rig::new("sandbox");
    let shared = rig.path("shared");
    std::fs::create_dir(&shared).unwrap();
    let bound = format!("    sandbox: {{ writable: ['{}'] }}\n", shared.display());
    rig.write("specs/demo.yaml", &(agent("{ max_idle: 1s }") + &bound));
    let _controller = rig.controller();
    rig.until_running("demo", 1);
    until_state(&rig, "idle");
    std::fs::remove_dir(&shared).unwrap();
    let begun = std::time::Instant::now();
    let refused = rig.keel(&["exec", "demo/agent", "--", "true"]).expect_code(125);
    assert!(refused.err.contains("does not come up: ") && refused.err.contains("sandbox.writable"), "{}", refused.err);
    assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{:?}", begun.elapsed());
    rig.write("specs/demo.yaml", &agent("{ max_lifetime: 1s, on_expiry: terminate }"));
    until_state(&rig, "terminated");
    let refused = rig.keel(&["exec", "demo/agent", "--", "true"]).expect_code(125);
    assert!(refused.err.contains("demo/agent/0 is terminated; `keel start demo/agent/0` starts it"), "{}", refused.err);
}

#[test]
fn a_command_that_ends_with_its_instance_tells_why() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &agent("{ max_lifetime: 3s, on_expiry: terminate }"));
    let _controller = rig.controller();
    rig.until_running("demo", 1);
    let killed = rig.keel(&["exec", "demo/agent", "--", "sleep", "100"]).expect_code(137);
    assert!(killed.err.starts_with("keel: demo/agent/0 was stopped: reached its maximum age"), "{}", killed.err);
}

#[test]
fn the_status_of_a_rollout_fails_where_its_replicas_are_down_for_good_and_not_where_they_are_idle() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &agent("{ max_idle: 1s }"));
    let _controller = rig.controller();
    until_state(&rig, "idle");
    rig.keel(&["rollout", "status", "demo", "--timeout", "20s"]).expect_code(0);
    rig.write("specs/demo.yaml", &agent("{ max_lifetime: 2s, on_expiry: terminate }"));
    rig.keel(&["start", "demo/agent"]).expect_code(0);
    until_state(&rig, "terminated");
    let done = rig.keel(&["rollout", "status", "demo", "--timeout", "20s"]).expect_code(1);
    let how = "terminated, as it reached lifecycle.max_lifetime, `keel start demo/agent` starts it";
    assert_eq!(done.err, format!("error: demo/agent: {how}\n"));
    let ends = "version: v1\ndeployment: demo\nservices:\n  agent:\n    image: { name: host }\n    \
                restart_policy: { kind: on_failure }\n    command: { entrypoint: [sh, -c, 'exit 0'] }\n";
    rig.write("specs/demo.yaml", ends);
    until_state(&rig, "completed");
    let done = rig.keel(&["rollout", "status", "demo", "--timeout", "20s"]).expect_code(1);
    assert!(done.err.contains("`keel start demo/agent` starts it again"), "{done:?}");
}
