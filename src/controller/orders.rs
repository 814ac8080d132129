//! What users order of what is declared: rollouts, scale, suspension. It is remembered, and holds until it is taken back.

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::apply::to_its_end;
use super::core::State;
use super::engine::Engine;
use super::memory::{Note, written};
use super::message::Command;
use super::{EngineError, Mode};
use crate::plan::revisions::{self, Memory, OrderError, RolloutHistory, shown};
use crate::spec::{MAX_REPLICAS, Scale};
use crate::state::{DesiredDeployment, DesiredService, Fate, ServiceName, Target};

/// What a user orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Run an earlier revision of a service in place of the declared one, until something else is declared.
    Undo {
        /// `DEPLOYMENT[/SERVICE]`.
        target: String,
        /// Its number; the one before where none is named.
        to_revision: Option<u64>,
    },
    /// Replace nothing for now.
    Pause {
        /// `DEPLOYMENT[/SERVICE]`.
        target: String,
    },
    /// Go on replacing.
    Resume {
        /// `DEPLOYMENT[/SERVICE]`.
        target: String,
    },
    /// Replace every instance although its template is the same.
    Restart {
        /// `DEPLOYMENT[/SERVICE]`.
        target: String,
    },
    /// Create, stop and remove nothing of a deployment, or do so again.
    Suspend {
        /// Which.
        deployment: String,
        /// Whether it is suspended from now on.
        suspend: bool,
    },
    /// Have that many replicas of a service whose `scale.mode` is `manual`.
    Scale {
        /// `DEPLOYMENT/SERVICE`.
        target: String,
        /// How many.
        replicas: u32,
    },
    /// Bring back what is down or suspended.
    Start {
        /// `DEPLOYMENT[/SERVICE[/SLOT]]`.
        target: String,
    },
    /// Have it stay down until it is started, or another template is to run, which a restart is too, and a tag that moves is
    /// not.
    Stop {
        /// `DEPLOYMENT[/SERVICE[/SLOT]]`.
        target: String,
    },
    /// Let no limit on idleness, and no recycling, end it for that long from now, or let them again.
    Hold {
        /// `DEPLOYMENT[/SERVICE[/SLOT]]`.
        target: String,
        /// For how long, in seconds; at most [`HOLD_MOST`](crate::plan::HOLD_MOST). Released where it is absent.
        seconds: Option<u64>,
    },
}

/// What was ordered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ordered {
    /// The deployment that it concerns.
    pub deployment: String,
    /// What came of it, one line for each service or deployment.
    pub results: Vec<String>,
}

/// What was ordered, and what has to be written before that is told.
pub struct Taken {
    ordered: Ordered,
    kept: Vec<oneshot::Receiver<Result<(), String>>>,
}

impl Order {
    /// Whether what failed before is to be tried again at once.
    const fn is_another_try(&self) -> bool {
        match self {
            Self::Undo { .. }
            | Self::Resume { .. }
            | Self::Restart { .. }
            | Self::Start { .. }
            | Self::Suspend { suspend: false, .. } => true,
            Self::Pause { .. }
            | Self::Stop { .. }
            | Self::Hold { .. }
            | Self::Suspend { suspend: true, .. }
            | Self::Scale { .. } => false,
        }
    }

    /// What it is about.
    fn target(&self) -> Result<Target, EngineError> {
        let name = match self {
            Self::Undo { target, .. }
            | Self::Pause { target }
            | Self::Resume { target }
            | Self::Restart { target }
            | Self::Scale { target, .. }
            | Self::Start { target }
            | Self::Stop { target }
            | Self::Hold { target, .. } => target,
            Self::Suspend { deployment, .. } => deployment,
        };
        name.parse().map_err(|error| EngineError::Invalid(format!("{error}")))
    }
}

impl Engine {
    /// Does what a user orders. Returns as soon as it counts and is recorded; watch the status for what comes of it.
    ///
    /// # Errors
    /// `NotFound` where it names nothing that is declared; `Conflict` where the present state does not allow it, or this
    /// engine may only look; `Invalid` where it makes no sense for what it names; it can't be recorded.
    pub async fn order(&self, order: &Order) -> Result<Ordered, EngineError> {
        let (engine, order) = (self.clone(), order.clone());
        to_its_end(async move { engine.order_now(order).await }).await
    }

    async fn order_now(&self, order: Order) -> Result<Ordered, EngineError> {
        if self.inner.mode == Mode::Observe {
            return Err(EngineError::Conflict("this engine only looks".to_owned()));
        }
        self.inner.archive.check_kept()?;
        let _one_at_a_time = self.inner.applying.lock().await;
        self.rescan().await?;
        let Taken { ordered, kept } = self.ask(|reply| Command::Order(order, reply)).await??;
        self.keep_notes().await;
        written(kept).await?;
        self.attend_to([ordered.deployment.clone()].into()).await?;
        self.ask(Command::Settle).await?;
        Ok(ordered)
    }
}

