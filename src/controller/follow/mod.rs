//! Output that goes on with whatever takes the place of an instance.
//!
//! The follower looks at what exists whenever the status changes, and reads every instance that its target covers, each
//! once: the present ones, those that replace them, and further replicas.

mod place;
mod roster;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, AbortHandle, BoxStream, SelectAll, StreamExt, TryStreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

pub use self::place::Bookmark;
use self::place::Key;
use self::roster::{Opening, Roster, Trouble};
use super::EngineError;
use super::engine::{ask, cannot};
use super::message::{Command, Message};
use super::reread::Reread;
use crate::clock::Clock;
use crate::runtime::io::{LogLine, LogOptions};
use crate::runtime::{self, ErrorKind, Runtime, RuntimeError};
use crate::state::{Instance, InstanceRef, Target};
use crate::status::Status;

/// Time without anything to read until that is told: a replacement that follows at once, as after a first crash, is
/// there sooner.
const WAITING_NOTICE: Duration = Duration::from_secs(2);

/// Time without a line or an error until an output that is open has none to give: what is there already comes within
/// milliseconds. Runtimes may open an output before they ask for it, and fail after.
const NO_LINES: Duration = Duration::from_secs(1);

/// Between two looks while nothing is read, for what no event tells: declarations that somebody else takes back.
const WAITING_LOOK: Duration = Duration::from_secs(2);

/// Age up to which what another follower has read counts for this one too: shorter than the time between two of its own
/// looks, which are to find something new.
const RECENT: Duration = Duration::from_secs(1);

/// What a follower needs to know of an engine.
pub struct Observed {
    /// Asks the core.
    pub messages: mpsc::Sender<Message>,
    /// What there is.
    pub status: watch::Receiver<Arc<Status>>,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// Reads the declarations again, where nobody watches them.
    pub reread: Option<Arc<Reread>>,
}

/// What a follower tells.
#[derive(Debug)]
pub enum Followed {
    /// The names of all instances that were followed so far; told first, and again with every further name.
    Instances(Vec<String>),
    /// A line.
    Line {
        /// The instance.
        instance: Arc<InstanceRef>,
        /// The line.
        line: LogLine,
    },
    /// The output of this instance is open, or was, and there was no line to give: every later one is new. Told once, for
    /// the [`Bookmark`].
    NoLines(Arc<InstanceRef>),
    /// The output of this instance can't be read at present; it is tried again.
    Interrupted {
        /// Name of the instance.
        instance: String,
        /// Why.
        error: EngineError,
    },
    /// The output of this instance can't be read.
    Failed {
        /// Name of the instance.
        instance: String,
        /// Why.
        error: EngineError,
    },
    /// There is nothing to read until an instance starts.
    Waiting,
    /// Nothing that the target covers is declared or exists any more. The last that is told.
    Gone,
    /// The engine ends. The last that is told.
    Broken(EngineError),
}

/// Follows the output of every instance that the target covers, now or later, until nothing of it is declared or exists
/// any more. After a bookmark it goes on where the follower ended that this one takes over from.
///
/// # Errors
/// `NotFound` when nothing of it is declared or exists now, except after a bookmark; `Ended` when the engine is
/// shutting down.
pub async fn follow(
    engine: Observed,
    target: Target,
    options: LogOptions,
    after: Option<Bookmark>,
) -> Result<BoxStream<'static, Followed>, EngineError> {
    let roster = match &after {
        Some(bookmark) => Roster::resume(options, bookmark),
        None => Roster::new(options, engine.clock.now()),
    };
    let is_begin = after.is_none();
    let names = after.map(|bookmark| bookmark.instances).unwrap_or_default();
    let mut follower = Follower {
        roster,
        engine,
        target,
        streams: SelectAll::new(),
        aborts: BTreeMap::new(),
        ready: VecDeque::from([Followed::Instances(names.clone())]),
        names,
        waiting: None,
        wake: None,
        is_over: false,
    };
    follower.look().await?;
    if is_begin && follower.is_over {
        return Err(EngineError::NotFound(format!(
            "{} is not declared and has no instance; see keel get services",
            follower.target
        )));
    }
    Ok(stream::unfold(follower, |mut follower| async move { Some((follower.next().await?, follower)) }).boxed())
}

