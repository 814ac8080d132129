//! Logs and further commands, on both engines.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use evenkeel::runtime::io::{
    ExecInput, ExecOutput, ExecRequest, ExecSession, Kill, LONGEST_LINE, LogLine, LogOptions, OutputStream,
};
use evenkeel::runtime::{ErrorKind, Runtime};
use evenkeel::state::{Instance, Phase};
use futures::{StreamExt, TryStreamExt};

use crate::harness::{Bench, PATIENCE, stop};

const SLEEPS: &str = "command: {args: [sleep, '3600']}";

async fn logs(bench: &Bench, instance: &Instance, options: LogOptions) -> Vec<LogLine> {
    let lines = bench.runtime.logs().unwrap().logs(&instance.as_ref(), &options).await.unwrap();
    tokio::time::timeout(PATIENCE, lines.try_collect()).await.expect("the logs end").unwrap()
}

fn texts(lines: &[LogLine]) -> Vec<&str> {
    lines.iter().map(|line| std::str::from_utf8(line.text.as_bytes()).unwrap()).collect()
}

async fn lines_are_read_with_stream_and_time(bench: &Bench) {
    let script = r#"command: {args: [sh, -c, 'echo one; sleep 0.3; echo two >&2; sleep 0.3; echo three; printf end']}"#;
    let running = bench.run(&bench.request("job", 0, script)).await;
    // Following ends when the instance does.
    let followed = logs(bench, &running, LogOptions { follow: true, ..LogOptions::default() }).await;
    assert_eq!(texts(&followed), ["one", "two", "three", "end"]);
    let streams: Vec<_> = followed.iter().map(|line| line.stream).collect();
    assert_eq!(streams, [OutputStream::Stdout, OutputStream::Stderr, OutputStream::Stdout, OutputStream::Stdout]);
    assert!(followed.is_sorted_by_key(|line| line.at), "{followed:?}");

    // Only what comes: nothing, once it has ended.
    let nothing = logs(bench, &running, LogOptions { tail: Some(0), follow: true, since: None }).await;
    assert_eq!(texts(&nothing), [""; 0]);

    // Podman takes a line without its end for a part of the one before.
    let tail = logs(bench, &running, LogOptions { tail: Some(2), ..LogOptions::default() }).await;
    assert!(tail.len() == 2 && tail[1].text.as_bytes().ends_with(b"end"), "{tail:?}");
    // Podman's times have whole seconds.
    let since = followed[2].at;
    let later = logs(bench, &running, LogOptions { since: Some(since), ..LogOptions::default() }).await;
    assert_eq!(later, followed.into_iter().filter(|line| line.at >= since).collect::<Vec<_>>());
}

/// Engines keep a long line in records, each with a time of its own, which is no part of it. Docker's have 16 KiB; those of
/// Podman have any length, so that nobody can tell where they begin.
async fn long_lines_of_a_terminal_are_whole_and_what_never_ends_comes_in_pieces(bench: &Bench) {
    let script = r#"
tty: true
command: {args: [sh, -c, 'head -c 40000 /dev/zero | tr "\0" x; echo; echo next; head -c 200000 /dev/zero | tr "\0" y; echo']}
"#;
    let running = bench.run(&bench.request("job", 0, script)).await;
    for follow in [true, false] {
        let lines = logs(bench, &running, LogOptions { follow, ..LogOptions::default() }).await;
        if bench.is_podman() {
            assert!(
                lines.len() > 3 && lines.iter().all(|line| line.text.as_bytes().len() <= LONGEST_LINE),
                "{}",
                lines.len()
            );
            continue;
        }
        let shape: Vec<(usize, bool)> = lines.iter().map(|line| (line.text.as_bytes().len(), line.goes_on)).collect();
        let rest = 200_000 - 3 * LONGEST_LINE;
        let pieces = [(LONGEST_LINE, true), (LONGEST_LINE, true), (LONGEST_LINE, true), (rest, false)];
        assert_eq!(shape, [&[(40_000, false), (4, false)][..], &pieces].concat(), "{follow}");
        let text = texts(&lines).concat();
        assert!(text == format!("{}next{}", "x".repeat(40_000), "y".repeat(200_000)), "{follow}");
    }
}

