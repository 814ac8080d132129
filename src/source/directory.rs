//! The source at work: wakes up, waits for quiet, scans, publishes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::bounds::{MAX_REQUESTS, MAX_RESCANS, POLL, RESCAN_LIMIT};
use super::scan::{Recording, Scanned, Scanner, SourceError};
use super::snapshot::{CountedFile, Root, SourceOptions, SpecSnapshot};
use super::trace::WatchPlan;
use super::unclosed::Unclosed;
use super::watcher::TreeWatcher;
use crate::clock::Clock;
use crate::spec::RuntimeKind;
use crate::store::{Store, StoreError};

/// Directories that are watched.
#[derive(Debug)]
pub struct DirectorySource;

impl DirectorySource {
    /// Starts watching. The receiver holds an empty snapshot, which is not synced, until the first scan is done. The
    /// source ends when every handle is dropped.
    ///
    /// Must be called inside of a tokio runtime.
    ///
    /// # Errors
    /// Those of [`Scanner::load`].
    pub fn spawn(
        roots: Vec<Root>,
        store: Arc<Store>,
        clock: Arc<dyn Clock>,
        options: SourceOptions,
    ) -> Result<(watch::Receiver<Arc<SpecSnapshot>>, SourceHandle), SourceError> {
        let mut scanner = Scanner::load(roots, store, options, Recording::On)?;
        let (publish, snapshots) = watch::channel(scanner.snapshot());
        let (requests, inbox) = mpsc::channel(MAX_REQUESTS);
        let (wake, unclosed) = (Arc::new(Notify::new()), Unclosed::default());
        scanner.heed(unclosed.clone());
        let watcher = TreeWatcher::new(Arc::clone(&wake), unclosed, Arc::clone(&clock));
        let source = Source { inbox, wake, clock, options, publish, waiting: Vec::new() };
        tokio::spawn(source.run(Eyes { scanner, watcher }));
        Ok((snapshots, SourceHandle { requests }))
    }
}

/// Speaks to a source. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SourceHandle {
    requests: mpsc::Sender<Request>,
}

/// The source has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the source has ended")]
pub struct SourceStopped;

#[derive(Debug)]
enum Request {
    Rescan(oneshot::Sender<Arc<SpecSnapshot>>),
    Files(oneshot::Sender<Vec<CountedFile>>),
    Approve(oneshot::Sender<Result<Vec<String>, StoreError>>),
    Delete(BTreeSet<String>, oneshot::Sender<Result<(), StoreError>>),
    AskFor(BTreeSet<String>, Option<RuntimeKind>, oneshot::Sender<Result<(), StoreError>>),
    Forget(String, oneshot::Sender<Result<(), StoreError>>),
}

impl SourceHandle {
    /// Scans now, and waits until a scan that began after the call is published and nothing in it may be the middle of
    /// a save (for a few seconds at most). Gives what was published.
    pub async fn rescan(&self) -> Result<Arc<SpecSnapshot>, SourceStopped> {
        self.ask(Request::Rescan).await
    }

    /// What counted of each watched file at the last scan, by path.
    pub async fn files(&self) -> Result<Vec<CountedFile>, SourceStopped> {
        self.ask(Request::Files).await
    }

    /// Confirms the loss that is held, and that what other directories declared may go; gives the deployments. The
    /// outer error: the source has ended; the inner: it could not be recorded, and nothing is confirmed.
    pub async fn approve(&self) -> Result<Result<Vec<String>, StoreError>, SourceStopped> {
        self.ask(Request::Approve).await
    }

    /// Takes deployments back that are deleted by name, as [`Scanner::delete`] does. Errors as for
    /// [`SourceHandle::approve`].
    pub async fn delete(&self, names: BTreeSet<String>) -> Result<Result<(), StoreError>, SourceStopped> {
        self.ask(|reply| Request::Delete(names, reply)).await
    }

