//! Takes declarations back.

use std::collections::{BTreeMap, BTreeSet};

use super::apply::{blocking, to_its_end};
use super::engine::Engine;
use super::message::Command;
use super::open::{blinded, local};
use super::others::{Watched, declared_in};
use super::{Applied, Change, DeleteRequest, EngineError, Mode};
use crate::runtime::{RuntimeError, Volumes};
use crate::spec::RuntimeKind;
use crate::state::{SourceRef, Target};
use crate::store::{AppliedFile, Declared, RemovalRequest, read_applied};

/// What is known of declarations before anything is taken back.
struct Known {
    copies: Vec<AppliedFile>,
    inventory: Vec<Declared>,
    watched: Watched,
}

/// What goes where a deployment is deleted by name.
enum Extent {
    /// All of it.
    Whole,
    /// Its volumes, of which nothing else is known.
    Volumes,
    /// What was applied of it. A file that a controller watches declares it as well, at this place, and counts from then on.
    Applied(SourceRef),
}

impl Known {
    fn entry(&self, name: &str) -> Option<&Declared> {
        self.inventory.iter().find(|entry| entry.name == name)
    }

    fn declares(&self, name: &str) -> bool {
        let copied = || self.copies.iter().any(|copy| copy.deployments().contains(name));
        self.entry(name).is_some() || copied() || self.watched.part(name).is_some()
    }
}

impl Engine {
    /// Takes back the declarations of these deployments: all of them or, on an error, none. Returns as soon as that
    /// counts. Of one that was applied and that the watched directory declares as well, what was applied goes, and what
    /// the directory declares counts.
    ///
    /// # Errors
    /// `Conflict` for a deployment that only the watched directory declares, `NotFound` for an unknown one unless those are
    /// passed over.
    pub async fn delete(&self, request: &DeleteRequest) -> Result<Applied, EngineError> {
        let (engine, request) = (self.clone(), request.clone());
        to_its_end(async move { engine.delete_now(&request).await }).await
    }

    async fn delete_now(&self, request: &DeleteRequest) -> Result<Applied, EngineError> {
        if self.inner.mode == Mode::Observe {
            return Err(EngineError::Conflict("this engine only looks".to_owned()));
        }
        self.inner.archive.check_kept()?;
        let _one_at_a_time = self.inner.applying.lock().await;
        let engine = self.clone();
        let watched = self.watched().await?;
        let known = blocking(move || engine.known(watched)).await?;
        let (mut names, mut uncovered) = (BTreeSet::new(), BTreeMap::new());
        let mut bare = Vec::new();
        for name in &request.deployments {
            match self.check(name, request.volumes, &known).await {
                Err(EngineError::NotFound(_)) if request.ignore_not_found => {}
                Err(error) => return Err(error),
                Ok(Extent::Whole) => _ = names.insert(name.clone()),
                Ok(Extent::Volumes) => {
                    names.insert(name.clone());
                    bare.push(format!("{name} was gone already; its volumes were left, and go now"));
                }
                Ok(Extent::Applied(at)) => _ = uncovered.insert(name.clone(), at),
            }
        }
        let retracted = names.iter().chain(uncovered.keys()).cloned().collect();
        let mut copies = known.copies.clone();
        copies.retain(|copy| !copy.deployments().is_disjoint(&retracted));
        let less = copies.iter().cloned().map(|mut copy| {
            copy.without.extend(retracted.iter().cloned());
            copy
        });
        let requests = self.request_removals(names.clone(), request.volumes).await?;
        if let Err(error) = self.withdraw(&requests, less.collect()).await {
            self.declare_again(requests, copies).await;
            return Err(error);
        }
        // Its removal may have been asked for before a file declared it.
        self.ask(|reply| Command::Want(uncovered.keys().cloned().collect(), reply)).await?;
        self.rescan().await?;
        self.attend_to(names.clone()).await?;
        let still = names.iter().filter_map(|name| self.still_declared(name, &known));
        let deleted = names.iter().map(|name| (name.clone(), Change::Deleted));
        Ok(Applied {
            notes: bare
                .into_iter()
                .chain(still)
                .chain(uncovered.iter().map(|(name, at)| now_counts(name, at, request.volumes)))
                .collect(),
            results: deleted.chain(uncovered.keys().map(|name| (name.clone(), Change::Configured))).collect(),
            ..Applied::default()
        })
    }

    /// Records that these deployments are to be removed.
    async fn request_removals(
        &self,
        names: BTreeSet<String>,
        volumes: Volumes,
    ) -> Result<BTreeMap<String, RemovalRequest>, EngineError> {
        let store = self.inner.store.clone();
        blocking(move || store.request_removals(&names, volumes).map_err(local("the removal can't be recorded"))).await
    }

