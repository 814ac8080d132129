//! Files that somebody is writing to: what they say now is not yet what they are to say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::bounds::{MAX_UNCLOSED, UNCLOSED_IN_ALL, UNCLOSED_MOST};

/// Files that were written to and not closed since, as far as file events tell. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(super) struct Unclosed {
    /// By its real path.
    written: Arc<Mutex<BTreeMap<PathBuf, Written>>>,
}

/// When a file was written to without a close.
#[derive(Debug, Clone, Copy)]
struct Written {
    first: DateTime<Utc>,
    last: DateTime<Utc>,
}

impl Written {
    /// A clock that went back starts the time again.
    fn not_after(self, now: DateTime<Utc>) -> Self {
        Self { first: self.first.min(now), last: self.last.min(now) }
    }

    fn left(self, now: DateTime<Utc>) -> Duration {
        let since = |at: DateTime<Utc>| (now - at).to_std().unwrap_or_default();
        UNCLOSED_MOST.saturating_sub(since(self.last)).min(UNCLOSED_IN_ALL.saturating_sub(since(self.first)))
    }

    /// Whether what is written now belongs to another turn: its writer was silent for so long.
    fn is_over(self, now: DateTime<Utc>) -> bool {
        (now - self.last).to_std().unwrap_or_default() >= UNCLOSED_MOST
    }
}

impl Unclosed {
    fn written(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Written>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody writes to the file.
    pub(super) fn write(&self, path: &Path, now: DateTime<Utc>) {
        let mut written = self.written();
        if written.len() >= MAX_UNCLOSED {
            written.retain(|_, at| !at.is_over(now));
        }
        if written.len() < MAX_UNCLOSED || written.contains_key(path) {
            let before = written.get(path).map(|before| before.not_after(now)).filter(|before| !before.is_over(now));
            let first = before.map_or(now, |before| before.first);
            written.insert(path.to_path_buf(), Written { first, last: now });
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
        *at = at.not_after(now);
        Some(at.left(now)).filter(|left| !left.is_zero())
    }
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
    fn a_file_that_is_written_without_end_is_not_waited_for_without_end() {
        let base = tempfile::tempdir().unwrap();
        let file = base.path().canonicalize().unwrap().join("a.yaml");
        std::fs::write(&file, "").unwrap();
        let unclosed = Unclosed::default();
        let left = |at: u64, from: DateTime<Utc>| unclosed.left(&file, from + TimeDelta::seconds(at.cast_signed()));
        let append = |seconds: std::ops::Range<u64>, from: DateTime<Utc>| {
            seconds.for_each(|second| unclosed.write(&file, from + TimeDelta::seconds(second.cast_signed())));
        };
        let all = UNCLOSED_IN_ALL.as_secs();
        append(0..all, START);
        assert_eq!(left(all - 1, START), Some(Duration::from_secs(1)));
        append(all..all + 60, START);
        assert_eq!(left(all + 59, START), None, "further writes begin nothing");
        let later = START + TimeDelta::hours(1);
        append(0..1, later);
        assert_eq!(left(0, later), Some(UNCLOSED_MOST), "another writer, after a silence");
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
