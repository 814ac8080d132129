//! From the resources of a spec to the groups of an instance and what is written into them. Pure.

use std::collections::BTreeMap;

use super::super::unsupported::unsupported;
use super::groups::{Groups, Setting};
use super::hierarchy::Controller;
use super::home::Homes;
use crate::spec::{Bytes, Cpu, Resources, ServiceSpec};
use crate::state::Condition;

/// Most processes and threads of a member of a pool that names no limit: pools run code that nobody vouches for, and a
/// fork bomb must not take the machine along. Podman's default for every container. Services and jobs have no limit
/// unless one is written, as under Docker.
pub const POOL_PIDS: u64 = 2048;
/// Period of a CPU quota in microseconds: the kernel's and Docker's default.
const PERIOD: u64 = 100_000;
/// Longest period that the kernel takes.
const LONGEST_PERIOD: u64 = 1_000_000;
/// Smallest quota that the kernel takes, in microseconds.
const SMALLEST_QUOTA: u64 = 1_000;
/// Bounds of a weight of CPU in version 1.
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

/// What the machine offers for limits.
#[derive(Debug)]
pub struct Machine<'a> {
    /// Where groups can be made.
    pub homes: &'a Homes,
    /// Name of the instance's groups.
    pub name: &'a str,
    /// Whether a process limit (RLIMIT_NPROC) counts the processes of the instance alone, or why not.
    pub process_limit: Result<(), String>,
    /// Lowest oom_score_adj that keel may set.
    pub oom_score_floor: i32,
}

/// How an instance is bounded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Planned {
    /// Its groups.
    pub groups: Groups,
    /// Bytes of memory that its supervisor holds it to, where no group does.
    pub memory_watch: Option<u64>,
    /// Processes that a process limit holds it to, where no group does.
    pub process_limit: Option<u64>,
    /// Value for oom_score_adj.
    pub oom_score_adj: Option<i32>,
    /// What can't be honoured.
    pub conditions: Vec<Condition>,
}

/// Plans the bounds of an instance.
pub fn plan(spec: &ServiceSpec, machine: &Machine<'_>) -> Planned {
    let none = Resources::default();
    let resources = spec.resources.as_ref().unwrap_or(&none);
    let mut draft = Draft { machine, unified: Vec::new(), legacy: BTreeMap::new(), planned: Planned::default() };
    draft.memory(resources);
    draft.cpu(resources);
    draft.pids(resources.pids_limit, spec.pool.is_some());
    draft.io(resources.blkio_weight);
    draft.oom_score(resources.oom_score_adj);
    draft.finish()
}

/// Bounds in the making.
struct Draft<'a> {
    machine: &'a Machine<'a>,
    unified: Vec<Setting>,
    legacy: BTreeMap<Controller, Vec<Setting>>,
    planned: Planned,
}

/// Which version of control groups has a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Legacy,
    Unified,
}

