//! Makes images available: by their pull policy, each once, layers side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use futures::{StreamExt, TryStreamExt};
use tokio::sync::Semaphore;

use super::archive::Section;
use super::bounds::{PARALLEL_LAYERS, PROGRESS_INTERVAL, PULL_LIMIT};
use super::collect::{collect, sweep_unfinished, unneeded};
use super::download;
use super::error::{ImageError, Result};
use super::layers::{self, Layer, Outcome, Source};
use super::reference::Reference;
use super::registry::{Access, Registry};
use super::resolve::{self, Resolved};
use super::root;
use super::store::{ImageRecord, Lock, Store};
use crate::runtime::Progress;
use crate::runtime::sandbox::layout::Layout;
use crate::runtime::transfers::{Origin, Teller, Transfers};
use crate::spec::{Image, ImageRef, PullPolicy};

/// The images of a sandbox runtime.
#[derive(Debug)]
pub struct Images {
    pub(super) store: Store,
    access: Access,
    transfers: Transfers,
    /// Unpacking is computing: as many at once as there are processors.
    unpacking: Arc<Semaphore>,
    /// Names of images that are needed though no instance may be made of them.
    needed: Mutex<BTreeSet<String>>,
}

impl Images {
    /// The images below the root of a runtime.
    pub fn new(root: &Path, access: Access) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            store: Store::new(root),
            access,
            transfers: Transfers::default(),
            unpacking: Arc::new(Semaphore::new(processors)),
            needed: Mutex::default(),
        }
    }

    /// Keeps the images of these names from being collected, and no others for this reason.
    pub fn need(&self, names: BTreeSet<String>) {
        *self.needed.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }

    /// Removes what nothing needs; returns the names of the images that went.
    ///
    /// # Errors
    /// The directories can't be read.
    pub fn collect(&self, layout: &Layout) -> crate::runtime::Result<Vec<String>> {
        let needed = self.needed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        collect(&self.store, layout, &needed)
    }

    /// Images that nothing needs and that were not used for a week, each with the time of its last use.
    ///
    /// # Errors
    /// The directories can't be read.
    pub fn unneeded(&self, layout: &Layout) -> std::io::Result<BTreeMap<String, SystemTime>> {
        let needed = self.needed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        unneeded(&self.store, layout, &needed)
    }

    /// Where they lie.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Makes an image available by its pull policy. True where something came.
    ///
    /// # Errors
    /// It can't be had.
    pub async fn ensure(&self, image: &Image, progress: Teller<'_>) -> crate::runtime::Result<bool> {
        let name = image.name.to_string();
        let (store, wanted) = (self.store.clone(), image.clone());
        let ready =
            blocking(move || is_ready(&store, &wanted)).await.and_then(|ready| ready).map_err(ImageError::told)?;
        if ready {
            return Ok(false);
        }
        let work = async {
            match tokio::time::timeout(PULL_LIMIT, self.fetch(image, progress)).await {
                Ok(done) => done,
                Err(_) => {
                    let limit = PULL_LIMIT.as_secs() / 3600;
                    Err(ImageError::unavailable(format!("it did not come within {limit} hours; check the network")))
                }
            }
            .map_err(|error| error.within(format!("image {name}")).told())
        };
        let origin = match &image.name {
            ImageRef::Registry(reference) => Origin::registry_of(reference),
            ImageRef::Oci { .. }
            | ImageRef::OciArchive(_)
            | ImageRef::DockerArchive(_)
            | ImageRef::Dir(_)
            | ImageRef::Host => Origin::Machine,
        };
        self.transfers.once(&name, origin, progress, work).await.map(|()| true)
    }

    /// The digest that a registry has for a reference now.
    ///
    /// # Errors
    /// The registry does not have it, or does not answer.
    pub async fn digest(&self, name: &str) -> crate::runtime::Result<String> {
        let asked = async {
            let reference =
                Reference::parse(name).ok_or_else(|| ImageError::unavailable("it is no reference of a registry"))?;
            let registry = Registry::open(&reference, &self.access, &|_| {}).await?;
            match registry.current(&reference.selector).await {
                Ok(Some(digest)) => Ok(digest.to_string()),
                // Some registries tell it with the manifest alone, or not at all; and why there is none is told then.
                Ok(None) | Err(_) => Ok(registry.manifest(&reference.selector).await?.digest.to_string()),
            }
        };
        asked.await.map_err(|error: ImageError| error.within(format!("image {name}")).told())
    }

    /// Fetches what is not here.
    async fn fetch(&self, image: &Image, progress: Teller<'_>) -> Result<()> {
        let name = image.name.to_string();
        let store = self.store.clone();
        let lease = Arc::new(
            blocking(move || {
                store.prepare()?;
                if let Err(error) = sweep_unfinished(&store) {
                    tracing::warn!(%error, "what an earlier process left unfinished stays for now");
                }
                store.lease()
            })
            .await??,
        );
        match &image.name {
            ImageRef::Registry(reference) => self.fetch_remote(image, reference, &lease, progress).await,
            local => {
                let (store, local) = (self.store.clone(), local.clone());
                let resolved = blocking(move || resolve_local(&local, &store)).await??;
                self.install(&name, resolved, None, &lease, progress).await
            }
        }
    }

    async fn fetch_remote(
        &self,
        image: &Image,
        reference: &str,
        lease: &Arc<Lock>,
        progress: Teller<'_>,
    ) -> Result<()> {
        let local = self.store.record(reference)?;
        let policy = image.pull_policy();
        let is_optional = policy == PullPolicy::Newer && local.is_some();
        let fetched = self.fetch_newest(reference, local.as_ref(), is_optional, lease, progress).await;
        match (fetched, local) {
            // As Podman has it: a registry that can't be asked is no error where an image is here.
            (Err(error @ ImageError::Unavailable(_)), Some(_)) if policy == PullPolicy::Newer => {
                tracing::warn!(reference, %error, "the image that is here is used");
                self.store.touch(reference);
                Ok(())
            }
            (fetched, _) => fetched,
        }
    }

    /// Where it `is_optional`, a registry that does not answer is not asked again: a replica waits meanwhile.
    async fn fetch_newest(
        &self,
        name: &str,
        local: Option<&ImageRecord>,
        is_optional: bool,
        lease: &Arc<Lock>,
        progress: Teller<'_>,
    ) -> Result<()> {
        let reference =
            Reference::parse(name).ok_or_else(|| ImageError::unavailable("it is no reference of a registry"))?;
        let registry = Registry::open(&reference, &self.access, progress).await?;
        if let Some(local) = local {
            match registry.current(&reference.selector).await {
                Ok(Some(current)) if current.to_string() == local.source => {
                    self.store.touch(name);
                    return Ok(());
                }
                Err(error) if is_optional => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        let resolved = resolve::in_registry(&registry, &reference.selector, &self.store).await?;
        self.install(name, resolved, Some(&registry), lease, progress).await
    }

    /// Brings the layers here and takes note of the image.
    async fn install(
        &self,
        name: &str,
        resolved: Resolved,
        registry: Option<&Registry<'_>>,
        lease: &Arc<Lock>,
        progress: Teller<'_>,
    ) -> Result<()> {
        let Resolved { source, documents, layers, config, platform } = resolved;
        let meter = Meter::new(&layers, progress);
        let work = Work { images: self, registry, lease, meter: &meter };
        let all: Vec<_> = layers
            .iter()
            .enumerate()
            .map(|(index, layer)| work.layer(index, layer, (index == 0).then(Vec::new)))
            .collect();
        let mut names: Vec<Option<String>> = futures::stream::iter(all).buffered(PARALLEL_LAYERS).try_collect().await?;
        for (index, layer) in layers.iter().enumerate() {
            if names.get(index).is_some_and(Option::is_some) {
                continue;
            }
            let below = names.iter().take(index).rev().flatten().map(|name| self.store.layer_root(name)).collect();
            if let Some(name) = names.get_mut(index) {
                *name = work.layer(index, layer, Some(below)).await?;
            }
        }
        let mut names: Vec<String> = names.into_iter().flatten().collect();
        if names.len() != layers.len() {
            return Err(ImageError::Failed("a layer needs layers below that are there".to_owned()));
        }
        let (store, name) = (self.store.clone(), name.to_owned());
        blocking(move || {
            names.extend(root::above(&store, &names)?);
            let documents = documents.iter().map(|bytes| store.keep(bytes)).collect::<Result<_>>()?;
            let record = ImageRecord::new(&name, source, documents, each_once(names), config);
            store.write_record(&ImageRecord { platform, ..record })
        })
        .await?
    }
}

/// Whether nothing has to be done: what the policy asks for is here.
fn is_ready(store: &Store, image: &Image) -> Result<bool> {
    let name = image.name.to_string();
    let record = || store.record(&name);
    let ready = match &image.name {
        ImageRef::Registry(_) => match image.pull_policy() {
            PullPolicy::Always | PullPolicy::Newer => false,
            PullPolicy::IfNotPresent => record()?.is_some(),
            PullPolicy::Never => {
                if record()?.is_none() {
                    return Err(ImageError::unavailable(format!(
                        "image {name} is not here and its pull_policy is never; change the policy, or pull it once with \
                         if_not_present"
                    )));
                }
                true
            }
        },
        local => {
            let state = match local {
                ImageRef::Oci { path, .. } => resolve::layout_state(Path::new(path)),
                ImageRef::OciArchive(path) | ImageRef::DockerArchive(path) => resolve::file_state(Path::new(path)),
                _ => return Ok(true),
            };
            let state = state.map_err(|error| error.within(format!("image {name}")))?;
            record()?.is_some_and(|record| record.source == state)
        }
    };
    if ready {
        store.touch(&name);
    }
    Ok(ready)
}

fn resolve_local(image: &ImageRef, store: &Store) -> Result<Resolved> {
    match image {
        ImageRef::Oci { path, tag } => resolve::in_layout(Path::new(path), tag.as_deref()),
        ImageRef::OciArchive(path) => resolve::in_oci_archive(Path::new(path), store),
        ImageRef::DockerArchive(path) => resolve::in_docker_archive(Path::new(path), store),
        ImageRef::Registry(_) | ImageRef::Dir(_) | ImageRef::Host => {
            Err(ImageError::unavailable("it is no image of a file"))
        }
    }
}

/// A layer that comes twice counts where it is uppermost: there it hides all that its lower twin could show.
fn each_once(names: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::with_capacity(names.len());
    for name in names.into_iter().rev() {
        if !kept.contains(&name) {
            kept.push(name);
        }
    }
    kept.reverse();
    kept
}

async fn blocking<T: Send + 'static>(action: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(action).await.map_err(|error| ImageError::Failed(error.to_string()))
}

