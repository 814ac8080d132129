//! Health checks, from a start to a restart.

use std::time::Duration;

use serde_json::Value;

use crate::engine::{self, Kind};
use crate::rig::{Rig, is_alive, signal};

/// A deployment of one service with this script, these health checks, and one replica more than it must have at least.
fn spec(script: &str, replicas: u32, health: &str) -> String {
    format!(
        "version: v1\ndeployment: demo\nservices:\n  web:\n    image: {{ name: host }}\n    \
         command: {{ entrypoint: [sh, -c, '{script}'] }}\n    \
         scale: {{ mode: fixed, replicas: {replicas} }}\n    stop_grace_period: 1s\n    \
         rollout: {{ max_surge: 1, max_unavailable: 0 }}\n    \
         endpoints: [{{ name: http, protocol: http, port: 8080 }}]\n    health: {{ {health} }}\n"
    )
}

const HTTP: &str =
    "start_grace: 30s, interval: 1s, retries: 2, check: { type: http, url: \"http://localhost:8080/healthz\" }";

/// What is shown of the instances: phase, health and whether they are ready.
fn states(rig: &Rig) -> Vec<String> {
    rig.instances(|one| {
        let health = one["health"]["state"].as_str().unwrap_or("none");
        format!("{} {health} {}", one["phase"].as_str().unwrap_or_default(), one["ready"])
    })
}

fn pid(instance: &Value) -> u32 {
    u32::try_from(instance["pid"].as_u64().unwrap_or_default()).unwrap()
}

fn restarts(rig: &Rig) -> Vec<u64> {
    rig.instances(|one| one["restarts"].as_u64().unwrap_or_default())
}

#[test]
fn an_instance_is_ready_once_its_port_answers() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &spec("while [ ! -e /tmp/go ]; do sleep 0.05; done; exec keel demo-server", 1, HTTP));
    let controller = rig.controller();
    rig.until("it is checked", || states(&rig) == ["running starting false"]);
    rig.until("what the check says is shown", || rig.get("services")[0]["message"].to_string().contains("refused"));
    assert_ne!(rig.state("demo"), "running");
    rig.keel(&["exec", "demo/web", "--", "touch", "/tmp/go"]).expect_code(0);
    rig.until_running("demo", 1);
    assert_eq!(states(&rig), ["running healthy true"]);
    let pids = rig.instances(pid);
    // The next controller knows nothing at first, and touches nothing for that.
    controller.end("KILL");
    assert_eq!(states(&rig), ["running unknown false"], "nobody checks it");
    let _controller = rig.controller();
    rig.until_running("demo", 1);
    assert_eq!(
        (states(&rig), rig.instances(pid), restarts(&rig)),
        (vec!["running healthy true".into()], pids, vec![0])
    );
}

#[test]
fn replicas_serve_on_while_their_successors_are_unhealthy() {
    let rig = Rig::new("sandbox");
    let health = HTTP.replace("30s", "0s").replace("interval: 1s", "interval: 200ms");
    rig.write("specs/demo.yaml", &spec("exec keel demo-server", 2, &health.replace("0s", "30s")));
    let _controller = rig.controller();
    rig.until_running("demo", 2);
    let before = rig.instances(pid);
    rig.write("specs/demo.yaml", &spec("exec sleep 600", 2, &health));
    rig.until("the successor is restarted", || restarts(&rig).iter().any(|restarts| *restarts > 0));
    rig.until("the service says why", || {
        let conditions = rig.get("services")[0]["conditions"].to_string();
        conditions.contains("CrashLoopBackOff") && conditions.contains("unhealthy: GET http://localhost:8080/healthz")
    });
    assert!(before.iter().all(|pid| is_alive(*pid)), "the old ones serve");
    assert_eq!(rig.get("services")[0]["ready"], 2);
    rig.write("specs/demo.yaml", &spec("echo again; exec keel demo-server", 2, &health.replace("0s", "30s")));
    rig.until("the next version replaces both", || {
        rig.get("services")[0]["updated"] == 2 && rig.state("demo") == "running"
    });
    assert!(before.iter().all(|pid| !is_alive(*pid)));
}

