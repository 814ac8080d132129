//! What holds for every plan: it passes the checker, does not depend on the order of what was observed (both are
//! part of [`Snapshot::plan`]), leaves alone what did not change, and leads to what is declared.

use chrono::TimeDelta;
use evenkeel::plan::{End, History, PROBATION, Plan};
use evenkeel::spec::RuntimeKind;
use evenkeel::state::{Condition, EndedBy, Exit, Fate, HealthState, Instance, NOT_CHECKED, Phase, StopCause};
use proptest::prelude::*;

use super::dsl::{Change, Snapshot, ago, all_up, now, up};
use super::simulate::{World, next_letter};

fn runtime() -> impl Strategy<Value = RuntimeKind> {
    prop_oneof![4 => Just(RuntimeKind::Docker), 1 => Just(RuntimeKind::Sandbox)]
}

fn exit() -> impl Strategy<Value = Exit> {
    let ended_by = prop_oneof![
        4 => Just(EndedBy::Itself),
        1 => Just(EndedBy::Request(StopCause::Retired)),
        1 => Just(EndedBy::Request(StopCause::Idle)),
        1 => Just(EndedBy::Request(StopCause::Expired)),
        1 => Just(EndedBy::Request(StopCause::Unhealthy)),
        1 => Just(EndedBy::Request(StopCause::Asked)),
        1 => Just(EndedBy::Request(StopCause::Others)),
    ];
    (prop_oneof![Just(0), Just(1), Just(137)], 0_i64..2000, 0_i64..500, ended_by).prop_map(|(code, ran, end, by)| {
        let mut exit = Exit::from_code(code, Some(ago(ran + end)), ago(end));
        exit.ended_by = by;
        exit
    })
}

fn phase() -> impl Strategy<Value = Phase> {
    prop_oneof![
        6 => (0_i64..7200).prop_map(|age| Phase::Running { since: ago(age), ready: true }),
        1 => Just(Phase::Created),
        1 => Just(Phase::Pending),
        1 => Just(Phase::Stopping),
        1 => (0_i64..7200).prop_map(|age| Phase::Paused { since: ago(age) }),
        1 => Just(Phase::Unknown { message: "restarting".into() }),
        3 => exit().prop_map(Phase::Exited),
    ]
}

fn health() -> impl Strategy<Value = Option<HealthState>> {
    let last = || "no route".to_owned();
    prop_oneof![
        3 => Just(None),
        2 => Just(Some(HealthState::Healthy)),
        2 => Just(Some(HealthState::Starting { last: None })),
        2 => Just(Some(HealthState::Unknown { why: NOT_CHECKED.to_owned() })),
        1 => any::<bool>().prop_map(move |passed| Some(HealthState::Unhealthy { last: last(), passed })),
    ]
}

fn instance() -> impl Strategy<Value = Instance> {
    let numbers = (0_u32..7, 0_u32..3, 0_u32..5, 0_u32..5);
    let times = (0_i64..300, proptest::option::of(0_i64..600), prop::bool::weighted(0.2));
    (numbers, prop::sample::select(vec!['a', 'b', 'c']), (phase(), health()), runtime(), times).prop_map(
        |((slot, attempt, restarts, streak), letter, (phase, health), runtime, (created, active, is_changed))| {
            let instance = up(slot, letter).attempt(attempt).restarted(restarts, streak).phase(phase).on(runtime);
            instance.change(|instance| {
                instance.created_at = ago(created);
                instance.last_activity = active.map(ago);
                instance.judge(health);
                let changed = is_changed.then(|| Condition::changed_by_others("memory is 5, not 4"));
                instance.conditions.extend(changed);
            })
        },
    )
}

/// Instances with distinct identities: a runtime has one of each, and no two runtimes share one.
fn instances() -> impl Strategy<Value = Vec<Instance>> {
    prop::collection::vec(instance(), 0..14).prop_map(|mut instances| {
        instances.sort_by(|a, b| a.id.cmp(&b.id));
        instances.dedup_by(|a, b| a.id == b.id);
        instances
    })
}

