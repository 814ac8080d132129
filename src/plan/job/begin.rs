//! Which run begins now, and which ones another run takes the place of.

use chrono::{DateTime, Utc};

use super::run::{Run, Standing};
use super::schedule::{self, Schedule};
use crate::plan::Input;
use crate::spec::{Overlap, RType};
use crate::state::{DesiredService, Instance, JobRecord, Phase, RunEnd, RunId};

/// Runs of one cron service, or of one job, that go on side by side at most where `job.overlap` allows them to: more of
/// them means that runs take longer than the time between two, and will never catch up.
pub const RUNS_AT_ONCE: usize = 10;

/// What is to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beginning {
    /// Nothing.
    None,
    /// This run.
    Run(RunId),
    /// This run, once those are over whose place it takes.
    InPlaceOf(RunId),
    /// Nothing, and what was due at this time is left out, because another run goes on.
    LeftOut(DateTime<Utc>),
}

/// The runs of a service, each with how it stands, and what is to begin.
pub(super) struct Runs<'a> {
    pub(super) runs: Vec<(Run<'a>, Standing)>,
    pub(super) beginning: Beginning,
    /// Up to when its schedule is worked off.
    pub(super) done_until: DateTime<Utc>,
}

impl<'a> Runs<'a> {
    pub(super) fn of(input: &Input<'_>, desired: &DesiredService, runs: Vec<Run<'a>>) -> Self {
        let (now, record) = (input.now, input.history.jobs.get(&desired.name));
        let standing = |run: &Run<'_>, replaced| run.standing(desired, replaced, now);
        // How the runs stand by themselves says what begins, and that says which of them are replaced.
        let done_until = done_until(desired, &runs, record, now);
        let alone: Vec<Standing> = runs.iter().map(|run| standing(run, false)).collect();
        let beginning = match desired.spec.rtype() {
            RType::Cron => cron(desired, &runs, &alone, record, (done_until, now)),
            RType::Job | RType::Service => job(desired, &runs, &alone, record, now),
        };
        let newest = runs.iter().map(|run| run.id).max();
        let is_replaced = |run: &Run<'_>| {
            let is_followed =
                matches!(beginning, Beginning::InPlaceOf(_)) || newest.is_some_and(|newest| newest > run.id);
            match desired.spec.rtype() {
                RType::Cron => desired.spec.job().overlap() == Overlap::Replace && is_followed,
                RType::Job | RType::Service => {
                    !run.is_made_from(desired) || (desired.spec.job().overlap() != Overlap::Allow && is_followed)
                }
            }
        };
        let stand = |(run, alone): (Run<'a>, Standing)| {
            let stands = if is_replaced(&run) { standing(&run, true) } else { alone };
            (run, stands)
        };
        Self { runs: runs.into_iter().zip(alone).map(stand).collect(), beginning, done_until }
    }

    /// The runs that say how what is declared now has come out, newest first: none by a schedule, none of a template that was
    /// declared before, and none that came before one of those.
    pub(super) fn of_declared(&self, desired: &DesiredService) -> impl Iterator<Item = &(Run<'a>, Standing)> {
        let newest_first = self.runs.iter().rev().filter(|(run, _)| !run.id.is_scheduled());
        newest_first.take_while(|(run, _)| run.is_made_from(desired))
    }

    /// Whether another run may take the place of these: all are over, and nothing of them goes on all the same, as of one that
    /// was thought to be over while its runtime did not answer.
    pub(super) fn is_free(&self) -> bool {
        let goes_on =
            |one: &Instance| matches!(one.phase, Phase::Running { .. } | Phase::Paused { .. } | Phase::Stopping);
        self.active().next().is_none() && !self.runs.iter().any(|(run, _)| run.instances.iter().any(|one| goes_on(one)))
    }

    /// Runs that are not over.
    pub(super) fn active(&self) -> impl Iterator<Item = &Run<'a>> {
        self.runs.iter().filter(|(_, stands)| !matches!(stands, Standing::Finished(_))).map(|(run, _)| run)
    }
}

