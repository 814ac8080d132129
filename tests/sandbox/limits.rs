//! Limits: memory, processors, processes, disks; what is told of the end and of what was used.
//!
//! A machine without control groups of its own to give keeps some of them in other ways; each test says what it needs.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use evenkeel::runtime::io::{ExecOutput, ExecRequest};
use evenkeel::runtime::{Control, Exec, Runtime, Stats, Support};
use evenkeel::spec::Signal;
use evenkeel::state::{ExitReason, InstanceRef, Phase, StopCause, Volumes};
use futures::StreamExt;

use crate::support::{
    PATIENCE, REQUIRE_GROUPS, Sandbox, alive, groups_of, has_own_network, is_root, read_json, request, shell, stop,
};

const FOREVER: &str = "while :; do sleep 0.05; done";
/// Takes memory without end: `tail` keeps the last line, which never ends.
const BOMB: &str = "tail /dev/zero";

async fn support(sandbox: &Sandbox, control: Control) -> Support {
    sandbox.runtime.capabilities().await.unwrap().support(control)
}

/// Whether the machine enforces this; a skipped test says why.
async fn enforces(sandbox: &Sandbox, control: Control) -> bool {
    let support = support(sandbox, control).await;
    if support != Support::Enforced {
        eprintln!("skipped: {control:?} is not enforced here: {support:?}");
    }
    support == Support::Enforced
}

fn groups(sandbox: &Sandbox, instance: &InstanceRef) -> Vec<PathBuf> {
    let groups = groups_of(&sandbox.dir(instance));
    let required = std::env::var_os(REQUIRE_GROUPS).is_some();
    assert!(!groups.is_empty() || !required, "a user with a delegated group makes groups in it");
    groups
}

/// A process that holds a lock on this file (flock), where there is one.
pub fn holder(file: &Path) -> Option<i32> {
    let inode = std::fs::metadata(file).ok()?.ino().to_string();
    read("/proc/locks").lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.get(5)?.rsplit(':').next()? == inode).then(|| words.get(4)?.parse().ok())?
    })
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

/// Number after a word at the beginning of a line.
fn number(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok());
    line.unwrap_or_else(|| panic!("{key} in {text}"))
}

async fn run_inside(sandbox: &Sandbox, instance: &InstanceRef, script: &str) -> (String, i32) {
    let command = ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec();
    let request = ExecRequest { command, ..ExecRequest::default() };
    let session = Exec::exec(&sandbox.runtime, instance, &request).await.unwrap();
    let items: Vec<_> = tokio::time::timeout(PATIENCE, session.output.collect()).await.unwrap();
    let (mut text, mut code) = (String::new(), -1);
    for item in items {
        match item.unwrap() {
            ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes) => text += &String::from_utf8_lossy(&bytes),
            ExecOutput::Exit(exit) => code = exit,
        }
    }
    (text, code)
}

#[tokio::test]
async fn a_program_that_takes_more_memory_than_it_may_is_killed_and_told_so() {
    let sandbox = Sandbox::new();
    let (exit, _) = sandbox.script_with("resources: { memory: 32Mi, memory_swap: 32Mi }", BOMB).await;
    assert_eq!((exit.code, exit.signal.as_deref()), (Some(137), Some("SIGKILL")));
    assert_eq!((exit.oom_killed, exit.reason), (true, ExitReason::OomKilled));
    assert_eq!(exit.runtime_error, None);
}

#[tokio::test]
async fn children_that_take_too_much_together_end_their_instance_too() {
    let sandbox = Sandbox::new();
    // Each of them is small enough.
    let script = "for n in 1 2 3 4 5 6; do dd if=/dev/zero bs=12582912 count=9 2>/dev/null | sleep 60 & done; wait";
    let yaml = shell(script) + "\nresources: { memory: 48Mi, memory_swap: 48Mi }";
    let instance = sandbox.run(&yaml).await;
    let exit = sandbox.ended(&instance.as_ref()).await;
    assert_eq!((exit.code, exit.oom_killed, exit.reason), (Some(137), true, ExitReason::OomKilled));
}