#[test]
fn an_instance_that_becomes_unhealthy_is_restarted_and_says_why() {
    let rig = Rig::new("sandbox");
    let health = "interval: 200ms, retries: 2, start_grace: 0s, \
                  check: { type: command, command: \"test -e /tmp/ok || { echo no /tmp/ok; false; }\" }";
    rig.write("specs/demo.yaml", &spec("touch /tmp/ok; exec sleep 600", 1, health));
    let _controller = rig.controller();
    rig.until_running("demo", 1);
    let before = rig.instances(pid);
    rig.keel(&["exec", "demo/web", "--", "rm", "/tmp/ok"]).expect_code(0);
    rig.until("it is restarted", || restarts(&rig) == [1]);
    rig.until_running("demo", 1);
    assert_ne!(rig.instances(pid), before);
    let said = rig.keel(&["describe", "demo/web/0"]).expect_code(0).out;
    assert!(said.contains("demo/web/0 is unhealthy: exit code 1: no /tmp/ok"), "{said}");
    assert!(said.contains("unhealthy: exit code 1: no /tmp/ok, restart 1 in a row"), "{said}");
    // Once more in a row: it waits, and says so.
    rig.keel(&["exec", "demo/web", "--", "rm", "/tmp/ok"]).expect_code(0);
    rig.until("it waits for its next start", || {
        rig.state("demo") == "degraded" && states(&rig).iter().any(|state| state.contains("exited"))
    });
    let exit = &rig.get("instances")[0]["exit"];
    assert_eq!((&exit["stopped"], &exit["message"]), (&"unhealthy".into(), &"exit code 1: no /tmp/ok".into()));
    let told = rig.keel(&["get", "instances"]).out;
    assert!(told.contains("exited (unhealthy)"), "{told}");
}

/// A controller that begins while another one's stop is under way waits for its end, and counts it as the crash that it is.
#[test]
fn without_a_controller_a_known_crash_is_told_before_what_nobody_checks() {
    let rig = Rig::new("sandbox");
    let health = "interval: 200ms, check: { type: command, command: \"true\" }";
    rig.write("specs/demo.yaml", &spec("exec sleep 600", 2, health));
    let controller = rig.controller();
    rig.until_running("demo", 2);
    controller.end("TERM");
    let said = |what: &str| rig.get(what)[0]["message"].as_str().unwrap().to_owned();
    assert_eq!(rig.state("demo"), "unknown");
    assert!(said("deployments").ends_with("no controller runs that checks it"), "{}", said("deployments"));
    signal(rig.instances(pid)[0], "KILL");
    rig.until("its end is seen", || states(&rig)[0].starts_with("exited "));
    assert_eq!(rig.state("demo"), "degraded");
    for what in ["deployments", "services"] {
        let said = said(what);
        assert!(said.starts_with("no controller runs; ") && said.contains("demo/web/0"), "{what}: {said}");
    }
}

#[test]
fn a_controller_that_is_killed_while_it_stops_an_unhealthy_instance_starts_nothing_beside_it() {
    let rig = Rig::new("sandbox");
    let health = "interval: 200ms, retries: 1, start_grace: 0s, check: { type: command, command: \"false\" }";
    let stubborn = spec("trap \"\" TERM; while :; do sleep 0.1; done", 1, health);
    rig.write("specs/demo.yaml", &stubborn.replace("stop_grace_period: 1s", "stop_grace_period: 4s"));
    let controller = rig.controller();
    rig.until("it is being stopped", || states(&rig).iter().any(|state| state.contains("stopping")));
    controller.end("KILL");
    let _controller = rig.controller();
    rig.until("it is restarted or has a second beside it", || restarts(&rig) != [0]);
    assert_eq!(restarts(&rig), [1]);
}

#[test]
fn without_restarts_an_unhealthy_instance_stays_and_recovers() {
    let rig = Rig::new("sandbox");
    let health = "interval: 200ms, retries: 2, start_grace: 0s, check: { type: command, command: test -e /tmp/ok } }\n    \
                  restart_policy: { kind: 'no'";
    rig.write("specs/demo.yaml", &spec("touch /tmp/ok; exec sleep 600", 1, health));
    let _controller = rig.controller();
    rig.until_running("demo", 1);
    let before = rig.instances(pid);
    rig.keel(&["exec", "demo/web", "--", "rm", "/tmp/ok"]).expect_code(0);
    rig.until("it is unhealthy", || states(&rig) == ["running unhealthy false"]);
    assert_eq!(rig.state("demo"), "degraded");
    rig.keel(&["exec", "demo/web", "--", "touch", "/tmp/ok"]).expect_code(0);
    rig.until_running("demo", 1);
    assert_eq!((rig.instances(pid), restarts(&rig)), (before, vec![0]));
}

