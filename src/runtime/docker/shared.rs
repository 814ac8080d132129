//! What the instances of a deployment share: its network and its named volumes.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use bollard::models::{Network, NetworkCreateRequest, Volume, VolumeCreateRequest};
use bollard::query_parameters::{ListNetworksOptionsBuilder, ListVolumesOptionsBuilder, RemoveVolumeOptions};
use tokio::sync::OnceCell;

use super::engine::{CallError, READ_DEADLINE, WRITE_DEADLINE, again};
use super::{Inner, names};
use crate::runtime::{ErrorKind, Result, RuntimeError, Volumes};
use crate::spec::{NetworkMode, ServiceSpec, Storage};
use crate::state::{InstanceId, labels};

/// Networks that are known to exist, by deployment. A cell makes each of them once, however many instances are created
/// at the same time: Docker takes two networks of one name.
pub(super) type Networks = std::sync::Mutex<HashMap<String, Arc<OnceCell<()>>>>;

impl Inner {
    /// Makes what an instance of this spec shares with others.
    pub(super) async fn ensure_shared(&self, id: &InstanceId, spec: &ServiceSpec) -> Result<()> {
        let deployment = id.deployment.as_str();
        if spec.network_access().mode() == NetworkMode::Default {
            self.ensure_network_once(deployment).await?;
        }
        for storage in &spec.storage {
            match storage {
                Storage::Named { name, .. } => self.ensure_volume(deployment, name).await?,
                Storage::Workspace { .. } => {
                    self.ensure_volume(deployment, &Storage::workspace_name(&id.service, id.slot)).await?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes a deployment's network, where that was not done before.
    pub(super) async fn ensure_network_once(&self, deployment: &str) -> Result<()> {
        let cell = self.network_cells().entry(deployment.to_owned()).or_default().clone();
        cell.get_or_try_init(|| self.ensure_network(deployment)).await.copied()
    }

    /// Looks again for a deployment's network the next time, because somebody removed it.
    pub(super) fn forget_network(&self, deployment: &str) {
        self.network_cells().remove(deployment);
    }

    /// Looks again for every network, because the engine may be another one.
    pub(super) fn forget_networks(&self) {
        self.network_cells().clear();
    }

    fn network_cells(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<OnceCell<()>>>> {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ensure_network(&self, deployment: &str) -> Result<()> {
        let name = names::network(deployment);
        let what = format!("creating network {name}");
        if self.has_network(deployment, &name).await? {
            return Ok(());
        }
        match again(|| self.create_network(deployment, &name)).await {
            Ok(()) => Ok(()),
            Err(error) if error.status() == Some(409) && self.has_network(deployment, &name).await? => Ok(()),
            Err(error) => Err(error.explain(&what)),
        }
    }

    async fn create_network(&self, deployment: &str, name: &str) -> std::result::Result<(), CallError> {
        let request = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".to_owned()),
            labels: Some(names::shared_labels(&self.owner, deployment)),
            ..NetworkCreateRequest::default()
        };
        let made = self.engine.call(WRITE_DEADLINE, |docker| async move { docker.create_network(request).await }).await;
        made.map(drop)
    }

    /// Whether the deployment's network is there.
    async fn has_network(&self, deployment: &str, name: &str) -> Result<bool> {
        let found = self.networks_by(&[("name", name.to_owned())]).await?;
        // The engine's filter finds parts of names too.
        let same: Vec<_> = found.iter().filter(|network| network.name.as_deref() == Some(name)).collect();
        let label = |network: &Network, key: &str| network.labels.as_ref().and_then(|labels| labels.get(key)).cloned();
        let ours = |network: &&&Network| {
            label(network, labels::OWNER).as_ref() == Some(&self.owner.0)
                && label(network, labels::DEPLOYMENT).as_deref() == Some(deployment)
        };
        match (same.iter().any(|network| ours(&network)), same.is_empty()) {
            (true, _) => Ok(true),
            (false, true) => Ok(false),
            (false, false) => Err(RuntimeError::new(
                ErrorKind::NameTaken,
                format!(
                    "the network {name} exists and does not belong to this installation; remove it with `docker network \
                     rm {name}`, or rename the deployment"
                ),
            )),
        }
    }

    async fn networks_by(&self, filters: &[(&str, String)]) -> Result<Vec<Network>> {
        let options = ListNetworksOptionsBuilder::default().filters(&filter(filters)).build();
        self.engine
            .call(READ_DEADLINE, |docker| async move { docker.list_networks(Some(options)).await })
            .await
            .map_err(|error| error.explain("listing networks"))
    }

    async fn ensure_volume(&self, deployment: &str, name: &str) -> Result<()> {
        let name = names::volume(deployment, name);
        let request = VolumeCreateRequest {
            name: Some(name.clone()),
            labels: Some(names::shared_labels(&self.owner, deployment)),
            ..VolumeCreateRequest::default()
        };
        // Creating a volume that exists returns that one, with the labels that it has.
        let made = self.engine.call(WRITE_DEADLINE, |docker| async move { docker.create_volume(request).await }).await;
        let volume = match made {
            Ok(volume) => volume,
            // Podman refuses the later of two creates at the same time, by a status that it has for anything.
            Err(error) if error.status().is_some() => match self.volume(&name).await? {
                Some(volume) => volume,
                None => return Err(error.explain(&format!("creating volume {name}"))),
            },
            Err(error) => return Err(error.explain(&format!("creating volume {name}"))),
        };
        let is_ours = |volume: &Volume| volume.labels.get(labels::OWNER) == Some(&self.owner.0);
        // A Docker Engine that was restarted and has not used the volume since answers a create without its labels.
        if is_ours(&volume) || self.volume(&name).await?.as_ref().is_some_and(is_ours) {
            return Ok(());
        }
        Err(RuntimeError::new(
            ErrorKind::NameTaken,
            format!(
                "the volume {name} exists and does not belong to this installation; remove it with `docker volume rm \
                 {name}`, or rename the volume"
            ),
        ))
    }

    /// The volume of this name, where there is one.
    pub(super) async fn volume(&self, name: &str) -> Result<Option<Volume>> {
        match self.engine.call(READ_DEADLINE, |docker| async move { docker.inspect_volume(name).await }).await {
            Ok(volume) => Ok(Some(volume)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error.explain(&format!("inspecting volume {name}"))),
        }
    }

    /// Removes a deployment's network, and its named volumes where asked. What is gone already is success.
    pub(super) async fn teardown(&self, deployment: &str, volumes: Volumes) -> Result<()> {
        self.forget_network(deployment);
        self.pins.forget_deployment(deployment);
        for network in self.networks_by(&self.labels_of(deployment)).await? {
            let Some(id) = network.id else { continue };
            let name = network.name.unwrap_or_default();
            let removed =
                self.engine.call(WRITE_DEADLINE, |docker| async move { docker.remove_network(&id).await }).await;
            if let Err(error) = removed
                && !error.is_missing()
            {
                return Err(error.explain(&format!("removing network {name}")));
            }
        }
        match volumes {
            Volumes::Keep => Ok(()),
            Volumes::Remove => self.remove_volumes(deployment).await,
        }
    }

    /// Filters for what the instances of a deployment share.
    fn labels_of(&self, deployment: &str) -> [(&'static str, String); 2] {
        [
            ("label", format!("{}={}", labels::OWNER, self.owner)),
            ("label", format!("{}={deployment}", labels::DEPLOYMENT)),
        ]
    }

    /// The named volumes of a deployment.
    ///
    /// # Errors
    /// The engine does not tell.
    pub(super) async fn volumes_of(&self, deployment: &str) -> Result<Vec<Volume>> {
        let options = ListVolumesOptionsBuilder::default().filters(&filter(&self.labels_of(deployment))).build();
        let listed = self
            .engine
            .call(READ_DEADLINE, |docker| async move { docker.list_volumes(Some(options)).await })
            .await
            .map_err(|error| error.explain("listing volumes"))?;
        Ok(listed.volumes.unwrap_or_default())
    }

    async fn remove_volumes(&self, deployment: &str) -> Result<()> {
        for volume in self.volumes_of(deployment).await? {
            let name = volume.name.clone();
            let removed =
                self.engine
                    .call(WRITE_DEADLINE, |docker| async move {
                        docker.remove_volume(&name, None::<RemoveVolumeOptions>).await
                    })
                    .await;
            if let Err(error) = removed
                && !error.is_missing()
            {
                return Err(error.explain(&format!("removing volume {}", volume.name)));
            }
        }
        Ok(())
    }
}

fn filter(filters: &[(&str, String)]) -> HashMap<String, Vec<String>> {
    let mut map: HashMap<String, Vec<String>> = HashMap::new();
    for (key, value) in filters {
        map.entry((*key).to_owned()).or_default().push(value.clone());
    }
    map
}
