//! Adaptive services in the core: there are fewer replicas by a decision alone, and none is made where nothing is done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use evenkeel::controller::{Core, Declared, Note, Order, Parts};
use evenkeel::plan::revisions::{Memory, Orders};
use evenkeel::status::{DeploymentState, Status};

use super::rollouts::{Notes, order};
use super::{Rig, names, running};

/// Every simulated instance uses a hundredth of a processor, which is all that these may have.
const DEMO: &str = "version: v1\ndeployment: demo\nservices:\n  web:\n    image: {name: sim/run}\n    \
                    resources: {cpu: 10m}\n    scale: {mode: adaptive, min: 1, max: 5, targets: {cpu: 50}}\n";

/// A core with an empty machine that remembers this.
fn rig(orders: Orders) -> (Rig, Arc<Notes>) {
    let mut rig = Rig::new();
    let notes = Arc::new(Notes::default());
    let memory = [("demo".to_owned(), Memory { orders, ..Memory::default() })].into();
    rig.core = Core::start(Parts { memory, keeper: Some(notes.clone()), ..rig.parts() });
    (rig, notes)
}

fn orders(notes: &Notes) -> Orders {
    match notes.0.lock().expect("notes").get(&("demo".to_owned(), None)) {
        Some(Note::Orders(orders)) => orders.clone(),
        other => panic!("{other:?}"),
    }
}

fn five() -> Vec<(String, String, u32)> {
    running(&[(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)])
}

