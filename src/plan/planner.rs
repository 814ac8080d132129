//! The way from an input to a plan.

use std::collections::BTreeSet;

use super::depends::unmet;
use super::draft::Draft;
use super::order::retire_in_order;
use super::replicas::plan_service;
use super::undeclared::plan_undeclared;
use super::wake::awaited_idle;
use super::{Cause, Input, Plan, Unreachable, Wait};
use crate::spec::RuntimeKind;
use crate::state::{DesiredDeployment, Instance, Phase};

/// Decides what to do now for one deployment.
///
/// A pure function: equal inputs give equal plans, and the order of `input.observed` does not matter. The plan
/// holds only what may be done now and in any order; what has to come after that is in the next plan, when its
/// effects were observed. Takes time in the order of n log n for n instances.
pub fn plan(input: &Input<'_>) -> Plan {
    // Another deployment's instances are none of this one's business, whoever hands them over.
    let own = |instance: &&Instance| instance.id.deployment == input.deployment;
    let mut observed: Vec<&Instance> = input.observed.iter().filter(own).collect();
    observed.sort_by(|a, b| (&a.id, a.runtime, &a.runtime_id).cmp(&(&b.id, b.runtime, &b.runtime_id)));

    let mut plan = plan_with(input, &observed);
    let mut awaited = awaited_idle(input, &plan, &observed);
    if awaited.is_empty() {
        return plan;
    }
    // What is woken may wait for something idle in its turn: each turn wakes more, or is the last.
    let mut history = input.history.clone();
    while !awaited.is_empty() {
        history.lives.awaited.extend(awaited);
        let input = Input { history: &history, ..input.clone() };
        plan = plan_with(&input, &observed);
        awaited = awaited_idle(&input, &plan, &observed);
    }
    plan
}

fn plan_with(input: &Input<'_>, observed: &[&Instance]) -> Plan {
    let mut draft = Draft::new(input);
    if input.history.suspended {
        draft.wait(Wait::Suspended { deployment: input.deployment.to_owned() });
        // Nobody lets these run on, and somebody else did not freeze them.
        for one in observed.iter().filter(|one| matches!(one.phase, Phase::Paused { .. })) {
            if let Some(since) = input.history.lives.suspended.get(&one.runtime_id) {
                draft.wait(Wait::IdleSuspended { id: one.id.clone(), since: *since });
            }
        }
        return draft.finish();
    }
    say_what_is_out_of_reach(&mut draft, observed);
    match input.desired {
        Ok(desired) => plan_declared(&mut draft, desired, observed),
        Err(fate) => plan_undeclared(&mut draft, fate, observed),
    }
    draft.finish()
}

fn plan_declared(draft: &mut Draft<'_>, desired: &DesiredDeployment, observed: &[&Instance]) {
    let (helpers, observed): (Vec<&Instance>, Vec<&Instance>) =
        observed.iter().partition(|instance| instance.id.is_helper());
    let observed = observed.as_slice();
    retire_helpers(draft, &helpers, observed);
    let undeclared: Vec<&Instance> =
        observed.iter().filter(|instance| !desired.services.contains_key(&instance.id.service)).copied().collect();
    retire_in_order(draft, &undeclared, &Cause::ServiceRemoved);
    draft.unmet = unmet(draft.input, desired, observed);
    let mut rest = observed;
    for (name, service) in &desired.services {
        let start = rest.partition_point(|instance| instance.id.service < *name);
        let end = rest.partition_point(|instance| instance.id.service <= *name);
        plan_service(draft, service, &rest[start..end]);
        rest = &rest[end..];
    }
}

/// Removes what ran commands before a start and was left over; one whose instance is being made or started is at work.
fn retire_helpers(draft: &mut Draft<'_>, helpers: &[&Instance], observed: &[&Instance]) {
    for helper in helpers {
        let is_at_work = observed.iter().any(|one| one.phase == Phase::Pending && helper.id.helps(&one.id));
        if !is_at_work {
            draft.retire(helper, None, &Cause::InitEnded);
            draft.leftover.push(helper.id.clone());
        }
    }
}

/// Names the runtimes that matter to the deployment and don't answer, and the instances with a step under way.
fn say_what_is_out_of_reach(draft: &mut Draft<'_>, observed: &[&Instance]) {
    let input = draft.input;
    let declared = input.desired.iter().flat_map(|desired| desired.services.values().map(|service| service.runtime));
    let runtimes = observed.iter().map(|instance| instance.runtime).chain(declared);
    let runtimes: BTreeSet<RuntimeKind> = runtimes.chain(input.shared.iter().copied()).collect();
    for (runtime, unreachable) in input.unreachable.iter().filter(|(runtime, _)| runtimes.contains(runtime)) {
        let runtime = *runtime;
        draft.wait(match unreachable.clone() {
            Unreachable::Silent(error) => Wait::RuntimeUnreachable { runtime, error },
            Unreachable::Absent(why) => Wait::RuntimeAbsent { runtime, why },
        });
    }
    for instance in observed.iter().filter(|instance| matches!(instance.phase, Phase::Pending | Phase::Stopping)) {
        draft.wait(Wait::InFlight { id: instance.id.clone() });
    }
}
