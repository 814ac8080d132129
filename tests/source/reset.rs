//! A database that began anew where somebody had worked before.

use std::path::Path;

use evenkeel::source::{Recording, Scanner};
use evenkeel::store::{DATABASE, Reset, Role, SourceChange, StateDir, Store};

use crate::bench::{Bench, names, removed};

/// Opens the database like somebody who works there.
fn work(dir: &StateDir) -> Option<Reset> {
    let lock = dir.lock(Role::Command).unwrap();
    let worked = dir.store(&lock).unwrap().reset().unwrap();
    assert_eq!(dir.look().unwrap().reset().unwrap(), worked, "whoever looks sees the same");
    worked
}

/// A state directory on which somebody worked.
fn worked_on(base: &Path) -> StateDir {
    let dir = StateDir::open(base).unwrap();
    assert_eq!(dir.look().unwrap().reset().unwrap(), None);
    assert_eq!(work(&dir), None, "a fresh installation has lost nothing");
    assert_eq!(work(&dir), None);
    dir
}

/// Loses the database; gives what is found at first, and after that.
fn lose(dir: &StateDir, lose: impl Fn(&Path)) -> [Option<Reset>; 2] {
    for companion in ["keel.db-wal", "keel.db-shm"] {
        let _ = std::fs::remove_file(dir.path().join(companion));
    }
    lose(&dir.path().join(DATABASE));
    [work(dir), work(dir)]
}

#[test]
fn a_database_that_is_lost_is_noted_in_the_next_one_until_that_is_confirmed() {
    let base = tempfile::tempdir().unwrap();
    let dir = worked_on(base.path());
    let missing = [const { Some(Reset::Missing) }; 2];
    assert_eq!(lose(&dir, |database| std::fs::remove_file(database).unwrap()), missing);
    let confirm = || {
        let confirmed = SourceChange { reset_confirmed: true, ..SourceChange::default() };
        Store::open(base.path()).unwrap().record_scan(&confirmed).unwrap();
        assert_eq!(work(&dir), None);
    };
    confirm();
    assert_eq!(lose(&dir, |database| std::fs::write(database, "").unwrap()), missing);
    confirm();
    let damaged = Some(Reset::Damaged { file: base.path().join("keel.db.corrupt") });
    let garbage =
        |database: &Path| std::fs::write(database, "no database, and long enough to look like one".repeat(99));
    assert_eq!(lose(&dir, |database| garbage(database).unwrap()), [damaged.clone(), damaged]);
    confirm();
}

#[test]
fn a_damaged_database_is_told_by_whoever_only_looks() {
    let base = tempfile::tempdir().unwrap();
    let dir = worked_on(base.path());
    let database = base.path().join(DATABASE);
    std::fs::write(&database, "no database, and long enough to look like one".repeat(99)).unwrap();
    assert_eq!(dir.look().unwrap().reset().unwrap(), Some(Reset::Damaged { file: database.clone() }));
    std::fs::remove_file(&database).unwrap();
    assert_eq!(dir.look().unwrap().reset().unwrap(), Some(Reset::Missing));
}

#[test]
fn a_scan_tells_that_the_database_was_lost_until_that_is_approved_which_is_another_decision_than_a_hold() {
    let mut bench = Bench::with(&["a", "b", "c", "d", "e"]);
    bench.restart();
    std::fs::write(bench.base.path().join("state").join(DATABASE), "no database at all".repeat(99)).unwrap();
    bench.remove("e.yaml");
    let snapshot = bench.scan();
    assert_eq!((names(&snapshot), removed(&snapshot)), (vec!["a", "b", "c", "d"], vec![]));
    assert!(snapshot.reset.as_ref().unwrap().contains("keel.db.corrupt"), "{:?}", snapshot.reset);
    bench.restart();
    assert_eq!(bench.scan().reset, snapshot.reset, "also after a restart");
    let look = |bench: &Bench| -> Scanner { bench.load(Recording::Off).unwrap() };
    assert_eq!(look(&bench).scan(bench.now()).snapshot.reset, snapshot.reset);
    for name in ["a", "b", "c", "d"] {
        bench.remove(&format!("{name}.yaml"));
    }
    assert!(bench.scan().hold.is_some());
    let (confirmed, after) = bench.approve();
    assert_eq!((confirmed.len(), &after.hold, &after.reset), (4, &None, &snapshot.reset));
    let (confirmed, after) = bench.approve();
    assert_eq!((confirmed.len(), &after.reset), (0, &None));
    bench.restart();
    assert_eq!(bench.scan().reset, None);
}
