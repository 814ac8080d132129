//! Devices as the operator of a machine allows them.

use crate::rig::Rig;

const SPEC: &str = "version: v1
deployment: dev
services:
  web:
    image: { name: host }
    command: { entrypoint: [sleep, '1000'] }
    devices: [{ path: /dev/full }]
    stop_grace_period: 0s
";

#[test]
fn an_operator_switches_devices_off_for_a_controller_and_what_comes_after_it() {
    let rig = Rig::new("sandbox");
    rig.write("specs/dev.yaml", SPEC);
    let controller = rig.controller_with(&["--devices", "deny"]);
    rig.until("the device is refused", || rig.state("dev") == "failed");
    let message = rig.get("deployments")[0]["message"].to_string();
    assert!(message.contains("devices and graphics processors are switched off"), "{message}");
    let doctor = rig.keel(&["doctor"]).expect_code(0).out;
    assert!(
        doctor.contains("; devices and graphics processors are switched off (keel run --devices deny)"),
        "{doctor}"
    );
    controller.end("TERM").expect_code(0);
    rig.write("other.yaml", &SPEC.replace("deployment: dev", "deployment: other"));
    let refused = rig.keel(&["apply", "-f", "other.yaml"]).expect_code(1);
    assert!(refused.err.contains("devices and graphics processors are switched off"), "{}", refused.err);
    rig.keel(&["delete", "other"]).expect_code(0);
    let _controller = rig.controller_with(&["--devices", "allow"]);
    rig.until_running("dev", 1);
    let described = rig.keel(&["describe", "dev/web/0"]).expect_code(0).out;
    assert!(described.contains("/dev/full rw"), "{described}");
    assert!(!rig.keel(&["doctor"]).out.contains("switched off"));
}
