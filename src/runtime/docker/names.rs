//! Names and labels of what is made beside containers.

use std::collections::HashMap;

use super::labels::PROJECT;
use crate::state::{Owner, labels};

/// The network that the instances of a deployment share.
pub(super) fn network(deployment: &str) -> String {
    format!("keel_{deployment}")
}

/// A deployment's named volume.
pub(super) fn volume(deployment: &str, name: &str) -> String {
    format!("{deployment}_{name}")
}

/// Labels of what a deployment's instances share.
pub(super) fn shared_labels(owner: &Owner, deployment: &str) -> HashMap<String, String> {
    HashMap::from([
        (labels::OWNER.to_owned(), owner.0.clone()),
        (labels::DEPLOYMENT.to_owned(), deployment.to_owned()),
        (PROJECT.to_owned(), deployment.to_owned()),
    ])
}
