//! Services that wait for others of their deployment (`depends`).
//!
//! Only what is to be launched or started waits. What runs is never ended because a dependency went down, and services that
//! depend on nothing never wait. What is about to be taken down by a rollout is not there any more.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::bridge::lacking_while_replaced;
use super::diff::{count, exit_of};
use super::draft::Draft;
use super::input::{Awaited, Dependency};
use super::job::{Outcome, outcome};
use super::restart::{AfterExit, after_exit};
use super::time::{after, due, elapsed};
use super::wake::{is_out_of_reach, to_wake};
use super::{Input, Plan, Unreachable, Wait};
use crate::spec::{Depends, DependsCondition, HumanDuration, OnFailure, RType};
use crate::state::{DesiredDeployment, DesiredService, Instance, Phase, RunEnd};

/// A dependency whose condition does not hold.
#[derive(Debug, Clone)]
pub(super) struct Unmet {
    dependency: Dependency,
    condition: DependsCondition,
    on_timeout: OnFailure,
    why: String,
    /// Since when it is waited for; now where nobody did before.
    since: DateTime<Utc>,
    /// Until when it is waited for.
    until: DateTime<Utc>,
    /// Whether it is left asleep, as to wake it would not start what depends on it: something else is missing for good.
    asleep: bool,
}

/// What the services of a deployment lack of what they depend on, by service. `observed` are the instances of the
/// deployment, in order of their identity.
pub(super) fn unmet(
    input: &Input<'_>,
    desired: &DesiredDeployment,
    observed: &[&Instance],
) -> BTreeMap<String, Vec<Unmet>> {
    let mut unmet: BTreeMap<String, Vec<Unmet>> = BTreeMap::new();
    for (service, depends) in dependencies(desired) {
        let Some(why) = lacking(input, desired, depends, observed) else { continue };
        unmet.entry(service.name.clone()).or_default().push(Unmet::new(input, service, depends, why));
    }
    unmet.values_mut().for_each(|unmet| leave_asleep(input, desired, observed, unmet));
    unmet
}

/// Marks what a service lacks of which nothing has to be woken, as it would wait for another one all the same: that was not
/// there in time, or stays down.
fn leave_asleep(input: &Input<'_>, desired: &DesiredDeployment, observed: &[&Instance], unmet: &mut [Unmet]) {
    let on = |one: &Unmet| desired.services.get(&one.dependency.on);
    let is_over = |one: &Unmet| one.until <= input.now;
    let is_in_the_way = |one: &Unmet| {
        let is_out_of_reach = || on(one).is_some_and(|on| is_out_of_reach(input, on, one.condition, observed));
        one.on_timeout == OnFailure::Fail && (is_over(one) || is_out_of_reach())
    };
    let in_the_way: Vec<bool> = unmet.iter().map(is_in_the_way).collect();
    for (at, one) in unmet.iter_mut().enumerate() {
        let is_another = in_the_way.iter().enumerate().any(|(other, is)| *is && other != at);
        let sleeps = || on(one).is_some_and(|on| !to_wake(input, on, one.condition, observed).is_empty());
        // What was not there in time itself is given up, and not waited for anew.
        let asleep = is_another && !is_over(one) && sleeps();
        one.asleep = asleep;
    }
}

/// What is to be remembered in [`History::awaited`](super::History::awaited) after this plan was made from this input: since
/// when each dependency is waited for. Time in which the deployment is suspended, a rollout that would fail is paused, a
/// runtime of either does not answer or an idle one is left asleep for what else is missing ends the wait, which begins anew
/// after it. One that nobody waits for any more is
/// remembered until its condition holds, so that it is given up once and not with every restart.
pub fn awaited(input: &Input<'_>, plan: &Plan) -> BTreeMap<Dependency, Awaited> {
    let Ok(desired) = input.desired else { return BTreeMap::new() };
    let mut observed: Vec<&Instance> =
        input.observed.iter().filter(|one| one.id.deployment == input.deployment).collect();
    observed.sort_by(|a, b| a.id.cmp(&b.id));
    let unmet = unmet(input, desired, &observed);
    let begins = |dependency: &Dependency| plan.waits.iter().any(|wait| wait.dependency() == Some(dependency));
    let of = |(service, depends): (&DesiredService, &Depends)| {
        if stands_still(input, desired, service, depends) {
            return None;
        }
        let dependency = key(service, depends);
        let lacks = unmet.get(&service.name).into_iter().flatten().find(|one| one.dependency == dependency)?;
        let known = begun(input, service, depends).filter(|_| !lacks.asleep);
        let since = known.or_else(|| begins(&dependency).then_some(input.now))?;
        Some((dependency, Awaited { since, revision: service.revision.clone(), depends: depends.clone() }))
    };
    dependencies(desired).filter_map(of).collect()
}

