//! Requests to an engine: what is refused, what is passed over and what is told.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use evenkeel::controller::{ApplyRequest, Change, DeleteRequest, Engine, EngineError, EngineOptions, Mode, SpecFile};
use evenkeel::runtime::Volumes;
use evenkeel::spec::RuntimeKind;

/// An engine with a state directory in this folder, which runs on this runtime what names none.
async fn open(dir: &Path, mode: Mode, runtime: RuntimeKind) -> Engine {
    let options = EngineOptions {
        state_dir: dir.join("state"),
        mode,
        runtime: Some(runtime),
        program: "keel".into(),
        devices: None,
    };
    Engine::open(options).await.unwrap()
}

/// Files at these places that declare a deployment each, to be applied with this runtime.
fn files(all: &[(PathBuf, &str)], runtime: Option<RuntimeKind>) -> ApplyRequest {
    let file = |(path, name): &(PathBuf, &str)| {
        let text = format!("version: v1\ndeployment: {name}\nservices: {{ web: {{ image: {{ name: one }} }} }}\n");
        SpecFile { path: path.clone(), text }
    };
    let files = all.iter().map(file).collect();
    ApplyRequest { files, origins: Vec::new(), runtime, attend_to: BTreeSet::new() }
}

fn results(all: &[(&str, Change)]) -> Vec<(String, Change)> {
    all.iter().map(|(name, change)| ((*name).to_owned(), *change)).collect()
}

#[tokio::test]
async fn a_dry_run_answers_as_an_apply_does_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), Mode::Record, RuntimeKind::Sim).await;
    let request = files(&[(dir.path().join("a.yaml"), "a")], None);
    let created = results(&[("a", Change::Created)]);
    for _ in 0..2 {
        assert_eq!(engine.dry_run(&request).await.unwrap().results, created);
    }
    assert_eq!(engine.apply(&request).await.unwrap().results, created);
    assert_eq!(engine.dry_run(&request).await.unwrap().results, results(&[("a", Change::Unchanged)]));
}

#[tokio::test]
async fn a_rehearsal_is_refused_where_services_are_really_started() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), Mode::Record, RuntimeKind::Sandbox).await;
    let request = files(&[(dir.path().join("a.yaml"), "a")], Some(RuntimeKind::Sim));
    let why = |error: EngineError| match error {
        EngineError::Invalid(why) => why,
        other => panic!("{other:?}"),
    };
    let refused = [
        why(engine.apply(&request).await.unwrap_err()),
        why(engine.dry_run(&request).await.unwrap_err()),
        why(engine.preview(&request).await.unwrap_err()),
    ];
    for why in refused {
        assert!(why.starts_with("the runtime sim is a rehearsal, and services are started on sandbox here"), "{why}");
    }
    assert_eq!(engine.status().deployments.len(), 0);
    let elsewhere = files(&[(dir.path().join("a.yaml"), "a")], Some(RuntimeKind::Docker));
    assert_eq!(engine.apply(&elsewhere).await.unwrap().results, results(&[("a", Change::Created)]));
}

#[tokio::test]
async fn a_runtime_that_is_named_for_a_watched_file_and_does_not_count_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (watched, applied) = (dir.path().join("specs/a.yaml"), dir.path().join("b.yaml"));
    std::fs::create_dir(dir.path().join("specs")).unwrap();
    let directory = dir.path().join("specs");
    let mode = Mode::Controller { directory, allow_empty: false, once: false };
    let engine = open(dir.path(), mode, RuntimeKind::Sandbox).await;
    let all = [(watched.clone(), "a"), (applied, "b")];
    let notes = async |runtime| engine.dry_run(&files(&all, runtime)).await.unwrap().notes;
    assert_eq!(
        notes(Some(RuntimeKind::Docker)).await,
        [format!(
            "warning: {} is watched by the controller: services in it that name no runtime run on sandbox, not on docker; \
             name the runtime in the file, or give `keel run` --runtime docker",
            watched.display()
        )]
    );
    assert_eq!(notes(Some(RuntimeKind::Sandbox)).await, [""; 0]);
    assert_eq!(notes(None).await, [""; 0]);
    let service = |name: &str, line: &str| format!("  {name}: {{ image: {{ name: one }}{line} }}\n");
    let written = |runtime: &str, services: &[&str]| {
        let mut request = files(&all, Some(RuntimeKind::Docker));
        request.files[0].text = format!("version: v1\ndeployment: a\n{runtime}services:\n{}", services.concat());
        request
    };
    let (bare, full) = (service("db", ""), service("web", ", runtime: sandbox"));
    for (request, told) in
        [(written("", &[&full]), 0), (written("runtime: sandbox\n", &[&bare]), 0), (written("", &[&full, &bare]), 1)]
    {
        assert_eq!(engine.dry_run(&request).await.unwrap().notes.len(), told, "{request:?}");
    }
    engine.shutdown().await;
}

