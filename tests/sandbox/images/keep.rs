//! What is kept of images, and when it goes.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use evenkeel::runtime::{ErrorKind, Runtime};
use serde_json::json;

use super::build::{Image, Layer, Packing};
use super::{layout, run, script};
use crate::support::{PATIENCE, Sandbox, request};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn images(sandbox: &Sandbox) -> PathBuf {
    sandbox.root.path().join("sandbox/images")
}

fn count(sandbox: &Sandbox, folder: &str) -> usize {
    std::fs::read_dir(images(sandbox).join(folder)).unwrap().count()
}

/// Makes everything that is known of images look as if it was used that long ago.
fn age(sandbox: &Sandbox, folder: &str, age: Duration) {
    for entry in std::fs::read_dir(images(sandbox).join(folder)).unwrap() {
        let file = std::fs::File::open(entry.unwrap().path()).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }
}

fn image(sandbox: &Sandbox, own: &str) -> String {
    layout(&sandbox.root.path().join(own), &Image::with(Layer::new().file("own", own)))
}

/// Whether the disk is as full as images are not kept on (85 %), or nearly so.
fn is_nearly_full(sandbox: &Sandbox) -> bool {
    let disk = rustix::fs::statvfs(sandbox.root.path()).unwrap();
    let used = disk.f_blocks - disk.f_bfree;
    used * 100 >= (used + disk.f_bavail) * 84
}

#[tokio::test]
async fn images_go_when_nothing_needed_them_for_long() {
    let sandbox = Sandbox::new();
    let (used, unused) = (image(&sandbox, "used"), image(&sandbox, "unused"));
    run(&sandbox, &script(&unused, "true")).await;
    let wanted = request(&script(&used, "cat /own"), 0);
    sandbox.runtime.ensure_image(&wanted.spec.image, &|_| {}).await.unwrap();
    let created = sandbox.runtime.create(&wanted).await.unwrap();
    assert_eq!((count(&sandbox, "layers"), count(&sandbox, "records")), (3, 2));

    // What nothing uses goes sooner from a disk that is nearly full.
    if !is_nearly_full(&sandbox) {
        age(&sandbox, "records", 6 * DAY);
        assert_eq!(sandbox.runtime.collect_images().await.unwrap(), Vec::<String>::new());
    }
    age(&sandbox, "records", 8 * DAY);
    age(&sandbox, "blobs/sha256", 8 * DAY);
    // What collects by itself once an image came may be at it, and be the one that removes it.
    let end = std::time::Instant::now() + PATIENCE;
    while count(&sandbox, "records") > 1 && std::time::Instant::now() < end {
        let gone = sandbox.runtime.collect_images().await.unwrap();
        assert!(gone.is_empty() || gone == [unused.as_str()], "{gone:?}");
    }
    // The shell is part of both and stays, with what describes the other.
    assert_eq!((count(&sandbox, "layers"), count(&sandbox, "records"), count(&sandbox, "blobs/sha256")), (2, 1, 2));
    assert_eq!(count(&sandbox, "tmp"), 0);
    sandbox.runtime.start(&created.as_ref()).await.unwrap();
    sandbox.ended(&created.as_ref()).await;
    assert_eq!(sandbox.output(&created.as_ref()), "used\n");

    let gone = request(&script(&unused, "true"), 1);
    assert_eq!(sandbox.runtime.create(&gone).await.unwrap_err().kind, ErrorKind::ImageUnavailable);
    sandbox.runtime.remove(&created.as_ref()).await.unwrap();
    assert_eq!(run(&sandbox, &script(&unused, "cat /own")).await, "unused\n");

    age(&sandbox, "records", 8 * DAY);
    sandbox.runtime.teardown("demo", evenkeel::state::Volumes::Keep).await.unwrap();
    assert_eq!((count(&sandbox, "layers"), count(&sandbox, "records")), (0, 0));
}

#[tokio::test]
async fn a_foreign_instance_keeps_its_image_too() {
    let sandbox = Sandbox::new();
    let name = image(&sandbox, "shared");
    let other = crate::support::open(sandbox.root.path(), "other-owner");
    let wanted = request(&script(&name, "true"), 0);
    other.ensure_image(&wanted.spec.image, &|_| {}).await.unwrap();
    let created = other.create(&wanted).await.unwrap();
    age(&sandbox, "records", 30 * DAY);
    assert_eq!(sandbox.runtime.collect_images().await.unwrap(), Vec::<String>::new());
    other.remove(&created.as_ref()).await.unwrap();
    assert_eq!(sandbox.runtime.collect_images().await.unwrap(), [name.as_str()]);
}