    /// Has these deployments removed, and saves these copies of applied files, which lack them.
    async fn withdraw(
        &self,
        requests: &BTreeMap<String, RemovalRequest>,
        copies: Vec<AppliedFile>,
    ) -> Result<(), EngineError> {
        self.save(copies).await?;
        // Before the source says that they are gone: where nothing is left of one, it would be forgotten with what is
        // to become of its volumes.
        self.ask(|reply| Command::Remove(requests.clone(), reply)).await?;
        self.take_back(requests.keys().cloned().collect()).await
    }

    /// Undoes as much of a removal as was done before it failed.
    async fn declare_again(&self, requests: BTreeMap<String, RemovalRequest>, copies: Vec<AppliedFile>) {
        let saved = self.save(copies).await;
        let wanted = self.ask(|reply| Command::Want(requests.keys().cloned().collect(), reply)).await;
        // The core may not have been told of them.
        let store = self.inner.store.clone();
        let settle = move || requests.values().try_for_each(|request| store.settle_removal(request.id));
        let settled = blocking(move || settle().map_err(local("a removal stays recorded"))).await;
        if let Err(error) = saved.and(wanted).and(settled) {
            tracing::warn!("a removal that failed is not undone: {error}");
        }
    }

    /// Lets the source know, which keeps what it still finds declared.
    async fn take_back(&self, names: BTreeSet<String>) -> Result<(), EngineError> {
        let Some(source) = &self.inner.source else { return Ok(()) };
        let taken = source.handle.delete(names).await.map_err(blinded)?;
        taken.map_err(local("that it may go can't be recorded"))
    }

    fn known(&self, watched: Watched) -> Result<Known, EngineError> {
        Ok(Known {
            copies: read_applied(&self.inner.archive.applied()).map_err(local("the applied files can't be read"))?,
            inventory: self.inner.store.inventory().map_err(local("the inventory can't be read"))?,
            watched,
        })
    }

    /// What of the deployment may be deleted, where there is anything of it. Volumes may be left of one that nothing else
    /// is known of.
    async fn check(&self, name: &str, volumes: Volumes, known: &Known) -> Result<Extent, EngineError> {
        if let Some(at) = self.watched_declares(name, known) {
            // A copy of a watched file does not count.
            let mut applied = known.copies.iter().filter(|copy| !self.watches(&copy.origin));
            return match applied.any(|copy| copy.deployments().contains(name)) {
                true => Ok(Extent::Applied(at)),
                false => Err(EngineError::Conflict(format!(
                    "deployment {name} is declared in {at}, which the controller watches; remove it there"
                ))),
            };
        }
        let target = Target { deployment: name.to_owned(), service: None, slot: None };
        if known.declares(name) || !self.ask(|reply| Command::Instances(target, reply)).await?.is_empty() {
            return Ok(Extent::Whole);
        }
        if volumes == Volumes::Remove && self.has_volumes(name).await? {
            return Ok(Extent::Volumes);
        }
        Err(EngineError::NotFound(format!("deployment {name} not found")))
    }

    /// Whether any runtime that answers has volumes of a deployment.
    async fn has_volumes(&self, name: &str) -> Result<bool, EngineError> {
        for kind in RuntimeKind::ALL {
            let Ok(runtime) = self.runtime(kind).await else { continue };
            let found = runtime.has_volumes(name).await;
            let failed = |error: RuntimeError| {
                let message = format!(
                    "{kind}: whether volumes of {name} are left can't be told: {error}; give the command again once {kind} \
                     answers, or without --volumes"
                );
                EngineError::Conflict(message)
            };
            if found.map_err(failed)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What to say of a deployment that is deleted and whose file still declares it.
    fn still_declared(&self, name: &str, known: &Known) -> Option<String> {
        // A file of a directory that is not watched now is read for that.
        let elsewhere = || {
            let applied = |entry: &&Declared| entry.root.starts_with(self.inner.archive.applied());
            let entry = known.entry(name).filter(|entry| !applied(entry) && !self.watches(&entry.source.file))?;
            declared_in(&entry.source.file, name)
        };
        let at = known.watched.part_in_sight(name).or_else(elsewhere)?;
        Some(format!("{at} still declares it; a controller that watches it starts it again"))
    }

    /// Where the directory that a controller watches declares it.
    fn watched_declares(&self, name: &str, known: &Known) -> Option<SourceRef> {
        if !matches!(self.inner.mode, Mode::Controller { .. }) {
            return None;
        }
        let hidden =
            || known.entry(name).filter(|entry| self.watches(&entry.source.file) && known.watched.hides(entry));
        known.watched.part_of_existing(name).or_else(|| hidden().map(|entry| entry.source.clone()))
    }
}

/// What to say of a deployment of which only what was applied is deleted.
fn now_counts(name: &str, at: &SourceRef, volumes: Volumes) -> String {
    let all = match volumes {
        Volumes::Keep => "the deployment",
        Volumes::Remove => "the deployment and its volumes, which stay",
    };
    format!(
        "what was applied of {name} is deleted; {at}, which the controller watches, declares it as well and counts now; to \
         delete {all}, remove it there"
    )
}
