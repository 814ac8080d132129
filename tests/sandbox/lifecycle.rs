//! Start, end, stop, survival.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use evenkeel::runtime::io::{ExecOutput, ExecRequest, LogOptions, Logs};
use evenkeel::runtime::{ErrorKind, Exec, Runtime, RuntimeEvent};
use evenkeel::spec::Signal;
use evenkeel::state::{EndedBy, ExitReason, InstanceRef, Phase, StopCause};
use futures::{FutureExt, StreamExt};
use rustix::process::{Pid, Signal as Kill, kill_process};

use crate::support::{PATIENCE, Sandbox, alive, read_json, request, rootfs, shell, shell_in, stop, with_own_mounts};

const FOREVER: &str = "while :; do sleep 0.05; done";

#[tokio::test]
async fn a_short_program_ends_with_its_code_and_its_output_is_kept() {
    let sandbox = Sandbox::new();
    let (exit, output) = sandbox.script("echo out; echo err >&2; exit 3").await;
    assert_eq!((exit.code, exit.reason, exit.ended_by), (Some(3), ExitReason::Exited, EndedBy::Itself));
    assert!(exit.started_at.is_some_and(|started| started <= exit.finished_at));
    assert_eq!(output, "out\nerr\n");
}

#[tokio::test]
async fn a_root_is_copied_before_a_port_or_an_address_is_taken() {
    // No overlay has its writable layer on an overlay, so roots are copied.
    let script = "mount -t tmpfs none /mnt && cd /mnt && mkdir lower upper work tmp && export TMPDIR=/mnt/tmp && \
                  mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work none tmp";
    let name = "lifecycle::a_root_is_copied_before_a_port_or_an_address_is_taken";
    if !with_own_mounts(script, name) {
        return;
    }
    let (sandbox, folder) = (Sandbox::new(), tempfile::tempdir().unwrap());
    let root = rootfs(folder.path());
    // To copy it takes longer than the kernel's clock of files needs to go on.
    std::fs::write(root.join("large"), vec![1; 64 << 20]).unwrap();
    let yaml = shell_in(&root, "true") + "\nendpoints: [{ name: http, protocol: http, port: 8080 }]";
    let created = sandbox.runtime.create(&request(&yaml, 0)).await.unwrap();
    let changed = |path: std::path::PathBuf| {
        let data = std::fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (data.ctime(), data.ctime_nsec())
    };
    let copied = changed(sandbox.dir(&created.as_ref()).join("copy/large"));
    let port = changed(sandbox.root.path().join("sandbox/ports.lock"));
    assert!(copied <= port, "{copied:?} {port:?}");
}

#[tokio::test]
async fn a_program_that_runs_is_listed_and_stopped_by_its_signal() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell(&format!("trap 'exit 7' TERM; echo armed; {FOREVER}"))).await;
    assert!(matches!(instance.phase, Phase::Running { ready: true, .. }));
    sandbox.wrote(&instance.as_ref(), "armed\n").await;
    assert_eq!(sandbox.find(&instance.as_ref()).await.unwrap(), instance);
    let order = stop(Signal::TERM, Duration::from_secs(10), StopCause::Idle);
    let stopped = sandbox.runtime.stop(&instance.as_ref(), &order).await.unwrap().unwrap();
    let Phase::Exited(exit) = stopped.phase else { panic!("{:?}", stopped.phase) };
    assert_eq!((exit.code, exit.ended_by), (Some(7), EndedBy::Request(StopCause::Idle)));
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
    assert!(!sandbox.dir(&instance.as_ref()).exists());
}

#[tokio::test]
async fn a_program_that_is_not_found_is_refused_by_name() {
    let sandbox = Sandbox::new();
    let yaml = "image: { name: host }\ncommand: { entrypoint: [no-such-program] }";
    let created = sandbox.runtime.create(&request(yaml, 0)).await.unwrap();
    let error = sandbox.runtime.start(&created.as_ref()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Rejected);
    assert!(error.message.contains("executable not found: \"no-such-program\""), "{error}");
    let exit = sandbox.ended(&created.as_ref()).await;
    assert_eq!((exit.code, exit.reason), (Some(127), ExitReason::RuntimeError));
}

