//! Sessions, and members of pools that somebody has had.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use rusqlite::{Connection, params};

use super::{Store, StoreError};
use crate::spec::RuntimeKind;
use crate::state::{ServiceName, Session, SessionId};

/// What is remembered of sessions.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredSessions {
    /// Every session that can be read.
    pub sessions: Vec<Session>,
    /// Members that somebody has had and that no session tells of, by runtime and its own id.
    pub spent: BTreeMap<(RuntimeKind, String), ServiceName>,
    /// Since when sessions are remembered: of members made before, nobody knows who has had them.
    pub since: DateTime<Utc>,
}

/// What is to be remembered, in place of what was about the same session or member.
#[derive(Debug, Clone, PartialEq)]
pub enum SessionNote {
    /// A session.
    Session(Box<Session>),
    /// Nothing of that session.
    Forget(SessionId),
    /// Somebody has had the member, and no session tells of it.
    Spent {
        /// Its pool.
        pool: ServiceName,
        /// Its runtime.
        runtime: RuntimeKind,
        /// The runtime's own id.
        runtime_id: String,
    },
    /// That member is gone.
    Removed {
        /// Its runtime.
        runtime: RuntimeKind,
        /// The runtime's own id.
        runtime_id: String,
    },
}

impl Store {
    /// What is remembered of sessions. One that can't be read is over: all that stays of it is that its member is spent,
    /// which is written down where `may_write`.
    pub fn sessions(&self, may_write: bool) -> Result<StoredSessions, StoreError> {
        let mut connection = self.connection();
        let mut look = || {
            let transaction = connection.transaction()?;
            let sessions = read_sessions(&transaction)?;
            let (since, spent) = (read_since(&transaction)?, read_spent(&transaction)?);
            if may_write {
                transaction.commit()?;
            }
            Ok(StoredSessions { sessions, spent, since })
        };
        look().map_err(StoreError::database("read the sessions of"))
    }

    /// Remembers all of this or, on an error, none.
    pub fn keep_sessions(&self, notes: &[SessionNote]) -> Result<(), StoreError> {
        let mut connection = self.connection();
        let mut write = || {
            let transaction = connection.transaction()?;
            for note in notes {
                write_note(&transaction, note)?;
            }
            transaction.commit()
        };
        write().map_err(StoreError::database("record a session in"))
    }
}

fn write_note(connection: &Connection, note: &SessionNote) -> rusqlite::Result<usize> {
    match note {
        SessionNote::Session(session) => {
            let sql = "INSERT OR REPLACE INTO sessions (id, deployment, service, runtime, member, record)
                       VALUES (?, ?, ?, ?, ?, ?)";
            let ServiceName { deployment, service } = &session.pool;
            let (id, runtime) = (session.id.to_string(), session.instance.runtime.as_str());
            let json = serde_json::to_string(session)
                .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
            let member = &session.instance.runtime_id;
            connection.prepare_cached(sql)?.execute(params![id, deployment, service, runtime, member, json])
        }
        SessionNote::Forget(id) => {
            connection.prepare_cached("DELETE FROM sessions WHERE id = ?")?.execute([id.to_string()])
        }
        SessionNote::Spent { pool, runtime, runtime_id } => {
            let sql = "INSERT OR REPLACE INTO spent (runtime, member, deployment, service) VALUES (?, ?, ?, ?)";
            let ServiceName { deployment, service } = pool;
            connection.prepare_cached(sql)?.execute(params![runtime.as_str(), runtime_id, deployment, service])
        }
        SessionNote::Removed { runtime, runtime_id } => connection
            .prepare_cached("DELETE FROM spent WHERE runtime = ? AND member = ?")?
            .execute(params![runtime.as_str(), runtime_id]),
    }
}

fn read_since(connection: &Connection) -> rusqlite::Result<DateTime<Utc>> {
    let since: String = connection.query_row("SELECT began_at FROM session_records", [], |row| row.get(0))?;
    // What can't be read counts as now, so that nothing that is there is handed out.
    Ok(since.parse().unwrap_or_else(|_| Utc::now()))
}

fn read_spent(connection: &Connection) -> rusqlite::Result<BTreeMap<(RuntimeKind, String), ServiceName>> {
    let mut spent = BTreeMap::new();
    let mut statement = connection.prepare_cached("SELECT deployment, service, runtime, member FROM spent")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let pool = ServiceName { deployment: row.get(0)?, service: row.get(1)? };
        if let Some(runtime) = runtime(&row.get::<_, String>(2)?) {
            spent.insert((runtime, row.get(3)?), pool);
        }
    }
    Ok(spent)
}