async fn the_last_line_is_read_though_its_container_is_removed_at_once(bench: &Bench) {
    let counts =
        r#"command: {args: [sh, -c, 'trap "echo end; exit 0" TERM; echo begin; while :; do sleep 0.05; done']}"#;
    let follow = LogOptions { follow: true, ..LogOptions::default() };
    let (mut running, mut readers) = (Vec::new(), Vec::new());
    for slot in 0..6 {
        let yaml = format!("{counts}\nnetwork_mode: none\ninit_container: false");
        let instance = bench.run(&bench.request("web", slot, &yaml)).await;
        let mut lines = bench.runtime.logs().unwrap().logs(&instance.as_ref(), &follow).await.unwrap();
        assert_eq!(lines.next().await.unwrap().unwrap().text.as_bytes(), b"begin");
        running.push(instance.as_ref());
        readers.push(tokio::spawn(async move { lines.map_ok(|line| line.text).collect::<Vec<_>>().await }));
    }
    let ends = running.iter().map(async |instance| {
        bench.runtime.stop(instance, &stop(Duration::from_secs(30))).await.unwrap();
        bench.runtime.await_readers(instance).await;
        bench.runtime.remove(instance).await.unwrap();
    });
    futures::future::join_all(ends).await;
    for reader in readers {
        let rest = tokio::time::timeout(PATIENCE, reader).await.expect("the logs end").unwrap();
        assert!(matches!(rest.as_slice(), [Ok(text)] if text.as_bytes() == b"end"), "{rest:?}");
    }
}

async fn a_long_line_comes_whole(bench: &Bench) {
    let script = r#"command: {args: [sh, -c, 'head -c 40000 /dev/zero | tr "\\0" x; echo; echo short']}"#;
    let running = bench.run(&bench.request("job", 0, script)).await;
    let lines = logs(bench, &running, LogOptions { follow: true, ..LogOptions::default() }).await;
    assert_eq!(texts(&lines).iter().map(|text| text.len()).collect::<Vec<_>>(), [40_000, 5]);
    assert!(texts(&lines)[0].bytes().all(|byte| byte == b'x'), "{}", &texts(&lines)[0][..80]);
}

/// Docker ends a stream that follows before the last record of a line that has not ended.
async fn a_long_last_line_without_its_end_is_whole_where_it_was_followed(bench: &Bench) {
    let script = r#"command: {args: [sh, -c, 'echo begin; sleep 1; head -c 100000 /dev/zero | tr "\\0" x']}"#;
    let running = bench.run(&bench.request("job", 0, script)).await;
    let lines = logs(bench, &running, LogOptions { follow: true, ..LogOptions::default() }).await;
    let shape: Vec<_> = lines.iter().map(|line| (line.text.as_bytes().len(), line.goes_on)).collect();
    assert_eq!(shape, [(5, false), (LONGEST_LINE, true), (100_000 - LONGEST_LINE, false)]);
}

async fn the_logs_of_what_is_gone_are_not_found(bench: &Bench) {
    let created = bench.runtime.create(&bench.request("web", 0, SLEEPS)).await.unwrap();
    bench.runtime.remove(&created.as_ref()).await.unwrap();
    let answer = bench.runtime.logs().unwrap().logs(&created.as_ref(), &LogOptions::default()).await;
    assert_eq!(answer.err().unwrap().kind, ErrorKind::NotFound);
}

async fn exec(bench: &Bench, instance: &Instance, request: ExecRequest) -> ExecSession {
    bench.runtime.exec().unwrap().exec(&instance.as_ref(), &request).await.unwrap()
}

fn sh(script: &str) -> ExecRequest {
    ExecRequest { command: ["sh", "-c", script].map(str::to_owned).to_vec(), ..ExecRequest::default() }
}

/// Standard output, standard error and the exit code, which must be last and alone.
async fn finish(session: ExecSession) -> (String, String, i32) {
    let ExecSession { input: _input, output, killer: _ } = session;
    let mut output: Vec<_> =
        tokio::time::timeout(PATIENCE, output.try_collect()).await.expect("the command ends").unwrap();
    let Some(ExecOutput::Exit(code)) = output.pop() else { panic!("no exit code at the end: {output:?}") };
    let (mut stdout, mut stderr) = (String::new(), String::new());
    for piece in &output {
        match piece {
            ExecOutput::Stdout(bytes) => stdout.push_str(std::str::from_utf8(bytes).unwrap()),
            ExecOutput::Stderr(bytes) => stderr.push_str(std::str::from_utf8(bytes).unwrap()),
            ExecOutput::Exit(_) => panic!("two exit codes: {output:?}"),
        }
    }
    (stdout, stderr, code)
}

