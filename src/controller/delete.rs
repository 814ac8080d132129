//! Takes declarations back.

use super::engine::Engine;
use super::message::Command;
use super::open::local;
use super::{Applied, Change, DeleteRequest, EngineError, Mode};
use crate::store::{AppliedFile, read_applied};

impl Engine {
    /// Takes back the declarations of these deployments. Returns as soon as that counts.
    ///
    /// # Errors
    /// `Conflict` for a deployment that the watched directory declares, `NotFound` for an unknown one.
    pub async fn delete(&self, request: &DeleteRequest) -> Result<Applied, EngineError> {
        if self.inner.mode == Mode::Observe {
            return Err(EngineError::Conflict("this engine only looks".to_owned()));
        }
        let _one_at_a_time = self.inner.applying.lock().await;
        let known = read_applied(&self.inner.applied).map_err(local("the applied files can't be read"))?;
        let inventory = self.inner.store.inventory().map_err(local("the inventory can't be read"))?;
        let entry = |name: &str| inventory.iter().find(|entry| entry.name == name);
        for name in &request.deployments {
            if let Some(entry) = entry(name).filter(|entry| self.declares(&entry.source.file, name)) {
                return Err(EngineError::Conflict(format!(
                    "deployment {name} is declared in {}, which the controller watches; remove it there",
                    entry.source
                )));
            }
        }
        let mut applied = Applied::default();
        for name in &request.deployments {
            let volumes = request.volumes;
            let removed = self.ask(|reply| Command::Remove(name.clone(), volumes, reply)).await?;
            let copies = known.iter().filter(|file| file.deployments().contains(name)).cloned();
            let copies: Vec<AppliedFile> = copies.collect();
            if !removed && copies.is_empty() && entry(name).is_none() {
                return Err(EngineError::NotFound(format!("deployment {name} not found")));
            }
            for mut copy in copies {
                copy.without.insert(name.clone());
                copy.save(&self.inner.applied).map_err(local("the applied files can't be kept"))?;
            }
            if let Some(entry) =
                entry(name).filter(|entry| entry.source.file.exists() && !entry.root.starts_with(&self.inner.applied))
            {
                applied
                    .notes
                    .push(format!("{} still declares it; a controller that watches it starts it again", entry.source));
            }
            applied.results.push((name.clone(), Change::Deleted));
        }
        self.rescan().await?;
        Ok(applied)
    }

    /// Whether the watched directory declares it now.
    fn declares(&self, file: &std::path::Path, name: &str) -> bool {
        let watching = matches!(self.inner.mode, Mode::Controller { .. });
        let declared =
            watching && self.status().deployments.iter().any(|view| view.deployment == name && view.source.is_some());
        declared && self.watches(file) && file.exists()
    }
}
