//! What is remembered of services that wait for others, from one planning to the next.

use super::core::State;
use crate::plan::{Plan, awaited, dependencies, plan};
use crate::state::{DesiredDeployment, Fate, Instance};

impl State {
    /// Plans a deployment, and remembers what the next planning has to be told: in which order services end, and since when
    /// they wait for each other.
    pub(super) fn plan(
        &mut self,
        deployment: &str,
        desired: Result<&DesiredDeployment, Fate>,
        observed: &[Instance],
    ) -> Plan {
        let declared = self.declared.clone();
        // One whose removal was asked for by name may still be declared.
        let last = declared.desired.deployments.get(deployment).map_or(desired, Ok);
        let order = self.with_input(deployment, last, observed, dependencies);
        self.record_of(deployment).history.dependencies = order;
        let (plan, awaited) = self.with_input(deployment, desired, observed, |input| {
            let plan = plan(input);
            let awaited = awaited(input, &plan);
            (plan, awaited)
        });
        let record = self.record_of(deployment);
        record.history.awaited = awaited;
        for (service, text) in record.new_timeouts(&plan) {
            let message = format!("{deployment}/{service}: {text}");
            tracing::warn!("{message}");
            self.record_event(Some(deployment), "DependencyTimeout", message);
        }
        plan
    }
}
