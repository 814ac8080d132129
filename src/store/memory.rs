//! What is remembered of deployments and their services beyond what declares them: rollouts, and what users ordered.

use rusqlite::params;

use super::{Store, StoreError};

/// What is remembered of one deployment, or of one service of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// Deployment.
    pub deployment: String,
    /// Service; none where it is about the deployment as a whole.
    pub service: Option<String>,
    /// What, as JSON; whoever remembers decides on the form. None where it is forgotten.
    pub json: Option<String>,
}

impl Store {
    /// Everything that is remembered.
    pub fn memory(&self) -> Result<Vec<Remembered>, StoreError> {
        let connection = self.connection();
        let read = || -> rusqlite::Result<_> {
            let mut statement = connection.prepare_cached("SELECT deployment, service, json FROM memory")?;
            let row = |row: &rusqlite::Row<'_>| {
                let service: String = row.get(1)?;
                let service = (!service.is_empty()).then_some(service);
                Ok(Remembered { deployment: row.get(0)?, service, json: row.get(2)? })
            };
            statement.query_map([], row)?.collect()
        };
        read().map_err(StoreError::database("read the rollouts of"))
    }

    /// Remembers, or forgets, all of this or, on an error, none of it.
    pub fn remember(&self, notes: &[Remembered]) -> Result<(), StoreError> {
        let mut connection = self.connection();
        let mut write = || {
            let transaction = connection.transaction()?;
            for Remembered { deployment, service, json } in notes {
                let service = service.as_deref().unwrap_or_default();
                match json {
                    Some(json) => transaction
                        .prepare_cached("INSERT OR REPLACE INTO memory (deployment, service, json) VALUES (?, ?, ?)")?
                        .execute(params![deployment, service, json])?,
                    None => transaction
                        .prepare_cached("DELETE FROM memory WHERE deployment = ? AND service = ?")?
                        .execute(params![deployment, service])?,
                };
            }
            transaction.commit()
        };
        write().map_err(StoreError::database("record a rollout in"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Store {
        /// Lets every write fail from now on, or succeed again.
        pub(crate) fn refuse_writes(&self, refuse: bool) {
            self.connection().pragma_update(None, "query_only", refuse).unwrap();
        }
    }

    #[test]
    fn what_is_remembered_is_read_back_until_it_is_forgotten() {
        let store = Store::in_memory().unwrap();
        let note = |service: Option<&str>, json: Option<&str>| Remembered {
            deployment: "demo".to_owned(),
            service: service.map(str::to_owned),
            json: json.map(str::to_owned),
        };
        let (whole, web) = (note(None, Some("{}")), note(Some("web"), Some("[1]")));
        store.remember(&[whole.clone(), note(Some("web"), Some("[0]")), web.clone()]).unwrap();
        assert_eq!(store.memory().unwrap(), [whole, web.clone()]);
        store.remember(&[note(None, None), note(Some("gone"), None)]).unwrap();
        assert_eq!(store.memory().unwrap(), [web]);
    }
}
