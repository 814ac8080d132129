//! Images: pull policies, registries with and without credentials, archives.

use std::path::Path;
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use evenkeel::runtime::docker::{DockerRuntime, Options};
use evenkeel::runtime::{ErrorKind, Runtime, Volumes};
use evenkeel::spec::{Image, PullPolicy};
use evenkeel::state::{Instance, Owner};
use tempfile::TempDir;

use crate::harness::{Bench, IMAGE, request, spec};
use crate::registry::{HTPASSWD, Registry};

/// A configuration of Docker's with these credentials for a registry.
fn config_file(registry: &Registry, credentials: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let auths = serde_json::json!({ "auths": { &registry.address: { "auth": STANDARD.encode(credentials) } } });
    std::fs::write(dir.path().join("config.json"), auths.to_string()).unwrap();
    dir
}

fn image(name: &str, policy: PullPolicy) -> Image {
    Image { name: name.parse().unwrap(), pull_policy: Some(policy) }
}

async fn ensure(runtime: &DockerRuntime, name: &str, policy: PullPolicy) -> Result<(), ErrorKind> {
    runtime.ensure_image(&image(name, policy), &|_| {}).await.map_err(|error| error.kind)
}

/// The engine's id of an image.
///
/// Asked for by its name: a list would look at every image, also at those that another test is just removing.
fn image_id(bench: &Bench, name: &str) -> String {
    bench.cli(&["image", "inspect", "--format", "{{.Id}}", name])
}

/// Makes an image that no other has the same of, and pushes it by this name.
fn push(bench: &Bench, name: &str, config: &Path) {
    let rootfs = std::env::var("KEEL_TEST_ROOTFS").expect(".ci/engines start sets it");
    // The time of the import is part of the image.
    bench.cli(&["import", &rootfs, name]);
    let config = config.to_str().unwrap();
    bench.cli(&["--config", config, "push", name]);
}

async fn pulls_follow_their_policy(bench: &Bench) {
    let Some(registry) = Registry::start("") else { return };
    let config = config_file(&registry, "test:secret");
    let name = format!("{}/app:1", registry.address);
    push(bench, &name, config.path());
    let first = image_id(bench, &name);
    bench.cli(&["rmi", "--force", &name]);
    let runtime = &bench.runtime;
    assert_eq!(ensure(runtime, &name, PullPolicy::Never).await, Err(ErrorKind::ImageUnavailable));

    let messages = Mutex::new(Vec::new());
    let progress = |progress: evenkeel::runtime::Progress| messages.lock().unwrap().push(progress.message);
    runtime.ensure_image(&image(&name, PullPolicy::IfNotPresent), &progress).await.unwrap();
    assert_eq!(image_id(bench, &name), first);
    assert!(!messages.lock().unwrap().is_empty());
    assert_eq!(ensure(runtime, &name, PullPolicy::Never).await, Ok(()));

    // The registry gets another image of the same name, and the engine keeps the first.
    push(bench, &name, config.path());
    let second = image_id(bench, &name);
    assert_ne!(first, second);
    bench.cli(&["tag", &first, &name]);
    assert_eq!(ensure(runtime, &name, PullPolicy::IfNotPresent).await, Ok(()));
    assert_eq!(image_id(bench, &name), first);
    assert_eq!(ensure(runtime, &name, PullPolicy::Newer).await, Ok(()));
    assert_eq!(image_id(bench, &name), second);

    let absent = format!("{}/absent:1", registry.address);
    assert_eq!(ensure(runtime, &absent, PullPolicy::IfNotPresent).await, Err(ErrorKind::ImageUnavailable));
    drop(registry);
    assert_eq!(ensure(runtime, &name, PullPolicy::Newer).await, Ok(()));
    assert_eq!(ensure(runtime, &name, PullPolicy::Always).await, Err(ErrorKind::ImageUnavailable));
    bench.cli(&["rmi", "--force", &first, &second]);
}

async fn credentials_come_from_dockers_configuration(bench: &Bench) {
    let Some(registry) = Registry::start(HTPASSWD) else { return };
    let (right, wrong) = (config_file(&registry, "test:secret"), config_file(&registry, "test:guess"));
    let name = format!("{}/private:1", registry.address);
    push(bench, &name, right.path());
    bench.cli(&["rmi", "--force", &name]);
    for (config, expected) in [(&wrong, Err(ErrorKind::ImageUnavailable)), (&right, Ok(()))] {
        let (socket, docker_config) = (Some(bench.socket.clone()), Some(config.path().to_owned()));
        let options = Options { socket, docker_config, ..Options::default() };
        let runtime = DockerRuntime::connect_with(Owner("nobody".to_owned()), options).await.unwrap();
        assert_eq!(ensure(&runtime, &name, PullPolicy::IfNotPresent).await, expected);
    }
    bench.cli(&["rmi", "--force", &name]);
}

