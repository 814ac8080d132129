//! One deployment's turn: observe, plan, execute, report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinError;
use tokio::time::Instant;

use super::core::{NOT_REACHED_YET, Settled, State};
use super::flight::FlightId;
use super::health::Specs;
use super::lists::RELIST;
use super::message::Message;
use super::record::Record;
use crate::execute::{self, Outcome, Report, Reporter, Surroundings, Tools};
use crate::plan::revisions;
use crate::plan::{Action, Input, Lane, Snapshot, Step, Unreachable, job_states, sightings};
use crate::runtime::{ErrorKind, RuntimeError, Volumes};
use crate::spec::RuntimeKind;
use crate::state::{Condition, DesiredDeployment, Fate, Instance};
use crate::status::{self, Facts};

/// Pause before the store is told again what it had no room for.
const TELL_AGAIN: Duration = Duration::from_secs(1);

impl State {
    /// Plans a deployment from everything that is known, starts what is to be done, and notes how it stands.
    pub(super) fn reconcile(&mut self, deployment: &str) {
        let (now, at) = self.now();
        let declared = self.declared.clone();
        let raw = self.desired(declared.desired.deployments.get(deployment), deployment);
        let suspended = self.is_suspended(deployment);
        let reaped_elsewhere = self.reaped_elsewhere(deployment);
        let history = &mut self.record_of(deployment).history;
        (history.suspended, history.reaped_elsewhere) = (suspended, reaped_elsewhere);
        self.rollout_looks.remove(deployment);
        self.sync_sessions(deployment, raw);
        self.forget_replicas(deployment, raw);
        if let (Ok(desired), true) = (raw, self.covers(deployment)) {
            self.note_workspaces(deployment, desired);
        }
        let effective = raw.map(|desired| self.effective(desired));
        self.track_use(deployment, effective.as_ref().ok());
        let (mut judged, mut observed) = self.look(deployment, effective.as_ref().ok());
        self.track_load(deployment, effective.as_ref().ok(), &observed);
        let scaled = raw.ok().and_then(|declared| self.scaled(declared, &observed));
        let raw = scaled.as_ref().map_or(raw, Ok);
        let mut effective = raw.map(|desired| self.effective(desired));
        let asked = self.follow_images(deployment, raw.ok());
        if let (Ok(desired), true) = (raw, self.covers(deployment))
            && self.advance(deployment, desired, &observed, &asked)
        {
            effective = Ok(self.effective(desired));
            (judged, observed) = self.look(deployment, effective.as_ref().ok());
        }
        if let Ok(desired) = &effective {
            self.end_stops(desired);
        }
        let shown = raw.map(|desired| self.shown(desired));
        let (desired, shown) = (effective.as_ref().map_err(|fate| *fate), shown.as_ref().map_err(|fate| *fate));
        if let Some(record) = self.records.get(deployment) {
            record.tell(&judged);
        }
        let sighted = self.with_input(deployment, desired, &observed, sightings);
        let shared = self.shared(deployment);
        let record = self.record_of(deployment);
        record.sight(sighted, now);
        record.forget_gone(&observed, &shared);
        self.remember_jobs(deployment, desired, &observed);
        let mut plan = self.plan(deployment, desired, &observed);
        for (service, wait) in asked {
            plan.hold(&service, wait);
        }
        let jobs = self.with_input(deployment, desired, &observed, job_states);
        if self.covers(deployment) {
            self.give_up_unwanted(deployment, desired, &jobs);
            for lane in &plan.lanes {
                self.launch(deployment, lane.clone());
            }
        }
        let pools = self.tend_pools(deployment, desired.ok(), &observed);
        for look in plan.next_look.into_iter().chain(self.next_look_at_rollouts(deployment)) {
            // The queue's clock stands still while the machine sleeps: what the wall clock says is looked at now and then.
            let wait = (look - now).to_std().unwrap_or_default().min(RELIST);
            self.queue.add(deployment, at + wait);
        }
        let kept = desired.err().filter(|fate| *fate == Fate::Kept);
        let kept = kept.and_then(|_| declared.why_kept(deployment).or_else(|| self.why_suspended(deployment)));
        let unwatched = declared.why_unwatched(deployment).filter(|_| desired.is_ok());
        let held = declared.why_held(deployment).filter(|_| desired.is_ok());
        let facts = Facts {
            deployment,
            desired: shown,
            observed: &self.flights.visible(deployment, judged),
            unsupported: &self.unsupported(desired.ok()),
            plan: &plan,
            jobs: &jobs,
            pools: &pools,
            acting: self.covers(deployment),
            working: self.flights.any(deployment),
            kept: kept.as_deref(),
            unwatched: unwatched.as_deref(),
            held: held.as_deref(),
            progress: &self.flights.progress_of(deployment),
            stale: declared.stale.get(deployment).map(String::as_str),
            removing: self.removing.contains_key(deployment),
        };
        let views = status::views(&facts);
        self.board.put(deployment, views, at, self.cache.len());
        self.forget_if_gone(deployment, desired);
    }

