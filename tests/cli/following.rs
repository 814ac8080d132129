//! `keel logs -f` while instances are rolled, scaled, killed and removed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::engine::{self, Kind};
use crate::rig::{Rig, signal};

/// Longest wait for a line; machines that run tests are busy, and Podman 4 was seen to answer nobody for a minute when a
/// container is removed while it is followed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Replicas that count, each line with a greeting and what tells the lives of instances apart, and say when they are
/// asked to end.
fn counting(deployment: &str, image: &str, replicas: u32, greeting: &str) -> String {
    let script = "id=$(cat /proc/sys/kernel/random/uuid); i=0; trap 'echo $GREETING $id end; exit 0' TERM; \
                  while :; do echo $GREETING $id $i; i=$((i+1)); sleep 0.2; done";
    let script = serde_json::Value::from(script);
    format!(
        "version: v1\ndeployment: {deployment}\nservices:\n  web:\n    image: {{ name: '{image}', pull_policy: never }}\n    \
         command: {{ entrypoint: [sh, -c, {script}] }}\n    env: {{ GREETING: {greeting} }}\n    \
         scale: {{ mode: fixed, replicas: {replicas} }}\n    stop_grace_period: 10s\n    init_container: false\n"
    )
}

/// A line of one life of an instance.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    instance: String,
    greeting: String,
    life: String,
    count: String,
}

/// A `keel logs -f` that runs, and what it printed.
struct Follower {
    child: Child,
    incoming: Receiver<String>,
    lines: Vec<Line>,
}

impl Follower {
    fn start(rig: &Rig, arguments: &[&str]) -> Self {
        let mut command = rig.command(&[&["logs", "-f"], arguments].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, incoming) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, incoming, lines: Vec::new() }
    }

    /// Takes one more line; false at the end.
    fn take(&mut self) -> bool {
        let text = match self.incoming.recv_timeout(PATIENCE) {
            Ok(text) => text,
            Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => panic!("no line in time after {:?}", self.lines.last()),
        };
        let (instance, rest) = text.split_once('|').unwrap_or(("", &text));
        let words: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
        let [greeting, life, count] = words.try_into().unwrap_or_else(|_| panic!("half a line: {text:?}"));
        self.lines.push(Line { instance: instance.trim().to_owned(), greeting, life, count });
        true
    }

    /// Reads until a line is such a one, and returns it.
    #[track_caller]
    fn until(&mut self, what: &str, is_such: impl Fn(&Line) -> bool) -> Line {
        let deadline = Instant::now() + PATIENCE;
        let begin = self.lines.len();
        loop {
            assert!(Instant::now() < deadline && self.take(), "not printed: {what}");
            if let Some(line) = self.lines[begin..].iter().find(|line| is_such(line)) {
                return line.clone();
            }
        }
    }

    fn until_greeted(&mut self, instance: &str, greeting: &str) -> Line {
        self.until(&format!("{greeting} by {instance}"), |line| line.instance == instance && line.greeting == greeting)
    }

    /// Reads to the end: the code, and standard error without what tells that a replacement takes some time to come, as it
    /// does on a busy machine.
    fn end_without_waits(self, target: &str) -> (Vec<Line>, i32, String) {
        let (lines, code, told) = self.end();
        (lines, code, told.replace(&format!("waiting for an instance of {target} to run\n"), ""))
    }

    /// Reads to the end: the code, and standard error.
    fn end(mut self) -> (Vec<Line>, i32, String) {
        while self.take() {}
        let output = self.child.wait_with_output().unwrap();
        (self.lines, output.status.code().unwrap_or(-1), String::from_utf8(output.stderr).unwrap())
    }
}

/// A `keel get -w -o json` that runs.
struct Watch {
    child: Child,
    incoming: Receiver<Value>,
}

impl Watch {
    fn start(rig: &Rig, arguments: &[&str]) -> Self {
        let mut command = rig.command(&[&["get", "-w"], arguments].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, incoming) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        let values = serde_json::Deserializer::from_reader(out).into_iter::<Value>();
        std::thread::spawn(move || values.map_while(Result::ok).try_for_each(|value| sender.send(value)));
        Self { child, incoming }
    }

    /// Reads until an object is such a one; the stream has nothing but objects.
    #[track_caller]
    fn until(&mut self, is_such: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let value = self.incoming.recv_timeout(left).expect("it is printed in time");
            assert!(value.is_object(), "{value}");
            if is_such(&value) {
                return;
            }
        }
    }

    /// Ends it; what it told on standard error.
    fn interrupt(mut self) -> String {
        assert_eq!(self.child.try_wait().unwrap(), None, "it still watches");
        signal(self.child.id(), "INT");
        String::from_utf8(self.child.wait_with_output().unwrap().stderr).unwrap()
    }
}