#[tokio::test]
async fn files_in_memory_count_as_memory() {
    let sandbox = Sandbox::new();
    let script = "dd if=/dev/zero of=/dev/shm/a bs=1M count=40 2>/dev/null; exec sleep 60";
    let (exit, _) = sandbox.script_with("resources: { memory: 32Mi, memory_swap: 32Mi }", script).await;
    assert_eq!((exit.code, exit.oom_killed, exit.reason), (Some(137), true, ExitReason::OomKilled));

    let script = "dd if=/dev/zero of=/dev/shm/a bs=1M count=20 2>/dev/null; echo written; exec sleep 60";
    let mut smaller = request(&(shell(script) + "\nresources: { memory: 64Mi, memory_swap: 64Mi }"), 1);
    smaller.id.slot = 1;
    let instance = sandbox.runtime.create(&smaller).await.unwrap().as_ref();
    sandbox.runtime.start(&instance).await.unwrap();
    sandbox.wrote(&instance, "written\n").await;
    let memory = Stats::stats(&sandbox.runtime, &instance).await.unwrap().memory;
    assert!(memory.is_some_and(|bytes| (20 << 20..40 << 20).contains(&bytes)), "{memory:?}");
}

#[tokio::test]
async fn an_end_that_has_nothing_to_do_with_memory_is_not_told_as_one() {
    let sandbox = Sandbox::new();
    let (exit, _) = sandbox.script_with("resources: { memory: 64Mi }", "kill -9 $$").await;
    assert_eq!((exit.code, exit.oom_killed, exit.reason), (Some(137), false, ExitReason::Signal));
    let mut other = request(&(shell("exit 137") + "\nresources: { memory: 64Mi }"), 1);
    other.id.slot = 1;
    let created = sandbox.runtime.create(&other).await.unwrap();
    sandbox.runtime.start(&created.as_ref()).await.unwrap();
    let exit = sandbox.ended(&created.as_ref()).await;
    assert_eq!((exit.code, exit.oom_killed), (Some(137), false));
}

#[tokio::test]
async fn a_child_that_is_killed_for_memory_takes_its_instance_along() {
    let sandbox = Sandbox::new();
    let script = format!("{BOMB}; echo child $?; exec sleep 60");
    let (exit, _) = sandbox.script_with("resources: { memory: 32Mi, memory_swap: 32Mi }", &script).await;
    assert_eq!((exit.code, exit.oom_killed, exit.reason), (Some(137), true, ExitReason::OomKilled));
}

#[tokio::test]
async fn a_program_that_ends_at_once_after_its_child_was_killed_for_memory_is_told_as_killed_too() {
    let sandbox = Sandbox::new();
    if !enforces(&sandbox, Control::MemoryLimit).await {
        return;
    }
    let (exit, _) =
        sandbox.script_with("resources: { memory: 32Mi, memory_swap: 32Mi }", &format!("{BOMB}; exit 0")).await;
    assert_eq!((exit.oom_killed, exit.reason), (true, ExitReason::OomKilled));
}

#[tokio::test]
async fn the_next_run_does_not_inherit_the_kill_of_the_one_before() {
    let sandbox = Sandbox::new();
    let storage = "\nstorage: [{ type: named, name: data, target: /mnt }]";
    let script = format!("test -e /mnt/seen && kill -9 $$; touch /mnt/seen; exec {BOMB}");
    let yaml = shell(&script) + "\nresources: { memory: 32Mi, memory_swap: 32Mi }" + storage;
    let instance = sandbox.run(&yaml).await;
    assert!(sandbox.ended(&instance.as_ref()).await.oom_killed);
    sandbox.runtime.start(&instance.as_ref()).await.unwrap();
    let exit = sandbox.ended(&instance.as_ref()).await;
    assert_eq!((exit.code, exit.oom_killed), (Some(137), false), "{}", sandbox.output(&instance.as_ref()));
}

