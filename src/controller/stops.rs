//! Keeps the records of stops in the database.

use std::sync::Arc;

use async_trait::async_trait;

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
        self.ask(move |store| store.stops(runtime)).await
    }

    async fn keep(&self, record: StopRecord) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.ask(move |store| store.record_stop(&record)).await
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
