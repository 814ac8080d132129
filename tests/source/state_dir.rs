//! The state directory: owner id and lock.

use std::os::unix::fs::PermissionsExt;

use evenkeel::store::{Holder, Lock, Locked, Role, StateDir};

#[test]
fn the_directory_is_private_and_keeps_its_owner() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("a/b");
    let first = StateDir::open(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(first.owner().0.len(), 32);
    assert!(first.applied().is_dir());
    assert_eq!(StateDir::open(&path).unwrap().owner(), first.owner());
    let other = StateDir::open(&base.path().join("other")).unwrap();
    assert_ne!(other.owner(), first.owner());
    let names: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "no temporary files stay: {names:?}");
}

#[test]
fn a_state_directory_that_was_not_made_is_looked_at_without_a_trace() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("state");
    assert!(!StateDir::is_made(&path));
    let looked_at = StateDir::unmade(&path).unwrap();
    assert_eq!((looked_at.path(), path.exists()), (path.as_path(), false));
    assert!(!StateDir::is_made(base.path()), "a folder alone is no installation");
    let made = StateDir::open(&path).unwrap();
    assert!(StateDir::is_made(&path));
    assert_ne!(made.owner(), looked_at.owner());
    std::fs::write(base.path().join("file"), "").unwrap();
    assert!(StateDir::is_made(&base.path().join("file")), "who opens it is told why it can't be one");
}

#[test]
fn a_damaged_owner_id_is_never_replaced() {
    let base = tempfile::tempdir().unwrap();
    std::fs::write(base.path().join("owner"), "").unwrap();
    let error = StateDir::open(base.path()).unwrap_err().to_string();
    assert!(error.contains("owner is damaged") && error.contains("restore it"), "{error}");
    assert_eq!(std::fs::read(base.path().join("owner")).unwrap(), b"");
}

#[test]
fn a_second_controller_is_refused_with_the_holders_pid_until_the_first_ends() {
    let base = tempfile::tempdir().unwrap();
    let dir = StateDir::open(base.path()).unwrap();
    assert_eq!(dir.holder().unwrap(), Lock::Free);
    let pid = std::process::id();
    let at = dir.path().display();
    for (role, words) in [
        (Role::Controller, format!("another keel (pid {pid}) is already running on {at}; stop it first")),
        (Role::Command, format!("a keel command (pid {pid}) works on {at}; wait until it is done")),
    ] {
        let guard = dir.lock(role).unwrap();
        let holder = Holder { pid: Some(pid), role: Some(role) };
        assert_eq!(dir.holder().unwrap(), Lock::Held(holder));
        let refused = StateDir::open(base.path()).unwrap().lock(Role::Controller).unwrap_err();
        assert!(matches!(&refused, Locked::Held { holder: held, .. } if *held == holder), "{refused:?}");
        assert_eq!(refused.to_string(), format!("{words}, or use another --state-dir"));
        drop(guard);
        assert_eq!(dir.holder().unwrap(), Lock::Free);
    }
}