#[tokio::test]
async fn memory_without_control_groups_is_watched_and_told_so() {
    let sandbox = Sandbox::new();
    let created =
        sandbox.runtime.create(&request(&(shell("true") + "\nresources: { memory: 32Mi }"), 0)).await.unwrap();
    let told = created.conditions.iter().any(|condition| condition.reason == "MemoryWatched");
    match support(&sandbox, Control::MemoryLimit).await {
        Support::Enforced => assert!(!told),
        Support::Degraded { why } => {
            assert!(told, "{:?}", created.conditions);
            assert!(why.contains("kills the instance that exceeds it: "), "{why}");
        }
        Support::Absent { why } => panic!("{why}"),
    }
    if std::env::var_os(REQUIRE_GROUPS).is_none() {
        assert!(is_root() || told, "an ordinary user has no control groups in these tests");
    }
}

#[tokio::test]
async fn a_command_inside_counts_and_ends_its_instance_too() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&(shell(FOREVER) + "\nresources: { memory: 32Mi, memory_swap: 32Mi }")).await;
    let (_, code) = run_inside(&sandbox, &instance.as_ref(), BOMB).await;
    assert_eq!(code, 137);
}

#[tokio::test]
async fn a_fork_bomb_stops_at_its_limit() {
    let sandbox = Sandbox::new();
    if !enforces(&sandbox, Control::PidsLimit).await {
        return;
    }
    let script = "bomb() { bomb | bomb & }; bomb 2>/dev/null & exec sleep 600";
    let instance = sandbox.run(&(shell(script) + "\nresources: { pids_limit: 40 }")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let began = Instant::now();
    let stats = Stats::stats(&sandbox.runtime, &instance.as_ref()).await.unwrap();
    assert_eq!(stats.pids_limit, Some(40));
    assert!(stats.pids.is_some_and(|count| count <= 40), "{stats:?}");
    let order = stop(Signal::KILL, Duration::ZERO, StopCause::Retired);
    sandbox.runtime.stop(&instance.as_ref(), &order).await.unwrap();
    assert!(began.elapsed() < PATIENCE, "the machine stays responsive: {:?}", began.elapsed());
    assert!(groups(&sandbox, &instance.as_ref()).iter().all(|group| !group.exists()));
}

#[tokio::test]
async fn members_of_a_pool_are_bounded_and_services_are_not() {
    let sandbox = Sandbox::new();
    if !enforces(&sandbox, Control::PidsLimit).await {
        return;
    }
    let limit_of = async |more: &str, slot: u32| {
        let created = sandbox.runtime.create(&request(&(shell(FOREVER) + more), slot)).await.unwrap();
        let started = sandbox.runtime.start(&created.as_ref()).await.unwrap();
        Stats::stats(&sandbox.runtime, &started.as_ref()).await.unwrap().pids_limit
    };
    assert_eq!(limit_of("\npool: {}", 0).await, Some(2048));
    assert_eq!(limit_of("", 1).await, None);
}

#[tokio::test]
async fn a_share_of_a_processor_is_not_exceeded() {
    let sandbox = Sandbox::new();
    if !enforces(&sandbox, Control::CpuLimit).await {
        return;
    }
    let instance = sandbox.run(&(shell("while :; do :; done") + "\nresources: { cpu: 0.1 }")).await;
    let group = group_with_quota(&sandbox, &instance.as_ref());
    let end = Instant::now() + PATIENCE;
    while number(&read(group.join("cpu.stat")), "nr_throttled ") < 3 {
        assert!(Instant::now() < end, "{}", read(group.join("cpu.stat")));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = Stats::stats(&sandbox.runtime, &instance.as_ref()).await.unwrap();
    let after = loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let after = Stats::stats(&sandbox.runtime, &instance.as_ref()).await.unwrap();
        assert!(Instant::now() < end, "it gets its share: {after:?}");
        if after.cpu_usec > before.cpu_usec {
            break after;
        }
    };
    let passed = (after.at - before.at).num_microseconds().unwrap();
    let used = i64::try_from(after.cpu_usec - before.cpu_usec).unwrap();
    // A tenth is allowed; some periods more than their share may fall into the time.
    assert!(used * 4 <= passed, "{used} of {passed} us");
}

fn group_with_quota(sandbox: &Sandbox, instance: &InstanceRef) -> PathBuf {
    let groups = groups(sandbox, instance);
    let has = |file: &str| groups.iter().find(|group| group.join(file).exists()).cloned();
    has("cpu.cfs_quota_us").or_else(|| has("cpu.max")).expect("a group with a quota")
}

#[tokio::test]
async fn every_limit_is_in_the_files_of_its_groups() {
    let sandbox = Sandbox::new();
    if !enforces(&sandbox, Control::MemoryLimit).await || !enforces(&sandbox, Control::CpuLimit).await {
        return;
    }
    let resources = "\nresources: { memory: 64Mi, memory_reservation: 32Mi, memory_swap: 96Mi, cpu: 1.5, \
                     cpu_shares: 512, cpuset: '0', pids_limit: 99, blkio_weight: 300 }";
    let instance = sandbox.run(&(shell(FOREVER) + resources)).await.as_ref();
    let value = |files: &[&str]| {
        let groups = groups(&sandbox, &instance);
        let text = files
            .iter()
            .find_map(|file| groups.iter().find_map(|group| std::fs::read_to_string(group.join(file)).ok()));
        text.unwrap_or_else(|| panic!("{files:?} in {groups:?}")).trim().to_owned()
    };
    assert_eq!(value(&["memory.max", "memory.limit_in_bytes"]), (64 << 20).to_string());
    assert_eq!(value(&["memory.low", "memory.soft_limit_in_bytes"]), (32 << 20).to_string());
    assert!(["150000 100000", "150000"].contains(&value(&["cpu.max", "cpu.cfs_quota_us"]).as_str()));
    assert!(["59", "512"].contains(&value(&["cpu.weight", "cpu.shares"]).as_str()));
    assert_eq!(value(&["cpuset.cpus"]), "0");
    assert_eq!(value(&["pids.max"]), "99");
}

#[tokio::test]
async fn a_processor_that_does_not_exist_is_refused_by_name_and_leaves_nothing() {
    let sandbox = Sandbox::new();
    if !enforces(&sandbox, Control::CpuLimit).await {
        return;
    }
    let created =
        sandbox.runtime.create(&request(&(shell("true") + "\nresources: { cpuset: '4095' }"), 0)).await.unwrap();
    let error = sandbox.runtime.start(&created.as_ref()).await.unwrap_err();
    assert!(error.message.contains("resources.cpuset: "), "{error}");
    assert!(groups(&sandbox, &created.as_ref()).iter().all(|group| !group.exists()));
}

#[tokio::test]
async fn a_limit_too_small_to_start_is_told_by_name() {
    let sandbox = Sandbox::new();
    if !enforces(&sandbox, Control::MemoryLimit).await {
        return;
    }
    let created =
        sandbox.runtime.create(&request(&(shell("true") + "\nresources: { memory: 4096 }"), 0)).await.unwrap();
    let error = sandbox.runtime.start(&created.as_ref()).await.unwrap_err();
    assert!(error.message.contains("resources.memory: 4096 bytes are too few"), "{error}");
    assert!(groups(&sandbox, &created.as_ref()).iter().all(|group| !group.exists()));
}

#[tokio::test]
async fn inside_the_own_group_is_the_root_and_nothing_of_it_can_be_written() {
    let sandbox = Sandbox::new();
    if !enforces(&sandbox, Control::CgroupNamespace).await {
        return;
    }
    let script = "cut -d: -f3 /proc/self/cgroup | sort -u; \
                  for f in $(find /sys/fs/cgroup -type f); do (echo 1 > $f) 2>/dev/null && echo wrote $f; done; \
                  mkdir /sys/fs/cgroup/x /sys/fs/cgroup/memory/x 2>/dev/null && echo made; \
                  grep -c . /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/unified/cgroup.procs 2>/dev/null | sed 's/.*://' | sort -u; \
                  ls /sys/fs/cgroup | grep -c keel";
    let yaml = shell(script) + "\nuser: '0'\nresources: { memory: 64Mi }";
    let instance = sandbox.run(&yaml).await;
    sandbox.ended(&instance.as_ref()).await;
    let output = sandbox.output(&instance.as_ref());
    let mut lines: Vec<&str> = output.lines().collect();
    assert_eq!((lines.remove(0), lines.pop()), ("/", Some("0")), "{output}");
    // Only processes of the instance, where it has a group at all: the init process, the shell and a pipe.
    for count in lines {
        assert!(count.parse::<u32>().is_ok_and(|count| (2..8).contains(&count)), "{output}");
    }
}

#[tokio::test]
async fn what_runs_inside_is_in_the_groups_of_the_instance() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell(FOREVER)).await.as_ref();
    let groups = groups(&sandbox, &instance);
    if groups.is_empty() {
        return eprintln!("skipped: there are no control groups to use here");
    }
    let run = read_json(&sandbox.dir(&instance).join("run.json"));
    let name = groups[0].file_name().unwrap().to_str().unwrap().to_owned();
    for who in ["first", "program"] {
        let text = read(format!("/proc/{}/cgroup", run[who]["pid"]));
        assert_eq!(text.lines().filter(|line| line.ends_with(&name)).count(), groups.len(), "{who}: {text}");
    }
    let supervisor = read(format!("/proc/{}/cgroup", run["supervisor"]["pid"]));
    assert!(!supervisor.contains(&name), "the supervisor is not held to the limits of its instance");
    let (inside, code) = run_inside(&sandbox, &instance, "cut -d: -f3 /proc/self/cgroup | sort -u").await;
    assert_eq!((inside.as_str(), code), ("/\n", 0));
}

