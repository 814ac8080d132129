//! Relative paths, made absolute: they start at the directory of their file.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::super::{DocumentKind, ImageRef, ParsedFile, Problem, ServiceSpec, Storage};

/// The spec with the paths of bind mounts and local images made absolute.
pub(super) fn with_absolute_paths(spec: &Arc<ServiceSpec>, directory: &Path) -> Arc<ServiceSpec> {
    let image = absolute_image(&spec.image.name, directory);
    let bound = |storage: &Storage| matches!(storage, Storage::Bind { source, .. } if !Path::new(source).is_absolute());
    if image.is_none() && !spec.storage.iter().any(bound) {
        return Arc::clone(spec);
    }
    let mut spec = ServiceSpec::clone(spec);
    if let Some(image) = image {
        spec.image.name = image;
    }
    for storage in &mut spec.storage {
        if let Storage::Bind { source, .. } = storage {
            *source = absolute(source, directory);
        }
    }
    Arc::new(spec)
}

impl ParsedFile {
    /// A problem for each service with a relative path, for a text that lies in no directory.
    pub fn relative_paths(&self) -> Vec<Problem> {
        let services = self.documents.iter().flat_map(|document| match &document.kind {
            DocumentKind::Deployment(deployment) => deployment.services.values().collect::<Vec<_>>(),
            DocumentKind::Service { service, .. } => vec![service],
        });
        let is_relative = |path: &&str| Path::new(path).is_relative();
        let found = services.filter_map(|service| {
            let sources = service.spec.storage.iter().filter_map(|storage| match storage {
                Storage::Bind { source, .. } => Some(source.as_str()),
                _ => None,
            });
            let path = path_of(&service.spec.image.name).into_iter().chain(sources).find(is_relative)?;
            let message = format!("{path:?} is relative, and what comes from standard input lies in no directory");
            let help = "write an absolute path, or apply the file by its name";
            Some(Problem::new(service.position, format!("services.{}", service.name), message).with_help(help))
        });
        found.collect()
    }
}

fn path_of(image: &ImageRef) -> Option<&str> {
    match image {
        ImageRef::Registry(_) | ImageRef::Host => None,
        ImageRef::Oci { path, .. }
        | ImageRef::OciArchive(path)
        | ImageRef::DockerArchive(path)
        | ImageRef::Dir(path) => Some(path),
    }
}

fn absolute_image(image: &ImageRef, directory: &Path) -> Option<ImageRef> {
    match image {
        ImageRef::Registry(_) | ImageRef::Host => None,
        ImageRef::Oci { path, tag } => Some(ImageRef::Oci { path: absolute(path, directory), tag: tag.clone() }),
        ImageRef::OciArchive(path) => Some(ImageRef::OciArchive(absolute(path, directory))),
        ImageRef::DockerArchive(path) => Some(ImageRef::DockerArchive(absolute(path, directory))),
        ImageRef::Dir(path) => Some(ImageRef::Dir(absolute(path, directory))),
    }
}

/// Joins a path to a directory and takes out `.` and, where it can be told without looking, `..`.
fn absolute(path: &str, directory: &Path) -> String {
    let mut result = PathBuf::new();
    for component in directory.join(path).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if matches!(result.components().next_back(), Some(Component::Normal(_))) => {
                result.pop();
            }
            other => result.push(other),
        }
    }
    result.to_string_lossy().into_owned()
}
