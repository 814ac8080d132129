//! Real containers: what a Docker Engine and Podman run for a controller that is watched, edited, broken and killed.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use crate::engine::{self, Kind};
use crate::private::Private;
use crate::rig::Rig;

/// Instants at which the controller is killed in the middle of rollouts.
const KILLS: u32 = 20;

fn spec(deployment: &str, replicas: u32, greeting: &str) -> String {
    format!(
        "version: v1\ndeployment: {deployment}\nservices:\n  web:\n    image: {{ name: 'keel-test/busybox:1', pull_policy: never }}\n    \
         command: {{ entrypoint: [sh, -c, 'trap \"exit 0\" TERM; echo $GREETING; while :; do sleep 0.1; done'] }}\n    \
         env: {{ GREETING: {greeting} }}\n    scale: {{ mode: fixed, replicas: {replicas} }}\n    \
         stop_grace_period: 5s\n    init_container: false\n"
    )
}

fn rig(kind: Kind) -> Option<Rig> {
    let socket = engine::socket(kind)?;
    Some(Rig::on_engine(&socket))
}

/// Runs the engine's own client.
fn docker(rig: &Rig, arguments: &[&str]) -> String {
    let output = Command::new("docker").env("DOCKER_HOST", rig.engine()).args(arguments).output().unwrap();
    assert!(output.status.success(), "docker {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// An installation on an engine that has nothing yet, with an image in it.
fn with_busybox(engine: &Private) -> Rig {
    let rig = Rig::on_engine(&engine.socket());
    let rootfs = std::env::var("KEEL_TEST_ROOTFS").expect(".ci/engines start sets it");
    docker(&rig, &["import", &rootfs, "keel-test/busybox:1"]);
    rig
}

/// A service that runs a script of the shell, as a line of a deployment.
fn service(name: &str, script: &str, fields: &str) -> String {
    format!(
        "  {name}:\n    image: {{ name: 'keel-test/busybox:1', pull_policy: never }}\n    network_mode: none\n    \
         init_container: false\n    command: {{ entrypoint: [sh, -c, \"{script}\"] }}\n{fields}"
    )
}

/// Names of all containers of this installation, dead ones too.
fn containers(rig: &Rig) -> BTreeSet<String> {
    let owner = std::fs::read_to_string(rig.path("state/owner")).unwrap();
    let filter = format!("label=dev.evenkeel.owner={}", owner.trim());
    let names = docker(rig, &["ps", "--all", "--filter", &filter, "--format", "{{.Names}}"]);
    names.lines().map(str::to_owned).collect()
}

fn ids(rig: &Rig) -> Vec<String> {
    rig.instances(|one| one["runtime_id"].as_str().unwrap_or_default().to_owned())
}

fn slots(rig: &Rig) -> Vec<String> {
    rig.instances(|one| {
        format!("{} {}", one["name"].as_str().unwrap_or_default(), one["phase"].as_str().unwrap_or_default())
    })
}

#[test]
fn containers_follow_their_file() {
    let Some(rig) = rig(Kind::Docker) else { return };
    let labelled = spec("follow", 2, "one") + "    labels: { com.docker.compose.project: another }\n";
    rig.write("specs/shop.yaml", &labelled);
    let _controller = rig.controller();
    rig.until_running("follow", 2);
    let conditions = rig.get("services")[0]["conditions"].to_string();
    assert!(conditions.contains("LabelReplaced"), "{conditions}");
    rig.write("specs/shop.yaml", &spec("follow", 2, "one"));
    rig.until("the label is gone", || !rig.get("services")[0]["conditions"].to_string().contains("LabelReplaced"));
    rig.until_running("follow", 2);
    let first = ids(&rig);
    rig.write("specs/shop.yaml", &spec("follow", 3, "one"));
    rig.until_running("follow", 3);
    assert_eq!(ids(&rig)[..2], first, "scaling up replaces nothing");
    rig.write("specs/shop.yaml", "deployment: follow\nservices: [");
    rig.until("the mistake is shown", || rig.keel(&["get", "deploy"]).err.contains("specs/shop.yaml:"));
    assert_eq!(ids(&rig)[..2], first, "a broken file replaces nothing");
    let before = rig.get("services")[0]["revision"].clone();
    rig.write("specs/shop.yaml", &spec("follow", 3, "two"));
    rig.until("the new revision runs", || {
        let service = &rig.get("services")[0];
        service["revision"] != before
            && service["updated"] == 3
            && service["ready"] == 3
            && rig.state("follow") == "running"
    });
    assert!(ids(&rig).iter().all(|id| !first.contains(id)), "every container was replaced");
    assert!(rig.keel(&["logs", "follow/web/0"]).out.contains("two"));
    rig.remove("specs/shop.yaml");
    rig.until("everything is gone", || containers(&rig).is_empty() && rig.get("deployments").is_empty());
}

#[test]
fn a_killed_or_removed_container_is_replaced() {
    for kind in [Kind::Docker, Kind::Podman] {
        let Some(rig) = rig(kind) else { continue };
        rig.write("specs/shop.yaml", &spec("heal", 2, "one"));
        let _controller = rig.controller();
        rig.until_running("heal", 2);
        let before = ids(&rig);
        docker(&rig, &["kill", &before[0]]);
        rig.until("another container took the slot", || ids(&rig).first() != before.first());
        rig.until_running("heal", 2);
        docker(&rig, &["rm", "--force", &before[1]]);
        rig.until("the removed one is replaced", || !ids(&rig).contains(&before[1]));
        rig.until_running("heal", 2);
        let told = rig.keel(&["describe", "heal"]).out;
        // The end comes first, and the removal right after it.
        let removed = told.contains("heal/web/1 was removed from docker by somebody else");
        assert!(removed || told.contains("heal/web/1 (") && told.contains("killed by SIGKILL"), "{told}");
        assert!(told.contains("killed by SIGKILL, restart 1 in a row"), "{told}");
        let stopped = ids(&rig)[1].clone();
        docker(&rig, &["stop", &stopped]);
        rig.until("the stopped one is replaced", || !ids(&rig).contains(&stopped));
        rig.until_running("heal", 2);
        let told = rig.keel(&["describe", "heal/web/1"]).out;
        // Podman does not tell of the signal of a stop.
        let says = told.contains("heal/web/1 was sent SIGTERM by somebody else");
        assert_eq!(says, kind == Kind::Docker, "{told}");
        // What ended by its policy anyway is started again before Podman says that it was stopped.
        assert!(told.contains("stopped by somebody else: ") || kind == Kind::Podman, "{told}");
        assert_eq!(slots(&rig), ["heal/web/0 running", "heal/web/1 running"]);
    }
}

#[test]
fn a_paused_container_runs_on_and_is_not_replaced() {
    for kind in [Kind::Docker, Kind::Podman] {
        let Some(rig) = rig(kind) else { continue };
        rig.write("specs/shop.yaml", &spec("paused", 2, "one"));
        let controller = rig.controller();
        rig.until_running("paused", 2);
        let before = ids(&rig);
        docker(&rig, &["pause", &before[0]]);
        rig.until("it runs on", || {
            docker(&rig, &["inspect", "--format", "{{.State.Status}}", &before[0]]) == "running\n"
        });
        rig.until_running("paused", 2);
        assert_eq!(ids(&rig), before);
        let told = controller.end("TERM").err;
        assert!(told.contains("resume paused/web/0") && told.contains("paused by somebody else"), "{told}");
    }
}

#[test]
fn a_container_that_somebody_changed_is_replaced_and_serves_until_then() {
    let Some(rig) = rig(Kind::Docker) else { return };
    let limited = spec("drift", 1, "one")
        + "    resources: { memory: 64Mi }\n    rollout: { max_surge: 1, max_unavailable: 0, min_ready: 2s }\n";
    rig.write("specs/shop.yaml", &limited);
    let controller = rig.controller();
    rig.until_running("drift", 1);
    let old = ids(&rig)[0].clone();
    docker(&rig, &["update", "--memory", "256m", "--memory-swap", "512m", &old]);
    let what = "memory is 256Mi, not 64Mi; memory_swap is 512Mi, not 128Mi";
    rig.until("its successor is there as well", || ids(&rig).len() == 2);
    assert_eq!(docker(&rig, &["inspect", "--format", "{{.State.Status}}", &old]), "running\n");
    let told = rig.keel(&["describe", "drift/web/0"]).out;
    assert!(told.contains("ChangedByOthers") && told.contains(what), "{told}");
    rig.until("the changed one is gone", || !ids(&rig).contains(&old));
    rig.until_running("drift", 1);
    let told = rig.keel(&["describe", "drift"]).out;
    assert!(told.contains(&format!("drift/web/0 was changed by somebody else: {what}")), "{told}");
    assert_eq!(rig.instances(|one| one["restarts"].clone()), [0]);
    let told = controller.end("TERM").err;
    assert!(told.contains(&format!("changed by somebody else: {what}")), "{told}");
}

#[test]
fn a_controller_killed_at_any_instant_of_a_rollout_leaves_nothing_behind() {
    let Some(rig) = rig(Kind::Docker) else { return };
    rig.write("specs/shop.yaml", &spec("kill9", 3, "start"));
    let controller = rig.controller();
    rig.until_running("kill9", 3);
    controller.end("KILL");
    for kill in 0..KILLS {
        rig.write("specs/shop.yaml", &spec("kill9", 3, &format!("edit-{kill}")));
        let controller = rig.controller();
        // Spread over the second or so that a step of the rollout takes.
        std::thread::sleep(Duration::from_millis(u64::from(kill * 67 % 1000)));
        controller.end("KILL");
    }
    let _controller = rig.controller();
    rig.until("the last edit runs", || {
        let service = &rig.get("services")[0];
        service["updated"] == 3
            && rig.instances(|one| one["revision"].clone()).iter().all(|one| *one == service["revision"])
            && rig.state("kill9") == "running"
    });
    assert_eq!(slots(&rig), ["kill9/web/0 running", "kill9/web/1 running", "kill9/web/2 running"]);
    let last = format!("edit-{}\n", KILLS - 1);
    for id in ids(&rig) {
        assert_eq!(docker(&rig, &["exec", &id, "sh", "-c", "echo $GREETING"]), last);
    }
    rig.until("no other container is left", || containers(&rig).len() == 3);
}

#[test]
fn a_stop_that_a_killed_controller_made_is_not_taken_for_an_end_of_its_own() {
    for kind in [Kind::Docker, Kind::Podman] {
        let Some(rig) = rig(kind) else { continue };
        let text = |greeting: &str| {
            let slow = spec("halfway", 1, greeting).replace("exit 0", "echo asked; sleep 2; exit 0");
            slow.replace("5s", "30s") + "    restart_policy: { kind: 'no' }\n    rollout: { strategy: recreate }\n"
        };
        rig.write("specs/shop.yaml", &text("one"));
        let controller = rig.controller();
        rig.until_running("halfway", 1);
        let first = ids(&rig)[0].clone();
        rig.write("specs/shop.yaml", &text("two"));
        rig.until("it is asked to end", || docker(&rig, &["logs", &first]).contains("asked"));
        controller.end("KILL");
        rig.write("specs/shop.yaml", &text("one"));
        rig.until("it ended", || docker(&rig, &["inspect", "--format", "{{.State.Status}}", &first]) == "exited\n");
        let _controller = rig.controller();
        rig.until_running("halfway", 1);
        assert_ne!(ids(&rig), [first]);
        assert_eq!(rig.instances(|one| one["restarts"].clone()), [0]);
    }
}

#[test]
fn a_foreign_container_of_the_same_name_is_reported_and_left_alone() {
    let Some(rig) = rig(Kind::Docker) else { return };
    rig.write("specs/shop.yaml", &spec("foreign", 1, "one"));
    let plan = rig.keel(&["plan", "-f", "specs", "-o", "json"]).json().to_string();
    let revision = plan.split("v1-").nth(1).unwrap()[..8].to_owned();
    let name = format!("foreign_web_0_{revision}_0");
    docker(&rig, &["create", "--name", &name, "keel-test/busybox:1", "true"]);
    let controller = rig.controller();
    rig.until("the clash is told", || {
        let deployments = rig.get("deployments");
        deployments.first().is_some_and(|one| one["message"].as_str().unwrap_or_default().contains(&name))
    });
    assert_eq!(docker(&rig, &["inspect", "--format", "{{.State.Status}}", &name]), "created\n");
    docker(&rig, &["rm", &name]);
    rig.until_running("foreign", 1);
    drop(controller);
}

#[test]
fn an_engine_that_is_shut_down_is_no_failure_of_what_it_ran() {
    let Some(mut engine) = Private::new() else { return };
    engine.leaves_containers = false;
    engine.start();
    let rig = with_busybox(&engine);
    let waits = "while :; do sleep 0.1; done";
    let services = [
        service("a", &format!("trap 'exit 0' TERM; {waits}"), "    restart_policy: { kind: on_failure }\n"),
        service("b", &format!("trap 'exit 1' TERM; {waits}"), "    errors: { on_panic: { action: isolate } }\n"),
        service("c", &format!("trap 'exit 3' TERM; {waits}"), "    rtype: job\n    job: { backoff_limit: 0 }\n"),
    ];
    rig.write("specs/shut.yaml", &format!("version: v1\ndeployment: shut\nservices:\n{}", services.concat()));
    let _controller = rig.controller();
    let runs = || rig.instances(|one| one["phase"] == "running").iter().filter(|runs| **runs).count() == 3;
    rig.until("all run", runs);
    let before = ids(&rig);
    engine.stop();
    engine.start();
    rig.until("all run again", || runs() && ids(&rig).iter().all(|id| !before.contains(id)));
    let told = rig.keel(&["describe", "shut"]).out;
    assert!(told.contains("stopped by somebody else: "), "{told}");
    rig.remove("specs/shut.yaml");
    rig.until("everything is gone", || containers(&rig).is_empty() && rig.get("deployments").is_empty());
}

/// How an engine ends that nobody sees ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outage {
    /// It is shut down after the controller was killed.
    Shutdown,
    /// It is killed under the controller, and ends its containers when it starts again.
    Killed,
    /// The controller, it and its containers are killed at once.
    PowerLoss,
}

#[test]
fn what_ends_with_its_engine_or_machine_unseen_has_neither_failed_nor_done_its_work() {
    let Some(mut engine) = Private::with_default_network() else { return };
    engine.start();
    let rig = with_busybox(&engine);
    let ends = |code: u8| format!("trap 'exit {code}' TERM; while :; do sleep 0.1; done");
    let job = "    rtype: job\n    job: { backoff_limit: 0 }\n";
    let once = "    restart_policy: { kind: 'no' }\n";
    let services = [
        service("done", "exit 0", once),
        service("job", &ends(143), job),
        service("killed", "while :; do sleep 0.1; done", &format!("{job}    stop_grace_period: 1s\n")),
        service("obeys", &ends(0), job),
        service("once", &ends(143), once),
    ];
    rig.write("specs/away.yaml", &format!("version: v1\ndeployment: away\nservices:\n{}", services.concat()));
    let mut controller = Some(rig.controller());
    let phases = || rig.instances(|one| one["phase"].as_str().unwrap().to_owned());
    let in_place = || phases() == ["exited", "running", "running", "running", "running"];
    use Outage::{Killed, PowerLoss, Shutdown};
    for outage in [Shutdown, Killed, PowerLoss, Killed, Killed] {
        rig.until("all but the first run", in_place);
        let before = ids(&rig);
        if outage != Killed {
            controller.take().unwrap().end("KILL");
        }
        match outage {
            Shutdown => engine.stop(),
            Killed => engine.kill(),
            PowerLoss => engine.lose_power(),
        }
        engine.start();
        controller = controller.or_else(|| Some(rig.controller()));
        rig.until("others run", || in_place() && ids(&rig)[1..].iter().all(|id| !before.contains(id)));
        assert_eq!(ids(&rig)[0], before[0], "{outage:?}: what was seen to be done stays done");
        assert_eq!(rig.instances(|one| one["restarts"].clone()), [0; 5], "{outage:?}");
    }
    let told = rig.keel(&["describe", "away"]).out;
    assert!(told.contains("stopped by somebody else: ") && !told.contains("failed"), "{told}");
    rig.remove("specs/away.yaml");
    rig.until("everything is gone", || containers(&rig).is_empty() && rig.get("deployments").is_empty());
}

#[test]
fn an_engine_that_restarts_under_the_controller_is_caught_up_with() {
    let Some(mut engine) = Private::new() else { return };
    engine.start();
    let rig = with_busybox(&engine);
    // The private engine has no bridge.
    let text = spec("restart", 2, "one").replace("    init_container", "    network_mode: none\n    init_container");
    rig.write("specs/restart.yaml", &text);
    let _controller = rig.controller();
    rig.until_running("restart", 2);
    let before = ids(&rig);
    let died = rig.instances(|one| one["pid"].as_u64().unwrap());
    engine.stop();
    rig.until("the outage is told", || rig.state("restart") == "unknown");
    assert_eq!(ids(&rig), before, "an engine that does not answer does not look like an empty one");
    crate::rig::signal(u32::try_from(died[0]).unwrap(), "KILL");
    engine.start();
    rig.until("what died meanwhile is replaced", || ids(&rig).first().is_some_and(|id| *id != before[0]));
    rig.until_running("restart", 2);
    assert_eq!(ids(&rig)[1], before[1], "what went on is left alone");
    rig.remove("specs/restart.yaml");
    rig.until("everything is gone", || containers(&rig).is_empty() && rig.get("deployments").is_empty());
}

#[test]
fn an_engine_that_restarts_with_nothing_left_running_starts_services_in_order() {
    let Some(mut engine) = Private::new() else { return };
    engine.start();
    let rig = with_busybox(&engine);
    let of = |name: &str, fields: &str| {
        let service =
            spec("order", 1, name).replace("    init_container", "    network_mode: none\n    init_container");
        let (_, service) = service.split_once("  web:").unwrap();
        format!("  {name}:{service}{fields}")
    };
    let health = "    health: { interval: 1s, check: { type: command, command: 'sleep 1' } }\n";
    let init = "    init: { steps: [{ id: make, uses: init.run, with: { command: 'echo $GREETING' } }] }\n";
    let services = of("a", &format!("    depends: [{{ service: z }}]\n{init}")) + &of("z", health);
    rig.write("specs/order.yaml", &format!("version: v1\ndeployment: order\nservices:\n{services}"));
    let _controller = rig.controller();
    rig.until_running("order", 2);
    let in_order = || {
        let started = rig.instances(|one| one["started_at"].as_str().unwrap().to_owned());
        let names = rig.instances(|one| one["name"].clone());
        assert_eq!(names, ["order/a/0", "order/z/0"]);
        let [a, z] = started.as_slice() else { panic!("{started:?}") };
        // A check that passes takes a second.
        let parsed = |text: &str| chrono::DateTime::parse_from_rfc3339(text).unwrap();
        (parsed(a) - parsed(z)).num_milliseconds() >= 1000
    };
    assert!(in_order());
    let before = ids(&rig);
    let died = rig.instances(|one| u32::try_from(one["pid"].as_u64().unwrap()).unwrap());
    engine.stop();
    rig.until("the outage is told", || rig.state("order") == "unknown");
    died.iter().for_each(|pid| crate::rig::signal(*pid, "KILL"));
    engine.start();
    rig.until("both are replaced", || ids(&rig).iter().all(|id| !before.contains(id)) && ids(&rig).len() == 2);
    rig.until_running("order", 2);
    assert!(in_order());
    rig.remove("specs/order.yaml");
    rig.until("everything is gone", || containers(&rig).is_empty() && rig.get("deployments").is_empty());
}

#[test]
fn exec_tells_by_its_code_why_a_command_did_not_run() {
    for kind in [Kind::Docker, Kind::Podman] {
        let Some(rig) = rig(kind) else { continue };
        rig.write("exec.yaml", &spec("exec", 1, "one"));
        rig.keel(&["apply", "-f", "exec.yaml"]).expect_code(0);
        for (words, code) in [
            (&["true"][..], 0),
            (&["sh", "-c", "exit 126"], 126),
            (&["sh", "-c", "exit 127"], 127),
            (&["no-such-program"], 127),
            (&["/etc/passwd"], 126),
        ] {
            let done = rig.keel(&[&["exec", "exec/web", "--"], words].concat()).expect_code(code);
            assert_eq!(done.err.contains("error: "), words.len() == 1 && code != 0, "{}", done.err);
        }
        rig.keel(&["exec", "exec/web", "-w", "/no/such", "--", "true"]).expect_code(125);
        rig.keel(&["exec", "exec/web/7", "--", "true"]).expect_code(125);
    }
}

#[test]
fn a_network_that_can_not_be_removed_is_told_and_goes_when_it_is_free() {
    let Some(rig) = rig(Kind::Docker) else { return };
    rig.write("specs/held.yaml", &spec("held", 1, "one"));
    let controller = rig.controller();
    rig.until_running("held", 1);
    let holder = docker(&rig, &["run", "-d", "--network", "keel_held", "keel-test/busybox:1", "sleep", "600"]);
    rig.remove("specs/held.yaml");
    let said = || rig.get("deployments").first().map(|one| one["message"].to_string()).unwrap_or_default();
    rig.until("it is told", || {
        said().contains("wait to remove what held shares on docker") && said().contains("endpoints")
    });
    let delete = rig.keel(&["delete", "held", "--timeout", "1s"]).expect_code(124);
    assert_eq!(delete.out, "", "it is not gone");
    assert!(delete.err.contains("it is removing: wait to remove what held shares on docker"), "{}", delete.err);
    controller.end("TERM").expect_code(0);
    let once = rig.keel(&["run", "specs", "--once", "--timeout", "3s"]).expect_code(124);
    assert!(once.err.contains("it is removing: wait to remove what held shares on docker"), "{}", once.err);
    docker(&rig, &["rm", "--force", holder.trim()]);
    assert_eq!(rig.keel(&["delete", "held"]).expect_code(0).out, "deployment/held deleted\n");
}