impl Draft<'_> {
    fn version(&self, controller: Controller) -> Option<Version> {
        let homes = self.machine.homes;
        if homes.unified(controller).is_some() {
            Some(Version::Unified)
        } else {
            homes.legacy(controller).map(|_| Version::Legacy)
        }
    }

    /// Has a value written into the group with this controller.
    fn set(&mut self, controller: Controller, field: &str, file: &str, value: impl ToString) {
        let setting = Setting { file: file.to_owned(), value: value.to_string(), field: format!("resources.{field}") };
        match self.version(controller) {
            Some(Version::Unified) => self.unified.push(setting),
            Some(Version::Legacy) => self.legacy.entry(controller).or_default().push(setting),
            None => {}
        }
    }

    /// Has a value written, by another file in each version; where there is none, the field has no effect.
    fn set_either(&mut self, controller: Controller, field: &str, unified: (&str, String), legacy: (&str, String)) {
        match self.version(controller) {
            Some(Version::Unified) => self.set(controller, field, unified.0, unified.1),
            Some(Version::Legacy) => self.set(controller, field, legacy.0, legacy.1),
            None => self.refuse(field, self.machine.homes.why_not(controller)),
        }
    }

    fn refuse(&mut self, field: &str, why: &str) {
        self.planned.conditions.push(unsupported(&format!("resources.{field}"), why));
    }

    fn degrade(&mut self, reason: &str, message: String) {
        self.planned.conditions.push(Condition::holds("Degraded", reason, message));
    }

    fn memory(&mut self, resources: &Resources) {
        let version = self.version(Controller::Memory);
        if version == Some(Version::Unified) {
            // Half an instance is worth nothing: the kernel kills all of it or none.
            self.set(Controller::Memory, "memory", "memory.oom.group", 1);
        }
        if let Some(Bytes(limit)) = resources.memory {
            let both = ("memory.max", limit.to_string());
            match version {
                Some(_) => {
                    self.set_either(Controller::Memory, "memory", both, ("memory.limit_in_bytes", limit.to_string()))
                }
                None => self.watch_memory(limit),
            }
            self.swap(limit, resources.memory_swap);
        }
        if let Some(Bytes(kept)) = resources.memory_reservation {
            let (low, soft) = (("memory.low", kept.to_string()), ("memory.soft_limit_in_bytes", kept.to_string()));
            self.set_either(Controller::Memory, "memory_reservation", low, soft);
        }
        let legacy_only = [
            ("memory_swappiness", resources.memory_swappiness.map(u64::from), "memory.swappiness"),
            ("oom_kill_disable", resources.oom_kill_disable.map(u64::from), "memory.oom_control"),
        ];
        for (field, value, file) in legacy_only {
            let Some(value) = value else { continue };
            match version {
                Some(Version::Legacy) => self.set(Controller::Memory, field, file, value),
                // The default, which holds without being written.
                _ if field == "oom_kill_disable" && value == 0 => {}
                Some(Version::Unified) => self.refuse(field, "control groups of version 2 have no such setting"),
                None => self.refuse(field, self.machine.homes.why_not(Controller::Memory)),
            }
        }
    }

    fn watch_memory(&mut self, limit: u64) {
        self.planned.memory_watch = Some(limit);
        let why = self.machine.homes.why_not(Controller::Memory).to_owned();
        self.degrade(
            "MemoryWatched",
            format!(
                "resources.memory is kept by looking at the processes every {} ms, not by the kernel: a program can \
                 exceed it in between, and what the kernel keeps of files on disks is not counted: {why}",
                super::MEMORY_WATCH_INTERVAL.as_millis()
            ),
        );
    }

    /// Without a word about swap there is as much of it as memory, as under Docker.
    fn swap(&mut self, limit: u64, together: Option<Bytes>) {
        let homes = self.machine.homes;
        let limited = homes.unified(Controller::Memory).map(|home| home.swap);
        let limited = limited.or_else(|| homes.legacy(Controller::Memory).map(|home| home.swap));
        match limited {
            Some(true) => {
                let together = together.map_or(limit.saturating_mul(2), |Bytes(together)| together);
                let (alone, together) = (together.saturating_sub(limit), together);
                let unified = ("memory.swap.max", alone.to_string());
                let legacy = ("memory.memsw.limit_in_bytes", together.to_string());
                self.set_either(Controller::Memory, "memory_swap", unified, legacy);
            }
            Some(false) if together.is_some() => {
                self.refuse("memory_swap", "the kernel does not count swap (see the boot option swapaccount)");
            }
            None if together.is_some() => {
                self.refuse("memory_swap", homes.why_not(Controller::Memory));
            }
            Some(false) | None => {}
        }
    }

    fn cpu(&mut self, resources: &Resources) {
        if let Some(cpu) = resources.cpu {
            let (quota, period) = quota(cpu);
            match self.version(Controller::Cpu) {
                Some(Version::Unified) => self.set(Controller::Cpu, "cpu", "cpu.max", format!("{quota} {period}")),
                Some(Version::Legacy) => {
                    self.set(Controller::Cpu, "cpu", "cpu.cfs_period_us", period);
                    self.set(Controller::Cpu, "cpu", "cpu.cfs_quota_us", quota);
                }
                None => self.refuse("cpu", self.machine.homes.why_not(Controller::Cpu)),
            }
        }
        if let Some(shares) = resources.cpu_shares {
            let shares = u64::from(shares).clamp(*SHARES.start(), *SHARES.end());
            let (weight, shares) = (("cpu.weight", cpu_weight(shares).to_string()), ("cpu.shares", shares.to_string()));
            self.set_either(Controller::Cpu, "cpu_shares", weight, shares);
        }
        if let Some(cpus) = &resources.cpuset {
            let setting = ("cpuset.cpus", cpus.clone());
            self.set_either(Controller::Cpuset, "cpuset", setting.clone(), setting);
        }
    }

    fn pids(&mut self, written: Option<i64>, pool: bool) {
        let limit = match written {
            Some(limit) => u64::try_from(limit).ok().filter(|limit| *limit > 0),
            None => pool.then_some(POOL_PIDS),
        };
        let Some(limit) = limit else { return };
        if self.version(Controller::Pids).is_some() {
            return self.set(Controller::Pids, "pids_limit", "pids.max", limit);
        }
        let why = match &self.machine.process_limit {
            Ok(()) => {
                self.planned.process_limit = Some(limit);
                return;
            }
            Err(why) => format!("{}; {why}", self.machine.homes.why_not(Controller::Pids)),
        };
        if written.is_some() {
            self.refuse("pids_limit", &why);
        } else {
            let message =
                format!("members of a pool are held to {POOL_PIDS} processes, which can't be enforced: {why}");
            self.degrade("ProcessesNotLimited", message);
        }
    }

    fn io(&mut self, weight: Option<u16>) {
        let Some(weight) = weight else { return };
        let homes = self.machine.homes;
        let unified = homes.unified(Controller::Io).and_then(|home| home.io_weight.clone());
        let legacy = homes.legacy(Controller::Io).and_then(|home| home.io_weight.clone());
        if let Some(file) = unified {
            let value = if file == "io.weight" { io_weight(weight) } else { u64::from(weight) };
            self.set(Controller::Io, "blkio_weight", &file, value);
        } else if let Some(file) = legacy {
            self.set(Controller::Io, "blkio_weight", &file, weight);
        }
        if let Err(why) = &homes.io_weight {
            let why = why.clone();
            self.refuse("blkio_weight", &why);
        }
    }

    fn oom_score(&mut self, wanted: Option<i32>) {
        let floor = self.machine.oom_score_floor;
        if wanted.is_some_and(|wanted| wanted < floor) {
            self.refuse("oom_score_adj", &format!("below {floor} it takes CAP_SYS_RESOURCE; {floor} holds instead"));
        }
        // Where none is written it is not the controller's, which may be guarded from the kernel's choice, or its first.
        self.planned.oom_score_adj = Some(wanted.unwrap_or(0).max(floor));
    }

    fn finish(mut self) -> Planned {
        let Groups { mut unified, mut legacy } = Groups::anywhere(self.machine.homes, self.machine.name);
        if let Some(group) = &mut unified {
            group.settings = self.unified;
        }
        let freezes = unified.as_ref().is_some_and(|group| group.freeze);
        legacy.retain_mut(|group| {
            let of = |has: &Controller| self.legacy.remove(has).unwrap_or_default();
            group.settings = group.controllers.iter().flat_map(of).collect();
            // Memory tells of kills for want of memory, limited or not.
            group.controllers.contains(&Controller::Memory)
                || (!freezes && group.controllers.contains(&Controller::Freezer))
                || !group.settings.is_empty()
        });
        self.planned.groups = Groups { unified, legacy };
        self.planned
    }
}

