//! Programs that reach the controller's socket from inside of a sandbox, or may seem to.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::namespaces::without_namespaces;
use crate::rig::Rig;

/// Socket at which a process knocks; it does nothing without.
const SOCKET: &str = "KEEL_TEST_KNOCK";
/// How it knocks.
const HOW: &str = "KEEL_TEST_KNOCK_HOW";
/// It shows this token.
const TOKEN: &str = "KEEL_TEST_KNOCK_TOKEN";
/// More connections than a controller serves at once.
const MANY: usize = 400;

/// Knocks: a test of no meaning of its own.
#[test]
fn knocks() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    match std::env::var(HOW).as_deref() {
        Ok("orphan") => {
            // It becomes the child of another process when the shell ends that started it.
            let parent = || std::fs::read_to_string(format!("/proc/{}/comm", std::os::unix::process::parent_id()));
            while parent().is_ok_and(|name| matches!(name.trim(), "sh" | "setsid")) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok("silent") => {
            let held: Vec<_> = (0..MANY).filter_map(|_| UnixStream::connect(&socket).ok()).collect();
            println!("\nheld {}", held.len());
            std::thread::sleep(Duration::from_secs(1000));
        }
        _ => {}
    }
    println!("\nanswer: {}", knock(Path::new(&socket), &std::env::var(TOKEN).unwrap_or_default()));
}

/// The status line that the controller answers with.
fn knock(socket: &Path, token: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    let shown = if token.is_empty() { String::new() } else { format!("authorization: Bearer {token}\r\n") };
    let request = format!("GET /v1/status HTTP/1.1\r\nhost: keel\r\n{shown}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

/// The line of this kind that a process which knocks says.
fn said(text: &str, begin: &str) -> String {
    text.lines().find_map(|line| line.strip_prefix(begin)).unwrap_or(text).trim().to_owned()
}

fn rig() -> Rig {
    let rig = Rig::new("sandbox");
    rig.write(
        "specs/demo.yaml",
        "version: v1\ndeployment: demo\nservices:\n  web:\n    image: { name: host }\n    \
         command: { entrypoint: [sleep, '1000'] }\n    stop_grace_period: 0s\n",
    );
    rig
}

#[test]
fn one_who_lost_its_parents_inside_does_not_direct_the_controller() {
    if !without_namespaces("inside::one_who_lost_its_parents_inside_does_not_direct_the_controller") {
        return;
    }
    let rig = rig();
    let _controller = rig.controller();
    rig.until_running("demo", 1);
    let (test, socket) = (std::env::current_exe().unwrap(), rig.path("state/keel.sock"));
    assert_eq!(knock(&socket, ""), "HTTP/1.1 200 OK", "outside");
    let script = format!(
        "(setsid sh -c '{HOW}=orphan {SOCKET}=$1 setsid \"$0\" --exact inside::knocks --nocapture &' \"$0\" \"$1\") | cat"
    );
    let done =
        rig.keel(&["exec", "demo/web", "--", "sh", "-c", &script, test.to_str().unwrap(), socket.to_str().unwrap()]);
    assert_eq!(said(&done.expect_code(0).out, "answer: "), "HTTP/1.1 409 Conflict");
}

#[test]
fn many_inside_who_connect_and_say_nothing_keep_nobody_outside_from_the_controller() {
    if !without_namespaces("inside::many_inside_who_connect_and_say_nothing_keep_nobody_outside_from_the_controller") {
        return;
    }
    let rig = rig();
    let _controller = rig.controller();
    rig.until_running("demo", 1);
    let (test, socket) = (std::env::current_exe().unwrap(), rig.path("state/keel.sock"));
    let knocks = format!("{HOW}=silent {SOCKET}=$1 exec \"$0\" --exact inside::knocks --nocapture");
    let mut command = rig.command(&["exec", "demo/web", "--", "sh", "-c", &knocks]);
    let mut inside = command.arg(test).arg(&socket).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(inside.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line == format!("held {MANY}")), "it holds them");
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(b"GET /v1/version HTTP/1.1\r\nhost: keel\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it is answered in time");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    inside.kill().unwrap();
    inside.wait().unwrap();
}

#[test]
fn one_who_can_gain_no_privileges_directs_the_controller_where_it_reads_the_state_directory() {
    let rig = rig();
    let _controller = rig.controller();
    let (socket, token) = (rig.path("state/keel.sock"), std::fs::read_to_string(rig.path("state/token")).unwrap());
    let barred = |program: &Path, arguments: &[&str], environment: &[(&str, &str)]| {
        let plain = rig.command(arguments);
        let mut command = Command::new("setpriv");
        command.arg("--no-new-privs").arg(program).args(arguments).current_dir(rig.path("")).env_clear();
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = command.envs(environment.iter().copied()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let keel = Path::new(env!("CARGO_BIN_EXE_keel"));
    let (code, told) = barred(keel, &["version", "-o", "json"], &[]);
    assert!(code == Some(0) && told.contains("\"controller\": {"), "{told}");
    let test = std::env::current_exe().unwrap();
    for (token, answer) in [("", "409 Conflict"), ("x", "409 Conflict"), (token.trim(), "200 OK")] {
        let knocks = ["--exact", "inside::knocks", "--nocapture"];
        let (_, told) = barred(&test, &knocks, &[(SOCKET, socket.to_str().unwrap()), (TOKEN, token)]);
        assert_eq!(said(&told, "answer: "), format!("HTTP/1.1 {answer}"));
    }
}
