//! Jobs: what is remembered of them is kept before anything is done that relies on it, and runs that are asked for are
//! taken in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::EngineError;
use super::apply::blocking;
use super::core::{Scope, State};
use super::message::Message;
use super::open::local;
use crate::plan::{RUNS_AT_ONCE, job_states, remember};
use crate::spec::{Overlap, RType};
use crate::state::{DesiredDeployment, Fate, Instance, JobRecord, RunEnd, RunId, RunRecord, ServiceName};
use crate::store::{JobRecords, Store};

/// Pause before the store is told again what it could not keep.
const KEEP_AGAIN: Duration = Duration::from_secs(1);

/// What is to be remembered otherwise than it is, by service; nothing where a service has no jobs any more.
pub type JobChanges = BTreeMap<String, Option<JobRecord>>;

/// Keeps what is remembered of jobs, so that it outlives the controller.
#[async_trait]
pub trait KeepJobs: Send + Sync {
    /// Keeps this of the jobs of a deployment: all of it or, on an error, none.
    ///
    /// # Errors
    /// Why it could not be kept.
    async fn keep(&self, deployment: &str, changes: &JobChanges) -> Result<(), String>;
}

/// What is remembered of jobs from before, and where it is kept; nowhere when absent.
#[derive(Default)]
pub struct Jobs {
    /// From before.
    pub records: JobRecords,
    /// Where it is kept.
    pub keeper: Option<Arc<dyn KeepJobs>>,
}

/// Keeps it in the state database.
pub struct StoredJobs {
    /// The database.
    pub store: Arc<Store>,
}

#[async_trait]
impl KeepJobs for StoredJobs {
    async fn keep(&self, deployment: &str, changes: &JobChanges) -> Result<(), String> {
        let (store, deployment, changes) = (self.store.clone(), deployment.to_owned(), changes.clone());
        let write = move || store.record_jobs(&deployment, &changes);
        let kept = blocking(move || write().map_err(local("the state database can't be used"))).await;
        kept.map_err(|error| error.to_string())
    }
}

/// Somebody asks for a run.
#[derive(Debug)]
pub struct Trigger {
    /// Of this job or cron service.
    pub service: ServiceName,
    /// The run, if it has not begun already.
    pub run: RunId,
    /// Answered when it is certain that it will be made.
    pub reply: oneshot::Sender<Result<RunId, EngineError>>,
}

/// Jobs of one deployment that are being remembered, or asked for.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Whether a change is being kept.
    is_keeping: bool,
    asked: Vec<Trigger>,
}

impl State {
    /// Notes what has become of jobs. What is noted counts once it is kept.
    pub(super) fn remember_jobs(
        &mut self,
        deployment: &str,
        desired: Result<&DesiredDeployment, Fate>,
        observed: &[Instance],
    ) {
        if !self.covers(deployment) {
            return;
        }
        let mut changes = self.with_input(deployment, desired, observed, remember);
        let Some(record) = self.records.get(deployment).filter(|record| !record.memory.is_keeping) else { return };
        for asked in &record.memory.asked {
            let known = record.history.jobs.get(&asked.service.service);
            let change = changes.entry(asked.service.service.clone()).or_insert_with(|| known.cloned());
            let triggered = &mut change.get_or_insert_default().triggered;
            if !triggered.contains(&asked.run) {
                triggered.push(asked.run);
            }
        }
        if changes.is_empty() {
            return;
        }
        let Some(keeper) = self.job_keeper.clone() else { return self.remembered(deployment, changes, Ok(())) };
        if let Some(record) = self.records.get_mut(deployment) {
            record.memory.is_keeping = true;
        }
        let (messages, name) = (self.messages.clone(), deployment.to_owned());
        self.lanes.spawn(async move {
            let kept = keeper.keep(&name, &changes).await;
            // A core that has ended reads it when it begins again.
            let _ = messages.send(Message::Remembered(name, changes, kept)).await;
        });
    }

    /// What was to be remembered is kept, or could not be.
    pub(super) fn remembered(&mut self, deployment: &str, changes: JobChanges, kept: Result<(), String>) {
        let Some(record) = self.records.get_mut(deployment) else { return };
        record.memory.is_keeping = false;
        if let Err(error) = kept {
            tracing::warn!("what has become of the jobs of {deployment} is not recorded: {error}");
            return self.queue.add(deployment, Instant::now() + KEEP_AGAIN);
        }
        let mut news = Vec::new();
        for (service, change) in changes {
            let jobs = &mut record.history.jobs;
            let before = match &change {
                Some(after) => jobs.insert(service.clone(), after.clone()),
                None => jobs.remove(&service),
            };
            let known = |run: &RunRecord| before.iter().flat_map(|before| &before.runs).any(|one| one.run == run.run);
            let runs = change.into_iter().flat_map(|after| after.runs);
            news.extend(runs.filter(|run| !known(run)).map(|run| (service.clone(), run)));
        }
        for asked in std::mem::take(&mut record.memory.asked) {
            let jobs = record.history.jobs.get(&asked.service.service);
            match jobs.is_some_and(|job| job.triggered.contains(&asked.run)) {
                // A caller that has gone needs no answer.
                true => drop(asked.reply.send(Ok(asked.run))),
                false => record.memory.asked.push(asked),
            }
        }
        news.iter().for_each(|(service, run)| self.tell_run(deployment, service, run));
        self.queue.add(deployment, Instant::now());
    }

