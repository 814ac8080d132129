//! Creating, starting, stopping and removing containers.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ContainerCreateResponse, ContainerInspectResponse, MountType};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, KillContainerOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
    WaitContainerOptionsBuilder,
};
use chrono::Utc;
use futures::StreamExt;

use super::Inner;
use super::body::{Context, create_body, log_files, wants_init};
use super::changed::{Field, blind_on_podman, changes};
use super::engine::{CallError, WRITE_DEADLINE};
use super::error::explain_start;
use super::facts::Moment;
use super::lost::{Lost, is_unfit, lost};
use super::mounts::mounts;
use super::observe::from_inspect;
use super::ping::Product;
use crate::runtime::{CreateRequest, ErrorKind, Result, RuntimeError, StopRequest};
use crate::spec::Signal;
use crate::state::{Instance, InstanceId, InstanceRef, Phase};

/// Time in which a killed container must have ended; docker stop waits as long after its kill.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// A container that was created now or before.
struct Made {
    /// When it was inspected.
    asked: Moment,
    instance: Instance,
    /// The image that it was made from, by the engine's id.
    image: Option<String>,
    /// What it lacks, where it was not started yet.
    lost: Option<Lost>,
    /// What is otherwise than it was asked for, where it was not started yet.
    changed: Vec<Field>,
    /// Whether it was not there before.
    is_new: bool,
}

impl Made {
    fn new(asked: Moment, found: &ContainerInspectResponse, instance: Instance, is_new: bool) -> Self {
        // One that runs already is not stopped for that.
        let is_waiting = is_new || instance.phase == Phase::Created;
        let changed = changes(found, &instance.id).into_iter().filter(|_| is_waiting).map(|(field, _)| field);
        Self {
            asked,
            image: found.image.clone(),
            lost: lost(found).filter(|_| is_waiting),
            changed: changed.collect(),
            instance,
            is_new,
        }
    }

    /// Whether it was made from another image than this one and not started yet.
    fn is_of_another(&self, image: &str) -> bool {
        self.instance.phase == Phase::Created && self.image.as_deref().is_some_and(|of| of != image)
    }
}

/// What a container is made from.
struct Source {
    /// The image by a name that the engine resolves.
    name: String,
    /// The image that it should be made from, where that is gone.
    moved_from: Option<String>,
}

impl Inner {
    /// Creates the container of a request, or recognises the one that an earlier request made.
    pub(super) async fn create(&self, request: &CreateRequest) -> Result<Instance> {
        self.refuse_unmet(request).await?;
        if self.engine.product().await? == Product::Podman {
            need_sources(request)?;
        }
        let name = self.image_name(&request.spec.image).await?;
        self.ensure_shared(&request.id, &request.spec).await?;
        let mut image = Source { name, moved_from: None };
        let pinned = self.pins.image(request);
        let mut made = self.make(request, &image).await?;
        if let Some(pinned) = pinned.filter(|pinned| made.is_of_another(pinned)) {
            self.discard_made(&made, request).await?;
            image = match self.has_image(&pinned).await? {
                true => Source { name: pinned, moved_from: None },
                false => Source { moved_from: Some(pinned), ..image },
            };
            made = self.make(request, &image).await?;
        }
        if made.lost == Some(Lost::IoWeight) {
            self.weight_refused.store(true, Ordering::Relaxed);
            self.discard_made(&made, request).await?;
            self.refuse_unmet(request).await?;
            made = self.make(request, &image).await?;
        }
        // Once where somebody changed what an earlier request made, and once where the engine itself reports it otherwise.
        for _ in 0..2 {
            if made.lost.is_some() || made.changed.is_empty() {
                break;
            }
            self.discard_made(&made, request).await?;
            if made.is_new {
                tracing::debug!(instance = %request.id, changed = ?made.changed, "the engine reports it otherwise");
                self.blind().extend(made.changed);
            }
            made = self.make(request, &image).await?;
        }
        match made.lost {
            None => self.learn(made).await,
            Some(lost) => {
                self.discard_made(&made, request).await?;
                let why = match lost {
                    Lost::Gpus => "resources.gpu: this engine hands no such processors on; Docker does",
                    Lost::IoWeight => "resources.blkio_weight: this engine leaves it out; remove it",
                };
                Err(RuntimeError::new(ErrorKind::Rejected, format!("creating {}: {why}", request.id)))
            }
        }
    }

