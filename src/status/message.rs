//! The one sentence that says most of a deployment or a service.

use chrono::{DateTime, SecondsFormat, Utc};

use super::waits::{self, Severity, severity};
use super::{DeploymentState, Facts, PoolView};
use crate::plan::{Step, Wait};
use crate::state::{Condition, ConditionStatus, DesiredService};

/// The worst thing that is being waited for, and that the declaration is not in force where it is not.
pub(super) fn of_deployment(facts: &Facts<'_>, state: DeploymentState) -> String {
    let known = said(worst(facts.plan.waits.iter()), |wait| named_with_others(facts, wait), || undone(facts, |_| true));
    let said = known.or_else(|| match state {
        DeploymentState::Removing if facts.removing => Some("being deleted".to_owned()),
        DeploymentState::Removing => Some("not declared any more".to_owned()),
        DeploymentState::Kept => facts.kept.map(str::to_owned),
        _ => None,
    });
    let stale = facts.stale.map(|why| format!("runs on its last good version: {why}"));
    let unwatched = facts.unwatched.map(str::to_owned);
    let held = facts.held.map(str::to_owned);
    let services = facts.desired.iter().flat_map(|desired| desired.services.values());
    let down = services.filter_map(|service| Some(format!("{}: {}", service.name, kept_down(facts, service)?)));
    unwatched.into_iter().chain(held).chain(stale).chain(said).chain(down).collect::<Vec<_>>().join("; ")
}

/// What of a service is down and comes back only when somebody starts it, and with which command.
pub(super) fn kept_down(facts: &Facts<'_>, service: &DesiredService) -> Option<String> {
    let mut waits = facts.plan.waits.iter().filter(|wait| waits::is_about(wait, service));
    waits.find(|wait| waits::is_kept_down(wait)).map(|wait| rest(facts, wait, service))
}

/// The worst thing that is being waited for, else the worst of its conditions.
pub(super) fn of_service(
    facts: &Facts<'_>,
    service: &DesiredService,
    conditions: &[Condition],
    pool: Option<&PoolView>,
) -> String {
    let mine = |wait: &&Wait| waits::is_about(wait, service);
    let acts_on = |step: &Step| step.action.instance().is_some_and(|id| id.service == service.name);
    let rests = || facts.plan.waits.iter().filter(mine).find(|wait| waits::is_rest(wait));
    said(worst(facts.plan.waits.iter().filter(mine)), Wait::of_itself, || undone(facts, acts_on))
        .or_else(|| rests().map(|wait| rest(facts, wait, service)))
        .or_else(|| trouble(conditions))
        .or_else(|| pool.map(PoolView::summary))
        .unwrap_or_default()
}

/// The worst that is waited for, in these words, else what nobody does; that goes first where the worst is that something is
/// not known.
fn said(
    worst: Option<&Wait>,
    words: impl Fn(&Wait) -> String,
    undone: impl FnOnce() -> Option<String>,
) -> Option<String> {
    match worst {
        Some(wait) if severity(wait) == Severity::Unchecked => undone().or_else(|| Some(words(wait))),
        Some(wait) => Some(words(wait)),
        None => undone(),
    }
}

/// The worst of these waits; that something is being worked on goes without saying.
fn worst<'a>(waits: impl Iterator<Item = &'a Wait>) -> Option<&'a Wait> {
    let telling = |wait: &&Wait| severity(wait) > Severity::Fine && !matches!(wait, Wait::InFlight { .. });
    waits.filter(telling).max_by_key(|wait| severity(wait))
}

/// What is waited for. Of jobs that failed, each is named: none of them says anything of another.
fn named_with_others(facts: &Facts<'_>, worst: &Wait) -> String {
    if !matches!(worst, Wait::JobFailed { .. }) {
        return named(worst);
    }
    let failed = facts.plan.waits.iter().filter(|wait| matches!(wait, Wait::JobFailed { .. }));
    let failed = failed.filter(|wait| severity(wait) == severity(worst));
    failed.map(named).collect::<Vec<_>>().join("; ")
}

/// What is waited for, with the name of the service that it is about.
fn named(wait: &Wait) -> String {
    match wait {
        Wait::JobFailed { service, .. } => format!("{service} {}", wait.of_itself()),
        _ => wait.to_string(),
    }
}

/// Why a service is down or frozen on purpose, and what ends that.
fn rest(facts: &Facts<'_>, wait: &Wait, service: &DesiredService) -> String {
    let resting = facts.plan.waits.iter().filter(|other| waits::is_about(other, service) && waits::is_rest(other));
    let is_alone = service.replicas > 1 && resting.count() == 1;
    let name = wait.instance().map_or_else(String::new, |id| match is_alone {
        true => id.name(),
        false => id.service_name().to_string(),
    });
    let time = |at: &DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Secs, true);
    match wait {
        Wait::Idle { since, .. } => format!("idle since {}, `keel start {name}` wakes it", time(since)),
        Wait::IdleSuspended { since, .. } => {
            format!("suspended, idle since {}, `keel start {name}` wakes it", time(since))
        }
        Wait::StopAsked { .. } => format!("stopped, `keel start {name}` starts it"),
        Wait::Terminated { .. } => {
            format!("terminated, as it reached lifecycle.max_lifetime, `keel start {name}` starts it")
        }
        wait => wait.to_string(),
    }
}

