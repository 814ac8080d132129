//! Pools and sessions as users meet them: claimed, used, given back, with real processes and a controller that is killed.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::engine::{self, Kind};
use crate::rig::{Done, Rig};

/// A deployment with a pool of sandboxes that do nothing.
fn pool(fields: &str) -> String {
    format!(
        "version: v1\ndeployment: demo\nservices:\n  box:\n    image: {{ name: host }}\n    \
         command: {{ entrypoint: [sleep, infinity] }}\n    labels: {{ lang: shell }}\n    \
         pool: {{ {fields} }}\n"
    )
}

/// A rig whose pool is filled.
fn rig(fields: &str) -> (Rig, crate::rig::Controller) {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &pool(fields));
    let controller = rig.controller();
    rig.until("the pool is filled", || of_pool(&rig, "warm") == of_pool(&rig, "min_warm"));
    (rig, controller)
}

fn of_pool(rig: &Rig, field: &str) -> Value {
    rig.get("pools").first().map(|pool| pool[field].clone()).unwrap_or_default()
}

/// A session, as acquire printed it.
struct Held {
    id: String,
    token: String,
    instance: String,
    told: Value,
}

fn acquire(rig: &Rig, arguments: &[&str]) -> Held {
    held(&rig.keel(&[&["session", "acquire", "--client", "agent", "-o", "json"], arguments].concat()))
}

#[track_caller]
fn held(done: &Done) -> Held {
    assert_eq!(done.code, 0, "{done:?}");
    let told = done.json();
    let text = |field: &str| told[field].as_str().unwrap_or_else(|| panic!("{field} in {told}")).to_owned();
    Held { id: text("session"), token: text("token"), instance: text("instance"), told }
}

impl Held {
    fn verb(&self, rig: &Rig, verb: &str) -> Done {
        rig.keel(&["session", verb, &self.id, "--token", &self.token])
    }

    fn exec(&self, rig: &Rig, script: &str) -> Done {
        rig.keel(&["exec", &self.instance, "--token", &self.token, "--", "sh", "-c", script])
    }
}

#[test]
fn a_warm_sandbox_is_handed_out_and_is_for_its_client_alone() {
    let (rig, _controller) = rig("min_warm: 2, max_total: 3");
    let one = acquire(&rig, &["demo/box", "--env", "COLOUR=green", "--label", "lang=shell"]);
    assert_eq!(one.told["warm"], true, "{}", one.told);
    assert!(one.told["elapsed_ms"].as_f64().is_some_and(|elapsed| elapsed > 0.0), "{}", one.told);
    let touch = rig.keel(&["touch", &one.instance]).expect_code(1);
    let says = format!("keel session touch {} with its token", one.id);
    assert!(touch.err.contains(&says) && touch.out.is_empty(), "{touch:?}");
    assert!(!rig.keel(&["touch", "demo/box"]).expect_code(0).out.contains(&one.instance), "the free ones alone");
    let said = one.exec(&rig, "echo $COLOUR").expect_code(0);
    assert_eq!(said.out, "green\n");
    let by_id = rig.keel(&["exec", &one.id, "--token", &one.token, "--", "echo", "in"]).expect_code(0);
    assert_eq!(by_id.out, "in\n");

    let without = rig.keel(&["exec", &one.instance, "--", "true"]).expect_code(125);
    assert!(without.err.contains("--token or KEEL_SESSION_TOKEN"), "{}", without.err);
    let other = acquire(&rig, &["box"]);
    let wrong = rig.keel(&["exec", &one.instance, "--token", &other.token, "--", "true"]).expect_code(125);
    assert!(wrong.err.contains("the token is not that of the session"), "{}", wrong.err);
    let of_other = rig.keel(&["session", "terminate", &one.id, "--token", &other.token]).expect_code(1);
    assert!(of_other.err.contains("the token is not that of the session"), "{}", of_other.err);
    let mut by_variable = rig.command(&["session", "touch", &one.id]);
    assert!(by_variable.env("KEEL_SESSION_TOKEN", &one.token).status().unwrap().success());

    for shown in [
        rig.keel(&["session", "list", "--all", "-o", "json"]),
        rig.keel(&["session", "list", "-o", "wide"]),
        rig.keel(&["describe", "demo"]),
        rig.keel(&["get", "all", "-o", "json"]),
    ] {
        let text = format!("{}{}", shown.out, shown.err);
        assert!(!text.contains(&one.token) && !text.contains(&other.token), "{text}");
    }
    let listed = rig.keel(&["session", "list", "-o", "json"]).json();
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!((&listed[0]["client"], &listed[0]["state"]), (&"agent".into(), &"active".into()));

    let released = one.verb(&rig, "release").expect_code(0);
    assert_eq!(released.out, format!("session/{} released\n", one.id));
    let again = one.verb(&rig, "release").expect_code(1);
    assert!(again.err.contains("is over: it was released at 20"), "{}", again.err);
}

