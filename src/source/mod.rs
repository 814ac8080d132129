//! Where specs come from: directories that are watched, and what of them counts at each moment.
//!
//! A scan lists the roots, reads what changed and compares that with what was there before; its result is a
//! [`SpecSnapshot`]. Nothing else has meaning: a file event only says that a scan is due, and a scan without any
//! event follows every so often. So every way of saving a file (write in place, rename over, delete and create,
//! retarget of a symbolic link) comes to the same thing.
//!
//! What is good replaces what was there before, at once; what is broken, unreadable or still being written leaves it as it
//! was. What is gone counts as gone when it stayed away for [`LOSS_SETTLE`], unless so much is gone at once that a mistake
//! is likelier (see [`Hold`]). All of that survives a restart, since the last good versions and the inventory of
//! deployments are in the [`Store`].
//!
//! [`Store`]: crate::store::Store

mod bounds;
mod directory;
mod find;
mod findings;
mod gate;
mod handover;
mod known;
mod list;
mod lookout;
mod mounts;
mod read;
mod roots;
mod scan;
mod settle;
mod snapshot;
mod trace;
mod unclosed;
mod verdict;
mod watcher;

pub use bounds::{LOSS_SETTLE, MAX_DEPTH, MAX_ENTRIES, MAX_FILES, MAX_TOTAL_BYTES};
pub use directory::{DirectorySource, SourceHandle, SourceStopped};
pub use find::{Found, find};
pub use handover::hand_over;
pub use read::read_now;
pub use roots::last_roots;
pub use scan::{Recording, Scanned, Scanner, SourceError};
pub use snapshot::{
    CountedFile, Deleted, Effect, FileProblem, Hold, NamedRuntimes, Records, Removed, Root, RootKind, SourceOptions,
    SpecSnapshot, Unwatched,
};
