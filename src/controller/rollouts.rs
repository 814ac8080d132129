//! The memory of rollouts in the core: carried on at every turn of a deployment, kept, and shown.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::EngineError;
use super::core::State;
use super::engine::Engine;
use super::memory::{Kept, Note};
use super::message::Command;
use crate::plan::revisions::{self, Decision, Memory, RolloutHistory, Seen, effective, shown};
use crate::plan::{Input, JobStates, Wait};
use crate::spec::{RType, Revision, RuntimeKind};
use crate::state::{DesiredDeployment, DesiredService, Fate, Instance, InstanceId, Pause, Target};

/// The revisions of one service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RolloutView {
    /// Deployment.
    pub deployment: String,
    /// Service.
    pub service: String,
    /// By number.
    pub revisions: Vec<RevisionView>,
}

/// One revision of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RevisionView {
    /// Counts the rollouts of the service, from 1; a revision that is rolled out again gets the next number.
    pub number: u64,
    /// Its template.
    pub revision: Revision,
    /// Whether it is what is declared now.
    pub declared: bool,
    /// Whether it is what is to run now.
    pub wanted: bool,
    /// Whether its rollout failed and it was given up or paused, or goes on as a way back that failed too. As long as it is what is declared, it is not tried again
    /// until somebody asks for it.
    pub failed: bool,
    /// Whether its rollout failed and is paused for that (`rollout.on_failure: pause`), until somebody resumes it.
    #[serde(default)]
    pub paused: bool,
    /// Where it was declared, `file:line`.
    pub source: String,
    /// Image, as it was written.
    pub image: String,
    /// The runtime that it was declared for.
    pub runtime: RuntimeKind,
    /// When it was first to run.
    pub declared_at: DateTime<Utc>,
    /// When its last rollout was complete; absent where it never was, or has failed since.
    pub completed_at: Option<DateTime<Utc>>,
    /// As it was declared.
    pub spec: serde_json::Value,
}

impl State {
    /// What is to run of a deployment that is declared like this.
    pub(super) fn effective(&self, desired: &DesiredDeployment) -> DesiredDeployment {
        self.memory.get(&desired.name).map_or_else(|| desired.clone(), |memory| effective(desired, memory))
    }

    /// The same with as many replicas as load asks for.
    pub(super) fn to_run(&self, declared: &DesiredDeployment, observed: &[Instance]) -> DesiredDeployment {
        match self.scaled(declared, observed) {
            Some(scaled) => self.effective(&scaled),
            None => self.effective(declared),
        }
    }

    /// The same as users are shown it.
    pub(super) fn shown(&self, desired: &DesiredDeployment) -> DesiredDeployment {
        self.memory.get(&desired.name).map_or_else(|| desired.clone(), |memory| shown(desired, memory))
    }

    /// Whether nothing is to be done for a deployment. Its removal by name goes before that.
    pub(super) fn is_suspended(&self, deployment: &str) -> bool {
        self.memory.get(deployment).is_some_and(|memory| memory.orders.suspended)
            && !self.removing.contains_key(deployment)
    }

    pub(super) fn why_suspended(&self, deployment: &str) -> Option<String> {
        let why =
            || format!("it is suspended; `keel resume {deployment}` lets it go, `keel delete {deployment}` ends it");
        self.is_suspended(deployment).then(why)
    }

    /// Carries the rollouts of a declared deployment on; says whether anything is to be planned otherwise by that. Those of
    /// services that wait to hear which image their tag is now stand still, so that what was ordered and the image that is
    /// found are one change, and none of that time counts.
    pub(super) fn advance(
        &mut self,
        deployment: &str,
        declared: &DesiredDeployment,
        observed: &[Instance],
        asked: &BTreeMap<String, Wait>,
    ) -> bool {
        let mut memory = self.memory.remove(deployment).unwrap_or_default();
        let before = memory.clone();
        let now = self.now().0;
        let scaled = shown(declared, &Memory { orders: memory.orders.clone(), ..Memory::default() });
        let mut decisions: Vec<Decision> = Vec::new();
        let mut next_look = None;
        let mut began = Vec::new();
        self.with_input(deployment, Ok(&scaled), observed, |input| {
            // What a service depends on is what is to run of it, which is not what is declared where that was rolled back.
            let mut to_run = effective(declared, &memory);
            for service in scaled.services.values() {
                let history = memory.rollouts.entry(service.name.clone()).or_default();
                let is_asked = asked.contains_key(&service.name);
                if is_asked && history.image.is_some() {
                    history.stand_still(now);
                    continue;
                }
                let before = history.clone();
                let input = &Input { desired: Ok(&to_run), ..input.clone() };
                let advance = revisions::advance(history, Seen { input, declared: service });
                if is_asked {
                    history.stand_still(now);
                }
                let is_other = *history != before;
                decisions.extend(advance.decisions);
                began.extend(advance.began.then(|| service.name.clone()));
                next_look = [next_look, advance.next_look].into_iter().flatten().min();
                if is_other {
                    to_run = effective(declared, &memory);
                }
            }
        });
        for service in began {
            self.record_of(deployment).forget_failures(Some(&service));
        }
        let lives = |service: &String| observed.iter().any(|instance| instance.id.service == *service);
        memory.rollouts.retain(|service, history| {
            (declared.services.contains_key(service) || lives(service)) && *history != RolloutHistory::default()
        });
        for Decision { kind, message, is_trouble } in decisions {
            match is_trouble {
                true => tracing::warn!("{message}"),
                false => tracing::info!("{message}"),
            }
            self.record_event(Some(deployment), kind, message);
        }
        self.keep_changes(deployment, &before, &memory);
        let changed = memory != before;
        if changed {
            self.images.tell_soon();
        }
        if let Some(next_look) = next_look {
            self.rollout_looks.insert(deployment.to_owned(), next_look);
        }
        if memory != Memory::default() {
            self.memory.insert(deployment.to_owned(), memory);
        }
        changed
    }