/// Reads the sessions, and writes down that the members of those that can't be read are spent, in their place.
fn read_sessions(connection: &Connection) -> rusqlite::Result<Vec<Session>> {
    let (mut sessions, mut unreadable) = (Vec::new(), Vec::new());
    let sql = "SELECT deployment, service, runtime, member, record, id FROM sessions";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        match serde_json::from_str(&row.get::<_, String>(4)?) {
            Ok(session) => sessions.push(session),
            Err(error) => {
                tracing::warn!(%error, "a session can't be read and is over; its sandbox is removed");
                let pool = ServiceName { deployment: row.get(0)?, service: row.get(1)? };
                let runtime = runtime(&row.get::<_, String>(2)?);
                unreadable.push((row.get::<_, String>(5)?, runtime, row.get(3)?, pool));
            }
        }
    }
    for (id, runtime, runtime_id, pool) in unreadable {
        connection.execute("DELETE FROM sessions WHERE id = ?", [id])?;
        if let Some(runtime) = runtime {
            write_note(connection, &SessionNote::Spent { pool, runtime, runtime_id })?;
        }
    }
    Ok(sessions)
}

fn runtime(name: &str) -> Option<RuntimeKind> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::state::{InstanceId, InstanceRef, LateMount, SECRET_BYTES, SessionState, secrets};

    fn session(number: u8) -> Session {
        let (id, token) = secrets(&[number; SECRET_BYTES]);
        let pool = ServiceName { deployment: "demo".to_owned(), service: "box".to_owned() };
        let instance = InstanceId {
            deployment: pool.deployment.clone(),
            service: pool.service.clone(),
            slot: number.into(),
            revision: "v1-0123456789abcdef".parse().unwrap(),
            attempt: 0,
            run: None,
        };
        let runtime_id = instance.runtime_name();
        Session {
            id,
            pool,
            instance: InstanceRef { id: instance, runtime: RuntimeKind::Sandbox, runtime_id },
            client: "agent".to_owned(),
            token: token.digest(),
            state: SessionState::Active,
            created_at: DateTime::UNIX_EPOCH + TimeDelta::nanoseconds(1),
            last_active_at: DateTime::UNIX_EPOCH,
            warm: true,
            elapsed_ms: 0.75,
            answered: true,
            made_ms: 2.0,
            env: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
            labels: BTreeMap::new(),
            mounts: vec![LateMount { source: "/srv".to_owned(), target: "/data".to_owned(), readonly: true }],
            sandbox: None,
            removed: false,
        }
    }

    fn spent(number: u32) -> (SessionNote, SessionNote) {
        let (runtime, runtime_id) = (RuntimeKind::Sandbox, number.to_string());
        let pool = session(0).pool;
        let note = SessionNote::Spent { pool, runtime, runtime_id: runtime_id.clone() };
        (note, SessionNote::Removed { runtime, runtime_id })
    }

    #[test]
    fn sessions_and_spent_members_are_read_back_until_they_are_forgotten() {
        let store = Store::in_memory().unwrap();
        assert_eq!(store.sessions(true).unwrap().sessions, []);
        let (one, other) = (session(1), session(2));
        let detached = Session { state: SessionState::Detached, ..one.clone() };
        let note = |session: &Session| SessionNote::Session(Box::new(session.clone()));
        let ((had, gone), (kept, _)) = (spent(7), spent(8));
        store.keep_sessions(&[note(&one), note(&other), had, kept]).unwrap();
        store.keep_sessions(&[note(&detached), SessionNote::Forget(other.id), gone]).unwrap();
        let stored = store.sessions(true).unwrap();
        let left = BTreeMap::from([((RuntimeKind::Sandbox, "8".to_owned()), one.pool)]);
        assert_eq!((stored.sessions, stored.spent), (vec![detached], left));
        assert!(Utc::now() - stored.since < TimeDelta::minutes(1), "{}", stored.since);
    }

    #[test]
    fn the_member_of_a_session_that_cannot_be_read_is_spent() {
        let store = Store::in_memory().unwrap();
        let one = session(1);
        store.keep_sessions(&[SessionNote::Session(Box::new(one.clone()))]).unwrap();
        store.connection().execute("UPDATE sessions SET record = '{'", []).unwrap();
        let member = (RuntimeKind::Sandbox, one.instance.runtime_id);
        for may_write in [false, true] {
            let stored = store.sessions(may_write).unwrap();
            let spent = BTreeMap::from([(member.clone(), one.pool.clone())]);
            assert_eq!((stored.sessions, stored.spent), (Vec::new(), spent));
        }
        let (runtime, runtime_id) = member;
        store.keep_sessions(&[SessionNote::Removed { runtime, runtime_id }]).unwrap();
        assert_eq!(store.sessions(true).unwrap().spent, BTreeMap::new(), "it went with its member");
    }

    #[test]
    fn no_token_is_written() {
        let store = Store::in_memory().unwrap();
        let (_, token) = secrets(&[1; SECRET_BYTES]);
        store.keep_sessions(&[SessionNote::Session(Box::new(session(1)))]).unwrap();
        let record: String = store.connection().query_row("SELECT record FROM sessions", [], |row| row.get(0)).unwrap();
        assert!(!record.contains(token.reveal()), "{record}");
    }
}
