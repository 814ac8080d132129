//! The image behind a tag: found out from time to time, and pinned, so that all instances of one rollout run the same.
//!
//! A service whose `image.pull_policy` is `newer` or `always` follows its tag. Which digest that stands for is a fact that
//! is remembered: the first one belongs to the template as it is, and each later one makes a revision of its own out of it.
//! So what is declared is another thing when the tag has moved, and everything else is as for any change.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::history::RolloutHistory;
use crate::spec::{Image, ImageRef, PullPolicy, RType, Revision, ServiceSpec};
use crate::state::DesiredService;

/// What the tag of a service stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowedImage {
    /// The reference that is followed, as it is declared.
    pub reference: String,
    /// The template that it was first declared with.
    pub revision: Revision,
    /// The digest that the template's own revision runs; absent where that is not known.
    pub first: Option<String>,
    /// The digest that the tag was last found to stand for.
    pub now: String,
}

/// The reference whose tag a service follows; none where it names one image for good, or asks no registry for another.
pub fn followed(service: &DesiredService) -> Option<&str> {
    let image = &service.spec.image;
    let asks = matches!(image.pull_policy(), PullPolicy::Newer | PullPolicy::Always);
    let is_rolled_out = service.spec.rtype() == RType::Service && service.spec.pool.is_none();
    match &image.name {
        ImageRef::Registry(reference) if asks && is_rolled_out && !reference.contains('@') => Some(reference),
        _ => None,
    }
}

impl RolloutHistory {
    /// Notes which digest the tag of a service was found to stand for. `running` are the revisions of what lives of it.
    /// Returns the digest that it stood for before, where it is another one now.
    pub fn learn_image(&mut self, declared: &DesiredService, digest: &str, running: &[&Revision]) -> Option<String> {
        let reference = followed(declared)?;
        self.follow_template(declared);
        match &mut self.image {
            Some(image) => {
                let before = std::mem::replace(&mut image.now, digest.to_owned());
                (before != digest).then_some(before)
            }
            None => {
                // Where nothing is remembered any more, what was made from this very digest is known by its revision.
                let derived = declared.revision.of_image(digest);
                let is_derived = running.contains(&&derived);
                self.image = Some(FollowedImage {
                    reference: reference.to_owned(),
                    revision: declared.revision.clone(),
                    first: (!is_derived).then(|| digest.to_owned()),
                    now: digest.to_owned(),
                });
                None
            }
        }
    }

    /// Has what is known of the image belong to the template that is declared now.
    pub(super) fn follow_template(&mut self, declared: &DesiredService) {
        let reference = followed(declared);
        let Some(image) = self.image.take_if(|image| !declared.is_made_from(&image.revision)) else {
            self.image.take_if(|image| Some(image.reference.as_str()) != reference);
            return;
        };
        let Some(reference) = reference.filter(|reference| *reference == image.reference) else { return };
        // A template that ran before has its own revision run what it ran then.
        let before = self.known(&declared.revision).and_then(|known| digest_of(&known.spec.image, reference));
        let first = before.unwrap_or_else(|| image.now.clone());
        self.image = Some(FollowedImage { revision: declared.revision.clone(), first: Some(first), ..image });
    }

    /// The service with the image that its tag stands for, where that is followed and known.
    pub fn with_image(&self, declared: &DesiredService) -> DesiredService {
        let reference = followed(declared);
        let image = self.image.as_ref().filter(|image| Some(image.reference.as_str()) == reference);
        let Some(image) = image else { return declared.clone() };
        let mut service = declared.clone();
        // What is pinned is here for good once it has come.
        let pinned = Image {
            name: ImageRef::Registry(pinned(&image.reference, &image.now)),
            pull_policy: Some(PullPolicy::IfNotPresent),
        };
        service.spec = Arc::new(ServiceSpec { image: pinned, ..declared.spec.as_ref().clone() });
        if declared.is_made_from(&image.revision) && image.first.as_ref() != Some(&image.now) {
            service.revision = declared.revision.of_image(&image.now);
            service.equivalent = declared.equivalent.as_ref().map(|one| one.of_image(&image.now));
        }
        service
    }
}

/// The same repository at this digest.
fn pinned(reference: &str, digest: &str) -> String {
    format!("{}@{digest}", repository(reference))
}

/// A reference without its tag; the colon before a port is none of a tag's.
fn repository(reference: &str) -> &str {
    match reference.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => reference,
    }
}

/// The digest at which an image is pinned, where it is of the same repository.
fn digest_of(image: &Image, reference: &str) -> Option<String> {
    let ImageRef::Registry(name) = &image.name else { return None };
    let (of, digest) = name.split_once('@')?;
    (of == repository(reference)).then(|| digest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_gives_way_to_a_digest_and_a_port_stays() {
        for (reference, repository) in [
            ("docker.io/library/nginx:1.27", "docker.io/library/nginx"),
            ("localhost:5000/org/app:1", "localhost:5000/org/app"),
            ("localhost:5000/org/app", "localhost:5000/org/app"),
        ] {
            assert_eq!(pinned(reference, "sha256:1"), format!("{repository}@sha256:1"));
        }
    }
}