/// Whether a part of what the target names is declared.
fn is_declared(status: &Status, target: &Target) -> bool {
    let Some(service) = &target.service else {
        return status.deployments.iter().any(|view| view.deployment == target.deployment && view.source.is_some());
    };
    status
        .services
        .iter()
        .filter(|view| view.deployment == target.deployment && view.service == *service)
        .any(|view| target.slot.is_none_or(|slot| slot < view.desired))
}

/// A piece of one output.
enum Piece {
    Line(LogLine),
    /// It is open and has no line to give so far.
    NoLines,
    Failure(RuntimeError),
    End,
}

/// Nothing is read.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    since: Instant,
    is_told: bool,
}

struct Follower {
    engine: Observed,
    target: Target,
    roster: Roster,
    streams: SelectAll<BoxStream<'static, (Arc<InstanceRef>, Piece)>>,
    /// End the outputs that are open.
    aborts: BTreeMap<Key, AbortHandle>,
    names: Vec<String>,
    ready: VecDeque<Followed>,
    waiting: Option<Waiting>,
    /// When to look again though nothing has changed.
    wake: Option<Instant>,
    is_over: bool,
}

impl Follower {
    async fn next(&mut self) -> Option<Followed> {
        loop {
            if let Some(told) = self.ready.pop_front() {
                return Some(told);
            }
            if self.is_over {
                return None;
            }
            let looked = tokio::select! {
                Some(piece) = self.streams.next() => self.take(piece).await,
                changed = self.engine.status.changed() => match changed {
                    Ok(()) => self.look().await,
                    Err(_) => Err(EngineError::Ended),
                },
                () = sleep_until(self.wake) => self.look_again().await,
            };
            if let Err(error) = looked {
                self.ready.push_back(Followed::Broken(error));
                self.is_over = true;
            }
        }
    }

    async fn take(&mut self, (instance, piece): (Arc<InstanceRef>, Piece)) -> Result<(), EngineError> {
        let now = Instant::now();
        let key = (instance.runtime, instance.runtime_id.clone());
        match piece {
            Piece::Line(line) => {
                if self.roster.line(&key, &line, now) {
                    self.ready.push_back(Followed::Line { instance, line });
                }
            }
            Piece::NoLines => {
                if self.roster.no_lines(&key) {
                    self.ready.push_back(Followed::NoLines(instance));
                }
            }
            Piece::Failure(error) => self.failed(&key, instance.id.name(), error, now),
            Piece::End => {
                self.aborts.remove(&key);
                if self.roster.ended(&key, now) {
                    self.ready.push_back(Followed::NoLines(instance));
                }
                return self.look().await;
            }
        }
        Ok(())
    }

    fn failed(&mut self, key: &Key, instance: String, error: RuntimeError, now: Instant) {
        match self.roster.failed(key, &error, now) {
            Trouble::Silent => {}
            Trouble::Passing => self.ready.push_back(Followed::Interrupted { instance, error: error.into() }),
            Trouble::Lasting => self.ready.push_back(Followed::Failed { instance, error: error.into() }),
        }
    }

    /// Looks again for what no event tells.
    async fn look_again(&mut self) -> Result<(), EngineError> {
        let recent = Instant::now().checked_sub(RECENT).unwrap_or_else(Instant::now);
        if let Some(reread) = self.engine.reread.clone().filter(|_| self.waiting.is_some())
            && let Err(error) = reread.settle(recent, &self.engine.messages).await
        {
            // An engine that ends is told by what is asked next.
            tracing::debug!(%error, "what is declared stays as it was");
        }
        self.look().await
    }

