//! Deployments that are applied, and that the watched directory declares as well.

use crate::rig::{Rig, spec};

/// Every verb that takes files refuses this one, because another place declares the deployment.
#[track_caller]
fn expect_declared_elsewhere(rig: &Rig, file: &str, deployment: &str) {
    let told = format!(
        "error: {}:1:1: deployment: deployment {deployment} is declared in {}:1, which the controller watches; change it \
         there, or remove it there first (nothing was applied)\n",
        rig.path(file).display(),
        rig.path(&format!("specs/{deployment}.yaml")).display()
    );
    for (verb, code) in [("apply", 1), ("diff", 2), ("plan", 2)] {
        let done = rig.keel(&[verb, "-f", file]).expect_code(code);
        assert!(done.err.starts_with(&told), "{verb}: {}\n{told}", done.err);
        assert_eq!(done.out, "", "{verb}");
    }
}

#[test]
fn what_was_deleted_and_is_still_declared_can_not_be_applied_from_elsewhere() {
    let rig = Rig::new("sim");
    rig.write("specs/x.yaml", &spec("x", 1, "hi"));
    rig.write("elsewhere.yaml", &spec("x", 1, "hello"));
    rig.keel(&["run", "specs", "--once"]).expect_code(0);
    expect_declared_elsewhere(&rig, "elsewhere.yaml", "x");
    let done = rig.keel(&["delete", "x"]).expect_code(0);
    assert!(done.err.contains("specs/x.yaml:1 still declares it"), "{}", done.err);
    expect_declared_elsewhere(&rig, "elsewhere.yaml", "x");
    rig.remove("specs/x.yaml");
    assert_eq!(rig.keel(&["apply", "-f", "elsewhere.yaml"]).expect_code(0).out, "deployment/x created\n");
    // A part of it may be watched.
    rig.write("specs/part.yaml", "version: v1\ndeployment: x\nservice: db\nimage: { name: host }\n");
    assert_eq!(rig.keel(&["apply", "-f", "elsewhere.yaml"]).expect_code(0).out, "deployment/x configured\n");
}
