//! `keel top`: what running instances use.

use crate::rig::Rig;

const LIMITED: &str = "version: v1
deployment: demo
services:
  busy:
    image: { name: host }
    command: { entrypoint: [sh, -c, 'while :; do :; done'] }
    resources: { memory: 64Mi }
    stop_grace_period: 0s
  idle:
    image: { name: host }
    command: { entrypoint: [sleep, '1000'] }
    stop_grace_period: 0s
";

#[test]
fn usage_is_told_with_and_without_a_controller() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", LIMITED);
    let controller = rig.controller();
    rig.until_running("demo", 2);
    let look = || {
        let told = rig.keel(&["top", "-o", "json"]).expect_code(0).json();
        let names: Vec<&str> = told.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["demo/busy/0", "demo/idle/0"]);
        let (busy, idle) = (&told[0], &told[1]);
        assert!(busy["cpu_millis"].as_u64() > idle["cpu_millis"].as_u64(), "{told}");
        assert!(busy["memory"].as_u64() > Some(0), "{told}");
        assert_eq!(busy["memory_limit"], 64 << 20);
        assert!(idle["memory_limit"].is_null(), "{told}");
        let table = rig.keel(&["top", "demo/idle", "demo/idle/0"]).expect_code(0).out;
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].starts_with("NAME ") && lines[1].starts_with("demo/idle/0 "), "{table}");
        assert_eq!(lines.len(), 2, "named twice, shown once");
    };
    look();
    controller.end("TERM").expect_code(0);
    look();
    let done = rig.keel(&["top", "demo/nope", "demo/idle"]).expect_code(1);
    assert_eq!(done.err, "error: demo/nope is not declared and does not exist; see keel get all\n");
    assert!(done.out.contains("demo/idle/0"), "{}", done.out);
}
