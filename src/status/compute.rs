//! Computes the views of one deployment from what is desired, observed and planned.

use std::collections::{BTreeMap, BTreeSet};

use super::waits::{Severity, is_about, is_rest, severity};
use super::{AwaitedView, DeploymentState, DeploymentView, ExitView, Facts, InstanceView, ServiceView};
use super::{JobView, PoolFacts, PoolView, UndoneView, conditions, jobs, lives, message};
use crate::plan::Wait;
use crate::state::{DesiredService, EndedBy, Exit, Fate, Instance, Pause, Phase, RolloutCourse};

/// The views of one deployment.
#[derive(Debug, Clone, PartialEq)]
pub struct DeploymentStatus {
    /// Itself.
    pub view: DeploymentView,
    /// Its services, by name.
    pub services: Vec<ServiceView>,
    /// Its instances, by service, slot and age.
    pub instances: Vec<InstanceView>,
}

/// Computes the views.
pub fn views(facts: &Facts<'_>) -> DeploymentStatus {
    let shown = shown(facts);
    let services = match facts.desired {
        Ok(desired) => desired.services.values().map(|service| service_view(facts, service, &shown)).collect(),
        Err(_) => Vec::new(),
    };
    let state = state(facts);
    let message = message::of_deployment(facts, state);
    let view = DeploymentView {
        deployment: facts.deployment.to_owned(),
        source: facts.desired.ok().map(|desired| desired.source.to_string()),
        state,
        conditions: conditions::of_deployment(facts, state, &message),
        message,
    };
    let instances = shown.iter().map(|instance| instance_view(facts, instance)).collect();
    DeploymentStatus { view, services, instances }
}

/// The instances that are shown: everything that lives, and the newest dead one of a slot in which nothing does, or nothing
/// but what it was to replace; of a slot that stays down on purpose, the one that was put down.
fn shown<'a>(facts: &Facts<'a>) -> Vec<&'a Instance> {
    let observed = facts.observed;
    let dead = |instance: &Instance| matches!(instance.phase, Phase::Exited(_));
    let slot = |instance: &Instance| (instance.id.service.clone(), instance.id.slot);
    let services = facts.desired.map(|desired| &desired.services);
    let is_current = |instance: &Instance| {
        let service = services.ok().and_then(|services| services.get(&instance.id.service));
        service.is_some_and(|service| service.is_made_from(&instance.id.revision))
    };
    let alive: BTreeSet<(String, u32)> = observed.iter().filter(|one| !dead(one)).map(slot).collect();
    let in_place: BTreeSet<(String, u32)> =
        observed.iter().filter(|one| !dead(one) && is_current(one)).map(slot).collect();
    let rests = |one: &Instance| facts.plan.waits.iter().any(|wait| is_rest(wait) && wait.instance() == Some(&one.id));
    let fails = |one: &Instance| is_current(one) && !in_place.contains(&slot(one));
    let mut newest: BTreeMap<(String, u32), &Instance> = BTreeMap::new();
    for instance in observed.iter().filter(|one| dead(one) && (!alive.contains(&slot(one)) || fails(one))) {
        let rank = |one: &Instance| (rests(one), one.recency());
        let known = newest.entry(slot(instance)).or_insert(instance);
        if rank(known) < rank(instance) {
            *known = instance;
        }
    }
    let mut shown: Vec<&Instance> = observed.iter().filter(|one| !dead(one)).chain(newest.into_values()).collect();
    shown.sort_by(|one, other| {
        let key = |instance: &&Instance| (instance.id.service.clone(), instance.id.slot, instance.created_at);
        key(one).cmp(&key(other)).then_with(|| one.id.cmp(&other.id))
    });
    shown
}

