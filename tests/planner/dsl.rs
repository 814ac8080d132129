//! A small language for snapshots: what is declared, what was observed, and the plan that follows, as text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use evenkeel::plan::{
    Action, Failure, Forecast, History, Input, Lane, Plan, Stopped, Unreachable, check, forecast, plan,
};
use evenkeel::spec::{Prune, Revision, RuntimeKind, ServiceSpec};
use evenkeel::state::{
    DesiredDeployment, DesiredService, EndedBy, ErrorKind, Exit, Fate, HealthState, Instance, InstanceId, Phase, RunId,
    SourceRef, StopCause, Volumes,
};

/// Noon of the first day of 2026: the time at which every snapshot is taken.
pub fn now() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 1, 1, 12, 0, 0).single().expect("a time")
}

pub fn ago(seconds: i64) -> DateTime<Utc> {
    now() - TimeDelta::seconds(seconds)
}

/// The revision whose hex digits are all that letter.
pub fn revision(letter: char) -> Revision {
    format!("v1-{}", letter.to_string().repeat(16)).parse().expect("a revision")
}

/// A service `web` with the fields written as YAML; the image is `nginx` unless they name one.
pub fn spec(fields: &str) -> ServiceSpec {
    let image = if fields.contains("image:") { "" } else { "image: {name: nginx}\n" };
    serde_yaml::from_str(&format!("{image}{fields}")).expect("a service")
}

/// One snapshot; the deployment is `demo`, the runtime `docker` unless said otherwise.
#[derive(Clone)]
pub struct Snapshot {
    pub desired: Result<DesiredDeployment, Fate>,
    pub observed: Vec<Instance>,
    pub shared: BTreeSet<RuntimeKind>,
    pub unreachable: BTreeMap<RuntimeKind, Unreachable>,
    pub history: History,
    pub volumes: Volumes,
    pub now: DateTime<Utc>,
}

impl std::fmt::Debug for Snapshot {
    /// Short enough to read after a failure.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.desired {
            Err(fate) => writeln!(f, "{fate:?} at {}", self.now)?,
            Ok(desired) => {
                for DesiredService { name, spec, revision, runtime, replicas, .. } in desired.services.values() {
                    writeln!(f, "{name} x {replicas} {} on {runtime} at {}", revision.short(), self.now)?;
                    write!(f, "{}", serde_yaml::to_string(spec).unwrap_or_default())?;
                }
            }
        }
        for Instance { id, runtime, phase, restarts, streak, .. } in &self.observed {
            let letter = &id.revision.short()[..1];
            let name = format!("{}/{} {letter}{}", id.service, id.slot, id.attempt);
            writeln!(f, "  {name} on {runtime} restarts {restarts} streak {streak}: {phase:?}")?;
        }
        writeln!(f, "  unreachable {:?}, failures {:?}", self.unreachable, self.history.failures)
    }
}

impl Snapshot {
    pub fn undeclared(fate: Fate) -> Self {
        Self {
            desired: Err(fate),
            observed: Vec::new(),
            shared: BTreeSet::new(),
            unreachable: BTreeMap::new(),
            history: History::default(),
            volumes: Volumes::Keep,
            now: now(),
        }
    }

    pub fn declared() -> Self {
        let desired = DesiredDeployment {
            name: "demo".into(),
            source: source(1),
            prune: Prune::Auto,
            services: BTreeMap::new(),
            unsupported: Default::default(),
        };
        Self { desired: Ok(desired), ..Self::undeclared(Fate::Kept) }
    }

    pub fn service(mut self, name: &str, letter: char, replicas: u32, fields: &str) -> Self {
        let service = DesiredService {
            name: name.into(),
            spec: Arc::new(spec(fields)),
            revision: revision(letter),
            equivalent: None,
            source: source(3),
            runtime: RuntimeKind::Docker,
            replicas,
            standing: Default::default(),
        };
        self.desired.as_mut().expect("declared").services.insert(name.into(), service);
        self
    }

