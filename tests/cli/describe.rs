//! `keel describe`: what was asked for against what is enforced, instance by instance.

use serde_json::Value;

use crate::engine::{self, Kind};
use crate::rig::Rig;

/// One service with something of everything.
const CONFINED: &str = "version: v1
deployment: demo
services:
  web:
    image: { name: host }
    command: { entrypoint: [sleep, '1000'] }
    resources: { memory: 64Mi }
    sandbox: { network: none, seccomp: strict }
    stop_grace_period: 0s
";

/// The controls of the first instance that is described.
fn controls(described: &Value) -> Vec<Value> {
    described["instances"][0]["controls"].as_array().unwrap().clone()
}

fn control(described: &Value, name: &str) -> Value {
    controls(described).into_iter().find(|one| one["control"] == name).unwrap()
}

/// What the runtime can do for a control, as `keel doctor` tells it.
fn support(rig: &Rig, runtime: &str, name: &str) -> String {
    let reports = rig.keel(&["doctor", "-o", "json"]).expect_code(0).json();
    let report = reports.as_array().unwrap().iter().find(|one| one["runtime"] == runtime).unwrap().clone();
    let one = report["controls"].as_array().unwrap().iter().find(|one| one["control"] == name).unwrap().clone();
    one["support"].as_str().unwrap().to_owned()
}

#[test]
fn requested_and_enforced_are_told_with_and_without_a_controller() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", CONFINED);
    let controller = rig.controller();
    rig.until_running("demo", 1);
    let look = || {
        let described = rig.keel(&["describe", "demo/web/0", "-o", "json"]).expect_code(0).json();
        assert_eq!(described["deployment"]["state"], "running");
        let instance = &described["instances"][0];
        assert_eq!((&instance["phase"], instance["pid"].is_u64()), (&Value::from("running"), true), "{instance}");
        assert_eq!(control(&described, "memory_limit")["requested"], "64Mi");
        let network = control(&described, "network_isolation");
        assert_eq!(network["requested"], "none");
        if network["state"] == "enforced" {
            assert_eq!(network["by"], "network namespace with loopback only");
        }
        assert_eq!(control(&described, "seccomp")["requested"], "strict");
        assert_eq!(control(&described, "cpu_limit")["state"], "not_requested");
        for name in ["memory_limit", "network_isolation", "seccomp", "pid_namespace", "read_only_root"] {
            let told = control(&described, name);
            assert_eq!(told["state"], support(&rig, "sandbox", name), "{told}");
        }
        assert!(described["events"].to_string().contains("start demo/web/0"), "{described}");
        described
    };
    let with = look();
    let text = rig.keel(&["describe", "demo"]).expect_code(0).out;
    for expected in
        ["Deployment:   demo", "Service:      demo/web", "Instance:     demo/web/0", "CONTROL", "64Mi", "Events:"]
    {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
    controller.end("TERM").expect_code(0);
    let without = look();
    assert_eq!(controls(&with), controls(&without));
}

#[test]
fn the_memory_limit_is_read_from_the_kernel() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", CONFINED);
    let _controller = rig.controller();
    rig.until_running("demo", 1);
    let told = |rig: &Rig| control(&rig.keel(&["describe", "demo/web/0", "-o", "json"]).json(), "memory_limit");
    let pid = rig.get("instances")[0]["pid"].as_u64().unwrap();
    let Some(file) = limit_file(pid) else {
        eprintln!("skipped: no control group limits memory here");
        return;
    };
    assert_eq!(told(&rig)["state"], "enforced", "{}", told(&rig));
    std::fs::write(&file, (128 << 20).to_string()).unwrap();
    let changed = told(&rig);
    assert_eq!(changed["state"], "degraded", "{changed}");
    assert!(changed["why"].as_str().unwrap().contains("134217728"), "{changed}");
}

/// The file that limits the memory of a process, of version 2 or 1 of control groups.
fn limit_file(pid: u64) -> Option<std::path::PathBuf> {
    let own = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = |line: &str| line.rsplit(':').next().unwrap_or_default().trim_start_matches('/').to_owned();
    let files = own.lines().flat_map(|line| match line.split(':').nth(1) {
        Some("") => vec![
            format!("/sys/fs/cgroup/{}/memory.max", path(line)),
            format!("/sys/fs/cgroup/unified/{}/memory.max", path(line)),
        ],
        Some("memory") => vec![format!("/sys/fs/cgroup/memory/{}/memory.limit_in_bytes", path(line))],
        _ => Vec::new(),
    });
    files.map(std::path::PathBuf::from).find(|file| file.exists())
}

#[test]
fn what_does_not_exist_is_not_found_and_what_ended_says_how() {
    let rig = Rig::new("sandbox");
    let done = rig.keel(&["describe", "demo"]).expect_code(1);
    assert!(done.err.contains("error: demo is not declared and does not exist"), "{}", done.err);
    rig.write("specs/demo.yaml", &CONFINED.replace("sleep, '1000'", "sh, -c, 'exit 3'"));
    let _controller = rig.controller();
    rig.until("it ended", || rig.get("instances").first().is_some_and(|one| one["exit"]["code"] == 3));
    let text = rig.keel(&["describe", "instance", "demo/web/0"]).expect_code(0).out;
    assert!(text.contains("exit code 3, at "), "{text}");
    for name in ["demo/ghost", "demo/web/7"] {
        rig.keel(&["describe", name]).expect_code(1);
    }
    // One that is wanted and does not come up is looked into like this.
    rig.write("specs/demo.yaml", &CONFINED.replace("name: host", "name: 'dir:/nowhere'"));
    let refused = || rig.keel(&["describe", "demo/web/1"]).expect_code(1).err;
    assert!(refused().contains("does not exist"), "there is one replica");
    rig.write(
        "specs/next.yaml",
        &CONFINED.replace("name: host", "name: 'dir:/nowhere'").replace("deployment: demo", "deployment: next"),
    );
    rig.until("it is refused", || rig.state("next") == "failed" || rig.state("next") == "degraded");
    let text = rig.keel(&["describe", "next/web/0"]).expect_code(0).out;
    assert!(text.contains("/nowhere"), "{text}");
}

#[test]
fn containers_are_described_by_their_inspection() {
    let Some(socket) = engine::socket(Kind::Docker) else { return };
    let rig = Rig::on_engine(&socket);
    let spec = "version: v1
deployment: told
services:
  web:
    image: { name: 'keel-test/busybox:1', pull_policy: never }
    command: { entrypoint: [sleep, '1000'] }
    network_mode: none
    cap_drop: [ALL]
    read_only_root_fs: true
    user: '1000'
    init_container: false
    stop_grace_period: 0s
";
    rig.write("specs/told.yaml", spec);
    let _controller = rig.controller();
    rig.until_running("told", 1);
    let described = rig.keel(&["describe", "told/web/0", "-o", "json"]).expect_code(0).json();
    for (name, requested, state) in [
        ("network_isolation", "none", "enforced"),
        ("capability_drop", "default without ALL", "enforced"),
        ("read_only_root", "read-only", "enforced"),
        ("user", "1000", "enforced"),
    ] {
        let told = control(&described, name);
        assert_eq!((&told["requested"], &told["state"]), (&Value::from(requested), &Value::from(state)), "{told}");
    }
    assert_eq!(control(&described, "memory_limit")["state"], "not_requested");
}
