//! What a new file would contradict: what was applied before, and what the watched directory declares.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel::store::{AppliedFile, save_applied};

use crate::rig::{Done, Rig};

/// One service that publishes this port of the machine; the port is said at 6:54.
fn publishing(deployment: &str, port: u16) -> String {
    format!(
        "version: v1\ndeployment: {deployment}\nservices:\n  a:\n    image: {{ name: host }}\n    \
         port_mappings: [{{ container_port: 80, host_port: {port} }}]\n"
    )
}

/// Every verb that takes files refuses this one at once, because of the port that is taken there.
#[track_caller]
fn expect_taken(rig: &Rig, file: &str, port: u16, by: &str) {
    let at = rig.path(file).display().to_string();
    for (verb, code) in [("apply", 1), ("diff", 2), ("plan", 2)] {
        let done: Done = rig.keel(&[verb, "-f", file]).expect_code(code);
        let told = format!(
            "error: {at}:6:54: services.a.port_mappings[0].host_port: port {port} is also taken by {by}; choose another \
             port for one of them (nothing was applied)\n"
        );
        assert!(done.err.starts_with(&told), "{verb}: {}\n{told}", done.err);
        assert_eq!(done.out, "", "{verb}");
    }
}

#[test]
fn a_port_that_something_applied_has_is_refused_at_once() {
    let rig = Rig::new("sim");
    rig.write("pa.yaml", &publishing("pa", 18085));
    rig.write("pb.yaml", &publishing("pb", 18085));
    rig.keel(&["apply", "-f", "pa.yaml"]).expect_code(0);
    let taken_by = format!("pa/a at {}:6:54", rig.path("pa.yaml").display());
    expect_taken(&rig, "pb.yaml", 18085, &taken_by);
    let names = rig.keel(&["get", "deployments", "-o", "name"]).expect_code(0);
    assert_eq!((names.out.as_str(), names.err.as_str()), ("deployment/pa\n", ""));
    // A file never contradicts what it replaces.
    rig.write("moved.yaml", &publishing("pa", 18085));
    rig.keel(&["apply", "-f", "moved.yaml"]).expect_code(0);
    rig.write("moved.yaml", &publishing("pa", 18086));
    rig.keel(&["apply", "-f", "moved.yaml"]).expect_code(0);
    rig.keel(&["apply", "-f", "pb.yaml"]).expect_code(0);
}

#[test]
fn a_port_that_the_watched_directory_has_is_refused_with_a_controller_and_without() {
    let rig = Rig::new("sim");
    rig.write("specs/pa.yaml", &publishing("pa", 18085));
    rig.write("pb.yaml", &publishing("pb", 18085));
    let taken_by = format!("pa/a at {}:6:54", rig.path("specs/pa.yaml").display());
    let controller = rig.controller();
    expect_taken(&rig, "pb.yaml", 18085, &taken_by);
    drop(controller);
    expect_taken(&rig, "pb.yaml", 18085, &taken_by);
    // Its last good version is what runs.
    rig.write("specs/pa.yaml", "services: {}\n");
    expect_taken(&rig, "pb.yaml", 18085, &taken_by);
    rig.remove("specs/pa.yaml");
    rig.keel(&["diff", "-f", "pb.yaml"]).expect_code(1);
}

/// Puts a file among those that were applied, as a version did that refused less.
fn store(rig: &Rig, file: &str, text: &str) {
    rig.write(file, text);
    let copy = AppliedFile {
        origin: rig.path(file),
        text: text.to_owned(),
        without: BTreeSet::new(),
        default_runtimes: BTreeMap::new(),
    };
    save_applied(std::slice::from_ref(&copy), &rig.path("state/rehearsal/applied")).unwrap();
}

#[test]
fn what_was_stored_with_an_error_is_found_by_name_and_by_file() {
    for by in [&["delete", "pb"][..], &["delete", "-f", "pb.yaml"]] {
        for text in [publishing("pb", 18085), publishing("pb", 18086).replace("host_port", "hostport")] {
            let rig = Rig::new("sim");
            rig.write("pa.yaml", &publishing("pa", 18085));
            rig.keel(&["apply", "-f", "pa.yaml"]).expect_code(0);
            store(&rig, "pb.yaml", &text);
            let before = rig.keel(&["get", "deployments"]).expect_code(0);
            assert!(before.err.contains("pb.yaml:6:"), "{}", before.err);
            let done = rig.keel(by).expect_code(0);
            assert_eq!((done.out.as_str(), done.err.as_str()), ("deployment/pb deleted\n", "pb: gone\n"), "{by:?}");
            assert_eq!(rig.keel(&["get", "deployments"]).expect_code(0).err, "");
            rig.keel(by).expect_code(1);
        }
    }
}

/// What watched files say that can't be seen is what counts, for every verb alike.
#[test]
fn what_a_watched_file_does_not_say_any_more_and_still_counts_is_neither_pruned_nor_taken_over() {
    for text in ["", "# soon\n", "version: v1\ndeployment: pa\n", "services: ["] {
        let rig = Rig::new("sim");
        rig.write("specs/pa.yaml", &publishing("pa", 18085));
        rig.write("specs/pb.yaml", &publishing("pb", 18086));
        rig.write("pa.yaml", &publishing("pa", 18087));
        let mut controller = Some(rig.controller());
        rig.until_running("pa", 1);
        rig.until_running("pb", 1);
        rig.write("specs/pa.yaml", text);
        for _ in 0..2 {
            let diff = rig.keel(&["diff", "-f", "specs"]);
            assert!(!diff.out.contains("pruned") && !diff.out.contains("stop"), "{text:?}: {}{}", diff.out, diff.err);
            for verb in [&["apply", "-f", "pa.yaml"][..], &["apply", "--dry-run", "-f", "pa.yaml"]] {
                let done = rig.keel(verb).expect_code(1);
                assert!(
                    done.err.contains("deployment pa is declared in") && done.err.contains("specs/pa.yaml:1, which"),
                    "{text:?}: {}",
                    done.err
                );
            }
            // Nobody restarts what was emptied: a deletion that no controller hears of says nothing else.
            drop(controller.take());
        }
        let deleted = rig.keel(&["delete", "pa"]).expect_code(0);
        assert!(!deleted.err.contains("still declares it"), "{text:?}: {}", deleted.err);
    }
}