    /// What would be planned from if the deployment were declared like this, or not at all.
    pub(super) fn preview(&self, deployment: &str, desired: Option<&DesiredDeployment>) -> Snapshot {
        let observed = self.observed(deployment);
        let desired = desired.map(|declared| self.to_run(declared, &observed)).ok_or(Fate::Removed);
        self.with_input(deployment, desired.as_ref().map_err(|fate| *fate), &observed, Snapshot::of)
    }

    /// What is planned from now, for everything that is known.
    pub(super) fn snapshots(&self) -> Vec<Snapshot> {
        let declared = self.declared.clone();
        let mut names = self.cache.deployments();
        names.extend(declared.desired.deployments.keys().cloned());
        let of = |name: String| {
            let desired = self.desired(declared.desired.deployments.get(&name), &name);
            let observed = self.observed(&name);
            let desired = desired.map(|declared| self.to_run(declared, &observed));
            self.with_input(&name, desired.as_ref().map_err(|fate| *fate), &observed, Snapshot::of)
        };
        names.into_iter().map(of).collect()
    }

    /// Everything that a decision about the deployment is made from, given to `decide`.
    pub(super) fn with_input<T>(
        &self,
        deployment: &str,
        desired: Result<&DesiredDeployment, Fate>,
        observed: &[Instance],
        decide: impl FnOnce(&Input<'_>) -> T,
    ) -> T {
        let mut shared = self.shared(deployment);
        for runtime in self.flights.tearing_down(deployment) {
            shared.remove(&runtime);
        }
        let none = Record::default();
        let record = self.records.get(deployment).unwrap_or(&none);
        decide(&Input {
            deployment,
            desired,
            observed,
            shared: &shared,
            unreachable: &self.unreachable_for(desired.ok()),
            history: &record.history,
            volumes: self.removing.get(deployment).map_or(Volumes::Keep, |removal| removal.volumes),
            now: self.now().0,
        })
    }

    pub(super) fn record_of(&mut self, deployment: &str) -> &mut Record {
        self.records.entry(deployment.to_owned()).or_default()
    }

    /// What is declared, where nobody asked for its removal by name.
    fn desired<'a>(
        &self,
        declared: Option<&'a DesiredDeployment>,
        deployment: &str,
    ) -> Result<&'a DesiredDeployment, Fate> {
        match declared {
            _ if self.removing.contains_key(deployment) => Err(Fate::Removed),
            Some(desired) => Ok(desired),
            None if self.is_suspended(deployment) => Err(Fate::Kept),
            None => Err(self.declared.fate(deployment)),
        }
    }

    /// Runtimes that have something shared of the deployment to remove: a network, or volumes where they go too. Which
    /// volumes there are, no list tells, so every runtime is asked once.
    fn shared(&self, deployment: &str) -> BTreeSet<RuntimeKind> {
        let mut shared = self.cache.shared(deployment);
        if let Some(removal) = self.removing.get(deployment).filter(|removal| removal.volumes == Volumes::Remove) {
            let answering = self.runtimes.keys().filter(|kind| !self.unreachable.contains_key(kind));
            shared.extend(answering.filter(|kind| !removal.torn_down.contains(kind)));
        }
        shared
    }

    /// The instances with their health: as they are, and as planning has to see them.
    fn look(&mut self, deployment: &str, desired: Option<&DesiredDeployment>) -> (Vec<Instance>, Vec<Instance>) {
        let judged = self.track(deployment, desired);
        let observed = self.flights.overlay(deployment, judged.clone());
        (judged, observed)
    }

    /// Has what runs checked as it is declared, and notes what checks found. Gives the instances with their health.
    fn track(&mut self, deployment: &str, desired: Option<&DesiredDeployment>) -> Vec<Instance> {
        let instances: Vec<Instance> = self.cache.of(deployment).cloned().collect();
        let acts = self.covers(deployment);
        let runtimes = &self.runtimes;
        let runtime = |kind| runtimes.get(&kind).map(|attached| &attached.runtime);
        let (declared, memory) = (self.declared.desired.deployments.get(deployment), self.memory.get(deployment));
        let specs = Specs { desired, of_others: &|id| revisions::spec_of(id, declared, memory) };
        self.checks.track(deployment, &instances, specs, acts, runtime);
        let judged = self.judged(deployment, desired);
        for note in self.checks.notes(deployment, &judged) {
            tracing::info!("{}", note.message);
            self.record_event(Some(deployment), note.kind, note.message);
        }
        judged
    }

    /// The instances with their health.
    fn judged(&self, deployment: &str, desired: Option<&DesiredDeployment>) -> Vec<Instance> {
        let mut instances: Vec<Instance> = self.cache.of(deployment).cloned().collect();
        let (declared, memory) = (self.declared.desired.deployments.get(deployment), self.memory.get(deployment));
        let specs = Specs { desired, of_others: &|id| revisions::spec_of(id, declared, memory) };
        self.checks.judge(deployment, &mut instances, specs, self.covers(deployment), self.now().0);
        self.ledger.judge(deployment, &mut instances, self.now().0);
        instances
    }

    pub(super) fn observed(&self, deployment: &str) -> Vec<Instance> {
        let desired = self.declared.desired.deployments.get(deployment).map(|desired| self.effective(desired));
        self.flights.overlay(deployment, self.judged(deployment, desired.as_ref()))
    }

    /// Runtimes that nothing is known of, those that a service asks for and nobody attaches to among them.
    fn unreachable_for(&self, desired: Option<&DesiredDeployment>) -> BTreeMap<RuntimeKind, Unreachable> {
        let silent = self.unreachable.iter().map(|(kind, error)| (*kind, Unreachable::Silent(error.clone())));
        let mut unreachable: BTreeMap<RuntimeKind, Unreachable> = silent.collect();
        for service in desired.into_iter().flat_map(|desired| desired.services.values()) {
            if !self.runtimes.contains_key(&service.runtime) {
                unreachable.entry(service.runtime).or_insert_with(|| Unreachable::Absent(self.absent(service.runtime)));
            }
        }
        unreachable
    }

    /// Why there is no such runtime here, and what to do.
    fn absent(&self, kind: RuntimeKind) -> String {
        match self.expected.contains(&RuntimeKind::Sim) {
            true => format!(
                "a rehearsal on sim runs nothing real; leave out `runtime: {kind}` to rehearse it, or `--runtime sim` \
                 (KEEL_RUNTIME) to run it"
            ),
            false => format!("there is no such runtime here; write another one instead of `runtime: {kind}`, or none"),
        }
    }

    /// What the services ask for and their runtimes do not give, as far as those are known.
    fn unsupported(&self, desired: Option<&DesiredDeployment>) -> BTreeMap<String, Vec<Condition>> {
        let services = desired.iter().flat_map(|desired| desired.services.values().map(move |one| (desired, one)));
        let found = services.filter_map(|(desired, service)| {
            let attached = self.runtimes.get(&service.runtime)?;
            let mut conditions = attached.runtime.unsupported(&service.spec);
            conditions.extend(self.uncounted_requests(&desired.name, &service.name));
            Some((service.name.clone(), conditions))
        });
        found.filter(|(_, conditions)| !conditions.is_empty()).collect()
    }

    fn launch(&mut self, deployment: &str, lane: Lane) {
        let (now, _) = self.now();
        let Some(first) = lane.steps.first() else { return };
        let Some(attached) = self.runtimes.get(&first.action.runtime()) else { return };
        let (runtime, gate) = (attached.runtime.clone(), attached.gate.clone());
        let Some((flight, cancelled)) = self.flights.begin(deployment, &lane, now) else { return };
        self.note_launch(&lane);
        let has_init = lane.steps.iter().any(|step| matches!(step.action, Action::Init { .. }));
        let around = if has_init { self.surroundings(deployment) } else { Surroundings::none() };
        let tools = Tools { runtime, gate, around, cancelled };
        let reporter = ToCore { flight, messages: self.messages.clone(), told: Mutex::new(Told::from(Instant::now())) };
        let (landing, first) = (self.messages.clone(), first.clone());
        let name = deployment.to_owned();
        self.lanes.spawn(async move {
            let work = tokio::spawn(async move { execute::run(lane, tools, &name, &reporter).await });
            let guard = AbortOnDrop(work.abort_handle());
            let ended = work.await;
            drop(guard);
            let message = match ended {
                Ok(()) => Message::Landed(flight),
                // A lane that panicked has ended too, and failed: else it would be planned again at once, for ever.
                Err(error) => Message::Reported(flight, Box::new(panicked(first, &error))),
            };
            let _ = landing.send(message).await;
        });
    }

    /// What the deployment's starts see of it, from now on.
    fn surroundings(&mut self, deployment: &str) -> Surroundings {
        let declared = self.declared.desired.deployments.get(deployment);
        let services = declared.into_iter().flat_map(|declared| declared.services.keys().cloned()).collect();
        let runtimes = self.runtimes.iter().map(|(kind, attached)| (*kind, attached.runtime.clone())).collect();
        let effective = declared.map(|declared| self.effective(declared));
        let observed = self.judged(deployment, effective.as_ref());
        let record = self.record_of(deployment);
        record.observed.send_replace(Arc::new(observed));
        Surroundings { observed: record.observed.subscribe(), services, runtimes }
    }

    pub(super) fn reported(&mut self, flight: FlightId, report: Report) {
        let (wall, at) = self.now();
        let Report { step, outcome, last } = report;
        if last {
            // Nothing more will be done, so that the next plan need not wait for the end of the task.
            self.landed(flight);
        }
        let deployment = deployment_of(&step);
        let record = self.records.entry(deployment.clone()).or_default();
        match outcome {
            Outcome::Now(instance) => {
                record.succeeded(&step.action);
                self.cache.wrote(*instance, wall);
            }
            Outcome::Gone(instance) => {
                record.succeeded(&step.action);
                self.cache.gone(&instance);
            }
            Outcome::Cancelled => {
                tracing::debug!("{}: not wanted any more", step.action);
                self.queue.add(&deployment, at);
                return;
            }
            Outcome::Warned(error) => {
                tracing::warn!("{}: {error}; the start goes on", step.action);
                let message = format!("{}: {error}; the start goes on", step.action);
                self.record_event(Some(&deployment), "InitStepFailed", message);
                self.queue.add(&deployment, at);
                return;
            }
            Outcome::Done => {
                record.succeeded(&step.action);
                if let Action::Teardown { runtime, deployment, .. } = &step.action {
                    self.cache.torn_down(*runtime, deployment);
                    if let Some(removal) = self.removing.get_mut(deployment) {
                        removal.torn_down.insert(*runtime);
                    }
                }
            }
            Outcome::Failed(error) => {
                tracing::warn!("{}: {error}", step.action);
                self.record_event(Some(&deployment), "StepFailed", format!("{}: {error}", step.action));
                let declared =
                    self.declared.desired.deployments.get(&deployment).map(|desired| self.effective(desired));
                let declared = declared.as_ref();
                let service = step.action.instance().map(|id| id.service.as_str());
                let desired = declared.zip(service).and_then(|(declared, service)| declared.services.get(service));
                let record = self.records.entry(deployment.clone()).or_default();
                record.failed(&step.action, desired, &error, wall);
                // With the failure: what is made of it must not depend on when the runtime tells of the end.
                if let Some(left) = &error.left {
                    self.cache.wrote(Instance::clone(left), wall);
                }
                self.queue.add(&deployment, at);
                self.suspect(&step.action, error);
                return;
            }
        }
        match step.action {
            // Nearly always there already; a pull tells of itself.
            Action::EnsureImage { .. } => tracing::debug!("{step}"),
            _ => {
                tracing::info!("{step}");
                self.record_event(Some(&deployment), "StepDone", step.to_string());
            }
        }
        self.queue.add(&deployment, at);
    }

    /// A failed call may mean that what is known of the runtime is not true any more: then it is listed again.
    fn suspect(&mut self, action: &Action, error: RuntimeError) {
        let kind = action.runtime();
        if error.means_unreachable() {
            self.lost(kind, error.message);
            self.list_now(kind);
        } else if error.kind == ErrorKind::NotFound {
            self.list_now(kind);
        }
    }

    pub(super) fn progressed(&mut self, flight: FlightId, words: String) {
        if let Some(deployment) = self.flights.progressed(flight, words) {
            self.queue.add(&deployment, Instant::now());
        }
    }

    pub(super) fn landed(&mut self, flight: FlightId) {
        if let Some(deployment) = self.flights.end(flight) {
            self.queue.add(&deployment, Instant::now());
        }
    }

    /// Forgets a deployment of which nothing is left.
    fn forget_if_gone(&mut self, deployment: &str, desired: Result<&DesiredDeployment, Fate>) {
        let remembers = self.records.get(deployment).is_some_and(|record| !record.history.jobs.is_empty());
        let left = (remembers && self.covers(deployment) && desired != Err(Fate::Kept))
            || self.has_live_sessions(deployment)
            || self.cache.of(deployment).next().is_some()
            || !self.shared(deployment).is_empty()
            || self.flights.any(deployment);
        if left || desired.is_ok() || self.unsure(deployment) {
            return;
        }
        self.board.remove(deployment, Instant::now(), self.cache.len());
        if self.declared.desired.deployments.contains_key(deployment) {
            // Its removal was asked for by name, and its declaration is about to go; until then it stays removed.
            return;
        }
        let removal = self.removing.get(deployment).map(|removal| removal.id);
        let settled = Settled::Deployment { name: deployment.to_owned(), removal };
        if desired == Err(Fate::Removed) && !self.settle(settled) {
            self.queue.add(deployment, Instant::now() + TELL_AGAIN);
            return;
        }
        if !remembers {
            self.records.remove(deployment);
        }
        self.checks.forget(deployment);
        self.scalers.forget(deployment);
        self.forget_use(deployment);
        self.leave_sessions(deployment);
        self.removing.remove(deployment);
        self.queue.remove(deployment);
        self.forget_memory(deployment);
    }

    /// Whether a runtime may still hold something of the deployment: one that was not heard of yet, or that does not
    /// answer and was in use. What is known by its name alone is taken to have run on the default one.
    fn unsure(&self, deployment: &str) -> bool {
        let removed = self.declared.removed.get(deployment);
        let ran_on =
            |kind: &RuntimeKind| removed.map_or(self.default_runtime == *kind, |one| one.runtimes.contains(kind));
        let used = |kind: &RuntimeKind| self.runtimes.contains_key(kind) || ran_on(kind);
        let asked_for = removed.is_some() || self.removing.contains_key(deployment);
        asked_for && self.unreachable.iter().any(|(kind, why)| why == NOT_REACHED_YET || used(kind))
    }
}

