//! Claims: a member is taken in memory at once, written down, looked at, and handed out; where none is warm, the claim waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::request::{AcquireRequest, Acquired, SessionView};
use super::{Confirmation, Held, SessionMessage, new_secrets, written};
use crate::controller::EngineError;
use crate::controller::core::State;
use crate::controller::message::Message;
use crate::runtime::{Control, EnforcementState, ErrorKind, Runtime, RuntimeError};
use crate::state::{Instance, InstanceRef, Phase, ServiceName, Session, SessionEnd, SessionId, SessionState, Token};
use crate::store::SessionNote;

/// Claims that may wait for members of one pool: more than any pool has places by default, so that those beyond are better
/// told at once.
pub const WAITING_CLAIMS: usize = 1000;

/// Longest time for which a member is looked at before it is handed out: an engine that takes longer hangs.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(5);

/// Pause before a pool is planned again after a claim, so that a burst of claims is followed by one plan.
const REFILL_PAUSE: Duration = Duration::from_millis(5);

/// A claim on its way.
#[derive(Debug)]
pub struct Claim {
    /// Its pool.
    pub pool: ServiceName,
    /// What is asked for.
    pub request: AcquireRequest,
    /// When it came, both ways.
    pub asked: (DateTime<Utc>, Instant),
    /// Answered when a member is handed out, or none can be.
    pub reply: oneshot::Sender<Result<Acquired, EngineError>>,
    /// Whether it had to wait.
    pub has_waited: bool,
    /// Whether the session that it asks for again was found to give what is required.
    pub(super) is_checked: bool,
    /// The secret of its session, until that is handed out.
    pub(super) token: Option<Token>,
}

impl Claim {
    /// A claim that comes now.
    pub const fn new(
        pool: ServiceName,
        request: AcquireRequest,
        asked: (DateTime<Utc>, Instant),
        reply: oneshot::Sender<Result<Acquired, EngineError>>,
    ) -> Self {
        Self { pool, request, asked, reply, has_waited: false, is_checked: false, token: None }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.asked.1 + self.request.patience()
    }

    pub(super) fn refuse(self, why: EngineError) {
        // A caller that has gone needs no answer.
        let _ = self.reply.send(Err(why));
    }
}

impl State {
    /// Takes a claim in.
    pub(super) fn acquire(&mut self, claim: Box<Claim>) {
        let mut claim = *claim;
        match self.held_already(&claim.request, &claim.pool) {
            Err(why) => return claim.refuse(why),
            Ok(Some(held)) => {
                return match self.is_as_asked(&held, &claim.request) {
                    Err(why) => claim.refuse(why),
                    Ok(()) if !claim.is_checked && !claim.request.require.is_empty() => self.check_again(&held, claim),
                    Ok(()) => self.give_again(&held, claim),
                };
            }
            Ok(None) => {}
        }
        if let Err(why) = self.may_claim(&claim) {
            return claim.refuse(why);
        }
        if let Some(why) = self.no_place(&claim.pool) {
            self.note_unmet(&claim);
            return claim.refuse(why);
        }
        // Those that came before go first.
        let waits = |others: &VecDeque<Claim>| others.iter().any(|other| !other.request.fresh);
        let is_first = !self.sessions.waiting.get(&claim.pool).is_some_and(waits);
        let member = if is_first || claim.request.fresh { self.pick(&claim) } else { None };
        match member {
            Some(member) => self.begin_claim(claim, &member),
            None => {
                if self.is_suspended(&claim.pool.deployment) {
                    let why = none_while_suspended(&claim.pool);
                    return claim.refuse(why);
                }
                claim.has_waited = true;
                self.queue.add(&claim.pool.deployment, Instant::now());
                self.sessions.waiting.entry(claim.pool.clone()).or_default().push_back(claim);
                self.sessions.touch();
            }
        }
    }

