//! What tags stand for: asked from time to time for services that follow theirs, and when somebody applies or restarts
//! them. What is found is remembered with their rollouts, which decide on it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::core::State;
use super::memory::Note;
use super::message::Message;
use crate::plan::revisions::followed;
use crate::plan::{Wait, backoff};
use crate::runtime::{ErrorKind, Result, RuntimeError};
use crate::spec::{Revision, RuntimeKind};
use crate::state::{DesiredDeployment, DesiredService, Instance, Phase};

/// Time between two looks at one tag, with up to a tenth more by its name so that not all of them come together: what was
/// pushed is rolled out within minutes, and a registry is asked for a few hundred bytes twelve times an hour.
pub const IMAGE_EVERY: Duration = Duration::from_secs(300);

/// Longest wait for an answer of a registry. Nothing of a service is begun while its tag is asked for the first time.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Tags that are asked for side by side: enough for what one machine runs, and no burst for any registry.
const SIDE_BY_SIDE: usize = 4;

/// Time until runtimes are told which images are needed, after that may have changed: shorter than any of them keeps an
/// image that was used a moment ago, and long enough for the changes of a whole rollout to be told at once.
const TELL_AFTER: Duration = Duration::from_secs(30);

/// A tag on one runtime.
type Key = (RuntimeKind, String);

/// The tags that services follow.
#[derive(Debug, Default)]
pub struct FollowedTags {
    tags: BTreeMap<Key, Tag>,
    /// Deployments of which somebody wants every tag asked for that was not known when they said so: what they declare may
    /// be read only after that, and a runtime may begin to answer only then.
    wanted: BTreeSet<String>,
    /// When runtimes are told which images are needed; absent where they know.
    tell: Option<Instant>,
}

#[derive(Debug)]
struct Tag {
    /// When it is asked for next.
    due: Instant,
    /// Whether it is being asked for.
    asking: bool,
    /// Whether nothing waits for the answer.
    answered: bool,
    /// Whether the last question failed.
    failed: bool,
}

impl FollowedTags {
    /// Has runtimes told which images are needed, as that may be other ones now.
    pub fn tell_soon(&mut self) {
        self.tell.get_or_insert_with(|| Instant::now() + TELL_AFTER);
    }

    /// When something is to be done.
    pub fn next(&self) -> Option<Instant> {
        self.tell.into_iter().chain(self.next_question()).min()
    }

    /// When the next one is to be asked for.
    fn next_question(&self) -> Option<Instant> {
        let asking = self.tags.values().filter(|tag| tag.asking).count();
        let waiting = self.tags.values().filter(|tag| !tag.asking).map(|tag| tag.due);
        waiting.min().filter(|_| asking < SIDE_BY_SIDE)
    }
}

impl State {
    /// Has the tags asked for that services of a deployment follow. Gives what each service waits for that must not begin
    /// anything before the answer.
    pub(super) fn follow_images(
        &mut self,
        deployment: &str,
        declared: Option<&DesiredDeployment>,
    ) -> BTreeMap<String, Wait> {
        let mut waits = BTreeMap::new();
        if !self.covers(deployment) || self.is_suspended(deployment) {
            return waits;
        }
        let Some(declared) = declared else { return waits };
        let is_wanted = self.images.wanted.remove(deployment);
        for (service, reference) in following(declared) {
            let runtime = self.runtimes.get(&service.runtime).map(|one| &one.runtime);
            if is_wanted && (runtime.is_none() || self.unreachable.contains_key(&service.runtime)) {
                self.images.wanted.insert(deployment.to_owned());
            }
            let answers = runtime.is_some_and(|runtime| runtime.tags().is_some());
            if !answers || self.unreachable.contains_key(&service.runtime) {
                continue;
            }
            let memory = self.memory.get(deployment);
            let known = memory.and_then(|memory| memory.rollouts.get(&service.name)?.image.as_ref());
            let is_known = known.is_some_and(|image| image.reference == reference);
            let new = || Tag { due: Instant::now(), asking: false, answered: is_known && !is_wanted, failed: false };
            let tag = self.images.tags.entry((service.runtime, reference.to_owned())).or_insert_with(new);
            // Another service had it asked for before.
            let is_news = !is_known && tag.answered && !tag.failed;
            if is_news {
                (tag.due, tag.answered) = (Instant::now(), false);
            }
            if !tag.answered {
                let wait = Wait::ImageAsked { service: service.name.clone(), image: reference.to_owned() };
                waits.insert(service.name.clone(), wait);
            }
        }
        waits
    }

    /// Has the tags of a deployment asked for now; nothing of it begins before the answer.
    pub(super) fn ask_for_images(&mut self, deployment: &str) {
        let declared = self.declared.clone();
        self.images.wanted.insert(deployment.to_owned());
        for (service, reference) in declared.desired.deployments.get(deployment).into_iter().flat_map(following) {
            if let Some(tag) = self.images.tags.get_mut(&(service.runtime, reference.to_owned())) {
                (tag.due, tag.answered) = (Instant::now(), false);
            }
        }
    }

    /// Tells runtimes which images a rollback may need, where that is due.
    pub(super) fn tell_needed_images(&mut self) {
        if self.images.tell.take_if(|tell| *tell <= Instant::now()).is_none() {
            return;
        }
        for (kind, attached) in &self.runtimes {
            attached.runtime.need_images(self.needed_images(*kind));
        }
    }

