//! Steps before a start, and services that wait for others, from the declaration to what runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use evenkeel::controller::{Connected, Declared};
use evenkeel::runtime::sim::What;
use evenkeel::state::Phase;
use evenkeel::status::{DeploymentState, Status};

use super::{Rig, core_of, gone, owner, removed};

/// The deployment `demo` with these services.
fn demo(services: &str) -> String {
    format!("version: v1\ndeployment: demo\nservices:\n{services}")
}

/// A service with these further fields, one line each.
fn service(name: &str, fields: &[&str]) -> String {
    let fields: String = fields.iter().map(|field| format!("    {field}\n")).collect();
    let image = if fields.contains("image:") { "" } else { "    image: {name: sim/run}\n" };
    format!("  {name}:\n{image}{fields}")
}

fn steps(steps: &str) -> String {
    format!("init: {{steps: [{steps}]}}")
}

/// What started, in this order.
fn starts(rig: &Rig) -> Vec<String> {
    let started = rig.world.changes().into_iter().filter(|change| matches!(change.what, What::Started { .. }));
    started.map(|change| change.id.service).collect()
}

/// What ended, in this order.
fn ends(rig: &Rig) -> Vec<String> {
    let ended = rig.world.changes().into_iter().filter(|change| matches!(change.what, What::Ended { .. }));
    ended.map(|change| change.id.service).collect()
}

fn message(status: &Status, service: &str) -> String {
    status.services.iter().find(|view| view.service == service).map(|view| view.message.clone()).unwrap_or_default()
}

fn is_failed(status: &Status) -> bool {
    status.deployments.first().is_some_and(|view| view.state == DeploymentState::Failed)
}

async fn seconds(count: u64) {
    tokio::time::sleep(Duration::from_secs(count)).await;
}

/// The same world, seen by the next controller.
fn restarted(rig: Rig) -> Rig {
    let Rig { clock, world, core, declare, .. } = rig;
    drop(core);
    let runtime = Arc::new(Connected(Arc::new(world.runtime(owner()))));
    let (core, settled) = core_of(runtime, declare.subscribe(), clock.clone(), BTreeMap::new());
    Rig { clock, world, core, declare, settled }
}

/// `web` depends on `api`, which depends on `db`, which is ready some time after its start.
fn chain() -> String {
    let healthy = "health: {interval: 1s, check: {type: tcp, port: 80}}";
    demo(
        &[
            service("api", &[healthy, "image: {name: 'sim/slow:5s'}", "depends: [{service: db}]"]),
            service("db", &[healthy, "image: {name: 'sim/slow:5s'}"]),
            service("web", &["depends: [{service: api, condition: ready}]"]),
        ]
        .concat(),
    )
}

