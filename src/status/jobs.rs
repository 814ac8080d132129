//! Views of jobs and cron services.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Facts;
use super::waits::is_about;
use crate::plan::{ActiveRun, JobState, Wait};
use crate::spec::{RType, Revision};
use crate::state::{Condition, DesiredService, Instance, InstanceId, Phase, RunEnd, RunId, RunRecord};

/// How a job or cron service stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    /// Which of the two it is.
    pub kind: JobKind,
    /// Completions that each run needs.
    pub completions: u32,
    /// Instances of a run that may fail, where that is written.
    pub retries: Option<u32>,
    /// The schedule and its time zone; absent where it has none.
    pub schedule: Option<String>,
    /// When the schedule says that it runs next; absent without a schedule, when that is over, and while its deployment is
    /// suspended.
    pub next_run: Option<DateTime<Utc>>,
    /// Whether its deployment is suspended, so that no run is made.
    #[serde(default)]
    pub suspended: bool,
    /// Runs that go on, oldest first.
    pub active: Vec<ActiveRunView>,
    /// Runs that are over, newest first.
    pub finished: Vec<RunView>,
}

/// A job, or one by a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// It runs once for each template.
    Job,
    /// It runs by a schedule.
    Cron,
}

/// A run that goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActiveRunView {
    /// Which; the time that it has its name from, in milliseconds since the epoch.
    pub run: RunId,
    /// When its first instance was created.
    pub started_at: DateTime<Utc>,
    /// Completions that succeeded.
    pub succeeded: u32,
    /// Instances that failed.
    pub failed: u32,
    /// Instances that have not ended.
    pub live: u32,
    /// The instance that failed last; absent where none has, or it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_last: Option<FailedInstance>,
}

/// A run that is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunView {
    /// Which; the time that it has its name from, in milliseconds since the epoch.
    pub run: RunId,
    /// When the schedule asked for it; absent where something else did.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// Template that it was made from.
    pub revision: Revision,
    /// When its first instance was created.
    pub started_at: DateTime<Utc>,
    /// When its last instance ended.
    pub finished_at: DateTime<Utc>,
    /// Completions that succeeded.
    pub succeeded: u32,
    /// Instances that failed.
    pub failed: u32,
    /// `completed`, `failed`, `deadline_exceeded` or `replaced`.
    pub outcome: String,
    /// The same in a phrase: `completed`, `exited 3`, `out of memory`.
    pub message: String,
    /// The instance that failed last; absent where none has, or it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_last: Option<FailedInstance>,
}

/// An instance of a run that failed, also where it is not shown among the instances, as that of another run is in its slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedInstance {
    /// `DEPLOYMENT/SERVICE/SLOT`.
    pub name: String,
    /// The runtime's own id.
    pub runtime_id: String,
}

impl FailedInstance {
    /// The one of a run that failed last, of the instances that are there.
    fn last(facts: &Facts<'_>, service: &DesiredService, run: RunId) -> Option<Self> {
        let fails = |one: &&Instance| matches!(&one.phase, Phase::Exited(exit) if exit.code != Some(0));
        let of_run = facts.observed.iter().filter(|one| one.id.service == service.name && one.id.run == Some(run));
        let last = of_run.filter(fails).max_by_key(|one| one.recency())?;
        Some(Self { name: last.id.name(), runtime_id: last.runtime_id.clone() })
    }
}

impl JobView {
    /// The view of a service that is a job.
    pub(super) fn of(facts: &Facts<'_>, service: &DesiredService, state: &JobState, suspended: bool) -> Self {
        let failed_last = |run| FailedInstance::last(facts, service, run);
        let spec = &service.spec;
        let attempts = spec.restart_policy.as_ref().and_then(|policy| policy.max_attempts);
        let written = [spec.job().backoff_limit, attempts].into_iter().flatten().min();
        let zone = spec.time_zone.as_ref().map(|zone| format!(" {zone}")).unwrap_or_default();
        Self {
            kind: if spec.rtype() == RType::Cron { JobKind::Cron } else { JobKind::Job },
            completions: spec.job().completions(),
            retries: written,
            schedule: spec.schedule.as_ref().map(|schedule| format!("{schedule}{zone}")),
            next_run: state.next.filter(|_| !suspended),
            suspended,
            active: state.active.iter().map(|run| active(run, failed_last(run.run))).collect(),
            finished: state.finished.iter().map(|record| finished(record, failed_last(record.run))).collect(),
        }
    }

