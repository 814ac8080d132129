//! Who may work inside the members of pools: whoever has the token of the session, and nobody without it; whoever works
//! inside a free one spoils it for others.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;

use super::turns::Turn;
use super::{Held, Left, SessionMessage, Visit};
use crate::controller::EngineError;
use crate::controller::core::State;
use crate::controller::message::Message;
use crate::state::{Instance, InstanceRef, Phase, ServiceName, SessionId, SessionState, Target, Token};
use crate::store::SessionNote;

/// The way into an instance.
pub struct Entry {
    /// The instance.
    pub instance: Instance,
    /// What the session gives commands inside, references and all.
    pub env: BTreeMap<String, String>,
    /// Kept as long as somebody is inside; none where nobody minds.
    pub lease: Option<Lease>,
    /// The turn of whoever goes into the sandbox of a session, which may have to be thawed before.
    pub turn: Option<Turn>,
    /// Tells when it is written down that somebody has been inside.
    pub kept: Option<tokio::sync::oneshot::Receiver<Result<(), String>>>,
}

/// Closed when nobody may stay inside the member of a session who is there by the present token.
#[derive(Clone, Default)]
pub(super) struct Fence {
    closed: CancellationToken,
    why: Arc<OnceLock<String>>,
}

impl Fence {
    /// Has everybody leave, and tells why in words that follow the name of the session.
    pub(super) fn close(&self, why: String) {
        // What closed it first is the cause.
        let _ = self.why.set(why);
        self.closed.cancel();
    }
}

/// That somebody is inside a member; told once it is dropped.
pub struct Lease {
    what: Left,
    fence: Fence,
    reports: mpsc::Sender<Message>,
}

impl Lease {
    /// Waits until nobody may be inside any more.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        self.fence.closed.clone().cancelled_owned()
    }

    /// Waits until nobody may be inside any more, and tells why.
    pub fn ended_why(&self) -> impl Future<Output = String> + Send + 'static {
        let (ended, what, fence) = (self.ended(), self.what.clone(), self.fence.clone());
        async move {
            ended.await;
            why_over(&what, &fence)
        }
    }

    /// Whether that is so already.
    pub fn has_ended(&self) -> bool {
        self.fence.closed.is_cancelled()
    }

    /// Why that is.
    pub fn why(&self) -> String {
        why_over(&self.what, &self.fence)
    }
}

fn why_over(what: &Left, fence: &Fence) -> String {
    match what {
        Left::Session(id, _) => {
            format!("the session {id} {}", fence.why.get().map_or("is not over", String::as_str))
        }
        Left::Member(..) => "the instance is being removed".to_owned(),
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let message = Message::Session(Box::new(SessionMessage::Left(self.what.clone())));
        if let Err(TrySendError::Full(message)) = self.reports.try_send(message)
            && let Ok(handle) = tokio::runtime::Handle::try_current()
        {
            let reports = self.reports.clone();
            // A core that has ended needs no report.
            handle.spawn(async move { drop(reports.send(message).await) });
        }
    }
}

impl State {
    /// Opens the way into an instance that a name covers, or into that of a session.
    pub(super) fn enter(&mut self, target: &Target, token: Option<&Token>) -> Result<Entry, EngineError> {
        if target.service.is_none() && SessionId::is_meant_by(&target.deployment) {
            let id: SessionId = target.deployment.parse().map_err(|error| EngineError::Invalid(format!("{error}")))?;
            self.owned(&id, token)?;
            return self.enter_session(&id);
        }
        if let Some(id) = token.and_then(|token| self.session_inside(target, token)) {
            return self.enter_session(&id);
        }
        let instance = self.instance_to_enter(target)?;
        let member = instance.as_ref();
        let pool = instance.id.service_name();
        if let Some(holder) = self.sessions.holder(&pool.deployment, &member) {
            return Err(claimed(&instance, holder, token.is_some()));
        }
        if token.is_some() && self.pool(&pool).is_some() {
            // Its session is over, or never was: what is meant for that sandbox must not run in another one.
            return Err(EngineError::Conflict(format!("the token is that of no session in {target}")));
        }
        if self.pool(&pool).is_none() && !self.is_spent(&member) {
            return Ok(Entry { instance, env: BTreeMap::new(), lease: None, turn: None, kept: None });
        }
        self.visit(pool, instance)
    }

