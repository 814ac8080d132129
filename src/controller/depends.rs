//! What is remembered of services that wait for others, from one planning to the next.

use std::collections::{BTreeMap, BTreeSet};

use super::core::State;
use super::memory::Note;
use crate::plan::{Plan, awaited, dependencies, plan, used_by_waits};
use crate::state::{DesiredDeployment, Fate, Instance};

impl State {
    /// Plans a deployment, and remembers what the next planning has to be told: in which order services end, and since when
    /// they wait for each other, which is a use of what is waited for.
    pub(super) fn plan(
        &mut self,
        deployment: &str,
        desired: Result<&DesiredDeployment, Fate>,
        observed: &[Instance],
    ) -> Plan {
        let declared = self.declared.clone();
        // One whose removal was asked for by name may still be declared.
        let last = declared.desired.deployments.get(deployment).map_or(desired, Ok);
        if let Some(memory) = self.memory.get(deployment)
            && let Some(record) = self.records.get_mut(deployment).filter(|one| one.history.dependencies.is_empty())
        {
            record.history.dependencies = memory.orders.dependencies.clone();
        }
        let order = self.with_input(deployment, last, observed, dependencies);
        self.remember_order_of_end(deployment, &order);
        self.record_of(deployment).history.dependencies = order.clone();
        let (plan, awaited) = self.with_input(deployment, desired, observed, |input| {
            let plan = plan(input);
            let awaited = awaited(input, &plan);
            (plan, awaited)
        });
        let now = self.now().0;
        self.ledger.note_coming(deployment, observed, &used_by_waits(&plan, &order), now);
        let record = self.record_of(deployment);
        record.history.awaited = awaited;
        for (service, text) in record.new_timeouts(&plan) {
            let message = format!("{deployment}/{service}: {text}");
            tracing::warn!("{message}");
            self.record_event(Some(deployment), "DependencyTimeout", message);
        }
        plan
    }

    /// Keeps in which order the services of a deployment end, for a controller that finds them declared no more.
    fn remember_order_of_end(&mut self, deployment: &str, order: &BTreeMap<String, BTreeSet<String>>) {
        let known = self.memory.get(deployment).map(|memory| &memory.orders.dependencies);
        let is_known = known.map_or(order.is_empty(), |known| known == order);
        if is_known || !self.covers(deployment) {
            return;
        }
        let orders = &mut self.memory.entry(deployment.to_owned()).or_default().orders;
        orders.dependencies = order.clone();
        let note = Note::Orders(orders.clone());
        self.keep(deployment, None, note, None);
    }
}
