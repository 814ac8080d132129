//! Registries and archives that mean no good.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use evenkeel::runtime::sandbox::RegistryOptions;
use evenkeel::runtime::{ErrorKind, Progress, Runtime};
use evenkeel::spec::Image as SpecImage;
use serde_json::json;
use tar::EntryType;

use super::build::{Image, Layer, Packing, digest};
use super::server::{Answer, Request, Server, honest, ok, ranged, status};
use super::{layout, refused, run, script};
use crate::support::{Sandbox, request};

/// Longest time that a hostile registry may take to be given up.
const LIMIT: Duration = Duration::from_secs(40);

/// A runtime that has a user and a password for a registry.
fn with_credentials(address: &str) -> (Sandbox, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let auths = json!({ "auths": { address: { "auth": STANDARD.encode("test:secret") } } });
    std::fs::write(folder.path().join("config.json"), auths.to_string()).unwrap();
    let docker_config = Some(folder.path().to_owned());
    (Sandbox::with(RegistryOptions { docker_config, ..RegistryOptions::default() }), folder)
}

fn image() -> Image {
    Image::with(Layer::new().file("own", "own"))
}

/// Names below the directories of images that hold something unpacked or on its way.
fn left(sandbox: &Sandbox) -> Vec<String> {
    let mut left = Vec::new();
    for folder in ["layers", "tmp"] {
        let path = sandbox.root.path().join("sandbox/images").join(folder);
        left.extend(std::fs::read_dir(path).unwrap().map(|entry| format!("{folder}/{:?}", entry.unwrap().file_name())));
    }
    left
}

