//! What an instance used, and whether it was killed for want of memory: counters of its groups, or of its processes
//! where a group does not tell.

use std::fs;
use std::path::Path;

use chrono::Utc;
use rustix::param::{clock_ticks_per_second, page_size};

use super::groups::Groups;
use super::hierarchy::Controller;
use super::members::{Members, Seen};
use super::tmpfs;
use crate::runtime::Usage;

/// Microseconds of a second.
const MICROS: u64 = 1_000_000;

/// How many processes of the groups were killed for want of memory in this run.
pub fn oom_kills(groups: &Groups) -> u64 {
    let (file, key) = if let Some(group) = groups.unified(Controller::Memory) {
        (group.dir.join("memory.events"), "oom_kill")
    } else if let Some(group) = groups.legacy(Controller::Memory) {
        (group.dir.join("memory.oom_control"), "oom_kill")
    } else {
        return 0;
    };
    fs::read_to_string(file).ok().and_then(|text| value_of(&text, key)).unwrap_or(0)
}

/// Most memory that the groups let an instance have, in bytes.
pub fn memory_limit(groups: &Groups) -> Option<u64> {
    if let Some(group) = groups.unified(Controller::Memory) {
        number(&group.dir, "memory.max")
    } else {
        // Without a limit version 1 says a number that no machine has.
        let group = groups.legacy(Controller::Memory)?;
        number(&group.dir, "memory.limit_in_bytes").filter(|limit| *limit < i64::MAX as u64 / 2)
    }
}

/// What an instance used. Its network is not told here.
pub fn usage(groups: &Groups, members: &Members) -> Usage {
    let seen = members.now().ok();
    let of_processes = |value: fn(&Seen<'_>) -> u64| seen.as_ref().map(value);
    let io = io_bytes(groups).or_else(|| seen.as_ref().map(io_of_processes));
    Usage {
        cpu_usec: cpu_usec(groups).or_else(|| of_processes(cpu_of_processes)).unwrap_or(0),
        memory: memory_current(groups).or_else(|| of_processes(|seen| memory(seen, 0))),
        memory_limit: memory_limit(groups),
        pids: pids_current(groups).or_else(|| of_processes(threads)),
        pids_limit: pids_limit(groups),
        read_bytes: io.map(|(read, _)| read),
        written_bytes: io.map(|(_, written)| written),
        ..Usage::nothing(Utc::now())
    }
}

/// Version 2 counts time in every group, also where it has no controllers.
fn cpu_usec(groups: &Groups) -> Option<u64> {
    let group = groups.unified.as_ref()?;
    value_of(&fs::read_to_string(group.dir.join("cpu.stat")).ok()?, "usage_usec")
}

/// Memory in use, without files that are only cached and not in use: what `docker stats` shows.
fn memory_current(groups: &Groups) -> Option<u64> {
    let (dir, current, cached) = if let Some(group) = groups.unified(Controller::Memory) {
        (&group.dir, "memory.current", "inactive_file")
    } else {
        (&groups.legacy(Controller::Memory)?.dir, "memory.usage_in_bytes", "total_inactive_file")
    };
    let cached = fs::read_to_string(dir.join("memory.stat")).ok().and_then(|text| value_of(&text, cached));
    Some(number(dir, current)?.saturating_sub(cached.unwrap_or(0)))
}

fn pids_dir(groups: &Groups) -> Option<&Path> {
    let unified = groups.unified(Controller::Pids).map(|group| group.dir.as_path());
    unified.or_else(|| groups.legacy(Controller::Pids).map(|group| group.dir.as_path()))
}

fn pids_current(groups: &Groups) -> Option<u64> {
    number(pids_dir(groups)?, "pids.current")
}

fn pids_limit(groups: &Groups) -> Option<u64> {
    number(pids_dir(groups)?, "pids.max")
}

/// Bytes read from and written to disks.
fn io_bytes(groups: &Groups) -> Option<(u64, u64)> {
    if let Some(group) = groups.unified(Controller::Io) {
        let text = fs::read_to_string(group.dir.join("io.stat")).ok()?;
        return Some((sum_of(&text, "rbytes="), sum_of(&text, "wbytes=")));
    }
    let group = groups.legacy(Controller::Io)?;
    let text = fs::read_to_string(group.dir.join("blkio.throttle.io_service_bytes_recursive")).ok()?;
    Some((operations(&text, "Read"), operations(&text, "Write")))
}

/// The number after a word at the beginning of a line.
fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix([' ', ':'])?.trim().parse().ok())
}