/// Up to when a schedule is worked off: what was begun is.
fn done_until(
    desired: &DesiredService,
    runs: &[Run<'_>],
    record: Option<&JobRecord>,
    now: DateTime<Utc>,
) -> DateTime<Utc> {
    let mark = record.and_then(|record| record.schedule.as_ref());
    let marked = schedule::done_until(mark, &desired.spec, now);
    let limit = crate::plan::time::after(now, schedule::CLOCK_SET_BACK);
    let begun = runs.iter().map(|run| run.id).filter(|id| id.is_scheduled()).map(RunId::at);
    begun.filter(|at| *at <= limit).fold(marked, DateTime::max)
}

/// The first run that was asked for and has not begun.
fn triggered(runs: &[Run<'_>], record: Option<&JobRecord>) -> Option<RunId> {
    let asked = record.into_iter().flat_map(|record| record.triggered.iter().copied());
    asked.filter(|id| !runs.iter().any(|run| run.id == *id)).min()
}

/// Runs that are not over, and those that were thought to be and of which something runs.
fn going_on(runs: &[Run<'_>], alone: &[Standing]) -> usize {
    let is_over = |run: &Run<'_>, stands: &Standing| matches!(stands, Standing::Finished(_)) && !run.runs();
    runs.iter().zip(alone).filter(|(run, stands)| !is_over(run, stands)).count()
}

/// A job runs once for each template, and whenever somebody asks for it.
fn job(
    desired: &DesiredService,
    runs: &[Run<'_>],
    alone: &[Standing],
    record: Option<&JobRecord>,
    now: DateTime<Utc>,
) -> Beginning {
    let own = || runs.iter().zip(alone).filter(|(run, _)| !run.id.is_scheduled());
    let ran = own().max_by_key(|(run, _)| run.id).is_some_and(|(run, stands)| {
        let is_replaced = matches!(stands, Standing::Finished(record) if record.end == RunEnd::Replaced);
        run.is_made_from(desired) && !is_replaced && *stands != Standing::Ending(RunEnd::Replaced)
    });
    let last = runs.iter().map(|run| run.id).max();
    let asked = triggered(runs, record);
    let active = going_on(runs, alone);
    match (ran, asked) {
        (false, asked) => Beginning::InPlaceOf(asked.unwrap_or_else(|| RunId::after(last, now))),
        (true, None) => Beginning::None,
        (true, Some(asked)) => match desired.spec.job().overlap() {
            Overlap::Replace => Beginning::InPlaceOf(asked),
            Overlap::Forbid if active == 0 => Beginning::Run(asked),
            Overlap::Allow if active < RUNS_AT_ONCE => Beginning::Run(asked),
            Overlap::Forbid | Overlap::Allow => Beginning::None,
        },
    }
}

/// A cron service runs when its schedule says so, and whenever somebody asks for it.
fn cron(
    desired: &DesiredService,
    runs: &[Run<'_>],
    alone: &[Standing],
    record: Option<&JobRecord>,
    (done_until, now): (DateTime<Utc>, DateTime<Utc>),
) -> Beginning {
    let known = |at: &DateTime<Utc>| runs.iter().any(|run| run.id == RunId::scheduled(*at));
    let due = Schedule::of(&desired.spec).and_then(|schedule| schedule.due(done_until, now));
    let due = due.filter(|at| !known(at));
    let asked = triggered(runs, record);
    let Some(id) = asked.or_else(|| due.map(RunId::scheduled)) else { return Beginning::None };
    let active = going_on(runs, alone);
    // Of a run that can't be seen now it is not known whether it went on at that time: it is decided once that is.
    let is_open = runs.iter().zip(alone).any(|(run, stands)| run.is_hidden && !matches!(stands, Standing::Finished(_)));
    let left_out = || due.filter(|_| !is_open).map_or(Beginning::None, Beginning::LeftOut);
    match desired.spec.job().overlap() {
        Overlap::Replace => Beginning::InPlaceOf(id),
        Overlap::Forbid if active == 0 => Beginning::Run(id),
        Overlap::Allow if active < RUNS_AT_ONCE => Beginning::Run(id),
        Overlap::Forbid | Overlap::Allow => left_out(),
    }
}
