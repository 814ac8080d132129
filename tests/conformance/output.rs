//! Promises about logs, the environment, and commands inside instances.

use evenkeel::runtime::io::{
    ExecInput, ExecOutput, ExecRequest, ExecSession, LONGEST_LINE, LogLine, LogOptions, OutputStream,
};
use evenkeel::runtime::{ErrorKind, Exec, Logs, Runtime};
use evenkeel::state::InstanceRef;
use futures::StreamExt;
use tokio::time::timeout;

use crate::harness::{BYTES, Harness, Inside, Program, create, ended, id, request, run, skipped};
use crate::life::unknown;

/// Bytes of a line that comes in several pieces, on every runtime.
const LONG: usize = 3 * LONGEST_LINE + 1000;

/// Every line of an instance's output.
pub async fn lines(runtime: &dyn Runtime, instance: &InstanceRef, options: &LogOptions) -> Vec<LogLine> {
    let logs = runtime.logs().expect("logs");
    let stream = logs.logs(instance, options).await.expect("logs");
    stream.map(|line| line.expect("a line")).collect().await
}

fn logs<'a, H: Harness>(_: &H, runtime: &'a dyn Runtime) -> Option<&'a dyn Logs> {
    let logs = runtime.logs();
    if logs.is_none() {
        skipped::<H>("the runtime reads no logs");
    }
    logs
}

fn exec<'a, H: Harness>(_: &H, runtime: &'a dyn Runtime) -> Option<&'a dyn Exec> {
    let exec = runtime.exec();
    if exec.is_none() {
        skipped::<H>("the runtime runs no commands inside");
    }
    exec
}

fn texts(lines: &[LogLine]) -> Vec<(OutputStream, &str)> {
    lines.iter().map(|line| (line.stream, std::str::from_utf8(line.text.as_bytes()).expect("text"))).collect()
}

/// The bytes of lines of one stream, with their line breaks.
fn bytes(lines: &[LogLine]) -> Vec<u8> {
    let of = |line: &LogLine| [line.text.as_bytes(), if line.goes_on { b"" } else { b"\n" }].concat();
    lines.iter().flat_map(of).collect()
}

pub async fn logs_of_ended_in_order<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    if logs(harness, &*runtime).is_none() {
        return;
    }
    let started = run(harness, &*runtime, id("job", 0), &Program::Prints).await;
    let exit = ended(harness, &*runtime, &started.id).await;
    let got = lines(&*runtime, &started.as_ref(), &LogOptions::default()).await;
    let want = [(OutputStream::Stdout, "out 1"), (OutputStream::Stderr, "err 1"), (OutputStream::Stdout, "out 2")];
    assert_eq!(texts(&got), want);
    assert!(got.windows(2).all(|pair| pair[0].at <= pair[1].at), "{got:?}");
    // Some engines note a start when it is over, and some give lines whole seconds.
    let earliest = exit.started_at.expect("it ran") - chrono::Duration::seconds(1);
    assert!(got.iter().all(|line| earliest <= line.at), "{got:?} before {earliest}");
}

pub async fn logs_tail<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    if logs(harness, &*runtime).is_none() {
        return;
    }
    let started = run(harness, &*runtime, id("job", 0), &Program::Prints).await;
    ended(harness, &*runtime, &started.id).await;
    for (tail, want) in [(0, 0), (1, 1), (2, 2), (10, 3)] {
        let got = lines(&*runtime, &started.as_ref(), &LogOptions { tail: Some(tail), ..Default::default() }).await;
        assert_eq!(got.len(), want, "the last {tail}: {got:?}");
        assert!(got.last().is_none_or(|line| line.text.as_bytes() == b"out 2"), "the last {tail}: {got:?}");
    }
}

pub async fn logs_of_a_long_line_have_every_byte<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    if logs(harness, &*runtime).is_none() {
        return;
    }
    let started = run(harness, &*runtime, id("job", 0), &Program::PrintsLong(LONG)).await;
    ended(harness, &*runtime, &started.id).await;
    for follow in [false, true] {
        let options = LogOptions { follow, ..Default::default() };
        let got = timeout(harness.patience(), lines(&*runtime, &started.as_ref(), &options)).await.expect("an end");
        let shape: Vec<_> = got.iter().map(|line| (line.text.as_bytes().len(), line.goes_on)).collect();
        assert!(shape.iter().all(|(length, _)| *length <= LONGEST_LINE), "{shape:?}");
        let want = [&b"x".repeat(LONG)[..], b"\nnext\n"].concat();
        assert!(bytes(&got) == want, "{} bytes in {shape:?}", bytes(&got).len());
    }
}

