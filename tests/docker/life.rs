//! From create to remove, on both engines.

use std::time::Duration;

use evenkeel::runtime::{ErrorKind, Listing, Runtime, RuntimeEvent, StopRecord, StopRequest, Volumes};
use evenkeel::spec::RuntimeKind;
use evenkeel::state::{EndedBy, ExitReason, Instance, Phase, StopCause};

use crate::harness::{Bench, IMAGE, PATIENCE, next, stop, until_ended};

const SLEEPS: &str = "command: {args: [sleep, '3600']}";

async fn an_instance_lives_and_goes(bench: &Bench) {
    let request = bench.request("web", 0, SLEEPS);
    let created = bench.runtime.create(&request).await.unwrap();
    assert_eq!((&created.id, created.phase.name()), (&request.id, "created"));
    assert_eq!(bench.runtime.list().await.unwrap().instances, std::slice::from_ref(&created));

    let running = bench.runtime.start(&created.as_ref()).await.unwrap();
    assert!(running.phase.is_ready(), "{running:?}");
    assert!(running.pid.is_some());
    let again = bench.runtime.start(&created.as_ref()).await.unwrap();
    assert_eq!(again, running);
    let listing = bench.runtime.list().await.unwrap();
    assert_eq!(listing.instances, std::slice::from_ref(&running));
    assert_eq!(listing.shared.iter().collect::<Vec<_>>(), [&bench.deployment]);

    let stopped = bench.runtime.stop(&running.as_ref(), &stop(Duration::from_secs(20))).await.unwrap().unwrap();
    let Phase::Exited(exit) = &stopped.phase else { panic!("{stopped:?}") };
    assert_eq!((exit.code, exit.ended_by), (Some(143), EndedBy::Request(StopCause::Retired)));
    assert_eq!(exit.started_at, running.phase.started_at());

    bench.runtime.remove(&running.as_ref()).await.unwrap();
    bench.runtime.remove(&running.as_ref()).await.unwrap();
    assert_eq!(bench.runtime.stop(&running.as_ref(), &stop(Duration::ZERO)).await.unwrap(), None);
    assert_eq!(bench.runtime.start(&running.as_ref()).await.unwrap_err().kind, ErrorKind::NotFound);
    bench.runtime.teardown(&bench.deployment, Volumes::Keep).await.unwrap();
    let listing = bench.runtime.list().await.unwrap();
    assert!(listing.instances.is_empty() && listing.shared.is_empty(), "{listing:?}");
}

async fn a_create_that_was_cut_off_is_recognised(bench: &Bench) {
    let request = bench.request("web", 0, SLEEPS);
    let first = bench.runtime.create(&request).await.unwrap();
    assert_eq!(bench.runtime.create(&request).await.unwrap(), first);
    let running = bench.runtime.start(&first.as_ref()).await.unwrap();
    assert_eq!(bench.runtime.create(&request).await.unwrap(), running);
}

async fn a_foreign_container_of_the_same_name_is_left_alone(bench: &Bench) {
    let request = bench.request("web", 0, SLEEPS);
    let foreign = bench.cli(&["create", "--name", &request.id.runtime_name(), IMAGE, "true"]);
    let error = bench.runtime.create(&request).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NameTaken, "{error}");
    assert_eq!(bench.runtime.list().await.unwrap().instances, []);
    assert_eq!(bench.cli(&["inspect", "--format", "{{.State.Status}}", &foreign]), "created");
    bench.cli(&["rm", &foreign]);
}

async fn another_owners_containers_are_not_seen(bench: &Bench) {
    let other = Bench::on(bench.socket.clone()).await;
    let theirs = other.run(&other.request("web", 0, SLEEPS)).await;
    assert_eq!(bench.runtime.list().await.unwrap(), Listing::default());
    assert_eq!(other.runtime.list().await.unwrap().instances, [theirs]);
    other.clear().await;
}

async fn many_creates_at_once_make_one_network(bench: &Bench) {
    let requests: Vec<_> = (0..6).map(|slot| bench.request("web", slot, SLEEPS)).collect();
    for created in futures::future::join_all(requests.iter().map(|request| bench.runtime.create(request))).await {
        created.unwrap();
    }
    let networks = bench.cli(&["network", "ls", "--quiet", "--filter", &format!("name=keel_{}", bench.deployment)]);
    assert_eq!(networks.lines().count(), 1, "{networks}");
}

async fn many_creates_at_once_share_their_named_volumes(bench: &Bench) {
    // Several volumes, because the engine does not run into itself over each of them.
    let mounts: Vec<_> = (0..8).map(|n| format!("{{type: named, name: data{n}, target: /data{n}}}")).collect();
    let yaml = format!("storage: [{}]\n{SLEEPS}", mounts.join(", "));
    let requests: Vec<_> = (0..6).map(|slot| bench.request("web", slot, &yaml)).collect();
    for created in futures::future::join_all(requests.iter().map(|request| bench.runtime.create(request))).await {
        created.unwrap();
    }
    let volumes = bench.cli(&["volume", "ls", "--quiet", "--filter", &format!("name={}_data", bench.deployment)]);
    assert_eq!(volumes.lines().count(), 8, "{volumes}");
}

