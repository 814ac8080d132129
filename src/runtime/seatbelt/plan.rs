//! From a request to the record of one instance and its profile: pure, apart from the facts that it is given.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use super::controls;
use super::launch::Launch;
use super::layout::{InstanceDir, Layout};
use super::profile::{Network, Profile};
use super::record::{RECORD_VERSION, Record};
use crate::runtime::logfiles::LogBounds;
use crate::runtime::{CreateRequest, ErrorKind, RuntimeError};
use crate::spec::{ImageRef, ServiceSpec, Storage};
use crate::state::{Condition, InstanceId, PortBinding, StopPolicy};

/// What the plan needs to know besides the request.
#[derive(Debug)]
pub struct Machine<'a> {
    /// Where things lie.
    pub layout: &'a Layout,
    /// What applies profiles.
    pub launcher: &'a Path,
    /// What no program sees.
    pub hidden: &'a [PathBuf],
    /// Port that is assigned where the program is told one.
    pub port: Option<u16>,
    /// The user that runs this program, by name and number.
    pub user: &'a BTreeSet<String>,
    /// The time.
    pub now: DateTime<Utc>,
}

/// An instance to be made.
#[derive(Debug)]
pub struct Planned {
    /// What is kept of it.
    pub record: Record,
    /// What it may do.
    pub profile: Profile,
    /// The image that is copied; none where there is none.
    pub image: Option<PathBuf>,
}

/// Whether a program is told a port: it has an endpoint, a network, and no `PORT` of its own.
pub fn wants_port(request: &CreateRequest) -> bool {
    !request.spec.endpoints.is_empty()
        && !request.env.contains_key("PORT")
        && Network::of(&request.spec, None) != Network::None
}

/// Plans an instance.
///
/// # Errors
/// `Rejected` for what can't be.
pub fn plan(request: &CreateRequest, machine: &Machine<'_>) -> Result<Planned, RuntimeError> {
    let spec = &request.spec;
    refuse(spec, machine)?;
    let dir = machine.layout.instance(&request.id.runtime_name());
    let mut conditions = controls::unsupported(spec);
    let storage = storage(request, machine)?;
    let (first_port, ports) = ports(request, machine.port);
    let told = first_port.map(|(_, port)| port);
    let profile = Profile::of(spec, &dir.root(), &dir.scratch(), told, !machine.layout.denies_devices());
    let mut profile = profile.resolved();
    for path in profile.readable.iter().chain(&profile.writable) {
        if machine.hidden.iter().any(|own| path.starts_with(own)) {
            let path = path.display();
            return Err(rejected(format!(
                "sandbox: {path} lies in Evenkeel's state directory, which no program may see"
            )));
        }
    }
    profile.own = storage.written;
    profile.own_read_only = storage.read;
    profile.hidden = machine.hidden.to_vec();
    conditions.extend(storage.conditions);
    let record = Record {
        version: RECORD_VERSION,
        id: request.id.clone(),
        restarts: request.restarts,
        streak: request.streak,
        stop: StopPolicy::of(spec),
        created_at: machine.now,
        conditions,
        first_port,
        ports,
        volumes: storage.volumes,
        workspace: storage.workspace,
        memory: spec.resources.as_ref().and_then(|one| one.memory).map(|bytes| bytes.0),
        log: LogBounds::of(spec),
        enforcement: controls::enforcement(spec),
        launch: launch(request, &dir, machine, storage.links)?,
    };
    let image = image(&spec.image.name, machine)?;
    Ok(Planned { record, profile, image })
}

/// The directory that is copied, as it really is: `cp` copies a link as a link.
fn image(name: &ImageRef, machine: &Machine<'_>) -> Result<Option<PathBuf>, RuntimeError> {
    let ImageRef::Dir(path) = name else { return Ok(None) };
    let real = std::fs::canonicalize(path)
        .map_err(|error| RuntimeError::new(ErrorKind::ImageUnavailable, format!("image: dir:{path}: {error}")))?;
    match machine.hidden.iter().any(|own| real.starts_with(own) || own.starts_with(&real)) {
        true => Err(rejected(format!(
            "image: dir:{path} lies in Evenkeel's state directory or holds it, which no program may see"
        ))),
        false => Ok(Some(real)),
    }
}

