//! From a service's spec to the launch of one instance: pure, apart from the facts of the machine that it is given.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::image::Ready;
use super::layout::{InstanceDir, Layout};
use super::links::{Unresolved, Written};
use super::own_files::{Overlap, overlap, overlap_of};
use super::probe::Probe;
use super::program::RESOURCES;
use super::protected::protecting;
use super::record::{Identity, Launch, Layer, Limit, Mount, MountSource, Root};
use super::rootfs::is_private;
use super::sys::Namespaces;
use super::unsupported::{conditions, unsupported};
use super::{capabilities, cgroup, confinement, devices, network, quota, root_user, sysctls};
use crate::runtime::logfiles::LogBounds;
use crate::runtime::{Capabilities, CreateRequest, ErrorKind, RuntimeError, Support};
use crate::spec::{Control, GIVES_ALL, ImageRef, ServiceSpec, Storage, is_root};
use crate::state::{Condition, InstanceId};

/// Size of a tmpfs that names none: enough for scratch files.
const TMPFS_SIZE: u64 = 512 << 20;
/// Permission bits of a tmpfs that names none: Docker's.
const TMPFS_MODE: u32 = 0o1777;

/// What the translation needs to know besides the request.
#[derive(Debug)]
pub struct Machine<'a> {
    /// Where things lie.
    pub layout: &'a Layout,
    /// Where this instance will lie.
    pub dir: &'a InstanceDir,
    /// What the machine allows.
    pub probe: &'a Probe,
    /// What the runtime enforces.
    pub capabilities: &'a Capabilities,
    /// Every path that leads to Evenkeel's own files, which no instance may see.
    pub own_files: &'a [PathBuf],
    /// Paths of the machine below which no link is followed.
    pub written: &'a Written,
    /// The image, where it is one of the store.
    pub image: Option<&'a Ready>,
    /// Name of its control groups.
    pub group_name: &'a str,
}

/// Turns a request into a launch, and into conditions for what can't be honoured.
///
/// # Errors
/// `ImageUnavailable` for an image that is not here, `Rejected` for what can't be.
pub fn launch(request: &CreateRequest, machine: &Machine<'_>) -> Result<(Launch, Vec<Condition>), RuntimeError> {
    let planned = plan(request, machine);
    // What this machine can't enforce is told also where nothing else can be.
    require(&request.spec, planned.as_ref().ok().map(|(launch, _)| launch), machine)?;
    planned
}

