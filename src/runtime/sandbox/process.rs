//! Processes that are not children: identity that survives restarts of the controller and reuse of numbers.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// Room for most files of `/proc/PID`, in bytes: `status` is the longest of those that are read (proc(5)).
const PROC_FILE: usize = 4 << 10;

/// A process of one boot: its number, and when it started, which tells it from a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessKey {
    /// Process id in the machine's process namespace.
    pub pid: i32,
    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub start: u64,
}

impl ProcessKey {
    /// The key of a process that exists now.
    ///
    /// # Errors
    /// There is no such process.
    pub fn of(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, start: read_stat(pid)?.start })
    }

    /// Opens the process where it still is the same one; `None` when it is gone.
    ///
    /// The descriptor is opened before the start time is read again, so that the number can't come to mean another
    /// process in between.
    ///
    /// # Errors
    /// Whether it is gone can't be told, as where this process has all the descriptors that it may have.
    pub fn open(self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => pidfd,
            // No such process, or a thread of another one has its number now.
            Err(Errno::SRCH | Errno::NOENT | Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let same = match read_stat(self.pid) {
            Ok(stat) => stat.start == self.start,
            // It is reaped at this moment.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound || Errno::from_io_error(&error) == Some(Errno::SRCH) =>
            {
                false
            }
            Err(error) => return Err(error),
        };
        Ok((same && !has_ended(pidfd.as_fd())).then_some(pidfd))
    }
}

/// Kills a process where it still is the same one, and waits until it is gone, for this long at most.
pub fn kill_and_wait(process: ProcessKey, limit: Duration) {
    // What can't be opened can't be killed by its descriptor; that it is still there shows at the next look.
    let Ok(Some(pidfd)) = process.open() else { return };
    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    let limit = Timespec { tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    let borrowed = pidfd.as_fd();
    let _ = poll(&mut [PollFd::new(&borrowed, PollFlags::IN)], Some(&limit));
}

/// Whether a process ended, also when nobody has reaped it yet.
pub fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..))
}

/// Facts of `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Parent.
    pub parent: i32,
    /// Session.
    pub session: i32,
    /// Start time in clock ticks since boot.
    pub start: u64,
}

/// Reads `/proc/PID/stat`.
///
/// # Errors
/// There is no such process.
pub fn read_stat(pid: i32) -> io::Result<Stat> {
    let text = read_proc(pid, "stat")?;
    parse_stat(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat is not as expected"))
}

/// Reads a file of `/proc/PID`. Those tell no size, for which the standard library would read them in many small parts.
///
/// # Errors
/// There is no such process, or it is not to be looked at.
pub fn read_proc(pid: i32, name: &str) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(format!("/proc/{pid}/{name}"))?;
    let mut text = vec![0; PROC_FILE];
    let mut have = 0;
    loop {
        if have == text.len() {
            text.resize(2 * have, 0);
        }
        match file.read(&mut text[have..])? {
            0 => break,
            more => have += more,
        }
    }
    text.truncate(have);
    Ok(text)
}

/// The second field is the name in brackets, which may itself hold blanks and brackets: fields are counted from
/// the last closing one.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // The first of these fields is number 3.
    let field = |number: usize| fields.get(number - 3);
    Some(Stat { parent: field(4)?.parse().ok()?, session: field(6)?.parse().ok()?, start: field(22)?.parse().ok()? })
}

/// Numbers of all processes that match.
pub fn find(mut wanted: impl FnMut(i32, Stat) -> bool) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| read_stat(*pid).is_ok_and(|stat| wanted(*pid, stat)))
        .collect()
}

/// First child of a process, where the kernel tells.
pub fn first_child(pid: i32) -> Option<i32> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?.split_whitespace().next()?.parse().ok()
}

/// All processes that descend from one. What is being forked meanwhile may be missed.
pub fn descendants(ancestor: i32) -> Vec<i32> {
    let mut found = vec![ancestor];
    let mut parents: Option<Vec<(i32, i32)>> = None;
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        next += 1;
        let children = children(pid).unwrap_or_else(|| {
            // The kernel does not list children; every process tells its parent.
            let all = parents.get_or_insert_with(|| {
                let mut all = Vec::new();
                find(|pid, stat| {
                    all.push((stat.parent, pid));
                    false
                });
                all
            });
            all.iter().filter(|(parent, _)| *parent == pid).map(|(_, child)| *child).collect()
        });
        let new: Vec<i32> = children.into_iter().filter(|child| !found.contains(child)).collect();
        found.extend(new);
    }
    found.remove(0);
    found
}

/// Children of a process: those of all its threads. `None` where the kernel does not list them; one that is gone has
/// none.
pub fn children(pid: i32) -> Option<Vec<i32>> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Some(Vec::new()) };
    let mut found = Vec::new();
    for thread in threads.flatten() {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(text) => found.extend(text.split_whitespace().filter_map(|child| child.parse::<i32>().ok())),
            // The thread ended, or there is no such file at all.
            Err(_) if thread.path().exists() => return None,
            Err(_) => {}
        }
    }
    Some(found)
}

/// The id of this boot.
///
/// # Errors
/// The kernel does not tell.
pub fn boot_id() -> io::Result<&'static str> {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    if let Some(id) = BOOT_ID.get() {
        return Ok(id);
    }
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(BOOT_ID.get_or_init(|| id.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_does_not_shift_the_fields() {
        let text = b"42 (a) b (c)) S 7 42 41 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 987654 10 20\n";
        assert_eq!(parse_stat(text), Some(Stat { parent: 7, session: 41, start: 987_654 }));
    }

    #[test]
    fn a_cut_off_line_is_no_process() {
        assert_eq!(parse_stat(b"42 (a) S 7 42 41 0"), None);
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn this_process_is_alive_and_another_start_time_is_not_it() {
        let own = ProcessKey::of(std::process::id().cast_signed()).unwrap();
        assert!(own.open().unwrap().is_some());
        assert!(ProcessKey { start: own.start + 1, ..own }.open().unwrap().is_none());
        assert!(ProcessKey { pid: 0, ..own }.open().unwrap().is_none());
    }
}
