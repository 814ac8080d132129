//! What commands and the API ask of sessions.

use std::collections::{BTreeMap, BTreeSet};

use chrono::Utc;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio::time::Instant;

use super::claim::look;
use super::inside::{Entry, Lease};
use super::request::{AcquireRequest, Acquired, SessionChanged, SessionRequest, SessionStats, SessionView};
use super::turns::Turn;
use super::verbs::Changed;
use super::{Claim, PoolInfo, SessionCommand, written};
use crate::controller::apply::to_its_end;
use crate::controller::engine::{Engine, ask, cannot};
use crate::controller::ledger::Used;
use crate::controller::message::{Command, Message};
use crate::controller::open::local;
use crate::controller::using::{UseGuard, guarded};
use crate::controller::{EngineError, Mode};
use crate::execute::resolve;
use crate::runtime::io::{AttachRequest, AttachSession, ExecInput, ExecOutput, ExecRequest, ExecSession};
use crate::runtime::{Control, ErrorKind, RuntimeError, Support};
use crate::spec::Scalar;
use crate::state::{InstanceRef, ServiceName, SessionId, Signal, Target, Token};

/// Exit codes above it stand for the signal that ended a command.
const SIGNALLED: i32 = 128;

impl Engine {
    /// Claims a member of a pool: a warm one at once, else one that is made for it. The member is nobody else's from then
    /// on, and goes when the session ends.
    ///
    /// # Errors
    /// `Invalid` where the request breaks a rule; `NotFound` where there is no such pool or sandbox; `Conflict` where every
    /// place is claimed, what is required is not given, the runtime mounts nothing into what runs, none was ready in time, or no controller runs.
    pub async fn acquire(&self, request: AcquireRequest) -> Result<Acquired, EngineError> {
        let asked = (Utc::now(), Instant::now());
        self.check_runs()?;
        request.check()?;
        let pool = self.choose_pool(&request).await?;
        self.may_mount(&pool, &request).await?;
        let claim = |reply| SessionCommand::Acquire(Box::new(Claim::new(pool, request, asked, reply)));
        self.ask(|reply| Command::Session(claim(reply))).await?
    }

    /// Does something with a session, for whoever has its token.
    ///
    /// # Errors
    /// `NotFound` where there is no such session; `Conflict` where the token is another one's, the session is over, or it
    /// stands otherwise than it would have to; the runtime fails.
    pub async fn change_session(&self, request: SessionRequest) -> Result<SessionChanged, EngineError> {
        self.check_runs()?;
        let engine = self.clone();
        // A client that goes away leaves no half of it.
        to_its_end(async move { engine.change(request).await }).await
    }

    async fn change(&self, request: SessionRequest) -> Result<SessionChanged, EngineError> {
        let asked = |reply| Command::Session(SessionCommand::Change(request, reply));
        let Changed { id, view, token, kept, turn } = self.ask(asked).await??;
        let written = written(kept).await;
        // What can't be written counts all the same, so that the sandbox is made to stand like it.
        let settled = match (turn, &token) {
            (Some(turn), None) => turn.settle().await?,
            // It is the client's all the same, which needs the token for another try.
            (Some(turn), Some(_)) => turn.settle().await.unwrap_or_else(|why| {
                tracing::warn!("the session {id} was taken over and stays suspended: {why}");
                None
            }),
            (None, _) => None,
        };
        match (written, &token) {
            (Ok(()), _) => {}
            // Without it nobody would have the session.
            (Err(why), Some(_)) => {
                tracing::warn!("a new token of the session {id} is forgotten when the controller ends: {why}");
            }
            (Err(why), None) => {
                let text = format!("it counts from now on, and is forgotten when the controller ends: {why}");
                return Err(local("the session can't be recorded")(std::io::Error::other(text)));
            }
        }
        Ok(SessionChanged { token, view: settled.unwrap_or(view) })
    }

    /// All sessions that are kept, those that have ended among them, by the time of their claim.
    ///
    /// # Errors
    /// The engine has ended.
    pub async fn sessions(&self) -> Result<Vec<SessionView>, EngineError> {
        self.ask(|reply| Command::Session(SessionCommand::List(reply))).await
    }

    /// Statistics of all sessions that are kept.
    ///
    /// # Errors
    /// The engine has ended.
    pub async fn session_stats(&self) -> Result<SessionStats, EngineError> {
        self.ask(|reply| Command::Session(SessionCommand::Stats(reply))).await
    }

