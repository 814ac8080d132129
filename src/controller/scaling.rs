//! How many replicas adaptive services have: what their instances use is measured from time to time, and decided on. The
//! number alone outlives the controller, so that there are fewer only by a decision, and never because instances were lost
//! while none was there. Where none is known, it begins with what runs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::{StreamExt, stream};
use tokio::time::Instant;

use super::core::State;
use super::memory::Note;
use super::message::Message;
use crate::plan::{Load, Mean, SCALE_EVERY, ScaleDecision, ScaleRule, Scaling};
use crate::runtime::{Runtime, Uncounted, Usage};
use crate::spec::{HumanDuration, RuntimeKind, Scale, ServiceSpec, UnsupportedField, uncounted_requests};
use crate::state::{Condition, DesiredDeployment, DesiredService, Instance, InstanceRef, Phase, ServiceName};

/// Longest wait for what one instance uses; one that does not answer counts as not measured.
const MEASURE_DEADLINE: Duration = Duration::from_secs(5);

/// Time after which a service is measured again of which nothing was heard: far longer than [`MEASURE_DEADLINE`] for every
/// instance that one machine runs.
const UNANSWERED: Duration = Duration::from_secs(600);

/// Instances of one service that are asked at a time: as many calls as the docker adapter makes side by side.
const SIDE_BY_SIDE: usize = 16;

/// What an instance used at one time, and which of its runs.
pub type Sample = (InstanceRef, DateTime<Utc>, Usage);

/// What was found out about a service.
#[derive(Debug)]
pub struct Measured {
    /// Which.
    pub service: ServiceName,
    /// What its instances use, as far as they could be asked.
    pub samples: Vec<Sample>,
}

/// The adaptive services that are acted on.
#[derive(Default)]
pub struct Scalers {
    services: BTreeMap<ServiceName, Scaler>,
}

/// One adaptive service.
struct Scaler {
    rule: ScaleRule,
    limits: Limits,
    scaling: Scaling,
    /// What its instances used when they were last asked, by the runtime's own id.
    before: HashMap<(RuntimeKind, String), (DateTime<Utc>, Usage)>,
    /// Why connections of an instance were not counted when they were last asked, where that was so.
    uncounted: Option<Uncounted>,
    /// Whether instances are being replaced or are not ready.
    moving: bool,
    /// When it is measured next.
    due: Instant,
}

/// Replicas of adaptive services of one deployment, by service.
type Numbers = BTreeMap<String, u32>;

/// What its use is measured against.
#[derive(Clone, Copy, PartialEq)]
struct Limits {
    /// Processors; one where there is no limit.
    cpu: f64,
    memory: Option<u64>,
}

impl Limits {
    fn of(spec: &ServiceSpec) -> Self {
        let resources = spec.resources.as_ref();
        Self {
            cpu: resources.and_then(|resources| resources.cpu).map_or(1.0, |cpu| cpu.millis as f64 / 1000.0),
            memory: resources.and_then(|resources| resources.memory).map(|memory| memory.0),
        }
    }
}

/// How an adaptive service is scaled; none where it is not one.
fn rule(spec: &ServiceSpec) -> Option<ScaleRule> {
    let Some(Scale::Adaptive { min, max, cooldown, targets }) = &spec.scale else { return None };
    Some(ScaleRule {
        // Nothing measures, or wakes, what does not run.
        min: (*min).max(1),
        max: (*max).max(1),
        cooldown: cooldown.map_or(Duration::ZERO, HumanDuration::get),
        targets: targets.unwrap_or_default(),
    })
}

/// Slots of a service in which something lives: what there is to begin with.
fn living(service: &DesiredService, instances: &[Instance]) -> u32 {
    let alive = instances.iter().filter(|one| one.id.service == service.name && !matches!(one.phase, Phase::Exited(_)));
    let slots: std::collections::BTreeSet<u32> = alive.map(|one| one.id.slot).collect();
    u32::try_from(slots.len()).unwrap_or(u32::MAX)
}

/// Replicas that an adaptive service begins with: as many as it was to have, else as many as run, within the bounds.
fn first(service: &DesiredService, rule: &ScaleRule, kept: &Numbers, instances: &[Instance]) -> u32 {
    let known = kept.get(&service.name).copied();
    known.unwrap_or_else(|| living(service, instances)).clamp(rule.min, rule.max.max(rule.min))
}

