//! The ledger of activity: what was seen of the use of each instance, by those who use it and by samples of what it uses.
//! Written down now and then, so that another controller goes on with it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

use crate::plan::idle::{announced_at, busy, last_activity, sample_every};
use crate::runtime::Usage;
use crate::spec::{Lifecycle, RuntimeKind};
use crate::state::{
    Activity, ActivityRecord, DesiredDeployment, Instance, InstanceId, InstanceRef, Phase, Signal, Target, Use,
    WatchedInstance,
};
use crate::store::ActivityRecords;

/// Time between two writings of what was seen of a deployment: whoever kills a controller gives its instances at most that much
/// more time.
const KEEP_EVERY: Duration = Duration::from_secs(60);

/// Least time between two writings of uses: what is used many times a second is not written as often.
const KEEP_USES_EVERY: Duration = Duration::from_secs(1);

/// Time after which a deployment is sampled again of which nothing was heard: longer than asking every instance takes that one
/// machine runs.
const UNANSWERED: Duration = Duration::from_secs(600);

/// Number of one use that goes on.
pub type UseId = u64;

/// What is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Used {
    /// One instance.
    Instance(InstanceRef),
    /// Whatever a target covers, now or later.
    Covered(Target),
}

impl Used {
    /// The deployment that it belongs to.
    pub fn deployment(&self) -> &str {
        match self {
            Self::Instance(one) => &one.id.deployment,
            Self::Covered(target) => &target.deployment,
        }
    }

    fn covers(&self, runtime: RuntimeKind, runtime_id: &str, id: &InstanceId) -> bool {
        match self {
            Self::Instance(one) => one.runtime == runtime && one.runtime_id == runtime_id,
            Self::Covered(target) => target.covers(id),
        }
    }
}

/// What was found out of the use of one run.
#[derive(Debug)]
pub struct Sampled {
    /// Of this instance.
    pub instance: InstanceRef,
    /// When its run started.
    pub run: DateTime<Utc>,
    /// What it used; absent where it could not be asked.
    pub usage: Option<Usage>,
}

/// The end of a life that is near.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Of this instance.
    pub id: InstanceId,
    /// When.
    pub at: DateTime<Utc>,
}

type Key = (RuntimeKind, String);

/// What was seen of every instance that is acted on.
#[derive(Default)]
pub struct Ledger {
    deployments: BTreeMap<String, Watched>,
    /// What an earlier controller saw, until the instances are seen again.
    remembered: ActivityRecords,
    open: BTreeMap<UseId, (Signal, Used)>,
}

/// One deployment.
struct Watched {
    instances: HashMap<Key, Watch>,
    sample_due: Option<Instant>,
    keep_due: Instant,
    /// When it was last written.
    kept: Option<Instant>,
    /// Whether it was used since then.
    is_used: bool,
    /// Whether something is to be written at once.
    is_news: bool,
}

impl Watched {
    fn from_now(at: Instant) -> Self {
        let (keep_due, instances) = (at + KEEP_EVERY, HashMap::new());
        Self { instances, sample_due: None, keep_due, kept: None, is_used: false, is_news: false }
    }

    /// Whether what was seen is to be written now: at once where it tells of what was done, soon where it tells of a use, and
    /// now and then that somebody still watches.
    fn is_to_be_kept(&self, at: Instant) -> bool {
        let is_limited = self.instances.values().any(|one| one.max_idle.is_some());
        let is_old = self.kept.is_none_or(|kept| kept + KEEP_USES_EVERY <= at);
        self.is_news || (is_limited && (self.keep_due <= at || (self.is_used && is_old)))
    }
}

/// One run of an instance.
struct Watch {
    id: InstanceId,
    run: DateTime<Utc>,
    activity: Activity,
    max_idle: Option<Duration>,
    /// What it had used when it was asked last.
    before: Option<Usage>,
    /// Since when it was idle, where it is, or is being, suspended for that.
    suspended: Option<DateTime<Utc>>,
    /// The end of its life that was announced.
    announced: Option<DateTime<Utc>>,
}

