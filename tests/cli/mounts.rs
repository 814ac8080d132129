//! Claims with mounts, as users meet them.

use serde_json::{Value, json};

use crate::engine::{self, Kind};
use crate::namespaces::skip;
use crate::rig::{Controller, Done, Rig};

/// A deployment with a pool of sandboxes that do nothing.
fn pool(bounds: &str) -> String {
    format!(
        "version: v1\ndeployment: demo\nservices:\n  box:\n    image: {{ name: host }}\n    \
         command: {{ entrypoint: [sleep, infinity] }}\n    pool: {{ {bounds} }}\n"
    )
}

/// A rig whose pool has two free members, with directories `task` and `out` and a file `note` to show.
fn rig() -> Option<(Rig, Controller)> {
    if !rustix::process::geteuid().is_root() {
        skip("mounting into what runs takes root");
        return None;
    }
    let rig = Rig::new("sandbox");
    for name in ["task", "out"] {
        std::fs::create_dir(rig.path(name)).unwrap();
    }
    rig.write("task/input", "question\n");
    rig.write("note", "remember\n");
    rig.write("specs/demo.yaml", &pool("min_warm: 2, max_warm: 2, max_total: 3"));
    let controller = rig.controller();
    rig.until("the pool is filled", || warm(&rig) == 2);
    Some((rig, controller))
}

fn warm(rig: &Rig) -> Value {
    rig.get("pools").first().map(|pool| pool["warm"].clone()).unwrap_or_default()
}

fn acquire(rig: &Rig, more: &[&str]) -> Done {
    rig.keel(&[&["session", "acquire", "demo/box", "--client", "agent", "-o", "json"], more].concat())
}

fn verb(rig: &Rig, verb: &str, told: &Value) -> Done {
    let text = |field: &str| told[field].as_str().unwrap();
    rig.keel(&["session", verb, text("session"), "--token", text("token")]).expect_code(0)
}

fn exec(rig: &Rig, told: &Value, script: &str) -> String {
    let text = |field: &str| told[field].as_str().unwrap();
    rig.keel(&["exec", text("session"), "--token", text("token"), "--", "sh", "-c", script]).out
}

fn sessions(rig: &Rig) -> Vec<Value> {
    rig.keel(&["session", "list", "--all", "-o", "json"]).json().as_array().unwrap().clone()
}