/// Quota and period of a share of CPUs, in microseconds. Small shares need a longer period, as a quota has a least
/// value.
fn quota(cpu: Cpu) -> (u64, u64) {
    let of = |period: u64| cpu.millis.saturating_mul(period) / 1000;
    let period = if of(PERIOD) < SMALLEST_QUOTA { LONGEST_PERIOD } else { PERIOD };
    (of(period).max(SMALLEST_QUOTA), period)
}

/// A weight of version 2 (1 to 10,000, default 100) for one of version 1 (2 to 262,144, default 1024). The curve of
/// runc and crun, which goes through both defaults and both ends.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small positive numbers"
)]
fn cpu_weight(shares: u64) -> u64 {
    let log = (shares as f64).log2();
    let exponent = log.mul_add(log, 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10_f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

/// A weight of version 2 (1 to 10,000) for Docker's (10 to 1000), on a line as runc has it.
fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight.clamp(10, 1000) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::sandbox::cgroup::home::{LegacyHome, UnifiedHome};

    fn spec(resources: &str) -> ServiceSpec {
        serde_yaml::from_str(&format!("image: {{ name: host }}\nresources: {resources}")).unwrap()
    }

    fn unified(controllers: &[Controller]) -> UnifiedHome {
        UnifiedHome {
            dir: "/c2/keel".into(),
            controllers: controllers.to_vec(),
            kill: true,
            freeze: true,
            born_in: true,
            devices: Ok(()),
            swap: true,
            io_weight: Some("io.bfq.weight".to_owned()),
        }
    }

    fn legacy(controller: Controller) -> LegacyHome {
        LegacyHome {
            dir: format!("/c1/{}/keel", controller.legacy_name()).into(),
            controllers: vec![controller],
            swap: true,
            io_weight: Some("blkio.bfq.weight".to_owned()),
        }
    }

    /// Version 2 with everything.
    fn new() -> Homes {
        Homes { unified: Ok(unified(&Controller::ALL)), legacy: vec![], refused: vec![], io_weight: Ok(()) }
    }

    /// Version 1 alone.
    fn old() -> Homes {
        Homes { unified: Err("there is none".into()), legacy: Controller::ALL.map(legacy).to_vec(), ..new() }
    }

    /// Controllers in version 1, an empty hierarchy of version 2 beside them.
    fn hybrid() -> Homes {
        Homes { unified: Ok(unified(&[])), ..old() }
    }

    fn planned(spec: &ServiceSpec, homes: &Homes) -> Planned {
        plan(spec, &Machine { homes, name: "x", process_limit: Ok(()), oom_score_floor: 0 })
    }

    /// Directories and what is written, `FILE=VALUE`.
    fn written(planned: &Planned) -> Vec<String> {
        let lines = |dir: &std::path::Path, settings: &[Setting]| {
            let texts: Vec<_> = settings.iter().map(|one| format!("{}={}", one.file, one.value)).collect();
            format!("{}: {}", dir.display(), texts.join(", "))
        };
        let unified = planned.groups.unified.iter().map(|group| lines(&group.dir, &group.settings));
        unified.chain(planned.groups.legacy.iter().map(|group| lines(&group.dir, &group.settings))).collect()
    }

    fn reasons(planned: &Planned) -> Vec<&str> {
        planned.conditions.iter().map(|condition| condition.reason.as_str()).collect()
    }

    const ALL: &str = "{ memory: 64Mi, memory_reservation: 32Mi, memory_swap: 80Mi, memory_swappiness: 10, \
                       oom_kill_disable: true, cpu: 0.5, cpu_shares: 2048, cpuset: '0-1', pids_limit: 64, \
                       blkio_weight: 300, oom_score_adj: 500 }";

    #[test]
    fn everything_in_version_2() {
        let planned = planned(&spec(ALL), &new());
        let mib = |count: u64| count << 20;
        let line = format!(
            "/c2/keel/x: memory.oom.group=1, memory.max={}, memory.swap.max={}, memory.low={}, cpu.max=50000 100000, \
             cpu.weight=174, cpuset.cpus=0-1, pids.max=64, io.bfq.weight=300",
            mib(64),
            mib(16),
            mib(32)
        );
        assert_eq!(written(&planned), [line]);
        assert_eq!(reasons(&planned), ["ResourcesMemorySwappiness", "ResourcesOomKillDisable"]);
        assert_eq!((planned.memory_watch, planned.process_limit, planned.oom_score_adj), (None, None, Some(500)));
    }

    #[test]
    fn everything_in_version_1_and_on_a_hybrid_machine() {
        let mib = |count: u64| count << 20;
        let memory = format!(
            "/c1/memory/keel/x: memory.limit_in_bytes={}, memory.memsw.limit_in_bytes={}, \
             memory.soft_limit_in_bytes={}, memory.swappiness=10, memory.oom_control=1",
            mib(64),
            mib(80),
            mib(32)
        );
        let rest = [
            "/c1/cpu/keel/x: cpu.cfs_period_us=100000, cpu.cfs_quota_us=50000, cpu.shares=2048",
            "/c1/cpuset/keel/x: cpuset.cpus=0-1",
            "/c1/pids/keel/x: pids.max=64",
            "/c1/blkio/keel/x: blkio.bfq.weight=300",
        ];
        let lines = |first: &[&str], last: &[&str]| {
            [first, &[memory.as_str()], &rest, last].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let old = planned(&spec(ALL), &old());
        assert_eq!((written(&old), reasons(&old)), (lines(&[], &["/c1/freezer/keel/x: "]), vec![]));
        let hybrid = planned(&spec(ALL), &hybrid());
        assert_eq!((written(&hybrid), reasons(&hybrid)), (lines(&["/c2/keel/x: "], &[]), vec![]));
    }

    #[test]
    fn an_instance_without_limits_has_no_more_groups_than_tell_of_its_end() {
        assert_eq!(written(&planned(&spec("{}"), &new())), ["/c2/keel/x: memory.oom.group=1"]);
        assert_eq!(written(&planned(&spec("{}"), &hybrid())), ["/c2/keel/x: ", "/c1/memory/keel/x: "]);
        assert_eq!(written(&planned(&spec("{}"), &old())), ["/c1/memory/keel/x: ", "/c1/freezer/keel/x: "]);
        assert!(planned(&spec("{}"), &Homes::none("no")).groups.is_empty());
    }

    #[test]
    fn without_groups_memory_is_watched_processes_are_limited_and_the_rest_is_told() {
        let planned = planned(&spec(ALL), &Homes::none("no groups here"));
        assert!(planned.groups.is_empty());
        assert_eq!((planned.memory_watch, planned.process_limit), (Some(64 << 20), Some(64)));
        let fields = [
            "MemoryWatched",
            "ResourcesMemorySwap",
            "ResourcesMemoryReservation",
            "ResourcesMemorySwappiness",
            "ResourcesOomKillDisable",
            "ResourcesCpu",
            "ResourcesCpuShares",
            "ResourcesCpuset",
            "ResourcesBlkioWeight",
        ];
        assert_eq!(reasons(&planned), fields);
        for condition in &planned.conditions {
            assert!(condition.message.contains("no groups here"), "{}", condition.message);
        }
    }

    #[test]
    fn processes_that_nothing_can_limit_are_told() {
        let homes = Homes::none("no groups here");
        let machine = Machine { homes: &homes, name: "x", process_limit: Err("shared".into()), oom_score_floor: 0 };
        assert_eq!(reasons(&plan(&spec("{ pids_limit: 5 }"), &machine)), ["ResourcesPidsLimit"]);
        assert_eq!(reasons(&plan(&spec("{ pids_limit: -1 }"), &machine)), Vec::<&str>::new());
        let pool = serde_yaml::from_str("image: { name: host }\npool: {}").unwrap();
        assert_eq!(reasons(&plan(&pool, &machine)), ["ProcessesNotLimited"]);
    }

    #[test]
    fn a_pool_is_bounded_and_a_service_is_not() {
        let pool: ServiceSpec = serde_yaml::from_str("image: { name: host }\npool: {}").unwrap();
        assert_eq!(written(&planned(&pool, &hybrid()))[2], "/c1/pids/keel/x: pids.max=2048");
        let unlimited = serde_yaml::from_str("image: { name: host }\npool: {}\nresources: { pids_limit: -1 }").unwrap();
        assert_eq!(written(&planned(&unlimited, &hybrid())).len(), 2);
    }

    #[test]
    fn swap_is_as_much_as_memory_unless_told_otherwise_and_none_where_it_is_not_counted() {
        let both = |homes: &Homes| written(&planned(&spec("{ memory: 1000 }"), homes));
        assert_eq!(both(&new()), ["/c2/keel/x: memory.oom.group=1, memory.max=1000, memory.swap.max=1000"]);
        assert_eq!(both(&old())[0], "/c1/memory/keel/x: memory.limit_in_bytes=1000, memory.memsw.limit_in_bytes=2000");
        let uncounted = Homes { unified: Ok(UnifiedHome { swap: false, ..unified(&Controller::ALL) }), ..new() };
        assert_eq!(both(&uncounted), ["/c2/keel/x: memory.oom.group=1, memory.max=1000"]);
        let told = planned(&spec("{ memory: 1000, memory_swap: 1500 }"), &uncounted);
        assert_eq!(reasons(&told), ["ResourcesMemorySwap"]);
    }

    #[test]
    fn quotas_of_every_size() {
        let of = |millis| quota(Cpu { millis });
        assert_eq!(
            [of(1), of(9), of(10), of(1500)],
            [(1000, 1_000_000), (9000, 1_000_000), (1000, 100_000), (150_000, 100_000)]
        );
    }

    #[test]
    fn weights_go_through_defaults_and_ends() {
        assert_eq!([2, 1024, 262_144].map(cpu_weight), [1, 100, 10_000]);
        assert_eq!([10, 500, 1000].map(io_weight), [1, 4950, 10_000]);
    }

    #[test]
    fn a_weight_without_effect_is_written_and_told() {
        let homes = Homes { io_weight: Err("no disk uses BFQ".into()), ..hybrid() };
        let planned = planned(&spec("{ blkio_weight: 10 }"), &homes);
        assert_eq!(written(&planned)[2], "/c1/blkio/keel/x: blkio.bfq.weight=10");
        assert_eq!(reasons(&planned), ["ResourcesBlkioWeight"]);
    }

    #[test]
    fn an_oom_score_below_what_keel_may_set_is_raised_and_told() {
        let planned = planned(&spec("{ oom_score_adj: -500 }"), &new());
        assert_eq!((planned.oom_score_adj, reasons(&planned)), (Some(0), vec!["ResourcesOomScoreAdj"]));
    }

    #[test]
    fn an_oom_score_that_is_not_written_is_zero_or_the_lowest_that_may_be_set() {
        let homes = new();
        for (floor, expected) in [(-1000, 0), (0, 0), (300, 300)] {
            let machine = Machine { homes: &homes, name: "x", process_limit: Ok(()), oom_score_floor: floor };
            let planned = plan(&spec("{}"), &machine);
            assert_eq!((planned.oom_score_adj, reasons(&planned)), (Some(expected), vec![]), "{floor}");
        }
    }
}
