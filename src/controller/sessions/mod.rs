//! Sessions: who has which member of a pool. The core owns them, so that two claims never get one member; what it decides
//! is written down before anybody is told, and runtimes are called in tasks of their own.

mod again;
mod book;
mod claim;
mod engine;
mod inside;
mod mounts;
mod request;
mod turns;
mod verbs;
mod watch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Read;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

pub use self::book::{KeepSessions, KeptSessions, SessionBook};
pub use self::claim::Claim;
use self::inside::Fence;
pub use self::inside::{Entry, Lease};
pub use self::request::{
    AcquireRequest, Acquired, CLAIM_TIMEOUT, CLAIM_TIMEOUT_MAX, SessionChanged, SessionRequest, SessionStats,
    SessionVerb, SessionView,
};
use self::turns::Stand;
pub use self::turns::{Call, Purpose, Todo, Turn};
pub use self::verbs::Changed;
use super::core::State;
use super::memory::Kept;
use super::message::Message;
use super::{EngineError, open};
use crate::runtime::{self, Runtime};
use crate::spec::{Pool, RuntimeKind};
use crate::state::{
    Instance, InstanceRef, SECRET_BYTES, ServiceName, Session, SessionEnd, SessionId, SessionState, Target, Token,
};
use crate::store::SessionNote;

/// Sessions of one pool, and of all pools together that are gone, that are kept after their end: what its statistics are made
/// of, and for how long it is told why a session ended. About a kilobyte each.
pub const ENDED_SESSIONS: usize = 1000;

/// As many more may be kept for a while, so that not every end of a session has all of them looked through.
const ENDED_SLACK: usize = 100;

/// How long calls of a controller that was killed may still have an effect: an engine carries out what it was asked for.
const LATE_CALLS: TimeDelta = TimeDelta::seconds(1);

/// The runtime and the runtime's own id.
type Member = (RuntimeKind, String);

/// What reaches the core of sessions from its own tasks.
pub enum SessionMessage {
    /// Whether a session was written down, and how its member was found.
    Confirmed(SessionId, Box<Confirmation>),
    /// What was mounted for a claim into its member, or not.
    Mounted(SessionId, Box<(Instance, runtime::Result<()>)>),
    /// A claim for a session that is held already, which gives what is required.
    Again(Box<Claim>),
    /// Somebody works inside a member no longer.
    Left(Left),
    /// The sandbox of a suspended session that ran is frozen, or it is told why it can't be.
    FrozenAgain(SessionId, Result<(), String>),
    /// Bytes of memory that these many free members of a pool hold together.
    Measured(ServiceName, u64, u32),
}

/// What became of a claim on its way.
pub struct Confirmation {
    kept: Result<(), String>,
    found: runtime::Result<Option<Instance>>,
    /// Controls that are asked for and do not hold, and why.
    unmet: Vec<String>,
}

/// What somebody worked inside of.
#[derive(Debug, Clone)]
pub enum Left {
    /// The member of a session, in the time of this number of its holders.
    Session(SessionId, u64),
    /// A member that no session has.
    Member(RuntimeKind, String),
}

/// What callers ask of the core about sessions.
pub enum SessionCommand {
    /// Claim a member.
    Acquire(Box<Claim>),
    /// The pools that are declared.
    Pools(oneshot::Sender<Vec<PoolInfo>>),
    /// Do something with a session.
    Change(SessionRequest, oneshot::Sender<Result<Changed, EngineError>>),
    /// It is somebody's turn to call the runtime for a session.
    Turn(SessionId, Purpose, oneshot::Sender<Todo>),
    /// What was to be done in a turn is done, or it is told why not.
    Turned(SessionId, Call, Result<(), String>, oneshot::Sender<Option<SessionView>>),
    /// Somebody wants to work inside an instance.
    Enter(Target, Option<Token>, oneshot::Sender<Result<Entry, EngineError>>),
    /// All sessions, those that have ended among them.
    List(oneshot::Sender<Vec<SessionView>>),
    /// Statistics of all sessions.
    Stats(oneshot::Sender<SessionStats>),
}