impl State {
    /// Takes an order: all of it or, on an error, nothing.
    pub(super) fn order(&mut self, order: &Order) -> Result<Taken, EngineError> {
        let target = order.target()?;
        let name = target.deployment.clone();
        let mut memory = self.memory.get(&name).cloned().unwrap_or_default();
        let results = match order {
            Order::Suspend { suspend, .. } => vec![self.suspend(&target, *suspend, &mut memory)?],
            Order::Scale { replicas, .. } => vec![self.scale(&target, *replicas, &mut memory)?],
            Order::Start { .. } => self.order_life(&target, true, &mut memory)?,
            Order::Stop { .. } => self.order_life(&target, false, &mut memory)?,
            Order::Hold { seconds, .. } => self.order_hold(&target, *seconds, &mut memory)?,
            order => self.order_rollouts(order, &target, &mut memory)?,
        };
        let before = self.memory.insert(name.clone(), memory.clone()).unwrap_or_default();
        let mut kept = Vec::new();
        if before.orders != memory.orders {
            kept.extend(self.keep_told(&name, None, Note::Orders(memory.orders.clone())));
        }
        for (service, history) in &memory.rollouts {
            if before.rollouts.get(service) != Some(history) {
                kept.extend(self.keep_told(&name, Some(service), Note::Rollout(Box::new(history.clone()))));
            }
        }
        for result in &results {
            tracing::info!("{result}, as ordered");
            self.record_event(Some(&name), event_of(order), format!("{result}, as ordered"));
        }
        // What was refused or waits may be another thing now.
        if order.is_another_try() {
            self.record_of(&name).forget_failures(target.service.as_deref());
        }
        if matches!(order, Order::Restart { .. }) {
            self.ask_for_images(&name);
        }
        self.queue.add(&name, Instant::now());
        Ok(Taken { ordered: Ordered { deployment: name, results }, kept })
    }

    /// Hands on a note; gives what tells whether it was written, where anybody writes it.
    fn keep_told(
        &self,
        deployment: &str,
        service: Option<&str>,
        note: Note,
    ) -> Option<oneshot::Receiver<Result<(), String>>> {
        self.keeper.as_ref()?;
        let (tell, told) = oneshot::channel();
        self.keep(deployment, service, note, Some(tell));
        Some(told)
    }

    fn order_rollouts(
        &mut self,
        order: &Order,
        target: &Target,
        memory: &mut Memory,
    ) -> Result<Vec<String>, EngineError> {
        let now = self.now().0;
        let declared = self.targets(target, "rolled out, paused or undone")?;
        if let (Order::Undo { .. }, [first, _, ..]) = (order, &declared[..]) {
            return Err(EngineError::Invalid(format!(
                "{} has several services, each with revisions of its own; name one, such as {0}/{}",
                target.deployment, first.name
            )));
        }
        let scaled = shown(
            self.declared_one(&target.deployment)?,
            &Memory { orders: memory.orders.clone(), ..Memory::default() },
        );
        let services = declared.iter().filter_map(|service| scaled.services.get(&service.name));
        let mut results = Vec::new();
        let mut refused = None;
        for service in services {
            let history = memory.rollouts.entry(service.name.clone()).or_default();
            let name = ServiceName { deployment: target.deployment.clone(), service: service.name.clone() };
            let service = history.with_image(service);
            match one(order, history, &service, now) {
                Ok(done) => results.push(format!("service/{name} {done}")),
                Err(OrderError::Same { number }) => {
                    results.push(format!("service/{name} skipped rollback: revision {number} is to run already"));
                }
                Err(error) => refused = refused.or(Some(refusal(&name, &error))),
            }
        }
        memory.rollouts.retain(|_, history| *history != RolloutHistory::default());
        match refused {
            // Where several services are meant, those that it makes no sense for are passed over.
            Some(error) if results.is_empty() => Err(error),
            _ => Ok(results),
        }
    }

    fn suspend(&self, target: &Target, suspend: bool, memory: &mut Memory) -> Result<String, EngineError> {
        let name = &target.deployment;
        if target.service.is_some() {
            return Err(EngineError::Invalid(format!("a deployment is suspended as a whole; name {name}")));
        }
        if !(memory.orders.suspended && self.cache.of(name).next().is_some()) {
            self.declared_one(name)?;
        }
        let word = if suspend { "suspended" } else { "resumed" };
        if memory.orders.suspended == suspend {
            let state = if suspend { "already suspended" } else { "not suspended" };
            return Err(EngineError::Conflict(format!("deployment {name} is {state}")));
        }
        memory.orders.suspended = suspend;
        Ok(format!("deployment/{name} {word}"))
    }

