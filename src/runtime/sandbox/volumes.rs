//! Directories of volumes, made when they are first needed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::failure::{Context, Failure};
use super::layout::make_private;
use super::quota;
use super::record::{Identity, Launch, MountSource};

/// Makes the directories of volumes that do not exist yet, for the program's user.
///
/// # Errors
/// They can't be made, or can't be held to their size.
pub fn make(launch: &Launch, identity: &Identity) -> Result<(), Failure> {
    for mount in &launch.mounts {
        let MountSource::Volume(path) = &mount.source else { continue };
        make_volume(path, identity)?;
        if let Some(size) = mount.size {
            let what = || format!("holding the volume {} to {size} bytes", path.display());
            quota::limit(path, size).with_context(what)?;
        }
    }
    Ok(())
}

fn make_volume(path: &Path, identity: &Identity) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    make_private(path).with_context(|| format!("making the volume {}", path.display()))?;
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(path, Some(identity.uid), Some(identity.gid))
            .with_context(|| format!("giving the volume {} to its user", path.display()))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("opening the volume {}", path.display()))
}
