//! A shell command inside the instance ends with 0.

use futures::StreamExt;

use super::failed;
use crate::probe::schedule::Outcome;
use crate::runtime::Runtime;
use crate::runtime::io::{ExecOutput, ExecRequest};
use crate::state::{InstanceRef, last_line};

/// Most bytes of output that are kept, the last ones: its last line is the message.
const KEPT: usize = 4096;

pub(super) async fn run(runtime: &dyn Runtime, instance: &InstanceRef, command: &str) -> Outcome {
    let Some(exec) = runtime.exec() else {
        return Outcome::NotMade(format!("{} runs no commands inside instances", runtime.kind()));
    };
    let command = ["sh", "-c", command].map(str::to_owned).to_vec();
    // Dropping it, as at the end of the check's time, ends the command.
    let mut session = match exec.exec(instance, &ExecRequest { command, ..ExecRequest::default() }).await {
        Ok(session) => session,
        Err(error) => return failed(&error),
    };
    let mut kept = Vec::new();
    while let Some(output) = session.output.next().await {
        match output {
            Ok(ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes)) => keep(&mut kept, &bytes),
            Ok(ExecOutput::Exit(0)) => return Outcome::Passed,
            Ok(ExecOutput::Exit(code)) => return Outcome::Failed(message(code, &kept)),
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
    use super::*;

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