#[tokio::test]
async fn groups_are_gone_after_the_end_and_after_the_removal_of_what_runs() {
    let sandbox = Sandbox::new();
    let more = "\nresources: { memory: 64Mi, cpu: 1, pids_limit: 50 }";
    let (_, _) = sandbox.script_with(&more[1..], "sleep 60 & exit 0").await;
    let ended = sandbox.runtime.list().await.unwrap().instances.remove(0).as_ref();
    let left: Vec<_> = groups(&sandbox, &ended).into_iter().filter(|group| group.exists()).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
    let created = sandbox.runtime.create(&request(&(shell(FOREVER) + more), 1)).await.unwrap().as_ref();
    sandbox.runtime.start(&created).await.unwrap();
    let groups = groups(&sandbox, &created);
    assert!(groups.iter().all(|group| group.exists()));
    sandbox.runtime.remove(&created).await.unwrap();
    assert!(groups.iter().all(|group| !group.exists()));
}

#[tokio::test]
async fn groups_of_a_killed_supervisor_go_with_the_next_call_that_acts() {
    let sandbox = Sandbox::new();
    let yaml = shell(&format!("setsid sh -c '{FOREVER}' & {FOREVER}")) + "\nresources: { memory: 64Mi }";
    for act in ["stop", "remove", "start", "create"] {
        let instance = sandbox.run(&yaml).await.as_ref();
        let groups = groups(&sandbox, &instance);
        let run = read_json(&sandbox.dir(&instance).join("run.json"));
        let pid = |who: &str| i32::try_from(run[who]["pid"].as_i64().unwrap()).unwrap();
        let supervisor = rustix::process::Pid::from_raw(pid("supervisor")).unwrap();
        rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
        sandbox.ended(&instance).await;
        let runtime = sandbox.reopen();
        match act {
            "stop" => {
                let order = stop(Signal::KILL, Duration::ZERO, StopCause::Retired);
                runtime.stop(&instance, &order).await.unwrap();
            }
            "remove" => runtime.remove(&instance).await.unwrap(),
            "start" => {
                // The next run has groups of its own by the same names.
                runtime.start(&instance).await.unwrap();
                let order = stop(Signal::KILL, Duration::ZERO, StopCause::Retired);
                runtime.stop(&instance, &order).await.unwrap();
            }
            _ => {
                let mut next = request(&yaml, 0);
                next.id.attempt = 1;
                runtime.create(&next).await.unwrap();
            }
        }
        assert!(!alive(pid("program")), "{act}");
        assert!(groups.iter().all(|group| !group.exists()), "{act}: {groups:?}");
        for left in runtime.list().await.unwrap().instances {
            runtime.remove(&left.as_ref()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_supervisor_that_is_killed_at_any_instant_leaves_nothing_after_the_removal() {
    let sandbox = Sandbox::new();
    let yaml = shell(&format!("setsid sleep 7778 & {FOREVER}")) + "\nresources: { memory: 64Mi, pids_limit: 50 }";
    let mut made = false;
    for round in 0..30_u32 {
        let created = sandbox.runtime.create(&request(&yaml, round)).await.unwrap().as_ref();
        let (runtime, target) = (sandbox.reopen(), created.clone());
        let starting = tokio::spawn(async move { runtime.start(&target).await.map(drop) });
        let lock = sandbox.dir(&created).join("lock");
        let (end, mut supervisor) = (Instant::now() + PATIENCE, None);
        while supervisor.is_none() && !starting.is_finished() && Instant::now() < end {
            supervisor = holder(&lock);
            tokio::task::yield_now().await;
        }
        // A start takes some milliseconds; the kills are spread over them and what follows.
        tokio::time::sleep(Duration::from_micros(u64::from(round * round) * 60)).await;
        // A list of locks that changes while it is read may leave one out.
        let Some(supervisor) = supervisor.or_else(|| (0..100).find_map(|_| holder(&lock))) else {
            panic!("round {round}: no supervisor, and the start gave {:?}", starting.await);
        };
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_raw(supervisor).unwrap(),
            rustix::process::Signal::KILL,
        );
        let _ = starting.await.unwrap();
        let groups = groups(&sandbox, &created);
        made |= groups.is_empty() || groups.iter().any(|group| group.exists());
        sandbox.reopen().remove(&created).await.unwrap();
        assert!(groups.iter().all(|group| !group.exists()), "round {round}: {groups:?}");
        assert!(!sandbox.dir(&created).exists(), "round {round}");
    }
    assert!(made, "some of them were killed late enough to leave something");
    let left = std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| line.starts_with(b"sleep\x007778"))
    });
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn groups_that_were_left_before_anything_ran_go_with_the_instance() {
    let sandbox = Sandbox::new();
    let created =
        sandbox.runtime.create(&request(&(shell("true") + "\nresources: { memory: 64Mi }"), 0)).await.unwrap();
    let groups = groups(&sandbox, &created.as_ref());
    // As a supervisor leaves them that is killed right after it made them.
    for group in &groups {
        std::fs::create_dir_all(group).unwrap();
    }
    sandbox.runtime.start(&created.as_ref()).await.unwrap();
    assert_eq!(sandbox.ended(&created.as_ref()).await.code, Some(0));
    for group in &groups {
        std::fs::create_dir_all(group).unwrap();
    }
    sandbox.runtime.remove(&created.as_ref()).await.unwrap();
    assert!(groups.iter().all(|group| !group.exists()));
}

#[tokio::test]
async fn groups_of_an_instance_whose_record_is_broken_are_found_by_name() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&(shell(FOREVER) + "\nresources: { memory: 64Mi, pids_limit: 9 }")).await.as_ref();
    let groups = groups(&sandbox, &instance);
    let run = read_json(&sandbox.dir(&instance).join("run.json"));
    std::fs::write(sandbox.dir(&instance).join("record.json"), "{").unwrap();
    sandbox.reopen().remove(&instance).await.unwrap();
    assert!(groups.iter().all(|group| !group.exists()), "{groups:?}");
    if !groups.is_empty() {
        assert!(!alive(i32::try_from(run["program"]["pid"].as_i64().unwrap()).unwrap()));
    }
}

