//! Killing a command with everything that it started: to kill a shell alone leaves what it waits for.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};
use std::{io, thread};

use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use super::sandbox::process::{ProcessKey, Stat, find};

/// Time in which what was killed must be gone; it takes some milliseconds, unless a process waits for a disk or is frozen.
const GONE_WITHIN: Duration = Duration::from_secs(2);
/// Pause between two looks whether it is.
const PAUSE: Duration = Duration::from_millis(5);

/// A process with its descendants and whatever else is of their sessions: what was left behind by a parent that ended still
/// is of its session.
#[derive(Debug, Clone, Copy)]
pub struct ProcessTree {
    root: ProcessKey,
}

/// Processes that could not be killed.
#[derive(Debug, PartialEq, Eq)]
pub enum Unkilled {
    /// The kernel refuses to signal these: they are another user's.
    Refused(Vec<i32>),
    /// These were killed and have not ended.
    Alive(Vec<i32>),
}

impl ProcessTree {
    /// The tree of a process that runs now.
    ///
    /// # Errors
    /// There is no such process.
    pub fn of(pid: i32) -> io::Result<Self> {
        Ok(Self { root: ProcessKey::of(pid)? })
    }

    /// Kills it and waits until it is gone, for some seconds at most. One that is gone is success.
    ///
    /// # Errors
    /// Processes of it live on.
    pub fn kill(self) -> Result<(), Unkilled> {
        self.until_gone(|process| pidfd_send_signal(process, Signal::KILL))
    }

    /// Waits as long until it is gone, when somebody else has killed it.
    ///
    /// # Errors
    /// Processes of it live on.
    pub fn await_end(self) -> Result<(), Unkilled> {
        self.until_gone(|_| Ok(()))
    }

    fn until_gone(self, act: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<()>) -> Result<(), Unkilled> {
        let until = Instant::now() + GONE_WITHIN;
        let mut members = BTreeSet::from([self.root.pid]);
        loop {
            // All of them are found before the first is killed: a parent that ended tells its children no more.
            let alive = self.alive(&mut members);
            let refused = |process: &&ProcessKey| match process.open() {
                Ok(Some(open)) => act(open.as_fd()) == Err(Errno::PERM),
                Ok(None) | Err(_) => false,
            };
            let refused: Vec<i32> = alive.iter().filter(refused).map(|process| process.pid).collect();
            if !refused.is_empty() {
                return Err(Unkilled::Refused(refused));
            }
            if alive.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(Unkilled::Alive(alive.into_iter().map(|process| process.pid).collect()));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Those that have not ended. `members` are all that were found so far.
    fn alive(self, members: &mut BTreeSet<i32>) -> Vec<ProcessKey> {
        let mut all = Vec::new();
        find(|pid, stat| {
            all.push((pid, stat));
            false
        });
        // No number of a session is given to another process: that of its leader would not be free.
        if all.iter().any(|(pid, stat)| *pid == self.root.pid && stat.start != self.root.start) {
            return Vec::new();
        }
        extend(members, &all);
        let found = all.iter().filter(|(pid, _)| members.contains(pid));
        let keys = found.map(|(pid, stat)| ProcessKey { pid: *pid, start: stat.start });
        // What can't be opened is taken for alive: that it has ended is not known.
        keys.filter(|key| !matches!(key.open(), Ok(None))).collect()
    }
}

/// Adds the children of members, and who is of the session of one.
fn extend(members: &mut BTreeSet<i32>, all: &[(i32, Stat)]) {
    loop {
        let before = members.len();
        let new = all.iter().filter(|(_, stat)| members.contains(&stat.parent) || members.contains(&stat.session));
        let new: Vec<i32> = new.map(|(pid, _)| *pid).collect();
        members.extend(new);
        if members.len() == before {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn members_are_descendants_and_what_is_of_their_sessions() {
        let all = [(10, 1, 10), (11, 10, 10), (12, 1, 10), (13, 11, 13), (14, 1, 13), (20, 1, 20), (21, 20, 20)];
        let all = all.map(|(pid, parent, session)| (pid, Stat { parent, session, start: 0 }));
        let mut members = BTreeSet::from([10]);
        extend(&mut members, &all);
        assert_eq!(members, BTreeSet::from([10, 11, 12, 13, 14]));
    }

    #[test]
    fn a_shell_is_killed_with_its_children_and_with_those_that_it_left_to_others() {
        // One child is waited for, one has a session of its own, one lost its parent.
        let script = "sleep 600 & setsid sleep 600 & echo $!; (sleep 600 & echo $!); echo; wait";
        let mut shell = Command::new("setsid").args(["sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(shell.stdout.take().unwrap()).lines().map_while(Result::ok);
        let others: Vec<i32> = lines.take_while(|line| !line.is_empty()).map(|line| line.parse().unwrap()).collect();
        let tree = ProcessTree::of(shell.id().cast_signed()).unwrap();
        let others: Vec<ProcessKey> = others.into_iter().map(|pid| ProcessKey::of(pid).unwrap()).collect();
        assert_eq!((others.len(), tree.kill()), (2, Ok(())));
        assert!(others.iter().all(|process| process.open().unwrap().is_none()));
        assert_eq!(tree.kill(), Ok(()), "it is gone");
        shell.wait().unwrap();
    }
}
