//! The processes of a command inside a container, where they can be seen from here: the engine is one of this machine.

use crate::runtime::process_tree::{self, ProcessTree};

/// Most processes that are killed by one command inside: their numbers are its arguments.
const MOST_AT_ONCE: usize = 1024;

/// The process of a command, with what it started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Process {
    tree: ProcessTree,
    /// How many process namespaces it is in, from this program's inwards: the last is the container's. What it started may
    /// be in further ones.
    depth: usize,
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
        let depth = numbers(&read_status(pid)?)?.len();
        group.contains(container).then_some(Self { tree, depth })
    }

    /// Kills it and waits for its end.
    pub(super) async fn kill(self) -> Result<(), Unkilled> {
        self.blocking(ProcessTree::kill).await
    }

    /// Waits for its end, when it was killed by somebody else.
    pub(super) async fn await_end(self) -> Result<(), Unkilled> {
        self.blocking(ProcessTree::await_end).await
    }

    async fn blocking(
        self,
        work: impl FnOnce(ProcessTree) -> Result<(), process_tree::Unkilled> + Send + 'static,
    ) -> Result<(), Unkilled> {
        match tokio::task::spawn_blocking(move || work(self.tree)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(process_tree::Unkilled::Refused(pids))) => {
                let inside = pids.into_iter().filter_map(|pid| number_at(&read_status(pid)?, self.depth));
                Err(Unkilled::Refused(inside.take(MOST_AT_ONCE).collect()))
            }
            Ok(Err(process_tree::Unkilled::Alive(_))) | Err(_) => Err(Unkilled::Alive),
        }
    }
}

fn read_status(pid: i32) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/status")).ok()
}

/// The number of a process in the process namespace that is the `depth`th from the reader's inwards, the reader's being the
/// first.
fn number_at(status: &str, depth: usize) -> Option<i32> {
    numbers(status)?.get(depth.checked_sub(1)?).copied()
}

/// The numbers that `/proc/PID/status` gives: one for each process namespace, from the reader's inwards.
fn numbers(status: &str) -> Option<Vec<i32>> {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::{number_at, numbers};

    #[test]
    fn the_number_inside_is_that_of_the_namespace_of_the_container() {
        let (command, of_its_own_namespace) = ("NSpid:\t500\t42\n", "Pid:\t501\nNSpid:\t501\t43\t7\nUid:\t0\n");
        let depth = numbers(command).unwrap().len();
        assert_eq!((number_at(command, depth), number_at(of_its_own_namespace, depth)), (Some(42), Some(43)));
        assert_eq!(number_at("Name:\tsh\nPid:\t500\nNSpid:\t500\n", depth), None, "it is not in the container");
        assert_eq!(number_at("Name:\tsh\nPid:\t500\n", depth), None);
    }
}