impl Scalers {
    /// A deployment with as many replicas of its adaptive services as their load asks for; none where it has no such
    /// service. Before anything was measured, as many as there were to be, or run where that is not `kept`, within the bounds.
    pub fn scaled(
        &self,
        declared: &DesiredDeployment,
        kept: &Numbers,
        instances: &[Instance],
    ) -> Option<DesiredDeployment> {
        if !declared.services.values().any(|service| rule(&service.spec).is_some()) {
            return None;
        }
        let mut scaled = declared.clone();
        for service in scaled.services.values_mut() {
            let Some(rule) = rule(&service.spec) else { continue };
            let name = ServiceName { deployment: declared.name.clone(), service: service.name.clone() };
            service.replicas = match self.services.get(&name) {
                Some(scaler) => scaler.scaling.replicas(&rule),
                None => first(service, &rule, kept, instances),
            };
        }
        Some(scaled)
    }

    /// Keeps an eye on the services of a deployment that are declared adaptive and acted on, and on no others. It begins where
    /// their runtime answers: of what can't be seen, nobody knows how much there is to begin with.
    pub fn track<'a>(
        &mut self,
        deployment: &str,
        services: impl Iterator<Item = &'a DesiredService>,
        kept: &Numbers,
        instances: &[Instance],
        answers: impl Fn(RuntimeKind) -> bool,
        (now, at): (DateTime<Utc>, Instant),
    ) {
        let mut gone: Vec<ServiceName> =
            self.services.keys().filter(|name| name.deployment == deployment).cloned().collect();
        for service in services {
            let Some(rule) = rule(&service.spec) else { continue };
            let name = ServiceName { deployment: deployment.to_owned(), service: service.name.clone() };
            gone.retain(|one| *one != name);
            if !answers(service.runtime) && !self.services.contains_key(&name) {
                continue;
            }
            let limits = Limits::of(&service.spec);
            let scaler = self.services.entry(name).or_insert_with(|| {
                let replicas = first(service, &rule, kept, instances);
                let (scaling, due) = (Scaling::new(replicas, now), at + SCALE_EVERY);
                Scaler { rule, limits, scaling, before: HashMap::new(), uncounted: None, moving: true, due }
            });
            (scaler.rule, scaler.limits) = (rule, limits);
            let mine = instances.iter().filter(|one| one.id.service == service.name);
            let mut alive = mine.filter(|one| !matches!(one.phase, Phase::Exited(_)));
            scaler.moving = alive.any(|one| !one.phase.is_ready() || !service.is_made_from(&one.id.revision));
        }
        for name in gone {
            self.services.remove(&name);
        }
    }

    /// Replicas that the services of a deployment are to have, as far as they are looked after.
    fn numbers(&self, deployment: &str) -> impl Iterator<Item = (String, u32)> {
        let mine = self.services.iter().filter(move |(name, _)| name.deployment == deployment);
        mine.map(|(name, scaler)| (name.service.clone(), scaler.scaling.replicas(&scaler.rule)))
    }

    /// Forgets a deployment.
    pub fn forget(&mut self, deployment: &str) {
        self.services.retain(|name, _| name.deployment != deployment);
    }

    /// When the next service is to be measured.
    pub fn next(&self) -> Option<Instant> {
        self.services.values().map(|scaler| scaler.due).min()
    }

    /// Takes the services that are to be measured now; [`Scalers::learn`] is told what was found.
    pub fn take_due(&mut self, now: Instant) -> Vec<ServiceName> {
        let due = self.services.iter_mut().filter(|(_, scaler)| scaler.due <= now);
        due.map(|(name, scaler)| {
            scaler.due = now + UNANSWERED;
            name.clone()
        })
        .collect()
    }

    /// Takes a measurement; gives what is decided by it.
    pub fn learn(
        &mut self,
        measured: Measured,
        (now, at): (DateTime<Utc>, Instant),
    ) -> Option<(ServiceName, ScaleDecision)> {
        let scaler = self.services.get_mut(&measured.service)?;
        scaler.due = at + SCALE_EVERY;
        if !measured.samples.is_empty() {
            let accepted = measured.samples.iter().map(|(_, _, usage)| usage.accepted);
            // The same one whichever instance answers first.
            scaler.uncounted = accepted.filter_map(Result::err).min();
        }
        let load = scaler.load(measured.samples);
        let decision = scaler.scaling.decide(&scaler.rule, &load, now)?;
        Some((measured.service, decision))
    }

    /// That the requests of a service, which it is to be scaled by, are not counted, and why.
    pub fn uncounted(&self, service: &ServiceName) -> Option<Condition> {
        let scaler = self.services.get(service)?;
        let targets = &scaler.rule.targets;
        let why = scaler.uncounted.filter(|_| targets.rps.is_some())?;
        let UnsupportedField { path, why } = uncounted_requests(targets, &why.to_string());
        // As it is said where the declaration alone shows it, so that it is said once.
        Some(Condition::holds("UnsupportedField", "RequestsNotCounted", format!("{path}: {why}")))
    }
}

