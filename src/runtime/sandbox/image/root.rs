//! The root directory of an image: mode and owner are those that the uppermost layer with an entry for it says. Overlays
//! show the uppermost directory's, so an image whose uppermost layer says nothing gets an empty directory on top.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{ImageError, Result};
use super::store::{LayerRecord, Store, publish_tree};
use super::unpack::DIRECTORY_MODE;
use crate::runtime::sandbox::fresh::{make_new, unique};

/// What a root directory has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootDirectory {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What a layer without an entry for the root has there.
const USUAL: RootDirectory = RootDirectory { mode: DIRECTORY_MODE, uid: 0, gid: 0 };

/// The name of the directory that has to lie above these layers, the lowest first; made where it is not here yet. The
/// caller holds a lease.
///
/// # Errors
/// It can't be made.
pub fn above(store: &Store, layers: &[String]) -> Result<Option<String>> {
    let own = |name: &String| store.layer(name).and_then(|layer| layer.root);
    if layers.last().and_then(own).is_some() {
        return Ok(None);
    }
    let Some(root) = layers.iter().rev().find_map(own).filter(|root| *root != USUAL) else { return Ok(None) };
    let name = format!("root-{:o}-{}-{}", root.mode, root.uid, root.gid);
    let target = store.layers().join(&name);
    if !target.exists() {
        make(store, &target, root)?;
    }
    Ok(Some(name))
}

fn make(store: &Store, target: &Path, root: RootDirectory) -> Result<()> {
    let what = |error: io::Error| ImageError::io(format!("making {}", target.display()), &error);
    let folder = store.temporary().join(unique("root").map_err(what)?);
    let directory = folder.join("root");
    make_new(&folder).and_then(|()| make_new(&directory)).map_err(what)?;
    if rustix::process::geteuid().is_root() {
        chown(&directory, Some(root.uid), Some(root.gid)).map_err(what)?;
    }
    fs::set_permissions(&directory, Permissions::from_mode(root.mode)).map_err(what)?;
    store.write_layer(&folder, &LayerRecord { root: Some(root), ..LayerRecord::default() })?;
    match publish_tree(&folder, target) {
        // Another pull made the same meanwhile; this one is swept.
        Err(_) if target.exists() => Ok(()),
        done => done.map_err(what),
    }
}
