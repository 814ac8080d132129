//! How much is read at most, and how long is waited.

use std::time::Duration;

/// Most spec files of one root. Ten thousand deployments are beyond what one machine runs; a root with more is
/// somebody's home directory.
pub const MAX_FILES: usize = 10_000;

/// Most directory entries that are looked at in one root, spec files or not: bounds a scan of a wrong directory
/// (a checkout with its dependencies) to about a second.
pub const MAX_ENTRIES: usize = 100_000;

/// Deepest directory below a root. Trees that people keep have fewer than ten levels.
pub const MAX_DEPTH: usize = 32;

/// Most bytes of all spec files of one root: 64 files of the largest size that is read. Parsed, they take a few
/// hundred megabytes at worst.
pub const MAX_TOTAL_BYTES: u64 = 64 << 20;

/// How long what was declared must be away, seen in every scan meanwhile, before it counts as gone. An editor or a shell
/// that deletes and creates, or truncates and writes, takes milliseconds between the two, a copy over a slow network a
/// second.
pub const LOSS_SETTLE: Duration = Duration::from_secs(2);

/// How long after its last write a file that was not closed counts as being written. A program that writes specs pauses
/// for seconds at most; one that never closes its file, or whose close nobody told of, must not be waited for for ever.
pub(super) const UNCLOSED_MOST: Duration = Duration::from_secs(30);

/// How long after its first write a file that is written again and again without a close counts as being written: the
/// slowest copy of a spec takes minutes, and what appends to a file for ever must not keep from counting what it says, nor
/// what other files lose.
pub(super) const UNCLOSED_IN_ALL: Duration = Duration::from_secs(5 * 60);

/// Files that are known to be written at once. Of further ones, only what is lost is waited for.
pub(super) const MAX_UNCLOSED: usize = 1024;

/// How long after its last change a file is read again although its size and times are the same: two writes within
/// the resolution of a file system's times look alike. The coarsest in use is FAT with two seconds.
pub(super) const RACY: Duration = Duration::from_secs(2);

/// How often a file is read again because it changed while it was read; then the next event is waited for.
pub(super) const READ_TRIES: usize = 3;

/// Most symbolic links on the way to one file: the kernel's own limit (path_resolution(7)).
pub(super) const MAX_LINKS: usize = 40;

/// How often the roots are scanned while they can't be watched completely, or one is missing, or file systems are mounted
/// below them: the kernel tells of an unmount only when nobody else has the file system mounted.
pub(super) const POLL: Duration = Duration::from_secs(2);

/// How long a requested scan waits for files to settle. Longer than any settle time; a file that is rewritten
/// without end must not keep a command waiting.
pub(super) const RESCAN_LIMIT: Duration = Duration::from_secs(5);

/// Requests that wait for the source at once; later ones wait to be taken.
pub(super) const MAX_REQUESTS: usize = 64;

/// How often a scan follows a change of what is watched at once. A tree that grows faster than it can be watched is
/// left to its own events.
pub(super) const MAX_RESCANS: usize = 3;

/// Deployments that are missing of which a hold names that many: more make no sentence.
pub(super) const MOST_NAMED: usize = 5;

/// A loss of at most this many deployments at once is never held.
pub(super) const SMALL_LOSS: usize = 3;
