//! Which revision of a service is to run.

use std::sync::Arc;

use super::history::{KnownRevision, Memory, Ordered, Orders, RolloutHistory};
use crate::spec::{Scale, ServiceSpec};
use crate::state::{DesiredDeployment, DesiredService, InstanceId, OrderFailure, RolledBack, RolloutCourse, Standing};

use super::Outcome;

/// What is to run of a deployment: what is declared, but for services that were rolled back, restarted, paused or scaled
/// by hand. A second application changes nothing but what the memory says anew.
pub fn effective(desired: &DesiredDeployment, memory: &Memory) -> DesiredDeployment {
    each(desired, memory, |history, service| history.planned(service))
}

/// The same as users are shown it: what is declared, with the replicas and the restarts that were ordered, and how its
/// rollouts stand.
pub fn shown(desired: &DesiredDeployment, memory: &Memory) -> DesiredDeployment {
    each(desired, memory, |history, service| {
        let wanted = history.wanted(service);
        let standing = history.standing(service, &wanted);
        match wanted.standing.rolled_back {
            Some(_) => DesiredService { standing, ..service.clone() },
            None => DesiredService { standing, ..wanted },
        }
    })
}

/// The spec of the revision that an instance was made from: as it is declared now where it is what is declared, or what that
/// was rolled back to, and else as it was declared last. None where that is not known.
pub fn spec_of(
    id: &InstanceId,
    declared: Option<&DesiredDeployment>,
    memory: Option<&Memory>,
) -> Option<Arc<ServiceSpec>> {
    let declared = declared.and_then(|declared| declared.services.get(&id.service));
    let none = RolloutHistory::default();
    let history = memory.and_then(|memory| memory.rollouts.get(&id.service)).unwrap_or(&none);
    let now = declared.and_then(|declared| {
        let declared = history.with_image(declared);
        let wanted = history.wanted(&declared);
        [declared, wanted].into_iter().find(|one| one.is_made_from(&id.revision))
    });
    let known = || history.known(&id.revision).map(|known| known.spec.clone());
    now.map(|one| one.spec).or_else(known)
}

fn each(
    desired: &DesiredDeployment,
    memory: &Memory,
    with: impl Fn(&RolloutHistory, &DesiredService) -> DesiredService,
) -> DesiredDeployment {
    let service = |service: &DesiredService| {
        let scaled = scaled(service, &memory.orders);
        match memory.rollouts.get(&service.name) {
            Some(history) => with(history, &history.with_image(&scaled)),
            None => scaled,
        }
    };
    let services = desired.services.iter().map(|(name, one)| (name.clone(), service(one))).collect();
    DesiredDeployment { services, ..desired.clone() }
}

/// The service with the replicas that were ordered, where its scale leaves that to orders.
pub(super) fn scaled(service: &DesiredService, orders: &Orders) -> DesiredService {
    let ordered = orders.replicas.get(&service.name).filter(|_| matches!(service.spec.scale, Some(Scale::Manual)));
    DesiredService { replicas: ordered.copied().unwrap_or(service.replicas), ..service.clone() }
}

