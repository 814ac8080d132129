//! Descriptors: how many a controller may have, and what happens when it has them all.

use crate::rig::{Rig, is_alive, spec};

/// Soft limit of a process, as the kernel lists it.
fn soft_limit(pid: u64) -> String {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(3).unwrap().to_owned()
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

#[test]
fn a_controller_has_all_that_it_may_and_what_it_runs_has_the_usual_number() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &spec("demo", 1, "hi"));
    let controller = rig.controller_after("ulimit -Sn 512");
    rig.until_running("demo", 1);
    assert_ne!(soft_limit(controller.pid().into()), "512");
    let pid = rig.get("instances")[0]["pid"].as_u64().unwrap();
    assert_eq!(soft_limit(pid), "512");
    assert_eq!(rig.keel(&["exec", "demo/web", "--", "sh", "-c", "ulimit -Sn"]).expect_code(0).out, "512\n");
    controller.end("TERM").expect_code(0);
}

#[test]
fn nothing_that_runs_is_taken_for_dead_while_descriptors_are_short() {
    const LIMIT: usize = 60;
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &spec("demo", 20, "hi"));
    let controller = rig.controller_after(&format!("ulimit -n {LIMIT}"));
    rig.until_running("demo", 20);
    let pids = || rig.instances(|one| one["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0));
    let first = pids();
    rig.write("specs/demo.yaml", &spec("demo", 60, "hi"));
    rig.until("descriptors are short", || descriptors(controller.pid()) >= LIMIT - 2);
    // Long enough for several looks.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let log = controller.end("TERM").expect_code(0).err;
    assert!(log.contains("Too many open files"), "{log}");
    // As steps and waits say of what is started again: `exited 1, restart 1 in a row`, `wait to restart`.
    assert!(!log.contains(", restart ") && !log.contains("to restart"), "{log}");
    let controller = rig.controller();
    rig.until_running("demo", 60);
    assert!(first.iter().all(|pid| is_alive(*pid)));
    assert_eq!(rig.instances(|one| one["restarts"].as_u64()), [Some(0); 60]);
    controller.end("TERM").expect_code(0);
}
