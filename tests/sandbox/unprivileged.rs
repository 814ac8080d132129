//! The same tests again as an ordinary user, where they run as root.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::support::{is_root, keel};

/// The user and group that own nothing.
const NOBODY: u32 = 65_534;

#[test]
fn everything_holds_for_an_ordinary_user_too() {
    if !is_root() {
        return;
    }
    // The programs may lie where an ordinary user can't go.
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let copy = |from: &std::path::Path, name: &str| {
        std::fs::copy(from, folder.path().join(name)).unwrap();
        folder.path().join(name)
    };
    let (tests, program) = (copy(&std::env::current_exe().unwrap(), "tests"), copy(&keel(), "keel"));
    let probe = copy(&keel().parent().unwrap().join("examples/sandbox_probe"), "probe");
    let own = folder.path().join("tmp");
    std::fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
    let output = Command::new(tests)
        .current_dir(&own)
        .env("TMPDIR", &own)
        .env("KEEL_TEST_PROGRAM", program)
        .env("KEEL_TEST_PROBE", probe)
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
