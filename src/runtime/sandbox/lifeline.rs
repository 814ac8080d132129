//! A command lives no longer than the controller that wants it: the helper's first process stays outside of the instance,
//! watches both, and kills the command with all that it started when the controller is gone, however that ended. A death
//! signal of the kernel would reach a shell alone, and not what it waits for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};

use super::supervise::code_of;
use crate::runtime::process_tree::ProcessTree;

/// How the watch over a child ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The child ended with this code.
    Ended(i32),
    /// The controller is gone, and the child was killed with all that it started.
    Abandoned,
}

/// Waits for the end of a child, or for that of the controller, which has the other end of the pipe `answer` open.
pub fn watch(child: Pid, answer: BorrowedFd<'_>) -> Outcome {
    if ends_first(child, answer).unwrap_or(false) {
        return Outcome::Ended(reap(child));
    }
    // What is frozen, or waits for a disk, ends when it goes on; nobody is there to be told.
    let _ = ProcessTree::of(child.as_raw_nonzero().get()).map(ProcessTree::kill);
    Outcome::Abandoned
}

/// Whether the child ends before the pipe has no reader any more.
fn ends_first(child: Pid, answer: BorrowedFd<'_>) -> io::Result<bool> {
    let child = pidfd_open(child, PidfdFlags::empty())?;
    let child = child.as_fd();
    // A pipe without a reader is told as an error, which needs not be asked for (poll(2)).
    let mut fds = [PollFd::new(&child, PollFlags::IN), PollFd::new(&answer, PollFlags::empty())];
    retry_on_intr(|| poll(&mut fds, None))?;
    Ok(!fds[0].revents().is_empty())
}

/// How a child ended.
pub fn reap(child: Pid) -> i32 {
    match retry_on_intr(|| waitpid(Some(child), WaitOptions::empty())) {
        Ok(Some((_, status))) => code_of(status.as_raw()),
        Ok(None) | Err(_) => 1,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;
    use crate::runtime::sandbox::process::ProcessKey;

    #[test]
    fn the_code_of_the_child_is_told() {
        let (_reader, writer) = io::pipe().unwrap();
        let mut child = Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        assert_eq!(watch(Pid::from_child(&child), writer.as_fd()), Outcome::Ended(7));
        child.wait().unwrap_err();
    }

    #[test]
    fn what_a_child_started_is_killed_with_it_once_nobody_reads() {
        let (reader, writer) = io::pipe().unwrap();
        let script = "sleep 600 & echo $!; setsid sleep 600 & echo $!; echo; wait";
        let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let others =
            lines.take_while(|line| !line.is_empty()).map(|line| ProcessKey::of(line.parse().unwrap()).unwrap());
        let others: Vec<ProcessKey> = others.collect();
        drop(reader);
        assert_eq!((others.len(), watch(Pid::from_child(&child), writer.as_fd())), (2, Outcome::Abandoned));
        assert!(others.iter().all(|process| process.open().unwrap().is_none()));
        assert_eq!(child.wait().unwrap().code(), None, "it was killed");
    }
}
