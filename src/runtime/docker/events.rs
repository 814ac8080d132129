//! The engine's event stream, as changes of instances. It reconnects by itself.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bollard::Docker;
use bollard::models::{EventMessage, EventMessageTypeEnum};
use bollard::query_parameters::EventsOptionsBuilder;
use chrono::{DateTime, Utc};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::engine::PROBE_DEADLINE;
use super::observe::{coded, reference};
use super::reconnect::{LASTING, Retries, Stream};
use super::{Inner, error};
use crate::runtime::RuntimeEvent;
use crate::spec::Signal;
use crate::state::{Instance, InstanceRef, Phase};

/// Changes that wait for a slow reader; past that the stream waits, and the engine's own buffer (256 events) begins.
const WAITING_CHANGES: usize = 256;

/// Inspections of changed containers side by side; the engine holds some of them up while it works on the container.
const INSPECTIONS: usize = 16;

/// Events that change an instance, and signals that are sent to it. Podman says `died` for `die` and `remove` for `destroy`. Without this filter the
/// exec events of health checks flood the stream.
const ACTIONS: &[&str] = &[
    "create", "start", "restart", "kill", "stop", "die", "died", "oom", "pause", "unpause", "rename", "update",
    "destroy", "remove",
];

/// Events of networks that change an instance. They carry no labels, so they come of everybody's containers.
const OF_NETWORKS: &[&str] = &["connect", "disconnect"];

/// That health checks of an image say something else than before. Podman says so with every check.
const HEALTH: &str = "health_status";

/// The changes from now on, until the token is cancelled or the stream is dropped.
pub(super) fn changes(inner: Arc<Inner>, ended: CancellationToken) -> BoxStream<'static, RuntimeEvent> {
    let (sender, receiver) = mpsc::channel(WAITING_CHANGES);
    let mut pump = Pump { inner, sender, out_of_memory: HashSet::new(), told: false };
    let since = Utc::now();
    tokio::spawn(async move {
        let closed = pump.sender.clone();
        tokio::select! {
            () = ended.cancelled() => {}
            () = closed.closed() => {}
            () = pump.run(since) => {}
        }
    });
    futures::stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|event| (event, receiver)) })
        .boxed()
}

/// A signal as events have it: its number, or its name.
fn signal(text: &str) -> Option<Signal> {
    let name = text.parse().map_or_else(|_| text.to_owned(), Signal::name_of);
    name.parse().ok()
}

/// Reads events and passes changes on.
struct Pump {
    inner: Arc<Inner>,
    sender: mpsc::Sender<RuntimeEvent>,
    /// Containers of which the engine said that memory ran out, until it says that they ended.
    out_of_memory: HashSet<String>,
    /// Whether the stream has told of anything.
    told: bool,
}

/// Why no changes are told at the moment.
enum Gap {
    /// The stream broke off.
    Broken(String),
    /// The engine can't be reached.
    Away(String),
}

impl Gap {
    fn reason(&self) -> &str {
        match self {
            Self::Broken(reason) | Self::Away(reason) => reason,
        }
    }
}

/// What an inspection after an event gave.
type Seen = (InstanceRef, crate::runtime::Result<Option<Instance>>);

impl Pump {
    /// Connects for ever. The reader is told to list again when a gap begins, so that a list shows whether the engine is
    /// away, and once more when it is over, because nothing was told in between.
    async fn run(&mut self, mut since: DateTime<Utc>) {
        let mut gap: Option<Gap> = None;
        let mut retries = Retries::new();
        loop {
            let (now, wait) = match self.connect().await {
                Ok(docker) => {
                    if let Some(before) = gap.take() {
                        self.inner.forget_networks();
                        self.inner.forget_capabilities().await;
                        let reason = format!("the engine answers again; before: {}", before.reason());
                        self.send(RuntimeEvent::Resync { reason }).await;
                    }
                    let (stream, reason) = self.watch(docker, since).await;
                    let wait = retries.broke(stream);
                    if retries.gives_up() {
                        tracing::warn!(%reason, "the engine tells of no changes; they are looked for every half minute");
                    }
                    (Gap::Broken(reason), wait)
                }
                Err(reason) => (Gap::Away(reason), retries.away()),
            };
            tracing::debug!(reason = now.reason(), "the engine's event stream is down");
            // An engine that is ending may still answer a list when the stream breaks; it is away only afterwards.
            if !matches!(gap, Some(Gap::Away(_))) {
                // Where streams end at once, the list at the next try is enough.
                if retries.is_news() {
                    self.send(RuntimeEvent::Resync { reason: now.reason().to_owned() }).await;
                }
                gap = Some(now);
            }
            tokio::time::sleep(wait).await;
            // The engine repeats what happened since, so nothing is lost between connecting and listing.
            since = Utc::now();
        }
    }

