//! Events: what happened, newest last, at most a fixed number of them.

use chrono::{DateTime, Utc};
use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::database::At;
use super::{Store, StoreError};

/// How many events are kept; older ones go. About 2 MB at 200 bytes each, and weeks of history on a machine that
/// sees a few hundred changes a day.
pub const MAX_EVENTS: i64 = 10_000;

/// Longest message in bytes; the rest is cut off. Runtimes are known to answer with whole HTML pages.
pub const MAX_EVENT_MESSAGE: usize = 4096;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Number in the order of recording; never reused.
    pub id: i64,
    /// When it happened.
    pub at: DateTime<Utc>,
    /// Deployment that it is about; none where it is about the installation.
    pub deployment: Option<String>,
    /// What kind of event, one word in CamelCase as kubectl shows them.
    pub kind: String,
    /// What happened, for people.
    pub message: String,
}

impl Store {
    /// Records what happened, and lets go of what is older than the newest [`MAX_EVENTS`].
    pub fn record_event(
        &self,
        at: DateTime<Utc>,
        deployment: Option<&str>,
        kind: &str,
        message: &str,
    ) -> Result<(), StoreError> {
        let mut connection = self.connection();
        let mut record = || {
            let transaction = connection.transaction()?;
            transaction
                .prepare_cached("INSERT INTO events (at, deployment, kind, message) VALUES (?, ?, ?, ?)")?
                .execute(params![At(at), deployment, kind, cut(message)])?;
            let oldest = transaction.last_insert_rowid() - MAX_EVENTS;
            transaction.prepare_cached("DELETE FROM events WHERE id <= ?")?.execute([oldest])?;
            transaction.commit()
        };
        record().map_err(StoreError::database("record an event in"))
    }

    /// The newest events of all deployments, oldest first.
    pub fn events(&self, limit: usize) -> Result<Vec<Event>, StoreError> {
        self.select_events(
            "SELECT id, at, deployment, kind, message FROM events ORDER BY id DESC LIMIT ?1",
            None,
            limit,
        )
    }

    /// The newest events of one deployment, oldest first.
    pub fn events_of(&self, deployment: &str, limit: usize) -> Result<Vec<Event>, StoreError> {
        self.select_events(
            "SELECT id, at, deployment, kind, message FROM events WHERE deployment = ?2 ORDER BY id DESC LIMIT ?1",
            Some(deployment),
            limit,
        )
    }

    fn select_events(&self, sql: &str, deployment: Option<&str>, limit: usize) -> Result<Vec<Event>, StoreError> {
        let connection = self.connection();
        let limit = i64::try_from(limit).unwrap_or(MAX_EVENTS).min(MAX_EVENTS);
        let select = || {
            let mut statement = connection.prepare_cached(sql)?;
            let read = |row: &rusqlite::Row<'_>| {
                Ok(Event {
                    id: row.get(0)?,
                    at: row.get::<_, At>(1)?.0,
                    deployment: row.get(2)?,
                    kind: row.get(3)?,
                    message: row.get(4)?,
                })
            };
            let rows = match deployment {
                Some(deployment) => statement.query_map(params![limit, deployment], read)?,
                None => statement.query_map([limit], read)?,
            };
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let mut events = select().map_err(StoreError::database("read the events of"))?;
        events.reverse();
        Ok(events)
    }
}

fn cut(message: &str) -> &str {
    let mut end = message.len().min(MAX_EVENT_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}