async fn an_archive_is_loaded_when_it_is_needed(bench: &Bench) {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("app.tar");
    let name = format!("keel-test/archived:{}", bench.deployment);
    bench.cli(&["tag", IMAGE, &name]);
    bench.cli(&["save", "--output", archive.to_str().unwrap(), &name]);
    bench.cli(&["rmi", &name]);
    let mut spec = spec("command: {args: [sh, -c, 'exit 5']}");
    spec.image = image(&format!("docker-archive:{}", archive.display()), PullPolicy::IfNotPresent);
    bench.runtime.ensure_image(&spec.image, &|_| {}).await.unwrap();
    bench.runtime.ensure_image(&spec.image, &|_| {}).await.unwrap();
    bench.run(&request(bench.id("job", 0), &spec)).await;
    let missing = image("docker-archive:/no/such/file.tar", PullPolicy::IfNotPresent);
    let error = bench.runtime.ensure_image(&missing, &|_| {}).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::ImageUnavailable);
    assert!(error.message.contains("/no/such/file.tar"), "{error}");
    bench.clear().await;
    bench.cli(&["rmi", &name]);
}

async fn an_archive_of_several_images_is_refused(bench: &Bench) {
    let dir = tempfile::tempdir().unwrap();
    let rootfs = std::env::var("KEEL_TEST_ROOTFS").expect(".ci/engines start sets it");
    let [one, same, other] = ["one", "same", "other"].map(|name| format!("keel-test/{name}:{}", bench.deployment));
    bench.cli(&["tag", IMAGE, &one]);
    bench.cli(&["tag", IMAGE, &same]);
    bench.cli(&["import", &rootfs, &other]);
    let loaded = async |names: &[&String]| {
        let archive = dir.path().join("app.tar");
        let _ = std::fs::remove_file(&archive);
        let words = ["save", "--output", archive.to_str().unwrap()];
        bench.cli(&words.into_iter().chain(names.iter().map(|name| name.as_str())).collect::<Vec<_>>());
        let wanted = image(&format!("docker-archive:{}", archive.display()), PullPolicy::IfNotPresent);
        bench.runtime.ensure_image(&wanted, &|_| {}).await
    };
    loaded(&[&one, &same]).await.expect("two names of one image");
    let error = loaded(&[&one, &other]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::ImageUnavailable);
    assert!(error.message.contains("it holds several images: "), "{error}");
    assert!(error.message.contains(&one) && error.message.contains(&other), "{error}");
    bench.cli(&["rmi", "--force", &one, &same, &other]);
}

async fn a_tag_that_moves_leaves_a_revision_on_its_image(bench: &Bench) {
    const A: &str = "v1-aaaaaaaaaaaaaaaa";
    const B: &str = "v1-bbbbbbbbbbbbbbbb";
    let name = format!("keel-test/moving:{}", bench.deployment);
    let rootfs = std::env::var("KEEL_TEST_ROOTFS").expect(".ci/engines start sets it");
    // The time of the import is part of the image.
    let build = || {
        bench.cli(&["import", &rootfs, &name]);
        image_id(bench, &name)
    };
    let mut spec = spec("command: {args: [sleep, '600']}");
    spec.image = image(&name, PullPolicy::Never);
    let of = |slot, revision: &str| {
        let mut id = bench.id("web", slot);
        id.revision = revision.parse().unwrap();
        request(id, &spec)
    };
    let image_of = |instance: &Instance| bench.cli(&["inspect", "--format", "{{.Image}}", &instance.runtime_id]);
    let moved = |instance: &Instance| instance.conditions.iter().any(|condition| condition.reason == "ImageMoved");

    let first = build();
    let oldest = bench.run(&of(0, A)).await;
    let second = build();
    assert_ne!(first, second);
    let later = bench.run(&of(1, A)).await;
    assert_eq!((image_of(&oldest), image_of(&later)), (first.clone(), first.clone()));
    let reopened = bench.reopened().await;
    reopened.list().await.unwrap();
    let after = reopened.create(&of(2, A)).await.unwrap();
    assert_eq!(image_of(&after), first, "the next controller finds it out from what runs");
    let other = bench.run(&of(0, B)).await;
    assert_eq!(image_of(&other), second, "another revision begins with what the tag stands for");
    assert_eq!([&oldest, &later, &after, &other].map(moved), [false; 4]);

    for instance in [&oldest, &later, &after] {
        bench.runtime.remove(&instance.as_ref()).await.unwrap();
    }
    bench.cli(&["rmi", &first]);
    let last = bench.run(&of(0, A)).await;
    assert_eq!((image_of(&last), moved(&last)), (second.clone(), true));
    // Once all of the service was removed, it begins anew.
    for instance in [&last, &other] {
        bench.runtime.remove_with_slot(&instance.as_ref(), Volumes::Remove).await.unwrap();
    }
    let anew = bench.run(&of(0, A)).await;
    assert_eq!((image_of(&anew), moved(&anew)), (second, false));
    bench.clear().await;
    bench.cli(&["rmi", "--force", &name]);
}

crate::on_both_engines!(
    a_tag_that_moves_leaves_a_revision_on_its_image,
    pulls_follow_their_policy,
    credentials_come_from_dockers_configuration,
    an_archive_is_loaded_when_it_is_needed,
    an_archive_of_several_images_is_refused,
);
