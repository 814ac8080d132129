//! Sessions that are given again to whoever holds them: by the name of the sandbox, or as the one that a client has in a pool.

use super::claim::{look, milliseconds};
use super::request::{AcquireRequest, Acquired, SessionView};
use super::{Claim, Held, SessionMessage};
use crate::controller::EngineError;
use crate::controller::core::State;
use crate::controller::message::Message;
use crate::state::{ServiceName, SessionId, SessionState, are_same_mounts};

impl State {
    /// The session that the caller holds already and asks for again, where that is so.
    pub(super) fn held_already(
        &self,
        request: &AcquireRequest,
        pool: &ServiceName,
    ) -> Result<Option<SessionId>, EngineError> {
        match &request.sandbox {
            Some(sandbox) => self.holder_of_sandbox(request, pool, sandbox),
            None if request.reuse => self.holder_among_clients(request, pool),
            None => Ok(None),
        }
    }

    /// Refuses to give a session again otherwise than it is, as its sandbox is in use: with other mounts or another environment,
    /// or as one that nobody had before. What its first claim asked for may be asked for again.
    pub(super) fn is_as_asked(&self, id: &SessionId, request: &AcquireRequest) -> Result<(), EngineError> {
        let Some(Held { session, .. }) = self.sessions.all.get(id) else { return Ok(()) };
        let refuse = |why: &str, leave: &str| {
            Err(EngineError::Conflict(format!(
                "the session {id} is given again as it is, {why}; leave out {leave}, or claim another session"
            )))
        };
        if request.fresh {
            return refuse("and is not fresh", "--fresh");
        }
        if !request.mounts.is_empty() && !are_same_mounts(&session.mounts, &request.mounts) {
            return refuse("and its mounts are others", "the mounts");
        }
        if !request.env.is_empty() && session.env != request.env {
            return refuse("and its environment is another", "--env");
        }
        Ok(())
    }

    /// Looks whether the member of a session that is asked for again gives what is required, and goes on with the claim if
    /// so.
    pub(super) fn check_again(&mut self, id: &SessionId, mut claim: Claim) {
        let Some(held) = self.sessions.all.get(id) else { return };
        let member = held.session.instance.clone();
        let (reports, runtime, id) = (self.reports(), self.runtime_of(&member), id.clone());
        self.lanes.spawn(async move {
            let why = match look(runtime, &member, &claim.request.require).await {
                (Err(error), _) => EngineError::Runtime(error),
                (Ok(_), unmet) if unmet.is_empty() => {
                    claim.is_checked = true;
                    // A core that has ended needs no report.
                    let _ = reports.send(Message::Session(Box::new(SessionMessage::Again(Box::new(claim))))).await;
                    return;
                }
                (Ok(_), unmet) => {
                    let why = format!("the session {id} does not give what is required: {}", unmet.join("; "));
                    EngineError::Conflict(format!("{why}; leave out --reuse for another session"))
                }
            };
            claim.refuse(why);
        });
    }

    /// Gives a session again to whoever holds it: a client is there from now on. What is kept of its claim stays as it was.
    pub(super) fn give_again(&mut self, id: &SessionId, claim: Claim) {
        let (now, at) = self.now();
        if let Some(held) = self.sessions.all.get_mut(id) {
            held.session.last_active_at = now;
            if held.session.state == SessionState::Detached {
                held.session.state = SessionState::Active;
            }
            drop(self.sessions.keep(id));
            self.sessions.touch();
            self.note_call(id);
        }
        let Claim { request, reply, asked, .. } = claim;
        if let (Some(token), Some(view)) = (request.token, self.session_view(id)) {
            let view = SessionView { elapsed_ms: milliseconds(at.saturating_duration_since(asked.1)), ..view };
            // A caller that has gone needs no answer.
            let _ = reply.send(Ok(Acquired { token, reused: true, view }));
        }
    }

    /// The session that has a sandbox by this name.
    fn holder_of_sandbox(
        &self,
        request: &AcquireRequest,
        pool: &ServiceName,
        sandbox: &str,
    ) -> Result<Option<SessionId>, EngineError> {
        let is_it = |held: &&Held| held.session.is_live() && held.session.sandbox.as_deref() == Some(sandbox);
        let holder = self.sessions.open_in(pool).find(is_it);
        let is_awaited = self.sessions.waiting.get(pool).is_some_and(|waiting| {
            waiting.iter().any(|claim| claim.request.sandbox.as_deref() == Some(sandbox) && !claim.reply.is_closed())
        });
        match holder {
            Some(held) if held.claim.is_none() => {
                let is_theirs = request.token.as_ref().is_some_and(|token| held.session.token.is_of(token));
                let taken = format!(
                    "the sandbox {sandbox} of {pool} is held by session {}; present its token with --token",
                    held.session.id
                );
                let of_another = format!(
                    "the sandbox {sandbox} of {pool} is held by the client {}, not by {}",
                    held.session.client, request.client
                );
                match (is_theirs, held.session.client == request.client) {
                    (true, true) => Ok(Some(held.session.id.clone())),
                    (true, false) => Err(EngineError::Conflict(of_another)),
                    (false, _) => Err(EngineError::Conflict(taken)),
                }
            }
            None if !is_awaited && request.create_if_missing => Ok(None),
            None if !is_awaited => Err(EngineError::NotFound(format!(
                "there is no sandbox {sandbox} in {pool}; --create-if-missing claims one and names it so"
            ))),
            _ => {
                Err(EngineError::Conflict(format!("the sandbox {sandbox} of {pool} is being claimed by somebody else")))
            }
        }
    }

    /// The session that a client holds in a pool.
    fn holder_among_clients(
        &self,
        request: &AcquireRequest,
        pool: &ServiceName,
    ) -> Result<Option<SessionId>, EngineError> {
        let is_theirs =
            |held: &&Held| held.session.is_live() && held.claim.is_none() && held.session.client == request.client;
        let mut theirs = self.sessions.open_in(pool).filter(is_theirs).peekable();
        if theirs.peek().is_none() {
            return Ok(None);
        }
        let client = &request.client;
        let why = match &request.token {
            Some(token) => match theirs.find(|held| held.session.token.is_of(token)) {
                Some(held) => return Ok(Some(held.session.id.clone())),
                None => format!("the token is not that of a session of {client} in {pool}"),
            },
            None => {
                format!("{client} holds a session in {pool}; it is given again with its token: name it with --token")
            }
        };
        Err(EngineError::Conflict(format!("{why}, or leave out --reuse for another session")))
    }
}
