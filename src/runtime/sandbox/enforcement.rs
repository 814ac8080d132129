//! What one instance asks for and gets: from its record, and from what the kernel says of it while it runs.

use std::path::Path;

use super::bounds::FILE_LIMIT;
use super::confinement::EXPOSED;
use super::layout::read_json;
use super::name_files::are_own;
use super::record::{Launch, Layer, Record, Root, Run};
use super::requested::{FULL, HOST, OWN};
use super::seen::{Seen, settings};
use super::{Inner, SandboxRuntime, capabilities, checked_id, failed, network, not_found, quota, root_user, words};
use crate::runtime::{Capabilities, Enforcement, EnforcementState as State, Result, Support};
use crate::spec::{Control, SeccompProfile};
use crate::state::{InstanceRef, Phase};

/// Files of control groups that hold the limit behind a control, of version 2 and of version 1.
const LIMIT_FILES: &[(Control, &[&str])] = &[
    (Control::MemoryLimit, &["memory.max", "memory.limit_in_bytes"]),
    (Control::CpuLimit, &["cpu.max", "cpu.cfs_quota_us"]),
    (Control::PidsLimit, &["pids.max"]),
    (Control::IoLimit, &["io.weight", "io.bfq.weight", "blkio.weight", "blkio.bfq.weight"]),
];
/// What kernels round a limit of memory down to at most: the largest page of any machine.
const ROUNDING: u64 = 64 << 10;
/// Mode of a filter in `/proc/PID/status` (proc_pid_status(5)).
const SECCOMP_FILTER: &str = "2";

impl SandboxRuntime {
    pub(super) async fn tell_enforcement(&self, instance: &InstanceRef) -> Result<Vec<Enforcement>> {
        let found = self.look(instance).await?.ok_or_else(|| not_found(instance))?;
        let (id, run, ran) = (checked_id(instance)?, found.run, has_run(&found.instance.phase));
        let capabilities = capabilities::report(self.probe().await);
        let read = move |inner: &Inner| {
            let record: Option<Record> = read_json(&inner.dir(&id).record())
                .map_err(|error| failed(&format!("reading the record of {id}"), &error))?;
            Ok(record.map(|record| {
                let seen = run.as_ref().map(|run| Seen::look(&record.launch.groups, run));
                // Who a program was is told also when it has ended.
                let run = run.or_else(|| read_json(&inner.dir(&id).run()).ok().flatten());
                Facts { record: &record, ran, run: run.as_ref(), seen: seen.as_ref(), capabilities: &capabilities }
                    .tell()
            }))
        };
        self.blocking("reading an instance", FILE_LIMIT, read).await?.ok_or_else(|| not_found(instance))
    }
}

/// Whether the program of an instance ever ran.
fn has_run(phase: &Phase) -> bool {
    match phase {
        Phase::Pending | Phase::Created => false,
        Phase::Exited(exit) => exit.started_at.is_some(),
        Phase::Running { .. } | Phase::Paused { .. } | Phase::Stopping | Phase::Unknown { .. } => true,
    }
}

/// What is known of one instance.
struct Facts<'a> {
    record: &'a Record,
    /// Whether its program ever ran.
    ran: bool,
    run: Option<&'a Run>,
    seen: Option<&'a Seen>,
    /// What this machine allows now; tells why something is not there.
    capabilities: &'a Capabilities,
}