    /// Counts a claim that got no member, unless that is what somebody asked for who suspended the deployment.
    fn note_unmet(&mut self, claim: &Claim) {
        if !self.is_suspended(&claim.pool.deployment) {
            self.sessions.note_unmet(claim);
            // What the pool shows of its claims is worked out with its plan.
            self.queue.add(&claim.pool.deployment, Instant::now());
        }
    }

    /// Whether a claim can be met at all.
    fn may_claim(&self, claim: &Claim) -> Result<(), EngineError> {
        let pool = &claim.pool;
        if self.pool(pool).is_none() {
            let deployment = self.declared.desired.deployments.get(&pool.deployment);
            let is_service = deployment.is_some_and(|one| one.services.contains_key(&pool.service));
            return Err(match is_service {
                true => EngineError::Invalid(format!("{pool} is no pool; its spec has no `pool`")),
                false => EngineError::NotFound(format!("there is no pool {pool}; see keel get pools")),
            });
        }
        if !self.covers(&pool.deployment) {
            return Err(EngineError::Conflict(format!("{pool} is not worked on by this controller")));
        }
        self.may_mount(claim)
    }

    /// Why a claim that could be met gets no member of the pool, and need not wait for one either.
    fn no_place(&self, pool: &ServiceName) -> Option<EngineError> {
        if let Some(why) = self.all_claimed(pool, self.pool(pool)?.max_total()) {
            return Some(why);
        }
        let waiting = self.sessions.waiting.get(pool).map_or(0, VecDeque::len);
        (waiting >= WAITING_CLAIMS)
            .then(|| EngineError::Conflict(format!("{waiting} claims wait for members of {pool} already")))
    }

    /// The refusal of a claim where sessions have every place of the pool.
    fn all_claimed(&self, pool: &ServiceName, max_total: u32) -> Option<EngineError> {
        let claimed = self.sessions.open_in(pool).filter(|held| held.session.is_live()).count();
        (claimed >= max_total as usize).then(|| {
            EngineError::Conflict(format!(
                "all {max_total} places of {pool} are claimed ({claimed} sessions, pool.max_total is {max_total}); release \
                 one, or raise pool.max_total"
            ))
        })
    }

    /// Whether sessions that were handed out have every place of the pool.
    fn all_handed_out(&self, pool: &ServiceName, max_total: u32) -> bool {
        let is_theirs = |held: &&Held| held.session.is_live() && held.claim.is_none();
        self.sessions.open_in(pool).filter(is_theirs).count() >= max_total as usize
    }

    /// Takes the longest-warm member that will do.
    fn pick(&mut self, claim: &Claim) -> Option<InstanceRef> {
        let now = self.now().0;
        let ttl = chrono::TimeDelta::from_std(self.pool(&claim.pool)?.warm_ttl()).unwrap_or(chrono::TimeDelta::MAX);
        let born_after = claim.request.fresh.then_some(claim.asked.0);
        let warm = self.sessions.warm.get(&claim.pool)?;
        let place = warm.iter().position(|(member, created_at)| {
            let runs = || {
                let known = self.cache.get(member.runtime, &member.runtime_id);
                known.is_some_and(|instance| matches!(instance.phase, Phase::Running { .. }))
                    && self.checks.fails(&claim.pool.deployment, member).is_none()
            };
            now - *created_at < ttl
                && born_after.is_none_or(|asked| *created_at >= asked)
                && !self.flights.works_on(member.runtime, &member.id)
                && runs()
        })?;
        let warm = self.sessions.warm.get_mut(&claim.pool)?;
        (place < warm.len()).then(|| warm.remove(place).0)
    }

