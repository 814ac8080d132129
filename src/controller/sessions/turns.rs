//! Freezes and thaws the sandboxes of sessions: one call to the runtime at a time for each session, and each does what was
//! ordered last, so that a sandbox stands as its session says whatever came at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};
use tokio::time::Instant;

use super::request::SessionView;
use super::{Held, Member, SessionCommand, SessionMessage};
use crate::controller::EngineError;
use crate::controller::core::State;
use crate::controller::engine::{ask, cannot};
use crate::controller::message::{Command, Message};
use crate::runtime::Runtime;
use crate::state::{InstanceRef, Phase, SessionId, SessionState};

/// Time after a call within which a sandbox that seems to run may only not have been looked at since.
const SETTLES: Duration = Duration::from_secs(2);

/// How the sandbox of a session is to stand, and who makes it so.
pub(super) struct Stand {
    /// The last order.
    order: Call,
    /// How many orders there were.
    orders: u64,
    /// The last call that failed: all orders for it up to this number were undone, and why.
    failed: Option<(Call, u64, String)>,
    /// State of the session before it was.
    before: SessionState,
    /// Held by whoever calls the runtime, and kept by whoever is going to.
    line: Arc<Mutex<()>>,
    /// When a call was last over.
    turned: Option<Instant>,
}

impl Stand {
    /// That of a session in this state.
    pub(super) fn of(state: &SessionState) -> Self {
        let order = if *state == SessionState::Suspended { Call::Freeze } else { Call::Thaw };
        Self { order, orders: 0, failed: None, before: SessionState::Active, line: Arc::default(), turned: None }
    }

    /// Whether somebody calls the runtime, or is about to.
    fn is_awaited(&self) -> bool {
        Arc::strong_count(&self.line) > 1
    }

    /// Why an order was undone, where it was.
    fn undone(&self, order: StandOrder) -> Option<String> {
        let failed = self.failed.as_ref();
        let (_, _, why) = failed.filter(|(call, last, _)| *call == order.call && order.number <= *last)?;
        Some(why.clone())
    }
}

/// What is asked of the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// The sandbox is to be frozen.
    Freeze,
    /// It is to run on.
    Thaw,
}

/// One order of how a sandbox is to stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandOrder {
    call: Call,
    /// Its place among the orders for the session, from 1.
    number: u64,
}

/// What a turn is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The sandbox is made to stand as was ordered last, by this order or one after it.
    AsOrdered(StandOrder),
    /// Somebody works inside, for which it has to run.
    Use,
}

/// What is to be done in a turn.
pub struct Todo {
    /// Nothing where it stands as it is to, or why the order that the turn is for was undone.
    call: Result<Option<Call>, String>,
    /// The session, as it is shown.
    view: Option<SessionView>,
}

/// The right to call the runtime for a session, once it is one's turn.
pub struct Turn {
    id: SessionId,
    member: InstanceRef,
    runtime: Arc<dyn Runtime>,
    line: Arc<Mutex<()>>,
    core: mpsc::Sender<Message>,
}

/// The turn of an order.
pub struct OrderedTurn {
    turn: Turn,
    order: StandOrder,
}

impl OrderedTurn {
    /// Makes the sandbox stand as was ordered last; gives the session as it is shown then.
    ///
    /// # Errors
    /// The runtime fails, in this turn or in that of somebody else who carried out the same order, and the session stands as
    /// before; the controller has ended.
    pub async fn settle(self) -> Result<Option<SessionView>, EngineError> {
        let _place = self.turn.line.clone().lock_owned().await;
        self.turn.carry_out(Purpose::AsOrdered(self.order)).await
    }
}

impl Turn {
    /// Whether the runtime freezes anything.
    ///
    /// # Errors
    /// It does not.
    pub(super) fn can_freeze(&self) -> Result<(), EngineError> {
        let suspend = self.runtime.suspend().map(drop);
        suspend.ok_or_else(|| cannot(self.member.runtime, "freeze instances"))
    }

    /// Lets the sandbox run on where it is frozen, and keeps it so for as long as what is given is held.
    ///
    /// # Errors
    /// The runtime fails; the controller has ended.
    pub async fn open(self) -> Result<OwnedMutexGuard<()>, EngineError> {
        let place = self.line.clone().lock_owned().await;
        self.carry_out(Purpose::Use).await?;
        Ok(place)
    }

    async fn carry_out(&self, purpose: Purpose) -> Result<Option<SessionView>, EngineError> {
        let turn = |reply| Command::Session(SessionCommand::Turn(self.id.clone(), purpose, reply));
        let Todo { call, view } = ask(&self.core, turn).await?;
        let Some(call) = call.map_err(EngineError::Conflict)? else { return Ok(view) };
        let done = make(call, &*self.runtime, &self.member).await;
        let told = done.as_ref().map_err(ToString::to_string).copied();
        let turned = |reply| Command::Session(SessionCommand::Turned(self.id.clone(), call, told, reply));
        let view = ask(&self.core, turned).await?;
        done.map(|()| view)
    }
}

async fn make(call: Call, runtime: &dyn Runtime, member: &InstanceRef) -> Result<(), EngineError> {
    let suspend = runtime.suspend().ok_or_else(|| cannot(member.runtime, "freeze instances"))?;
    match call {
        Call::Freeze => suspend.pause(member).await?,
        Call::Thaw => suspend.resume(member).await?,
    };
    Ok(())
}

