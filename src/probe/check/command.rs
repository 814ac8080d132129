//! A shell command inside the instance ends with 0.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;

use super::failed;
use crate::probe::schedule::Outcome;
use crate::runtime::io::{Exec, ExecOutput, ExecRequest, Kill};
use crate::runtime::{ErrorKind, RuntimeError};
use crate::spec::HumanDuration;
use crate::state::{InstanceRef, last_line};

/// Most bytes of output that are kept, the last ones: its last line is the message.
const KEPT: usize = 4096;

/// Longest time for killing a command: some seconds that an engine is given to start it and some that its processes are
/// given to end, and some calls of an engine.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The command of the last check of one run, until it is known to have ended: no other is started before, so that commands
/// that hang don't pile up inside.
#[derive(Clone, Default)]
pub struct LastCommand {
    running: Arc<Mutex<Option<Arc<dyn Kill>>>>,
}

impl LastCommand {
    fn set(&self, command: Option<Arc<dyn Kill>>) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = command;
    }

    /// Kills it, where it may still run.
    async fn kill(&self) -> Result<(), RuntimeError> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(command) = running else { return Ok(()) };
        let late = |_| RuntimeError::new(ErrorKind::Timeout, "the command of an earlier check was not ended in time");
        tokio::time::timeout(KILL_LIMIT, command.kill()).await.map_err(late)??;
        self.set(None);
        Ok(())
    }
}

/// Makes one check, and kills the command after this time.
pub(super) async fn run(
    exec: &dyn Exec,
    instance: &InstanceRef,
    command: &str,
    last: &LastCommand,
    limit: Duration,
) -> Outcome {
    if let Err(error) = last.kill().await {
        return unended(&error, "no other is started while that of an earlier check runs");
    }
    let late = format!("no answer within {}", HumanDuration(limit));
    match tokio::time::timeout(limit, ended(exec, instance, command, last)).await {
        Ok(outcome) => outcome,
        Err(_) => match last.kill().await {
            Ok(()) => Outcome::Failed(late),
            Err(error) => unended(&error, &late),
        },
    }
}

/// What a command that can't be ended means: it is one that gives no answer, unless nobody tells whether it runs.
fn unended(error: &RuntimeError, what: &str) -> Outcome {
    match error.means_unreachable() {
        true => Outcome::NotMade(error.message.clone()),
        false => Outcome::Failed(format!("{what}: {}", error.message)),
    }
}

/// Runs a command to its end.
async fn ended(exec: &dyn Exec, instance: &InstanceRef, command: &str, last: &LastCommand) -> Outcome {
    let command = ["sh", "-c", command].map(str::to_owned).to_vec();
    let request = ExecRequest { command, ..ExecRequest::default() };
    // Before the start, where the runtime can: a start that takes longer than the check goes on.
    let started = exec.exec_with_killer(instance, &request, &|killer| last.set(Some(killer))).await;
    let mut session = match started {
        Ok(session) => session,
        Err(error) => return failed(&error),
    };
    let mut kept = Vec::new();
    while let Some(output) = session.output.next().await {
        match output {
            Ok(ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes)) => keep(&mut kept, &bytes),
            Ok(ExecOutput::Exit(code)) => {
                last.set(None);
                return if code == 0 { Outcome::Passed } else { Outcome::Failed(message(code, &kept)) };
            }
            Err(error) => return failed(&error),
        }
    }
    Outcome::NotMade("the command's end was not told".to_owned())
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    kept.extend_from_slice(bytes);
    kept.drain(..kept.len().saturating_sub(KEPT));
}

