//! Verbs that meet a controller which is just ending.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::rig::{Controller, Done, Rig, signal, spec};

/// Between two looks for a client.
const PAUSE: Duration = Duration::from_millis(2);

/// Where a controller ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Before it took up the request.
    Before,
    /// After it carried the request out, and before its answer was read.
    BeforeTheAnswer,
    /// After it said that it takes up the request.
    AfterTheHead,
}

/// Stands before a controller: lets so many requests through, and ends the controller at the next one.
struct Gate {
    done: Arc<AtomicBool>,
    thread: JoinHandle<bool>,
}

impl Gate {
    fn new(rig: &Rig, through: usize, cut: Cut) -> Self {
        let controller = rig.controller();
        let (socket, real, listener) = stand_before(rig);
        let done = Arc::new(AtomicBool::new(false));
        let asked = done.clone();
        let thread = std::thread::spawn(move || {
            let request = serve(&listener, &real, through, &BTreeSet::new(), &asked);
            std::fs::remove_file(&socket).unwrap();
            let is_cut = request.is_some();
            if let Some((client, request)) = request {
                end(client, &request, &real, cut, controller);
            }
            std::fs::remove_file(&real).unwrap();
            is_cut
        });
        Self { done, thread }
    }

    /// Whether the controller ended before the verb did.
    fn was_met(self) -> bool {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Takes the place of a controller's socket: where that was, where it is now, and what listens in its place.
fn stand_before(rig: &Rig) -> (PathBuf, PathBuf, UnixListener) {
    let (socket, real) = (rig.path("state/keel.sock"), rig.path("real.sock"));
    std::fs::rename(&socket, &real).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    (socket, real, listener)
}

/// Lets requests through but those of these numbers, whose clients find that the controller has gone. The client of the one
/// that comes after, and what it sent.
fn serve(
    listener: &UnixListener,
    real: &Path,
    through: usize,
    lost: &BTreeSet<usize>,
    done: &AtomicBool,
) -> Option<(UnixStream, Vec<u8>)> {
    let mut number = 0;
    while !done.load(Ordering::Relaxed) {
        let Ok((mut client, _)) = listener.accept() else {
            std::thread::sleep(PAUSE);
            continue;
        };
        client.set_nonblocking(false).unwrap();
        let mut request = vec![0; 1 << 16];
        let size = client.read(&mut request).unwrap();
        request.truncate(size);
        // It only looks whether anybody listens.
        if size == 0 {
            continue;
        }
        if number == through {
            return Some((client, request));
        }
        if !lost.contains(&number) {
            pass_on(client, &request, real);
        }
        number += 1;
    }
    None
}

fn pass_on(mut client: UnixStream, request: &[u8], real: &Path) {
    let mut server = UnixStream::connect(real).unwrap();
    server.write_all(request).unwrap();
    let (mut up, mut down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || std::io::copy(&mut up, &mut down));
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut server, &mut client);
        let _ = client.shutdown(std::net::Shutdown::Both);
    });
}

fn end(mut client: UnixStream, request: &[u8], real: &Path, cut: Cut, controller: Controller) {
    match cut {
        Cut::Before => {}
        Cut::BeforeTheAnswer => {
            let mut server = UnixStream::connect(real).unwrap();
            server.write_all(request).unwrap();
            server.read_exact(&mut [0]).unwrap();
        }
        Cut::AfterTheHead => {
            client.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
            // What it sends now is lost.
            assert_ne!(client.read(&mut [0; 1 << 10]).unwrap(), 0);
        }
    }
    drop(client);
    controller.end("TERM");
}

/// A service that writes a line and goes on.
fn demo(replicas: u32) -> String {
    format!(
        "version: v1\ndeployment: demo\nservices:\n  web:\n    image: {{ name: host }}\n    scale: {{ mode: fixed, \
         replicas: {replicas} }}\n    command: {{ entrypoint: [sh, -c, echo up; exec sleep 1000] }}\n"
    )
}

/// Runs a verb that meets the end of a controller at its first request, its second and so on, until it has no further one;
/// `before` comes before each. How each run ended.
fn meets(rig: &Rig, cut: Cut, arguments: &[&str], before: impl Fn()) -> Vec<Done> {
    let mut all = Vec::new();
    for through in 0.. {
        before();
        let gate = Gate::new(rig, through, cut);
        let done = rig.keel(arguments);
        if !gate.was_met() {
            break;
        }
        all.push(done);
    }
    all
}

