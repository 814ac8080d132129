//! Stops that were asked for, so that their exits are not taken for crashes; for runtimes that can't keep the cause with
//! the instance.
//!
//! A stop is recorded before anything of it reaches the instance, and the record goes with the instance. So a controller
//! that is killed at any instant leaves one of three things: no record and an instance that nobody asked to end; a
//! record and an instance that may have been asked; a record and an exit. The second kind is decided by what comes of
//! it: an instance that is still seen running when the stop must long be over was not ended by it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::Result;
use crate::spec::RuntimeKind;
use crate::state::{Instance, Phase, StopCause, StopRecord, StopRequest};

/// Time after its grace in which a stop ends an instance or never: the kill, and an engine under load.
const BEYOND_GRACE: Duration = Duration::from_secs(60);

/// Time in which an end follows from a signal of somebody else: `docker stop` gives 10 s where nothing is said, and an engine
/// that is shut down 15 s. Of a longer stop, engines tell when it is over.
const OTHERS_GRACE: Duration = Duration::from_secs(20);

/// Keeps records of stops beyond the life of an adapter.
#[async_trait]
pub trait StopRecords: Send + Sync {
    /// The records of one runtime.
    async fn all(&self, runtime: RuntimeKind) -> Result<Vec<StopRecord>>;

    /// Keeps a record in place of an earlier one of the same instance; it is safe when this returns.
    async fn keep(&self, record: StopRecord) -> Result<()>;

    /// Until when the ends of a runtime's instances are known: every earlier one was seen, by this adapter or one before.
    /// Absent where none was noted.
    async fn seen(&self, _runtime: RuntimeKind) -> Result<Option<DateTime<Utc>>> {
        Ok(None)
    }

    /// Notes until when the ends of a runtime's instances are known.
    async fn note_seen(&self, _runtime: RuntimeKind, _at: DateTime<Utc>) -> Result<()> {
        Ok(())
    }

    /// Forgets this record; a later one of the same instance stays. One that is not there is success.
    async fn forget(&self, record: StopRecord) -> Result<()>;
}

/// Every stop of one runtime that was asked for and whose instance exists. One for each instance at most.
pub(super) struct Stops {
    runtime: RuntimeKind,
    records: Option<Arc<dyn StopRecords>>,
    asked: Mutex<HashMap<String, Asked>>,
}

/// A stop that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    record: StopRecord,
}

/// What an instance says of a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It ended by it.
    Ended,
    /// It may yet end by it.
    Open,
    /// Whatever becomes of it has another cause.
    Void,
}

impl Stops {
    /// The stops that are recorded; without records, those of this adapter alone.
    ///
    /// # Errors
    /// The records can't be read.
    pub async fn open(runtime: RuntimeKind, records: Option<Arc<dyn StopRecords>>) -> Result<Self> {
        let found = match &records {
            Some(records) => records.all(runtime).await?,
            None => Vec::new(),
        };
        let entry = |record: StopRecord| (record.runtime_id.clone(), Asked { record });
        let asked = Mutex::new(found.into_iter().map(entry).collect());
        Ok(Self { runtime, records, asked })
    }

    /// Notes that an instance is about to be stopped; call it before anything of the stop reaches the instance. Gives
    /// what was noted before.
    pub async fn will_stop(&self, instance: &Instance, stop: &StopRequest, now: DateTime<Utc>) -> Option<Asked> {
        self.note(instance, stop.cause, stop.grace.saturating_add(BEYOND_GRACE), now).await
    }

    /// Notes a stop that ends the instance within a time or never.
    async fn note(&self, instance: &Instance, cause: StopCause, within: Duration, now: DateTime<Utc>) -> Option<Asked> {
        let limit = chrono::Duration::from_std(within).ok();
        let record = StopRecord {
            runtime: self.runtime,
            runtime_id: instance.runtime_id.clone(),
            cause,
            run: instance.phase.started_at(),
            over_at: limit.and_then(|limit| now.checked_add_signed(limit)).unwrap_or(DateTime::<Utc>::MAX_UTC),
        };
        let asked = Asked { record: record.clone() };
        let before = self.lock().insert(instance.runtime_id.clone(), asked);
        self.keep(record).await;
        before
    }

