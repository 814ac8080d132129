//! Labels of a container: the user's, those that other tools group by, and keel's own. Pure.

use std::collections::HashMap;

use super::body::{Context, wants_init};
use super::{lost, observe, pins, workspace};
use crate::runtime::CreateRequest;
use crate::spec::{RType, ServiceSpec};
use crate::state::{Condition, StopPolicy};

/// Prefix of keel's own labels, from which a container's identity is read back.
const OWN: &str = "dev.evenkeel.";

/// Labels by which Docker Compose and the tools that follow it (Docker Desktop, Portainer, lazydocker) group
/// containers. Compose refuses them in its files: what they say and what runs must not differ, or `docker compose down`
/// takes a container for one of another project.
const GROUPING: &[&str] = &[
    PROJECT,
    "com.docker.compose.service",
    "com.docker.compose.container-number",
    "com.docker.compose.oneoff",
    "com.docker.compose.config-hash",
    "com.docker.compose.project.config_files",
    "com.docker.compose.project.working_dir",
];

/// The label for what belongs to a deployment.
pub(super) const PROJECT: &str = "com.docker.compose.project";

/// The labels of a container, with what the spec asks for and the engine lacks.
pub(super) fn labels(request: &CreateRequest, context: &Context<'_>) -> HashMap<String, String> {
    let CreateRequest { id, restarts, streak, spec, env: _, source } = request;
    let one_off = if spec.rtype() == RType::Service { "False" } else { "True" };
    let file = source.as_ref().map(|file| file.display().to_string());
    let dir = source.as_ref().and_then(|file| file.parent()).map(|dir| dir.display().to_string());
    let grouping = [
        Some(id.deployment.clone()),
        Some(id.service.clone()),
        Some((u64::from(id.slot) + 1).to_string()),
        Some(one_off.to_owned()),
        Some(id.revision.to_string()),
        file,
        dir,
    ];
    let theirs = spec.labels.iter().filter(|(key, _)| !is_reserved(key));
    let mut labels: HashMap<_, _> = theirs.map(|(key, value)| (key.clone(), value.0.clone())).collect();
    labels.extend(GROUPING.iter().zip(grouping).filter_map(|(key, value)| Some(((*key).to_owned(), value?))));
    if let Some(image) = context.moved_from {
        labels.insert(pins::MOVED_FROM.to_owned(), image.to_owned());
    }
    if wants_init(spec) && !context.has_init {
        labels.insert(observe::NO_INIT.to_owned(), "true".to_owned());
    }
    if let Some(weight) = spec.resources.as_ref().and_then(|resources| resources.blkio_weight)
        && !context.weighs_io
    {
        labels.insert(observe::NO_IO_WEIGHT.to_owned(), weight.to_string());
    }
    labels.extend(workspace::label(request));
    labels.extend(lost::labels(spec, context.weighs_io));
    labels.extend(id.to_labels(context.owner, *restarts, *streak, StopPolicy::of(spec)));
    labels
}

/// One condition for each label of a spec that has no effect.
pub(super) fn replaced(spec: &ServiceSpec) -> impl Iterator<Item = Condition> {
    spec.labels.keys().filter(|key| is_reserved(key)).map(|key| {
        let why = if key.starts_with(OWN) {
            "keel keeps what it knows of a container in labels of this prefix"
        } else {
            "tools group containers by it, so it says what the container belongs to here"
        };
        Condition::holds(
            "LabelReplaced",
            "ReservedLabel",
            format!("labels.{key} has no effect on the docker runtime: {why}; use another name"),
        )
    })
}

/// Whether keel alone writes this label.
fn is_reserved(key: &str) -> bool {
    key.starts_with(OWN) || GROUPING.contains(&key)
}
