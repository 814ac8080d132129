//! Lists and inspections.

use std::collections::{BTreeSet, HashMap, HashSet};

use bollard::models::{ContainerInspectResponse, ContainerSummary, Network};
use bollard::query_parameters::{InspectContainerOptions, ListContainersOptionsBuilder, ListNetworksOptionsBuilder};
use chrono::Utc;
use futures::StreamExt;

use super::Inner;
use super::engine::{CallError, READ_DEADLINE, again};
use super::lenient::{self, encode};
use super::observe::{agrees, agrees_on_health, from_inspect, from_summary, identity, listed_ports};
use super::ping::Product;
use crate::runtime::{ErrorKind, Listing, Result, RuntimeError};
use crate::state::{Instance, InstanceRef, labels};

/// Inspections side by side in one list. They take 0.13 ms each; more than a few at once only queue in the engine.
const INSPECTIONS: usize = 8;

impl Inner {
    /// Everything of this owner: one list of containers and one of networks, and an inspection of each container whose
    /// state is new.
    pub(super) async fn list(&self) -> Result<Listing> {
        let (asked, asked_at) = (self.facts.now(), Utc::now());
        if !self.facts.is_watched() {
            // Nobody would have told that another engine answers now.
            self.outages.forget_start();
        }
        let (containers, networks) = tokio::try_join!(self.containers(), self.networks())
            .map_err(|error| error.explain("listing this installation's containers"))?;
        let listed: HashSet<String> = containers.iter().filter_map(|summary| summary.id.clone()).collect();
        let mut instances = Vec::with_capacity(containers.len());
        let lines = futures::stream::iter(containers).map(async |summary| self.listed(&summary).await);
        let mut seen = Box::pin(lines.buffer_unordered(INSPECTIONS));
        while let Some(instance) = seen.next().await {
            instances.extend(instance?);
        }
        self.facts.keep_only(asked, &listed);
        self.places.keep_only(&listed);
        self.outages.listed(&instances, asked_at).await;
        instances.sort_by(|a: &Instance, b: &Instance| a.id.cmp(&b.id).then_with(|| a.runtime_id.cmp(&b.runtime_id)));
        Ok(Listing { instances, shared: deployments(&networks) })
    }

    /// The instance of one line, from memory where that still agrees with it; `None` when it has gone meanwhile.
    async fn listed(&self, summary: &ContainerSummary) -> Result<Option<Instance>> {
        let (Some(container), Some(labels)) = (&summary.id, &summary.labels) else { return Ok(None) };
        if let Err(problem) = identity(labels, &self.owner) {
            tracing::warn!(container, %problem, "a container carries this installation's owner mark and no identity; it is left alone");
            return Ok(None);
        }
        match self.facts.get_watched(container) {
            Some(known) if agrees(summary.state, &known.phase) && agrees_on_health(summary, &known) => {
                Ok(Some(Instance { ports: listed_ports(summary), ..known }))
            }
            _ => match self.inspect(container).await {
                Ok(found) => Ok(Some(found)),
                Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
                Err(error) if error.means_unreachable() => Err(error),
                // One container that the engine fails over does not hide the others.
                Err(error) => Ok(self.unknown(summary, &error)),
            },
        }
    }

    /// One container as it is now, by name or id.
    pub(super) async fn inspect(&self, container: &str) -> Result<Instance> {
        let asked = self.facts.now();
        let answer = self
            .inspection(container)
            .await
            .map_err(|error| error.explain(&format!("inspecting container {container}")))?;
        match from_inspect(&answer, &self.owner) {
            Ok(mut instance) => {
                self.pins.note(&instance, answer.image.as_deref());
                if !self.tells_health().await? {
                    instance.judge(None);
                }
                self.learn_end(asked, instance).await
            }
            Err(problem) => Err(RuntimeError::new(
                ErrorKind::NameTaken,
                format!("container {container} does not belong to this installation: {problem}"),
            )),
        }
    }

    /// Whether an image's own health check counts. Podman has no scheduler for them but systemd's, without which they stay
    /// `starting` for ever, and tells nothing of them in lists.
    pub(super) async fn tells_health(&self) -> Result<bool> {
        Ok(self.engine.product().await? == Product::Docker)
    }

    /// The instance of a line whose inspection failed: what the line says, in a phase that nobody knows.
    fn unknown(&self, summary: &ContainerSummary, error: &RuntimeError) -> Option<Instance> {
        tracing::warn!(container = summary.id, %error, "the engine fails over this container");
        from_summary(summary, &self.owner, &error.message).ok()
    }