    /// Notes that somebody else asked an instance to end, unless we did: what follows is no crash.
    pub async fn others_stop(&self, instance: &Instance, now: DateTime<Utc>) {
        let is_ours = |asked: &Asked| asked.verdict(&instance.phase, true, now) != Verdict::Void;
        if self.lock().get(&instance.runtime_id).is_some_and(is_ours) {
            return;
        }
        self.note(instance, StopCause::Others, OTHERS_GRACE, now).await;
    }

    /// Whether a stop that was asked for is why this instance, which ended, did so.
    pub fn explains(&self, instance: &Instance, now: DateTime<Utc>) -> bool {
        let ended = |asked: &Asked| asked.verdict(&instance.phase, false, now) == Verdict::Ended;
        self.lock().get(&instance.runtime_id).is_some_and(ended)
    }

    /// Takes back what [`Stops::will_stop`] noted, because there was nothing left to stop.
    pub async fn did_not_stop(&self, runtime_id: &str, before: Option<Asked>) {
        let Some(before) = before else { return self.forget(runtime_id) };
        let record = before.record.clone();
        self.lock().insert(runtime_id.to_owned(), before);
        self.keep(record).await;
    }

    /// Says of an exit that it was asked for, where it was, and of a stop under way what for. `seen_alive` is whether this
    /// adapter has seen the instance run until now.
    pub fn attribute(&self, instance: &mut Instance, seen_alive: bool, now: DateTime<Utc>) {
        let verdict = match self.lock().get(&instance.runtime_id) {
            Some(asked) => (asked.verdict(&instance.phase, seen_alive, now), asked.record.cause),
            None => return,
        };
        match (verdict, &mut instance.phase) {
            ((Verdict::Ended, cause), Phase::Exited(exit)) => *exit = exit.clone().asked_for(cause, instance.stop),
            ((Verdict::Void, _), _) => self.forget(&instance.runtime_id),
            ((Verdict::Open, cause), _) => instance.ends_for(cause),
            _ => {}
        }
    }

    /// Forgets the stop of an instance that is gone.
    pub fn forget(&self, runtime_id: &str) {
        let forgotten = self.lock().remove(runtime_id);
        if let Some(asked) = forgotten {
            self.drop_record(asked.record);
        }
    }

    /// Forgets the stops of all other instances than these.
    pub fn keep_only(&self, exists: impl Fn(&str) -> bool) {
        let gone: Vec<Asked> = self.lock().extract_if(|id, _| !exists(id)).map(|(_, asked)| asked).collect();
        for asked in gone {
            self.drop_record(asked.record);
        }
    }

    async fn keep(&self, record: StopRecord) {
        let Some(records) = &self.records else { return };
        let runtime_id = record.runtime_id.clone();
        if let Err(error) = records.keep(record).await {
            // A full disk is no reason not to stop something.
            tracing::warn!(runtime = %self.runtime, runtime_id, %error, "a stop is not recorded; it may look like a crash after a restart of keel");
        }
    }

