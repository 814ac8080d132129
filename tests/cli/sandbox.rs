//! Real processes: the demo's server in sandboxes, from its start to its removal.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::rig::{Rig, is_alive, signal, spec};

fn pids(rig: &Rig) -> Vec<u32> {
    rig.instances(|one| u32::try_from(one["pid"].as_u64().unwrap_or_default()).unwrap())
}

fn port(instance: &Value) -> u16 {
    u16::try_from(instance["ports"][0]["host_port"].as_u64().unwrap_or_default()).unwrap()
}

/// What an instance answers to `GET`; empty where nobody listens (yet).
fn ask(port: u16, path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
    let request = format!("GET {path} HTTP/1.1\r\nhost: demo\r\nconnection: close\r\n\r\n");
    let mut answer = String::new();
    if stream.write_all(request.as_bytes()).is_err() || stream.read_to_string(&mut answer).is_err() {
        return String::new();
    }
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
}

/// Waits until the instance in this place answers, and returns what it says.
fn greeting(rig: &Rig, place: usize) -> String {
    let mut said = String::new();
    rig.until("the instance answers", || {
        said = rig.get("instances").get(place).map(|one| ask(port(one), "/")).unwrap_or_default();
        !said.is_empty()
    });
    said
}

#[test]
fn replicas_serve_and_follow_their_file() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &spec("demo", 2, "one"));
    let _controller = rig.controller();
    rig.until_running("demo", 2);
    assert!(greeting(&rig, 1).starts_with("one from web-1, pid "), "{}", greeting(&rig, 1));
    let first = pids(&rig);
    rig.write("specs/demo.yaml", &spec("demo", 3, "one"));
    rig.until_running("demo", 3);
    assert_eq!(pids(&rig)[..2], first, "scaling up replaces nothing");
    rig.write("specs/demo.yaml", &spec("demo", 1, "one"));
    rig.until_running("demo", 1);
    assert_eq!(pids(&rig)[..1], first[..1], "scaling down replaces nothing");
    rig.until("the surplus process has ended", || !is_alive(first[1]));
    rig.write("specs/demo.yaml", &spec("demo", 1, "two"));
    rig.until("the new revision serves", || greeting(&rig, 0).starts_with("two "));
    rig.until("the old process has ended", || !is_alive(first[0]));
    rig.remove("specs/demo.yaml");
    rig.until("everything is gone", || rig.get("deployments").is_empty() && rig.get("instances").is_empty());
}

#[test]
fn a_broken_file_leaves_the_processes_alone() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &spec("demo", 2, "one"));
    let _controller = rig.controller();
    rig.until_running("demo", 2);
    let before = pids(&rig);
    rig.write("specs/demo.yaml", "deployment: demo\nservices: [");
    rig.until("the mistake is shown", || rig.keel(&["get", "deploy"]).err.contains("specs/demo.yaml:"));
    assert_eq!(pids(&rig), before);
    rig.write("specs/demo.yaml", &spec("demo", 2, "one"));
    rig.until("the mistake is gone", || rig.keel(&["get", "deploy"]).err.is_empty());
    assert_eq!(pids(&rig), before);
}

#[test]
fn a_killed_instance_is_replaced() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &spec("demo", 2, "one"));
    let _controller = rig.controller();
    rig.until_running("demo", 2);
    let before = pids(&rig);
    signal(before[0], "KILL");
    rig.until("another process took the slot", || {
        let now = pids(&rig);
        now.len() == 2 && now[0] != before[0] && now[0] != 0
    });
    rig.until_running("demo", 2);
    assert_eq!(pids(&rig)[1], before[1], "the other replica is left alone");
    assert_eq!(rig.instances(|one| one["restarts"].clone()), [1, 0]);
}