#[test]
fn a_check_that_can_not_be_made_is_told_and_restarts_nothing() {
    let rig = Rig::new("sandbox");
    let health = "interval: 200ms, retries: 1, start_grace: 0s, check: { type: tcp, port: 9 }";
    let text = spec("exec sleep 600", 1, health) + "    network_mode: none\n";
    rig.write("specs/demo.yaml", &text);
    let _controller = rig.controller();
    rig.until("why is told", || rig.get("services")[0]["conditions"].to_string().contains("HealthUnknown"));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((states(&rig), restarts(&rig)), (vec!["running unknown false".to_owned()], vec![0]));
}

/// A deployment of busybox on an engine.
fn contained(script: &str, health: &str) -> String {
    let image = "image: { name: 'keel-test/busybox:1', pull_policy: never }";
    spec(script, 1, health).replace("image: { name: host }", image)
}

#[test]
fn containers_are_checked_at_their_address() {
    for kind in [Kind::Docker, Kind::Podman] {
        let Some(socket) = engine::socket(kind) else { continue };
        let rig = Rig::on_engine(&socket);
        let script = "while [ ! -e /tmp/go ]; do sleep 0.05; done; mkdir /tmp/w; echo ok >/tmp/w/healthz; \
                      exec httpd -f -p 8080 -h /tmp/w";
        rig.write("specs/demo.yaml", &contained(script, &HTTP.replace("30s", "5s")));
        let _controller = rig.controller();
        rig.until("it is checked", || rig.get("services")[0]["message"].to_string().contains("become ready"));
        rig.keel(&["exec", "demo/web", "--", "touch", "/tmp/go"]).expect_code(0);
        rig.until_running("demo", 1);
        assert_eq!(states(&rig), ["running healthy true"]);
        // It answers 404 from now on.
        rig.keel(&["exec", "demo/web", "--", "rm", "/tmp/w/healthz"]).expect_code(0);
        rig.until("it is restarted", || restarts(&rig) == [1]);
        let said = rig.keel(&["describe", "demo/web/0"]).expect_code(0).out;
        assert!(said.contains("answered 404 Not Found, expected 200"), "{said}");
    }
}

#[test]
fn the_check_of_an_image_counts_where_the_spec_has_none() {
    let Some(socket) = engine::socket(Kind::Docker) else { return };
    let rig = Rig::on_engine(&socket);
    let docker = |arguments: &[&str]| {
        let done =
            std::process::Command::new("docker").env("DOCKER_HOST", rig.engine()).args(arguments).output().unwrap();
        assert!(done.status.success(), "docker {arguments:?}: {done:?}");
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    };
    let made = docker(&["create", "keel-test/busybox:1", "true"]);
    let check = "HEALTHCHECK --interval=200ms --timeout=5s --retries=2 CMD test -e /tmp/ok || { echo no ok; exit 1; }";
    docker(&["commit", "--change", check, &made, "keel-test/checked:1"]);
    docker(&["rm", &made]);
    let text = contained("while :; do sleep 0.1; done", "CHECK").replace("    health: { CHECK }\n", "");
    let text = text.replace("keel-test/busybox:1", "keel-test/checked:1") + "    init_container: true\n";
    rig.write("specs/demo.yaml", &text);
    let _controller = rig.controller();
    rig.until("its check is seen", || {
        states(&rig).first().is_some_and(|state| state.contains("running") && !state.contains("none"))
    });
    rig.until("it is restarted", || restarts(&rig).iter().any(|restarts| *restarts > 0));
    let said = rig.keel(&["describe", "demo/web"]).expect_code(0).out;
    assert!(said.contains("demo/web/0 is unhealthy: exit code 1: no ok"), "{said}");
    // A check of its own is the only one that counts.
    rig.write("specs/demo.yaml", &(text + "    health: { check: { type: command, command: 'true' } }\n"));
    rig.until_running("demo", 1);
    assert_eq!(states(&rig), ["running healthy true"]);
    drop(rig);
    let _ = std::process::Command::new("docker")
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .args(["rmi", "keel-test/checked:1"])
        .output();
}
