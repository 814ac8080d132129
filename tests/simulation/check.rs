//! The judge of a story: where it ends, and everything that happened on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::DateTime;
use evenkeel::runtime::sim::{Change, Method, What};
use evenkeel::state::{Instance, Phase, ServiceName, StopCause};
use evenkeel::status::DeploymentState;
use tokio::time::sleep;

use crate::ledger::Ledger;
use crate::shop::{DEADLINE, Wanted, Wants, is_bad};
use crate::stage::{Chronicle, Stage, owner};
use crate::story::Strangers;

/// Longest time to converge once nothing goes wrong any more: the longest back-off and the pause between full lists
/// (5 minutes and a tenth each) one after the other, twice.
const PATIENCE: chrono::Duration = chrono::Duration::minutes(25);

/// How long nothing may be done once all is as declared.
const QUIET: Duration = Duration::from_secs(1_800);

/// Longest time until the next full list tells what no event did: five minutes and a tenth, and the call itself.
pub const NEXT_LIST: chrono::Duration = chrono::Duration::seconds(360);

/// Full lists in that time: one every five minutes.
const QUIET_LISTS: u64 = 7;

/// What is noted of a service that stays with an earlier revision.
pub const ROLLED_BACK: &str = "was rolled back";

/// Waits until what exists is exactly what is declared.
pub async fn converges(stage: &mut Stage) -> Result<(), String> {
    let deadline = stage.now() + PATIENCE;
    loop {
        sleep(Duration::from_secs(5)).await;
        stage.declare_if_forgotten();
        let Err(problem) = is_as_declared(stage).and_then(|()| is_told(stage)) else { break };
        if stage.now() > deadline {
            let status = serde_json::to_string_pretty(&*stage.status()).expect("JSON");
            return Err(format!("not converged within {PATIENCE}: {problem}\n{status}"));
        }
    }
    for service in stage.wanted().keys().filter(|service| is_rolled_back(stage, service)) {
        stage.note(format!("{service} {ROLLED_BACK}"));
    }
    stage.note("all is as declared");
    Ok(())
}

fn is_as_declared(stage: &Stage) -> Result<(), String> {
    let wants = stage.wanted();
    let mut by_service: BTreeMap<ServiceName, Vec<Instance>> = BTreeMap::new();
    for (_, instance) in stage.world.instances().into_iter().filter(|(of, _)| *of == owner()) {
        by_service.entry(instance.id.service_name()).or_default().push(instance);
    }
    for (service, instances) in &by_service {
        let Some(wanted) = wants.get(service) else {
            return Err(format!("{service} is not declared and has {} instances", instances.len()));
        };
        let leads = leads(stage, service, wanted)?;
        slots_are_right(wanted, &leads, instances).map_err(|problem| format!("{service}: {problem}"))?;
    }
    for (service, wanted) in &wants {
        if wanted.replicas > 0 && !by_service.contains_key(service) {
            return Err(format!("{service} has no instances"));
        }
    }
    let declared: BTreeSet<&String> = wants.keys().map(|service| &service.deployment).collect();
    let networks = stage.world.networks();
    let left = networks.iter().find(|(of, name)| *of == owner() && !declared.contains(name));
    left.map_or(Ok(()), |(_, name)| Err(format!("the network of {name} is left")))
}

/// The revision that a service is to come to: the declared one, a restart of it, or the one that it was rolled back to.
fn leads(stage: &Stage, service: &ServiceName, wanted: &Wanted) -> Result<String, String> {
    let Some(history) = stage.notes.of(service) else { return Ok(wanted.revision.clone()) };
    let leads = history.rollout.as_ref().map_or_else(|| wanted.revision.clone(), |one| one.revision.to_string());
    let is_told = leads == wanted.revision || history.pin.is_some() || history.restart.is_some();
    if !is_told || history.pause.is_some() {
        return Err(format!("{service} leads to {leads}, {} is declared: {history:?}", wanted.revision));
    }
    Ok(leads)
}

fn is_rolled_back(stage: &Stage, service: &ServiceName) -> bool {
    stage.notes.of(service).is_some_and(|history| history.pin.is_some())
}

