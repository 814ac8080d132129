//! One run of a job: what its instances say of how far it is.

use chrono::{DateTime, Utc};

use crate::plan::diff::{count, exit_of};
use crate::plan::restart::is_final;
use crate::plan::time::after;
use crate::plan::{Input, Unreachable};
use crate::spec::{CrashAction, RestartKind, Revision, ServiceSpec};
use crate::state::{
    ActiveRecord, DesiredService, EndedBy, Exit, Instance, InstanceId, Phase, RunEnd, RunId, RunRecord, StopCause,
    Tried,
};

/// A run and its instances.
#[derive(Debug)]
pub(super) struct Run<'a> {
    pub(super) id: RunId,
    /// In order of slot and attempt.
    pub(super) instances: Vec<&'a Instance>,
    /// What is remembered of it, once it has finished.
    pub(super) record: Option<&'a RunRecord>,
    /// What is remembered of it while it goes on, where no instance may tell of that.
    pub(super) begun: Option<&'a ActiveRecord>,
    /// Whether it may have instances that can't be seen now.
    pub(super) is_hidden: bool,
}

/// One completion of a run.
#[derive(Debug)]
pub(super) struct Completion<'a> {
    /// Its index, which is the slot of its instances.
    pub(super) index: u32,
    /// The instance that exists or is being made or removed.
    pub(super) live: Option<&'a Instance>,
    /// The attempt that comes next.
    pub(super) next_attempt: u32,
    /// How the last attempt ended, where it did.
    ended: Option<Ended<'a>>,
    /// Whether an instance of it succeeded.
    pub(super) succeeded: bool,
    /// Instances of it that failed.
    pub(super) failures: u32,
}

/// How an attempt ended, of which the instance may be gone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended<'a> {
    pub(super) attempt: u32,
    pub(super) revision: &'a Revision,
    pub(super) exit: &'a Exit,
}

/// How far a run is.
#[derive(Debug)]
pub(super) struct Tally<'a> {
    /// By index.
    pub(super) completions: Vec<Completion<'a>>,
    pub(super) succeeded: u32,
    pub(super) failed: u32,
    /// Instances that live.
    pub(super) live: u32,
}

/// How a run stands.
#[derive(Debug, PartialEq)]
pub(super) enum Standing {
    /// It goes on.
    Active,
    /// It has come to this, and what lives of it is to end.
    Ending(RunEnd),
    /// It is over.
    Finished(RunRecord),
}