#[tokio::test]
async fn a_record_that_names_a_group_of_somebody_else_does_no_harm() {
    let sandbox = Sandbox::new();
    let created = sandbox.runtime.create(&request(&shell(FOREVER), 0)).await.unwrap().as_ref();
    let Some(group) = groups(&sandbox, &created).into_iter().next() else { return };
    let parent = group.parent().unwrap();
    let foreign = parent.join(format!("foreign-{}", std::process::id()));
    std::fs::create_dir_all(&foreign).unwrap();
    let path = sandbox.dir(&created).join("record.json");
    let text = read(&path).replace(group.to_str().unwrap(), foreign.to_str().unwrap());
    std::fs::write(&path, text).unwrap();
    sandbox.runtime.remove(&created).await.unwrap();
    assert!(foreign.exists());
    std::fs::remove_dir(&foreign).unwrap();
    sandbox.runtime.teardown("demo", Volumes::Keep).await.unwrap();
}

#[tokio::test]
async fn a_frozen_instance_does_not_run_and_is_told_as_paused() {
    let sandbox = Sandbox::new();
    let script = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done";
    let instance = sandbox.run(&shell(script)).await.as_ref();
    sandbox.wrote(&instance, "3\n").await;
    let Some(group) = groups(&sandbox, &instance).into_iter().find(|group| group.join("cgroup.freeze").exists()) else {
        return eprintln!("skipped: there is no freezer here");
    };
    std::fs::write(group.join("cgroup.freeze"), "1").unwrap();
    let end = Instant::now() + PATIENCE;
    while !matches!(sandbox.find(&instance).await.unwrap().phase, Phase::Paused { .. }) {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let before = sandbox.output(&instance);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(sandbox.output(&instance), before);
    // A stop reaches it all the same, by its signal and in its grace.
    let order = stop(Signal::TERM, PATIENCE, StopCause::Retired);
    let stopped = sandbox.runtime.stop(&instance, &order).await.unwrap().unwrap();
    let Phase::Exited(exit) = stopped.phase else { panic!("{:?}", stopped.phase) };
    assert_eq!(exit.code, Some(143));
}

#[tokio::test]
async fn what_is_used_is_told_while_it_runs() {
    let sandbox = Sandbox::new();
    let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; sleep 60; :";
    let instance = sandbox.run(&(shell(script) + "\nresources: { memory: 64Mi }")).await.as_ref();
    sandbox.wrote(&instance, "done\n").await;
    // The init process, the shell, its sleep.
    let end = Instant::now() + PATIENCE;
    let stats = loop {
        let stats = Stats::stats(&sandbox.runtime, &instance).await.unwrap();
        if stats.pids == Some(3) {
            break stats;
        }
        assert!(Instant::now() < end, "{stats:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!((1..60_000_000).contains(&stats.cpu_usec), "{stats:?}");
    assert_eq!(stats.memory_limit, Some(64 << 20));
    assert!(stats.memory.is_some_and(|bytes| (4096..64 << 20).contains(&bytes)), "{stats:?}");
    assert!(stats.read_bytes.is_some() && stats.written_bytes.is_some());
    // Interfaces of the machine tell nothing about one instance.
    assert_eq!(stats.received_bytes.is_some(), has_own_network(&sandbox, &instance), "{stats:?}");
    let order = stop(Signal::KILL, Duration::ZERO, StopCause::Retired);
    sandbox.runtime.stop(&instance, &order).await.unwrap();
    let error = Stats::stats(&sandbox.runtime, &instance).await.unwrap_err();
    assert!(error.message.contains("does not run"), "{error}");
}