/// Whether the time now is none that counts as waiting: the dependency can't come to be as it has to be, or nobody would know,
/// or what waits may not begin. Nothing is remembered of it, so that the wait begins anew afterwards.
fn stands_still(input: &Input<'_>, desired: &DesiredDeployment, service: &DesiredService, depends: &Depends) -> bool {
    // What is absent stays so, and is waited for in vain.
    let is_silent = |runtime| matches!(input.unreachable.get(&runtime), Some(Unreachable::Silent(_)));
    let on = desired.services.get(&depends.service);
    // What a paused service fills again goes on without its dependency after the timeout where that is asked for.
    let is_paused = service.standing.paused.is_some() && depends.on_timeout.unwrap_or_default() == OnFailure::Fail;
    input.history.suspended || is_paused || is_silent(service.runtime) || on.is_some_and(|on| is_silent(on.runtime))
}

fn dependencies(desired: &DesiredDeployment) -> impl Iterator<Item = (&DesiredService, &Depends)> {
    desired.services.values().flat_map(move |service| dependencies_of(desired, service).map(move |one| (service, one)))
}

/// What a service waits for. A revision that runs in the place of the declared one waits for no job: what it needed was done
/// when it was declared, and how the job comes out that is declared now says nothing of it.
fn dependencies_of<'a>(
    desired: &'a DesiredDeployment,
    service: &'a DesiredService,
) -> impl Iterator<Item = &'a Depends> {
    let is_earlier = service.standing.rolled_back.is_some();
    let is_job = |name: &str| desired.services.get(name).is_some_and(|one| one.spec.rtype() == RType::Job);
    service.spec.depends.iter().filter(move |depends| !(is_earlier && is_job(&depends.service)))
}

fn key(service: &DesiredService, depends: &Depends) -> Dependency {
    Dependency { service: service.name.clone(), on: depends.service.clone() }
}

/// Since when it is waited for as it is declared now; a clock that was set back begins the wait anew.
fn begun(input: &Input<'_>, service: &DesiredService, depends: &Depends) -> Option<DateTime<Utc>> {
    let known = input.history.awaited.get(&key(service, depends))?;
    let is_same = known.depends == *depends && service.is_made_from(&known.revision);
    is_same.then(|| known.since.min(input.now))
}

/// What is missing for the condition to hold, now or while the dependency is rolled out; none where it holds.
fn lacking(
    input: &Input<'_>,
    desired: &DesiredDeployment,
    depends: &Depends,
    observed: &[&Instance],
) -> Option<String> {
    lacking_now(input, desired, depends, observed).or_else(|| {
        let dependency = desired.services.get(&depends.service)?;
        let (all, instances) = instances_of(input, dependency, observed);
        // Nothing is replaced while a runtime does not answer, or what takes its place may not be started.
        let is_stuck = all.len() > instances.len() || input.unreachable.contains_key(&dependency.runtime);
        let is_held = || {
            dependencies_of(desired, dependency).any(|one| {
                let why = lacking_now(input, desired, one, observed);
                why.is_some_and(|why| !Unmet::new(input, dependency, one, why).is_ignored(input.now))
            })
        };
        let soon = lacking_while_replaced(input, dependency, depends.condition(), &instances);
        soon.filter(|_| !is_stuck && !is_held())
    })
}

/// The instances of a service, and those of them that are known of: what an unreachable runtime runs is not known to.
fn instances_of<'o, 'a>(
    input: &Input<'_>,
    service: &DesiredService,
    observed: &'o [&'a Instance],
) -> (&'o [&'a Instance], Vec<&'a Instance>) {
    let start = observed.partition_point(|instance| instance.id.service < service.name);
    let end = observed.partition_point(|instance| instance.id.service <= service.name);
    let all = &observed[start..end];
    let known = all.iter().filter(|one| !input.unreachable.contains_key(&one.runtime)).copied().collect();
    (all, known)
}

