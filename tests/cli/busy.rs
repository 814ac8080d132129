//! Commands on a state directory that another command works on.

use crate::rig::{Rig, spec};

/// Something that is applied without a controller takes as long as this.
const WORKS: &str = "    rollout: { min_ready: 3s }\n";

fn slow(deployment: &str) -> String {
    format!("{}{WORKS}", spec(deployment, 1, "hi"))
}

#[test]
fn a_command_waits_for_another_one_as_long_as_its_timeout_allows() {
    let rig = Rig::new("sim");
    rig.write("a.yaml", &slow("a"));
    rig.write("b.yaml", &spec("b", 1, "hi"));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| rig.keel(&["apply", "-f", "a.yaml"]));
        rig.until("it works", || {
            std::fs::read_to_string(rig.path("state/lock")).is_ok_and(|holder| !holder.is_empty())
        });
        let holder = std::fs::read_to_string(rig.path("state/lock")).unwrap();
        let (pid, role) = holder.trim().split_once(' ').unwrap();
        assert_eq!(role, "command");

        let done = rig.keel(&["apply", "-f", "b.yaml", "--timeout", "100ms"]).expect_code(124);
        let state = rig.path("state");
        let why = format!(
            "error: not done after 100ms: a keel command (pid {pid}) works on {}; wait until it is done, or use another \
             --state-dir\n",
            state.display()
        );
        assert_eq!(done.err, why);
        let done = rig.keel(&["run", "--once", "."]).expect_code(1);
        assert!(done.err.contains("wait until it is done"), "{}", done.err);

        let done = rig.keel(&["apply", "-f", "b.yaml"]).expect_code(0);
        assert!(done.err.starts_with("waiting: a keel command (pid "), "{}", done.err);
        assert_eq!(done.out, "deployment/b created\n");
        assert_eq!(first.join().unwrap().expect_code(0).out, "deployment/a created\n");
    });
}

#[test]
fn a_controller_that_starts_takes_over_from_a_command_that_waits() {
    let rig = Rig::new("sandbox");
    rig.write("a.yaml", &slow("a").replace("min_ready: 3s", "min_ready: 15s"));
    std::fs::create_dir_all(rig.path("specs")).unwrap();
    std::thread::scope(|scope| {
        let apply = scope.spawn(|| rig.keel(&["apply", "-f", "a.yaml"]));
        rig.until("it is begun", || rig.instances(|one| one["phase"] == "running") == [true]);
        let before = rig.instances(|one| one["pid"].clone());
        let _controller = rig.controller();
        assert!(!apply.is_finished(), "it waits on, as a client of the controller");
        let done = apply.join().unwrap().expect_code(0);
        assert_eq!(done.out, "deployment/a created\n");
        assert!(done.err.contains("a controller starts, which carries on with it\n"), "{}", done.err);
        assert_eq!((rig.state("a").as_str(), rig.instances(|one| one["pid"].clone())), ("running", before));
    });
}

#[test]
fn the_output_of_what_crashed_is_shown_and_not_of_what_was_ended() {
    let rig = Rig::new("sim");
    let service = |name: &str, program: &str, more: &str| {
        format!("  {name}:\n    image: {{ name: host }}\n    command: {{ entrypoint: [sim, {program}] }}\n    {more}\n")
    };
    let crashes = service("api", "print no database, exit 3", "restart_policy: { kind: \"no\" }");
    let ends = service("short", "print fine", "lifecycle: { max_lifetime: 100ms, on_expiry: terminate }");
    rig.write("specs/x.yaml", &format!("version: v1\ndeployment: x\nservices:\n{crashes}{ends}"));
    let _controller = rig.controller();
    rig.until("both ended", || rig.instances(|one| one["phase"] == "exited") == [true, true]);
    let done = rig.keel(&["apply", "-f", "specs"]).expect_code(1);
    assert!(done.err.ends_with("last 1 line of x/api/0:\n  no database\n"), "{}", done.err);
}

#[test]
fn the_status_of_a_rollout_waits_for_a_command_that_carries_it_out() {
    let rig = Rig::new("sandbox");
    rig.write("a.yaml", &slow("a"));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| rig.keel(&["apply", "-f", "a.yaml"]));
        rig.until("it is begun", || rig.get("services").len() == 1);
        let done = rig.keel(&["rollout", "status", "a"]).expect_code(0);
        assert!(done.out.ends_with("service \"a/web\" successfully rolled out\n"), "{done:?}");
        assert!(done.out.starts_with("Waiting for service \"a/web\" rollout to finish"), "{done:?}");
        first.join().unwrap().expect_code(0);
    });
    // Nobody goes on with what is left by then.
    rig.write("a.yaml", &slow("a").replace("hi", "ho"));
    rig.keel(&["apply", "-f", "a.yaml", "--timeout", "1s"]).expect_code(124);
    let done = rig.keel(&["rollout", "status", "a"]).expect_code(1);
    assert!(done.err.contains("no controller runs, so nothing goes on"), "{done:?}");
    rig.keel(&["delete", "a"]).expect_code(0);
}
