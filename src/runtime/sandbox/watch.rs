//! Events: watches the supervisors of running instances and the directory of all instances. Where the machine has a watch left
//! to give, nothing is polled but what nobody tells of, once a minute: that somebody changed the machine's networks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::broadcast;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::bounds::{FILE_LIMIT, LIST_LIMIT, bounded};
use super::failed;
use super::observe::{Entry, Found, View};
use super::process::ProcessKey;
use crate::runtime::{ErrorKind, RuntimeEvent};
use crate::state::Instance;

/// Events that a slow receiver may be behind before it is told to list again; several changes for each of some
/// hundred instances.
const BACKLOG: usize = 1024;
/// Time that changes of the directory are gathered before it is read again. Only what other processes do waits
/// for it.
const GATHER: Duration = Duration::from_millis(50);
/// Time between two looks at all instances where the machine gives no watch. What this process does and the end of any
/// instance are told at once all the same; only what other processes begin is told this late.
const POLL: Duration = Duration::from_secs(1);
/// Time after which everything is to be listed anew, where a look at the networks belongs to: what a restart of the machine's
/// firewall or network services took away is missed for a minute.
const RELIST: Duration = Duration::from_secs(60);
/// Most looks at the files of what changed, where removals keep coming in between. What is still told wrongly then
/// is told rightly by the look that follows every removal.
const MOST_LOOKS: usize = 8;

/// Tells what changed to everyone who listens.
#[derive(Debug)]
pub struct Watch {
    view: Arc<View>,
    sender: broadcast::Sender<RuntimeEvent>,
    told: Mutex<Told>,
    stop: CancellationToken,
    _guard: DropGuard,
}

/// What was told so far.
#[derive(Debug, Default)]
struct Told {
    known: BTreeMap<String, Known>,
    /// Counts removals, so that a look at the files that one came after is repeated.
    removals: u64,
}

/// What was last told of an instance.
#[derive(Debug)]
struct Known {
    instance: Instance,
    supervisor: Option<ProcessKey>,
}