fn lacking_now(
    input: &Input<'_>,
    desired: &DesiredDeployment,
    depends: &Depends,
    observed: &[&Instance],
) -> Option<String> {
    let Some(dependency) = desired.services.get(&depends.service) else {
        return Some("it is not declared".to_owned());
    };
    let (all, instances) = instances_of(input, dependency, observed);
    match dependency.spec.rtype() {
        RType::Service => lacking_of_service(input, dependency, depends.condition(), &instances),
        RType::Job => {
            // What is tried again has started all the same.
            let is_of_now = |one: &&&Instance| dependency.is_made_from(&one.id.revision);
            let has_started = instances.iter().filter(is_of_now).any(|one| one.phase.started_at().is_some());
            lacking_of_job(depends.condition(), outcome(input, dependency, all), has_started)
        }
        // Refused where it is declared: the end of one run says nothing of the next one.
        RType::Cron => Some("it runs by a schedule, so there is nothing to wait for".to_owned()),
    }
}

fn lacking_of_service(
    input: &Input<'_>,
    dependency: &DesiredService,
    condition: DependsCondition,
    instances: &[&Instance],
) -> Option<String> {
    if dependency.replicas == 0 {
        return Some("it is to have 0 replicas".to_owned());
    }
    let is_ready = |instance: &&&Instance| instance.phase.is_ready();
    match condition {
        DependsCondition::Started if has_started(input, dependency, instances) => None,
        DependsCondition::Started => Some("no instance of it has started".to_owned()),
        DependsCondition::Healthy if instances.iter().any(|one| is_ready(&one)) => None,
        DependsCondition::Healthy => Some("no instance of it is healthy".to_owned()),
        DependsCondition::Ready => {
            let mut slots: Vec<u32> = instances.iter().filter(is_ready).map(|one| one.id.slot).collect();
            slots.dedup();
            let (ready, wanted) = (count(slots.iter()), dependency.replicas);
            (ready < wanted).then(|| format!("{ready} of {wanted} replicas are ready"))
        }
    }
}

/// A job is there to end: one that has completed is as good as any condition, and one that runs has only started.
fn lacking_of_job(condition: DependsCondition, outcome: Outcome, has_started: bool) -> Option<String> {
    match (condition, outcome) {
        (_, Outcome::Completed) | (DependsCondition::Started, Outcome::Failed(RunEnd::Failed { .. })) => None,
        (DependsCondition::Started, _) if has_started => None,
        (_, Outcome::Failed(end)) => Some(format!("the job has failed: {end}")),
        (DependsCondition::Started, Outcome::Unfinished) => Some("no instance of it has started".to_owned()),
        (DependsCondition::Healthy | DependsCondition::Ready, Outcome::Unfinished) => {
            Some("the job has not completed yet".to_owned())
        }
    }
}

/// Whether an instance of it has run. One that has ended counts unless another is due at once: after a restart of the whole
/// engine everything has ended, and what comes first is to come first again.
fn has_started(input: &Input<'_>, dependency: &DesiredService, instances: &[&Instance]) -> bool {
    let runs = |instance: &&Instance| matches!(instance.phase, Phase::Running { .. } | Phase::Paused { .. });
    if instances.iter().any(runs) {
        return true;
    }
    let coming = |instance: &&Instance| matches!(instance.phase, Phase::Pending | Phase::Created | Phase::Stopping);
    if instances.iter().any(coming) {
        return false;
    }
    let newest = instances.iter().max_by_key(|instance| instance.recency());
    let Some((dead, exit)) = newest.and_then(|newest| exit_of(newest).map(|exit| (newest, exit))) else { return false };
    let is_due = match after_exit(dead, exit, dependency) {
        AfterExit::Replace => true,
        AfterExit::Restart { pause, .. } => due(exit.finished_at, pause, input.now) <= input.now,
        AfterExit::AtRest(_) | AfterExit::Failed(_) | AfterExit::ShutDown => false,
    };
    exit.started_at.is_some() && !is_due
}

