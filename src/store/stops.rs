//! Stops that were asked for, for runtimes that don't keep the cause with the instance.

use rusqlite::params;

use super::{Store, StoreError};
use crate::spec::RuntimeKind;
use crate::state::StopRecord;

impl Store {
    /// The records of one runtime, by instance.
    pub fn stops(&self, runtime: RuntimeKind) -> Result<Vec<StopRecord>, StoreError> {
        let connection = self.connection();
        let read = || -> rusqlite::Result<Vec<StopRecord>> {
            let mut statement = connection.prepare_cached("SELECT record FROM stops WHERE runtime = ? ORDER BY id")?;
            let rows = statement.query_map([runtime.as_str()], |row| row.get::<_, String>(0))?;
            let texts = rows.collect::<rusqlite::Result<Vec<String>>>()?;
            // One that can't be read is as good as none, and no reason to leave a runtime alone; the next stop of the
            // same instance replaces it.
            Ok(texts.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())
        };
        read().map_err(StoreError::database("read the stops of"))
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

fn json(record: &StopRecord) -> rusqlite::Result<String> {
    serde_json::to_string(record).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}