#[test]
fn what_one_session_leaves_behind_the_next_one_does_not_find() {
    // One place, so that the next one has the same.
    let (rig, _controller) = rig("min_warm: 1, max_warm: 1, max_total: 1");
    let first = acquire(&rig, &["--env", "SECRET=one"]);
    let mark = format!("7{}", std::process::id());
    let leave = format!("echo mine > /tmp/left; (setsid sleep {mark} >/dev/null 2>&1 &); ls /tmp; echo $SECRET");
    let left = first.exec(&rig, &leave).expect_code(0);
    assert!(left.out.contains("left") && left.out.contains("one"), "{}", left.out);
    rig.until("it runs", || runs(&mark));
    let full = rig.keel(&["session", "acquire", "demo/box", "--client", "other"]).expect_code(1);
    assert!(full.err.contains("all 1 places of demo/box are claimed"), "{}", full.err);
    first.verb(&rig, "release").expect_code(0);
    let second = acquire(&rig, &[]);
    assert_eq!(second.instance, first.instance);
    assert_ne!(second.told["created_at"], first.told["created_at"]);
    let found = second.exec(&rig, "ls /tmp; echo \"secret: $SECRET\"; cat /proc/[0-9]*/cmdline").expect_code(0);
    assert!(!found.out.contains("left") && found.out.contains("secret: \n"), "{}", found.out);
    assert!(!found.out.contains(&mark) && !runs(&mark), "{}", found.out);
    // What is meant for one sandbox never runs in another one.
    let elsewhere = rig.keel(&["exec", "demo/box", "--token", &first.token, "--", "true"]).expect_code(125);
    assert!(elsewhere.err.contains("token"), "{}", elsewhere.err);
    let gone = first.exec(&rig, "true").expect_code(125);
    assert!(gone.err.contains("the token is not that of the session"), "{}", gone.err);
}

/// Whether a process of the machine has this argument.
fn runs(argument: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let has = |path: &Path| {
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
    };
    processes.into_iter().any(|process| has(&process.path()))
}

#[test]
fn sessions_outlive_their_controller() {
    let (rig, controller) = rig("min_warm: 1, max_total: 3");
    let kept = acquire(&rig, &["--sandbox", "notebook", "--create-if-missing"]);
    kept.exec(&rig, "echo kept > /tmp/file").expect_code(0);
    let gone = acquire(&rig, &[]);
    controller.end("KILL");
    let refused = rig.keel(&["session", "list"]).expect_code(1);
    assert!(refused.err.contains("no controller runs on ") && refused.err.contains("keel run"), "{}", refused.err);
    // Nobody gets inside a free one without being noticed, and nobody inside a claimed one without its token.
    let free = rig.instances(|one| one["name"].as_str().unwrap().to_owned());
    let free = free.iter().find(|name| **name != kept.instance && **name != gone.instance);
    if let Some(free) = free {
        let refused = rig.keel(&["exec", free, "--", "true"]).expect_code(125);
        assert!(refused.err.contains("running controller"), "{}", refused.err);
    }
    rig.keel(&["exec", &kept.instance, "--", "true"]).expect_code(125);
    // The next controller would not know that somebody is inside.
    for name in [&kept.instance, &kept.id] {
        let refused = rig.keel(&["exec", name, "--token", &kept.token, "--", "true"]).expect_code(125);
        assert!(refused.err.contains("no controller runs") && refused.err.contains("keel run"), "{}", refused.err);
    }
    let victim = rig.get("instances").into_iter().find(|one| one["name"] == gone.instance.as_str()).unwrap();
    crate::rig::signal(u32::try_from(victim["pid"].as_u64().unwrap()).unwrap(), "KILL");

    let _controller = rig.controller();
    let found = kept.exec(&rig, "cat /tmp/file").expect_code(0);
    assert_eq!(found.out, "kept\n");
    rig.until("the dead one is told", || {
        let listed = rig.keel(&["session", "list", "--all", "-o", "json"]).json();
        listed
            .as_array()
            .unwrap()
            .iter()
            .any(|one| one["session"] == gone.id.as_str() && one["reason"] == "sandbox_ended")
    });
    let again = held(&rig.keel(&[
        "session",
        "acquire",
        "--client",
        "agent",
        "--sandbox",
        "notebook",
        "--token",
        &kept.token,
        "-o",
        "json",
    ]));
    assert_eq!((again.id.as_str(), &again.told["reused"]), (kept.id.as_str(), &true.into()));
    let stranger = rig.keel(&["session", "acquire", "--client", "x", "--sandbox", "notebook", "--create-if-missing"]);
    assert!(stranger.expect_code(1).err.contains("present its token"));
}

