//! What is left of instances that are gone: looked for now and then, and taken away by the rules of orphans.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::core::{Scope, State};
use super::lists::RELIST;
use super::message::Message;
use super::orphans::OrphanView;
use crate::plan::Remains;
use crate::runtime::{ErrorKind, Remnant, Result, Runtime, RuntimeError};
use crate::spec::RuntimeKind;

/// Longest time for a look, and for taking one thing away.
const DEADLINE: Duration = Duration::from_secs(60);

/// What became of looks and of what was found.
#[derive(Debug)]
pub enum RemnantNews {
    /// A look gave this.
    Found(Result<Vec<Remnant>>),
    /// These were to be taken away.
    Cleared(Vec<(Remnant, Result<()>)>),
}

/// What is left on the runtimes.
#[derive(Default)]
pub struct Left {
    runtimes: BTreeMap<RuntimeKind, Looks>,
    /// Whether it was asked for that it be taken away, by whom carries nothing out by itself.
    is_wanted: bool,
    /// Who waits for the first look.
    waiting: Vec<oneshot::Sender<Vec<OrphanView>>>,
}

#[derive(Debug, Default)]
struct Looks {
    remains: Remains,
    look: Look,
}

/// How the next look stands.
#[derive(Debug, Default)]
enum Look {
    /// It is wanted at once.
    #[default]
    Wanted,
    /// It is under way, or what it found is being taken away.
    UnderWay,
    /// What is known is true; it is worth another look then.
    After(Instant),
}

impl State {
    /// Looks for what is left where that is due. Who carries nothing out by itself looks when it is asked.
    pub(super) fn look_for_remnants(&mut self) {
        if !self.may_clear() && self.left.waiting.is_empty() {
            return;
        }
        let now = Instant::now();
        for runtime in self.runtimes_with_remnants() {
            let looks = self.left.runtimes.entry(runtime.kind()).or_default();
            match looks.look {
                Look::UnderWay => continue,
                Look::After(at) if at > now => continue,
                Look::Wanted | Look::After(_) => looks.look = Look::UnderWay,
            }
            let messages = self.messages.clone();
            self.lanes.spawn(async move {
                let found = async {
                    match runtime.remnants() {
                        Some(remnants) => remnants.remnants().await,
                        None => Ok(Vec::new()),
                    }
                };
                let found = RemnantNews::Found(bounded(found).await);
                // A core that has ended needs no news.
                let _ = messages.send(Message::Remnants(runtime.kind(), found)).await;
            });
        }
        self.answer_who_waits();
    }

    /// When the next look is due.
    pub(super) fn next_of_remnants(&self) -> Option<Instant> {
        let next = |looks: &Looks| if let Look::After(at) = looks.look { Some(at) } else { None };
        self.left.runtimes.values().filter_map(next).min().filter(|_| self.may_clear())
    }

    /// Takes the news of a look, or of what was taken away.
    pub(super) fn remnant_news(&mut self, kind: RuntimeKind, news: RemnantNews) {
        let may_clear = self.may_clear();
        let (now, at) = self.now();
        let Some(looks) = self.left.runtimes.get_mut(&kind) else { return };
        let due = match news {
            RemnantNews::Found(found) => {
                match found {
                    Ok(remnants) => looks.remains.look(remnants, now),
                    Err(error) => tracing::warn!(runtime = %kind, %error, "what is left of instances is not known"),
                }
                if may_clear { looks.remains.due(now) } else { Vec::new() }
            }
            RemnantNews::Cleared(cleared) => {
                for (remnant, result) in &cleared {
                    if let Err(error) = result {
                        looks.remains.failed(remnant, error.message.clone(), now);
                    }
                }
                self.tell_cleared(&cleared);
                Vec::new()
            }
        };
        let Some(looks) = self.left.runtimes.get_mut(&kind) else { return };
        if due.is_empty() {
            looks.look = Look::After(at + looks.remains.next_look(now).map_or(RELIST, |wait| wait.min(RELIST)));
        } else {
            self.clear(kind, due);
        }
        self.answer_who_waits();
    }

    fn clear(&mut self, kind: RuntimeKind, due: Vec<Remnant>) {
        let Some(runtime) = self.runtimes.get(&kind).map(|attached| attached.runtime.clone()) else { return };
        let messages = self.messages.clone();
        self.lanes.spawn(async move {
            let mut cleared = Vec::new();
            for remnant in due {
                let done = async {
                    match runtime.remnants() {
                        Some(remnants) => remnants.clear(&remnant).await,
                        None => Ok(()),
                    }
                };
                let done = bounded(done).await;
                cleared.push((remnant, done));
            }
            // A core that has ended needs no news.
            let _ = messages.send(Message::Remnants(kind, RemnantNews::Cleared(cleared))).await;
        });
    }

    fn tell_cleared(&self, cleared: &[(Remnant, Result<()>)]) {
        for (Remnant { name, reason, .. }, result) in cleared {
            match result {
                Ok(()) => {
                    tracing::info!("removed {name}: {reason}");
                    self.record_event(None, "OrphanRemoved", format!("removed {name}: {reason}"));
                }
                Err(error) => {
                    let error = &error.message;
                    self.record_event(None, "OrphanStays", format!("{name} could not be removed: {error}"));
                }
            }
        }
    }

    /// Answers what nothing declares or needs, as soon as everything was looked at once.
    pub(super) fn tell_orphans(&mut self, reply: oneshot::Sender<Vec<OrphanView>>) {
        self.left.waiting.push(reply);
        // The last look may be minutes old.
        for looks in self.left.runtimes.values_mut().filter(|looks| matches!(looks.look, Look::After(_))) {
            looks.look = Look::Wanted;
        }
    }

    /// Has what is left taken away.
    pub(super) fn want_remnants_cleared(&mut self) {
        self.left.is_wanted = true;
    }

    /// What is left on every runtime.
    pub(super) fn remnants(&self) -> impl Iterator<Item = OrphanView> {
        let views = |(runtime, looks): (&RuntimeKind, &Looks)| {
            looks.remains.all().map(|found| OrphanView::of_remnant(*runtime, found)).collect::<Vec<_>>()
        };
        self.left.runtimes.iter().flat_map(views)
    }

    fn answer_who_waits(&mut self) {
        if self.left.waiting.is_empty() {
            return;
        }
        let has_looked = |runtime: &Arc<dyn Runtime>| {
            self.left.runtimes.get(&runtime.kind()).is_some_and(|looks| matches!(looks.look, Look::After(_)))
        };
        if self.runtimes_with_remnants().iter().all(has_looked) {
            let orphans = self.orphans();
            for reply in std::mem::take(&mut self.left.waiting) {
                let _ = reply.send(orphans.clone());
            }
        }
    }

    fn runtimes_with_remnants(&self) -> Vec<Arc<dyn Runtime>> {
        let attached = self.runtimes.values().map(|attached| &attached.runtime);
        attached.filter(|runtime| runtime.remnants().is_some()).cloned().collect()
    }

    const fn may_clear(&self) -> bool {
        matches!(self.scope, Scope::Everything) || self.left.is_wanted
    }
}

async fn bounded<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let late = || RuntimeError::new(ErrorKind::Timeout, format!("no answer within {} s", DEADLINE.as_secs()));
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| Err(late()))
}
