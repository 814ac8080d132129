//! The same layer in several images: what it has no entries for is there as the layers below have it.

use serde_json::json;

use super::build::{Image, Layer, Packing};
use super::{layout, run, script};
use crate::support::Sandbox;

fn image(sandbox: &Sandbox, name: &str, layers: Vec<Layer>) -> String {
    layout(&sandbox.root.path().join(name), &Image::new(layers, json!({}), Packing::Gzip))
}

/// A layer that lacks its directories.
fn implied() -> Layer {
    Layer::new().file("data/f", "f").file("lib/g", "g")
}

#[tokio::test]
async fn a_layer_without_its_directories_is_right_in_each_of_two_places() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let look = "stat -c '%n %a %u %F' /data /lib; cat /data/f /lib/g";
    let lowest = "/data 755 0 directory\n/lib 755 0 directory\nfg\n";
    let upper = "/data 700 1000 directory\n/lib 777 0 symbolic link\nfg\n";
    for begins_with_lowest in [true, false] {
        let sandbox = Sandbox::new();
        let base = || Layer::shell().directory_of(1000, "data", 0o700).directory("usr").symlink("lib", "usr");
        let images = [
            (image(&sandbox, "lowest", vec![implied(), Layer::shell()]), lowest),
            (image(&sandbox, "upper", vec![base(), implied()]), upper),
        ];
        let order = if begins_with_lowest { [0, 1] } else { [1, 0] };
        for (name, wanted) in order.map(|index| &images[index]) {
            assert_eq!(run(&sandbox, &script(name, look)).await, *wanted, "{name}, {begins_with_lowest}");
        }
    }
}

#[tokio::test]
async fn the_root_is_as_the_uppermost_layer_says_that_says_something() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let sandbox = Sandbox::new();
    let based = |mode| Layer::shell().directory_of(1000, "./", mode);
    let other = || Layer::new().directory("opt").file("opt/x", "x");
    for (name, layers, wanted) in [
        ("none", vec![Layer::shell(), other()], "755 0 0\n"),
        ("lowest", vec![based(0o750), other()], "750 1000 1000\n"),
        ("again", vec![based(0o750), other().file("y", "y")], "750 1000 1000\n"),
        ("upper", vec![based(0o750), Layer::new().directory_of(7, "./", 0o711), other()], "711 7 7\n"),
    ] {
        let name = image(&sandbox, name, layers);
        assert_eq!(run(&sandbox, &script(&name, "stat -c '%a %u %g' /")).await, wanted, "{name}");
    }
}