    /// Creates the container of a request and inspects it, or the one that an earlier request made.
    async fn make(&self, request: &CreateRequest, image: &Source) -> Result<Made> {
        let mut made = self.try_create(request, image).await;
        // Podman says only now whether it has an init program.
        if let Err(error) = &made
            && wants_init(&request.spec)
            && error.words().contains("container-init binary")
        {
            self.learn_no_init();
            made = self.try_create(request, image).await;
        }
        let what = || format!("creating {}", request.id);
        match made {
            Ok(container) => {
                for warning in &container.warnings {
                    tracing::warn!(instance = %request.id, %warning, "the engine created it with a warning");
                }
                let asked = self.facts.now();
                let found = self.inspection(&container.id).await;
                let found = found.map_err(|error| error.explain(&format!("inspecting container {}", container.id)))?;
                let instance = from_inspect(&found, &self.owner).map_err(|problem| {
                    let message =
                        format!("{}: the engine made another container than it was asked for: {problem}", what());
                    RuntimeError::new(ErrorKind::Failed, message)
                })?;
                Ok(Made::new(asked, &found, instance, true))
            }
            Err(error) if is_name_conflict(&error) => self.recognise(&request.id).await,
            Err(error) if error.is_missing() && error.words().to_lowercase().contains("image") => {
                self.forget_image(&request.spec.image);
                Err(RuntimeError::new(ErrorKind::ImageUnavailable, error.explain(&what()).message))
            }
            // The engine has no such image, network or container to join; none of them is the instance.
            Err(error) if error.is_missing() => {
                self.forget_network(&request.id.deployment);
                Err(RuntimeError::new(ErrorKind::Failed, error.explain(&what()).message))
            }
            Err(error) => Err(error.explain_with(&what(), explain_start)),
        }
    }

    async fn try_create(
        &self,
        request: &CreateRequest,
        image: &Source,
    ) -> std::result::Result<ContainerCreateResponse, CallError> {
        let has_init = wants_init(&request.spec) && self.has_init().await?;
        let weighs_io = !self.weight_refused.load(Ordering::Relaxed);
        let product = self.engine.product().await?;
        let mut blind = self.blind().clone();
        blind.extend(blind_on_podman(&request.spec).filter(|_| product == Product::Podman));
        let log_files = log_files(product);
        let (image, moved_from) = (image.name.as_str(), image.moved_from.as_deref());
        let context = Context { owner: &self.owner, image, moved_from, has_init, weighs_io, log_files, blind };
        let body = create_body(request, &context);
        let options = CreateContainerOptionsBuilder::default().name(&request.id.runtime_name()).build();
        self.engine
            .call(WRITE_DEADLINE, |docker| async move { docker.create_container(Some(options), body).await })
            .await
    }

    fn blind(&self) -> MutexGuard<'_, BTreeSet<Field>> {
        self.blind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn discard_made(&self, made: &Made, request: &CreateRequest) -> Result<()> {
        self.discard(&made.instance.runtime_id)
            .await
            .map_err(|error| error.explain(&format!("creating {}", request.id)))?;
        self.facts.forget(&made.instance.runtime_id);
        Ok(())
    }

