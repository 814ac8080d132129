//! A description as text for people: blocks of fields, tables of conditions, controls and events. Pure.

use chrono::{DateTime, SecondsFormat, Utc};

use super::converge::ended;
use super::output::Columns;
use super::text::{age, harmless};
use crate::controller::{Description, InstanceDescription};
use crate::runtime::EnforcementState;
use crate::state::{Condition, ConditionStatus, Target};
use crate::status::{DeploymentView, InstanceView, JobKind, JobView, ServiceView};
use crate::store::Event;

/// Columns that values of fields begin at.
const FIELD: usize = 13;
/// Stands for nothing.
const NONE: &str = "<none>";

/// What is known, for people.
pub fn text(found: &Description, target: &Target, now: DateTime<Utc>) -> String {
    let mut blocks = Vec::new();
    if target.service.is_none() {
        blocks.push(deployment(&found.deployment));
    }
    // Where the slot has no instance, what is known of why is told of the service.
    if target.slot.is_none() || found.instances.is_empty() {
        blocks.extend(found.services.iter().map(service));
    }
    blocks.extend(found.instances.iter().map(|one| instance(one, now)));
    blocks.push(events(&found.events, now));
    blocks.join("\n")
}

/// Lines of one object.
struct Block {
    text: String,
}

impl Block {
    fn new(what: &str, name: &str) -> Self {
        let mut block = Self { text: String::new() };
        block.line(0, what, name);
        block
    }

    fn line(&mut self, indent: usize, name: &str, value: &str) {
        let label = format!("{:indent$}{name}:", "");
        let line = format!("{label:width$} {}", harmless(value), width = FIELD + indent);
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    fn field(&mut self, name: &str, value: &str) {
        self.line(2, name, if value.is_empty() { NONE } else { value });
    }

    /// A field that is left out where there is nothing to tell.
    fn told(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.line(2, name, value);
        }
    }

    fn table(&mut self, name: &str, heads: &[&str], rows: &[Vec<String>]) {
        if rows.is_empty() {
            return self.field(name, "");
        }
        self.text.push_str(&format!("  {name}:\n"));
        for line in Columns::default().render(Some(heads), rows).lines() {
            self.text.push_str(&format!("    {line}\n"));
        }
    }

    fn conditions(&mut self, conditions: &[Condition]) {
        let status = |condition: &Condition| match condition.status {
            ConditionStatus::True => "True",
            ConditionStatus::False => "False",
            ConditionStatus::Unknown => "Unknown",
        };
        let row =
            |one: &Condition| vec![one.kind.clone(), status(one).to_owned(), one.reason.clone(), one.message.clone()];
        let rows: Vec<Vec<String>> = conditions.iter().map(row).collect();
        self.table("Conditions", &["TYPE", "STATUS", "REASON", "MESSAGE"], &rows);
    }
}

fn deployment(view: &DeploymentView) -> String {
    let mut block = Block::new("Deployment", &view.deployment);
    block.field("State", view.state.name());
    block.field("Source", view.source.as_deref().unwrap_or("not declared any more"));
    block.told("Message", &view.message);
    block.conditions(&view.conditions);
    block.text
}

fn service(view: &ServiceView) -> String {
    let mut block = Block::new("Service", &format!("{}/{}", view.deployment, view.service));
    block.field("Source", view.source.as_deref().unwrap_or_default());
    block.field("Runtime", &view.runtime.to_string());
    block.field("Image", &view.image);
    block.field("Revision", &view.revision);
    match &view.job {
        Some(job) => runs(&mut block, job),
        None => {
            let replicas = format!(
                "{} desired, {} running, {} ready, {} up to date",
                view.desired, view.running, view.ready, view.updated
            );
            block.field("Replicas", &replicas);
        }
    }
    block.told("Message", &view.message);
    block.conditions(&view.conditions);
    block.text
}

