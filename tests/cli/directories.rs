//! One state directory, and controllers that watch one directory after the other.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::rig::{Done, Rig, is_alive, signal, spec};

/// Pid of the only instance of a deployment; none where nothing runs.
fn pid(rig: &Rig, deployment: &str) -> Option<u32> {
    let all = rig.get("instances");
    let running = all.iter().find(|one| one["deployment"] == deployment && one["phase"] == "running")?;
    u32::try_from(running["pid"].as_u64()?).ok()
}

fn deployment(rig: &Rig, name: &str) -> Value {
    let all = rig.get("deployments");
    all.into_iter().find(|view| view["deployment"] == name).unwrap_or_default()
}

/// An installation on which a controller ran `specs`, which declares `a` and `b`.
fn after_specs() -> Rig {
    let rig = Rig::new("sandbox");
    std::fs::create_dir(rig.path("other")).unwrap();
    for name in ["a", "b"] {
        rig.write(&format!("specs/{name}.yaml"), &spec(name, 1, "hi"));
    }
    rig.write("other/c.yaml", &spec("c", 1, "hi"));
    let controller = rig.controller();
    rig.until_running("a", 1);
    rig.until_running("b", 1);
    controller.end("TERM").expect_code(0);
    rig
}

fn kept(name: &str, file: &Path, directory: &Path) -> String {
    format!(
        "declared in {}:1, which is not watched any more; `keel delete {name}` or `keel approve` ends it, `keel run {}` \
         takes it up again",
        file.display(),
        directory.display()
    )
}