    /// Removes a container with its anonymous volumes, killing what still runs.
    async fn discard(&self, id: &str) -> std::result::Result<(), CallError> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        self.engine.call(WRITE_DEADLINE, |docker| async move { docker.remove_container(id, Some(options)).await }).await
    }

    /// The container that has the instance's name, where it is that instance.
    async fn recognise(&self, id: &InstanceId) -> Result<Made> {
        let name = id.runtime_name();
        let asked = self.facts.now();
        let found = self
            .inspection(&name)
            .await
            // Gone between the two calls: trying again creates it.
            .map_err(|error| match error.explain(&format!("inspecting container {name}")) {
                gone if gone.kind == ErrorKind::NotFound => RuntimeError::new(ErrorKind::Failed, gone.message),
                other => other,
            })?;
        match from_inspect(&found, &self.owner) {
            Ok(instance) if instance.id == *id => Ok(Made::new(asked, &found, instance, false)),
            _ => Err(RuntimeError::new(
                ErrorKind::NameTaken,
                format!(
                    "creating {id}: the container {name} exists and was not made by this installation; it is left alone. \
                     Remove it with `docker rm {name}`, or rename the deployment"
                ),
            )),
        }
    }

    /// Remembers what was made, and returns what holds.
    async fn learn(&self, made: Made) -> Result<Instance> {
        let Made { asked, mut instance, image, .. } = made;
        self.pins.note(&instance, image.as_deref());
        if !self.tells_health().await? {
            instance.judge(None);
        }
        self.learn_end(asked, instance).await
    }

    /// Starts a container; one that runs already is success. One that can never be started, or lacks what it was created
    /// with, is removed and told as missing, so that it is created anew.
    pub(super) async fn start(&self, instance: &InstanceRef) -> Result<Instance> {
        let what = format!("starting {}", instance.id);
        if !self.owns(instance).await? {
            return Err(RuntimeError::new(ErrorKind::NotFound, format!("{what}: it does not exist")));
        }
        // Its creator was cut off before it looked.
        if self.facts.get(&instance.runtime_id).is_some_and(|known| known.phase == Phase::Created && is_unfit(&known)) {
            self.remove(instance).await?;
            let message = format!("{what}: the engine had left out what it was created with, so it is removed");
            return Err(RuntimeError::new(ErrorKind::NotFound, message));
        }
        let mut started = self.try_start(instance).await;
        if let Err(error) = &started
            && is_missing_network(error)
        {
            // Somebody removed the network between create and start, as `docker network prune` does.
            self.forget_network(&instance.id.deployment);
            self.ensure_network_once(&instance.id.deployment).await?;
            started = self.try_start(instance).await;
        }
        match started {
            Ok(()) => self.inspect(&instance.runtime_id).await,
            Err(error) if is_missing_network(&error) => {
                Err(RuntimeError::new(ErrorKind::Failed, error.explain(&what).message))
            }
            Err(error) if is_half_started(&error.words()) => {
                let message = error.explain(&what).message;
                self.remove(instance).await?;
                let message = format!("{message}; the engine was cut off while it started it before, so it is removed");
                Err(RuntimeError::new(ErrorKind::NotFound, message))
            }
            Err(error) => {
                let explained = error.explain_with(&what, explain_start);
                if explained.kind == ErrorKind::NotFound {
                    self.facts.forget(&instance.runtime_id);
                }
                Err(explained)
            }
        }
    }

    async fn try_start(&self, instance: &InstanceRef) -> std::result::Result<(), CallError> {
        let id = &instance.runtime_id;
        self.engine
            .call(
                WRITE_DEADLINE,
                |docker| async move { docker.start_container(id, None::<StartContainerOptions>).await },
            )
            .await
    }

    /// Freezes a running container; one that is frozen already is success.
    pub(super) async fn pause(&self, instance: &InstanceRef) -> Result<Instance> {
        let what = format!("pausing {}", instance.id);
        let missing = || RuntimeError::new(ErrorKind::NotFound, format!("{what}: it does not exist"));
        let Some(found) = self.look(instance).await? else { return Err(missing()) };
        match found.phase {
            Phase::Paused { .. } => return Ok(found),
            Phase::Running { .. } => {}
            phase => {
                let message = format!("{what}: it does not run ({}); start it first", phase.name());
                return Err(RuntimeError::new(ErrorKind::Rejected, message));
            }
        }
        let id = &instance.runtime_id;
        let frozen = self.engine.call(WRITE_DEADLINE, |docker| async move { docker.pause_container(id).await }).await;
        let found = self.look(instance).await?.ok_or_else(missing)?;
        match (frozen, &found.phase) {
            // Somebody else was quicker.
            (Ok(()), _) | (Err(_), Phase::Paused { .. }) => Ok(found),
            (Err(error), _) => Err(error.explain(&what)),
        }
    }

    /// Lets a frozen container run on; one that is not frozen is success.
    pub(super) async fn resume(&self, instance: &InstanceRef) -> Result<Instance> {
        let what = format!("resuming {}", instance.id);
        let missing = || RuntimeError::new(ErrorKind::NotFound, format!("{what}: it does not exist"));
        // Both engines refuse to thaw what is not frozen, each in its own words.
        let Some(found) = self.look(instance).await? else { return Err(missing()) };
        if !matches!(found.phase, Phase::Paused { .. }) {
            return Ok(found);
        }
        let thawed = self.thaw(instance, &what).await;
        let found = self.look(instance).await?.ok_or_else(missing)?;
        match (thawed, &found.phase) {
            // Somebody else was quicker.
            (Err(error), Phase::Paused { .. }) => Err(error),
            _ => Ok(found),
        }
    }

    /// Ends a container: signal, grace, kill. The signal is sent here rather than by the engine's own stop, which takes
    /// another one than the container's only since version 1.42 of its API.
    pub(super) async fn stop(&self, instance: &InstanceRef, stop: &StopRequest) -> Result<Option<Instance>> {
        let what = format!("stopping {}", instance.id);
        let Some(found) = self.look(instance).await? else { return Ok(None) };
        if matches!(found.phase, Phase::Created | Phase::Exited(_)) {
            return Ok(Some(found));
        }
        // Podman takes a signal for a frozen container and keeps it until somebody thaws that.
        if self.engine.product().await? == Product::Podman && matches!(found.phase, Phase::Paused { .. }) {
            self.thaw(instance, &what).await?;
        }
        let before = self.facts.stops.will_stop(&found, stop, Utc::now()).await;
        let signal = if stop.grace.is_zero() { Signal::KILL } else { stop.signal };
        if self.signal(instance, signal, &what).await? {
            self.await_end(instance, stop.grace, &what).await?;
        } else {
            self.facts.stops.did_not_stop(&instance.runtime_id, before).await;
        }
        self.look(instance).await
    }

    /// Waits for the end of a container that was sent its stop signal, and kills it after its grace.
    async fn await_end(&self, instance: &InstanceRef, grace: Duration, what: &str) -> Result<()> {
        // A kill needs no second one; its own time follows.
        if !grace.is_zero() {
            if self.ended_within(instance, grace, what).await? {
                return Ok(());
            }
            tracing::info!(instance = %instance.id, ?grace, "it did not end in its grace and is killed");
            let _was_running = self.signal(instance, Signal::KILL, what).await?;
        }
        if self.ended_within(instance, KILL_DEADLINE, what).await? {
            return Ok(());
        }
        Err(RuntimeError::new(
            ErrorKind::Failed,
            format!(
                "{what}: it was killed and has not ended after {KILL_DEADLINE:?}; a process may wait for a disk or a \
                 device (ps shows it in state D)"
            ),
        ))
    }

    /// Sends a signal, and says whether there was something running to take it. A frozen container is thawed first.
    async fn signal(&self, instance: &InstanceRef, signal: Signal, what: &str) -> Result<bool> {
        match self.try_signal(instance, signal).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_missing() => Ok(false),
            Err(error) if is_not_running(&error) => match self.look(instance).await? {
                Some(Instance { phase: Phase::Paused { .. }, .. }) => {
                    self.thaw(instance, what).await?;
                    self.try_signal(instance, signal).await.map_err(|error| error.explain(what))?;
                    Ok(true)
                }
                _ => Ok(false),
            },
            Err(error) => Err(error.explain(what)),
        }
    }

    async fn thaw(&self, instance: &InstanceRef, what: &str) -> Result<()> {
        let id = &instance.runtime_id;
        self.engine
            .call(WRITE_DEADLINE, |docker| async move { docker.unpause_container(id).await })
            .await
            .map_err(|error| error.explain(what))
    }

    async fn try_signal(&self, instance: &InstanceRef, signal: Signal) -> std::result::Result<(), CallError> {
        let id = &instance.runtime_id;
        let options = KillContainerOptionsBuilder::default().signal(&signal.to_string()).build();
        self.engine.call(WRITE_DEADLINE, |docker| async move { docker.kill_container(id, Some(options)).await }).await
    }

    /// Whether a container ended within that time, or is gone.
    async fn ended_within(&self, instance: &InstanceRef, limit: Duration, what: &str) -> Result<bool> {
        let docker = self.engine.client().await?;
        let Ok(end) = tokio::time::timeout(limit, end_of(&docker, &instance.runtime_id)).await else {
            return Ok(false);
        };
        match end {
            Ok(_) => Ok(true),
            Err(error) if super::error::is_missing(&error) => Ok(true),
            Err(error) => {
                self.engine.forget_on(&error);
                Err(super::error::explain(what, &error))
            }
        }
    }

    /// Waits until nobody reads the output of a container any more, and not for long; not at all for one that is known to
    /// run, whose readers have no reason to end.
    pub(super) async fn await_readers(&self, instance: &InstanceRef) {
        let id = &instance.runtime_id;
        if self.facts.get(id).is_none_or(|known| matches!(known.phase, Phase::Exited(_))) {
            self.readers.done(id).await;
        }
    }

    /// Removes a container of this installation; one that is gone is success.
    pub(super) async fn remove(&self, instance: &InstanceRef) -> Result<()> {
        if !self.owns(instance).await? {
            return Ok(());
        }
        // Podman's forced removal gives the whole grace; Docker's kills.
        if self.engine.product().await? == Product::Podman {
            let _was_running = self.signal(instance, Signal::KILL, &format!("removing {}", instance.id)).await?;
        }
        let id = &instance.runtime_id;
        match self.discard(id).await {
            Ok(()) => {}
            Err(error) if error.is_missing() => {}
            Err(error) if is_being_removed(&error) => self.await_removal(instance).await?,
            Err(error) => return Err(error.explain(&format!("removing {}", instance.id))),
        }
        self.facts.forget(id);
        Ok(())
    }

    /// Waits until a removal that somebody else began is done.
    async fn await_removal(&self, instance: &InstanceRef) -> Result<()> {
        let what = format!("removing {}", instance.id);
        let docker = self.engine.client().await?;
        let options = WaitContainerOptionsBuilder::default().condition("removed").build();
        let mut answers = docker.wait_container(&instance.runtime_id, Some(options));
        match tokio::time::timeout(WRITE_DEADLINE, answers.next()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(RuntimeError::new(
                ErrorKind::Failed,
                format!("{what}: a removal that was begun before is not done after {WRITE_DEADLINE:?}"),
            )),
        }
    }
}