    /// Names of the images of every revision that is remembered of services on a runtime.
    pub(super) fn needed_images(&self, kind: RuntimeKind) -> BTreeSet<String> {
        let histories = self.memory.values().flat_map(|memory| memory.rollouts.values());
        let known = histories.flat_map(|history| &history.revisions).filter(|known| known.runtime == kind);
        known.map(|known| known.spec.image.name.to_string()).collect()
    }

    /// Asks for the tags that are due.
    pub(super) fn ask_for_due_images(&mut self) {
        let now = Instant::now();
        if self.images.next_question().is_none_or(|next| next > now) {
            return;
        }
        let declared = self.declared.clone();
        let all = declared.desired.deployments.values().filter(|deployment| self.covers(&deployment.name));
        let used: BTreeSet<Key> =
            all.flat_map(following).map(|(service, reference)| (service.runtime, reference.to_owned())).collect();
        self.images.tags.retain(|key, tag| tag.asking || used.contains(key));
        let mut places = SIDE_BY_SIDE.saturating_sub(self.images.tags.values().filter(|tag| tag.asking).count());
        for (key, tag) in self.images.tags.iter_mut().filter(|(_, tag)| !tag.asking && tag.due <= now) {
            if places == 0 {
                return;
            }
            let (kind, reference) = key.clone();
            let Some(runtime) = self.runtimes.get(&kind).map(|attached| attached.runtime.clone()) else {
                tag.due = now + IMAGE_EVERY;
                continue;
            };
            places -= 1;
            tag.asking = true;
            let messages = self.messages.clone();
            self.lanes.spawn(async move {
                let answer = async {
                    match runtime.tags() {
                        Some(tags) => tags.digest(&reference).await,
                        None => Err(RuntimeError::new(ErrorKind::Unsupported, "the runtime asks no registry")),
                    }
                };
                let late = || RuntimeError::new(ErrorKind::Timeout, format!("no answer within {ANSWER_LIMIT:?}"));
                let found = tokio::time::timeout(ANSWER_LIMIT, answer).await.unwrap_or_else(|_| Err(late()));
                // A core that has ended asks when it begins again.
                let _ = messages.send(Message::ImageFound(kind, reference, found)).await;
            });
        }
    }

    /// Notes what a tag stands for, for all services that follow it.
    pub(super) fn image_found(&mut self, kind: RuntimeKind, reference: String, found: Result<String>) {
        let now = Instant::now();
        let mut is_first_failure = false;
        if let Some(tag) = self.images.tags.get_mut(&(kind, reference.clone())) {
            is_first_failure = found.is_err() && !tag.failed;
            let due = now + backoff(IMAGE_EVERY, IMAGE_EVERY, 1, &reference);
            *tag = Tag { due, asking: false, answered: true, failed: found.is_err() };
        }
        let declared = self.declared.clone();
        for deployment in declared.desired.deployments.values() {
            let followers = following(deployment).filter(|(one, of)| one.runtime == kind && *of == reference);
            let followers: Vec<&DesiredService> = followers.map(|(service, _)| service).collect();
            if followers.is_empty() || !self.covers(&deployment.name) {
                continue;
            }
            self.queue.add(&deployment.name, now);
            for service in followers {
                match &found {
                    Ok(digest) => self.learn_image(deployment, service, &reference, digest),
                    Err(error) if is_first_failure => {
                        let name = format!("{}/{}", deployment.name, service.name);
                        let message = format!("{name}: it is not known which image {reference} is now: {error}");
                        tracing::warn!("{message}");
                        self.record_event(Some(&deployment.name), "ImageCheckFailed", message);
                    }
                    Err(error) => tracing::debug!(reference, %error, "it is not known which image it is now"),
                }
            }
        }
    }

    fn learn_image(&mut self, declared: &DesiredDeployment, service: &DesiredService, reference: &str, digest: &str) {
        let deployment = declared.name.as_str();
        let to_run = |state: &Self| state.effective(declared).services.remove(&service.name);
        let mine = |one: &&Instance| one.id.service == service.name && !matches!(one.phase, Phase::Exited(_));
        let running: BTreeSet<Revision> =
            self.cache.of(deployment).filter(mine).map(|one| one.id.revision.clone()).collect();
        let ran = to_run(self);
        let memory = self.memory.entry(deployment.to_owned()).or_default();
        let history = memory.rollouts.entry(service.name.clone()).or_default();
        let before = history.image.clone();
        let moved_from = history.learn_image(service, digest, &running.iter().collect::<Vec<_>>());
        if before == history.image {
            return;
        }
        let note = Note::Rollout(Box::new(history.clone()));
        let stopped = ran.zip(to_run(self)).and_then(|(before, now)| self.keep_stopped(deployment, &before, &now));
        // Whoever reads the one without the other takes the stop for one of another template, and ends it.
        self.keep_together(
            deployment,
            [(Some(service.name.as_str()), note)].into_iter().chain(stopped.map(|note| (None, note))),
        );
        if let Some(from) = moved_from {
            let message = format!("{deployment}/{}: {reference} was {from} and is {digest} now", service.name);
            tracing::info!("{message}");
            self.record_event(Some(deployment), "ImageChanged", message);
        }
    }
}

/// The services of a deployment that follow a tag, and which.
fn following(deployment: &DesiredDeployment) -> impl Iterator<Item = (&DesiredService, &str)> {
    deployment.services.values().filter_map(|service| Some((service, followed(service)?)))
}