#[test]
fn instances_outlive_a_killed_controller_and_are_adopted_by_the_next() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &spec("demo", 3, "one"));
    let controller = rig.controller();
    rig.until_running("demo", 3);
    let before = pids(&rig);
    controller.end("KILL");
    assert!(before.iter().all(|pid| is_alive(*pid)), "the processes go on without a controller");
    assert_eq!(pids(&rig), before, "they are seen without a controller");
    let controller = rig.controller();
    rig.until_running("demo", 3);
    assert_eq!(pids(&rig), before, "they are adopted");
    controller.end("TERM").expect_code(0);
    assert!(before.iter().all(|pid| is_alive(*pid)), "SIGTERM leaves them running");
    rig.write("specs/demo.yaml", &spec("demo", 2, "one"));
    let _controller = rig.controller();
    rig.until_running("demo", 2);
    assert_eq!(pids(&rig), before[..2], "what changed meanwhile is caught up with");
}

#[test]
fn output_and_commands_are_there_with_and_without_a_controller() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &spec("demo", 2, "one"));
    let controller = rig.controller();
    rig.until_running("demo", 2);
    greeting(&rig, 0);
    greeting(&rig, 1);
    let look = || {
        let logs = rig.keel(&["logs", "demo/web/1", "--tail", "1"]).expect_code(0).out;
        assert_eq!(logs, "web-1 greets\n");
        let both = rig.keel(&["logs", "demo/web"]).expect_code(0).out;
        assert!(both.contains("demo/web/0 | web-0 greets\n"), "{both}");
        assert!(both.contains("demo/web/1 | web-1 greets\n"), "{both}");
        let done = rig.keel(&["exec", "demo/web/1", "--", "sh", "-c", "echo $HOSTNAME; echo oops >&2; exit 7"]);
        assert_eq!((done.out.as_str(), done.err.as_str()), ("web-1\n", "oops\n"));
        done.expect_code(7);
        for (words, code) in [
            (&["no-such-program"][..], 127),
            (&["/etc/passwd"], 126),
            (&["sh", "-c", "exit 127"], 127),
            (&["sh", "-c", "exit 125"], 125),
        ] {
            let done = rig.keel(&[&["exec", "demo/web/1", "--"], words].concat()).expect_code(code);
            assert_eq!(done.err.contains("error: "), words.len() == 1, "{}", done.err);
        }
        rig.keel(&["exec", "demo/ghost", "--", "true"]).expect_code(125);
        for nowhere in ["/no/such", "/tmp/no/such"] {
            let done = rig.keel(&["exec", "demo/web/1", "-w", nowhere, "--", "true"]).expect_code(125);
            let why = "can't be entered: No such file or directory (os error 2)";
            assert_eq!(done.err, format!("error: the working directory {nowhere} {why}\n"));
        }
        rig.keel(&["logs", "demo/ghost"]).expect_code(1);
    };
    look();
    controller.end("TERM").expect_code(0);
    look();
}

#[test]
fn a_program_inside_does_not_see_the_controller_though_the_directory_around_is_opened_up() {
    let rig = Rig::new("sandbox");
    let writable = format!("    sandbox: {{ writable: ['{}'] }}\n", rig.path("").display());
    rig.write("specs/demo.yaml", &(spec("demo", 1, "inside") + &writable));
    rig.write("more.yaml", &spec("more", 1, "from inside"));
    let _controller = rig.controller();
    rig.until_running("demo", 1);
    let (keel, state) = (env!("CARGO_BIN_EXE_keel"), rig.path("state"));
    let inside = ["exec", "demo/web", "--", keel, "--state-dir", state.to_str().unwrap()];
    let more = rig.path("more.yaml");
    for verb in [&["get", "deployments"][..], &["apply", "-f", more.to_str().unwrap()], &["delete", "demo"]] {
        let done = rig.keel(&[&inside, verb].concat());
        assert!(done.out.is_empty(), "{verb:?}: {done:?}");
    }
    assert_eq!((rig.get("deployments").len(), rig.state("demo").as_str()), (1, "running"));
}