/// Fails over a bind whose source does not exist, as Docker does: Podman makes a directory of that name instead. Looked
/// at from here, because a Podman service is one of this machine. Trying again helps once somebody made the source.
fn need_sources(request: &CreateRequest) -> Result<()> {
    let sources = mounts(request).into_iter().filter(|mount| mount.typ == Some(MountType::BIND));
    let missing = sources.filter_map(|mount| mount.source).find(|source| !Path::new(source).exists());
    missing.map_or(Ok(()), |source| {
        Err(RuntimeError::new(
            ErrorKind::Failed,
            format!("creating {}: bind source path does not exist: {source}", request.id),
        ))
    })
}

/// Waits until a container does not run, and returns its exit code where the engine tells it.
///
/// # Errors
/// The engine can't be asked, or has no such container.
pub(super) async fn end_of(docker: &Docker, id: &str) -> std::result::Result<Option<i64>, Error> {
    let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
    match docker.wait_container(id, Some(options)).next().await {
        None => Ok(None),
        // A negative code is none.
        Some(Ok(answer)) if answer.error.is_none() => Ok(Some(answer.status_code).filter(|code| *code >= 0)),
        Some(Ok(_)) => Ok(None),
        // bollard gives a non-zero exit code as an error.
        Some(Err(Error::DockerContainerWaitError { code, error })) => Ok(error.is_empty().then_some(code)),
        Some(Err(error)) => Err(error),
    }
}