/// The sum of all numbers that follow this, on every line.
fn sum_of(text: &str, key: &str) -> u64 {
    text.split_ascii_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok()).sum()
}

/// The sum of an operation's numbers over all disks: lines `8:0 Read 4096`.
fn operations(text: &str, operation: &str) -> u64 {
    let of_line = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(1);
        (words.next()? == operation).then(|| words.next()?.parse::<u64>().ok())?
    };
    text.lines().filter_map(of_line).sum()
}

/// The number in a file; `max` is none.
fn number(dir: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok()
}

/// Memory of processes in bytes, with what they keep in file systems in memory of their own: what they share with each
/// other counts once, and files that they have mapped do not count, as the kernel takes their pages back where memory is
/// short. That costs a walk through all their pages, so it is only done where the cheap sum, which counts all of it
/// for each, is more than `enough`.
pub(super) fn memory(seen: &Seen<'_>, enough: u64) -> u64 {
    let files = tmpfs::held(seen);
    let resident = |pid: i32| {
        let pages = seen.read(pid, "statm").ok()?.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()?;
        Some(pages.saturating_mul(page_size() as u64))
    };
    let each: Vec<(i32, u64)> = seen.pids.iter().filter_map(|pid| Some((*pid, resident(*pid)?))).collect();
    let sum = each.iter().map(|(_, bytes)| bytes).sum::<u64>().saturating_add(files);
    if sum <= enough {
        return sum;
    }
    let shares =
        each.iter().map(|(pid, bytes)| proportional(seen, *pid).or_else(|| whole(seen, *pid)).unwrap_or((*bytes, 0)));
    let (all, shared) = shares.fold((0, 0), |sum, share| (sum.0 + share.0, sum.1 + share.1));
    // What is mapped of those files is counted already; other shared memory is no file of theirs.
    all + files.saturating_sub(shared)
}

/// A process's share of the memory that it has mapped, and of the files in memory among it, in bytes.
fn proportional(seen: &Seen<'_>, pid: i32) -> Option<(u64, u64)> {
    share(&seen.read(pid, "smaps_rollup").ok()?)
}

/// The same of one that lets nobody look at what it has mapped, as the first process of an instance does: all that it shares
/// counts as its own.
fn whole(seen: &Seen<'_>, pid: i32) -> Option<(u64, u64)> {
    held(&seen.read(pid, "status").ok()?)
}

/// The same of the text of `status`.
fn held(text: &str) -> Option<(u64, u64)> {
    let in_memory = kilobytes(text, "RssShmem:")?;
    Some((kilobytes(text, "RssAnon:")?.saturating_add(in_memory) << 10, in_memory << 10))
}

/// The same of the text of `smaps_rollup`, which tells kinds of memory apart since Linux 5.3; before, all counts.
fn share(text: &str) -> Option<(u64, u64)> {
    let in_memory = kilobytes(text, "Pss_Shmem:").unwrap_or(0);
    let all = match kilobytes(text, "Pss_Anon:") {
        Some(own) => own.saturating_add(in_memory),
        None => kilobytes(text, "Pss:")?,
    };
    Some((all << 10, in_memory << 10))
}

/// The number of a line such as `Pss:  120 kB`.
fn kilobytes(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_suffix("kB")?.trim().parse().ok())
}

/// Fields of `/proc/PID/stat`, numbered as proc(5) does. The name in brackets may hold anything.
fn stat_field(text: &str, number: usize) -> Option<u64> {
    text.rsplit_once(')')?.1.split_ascii_whitespace().nth(number - 3)?.parse().ok()
}

/// Time that processes and the children that they waited for took, in microseconds.
fn cpu_of_processes(seen: &Seen<'_>) -> u64 {
    let ticks = |pid: &i32| {
        let text = seen.read(*pid, "stat").ok()?;
        Some((14..=17).filter_map(|number| stat_field(&text, number)).sum::<u64>())
    };
    let ticks: u64 = seen.pids.iter().filter_map(ticks).sum();
    ticks.saturating_mul(MICROS) / clock_ticks_per_second().max(1)
}

fn threads(seen: &Seen<'_>) -> u64 {
    seen.pids.iter().filter_map(|pid| stat_field(&seen.read(*pid, "stat").ok()?, 20)).sum()
}

