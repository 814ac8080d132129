//! The board: how every deployment stands, published at a bounded rate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::core::State;
use crate::status::{DeploymentStatus, RuntimeView, Status};

/// Shortest time between two publications; nobody reads faster.
const PUBLISH_EVERY: Duration = Duration::from_millis(20);

/// Added for every thousand instances, so that assembling the views stays a small share of the time.
const PUBLISH_PER_THOUSAND: Duration = Duration::from_millis(20);

/// How every deployment stands.
pub struct Board {
    deployments: BTreeMap<String, DeploymentStatus>,
    due: Option<Instant>,
    last: Option<Instant>,
    published: watch::Sender<Arc<Status>>,
}

impl Board {
    /// An empty board and where it is published.
    pub fn new() -> (Self, watch::Receiver<Arc<Status>>) {
        let (published, status) = watch::channel(Arc::default());
        (Self { deployments: BTreeMap::new(), due: None, last: None, published }, status)
    }

    /// When the next publication is due.
    pub const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Every deployment on the board.
    pub fn deployments(&self) -> Vec<String> {
        self.deployments.keys().cloned().collect()
    }

    /// Notes how a deployment stands.
    pub fn put(&mut self, deployment: &str, status: DeploymentStatus, now: Instant, instances: usize) {
        if self.deployments.get(deployment) != Some(&status) {
            self.deployments.insert(deployment.to_owned(), status);
            self.touch(now, instances);
        }
    }

    /// What was last said of a service.
    pub fn message_of(&self, deployment: &str, service: &str) -> Option<String> {
        let services = &self.deployments.get(deployment)?.services;
        services.iter().find(|view| view.service == service).map(|view| view.message.clone())
    }

    /// Takes a deployment off the board.
    pub fn remove(&mut self, deployment: &str, now: Instant, instances: usize) {
        if self.deployments.remove(deployment).is_some() {
            self.touch(now, instances);
        }
    }

    /// Something changed: publish at once, or as soon as the last publication is old enough.
    pub fn touch(&mut self, now: Instant, instances: usize) {
        let thousands = u32::try_from(instances / 1000).unwrap_or(u32::MAX);
        let pause = PUBLISH_EVERY + PUBLISH_PER_THOUSAND.saturating_mul(thousands);
        self.due.get_or_insert(self.last.map_or(now, |last| now.max(last + pause)));
    }

    fn publish(&mut self, mut status: Status) {
        self.due = None;
        self.last = Some(Instant::now());
        for deployment in self.deployments.values() {
            status.deployments.push(deployment.view.clone());
            status.services.extend(deployment.services.iter().cloned());
            status.instances.extend(deployment.instances.iter().cloned());
        }
        self.published.send_if_modified(|last| {
            status.generation = last.generation;
            if **last == status {
                return false;
            }
            status.generation += 1;
            *last = Arc::new(std::mem::take(&mut status));
            true
        });
    }
}

impl State {
    pub(super) fn publish_due(&mut self) {
        if self.board.due().is_some_and(|at| at <= Instant::now()) {
            self.publish();
        }
    }

    /// Publishes what is known now.
    pub(super) fn publish(&mut self) {
        let runtimes = self.expected.iter().filter(|kind| self.is_used(**kind)).map(|kind| RuntimeView {
            runtime: *kind,
            default: *kind == self.default_runtime,
            unreachable: self.unreachable.get(kind).cloned(),
        });
        let status = Status {
            synced: self.synced(),
            problems: self.declared.problems.clone(),
            left_out: self.declared.left_out.iter().cloned().collect(),
            hold: self.declared.hold.clone(),
            unwatched: self.declared.unwatched_views(),
            reset: self.declared.reset_view(self.undeleted()),
            runtimes: runtimes.collect(),
            ..Status::default()
        };
        self.board.publish(status);
    }

    /// What runtimes hold and nobody asked to be removed.
    fn undeleted(&self) -> BTreeSet<String> {
        let mut names = self.cache.deployments();
        names.retain(|name| !self.removing.contains_key(name));
        names
    }
}