    fn scale(&self, target: &Target, replicas: u32, memory: &mut Memory) -> Result<String, EngineError> {
        if target.service.is_none() {
            let text = format!("replicas are those of one service; name {}/SERVICE", target.deployment);
            return Err(EngineError::Invalid(text));
        }
        let services = self.targets(target, "scaled by hand")?;
        let Some(service) = services.first() else { return Ok(String::new()) };
        let at = &service.source;
        let instead = match &service.spec.scale {
            Some(Scale::Manual) => None,
            None => Some(format!(
                "has the one replica of a service without `scale`; write `scale: {{mode: manual}}` at {at}"
            )),
            Some(Scale::Fixed { replicas: fixed }) => Some(format!(
                "has scale.mode: fixed with {}; edit scale.replicas, or write `scale: {{mode: manual}}`, at {at}",
                crate::plan::replicas(*fixed)
            )),
            Some(Scale::Adaptive { min, max, .. }) => Some(format!(
                "is scaled by its load between {min} and {max} replicas; edit scale.min and scale.max at {at}"
            )),
        };
        if let Some(instead) = instead {
            return Err(EngineError::Invalid(format!("{target} {instead}")));
        }
        if replicas > MAX_REPLICAS {
            return Err(EngineError::Invalid(format!("a service has at most {MAX_REPLICAS} replicas")));
        }
        memory.orders.replicas.insert(service.name.clone(), replicas);
        Ok(format!("service/{target} scaled to {replicas}"))
    }
}

impl State {
    /// Forgets how many replicas were ordered of services that are declared no more, or whose `scale.mode` is not `manual` any
    /// more: the same name declared later is another service.
    pub(super) fn forget_replicas(&mut self, deployment: &str, desired: Result<&DesiredDeployment, Fate>) {
        let is_manual = |service: &DesiredService| service.spec.scale == Some(Scale::Manual);
        let stays = |name: &String| match desired {
            Ok(desired) => desired.services.get(name).is_some_and(is_manual),
            // Where it is not certain that it was taken back, it may be declared all the same.
            Err(Fate::Kept | Fate::Orphaned) => true,
            Err(Fate::Removed) => false,
        };
        if !self.covers(deployment) {
            return;
        }
        let Some(memory) = self.memory.get_mut(deployment) else { return };
        let before = memory.orders.replicas.len();
        memory.orders.replicas.retain(|name, _| stays(name));
        if memory.orders.replicas.len() < before {
            let orders = memory.orders.clone();
            self.keep(deployment, None, Note::Orders(orders), None);
        }
    }
}

/// Carries an order out for one service; says what came of it.
fn one(
    order: &Order,
    history: &mut RolloutHistory,
    service: &DesiredService,
    now: chrono::DateTime<chrono::Utc>,
) -> Result<String, OrderError> {
    match order {
        Order::Undo { to_revision, .. } => revisions::undo(history, service, *to_revision, now)
            .map(|number| format!("rolled back to revision {number}")),
        Order::Pause { .. } => revisions::pause(history).map(|()| "paused".to_owned()),
        Order::Resume { .. } => revisions::resume(history, now).map(|()| "resumed".to_owned()),
        Order::Restart { .. } => revisions::restart(history, service, now).map(|()| "restarted".to_owned()),
        Order::Suspend { .. } | Order::Scale { .. } | Order::Start { .. } | Order::Stop { .. } | Order::Hold { .. } => {
            Ok(String::new())
        }
    }
}

fn refusal(name: &ServiceName, error: &OrderError) -> EngineError {
    let text = format!("service {name}: {error}");
    match error {
        OrderError::Unknown { .. } | OrderError::NoHistory | OrderError::NoneComplete { .. } => {
            EngineError::NotFound(text)
        }
        OrderError::Paused | OrderError::AlreadyPaused | OrderError::NotPaused | OrderError::Same { .. } => {
            EngineError::Conflict(text)
        }
    }
}

const fn event_of(order: &Order) -> &'static str {
    match order {
        Order::Undo { .. } => "RolloutUndone",
        Order::Pause { .. } => "RolloutPaused",
        Order::Resume { .. } => "RolloutResumed",
        Order::Restart { .. } => "RolloutRestarted",
        Order::Suspend { suspend: true, .. } => "Suspended",
        Order::Suspend { suspend: false, .. } => "Resumed",
        Order::Scale { .. } => "Scaled",
        Order::Start { .. } => "Started",
        Order::Stop { .. } => "Stopped",
        Order::Hold { seconds: Some(_), .. } => "Held",
        Order::Hold { seconds: None, .. } => "Released",
    }
}