/// A schedule and the runs of a job, newest first.
fn runs(block: &mut Block, job: &JobView) {
    block.told("Schedule", job.schedule.as_deref().unwrap_or_default());
    if job.kind == JobKind::Cron {
        block.field("Next run", &job.next_run.map(time).unwrap_or_default());
    }
    block.field("Completions", &job.completions.to_string());
    let row = |run: String, start, end: Option<DateTime<Utc>>, succeeded: u32, failed: u32, outcome: &str| {
        let end = end.map_or_else(|| NONE.to_owned(), time);
        vec![run, time(start), end, succeeded.to_string(), failed.to_string(), outcome.to_owned()]
    };
    let active = job.active.iter().rev();
    let active = active.map(|run| row(run.run.to_string(), run.started_at, None, run.succeeded, run.failed, "running"));
    let finished = job.finished.iter().map(|run| {
        row(run.run.to_string(), run.started_at, Some(run.finished_at), run.succeeded, run.failed, &run.message)
    });
    let rows: Vec<Vec<String>> = active.chain(finished).collect();
    block.table("Runs", &["RUN", "STARTED", "FINISHED", "SUCCEEDED", "FAILED", "OUTCOME"], &rows);
}

fn instance(described: &InstanceDescription, now: DateTime<Utc>) -> String {
    let view = &described.view;
    let mut block = Block::new("Instance", &view.name);
    block.field("Runtime", &view.runtime.to_string());
    block.field("Runtime id", &view.runtime_id);
    block.field("Pid", &view.pid.map(|pid| pid.to_string()).unwrap_or_default());
    block.field("Phase", &phase(view, now));
    if let Some(exit) = &view.exit {
        block.field("Exit", &format!("{}, at {}", ended(view), time(exit.finished_at)));
        block.told("Reason", exit.message.as_deref().unwrap_or_default());
    }
    if let Some(health) = view.health.as_ref().filter(|_| view.exit.is_none()) {
        block.told("Health", &health.to_string());
    }
    block.field("Revision", &format!("{}, attempt {}", view.revision, view.attempt));
    block.field("Restarts", &view.restarts.to_string());
    block.field("Created", &moment(view.created_at, now));
    let ports = view.ports.iter().map(|port| {
        let protocol = format!("{:?}", port.protocol).to_lowercase();
        format!("{}:{} -> {}/{protocol}", port.host_ip, port.host_port, port.container_port)
    });
    block.field("Ports", &ports.collect::<Vec<_>>().join(", "));
    block.told("Message", &view.message);
    block.conditions(&view.conditions);
    match &described.controls_unknown {
        Some(why) => block.field("Controls", &format!("not known: {why}")),
        None => block.table("Controls", &["CONTROL", "REQUESTED", "STATE", "BY", "WHY"], &controls(described)),
    }
    block.text
}

fn controls(described: &InstanceDescription) -> Vec<Vec<String>> {
    let row = |one: &crate::runtime::Enforcement| {
        let (state, by, why) = match &one.state {
            EnforcementState::Enforced { by } => ("enforced", by.as_str(), ""),
            EnforcementState::Degraded { by, why } => ("degraded", by.as_str(), why.as_str()),
            EnforcementState::Planned { by, why } => ("planned", by.as_str(), why.as_deref().unwrap_or_default()),
            EnforcementState::Absent { why } => ("absent", "-", why.as_str()),
            EnforcementState::NotRequested { by } => ("-", by.as_deref().unwrap_or("-"), ""),
        };
        let requested = one.requested.as_deref().unwrap_or("-");
        [&one.control.to_string(), requested, state, by, why].map(str::to_owned).to_vec()
    };
    described.controls.iter().map(row).collect()
}

fn phase(view: &InstanceView, now: DateTime<Utc>) -> String {
    let ready = if view.ready { ", ready" } else { "" };
    match view.started_at.filter(|_| view.exit.is_none()) {
        Some(since) => format!("{}{ready}, since {}", view.phase, moment(since, now)),
        None => view.phase.clone(),
    }
}

