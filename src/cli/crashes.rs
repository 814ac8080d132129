//! What goes wrong while somebody waits.

use std::collections::{BTreeMap, BTreeSet};

use super::converge::{Failed, ended};
use super::goal::{Goal, Goals};
use super::text::count;
use crate::status::{DeploymentState, InstanceView, Status};

/// What was seen to go wrong, of which the status tells no more once the next try is under way.
#[derive(Debug, Default)]
pub struct Crashes {
    /// How each instance was last seen to end, by name: the next one takes its place in what is shown.
    ends: BTreeMap<String, String>,
    /// What each deployment said last while it failed, by name.
    complaints: BTreeMap<String, String>,
    /// Deployments that were seen to be declared.
    declared: BTreeSet<String>,
}

impl Crashes {
    /// Takes note of the ends that are shown now.
    pub fn see(&mut self, status: &Status) {
        let ends = status.instances.iter().filter(|instance| instance.exit.is_some());
        self.ends.extend(ends.map(|instance| (instance.name.clone(), ended(instance))));
        let trouble = [
            DeploymentState::Degraded,
            DeploymentState::Failed,
            DeploymentState::Paused,
            DeploymentState::Undone,
            DeploymentState::Unknown,
        ];
        let failing =
            status.deployments.iter().filter(|view| trouble.contains(&view.state) && !view.message.is_empty());
        self.complaints.extend(failing.map(|view| (view.deployment.clone(), view.message.clone())));
        let declared = status.deployments.iter().filter(|view| view.state != DeploymentState::Removing);
        self.declared.extend(declared.map(|view| view.deployment.clone()));
    }

    /// Deployments that are to run and were declared a moment ago, and that somebody has deleted meanwhile.
    pub fn taken_back(&self, status: &Status, goals: &Goals) -> Vec<Failed> {
        let state = |name: &str| status.deployments.iter().find(|view| view.deployment == name).map(|view| view.state);
        let is_gone = |name: &&String| matches!(state(name), None | Some(DeploymentState::Removing));
        let to_run = goals.iter().filter(|(name, goal)| **goal == Goal::Running && self.declared.contains(*name));
        let gone = to_run.map(|(name, _)| name).filter(is_gone);
        gone.map(|name| Failed {
            deployment: name.clone(),
            why: "it was deleted meanwhile".to_owned(),
            is_retried: false,
            output: None,
        })
        .collect()
    }

    /// Why a deployment is not there yet, where it says nothing itself.
    pub fn last_complaint(&self, deployment: &str) -> String {
        self.complaints.get(deployment).map(|why| format!("; before that: {why}")).unwrap_or_default()
    }

    /// What is said of an instance that was started again so many times after crashes.
    pub fn tell(&self, instance: &InstanceView, restarts: u32) -> String {
        let times = count(usize::try_from(restarts).unwrap_or(usize::MAX), "time");
        let how = self.ends.get(&instance.name).map(|how| format!(" ({how})")).unwrap_or_default();
        format!("{} ended {times}{how} and is started again", instance.name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(states: &[(&str, &str)]) -> Status {
        let view = |(name, state): &(&str, &str)| -> Value {
            json!({"deployment": name, "source": null, "state": state, "message": "", "conditions": []})
        };
        Status {
            deployments: serde_json::from_value(json!(states.iter().map(view).collect::<Vec<_>>())).unwrap(),
            ..Status::default()
        }
    }

    #[test]
    fn what_is_to_run_and_was_declared_is_missed_once_somebody_deletes_it() {
        let goals = Goals::from([("a".to_owned(), Goal::Running), ("gone".to_owned(), Goal::Gone)]);
        let mut crashes = Crashes::default();
        let mut taken_back = |states: &[(&str, &str)]| -> Vec<String> {
            let status = status(states);
            crashes.see(&status);
            crashes.taken_back(&status, &goals).into_iter().map(|failed| failed.deployment).collect()
        };
        assert!(taken_back(&[]).is_empty(), "it is not known yet");
        assert!(taken_back(&[("a", "removing")]).is_empty(), "what was deleted before is declared anew in a moment");
        assert!(taken_back(&[("a", "progressing"), ("gone", "running")]).is_empty());
        assert_eq!(taken_back(&[("a", "removing"), ("gone", "removing")]), ["a"]);
        assert_eq!(taken_back(&[]), ["a"]);
    }
}
