//! What happened between two statuses, in one line each. Pure; steps and their causes are logged by the engine.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use super::converge::ended;
use super::problems;
use super::text::count;
use crate::state::{Condition, ConditionStatus};
use crate::status::{DeploymentState, InstanceView, ServiceView, Status};

/// One line to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// All is well, or on its way.
    News(String),
    /// Somebody should have a look.
    Warning(String),
}

/// Remembers what was told.
#[derive(Debug, Default)]
pub struct Narrator {
    problems: BTreeMap<String, BTreeSet<String>>,
    hold: Option<String>,
    reset: Option<String>,
    unwatched: BTreeMap<String, Vec<String>>,
    deployments: BTreeMap<String, (DeploymentState, String)>,
    /// Ends that were told, by the runtime's name of the instance, with when the run began that ended, where known.
    ended: BTreeMap<String, Option<DateTime<Utc>>>,
    /// What services did not get when they were last seen, by cause.
    degraded: BTreeMap<String, BTreeSet<String>>,
}

impl Narrator {
    /// What is new in this status.
    pub fn tell(&mut self, status: &Status) -> Vec<Told> {
        let mut told = Vec::new();
        self.tell_problems(status, &mut told);
        self.tell_hold(status, &mut told);
        self.tell_reset(status, &mut told);
        self.tell_unwatched(status, &mut told);
        self.tell_instances(status, &mut told);
        self.tell_deployments(status, &mut told);
        self.tell_degraded(status, &mut told);
        told
    }

    /// What services don't get of what they ask for, once for each cause: many of them may have the same one.
    fn tell_degraded(&mut self, status: &Status, told: &mut Vec<Told>) {
        // That of health is news of one instance, and told with it; what is gone on without, the engine logs.
        let holds = |condition: &&Condition| {
            let holds = condition.kind == "Degraded" && condition.status == ConditionStatus::True;
            holds && !matches!(condition.reason.as_str(), "HealthUnknown" | "DependencyTimeout")
        };
        let mut now: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for service in &status.services {
            for condition in service.conditions.iter().filter(holds) {
                let names = now.entry(&condition.message).or_default();
                names.push(service_name(service));
            }
        }
        let new = now.iter().filter(|(message, _)| !self.degraded.contains_key(**message));
        told.extend(new.map(|(message, names)| {
            let others = match names.len() {
                0 | 1 => String::new(),
                all => format!(" and {}", count(all - 1, "other service")),
            };
            Told::Warning(format!("{}{others}: {message}", names[0]))
        }));
        // A cause is told once, though what it is about comes and goes: only what runs without it says that it was mended.
        let running = status.services.iter().filter(|service| service.running > 0);
        let running: BTreeSet<String> = running.map(service_name).collect();
        self.degraded.retain(|message, names| now.contains_key(message.as_str()) || names.is_disjoint(&running));
        let now = now.into_iter().map(|(message, names)| (message.to_owned(), names.into_iter().collect()));
        self.degraded.extend(now);
    }

    fn tell_problems(&mut self, status: &Status, told: &mut Vec<Told>) {
        let mut now: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for problem in &status.problems {
            now.entry(problem.file.clone()).or_default().insert(problems::line(problem));
        }
        for (file, lines) in &now {
            let before = self.problems.get(file);
            let new = lines.iter().filter(|line| before.is_none_or(|before| !before.contains(*line)));
            told.extend(new.cloned().map(Told::Warning));
        }
        let solved = self.problems.keys().filter(|file| !now.contains_key(*file));
        told.extend(solved.map(|file| Told::News(format!("{file}: no problems any more"))));
        self.problems = now;
    }

    fn tell_hold(&mut self, status: &Status, told: &mut Vec<Told>) {
        let now = status.hold.as_ref().map(|hold| hold.reason.clone());
        match (&self.hold, &now) {
            (before, Some(reason)) if before.as_ref() != Some(reason) => told.push(Told::Warning(reason.clone())),
            (Some(_), None) => told.push(Told::News("pruning goes on".to_owned())),
            _ => {}
        }
        self.hold = now;
    }