#[tokio::test]
async fn another_controller_adopts_what_runs_and_stops_it() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell(FOREVER)).await;
    let other = sandbox.reopen();
    assert_eq!(other.list().await.unwrap().instances, std::slice::from_ref(&instance));
    let order = stop(Signal::KILL, Duration::ZERO, StopCause::Expired);
    let stopped = other.stop(&instance.as_ref(), &order).await.unwrap().unwrap();
    let Phase::Exited(exit) = stopped.phase else { panic!("{:?}", stopped.phase) };
    assert_eq!((exit.code, exit.ended_by), (Some(137), EndedBy::Request(StopCause::Expired)));
}

#[tokio::test]
async fn a_killed_supervisor_takes_its_program_along_and_is_told_as_an_exit() {
    let sandbox = Sandbox::new();
    let mut events = sandbox.runtime.events().await.unwrap();
    let instance = sandbox.run(&shell(&format!("setsid sh -c '{FOREVER}' & {FOREVER}"))).await;
    let run = read_json(&sandbox.dir(&instance.as_ref()).join("run.json"));
    let pid = |who: &str| i32::try_from(run[who]["pid"].as_i64().unwrap()).unwrap();
    assert!(alive(pid("program")));
    let supervisor = rustix::process::Pid::from_raw(pid("supervisor")).unwrap();
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    let exit = tokio::time::timeout(PATIENCE, async {
        loop {
            if let RuntimeEvent::Changed(changed) = events.next().await.unwrap()
                && let Phase::Exited(exit) = changed.phase
            {
                return exit;
            }
        }
    });
    let exit = exit.await.unwrap();
    assert_eq!((exit.code, exit.signal.as_deref()), (Some(137), Some("SIGKILL")));
    assert!(exit.runtime_error.as_ref().unwrap().contains("supervisor was lost"));
    // Looking recorded nothing; the same end is told again, and the calls that act record it.
    let folder = sandbox.dir(&instance.as_ref());
    assert!(!folder.join("exit.json").exists());
    assert_eq!(sandbox.ended(&instance.as_ref()).await, exit);
    let order = stop(Signal::KILL, Duration::ZERO, StopCause::Retired);
    let stopped = sandbox.runtime.stop(&instance.as_ref(), &order).await.unwrap().unwrap();
    assert_eq!(stopped.phase, Phase::Exited(exit.clone()));
    assert!(!alive(pid("program")) && !alive(pid("first")));
    assert_eq!(read_json(&folder.join("exit.json")), serde_json::to_value(&exit).unwrap());
    assert_eq!(sandbox.reopen().list().await.unwrap().instances, [stopped]);
    assert!(carry_mark(&folder).is_empty(), "what detached itself is gone too");
}

/// Processes with the mark of an instance, as plain processes have it.
fn carry_mark(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mark = format!("KEEL_INSTANCE={}", folder.display());
    let carries = |path: &std::path::PathBuf| {
        std::fs::read(path.join("environ"))
            .is_ok_and(|env| env.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()))
    };
    std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).filter(carries).collect()
}

/// A supervisor that does not act and is not found, while its program goes on.
struct Strayed {
    program: i32,
    supervisor: rustix::process::Pid,
}

impl Strayed {
    fn make(folder: &std::path::Path) -> Self {
        let mut run = read_json(&folder.join("run.json"));
        let pid = |who: &str| i32::try_from(run[who]["pid"].as_i64().unwrap()).unwrap();
        let (program, supervisor) = (pid("program"), rustix::process::Pid::from_raw(pid("supervisor")).unwrap());
        rustix::process::kill_process(supervisor, rustix::process::Signal::STOP).unwrap();
        run["supervisor"]["start"] = 1.into();
        std::fs::write(folder.join("run.json"), run.to_string()).unwrap();
        Self { program, supervisor }
    }
}

impl Drop for Strayed {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.supervisor, rustix::process::Signal::KILL);
    }
}

#[tokio::test]
async fn a_program_that_has_ended_is_not_said_to_run_before_its_end_is_recorded() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell(FOREVER)).await;
    let run = read_json(&sandbox.dir(&instance.as_ref()).join("run.json"));
    let pid = |who: &str| Pid::from_raw(i32::try_from(run[who]["pid"].as_i64().unwrap()).unwrap()).unwrap();
    let look = async || sandbox.runtime.inspect(&instance.as_ref()).await.unwrap().unwrap().phase;
    assert!(matches!(look().await, Phase::Running { .. }));
    kill_process(pid("supervisor"), Kill::STOP).unwrap();
    kill_process(pid("program"), Kill::KILL).unwrap();
    tokio::time::timeout(PATIENCE, async { while matches!(look().await, Phase::Running { .. }) {} }).await.unwrap();
    assert_eq!(look().await, Phase::Stopping, "nobody has written down how it ended");
    kill_process(pid("supervisor"), Kill::CONT).unwrap();
    let exit = sandbox.ended(&instance.as_ref()).await;
    assert_eq!((exit.code, look().await), (Some(137), Phase::Exited(exit)));
}

