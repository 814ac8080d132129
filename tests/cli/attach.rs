//! `keel attach`: input and output of programs that run already.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::engine::{self, Kind};
use crate::rig::{Done, Rig, is_alive, signal};
use crate::sandbox::on_terminal;

/// A service whose program answers each line, until it reads `end`.
fn spec(image: &str, more: &str) -> String {
    let script = "echo up; while read -r line; do [ \"$line\" = end ] && exit 7; echo \"heard $line\"; done; exit 9";
    format!(
        "version: v1\ndeployment: talk\nservices:\n  web:\n    image: {image}\n    \
         command: {{ entrypoint: [sh, -c, {}] }}\n    restart_policy: {{ kind: 'no' }}\n    \
         init_container: false\n    stop_grace_period: 0s\n{more}",
        serde_json::Value::from(script)
    )
}

const HOST: &str = "{ name: host }";
const BUSYBOX: &str = "{ name: 'keel-test/busybox:1', pull_policy: never }";
const OPEN: &str = "    stdin_open: true\n";
const TERMINAL: &str = "    stdin_open: true\n    tty: true\n";

/// A rig on which the service runs.
fn started(rig: Rig, spec: &str) -> Rig {
    rig.write("talk.yaml", spec);
    rig.keel(&["apply", "-f", "talk.yaml"]).expect_code(0);
    rig.until("the program is up", || rig.keel(&["logs", "talk/web"]).out.contains("up"));
    rig
}

