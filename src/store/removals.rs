//! Removals of deployments that were asked for by name.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Row, params};

use super::{Store, StoreError};
use crate::state::Volumes;

/// Which request it was: one that is made later for the same deployment has another, and none is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemovalId(i64);

/// A removal that was asked for and is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemovalRequest {
    /// The last request for it.
    pub id: RemovalId,
    /// What is to become of named volumes.
    pub volumes: Volumes,
}

impl Store {
    /// Remembers that the removal of deployments was asked for by name, and what is to become of their named volumes:
    /// of all of them or, on an error, of none. Gives the requests, each in place of an earlier one.
    pub fn request_removals(
        &self,
        names: &BTreeSet<String>,
        volumes: Volumes,
    ) -> Result<BTreeMap<String, RemovalRequest>, StoreError> {
        let mut connection = self.connection();
        let mut write = || {
            let transaction = connection.transaction()?;
            let mut requests = BTreeMap::new();
            for name in names {
                // Volumes that were to go with it still are.
                let sql = "INSERT OR REPLACE INTO removals (name, volumes) \
                     VALUES (?1, max(?2, coalesce((SELECT volumes FROM removals WHERE name = ?1), 0))) \
                     RETURNING name, id, volumes";
                let row = params![name, volumes == Volumes::Remove];
                requests.extend([transaction.prepare_cached(sql)?.query_row(row, read)?]);
            }
            transaction.commit()?;
            Ok(requests)
        };
        write().map_err(StoreError::database("record a removal in"))
    }

    /// Forgets that a removal was asked for: it is done, or the deployment is wanted again. One that was asked for later
    /// stays.
    pub fn settle_removal(&self, id: RemovalId) -> Result<(), StoreError> {
        let settle = self.connection().execute("DELETE FROM removals WHERE id = ?", [id.0]);
        settle.map(drop).map_err(StoreError::database("settle a removal in"))
    }

    /// Deployments whose removal was asked for by name and is not done.
    pub fn removals(&self) -> Result<BTreeMap<String, RemovalRequest>, StoreError> {
        let connection = self.connection();
        let read = || -> rusqlite::Result<_> {
            let mut statement = connection.prepare_cached("SELECT name, id, volumes FROM removals")?;
            statement.query_map([], read)?.collect()
        };
        read().map_err(StoreError::database("read the removals of"))
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<(String, RemovalRequest)> {
    let volumes = if row.get(2)? { Volumes::Remove } else { Volumes::Keep };
    Ok((row.get(0)?, RemovalRequest { id: RemovalId(row.get(1)?), volumes }))
}
