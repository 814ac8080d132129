//! Further commands inside of an instance: known by a file each, so that they end with it, whoever started them.

use std::fs;
use std::io::{self, Write};

use super::layout::InstanceDir;
use super::table::ProcessKey;
use crate::runtime::files::{private_file, read_json};

/// Notes a command that is held back still. Nothing can be noted once the program has ended.
///
/// # Errors
/// `NotFound` where the program has ended; the file can't be written.
pub fn note(dir: &InstanceDir, key: &ProcessKey) -> io::Result<()> {
    // In place, as the directory goes away under whoever comes too late.
    let path = dir.commands().join(key.pid.to_string());
    let text = serde_json::to_vec(key)?;
    private_file().create(true).truncate(true).open(path)?.write_all(&text)
}

/// Forgets a command of which nothing is left.
pub fn forget(dir: &InstanceDir, key: &ProcessKey) {
    let _ = fs::remove_file(dir.commands().join(key.pid.to_string()));
}

/// The commands that were noted.
///
/// # Errors
/// The directory can't be read.
pub fn noted(dir: &InstanceDir) -> io::Result<Vec<ProcessKey>> {
    let mut found = Vec::new();
    for folder in [dir.commands(), dir.last_commands()] {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            // One that is being written names a command that does not run yet, and never will.
            found.extend(read_json::<ProcessKey>(&entry?.path()).ok().flatten());
        }
    }
    Ok(found)
}

/// Lets commands be noted for a run that begins.
///
/// # Errors
/// The directory can't be made.
pub fn open(dir: &InstanceDir) -> io::Result<()> {
    for folder in [dir.commands(), dir.last_commands()] {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    crate::runtime::files::make_private(&dir.commands())
}

/// Lets no further command be noted, since the program has ended.
///
/// # Errors
/// The directory can't be moved.
pub fn close(dir: &InstanceDir) -> io::Result<()> {
    match fs::rename(dir.commands(), dir.last_commands()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_the_end_is_refused_and_what_came_before_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let dir = InstanceDir(folder.path().to_owned());
        let key = |pid| ProcessKey { pid, started: "then".to_owned() };
        assert_eq!(note(&dir, &key(1)).unwrap_err().kind(), io::ErrorKind::NotFound, "it never ran");
        open(&dir).unwrap();
        note(&dir, &key(1)).unwrap();
        note(&dir, &key(2)).unwrap();
        forget(&dir, &key(1));
        assert_eq!(noted(&dir).unwrap(), [key(2)]);
        close(&dir).unwrap();
        assert_eq!(note(&dir, &key(3)).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(noted(&dir).unwrap(), [key(2)]);
        open(&dir).unwrap();
        assert_eq!(noted(&dir).unwrap(), []);
    }
}