/// What was rolled back was bad, or something happened within its deadline that explains why it did not come to run.
pub fn rollbacks(stage: &Stage, lag: chrono::Duration) -> Result<(), String> {
    for service in stage.wanted().keys() {
        let Some(history) = stage.notes.of(service) else { continue };
        let Some(pin) = history.pin.as_ref().filter(|pin| pin.failure.is_some()) else { continue };
        let was_bad = history.known(&pin.from).is_none_or(|known| is_bad(&known.spec.image.name.to_string()));
        let within = pin.since - DEADLINE - lag..=pin.since;
        let chronicle = &stage.chronicle;
        let excused = chronicle.troubles.iter().chain(&chronicle.crashes).any(|at| within.contains(at));
        if !was_bad && !excused {
            return Err(format!("{service} was rolled back for no reason: {pin:?}"));
        }
    }
    Ok(())
}

/// Each slot has exactly one ready instance of the revision that is to run and at most one dead one, of that or of the declared
/// one, where that was rolled back.
fn slots_are_right(wanted: &Wanted, leads: &str, instances: &[Instance]) -> Result<(), String> {
    let mut ready = BTreeMap::<u32, u32>::new();
    let mut dead = BTreeMap::<u32, u32>::new();
    for instance in instances {
        let name = instance.id.runtime_name();
        let revision = instance.id.revision.to_string();
        let tells_why = revision == wanted.revision && matches!(instance.phase, Phase::Exited(_));
        if revision != leads && !tells_why {
            return Err(format!("{name} is outdated and {}", instance.phase.name()));
        }
        if instance.id.slot >= wanted.replicas {
            return Err(format!("{name} is beyond {} replicas and {}", wanted.replicas, instance.phase.name()));
        }
        match &instance.phase {
            Phase::Running { ready: true, .. } => *ready.entry(instance.id.slot).or_default() += 1,
            Phase::Exited(_) => *dead.entry(instance.id.slot).or_default() += 1,
            phase => return Err(format!("{name} is {}", phase.name())),
        }
    }
    let slots: Vec<u32> = (0..wanted.replicas).collect();
    if ready.keys().copied().collect::<Vec<_>>() != slots || ready.values().any(|count| *count != 1) {
        return Err(format!("ready by slot: {ready:?}, wanted one in each of {}", wanted.replicas));
    }
    if dead.values().any(|count| *count > 1) {
        return Err(format!("dead ones by slot: {dead:?}"));
    }
    Ok(())
}

/// The status says that all is well.
fn is_told(stage: &Stage) -> Result<(), String> {
    let (status, wants) = (stage.status(), stage.wanted());
    let state = |name: &String| match wants.keys().any(|one| one.deployment == *name && is_rolled_back(stage, one)) {
        true => DeploymentState::Failed,
        false => DeploymentState::Running,
    };
    if let Some(deployment) = status.deployments.iter().find(|view| view.state != state(&view.deployment)) {
        return Err(format!("the status does not say that all is well: {deployment:?}"));
    }
    let told = |(name, wanted): (&ServiceName, &Wanted)| {
        let view =
            status.services.iter().find(|view| view.deployment == name.deployment && view.service == name.service);
        view.is_some_and(|view| {
            let rolled_back = is_rolled_back(stage, name);
            let leads = leads(stage, name, wanted).unwrap_or_default();
            [view.desired, view.running, view.ready] == [wanted.replicas; 3]
                && (rolled_back || (view.updated == wanted.replicas && view.revision == leads))
                && view.conditions.iter().any(|condition| condition.kind == "RolledBack") == rolled_back
        })
    };
    if status.services.len() != wants.len() || !wants.iter().all(told) {
        return Err(format!("the status does not say that all is well: {:?}", status.services));
    }
    Ok(())
}

