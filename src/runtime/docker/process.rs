//! The processes of a command inside a container, where they can be seen from here: the engine is one of this machine.

use crate::runtime::process_tree::{self, ProcessTree};

/// Most processes that are killed by one command inside: their numbers are its arguments.
const MOST_AT_ONCE: usize = 1024;

/// The process of a command, with what it started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Process {
    tree: ProcessTree,
}

/// Why it lives on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unkilled {
    /// This program's user may not signal these, as they are numbered inside the container.
    Refused(Vec<i32>),
    /// It was killed, and has not ended in time.
    Alive,
}

impl Process {
    /// The process that an engine gives this number, where it is one of this container.
    pub(super) fn find(pid: i32, container: &str) -> Option<Self> {
        // Taken first, so that a number that is given anew meanwhile is found out.
        let tree = ProcessTree::of(pid).ok()?;
        let group = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        group.contains(container).then_some(Self { tree })
    }

    /// Kills it and waits for its end.
    pub(super) async fn kill(self) -> Result<(), Unkilled> {
        blocking(move || self.tree.kill()).await
    }

    /// Waits for its end, when it was killed by somebody else.
    pub(super) async fn await_end(self) -> Result<(), Unkilled> {
        blocking(move || self.tree.await_end()).await
    }
}

async fn blocking(work: impl FnOnce() -> Result<(), process_tree::Unkilled> + Send + 'static) -> Result<(), Unkilled> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(process_tree::Unkilled::Refused(pids))) => {
            Err(Unkilled::Refused(pids.into_iter().filter_map(number_inside).take(MOST_AT_ONCE).collect()))
        }
        Ok(Err(process_tree::Unkilled::Alive(_))) | Err(_) => Err(Unkilled::Alive),
    }
}

/// A process's number in its own process namespace.
fn number_inside(pid: i32) -> Option<i32> {
    innermost(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

/// The last of the numbers that `/proc/PID/status` gives: one for each namespace, from the reader's inwards.
fn innermost(status: &str) -> Option<i32> {
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::innermost;

    #[test]
    fn the_number_inside_is_the_last() {
        assert_eq!(innermost("Name:\tsh\nPid:\t500\nNSpid:\t500\t42\t7\nUid:\t0\n"), Some(7));
        assert_eq!(innermost("Name:\tsh\nPid:\t500\n"), None);
    }
}