fn service_view(facts: &Facts<'_>, service: &DesiredService, shown: &[&Instance]) -> ServiceView {
    let mine: Vec<&Instance> = shown.iter().filter(|instance| instance.id.service == service.name).copied().collect();
    let count = |test: &dyn Fn(&Instance) -> bool| {
        u32::try_from(mine.iter().filter(|instance| test(instance)).count()).unwrap_or(u32::MAX)
    };
    let runs = |instance: &Instance| matches!(instance.phase, Phase::Running { .. });
    let current =
        |instance: &Instance| service.is_made_from(&instance.id.revision) && instance.runtime == service.runtime;
    let mut view = ServiceView {
        deployment: facts.deployment.to_owned(),
        service: service.name.clone(),
        source: Some(service.source.to_string()),
        runtime: service.runtime,
        image: service.spec.image.name.to_string(),
        state: lives::of_service(facts, &service.name, service.replicas, &mine),
        desired: service.replicas,
        running: count(&runs),
        ready: count(&|instance| instance.phase.is_ready()),
        updated: count(&|instance| runs(instance) && current(instance)),
        revision: service.revision.to_string(),
        equivalent: service.equivalent.as_ref().map(ToString::to_string),
        undone: undone(facts, service, &mine),
        rolling: service.standing.course == RolloutCourse::UnderWay,
        awaits: awaits(facts, service),
        failure: facts.plan.waits.iter().filter(|wait| is_about(wait, service)).find_map(Wait::failure),
        kept_down: message::kept_down(facts, service),
        message: String::new(),
        job: facts.jobs.get(&service.name).map(|state| JobView::of(facts, service, state, is_suspended(facts))),
        pool: service
            .spec
            .pool
            .as_ref()
            .map(|pool| PoolView::of(pool, facts.pools.get(&service.name).unwrap_or(&PoolFacts::default()))),
        conditions: Vec::new(),
    };
    if let Some(pool) = &view.pool {
        (view.desired, view.ready) = (pool.wanted(), pool.warm);
    }
    if view.job.is_some() {
        // There are as many as there have to be.
        view.desired = count(&|instance| !matches!(instance.phase, Phase::Exited(_)));
    }
    view.conditions = conditions::of_service(&view, service, &mine, facts);
    view.message = message::of_service(facts, service, &view.conditions, view.pool.as_ref());
    view
}

/// How far the service is on its way back to an earlier revision, where somebody asked for that.
fn undone(facts: &Facts<'_>, service: &DesiredService, mine: &[&Instance]) -> Option<UndoneView> {
    let back = service.standing.rolled_back.as_ref().filter(|back| back.failure.is_none())?;
    let count = |test: &dyn Fn(&Instance) -> bool| {
        u32::try_from(mine.iter().filter(|instance| test(instance)).count()).unwrap_or(u32::MAX)
    };
    let is_of = |instance: &Instance| back.runs.contains(&instance.id.revision);
    let runs = |instance: &Instance| matches!(instance.phase, Phase::Running { .. });
    let updated = count(&|instance| is_of(instance) && runs(instance));
    let ready = count(&|instance| is_of(instance) && instance.phase.is_ready());
    let old = count(&|instance| !is_of(instance) && !matches!(instance.phase, Phase::Exited(_)));
    let mut waits = facts.plan.waits.iter().filter(|wait| is_about(wait, service));
    let is_young = waits.any(|wait| matches!(wait, Wait::NotReady { until: Some(_), .. }));
    Some(UndoneView {
        to: back.to,
        updated,
        ready,
        old,
        complete: !is_young && ready == service.replicas && updated == service.replicas && old == 0,
        failed: service.standing.failed.as_ref().map(|failed| failed.failure.message.clone()),
    })
}

/// What the service waits for, or went on without.
fn awaits(facts: &Facts<'_>, service: &DesiredService) -> Vec<AwaitedView> {
    let of = |wait: &Wait| {
        let dependency = wait.dependency().filter(|dependency| dependency.service == service.name)?;
        let given_up = !matches!(wait, Wait::Dependency { .. });
        Some(AwaitedView { service: dependency.on.clone(), until: wait.until(), given_up })
    };
    facts.plan.waits.iter().filter_map(of).collect()
}

fn instance_view(facts: &Facts<'_>, instance: &Instance) -> InstanceView {
    let about = |wait: &&Wait| {
        // That something is being worked on goes without saying, and that another one rests explains no end of this one.
        !matches!(wait, Wait::InFlight { .. })
            && (!is_rest(wait) || wait.instance() == Some(&instance.id))
            && wait.instance().is_some_and(|id| id.service == instance.id.service && id.slot == instance.id.slot)
    };
    let wait = || facts.plan.waits.iter().find(about).map(ToString::to_string);
    let exit = match &instance.phase {
        Phase::Exited(exit) => Some(exit_view(exit)),
        _ => None,
    };
    InstanceView {
        deployment: instance.id.deployment.clone(),
        service: instance.id.service.clone(),
        slot: instance.id.slot,
        attempt: instance.id.attempt,
        run: instance.id.run,
        name: instance.id.name(),
        runtime: instance.runtime,
        runtime_id: instance.runtime_id.clone(),
        pid: instance.pid,
        phase: instance.phase.name().to_owned(),
        state: lives::of_instance(facts, instance),
        ready: instance.phase.is_ready(),
        health: instance.health.clone(),
        revision: instance.id.revision.to_string(),
        restarts: instance.restarts,
        created_at: instance.created_at,
        started_at: instance.phase.started_at(),
        exit,
        ports: instance.ports.clone(),
        message: facts.progress.get(&instance.id).cloned().or_else(wait).unwrap_or_default(),
        conditions: instance.conditions.clone(),
    }
}