    fn check_runs(&self) -> Result<(), EngineError> {
        match self.inner.mode {
            Mode::Controller { .. } => self.inner.archive.check_kept(),
            Mode::Observe | Mode::Record | Mode::OneShot => Err(EngineError::Conflict(
                "no controller runs, and sessions live in one; start one with keel run".to_owned(),
            )),
        }
    }

    /// The pool that a claim means: the one that it names, or the only one that fits.
    async fn choose_pool(&self, request: &AcquireRequest) -> Result<ServiceName, EngineError> {
        let asks_for_nothing = request.require.is_empty() && request.labels.is_empty();
        let whole = request.pool.as_deref().and_then(full_name);
        if let Some(name) = whole.filter(|_| asks_for_nothing) {
            // Whether it is one is told where the claim is taken in.
            return Ok(name);
        }
        let pools = self.ask(|reply| Command::Session(SessionCommand::Pools(reply))).await?;
        let named: Vec<PoolInfo> = match &request.pool {
            None => pools,
            Some(name) => pools.into_iter().filter(|pool| is_named(pool, name)).collect(),
        };
        if named.is_empty() {
            return Err(EngineError::NotFound(match &request.pool {
                Some(name) => format!("there is no pool {name:?}; see keel get pools"),
                None => "there is no pool; a service with `pool: {}` is one".to_owned(),
            }));
        }
        let (mut fitting, mut refused) = (Vec::new(), Vec::new());
        for pool in named {
            let missing = self.missing(&pool, request).await?;
            match missing.is_empty() {
                true => fitting.push(pool.name),
                false => refused.push(format!("{} lacks {}", pool.name, missing.join(", "))),
            }
        }
        match fitting.as_slice() {
            [one] => Ok(one.clone()),
            [] => Err(EngineError::Conflict(format!("no pool gives what is required: {}", refused.join("; ")))),
            several => {
                let names: Vec<String> = several.iter().map(ToString::to_string).collect();
                Err(EngineError::Invalid(format!("several pools fit, name one of them: {}", names.join(", "))))
            }
        }
    }

    /// What a claim requires and a pool does not give.
    async fn missing(&self, pool: &PoolInfo, request: &AcquireRequest) -> Result<Vec<String>, EngineError> {
        let lacks = |(name, value): (&String, &String)| {
            (pool.labels.get(name) != Some(value)).then(|| format!("the label {name}={value}"))
        };
        let mut missing: Vec<String> = request.labels.iter().filter_map(lacks).collect();
        let required: BTreeSet<Control> = request.require.iter().copied().collect();
        if required.is_empty() {
            return Ok(missing);
        }
        let runtime = match self.runtime(pool.runtime).await {
            Ok(runtime) => runtime,
            Err(error) => {
                missing.push(error.to_string());
                return Ok(missing);
            }
        };
        let capabilities = runtime.capabilities().await?;
        let (mut enforced, lacked) = (Vec::new(), missing.len());
        for control in required {
            match capabilities.support(control) {
                Support::Enforced => enforced.push(control),
                Support::Degraded { why } => {
                    missing.push(format!("{control}, which {} enforces in part: {why}", pool.runtime));
                }
                Support::Absent { why } => {
                    missing.push(format!("{control}, which {} does not enforce: {why}", pool.runtime));
                }
            }
        }
        // Otherwise the member that is to be handed out is looked at.
        if missing.len() > lacked
            && let Some(member) = &pool.member
            && let (Ok(_), unmet) = look(Some(runtime), member, &enforced).await
        {
            missing.extend(unmet);
        }
        Ok(missing)
    }

    /// Runs a command inside the running instance that the target covers, or inside that of a session; the lowest slot where
    /// it covers several. A member of a pool that a session has takes its token, and gives the session's environment.
    ///
    /// # Errors
    /// `NotFound` when no running instance is covered; `Conflict` when a session has it and the token is not its.
    pub async fn exec(
        &self,
        target: &Target,
        token: Option<&Token>,
        request: &ExecRequest,
    ) -> Result<ExecSession, EngineError> {
        let (Entry { instance, env, lease, turn, kept }, guard) = self.enter_for(target, token, Signal::Exec).await?;
        let runtime = self.runtime(instance.runtime).await?;
        let exec = runtime.exec().ok_or_else(|| cannot(instance.runtime, "run commands inside"))?;
        let request = ExecRequest { env: environment(env, &request.env)?, ..request.clone() };
        let _place = opened(turn).await?;
        written(kept).await.map_err(unrecorded)?;
        may_still(lease.as_ref())?;
        let session = exec.exec(&instance.as_ref(), &request).await?;
        let session = match &lease {
            Some(lease) => fenced(session, lease.ended()),
            None => session,
        };
        let told = telling_end(session.output, self.inner.messages.clone(), instance.as_ref());
        Ok(ExecSession { output: in_use(while_held(told, lease), guard), ..session })
    }