#[test]
fn once_converges_and_judges_only_its_directory_and_names_what_stays_of_another() {
    let rig = after_specs();
    let (a, b) = (pid(&rig, "a").unwrap(), pid(&rig, "b").unwrap());
    signal(b, "KILL");
    rig.until("it has ended", || !is_alive(b));
    let done = rig.keel(&["run", "other", "--once"]).expect_code(0);
    let (specs, other) = (rig.path("specs"), rig.path("other"));
    let stays = format!(
        "{0} is not watched any more, and what it declared stays: a ({0}/a.yaml:1), b ({0}/b.yaml:1); `keel delete NAME` \
         or `keel approve` (for all) ends it, `keel run {0}` takes it up again",
        specs.display()
    );
    assert!(done.err.contains(&stays), "{}", done.err);
    assert_eq!((pid(&rig, "a"), pid(&rig, "b")), (Some(a), None), "neither is touched");
    assert!(pid(&rig, "c").is_some());
    let view = deployment(&rig, "a");
    assert_eq!(
        (&view["state"], &view["message"]),
        (&"running".into(), &kept("a", &specs.join("a.yaml"), &specs).into())
    );
    let conditions = view["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|one| one["type"] == "Kept" && one["reason"] == "NotWatched"), "{view}");
    // The other way round, each directory's own counts again.
    let done = rig.keel(&["run", "specs", "--once"]).expect_code(0);
    assert!(done.err.contains(&format!("what it declared stays: c ({}/c.yaml:1)", other.display())), "{}", done.err);
    assert_eq!(pid(&rig, "a"), Some(a));
    assert!(pid(&rig, "b").is_some() && pid(&rig, "c").is_some());
    assert_eq!(deployment(&rig, "a")["message"], "");
}

#[test]
fn a_controller_keeps_what_another_directory_declared_until_it_is_deleted_or_approved() {
    let rig = after_specs();
    let (a, b) = (pid(&rig, "a").unwrap(), pid(&rig, "b").unwrap());
    signal(b, "KILL");
    let controller = rig.controller_on("other", &["--allow-empty"]);
    rig.until_running("c", 1);
    // What was declared once is kept running.
    rig.until_running("b", 1);
    assert_eq!(pid(&rig, "a"), Some(a));
    let table = rig.keel(&["get", "deployments"]).expect_code(0);
    let specs = rig.path("specs");
    assert!(table.out.contains(&kept("b", &specs.join("b.yaml"), &specs)), "{}", table.out);
    assert_eq!(table.err, "", "pruning is not held");
    rig.remove("other/c.yaml");
    rig.until("what is watched is pruned", || deployment(&rig, "c") == Value::Null);
    let done = rig.keel(&["delete", "a"]).expect_code(0);
    assert_eq!(done.out, "deployment/a deleted\n");
    assert!(done.err.contains("a.yaml:1 still declares it"), "{}", done.err);
    assert!(!is_alive(a));
    let log = controller.end("TERM").expect_code(0).err;
    assert!(log.contains("is not watched any more, and what it declared stays: a ("), "{log}");
    // The next one does not start it again.
    let controller = rig.controller_on("other", &[]);
    rig.until_running("b", 1);
    assert_eq!((deployment(&rig, "a"), pid(&rig, "a")), (Value::Null, None));
    assert_eq!(rig.keel(&["approve"]).expect_code(0).out, "deployment/b pruned\n");
    rig.until("it is gone", || rig.get("instances").is_empty() && rig.get("deployments").is_empty());
    controller.end("TERM").expect_code(0);
    rig.keel(&["run", "specs", "--once"]).expect_code(0);
    assert!(pid(&rig, "a").is_some() && pid(&rig, "b").is_some(), "where it is declared, it runs again");
}

#[test]
fn what_is_deleted_without_a_controller_is_not_started_by_one_of_another_directory() {
    let rig = after_specs();
    let b = pid(&rig, "b").unwrap();
    let done = rig.keel(&["delete", "a"]).expect_code(0);
    assert_eq!(done.out, "deployment/a deleted\n");
    assert!(
        done.err.contains("a.yaml:1 still declares it; a controller that watches it starts it again"),
        "{}",
        done.err
    );
    assert_eq!(deployment(&rig, "a"), Value::Null, "it is not shown any more");
    assert_eq!(rig.keel(&["plan"]).expect_code(0).out, "deployment/b unchanged: nothing to do\n");
    let controller = rig.controller_on("other", &[]);
    rig.until_running("c", 1);
    assert_eq!((deployment(&rig, "a"), pid(&rig, "b")), (Value::Null, Some(b)));
    controller.end("TERM").expect_code(0);
    let controller = rig.controller();
    rig.until_running("a", 1);
    controller.end("TERM").expect_code(0);
    // What is applied is declared again, whoever deleted it.
    rig.keel(&["delete", "a"]).expect_code(0);
    assert_eq!(rig.keel(&["apply", "-f", "specs/a.yaml"]).expect_code(0).out, "deployment/a created\n");
    assert_eq!(deployment(&rig, "a")["state"], "running");
}

#[test]
fn what_is_deleted_without_a_controller_is_not_started_before() {
    let rig = after_specs();
    for name in ["a", "b"] {
        signal(pid(&rig, name).unwrap(), "KILL");
    }
    rig.until("they have ended", || pid(&rig, "a").is_none() && pid(&rig, "b").is_none());
    let done = rig.command(&["delete", "a"]).env("KEEL_LOG", "info").output().map(crate::rig::Done::from).unwrap();
    let err = done.expect_code(0).err;
    assert!(err.contains("INFO remove a/web/0"), "{err}");
    assert!(!err.contains("INFO start") && !err.contains("INFO create"), "{err}");
    rig.keel(&["apply", "-f", "specs/b.yaml", "--no-wait"]).expect_code(0);
    assert_eq!(pid(&rig, "b"), None, "nothing is started where nobody waits");
    let waits = rig.keel(&["delete", "b", "--no-wait"]).expect_code(0);
    assert!(waits.err.contains("no controller runs, so nothing is stopped"), "{}", waits.err);
    assert_eq!(rig.get("instances").len(), 1, "what is left of it");
    assert_eq!(rig.keel(&["delete", "b"]).expect_code(0).out, "deployment/b deleted\n");
    assert!(rig.get("instances").is_empty());
}

/// Ids of nobody, a user that every machine has.
const NOBODY: u32 = 65534;

/// Owner of every file below a directory, the directory first.
fn owners(directory: &Path) -> Vec<(PathBuf, u32)> {
    let mut all = vec![(directory.to_owned(), std::fs::metadata(directory).unwrap().uid())];
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(owners(&path)),
            false => all.push((path.clone(), std::fs::symlink_metadata(&path).unwrap().uid())),
        }
    }
    all
}

