//! What becomes of sessions without anybody's doing: their sandboxes end, their time is over, their pools are removed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

use super::request::{SessionStats, SessionView};
use super::{Held, Member, SessionMessage};
use crate::controller::core::State;
use crate::controller::explain::Membership;
use crate::controller::lists::RELIST;
use crate::controller::message::Message;
use crate::plan::{ClaimFigures, MemberUse, PoolFigures, PoolRecord, claim_figures, cold_at, pool_figures};
use crate::runtime::Runtime;
use crate::spec;
use crate::state::{
    DesiredDeployment, Fate, Instance, InstanceId, InstanceRef, Phase, ServiceName, Session, SessionEnd, SessionId,
    SessionState,
};
use crate::status::PoolFacts;
use crate::store::SessionNote;

/// Time between two looks at the memory that free members hold; it changes little while nobody uses them.
const MEASURE_EVERY: Duration = Duration::from_secs(30);

/// Longest wait for what one member uses; one that does not answer is left out.
const MEASURE_DEADLINE: Duration = Duration::from_secs(5);

/// Free members of a pool whose memory is looked at; they are all made alike.
const MEASURED: usize = 32;

/// Time between two counts of how claims went: nobody reads faster, and a count looks at a thousand sessions.
const COUNT_EVERY: Duration = Duration::from_millis(100);

/// Added to a time limit, so that it is over when it is looked at again.
const JUST_AFTER: Duration = Duration::from_millis(1);

/// What is told of claims, as it was last counted.
pub(super) struct Figures {
    claims: ClaimFigures,
    counted_at: Instant,
}

/// Memory that free members hold, as it was last measured.
pub(super) struct Memory {
    bytes: u64,
    members: u32,
    due: Instant,
}

impl State {
    /// When time alone changes something of sessions.
    pub(in crate::controller) fn next_of_sessions(&self) -> Option<Instant> {
        self.sessions.next.filter(|_| self.declared.synced)
    }

