//! Killing a command with everything that it started: to kill a shell alone leaves what it waits for.

use std::collections::BTreeMap;
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
        let mut members = Members::from([(self.root.pid, self.root.start)]);
        loop {
            // All of them are found before the first is killed: a parent that ended tells its children no more.
            let alive = alive(&mut members);
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
}

/// All that were found so far, also those that have ended: the start time of each by its number.
type Members = BTreeMap<i32, u64>;

/// Those that have not ended, with those that are found now.
fn alive(members: &mut Members) -> Vec<ProcessKey> {
    let mut all = Vec::new();
    find(|pid, stat| {
        all.push((pid, stat));
        false
    });
    forget_reused(members, &all);
    extend(members, &all);
    let found = all.iter().filter(|(pid, _)| members.contains_key(pid));
    let keys = found.map(|(pid, stat)| ProcessKey { pid: *pid, start: stat.start });
    // What can't be opened is taken for alive: that it has ended is not known.
    keys.filter(|key| !matches!(key.open(), Ok(None))).collect()
}

/// Drops members whose number is another process's now. Nothing of their sessions is left then: the number of a session is
/// not free for as long as a process is of it.
fn forget_reused(members: &mut Members, all: &[(i32, Stat)]) {
    for (pid, stat) in all {
        if members.get(pid).is_some_and(|start| *start != stat.start) {
            members.remove(pid);
        }
    }
}

/// Adds the children of members, and who is of the session of one.
fn extend(members: &mut Members, all: &[(i32, Stat)]) {
    loop {
        let before = members.len();
        let is_member = |pid: &i32| members.contains_key(pid);
        let new = all.iter().filter(|(_, stat)| is_member(&stat.parent) || is_member(&stat.session));
        let new: Vec<(i32, u64)> = new.map(|(pid, stat)| (*pid, stat.start)).collect();
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

    /// What a look finds: number, parent, session and start time of each.
    fn snapshot<const N: usize>(all: [(i32, i32, i32, u64); N]) -> [(i32, Stat); N] {
        all.map(|(pid, parent, session, start)| (pid, Stat { parent, session, start }))
    }

    #[test]
    fn members_are_descendants_and_what_is_of_their_sessions() {
        let all = [(10, 1, 10), (11, 10, 10), (12, 1, 10), (13, 11, 13), (14, 1, 13), (20, 1, 20), (21, 20, 20)];
        let all = snapshot(all.map(|(pid, parent, session)| (pid, parent, session, 7)));
        let mut members = Members::from([(10, 7)]);
        extend(&mut members, &all);
        assert_eq!(members.into_keys().collect::<Vec<_>>(), [10, 11, 12, 13, 14]);
    }

    #[test]
    fn who_got_the_number_of_one_that_ended_is_no_member_and_neither_are_its_children() {
        let mut members = Members::from([(10, 7), (11, 7), (12, 7)]);
        let all = snapshot([(10, 1, 10, 7), (11, 1, 11, 9), (13, 11, 11, 9), (14, 1, 12, 8)]);
        forget_reused(&mut members, &all);
        extend(&mut members, &all);
        assert_eq!(members, Members::from([(10, 7), (12, 7), (14, 8)]));
    }

    #[test]
    fn a_process_that_started_at_another_time_is_not_killed() {
        let mut other = Command::new("setsid").args(["sleep", "600"]).spawn().unwrap();
        let key = ProcessKey::of(other.id().cast_signed()).unwrap();
        let root = ProcessKey { start: key.start - 1, ..key };
        assert_eq!(ProcessTree { root }.kill(), Ok(()), "it is gone");
        assert!(key.open().unwrap().is_some());
        assert_eq!(ProcessTree { root: key }.kill(), Ok(()));
        other.wait().unwrap();
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
