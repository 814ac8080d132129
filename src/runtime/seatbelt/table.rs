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
}

/// When the machine's first process started: another boot has another time.
///
/// # Errors
/// `ps` can't be run.
pub fn boot() -> io::Result<String> {
    Ok(ProcessKey::of(1)?.map(|first| first.started).unwrap_or_default())
}

/// One process of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Start time, in the words of [`ProcessKey::started`].
    pub started: String,
}

/// All processes of the machine that have not ended.
///
/// # Errors
/// `ps` can't be run, or says something else than it is asked for.
pub fn processes() -> io::Result<Vec<Process>> {
    let text = ps(&[
        "-A", "-o", "pid=", "-o", "ppid=", "-o", "pgid=", "-o", "stat=", "-o", "rss=", "-o", "time=", "-o", "lstart=",
    ])?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let parsed = lines.map(|line| {
        parse(line).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{PS} says {line:?}")))
    });
    Ok(parsed.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// One line; the inner none for a process that has ended and waits for its parent.
#[allow(clippy::option_option, reason = "no such line and no such process are two answers")]
fn parse(line: &str) -> Option<Option<Process>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [pid, parent, group, state, kib, time, started @ ..] = &words[..] else { return None };
    let process = Process {
        pid: pid.parse().ok()?,
        parent: parent.parse().ok()?,
        // One that is just going has none, which some write as the largest number.
        group: i32::try_from(group.parse::<i64>().ok()?).unwrap_or(-1),
        memory: kib.parse::<u64>().ok()?.saturating_mul(1024),
        cpu_usec: microseconds(time)?,
        started: started.join(" "),
    };
    Some((!state.starts_with(['Z', 'X'])).then_some(process))
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
    // Times are compared with those of long ago: neither the language nor the time zone of the machine may change them.
    let output = Command::new(PS).args(arguments).env_clear().envs([("LC_ALL", "C"), ("TZ", "UTC0")]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What is left of a process that led its own group, with its descendants and whatever else is of their groups: what was left
/// behind by a parent that ended still is of its group, and the number of a group is nobody else's for as long as a process is
/// of it. Nothing where the number means another process by now. What leaves tree and group, a daemon, is not found; macOS has
/// nothing that would.
pub fn members(all: &[Process], key: &ProcessKey) -> Vec<Process> {
    if all.iter().any(|one| one.pid == key.pid && one.started != key.started) {
        return Vec::new();
    }
    let mut pids = BTreeSet::from([key.pid]);
    let mut groups = BTreeSet::from([key.pid]);
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
    all.iter().filter(|one| pids.contains(&one.pid)).cloned().collect()
}

/// What is left of several.
pub fn members_of_all(all: &[Process], keys: &[ProcessKey]) -> Vec<Process> {
    let mut found: Vec<Process> = keys.iter().flat_map(|key| members(all, key)).collect();
    found.sort_by_key(|one| one.pid);
    found.dedup_by_key(|one| one.pid);
    found
}

/// Sends a signal to processes and all that belongs to them.
///
/// # Errors
/// `ps` can't be run.
pub fn signal_trees(keys: &[ProcessKey], signal: Signal) -> io::Result<()> {
    for one in members_of_all(&processes()?, keys) {
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

/// Kills processes and all that belongs to them, and waits until it is gone, for some seconds at most.
///
/// # Errors
/// `TimedOut` when a process lives on; `ps` can't be run.
pub fn kill_trees(keys: &[ProcessKey]) -> io::Result<()> {
    let end = Instant::now() + GONE_WITHIN;
    loop {
        let alive = members_of_all(&processes()?, keys);
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
        Process { pid, parent, group, memory: 0, cpu_usec: 0, started: "then".to_owned() }
    }

    fn key(pid: i32) -> ProcessKey {
        ProcessKey { pid, started: "then".to_owned() }
    }

    #[test]
    fn members_are_descendants_and_what_is_of_their_groups() {
        let all = [(10, 1, 10), (11, 10, 10), (12, 1, 10), (13, 11, 13), (14, 1, 13), (20, 1, 20), (21, 20, 20)];
        let all = all.map(|(pid, parent, group)| process(pid, parent, group));
        let pids = |keys: &[ProcessKey]| members_of_all(&all, keys).into_iter().map(|one| one.pid).collect::<Vec<_>>();
        assert_eq!(pids(&[key(10)]), [10, 11, 12, 13, 14]);
        assert_eq!(pids(&[key(20), key(10), key(13)]), [10, 11, 12, 13, 14, 20, 21]);
        // Its group is left where it is gone itself; that of its parent, which it was started in, is not its own.
        assert_eq!(members(&all[2..3], &key(10)), [process(12, 1, 10)]);
        assert_eq!(members(&[process(30, 1, 5), process(5, 1, 5)], &key(30)), [process(30, 1, 5)]);
    }

    #[test]
    fn who_has_the_number_of_another_by_now_is_no_member() {
        let all = [process(10, 1, 10), process(11, 10, 10)];
        assert_eq!(members(&all, &ProcessKey { started: "before".to_owned(), ..key(10) }), []);
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
        assert_eq!(parse(" 7 1 7 Z 0 00:00:00 then"), Some(None));
        let running = Process { memory: 2048, cpu_usec: 1_000_000, ..process(7, 1, 7) };
        assert_eq!(parse(" 7 1 7 Ss 2 00:00:01 then"), Some(Some(running)));
        assert_eq!(parse("25222 0 4294967295 X+ 0 00:00:00 then"), Some(None));
        assert_eq!(parse("7 1"), None);
    }

    #[test]
    fn a_tree_is_killed_with_what_it_left_behind_and_nothing_else() {
        let mut other = Command::new("/bin/sleep").arg("600").process_group(0).spawn().unwrap();
        // The shell itself ends, and leaves one of two behind.
        let script = "sleep 600 & exit 0";
        let mut left = Command::new("/bin/sh").args(["-c", script]).process_group(0).spawn().unwrap();
        let mut shell = Command::new("/bin/sh").args(["-c", "sleep 600 & sleep 600"]).process_group(0).spawn().unwrap();
        let keys = [&left, &shell].map(|child| ProcessKey::of(i32::try_from(child.id()).unwrap()).unwrap().unwrap());
        left.wait().unwrap();
        assert_eq!(members(&processes().unwrap(), &keys[0]).len(), 1);
        let reaper = std::thread::spawn(move || shell.wait());
        kill_trees(&keys).unwrap();
        reaper.join().unwrap().unwrap();
        assert_eq!(members_of_all(&processes().unwrap(), &keys), []);
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