impl RolloutHistory {
    /// The service with the revision that its rollout leads to.
    pub fn wanted(&self, declared: &DesiredService) -> DesiredService {
        let pinned = self.pin.as_ref().filter(|pin| pin.declared.is(declared));
        let mut wanted = match pinned.and_then(|pin| Some((pin, self.known(&pin.to)?))) {
            None => declared.clone(),
            Some((pin, target)) => {
                let from = match (&pin.failure, self.number(&declared.revision)) {
                    (None, number @ 1..) => number,
                    _ => self.number(&pin.from),
                };
                let rolled_back = RolledBack {
                    from,
                    to: target.number,
                    declared: declared.revision.clone(),
                    runs: [&target.revision].into_iter().chain(&target.equivalent).cloned().collect(),
                    failure: pin.failure.clone(),
                    from_undo: pin.from_undo && pin.failure.is_some(),
                };
                let standing = Standing { rolled_back: Some(rolled_back), ..Standing::default() };
                DesiredService { standing, ..made_from(target, declared) }
            }
        };
        if let Some(restart) = self.restart.as_ref().filter(|restart| wanted.is_made_from(&restart.of)) {
            wanted.revision = restart.of.restarted(restart.count);
            wanted.equivalent = None;
            wanted.standing.restarted = true;
            let known = self.known(&wanted.revision).map(|known| known.number);
            if let Some(rolled_back) = &mut wanted.standing.rolled_back {
                rolled_back.to = known.unwrap_or(rolled_back.to);
                rolled_back.runs = vec![wanted.revision.clone()];
            }
        }
        (wanted.standing.tried_anew, wanted.standing.checks_changed) = (self.tried_anew, self.checks_changed);
        wanted
    }

    /// The service as it is planned for: while its rollout is paused, what is missing is made from the last good revision.
    fn planned(&self, declared: &DesiredService) -> DesiredService {
        let wanted = self.wanted(declared);
        let standing = self.standing(declared, &wanted);
        let is_way_back = || wanted.standing.rolled_back.as_ref().is_some_and(|back| back.failure.is_some());
        let is_trusted = || is_way_back() || self.is_complete(&wanted);
        let good = self.pause.as_ref().and_then(|_| self.last_good(&wanted.revision)).filter(|_| !is_trusted());
        match good {
            Some(good) => DesiredService { standing, ..made_from(good, declared) },
            None => DesiredService { standing, ..wanted },
        }
    }

    /// Whether the rollout to what is wanted was complete.
    fn is_complete(&self, wanted: &DesiredService) -> bool {
        self.rollout.as_ref().is_some_and(|rollout| {
            wanted.is_made_from(&rollout.revision) && matches!(rollout.outcome, Outcome::Complete { .. })
        })
    }

    fn standing(&self, declared: &DesiredService, wanted: &DesiredService) -> Standing {
        let rollout = self.rollout.as_ref();
        let rollout =
            rollout.filter(|rollout| wanted.is_made_from(&rollout.revision) && rollout.declaration.is(declared));
        let failed = rollout.and_then(|rollout| match &rollout.outcome {
            Outcome::Failed { failed, .. } => failed.clone(),
            Outcome::Going | Outcome::Complete { .. } => None,
        });
        Standing {
            failed: failed.filter(|_| self.pause.is_none()),
            failed_order: self.failed_order.as_ref().filter(|failed| failed.declared.is(declared)).map(|failed| {
                let failure = failed.failure.clone();
                match &failed.order {
                    Ordered::Restart => OrderFailure::Restart { failure },
                    Ordered::Undo(to) => OrderFailure::Undo { to: self.number(to), failure },
                }
            }),
            paused: self.pause.clone(),
            course: match &self.pause {
                Some(_) if self.is_complete(wanted) => RolloutCourse::Over,
                Some(_) => RolloutCourse::Held,
                None if rollout.is_some_and(|rollout| rollout.outcome == Outcome::Going) => RolloutCourse::UnderWay,
                None => RolloutCourse::Over,
            },
            ..wanted.standing.clone()
        }
    }
}

/// The service as an earlier revision has it. What the controller applies to running instances as they are follows the
/// declaration; what belongs to the instance, its health checks included, is as it was.
fn made_from(known: &KnownRevision, declared: &DesiredService) -> DesiredService {
    let ServiceSpec { scale, rollout, depends, errors, restart_policy, lifecycle, .. } = declared.spec.as_ref().clone();
    let spec = known.spec.as_ref().clone();
    DesiredService {
        spec: ServiceSpec { scale, rollout, depends, errors, restart_policy, lifecycle, ..spec }.into(),
        revision: known.revision.clone(),
        equivalent: known.equivalent.clone(),
        runtime: known.runtime,
        ..declared.clone()
    }
}