    /// Lets what files declare of these deployments count and be recorded, from the next scan on, on the runtime that is
    /// named, where one is, as [`Scanner::ask_for`] does. Errors as for [`SourceHandle::approve`].
    pub async fn ask_for(
        &self,
        names: BTreeSet<String>,
        runtime: Option<RuntimeKind>,
    ) -> Result<Result<(), StoreError>, SourceStopped> {
        self.ask(|reply| Request::AskFor(names, runtime, reply)).await
    }

    /// Takes a deployment out of the inventory, of which nothing exists any more. One that is declared (again) stays.
    /// Errors as for [`SourceHandle::approve`].
    pub async fn forget(&self, deployment: &str) -> Result<Result<(), StoreError>, SourceStopped> {
        self.ask(|reply| Request::Forget(deployment.to_owned(), reply)).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, SourceStopped> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| SourceStopped)?;
        answer.await.map_err(|_| SourceStopped)
    }
}

struct Source {
    inbox: mpsc::Receiver<Request>,
    wake: Arc<Notify>,
    clock: Arc<dyn Clock>,
    options: SourceOptions,
    publish: watch::Sender<Arc<SpecSnapshot>>,
    waiting: Vec<Waiter>,
}

/// Somebody who asked for a scan.
struct Waiter {
    reply: oneshot::Sender<Arc<SpecSnapshot>>,
    /// When it gets what there is.
    until: Instant,
}

/// What scans; lives on the thread pool while it does.
struct Eyes {
    scanner: Scanner,
    watcher: TreeWatcher,
}

/// When the next scan is due.
#[derive(Clone, Copy)]
struct Due {
    /// Whatever happens.
    regular: Instant,
    /// Because of events: when the first and the last of them came.
    burst: Option<(Instant, Instant)>,
}

impl Due {
    fn event(&mut self, now: Instant) {
        let first = self.burst.map_or(now, |(first, _)| first);
        self.burst = Some((first, now));
    }

    fn at(&self, options: &SourceOptions) -> Instant {
        let burst = self.burst.map(|(first, last)| (last + options.quiet).min(first + options.most));
        burst.map_or(self.regular, |burst| burst.min(self.regular))
    }
}

