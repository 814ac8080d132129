//! Controllers, spawners and supervisors that are killed at every instant of a life: nothing of it is left after the
//! removal, and what ran before still does.

mod tracer;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use evenkeel::runtime::sandbox::SandboxRuntime;
use evenkeel::runtime::{CreateRequest, Runtime, Volumes};
use evenkeel::spec::Signal;
use evenkeel::state::{Instance, InstanceRef, Phase, StopCause};

use self::tracer::{Run, Victim};
use crate::support::{PATIENCE, Sandbox, groups_of, is_root, keel, open, read_json, request, shell, stop};

/// Where the process that kills finds its root; it does nothing without.
const ROOT: &str = "KEEL_TEST_KILLED_ROOT";
/// Whom it kills.
const VICTIM: &str = "KEEL_TEST_KILLED";
/// Set where networks of deployments can be had.
const OWN_MACHINE: &str = "KEEL_TEST_NETWORK";
/// Longest time for all of it, which grows with the square of the calls: a rebuilt `/etc` takes three for each of its
/// entries.
const LONGEST: Duration = Duration::from_secs(600);
/// Age from which leftovers are nobody's.
const LONG_AGO: Duration = Duration::from_secs(120);
/// More changes than any life has.
const MOST: usize = 2_000;

/// One that has everything that can be left: limits, a port, a process that detaches itself.
fn lasting() -> String {
    shell("setsid sleep 1000 & exec sleep 1000")
        + "\nresources: { memory: 64Mi, pids_limit: 50 }\nendpoints: [{ name: http, protocol: http, port: 8080 }]"
}

#[test]
fn a_controller_that_is_killed_at_any_instant_leaves_nothing_after_the_removal() {
    kill_at_every_instant(
        Victim::Controller,
        "killed::a_controller_that_is_killed_at_any_instant_leaves_nothing_after_the_removal",
    );
}

#[test]
fn a_spawner_that_is_killed_at_any_instant_leaves_nothing_after_the_removal() {
    kill_at_every_instant(
        Victim::Spawner,
        "killed::a_spawner_that_is_killed_at_any_instant_leaves_nothing_after_the_removal",
    );
}

#[test]
fn a_supervisor_that_is_killed_at_any_instant_leaves_nothing_after_the_removal() {
    kill_at_every_instant(
        Victim::Supervisor,
        "killed::a_supervisor_that_is_killed_at_any_instant_leaves_nothing_after_the_removal",
    );
}

/// Does it on a machine of its own where that can be: a network namespace, in which deployments can have networks.
fn kill_at_every_instant(victim: Victim, test: &str) {
    if !is_root() || std::env::var_os(OWN_MACHINE).is_some() {
        return within(LONGEST + PATIENCE, kill_beside_a_bystander(victim));
    }
    let script = "ip link set lo up && exec \"$0\" --exact \"$1\" --nocapture";
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", script]).arg(std::env::current_exe().unwrap()).arg(test);
    command.env(OWN_MACHINE, "1").env("KEEL_TEST_PROGRAM", keel());
    succeed(&mut command);
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{text}");
    println!("{text}");
}

/// Has a process of its own do it, which must have a single thread, beside an instance that runs all the while.
async fn kill_beside_a_bystander(victim: Victim) {
    let sandbox = Sandbox::new();
    let mut bystander = request(&lasting(), 0);
    bystander.id.service = "bystander".into();
    let created = sandbox.runtime.create(&bystander).await.unwrap();
    sandbox.runtime.start(&created.as_ref()).await.unwrap();
    // With a limit of its own: a call of this process that blocks is waited for even after its test failed.
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", &LONGEST.as_secs().to_string()]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "killed::kills", "--test-threads=1", "--nocapture"]);
    command.env(ROOT, sandbox.root.path()).env(VICTIM, format!("{victim:?}")).env("KEEL_TEST_PROGRAM", keel());
    let run = tokio::task::spawn_blocking(move || succeed(&mut command)).await;
    run.expect("see above");
    let networks = names(&sandbox.root.path().join("sandbox/networks"));
    sandbox.runtime.remove(&created.as_ref()).await.unwrap();
    sandbox.runtime.teardown("demo", Volumes::Remove).await.unwrap();
    assert_eq!(names(&sandbox.root.path().join("sandbox/networks")), BTreeSet::new());
    for bridge in networks {
        assert!(!Path::new("/sys/class/net").join(&bridge).exists(), "{bridge}");
        let tables = Command::new("nft").args(["list", "tables"]).output();
        assert!(tables.is_ok_and(|tables| !String::from_utf8_lossy(&tables.stdout).contains(&bridge)), "{bridge}");
    }
    assert_eq!(control_groups(sandbox.root.path()), BTreeSet::new());
}