pub async fn logs_are_the_bytes_that_were_written<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    if logs(harness, &*runtime).is_none() {
        return;
    }
    let started = run(harness, &*runtime, id("job", 0), &Program::PrintsBytes).await;
    ended(harness, &*runtime, &started.id).await;
    let got = lines(&*runtime, &started.as_ref(), &LogOptions::default()).await;
    let kept = match harness.abilities().keeps_bytes {
        true => BYTES.to_vec(),
        false => String::from_utf8_lossy(BYTES).into_owned().into_bytes(),
    };
    assert_eq!(bytes(&got), [&kept[..], b"\n"].concat(), "{got:?}");
}

pub async fn logs_follow_until_the_end<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    if logs(harness, &*runtime).is_none() {
        return;
    }
    let started = run(harness, &*runtime, id("job", 0), &Program::PrintsSlowly).await;
    let follow = LogOptions { follow: true, ..Default::default() };
    let followed = started.as_ref();
    let got = timeout(harness.patience(), lines(&*runtime, &followed, &follow)).await.expect("an end");
    assert_eq!(texts(&got), [(OutputStream::Stdout, "first"), (OutputStream::Stdout, "second")]);
    ended(harness, &*runtime, &started.id).await;
    let after = timeout(harness.patience(), lines(&*runtime, &followed, &follow)).await.expect("an end");
    assert_eq!(after, got, "following what ended gives what there is");
}

pub async fn logs_follow_stops_when_dropped<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let Some(logs) = logs(harness, &*runtime) else { return };
    let started = run(harness, &*runtime, id("web", 0), &Program::Polite).await;
    let follow = LogOptions { follow: true, ..Default::default() };
    let mut stream = logs.logs(&started.as_ref(), &follow).await.expect("logs");
    let line = timeout(harness.patience(), stream.next()).await.expect("in time").expect("a line").expect("a line");
    assert_eq!(line.text.as_bytes(), b"armed");
    drop(stream);
    runtime.remove(&started.as_ref()).await.expect("remove while it was followed");
}

pub async fn logs_of_unknown_is_not_found<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let Some(logs) = logs(harness, &*runtime) else { return };
    let error = logs.logs(&unknown(runtime.kind(), harness), &LogOptions::default()).await.err().expect("no logs");
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
}

pub async fn environment_reaches_the_process<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    if logs(harness, &*runtime).is_none() {
        return;
    }
    let mut wanted = request(harness, id("job", 0), &Program::PrintsEnv("GREETING".to_owned()));
    let value = "hello = 'you' \"and\" $HOME";
    wanted.env.insert("GREETING".to_owned(), value.to_owned());
    runtime.ensure_image(&wanted.spec.image, &|_| {}).await.expect("the image");
    let created = runtime.create(&wanted).await.expect("create");
    runtime.start(&created.as_ref()).await.expect("start");
    ended(harness, &*runtime, &created.id).await;
    let got = lines(&*runtime, &created.as_ref(), &LogOptions::default()).await;
    assert_eq!(texts(&got), [(OutputStream::Stdout, value)]);
}

/// What a command inside wrote, and its code. There is exactly one exit, and it comes last.
async fn outcome<H: Harness>(harness: &H, session: ExecSession) -> (String, String, i32) {
    let ExecSession { input, output, killer: _ } = session;
    drop(input);
    let items: Vec<_> = timeout(harness.patience(), output.collect()).await.expect("an end");
    let (mut out, mut err, mut codes) = (vec![], vec![], vec![]);
    for item in items {
        assert!(codes.is_empty(), "nothing comes after the exit");
        match item.expect("output") {
            ExecOutput::Stdout(bytes) => out.extend_from_slice(&bytes),
            ExecOutput::Stderr(bytes) => err.extend_from_slice(&bytes),
            ExecOutput::Exit(code) => codes.push(code),
        }
    }
    assert_eq!(codes.len(), 1, "one exit");
    (String::from_utf8(out).expect("text"), String::from_utf8(err).expect("text"), codes[0])
}

pub async fn exec_tells_code_and_output<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let Some(exec) = exec(harness, &*runtime) else { return };
    let running = run(harness, &*runtime, id("web", 0), &Program::Polite).await;
    for code in [0, 7] {
        let command = harness.inside(&Inside::Prints(code));
        let session = exec.exec(&running.as_ref(), &ExecRequest { command, ..Default::default() }).await.expect("exec");
        assert_eq!(outcome(harness, session).await, ("out\n".to_owned(), "err\n".to_owned(), code));
    }
}

