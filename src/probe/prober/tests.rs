//! The prober in virtual time, on simulated instances.

use std::collections::BTreeMap;

use chrono::TimeDelta;

use super::*;
use crate::clock::VirtualClock;
use crate::runtime::sim::{Faults, Method, SimRuntime, World};
use crate::runtime::{CreateRequest, Suspend};
use crate::state::{InstanceId, Owner};

struct Rig {
    world: Arc<World>,
    runtime: Arc<SimRuntime>,
    clock: Arc<VirtualClock>,
    prober: Prober,
    verdicts: mpsc::Receiver<Verdict>,
}

const HTTP: &str = "type: http, url: 'http://localhost:80/'";

fn spec(check: &str) -> Arc<ServiceSpec> {
    let text = format!("image: {{name: sim/run}}\nhealth: {{interval: 10s, retries: 2, check: {{{check}}}}}\n");
    Arc::new(serde_yaml::from_str(&text).unwrap())
}

impl Rig {
    fn new() -> Self {
        let clock = Arc::new(VirtualClock::starting_at("2026-01-01T00:00:00Z".parse().unwrap()));
        let world = World::new(clock.clone(), 1, Faults::none());
        let runtime = Arc::new(world.runtime(Owner("tests".to_owned())));
        let (tell, verdicts) = mpsc::channel(10_000);
        Self { prober: Prober::start(clock.clone(), tell), world, runtime, clock, verdicts }
    }

    /// Runs an instance, which the prober is to know as one of this age.
    async fn start(&self, slot: u32, check: &str, age: i64) -> Subject {
        let id = InstanceId {
            deployment: "demo".to_owned(),
            service: "web".to_owned(),
            slot,
            revision: "v1-0123456789abcdef".parse().unwrap(),
            attempt: 0,
            run: None,
        };
        let spec = spec(check);
        let request =
            CreateRequest { id, restarts: 0, streak: 0, spec: spec.clone(), env: BTreeMap::new(), source: None };
        let instance = self.runtime.create(&request).await.unwrap().as_ref();
        self.runtime.start(&instance).await.unwrap();
        let since = self.clock.now() - TimeDelta::seconds(age);
        Subject { instance, since, spec, runtime: self.runtime.clone(), served: false }
    }

    async fn start_all(&self, slots: std::ops::Range<u32>, check: &str, age: i64) -> Vec<Subject> {
        let mut all = Vec::new();
        for slot in slots {
            all.push(self.start(slot, check, age).await);
        }
        all
    }

    fn dials(&self) -> u64 {
        self.world.calls().get(&Method::Dial).copied().unwrap_or(0)
    }

    /// The slots and words of all verdicts so far, in order of the slots.
    fn told(&mut self) -> Vec<(u32, &'static str)> {
        let mut told = Vec::new();
        while let Ok(verdict) = self.verdicts.try_recv() {
            told.push((verdict.instance.id.slot, verdict.health.name()));
        }
        told.sort_unstable();
        told
    }
}

