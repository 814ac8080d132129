//! Processes below which everything stays: whatever loses its parent there becomes a child of the nearest one, however it
//! detached itself, and is killed before that one ends.

use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, wait};

use super::failure::{Context, Failure};
use super::process;

/// Longest time for what was killed to end; what sleeps in the kernel for longer is left to its fate.
pub const REAP_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two looks at what is left.
const PAUSE: Duration = Duration::from_millis(1);

/// Has everything below this process stay below it, within its process namespace.
///
/// # Errors
/// The kernel refuses.
pub fn adopt() -> Result<(), Failure> {
    set_child_subreaper(Some(getpid())).context("becoming the reaper")
}

/// Kills and reaps the children of this process, and those that become its children by that, for [`REAP_LIMIT`] at most.
/// Where there are none, nothing is looked at.
pub fn end_children() {
    let own = std::process::id().cast_signed();
    let end = Instant::now() + REAP_LIMIT;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => continue,
            Ok(None) if Instant::now() < end => {}
            Ok(None) | Err(_) => return,
        }
        kill_children(own);
        std::thread::sleep(PAUSE);
    }
}

/// Each is killed as soon as it is seen: one that forks and ends all the time would be another one a moment later.
fn kill_children(own: i32) {
    let kill = |pid: i32| Pid::from_raw(pid).is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok());
    match process::children(own) {
        Some(children) => children.into_iter().for_each(|child| {
            kill(child);
        }),
        // The kernel does not list children; every process tells its parent.
        None => {
            process::find(|pid, stat| stat.parent == own && kill(pid));
        }
    }
}
