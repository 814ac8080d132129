//! Several copies of applied files changed in one step: whoever reads them sees all of it or nothing of it, whenever the
//! writer was killed.
//!
//! A writer notes the whole change in one file first; with that in place the change is made. Then it changes copy after
//! copy, and takes the note away. Readers wait while it does so, and put what the note of a writer that was cut off says in
//! the place of what they find.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::applied::{AppliedFile, remove};
use super::dir::{Beside, replace, sync_parent};

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

    /// Makes the change: all of it or, on an error, nothing. What could still fail is done before it is noted; with the note
    /// in place it is made, whatever becomes of the writer.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn make(&self, dir: &Path) -> std::io::Result<()> {
        let _lock = lock(dir)?;
        finish(dir)?;
        let staged = self.stage(dir)?;
        if self.copies.len() > 1 {
            replace(&dir.join(NOTE), &serde_json::to_vec(self)?)?;
        } else {
            return self.place(dir, staged);
        }
        if let Err(error) = self.place(dir, staged).and_then(|()| remove(&dir.join(NOTE))) {
            tracing::warn!("a change of {} is noted, and finished by the next command: {error}", dir.display());
        }
        Ok(())
    }

    /// Writes every copy beside its place. What was written goes with what this gives.
    fn stage(&self, dir: &Path) -> std::io::Result<Vec<Beside>> {
        let write = |(name, copy): (&String, &AppliedFile)| {
            let place = dir.join(name);
            if place.is_dir() {
                return Err(std::io::Error::other(format!("{} is a directory; remove it", place.display())));
            }
            Beside::write(&place, &serde_json::to_vec_pretty(copy)?)
        };
        self.copies.iter().filter_map(|(name, copy)| Some((name, copy.as_ref()?))).map(write).collect()
    }

    fn place(&self, dir: &Path, staged: Vec<Beside>) -> std::io::Result<()> {
        staged.into_iter().try_for_each(Beside::place)?;
        let gone = self.copies.iter().filter(|(_, copy)| copy.is_none());
        gone.into_iter().try_for_each(|(name, _)| remove(&dir.join(name)))?;
        sync_parent(&dir.join(NOTE))
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
        let staged = change.stage(dir)?;
        change.place(dir, staged)?;
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

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> std::io::Result<Option<T>> {
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
