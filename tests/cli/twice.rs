//! Deployments that are applied, and that the watched directory declares as well.

use crate::rig::{Rig, spec};

#[test]
fn what_is_deleted_by_name_leaves_what_the_watched_directory_declares() {
    let rig = Rig::new("sim");
    rig.write("x.yaml", &spec("x", 1, "applied"));
    rig.write("specs/y.yaml", &spec("y", 1, "hi"));
    let controller = rig.controller();
    rig.keel(&["apply", "-f", "x.yaml"]).expect_code(0);
    rig.write("specs/x.yaml", &spec("x", 2, "watched"));
    rig.until("the clash is told", || rig.keel(&["get", "deployments"]).err.contains("x is declared twice"));
    let done = rig.keel(&["delete", "x"]).expect_code(0);
    assert_eq!(done.out, "deployment/x configured\n");
    let told = format!(
        "what was applied of x is deleted; {}:1, which the controller watches, declares it as well and counts now; to delete \
         the deployment, remove it there\n",
        rig.path("specs/x.yaml").display()
    );
    assert!(done.err.starts_with(&told), "{}", done.err);
    rig.until_running("x", 2);
    assert_eq!(rig.keel(&["get", "deployments"]).expect_code(0).err, "");
    // From then on the file counts like any other.
    rig.write("specs/x.yaml", &spec("x", 3, "watched"));
    rig.until_running("x", 3);
    let done = rig.keel(&["delete", "x"]).expect_code(1);
    assert!(done.err.contains("specs/x.yaml:1, which the controller watches; remove it there"), "{}", done.err);
    rig.remove("specs/x.yaml");
    rig.until("it goes with its file", || rig.state("x").is_empty());
    controller.end("TERM").expect_code(0);
}

/// Who watches where no controller runs.
const LAST: &str = "the last controller watched, as the next one may";

/// This file is not applied, because another place declares the deployment; what would come of it there is told.
#[track_caller]
fn expect_declared_elsewhere(rig: &Rig, file: &str, deployment: &str, watching: &str) {
    let told = format!(
        "error: {}:1:1: deployment: deployment {deployment} is declared in {}:1, which {watching}; change it there, or \
         remove it there first (nothing was applied)\n",
        rig.path(file).display(),
        rig.path(&format!("specs/{deployment}.yaml")).display()
    );
    let done = rig.keel(&["apply", "-f", file]).expect_code(1);
    assert!(done.err.starts_with(&told), "{}\n{told}", done.err);
    assert_eq!(done.out, "");
    let told = format!(
        "note: deployment {deployment} is declared in {}:1, which {watching}; this is what would come of changing it there\n",
        rig.path(&format!("specs/{deployment}.yaml")).display()
    );
    for verb in ["diff", "plan"] {
        let done = rig.keel(&[verb, "-f", file]).expect_code(1);
        assert_eq!(done.err, told, "{verb}");
        assert!(done.out.contains(&format!("deployment/{deployment}")), "{verb}: {}", done.out);
    }
}

#[test]
fn what_was_deleted_and_is_still_declared_can_not_be_applied_from_elsewhere() {
    let rig = Rig::new("sim");
    rig.write("specs/x.yaml", &spec("x", 1, "hi"));
    rig.write("elsewhere.yaml", &spec("x", 1, "hello"));
    rig.keel(&["run", "specs", "--once"]).expect_code(0);
    expect_declared_elsewhere(&rig, "elsewhere.yaml", "x", LAST);
    let done = rig.keel(&["delete", "x"]).expect_code(0);
    assert!(done.err.contains("specs/x.yaml:1 still declares it"), "{}", done.err);
    expect_declared_elsewhere(&rig, "elsewhere.yaml", "x", LAST);
    rig.remove("specs/x.yaml");
    assert_eq!(rig.keel(&["apply", "-f", "elsewhere.yaml"]).expect_code(0).out, "deployment/x created\n");
    // A part of it may be watched.
    rig.write("specs/part.yaml", "version: v1\ndeployment: x\nservice: db\nimage: { name: host }\n");
    assert_eq!(
        rig.keel(&["diff", "-f", "elsewhere.yaml"]).expect_code(1).out.lines().next(),
        Some("deployment/x configured")
    );
    rig.keel(&["apply", "-f", "elsewhere.yaml"]).expect_code(0);
}

