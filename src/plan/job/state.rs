//! How jobs stand, for those who look at them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::begin::Runs;
use super::run::{Run, Standing, is_live};
use super::schedule::Schedule;
use crate::plan::Input;
use crate::plan::diff::count;
use crate::spec::RType;
use crate::state::{DesiredService, Instance, RunId, RunRecord};

/// How the jobs and cron services of a deployment stand, by service.
pub type JobStates = BTreeMap<String, JobState>;

/// How a job or cron service stands.
#[derive(Debug, Clone, PartialEq)]
pub struct JobState {
    /// Runs that go on, oldest first.
    pub active: Vec<ActiveRun>,
    /// Runs that are over, newest first.
    pub finished: Vec<RunRecord>,
    /// When the schedule says that it runs next; none without a schedule, or when that is over.
    pub next: Option<DateTime<Utc>>,
}

/// A run that goes on.
#[derive(Debug, Clone, PartialEq)]
pub struct ActiveRun {
    /// Which.
    pub run: RunId,
    /// When it was to begin, or its first instance was created.
    pub started_at: DateTime<Utc>,
    /// Completions that succeeded.
    pub succeeded: u32,
    /// Instances that failed.
    pub failed: u32,
    /// Instances that exist and have not ended.
    pub live: u32,
    /// Whether what lives of it is to end: it has failed, its deadline is over, or another run takes its place.
    pub is_ending: bool,
}

/// How the jobs and cron services of the input stand.
pub fn job_states(input: &Input<'_>) -> JobStates {
    let services = input.desired.into_iter().flat_map(|desired| &desired.services);
    let jobs = services.filter(|(_, service)| service.spec.rtype() != RType::Service);
    jobs.map(|(name, service)| (name.clone(), state(input, service))).collect()
}

fn state(input: &Input<'_>, desired: &DesiredService) -> JobState {
    let mine =
        input.observed.iter().filter(|one| one.id.deployment == input.deployment && one.id.service == desired.name);
    let mut instances: Vec<&Instance> = mine.collect();
    instances.sort_by(|one, other| one.id.cmp(&other.id));
    let runs = Runs::of(input, desired, Run::all(input, desired, &instances));
    let active = |(run, stands): &(Run<'_>, Standing)| {
        let tally = run.tally(&desired.spec);
        let goes_on = !matches!(stands, Standing::Finished(_));
        goes_on.then(|| ActiveRun {
            run: run.id,
            started_at: run.started_at(),
            succeeded: tally.succeeded,
            failed: tally.failed,
            live: count(run.instances.iter().filter(|one| is_live(one))),
            is_ending: matches!(stands, Standing::Ending(_)),
        })
    };
    let finished = runs.runs.iter().rev().filter_map(|(_, stands)| match stands {
        Standing::Finished(record) => Some(record.clone()),
        Standing::Active | Standing::Ending(_) => None,
    });
    let schedule = Schedule::of(&desired.spec).filter(|_| desired.spec.rtype() == RType::Cron);
    JobState {
        active: runs.runs.iter().filter_map(active).collect(),
        finished: finished.collect(),
        next: schedule.and_then(|schedule| schedule.next(runs.done_until.max(input.now))),
    }
}