    /// Attaches to the running instance that the target covers, or to that of a session; gives its name as well.
    ///
    /// # Errors
    /// As [`Engine::exec`].
    pub async fn attach(
        &self,
        target: &Target,
        token: Option<&Token>,
        request: &AttachRequest,
    ) -> Result<(String, AttachSession), EngineError> {
        let (entry, guard) = self.enter_for(target, token, Signal::Attach).await?;
        let Entry { instance, lease, turn, kept, .. } = entry;
        let runtime = self.runtime(instance.runtime).await?;
        let attach = runtime.attach().ok_or_else(|| cannot(instance.runtime, "attach to instances"))?;
        let _place = opened(turn).await?;
        written(kept).await.map_err(unrecorded)?;
        may_still(lease.as_ref())?;
        let mut session = attach.attach(&instance.as_ref(), request).await?;
        if let Some(lease) = &lease {
            session.input = fenced_input(session.input, lease.ended());
        }
        let output = in_use(while_held(session.output, lease), guard);
        Ok((instance.id.name(), AttachSession { output, ..session }))
    }

    /// Finds the instance for a use that begins now. One that is stopped or suspended for idleness is brought back first.
    async fn enter_for(
        &self,
        target: &Target,
        token: Option<&Token>,
        signal: Signal,
    ) -> Result<(Entry, Option<UseGuard>), EngineError> {
        match self.enter(target, token).await {
            Ok(entry) => {
                let guard = self.begin_use(signal, Used::Instance(entry.instance.as_ref())).await?;
                if guard.is_some() || entry.turn.is_some() || is_session(target) {
                    return Ok((entry, guard));
                }
            }
            // A session names a sandbox, and nothing that could be woken.
            Err(EngineError::NotFound(_)) if !is_session(target) => {}
            Err(error) => return Err(error),
        }
        let (_, guard) = self.running_for(target, signal).await?;
        Ok((self.enter(target, token).await?, Some(guard)))
    }

    async fn enter(&self, target: &Target, token: Option<&Token>) -> Result<Entry, EngineError> {
        let (target, token) = (target.clone(), token.cloned());
        self.ask(|reply| Command::Session(SessionCommand::Enter(target, token, reply))).await?
    }
}

/// Lets the sandbox of a session run on where it is frozen. It is not frozen again before what is given is dropped.
async fn opened(turn: Option<Turn>) -> Result<Option<OwnedMutexGuard<()>>, EngineError> {
    match turn {
        Some(turn) => turn.open().await.map(Some),
        None => Ok(None),
    }
}

/// Whether the id of a session is written in the place of an instance's name.
fn is_session(target: &Target) -> bool {
    target.service.is_none() && SessionId::is_meant_by(&target.deployment)
}

/// `DEPLOYMENT/SERVICE`, where it is written like that.
fn full_name(text: &str) -> Option<ServiceName> {
    let (deployment, service) = text.split_once('/')?;
    let is_one = !deployment.is_empty() && !service.is_empty() && !service.contains('/');
    is_one.then(|| ServiceName { deployment: deployment.to_owned(), service: service.to_owned() })
}

/// Whether a name means a pool: its own, or that of its service or deployment.
fn is_named(pool: &PoolInfo, name: &str) -> bool {
    pool.name.to_string() == name || pool.name.service == name || pool.name.deployment == name
}

/// Refuses whoever was let in and may not be inside any more.
fn may_still(lease: Option<&Lease>) -> Result<(), EngineError> {
    match lease.filter(|lease| lease.has_ended()) {
        Some(lease) => Err(EngineError::Conflict(lease.why())),
        None => Ok(()),
    }
}