fn moment(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    format!("{} ({} ago)", time(at), age((now - at).to_std().unwrap_or_default()))
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn events(events: &[Event], now: DateTime<Utc>) -> String {
    if events.is_empty() {
        return format!("Events:       {NONE}\n");
    }
    let row = |event: &Event| {
        let ago = age((now - event.at).to_std().unwrap_or_default());
        vec![ago, event.kind.clone(), event.message.clone()]
    };
    let rows: Vec<Vec<String>> = events.iter().map(row).collect();
    let mut text = "Events:\n".to_owned();
    for line in Columns::default().render(Some(&["AGE", "TYPE", "MESSAGE"]), &rows).lines() {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found() -> Description {
        serde_json::from_value(json!({
            "deployment": {
                "deployment": "demo", "source": "specs/demo.yaml:1", "state": "running", "message": "",
                "conditions": [{ "type": "Available", "status": "True", "reason": "Running", "message": "all is well" }],
            },
            "services": [{
                "deployment": "demo", "service": "web", "source": "specs/demo.yaml:4", "runtime": "sandbox",
                "image": "host", "desired": 1, "running": 1, "ready": 1, "updated": 1, "revision": "v1-0123456789abcdef",
                "conditions": [],
            }],
            "instances": [{
                "deployment": "demo", "service": "web", "slot": 0, "name": "demo/web/0", "runtime": "sandbox",
                "runtime_id": "demo_web_0_01234567_0", "pid": 42, "phase": "running", "ready": true,
                "revision": "v1-0123456789abcdef", "restarts": 2, "created_at": "2024-01-01T00:00:00Z",
                "started_at": "2024-01-01T00:00:30Z", "exit": null,
                "ports": [{ "container_port": 80, "protocol": "tcp", "host_ip": "127.0.0.1", "host_port": 8080 }],
                "message": "", "conditions": [],
                "controls": [
                    { "control": "memory_limit", "requested": "64Mi", "state": "degraded", "by": "a watch", "why": "no group" },
                    { "control": "cpu_limit", "state": "not_requested" },
                    { "control": "network_isolation", "requested": "host", "state": "not_requested", "by": "shared" },
                    { "control": "seccomp", "requested": "default", "state": "enforced", "by": "a filter" },
                ],
            }],
            "events": [{ "id": 1, "at": "2024-01-01T00:00:30Z", "deployment": "demo", "kind": "StepDone",
                         "message": "start demo/web/0\u{1b}[2J" }],
        }))
        .unwrap()
    }

    fn told(name: &str) -> String {
        text(&found(), &name.parse().unwrap(), "2024-01-01T00:01:00Z".parse().unwrap())
    }

    #[test]
    fn an_instance_is_told_with_its_controls() {
        assert_eq!(
            told("demo/web/0"),
            "\
Instance:     demo/web/0
  Runtime:      sandbox
  Runtime id:   demo_web_0_01234567_0
  Pid:          42
  Phase:        running, ready, since 2024-01-01T00:00:30Z (30s ago)
  Revision:     v1-0123456789abcdef, attempt 0
  Restarts:     2
  Created:      2024-01-01T00:00:00Z (60s ago)
  Ports:        127.0.0.1:8080 -> 80/tcp
  Conditions:   <none>
  Controls:
    CONTROL             REQUESTED   STATE      BY         WHY
    memory_limit        64Mi        degraded   a watch    no group
    cpu_limit           -           -          -
    network_isolation   host        -          shared
    seccomp             default     enforced   a filter

Events:
  AGE   TYPE       MESSAGE
  30s   StepDone   start demo/web/0\\u{1b}[2J
"
        );
    }

    #[test]
    fn a_whole_is_told_before_its_parts() {
        let heads = |name: &str| {
            let text = told(name);
            let heads = text.lines().filter(|line| !line.starts_with(' ') && !line.is_empty());
            heads.map(|line| line.split(':').next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(heads("demo"), ["Deployment", "Service", "Instance", "Events"]);
        assert_eq!(heads("demo/web"), ["Service", "Instance", "Events"]);
    }

    #[test]
    fn what_is_not_known_says_why() {
        let mut found = found();
        found.instances[0].controls_unknown = Some("docker does not answer".to_owned());
        found.events.clear();
        let text = text(&found, &"demo/web/0".parse().unwrap(), Utc::now());
        assert!(text.contains("  Controls:     not known: docker does not answer\n"), "{text}");
        assert!(text.ends_with("\nEvents:       <none>\n"), "{text}");
    }
}
