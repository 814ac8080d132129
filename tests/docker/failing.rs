//! What an engine answers when it fails over one container, played by a small server.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use evenkeel::runtime::docker::DockerRuntime;
use evenkeel::runtime::io::{Exec, ExecRequest, LogOptions, Logs};
use evenkeel::runtime::{ErrorKind, Runtime, RuntimeEvent};
use evenkeel::state::{Instance, InstanceId, Owner, Phase, StopPolicy};
use futures::StreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use crate::harness::{next, request, spec};

const CREATED: i64 = 1_800_000_000;

/// An engine with two containers of this owner: `good` runs, and no inspection of `bad` succeeds.
struct Failing {
    dir: TempDir,
    server: JoinHandle<()>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Failing {
    fn start() -> Self {
        Self::with(true)
    }

    /// One that closes every event stream at once.
    fn without_events() -> Self {
        Self::with(false)
    }

    fn with(events: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("docker.sock")).unwrap();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let seen = requests.clone();
        let server = tokio::spawn(async move {
            // Its connections end with the server.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, events, seen.clone()));
            }
        });
        Self { dir, server, requests }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    async fn runtime(&self) -> DockerRuntime {
        DockerRuntime::connect(owner(), Some(self.socket())).await.unwrap()
    }

    fn asked(&self, request: &str) -> bool {
        self.requests.lock().unwrap().iter().any(|seen| seen.starts_with(request))
    }
}

fn owner() -> Owner {
    Owner("failing".to_owned())
}

fn id(service: &str) -> InstanceId {
    InstanceId {
        deployment: "shop".to_owned(),
        service: service.to_owned(),
        slot: 0,
        revision: "v1-0123456789abcdef".parse().unwrap(),
        attempt: 0,
        run: None,
    }
}

fn labels(container: &str) -> Value {
    json!(id(container).to_labels(&owner(), 2, 1, StopPolicy::default()))
}

/// Answers one request and closes, except that events stay open after a start of `bad`.
async fn serve(stream: UnixStream, events: bool, requests: Arc<Mutex<Vec<String>>>) {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.trim_start_matches("/v1.41");
    requests.lock().unwrap().push(format!("{method} {path}"));
    if path.starts_with("/events") && !events {
        let _sent = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
        return;
    }
    if path.starts_with("/events") {
        let mut attributes = labels("bad");
        attributes["name"] = json!("bad");
        let event = json!({"Type": "container", "Action": "start", "Actor": {"ID": "bad", "Attributes": attributes}});
        let body = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{event}\n");
        let _sent = stream.write_all(body.as_bytes()).await;
        return std::future::pending().await;
    }
    let before = requests.lock().unwrap().iter().filter(|seen| seen.starts_with("POST /networks/create")).count();
    let (status, body) = match path {
        // As Podman fails once while an interface of the machine goes.
        "/networks/create" if before == 1 => (500, json!({"message": "route ip+net: no such network interface"})),
        "/networks/create" => (201, json!({"Id": "net", "Warning": ""})),
        path => answer(method, path),
    };
    let text = body.to_string();
    let head = format!(
        "HTTP/1.1 {status} X\r\nApi-Version: 1.41\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n",
        text.len()
    );
    let _sent = stream.write_all(format!("{head}{text}").as_bytes()).await;
}

fn answer(method: &str, path: &str) -> (u16, Value) {
    let line = |name: &str| json!({"Id": name, "Created": CREATED, "State": "running", "Labels": labels(name)});
    match (method, path.split('?').next().unwrap_or_default()) {
        ("GET", "/_ping") => (200, json!("OK")),
        ("GET", "/version") => (200, json!({"Version": "20.10.24"})),
        ("GET", "/containers/json") => (200, json!([line("bad"), line("good")])),
        ("GET", "/networks") => (200, json!([])),
        ("GET", "/containers/good/json") => {
            let state = json!({"Status": "running", "StartedAt": "2026-11-21T01:00:01Z"});
            (200, json!({"Id": "good", "State": state, "Config": {"Labels": labels("good")}}))
        }
        ("GET", "/containers/bad/json") => (500, json!({"message": "layer does not exist"})),
        ("DELETE", "/containers/bad") => (204, Value::Null),
        _ => (404, json!({"message": format!("no {method} {path} here")})),
    }
}