fn plan(request: &CreateRequest, machine: &Machine<'_>) -> Result<(Launch, Vec<Condition>), RuntimeError> {
    let spec = &request.spec;
    let mut found = conditions(spec);
    let root = root(spec, machine)?;
    if let (Root::Copy { .. }, Err(why)) = (&root, &machine.probe.layer) {
        found.push(Condition::holds(
            "Degraded",
            "RootCopied",
            format!("the root file system is a copy of its own, which takes time and room, as this machine has no overlay: {why}"),
        ));
    }
    found.extend(files_of_another(&root, machine.probe));
    let connected = network::wanted(spec, machine.probe);
    let namespaces = machine.probe.wanted(connected.is_apart());
    found.extend(network::conditions(spec, connected, machine.probe, &root));
    let shared = root == Root::Shared;
    refuse_own_paths(spec, &root, machine)?;
    let command = spec.command.as_ref();
    let list = |list: Option<&Vec<String>>| list.cloned().unwrap_or_default();
    let mut arguments = list(command.and_then(|command| command.entrypoint.as_ref()));
    arguments.extend(list(command.and_then(|command| command.args.as_ref())));
    if arguments.first().is_none_or(String::is_empty) {
        return Err(rejected(format!(
            "image {} has no command of its own; write the program in command.entrypoint",
            spec.image.name
        )));
    }
    let mounts = mounts(request, machine, &root, &mut found)?;
    let seccomp = confinement::filter(spec, machine.probe, &mut found);
    let alone = connected.is_alone();
    let reach = confinement::reach(spec, &root, namespaces, alone, machine, &mut found)?;
    if shared {
        found.extend(confinement::not_isolated(spec, &reach, seccomp.is_some(), machine));
    }
    let devices = devices(spec, machine, shared, &mut found)?;
    let mut env = request.env.clone();
    if shared {
        let scratch = confinement::scratch(machine.dir.path());
        env.entry("TMPDIR".to_owned()).or_insert_with(|| scratch.to_string_lossy().into_owned());
    }
    let mut limits = limits(spec, &mut found);
    let mut bounds = bounds(spec, machine, namespaces);
    cgroup::limit_devices(&mut bounds.groups, &machine.probe.homes, machine.group_name, &devices.rules);
    found.extend(bounds.conditions);
    limit_processes(&mut limits, bounds.process_limit);
    let identity = identity(spec, machine)?;
    let writable = spec.sandbox.as_ref().filter(|_| root.is_closed()).map(|one| one.writable.clone());
    let writable = writable.unwrap_or_default();
    let inside = sysctls::Inside { namespaces, root: &root, identity: identity.as_ref() };
    let launch = Launch {
        sysctls: sysctls::plan(spec, inside, machine.probe, &mut found),
        network: network::Network::default(),
        hidden: if root == Root::Host { confinement::secrets() } else { Vec::new() },
        own_files: machine.own_files.to_vec(),
        root,
        command: arguments,
        env,
        workdir: command.and_then(|command| command.workdir.clone()),
        user: spec.user.clone(),
        not_root: spec.sandbox.iter().any(|sandbox| sandbox.require.contains(&Control::User)),
        extra_groups: spec.extra_groups.clone(),
        hostname: spec.hostname.clone().unwrap_or_else(|| request.id.hostname()),
        namespaces,
        mounts,
        writable,
        devices: devices.nodes.keys().cloned().collect(),
        nodes: devices.nodes,
        capabilities: capabilities::wanted(spec, namespaces).map_err(rejected)?,
        seccomp,
        reach,
        init: spec.init_container.unwrap_or(true),
        limits,
        oom_score_adj: bounds.oom_score_adj,
        groups: bounds.groups,
        memory_watch: bounds.memory_watch,
        disk: own_disk(spec, machine, shared, &mut found),
        tty: spec.tty == Some(true),
        stdin: spec.stdin_open == Some(true),
        log: LogBounds::of(spec),
        identity,
    };
    single_user(spec, &launch, &mut found);
    found.extend(weakened(&launch, machine.probe));
    Ok((launch, found))
}

/// The devices that an instance has besides the usual ones.
fn devices(
    spec: &ServiceSpec,
    machine: &Machine<'_>,
    shared: bool,
    found: &mut Vec<Condition>,
) -> Result<devices::Planned, RuntimeError> {
    let control = cgroup::limits_devices(&machine.probe.homes);
    let planned = devices::plan(spec, machine.layout, machine.written, &control, found)?;
    if shared && !planned.nodes.is_empty() {
        let why = "a plain process sees every device of the machine, as far as its user may use it";
        found.push(unsupported("devices", why));
        return Ok(devices::Planned::default());
    }
    Ok(planned)
}

/// What holds the instance to its resources.
fn bounds(spec: &ServiceSpec, machine: &Machine<'_>, namespaces: Namespaces) -> cgroup::Planned {
    let probe = machine.probe;
    let process_limit = match namespaces.user {
        true => probe.process_limit.clone(),
        false => Err("a limit of processes counts everything that this user runs".to_owned()),
    };
    let offer = cgroup::Machine {
        homes: &probe.homes,
        name: machine.group_name,
        process_limit,
        oom_score_floor: probe.oom_score_floor,
    };
    cgroup::plan(spec, &offer)
}

/// Adds a limit of processes, which a lower one that was written as a ulimit outranks.
fn limit_processes(limits: &mut Vec<Limit>, most: Option<u64>) {
    let Some(most) = most else { return };
    let lower = |written: Option<u64>| Some(written.map_or(most, |written| written.min(most)));
    match limits.iter_mut().find(|limit| limit.resource == libc::RLIMIT_NPROC) {
        Some(limit) => (limit.soft, limit.hard) = (lower(limit.soft), lower(limit.hard)),
        None => limits.push(Limit { resource: libc::RLIMIT_NPROC, soft: Some(most), hard: Some(most) }),
    }
}

