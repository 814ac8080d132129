//! What outlives the controller of its decisions and of users' orders: read at its start, and written as it changes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::EngineError;
use super::apply::blocking;
use super::open::local;
use crate::plan::revisions::{Memory, Orders, RolloutHistory};
use crate::state::ActivityRecord;
use crate::store::{Remembered, Store, StoreError};

/// Pause before notes are written again that could not be: a full disk or a locked database is not mended within less.
const WRITE_AGAIN: Duration = Duration::from_secs(5);

/// Of which deployment, and of which service of it; none where it is about the deployment as a whole.
pub type NoteKey = (String, Option<String>);

/// What is to be remembered under a key, in place of what was before.
#[derive(Debug, Clone, PartialEq)]
pub enum Note {
    /// What users ordered of the deployment.
    Orders(Orders),
    /// Rollouts of the service.
    Rollout(Box<RolloutHistory>),
    /// Nothing.
    Forget,
}

/// Told whether a note was written, or why not.
pub type Kept = oneshot::Sender<Result<(), String>>;

/// Keeps notes for the next controller.
pub trait Keeper: Send + Sync {
    /// Takes a note, and whom to tell once it is written. Never waits.
    fn keep(&self, key: NoteKey, note: Note, kept: Option<Kept>);

    /// Takes notes that are written together or not at all. Never waits.
    fn keep_together(&self, notes: Vec<(NoteKey, Note)>);

    /// Takes what was seen of the use of a deployment's instances, in place of what was before. Never waits. Whoever does not
    /// keep it lets the next controller begin anew.
    fn keep_activity(&self, _deployment: &str, _record: Option<ActivityRecord>) {}
}

/// Notes on their way to the database. A later note of one key takes the place of an earlier one, so that there are never
/// more of them than services.
#[derive(Default)]
pub struct Notebook {
    waiting: Mutex<Waiting>,
    woken: Notify,
    /// Only one at a time writes, so that nothing older ever follows.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Waiting {
    notes: BTreeMap<NoteKey, Note>,
    activity: BTreeMap<String, Option<ActivityRecord>>,
    kept: Vec<Kept>,
}

impl Keeper for Notebook {
    fn keep(&self, key: NoteKey, note: Note, kept: Option<Kept>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.notes.insert(key, note);
        waiting.kept.extend(kept);
        drop(waiting);
        self.woken.notify_one();
    }

    fn keep_together(&self, notes: Vec<(NoteKey, Note)>) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).notes.extend(notes);
        self.woken.notify_one();
    }

    fn keep_activity(&self, deployment: &str, record: Option<ActivityRecord>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.activity.insert(deployment.to_owned(), record);
        drop(waiting);
        self.woken.notify_one();
    }
}

impl Notebook {
    /// Writes notes as they come, for ever.
    pub async fn write_on(self: Arc<Self>, store: Arc<Store>) {
        loop {
            self.woken.notified().await;
            while !self.write(store.clone()).await {
                tokio::time::sleep(WRITE_AGAIN).await;
            }
        }
    }

    /// Writes what waits, and returns whether nothing waits any more. What can't be written is told to whoever waits for it,
    /// and waits on unless a later note has taken its place.
    pub async fn write(&self, store: Arc<Store>) -> bool {
        let _one_at_a_time = self.writing.lock().await;
        let taken = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        let Waiting { notes, activity, kept } = taken;
        if !activity.is_empty() {
            let store = store.clone();
            let write = move || store.record_activity(&activity).map_err(local("activity is not recorded"));
            if let Err(error) = blocking(write).await {
                tracing::warn!("{error}");
            }
        }
        if notes.is_empty() {
            return true;
        }
        let rows: Vec<Remembered> = notes.iter().map(row).collect();
        let write = move || store.remember(&rows).map_err(local("what was decided is not recorded"));
        let written = blocking(write).await.map_err(|error| error.to_string());
        if let Err(error) = &written {
            tracing::warn!("{error}; it is tried again");
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            for (key, note) in notes {
                waiting.notes.entry(key).or_insert(note);
            }
        }
        for kept in kept {
            // Whoever asked may have gone.
            let _ = kept.send(written.clone());
        }
        written.is_ok()
    }
}

fn row(((deployment, service), note): (&NoteKey, &Note)) -> Remembered {
    let json = match note {
        Note::Orders(orders) => serde_json::to_string(&orders).ok(),
        Note::Rollout(history) => serde_json::to_string(&history).ok(),
        Note::Forget => None,
    };
    Remembered { deployment: deployment.clone(), service: service.clone(), json }
}

