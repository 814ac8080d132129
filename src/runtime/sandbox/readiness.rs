//! The word of the first process of an instance: that its program is ready, or why it can't be run.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::failure::{Context, Failure};
use super::init::READY;

/// Longest time that preparing an instance may take until its program is given up. Mounts of a dead network file
/// system are what hangs; systemd's default start timeout is as long.
const PREPARE_LIMIT: Duration = Duration::from_secs(90);

/// Waits until the program is prepared and only needs to be let go.
///
/// # Errors
/// What the first process says, or that it says nothing.
pub fn wait_ready(outcome: &mut File, first: &OwnedFd) -> Result<(), Failure> {
    let limit = Timespec { tv_sec: i64::try_from(PREPARE_LIMIT.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    let mut fds = [PollFd::new(&*outcome, PollFlags::IN), PollFd::new(first, PollFlags::IN)];
    if poll(&mut fds, Some(&limit)).context("waiting for the program")? == 0 {
        return Err(Failure::setup(format!(
            "the instance could not be prepared within {} s; does a mounted file system hang?",
            PREPARE_LIMIT.as_secs()
        )));
    }
    let mut word = [0];
    match outcome.read(&mut word) {
        Ok(1) if word == [READY] => Ok(()),
        Ok(1) => {
            let mut text = word.to_vec();
            let _ = outcome.read_to_end(&mut text);
            Err(parse_failure(&text))
        }
        _ => Err(Failure::setup("the first process of the instance was killed while it was prepared")),
    }
}

/// Longest time for the exec of a program that is prepared: a program or loader on a mount that hangs is never read.
const EXEC_LIMIT: Duration = Duration::from_secs(30);

/// Waits for the exec; what the program says before it is a failure, and so is that it takes too long.
pub fn read_failure(outcome: &mut File) -> Option<Failure> {
    let limit = Timespec { tv_sec: i64::try_from(EXEC_LIMIT.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    let mut text = Vec::new();
    loop {
        if matches!(poll(&mut [PollFd::new(&*outcome, PollFlags::IN)], Some(&limit)), Ok(0)) {
            return Some(Failure::setup(format!(
                "the program could not be executed within {} s; does a mounted file system hang?",
                EXEC_LIMIT.as_secs()
            )));
        }
        let mut buffer = [0; 1024];
        match outcome.read(&mut buffer) {
            Ok(0) => break,
            Ok(size) => text.extend_from_slice(buffer.get(..size).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    (!text.is_empty()).then(|| parse_failure(&text))
}

fn parse_failure(text: &[u8]) -> Failure {
    serde_json::from_slice(text).unwrap_or_else(|_| Failure::setup(String::from_utf8_lossy(text).into_owned()))
}
