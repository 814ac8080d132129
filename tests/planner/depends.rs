//! Services that wait for others: every condition, every action after a timeout, and the order of ends.

use std::collections::BTreeSet;

use evenkeel::plan::{Awaited, Dependency, Stopped, awaited, dependencies};
use evenkeel::spec::{Depends, RuntimeKind};
use evenkeel::state::{Fate, Instance, Pause, Phase, StopCause};
use proptest::prelude::*;

use super::dsl::{Change, Snapshot, ago, now, revision, spec, up};

/// `web`, which depends on `db` like this; `db` has two replicas.
fn shop(depends: &str) -> Snapshot {
    Snapshot::declared().service("db", 'a', 2, "").service("web", 'a', 1, &on_db(depends))
}

fn on_db(depends: &str) -> String {
    format!("depends: [{{service: db{depends}}}]")
}

fn db(slot: u32) -> Instance {
    up(slot, 'a').of("db")
}

impl Snapshot {
    /// `web` has waited for `db` for that long.
    fn waiting(mut self, depends: &str, seconds: i64) -> Self {
        let depends: Depends = spec(&on_db(depends)).depends.remove(0);
        let known = Awaited { since: ago(seconds), revision: revision('a'), depends };
        self.history.awaited.insert(web_on_db(), known);
        self
    }

    /// Remembers what is to be remembered, as a controller does.
    fn remembering(mut self) -> Self {
        self.history.dependencies = dependencies(&self.input(&self.observed));
        let plan = self.plan();
        self.history.awaited = awaited(&self.input(&self.observed), &plan);
        self
    }

    fn services(mut self, names: &[&str]) -> Self {
        self.desired.as_mut().expect("declared").services.retain(|name, _| names.contains(&name.as_str()));
        self
    }
}

fn web_on_db() -> Dependency {
    Dependency { service: "web".into(), on: "db".into() }
}

/// Whether `web` is launched, or what it waits for.
fn web(snapshot: &Snapshot) -> String {
    let planned = snapshot.planned();
    let mut lines = planned.lines().filter(|line| line.contains("web"));
    let line = lines.next().unwrap_or_default();
    if line.starts_with("launch web/0 a0") { "launch".to_owned() } else { line.to_owned() }
}

#[test]
fn a_service_waits_for_the_condition_that_it_names() {
    let running = db(0).unready();
    let waits = |condition: &str, why: &str| {
        format!("wait to start web until 2026-01-01T12:05:00Z: db is not {condition}: {why}")
    };
    let (started, healthy) = ("no instance of it has started", "no instance of it is healthy");
    for (observed, by_started, by_healthy, by_ready) in [
        (vec![], started, healthy, "0 of 2 replicas are ready"),
        (vec![db(0).phase(Phase::Pending)], started, healthy, "0 of 2 replicas are ready"),
        (vec![db(0).phase(Phase::Created)], started, healthy, "0 of 2 replicas are ready"),
        (vec![running.clone()], "", healthy, "0 of 2 replicas are ready"),
        (vec![db(0).unhealthy()], "", healthy, "0 of 2 replicas are ready"),
        (vec![db(0).phase(Phase::Paused { since: ago(9) })], "", healthy, "0 of 2 replicas are ready"),
        (vec![db(0)], "", "", "1 of 2 replicas are ready"),
        (vec![db(0), db(1).unready()], "", "", "1 of 2 replicas are ready"),
        // Two instances of one slot, as in a rollout, are one replica.
        (vec![db(0), db(0).attempt(1)], "", "", "1 of 2 replicas are ready"),
        (vec![db(0), db(1)], "", "", ""),
        // Crashed, and its next start is not due.
        (
            vec![db(0).restarted(3, 3).exited(1, 2, 1), db(1).restarted(3, 3).exited(1, 2, 1)],
            "",
            healthy,
            "0 of 2 replicas are ready",
        ),
        // Ended with its engine: it is started again at once, and comes first.
        (vec![db(0).exited(137, 3600, 1), db(1).exited(137, 3600, 1)], started, healthy, "0 of 2 replicas are ready"),
    ] {
        for (condition, why) in [("started", by_started), ("healthy", by_healthy), ("ready", by_ready)] {
            let snapshot = shop(&format!(", condition: {condition}")).with(observed.clone());
            let expected = if why.is_empty() { "launch".to_owned() } else { waits(condition, why) };
            assert_eq!(web(&snapshot), expected, "{condition}: {observed:?}");
        }
    }
}