#[tokio::test]
async fn looking_at_a_lost_instance_kills_and_records_nothing() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell(FOREVER)).await;
    let folder = sandbox.dir(&instance.as_ref());
    let strayed = Strayed::make(&folder);
    let exit = sandbox.ended(&instance.as_ref()).await;
    assert!(exit.runtime_error.as_ref().unwrap().contains("supervisor was lost"));
    assert_eq!(sandbox.ended(&instance.as_ref()).await, exit);
    // One that never saw it alive says the same each time, too.
    let other = sandbox.reopen();
    let looks = [other.list().await.unwrap(), sandbox.reopen().list().await.unwrap()];
    assert!(matches!(looks[0].instances[0].phase, Phase::Exited(_)));
    assert_eq!(looks[0], looks[1]);
    let _events = other.events().await.unwrap();
    assert!(alive(strayed.program) && !folder.join("exit.json").exists());
}

#[tokio::test]
async fn what_a_lost_supervisor_left_ends_before_the_next_of_its_slot_is_created() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell(FOREVER)).await;
    let folder = sandbox.dir(&instance.as_ref());
    let strayed = Strayed::make(&folder);
    let exit = sandbox.ended(&instance.as_ref()).await;
    sandbox.runtime.create(&request(&shell(FOREVER), 1)).await.unwrap();
    assert!(alive(strayed.program), "another slot is no reason");
    let mut next = request(&shell(FOREVER), 0);
    next.id.attempt = 1;
    sandbox.runtime.create(&next).await.unwrap();
    assert!(!alive(strayed.program));
    assert_eq!(read_json(&folder.join("exit.json")), serde_json::to_value(&exit).unwrap());
}

#[tokio::test]
async fn what_a_lost_supervisor_left_ends_with_a_removal() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell(FOREVER)).await;
    let strayed = Strayed::make(&sandbox.dir(&instance.as_ref()));
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
    assert!(!alive(strayed.program));
    assert_eq!(sandbox.runtime.list().await.unwrap().instances, []);
}

#[tokio::test]
async fn after_a_reboot_everything_has_ended_and_nothing_is_signalled() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell(FOREVER)).await;
    let path = sandbox.dir(&instance.as_ref()).join("run.json");
    let mut run = read_json(&path);
    let original = run.clone();
    run["boot_id"] = "another".into();
    std::fs::write(&path, run.to_string()).unwrap();
    let exit = sandbox.ended(&instance.as_ref()).await;
    assert!(exit.runtime_error.unwrap().contains("restarted"), "it says why");
    assert!(alive(i32::try_from(run["program"]["pid"].as_i64().unwrap()).unwrap()), "nothing was signalled");
    // The same at every look.
    assert_eq!(sandbox.find(&instance.as_ref()).await, sandbox.find(&instance.as_ref()).await);
    assert!(!sandbox.dir(&instance.as_ref()).join("exit.json").exists(), "looking records nothing");
    std::fs::write(&path, original.to_string()).unwrap();
}

#[tokio::test]
async fn a_record_that_a_loss_of_power_cut_off_is_an_end_that_can_be_removed() {
    let sandbox = Sandbox::new();
    let created = sandbox.runtime.create(&request(&shell(FOREVER), 0)).await.unwrap();
    std::fs::write(sandbox.dir(&created.as_ref()).join("record.json"), "").unwrap();
    let listing = sandbox.runtime.list().await.unwrap();
    let [found] = &listing.instances[..] else { panic!("{listing:?}") };
    let Phase::Exited(exit) = &found.phase else { panic!("{:?}", found.phase) };
    assert!(exit.runtime_error.as_ref().unwrap().contains("record.json can't be read"), "it says why");
    assert_ne!(found.id.revision, created.id.revision, "nobody knows what it was");
    sandbox.runtime.remove(&found.as_ref()).await.unwrap();
    assert_eq!(sandbox.runtime.list().await.unwrap().instances, []);
}