/// What is to be done and nobody does.
fn undone(facts: &Facts<'_>, mine: impl Fn(&Step) -> bool) -> Option<String> {
    let step = facts.plan.steps().find(|step| mine(step)).filter(|_| !facts.acting && facts.unwatched.is_none())?;
    let other = match facts.desired {
        Ok(_) => "apply".to_owned(),
        Err(_) => format!("delete {}", facts.deployment),
    };
    Some(format!("no controller runs; `keel run` or `keel {other}` would next {step}"))
}

/// The worst condition of a service that is not as somebody would wish.
fn trouble(conditions: &[Condition]) -> Option<String> {
    let is_false =
        |condition: &&Condition, kind: &str| condition.kind == kind && condition.status == ConditionStatus::False;
    let lacking = conditions.iter().find(|condition| is_false(condition, "Available"));
    let stopped =
        conditions.iter().find(|condition| is_false(condition, "Progressing") && condition.reason == "Stopped");
    if let (Some(lacking), Some(stopped)) = (lacking, stopped) {
        return Some(format!("{}; {}", lacking.message, stopped.message));
    }
    let rank = |condition: &Condition| match (condition.kind.as_str(), condition.status == ConditionStatus::True) {
        ("Available", false) => Some(0),
        ("Progressing" | "LastRunFailed", true) => Some(1),
        ("Available" | "Progressing" | "Complete", _) | (_, false) => None,
        ("UnsupportedField" | "CorrectedField" | "SharedStorage", true) => Some(3),
        (_, true) => Some(2),
    };
    let ranked = conditions.iter().filter_map(|condition| Some((rank(condition)?, condition)));
    let (_, condition) = ranked.min_by_key(|(rank, _)| *rank)?;
    Some(match condition.kind.as_str() {
        "Available" | "Progressing" | "LastRunFailed" => condition.message.clone(),
        // The cause, which may take several sentences, is with the condition.
        kind @ "Degraded" => format!("{kind}: {}", condition.message.split(": ").next().unwrap_or_default()),
        kind => format!("{kind}: {}", condition.message),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use chrono::DateTime;

    use super::*;
    use crate::controller::desired;
    use crate::plan::{JobStates, Plan};
    use crate::spec::{RuntimeKind, merge, parse};
    use crate::state::{DesiredDeployment, Exit, InstanceId, RunEnd};
    use crate::status::views;

    static NO_JOBS: JobStates = JobStates::new();

    static NO_POOLS: BTreeMap<String, crate::status::PoolFacts> = BTreeMap::new();

    fn declared(fields: &str) -> DesiredDeployment {
        let text = format!(
            "version: v1\ndeployment: demo\nservices: {{web: {{image: {{name: host}}{fields}}}, db: {{image: {{name: host}}}}}}\n"
        );
        let merged = merge(&[(PathBuf::from("/specs/demo.yaml"), parse(&text))]);
        assert_eq!(merged.problems, []);
        desired(&merged.deployments["demo"], RuntimeKind::Sim)
    }

    /// Messages of the services `db` and `web`.
    fn messages(fields: &str, waits: Vec<Wait>) -> Vec<String> {
        let (desired, unsupported, progress) = (declared(fields), BTreeMap::new(), BTreeMap::new());
        let plan = Plan { waits, ..Plan::default() };
        let facts = facts(&desired, &plan, &unsupported, &progress);
        views(&facts).services.into_iter().map(|view| view.message).collect()
    }

    fn facts<'a>(
        desired: &'a DesiredDeployment,
        plan: &'a Plan,
        unsupported: &'a BTreeMap<String, Vec<Condition>>,
        progress: &'a BTreeMap<InstanceId, String>,
    ) -> Facts<'a> {
        Facts {
            deployment: "demo",
            desired: Ok(desired),
            observed: &[],
            unsupported,
            plan,
            jobs: &NO_JOBS,
            pools: &NO_POOLS,
            acting: true,
            working: false,
            stale: None,
            kept: None,
            unwatched: None,
            held: None,
            progress,
            removing: false,
        }
    }

    fn web() -> InstanceId {
        let revision = declared("").services["web"].revision.clone();
        InstanceId { deployment: "demo".into(), service: "web".into(), slot: 0, revision, attempt: 0, run: None }
    }

    #[test]
    fn a_service_says_what_it_waits_for_and_nothing_of_another() {
        let ready = Wait::NotReady { id: web(), check: None, until: None };
        let lacking = "0 of 1 replicas are ready, 1 are needed";
        assert_eq!(messages("", vec![ready.clone()]), [lacking, &ready.to_string()]);
        let under_way = Wait::InFlight { id: web() };
        assert_eq!(messages("", vec![under_way]), [lacking, lacking]);
        let silent = Wait::RuntimeUnreachable { runtime: RuntimeKind::Sim, error: "gone".into() };
        assert_eq!(messages("", vec![ready, silent.clone()]), [silent.to_string(), silent.to_string()]);
    }

    #[test]
    fn a_service_that_its_policy_keeps_down_says_why() {
        let lacking = "0 of 1 replicas are ready, 1 are needed";
        let exit = Exit::from_code(0, None, DateTime::UNIX_EPOCH);
        let ended = Wait::Ended { id: web(), exit };
        assert_eq!(messages("", vec![ended.clone()]), [lacking, &format!("{lacking}; {ended}")]);
        let since = DateTime::UNIX_EPOCH;
        for (wait, said) in [
            (
                Wait::Terminated { id: web() },
                "terminated, as it reached lifecycle.max_lifetime, `keel start demo/web` starts it",
            ),
            (Wait::Idle { id: web(), since }, "idle since 1970-01-01T00:00:00Z, `keel start demo/web` wakes it"),
            (
                Wait::IdleSuspended { id: web(), since },
                "suspended, idle since 1970-01-01T00:00:00Z, `keel start demo/web` wakes it",
            ),
            (Wait::StopAsked { id: web() }, "stopped, `keel start demo/web` starts it"),
        ] {
            assert_eq!(messages("", vec![wait]), [lacking, said]);
        }
    }

    #[test]
    fn a_job_that_failed_says_how_and_its_deployment_of_which_one() {
        let (desired, unsupported, progress) = (declared(", rtype: job"), BTreeMap::new(), BTreeMap::new());
        for (limit, how) in
            [(0, "failed: exited 3"), (2, "failed: exited 3, and 2 retries (job.backoff_limit) are used up")]
        {
            let end = RunEnd::Failed { index: 0, exit: Exit::from_code(3, None, DateTime::UNIX_EPOCH) };
            let plan = Plan { waits: vec![Wait::JobFailed { service: "web".into(), end, limit }], ..Plan::default() };
            let views = views(&facts(&desired, &plan, &unsupported, &progress));
            assert_eq!((views.services[1].message.as_str(), views.view.message), (how, format!("web {how}")));
        }
        let failed = |service: &str| {
            let end = RunEnd::Failed { index: 0, exit: Exit::from_code(3, None, DateTime::UNIX_EPOCH) };
            Wait::JobFailed { service: service.into(), end, limit: 0 }
        };
        let plan = Plan { waits: vec![failed("web"), failed("work")], ..Plan::default() };
        let message = views(&facts(&desired, &plan, &unsupported, &progress)).view.message;
        assert_eq!(message, "web failed: exited 3; work failed: exited 3");
    }

    #[test]
    fn a_crash_that_its_policy_leaves_makes_the_deployment_fail_and_a_success_does_not() {
        let state = |code: i32| {
            let exit = Exit::from_code(code, None, DateTime::UNIX_EPOCH);
            let (desired, unsupported, progress) = (declared(""), BTreeMap::new(), BTreeMap::new());
            let plan = Plan { waits: vec![Wait::Ended { id: web(), exit }], ..Plan::default() };
            views(&facts(&desired, &plan, &unsupported, &progress)).view.state
        };
        assert_eq!([0, 3].map(state), [DeploymentState::Running, DeploymentState::Failed]);
    }

    #[test]
    fn a_service_without_trouble_says_which_field_has_no_effect_or_nothing() {
        let none = ", scale: {mode: fixed, replicas: 0}";
        assert_eq!(messages(none, Vec::new())[1], "");
        let session = format!("{none}, session: {{idle_timeout: 1m}}");
        assert_eq!(
            messages(&session, Vec::new())[1],
            "UnsupportedField: session: only a pool has sessions; write `pool: {}`"
        );
    }

    #[test]
    fn the_worst_condition_is_the_one_that_is_said() {
        let unsupported = Condition::holds("UnsupportedField", "NotHonoured", "init: not run");
        let degraded = Condition::holds("Degraded", "NotIsolated", "a plain process: no namespaces; make some: so");
        let complete = Condition::fails("Progressing", "Complete", "3 of 3");
        let rolling = Condition::holds("Progressing", "RollingOut", "1 of 3");
        let all = [complete, unsupported, degraded];
        assert_eq!(trouble(&all).as_deref(), Some("Degraded: a plain process"));
        assert_eq!(trouble(&[all[1].clone(), rolling]).as_deref(), Some("1 of 3"));
        assert_eq!(trouble(&[Condition::holds("Available", "EnoughReplicas", "3 of 3")]), None);
    }
}