#[test]
fn a_program_inside_that_reaches_the_controller_all_the_same_does_not_direct_it() {
    let rig = Rig::new("sandbox");
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root's instances can be privileged");
        return;
    }
    let opened = format!("    privileged: true\n    sandbox: {{ writable: ['{}'] }}\n", rig.path("").display());
    rig.write("specs/demo.yaml", &(spec("demo", 1, "inside") + &opened));
    rig.write("more.yaml", &spec("more", 1, "from inside"));
    let _controller = rig.controller();
    rig.until_running("demo", 1);
    let (state, more) = (rig.path("state"), rig.path("more.yaml"));
    let uncovered = format!("umount {} && exec \"$@\"", state.display());
    let keel = ["sh", env!("CARGO_BIN_EXE_keel"), "--state-dir", state.to_str().unwrap()];
    for (uncovering, verb) in [
        (uncovered.as_str(), &["get", "deployments"][..]),
        ("exec \"$@\"", &["apply", "-f", more.to_str().unwrap()]),
        ("exec \"$@\"", &["delete", "demo"]),
    ] {
        let done = rig.keel(&[&["exec", "demo/web", "--", "sh", "-c", uncovering][..], &keel, verb].concat());
        assert!(done.expect_code(1).err.contains("this runs inside of a sandbox"), "{verb:?}");
    }
    assert_eq!(rig.get("deployments").len(), 1);
}

#[test]
fn exec_passes_standard_input_on() {
    let rig = Rig::new("sandbox");
    rig.write("demo.yaml", &spec("demo", 1, "one"));
    rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
    let mut child = rig
        .command(&["exec", "-i", "demo/web", "--", "cat"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let sent = "line\n".repeat(50_000);
    let mut input = child.stdin.take().unwrap();
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || input.write_all(sent.as_bytes()).unwrap()
    });
    let done: crate::rig::Done = child.wait_with_output().unwrap().into();
    writer.join().unwrap();
    assert_eq!(done.code, 0);
    assert_eq!(done.out.len(), sent.len());
    assert!(done.out == sent, "what came back differs from what was sent");
}

/// Runs shell commands on a terminal of their own; `$KEEL` is the program.
pub fn on_terminal(rig: &Rig, commands: &str) -> std::process::Child {
    use std::process::{Command, Stdio};
    let mut command = Command::new("script");
    command.args(["-qefc", commands, "/dev/null"]).current_dir(rig.path(".")).env_clear();
    command.envs(rig.command(&[]).get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("SHELL", "/bin/sh").env("KEEL", env!("CARGO_BIN_EXE_keel"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn exec_gives_the_terminal_its_mode_back() {
    use std::io::{BufRead, BufReader, Write};
    let rig = Rig::new("sandbox");
    rig.write("demo.yaml", &spec("demo", 1, "one"));
    rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
    for (end, command, code) in [
        ("types", "stty size; read answer; test $answer = yes; exit 7", 7),
        ("TERM", "stty size; sleep 300", 143),
        ("HUP", "stty size; sleep 300", 129),
    ] {
        let mut child = on_terminal(
            &rig,
            &format!(
                "stty rows 31 cols 97; stty -g >before; \
                 sh -c 'echo $$ >pid; exec $KEEL exec -it demo/web -- sh -c \"{}\"'; \
                 code=$?; stty -g >after; exit $code",
                command.replace('$', "\\$")
            ),
        );
        let mut keys = child.stdin.take().unwrap();
        let mut shown = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut shown).unwrap();
        assert_eq!(shown.trim_end(), "31 97", "the command has a terminal of the same size");
        let read = |name: &str| std::fs::read_to_string(rig.path(name)).unwrap();
        match end {
            "types" => keys.write_all(b"yes\r").unwrap(),
            signal => crate::rig::signal(read("pid").trim().parse().unwrap(), signal),
        }
        assert_eq!(child.wait().unwrap().code(), Some(code), "{end}");
        assert_eq!(read("after"), read("before"), "{end}");
    }
}

#[test]
fn apply_and_delete_do_their_work_without_a_controller() {
    let rig = Rig::new("sandbox");
    rig.write("demo.yaml", &spec("demo", 2, "one"));
    assert_eq!(rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0).out, "deployment/demo created\n");
    let before = pids(&rig);
    assert!(before.len() == 2 && before.iter().all(|pid| is_alive(*pid)), "{before:?}");
    assert_eq!(rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0).out, "deployment/demo unchanged\n");
    assert_eq!(pids(&rig), before);
    rig.keel(&["diff", "-f", "demo.yaml"]).expect_code(0);
    rig.write("demo.yaml", &spec("demo", 2, "two"));
    let diff = rig.keel(&["diff", "-f", "demo.yaml"]).expect_code(1).out;
    assert!(diff.contains("services.web.env.GREETING: one -> two\n"), "{diff}");
    assert!(diff.contains("services.web.env.API_TOKEN: *** -> *** (changed)\n"), "{diff}");
    assert_eq!(rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0).out, "deployment/demo configured\n");
    assert!(greeting(&rig, 0).starts_with("two "));
    assert_eq!(rig.keel(&["delete", "demo"]).expect_code(0).out, "deployment/demo deleted\n");
    assert!(pids(&rig).is_empty());
    rig.until("the processes have ended", || before.iter().all(|pid| !is_alive(*pid)));
}