/// Ends the task when the one that waits for it is ended.
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Shortest time between two words of progress of one lane; people read no faster, and engines report every chunk.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// What is reported of a lane that ended by a defect of ours, wherever it was.
fn panicked(first: Step, error: &JoinError) -> Report {
    let message = format!("keel failed at it by a defect of its own ({error}); please report it with the log");
    Report { step: first, outcome: Outcome::Failed(RuntimeError::new(ErrorKind::Failed, message)), last: true }
}

/// Between the words of progress of one lane in the log, the first of which are as late after its begin: what is done
/// sooner is told when it is done.
const LOGGED_EVERY: Duration = Duration::from_secs(5);

struct ToCore {
    flight: FlightId,
    messages: mpsc::Sender<Message>,
    told: Mutex<Told>,
}

/// When words of progress were told last.
struct Told {
    to_views: Option<Instant>,
    to_log: Instant,
}

impl Told {
    /// Of a lane that begins now.
    fn from(now: Instant) -> Self {
        Self { to_views: None, to_log: now }
    }

    /// Whether it is time again to tell the views, and the log.
    fn is_due(&mut self, now: Instant) -> (bool, bool) {
        let views = self.to_views.is_none_or(|last| now >= last + PROGRESS_EVERY);
        let log = now >= self.to_log + LOGGED_EVERY;
        if views {
            self.to_views = Some(now);
        }
        if log {
            self.to_log = now;
        }
        (views, log)
    }
}

