//! What runtimes tell: that they answer, their full lists, and their events.

use std::sync::Arc;

use tokio::time::Instant;

use super::core::{Attached, State};
use super::lists::Lists;
use super::message::ListCall;
use super::observe;
use crate::execute::Gate;
use crate::runtime::{Listing, Result, Runtime, RuntimeEvent};
use crate::spec::RuntimeKind;

impl State {
    pub(super) fn attached(&mut self, runtime: Arc<dyn Runtime>) {
        runtime.need_images(self.needed_images(runtime.kind()));
        let gate = Arc::new(Gate::new(runtime.concurrency()));
        self.runtimes.insert(runtime.kind(), Attached { gate, lists: Lists::new(), runtime });
    }

    /// A runtime can't be reached: nothing is known of what it runs, and nothing is done about it.
    pub(super) fn lost(&mut self, kind: RuntimeKind, why: String) {
        if self.unreachable.insert(kind, why.clone()).as_ref() != Some(&why) {
            match self.is_used(kind) {
                true => tracing::warn!(runtime = %kind, "{kind} does not answer: {why}"),
                false => tracing::debug!(runtime = %kind, "{kind} does not answer: {why}"),
            }
            self.enqueue_all();
        }
    }

    /// Asks for a full list as soon as possible.
    pub(super) fn list_now(&mut self, kind: RuntimeKind) {
        let now = Instant::now();
        if let Some(attached) = self.runtimes.get_mut(&kind) {
            attached.lists.ask(now);
        }
    }

    pub(super) fn relist(&mut self) {
        let now = Instant::now();
        let began = self.cache.mark();
        for attached in self.runtimes.values_mut() {
            if let Some(number) = attached.lists.begin(now) {
                let call = ListCall { number, began };
                self.lanes.spawn(observe::list(attached.runtime.clone(), call, self.messages.clone()));
            }
        }
    }

    pub(super) fn listed(&mut self, kind: RuntimeKind, call: ListCall, listing: Result<Listing>) {
        let (wall, now) = self.now();
        let Some(attached) = self.runtimes.get_mut(&kind) else { return };
        if !attached.lists.end(call.number) {
            return;
        }
        match listing {
            Ok(listing) => {
                let first = attached.lists.succeeded(now);
                listing.instances.iter().for_each(|instance| self.note_change(instance));
                let (touched, gone) = self.cache.listed(kind, call.began, listing, wall);
                if self.unreachable.remove(&kind).is_some() || first {
                    self.enqueue_all();
                }
                gone.iter().for_each(|instance| self.note_removal(instance));
                for deployment in touched {
                    self.queue.add(&deployment, now);
                }
            }
            Err(error) => {
                attached.lists.failed(now);
                self.lost(kind, error.message);
            }
        }
    }

    pub(super) fn event(&mut self, kind: RuntimeKind, event: RuntimeEvent) {
        let (wall, now) = self.now();
        match event {
            RuntimeEvent::Changed(instance) => {
                let deployment = instance.id.deployment.clone();
                self.note_change(&instance);
                if self.cache.changed(*instance, wall) {
                    self.queue.add(&deployment, now);
                }
            }
            RuntimeEvent::Gone(instance) => {
                if self.cache.gone(&instance) {
                    self.note_removal(&instance);
                    self.queue.add(&instance.id.deployment, now);
                }
            }
            RuntimeEvent::Signalled(instance, signal) => self.note_signal(&instance, signal),
            RuntimeEvent::Mended { deployment, message } => {
                tracing::info!("{deployment}: {message}");
                self.record_event(Some(&deployment), "NetworkMended", message);
            }
            RuntimeEvent::Resync { reason } => {
                tracing::debug!(runtime = %kind, "listing again: {reason}");
                self.list_now(kind);
            }
        }
    }
}