/// A pool that is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolInfo {
    /// Name.
    pub name: ServiceName,
    /// Runtime of its members.
    pub runtime: RuntimeKind,
    /// Labels of its spec.
    pub labels: BTreeMap<String, String>,
    /// One of its members that can be handed out, if any.
    pub member: Option<InstanceRef>,
}

/// Everything that is known of sessions.
pub(super) struct Sessions {
    all: BTreeMap<SessionId, Held>,
    /// Those of which a member is there, or may be, by deployment.
    open: BTreeMap<String, BTreeSet<SessionId>>,
    /// All of them, by pool.
    of_pool: BTreeMap<ServiceName, BTreeSet<SessionId>>,
    /// What is told of claims, as it was last counted.
    figures: BTreeMap<ServiceName, watch::Figures>,
    /// Members that somebody has had, or works inside of, and that no session tells of.
    visited: BTreeMap<Member, Visit>,
    /// Claims that wait for a member, by pool, the oldest first.
    waiting: BTreeMap<ServiceName, VecDeque<Claim>>,
    /// When claims came that got no member, by pool, the oldest first; [`ENDED_SESSIONS`] of each pool at most.
    unmet: BTreeMap<ServiceName, VecDeque<DateTime<Utc>>>,
    /// Members that can be handed out, by pool, the longest-warm first.
    warm: BTreeMap<ServiceName, Vec<(InstanceRef, DateTime<Utc>)>>,
    /// Highest attempt that was seen in each slot of a pool.
    attempts: BTreeMap<ServiceName, BTreeMap<u32, u32>>,
    /// Memory that free members hold, as it was last measured.
    memory: BTreeMap<ServiceName, watch::Memory>,
    since: Option<DateTime<Utc>>,
    keeper: Option<Arc<dyn KeepSessions>>,
    /// Until when members may come into being that a controller before this one asked for.
    settles: Option<DateTime<Utc>>,
    /// When time alone changes something; now where that is not known.
    next: Option<Instant>,
}

/// A session, and who is inside.
struct Held {
    session: Session,
    /// Commands and attached clients of its present holder.
    inside: usize,
    /// How many holders it had before.
    holders: u64,
    /// Whether its sandbox is to be frozen.
    stand: Stand,
    /// Told when nobody may be inside any more.
    fence: Fence,
    /// The claim, until the member is handed out.
    claim: Option<Box<Claim>>,
}

/// Somebody works inside a member that no session has, or did.
struct Visit {
    pool: ServiceName,
    inside: usize,
}

impl Held {
    fn of(session: Session, claim: Option<Box<Claim>>) -> Self {
        let stand = Stand::of(&session.state);
        Self { session, inside: 0, holders: 0, stand, fence: Fence::default(), claim }
    }
}

impl Sessions {
    /// What is remembered, from now on.
    pub(super) fn new(kept: KeptSessions, now: DateTime<Utc>) -> Self {
        let KeptSessions { sessions, spent, since, keeper, follows } = kept;
        let mut all = Self {
            all: BTreeMap::new(),
            open: BTreeMap::new(),
            of_pool: BTreeMap::new(),
            figures: BTreeMap::new(),
            visited: spent.into_iter().map(|(member, pool)| (member, Visit { pool, inside: 0 })).collect(),
            waiting: BTreeMap::new(),
            unmet: BTreeMap::new(),
            warm: BTreeMap::new(),
            attempts: BTreeMap::new(),
            memory: BTreeMap::new(),
            since,
            keeper,
            settles: follows.then(|| now + LATE_CALLS),
            next: None,
        };
        for mut session in sessions {
            if session.state == SessionState::Active {
                // Nobody watched who was inside since it was written down.
                session.last_active_at = session.last_active_at.max(now);
            }
            all.insert(Held::of(session, None));
        }
        all
    }

    fn insert(&mut self, held: Held) {
        let (id, pool) = (held.session.id.clone(), held.session.pool.clone());
        if !held.session.removed {
            self.open.entry(pool.deployment.clone()).or_default().insert(id.clone());
        }
        self.of_pool.entry(pool).or_default().insert(id.clone());
        self.all.insert(id, held);
    }