    fn tell_run(&self, deployment: &str, service: &str, run: &RunRecord) {
        let took = (run.finished_at - run.started_at).to_std().unwrap_or_default();
        let took = crate::spec::HumanDuration(Duration::from_secs(took.as_secs()));
        let message = format!("{deployment}/{service}: run {}: {} after {took}", run.run, run.end);
        let kind = match run.end {
            RunEnd::Completed => "RunCompleted",
            RunEnd::Replaced => "RunReplaced",
            RunEnd::Failed { .. } | RunEnd::DeadlineExceeded => "RunFailed",
        };
        tracing::info!("{message}");
        self.record_event(Some(deployment), kind, message);
    }

    /// Takes in that somebody asks for a run.
    pub(super) fn trigger(&mut self, mut trigger: Trigger) {
        let accepted = match self.accept(&trigger) {
            Err(error) => return drop(trigger.reply.send(Err(error))),
            Ok(accepted) => accepted,
        };
        let deployment = trigger.service.deployment.clone();
        if let Scope::Only(attended) = &mut self.scope {
            attended.insert(deployment.clone());
        }
        match accepted {
            Accepted::Already => drop(trigger.reply.send(Ok(trigger.run))),
            Accepted::As(run) => {
                trigger.run = run;
                self.records.entry(deployment.clone()).or_default().memory.asked.push(trigger);
            }
        }
        self.queue.add(&deployment, Instant::now());
    }

    fn accept(&self, trigger: &Trigger) -> Result<Accepted, EngineError> {
        let Trigger { service: name, run, .. } = trigger;
        let declared = self.declared.desired.deployments.get(&name.deployment);
        let declared = declared.filter(|_| !self.removing.contains_key(&name.deployment));
        let service = declared.and_then(|declared| declared.services.get(&name.service));
        let (Some(declared), Some(service)) = (declared, service) else {
            return Err(EngineError::NotFound(format!("nothing declares {name}; see keel get services")));
        };
        if service.spec.rtype() == RType::Service {
            return Err(EngineError::Invalid(format!("{name} is no job: its `rtype` is service")));
        }
        if self.is_suspended(&name.deployment) {
            let deployment = &name.deployment;
            let why = format!("{deployment} is suspended; `keel resume {deployment}` lets its jobs run again");
            return Err(EngineError::Conflict(why));
        }
        let record = self.records.get(&name.deployment);
        let known = record.and_then(|record| record.history.jobs.get(&name.service));
        let of_service = |asked: &&Trigger| asked.service == *name;
        let pending = record.map_or(0, |record| record.memory.asked.iter().filter(of_service).count());
        let waiting = known.map_or(0, |known| known.triggered.len()) + pending;
        let observed = self.observed(&name.deployment);
        let states = self.with_input(&name.deployment, Ok(declared), &observed, job_states);
        let Some(state) = states.get(&name.service) else { return Ok(Accepted::As(*run)) };
        let mut runs = state.active.iter().map(|one| one.run).chain(state.finished.iter().map(|one| one.run));
        if runs.any(|one| one == *run) || known.is_some_and(|known| known.triggered.contains(run)) {
            return Ok(Accepted::Already);
        }
        let overlap = service.spec.job().overlap();
        if overlap == Overlap::Forbid && state.active.len() + waiting > 0 {
            return Err(EngineError::Conflict(format!(
                "a run of {name} goes on, and job.overlap is forbid; wait for its end, or write `overlap: allow` or \
                 `replace`"
            )));
        }
        if waiting >= RUNS_AT_ONCE {
            return Err(EngineError::Conflict(format!(
                "{waiting} runs of {name} were asked for and have not begun yet"
            )));
        }
        let last = state.active.iter().map(|one| one.run).chain(state.finished.iter().map(|one| one.run)).max();
        Ok(Accepted::As(if last.is_some_and(|last| last >= *run) { RunId::after(last, self.now().0) } else { *run }))
    }
}

enum Accepted {
    /// It was made, or will be.
    Already,
    /// It will be made under this name.
    As(RunId),
}