    /// When time alone can change something of a deployment's rollouts.
    pub(super) fn next_look_at_rollouts(&self, deployment: &str) -> Option<DateTime<Utc>> {
        self.rollout_looks.get(deployment).copied()
    }

    /// Keeps how much of the deadlines of rollouts is spent, for the next controller.
    pub(super) fn note_clocks(&mut self) {
        let now = self.now().0;
        let names: Vec<String> = self.memory.keys().filter(|name| self.covers(name)).cloned().collect();
        for name in names {
            let Some(before) = self.memory.get(&name).cloned() else { continue };
            let mut after = before.clone();
            for rollout in after.rollouts.values_mut().filter_map(|history| history.rollout.as_mut()) {
                rollout.clock.count_up(now);
            }
            self.keep_changes(&name, &before, &after);
            self.memory.insert(name, after);
        }
    }

    fn keep_changes(&self, deployment: &str, before: &Memory, now: &Memory) {
        for (service, history) in &now.rollouts {
            if before.rollouts.get(service) != Some(history) {
                self.keep(deployment, Some(service), Note::Rollout(Box::new(history.clone())), None);
            }
        }
        for service in before.rollouts.keys().filter(|service| !now.rollouts.contains_key(*service)) {
            self.keep(deployment, Some(service), Note::Forget, None);
        }
    }

    /// Hands a note to whoever keeps them.
    pub(super) fn keep(&self, deployment: &str, service: Option<&str>, note: Note, kept: Option<Kept>) {
        if let Some(keeper) = &self.keeper {
            keeper.keep((deployment.to_owned(), service.map(str::to_owned)), note, kept);
        }
    }

