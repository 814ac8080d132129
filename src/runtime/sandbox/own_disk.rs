//! What an instance takes on the disk besides volumes with names: what it writes over its image, or its copy of that, and
//! its anonymous volumes. One quota holds all of them.

use std::io;
use std::path::{Path, PathBuf};

use super::failure::{Context, Failure};
use super::layout::{InstanceDir, make_private};
use super::record::{Launch, Mount, MountSource, Root};
use super::{quota, remove};

/// Has the disk hold an instance to its size before anything of it is written, at each start.
///
/// # Errors
/// The file system keeps no quotas of projects.
pub fn limit(dir: &InstanceDir, launch: &Launch) -> Result<(), Failure> {
    let Some(bytes) = launch.disk else { return Ok(()) };
    let hold = || {
        let parts = parts(dir, &launch.root, &launch.mounts);
        parts.iter().try_for_each(|part| make_private(part))?;
        quota::limit_together(dir.path(), &parts, bytes)
    };
    hold().with_context(|| format!("holding what the instance writes to {bytes} bytes (resources.disk)"))
}

/// Has the disk count a copy of an image from its first file on.
///
/// # Errors
/// The file system keeps no quotas of projects.
pub fn limit_copy(dir: &InstanceDir, launch: &Launch) -> io::Result<()> {
    launch.disk.map_or(Ok(()), |bytes| quota::limit_together(dir.path(), &[dir.copy()], bytes))
}

/// The directories that count. Overlayfs moves files from one of its two to the other, so these are of one project.
fn parts(dir: &InstanceDir, root: &Root, mounts: &[Mount]) -> Vec<PathBuf> {
    let mut parts = match root {
        Root::Dir { .. } | Root::Layers { .. } => vec![dir.upper(), dir.work()],
        Root::Copy { .. } => vec![dir.copy()],
        Root::Host | Root::Shared => Vec::new(),
    };
    let own = dir.all_anonymous();
    if mounts.iter().any(|mount| matches!(&mount.source, MountSource::Volume(path) if path.starts_with(&own))) {
        parts.push(own);
    }
    parts
}

/// Removes the directory of an instance that is out of sight, and its limit from the file system's books.
///
/// # Errors
/// The disk refuses.
pub fn discard(aside: &Path) -> io::Result<()> {
    let dir = InstanceDir(aside.to_owned());
    quota::release_together(aside, &[dir.upper(), dir.copy(), dir.all_anonymous()]);
    remove::tree(aside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn counted(root: serde_json::Value, volume: &str) -> Vec<String> {
        let dir = InstanceDir("/i".into());
        let mount = json!({ "source": { "volume": volume }, "target": "/v", "read_only": false });
        let root = serde_json::from_value(root).unwrap();
        parts(&dir, &root, &[serde_json::from_value(mount).unwrap()])
            .iter()
            .map(|part| part.display().to_string())
            .collect()
    }

    #[test]
    fn what_an_instance_writes_counts_wherever_it_lies_and_named_volumes_do_not() {
        let (own, named) = ("/i/anonymous/0", "/volumes/demo/data");
        let layers = json!({ "layers": { "lower": ["/l"], "layer": "writable" } });
        assert_eq!(counted(layers.clone(), named), ["/i/upper", "/i/work"]);
        assert_eq!(counted(layers, own), ["/i/upper", "/i/work", "/i/anonymous"]);
        assert_eq!(counted(json!({ "copy": { "from": ["/l"], "read_only": false } }), named), ["/i/copy"]);
        assert_eq!(counted(json!("host"), own), ["/i/anonymous"]);
        assert_eq!(counted(json!("host"), named), [""; 0]);
    }
}
