//! Images: looking, pulling, loading.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bollard::auth::DockerCredentials;
use bollard::models::CreateImageInfo;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures::StreamExt;

use super::Inner;
use super::error::explain;
use crate::runtime::credentials::{Credential, Secret};
use crate::runtime::transfers::{Origin, awaited};
use crate::runtime::{ErrorKind, Progress, Result, RuntimeError};
use crate::spec::{Image, ImageRef, PullPolicy, RuntimeKind};

/// Time without any progress after which a pull is given up. Kubernetes' kubelet uses one minute
/// (imagePullProgressDeadline); twice that, because an engine says nothing while it unpacks a large layer.
const PROGRESS_DEADLINE: Duration = Duration::from_secs(120);

/// Time for which an image that was found counts as found. It spans the way from having an image to creating a container
/// of it, and a burst of containers of one image; a removal in between is what the create reports.
const FOUND_HOLDS: Duration = Duration::from_secs(5);

/// Names by which the engine was seen to have images, by reference.
#[derive(Debug, Default)]
pub(super) struct Found(Mutex<HashMap<String, (String, Instant)>>);

impl Found {
    /// The name of an image that was found a moment ago.
    fn name(&self, reference: &str, now: Instant) -> Option<String> {
        let found = self.lock();
        let fresh = |(_, at): &&(String, Instant)| now.saturating_duration_since(*at) < FOUND_HOLDS;
        found.get(reference).filter(fresh).map(|(name, _)| name.clone())
    }

    /// Notes that an image was found, and lets go of what was found long ago.
    fn note(&self, reference: &str, name: &str, now: Instant) {
        let mut found = self.lock();
        found.retain(|_, (_, at)| now.saturating_duration_since(*at) < FOUND_HOLDS);
        found.insert(reference.to_owned(), (name.to_owned(), now));
    }