#[test]
fn looking_goes_on_with_another_engine() {
    let rig = Rig::new("sandbox");
    rig.write("demo.yaml", &demo(1));
    rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
    let verbs: [(&[&str], i32); 9] = [
        (&["get", "instances", "-o", "name"], 0),
        (&["describe", "demo"], 0),
        (&["diff", "-f", "demo.yaml"], 0),
        (&["plan"], 0),
        (&["logs", "demo/web"], 0),
        (&["doctor"], 0),
        (&["approve"], 0),
        (&["exec", "demo/web", "--", "sh", "-c", "echo once; exit 3"], 3),
        (&["apply", "-f", "demo.yaml", "--dry-run"], 0),
    ];
    for (verb, code) in verbs {
        let all = meets(&rig, Cut::Before, verb, || ());
        assert!(!all.is_empty(), "{verb:?}");
        for done in all {
            let done = done.expect_code(code);
            assert_eq!(done.out.matches("once").count(), usize::from(code == 3), "{verb:?}: {done:?}");
            let warnings = if verb[0] == "approve" { "nothing is held; there is nothing to approve\n" } else { "" };
            assert_eq!(done.err, warnings, "{verb:?}");
        }
    }
}

#[test]
fn a_command_is_not_run_once_more_where_it_may_have_been_started() {
    let rig = Rig::new("sandbox");
    rig.write("demo.yaml", &demo(1));
    rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
    let gate = Gate::new(&rig, 0, Cut::AfterTheHead);
    let done = rig.keel(&["exec", "demo/web", "--", "echo", "again"]).expect_code(125);
    assert!(gate.was_met());
    assert_eq!(done.out, "");
    assert!(done.err.starts_with("error: the controller ended"), "{}", done.err);
}

#[test]
fn declarations_are_carried_out_whenever_a_controller_ends() {
    for cut in [Cut::Before, Cut::BeforeTheAnswer] {
        let rig = Rig::new("sandbox");
        for (through, replicas) in (0..5).zip((1..3).cycle()) {
            rig.write("demo.yaml", &demo(replicas));
            let gate = Gate::new(&rig, through, cut);
            let done = rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
            assert!(gate.was_met(), "{through}");
            let change = if through == 0 { "created" } else { "configured" };
            assert_eq!(done.out, format!("deployment/demo {change}\n"), "{through}");
            assert_eq!(rig.instances(|one| one["ready"] == true), vec![true; replicas as usize], "{through}");
        }
        for through in 0..4 {
            rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
            let gate = Gate::new(&rig, through, cut);
            let done = rig.keel(&["delete", "demo"]).expect_code(0);
            assert!(gate.was_met(), "{through}");
            assert_eq!(done.out, "deployment/demo deleted\n");
            assert_eq!(rig.get("deployments").len(), 0, "{through}");
        }
    }
}

#[test]
fn what_never_was_is_not_found_whenever_a_controller_ends() {
    let rig = Rig::new("sandbox");
    rig.write("demo.yaml", &demo(1));
    for verb in [&["delete", "demo", "never"][..], &["delete", "demo", "never", "--volumes"]] {
        // As they come: what there is (twice, and once more), then the removal.
        for through in 0..4 {
            rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
            let gate = Gate::new(&rig, through, Cut::BeforeTheAnswer);
            let done = rig.keel(verb).expect_code(1);
            assert!(gate.was_met(), "{through}");
            assert_eq!(done.out, "deployment/demo deleted\n", "{verb:?} {through}: {}", done.err);
            assert!(done.err.contains("error: deployments \"never\" not found\n"), "{through}: {}", done.err);
        }
    }
}

#[test]
fn what_is_only_declared_is_declared_when_the_controller_ends() {
    let rig = Rig::new("sandbox");
    rig.write("demo.yaml", &demo(1));
    for through in 0..3 {
        let gate = Gate::new(&rig, through, Cut::Before);
        rig.keel(&["apply", "-f", "demo.yaml", "--no-wait"]).expect_code(0);
        assert!(gate.was_met());
        assert_eq!(rig.get("deployments").len(), 1);
        rig.keel(&["delete", "demo"]).expect_code(0);
    }
}