async fn a_command_gives_output_and_code(bench: &Bench) {
    let running = bench.run(&bench.request("web", 0, SLEEPS)).await;
    let request = ExecRequest {
        workdir: Some("/tmp".to_owned()),
        env: vec![("WORD".to_owned(), "hello".to_owned())],
        ..sh("echo $WORD; pwd >&2; exit 7")
    };
    let found = finish(exec(bench, &running, request).await).await;
    assert_eq!(found, ("hello\n".to_owned(), "/tmp\n".to_owned(), 7));
    let found = finish(exec(bench, &running, sh("no-such-program")).await).await;
    assert_eq!(found.2, 127);
}

async fn standard_input_reaches_the_command(bench: &Bench) {
    let running = bench.run(&bench.request("web", 0, SLEEPS)).await;
    let request = ExecRequest { stdin: true, ..sh("wc -c") };
    let ExecSession { input, output, killer } = exec(bench, &running, request).await;
    for _ in 0..3 {
        input.send(ExecInput::Data(Bytes::from_static(&[b'x'; 1000]))).await.unwrap();
    }
    drop(input);
    let (sender, _) = tokio::sync::mpsc::channel(1);
    let found = finish(ExecSession { input: sender, output, killer }).await;
    assert_eq!((found.0.trim(), found.2), ("3000", 0));
}