    /// The last run that is over, where it did not succeed and was not replaced.
    pub fn last_failure(&self) -> Option<&RunView> {
        self.finished
            .first()
            .filter(|run| run.outcome != RunEnd::Completed.name() && run.outcome != RunEnd::Replaced.name())
    }
}

fn active(run: &ActiveRun, failed_last: Option<FailedInstance>) -> ActiveRunView {
    let ActiveRun { run, started_at, succeeded, failed, live, is_ending: _ } = *run;
    ActiveRunView { run, started_at, succeeded, failed, live, failed_last }
}

fn finished(record: &RunRecord, failed_last: Option<FailedInstance>) -> RunView {
    RunView {
        run: record.run,
        scheduled_at: record.run.is_scheduled().then(|| record.run.at()),
        revision: record.revision.clone(),
        started_at: record.started_at,
        finished_at: record.finished_at,
        succeeded: record.succeeded,
        failed: record.failed,
        outcome: record.end.name().to_owned(),
        message: record.end.to_string(),
        failed_last,
    }
}

/// Conditions of a job, as Kubernetes has them: `Complete` and `Failed`; and of a cron service whose last run failed.
pub(super) fn conditions(job: &JobView, service: &DesiredService, facts: &Facts<'_>) -> Vec<Condition> {
    let mine = || facts.plan.waits.iter().filter(|wait| is_about(wait, service));
    if job.kind == JobKind::Cron {
        let failure = job.last_failure();
        let told = |run: &RunView| format!("the last run failed: {}", run.message);
        return failure.map(|run| Condition::holds("LastRunFailed", "RunFailed", told(run))).into_iter().collect();
    }
    let progress = || {
        let succeeded = job.active.last().map_or(0, |run| run.succeeded);
        format!("{succeeded} of {} completions succeeded", job.completions)
    };
    let over = mine().find(|wait| matches!(wait, Wait::Completed { .. } | Wait::JobFailed { .. }));
    vec![match over {
        Some(Wait::Completed { .. }) => {
            Condition::holds("Complete", "CompletionsReached", "every completion succeeded")
        }
        Some(wait) => Condition::fails("Complete", "Failed", wait.of_itself()),
        None => Condition::fails("Complete", "InProgress", progress()),
    }]
}

/// Whether a step is waited for that makes or ends a run of a cron service: such runs come and go while all is as it was
/// declared.
pub(super) fn is_cron_step(facts: &Facts<'_>, wait: &Wait) -> bool {
    matches!(wait, Wait::InFlight { id } if is_of_cron(facts, id))
}

/// Whether steps are being taken, or to be taken, for anything but runs of cron services.
pub(super) fn is_busy(facts: &Facts<'_>) -> bool {
    let other = |id: Option<&InstanceId>| id.is_none_or(|id| !is_of_cron(facts, id));
    let is_moving = |instance: &&Instance| matches!(instance.phase, Phase::Pending | Phase::Stopping);
    let mut moving = facts.observed.iter().filter(is_moving).peekable();
    let works = facts.working && (moving.peek().is_none() || moving.any(|instance| other(Some(&instance.id))));
    works || facts.plan.steps().any(|step| other(step.action.instance()))
}

fn is_of_cron(facts: &Facts<'_>, id: &InstanceId) -> bool {
    let service = facts.desired.ok().and_then(|desired| desired.services.get(&id.service));
    service.is_some_and(|service| service.spec.rtype() == RType::Cron)
}

/// Whether every service of the deployment is a job that has succeeded.
pub(super) fn are_complete(facts: &Facts<'_>) -> bool {
    let completed = |service: &DesiredService| {
        facts.plan.waits.iter().any(|wait| matches!(wait, Wait::Completed { .. }) && is_about(wait, service))
    };
    facts.desired.is_ok_and(|desired| !desired.services.is_empty() && desired.services.values().all(completed))
}
