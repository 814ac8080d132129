//! Bounds on runtime calls that are under way at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many deployments' worth of calls may be under way on one runtime. One deployment alone reaches the
/// concurrency that the runtime serves well; the factor keeps a deployment whose calls are slow from holding up
/// the others. Docker bounds its own concurrency so that the product stays well below the hundred removals at once
/// that were seen to lock up Docker 20.10 for good.
const DEPLOYMENTS_AT_ONCE: usize = 4;

/// Stops of one deployment that may be waiting for a grace period at once. Each costs the runtime a connection and
/// next to nothing else; a deployment that needs more stops in waves, and holds up nobody but itself.
const STOPS_AT_ONCE: usize = 32;

/// Stops on one runtime that may be waiting for a grace period at once: each holds a connection, of which the controller and
/// the engine have a thousand each where nobody raised the usual limit of open files.
const STOPS_IN_ALL: usize = 8 * STOPS_AT_ONCE;

/// Connections of one deployment's starts to servers that they wait for, at once: each is over within seconds, and is made
/// again.
const DIALS_AT_ONCE: usize = 16;

/// Such connections of all deployments at once; as many as health checks make.
const DIALS_IN_ALL: usize = 4 * DIALS_AT_ONCE;

/// What kind of call it is: short ones must not wait for long ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallKind {
    /// Create, start, resume, remove: short.
    Short,
    /// Stop: as long as its grace.
    Stop,
    /// A connection to a server that a start waits for.
    Dial,
    /// A step before a start, which bounds its own calls.
    Init,
    /// Having an image: mostly nothing but a look; runtimes bound real pulls themselves.
    Image,
}

/// Lets a bounded number of calls through to one runtime.
#[derive(Debug)]
pub struct Gate {
    per_deployment: usize,
    deployments: Mutex<HashMap<(String, CallKind), Arc<Semaphore>>>,
    all: Arc<Semaphore>,
    stops: Arc<Semaphore>,
    dials: Arc<Semaphore>,
}

/// Permission for one call; ends when dropped.
#[derive(Debug)]
pub struct Pass {
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Gate {
    /// A gate for a runtime that serves `concurrency` calls well side by side; at least one.
    pub fn new(concurrency: usize) -> Self {
        let per_deployment = concurrency.max(1);
        Self {
            per_deployment,
            deployments: Mutex::default(),
            all: Arc::new(Semaphore::new(per_deployment * DEPLOYMENTS_AT_ONCE)),
            stops: Arc::new(Semaphore::new(STOPS_IN_ALL)),
            dials: Arc::new(Semaphore::new(DIALS_IN_ALL)),
        }
    }

    /// Waits until a call of this kind may be made for this deployment.
    pub async fn pass(&self, deployment: &str, kind: CallKind) -> Pass {
        let semaphores = match kind {
            CallKind::Image | CallKind::Init => vec![],
            CallKind::Dial => vec![self.of_deployment(deployment, kind, DIALS_AT_ONCE), self.dials.clone()],
            CallKind::Stop => vec![self.of_deployment(deployment, kind, STOPS_AT_ONCE), self.stops.clone()],
            CallKind::Short => vec![self.of_deployment(deployment, kind, self.per_deployment), self.all.clone()],
        };
        let mut permits = Vec::with_capacity(semaphores.len());
        for semaphore in semaphores {
            // A semaphore that is never closed can't refuse; without a permit the call goes ahead unbounded.
            permits.extend(semaphore.acquire_owned().await.ok());
        }
        Pass { _permits: permits }
    }

    fn of_deployment(&self, deployment: &str, kind: CallKind, permits: usize) -> Arc<Semaphore> {
        let mut deployments = self.deployments.lock().unwrap_or_else(PoisonError::into_inner);
        if deployments.len() > FORGET_ABOVE {
            deployments.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
        }
        let key = (deployment.to_owned(), kind);
        deployments.entry(key).or_insert_with(|| Arc::new(Semaphore::new(permits))).clone()
    }
}

/// Deployments without calls are forgotten once there are that many, so that names that come and go leave nothing.
const FORGET_ABOVE: usize = 1024;

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn one_deployment_never_holds_up_another() {
        let gate = Gate::new(2);
        let _first = gate.pass("a", CallKind::Short).await;
        let _second = gate.pass("a", CallKind::Short).await;
        assert!(gate.pass("a", CallKind::Short).now_or_never().is_none(), "a third call of the same deployment waits");
        assert!(gate.pass("b", CallKind::Short).now_or_never().is_some(), "another deployment does not");
    }

    #[tokio::test]
    async fn stops_in_their_grace_hold_up_only_stops_of_their_deployment() {
        let gate = Gate::new(1);
        let mut held = Vec::new();
        for _ in 0..STOPS_AT_ONCE {
            held.push(gate.pass("a", CallKind::Stop).await);
        }
        assert!(gate.pass("a", CallKind::Stop).now_or_never().is_none());
        assert!(gate.pass("a", CallKind::Short).now_or_never().is_some());
        assert!(gate.pass("b", CallKind::Stop).now_or_never().is_some());
        assert!(gate.pass("a", CallKind::Image).now_or_never().is_some());
    }

    #[tokio::test]
    async fn stops_of_many_deployments_are_bounded_together() {
        let gate = Gate::new(1);
        let mut held = Vec::new();
        for number in 0..STOPS_IN_ALL {
            held.push(gate.pass(&format!("d{}", number / STOPS_AT_ONCE), CallKind::Stop).await);
        }
        assert!(gate.pass("another", CallKind::Stop).now_or_never().is_none());
        held.pop();
        // With a turn that has polled little: tokio lets none of its waits be ready for ever.
        tokio::task::yield_now().await;
        assert!(gate.pass("another", CallKind::Stop).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_pass_that_ends_makes_room() {
        let gate = Gate::new(1);
        let pass = gate.pass("a", CallKind::Short).await;
        assert!(gate.pass("a", CallKind::Short).now_or_never().is_none());
        drop(pass);
        assert!(gate.pass("a", CallKind::Short).now_or_never().is_some());
    }
}
