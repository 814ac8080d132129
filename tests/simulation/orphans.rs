//! What nothing declares is listed, and removed once it was seen for long enough; what is declared, being made or another
//! installation's never is, however often anybody looks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use evenkeel::controller::{Command, Declared, OrphanKind, OrphanView, desired};
use evenkeel::plan::ORPHANS_AT_ONCE;
use evenkeel::runtime::sim::{Faults, What};
use evenkeel::runtime::{CreateRequest, Runtime};
use evenkeel::spec::{RuntimeKind, ServiceSpec, merge, parse};
use evenkeel::state::{Desired, InstanceId, Owner, StopCause};
use tokio::time::sleep;

use crate::stage::{Stage, Trace, in_virtual_time};

/// Instances that are started while the reaper looks.
const STARTS: usize = 1_000;

/// Deployments that they belong to.
const DEPLOYMENTS: usize = 20;

/// Looks in all: for longer than it takes until an orphan is removed.
const LOOKS: usize = 7_000;

/// How often it looks.
const LOOK: Duration = Duration::from_millis(10);

/// So many deployments of the same number of replicas.
fn declared(deployments: usize, replicas: usize) -> Declared {
    let text: String = (0..deployments)
        .map(|number| {
            format!(
                "---\nversion: v1\ndeployment: {}\nservices:\n  web:\n    image: {{ name: sim/run }}\n    \
                 scale: {{ mode: fixed, replicas: {replicas} }}\n",
                name(number)
            )
        })
        .collect();
    let merged = merge(&[(PathBuf::from("/specs/demo.yaml"), parse(&text))]);
    assert_eq!(merged.problems, []);
    let deployments = merged.deployments.iter().map(|(name, one)| (name.clone(), desired(one, RuntimeKind::Sim)));
    Declared { synced: true, desired: Desired { deployments: deployments.collect() }, ..Declared::default() }
}

fn name(number: usize) -> String {
    format!("demo-{number}")
}

/// Makes and starts an instance of a deployment that nothing declares.
async fn stray(stage: &Stage, owner: &str, deployment: &str) {
    let runtime = stage.world.runtime(Owner(owner.to_owned()));
    let spec: ServiceSpec = serde_yaml::from_str("image: {name: sim/run}\n").expect("a service");
    let revision = "v1-0123456789abcdef".parse().expect("a revision");
    let id = InstanceId {
        deployment: deployment.to_owned(),
        service: "web".to_owned(),
        slot: 0,
        revision,
        attempt: 0,
        run: None,
    };
    let (spec, env) = (Arc::new(spec), BTreeMap::new());
    let request = CreateRequest { id, restarts: 0, streak: 0, spec, env, source: None };
    let made = runtime.create(&request).await.expect("it is made");
    runtime.start(&made.as_ref()).await.expect("it is started");
}

async fn orphans(stage: &Stage) -> Vec<OrphanView> {
    stage.ask(Command::Orphans).await.expect("a controller")
}

/// What was removed of each deployment, by owner.
fn removed(stage: &Stage) -> Vec<(String, String)> {
    let changes = stage.world.changes().into_iter();
    let removed = changes.filter(|change| matches!(change.what, What::Removed { .. }));
    removed.map(|change| (change.owner.0, change.id.deployment)).collect()
}

#[test]
fn a_thousand_starts_while_the_reaper_looks_all_the_time_lose_nothing() {
    in_virtual_time(async {
        let faults = Faults { latency: Duration::from_millis(5), ..Faults::none() };
        let mut stage = Stage::new(0, faults, Trace::default());
        stray(&stage, "ours", "stray").await;
        stray(&stage, "theirs", "other").await;
        stage.start_with(declared(0, 0)).await;
        for number in 0..DEPLOYMENTS {
            stage.tell(declared(number + 1, STARTS / DEPLOYMENTS));
            for _ in 0..LOOKS / DEPLOYMENTS {
                let names = [name(number), "stray".to_owned(), "other".to_owned()].into();
                stage.ask(|reply| Command::AttendTo(names, reply)).await.expect("a controller");
                sleep(LOOK).await;
            }
        }
        let running = stage.world.instances().into_iter().filter(|(_, one)| one.phase.is_ready());
        let of_demo = running.filter(|(_, one)| one.id.deployment.starts_with("demo-") && one.id.attempt == 0).count();
        assert_eq!(of_demo, STARTS, "every first attempt runs");
        assert_eq!(removed(&stage), [("ours".to_owned(), "stray".to_owned())]);
        let stops = stage.world.changes().into_iter().filter(|one| matches!(one.what, What::StopAsked(_)));
        let stops: Vec<_> = stops.map(|one| (one.id.deployment, one.what)).collect();
        assert_eq!(stops, [("stray".to_owned(), What::StopAsked(StopCause::Retired))]);
    });
}

