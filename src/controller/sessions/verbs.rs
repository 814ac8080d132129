//! What is done with sessions by whoever has their token.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::request::{SessionRequest, SessionVerb, SessionView};
use super::{Held, new_secrets};
use crate::controller::EngineError;
use crate::controller::core::State;
use crate::runtime::Runtime;
use crate::state::{InstanceRef, SessionEnd, SessionId, SessionState, Token};

/// A session after something was done with it, as far as the core does it.
pub struct Changed {
    /// The session.
    pub id: SessionId,
    /// As it is shown.
    pub view: SessionView,
    /// Another token that gives the right to it from now on.
    pub token: Option<Token>,
    /// Tells when it is written down.
    pub kept: Option<oneshot::Receiver<Result<(), String>>>,
    /// What a runtime is to do for it besides.
    pub todo: Option<Todo>,
    /// The number of this change.
    pub number: u64,
}

/// What a runtime is to do for a change of a session.
pub struct Todo {
    /// The adapter.
    pub runtime: Arc<dyn Runtime>,
    /// The member.
    pub member: InstanceRef,
    /// Whether it is to be frozen, or to run on.
    pub freeze: bool,
    /// State of the session where the runtime does it.
    pub then: SessionState,
    /// State of the session where it does not.
    pub otherwise: SessionState,
}

impl State {
    /// Does something with a session.
    pub(super) fn change_session(&mut self, request: SessionRequest) -> Result<Changed, EngineError> {
        let id: SessionId = request.session.parse().map_err(|error| EngineError::Invalid(format!("{error}")))?;
        self.owned(&id, request.token.as_ref())?;
        match request.verb {
            SessionVerb::Attach { takeover } => self.attach_session(&id, takeover),
            SessionVerb::Detach => self.detach_session(&id),
            SessionVerb::Touch => self.touch_session(&id),
            SessionVerb::Suspend => self.freeze(&id),
            SessionVerb::Resume => self.thaw(&id),
            SessionVerb::Release => self.end_by_client(&id, SessionEnd::Released),
            SessionVerb::Terminate => self.end_by_client(&id, SessionEnd::Terminated),
        }
    }

    /// The live session of that name, where the token gives the right to it.
    ///
    /// # Errors
    /// There is no such session, it has ended, or the token is another one's.
    pub(super) fn owned(&self, id: &SessionId, token: Option<&Token>) -> Result<&Held, EngineError> {
        let known = self.sessions.all.get(id).filter(|held| held.claim.is_none());
        let Some(held) = known else {
            return Err(EngineError::NotFound(format!("there is no session {id}; see keel session list")));
        };
        let Some(token) = token else {
            return Err(EngineError::Conflict(format!(
                "the session {id} is for whoever has its token; name it with --token or KEEL_SESSION_TOKEN"
            )));
        };
        if !held.session.token.is_of(token) {
            return Err(EngineError::Conflict(format!("the token is not that of the session {id}")));
        }
        match &held.session.state {
            SessionState::Ended { why, at } => {
                let at = at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
                Err(EngineError::Conflict(format!("the session {id} is over: it {why} at {at}")))
            }
            _ => Ok(held),
        }
    }

    fn attach_session(&mut self, id: &SessionId, takeover: bool) -> Result<Changed, EngineError> {
        let state = self.sessions.all.get(id).map(|held| held.session.state.clone());
        match state {
            Some(SessionState::Active) if !takeover => {
                return Err(EngineError::Conflict(format!(
                    "a client is attached to the session {id}; --takeover ends what it does and gives a new token"
                )));
            }
            Some(SessionState::Suspended) => {
                return Err(EngineError::Conflict(format!(
                    "the session {id} is suspended; keel session resume lets its sandbox run on"
                )));
            }
            _ => {}
        }
        if !takeover {
            return self.set_state(id, SessionState::Active);
        }
        let (_, token) = new_secrets()?;
        if let Some(held) = self.sessions.all.get_mut(id) {
            held.session.token = token.digest();
            // Whoever is inside came with the token before, and does not count for the new holder.
            held.holders += 1;
            held.inside = 0;
            std::mem::replace(&mut held.ended, CancellationToken::new()).cancel();
        }
        let changed = self.set_state(id, SessionState::Active)?;
        Ok(Changed { token: Some(token), ..changed })
    }

