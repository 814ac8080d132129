//! One story told again and again, with the controller crashing after its first call, its second, and so on.

use std::collections::BTreeMap;
use std::time::Duration;

use evenkeel::runtime::sim::Faults;
use tokio::time::{sleep, timeout};

use crate::check;
use crate::shop::{Service, Services};
use crate::stage::{Stage, Trace, in_virtual_time};

/// Time that calls take, so that several are under way at once and a crash falls between any two.
const LATENCY: Duration = Duration::from_millis(200);

/// How the crash falls: whether calls outlive their caller (they all do, none does, or some do), and how long after
/// the call was made the controller crashes: before its effect, or between its effect and its answer.
const WAYS: [(f64, Duration); 4] =
    [(1.0, Duration::ZERO), (0.0, Duration::ZERO), (0.5, Duration::from_millis(60)), (0.5, Duration::from_millis(120))];

/// Longest time in which an act of the story still makes calls: a few times the grace of a stop and the time until ready.
const PAUSE: Duration = Duration::from_secs(15);

/// Longest time after its decision that a call has its effect: the grace of a stop, twice.
const LAG: chrono::Duration = chrono::Duration::seconds(12);

/// Calls after which the story is over, whatever happens; it takes about 40.
const MOST_CALLS: u64 = 200;

fn services(version: u32, replicas: u32) -> Services {
    let service = |image, check| {
        let (strategy, surge, unavailable) = ("rolling", "1", "1");
        Service { replicas, version, image, strategy, surge, unavailable, check, on_failure: "rollback" }
    };
    let web = service("sim/slow:3s", "type: http, url: 'http://localhost:80/'");
    BTreeMap::from([("web".to_owned(), web), ("worker".to_owned(), service("sim/stubborn", ""))])
}

/// Declares, rolls out, scales down and removes, with a crash once `crash_after` calls were made. Says whether it came to
/// the crash.
async fn tell(crash_after: u64, (outlives_caller, then): (f64, Duration), trace: Trace) -> Result<bool, String> {
    let faults = Faults { latency: LATENCY, outlives_caller, ..Faults::none() };
    let mut stage = Stage::new(crash_after, faults, trace);
    let acts = [Some(services(0, 3)), Some(services(1, 3)), Some(services(1, 2)), None, Some(services(2, 1))];
    stage.start(Duration::ZERO).await;
    let mut crashed = false;
    for services in acts {
        match services {
            Some(services) => stage.source.shop.insert("alpha".to_owned(), services),
            None => stage.source.shop.remove("alpha"),
        };
        stage.note(format!("declared: {:?}", stage.source.shop));
        stage.declare();
        let mut acts = stage.world.acts();
        if !crashed && timeout(PAUSE, acts.wait_for(|acts| *acts >= crash_after)).await.is_ok() {
            crashed = true;
            sleep(then).await;
            stage.crash().await;
            stage.start(Duration::from_millis(10)).await;
        }
        check::converges(&mut stage).await?;
    }
    check::history(&stage, check::Slack { lag: LAG, unheard: LAG, outlives: outlives_caller > 0.0 })?;
    check::is_quiet(&mut stage).await?;
    Ok(crashed)
}

#[test]
fn crash_after_any_call_changes_nothing_in_the_end() {
    for way in WAYS {
        for crash_after in 0..MOST_CALLS {
            let trace = Trace::default();
            let outcome = in_virtual_time(tell(crash_after, way, trace.clone()));
            match outcome {
                Ok(true) => {}
                Ok(false) => {
                    assert!(crash_after > 30, "the story is over after {crash_after} calls");
                    break;
                }
                Err(problem) => {
                    panic!("{}\n\ncrash after {crash_after} calls, {way:?}: {problem}", trace.lines().join("\n"))
                }
            }
        }
    }
}
