//! Keeps the records of stops in the database.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::apply::blocking;
use super::open::local;
use crate::runtime::{ErrorKind, Result, RuntimeError, StopRecord, StopRecords};
use crate::spec::RuntimeKind;
use crate::store::{Store, StoreError};

/// Records of stops in a database.
pub struct StoredStops {
    /// The database.
    pub store: Arc<Store>,
    /// Whether it is only looked at: what another process does is its own to record.
    pub read_only: bool,
}

#[async_trait]
impl StopRecords for StoredStops {
    async fn all(&self, runtime: RuntimeKind) -> Result<Vec<StopRecord>> {
        let read_only = self.read_only;
        self.ask(move |store| {
            if !read_only {
                store.drop_unreadable_stops(runtime)?;
            }
            store.stops(runtime)
        })
        .await
    }

    async fn keep(&self, record: StopRecord) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.ask(move |store| store.record_stop(&record)).await
    }

    async fn seen(&self, runtime: RuntimeKind) -> Result<Option<DateTime<Utc>>> {
        self.ask(move |store| store.seen(runtime)).await
    }

    async fn note_seen(&self, runtime: RuntimeKind, at: DateTime<Utc>) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.ask(move |store| store.note_seen(runtime, at)).await
    }

    async fn forget(&self, record: StopRecord) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.ask(move |store| store.forget_stop(&record)).await
    }
}

impl StoredStops {
    async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Store) -> std::result::Result<T, StoreError> + Send + 'static,
    ) -> Result<T> {
        let store = self.store.clone();
        blocking(move || call(&store).map_err(local("the state database can't be used")))
            .await
            .map_err(|error| RuntimeError::new(ErrorKind::Failed, error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StopCause;
    use crate::store::DATABASE;

    #[tokio::test]
    async fn only_who_records_drops_what_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).unwrap());
        let good = StopRecord {
            runtime: RuntimeKind::Docker,
            runtime_id: "good".to_owned(),
            cause: StopCause::Retired,
            run: None,
            over_at: chrono::DateTime::UNIX_EPOCH,
        };
        store.record_stop(&good).unwrap();
        let raw = rusqlite::Connection::open(dir.path().join(DATABASE)).unwrap();
        for (runtime, id, record) in
            [("docker", "cut", "{"), ("docker", "odd", "{\"cause\":\"?\"}"), ("sim", "cut", "{")]
        {
            raw.execute("INSERT INTO stops (runtime, id, record) VALUES (?, ?, ?)", [runtime, id, record]).unwrap();
        }
        let ids = || -> Vec<String> {
            let mut statement = raw.prepare("SELECT runtime || ' ' || id FROM stops ORDER BY 1").unwrap();
            let rows = statement.query_map([], |row| row.get(0)).unwrap();
            rows.map(|id| id.unwrap()).collect()
        };
        for (read_only, left) in [
            (true, &["docker cut", "docker good", "docker odd", "sim cut"][..]),
            (false, &["docker good", "sim cut"][..]),
        ] {
            let stops = StoredStops { store: store.clone(), read_only };
            assert_eq!(
                stops.all(RuntimeKind::Docker).await.unwrap(),
                std::slice::from_ref(&good),
                "read-only: {read_only}"
            );
            assert_eq!(ids(), left, "read-only: {read_only}");
        }
    }
}
