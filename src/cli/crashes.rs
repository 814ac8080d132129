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
    /// Deployments that were seen to be removed.
    removing: BTreeSet<String>,
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
        for view in &status.deployments {
            let seen = match view.state {
                DeploymentState::Removing => &mut self.removing,
                _ => &mut self.declared,
            };
            seen.insert(view.deployment.clone());
        }
    }

    /// Deployments whose goal somebody has taken back meanwhile: what is to run and was declared a moment ago was deleted, or
    /// what was being removed was declared again.
    pub fn taken_back(&self, status: &Status, goals: &Goals) -> Vec<Failed> {
        let taken_back = goals.iter().filter_map(|(name, goal)| {
            let view = status.deployments.iter().find(|view| view.deployment == *name);
            let is_gone = || view.is_none_or(|view| view.state == DeploymentState::Removing);
            let is_declared = || view.is_some_and(|view| view.source.is_some());
            let why = match goal {
                Goal::Running if self.declared.contains(name) && is_gone() => "it was deleted meanwhile",
                Goal::Gone if self.removing.contains(name) && is_declared() => "it was declared again meanwhile",
                Goal::Running | Goal::Gone => return None,
            };
            Some(Failed { deployment: name.clone(), why: why.to_owned(), is_retried: false, output: None })
        });
        taken_back.collect()
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

    /// Deployments in these states, declared where they are not being removed.
    fn status(states: &[(&str, &str)]) -> Status {
        let view = |(name, state): &(&str, &str)| -> Value {
            let source = (*state != "removing").then_some("a.yaml:1");
            json!({"deployment": name, "source": source, "state": state, "message": "", "conditions": []})
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

    #[test]
    fn what_is_to_go_is_given_up_once_somebody_declares_it_again() {
        let goals = Goals::from([("a".to_owned(), Goal::Gone)]);
        let mut crashes = Crashes::default();
        let mut why = |states: &[(&str, &str)]| -> Vec<String> {
            let status = status(states);
            crashes.see(&status);
            crashes.taken_back(&status, &goals).into_iter().map(|failed| failed.why).collect()
        };
        assert!(why(&[("a", "running")]).is_empty(), "it is removed in a moment");
        assert!(why(&[("a", "removing")]).is_empty());
        assert!(why(&[]).is_empty());
        assert_eq!(why(&[("a", "progressing")]), ["it was declared again meanwhile"]);
    }
}