#[test]
fn an_apply_of_a_directory_that_was_watched_tells_what_it_does() {
    let rig = Rig::new("sim");
    for name in ["a", "b", "c"] {
        rig.write(&format!("specs/{name}.yaml"), &spec(name, 1, "hi"));
    }
    rig.write("other.yaml", &spec("other", 1, "hi"));
    rig.keel(&["run", "specs", "--once"]).expect_code(0);
    rig.write("specs/a.yaml", &spec("a", 1, "hello"));
    rig.remove("specs/b.yaml");
    rig.write("specs/d.yaml", &spec("d", 1, "hi"));
    // Whoever does something else takes nothing of it for done.
    rig.keel(&["apply", "-f", "other.yaml"]).expect_code(0);
    rig.keel(&["delete", "other"]).expect_code(0);
    let lines = |suffix: &str| {
        let changes = [("a", "configured"), ("c", "unchanged"), ("d", "created"), ("b", "pruned")];
        changes.map(|(name, change)| format!("deployment/{name} {change}{suffix}\n")).concat()
    };
    assert_eq!(rig.keel(&["apply", "-f", "specs", "--dry-run"]).expect_code(0).out, lines(" (dry run)"));
    assert_eq!(rig.keel(&["apply", "-f", "specs"]).expect_code(0).out, lines(""));
    assert_eq!(rig.keel(&["get", "deployments", "-o", "name"]).out, "deployment/a\ndeployment/c\ndeployment/d\n");
    let unchanged = ["a", "c", "d"].map(|name| format!("deployment/{name} unchanged\n")).concat();
    assert_eq!(rig.keel(&["apply", "-f", "specs"]).expect_code(0).out, unchanged);
}

#[test]
fn an_apply_prunes_nothing_that_is_held() {
    let rig = Rig::new("sim");
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        rig.write(&format!("specs/{name}.yaml"), &spec(name, 1, "hi"));
    }
    rig.keel(&["run", "specs", "--once"]).expect_code(0);
    for name in &names[..4] {
        rig.remove(&format!("specs/{name}.yaml"));
    }
    let done = rig.keel(&["apply", "-f", "specs"]).expect_code(0);
    assert_eq!(done.out, "deployment/e unchanged\n");
    assert!(done.err.contains("warning: more than half of the deployments vanished"), "{}", done.err);
    assert_eq!(rig.get("deployments").len(), 5);
}

#[test]
fn what_was_applied_from_a_directory_goes_with_it_once_a_controller_watches_it() {
    let rig = Rig::new("sim");
    std::fs::create_dir(rig.path("other")).unwrap();
    for name in ["a", "b"] {
        rig.write(&format!("specs/{name}.yaml"), &spec(name, 1, "hi"));
    }
    rig.keel(&["apply", "-f", "specs"]).expect_code(0);
    let controller = rig.controller();
    rig.until_running("b", 1);
    rig.remove("specs/b.yaml");
    rig.until("it is gone", || rig.state("b").is_empty());
    assert!(!rig.keel(&["diff", "-f", "specs"]).expect_code(0).out.contains("deployment/b"));
    assert_eq!(rig.keel(&["apply", "-f", "specs"]).expect_code(0).out, "deployment/a unchanged\n");
    controller.end("TERM").expect_code(0);
    // Nor does it come back where another directory is watched.
    rig.keel(&["run", "other", "--once"]).expect_code(0);
    assert_eq!(rig.keel(&["get", "deployments", "-o", "name"]).out, "deployment/a\n");
}
