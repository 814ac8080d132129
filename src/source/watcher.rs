//! The kernel's file events: a wake-up, and a word about which files are being written.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::trace::{Watch, WatchPlan};
use super::unclosed::Unclosed;
use crate::clock::Clock;

/// Whether this system tells when a file that was written to is closed.
const TELLS_CLOSES: bool = cfg!(any(target_os = "linux", target_os = "android"));

/// Watches what a plan names, one directory at a time (a recursive watch would include what is ignored, such as a
/// `.git` with its thousands of directories, and miss what is made while it is set up).
pub(super) struct TreeWatcher {
    watcher: Option<RecommendedWatcher>,
    shared: Arc<Shared>,
    /// Why not everything is watched.
    trouble: Option<String>,
}

struct Shared {
    wake: Arc<Notify>,
    unclosed: Unclosed,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What is watched.
    plan: WatchPlan,
    /// Directories that went, and their watches with them.
    lost: BTreeSet<PathBuf>,
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, event: notify::Result<Event>) {
        let relevant = match event {
            // Something was missed; what, nobody knows.
            Err(_) => {
                self.unclosed.forget();
                true
            }
            Ok(event) => {
                let mut state = self.state();
                if matches!(event.kind, EventKind::Remove(_)) {
                    let gone = event.paths.iter().filter(|path| state.plan.directories.contains_key(*path));
                    let gone: Vec<PathBuf> = gone.cloned().collect();
                    state.lost.extend(gone);
                }
                let relevant = is_relevant(&event, &state.plan);
                if relevant && TELLS_CLOSES {
                    note_writing(&event, &self.unclosed, self.clock.now());
                }
                relevant
            }
        };
        if relevant {
            self.wake.notify_one();
        }
    }
}

/// Notes what an event says of files that are being written.
fn note_writing(event: &Event, unclosed: &Unclosed, now: DateTime<Utc>) {
    if event.need_rescan() {
        return unclosed.forget();
    }
    match event.kind {
        EventKind::Modify(ModifyKind::Data(_)) => event.paths.iter().for_each(|path| unclosed.write(path, now)),
        // What has the name now is another file.
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Remove(_)
        | EventKind::Modify(ModifyKind::Name(_)) => {
            event.paths.iter().for_each(|path| unclosed.close(path));
        }
        _ => {}
    }
}

/// Whether an event may mean that a scan finds something new.
fn is_relevant(event: &Event, plan: &WatchPlan) -> bool {
    // The queue overflowed. Such an event has no paths.
    if event.need_rescan() {
        return true;
    }
    // Our own reading makes the other access events: acting on them would never end.
    if let EventKind::Access(kind) = event.kind
        && kind != AccessKind::Close(AccessMode::Write)
    {
        return false;
    }
    event.paths.is_empty() || event.paths.iter().any(|path| concerns(path, plan))
}

fn concerns(path: &Path, plan: &WatchPlan) -> bool {
    let inside = |directory: &Path| {
        let watch = plan.directories.get(directory)?;
        Some(watch.interest.covers(path.file_name()?))
    };
    plan.directories.contains_key(path) || path.parent().and_then(inside).unwrap_or(false)
}

impl TreeWatcher {
    /// Wakes `wake` for every event that matters, and notes in `unclosed` which files are being written.
    pub(super) fn new(wake: Arc<Notify>, unclosed: Unclosed, clock: Arc<dyn Clock>) -> Self {
        let shared = Arc::new(Shared { wake, unclosed, clock, state: Mutex::default() });
        let mut watcher = Self { watcher: None, shared, trouble: None };
        watcher.start();
        watcher
    }

    fn start(&mut self) {
        let shared = Arc::clone(&self.shared);
        match notify::recommended_watcher(move |event| shared.handle(event)) {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => self.trouble = Some(describe(&error)),
        }
    }

    /// Why not everything is watched.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Watches what the plan names and no more. True where something is watched that was not: what changed there
    /// before has to be looked for.
    pub(super) fn follow(&mut self, plan: &WatchPlan) -> bool {
        if self.watcher.is_none() {
            self.start();
        }
        let Some(watcher) = self.watcher.as_mut() else { return false };
        let (current, lost) = {
            let mut state = self.shared.state();
            (state.plan.clone(), std::mem::take(&mut state.lost))
        };
        let holds = |path: &PathBuf, watch: &Watch| {
            !lost.contains(path)
                && current.directories.get(path).is_some_and(|before| before.identity == watch.identity)
        };
        for path in current.directories.keys() {
            if plan.directories.get(path).is_none_or(|watch| !holds(path, watch)) {
                // Where the directory is gone, so is its watch.
                let _ = watcher.unwatch(path);
            }
        }
        let mut watched = WatchPlan::default();
        let mut trouble = None;
        let mut new = false;
        for (path, watch) in &plan.directories {
            if !holds(path, watch) {
                if let Err(error) = watcher.watch(path, RecursiveMode::NonRecursive) {
                    trouble.get_or_insert_with(|| describe(&error));
                    continue;
                }
                new = true;
            }
            watched.directories.insert(path.clone(), watch.clone());
        }
        self.shared.state().plan = watched;
        if trouble != self.trouble {
            if let Some(why) = &trouble {
                tracing::warn!("{why}");
            }
            self.trouble = trouble;
        }
        new
    }
}