fn bounds() -> impl Strategy<Value = String> {
    let amount = || prop::sample::select(vec!["0", "1", "2", "25%", "60%"]);
    prop_oneof![
        5 => (amount(), amount(), prop::sample::select(vec!["0s", "15s"])).prop_map(|(surge, unavailable, min_ready)| {
            format!("rollout: {{max_surge: {surge}, max_unavailable: {unavailable}, min_ready: {min_ready}}}\n")
        }),
        1 => Just("rollout: {strategy: recreate}\n".to_owned()),
        1 => (amount(), amount(), prop::sample::select(vec![0, 8080])).prop_map(|(surge, unavailable, port)| {
            format!(
                "rollout: {{max_surge: {surge}, max_unavailable: {unavailable}}}\n\
                 port_mappings: [{{container_port: 80, host_port: {port}}}]\n"
            )
        }),
        1 => (amount(), prop::sample::select(vec!["named, name: db", "workspace"])).prop_map(|(unavailable, volume)| {
            format!("rollout: {{max_unavailable: {unavailable}}}\nstorage: [{{type: {volume}, target: /data}}]\n")
        }),
    ]
}

fn policies() -> impl Strategy<Value = String> {
    let restart = prop::sample::select(vec![
        "",
        "restart_policy: {kind: 'no'}\n",
        "restart_policy: {kind: on_failure, max_attempts: 2}\n",
    ]);
    let crash = prop::sample::select(vec![
        "",
        "",
        "errors: {on_panic: {action: isolate}}\n",
        "errors: {on_panic: {action: shutdown}}\n",
    ]);
    let lifecycle = prop::sample::select(vec![
        "",
        "lifecycle: {max_lifetime: 30m}\n",
        "lifecycle: {max_lifetime: 30m, on_expiry: terminate}\n",
        "lifecycle: {max_idle: 5m, delete_on_exit: true}\n",
        "lifecycle: {max_idle: 5m, on_idle: suspend, max_lifetime: 30m, on_expiry: terminate}\n",
    ]);
    (restart, crash, lifecycle).prop_map(|(restart, crash, lifecycle)| format!("{restart}{crash}{lifecycle}"))
}

fn failures() -> impl Strategy<Value = History> {
    let failure = (0_u32..6, prop::sample::select(vec!['a', 'b']), 1_u32..9, 0_i64..400, any::<bool>());
    prop::collection::vec(failure, 0..3).prop_map(|failures| {
        failures
            .into_iter()
            .fold(Snapshot::declared(), |snapshot, (slot, letter, count, ago, retryable)| {
                snapshot.failed(slot, letter, count, ago, retryable)
            })
            .history
    })
}

/// What users ordered of lives: stops, holds, and the places among the instances of those that are to be brought back, or were
/// suspended for idleness.
fn lives() -> impl Strategy<Value = Lives> {
    let places = || prop::collection::vec(0_usize..14, 0..4);
    let stopped =
        proptest::option::weighted(0.2, (prop::sample::select(vec!['a', 'b']), prop::collection::vec(0_u32..6, 0..3)));
    let holds = prop::collection::vec((0_u32..6, -100_i64..100), 0..2);
    (stopped, holds, places(), places())
}

type Lives = (Option<(char, Vec<u32>)>, Vec<(u32, i64)>, Vec<usize>, Vec<usize>);

fn with_lives(snapshot: Snapshot, (stopped, holds, started, suspended): Lives) -> Snapshot {
    let at = |places: Vec<usize>| -> Vec<Instance> {
        places.iter().filter_map(|place| snapshot.observed.get(*place).cloned()).collect()
    };
    let (started, suspended) = (at(started), at(suspended));
    let snapshot = snapshot.started(&started).suspended(&suspended);
    let snapshot = stopped.into_iter().fold(snapshot, |snapshot, (letter, slots)| snapshot.stopped(letter, &slots));
    holds.into_iter().fold(snapshot, |snapshot, (slot, seconds)| snapshot.held(slot, seconds))
}

fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    let unreachable = proptest::option::weighted(0.15, runtime());
    (bounds(), policies(), instances(), 0_u32..6, runtime(), unreachable, (failures(), lives())).prop_map(
        |(bounds, policies, observed, replicas, runtime, unreachable, (history, lives))| {
            let snapshot = Snapshot::declared()
                .service("web", 'a', replicas, &format!("{bounds}{policies}"))
                .runs_on("web", runtime)
                .with(observed);
            let snapshot = with_lives(Snapshot { history, ..snapshot }, lives);
            match unreachable {
                Some(runtime) => snapshot.unreachable(runtime),
                None => snapshot,
            }
        },
    )
}

/// Something that happens while plans are carried out.
#[derive(Debug, Clone, Copy)]
enum Event {
    Advance(usize),
    Fail(usize),
    Ready(usize),
    Unhealthy(usize),
    Crash(usize),
    Pause(usize),
    Lose(usize),
    Wait(i64),
    RestartController,
    NewTemplate,
    Scale(u32),
}

fn event() -> impl Strategy<Value = Event> {
    let any = 0_usize..32;
    prop_oneof![
        20 => any.clone().prop_map(Event::Advance),
        2 => any.clone().prop_map(Event::Fail),
        8 => any.clone().prop_map(Event::Ready),
        2 => any.clone().prop_map(Event::Unhealthy),
        3 => any.clone().prop_map(Event::Crash),
        1 => any.clone().prop_map(Event::Pause),
        1 => any.prop_map(Event::Lose),
        3 => (1_i64..90).prop_map(Event::Wait),
        1 => Just(Event::RestartController),
        2 => Just(Event::NewTemplate),
        2 => (0_u32..6).prop_map(Event::Scale),
    ]
}

fn happen(world: &mut World, event: Event) {
    match event {
        Event::Advance(choice) => world.advance(choice),
        Event::Fail(choice) => world.fail(choice),
        Event::Ready(choice) => drop(world.make_ready(choice)),
        Event::Unhealthy(choice) => world.fail_checks(choice),
        Event::Crash(choice) => world.crash(choice),
        Event::Pause(choice) => world.pause(choice),
        Event::Lose(choice) => world.lose(choice),
        Event::Wait(seconds) => world.wait(seconds),
        Event::RestartController => world.restart_controller(),
        Event::NewTemplate => next_letter(world),
        Event::Scale(replicas) => world.web().replicas = replicas,
    }
}

