//! What stands for a slot, and slots in which nothing is to serve for now.

use super::diff::exit_of;
use super::restart::{AfterExit, after_exit};
use super::{Input, Wait};
use crate::state::{DesiredService, Instance, Phase};

/// The one of the instances of a slot that stands for it: one that has not ended before one that has, of what is to run, where
/// that is known, before others, and of these the newest. A version that failed leaves its dead beside what it was rolled back
/// to.
pub fn stands_for_slot<'a>(
    of_slot: impl Iterator<Item = &'a Instance>,
    wanted: Option<&DesiredService>,
) -> Option<&'a Instance> {
    of_slot.max_by_key(|one| {
        let is_wanted = wanted.is_some_and(|wanted| wanted.is_made_from(&one.id.revision));
        (!matches!(one.phase, Phase::Exited(_)), is_wanted, one.recency())
    })
}

/// Why nothing is to serve in a slot for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// Somebody asked for that (`keel stop`).
    Stopped,
    /// Nobody uses what was in it, which was stopped or frozen for that until somebody does.
    Idle,
    /// What was in it ended by itself, and well, or at its maximum age, and nothing follows.
    Over,
}

/// Why nothing is to serve in a slot of the service, for which this instance stands; none where something is.
pub(super) fn rest(input: &Input<'_>, service: &DesiredService, slot: u32, newest: Option<&Instance>) -> Option<Rest> {
    let lives = &input.history.lives;
    if lives.is_stopped(service, slot) {
        return Some(Rest::Stopped);
    }
    let newest = newest?;
    match exit_of(newest).map(|exit| after_exit(newest, exit, service)) {
        Some(AfterExit::AtRest(Wait::Idle { .. })) => Some(Rest::Idle),
        Some(AfterExit::AtRest(_)) => Some(Rest::Over),
        Some(_) => None,
        None => lives.suspended_since(newest).map(|_| Rest::Idle),
    }
}