fn describe(error: &notify::Error) -> String {
    let advice = match &error.kind {
        notify::ErrorKind::MaxFilesWatch => "; raise fs.inotify.max_user_watches (sysctl)",
        notify::ErrorKind::Io(error) if error.raw_os_error() == Some(libc::EMFILE) => {
            "; raise fs.inotify.max_user_instances (sysctl)"
        }
        _ => "",
    };
    format!("changes are found by looking every few seconds, since they can't be watched: {error}{advice}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsString;

    use notify::event::{CreateKind, DataChange, Flag, RemoveKind, RenameMode};

    use super::super::trace::Interest;
    use super::*;
    use crate::clock::SystemClock;

    fn watcher() -> TreeWatcher {
        TreeWatcher::new(Arc::default(), Unclosed::default(), Arc::new(SystemClock))
    }

    fn plan() -> WatchPlan {
        let watch = |interest| Watch { identity: String::new(), interest };
        let names = Interest::Names([OsString::from("specs")].into());
        let directories = [("/srv".into(), watch(names)), ("/srv/specs".into(), watch(Interest::All))];
        WatchPlan { directories: BTreeMap::from(directories) }
    }

    fn event(kind: EventKind, path: &str) -> Event {
        Event::new(kind).add_path(path.into())
    }

    #[test]
    fn only_events_that_may_change_a_scan_wake() {
        let changed = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        for path in ["/srv/specs/a.yaml", "/srv/specs/..data", "/srv/specs"] {
            assert!(is_relevant(&event(changed, path), &plan()), "{path}");
        }
        for path in ["/srv/other", "/srv/specs2/a.yaml", "/etc/passwd"] {
            assert!(!is_relevant(&event(changed, path), &plan()), "{path}");
        }
        let written = EventKind::Access(AccessKind::Close(AccessMode::Write));
        assert!(is_relevant(&event(written, "/srv/specs/a.yaml"), &plan()));
    }

    #[test]
    fn reading_wakes_nobody() {
        for kind in [AccessKind::Open(AccessMode::Any), AccessKind::Close(AccessMode::Read), AccessKind::Read] {
            assert!(!is_relevant(&event(EventKind::Access(kind), "/srv/specs/a.yaml"), &plan()), "{kind:?}");
        }
    }

    #[test]
    fn a_file_is_being_written_until_its_writer_closes_it_or_its_name_goes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().canonicalize().unwrap();
        let name = path.to_string_lossy();
        let ends = [
            event(EventKind::Access(AccessKind::Close(AccessMode::Write)), &name),
            event(EventKind::Remove(RemoveKind::File), &name),
            event(EventKind::Modify(ModifyKind::Name(RenameMode::To)), &name),
            Event::new(EventKind::Other).set_flag(Flag::Rescan),
        ];
        for end in ends {
            let (unclosed, now) = (Unclosed::default(), DateTime::UNIX_EPOCH);
            note_writing(&event(EventKind::Create(CreateKind::File), &name), &unclosed, now);
            assert_eq!(unclosed.left(&path, now), None, "nothing is written yet");
            note_writing(&event(EventKind::Modify(ModifyKind::Data(DataChange::Any)), &name), &unclosed, now);
            assert!(unclosed.left(&path, now).is_some());
            note_writing(&end, &unclosed, now);
            assert_eq!(unclosed.left(&path, now), None, "{end:?}");
        }
    }

    #[test]
    fn an_overflow_wakes_although_it_names_no_file() {
        assert!(is_relevant(&Event::new(EventKind::Other).set_flag(Flag::Rescan), &WatchPlan::default()));
    }

    #[test]
    fn what_can_not_be_watched_is_said_until_it_can() {
        let base = tempfile::tempdir().unwrap();
        let path = std::fs::canonicalize(base.path()).unwrap().join("later");
        let watch = Watch { identity: "1".into(), interest: Interest::All };
        let plan = WatchPlan { directories: [(path.clone(), watch)].into() };
        let mut watcher = watcher();
        assert!(!watcher.follow(&plan));
        assert!(watcher.trouble().is_some_and(|why| why.contains("by looking every few seconds")));
        std::fs::create_dir(&path).unwrap();
        assert!(watcher.follow(&plan));
        assert_eq!(watcher.trouble(), None);
    }

    #[test]
    fn a_directory_that_went_needs_a_new_watch() {
        let base = tempfile::tempdir().unwrap();
        let path = std::fs::canonicalize(base.path()).unwrap();
        let mut watcher = watcher();
        let watch = Watch { identity: "1".into(), interest: Interest::All };
        let plan = WatchPlan { directories: [(path.clone(), watch)].into() };
        assert!(watcher.follow(&plan));
        assert!(!watcher.follow(&plan));
        let removed = EventKind::Remove(RemoveKind::Folder);
        watcher.shared.handle(Ok(Event::new(removed).add_path(path.clone())));
        assert!(watcher.follow(&plan));
        assert!(!watcher.follow(&plan));
        let created = event(EventKind::Create(CreateKind::File), &path.join("x").to_string_lossy());
        assert!(is_relevant(&created, &watcher.shared.state().plan));
    }
}