    /// Notes that nothing is left of the member of a session.
    fn close(&mut self, id: &SessionId) {
        let Some(held) = self.all.get_mut(id) else { return };
        held.session.removed = true;
        let deployment = &held.session.pool.deployment;
        if let Some(open) = self.open.get_mut(deployment) {
            open.remove(id);
            if open.is_empty() {
                self.open.remove(deployment);
            }
        }
    }

    fn remove(&mut self, id: &SessionId) -> Option<Held> {
        self.close(id);
        let held = self.all.remove(id)?;
        let pool = &held.session.pool;
        if let Some(of_pool) = self.of_pool.get_mut(pool) {
            of_pool.remove(id);
            if of_pool.is_empty() {
                self.of_pool.remove(pool);
            }
        }
        Some(held)
    }

    /// The sessions of a deployment of which a member is there, or may be; all that live are among them.
    fn open(&self, deployment: &str) -> impl Iterator<Item = &Held> + Clone {
        self.open.get(deployment).into_iter().flatten().filter_map(|id| self.all.get(id))
    }

    /// The same of a pool.
    fn open_in<'a>(&'a self, pool: &'a ServiceName) -> impl Iterator<Item = &'a Held> + Clone {
        self.open(&pool.deployment).filter(move |held| held.session.pool == *pool)
    }

    /// The sessions of a pool that were handed out, for its statistics.
    fn handed_out<'a>(&'a self, pool: &ServiceName) -> impl Iterator<Item = &'a Session> + Clone {
        let all = self.of_pool.get(pool).into_iter().flatten().filter_map(|id| self.all.get(id));
        all.filter(|held| held.claim.is_none()).map(|held| &held.session)
    }

    /// Notes that a claim got no member, for the statistics of its pool.
    fn note_unmet(&mut self, claim: &Claim) {
        let of_pool = self.unmet.entry(claim.pool.clone()).or_default();
        of_pool.push_back(claim.asked.0);
        of_pool.drain(..of_pool.len().saturating_sub(ENDED_SESSIONS));
    }

    /// When claims of a pool came that got no member.
    fn unmet_of<'a>(&'a self, pool: &ServiceName) -> impl Iterator<Item = DateTime<Utc>> + Clone + 'a {
        self.unmet.get(pool).into_iter().flatten().copied()
    }

    /// The session that has a member.
    fn holder(&self, deployment: &str, member: &InstanceRef) -> Option<&Held> {
        let has = |held: &&Held| {
            let instance = &held.session.instance;
            instance.runtime == member.runtime && instance.runtime_id == member.runtime_id
        };
        self.open(deployment).filter(|held| held.session.is_live()).find(has)
    }

    /// Hands a session to whoever keeps them; the receiver tells when it is written.
    fn keep(&self, id: &SessionId) -> Option<oneshot::Receiver<Result<(), String>>> {
        let session = self.all.get(id)?.session.clone();
        Some(self.note(SessionNote::Session(Box::new(session))))
    }

    fn note(&self, note: SessionNote) -> oneshot::Receiver<Result<(), String>> {
        let (kept, written): (Kept, _) = oneshot::channel();
        match &self.keeper {
            Some(keeper) => keeper.keep(note, Some(kept)),
            // Nobody keeps it, which is as good as that it is kept.
            None => drop(kept.send(Ok(()))),
        }
        written
    }

    /// Says that something changed that time may act on.
    pub(super) fn touch(&mut self) {
        self.next = Some(Instant::now());
    }

    /// Forgets the oldest sessions of a pool that have ended and of which nothing is left, beyond those that are kept.
    fn prune(&mut self, pool: &ServiceName) {
        let Some(of_pool) = self.of_pool.get(pool) else { return };
        if of_pool.len() <= ENDED_SESSIONS + ENDED_SLACK {
            return;
        }
        let over = of_pool.iter().filter_map(|id| self.all.get(id)).filter(|held| held.session.removed);
        let ended = over.map(|held| (held.session.created_at, held.session.id.clone())).collect();
        self.forget_oldest(ended);
    }

    /// The same of all pools together that are gone, of which there may be any number.
    fn prune_gone(&mut self, is_gone: impl Fn(&ServiceName) -> bool) {
        let of_gone = self.of_pool.iter().filter(|(pool, _)| is_gone(pool)).flat_map(|(_, ids)| ids);
        let over = of_gone.filter_map(|id| self.all.get(id)).filter(|held| held.session.removed);
        let ended = over.map(|held| (held.session.created_at, held.session.id.clone())).collect();
        self.forget_oldest(ended);
    }

    /// Forgets those beyond [`ENDED_SESSIONS`] that were acquired first.
    fn forget_oldest(&mut self, mut ended: Vec<(DateTime<Utc>, SessionId)>) {
        let surplus = ended.len().saturating_sub(ENDED_SESSIONS);
        ended.sort();
        for (_, id) in ended.into_iter().take(surplus) {
            self.remove(&id);
            drop(self.note(SessionNote::Forget(id)));
        }
    }
}

