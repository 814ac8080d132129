//! The processes of the machine, as ps(1) tells them: the same on every Unix, and no number is taken for the process that
//! had it before.

use std::collections::BTreeSet;
use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// Lists processes; at this place on macOS and on Linux.
const PS: &str = "/bin/ps";
/// Longest time until what was killed is gone.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// Pause between two looks whether it is.
const PAUSE: Duration = Duration::from_millis(20);

/// A process: its number, and when it started, in the words of ps(1), to the second. Two processes of one number within one
/// second would need all other numbers to be used up meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessKey {
    /// Process id.
    pub pid: i32,
    /// Start time.
    pub started: String,
}

impl ProcessKey {
    /// The key of a process that exists now; none where there is no such process.
    ///
    /// # Errors
    /// `ps` can't be run.
    pub fn of(pid: i32) -> io::Result<Option<Self>> {
        let text = ps(&["-o", "lstart=", "-p", &pid.to_string()])?;
        let started = text.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok((!started.is_empty()).then_some(Self { pid, started }))
    }

    /// Whether it still is the same process.
    ///
    /// # Errors
    /// `ps` can't be run.
    pub fn is_there(&self) -> io::Result<bool> {
        Ok(Self::of(self.pid)?.is_some_and(|found| found == *self))
    }
}

/// One process of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Process that started it, or that took it over.
    pub parent: i32,
    /// Process group.
    pub group: i32,
    /// Memory in use, in bytes.
    pub memory: u64,
    /// Processor time, in microseconds.
    pub cpu_usec: u64,
}

