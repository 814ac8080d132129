//! The source at work, on real file events. The periodic scan is an hour away, so that only events help.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use evenkeel::clock::SystemClock;
use evenkeel::source::{DirectorySource, Root, RootKind, SourceHandle, SourceOptions, SpecSnapshot};
use evenkeel::store::{AppliedFile, discard_applied, save_applied};
use tokio::sync::watch;

use crate::bench::{Bench, deployment, images, link, names, removed, service};

/// Long enough for any machine; what is waited for mostly takes a fifth of a second.
const DEADLINE: Duration = Duration::from_secs(20);

struct Watching {
    snapshots: watch::Receiver<Arc<SpecSnapshot>>,
    handle: SourceHandle,
    /// Images of every snapshot that was published, in order.
    seen: Arc<Mutex<Vec<Vec<String>>>>,
}

impl Watching {
    async fn start(bench: &Bench, roots: Vec<Root>) -> Self {
        let options = SourceOptions { rescan: Duration::from_secs(3600), ..bench.options };
        let (snapshots, handle) = DirectorySource::spawn(roots, bench.store(), Arc::new(SystemClock), options).unwrap();
        let seen = Arc::new(Mutex::default());
        let watching = Self { snapshots: snapshots.clone(), handle, seen: Arc::clone(&seen) };
        watching.until("the start", |snapshot| snapshot.synced).await;
        let mut all = watching.snapshots.clone();
        seen.lock().unwrap().push(images(&all.borrow_and_update()));
        tokio::spawn(async move {
            while all.changed().await.is_ok() {
                let now = images(&all.borrow_and_update());
                seen.lock().unwrap().push(now);
            }
        });
        watching
    }

    async fn on(bench: &Bench) -> Self {
        Self::start(bench, bench.roots()).await
    }

    async fn until(&self, what: &str, done: impl Fn(&SpecSnapshot) -> bool) -> Arc<SpecSnapshot> {
        let mut receiver = self.snapshots.clone();
        let found = tokio::time::timeout(DEADLINE, receiver.wait_for(|snapshot| done(snapshot))).await;
        match found {
            Ok(snapshot) => Arc::clone(&snapshot.unwrap()),
            Err(_) => panic!("{what} never came: {:?}", self.snapshots.borrow()),
        }
    }

    async fn until_images(&self, expected: &[&str]) {
        self.until(&expected.join(" "), |snapshot| images(snapshot) == expected).await;
    }

