//! Takes declarations back.

use std::collections::BTreeSet;
use std::path::Path;

use super::apply::blocking;
use super::engine::Engine;
use super::message::Command;
use super::open::local;
use super::{Applied, Change, DeleteRequest, EngineError, Mode};
use crate::runtime::Volumes;
use crate::state::Target;
use crate::store::{AppliedFile, Declared, read_applied};

/// What is known of declarations before anything is taken back.
struct Known {
    copies: Vec<AppliedFile>,
    inventory: Vec<Declared>,
}

impl Known {
    fn entry(&self, name: &str) -> Option<&Declared> {
        self.inventory.iter().find(|entry| entry.name == name)
    }

    fn declares(&self, name: &str) -> bool {
        self.entry(name).is_some() || self.copies.iter().any(|copy| copy.deployments().contains(name))
    }
}

impl Engine {
    /// Takes back the declarations of these deployments: all of them or, on an error, none. Returns as soon as that
    /// counts.
    ///
    /// # Errors
    /// `Conflict` for a deployment that the watched directory declares, `NotFound` for an unknown one unless those are
    /// passed over.
    pub async fn delete(&self, request: &DeleteRequest) -> Result<Applied, EngineError> {
        if self.inner.mode == Mode::Observe {
            return Err(EngineError::Conflict("this engine only looks".to_owned()));
        }
        let _one_at_a_time = self.inner.applying.lock().await;
        let engine = self.clone();
        let known = blocking(move || engine.known()).await?;
        let mut names = BTreeSet::new();
        for name in &request.deployments {
            match self.check(name, request.volumes, &known).await {
                Err(EngineError::NotFound(_)) if request.ignore_not_found => {}
                Err(error) => return Err(error),
                Ok(()) => _ = names.insert(name.clone()),
            }
        }
        let mut copies = known.copies.clone();
        copies.retain(|copy| !copy.deployments().is_disjoint(&names));
        if let Err(error) = self.withdraw(&names, request.volumes, copies.clone()).await {
            self.declare_again(names, copies).await;
            return Err(error);
        }
        self.rescan().await?;
        self.attend_to(names.clone()).await?;
        let notes = names.iter().filter_map(|name| self.still_declared(known.entry(name)?));
        Ok(Applied {
            notes: notes.collect(),
            results: names.iter().map(|name| (name.clone(), Change::Deleted)).collect(),
            ..Applied::default()
        })
    }

    /// Has these deployments removed, and takes them out of these copies of applied files.
    async fn withdraw(
        &self,
        names: &BTreeSet<String>,
        volumes: Volumes,
        mut copies: Vec<AppliedFile>,
    ) -> Result<(), EngineError> {
        let (store, marked) = (self.inner.store.clone(), names.clone());
        let mark = move || store.request_removals(&marked, volumes).map_err(local("the removal can't be recorded"));
        blocking(mark).await?;
        copies.iter_mut().for_each(|copy| copy.without.extend(names.iter().cloned()));
        self.save(copies).await?;
        // Before the source says that they are gone: where nothing is left of one, it would be forgotten with what is
        // to become of its volumes.
        self.ask(|reply| Command::Remove(names.clone(), volumes, reply)).await?;
        self.take_back(names).await
    }

    /// Undoes as much of a removal as was done before it failed.
    async fn declare_again(&self, names: BTreeSet<String>, copies: Vec<AppliedFile>) {
        let saved = self.save(copies).await;
        if let Err(error) = saved.and(self.ask(|reply| Command::Want(names, reply)).await) {
            tracing::warn!("a removal that failed is not undone: {error}");
        }
    }

    /// Lets the source know, which keeps what it still finds declared.
    async fn take_back(&self, names: &BTreeSet<String>) -> Result<(), EngineError> {
        let Some(source) = &self.inner.source else { return Ok(()) };
        let taken = source.handle.delete(names.clone()).await.map_err(|_| EngineError::Ended)?;
        taken.map_err(local("that it may go can't be recorded"))
    }

    fn known(&self) -> Result<Known, EngineError> {
        Ok(Known {
            copies: read_applied(&self.inner.applied).map_err(local("the applied files can't be read"))?,
            inventory: self.inner.store.inventory().map_err(local("the inventory can't be read"))?,
        })
    }

    /// Whether the deployment may be deleted and there is anything of it. Volumes may be left of one that nothing else
    /// is known of.
    async fn check(&self, name: &str, volumes: Volumes, known: &Known) -> Result<(), EngineError> {
        if let Some(entry) = known.entry(name).filter(|entry| self.watched_declares(&entry.source.file, name)) {
            return Err(EngineError::Conflict(format!(
                "deployment {name} is declared in {}, which the controller watches; remove it there",
                entry.source
            )));
        }
        if known.declares(name) || volumes == Volumes::Remove {
            return Ok(());
        }
        let target = Target { deployment: name.to_owned(), service: None, slot: None };
        match self.ask(|reply| Command::Instances(target, reply)).await?.is_empty() {
            true => Err(EngineError::NotFound(format!("deployment {name} not found"))),
            false => Ok(()),
        }
    }

    /// Whether the watched directory declares it now.
    fn watched_declares(&self, file: &Path, name: &str) -> bool {
        let watching = matches!(self.inner.mode, Mode::Controller { .. });
        let declared = || self.status().deployments.iter().any(|view| view.deployment == name && view.source.is_some());
        watching && declared() && self.watches(file) && file.exists()
    }

    /// What to say of a deployment whose file still declares it.
    fn still_declared(&self, entry: &Declared) -> Option<String> {
        let applied = entry.root.starts_with(&self.inner.applied);
        (!applied && entry.source.file.exists())
            .then(|| format!("{} still declares it; a controller that watches it starts it again", entry.source))
    }
}
