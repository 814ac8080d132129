//! A command lives no longer than the controller that wants it: the helper's first process stays outside of the instance,
//! watches both, and kills the command with all that it started when the controller is gone, however that ended. A death
//! signal of the kernel would reach a shell alone, and not what it waits for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, wait, waitpid};

use super::init::next_ended;
use super::supervise::code_of;
use super::sys;
use crate::runtime::process_tree::ProcessTree;

/// How the watch over a child ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The child ended with this code.
    Ended(i32),
    /// The controller is gone, and the child was killed with all that it started.
    Abandoned,
}

/// Waits for the end of a child, or for that of the controller, which has the other end of the pipe `answer` open. Reaps
/// whatever else becomes a child of this process when `signals`, a descriptor of [`sys::take_signals`], tells of one.
pub fn watch(child: Pid, answer: BorrowedFd<'_>, signals: BorrowedFd<'_>) -> Outcome {
    if let Some(code) = code_of_first(child, answer, signals).unwrap_or_default() {
        return Outcome::Ended(code);
    }
    // What is frozen, or waits for a disk, ends when it goes on; nobody is there to be told.
    let _ = ProcessTree::of(child.as_raw_nonzero().get()).map(ProcessTree::kill);
    Outcome::Abandoned
}

/// The code of the child where it ends before the pipe has no reader any more.
fn code_of_first(child: Pid, answer: BorrowedFd<'_>, signals: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let process = pidfd_open(child, PidfdFlags::empty())?;
    let process = process.as_fd();
    loop {
        // A pipe without a reader is told as an error, which needs not be asked for (poll(2)).
        let mut fds = [
            PollFd::new(&process, PollFlags::IN),
            PollFd::new(&answer, PollFlags::empty()),
            PollFd::new(&signals, PollFlags::IN),
        ];
        retry_on_intr(|| poll(&mut fds, None))?;
        let [ended, abandoned, signalled] = fds.map(|fd| !fd.revents().is_empty());
        if ended {
            return Ok(Some(reap(child)));
        }
        if abandoned {
            return Ok(None);
        }
        if signalled {
            while sys::next_signal(signals).is_some() {}
            while let Some((pid, status)) = next_ended() {
                if pid == child {
                    return Ok(Some(code_of(status.as_raw())));
                }
            }
        }
    }
}

/// How a child ended.
pub fn reap(child: Pid) -> i32 {
    match retry_on_intr(|| waitpid(Some(child), WaitOptions::empty())) {
        Ok(Some((_, status))) => code_of(status.as_raw()),
        Ok(None) | Err(_) => 1,
    }
}

/// The same, with whatever else becomes a child of this process reaped meanwhile.
pub fn reap_all_until(child: Pid) -> i32 {
    loop {
        match retry_on_intr(|| wait(WaitOptions::empty())) {
            Ok(Some((pid, status))) if pid == child => return code_of(status.as_raw()),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return 1,
        }
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
        let ((_reader, writer), (silent, _open)) = (io::pipe().unwrap(), io::pipe().unwrap());
        let mut child = Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        assert_eq!(watch(Pid::from_child(&child), writer.as_fd(), silent.as_fd()), Outcome::Ended(7));
        child.wait().unwrap_err();
    }

    #[test]
    fn what_a_child_started_is_killed_with_it_once_nobody_reads() {
        let ((reader, writer), (silent, _open)) = (io::pipe().unwrap(), io::pipe().unwrap());
        let script = "sleep 600 & echo $!; setsid sleep 600 & echo $!; echo; wait";
        let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let others =
            lines.take_while(|line| !line.is_empty()).map(|line| ProcessKey::of(line.parse().unwrap()).unwrap());
        let others: Vec<ProcessKey> = others.collect();
        drop(reader);
        assert_eq!(
            (others.len(), watch(Pid::from_child(&child), writer.as_fd(), silent.as_fd())),
            (2, Outcome::Abandoned)
        );
        assert!(others.iter().all(|process| process.open().unwrap().is_none()));
        assert_eq!(child.wait().unwrap().code(), None, "it was killed");
    }
}