#[tokio::test(start_paused = true)]
async fn the_next_controller_brings_back_as_many_as_there_were_to_be() {
    let (first, notes) = rig(Orders::default());
    first.declare(DEMO);
    first.until("load asks for more", |status| names(status) == five()).await;
    let known = orders(&notes);
    assert_eq!(known.adaptive, BTreeMap::from([("web".to_owned(), 5)]));
    // Its machine went down with it.
    let (next, notes) = rig(known);
    next.declare(DEMO);
    assert_eq!(names(&*next.until_running().await), five());
    // One that is adaptive no more is not remembered as such.
    next.declare(&DEMO.replace("{mode: adaptive, min: 1, max: 5, targets: {cpu: 50}}", "{mode: fixed, replicas: 2}"));
    next.until("two are left", |status| names(status) == running(&[(0, 0), (1, 0)])).await;
    assert_eq!(orders(&notes).adaptive, BTreeMap::new());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_decided_while_the_deployment_is_suspended() {
    let (rig, notes) = rig(Orders::default());
    rig.declare(DEMO);
    rig.until_running().await;
    let suspend = |suspend| Order::Suspend { deployment: "demo".to_owned(), suspend };
    order(&rig, suspend(true)).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(orders(&notes).adaptive, BTreeMap::from([("web".to_owned(), 1)]));
    assert_eq!(rig.core.status.borrow().services[0].desired, 1);
    order(&rig, suspend(false)).await;
    rig.until("load asks for more", |status| names(status) == five()).await;
}

/// Instances that accept 20 connections a second each.
const BUSY: &str = "version: v1\ndeployment: demo\nservices:\n  web:\n    image: {name: app}\n    network_mode: default\n    \
                    command: {entrypoint: [sim, requests 20]}\n    \
                    scale: {mode: adaptive, min: 1, max: 5, targets: {rps: 12}}\n";

#[tokio::test(start_paused = true)]
async fn requests_per_second_add_replicas_and_the_decision_says_so() {
    let (rig, notes) = rig(Orders::default());
    rig.declare(BUSY);
    rig.until("load asks for more", |status| names(status) == five()).await;
    assert_eq!(orders(&notes).adaptive, BTreeMap::from([("web".to_owned(), 5)]));
    let services = &rig.core.status.borrow().services;
    assert!(!services[0].conditions.iter().any(|one| one.kind == "UnsupportedField"), "{services:#?}");
}

#[tokio::test(start_paused = true)]
async fn requests_that_nobody_counts_change_nothing_and_are_told_of() {
    let (rig, notes) = rig(Orders::default());
    rig.declare(&BUSY.replace("network_mode: default", "network_mode: host"));
    rig.until_running().await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(orders(&notes).adaptive, BTreeMap::from([("web".to_owned(), 1)]));
    let services = &rig.core.status.borrow().services;
    let told: Vec<&str> =
        services[0].conditions.iter().filter(|one| one.kind == "UnsupportedField").map(|one| &*one.message).collect();
    // The declaration and the measurement both tell of it.
    let expected = "scale.targets.rps: requests are not counted: it shares its network, and nobody can tell whose connections \
                    are counted there; there is no other target, so the number of replicas stays";
    assert_eq!(told, [expected]);
}

#[tokio::test(start_paused = true)]
async fn what_shows_only_when_it_is_measured_is_told_then() {
    let (rig, notes) = rig(Orders::default());
    rig.declare(&BUSY.replace("network_mode: default", "sandbox: {allow_hosts: [example.org]}"));
    let told = |status: &Status| {
        let mut conditions = status.services.iter().flat_map(|one| &one.conditions);
        conditions.any(|one| one.reason == "RequestsNotCounted" && one.message.contains("the egress proxy"))
    };
    assert!(!told(&*rig.until_running().await));
    // The first measurement comes after 15 s, and it is not waited for the next look at everything.
    let soon = tokio::time::timeout(Duration::from_secs(17), rig.until("requests are not counted", told));
    soon.await.expect("it is told at once");
    assert_eq!(orders(&notes).adaptive, BTreeMap::from([("web".to_owned(), 1)]));
    // What is not aimed at need not be counted.
    rig.declare(
        &BUSY.replace("network_mode: default", "sandbox: {allow_hosts: [example.org]}").replace("rps: 12", "cpu: 50"),
    );
    rig.until("it is aimed at no more", |status| !told(status)).await;
}

const MANUAL: &str = "version: v1\ndeployment: demo\nservices:\n  web:\n    image: {name: sim/run}\n    scale: {mode: manual}\n  \
                      db:\n    image: {name: sim/run}\n";

#[tokio::test(start_paused = true)]
async fn an_ordered_number_is_forgotten_with_the_declaration_that_left_it_to_orders() {
    let fixed = MANUAL.replace("mode: manual", "mode: fixed, replicas: 2");
    let without = MANUAL.replace("web:", "other:");
    let edited = MANUAL.replace("sim/run", "sim/other");
    for (meanwhile, expected) in [(&edited, 0), (&fixed, 1), (&without, 1)] {
        let (rig, notes) = rig(Orders::default());
        rig.declare(MANUAL);
        rig.until_running().await;
        order(&rig, Order::Scale { target: "demo/web".to_owned(), replicas: 0 }).await;
        let of = |status: &Status, name: &str| {
            status.instances.iter().filter(|one| one.service == name && one.phase == "running").count()
        };
        rig.until("none is left", |status| of(status, "web") == 0).await;
        rig.declare(meanwhile);
        let revisions = |status: &Status| -> BTreeMap<String, String> {
            status.services.iter().map(|one| (one.service.clone(), one.revision.clone())).collect()
        };
        let before = revisions(&rig.core.status.borrow());
        let (is_fixed, is_without) = (*meanwhile == fixed, *meanwhile == without);
        let is_there = |status: &Status| match (is_fixed, is_without) {
            (true, _) => of(status, "web") == 2,
            (_, true) => of(status, "other") == 1,
            _ => revisions(status) != before,
        };
        rig.until("the other declaration is in force", is_there).await;
        rig.declare(MANUAL);
        let counts =
            |status: &Status| status.services.iter().any(|one| one.service == "web" && one.desired == expected);
        rig.until("it is declared as before", |status| counts(status) && of(status, "other") == 0).await;
        let kept = if expected == 0 { BTreeMap::from([("web".to_owned(), 0)]) } else { BTreeMap::new() };
        assert_eq!(orders(&notes).replicas, kept);
    }
}

#[tokio::test(start_paused = true)]
async fn an_ordered_number_outlives_a_deployment_that_may_be_declared_all_the_same() {
    let (rig, notes) = rig(Orders::default());
    rig.declare(MANUAL);
    rig.until_running().await;
    order(&rig, Order::Scale { target: "demo/web".to_owned(), replicas: 0 }).await;
    let stale = [("demo".to_owned(), "its file can't be read".to_owned())].into();
    rig.declare.send_replace(Arc::new(Declared { synced: true, stale, ..Declared::default() }));
    rig.until("it is kept", |status| status.deployments[0].state == DeploymentState::Kept).await;
    assert_eq!(orders(&notes).replicas, BTreeMap::from([("web".to_owned(), 0)]));
    rig.declare(MANUAL);
    let counts = |status: &Status| status.services.iter().any(|one| one.service == "web" && one.desired == 0);
    rig.until_running().await;
    assert!(counts(&rig.core.status.borrow()), "{:#?}", rig.core.status.borrow().services);
}
