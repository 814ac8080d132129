//! Rollouts in the core: what is given up for what comes after it, and what is remembered.

use std::time::Duration;

use evenkeel::runtime::sim::Faults;
use evenkeel::status::{DeploymentState, Status};

use super::{Rig, web};

fn revisions(status: &Status) -> Vec<String> {
    status.instances.iter().map(|one| one.revision.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_hangs_is_given_up_within_a_second_for_the_next_revision() {
    let rig = Rig::new();
    rig.declare(&web(2, "one"));
    let running = |status: &Status| status.deployments.iter().any(|view| view.state == DeploymentState::Running);
    rig.until("the first revision runs", running).await;
    let day = Duration::from_secs(24 * 3600);
    rig.world.set_faults(Faults { slow: 1.0, slow_for: day, ..Faults::none() });
    rig.declare(&web(2, "two"));
    let first = rig.until("the next one is being made", |status| status.instances.len() > 2).await;
    // Its call is under way by then, and hangs.
    tokio::time::sleep(Duration::from_secs(5)).await;
    rig.world.set_faults(Faults::none());
    rig.declare(&web(2, "three"));
    let declared = tokio::time::Instant::now();
    let status = rig
        .until("the last one is rolled out", |status| {
            running(status)
                && status.services[0].updated == 2
                && status.services[0].revision != first.services[0].revision
        })
        .await;
    assert!(declared.elapsed() < Duration::from_secs(1), "{:?}", declared.elapsed());
    assert_eq!(revisions(&status), vec![status.services[0].revision.clone(); 2]);
}