    /// An instance as it is now; `None` when it is gone, or not this owner's. Its phase is unknown where the engine
    /// lists it and fails to inspect it.
    pub(super) async fn look(&self, instance: &InstanceRef) -> Result<Option<Instance>> {
        match self.inspect(&instance.runtime_id).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::NameTaken) => {
                self.facts.forget(&instance.runtime_id);
                Ok(None)
            }
            Err(error) if error.means_unreachable() => Err(error),
            Err(error) => match self.line(&instance.runtime_id).await {
                Ok(Some(summary)) => Ok(self.unknown(&summary, &error)),
                Ok(None) => Err(error),
                Err(unlisted) => Err(unlisted.explain(&format!("listing container {}", instance.runtime_id))),
            },
        }
    }

    /// The line of one of this owner's containers in the list.
    async fn line(&self, container: &str) -> std::result::Result<Option<ContainerSummary>, CallError> {
        let mut filters = self.ours();
        filters.insert("id".to_owned(), vec![container.to_owned()]);
        let lines = self.try_containers(&filters).await?;
        Ok(lines.into_iter().find(|summary| summary.id.as_deref() == Some(container)))
    }

    /// Whether there is such a container and it carries this owner's mark. A container keeps its labels for life, so one
    /// that is remembered need not be looked at again.
    pub(super) async fn owns(&self, instance: &InstanceRef) -> Result<bool> {
        Ok(self.facts.get(&instance.runtime_id).is_some() || self.look(instance).await?.is_some())
    }

    /// What the engine says of one container, by name or id; asked for again where its process ended in that moment, of which
    /// Podman says that there is no such process.
    pub(super) async fn inspection(&self, container: &str) -> std::result::Result<ContainerInspectResponse, CallError> {
        let is_ending = |error: &CallError| error.status() == Some(500) && error.words().contains("no such process");
        match self.inspection_now(container).await {
            Err(error) if is_ending(&error) => self.inspection_now(container).await,
            found => found,
        }
    }

    async fn inspection_now(&self, container: &str) -> std::result::Result<ContainerInspectResponse, CallError> {
        let answer = self
            .engine
            .call(READ_DEADLINE, |docker| async move {
                docker.inspect_container(container, None::<InspectContainerOptions>).await
            })
            .await;
        match answer {
            Err(error) if error.is_unknown_word() => {
                let answer = self.engine.get(&format!("/containers/{}/json", encode(container))).await?;
                lenient::inspection(&answer).map_err(CallError::Engine)
            }
            answer => answer,
        }
    }

    /// The list, asked for again where a container that is just going made the engine fail.
    async fn containers(&self) -> std::result::Result<Vec<ContainerSummary>, CallError> {
        let ours = self.ours();
        again(|| self.try_containers(&ours)).await
    }

    async fn try_containers(
        &self,
        filters: &HashMap<String, Vec<String>>,
    ) -> std::result::Result<Vec<ContainerSummary>, CallError> {
        let options = ListContainersOptionsBuilder::default().all(true).filters(filters).build();
        let answer =
            self.engine.call(READ_DEADLINE, |docker| async move { docker.list_containers(Some(options)).await }).await;
        match answer {
            Err(error) if error.is_unknown_word() => {
                let filters = serde_json::to_string(filters).unwrap_or_default();
                let path = format!("/containers/json?all=true&filters={}", encode(&filters));
                lenient::summaries(&self.engine.get(&path).await?).map_err(CallError::Engine)
            }
            answer => answer,
        }
    }

    async fn networks(&self) -> std::result::Result<Vec<Network>, CallError> {
        let options = ListNetworksOptionsBuilder::default().filters(&self.ours()).build();
        self.engine.call(READ_DEADLINE, |docker| async move { docker.list_networks(Some(options)).await }).await
    }

    /// The filter for what carries this owner's mark.
    pub(super) fn ours(&self) -> HashMap<String, Vec<String>> {
        HashMap::from([("label".to_owned(), vec![format!("{}={}", labels::OWNER, self.owner)])])
    }
}

fn deployments(networks: &[Network]) -> BTreeSet<String> {
    networks.iter().filter_map(|network| network.labels.as_ref()?.get(labels::DEPLOYMENT).cloned()).collect()
}