#[test]
fn a_session_is_detached_frozen_taken_over_and_terminated_under_a_command() {
    let (rig, controller) = rig("min_warm: 1, max_total: 2");
    let one = acquire(&rig, &["demo"]);
    let twice = one.verb(&rig, "attach").expect_code(1);
    assert!(twice.err.contains("--takeover"), "{}", twice.err);
    one.verb(&rig, "detach").expect_code(0);
    one.verb(&rig, "attach").expect_code(0);
    one.verb(&rig, "suspend").expect_code(0);
    let phase = || {
        let all = rig.get("instances");
        let found = all.iter().find(|view| view["name"] == one.instance.as_str()).cloned();
        found.map(|view| view["phase"].as_str().unwrap().to_owned()).unwrap_or_default()
    };
    rig.until("it is frozen", || phase() == "paused");
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(phase(), "paused", "nobody thaws what its session froze");
    assert_eq!(one.exec(&rig, "echo thawed").expect_code(0).out, "thawed\n");
    rig.until("it runs on", || phase() == "running");

    let attach = ["session", "attach", &one.id, "--token", &one.token, "--takeover", "-o", "json"];
    let new = rig.keel(&attach).expect_code(0).json()["token"].as_str().unwrap().to_owned();
    assert!(one.verb(&rig, "touch").expect_code(1).err.contains("the token is not that of the session"));
    let one = Held { token: new, ..one };

    let arguments = ["exec", &one.instance, "--token", &one.token, "--", "sh", "-c", "echo begun; sleep 100"];
    let mut command = rig.command(&arguments);
    let mut inside = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut begun = [0; 6];
    std::io::Read::read_exact(inside.stdout.as_mut().unwrap(), &mut begun).unwrap();
    one.verb(&rig, "terminate").expect_code(0);
    let ended: Done = inside.wait_with_output().unwrap().into();
    assert_eq!(ended.code, 125, "{ended:?}");
    assert!(ended.err.contains(&format!("the session {} is over: it was terminated", one.id)), "{}", ended.err);
    let log = controller.end("TERM").expect_code(0).err;
    assert!(!log.contains("it is frozen again"), "who suspends it freezes it: {log}");
}

#[test]
fn claims_that_wait_keep_nobody_else_from_the_controller() {
    let rig = Rig::new("sandbox");
    let none = pool("min_warm: 0, max_total: 1000").replace("[sleep, infinity]", "[/nothing/is/here]");
    rig.write("specs/demo.yaml", &none);
    let _controller = rig.controller();
    rig.until("the pool is there", || of_pool(&rig, "max_total") == 1000);
    let body = r#"{"client": "agent", "pool": "demo/box"}"#;
    let head = "POST /v1/sessions/acquire HTTP/1.1\r\nhost: keel\r\ncontent-type: application/json\r\n";
    let ask = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    // More than there may be connections of other kinds.
    let waiting = std::iter::repeat_with(|| {
        let mut socket = std::os::unix::net::UnixStream::connect(rig.path("state/keel.sock")).unwrap();
        std::io::Write::write_all(&mut socket, ask.as_bytes()).unwrap();
        socket
    });
    let waiting: Vec<_> = waiting.take(300).collect();
    rig.until("all of them wait", || of_pool(&rig, "waiting") == 300);
    drop(waiting);
    rig.until("nobody waits any more", || of_pool(&rig, "waiting") == 0);
}

#[test]
fn an_operator_who_looks_inside_a_free_member_spoils_it() {
    let (rig, _controller) = rig("min_warm: 1, max_total: 2");
    let spoilt = rig.get("instances")[0]["runtime_id"].clone();
    rig.keel(&["exec", "demo/box", "--", "true"]).expect_code(0);
    let one = acquire(&rig, &[]);
    assert_ne!(one.told["runtime_id"], spoilt);
    rig.until("it is gone", || rig.instances(|one| one["runtime_id"].clone()).iter().all(|id| *id != spoilt));
    for verb in ["stop", "start"] {
        let refused = rig.keel(&[verb, "demo/box"]).expect_code(1).err;
        assert!(refused.contains("demo/box is a pool, which can't be started, stopped or held: "), "{refused}");
    }
}