/// The process that kills: a test of no meaning of its own.
#[test]
fn kills() {
    let Some(root) = std::env::var_os(ROOT).map(PathBuf::from) else { return };
    let victims = [Victim::Controller, Victim::Spawner, Victim::Supervisor];
    let name = std::env::var(VICTIM).unwrap();
    let victim = victims.into_iter().find(|victim| format!("{victim:?}") == name).unwrap();
    let bench = Bench::new(root);
    let killed = (1..=MOST).take_while(|nth| bench.round(victim, *nth) == Run::Killed).count();
    println!("the {victim:?} was killed at {killed} instants");
    let least = if victim == Victim::Spawner { 3 } else { 30 };
    assert!((least..MOST).contains(&killed), "{killed}");
}

/// Where one life after the other is cut.
struct Bench {
    root: PathBuf,
    /// One that knows the machine, so that it is not probed each time.
    runtime: SandboxRuntime,
    request: CreateRequest,
    before: Before,
}

/// What there was before, and must be there afterwards.
#[derive(Debug, PartialEq)]
struct Before {
    bystander: serde_json::Value,
    instances: BTreeSet<String>,
    files: BTreeSet<String>,
    groups: BTreeSet<String>,
    leases: BTreeSet<String>,
}

/// Drives calls to their end on this thread and a few that are gone then.
fn drive<T>(calls: impl Future<Output = T>) -> T {
    within(PATIENCE, calls)
}

fn within<T>(limit: Duration, calls: impl Future<Output = T>) -> T {
    let driver = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    driver.block_on(async { tokio::time::timeout(limit, calls).await.expect("the calls end") })
}

impl Bench {
    fn new(root: PathBuf) -> Self {
        tracer::inherit();
        let runtime = open(&root, &owner(&root));
        drive(runtime.capabilities()).unwrap();
        let request = request(&lasting(), 0);
        let before = Before::look(&root);
        Self { root, runtime, request, before }
    }