#[test]
fn a_process_that_is_about_to_end_is_waited_for() {
    let rig = Rig::new("sandbox");
    rig.write("demo.yaml", &demo(1));
    rig.keel(&["apply", "-f", "demo.yaml", "--no-wait"]).expect_code(0);
    let held = lock(&rig);
    held.try_lock().unwrap();
    let mut apply = Running::start(&rig, &["apply", "-f", "demo.yaml"]);
    apply.until_line("waiting: a keel command");
    drop(held);
    apply.expect_code(0);
    rig.keel(&["delete", "demo"]).expect_code(0);
}

#[test]
fn control_c_ends_a_wait_for_the_process_that_took_the_controllers_place() {
    let rig = Rig::new("sandbox");
    rig.write("demo.yaml", &demo(1).replace("exec sleep 1000", "exit 1"));
    for verb in [&["apply", "-f", "demo.yaml"][..], &["delete", "demo"]] {
        let controller = rig.controller();
        rig.write("stubborn.yaml", &stubborn("demo"));
        if verb[0] == "delete" {
            rig.keel(&["apply", "-f", "stubborn.yaml"]).expect_code(0);
        }
        let mut running = Running::start(&rig, verb);
        running.until_line("demo");
        // Whoever waits for a lock has it as soon as it is free.
        let next = lock(&rig);
        let taken = std::thread::spawn(move || next.lock().map(|()| next));
        controller.end("TERM").expect_code(0);
        let held = taken.join().unwrap().unwrap();
        running.until_line("waiting: another keel");
        signal(running.child.id(), "INT");
        let rest = running.expect_code(130);
        assert!(rest.starts_with("interrupted; "), "{rest}");
        drop(held);
        kill_all(&rig);
    }
    rig.keel(&["delete", "demo", "--ignore-not-found"]).expect_code(0);
}

#[test]
fn what_is_pruned_is_gone_when_the_controller_ends_before_it_tells_so() {
    // As they come: what would be declared, what there is, the declaration, what there is again.
    for (through, cut) in [(2, Cut::BeforeTheAnswer), (3, Cut::Before), (4, Cut::Before)] {
        let rig = Rig::new("sandbox");
        std::fs::create_dir(rig.path("dir")).unwrap();
        rig.write("dir/demo.yaml", &demo(1));
        rig.write("dir/slow.yaml", &stubborn("slow").replace("10m", "3s"));
        rig.keel(&["apply", "-f", "dir"]).expect_code(0);
        rig.remove("dir/slow.yaml");
        let gate = Gate::new(&rig, through, cut);
        let done = rig.keel(&["apply", "-f", "dir"]).expect_code(0);
        assert!(gate.was_met(), "{through}");
        assert_eq!(done.out, "deployment/demo unchanged\ndeployment/slow pruned\n", "{through}");
        assert_eq!(rig.instances(|one| one["deployment"].clone()), ["demo"], "{through}: {}", done.err);
    }
}

#[test]
fn a_wait_goes_on_under_a_controller_that_ends_and_under_one_that_is_started_again_twice() {
    let rig = Rig::new("sandbox");
    rig.write("slow.yaml", &stubborn("slow"));
    let controller = rig.controller();
    rig.keel(&["apply", "-f", "slow.yaml"]).expect_code(0);
    let (socket, real, listener) = stand_before(&rig);
    let done = Arc::new(AtomicBool::new(false));
    let asked = done.clone();
    // What there is (twice), the removal, what there is again; then the waits, of which two are cut off.
    let lost = BTreeSet::from([5, 10]);
    let gate = std::thread::spawn({
        let real = real.clone();
        move || serve(&listener, &real, usize::MAX, &lost, &asked)
    });
    let mut delete = Running::start(&rig, &["delete", "slow"]);
    // Each wait begins with how things are.
    for _ in 0..3 {
        delete.until_line("slow");
    }
    done.store(true, Ordering::Relaxed);
    gate.join().unwrap();
    std::fs::rename(&real, &socket).unwrap();
    controller.end("TERM").expect_code(0);
    delete.until_line("warning: the controller ended; this command does the work itself");
    kill_all(&rig);
    assert_eq!(delete.output(), "deployment/slow deleted\n");
    delete.expect_code(0);
    assert_eq!(rig.get("instances").len(), 0);
}