fn launch(
    request: &CreateRequest,
    dir: &InstanceDir,
    machine: &Machine<'_>,
    links: BTreeMap<PathBuf, PathBuf>,
) -> Result<Launch, RuntimeError> {
    let command = request.spec.command.as_ref();
    let list = |list: Option<&Vec<String>>| list.cloned().unwrap_or_default();
    let mut words = list(command.and_then(|command| command.entrypoint.as_ref()));
    words.extend(list(command.and_then(|command| command.args.as_ref())));
    if words.first().is_none_or(String::is_empty) {
        let image = &request.spec.image.name;
        return Err(rejected(format!(
            "image {image} has no command of its own; write the program in command.entrypoint"
        )));
    }
    let mut env = request.env.clone();
    let told = [
        ("TMPDIR", Some(dir.scratch().to_string_lossy().into_owned())),
        // A program finds below it what others find at absolute paths.
        ("KEEL_ROOT", Some(dir.root().to_string_lossy().into_owned())),
        ("PORT", machine.port.map(|port| port.to_string())),
    ];
    for (name, value) in told.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        env.entry(name.to_owned()).or_insert(value);
    }
    Ok(Launch {
        launcher: machine.launcher.to_owned(),
        profile: dir.profile(),
        root: dir.root(),
        scratch: dir.scratch(),
        command: words,
        env,
        workdir: command.and_then(|command| command.workdir.clone()).map(PathBuf::from),
        links,
    })
}

/// Refuses what would run with more than the spec allows it: an unmet wish for confinement is no condition.
fn refuse(spec: &ServiceSpec, machine: &Machine<'_>) -> Result<(), RuntimeError> {
    if let Some(user) = spec.user.as_ref().filter(|user| !is_own(user, machine.user)) {
        return Err(rejected(format!(
            "user: {user} can't be had: under Seatbelt every program runs as the user that keel runs as; remove it, or run \
             keel as that user"
        )));
    }
    if spec.sandbox.as_ref().is_some_and(|sandbox| !sandbox.allow_hosts.is_empty()) {
        return Err(rejected(
            "sandbox.allow_hosts can't be held under Seatbelt, whose rules know addresses and no names; write \
             sandbox.network: none or loopback, or run the service on Docker",
        ));
    }
    let has_gpu = spec.resources.as_ref().is_some_and(|resources| resources.gpu.is_some());
    if machine.layout.denies_devices() && (has_gpu || !spec.devices.is_empty()) {
        return Err(rejected(
            "devices and graphics processors are switched off (keel run --devices deny); remove devices and resources.gpu",
        ));
    }
    controls::require(spec)
}

fn is_own(user: &str, own: &BTreeSet<String>) -> bool {
    own.contains(user.split(':').next().unwrap_or(user))
}

/// What becomes of the storage of an instance.
#[derive(Debug, Default)]
struct Stored {
    links: BTreeMap<PathBuf, PathBuf>,
    volumes: Vec<PathBuf>,
    workspace: Option<PathBuf>,
    written: Vec<PathBuf>,
    read: Vec<PathBuf>,
    conditions: Vec<Condition>,
}

