//! Changes of instances, whoever makes them: a file that every change writes is watched.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use notify::{RecursiveMode, Watcher};
use tokio::sync::{Notify, broadcast};

use super::layout::Layout;
use super::observe;
use crate::runtime::RuntimeEvent;
use crate::state::Instance;

/// Events that wait for a slow reader before it has to list again.
const BACKLOG: usize = 1024;
/// Time between two looks without a change that was told: a supervisor that is killed writes nothing.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// What watches the instances of one owner.
#[derive(Debug)]
pub struct Watch {
    layout: Layout,
    known: Mutex<BTreeMap<String, Instance>>,
    sender: broadcast::Sender<RuntimeEvent>,
    poked: Notify,
}

impl Watch {
    /// One that has seen nothing yet.
    pub fn new(layout: Layout) -> Self {
        let (known, poked) = (Mutex::default(), Notify::new());
        Self { layout, known, sender: broadcast::channel(BACKLOG).0, poked }
    }

    /// Has it look now.
    pub fn poke(&self) {
        self.poked.notify_one();
    }

    /// Looks at every instance, and tells what changed since the last look.
    pub fn look(&self) -> std::io::Result<()> {
        let now = observe::all(&self.layout)?.into_iter().map(|one| (one.instance.runtime_id.clone(), one.instance));
        let now: BTreeMap<String, Instance> = now.collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, instance) in &now {
            if known.get(name) != Some(instance) {
                // Nobody needs to listen.
                let _ = self.sender.send(RuntimeEvent::Changed(Box::new(instance.clone())));
            }
        }
        for (name, instance) in known.iter() {
            if !now.contains_key(name) {
                let _ = self.sender.send(RuntimeEvent::Gone(instance.as_ref()));
            }
        }
        *known = now;
        Ok(())
    }

    /// What changes from now on.
    pub fn subscribe(&self) -> BoxStream<'static, RuntimeEvent> {
        stream::unfold(self.sender.subscribe(), |mut receiver| async move {
            match receiver.recv().await {
                Ok(event) => Some((event, receiver)),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    let reason = format!("{missed} events were not read in time");
                    Some((RuntimeEvent::Resync { reason }, receiver))
                }
                Err(broadcast::error::RecvError::Closed) => None,
            }
        })
        .boxed()
    }

    /// Looks whenever something may have changed, until nobody has this any more.
    pub fn run(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        let told = weak.clone();
        let watcher = notify::recommended_watcher(move |_: notify::Result<notify::Event>| {
            if let Some(watch) = told.upgrade() {
                watch.poke();
            }
        });
        let watcher = watcher.and_then(|mut watcher| {
            watcher.watch(&self.layout.changed(), RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        if let Err(error) = &watcher {
            tracing::warn!(%error, "changes of instances can't be watched; they are looked at every 5 s");
        }
        tokio::spawn(async move {
            let _watcher = watcher;
            while let Some(watch) = weak.upgrade() {
                let looked = watch.clone();
                match tokio::task::spawn_blocking(move || looked.look()).await {
                    Ok(Ok(())) | Err(_) => {}
                    Ok(Err(error)) => tracing::warn!(%error, "the instances can't be looked at"),
                }
                let _ = tokio::time::timeout(LOOK_INTERVAL, watch.poked.notified()).await;
            }
        });
    }
}