/// Waits until a session is written down.
pub(super) async fn written(kept: Option<oneshot::Receiver<Result<(), String>>>) -> Result<(), String> {
    match kept {
        Some(kept) => kept.await.unwrap_or_else(|_| Err("the controller is ending".to_owned())),
        None => Ok(()),
    }
}

/// Random bytes of the machine.
///
/// # Errors
/// It gives none.
fn random() -> std::io::Result<[u8; SECRET_BYTES]> {
    let mut bytes = [0; SECRET_BYTES];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl State {
    pub(super) fn session_command(&mut self, command: SessionCommand) {
        // A caller that has gone needs no answer.
        match command {
            SessionCommand::Acquire(claim) => self.acquire(claim),
            SessionCommand::Pools(reply) => drop(reply.send(self.pools())),
            SessionCommand::Change(request, reply) => drop(reply.send(self.change_session(request))),
            SessionCommand::Turn(id, purpose, reply) => drop(reply.send(self.turn_begins(&id, purpose))),
            SessionCommand::Turned(id, call, done, reply) => drop(reply.send(self.turn_ends(&id, call, done))),
            SessionCommand::Enter(target, token, reply) => drop(reply.send(self.enter(&target, token.as_ref()))),
            SessionCommand::List(reply) => drop(reply.send(self.session_views())),
            SessionCommand::Stats(reply) => drop(reply.send(self.session_stats())),
        }
    }

    pub(super) fn session_message(&mut self, message: SessionMessage) {
        match message {
            SessionMessage::Again(claim) => self.acquire(claim),
            SessionMessage::Confirmed(id, confirmation) => self.confirmed(&id, *confirmation),
            SessionMessage::Mounted(id, mounted) => self.mounted(&id, &mounted.0, mounted.1),
            SessionMessage::Left(left) => self.left(left),
            SessionMessage::FrozenAgain(id, done) => drop(self.turn_ends(&id, Call::Freeze, done)),
            SessionMessage::Measured(pool, bytes, members) => self.memory_measured(pool, bytes, members),
        }
    }

    /// The pools that are declared and acted on.
    fn pools(&self) -> Vec<PoolInfo> {
        let deployments =
            self.declared.desired.deployments.values().filter(|one| !self.removing.contains_key(&one.name));
        let services = deployments.flat_map(|one| one.services.values().map(move |service| (one, service)));
        let pools = services.filter(|(_, service)| service.spec.pool.is_some());
        let info = pools.map(|(deployment, service)| {
            let name = ServiceName { deployment: deployment.name.clone(), service: service.name.clone() };
            PoolInfo {
                member: self.sessions.warm.get(&name).and_then(|warm| Some(warm.first()?.0.clone())),
                name,
                runtime: service.runtime,
                labels: service.spec.labels.iter().map(|(name, value)| (name.clone(), value.0.clone())).collect(),
            }
        });
        info.collect()
    }

    /// What is declared of a pool.
    fn pool(&self, name: &ServiceName) -> Option<&Pool> {
        let deployment = self.declared.desired.deployments.get(&name.deployment)?;
        let is_wanted = !self.removing.contains_key(&name.deployment);
        deployment.services.get(&name.service).filter(|_| is_wanted)?.spec.pool.as_ref()
    }

    /// Ends a session: whoever is inside is told, and its member goes.
    fn end_session(&mut self, id: &SessionId, why: SessionEnd) -> Option<oneshot::Receiver<Result<(), String>>> {
        let (now, at) = self.now();
        let held = self.sessions.all.get_mut(id).filter(|held| held.session.is_live())?;
        let why = match (&held.claim, why) {
            (Some(_), SessionEnd::SandboxEnded { how }) => SessionEnd::NotHandedOut { how },
            (_, why) => why,
        };
        held.fence.close(format!("is over: it {why}"));
        let pool = held.session.pool.clone();
        let message = format!("session {id} of {} {why}", held.session.client);
        held.session.state = SessionState::Ended { why: why.clone(), at: now };
        // Nobody runs anything with it any more.
        held.session.env.clear();
        match why {
            SessionEnd::Released | SessionEnd::Terminated => tracing::debug!("{message}"),
            _ => {
                tracing::info!("{pool}: {message}");
                self.record_event(Some(&pool.deployment), "SessionEnded", format!("{pool}: {message}"));
            }
        }
        self.queue.add(&pool.deployment, at);
        self.sessions.touch();
        let kept = self.sessions.keep(id);
        self.sessions.prune(&pool);
        kept
    }

    /// The adapter of a member's runtime.
    fn runtime_of(&self, member: &InstanceRef) -> Option<Arc<dyn Runtime>> {
        self.runtimes.get(&member.runtime).map(|attached| attached.runtime.clone())
    }

    /// Where the core's own tasks report.
    fn reports(&self) -> mpsc::Sender<Message> {
        self.messages.clone()
    }
}

/// The secrets of a new session.
fn new_secrets() -> Result<(SessionId, Token), EngineError> {
    let bytes = random().map_err(open::local("no random numbers can be read"))?;
    Ok(crate::state::secrets(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::InstanceId;

    /// A session of a pool that is over, acquired at that second.
    fn ended(pool: &ServiceName, second: u32) -> Session {
        let at: DateTime<Utc> = DateTime::UNIX_EPOCH + chrono::TimeDelta::seconds(i64::from(second));
        let mut bytes = [0; SECRET_BYTES];
        bytes[..4].copy_from_slice(&second.to_be_bytes());
        let (id, token) = crate::state::secrets(&bytes);
        Session {
            id,
            pool: pool.clone(),
            instance: InstanceRef {
                runtime: RuntimeKind::Sim,
                runtime_id: second.to_string(),
                id: InstanceId {
                    deployment: pool.deployment.clone(),
                    service: pool.service.clone(),
                    slot: 0,
                    revision: "v1-0123456789abcdef".parse().unwrap(),
                    attempt: second,
                    run: None,
                },
            },
            client: "agent".to_owned(),
            token: token.digest(),
            state: SessionState::Ended { why: SessionEnd::PoolRemoved, at },
            created_at: at,
            last_active_at: at,
            warm: true,
            elapsed_ms: 0.0,
            answered: true,
            made_ms: 0.0,
            env: BTreeMap::new(),
            labels: BTreeMap::new(),
            mounts: Vec::new(),
            sandbox: None,
            removed: true,
        }
    }

    #[test]
    fn of_all_pools_that_are_gone_the_latest_sessions_are_kept_and_no_more() {
        let pool = |name: &str| ServiceName { deployment: name.to_owned(), service: "box".to_owned() };
        let count = u32::try_from(ENDED_SESSIONS).unwrap();
        let (one, other, there) = (pool("one"), pool("other"), pool("there"));
        let of_gone = (1..=count + 2).map(|second| ended(if second % 2 == 0 { &one } else { &other }, second));
        let sessions = of_gone.chain([ended(&there, 0)]).collect();
        let mut all = Sessions::new(KeptSessions { sessions, ..KeptSessions::default() }, DateTime::UNIX_EPOCH);
        all.prune_gone(|pool| *pool != there);
        let mut seconds: Vec<u32> = all.all.values().map(|held| held.session.instance.id.attempt).collect();
        seconds.sort_unstable();
        assert_eq!(seconds, [0].into_iter().chain(3..=count + 2).collect::<Vec<u32>>());
    }
}
