//! Until when the ends of instances are known, for runtimes that do not say who ended them.

use chrono::{DateTime, Utc};
use rusqlite::{OptionalExtension, params};

use super::{Store, StoreError};
use crate::spec::RuntimeKind;

impl Store {
    /// Until when the ends of a runtime's instances are known. One that can't be read is as good as none.
    pub fn seen(&self, runtime: RuntimeKind) -> Result<Option<DateTime<Utc>>, StoreError> {
        let connection = self.connection();
        let read = || -> rusqlite::Result<Option<String>> {
            let mut statement = connection.prepare_cached("SELECT at FROM seen WHERE runtime = ?")?;
            statement.query_row([runtime.as_str()], |row| row.get(0)).optional()
        };
        let at = read().map_err(StoreError::database("read what was seen from"))?;
        Ok(at.and_then(|at| at.parse().ok()))
    }

    /// Notes until when the ends of a runtime's instances are known, in place of an earlier note.
    pub fn note_seen(&self, runtime: RuntimeKind, at: DateTime<Utc>) -> Result<(), StoreError> {
        let connection = self.connection();
        let sql = "INSERT OR REPLACE INTO seen (runtime, at) VALUES (?, ?)";
        let write = || connection.prepare_cached(sql)?.execute(params![runtime.as_str(), at.to_rfc3339()]).map(drop);
        write().map_err(StoreError::database("note what was seen in"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_last_is_read_back_by_runtime_to_the_nanosecond() {
        let store = Store::in_memory().unwrap();
        let at = |nanos| DateTime::from_timestamp(1_800_000_000, nanos).unwrap();
        store.note_seen(RuntimeKind::Docker, at(1)).unwrap();
        store.note_seen(RuntimeKind::Docker, at(123_456_789)).unwrap();
        assert_eq!(store.seen(RuntimeKind::Docker).unwrap(), Some(at(123_456_789)));
        assert_eq!(store.seen(RuntimeKind::Sim).unwrap(), None);
        store.connection().execute("UPDATE seen SET at = 'soon'", []).unwrap();
        assert_eq!(store.seen(RuntimeKind::Docker).unwrap(), None);
    }
}