#[tokio::test]
async fn what_a_killed_process_left_is_swept_and_does_not_hinder() {
    let sandbox = Sandbox::new();
    let name = image(&sandbox, "own");
    let folder = images(&sandbox);
    for left in ["tmp/layer-1-1/root/d", "tmp/gone-1-2", "layers"] {
        std::fs::create_dir_all(folder.join(left)).unwrap();
    }
    std::fs::create_dir_all(folder.join("records")).unwrap();
    std::fs::write(folder.join("records/broken.json"), "{ \"version\"").unwrap();
    std::fs::create_dir_all(folder.join("layers/half")).unwrap();
    assert_eq!(run(&sandbox, &script(&name, "cat /own")).await, "own\n");
    sandbox.runtime.collect_images().await.unwrap();
    assert_eq!((count(&sandbox, "tmp"), count(&sandbox, "records"), count(&sandbox, "layers")), (0, 1, 2));
}

#[tokio::test]
async fn a_lost_layer_or_a_broken_record_comes_again() {
    let sandbox = Sandbox::new();
    let name = image(&sandbox, "own");
    let yaml = script(&name, "cat /own");
    run(&sandbox, &yaml).await;
    let layer = std::fs::read_dir(images(&sandbox).join("layers")).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_dir_all(layer).unwrap();
    assert_eq!(sandbox.runtime.create(&request(&yaml, 0)).await.unwrap_err().kind, ErrorKind::ImageUnavailable);
    assert_eq!(run(&sandbox, &yaml).await, "own\n");
    let record = std::fs::read_dir(images(&sandbox).join("records")).unwrap().next().unwrap().unwrap().path();
    std::fs::write(record, "{").unwrap();
    assert_eq!(run(&sandbox, &yaml).await, "own\n");
}

/// That an image names a layer does not mean that it has it.
#[tokio::test]
async fn a_layer_is_shared_only_with_images_that_have_it() {
    let sandbox = Sandbox::new();
    run(&sandbox, &script(&image(&sandbox, "secret"), "true")).await;
    let victim = Image::with(Layer::new().file("own", "secret"));
    let mut thief = Image::with(Layer::new().file("own", "public"));
    // It has the other image's diff ids, and layers of its own.
    let config = String::from_utf8(victim.config.clone()).unwrap();
    let manifest = String::from_utf8(thief.manifest).unwrap();
    let described = |bytes: &[u8]| (super::build::digest(bytes), format!("\"size\":{}", bytes.len()));
    let ((old, old_size), (new, new_size)) = (described(&thief.config), described(config.as_bytes()));
    thief.manifest = manifest.replace(&old, &new).replacen(&old_size, &new_size, 1).into_bytes();
    thief.config = config.into_bytes();
    let name = layout(&sandbox.root.path().join("thief"), &thief);
    let error = super::refused(&sandbox, &name).await;
    assert_eq!(error.kind, ErrorKind::Rejected);
    assert!(error.message.contains("as its image says"), "{error}");
}

/// The first version of the store gave a layer that was unpacked as the lowest one to images that have it elsewhere.
#[tokio::test]
async fn an_image_of_the_first_version_comes_again_where_it_may_be_wrong() {
    let sandbox = Sandbox::new();
    let layers = vec![Layer::shell(), Layer::new().file("own", "own")];
    let name = layout(sandbox.root.path(), &Image::new(layers, json!({}), Packing::Gzip));
    let yaml = script(&name, "cat /own");
    run(&sandbox, &yaml).await;
    let path = std::fs::read_dir(images(&sandbox).join("records")).unwrap().next().unwrap().unwrap().path();
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    record["version"] = json!(1);
    std::fs::write(&path, record.to_string()).unwrap();
    assert_eq!(sandbox.runtime.create(&request(&yaml, 0)).await.unwrap_err().kind, ErrorKind::ImageUnavailable);
    assert_eq!(run(&sandbox, &yaml).await, "own\n");
    record["layers"].as_array_mut().unwrap().truncate(1);
    std::fs::write(&path, record.to_string()).unwrap();
    let created = sandbox.runtime.create(&request(&yaml, 0)).await;
    assert!(created.is_ok(), "one layer is right wherever it came from: {created:?}");
}
