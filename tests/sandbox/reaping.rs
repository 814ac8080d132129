//! The controller's look for what is left of instances, made all the time while instances start, end and are removed: what is
//! left goes, and nothing of a live start does.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use evenkeel::plan::Remains;
use evenkeel::runtime::{Remnants, Runtime};
use evenkeel::spec::Signal;
use evenkeel::state::{EndedBy, StopCause};
use futures::future::join_all;
use tokio::time::{Instant, interval};

use crate::support::{Sandbox, request, stop};

/// Starts in all, which take about half a minute on a busy machine.
const STARTS: u32 = 1_000;

/// Instances that are worked on at a time.
const SIDE_BY_SIDE: u32 = 8;

/// How often it looks, or as soon as the last look is over.
const LOOK: Duration = Duration::from_millis(10);

/// How much faster the reaper's clock goes than that of the machine: what is left for a minute is taken away, which are five
/// seconds here, longer than a start takes.
const FASTER: u32 = 12;

const ENDS: &str = "image: { name: host }\ncommand: { entrypoint: [/bin/busybox, sh, -c, 'exit 3'] }\n";
const STAYS: &str = "image: { name: host }\ncommand: { entrypoint: [/bin/busybox, sleep, '1000'] }\n";

/// Looks and takes away as the controller does, until it is told to end and has taken something away. Gives the names of what
/// went, and how many looks it took.
async fn reap(sandbox: &Sandbox, may_end: &AtomicBool) -> (Vec<String>, u32) {
    let (began, start): (DateTime<Utc>, _) = (Utc::now(), Instant::now());
    let (mut remains, mut gone, mut looks) = (Remains::default(), Vec::new(), 0);
    let mut pace = interval(LOOK);
    while gone.is_empty() || !may_end.load(Ordering::Relaxed) {
        pace.tick().await;
        let found = Remnants::remnants(&sandbox.runtime).await.unwrap();
        let now = began + start.elapsed() * FASTER;
        remains.look(found, now);
        for remnant in remains.due(now) {
            sandbox.runtime.clear(&remnant).await.unwrap();
            gone.push(remnant.name);
        }
        looks += 1;
    }
    (gone, looks)
}

/// Makes, starts and removes one instance after another, every second one of which ends by itself.
async fn start_all(sandbox: &Sandbox, slot: u32, starts: u32) {
    for attempt in 0..starts {
        let ends = attempt % 2 == 0;
        let mut request = request(if ends { ENDS } else { STAYS }, slot);
        request.id.attempt = attempt;
        let made = sandbox.runtime.create(&request).await.unwrap().as_ref();
        let started = sandbox.runtime.start(&made).await.unwrap();
        if !ends {
            assert!(started.phase.is_ready(), "{started:?}");
            let ended = sandbox.runtime.stop(&made, &stop(Signal::KILL, Duration::ZERO, StopCause::Retired)).await;
            assert!(ended.unwrap().is_some(), "it was there until it was stopped");
        }
        let exit = sandbox.ended(&made).await;
        let expected =
            if ends { (Some(3), EndedBy::Itself) } else { (Some(137), EndedBy::Request(StopCause::Retired)) };
        assert_eq!((exit.code, exit.ended_by), expected);
        sandbox.runtime.remove(&made).await.unwrap();
    }
}

fn is_gone(path: &Path) -> bool {
    path.symlink_metadata().is_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_start_is_taken_for_a_remnant_while_the_reaper_looks_all_the_time() {
    let sandbox = Sandbox::new();
    let left = sandbox.root.path().join("sandbox/instances/demo_web_99_01234567_0");
    std::fs::create_dir_all(left.join("logs")).unwrap();
    let may_end = AtomicBool::new(false);
    let starting = async {
        join_all((0..SIDE_BY_SIDE).map(|slot| start_all(&sandbox, slot, STARTS / SIDE_BY_SIDE))).await;
        may_end.store(true, Ordering::Relaxed);
    };
    let ((gone, looks), ()) = tokio::join!(reap(&sandbox, &may_end), starting);
    println!("{STARTS} starts, {looks} looks");
    assert_eq!(gone, [left.display().to_string()]);
    assert!(is_gone(&left));
    assert!(sandbox.runtime.list().await.unwrap().instances.is_empty());
}