#[test]
fn what_was_a_replica_is_handed_out_to_nobody() {
    let rig = Rig::new("sandbox");
    becomes_pool(&rig, "demo/box", &pool("min_warm: 2"));
}

#[test]
fn what_a_client_had_becomes_no_replica() {
    let (rig, _controller) = rig("min_warm: 2");
    let had = acquire(&rig, &[]);
    let mark = format!("8{}", std::process::id());
    had.exec(&rig, &format!("echo mine > /tmp/left; (setsid sleep {mark} >/dev/null 2>&1 &)")).expect_code(0);
    rig.until("it runs", || runs(&mark));
    let members = rig.instances(|one| one["runtime_id"].clone());
    rig.write("specs/demo.yaml", &scaled(&pool("min_warm: 2")));
    rig.until("all are replicas", || {
        let replicas = rig.instances(|one| one["runtime_id"].clone());
        replicas.len() == 2 && replicas.iter().all(|one| !members.contains(one))
    });
    rig.until_running("demo", 2);
    assert!(!runs(&mark), "what the client started has ended");
    for replica in ["demo/box/0", "demo/box/1"] {
        rig.keel(&["exec", replica, "--", "test", "!", "-e", "/tmp/left"]).expect_code(0);
    }
    let all = rig.keel(&["session", "list", "--all", "-o", "json"]).json();
    assert_eq!((&all[0]["session"], &all[0]["reason"]), (&had.id.as_str().into(), &"pool_removed".into()), "{all}");
}

/// The same service with two replicas in place of the pool.
fn scaled(pooled: &str) -> String {
    let (before, pool) = pooled.split_once("pool: {").unwrap();
    let (_, after) = pool.split_once('}').unwrap();
    format!("{before}scale: {{ mode: fixed, replicas: 2 }}{after}")
}

/// Leaves a file in a replica, replaces the replicas by a pool of two, and looks for it in all that is handed out.
fn becomes_pool(rig: &Rig, pool: &str, pooled: &str) {
    rig.write("specs/demo.yaml", &scaled(pooled));
    let _controller = rig.controller();
    let replicas = || rig.instances(|one| one["runtime_id"].clone());
    rig.until("there are replicas", || replicas().len() == 2);
    let replicas = replicas();
    for slot in 0..2 {
        let replica = format!("{pool}/{slot}");
        rig.until("it is inside", || rig.keel(&["exec", &replica, "--", "sh", "-c", "echo S > /tmp/left"]).code == 0);
    }
    rig.write("specs/demo.yaml", pooled);
    rig.until("the pool is filled", || of_pool(rig, "warm") == 2);
    for _ in 0..2 {
        let one = acquire(rig, &[pool]);
        assert!(!replicas.contains(&one.told["runtime_id"]), "{}", one.told);
        one.exec(rig, "test ! -e /tmp/left").expect_code(0);
    }
}

#[test]
fn bad_input_is_refused_with_the_rule() {
    let (rig, _controller) = rig("min_warm: 0, max_total: 2");
    let refused = |arguments: &[&str], why: &str| {
        let done = rig.keel(&[&["session", "acquire"], arguments].concat()).expect_code(1);
        assert!(done.err.contains(why), "{arguments:?}: {}", done.err);
    };
    let cold = acquire(&rig, &["box", "--timeout", "30s"]);
    assert_eq!(cold.told["warm"], false, "{}", cold.told);
    let long = "x".repeat(129);
    for client in ["", "../x", "a b", &long] {
        refused(&["box", "--client", client], "1 to 128 visible ASCII characters");
    }
    refused(&["box", "--client", "a", "--sandbox", "../../etc", "--create-if-missing"], "the sandbox id");
    for pool in ["nope", "demo/nope", "../demo", "", "a/b/c", &long] {
        refused(&[pool, "--client", "a"], "there is no pool");
    }
    refused(&["box", "--client", "a", "--sandbox", "b"], "--create-if-missing");
    refused(&["box", "--client", "a", "--label", "lang=python"], "demo/box lacks the label lang=python");
    let both = "demo/box lacks the label lang=python, the label team=x";
    refused(&["box", "--client", "a", "--label", "lang=python", "--label", "team=x"], both);
    // Enforced or not on this machine: nothing limits the memory of these members.
    refused(&["box", "--client", "a", "--require", "memory_limit"], "memory_limit");
    let again = ["box", "--client", "agent", "--reuse", "--token", &cold.token];
    refused(&[&again[..], &["--require", "memory_limit"]].concat(), "memory_limit");
    rig.keel(&[&["session", "acquire"], &again[..]].concat()).expect_code(0);
    for (session, why) in [("x", "is no session"), (&format!("sess-{}", "0".repeat(32)), "there is no session")] {
        let done = rig.keel(&["session", "release", session, "--token", "t"]).expect_code(1);
        assert!(done.err.contains(why), "{}", done.err);
    }
}