impl Ledger {
    /// Goes on with what an earlier controller saw.
    pub fn new(remembered: ActivityRecords) -> Self {
        Self { remembered, ..Self::default() }
    }

    /// Watches the runs of a declared deployment, and no others. `is_worked_on` tells where a step is under way.
    pub fn track(
        &mut self,
        deployment: &str,
        desired: Option<&DesiredDeployment>,
        instances: &[Instance],
        is_worked_on: impl Fn(&Instance) -> bool,
        (now, at): (DateTime<Utc>, Instant),
    ) {
        let remembered = self.remembered.get(deployment);
        let watched = self.deployments.entry(deployment.to_owned()).or_insert_with(|| Watched::from_now(at));
        let (mut before, mut is_new) = (std::mem::take(&mut watched.instances), false);
        for instance in instances {
            let Some(lifecycle) = lifecycle(desired, instance) else { continue };
            let (run, runs) = match instance.phase {
                Phase::Running { since, .. } => (since, true),
                Phase::Paused { since } => (since, false),
                _ => continue,
            };
            let key = (instance.runtime, instance.runtime_id.clone());
            let known = before.remove(&key).filter(|known| known.run == run);
            is_new |= known.is_none();
            let mut watch = known.unwrap_or_else(|| Watch::of(instance, run, remembered, now));
            watch.max_idle = lifecycle.and_then(|one| one.max_idle).map(|limit| limit.get());
            if runs && watch.suspended.is_some() && !is_worked_on(instance) {
                // It runs again: a use, whoever woke it.
                (watch.suspended, watch.before) = (None, None);
                watch.activity.watched_since = now;
                watched.is_news = true;
            }
            watched.instances.insert(key, watch);
        }
        let limits = watched.instances.values().filter_map(|watch| watch.max_idle);
        let every = limits.min().map(sample_every);
        // The first sample only tells what the second is compared with, so that it is taken at once.
        let due = every.map(|every| watched.sample_due.unwrap_or(at + every));
        watched.sample_due = if is_new { due.map(|due| due.min(at)) } else { due };
    }

    /// Notes the last activity of the instances that are watched.
    pub fn judge(&self, deployment: &str, instances: &mut [Instance], now: DateTime<Utc>) {
        for instance in instances {
            let key = (instance.runtime, instance.runtime_id.clone());
            let watch = self.deployments.get(deployment).and_then(|watched| watched.instances.get(&key));
            let Some((watch, max_idle)) = watch.and_then(|watch| Some((watch, watch.max_idle?))) else { continue };
            let seen = last_activity(&self.activity_of(&key, watch, now), max_idle, now);
            instance.last_activity = instance.last_activity.max(Some(seen));
        }
    }

    /// What was seen of an instance, uses that go on included.
    pub fn activity(&self, instance: &Instance, now: DateTime<Utc>) -> Option<Activity> {
        let key = (instance.runtime, instance.runtime_id.clone());
        let watch = self.deployments.get(&instance.id.deployment)?.instances.get(&key)?;
        Some(self.activity_of(&key, watch, now))
    }

    fn activity_of(&self, (runtime, runtime_id): &Key, watch: &Watch, now: DateTime<Utc>) -> Activity {
        let mut activity = watch.activity.clone();
        for (signal, used) in self.open.values() {
            if used.covers(*runtime, runtime_id, &watch.id) {
                activity.uses.insert(*signal, Use { last: now, ongoing: true });
            }
        }
        activity
    }

    /// A use begins.
    pub fn begin(&mut self, id: UseId, signal: Signal, used: Used) {
        if let Some(watched) = self.deployments.get_mut(used.deployment()) {
            watched.is_used = true;
        }
        self.open.insert(id, (signal, used));
    }

    /// A use has ended; gives what was used.
    pub fn end(&mut self, id: UseId, now: DateTime<Utc>) -> Option<Used> {
        let (signal, used) = self.open.remove(&id)?;
        self.note(signal, &used, now);
        Some(used)
    }