fn rejected(message: impl Into<String>) -> RuntimeError {
    RuntimeError::new(ErrorKind::Rejected, message)
}

/// Refuses what the spec requires and this machine can't enforce, or the spec itself leaves out, with all of it.
fn require(spec: &ServiceSpec, launch: Option<&Launch>, machine: &Machine<'_>) -> Result<(), RuntimeError> {
    let required = spec.sandbox.iter().flat_map(|sandbox| &sandbox.require);
    let lacking = required.filter_map(|wanted| match machine.capabilities.support(*wanted) {
        Support::Degraded { why } | Support::Absent { why } => Some(format!("{wanted} can't be enforced: {why}")),
        Support::Enforced => {
            let why = left_out(*wanted, spec, launch?, machine)?;
            Some(format!("{wanted} does not hold: {why}"))
        }
    });
    let lacking: Vec<String> = lacking.collect();
    match lacking.is_empty() {
        true => Ok(()),
        false => Err(rejected(format!("sandbox.require: {}", lacking.join("; ")))),
    }
}

/// Why a control that this machine enforces does not hold for the spec, where it switches it off or leaves it out.
fn left_out(wanted: Control, spec: &ServiceSpec, launch: &Launch, machine: &Machine<'_>) -> Option<&'static str> {
    let why = match wanted {
        Control::Seccomp if launch.seccomp.is_none() => "the spec switches the system-call filter off",
        Control::NetworkIsolation if !launch.namespaces.net => "write sandbox.network: none",
        Control::ServiceNames if network::wanted(spec, machine.probe) != network::Wanted::Deployment => {
            "the spec gives it another network than that of its deployment"
        }
        // Also where each is named.
        Control::CapabilityDrop if launch.capabilities == capabilities::all() && spec.privileged != Some(true) => {
            GIVES_ALL
        }
        Control::Landlock if !launch.reach.is_limited() => "write sandbox.readable or sandbox.writable",
        Control::DiskLimit if launch.limits_disk() => quota::lifted_by(launch.seccomp, launch.capabilities)
            .map(|_| "it takes a system-call filter, and a program without SYS_ADMIN and SYS_RESOURCE")?,
        Control::User if !is_root(spec.user.as_deref()) && launch.identity.as_ref().is_some_and(root_user::is) => {
            root_user::NAMED_OTHERWISE
        }
        _ => return crate::spec::left_out(wanted, spec),
    };
    Some(why)
}

fn root(spec: &ServiceSpec, machine: &Machine<'_>) -> Result<Root, RuntimeError> {
    match &spec.image.name {
        ImageRef::Host if machine.probe.namespaces.is_err() => Ok(Root::Shared),
        ImageRef::Host => Ok(Root::Host),
        ImageRef::Dir(path) => dir_root(Path::new(path), spec, machine),
        ImageRef::Registry(_) | ImageRef::Oci { .. } | ImageRef::OciArchive(_) | ImageRef::DockerArchive(_) => {
            image_root(spec, machine)
        }
    }
}

fn image_root(spec: &ServiceSpec, machine: &Machine<'_>) -> Result<Root, RuntimeError> {
    let name = &spec.image.name;
    let Some(image) = machine.image else {
        let message = format!("image {name} is not here; it has to be pulled first");
        return Err(RuntimeError::new(ErrorKind::ImageUnavailable, message));
    };
    if let Err(why) = &machine.probe.namespaces {
        return Err(rejected(format!("image {name} needs namespaces, which this machine refuses: {why}")));
    }
    let (lower, read_only) = (image.lower.clone(), spec.read_only_root_fs == Some(true));
    Ok(match &machine.probe.layer {
        Ok(()) => Root::Layers { lower, layer: if read_only { Layer::ReadOnly } else { Layer::Writable } },
        Err(_) => Root::Copy { from: lower, read_only },
    })
}

/// Who the program is, looked up in the layers of its image.
fn identity(spec: &ServiceSpec, machine: &Machine<'_>) -> Result<Option<Identity>, RuntimeError> {
    let Some(image) = machine.image else { return Ok(None) };
    let users = image.users().map_err(|error| {
        RuntimeError::new(ErrorKind::Failed, format!("image {}: its layers can't be read: {error}", spec.image.name))
    })?;
    let identity = users.identity(spec.user.as_deref(), &spec.extra_groups);
    identity.map(Some).map_err(|error| rejected(format!("user: {error}")))
}

/// What an ordinary user's instance can't do with a root file system that is another user's: owners without a place in its
/// user namespace can't be written (user_namespaces(7), `EOVERFLOW`).
fn files_of_another(root: &Root, probe: &Probe) -> Option<Condition> {
    let Root::Dir { path, layer: Layer::Writable } = root else { return None };
    let owner = std::fs::metadata(path).ok()?.uid();
    (!probe.root && owner != rustix::process::geteuid().as_raw()).then(|| {
        Condition::holds(
            "Degraded",
            "FilesOfAnotherUser",
            format!(
                "dir:{} belongs to user {owner}, so the program reads its files and can't write in its directories; use a \
                 copy of your own (cp -r)",
                path.display()
            ),
        )
    })
}

fn dir_root(path: &Path, spec: &ServiceSpec, machine: &Machine<'_>) -> Result<Root, RuntimeError> {
    let probe = machine.probe;
    let problem = match std::fs::metadata(path) {
        Ok(data) if data.is_dir() => None,
        Ok(_) => Some("it is not a directory".to_owned()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(problem) = problem {
        return Err(RuntimeError::new(
            ErrorKind::ImageUnavailable,
            format!("image: dir:{} has no root file system: {problem}; unpack one there", path.display()),
        ));
    }
    if let Err(why) = &probe.namespaces {
        return Err(rejected(format!(
            "image: dir:{} needs namespaces, which this machine refuses: {why}",
            path.display()
        )));
    }
    let real = resolved(&format!("image: dir:{} can't be the root file system", path.display()), path, machine)?;
    if overlap(&real, machine.own_files).is_some() {
        return Err(rejected(format!(
            "image: dir:{} lies in Evenkeel's state directory or holds it, which no program may see; choose another state \
             directory, or another root file system",
            path.display()
        )));
    }
    let path = real;
    Ok(match (&probe.layer, spec.read_only_root_fs) {
        (Ok(()), Some(true)) => Root::Dir { path, layer: Layer::ReadOnly },
        (Ok(()), _) => Root::Dir { path, layer: Layer::Writable },
        (Err(_), read_only) => Root::Copy { from: vec![path], read_only: read_only == Some(true) },
    })
}

fn mounts(
    request: &CreateRequest,
    machine: &Machine<'_>,
    root: &Root,
    found: &mut Vec<Condition>,
) -> Result<Vec<Mount>, RuntimeError> {
    let mut mounts = Vec::new();
    if *root == Root::Host {
        for path in request.spec.sandbox.iter().flat_map(|sandbox| &sandbox.writable) {
            let what = format!("sandbox.writable: {path} can't be opened up");
            refuse_protected("sandbox.writable", path)?;
            let source = MountSource::Path(resolved(&what, Path::new(path), machine)?);
            mounts.push(Mount { source, target: path.clone(), read_only: false, size: None, goes_with_slot: false });
        }
        readable(&request.spec, &mut mounts, machine)?;
    }
    for (index, storage) in request.spec.storage.iter().enumerate() {
        let target = storage.target();
        match super::inside::components(target) {
            Ok(names) if !names.is_empty() => {}
            Ok(_) => return Err(rejected("storage: the target / would cover the root; mount at a directory below")),
            Err(error) => return Err(rejected(format!("storage: the target {target:?} can't be mounted: {error}"))),
        }
        refuse_protected("storage", target)?;
        let mut mount = mount(storage, index, &request.id, machine)?;
        if let (Some(_), Err(why)) = (mount.size, &machine.probe.quota) {
            mount.size = None;
            found.push(unsupported(&format!("storage.{index}.size"), why));
        }
        if *root == Root::Shared {
            found.push(unsupported(
                &format!("storage.{index}"),
                &format!("nothing is mounted at {target}, as the program runs as a plain process"),
            ));
        } else {
            mounts.push(mount);
        }
    }
    // What is inside another mount comes after it.
    mounts.sort_by_key(|mount| super::inside::depth(&mount.target));
    Ok(mounts)
}

/// Refuses a target over which nothing may be mounted. Where a link leads to such a one, its start says so.
fn refuse_protected(field: &str, target: &str) -> Result<(), RuntimeError> {
    match protecting(Path::new(target), &[]) {
        Some(by) => Err(rejected(format!(
            "{field}: nothing can be mounted at {target}: {by} is made for each instance, and may not be covered; name \
             another path"
        ))),
        None => Ok(()),
    }
}

/// Shows paths of the machine that are to be read although an instance has their directories for itself.
fn readable(spec: &ServiceSpec, mounts: &mut Vec<Mount>, machine: &Machine<'_>) -> Result<(), RuntimeError> {
    for path in spec.sandbox.iter().flat_map(|sandbox| &sandbox.readable) {
        let real = match machine.written.resolve(Path::new(path)) {
            Ok(real) => real,
            Err(Unresolved::Unreadable(_)) if !is_private(Path::new(path)) => continue,
            Err(error) => return Err(unresolved(&format!("sandbox.readable: {path} can't be opened up"), &error)),
        };
        // A link may lie in such a directory, or lead to one.
        for target in [Path::new(path), &real] {
            let is_shown = mounts.iter().any(|mount| target.starts_with(&mount.target));
            if is_private(target) && !is_shown {
                let target = target.to_string_lossy().into_owned();
                let source = MountSource::Path(real.clone());
                mounts.push(Mount { source, target, read_only: true, size: None, goes_with_slot: false });
            }
        }
    }
    Ok(())
}

/// Refuses paths of the machine that open up what holds the environments and secrets of every instance.
fn refuse_own_paths(spec: &ServiceSpec, root: &Root, machine: &Machine<'_>) -> Result<(), RuntimeError> {
    let Some(sandbox) = spec.sandbox.as_ref().filter(|_| matches!(root, Root::Host | Root::Shared)) else {
        return Ok(());
    };
    for (field, paths) in [("sandbox.readable", &sandbox.readable), ("sandbox.writable", &sandbox.writable)] {
        paths.iter().try_for_each(|path| refuse_own(field, path, machine))?;
    }
    Ok(())
}

/// Refuses to show what holds the environments and secrets of every instance.
fn refuse_own(field: &str, path: &str, machine: &Machine<'_>) -> Result<(), RuntimeError> {
    match overlap_of(Path::new(path), machine.own_files) {
        Some(Overlap::Inside(dir)) => Err(rejected(format!(
            "{field}: {path} lies in {}, where Evenkeel keeps its state and the secrets of every instance; name another \
             path, or choose another state directory",
            dir.display()
        ))),
        Some(Overlap::Around(_)) | None => Ok(()),
    }
}

/// Where a path of the machine leads, for as long as the instance is there.
fn resolved(what: &str, path: &Path, machine: &Machine<'_>) -> Result<PathBuf, RuntimeError> {
    machine.written.resolve(path).map_err(|error| unresolved(what, &error))
}

fn unresolved(what: &str, error: &Unresolved) -> RuntimeError {
    match error {
        // Somebody may still create it; nothing is wrong with the spec.
        Unresolved::Unreadable(error) => RuntimeError::new(ErrorKind::Failed, format!("{what}: {error}; create it")),
        Unresolved::Untrusted { .. } => rejected(format!("{what}: {error}")),
    }
}

fn mount(storage: &Storage, index: usize, id: &InstanceId, machine: &Machine<'_>) -> Result<Mount, RuntimeError> {
    let deployment = &id.deployment;
    let at = |source, target: &String, read_only: Option<bool>| {
        let read_only = read_only.unwrap_or(false);
        Ok(Mount { source, target: target.clone(), read_only, size: None, goes_with_slot: false })
    };
    match storage {
        Storage::Bind { source, target, readonly } => {
            let what = format!("storage: the source {source} can't be mounted");
            let real = resolved(&what, Path::new(source), machine)?;
            refuse_own("storage", source, machine)?;
            at(MountSource::Path(real), target, *readonly)
        }
        Storage::Named { name, target, readonly, size, .. } => {
            let volume = at(MountSource::Volume(machine.layout.volumes(deployment).join(name)), target, *readonly)?;
            Ok(Mount { size: size.map(|size| size.0), ..volume })
        }
        Storage::Workspace { keep, .. } => {
            let name = Storage::workspace_name(&id.service, id.slot);
            let target = storage.target().to_owned();
            let volume = at(MountSource::Volume(machine.layout.volumes(deployment).join(name)), &target, None)?;
            Ok(Mount { goes_with_slot: *keep != Some(true), ..volume })
        }
        Storage::Anonymous { target, .. } => at(MountSource::Volume(machine.dir.anonymous(index)), target, None),
        Storage::Tmpfs { target, size, mode } => {
            let size = size.map_or(TMPFS_SIZE, |size| size.0);
            at(MountSource::Tmpfs { size, mode: mode.map_or(TMPFS_MODE, |mode| mode.0) }, target, None)
        }
        Storage::S3 { bucket, .. } => Err(RuntimeError::new(
            ErrorKind::Unsupported,
            format!("storage: the bucket {bucket} can't be mounted: object stores come with a later version"),
        )),
    }
}

/// Limits of the process, within what this process may set.
fn limits(spec: &ServiceSpec, found: &mut Vec<Condition>) -> Vec<Limit> {
    let mut limits = Vec::new();
    for (name, ulimit) in &spec.ulimits {
        let Some((number, _, resource)) = RESOURCES.iter().find(|(_, known, _)| known == name) else {
            found.push(unsupported(&format!("ulimits.{name}"), "the kernel has no such limit"));
            continue;
        };
        let (soft, hard) = ulimit.bounds();
        let bound = |value: i64| u64::try_from(value).ok();
        let highest = rustix::process::getrlimit(*resource).maximum;
        let within = |value: Option<u64>| match (value, highest) {
            (None, highest) => highest,
            (Some(value), Some(highest)) => Some(value.min(highest)),
            (value, None) => value,
        };
        let (soft, hard) = (bound(soft), bound(hard));
        let limit = Limit { resource: *number, soft: within(soft), hard: within(hard) };
        if (limit.soft, limit.hard) != (soft, hard) {
            let highest = highest.map_or("none".to_owned(), |highest| highest.to_string());
            found.push(unsupported(&format!("ulimits.{name}"), &format!("the hard limit of keel itself is {highest}")));
        }
        limits.push(limit);
    }
    limits
}

/// Most bytes that it takes on the disk besides named volumes.
fn own_disk(spec: &ServiceSpec, machine: &Machine<'_>, shared: bool, found: &mut Vec<Condition>) -> Option<u64> {
    let wanted = spec.resources.as_ref()?.disk?.0;
    let why = match (&machine.probe.quota, shared) {
        (Ok(()), false) => return Some(wanted),
        (_, true) => "a plain process writes where its user may",
        (Err(why), false) => why,
    };
    found.push(unsupported("resources.disk", why));
    None
}

/// What is kept to in part only.
fn weakened(launch: &Launch, probe: &Probe) -> Vec<Condition> {
    let degraded = |reason: &str, message: String| Condition::holds("Degraded", reason, message);
    let lifted = quota::lifted_by(launch.seccomp, launch.capabilities).filter(|_| launch.limits_disk());
    let disk = lifted.map(|why| degraded("DiskLimitNotKept", format!("limits of disk space do not hold: {why}")));
    let bounded =
        if probe.root && launch.capabilities != capabilities::all() { &probe.capability_drop } else { &Ok(()) };
    let capabilities = bounded.as_ref().err().map(|why| {
        degraded(
            "CapabilitiesNotBounded",
            format!("capabilities that the program lacks stay in its bounding set: {why}"),
        )
    });
    disk.into_iter().chain(capabilities).collect()
}

/// In a user namespace of one user, files outside belong to that user whatever the program is inside.
fn single_user(spec: &ServiceSpec, launch: &Launch, found: &mut Vec<Condition>) {
    if launch.namespaces.user && !spec.extra_groups.is_empty() {
        found.push(unsupported("extra_groups", "keel does not run as root, so a process has one group"));
    }
}