/// The process that made an instance's supervisor; those of other runtimes are other tests'.
fn spawner_of(sandbox: &Sandbox, instance: &InstanceRef) -> i32 {
    let supervisor = read_json(&sandbox.dir(instance).join("run.json"))["supervisor"]["pid"].as_i64().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{supervisor}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
    assert_eq!(std::fs::read_to_string(format!("/proc/{parent}/comm")).unwrap(), "keel-spawner\n");
    parent
}

#[tokio::test]
async fn a_killed_spawner_is_replaced() {
    let sandbox = Sandbox::new();
    let first = sandbox.run(&shell(FOREVER)).await.as_ref();
    let spawner = spawner_of(&sandbox, &first);
    kill_process(Pid::from_raw(spawner).unwrap(), Kill::KILL).unwrap();
    // One that has not died yet takes an order that it never carries out, which is told as a failed start.
    while alive(spawner) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let second = sandbox.runtime.create(&request(&shell(FOREVER), 1)).await.unwrap();
    let second = sandbox.runtime.start(&second.as_ref()).await.unwrap();
    assert!(matches!(second.phase, Phase::Running { .. }), "{:?}", second.phase);
}

#[tokio::test]
async fn a_number_that_was_given_to_another_process_is_not_adopted() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell(FOREVER)).await;
    let path = sandbox.dir(&instance.as_ref()).join("run.json");
    let mut run = read_json(&path);
    let original = run.clone();
    // This test's own process, with a start time that is not its own.
    for who in ["supervisor", "first", "program"] {
        run[who] = serde_json::json!({ "pid": std::process::id(), "start": 1 });
    }
    std::fs::write(&path, run.to_string()).unwrap();
    let exit = sandbox.ended(&instance.as_ref()).await;
    assert_eq!(exit.code, Some(137));
    assert!(!sandbox.dir(&instance.as_ref()).join("exit.json").exists(), "looking records nothing");
    std::fs::write(&path, original.to_string()).unwrap();
}

#[tokio::test]
async fn a_broken_record_of_what_runs_is_an_unknown_phase_and_can_be_removed() {
    let sandbox = Sandbox::new();
    let running = sandbox.run(&shell(FOREVER)).await;
    std::fs::write(sandbox.dir(&running.as_ref()).join("record.json"), "{ \"version\": 1").unwrap();
    let found = sandbox.runtime.list().await.unwrap().instances.remove(0);
    assert!(matches!(found.phase, Phase::Unknown { .. }), "{:?}", found.phase);
    assert_eq!((found.id.name(), found.conditions[0].reason.as_str()), ("demo/web/0".into(), "RecordUnreadable"));
    sandbox.runtime.remove(&found.as_ref()).await.unwrap();
    assert!(!alive(running.pid.unwrap().cast_signed()), "its program ended with it");
    assert_eq!(sandbox.runtime.list().await.unwrap().instances, []);
}

#[tokio::test]
async fn a_leftover_without_a_record_is_no_instance_and_does_not_hinder_a_create() {
    let sandbox = Sandbox::new();
    let leftover = sandbox.root.path().join("sandbox/instances/demo_web_0_01234567_0");
    std::fs::create_dir_all(leftover.join("upper/old")).unwrap();
    assert_eq!(sandbox.runtime.list().await.unwrap().instances, []);
    let created = sandbox.runtime.create(&request(&shell(FOREVER), 0)).await.unwrap();
    assert_eq!(created.phase, Phase::Created);
    assert!(!leftover.join("upper/old").exists());
}

#[tokio::test]
async fn five_creates_at_once_get_five_ports() {
    let sandbox = Sandbox::new();
    let yaml = shell("echo $PORT") + "\nendpoints: [{ name: http, protocol: http, port: 80 }]";
    let requests: Vec<_> = (0..5).map(|slot| request(&yaml, slot)).collect();
    let created = futures::future::join_all(requests.iter().map(|request| sandbox.runtime.create(request))).await;
    let mut ports: Vec<u16> = created.into_iter().map(|created| created.unwrap().ports[0].host_port).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 5);
    let first = sandbox.runtime.list().await.unwrap().instances.remove(0);
    sandbox.runtime.start(&first.as_ref()).await.unwrap();
    sandbox.ended(&first.as_ref()).await;
    assert_eq!(sandbox.output(&first.as_ref()), format!("{}\n", first.ports[0].container_port));
}