fn exit_view(exit: &Exit) -> ExitView {
    ExitView {
        code: exit.code,
        signal: exit.signal.clone(),
        oom_killed: exit.oom_killed,
        reason: exit.reason,
        stopped: match exit.ended_by {
            EndedBy::Request(cause) => Some(cause),
            EndedBy::Itself => None,
        },
        message: exit.failed_check.clone().or_else(|| exit.runtime_error.clone()),
        finished_at: exit.finished_at,
    }
}

fn is_suspended(facts: &Facts<'_>) -> bool {
    facts.plan.waits.iter().any(|wait| matches!(wait, Wait::Suspended { .. }))
}

/// How the deployment stands; the worst that is true of any part of it.
fn state(facts: &Facts<'_>) -> DeploymentState {
    match facts.desired {
        Err(Fate::Removed | Fate::Orphaned) => return DeploymentState::Removing,
        Err(Fate::Kept) => return DeploymentState::Kept,
        Ok(_) => {}
    }
    if is_suspended(facts) {
        return DeploymentState::Suspended;
    }
    let waits = facts.plan.waits.iter().filter(|wait| !jobs::is_cron_step(facts, wait));
    let worst = waits.map(severity).max().unwrap_or(Severity::Fine);
    match worst {
        Severity::Final => DeploymentState::Failed,
        Severity::Decided => decided(facts),
        Severity::Unchecked if !facts.acting && !facts.plan.is_empty() => DeploymentState::Degraded,
        Severity::Unchecked | Severity::Blind => DeploymentState::Unknown,
        Severity::Trying | Severity::Failing => DeploymentState::Degraded,
        Severity::Moving => DeploymentState::Progressing,
        Severity::Fine if !facts.acting && !facts.plan.is_empty() => DeploymentState::Degraded,
        Severity::Fine if jobs::is_busy(facts) => DeploymentState::Progressing,
        Severity::Fine if jobs::are_complete(facts) => DeploymentState::Complete,
        Severity::Fine => DeploymentState::Running,
    }
}

