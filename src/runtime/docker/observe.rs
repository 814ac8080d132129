//! What the engine reports about a container, as an instance. Pure.

use std::collections::HashMap;

use bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum as Status, ContainerSummary,
    ContainerSummaryStateEnum as Listed, HealthStatusEnum, PortMap, PortSummary, PortSummaryTypeEnum,
};
use chrono::{DateTime, Utc};

use super::{changed, lost, pins};
use crate::spec::{PortProtocol, RuntimeKind};
use crate::state::{
    BadIdentity, Condition, Exit, HealthState, Instance, InstanceId, InstanceRef, Owner, Phase, PortBinding,
    StopPolicy, labels, last_line,
};

/// Label that remembers that the spec asked for an init process and the engine has none.
pub(super) const NO_INIT: &str = "dev.evenkeel.no-init";
/// Label that remembers the `resources.blkio_weight` that the spec asks for and the engine leaves out.
pub(super) const NO_IO_WEIGHT: &str = "dev.evenkeel.no-io-weight";
/// Why it leaves it out.
pub(super) const IO_UNWEIGHED: &str =
    "the machine's kernel gives the engine no weight for disk traffic (it takes the BFQ scheduler)";

/// The identity that labels carry.
///
/// # Errors
/// They carry none, or another owner's.
pub(super) fn identity(labels: &HashMap<String, String>, owner: &Owner) -> Result<InstanceId, BadIdentity> {
    if labels.get(labels::OWNER) != Some(&owner.0) {
        return Err(BadIdentity(format!("the label {} is not {owner}", labels::OWNER)));
    }
    InstanceId::from_labels(|key| labels.get(key).map(String::as_str))
}

/// How the container wants to be stopped; the default where its labels do not say.
fn stop_policy(labels: &HashMap<String, String>) -> StopPolicy {
    let default = StopPolicy::default();
    let text = |key: &str| labels.get(key).map(String::as_str).unwrap_or_default();
    StopPolicy {
        signal: text(labels::STOP_SIGNAL).parse().unwrap_or(default.signal),
        grace: text(labels::STOP_GRACE).parse().unwrap_or(default.grace),
    }
}

/// How runtime calls name the container with these labels.
pub(super) fn reference(
    container: &str,
    labels: &HashMap<String, String>,
    owner: &Owner,
) -> Result<InstanceRef, BadIdentity> {
    let id = identity(labels, owner)?;
    Ok(InstanceRef { id, runtime: RuntimeKind::Docker, runtime_id: container.to_owned() })
}

/// The instance that an inspection describes.
///
/// # Errors
/// Its labels carry no identity of this owner.
pub(super) fn from_inspect(inspect: &ContainerInspectResponse, owner: &Owner) -> Result<Instance, BadIdentity> {
    let none = HashMap::new();
    let labels = inspect.config.as_ref().and_then(|config| config.labels.as_ref()).unwrap_or(&none);
    let created_at = inspect.created.unwrap_or_default();
    let state = inspect.state.clone().unwrap_or_default();
    let ports = inspect.network_settings.as_ref().and_then(|settings| settings.ports.as_ref());
    let mut instance = Instance {
        id: identity(labels, owner)?,
        runtime: RuntimeKind::Docker,
        runtime_id: inspect.id.clone().unwrap_or_default(),
        phase: phase(&state, created_at),
        created_at,
        restarts: count(labels, labels::RESTARTS),
        streak: count(labels, labels::STREAK),
        stop: stop_policy(labels),
        pid: state.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0),
        ports: ports.map(inspected_ports).unwrap_or_default(),
        last_activity: None,
        frozen: Default::default(),
        health: None,
        conditions: conditions(labels),
    };
    instance.conditions.extend(lost::conditions(inspect));
    instance.conditions.extend(changed::condition(inspect, &instance.id, &instance.phase));
    instance.judge(health(&state));
    Ok(instance)
}