/// `web`, which depends on `db` like this; `db` is frozen, or stopped, while it is idle.
fn idle_shop(depends: &str, on_idle: &str) -> Snapshot {
    let limit = format!("lifecycle: {{max_idle: 1m, on_idle: {on_idle}}}");
    Snapshot::declared().service("db", 'a', 2, &limit).service("web", 'a', 1, &on_db(depends))
}

#[test]
fn an_idle_dependency_is_woken_for_what_is_to_start() {
    let frozen = [db(0), db(1)].map(|one| one.phase(Phase::Paused { since: ago(60) }));
    let asleep = |depends: &str| idle_shop(depends, "suspend").with(frozen.clone()).suspended(&frozen);
    let woken = |snapshot: &Snapshot| {
        let planned = snapshot.planned();
        let woken = planned.lines().filter(|line| line.contains(": web depends on it and is to start"));
        woken.map(|line| line.split(':').next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    // As many as the condition takes, and the wait counts from now on.
    assert_eq!(woken(&asleep("")), ["resume db/0 a0"]);
    let waits = "wait to start web until 2026-01-01T12:05:00Z: db is not healthy";
    assert!(asleep("").planned().contains(waits), "{}", asleep("").planned());
    assert_eq!(woken(&asleep(", condition: ready")), ["resume db/0 a0", "resume db/1 a0"]);
    let started = asleep(", condition: started");
    assert_eq!((woken(&started), web(&started).as_str()), (vec![], "launch"), "it has started");
    let stopped = [db(0), db(1)].map(|one| one.exited(0, 3600, 60).by(StopCause::Idle));
    let down = idle_shop("", "stop").with(stopped);
    assert_eq!(woken(&down), ["launch db/0 a1"]);
    assert!(!down.planned().contains("db/1 a1"), "{}", down.planned());
    // One is on its way.
    let coming = idle_shop("", "suspend").with([db(0).unready(), frozen[1].clone()]).suspended(&frozen[1..]);
    assert_eq!(woken(&coming), [""; 0]);
    // For one that crashed, and for another template.
    assert_eq!(woken(&asleep("").with([up(0, 'a').exited(1, 3600, 60)])), ["resume db/0 a0"]);
    assert_eq!(woken(&asleep("").with([up(0, 'b')])), ["resume db/0 a0"]);
    // What runs needs nothing, and what somebody stopped stays so.
    assert_eq!(woken(&asleep("").with([up(0, 'a')])), [""; 0]);
    let mut stopped = asleep("");
    let of_all = Stopped { of: revision('a'), slots: None };
    stopped.history.lives.orders.stopped.insert("db".into(), of_all);
    assert_eq!(woken(&stopped), [""; 0]);
    // All of them are never ready while one stays down, and what was not there in time is waited for asleep.
    let mut one_is_stopped = asleep(", condition: ready");
    let of_one = Stopped { of: revision('a'), slots: Some([1].into()) };
    one_is_stopped.history.lives.orders.stopped.insert("db".into(), of_one);
    assert_eq!(woken(&one_is_stopped), [""; 0]);
    assert_eq!(woken(&asleep("").waiting("", 299)), ["resume db/0 a0"]);
    assert_eq!(woken(&asleep("").waiting("", 300)), [""; 0]);
    // One that was woken before, and has a successor by now, is on its way to nothing.
    let earlier = db(0).exited(0, 3600, 1800).by(StopCause::Idle);
    let again = db(0).attempt(1).exited(0, 600, 60).by(StopCause::Idle);
    let rests = idle_shop("", "stop").with([earlier.clone(), again]).started(&[earlier]);
    assert_eq!(woken(&rests), ["launch db/0 a2"]);
    // The dead of a version that was rolled back is not what stands for its slot, however much younger it is.
    let dead = up(0, 'b').of("db").attempt(3).exited(1, 10, 5);
    let rolled_back = asleep("").with([dead]);
    assert_eq!(woken(&rolled_back), ["resume db/0 a0"]);
}

#[test]
fn what_an_idle_dependency_depends_on_is_woken_first() {
    let idle = "lifecycle: {max_idle: 1m}";
    let on_api = "depends: [{service: api}]";
    let ended = |service: &str| up(0, 'a').of(service).exited(0, 3600, 60).by(StopCause::Idle);
    Snapshot::declared()
        .service("api", 'a', 1, &format!("{}\n{idle}", on_db("")))
        .service("db", 'a', 1, idle)
        .service("web", 'a', 1, on_api)
        .with([ended("api"), ended("db")])
        .expect(
            "launch db/0 a1: api depends on it and is to start
             wait to start api until 2026-01-01T12:05:00Z: db is not healthy: no instance of it is healthy
             wait to start web until 2026-01-01T12:05:00Z: api is not healthy: no instance of it is healthy
             look again at 2026-01-01T12:05:00Z",
        );
}

#[test]
fn healthy_within_five_minutes_is_what_is_asked_where_nothing_is_written() {
    assert_eq!(web(&shop("").with([db(0)])), "launch");
    shop("").expect(
        "launch db/0 a0: missing, 2 replicas wanted
         launch db/1 a0: missing, 2 replicas wanted
         wait to start web until 2026-01-01T12:05:00Z: db is not healthy: no instance of it is healthy
         look again at 2026-01-01T12:05:00Z",
    );
}

#[test]
fn after_the_timeout_it_fails_warns_or_goes_on() {
    for condition in ["started", "healthy", "ready"] {
        for (action, planned) in [
            ("fail", "wait to start web until db is CONDITION, which it was not within 1m: "),
            ("warn", "launch"),
            ("continue", "launch"),
        ] {
            let depends = format!(", condition: {condition}, timeout: 1m, on_timeout: {action}");
            let crashed = || shop(&depends).with([db(0).phase(Phase::Pending), db(1).phase(Phase::Pending)]);
            let early = web(&crashed().waiting(&depends, 59));
            assert!(early.starts_with("wait to start web until 2026-01-01T12:00:01Z: "), "{early}");
            let late = web(&crashed().waiting(&depends, 60));
            assert!(late.starts_with(&planned.replace("CONDITION", condition)), "{condition} {action}: {late}");
            let warns = crashed().waiting(&depends, 60).planned().contains("go on with web without db, which was not ");
            assert_eq!(warns, action == "warn", "{condition} {action}");
            // When the dependency is good at last.
            assert_eq!(web(&shop(&depends).with([db(0), db(1)]).waiting(&depends, 600)), "launch");
        }
    }
}

#[test]
fn a_dependency_that_was_given_up_is_so_until_it_is_good_or_the_spec_changes() {
    let depends = ", timeout: 1m, on_timeout: warn";
    let away = || shop(depends).with([db(0).phase(Phase::Pending), db(1).phase(Phase::Pending)]);
    // It went on without it, and crashed since: nobody waits another minute.
    let gone_on = away().waiting(depends, 600).with([up(0, 'a')]).remembering();
    assert!(gone_on.history.awaited.contains_key(&web_on_db()));
    let crashed = Snapshot { observed: away().with([up(0, 'a').exited(1, 30, 1)]).observed, ..gone_on.clone() };
    assert!(web(&crashed).starts_with("launch (restarts 1, streak 1) web/0"), "{}", web(&crashed));
    // Good in between.
    let good = Snapshot { observed: vec![db(0), up(0, 'a')], ..gone_on.clone() }.remembering();
    assert!(good.history.awaited.is_empty());
    // Declared otherwise.
    let other = away().waiting(", timeout: 61s, on_timeout: warn", 600);
    assert!(web(&other).starts_with("wait to start web until 2026-01-01T12:01:00Z"), "{}", web(&other));
}

#[test]
fn the_time_counts_from_the_first_wait_and_a_clock_that_is_set_back_begins_anew() {
    let depends = ", timeout: 1m";
    let first = shop(depends).remembering();
    assert_eq!(first.history.awaited[&web_on_db()].since, now());
    let later = Snapshot { now: ago(-40), ..first.clone() }.remembering();
    assert_eq!(later.history.awaited[&web_on_db()].since, now());
    let back = Snapshot { now: ago(3600), ..first }.remembering();
    assert_eq!(back.history.awaited[&web_on_db()].since, ago(3600));
}

#[test]
fn time_in_which_nothing_can_be_done_is_none_that_is_waited() {
    let depends = ", timeout: 1m";
    let waiting = || shop(depends).with([db(0).unready(), db(1).unready()]).waiting(depends, 50);
    assert_eq!(waiting().remembering().history.awaited[&web_on_db()].since, ago(50));
    let mut suspended = waiting();
    suspended.history.suspended = true;
    let mut paused = waiting();
    paused.desired.as_mut().expect("declared").services.get_mut("web").expect("web").standing.paused =
        Some(Pause::User);
    let silent = waiting().unreachable(RuntimeKind::Docker);
    let other = waiting().runs_on("web", RuntimeKind::Sandbox);
    for (what, mut snapshot) in [
        ("suspended", suspended),
        ("paused", paused),
        ("both silent", silent),
        ("it is silent", other.clone().unreachable(RuntimeKind::Sandbox)),
        ("the dependency is silent", other.unreachable(RuntimeKind::Docker)),
    ] {
        snapshot = snapshot.remembering();
        assert!(snapshot.history.awaited.is_empty(), "{what}");
        // It goes on, long after the wait would have been over.
        snapshot.history.suspended = false;
        let resumed = Snapshot { unreachable: Default::default(), now: ago(-100), ..snapshot };
        let resumed = Snapshot { desired: waiting().desired, ..resumed }.remembering();
        assert_eq!(resumed.history.awaited[&web_on_db()].since, ago(-100), "{what}");
        let planned = web(&resumed);
        assert!(planned.starts_with("wait to start web until 2026-01-01T12:02:40Z"), "{what}: {planned}");
    }
    // What is absent will not come, however long it is waited for.
    let absent = waiting().runs_on("web", RuntimeKind::Sandbox).absent(RuntimeKind::Docker).remembering();
    assert_eq!(absent.history.awaited[&web_on_db()].since, ago(50));
}

#[test]
fn what_runs_goes_on_when_its_dependency_is_gone() {
    let both = || shop("").with([db(0).restarted(3, 3).exited(1, 5, 1), db(1).restarted(3, 3).exited(1, 5, 1)]);
    let quiet = |snapshot: &Snapshot| snapshot.planned().lines().all(|line| !line.contains("web"));
    assert!(quiet(&both().with([up(0, 'a')])), "it runs");
    // A frozen one runs on, and a crashed one waits.
    let paused = both().with([up(0, 'a').phase(Phase::Paused { since: ago(9) })]).planned();
    assert!(paused.contains("resume web/0 a0"), "{paused}");
    let crashed = both().with([up(0, 'a').exited(1, 3600, 1)]).planned();
    assert!(crashed.contains("wait to start web until") && !crashed.contains("launch"), "{crashed}");
}

#[test]
fn a_rollout_of_a_dependent_takes_nothing_away_while_its_dependency_is_gone() {
    for rollout in ["{max_surge: 0, max_unavailable: 1}", "{strategy: recreate}"] {
        let fields = format!("{}\nrollout: {rollout}", on_db(""));
        let planned = |db_observed: Vec<Instance>| {
            let web = Snapshot::declared().service("db", 'a', 1, "").service("web", 'b', 1, &fields);
            web.with(db_observed).with([up(0, 'a')]).planned()
        };
        let gone = planned(vec![db(0).unready()]);
        assert!(!gone.contains("retire") && gone.contains("wait to start web until"), "{gone}");
        assert!(planned(vec![db(0)]).contains("retire web/0 a0"), "{rollout}");
    }
}

#[test]
fn a_rollout_of_a_dependency_stops_no_dependent_and_holds_none_up_where_enough_of_it_stays() {
    Snapshot::declared()
        .service("db", 'b', 1, "rollout: {max_surge: 1, max_unavailable: 0}")
        .service("web", 'a', 2, &on_db(""))
        .with([up(0, 'a').of("db"), up(0, 'a')])
        .expect(
            "launch db/0 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
             launch web/1 a0: missing, 2 replicas wanted",
        );
    for (replicas, condition, rollout, expected) in [
        (2, "healthy", "{max_surge: 0, max_unavailable: 1}", "launch"),
        (2, "started", "{max_surge: 0, max_unavailable: 1}", "launch"),
        (2, "ready", "{max_surge: 0, max_unavailable: 1}", "1 of 2 replicas stay ready while it is rolled out"),
        (2, "ready", "{max_surge: 1, max_unavailable: 0}", "launch"),
        (2, "healthy", "{max_surge: 1, max_unavailable: 2}", "all that is healthy of it is being replaced"),
        (2, "started", "{strategy: recreate}", "all that has started of it is being replaced"),
    ] {
        let snapshot = Snapshot::declared()
            .service("db", 'b', replicas, &format!("rollout: {rollout}"))
            .service("web", 'a', 1, &on_db(&format!(", condition: {condition}")))
            .with((0..replicas).map(|slot| up(slot, 'a').of("db")));
        assert!(web(&snapshot).contains(expected), "{condition} {rollout}: {}", web(&snapshot));
    }
}

/// `db`, which ends before another one of it starts, and `web`, both of which are declared otherwise by one change.
fn changed_together(observed: Vec<Instance>) -> Snapshot {
    let db = "storage: [{type: named, name: data, target: /data}]";
    Snapshot::declared().service("db", 'b', 1, db).service("web", 'b', 1, &on_db("")).with(observed)
}

#[test]
fn no_dependent_starts_while_its_dependency_is_being_taken_down() {
    let (old_db, new_db) = (up(0, 'a').of("db"), up(0, 'b').of("db"));
    changed_together(vec![old_db.clone(), up(0, 'a')]).expect(
        "retire db/0 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
         wait to start web until 2026-01-01T12:05:00Z: db is not healthy: all that is healthy of it is being replaced
         look again at 2026-01-01T12:05:00Z",
    );
    let later = changed_together(vec![new_db, up(0, 'a')]);
    assert!(later.planned().starts_with("launch web/0 b0"), "{}", later.planned());
    // Nothing of it is taken down before what it depends on itself is there.
    let on_cache = "storage: [{type: named, name: data, target: /data}]\ndepends: [{service: cache}]";
    let stuck = Snapshot::declared().service("cache", 'a', 1, "").service("db", 'b', 1, on_cache);
    let stuck = stuck.service("web", 'a', 1, &on_db("")).with([old_db, up(0, 'a').of("cache").unready()]);
    assert_eq!(web(&stuck), "launch");
}

#[test]
fn no_dependent_starts_in_the_course_of_a_change_of_both_before_the_new_dependency_is_there() {
    let mut world = super::simulate::World::new(changed_together(vec![up(0, 'a').of("db"), up(0, 'a')]));
    world.settle();
    let running = |one: &&Instance| one.phase.is_ready();
    let ids = world.snapshot.observed.iter().filter(running).map(|one| (one.id.service.as_str(), &one.id.revision));
    assert_eq!(ids.collect::<BTreeSet<_>>(), BTreeSet::from([("db", &revision('b')), ("web", &revision('b'))]));
}

#[test]
fn a_dependency_that_nothing_is_known_of_or_that_is_to_have_no_instance_is_not_good() {
    let unknown = shop("").with([db(0)]).runs_on("web", RuntimeKind::Sandbox).unreachable(RuntimeKind::Docker);
    assert!(web(&unknown).contains("no instance of it is healthy"), "{}", web(&unknown));
    for condition in ["started", "healthy", "ready"] {
        let none = Snapshot::declared().service("db", 'a', 0, "");
        let none = none.service("web", 'a', 1, &on_db(&format!(", condition: {condition}")));
        assert!(web(&none).contains("it is to have 0 replicas"), "{}", web(&none));
    }
}

#[test]
fn an_unrelated_service_never_waits() {
    shop("").service("api", 'a', 1, "").expect(
        "launch api/0 a0: missing, 1 replica wanted
         launch db/0 a0: missing, 2 replicas wanted
         launch db/1 a0: missing, 2 replicas wanted
         wait to start web until 2026-01-01T12:05:00Z: db is not healthy: no instance of it is healthy
         look again at 2026-01-01T12:05:00Z",
    );
}

#[test]
fn a_forecast_tells_the_order() {
    Snapshot::declared()
        .service("db", 'a', 1, "health: {check: {type: tcp, port: 5432}}")
        .service("api", 'a', 1, &on_db(""))
        .service("web", 'a', 2, "depends: [{service: api, condition: started}]")
        .expect_course(
            "1. create and start demo/db/0 (aaaaaaaa, attempt 0) on docker from image docker.io/library/nginx:latest: missing, 1 replica wanted
                wait for demo/db/0 (aaaaaaaa, attempt 0) to become ready
             2. create and start demo/api/0 (aaaaaaaa, attempt 0) on docker from image docker.io/library/nginx:latest: missing, 1 replica wanted
             3. create and start demo/web/0-1 (2 instances, aaaaaaaa, attempt 0) on docker from image docker.io/library/nginx:latest: missing, 2 replicas wanted",
        );
}

/// `web` depends on `api`, which depends on `db`; `other` is on its own.
fn chain() -> Snapshot {
    let on = |name: &str| format!("depends: [{{service: {name}}}]");
    let all = Snapshot::declared()
        .service("db", 'a', 1, "")
        .service("api", 'a', 1, &on("db"))
        .service("web", 'a', 1, &on("api"))
        .service("other", 'a', 1, "");
    all.with(["db", "api", "web", "other"].map(|name| up(0, 'a').of(name))).remembering()
}

#[test]
fn a_deployment_ends_in_reverse_order() {
    let gone = |services: &[&str]| {
        let mut snapshot = Snapshot { desired: Err(Fate::Removed), ..chain() };
        snapshot.observed.retain(|one| services.contains(&one.id.service.as_str()));
        snapshot
    };
    gone(&["db", "api", "web", "other"]).expect(
        "retire other/0 a0: deployment is not declared any more
         retire web/0 a0: deployment is not declared any more
         wait to stop api until nothing runs any more that depends on it: web
         wait to stop db until nothing runs any more that depends on it: api, web",
    );
    gone(&["db", "api"]).expect(
        "retire api/0 a0: deployment is not declared any more
         wait to stop db until nothing runs any more that depends on it: api",
    );
    // What is in between need not exist.
    gone(&["db", "web"]).expect(
        "retire web/0 a0: deployment is not declared any more
         wait to stop db until nothing runs any more that depends on it: web",
    );
    gone(&["db"]).expect("retire db/0 a0: deployment is not declared any more");
}

#[test]
fn nothing_waits_for_the_end_of_what_has_ended_or_is_out_of_reach() {
    let ending = |web: Instance| {
        let gone = Snapshot { desired: Err(Fate::Removed), ..chain() };
        Snapshot { observed: vec![up(0, 'a').of("api"), web.of("web")], ..gone }
    };
    ending(up(0, 'a').exited(0, 5, 5)).expect(
        "retire api/0 a0: deployment is not declared any more
         remove web/0 a0: deployment is not declared any more",
    );
    ending(up(0, 'a').phase(Phase::Stopping)).expect(
        "wait for the step under way for demo/web/0 (aaaaaaaa, attempt 0)
         wait to stop api until nothing runs any more that depends on it: web",
    );
    ending(up(0, 'a').on(RuntimeKind::Sandbox)).unreachable(RuntimeKind::Sandbox).expect(
        "retire api/0 a0: deployment is not declared any more
         wait for sandbox to answer: connection refused",
    );
}

#[test]
fn services_that_are_removed_together_end_in_reverse_order() {
    chain().services(&["other"]).remembering().expect(
        "retire web/0 a0: service is not declared any more
         wait to stop api until nothing runs any more that depends on it: web
         wait to stop db until nothing runs any more that depends on it: api, web",
    );
}

#[test]
fn a_forecast_of_an_end_tells_the_order() {
    Snapshot { desired: Err(Fate::Removed), ..chain() }.expect_course(
        "1. stop and remove demo/other/0 (aaaaaaaa, attempt 0) on docker (SIGTERM, 30s grace): deployment is not declared any more
            stop and remove demo/web/0 (aaaaaaaa, attempt 0) on docker (SIGTERM, 30s grace): deployment is not declared any more
         2. stop and remove demo/api/0 (aaaaaaaa, attempt 0) on docker (SIGTERM, 30s grace): deployment is not declared any more
         3. stop and remove demo/db/0 (aaaaaaaa, attempt 0) on docker (SIGTERM, 30s grace): deployment is not declared any more",
    );
}

fn condition() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["started", "healthy", "ready"])
}