    /// Notes that an image is not there any more.
    fn forget(&self, reference: &str) {
        self.lock().remove(reference);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (String, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Longest wait for what a registry tells an engine of an image: two requests and maybe one for a token.
const REGISTRY_DEADLINE: Duration = Duration::from_secs(25);

fn no_digest(what: &str) -> RuntimeError {
    RuntimeError::new(ErrorKind::ImageUnavailable, format!("{what}: the registry tells none"))
}

/// Looks for images at once: hundreds of replicas of one image begin together, and the first look tells all of them.
pub(super) const LOOKS: usize = 4;

impl Inner {
    /// Makes an image available by its pull policy.
    pub(super) async fn ensure_image(&self, image: &Image, progress: &(dyn Fn(Progress) + Send + Sync)) -> Result<()> {
        let reference = match &image.name {
            ImageRef::Registry(reference) => reference,
            ImageRef::DockerArchive(path) | ImageRef::OciArchive(path) => {
                let _name = self.ensure_archive(path, progress).await?;
                return Ok(());
            }
            other => return Err(unsupported(other)),
        };
        match image.pull_policy() {
            // A pull compares digests first and transfers only what is missing.
            PullPolicy::Always => self.pull(reference, progress).await,
            PullPolicy::Newer => match self.pull(reference, progress).await {
                // As Podman has it: a registry that can't be asked is no error where an image is here.
                Err(error)
                    if error.kind == ErrorKind::ImageUnavailable && self.local_name(reference).await?.is_some() =>
                {
                    tracing::warn!(reference, %error, "the image that is here is used");
                    Ok(())
                }
                pulled => pulled,
            },
            PullPolicy::IfNotPresent => match self.local_name(reference).await? {
                Some(_) => Ok(()),
                None => self.pull(reference, progress).await,
            },
            PullPolicy::Never => match self.local_name(reference).await? {
                Some(_) => Ok(()),
                None => Err(RuntimeError::new(
                    ErrorKind::ImageUnavailable,
                    format!(
                        "image {reference} is not here and its pull_policy is never; load it, or change the policy"
                    ),
                )),
            },
        }
    }

    /// The name by which the engine finds an image that [`Inner::ensure_image`] made available.
    pub(super) async fn image_name(&self, image: &Image) -> Result<String> {
        match &image.name {
            ImageRef::Registry(reference) => {
                // A missing image is reported by the create.
                Ok(self.local_name(reference).await?.unwrap_or_else(|| reference.clone()))
            }
            ImageRef::DockerArchive(path) | ImageRef::OciArchive(path) => self.ensure_archive(path, &|_| {}).await,
            other => Err(unsupported(other)),
        }
    }

    /// Looks for an image again the next time, because the engine does not have it any more.
    pub(super) fn forget_image(&self, image: &Image) {
        if let ImageRef::Registry(reference) = &image.name {
            self.found.forget(reference);
        }
    }

    /// The name that the engine has an image by, where it has it, or had it a moment ago.
    async fn local_name(&self, reference: &str) -> Result<Option<String>> {
        if let Some(name) = self.found.name(reference, Instant::now()) {
            return Ok(Some(name));
        }
        // Nobody closes it; without a permit the look goes ahead.
        let _permit = self.looks.acquire().await;
        // Whoever looked meanwhile may have found it.
        match self.found.name(reference, Instant::now()) {
            Some(name) => Ok(Some(name)),
            None => self.look_for_image(reference).await,
        }
    }

    async fn look_for_image(&self, reference: &str) -> Result<Option<String>> {
        for name in local_names(reference) {
            if self.has_image(&name).await? {
                self.found.note(reference, &name, Instant::now());
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Whether an image is here, by name or id.
    pub(super) async fn has_image(&self, name: &str) -> Result<bool> {
        match self.engine.image(name).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_missing() => Ok(false),
            Err(error) => Err(error.explain(&format!("looking for image {name}"))),
        }
    }

    /// The digest that a registry has for a reference now: as the engine is told it, or, where it can't ask (Podman), as the
    /// image has it that comes with a pull.
    pub(super) async fn digest(&self, reference: &str) -> Result<String> {
        let what = format!("asking for the digest of {reference}");
        let registry = reference.split('/').next().unwrap_or(reference);
        let credentials = self.credentials.of(registry).await.map(for_engine);
        let told = self
            .engine
            .call(REGISTRY_DEADLINE, |docker| {
                let credentials = credentials.clone();
                async move { docker.inspect_registry_image(reference, credentials).await }
            })
            .await;
        match told {
            Ok(told) => match told.descriptor.digest {
                Some(digest) => Ok(digest),
                None => Err(no_digest(&what)),
            },
            Err(error) if error.is_missing() => {
                self.pull(reference, &|_| {}).await?;
                self.local_digest(reference).await?.ok_or_else(|| no_digest(&what))
            }
            Err(error) => Err(error.explain(&what)),
        }
    }

    /// The digest that an image has here by its registry's name.
    async fn local_digest(&self, reference: &str) -> Result<Option<String>> {
        let found = self.engine.image(reference).await;
        let image = found.map_err(|error| error.explain(&format!("looking for image {reference}")))?;
        let repository = reference.rsplit_once(':').map_or(reference, |(repository, _)| repository);
        let mut digests = image.repo_digests.into_iter().flatten();
        let digest = digests.find_map(|name| match name.split_once('@') {
            Some((of, digest)) if of == repository => Some(digest.to_owned()),
            _ => None,
        });
        Ok(digest)
    }

    /// Pulls an image, or waits for another pull of it that runs.
    async fn pull(&self, reference: &str, progress: &(dyn Fn(Progress) + Send + Sync)) -> Result<()> {
        let origin = Origin::registry_of(reference);
        self.transfers.once(reference, origin, progress, self.pull_now(reference, progress)).await
    }

    async fn pull_now(&self, reference: &str, progress: &(dyn Fn(Progress) + Send + Sync)) -> Result<()> {
        let what = format!("pulling {reference}");
        let registry = reference.split('/').next().unwrap_or(reference);
        progress(awaited(registry));
        let credentials = self.credentials.of(registry).await.map(for_engine);
        let docker = self.engine.client().await?;
        let options = CreateImageOptionsBuilder::default().from_image(reference).build();
        let mut lines = docker.create_image(Some(options), None, credentials);
        loop {
            match tokio::time::timeout(PROGRESS_DEADLINE, lines.next()).await {
                Ok(Some(Ok(line))) => progress(progress_of(line)),
                Ok(Some(Err(error))) => {
                    self.engine.forget_on(&error);
                    return Err(refused(&what, &error));
                }
                Ok(None) => break,
                Err(_) => {
                    return Err(RuntimeError::new(
                        ErrorKind::ImageUnavailable,
                        format!("{what}: no progress for {PROGRESS_DEADLINE:?}; check the network and the registry"),
                    ));
                }
            }
        }
        // Podman was seen to end a failed pull without an error that bollard knows.
        match self.look_for_image(reference).await? {
            Some(_) => Ok(()),
            None => Err(RuntimeError::new(
                ErrorKind::ImageUnavailable,
                format!("{what}: the engine ended the pull and does not have the image; check the reference"),
            )),
        }
    }
}

/// Names that the engine may have an image by. Podman keeps what was built or imported here below `localhost`.
fn local_names(reference: &str) -> Vec<String> {
    let mut names = vec![reference.to_owned()];
    if let Some(path) = reference.strip_prefix("docker.io/") {
        names.push(format!("localhost/{}", path.strip_prefix("library/").unwrap_or(path)));
    }
    names
}

/// A credential in the words of an engine.
fn for_engine(credential: Credential) -> DockerCredentials {
    let (password, identitytoken) = match credential.secret {
        Secret::Password(password) => (Some(password), None),
        Secret::IdentityToken(token) => (None, Some(token)),
    };
    DockerCredentials {
        username: credential.user,
        password,
        identitytoken,
        serveraddress: Some(credential.server),
        ..DockerCredentials::default()
    }
}

fn progress_of(line: CreateImageInfo) -> Progress {
    let status = line.status.unwrap_or_default();
    let message = match line.id {
        Some(layer) if !status.contains(&layer) => format!("{layer}: {status}"),
        _ => status,
    };
    let detail = line.progress_detail.unwrap_or_default();
    let bytes = |count: Option<i64>| count.and_then(|count| u64::try_from(count).ok());
    Progress { message, current: bytes(detail.current), total: bytes(detail.total) }
}

/// A failed pull: the engine's answers mean that the image can't be had; an engine that is gone means that.
fn refused(what: &str, error: &bollard::errors::Error) -> RuntimeError {
    let explained = explain(what, error);
    match explained.kind {
        ErrorKind::Unavailable | ErrorKind::Timeout => explained,
        _ => RuntimeError::new(ErrorKind::ImageUnavailable, explained.message),
    }
}

fn unsupported(image: &ImageRef) -> RuntimeError {
    let why = RuntimeKind::Docker.refusal(image);
    RuntimeError::new(ErrorKind::Unsupported, why.unwrap_or_else(|| format!("the docker runtime can't run {image}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_holds_for_a_moment() {
        let (found, began) = (Found::default(), Instant::now());
        found.note("docker.io/org/web:1", "localhost/org/web:1", began);
        let name = |after| found.name("docker.io/org/web:1", began + after);
        assert_eq!(name(Duration::from_secs(4)).as_deref(), Some("localhost/org/web:1"));
        assert_eq!(name(FOUND_HOLDS), None);
        found.note("docker.io/org/api:1", "docker.io/org/api:1", began + FOUND_HOLDS);
        assert_eq!(found.lock().len(), 1, "what was found long ago is let go");
        found.forget("docker.io/org/api:1");
        assert_eq!(found.name("docker.io/org/api:1", began + FOUND_HOLDS), None);
    }

    #[test]
    fn images_made_here_are_found_by_podmans_name_too() {
        assert_eq!(local_names("docker.io/library/web:1"), ["docker.io/library/web:1", "localhost/web:1"]);
        assert_eq!(local_names("docker.io/org/web:1"), ["docker.io/org/web:1", "localhost/org/web:1"]);
        assert_eq!(local_names("ghcr.io/org/web:1"), ["ghcr.io/org/web:1"]);
    }
}
