//! What is declared, where nobody watches it: read again when somebody asks.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::Instant;

use super::EngineError;
use super::apply::blocking;
use super::declared::Declared;
use super::engine::ask;
use super::message::{Command, Message};
use super::open::{convert_snapshot, source_error};
use crate::clock::SystemClock;
use crate::source::{CountedFile, Recording, Root, Scanner, SourceError, SourceOptions, SpecSnapshot};
use crate::spec::RuntimeKind;
use crate::store::{SourceState, Store};

/// Reads the declarations when it is asked to, and tells the core.
pub struct Reread {
    roots: Vec<Root>,
    store: Arc<Store>,
    default_runtime: RuntimeKind,
    declared: watch::Sender<Arc<Declared>>,
    /// Held until what was read is told, so that nothing older follows.
    last: Mutex<Option<Last>>,
}

/// The last time that everything was read.
struct Last {
    began: Instant,
    reader: Reader,
}

/// Knows what it read before, and what the store held by then.
struct Reader {
    scanner: Scanner,
    stored: SourceState,
}

impl Reread {
    /// Reads these directories, and what the store remembers of them.
    pub fn new(
        roots: Vec<Root>,
        store: Arc<Store>,
        default_runtime: RuntimeKind,
        declared: watch::Sender<Arc<Declared>>,
    ) -> Self {
        Self { roots, store, default_runtime, declared, last: Mutex::new(None) }
    }

    /// Reads everything, unless somebody began to at this moment or later; records nothing.
    ///
    /// # Errors
    /// A directory or the state database can't be read.
    pub async fn read(&self, as_of: Instant) -> Result<(), EngineError> {
        let mut last = self.last.lock().await;
        if last.as_ref().is_some_and(|last| last.began >= as_of) {
            return Ok(());
        }
        let began = Instant::now();
        let (before, roots, store) = (last.take(), self.roots.clone(), self.store.clone());
        let read = move || Reader::read(before.map(|last| last.reader), roots, store);
        let (reader, snapshot) = blocking(move || read().map_err(source_error)).await?;
        let next = convert_snapshot(&snapshot, self.default_runtime);
        self.declared.send_if_modified(|told| {
            let changed = **told != next;
            if changed {
                *told = Arc::new(next);
            }
            changed
        });
        *last = Some(Last { began, reader });
        Ok(())
    }

    /// The same; gives why something else than what its files say now counts of a deployment, by name, and what counts of
    /// each watched file.
    ///
    /// # Errors
    /// As for [`Reread::read`].
    pub(super) async fn read_files(
        &self,
        as_of: Instant,
    ) -> Result<(BTreeMap<String, String>, Vec<CountedFile>), EngineError> {
        self.read(as_of).await?;
        let last = self.last.lock().await;
        let scanner = last.as_ref().map(|last| &last.reader.scanner);
        Ok(scanner.map(|scanner| (scanner.snapshot().stale.clone(), scanner.files().to_vec())).unwrap_or_default())
    }

    /// The same as [`Reread::read`], and waits until what was read is part of the core's status.
    ///
    /// # Errors
    /// As for [`Reread::read`]; `Conflict` while the engine is shutting down.
    pub async fn settle(&self, as_of: Instant, core: &mpsc::Sender<Message>) -> Result<(), EngineError> {
        self.read(as_of).await?;
        ask(core, Command::Settle).await
    }
}