async fn pass(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

#[tokio::test(start_paused = true)]
async fn only_changes_are_told() {
    let mut rig = Rig::new();
    let subject = rig.start(0, HTTP, 0).await;
    rig.prober.check("demo", vec![subject.clone()]);
    pass(100).await;
    assert_eq!(rig.told(), [(0, "healthy")]);
    pass(60_000).await;
    assert_eq!(rig.told(), []);
    let unhealthy = HealthState::Unhealthy { last: "overloaded".to_owned(), passed: true };
    assert!(rig.world.answer_as(&subject.instance.runtime_id, unhealthy));
    pass(60_000).await;
    let verdict = rig.verdicts.try_recv().unwrap();
    let last = "GET http://localhost:80/ answered 503 Service Unavailable, expected 200".to_owned();
    assert_eq!(verdict.health, HealthState::Unhealthy { last, passed: true });
    assert_eq!(rig.told(), []);
}

#[tokio::test(start_paused = true)]
async fn what_ran_for_a_while_is_not_checked_all_at_once() {
    let mut rig = Rig::new();
    let subjects = rig.start_all(0..2_000, "type: tcp, port: 80", 3_600).await;
    rig.prober.check("demo", subjects);
    let mut most = 0;
    for _ in 0..20 {
        let before = rig.dials();
        pass(100).await;
        most = most.max(rig.dials() - before);
    }
    pass(100).await;
    assert_eq!(rig.told().len(), 2_000, "all are known after two seconds");
    assert!(most < 200, "{most} in a tenth of a second");
}

#[tokio::test(start_paused = true)]
async fn checks_that_hang_hold_up_no_others() {
    let mut rig = Rig::new();
    let hanging = rig.start_all(0..200, HTTP, 0).await;
    for subject in &hanging {
        rig.runtime.pause(&subject.instance).await.unwrap();
    }
    rig.prober.check("demo", hanging);
    pass(1_000).await;
    assert_eq!(rig.told(), []);
    let other = rig.start(1_000, HTTP, 0).await;
    rig.prober.check("shop", vec![other]);
    pass(100).await;
    assert_eq!(rig.told(), [(1_000, "healthy")]);
    // They are given up after their time.
    pass(4_500).await;
    let told = rig.told();
    assert_eq!((told.len(), told[0].1), (200, "starting"));
}

#[tokio::test(start_paused = true)]
async fn no_more_run_at_once_than_may() {
    let rig = Rig::new();
    let half = CONNECTIONS_AT_ONCE as u64 / 2;
    let many = u32::try_from(half).unwrap() + 100;
    let hanging = rig.start_all(0..many, HTTP, 0).await;
    for subject in &hanging {
        rig.runtime.pause(&subject.instance).await.unwrap();
    }
    rig.prober.check("demo", hanging);
    pass(4_000).await;
    assert_eq!(rig.dials(), half, "one service leaves as much as it takes");
    // The rest has its turn when these are given up.
    pass(2_000).await;
    assert!(rig.dials() >= u64::from(many), "{}", rig.dials());
}

#[tokio::test(start_paused = true)]
async fn commands_take_turns() {
    let mut rig = Rig::new();
    let subjects = rig.start_all(0..100, "type: command, command: 'true'", 0).await;
    rig.world.set_faults(Faults { slow: 1.0, slow_for: Duration::from_secs(2), ..Faults::none() });
    let calls = |rig: &Rig| rig.world.calls().get(&Method::Exec).copied().unwrap_or(0);
    rig.prober.check("demo", subjects);
    pass(51).await;
    assert_eq!(calls(&rig), COMMANDS_AT_ONCE as u64 / 2);
    pass(60_000).await;
    assert_eq!(rig.told().iter().filter(|(_, health)| *health == "healthy").count(), 100);
}

/// The same run as one of another service.
fn of_service(subject: &Subject, service: &str) -> Subject {
    let mut other = subject.clone();
    other.instance.id.service = service.to_owned();
    other
}

/// Each call takes very long.
fn slow() -> Faults {
    Faults { slow: 1.0, slow_for: Duration::from_secs(3_600), ..Faults::none() }
}

/// Runs of as many services, whose checks hang for an hour.
async fn hog(rig: &Rig, services: std::ops::Range<u32>, check: &str) {
    let mut hanging = Vec::new();
    for slot in services {
        let subject = with_health(&rig.start(slot, check, 0).await, &format!("timeout: 1h, check: {{{check}}}"));
        rig.runtime.pause(&subject.instance).await.unwrap();
        hanging.push(of_service(&subject, &format!("hog{slot}")));
    }
    rig.world.set_faults(slow());
    rig.prober.check("hogs", hanging);
    pass(100).await;
    rig.world.set_faults(Faults::none());
}

#[tokio::test(start_paused = true)]
async fn hanging_checks_of_one_service_leave_places_to_others_and_to_another_revision() {
    let mut rig = Rig::new();
    const COMMAND: &str = "type: command, command: 'sleep 700'";
    let all = rig.start_all(0..100, COMMAND, 0).await;
    let mut hanging = Vec::new();
    for subject in &all {
        hanging.push(with_health(subject, &format!("timeout: 1h, check: {{{COMMAND}}}")));
    }
    rig.world.set_faults(slow());
    rig.prober.check("hog", hanging.clone());
    pass(500).await;
    rig.world.set_faults(Faults::none());
    let other = of_service(&rig.start(100, COMMAND, 0).await, "other");
    let mut mended = rig.start(101, COMMAND, 0).await;
    mended.instance.id.revision = "v1-fedcba9876543210".parse().unwrap();
    rig.prober.check("shop", vec![other, mended]);
    pass(100).await;
    assert_eq!(rig.told(), [(100, "healthy"), (101, "healthy")]);
    // What waits is told, by a name that says why.
    pass(1_000).await;
    let verdict = rig.verdicts.try_recv().unwrap();
    let why = verdict.held_up.clone().unwrap();
    assert!(why.contains("8 of at most 16 command checks are under way, most of them (8) of demo/web"), "{why}");
    assert_eq!((verdict.health.name(), rig.told().len()), ("unknown", 91));
    assert_eq!(verdict.health, HealthState::Waiting { why });
    let slot = verdict.instance.id.slot;
    // The turn comes when nobody is in the way any more.
    rig.prober.check("hog", vec![hanging[slot as usize].clone()]);
    pass(100).await;
    assert_eq!(rig.told(), [(slot, "healthy"), (slot, "starting")]);
}

#[tokio::test(start_paused = true)]
async fn checks_of_one_kind_never_hold_up_those_of_the_other() {
    const COMMAND: &str = "type: command, command: 'true'";
    for (hanging, other, places) in [(HTTP, COMMAND, CONNECTIONS_AT_ONCE), (COMMAND, HTTP, COMMANDS_AT_ONCE)] {
        let mut rig = Rig::new();
        hog(&rig, 0..u32::try_from(places).unwrap() + 1, hanging).await;
        let same = of_service(&rig.start(9_001, hanging, 0).await, "same");
        rig.prober.check("shop", vec![of_service(&rig.start(9_000, other, 0).await, "other"), same]);
        pass(900).await;
        assert_eq!(rig.told(), [(9_000, "healthy")], "{hanging}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_check_that_waits_for_long_is_told_and_what_is_known_stays() {
    let mut rig = Rig::new();
    let subject = rig.start(9_000, HTTP, 0).await;
    rig.prober.check("demo", vec![subject]);
    pass(100).await;
    assert_eq!(rig.told(), [(9_000, "healthy")]);
    hog(&rig, 0..u32::try_from(CONNECTIONS_AT_ONCE).unwrap(), HTTP).await;
    // It was due after an interval of 10 s at most, and has waited for another.
    pass(19_000).await;
    let late = |rig: &mut Rig| {
        let all = std::iter::from_fn(|| rig.verdicts.try_recv().ok());
        all.filter(|one| one.instance.id.slot == 9_000).map(|one| (one.health, one.held_up.is_some())).last()
    };
    pass(1_500).await;
    assert_eq!(late(&mut rig), Some((HealthState::Healthy, true)));
    rig.prober.check("hogs", Vec::new());
    pass(100).await;
    assert_eq!(late(&mut rig), Some((HealthState::Healthy, false)));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_to_be_checked_any_more_is_let_go() {
    let mut rig = Rig::new();
    let subjects = rig.start_all(0..3, HTTP, 0).await;
    rig.prober.check("demo", subjects.clone());
    pass(20_000).await;
    assert_eq!(rig.told().len(), 3);
    rig.prober.check("demo", subjects[..1].to_vec());
    pass(1).await;
    let before = rig.dials();
    pass(100_000).await;
    let checks = rig.dials() - before;
    assert!((9..=12).contains(&checks), "{checks} checks of one instance in 100 s");
    // A restart is another run.
    let again = Subject { since: subjects[0].since + TimeDelta::seconds(1), ..subjects[0].clone() };
    rig.prober.check("demo", vec![again.clone()]);
    pass(2_500).await;
    assert_eq!(rig.verdicts.try_recv().map(|verdict| verdict.since), Ok(again.since));
}

/// The same run with this health block.
fn with_health(subject: &Subject, health: &str) -> Subject {
    let text = format!("image: {{name: sim/run}}\nhealth: {{{health}}}\n");
    Subject { spec: Arc::new(serde_yaml::from_str(&text).unwrap()), ..subject.clone() }
}

#[tokio::test(start_paused = true)]
async fn another_health_block_counts_at_once() {
    let mut rig = Rig::new();
    let subject = rig.start(0, HTTP, 0).await;
    rig.prober.check("demo", vec![with_health(&subject, &format!("interval: 1h, check: {{{HTTP}}}"))]);
    pass(100).await;
    assert_eq!(rig.told(), [(0, "healthy")]);
    let down = HealthState::Unhealthy { last: "down".to_owned(), passed: true };
    assert!(rig.world.answer_as(&subject.instance.runtime_id, down));
    let block = format!("interval: 1h, retries: 1, start_grace: 0s, check: {{{HTTP}}}");
    rig.prober.check("demo", vec![with_health(&subject, &block)]);
    pass(100).await;
    assert_eq!(rig.told(), [(0, "unhealthy")]);
}

#[tokio::test(start_paused = true)]
async fn a_check_under_way_is_given_up_with_its_block() {
    let mut rig = Rig::new();
    let subject = rig.start(0, HTTP, 0).await;
    rig.runtime.pause(&subject.instance).await.unwrap();
    let block = |retries: u32| format!("timeout: 1h, retries: {retries}, start_grace: 0s, check: {{{HTTP}}}");
    rig.prober.check("demo", vec![with_health(&subject, &block(3))]);
    pass(1_000).await;
    rig.runtime.resume(&subject.instance).await.unwrap();
    rig.prober.check("demo", vec![with_health(&subject, &block(1))]);
    pass(100).await;
    assert_eq!((rig.told(), rig.dials()), (vec![(0, "healthy")], 2));
    // Nothing comes of the first one.
    pass(2 * 3_600_000).await;
    assert_eq!(rig.told(), []);
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_is_away_makes_nothing_unhealthy() {
    let mut rig = Rig::new();
    let subject = rig.start(0, HTTP, 0).await;
    rig.prober.check("demo", vec![subject]);
    pass(100).await;
    assert_eq!(rig.told(), [(0, "healthy")]);
    rig.world.go_unreachable(Duration::from_secs(600));
    pass(900_000).await;
    assert_eq!(rig.told(), []);
}