    /// Makes a session of a claim and a member, writes it down, and has the member looked at.
    fn begin_claim(&mut self, mut claim: Claim, member: &InstanceRef) {
        let (id, token) = match new_secrets() {
            Ok(secrets) => secrets,
            Err(why) => return claim.refuse(why),
        };
        let now = self.now().0;
        let pool = claim.pool.clone();
        let session = Session {
            id: id.clone(),
            pool: pool.clone(),
            instance: member.clone(),
            client: claim.request.client.clone(),
            token: token.digest(),
            state: SessionState::Active,
            created_at: claim.asked.0,
            last_active_at: now,
            warm: !claim.has_waited,
            elapsed_ms: 0.0,
            answered: false,
            made_ms: 0.0,
            env: claim.request.env.clone(),
            labels: claim.request.labels.clone(),
            mounts: claim.request.mounts.clone(),
            sandbox: claim.request.sandbox.clone(),
            removed: false,
        };
        let require = claim.request.require.clone();
        claim.token = Some(token);
        self.sessions.insert(Held::of(session, Some(Box::new(claim))));
        let kept = self.sessions.keep(&id);
        let (reports, member, runtime) = (self.reports(), member.clone(), self.runtime_of(member));
        self.lanes.spawn(async move {
            let (kept, (found, unmet)) = tokio::join!(written(kept), look(runtime, &member, &require));
            let confirmed = SessionMessage::Confirmed(id, Box::new(Confirmation { kept, found, unmet }));
            // A core that has ended needs no report.
            let _ = reports.send(Message::Session(Box::new(confirmed))).await;
        });
        self.queue.add(&pool.deployment, Instant::now() + REFILL_PAUSE);
    }

    /// A claim was written down and its member looked at: hands it out, or goes on without it.
    pub(super) fn confirmed(&mut self, id: &SessionId, confirmation: Confirmation) {
        let Confirmation { kept, found, unmet } = confirmation;
        let Some(held) = self.sessions.all.get_mut(id) else { return };
        let Some(claim) = held.claim.take() else { return };
        let (is_live, member) = (held.session.is_live(), held.session.instance.clone());
        if !is_live {
            // It was seen to end in the meantime.
            return self.claim_again(*claim);
        }
        if let Err(why) = kept {
            let error = std::io::Error::other(why);
            let refusal = crate::controller::open::local("the session can't be recorded")(error);
            return self.give_back(id, *claim, refusal);
        }
        let unwell =
            self.checks.fails(&claim.pool.deployment, &member).map(|check| format!("it is unhealthy: {check}"));
        match found {
            Ok(Some(_)) if unwell.is_some() => {
                let how = unwell.unwrap_or_default();
                drop(self.end_session(id, SessionEnd::NotHandedOut { how }));
                self.claim_again(*claim);
            }
            _ if claim.reply.is_closed() => {
                let how = "its client had gone".to_owned();
                drop(self.end_session(id, SessionEnd::NotHandedOut { how }));
            }
            Err(error) => self.give_back(id, *claim, EngineError::Runtime(error)),
            Ok(Some(instance)) if matches!(instance.phase, Phase::Running { .. }) => match unmet.is_empty() {
                true if claim.request.mounts.is_empty() => self.hand_out(id, *claim, &instance),
                true => self.mount_for(id, *claim, instance),
                false => {
                    let why = format!("{} does not give what is required: {}", claim.pool, unmet.join("; "));
                    self.give_back(id, *claim, EngineError::Conflict(why));
                }
            },
            Ok(found) => {
                let how = found.map_or("it is gone".to_owned(), |one| format!("it is {}", one.phase.name()));
                drop(self.end_session(id, SessionEnd::NotHandedOut { how }));
                self.list_now(member.runtime);
                self.claim_again(*claim);
            }
        }
    }

    /// Gives a member back that nobody touched, and tells why it was not handed out.
    pub(super) fn give_back(&mut self, id: &SessionId, claim: Claim, why: EngineError) {
        self.sessions.remove(id);
        drop(self.sessions.note(SessionNote::Forget(id.clone())));
        self.queue.add(&claim.pool.deployment, Instant::now());
        claim.refuse(why);
    }

    /// Looks for another member, before all that came later.
    pub(super) fn claim_again(&mut self, mut claim: Claim) {
        match self.pick(&claim) {
            Some(member) => self.begin_claim(claim, &member),
            None => {
                claim.has_waited = true;
                self.queue.add(&claim.pool.deployment, Instant::now());
                self.sessions.waiting.entry(claim.pool.clone()).or_default().push_front(claim);
                self.sessions.touch();
            }
        }
    }