impl Scaler {
    fn load(&mut self, samples: Vec<Sample>) -> Load {
        let mut cpu = Vec::new();
        let mut memory = Vec::new();
        let mut rps = Vec::new();
        let mut before = HashMap::new();
        for (instance, since, usage) in samples {
            let key = (instance.runtime, instance.runtime_id);
            // What ran before that does not count: it used its time then.
            if let Some((_, last)) = self.before.get(&key).filter(|(of, _)| *of == since) {
                cpu.extend(share(last, &usage).map(|processors| processors / self.limits.cpu * 100.0));
                rps.extend(rate(last, &usage));
            }
            let limit = usage.memory_limit.or(self.limits.memory).filter(|limit| *limit > 0);
            memory.extend(usage.memory.zip(limit).map(|(used, limit)| used as f64 / limit as f64 * 100.0));
            before.insert(key, (since, usage));
        }
        self.before = before;
        Load { cpu: mean(&cpu), memory: mean(&memory), rps: mean(&rps), moving: self.moving }
    }
}

/// Processors that were busy between two samples; none where no time passed.
fn share(before: &Usage, now: &Usage) -> Option<f64> {
    let used = now.cpu_usec.checked_sub(before.cpu_usec)?;
    Some(used as f64 / passed(before, now)? as f64)
}

/// Connections per second that were accepted between two samples; none where no time passed, or they were not counted.
fn rate(before: &Usage, now: &Usage) -> Option<f64> {
    let accepted = now.accepted.ok()?.checked_sub(before.accepted.ok()?)?;
    Some(accepted as f64 / passed(before, now)? as f64 * 1e6)
}

/// Microseconds between two samples, where any passed.
fn passed(before: &Usage, now: &Usage) -> Option<i64> {
    (now.at - before.at).num_microseconds().filter(|passed| *passed > 0)
}

fn mean(values: &[f64]) -> Option<Mean> {
    let of = u32::try_from(values.len()).ok().filter(|of| *of > 0)?;
    Some(Mean { value: values.iter().sum::<f64>() / f64::from(of), of })
}

/// Asks the ready instances of a service what they use.
async fn measure(service: ServiceName, instances: Vec<(Arc<dyn Runtime>, InstanceRef, DateTime<Utc>)>) -> Measured {
    let asked: Vec<_> =
        instances.into_iter().map(|(runtime, instance, since)| sample(runtime, instance, since)).collect();
    let samples: Vec<Option<Sample>> = stream::iter(asked).buffer_unordered(SIDE_BY_SIDE).collect().await;
    Measured { service, samples: samples.into_iter().flatten().collect() }
}

async fn sample(runtime: Arc<dyn Runtime>, instance: InstanceRef, since: DateTime<Utc>) -> Option<Sample> {
    let usage = tokio::time::timeout(MEASURE_DEADLINE, runtime.stats()?.stats(&instance)).await.ok()?.ok()?;
    Some((instance, since, usage))
}

impl State {
    /// A deployment with as many replicas of its adaptive services as load asks for; none where it has no such service.
    pub(super) fn scaled(&self, declared: &DesiredDeployment, observed: &[Instance]) -> Option<DesiredDeployment> {
        self.scalers.scaled(declared, self.kept_numbers(&declared.name), observed)
    }

    /// That the requests of a service, which it is to be scaled by, are not counted, and why.
    pub(super) fn uncounted_requests(&self, deployment: &str, service: &str) -> Option<Condition> {
        let name = ServiceName { deployment: deployment.to_owned(), service: service.to_owned() };
        self.scalers.uncounted(&name)
    }

    fn kept_numbers(&self, deployment: &str) -> &Numbers {
        static NONE: Numbers = Numbers::new();
        self.memory.get(deployment).map_or(&NONE, |memory| &memory.orders.adaptive)
    }

