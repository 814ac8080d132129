//! Reading what changed, and only that.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::bounds::{RACY, READ_TRIES};
use super::list::{Flaw, Stamp, is_gone};
use crate::spec::{MAX_FILE_SIZE, ParsedFile, parse_bytes};

/// A file's content, parsed.
#[derive(Debug, Clone)]
pub(super) struct Parsed {
    /// SHA-256 of the bytes.
    pub hash: [u8; 32],
    /// What they say.
    pub file: Arc<ParsedFile>,
}

impl Parsed {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self { hash: Self::hash(bytes), file: Arc::new(parse_bytes(bytes)) }
    }

    /// Whether there was not a single byte.
    pub(super) fn is_of_nothing(&self) -> bool {
        self.hash == Self::hash(&[])
    }

    /// Whether it declares nothing, and nothing is wrong with that: there are comments and blank lines at most.
    pub(super) fn is_bare(&self) -> bool {
        self.file.documents.is_empty() && self.file.problems.is_empty()
    }

    /// The hash that tells contents apart.
    pub(super) fn hash(bytes: &[u8]) -> [u8; 32] {
        Sha256::digest(bytes).into()
    }
}

/// Why there is no content.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The file went after it was listed.
    Gone,
    /// It can't be read.
    Bad(Flaw),
}

/// What was read last time.
#[derive(Debug, Default)]
pub(super) struct Reader {
    seen: BTreeMap<PathBuf, Seen>,
}

#[derive(Debug)]
struct Seen {
    stamp: Stamp,
    /// Whether the stamp is proof: it was old when the file was read.
    proof: bool,
    parsed: Parsed,
}

impl Reader {
    /// The content of a file; the bytes too where they are not what was read before.
    pub(super) fn read(&mut self, path: &Path, stamp: Stamp) -> Result<(Parsed, Option<Vec<u8>>), ReadError> {
        if let Some(seen) = self.seen.get(path).filter(|seen| seen.proof && seen.stamp == stamp) {
            return Ok((seen.parsed.clone(), None));
        }
        let began = SystemTime::now();
        let (bytes, stamp) = read_bytes(path)?;
        let proof = is_old(stamp, began);
        if let Some(seen) = self.seen.get_mut(path)
            && seen.parsed.hash == Parsed::hash(&bytes)
        {
            (seen.stamp, seen.proof) = (stamp, proof);
            return Ok((seen.parsed.clone(), None));
        }
        let parsed = Parsed::of(&bytes);
        self.seen.insert(path.to_path_buf(), Seen { stamp, proof, parsed: parsed.clone() });
        Ok((parsed, Some(bytes)))
    }

    /// Lets go of files that are not there any more.
    pub(super) fn retain(&mut self, keep: impl Fn(&Path) -> bool) {
        self.seen.retain(|path, _| keep(path));
    }
}

/// The content that a file has now, at most one byte more than a spec file may have; none where it can't be read. Never
/// waits for a pipe.
pub fn read_now(path: &Path) -> Option<Vec<u8>> {
    read_bytes(path).ok().map(|(bytes, _)| bytes)
}

/// The number of the file system that a directory is on; none where it can't be looked at.
pub(super) fn metadata_device(path: &Path) -> Option<u64> {
    path.metadata().ok().map(|metadata| metadata.dev())
}

/// The identity of the file system that a path is on, where it has one.
pub(super) fn file_system_id(path: &Path) -> Option<u64> {
    rustix::fs::statvfs(path).ok().map(|found| found.f_fsid).filter(|id| *id != 0)
}

/// Whether something is mounted at a path, where the system tells (Linux 5.8 and later do).
#[cfg(target_os = "linux")]
pub(super) fn is_mount_root(path: &Path) -> Option<bool> {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
    let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()).ok()?;
    let told = found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
    told.then(|| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Whether something is mounted at a path, where the system tells.
#[cfg(not(target_os = "linux"))]
pub(super) fn is_mount_root(_: &Path) -> Option<bool> {
    None
}

/// Reads a whole file, again where it changed meanwhile.
fn read_bytes(path: &Path) -> Result<(Vec<u8>, Stamp), ReadError> {
    let failed = |error: std::io::Error| {
        if is_gone(&error) { ReadError::Gone } else { ReadError::Bad(Flaw::unreadable(&error)) }
    };
    let mut tries = READ_TRIES;
    loop {
        // A pipe that took the file's place must not block.
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(nonblock).open(path).map_err(failed)?;
        let (bytes, before) = read_once(&file).map_err(failed)?;
        let after = Stamp::of(&file.metadata().map_err(failed)?);
        tries -= 1;
        if before == after || tries == 0 {
            return Ok((bytes, after));
        }
    }
}

fn read_once(file: &File) -> std::io::Result<(Vec<u8>, Stamp)> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(std::io::Error::other("it is not a file any more"));
    }
    // One byte more than is allowed: the parser then says that the file is too large.
    let mut bytes = Vec::new();
    file.take(MAX_FILE_SIZE as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes, Stamp::of(&metadata)))
}

fn is_old(stamp: Stamp, now: SystemTime) -> bool {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(now).is_ok_and(|now| now.saturating_sub(stamp.last_change()) > RACY.as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_stamp_proves_nothing_while_another_write_could_have_the_same() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stamp = Stamp::of(&file.as_file().metadata().unwrap());
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(stamp.last_change().unsigned_abs());
        assert!(!is_old(stamp, changed + RACY));
        assert!(is_old(stamp, changed + RACY + Duration::from_secs(1)));
        assert!(!is_old(stamp, changed - Duration::from_secs(60)), "a clock that went back");
    }
}