    /// Notes a use that is over at once.
    pub fn note(&mut self, signal: Signal, used: &Used, now: DateTime<Utc>) {
        let Some(watched) = self.deployments.get_mut(used.deployment()) else { return };
        watched.is_used = true;
        for ((runtime, runtime_id), watch) in &mut watched.instances {
            if used.covers(*runtime, runtime_id, &watch.id) {
                watch.activity.note(signal, now);
            }
        }
    }

    /// An instance is being suspended, idle since then.
    pub fn suspending(&mut self, instance: &InstanceRef, since: DateTime<Utc>) {
        let Some(watched) = self.deployments.get_mut(&instance.id.deployment) else { return };
        if let Some(watch) = watched.instances.get_mut(&(instance.runtime, instance.runtime_id.clone())) {
            watch.suspended = Some(since);
            watched.is_news = true;
        }
    }

    /// Instances of a deployment that are, or are being, suspended for idleness, by the runtime's own id.
    pub fn suspended(&self, deployment: &str) -> BTreeMap<String, DateTime<Utc>> {
        let Some(watched) = self.deployments.get(deployment) else {
            // Nobody acts on it; whoever did has written it down.
            let remembered = self.remembered.get(deployment).into_iter().flat_map(|record| &record.instances);
            return remembered.filter_map(|one| Some((one.runtime_id.clone(), one.suspended?))).collect();
        };
        let instances = watched.instances.iter();
        instances.filter_map(|((_, runtime_id), watch)| Some((runtime_id.clone(), watch.suspended?))).collect()
    }

    /// The lives whose end is near and was not announced yet, and when the next one is to be announced.
    pub fn endings(
        &mut self,
        deployment: &str,
        desired: Option<&DesiredDeployment>,
        now: DateTime<Utc>,
    ) -> (Vec<Ending>, Option<DateTime<Utc>>) {
        let (mut endings, mut next) = (Vec::new(), None::<DateTime<Utc>>);
        let Some(watched) = self.deployments.get_mut(deployment) else { return (endings, next) };
        for watch in watched.instances.values_mut() {
            let service = desired.and_then(|desired| desired.services.get(&watch.id.service));
            let limit = service.and_then(|service| service.spec.lifecycle.as_ref()?.max_lifetime);
            let Some(limit) = limit else { continue };
            let Some(end) = TimeDelta::from_std(limit.get()).ok().and_then(|age| watch.run.checked_add_signed(age))
            else {
                continue;
            };
            let from = announced_at(watch.run, limit.get());
            if watch.announced == Some(end) || end <= now {
                continue;
            }
            if from > now {
                next = Some(next.map_or(from, |next| next.min(from)));
                continue;
            }
            watch.announced = Some(end);
            watched.is_news = true;
            endings.push(Ending { id: watch.id.clone(), at: end });
        }
        endings.sort_by(|one, other| one.id.cmp(&other.id));
        (endings, next)
    }

    /// When the next deployment is to be sampled.
    pub fn next(&self) -> Option<Instant> {
        self.deployments.values().filter_map(|watched| watched.sample_due).min()
    }

    /// Takes the deployments that are to be sampled now, and their instances with a limit on idleness;
    /// [`Ledger::learn`] is told what was found.
    pub fn take_due(&mut self, now: Instant) -> Vec<(String, Vec<Key>)> {
        let due = |watched: &Watched| watched.sample_due.is_some_and(|due| due <= now);
        let due = self.deployments.iter_mut().filter(|(_, watched)| due(watched));
        due.map(|(name, watched)| {
            watched.sample_due = Some(now + UNANSWERED);
            let limited = watched.instances.iter().filter(|(_, one)| one.max_idle.is_some() && one.suspended.is_none());
            (name.clone(), limited.map(|(key, _)| key.clone()).collect())
        })
        .collect()
    }