/// A command that is killed, and gets no more input, as soon as its client may not be inside any more, whether that reads its
/// output or not.
fn fenced(session: ExecSession, ended: impl Future<Output = ()> + Send + 'static) -> ExecSession {
    let (ended, killer) = (ended.shared(), session.killer.clone());
    let over = ended.clone();
    let alive = session.input.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = over => {
                if let Err(error) = killer.kill().await {
                    tracing::warn!("a command whose session is over runs on: {error}");
                }
            }
            // Nobody takes input of what has ended.
            () = alive.closed() => {}
        }
    });
    ExecSession { input: fenced_input(session.input, ended), ..session }
}

/// A way for input that is closed as soon as nobody may be inside any more.
fn fenced_input(
    input: mpsc::Sender<ExecInput>,
    ended: impl Future<Output = ()> + Send + 'static,
) -> mpsc::Sender<ExecInput> {
    let (outer, mut waiting) = mpsc::channel(1);
    tokio::spawn(async move {
        let hand_on = async {
            while let Some(item) = waiting.recv().await {
                if input.send(item).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = hand_on => {}
            () = ended => {}
        }
    });
    outer
}

fn unrecorded(why: String) -> EngineError {
    local("that somebody is inside can't be recorded")(std::io::Error::other(why))
}

/// The environment of a command: what the session gives, with its references resolved, and what the command is given itself.
fn environment(
    of_session: BTreeMap<String, String>,
    of_command: &[(String, String)],
) -> Result<Vec<(String, String)>, EngineError> {
    let own: BTreeSet<&str> = of_command.iter().map(|(name, _)| name.as_str()).collect();
    let given: BTreeMap<String, Scalar> = of_session
        .into_iter()
        .filter(|(name, _)| !own.contains(name.as_str()))
        .map(|(name, value)| (name, Scalar(value)))
        .collect();
    let host = |name: &str| std::env::var(name).ok();
    let resolved = resolve(&given, &host).map_err(|error| EngineError::Conflict(error.to_string()))?;
    Ok(resolved.into_iter().chain(of_command.iter().cloned()).collect())
}

/// Output whose reader uses the instance for as long as it reads.
fn in_use(output: Output, guard: Option<UseGuard>) -> Output {
    match guard {
        Some(guard) => guarded(output, guard),
        None => output,
    }
}

type Output = BoxStream<'static, crate::runtime::Result<ExecOutput>>;

/// Output that tells before its end why its instance ended, where the command was killed with that.
fn telling_end(output: Output, core: mpsc::Sender<Message>, instance: InstanceRef) -> Output {
    let told = output.then(move |item| {
        let was_killed = matches!(item, Ok(ExecOutput::Exit(code)) if code > SIGNALLED);
        let asked = was_killed.then(|| (core.clone(), instance.clone()));
        async move {
            let why = match asked {
                // Without a core nobody stopped it.
                Some((core, one)) => ask(&core, |reply| Command::WhyStopped(one, reply)).await.ok().flatten(),
                None => None,
            };
            let why = why.map(|why| Ok(ExecOutput::Stderr(format!("keel: {why}\n").into())));
            stream::iter(why.into_iter().chain([item]))
        }
    });
    told.flatten().boxed()
}

/// Output for as long as its reader may be inside; ends with why that is over where it ends before.
fn while_held(output: Output, lease: Option<Lease>) -> Output {
    let Some(lease) = lease else { return output };
    let ended = lease.ended_why();
    let cut = stream::once(async move { Err(RuntimeError::new(ErrorKind::Failed, ended.await)) });
    // The lease goes with the stream, or with its last item.
    let held = stream::unfold(Some((Box::pin(cut), output, lease)), |state| async move {
        let (mut cut, mut output, lease) = state?;
        tokio::select! {
            biased;
            why = cut.next() => why.map(|why| (why, None)),
            item = output.next() => item.map(|item| (item, Some((cut, output, lease)))),
        }
    });
    held.boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_the_environment_of_its_session_and_its_own_over_it() {
        let given = BTreeMap::from([("A", "session"), ("B", "session")].map(|(a, b)| (a.to_owned(), b.to_owned())));
        let own = [("B".to_owned(), "own".to_owned())];
        let expected = [("A", "session"), ("B", "own")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(environment(given, &own).unwrap(), expected);
        let missing = BTreeMap::from([("A".to_owned(), "$E:KEEL_TEST_NO_SUCH_VARIABLE".to_owned())]);
        let refused = environment(missing, &[]).unwrap_err().to_string();
        assert!(refused.contains("KEEL_TEST_NO_SUCH_VARIABLE"), "{refused}");
    }
}
