//! Where an engine keeps what it remembers: a rehearsal records nothing that anything else sees.

use std::path::PathBuf;

use super::access::Access;
use super::open::local;
use super::{EngineError, EngineOptions, Mode};
use crate::spec::RuntimeKind;
use crate::store::{LockGuard, StateDir, Store};

/// The records that an engine begins with, and where its own go.
#[derive(Debug, Clone)]
pub(super) struct Archive {
    dir: StateDir,
    keeping: Keeping,
}

/// What becomes of an engine's own records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeping {
    /// They are kept.
    Kept,
    /// Those of a rehearsal where nothing was ever really run are kept apart from all others: commands on sim go on where
    /// the one before ended, and the first real run begins with nothing.
    Apart,
    /// Those of a rehearsal of what really runs end with it: it begins with a copy of what is recorded, so that each one
    /// shows what would come of things as they are.
    Dropped,
}

impl Archive {
    /// Those of this state directory, for an engine with these options.
    ///
    /// # Errors
    /// `Invalid` where what the engine is to be told would have to outlast it, and is not kept; the state directory can't be
    /// used.
    pub fn of(options: &EngineOptions, access: Access, state_dir: &StateDir) -> Result<Self, EngineError> {
        let is_rehearsal = options.runtime == Some(RuntimeKind::Sim);
        let keeping = match (is_rehearsal, access) {
            (false, _) | (true, Access::LookAtNothing) => Keeping::Kept,
            (true, Access::Work | Access::Look) if state_dir.default_runtime().exists() => Keeping::Dropped,
            (true, Access::Work | Access::Look) => Keeping::Apart,
        };
        let dir = match keeping {
            Keeping::Kept | Keeping::Dropped => state_dir.clone(),
            Keeping::Apart => state_dir.rehearsal().map_err(local("the state directory can't be used"))?,
        };
        let archive = Self { dir, keeping };
        match options.mode {
            Mode::Record | Mode::OneShot => archive.check_kept()?,
            Mode::Observe | Mode::Controller { .. } => {}
        }
        Ok(archive)
    }

    /// Whether the engine's own records outlast it.
    pub fn are_kept(&self) -> bool {
        self.keeping != Keeping::Dropped
    }

    /// Whether what somebody declares or takes back outlasts the engine.
    ///
    /// # Errors
    /// `Invalid` where it does not.
    pub fn check_kept(&self) -> Result<(), EngineError> {
        if self.are_kept() {
            return Ok(());
        }
        let why = "the runtime sim is a rehearsal, and this state directory is that of services that really run: nothing \
                   that is ordered would be kept; leave --runtime (KEEL_RUNTIME) out, or name another state directory \
                   with --state-dir";
        Err(EngineError::Invalid(why.to_owned()))
    }

    /// The folder of the copies of applied files. Where nothing is kept, nothing is written into it either.
    pub fn applied(&self) -> PathBuf {
        self.dir.applied()
    }

    /// The database; whoever works holds the lock already.
    pub fn store(&self, access: Access, lock: Option<&LockGuard>) -> Result<Store, EngineError> {
        let store = match (access, lock, self.keeping) {
            (Access::LookAtNothing, None, _) => Store::in_memory(),
            // That somebody worked here before says nothing about rehearsals.
            (_, Some(_), Keeping::Apart) => Store::open(self.dir.path()),
            (_, Some(lock), Keeping::Kept) => self.dir.store(lock),
            (_, Some(_), Keeping::Dropped) | (Access::Look | Access::Work, None, _) => self.dir.look(),
        };
        store.map_err(local("the state database can't be used"))
    }
}
