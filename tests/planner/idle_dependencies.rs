//! Idle dependencies of services that wait for another one, over many idle periods.

use evenkeel::plan::{Stopped, used_by_waits};
use evenkeel::state::{Instance, Phase, StopCause};

use super::dsl::{Change, Snapshot, ago, revision, up};
use super::simulate::World;

const IDLE: &str = "lifecycle: {max_idle: 5s}";

/// `web` depends on these, for each of which it waits for 10 s.
fn on(depends: [&str; 2]) -> String {
    let [first, second] = depends.map(|one| format!("{{service: {one}, timeout: 10s}}"));
    format!("depends: [{first}, {second}]")
}

/// Lets seconds pass. All that runs is healthy but `slow`, and nobody but who waits for it uses anything. Gives the instances
/// of idle dependencies that were started, and of `web`.
fn pass(world: &mut World, seconds: i64) -> Vec<String> {
    let mut started = Vec::new();
    for _ in 0..seconds {
        let plan = world.turn();
        let (dependencies, now) = (world.snapshot.history.dependencies.clone(), world.snapshot.now);
        let used = used_by_waits(&plan, &dependencies);
        let is_used = |one: &&mut Instance| used.contains(one.id.service.as_str());
        world.snapshot.observed.iter_mut().filter(is_used).for_each(|one| one.last_activity = Some(now));
        while world.is_busy() {
            world.advance(0);
        }
        let is_new = |one: &&mut Instance| {
            one.id.service != "slow" && matches!(one.phase, Phase::Running { .. }) && !one.phase.is_ready()
        };
        for one in world.snapshot.observed.iter_mut().filter(is_new) {
            one.judge(None);
            started.push(format!("{}/{}", one.id.service, one.id.slot));
        }
        world.wait(1);
    }
    started
}

fn is_up(world: &World, service: &str) -> bool {
    world.snapshot.observed.iter().any(|one| one.id.service == service && one.phase.is_ready())
}

#[test]
fn what_is_there_is_in_use_while_another_is_waited_for_and_sleeps_once_that_was_not_there_in_time() {
    let shop = Snapshot::declared().service("db", 'a', 1, IDLE).service("slow", 'a', 1, "");
    let mut world = World::new(shop.service("web", 'a', 1, &on(["db", "slow"])));
    assert_eq!((pass(&mut world, 14), is_up(&world, "db")), (vec!["db/0".to_owned()], true));
    // Its own time is 5 s, from the end of the wait on.
    assert_eq!((pass(&mut world, 4), is_up(&world, "db")), (vec![], false));
    assert_eq!((pass(&mut world, 120), is_up(&world, "db")), (vec![], false));
    let asks = |service: &str| format!("wait to start web until {service} is healthy, which it was not within 10s");
    let planned = world.snapshot.planned();
    assert!(planned.contains(&asks("slow")) && !planned.contains("db is"), "{planned}");
    // It is woken when nothing else is missing any more, however late that is.
    let slow = world.snapshot.observed.iter_mut().find(|one| one.id.service == "slow").unwrap();
    slow.judge(None);
    assert_eq!(pass(&mut world, 3), ["db/0", "web/0"]);
}

#[test]
fn nothing_is_woken_for_what_waits_for_another_that_stays_down() {
    let asleep = up(0, 'a').of("ext").exited(0, 3600, 60).by(StopCause::Idle);
    let web = on(["db, condition: ready", "ext"]);
    let shop = Snapshot::declared().service("db", 'a', 2, "").service("ext", 'a', 1, IDLE).service("web", 'a', 1, &web);
    let mut shop = shop.with([up(0, 'a').of("db"), asleep.clone()]);
    let of_one = Stopped { of: revision('a'), slots: Some([1].into()) };
    shop.history.lives.orders.stopped.insert("db".into(), of_one);
    let mut world = World::new(shop.clone());
    assert_eq!(pass(&mut world, 60), [""; 0]);
    world.snapshot.history.lives.orders.stopped.clear();
    assert_eq!(pass(&mut world, 3), ["db/1", "ext/0", "web/0"]);
    // All of those that one is enough of.
    let web = on(["db", "ext"]);
    let mut shop = shop.service("web", 'a', 1, &web);
    shop.history.lives.orders.stopped.insert("db".into(), Stopped { of: revision('a'), slots: None });
    shop.observed = vec![asleep];
    assert_eq!(pass(&mut World::new(shop.clone()), 60), [""; 0]);
    // Who goes on without it needs the other one.
    let web = on(["db, on_timeout: warn", "ext"]);
    assert_eq!(pass(&mut World::new(shop.service("web", 'a', 1, &web)), 60), ["ext/0", "web/0"]);
}

#[test]
fn two_that_were_not_there_in_time_do_not_wake_each_other() {
    let shop = Snapshot::declared().service("db", 'a', 1, IDLE).service("slow", 'a', 1, IDLE);
    let shop = shop.service("web", 'a', 1, &on(["db", "slow"]));
    let asleep = ["db", "slow"].map(|name| up(0, 'a').of(name).exited(0, 3600, 60).by(StopCause::Idle));
    let mut world = World::new(shop.with(asleep));
    assert_eq!(pass(&mut world, 9), ["db/0"]);
    // What is unhealthy is idle in the end, as is what it was waited for with.
    let mut slow =
        world.snapshot.observed.iter().find(|one| one.id.service == "slow" && one.id.attempt > 0).unwrap().clone();
    slow = slow.exited(0, 10, 1).by(StopCause::Idle);
    world.snapshot.observed.retain(|one| one.id.service != "slow");
    world.snapshot.observed.push(slow);
    world.snapshot.now = ago(-30);
    assert_eq!(pass(&mut world, 60), [""; 0]);
    assert!(!is_up(&world, "db"));
}
