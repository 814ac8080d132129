//! Which control groups this machine lets keel make, found out by making one and using it. Runs in a process of one
//! thread.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal, WaitOptions, pidfd_send_signal, setrlimit, waitpid};

use super::super::sys::{self, Fork, Namespaces};
use super::control;
use super::delegation::{base, hierarchies};
use super::groups::Groups;
use super::hierarchy::{Controller, Hierarchies, Hierarchy};
use super::home::{self, Homes, LegacyHome, PARENT, UnifiedHome};
use super::seat::{Seat, bare};

/// Longest time that trying one thing out may take; it takes less than a millisecond.
const TRY_LIMIT: Duration = Duration::from_secs(1);
/// Files of the weight of disk accesses in version 2, the more effective one first.
const UNIFIED_WEIGHTS: [&str; 2] = ["io.bfq.weight", "io.weight"];
/// The same in version 1; the scheduler that had the first one left Linux with 5.0.
const LEGACY_WEIGHTS: [&str; 2] = ["blkio.weight", "blkio.bfq.weight"];

/// What control groups can be used for. Leaves nothing behind; a parent is made again when an instance needs it.
pub fn probe() -> Homes {
    let found = hierarchies();
    let is_root = rustix::process::geteuid().is_root();
    let mut refused = Vec::new();
    let unified = match &found.unified {
        Some(hierarchy) => unified_home(hierarchy, is_root, &mut refused),
        None => Err("no control groups of version 2 are mounted".to_owned()),
    };
    let legacy = found.legacy.iter().filter_map(|hierarchy| match legacy_home(hierarchy, is_root) {
        Ok(home) => Some(home),
        Err(why) => {
            refused.extend(hierarchy.controllers.iter().map(|controller| (*controller, why.clone())));
            None
        }
    });
    let mut homes = Homes { legacy: legacy.collect(), io_weight: Ok(()), refused: Vec::new(), unified };
    homes.refused = missing(&homes, &found, &refused);
    homes.io_weight = io_weight(&homes);
    remove_unused(&homes);
    homes
}

/// Removes parents that hold no instance's group.
pub fn remove_unused(homes: &Homes) {
    for dir in homes.dirs() {
        let _ = fs::remove_dir(dir);
    }
}

/// Why each controller that can't be used can't.
fn missing(homes: &Homes, found: &Hierarchies, refused: &[(Controller, String)]) -> Vec<(Controller, String)> {
    let absent = Controller::ALL.into_iter().filter(|it| homes.unified(*it).is_none() && homes.legacy(*it).is_none());
    absent
        .map(|controller| {
            let told = refused.iter().find(|(one, _)| *one == controller).map(|(_, why)| why.clone());
            let why = told.unwrap_or_else(|| match (&homes.unified, &found.unified) {
                (Err(why), _) => why.clone(),
                (Ok(_), _) => format!("the kernel offers no controller {} here", controller.legacy_name()),
            });
            (controller, why)
        })
        .collect()
}

/// Name of groups for trying things out, before the number of the process that does.
const SCRATCH: &str = ".probe-";

/// A directory below a parent for trying things out, which no other process uses.
fn scratch(parent: &Path) -> PathBuf {
    parent.join(format!("{SCRATCH}{}", std::process::id()))
}

/// Removes what probes that were killed left below a parent.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(SCRATCH)) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            let _ = control::clear(&bare(&entry.path(), false), TRY_LIMIT);
        }
    }
}

fn unified_home(
    hierarchy: &Hierarchy,
    is_root: bool,
    refused: &mut Vec<(Controller, String)>,
) -> Result<UnifiedHome, String> {
    let base = base(hierarchy, is_root)?;
    let there = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
    let offered = |it: &Controller| there.split_ascii_whitespace().any(|word| word == it.unified_name());
    let wanted: Vec<Controller> = Controller::ALL.into_iter().filter(offered).collect();
    let dir = base.join(PARENT);
    let told = |error: io::Error| format!("{} can't be divided: {error}", base.display());
    sweep(&dir);
    let place = scratch(&dir);
    let without = divide(&dir, &place, &wanted).map_err(told)?;
    let controllers = wanted.into_iter().filter(|it| !without.iter().any(|(one, _)| one == it)).collect();
    refused.extend(without);
    let tried = try_out(&place);
    let file = |name: &str| place.join(name).exists();
    let home = tried.map(|born_in| UnifiedHome {
        controllers,
        kill: file("cgroup.kill"),
        freeze: file("cgroup.freeze"),
        devices: super::devices::try_out(&place),
        born_in,
        swap: file("memory.swap.max"),
        io_weight: UNIFIED_WEIGHTS.iter().find(|name| file(name)).map(|&name| name.to_owned()),
        dir,
    });
    let _ = control::clear(&bare(&place, false), TRY_LIMIT);
    home.map_err(told)
}

/// Makes the parent of instances' groups and one group in it. The parent may be removed in between, as it is empty.
fn divide(dir: &Path, place: &Path, wanted: &[Controller]) -> io::Result<Vec<(Controller, String)>> {
    home::again(|| {
        let without = home::prepare_unified(dir, wanted)?;
        home::make_dir(place).map(|()| without)
    })
}

/// Puts a process into a group, freezes and kills it. Says whether processes can be born in it.
fn try_out(dir: &Path) -> io::Result<bool> {
    let born_in = into(dir, true).is_ok();
    if !born_in {
        into(dir, false)?;
    }
    Ok(born_in)
}