fn assert_unknown(bad: &Instance) {
    let Phase::Unknown { message } = &bad.phase else { panic!("{bad:?}") };
    assert!(message.contains("layer does not exist"), "{message}");
    assert_eq!((bad.id.service.as_str(), bad.restarts, bad.streak), ("bad", 2, 1));
    assert_eq!(bad.created_at.timestamp(), CREATED);
}

#[tokio::test]
async fn a_container_that_cannot_be_inspected_does_not_hide_the_others() {
    let engine = Failing::start();
    let runtime = engine.runtime().await;
    let instances = runtime.list().await.unwrap().instances;
    let [bad, good] = instances.as_slice() else { panic!("{instances:?}") };
    assert_unknown(bad);
    assert_eq!(good.phase.name(), "running");
    // It can still be got rid of.
    runtime.remove(&bad.as_ref()).await.unwrap();
    assert!(engine.asked("DELETE /containers/bad"));
}

#[tokio::test]
async fn a_network_is_asked_for_again_where_an_interface_went_meanwhile() {
    let engine = Failing::start();
    let runtime = engine.runtime().await;
    let error = runtime.create(&request(id("web"), &spec("command: {args: [sh]}"))).await.unwrap_err();
    assert!(error.message.contains("no POST /containers/create"), "{error}");
    let asked = engine.requests.lock().unwrap().iter().filter(|seen| *seen == "POST /networks/create").count();
    assert_eq!(asked, 2);
}

#[tokio::test(start_paused = true)]
async fn an_engine_without_an_event_stream_is_looked_at_now_and_then() {
    let engine = Failing::without_events();
    let runtime = engine.runtime().await;
    let mut events = runtime.events().await.unwrap();
    let mut lists = 0;
    let hour = tokio::time::timeout(Duration::from_secs(3600), async {
        while let Some(RuntimeEvent::Resync { .. }) = events.next().await {
            lists += 1;
        }
    });
    assert!(hour.await.is_err(), "it told of a change");
    // 8 while the waits grow to half a minute, then one each.
    assert!((119..=128).contains(&lists), "{lists}");
}

#[tokio::test]
async fn events_go_on_over_it_and_tell_at_once_when_the_engine_goes() {
    let engine = Failing::start();
    let runtime = engine.runtime().await;
    let mut events = runtime.events().await.unwrap();
    let bad = next(&mut events, |event| match event {
        RuntimeEvent::Changed(changed) => Some((**changed).clone()),
        _ => panic!("{event:?} instead of a change"),
    })
    .await;
    assert_unknown(&bad);
    std::fs::remove_file(engine.socket()).unwrap();
    engine.server.abort();
    next(&mut events, |event| matches!(event, RuntimeEvent::Resync { .. }).then_some(())).await;
    let reason = next(&mut events, |event| match event {
        RuntimeEvent::Resync { reason } => Some(reason.clone()),
        _ => None,
    })
    .await;
    assert!(reason.contains("can't be reached") || reason.contains("not found"), "{reason}");
    assert_eq!(runtime.list().await.unwrap_err().kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn what_somebody_waits_for_is_refused_soon_by_an_engine_that_was_halted() {
    let engine = Failing::start();
    let runtime = engine.runtime().await;
    let good =
        runtime.list().await.unwrap().instances.into_iter().find(|one| one.id.service == "good").unwrap().as_ref();
    engine.server.abort();
    std::fs::remove_file(engine.socket()).unwrap();
    // It takes connections and answers none of them.
    let _halted = UnixListener::bind(engine.socket()).unwrap();
    tokio::time::pause();
    for verb in ["exec", "logs"] {
        let began = tokio::time::Instant::now();
        let request = ExecRequest { command: vec!["true".to_owned()], ..ExecRequest::default() };
        let error = match verb {
            "exec" => Exec::exec(&runtime, &good, &request).await.err(),
            _ => Logs::logs(&runtime, &good, &LogOptions::default()).await.err(),
        };
        let error = error.expect("nobody answers");
        assert_eq!((error.kind, began.elapsed().as_secs()), (ErrorKind::Timeout, 5), "{verb}: {error}");
        assert!(error.message.ends_with("docker.sock: the engine does not answer"), "{verb}: {error}");
    }
}
