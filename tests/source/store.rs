//! The database.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};
use evenkeel::spec::{Prune, RuntimeKind};
use evenkeel::state::{SourceRef, StopCause, StopRecord};
use evenkeel::store::{
    DATABASE, Declared, HoldRecord, MAX_EVENT_MESSAGE, MAX_EVENTS, MountedFolder, RootIdentity, SourceChange,
    SourceFile, SourceState, Store, StoreError,
};

fn at(second: i64) -> DateTime<Utc> {
    "2026-01-02T03:04:05.000006Z".parse::<DateTime<Utc>>().unwrap() + TimeDelta::seconds(second)
}

fn declared(name: &str) -> Declared {
    Declared {
        name: name.into(),
        prune: Prune::Auto,
        root: "/specs".into(),
        source: SourceRef { file: format!("/specs/{name}.yaml").into(), line: 3 },
        spec: "{}".into(),
        updated_at: at(0),
        removed_at: None,
    }
}

fn file(name: &str) -> SourceFile {
    SourceFile { path: PathBuf::from(name), content: b"deployment: a\n".to_vec(), hash: [7; 32], accepted_at: at(1) }
}

/// The database and its companions.
fn files(dir: &Path) -> [PathBuf; 3] {
    ["keel.db", "keel.db-wal", "keel.db-shm"].map(|name| dir.join(name))
}

fn modes(dir: &Path) -> [u32; 3] {
    files(dir).map(|file| std::fs::metadata(file).unwrap().permissions().mode() & 0o777)
}

#[test]
fn nobody_else_reads_the_database_wherever_it_lies() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(modes(dir.path()), [0o600; 3]);
    for file in files(dir.path()) {
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    let _again = Store::open(dir.path()).unwrap();
    assert_eq!(modes(dir.path()), [0o600; 3], "also where it was made otherwise");
    drop(store);
}

/// Locks of this process on a file, as the kernel lists them.
#[cfg(target_os = "linux")]
fn locks(path: &Path) -> usize {
    use std::os::unix::fs::MetadataExt;
    let (own, inode) = (std::process::id().to_string(), format!(":{}", std::fs::metadata(path).unwrap().ino()));
    let all = std::fs::read_to_string("/proc/locks").unwrap();
    let is_ours = |line: &&str| {
        let mut fields = line.split_whitespace().skip(4);
        fields.next() == Some(own.as_str()) && fields.next().is_some_and(|file| file.ends_with(&inode))
    };
    all.lines().filter(is_ours).count()
}

#[cfg(target_os = "linux")]
#[test]
fn opening_the_database_again_leaves_the_locks_of_an_open_one() {
    let dir = tempfile::tempdir().unwrap();
    let _store = Store::open(dir.path()).unwrap();
    let before = locks(&dir.path().join(DATABASE));
    assert_ne!(before, 0);
    let _again = Store::open(dir.path()).unwrap();
    assert_eq!(locks(&dir.path().join(DATABASE)), before);
}

#[test]
fn volumes_that_were_to_go_go_though_the_removal_is_asked_for_again_without_them() {
    use evenkeel::runtime::Volumes;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    store.request_removals(&names(&["a", "b"]), Volumes::Remove).unwrap();
    store.request_removals(&names(&["b", "c"]), Volumes::Keep).unwrap();
    store.request_removals(&names(&["c"]), Volumes::Remove).unwrap();
    let expected = ["a", "b", "c"].map(|name| (name.to_owned(), Volumes::Remove));
    let removals = store.removals().unwrap();
    assert_eq!(removals.iter().map(|(name, one)| (name.clone(), one.volumes)).collect::<Vec<_>>(), expected);
}