    /// Nobody waits for this: a record that is left goes with the next complete list.
    fn drop_record(&self, record: StopRecord) {
        let Some(records) = self.records.clone() else { return };
        tokio::spawn(async move {
            if let Err(error) = records.forget(record).await {
                tracing::debug!(%error, "the record of a stop is left");
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked {
    fn verdict(&self, phase: &Phase, seen_alive: bool, now: DateTime<Utc>) -> Verdict {
        let other_run = |started: Option<DateTime<Utc>>| match (self.record.run, started) {
            (Some(run), Some(started)) => run != started,
            _ => false,
        };
        // Its call may have failed before anything reached the instance; one that is still wanted is noted anew.
        let outlived = now > self.record.over_at;
        match phase {
            Phase::Exited(exit) if other_run(exit.started_at) || (seen_alive && outlived) => Verdict::Void,
            Phase::Exited(_) => Verdict::Ended,
            Phase::Running { since, .. } | Phase::Paused { since } if outlived || other_run(Some(*since)) => {
                Verdict::Void
            }
            _ => Verdict::Open,
        }
    }
}

impl fmt::Debug for Stops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stops").field("runtime", &self.runtime).field("asked", &self.asked).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Exit, InstanceId, StopCause};

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    fn instance(phase: Phase) -> Instance {
        let revision = "v1-0123456789abcdef".parse().unwrap();
        let id = InstanceId { deployment: "d".into(), service: "web".into(), slot: 0, revision, attempt: 0, run: None };
        Instance::new(id, RuntimeKind::Docker, phase, at(0))
    }

    /// A stop of the run that began at 0; it must be over at 100.
    fn asked() -> Asked {
        let record = StopRecord {
            runtime: RuntimeKind::Docker,
            runtime_id: "c0ffee".to_owned(),
            cause: StopCause::Expired,
            run: Some(at(0)),
            over_at: at(100),
        };
        Asked { record }
    }

    #[tokio::test]
    async fn a_stop_under_way_says_whether_it_is_for_failed_checks() {
        for (cause, phase, expected) in [
            (StopCause::Unhealthy, Phase::Stopping, true),
            (StopCause::Retired, Phase::Stopping, false),
            // It may yet turn out that nothing of the stop has reached it.
            (StopCause::Unhealthy, Phase::Running { since: at(0), ready: true }, false),
        ] {
            let stops = Stops::open(RuntimeKind::Docker, None).await.unwrap();
            let mut instance = instance(phase.clone());
            let stop = StopRequest { signal: crate::spec::Signal::TERM, grace: Duration::from_secs(10), cause };
            stops.will_stop(&instance, &stop, at(10)).await;
            stops.attribute(&mut instance, true, at(11));
            assert_eq!(instance.unhealthy().is_some(), expected, "{cause:?} {phase:?}");
        }
    }

    #[tokio::test]
    async fn what_somebody_else_stops_did_not_end_by_itself_and_our_own_stop_goes_first() {
        let running = || instance(Phase::Running { since: at(0), ready: true });
        let stopped_at = |end: i64, ours: Option<StopCause>| async move {
            let stops = Stops::open(RuntimeKind::Docker, None).await.unwrap();
            if let Some(cause) = ours {
                let stop = StopRequest { signal: crate::spec::Signal::TERM, grace: Duration::from_secs(10), cause };
                stops.will_stop(&running(), &stop, at(9)).await;
            }
            stops.others_stop(&running(), at(10)).await;
            let mut ended = instance(Phase::Exited(Exit::from_code(0, Some(at(0)), at(end))));
            stops.attribute(&mut ended, true, at(end));
            let Phase::Exited(exit) = ended.phase else { panic!("it ended") };
            exit.ended_by
        };
        use crate::state::EndedBy;
        assert_eq!(stopped_at(20, None).await, EndedBy::Request(StopCause::Others));
        assert_eq!(stopped_at(31, None).await, EndedBy::Itself, "it took the signal for something else");
        assert_eq!(stopped_at(20, Some(StopCause::Idle)).await, EndedBy::Request(StopCause::Idle));
    }

    #[test]
    fn an_end_is_told_from_one_that_nobody_asked_for() {
        let runs = |since: i64| Phase::Running { since: at(since), ready: true };
        let ended = |since: i64, end: i64| Phase::Exited(Exit::from_code(143, Some(at(since)), at(end)));
        let unrun = Phase::Exited(Exit::runtime_error("no such program", at(5)));
        // Phase, whether it was seen alive, time, verdict.
        let table = [
            (runs(0), true, 10, Verdict::Open),
            (Phase::Paused { since: at(0) }, true, 10, Verdict::Open),
            (Phase::Unknown { message: String::new() }, true, 10, Verdict::Open),
            (ended(0, 10), true, 10, Verdict::Ended),
            // Nobody looked for an hour: it ended by the stop as far as is known.
            (ended(0, 3600), false, 3700, Verdict::Ended),
            // It lived on, so the stop failed or was cut off before it reached it.
            (runs(0), true, 101, Verdict::Void),
            (ended(0, 3600), true, 3600, Verdict::Void),
            // Somebody started it again, and that run has its own end.
            (runs(50), true, 60, Verdict::Void),
            (ended(50, 60), false, 60, Verdict::Void),
            (unrun, false, 10, Verdict::Ended),
        ];
        for (phase, seen_alive, now, expected) in table {
            let verdict = asked().verdict(&phase, seen_alive, at(now));
            assert_eq!(verdict, expected, "{phase:?}, seen alive: {seen_alive}, at {now}");
        }
    }
}
