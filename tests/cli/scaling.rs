//! Adaptive services under load of real connections.

use std::io::Read;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::engine::{self, Kind};
use crate::namespaces;
use crate::rig::Rig;

/// Time between two connections: four times the target of [`spec`] at one replica.
const BETWEEN: Duration = Duration::from_millis(50);

fn spec(kind: &str) -> String {
    format!(
        "version: v1\ndeployment: load\nservices:\n  web:\n    {kind}\n    \
         command: {{ entrypoint: [sh, -c, 'exec busybox httpd -f -p 8080'] }}\n    \
         port_mappings: [{{ container_port: 8080 }}]\n    stop_grace_period: 0s\n    \
         scale: {{ mode: adaptive, min: 1, max: 3, targets: {{ rps: 5 }} }}\n"
    )
}

/// Connects again and again, until it is told to end.
fn knock(port: u16, ends: &AtomicBool) {
    while !ends.load(Ordering::Relaxed) {
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
        std::thread::sleep(BETWEEN);
    }
}

#[track_caller]
fn scales_up_under_load(rig: &Rig, kind: &str) {
    rig.write("specs/load.yaml", &spec(kind));
    let _controller = rig.controller();
    rig.until_running("load", 1);
    let Some(port) = rig.instances(|one| one["ports"][0]["host_port"].as_u64())[0] else {
        return namespaces::skip("there are no network namespaces here");
    };
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| knock(u16::try_from(port).unwrap(), &ends));
        // So that the thread ends where this fails.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rig.until_running("load", 3)));
        ends.store(true, Ordering::Relaxed);
        ended.unwrap();
    });
    let told = rig.keel(&["describe", "load"]).expect_code(0).out;
    let decision = told.lines().find(|line| line.contains("requests/s on average in 1 of 1, 5 is aimed at"));
    assert!(decision.is_some_and(|line| line.contains("load/web: 1 to ")), "{told}");
    assert!(!told.contains("requests are not counted"), "{told}");
    let top = rig.keel(&["top", "-o", "json"]).expect_code(0).json();
    let accepted: Vec<u64> = top.as_array().unwrap().iter().filter_map(|one| one["accepted"].as_u64()).collect();
    assert!(accepted.len() == 3 && accepted[0] > 100 && accepted[2] == 0, "{top}");
}

#[test]
fn sandboxes_scale_by_the_connections_that_they_accept() {
    scales_up_under_load(&Rig::new("sandbox"), "image: { name: host }\n    sandbox: { network: loopback }");
}

#[test]
fn containers_scale_by_the_connections_that_they_accept() {
    for kind in [Kind::Docker, Kind::Podman] {
        let Some(socket) = engine::socket(kind) else { continue };
        let image = "image: { name: 'keel-test/busybox:1', pull_policy: never }";
        scales_up_under_load(&Rig::on_engine(&socket), image);
    }
}
