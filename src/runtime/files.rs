//! Files of a runtime: for this user alone, and replaced atomically.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest record that is read, in bytes: arguments and environment of a program are at most 2 MiB in practice
/// (a quarter of the default stack limit, execve(2)), and escaping at most doubles them.
const LARGEST_RECORD: u64 = 4 << 20;

/// Size that nearly all records stay below, in bytes: room for them is made at once.
const USUAL_RECORD: usize = 4 << 10;

/// Makes a directory, and those above it, for this user alone. One that exists is left as it is.
///
/// # Errors
/// It can't be made.
pub fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Options of a file for this user alone that is never reached through a link.
pub fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    options
}

/// Whether a written file must survive a loss of power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It must.
    Synced,
    /// It need not: after a reboot nothing in it is true any more.
    Boot,
}

/// Numbers the writes of this process.
static WRITES: AtomicU64 = AtomicU64::new(0);

/// Writes a value as JSON so that readers see all of it or what was there before.
///
/// # Errors
/// It can't be written; what was there before stays.
pub fn write_json(path: &Path, value: &impl Serialize, durability: Durability) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"));
    };
    // Two writers, in one process or in two, must not share the unfinished file.
    let number = WRITES.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!(".{name}.{}.{number}", std::process::id()));
    let bytes = serde_json::to_vec(value)?;
    let mut file = private_file().create(true).truncate(true).open(&temporary)?;
    file.write_all(&bytes)?;
    if durability == Durability::Synced {
        file.sync_data()?;
    }
    fs::rename(&temporary, path)?;
    if durability == Durability::Synced {
        File::open(folder)?.sync_data()?;
    }
    Ok(())
}

/// Reads a JSON file of this runtime; `None` when there is none.
///
/// # Errors
/// It can't be read, is larger than any record, or is not what was written.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    use std::io::Read;
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::with_capacity(USUAL_RECORD);
    file.take(LARGEST_RECORD + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_RECORD {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is larger than any record"));
    }
    Ok(Some(serde_json::from_slice(&bytes)?))
}

/// Whether reading a JSON file failed for what is in it, as after a loss of power: trying again does not help.
pub fn is_broken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        || error.get_ref().is_some_and(|cause| cause.is::<serde_json::Error>())
}

/// Whether a name is that of a directory entry, and leads nowhere else.
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0'])
}