/// The instance of a line of a list, in a phase that nobody knows; `why` says why.
///
/// # Errors
/// Its labels carry no identity of this owner.
pub(super) fn from_summary(summary: &ContainerSummary, owner: &Owner, why: &str) -> Result<Instance, BadIdentity> {
    let none = HashMap::new();
    let labels = summary.labels.as_ref().unwrap_or(&none);
    Ok(Instance {
        id: identity(labels, owner)?,
        runtime: RuntimeKind::Docker,
        runtime_id: summary.id.clone().unwrap_or_default(),
        phase: Phase::Unknown { message: why.to_owned() },
        created_at: summary.created.and_then(|at| DateTime::from_timestamp(at, 0)).unwrap_or_default(),
        restarts: count(labels, labels::RESTARTS),
        streak: count(labels, labels::STREAK),
        stop: stop_policy(labels),
        pid: None,
        ports: listed_ports(summary),
        last_activity: None,
        frozen: Default::default(),
        health: None,
        conditions: conditions(labels),
    })
}

/// Whether what is remembered of an instance may still be true of this line of a list: the list gives no exit code, no
/// times and no process id, so those are remembered until the state changes.
pub(super) const fn agrees(listed: Option<Listed>, phase: &Phase) -> bool {
    matches!(
        (listed, phase),
        (Some(Listed::CREATED), Phase::Created)
            | (Some(Listed::RUNNING), Phase::Running { .. })
            | (Some(Listed::PAUSED), Phase::Paused { .. })
            | (Some(Listed::EXITED | Listed::DEAD), Phase::Exited(_))
            | (Some(Listed::REMOVING), Phase::Stopping)
    )
}

/// Whether what is remembered of an instance's health may still be true of this line, which tells it in words only:
/// `Up 4 seconds (unhealthy)`. One that is frozen tells none.
pub(super) fn agrees_on_health(summary: &ContainerSummary, known: &Instance) -> bool {
    let words = summary.status.as_deref().unwrap_or_default();
    let told = [("(healthy)", "healthy"), ("(unhealthy)", "unhealthy"), ("(health: starting)", "starting")];
    let listed = told.iter().find(|(mark, _)| words.contains(mark)).map(|(_, name)| *name);
    !matches!(known.phase, Phase::Running { .. }) || listed == known.health.as_ref().map(HealthState::name)
}

/// What the image's own health check says of a run.
fn health(state: &ContainerState) -> Option<HealthState> {
    if !matches!(state.status, Some(Status::RUNNING | Status::PAUSED)) {
        return None;
    }
    let health = state.health.as_ref()?;
    let last = health.log.iter().flatten().rev().find(|check| check.exit_code != Some(0));
    let last = last.map(|check| {
        let code = check.exit_code.unwrap_or_default();
        let line = last_line(check.output.as_deref().unwrap_or_default());
        line.map_or_else(|| format!("exit code {code}"), |line| format!("exit code {code}: {line}"))
    });
    match health.status? {
        HealthStatusEnum::STARTING => Some(HealthState::Starting { last }),
        HealthStatusEnum::HEALTHY => Some(HealthState::Healthy),
        HealthStatusEnum::UNHEALTHY => {
            // The check is the image's own, so that nothing speaks against it.
            Some(HealthState::Unhealthy {
                last: last.unwrap_or_else(|| "its HEALTHCHECK fails".to_owned()),
                passed: true,
            })
        }
        HealthStatusEnum::NONE | HealthStatusEnum::EMPTY => None,
    }
}

/// Ports of a line of a list.
pub(super) fn listed_ports(summary: &ContainerSummary) -> Vec<PortBinding> {
    let mut ports: Vec<_> = summary.ports.iter().flatten().filter_map(listed_port).collect();
    sort(&mut ports);
    ports
}

fn listed_port(port: &PortSummary) -> Option<PortBinding> {
    Some(PortBinding {
        container_port: port.private_port,
        protocol: match port.typ {
            Some(PortSummaryTypeEnum::UDP) => PortProtocol::Udp,
            _ => PortProtocol::Tcp,
        },
        host_ip: port.ip.clone().unwrap_or_default(),
        host_port: port.public_port?,
    })
}

