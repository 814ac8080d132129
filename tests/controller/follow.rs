//! Output that goes on with replacements and further replicas.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use evenkeel::clock::Clock;
use evenkeel::controller::{Bookmark, Declared, EngineError, Followed, Observed, follow};
use evenkeel::runtime::io::LogOptions;
use evenkeel::runtime::sim::{Faults, What};
use futures::StreamExt;
use futures::stream::BoxStream;

use crate::Rig;

/// A service of one replica per slot that runs these statements of the simulated runtime.
fn program(replicas: u32, statements: &str) -> String {
    format!(
        "version: v1\ndeployment: demo\nservices:\n  web:\n    image: {{name: sim/run}}\n    \
         command: {{entrypoint: [sim, {statements}]}}\n    scale: {{mode: fixed, replicas: {replicas}}}\n"
    )
}

impl Rig {
    async fn follow(&self, target: &str, options: LogOptions) -> Result<BoxStream<'static, Followed>, EngineError> {
        self.follow_after(target, options, None).await
    }

    async fn follow_after(
        &self,
        target: &str,
        options: LogOptions,
        after: Option<Bookmark>,
    ) -> Result<BoxStream<'static, Followed>, EngineError> {
        let observed = Observed {
            messages: self.core.messages.clone(),
            status: self.core.status.clone(),
            clock: self.clock.clone(),
            reread: None,
        };
        follow(observed, target.parse().unwrap(), options, after).await
    }

    fn take_back(&self) {
        let removed = BTreeMap::from([("demo".to_owned(), crate::removed())]);
        self.declare.send_replace(Arc::new(Declared { synced: true, removed, ..Declared::default() }));
    }
}

/// What is told to a user until nothing is for this long, in short.
async fn told(stream: &mut BoxStream<'static, Followed>, quiet: Duration) -> Vec<String> {
    let mut told = Vec::new();
    while let Ok(next) = tokio::time::timeout(quiet, stream.next()).await {
        told.push(match next {
            Some(Followed::Instances(names)) => format!("{names:?}"),
            Some(Followed::Line { instance, line }) => format!("{} {}", instance.id.name(), line.text.lossy()),
            Some(Followed::NoLines(_)) => continue,
            Some(other) => format!("{other:?}"),
            None => {
                told.push("the end".to_owned());
                break;
            }
        });
    }
    told
}

const QUIET: Duration = Duration::from_secs(20);

#[tokio::test(start_paused = true)]
async fn a_crash_and_its_replacement_read_as_one() {
    let rig = Rig::new();
    rig.declare(&program(1, "print first, wait 3s, print last, exit 1"));
    rig.until_running().await;
    let mut stream = rig.follow("demo/web/0", LogOptions::default()).await.unwrap();
    let told = told(&mut stream, Duration::from_secs(15)).await;
    // The first restart comes at once, the second after ten seconds and the third after twenty.
    let mut want = vec!["[]", "[\"demo/web/0\"]"];
    want.extend(["demo/web/0 first", "demo/web/0 last"].repeat(2));
    want.extend(["Waiting", "demo/web/0 first", "demo/web/0 last", "Waiting"]);
    assert_eq!(told, want);
}

#[tokio::test(start_paused = true)]
async fn a_rollout_and_further_replicas_are_followed() {
    let rig = Rig::new();
    let version = |number: u32| format!("print {number}");
    rig.declare(&program(2, &version(1)));
    rig.until_running().await;
    let mut stream = rig.follow("demo", LogOptions { tail: Some(0), ..LogOptions::default() }).await.unwrap();
    let begin = ["[]", "[\"demo/web/0\", \"demo/web/1\"]"];
    assert_eq!(told(&mut stream, QUIET).await, begin, "no line is new");
    rig.declare(&program(2, &version(2)));
    let mut rolled = told(&mut stream, QUIET).await;
    rolled.sort();
    assert_eq!(rolled, ["demo/web/0 2", "demo/web/1 2"], "the new revision, from its first line on");
    rig.declare(&program(3, &version(2)));
    let third = ["[\"demo/web/0\", \"demo/web/1\", \"demo/web/2\"]", "demo/web/2 2"];
    assert_eq!(told(&mut stream, QUIET).await, third);
}