fn storage(request: &CreateRequest, machine: &Machine<'_>) -> Result<Stored, RuntimeError> {
    let InstanceId { deployment, service, slot, .. } = &request.id;
    let mut stored = Stored::default();
    for (index, storage) in request.spec.storage.iter().enumerate() {
        let target = PathBuf::from(storage.target());
        match storage {
            Storage::Bind { source, readonly, .. } => {
                let source = std::fs::canonicalize(source)
                    .map_err(|error| rejected(format!("storage: {source} can't be opened: {error}")))?;
                if machine.hidden.iter().any(|own| source.starts_with(own) || own.starts_with(&source)) {
                    return Err(rejected(format!(
                        "storage: {} lies in Evenkeel's state directory or holds it, which no program may see",
                        source.display()
                    )));
                }
                if *readonly == Some(true) { &mut stored.read } else { &mut stored.written }.push(source.clone());
                stored.links.insert(target, source);
            }
            Storage::Named { name, readonly, size, .. } => {
                let path = machine.layout.volumes(deployment).join(name);
                if *readonly == Some(true) { &mut stored.read } else { &mut stored.written }.push(path.clone());
                if size.is_some() {
                    stored.conditions.push(controls::without_effect(
                        &format!("storage.{index}.size"),
                        "nothing limits the size of a directory here",
                    ));
                }
                stored.volumes.push(path.clone());
                stored.links.insert(target, path);
            }
            Storage::Workspace { keep, .. } => {
                let path = machine.layout.workspaces(deployment).join(format!("{service}_{slot}"));
                stored.written.push(path.clone());
                stored.workspace = (*keep != Some(true)).then(|| path.clone());
                stored.volumes.push(path.clone());
                stored.links.insert(target, path);
            }
            Storage::Anonymous { .. } | Storage::Tmpfs { .. } => {
                let folder = machine.layout.instance(&request.id.runtime_name()).0.join("anonymous");
                let path = folder.join(index.to_string());
                stored.written.push(path.clone());
                stored.volumes.push(path.clone());
                stored.links.insert(target, path);
            }
            Storage::S3 { .. } => stored
                .conditions
                .push(controls::without_effect(&format!("storage.{index}"), "objects of S3 are not mounted here")),
        }
    }
    check_targets(&stored.links)?;
    Ok(stored)
}

/// Refuses what links can't show: a link stands for the whole of what is at its path, so that another one below it would be
/// made in the directory that the first one leads to, which may be a user's own.
fn check_targets(links: &BTreeMap<PathBuf, PathBuf>) -> Result<(), RuntimeError> {
    for target in links.keys() {
        if target.parent().is_none() {
            return Err(rejected("storage: nothing can be mounted at / here; name a directory below it"));
        }
        if let Some(outer) = target.ancestors().skip(1).find(|outer| links.contains_key(*outer)) {
            return Err(rejected(format!(
                "storage: {} lies in {}, which is mounted as well, and here mounts are links that can't lie in one another; \
                 choose a target beside it",
                target.display(),
                outer.display()
            )));
        }
    }
    Ok(())
}

/// Where the program listens for its first endpoint, and the ports that lead to it.
fn ports(request: &CreateRequest, assigned: Option<u16>) -> (Option<(u16, u16)>, Vec<PortBinding>) {
    let written = request.env.get("PORT").map(|port| port.parse::<u16>().ok());
    let Some(endpoint) = request.spec.endpoints.first() else { return (None, Vec::new()) };
    // Nothing is known about where it listens where PORT is something else than a port.
    let Some(port) = written.unwrap_or(assigned) else { return (None, Vec::new()) };
    if Network::of(&request.spec, None) == Network::None {
        return (None, Vec::new());
    }
    let protocol = endpoint.protocol.transport();
    let binding = PortBinding { container_port: port, protocol, host_ip: "127.0.0.1".to_owned(), host_port: port };
    (Some((endpoint.target_port(), port)), vec![binding])
}