#[test]
fn a_state_directory_of_another_user_is_refused_by_every_verb_and_left_as_it_is() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root can act as two users");
    }
    for (owner, name, user) in [(NOBODY, "nobody", 0), (0, "root", NOBODY)] {
        let rig = Rig::new("sandbox");
        // The program may lie where an ordinary user can't go.
        let program = rig.path("keel");
        std::fs::copy(env!("CARGO_BIN_EXE_keel"), &program).unwrap();
        std::fs::set_permissions(rig.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
        rig.write("specs/a.yaml", &spec("a", 1, "hi"));
        let state = rig.path("state");
        std::fs::create_dir(&state).unwrap();
        chown(&state, Some(owner), Some(owner)).unwrap();
        let keel = |user: u32, arguments: &[&str]| {
            let mut command = std::process::Command::new(&program);
            command.args(arguments).current_dir(rig.path("")).uid(user).gid(user).env_clear();
            command.env("KEEL_STATE_DIR", &state).env("KEEL_RUNTIME", "sandbox").env("HOME", rig.path(""));
            Done::from(command.output().unwrap())
        };
        keel(owner, &["run", "specs", "--once", "--allow-empty"]).expect_code(0);
        keel(owner, &["delete", "a"]).expect_code(0);
        let before = owners(&state);
        let verbs: [(&[&str], i32); 9] = [
            (&["run", "specs", "--once"], 1),
            (&["apply", "-f", "specs"], 1),
            (&["delete", "a"], 1),
            (&["approve"], 1),
            (&["get", "all"], 1),
            (&["logs", "a"], 1),
            (&["exec", "a/web", "--", "true"], 125),
            (&["plan", "-f", "specs"], 2),
            (&["diff", "-f", "specs"], 2),
        ];
        for (arguments, code) in verbs {
            let done = keel(user, arguments).expect_code(code);
            let told = format!(
                "error: {} belongs to user {name} ({owner}); run keel as that user, for example `sudo -u {name} keel ...`, \
                 or use another --state-dir\n",
                state.display()
            );
            assert_eq!((done.out.as_str(), done.err.as_str()), ("", told.as_str()), "{arguments:?}");
        }
        assert_eq!(owners(&state), before);
        keel(owner, &["get", "all"]).expect_code(0);
    }
}