/// A `keel get deployments -w` that runs.
struct Table {
    child: Child,
    incoming: Receiver<String>,
}

impl Table {
    fn start(rig: &Rig) -> Self {
        let mut command = rig.command(&["get", "deployments", "-w", "--no-headers"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (sender, incoming) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, incoming }
    }

    /// The states of this deployment until it is such a one; of the others none is told.
    #[track_caller]
    fn states_until(&mut self, deployment: &str, last: &str) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut states = Vec::new();
        while states.last().is_none_or(|state| state != last) {
            let left = deadline.saturating_duration_since(Instant::now());
            let row = self.incoming.recv_timeout(left).unwrap_or_else(|_| panic!("never {last}: {states:?}"));
            let words: Vec<&str> = row.split_whitespace().take(2).collect();
            assert_eq!(words[0], deployment, "{row}");
            states.push(words[1].to_owned());
        }
        states
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every life counts from its first line on, without a gap or a repetition; gives how each ended.
fn check(lines: &[Line]) -> BTreeMap<String, String> {
    let mut lives = BTreeMap::<String, Vec<&str>>::new();
    for line in lines {
        lives.entry(line.life.clone()).or_default().push(&line.count);
    }
    for (life, counts) in &lives {
        let counted = counts.strip_suffix(&["end"]).unwrap_or(counts);
        let want: Vec<String> = (0..counted.len()).map(|count| count.to_string()).collect();
        assert_eq!(counted, want, "of {life}");
    }
    lives.into_iter().map(|(life, counts)| (life, counts.last().unwrap().to_string())).collect()
}

/// A controller rolls, scales, heals and removes under a follower. `kill` ends the instance in this place.
fn follows_a_controller(rig: &Rig, deployment: &str, image: &str, kill: impl Fn(usize)) {
    let name = |slot: u32| format!("{deployment}/web/{slot}");
    let file = "specs/counting.yaml";
    rig.write(file, &counting(deployment, image, 2, "one"));
    let _controller = rig.controller();
    rig.until_running(deployment, 2);
    let mut all = Follower::start(rig, &[&format!("{deployment}/web")]);
    let slot = Follower::start(rig, &[&name(0)]);
    all.until_greeted(&name(0), "one");
    all.until_greeted(&name(1), "one");
    rig.write(file, &counting(deployment, image, 2, "two"));
    let first = all.until_greeted(&name(0), "two");
    all.until_greeted(&name(1), "two");
    rig.until_running(deployment, 2);
    rig.write(file, &counting(deployment, image, 3, "two"));
    all.until_greeted(&name(2), "two");
    rig.until_running(deployment, 3);
    kill(0);
    let healed = all.until("another life in the slot", |line| line.instance == name(0) && line.life != first.life);
    assert_eq!(healed.count, "0", "from its first line on");
    rig.until_running(deployment, 3);
    rig.remove(file);
    let gone = |target: &str| format!("{target} is not declared any more and its last instance is gone\n");
    let service = format!("{deployment}/web");
    let (lines, code, told) = all.end_without_waits(&service);
    assert_eq!((code, told), (0, gone(&service)));
    let ends = check(&lines);
    assert_eq!(ends.len(), 6, "two of the first revision, three of the second, and one that took a slot");
    let last_words = ends.values().filter(|last| *last == "end").count();
    assert_eq!(last_words, 5, "every last line but that of the killed one: {ends:?} of {lines:?}");
    let (lines, code, told) = slot.end_without_waits(&name(0));
    assert_eq!((code, told), (0, gone(&name(0))));
    assert_eq!(check(&lines).len(), 3, "the first, the second and the one after the kill");
}

/// One command rolls, and another one removes, under a follower that is an engine of its own.
fn follows_without_a_controller(rig: &Rig, deployment: &str, image: &str) {
    rig.write("counting.yaml", &counting(deployment, image, 1, "one"));
    rig.keel(&["apply", "-f", "counting.yaml"]).expect_code(0);
    let mut follower = Follower::start(rig, &[deployment]);
    follower.until_greeted("", "one");
    rig.write("counting.yaml", &counting(deployment, image, 2, "two"));
    rig.keel(&["apply", "-f", "counting.yaml"]).expect_code(0);
    for slot in 0..2 {
        follower.until_greeted(&format!("{deployment}/web/{slot}"), "two");
    }
    rig.keel(&["delete", deployment]).expect_code(0);
    let (lines, code, told) = follower.end();
    assert_eq!(code, 0, "{told}");
    assert!(
        told.ends_with(&format!("{deployment} is not declared any more and its last instance is gone\n")),
        "{told}"
    );
    let ends = check(&lines);
    assert_eq!(ends.len(), 3, "{ends:?}");
    // The output of a container goes with it, and the process that removes it knows nothing of this follower; that of a
    // sandbox can be read to its end by who has it open.
    if image == "host" {
        assert!(ends.values().all(|last| last == "end"), "{ends:?}");
    }
}

#[test]
fn sandboxes_are_followed_through_a_controller() {
    let rig = Rig::new("sandbox");
    let kill = |place: usize| {
        let pids = rig.instances(|one| u32::try_from(one["pid"].as_u64().unwrap()).unwrap());
        signal(pids[place], "KILL");
    };
    follows_a_controller(&rig, "demo", "host", kill);
}

#[test]
fn sandboxes_are_followed_without_a_controller() {
    follows_without_a_controller(&Rig::new("sandbox"), "demo", "host");
}

#[test]
fn containers_are_followed_through_a_controller() {
    for kind in [Kind::Docker, Kind::Podman] {
        let Some(socket) = engine::socket(kind) else { continue };
        let rig = Rig::on_engine(&socket);
        let kill = |place: usize| {
            let id = rig.instances(|one| one["runtime_id"].as_str().unwrap().to_owned())[place].clone();
            let status = Command::new("docker").env("DOCKER_HOST", rig.engine()).args(["kill", &id]).output().unwrap();
            assert!(status.status.success(), "{status:?}");
        };
        follows_a_controller(&rig, "following", "keel-test/busybox:1", kill);
    }
}

/// Without Podman: version 4 never ends a follower whose container another process removes, and stops answering for a
/// while.
#[test]
fn containers_are_followed_without_a_controller() {
    let Some(socket) = engine::socket(Kind::Docker) else { return };
    follows_without_a_controller(&Rig::on_engine(&socket), "following-alone", "keel-test/busybox:1");
}

#[test]
fn what_is_not_there_yet_is_waited_for_and_what_nobody_declares_is_refused() {
    let rig = Rig::new("sandbox");
    rig.write("specs/demo.yaml", &counting("demo", "host", 0, "one"));
    let _controller = rig.controller();
    rig.until("the service is known", || !rig.get("services").is_empty());
    let mut follower = Follower::start(&rig, &["demo/web"]);
    let mut told = BufReader::new(follower.child.stderr.take().unwrap());
    let mut line = String::new();
    told.read_line(&mut line).unwrap();
    assert_eq!(line, "waiting for an instance of demo/web to run\n");
    rig.write("specs/demo.yaml", &counting("demo", "host", 1, "one"));
    follower.until_greeted("", "one");
    signal(follower.child.id(), "INT");
    assert_eq!(follower.child.wait().unwrap().code(), Some(130));
    for target in ["ghost", "demo/ghost", "demo/web/7"] {
        let done = rig.keel(&["logs", "-f", target]).expect_code(1);
        assert_eq!(done.err, format!("error: {target} is not declared and has no instance; see keel get services\n"));
    }
}

/// What is told when the controller ends.
const ALONE: &str = "warning: the controller ended; going on without one until it is back\n";

/// Ends the controller under followers, removes what they follow under the next one, and checks that they told
/// everything.
fn follows_beyond_a_controller(end: &str) {
    let rig = Rig::new("sandbox");
    let file = "specs/counting.yaml";
    rig.write(file, &counting("demo", "host", 2, "one"));
    let controller = rig.controller();
    rig.until_running("demo", 2);
    let mut all = Follower::start(&rig, &["demo/web", "--tail", "1000"]);
    let mut watch = Watch::start(&rig, &["instances", "-o", "json"]);
    for slot in 0..2 {
        all.until_greeted(&format!("demo/web/{slot}"), "one");
    }
    watch.until(|one| one["slot"] == 0 && one["phase"] == "running");
    controller.end(end);
    let alone = Instant::now();
    // It takes up the lines that were written while nobody read, and goes on.
    while alone.elapsed() < Duration::from_secs(3) {
        assert!(all.take(), "it goes on");
    }
    let pid = u32::try_from(rig.get("instances")[0]["pid"].as_u64().unwrap()).unwrap();
    signal(pid, "KILL");
    watch.until(|one| one["slot"] == 0 && one["phase"] == "exited");
    let _next = rig.controller();
    all.until("another life in the slot", |line| line.instance == "demo/web/0" && line.count == "0");
    watch.until(|one| one["slot"] == 0 && one["phase"] == "running");
    rig.write(file, &counting("demo", "host", 2, "two"));
    for slot in 0..2 {
        all.until_greeted(&format!("demo/web/{slot}"), "two");
    }
    rig.until_running("demo", 2);
    rig.remove(file);
    let (lines, code, told) = all.end();
    let gone = "demo/web is not declared any more and its last instance is gone\n";
    assert_eq!((code, told), (0, format!("{ALONE}{gone}")));
    let ends = check(&lines);
    assert_eq!(ends.len(), 5, "two, one that took a slot, and two of the second revision: {ends:?}");
    assert_eq!(ends.values().filter(|last| *last == "end").count(), 4, "all but the killed one: {ends:?}");
    assert_eq!(watch.interrupt(), ALONE);
}

#[test]
fn followers_outlast_a_controller_that_is_asked_to_end() {
    follows_beyond_a_controller("TERM");
}

#[test]
fn followers_outlast_a_controller_that_is_killed() {
    follows_beyond_a_controller("KILL");
}

#[test]
fn followers_go_on_with_a_controller_that_ends_at_once_and_comes_back_many_times() {
    let rig = Rig::new("sandbox");
    rig.write("specs/counting.yaml", &counting("demo", "host", 1, "one"));
    let mut controller = rig.controller();
    rig.until_running("demo", 1);
    let mut all = Follower::start(&rig, &["demo"]);
    let first = all.until_greeted("", "one");
    for round in 0..5 {
        controller.end(if round % 2 == 0 { "KILL" } else { "TERM" });
        controller = rig.controller();
        all.until_greeted("", "one");
    }
    rig.remove("specs/counting.yaml");
    let (lines, code, told) = all.end();
    let gone = "demo is not declared any more and its last instance is gone\n";
    assert_eq!((code, told.replace(ALONE, "").as_str()), (0, gone), "{told}");
    assert_eq!(check(&lines), BTreeMap::from([(first.life, "end".to_owned())]));
}

#[test]
fn followers_end_when_what_they_follow_went_between_two_controllers() {
    let rig = Rig::new("sandbox");
    rig.write("demo.yaml", &counting("demo", "host", 1, "one"));
    rig.write("specs/other.yaml", &counting("other", "host", 0, "one"));
    rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
    let controller = rig.controller();
    let mut all = Follower::start(&rig, &["demo"]);
    all.until_greeted("", "one");
    let mut told = BufReader::new(all.child.stderr.take().unwrap());
    controller.end("KILL");
    let mut line = String::new();
    told.read_line(&mut line).unwrap();
    assert_eq!(line, ALONE);
    // More than was printed before: what is removed before anybody reads it again is not told.
    (0..6).for_each(|_| assert!(all.take(), "it goes on"));
    rig.keel(&["delete", "demo"]).expect_code(0);
    let (lines, code, _) = all.end();
    line.clear();
    told.read_to_string(&mut line).unwrap();
    assert_eq!((code, line.as_str()), (0, "demo is not declared any more and its last instance is gone\n"));
    assert_eq!(check(&lines).into_values().collect::<Vec<_>>(), ["end"]);
}

#[test]
fn without_a_controller_waiting_says_what_would_start_one() {
    let rig = Rig::new("sandbox");
    rig.write("demo.yaml", &counting("demo", "host", 0, "one"));
    rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
    let mut follower = Follower::start(&rig, &["demo"]);
    let mut told = BufReader::new(follower.child.stderr.take().unwrap());
    let mut line = String::new();
    told.read_line(&mut line).unwrap();
    assert_eq!(line, "waiting for an instance of demo to run; no controller runs that would start one, see keel run\n");
    rig.keel(&["delete", "demo"]).expect_code(0);
    line.clear();
    told.read_line(&mut line).unwrap();
    assert_eq!(line, "demo is not declared any more and its last instance is gone\n");
    assert_eq!(follower.child.wait().unwrap().code(), Some(0));
}

#[test]
fn watching_without_a_controller_tells_what_other_commands_declare_and_take_back() {
    let rig = Rig::new("sandbox");
    let apply = |name: &str, replicas: u32| {
        let file = format!("{name}.yaml");
        rig.write(&file, &counting(name, "host", replicas, "one"));
        rig.keel(&["apply", "-f", &file]).expect_code(0);
    };
    apply("old", 1);
    let mut table = Table::start(&rig);
    assert_eq!(table.states_until("old", "running"), ["running"]);
    apply("new", 1);
    let states = table.states_until("new", "running");
    assert!(!states.contains(&"removing".to_owned()), "it was declared before it was there: {states:?}");
    rig.keel(&["delete", "old"]).expect_code(0);
    let states = table.states_until("old", "removed");
    let ends = |state: &String| state == "removing" || state == "removed";
    assert!(states.iter().all(ends), "it was taken back before it went: {states:?}");
    // Without an instance that would tell of it.
    apply("idle", 0);
    table.states_until("idle", "running");
    rig.keel(&["delete", "idle"]).expect_code(0);
    table.states_until("idle", "removed");
}