#[tokio::test]
async fn output_is_bounded_and_its_last_lines_are_kept() {
    let sandbox = Sandbox::new();
    let (exit, _) = sandbox.script_with("logs: { max_size_bytes: 400000 }", "seq 1 60000").await;
    assert_eq!(exit.code, Some(0));
    let found = sandbox.runtime.list().await.unwrap().instances.remove(0);
    let logs = sandbox.dir(&found.as_ref()).join("logs");
    let sizes: Vec<u64> =
        std::fs::read_dir(&logs).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
    assert_eq!(sizes.len(), 5, "{sizes:?}");
    // Five files of 80,000 bytes, each exceeded by at most the lines of one read.
    assert!(sizes.iter().sum::<u64>() < 5 * 80_000 + 5 * 500_000, "{sizes:?}");
    assert!(sandbox.output(&found.as_ref()).ends_with("59999\n60000\n"));
}

#[tokio::test]
async fn a_command_inside_ends_when_nobody_reads_it() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell(FOREVER)).await;
    let command = ["sh", "-c", "echo $$; exec sleep 1000"].map(str::to_owned).to_vec();
    let request = ExecRequest { command, ..ExecRequest::default() };
    let mut session = Exec::exec(&sandbox.runtime, &instance.as_ref(), &request).await.unwrap();
    session.output.next().await.unwrap().unwrap();
    drop(session);
    let count = ["sh", "-c", "ps | grep -c 'sleep 100[0]'"].map(str::to_owned).to_vec();
    let gone = async {
        loop {
            let request = ExecRequest { command: count.clone(), ..ExecRequest::default() };
            let session = Exec::exec(&sandbox.runtime, &instance.as_ref(), &request).await.unwrap();
            let items: Vec<_> = session.output.collect().await;
            if matches!(items.first(), Some(Ok(ExecOutput::Stdout(text))) if text.starts_with(b"0")) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
}

#[tokio::test]
async fn a_command_inside_is_killed_with_what_it_started() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell(FOREVER)).await;
    let exec = async |script: &str| {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        let request = ExecRequest { command, ..ExecRequest::default() };
        Exec::exec(&sandbox.runtime, &instance.as_ref(), &request).await.unwrap()
    };
    // A child that is waited for, and one that lost its parent.
    let mut session = exec("(sleep 1001 & echo); sleep 1001; echo done").await;
    session.output.next().await.unwrap().unwrap();
    let killer = session.killer.clone();
    drop(session);
    killer.kill().await.unwrap();
    let left: Vec<_> = exec("ps -e -o args | grep -c 'sleep 100[1]'").await.output.collect().await;
    assert!(matches!(left.first(), Some(Ok(ExecOutput::Stdout(text))) if &**text == b"0\n"), "{left:?}");
    killer.kill().await.expect("what is gone is success");
}

#[tokio::test]
async fn a_file_that_hangs_fails_the_call_and_not_the_runtime() {
    let sandbox = Sandbox::new();
    let created = sandbox.runtime.create(&request(&shell(FOREVER), 0)).await.unwrap();
    let instance = created.as_ref();
    // Opening a pipe waits for the other end, as reading from a dead file server waits for its answer.
    let record = sandbox.dir(&instance).join("record.json");
    std::fs::remove_file(&record).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &record, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    tokio::time::pause();
    let order = stop(Signal::TERM, Duration::ZERO, StopCause::Retired);
    let mut next = request(&shell(FOREVER), 0);
    next.id.attempt = 1;
    let runtime = &sandbox.runtime;
    // Time stands still while files are waited for; it is moved on when every call has begun to.
    let late = async {
        for _ in 0..3 {
            tokio::time::advance(Duration::from_secs(3600)).await;
        }
    };
    let (listed, created, started, stopped, removed, ()) = tokio::join!(
        runtime.list(),
        runtime.create(&next),
        runtime.start(&instance),
        runtime.stop(&instance, &order),
        runtime.remove(&instance),
        late
    );
    // Lets go of the threads that wait, and of those that are about to.
    let end = std::fs::OpenOptions::new().read(true).write(true).open(&record).unwrap();
    std::fs::write(record.with_extension("new"), "{").unwrap();
    std::fs::rename(record.with_extension("new"), &record).unwrap();
    drop(end);
    assert_eq!(listed.unwrap_err().kind, ErrorKind::Timeout);
    assert_eq!(created.unwrap_err().kind, ErrorKind::Failed);
    assert_eq!(started.unwrap_err().kind, ErrorKind::Failed);
    assert_eq!(stopped.unwrap_err().kind, ErrorKind::Failed);
    assert_eq!(removed.unwrap_err().kind, ErrorKind::Failed);
}