/// What keeps a service from being launched or started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HeldBack {
    /// Nothing does.
    No,
    /// Something that it depends on is not as it has to be yet.
    Waits,
    /// Something was not within the time for which it is waited for, in a sentence; it is waited for all the same.
    TimedOut(String),
}

/// Whether nothing of the service may be launched or started because of what it depends on.
pub(super) fn held_back(input: &Input<'_>, service: &DesiredService) -> HeldBack {
    let Ok(desired) = input.desired else { return HeldBack::No };
    if service.spec.depends.is_empty() {
        return HeldBack::No;
    }
    let mut observed: Vec<&Instance> =
        input.observed.iter().filter(|one| one.id.deployment == input.deployment).collect();
    observed.sort_by(|a, b| a.id.cmp(&b.id));
    let missing = dependencies_of(desired, service).filter_map(|depends| {
        let why = lacking(input, desired, depends, &observed)?;
        Some(Unmet::new(input, service, depends, why)).filter(|unmet| !unmet.is_ignored(input.now))
    });
    let mut held = HeldBack::No;
    for unmet in missing {
        match unmet.timed_out(input.now) {
            Some(how) => return HeldBack::TimedOut(how),
            None => held = HeldBack::Waits,
        }
    }
    held
}

impl Unmet {
    fn new(input: &Input<'_>, service: &DesiredService, depends: &Depends, why: String) -> Self {
        let since = begun(input, service, depends).unwrap_or(input.now);
        Self {
            until: after(since, depends.timeout()),
            condition: depends.condition(),
            on_timeout: depends.on_timeout.unwrap_or_default(),
            dependency: key(service, depends),
            why,
            since,
            asleep: false,
        }
    }

    /// What was waited for in vain, where it was and that is a failure.
    fn timed_out(&self, now: DateTime<Utc>) -> Option<String> {
        let Dependency { service, on } = &self.dependency;
        let waited = HumanDuration(elapsed(self.since, self.until));
        (self.until <= now && self.on_timeout == OnFailure::Fail).then(|| {
            format!("{service} depends on {on}, which was not {} within {waited}: {}", self.condition, self.why)
        })
    }

    /// Whether it is waited for no longer, and what depends on it goes on.
    fn is_ignored(&self, now: DateTime<Utc>) -> bool {
        self.until <= now && self.on_timeout != OnFailure::Fail
    }

    /// What is to be said of it; nothing of what is left asleep, as another one is what is missing.
    fn wait(&self, now: DateTime<Utc>) -> Option<Wait> {
        let (dependency, condition, why) = (self.dependency.clone(), self.condition, self.why.clone());
        let waited = HumanDuration(elapsed(self.since, self.until));
        match self.on_timeout {
            _ if self.asleep => None,
            _ if self.until > now => Some(Wait::Dependency { dependency, condition, why, until: self.until }),
            OnFailure::Fail => Some(Wait::DependencyTimeout { dependency, condition, why, waited }),
            OnFailure::Warn => Some(Wait::WithoutDependency { dependency, condition, why, waited }),
            OnFailure::Continue => None,
        }
    }
}

impl Draft<'_> {
    /// Whether nothing of the service may be launched or started because of what it depends on.
    pub(super) fn is_held_back(&self, service: &str) -> bool {
        let now = self.input.now;
        self.unmet.get(service).is_some_and(|unmet| unmet.iter().any(|one| !one.is_ignored(now)))
    }

    /// Says what the service waits for before anything of it is launched or started.
    pub(super) fn say_what_holds_back(&mut self, service: &str) {
        let now = self.input.now;
        let unmet = self.unmet.get(service).into_iter().flatten();
        let waits: Vec<Wait> = unmet.filter(|one| !one.is_ignored(now)).filter_map(|one| one.wait(now)).collect();
        for wait in waits {
            if let Some(until) = wait.until() {
                self.look_at(until);
            }
            self.wait_once(wait);
        }
    }

    /// Says which dependencies the service goes on without, where that is to be told.
    pub(super) fn say_what_is_missing(&mut self, service: &str) {
        let now = self.input.now;
        let unmet = self.unmet.get(service).into_iter().flatten();
        let waits: Vec<Wait> = unmet.filter(|one| one.is_ignored(now)).filter_map(|one| one.wait(now)).collect();
        waits.into_iter().for_each(|wait| self.wait(wait));
    }
}
