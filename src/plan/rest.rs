//! Slots in which nothing is to serve for now.

use super::diff::exit_of;
use super::restart::{AfterExit, after_exit};
use super::{Input, Wait};
use crate::state::{DesiredService, Instance};

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

/// Why nothing is to serve in a slot of the service, of which this is the newest instance; none where something is.
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