impl<'a> Run<'a> {
    /// The runs that instances belong to or that are remembered, in order of their identity. `instances` are those of one
    /// service in order of their identity.
    pub(super) fn all(input: &Input<'a>, desired: &DesiredService, instances: &[&'a Instance]) -> Vec<Self> {
        let record = input.history.jobs.get(&desired.name);
        let mut runs: std::collections::BTreeMap<RunId, Self> = std::collections::BTreeMap::new();
        let blank = Self::about_to_begin;
        let begun = record.into_iter().flat_map(|record| &record.active);
        // Of another template that has come to nothing yet, nothing is to be told.
        for begun in begun.filter(|begun| begun.was_made() || desired.is_made_from(&begun.revision)) {
            runs.entry(begun.run).or_insert_with(|| blank(begun.run)).begun = Some(begun);
        }
        for one in record.into_iter().flat_map(|record| &record.runs) {
            runs.entry(one.run).or_insert_with(|| blank(one.run)).record = Some(one);
        }
        for &instance in instances {
            let Some(id) = instance.id.run else { continue };
            runs.entry(id).or_insert_with(|| blank(id)).instances.push(instance);
        }
        let mut runs: Vec<Self> = runs.into_values().collect();
        for run in &mut runs {
            run.instances.sort_by_key(|instance| (instance.id.slot, instance.id.attempt));
            let has_made = run.begun.is_some_and(ActiveRecord::was_made);
            run.is_hidden = has_made && run.instances.is_empty() && may_hide(input, desired, run);
        }
        runs
    }

    /// One that nothing tells of.
    pub(super) const fn about_to_begin(id: RunId) -> Self {
        Self { id, instances: Vec::new(), record: None, begun: None, is_hidden: false }
    }

    /// Whether it was made from what is declared now.
    pub(super) fn is_made_from(&self, desired: &DesiredService) -> bool {
        self.revision().is_some_and(|revision| desired.is_made_from(revision))
    }

    /// Whether an instance of it runs.
    pub(super) fn runs(&self) -> bool {
        self.instances.iter().any(|one| matches!(one.phase, Phase::Running { .. } | Phase::Paused { .. }))
    }

    /// The template of its last instance, or the one that it is to be made from; none where nothing tells of it.
    pub(super) fn revision(&self) -> Option<&'a Revision> {
        let newest = self.instances.iter().max_by_key(|instance| instance.recency());
        let remembered = self.record.map(|record| &record.revision).or(self.begun.map(|begun| &begun.revision));
        newest.map(|newest| &newest.id.revision).or(remembered)
    }

    /// Whether an instance of it was made: what is only about to be made is no proof that it has begun.
    pub(super) fn was_made(&self) -> bool {
        self.instances.iter().any(|one| was_made(one)) || self.begun.is_some_and(ActiveRecord::was_made)
    }

    /// When it was to begin where that is remembered, else when its first instance was created.
    pub(super) fn started_at(&self) -> DateTime<Utc> {
        let created = self.instances.iter().map(|instance| instance.created_at).min();
        let begun = self.begun.map(|begun| begun.since);
        created.into_iter().chain(begun).min().unwrap_or_else(|| self.id.at())
    }

    /// When it has to be over, where it has to.
    pub(super) fn deadline(&self, spec: &ServiceSpec) -> Option<DateTime<Utc>> {
        spec.job().active_deadline.map(|limit| after(self.started_at(), limit.get()))
    }

    pub(super) fn tally(&self, spec: &ServiceSpec) -> Tally<'a> {
        let deadline = self.deadline(spec);
        let mut rest = self.instances.as_slice();
        let completions: Vec<Completion<'a>> = (0..spec.job().completions())
            .map(|index| {
                let (mine, others) = rest.split_at(rest.partition_point(|instance| instance.id.slot <= index));
                rest = others;
                completion(index, mine, deadline, self.begun)
            })
            .collect();
        Tally {
            succeeded: count(completions.iter().filter(|one| one.succeeded)),
            failed: completions.iter().fold(0, |sum, one| sum.saturating_add(one.failures)),
            live: count(self.instances.iter().filter(|instance| is_live(instance))),
            completions,
        }
    }

    /// How it stands; `replaced` where another run takes its place.
    pub(super) fn standing(&self, desired: &DesiredService, replaced: bool, now: DateTime<Utc>) -> Standing {
        if let Some(record) = self.record {
            return Standing::Finished(record.clone());
        }
        let tally = self.tally(&desired.spec);
        let Some(end) = self.end(&tally, desired, replaced, now) else { return Standing::Active };
        // What can't be seen may go on, and would do so beside the one that takes its place.
        let is_over = tally.live == 0 && !(self.is_hidden && end == RunEnd::Replaced);
        let Some(revision) = self.revision().filter(|_| is_over) else { return Standing::Ending(end) };
        let last = self.instances.iter().max_by_key(|one| one.recency());
        let remembered = self.begun.into_iter().flat_map(|begun| &begun.tried).filter_map(|one| one.failure.as_ref());
        let exits = self.instances.iter().filter_map(|instance| exit_of(instance)).chain(remembered);
        let ends = exits.map(|exit| exit.finished_at);
        Standing::Finished(RunRecord {
            run: self.id,
            revision: revision.clone(),
            runtime: last.map_or(desired.runtime, |last| last.runtime),
            started_at: self.started_at(),
            finished_at: ends.max().or_else(|| self.deadline(&desired.spec)).unwrap_or(now).min(now),
            succeeded: tally.succeeded,
            failed: tally.failed,
            end,
        })
    }

    fn end(&self, tally: &Tally<'_>, desired: &DesiredService, replaced: bool, now: DateTime<Utc>) -> Option<RunEnd> {
        if tally.succeeded == desired.spec.job().completions() {
            return Some(RunEnd::Completed);
        }
        let ends_all = |one: &Completion<'_>| one.failure().is_some_and(|failed| is_final(failed.exit, &desired.spec));
        if tally.failed > retries(&desired.spec) || tally.completions.iter().any(ends_all) {
            let failure = tally.last_failure();
            return failure.map(|(index, exit)| RunEnd::Failed { index, exit: exit.clone() });
        }
        // What can't be seen may have come to its end in time.
        if !self.is_hidden && self.deadline(&desired.spec).is_some_and(|deadline| deadline <= now) {
            return Some(RunEnd::DeadlineExceeded);
        }
        let is_stopped = tally.completions.iter().any(Completion::is_stopped);
        (replaced || is_stopped).then_some(RunEnd::Replaced)
    }
}

impl Ended<'_> {
    /// Its identity; `other` is another attempt of the same completion.
    pub(super) fn id(&self, other: &InstanceId) -> InstanceId {
        InstanceId { attempt: self.attempt, revision: self.revision.clone(), ..other.clone() }
    }
}

