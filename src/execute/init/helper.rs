//! Commands before a start, each in an instance of its own: made as the service's, with another program, and removed when
//! that has ended.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use futures::StreamExt;

use super::{Init, failed};
use crate::execute::CallKind;
use crate::runtime::io::LogOptions;
use crate::runtime::{CreateRequest, ErrorKind, RuntimeError};
use crate::spec::{Command, HumanDuration, ServiceSpec};
use crate::state::{Exit, Instance, InstanceRef, Phase, last_line};

/// Last lines of a command that failed; the last one that says something is told.
const LINES: u64 = 10;

/// Longest wait for those lines; they are a help, not the result.
const LINES_DEADLINE: Duration = Duration::from_secs(2);

/// Longest time of one call; as for the steps of a lane.
pub(super) const CALL: Duration = Duration::from_secs(120);

/// The spec of an instance that runs a command before a start: the service's, without what would be in the way of the
/// service itself (ports of the machine, names for others) and without what is about a server.
pub fn spec_of_helper(spec: &ServiceSpec, command: &str, workdir: Option<&str>) -> ServiceSpec {
    let own = spec.command.as_ref().and_then(|command| command.workdir.clone());
    ServiceSpec {
        command: Some(Command {
            entrypoint: Some(["sh", "-c", command].map(str::to_owned).to_vec()),
            args: Some(Vec::new()),
            workdir: workdir.map(str::to_owned).or(own),
        }),
        endpoints: Vec::new(),
        port_mappings: Vec::new(),
        expose: Default::default(),
        labels: Default::default(),
        hostname: None,
        tty: None,
        stdin_open: None,
        health: None,
        init: None,
        depends: Vec::new(),
        lifecycle: None,
        ..spec.clone()
    }
}

/// A number that no helper had for weeks, so that none is taken for one that is gone: they are counted on from the millisecond
/// in which the first one was made, and each takes more than that. A controller takes longer to start than that, too.
fn next_number() -> u32 {
    static NEXT: OnceLock<AtomicU32> = OnceLock::new();
    let now = || UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u32);
    NEXT.get_or_init(|| AtomicU32::new(now())).fetch_add(1, Ordering::Relaxed)
}

impl Init<'_> {
    /// Runs a command to its end in a fresh instance.
    pub(super) async fn command(&mut self, command: &str, workdir: Option<&str>) -> Result<(), RuntimeError> {
        let request = CreateRequest {
            id: self.request.id.helper(next_number()),
            spec: Arc::new(spec_of_helper(&self.request.spec, command, workdir)),
            ..self.request.clone()
        };
        let helper = self.call(self.runtime.create(&request)).await?.as_ref();
        (self.say)(format!("init step {}: its command runs", self.step.id));
        let limit = self.step.timeout();
        let ended = tokio::time::timeout(limit, self.run_to_its_end(&helper)).await;
        let result = match ended {
            Ok(Ok(exit)) if exit.is_success() => Ok(()),
            Ok(Ok(exit)) => Err(self.with_last_line(&helper, exit.to_string()).await),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let why = format!("its command has not ended within {}", HumanDuration(limit));
                Err(self.with_last_line(&helper, why).await)
            }
        };
        // What was done is not done again because of what is left of it, which is planned away.
        if let Err(error) = self.call(self.runtime.remove(&helper)).await {
            tracing::warn!("{} stays for now: {error}", helper.id);
        }
        result
    }

    async fn run_to_its_end(&mut self, helper: &InstanceRef) -> Result<Exit, RuntimeError> {
        let started = self.call(self.runtime.start(helper)).await?;
        if let Phase::Exited(exit) = started.phase {
            return Ok(exit);
        }
        let is_it = |one: &&Instance| (one.runtime, &one.runtime_id) == (helper.runtime, &helper.runtime_id);
        let mut seen = false;
        loop {
            let known = self.around.observed.borrow_and_update().iter().find(is_it).map(|one| one.phase.clone());
            match known {
                Some(Phase::Exited(exit)) => return Ok(exit),
                Some(_) => seen = true,
                None if seen => return Err(failed(self.step, 1, "somebody removed the instance of its command")),
                None => {}
            }
            if self.around.observed.changed().await.is_err() {
                return Err(failed(self.step, 1, "nobody watches the instance of its command any more"));
            }
        }
    }

    /// What went wrong, with the last line that the command wrote.
    async fn with_last_line(&self, helper: &InstanceRef, why: String) -> RuntimeError {
        let reading = async {
            let options = LogOptions { tail: Some(LINES), ..LogOptions::default() };
            let mut lines = self.runtime.logs()?.logs(helper, &options).await.ok()?;
            let mut last = None;
            while let Some(Ok(line)) = lines.next().await {
                last = last_line(&line.text.lossy()).or(last);
            }
            last
        };
        let line = tokio::time::timeout(LINES_DEADLINE, reading).await.ok().flatten();
        let message = line.map_or_else(|| why.clone(), |line| format!("{why}: {line}"));
        RuntimeError::new(ErrorKind::InitFailed, message)
    }

    /// Makes a short call when it is its turn.
    async fn call<T>(&self, call: impl Future<Output = Result<T, RuntimeError>>) -> Result<T, RuntimeError> {
        let _pass = self.gate.pass(&self.request.id.deployment, CallKind::Short).await;
        let late = || RuntimeError::new(ErrorKind::Failed, format!("not done within {} s", CALL.as_secs()));
        tokio::time::timeout(CALL, call).await.unwrap_or_else(|_| Err(late()))
    }
}