    /// Opens what is to be read, and tells where there is nothing.
    async fn look(&mut self) -> Result<(), EngineError> {
        // The status first: what is declared by then has its instances in what is asked for after.
        let status = self.engine.status.borrow_and_update().clone();
        let target = self.target.clone();
        let instances = ask(&self.engine.messages, |reply| Command::Instances(target, reply)).await?;
        let now = Instant::now();
        let look = self.roster.look(&instances, now);
        self.wake = look.again;
        for abort in look.close.iter().filter_map(|key| self.aborts.remove(key)) {
            abort.abort();
        }
        for id in look.refused {
            let most = roster::MOST_OPEN;
            let error = EngineError::Conflict(format!("at most {most} instances are followed at a time"));
            self.ready.push_back(Followed::Interrupted { instance: id.name(), error });
        }
        self.introduce(look.open.iter().map(|opening| opening.instance.id.name()).collect());
        for opening in look.open {
            self.open(opening).await?;
        }
        self.judge(&status, &instances, now);
        Ok(())
    }

    /// Tells the names that are new.
    fn introduce(&mut self, names: BTreeSet<String>) {
        let before = self.names.len();
        self.names.extend(names.into_iter().filter(|name| !self.names.contains(name)).collect::<Vec<_>>());
        if self.names.len() > before {
            self.ready.push_back(Followed::Instances(self.names.clone()));
        }
    }

    async fn open(&mut self, Opening { instance, options }: Opening) -> Result<(), EngineError> {
        let kind = instance.runtime;
        let runtime = ask(&self.engine.messages, |reply| Command::Runtime(kind, reply)).await?;
        let key = (kind, instance.runtime_id.clone());
        let whose = Arc::new(instance.clone());
        let pieces = stream::once(pieces(runtime, instance, options)).try_flatten();
        let (pieces, abort) = stream::abortable(pieces.map(|piece| piece.unwrap_or_else(Piece::Failure)));
        self.aborts.insert(key, abort);
        let end = stream::once(async { Piece::End });
        self.streams.push(pieces.chain(end).map(move |piece| (whose.clone(), piece)).boxed());
        Ok(())
    }

    /// Whether anything is read, waited for, or left at all.
    fn judge(&mut self, status: &Status, instances: &[Instance], now: Instant) {
        if self.roster.is_reading(instances) {
            self.waiting = None;
            return;
        }
        if status.synced && instances.is_empty() && !is_declared(status, &self.target) {
            self.ready.push_back(Followed::Gone);
            self.is_over = true;
            return;
        }
        let waiting = self.waiting.get_or_insert(Waiting { since: now, is_told: false });
        // Where nothing was there from the beginning, nothing is about to follow.
        let notice = if self.names.is_empty() { now } else { waiting.since + WAITING_NOTICE };
        if notice <= now && !waiting.is_told {
            waiting.is_told = true;
            self.ready.push_back(Followed::Waiting);
        }
        let next = if waiting.is_told { now + WAITING_LOOK } else { notice };
        self.wake = Some(self.wake.map_or(next, |wake| wake.min(next)));
    }
}

/// The lines of one instance, or first that there is none.
async fn pieces(
    runtime: Option<Arc<dyn Runtime>>,
    instance: InstanceRef,
    options: LogOptions,
) -> runtime::Result<BoxStream<'static, runtime::Result<Piece>>> {
    let kind = instance.runtime;
    let runtime =
        runtime.ok_or_else(|| RuntimeError::new(ErrorKind::Unavailable, format!("{kind} does not answer")))?;
    let logs = runtime
        .logs()
        .ok_or_else(|| RuntimeError::new(ErrorKind::Unsupported, cannot(kind, "show output").to_string()))?;
    let mut lines = logs.logs(&instance, &options).await?.fuse();
    let first = match tokio::time::timeout(NO_LINES, lines.next()).await {
        Ok(line) => line.map(|line| line.map(Piece::Line)),
        Err(_) => Some(Ok(Piece::NoLines)),
    };
    Ok(stream::iter(first).chain(lines.map_ok(Piece::Line)).boxed())
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