impl Reporter for ToCore {
    async fn ended(&self, report: Report) {
        // A core that has ended needs no report; the next one lists.
        let _ = self.messages.send(Message::Reported(self.flight, Box::new(report))).await;
    }

    fn progress(&self, step: &Step, progress: &crate::runtime::Progress) {
        let (views, log) = self.told.lock().unwrap_or_else(PoisonError::into_inner).is_due(Instant::now());
        if log {
            tracing::info!("{}: {}", step.action, words(progress));
        }
        if views {
            // Words that find no room are followed by others.
            let _ = self.messages.try_send(Message::Progress(self.flight, words(progress)));
        }
    }
}

/// Progress as people read it: `Downloading 12/40 MiB`.
fn words(progress: &crate::runtime::Progress) -> String {
    let mib = |bytes: u64| bytes >> 20;
    match (progress.current, progress.total) {
        (Some(current), Some(total)) => format!("{} {}/{} MiB", progress.message, mib(current), mib(total)),
        _ => progress.message.clone(),
    }
}

fn deployment_of(step: &Step) -> String {
    match &step.action {
        Action::Teardown { deployment, .. } => deployment.clone(),
        action => action.instance().map(|id| id.deployment.clone()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_to_views_twice_a_second_and_to_the_log_once_it_lasts() {
        let begin = Instant::now();
        let mut told = Told::from(begin);
        let mut at = |millis: u64| told.is_due(begin + Duration::from_millis(millis));
        assert_eq!([at(0), at(499), at(500)], [(true, false), (false, false), (true, false)]);
        assert_eq!(
            [at(4_999), at(5_000), at(9_999), at(10_000)],
            [(true, false), (false, true), (true, false), (false, true)]
        );
    }
}
