//! Commands inside that are given a terminal.

use evenkeel::runtime::io::{ExecInput, ExecOutput, ExecRequest, ExecSession};
use evenkeel::runtime::{ErrorKind, Exec};
use futures::StreamExt;

use crate::support::{PATIENCE, Sandbox, is_root, rootfs, shell, shell_in, without_namespaces};

const FOREVER: &str = "while :; do sleep 0.05; done";

/// A command that runs on a terminal.
struct Screen {
    session: ExecSession,
    text: String,
    code: Option<i32>,
}

impl Screen {
    /// Runs a shell script in slot 0.
    async fn open(sandbox: &Sandbox, script: &str) -> Self {
        let instance = sandbox.first().await;
        let command = ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec();
        let request = ExecRequest { command, tty: Some((100, 30)), stdin: true, ..ExecRequest::default() };
        let session = Exec::exec(&sandbox.runtime, &instance, &request).await.unwrap();
        Self { session, text: String::new(), code: None }
    }

    async fn types(&self, keys: &str) {
        self.session.input.send(ExecInput::Data(keys.to_owned().into())).await.unwrap();
    }

    /// Reads on until this is shown.
    async fn shows(&mut self, text: &str) {
        let read = async {
            while !self.text.contains(text) {
                match self.session.output.next().await.expect("it has not ended").unwrap() {
                    ExecOutput::Stdout(bytes) => self.text += &String::from_utf8_lossy(&bytes),
                    other => panic!("{other:?} after {:?}", self.text),
                }
            }
        };
        if tokio::time::timeout(PATIENCE, read).await.is_err() {
            panic!("{text:?} is not shown: {:?}", self.text);
        }
    }

    /// Reads to the end; everything that was shown, and the code.
    async fn ends(mut self) -> (String, i32) {
        let read = async {
            while let Some(item) = self.session.output.next().await {
                match item.unwrap() {
                    ExecOutput::Stdout(bytes) => self.text += &String::from_utf8_lossy(&bytes),
                    ExecOutput::Exit(code) => self.code = Some(code),
                    other => panic!("{other:?}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("it ends");
        (self.text, self.code.expect("a code"))
    }
}

#[tokio::test]
async fn the_terminal_has_a_name_inside() {
    let sandbox = Sandbox::new();
    sandbox.run(&shell(FOREVER)).await;
    let mut first = Screen::open(&sandbox, "tty; read line").await;
    first.shows("/dev/pts/0\r\n").await;
    let (text, code) =
        Screen::open(&sandbox, "tty; ls /dev/pts; tty </dev/tty; echo into the void >/dev/pts/1").await.ends().await;
    let want = "/dev/pts/1\r\n0     1     ptmx\r\n/dev/tty\r\ninto the void\r\n";
    assert_eq!((text.split_whitespace().collect::<Vec<_>>(), code), (want.split_whitespace().collect(), 0));
    first.types("x\n").await;
    assert_eq!(first.ends().await.1, 0);
}

#[tokio::test]
async fn the_terminal_has_the_wanted_size_and_tells_when_it_changes() {
    let sandbox = Sandbox::new();
    sandbox.run(&shell(FOREVER)).await;
    let script = format!("stty size; trap 'stty size; exit 4' WINCH; echo armed; {FOREVER}");
    let mut screen = Screen::open(&sandbox, &script).await;
    screen.shows("30 100\r\narmed").await;
    screen.session.input.send(ExecInput::Resize(120, 40)).await.unwrap();
    let (text, code) = screen.ends().await;
    assert!(text.ends_with("40 120\r\n"), "{text:?}");
    assert_eq!(code, 4);
}

#[tokio::test]
async fn keys_become_signals() {
    let sandbox = Sandbox::new();
    sandbox.run(&shell(FOREVER)).await;
    for (keys, code) in [("\u{3}", 130), ("\u{1c}", 131)] {
        // What it echoes comes from the program itself: a shell takes keys for itself until it has become that.
        let mut screen = Screen::open(&sandbox, "exec cat").await;
        screen.types("line\n").await;
        screen.shows("line\r\nline\r\n").await;
        screen.types(keys).await;
        assert_eq!(screen.ends().await.1, code);
    }
    let mut screen = Screen::open(&sandbox, "cat; echo the end of input").await;
    screen.types("line\n").await;
    screen.shows("line\r\nline\r\n").await;
    screen.types("\u{4}").await;
    assert!(screen.ends().await.0.ends_with("the end of input\r\n"));
}

#[tokio::test]
async fn a_session_that_is_left_ends_its_command() {
    let sandbox = Sandbox::new();
    sandbox.run(&shell(FOREVER)).await;
    let mut screen = Screen::open(&sandbox, "echo armed; exec sleep 1234").await;
    screen.shows("armed").await;
    drop(screen);
    let wait = "while ps | grep -q '[s]leep 1234'; do sleep 0.05; done";
    assert_eq!(Screen::open(&sandbox, wait).await.ends().await.1, 0);
}

#[tokio::test]
async fn the_terminal_belongs_to_the_user_of_the_instance() {
    let sandbox = Sandbox::new();
    let root = rootfs(sandbox.root.path());
    let user = if is_root() { "\nuser: web" } else { "" };
    sandbox.run(&(shell_in(&root, FOREVER) + user)).await;
    let (text, code) = Screen::open(&sandbox, "tty; echo written >\"$(tty)\"; id -u").await.ends().await;
    let uid = if is_root() { "33" } else { "0" };
    assert_eq!((text, code), (format!("/dev/pts/0\r\nwritten\r\n{uid}\r\n"), 0));
}

#[tokio::test]
async fn a_command_that_can_not_be_run_is_refused_on_a_terminal_too() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell(FOREVER)).await.as_ref();
    for (word, kind) in [("no-such-program", ErrorKind::CommandNotFound), ("/etc", ErrorKind::CommandNotExecutable)] {
        let request =
            ExecRequest { command: vec![word.to_owned()], tty: Some((80, 24)), stdin: true, ..ExecRequest::default() };
        let error = Exec::exec(&sandbox.runtime, &instance, &request).await.err().expect("no session");
        assert_eq!(error.kind, kind, "{error}");
    }
}

#[tokio::test]
async fn without_namespaces_the_terminal_is_the_machines() {
    if !without_namespaces("terminal::without_namespaces_the_terminal_is_the_machines") {
        return;
    }
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell(FOREVER)).await;
    assert!(instance.conditions.iter().any(|one| one.reason == "NotIsolated"), "{:?}", instance.conditions);
    let (text, code) = Screen::open(&sandbox, "tty && stty size").await.ends().await;
    assert!(text.starts_with("/dev/pts/") && text.ends_with("\r\n30 100\r\n"), "{text:?}");
    assert_eq!(code, 0);
}
