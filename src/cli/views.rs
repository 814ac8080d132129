//! What `get` shows of deployments, services, jobs and instances: names, rows, columns. Pure.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use serde_json::Value;

use super::text::age;
use crate::spec::{PortProtocol, Revision};
use crate::state::{Condition, ConditionStatus, HealthState, NOBODY_CHECKS, PortBinding, Target};
use crate::status::{DeploymentState, DeploymentView, InstanceView, JobKind, ServiceView, Status};

/// Head of the column that changes by itself.
const AGE: &str = "AGE";

/// What stands for how many are ready, where nobody knows.
const UNKNOWN_COUNT: &str = "?";

/// Head of the column that says what is wrong.
const MESSAGE: &str = "MESSAGE";

/// What is shown of an object that was there before and is gone.
const REMOVED: &str = "removed";

/// The types that can be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Deployments.
    Deployments,
    /// Services.
    Services,
    /// Services that are jobs or cron services, and their runs.
    Jobs,
    /// Instances.
    Instances,
    /// Services that are pools, and how claims went.
    Pools,
}

/// One object that is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Its name; two instances share one during a rollout.
    pub name: String,
    /// Tells it from every other object.
    pub key: String,
    /// Shared by objects of which one takes the place of another: the instances of a slot and revision.
    pub place: String,
    /// Whether it is being ended.
    pub leaving: bool,
    /// The view as JSON.
    pub value: Value,
    /// Cells of the table.
    pub cells: Vec<String>,
    /// Further cells of the wide table.
    pub wide: Vec<String>,
}

impl Resource {
    /// Those that `all` stands for, in the order in which they are printed; services hold the jobs.
    pub const ALL: [Self; 3] = [Self::Deployments, Self::Services, Self::Instances];

    /// The type that is meant by this word.
    pub fn parse(word: &str) -> Option<Self> {
        match word.to_ascii_lowercase().as_str() {
            "deployment" | "deployments" | "deploy" => Some(Self::Deployments),
            "service" | "services" | "svc" => Some(Self::Services),
            "job" | "jobs" | "cron" | "crons" => Some(Self::Jobs),
            "instance" | "instances" | "inst" => Some(Self::Instances),
            "pool" | "pools" => Some(Self::Pools),
            _ => None,
        }
    }

    /// The name of one.
    pub const fn singular(self) -> &'static str {
        match self {
            Self::Deployments => "deployment",
            Self::Services => "service",
            Self::Jobs => "job",
            Self::Instances => "instance",
            Self::Pools => "pool",
        }
    }

    /// The name of many.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Deployments => "deployments",
            Self::Services => "services",
            Self::Jobs => "jobs",
            Self::Instances => "instances",
            Self::Pools => "pools",
        }
    }

    /// The heads of its columns.
    pub fn header(self, wide: bool) -> Vec<&'static str> {
        let (narrow, more): (&[_], &[_]) = match self {
            Self::Deployments => (&["NAME", "STATE", "READY", "MESSAGE"], &["SOURCE", "CONDITIONS"]),
            Self::Services => (
                &["NAME", "DESIRED", "RUNNING", "READY", "UP-TO-DATE", "RUNTIME", "MESSAGE"],
                &["IMAGE", "REVISION", "SOURCE", "CONDITIONS"],
            ),
            Self::Jobs => (
                &["NAME", "KIND", "STATUS", "COMPLETIONS", "FAILED", "STARTED", "NEXT RUN"],
                &["SCHEDULE", "FINISHED RUNS", "MESSAGE"],
            ),
            Self::Instances => (
                &["NAME", "READY", "STATUS", "RESTARTS", AGE, "REVISION", "PORTS"],
                &["RUNTIME", "ID", "PID", "MESSAGE", "CONDITIONS"],
            ),
            Self::Pools => (
                &["NAME", "WARM", "CLAIMED", "STARTING", "TOTAL", "HIT RATE", "CLAIM P50", "CLAIM P99", MESSAGE],
                &["MIN", "MAX", "RECOMMENDED", "MEMORY", "SAVED", "RUNTIME"],
            ),
        };
        narrow.iter().chain(if wide { more } else { &[] }).copied().collect()
    }

    /// Names of what objects of this type are parts of.
    pub fn wholes(self, status: &Status) -> Vec<String> {
        let deployments = status.deployments.iter().map(|view| view.deployment.clone());
        let services = status.services.iter().map(|view| format!("{}/{}", view.deployment, view.service));
        match self {
            Self::Deployments => Vec::new(),
            Self::Services | Self::Jobs | Self::Pools => deployments.collect(),
            Self::Instances => deployments.chain(services).collect(),
        }
    }

    /// What there is of it.
    pub fn objects(self, status: &Status, now: DateTime<Utc>) -> Vec<Object> {
        match self {
            Self::Deployments => status.deployments.iter().map(|view| deployment(view, status)).collect(),
            Self::Services => status.services.iter().map(|view| service(view, status)).collect(),
            Self::Jobs => status.services.iter().filter_map(job).collect(),
            Self::Instances => status.instances.iter().map(|view| instance(view, now)).collect(),
            Self::Pools => status.services.iter().filter_map(pool).collect(),
        }
    }
}

