//! Credentials of registries that helpers keep, as `docker login` leaves them.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::engine::{self, Kind};
use crate::registry::{HTPASSWD, Registry};
use crate::rig::{Done, Rig};

/// File in which helpers note that they were asked.
const ASKED: &str = "asked";

/// What comes of a pull.
#[derive(Clone, Copy, PartialEq)]
enum Pull {
    Done,
    /// The registry refuses the credentials.
    Refused,
    /// There are no credentials.
    Without,
}

impl Pull {
    /// How the engine tells that it failed.
    fn reason(self, kind: Kind) -> &'static str {
        match (self, kind) {
            (Self::Without, Kind::Docker) => "no basic auth credentials",
            // Podman asks the registry in vain either way.
            _ => "unauthorized: authentication required",
        }
    }
}

/// A helper that knows one registry, in the words of those of docker-credential-helpers. It notes that it was asked.
fn write_helper(rig: &Rig, name: &str, address: &str, secret: &str) {
    let file = format!("bin/docker-credential-{name}");
    let asked = rig.path(ASKED).display().to_string();
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = get ] || exit 2\necho {name} >>{asked}\nserver=$(cat)\nif [ \"$server\" != {address} ]; then\n    \
         echo credentials not found in native keychain\n    exit 1\nfi\n\
         echo '{{\"ServerURL\":\"{address}\",\"Username\":\"test\",\"Secret\":\"{secret}\"}}'\n"
    );
    rig.write(&file, &script);
    std::fs::set_permissions(rig.path(&file), std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs the program with the helpers in its path.
fn keel(rig: &Rig, arguments: &[&str]) -> Done {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = rig.command(arguments);
    command.env("PATH", format!("{}:{path}", rig.path("bin").display())).output().unwrap().into()
}

fn docker(rig: &Rig, arguments: &[&str]) {
    let output = Command::new("docker").env("DOCKER_HOST", rig.engine()).args(arguments).output().unwrap();
    assert!(output.status.success(), "docker {arguments:?}: {output:?}");
}

/// Pushes an image that the engine keeps under no name.
fn push(rig: &Rig, registry: &Registry, image: &str) {
    let right = json!({ "auths": { &registry.address: { "auth": STANDARD.encode("test:secret") } } });
    rig.write("push/config.json", &right.to_string());
    docker(rig, &["tag", "keel-test/busybox:1", image]);
    docker(rig, &["--config", rig.path("push").to_str().unwrap(), "push", image]);
    docker(rig, &["rmi", image]);
}

fn credentials_of_helpers_are_used(kind: Kind) {
    let Some(socket) = engine::socket(kind) else { return };
    let Some(registry) = Registry::start(HTPASSWD) else { return };
    let address = registry.address.as_str();
    let image = format!("{address}/private:1");
    let rig = Rig::on_engine(&socket);
    for dir in ["bin", "push", ".docker"] {
        std::fs::create_dir(rig.path(dir)).unwrap();
    }
    push(&rig, &registry, &image);
    write_helper(&rig, "right", address, "secret");
    write_helper(&rig, "wrong", address, "guess");
    write_helper(&rig, "other", "registry.example", "secret");
    rig.write(
        "web.yaml",
        &format!(
            "version: v1\ndeployment: private\nservices:\n  web:\n    image: {{ name: '{image}' }}\n    \
             command: {{ entrypoint: [sleep, '3600'] }}\n    stop_signal: KILL\n    init_container: false\n    \
             network_mode: none\n"
        ),
    );
    let stored = json!({ address: { "auth": STANDARD.encode("test:secret") } });
    let table: [(Value, &[&str], Pull); 7] = [
        (json!({ "credHelpers": { address: "right" } }), &["right"], Pull::Done),
        (json!({ "credsStore": "right" }), &["right"], Pull::Done),
        // The registry's own helper goes first, and nobody else is asked after it.
        (json!({ "credHelpers": { address: "right" }, "credsStore": "wrong" }), &["right"], Pull::Done),
        (json!({ "credHelpers": { address: "wrong" }, "credsStore": "right" }), &["wrong"], Pull::Refused),
        // A helper that knows nothing of the registry, or is not installed, leaves it to the file.
        (json!({ "credsStore": "other", "auths": stored }), &["other"], Pull::Done),
        (json!({ "credsStore": "missing", "auths": stored }), &[], Pull::Done),
        (json!({ "credsStore": "other" }), &["other"], Pull::Without),
    ];
    for (config, helpers, pull) in table {
        rig.write(".docker/config.json", &config.to_string());
        rig.write(ASKED, "");
        let (timeout, code) = if pull == Pull::Done { ("60s", 0) } else { ("3s", 124) };
        let done = keel(&rig, &["apply", "-f", "web.yaml", "--timeout", timeout]);
        assert_eq!(done.code, code, "{config}: {done:?}");
        let asked = std::fs::read_to_string(rig.path(ASKED)).unwrap();
        let mut asked: Vec<&str> = asked.lines().collect();
        asked.dedup();
        assert_eq!(asked, helpers, "{config}");
        if pull == Pull::Done {
            docker(&rig, &["image", "inspect", &image]);
        } else {
            let error = done.err.lines().last().unwrap_or_default();
            assert!(error.starts_with("error: deployment/private not done after 3s: "), "{config}: {error}");
            let told = error.split_once(&format!("pulling {image}: ")).map(|(_, reason)| reason);
            assert!(told.is_some_and(|told| told.ends_with(pull.reason(kind))), "{config}: {error}");
        }
        keel(&rig, &["delete", "private"]).expect_code(0);
        if pull == Pull::Done {
            docker(&rig, &["rmi", &image]);
        }
    }
}

#[test]
fn docker_pulls_with_credentials_of_helpers() {
    credentials_of_helpers_are_used(Kind::Docker);
}

#[test]
fn podman_pulls_with_credentials_of_helpers() {
    credentials_of_helpers_are_used(Kind::Podman);
}