impl Reader {
    /// Reads what has changed; everything where another process has recorded something.
    fn read(
        before: Option<Self>,
        roots: Vec<Root>,
        store: Arc<Store>,
    ) -> Result<(Self, Arc<SpecSnapshot>), SourceError> {
        // Before the scanner reads it too: what is recorded in between is found the next time.
        let stored = store.source_state()?;
        let mut reader = match before.filter(|before| before.stored == stored) {
            Some(before) => before,
            None => {
                // Whoever only looks is answered at once: nothing is done about what seems to be gone.
                let quiet = SourceOptions::default().quiet;
                let options = SourceOptions { settle: quiet, ..SourceOptions::default() };
                let scanner = Scanner::load(roots, store, options, Recording::Off)?;
                Self { scanner, stored }
            }
        };
        let snapshot = reader.scanner.settle(&SystemClock);
        Ok((reader, snapshot))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::source::RootKind;

    /// A watched directory, and what is told of it.
    struct Bench {
        dir: tempfile::TempDir,
        store: Arc<Store>,
        reread: Reread,
        told: watch::Receiver<Arc<Declared>>,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Arc::new(Store::in_memory().unwrap());
            let (sender, told) = watch::channel(Arc::new(Declared::default()));
            let reread = Reread::new(Self::roots(&dir), store.clone(), RuntimeKind::Sim, sender);
            Self { dir, store, reread, told }
        }

        fn roots(dir: &tempfile::TempDir) -> Vec<Root> {
            vec![Root { path: dir.path().to_owned(), kind: RootKind::Watched }]
        }

        fn declare(&self, name: &str) {
            let text = format!("version: v1\ndeployment: {name}\nservices: {{ web: {{ image: {{ name: one }} }} }}\n");
            std::fs::write(self.dir.path().join(format!("{name}.yaml")), text).unwrap();
        }

        fn take_back(&self, name: &str) {
            std::fs::remove_file(self.dir.path().join(format!("{name}.yaml"))).unwrap();
        }

        /// The names that are declared, and those that are to go.
        fn told(&self) -> [Vec<String>; 2] {
            let told = self.told.borrow();
            [told.desired.deployments.keys().cloned().collect(), told.removed.keys().cloned().collect()]
        }

        /// What a controller records that looks at the directory.
        fn record(&self) {
            let options = SourceOptions::default();
            let scanner = Scanner::load(Self::roots(&self.dir), self.store.clone(), options, Recording::On);
            scanner.unwrap().settle(&SystemClock);
        }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[tokio::test]
    async fn what_somebody_else_has_just_read_is_not_read_again() {
        let bench = Bench::new();
        let before = Instant::now();
        bench.declare("a");
        bench.reread.read(before).await.unwrap();
        assert_eq!(bench.told(), [names(&["a"]), names(&[])]);
        bench.declare("b");
        bench.reread.read(before).await.unwrap();
        assert_eq!(bench.told(), [names(&["a"]), names(&[])]);
        tokio::time::sleep(Duration::from_millis(1)).await;
        bench.reread.read(Instant::now()).await.unwrap();
        assert_eq!(bench.told(), [names(&["a", "b"]), names(&[])]);
    }

    #[tokio::test]
    async fn readers_that_ask_at_once_share_one_look_and_the_newest_counts() {
        let bench = Bench::new();
        bench.declare("a");
        let asked = Instant::now();
        let read = async || {
            bench.reread.read(asked).await.unwrap();
            bench.reread.last.lock().await.as_ref().map(|last| last.began).unwrap()
        };
        // All of them have asked before the first one looks.
        let held = bench.reread.last.lock().await;
        let looks = futures::future::join_all((0..8).map(|_| read()));
        let (looks, ()) = tokio::join!(looks, async { drop(held) });
        assert!(looks.iter().all(|began| *began == looks[0]), "each looked itself: {looks:?}");
        assert_eq!(bench.told(), [names(&["a"]), names(&[])]);
    }

    #[tokio::test]
    async fn what_another_process_has_recorded_counts() {
        let bench = Bench::new();
        bench.declare("a");
        bench.declare("b");
        bench.record();
        bench.reread.read(Instant::now()).await.unwrap();
        bench.take_back("a");
        bench.reread.read(Instant::now()).await.unwrap();
        assert_eq!(bench.told(), [names(&["b"]), names(&["a"])]);
        bench.record();
        bench.store.forget("a").unwrap();
        bench.reread.read(Instant::now()).await.unwrap();
        assert_eq!(bench.told(), [names(&["b"]), names(&[])]);
    }
}