    /// Lets the service's template have another revision on its runtime.
    pub fn equivalent_to(mut self, name: &str, letter: char) -> Self {
        self.desired.as_mut().expect("declared").services.get_mut(name).expect("the service").equivalent =
            Some(revision(letter));
        self
    }

    pub fn runs_on(mut self, name: &str, runtime: RuntimeKind) -> Self {
        self.desired.as_mut().expect("declared").services.get_mut(name).expect("the service").runtime = runtime;
        self
    }

    pub fn with(mut self, observed: impl IntoIterator<Item = Instance>) -> Self {
        self.observed.extend(observed);
        self
    }

    /// Somebody asked that these slots of `web` stay down while it is made from this template; all of them where there is none.
    pub fn stopped(mut self, letter: char, slots: &[u32]) -> Self {
        let slots = (!slots.is_empty()).then(|| slots.iter().copied().collect());
        self.history.lives.orders.stopped.insert("web".into(), Stopped { of: revision(letter), slots });
        self
    }

    /// Somebody asked that these instances of `web` be brought back.
    pub fn started(mut self, instances: &[Instance]) -> Self {
        self.history.lives.orders.started.extend(instances.iter().map(|one| one.runtime_id.clone()));
        self
    }

    /// The slot of `web` is held until then.
    pub fn held(mut self, slot: u32, seconds_ahead: i64) -> Self {
        let holds = self.history.lives.orders.holds.entry("web".into()).or_default();
        holds.insert(slot, ago(-seconds_ahead));
        self
    }

    /// A step that stops this instance, or lets it run on, is under way.
    pub fn kept_under_way(mut self, instance: &Instance) -> Self {
        self.history.kept_under_way.insert(instance.id.clone());
        self
    }

    /// These instances were suspended for idleness a minute ago.
    pub fn suspended(mut self, instances: &[Instance]) -> Self {
        self.history.lives.suspended.extend(instances.iter().map(|one| (one.runtime_id.clone(), ago(60))));
        self
    }

    pub fn sharing(mut self, runtime: RuntimeKind) -> Self {
        self.shared.insert(runtime);
        self
    }

    pub fn unreachable(mut self, runtime: RuntimeKind) -> Self {
        self.unreachable.insert(runtime, Unreachable::Silent("connection refused".into()));
        self
    }

    pub fn absent(mut self, runtime: RuntimeKind) -> Self {
        self.unreachable.insert(runtime, Unreachable::Absent("there is none here".into()));
        self
    }

    pub fn failed(mut self, slot: u32, letter: char, count: u32, seconds_ago: i64, retryable: bool) -> Self {
        let failure = Failure {
            revision: revision(letter),
            count,
            at: ago(seconds_ago),
            kind: if retryable { ErrorKind::Failed } else { ErrorKind::Rejected },
            retryable,
            message: "no space left".into(),
        };
        self.history.failures.insert(("web".into(), slot), failure);
        self
    }

    /// An init step of `web/0` failed that often, the last time so long ago.
    pub fn init_failed(self, count: u32, seconds_ago: i64) -> Self {
        let mut snapshot = self.failed(0, 'a', count, seconds_ago, true);
        let failure = snapshot.history.failures.get_mut(&("web".into(), 0)).expect("it failed");
        (failure.kind, failure.message) = (ErrorKind::InitFailed, "init step a failed".into());
        snapshot
    }

    pub fn input<'a>(&'a self, observed: &'a [Instance]) -> Input<'a> {
        Input {
            deployment: "demo",
            desired: self.desired.as_ref().map_err(|fate| *fate),
            observed,
            shared: &self.shared,
            unreachable: &self.unreachable,
            history: &self.history,
            volumes: self.volumes,
            now: self.now,
        }
    }