#[test]
fn a_delete_ends_once_its_deployment_is_applied_again() {
    let rig = Rig::new("sandbox");
    rig.write("slow.yaml", &stubborn("slow"));
    let controller = rig.controller();
    rig.keel(&["apply", "-f", "slow.yaml"]).expect_code(0);
    let mut delete = Running::start(&rig, &["delete", "slow", "--timeout", "10m"]);
    delete.until_line("slow: being removed");
    rig.keel(&["apply", "-f", "slow.yaml", "--no-wait"]).expect_code(0);
    let rest = delete.expect_code(1);
    assert!(rest.ends_with("error: deployment/slow failed: it was declared again meanwhile\n"), "{rest}");
    controller.end("TERM").expect_code(0);
    let mut delete = Running::start(&rig, &["delete", "slow"]);
    delete.until_line("slow");
    kill_all(&rig);
    delete.expect_code(0);
}

#[test]
fn an_approval_whose_answer_is_lost_is_told_and_no_second_one_is_given() {
    let rig = Rig::new("sim");
    std::fs::create_dir(rig.path("other")).unwrap();
    rig.write("other/z.yaml", &spec("z", 1, "hi"));
    let names = ["a", "b", "c", "d"];
    for name in names {
        rig.write(&format!("specs/{name}.yaml"), &spec(name, 1, "hi"));
    }
    rig.keel(&["run", "other", "--once"]).expect_code(0);
    rig.keel(&["run", "specs", "--once"]).expect_code(0);
    for name in names {
        rig.remove(&format!("specs/{name}.yaml"));
    }
    // What there is, then the approval.
    let gate = Gate::new(&rig, 1, Cut::BeforeTheAnswer);
    let done = rig.keel(&["approve"]).expect_code(0);
    assert!(gate.was_met());
    let pruned: String = names.iter().map(|name| format!("deployment/{name} pruned\n")).collect();
    assert_eq!(done.out, pruned, "{}", done.err);
    assert!(!done.err.contains("nothing is held"), "{}", done.err);
    assert_eq!(rig.keel(&["get", "deployments", "-o", "name"]).out, "deployment/z\n");
}

/// A service that does not end when it is asked to.
fn stubborn(deployment: &str) -> String {
    format!(
        "version: v1\ndeployment: {deployment}\nservices:\n  web:\n    image: {{ name: host }}\n    \
         stop_grace_period: 10m\n    command: {{ entrypoint: [sh, -c, \"trap '' TERM; while :; do sleep 1; done\"] }}\n"
    )
}

/// Ends what runs, whatever it does about signals.
fn kill_all(rig: &Rig) {
    for pid in rig.instances(|one| one["pid"].as_u64()).into_iter().flatten() {
        signal(u32::try_from(pid).unwrap(), "KILL");
    }
}

/// The lock of a state directory.
fn lock(rig: &Rig) -> std::fs::File {
    std::fs::File::options().write(true).open(rig.path("state/lock")).unwrap()
}

/// A verb that runs; what it tells on standard error is read meanwhile.
struct Running {
    child: Child,
    errors: BufReader<std::process::ChildStderr>,
}

impl Running {
    fn start(rig: &Rig, arguments: &[&str]) -> Self {
        let mut child = rig.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let errors = BufReader::new(child.stderr.take().unwrap());
        Self { child, errors }
    }

    /// Waits for a line that begins like this.
    #[track_caller]
    fn until_line(&mut self, begin: &str) {
        let mut told = String::new();
        while !told.lines().last().is_some_and(|line| line.starts_with(begin)) {
            assert_ne!(self.errors.read_line(&mut told).unwrap(), 0, "no line begins with {begin:?}:\n{told}");
        }
    }

    /// All of standard output.
    fn output(&mut self) -> String {
        let mut text = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// The rest of standard error, if the code is this one.
    #[track_caller]
    fn expect_code(mut self, code: i32) -> String {
        let mut rest = String::new();
        self.errors.read_to_string(&mut rest).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(code), "{rest}");
        rest
    }
}