impl Source {
    async fn run(mut self, mut eyes: Eyes) {
        let mut due = Due { regular: Instant::now(), burst: None };
        let mut look_at_roots = tokio::time::interval(POLL);
        look_at_roots.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let request = tokio::select! {
                biased;
                () = tokio::time::sleep_until(due.at(&self.options)) => None,
                _ = look_at_roots.tick() => {
                    let Some((back, has_others)) = apart(eyes, |eyes| eyes.scanner.has_other_roots()).await else { return };
                    eyes = back;
                    if has_others {
                        due.event(Instant::now());
                    }
                    continue;
                }
                request = self.inbox.recv(), if self.waiting.len() < MAX_REQUESTS => match request {
                    None => return,
                    request => request,
                },
                () = self.wake.notified() => {
                    due.event(Instant::now());
                    continue;
                }
            };
            let Some((back, scanned)) = self.serve(eyes, request).await else { return };
            eyes = back;
            due = match scanned {
                Some(scanned) => self.publish(&scanned, &eyes),
                None => due,
            };
        }
    }

    /// Does what is asked, or what is due. None where the source can't go on.
    async fn serve(&mut self, eyes: Eyes, request: Option<Request>) -> Option<(Eyes, Option<Scanned>)> {
        match request {
            None => {}
            Some(Request::Rescan(reply)) => {
                self.waiting.push(Waiter { reply, until: Instant::now() + RESCAN_LIMIT });
            }
            Some(Request::Files(reply)) => {
                let files = eyes.scanner.files().to_vec();
                return Some(self.answer(eyes, reply, files, None));
            }
            Some(Request::Approve(reply)) => {
                let now = self.clock.now();
                let (eyes, outcome) = apart(eyes, move |eyes| eyes.scanner.approve(now)).await?;
                let (names, scanned) =
                    outcome.map_or_else(|error| (Err(error), None), |(names, scanned)| (Ok(names), Some(scanned)));
                return Some(self.answer(eyes, reply, names, scanned));
            }
            Some(Request::Delete(names, reply)) => {
                let now = self.clock.now();
                let (eyes, outcome) = apart(eyes, move |eyes| eyes.scanner.delete(&names, now)).await?;
                let (done, scanned) =
                    outcome.map_or_else(|error| (Err(error), None), |scanned| (Ok(()), Some(scanned)));
                return Some(self.answer(eyes, reply, done, scanned));
            }
            Some(Request::AskFor(names, runtime, reply)) => {
                let (eyes, outcome) = apart(eyes, move |eyes| eyes.scanner.ask_for(&names, runtime)).await?;
                return Some(self.answer(eyes, reply, outcome, None));
            }
            Some(Request::Forget(name, reply)) => {
                let (eyes, outcome) = apart(eyes, move |eyes| eyes.scanner.forget(&name)).await?;
                return Some(self.answer(eyes, reply, outcome, None));
            }
        }
        let clock = Arc::clone(&self.clock);
        let (eyes, scanned) = apart(eyes, move |eyes| eyes.scan(clock.as_ref())).await?;
        Some((eyes, Some(scanned)))
    }

    /// Publishes what a request changed before its answer, so that whoever gets that sees it.
    fn answer<T>(
        &self,
        eyes: Eyes,
        reply: oneshot::Sender<T>,
        answer: T,
        scanned: Option<Scanned>,
    ) -> (Eyes, Option<Scanned>) {
        self.send(&eyes.scanner.snapshot());
        // A caller that has gone needs no answer.
        let _ = reply.send(answer);
        (eyes, scanned)
    }

    /// Publishes what a scan gave, answers those who wait for it, and says when the next one is due.
    fn publish(&mut self, scanned: &Scanned, eyes: &Eyes) -> Due {
        self.send(&scanned.snapshot);
        let now = Instant::now();
        for waiter in std::mem::take(&mut self.waiting) {
            if scanned.settles_in.is_none() || waiter.until <= now {
                let _ = waiter.reply.send(Arc::clone(&scanned.snapshot));
            } else {
                self.waiting.push(waiter);
            }
        }
        let blind = eyes.watcher.trouble().is_some() || !eyes.scanner.has_all_roots() || eyes.scanner.has_mounts();
        let regular = if blind { self.options.rescan.min(POLL) } else { self.options.rescan };
        let soon =
            scanned.settles_in.into_iter().chain(scanned.closes_in).map(|wait| wait.max(Duration::from_millis(1)));
        let answers = self.waiting.iter().map(|waiter| waiter.until);
        let next = soon.map(|wait| now + wait).chain(answers).min();
        Due { regular: next.map_or(now + regular, |next| next.min(now + regular)), burst: None }
    }

    /// Wakes receivers only where something changed.
    fn send(&self, snapshot: &Arc<SpecSnapshot>) {
        self.publish.send_if_modified(|published| {
            let changed = **published != **snapshot;
            *published = Arc::clone(snapshot);
            changed
        });
    }
}

impl Eyes {
    fn scan(&mut self, clock: &dyn Clock) -> Scanned {
        let Self { scanner, watcher } = self;
        let scanned = scan_and_watch(scanner, clock, |plan| watcher.follow(plan));
        scanner.set_polling(watcher.trouble().map(str::to_owned));
        Scanned { snapshot: scanner.snapshot(), ..scanned }
    }
}