fn phase() -> impl Strategy<Value = Option<Instance>> {
    prop_oneof![
        Just(None),
        Just(Some(up(0, 'a'))),
        Just(Some(up(0, 'a').unready())),
        Just(Some(up(0, 'a').phase(Phase::Created))),
        Just(Some(up(0, 'a').phase(Phase::Paused { since: ago(9) }))),
        Just(Some(up(0, 'b'))),
        Just(Some(up(0, 'a').exited(0, 5, 5))),
        Just(Some(up(0, 'a').restarted(3, 3).exited(1, 5, 5))),
    ]
}

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Five services, each of which depends on some of those before it; with `cycles` on any.
fn graph(cycles: bool) -> impl Strategy<Value = Snapshot> {
    let edge = (any::<bool>(), condition(), prop::sample::select(vec!["fail", "warn", "continue"]));
    let edges = prop::collection::vec(prop::collection::vec(edge, NAMES.len()), NAMES.len());
    let instances = prop::collection::vec(phase(), NAMES.len());
    (edges, instances).prop_map(move |(edges, instances)| {
        let mut snapshot = Snapshot::declared();
        for (index, name) in NAMES.iter().enumerate() {
            let on = NAMES.iter().enumerate().filter(|(other, _)| *other < index || (cycles && *other != index));
            let on = on.filter_map(|(other, name)| {
                let (is, condition, on_timeout) = edges[index][other];
                is.then(|| format!("{{service: {name}, condition: {condition}, on_timeout: {on_timeout}}}"))
            });
            let depends = format!("depends: [{}]", on.collect::<Vec<_>>().join(", "));
            snapshot = snapshot.service(name, 'a', 1, &depends);
            snapshot = snapshot.with(instances[index].clone().map(|one| one.of(name)));
        }
        snapshot
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// The checker, which `plan` asks, knows the order.
    #[test]
    fn services_come_up_in_order_and_nothing_is_left_to_do_then(snapshot in graph(false)) {
        let mut world = super::simulate::World::new(snapshot);
        world.settle();
        let running: BTreeSet<&str> = world.snapshot.observed.iter()
            .filter(|one| one.phase.is_ready()).map(|one| one.id.service.as_str()).collect();
        prop_assert_eq!(running, BTreeSet::from(NAMES));
        prop_assert!(world.turn().is_empty());
    }

    #[test]
    fn every_deployment_ends_whatever_depends_on_what(snapshot in graph(true)) {
        let remembered = snapshot.remembering();
        let mut world = super::simulate::World::new(Snapshot { desired: Err(Fate::Removed), ..remembered });
        world.settle();
        prop_assert!(world.snapshot.observed.is_empty(), "{:?}", world.snapshot);
    }
}