/// What is remembered, by deployment. What can't be read is left out with a warning, and forgotten where `may_write`.
pub fn load(store: &Store, may_write: bool) -> Result<BTreeMap<String, Memory>, StoreError> {
    let mut memories: BTreeMap<String, Memory> = BTreeMap::new();
    let mut unreadable = Vec::new();
    for row in store.memory()? {
        let memory = memories.entry(row.deployment.clone()).or_default();
        let json = row.json.as_deref().unwrap_or_default();
        let read = match &row.service {
            None => serde_json::from_str(json).map(|orders| memory.orders = orders),
            Some(service) => serde_json::from_str(json).map(|history: RolloutHistory| {
                memory.rollouts.insert(service.clone(), history.resumed());
            }),
        };
        if let Err(error) = read {
            let of = row.service.as_deref().unwrap_or("all services");
            tracing::warn!(
                deployment = row.deployment, service = of, %error,
                "what is remembered of its rollouts can't be read and is dropped; what runs goes on"
            );
            unreadable.push(Remembered { json: None, ..row });
        }
    }
    if may_write && !unreadable.is_empty() {
        store.remember(&unreadable)?;
    }
    Ok(memories)
}

/// Waits until notes are written.
pub async fn written(waits: Vec<oneshot::Receiver<Result<(), String>>>) -> Result<(), EngineError> {
    for wait in waits {
        // Whoever was to tell has ended, and with it what was ordered.
        let told = wait.await.map_err(|_| EngineError::Ended)?;
        told.map_err(|why| {
            let text =
                format!("it counts from now on, and is forgotten if the controller ends before it is written: {why}");
            local("the order can't be kept")(std::io::Error::other(text))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::LifeOrders;

    fn key(service: Option<&str>) -> NoteKey {
        ("demo".to_owned(), service.map(str::to_owned))
    }

    #[tokio::test]
    async fn the_last_note_of_a_key_is_written_and_read_again() {
        let store = Arc::new(Store::in_memory().unwrap());
        let notebook = Notebook::default();
        let orders = |suspended| {
            let holds = [("web".to_owned(), [(0, chrono::DateTime::UNIX_EPOCH)].into())].into();
            Orders { suspended, lives: LifeOrders { holds, ..LifeOrders::default() }, ..Orders::default() }
        };
        let (tell, told) = oneshot::channel();
        notebook.keep(key(None), Note::Orders(orders(false)), Some(tell));
        notebook.keep(key(None), Note::Orders(orders(true)), None);
        notebook.keep(key(Some("web")), Note::Rollout(Box::default()), None);
        notebook.write(store.clone()).await;
        written(vec![told]).await.unwrap();
        let memory = Memory { orders: orders(true), rollouts: [("web".to_owned(), RolloutHistory::default())].into() };
        assert_eq!(load(&store, true).unwrap(), BTreeMap::from([("demo".to_owned(), memory)]));
        notebook.keep_together(vec![(key(None), Note::Forget), (key(Some("web")), Note::Forget)]);
        notebook.write(store.clone()).await;
        assert_eq!(load(&store, true).unwrap(), BTreeMap::new());
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_written_later_unless_it_was_followed() {
        let store = Arc::new(Store::in_memory().unwrap());
        let notebook = Notebook::default();
        let orders = |web| Orders { replicas: [("web".to_owned(), web)].into(), ..Orders::default() };
        let (tell, told) = oneshot::channel();
        notebook.keep(key(None), Note::Orders(orders(1)), Some(tell));
        notebook.keep(key(Some("web")), Note::Rollout(Box::default()), None);
        store.refuse_writes(true);
        assert!(!notebook.write(store.clone()).await);
        written(vec![told]).await.unwrap_err();
        notebook.keep(key(None), Note::Orders(orders(2)), None);
        store.refuse_writes(false);
        assert!(notebook.write(store.clone()).await);
        let memory = Memory { orders: orders(2), rollouts: [("web".to_owned(), RolloutHistory::default())].into() };
        assert_eq!(load(&store, true).unwrap(), BTreeMap::from([("demo".to_owned(), memory)]));
    }

    #[tokio::test]
    async fn what_nobody_tells_of_is_not_taken_as_written() {
        let (tell, told) = oneshot::channel();
        drop(tell);
        assert!(matches!(written(vec![told]).await, Err(EngineError::Ended)));
    }

    #[test]
    fn what_can_not_be_read_is_left_out_and_forgotten_by_whoever_may_write() {
        let store = Store::in_memory().unwrap();
        let row = |service: Option<&str>, json: &str| Remembered {
            deployment: "demo".to_owned(),
            service: service.map(str::to_owned),
            json: Some(json.to_owned()),
        };
        let good = row(None, r#"{"suspended":true}"#);
        store.remember(&[good.clone(), row(Some("web"), r#"{"revisions":7}"#)]).unwrap();
        let memory = Memory { orders: Orders { suspended: true, ..Orders::default() }, ..Memory::default() };
        let read = BTreeMap::from([("demo".to_owned(), memory)]);
        assert_eq!((load(&store, false).unwrap(), store.memory().unwrap().len()), (read.clone(), 2));
        assert_eq!((load(&store, true).unwrap(), store.memory().unwrap()), (read, vec![good]));
    }
}