/// Scans, watches what was found, and scans again where that was not watched before: what changed there between the
/// scan and the watch wakes nobody. `follow` is told what to watch, and says whether any of it is new.
fn scan_and_watch(scanner: &mut Scanner, clock: &dyn Clock, mut follow: impl FnMut(&WatchPlan) -> bool) -> Scanned {
    let mut scanned = scanner.scan(clock.now());
    for _ in 0..MAX_RESCANS {
        if !follow(scanner.watch_plan()) {
            break;
        }
        scanned = scanner.scan(clock.now());
    }
    scanned
}

/// Does file system work where it may block.
async fn apart<T: Send + 'static>(
    mut eyes: Eyes,
    work: impl FnOnce(&mut Eyes) -> T + Send + 'static,
) -> Option<(Eyes, T)> {
    let done = tokio::task::spawn_blocking(move || {
        let outcome = work(&mut eyes);
        (eyes, outcome)
    });
    match done.await {
        Ok(done) => Some(done),
        Err(error) => {
            // Receivers see that the channel is closed, and the controller ends.
            tracing::error!(%error, "the specs can't be read any more: a scan failed by a defect of keel");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::RootKind;
    use super::*;
    use crate::clock::SystemClock;

    /// A scanner on a directory, and what of it is declared.
    struct Bench {
        specs: tempfile::TempDir,
        _state: tempfile::TempDir,
        scanner: Scanner,
    }

    impl Bench {
        fn new() -> Self {
            let (specs, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let store = Arc::new(Store::open(state.path()).unwrap());
            let root = Root { path: specs.path().to_path_buf(), kind: RootKind::Watched };
            let scanner = Scanner::load(vec![root], store, SourceOptions::default(), Recording::On).unwrap();
            Self { specs, _state: state, scanner }
        }

        fn watcher() -> TreeWatcher {
            TreeWatcher::new(Arc::default(), Unclosed::default(), Arc::new(SystemClock))
        }

        fn declared(&self) -> Vec<String> {
            self.scanner.snapshot().deployments.keys().cloned().collect()
        }
    }

    #[test]
    fn what_is_made_between_the_scan_and_the_watch_is_found_without_an_event() {
        let mut bench = Bench::new();
        let below = bench.specs.path().join("below");
        std::fs::create_dir(&below).unwrap();
        let mut watcher = Bench::watcher();
        let mut watched = 0;
        scan_and_watch(&mut bench.scanner, &SystemClock, |plan| {
            watched += 1;
            if watched == 1 {
                let text = "service: web\ndeployment: a\nimage: { name: host }\n";
                std::fs::write(below.join("a.yaml"), text).unwrap();
            }
            watcher.follow(plan)
        });
        assert_eq!((bench.declared(), watched), (vec!["a".to_owned()], 2));
    }

    #[test]
    fn a_tree_that_grows_while_it_is_watched_is_not_scanned_for_ever() {
        let mut bench = Bench::new();
        let mut deepest = bench.specs.path().to_path_buf();
        let mut watcher = Bench::watcher();
        let mut watched = 0;
        scan_and_watch(&mut bench.scanner, &SystemClock, |plan| {
            watched += 1;
            deepest.push("d");
            std::fs::create_dir(&deepest).unwrap();
            watcher.follow(plan)
        });
        assert_eq!(watched, MAX_RESCANS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_scan_waits_for_quiet_and_not_for_ever() {
        let options = SourceOptions::default();
        let start = Instant::now();
        let mut due = Due { regular: start + options.rescan, burst: None };
        let mut now = start;
        due.event(now);
        assert_eq!(due.at(&options) - start, options.quiet);
        // Events that go on for longer than a scan may be put off.
        while now < start + options.most {
            now += options.quiet / 2;
            due.event(now);
        }
        assert_eq!(due.at(&options) - start, options.most);
    }

    #[tokio::test(start_paused = true)]
    async fn events_never_put_off_what_is_due() {
        let options = SourceOptions::default();
        let start = Instant::now();
        let mut due = Due { regular: start + options.quiet / 3, burst: None };
        due.event(start);
        assert_eq!(due.at(&options), due.regular);
    }
}
