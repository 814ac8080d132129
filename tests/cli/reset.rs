//! What becomes of what runs when the state database is lost.

use crate::rig::{Rig, spec};

/// A deployment that is to be kept when its declaration goes.
fn never(deployment: &str) -> String {
    spec(deployment, 1, "hi").replacen("services:", "prune: never\nservices:", 1)
}

fn running(rig: &Rig) -> usize {
    rig.instances(|one| one["phase"] == "running").into_iter().filter(|running| *running).count()
}

#[test]
fn what_was_held_or_is_never_pruned_is_kept_when_the_database_is_lost_until_it_is_approved() {
    let rig = Rig::new("sandbox");
    let (held, kept) = (["a", "b", "c", "d", "e"], ["a", "b", "c", "d", "e", "never"]);
    for name in held {
        rig.write(&format!("specs/{name}.yaml"), &spec(name, 1, "hi"));
    }
    rig.write("specs/never.yaml", &never("never"));
    let controller = rig.controller();
    rig.until("all run", || running(&rig) == 6);
    for name in kept {
        rig.remove(&format!("specs/{name}.yaml"));
    }
    rig.write("specs/other.yaml", &spec("other", 1, "hi"));
    rig.until("pruning is held", || rig.keel(&["get", "deploy"]).err.contains("keel approve"));
    rig.until_running("other", 1);
    controller.end("TERM").expect_code(0);
    let ids = rig.instances(|one| one["runtime_id"].clone());
    for companion in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(rig.path(&format!("state/keel.db{companion}")));
    }
    rig.write("state/keel.db", &"garbage, and much of it".repeat(999));

    let what = rig.path("state/keel.db.corrupt");
    let why = format!(
        "no file declares it, and whether it was to be kept is not known: the state database was damaged (it is {} now), \
         and a new one knows nothing of before; restore its file, or end it with `keel approve` (for all) or `keel delete a`",
        what.display()
    );
    let shown = |moved: bool| {
        let all = rig.get("deployments");
        let states: Vec<_> =
            all.iter().map(|one| (one["deployment"].as_str().unwrap(), one["state"].as_str().unwrap())).collect();
        let expected: Vec<_> = kept.iter().map(|name| (*name, "kept")).chain([("other", "running")]).collect();
        if moved {
            assert_eq!(states, expected);
            assert_eq!(all[0]["message"], why);
        } else {
            assert_eq!(states[..6], expected[..6]);
        }
        assert_eq!(rig.instances(|one| one["runtime_id"].clone()), ids);
    };
    // Whoever only looks leaves the damaged one where it is.
    shown(false);
    // A single pass reaps nothing, and does not end as if all were well.
    let done = rig.keel(&["run", "specs", "--once"]).expect_code(1);
    assert!(done.err.contains("what no file declares now is kept: a, b, c, d, e and 1 more"), "{}", done.err);
    shown(true);
    for _ in 0..2 {
        let controller = rig.controller();
        rig.until_running("other", 1);
        shown(true);
        let log = controller.end("TERM").expect_code(0).err;
        assert!(log.contains("`keel approve` (for all) or `keel delete NAME`"), "{log}");
    }
    // Nor does an apply without a controller.
    rig.keel(&["apply", "-f", "specs/other.yaml"]).expect_code(0);
    shown(true);

    let controller = rig.controller();
    rig.until_running("other", 1);
    assert_eq!(rig.keel(&["delete", "never"]).expect_code(0).out, "deployment/never deleted\n");
    let pruned = held.map(|name| format!("deployment/{name} pruned\n")).concat();
    assert_eq!(rig.keel(&["approve"]).expect_code(0).out, pruned);
    assert_eq!(held.map(|name| rig.state(name)), ["removing"; 5]);
    assert_eq!(rig.keel(&["approve"]).expect_code(0).err, "nothing is held; there is nothing to approve\n");
    assert_eq!(rig.keel(&["get", "deployments"]).err, "");
    for name in held {
        rig.keel(&["delete", name]).expect_code(0);
    }
    rig.until("only what is declared is left", || running(&rig) == 1);
    controller.end("TERM").expect_code(0);
}

#[test]
fn a_fresh_installation_has_lost_nothing() {
    let rig = Rig::new("sim");
    assert_eq!(rig.keel(&["get", "deployments"]).expect_code(0).err, "No resources found\n");
    rig.write("specs/a.yaml", &spec("a", 1, "hi"));
    for _ in 0..2 {
        let done = rig.keel(&["run", "specs", "--once"]).expect_code(0);
        assert!(!done.err.contains("database"), "{}", done.err);
        assert_eq!(rig.keel(&["get", "deployments"]).expect_code(0).err, "");
    }
}

/// What SQLite needs for a look can't be written where the disk is full, and is not needed.
#[test]
fn a_full_disk_hides_nothing_without_a_controller() {
    let rig = Rig::new("sim");
    rig.write("specs/demo.yaml", &spec("demo", 1, "hi"));
    let controller = rig.controller();
    rig.until_running("demo", 1);
    controller.end("KILL");
    let database = |suffix: &str| rig.path(&format!("state/rehearsal/keel.db{suffix}"));
    let before = || ["", "-wal"].map(|suffix| std::fs::read(database(suffix)).unwrap());
    std::fs::remove_file(database("-shm")).unwrap();
    let kept = before();
    let keel = rig.command(&["get", "deployments", "-o", "name"]);
    let mut shell = std::process::Command::new("sh");
    // Not a byte can be added to a file.
    shell.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$@\"", "sh"]).arg(keel.get_program()).args(keel.get_args());
    shell.current_dir(rig.path("")).env_clear();
    shell.envs(keel.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let done = shell.output().unwrap();
    let told = String::from_utf8_lossy(&done.stderr);
    assert_eq!((String::from_utf8_lossy(&done.stdout).as_ref(), told.as_ref()), ("deployment/demo\n", ""));
    assert_eq!(before(), kept, "nothing is written");
}