    /// The session whose member the name covers and whose token it is.
    fn session_inside(&self, target: &Target, token: &Token) -> Option<SessionId> {
        let is_it =
            |held: &&Held| held.session.is_live() && held.claim.is_none() && target.covers(&held.session.instance.id);
        let mut of_target = self.sessions.open(&target.deployment).filter(is_it);
        of_target.find(|held| held.session.token.is_of(token)).map(|held| held.session.id.clone())
    }

    /// The newest running instance of the lowest slot that the name covers; of a pool, one that nobody has where there is one.
    fn instance_to_enter(&self, target: &Target) -> Result<Instance, EngineError> {
        let is_open = |one: &&Instance| {
            let frozen = matches!(one.phase, Phase::Paused { .. })
                && self.sessions.holder(&one.id.deployment, &one.as_ref()).is_some();
            matches!(one.phase, Phase::Running { .. }) || frozen
        };
        let covered = self.cache.of(&target.deployment).filter(|one| target.covers(&one.id)).filter(is_open);
        let found = covered.min_by(|one, other| {
            let key = |one: &Instance| {
                let member = one.as_ref();
                let of_member = |held: &Held| !held.session.removed && held.session.instance == member;
                let is_taken = self.sessions.open(&one.id.deployment).any(of_member);
                (is_taken, one.id.service.clone(), one.id.slot)
            };
            key(one).cmp(&key(other)).then(other.created_at.cmp(&one.created_at))
        });
        let none = || EngineError::NotFound(format!("{target} has no running instance; see keel get instances"));
        found.cloned().ok_or_else(none)
    }

    fn enter_session(&mut self, id: &SessionId) -> Result<Entry, EngineError> {
        let (now, reports) = (self.now().0, self.reports());
        let gone = || EngineError::NotFound(format!("there is no session {id}"));
        let member = self.sessions.all.get(id).ok_or_else(gone)?.session.instance.clone();
        if !self.hosts_sessions(&member.id.deployment) {
            return Err(EngineError::Conflict(format!(
                "no controller runs, and the next one would not know of who is inside the session {id}, so that it ended it \
                 as unused; start one with keel run"
            )));
        }
        let instance = self.cache.get(member.runtime, &member.runtime_id).cloned();
        let instance =
            instance.ok_or_else(|| EngineError::NotFound(format!("the sandbox of the session {id} is gone")))?;
        let turn = self.turn(id)?;
        let held = self.sessions.all.get_mut(id).ok_or_else(gone)?;
        held.inside += 1;
        held.session.last_active_at = now;
        if held.session.state == SessionState::Detached {
            // Who works inside is there.
            held.session.state = SessionState::Active;
        }
        let lease = Lease { what: Left::Session(id.clone(), held.holders), fence: held.fence.clone(), reports };
        let env = held.session.env.clone();
        self.sessions.touch();
        drop(self.sessions.keep(id));
        Ok(Entry { instance, env, lease: Some(lease), turn: Some(turn), kept: None })
    }

    /// Whether it is known here, and kept, who is inside the members of the pools of a deployment.
    fn hosts_sessions(&self, deployment: &str) -> bool {
        self.sessions.keeper.is_some() || self.covers(deployment)
    }

    fn is_spent(&self, member: &InstanceRef) -> bool {
        self.sessions.visited.contains_key(&(member.runtime, member.runtime_id.clone()))
    }

