//! Mounts of a container. Pure.

use std::path::Path;

use bollard::models::{Mount, MountTmpfsOptions, MountType};

use super::names;
use crate::runtime::CreateRequest;
use crate::spec::Storage;

/// The mounts of an instance. A bind's source that does not exist is refused by the engine rather than made, because
/// these are `Mounts` and not `Binds`.
pub(super) fn mounts(request: &CreateRequest) -> Vec<Mount> {
    request.spec.storage.iter().filter_map(|storage| mount(storage, request)).collect()
}

fn mount(storage: &Storage, request: &CreateRequest) -> Option<Mount> {
    let mut mount = Mount { target: Some(storage.target().to_owned()), ..Mount::default() };
    match storage {
        Storage::Bind { source, readonly, target: _ } => {
            mount.typ = Some(MountType::BIND);
            mount.source = Some(beside(source, request.source.as_deref()));
            mount.read_only = *readonly;
        }
        Storage::Named { name, readonly, target: _, size: _, tier: _ } => {
            mount.typ = Some(MountType::VOLUME);
            mount.source = Some(names::volume(&request.id.deployment, name));
            mount.read_only = *readonly;
        }
        Storage::Workspace { target: _, keep: _ } => {
            let name = Storage::workspace_name(&request.id.service, request.id.slot);
            mount.typ = Some(MountType::VOLUME);
            mount.source = Some(names::volume(&request.id.deployment, &name));
        }
        Storage::Anonymous { target: _, tier: _ } => mount.typ = Some(MountType::VOLUME),
        Storage::Tmpfs { size, mode, target: _ } => {
            mount.typ = Some(MountType::TMPFS);
            mount.tmpfs_options = Some(MountTmpfsOptions {
                size_bytes: size.and_then(|size| i64::try_from(size.0).ok()),
                mode: mode.map(|mode| i64::from(mode.0)),
                options: None,
            });
        }
        Storage::S3 { .. } => return None,
    }
    Some(mount)
}

/// A path of the machine; a relative one starts where the file that declares it is.
fn beside(path: &str, file: Option<&Path>) -> String {
    match file.and_then(Path::parent) {
        Some(dir) if Path::new(path).is_relative() => dir.join(path).display().to_string(),
        _ => path.to_owned(),
    }
}
