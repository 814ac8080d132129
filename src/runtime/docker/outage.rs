//! What ended with its engine or its machine, where nobody was there to see it.
//!
//! An engine does not say who ended a container. One that is shut down ends its containers by their stop signal; one that was
//! killed does so when it starts again, before it answers; and of what a machine took with it, it says code 255 then. None of
//! these is the program's own end. A controller that follows the engine's events sees the signals; what it missed is told by
//! the times. Docker alone says when it started: it makes its default network anew each time, except where containers went on
//! without it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bollard::query_parameters::InspectNetworkOptions;
use chrono::{DateTime, Utc};

use super::Inner;
use super::engine::READ_DEADLINE;
use super::facts::Moment;
use super::ping::Product;
use crate::runtime::{Result, StopRecords};
use crate::spec::{RuntimeKind, Signal};
use crate::state::{Exit, Instance, Phase};

/// Docker's default network.
const DEFAULT_NETWORK: &str = "bridge";

/// Code that Docker gives of a process that went while the engine was not there.
const LOST: i32 = 255;

/// Until when the ends of containers are known, over the lives of controllers and connections.
pub(super) struct Outages {
    records: Option<Arc<dyn StopRecords>>,
    inner: Mutex<Times>,
}

/// Times of ends, and of the engine.
#[derive(Debug, Default)]
struct Times {
    /// Until when ends were known before the present connection; absent where nobody knew any.
    before: Option<DateTime<Utc>>,
    /// Until when they are known now.
    seen: Option<DateTime<Utc>>,
    /// Whether everything was listed since the last connection broke off. Until then an earlier end may be unknown yet.
    listed: bool,
    /// When the engine started, where it was asked; absent inside where it does not say.
    start: Option<Option<DateTime<Utc>>>,
}

/// Whether a run ended with its engine or its machine, unseen. `before` is until when ends were known, and `start` when the
/// engine started. Where nothing was known, an end with code 0 stands: work that was done may be old.
fn ended_with_engine(exit: &Exit, stop: Signal, before: Option<DateTime<Utc>>, start: DateTime<Utc>) -> bool {
    let unseen = before.is_none_or(|before| before < exit.finished_at);
    let is_work_done = exit.code == Some(0) && before.is_none();
    may_be_by_engine(exit, stop) && unseen && !is_work_done && exit.finished_at < start
}

/// Whether the end of an engine or a machine looks like this.
fn may_be_by_engine(exit: &Exit, stop: Signal) -> bool {
    let by = |signal: Signal| 128 + signal.number();
    let codes = [0, LOST, by(Signal::TERM), by(Signal::KILL), by(stop)];
    !exit.oom_killed && exit.code.is_some_and(|code| codes.contains(&code))
}

impl Outages {
    /// What is recorded; without records, nothing is known of before.
    ///
    /// # Errors
    /// The records can't be read.
    pub(super) async fn open(records: Option<Arc<dyn StopRecords>>) -> Result<Self> {
        let before = match &records {
            Some(records) => records.seen(RuntimeKind::Docker).await?,
            None => None,
        };
        let inner = Mutex::new(Times { before, seen: before, ..Times::default() });
        Ok(Self { records, inner })
    }

    /// Everything was listed, and every end that it showed was judged; `asked_at` is when the list began.
    pub(super) async fn listed(&self, instances: &[Instance], asked_at: DateTime<Utc>) {
        let ends = instances.iter().filter_map(|instance| match &instance.phase {
            Phase::Exited(exit) => Some(exit.finished_at),
            _ => None,
        });
        self.lock().listed = true;
        self.note(ends.fold(asked_at, DateTime::max)).await;
    }

    /// An end was told.
    pub(super) async fn ended(&self, at: DateTime<Utc>) {
        self.note(at).await;
    }

    /// The connection to the engine broke off: what ends from now on is unseen, and another engine may answer next.
    pub(super) fn broke(&self) {
        let mut times = self.lock();
        if std::mem::take(&mut times.listed) {
            times.before = times.seen;
        }
        times.start = None;
    }

    /// Another engine may answer.
    pub(super) fn forget_start(&self) {
        self.lock().start = None;
    }