    /// Lives one life, cut at the n-th instant, and looks at what is left.
    fn round(&self, victim: Victim, nth: usize) -> Run {
        tracer::reap_at_once(false);
        let ran = tracer::run(victim, nth, || drive(self.live(victim)));
        let run = ran.run;
        let went_well = ran.ended_well();
        let is_cut = victim == Victim::Controller && run == Run::Killed;
        assert!(went_well || is_cut, "{victim:?} {nth}: the calls of a controller that goes on");
        tracer::reap_at_once(true);
        drive(self.recover());
        wait_until(&format!("{victim:?} {nth}: no process"), || tracer::children().is_empty(), tracer::children);
        age(&self.root.join("sandbox"));
        drive(self.runtime.teardown("demo", Volumes::Keep)).unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.root.to_str().unwrap()), "{victim:?} {nth}: {mounts}");
        let is_clean = || Before::look(&self.root) == self.before;
        wait_until(&format!("{victim:?} {nth}: {:#?}", self.before), is_clean, || Before::look(&self.root));
        run
    }

    /// The calls of a controller.
    async fn live(&self, victim: Victim) -> bool {
        let runtime = self.runtime.clone();
        let instance = runtime.create(&self.request).await.unwrap().as_ref();
        let started = runtime.start(&instance).await;
        assert!(started.is_ok() || victim != Victim::Controller, "{started:?}");
        let order = stop(Signal::KILL, Duration::ZERO, StopCause::Retired);
        runtime.stop(&instance, &order).await.unwrap();
        runtime.remove(&instance).await.unwrap();
        true
    }

    /// What the next controller does: it finds one instance or none, and after a creation one, which it removes.
    async fn recover(&self) {
        let next = open(&self.root, &owner(&self.root));
        let found = self.others(&next).await;
        assert!(found.len() <= 1, "{found:?}");
        let created = self.runtime.create(&self.request).await.unwrap().as_ref();
        let dir = self.dir(&created);
        let record = read_json(&dir.join("record.json"));
        assert!(dir.exists() && found.iter().all(|one| one.as_ref() == created));
        let groups = groups_of(&dir);
        next.remove(&created).await.unwrap();
        assert_eq!(self.others(&next).await, []);
        assert!(groups.iter().all(|group| !group.exists()), "{groups:?}");
        if let Some(interface) = record["launch"]["network"]["link"]["bridge"]["interface"].as_str() {
            let path = Path::new("/sys/class/net").join(interface);
            wait_until("no interface", || !path.exists(), || interface);
        }
    }

    /// All instances but the bystander, which runs.
    async fn others(&self, runtime: &SandboxRuntime) -> Vec<Instance> {
        let all = runtime.list().await.unwrap().instances;
        let (bystander, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| one.id.service == "bystander");
        assert!(matches!(bystander[..], [Instance { phase: Phase::Running { .. }, .. }]), "{bystander:?}");
        others
    }

    fn dir(&self, instance: &InstanceRef) -> PathBuf {
        self.root.join("sandbox/instances").join(&instance.runtime_id)
    }
}

impl Before {
    fn look(root: &Path) -> Self {
        let sandbox = root.join("sandbox");
        let instances = names(&sandbox.join("instances"));
        let bystander = instances.iter().find(|name| name.starts_with("demo_bystander_")).unwrap();
        let bystander = read_json(&sandbox.join("instances").join(bystander).join("run.json"));
        let networks = sandbox.join("networks");
        let leases = names(&networks).iter().flat_map(|bridge| names(&networks.join(bridge).join("leases"))).collect();
        let mut files = names(&sandbox);
        // Made by the first that has something to say or to lock.
        files.retain(|name| !["wake", "ports.lock"].contains(&name.as_str()));
        Self { bystander, instances, files, groups: control_groups(root), leases }
    }
}

/// What a root's owner is called, as the other tests call it.
fn owner(root: &Path) -> String {
    root.file_name().unwrap().to_string_lossy().replace('.', "test-")
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Control groups anywhere that are named after the owner of a root.
fn control_groups(root: &Path) -> BTreeSet<String> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![PathBuf::from("/sys/fs/cgroup")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().starts_with(&owner(root)) {
                    found.insert(entry.path().to_string_lossy().into_owned());
                }
                folders.push(entry.path());
            }
        }
    }
    found
}

/// Makes leftovers look old: what is new may be another call's, which is under way.
fn age(sandbox: &Path) {
    let long_ago = SystemTime::now() - LONG_AGO;
    let seconds = long_ago.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let stamp = rustix::fs::Timespec { tv_sec: i64::try_from(seconds).unwrap(), tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: stamp, last_modification: stamp };
    let networks = sandbox.join("networks");
    let leases: Vec<_> = names(&networks).into_iter().map(|bridge| networks.join(bridge).join("leases")).collect();
    let folders = [vec![sandbox.to_owned(), sandbox.join("instances")], leases.clone()].concat();
    let inside = |folder: &PathBuf| names(folder).into_iter().map(|name| folder.join(name)).collect::<Vec<_>>();
    for path in folders.iter().flat_map(inside).chain(leases) {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, flags).unwrap();
    }
}

fn wait_until<T: std::fmt::Debug>(what: &str, is_so: impl Fn() -> bool, instead: impl Fn() -> T) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: {:#?}", instead());
        std::thread::sleep(Duration::from_millis(1));
    }
}
