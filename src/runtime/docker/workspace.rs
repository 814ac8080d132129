//! Workspaces: volumes of one slot, which go with it.

use bollard::query_parameters::RemoveVolumeOptions;

use super::engine::WRITE_DEADLINE;
use super::{Inner, names};
use crate::runtime::{CreateRequest, Result, Volumes};
use crate::spec::Storage;
use crate::state::{InstanceRef, labels};

/// Label of a container that names the volume which goes with its slot.
const GOES: &str = "dev.evenkeel.workspace";

/// The label of an instance whose workspace is not to be kept.
pub(super) fn label(request: &CreateRequest) -> Option<(String, String)> {
    let goes = |storage: &&Storage| matches!(storage, Storage::Workspace { keep, .. } if *keep != Some(true));
    request.spec.storage.iter().find(goes)?;
    let name = Storage::workspace_name(&request.id.service, request.id.slot);
    Some((GOES.to_owned(), names::volume(&request.id.deployment, &name)))
}

impl Inner {
    /// Removes an instance whose slot goes, and the workspace of the slot with the last instance in it, where that goes.
    pub(super) async fn remove_with_slot(&self, instance: &InstanceRef, workspace: Volumes) -> Result<()> {
        if !self.owns(instance).await? {
            return Ok(());
        }
        let what = format!("inspecting {}", instance.id);
        let goes = match self.inspection(&instance.runtime_id).await {
            Ok(found) => found.config.and_then(|config| config.labels?.remove(GOES)),
            Err(error) if error.is_missing() => None,
            Err(error) => return Err(error.explain(&what)),
        };
        self.remove(instance).await?;
        // The lowest number is the last to go.
        if instance.id.slot == 0 {
            self.pins.forget_service(&instance.id);
        }
        let Some(name) = goes.filter(|_| workspace == Volumes::Remove) else { return Ok(()) };
        let volume = self.volume(&name).await?;
        if volume.and_then(|volume| volume.labels.get(labels::OWNER).cloned()).as_ref() != Some(&self.owner.0) {
            return Ok(());
        }
        let of_volume = name.as_str();
        let removed =
            self.engine
                .call(WRITE_DEADLINE, |docker| async move {
                    docker.remove_volume(of_volume, None::<RemoveVolumeOptions>).await
                })
                .await;
        match removed {
            Ok(()) => Ok(()),
            // Another instance of the slot still has it, and its removal removes it.
            Err(error) if error.is_missing() || error.status() == Some(409) => Ok(()),
            Err(error) => Err(error.explain(&format!("removing volume {name}"))),
        }
    }
}