/// The work on one image.
#[derive(Clone, Copy)]
struct Work<'a> {
    images: &'a Images,
    registry: Option<&'a Registry<'a>>,
    lease: &'a Arc<Lock>,
    meter: &'a Meter<'a>,
}

impl Work<'_> {
    /// Unpacks a layer where that was not done before, and returns the name of its directory; `None` where it needs the
    /// layers below and they are not given.
    async fn layer(self, index: usize, layer: &Layer, lower: Option<Vec<PathBuf>>) -> Result<Option<String>> {
        let store = &self.images.store;
        let layer = known_by_digest(layer).await?;
        if let Some(name) = layer.present(store) {
            self.meter.done(index);
            return Ok(Some(name));
        }
        let lock = store.lock_layer(&layer.diff, self.lease).await?;
        if let Some(name) = layer.present(store) {
            self.meter.done(index);
            return Ok(Some(name));
        }
        let (mut outcome, lock) = self.install(index, &layer, lower.clone(), lock).await?;
        if let (Outcome::Damaged(_), Source::Remote(_)) = (&outcome, &layer.source) {
            // What lay here was dropped; it comes again, once.
            (outcome, _) = self.install(index, &layer, lower, lock).await?;
        }
        match outcome {
            Outcome::Done(name) => {
                self.meter.done(index);
                Ok(Some(name))
            }
            Outcome::NeedsLower => Ok(None),
            Outcome::Damaged(content) => {
                let wanted = layer.blob().unwrap_or(&layer.diff);
                let message = format!("the layer {}: {wanted} has the content of {content}", layer.diff.short());
                Err(ImageError::refused(message))
            }
        }
    }

    /// Brings the archive of a layer here and unpacks it; of one from a registry nothing stays that is of no use any more.
    async fn install(
        self,
        index: usize,
        layer: &Layer,
        lower: Option<Vec<PathBuf>>,
        lock: Lock,
    ) -> Result<(Outcome, Lock)> {
        let store = &self.images.store;
        let (archive, blob) = match (&layer.source, self.registry) {
            (Source::Local(section, _), _) => (section.clone(), None),
            (Source::Remote(descriptor), Some(registry)) => {
                let tell = |have| self.meter.have(index, have);
                let path = download::blob(registry, descriptor, store, self.lease, &tell).await?;
                let section = Section::file(&path)
                    .map_err(|error| ImageError::io(format!("opening {}", path.display()), &error))?;
                (section, Some(path))
            }
            (Source::Remote(_), None) => return Err(ImageError::Failed("a layer lies nowhere".to_owned())),
        };
        let permit = Arc::clone(&self.images.unpacking).acquire_owned().await;
        let (store, layer, lease) = (store.clone(), layer.clone(), Arc::clone(self.lease));
        let waiting = Waiting::default();
        let given_up = Arc::clone(&waiting.given_up);
        // Locks are held to the end of the work, which is near where nobody waits for it any more.
        let (outcome, lock) = blocking(move || {
            let _held = (lease, permit);
            (layers::install(&store, &layer, &archive, lower.as_deref(), &given_up), lock)
        })
        .await?;
        let outcome = outcome?;
        if let (Outcome::Done(_) | Outcome::Damaged(_), Some(blob)) = (&outcome, blob) {
            // What stays is swept later.
            let _ = tokio::fs::remove_file(blob).await;
        }
        Ok((outcome, lock))
    }
}