#[test]
fn a_warm_sandbox_shows_what_its_claim_mounts_and_the_next_one_does_not() {
    let Some((rig, _controller)) = rig() else { return };
    let path = |name: &str| rig.path(name).display().to_string();
    // At or of something in the folder of this test; others come and go.
    let machine = || {
        let all = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        all.lines().filter(|line| line.contains(&path(""))).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = machine();
    let task = format!("type=bind,source={},target=/tmp/in/task,readonly", path("task"));
    let (out, note) = (format!("{}:/tmp/in/out", path("out")), format!("{}:/run/note:ro", path("note")));
    let first = acquire(&rig, &["--mount", &task, "--volume", &out, "--volume", &note]).expect_code(0).json();
    assert_eq!(first["warm"], true, "{first}");
    let mounts = json!([
        { "source": path("task"), "target": "/tmp/in/task", "readonly": true },
        { "source": path("out"), "target": "/tmp/in/out", "readonly": false },
        { "source": path("note"), "target": "/run/note", "readonly": true },
    ]);
    assert_eq!((&first["mounts"], &sessions(&rig)[0]["mounts"]), (&mounts, &mounts));
    let script = "cat /tmp/in/task/input /run/note; echo answer > /tmp/in/out/result; \
                  for f in /tmp/in/task/input /tmp/in/task/new /run/note; do (echo x > $f) 2>/dev/null || echo no; done";
    assert_eq!(exec(&rig, &first, script), "question\nremember\nno\nno\nno\n");
    assert_eq!(std::fs::read_to_string(rig.path("out/result")).unwrap(), "answer\n");
    verb(&rig, "suspend", &first);
    verb(&rig, "resume", &first);
    assert_eq!(exec(&rig, &first, "cat /tmp/in/out/result"), "answer\n");
    assert_eq!(machine(), before);

    let second = acquire(&rig, &[]).expect_code(0).json();
    assert_eq!(exec(&rig, &second, "ls /tmp/in /run/note 2>/dev/null; echo none"), "none\n");
    assert_eq!(second.get("mounts"), None);
    let again = ["--reuse", "--token", first["token"].as_str().unwrap()];
    let same = acquire(&rig, &[&again[..], &["--volume", &note, "--mount", &task, "--volume", &out]].concat());
    assert_eq!(same.expect_code(0).json()["session"], first["session"]);
    let others = acquire(&rig, &[&again[..], &["--volume", &note]].concat()).expect_code(1);
    assert!(others.err.contains("its mounts are others"), "{}", others.err);

    verb(&rig, "release", &first);
    let gone = || rig.instances(|one| one["runtime_id"].clone()).iter().all(|id| *id != first["runtime_id"]);
    rig.until("it is removed", gone);
    assert_eq!(std::fs::read_to_string(rig.path("task/input")).unwrap(), "question\n");
    assert_eq!(std::fs::read_to_string(rig.path("out/result")).unwrap(), "answer\n");
    assert_eq!(std::fs::read_to_string(rig.path("note")).unwrap(), "remember\n");
    assert_eq!(machine(), before);
}

#[test]
fn a_member_in_which_a_mount_failed_goes_and_no_other_is_tried() {
    let Some((rig, _controller)) = rig() else { return };
    let had = rig.instances(|one| one["runtime_id"].clone());
    let task = rig.path("task").display().to_string();
    // The first one is there already when the second one fails.
    let mounts = [format!("{task}:/tmp/in"), format!("{task}:/nowhere/at/all")];
    let refused = acquire(&rig, &["--volume", &mounts[0], "--volume", &mounts[1]]).expect_code(1);
    assert!(refused.err.contains("mounts[1].target: nothing can be mounted at /nowhere/at/all"), "{}", refused.err);
    assert!(refused.err.contains("read-only"), "{}", refused.err);
    let ended = sessions(&rig);
    let [ended] = ended.as_slice() else { panic!("{ended:?}") };
    assert_eq!((&ended["reason"], &ended["state"]), (&"not_handed_out".into(), &"ended".into()));
    assert!(ended["message"].as_str().unwrap().contains("could not be mounted: mounts[1].target"), "{ended}");
    assert!(had.contains(&ended["runtime_id"]));
    let gone = || rig.get("instances").iter().all(|one| one["created_at"] != ended["created_at"]);
    rig.until("it is gone and another one is made", || {
        gone() && warm(&rig) == 2 && !rig.instances(|one| one["runtime_id"].clone()).contains(&ended["runtime_id"])
    });
    let next = acquire(&rig, &["--volume", &mounts[0]]).expect_code(0).json();
    assert_eq!(exec(&rig, &next, "cat /tmp/in/input"), "question\n");
}

#[test]
fn what_the_spec_of_a_pool_does_not_allow_uses_no_member_up() {
    let Some((rig, _controller)) = rig() else { return };
    let storage = "    storage: [{ type: tmpfs, target: /tmp/own }]\n";
    rig.write("specs/demo.yaml", &(pool("min_warm: 2, max_warm: 2, max_total: 3") + storage));
    let revision = |one: &Value| one["revision"].clone();
    let before = rig.instances(revision);
    rig.until("the members are of that", || {
        warm(&rig) == 2 && rig.instances(revision).iter().all(|one| !before.contains(one))
    });
    let members = rig.instances(|one| one["runtime_id"].clone());
    let refused = acquire(&rig, &["--volume", &format!("{}:/tmp/own", rig.path("task").display())]).expect_code(1);
    assert!(
        refused.err.contains("mounts[0].target") && refused.err.contains("the pool's spec mounts"),
        "{}",
        refused.err
    );
    assert_eq!(sessions(&rig), [] as [Value; 0]);
    rig.until("all are free", || warm(&rig) == 2);
    let next = acquire(&rig, &[]).expect_code(0).json();
    assert!(members.contains(&next["runtime_id"]), "{next}");
}

#[test]
fn wrong_mounts_are_refused_with_their_field_and_nothing_is_taken() {
    let Some((rig, _controller)) = rig() else { return };
    let task = rig.path("task").display().to_string();
    let state = rig.path("state").display().to_string();
    let folder = rig.path("").display().to_string();
    let many: Vec<String> = (0..33).map(|number| format!("{task}:/tmp/{number}")).collect();
    let many: Vec<&str> = many.iter().flat_map(|volume| ["--volume", volume]).collect();
    assert!(acquire(&rig, &many).expect_code(1).err.contains("at most 32 of them, and these are 33"));
    for (source, target, why) in [
        ("task", "/tmp/x", "mounts[0].source: \"task\" is relative"),
        ("/no/such/thing", "/tmp/x", "mounts[0].source: /no/such/thing can't be mounted: No such file"),
        (&state, "/tmp/x", "where Evenkeel keeps its state"),
        (&folder, "/tmp/x", "where Evenkeel keeps its state"),
        ("/dev/null", "/tmp/x", "neither a directory nor a file"),
        (&task, "tmp/x", "mounts[0].target: \"tmp/x\" is relative"),
        (&task, "/", "mounts[0].target: / would cover the root"),
        (&task, "/tmp/../x", "must not contain \"..\""),
        (&task, "/proc/x", "/proc is made for each sandbox"),
    ] {
        let mount = format!("type=bind,source={source},target={target}");
        let refused = acquire(&rig, &["--mount", &mount]).expect_code(1);
        assert!(refused.err.contains(why), "{mount}: {}", refused.err);
    }
    for mount in ["type=tmpfs,target=/x", "source=/a", "source=/a,target=/x,propagation=shared"] {
        acquire(&rig, &["--mount", mount]).expect_code(2);
    }
    let twice = format!("{task}:/tmp/x");
    let refused = acquire(&rig, &["--volume", &twice, "--volume", &twice]).expect_code(1);
    assert!(refused.err.contains("mounts[1].target: another mount has the target"), "{}", refused.err);
    assert_eq!((sessions(&rig), warm(&rig)), (vec![], json!(2)));
}

#[test]
fn containers_take_no_mounts_while_they_run_and_none_is_taken_for_it() {
    let Some(socket) = engine::socket(Kind::Docker) else { return };
    let rig = Rig::on_engine(&socket);
    rig.write(
        "specs/demo.yaml",
        "version: v1\ndeployment: unmounted\nservices:\n  box:\n    \
         image: { name: 'keel-test/busybox:1', pull_policy: never }\n    command: { entrypoint: [sleep, '1000'] }\n    \
         stop_grace_period: 1s\n    pool: { min_warm: 1, max_total: 2 }\n",
    );
    let _controller = rig.controller();
    rig.until_running("unmounted", 1);
    let claim = ["session", "acquire", "unmounted/box", "--client", "agent", "--volume", "/etc:/mnt:ro"];
    let refused = rig.keel(&claim).expect_code(1);
    let why = "pool unmounted/box runs on docker, which can't mount into what runs already";
    assert!(refused.err.contains(why), "{}", refused.err);
    assert_eq!((sessions(&rig), warm(&rig)), (vec![], json!(1)));
}
