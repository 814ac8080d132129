//! Stops that were asked for, for runtimes that don't keep the cause with the instance.

use rusqlite::{Connection, params};

use super::{Store, StoreError};
use crate::spec::RuntimeKind;
use crate::state::StopRecord;

impl Store {
    /// The records of one runtime, by instance. One that can't be read is as good as none, and no reason to leave a
    /// runtime alone.
    pub fn stops(&self, runtime: RuntimeKind) -> Result<Vec<StopRecord>, StoreError> {
        let rows = stored(&self.connection(), runtime).map_err(StoreError::database("read the stops of"))?;
        Ok(rows.into_iter().filter_map(|row| row.read().ok()).collect())
    }

    /// Removes the records of one runtime that can't be read: no instance is known to go with which they would go.
    pub fn drop_unreadable_stops(&self, runtime: RuntimeKind) -> Result<(), StoreError> {
        let connection = self.connection();
        let rows = stored(&connection, runtime).map_err(StoreError::database("read the stops of"))?;
        for row in &rows {
            let Err(error) = row.read() else { continue };
            tracing::warn!(
                %runtime, runtime_id = row.id, %error,
                "the record of a stop can't be read and is dropped; if the instance ended by that stop, it looks like a crash"
            );
            let sql = "DELETE FROM stops WHERE runtime = ? AND id = ? AND record = ?";
            let delete = || connection.prepare_cached(sql)?.execute(params![runtime.as_str(), row.id, row.record]);
            delete().map_err(StoreError::database("drop a stop in"))?;
        }
        Ok(())
    }

    /// Keeps a record in place of an earlier one of the same instance.
    pub fn record_stop(&self, record: &StopRecord) -> Result<(), StoreError> {
        let sql = "INSERT OR REPLACE INTO stops (runtime, id, record) VALUES (?, ?, ?)";
        let connection = self.connection();
        let write = || {
            let row = params![record.runtime.as_str(), record.runtime_id, json(record)?];
            connection.prepare_cached(sql)?.execute(row).map(drop)
        };
        write().map_err(StoreError::database("record a stop in"))
    }

    /// Forgets this record; a later one of the same instance stays. Repeating it changes nothing.
    pub fn forget_stop(&self, record: &StopRecord) -> Result<(), StoreError> {
        let sql = "DELETE FROM stops WHERE runtime = ? AND id = ? AND record = ?";
        let connection = self.connection();
        let write = || {
            let row = params![record.runtime.as_str(), record.runtime_id, json(record)?];
            connection.prepare_cached(sql)?.execute(row).map(drop)
        };
        write().map_err(StoreError::database("forget a stop in"))
    }
}

/// A record as it is stored, with the runtime's own id of its instance.
struct Row {
    id: String,
    record: String,
}

impl Row {
    fn read(&self) -> serde_json::Result<StopRecord> {
        serde_json::from_str(&self.record)
    }
}

fn stored(connection: &Connection, runtime: RuntimeKind) -> rusqlite::Result<Vec<Row>> {
    let mut statement = connection.prepare_cached("SELECT id, record FROM stops WHERE runtime = ? ORDER BY id")?;
    let rows = statement.query_map([runtime.as_str()], |row| Ok(Row { id: row.get(0)?, record: row.get(1)? }))?;
    rows.collect()
}

fn json(record: &StopRecord) -> rusqlite::Result<String> {
    serde_json::to_string(record).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}