#[test]
fn an_orphan_is_listed_with_its_age_and_when_it_goes_and_is_gone_by_then() {
    in_virtual_time(async {
        let mut stage = Stage::new(0, Faults::none(), Trace::default());
        stray(&stage, "ours", "stray").await;
        stray(&stage, "theirs", "other").await;
        let made = stage.now();
        sleep(Duration::from_secs(600)).await;
        stage.start_with(declared(1, 1)).await;
        sleep(Duration::from_secs(10)).await;
        let seen = orphans(&stage).await;
        let of_kind = |kind| seen.iter().filter(move |one| one.kind == kind);
        let [instance] = of_kind(OrphanKind::Instance).collect::<Vec<_>>()[..] else { panic!("{seen:#?}") };
        assert_eq!((instance.name.as_str(), instance.created_at), ("stray/web/0", Some(made)));
        let first_seen = instance.first_seen.expect("it was seen");
        assert_eq!(instance.due, Some(first_seen + Duration::from_secs(60)));
        assert_eq!(of_kind(OrphanKind::Network).map(|one| one.name.as_str()).collect::<Vec<_>>(), ["stray"]);
        sleep(Duration::from_secs(180)).await;
        assert_eq!(orphans(&stage).await, []);
        assert_eq!(removed(&stage), [("ours".to_owned(), "stray".to_owned())]);
    });
}

#[test]
fn an_orphan_whose_removal_fails_says_so() {
    in_virtual_time(async {
        let mut stage = Stage::new(0, Faults::none(), Trace::default());
        stray(&stage, "ours", "stray").await;
        stage.start_with(declared(0, 0)).await;
        sleep(Duration::from_secs(30)).await;
        stage.world.set_faults(Faults { fails: 1.0, ..Faults::none() });
        sleep(Duration::from_secs(90)).await;
        let seen = orphans(&stage).await;
        let instance = seen.iter().find(|one| one.kind == OrphanKind::Instance).expect("it is still there");
        assert!(instance.failed.is_some(), "{instance:#?}");
        stage.world.set_faults(Faults::none());
        sleep(Duration::from_secs(300)).await;
        assert_eq!(orphans(&stage).await, []);
    });
}

#[test]
fn no_more_orphans_go_at_once_than_may_of_however_many_deployments_they_are_and_each_says_when_it_goes() {
    in_virtual_time(async {
        let mut stage = Stage::new(0, Faults::none(), Trace::default());
        for number in 0..3 * ORPHANS_AT_ONCE {
            stray(&stage, "ours", &name(number)).await;
        }
        sleep(Duration::from_secs(600)).await;
        stage.world.set_faults(Faults { latency: Duration::from_secs(2), ..Faults::none() });
        stage.start_with(declared(0, 0)).await;
        let mut most = 0;
        for _ in 0..1_000 {
            sleep(Duration::from_millis(250)).await;
            let seen = orphans(&stage).await;
            let kept = seen.iter().find(|one| one.kind == OrphanKind::Instance && one.due.is_none());
            assert_eq!(kept, None, "what is being removed is not kept");
            let changes = stage.world.changes();
            let stopped = changes.iter().filter(|change| matches!(change.what, What::StopAsked(_))).count();
            most = most.max(stopped - removed(&stage).len());
        }
        assert_eq!(removed(&stage).len(), 3 * ORPHANS_AT_ONCE);
        // Those whose stop is on its way to the runtime are not seen.
        assert!((ORPHANS_AT_ONCE / 2..=ORPHANS_AT_ONCE).contains(&most), "{most}");
    });
}
