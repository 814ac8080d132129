//! Attaching to programs: input, terminals, and those who come and go.

use std::time::Duration;

use evenkeel::runtime::io::{AttachRequest, AttachSession, ExecInput, ExecOutput, ExecRequest, LogOptions};
use evenkeel::runtime::{ErrorKind, Result, Runtime};
use evenkeel::spec::Signal;
use evenkeel::state::{InstanceRef, StopCause};
use futures::StreamExt;

use crate::support::{PATIENCE, Sandbox, stop, without_namespaces};

/// Answers each line that is typed, until it reads `end`.
const TALK: &str = "echo up; while read -r line; do [ $line = end ] && exit 7; echo heard $line; done; exit 9";
/// Tells the size of its terminal for each line that is typed.
const SIZES: &str = "tty; echo up; while read -r line; do stty size; done";

async fn started(sandbox: &Sandbox, script: &str, more: &str) -> InstanceRef {
    let yaml = format!(
        "image: {{ name: host }}\ncommand: {{ entrypoint: [/bin/busybox, sh, -c, {}] }}\n{more}",
        serde_json::Value::from(script)
    );
    let instance = sandbox.run(&yaml).await.as_ref();
    sandbox.wrote(&instance, "up").await;
    instance
}

async fn attach(sandbox: &Sandbox, instance: &InstanceRef, stdin: bool) -> Result<AttachSession> {
    let request = AttachRequest { stdin, size: Some((97, 31)) };
    sandbox.runtime.attach().unwrap().attach(instance, &request).await
}

async fn say(session: &AttachSession, text: &'static str) {
    session.input.send(ExecInput::Data(text.into())).await.unwrap();
}

/// The next item of the output; none at its end.
async fn next(session: &mut AttachSession) -> Option<ExecOutput> {
    session.output.next().await.map(Result::unwrap)
}