#[test]
fn a_watched_directory_that_is_gone_shows_in_every_view_and_what_it_declared_stays_until_that_is_approved() {
    let rig = Rig::new("sim");
    rig.write("specs/a.yaml", &spec("a", 1, "hi"));
    let controller = rig.controller();
    rig.until_running("a", 1);
    std::fs::rename(rig.path("specs"), rig.path("away")).unwrap();
    let message = |view: &Value| view["message"].as_str().unwrap_or_default().to_owned();
    rig.until("its loss is told", || message(&deployment(&rig, "a")).contains("pruning is stopped"));
    let view = deployment(&rig, "a");
    assert_eq!(view["state"], "running");
    assert!(message(&view).starts_with("its declaration is gone and it is kept: "), "{view}");
    let conditions = view["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|one| one["type"] == "Kept" && one["reason"] == "PruningHeld"), "{view}");
    assert_eq!(rig.keel(&["approve"]).expect_code(0).out, "deployment/a pruned\n");
    rig.until("it is gone", || rig.get("deployments").is_empty());
    controller.end("TERM").expect_code(0);
}

/// What becomes of files between an apply and the first controller on their directory is judged as if it had watched them.
#[test]
fn a_directory_that_was_applied_is_protected_from_the_first_look_of_a_controller_on() {
    let rig = Rig::new("sandbox");
    let names = ["a", "b", "c"];
    for name in names {
        rig.write(&format!("specs/{name}.yaml"), &spec(name, 1, "hi"));
    }
    rig.keel(&["apply", "-f", "specs"]).expect_code(0);
    let before = names.map(|name| pid(&rig, name));
    rig.write("specs/a.yaml", "");
    let done = rig.keel(&["run", "specs", "--once"]).expect_code(1);
    assert!(done.err.contains("a.yaml:1:1: is empty"), "{}", done.err);
    std::fs::rename(rig.path("specs"), rig.path("away")).unwrap();
    std::fs::create_dir(rig.path("specs")).unwrap();
    let done = rig.keel(&["run", "specs", "--once"]).expect_code(1);
    assert!(done.err.contains("pruning is stopped"), "{}", done.err);
    assert_eq!(names.map(|name| pid(&rig, name)), before);
    assert!(before.iter().all(Option::is_some));
}

#[test]
fn an_applied_directory_that_is_empty_at_the_first_look_ends_nothing() {
    let rig = Rig::new("sandbox");
    rig.write("specs/a.yaml", &spec("a", 1, "hi"));
    rig.keel(&["apply", "-f", "specs"]).expect_code(0);
    let before = pid(&rig, "a");
    rig.remove("specs/a.yaml");
    let done = rig.keel(&["run", "specs", "--once"]).expect_code(1);
    assert!(done.err.contains("specs was found empty: 1 of 1 is missing (a); pruning is stopped"), "{}", done.err);
    assert!(before.is_some() && pid(&rig, "a") == before);
}

#[test]
fn what_is_held_says_so_where_only_some_deployments_have_vanished() {
    let rig = Rig::new("sim");
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        rig.write(&format!("specs/{name}.yaml"), &spec(name, 1, "hi"));
    }
    let controller = rig.controller();
    rig.until_running("e", 1);
    for name in &names[..4] {
        rig.remove(&format!("specs/{name}.yaml"));
    }
    let kept = |name: &str| deployment(&rig, name)["message"].as_str().unwrap_or_default().to_owned();
    rig.until("its loss is told", || kept("a").contains("pruning is stopped"));
    for name in &names[..4] {
        assert!(kept(name).contains("4 of 5 are missing (a, b, c, d); pruning is stopped"), "{}", kept(name));
        let conditions = deployment(&rig, name)["conditions"].clone();
        let is_held = |one: &Value| one["type"] == "Kept" && one["reason"] == "PruningHeld";
        assert!(conditions.as_array().unwrap().iter().any(is_held), "{conditions}");
    }
    assert_eq!(kept("e"), "");
    rig.write("specs/a.yaml", &spec("a", 1, "hi"));
    rig.until("what is back is not held", || {
        kept("a").is_empty() && kept("b").contains("3 of 5 are missing (b, c, d)")
    });
    controller.end("TERM").expect_code(0);
}

#[test]
fn a_single_pass_that_may_remove_everything_ends_well_where_the_directory_is_gone() {
    let rig = Rig::new("sandbox");
    rig.write("specs/a.yaml", &spec("a", 1, "hi"));
    rig.keel(&["run", "specs", "--once"]).expect_code(0);
    std::fs::remove_dir_all(rig.path("specs")).unwrap();
    rig.keel(&["run", "specs", "--once"]).expect_code(1);
    rig.keel(&["run", "specs", "--once", "--allow-empty"]).expect_code(0);
    assert_eq!((rig.get("deployments"), rig.get("instances")), (vec![], vec![]));
    std::fs::create_dir(rig.path("specs")).unwrap();
}

#[test]
fn a_single_pass_ends_with_its_timeout_and_tells_what_is_missing() {
    let rig = Rig::new("sandbox");
    rig.write("specs/a.yaml", &(spec("a", 1, "hi") + "    rollout: { min_ready: 5m }\n"));
    let done = rig.keel(&["run", "specs", "--once", "--timeout", "5s"]).expect_code(124);
    assert!(done.err.contains("error: deployment/a not done after 5s: it is progressing: "), "{}", done.err);
}

#[test]
fn a_damaged_default_runtime_is_an_error_that_names_it_and_chooses_no_other() {
    let rig = Rig::new("sandbox");
    rig.write("specs/a.yaml", &spec("a", 1, "hi"));
    rig.keel(&["run", "specs", "--once"]).expect_code(0);
    let path = rig.path("state/default-runtime");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "sandbox");
    std::fs::write(&path, "").unwrap();
    let done = rig.keel(&["get", "deployments"]).expect_code(1);
    let expected = format!("{}: \"\" is not the name of a runtime; write docker or sandbox into it", path.display());
    assert!(done.err.contains(&expected), "{}", done.err);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    std::fs::write(&path, "sandbox").unwrap();
}