    /// Takes samples of the instances of a deployment.
    pub fn learn(&mut self, deployment: &str, samples: Vec<Sampled>, (now, at): (DateTime<Utc>, Instant)) {
        let Some(watched) = self.deployments.get_mut(deployment) else { return };
        for Sampled { instance, run, usage } in samples {
            let key = (instance.runtime, instance.runtime_id);
            if let Some(watch) = watched.instances.get_mut(&key).filter(|watch| watch.run == run) {
                watch.learn(usage, now);
            }
        }
        let limits = watched.instances.values().filter_map(|watch| watch.max_idle);
        watched.sample_due = limits.min().map(|limit| at + sample_every(limit));
    }

    /// What is to be written of a deployment now, where something is.
    pub fn take_record(&mut self, deployment: &str, (now, at): (DateTime<Utc>, Instant)) -> Option<ActivityRecord> {
        let watched = self.deployments.get_mut(deployment)?;
        if !watched.is_to_be_kept(at) {
            return None;
        }
        (watched.is_news, watched.is_used) = (false, false);
        (watched.kept, watched.keep_due) = (Some(at), at + KEEP_EVERY);
        let of = |((runtime, runtime_id), watch): (&Key, &Watch)| {
            let activity = self.open.values().filter(|(_, used)| used.covers(*runtime, runtime_id, &watch.id));
            let mut last: BTreeMap<Signal, DateTime<Utc>> =
                watch.activity.uses.iter().map(|(signal, seen)| (*signal, seen.last)).collect();
            last.extend(activity.map(|(signal, _)| (*signal, now)));
            WatchedInstance {
                runtime: *runtime,
                runtime_id: runtime_id.clone(),
                run: watch.run,
                watched_since: watch.activity.watched_since,
                last,
                suspended: watch.suspended,
                announced: watch.announced,
            }
        };
        let mut instances: Vec<WatchedInstance> = watched.instances.iter().map(of).collect();
        instances.sort_by(|one, other| (one.runtime, &one.runtime_id).cmp(&(other.runtime, &other.runtime_id)));
        Some(ActivityRecord { seen_at: now, instances })
    }

    /// Forgets a deployment; says whether anything was known of it.
    pub fn forget(&mut self, deployment: &str) -> bool {
        self.remembered.remove(deployment);
        self.deployments.remove(deployment).is_some()
    }
}

impl Watch {
    /// Of a run that was not watched by this controller so far.
    fn of(instance: &Instance, run: DateTime<Utc>, remembered: Option<&ActivityRecord>, now: DateTime<Utc>) -> Self {
        let is_it = |one: &&WatchedInstance| {
            one.runtime == instance.runtime && one.runtime_id == instance.runtime_id && one.run == run
        };
        let known = remembered.and_then(|record| Some((record, record.instances.iter().find(is_it)?)));
        let mut activity = Activity::watched_from(now);
        if let Some((record, known)) = known {
            // What happened while nobody watched is not known, so that this time does not count as idle.
            let away = (now - record.seen_at).max(TimeDelta::zero());
            let moved = |at: DateTime<Utc>| at.checked_add_signed(away).unwrap_or(now).min(now);
            activity.watched_since = moved(known.watched_since);
            for (signal, at) in &known.last {
                activity.note(*signal, moved(*at));
            }
        }
        let known = known.map(|(_, known)| known);
        Self {
            id: instance.id.clone(),
            run,
            activity,
            max_idle: None,
            before: None,
            suspended: known.and_then(|known| known.suspended),
            announced: known.and_then(|known| known.announced),
        }
    }

    fn learn(&mut self, usage: Option<Usage>, now: DateTime<Utc>) {
        let Some(usage) = usage else {
            // What it did since it was asked last is not known.
            self.activity.watched_since = now;
            return;
        };
        if let Some(before) = self.before.replace(usage.clone()) {
            let passed = (usage.at - before.at).to_std().unwrap_or_default();
            let network = |usage: &Usage| Some(usage.received_bytes? + usage.sent_bytes?);
            let sent = network(&usage).zip(network(&before)).map(|(now, before)| now.saturating_sub(before));
            for signal in busy(passed, usage.cpu_usec.saturating_sub(before.cpu_usec), sent) {
                self.activity.note(signal, now);
            }
        }
    }
}