async fn a_terminal_has_the_size_that_was_asked_for(bench: &Bench) {
    let running = bench.run(&bench.request("web", 0, SLEEPS)).await;
    let request = ExecRequest { tty: Some((91, 33)), stdin: true, ..sh("read line; stty size; read line; stty size") };
    let ExecSession { input, mut output, killer } = exec(bench, &running, request).await;
    let mut seen = String::new();
    for (send, expect) in [(None, "33 91"), (Some(ExecInput::Resize(120, 40)), "40 120")] {
        if let Some(resize) = send {
            input.send(resize).await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        input.send(ExecInput::Data(Bytes::from_static(b"\n"))).await.unwrap();
        while !seen.contains(expect) {
            match tokio::time::timeout(PATIENCE, output.next()).await.expect("output arrives") {
                Some(Ok(ExecOutput::Stdout(bytes))) => seen.push_str(std::str::from_utf8(&bytes).unwrap()),
                other => panic!("{other:?} after {seen:?}"),
            }
        }
    }
    assert_eq!(finish(ExecSession { input, output, killer }).await.2, 0);
}

/// The kind of error that a command comes to, at once or as the end of its output.
async fn refusal(bench: &Bench, instance: &Instance, request: ExecRequest) -> Option<ErrorKind> {
    match bench.runtime.exec().unwrap().exec(&instance.as_ref(), &request).await {
        Err(error) => Some(error.kind),
        Ok(session) => session.output.collect::<Vec<_>>().await.pop()?.err().map(|error| error.kind),
    }
}

fn words(words: &[&str]) -> ExecRequest {
    ExecRequest { command: words.iter().map(|word| (*word).to_owned()).collect(), ..ExecRequest::default() }
}

async fn a_command_that_cannot_be_run_is_refused(bench: &Bench) {
    let running = bench.run(&bench.request("web", 0, SLEEPS)).await;
    let make = "echo 'echo hi' >/tmp/text; echo '#!/no/such' >/tmp/lost; chmod +x /tmp/text /tmp/lost";
    finish(exec(bench, &running, sh(make)).await).await;
    for (request, kind) in [
        (words(&[]), ErrorKind::Rejected),
        (words(&["no-such-program"]), ErrorKind::CommandNotFound),
        (words(&["/etc/passwd/program"]), ErrorKind::CommandNotFound),
        (words(&["/tmp"]), ErrorKind::CommandNotExecutable),
        (words(&["/tmp/text"]), ErrorKind::CommandNotExecutable),
        (words(&["/tmp/lost"]), ErrorKind::CommandNotFound),
        (ExecRequest { workdir: Some("/no/such".to_owned()), ..words(&["true"]) }, ErrorKind::Rejected),
    ] {
        assert_eq!(refusal(bench, &running, request.clone()).await, Some(kind), "{request:?}");
        let on_terminal = ExecRequest { tty: Some((80, 24)), ..request.clone() };
        assert_eq!(refusal(bench, &running, on_terminal).await, Some(kind), "{request:?} on a terminal");
    }
    bench.runtime.stop(&running.as_ref(), &stop(Duration::ZERO)).await.unwrap();
    assert_eq!(refusal(bench, &running, words(&["true"])).await, Some(ErrorKind::Rejected));
    bench.runtime.remove(&running.as_ref()).await.unwrap();
    assert_eq!(refusal(bench, &running, words(&["true"])).await, Some(ErrorKind::NotFound));
}

async fn a_command_ends_when_its_reader_goes(bench: &Bench) {
    let running = bench.run(&bench.request("web", 0, SLEEPS)).await;
    let session = exec(bench, &running, sh("exec sleep 4321")).await;
    let sleeps = async || finish(exec(bench, &running, sh("ps | grep -c '[s]leep 4321'")).await).await.0.trim() == "1";
    assert!(sleeps().await);
    drop(session);
    let wait = async {
        while sleeps().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the command ends");
    let listing = bench.runtime.list().await.unwrap();
    assert!(matches!(listing.instances[0].phase, Phase::Running { .. }), "{listing:?}");
}

async fn a_command_is_killed_with_what_it_started(bench: &Bench) {
    let running = bench.run(&bench.request("web", 0, SLEEPS)).await;
    // A child that is waited for, and one that lost its parent.
    let mut session = exec(bench, &running, sh("(sleep 4321 & echo); sleep 4321; echo done")).await;
    tokio::time::timeout(PATIENCE, session.output.next()).await.expect("it runs").unwrap().unwrap();
    let killer = session.killer.clone();
    drop(session);
    killer.kill().await.unwrap();
    let left = finish(exec(bench, &running, sh("ps | grep -c '[s]leep 4321'")).await).await;
    assert_eq!(left.0.trim(), "0");
    killer.kill().await.expect("what is gone is success");
    let listing = bench.runtime.list().await.unwrap();
    assert!(matches!(listing.instances[0].phase, Phase::Running { .. }), "{listing:?}");
}

async fn a_command_that_is_given_up_before_its_start_is_killed_once_it_has_started(bench: &Bench) {
    let running = bench.run(&bench.request("web", 0, SLEEPS)).await;
    let instance = running.as_ref();
    for seconds in ["4321", "4322", "4323"] {
        let (sender, mut handed_out) = tokio::sync::watch::channel::<Option<Arc<dyn Kill>>>(None);
        let hand_out = |killer| drop(sender.send_replace(Some(killer)));
        let request = words(&["sleep", seconds]);
        tokio::select! {
            biased;
            killer = handed_out.wait_for(Option::is_some) => drop(killer),
            _ = bench.runtime.exec().unwrap().exec_with_killer(&instance, &request, &hand_out) => panic!("it is given up"),
        }
        let killer = handed_out.borrow().clone().unwrap();
        killer.kill().await.unwrap();
    }
    let left = finish(exec(bench, &running, sh("ps | grep -c '[s]leep 432'")).await).await;
    assert_eq!(left.0.trim(), "0");
}

crate::on_both_engines!(
    lines_are_read_with_stream_and_time,
    long_lines_of_a_terminal_are_whole_and_what_never_ends_comes_in_pieces,
    the_last_line_is_read_though_its_container_is_removed_at_once,
    a_long_line_comes_whole,
    a_long_last_line_without_its_end_is_whole_where_it_was_followed,
    the_logs_of_what_is_gone_are_not_found,
    a_command_gives_output_and_code,
    standard_input_reaches_the_command,
    a_terminal_has_the_size_that_was_asked_for,
    a_command_that_cannot_be_run_is_refused,
    a_command_ends_when_its_reader_goes,
    a_command_is_killed_with_what_it_started,
    a_command_that_is_given_up_before_its_start_is_killed_once_it_has_started,
);