    pub(super) fn hand_out(&mut self, id: &SessionId, mut claim: Claim, instance: &Instance) {
        let (now, at) = self.now();
        let elapsed = at.saturating_duration_since(claim.asked.1);
        let Some(held) = self.sessions.all.get_mut(id) else { return };
        let ready = instance.phase.started_at().unwrap_or(instance.created_at);
        held.session.elapsed_ms = milliseconds(elapsed);
        held.session.answered = true;
        held.session.made_ms = milliseconds((ready - instance.created_at).to_std().unwrap_or_default());
        held.session.last_active_at = now;
        // What was written down before says the same of who has it; this is for the statistics.
        drop(self.sessions.keep(id));
        self.sessions.touch();
        self.note_call(id);
        let (Some(token), Some(view)) = (claim.token.take(), self.session_view(id)) else { return };
        tracing::debug!(session = %id, client = view.client, instance = view.instance, warm = view.warm, "acquired");
        if claim.reply.send(Ok(Acquired { token, reused: false, view })).is_err() {
            let how = "its client had gone".to_owned();
            drop(self.end_session(id, SessionEnd::NotHandedOut { how }));
        }
    }

    /// Hands members out to claims that wait, the oldest first. Says whether any was.
    pub(super) fn serve_waiting(&mut self, pool: &ServiceName) -> bool {
        let Some(waiting) = self.sessions.waiting.remove(pool) else { return false };
        let (mut left, mut served) = (VecDeque::new(), false);
        for claim in waiting {
            if claim.reply.is_closed() {
                self.note_unmet(&claim);
                served = true;
                continue;
            }
            match self.pick(&claim) {
                Some(member) => {
                    served = true;
                    self.begin_claim(claim, &member);
                }
                None => left.push_back(claim),
            }
        }
        if !left.is_empty() {
            self.sessions.waiting.insert(pool.clone(), left);
        }
        served
    }

    /// Refuses claims that have waited for long enough, whose pool is not declared any more, or of whose pool sessions have
    /// every place by now.
    pub(super) fn refuse_overdue(&mut self, at: Instant) {
        let pools: Vec<ServiceName> = self.sessions.waiting.keys().cloned().collect();
        for pool in pools {
            let bounds = self.pool(&pool).map(crate::spec::Pool::max_total);
            let is_gone = self.declared.synced && bounds.is_none();
            // A member that is on its way to one of them may still be given back.
            let is_full = bounds.is_some_and(|max| self.all_handed_out(&pool, max));
            let Some(waiting) = self.sessions.waiting.remove(&pool) else { continue };
            let (over, left): (VecDeque<Claim>, VecDeque<Claim>) = waiting
                .into_iter()
                .partition(|claim| is_gone || is_full || claim.deadline() <= at || claim.reply.is_closed());
            if !over.is_empty() {
                self.queue.add(&pool.deployment, at);
            }
            for claim in over {
                if !is_gone {
                    self.note_unmet(&claim);
                }
                let full = bounds.filter(|_| is_full).and_then(|max| self.all_claimed(&pool, max));
                let why = match full {
                    Some(full) => full,
                    None if is_gone => gone(&pool),
                    None => self.why_none(&claim),
                };
                claim.refuse(why);
            }
            if !left.is_empty() {
                self.sessions.waiting.insert(pool, left);
            }
        }
    }

    /// Why a claim got no member in time.
    fn why_none(&self, claim: &Claim) -> EngineError {
        let pool = &claim.pool;
        let patience = crate::spec::HumanDuration(claim.request.patience());
        let said = self.board.message_of(&pool.deployment, &pool.service).filter(|said| !said.is_empty());
        let said = said.map(|said| format!(": {said}")).unwrap_or_default();
        EngineError::Conflict(format!("no member of {pool} could be handed out within {patience}{said}"))
    }
}