    /// Every snapshot that was published, once the source has nothing left to do.
    async fn history(&self) -> Vec<Vec<String>> {
        let last = images(&self.handle.rescan().await.unwrap());
        let recorded = async {
            while self.seen.lock().unwrap().last() != Some(&last) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(DEADLINE, recorded).await.unwrap();
        self.seen.lock().unwrap().clone()
    }
}

fn one(images: &[&str]) -> Vec<String> {
    images.iter().map(|image| (*image).to_owned()).collect()
}

/// Saves `a.yaml` in some way; the result must count once, with nothing else in between.
async fn is_applied_once(prepare: impl FnOnce(&Bench), save: impl FnOnce(&Bench, &str)) {
    let bench = Bench::new();
    bench.write("a.yaml", &deployment("a", "one"));
    bench.write("b.yaml", &deployment("b", "one"));
    prepare(&bench);
    let watching = Watching::on(&bench).await;
    save(&bench, &deployment("a", "two"));
    watching.until_images(&["a/web=two", "b/web=one"]).await;
    let expected = [one(&["a/web=one", "b/web=one"]), one(&["a/web=two", "b/web=one"])];
    assert_eq!(watching.history().await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn truncate_and_write() {
    is_applied_once(
        |_| {},
        |bench, text| {
            use std::io::Write;
            let mut file = std::fs::File::create(bench.path("a.yaml")).unwrap();
            let (first, second) = text.as_bytes().split_at(text.len() / 2);
            file.write_all(first).unwrap();
            file.write_all(second).unwrap();
        },
    )
    .await;
}

/// Writes `a.yaml` with pauses that are longer than losses are waited for; nothing in between must count.
async fn is_applied_once_it_is_closed(pauses: fn(&std::fs::File, &str)) {
    let mut bench = Bench::new();
    bench.options.settle = Duration::from_millis(1);
    let text = |image: &str| format!("{}---\n{}", deployment("a", image), deployment("b", image));
    bench.write("a.yaml", &text("one"));
    let watching = Watching::on(&bench).await;
    pauses(&std::fs::File::create(bench.path("a.yaml")).unwrap(), &text("two"));
    watching.until_images(&["a/web=two", "b/web=two"]).await;
    assert_eq!(watching.history().await, [one(&["a/web=one", "b/web=one"]), one(&["a/web=two", "b/web=two"])]);
}

/// Longer than until a scan follows an event.
const PAUSE: Duration = Duration::from_millis(1500);

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn write_slowly() {
    is_applied_once_it_is_closed(|mut file, text| {
        use std::io::Write;
        let (first, second) = text.split_once("---").unwrap();
        file.write_all(first.as_bytes()).unwrap();
        std::thread::sleep(PAUSE);
        file.write_all(b"---").unwrap();
        file.write_all(second.as_bytes()).unwrap();
    })
    .await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn truncate_long_before_writing() {
    is_applied_once_it_is_closed(|mut file, text| {
        std::thread::sleep(PAUSE);
        std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    })
    .await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_new_file_that_is_being_written_waits() {
    let bench = Bench::with(&["a"]);
    let watching = Watching::on(&bench).await;
    let mut file = std::fs::File::create(bench.path("b.yaml")).unwrap();
    std::io::Write::write_all(&mut file, deployment("b", "one").as_bytes()).unwrap();
    std::thread::sleep(PAUSE);
    std::io::Write::write_all(&mut file, format!("---\n{}", service("b", "db", "pg")).as_bytes()).unwrap();
    drop(file);
    watching.until("the new file", |snapshot| snapshot.deployments.contains_key("b")).await;
    let mut history = watching.history().await;
    history.dedup();
    assert_eq!(history, [one(&["a/web=one"]), one(&["a/web=one", "b/db=pg", "b/web=one"])]);
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn what_moves_into_a_file_that_is_being_written_stays() {
    let mut bench = Bench::with(&["a", "b"]);
    bench.options.settle = Duration::from_millis(1);
    let watching = Watching::on(&bench).await;
    let mut file = std::fs::File::create(bench.path("c.yaml")).unwrap();
    std::io::Write::write_all(&mut file, b"version: v1\n").unwrap();
    bench.remove("b.yaml");
    std::thread::sleep(PAUSE);
    let rest = deployment("b", "one");
    std::io::Write::write_all(&mut file, rest.strip_prefix("version: v1\n").unwrap().as_bytes()).unwrap();
    drop(file);
    watching.until("the new file", |snapshot| snapshot.deployments["b"].file.ends_with("c.yaml")).await;
    let mut history = watching.history().await;
    history.dedup();
    assert_eq!(history, [one(&["a/web=one", "b/web=one"])]);
}

/// Appends to a file of the directory, which stays open, until it is dropped.
#[cfg(target_os = "linux")]
struct Appending {
    ended: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[cfg(target_os = "linux")]
impl Appending {
    fn to(path: &std::path::Path) -> Self {
        use std::sync::atomic::{AtomicBool, Ordering};
        let ended = Arc::new(AtomicBool::new(false));
        let (path, stop) = (path.to_path_buf(), Arc::clone(&ended));
        let thread = std::thread::spawn(move || {
            let mut file = std::fs::File::create(path).unwrap();
            while !stop.load(Ordering::Relaxed) {
                std::io::Write::write_all(&mut file, b"# more\n").unwrap();
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Self { ended, thread: Some(thread) }
    }
}

#[cfg(target_os = "linux")]
impl Drop for Appending {
    fn drop(&mut self) {
        self.ended.store(true, std::sync::atomic::Ordering::Relaxed);
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(ended.is_some_and(|ended| ended.is_ok()));
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_written_without_end_holds_up_neither_a_start_nor_a_request() {
    let mut bench = Bench::with(&["a", "b"]);
    bench.scan();
    bench.restart();
    bench.remove("b.yaml");
    let appending = Appending::to(&bench.path("c.yaml"));
    let watching = Watching::on(&bench).await;
    let begun = std::time::Instant::now();
    bench.write("d.yaml", &deployment("d", "one"));
    let seen = watching.handle.rescan().await.unwrap();
    assert_eq!(images(&seen), one(&["a/web=one", "b/web=one", "d/web=one"]));
    assert!(begun.elapsed() < DEADLINE / 2, "{:?}", begun.elapsed());
    drop(appending);
    watching.until_images(&["a/web=one", "d/web=one"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_gets_what_there_is_where_something_takes_long_to_settle() {
    let mut bench = Bench::with(&["a", "b"]);
    bench.options.settle = Duration::from_secs(3600);
    let watching = Watching::on(&bench).await;
    bench.remove("b.yaml");
    let answer = tokio::time::timeout(DEADLINE, watching.handle.rescan()).await;
    assert_eq!(images(&answer.unwrap().unwrap()), one(&["a/web=one", "b/web=one"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_and_create_after_a_long_pause() {
    is_applied_once(
        |_| {},
        |bench, text| {
            bench.remove("a.yaml");
            std::thread::sleep(PAUSE);
            bench.write("a.yaml", text);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rename_over_as_editors_do() {
    is_applied_once(
        |_| {},
        |bench, text| {
            // Vim: probe, back up, write anew, remove the backup.
            bench.write("4913", "");
            bench.remove("4913");
            std::fs::rename(bench.path("a.yaml"), bench.path("a.yaml~")).unwrap();
            bench.write("a.yaml", text);
            bench.remove("a.yaml~");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rename_in_from_outside() {
    is_applied_once(
        |_| {},
        |bench, text| {
            let outside = bench.base.path().join("outside");
            std::fs::write(&outside, text).unwrap();
            std::fs::rename(&outside, bench.path("a.yaml")).unwrap();
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_and_create() {
    is_applied_once(
        |_| {},
        |bench, text| {
            bench.remove("a.yaml");
            bench.write("a.yaml", text);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_and_create_with_a_pause() {
    is_applied_once(
        |_| {},
        |bench, text| {
            bench.remove("a.yaml");
            std::thread::sleep(Duration::from_millis(100));
            bench.write("a.yaml", text);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_link_of_a_mounted_config_map() {
    is_applied_once(
        |bench| {
            bench.remove("a.yaml");
            bench.write("..v1/a.yaml", &deployment("a", "one"));
            link("..v1", bench.path("..data"));
            link("..data/a.yaml", bench.path("a.yaml"));
        },
        |bench, text| {
            bench.write("..v2/a.yaml", text);
            link("..v2", bench.path("..data_tmp"));
            std::fs::rename(bench.path("..data_tmp"), bench.path("..data")).unwrap();
            std::fs::remove_dir_all(bench.path("..v1")).unwrap();
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writing_to_what_a_link_points_to() {
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("a.txt");
    is_applied_once(
        |bench| {
            std::fs::rename(bench.path("a.yaml"), &target).unwrap();
            link(&target, bench.path("a.yaml"));
        },
        |_, text| std::fs::write(&target, text).unwrap(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn touch_and_chmod_change_nothing() {
    let bench = Bench::new();
    bench.write("a.yaml", &deployment("a", "one"));
    let watching = Watching::on(&bench).await;
    let file = std::fs::File::options().append(true).open(bench.path("a.yaml")).unwrap();
    file.set_modified(std::time::SystemTime::now()).unwrap();
    let mut permissions = file.metadata().unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(bench.path("a.yaml"), permissions).unwrap();
    // Something else after it shows that both were looked at.
    bench.write("b.yaml", &deployment("b", "one"));
    watching.until_images(&["a/web=one", "b/web=one"]).await;
    assert_eq!(watching.history().await, [one(&["a/web=one"]), one(&["a/web=one", "b/web=one"])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_link_that_git_sync_swaps() {
    let bench = Bench::new();
    let git = bench.base.path().join("git");
    for (tree, image) in [("v1", "one"), ("v2", "two")] {
        std::fs::create_dir_all(git.join(tree).join("specs")).unwrap();
        std::fs::write(git.join(tree).join("specs/a.yaml"), deployment("a", image)).unwrap();
    }
    link("v1", git.join("current"));
    // As what is watched, above it, and behind a link in what is watched.
    std::fs::create_dir(git.join("tree")).unwrap();
    link("../current/specs", git.join("tree/ours"));
    for root in [git.join("current/specs"), git.join("current"), git.join("tree")] {
        std::fs::remove_file(git.join("current")).unwrap();
        link("v1", git.join("current"));
        let watching = Watching::start(&bench, vec![Root { path: root, kind: RootKind::Watched }]).await;
        assert_eq!(images(&watching.snapshots.borrow())[..1], ["a/web=one"]);
        link("v2", git.join("next"));
        std::fs::rename(git.join("next"), git.join("current")).unwrap();
        watching.until_images(&["a/web=two"]).await;
        assert_eq!(watching.history().await, [one(&["a/web=one"]), one(&["a/web=two"])]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_made_in_one_go() {
    let bench = Bench::new();
    let watching = Watching::on(&bench).await;
    bench.write("s/t/u/a.yaml", &deployment("a", "one"));
    watching.until_images(&["a/web=one"]).await;
    bench.write("s/t/u/a.yaml", &deployment("a", "two"));
    watching.until_images(&["a/web=two"]).await;
    std::fs::rename(bench.path("s/t"), bench.path("moved")).unwrap();
    let moved = bench.path("moved/u/a.yaml");
    watching.until("the new place", |snapshot| snapshot.deployments.get("a").is_some_and(|a| a.file == moved)).await;
    assert!(watching.history().await.iter().skip(1).all(|images| !images.is_empty()), "it was never gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_removed_and_made_again_is_watched_again() {
    let bench = Bench::new();
    bench.write("a.yaml", &deployment("a", "one"));
    let watching = Watching::on(&bench).await;
    for round in ["two", "three"] {
        std::fs::remove_dir_all(bench.path("")).unwrap();
        let held = watching.until("the hold", |snapshot| snapshot.hold.is_some()).await;
        assert_eq!((names(&held), removed(&held)), (vec!["a"], vec![]));
        bench.write("a.yaml", &deployment("a", round));
        watching.until("the end of the hold", |snapshot| snapshot.hold.is_none()).await;
        let image = format!("a/web={round}");
        watching.until_images(&[&image]).await;
        bench.write("b.yaml", &deployment("b", round));
        watching.until("the new file", |snapshot| snapshot.deployments.contains_key("b")).await;
        bench.remove("b.yaml");
        watching.until("the removal", |snapshot| snapshot.removed.contains_key("b")).await;
        watching.handle.forget("b").await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parent_of_the_directory_may_go_too() {
    let bench = Bench::new();
    let parent = bench.base.path().join("parent");
    let write = |image: &str| {
        std::fs::create_dir_all(parent.join("specs")).unwrap();
        std::fs::write(parent.join("specs/a.yaml"), deployment("a", image)).unwrap();
    };
    write("one");
    let root = Root { path: parent.join("specs"), kind: RootKind::Watched };
    let watching = Watching::start(&bench, vec![root]).await;
    std::fs::remove_dir_all(&parent).unwrap();
    watching.until("the hold", |snapshot| snapshot.hold.is_some()).await;
    write("two");
    watching.until("its end", |snapshot| snapshot.hold.is_none() && images(snapshot) == ["a/web=two"]).await;
    std::fs::write(parent.join("specs/a.yaml"), deployment("a", "three")).unwrap();
    watching.until_images(&["a/web=three"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_replaced_within_one_quiet_time_is_watched_again() {
    let bench = Bench::new();
    bench.write("a.yaml", &deployment("a", "one"));
    let watching = Watching::on(&bench).await;
    std::fs::remove_dir_all(bench.path("")).unwrap();
    bench.write("a.yaml", &deployment("a", "two"));
    watching.until_images(&["a/web=two"]).await;
    bench.write("a.yaml", &deployment("a", "three"));
    watching.until_images(&["a/web=three"]).await;
    let history = watching.history().await;
    assert_eq!(history, [one(&["a/web=one"]), one(&["a/web=two"]), one(&["a/web=three"])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requested_scan_sees_what_was_written_before_it() {
    let bench = Bench::new();
    let watching = Watching::on(&bench).await;
    let applied = bench.base.path().join("state/applied");
    let copy = AppliedFile {
        origin: "/elsewhere/x.yaml".into(),
        text: format!("{}---\n{}", deployment("a", "one"), service("b", "db", "pg")),
        without: BTreeSet::new(),
        default_runtimes: Default::default(),
    };
    save_applied(std::slice::from_ref(&copy), &applied).unwrap();
    let snapshot = watching.handle.rescan().await.unwrap();
    assert_eq!(images(&snapshot), ["a/web=one", "b/db=pg"]);
    assert_eq!(*watching.snapshots.borrow(), snapshot);
    discard_applied(std::slice::from_ref(&copy), &applied).unwrap();
    let snapshot = watching.handle.rescan().await.unwrap();
    assert_eq!(snapshot.removed.keys().collect::<Vec<_>>(), ["a", "b"]);
    watching.handle.forget("a").await.unwrap().unwrap();
    assert_eq!(watching.snapshots.borrow().removed.keys().collect::<Vec<_>>(), ["b"]);
    bench.write("c.yaml", &deployment("c", "one"));
    watching.handle.rescan().await.unwrap();
    bench.remove("c.yaml");
    let snapshot = watching.handle.rescan().await.unwrap();
    assert_eq!(names(&snapshot), [""; 0], "what may be the middle of a save is waited for");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_is_confirmed_through_the_handle() {
    let bench = Bench::new();
    for name in ["a", "b", "c", "d"] {
        bench.write(&format!("{name}.yaml"), &deployment(name, "one"));
    }
    let watching = Watching::on(&bench).await;
    for name in ["a", "b", "c", "d"] {
        bench.remove(&format!("{name}.yaml"));
    }
    watching.until("the hold", |snapshot| snapshot.hold.is_some()).await;
    assert_eq!(watching.handle.approve().await.unwrap().unwrap(), ["a", "b", "c", "d"]);
    let snapshot = Arc::clone(&watching.snapshots.borrow());
    assert_eq!((&snapshot.hold, snapshot.removed.len(), names(&snapshot)), (&None, 4, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_ends_with_its_last_handle() {
    let bench = Bench::new();
    let mut watching = Watching::on(&bench).await;
    drop(watching.handle);
    let ended = tokio::time::timeout(DEADLINE, async { while watching.snapshots.changed().await.is_ok() {} });
    ended.await.unwrap();
}
