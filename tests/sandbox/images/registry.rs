//! Pulls from a real registry: Debian's docker-registry.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use evenkeel::runtime::sandbox::RegistryOptions;
use evenkeel::runtime::{ErrorKind, Progress, Runtime};
use evenkeel::spec::{Image as SpecImage, PullPolicy};
use serde_json::json;

use super::build::{INDEX, Image, Layer, MANIFEST, architecture, descriptor, digest};
use super::{run, script};
use crate::support::Sandbox;

/// A line of an htpasswd file: user `test` with the password `secret`, in bcrypt.
const HTPASSWD: &str = "test:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// A registry on a free port of the loopback; it ends with the test.
struct Registry {
    process: Child,
    address: String,
    folder: tempfile::TempDir,
}

impl Registry {
    /// A registry for everyone, or for the users of this file; `None`, with the reason printed, where it is not
    /// installed.
    fn start(htpasswd: &str) -> Option<Self> {
        Self::start_with(htpasswd, "")
    }

    /// The same with further settings of HTTP.
    fn start_with(htpasswd: &str, http: &str) -> Option<Self> {
        if Command::new("docker-registry").arg("--version").output().is_err() {
            let required = std::env::var("KEEL_TEST_REQUIRE").unwrap_or_default();
            assert!(!required.contains("docker"), "docker-registry is not installed");
            eprintln!("skipped: docker-registry is not installed");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("htpasswd"), htpasswd).unwrap();
        let auth = match htpasswd {
            "" => String::new(),
            _ => format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", path("htpasswd")),
        };
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'{http}}}\n{auth}",
            path("data")
        );
        std::fs::write(path("config.yml"), text).unwrap();
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve", &path("config.yml")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { process, address, folder };
        for _ in 0..200 {
            if TcpStream::connect(&registry.address).is_ok() {
                return Some(registry);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the registry does not answer");
    }

    /// Sends a request, and returns the head of the answer.
    fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: {kind}\r\n\
             authorization: Basic {}\r\ncontent-length: {}\r\n\r\n",
            self.address,
            STANDARD.encode("test:secret"),
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with("HTTP/1.1 20"), "{method} {path}: {answer}");
        answer
    }

    fn push_manifest(&self, tag: &str, kind: &str, bytes: &[u8]) {
        self.send("PUT", &format!("/v2/org/app/manifests/{tag}"), kind, bytes);
    }

    fn push(&self, tag: &str, image: &Image) {
        for bytes in image.layers.iter().chain([&image.config]) {
            let begun = self.send("POST", "/v2/org/app/blobs/uploads/", "text/plain", b"");
            let place = begun
                .lines()
                .find_map(|line| line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("location")))
                .map(|(_, place)| place.trim().replace(&format!("http://{}", self.address), ""))
                .unwrap();
            let joint = if place.contains('?') { '&' } else { '?' };
            self.send("PUT", &format!("{place}{joint}digest={}", digest(bytes)), "application/octet-stream", bytes);
        }
        self.push_manifest(tag, MANIFEST, &image.manifest);
    }

    fn name(&self, tag: &str) -> String {
        format!("{}/org/app:{tag}", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn own(text: &str) -> Image {
    Image::with(Layer::new().file("own", text))
}

async fn ensure(sandbox: &Sandbox, name: &str, policy: PullPolicy) -> Result<(), ErrorKind> {
    let image = SpecImage { name: name.parse().unwrap(), pull_policy: Some(policy) };
    sandbox.runtime.ensure_image(&image, &|_| {}).await.map_err(|error| error.kind)
}

#[tokio::test]
async fn pulls_follow_their_policy() {
    let Some(registry) = Registry::start("") else { return };
    let sandbox = Sandbox::new();
    let name = registry.name("1");
    let shown = || async { run(&sandbox, &script(&name, "cat /own")).await };
    registry.push("1", &own("first"));
    assert_eq!(ensure(&sandbox, &name, PullPolicy::Never).await, Err(ErrorKind::ImageUnavailable));

    let told = Mutex::new(Vec::new());
    let image = SpecImage { name: name.parse().unwrap(), pull_policy: None };
    let tell = |progress: Progress| told.lock().unwrap().push(progress);
    sandbox.runtime.ensure_image(&image, &tell).await.unwrap();
    let last = told.lock().unwrap().last().cloned().unwrap();
    assert_eq!((last.message.as_str(), last.current), ("2 of 2 layers", last.total));
    assert_eq!(shown().await, "first\n");
    assert_eq!(ensure(&sandbox, &name, PullPolicy::Never).await, Ok(()));

    registry.push("1", &own("second"));
    assert_eq!(ensure(&sandbox, &name, PullPolicy::IfNotPresent).await, Ok(()));
    assert_eq!(shown().await, "first\n");
    assert_eq!(ensure(&sandbox, &name, PullPolicy::Newer).await, Ok(()));
    assert_eq!(shown().await, "second\n");
    registry.push("1", &own("third"));
    assert_eq!(ensure(&sandbox, &name, PullPolicy::Always).await, Ok(()));
    assert_eq!(shown().await, "third\n");
    assert_eq!(ensure(&sandbox, &registry.name("absent"), PullPolicy::Always).await, Err(ErrorKind::ImageUnavailable));

    drop(registry);
    assert_eq!(ensure(&sandbox, &name, PullPolicy::Newer).await, Ok(()));
    assert_eq!(ensure(&sandbox, &name, PullPolicy::Always).await, Err(ErrorKind::ImageUnavailable));
    assert_eq!(shown().await, "third\n");
}

/// A registry that speaks TLS, with a certificate of an authority that only a directory of certificates names.
#[tokio::test]
async fn registries_with_an_authority_of_their_own_are_trusted_where_docker_trusts_them() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name).display().to_string()
    };
    let certificate = write("registry.crt", include_str!("tls/registry.crt"));
    let key = write("registry.key", include_str!("tls/registry.key"));
    // The images are put there by one without TLS that has the same storage.
    let Some(plain) = Registry::start("") else { return };
    plain.push("1", &own("over TLS"));
    let tls = format!(", tls: {{certificate: {certificate}, key: {key}}}");
    let Some(registry) = Registry::start_with("", &tls) else { return };
    std::fs::rename(plain.folder.path().join("data"), registry.folder.path().join("data")).unwrap();
    let certificates = folder.path().join("certs.d");
    let trusting = || {
        let certificates = Some(certificates.clone());
        Sandbox::with(RegistryOptions { certificates, ..RegistryOptions::default() })
    };
    let error = super::refused(&trusting(), &registry.name("1")).await;
    assert_eq!(error.kind, ErrorKind::ImageUnavailable);
    assert!(error.message.contains("certificate"), "{error}");
    std::fs::create_dir_all(certificates.join(&registry.address)).unwrap();
    let authority = certificates.join(&registry.address).join("ca.crt");
    std::fs::write(&authority, include_str!("tls/authority.crt")).unwrap();
    assert_eq!(run(&trusting(), &script(&registry.name("1"), "cat /own")).await, "over TLS\n");
    std::fs::write(&authority, "-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n").unwrap();
    let error = super::refused(&trusting(), &registry.name("1")).await;
    assert!(error.message.contains("ca.crt"), "{error}");
}