#[tokio::test(start_paused = true)]
async fn services_start_in_order_also_after_everything_died_without_a_controller() {
    let rig = Rig::new();
    rig.declare(&chain());
    rig.until_running().await;
    assert_eq!(starts(&rig), ["db", "api", "web"]);
    // Nobody is there when the machine goes down.
    let Rig { clock, world, core, declare, settled } = rig;
    drop(core);
    for (_, instance) in world.instances() {
        assert!(world.kill(&instance.runtime_id, 137));
    }
    let (idle, _) = core_of(
        Arc::new(Connected(Arc::new(world.runtime(owner())))),
        tokio::sync::watch::channel(Arc::default()).1,
        clock.clone(),
        BTreeMap::new(),
    );
    let rig = restarted(Rig { clock, world, core: idle, declare, settled });
    rig.until_running().await;
    assert_eq!(starts(&rig), ["db", "api", "web", "db", "api", "web"]);
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_goes_ends_in_reverse_order() {
    let mut rig = Rig::new();
    rig.declare(&chain());
    rig.until_running().await;
    let removed = BTreeMap::from([("demo".to_owned(), removed())]);
    rig.declare.send_replace(Arc::new(Declared { synced: true, removed, ..Declared::default() }));
    assert_eq!(rig.settled.recv().await, Some(gone(None)));
    assert_eq!(ends(&rig), ["web", "api", "db"]);
}

#[tokio::test(start_paused = true)]
async fn a_dependency_that_does_not_come_fails_the_service_until_it_does() {
    let rig = Rig::new();
    let db = |image: &str| {
        service(
            "db",
            &[
                &format!("image: {{name: '{image}'}}"),
                "health: {interval: 1s, start_grace: 1h, check: {type: tcp, port: 80}}",
                "rollout: {progress_deadline: 2h}",
            ],
        )
    };
    let web = service("web", &["depends: [{service: db, timeout: 30s}]"]);
    rig.declare(&demo(&[db("sim/slow:1h"), web.clone()].concat()));
    let waiting = rig.until("the wait", |status| message(status, "web").starts_with("wait to start web until ")).await;
    assert_eq!(waiting.services[1].awaits[0].service, "db");
    seconds(25).await;
    assert!(!is_failed(&rig.core.status.borrow()));
    let failed = rig.until("the failure", is_failed).await;
    let expected = "wait to start web until db is healthy, which it was not within 30s: no instance of it is healthy";
    assert_eq!(message(&failed, "web"), expected);
    assert!(failed.services[1].awaits[0].given_up);
    // It comes late.
    rig.until_running().await;
    assert_eq!(starts(&rig), ["db", "web"]);
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_when_an_instance_of_the_service_takes_connections() {
    let rig = Rig::new();
    let wait = steps(
        "{id: db, uses: init.wait_tcp, with: {host: db, port: 5432}}, {id: ok, uses: init.wait_http, with: {url: 'http://db:80/'}}",
    );
    let web = service("web", &[&wait]);
    rig.declare(&demo(
        &web.replace("  web:", "  db:\n    image: {name: sim/run}\n    scale: {mode: fixed, replicas: 0}\n  web:"),
    ));
    seconds(60).await;
    let status = rig.core.status.borrow().clone();
    let shown: Vec<(&str, &str)> =
        status.instances.iter().map(|one| (one.phase.as_str(), one.message.as_str())).collect();
    assert_eq!(shown, [("pending", "init step db: db:5432: no instance of db runs")]);
    rig.declare(&demo(&[service("db", &[]), web].concat()));
    rig.until_running().await;
    assert_eq!(starts(&rig), ["db", "web"]);
}

#[tokio::test(start_paused = true)]
async fn a_command_runs_in_an_instance_of_its_own_which_is_gone_before_the_service_starts() {
    let rig = Rig::new();
    rig.declare(&demo(&service(
        "web",
        &[&steps("{id: make, uses: init.run, with: {command: 'sim; wait 5s; exit 0'}}")],
    )));
    let status = rig.until("the helper", |status| status.instances.iter().any(|one| one.service == "web.init")).await;
    assert_eq!((status.services[0].running, status.services.len()), (0, 1), "it is no replica");
    rig.until_running().await;
    let changes = rig.world.changes();
    let what = |what: &What| match what {
        What::Created => "created",
        What::Started { .. } => "started",
        What::Ended(_) => "ended",
        What::Removed { .. } => "removed",
        _ => "other",
    };
    let course: Vec<(&str, &str)> = changes.iter().map(|one| (one.id.service.as_str(), what(&one.what))).collect();
    assert_eq!(
        course,
        [
            ("web.init", "created"),
            ("web.init", "started"),
            ("web.init", "ended"),
            ("web.init", "removed"),
            ("web", "created"),
            ("web", "started")
        ]
    );
}

/// A service whose command before the start fails.
fn failing(step: &str, errors: &str) -> String {
    let step =
        steps(&format!("{{id: make, uses: init.run, with: {{command: 'sim; print no such table; exit 3'}}{step}}}"));
    demo(&service("web", &[&step, errors]))
}

#[tokio::test(start_paused = true)]
async fn what_a_failed_step_leads_to_is_what_is_written() {
    for (on_failure, starts_all_the_same) in
        [("", false), (", on_failure: fail", false), (", on_failure: warn", true), (", on_failure: continue", true)]
    {
        let rig = Rig::new();
        rig.declare(&failing(on_failure, "stop_signal: TERM"));
        if starts_all_the_same {
            rig.until_running().await;
            assert_eq!(starts(&rig), ["web.init", "web"], "{on_failure}");
            continue;
        }
        let status = rig.until("the failure", is_failed).await;
        let why = "init step make (init.run) failed: exited 3: no such table";
        assert!(message(&status, "web").ends_with(why), "{status:#?}");
        let conditions: Vec<&str> = status.services[0].conditions.iter().map(|one| one.reason.as_str()).collect();
        assert!(conditions.contains(&"InitFailed"), "{conditions:?}");
        assert_eq!(rig.world.instances(), []);
        seconds(290).await;
        assert_eq!(starts(&rig), ["web.init"]);
        seconds(20).await;
        assert_eq!(starts(&rig), ["web.init", "web.init"], "tried once more, in case something was put right");
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_is_retried_and_the_start_as_a_whole_too() {
    let tries_after = async |step: &str, errors: &str, after: u64| {
        let rig = Rig::new();
        rig.declare(&failing(step, errors));
        seconds(after).await;
        starts(&rig).len()
    };
    let errors = |action: &str| format!("errors: {{on_init_failure: {{action: {action}}}}}");
    assert_eq!(tries_after(", retry: 3", "stop_signal: TERM", 60).await, 4);
    assert_eq!(tries_after("", &errors("fail"), 60).await, 1);
    let restart = tries_after("", &errors("restart"), 60).await;
    assert!((30..61).contains(&restart), "about every second: {restart}");
    // At 0 s, then after 10, 20 and 40 s and up to a tenth more.
    assert_eq!(tries_after("", &errors("backoff"), 60).await, 3);
    assert_eq!(tries_after("", &errors("backoff"), 90).await, 4);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_takes_too_long_is_cut_off() {
    let rig = Rig::new();
    let slow = "{id: make, uses: init.run, timeout: 20s, with: {command: 'sim; wait 1h'}}";
    rig.declare(&demo(&service("web", &[&steps(slow)])));
    let status = rig.until("the failure", is_failed).await;
    assert!(message(&status, "web").ends_with("its command has not ended within 20s"), "{status:#?}");
    assert_eq!(rig.world.instances(), []);
    let rig = Rig::new();
    let never = "{id: db, uses: init.wait_tcp, timeout: 20s, with: {host: db, port: 1}}";
    rig.declare(&demo(
        &[service("web", &[&steps(never)]), service("db", &["scale: {mode: fixed, replicas: 0}"])].concat(),
    ));
    let status = rig.until("the failure", is_failed).await;
    let why = "init step db (init.wait_tcp) failed: not within 20s: db:1: no instance of db runs";
    assert!(message(&status, "web").ends_with(why), "{status:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_step_under_way_ends_when_its_spec_changes_or_its_deployment_goes() {
    let slow = |seconds: u64| {
        let step = format!("{{id: make, uses: init.run, with: {{command: 'sim; wait {seconds}s; exit 0'}}}}");
        demo(&service("web", &[&steps(&step)]))
    };
    let mut rig = Rig::new();
    rig.declare(&slow(250));
    rig.until("the helper", |status| status.instances.iter().any(|one| one.phase == "running")).await;
    let began = tokio::time::Instant::now();
    rig.declare(&slow(2));
    rig.until_running().await;
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(rig.world.instances().len(), 1);
    rig.declare(&slow(251));
    rig.until("the helper", |status| status.instances.iter().any(|one| one.service == "web.init")).await;
    let began = tokio::time::Instant::now();
    let removed = BTreeMap::from([("demo".to_owned(), removed())]);
    rig.declare.send_replace(Arc::new(Declared { synced: true, removed, ..Declared::default() }));
    assert_eq!(rig.settled.recv().await, Some(gone(None)));
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(rig.world.instances(), []);
}

#[tokio::test(start_paused = true)]
async fn a_step_starts_over_after_a_crash_of_the_controller_and_leaves_nothing() {
    let rig = Rig::new();
    rig.declare(&demo(&service(
        "web",
        &[&steps("{id: make, uses: init.run, with: {command: 'sim; wait 30s; exit 0'}}")],
    )));
    rig.until("the helper", |status| status.instances.iter().any(|one| one.phase == "running")).await;
    let rig = restarted(rig);
    rig.until_running().await;
    let left = rig.world.instances();
    let phases: Vec<_> =
        left.iter().map(|(_, one)| (one.id.service.as_str(), matches!(one.phase, Phase::Running { .. }))).collect();
    assert_eq!(phases, [("web", true)]);
    assert_eq!(starts(&rig), ["web.init", "web.init", "web"]);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_takes_long_holds_up_nobody_else() {
    let rig = Rig::new();
    let waits = service(
        "waits",
        &["scale: {mode: fixed, replicas: 40}", &steps("{id: db, uses: init.wait_tcp, with: {host: off, port: 1}}")],
    );
    let off = service("off", &["scale: {mode: fixed, replicas: 0}"]);
    let other = "---\nversion: v1\ndeployment: other\nservices:\n  web:\n    image: {name: sim/run}\n";
    rig.declare(&(demo(&[off, waits, service("web", &["scale: {mode: fixed, replicas: 5}"])].concat()) + other));
    let began = tokio::time::Instant::now();
    rig.until("the others run", |status| {
        let running = status.instances.iter().filter(|one| one.phase == "running");
        running.count() == 6
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}
