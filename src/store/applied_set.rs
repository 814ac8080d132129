//! Several copies of applied files changed in one step: whoever reads them sees all of it or nothing of it, whenever the
//! writer was killed.
//!
//! A writer notes the whole change in one file first; with that in place the change is made. Then it changes copy after
//! copy, and takes the note away. Readers wait while it does so, and put what the note of a writer that was cut off says in
//! the place of what they find.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::applied::{AppliedFile, remove};
use super::dir::replace;

/// Name of the note in the directory of the copies.
const NOTE: &str = "change";
/// Name of the file that a writer locks for itself, and readers together.
const LOCK: &str = "lock";

/// A change of several copies.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Change {
    /// What becomes of each copy, by its name: none where it goes.
    pub copies: BTreeMap<String, Option<AppliedFile>>,
}

impl Change {
    /// The change that saves these copies; of two of one file, the last one counts.
    pub fn saving(copies: &[AppliedFile]) -> Self {
        let saved = |copy: &AppliedFile| {
            let counts = !copy.deployments().is_empty();
            (copy.copy_name(), counts.then(|| copy.clone()))
        };
        Self { copies: copies.iter().map(saved).collect() }
    }

    /// Makes the change: all of it or, on an error, nothing.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn make(&self, dir: &Path) -> std::io::Result<()> {
        let _lock = lock(dir)?;
        finish(dir)?;
        let mut before = Self::default();
        for name in self.copies.keys() {
            before.copies.insert(name.clone(), read(&dir.join(name))?);
        }
        if self.copies.len() > 1 {
            replace(&dir.join(NOTE), &serde_json::to_vec(self)?)?;
        }
        let done = self.carry_out(dir);
        if done.is_err()
            && let Err(error) = before.carry_out(dir)
        {
            tracing::warn!("{} stays as it was to become: {error}", dir.display());
        }
        remove(&dir.join(NOTE))?;
        done
    }

    fn carry_out(&self, dir: &Path) -> std::io::Result<()> {
        let mut result = Ok(());
        for (name, copy) in &self.copies {
            let path = dir.join(name);
            result = result.and_then(|()| match copy {
                Some(copy) => replace(&path, &serde_json::to_vec_pretty(copy)?),
                None => remove(&path),
            });
        }
        result
    }
}

/// Finishes the change of a writer that was cut off.
///
/// # Errors
/// The directory can't be read or written.
pub(super) fn finish_change(dir: &Path) -> std::io::Result<()> {
    let _lock = lock(dir)?;
    finish(dir)
}

fn finish(dir: &Path) -> std::io::Result<()> {
    if let Some(change) = noted(dir)? {
        change.carry_out(dir)?;
        remove(&dir.join(NOTE))?;
    }
    Ok(())
}

/// Reads the copies while nobody changes them: `read` gives what is there, by name, and what the change of a writer that
/// was cut off says goes in its place.
///
/// # Errors
/// Those of `read`; the directory can't be read.
pub(super) fn read_whole(
    dir: &Path,
    read: impl FnOnce() -> std::io::Result<BTreeMap<String, AppliedFile>>,
) -> std::io::Result<BTreeMap<String, AppliedFile>> {
    let _lock = match File::open(dir.join(LOCK)) {
        // Nobody has changed anything yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        file => {
            let file = file?;
            file.lock_shared()?;
            Some(file)
        }
    };
    let mut copies = read()?;
    for (name, copy) in noted(dir)?.unwrap_or_default().copies {
        match copy {
            Some(copy) => copies.insert(name, copy),
            None => copies.remove(&name),
        };
    }
    Ok(copies)
}

fn noted(dir: &Path) -> std::io::Result<Option<Change>> {
    read(&dir.join(NOTE))
}

fn read<T: serde::de::DeserializeOwned>(path: &PathBuf) -> std::io::Result<Option<T>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => Ok(Some(serde_json::from_slice(&read?)?)),
    }
}

/// Held by one writer, while nobody reads.
fn lock(dir: &Path) -> std::io::Result<File> {
    let path = dir.join(LOCK);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
    file.lock()?;
    Ok(file)
}