#[test]
fn killed_between_any_two_steps_nothing_is_leaked_and_nobody_shares() {
    let (rig, controller) = rig("min_warm: 2, max_total: 4");
    controller.end("KILL");
    let mut had: Vec<Value> = Vec::new();
    for turn in 0..12 {
        let controller = rig.controller();
        let acquire = ["session", "acquire", "demo/box", "--client", "agent", "--timeout", "20s", "-o", "json"];
        let mut clients: Vec<_> = (0..2)
            .map(|_| rig.command(&acquire).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap())
            .collect();
        std::thread::sleep(std::time::Duration::from_millis(turn * 2));
        controller.end("KILL");
        for client in clients.drain(..) {
            let output: Done = client.wait_with_output().unwrap().into();
            if output.code == 0 {
                let told = output.json();
                let member = Value::from(format!("{} {}", told["runtime_id"], told["created_at"]));
                assert!(!had.contains(&member), "{member} was handed out twice");
                had.push(member);
                let _controller = rig.controller();
                let (id, token) = (told["session"].as_str().unwrap(), told["token"].as_str().unwrap());
                rig.keel(&["session", "terminate", id, "--token", token]).expect_code(0);
            }
        }
        // What nobody was told of holds its place until its timeout; this test does not wait for that.
        rig.write("specs/demo.yaml", &(pool("min_warm: 2, max_total: 4") + "    session: { idle_timeout: 1ms }\n"));
        let controller = rig.controller();
        rig.until("nobody has any", || rig.keel(&["session", "list", "-o", "json"]).json() == serde_json::json!([]));
        controller.end("KILL");
        rig.write("specs/demo.yaml", &pool("min_warm: 2, max_total: 4"));
    }
    let _controller = rig.controller();
    rig.until_running("demo", 2);
}

#[test]
fn containers_of_a_pool_are_handed_out_too() {
    let Some(socket) = engine::socket(Kind::Docker) else { return };
    let rig = Rig::on_engine(&socket);
    rig.write(
        "specs/demo.yaml",
        "version: v1\ndeployment: pooled\nservices:\n  box:\n    \
         image: { name: 'keel-test/busybox:1', pull_policy: never }\n    \
         command: { entrypoint: [sh, -c, 'trap \"exit 0\" TERM; while :; do sleep 0.1; done'] }\n    \
         pool: { min_warm: 1, max_total: 2 }\n",
    );
    let _controller = rig.controller();
    rig.until_running("pooled", 1);
    let one = acquire(&rig, &["pooled", "--env", "A=1"]);
    assert_eq!(one.told["warm"], true, "{}", one.told);
    assert_eq!(one.exec(&rig, "echo $A > /left; cat /left").expect_code(0).out, "1\n");
    one.verb(&rig, "suspend").expect_code(0);
    assert_eq!(one.exec(&rig, "echo thawed").expect_code(0).out, "thawed\n");
    one.verb(&rig, "terminate").expect_code(0);
    let next = acquire(&rig, &["box"]);
    assert_ne!(next.told["runtime_id"], one.told["runtime_id"]);
    next.exec(&rig, "test ! -e /left").expect_code(0);
}

#[test]
fn a_container_that_was_a_replica_is_handed_out_to_nobody() {
    let Some(socket) = engine::socket(Kind::Docker) else { return };
    let rig = Rig::on_engine(&socket);
    becomes_pool(
        &rig,
        "converted/box",
        "version: v1\ndeployment: converted\nservices:\n  box:\n    \
         image: { name: 'keel-test/busybox:1', pull_policy: never }\n    \
         command: { entrypoint: [sh, -c, 'trap \"exit 0\" TERM; while :; do sleep 0.1; done'] }\n    \
         pool: { min_warm: 2 }\n",
    );
}

/// Whether a command line shows no token: that of the controller never has one.
#[test]
fn no_token_shows_in_the_command_line_of_the_controller_or_its_children() {
    let (rig, controller) = rig("min_warm: 1, max_total: 1");
    let one = acquire(&rig, &[]);
    one.exec(&rig, "true").expect_code(0);
    let shown = Command::new("ps").args(["-eo", "pid,args"]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.contains(&controller.pid().to_string()) && !shown.contains(&one.token), "{shown}");
}