    /// Follows a stream until it breaks off; says what it was good for, and why it broke.
    async fn watch(&mut self, docker: Docker, since: DateTime<Utc>) -> (Stream, String) {
        let _watched = Watched::begin(self.inner.clone());
        let began = Instant::now();
        self.told = false;
        // Of those that ended in a gap, their end is not told any more.
        self.out_of_memory.clear();
        let reason = self.follow(docker, since).await;
        let was_there = self.told || began.elapsed() >= LASTING;
        (if was_there { Stream::Good } else { Stream::Barren }, reason)
    }

    /// A client whose engine answers now.
    async fn connect(&self) -> Result<Docker, String> {
        let docker = self.inner.engine.client().await.map_err(|error| error.message)?;
        let error = match tokio::time::timeout(PROBE_DEADLINE, docker.ping()).await {
            Ok(Ok(_)) => return Ok(docker),
            Ok(Err(error)) => error,
            Err(_) => bollard::errors::Error::RequestTimeoutError,
        };
        self.inner.engine.forget_on(&error);
        Err(error::explain("connecting to the engine", &error).message)
    }

    /// Passes changes on until the stream breaks off; says why it did.
    async fn follow(&mut self, docker: Docker, since: DateTime<Utc>) -> String {
        let health = self.inner.tells_health().await.unwrap_or(false).then_some(HEALTH);
        let actions: Vec<&str> = ACTIONS.iter().copied().chain(health).collect();
        let containers = told(&docker, since, self.inner.ours(), "container", &actions);
        let networks = told(&docker, since, HashMap::new(), "network", OF_NETWORKS);
        let mut events = futures::stream::select(containers, networks);
        let mut looking: FuturesUnordered<BoxFuture<'static, Seen>> = FuturesUnordered::new();
        loop {
            tokio::select! {
                // Inspections that are done first, so that their number stays bounded.
                biased;
                Some(seen) = looking.next() => {
                    if let Err(reason) = self.tell(seen).await {
                        return reason;
                    }
                }
                event = events.next(), if looking.len() < INSPECTIONS => match event {
                    Some(Some(Ok(event))) => {
                        if let Some(changed) = self.take(&event).await {
                            looking.push(look(self.inner.clone(), changed));
                        }
                    }
                    Some(Some(Err(error))) => {
                        self.inner.engine.forget_on(&error);
                        return error::explain("reading the engine's events", &error).message;
                    }
                    Some(None) | None => return "the engine closed its event stream".to_owned(),
                },
            }
        }
    }

    /// Acts on one event; gives the instance that must be looked at, where the event does not say it all.
    async fn take(&mut self, event: &EventMessage) -> Option<InstanceRef> {
        self.told |= event.typ != Some(EventMessageTypeEnum::NETWORK);
        let actor = event.actor.as_ref()?;
        let container = actor.id.as_deref()?;
        let attributes = actor.attributes.as_ref()?;
        if event.typ == Some(EventMessageTypeEnum::NETWORK) {
            // Podman names the container in the network's place.
            let container = attributes.get("container").map_or(container, String::as_str);
            return self.of_network(container, event.action.as_deref()?);
        }
        let instance = reference(container, attributes, &self.inner.owner).ok()?;
        match event.action.as_deref()? {
            "destroy" | "remove" => {
                self.out_of_memory.remove(container);
                self.inner.facts.forget(container);
                self.send(RuntimeEvent::Gone(instance)).await;
                None
            }
            "kill" => {
                if let Some(signal) = attributes.get("signal").and_then(|text| signal(text)) {
                    self.signalled(container, signal).await;
                    self.send(RuntimeEvent::Signalled(instance, signal)).await;
                }
                None
            }
            "stop" => {
                self.stopped(container).await;
                None
            }
            "oom" => {
                self.ran_out_of_memory(container).await;
                None
            }
            "die" | "died" => {
                self.ended(container, attributes, event).await;
                Some(instance)
            }
            _ => Some(instance),
        }
    }

    /// Takes note of the signal that asks the program to end. One that kills it outright leaves it no say, as a crash does, and
    /// others may be for something else.
    async fn signalled(&self, container: &str, signal: Signal) {
        let Some(known) = self.inner.facts.get(container) else { return };
        let runs = matches!(known.phase, Phase::Running { .. } | Phase::Paused { .. });
        let asks = signal == Signal::TERM || signal == known.stop.signal;
        if runs && asks && signal != Signal::KILL {
            self.inner.facts.stops.others_stop(&known, Utc::now()).await;
        }
    }

    /// Takes note of a stop that is over; Podman tells of nothing before that.
    async fn stopped(&self, container: &str) {
        let seen = self.inner.facts.now();
        let Some(known) = self.inner.facts.get(container) else { return };
        if matches!(known.phase, Phase::Exited(_)) {
            self.inner.facts.stops.others_stop(&known, Utc::now()).await;
            let ended = self.inner.facts.learn(seen, known);
            self.send(RuntimeEvent::Changed(Box::new(ended))).await;
        }
    }

