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
use super::dir::{Beside, sync_parent};

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

    /// Makes the change: all of it or, on an error, nothing. What could still fail is done before it counts; from then on it
    /// is made, whatever becomes of the writer.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn make(&self, dir: &Path) -> std::io::Result<()> {
        self.make_and(dir, sync_parent)
    }

    /// The same with what makes it outlast a loss of power; where that fails, it is made all the same.
    fn make_and(&self, dir: &Path, sync: impl Fn(&Path) -> std::io::Result<()>) -> std::io::Result<()> {
        let _lock = lock(dir)?;
        finish(dir)?;
        let staged = self.stage(dir)?;
        let note = dir.join(NOTE);
        let made = if self.copies.len() > 1 {
            Beside::write(&note, &serde_json::to_vec(self)?)?.place()?;
            sync(&note).and_then(|()| self.place(dir, staged)).and_then(|()| sync(&note)).and_then(|()| remove(&note))
        } else {
            self.place(dir, staged)?;
            sync(&note)
        };
        if let Err(error) = made {
            tracing::warn!(
                "a change of {} is made, and may not outlast a loss of power before the next command: {error}",
                dir.display()
            );
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

    /// Brings every copy to its place; of a single one, an error means that nothing has changed.
    fn place(&self, dir: &Path, staged: Vec<Beside>) -> std::io::Result<()> {
        staged.into_iter().try_for_each(Beside::place)?;
        let mut gone = self.copies.iter().filter(|(_, copy)| copy.is_none());
        gone.try_for_each(|(name, _)| match std::fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        })
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
        sync_parent(&dir.join(NOTE))?;
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
    mut read: impl FnMut() -> std::io::Result<BTreeMap<String, AppliedFile>>,
) -> std::io::Result<BTreeMap<String, AppliedFile>> {
    loop {
        let lock = match File::open(dir.join(LOCK)) {
            // Nobody has changed anything yet.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            file => Some(file?),
        };
        if let Some(lock) = &lock {
            lock.lock_shared()?;
        }
        let copies = read_changed(dir, &mut read);
        // The first writer of all may have come meanwhile.
        if lock.is_some() || !dir.join(LOCK).exists() {
            return copies;
        }
    }
}

fn read_changed(
    dir: &Path,
    read: &mut impl FnMut() -> std::io::Result<BTreeMap<String, AppliedFile>>,
) -> std::io::Result<BTreeMap<String, AppliedFile>> {
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

/// Makes the file that writers and readers lock. Who can't make it, as where the disk is full, still reads: without it,
/// nobody has changed anything.
pub(super) fn make_lock(dir: &Path) {
    if let Err(error) = open_lock(dir) {
        tracing::debug!("{} can't be made: {error}", dir.join(LOCK).display());
    }
}

fn open_lock(dir: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(dir.join(LOCK))
}

/// Held by one writer, while nobody reads.
fn lock(dir: &Path) -> std::io::Result<File> {
    let file = open_lock(dir)?;
    file.lock()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::super::applied::{read_applied, save_applied};
    use super::*;

    fn copy(origin: &str, deployment: &str) -> AppliedFile {
        AppliedFile {
            origin: origin.into(),
            text: format!("version: v1\ndeployment: {deployment}\nservices: {{web: {{image: {{name: host}}}}}}\n"),
            without: Default::default(),
            default_runtimes: Default::default(),
        }
    }

    fn by_name(copies: &[AppliedFile]) -> BTreeMap<String, AppliedFile> {
        copies.iter().map(|copy| (copy.copy_name(), copy.clone())).collect()
    }

    #[test]
    fn who_began_to_read_before_the_very_first_writer_sees_all_of_its_change() {
        let dir = tempfile::tempdir().unwrap();
        let change = [copy("/a", "a"), copy("/b", "b")];
        let mut reads = 0;
        let read = read_whole(dir.path(), || {
            reads += 1;
            if reads > 1 {
                return Ok(by_name(&read_applied(dir.path())?));
            }
            save_applied(&change, dir.path())?;
            Ok(by_name(&change[..1]))
        });
        assert_eq!((read.unwrap(), reads), (by_name(&change), 2));
    }

    #[test]
    fn a_change_that_may_not_outlast_a_loss_of_power_is_made_and_no_error() {
        let (a, b) = (copy("/a", "a"), copy("/b", "b"));
        let gone =
            |copies: &[AppliedFile]| Change { copies: copies.iter().map(|one| (one.copy_name(), None)).collect() };
        let both = [a.clone(), b.clone()];
        let changes = [
            (Change::saving(&both[..1]), by_name(&both[..1])),
            (gone(&both[..1]), by_name(&[])),
            (Change::saving(&both), by_name(&both)),
            (gone(&both), by_name(&[])),
        ];
        let dir = tempfile::tempdir().unwrap();
        for (change, after) in changes {
            change.make_and(dir.path(), |_| Err(std::io::Error::other("no sync"))).unwrap();
            assert_eq!(by_name(&read_applied(dir.path()).unwrap()), after);
        }
    }

    #[test]
    fn a_change_that_can_not_be_made_changes_nothing() {
        for copies in [vec![copy("/a", "a")], vec![copy("/a", "a"), copy("/b", "b")]] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join(copies[0].copy_name())).unwrap();
            Change::saving(&copies).make(dir.path()).unwrap_err();
            std::fs::remove_dir(dir.path().join(copies[0].copy_name())).unwrap();
            assert_eq!(read_applied(dir.path()).unwrap(), []);
        }
    }
}
