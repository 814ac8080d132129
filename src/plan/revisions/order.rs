//! What users order of a service's rollouts: undo, pause, resume, restart (kubectl's verbs and wording).

use chrono::{DateTime, Utc};

use super::history::{Declaration, KnownRevision, Outcome, Pin, Restart, RolloutHistory};
use crate::state::{DesiredService, Pause};

/// An order can't be carried out; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// The rollout is paused.
    #[error("its rollout is paused; resume it first with `keel rollout resume`")]
    Paused,
    /// It is paused already.
    #[error("its rollout is already paused")]
    AlreadyPaused,
    /// It is not paused.
    #[error("its rollout is not paused")]
    NotPaused,
    /// There is no earlier revision.
    #[error("no earlier revision is known to go back to")]
    NoHistory,
    /// There are earlier revisions, and none of them is known to work.
    #[error(
        "no earlier revision was complete and has not failed since; name one with `--to-revision` (known are {known})"
    )]
    NoneComplete {
        /// The numbers that there are.
        known: String,
    },
    /// There is no such revision.
    #[error("unable to find revision {number} in its history; known are {known}")]
    Unknown {
        /// What was asked for.
        number: u64,
        /// The numbers that there are.
        known: String,
    },
    /// That revision is to run anyway.
    #[error("revision {number} is to run already")]
    Same {
        /// Which.
        number: u64,
    },
}

/// Has an earlier revision run in place of what is declared, until something else is declared: the one with this number,
/// else the last one before that was complete and has not failed since, but for waiting in vain for what it depends on. Gives
/// its number. Asking for the declared one ends that. One that failed otherwise is only ever run again where it is asked for
/// by its number.
pub fn undo(
    history: &mut RolloutHistory,
    declared: &DesiredService,
    to: Option<u64>,
    now: DateTime<Utc>,
) -> Result<u64, OrderError> {
    if history.pause == Some(Pause::User) {
        return Err(OrderError::Paused);
    }
    let current = history.wanted(declared);
    let target = match to {
        Some(number) => history
            .revisions
            .iter()
            .find(|known| known.number == number)
            .ok_or_else(|| OrderError::Unknown { number, known: numbers(&history.revisions) })?,
        None => last_complete(history, &current)?,
    };
    let (number, revision) = (target.number, target.revision.clone());
    if current.is_made_from(&revision) {
        return Err(OrderError::Same { number });
    }
    history.restart = None;
    history.failed_order = None;
    // A failure that paused it is answered by that.
    history.pause = None;
    history.tried_anew = Some(now);
    history.pin = (!declared.is_made_from(&revision)).then(|| Pin {
        declared: Declaration::of(declared),
        from: current.revision,
        to: revision,
        since: now,
        failure: None,
        from_undo: false,
    });
    Ok(number)
}

/// The last revision besides the current one that was complete; one that fails is complete no more, unless that says nothing
/// of itself.
fn last_complete<'a>(history: &'a RolloutHistory, current: &DesiredService) -> Result<&'a KnownRevision, OrderError> {
    let earlier = || history.revisions.iter().rev().filter(|known| !known.is(&current.revision));
    let complete = earlier().find(|known| known.completed_at.is_some() || known.waited_in_vain);
    complete.ok_or_else(|| match earlier().next() {
        None => OrderError::NoHistory,
        Some(_) => OrderError::NoneComplete { known: numbers(&history.revisions) },
    })
}

fn numbers(revisions: &[KnownRevision]) -> String {
    revisions.iter().map(|known| known.number.to_string()).collect::<Vec<_>>().join(", ")
}

/// Stops replacing instances. What its own failure paused goes on by itself no more.
pub fn pause(history: &mut RolloutHistory) -> Result<(), OrderError> {
    if history.pause == Some(Pause::User) {
        return Err(OrderError::AlreadyPaused);
    }
    history.pause = Some(Pause::User);
    Ok(())
}

/// Goes on replacing instances. What failed gets all of its time anew.
pub fn resume(history: &mut RolloutHistory, now: DateTime<Utc>) -> Result<(), OrderError> {
    if history.pause.take().is_none() {
        return Err(OrderError::NotPaused);
    }
    try_again(history, now);
    try_anew(history, now);
    Ok(())
}

/// Replaces every instance by the rules of a rollout although the template is the same. Of what was rolled back because it
/// failed, the declared revision is tried again.
pub fn restart(history: &mut RolloutHistory, declared: &DesiredService, now: DateTime<Utc>) -> Result<(), OrderError> {
    if history.pause.is_some() {
        return Err(OrderError::Paused);
    }
    history.tried_anew = Some(now);
    history.failed_order = None;
    if let Some(pin) = history.pin.take_if(|pin| pin.failure.is_some())
        && !declared.is_made_from(&pin.to)
    {
        history.rollout = None;
        return Ok(());
    }
    let restart = history.restart.take();
    let base = history.wanted(declared);
    let before = restart.filter(|restart| base.is_made_from(&restart.of));
    let (of, first) = before.map_or((base.revision, 1), |before| (before.of, before.count.saturating_add(1)));
    let is_known = |count: &u32| history.revisions.iter().any(|known| known.revision == of.restarted(*count));
    let count = (first..).find(|count| !is_known(count)).unwrap_or(first);
    history.restart = Some(Restart { of, count });
    Ok(())
}

/// Forgets what failed on the way of a rollout that is not complete, and how often: it is tried anew from now on.
fn try_anew(history: &mut RolloutHistory, now: DateTime<Utc>) {
    let Some(rollout) = &mut history.rollout else { return };
    if !matches!(rollout.outcome, Outcome::Complete { .. }) {
        rollout.counts_from = Some(now);
        history.tried_anew = Some(now);
    }
}

/// Gives a rollout that has failed all of its time anew.
pub fn try_again(history: &mut RolloutHistory, now: DateTime<Utc>) {
    if let Some(rollout) = &mut history.rollout
        && matches!(rollout.outcome, Outcome::Failed { .. })
    {
        rollout.outcome = Outcome::Going;
        rollout.clock.reset(now);
    }
}