#[tokio::test]
async fn the_image_for_this_machine_is_taken_by_tag_and_by_digest() {
    let Some(registry) = Registry::start("") else { return };
    let sandbox = Sandbox::new();
    let (ours, other) = (own("ours"), own("other"));
    registry.push("ours", &ours);
    registry.push("other", &other);
    let entry = |image: &Image, architecture: &str| {
        let mut entry = descriptor(MANIFEST, &image.manifest);
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entry
    };
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX,
                        "manifests": [entry(&other, "s390x"), entry(&ours, architecture())] });
    registry.push_manifest("all", INDEX, index.to_string().as_bytes());
    let foreign = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry(&other, "s390x")] });
    registry.push_manifest("foreign", INDEX, foreign.to_string().as_bytes());
    let pinned = format!("{}@{}", registry.name("all"), digest(index.to_string().as_bytes()));
    for name in [registry.name("all"), pinned] {
        assert_eq!(run(&sandbox, &script(&name, "cat /own")).await, "ours\n");
    }
    let error = super::refused(&sandbox, &registry.name("foreign")).await;
    assert_eq!(error.kind, ErrorKind::ImageUnavailable);
    assert!(error.message.contains("linux/s390x"), "{error}");
}

#[tokio::test]
async fn credentials_come_from_dockers_configuration() {
    let Some(registry) = Registry::start(HTPASSWD) else { return };
    registry.push("1", &own("private"));
    let name = registry.name("1");
    let config = |text: serde_json::Value| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), text.to_string()).unwrap();
        folder
    };
    let auth = |text: &str| json!({ "auths": { &registry.address: { "auth": STANDARD.encode(text) } } });
    let pull = async |folder: &tempfile::TempDir| {
        let docker_config = Some(folder.path().to_owned());
        let sandbox = Sandbox::with(RegistryOptions { docker_config, ..RegistryOptions::default() });
        ensure(&sandbox, &name, PullPolicy::IfNotPresent).await
    };
    assert_eq!(pull(&config(json!({}))).await, Err(ErrorKind::ImageUnavailable));
    assert_eq!(pull(&config(auth("test:guess"))).await, Err(ErrorKind::ImageUnavailable));
    assert_eq!(pull(&config(auth("test:secret"))).await, Ok(()));
}

