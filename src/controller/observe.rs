//! Attaching to runtimes and following their events; every task here only reports to the core.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use tokio::sync::mpsc;

use super::message::{ListCall, Message};
use crate::runtime::{ErrorKind, Result, Runtime, RuntimeError};
use crate::spec::RuntimeKind;

/// First pause before a runtime that can't be reached is tried again.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// Longest pause between two tries; an engine that comes back is noticed within this time.
const RETRY_MOST: Duration = Duration::from_secs(15);

/// Longest time for a full list: the slowest list measured took 22 ms for 500 containers, so an engine that has not
/// answered after this long has locked up.
const LIST_DEADLINE: Duration = Duration::from_secs(60);

/// Makes a runtime's adapter, which may take several tries.
#[async_trait]
pub trait Connect: Send + Sync {
    /// Which runtime it connects to.
    fn kind(&self) -> RuntimeKind;
    /// One try.
    async fn connect(&self) -> Result<Arc<dyn Runtime>>;
}

/// A runtime that is there already.
pub struct Connected(pub Arc<dyn Runtime>);

#[async_trait]
impl Connect for Connected {
    fn kind(&self) -> RuntimeKind {
        self.0.kind()
    }

    async fn connect(&self) -> Result<Arc<dyn Runtime>> {
        Ok(self.0.clone())
    }
}

/// Connects, then follows events for ever. Ends when the core does.
pub async fn follow(connect: Arc<dyn Connect>, core: mpsc::Sender<Message>) {
    let kind = connect.kind();
    let Some(runtime) = attach(connect.as_ref(), &core).await else { return };
    if core.send(Message::Attached(runtime.clone())).await.is_err() {
        return;
    }
    let mut pause = RETRY_FIRST;
    loop {
        match runtime.events().await {
            Ok(mut events) => {
                pause = RETRY_FIRST;
                if core.send(Message::Subscribed(kind)).await.is_err() {
                    return;
                }
                while let Some(event) = events.next().await {
                    if core.send(Message::Event(kind, event)).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => {
                if core.send(Message::Unreachable(kind, error.message)).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MOST);
    }
}

async fn attach(connect: &dyn Connect, core: &mpsc::Sender<Message>) -> Option<Arc<dyn Runtime>> {
    let mut pause = RETRY_FIRST;
    loop {
        match connect.connect().await {
            Ok(runtime) => return Some(runtime),
            Err(error) => core.send(Message::Unreachable(connect.kind(), error.message)).await.ok()?,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MOST);
    }
}

/// One full list, reported to the core.
pub async fn list(runtime: Arc<dyn Runtime>, call: ListCall, core: mpsc::Sender<Message>) {
    let kind = runtime.kind();
    let listing = tokio::time::timeout(LIST_DEADLINE, runtime.list()).await.unwrap_or_else(|_| {
        Err(RuntimeError::new(
            ErrorKind::Timeout,
            format!("{kind} did not answer within {} s", LIST_DEADLINE.as_secs()),
        ))
    });
    // A core that has ended needs no list.
    let _ = core.send(Message::Listed(kind, call, listing)).await;
}
