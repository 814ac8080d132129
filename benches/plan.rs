//! Planning 10,000 instances in 100 deployments, as a full re-list does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, TimeZone, Utc};
use divan::{Bencher, black_box};
use evenkeel::plan::{History, Input, Plan, plan};
use evenkeel::spec::{Prune, Revision, RuntimeKind, ServiceSpec};
use evenkeel::state::{DesiredDeployment, DesiredService, Instance, InstanceId, Phase, SourceRef, Volumes};

const DEPLOYMENTS: usize = 100;
const SERVICES: usize = 5;
const REPLICAS: u32 = 20;

fn main() {
    divan::main();
}

fn now() -> DateTime<Utc> {
    Utc.timestamp_opt(1_767_268_800, 0).single().expect("a time")
}

fn revision(letter: &str) -> Revision {
    format!("v1-{}", letter.repeat(16)).parse().expect("a revision")
}

/// A deployment of 5 services with 20 replicas each, and its instances, all ready.
fn deployment(number: usize) -> (DesiredDeployment, Vec<Instance>) {
    let spec: Arc<ServiceSpec> = Arc::new(serde_yaml::from_str("image: {name: nginx}").expect("a spec"));
    let source = SourceRef { file: format!("deployment-{number}.yaml").into(), line: 1 };
    let services = (0..SERVICES).map(|service| {
        let service = DesiredService {
            name: format!("service-{service}"),
            spec: spec.clone(),
            revision: revision("a"),
            equivalent: None,
            source: source.clone(),
            runtime: RuntimeKind::Docker,
            replicas: REPLICAS,
            standing: Default::default(),
        };
        (service.name.clone(), service)
    });
    let services: BTreeMap<_, _> = services.collect();
    let name = format!("deployment-{number}");
    let ids = services.keys().flat_map(|service| {
        (0..REPLICAS).map(|slot| InstanceId {
            deployment: name.clone(),
            service: service.clone(),
            slot,
            revision: revision("a"),
            attempt: 0,
            run: None,
        })
    });
    let observed = ids.map(running).collect();
    let desired =
        DesiredDeployment { name: name.clone(), source, prune: Prune::Auto, services, unsupported: Vec::new() };
    (desired, observed)
}

fn running(id: InstanceId) -> Instance {
    let since = now() - chrono::TimeDelta::hours(1);
    Instance::new(id, RuntimeKind::Docker, Phase::Running { since, ready: true }, since)
}

fn plan_all(world: &[(DesiredDeployment, Vec<Instance>)]) -> Vec<Plan> {
    let (shared, unreachable, history) = (BTreeSet::new(), BTreeMap::new(), History::default());
    let plans = world.iter().map(|(desired, observed)| {
        plan(&Input {
            deployment: &desired.name,
            desired: Ok(desired),
            observed,
            shared: &shared,
            unreachable: &unreachable,
            history: &history,
            volumes: Volumes::Keep,
            now: now(),
        })
    });
    plans.collect()
}

#[divan::bench]
fn ten_thousand_instances_and_no_change(bencher: Bencher<'_, '_>) {
    let world: Vec<_> = (0..DEPLOYMENTS).map(deployment).collect();
    assert!(plan_all(&world).iter().all(Plan::is_empty));
    bencher.bench_local(|| plan_all(black_box(&world)));
}

#[divan::bench]
fn ten_thousand_instances_and_one_changed_template(bencher: Bencher<'_, '_>) {
    let mut world: Vec<_> = (0..DEPLOYMENTS).map(deployment).collect();
    world[50].0.services.get_mut("service-2").expect("the service").revision = revision("b");
    assert_eq!(plan_all(&world).iter().filter(|plan| !plan.is_empty()).count(), 1);
    bencher.bench_local(|| plan_all(black_box(&world)));
}

/// All in one deployment: the time has to grow no faster than n log n.
#[divan::bench(args = [1_000, 10_000, 100_000])]
fn one_service_of_many_replicas(bencher: Bencher<'_, '_>, replicas: u32) {
    let (mut desired, observed) = deployment(0);
    desired.services.retain(|name, _| name == "service-0");
    let service = desired.services.get_mut("service-0").expect("the service");
    (service.replicas, service.revision) = (replicas, revision("b"));
    let first = observed.into_iter().next().expect("an instance");
    let slots = (0..replicas).rev().map(|slot| {
        let mut instance = first.clone();
        instance.id.slot = slot;
        instance.runtime_id = instance.id.runtime_name();
        instance
    });
    let world = [(desired, slots.collect::<Vec<_>>())];
    bencher.bench_local(|| plan_all(black_box(&world)));
}