/// Nothing is done while nothing changes.
pub async fn is_quiet(stage: &mut Stage) -> Result<(), String> {
    // What is told late or twice is dealt with first.
    sleep(Duration::from_secs(30)).await;
    let (calls, changes, status) = (stage.world.calls(), stage.world.changes().len(), stage.status());
    sleep(QUIET).await;
    let mut after = stage.world.calls();
    let lists = after.get(&Method::List).copied().unwrap_or_default();
    let before = calls.get(&Method::List).copied().unwrap_or_default();
    if lists - before > QUIET_LISTS {
        return Err(format!("{} lists in {QUIET:?} in which nothing changed", lists - before));
    }
    after.insert(Method::List, before);
    // Health is checked for ever.
    after.extend(calls.get(&Method::Dial).map(|dials| (Method::Dial, *dials)));
    if after != calls || stage.world.changes().len() != changes {
        return Err(format!("something was done while nothing changed: {calls:?} became {after:?}"));
    }
    if stage.status().generation != status.generation {
        return Err("the status changed while nothing else did".to_owned());
    }
    Ok(())
}

/// What belongs to others is as it was.
pub fn strangers(stage: &Stage, strangers: &Strangers) -> Result<(), String> {
    let theirs = stage.world.instances().into_iter().filter(|(of, _)| *of == strangers.owner);
    let alive = theirs.filter(|(_, instance)| instance.phase.is_ready()).count();
    let touched = |change: &Change| matches!(change.what, What::StopAsked(_) | What::Removed { .. });
    let changes = stage.world.changes();
    if let Some(change) = changes.iter().find(|change| change.owner == strangers.owner && touched(change)) {
        return Err(format!("a stranger's instance was touched: {change:?}"));
    }
    if alive != strangers.instances {
        return Err(format!("{alive} of the stranger's {} instances are left", strangers.instances));
    }
    if !stage.world.foreign().contains(&strangers.foreign) {
        return Err(format!("{} is gone", strangers.foreign));
    }
    match stage.world.trespasses() {
        0 => Ok(()),
        count => Err(format!("{count} calls named a stranger's instance")),
    }
}

/// How far what happens may lie behind what was decided.
#[derive(Debug, Clone, Copy)]
pub struct Slack {
    /// How long after its decision a call may have its effect.
    pub lag: chrono::Duration,
    /// How long the controller may not know what became of an instance, where events are lost.
    pub unheard: chrono::Duration,
    /// Whether calls of a controller that crashed may have their effect under the next one, which can't know.
    pub outlives: bool,
}

/// Every single thing that the controller did was allowed at its time.
pub fn history(stage: &Stage, Slack { lag, unheard, outlives }: Slack) -> Result<(), String> {
    let mut ledger = Ledger::default();
    let chronicle = &stage.chronicle;
    if stage.world.forgotten_changes() > 0 {
        return Err("the story is too long to be judged".to_owned());
    }
    let changes: Vec<Change> = stage.world.changes().into_iter().filter(|change| change.owner == owner()).collect();
    let mut crashes = chronicle.crashes.iter().peekable();
    for change in &changes {
        while crashes.next_if(|crash| **crash <= change.at).is_some() {
            ledger.give_up_stops();
        }
        let wanted = wanted_around(chronicle, change, lag);
        let late = outlives && chronicle.crashes.iter().any(|crash| (*crash..*crash + lag).contains(&change.at));
        let furnished = chronicle.unsynced.first().is_none_or(|(began, _)| change.at <= *began);
        let led = stage.notes.led(&change.id.service_name(), change.at - lag, change.at);
        let is_known = ledger.is_known_to_serve(&change.runtime_id, change.at - unheard);
        judge(&ledger, change, (&wanted, &led, is_known), late || furnished, chronicle).map_err(|problem| {
            let name = change.id.runtime_name();
            format!(
                "{} {name} {:?} {:?}: {problem}\nwanted {wanted:?}\n{}",
                change.at,
                change.what,
                change.counts,
                before(&changes, change)
            )
        })?;
        ledger.take(change);
    }
    Ok(())
}