/// Reads until this was written.
async fn until(session: &mut AttachSession, wanted: &str) -> String {
    let mut seen = String::new();
    let read = async {
        while !seen.contains(wanted) {
            match next(session).await {
                Some(ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes)) => {
                    seen.push_str(&String::from_utf8_lossy(&bytes));
                }
                other => panic!("{other:?} after {seen:?}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("{wanted:?} does not come"));
    seen
}

#[tokio::test]
async fn lines_are_answered_and_the_end_is_the_programs_own() {
    let sandbox = Sandbox::new();
    let instance = started(&sandbox, TALK, "stdin_open: true\n").await;
    let mut first = attach(&sandbox, &instance, true).await.unwrap();
    assert!(!first.tty);
    say(&first, "one\n").await;
    assert_eq!(until(&mut first, "heard one\n").await, "heard one\n", "from now on only");
    let refused = attach(&sandbox, &instance, true).await.err().unwrap();
    assert_eq!(refused.kind, ErrorKind::Rejected);
    assert!(refused.message.contains("somebody else is attached to its input"), "{refused}");
    let mut watching = attach(&sandbox, &instance, false).await.unwrap();
    drop(first);
    // The supervisor hears of it a moment later.
    let mut second = loop {
        match attach(&sandbox, &instance, true).await {
            Ok(session) => break session,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    say(&second, "two\nend\n").await;
    for session in [&mut second, &mut watching] {
        until(session, "heard two\n").await;
        assert_eq!(next(session).await, Some(ExecOutput::Exit(7)));
        assert_eq!(next(session).await, None);
    }
    let gone = attach(&sandbox, &instance, false).await.err().unwrap();
    assert!(gone.message.contains("does not run (exited)"), "{gone}");
}

#[tokio::test]
async fn a_terminal_is_the_programs_own_and_has_the_size_of_who_is_attached() {
    let sandbox = Sandbox::new();
    let instance = started(&sandbox, SIZES, "stdin_open: true\ntty: true\n").await;
    assert!(sandbox.output(&instance).starts_with("/dev/pts/0"), "{}", sandbox.output(&instance));
    let mut session = attach(&sandbox, &instance, true).await.unwrap();
    assert!(session.tty);
    say(&session, "x\r").await;
    let seen = until(&mut session, "31 97").await;
    assert!(seen.starts_with("x\r\n"), "what is typed is echoed: {seen:?}");
    session.input.send(ExecInput::Resize(100, 40)).await.unwrap();
    say(&session, "y\r").await;
    until(&mut session, "40 100").await;
    // Control-C reaches the program as a signal.
    say(&session, "\u{3}").await;
    let mut last = None;
    while let Some(output) = next(&mut session).await {
        last = Some(output);
    }
    assert_eq!(last, Some(ExecOutput::Exit(130)));
}

#[tokio::test]
async fn a_terminal_without_open_input_is_watched_alone() {
    let sandbox = Sandbox::new();
    let script = "echo up; until [ -e /tmp/go ]; do sleep 0.05; done; stty size; exit 3";
    let instance = started(&sandbox, script, "tty: true\n").await;
    let refused = attach(&sandbox, &instance, true).await.err().unwrap();
    assert!(refused.message.contains("write stdin_open: true"), "{refused}");
    let mut session = attach(&sandbox, &instance, false).await.unwrap();
    let request = evenkeel::runtime::io::ExecRequest {
        command: ["touch", "/tmp/go"].map(str::to_owned).to_vec(),
        ..Default::default()
    };
    let made = sandbox.runtime.exec().unwrap().exec(&instance, &request).await.unwrap();
    let outputs: Vec<ExecOutput> = made.output.map(Result::unwrap).collect().await;
    // The program may see the file and end, and the command with it, before that ends by itself.
    assert!(matches!(outputs[..], [ExecOutput::Exit(0 | 137)]), "{outputs:?}");
    until(&mut session, "31 97").await;
    assert_eq!(next(&mut session).await, Some(ExecOutput::Exit(3)));
}

#[tokio::test]
async fn a_removal_waits_until_the_exit_code_was_read() {
    let sandbox = Sandbox::new();
    for more in ["", "stdin_open: true\n"] {
        let script = "trap 'exit 143' TERM; echo up; while :; do sleep 0.05; done";
        let instance = started(&sandbox, script, more).await;
        let mut session = attach(&sandbox, &instance, false).await.unwrap();
        sandbox.runtime.await_readers(&instance).await;
        let order = stop(Signal::TERM, PATIENCE, StopCause::Retired);
        sandbox.runtime.stop(&instance, &order).await.unwrap();
        let mut readers = std::pin::pin!(sandbox.runtime.await_readers(&instance));
        let waits = tokio::time::timeout(Duration::from_millis(100), &mut readers).await.is_err();
        assert!(waits, "somebody is still attached");
        assert_eq!(next(&mut session).await, Some(ExecOutput::Exit(143)));
        readers.await;
        sandbox.runtime.remove(&instance).await.unwrap();
    }
}

#[tokio::test]
async fn an_instance_that_is_gone_is_told_as_that() {
    let sandbox = Sandbox::new();
    let instance = started(&sandbox, "echo up; while :; do sleep 0.05; done", "").await;
    let mut session = attach(&sandbox, &instance, false).await.unwrap();
    sandbox.runtime.remove(&instance).await.unwrap();
    let error = session.output.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.message.ends_with("was removed before its exit code was read"), "{error}");
}

#[tokio::test]
async fn a_prompt_is_seen_before_its_line_ends_and_is_kept_in_one_line() {
    let sandbox = Sandbox::new();
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let storage = format!("storage: [{{ type: bind, source: {}, target: /tmp/go }}]", folder.path().display());
    let wait = |name: &str| format!("until [ -e /tmp/go/{name} ]; do sleep 0.01; done");
    let script = format!("echo up; {}; printf 'name: '; {}; echo x; printf end", wait("one"), wait("two"));
    let instance = started(&sandbox, &script, &storage).await;
    let mut session = attach(&sandbox, &instance, false).await.unwrap();
    std::fs::write(folder.path().join("one"), "").unwrap();
    assert_eq!(until(&mut session, "name: ").await, "name: ");
    std::fs::write(folder.path().join("two"), "").unwrap();
    assert_eq!(until(&mut session, "end\n").await, "x\nend\n");
    assert!(matches!(next(&mut session).await, Some(ExecOutput::Exit(0))));
    let options = LogOptions { tail: Some(2), ..LogOptions::default() };
    let lines = sandbox.runtime.logs().unwrap().logs(&instance, &options).await.unwrap();
    let texts: Vec<String> = lines.map(|line| line.unwrap().text.lossy().into_owned()).collect().await;
    assert_eq!(texts, ["name: x", "end"]);
}

/// Socket of an instance at which a process knocks; it does nothing without.
const KNOCK: &str = "KEEL_TEST_ATTACH";

/// Knocks: a test of no meaning of its own.
#[test]
fn knocks() {
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType, connect, recv, send, socket};
    let Some(path) = std::env::var_os(KNOCK) else { return };
    let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(std::path::Path::new(&path)).unwrap()).unwrap();
    let _ = send(&socket, b"i", SendFlags::NOSIGNAL);
    let mut answer = [0; 256];
    // One who is refused before it was heard may find the connection reset.
    let size = recv(&socket, &mut answer[..], RecvFlags::empty()).map_or(0, |(_, size)| size);
    println!("\nanswer: {}.", String::from_utf8_lossy(&answer[..size]));
}

#[tokio::test]
async fn a_program_inside_is_attached_to_nobody() {
    if !without_namespaces("attach::a_program_inside_is_attached_to_nobody") {
        return;
    }
    let sandbox = Sandbox::new();
    let test = std::env::current_exe().unwrap();
    // It may lie in /tmp, which is of no business to a plain process unless it is named.
    let more = format!("stdin_open: true\nsandbox: {{ writable: ['{}'] }}", test.parent().unwrap().display());
    let instance = started(&sandbox, "echo up; exec cat", &more).await;
    let script = format!(
        "{KNOCK}={} exec {} --exact attach::knocks --nocapture",
        sandbox.dir(&instance).join("attach").display(),
        test.display()
    );
    let request = ExecRequest { command: ["sh", "-c", &script].map(str::to_owned).to_vec(), ..ExecRequest::default() };
    let session = sandbox.runtime.exec().unwrap().exec(&instance, &request).await.unwrap();
    let told: Vec<ExecOutput> = session.output.map(std::result::Result::unwrap).collect().await;
    let text: String = told
        .iter()
        .map(|one| match one {
            ExecOutput::Stdout(text) | ExecOutput::Stderr(text) => String::from_utf8_lossy(text).into_owned(),
            ExecOutput::Exit(_) => String::new(),
        })
        .collect();
    let refusals = ["answer: .", "answer: rthis runs inside of a sandbox"];
    assert!(refusals.iter().any(|refusal| text.contains(refusal)), "{text}");
}
