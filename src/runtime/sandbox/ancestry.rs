//! Where a process runs, by the processes that it descends from.

use super::dispatch::is_process_of_runtime;
use super::process::{read_proc, read_stat};

/// Most ancestors that are looked at; deeper than any shell nests.
const MOST_ANCESTORS: usize = 256;

/// Whether a process runs inside of a sandbox that this process is not in itself. One that can't be looked at any more is
/// taken for such a one.
pub fn is_inside(pid: i32) -> bool {
    // One of a process namespace above this one has no number here (pid_namespaces(7)), and sandboxes are below.
    if pid == 0 {
        return false;
    }
    let Ok(own) = i32::try_from(std::process::id()) else { return false };
    let theirs = ancestors(pid);
    if theirs.is_empty() {
        // Where there is no such file system, no sandbox of this runtime can be either.
        return !ancestors(own).is_empty();
    }
    let of_runtime: Vec<i32> = theirs.into_iter().filter(|one| is_process_of_runtime(*one)).collect();
    !of_runtime.is_empty() && {
        let own = ancestors(own);
        of_runtime.iter().any(|one| !own.contains(one))
    }
}

/// The process itself, its parent and so on; empty where it does not exist.
fn ancestors(pid: i32) -> Vec<i32> {
    let known = std::iter::successors(parent(pid).map(|_| pid), |pid| parent(*pid).filter(|parent| *parent > 0));
    known.take(MOST_ANCESTORS).collect()
}

fn parent(pid: i32) -> Option<i32> {
    read_stat(pid).ok().map(|stat| stat.parent)
}

/// A field of `/proc/PID/status`, by its name with the colon.
pub fn status_field(pid: i32, name: &str) -> Option<String> {
    let status = String::from_utf8(read_proc(pid, "status").ok()?).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ancestors_are_told_from_the_process_on() {
        let own = i32::try_from(std::process::id()).unwrap();
        let parent = i32::try_from(std::os::unix::process::parent_id()).unwrap();
        assert_eq!(ancestors(own)[..2], [own, parent]);
        assert!(ancestors(i32::MAX).is_empty());
        assert!(!is_inside(own));
        assert!(!is_inside(0), "it is outside of the process namespace of the controller");
        assert!(is_inside(i32::MAX), "nobody knows where it was");
    }
}
