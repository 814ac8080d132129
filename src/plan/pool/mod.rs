//! Pools: sandboxes that are made ahead and handed out by sessions.
//!
//! A member is free until a session claims it, and from then on nobody else's: when the session ends, the member is removed
//! and another one is made. What is free is kept between `pool.min_warm` and `pool.max_warm`, is no older than
//! `pool.warm_ttl` and of the declared template by its whole revision; all members that are not dead are never more than
//! `pool.max_total`, those being made and removed included.

mod figures;
mod members;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
pub use figures::{ClaimFigures, Distribution, PoolFigures, claim_figures, pool_figures};
use members::{Members, Role};

use super::draft::{Draft, Launch};
use super::need::{is_ended_as_unhealthy, is_refused, may_not_begin};
use super::restart::{AfterExit, after_exit};
use super::rollout::crashed;
use super::time::{after, due};
use super::{Cause, Wait};
use crate::spec::{Pool, RuntimeKind};
use crate::state::{DesiredService, EndedBy, Exit, HealthState, Instance, InstanceId, Phase, StopCause};

/// Members of one pool that are made at a time: enough to follow bursts of claims, and few enough that an engine still has
/// room for the claims themselves (the docker adapter makes 16 calls side by side).
pub const REFILL_AT_ONCE: u32 = 8;

/// Most time before the end of its warmth at which a member's successor is made: longer than a sandbox takes to start.
pub const RENEW_LEAD: Duration = Duration::from_secs(30);

/// The same as a share of `pool.warm_ttl`: one in so many parts.
const RENEW_SHARE: u32 = 10;

/// What is remembered of a pool and no runtime tells.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PoolRecord {
    /// What members are used for that are not free, by their runtime and its own id.
    pub members: BTreeMap<(RuntimeKind, String), MemberUse>,
    /// Claims that wait for a member.
    pub waiting: u32,
    /// When those of them came that take no member created before, oldest first.
    pub fresh: Vec<DateTime<Utc>>,
    /// Highest attempt that was seen in a slot, by slot: a name that a member had is not given again, so that late news of
    /// the one are never taken for news of another.
    pub attempts: BTreeMap<u32, u32>,
    /// Since when it is remembered who has had which member; of those made before nobody knows.
    pub since: Option<DateTime<Utc>>,
    /// Until when members may come into being that a controller before this one asked for: none are made until then, so that
    /// there are never more than `pool.max_total`.
    pub settles: Option<DateTime<Utc>>,
}

/// What a member is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberUse {
    /// A session had it: it is to go.
    Spent,
    /// No session had it, and somebody was inside all the same: it is to go.
    Entered,
    /// A session has it.
    Claimed,
    /// The same, and it is to stay frozen.
    Suspended,
    /// No session has it, and somebody works inside all the same.
    Visited,
}

/// Plans one pool. `instances` are those of the service, in order of their identity.
pub(super) fn plan_pool(draft: &mut Draft<'_>, desired: &DesiredService, instances: &[&Instance]) {
    let Some(pool) = &desired.spec.pool else { return };
    let none = PoolRecord::default();
    let record = draft.input.history.pools.get(&desired.name).unwrap_or(&none);
    let members = Members::of(draft.input, desired, instances);
    tend(draft, desired, &members);
    thin_out(draft, desired, (pool, record), &members);
    let mut filling = Filling::new(draft, desired, (pool, record), &members);
    filling.start_created();
    filling.revive();
    filling.launch();
    look_again(draft, pool, &members);
    draft.say_what_is_missing(&desired.name);
}

/// Ends what can't be handed out, and says what is waited for.
fn tend(draft: &mut Draft<'_>, desired: &DesiredService, members: &Members<'_>) {
    for (member, role) in &members.all {
        match role {
            Role::Over(cause) => drop(draft.retire(member, Some(&desired.spec), cause)),
            Role::Unhealthy => drop(is_ended_as_unhealthy(draft, desired, member)),
            Role::Frozen | Role::Stalled => draft.resume(member),
            Role::Coming if matches!(member.phase, Phase::Running { ready: false, .. }) => {
                let check = member.health.as_ref().and_then(HealthState::message).map(str::to_owned);
                draft.wait(Wait::NotReady { id: member.id.clone(), check, until: None });
            }
            Role::Strange(message) => {
                draft.wait(Wait::Unknown { id: member.id.clone(), message: message.clone() });
            }
            Role::Leaving | Role::Claimed | Role::Warm | Role::Coming | Role::Created | Role::Dead(_) => {}
        }
    }
}

