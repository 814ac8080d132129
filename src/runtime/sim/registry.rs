//! The registry of the simulated machine: every tag is there, and can be moved.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::spec::{ImageRef, ServiceSpec};

/// What tags stand for. A tag that nobody moved stands for itself.
#[derive(Debug, Default)]
pub(super) struct Registry {
    /// What moved tags stand for: the reference whose program they run.
    tags: BTreeMap<String, String>,
    /// The same by digest, of all that was asked for or moved.
    contents: BTreeMap<String, String>,
}

impl Registry {
    /// Moves a tag; gives the digest that it stands for from now on.
    pub fn push(&mut self, tag: &str, content: &str) -> String {
        self.tags.insert(tag.to_owned(), content.to_owned());
        self.digest(tag)
    }

    /// The digest that a reference stands for.
    pub fn digest(&mut self, reference: &str) -> String {
        let content = self.tags.get(reference).map_or(reference, String::as_str).to_owned();
        let hex: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        let digest = format!("sha256:{hex}");
        self.contents.insert(digest.clone(), content);
        digest
    }

    /// The spec with the image that its digest stands for, where it is pinned to one, or its tag.
    pub fn content_of(&self, spec: &ServiceSpec) -> ServiceSpec {
        let mut spec = spec.clone();
        if let ImageRef::Registry(name) = &spec.image.name {
            let digest = name.split_once('@').map(|(_, digest)| digest);
            let content = digest.and_then(|digest| self.contents.get(digest)).or_else(|| self.tags.get(name));
            if let Some(content) = content {
                spec.image.name = ImageRef::Registry(content.clone());
            }
        }
        spec
    }
}