#[tokio::test]
async fn a_runtime_that_is_named_without_a_controller_stays_with_what_a_watched_file_declares() {
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("specs");
    std::fs::create_dir(&directory).unwrap();
    let once = || Mode::Controller { directory: directory.clone(), allow_empty: false, once: true };
    open(dir.path(), once(), RuntimeKind::Sandbox).await.shutdown().await;
    let all = [(directory.join("a.yaml"), "a"), (directory.join("b.yaml"), "b")];
    for (file, named) in all.iter().zip([RuntimeKind::Docker, RuntimeKind::Sandbox]) {
        let request = files(std::slice::from_ref(file), Some(named));
        std::fs::write(&file.0, &request.files[0].text).unwrap();
        let engine = open(dir.path(), Mode::Record, named).await;
        let applied = engine.apply(&request).await.unwrap();
        assert_eq!((applied.results, applied.notes), (results(&[(file.1, Change::Created)]), vec![]));
        engine.shutdown().await;
    }
    let engine = open(dir.path(), Mode::Record, RuntimeKind::Sandbox).await;
    let runs_on = |engine: &Engine| -> Vec<(String, RuntimeKind)> {
        engine.status().services.iter().map(|view| (view.deployment.clone(), view.runtime)).collect()
    };
    let (a, b) = ("a".to_owned(), "b".to_owned());
    assert_eq!(runs_on(&engine), [(a.clone(), RuntimeKind::Docker), (b.clone(), RuntimeKind::Sandbox)]);
    assert_eq!(engine.dry_run(&files(&all, None)).await.unwrap().results.len(), 2);
    assert_eq!(engine.dry_run(&files(&all[..1], None)).await.unwrap().results, results(&[("a", Change::Unchanged)]));
    let moved = engine.dry_run(&files(&all[..1], Some(RuntimeKind::Sandbox))).await.unwrap();
    assert_eq!(moved.results, results(&[("a", Change::Configured)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apply_whose_client_goes_away_is_done_before_what_is_asked_next() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), Mode::Record, RuntimeKind::Sim).await;
    let names: Vec<String> = (0..200).map(|number| format!("d{number}")).collect();
    let all: Vec<(PathBuf, &str)> =
        names.iter().map(|name| (dir.path().join(format!("{name}.yaml")), name.as_str())).collect();
    let request = files(&all, None);
    engine.apply(&request).await.unwrap();
    let again = engine.apply(&request);
    assert!(tokio::time::timeout(Duration::from_millis(5), again).await.is_err(), "it takes longer to write them");
    let last = DeleteRequest { deployments: names[199..].to_vec(), volumes: Volumes::Keep, ignore_not_found: false };
    engine.delete(&last).await.unwrap();
    // Whatever was still under way would be done by then.
    engine.rescan().await.unwrap();
    let declared = engine.dry_run(&files(&all[199..], None)).await.unwrap();
    assert_eq!(declared.results, results(&[("d199", Change::Created)]));
}

#[tokio::test]
async fn names_that_nothing_has_are_passed_over_only_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), Mode::Record, RuntimeKind::Sim).await;
    engine.apply(&files(&[(dir.path().join("a.yaml"), "a")], None)).await.unwrap();
    let request = |ignore_not_found| DeleteRequest {
        deployments: vec!["a".to_owned(), "gone".to_owned()],
        volumes: Volumes::Keep,
        ignore_not_found,
    };
    assert!(matches!(engine.delete(&request(false)).await, Err(EngineError::NotFound(_))));
    assert_eq!(engine.delete(&request(true)).await.unwrap().results, results(&[("a", Change::Deleted)]));
}