fn inspected_ports(ports: &PortMap) -> Vec<PortBinding> {
    let mut found = Vec::new();
    for (inside, bindings) in ports {
        let (port, protocol) = inside.split_once('/').unwrap_or((inside, "tcp"));
        let Ok(container_port) = port.parse() else { continue };
        let protocol = if protocol == "udp" { PortProtocol::Udp } else { PortProtocol::Tcp };
        for binding in bindings.iter().flatten() {
            let Some(host_port) = binding.host_port.as_deref().and_then(|port| port.parse().ok()) else { continue };
            let host_ip = binding.host_ip.clone().unwrap_or_default();
            found.push(PortBinding { container_port, protocol, host_ip, host_port });
        }
    }
    sort(&mut found);
    found
}

fn sort(ports: &mut [PortBinding]) {
    ports.sort_by(|a, b| {
        let key = |port: &PortBinding| (port.container_port, port.protocol == PortProtocol::Udp, port.host_port);
        key(a).cmp(&key(b)).then_with(|| a.host_ip.cmp(&b.host_ip))
    });
}

fn count(labels: &HashMap<String, String>, key: &str) -> u32 {
    labels.get(key).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn conditions(labels: &HashMap<String, String>) -> Vec<Condition> {
    let no_init = labels.contains_key(NO_INIT).then(|| {
        Condition::holds(
            "Degraded",
            "NoInitProcess",
            "the engine has no init program (docker-init, catatonit), so orphaned processes inside are not reaped; \
             install it, or write init_container: false",
        )
    });
    let no_weight = labels.get(NO_IO_WEIGHT).map(|weight| {
        let message = format!("resources.blkio_weight: {weight} has no effect: {IO_UNWEIGHED}");
        Condition::holds("Degraded", "NoIoWeight", message)
    });
    let moved = labels.get(pins::MOVED_FROM).map(|image| pins::condition(image));
    no_init.into_iter().chain(no_weight).chain(moved).collect()
}

/// The phase that a state describes.
fn phase(state: &ContainerState, created_at: DateTime<Utc>) -> Phase {
    let started_at = time(state.started_at.as_deref());
    let since = started_at.unwrap_or(created_at);
    match state.status {
        // Docker leaves a container whose process could not be run in this state, and says why.
        Some(Status::CREATED) => match state.error.as_deref().map(str::trim).filter(|error| !error.is_empty()) {
            Some(error) => Phase::Exited(Exit::runtime_error(error, created_at)),
            None => Phase::Created,
        },
        Some(Status::RUNNING) => Phase::Running { since, ready: true },
        Some(Status::PAUSED) => Phase::Paused { since },
        Some(Status::EXITED | Status::DEAD) => Phase::Exited(exit(state, started_at, created_at)),
        Some(Status::REMOVING | Status::STOPPING) => Phase::Stopping,
        Some(Status::RESTARTING | Status::EMPTY) | None => {
            Phase::Unknown { message: state.status.map_or_else(|| "no status".to_owned(), |status| status.to_string()) }
        }
    }
}

fn exit(state: &ContainerState, started_at: Option<DateTime<Utc>>, created_at: DateTime<Utc>) -> Exit {
    let finished_at = time(state.finished_at.as_deref()).or(started_at).unwrap_or(created_at);
    let error = state.error.as_deref().map(str::trim).filter(|error| !error.is_empty());
    match (error, started_at) {
        (Some(error), None) => Exit::runtime_error(error, finished_at),
        _ => coded(state.exit_code.unwrap_or(0), state.oom_killed == Some(true), started_at, finished_at),
    }
}

/// An exit with this code.
pub(super) fn coded(
    code: i64,
    oom_killed: bool,
    started_at: Option<DateTime<Utc>>,
    finished_at: DateTime<Utc>,
) -> Exit {
    // Docker was seen to say that a run of a millisecond ended before it began.
    let finished_at = started_at.map_or(finished_at, |started_at| finished_at.max(started_at));
    let exit = Exit::from_code(i32::try_from(code).unwrap_or(i32::MAX), started_at, finished_at);
    if oom_killed { exit.out_of_memory() } else { exit }
}

/// A time of the engine; Go's zero time means never.
fn time(text: Option<&str>) -> Option<DateTime<Utc>> {
    let time = DateTime::parse_from_rfc3339(text?).ok()?.with_timezone(&Utc);
    (time.timestamp() > 0).then_some(time)
}
