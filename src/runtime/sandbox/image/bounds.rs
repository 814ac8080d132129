//! Bounds of images: what is fetched, unpacked and kept. Images come from strangers, so nothing of them may take the
//! machine's memory, disk or time at will.

use std::time::Duration;

/// Largest manifest or index, in bytes: what registries and containerd accept.
pub const LARGEST_MANIFEST: u64 = 4 << 20;
/// Largest image configuration, in bytes: those of images with hundreds of steps have some hundred KiB. What is kept of it
/// has to fit a record.
pub const LARGEST_CONFIG: u64 = 2 << 20;
/// Largest answer of a token server or body of an error, in bytes.
pub const LARGEST_ANSWER: u64 = 1 << 20;
/// Most layers of an image: overlayfs stacks no more (`OVL_MAX_STACK`).
pub const MOST_LAYERS: usize = 500;
/// Deepest nesting of indexes; builders write one inside of another at most.
pub const DEEPEST_INDEX: usize = 4;

/// Largest layer, compressed, in bytes. Images with models of machine learning have layers of tens of GB.
pub const LARGEST_BLOB: u64 = 256 << 30;
/// Largest layer, unpacked, in bytes: twice the largest compressed one, as such layers hardly shrink.
pub const LARGEST_LAYER: u64 = 512 << 30;
/// Most unpacked bytes for one compressed byte. Program files shrink to a quarter, text to a tenth; deflate ends at
/// about 1000.
pub const MOST_EXPANSION: u64 = 200;
/// Unpacked bytes that no ratio is asked of: small layers of mostly zeros are common.
pub const FREE_EXPANSION: u64 = 1 << 30;
/// Most entries of a layer. The largest images in use have some 500,000 files in all.
pub const MOST_ENTRIES: u64 = 2_000_000;
/// Most bytes of names of directories that are remembered until a layer's end, where their times are set.
pub const MOST_DIRECTORY_NAMES: usize = 64 << 20;
/// Largest extended header of an entry, in bytes: that of Go's archive/tar, which Docker and containerd read with.
pub const LARGEST_EXTENSION: u64 = 1 << 20;
/// Most extended attributes of an entry. Files have a handful, and a file system holds some 64 KiB of them (xattr(7)).
pub const MOST_ATTRIBUTES: usize = 1024;
/// Most pieces of a sparse file; its map has to fit an extended header too.
pub const MOST_SEGMENTS: usize = 65_536;
/// Most bytes that a layer may have copied out of the layers below, for further names of their files: one copy of
/// each of the largest images' files.
pub const MOST_COPIED_UP: u64 = 16 << 30;
/// Longest name of an entry, in bytes: the kernel's PATH_MAX, with its end.
pub const LONGEST_NAME: usize = 4095;
/// Deepest directory of a layer: several times as deep as programs have them, and quick to walk down to.
pub const DEEPEST_DIRECTORY: usize = 500;
/// Most symbolic links on the way to one path: the kernel's own bound.
pub const MOST_LINKS: usize = 40;
/// Most entries of an image archive: two per layer, and some more.
pub const MOST_ARCHIVED: usize = 8192;

/// Layers of an image that are fetched at once: Docker's `max-concurrent-downloads`.
pub const PARALLEL_LAYERS: usize = 3;
/// Longest time for a connection to a registry.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Longest time until a registry answers, or sends the next bytes. The kubelet gives up after a minute without
/// progress.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Longest time until a registry of this machine says whether it speaks TLS.
pub const SCHEME_LIMIT: Duration = Duration::from_secs(5);
/// Most redirects of one request; registries send to their storage in one.
pub const MOST_REDIRECTS: usize = 5;
/// Most tries of a request in a row that bring nothing: where each is refused at once, six seconds with their waits.
pub const MOST_TRIES: u32 = 6;
/// Time after the first of these tries from which on none begins any more: what was left without an answer for
/// [`ANSWER_LIMIT`] is given up.
pub const TRYING: Duration = ANSWER_LIMIT;
/// Wait before the second try; it doubles from try to try.
pub const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Longest wait between two tries, also where the registry asks for more.
pub const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Bytes that a try must bring to count as progress, so that a registry that hands out a byte at a time is given up.
pub const PROGRESS: u64 = 1 << 20;
/// Pieces of a download that wait for the disk; each has at most some hundred KiB.
pub const WRITE_BACKLOG: usize = 16;
/// Longest time for one image to come, others of the same included: 40 GB at 50 Mbit/s.
pub const PULL_LIMIT: Duration = Duration::from_secs(2 * 3600);
/// How often a lock that somebody else holds is tried.
pub const LOCK_POLL: Duration = Duration::from_millis(50);
/// How often progress is told at most.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Time without use after which an image that no instance needs goes.
pub const UNUSED_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Time that an image stays in any case, so that the instance that it came for can be created: the kubelet's
/// `imageMinimumGCAge`.
pub const SHORTEST_STAY: Duration = Duration::from_secs(120);
/// Use of the disk, in percent, from which images that no instance needs go at once, the longest unused ones first:
/// the kubelet's `imageGCHighThresholdPercent`.
pub const DISK_HIGH: u64 = 85;
/// Use of the disk, in percent, at which that ends: the kubelet's `imageGCLowThresholdPercent`.
pub const DISK_LOW: u64 = 80;
/// Time that a download which was cut off waits for being resumed.
pub const PART_AGE: Duration = Duration::from_secs(24 * 3600);