async fn one_that_ignores_the_signal_is_killed(bench: &Bench) {
    let stubborn = bench.request("web", 0, r#"command: {args: [sh, -c, "trap '' TERM; while :; do sleep 1; done"]}"#);
    let running = bench.run(&stubborn).await;
    let stopped = bench.runtime.stop(&running.as_ref(), &stop(Duration::from_secs(1))).await.unwrap().unwrap();
    let Phase::Exited(exit) = &stopped.phase else { panic!("{stopped:?}") };
    assert_eq!((exit.code, exit.reason), (Some(137), ExitReason::StopTimeout));
}

/// Takes a second to end once it is asked to.
const SLOW: &str =
    r#"command: {args: [sh, -c, "trap 'echo asked; sleep 1; exit 0' TERM; echo armed; while :; do sleep 0.05; done"]}"#;

/// Waits until an instance has written this line.
async fn written(bench: &Bench, instance: &Instance, line: &str) {
    let wait = async {
        while !bench.cli(&["logs", &instance.runtime_id]).lines().any(|written| written == line) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it writes");
}

async fn a_stop_that_was_cut_off_is_remembered(bench: &Bench) {
    let running = bench.run(&bench.request("web", 0, SLOW)).await;
    written(bench, &running, "armed").await;
    let (first, instance) = (bench.reopened().await, running.as_ref());
    let expired = StopRequest { cause: StopCause::Expired, ..stop(PATIENCE) };
    tokio::select! {
        stopped = first.stop(&instance, &expired) => panic!("it ended too early: {stopped:?}"),
        () = written(bench, &running, "asked") => {}
    }
    drop(first);
    let ended = until_ended(&bench.reopened().await, &running.id).await;
    let Phase::Exited(exit) = &ended.phase else { panic!("{ended:?}") };
    assert_eq!((exit.code, exit.ended_by), (Some(0), EndedBy::Request(StopCause::Expired)));
}

async fn an_instance_that_outlives_a_stop_has_an_end_of_its_own(bench: &Bench) {
    let running = bench.run(&bench.request("web", 0, SLEEPS)).await;
    let cut_off = StopRecord {
        runtime: RuntimeKind::Docker,
        runtime_id: running.runtime_id.clone(),
        cause: StopCause::Expired,
        run: running.phase.started_at(),
        over_at: running.created_at,
    };
    bench.stops.keep(cut_off).await.unwrap();
    let second = bench.reopened().await;
    assert_eq!(second.list().await.unwrap().instances, std::slice::from_ref(&running));
    bench.cli(&["kill", &running.runtime_id]);
    let ended = until_ended(&second, &running.id).await;
    let Phase::Exited(exit) = &ended.phase else { panic!("{ended:?}") };
    assert_eq!((exit.code, exit.ended_by), (Some(137), EndedBy::Itself));
    second.remove(&running.as_ref()).await.unwrap();
    assert_eq!(bench.stops.all(RuntimeKind::Docker).await.unwrap(), []);
}

async fn what_is_recorded_goes_with_the_container(bench: &Bench) {
    let gone = || async {
        while !bench.stops.all(RuntimeKind::Docker).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    for slot in 0..2 {
        let running = bench.run(&bench.request("web", slot, SLEEPS)).await;
        bench.runtime.stop(&running.as_ref(), &stop(Duration::ZERO)).await.unwrap();
        let kept = bench.stops.all(RuntimeKind::Docker).await.unwrap();
        assert_eq!(kept.iter().map(|record| &record.runtime_id).collect::<Vec<_>>(), [&running.runtime_id]);
        if slot == 0 {
            bench.runtime.remove(&running.as_ref()).await.unwrap();
        } else {
            // Somebody else removes it while no controller runs.
            bench.cli(&["rm", &running.runtime_id]);
            bench.reopened().await.list().await.unwrap();
        }
        tokio::time::timeout(PATIENCE, gone()).await.expect("the record goes");
    }
}

async fn an_exit_is_reported_with_its_code(bench: &Bench) {
    let mut events = bench.runtime.events().await.unwrap();
    let request = bench.request("job", 0, "command: {args: [sh, -c, 'sleep 0.2; exit 3']}");
    let running = bench.run(&request).await;
    let exit = next(&mut events, |event| match event {
        RuntimeEvent::Changed(changed) if changed.id == request.id => match &changed.phase {
            Phase::Exited(exit) => Some(exit.clone()),
            _ => None,
        },
        _ => None,
    })
    .await;
    assert_eq!((exit.code, exit.reason, exit.ended_by), (Some(3), ExitReason::Exited, EndedBy::Itself));
    bench.runtime.remove(&running.as_ref()).await.unwrap();
    let gone = next(&mut events, |event| match event {
        RuntimeEvent::Gone(gone) => Some(gone.clone()),
        _ => None,
    })
    .await;
    assert_eq!(gone, running.as_ref());
}

async fn a_command_that_cannot_be_run_is_refused(bench: &Bench) {
    let request = bench.request("web", 0, "init_container: false\ncommand: {args: [/no/such/program]}");
    let created = bench.runtime.create(&request).await.unwrap();
    let error = bench.runtime.start(&created.as_ref()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Rejected, "{error}");
    assert!(error.message.contains("/no/such/program"), "{error}");
}

crate::on_both_engines!(
    an_instance_lives_and_goes,
    a_create_that_was_cut_off_is_recognised,
    a_foreign_container_of_the_same_name_is_left_alone,
    another_owners_containers_are_not_seen,
    many_creates_at_once_make_one_network,
    many_creates_at_once_share_their_named_volumes,
    one_that_ignores_the_signal_is_killed,
    a_stop_that_was_cut_off_is_remembered,
    an_instance_that_outlives_a_stop_has_an_end_of_its_own,
    what_is_recorded_goes_with_the_container,
    an_exit_is_reported_with_its_code,
    a_command_that_cannot_be_run_is_refused,
);