fn io_of_processes(seen: &Seen<'_>) -> (u64, u64) {
    let texts: Vec<String> = seen.pids.iter().filter_map(|pid| seen.read(*pid, "io").ok()).collect();
    let sum = |key: &str| texts.iter().filter_map(|text| value_of(text, key)).sum();
    (sum("read_bytes"), sum("write_bytes"))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::Stdio;

    use super::*;
    use crate::runtime::sandbox::cgroup::groups::{Legacy, Unified};

    #[test]
    fn keys_are_whole_words() {
        let text = "low 0\noom 4\noom_kill 3\noom_group_kill 1\n";
        assert_eq!(value_of(text, "oom_kill"), Some(3));
        assert_eq!(value_of(text, "oom"), Some(4));
        assert_eq!(value_of(text, "kill"), None);
        assert_eq!(value_of("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "oom_kill"), Some(2));
    }

    #[test]
    fn numbers_of_disks_are_summed() {
        let text = "254:0 rbytes=4096 wbytes=100 rios=1 wios=1 dbytes=0 dios=0\n8:0 rbytes=1 wbytes=2 rios=0 wios=0\n";
        assert_eq!((sum_of(text, "rbytes="), sum_of(text, "wbytes=")), (4097, 102));
        let text = "254:0 Read 10\n254:0 Write 20\n254:0 Total 30\n8:0 Read 1\n8:0 Write 2\nTotal 33\n";
        assert_eq!((operations(text, "Read"), operations(text, "Write")), (11, 22));
    }

    #[test]
    fn files_that_are_mapped_are_no_memory_of_a_process() {
        let before =
            "55d0-7ffd ---p 00000000 00:00 0 [rollup]\nRss:  200 kB\nPss:                 120 kB\nPss_Dirty: 1 kB\n";
        assert_eq!(share(before), Some((120 << 10, 0)));
        let text = format!("{before}Pss_Anon: 30 kB\nPss_File:    85 kB\nPss_Shmem:     5 kB\n");
        assert_eq!(share(&text), Some((35 << 10, 5 << 10)));
        assert_eq!(share("Rss: 1 kB\n"), None);
        let status = "VmRSS:\t  1020 kB\nRssAnon:\t  200 kB\nRssFile:\t  800 kB\nRssShmem:\t  20 kB\n";
        assert_eq!(held(status), Some((220 << 10, 20 << 10)));
    }

    #[test]
    fn limits_and_use_are_read_from_files_of_both_versions() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        file("memory.events", "oom 1\noom_kill 1\n");
        file("memory.max", "1000\n");
        file("memory.current", "900\n");
        file("memory.stat", "anon 1\ninactive_file 200\nactive_file 5\ntotal_inactive_file 300\n");
        file("cpu.stat", "usage_usec 77\nuser_usec 1\n");
        file("pids.current", "3\n");
        file("pids.max", "max\n");
        file("io.stat", "");
        file("memory.limit_in_bytes", "9223372036854771712\n");
        file("memory.usage_in_bytes", "900\n");
        let unified = Unified {
            dir: folder.path().into(),
            controllers: Controller::ALL.to_vec(),
            kill: false,
            freeze: false,
            devices: Vec::new(),
            born_in: false,
            settings: vec![],
        };
        let groups = Groups { unified: Some(unified), legacy: vec![] };
        let members = Members::Below(std::process::id().cast_signed());
        let found = usage(&groups, &members);
        assert_eq!((oom_kills(&groups), found.cpu_usec, found.memory), (1, 77, Some(700)));
        assert_eq!((found.memory_limit, found.pids, found.pids_limit), (Some(1000), Some(3), None));
        assert_eq!((found.read_bytes, found.written_bytes), (Some(0), Some(0)));
        let legacy = Legacy { dir: folder.path().into(), controllers: vec![Controller::Memory], settings: vec![] };
        let groups = Groups { unified: None, legacy: vec![legacy] };
        assert_eq!((memory_current(&groups), memory_limit(&groups)), (Some(600), None));
    }

    #[test]
    fn processes_tell_where_groups_do_not() {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "echo up; read -r _"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // It has hardly any memory of its own before it has done something.
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
        let members = Members::Below(std::process::id().cast_signed());
        let found = usage(&Groups::default(), &members);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.memory.is_some_and(|bytes| bytes > 4096), "{found:?}");
        assert!(found.pids.is_some_and(|count| count >= 1));
        assert_eq!((found.memory_limit, found.pids_limit), (None, None));
    }
}
