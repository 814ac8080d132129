//! Verbs that meet a controller which is just ending.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::rig::{Controller, Done, Rig};

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
        let (socket, real) = (rig.path("state/keel.sock"), rig.path("real.sock"));
        std::fs::rename(&socket, &real).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let asked = done.clone();
        let thread = std::thread::spawn(move || {
            let request = serve(&listener, &real, through, &asked);
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

/// Lets requests through. The client of the one that comes after, and what it sent.
fn serve(listener: &UnixListener, real: &Path, mut through: usize, done: &AtomicBool) -> Option<(UnixStream, Vec<u8>)> {
    while !done.load(Ordering::Relaxed) {
        let Ok((mut client, _)) = listener.accept() else {
            std::thread::sleep(PAUSE);
            continue;
        };
        client.set_nonblocking(false).unwrap();
        let mut request = vec![0; 1 << 16];
        let size = client.read(&mut request).unwrap();
        request.truncate(size);
        match (size, through) {
            // It only looks whether anybody listens.
            (0, _) => {}
            (_, 0) => return Some((client, request)),
            _ => {
                through -= 1;
                pass_on(client, &request, real);
            }
        }
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
        for (through, replicas) in (0..4).zip((1..3).cycle()) {
            rig.write("demo.yaml", &demo(replicas));
            let gate = Gate::new(&rig, through, cut);
            let done = rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
            assert!(gate.was_met(), "{through}");
            assert_eq!(done.out.lines().count(), 1, "{done:?}");
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
fn what_is_only_declared_is_declared_when_the_controller_ends() {
    let rig = Rig::new("sandbox");
    rig.write("demo.yaml", &demo(1));
    for through in 0..2 {
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
    let held = std::fs::File::options().write(true).open(rig.path("state/lock")).unwrap();
    held.try_lock().unwrap();
    let ends = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(1_500));
        drop(held);
    });
    let done = rig.keel(&["apply", "-f", "demo.yaml"]).expect_code(0);
    ends.join().unwrap();
    assert!(done.err.starts_with("waiting: another keel"), "{}", done.err);
    rig.keel(&["delete", "demo"]).expect_code(0);
}
