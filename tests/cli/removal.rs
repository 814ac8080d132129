//! Removals by name that are asked for by one process and carried out by another.

use std::path::PathBuf;

use crate::rig::Rig;

/// An instance with a named volume.
const KEEPER: &str = "version: v1\ndeployment: keeper\nservices:\n  web:\n    image: { name: host }\n    \
                      command: { entrypoint: [sleep, '100000'] }\n    stop_grace_period: 1s\n    \
                      storage: [{ type: named, name: data, target: /tmp/data }]\n";

fn volume(rig: &Rig) -> PathBuf {
    rig.path("state/sandbox/volumes/keeper/data")
}

/// How many rows a table of the state database has.
fn rows(rig: &Rig, table: &str) -> i64 {
    let database = rusqlite::Connection::open(rig.path("state/keel.db")).unwrap();
    database.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

#[test]
fn whoever_only_looks_forgets_no_removal() {
    for _ in 0..3 {
        let rig = Rig::new("sandbox");
        rig.write("keeper.yaml", KEEPER);
        rig.keel(&["apply", "-f", "keeper.yaml"]).expect_code(0);
        rig.keel(&["delete", "keeper", "--volumes", "--no-wait"]).expect_code(0);
        for _ in 0..3 {
            let shown = rig.keel(&["get", "deployments"]).expect_code(0).out;
            assert!(
                shown.contains("no controller runs; `keel run` or `keel delete keeper` would next stop"),
                "{shown}"
            );
        }
        assert_eq!((rows(&rig, "removals"), rows(&rig, "deployments")), (1, 1));
        let _controller = rig.controller();
        rig.until("nothing is left", || rig.get("instances").is_empty() && !volume(&rig).exists());
        rig.until("it is forgotten", || (rows(&rig, "removals"), rows(&rig, "deployments")) == (0, 0));
    }
}

#[test]
fn volumes_of_which_nothing_else_is_known_go_with_the_next_controller() {
    for _ in 0..5 {
        let rig = Rig::new("sandbox");
        rig.write("keeper.yaml", KEEPER);
        rig.keel(&["apply", "-f", "keeper.yaml"]).expect_code(0);
        rig.keel(&["delete", "keeper"]).expect_code(0);
        rig.keel(&["delete", "keeper", "--volumes", "--no-wait"]).expect_code(0);
        assert_eq!((rows(&rig, "removals"), rows(&rig, "deployments"), volume(&rig).exists()), (1, 0, true));
        rig.keel(&["get", "all"]).expect_code(0);
        let _controller = rig.controller();
        rig.until("the volume is gone", || !volume(&rig).exists());
        rig.until("it is forgotten", || rows(&rig, "removals") == 0);
    }
}

#[test]
fn volumes_that_are_deleted_are_told_and_what_is_gone_is_not_found() {
    let rig = Rig::new("sandbox");
    rig.write("keeper.yaml", KEEPER);
    rig.keel(&["apply", "-f", "keeper.yaml"]).expect_code(0);
    rig.keel(&["delete", "keeper"]).expect_code(0);
    assert!(volume(&rig).exists());
    let done = rig.keel(&["delete", "keeper", "--volumes"]).expect_code(0);
    assert_eq!(done.out, "deployment/keeper deleted\n");
    assert!(done.err.contains("keeper was gone already; its volumes were left, and go now\n"), "{}", done.err);
    assert!(!volume(&rig).exists());
    let done = rig.keel(&["delete", "keeper", "--volumes"]).expect_code(1);
    assert_eq!((done.out.as_str(), done.err.as_str()), ("", "error: deployments \"keeper\" not found\n"));
    let done = rig.keel(&["delete", "keeper", "--volumes", "--ignore-not-found"]).expect_code(0);
    assert_eq!((done.out.as_str(), done.err.as_str()), ("", ""));
}

#[test]
fn looking_writes_no_history() {
    let rig = Rig::new("sandbox");
    rig.write("specs/broken.yaml", "deployment: [\n");
    rig.controller().end("TERM").expect_code(0);
    let before = rows(&rig, "events");
    for _ in 0..3 {
        rig.keel(&["get", "deployments"]).expect_code(0);
    }
    assert_eq!(rows(&rig, "events"), before);
}

#[test]
fn what_is_approved_without_a_controller_goes_with_the_next_one() {
    let rig = Rig::new("sandbox");
    std::fs::create_dir(rig.path("other")).unwrap();
    rig.write("specs/keeper.yaml", KEEPER);
    let controller = rig.controller();
    rig.until_running("keeper", 1);
    controller.end("TERM").expect_code(0);
    rig.controller_on("other", &[]).end("TERM").expect_code(0);
    let done = rig.keel(&["approve"]).expect_code(0);
    assert_eq!(done.out, "deployment/keeper pruned\n");
    assert_eq!(done.err, "no controller runs, so nothing is stopped until `keel run` or `keel delete`\n");
    assert_eq!(rig.get("instances").len(), 1);
    rig.keel(&["run", "other", "--once"]).expect_code(0);
    assert!(rig.get("instances").is_empty());
}

#[test]
fn an_apply_finishes_what_an_earlier_one_began_to_prune() {
    let rig = Rig::new("sandbox");
    std::fs::create_dir(rig.path("many")).unwrap();
    for name in ["kept", "keeper"] {
        rig.write(&format!("many/{name}.yaml"), &KEEPER.replace("deployment: keeper", &format!("deployment: {name}")));
    }
    rig.write("many/stays.yaml", "version: v1\ndeployment: stays\nprune: never\nservices: {}\n");
    rig.keel(&["apply", "-f", "many"]).expect_code(0);
    rig.remove("many/keeper.yaml");
    rig.remove("many/stays.yaml");
    let done = rig.keel(&["apply", "-f", "many", "--no-wait"]).expect_code(0);
    let pruned = "deployment/kept unchanged\ndeployment/keeper pruned\n";
    assert_eq!(done.out, pruned);
    assert!(done.err.contains("nothing is started or stopped until `keel run` or `keel apply`"), "{}", done.err);
    // What is applied from elsewhere is no end of it.
    rig.write("other.yaml", "version: v1\ndeployment: other\nservices: {}\n");
    assert_eq!(rig.keel(&["apply", "-f", "other.yaml"]).expect_code(0).out, "deployment/other created\n");
    assert_eq!(rig.get("instances").len(), 2);
    let diff = rig.keel(&["diff", "-f", "many"]).expect_code(1);
    assert!(diff.out.starts_with("deployment/keeper pruned\n") && diff.out.contains("stop and remove"), "{}", diff.out);
    assert_eq!(rig.keel(&["apply", "-f", "many"]).expect_code(0).out, pruned);
    assert_eq!(rig.get("instances").len(), 1);
    assert_eq!(rig.keel(&["apply", "-f", "many"]).expect_code(0).out, "deployment/kept unchanged\n");
    assert_eq!(rig.keel(&["diff", "-f", "many"]).expect_code(0).out, "");
    rig.keel(&["delete", "kept"]).expect_code(0);
}