    /// The plan, which has to be the same for any order of what was observed, and to pass the checker.
    pub fn plan(&self) -> Plan {
        let first = plan(&self.input(&self.observed));
        let found = check(&self.input(&self.observed), &first);
        assert!(found.is_empty(), "{found:#?}\n{first}\n{self:#?}");
        let mut turned = self.observed.clone();
        turned.reverse();
        assert_eq!(plan(&self.input(&turned)), first, "the order of what was observed matters");
        turned.rotate_left(self.observed.len() / 2);
        assert_eq!(plan(&self.input(&turned)), first, "the order of what was observed matters");
        first
    }

    /// The plan as text: one line per lane, then per wait, then the next look.
    pub fn planned(&self) -> String {
        let plan = self.plan();
        let mut lines: Vec<String> = plan.lanes.iter().map(lane).collect();
        let rest = Plan { lanes: Vec::new(), ..plan }.to_string();
        if rest != "nothing to do" {
            lines.push(rest);
        }
        lines.join("\n")
    }

    /// What is expected to follow.
    pub fn forecast(&self) -> Forecast {
        forecast(evenkeel::plan::Snapshot::of(&self.input(&self.observed)))
    }

    /// Compares the forecast's text, what is waited for afterwards included, with the expected one; lines may be
    /// indented.
    #[track_caller]
    pub fn expect_course(&self, expected: &str) {
        let forecast = self.forecast();
        let lines: Vec<String> = forecast.lines().into_iter().chain(forecast.rest()).collect();
        let trimmed = |text: &str| text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>().join("\n");
        pretty_equal(&trimmed(&lines.join("\n")), trimmed(expected).trim());
    }

    /// Compares the plan's text with the expected one; lines may be indented.
    #[track_caller]
    pub fn expect(&self, expected: &str) {
        let expected: Vec<&str> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        pretty_equal(&self.planned(), &expected.join("\n"));
    }
}

#[track_caller]
fn pretty_equal(found: &str, expected: &str) {
    assert!(found == expected, "planned\n{found}\n\nexpected\n{expected}\n");
}

fn source(line: u32) -> SourceRef {
    SourceRef { file: PathBuf::from("demo.yaml"), line }
}

/// A lane as one line: the verb that sums it up, the instance, and the cause.
fn lane(lane: &Lane) -> String {
    let first = &lane.steps[0];
    let of = |id: &InstanceId| {
        let letter = id.revision.short().chars().next().unwrap_or('?');
        format!("{}/{} {letter}{}", id.service, id.slot, id.attempt)
    };
    let init: Vec<&str> = lane
        .steps
        .iter()
        .filter_map(|step| match &step.action {
            Action::Init { step, .. } => Some(step.id.as_str()),
            _ => None,
        })
        .collect();
    let others: Vec<&Action> =
        lane.steps.iter().map(|step| &step.action).filter(|action| !matches!(action, Action::Init { .. })).collect();
    let verb = match (others[0], others.len()) {
        (Action::EnsureImage { .. }, 3) => match others[1] {
            Action::Create { restarts: 0, streak: 0, .. } => "launch".to_owned(),
            Action::Create { restarts, streak, .. } => format!("launch (restarts {restarts}, streak {streak})"),
            other => panic!("{other}"),
        },
        (Action::Start { .. }, 1) => "start".to_owned(),
        (Action::Resume { .. }, 1) => "resume".to_owned(),
        (Action::Suspend { .. }, 1) => "suspend".to_owned(),
        (Action::Stop { .. }, 2) => "retire".to_owned(),
        (Action::Stop { .. }, 1) => "halt".to_owned(),
        (Action::Remove { .. }, 1) => "remove".to_owned(),
        (Action::Teardown { .. }, 1) => return first.to_string(),
        _ => panic!("{lane:?}"),
    };
    let runtime = match first.action.runtime() {
        RuntimeKind::Docker => String::new(),
        other => format!(" on {other}"),
    };
    let id = first.action.instance().map(of).unwrap_or_default();
    let init = if init.is_empty() { String::new() } else { format!(" after {}", init.join(", ")) };
    format!("{verb} {id}{runtime}{init}: {}", first.cause)
}

