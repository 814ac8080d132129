//! What somebody else changes of a container, on both engines.

use std::time::Duration;

use evenkeel::runtime::{Runtime, RuntimeEvent};
use evenkeel::state::{Instance, InstanceId, Phase};
use futures::stream::BoxStream;

use crate::harness::{Bench, next, stop};

const SLEEPS: &str = "command: {args: [sleep, '3600']}\nresources: {memory: 64Mi}";

type Events = BoxStream<'static, RuntimeEvent>;

/// The next thing that is told of the instance that this recognises.
async fn told<T>(events: &mut Events, id: &InstanceId, recognise: impl Fn(&Instance) -> Option<T>) -> T {
    next(events, |event| match event {
        RuntimeEvent::Changed(changed) if changed.id == *id => recognise(changed),
        _ => None,
    })
    .await
}

/// What an event tells of the instance that somebody changed.
async fn change(events: &mut Events, id: &InstanceId) -> String {
    told(events, id, |changed| changed.changed_by_others().map(str::to_owned)).await
}

/// An instance that runs and whose changes are told of.
async fn watched(bench: &Bench, slot: u32) -> (Events, Instance) {
    let mut events = bench.runtime.events().await.unwrap();
    let running = bench.run(&bench.request("web", slot, SLEEPS)).await;
    assert_eq!(running.changed_by_others(), None);
    told(&mut events, &running.id, |seen| matches!(seen.phase, Phase::Running { .. }).then_some(())).await;
    (events, running)
}

async fn a_limit_that_is_changed_is_seen_at_once(bench: &Bench) {
    // The tests' Podman has no such call for Docker's clients.
    if bench.is_podman() {
        return;
    }
    let (mut events, running) = watched(bench, 0).await;
    bench.cli(&["update", "--memory", "256m", "--memory-swap", "512m", &running.runtime_id]);
    let what = "memory is 256Mi, not 64Mi; memory_swap is 512Mi, not 128Mi";
    assert_eq!(change(&mut events, &running.id).await, what);
    let again = bench.reopened().await.list().await.unwrap().instances;
    assert_eq!(again[0].changed_by_others(), Some(what));
}

async fn another_name_is_seen_at_once_and_so_is_the_old_one(bench: &Bench) {
    let (mut events, running) = watched(bench, 0).await;
    let (name, other) = (running.id.runtime_name(), format!("{}-other", running.id.runtime_name()));
    bench.cli(&["rename", &running.runtime_id, &other]);
    assert_eq!(change(&mut events, &running.id).await, format!("name is {other}, not {name}"));
    bench.cli(&["rename", &running.runtime_id, &name]);
    told(&mut events, &running.id, |seen| seen.changed_by_others().is_none().then_some(())).await;
}

async fn a_network_that_it_is_taken_off_is_missed_at_once(bench: &Bench) {
    let (mut events, running) = watched(bench, 0).await;
    let network = format!("keel_{}", bench.deployment);
    bench.cli(&["network", "disconnect", &network, &running.runtime_id]);
    assert_eq!(change(&mut events, &running.id).await, format!("it was taken off network {network}"));
    bench.cli(&["network", "connect", "--alias", "web", &network, &running.runtime_id]);
    told(&mut events, &running.id, |seen| seen.changed_by_others().is_none().then_some(())).await;
}

async fn what_ends_is_taken_off_its_network_and_not_changed(bench: &Bench) {
    let (mut events, running) = watched(bench, 0).await;
    let stopped = bench.runtime.stop(&running.as_ref(), &stop(Duration::from_secs(20))).await.unwrap().unwrap();
    assert_eq!(stopped.changed_by_others(), None);
    bench.runtime.remove(&running.as_ref()).await.unwrap();
    let changes = next(&mut events, |event| match event {
        RuntimeEvent::Changed(one) => one.changed_by_others().map(|what| Some(what.to_owned())),
        RuntimeEvent::Gone(_) => Some(None),
        _ => None,
    });
    assert_eq!(changes.await, None);
}

/// What an engine reports otherwise than it was asked for must not be replaced for ever.
async fn what_is_as_it_was_asked_for_is_not_changed(bench: &Bench) {
    let limits = [
        "",
        "resources: {memory: 64Mi, memory_reservation: 20Mi}",
        "resources: {memory: 64Mi, memory_swap: 96Mi}",
        "resources: {cpu: 333m, cpu_shares: 512, cpuset: '0', pids_limit: 50}",
        "resources: {pids_limit: -1}",
        "network_mode: none",
        "network_mode: host",
        "network_mode: bridge",
    ];
    for (slot, fields) in (0..).zip(limits) {
        let request = bench.request("web", slot, &format!("command: {{args: [sleep, '3600']}}\n{fields}"));
        let created = bench.runtime.create(&request).await.unwrap();
        assert_eq!(created.changed_by_others(), None, "{fields}");
        let running = bench.runtime.start(&created.as_ref()).await.unwrap();
        assert_eq!(running.changed_by_others(), None, "{fields}");
    }
}

async fn one_that_was_changed_before_its_start_is_created_anew(bench: &Bench) {
    let request = bench.request("web", 0, SLEEPS);
    let first = bench.runtime.create(&request).await.unwrap();
    bench.cli(&["network", "disconnect", &format!("keel_{}", bench.deployment), &first.runtime_id]);
    let second = bench.runtime.create(&request).await.unwrap();
    assert_ne!(second.runtime_id, first.runtime_id);
    assert_eq!(second.changed_by_others(), None);
}

crate::on_both_engines!(
    a_limit_that_is_changed_is_seen_at_once,
    another_name_is_seen_at_once_and_so_is_the_old_one,
    a_network_that_it_is_taken_off_is_missed_at_once,
    what_ends_is_taken_off_its_network_and_not_changed,
    what_is_as_it_was_asked_for_is_not_changed,
    one_that_was_changed_before_its_start_is_created_anew,
);
