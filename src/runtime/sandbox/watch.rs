//! Events: watches the supervisors of running instances and the directory of all instances. Nothing is polled; a
//! quiet machine causes no wake-up.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::broadcast;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::layout::Layout;
use super::observe::{self, Entry, Found};
use super::process::ProcessKey;
use crate::runtime::RuntimeEvent;
use crate::state::{Instance, Owner};

/// Events that a slow receiver may be behind before it is told to list again; several changes for each of some
/// hundred instances.
const BACKLOG: usize = 1024;
/// Time that changes of the directory are gathered before it is read again. Only what other processes do waits
/// for it.
const GATHER: Duration = Duration::from_millis(50);

/// Tells what changed to everyone who listens.
#[derive(Debug)]
pub struct Watch {
    layout: Layout,
    owner: Owner,
    sender: broadcast::Sender<RuntimeEvent>,
    known: Mutex<BTreeMap<String, Known>>,
    stop: CancellationToken,
    _guard: DropGuard,
}

/// What was last told of an instance.
#[derive(Debug)]
struct Known {
    instance: Instance,
    supervisor: Option<ProcessKey>,
}

impl Watch {
    /// A watch of one owner's instances that is not started yet.
    pub fn new(layout: Layout, owner: Owner) -> Self {
        let stop = CancellationToken::new();
        Self {
            layout,
            owner,
            sender: broadcast::channel(BACKLOG).0,
            known: Mutex::default(),
            _guard: stop.clone().drop_guard(),
            stop,
        }
    }

    /// Events from now on.
    pub fn subscribe(&self) -> BoxStream<'static, RuntimeEvent> {
        let receiver = self.sender.subscribe();
        let stop = self.stop.clone();
        futures::stream::unfold(receiver, |mut receiver| async move {
            let event = match receiver.recv().await {
                Ok(event) => event,
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    RuntimeEvent::Resync { reason: format!("{missed} events were missed") }
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            };
            Some((event, receiver))
        })
        .take_until(stop.cancelled_owned())
        .boxed()
    }

    /// Starts to watch the directory of all instances.
    ///
    /// # Errors
    /// The machine has no watch left to give (`fs.inotify.max_user_instances`).
    pub fn start(self: &Arc<Self>) -> io::Result<()> {
        let inotify = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let moved = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::MOVED_FROM | inotify::WatchFlags::DELETE;
        inotify::add_watch(&inotify, self.layout.instances(), moved | inotify::WatchFlags::ONLYDIR)?;
        // Made before it is watched, as a file that does not exist can't be.
        self.layout.wake_others();
        inotify::add_watch(&inotify, self.layout.wake(), inotify::WatchFlags::CLOSE_WRITE)?;
        let inotify = super::sys::wait_ready(inotify, Interest::READABLE)?;
        let (weak, stop) = (Arc::downgrade(self), self.stop.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            while drained(&inotify).await.is_ok() {
                tokio::time::sleep(GATHER).await;
                let Some(watch) = weak.upgrade() else { return };
                watch.look_at_all().await;
            }
        }));
        Ok(())
    }

    /// Tells everything that changed since it was last told.
    pub async fn look_at_all(self: &Arc<Self>) {
        let (layout, owner) = (self.layout.clone(), self.owner.clone());
        let listed = tokio::task::spawn_blocking(move || observe::all(&layout, &owner)).await;
        match listed {
            Ok(Ok(found)) => self.tell_all(&found),
            Ok(Err(error)) => {
                let _ = self.sender.send(RuntimeEvent::Resync { reason: format!("instances can't be read: {error}") });
            }
            Err(_) => {}
        }
    }

    /// Takes note of a complete list, and tells what is new in it.
    pub fn tell_all(self: &Arc<Self>, found: &[Found]) {
        let gone: Vec<String> = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            // What was created after the list was read is not gone.
            let is_there = |id: &str| {
                found.iter().any(|one| one.instance.runtime_id == id) || self.layout.instance(id).record().exists()
            };
            known.keys().filter(|id| !is_there(id)).cloned().collect()
        };
        for one in found {
            self.tell(one);
        }
        for id in gone {
            self.tell_gone(&id);
        }
    }

    /// Takes note of an instance, tells it where it changed, and watches it while it runs.
    pub fn tell(self: &Arc<Self>, found: &Found) {
        let supervisor = found.run.as_ref().map(|run| run.supervisor);
        let (changed, newly_run) = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            // What was removed after it was looked at does not come back.
            if !self.layout.instance(&found.instance.runtime_id).record().exists() {
                return;
            }
            let entry = Known { instance: found.instance.clone(), supervisor };
            let old = known.insert(found.instance.runtime_id.clone(), entry);
            (
                old.as_ref().is_none_or(|old| old.instance != found.instance),
                supervisor.filter(|_| old.is_none_or(|old| old.supervisor != supervisor)),
            )
        };
        if changed {
            let _ = self.sender.send(RuntimeEvent::Changed(Box::new(found.instance.clone())));
        }
        if let Some(supervisor) = newly_run {
            self.attend(found.instance.runtime_id.clone(), supervisor);
        }
    }

    /// Takes note that an instance is gone.
    pub fn tell_gone(&self, runtime_id: &str) {
        let old = self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(runtime_id);
        if let Some(old) = old {
            let _ = self.sender.send(RuntimeEvent::Gone(old.instance.as_ref()));
        }
    }

    /// Waits for the end of a supervisor and tells what it left.
    fn attend(self: &Arc<Self>, runtime_id: String, supervisor: ProcessKey) {
        let (weak, stop) = (Arc::downgrade(self), self.stop.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            if let Some(pidfd) = supervisor.open() {
                let _ = ended(pidfd).await;
            }
            let Some(watch) = weak.upgrade() else { return };
            let (layout, owner, id) = (watch.layout.clone(), watch.owner.clone(), runtime_id.clone());
            match tokio::task::spawn_blocking(move || observe::one(&layout, &owner, &id)).await {
                Ok(Ok(Entry::Ours(found))) => watch.tell(&found),
                Ok(Ok(Entry::Nothing | Entry::Foreign(_))) => watch.tell_gone(&runtime_id),
                Ok(Err(_)) | Err(_) => {}
            }
        }));
    }
}

/// Waits until a process ended.
///
/// # Errors
/// It can't be waited for.
pub async fn ended(pidfd: OwnedFd) -> io::Result<()> {
    let pidfd = super::sys::wait_ready(pidfd, Interest::READABLE)?;
    pidfd.readable().await.map(drop)
}

/// Waits for a notification and takes all that wait.
///
/// # Errors
/// It can't be waited for.
pub async fn drained(inotify: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut ready = inotify.readable().await?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(inotify.get_ref(), &mut buffer);
    while reader.next().is_ok() {}
    ready.clear_ready();
    Ok(())
}