impl Object {
    /// Whether it is meant by this name: its own, or that of what it belongs to.
    pub fn is_named(&self, name: &Target) -> bool {
        let name = name.to_string();
        self.name.strip_prefix(&name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Its row.
    pub fn row(&self, wide: bool) -> Vec<String> {
        self.cells.iter().chain(if wide { self.wide.as_slice() } else { &[] }).cloned().collect()
    }

    /// Whether its row says the same as another one. Time alone makes no difference.
    pub fn reads_like(&self, other: &Self, resource: Resource, wide: bool) -> bool {
        let columns = resource.header(wide);
        let (one, other) = (self.row(wide), other.row(wide));
        let mut cells = columns.iter().zip(one.iter().zip(&other));
        cells.all(|(column, (one, other))| *column == AGE || one == other)
    }

    /// What is shown of it when it is gone.
    pub fn gone(mut self, resource: Resource) -> Self {
        let last = match resource {
            Resource::Deployments => vec![("state", REMOVED.into())],
            Resource::Services => vec![("message", REMOVED.into()), ("running", 0.into()), ("ready", 0.into())],
            Resource::Jobs | Resource::Pools => vec![("message", REMOVED.into())],
            Resource::Instances => vec![("phase", REMOVED.into()), ("ready", false.into())],
        };
        if let Value::Object(view) = &mut self.value {
            view.extend(last.into_iter().map(|(field, value)| (field.to_owned(), value)));
        }
        for (column, cell) in resource.header(false).iter().zip(&mut self.cells) {
            match (resource, *column) {
                (Resource::Deployments, "STATE")
                | (Resource::Services | Resource::Pools, "MESSAGE")
                | (Resource::Jobs | Resource::Instances, "STATUS") => {
                    REMOVED.clone_into(cell);
                }
                (Resource::Instances, "READY") => "0/1".clone_into(cell),
                _ => {}
            }
        }
        self
    }
}

fn deployment(view: &DeploymentView, status: &Status) -> Object {
    let (ready, desired) = match view.state {
        DeploymentState::Kept => kept(view, status),
        _ => declared(view, status),
    };
    let unchecked = status.instances.iter().any(|one| one.deployment == view.deployment && is_unchecked(one));
    let ready = if unchecked { UNKNOWN_COUNT.to_owned() } else { ready.to_string() };
    Object {
        name: view.deployment.clone(),
        key: view.deployment.clone(),
        place: view.deployment.clone(),
        leaving: false,
        value: json(view),
        cells: vec![
            view.deployment.clone(),
            view.state.name().to_owned(),
            format!("{ready}/{desired}"),
            view.message.clone(),
        ],
        wide: vec![or_none(view.source.as_deref()), conditions(&view.conditions)],
    }
}

/// Whether nobody knows if an instance is ready, since no controller makes its checks.
fn is_unchecked(view: &InstanceView) -> bool {
    matches!(&view.health, Some(HealthState::Unknown { why }) if why == NOBODY_CHECKS)
}

/// Replicas that are ready, of those that there should be.
fn declared(view: &DeploymentView, status: &Status) -> (u32, u32) {
    let services = status.services.iter().filter(|service| service.deployment == view.deployment);
    services.fold((0, 0), |(ready, desired), service| {
        (ready + service.ready.min(service.desired), desired + service.desired)
    })
}

/// Instances that are ready, of those that there are: nothing says any more how many there should be.
fn kept(view: &DeploymentView, status: &Status) -> (u32, u32) {
    let instances = status.instances.iter().filter(|instance| instance.deployment == view.deployment);
    instances.fold((0, 0), |(ready, all), instance| (ready + u32::from(instance.ready), all + 1))
}

fn service(view: &ServiceView, status: &Status) -> Object {
    let name = format!("{}/{}", view.deployment, view.service);
    let mut instances = status.instances.iter();
    let unchecked =
        instances.any(|one| one.deployment == view.deployment && one.service == view.service && is_unchecked(one));
    Object {
        key: name.clone(),
        place: name.clone(),
        leaving: false,
        value: json(view),
        cells: vec![
            name.clone(),
            view.desired.to_string(),
            view.running.to_string(),
            if unchecked { UNKNOWN_COUNT.to_owned() } else { view.ready.to_string() },
            view.updated.to_string(),
            view.runtime.to_string(),
            view.message.clone(),
        ],
        wide: vec![
            view.image.clone(),
            short(&view.revision),
            or_none(view.source.as_deref()),
            conditions(&view.conditions),
        ],
        name,
    }
}

/// The row of a job: its run that goes on, or its last one.
fn job(view: &ServiceView) -> Option<Object> {
    let job = view.job.as_ref()?;
    let name = format!("{}/{}", view.deployment, view.service);
    let (active, last) = (job.active.last(), job.finished.first());
    let status = match (active, last) {
        (Some(_), _) => "running".to_owned(),
        (None, Some(last)) => last.message.clone(),
        (None, None) => "not run yet".to_owned(),
    };
    let status = if job.suspended { format!("{status}, suspended") } else { status };
    let succeeded = active.map(|run| run.succeeded).or(last.map(|run| run.succeeded)).unwrap_or(0);
    let failed = active.map(|run| run.failed).or(last.map(|run| run.failed)).unwrap_or(0);
    let started = active.map(|run| run.started_at).or(last.map(|run| run.started_at));
    let time =
        |at: Option<DateTime<Utc>>| or_none(at.map(|at| at.to_rfc3339_opts(SecondsFormat::Secs, true)).as_deref());
    Some(Object {
        key: name.clone(),
        place: name.clone(),
        leaving: false,
        value: json(view),
        cells: vec![
            name.clone(),
            match job.kind {
                JobKind::Job => "job".to_owned(),
                JobKind::Cron => "cron".to_owned(),
            },
            status,
            format!("{succeeded}/{}", job.completions),
            failed.to_string(),
            time(started),
            time(job.next_run),
        ],
        wide: vec![or_none(job.schedule.as_deref()), job.finished.len().to_string(), view.message.clone()],
        name,
    })
}

/// The row of a pool.
fn pool(view: &ServiceView) -> Option<Object> {
    let pool = view.pool.as_ref()?;
    let name = format!("{}/{}", view.deployment, view.service);
    let milliseconds = |time: Option<f64>| or_none(time.map(|time| format!("{time:.2}ms")).as_deref());
    let mut value = json(pool);
    if let Value::Object(fields) = &mut value {
        fields.insert("deployment".to_owned(), view.deployment.clone().into());
        fields.insert("service".to_owned(), view.service.clone().into());
        fields.insert("message".to_owned(), view.message.clone().into());
    }
    Some(Object {
        key: name.clone(),
        place: name.clone(),
        leaving: false,
        value,
        cells: vec![
            name.clone(),
            pool.warm.to_string(),
            pool.claimed.to_string(),
            pool.starting.to_string(),
            format!("{}/{}", pool.total, pool.max_total),
            or_none(pool.hit_rate.map(|rate| format!("{:.1}%", rate * 100.0)).as_deref()),
            milliseconds(pool.claim_p50_ms),
            milliseconds(pool.claim_p99_ms),
            view.message.clone(),
        ],
        wide: vec![
            pool.min_warm.to_string(),
            pool.max_warm.to_string(),
            or_none(pool.recommended_min_warm.map(|count| count.to_string()).as_deref()),
            or_none(pool.memory_bytes.map(super::text::size).as_deref()),
            milliseconds(Some(pool.saved_ms)),
            view.runtime.to_string(),
        ],
        name,
    })
}

fn instance(view: &InstanceView, now: DateTime<Utc>) -> Object {
    let ports: Vec<String> = view.ports.iter().map(published).collect();
    let created = (now - view.created_at).to_std().unwrap_or_default();
    Object {
        name: view.name.clone(),
        key: format!("{} {} {} {} {:?}", view.name, view.runtime, view.revision, view.attempt, view.run),
        place: format!("{} {} {}", view.name, view.runtime, view.revision),
        leaving: view.phase == "stopping",
        value: json(view),
        cells: vec![
            view.name.clone(),
            match view.ready {
                true => "1/1".to_owned(),
                false if is_unchecked(view) => format!("{UNKNOWN_COUNT}/1"),
                false => "0/1".to_owned(),
            },
            phase(view),
            view.restarts.to_string(),
            age(created),
            short(&view.revision),
            or_none((!ports.is_empty()).then(|| ports.join(",")).as_deref()),
        ],
        wide: vec![
            view.runtime.to_string(),
            or_none((!view.runtime_id.is_empty()).then_some(view.runtime_id.as_str())),
            or_none(view.pid.map(|pid| pid.to_string()).as_deref()),
            view.message.clone(),
            conditions(&view.conditions),
        ],
    }
}

/// A port as Docker writes it, with what goes without saying left out: the inner port where both are the same, and TCP.
fn published(port: &PortBinding) -> String {
    let ip = match port.host_ip.contains(':') {
        true => format!("[{}]", port.host_ip),
        false => port.host_ip.clone(),
    };
    let inner = match port.host_port == port.container_port {
        true => String::new(),
        false => format!("->{}", port.container_port),
    };
    let protocol = match port.protocol {
        PortProtocol::Tcp => "",
        PortProtocol::Udp => "/udp",
    };
    format!("{ip}:{}{inner}{protocol}", port.host_port)
}

/// A revision as plans and names have it.
fn short(revision: &str) -> String {
    revision.parse::<Revision>().map_or_else(|_| revision.to_owned(), |revision| revision.short().to_owned())
}

/// The phase, and of an exit how it ended.
fn phase(view: &InstanceView) -> String {
    match &view.exit {
        _ if view.state.is_rest() => view.state.name().to_owned(),
        Some(_) if view.phase == "exited" => format!("exited ({})", super::converge::ended(view)),
        _ => view.phase.clone(),
    }
}

fn json(view: &impl Serialize) -> Value {
    // Views are plain data; there is no way in which they can't be written.
    serde_json::to_value(view).unwrap_or_default()
}

fn or_none(text: Option<&str>) -> String {
    text.unwrap_or("<none>").to_owned()
}

/// The reasons of the conditions, those that do not hold with `!`.
fn conditions(conditions: &[Condition]) -> String {
    let mut names: Vec<String> = conditions
        .iter()
        .map(|condition| match condition.status {
            ConditionStatus::True => condition.kind.clone(),
            _ => format!("!{}", condition.kind),
        })
        .collect();
    names.dedup();
    or_none((!names.is_empty()).then(|| names.join(",")).as_deref())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str) -> Object {
        let text = name.to_owned();
        let (cells, wide) = (Vec::new(), Vec::new());
        Object { name: text.clone(), key: text.clone(), place: text, leaving: false, value: Value::Null, cells, wide }
    }

    #[test]
    fn types_are_known_by_their_names_and_short_names() {
        for word in ["deployments", "deployment", "deploy", "Deploy"] {
            assert_eq!(Resource::parse(word), Some(Resource::Deployments), "{word}");
        }
        assert_eq!(Resource::parse("svc"), Some(Resource::Services));
        assert_eq!(Resource::parse("inst"), Some(Resource::Instances));
        assert_eq!(Resource::parse("pods"), None);
    }

    #[test]
    fn a_port_is_written_as_docker_does_without_what_goes_without_saying() {
        let port = |host_ip: &str, host_port, protocol| {
            published(&PortBinding { container_port: 53, protocol, host_ip: host_ip.to_owned(), host_port })
        };
        assert_eq!(port("127.0.0.1", 53, PortProtocol::Tcp), "127.0.0.1:53");
        assert_eq!(port("0.0.0.0", 5353, PortProtocol::Udp), "0.0.0.0:5353->53/udp");
        assert_eq!(port("::1", 8053, PortProtocol::Tcp), "[::1]:8053->53");
    }

    #[test]
    fn what_is_gone_says_so_as_data_too() {
        let gone = |resource, value: Value| Object { value, ..object("demo") }.gone(resource).value;
        let view = json!({"phase": "stopping", "ready": true, "pid": 7});
        assert_eq!(gone(Resource::Instances, view), json!({"phase": "removed", "ready": false, "pid": 7}));
        let view = json!({"desired": 2, "running": 2, "ready": 1, "message": ""});
        let expected = json!({"desired": 2, "running": 0, "ready": 0, "message": "removed"});
        assert_eq!(gone(Resource::Services, view), expected);
        assert_eq!(gone(Resource::Deployments, json!({"state": "running"})), json!({"state": "removed"}));
    }

    #[test]
    fn a_name_covers_what_belongs_to_it_and_nothing_that_begins_alike() {
        let named = |name: &str, by: &str| object(name).is_named(&by.parse().unwrap());
        assert!(named("demo/web/0", "demo/web/0"));
        assert!(named("demo/web/0", "demo/web"));
        assert!(named("demo/web/0", "demo"));
        assert!(!named("demo/web-2/0", "demo/web"));
        assert!(!named("demo/web/10", "demo/web/1"));
        assert!(!named("demo", "demo/web"));
    }

    #[test]
    fn every_row_has_a_cell_per_column() {
        let status: Status = serde_json::from_value(serde_json::json!({
            "generation": 1, "synced": true, "problems": [], "hold": null, "runtimes": [],
            "deployments": [{"deployment": "demo", "source": null, "state": "running", "message": "", "conditions": []}],
            "services": [{"deployment": "demo", "service": "web", "source": "a.yaml:3", "runtime": "sandbox",
                "image": "host", "desired": 3, "running": 2, "ready": 1, "updated": 2, "revision": "r1",
                "message": "1 of 3 replicas are ready", "conditions": []}],
            "instances": [{"deployment": "demo", "service": "web", "slot": 0, "name": "demo/web/0", "runtime": "sandbox",
                "runtime_id": "x", "pid": 7, "phase": "exited", "ready": false, "revision": "v1-3f2a9c1d00000000",
                "restarts": 2,
                "created_at": "2024-01-01T00:00:00Z", "started_at": null, "ports": [
                    {"container_port": 80, "protocol": "tcp", "host_ip": "127.0.0.1", "host_port": 8080}],
                "exit": {"code": 137, "signal": "SIGKILL", "oom_killed": false, "reason": "signal", "message": null,
                    "finished_at": "2024-01-01T00:00:01Z"}, "message": "", "conditions": []}]
        }))
        .unwrap();
        let now = "2024-01-01T00:01:00Z".parse().unwrap();
        let rows: Vec<Vec<String>> = Resource::ALL.iter().map(|kind| kind.objects(&status, now)[0].row(true)).collect();
        for (kind, row) in Resource::ALL.iter().zip(&rows) {
            assert_eq!(kind.header(true).len(), row.len(), "{kind:?}");
        }
        assert_eq!(rows[0][..4], ["demo", "running", "1/3", ""]);
        assert_eq!(rows[1][..7], ["demo/web", "3", "2", "1", "2", "sandbox", "1 of 3 replicas are ready"]);
        let exited = "exited (killed by SIGKILL)";
        assert_eq!(rows[2][..7], ["demo/web/0", "0/1", exited, "2", "60s", "3f2a9c1d", "127.0.0.1:8080->80"]);
    }

    #[test]
    fn a_job_says_that_no_run_of_it_is_made_while_its_deployment_is_suspended() {
        let row = |suspended: bool, next_run: Option<&str>| {
            let view = serde_json::from_value(json!({"deployment": "demo", "service": "tick", "source": null,
                "runtime": "sim", "image": "host", "desired": 0, "running": 0, "ready": 0, "updated": 0, "revision": "r",
                "message": "", "conditions": [], "job": {"kind": "cron", "completions": 1, "retries": null,
                    "schedule": "@daily", "next_run": next_run, "suspended": suspended, "active": [], "finished": []}}));
            job(&view.unwrap()).unwrap().cells
        };
        let next = "2024-01-02T00:00:00Z";
        assert_eq!(row(false, Some(next))[2..], ["not run yet", "0/1", "0", "<none>", next]);
        assert_eq!(row(true, None)[2..], ["not run yet, suspended", "0/1", "0", "<none>", "<none>"]);
    }

    #[test]
    fn what_is_kept_without_a_declaration_counts_what_there_is() {
        let instance = |slot: u32, ready: bool| {
            serde_json::json!({
                "deployment": "demo", "service": "web", "slot": slot, "name": format!("demo/web/{slot}"),
                "runtime": "sim", "runtime_id": "x", "pid": null, "phase": "running", "ready": ready, "revision": "r",
                "restarts": 0, "created_at": "2024-01-01T00:00:00Z", "started_at": null, "ports": [], "exit": null,
                "message": "", "conditions": []
            })
        };
        let mut status = serde_json::to_value(Status::default()).unwrap();
        status["deployments"] = serde_json::json!([
            {"deployment": "demo", "source": null, "state": "kept", "message": "", "conditions": []}
        ]);
        status["instances"] = serde_json::json!([instance(0, true), instance(1, false)]);
        let status: Status = serde_json::from_value(status).unwrap();
        let objects = Resource::Deployments.objects(&status, DateTime::UNIX_EPOCH);
        assert_eq!(objects[0].cells, ["demo", "kept", "1/2", ""]);
    }

    #[test]
    fn a_row_reads_the_same_while_nothing_in_it_but_its_age_changes() {
        let view = |phase: &str, message: &str, created_at: &str| -> InstanceView {
            serde_json::from_value(serde_json::json!({
                "deployment": "demo", "service": "web", "slot": 0, "name": "demo/web/0", "runtime": "sim",
                "runtime_id": "x", "pid": null, "phase": phase, "ready": false, "revision": "v1-3f2a9c1d00000000",
                "restarts": 0, "created_at": created_at, "started_at": null, "ports": [], "exit": null,
                "message": message, "conditions": [],
            }))
            .unwrap()
        };
        let now = "2024-01-01T00:01:00Z".parse().unwrap();
        let object = |phase: &str, message: &str, created_at: &str| instance(&view(phase, message, created_at), now);
        let first = object("pending", "", "2024-01-01T00:00:00Z");
        let later = object("pending", "Downloading 1/2 MiB", "2024-01-01T00:00:01Z");
        assert_eq!(first.key, later.key, "it is the same instance");
        assert!(later.reads_like(&first, Resource::Instances, false));
        assert!(!later.reads_like(&first, Resource::Instances, true), "the wide table shows the message");
        let created = object("created", "", "2024-01-01T00:00:00Z");
        assert!(!created.reads_like(&first, Resource::Instances, false));
    }
}
