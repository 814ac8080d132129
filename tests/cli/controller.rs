//! Verbs through a running controller.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use crate::rig::{Rig, spec};

fn request(rig: &Rig, text: &str) -> String {
    let mut stream = UnixStream::connect(rig.path("state/keel.sock")).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_socket_is_the_owners_alone_and_goes_with_the_controller() {
    let rig = Rig::new("sim");
    let socket = rig.path("state/keel.sock");
    let controller = rig.controller();
    let metadata = std::fs::metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let done = controller.end("TERM").expect_code(0);
    assert!(done.err.contains("what runs goes on"), "{}", done.err);
    assert!(!socket.exists());
}

#[test]
fn a_socket_that_a_killed_controller_left_is_replaced() {
    let rig = Rig::new("sim");
    rig.controller().end("KILL");
    assert!(rig.path("state/keel.sock").exists());
    assert_eq!(rig.keel(&["version"]).expect_code(0).out.lines().nth(1), Some("controller none running"));
    rig.controller().end("INT").expect_code(0);
}

#[test]
fn a_second_controller_is_refused_with_the_pid_of_the_first() {
    let rig = Rig::new("sim");
    let controller = rig.controller();
    let done = rig.keel(&["run", "specs"]).expect_code(1);
    assert!(done.err.contains(&format!("(pid {})", controller.pid())), "{}", done.err);
}

#[test]
fn requests_that_do_not_exist_are_answered_in_json() {
    let rig = Rig::new("sim");
    let _controller = rig.controller();
    let answer = request(&rig, "GET /v2/status HTTP/1.1\r\nhost: keel\r\nconnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert!(answer.contains(r#""kind":"not_found""#), "{answer}");
    let answer = request(&rig, "GET /v1/apply HTTP/1.1\r\nhost: keel\r\nconnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 405 ") || answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[test]
fn a_request_beyond_the_bound_is_refused_before_it_is_read() {
    let rig = Rig::new("sim");
    let _controller = rig.controller();
    let head = "POST /v1/apply HTTP/1.1\r\nhost: keel\r\nconnection: close\r\ncontent-type: application/json\r\n\
                content-length: 99999999999\r\n\r\n";
    let answer = request(&rig, head);
    assert!(answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[test]
fn what_files_say_runs_and_follows_them() {
    let rig = Rig::new("sim");
    rig.write("specs/a.yaml", &spec("a", 2, "one"));
    let _controller = rig.controller();
    rig.until_running("a", 2);
    let revisions = |rig: &Rig| rig.instances(|one| one["revision"].clone());
    let first = revisions(&rig);
    rig.write("specs/a.yaml", &spec("a", 3, "one"));
    rig.until_running("a", 3);
    assert_eq!(revisions(&rig)[..2], first, "scaling replaces nothing");
    rig.write("specs/a.yaml", &spec("a", 3, "two"));
    rig.until("every instance is replaced", || {
        let now = revisions(&rig);
        now.len() == 3 && now.iter().all(|revision| *revision != first[0])
    });
    rig.remove("specs/a.yaml");
    rig.until("everything is gone", || rig.get("instances").is_empty() && rig.get("deployments").is_empty());
}

#[test]
fn a_broken_file_keeps_what_runs_and_its_place_is_shown() {
    let rig = Rig::new("sim");
    rig.write("specs/a.yaml", &spec("a", 2, "one"));
    let controller = rig.controller();
    rig.until_running("a", 2);
    let ids = rig.instances(|one| one["runtime_id"].clone());
    rig.write("specs/a.yaml", &spec("a", 2, "one").replace("replicas: 2", "replicas: three"));
    let place = format!("{}:7:", rig.path("specs/a.yaml").display());
    rig.until("the mistake is shown", || rig.keel(&["get", "deploy"]).err.contains(&place));
    assert_eq!(rig.instances(|one| one["runtime_id"].clone()), ids);
    rig.write("specs/a.yaml", &spec("a", 1, "one"));
    rig.until_running("a", 1);
    let log = controller.end("TERM").expect_code(0).err;
    assert!(log.contains(&place), "{log}");
    assert!(log.contains("no problems any more"), "{log}");
}

#[test]
fn the_loss_of_most_deployments_is_held_until_it_is_approved() {
    let rig = Rig::new("sim");
    for name in ["a", "b", "c", "d", "e"] {
        rig.write(&format!("specs/{name}.yaml"), &spec(name, 1, "hi"));
    }
    let _controller = rig.controller();
    rig.until("all run", || {
        rig.instances(|one| one["phase"] == "running").iter().filter(|running| **running).count() == 5
    });
    std::fs::rename(rig.path("specs"), rig.path("away")).unwrap();
    std::fs::create_dir(rig.path("specs")).unwrap();
    rig.until("pruning is held", || rig.keel(&["get", "deploy"]).err.contains("keel approve"));
    assert_eq!(rig.get("instances").len(), 5);
    let approved = rig.keel(&["approve"]).expect_code(0).out;
    assert_eq!(approved.lines().count(), 5, "{approved}");
    rig.until("all are gone", || rig.get("instances").is_empty());
    assert_eq!(rig.keel(&["approve"]).expect_code(0).err, "nothing is held; there is nothing to approve\n");
}

#[test]
fn applied_deployments_live_beside_the_watched_ones() {
    let rig = Rig::new("sim");
    rig.write("specs/a.yaml", &spec("a", 1, "hi"));
    rig.write("b.yaml", &spec("b", 2, "hi"));
    let _controller = rig.controller();
    rig.until_running("a", 1);
    assert_eq!(rig.keel(&["apply", "-f", "b.yaml"]).expect_code(0).out, "deployment/b created\n");
    assert_eq!(rig.keel(&["diff", "-f", "b.yaml"]).expect_code(0).out, "");
    rig.write("b.yaml", &spec("b", 3, "hi"));
    let diff = rig.keel(&["diff", "-f", "b.yaml"]).expect_code(1).out;
    assert!(diff.contains("services.web.scale.replicas: 2 -> 3\n"), "{diff}");
    let done = rig.keel(&["delete", "a"]).expect_code(1);
    assert!(done.err.contains("specs/a.yaml:1"), "{}", done.err);
    assert_eq!(rig.keel(&["delete", "b"]).expect_code(0).out, "deployment/b deleted\n");
    let names = |rig: &Rig| rig.keel(&["get", "deploy", "-o", "name"]).out;
    assert_eq!(names(&rig), "deployment/a\n");
}

#[test]
fn a_rolling_update_is_told_to_its_end_before_it_begins() {
    let rig = Rig::new("sim");
    rig.write("a.yaml", &spec("a", 3, "one"));
    let _controller = rig.controller();
    rig.keel(&["apply", "-f", "a.yaml"]).expect_code(0);
    rig.write("a.yaml", &spec("a", 3, "two"));
    let told = |verb: &str| -> Vec<String> {
        let out = rig.keel(&[verb, "-f", "a.yaml"]).expect_code(1).out;
        let steps = out.lines().skip_while(|line| *line != "  steps:").skip(1);
        steps.map(|line| line.split(" (").next().unwrap().trim().to_owned()).collect()
    };
    let expected = [
        "1. create and start a/web/0",
        "wait for a/web/0",
        "2. stop and remove a/web/0",
        "3. create and start a/web/1",
        "wait for a/web/1",
        "4. stop and remove a/web/1",
        "5. create and start a/web/2",
        "wait for a/web/2",
        "6. stop and remove a/web/2",
    ];
    assert_eq!(told("diff"), expected);
    assert_eq!(told("plan"), expected);
    for verb in ["diff", "plan"] {
        let json = rig.keel(&[verb, "-f", "a.yaml", "-o", "json"]).expect_code(1).json();
        assert_eq!(json[0]["steps"].as_array().unwrap().len(), 3 * 5, "{json}");
        assert_eq!(json[0]["forecast"]["stages"].as_array().unwrap().len(), 9, "{json}");
        assert_eq!(json[0]["forecast"]["end"]["end"], "rest", "{json}");
    }
    rig.keel(&["apply", "-f", "a.yaml"]).expect_code(0);
    assert_eq!(rig.keel(&["diff", "-f", "a.yaml"]).expect_code(0).out, "");
    assert_eq!(rig.keel(&["plan", "-f", "a.yaml"]).expect_code(0).out, "deployment/a unchanged: nothing to do\n");
}

#[test]
fn objects_are_printed_in_every_format() {
    let rig = Rig::new("sim");
    rig.write("specs/a.yaml", &spec("a", 2, "hi"));
    let _controller = rig.controller();
    rig.until_running("a", 2);
    assert_eq!(rig.keel(&["get", "inst", "-o", "name"]).out, "instance/a/web/0\ninstance/a/web/1\n");
    assert_eq!(rig.keel(&["get", "inst/a/web/1", "-o", "name"]).out, "instance/a/web/1\n");
    let table = rig.keel(&["get", "svc"]).expect_code(0).out;
    assert_eq!(
        table,
        "NAME    DESIRED   RUNNING   READY   UP-TO-DATE   RUNTIME   MESSAGE\n\
         a/web   2         2         2       2            sim       UnsupportedField: endpoints: nothing listens on \
         their ports yet\n"
    );
    assert_eq!(rig.keel(&["get", "svc", "--no-headers"]).out.lines().count(), 1);
    let yaml = rig.keel(&["get", "deploy", "-o", "yaml"]).expect_code(0).out;
    assert!(yaml.contains("deployment: a\n") && yaml.contains("state: running\n"), "{yaml}");
    for (what, fields) in [
        ("deployments", &["deployment", "source", "state", "message", "conditions"][..]),
        ("services", &["deployment", "service", "desired", "running", "ready", "updated", "revision", "conditions"]),
        (
            "instances",
            &[
                "deployment",
                "service",
                "slot",
                "name",
                "runtime",
                "runtime_id",
                "pid",
                "phase",
                "ready",
                "revision",
                "restarts",
                "started_at",
                "exit",
            ],
        ),
    ] {
        for object in rig.get(what) {
            for field in fields {
                assert!(object.get(field).is_some(), "{what} have no {field}: {object}");
            }
        }
    }
}

#[test]
fn watching_prints_changes_as_they_come() {
    let rig = Rig::new("sim");
    rig.write("specs/a.yaml", &spec("a", 1, "hi"));
    let _controller = rig.controller();
    rig.until_running("a", 1);
    let mut watch = rig
        .command(&["get", "svc", "-w", "--no-headers"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    rig.write("specs/a.yaml", &spec("a", 2, "hi"));
    let mut out = watch.stdout.take().unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 256];
    while !seen.lines().any(|line| line.split_whitespace().take(6).eq(["a/web", "2", "2", "2", "2", "sim"])) {
        let read = out.read(&mut buffer).unwrap();
        assert!(read > 0, "the watch ended: {seen}");
        seen.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    assert!(seen.starts_with("a/web   1"), "{seen}");
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn a_watch_prints_no_row_twice() {
    let rig = Rig::new("sim");
    rig.write("specs/a.yaml", &spec("a", 3, "one"));
    let controller = rig.controller();
    rig.until_running("a", 3);
    let old = rig.instances(|one| one["revision"].clone())[0].clone();
    let mut watch = rig
        .command(&["get", "inst", "-w", "--no-headers"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (sender, rows) = std::sync::mpsc::channel();
    let printed = BufReader::new(watch.stdout.take().unwrap());
    std::thread::spawn(move || printed.lines().map_while(Result::ok).try_for_each(|row| sender.send(row)));
    let next = || rows.recv_timeout(Duration::from_secs(60)).expect("another row");
    let mut out: Vec<String> = (0..3).map(|_| next()).collect();
    rig.write("specs/a.yaml", &spec("a", 3, "two"));
    rig.until("every instance is replaced", || {
        let now = rig.instances(|one| one["revision"].clone());
        now.len() == 3 && now.iter().all(|revision| *revision != old)
    });
    while out.iter().filter(|row| row.contains(" removed ")).count() < 3 {
        out.push(next());
    }
    watch.kill().unwrap();
    watch.wait().unwrap();
    out.extend(rows.iter());
    controller.end("TERM").expect_code(0);
    let out = out.join("\n");
    let mut last: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for line in out.lines() {
        let mut row: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let _age = row.remove(4);
        let instance = (row[0].clone(), row[4].clone());
        assert_ne!(last.insert(instance, row.clone()), Some(row), "twice in:\n{out}");
    }
    assert_eq!(last.len(), 6, "three instances of two revisions:\n{out}");
    assert_eq!(last.values().filter(|row| row[2] == "removed").count(), 3, "{out}");
}

#[test]
fn logs_of_more_instances_than_can_be_read_at_once_are_refused() {
    let rig = Rig::new("sim");
    rig.write("specs/demo.yaml", &spec("demo", 101, "one"));
    let _controller = rig.controller();
    rig.until_running("demo", 101);
    let done = rig.keel(&["logs", "demo"]).expect_code(1);
    assert_eq!(
        done.err,
        "error: demo covers 101 instances and at most 100 are read at a time; name a service or a slot, as in \
         DEPLOYMENT/SERVICE/SLOT\n"
    );
    rig.keel(&["logs", "demo/web/100"]).expect_code(0);
}
