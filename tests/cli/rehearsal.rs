//! A rehearsal on sim, and what really runs from the same state directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::rig::{Rig, spec};

/// What is recorded in a state directory, by the path of the file.
fn recorded(rig: &Rig) -> BTreeMap<PathBuf, Vec<u8>> {
    let state = rig.path("state");
    let applied = std::fs::read_dir(state.join("applied")).unwrap().map(|entry| entry.unwrap().path());
    let own = ["keel.db", "keel.db-wal", "default-runtime"].map(|name| state.join(name));
    let content = |path: &Path| std::fs::read(path).unwrap_or_default();
    applied.chain(own).map(|path| (path.clone(), content(&path))).collect()
}

/// Runs the program on sim.
fn rehearse(rig: &Rig, arguments: &[&str]) -> crate::rig::Done {
    rig.command(arguments).env("KEEL_RUNTIME", "sim").output().unwrap().into()
}

#[test]
fn a_rehearsal_of_what_really_runs_begins_with_what_is_recorded_and_records_nothing() {
    let rig = Rig::new("sandbox");
    for name in ["a", "b", "c"] {
        rig.write(&format!("specs/{name}.yaml"), &spec(name, 1, "hi"));
    }
    rig.write("d.yaml", &spec("d", 1, "hi"));
    rig.keel(&["apply", "-f", "specs", "-f", "d.yaml", "--no-wait"]).expect_code(0);
    rig.keel(&["delete", "c", "--volumes", "--no-wait"]).expect_code(0);
    rig.remove("specs/b.yaml");
    rig.remove("specs/c.yaml");
    let before = recorded(&rig);
    for _ in 0..2 {
        let done = rehearse(&rig, &["run", "specs", "--once"]).expect_code(0);
        for told in ["a/web/0", "d/web/0"] {
            assert!(done.err.contains(told), "{told}: {}", done.err);
        }
        assert_eq!(recorded(&rig), before, "{}", done.err);
    }
    for verb in [&["apply", "-f", "d.yaml"][..], &["delete", "d"]] {
        let done = rehearse(&rig, verb).expect_code(1);
        assert!(
            done.err.contains("the runtime sim is a rehearsal, and this state directory is that of"),
            "{}",
            done.err
        );
    }
    assert_eq!(recorded(&rig), before);
}

#[test]
fn a_rehearsal_that_goes_on_takes_no_orders() {
    let rig = Rig::new("sandbox");
    rig.write("specs/a.yaml", &spec("a", 1, "hi"));
    rig.keel(&["apply", "-f", "specs"]).expect_code(0);
    let mut rehearsal = rig.command(&["run", "specs"]).env("KEEL_RUNTIME", "sim").spawn().unwrap();
    rig.until("it rehearses", || rig.get("instances").iter().any(|one| one["runtime"] == "sim"));
    for verb in [
        &["apply", "-f", "specs"][..],
        &["delete", "a"],
        &["stop", "a/web"],
        &["suspend", "a"],
        &["scale", "a/web", "--replicas", "3"],
        &["rollout", "restart", "a"],
        &["hold", "a/web/0", "--for", "1h"],
        &["approve"],
    ] {
        let done = rig.keel(verb).expect_code(1);
        assert!(done.err.contains("is a rehearsal"), "{verb:?}: {}", done.err);
    }
    rehearsal.kill().unwrap();
    rehearsal.wait().unwrap();
    rig.keel(&["delete", "a"]).expect_code(0);
}

#[test]
fn what_was_rehearsed_before_anything_really_ran_goes_on_and_is_nothing_to_what_really_runs() {
    let rig = Rig::new("sandbox");
    rig.write("specs/a.yaml", &spec("a", 1, "hi"));
    rehearse(&rig, &["run", "specs", "--once"]).expect_code(0);
    rehearse(&rig, &["apply", "-f", "specs"]).expect_code(0);
    assert_eq!(rehearse(&rig, &["get", "deployments", "-o", "name"]).expect_code(0).out, "deployment/a\n");
    let looked = rig.keel(&["get", "deployments"]).expect_code(0);
    assert_eq!((looked.out.as_str(), looked.err.as_str()), ("", "No resources found\n"));
    let applied = rig.keel(&["apply", "-f", "specs", "--no-wait"]).expect_code(0);
    assert_eq!(applied.out, "deployment/a created\n");
    assert!(!applied.err.contains("database"), "{}", applied.err);
}
