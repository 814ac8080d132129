//! Layers that a disk damaged before they were unpacked.

use std::path::PathBuf;

use evenkeel::runtime::ErrorKind;
use serde_json::json;

use super::build::{Image, Layer, Packing, digest};
use super::server::{Server, ok, ranged};
use super::{refused, run, script};
use crate::support::Sandbox;

/// Puts bytes in the place of what a registry has under a digest: all of it, or the begin of it that came so far.
fn leave(sandbox: &Sandbox, is_whole: bool, named: &[u8], bytes: &[u8]) -> PathBuf {
    let folder = sandbox.root.path().join("sandbox/images/blobs/sha256");
    std::fs::create_dir_all(&folder).unwrap();
    let hex = &digest(named)[7..];
    let path = folder.join(if is_whole { hex.to_owned() } else { format!(".{hex}") });
    std::fs::write(&path, bytes).unwrap();
    path
}

fn image(packing: Packing) -> Image {
    Image::new(vec![Layer::shell(), Layer::new().file("own", "right")], json!({}), packing)
}

fn ranges(registry: &Server, layer: &[u8]) -> Vec<Option<String>> {
    let asked = registry.asked(&digest(layer));
    asked.iter().map(|request| request.header("range").map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_damaged_layer_comes_again() {
    let plain = image(Packing::Plain);
    let packed = image(Packing::Gzip);
    let other = Layer::new().file("own", "wrong").bytes();
    let garbage = vec![b'x'; packed.layers[1].len()];
    for (what, image, damaged) in [("that is an archive", &plain, &other), ("that is none", &packed, &garbage)] {
        let (sandbox, registry) = (Sandbox::new(), Server::with_image(image, |_| None));
        let layer = &image.layers[1];
        assert_eq!(damaged.len(), layer.len(), "its length tells nothing");
        let path = leave(&sandbox, true, layer, damaged);
        assert_eq!(run(&sandbox, &script(&registry.image(), "cat /own")).await, "right\n", "{what}");
        assert_eq!((ranges(&registry, layer), path.exists()), (vec![None], false), "{what}");
    }
}

#[tokio::test]
async fn a_layer_that_is_complete_already_is_not_asked_for() {
    let image = image(Packing::Gzip);
    let (sandbox, registry) = (Sandbox::new(), Server::with_image(&image, |_| None));
    leave(&sandbox, true, &image.layers[1], &image.layers[1]);
    assert_eq!(run(&sandbox, &script(&registry.image(), "cat /own")).await, "right\n");
    assert_eq!(ranges(&registry, &image.layers[1]), []);
}

#[tokio::test]
async fn a_damaged_begin_of_a_layer_comes_again() {
    let image = image(Packing::Gzip);
    let layer = &image.layers[1];
    for (length, asked) in [(50, vec![Some("bytes=50-".to_owned()), None]), (layer.len(), vec![None])] {
        let (sandbox, registry) = (Sandbox::new(), Server::with_image(&image, |_| None));
        leave(&sandbox, false, layer, &vec![b'x'; length]);
        assert_eq!(run(&sandbox, &script(&registry.image(), "cat /own")).await, "right\n", "{length}");
        assert_eq!(ranges(&registry, layer), asked, "{length}");
    }
}

#[tokio::test]
async fn a_registry_is_blamed_for_what_came_from_it_alone() {
    let image = image(Packing::Gzip);
    let layer = image.layers[1].clone();
    let (name, wrong) = (digest(&layer), vec![b'x'; layer.len()]);
    let registry =
        Server::with_image(&image, move |request| request.path.ends_with(&name).then(|| ranged(&wrong, request)));
    let sandbox = Sandbox::new();
    let path = leave(&sandbox, false, &layer, &layer[..50]);
    let error = refused(&sandbox, &registry.image()).await;
    assert_eq!(error.kind, ErrorKind::ImageUnavailable, "{error}");
    assert!(error.message.contains("came with the content of"), "{error}");
    assert_eq!(ranges(&registry, &layer), [Some("bytes=50-".to_owned()), None]);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_layer_that_is_wrong_in_its_registry_is_asked_for_once() {
    let mut image = image(Packing::Gzip);
    let wrong = vec![b'x'; image.layers[1].len()];
    let manifest = String::from_utf8(image.manifest).unwrap().replace(&digest(&image.layers[1]), &digest(&wrong));
    image.manifest = manifest.into_bytes();
    image.layers[1] = wrong.clone();
    let name = digest(&wrong);
    let registry = Server::with_image(&image, move |request| request.path.ends_with(&name).then(|| ok(&wrong)));
    let error = refused(&Sandbox::new(), &registry.image()).await;
    assert_eq!(error.kind, ErrorKind::Rejected, "{error}");
    assert!(!error.message.contains("has the content of"), "{error}");
    assert_eq!(ranges(&registry, &image.layers[1]), [None]);
}
