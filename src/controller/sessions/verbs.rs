//! What is done with sessions by whoever has their token.

use tokio::sync::oneshot;

use super::request::{SessionRequest, SessionVerb, SessionView};
use super::turns::{Call, OrderedTurn};
use super::{Held, new_secrets};
use crate::controller::EngineError;
use crate::controller::core::State;
use crate::controller::ledger::Used;
use crate::state::{SessionEnd, SessionId, SessionState, Signal, Token};

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
    /// The turn in which a runtime is to do it, where one is to.
    pub turn: Option<OrderedTurn>,
}

impl State {
    /// Does something with a session.
    pub(super) fn change_session(&mut self, request: SessionRequest) -> Result<Changed, EngineError> {
        let id: SessionId = request.session.parse().map_err(|error| EngineError::Invalid(format!("{error}")))?;
        self.owned(&id, request.token.as_ref())?;
        let changed = match request.verb {
            SessionVerb::Attach { takeover } => self.attach_session(&id, takeover),
            SessionVerb::Detach => self.detach_session(&id),
            SessionVerb::Touch => self.touch_session(&id),
            SessionVerb::Suspend => self.freeze(&id),
            SessionVerb::Resume => self.thaw(&id),
            SessionVerb::Release => return self.end_by_client(&id, SessionEnd::Released),
            SessionVerb::Terminate => return self.end_by_client(&id, SessionEnd::Terminated),
        }?;
        self.note_call(&id);
        Ok(changed)
    }

    /// Notes that a client called a session, which is a use of its member.
    pub(super) fn note_call(&mut self, id: &SessionId) {
        let now = self.now().0;
        let Some(member) = self.sessions.all.get(id).map(|held| held.session.instance.clone()) else { return };
        let deployment = member.id.deployment.clone();
        self.ledger.note(Signal::Session, &Used::Instance(member), now);
        self.keep_activity(&deployment);
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
            Some(SessionState::Suspended) if !takeover => {
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
        // What can't run on is not taken over either.
        let turn = match state {
            Some(SessionState::Suspended) => Some(self.order_stand(self.turn(id)?, Call::Thaw)?),
            _ => None,
        };
        if let Some(held) = self.sessions.all.get_mut(id) {
            held.session.token = token.digest();
            // Whoever is inside came with the token before, and does not count for the new holder.
            held.holders += 1;
            held.inside = 0;
            std::mem::take(&mut held.fence).close("was taken over by another client".to_owned());
        }
        // What is frozen says that it is active once it runs on.
        let changed = match turn.is_some() {
            true => self.touch_session(id)?,
            false => self.set_state(id, SessionState::Active)?,
        };
        Ok(Changed { token: Some(token), turn, ..changed })
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
        let turn = self.turn(id)?;
        turn.can_freeze()?;
        let turn = self.order_stand(turn, Call::Freeze)?;
        // Written before it is frozen, so that nobody thaws it again.
        let changed = self.set_state(id, SessionState::Suspended)?;
        Ok(Changed { turn: Some(turn), ..changed })
    }

    fn thaw(&mut self, id: &SessionId) -> Result<Changed, EngineError> {
        let turn = self.turn(id)?;
        if self.sessions.all.get(id).is_some_and(|held| held.session.state != SessionState::Suspended) {
            return self.touch_session(id);
        }
        let turn = self.order_stand(turn, Call::Thaw)?;
        let changed = self.touch_session(id)?;
        Ok(Changed { turn: Some(turn), ..changed })
    }

    pub(super) fn set_state(&mut self, id: &SessionId, state: SessionState) -> Result<Changed, EngineError> {
        let (now, at) = self.now();
        if let Some(held) = self.sessions.all.get_mut(id) {
            held.session.last_active_at = now;
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
        Ok(Changed { id: id.clone(), view, token: None, kept, turn: None })
    }
}