    /// The instance of a container that was taken off a network, or brought back, where that is news: what ends is taken off
    /// as well, and what starts is connected.
    fn of_network(&self, container: &str, action: &str) -> Option<InstanceRef> {
        let known = self.inner.facts.get(container)?;
        let is_news = match action {
            "disconnect" => matches!(known.phase, Phase::Running { .. } | Phase::Paused { .. } | Phase::Created),
            _ => known.changed_by_others().is_some(),
        };
        is_news.then(|| known.as_ref())
    }

    /// Takes note that memory ran out, for the end that this leads to; a busy engine tells of the end first.
    async fn ran_out_of_memory(&mut self, container: &str) {
        let seen = self.inner.facts.now();
        let known = self.inner.facts.get(container);
        let Some((Phase::Exited(exit), known)) = known.map(|known| (known.phase.clone(), known)) else {
            self.out_of_memory.insert(container.to_owned());
            return;
        };
        if !exit.oom_killed {
            let ended = Instance { phase: Phase::Exited(exit.out_of_memory()), ..known };
            let ended = self.inner.facts.learn(seen, ended);
            self.send(RuntimeEvent::Changed(Box::new(ended))).await;
        }
    }

    /// Passes an end on straight from the event: an inspection waits until the engine has taken the container's network
    /// apart. The one that follows corrects what the event does not know.
    async fn ended(&mut self, container: &str, attributes: &HashMap<String, String>, event: &EventMessage) {
        let out_of_memory = self.out_of_memory.remove(container);
        let seen = self.inner.facts.now();
        let code = ["exitCode", "containerExitCode"].iter().find_map(|key| attributes.get(*key)?.parse().ok());
        let (Some(known), Some(code), Some(at)) = (self.inner.facts.get(container), code, event.time_nano) else {
            return;
        };
        let phase =
            Phase::Exited(coded(code, out_of_memory, known.phase.started_at(), DateTime::from_timestamp_nanos(at)));
        let ended = Instance { phase, pid: None, ports: Vec::new(), health: None, ..known };
        // Where it can't be judged whose end it is, the inspection tells of it.
        let Ok(ended) = self.inner.learn_end(seen, ended).await else { return };
        self.send(RuntimeEvent::Changed(Box::new(ended))).await;
        self.inner.outages.ended(DateTime::from_timestamp_nanos(at)).await;
    }

    /// Passes on what an inspection gave.
    async fn tell(&mut self, (instance, seen): Seen) -> Result<(), String> {
        match seen {
            Ok(Some(changed)) => self.send(RuntimeEvent::Changed(Box::new(changed))).await,
            // Its removal has an event of its own.
            Ok(None) => {}
            Err(error) if error.means_unreachable() => {
                return Err(format!("looking at {}: {}", instance.id, error.message));
            }
            // One container that the engine fails over is no reason to stop telling of the others.
            Err(error) => {
                self.inner.facts.doubt(&instance.runtime_id);
                let reason = format!("looking at {}: {}", instance.id, error.message);
                self.send(RuntimeEvent::Resync { reason }).await;
            }
        }
        Ok(())
    }

    async fn send(&self, event: RuntimeEvent) {
        // A closed channel means that nobody reads any more; the pump is being ended.
        let _closed = self.sender.send(event).await;
    }
}

/// What the engine tells of these actions, and `None` once it tells no more.
fn told(
    docker: &Docker,
    since: DateTime<Utc>,
    mut filters: HashMap<String, Vec<String>>,
    of: &str,
    actions: &[&str],
) -> BoxStream<'static, Option<Result<EventMessage, bollard::errors::Error>>> {
    filters.insert("type".to_owned(), vec![of.to_owned()]);
    filters.insert("event".to_owned(), actions.iter().map(|action| (*action).to_owned()).collect());
    let since = format!("{}.{:09}", since.timestamp(), since.timestamp_subsec_nanos());
    let options = EventsOptionsBuilder::default().since(&since).filters(&filters).build();
    docker.events(Some(options)).map(Some).chain(futures::stream::once(async { None })).boxed()
}

fn look(inner: Arc<Inner>, instance: InstanceRef) -> BoxFuture<'static, Seen> {
    Box::pin(async move {
        let seen = inner.look(&instance).await;
        (instance, seen)
    })
}

/// Marks that changes are being followed, for as long as it lives.
struct Watched(Arc<Inner>);

impl Watched {
    fn begin(inner: Arc<Inner>) -> Self {
        inner.facts.watch();
        inner.outages.forget_start();
        Self(inner)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.facts.unwatch();
        self.0.outages.broke();
    }
}