    /// What stays because the database was lost.
    fn tell_reset(&mut self, status: &Status, told: &mut Vec<Told>) {
        let now = status.reset.as_ref().map(|reset| reset.reason.clone());
        told.extend(now.iter().filter(|now| self.reset.as_ref() != Some(*now)).cloned().map(Told::Warning));
        self.reset = now;
    }

    /// What stays of directories that are not watched any more, by directory.
    fn tell_unwatched(&mut self, status: &Status, told: &mut Vec<Told>) {
        let mut now: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for one in &status.unwatched {
            now.entry(one.directory.clone()).or_default().push(format!("{} ({})", one.deployment, one.source));
        }
        for (directory, names) in now.iter().filter(|(directory, names)| self.unwatched.get(*directory) != Some(names))
        {
            told.push(Told::Warning(format!(
                "{directory} is not watched any more, and what it declared stays: {}; `keel delete NAME` or \
                 `keel approve` (for all) ends it, `keel run {directory}` takes it up again",
                names.join(", ")
            )));
        }
        self.unwatched = now;
    }

    /// Ends of instances, with what is being waited for. One end may be told of twice: a runtime's event can be early, and not
    /// know all that its inspection says, such as the exact time.
    fn tell_instances(&mut self, status: &Status, told: &mut Vec<Told>) {
        let waiting = |instance: &&InstanceView| instance.phase == "exited" && !instance.message.is_empty();
        let mut now = BTreeMap::new();
        for instance in status.instances.iter().filter(waiting) {
            let before = self.ended.get(&instance.runtime_id).copied();
            let is_same = |before: Option<DateTime<Utc>>| match (before, instance.started_at) {
                (Some(before), Some(now)) => before == now,
                _ => true,
            };
            // What rests was stopped on purpose, which the engine logs.
            if !before.is_some_and(is_same) && !instance.state.is_rest() {
                told.push(Told::Warning(format!("{}: {}", instance.name, wait(instance))));
            }
            now.insert(instance.runtime_id.clone(), instance.started_at.or(before.flatten()));
        }
        self.ended = now;
    }

    fn tell_deployments(&mut self, status: &Status, told: &mut Vec<Told>) {
        use DeploymentState as State;
        let mut now = BTreeMap::new();
        for view in &status.deployments {
            let before = self.deployments.get(&view.deployment);
            let state = (view.state, view.message.clone());
            if before != Some(&state) {
                let is_told = view.state == State::Running && is_unwatched(status, &view.deployment);
                let text = match view.message.as_str() {
                    _ if is_told => format!("deployment/{} is {}", view.deployment, view.state.name()),
                    "" => format!("deployment/{} is {}", view.deployment, view.state.name()),
                    message => format!("deployment/{} is {}: {message}", view.deployment, view.state.name()),
                };
                match view.state {
                    State::Running if before.is_none_or(|(before, _)| *before != State::Running) => {
                        told.push(Told::News(format!("{text}{}", instances_of(status, &view.deployment))));
                    }
                    // The engine logs each step.
                    State::Complete if before.is_none_or(|(before, _)| *before != State::Complete) => {
                        told.push(Told::News(text));
                    }
                    State::Running | State::Complete | State::Progressing | State::Removing => {}
                    State::Kept | State::Suspended | State::Paused | State::Undone => told.push(Told::News(text)),
                    // A message may count; the instances' own lines say what happens.
                    State::Degraded if before.is_some_and(|(before, _)| *before == State::Degraded) => {}
                    State::Degraded | State::Failed | State::Unknown => told.push(Told::Warning(text)),
                }
            }
            now.insert(view.deployment.clone(), state);
        }
        let gone = self.deployments.keys().filter(|name| !now.contains_key(*name));
        told.extend(gone.map(|name| Told::News(format!("deployment/{name} is gone"))));
        self.deployments = now;
    }
}

fn service_name(service: &ServiceView) -> String {
    format!("{}/{}", service.deployment, service.service)
}

fn wait(instance: &InstanceView) -> String {
    let how = ended(instance);
    if instance.message.contains(&how) { instance.message.clone() } else { format!("{how}; {}", instance.message) }
}