/// Lives, and is available, in the world as it is, whatever the controller knows of it.
fn count(world: &World) -> (u32, u32) {
    let lives = |instance: &&Instance| !matches!(instance.phase, Phase::Exited(_));
    let ready = |instance: &&Instance| instance.phase.is_ready();
    let observed = &world.snapshot.observed;
    (observed.iter().filter(lives).count() as u32, observed.iter().filter(ready).count() as u32)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_passes_the_checker(snapshot in any_snapshot()) {
        snapshot.plan();
    }

    #[test]
    fn every_plan_for_the_undeclared_passes_the_checker(
        observed in instances(),
        fate in prop::sample::select(vec![Fate::Removed, Fate::Kept, Fate::Orphaned]),
        seen in prop::collection::vec((0_usize..14, 0_i64..200), 0..14),
        unreachable in proptest::option::of(runtime()),
    ) {
        let mut snapshot = Snapshot::undeclared(fate).sharing(RuntimeKind::Docker).with(observed);
        for (index, seconds) in seen {
            if let Some(instance) = snapshot.observed.get(index) {
                snapshot.history.orphans.insert(instance.runtime_id.clone(), ago(seconds));
            }
        }
        match unreachable {
            Some(runtime) => snapshot.unreachable(runtime).plan(),
            None => snapshot.plan(),
        };
    }

    #[test]
    fn another_services_change_touches_nothing(snapshot in any_snapshot(), replicas in 0_u32..4) {
        let about = |plan: &Plan, service: &str| {
            let of = |lane: &&evenkeel::plan::Lane| {
                lane.steps[0].action.instance().is_some_and(|id| id.service == service)
            };
            plan.lanes.iter().filter(of).cloned().collect::<Vec<_>>()
        };
        let alone = about(&snapshot.plan(), "web");
        let api = snapshot.clone().service("api", 'b', replicas, "").with([up(0, 'a').of("api"), up(1, 'a').of("api")]);
        prop_assert_eq!(about(&api.plan(), "web"), alone.clone());
        let gone = snapshot.with([up(0, 'a').of("zoo")]);
        prop_assert_eq!(about(&gone.plan(), "web"), alone);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_state_settles_into_what_is_declared(
        bounds in bounds(),
        observed in instances(),
        replicas in 0_u32..6,
        runtime in runtime(),
    ) {
        let mut world = World::new(
            Snapshot::declared()
                .service("web", 'a', replicas, &bounds)
                .runs_on("web", runtime)
                .with(observed.into_iter().filter(|one| !matches!(one.phase, Phase::Pending | Phase::Stopping))),
        );
        world.settle();
        world.assert_converged();
    }

    #[test]
    fn what_is_expected_leads_to_what_is_declared(
        bounds in bounds(),
        checked in any::<bool>(),
        observed in instances(),
        replicas in 0_u32..6,
        runtime in runtime(),
    ) {
        let known = |phase: &Phase| !matches!(phase, Phase::Pending | Phase::Stopping | Phase::Unknown { .. });
        let checked = if checked { "health: {check: {type: tcp, port: 80}}\n" } else { "" };
        let snapshot = Snapshot::declared()
            .service("web", 'a', replicas, &format!("{bounds}{checked}"))
            .runs_on("web", runtime)
            .with(observed.into_iter().filter(|one| known(&one.phase)));
        let forecast = snapshot.forecast();
        prop_assert_ne!(&forecast.end, &End::Beyond);
        let mut world = World::new(snapshot);
        world.follow(&forecast);
        prop_assert_eq!(world.turn(), Plan::default());
    }

    #[test]
    fn any_history_settles_into_what_is_declared(
        bounds in bounds(),
        replicas in 0_u32..6,
        events in prop::collection::vec(event(), 0..80),
    ) {
        let mut world = World::new(Snapshot::declared().service("web", 'a', replicas, &bounds));
        for event in events {
            world.turn();
            happen(&mut world, event);
        }
        world.settle();
        world.assert_converged();
    }

    #[test]
    fn a_rollout_keeps_its_bounds_at_every_instant(
        surge in 0_u32..4,
        unavailable in 0_u32..4,
        replicas in 1_u32..8,
        choices in prop::collection::vec((0_usize..32, 0_usize..4), 0..200),
    ) {
        let fields = format!("rollout: {{max_surge: {surge}, max_unavailable: {unavailable}}}");
        let snapshot = Snapshot::declared().service("web", 'b', replicas, &fields).with(all_up(0..replicas, 'a'));
        let (surge, unavailable) = if (surge, unavailable) == (0, 0) { (0, 1) } else { (surge, unavailable) };
        let mut world = World::new(snapshot);
        let mut choices = choices.into_iter().chain((0..).map(|turn| (turn, turn % 4)));
        let mut turns = 0;
        loop {
            let plan = world.turn();
            let (choice, kind) = choices.next().expect("without end");
            let (live, available) = count(&world);
            prop_assert!(live <= replicas + surge, "{live} live: {plan}");
            prop_assert!(available + unavailable >= replicas, "{available} available: {plan}");
            let moved = if kind == 0 { world.make_ready(choice) } else { world.is_busy() };
            if moved && kind != 0 {
                world.advance(choice);
            }
            if !moved && !world.is_busy() && !world.make_ready(choice) {
                break;
            }
            turns += 1;
            prop_assert!(turns < 2_000, "it does not end: {plan}");
        }
        world.assert_converged();
        prop_assert!(world.snapshot.observed.iter().all(|one| one.id.attempt == 0 && one.restarts == 0));
        prop_assert_eq!(world.snapshot.now, now());
    }

    #[test]
    fn crashes_right_after_the_start_cost_no_replica_though_nothing_is_checked(
        (surge, unavailable) in (0_u32..4, 0_u32..4),
        replicas in 1_u32..6,
        choices in prop::collection::vec((0_usize..32, 0_usize..6), 0..150),
    ) {
        let fields = format!("rollout: {{max_surge: {surge}, max_unavailable: {unavailable}}}");
        let snapshot = Snapshot::declared().service("web", 'b', replicas, &fields).with(all_up(0..replicas, 'a'));
        let (surge, unavailable) = if (surge, unavailable) == (0, 0) { (0, 1) } else { (surge, unavailable) };
        let mut world = World::new(snapshot);
        for (choice, kind) in choices {
            let plan = world.turn();
            let (live, ready) = count(&world);
            prop_assert!(live <= replicas + surge, "{live} live: {plan}");
            prop_assert!(ready + unavailable >= replicas, "{ready} ready: {plan}");
            match kind {
                0 => world.crash_within(PROBATION, choice),
                1 => world.snapshot.now += TimeDelta::milliseconds(400),
                2 => world.wait(11),
                _ => {
                    world.advance(choice);
                    world.serve_what_is_unchecked();
                }
            }
        }
        world.settle();
        world.assert_converged();
    }

    #[test]
    fn a_rollback_keeps_the_bounds_at_every_instant_and_ends_where_it_came_from(
        (surge, unavailable) in (0_u32..4, 0_u32..4),
        replicas in 1_u32..8,
        // Some new ones may become ready before all that follow do not.
        mut good in 0_usize..8,
        choices in prop::collection::vec((0_usize..32, 0_usize..5), 0..200),
    ) {
        let fields = format!(
            "rollout: {{max_surge: {surge}, max_unavailable: {unavailable}, progress_deadline: 60s}}\n\
             health: {{check: {{type: tcp, port: 80}}}}\n"
        );
        let (surge, unavailable) = if (surge, unavailable) == (0, 0) { (0, 1) } else { (surge, unavailable) };
        let declared = |letter| Snapshot::declared().service("web", letter, replicas, &fields);
        let mut world = World::new(declared('a').with(all_up(0..replicas, 'a')));
        world.memory = Some(Default::default());
        prop_assert_eq!(world.turn(), Plan::default());
        world.snapshot.desired = declared('b').desired;
        good = good.min(replicas as usize - 1);
        let is_back = |world: &World| world.memory.as_ref().is_some_and(|memory| memory.rollouts["web"].pin.is_some());
        let mut choices = choices.into_iter().chain((0..).map(|turn| (turn, turn % 5)));
        for turn in 0.. {
            prop_assert!(turn < 4_000, "it does not end: {:#?}", world.snapshot);
            let plan = world.turn();
            let was_busy = world.is_busy();
            let (choice, kind) = choices.next().expect("without end");
            let (live, available) = count(&world);
            prop_assert!(live <= replicas + surge, "{} live: {}", live, plan);
            prop_assert!(available + unavailable >= replicas, "{} available: {}", available, plan);
            let moved = match kind {
                0 if good > 0 && !is_back(&world) && world.make_ready_of('b') => {
                    good -= 1;
                    true
                }
                0 | 1 => world.make_ready_of('a'),
                2 => {
                    world.wait(7);
                    true
                }
                _ => world.is_busy(),
            };
            if moved && kind > 2 {
                world.advance(choice);
            }
            let at_rest = plan.is_empty() && !was_busy && !moved && !world.make_ready_of('a');
            if is_back(&world) && at_rest {
                break;
            }
        }
        let alive = world.snapshot.observed.iter().filter(|one| !matches!(one.phase, Phase::Exited(_)));
        let found: Vec<_> = alive.map(|one| (one.id.slot, one.id.revision.short()[..1].to_owned())).collect();
        let wanted: Vec<_> = (0..replicas).map(|slot| (slot, "a".to_owned())).collect();
        let mut found = found;
        found.sort();
        prop_assert_eq!(found, wanted);
        prop_assert!(world.turn().is_empty(), "a second plan does something");
    }

    #[test]
    fn a_converged_service_is_left_alone(
        bounds in bounds(),
        policies in policies().prop_filter("nothing expires", |policies| !policies.contains("max_lifetime")),
        replicas in 0_u32..8,
    ) {
        let snapshot = Snapshot::declared()
            .service("web", 'a', replicas, &format!("{bounds}{policies}"))
            .with(all_up(0..replicas, 'a'));
        prop_assert_eq!(snapshot.plan(), Plan::default());
    }
}