#[test]
fn what_a_scan_records_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let hold = HoldRecord { reason: "gone".into(), since: at(2), missing: ["a".to_owned()].into() };
    let root = RootIdentity { path: "/specs".into(), identity: "1:2".into() };
    let mounted = |path: &str| MountedFolder {
        path: path.into(),
        real: "/mnt/x".into(),
        mount: "/mnt".into(),
        identity: path.ends_with("x").then(|| "7:2".to_owned()),
    };
    let removed = Declared { removed_at: Some(at(9)), prune: Prune::Never, ..declared("b") };
    let change = SourceChange {
        files: vec![file("/specs/a.yaml"), file("/specs/b.yaml")],
        declared: vec![declared("a"), removed.clone()],
        roots: Some(vec![root.clone()]),
        mounts: Some(vec![mounted("/specs/x"), mounted("/specs/y")]),
        hold: Some(Some(hold.clone())),
        deleted: Some(["c".to_owned(), "d".to_owned()].into()),
        ..SourceChange::default()
    };
    Store::open(dir.path()).unwrap().record_scan(&change).unwrap();
    let store = Store::open(dir.path()).unwrap();
    let expected = SourceState {
        files: vec![file("/specs/a.yaml"), file("/specs/b.yaml")],
        inventory: vec![declared("a"), removed],
        roots: vec![root.clone()],
        mounts: vec![mounted("/specs/x"), mounted("/specs/y")],
        hold: Some(hold),
        deleted: ["c".to_owned(), "d".to_owned()].into(),
        reset: None,
    };
    assert_eq!(store.source_state().unwrap(), expected);
    let change = SourceChange {
        dropped_files: vec!["/specs/a.yaml".into()],
        mounts: Some(vec![mounted("/specs/y")]),
        hold: Some(None),
        deleted: Some(["d".to_owned()].into()),
        ..Default::default()
    };
    store.record_scan(&change).unwrap();
    store.forget("b").unwrap();
    store.forget("b").unwrap();
    let expected = SourceState {
        files: vec![file("/specs/b.yaml")],
        inventory: vec![declared("a")],
        roots: vec![root],
        mounts: vec![mounted("/specs/y")],
        hold: None,
        deleted: ["d".to_owned()].into(),
        reset: None,
    };
    assert_eq!(store.source_state().unwrap(), expected);
}

#[test]
fn a_declaration_replaces_the_one_before() {
    let store = Store::in_memory().unwrap();
    store.declare(&declared("a")).unwrap();
    let moved = Declared { source: SourceRef { file: "/specs/x.yaml".into(), line: 1 }, ..declared("a") };
    store.declare(&moved).unwrap();
    assert_eq!(store.inventory().unwrap(), [moved]);
}

#[test]
fn events_come_oldest_first_and_only_the_newest_are_kept() {
    let store = Store::in_memory().unwrap();
    for n in 0..MAX_EVENTS + 5 {
        let deployment = (n % 2 == 0).then_some("even");
        store.record_event(at(n), deployment, "Created", &n.to_string()).unwrap();
    }
    let messages = |events: Vec<evenkeel::store::Event>| events.into_iter().map(|e| e.message).collect::<Vec<_>>();
    assert_eq!(messages(store.events(2).unwrap()), ["10003", "10004"]);
    assert_eq!(messages(store.events_of("even", 2).unwrap()), ["10002", "10004"]);
    let all = store.events(usize::MAX).unwrap();
    assert_eq!((all.len() as i64, all[0].message.as_str(), all[0].at), (MAX_EVENTS, "5", at(5)));
}

#[test]
fn a_stop_is_there_after_a_restart_until_it_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let stop = |id: &str, cause, run: i64| StopRecord {
        runtime: RuntimeKind::Docker,
        runtime_id: id.into(),
        cause,
        // Engines tell nanoseconds, and which run it was is told by them.
        run: Some(at(run) + TimeDelta::nanoseconds(7)),
        over_at: at(run + 60),
    };
    let (first, later) = (stop("a", StopCause::Retired, 0), stop("a", StopCause::Expired, 9));
    let store = Store::open(dir.path()).unwrap();
    store.record_stop(&first).unwrap();
    store.record_stop(&stop("b", StopCause::Idle, 3)).unwrap();
    store.record_stop(&later).unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.stops(RuntimeKind::Docker).unwrap(), [later.clone(), stop("b", StopCause::Idle, 3)]);
    assert_eq!(store.stops(RuntimeKind::Sandbox).unwrap(), []);
    store.forget_stop(&first).unwrap();
    assert_eq!(store.stops(RuntimeKind::Docker).unwrap().len(), 2, "a later record of the same instance stays");
    store.forget_stop(&later).unwrap();
    store.forget_stop(&later).unwrap();
    assert_eq!(store.stops(RuntimeKind::Docker).unwrap(), [stop("b", StopCause::Idle, 3)]);
}

