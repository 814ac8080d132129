//! What outlives a controller: the state directory, and the SQLite file in it.
//!
//! The state directory holds the owner id, the token, the lock that makes the controller the only one, the place of its
//! socket, the `applied/` folder and `keel.db`. The database keeps the last good version of each source file, the
//! inventory of deployments that were declared, removals and stops that were asked for, rollouts, runs of jobs, sessions,
//! activity, what users ordered, events, until when ends are known, and what a stopped prune waits for. Losing it loses history and orders, never workloads: that it was lost is
//! noted in the new one ([`Reset`]), and what nothing declares is kept then. Every call is synchronous and short: call it
//! through `spawn_blocking`.

mod activity;
mod applied;
mod applied_set;
mod database;
mod dir;
mod error;
mod events;
mod inventory;
mod jobs;
mod memory;
mod migrate;
mod removals;
mod reset;
mod seen;
mod sessions;
mod socket;
mod stops;
mod token;
mod user;

pub use activity::ActivityRecords;
pub use applied::{AppliedFile, discard_applied, read_applied, save_applied, sweep_applied};
pub use database::{DATABASE, Store};
pub use dir::{Holder, Lock, LockGuard, Locked, Role, StateDir, Waiting, replace};
pub use error::StoreError;
pub use events::{Event, MAX_EVENT_MESSAGE, MAX_EVENTS};
pub use inventory::{Declared, HoldRecord, MountedFolder, RootIdentity, SourceChange, SourceFile, SourceState};
pub use jobs::JobRecords;
pub use memory::Remembered;
pub use removals::{RemovalId, RemovalRequest};
pub use reset::Reset;
pub use sessions::{SessionNote, StoredSessions};
pub use token::Token;
pub use user::User;