impl<'a> Completion<'a> {
    /// How its last attempt ended, where that failed.
    pub(super) fn failure(&self) -> Option<Ended<'a>> {
        self.ended.filter(|ended| is_failure(ended.exit))
    }

    /// How its last attempt ended, where somebody else stopped that.
    pub(super) fn stopped_by_others(&self) -> Option<Ended<'a>> {
        self.ended.filter(|ended| ended.exit.is_by_others())
    }

    /// Whether it was stopped because the run was to end.
    fn is_stopped(&self) -> bool {
        let is_retired = |ended: Ended<'_>| ended.exit.ended_by == EndedBy::Request(StopCause::Retired);
        !self.succeeded && self.ended.is_some_and(is_retired)
    }
}

impl<'a> Tally<'a> {
    /// The completion that failed last, and how.
    fn last_failure(&self) -> Option<(u32, &'a Exit)> {
        let failures = self.completions.iter().filter_map(|one| Some((one.index, one.failure()?.exit)));
        failures.max_by_key(|(index, exit)| (exit.finished_at, *index))
    }
}

/// The completion of these instances, in order of their attempts, and of what is remembered of others.
fn completion<'a>(
    index: u32,
    instances: &[&'a Instance],
    deadline: Option<DateTime<Utc>>,
    begun: Option<&'a ActiveRecord>,
) -> Completion<'a> {
    let newest = instances.last().copied();
    let tried = begun.and_then(|begun| begun.tried(index));
    let is_done = begun.is_some_and(|begun| begun.done.contains(&index));
    let succeeded = is_done || instances.iter().filter_map(|one| exit_of(one)).any(is_success);
    let failed = newest.and_then(exit_of).is_some_and(|exit| {
        // What the deadline ended did not fail by itself.
        let by_deadline = exit.ended_by == EndedBy::Request(StopCause::Expired)
            && deadline.is_some_and(|deadline| deadline <= exit.finished_at);
        is_failure(exit) && !by_deadline
    });
    let failures = newest.map_or(0, |newest| newest.restarts.saturating_add(u32::from(failed && !succeeded)));
    Completion {
        index,
        live: instances.iter().rev().copied().find(|instance| is_live(instance)),
        next_attempt: last_attempt(newest, tried).map_or(0, |last| last.saturating_add(1)),
        ended: ended(newest, tried, begun),
        succeeded,
        failures: failures.max(tried.map_or(0, |tried| tried.failures)),
    }
}

fn last_attempt(newest: Option<&Instance>, tried: Option<&Tried>) -> Option<u32> {
    newest.map(|newest| newest.id.attempt).max(tried.map(|tried| tried.attempt))
}

/// How the last attempt ended: as its instance says, or as is remembered where that is gone.
fn ended<'a>(
    newest: Option<&'a Instance>,
    tried: Option<&'a Tried>,
    begun: Option<&'a ActiveRecord>,
) -> Option<Ended<'a>> {
    match newest.filter(|newest| Some(newest.id.attempt) == last_attempt(Some(newest), tried)) {
        Some(last) => exit_of(last).map(|exit| Ended { attempt: last.id.attempt, revision: &last.id.revision, exit }),
        None => {
            let (tried, begun) = (tried?, begun?);
            let exit = tried.failure.as_ref()?;
            Some(Ended { attempt: tried.attempt, revision: &begun.revision, exit })
        }
    }
}

/// Whether a runtime that the run may have instances on does not answer. Where one of another template ran is not known any
/// more; what is absent for good runs nothing.
fn may_hide(input: &Input<'_>, desired: &DesiredService, run: &Run<'_>) -> bool {
    let may_answer = || input.unreachable.values().any(|why| matches!(why, Unreachable::Silent(_)));
    input.unreachable.contains_key(&desired.runtime) || (!run.is_made_from(desired) && may_answer())
}

/// Whether it exists, or did.
pub(super) fn was_made(instance: &Instance) -> bool {
    instance.phase != Phase::Pending
}

/// Whether it exists or is being made or removed.
pub(super) const fn is_live(instance: &Instance) -> bool {
    !matches!(instance.phase, Phase::Exited(_))
}

/// Whether the work is done. What was asked to end, by whomever, may say that it ended well and has not done it all.
fn is_success(exit: &Exit) -> bool {
    exit.is_success() && exit.ended_by == EndedBy::Itself
}

fn is_failure(exit: &Exit) -> bool {
    !is_success(exit) && !exit.is_by_others() && exit.ended_by != EndedBy::Request(StopCause::Retired)
}

/// Failed instances of a run after which another one is still made.
pub(super) fn retries(spec: &ServiceSpec) -> u32 {
    let on_crash = spec.errors.clone().unwrap_or_default().on_crash();
    if on_crash != CrashAction::Restart || spec.restart_kind() == RestartKind::No {
        return 0;
    }
    let attempts = spec.restart_policy.as_ref().and_then(|policy| policy.max_attempts);
    spec.job().backoff_limit().min(attempts.unwrap_or(u32::MAX))
}
