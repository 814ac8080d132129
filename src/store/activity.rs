//! What is remembered of the use of instances.

use std::collections::BTreeMap;

use rusqlite::params;

use super::{Store, StoreError};
use crate::state::ActivityRecord;

/// What is remembered of the use of instances, by deployment.
pub type ActivityRecords = BTreeMap<String, ActivityRecord>;

impl Store {
    /// What is remembered. A record that can't be read is as good as none: what it was about counts as used now.
    pub fn activity(&self) -> Result<ActivityRecords, StoreError> {
        let connection = self.connection();
        let read = || -> rusqlite::Result<Vec<(String, String)>> {
            let mut statement = connection.prepare_cached("SELECT deployment, record FROM activity")?;
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        };
        let rows = read().map_err(StoreError::database("read the activity of"))?;
        let read = |(deployment, record): (String, String)| match serde_json::from_str(&record) {
            Ok(record) => Some((deployment, record)),
            Err(error) => {
                tracing::warn!(%deployment, %error, "what is remembered of its activity can't be read; it counts as used");
                None
            }
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }

    /// Remembers this, or forgets what was, of the instances of deployments: all of it or, on an error, none.
    pub fn record_activity(&self, records: &BTreeMap<String, Option<ActivityRecord>>) -> Result<(), StoreError> {
        let mut connection = self.connection();
        let mut write = || {
            let transaction = connection.transaction()?;
            for (deployment, record) in records {
                match record {
                    Some(record) => transaction
                        .prepare_cached("INSERT OR REPLACE INTO activity (deployment, record) VALUES (?, ?)")?
                        .execute(params![deployment, json(record)?])?,
                    None => transaction
                        .prepare_cached("DELETE FROM activity WHERE deployment = ?")?
                        .execute([deployment])?,
                };
            }
            transaction.commit()
        };
        write().map_err(StoreError::database("record activity in"))
    }
}

fn json(record: &ActivityRecord) -> rusqlite::Result<String> {
    serde_json::to_string(record).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    #[test]
    fn activity_is_remembered_by_deployment_and_what_cannot_be_read_is_left_out() {
        let store = Store::in_memory().unwrap();
        let record = ActivityRecord { seen_at: DateTime::UNIX_EPOCH, instances: Vec::new() };
        let both = BTreeMap::from([("a".to_owned(), Some(record.clone())), ("b".to_owned(), Some(record.clone()))]);
        store.record_activity(&both).unwrap();
        store.record_activity(&BTreeMap::from([("a".to_owned(), None)])).unwrap();
        store.connection().execute("INSERT INTO activity VALUES ('c', '{')", []).unwrap();
        assert_eq!(store.activity().unwrap(), BTreeMap::from([("b".to_owned(), record)]));
    }
}