    async fn note(&self, at: DateTime<Utc>) {
        let seen = {
            let mut times = self.lock();
            times.seen = times.seen.max(Some(at));
            times.seen.filter(|_| times.listed)
        };
        let (Some(records), Some(seen)) = (&self.records, seen) else { return };
        if let Err(error) = records.note_seen(RuntimeKind::Docker, seen).await {
            // What ended may be taken for unseen after a restart of keel, and is run again then.
            tracing::debug!(%error, "it is not recorded until when ends are known");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Times> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Outages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outages").field("times", &self.inner).finish_non_exhaustive()
    }
}

impl Inner {
    /// Remembers an answer as [`super::facts::Facts::learn`] does, after it was judged whether the instance ended with its
    /// engine: such an end is recorded as a stop by somebody else.
    ///
    /// # Errors
    /// The engine does not say when it started.
    pub(super) async fn learn_end(&self, asked: Moment, instance: Instance) -> Result<Instance> {
        if let Phase::Exited(exit) = &instance.phase
            && !self.facts.stops.explains(&instance, Utc::now())
            && self.ended_with_engine(exit, instance.stop.signal).await?
        {
            self.facts.stops.others_stop(&instance, Utc::now()).await;
        }
        Ok(self.facts.learn(asked, instance))
    }

    async fn ended_with_engine(&self, exit: &Exit, stop: Signal) -> Result<bool> {
        let before = self.outages.lock().before;
        // The engine is asked only where its answer decides.
        if !ended_with_engine(exit, stop, before, DateTime::<Utc>::MAX_UTC) {
            return Ok(false);
        }
        Ok(self.engine_start().await?.is_some_and(|start| ended_with_engine(exit, stop, before, start)))
    }

    /// When the engine started; asked once for each connection. Absent where it does not say.
    async fn engine_start(&self) -> Result<Option<DateTime<Utc>>> {
        let known = self.outages.lock().start;
        if let Some(start) = known {
            return Ok(start);
        }
        let start = self.ask_engine_start().await?;
        self.outages.lock().start = Some(start);
        Ok(start)
    }

    async fn ask_engine_start(&self) -> Result<Option<DateTime<Utc>>> {
        if self.engine.product().await? != Product::Docker {
            return Ok(None);
        }
        let options = None::<InspectNetworkOptions>;
        let answer = self
            .engine
            .call(READ_DEADLINE, |docker| async move { docker.inspect_network(DEFAULT_NETWORK, options).await });
        match answer.await {
            Ok(network) => Ok(network.created),
            // An engine may be told to have no such network.
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error.explain("asking when the engine started")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    fn exit(code: i32, end: i64) -> Exit {
        Exit::from_code(code, Some(at(0)), at(end))
    }

    #[test]
    fn an_end_with_the_engine_is_told_from_one_that_was_seen_and_from_a_failure() {
        let (start, int) = (at(100), "SIGINT".parse().unwrap());
        // Exit, stop signal, until when ends were known, whether it ended with the engine.
        let table = [
            (exit(0, 50), Signal::TERM, Some(at(40)), true),
            (exit(143, 50), Signal::TERM, Some(at(40)), true),
            (exit(137, 50), Signal::TERM, Some(at(40)), true),
            (exit(255, 99), Signal::TERM, Some(at(40)), true),
            (exit(130, 50), int, Some(at(40)), true),
            (exit(130, 50), Signal::TERM, Some(at(40)), false),
            (exit(1, 50), Signal::TERM, Some(at(40)), false),
            (exit(139, 50), Signal::TERM, Some(at(40)), false),
            (exit(137, 50).out_of_memory(), Signal::TERM, Some(at(40)), false),
            (Exit::runtime_error("no such program", at(50)), Signal::TERM, Some(at(40)), false),
            // A controller knew of it.
            (exit(0, 40), Signal::TERM, Some(at(40)), false),
            (exit(143, 30), Signal::TERM, Some(at(40)), false),
            // The engine that answers now ran it.
            (exit(0, 100), Signal::TERM, Some(at(40)), false),
            (exit(255, 101), Signal::TERM, Some(at(40)), false),
            // Nobody knows what was seen.
            (exit(143, 50), Signal::TERM, None, true),
            (exit(255, 50), Signal::TERM, None, true),
            (exit(0, 50), Signal::TERM, None, false),
        ];
        for (exit, stop, before, expected) in table {
            assert_eq!(ended_with_engine(&exit, stop, before, start), expected, "{exit:?}, {stop:?}, {before:?}");
        }
    }

    #[tokio::test]
    async fn what_was_seen_counts_for_the_next_connection_once_everything_was_listed() {
        let outages = Outages::open(None).await.unwrap();
        let before = || outages.lock().before;
        outages.ended(at(10)).await;
        outages.broke();
        assert_eq!(before(), None, "an earlier end may be unknown yet");
        outages.listed(&[], at(20)).await;
        outages.ended(at(30)).await;
        assert_eq!(before(), None, "what ended before this connection is still to be judged");
        outages.broke();
        assert_eq!(before(), Some(at(30)));
        outages.listed(&[], at(25)).await;
        outages.broke();
        assert_eq!(before(), Some(at(30)), "what was seen stays seen");
    }
}