#[tokio::test]
async fn several_runtimes_at_once_fetch_each_layer_once() {
    let image = own("shared");
    let registry = super::server::Server::with_image(&image, |request| {
        if request.path.contains("/blobs/") {
            std::thread::sleep(Duration::from_millis(100));
        }
        None
    });
    let sandbox = Sandbox::new();
    let others: Vec<_> = (0..3).map(|_| sandbox.reopen()).collect();
    let wanted = SpecImage { name: registry.image().parse().unwrap(), pull_policy: None };
    let tell = |_: Progress| {};
    let pulls = others
        .iter()
        .chain([&sandbox.runtime])
        .flat_map(|runtime| [runtime.ensure_image(&wanted, &tell), runtime.ensure_image(&wanted, &tell)]);
    for result in futures::future::join_all(pulls).await {
        result.unwrap();
    }
    for layer in &image.layers {
        assert_eq!(registry.asked(&digest(layer)).len(), 1);
    }
    // Another image of the same layers fetches none of them.
    let again = SpecImage { name: format!("{}/copy:1", registry.address).parse().unwrap(), pull_policy: None };
    sandbox.runtime.ensure_image(&again, &|_| {}).await.unwrap();
    assert_eq!(registry.asked(&digest(&image.layers[0])).len(), 1);
}

#[tokio::test]
async fn a_tag_tells_its_digest_and_what_is_pinned_to_that_stays() {
    let Some(registry) = Registry::start("") else { return };
    let sandbox = Sandbox::new();
    let name = registry.name("1");
    let asked = || async { sandbox.runtime.tags().unwrap().digest(&name).await.map_err(|error| error.kind) };
    assert_eq!(asked().await, Err(ErrorKind::ImageUnavailable));
    let (first, second) = (own("first"), own("second"));
    registry.push("1", &first);
    assert_eq!(asked().await, Ok(digest(&first.manifest)));
    registry.push("1", &second);
    assert_eq!(asked().await, Ok(digest(&second.manifest)));
    let (repository, _) = name.rsplit_once(':').unwrap();
    for (image, said) in [(&first, "first\n"), (&second, "second\n")] {
        let pinned = format!("{repository}@{}", digest(&image.manifest));
        assert_eq!(ensure(&sandbox, &pinned, PullPolicy::IfNotPresent).await, Ok(()));
        assert_eq!(run(&sandbox, &script(&pinned, "cat /own")).await, said);
    }
    drop(registry);
    assert_eq!(asked().await, Err(ErrorKind::ImageUnavailable));
}