/// Starts a process in a group in one of the two ways, and uses the group.
fn into(dir: &Path, born_in: bool) -> io::Result<()> {
    let groups = bare(dir, born_in);
    let child = Sleeper::start(&Seat::open(&groups)?)?;
    let found = control::processes(&groups)?;
    if !found.contains(&child.pid.as_raw_pid()) {
        return Err(io::Error::other("a process that was put into a group is not in it"));
    }
    if control::freeze(&groups)? {
        control::thaw(&groups)?;
    }
    let left = control::kill(&groups, TRY_LIMIT)?;
    if left.is_empty() { Ok(()) } else { Err(io::Error::other("processes of a group could not be killed")) }
}

/// A process that does nothing until it is killed.
struct Sleeper {
    pid: rustix::process::Pid,
    pidfd: OwnedFd,
}

impl Sleeper {
    /// Starts it and waits until it took its seat.
    fn start(seat: &Seat) -> io::Result<Self> {
        let (mut told, tell) = io::pipe()?;
        match sys::fork_into(Namespaces::default(), seat.birth())? {
            Fork::Child => {
                drop(told);
                if seat.enter().and_then(|()| io::Write::write_all(&mut &tell, b"+")).is_err() {
                    std::process::exit(1);
                }
                loop {
                    std::thread::park();
                }
            }
            Fork::Parent { pid, pidfd } => {
                let child = Self { pid, pidfd };
                drop(tell);
                let mut word = [0];
                io::Read::read_exact(&mut told, &mut word)?;
                Ok(child)
            }
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(self.pidfd.as_fd(), Signal::KILL);
        let _ = waitpid(Some(self.pid), WaitOptions::empty());
    }
}

fn legacy_home(hierarchy: &Hierarchy, is_root: bool) -> Result<LegacyHome, String> {
    if !is_root {
        return Err("control groups of version 1 can't be delegated to an ordinary user".to_owned());
    }
    let dir = hierarchy.mount.join(PARENT);
    let told = |error: io::Error| format!("{} can't be divided: {error}", hierarchy.mount.display());
    home::again(|| home::prepare_legacy(&dir, &hierarchy.controllers)).map_err(told)?;
    sweep(&dir);
    let place = scratch(&dir);
    let group =
        super::groups::Legacy { dir: place.clone(), controllers: hierarchy.controllers.clone(), settings: Vec::new() };
    let groups = Groups { unified: None, legacy: vec![group] };
    let tried = Seat::make(&groups).map_err(io::Error::other).and_then(|seat| Sleeper::start(&seat));
    let file = |name: &str| place.join(name).exists();
    let home = tried.map(|sleeper| {
        drop(sleeper);
        LegacyHome {
            dir,
            controllers: hierarchy.controllers.clone(),
            swap: file("memory.memsw.limit_in_bytes"),
            io_weight: LEGACY_WEIGHTS.iter().find(|name| file(name)).map(|&name| name.to_owned()),
        }
    });
    let _ = control::clear(&groups, TRY_LIMIT);
    home.map_err(told)
}

/// Whether a weight of disk accesses has an effect: the kernel keeps it by the scheduler BFQ, or by io.cost.
fn io_weight(homes: &Homes) -> Result<(), String> {
    let files = [
        homes.unified(Controller::Io).and_then(|home| home.io_weight.as_deref()),
        homes.legacy(Controller::Io).and_then(|home| home.io_weight.as_deref()),
    ];
    if files.iter().flatten().next().is_none() {
        let lacks = homes.unified(Controller::Io).is_some() || homes.legacy(Controller::Io).is_some();
        return Err(match lacks {
            true => "the kernel has no weights of disk accesses".to_owned(),
            false => homes.why_not(Controller::Io).to_owned(),
        });
    }
    let disks = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let by_scheduler = disks.map(|disk| disk.path().join("queue/scheduler"));
    let uses_bfq = by_scheduler.filter_map(|file| fs::read_to_string(file).ok()).any(|text| text.contains("[bfq]"));
    let top = hierarchies().unified.map(|unified| unified.mount);
    let costs = top.and_then(|top| fs::read_to_string(top.join("io.cost.qos")).ok());
    if uses_bfq || costs.is_some_and(|text| text.contains("enable=1")) {
        Ok(())
    } else {
        Err("no disk of this machine uses the scheduler BFQ, which keeps weights".to_owned())
    }
}

/// Whether a limit of processes (RLIMIT_NPROC) counts those of one user namespace alone, as it does since Linux 5.14;
/// before, it counts everything that the user runs. Call it in a new user namespace.
///
/// # Errors
/// The text says why not.
pub fn process_limit() -> Result<(), String> {
    const WHY: &str = "a limit of processes counts everything that this user runs, not the instance alone";
    let own_and_one = Some(2);
    setrlimit(Resource::Nproc, Rlimit { current: own_and_one, maximum: own_and_one })
        .map_err(|error| error.to_string())?;
    let seat = Seat::default();
    let first = Sleeper::start(&seat).map_err(|_| WHY.to_owned())?;
    let second = Sleeper::start(&seat);
    drop(first);
    match second {
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(()),
        Err(error) => Err(error.to_string()),
        Ok(_) => Err("the kernel does not keep a limit of processes for this user".to_owned()),
    }
}

/// Lowest oom_score_adj that keel may set: -1000 with CAP_SYS_RESOURCE; else 0 where it has more and may go back, or what
/// it has itself. Call it in a process that ends afterwards.
pub fn oom_score_floor() -> i32 {
    const LOWEST: i32 = -1000;
    let file = "/proc/self/oom_score_adj";
    let own = fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let lower = [LOWEST, 0].into_iter().filter(|value| *value < own);
    let floor = lower.into_iter().find(|value| fs::write(file, value.to_string()).is_ok()).unwrap_or(own);
    let _ = fs::write(file, own.to_string());
    floor
}
