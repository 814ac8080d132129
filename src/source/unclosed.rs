//! Files that somebody is writing to: what they say now is not yet what they are to say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::bounds::{MAX_UNCLOSED, UNCLOSED_MOST};

/// Files that were written to and not closed since, as far as file events tell. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(super) struct Unclosed {
    /// When each was last written to, by its real path.
    written: Arc<Mutex<BTreeMap<PathBuf, DateTime<Utc>>>>,
}

impl Unclosed {
    fn written(&self) -> MutexGuard<'_, BTreeMap<PathBuf, DateTime<Utc>>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody writes to the file.
    pub(super) fn write(&self, path: &Path, now: DateTime<Utc>) {
        let mut written = self.written();
        if written.len() >= MAX_UNCLOSED {
            written.retain(|_, at| !left(*at, now).is_zero());
        }
        if written.len() < MAX_UNCLOSED || written.contains_key(path) {
            written.insert(path.to_path_buf(), now);
        }
    }

    /// The writer is done with the file, or another file has its name.
    pub(super) fn close(&self, path: &Path) {
        self.written().remove(path);
    }

    /// Events were lost: nobody knows which files are closed.
    pub(super) fn forget(&self) {
        self.written().clear();
    }

    /// For how long the file counts as being written if nothing more is heard of it; none where it does not.
    pub(super) fn left(&self, path: &Path, now: DateTime<Utc>) -> Option<Duration> {
        let mut written = self.written();
        if written.is_empty() {
            return None;
        }
        let real = path.canonicalize().ok()?;
        let at = written.get_mut(&real)?;
        // A clock that went back starts the time again.
        *at = now.min(*at);
        Some(left(*at, now)).filter(|left| !left.is_zero())
    }
}

fn left(at: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    UNCLOSED_MOST.saturating_sub((now - at).to_std().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    const START: DateTime<Utc> = DateTime::UNIX_EPOCH;

    #[test]
    fn a_file_is_written_until_it_is_closed_and_not_for_ever() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().canonicalize().unwrap();
        let (file, link) = (base.join("a.yaml"), base.join("link.yaml"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let unclosed = Unclosed::default();
        let second = TimeDelta::seconds(1);
        assert_eq!(unclosed.left(&file, START), None);
        unclosed.write(&file, START);
        unclosed.write(&file, START + second);
        assert_eq!(unclosed.left(&link, START + second * 3), Some(UNCLOSED_MOST - Duration::from_secs(2)));
        assert_eq!(unclosed.left(&file, START + second + UNCLOSED_MOST), None);
        unclosed.write(&file, START);
        unclosed.close(&file);
        assert_eq!(unclosed.left(&file, START), None);
        unclosed.write(&file, START);
        assert_eq!(unclosed.left(&file, START - second * 3600), Some(UNCLOSED_MOST), "the clock went back");
        unclosed.forget();
        assert_eq!(unclosed.left(&file, START), None);
    }

    #[test]
    fn more_files_than_the_bound_are_not_noted_until_others_have_lapsed() {
        let base = tempfile::tempdir().unwrap();
        let file = base.path().canonicalize().unwrap().join("a.yaml");
        std::fs::write(&file, "").unwrap();
        let unclosed = Unclosed::default();
        for number in 0..MAX_UNCLOSED {
            unclosed.write(Path::new(&format!("/{number}.yaml")), START);
        }
        unclosed.write(&file, START);
        assert_eq!(unclosed.left(&file, START), None);
        let later = START + UNCLOSED_MOST;
        unclosed.write(&file, later);
        assert_eq!(unclosed.left(&file, later), Some(UNCLOSED_MOST));
    }
}
