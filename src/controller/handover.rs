//! What was applied from a directory that is watched from now on.

use std::path::{Path, PathBuf};

use super::EngineError;
use crate::spec::{DocumentKind, ParsedFile, RuntimeKind, parse_bytes};
use crate::store::{AppliedFile, read_applied};

/// Where copies of applied files lie, and the directories that are watched from now on, absolute.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub applied: &'a Path,
    pub watched: &'a [PathBuf],
}

/// The copies of files that are watched from now on: what is there counts in their place, and what is not is judged as if it
/// had been watched all the time. Nothing is needed of them any more once the source is at work.
///
/// A runtime that was named as they were applied is not part of a file. `default` is the one that counts from now on, where
/// nobody named it just now.
///
/// # Errors
/// `Invalid` where a service that names no runtime would be moved to the default, which nobody asked for.
pub(super) fn taken_over(place: Place<'_>, default: Option<RuntimeKind>) -> Result<Vec<AppliedFile>, EngineError> {
    // The source tells why copies can't be read.
    let Ok(copies) = read_applied(place.applied) else { return Ok(Vec::new()) };
    let is_watched = |copy: &AppliedFile| place.watched.iter().any(|root| copy.origin.starts_with(root));
    let copies: Vec<AppliedFile> = copies.into_iter().filter(is_watched).collect();
    let moved: Vec<String> =
        default.map(|default| copies.iter().flat_map(|copy| moved(copy, default)).collect()).unwrap_or_default();
    if moved.is_empty() {
        return Ok(copies);
    }
    Err(EngineError::Invalid(format!(
        "this would move what runs to another runtime: {}; write the runtime into the file, or name the one for all that \
         name none with --runtime",
        moved.join("; ")
    )))
}

/// What is said of each deployment of a copy whose services would be moved, as its file is now.
fn moved(copy: &AppliedFile, default: RuntimeKind) -> Vec<String> {
    // A file that is gone moves nothing.
    let Ok(text) = std::fs::read(&copy.origin) else { return Vec::new() };
    let now = parse_bytes(&text);
    let others = copy.remembered_runtimes().filter(|(name, runtime)| *runtime != default && leaves_it_open(&now, name));
    others
        .map(|(name, runtime)| {
            let file = copy.origin.display();
            format!("{name} was applied with --runtime {runtime}, and {file} would run on {default}")
        })
        .collect()
}

/// Whether a file has a service of this deployment that names no runtime.
fn leaves_it_open(file: &ParsedFile, deployment: &str) -> bool {
    file.documents.iter().filter(|document| document.kind.deployment() == deployment).any(|document| {
        match &document.kind {
            DocumentKind::Deployment(declared) => {
                declared.runtime.is_none() && declared.services.values().any(|service| service.spec.runtime.is_none())
            }
            DocumentKind::Service { service, .. } => service.spec.runtime.is_none(),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::store::save_applied;

    /// What a first controller says of `web`, which was applied with `--runtime docker`, where its file is this now.
    fn first_run(now: Option<&str>, default: Option<RuntimeKind>) -> Result<usize, String> {
        let folder = tempfile::tempdir().unwrap();
        let (applied, watched) = (folder.path().join("applied"), folder.path().join("specs"));
        for directory in [&applied, &watched] {
            std::fs::create_dir_all(directory).unwrap();
        }
        let origin = watched.join("web.yaml");
        if let Some(text) = now {
            std::fs::write(&origin, text).unwrap();
        }
        let copy = AppliedFile {
            origin: origin.clone(),
            text: text("", ""),
            without: BTreeSet::new(),
            default_runtimes: BTreeMap::from([("web".to_owned(), RuntimeKind::Docker)]),
        };
        save_applied(&[copy], &applied).unwrap();
        let taken = taken_over(Place { applied: &applied, watched: &[watched] }, default);
        taken.map(|copies| copies.len()).map_err(|error| error.to_string().replace(&*origin.to_string_lossy(), "FILE"))
    }

    fn text(deployment: &str, service: &str) -> String {
        format!("version: v1\ndeployment: web\n{deployment}services: {{a: {{image: {{name: x}}{service}}}}}\n")
    }

    #[test]
    fn what_was_applied_with_a_runtime_is_not_moved_to_another_one_unasked() {
        let sandbox = Some(RuntimeKind::Sandbox);
        let bare = text("", "");
        let refused = "this would move what runs to another runtime: web was applied with --runtime docker, and FILE would run \
                       on sandbox; write the runtime into the file, or name the one for all that name none with --runtime";
        assert_eq!(first_run(Some(&bare), sandbox), Err(refused.to_owned()));
        assert_eq!(first_run(Some(&bare), None), Ok(1), "somebody named it");
        assert_eq!(first_run(Some(&bare), Some(RuntimeKind::Docker)), Ok(1), "it is the same");
        assert_eq!(first_run(Some(&text("runtime: sandbox\n", "")), sandbox), Ok(1), "the file says so");
        assert_eq!(first_run(Some(&text("", ", runtime: docker")), sandbox), Ok(1), "the service says so");
        assert_eq!(first_run(None, sandbox), Ok(1), "the file is gone");
    }
}