/// The limits of the service that the instance is of; none where that is not declared.
fn lifecycle<'a>(desired: Option<&'a DesiredDeployment>, instance: &Instance) -> Option<Option<&'a Lifecycle>> {
    let service = desired?.services.get(&instance.id.service)?;
    Some(service.spec.lifecycle.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::desired;
    use crate::spec::{merge, parse};
    use crate::state::StopPolicy;

    fn at(seconds: u32) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + Duration::from_secs(1_000_000) + Duration::from_secs(seconds.into())
    }

    fn declared(lifecycle: &str) -> DesiredDeployment {
        let text = format!(
            "version: v1\ndeployment: demo\nservices: {{web: {{image: {{name: host}}, lifecycle: {lifecycle}}}}}\n"
        );
        let merged = merge(&[("/specs/demo.yaml".into(), parse(&text))]);
        assert_eq!(merged.problems, []);
        desired(&merged.deployments["demo"], RuntimeKind::Sim)
    }

    fn running(desired: &DesiredDeployment) -> Instance {
        let id = InstanceId {
            deployment: "demo".to_owned(),
            service: "web".to_owned(),
            slot: 0,
            revision: desired.services["web"].revision.clone(),
            attempt: 0,
            run: None,
        };
        Instance {
            runtime_id: id.runtime_name(),
            id,
            runtime: RuntimeKind::Sim,
            phase: Phase::Running { since: at(0), ready: true },
            created_at: at(0),
            restarts: 0,
            streak: 0,
            stop: StopPolicy::default(),
            pid: None,
            ports: Vec::new(),
            last_activity: None,
            frozen: Default::default(),
            health: None,
            conditions: Vec::new(),
        }
    }

    /// A ledger that watches the instance from that second on.
    fn watching(remembered: ActivityRecords, desired: &DesiredDeployment, from: u32) -> (Ledger, Instance) {
        let (mut ledger, instance) = (Ledger::new(remembered), running(desired));
        ledger.track("demo", Some(desired), std::slice::from_ref(&instance), |_| false, (at(from), Instant::now()));
        (ledger, instance)
    }

    /// From when on the instance counts as idle, as seen at that second.
    fn idle_from(ledger: &Ledger, instance: &Instance, now: u32) -> Option<DateTime<Utc>> {
        let mut judged = [instance.clone()];
        ledger.judge("demo", &mut judged, at(now));
        judged[0].last_activity
    }

    fn sample(ledger: &mut Ledger, instance: &Instance, now: u32, usage: Option<(u64, u64)>) {
        let usage = usage.map(|(cpu_usec, bytes)| Usage {
            cpu_usec,
            received_bytes: Some(bytes),
            sent_bytes: Some(0),
            ..Usage::nothing(at(now))
        });
        let sampled = Sampled { instance: instance.as_ref(), run: at(0), usage };
        ledger.learn("demo", vec![sampled], (at(now), Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn samples_count_as_use_from_a_threshold_on_and_what_is_not_known_counts_as_used() {
        let desired = declared("{max_idle: 10m}");
        let (mut ledger, instance) = watching(ActivityRecords::new(), &desired, 10);
        assert_eq!(idle_from(&ledger, &instance, 20), Some(at(10)), "what was before is not known");
        sample(&mut ledger, &instance, 20, Some((1_000_000, 0)));
        assert_eq!(idle_from(&ledger, &instance, 20), Some(at(10)), "one sample alone says nothing");
        // Ten seconds with one hundredth of a processor, and a hundred bytes a second.
        sample(&mut ledger, &instance, 30, Some((1_100_000, 1_000)));
        assert_eq!(idle_from(&ledger, &instance, 30), Some(at(10)));
        sample(&mut ledger, &instance, 40, Some((1_400_000, 2_000)));
        assert_eq!(idle_from(&ledger, &instance, 40), Some(at(40)), "three hundredths are use");
        sample(&mut ledger, &instance, 50, Some((1_400_000, 22_000)));
        assert_eq!(idle_from(&ledger, &instance, 50), Some(at(50)), "two kilobytes a second are");
        sample(&mut ledger, &instance, 60, None);
        assert_eq!(idle_from(&ledger, &instance, 60), Some(at(60)), "it could not be asked");
        let seen = ledger.activity(&instance, at(60)).unwrap();
        let signals: Vec<_> = seen.uses.iter().map(|(signal, seen)| (signal.name(), seen.last)).collect();
        assert_eq!(signals, [("network", at(50)), ("cpu", at(40))]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_earlier_controller_saw_counts_without_the_time_in_which_nobody_watched() {
        let desired = declared("{max_idle: 10m}");
        let (mut ledger, instance) = watching(ActivityRecords::new(), &desired, 10);
        ledger.note(Signal::Touch, &Used::Instance(instance.as_ref()), at(100));
        let record = ledger.take_record("demo", (at(130), Instant::now())).unwrap();
        assert_eq!(ledger.take_record("demo", (at(130), Instant::now())), None, "there is nothing new");
        let (ledger, instance) = watching([("demo".to_owned(), record.clone())].into(), &desired, 1130);
        assert_eq!(idle_from(&ledger, &instance, 1140), Some(at(1100)), "idle for thirty seconds by then");
        // Another run is another thing.
        let other = WatchedInstance { run: at(5), ..record.instances[0].clone() };
        let record = ActivityRecord { instances: vec![other], ..record };
        let (ledger, instance) = watching([("demo".to_owned(), record)].into(), &desired, 1130);
        assert_eq!(idle_from(&ledger, &instance, 1140), Some(at(1130)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_life_is_announced_once_and_again_where_it_was_moved() {
        let desired = declared("{max_lifetime: 100s}");
        let (mut ledger, instance) = watching(ActivityRecords::new(), &desired, 0);
        assert_eq!(ledger.endings("demo", Some(&desired), at(89)), (vec![], Some(at(90))));
        let ending = |seconds| vec![Ending { id: instance.id.clone(), at: at(seconds) }];
        assert_eq!(ledger.endings("demo", Some(&desired), at(90)), (ending(100), None));
        assert_eq!(ledger.endings("demo", Some(&desired), at(95)), (vec![], None));
        let record = ledger.take_record("demo", (at(95), Instant::now())).unwrap();
        let (mut ledger, _) = watching([("demo".to_owned(), record)].into(), &desired, 96);
        assert_eq!(ledger.endings("demo", Some(&desired), at(97)), (vec![], None), "an earlier controller did");
        let longer = declared("{max_lifetime: 2h}");
        assert_eq!(ledger.endings("demo", Some(&longer), at(97)), (vec![], Some(at(7200 - 300))), "at most 5 minutes");
        assert_eq!(ledger.endings("demo", Some(&longer), at(7000)), (ending(7200), None));
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_that_runs_again_is_not_suspended_any_more_and_was_just_used() {
        let desired = declared("{max_idle: 10m, on_idle: suspend}");
        let (mut ledger, mut instance) = watching(ActivityRecords::new(), &desired, 0);
        ledger.suspending(&instance.as_ref(), at(0));
        let suspended = |ledger: &Ledger| ledger.suspended("demo").into_values().collect::<Vec<_>>();
        let track = |ledger: &mut Ledger, instance: &Instance, works, now| {
            ledger.track("demo", Some(&desired), std::slice::from_ref(instance), |_| works, (at(now), Instant::now()));
        };
        track(&mut ledger, &instance, true, 600);
        assert_eq!(suspended(&ledger), [at(0)], "the step for that is under way");
        instance.phase = Phase::Paused { since: at(0) };
        track(&mut ledger, &instance, false, 601);
        assert_eq!(suspended(&ledger), [at(0)]);
        instance.phase = Phase::Running { since: at(0), ready: true };
        track(&mut ledger, &instance, false, 900);
        assert_eq!((suspended(&ledger), idle_from(&ledger, &instance, 910)), (vec![], Some(at(900))));
    }
}