impl Facts<'_> {
    fn tell(&self) -> Vec<Enforcement> {
        let controls = self.capabilities.controls.keys().copied();
        controls
            .map(|control| {
                let requested = self.record.requested.get(&control).cloned();
                let state = self.state(control);
                Enforcement::new(control, requested, if self.ran { state } else { state.planned() })
            })
            .collect()
    }

    const fn launch(&self) -> &Launch {
        &self.record.launch
    }

    fn state(&self, control: Control) -> State {
        let namespaces = self.launch().namespaces;
        match control {
            Control::MountNamespace => self.namespace(control, namespaces.mount),
            Control::PidNamespace => self.own_or_shared(control, namespaces.pid, "pid_mode"),
            Control::IpcNamespace => self.own_or_shared(control, namespaces.ipc, "ipc_mode"),
            Control::UtsNamespace => self.namespace(control, namespaces.uts),
            Control::CgroupNamespace => self.namespace(control, namespaces.cgroup),
            Control::NetworkIsolation => self.network(),
            Control::ReadOnlyRoot => self.root(),
            Control::MemoryLimit | Control::CpuLimit | Control::PidsLimit | Control::IoLimit => self.limit(control),
            Control::DiskLimit => self.disk(),
            Control::Devices => self.devices(),
            Control::Seccomp => self.seccomp(),
            Control::Landlock => self.landlock(),
            Control::CapabilityDrop => self.capability_sets(),
            Control::User => self.user(),
            Control::EgressFilter => match &self.launch().network.egress {
                Some(_) => State::Enforced { by: words::by(control).to_owned() },
                None => self.missing(control),
            },
            Control::ServiceNames => match self.launch().network.attachment() {
                Some(attachment) => {
                    let by = format!("{} {}", words::by(control), attachment.network.bridge);
                    let why = || "the instance has an /etc/hosts of its own (storage), without these names".to_owned();
                    if are_own(self.launch()) { State::Degraded { by, why: why() } } else { State::Enforced { by } }
                }
                None => self.missing(control),
            },
            Control::Activity | Control::Suspend => self.by_runtime(control),
        }
    }

    fn why_not(&self, control: Control) -> String {
        match self.capabilities.support(control) {
            Support::Absent { why } | Support::Degraded { why } => why,
            Support::Enforced => "it was not there when the instance was created".to_owned(),
        }
    }

    /// What does not hold: missed where it is asked for.
    fn missing(&self, control: Control) -> State {
        match self.record.requested.contains_key(&control) {
            true => State::Absent { why: self.why_not(control) },
            false => State::NotRequested { by: None },
        }
    }

    /// What holds by this, as far as the machine lets it.
    fn holds(&self, control: Control, by: String) -> State {
        match self.capabilities.support(control) {
            Support::Degraded { why } => State::Degraded { by, why },
            Support::Enforced | Support::Absent { .. } => State::Enforced { by },
        }
    }

    /// What Landlock keeps in part; the machine is told of in the same words.
    fn by_landlock(&self, control: Control, by: String, words: fn(&str) -> String) -> State {
        match self.capabilities.support(control) {
            Support::Degraded { why } => State::Degraded { by, why },
            _ => State::Degraded { by, why: words(&self.why_not(control)) },
        }
    }

    fn namespace(&self, control: Control, there: bool) -> State {
        if there { State::Enforced { by: words::by(control).to_owned() } } else { self.missing(control) }
    }

    /// A namespace that a field of the spec may ask to share, which this runtime does not.
    fn own_or_shared(&self, control: Control, there: bool, field: &str) -> State {
        let by = words::by(control);
        match self.record.requested.get(&control) {
            Some(mode) if there && !matches!(mode.as_str(), OWN | "private") => {
                State::NotRequested { by: Some(format!("{by} all the same, as {field}: {mode} has no effect")) }
            }
            _ => self.namespace(control, there),
        }
    }

    fn network(&self) -> State {
        let control = Control::NetworkIsolation;
        if self.launch().namespaces.net {
            return State::Enforced { by: self.launch().network.isolated_by() };
        }
        let by = network::SHARED.to_owned();
        let asked = self.record.requested.get(&control).map(String::as_str);
        match (asked, self.launch().reach.no_tcp) {
            (None | Some(HOST), _) => State::NotRequested { by: Some(by) },
            // Whoever asks for everything gets it, and the machine's own ports and sockets with it.
            (Some(FULL), _) => State::Degraded { by, why: self.why_not(Control::ServiceNames) },
            (Some(_), true) => self.by_landlock(control, format!("Landlock; {by}"), words::only_tcp),
            (Some(_), false) => State::Absent { why: format!("it {by}: {}", self.why_not(control)) },
        }
    }

    fn root(&self) -> State {
        let control = Control::ReadOnlyRoot;
        let by = |by: &str| State::Enforced { by: by.to_owned() };
        let instead = |by: &str| State::NotRequested { by: Some(by.to_owned()) };
        match &self.launch().root {
            Root::Host => by("read-only view of the machine's file system"),
            Root::Dir { layer: Layer::ReadOnly, .. } | Root::Layers { layer: Layer::ReadOnly, .. } => {
                by(words::by(control))
            }
            Root::Copy { read_only: true, .. } => by(words::by(control)),
            Root::Shared if self.launch().reach.files.is_some() => {
                self.by_landlock(control, "Landlock".to_owned(), words::without_mounts)
            }
            Root::Shared => self.missing(control),
            Root::Dir { .. } | Root::Layers { .. } => instead("writable layer of its own"),
            Root::Copy { .. } => instead("copy of its own"),
        }
    }

    fn limit(&self, control: Control) -> State {
        let files = LIMIT_FILES.iter().find(|(of, _)| *of == control).map_or(&[][..], |(_, files)| *files);
        if let Some((dir, file, value)) = settings(&self.launch().groups).find(|(_, file, _)| files.contains(file)) {
            let by = format!("{} v{}, {file} = {value}", words::GROUP, self.version(dir));
            return match self.seen.map(|seen| seen.files.get(&dir.join(file))) {
                Some(Some(held)) if !is_same(value, held) => {
                    State::Degraded { by, why: format!("somebody changed it: it holds {held} now") }
                }
                Some(None) => State::Absent { why: format!("{} can't be read", dir.join(file).display()) },
                Some(Some(_)) | None => self.in_effect(control, by),
            };
        }
        let processes = self.launch().limits.iter().find(|limit| limit.resource == libc::RLIMIT_NPROC);
        match (control, self.launch().memory_watch, processes.and_then(|limit| limit.hard)) {
            (Control::MemoryLimit, Some(limit), _) => {
                State::Degraded { by: format!("{} ({limit} bytes)", words::memory_watch()), why: self.why_not(control) }
            }
            (Control::PidsLimit, _, Some(limit)) if self.record.requested.contains_key(&control) => {
                State::Enforced { by: format!("{}, RLIMIT_NPROC = {limit}", words::PROCESS_LIMIT) }
            }
            _ => self.missing(control),
        }
    }

    /// A value that is in its file. A weight of disk accesses needs a scheduler besides that keeps it.
    fn in_effect(&self, control: Control, by: String) -> State {
        match self.capabilities.support(control) {
            Support::Absent { why } | Support::Degraded { why } if control == Control::IoLimit => {
                State::Degraded { by, why: format!("it has no effect: {why}") }
            }
            _ => State::Enforced { by },
        }
    }

    fn version(&self, dir: &Path) -> u8 {
        if self.launch().groups.unified.as_ref().is_some_and(|group| group.dir == dir) { 2 } else { 1 }
    }

    fn disk(&self) -> State {
        let launch = self.launch();
        if !launch.limits_disk() {
            return self.missing(Control::DiskLimit);
        }
        let by = words::by(Control::DiskLimit).to_owned();
        match quota::lifted_by(launch.seccomp, launch.capabilities) {
            Some(why) => State::Degraded { by, why: why.to_owned() },
            None => State::Enforced { by },
        }
    }

    fn devices(&self) -> State {
        if !self.launch().namespaces.mount {
            return self.missing(Control::Devices);
        }
        let groups = &self.launch().groups;
        let unified = groups.unified.as_ref().is_some_and(|group| !group.devices.is_empty());
        let legacy = settings(groups).any(|(_, file, _)| file == "devices.allow");
        let besides = match (unified, legacy) {
            (true, _) => ", and a program of its control group (v2)",
            (false, true) => ", and the list of its control group (v1)",
            (false, false) => "",
        };
        let by = format!("{}{besides}", words::by(Control::Devices));
        match self.record.conditions.iter().find(|one| one.message.starts_with("devices has no effect")) {
            Some(condition) => State::Degraded { by, why: condition.message.clone() },
            // Without any that is the machine's, there is nothing that the nodes leave open.
            None if self.launch().devices.is_empty() => State::Enforced { by },
            None => self.holds(Control::Devices, by),
        }
    }

    fn seccomp(&self) -> State {
        let name = match self.launch().seccomp {
            Some(SeccompProfile::Default) => "default",
            Some(SeccompProfile::Strict) => "strict",
            Some(SeccompProfile::Unconfined) | None => {
                let asked = self.record.requested.get(&Control::Seccomp).is_some_and(|words| words != "unconfined");
                return if asked { self.missing(Control::Seccomp) } else { State::NotRequested { by: None } };
            }
        };
        match self.seen.and_then(|seen| seen.field("Seccomp")) {
            Some(mode) if mode != SECCOMP_FILTER => {
                State::Absent { why: format!("the kernel says that the program has none (Seccomp: {mode})") }
            }
            _ => State::Enforced { by: format!("{} {name}", words::by(Control::Seccomp)) },
        }
    }

    fn landlock(&self) -> State {
        let reach = &self.launch().reach;
        let parts = [
            (reach.files.is_some(), "files"),
            (reach.no_tcp, "TCP"),
            (reach.no_signals, "signals"),
            (reach.no_abstract_sockets, "abstract sockets"),
        ];
        let parts: Vec<&str> = parts.iter().filter(|(there, _)| *there).map(|(_, name)| *name).collect();
        if self.launch().root == Root::Shared && reach.files.is_none() {
            return State::Absent { why: EXPOSED.to_owned() };
        }
        if parts.is_empty() {
            return self.missing(Control::Landlock);
        }
        self.holds(Control::Landlock, format!("{}: {}", words::by(Control::Landlock), parts.join(", ")))
    }

    fn capability_sets(&self) -> State {
        let control = Control::CapabilityDrop;
        if let Support::Absent { why } = self.capabilities.support(control) {
            return State::Absent { why };
        }
        let wanted = self.launch().capabilities;
        let held = self.seen.and_then(|seen| u64::from_str_radix(seen.field("CapBnd")?, 16).ok());
        if wanted == capabilities::all() {
            return State::NotRequested { by: None };
        }
        let without = match self.launch().namespaces.net || capabilities::has(wanted, "NET_RAW") {
            true => "",
            false => "; without NET_RAW, as the network is the machine's",
        };
        let by = format!("{} {}{without}", words::by(control), words::capabilities(wanted, held, capabilities::all()));
        match held {
            Some(held) if held & !wanted != 0 => {
                State::Degraded { by, why: format!("the kernel says that the program could have {held:016x}") }
            }
            _ => State::Enforced { by },
        }
    }

    fn user(&self) -> State {
        let identity = self.run.map(|run| &run.identity).or(self.launch().identity.as_ref());
        let by = match identity {
            Some(identity) => format!("user {}, group {}", identity.uid, identity.gid),
            None => "looked up in its root when it starts".to_owned(),
        };
        match identity.is_some_and(root_user::is) {
            true => root_user::state(self.record.requested.get(&Control::User), by),
            false => self.holds(Control::User, by),
        }
    }

    fn by_runtime(&self, control: Control) -> State {
        let by = match control {
            Control::Suspend if !super::cgroup::can_freeze(&self.launch().groups) => words::SIGNALS,
            _ => words::by(control),
        };
        match self.capabilities.support(control) {
            Support::Enforced => State::Enforced { by: by.to_owned() },
            Support::Degraded { why } => State::Degraded { by: by.to_owned(), why },
            Support::Absent { .. } => self.missing(control),
        }
    }
}