/// Retires free members beyond `pool.max_warm` and `pool.max_total`, and those in the place of which a claim needs one that
/// is made for it; the longest-warm first.
fn thin_out(
    draft: &mut Draft<'_>,
    desired: &DesiredService,
    (pool, record): (&Pool, &PoolRecord),
    members: &Members<'_>,
) {
    // One that is being replaced before it is too old stays until its successor is ready.
    let ready = u32::try_from(members.warm().len()).unwrap_or(u32::MAX);
    let beyond_warm = members.supply().max(ready).saturating_sub(pool.max_warm().saturating_add(record.waiting));
    let beyond_total = members.live().saturating_sub(pool.max_total());
    let leaving = members.leaving();
    let over = beyond_warm.max(beyond_total.saturating_sub(leaving));
    let in_the_way = match members.live() >= pool.max_total() && members.making() == 0 && leaving == 0 {
        true => fresh_lacking(record, members),
        false => 0,
    };
    let surplus = Cause::PoolSurplus { max_warm: pool.max_warm(), max_total: pool.max_total() };
    let mut warm = members.warm().into_iter();
    for member in warm.by_ref().take(over as usize) {
        draft.retire(member, Some(&desired.spec), &surplus);
    }
    let (oldest, left) = (record.fresh.first().copied(), in_the_way.saturating_sub(over));
    let older = warm.filter(|member| oldest.is_some_and(|oldest| member.created_at < oldest));
    for member in older.take(left as usize) {
        draft.retire(member, Some(&desired.spec), &Cause::MakesRoom);
    }
}

/// Claims that take no member created before them, and for which none is there or on its way.
fn fresh_lacking(record: &PoolRecord, members: &Members<'_>) -> u32 {
    let Some(oldest) = record.fresh.first() else { return 0 };
    let wanted = u32::try_from(record.fresh.len()).unwrap_or(u32::MAX);
    wanted.saturating_sub(members.supply_since(*oldest))
}

/// Members on their way to be free.
struct Filling<'p, 'a, 'i> {
    draft: &'p mut Draft<'a>,
    desired: &'p DesiredService,
    members: &'p Members<'i>,
    attempts: &'p BTreeMap<u32, u32>,
    cause: Cause,
    /// Members that are still wanted.
    lacking: u32,
    /// Of these, as many may be begun now.
    may: u32,
    /// When one more may be, where time is what holds them back.
    next_at: Option<DateTime<Utc>>,
}