fn is_unwatched(status: &Status, deployment: &str) -> bool {
    status.unwatched.iter().any(|one| one.deployment == deployment)
}

fn instances_of(status: &Status, deployment: &str) -> String {
    let running = status.instances.iter().filter(|one| one.deployment == deployment && one.phase == "running").count();
    format!(" ({})", count(running, "instance"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(deployments: Value, instances: Value, problems: Value, hold: Value) -> Status {
        serde_json::from_value(json!({
            "generation": 1, "synced": true, "services": [], "runtimes": [],
            "deployments": deployments, "instances": instances, "problems": problems, "hold": hold,
        }))
        .unwrap()
    }

    fn deployment(state: &str, message: &str) -> Value {
        json!([{"deployment": "demo", "source": null, "state": state, "message": message, "conditions": []}])
    }

    fn instance(phase: &str, message: &str, code: Value) -> Value {
        let exit = match code {
            Value::Null => Value::Null,
            code => json!({"code": code, "signal": null, "oom_killed": false, "reason": "exited", "message": null,
                "finished_at": "2024-01-01T00:00:01Z"}),
        };
        json!([{"deployment": "demo", "service": "web", "slot": 0, "name": "demo/web/0", "runtime": "sandbox",
            "runtime_id": "x", "pid": null, "phase": phase, "ready": false, "revision": "r", "restarts": 0,
            "created_at": "2024-01-01T00:00:00Z", "started_at": null, "ports": [], "exit": exit,
            "message": message, "conditions": []}])
    }

    fn problem() -> Value {
        json!([{"file": "a.yaml", "line": 3, "column": 5, "path": "services.web.image", "message": "is missing",
            "help": null, "effect": "the last good version keeps running"}])
    }

    fn news(text: &str) -> Told {
        Told::News(text.to_owned())
    }

    fn warning(text: &str) -> Told {
        Told::Warning(text.to_owned())
    }

    #[test]
    fn a_state_is_told_once() {
        let mut narrator = Narrator::default();
        let running = status(deployment("running", ""), instance("running", "", Value::Null), json!([]), Value::Null);
        assert_eq!(narrator.tell(&running), [news("deployment/demo is running (1 instance)")]);
        assert_eq!(narrator.tell(&running), []);
        let gone = status(json!([]), json!([]), json!([]), Value::Null);
        assert_eq!(narrator.tell(&gone), [news("deployment/demo is gone")]);
    }

    #[test]
    fn what_services_do_not_get_is_told_once_for_each_cause() {
        let mut narrator = Narrator::default();
        let shared =
            json!({"type": "Degraded", "status": "True", "reason": "NetworkShared", "message": "no bridge: so"});
        let unknown = json!({"type": "Degraded", "status": "True", "reason": "HealthUnknown", "message": "not known"});
        let without =
            json!({"type": "Degraded", "status": "True", "reason": "DependencyTimeout", "message": "without db"});
        let service = |name: &str| {
            json!({"deployment": "demo", "service": name, "source": null, "runtime": "sandbox", "image": "host",
                "desired": 0, "running": 0, "ready": 0, "updated": 0, "revision": "r", "message": "",
                "conditions": [&shared, &unknown, &without]})
        };
        let with = |services: &[Value]| {
            let mut status = status(json!([]), json!([]), json!([]), Value::Null);
            status.services = serde_json::from_value(json!(services)).unwrap();
            status
        };
        let all = [service("web"), service("db"), service("cache")];
        assert_eq!(narrator.tell(&with(&all)), [warning("demo/web and 2 other services: no bridge: so")]);
        assert_eq!(narrator.tell(&with(&[])), []);
        assert_eq!(narrator.tell(&with(&all[..1])), [], "it comes and goes with what it is about");
        let mended = |name: &str, running: u32| {
            let mut service = service(name);
            service["conditions"] = json!([]);
            service["running"] = running.into();
            service
        };
        assert_eq!(narrator.tell(&with(&[mended("web", 0), mended("db", 1)])), []);
        assert_eq!(narrator.tell(&with(&all[..1])), [], "nothing of it runs, so nobody knows");
        assert_eq!(narrator.tell(&with(&[mended("web", 1)])), []);
        assert_eq!(narrator.tell(&with(&all[..1])), [warning("demo/web: no bridge: so")], "it was mended meanwhile");
    }

    #[test]
    fn a_broken_file_is_told_with_its_position_and_so_is_its_end() {
        let mut narrator = Narrator::default();
        let broken = status(json!([]), json!([]), problem(), Value::Null);
        let line = "a.yaml:3:5: services.web.image: is missing (the last good version keeps running)";
        assert_eq!(narrator.tell(&broken), [warning(line)]);
        assert_eq!(narrator.tell(&broken), []);
        let good = status(json!([]), json!([]), json!([]), Value::Null);
        assert_eq!(narrator.tell(&good), [news("a.yaml: no problems any more")]);
    }

    #[test]
    fn an_end_and_its_back_off_are_told_once() {
        let mut narrator = Narrator::default();
        let down = |message| {
            let instances = instance("exited", message, json!(1));
            status(deployment("degraded", "crashing"), instances, json!([]), Value::Null)
        };
        assert_eq!(
            narrator.tell(&down("restarts in 10s")),
            [warning("demo/web/0: exit code 1; restarts in 10s"), warning("deployment/demo is degraded: crashing")]
        );
        assert_eq!(narrator.tell(&down("restarts in 9s")), []);
        let seen = |started: &str, finished: &str| {
            let mut seen = down("restarts in 9s");
            seen.instances[0].started_at = started.parse().ok();
            seen.instances[0].exit.as_mut().unwrap().finished_at = finished.parse().unwrap();
            seen
        };
        let [first, second] = ["2024-01-01T00:00:00Z", "2024-01-01T00:00:07Z"];
        assert_eq!(narrator.tell(&seen(first, "2024-01-01T00:00:00.9Z")), [], "its exact times");
        let again = [warning("demo/web/0: exit code 1; restarts in 9s")];
        assert_eq!(narrator.tell(&seen(second, "2024-01-01T00:00:08Z")), again, "it ran again");
        assert_eq!(narrator.tell(&seen(second, "2024-01-01T00:00:08.1Z")), []);
    }

    #[test]
    fn what_stays_of_another_directory_is_told_once_by_directory() {
        let mut narrator = Narrator::default();
        let mut kept = status(deployment("running", "declared in /a/x.yaml:1"), json!([]), json!([]), Value::Null);
        let one =
            |name: &str, line| json!({"deployment": name, "source": format!("/a/x.yaml:{line}"), "directory": "/a"});
        kept.unwatched = serde_json::from_value(json!([one("demo", 1), one("shop", 9)])).unwrap();
        let stays = "/a is not watched any more, and what it declared stays: demo (/a/x.yaml:1), shop (/a/x.yaml:9); \
                     `keel delete NAME` or `keel approve` (for all) ends it, `keel run /a` takes it up again";
        assert_eq!(narrator.tell(&kept), [warning(stays), news("deployment/demo is running (0 instances)")]);
        assert_eq!(narrator.tell(&kept), []);
    }

    #[test]
    fn that_the_database_was_lost_is_told_once() {
        let mut narrator = Narrator::default();
        let mut lost = status(json!([]), json!([]), json!([]), Value::Null);
        lost.reset = serde_json::from_value(json!({"reason": "the database was missing", "kept": ["demo"]})).unwrap();
        assert_eq!(narrator.tell(&lost), [warning("the database was missing")]);
        assert_eq!(narrator.tell(&lost), []);
    }

    #[test]
    fn held_pruning_is_told_until_it_goes_on() {
        let mut narrator = Narrator::default();
        let hold = json!({"reason": "specs/ is gone; run keel approve", "missing": ["demo"]});
        assert_eq!(
            narrator.tell(&status(json!([]), json!([]), json!([]), hold)),
            [warning("specs/ is gone; run keel approve")]
        );
        assert_eq!(narrator.tell(&status(json!([]), json!([]), json!([]), Value::Null)), [news("pruning goes on")]);
    }
}