fn rejected(message: impl Into<String>) -> RuntimeError {
    RuntimeError::new(ErrorKind::Rejected, message)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::state::Owner;

    fn request(more: &str) -> CreateRequest {
        let command = if more.starts_with("command") { "" } else { "command: { entrypoint: [server] }" };
        let text = format!("image: {{ name: host }}\n{command}\n{more}");
        let id = InstanceId {
            deployment: "demo".to_owned(),
            service: "web".to_owned(),
            slot: 0,
            revision: "v1-aa00000000000000".parse().unwrap(),
            attempt: 0,
            run: None,
        };
        let spec = Arc::new(serde_yaml::from_str(&text).unwrap());
        CreateRequest { id, restarts: 0, streak: 0, spec, env: BTreeMap::new(), source: None }
    }

    fn planned(more: &str) -> Result<Planned, RuntimeError> {
        let layout = Layout::new(Path::new("/state/sandbox"), &Owner("me".to_owned())).unwrap();
        let user = BTreeSet::from(["501".to_owned(), "ada".to_owned()]);
        plan(
            &request(more),
            &Machine {
                layout: &layout,
                launcher: Path::new("/usr/bin/sandbox-exec"),
                hidden: &["/state".into()],
                port: Some(20_001),
                user: &user,
                now: DateTime::UNIX_EPOCH,
            },
        )
    }

    fn refusal(more: &str) -> String {
        let error = planned(more).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Rejected);
        error.message
    }

    #[test]
    fn what_would_be_less_than_is_asked_for_is_refused() {
        assert!(refusal("user: nobody").contains("every program runs as the user that keel runs as"));
        for own in ["ada", "501", "ada:staff"] {
            assert!(planned(&format!("user: '{own}'")).is_ok(), "{own}");
        }
        assert!(refusal("sandbox: { allow_hosts: [example.org] }").contains("addresses and no names"));
        assert!(refusal("sandbox: { require: [seccomp] }").contains("seccomp"));
        assert!(refusal("command: { entrypoint: [] }").contains("command.entrypoint"));
        assert!(refusal("storage: [{ type: bind, source: /no/such, target: /x }]").contains("/no/such"));
        assert!(refusal("storage: [{ type: bind, source: /, target: /x }]").contains("state directory"));
    }

    #[test]
    fn a_target_in_another_one_or_the_root_is_refused_since_a_link_there_would_change_what_the_other_one_shows() {
        let nested = |outer: &str, inner: &str| {
            format!(
                "storage:\n- {{ type: named, name: mods, target: {inner} }}\n- {{ type: bind, source: /usr, target: {outer} }}"
            )
        };
        for (outer, inner) in [("/workspace", "/workspace/node_modules"), ("/data/", "/data/in/it")] {
            let refused = refusal(&nested(outer, inner));
            assert!(refused.contains(&format!("{inner} lies in {}", outer.trim_end_matches('/'))), "{refused}");
        }
        assert!(planned(&nested("/data", "/database")).is_ok());
        assert!(refusal("storage: [{ type: tmpfs, target: / }]").contains("at / here"));
    }

    #[test]
    fn volumes_lie_beside_the_root_and_are_found_below_it() {
        let found = planned(
            "storage:\n- { type: named, name: db, target: /var/db }\n- { type: named, name: seed, target: /seed, readonly: true }\n\
             - { type: workspace }\n- { type: tmpfs, target: /scratch }",
        )
        .unwrap();
        let path = |text: &str| PathBuf::from(format!("/state/sandbox/me/{text}"));
        let instance = found.record.id.runtime_name();
        let scratch = path(&format!("instances/{instance}/anonymous/3"));
        let expected = [
            ("/scratch", scratch.clone()),
            ("/seed", path("volumes/demo/seed")),
            ("/var/db", path("volumes/demo/db")),
            ("/workspace", path("workspaces/demo/web_0")),
        ];
        assert_eq!(found.record.launch.links, expected.map(|(at, path)| (PathBuf::from(at), path)).into());
        assert_eq!(found.record.workspace, Some(path("workspaces/demo/web_0")));
        assert_eq!(found.profile.own, [path("volumes/demo/db"), path("workspaces/demo/web_0"), scratch]);
        assert_eq!(found.profile.own_read_only, [path("volumes/demo/seed")]);
    }

    #[test]
    fn the_first_endpoint_is_at_the_assigned_port_which_the_program_is_told() {
        let endpoint = "endpoints: [{ name: http, protocol: http, port: 80, target_port: 8080 }]";
        let found = planned(endpoint).unwrap().record;
        assert_eq!(found.first_port, Some((8080, 20_001)));
        assert_eq!(found.launch.env.get("PORT").map(String::as_str), Some("20001"));
        assert_eq!(found.ports.iter().map(|one| one.host_port).collect::<Vec<_>>(), [20_001]);
        let mut own = request(endpoint);
        assert!(wants_port(&own));
        own.env.insert("PORT".to_owned(), "9000".to_owned());
        assert!(!wants_port(&own));
        assert!(!wants_port(&request(&format!("{endpoint}\nsandbox: {{ network: none }}"))));
        assert_eq!(planned(&format!("{endpoint}\nsandbox: {{ network: none }}")).unwrap().record.ports, []);
    }
}