#[tokio::test]
async fn a_follower_that_is_late_does_not_miss_the_last_line() {
    let sandbox = Sandbox::new();
    let mut followers = Vec::new();
    for slot in 0..10 {
        let script = "echo first; sleep 0.5; echo last";
        let created = sandbox.runtime.create(&request(&shell(script), slot)).await.unwrap();
        let started = sandbox.runtime.start(&created.as_ref()).await.unwrap().as_ref();
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let mut lines = Logs::logs(&sandbox.runtime, &started, &options).await.unwrap();
        assert_eq!(lines.next().await.unwrap().unwrap().text, "first");
        followers.push((started, lines));
    }
    // Nothing is read until every end can be seen as well as the line before it: this thread is the only one.
    for (instance, _) in &followers {
        while !sandbox.dir(instance).join("exit.json").exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    for (_, lines) in followers {
        let rest =
            tokio::time::timeout(PATIENCE, lines.map(|line| line.unwrap().text).collect::<Vec<_>>()).await.unwrap();
        assert_eq!(rest, ["last"]);
    }
}

#[tokio::test]
async fn an_order_that_was_never_delivered_is_given_again() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell(&format!("echo armed; {FOREVER}"))).await;
    let instance = instance.as_ref();
    // A supervisor that hands output on has looked for an order that came before it was there.
    sandbox.wrote(&instance, "armed\n").await;
    // What a controller leaves that is killed before it tells the supervisor.
    let order = r#"{"signal":"SIGTERM","grace_ms":0,"cause":"retired"}"#;
    std::fs::write(sandbox.dir(&instance).join("stop.json"), order).unwrap();
    let other = sandbox.reopen();
    let listed = other.list().await.unwrap().instances;
    assert!(matches!(listed[0].phase, Phase::Running { .. }), "nobody is stopping it: {:?}", listed[0].phase);
    let request = stop(Signal::KILL, Duration::ZERO, StopCause::Idle);
    let stopped = other.stop(&instance, &request).await.unwrap().unwrap();
    let Phase::Exited(exit) = stopped.phase else { panic!("{:?}", stopped.phase) };
    assert_eq!(exit.ended_by, EndedBy::Request(StopCause::Idle));
}

#[tokio::test]
async fn an_order_that_was_never_delivered_is_not_what_ended_a_lost_instance() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell(FOREVER)).await;
    let folder = sandbox.dir(&instance.as_ref());
    std::fs::write(folder.join("stop.json"), r#"{"signal":"SIGTERM","grace_ms":0,"cause":"idle"}"#).unwrap();
    let run = read_json(&folder.join("run.json"));
    let pid = i32::try_from(run["supervisor"]["pid"].as_i64().unwrap()).unwrap();
    let supervisor = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    assert_eq!(sandbox.ended(&instance.as_ref()).await.ended_by, EndedBy::Itself);
}

#[tokio::test]
async fn how_a_program_ended_is_recorded_though_its_record_can_not_be_synced() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell(&format!("trap 'exit 3' USR1; echo armed; {FOREVER}"))).await.as_ref();
    sandbox.wrote(&instance, "armed\n").await;
    let folder = sandbox.dir(&instance);
    // What is not there can't be synced either.
    let (record, kept) = (folder.join("record.json"), folder.join("kept"));
    std::fs::rename(&record, &kept).unwrap();
    let program = read_json(&folder.join("run.json"))["program"]["pid"].as_i64().unwrap();
    let program = rustix::process::Pid::from_raw(i32::try_from(program).unwrap()).unwrap();
    rustix::process::kill_process(program, rustix::process::Signal::USR1).unwrap();
    tokio::time::timeout(PATIENCE, async {
        while !folder.join("exit.json").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    std::fs::rename(&kept, &record).unwrap();
    let exit = sandbox.ended(&instance).await;
    assert_eq!((exit.code, exit.runtime_error, exit.ended_by), (Some(3), None, EndedBy::Itself));
}

#[tokio::test]
async fn what_is_being_stopped_is_shown_so_to_every_controller() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell(&format!("trap '' TERM; echo armed; {FOREVER}"))).await.as_ref();
    sandbox.wrote(&instance, "armed\n").await;
    let other = sandbox.reopen();
    let order = stop(Signal::TERM, Duration::from_millis(300), StopCause::Retired);
    let stopping = async {
        while !matches!(other.list().await.unwrap().instances[0].phase, Phase::Stopping) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let (stopped, ()) = tokio::join!(
        sandbox.runtime.stop(&instance, &order),
        tokio::time::timeout(PATIENCE, stopping).map(Result::unwrap)
    );
    assert!(matches!(stopped.unwrap().unwrap().phase, Phase::Exited(_)));
}