#[test]
fn apply_tells_why_a_service_does_not_come_up() {
    let rig = Rig::new("sandbox");
    let crashing = "version: v1\ndeployment: bad\nservices:\n  web:\n    image: { name: host }\n    \
                    command: { entrypoint: [sh, -c, 'echo cannot find the database; exit 3'] }\n    \
                    stop_grace_period: 1s\n";
    rig.write("bad.yaml", crashing);
    let done = rig.keel(&["apply", "-f", "bad.yaml", "--timeout", "50s"]).expect_code(1);
    assert!(done.err.contains("error: deployment/bad failed: bad/web/0 crashed 3 times in a row"), "{}", done.err);
    assert!(done.err.contains("\n  cannot find the database\n"), "{}", done.err);
    rig.write("bad.yaml", &crashing.replace("echo cannot find the database; exit 3", "sleep 1; exit 1"));
    let done = rig.keel(&["apply", "-f", "bad.yaml", "--timeout", "100ms"]).expect_code(124);
    // What is told depends on how far it came in that time.
    assert!(done.err.contains("not done after 100ms: "), "{}", done.err);
}

#[test]
fn the_last_run_and_the_one_before_it_are_there_at_any_time_of_a_crash_loop() {
    let rig = Rig::new("sandbox");
    // The delay leaves time to look between two runs.
    rig.write(
        "specs/loop.yaml",
        "version: v1\ndeployment: loop\nservices:\n  web:\n    image: { name: host }\n    \
         command: { entrypoint: [sh, -c, 'cat /proc/sys/kernel/random/uuid; exit 3'] }\n    \
         restart_policy: { kind: always, delay: 5s }\n    stop_grace_period: 1s\n",
    );
    let _controller = rig.controller();
    let logs = |flags: &[&str]| rig.keel(&[&["logs", "loop/web/0"], flags].concat()).expect_code(0).out;
    let ended = |restarts: u64| {
        let shown = rig.get("instances");
        shown.first().is_some_and(|one| one["phase"] == "exited" && one["restarts"].as_u64() == Some(restarts))
    };
    rig.until("it crashed for the second time", || ended(1));
    let (before, second) = (logs(&["--previous"]), logs(&[]));
    assert_eq!([before.lines().count(), second.lines().count()], [1, 1], "one line each: {before}{second}");
    assert_ne!(before, second);
    rig.until("it crashed for the third time", || {
        let previous = logs(&["--previous"]);
        assert!(previous == before || previous == second, "{previous}");
        ended(2)
    });
    assert_eq!(logs(&["--previous"]), second);
    assert!(![before, second].contains(&logs(&[])), "a third run wrote something of its own");
}

#[test]
fn what_can_not_be_executed_is_told_the_same_each_time_and_never_as_running() {
    let rig = Rig::new("sandbox");
    for number in 0..6 {
        rig.write(
            "a.yaml",
            &format!(
                "version: v1\ndeployment: broken-{number}\nservices:\n  web:\n    image: {{ name: host }}\n    \
                 command: {{ entrypoint: [/etc/passwd] }}\n    restart_policy: {{ kind: 'no' }}\n"
            ),
        );
        let told = rig.keel(&["apply", "-f", "a.yaml", "--timeout", "30s"]).expect_code(1).err;
        let error = told.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
        let end = "down: could not run: /etc/passwd is not an executable file, and restart_policy starts no other";
        assert!(error.starts_with(&format!("error: deployment/broken-{number} failed: keep ")), "{told}");
        assert!(error.ends_with(end), "{told}");
        assert!(!told.contains("1/1 ready"), "{told}");
    }
}