/// Whether a file holds what was written into it: kernels round memory to pages, and put a name before a weight.
fn is_same(written: &str, held: &str) -> bool {
    let last = held.split_ascii_whitespace().last().unwrap_or_default();
    match (written.parse::<u64>(), last.parse::<u64>()) {
        (Ok(written), Ok(held)) => written == held || (written > ROUNDING && written.abs_diff(held) < ROUNDING),
        _ => written == held,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::{Value, json};

    use super::*;

    /// Fields of a launch over those of a plain one, and requests.
    fn record(launch: Value, requested: Value) -> Record {
        let mut plain = json!({
            "root": { "dir": { "path": "/r", "layer": "writable" } }, "command": ["x"], "env": {}, "workdir": null,
            "user": null, "extra_groups": [], "hostname": "h", "mounts": [], "devices": [], "hidden": [],
            "capabilities": 1, "init": true, "limits": [], "oom_score_adj": null,
            "namespaces": { "user": false, "mount": true, "pid": true, "ipc": true, "uts": true, "net": false },
            "log": { "file_bytes": 1, "files": 1 },
        });
        for (name, value) in launch.as_object().unwrap() {
            plain[name] = value.clone();
        }
        serde_json::from_value(json!({
            "version": 1, "owner": "o", "restarts": 0, "streak": 0, "created_at": "2024-01-01T00:00:00Z",
            "id": { "deployment": "d", "service": "s", "slot": 0, "revision": "v1-0123456789abcdef", "attempt": 0 },
            "port": null, "ports": [], "conditions": [], "requested": requested, "launch": plain,
        }))
        .unwrap()
    }

    fn groups(file: &str, value: &str) -> Value {
        let settings = json!([{ "file": file, "value": value, "field": "resources.x" }]);
        json!({ "unified": { "dir": "/c/mine", "controllers": [], "kill": true, "freeze": true, "born_in": true,
                             "settings": settings } })
    }

    fn seen(files: &[(&str, &str)], status: &[(&str, &str)]) -> Seen {
        let text = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let file = |(name, value): &(&str, &str)| (PathBuf::from(name), (*value).to_owned());
        Seen { files: files.iter().map(file).collect(), status: status.iter().map(text).collect() }
    }

    /// One control of an instance that ran in one line, on a machine that has nothing.
    fn line(record: &Record, seen: Option<&Seen>, control: Control) -> String {
        line_of(record, seen, control, true)
    }

    fn line_of(record: &Record, seen: Option<&Seen>, control: Control, ran: bool) -> String {
        let capabilities = Capabilities {
            version: "x".to_owned(),
            controls: [(control, Support::Absent { why: "no".to_owned() })].into(),
            ..Capabilities::default()
        };
        let told = Facts { record, ran, run: None, seen, capabilities: &capabilities }.tell();
        match &told[0].state {
            State::Enforced { by } => format!("enforced: {by}"),
            State::Degraded { by, why } => format!("degraded: {by}: {why}"),
            State::Planned { by, why } => format!("planned: {by}: {}", why.as_deref().unwrap_or("-")),
            State::Absent { why } => format!("absent: {why}"),
            State::NotRequested { by: None } => "not requested".to_owned(),
            State::NotRequested { by: Some(by) } => format!("not requested: {by}"),
        }
    }

    #[test]
    fn the_record_tells_what_holds_and_the_request_what_is_missed() {
        let none = json!({});
        let limited = |filter: &str, capabilities: u64| {
            let mount = json!({ "source": { "volume": "/v" }, "target": "/d", "read_only": false, "size": 4096 });
            json!({ "seccomp": filter, "capabilities": capabilities, "mounts": [mount] })
        };
        for (launch, requested, control, expected) in [
            (none.clone(), none.clone(), Control::PidNamespace, "enforced: process namespace"),
            (none.clone(), json!({ "pid_namespace": "own" }), Control::PidNamespace, "enforced: process namespace"),
            (
                none.clone(),
                json!({ "pid_namespace": "host" }),
                Control::PidNamespace,
                "not requested: process namespace all the same, as pid_mode: host has no effect",
            ),
            (none.clone(), json!({ "ipc_namespace": "private" }), Control::IpcNamespace, "enforced: IPC namespace"),
            (
                none.clone(),
                json!({ "ipc_namespace": "host" }),
                Control::IpcNamespace,
                "not requested: IPC namespace all the same, as ipc_mode: host has no effect",
            ),
            (
                json!({ "groups": groups("io.weight", "500") }),
                json!({ "io_limit": "weight 500" }),
                Control::IoLimit,
                "degraded: cgroup v2, io.weight = 500: it has no effect: no",
            ),
            (none.clone(), json!({ "cgroup_namespace": "own" }), Control::CgroupNamespace, "absent: no"),
            (
                none.clone(),
                json!({ "network_isolation": "host" }),
                Control::NetworkIsolation,
                "not requested: shares the machine's network",
            ),
            (
                none.clone(),
                json!({ "network_isolation": "full" }),
                Control::NetworkIsolation,
                "degraded: shares the machine's network: this runtime does not have it",
            ),
            (
                none.clone(),
                json!({ "network_isolation": "none" }),
                Control::NetworkIsolation,
                "absent: it shares the machine's network: no",
            ),
            (
                json!({ "namespaces": { "user": false, "mount": true, "pid": true, "ipc": true, "uts": true, "net": true },
                        "network": { "link": "alone" } }),
                json!({ "network_isolation": "none" }),
                Control::NetworkIsolation,
                "enforced: network namespace with loopback only",
            ),
            (none.clone(), json!({ "service_names": "deployment" }), Control::ServiceNames, "absent: no"),
            (
                json!({ "reach": { "files": null, "no_tcp": true } }),
                json!({ "network_isolation": "none" }),
                Control::NetworkIsolation,
                "degraded: Landlock; shares the machine's network: only TCP is out of reach: no",
            ),
            (
                none.clone(),
                json!({ "read_only_root": "writable" }),
                Control::ReadOnlyRoot,
                "not requested: writable layer of its own",
            ),
            (
                json!({ "root": { "dir": { "path": "/r", "layer": "read_only" } } }),
                none.clone(),
                Control::ReadOnlyRoot,
                "enforced: read-only mount",
            ),
            (none.clone(), none.clone(), Control::MemoryLimit, "not requested"),
            (none.clone(), json!({ "memory_limit": "64Mi" }), Control::MemoryLimit, "absent: no"),
            (
                json!({ "memory_watch": 9 }),
                json!({ "memory_limit": "9" }),
                Control::MemoryLimit,
                "degraded: the supervisor, which looks every 250 ms (9 bytes): no",
            ),
            (
                json!({ "groups": groups("cpu.max", "50000 100000") }),
                none.clone(),
                Control::CpuLimit,
                "enforced: cgroup v2, cpu.max = 50000 100000",
            ),
            (
                json!({ "limits": [{ "resource": 6, "soft": 5, "hard": 5 }] }),
                json!({ "pids_limit": "5" }),
                Control::PidsLimit,
                "enforced: process limit, RLIMIT_NPROC = 5",
            ),
            (json!({ "seccomp": "strict" }), none.clone(), Control::Seccomp, "enforced: system-call filter strict"),
            (none.clone(), json!({ "seccomp": "default" }), Control::Seccomp, "absent: no"),
            (none.clone(), json!({ "seccomp": "unconfined" }), Control::Seccomp, "not requested"),
            (none.clone(), none.clone(), Control::Landlock, "not requested"),
            (none.clone(), json!({ "disk_limit": "d 1Gi" }), Control::DiskLimit, "absent: no"),
            (limited("default", 1), none.clone(), Control::DiskLimit, "enforced: project quota"),
            (
                limited("unconfined", 1),
                none.clone(),
                Control::DiskLimit,
                "degraded: project quota: no system-call filter keeps the program from taking files out of the limit",
            ),
            (
                limited("default", 1 << 24),
                none.clone(),
                Control::DiskLimit,
                "degraded: project quota: the kernel keeps no quota for a program with SYS_RESOURCE",
            ),
            (none.clone(), json!({ "suspend": "on_idle" }), Control::Suspend, "absent: no"),
        ] {
            assert_eq!(line(&record(launch, requested), None, control), expected, "{control}");
        }
    }

    #[test]
    fn nothing_holds_yet_of_an_instance_that_never_ran() {
        let none = json!({});
        let watched = json!({ "memory_watch": 9 });
        for (launch, requested, control, expected) in [
            (&none, json!({}), Control::PidNamespace, "planned: process namespace: -"),
            (
                &watched,
                json!({ "memory_limit": "9" }),
                Control::MemoryLimit,
                "planned: the supervisor, which looks every 250 ms (9 bytes): no",
            ),
            (&none, json!({ "cgroup_namespace": "own" }), Control::CgroupNamespace, "absent: no"),
            (&none, json!({}), Control::CpuLimit, "not requested"),
        ] {
            assert_eq!(line_of(&record(launch.clone(), requested), None, control, false), expected, "{control}");
        }
        let exit = crate::state::Exit::runtime_error("no", chrono::Utc::now());
        assert!(!has_run(&Phase::Created) && !has_run(&Phase::Exited(exit)) && has_run(&Phase::Stopping));
    }

    #[test]
    fn what_the_kernel_says_of_a_running_instance_outranks_the_record() {
        let limited = record(json!({ "groups": groups("memory.max", "67108864") }), json!({}));
        let file = "/c/mine/memory.max";
        for (held, expected) in [
            ("67108864", "enforced: cgroup v2, memory.max = 67108864"),
            ("max", "degraded: cgroup v2, memory.max = 67108864: somebody changed it: it holds max now"),
        ] {
            assert_eq!(line(&limited, Some(&seen(&[(file, held)], &[])), Control::MemoryLimit), expected);
        }
        assert_eq!(
            line(&limited, Some(&Seen::default()), Control::MemoryLimit),
            "absent: /c/mine/memory.max can't be read"
        );
        let filtered = record(json!({ "seccomp": "default" }), json!({}));
        for (mode, expected) in [
            ("2", "enforced: system-call filter default"),
            ("0", "absent: the kernel says that the program has none (Seccomp: 0)"),
        ] {
            assert_eq!(line(&filtered, Some(&seen(&[], &[("Seccomp", mode)])), Control::Seccomp), expected);
        }
    }

    #[test]
    fn a_file_holds_what_was_written_although_the_kernel_rounds_and_names_it() {
        for (written, held, same) in [
            ("67108864", "67108864", true),
            ("100000001", "99999744", true),
            ("500", "default 500", true),
            ("100000 100000", "100000 100000", true),
            ("100", "101", false),
            ("67108864", "max", false),
        ] {
            assert_eq!(is_same(written, held), same, "{written} {held}");
        }
    }
}