/// A supervisor that has just begun holds its lock and has written nothing yet.
#[tokio::test]
async fn an_instance_that_is_being_started_is_not_removed_below_its_supervisor() {
    let sandbox = Sandbox::new();
    let created = sandbox.runtime.create(&request(&shell("sleep 1000"), 0)).await.unwrap();
    let dir = sandbox.dir(&created.as_ref());
    let lock = std::fs::File::create(dir.join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let removal = tokio::spawn({
        let (runtime, instance) = (sandbox.runtime.clone(), created.as_ref());
        async move { runtime.remove(&instance).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(dir.join("record.json").exists());
    drop(lock);
    removal.await.unwrap().unwrap();
    assert!(!dir.exists());
}

/// Whichever comes first: nothing runs of it afterwards.
#[tokio::test]
async fn a_removal_and_a_start_at_the_same_time_leave_nothing() {
    let sandbox = Sandbox::new();
    for round in 0..20 {
        let created = sandbox.runtime.create(&request(&shell("exec sleep 1000"), round)).await.unwrap().as_ref();
        let late = async {
            tokio::time::sleep(Duration::from_micros(u64::from(round) * 300)).await;
            sandbox.runtime.remove(&created).await
        };
        let (_, removed) = tokio::join!(sandbox.runtime.start(&created), late);
        removed.unwrap();
        assert_eq!(sandbox.runtime.list().await.unwrap().instances, [], "{round}");
        assert!(!sandbox.dir(&created).exists());
    }
}

/// Names in the directory of all instances.
fn instances(sandbox: &Sandbox) -> Vec<String> {
    let entries = std::fs::read_dir(sandbox.root.path().join("sandbox/instances")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn an_instance_whose_output_is_read_goes_with_all_that_it_has() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell(&format!("echo first; {FOREVER}"))).await.as_ref();
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let mut lines = Logs::logs(&sandbox.runtime, &instance, &options).await.unwrap();
    assert_eq!(lines.next().await.unwrap().unwrap().text, "first");
    sandbox.runtime.remove(&instance).await.unwrap();
    assert_eq!(instances(&sandbox), Vec::<String>::new());
    drop(lines);
}

#[tokio::test]
async fn a_removal_takes_along_what_a_killed_one_left() {
    let sandbox = Sandbox::new();
    let left = sandbox.root.path().join("sandbox/instances/.gone-1-1");
    std::fs::create_dir_all(left.join("upper/etc")).unwrap();
    let created = sandbox.runtime.create(&request(&shell("true"), 0)).await.unwrap();
    sandbox.runtime.remove(&created.as_ref()).await.unwrap();
    assert_eq!(instances(&sandbox), Vec::<String>::new());
}

/// Memory in bytes that a process has for itself.
fn own_memory(pid: i64) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[tokio::test]
async fn a_supervisor_gives_back_what_a_burst_of_short_lines_took() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&shell("sleep 2; yes '' | head -c 1000000; echo done; sleep 1000")).await;
    let dir = sandbox.dir(&instance.as_ref());
    let supervisor = read_json(&dir.join("run.json"))["supervisor"]["pid"].as_i64().unwrap();
    let before = own_memory(supervisor);
    let log = || std::fs::read(dir.join("logs/output.log")).unwrap_or_default();
    let end = Instant::now() + PATIENCE;
    while !log().ends_with(b" done\n") {
        assert!(Instant::now() < end, "it has written all");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let during = own_memory(supervisor);
    assert!(during < before + (512 << 10), "{before}, then {during}");
    let end = Instant::now() + PATIENCE;
    while own_memory(supervisor) > before + (64 << 10) {
        assert!(Instant::now() < end, "{before}, then {during}, then {}", own_memory(supervisor));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