fn none_while_suspended(pool: &ServiceName) -> EngineError {
    let deployment = &pool.deployment;
    EngineError::Conflict(format!(
        "{pool} has no free member, and none is made while the deployment is suspended; `keel resume {deployment}` ends that"
    ))
}

fn gone(pool: &ServiceName) -> EngineError {
    EngineError::NotFound(format!("the pool {pool} is not declared any more"))
}

/// Looks at a member, and at its controls where some are required.
pub(super) async fn look(
    runtime: Option<Arc<dyn Runtime>>,
    member: &InstanceRef,
    require: &[Control],
) -> (crate::runtime::Result<Option<Instance>>, Vec<String>) {
    let silent = |message: String| RuntimeError::new(ErrorKind::Unavailable, message);
    let Some(runtime) = runtime else {
        return (Err(silent(format!("{} does not answer", member.runtime))), Vec::new());
    };
    let looked = async {
        let found = runtime.inspect(member).await?;
        let unmet = match require.is_empty() {
            true => Vec::new(),
            false => unmet(&runtime.enforcement(member).await?, require),
        };
        Ok::<_, RuntimeError>((found, unmet))
    };
    match tokio::time::timeout(CONFIRM_DEADLINE, looked).await {
        Ok(Ok((found, unmet))) => (Ok(found), unmet),
        Ok(Err(error)) if error.kind == ErrorKind::NotFound => (Ok(None), Vec::new()),
        Ok(Err(error)) => (Err(error), Vec::new()),
        Err(_) => {
            let message = format!("{} did not answer in time", member.runtime);
            (Err(RuntimeError::new(ErrorKind::Timeout, message)), Vec::new())
        }
    }
}

/// The required controls that do not hold for an instance, each with the reason.
fn unmet(controls: &[crate::runtime::Enforcement], require: &[Control]) -> Vec<String> {
    let lacking = |wanted: &Control| {
        let state = controls.iter().find(|one| one.control == *wanted).map(|one| &one.state);
        let why = match state {
            Some(EnforcementState::Enforced { .. }) => return None,
            // What there is instead of these is no isolation; of the others it is the control itself, unasked for.
            Some(EnforcementState::NotRequested { by: Some(by) }) => match wanted {
                Control::NetworkIsolation | Control::ReadOnlyRoot | Control::User => {
                    format!("the pool's spec does not ask for it: {by}")
                }
                _ => return None,
            },
            Some(EnforcementState::Degraded { why, .. } | EnforcementState::Absent { why }) => why.clone(),
            Some(EnforcementState::Planned { .. }) => "it never ran".to_owned(),
            Some(EnforcementState::NotRequested { by: None }) => "the pool's spec does not ask for it".to_owned(),
            None => "its runtime does not have it".to_owned(),
        };
        Some(format!("{wanted} ({why})"))
    };
    require.iter().filter_map(lacking).collect()
}

/// A time in milliseconds.
pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

impl State {
    /// A session as it is shown.
    pub(super) fn session_view(&self, id: &SessionId) -> Option<SessionView> {
        let held = self.sessions.all.get(id)?;
        Some(SessionView::of(&held.session, self.expires_at(held)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Enforcement;

    #[test]
    fn what_there_is_instead_of_a_required_control_is_not_taken_for_it() {
        let by = |by: &str| EnforcementState::NotRequested { by: Some(by.to_owned()) };
        let told = [
            Enforcement::new(Control::NetworkIsolation, None, by("shares the machine's network")),
            Enforcement::new(Control::ReadOnlyRoot, None, by("writable layer of its own")),
            Enforcement::new(Control::Suspend, None, by("the engine's pause")),
            Enforcement::new(Control::Seccomp, None, EnforcementState::Enforced { by: "a filter".to_owned() }),
        ];
        let all = [Control::NetworkIsolation, Control::ReadOnlyRoot, Control::Suspend, Control::Seccomp];
        assert_eq!(
            unmet(&told, &all),
            [
                "network_isolation (the pool's spec does not ask for it: shares the machine's network)",
                "read_only_root (the pool's spec does not ask for it: writable layer of its own)",
            ]
        );
    }
}
