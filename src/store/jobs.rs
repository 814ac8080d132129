//! What is remembered of jobs.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use super::{Store, StoreError};
use crate::state::JobRecord;

/// What is remembered of the jobs of every deployment: by deployment, by service.
pub type JobRecords = BTreeMap<String, BTreeMap<String, JobRecord>>;

impl Store {
    /// What is remembered of every job. A record that can't be read is as good as none.
    pub fn jobs(&self) -> Result<JobRecords, StoreError> {
        let rows = stored(&self.connection()).map_err(StoreError::database("read the jobs of"))?;
        let mut records = JobRecords::new();
        for (deployment, service, record) in rows {
            match serde_json::from_str(&record) {
                Ok(record) => drop(records.entry(deployment).or_default().insert(service, record)),
                Err(error) => tracing::warn!(
                    %deployment, %service, %error,
                    "what was remembered of a job can't be read; without an instance that tells of its run, it runs again"
                ),
            }
        }
        Ok(records)
    }

    /// Remembers this of the jobs of a deployment, by service, or nothing more: all of it or, on an error, none.
    pub fn record_jobs(
        &self,
        deployment: &str,
        changes: &BTreeMap<String, Option<JobRecord>>,
    ) -> Result<(), StoreError> {
        let mut connection = self.connection();
        let mut write = || {
            let transaction = connection.transaction()?;
            for (service, record) in changes {
                match record {
                    Some(record) => {
                        let sql = "INSERT OR REPLACE INTO jobs (deployment, service, record) VALUES (?, ?, ?)";
                        transaction.prepare_cached(sql)?.execute(params![deployment, service, json(record)?])?
                    }
                    None => {
                        let sql = "DELETE FROM jobs WHERE deployment = ? AND service = ?";
                        transaction.prepare_cached(sql)?.execute([deployment, service])?
                    }
                };
            }
            transaction.commit()
        };
        write().map_err(StoreError::database("record a job in"))
    }
}

fn stored(connection: &Connection) -> rusqlite::Result<Vec<(String, String, String)>> {
    let mut statement = connection.prepare_cached("SELECT deployment, service, record FROM jobs")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    rows.collect()
}

fn json(record: &JobRecord) -> rusqlite::Result<String> {
    serde_json::to_string(record).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::state::{RunId, ScheduleMark};

    fn record(schedule: &str) -> JobRecord {
        let mark = ScheduleMark { schedule: schedule.to_owned(), done_until: DateTime::UNIX_EPOCH };
        let triggered = vec![RunId::after(None, DateTime::UNIX_EPOCH)];
        JobRecord { triggered, schedule: Some(mark), ..JobRecord::default() }
    }

    #[test]
    fn jobs_are_remembered_by_service_and_forgotten_one_by_one() {
        let store = Store::in_memory().unwrap();
        let both = BTreeMap::from([("a".to_owned(), Some(record("1"))), ("b".to_owned(), Some(record("2")))]);
        store.record_jobs("demo", &both).unwrap();
        store.record_jobs("demo", &BTreeMap::from([("a".to_owned(), None)])).unwrap();
        store.record_jobs("demo", &BTreeMap::from([("b".to_owned(), Some(record("3")))])).unwrap();
        let left = BTreeMap::from([("b".to_owned(), record("3"))]);
        assert_eq!(store.jobs().unwrap(), BTreeMap::from([("demo".to_owned(), left)]));
    }

    #[test]
    fn a_record_that_cannot_be_read_is_as_good_as_none() {
        let store = Store::in_memory().unwrap();
        store.connection().execute("INSERT INTO jobs VALUES ('demo', 'a', '{')", []).unwrap();
        assert_eq!(store.jobs().unwrap(), JobRecords::new());
    }
}