#[tokio::test]
async fn a_token_server_elsewhere_sees_no_credentials() {
    let realm = Server::start(|_| ok(br#"{"token":"anonymous"}"#));
    let (to, image) = (realm.address.clone(), image());
    let registry = Server::with_image(&image, move |request| {
        (request.header("authorization") != Some("Bearer anonymous"))
            .then(|| status(401).with("www-authenticate", &format!("Bearer realm=\"http://{to}/token\",service=\"s\"")))
    });
    let (sandbox, _config) = with_credentials(&registry.address);
    assert_eq!(run(&sandbox, &script(&registry.image(), "cat /own")).await, "own\n");
    let asked = realm.asked("/token");
    assert_eq!(asked.len(), 1, "one token serves all requests");
    assert_eq!(asked[0].path, "/token?service=s&scope=repository%3Aapp%3Apull");
    assert_eq!(asked[0].header("authorization"), None);
}

#[tokio::test]
async fn a_registrys_own_token_server_sees_its_credentials_and_storage_sees_nothing() {
    let image = image();
    let stored = image.clone();
    let storage = Server::start(move |request| honest(&stored, request));
    let to = storage.address.clone();
    let registry = Server::with_image(&image, move |request| {
        if request.path.starts_with("/token") {
            let right = request.header("authorization") == Some(&format!("Basic {}", STANDARD.encode("test:secret")));
            return Some(if right { ok(br#"{"access_token":"mine"}"#) } else { status(401) });
        }
        if request.header("authorization") != Some("Bearer mine") {
            let host = request.header("host").unwrap();
            let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"s\"");
            return Some(status(401).with("www-authenticate", &challenge));
        }
        let redirect = || status(307).with("location", &format!("http://{to}{}", request.path));
        request.path.contains("/blobs/").then(redirect)
    });
    let (sandbox, _config) = with_credentials(&registry.address);
    assert_eq!(run(&sandbox, &script(&registry.image(), "cat /own")).await, "own\n");
    assert_eq!(storage.requests().len(), 3);
    assert!(storage.requests().iter().all(|request| request.header("authorization").is_none()));
    // Without credentials it says what to do.
    let error = refused(&Sandbox::new(), &registry.image()).await;
    assert_eq!(error.kind, ErrorKind::ImageUnavailable);
    assert!(error.message.contains(&format!("docker login {}", registry.address)), "{error}");
}

#[tokio::test]
async fn what_storage_asks_for_is_not_answered() {
    let image = image();
    let realm = Server::start(|_| ok(br#"{"token":"stolen"}"#));
    let to = realm.address.clone();
    let storage = Server::start(move |_| {
        status(401)
            .with("www-authenticate", &format!("Bearer realm=\"http://{to}/token\""))
            .with("www-authenticate", "Basic")
    });
    let to = storage.address.clone();
    let registry = Server::with_image(&image, move |request| {
        request.path.contains("/blobs/").then(|| status(302).with("location", &format!("http://{to}/x")))
    });
    let (sandbox, _config) = with_credentials(&registry.address);
    assert_eq!(refused(&sandbox, &registry.image()).await.kind, ErrorKind::ImageUnavailable);
    assert!(realm.requests().is_empty());
    assert!(storage.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_ended() {
    let image = Image::new(vec![Layer::shell()], json!({}), Packing::Gzip);
    let (layer, cuts) = (image.layers[0].clone(), Arc::new(AtomicUsize::new(0)));
    let registry = Server::with_image(&image, move |request| {
        if !request.path.ends_with(&digest(&layer)) || cuts.fetch_add(1, Ordering::SeqCst) >= 3 {
            return None;
        }
        let whole = ranged(&layer, request);
        let announced = Some(whole.body.len() as u64);
        Some(Answer { body: whole.body[..layer.len() / 5].to_vec(), announced, ..whole })
    });
    let sandbox = Sandbox::new();
    assert_eq!(run(&sandbox, &script(&registry.image(), "echo runs")).await, "runs\n");
    let ranges: Vec<Option<String>> = registry
        .asked(&digest(&image.layers[0]))
        .iter()
        .map(|request| request.header("range").map(str::to_owned))
        .collect();
    let from = |part: usize| Some(format!("bytes={}-", image.layers[0].len() / 5 * part));
    assert_eq!(ranges, [None, from(1), from(2), from(3)]);
}

#[tokio::test]
async fn a_later_pull_goes_on_too_and_one_without_ranges_begins_anew() {
    let image = Image::new(vec![Layer::shell()], json!({}), Packing::Gzip);
    let (layer, cut) = (image.layers[0].clone(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&cut);
    let registry = Server::with_image(&image, move |request| {
        if !request.path.ends_with(&digest(&layer)) {
            return None;
        }
        // Cut once, then gone, then without ranges.
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => Some(Answer { body: layer[..1000].to_vec(), announced: Some(layer.len() as u64), ..ok(b"") }),
            1 => Some(status(404)),
            _ => Some(ok(&layer)),
        }
    });
    let sandbox = Sandbox::new();
    let error = refused(&sandbox, &registry.image()).await;
    assert!(error.message.contains("1000 of"), "{error}");
    assert_eq!(run(&sandbox, &script(&registry.image(), "echo runs")).await, "runs\n");
    let asked = registry.asked(&digest(&image.layers[0]));
    assert_eq!(asked.last().unwrap().header("range"), Some("bytes=1000-"));
}

/// What a registry does wrong, and what is said about it.
fn wrongs() -> Vec<(&'static str, &'static str, Server)> {
    let image = image();
    let layer = image.layers[1].clone();
    let on = |image: &Image, part: &'static str, answer: Answer| {
        let name = match part {
            "layer" => digest(&image.layers[1]),
            "config" => digest(&image.config),
            _ => "/manifests/".to_owned(),
        };
        Server::with_image(image, move |request| {
            (request.method != "HEAD" && request.path.contains(&name)).then(|| answer.clone())
        })
    };
    let mut other = layer.clone();
    let last = other.len() - 1;
    other[last] ^= 1;
    let long = [layer.clone(), layer.clone()].concat();
    let endless = Answer { endless: true, ..ok(&[b'x'; 4096]) };
    vec![
        ("garbage", "manifest is not one", on(&image, "manifest", ok(b"<html>\x1b[2J"))),
        ("another manifest", "came with the content of", {
            let wrong = ok(&image.manifest).with("docker-content-digest", &digest(b"other"));
            on(&image, "manifest", wrong)
        }),
        ("endless manifest", "longer than", on(&image, "manifest", endless.clone())),
        ("another config", "came with the content of", on(&image, "config", ok(&vec![b' '; image.config.len()]))),
        ("long config", "longer than", on(&image, "config", endless.clone())),
        ("another layer", "came with the content of", on(&image, "layer", ok(&other))),
        ("long layer", "bytes are announced", on(&image, "layer", ok(&long))),
        ("endless layer", "more than the", on(&image, "layer", endless)),
        ("short layer", "bytes are announced", on(&image, "layer", ok(&layer[..10]))),
        ("gone layer", "404", on(&image, "layer", status(404))),
        ("redirects", "more than 5 times", {
            Server::with_image(&image, |request| {
                let again = || status(302).with("location", &request.path);
                request.path.contains("/blobs/").then(again)
            })
        }),
        ("no address", "which is no address", on(&image, "layer", status(302).with("location", "//x"))),
        ("forbidden", "403", on(&image, "manifest", status(403))),
        ("no token", "without a token", {
            Server::start(|request| match request.path.as_str() {
                path if path.starts_with("/token") => ok(b"[]"),
                _ => {
                    let host = request.header("host").unwrap();
                    status(401).with("www-authenticate", &format!("Bearer realm=\"http://{host}/token\""))
                }
            })
        }),
    ]
}

#[tokio::test]
async fn registries_that_do_wrong_are_refused_in_time_with_the_reason() {
    for (what, said, registry) in wrongs() {
        let (sandbox, begun) = (Sandbox::new(), Instant::now());
        let error = refused(&sandbox, &registry.image()).await;
        let expected = if what == "garbage" { ErrorKind::Rejected } else { ErrorKind::ImageUnavailable };
        assert_eq!(error.kind, expected, "{what}: {error}");
        assert!(error.message.contains(said), "{what}: {error}");
        assert!(error.message.contains(&registry.image()), "{what}: {error}");
        assert!(!error.message.contains('\x1b'), "{what}: {error}");
        assert!(begun.elapsed() < LIMIT, "{what}");
        let begun_layers: Vec<String> = left(&sandbox).into_iter().filter(|name| name.starts_with("tmp")).collect();
        assert_eq!(begun_layers, Vec::<String>::new(), "{what}");
    }
}

#[tokio::test]
async fn registries_that_fail_for_good_are_given_up() {
    let image = image();
    let layer = digest(&image.layers[1]);
    let whole = image.layers[1].len() as u64;
    for (what, said, answer) in [
        ("closes midway", "closed midway", Answer { announced: Some(whole), ..ok(b"") }),
        ("is busy", "503", status(503)),
    ] {
        let layer = layer.clone();
        let registry = Server::with_image(&image, move |request| request.path.contains(&layer).then(|| answer.clone()));
        let (sandbox, begun) = (Sandbox::new(), Instant::now());
        let error = refused(&sandbox, &registry.image()).await;
        assert_eq!(error.kind, ErrorKind::ImageUnavailable);
        assert!(error.message.contains(said) || error.message.contains("cut"), "{what}: {error}");
        assert!(begun.elapsed() < LIMIT, "{what}");
        assert_eq!(registry.asked(&digest(&image.layers[1])).len(), 6, "{what}");
    }
    let error = refused(&Sandbox::new(), "127.0.0.1:1/app:1").await;
    assert_eq!(error.kind, ErrorKind::ImageUnavailable);
    assert!(error.message.contains("127.0.0.1:1"), "{error}");
}

#[tokio::test]
async fn why_a_registry_is_asked_again_is_told_meanwhile() {
    let image = image();
    for part in [digest(&image.layers[1]), "/manifests/".to_owned()] {
        let refused = AtomicBool::new(false);
        let busy = move |request: &Request| {
            let is_first = request.path.contains(&part) && !refused.swap(true, Ordering::SeqCst);
            is_first.then(|| {
                Answer { body: br#"{"message":"slow down"}"#.to_vec(), ..status(429) }.with("retry-after", "1")
            })
        };
        let registry = Server::with_image(&image, busy);
        let (said, sandbox) = (Mutex::new(Vec::new()), Sandbox::new());
        let wanted = SpecImage { name: registry.image().parse().unwrap(), pull_policy: None };
        let tell = |progress: Progress| said.lock().unwrap().push(progress.message);
        sandbox.runtime.ensure_image(&wanted, &tell).await.unwrap();
        let said = said.into_inner().unwrap();
        let expected =
            format!("429 Too Many Requests: slow down, from {}; it is asked again after 1 s", registry.address);
        let at = said.iter().position(|one| *one == expected);
        let after =
            at.and_then(|at| said.get(at + 1)).unwrap_or_else(|| panic!("nothing is told once it goes on: {said:?}"));
        assert_ne!(*after, expected);
        assert_eq!(said[0], format!("waiting for {} to answer", registry.address));
    }
}

/// Archives that must not be unpacked, and what is said about them.
fn archives() -> Vec<(&'static str, Image)> {
    vec![
        ("../../etc/x", Image::with(Layer::new().file("../../etc/x", "x"))),
        ("leads upwards", Image::with(Layer::new().hard_link("x", "../../../etc/passwd"))),
        ("replace the root", Image::with(Layer::new().symlink("./", "/etc"))),
        ("does not exist", Image::with(Layer::new().hard_link("x", "no/such"))),
        ("no directory", Image::with(Layer::new().file("f", "x").file("f/x", "x"))),
        ("marks removed files", Image::with(Layer::new().add(EntryType::Char, "c", "", 0o600, b""))),
        ("too many links", Image::with(Layer::new().symlink("a", "a").file("a/x", "x"))),
    ]
}

#[tokio::test]
async fn hostile_archives_are_refused_by_the_name_of_the_entry_and_leave_nothing() {
    for (said, image) in archives() {
        let sandbox = Sandbox::new();
        let name = layout(sandbox.root.path(), &image);
        let error = refused(&sandbox, &name).await;
        assert_eq!(error.kind, ErrorKind::Rejected, "{said}: {error}");
        assert!(error.message.contains(said) && error.message.contains(&name), "{error}");
        // The shell below is fine, and stays.
        assert_eq!(left(&sandbox).len(), 1, "{said}: {:?}", left(&sandbox));
    }
}

fn with_layer(mut image: Image, packed: &[u8]) -> Image {
    let manifest = String::from_utf8(image.manifest).unwrap();
    let (old, new) = (digest(&image.layers[1]), digest(packed));
    let manifest = manifest
        .replace(&old, &new)
        .replace(&format!("\"size\":{}}}]", image.layers[1].len()), &format!("\"size\":{}}}]", packed.len()));
    image.layers[1] = packed.to_vec();
    image.manifest = manifest.into_bytes();
    image
}

#[tokio::test]
async fn layers_that_are_not_what_their_image_says_are_refused() {
    let good = image();
    let other = Layer::new().file("own", "another").bytes();
    let cut = &good.layers[1][..good.layers[1].len() - 20];
    for (said, image) in [
        ("as its image says", with_layer(image(), &super::build::gzip(&other))),
        ("layer", with_layer(image(), cut)),
        ("bzip2", with_layer(image(), b"BZh91AY&SY")),
        ("checksum", with_layer(image(), &vec![b'x'; 2048])),
    ] {
        let sandbox = Sandbox::new();
        let error = refused(&sandbox, &layout(sandbox.root.path(), &image)).await;
        assert_eq!(error.kind, ErrorKind::Rejected, "{said}: {error}");
        assert!(error.message.contains(said), "{said}: {error}");
        assert_eq!(left(&sandbox).len(), 1, "{said}");
    }
}

#[tokio::test]
async fn a_layer_that_unpacks_out_of_proportion_is_refused() {
    // Three GB of zeros, in an entry that is skipped so that the test needs no disk.
    let piece = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), 32 << 20), &mut encoder).unwrap();
        encoder.finish().unwrap()
    };
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::new(b'V'));
    header.set_path("zeros").unwrap();
    header.set_size(3 << 30);
    header.set_mode(0o644);
    header.set_cksum();
    let packed = [super::build::gzip(header.as_bytes()), piece.repeat(96)].concat();
    let image = with_layer(image(), &packed);
    let sandbox = Sandbox::new();
    let error = refused(&sandbox, &layout(sandbox.root.path(), &image)).await;
    assert!(error.message.contains("out of proportion"), "{error}");
    assert_eq!(left(&sandbox).len(), 1);
}

#[tokio::test]
async fn documents_with_digests_that_are_paths_are_refused() {
    let sandbox = Sandbox::new();
    let mut bad = image();
    let manifest = String::from_utf8(bad.manifest).unwrap();
    bad.manifest = manifest.replace(&digest(&bad.config), "sha256:../../../../etc/passwd").into_bytes();
    let name = layout(sandbox.root.path(), &bad);
    let error = refused(&sandbox, &name).await;
    assert!(error.message.contains("not a digest"), "{error}");
    assert!(Path::new("/etc/passwd").exists());
    let registry = Server::with_image(&bad, |_| None);
    assert!(refused(&sandbox, &registry.image()).await.message.contains("not a digest"));
}

#[tokio::test]
async fn image_volumes_that_lead_out_are_refused() {
    let sandbox = Sandbox::new();
    let config = json!({ "Cmd": ["sh"], "Volumes": { "/a/../../../etc": {} } });
    let name = layout(sandbox.root.path(), &Image::new(vec![Layer::shell()], config, Packing::Gzip));
    let request = request(&script(&name, "true"), 0);
    sandbox.runtime.ensure_image(&request.spec.image, &|_| {}).await.unwrap();
    let error = sandbox.runtime.create(&request).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Rejected);
    assert!(error.message.contains("/a/../../../etc"), "{error}");
}

/// What the image has as null device leads to a descriptor of whoever opens it.
fn with_null_of_its_own(number: u32, config: serde_json::Value) -> Image {
    let null = format!("/proc/self/fd/{number}");
    let layer = Layer::new().directory("dev/").symlink("dev/null", &null).symlink("a", "/dev").directory("data/");
    Image::new(vec![Layer::shell(), layer], config, Packing::Gzip)
}

#[tokio::test]
async fn volumes_of_an_image_over_directories_of_the_kernel_are_left_out_and_told() {
    let sandbox = Sandbox::new();
    let volumes = json!({ "/dev": {}, "/proc/": {}, "/sys/fs/cgroup": {}, "/dev/shm": {}, "/data": {} });
    let config = json!({ "Volumes": volumes });
    for number in [1, 3, 4, 5] {
        let image = with_null_of_its_own(number, config.clone());
        let name = layout(&sandbox.root.path().join(number.to_string()), &image);
        let own = script(
            &name,
            "busybox readlink /proc/self/fd/0; busybox stat -c %t:%T /dev/null; busybox grep -c -e ' /dev/shm ' -e ' /data ' /proc/mounts",
        );
        let wanted = request(&own, 0);
        sandbox.runtime.ensure_image(&wanted.spec.image, &|_| {}).await.unwrap();
        let created = sandbox.runtime.create(&wanted).await.unwrap();
        let told: Vec<&str> = created
            .conditions
            .iter()
            .filter(|one| one.reason == "VolumeLeftOut")
            .map(|one| one.message.as_str())
            .collect();
        assert_eq!(told.len(), 1, "{:?}", created.conditions);
        assert!(["/dev,", "/proc,", "/sys/fs/cgroup"].iter().all(|target| told[0].contains(target)), "{told:?}");
        sandbox.runtime.start(&created.as_ref()).await.unwrap();
        sandbox.ended(&created.as_ref()).await;
        assert_eq!(sandbox.output(&created.as_ref()), "/dev/null\n1:3\n3\n", "{number}");
        sandbox.runtime.remove(&created.as_ref()).await.unwrap();
    }
}

#[tokio::test]
async fn a_mount_that_a_link_leads_over_a_directory_of_the_kernel_is_refused() {
    let sandbox = Sandbox::new();
    let config = json!({ "Volumes": { "/a": {} } });
    let name = layout(sandbox.root.path(), &with_null_of_its_own(4, config));
    let wanted = request(&script(&name, "true"), 0);
    sandbox.runtime.ensure_image(&wanted.spec.image, &|_| {}).await.unwrap();
    let created = sandbox.runtime.create(&wanted).await.unwrap();
    let limit = Duration::from_secs(20);
    let error = tokio::time::timeout(limit, sandbox.runtime.start(&created.as_ref())).await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Rejected, "{error}");
    assert!(error.message.contains("the target /a leads to /dev"), "{error}");
}