fn message(code: i32, output: &[u8]) -> String {
    match last_line(&String::from_utf8_lossy(output)) {
        Some(line) => format!("exit code {code}: {line}"),
        None => format!("exit code {code}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use async_trait::async_trait;
    use tokio::sync::mpsc;

    use super::*;
    use crate::runtime::io::ExecSession;
    use crate::spec::RuntimeKind;
    use crate::state::InstanceId;

    const LIMIT: Duration = Duration::from_secs(1);

    /// Runs commands that hang.
    #[derive(Default)]
    struct Hangs {
        /// Whether their starts hang too.
        start_hangs: bool,
        started: AtomicU32,
        can_be_killed: Arc<AtomicBool>,
    }

    struct Hanging {
        can_be_killed: Arc<AtomicBool>,
    }

    #[async_trait]
    impl Exec for Hangs {
        async fn exec(&self, _: &InstanceRef, _: &ExecRequest) -> crate::runtime::Result<ExecSession> {
            self.started.fetch_add(1, Ordering::Relaxed);
            let killer = Arc::new(Hanging { can_be_killed: self.can_be_killed.clone() });
            Ok(ExecSession { input: mpsc::channel(1).0, output: futures::stream::pending().boxed(), killer })
        }

        async fn exec_with_killer(
            &self,
            instance: &InstanceRef,
            request: &ExecRequest,
            hand_out: &(dyn Fn(Arc<dyn Kill>) + Send + Sync),
        ) -> crate::runtime::Result<ExecSession> {
            let session = self.exec(instance, request).await?;
            hand_out(session.killer.clone());
            match self.start_hangs {
                true => std::future::pending().await,
                false => Ok(session),
            }
        }
    }

    #[async_trait]
    impl Kill for Hanging {
        async fn kill(&self) -> crate::runtime::Result<()> {
            match self.can_be_killed.load(Ordering::Relaxed) {
                true => Ok(()),
                false => Err(RuntimeError::new(ErrorKind::Failed, "it lives on")),
            }
        }
    }

    fn instance() -> InstanceRef {
        let id = InstanceId {
            deployment: "demo".to_owned(),
            service: "web".to_owned(),
            slot: 0,
            revision: "v1-0123456789abcdef".parse().unwrap(),
            attempt: 0,
            run: None,
        };
        InstanceRef { id, runtime: RuntimeKind::Sim, runtime_id: "one".to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn no_command_is_started_while_the_one_before_lives_on() {
        one_runs_at_a_time(Hangs::default()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn no_command_is_started_while_the_one_before_may_still_be_started() {
        one_runs_at_a_time(Hangs { start_hangs: true, ..Hangs::default() }).await;
    }

    async fn one_runs_at_a_time(runtime: Hangs) {
        let (last, instance) = (LastCommand::default(), instance());
        let check = async || run(&runtime, &instance, "sleep 777", &last, LIMIT).await;
        let failed = |what: &str| Outcome::Failed(what.to_owned());
        assert_eq!(check().await, failed("no answer within 1s: it lives on"));
        let waits = failed("no other is started while that of an earlier check runs: it lives on");
        assert_eq!((check().await, check().await), (waits.clone(), waits));
        assert_eq!(runtime.started.load(Ordering::Relaxed), 1);
        runtime.can_be_killed.store(true, Ordering::Relaxed);
        assert_eq!(check().await, failed("no answer within 1s"));
        assert_eq!(runtime.started.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_command_of_a_check_that_was_given_up_is_killed_before_the_next() {
        let (runtime, last, instance) = (Hangs::default(), LastCommand::default(), instance());
        let given_up = tokio::time::timeout(LIMIT / 2, run(&runtime, &instance, "sleep 777", &last, LIMIT)).await;
        given_up.unwrap_err();
        let outcome = run(&runtime, &instance, "sleep 777", &last, LIMIT).await;
        assert!(matches!(outcome, Outcome::Failed(why) if why.ends_with("it lives on")));
        assert_eq!(runtime.started.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn the_last_line_is_the_message() {
        assert_eq!(message(3, b""), "exit code 3");
        assert_eq!(message(1, b"trying\nno such file\n"), "exit code 1: no such file");
        let mut kept = Vec::new();
        for _ in 0..1000 {
            keep(&mut kept, b"0123456789");
        }
        keep(&mut kept, b"\nthe end");
        assert_eq!((kept.len(), message(1, &kept).as_str()), (KEPT, "exit code 1: the end"));
    }
}
