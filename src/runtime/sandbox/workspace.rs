//! Workspaces: volumes of one slot, which go with it.

use std::path::PathBuf;
use std::time::Duration;

use super::bounds::FILE_LIMIT;
use super::layout::read_json;
use super::record::{MountSource, Record};
use super::{Inner, SandboxRuntime, checked_id, failed, volumes};
use crate::runtime::Result;
use crate::state::{InstanceId, InstanceRef};

/// Longest time for the removal of a workspace: a full one takes as long as its disk.
const REMOVE_LIMIT: Duration = Duration::from_secs(120);

impl SandboxRuntime {
    /// The workspace of an instance of ours that is to go with its slot.
    pub(super) async fn workspace_of(&self, instance: &InstanceRef) -> Result<Option<PathBuf>> {
        if self.look(instance).await?.is_none() {
            return Ok(None);
        }
        let id = checked_id(instance)?;
        // What a record that can't be read says of it nobody knows: it stays.
        let read = move |inner: &Inner| Ok(read_json::<Record>(&inner.dir(&id).record()).ok().flatten());
        let record = self.blocking("reading an instance", FILE_LIMIT, read).await?;
        let mounts = record.map(|record| record.launch.mounts).unwrap_or_default();
        Ok(mounts.into_iter().filter(|mount| mount.goes_with_slot).find_map(|mount| match mount.source {
            MountSource::Volume(path) => Some(path),
            _ => None,
        }))
    }

    /// Removes the workspace of a slot whose instance was removed, unless another one is in the slot: whoever of several
    /// removes its instance last finds none.
    pub(super) async fn remove_workspace(&self, instance: &InstanceRef, workspace: PathBuf) -> Result<()> {
        let id = instance.id.clone();
        let remove = move |inner: &Inner| {
            let what = |error: &std::io::Error| failed(&format!("removing the workspace of {}", id.name()), error);
            let slot = |id: &InstanceId| (id.deployment.clone(), id.service.clone(), id.slot);
            let others = inner.view.all().map_err(|error| what(&error))?;
            if others.iter().any(|other| slot(&other.instance.id) == slot(&id)) {
                return Ok(());
            }
            volumes::remove_one(&workspace).map_err(|error| what(&error))
        };
        self.blocking("removing a workspace", REMOVE_LIMIT, remove).await
    }
}