impl Watch {
    /// A watch of one owner's instances that is not started yet.
    pub fn new(view: Arc<View>) -> Self {
        let stop = CancellationToken::new();
        Self {
            view,
            sender: broadcast::channel(BACKLOG).0,
            told: Mutex::default(),
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

    /// Starts to watch the directory of all instances, or to look at it regularly while it can't be watched.
    pub fn start(self: &Arc<Self>) {
        let (sender, stop) = (self.sender.clone(), self.stop.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            loop {
                tokio::time::sleep(RELIST).await;
                // Where nobody listens, nobody lists.
                let _ = sender.send(RuntimeEvent::Resync { reason: "the networks are looked at".to_owned() });
            }
        }));
        let (weak, stop) = (Arc::downgrade(self), self.stop.clone());
        let mut inotify = self.notifications().map_err(warn).ok();
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            loop {
                let was_told = match &inotify {
                    Some(inotify) => drained(inotify).await.map_err(warn).is_ok(),
                    None => false,
                };
                tokio::time::sleep(if was_told { GATHER } else { POLL }).await;
                let Some(watch) = weak.upgrade() else { return };
                if !was_told {
                    // Somebody may have given a watch up, or raised the bound.
                    inotify = watch.notifications().ok();
                }
                watch.look_at_all().await;
            }
        }));
    }

    /// Notifications of what other processes do.
    ///
    /// # Errors
    /// The machine has no watch left to give (`fs.inotify.max_user_instances`, `fs.inotify.max_user_watches`).
    fn notifications(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let inotify = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let moved = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::MOVED_FROM | inotify::WatchFlags::DELETE;
        inotify::add_watch(&inotify, self.view.layout.instances(), moved | inotify::WatchFlags::ONLYDIR)?;
        // Made before it is watched, as a file that does not exist can't be.
        self.view.layout.wake_others();
        inotify::add_watch(&inotify, self.view.layout.wake(), inotify::WatchFlags::CLOSE_WRITE)?;
        super::sys::wait_ready(inotify, Interest::READABLE)
    }

    /// Tells everything that changed since it was last told.
    pub async fn look_at_all(self: &Arc<Self>) {
        let view = Arc::clone(&self.view);
        let read = move || view.all().map_err(|error| failed("reading instances", &error));
        match bounded("reading instances", LIST_LIMIT, ErrorKind::Timeout, read).await {
            Ok(found) => self.tell_all(&found).await,
            Err(error) => {
                let _ = self.sender.send(RuntimeEvent::Resync { reason: error.message });
            }
        }
    }

    /// Takes note of a complete list, and tells what is new in it.
    pub async fn tell_all(self: &Arc<Self>, found: &[Found]) {
        let listed: BTreeSet<&str> = found.iter().map(|one| one.instance.runtime_id.as_str()).collect();
        let missing: Vec<String> =
            self.told().known.keys().filter(|id| !listed.contains(id.as_str())).cloned().collect();
        self.note(found).await;
        // What was created after the list was read is not gone.
        let there = self.existing(missing.clone()).await;
        for id in missing.iter().filter(|id| !there.contains(*id)) {
            self.tell_gone(id);
        }
    }

    /// Takes note of an instance, tells it where it changed, and watches it while it runs.
    pub async fn tell(self: &Arc<Self>, found: &Found) {
        self.note(std::slice::from_ref(found)).await;
    }

    async fn note(self: &Arc<Self>, found: &[Found]) {
        for look in 1..=MOST_LOOKS {
            let (removals, news) = {
                let told = self.told();
                (told.removals, found.iter().filter(|one| told.is_news(one)).collect::<Vec<_>>())
            };
            if news.is_empty() {
                return;
            }
            // What was removed after it was looked at does not come back.
            let there = self.existing(news.iter().map(|one| one.instance.runtime_id.clone()).collect()).await;
            let mut told = self.told();
            if told.removals == removals || look == MOST_LOOKS {
                for one in news.into_iter().filter(|one| there.contains(&one.instance.runtime_id)) {
                    self.tell_one(&mut told, one);
                }
                return;
            }
        }
    }

    /// Those of these instances that have a record now; all of them where that can't be told.
    async fn existing(&self, ids: Vec<String>) -> BTreeSet<String> {
        let ids: BTreeSet<String> = ids.into_iter().collect();
        if ids.is_empty() {
            return ids;
        }
        let (layout, mut there) = (self.view.layout.clone(), ids.clone());
        let look = move || {
            there.retain(|id| layout.instance(id).record().exists());
            Ok(there)
        };
        bounded("looking for instances", FILE_LIMIT, ErrorKind::Failed, look).await.unwrap_or(ids)
    }

    fn tell_one(self: &Arc<Self>, told: &mut Told, found: &Found) {
        let supervisor = found.run.as_ref().map(|run| run.supervisor);
        let id = &found.instance.runtime_id;
        let old = told.known.insert(id.clone(), Known { instance: found.instance.clone(), supervisor });
        if old.as_ref().is_none_or(|old| old.instance != found.instance) {
            let _ = self.sender.send(RuntimeEvent::Changed(Box::new(found.instance.clone())));
        }
        if let Some(supervisor) = supervisor.filter(|_| old.is_none_or(|old| old.supervisor != supervisor)) {
            self.attend(id.clone(), supervisor);
        }
    }

    /// Tells that the network of a deployment was made whole again, and what had been missing.
    pub fn tell_mended(&self, deployment: String, what: String) {
        let message = format!("its network was changed from outside and is as it was again: {what}");
        let _ = self.sender.send(RuntimeEvent::Mended { deployment, message });
    }

    /// Takes note that an instance is gone.
    pub fn tell_gone(&self, runtime_id: &str) {
        let mut told = self.told();
        told.removals = told.removals.wrapping_add(1);
        if let Some(old) = told.known.remove(runtime_id) {
            let _ = self.sender.send(RuntimeEvent::Gone(old.instance.as_ref()));
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end of a supervisor and tells what it left.
    fn attend(self: &Arc<Self>, runtime_id: String, supervisor: ProcessKey) {
        let (weak, stop) = (Arc::downgrade(self), self.stop.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            gone(supervisor).await;
            let Some(watch) = weak.upgrade() else { return };
            let (view, id) = (Arc::clone(&watch.view), runtime_id.clone());
            let look = move || view.one(&id).map_err(|error| failed("looking at an instance", &error));
            match bounded("looking at an instance", FILE_LIMIT, ErrorKind::Failed, look).await {
                Ok(Entry::Ours(found)) => watch.tell(&found).await,
                Ok(Entry::Nothing | Entry::Foreign(_)) => watch.tell_gone(&runtime_id),
                // Somebody has to look again: that it ended would not be told else.
                Err(error) => {
                    let _ = watch.sender.send(RuntimeEvent::Resync { reason: error.to_string() });
                }
            }
        }));
    }
}

/// Waits until a process is gone; looked at every second where it can't be waited for, as without a free descriptor.
async fn gone(process: ProcessKey) {
    loop {
        match process.open() {
            Ok(None) => return,
            Ok(Some(pidfd)) => match ended(pidfd).await {
                Ok(()) => return,
                Err(_) => tokio::time::sleep(POLL).await,
            },
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

fn warn(error: io::Error) {
    tracing::warn!(
        "sandboxes are looked at every {POLL:?}, because their directory can't be watched: {error} (raise \
         fs.inotify.max_user_instances and fs.inotify.max_user_watches)"
    );
}

impl Told {
    /// Whether this is not what was last told.
    fn is_news(&self, found: &Found) -> bool {
        let supervisor = found.run.as_ref().map(|run| run.supervisor);
        self.known
            .get(&found.instance.runtime_id)
            .is_none_or(|known| known.instance != found.instance || known.supervisor != supervisor)
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
