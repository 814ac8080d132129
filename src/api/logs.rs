//! Output of instances as JSON lines.

use std::collections::BTreeSet;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::{self, BoxStream, Peekable};
use futures::{Stream, StreamExt};

use super::{ApiError, Kind, LogItem, LogQuery, LogResume};
use crate::controller::{Engine, Followed};
use crate::runtime;
use crate::runtime::io::LogLine;
use crate::state::{InstanceRef, Target};
use crate::status::{InstanceView, Status};

/// Most instances that an answer begins with; each holds a file or a connection of the runtime open (kubectl allows 5 at a time
/// and 50 with `--max-log-requests` raised by hand).
const MAX_STREAMS: usize = 100;

type Lines = (InstanceRef, BoxStream<'static, runtime::Result<LogLine>>);

/// Lines of which the next one can be looked at.
type Head = (InstanceRef, Peekable<BoxStream<'static, runtime::Result<LogLine>>>);

pub(super) async fn logs(
    State(engine): State<Engine>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::new(Kind::Invalid, error.body_text()))?;
    let target = target(&query)?;
    // Before anything is opened. The status leaves out slots that are only kept for their output; they count below.
    check_count(&target, covered(&engine.status(), &target))?;
    let items = if query.goes_on() {
        engine.follow(&target, &query.options(), None).await?.map(LogItem::from).boxed()
    } else {
        let streams = match &query.runtime_id {
            Some(id) => engine.logs_of(&target, id, &query.options()).await?,
            None => engine.logs(&target, query.previous, &query.options()).await?,
        };
        check_count(&target, streams.len())?;
        let names = LogItem::Instances(streams.iter().map(|(instance, _)| instance.id.name()).collect());
        stream::once(async move { names }).chain(in_order(streams)).boxed()
    };
    Ok(answer(items))
}

/// Goes on with an answer. How many instances there are was asked when it began.
pub(super) async fn resume(
    State(engine): State<Engine>,
    body: Result<Json<LogResume>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(LogResume { query, after }) = body.map_err(|error| ApiError::new(Kind::Invalid, error.body_text()))?;
    if !query.goes_on() {
        return Err(ApiError::new(Kind::Invalid, "only what is followed can go on"));
    }
    let items = engine.follow(&target(&query)?, &query.options(), Some(after)).await?;
    Ok(answer(items.map(LogItem::from)))
}

fn target(query: &LogQuery) -> Result<Target, ApiError> {
    query.target.parse().map_err(|error| ApiError::new(Kind::Invalid, format!("{error}")))
}

fn answer(items: impl Stream<Item = LogItem> + Send + 'static) -> Response {
    let lines = items.map(|item| encode(&item));
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

impl From<Followed> for LogItem {
    fn from(told: Followed) -> Self {
        match told {
            Followed::Instances(names) => Self::Instances(names),
            Followed::Line { instance, line } => Self::line(&instance, line),
            Followed::NoLines(instance) => Self::NoLines {
                instance: instance.id.name(),
                runtime: instance.runtime,
                runtime_id: instance.runtime_id.clone(),
            },
            Followed::Interrupted { instance, error } => {
                Self::Interrupted { instance, error: ApiError::from(error).body() }
            }
            Followed::Failed { instance, error } => Self::Failed { instance, error: ApiError::from(error).body() },
            Followed::Waiting => Self::Waiting,
            Followed::Gone => Self::Gone,
            Followed::Broken(error) => Self::Broken(ApiError::from(error).body()),
        }
    }
}

/// Slots with an instance that the target covers.
fn covered(status: &Status, target: &Target) -> usize {
    let covers = |view: &&InstanceView| {
        target.deployment == view.deployment
            && target.service.as_ref().is_none_or(|service| *service == view.service)
            && target.slot.is_none_or(|slot| slot == view.slot)
    };
    status.instances.iter().filter(covers).map(|view| &view.name).collect::<BTreeSet<_>>().len()
}

fn check_count(target: &Target, count: usize) -> Result<(), ApiError> {
    if count <= MAX_STREAMS {
        return Ok(());
    }
    let message = format!(
        "{target} covers {count} instances and at most {MAX_STREAMS} are read at a time; name a service or a slot, as in \
         DEPLOYMENT/SERVICE/SLOT"
    );
    Err(ApiError::new(Kind::Invalid, message))
}

impl LogItem {
    fn line(instance: &InstanceRef, line: LogLine) -> Self {
        let runtime_id = instance.runtime_id.clone();
        Self::Line { instance: instance.id.name(), runtime: instance.runtime, runtime_id, line }
    }
}

fn encode(item: &LogItem) -> Result<Bytes, serde_json::Error> {
    let mut bytes = serde_json::to_vec(item)?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

fn item(instance: &InstanceRef, line: runtime::Result<LogLine>) -> LogItem {
    match line {
        Ok(line) => LogItem::line(instance, line),
        Err(error) => LogItem::Failed { instance: instance.id.name(), error: ApiError::from(error).body() },
    }
}

/// Lines by the time at which they were written; those of one instance stay in their order, and the pieces of a line together.
fn in_order(streams: Vec<Lines>) -> impl Stream<Item = LogItem> + Send + 'static {
    let heads: Vec<Head> = streams.into_iter().map(|(instance, lines)| (instance, lines.peekable())).collect();
    stream::unfold((heads, None), |(mut heads, open): (Vec<Head>, Option<usize>)| async move {
        let next = match open {
            // None of the others is dropped meanwhile.
            Some(open) => heads.get_mut(open)?.1.next().await.map(|line| (open, line)),
            None => None,
        };
        let (index, line) = match next {
            Some(next) => next,
            None => {
                let first = earliest(&mut heads).await?;
                (first, heads.get_mut(first)?.1.next().await?)
            }
        };
        let goes_on = line.as_ref().is_ok_and(|line| line.goes_on);
        let (instance, _) = heads.get(index)?;
        let item = item(instance, line);
        Some((item, (heads, goes_on.then_some(index))))
    })
}

/// The stream whose next line is the oldest; a failure counts as oldest of all. Streams that ended are dropped.
async fn earliest(heads: &mut Vec<Head>) -> Option<usize> {
    let mut best = None;
    let mut index = 0;
    while let Some((_, lines)) = heads.get_mut(index) {
        match std::pin::Pin::new(lines).peek().await {
            None => {
                // Keeps the order of the others, which decides between equal times.
                drop(heads.remove(index));
                continue;
            }
            Some(head) => {
                let at = head.as_ref().ok().map(|line| line.at);
                if best.is_none_or(|(_, oldest)| at < oldest) {
                    best = Some((index, at));
                }
            }
        }
        index += 1;
    }
    best.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};

    use super::*;
    use crate::runtime::RuntimeError;
    use crate::runtime::io::OutputStream;
    use crate::spec::RuntimeKind;
    use crate::state::{ErrorKind, InstanceId};

    fn line(second: i64, text: &str) -> runtime::Result<LogLine> {
        let at = DateTime::<Utc>::from_timestamp(second, 0).unwrap();
        Ok(LogLine { at, stream: OutputStream::Stdout, text: text.into(), goes_on: false })
    }

    /// The first instance of a service of the deployment `demo`.
    fn instance(service: &str) -> InstanceRef {
        let id = InstanceId {
            deployment: "demo".to_owned(),
            service: service.to_owned(),
            slot: 0,
            revision: "v1-aa00000000000000".parse().unwrap(),
            attempt: 0,
            run: None,
        };
        InstanceRef { id, runtime: RuntimeKind::Sandbox, runtime_id: "x1".to_owned() }
    }

    async fn merged(streams: Vec<(&str, Vec<runtime::Result<LogLine>>)>) -> Vec<String> {
        let streams = streams.into_iter().map(|(name, lines)| (instance(name), stream::iter(lines).boxed())).collect();
        in_order(streams)
            .map(|item| match item {
                LogItem::Line { line, .. } => line.text.lossy().into_owned(),
                LogItem::Failed { instance, error } => format!("{instance} failed: {}", error.error),
                other => panic!("{other:?}"),
            })
            .collect()
            .await
    }

    #[tokio::test]
    async fn lines_of_several_instances_are_merged_by_time() {
        let a = vec![line(1, "a1"), line(4, "a4")];
        let b = vec![line(2, "b2"), line(3, "b3"), line(5, "b5")];
        assert_eq!(merged(vec![("a", a), ("b", b)]).await, ["a1", "b2", "b3", "a4", "b5"]);
    }

    #[tokio::test]
    async fn the_pieces_of_a_line_stay_together() {
        let piece = |second, text| line(second, text).map(|line| LogLine { goes_on: true, ..line });
        let a = vec![piece(1, "a1"), piece(3, "a3"), line(5, "a5"), line(7, "a7"), piece(8, "a8")];
        let b = vec![line(2, "b2"), line(6, "b6"), line(9, "b9")];
        assert_eq!(merged(vec![("a", a), ("b", b)]).await, ["a1", "a3", "a5", "b2", "b6", "a7", "a8", "b9"]);
    }

    #[tokio::test]
    async fn a_clock_that_went_back_does_not_reorder_an_instance() {
        let a = vec![line(9, "first"), line(1, "second")];
        assert_eq!(merged(vec![("a", a), ("b", vec![line(5, "b")])]).await, ["b", "first", "second"]);
    }

    #[tokio::test]
    async fn a_failing_instance_does_not_hide_the_others() {
        let failure = Err(RuntimeError::new(ErrorKind::Failed, "log file is gone"));
        assert_eq!(
            merged(vec![("a", vec![line(1, "a1")]), ("b", vec![failure])]).await,
            ["demo/b/0 failed: log file is gone", "a1"]
        );
    }

    #[tokio::test]
    async fn lines_travel_as_json_with_their_instance() {
        let bytes = encode(&item(&instance("web"), line(0, "hi"))).unwrap();
        assert_eq!(
            std::str::from_utf8(&bytes).unwrap(),
            "{\"line\":{\"instance\":\"demo/web/0\",\"runtime\":\"sandbox\",\"runtime_id\":\"x1\",\"at\":\"1970-01-01T00:00:00Z\",\"stream\":\"stdout\",\"text\":\"hi\"}}\n"
        );
    }

    fn status(instances: &[(&str, u32)]) -> Status {
        let view = |(service, slot): &(&str, u32)| {
            serde_json::json!({"deployment": "demo", "service": service, "slot": slot,
                "name": format!("demo/{service}/{slot}"), "runtime": "sandbox", "runtime_id": "x", "pid": null,
                "phase": "running", "ready": true, "revision": "r", "restarts": 0,
                "created_at": "2024-01-01T00:00:00Z", "started_at": null, "ports": [], "exit": null, "message": "",
                "conditions": []})
        };
        let instances: Vec<_> = instances.iter().map(view).collect();
        let mut status = serde_json::to_value(Status::default()).unwrap();
        status["instances"] = instances.into();
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn slots_that_are_covered_count_once() {
        let status = status(&[("web", 0), ("web", 0), ("web", 1), ("db", 0)]);
        let count = |target: &str| covered(&status, &target.parse().unwrap());
        assert_eq!(
            [count("demo"), count("demo/web"), count("demo/web/1"), count("other"), count("demo/cache")],
            [3, 2, 1, 0, 0]
        );
    }
}