    /// Ends sessions whose time is over, and refuses claims whose is.
    pub(in crate::controller) fn sweep_sessions(&mut self) {
        let (now, at) = self.now();
        // Before the sources are read, nobody knows the limits.
        if !self.declared.synced || self.sessions.next.is_none_or(|next| next > at) {
            return;
        }
        let is_over = |held: &&Held| self.time_left(held, now).is_some_and(|left| left < TimeDelta::zero());
        let over: Vec<(SessionId, &'static str)> = self
            .sessions
            .all
            .values()
            .filter(is_over)
            .map(|held| (held.session.id.clone(), held.session.state.name()))
            .collect();
        for (id, state) in over {
            drop(self.end_session(&id, SessionEnd::Timeout { while_: state.to_owned() }));
        }
        self.refuse_overdue(at);
        let left = self.sessions.all.values().filter_map(|held| self.time_left(held, now));
        let ends = left.map(|left| at + (left.to_std().unwrap_or_default() + JUST_AFTER).min(RELIST));
        let waits = self.sessions.waiting.values().flatten().map(super::Claim::deadline);
        self.sessions.next = ends.chain(waits).min();
    }

    /// How long a session may still be left unused; negative once its time is over, none where nothing limits it.
    fn time_left(&self, held: &Held, now: DateTime<Utc>) -> Option<TimeDelta> {
        Some(self.expires_at(held)? - now)
    }

    /// When a session ends if it is left unused until then.
    pub(super) fn expires_at(&self, held: &Held) -> Option<DateTime<Utc>> {
        let Session { pool, state, last_active_at, .. } = &held.session;
        // What is frozen is used by nobody, whoever waits for it to run on.
        let is_used = held.inside > 0 && held.session.state != SessionState::Suspended;
        if held.claim.is_some() || is_used || !held.session.is_live() {
            return None;
        }
        let limits = self.session_limits(pool)?;
        let limit = match state {
            SessionState::Active => limits.idle_timeout(),
            SessionState::Detached => limits.detach_timeout(),
            SessionState::Suspended => limits.suspend_timeout(),
            SessionState::Ended { .. } => return None,
        };
        last_active_at.checked_add_signed(TimeDelta::from_std(limit).ok()?)
    }

    /// What an instance is there for that lives as a member of a pool.
    pub(in crate::controller) fn membership(&self, member: &Instance) -> Option<Membership> {
        let InstanceId { deployment, service, .. } = &member.id;
        let name = ServiceName { deployment: deployment.clone(), service: service.clone() };
        let pool = self.pool(&name).filter(|_| !matches!(member.phase, Phase::Exited(_)))?;
        Some(match self.sessions.holder(deployment, &member.as_ref()) {
            Some(held) => Membership::Session { id: held.session.id.to_string(), until: self.expires_at(held) },
            None => Membership::Free { until: cold_at(pool, member) },
        })
    }

    /// What is declared of the sessions of a pool; none where nothing declares it, as when its declaration is held.
    fn session_limits(&self, pool: &ServiceName) -> Option<spec::Session> {
        let deployment = self.declared.desired.deployments.get(&pool.deployment)?;
        let service = deployment.services.get(&pool.service).filter(|service| service.spec.pool.is_some())?;
        Some(service.spec.session.clone().unwrap_or_default())
    }

    /// Notes what has become of the members that sessions have, and tells planning who has which.
    pub(in crate::controller) fn sync_sessions(&mut self, deployment: &str, desired: Result<&DesiredDeployment, Fate>) {
        let members: HashMap<Member, Phase> =
            self.cache.of(deployment).map(|one| ((one.runtime, one.runtime_id.clone()), one.phase.clone())).collect();
        if self.covers(deployment) {
            self.end_by_what_is_observed(deployment, desired, &members);
            self.freeze_again(deployment, &members);
        }
        let mut pools: BTreeMap<String, PoolRecord> = BTreeMap::new();
        let services = desired.into_iter().flat_map(|desired| desired.services.values());
        for service in services.filter(|service| service.spec.pool.is_some()) {
            let name = ServiceName { deployment: deployment.to_owned(), service: service.name.clone() };
            let waiting = self.sessions.waiting.get(&name).into_iter().flatten().filter(|one| !one.reply.is_closed());
            let mut fresh: Vec<DateTime<Utc>> =
                waiting.clone().filter(|claim| claim.request.fresh).map(|claim| claim.asked.0).collect();
            fresh.sort();
            let waiting = u32::try_from(waiting.count()).unwrap_or(u32::MAX);
            let attempts = self.sessions.attempts.get(&name).cloned().unwrap_or_default();
            let (since, settles) = (self.sessions.since, self.sessions.settles);
            let record = PoolRecord { waiting, fresh, attempts, since, settles, ..PoolRecord::default() };
            pools.insert(service.name.clone(), record);
        }
        let mut note = |service: &str, member: Member, used: MemberUse| {
            let record = pools.entry(service.to_owned()).or_default();
            let known = record.members.entry(member).or_insert(used);
            *known = (*known).max(used);
        };
        for Held { session, .. } in self.sessions.open(deployment) {
            let used = match session.state {
                SessionState::Ended { .. } => MemberUse::Spent,
                SessionState::Suspended => MemberUse::Suspended,
                SessionState::Active | SessionState::Detached => MemberUse::Claimed,
            };
            note(&session.pool.service, handle(&session.instance), used);
        }
        for (member, visit) in self.sessions.visited.iter().filter(|(_, visit)| visit.pool.deployment == deployment) {
            let used = if visit.inside > 0 { MemberUse::Visited } else { MemberUse::Entered };
            note(&visit.pool.service, member.clone(), used);
        }
        self.record_of(deployment).history.pools = pools;
    }

    fn end_by_what_is_observed(
        &mut self,
        deployment: &str,
        desired: Result<&DesiredDeployment, Fate>,
        members: &HashMap<Member, Phase>,
    ) {
        let is_pool = |pool: &ServiceName| match desired {
            Ok(desired) => desired.services.get(&pool.service).is_some_and(|service| service.spec.pool.is_some()),
            Err(fate) => fate == Fate::Kept,
        };
        let mut over: Vec<(SessionId, Option<SessionEnd>)> = Vec::new();
        let mut pools: Vec<ServiceName> = Vec::new();
        for Held { session, .. } in self.sessions.open(deployment) {
            let how = match members.get(&handle(&session.instance)) {
                Some(Phase::Exited(exit)) => Some(SessionEnd::SandboxEnded { how: exit.to_string() }),
                None if self.is_listed(&session.instance) => {
                    Some(SessionEnd::SandboxEnded { how: "it is gone".to_owned() })
                }
                Some(_) | None if session.is_live() && !is_pool(&session.pool) => Some(SessionEnd::PoolRemoved),
                Some(_) | None => None,
            };
            let how = how.filter(|_| session.is_live());
            let is_gone = !members.contains_key(&handle(&session.instance)) && self.is_listed(&session.instance);
            if how.is_some() || is_gone {
                over.push((session.id.clone(), how));
                pools.push(session.pool.clone());
            }
        }
        for (id, how) in over {
            if let Some(how) = how {
                drop(self.end_session(&id, how));
            }
            let Some(held) = self.sessions.all.get(&id) else { continue };
            if !members.contains_key(&handle(&held.session.instance)) {
                self.sessions.close(&id);
                drop(self.sessions.keep(&id));
            }
        }
        pools.sort();
        pools.dedup();
        pools.iter().for_each(|pool| self.sessions.prune(pool));
        if pools.iter().any(|pool| !is_pool(pool)) {
            self.prune_gone();
        }
        self.forget_visits(deployment, members);
    }

    /// Forgets members that nobody is to have any more and that are gone.
    fn forget_visits(&mut self, deployment: &str, members: &HashMap<Member, Phase>) {
        let is_listed =
            |member: &Member| self.runtimes.get(&member.0).is_some_and(|attached| attached.lists.succeeded_once());
        let gone = self.sessions.visited.iter().filter(|(member, visit)| {
            visit.pool.deployment == deployment && !members.contains_key(*member) && is_listed(member)
        });
        let gone: Vec<Member> = gone.map(|(member, _)| member.clone()).collect();
        for member in gone {
            self.sessions.visited.remove(&member);
            drop(self.sessions.note(SessionNote::Removed { runtime: member.0, runtime_id: member.1 }));
        }
    }

    /// Whether it would be known if the instance existed.
    fn is_listed(&self, instance: &InstanceRef) -> bool {
        self.runtimes.get(&instance.runtime).is_some_and(|attached| attached.lists.succeeded_once())
    }

    /// Notes which members of pools can be handed out, and hands them to claims that wait. Gives what is shown of the pools.
    pub(in crate::controller) fn tend_pools(
        &mut self,
        deployment: &str,
        desired: Option<&DesiredDeployment>,
        observed: &[Instance],
    ) -> BTreeMap<String, PoolFacts> {
        let mut facts = BTreeMap::new();
        let services = desired.into_iter().flat_map(|desired| desired.services.values());
        let mut declared = Vec::new();
        for service in services.filter(|service| service.spec.pool.is_some()) {
            let name = ServiceName { deployment: deployment.to_owned(), service: service.name.clone() };
            let mut figures =
                self.with_input(deployment, desired.ok_or(Fate::Kept), observed, |input| pool_figures(input, service));
            self.note_attempts(&name, observed);
            figures.warm.retain(|(member, _)| !self.flights.works_on(member.runtime, &member.id));
            self.sessions.warm.insert(name.clone(), figures.warm.clone());
            self.measure_memory(&name, &figures);
            if self.covers(deployment) && self.serve_waiting(&name) {
                self.queue.add(deployment, Instant::now());
            }
            facts.insert(service.name.clone(), self.pool_facts(&name, figures));
            declared.push(name);
        }
        let is_gone = |name: &ServiceName| name.deployment == deployment && !declared.contains(name);
        self.sessions.warm.retain(|name, _| !is_gone(name));
        self.sessions.memory.retain(|name, _| !is_gone(name));
        self.sessions.attempts.retain(|name, _| !is_gone(name));
        self.sessions.figures.retain(|name, _| !is_gone(name));
        self.sessions.unmet.retain(|name, _| !is_gone(name));
        if self.sessions.waiting.keys().any(is_gone) {
            self.sessions.touch();
        }
        facts
    }

    /// Notes which names members have had.
    fn note_attempts(&mut self, pool: &ServiceName, observed: &[Instance]) {
        let seen = self.sessions.attempts.entry(pool.clone()).or_default();
        for InstanceId { slot, attempt, .. } in
            observed.iter().map(|one| &one.id).filter(|id| id.service == pool.service)
        {
            let highest = seen.entry(*slot).or_insert(*attempt);
            *highest = (*highest).max(*attempt);
        }
    }

    fn pool_facts(&mut self, pool: &ServiceName, figures: PoolFigures) -> PoolFacts {
        let warm = figures.warm.len() as u64;
        let claims = self.claim_figures(pool);
        let memory = self.sessions.memory.get(pool).filter(|memory| memory.members > 0);
        PoolFacts {
            claims,
            waiting: self
                .sessions
                .waiting
                .get(pool)
                .map_or(0, |waiting| u32::try_from(waiting.len()).unwrap_or(u32::MAX)),
            memory_bytes: memory.map(|memory| memory.bytes / u64::from(memory.members) * warm),
            members: figures,
        }
    }

    /// What is told of the claims of a pool; counted from time to time while many come.
    fn claim_figures(&mut self, pool: &ServiceName) -> ClaimFigures {
        let at = self.now().1;
        let known = self.sessions.figures.get(pool);
        if let Some(known) = known.filter(|known| known.counted_at + COUNT_EVERY > at) {
            let (claims, due) = (known.claims.clone(), known.counted_at + COUNT_EVERY);
            self.queue.add(&pool.deployment, due);
            return claims;
        }
        let claims = claim_figures(self.sessions.handed_out(pool), self.sessions.unmet_of(pool));
        self.sessions.figures.insert(pool.clone(), Figures { claims: claims.clone(), counted_at: at });
        claims
    }

    /// Has the memory of free members looked at, where that is due.
    fn measure_memory(&mut self, pool: &ServiceName, figures: &PoolFigures) {
        let at = self.now().1;
        let is_due = self.sessions.memory.get(pool).is_none_or(|memory| memory.due <= at);
        if figures.warm.is_empty() || !is_due || !self.covers(&pool.deployment) {
            return;
        }
        let due = at + MEASURE_EVERY;
        let memory = self.sessions.memory.entry(pool.clone()).or_insert(Memory { bytes: 0, members: 0, due });
        memory.due = due;
        self.queue.add(&pool.deployment, due);
        let members = figures.warm.iter().take(MEASURED);
        let asked: Vec<(Arc<dyn Runtime>, InstanceRef)> =
            members.filter_map(|(member, _)| Some((self.runtime_of(member)?, member.clone()))).collect();
        let (reports, pool) = (self.reports(), pool.clone());
        self.lanes.spawn(async move {
            let (mut bytes, mut members) = (0, 0);
            // One after the other, which leaves an engine room for everything else.
            for (runtime, member) in asked {
                let Some(used) = memory_of(runtime, member).await else { continue };
                (bytes, members) = (bytes + used, members + 1);
            }
            let measured = SessionMessage::Measured(pool, bytes, members);
            // A core that has ended needs no report.
            let _ = reports.send(Message::Session(Box::new(measured))).await;
        });
    }

    pub(super) fn memory_measured(&mut self, pool: ServiceName, bytes: u64, members: u32) {
        if let Some(memory) = self.sessions.memory.get_mut(&pool)
            && (memory.bytes, memory.members) != (bytes, members)
        {
            (memory.bytes, memory.members) = (bytes, members);
            self.queue.add(&pool.deployment, Instant::now());
        }
    }

    /// All sessions, by the time of their claim.
    pub(super) fn session_views(&self) -> Vec<SessionView> {
        let handed_out = self.sessions.all.values().filter(|held| held.claim.is_none());
        let mut views: Vec<SessionView> =
            handed_out.map(|held| SessionView::of(&held.session, self.expires_at(held))).collect();
        views.sort_by(|one, other| (one.created_at, &one.session).cmp(&(other.created_at, &other.session)));
        views
    }

    pub(super) fn session_stats(&self) -> SessionStats {
        let handed_out = self.sessions.all.values().filter(|held| held.claim.is_none());
        let warm = self.sessions.warm.values().map(Vec::len).sum::<usize>();
        let unmet = self.sessions.unmet.values().flatten().copied();
        SessionStats::of(&claim_figures(handed_out.map(|held| &held.session), unmet), warm as u64)
    }

    /// Notes that nothing is left of a deployment. Its sessions, which are over, are kept for as long as there are not too many
    /// of pools that are gone, so that whoever had one is told why it ended.
    pub(in crate::controller) fn leave_sessions(&mut self, deployment: &str) {
        let left: Vec<SessionId> = self.sessions.open(deployment).map(|held| held.session.id.clone()).collect();
        for id in left {
            self.sessions.close(&id);
            drop(self.sessions.keep(&id));
        }
        self.prune_gone();
    }

    /// Forgets the oldest sessions of pools that are gone, beyond those that are kept.
    fn prune_gone(&mut self) {
        let declared = &self.declared.desired.deployments;
        let is_pool = |pool: &ServiceName| {
            let service = declared.get(&pool.deployment).and_then(|one| one.services.get(&pool.service));
            service.is_some_and(|service| service.spec.pool.is_some())
        };
        self.sessions.prune_gone(|pool| !is_pool(pool));
    }

    /// Whether anybody has a session of the deployment.
    pub(in crate::controller) fn has_live_sessions(&self, deployment: &str) -> bool {
        self.sessions.open(deployment).any(|held| held.session.is_live())
    }
}

fn handle(instance: &InstanceRef) -> Member {
    (instance.runtime, instance.runtime_id.clone())
}

/// Memory that a member uses, where its runtime tells.
async fn memory_of(runtime: Arc<dyn Runtime>, member: InstanceRef) -> Option<u64> {
    let used = tokio::time::timeout(MEASURE_DEADLINE, runtime.stats()?.stats(&member)).await;
    used.ok()?.ok()?.memory
}