impl State {
    /// A turn for a session.
    ///
    /// # Errors
    /// There is no such session, or its runtime is not there.
    pub(super) fn turn(&self, id: &SessionId) -> Result<Turn, EngineError> {
        let held = self.sessions.all.get(id);
        let held = held.ok_or_else(|| EngineError::NotFound(format!("there is no session {id}")))?;
        let member = held.session.instance.clone();
        let runtime = self.runtime_of(&member);
        let runtime = runtime.ok_or_else(|| EngineError::Conflict(format!("{} does not answer", member.runtime)))?;
        Ok(Turn { id: id.clone(), member, runtime, line: held.stand.line.clone(), core: self.reports() })
    }

    /// Orders that the sandbox of a session be frozen or run on, in this turn; the state of the session says so once that is
    /// done.
    pub(super) fn order_stand(&mut self, turn: Turn, call: Call) -> Result<OrderedTurn, EngineError> {
        let id = &turn.id;
        let held = self.sessions.all.get_mut(id);
        let held = held.ok_or_else(|| EngineError::NotFound(format!("there is no session {id}")))?;
        if held.session.state != SessionState::Suspended {
            held.stand.before = held.session.state.clone();
        }
        held.stand.order = call;
        held.stand.orders += 1;
        let number = held.stand.orders;
        Ok(OrderedTurn { turn, order: StandOrder { call, number } })
    }

    /// What whoever has the turn is to do.
    pub(super) fn turn_begins(&mut self, id: &SessionId, purpose: Purpose) -> Todo {
        let held = self.sessions.all.get_mut(id);
        let call = held.map_or(Ok(None), |held| {
            let is_suspended = held.session.state == SessionState::Suspended;
            match purpose {
                Purpose::AsOrdered(order) => match held.stand.undone(order) {
                    Some(why) => Err(why),
                    None => Ok(is_suspended.then_some(held.stand.order)),
                },
                Purpose::Use => Ok(is_suspended.then(|| {
                    // The next use thaws it, whatever was ordered before.
                    held.stand.order = Call::Thaw;
                    Call::Thaw
                })),
            }
        });
        Todo { call, view: self.session_view(id) }
    }

    /// What was to be done is done, or it is told why not.
    pub(super) fn turn_ends(&mut self, id: &SessionId, call: Call, done: Result<(), String>) -> Option<SessionView> {
        let at = self.now().1;
        let held = self.sessions.all.get_mut(id)?;
        held.stand.turned = Some(at);
        let is_suspended = held.session.state == SessionState::Suspended;
        // What was ordered since has a turn of its own.
        if is_suspended && held.stand.order == call {
            let (order, state) = match (call, &done) {
                (Call::Freeze, Ok(())) | (Call::Thaw, Err(_)) => (Call::Freeze, SessionState::Suspended),
                (Call::Freeze, Err(_)) => (Call::Thaw, held.stand.before.clone()),
                (Call::Thaw, Ok(())) => (Call::Thaw, SessionState::Active),
            };
            held.stand.order = order;
            if let Err(why) = done {
                held.stand.failed = Some((call, held.stand.orders, why));
            }
            drop(self.set_state(id, state));
        }
        self.session_view(id)
    }

    /// Freezes the sandboxes of suspended sessions that run all the same: the controller was killed before it had them frozen,
    /// or somebody else let them run on.
    pub(super) fn freeze_again(&mut self, deployment: &str, members: &HashMap<Member, Phase>) {
        let at = self.now().1;
        let runs = |held: &&Held| {
            let member = (held.session.instance.runtime, held.session.instance.runtime_id.clone());
            matches!(members.get(&member), Some(Phase::Running { .. }))
        };
        let suspended = self.sessions.open(deployment).filter(|held| {
            held.claim.is_none()
                && held.stand.order == Call::Freeze
                && held.session.state == SessionState::Suspended
                // Whoever gave the order, and waits until it is written, carries it out.
                && !held.stand.is_awaited()
        });
        let found: Vec<(SessionId, Option<Instant>)> =
            suspended.filter(runs).map(|held| (held.session.id.clone(), held.stand.turned)).collect();
        for (id, turned) in found {
            match turned.map(|turned| turned + SETTLES).filter(|settled| *settled > at) {
                Some(settled) => self.queue.add(deployment, settled),
                None => self.freeze_one_again(&id),
            }
        }
    }

    fn freeze_one_again(&mut self, id: &SessionId) {
        let Ok(turn) = self.turn(id) else { return };
        let Ok(place) = turn.line.clone().try_lock_owned() else { return };
        tracing::warn!("{}: the sandbox of the suspended session {id} runs; it is frozen again", turn.member.id);
        self.lanes.spawn(async move {
            let done = make(Call::Freeze, &*turn.runtime, &turn.member).await;
            if let Err(error) = &done {
                tracing::warn!("{}: it can't be frozen, and its session is active: {error}", turn.member.id);
            }
            let message = SessionMessage::FrozenAgain(turn.id.clone(), done.map_err(|error| error.to_string()));
            // A core that has ended needs no report.
            let _ = turn.core.send(Message::Session(Box::new(message))).await;
            drop(place);
        });
    }
}
