//! What an engine may do with its installation.

use super::{EngineOptions, Mode};
use crate::store::StateDir;

/// What an engine may do with its installation; decided once, when it is opened, since another process may make the
/// state directory at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It works, and makes what is missing.
    Work,
    /// It only looks.
    Look,
    /// It only looks, where nothing was ever made; it leaves no trace.
    LookAtNothing,
}

impl Access {
    /// What these options and the state directory, as it is now, allow.
    pub fn of(options: &EngineOptions) -> Self {
        match options.mode {
            Mode::Controller { .. } | Mode::OneShot | Mode::Record => Self::Work,
            Mode::Observe if StateDir::is_made(&options.state_dir) => Self::Look,
            Mode::Observe => Self::LookAtNothing,
        }
    }
}