    /// The same of notes of a deployment that are written together or not at all, by service.
    pub(super) fn keep_together<'s>(&self, deployment: &str, notes: impl Iterator<Item = (Option<&'s str>, Note)>) {
        if let Some(keeper) = &self.keeper {
            let key = |service: Option<&str>| (deployment.to_owned(), service.map(str::to_owned));
            keeper.keep_together(notes.map(|(service, note)| (key(service), note)).collect());
        }
    }

    /// Forgets what is remembered of a deployment of which nothing is left, once every runtime has told what it holds.
    pub(super) fn forget_memory(&mut self, deployment: &str) {
        if !self.synced() {
            return;
        }
        self.rollout_looks.remove(deployment);
        if let Some(memory) = self.memory.remove(deployment) {
            self.keep(deployment, None, Note::Forget, None);
            for service in memory.rollouts.keys() {
                self.keep(deployment, Some(service), Note::Forget, None);
            }
        }
    }

    /// Gives the rollouts of a deployment that have failed, and go on, all of their time anew: somebody applied it again.
    pub(super) fn try_again(&mut self, deployment: &str) {
        let now = self.now().0;
        let Some(memory) = self.memory.get_mut(deployment) else { return };
        for history in memory.rollouts.values_mut().filter(|history| history.pause.is_none()) {
            revisions::try_again(history, now);
        }
    }

    /// Gives up what is being made of a deployment and is not wanted any more, so that it holds nothing up: nor does an image
    /// that does not come hold up the end of a job's run.
    pub(super) fn give_up_unwanted(
        &self,
        deployment: &str,
        desired: Result<&DesiredDeployment, Fate>,
        jobs: &JobStates,
    ) {
        if desired == Err(Fate::Kept) || self.is_suspended(deployment) {
            return;
        }
        let is_ending = |id: &InstanceId| {
            let runs = jobs.get(&id.service).into_iter().flat_map(|job| &job.active);
            runs.into_iter().any(|run| run.is_ending && Some(run.run) == id.run)
        };
        self.flights.give_up(deployment, |instance| {
            let service = desired.ok().and_then(|desired| desired.services.get(&instance.id.service));
            service.is_some_and(|service| {
                let in_place = || instance.id.slot < service.replicas && instance.runtime == service.runtime;
                if !is_rolled_out(service) {
                    return !is_ending(&instance.id);
                }
                service.is_made_from(&instance.id.revision) && in_place()
            })
        });
    }

    /// The rollouts of the services that a target covers.
    pub(super) fn rollouts_of(&self, target: &Target) -> Result<Vec<RolloutView>, EngineError> {
        let services = self.targets(target, "rolled out")?;
        Ok(services.into_iter().map(|service| self.rollout_view(&target.deployment, service)).collect())
    }

    fn rollout_view(&self, deployment: &str, declared: &DesiredService) -> RolloutView {
        let memory = self.memory.get(deployment);
        let none = RolloutHistory::default();
        let history = memory.and_then(|memory| memory.rollouts.get(&declared.name)).unwrap_or(&none);
        let declared = &history.with_image(declared);
        let to_run = history.wanted(declared);
        let failed = history.pin.as_ref().filter(|pin| pin.failure.is_some()).map(|pin| &pin.from);
        let is_paused = matches!(history.pause, Some(Pause::Failure { .. }));
        let paused = history.rollout.as_ref().filter(|_| is_paused).map(|rollout| &rollout.revision);
        let way_back = history.failed_way_back();
        let revisions = history.revisions.iter().map(|known| RevisionView {
            number: known.number,
            revision: known.revision.clone(),
            declared: declared.is_made_from(&known.revision),
            wanted: to_run.is_made_from(&known.revision),
            failed: failed == Some(&known.revision)
                || paused.is_some_and(|paused| known.is(paused))
                || way_back.is_some_and(|way_back| known.is(way_back))
                || known.failed && !to_run.is_made_from(&known.revision),
            paused: paused.is_some_and(|paused| known.is(paused)),
            source: known.source.to_string(),
            image: known.spec.image.name.to_string(),
            runtime: known.runtime,
            declared_at: known.declared_at,
            completed_at: known.completed_at,
            spec: serde_json::to_value(known.spec.as_ref()).unwrap_or_default(),
        });
        RolloutView {
            deployment: deployment.to_owned(),
            service: declared.name.clone(),
            revisions: revisions.collect(),
        }
    }

    /// The declared services that a target covers, as far as they are rolled out. `asked` is what is to be done with them, as
    /// in `can't be scaled`.
    pub(super) fn targets(&self, target: &Target, asked: &str) -> Result<Vec<&DesiredService>, EngineError> {
        if target.slot.is_some() {
            return Err(EngineError::Invalid(format!(
                "{target} is one instance; name DEPLOYMENT or DEPLOYMENT/SERVICE"
            )));
        }
        let missing = |what: String| EngineError::NotFound(format!("{what} not found"));
        let deployment = self.declared_one(&target.deployment)?;
        let is_rolled = |service: &&DesiredService| is_rolled_out(service);
        let Some(name) = &target.service else {
            let all: Vec<&DesiredService> = deployment.services.values().filter(is_rolled).collect();
            return match all.is_empty() {
                true => Err(EngineError::Invalid(format!(
                    "deployment {} has no service that can be {asked}: jobs run by themselves, and pools follow their sessions",
                    target.deployment
                ))),
                false => Ok(all),
            };
        };
        let service = deployment.services.get(name).ok_or_else(|| missing(format!("service {target}")))?;
        match is_rolled(&service) {
            true => Ok(vec![service]),
            false if service.spec.pool.is_some() => Err(EngineError::Invalid(format!(
                "{target} is a pool, which can't be {asked}: its members come and go with its sessions, within the bounds of `pool`"
            ))),
            false => Err(EngineError::Invalid(format!(
                "{target} is a job, which can't be {asked}: its runs begin and end by themselves"
            ))),
        }
    }

    /// A deployment that is declared, and not about to go.
    pub(super) fn declared_one(&self, name: &str) -> Result<&DesiredDeployment, EngineError> {
        let declared = self.declared.desired.deployments.get(name).filter(|_| !self.removing.contains_key(name));
        declared.ok_or_else(|| EngineError::NotFound(format!("deployment {name} not found")))
    }
}

/// Whether the service keeps replicas, which rollouts replace.
fn is_rolled_out(service: &DesiredService) -> bool {
    service.spec.rtype() == RType::Service && service.spec.pool.is_none()
}

impl Engine {
    /// The rollouts of the services that a target covers.
    ///
    /// # Errors
    /// `NotFound` where it names nothing that is declared; `Invalid` where that is not rolled out.
    pub async fn rollouts(&self, target: &Target) -> Result<Vec<RolloutView>, EngineError> {
        let target = target.clone();
        self.ask(|reply| Command::Rollouts(target, reply)).await?
    }
}