/// The last changes of a service up to this one.
fn before(changes: &[Change], last: &Change) -> String {
    let same = changes.iter().take_while(|change| !std::ptr::eq(*change, last));
    let same = same.filter(|change| change.id.service_name() == last.id.service_name());
    let lines: Vec<String> = same
        .map(|change| format!("{} {} {:?} {:?}", change.at, change.id.runtime_name(), change.what, change.counts))
        .collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// What was wanted of a change's service at its time and within the lag before.
fn wanted_around(chronicle: &Chronicle, change: &Change, lag: chrono::Duration) -> Vec<Option<Wanted>> {
    let service = change.id.service_name();
    let from = change.at.checked_sub_signed(lag).unwrap_or(DateTime::UNIX_EPOCH);
    let began = chronicle.wants.iter().rposition(|(at, _)| *at <= from).unwrap_or(0);
    let wants = chronicle.wants[began..].iter().take_while(|(at, _)| *at <= change.at);
    let of = |wants: &Wants| wants.get(&service).cloned();
    wants.map(|(_, wants)| of(wants)).collect()
}

/// Whether an instance of what is not declared any more was checked when it was: a service that is paused or was rolled back
/// has its earlier revision checked as that was declared.
fn was_checked(wanted: &[Option<Wanted>], change: &Change, chronicle: &Chronicle) -> bool {
    let revision = change.id.revision.to_string();
    let service = change.id.service_name();
    let before = chronicle.wants.iter().take_while(|(at, _)| *at <= change.at);
    let mut as_declared = before.filter_map(|(_, wants)| wants.get(&service)).filter(|one| one.revision == revision);
    wanted.iter().flatten().all(|one| one.revision != revision) && as_declared.any(|one| one.checked)
}

fn judge(
    ledger: &Ledger,
    change: &Change,
    (wanted, led, is_known): (&[Option<Wanted>], &[String], bool),
    excused: bool,
    chronicle: &Chronicle,
) -> Result<(), String> {
    let retires = ledger.runs(&change.runtime_id)
        && matches!(change.what, What::StopAsked(_) | What::Removed { running: true, asked: true });
    if change.what == What::StopAsked(StopCause::Unhealthy) {
        let checked = wanted.iter().flatten().any(|wanted| wanted.checked) || was_checked(wanted, change, chronicle);
        return if checked { Ok(()) } else { Err("it was ended for being unhealthy and nothing checks it".to_owned()) };
    }
    if retires {
        let unsynced = |(from, to): &(_, _)| *from < change.at && change.at < *to;
        if chronicle.unsynced.iter().any(unsynced) && !excused {
            return Err("it was retired before the source was synced".to_owned());
        }
        if !wanted.iter().any(|wanted| may_go(ledger, change, wanted.as_ref(), led)) {
            return Err("it was retired and nothing of it had changed".to_owned());
        }
    }
    if retires && is_known && !excused {
        let floor = |wanted: &Option<Wanted>| {
            wanted.as_ref().map_or(0, |wanted| wanted.replicas.saturating_sub(wanted.unavailable))
        };
        let floor = wanted.iter().map(floor).min().unwrap_or(0);
        let service = change.id.service_name();
        let (left, debts) = (ledger.serving(&service) - 1, ledger.debts(&service));
        if left + debts < floor {
            return Err(format!("{left} are left to serve, {debts} more crashed, and {floor} have to be"));
        }
    }
    if change.what == What::Created && !excused {
        let ceiling = |wanted: &Option<Wanted>| wanted.as_ref().map_or(0, |wanted| wanted.replicas + wanted.surge);
        let ceiling = wanted.iter().map(ceiling).max();
        if ceiling.is_some_and(|ceiling| change.counts.live > ceiling) {
            return Err(format!("{} live, and {ceiling:?} may", change.counts.live));
        }
    }
    Ok(())
}

/// Whether one declaration lets an instance go.
fn may_go(ledger: &Ledger, change: &Change, wanted: Option<&Wanted>, led: &[String]) -> bool {
    let Some(wanted) = wanted else { return true };
    let revision = change.id.revision.to_string();
    let outdated = match led {
        [] => revision != wanted.revision,
        led => led.iter().any(|led| *led != revision),
    };
    change.id.slot >= wanted.replicas || outdated || ledger.has_double(&change.runtime_id)
}