#[test]
fn a_long_message_is_cut_between_characters() {
    let store = Store::in_memory().unwrap();
    store.record_event(at(0), None, "Failed", &format!("x{}", "ü".repeat(MAX_EVENT_MESSAGE))).unwrap();
    let message = &store.events(1).unwrap()[0].message;
    assert_eq!(message.len(), MAX_EVENT_MESSAGE - 1);
}

#[test]
fn a_damaged_database_is_moved_aside_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    Store::open(dir.path()).unwrap().declare(&declared("a")).unwrap();
    for damage in [b"not a database at all, but long enough to be read as a header of one".to_vec(), torn(dir.path())] {
        std::fs::write(dir.path().join(DATABASE), &damage).unwrap();
        let store = Store::open(dir.path()).unwrap();
        let aside = store.moved_aside().unwrap();
        assert_eq!(std::fs::read(aside).unwrap(), damage);
        assert_eq!(store.inventory().unwrap(), []);
        assert_eq!(modes(dir.path()), [0o600; 3]);
        store.declare(&declared("b")).unwrap();
    }
    assert_eq!(Store::open(dir.path()).unwrap().moved_aside(), None);
}

#[test]
fn a_look_changes_nothing_of_a_database_of_an_older_version_nor_of_a_damaged_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.record_scan(&SourceChange { declared: vec![declared("a")], ..SourceChange::default() }).unwrap();
    drop(store);
    let path = dir.path().join(DATABASE);
    let version = |path: &Path| -> i64 {
        let connection = rusqlite::Connection::open(path).unwrap();
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap()
    };
    // As it was before removals had numbers, which was format 5.
    let older = 5;
    let connection = rusqlite::Connection::open(&path).unwrap();
    let younger = "SELECT group_concat('DROP TABLE ' || name, ';') FROM sqlite_master WHERE type = 'table' AND name NOT IN \
                   ('files', 'deployments', 'roots', 'hold', 'events', 'stops', 'deleted', 'reset', 'removals', \
                   'sqlite_sequence')";
    let younger: String = connection.query_row(younger, [], |row| row.get(0)).unwrap();
    connection.execute_batch(&younger).unwrap();
    let removals = "DROP TABLE removals; CREATE TABLE removals (name TEXT PRIMARY KEY, volumes INTEGER NOT NULL) \
                    WITHOUT ROWID; INSERT INTO removals VALUES ('b', 1)";
    connection.execute_batch(removals).unwrap();
    connection.pragma_update(None, "user_version", older).unwrap();
    drop(connection);
    let before = std::fs::read(&path).unwrap();
    let seen = Store::look(dir.path()).unwrap();
    assert_eq!(seen.source_state().unwrap().inventory, [declared("a")]);
    assert_eq!(seen.removals().unwrap()["b"].volumes, evenkeel::runtime::Volumes::Remove);
    assert_eq!((std::fs::read(&path).unwrap() == before, version(&path)), (true, older));

    let torn = torn(dir.path());
    std::fs::write(&path, &torn).unwrap();
    assert_eq!(Store::look(dir.path()).unwrap().source_state().unwrap().inventory, []);
    assert_eq!(std::fs::read(&path).unwrap(), torn);
}

/// The database with its pages after the first overwritten.
fn torn(dir: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(dir.join(DATABASE)).unwrap();
    assert!(bytes.len() > 8192);
    bytes[4096..].fill(0xff);
    bytes
}

#[test]
fn a_database_of_a_newer_version_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path()).unwrap());
    let connection = rusqlite::Connection::open(dir.path().join(DATABASE)).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error}");
    assert!(!dir.path().join("keel.db.corrupt").exists());
}