/// An instance of `web` that has been running and ready for an hour.
pub fn up(slot: u32, letter: char) -> Instance {
    let id = InstanceId {
        deployment: "demo".into(),
        service: "web".into(),
        slot,
        revision: revision(letter),
        attempt: 0,
        run: None,
    };
    Instance {
        runtime_id: id.runtime_name(),
        id,
        runtime: RuntimeKind::Docker,
        phase: Phase::Running { since: ago(3600), ready: true },
        created_at: ago(3600),
        restarts: 0,
        streak: 0,
        stop: evenkeel::state::StopPolicy::default(),
        pid: None,
        ports: Vec::new(),
        last_activity: None,
        frozen: Default::default(),
        health: None,
        conditions: Vec::new(),
    }
}

/// Instances like [`up`] in these slots.
pub fn all_up(slots: std::ops::Range<u32>, letter: char) -> impl Iterator<Item = Instance> {
    slots.map(move |slot| up(slot, letter))
}

/// Changes to an instance.
pub trait Change: Sized {
    fn change(self, change: impl FnOnce(&mut Instance)) -> Self;

    fn of(self, service: &str) -> Self {
        self.change(|instance| {
            instance.id.service = service.into();
            instance.runtime_id = instance.id.runtime_name();
        })
    }

    fn attempt(self, attempt: u32) -> Self {
        self.change(|instance| {
            instance.id.attempt = attempt;
            instance.runtime_id = instance.id.runtime_name();
        })
    }

    fn of_run(self, run: RunId) -> Self {
        self.change(|instance| {
            instance.id.run = Some(run);
            instance.runtime_id = instance.id.runtime_name();
        })
    }

    fn on(self, runtime: RuntimeKind) -> Self {
        self.change(|instance| instance.runtime = runtime)
    }

    fn restarted(self, restarts: u32, streak: u32) -> Self {
        self.change(|instance| (instance.restarts, instance.streak) = (restarts, streak))
    }

    fn phase(self, phase: Phase) -> Self {
        self.change(|instance| instance.phase = phase)
    }

    fn since(self, seconds_ago: i64) -> Self {
        self.change(|instance| {
            let ready = instance.phase.is_ready();
            instance.phase = Phase::Running { since: ago(seconds_ago), ready };
            instance.created_at = ago(seconds_ago);
        })
    }

    fn unready(self) -> Self {
        self.judged(HealthState::Starting { last: None })
    }

    fn judged(self, health: HealthState) -> Self {
        self.change(|instance| instance.judge(Some(health)))
    }

    fn unhealthy(self) -> Self {
        self.judged(HealthState::Unhealthy { last: "no route".into(), passed: true })
    }

    /// Unhealthy by checks that never passed on it.
    fn never_healthy(self) -> Self {
        self.judged(HealthState::Unhealthy { last: "no route".into(), passed: false })
    }

    fn active(self, seconds_ago: i64) -> Self {
        self.change(|instance| instance.last_activity = Some(ago(seconds_ago)))
    }

    /// Ended with this code after a run of `ran` seconds, `seconds_ago`.
    fn exited(self, code: i32, ran: i64, seconds_ago: i64) -> Self {
        self.phase(Phase::Exited(Exit::from_code(code, Some(ago(seconds_ago + ran)), ago(seconds_ago))))
    }

    /// The same exit, asked for.
    fn by(self, cause: StopCause) -> Self {
        self.change(|instance| {
            if let Phase::Exited(exit) = &mut instance.phase {
                exit.ended_by = EndedBy::Request(cause);
            }
        })
    }
}

impl Change for Instance {
    fn change(mut self, change: impl FnOnce(&mut Instance)) -> Self {
        change(&mut self);
        self
    }
}