impl<'p, 'a, 'i> Filling<'p, 'a, 'i> {
    fn new(
        draft: &'p mut Draft<'a>,
        desired: &'p DesiredService,
        (pool, record): (&Pool, &'p PoolRecord),
        members: &'p Members<'i>,
    ) -> Self {
        let wanted = pool.min_warm().saturating_add(record.waiting);
        let lacking = wanted.saturating_sub(members.supply()).max(fresh_lacking(record, members));
        // Once it has ended it is made anew in its place, after a pause where it failed before.
        let lacking = lacking.saturating_sub(members.ending_unhealthy());
        let ceiling = pool.max_warm().saturating_add(record.waiting);
        let awaited = record.waiting.saturating_sub(members.supply()).max(fresh_lacking(record, members));
        let pace = Pace::of(pool, members, draft.input.now);
        let room = [
            pool.max_total().saturating_sub(members.live()),
            ceiling.saturating_sub(members.supply()),
            REFILL_AT_ONCE.saturating_sub(members.making()),
        ];
        let room = room.into_iter().min().filter(|_| draft.reachable(desired.runtime)).unwrap_or(0);
        let paced = pace.as_ref().map_or(u32::MAX, |pace| awaited.saturating_add(pace.may));
        let settles = record.settles.filter(|settles| *settles > draft.input.now);
        Self {
            may: if settles.is_some() { 0 } else { room.min(paced) },
            next_at: settles.or(pace.filter(|_| paced < room).map(|pace| pace.next_at)),
            cause: Cause::PoolLow { warm: members.supply(), wanted },
            lacking,
            attempts: &record.attempts,
            draft,
            desired,
            members,
        }
    }

    /// Starts what was created and never started.
    fn start_created(&mut self) {
        for (member, role) in &self.members.all {
            if *role == Role::Created && !may_not_begin(self.draft, self.desired, member.id.slot, &member.id) {
                self.draft.start(self.desired, member);
            }
        }
    }

    /// Makes members anew whose program ended before anybody had them, after a pause that grows, and removes what is left of
    /// those that nobody needs.
    fn revive(&mut self) {
        for (dead, exit) in self.members.dead() {
            let is_memory = self.members.is_last_of_its_slot(dead);
            let asked_for = matches!(exit.ended_by, EndedBy::Request(why) if why != StopCause::Unhealthy);
            if !is_memory || asked_for || self.lacking == 0 {
                self.draft.retire(dead, Some(&self.desired.spec), &Cause::Superseded);
                continue;
            }
            self.lacking -= 1;
            self.revive_one(dead, exit);
        }
    }

    fn revive_one(&mut self, dead: &Instance, exit: &Exit) {
        let (restarts, streak, cause) = match after_exit(dead, exit, self.desired) {
            AfterExit::Restart { pause, streak } => {
                let until = due(exit.finished_at, pause, self.draft.input.now);
                if until > self.draft.input.now {
                    self.draft.wait(Wait::BackOff { id: dead.id.clone(), exit: exit.clone(), until });
                    return self.draft.look_at(until);
                }
                (dead.restarts.saturating_add(1), streak, Cause::Exited { exit: exit.clone(), streak })
            }
            AfterExit::Replace => (dead.restarts, 0, self.cause.clone()),
            AfterExit::AtRest(wait) | AfterExit::Failed(wait) => return self.draft.wait(wait),
            AfterExit::ShutDown => {
                return self.draft.wait(Wait::ShutDown { id: dead.id.clone(), exit: exit.clone() });
            }
        };
        self.begin(Launch { id: self.id(dead.id.slot), restarts, streak, cause });
    }

    /// Makes members in the lowest slots in which nothing is.
    fn launch(&mut self) {
        if self.lacking == 0 || is_refused(self.draft, self.desired) || self.is_crashing() {
            return;
        }
        if self.lacking > self.may {
            self.look_when_due();
        }
        let taken: BTreeSet<u32> = self.members.all.iter().map(|(member, _)| member.id.slot).collect();
        let free: Vec<u32> =
            (0..).filter(|slot| !taken.contains(slot)).take(self.lacking.min(self.may) as usize).collect();
        for slot in free {
            let launch = Launch { id: self.id(slot), restarts: 0, streak: 0, cause: self.cause.clone() };
            self.begin(launch);
        }
    }

    /// Whether members of the template crash or are unhealthy, and none is good: so would more of them be.
    fn is_crashing(&self) -> bool {
        let fails = self.members.ending_unhealthy() > 0 || self.members.dead().any(|(dead, _)| crashed(dead));
        self.members.warm().is_empty() && fails
    }

    /// Makes a member, where it may begin now; a slot for which calls fail keeps its place among those that are wanted.
    fn begin(&mut self, launch: Launch) {
        if self.may == 0 {
            return self.look_when_due();
        }
        if may_not_begin(self.draft, self.desired, launch.id.slot, &launch.id) {
            return;
        }
        self.may -= 1;
        self.draft.launch(self.desired, launch);
    }

    /// Looks again when one more may be made.
    fn look_when_due(&mut self) {
        if let Some(at) = self.next_at {
            self.draft.look_at(at);
        }
    }

    fn next_attempt(&self, slot: u32) -> u32 {
        let seen = self.attempts.get(&slot).map_or(0, |attempt| attempt.saturating_add(1));
        self.members.next_attempt(slot).max(seen)
    }

    fn id(&self, slot: u32) -> InstanceId {
        InstanceId {
            deployment: self.draft.input.deployment.to_owned(),
            service: self.desired.name.clone(),
            slot,
            revision: self.desired.revision.clone(),
            attempt: self.next_attempt(slot),
            run: None,
        }
    }
}

/// What `pool.refill_rate` leaves now.
struct Pace {
    /// So many members may be made.
    may: u32,
    /// When one more may be.
    next_at: DateTime<Utc>,
}

impl Pace {
    /// By what was made lately; none where no rate is written.
    fn of(pool: &Pool, members: &Members<'_>, now: DateTime<Utc>) -> Option<Self> {
        let (count, within) = pool.refill_rate?.share();
        let mut made: Vec<DateTime<Utc>> = members.all.iter().map(|(member, _)| member.created_at).collect();
        made.retain(|at| after(*at, within) > now);
        made.sort_unstable();
        let oldest = made.get(made.len().saturating_sub(count as usize)).copied();
        let may = count.saturating_sub(u32::try_from(made.len()).unwrap_or(u32::MAX));
        Some(Self { may, next_at: after(oldest.unwrap_or(now), within) })
    }
}

/// Says when a free member is to be renewed, and when it is too old.
fn look_again(draft: &mut Draft<'_>, pool: &Pool, members: &Members<'_>) {
    let now = draft.input.now;
    for member in members.warm() {
        let times = [after(member.created_at, pool.warm_ttl() - renew_lead(pool)), cold_at(pool, member)];
        times.into_iter().filter(|at| *at > now).for_each(|at| draft.look_at(at));
    }
}

/// When a member is too old to be handed out.
pub fn cold_at(pool: &Pool, member: &Instance) -> DateTime<Utc> {
    after(member.created_at, pool.warm_ttl())
}

/// How long before a member is too old its successor is made.
pub(super) fn renew_lead(pool: &Pool) -> Duration {
    (pool.warm_ttl() / RENEW_SHARE).min(RENEW_LEAD)
}

/// Longest-warm first.
fn by_age(mut members: Vec<&Instance>) -> Vec<&Instance> {
    members.sort_by(|one, other| (one.created_at, &one.id).cmp(&(other.created_at, &other.id)));
    members
}