    /// Lets somebody into a member that no session has; nobody gets it after that.
    fn visit(&mut self, pool: ServiceName, instance: Instance) -> Result<Entry, EngineError> {
        if !self.hosts_sessions(&pool.deployment) {
            return Err(EngineError::Conflict(format!(
                "members of the pool {pool} are entered through a running controller, which hands out no member that \
                 somebody has been inside; start one with keel run"
            )));
        }
        let member = instance.as_ref();
        let key = (member.runtime, member.runtime_id.clone());
        let is_used_up = |held: &Held| !held.session.removed && held.session.instance == member;
        if self.sessions.open(&pool.deployment).any(is_used_up) {
            return Err(EngineError::NotFound(format!("{} is being removed, as its session has ended", instance.id)));
        }
        if let Some(warm) = self.sessions.warm.get_mut(&pool) {
            warm.retain(|(other, _)| *other != member);
        }
        let note = SessionNote::Spent { pool: pool.clone(), runtime: key.0, runtime_id: key.1.clone() };
        let kept = Some(self.sessions.note(note));
        let visit = self.sessions.visited.entry(key).or_insert_with(|| Visit { pool: pool.clone(), inside: 0 });
        visit.inside += 1;
        self.queue.add(&pool.deployment, tokio::time::Instant::now());
        let what = Left::Member(member.runtime, member.runtime_id);
        let lease = Lease { what, fence: Fence::default(), reports: self.reports() };
        Ok(Entry { instance, env: BTreeMap::new(), lease: Some(lease), turn: None, kept })
    }

    /// Somebody is inside no longer.
    pub(super) fn left(&mut self, left: Left) {
        let (now, at) = self.now();
        match left {
            Left::Session(id, holder) => {
                let Some(held) = self.sessions.all.get_mut(&id).filter(|held| held.holders == holder) else { return };
                held.inside = held.inside.saturating_sub(1);
                if held.session.is_live() {
                    held.session.last_active_at = now;
                    drop(self.sessions.keep(&id));
                }
            }
            Left::Member(runtime, runtime_id) => {
                let Some(visit) = self.sessions.visited.get_mut(&(runtime, runtime_id)) else { return };
                visit.inside = visit.inside.saturating_sub(1);
                self.queue.add(&visit.pool.deployment, at);
            }
        }
        self.sessions.touch();
    }
}

impl State {
    /// Takes note that instances are in use, but those that sessions have: a session is as idle as its own calls say, and
    /// whoever has its token makes them.
    ///
    /// # Errors
    /// Nothing runs that is covered, or nothing but what sessions have; no controller runs.
    pub(in crate::controller) fn touch_unclaimed(&mut self, target: &Target) -> Result<Vec<String>, EngineError> {
        let lives = |one: &&Instance| matches!(one.phase, Phase::Running { .. } | Phase::Paused { .. });
        let covered = self.cache.of(&target.deployment).filter(lives).filter(|one| target.covers(&one.id));
        let held = covered.map(|one| (one, self.sessions.holder(&target.deployment, &one.as_ref())));
        let (claimed, free): (Vec<_>, Vec<_>) = held.partition(|(_, holder)| holder.is_some());
        if let ([(one, Some(holder)), ..], []) = (&claimed[..], &free[..]) {
            let id = &holder.session.id;
            return Err(EngineError::Conflict(format!(
                "the session {id} has {}; keel session touch {id} with its token (--token or KEEL_SESSION_TOKEN) says that it \
                 is in use",
                one.id
            )));
        }
        let free: Vec<Instance> = free.into_iter().map(|(one, _)| one.clone()).collect();
        self.touch(target, &free)
    }
}

/// Why somebody may not enter a member that a session has.
fn claimed(instance: &Instance, holder: &Held, has_token: bool) -> EngineError {
    let id = &holder.session.id;
    EngineError::Conflict(match has_token {
        true => format!("the token is not that of the session {id}, which has {}", instance.id),
        false => format!("the session {id} has {}; name its token with --token or KEEL_SESSION_TOKEN", instance.id),
    })
}