    /// Has the load of adaptive services measured where this controller acts on them, and keeps how many there are to be.
    pub(super) fn track_load(&mut self, deployment: &str, desired: Option<&DesiredDeployment>, instances: &[Instance]) {
        if self.is_suspended(deployment) {
            // Nobody would carry out what is decided.
            return self.scalers.forget(deployment);
        }
        let times = self.now();
        let acts = self.covers(deployment);
        let kept = self.kept_numbers(deployment).clone();
        let (runtimes, unreachable) = (&self.runtimes, &self.unreachable);
        let answers = |kind| runtimes.contains_key(&kind) && !unreachable.contains_key(&kind);
        let services = desired.into_iter().filter(|_| acts).flat_map(|desired| desired.services.values());
        self.scalers.track(deployment, services, &kept, instances, answers, times);
        if let Some(desired) = desired.filter(|_| acts) {
            let is_adaptive = |name: &String| desired.services.get(name).is_some_and(|one| rule(&one.spec).is_some());
            self.keep_numbers(deployment, is_adaptive);
        }
    }

    /// Keeps for the next controller how many replicas there are to be, and what was kept of the services that pass the test.
    fn keep_numbers(&mut self, deployment: &str, stays: impl Fn(&String) -> bool) {
        let before = self.kept_numbers(deployment);
        let mut numbers: Numbers = before.clone();
        numbers.retain(|name, _| stays(name));
        numbers.extend(self.scalers.numbers(deployment));
        if *before == numbers {
            return;
        }
        let orders = &mut self.memory.entry(deployment.to_owned()).or_default().orders;
        orders.adaptive = numbers;
        let note = Note::Orders(orders.clone());
        self.keep(deployment, None, note, None);
    }

    /// Asks what the ready instances of the services use that are to be measured now: what starts needs more than it will.
    pub(super) fn measure_due(&mut self) {
        for service in self.scalers.take_due(Instant::now()) {
            let observed = self.observed(&service.deployment);
            let mine = observed.iter().filter(|one| one.id.service == service.service);
            let ready =
                mine.filter(|one| !self.unreachable.contains_key(&one.runtime)).filter_map(|one| match one.phase {
                    Phase::Running { since, ready: true } => {
                        let attached = self.runtimes.get(&one.runtime)?;
                        Some((attached.runtime.clone(), one.as_ref(), since))
                    }
                    _ => None,
                });
            let (instances, messages) = (ready.collect(), self.messages.clone());
            self.lanes.spawn(async move {
                // A core that has ended decides nothing.
                let _ = messages.send(Message::Measured(measure(service, instances).await)).await;
            });
        }
    }

