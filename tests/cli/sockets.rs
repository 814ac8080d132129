//! Which engine is used where nobody names one: the sockets of a user's own engines.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use crate::engine::{self, Kind};
use crate::rig::{Done, Rig};

const SPEC: &str = "
version: v1
deployment: rootless
services:
  web:
    image: { name: 'keel-test/busybox:1', pull_policy: never }
    command: { entrypoint: [sleep, '3600'] }
    stop_signal: KILL
    init_container: false
    network_mode: none
";

/// Runs the program for a user who names no engine, on a machine that has none: `/run` is empty.
fn keel(rig: &Rig, arguments: &[&str]) -> Done {
    let mut plain = rig.command(arguments);
    plain.env_remove("DOCKER_HOST").env("XDG_RUNTIME_DIR", rig.path("runtime"));
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount -t tmpfs none /run && exec \"$@\"", "sh"]);
    command.arg(plain.get_program()).args(plain.get_args()).current_dir(rig.path("")).env_clear();
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.output().unwrap().into()
}

/// How many containers of this installation an engine has.
fn containers(rig: &Rig, socket: &Path) -> usize {
    let owner = std::fs::read_to_string(rig.path("state/owner")).unwrap();
    let output = Command::new("docker")
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .args(["ps", "--quiet", "--filter", &format!("label=dev.evenkeel.owner={}", owner.trim())])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().count()
}

#[test]
fn a_users_own_docker_comes_before_their_podman() {
    let (Some(docker), Some(podman)) = (engine::socket(Kind::Docker), engine::socket(Kind::Podman)) else { return };
    let rig = Rig::on_engine(&docker);
    rig.write("web.yaml", SPEC);
    let of_docker = rig.path("runtime/docker.sock");
    std::fs::create_dir_all(rig.path("runtime/podman")).unwrap();
    symlink(&podman, rig.path("runtime/podman/podman.sock")).unwrap();
    let runs_on = || {
        keel(&rig, &["apply", "-f", "web.yaml"]).expect_code(0);
        let found = (containers(&rig, &docker), containers(&rig, &podman));
        keel(&rig, &["delete", "rootless"]).expect_code(0);
        found
    };

    symlink(&docker, &of_docker).unwrap();
    assert_eq!(runs_on(), (1, 0));
    // A socket that nobody listens on any more is passed over.
    std::fs::remove_file(&of_docker).unwrap();
    drop(UnixListener::bind(&of_docker).unwrap());
    assert_eq!(runs_on(), (0, 1));
    std::fs::remove_file(&of_docker).unwrap();
    assert_eq!(runs_on(), (0, 1));
}

#[test]
fn where_no_engine_answers_that_is_told() {
    // Looked away from, and used to clean up.
    let Some(docker) = engine::socket(Kind::Docker) else { return };
    let rig = Rig::on_engine(&docker);
    rig.write("web.yaml", SPEC);
    let refused = keel(&rig, &["apply", "-f", "web.yaml", "--timeout", "2s"]);
    assert_ne!(refused.code, 0);
    assert!(refused.err.contains("DOCKER_HOST"), "{refused:?}");
}