/// All processes of the machine that have not ended.
///
/// # Errors
/// `ps` can't be run, or says something else than it is asked for.
pub fn processes() -> io::Result<Vec<Process>> {
    let text = ps(&["-A", "-o", "pid=", "-o", "ppid=", "-o", "pgid=", "-o", "stat=", "-o", "rss=", "-o", "time="])?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let parsed = lines.map(|line| {
        parse(line).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{PS} says {line:?}")))
    });
    Ok(parsed.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// One line; the inner none for a process that has ended and waits for its parent.
#[allow(clippy::option_option, reason = "no such line and no such process are two answers")]
fn parse(line: &str) -> Option<Option<Process>> {
    let [pid, parent, group, state, kib, time] = line.split_whitespace().collect::<Vec<_>>()[..] else { return None };
    let process = Process {
        pid: pid.parse().ok()?,
        parent: parent.parse().ok()?,
        group: group.parse().ok()?,
        memory: kib.parse::<u64>().ok()?.saturating_mul(1024),
        cpu_usec: microseconds(time)?,
    };
    Some((!state.starts_with('Z')).then_some(process))
}

/// A time of ps(1): `[DD-][HH:]MM:SS[.ss]`, of which macOS tells hundredths and no days.
fn microseconds(text: &str) -> Option<u64> {
    let (days, rest) = text.split_once('-').unwrap_or(("0", text));
    let (whole, part) = rest.split_once('.').unwrap_or((rest, "0"));
    let seconds =
        whole.split(':').try_fold(0u64, |sum, part| Some(sum.checked_mul(60)? + part.parse::<u64>().ok()?))?;
    let hundredths = part.parse::<u64>().ok().filter(|part| *part < 100)?;
    let days = days.parse::<u64>().ok()?.checked_mul(24 * 60 * 60)?;
    days.checked_add(seconds)?.checked_mul(1_000_000)?.checked_add(hundredths * 10_000)
}

fn ps(arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(PS).args(arguments).env_clear().env("LC_ALL", "C").output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A process with its descendants and whatever else is of their process groups: what was left behind by a parent that ended
/// still is of its group. What leaves both, a daemon, is not found; macOS has nothing that would.
pub fn members(all: &[Process], root: i32) -> Vec<Process> {
    let mut pids = BTreeSet::from([root]);
    let mut groups = BTreeSet::from([root]);
    loop {
        let before = (pids.len(), groups.len());
        for one in all {
            if pids.contains(&one.pid) || pids.contains(&one.parent) || groups.contains(&one.group) {
                pids.insert(one.pid);
                // A group that others began is not theirs alone.
                if pids.contains(&one.group) {
                    groups.insert(one.group);
                }
            }
        }
        if (pids.len(), groups.len()) == before {
            break;
        }
    }
    all.iter().filter(|one| pids.contains(&one.pid)).copied().collect()
}

/// Sends a signal to a process and all that belongs to it.
///
/// # Errors
/// `ps` can't be run.
pub fn signal_tree(root: i32, signal: Signal) -> io::Result<()> {
    for one in members(&processes()?, root) {
        send(one.pid, signal);
    }
    Ok(())
}

/// Sends a signal; one that is gone is success.
pub fn send(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// Kills a process and all that belongs to it, and waits until it is gone, for some seconds at most.
///
/// # Errors
/// `TimedOut` when a process lives on; `ps` can't be run.
pub fn kill_tree(root: i32) -> io::Result<()> {
    let end = Instant::now() + GONE_WITHIN;
    loop {
        let alive = members(&processes()?, root);
        if alive.is_empty() {
            return Ok(());
        }
        for one in &alive {
            send(one.pid, Signal::KILL);
        }
        if Instant::now() >= end {
            let pids: Vec<String> = alive.iter().map(|one| one.pid.to_string()).collect();
            let message = format!("processes live on though they were killed: {}", pids.join(", "));
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;

    fn process(pid: i32, parent: i32, group: i32) -> Process {
        Process { pid, parent, group, memory: 0, cpu_usec: 0 }
    }

    #[test]
    fn members_are_descendants_and_what_is_of_their_groups() {
        let all = [(10, 1, 10), (11, 10, 10), (12, 1, 10), (13, 11, 13), (14, 1, 13), (20, 1, 20), (21, 20, 20)];
        let all = all.map(|(pid, parent, group)| process(pid, parent, group));
        let found: Vec<i32> = members(&all, 10).into_iter().map(|one| one.pid).collect();
        assert_eq!(found, [10, 11, 12, 13, 14]);
        // Its own group is gone with it; that of its parent, which it was started in, is not its own.
        assert_eq!(members(&[process(30, 1, 5), process(5, 1, 5)], 30), [process(30, 1, 5)]);
    }

    #[test]
    fn times_are_read_as_both_systems_write_them() {
        for (text, expected) in [
            ("0:00.03", Some(30_000)),
            ("00:00:07", Some(7_000_000)),
            ("1:02.50", Some(62_500_000)),
            ("2-01:00:00", Some(49 * 3_600 * 1_000_000)),
            ("x", None),
            ("1:2:x", None),
        ] {
            assert_eq!(microseconds(text), expected, "{text}");
        }
    }

    #[test]
    fn what_has_ended_is_no_process_and_what_is_something_else_no_line() {
        assert_eq!(parse(" 7 1 7 Z 0 00:00:00"), Some(None));
        let running = Process { memory: 2048, cpu_usec: 1_000_000, ..process(7, 1, 7) };
        assert_eq!(parse(" 7 1 7 Ss 2 00:00:01"), Some(Some(running)));
        assert_eq!(parse("7 1"), None);
    }

    #[test]
    fn a_tree_is_killed_with_what_it_left_behind_and_nothing_else() {
        let mut other = Command::new("/bin/sleep").arg("600").process_group(0).spawn().unwrap();
        let script = "(sleep 600 &) ; sleep 600 & sleep 600";
        let mut shell = Command::new("/bin/sh").args(["-c", script]).process_group(0).spawn().unwrap();
        let pid = i32::try_from(shell.id()).unwrap();
        let key = ProcessKey::of(pid).unwrap().unwrap();
        assert!(key.is_there().unwrap());
        assert!(!ProcessKey { started: "Thu Jan 1 00:00:00 1970".to_owned(), ..key }.is_there().unwrap());
        let reaper = std::thread::spawn(move || shell.wait());
        kill_tree(pid).unwrap();
        reaper.join().unwrap().unwrap();
        assert_eq!(members(&processes().unwrap(), pid), []);
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