#[tokio::test(start_paused = true)]
async fn one_slot_is_not_mixed_with_others() {
    let rig = Rig::new();
    rig.declare(&program(3, "print 1"));
    rig.until_running().await;
    let mut stream = rig.follow("demo/web/1", LogOptions::default()).await.unwrap();
    assert_eq!(told(&mut stream, QUIET).await, ["[]", "[\"demo/web/1\"]", "demo/web/1 1"]);
    for victim in [0, 1] {
        let id = rig.core.status.borrow().instances[victim].runtime_id.clone();
        rig.world.kill(&id, 137);
    }
    assert_eq!(told(&mut stream, QUIET).await, ["demo/web/1 1"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_declared_and_not_there_yet_is_waited_for() {
    let rig = Rig::new();
    rig.declare(&program(0, "print 1"));
    rig.until("the declaration", |status| !status.services.is_empty()).await;
    let mut stream = rig.follow("demo/web", LogOptions::default()).await.unwrap();
    assert_eq!(told(&mut stream, QUIET).await, ["[]", "Waiting"], "it is told once");
    rig.declare(&program(1, "print 1"));
    assert_eq!(told(&mut stream, QUIET).await, ["[\"demo/web/0\"]", "demo/web/0 1"]);
}

#[tokio::test(start_paused = true)]
async fn it_ends_when_nothing_is_declared_or_exists_any_more() {
    let rig = Rig::new();
    rig.declare(&program(2, "print 1"));
    rig.until_running().await;
    let mut all = rig.follow("demo/web", LogOptions { tail: Some(0), ..LogOptions::default() }).await.unwrap();
    let mut second = rig.follow("demo/web/1", LogOptions { tail: Some(0), ..LogOptions::default() }).await.unwrap();
    rig.declare(&program(1, "print 1"));
    assert_eq!(
        told(&mut second, QUIET).await,
        ["[]", "[\"demo/web/1\"]", "Gone", "the end"],
        "this slot is not declared"
    );
    assert_eq!(told(&mut all, QUIET).await, ["[]", "[\"demo/web/0\", \"demo/web/1\"]"]);
    rig.take_back();
    assert_eq!(told(&mut all, QUIET).await, ["Gone", "the end"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_neither_declared_nor_there_is_not_found() {
    let rig = Rig::new();
    rig.declare(&program(1, "print 1"));
    rig.until_running().await;
    for target in ["other", "demo/db", "demo/web/1"] {
        let error = rig.follow(target, LogOptions::default()).await.err().expect("nothing to follow");
        assert!(matches!(&error, EngineError::NotFound(text) if text.starts_with(target)), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_core_that_ends_is_told() {
    let rig = Rig::new();
    rig.declare(&program(1, "print 1"));
    rig.until_running().await;
    let mut stream = rig.follow("demo", LogOptions::default()).await.unwrap();
    told(&mut stream, QUIET).await;
    drop(rig);
    assert!(matches!(stream.next().await, Some(Followed::Broken(EngineError::Ended))));
    assert!(stream.next().await.is_none());
}

/// Every second of an instance's life, and what it writes in it.
const SECONDS: usize = 40;

/// Two instances that count the seconds of their lives, on a runtime whose calls are slow and fail.
async fn counting(seed: u64) -> Rig {
    let rig = Rig::with(seed, Faults { crash: 0.0, answer_lost: 0.0, ..Faults::harsh() });
    let counts: Vec<String> = (0..SECONDS).map(|second| format!("print {second}, wait 1s")).collect();
    rig.declare(&program(2, &counts.join(", ")));
    rig.until("an instance", |status| status.instances.iter().any(|one| one.phase == "running")).await;
    rig
}

/// The instances are killed at any moment: for each second as many lines as there were instances that old.
#[tokio::test(start_paused = true)]
async fn no_line_is_lost_or_doubled_whatever_happens() {
    for seed in 0..20 {
        let rig = counting(seed).await;
        let mut stream = rig.follow("demo/web", LogOptions::default()).await.unwrap();
        let mut lines = BTreeMap::<String, usize>::new();
        for kill in 0..6_u64 {
            let pause = Duration::from_millis(1_300 + (seed * 977 + kill * 4_211) % 60_000);
            count(&mut stream, &mut lines, pause).await;
            let running = rig.world.instances();
            if let Some((_, victim)) = running.get(usize::try_from(kill).unwrap() % running.len().max(1)) {
                rig.world.kill(&victim.runtime_id, 137);
            }
        }
        rig.world.set_faults(Faults::none());
        count(&mut stream, &mut lines, Duration::from_secs(900)).await;
        assert_eq!(lines, expected(&rig), "seed {seed}");
    }
}

/// The same, while one follower takes over from the other at any moment.
#[tokio::test(start_paused = true)]
async fn no_line_is_lost_or_doubled_whoever_follows() {
    for seed in 0..20 {
        let rig = counting(seed).await;
        let mut bookmark = Bookmark::new(rig.clock.now());
        let mut lines = BTreeMap::<String, usize>::new();
        let mut stream = rig.follow("demo/web", LogOptions::default()).await.unwrap();
        for turn in 0..24_u64 {
            let pause = Duration::from_millis(300 + (seed * 977 + turn * 4_211) % 20_000);
            let end = tokio::time::Instant::now() + pause;
            while let Ok(next) = tokio::time::timeout_at(end, stream.next()).await {
                note(&mut bookmark, &mut lines, next.expect("it goes on"));
            }
            drop(stream);
            // What is written while nobody reads, and by what dies then, is read by the next one.
            tokio::time::sleep(pause / 3).await;
            let running = rig.world.instances();
            if let Some((_, victim)) = running.get(usize::try_from(turn).unwrap() % 4) {
                rig.world.kill(&victim.runtime_id, 137);
            }
            stream = rig.follow_after("demo/web", LogOptions::default(), Some(bookmark.clone())).await.unwrap();
        }
        rig.world.set_faults(Faults::none());
        count(&mut stream, &mut lines, Duration::from_secs(900)).await;
        assert_eq!(lines, expected(&rig), "seed {seed}");
    }
}

fn note(bookmark: &mut Bookmark, lines: &mut BTreeMap<String, usize>, told: Followed) {
    match told {
        Followed::Instances(names) => bookmark.names(&names),
        Followed::Line { instance, line } => {
            bookmark.line(&instance.id.name(), instance.runtime, &instance.runtime_id, line.at);
            *lines.entry(line.text.lossy().into_owned()).or_default() += 1;
        }
        Followed::NoLines(instance) => {
            bookmark.no_lines(&instance.id.name(), instance.runtime, &instance.runtime_id);
        }
        Followed::Failed { instance, error } => panic!("{instance}: {error}"),
        _ => {}
    }
}

/// Takes note of what is told until nothing is for this long; gives the lines.
async fn noted(bookmark: &mut Bookmark, stream: &mut BoxStream<'static, Followed>) -> Vec<String> {
    let mut lines = BTreeMap::new();
    while let Ok(next) = tokio::time::timeout(QUIET, stream.next()).await {
        note(bookmark, &mut lines, next.expect("it goes on"));
    }
    lines.into_keys().collect()
}

/// A service that has written three lines and runs on, and one that follows its last two lines on a runtime that does
/// not answer.
async fn unanswered() -> (Rig, LogOptions, BoxStream<'static, Followed>) {
    let rig = Rig::new();
    rig.declare(&program(1, "print 1, print 2, print 3, wait 1h, print 4"));
    rig.until_running().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let options = LogOptions { tail: Some(2), ..LogOptions::default() };
    rig.world.set_faults(Faults { fails: 1.0, ..Faults::none() });
    let stream = rig.follow("demo", options).await.unwrap();
    (rig, options, stream)
}

#[tokio::test(start_paused = true)]
async fn the_last_lines_that_could_not_be_read_at_first_are_read_later() {
    let (rig, _, mut stream) = unanswered().await;
    let told_at_first = told(&mut stream, QUIET).await;
    assert!(matches!(&told_at_first[2..], [told] if told.starts_with("Interrupted")), "{told_at_first:?}");
    rig.world.set_faults(Faults::none());
    assert_eq!(told(&mut stream, QUIET).await, ["demo/web/0 2", "demo/web/0 3"]);
}

#[tokio::test(start_paused = true)]
async fn the_last_lines_that_one_follower_could_not_read_are_read_by_the_next() {
    let (rig, options, mut stream) = unanswered().await;
    let mut bookmark = Bookmark::new(rig.clock.now());
    assert_eq!(noted(&mut bookmark, &mut stream).await, [""; 0]);
    rig.world.set_faults(Faults::none());
    let mut next = rig.follow_after("demo", options, Some(bookmark)).await.unwrap();
    assert_eq!(told(&mut next, QUIET).await, ["[\"demo/web/0\"]", "demo/web/0 2", "demo/web/0 3"]);
}

/// Where there was no line, whatever is written while nobody reads is new, more than so many lines too.
#[tokio::test(start_paused = true)]
async fn what_had_no_lines_for_one_follower_is_read_in_full_by_the_next() {
    let rig = Rig::new();
    rig.declare(&program(1, "wait 1h, print 1, print 2, print 3, wait 1h"));
    rig.until_running().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let options = LogOptions { tail: Some(2), ..LogOptions::default() };
    let mut bookmark = Bookmark::new(rig.clock.now());
    let mut stream = rig.follow("demo", options).await.unwrap();
    assert_eq!(noted(&mut bookmark, &mut stream).await, [""; 0]);
    drop(stream);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let mut next = rig.follow_after("demo", options, Some(bookmark)).await.unwrap();
    let lines = ["demo/web/0 1", "demo/web/0 2", "demo/web/0 3"];
    assert_eq!(told(&mut next, QUIET).await[1..], lines);
}

/// After a bookmark it is no error that nothing is left.
#[tokio::test(start_paused = true)]
async fn what_went_before_a_follower_took_over_is_told_as_gone() {
    let rig = Rig::new();
    rig.declare.send_replace(Arc::new(Declared { synced: true, ..Declared::default() }));
    rig.until("the sources were read", |status| status.synced).await;
    let mut bookmark = Bookmark::new(rig.clock.now());
    bookmark.names(&["demo/web/0".to_owned()]);
    let mut stream = rig.follow_after("demo", LogOptions::default(), Some(bookmark)).await.unwrap();
    assert_eq!(told(&mut stream, QUIET).await, ["[\"demo/web/0\"]", "Gone", "the end"]);
}

/// Counts equal lines for this long.
async fn count(stream: &mut BoxStream<'static, Followed>, lines: &mut BTreeMap<String, usize>, time: Duration) {
    let end = tokio::time::Instant::now() + time;
    while let Ok(next) = tokio::time::timeout_at(end, stream.next()).await {
        match next.expect("it goes on") {
            Followed::Line { line, .. } => *lines.entry(line.text.lossy().into_owned()).or_default() += 1,
            Followed::Failed { instance, error } => panic!("{instance}: {error}"),
            _ => {}
        }
    }
}

/// The lines that the instances wrote, by when each started and ended.
fn expected(rig: &Rig) -> BTreeMap<String, usize> {
    let now = rig.clock.now();
    let mut started = BTreeMap::new();
    let mut lives = Vec::new();
    for change in rig.world.changes() {
        match change.what {
            What::Started { .. } => drop(started.insert(change.runtime_id, change.at)),
            What::Ended(_) => lives.extend(started.remove(&change.runtime_id).map(|start| change.at - start)),
            _ => {}
        }
    }
    lives.extend(started.into_values().map(|start| now - start));
    let mut lines = BTreeMap::new();
    for life in lives {
        for second in 0..SECONDS.min(usize::try_from(life.num_milliseconds() / 1000).unwrap() + 1) {
            *lines.entry(second.to_string()).or_default() += 1;
        }
    }
    lines
}