/// How a deployment stands of which something was decided: what somebody asked for is no failure, where nothing else is one.
fn decided(facts: &Facts<'_>) -> DeploymentState {
    let mut state = DeploymentState::Undone;
    for wait in &facts.plan.waits {
        match wait {
            Wait::RolledBack { rolled_back, failed: None, .. } if rolled_back.failure.is_none() => {}
            Wait::RolloutPaused { pause: Pause::User, .. } => state = DeploymentState::Paused,
            wait if severity(wait) >= Severity::Final => return DeploymentState::Failed,
            _ => {}
        }
    }
    state
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use chrono::{DateTime, TimeDelta};

    use super::*;
    use crate::controller::desired;
    use crate::plan::Plan;
    use crate::spec::{Revision, RuntimeKind, merge, parse};
    use crate::state::{DesiredDeployment, InstanceId};

    /// What is made of instances of `web/0` of these revisions, one for each minute, and of what is waited for of them.
    fn with_facts<T>(
        declared: &DesiredDeployment,
        phases: &[(&Revision, Phase)],
        wait: impl FnOnce(&[Instance]) -> Vec<Wait>,
        make: impl FnOnce(&Facts<'_>) -> T,
    ) -> T {
        let instance = |(attempt, (revision, phase)): (u32, &(&Revision, Phase))| {
            let id = InstanceId {
                deployment: "demo".to_owned(),
                service: "web".to_owned(),
                slot: 0,
                revision: (*revision).clone(),
                attempt,
                run: None,
            };
            let created_at = DateTime::UNIX_EPOCH + TimeDelta::minutes(attempt.into());
            Instance::new(id, RuntimeKind::Sim, phase.clone(), created_at)
        };
        let observed: Vec<Instance> = (0..).zip(phases).map(instance).collect();
        let plan = Plan { waits: wait(&observed), ..Plan::default() };
        make(&Facts {
            deployment: "demo",
            desired: Ok(declared),
            observed: &observed,
            unsupported: &BTreeMap::new(),
            plan: &plan,
            jobs: &BTreeMap::new(),
            pools: &BTreeMap::new(),
            acting: true,
            working: false,
            stale: None,
            kept: None,
            unwatched: None,
            held: None,
            progress: &BTreeMap::new(),
            removing: false,
        })
    }

    fn declared() -> (DesiredDeployment, Revision, Revision) {
        let text = "version: v1\ndeployment: demo\nservices: {web: {image: {name: host}}}\n";
        let declared =
            desired(&merge(&[(PathBuf::from("/d.yaml"), parse(text))]).deployments["demo"], RuntimeKind::Sim);
        let new = declared.services["web"].revision.clone();
        (declared, new, "v1-aaaaaaaaaaaaaaaa".parse().unwrap())
    }

    fn runs() -> Phase {
        Phase::Running { since: DateTime::UNIX_EPOCH, ready: true }
    }

    fn dead() -> Phase {
        Phase::Exited(Exit::from_code(1, None, DateTime::UNIX_EPOCH))
    }

    #[test]
    fn of_a_slot_what_lives_is_shown_and_the_last_crash_of_what_is_to_take_its_place() {
        let (declared, new, old) = declared();
        let shown_of = |phases: &[(&Revision, Phase)]| -> Vec<u32> {
            let attempts = |facts: &Facts<'_>| shown(facts).iter().map(|one| one.id.attempt).collect();
            with_facts(&declared, phases, |_| Vec::new(), attempts)
        };
        assert_eq!(shown_of(&[(&new, dead()), (&new, runs())]), [1]);
        assert_eq!(shown_of(&[(&new, dead()), (&new, dead())]), [1]);
        assert_eq!(shown_of(&[(&old, runs()), (&new, dead()), (&new, dead())]), [0, 2]);
        assert_eq!(shown_of(&[(&old, dead()), (&old, runs()), (&new, runs())]), [1, 2]);
        assert_eq!(shown_of(&[(&old, dead()), (&new, dead())]), [1]);
    }

    #[test]
    fn of_a_slot_that_was_stopped_what_was_stopped_is_shown_and_no_failed_attempt() {
        let (declared, new, old) = declared();
        let stopped = |observed: &[Instance]| vec![Wait::StopAsked { id: observed[0].id.clone() }];
        let states = with_facts(&declared, &[(&old, dead()), (&new, dead())], stopped, |facts| {
            let views = views(facts);
            assert_eq!(views.view.message, "web: stopped, `keel start demo/web` starts it");
            assert_eq!(views.services[0].kept_down.as_deref(), Some("stopped, `keel start demo/web` starts it"));
            views.instances.iter().map(|one| (one.attempt, one.state)).collect::<Vec<_>>()
        });
        assert_eq!(states, [(0, super::super::LifeState::Stopped)]);
    }

    #[test]
    fn that_another_instance_of_its_slot_rests_is_not_said_of_one_that_ended() {
        let (declared, new, old) = declared();
        let frozen = Phase::Paused { since: DateTime::UNIX_EPOCH };
        let idle = |observed: &[Instance]| {
            vec![Wait::IdleSuspended { id: observed[0].id.clone(), since: DateTime::UNIX_EPOCH }]
        };
        let messages = with_facts(&declared, &[(&old, frozen), (&new, dead())], idle, |facts| {
            views(facts).instances.into_iter().map(|one| one.message).collect::<Vec<_>>()
        });
        assert!(messages[0].starts_with("keep demo/web/0 ("), "{messages:?}");
        assert_eq!(messages[1], "");
    }

    #[test]
    fn a_rollout_that_moves_is_on_its_way_though_some_of_it_rests() {
        let (mut declared, new, old) = declared();
        let service = declared.services.get_mut("web").unwrap();
        service.replicas = 2;
        let progressing = |declared: &DesiredDeployment, phases: &[(&Revision, Phase)], rests: usize| {
            let idle = |observed: &[Instance]| {
                let since = DateTime::UNIX_EPOCH;
                observed[..rests].iter().map(|one| Wait::IdleSuspended { id: one.id.clone(), since }).collect()
            };
            with_facts(declared, phases, idle, |facts| {
                let services = views(facts).services;
                let condition = services[0].conditions.iter().find(|one| one.kind == "Progressing").unwrap();
                condition.reason.clone()
            })
        };
        let frozen = || Phase::Paused { since: DateTime::UNIX_EPOCH };
        for (course, behind) in [(RolloutCourse::UnderWay, "RollingOut"), (RolloutCourse::Over, "Stopped")] {
            declared.services.get_mut("web").unwrap().standing.course = course;
            assert_eq!(progressing(&declared, &[(&new, frozen()), (&old, runs())], 1), behind, "an old one is left");
            assert_eq!(progressing(&declared, &[(&new, frozen())], 1), behind, "one is missing");
            assert_eq!(progressing(&declared, &[(&new, frozen()), (&new, frozen())], 2), "Stopped", "all rest");
        }
    }
}
