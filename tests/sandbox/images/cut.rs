//! What is left of an image whose unpacking was cut off.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use evenkeel::runtime::Runtime;

use super::build::{Image, Layer};
use super::{layout, script};
use crate::support::{PATIENCE, is_root, keel, open, request};

/// Where the process that unpacks finds its root; it does nothing without.
const ROOT: &str = "KEEL_TEST_CUT_ROOT";
/// The image that it unpacks.
const IMAGE: &str = "KEEL_TEST_CUT_IMAGE";
/// Files of a layer that takes long enough to be cut off.
const MANY: usize = 20_000;

/// The process that unpacks: a test of no meaning of its own.
#[tokio::test]
async fn unpacks() {
    let (Some(root), Ok(image)) = (std::env::var_os(ROOT).map(PathBuf::from), std::env::var(IMAGE)) else { return };
    let wanted = request(&script(&image, "true"), 0);
    open(&root, "test-owner").ensure_image(&wanted.spec.image, &|_| {}).await.unwrap();
}

/// Has it unpack an image as process 1 of a process namespace, as a controller in a container is each time.
fn unpacking(root: &Path, image: &str) -> Child {
    Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "images::cut::unpacks"])
        .env(ROOT, root)
        .env(IMAGE, image)
        .env("KEEL_TEST_PROGRAM", keel())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn what_was_unpacked_of_an_image_shows_in_no_other_also_where_the_next_process_has_the_same_number() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let image = |name: &str, layer: Layer| {
        layout(&folder.path().join(name), &Image::new(vec![layer], serde_json::json!({}), super::Packing::Plain))
    };
    let filler = |layer: Layer| (0..MANY).fold(layer, |layer, number| layer.file(&format!("filler/{number}"), ""));
    let evil = image("evil", filler(Layer::new().directory("etc/").file("etc/ld.so.preload", "/evil.so")));
    let good = image("good", Layer::new().directory("etc/").file("etc/motd", "hello"));
    let images = root.join("sandbox/images");

    let mut cut = unpacking(&root, &evil);
    let end = Instant::now() + PATIENCE;
    while !entries(&images.join("tmp")).iter().any(|one| one.join("root/etc/ld.so.preload").exists()) {
        assert!(Instant::now() < end, "it unpacks");
    }
    cut.kill().unwrap();
    // It has ended where nobody holds its output any more.
    cut.wait_with_output().unwrap();
    assert_eq!((entries(&images.join("layers")).len(), entries(&images.join("tmp")).len()), (0, 1), "it was cut off");

    let output = unpacking(&root, &good).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let layers = entries(&images.join("layers"));
    let names = |folder: &str| entries(&layers[0].join("root").join(folder)).len();
    assert_eq!((layers.len(), names(""), names("etc")), (1, 1, 1), "its own files alone");
    assert_eq!(entries(&images.join("tmp")), Vec::<PathBuf>::new(), "what was cut off is gone");
}
