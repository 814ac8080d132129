//! Which image the instances of a revision were made from, so that those made later run the same though its tag has moved.
//!
//! A tag that is followed by asking its registry is pinned by its digest already. Here it is about one that is not, such as
//! that of an image which was built on this machine. What is known comes from the containers themselves.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

use crate::runtime::CreateRequest;
use crate::spec::{ImageRef, RType, Revision, ServiceSpec};
use crate::state::{Condition, Instance, InstanceId};

/// Label that remembers the image which the other instances of the revision were made from, where it was gone.
pub(super) const MOVED_FROM: &str = "dev.evenkeel.image-moved-from";

/// Most revisions whose image is remembered: far more than run on one machine, at some 200 bytes each.
const MOST: usize = 4096;

/// Images by what was made from them.
#[derive(Debug, Default)]
pub(super) struct Pins(Mutex<HashMap<Key, Pin>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    deployment: String,
    service: String,
    revision: Revision,
}

#[derive(Debug)]
struct Pin {
    image: String,
    /// When the first container was made from it.
    since: DateTime<Utc>,
}

impl Key {
    fn of(id: &InstanceId) -> Self {
        Self { deployment: id.deployment.clone(), service: id.service.clone(), revision: id.revision.clone() }
    }
}

impl Pins {
    /// Notes which image a container was made from; the oldest container of a revision tells.
    pub(super) fn note(&self, instance: &Instance, image: Option<&str>) {
        let Some(image) = image.filter(|image| !image.is_empty()) else { return };
        let since = instance.created_at;
        let mut pins = self.lock();
        if pins.len() >= MOST
            && !pins.contains_key(&Key::of(&instance.id))
            && let Some(oldest) = pins.iter().min_by_key(|(_, pin)| pin.since).map(|(key, _)| key.clone())
        {
            pins.remove(&oldest);
        }
        let pin = pins.entry(Key::of(&instance.id)).or_insert_with(|| Pin { image: image.to_owned(), since });
        if since < pin.since {
            *pin = Pin { image: image.to_owned(), since };
        }
    }

    /// The image that an instance is to be made from, where others of its revision were made before it.
    pub(super) fn image(&self, request: &CreateRequest) -> Option<String> {
        let pins = self.lock();
        pins.get(&Key::of(&request.id)).filter(|_| is_pinned(&request.spec)).map(|pin| pin.image.clone())
    }

    /// Forgets the images of a service: its last slot is gone, and what is made next begins anew.
    pub(super) fn forget_service(&self, id: &InstanceId) {
        self.lock().retain(|key, _| key.deployment != id.deployment || key.service != id.service);
    }

    /// Forgets the images of a deployment.
    pub(super) fn forget_deployment(&self, deployment: &str) {
        self.lock().retain(|key, _| key.deployment != deployment);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Pin>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether all instances of a revision are to run one image though its name may come to stand for another: what keeps
/// replicas does. A run of a job and a warm sandbox take what there is when they begin.
fn is_pinned(spec: &ServiceSpec) -> bool {
    let may_move = matches!(&spec.image.name, ImageRef::Registry(reference) if !reference.contains('@'));
    may_move && spec.rtype() == RType::Service && spec.pool.is_none()
}

/// What is said of an instance that could not be made from the image of the others.
pub(super) fn condition(image: &str) -> Condition {
    let message = format!(
        "it runs another image than the first instance of its revision did: the tag has moved on, and {image} is not here \
         any more; `keel rollout restart` has all run what the tag stands for now"
    );
    Condition::holds("Degraded", "ImageMoved", message)
}