/// An attached keel, and lines of its output.
struct Attached {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Attached {
    fn new(rig: &Rig, arguments: &[&str]) -> Self {
        let mut command = rig.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn say(&mut self, text: &str) {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    fn end(mut self) -> Done {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        let done = self.child.wait_with_output().unwrap();
        Done { out: rest, ..done.into() }
    }
}

/// Someone types, leaves, and another one goes on; the end of input leaves the program's open.
fn conversation(rig: &Rig) {
    let mut first = Attached::new(rig, &["attach", "-i", "talk/web"]);
    first.say("one\n");
    assert_eq!(first.line(), "heard one\n");
    signal(first.child.id(), "INT");
    assert_eq!(first.end().code, 130);
    let mut second = Attached::new(rig, &["attach", "-i", "talk/web/0"]);
    second.say("two\n");
    assert_eq!(second.line(), "heard two\n", "only what is written from now on");
    drop(second.child.stdin.take());
    signal(second.child.id(), "TERM");
    second.end().expect_code(143);
    let mut fourth = Attached::new(rig, &["attach", "-i", "talk/web"]);
    let mut third = Attached::new(rig, &["attach", "talk/web"]);
    let sees = std::thread::spawn(move || (third.line(), third));
    // Until the one who only looks is attached as well.
    while !sees.is_finished() {
        fourth.say("three\n");
        assert_eq!(fourth.line(), "heard three\n");
        std::thread::sleep(Duration::from_millis(20));
    }
    let (line, third) = sees.join().unwrap();
    assert_eq!(line, "heard three\n");
    fourth.say("end\n");
    assert_eq!((fourth.end().code, third.end().code), (7, 7), "the program's own code");
}

#[test]
fn programs_with_open_input_are_talked_to_on_the_sandbox_runtime() {
    let rig = started(Rig::new("sandbox"), &spec(HOST, OPEN));
    conversation(&rig);
}

#[test]
fn programs_with_open_input_are_talked_to_on_docker() {
    let Some(socket) = engine::socket(Kind::Docker) else { return };
    let rig = started(Rig::on_engine(&socket), &spec(BUSYBOX, OPEN));
    conversation(&rig);
}

#[test]
fn one_at_a_time_writes_through_a_controller_too() {
    let rig = Rig::new("sandbox");
    let _controller = rig.controller();
    let rig = started(rig, &spec(HOST, OPEN));
    let mut writer = Attached::new(&rig, &["attach", "-i", "talk/web"]);
    writer.say("one\n");
    assert_eq!(writer.line(), "heard one\n");
    let refused = rig.keel(&["attach", "-i", "talk/web"]).expect_code(125);
    assert!(refused.err.contains("somebody else is attached to its input"), "{}", refused.err);
    drop(writer.child.stdin.take());
    signal(writer.child.id(), "KILL");
    writer.end();
    // The controller notices a moment later that the killed one has left.
    rig.until("the next one may write", || {
        let mut next = Attached::new(&rig, &["attach", "-i", "talk/web"]);
        // One that is refused reads no more.
        let _ = next.child.stdin.as_mut().unwrap().write_all(b"end\n");
        let done = next.end();
        assert!(done.code == 7 || done.err.contains("somebody else is attached"), "{done:?}");
        done.code == 7
    });
}

/// A rig on which a script runs in the directory of the specs, whose files it waits for.
fn without_input(script: &str) -> Rig {
    let rig = Rig::new("sandbox");
    let folder = rig.path("specs");
    let text = format!(
        "version: v1\ndeployment: talk\nservices:\n  web:\n    image: {HOST}\n    restart_policy: {{ kind: 'no' }}\n    \
         command: {{ entrypoint: [sh, -c, {}], workdir: {} }}\n    stop_grace_period: 0s\n",
        serde_json::Value::from(script),
        serde_json::Value::from(folder.display().to_string())
    );
    let text = format!("{text}    storage: [{{ type: bind, source: {0}, target: {0} }}]\n", folder.display());
    started(rig, &text)
}

#[test]
fn a_program_without_input_is_watched_and_not_written_to() {
    let script = "echo up; until [ -e go ]; do echo tick; sleep 0.05; done; echo more; echo oops >&2; exit 3";
    let rig = without_input(script);
    let refused = rig.keel(&["attach", "-i", "talk/web"]).expect_code(125);
    assert!(refused.err.contains("has no standard input; write stdin_open: true"), "{}", refused.err);
    let mut watcher = Attached::new(&rig, &["attach", "talk/web"]);
    assert_eq!(watcher.line(), "tick\n", "from now on only");
    rig.write("specs/go", "");
    let done = watcher.end();
    assert_eq!((done.code, done.out.trim_start_matches("tick\n"), done.err.as_str()), (3, "more\n", "oops\n"));
    rig.keel(&["attach", "talk/web"]).expect_code(125);
    rig.keel(&["attach", "talk/ghost"]).expect_code(125);
}

/// Writes two mebibytes without a line break once it may, and ends when it may.
const LONG_LINE: &str = "echo up; until [ -e go ]; do echo tick; sleep 0.05; done; \
                         dd if=/dev/zero bs=65536 count=32 2>/dev/null | tr '\\0' x; \
                         until [ -e end ]; do sleep 0.05; done; echo; exit 3";
const LONG: usize = 2 << 20;

#[test]
fn a_line_longer_than_a_frame_is_shown_before_it_ends() {
    let rig = without_input(LONG_LINE);
    let mut watcher = Attached::new(&rig, &["attach", "talk/web"]);
    assert_eq!(watcher.line(), "tick\n");
    rig.write("specs/go", "");
    // What is kept comes in fragments of 16 KiB, the last of which ends with the line.
    let mut seen = vec![0; LONG - (16 << 10)];
    watcher.lines.read_exact(&mut seen).unwrap();
    rig.write("specs/end", "");
    let done = watcher.end();
    let seen = String::from_utf8(seen).unwrap() + &done.out;
    assert_eq!((done.code, done.err.as_str()), (3, ""));
    let line = seen.trim_start_matches("tick\n");
    assert!(line == "x".repeat(LONG) + "\n", "{} bytes", line.len());
}

#[test]
fn a_signal_ends_it_although_nobody_reads_what_it_shows() {
    let rig = without_input(LONG_LINE);
    let mut watcher = Attached::new(&rig, &["attach", "talk/web"]);
    assert_eq!(watcher.line(), "tick\n");
    rig.write("specs/go", "");
    let mut waiting = 0;
    rig.until("the pipe is full", || {
        let before = std::mem::replace(&mut waiting, rustix::io::ioctl_fionread(watcher.lines.get_ref()).unwrap());
        waiting > 32 << 10 && waiting == before
    });
    signal(watcher.child.id(), "TERM");
    rig.until("it ended", || watcher.child.try_wait().unwrap().is_some());
    assert_eq!(watcher.child.wait().unwrap().code(), Some(143));
}

#[test]
fn one_who_does_not_read_does_not_hold_the_program_up() {
    let script = "read -r line; dd if=/dev/zero bs=65536 count=400 2>/dev/null | tr '\\0' x; exit 5";
    let rig = Rig::new("sandbox");
    let text = format!(
        "version: v1\ndeployment: talk\nservices:\n  web:\n    image: {HOST}\n    restart_policy: {{ kind: 'no' }}\n    \
         command: {{ entrypoint: [sh, -c, {}] }}\n    stop_grace_period: 0s\n{OPEN}",
        serde_json::Value::from(script)
    );
    rig.write("talk.yaml", &text);
    rig.keel(&["apply", "-f", "talk.yaml"]).expect_code(0);
    let mut idle = Attached::new(&rig, &["attach", "-i", "talk/web"]);
    idle.say("go\n");
    rig.until("the program ended", || rig.instances(|one| one["exit"]["code"] == 5) == [true]);
    let done = idle.end();
    assert_eq!(done.code, 5);
    assert!(done.err.contains("bytes of output were left out"), "{} bytes, {}", done.out.len(), done.err);
}

/// Deleted while somebody is attached: the program's own code is told each time.
fn deletions(rig: Rig, image: &str) {
    let script = "trap 'exit 143' TERM; echo up; while :; do echo tick; sleep 0.05; done";
    let text = format!(
        "version: v1\ndeployment: talk\nservices:\n  web:\n    image: {image}\n    restart_policy: {{ kind: 'no' }}\n    \
         command: {{ entrypoint: [sh, -c, {}] }}\n    init_container: false\n",
        serde_json::Value::from(script)
    );
    let mut rig = rig;
    for _ in 0..DELETIONS {
        rig = started(rig, &text);
        let mut watcher = Attached::new(&rig, &["attach", "talk/web"]);
        assert_eq!(watcher.line(), "tick\n");
        rig.keel(&["delete", "talk"]).expect_code(0);
        watcher.end().expect_code(143);
    }
}

/// Times that a deletion races with what reads the exit code.
const DELETIONS: usize = 5;

#[test]
fn the_code_of_a_deleted_program_is_told_on_the_sandbox_runtime() {
    deletions(Rig::new("sandbox"), HOST);
}

#[test]
fn the_code_of_a_deleted_program_is_told_on_docker() {
    let Some(socket) = engine::socket(Kind::Docker) else { return };
    deletions(Rig::on_engine(&socket), BUSYBOX);
}

/// The program's terminal is the one that is attached, with its size and every key; the keys of Docker detach.
fn terminal(rig: &Rig, size: &str) {
    let pid = rig.instances(|one| one["pid"].as_u64().unwrap())[0];
    let mut child = on_terminal(
        rig,
        "stty rows 31 cols 97; stty -g >before; $KEEL attach -i talk/web; \
                                      code=$?; stty -g >after; exit $code",
    );
    let mut keys = child.stdin.take().unwrap();
    let mut shown = BufReader::new(child.stdout.take().unwrap());
    let mut seen = String::new();
    while !seen.contains("detaches") {
        assert_ne!(shown.read_line(&mut seen).unwrap(), 0, "{seen}");
    }
    // Not as a line of its own: a program at a terminal gets a line when return is typed.
    keys.write_all(b"size\r").unwrap();
    while !seen.contains(size) {
        assert_ne!(shown.read_line(&mut seen).unwrap(), 0, "{seen}");
    }
    keys.write_all(b"\x10\x11").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{seen}");
    let read = |name: &str| std::fs::read_to_string(rig.path(name)).unwrap();
    assert_eq!(read("after"), read("before"));
    shown.read_to_string(&mut seen).unwrap();
    assert!(seen.contains("detached; talk/web/0 goes on"), "{seen}");
    assert!(is_alive(u32::try_from(pid).unwrap()));
}

fn terminal_spec(image: &str) -> String {
    let script = "tty; echo up $TERM; while read -r line; do stty size; done";
    spec(image, TERMINAL).replace(
        &spec(image, "").lines().find(|line| line.contains("entrypoint")).unwrap().to_owned(),
        &format!("    command: {{ entrypoint: [sh, -c, {}] }}", serde_json::Value::from(script)),
    )
}

#[test]
fn a_program_gets_a_terminal_on_the_sandbox_runtime() {
    let rig = started(Rig::new("sandbox"), &terminal_spec(HOST));
    let logs = rig.keel(&["logs", "talk/web"]).out;
    assert!(logs.contains("/dev/pts/0") && logs.contains("up xterm"), "{logs}");
    let conditions = rig.get("instances")[0]["conditions"].to_string();
    assert!(!conditions.contains("UnsupportedField"), "{conditions}");
    terminal(&rig, "31 97");
}

#[test]
fn a_program_gets_a_terminal_on_docker() {
    let Some(socket) = engine::socket(Kind::Docker) else { return };
    let rig = started(Rig::on_engine(&socket), &terminal_spec(BUSYBOX));
    terminal(&rig, "31 97");
}