    /// Notes that its client has gone.
    ///
    /// # Errors
    /// It is suspended, which it stays without a client.
    fn detach_session(&mut self, id: &SessionId) -> Result<Changed, EngineError> {
        let is_frozen = self.sessions.all.get(id).is_some_and(|held| held.session.state == SessionState::Suspended);
        if is_frozen {
            return Err(EngineError::Conflict(format!(
                "the session {id} is suspended already, and stays so without its client; keel session resume lets its \
                 sandbox run on"
            )));
        }
        self.set_state(id, SessionState::Detached)
    }

    /// Notes that a session is in use.
    fn touch_session(&mut self, id: &SessionId) -> Result<Changed, EngineError> {
        let state = self.sessions.all.get(id).map(|held| held.session.state.clone());
        // Who touches it is there.
        let state = match state {
            Some(SessionState::Suspended) => SessionState::Suspended,
            _ => SessionState::Active,
        };
        self.set_state(id, state)
    }

    fn freeze(&mut self, id: &SessionId) -> Result<Changed, EngineError> {
        let (runtime, member, before) = self.runtime_of_session(id)?;
        if runtime.suspend().is_none() {
            return Err(crate::controller::engine::cannot(member.runtime, "freeze instances"));
        }
        // Written before it is frozen, so that nobody thaws it again.
        let changed = self.set_state(id, SessionState::Suspended)?;
        let todo = Todo { runtime, member, freeze: true, then: SessionState::Suspended, otherwise: before };
        Ok(Changed { todo: Some(todo), ..changed })
    }

    fn thaw(&mut self, id: &SessionId) -> Result<Changed, EngineError> {
        let (runtime, member, before) = self.runtime_of_session(id)?;
        if before != SessionState::Suspended {
            return self.touch_session(id);
        }
        let changed = self.set_state(id, SessionState::Suspended)?;
        let todo = Todo { runtime, member, freeze: false, then: SessionState::Active, otherwise: before };
        Ok(Changed { todo: Some(todo), ..changed })
    }

    /// What a runtime was to do is done, or not: the session is in this state then, unless it has ended.
    pub(super) fn session_done(&mut self, id: &SessionId, change: u64, state: SessionState) -> Option<SessionView> {
        // What was ordered since holds.
        let is_last = |held: &Held| held.session.is_live() && held.changes == change;
        if self.sessions.all.get(id).is_some_and(is_last) {
            drop(self.set_state(id, state));
        }
        self.session_view(id)
    }

    fn runtime_of_session(&self, id: &SessionId) -> Result<(Arc<dyn Runtime>, InstanceRef, SessionState), EngineError> {
        let held = self.sessions.all.get(id);
        let session = held.map(|held| (held.session.instance.clone(), held.session.state.clone()));
        let (member, state) = session.ok_or_else(|| EngineError::NotFound(format!("there is no session {id}")))?;
        let runtime = self.runtime_of(&member);
        let runtime = runtime.ok_or_else(|| EngineError::Conflict(format!("{} does not answer", member.runtime)))?;
        Ok((runtime, member, state))
    }

    fn set_state(&mut self, id: &SessionId, state: SessionState) -> Result<Changed, EngineError> {
        let (now, at) = self.now();
        if let Some(held) = self.sessions.all.get_mut(id) {
            held.session.last_active_at = now;
            held.changes += 1;
            if held.session.state != state {
                held.session.state = state;
                self.queue.add(&held.session.pool.deployment, at);
            }
        }
        self.sessions.touch();
        self.changed(id, |state| state.sessions.keep(id))
    }

    fn end_by_client(&mut self, id: &SessionId, why: SessionEnd) -> Result<Changed, EngineError> {
        self.changed(id, |state| state.end_session(id, why))
    }

    fn changed(
        &mut self,
        id: &SessionId,
        change: impl FnOnce(&mut Self) -> Option<oneshot::Receiver<Result<(), String>>>,
    ) -> Result<Changed, EngineError> {
        let kept = change(self);
        let view = self.session_view(id);
        let view = view.ok_or_else(|| EngineError::NotFound(format!("there is no session {id}")))?;
        let number = self.sessions.all.get(id).map_or(0, |held| held.changes);
        Ok(Changed { id: id.clone(), view, token: None, kept, todo: None, number })
    }
}