/// Docker gives 409; Podman 4 gives 500.
fn is_name_conflict(error: &CallError) -> bool {
    matches!(error.status(), Some(409 | 500)) && error.words().contains("already in use")
}

/// Whether an engine refuses a start because containerd has something of the container's id: an engine that was killed
/// while it started the container left that behind, and refuses every further start.
fn is_half_started(words: &str) -> bool {
    words == "id already in use"
        || (words.starts_with("failed to create task for container:") && words.contains("already exists"))
}

fn is_missing_network(error: &CallError) -> bool {
    let words = error.words().to_lowercase();
    error.status().is_some() && words.contains("network") && words.contains("not found")
}

/// Docker gives 409 for a container that does not run; Podman 409 or 500 with its own words.
fn is_not_running(error: &CallError) -> bool {
    let words = error.words().to_lowercase();
    error.status() == Some(409)
        || words.contains("is not running")
        || words.contains("container state improper")
        || words.contains("can only kill running containers")
}

fn is_being_removed(error: &CallError) -> bool {
    error.status() == Some(409) && error.words().contains("already in progress")
}

#[cfg(test)]
mod tests {
    use super::is_half_started;

    #[test]
    fn half_a_start_is_told_from_what_is_taken_for_now() {
        let table = [
            ("id already in use", true),
            ("failed to create task for container: AlreadyExists: task 4f2a: already exists: unknown", true),
            ("driver failed programming external connectivity: port is already allocated", false),
            ("listen tcp4 127.0.0.1:80: bind: address already in use", false),
            ("endpoint with name tasks_web_0_a1_0 already exists in network keel_tasks", false),
            ("pid already in use", false),
        ];
        for (words, is_so) in table {
            assert_eq!(is_half_started(words), is_so, "{words}");
        }
    }
}
