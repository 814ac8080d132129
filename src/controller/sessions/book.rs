//! Keeps sessions for the next controller: read at its start, and written before anybody is told of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use tokio::sync::Notify;

use crate::controller::apply::blocking;
use crate::controller::memory::Kept;
use crate::controller::open::local;
use crate::spec::RuntimeKind;
use crate::state::{ServiceName, Session, SessionId};
use crate::store::{SessionNote, Store, StoredSessions};

/// Keeps sessions.
pub trait KeepSessions: Send + Sync {
    /// Takes a note, and whom to tell once it is written. Never waits.
    fn keep(&self, note: SessionNote, kept: Option<Kept>);
}

/// What is remembered of sessions from before, and where it is kept; nowhere when absent.
#[derive(Default)]
pub struct KeptSessions {
    /// Sessions, those that have ended among them.
    pub sessions: Vec<Session>,
    /// Members that somebody has had and that no session tells of, by runtime and its own id.
    pub spent: BTreeMap<(RuntimeKind, String), ServiceName>,
    /// Since when sessions are remembered.
    pub since: Option<DateTime<Utc>>,
    /// Where they are kept.
    pub keeper: Option<Arc<dyn KeepSessions>>,
    /// Whether another controller worked here before, of which calls may still be under way where it was killed.
    pub follows: bool,
}

impl KeptSessions {
    /// What a database holds, and who writes there.
    pub(in crate::controller) fn of(stored: StoredSessions, keeper: Option<Arc<dyn KeepSessions>>) -> Self {
        let StoredSessions { sessions, spent, since } = stored;
        Self { sessions, spent, since: Some(since), keeper, follows: false }
    }
}

/// Which session or member a note is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    Session(SessionId),
    Member(RuntimeKind, String),
}

fn about(note: &SessionNote) -> About {
    match note {
        SessionNote::Session(session) => About::Session(session.id.clone()),
        SessionNote::Forget(id) => About::Session(id.clone()),
        SessionNote::Spent { runtime, runtime_id, .. } | SessionNote::Removed { runtime, runtime_id } => {
            About::Member(*runtime, runtime_id.clone())
        }
    }
}

/// Notes on their way to the database. A later note about one thing takes the place of an earlier one, and those that wait
/// are written together, so that a burst of claims costs few writes.
#[derive(Default)]
pub struct SessionBook {
    waiting: Mutex<Waiting>,
    woken: Notify,
    /// Only one at a time writes, so that nothing older ever follows.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Waiting {
    notes: BTreeMap<About, SessionNote>,
    kept: Vec<Kept>,
}

impl KeepSessions for SessionBook {
    fn keep(&self, note: SessionNote, kept: Option<Kept>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.notes.insert(about(&note), note);
        waiting.kept.extend(kept);
        drop(waiting);
        self.woken.notify_one();
    }
}

impl SessionBook {
    /// Writes notes as they come, for ever.
    pub async fn write_on(self: Arc<Self>, store: Arc<Store>) {
        loop {
            self.woken.notified().await;
            self.write(store.clone()).await;
        }
    }

    /// Writes what waits.
    pub async fn write(&self, store: Arc<Store>) {
        let _one_at_a_time = self.writing.lock().await;
        let Waiting { notes, kept } = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        if notes.is_empty() {
            return;
        }
        let rows: Vec<SessionNote> = notes.values().cloned().collect();
        let write = move || store.keep_sessions(&rows).map_err(local("a session is not recorded"));
        let written = blocking(write).await.map_err(|error| error.to_string());
        if let Err(error) = &written {
            tracing::warn!("{error}");
            // Written with what comes next, where nothing newer takes its place.
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            for (about, note) in notes {
                waiting.notes.entry(about).or_insert(note);
            }
        }
        for kept in kept {
            // Whoever asked may have gone.
            let _ = kept.send(written.clone());
        }
    }
}
