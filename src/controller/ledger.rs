//! The ledger of activity: what was seen of the use of each instance, by those who use it and by samples of what it uses.
//! Written down now and then, so that another controller goes on with it.

mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

use self::watch::{STEP, Watch};
use crate::plan::LifeOrders;
use crate::plan::idle::{SAMPLE_LEAST, age_limit, announced_at};
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

/// Time after which an instance is asked again that has not answered: longer than asking every instance takes that one machine
/// runs.
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
    /// What it answered.
    pub answer: Answer,
}

/// What came of asking an instance what it uses.
#[derive(Debug)]
pub enum Answer {
    /// This.
    Used(Usage),
    /// It did not answer, so that what it does is not known.
    Unknown,
    /// Nothing that counts: the run is over, or its runtime can't tell.
    Nothing,
}

/// What follows from a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Learned {
    /// The limit on idleness is reached then, as far as is known now.
    Strikes(DateTime<Utc>),
    /// Somebody waits for this instance, which is suspended.
    Wakes(InstanceId),
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
    /// When it was looked at last, by both clocks.
    passed: Option<(DateTime<Utc>, Instant)>,
}

/// One deployment.
struct Watched {
    instances: HashMap<Key, Watch>,
    /// What was seen of the last run of those that have ended, as long as they exist.
    ended: HashMap<Key, WatchedInstance>,
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
        Self {
            instances,
            ended: HashMap::new(),
            sample_due: None,
            keep_due,
            kept: None,
            is_used: false,
            is_news: false,
        }
    }

    /// When the next of its instances is to be asked.
    fn next_sample(&self) -> Option<Instant> {
        self.instances.values().filter_map(Watch::due).min()
    }

    /// Whether what was seen is to be written now: at once where it tells of what was done, soon where it tells of a use, and
    /// now and then that somebody still watches.
    fn is_to_be_kept(&self, at: Instant) -> bool {
        let is_limited = self.instances.values().any(|one| one.max_idle.is_some());
        let is_old = self.kept.is_none_or(|kept| kept + KEEP_USES_EVERY <= at);
        self.is_news || (is_limited && (self.keep_due <= at || (self.is_used && is_old)))
    }
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
        let mut before = std::mem::take(&mut watched.instances);
        let mut ended = std::mem::take(&mut watched.ended);
        for instance in instances {
            let Some(lifecycle) = lifecycle(desired, instance) else { continue };
            let (run, runs) = match instance.phase {
                Phase::Running { since, .. } => (since, true),
                Phase::Paused { since } => (since, false),
                Phase::Exited(_) | Phase::Stopping => {
                    let key = (instance.runtime, instance.runtime_id.clone());
                    let seen = before.remove(&key);
                    watched.is_news |= seen.as_ref().is_some_and(|watch| watch.max_idle.is_some());
                    let last = seen.map(|watch| watch.record(&key)).or_else(|| ended.remove(&key));
                    if let Some(last) = last.or_else(|| recalled(remembered, &key)) {
                        watched.ended.insert(key, WatchedInstance { suspended: None, ..last });
                    }
                    continue;
                }
                _ => continue,
            };
            let key = (instance.runtime, instance.runtime_id.clone());
            let known = before.remove(&key).filter(|known| known.run == run);
            let is_new = known.is_none();
            let mut watch = known.unwrap_or_else(|| Watch::of(instance, run, remembered, now));
            if runs && watch.suspended.is_some() && !is_worked_on(instance) {
                watch.runs_again(now);
                watched.is_news = true;
            }
            watch.limit(lifecycle.and_then(|one| one.max_idle).map(|limit| limit.get()), is_new, (now, at));
            watched.instances.insert(key, watch);
        }
        watched.sample_due = watched.next_sample();
    }

    /// Says which instances are on their way to be used: those that are still starting, and those of services that others wait
    /// for before they start.
    pub fn note_coming(
        &mut self,
        deployment: &str,
        instances: &[Instance],
        waited: &BTreeSet<&str>,
        now: DateTime<Utc>,
    ) {
        let Some(watched) = self.deployments.get_mut(deployment) else { return };
        for instance in instances {
            let key = (instance.runtime, instance.runtime_id.clone());
            if let Some(watch) = watched.instances.get_mut(&key) {
                watch.comes(instance.is_starting() || waited.contains(instance.id.service.as_str()), now);
            }
        }
    }

    /// Somebody looks at the ledger. Where the last time was longer ago than is usual, the controller or the machine stood
    /// still, or the clock was set: what happened then was not seen, and that time counts as idle of nothing.
    pub fn pass(&mut self, (now, at): (DateTime<Utc>, Instant)) {
        let Some((before, before_at)) = self.passed.replace((now, at)) else { return };
        let passed = now - before;
        let ran = TimeDelta::from_std(at - before_at).unwrap_or(TimeDelta::MAX);
        if passed.abs() < TimeDelta::from_std(SAMPLE_LEAST).unwrap_or_default() && (passed - ran).abs() <= STEP {
            return;
        }
        for watch in self.deployments.values_mut().flat_map(|watched| watched.instances.values_mut()) {
            watch.passed(passed, ran, now);
        }
    }

    /// Notes the last activity of the instances that are watched.
    pub fn judge(&self, deployment: &str, instances: &mut [Instance], now: DateTime<Utc>) {
        for instance in instances {
            let key = (instance.runtime, instance.runtime_id.clone());
            let watch = self.deployments.get(deployment).and_then(|watched| watched.instances.get(&key));
            let seen = watch.and_then(|watch| watch.idle_from(&self.activity_of(&key, watch, now), now));
            instance.last_activity = instance.last_activity.max(seen);
        }
    }

    /// What was seen of an instance, uses that go on included; of one that has ended, what was seen before.
    pub fn activity(&self, instance: &Instance, now: DateTime<Utc>) -> Option<Activity> {
        let key = (instance.runtime, instance.runtime_id.clone());
        let watched = self.deployments.get(&instance.id.deployment)?;
        match watched.instances.get(&key) {
            Some(watch) => Some(self.activity_of(&key, watch, now)),
            None => watched.ended.get(&key).map(WatchedInstance::activity),
        }
    }

    fn activity_of(&self, (runtime, runtime_id): &Key, watch: &Watch, now: DateTime<Utc>) -> Activity {
        let mut activity = watch.activity.clone();
        for (signal, used) in self.open.values() {
            if used.covers(*runtime, runtime_id, &watch.id) {
                activity.uses.insert(*signal, Use { last: now, counted: now, ongoing: true });
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

    /// The lives whose end is near and was not announced yet, and when the next one is to be announced, as far as is known of
    /// these instances and of what is held.
    pub fn endings(
        &mut self,
        deployment: &str,
        desired: Option<&DesiredDeployment>,
        (instances, orders): (&[Instance], &LifeOrders),
        now: DateTime<Utc>,
    ) -> (Vec<Ending>, Option<DateTime<Utc>>) {
        let (mut endings, mut next) = (Vec::new(), None::<DateTime<Utc>>);
        let Some(watched) = self.deployments.get_mut(deployment) else { return (endings, next) };
        for instance in instances {
            let key = (instance.runtime, instance.runtime_id.clone());
            let Some(watch) = watched.instances.get_mut(&key) else { continue };
            let service = desired.and_then(|desired| desired.services.get(&watch.id.service));
            let Some(spec) = service.map(|service| &service.spec) else { continue };
            let Some(limit) = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.max_lifetime) else { continue };
            let Some(end) = age_limit(&instance.phase, spec, orders.held_until(instance)) else { continue };
            let from = announced_at(end, limit.get());
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

    /// Takes the instances that are to be sampled now, by deployment; [`Ledger::learn`] is told what came of each. Until
    /// then it is not known what it does, so that no limit on its idleness is reached.
    pub fn take_due(&mut self, now: Instant) -> Vec<(String, Vec<Key>)> {
        let due = |watched: &Watched| watched.sample_due.is_some_and(|due| due <= now);
        let due = self.deployments.iter_mut().filter(|(_, watched)| due(watched));
        due.map(|(name, watched)| {
            let is_due = |watch: &Watch| watch.due().is_some_and(|due| due <= now);
            let asked = watched.instances.iter_mut().filter(|(_, watch)| is_due(watch)).map(|(key, watch)| {
                watch.ask(now);
                key.clone()
            });
            let asked = asked.collect();
            watched.sample_due = watched.next_sample();
            (name.clone(), asked)
        })
        .collect()
    }

    /// Takes a sample of an instance. Gives what follows from it.
    pub fn learn(
        &mut self,
        deployment: &str,
        Sampled { instance, run, answer }: Sampled,
        (now, at): (DateTime<Utc>, Instant),
    ) -> Option<Learned> {
        let key = (instance.runtime, instance.runtime_id);
        let watched = self.deployments.get_mut(deployment)?;
        let wakes = watched.instances.get_mut(&key).filter(|watch| watch.run == run)?.learn(answer, (now, at));
        watched.sample_due = watched.next_sample();
        let watch = self.deployments.get(deployment)?.instances.get(&key)?;
        if watch.suspended.is_some() {
            return wakes.then(|| Learned::Wakes(watch.id.clone()));
        }
        let from = watch.idle_from(&self.activity_of(&key, watch, now), now)?;
        from.checked_add_signed(TimeDelta::from_std(watch.max_idle?).ok()?).map(Learned::Strikes)
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
            let mut record = watch.record(&(*runtime, runtime_id.clone()));
            let open = self.open.values().filter(|(_, used)| used.covers(*runtime, runtime_id, &watch.id));
            for (signal, _) in open {
                record.last.insert(*signal, now);
                record.counted.insert(*signal, now);
            }
            record
        };
        let mut instances: Vec<WatchedInstance> =
            watched.instances.iter().map(of).chain(watched.ended.values().cloned()).collect();
        instances.sort_by(|one, other| (one.runtime, &one.runtime_id).cmp(&(other.runtime, &other.runtime_id)));
        Some(ActivityRecord { seen_at: now, instances })
    }

    /// Forgets a deployment; says whether anything was known of it.
    pub fn forget(&mut self, deployment: &str) -> bool {
        self.remembered.remove(deployment);
        self.deployments.remove(deployment).is_some()
    }
}

/// The limits of the service that the instance is of; none where that is not declared.
fn lifecycle<'a>(desired: Option<&'a DesiredDeployment>, instance: &Instance) -> Option<Option<&'a Lifecycle>> {
    let service = desired?.services.get(&instance.id.service)?;
    Some(service.spec.lifecycle.as_ref())
}

/// What an earlier controller saw of an instance.
fn recalled(remembered: Option<&ActivityRecord>, (runtime, runtime_id): &Key) -> Option<WatchedInstance> {
    let is_it = |one: &&WatchedInstance| one.runtime == *runtime && one.runtime_id == *runtime_id;
    remembered?.instances.iter().find(is_it).cloned()
}

#[cfg(test)]
mod tests;
