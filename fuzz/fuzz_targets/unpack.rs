//! Any bytes give a layer or a reason: no panic, no hang, and nothing outside of its directory.

#![no_main]

use std::fs;

use evenkeel::runtime::sandbox::unpack_layer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = std::env::temp_dir().join(format!("keel-unpack-{}", std::process::id()));
    let (layer, beside) = (folder.join("layer"), folder.join("beside"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&layer).expect("a scratch directory");
    fs::write(&beside, "beside").expect("a scratch file");
    let _ = unpack_layer(bytes, &layer);
    assert_eq!(fs::read(&beside).expect("the file"), b"beside");
    assert_eq!(fs::read_dir(&folder).expect("the directory").count(), 2);
});