    /// Takes what a service uses, and plans its deployment where it is to have another number of replicas.
    pub(super) fn measured(&mut self, measured: Measured) {
        if self.is_suspended(&measured.service.deployment) {
            return;
        }
        let times @ (_, at) = self.now();
        let service = measured.service.clone();
        let told = self.scalers.uncounted(&service);
        let learned = self.scalers.learn(measured, times);
        if self.scalers.uncounted(&service) != told {
            // So that it is shown.
            self.queue.add(&service.deployment, at);
        }
        let Some((service, decision)) = learned else { return };
        let message = format!("{service}: {decision}");
        tracing::info!("{message}");
        self.record_event(Some(&service.deployment), "ScaleDecided", message);
        self.keep_numbers(&service.deployment, |_| true);
        self.queue.add(&service.deployment, at);
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::controller::desired;
    use crate::spec::{merge, parse};
    use crate::state::InstanceId;

    const ONE_SECOND: Duration = Duration::from_secs(1);

    fn declared(scale: &str) -> DesiredDeployment {
        let text = format!(
            "version: v1\ndeployment: demo\nservices: {{web: {{image: {{name: host}}, resources: {{cpu: 500m, memory: 1Mi}}, scale: {scale}}}}}\n"
        );
        let merged = merge(&[(PathBuf::from("/specs/demo.yaml"), parse(&text))]);
        assert_eq!(merged.problems, []);
        desired(&merged.deployments["demo"], RuntimeKind::Sim)
    }

    fn adaptive() -> DesiredDeployment {
        declared("{mode: adaptive, min: 2, max: 8, targets: {cpu: 50}}")
    }

    fn running(desired: &DesiredDeployment, slots: u32) -> Vec<Instance> {
        let revision = &desired.services["web"].revision;
        let one = |slot| {
            let id = InstanceId {
                deployment: "demo".into(),
                service: "web".into(),
                slot,
                revision: revision.clone(),
                attempt: 0,
                run: None,
            };
            let phase = Phase::Running { since: DateTime::UNIX_EPOCH, ready: true };
            Instance::new(id, RuntimeKind::Sim, phase, DateTime::UNIX_EPOCH)
        };
        (0..slots).map(one).collect()
    }

    /// What every instance used that ran for so many seconds with this share of a processor.
    fn samples(instances: &[Instance], seconds: u32, processors: f64) -> Vec<Sample> {
        let at = DateTime::UNIX_EPOCH + ONE_SECOND * seconds;
        let cpu_usec = (f64::from(seconds) * processors * 1e6) as u64;
        let usage = Usage { cpu_usec, memory: Some(1 << 19), ..Usage::nothing(at) };
        instances.iter().map(|one| (one.as_ref(), DateTime::UNIX_EPOCH, usage.clone())).collect()
    }

    fn replicas(scalers: &Scalers, desired: &DesiredDeployment, instances: &[Instance]) -> u32 {
        scalers.scaled(desired, &Numbers::new(), instances).unwrap().services["web"].replicas
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_begins_with_what_runs_within_its_bounds() {
        let desired = adaptive();
        for (slots, expected) in [(0, 2), (5, 5), (20, 8)] {
            let (mut scalers, instances) = (Scalers::default(), running(&desired, slots));
            assert_eq!(replicas(&scalers, &desired, &instances), expected);
            scalers.track(
                "demo",
                desired.services.values(),
                &Numbers::new(),
                &instances,
                |_| true,
                (DateTime::UNIX_EPOCH, Instant::now()),
            );
            assert_eq!(replicas(&scalers, &desired, &[]), expected, "and keeps that whatever becomes of them");
        }
        let fixed = declared("{mode: fixed, replicas: 3}");
        assert_eq!(Scalers::default().scaled(&fixed, &Numbers::new(), &[]), None);
    }

    #[tokio::test(start_paused = true)]
    async fn it_goes_on_with_the_number_that_it_was_to_have_whatever_is_left_of_it() {
        let desired = adaptive();
        for (slots, known, expected) in [(0, 5, 5), (2, 5, 5), (5, 3, 3), (0, 1, 2), (0, 20, 8)] {
            let (mut scalers, instances) = (Scalers::default(), running(&desired, slots));
            let kept = Numbers::from([("web".to_owned(), known)]);
            let scaled =
                |scalers: &Scalers| scalers.scaled(&desired, &kept, &instances).unwrap().services["web"].replicas;
            assert_eq!(scaled(&scalers), expected);
            let times = (DateTime::UNIX_EPOCH, Instant::now());
            scalers.track("demo", desired.services.values(), &kept, &instances, |_| true, times);
            assert_eq!(scaled(&scalers), expected);
            assert_eq!(scalers.numbers("demo").collect::<Numbers>(), Numbers::from([("web".to_owned(), expected)]));
            assert_eq!(scalers.numbers("other").count(), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn load_above_the_target_adds_replicas_and_is_measured_against_the_limits() {
        let (desired, mut scalers) = (adaptive(), Scalers::default());
        let instances = running(&desired, 3);
        let (begin, at) = (DateTime::UNIX_EPOCH, Instant::now());
        scalers.track("demo", desired.services.values(), &Numbers::new(), &instances, |_| true, (begin, at));
        assert_eq!((scalers.next(), scalers.take_due(at)), (Some(at + SCALE_EVERY), Vec::new()));
        let mut decisions = Vec::new();
        for turn in 1..=2 {
            let seconds = turn * 15;
            let at = at + ONE_SECOND * seconds;
            let due = scalers.take_due(at);
            assert_eq!((due.len(), scalers.next()), (1, Some(at + UNANSWERED)), "nothing is measured twice at once");
            // Half a processor is all of the limit.
            let measured = Measured { service: due[0].clone(), samples: samples(&instances, seconds, 0.5) };
            decisions.push(scalers.learn(measured, (begin + ONE_SECOND * seconds, at)).map(|(_, one)| one.to_string()));
        }
        // One sample alone says nothing of the processor.
        let expected = "3 to 6 replicas: 100 % cpu on average in 3 of 3, 50 is aimed at";
        assert_eq!(decisions, [None, Some(expected.to_owned())]);
        assert_eq!(replicas(&scalers, &desired, &instances), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_declared_any_more_is_not_measured() {
        let (desired, mut scalers) = (adaptive(), Scalers::default());
        let times = (DateTime::UNIX_EPOCH, Instant::now());
        scalers.track("demo", desired.services.values(), &Numbers::new(), &[], |_| true, times);
        scalers.track("other", std::iter::empty(), &Numbers::new(), &[], |_| true, times);
        assert!(scalers.next().is_some());
        scalers.track("demo", std::iter::empty(), &Numbers::new(), &[], |_| true, times);
        assert_eq!(scalers.next(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_is_silent_for_a_while_changes_no_number() {
        let (desired, mut scalers) = (adaptive(), Scalers::default());
        let instances = running(&desired, 5);
        let times = (DateTime::UNIX_EPOCH, Instant::now());
        scalers.track("demo", desired.services.values(), &Numbers::new(), &[], |_| false, times);
        assert_eq!(scalers.next(), None, "nobody knows yet how many there are");
        scalers.track("demo", desired.services.values(), &Numbers::new(), &instances, |_| true, times);
        scalers.track("demo", desired.services.values(), &Numbers::new(), &instances, |_| false, times);
        scalers.track("demo", desired.services.values(), &Numbers::new(), &[], |_| true, times);
        assert_eq!(replicas(&scalers, &desired, &[]), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_per_second_are_those_between_two_samples_of_what_can_be_counted() {
        let desired = declared("{mode: adaptive, min: 1, max: 8, targets: {rps: 5}}");
        let (mut scalers, instances) = (Scalers::default(), running(&desired, 2));
        let (begin, at) = (DateTime::UNIX_EPOCH, Instant::now());
        scalers.track("demo", desired.services.values(), &Numbers::new(), &instances, |_| true, (begin, at));
        let service = ServiceName { deployment: "demo".to_owned(), service: "web".to_owned() };
        let mut course = Vec::new();
        let counters = [[Ok(1000), Ok(0)], [Ok(1180), Ok(60)], [Ok(3), Err(Uncounted::SharedNetwork)], [Ok(3), Ok(60)]];
        for (seconds, counters) in [15, 30, 45, 60].into_iter().zip(counters) {
            let now = begin + ONE_SECOND * seconds;
            let both = instances.iter().zip(counters);
            let sample = both.map(|(one, accepted)| (one.as_ref(), begin, Usage { accepted, ..Usage::nothing(now) }));
            let measured = Measured { service: service.clone(), samples: sample.collect() };
            let decision = scalers.learn(measured, (now, at)).map(|(_, decision)| decision.to_string());
            course.push((decision, scalers.uncounted(&service).map(|condition| condition.message)));
        }
        // One sample alone says nothing, and so does a counter that began anew.
        let decision = "2 to 4 replicas: 8.0 requests/s on average in 2 of 2, 5 is aimed at".to_owned();
        let uncounted = "scale.targets.rps: requests are not counted: it shares its network, and nobody can tell whose \
                         connections are counted there; there is no other target, so the number of replicas stays";
        assert_eq!(course, [(None, None), (Some(decision), None), (None, Some(uncounted.to_owned())), (None, None)]);
        scalers.forget("demo");
        assert_eq!(scalers.uncounted(&service), None);
    }

    #[test]
    fn a_run_that_began_anew_says_nothing_of_its_load_yet() {
        let before = Usage { cpu_usec: 1_000_000, ..Usage::nothing(DateTime::UNIX_EPOCH) };
        let after =
            |cpu_usec, seconds| Usage { cpu_usec, ..Usage::nothing(DateTime::UNIX_EPOCH + ONE_SECOND * seconds) };
        assert_eq!(share(&before, &after(3_000_000, 4)), Some(0.5));
        assert_eq!(share(&before, &after(0, 4)), None);
        assert_eq!(share(&before, &after(3_000_000, 0)), None);
        let accepted = |accepted, seconds| Usage { accepted, ..after(0, seconds) };
        let counted = |now| rate(&accepted(Ok(100), 0), &now);
        assert_eq!(counted(accepted(Ok(130), 4)), Some(7.5));
        let unknown = [accepted(Ok(99), 4), accepted(Ok(130), 0), accepted(Err(Uncounted::Unseen), 4)];
        assert_eq!(unknown.map(counted), [None; 3]);
        assert_eq!((mean(&[]), mean(&[1.0, 2.0])), (None, Some(Mean { value: 1.5, of: 2 })));
    }
}
