//! What happened, for the record: steps that were taken or failed, and problems of source files.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::sync::mpsc;

use super::apply::blocking;
use super::open::local;
use crate::store::Store;

/// Events that may wait for the database. More than that are left out: the record is history, and history must not
/// hold up what it is about.
const WAITING: usize = 1024;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: DateTime<Utc>,
    /// The deployment that it concerns, where it concerns one.
    pub deployment: Option<String>,
    /// What kind of thing, in one CamelCase word.
    pub kind: &'static str,
    /// What, in a sentence.
    pub message: String,
}

/// Where events go; dropped with the core.
pub fn record(store: Arc<Store>) -> (mpsc::Sender<Event>, impl Future<Output = ()>) {
    let (events, mut inbox) = mpsc::channel::<Event>(WAITING);
    let write = async move {
        while let Some(Event { at, deployment, kind, message }) = inbox.recv().await {
            let store = store.clone();
            let write = move || store.record_event(at, deployment.as_deref(), kind, &message);
            if let Err(error) = blocking(move || write().map_err(local("an event is not recorded"))).await {
                tracing::debug!("{error}");
            }
        }
    };
    (events, write)
}