/// Somebody who waits for a layer, until it is dropped.
#[derive(Default)]
struct Waiting {
    given_up: Arc<AtomicBool>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

/// The layer with the digest of its archive, read where nobody told it.
async fn known_by_digest(layer: &Layer) -> Result<Layer> {
    let Source::Local(section, None) = &layer.source else { return Ok(layer.clone()) };
    let section = section.clone();
    let (section, digest) = blocking(move || layers::packed_digest(&section).map(|digest| (section, digest))).await??;
    Ok(Layer { source: Source::Local(section, Some(digest)), ..layer.clone() })
}

/// How far an image has come.
struct Meter<'a> {
    total: u64,
    have: Vec<(AtomicU64, u64)>,
    done: AtomicUsize,
    told: Mutex<Option<Instant>>,
    tell: Teller<'a>,
}

impl<'a> Meter<'a> {
    fn new(layers: &[Layer], tell: Teller<'a>) -> Self {
        let have: Vec<_> = layers.iter().map(|layer| (AtomicU64::new(0), layer.packed_size())).collect();
        let total = have.iter().map(|(_, size)| *size).fold(0, u64::saturating_add);
        Self { total, have, done: AtomicUsize::new(0), told: Mutex::default(), tell }
    }

    fn have(&self, index: usize, bytes: u64) {
        if let Some((have, size)) = self.have.get(index) {
            have.store(bytes.min(*size), Ordering::Relaxed);
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|at| at.elapsed() >= PROGRESS_INTERVAL) {
            *told = Some(Instant::now());
            drop(told);
            self.tell();
        }
    }

    fn done(&self, index: usize) {
        if let Some((have, size)) = self.have.get(index) {
            have.store(*size, Ordering::Relaxed);
        }
        self.done.fetch_add(1, Ordering::Relaxed);
        self.tell();
    }

    fn tell(&self) {
        let current = self.have.iter().map(|(have, _)| have.load(Ordering::Relaxed)).fold(0, u64::saturating_add);
        let message = format!("{} of {} layers", self.done.load(Ordering::Relaxed), self.have.len());
        (self.tell)(Progress { message, current: Some(current), total: Some(self.total) });
    }
}

#[cfg(test)]
mod tests {
    use super::each_once;

    #[test]
    fn a_layer_that_comes_twice_counts_where_it_is_uppermost() {
        let names = |text: &str| text.chars().map(String::from).collect::<Vec<_>>();
        assert_eq!(each_once(names("abac")), names("bac"));
        assert_eq!(each_once(names("")), names(""));
    }
}