pub async fn exec_reads_input<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let Some(exec) = exec(harness, &*runtime) else { return };
    let running = run(harness, &*runtime, id("web", 0), &Program::Polite).await;
    let command = harness.inside(&Inside::Copies);
    let request = ExecRequest { command, stdin: true, ..Default::default() };
    let session = exec.exec(&running.as_ref(), &request).await.expect("exec");
    for text in ["one\n", "two\n"] {
        session.input.send(ExecInput::Data(text.into())).await.expect("it reads");
    }
    assert_eq!(outcome(harness, session).await, ("one\ntwo\n".to_owned(), String::new(), 0));
}

pub async fn exec_sees_environment<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let Some(exec) = exec(harness, &*runtime) else { return };
    let mut wanted = request(harness, id("web", 0), &Program::Polite);
    wanted.env.insert("FROM_SPEC".to_owned(), "spec".to_owned());
    runtime.ensure_image(&wanted.spec.image, &|_| {}).await.expect("the image");
    let created = runtime.create(&wanted).await.expect("create");
    runtime.start(&created.as_ref()).await.expect("start");
    for (name, value) in [("FROM_SPEC", "spec"), ("FROM_EXEC", "exec")] {
        let command = harness.inside(&Inside::PrintsEnv(name.to_owned()));
        let env = vec![("FROM_EXEC".to_owned(), "exec".to_owned())];
        let request = ExecRequest { command, env, ..Default::default() };
        let session = exec.exec(&created.as_ref(), &request).await.expect("exec");
        assert_eq!(outcome(harness, session).await, (format!("{value}\n"), String::new(), 0));
    }
}

/// The kind of error that a command inside comes to, whether it is told at once or as the end of its output.
async fn refusal<H: Harness>(
    harness: &H,
    exec: &dyn Exec,
    instance: &InstanceRef,
    request: ExecRequest,
) -> Option<ErrorKind> {
    let session = match timeout(harness.patience(), exec.exec(instance, &request)).await.expect("an answer") {
        Err(error) => return Some(error.kind),
        Ok(session) => session,
    };
    let items: Vec<_> = timeout(harness.patience(), session.output.collect()).await.expect("an end");
    items.into_iter().last().expect("an exit or an error").err().map(|error| error.kind)
}

fn command(command: Vec<String>) -> ExecRequest {
    ExecRequest { command, ..Default::default() }
}

pub async fn exec_of_empty_is_rejected<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let Some(exec) = exec(harness, &*runtime) else { return };
    let running = run(harness, &*runtime, id("web", 0), &Program::Polite).await;
    assert_eq!(refusal(harness, exec, &running.as_ref(), command(vec![])).await, Some(ErrorKind::Rejected));
}

pub async fn exec_tells_missing_from_unexecutable<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let Some(exec) = exec(harness, &*runtime) else { return };
    let running = run(harness, &*runtime, id("web", 0), &Program::Polite).await;
    for (what, kind) in [
        (Inside::Missing, Some(ErrorKind::CommandNotFound)),
        (Inside::Unexecutable, Some(ErrorKind::CommandNotExecutable)),
        // These codes are the command's own as well.
        (Inside::Prints(126), None),
        (Inside::Prints(127), None),
    ] {
        let words = harness.inside(&what);
        assert_eq!(refusal(harness, exec, &running.as_ref(), command(words.clone())).await, kind, "{what:?}");
        let on_terminal = ExecRequest { command: words, tty: Some((80, 24)), ..Default::default() };
        assert_eq!(refusal(harness, exec, &running.as_ref(), on_terminal).await, kind, "{what:?} on a terminal");
    }
}

pub async fn exec_of_not_running_is_rejected<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let Some(exec) = exec(harness, &*runtime) else { return };
    let request = command(harness.inside(&Inside::Prints(0)));
    let created = create(harness, &*runtime, id("web", 0), &Program::Polite).await;
    assert_eq!(refusal(harness, exec, &created.as_ref(), request.clone()).await, Some(ErrorKind::Rejected));
    let exited = run(harness, &*runtime, id("web", 1), &Program::Exit(0)).await;
    ended(harness, &*runtime, &exited.id).await;
    assert_eq!(refusal(harness, exec, &exited.as_ref(), request).await, Some(ErrorKind::Rejected));
}

pub async fn exec_of_unknown_is_not_found<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let Some(exec) = exec(harness, &*runtime) else { return };
    let request = command(harness.inside(&Inside::Prints(0)));
    let unknown = unknown(runtime.kind(), harness);
    assert_eq!(refusal(harness, exec, &unknown, request).await, Some(ErrorKind::NotFound));
}
