//! Plans carried out step by step in an arbitrary order, with faults, on a world of plain data.

use std::time::Duration;

use chrono::TimeDelta;
use evenkeel::plan::revisions::{Memory, Seen, advance, effective};
use evenkeel::plan::{Action, Failure, Forecast, Lane, Plan, Stage, Wait, awaited, dependencies};
use evenkeel::spec::RuntimeKind;
use evenkeel::state::{
    DesiredService, EndedBy, ErrorKind, Exit, HealthState, Instance, InstanceId, NOT_CHECKED, Phase,
};

use super::dsl::{Change, Snapshot, revision, up};

/// Runtimes, and a controller that carries out plans on them.
#[derive(Debug, Clone)]
pub struct World {
    /// What is declared, what really exists, and the time.
    pub snapshot: Snapshot,
    /// Lanes under way, each with the number of the steps that are done.
    under_way: Vec<(Lane, usize)>,
    /// What is remembered of rollouts, where anything is.
    pub memory: Option<Memory>,
}

impl World {
    pub fn new(snapshot: Snapshot) -> Self {
        Self { snapshot, under_way: Vec::new(), memory: None }
    }

    /// What a controller sees: instances with a step under way are pending or stopping.
    fn seen(&self) -> Snapshot {
        let mut snapshot = self.snapshot.clone();
        for (lane, _) in &self.under_way {
            let action = &lane.steps[0].action;
            let Some(id) = action.instance() else { continue };
            let phase = match action {
                // It stays in its slot as it is.
                Action::Resume { .. } | Action::Suspend { .. } => continue,
                Action::Stop { .. } | Action::Remove { .. } => Phase::Stopping,
                _ => Phase::Pending,
            };
            match find(&mut snapshot.observed, id, action.runtime()) {
                Some(instance) => instance.phase = phase,
                None if phase == Phase::Pending => {
                    let made = made(id, action.runtime(), &snapshot);
                    snapshot.observed.push(made.phase(phase));
                }
                None => {}
            }
        }
        snapshot
    }

    /// What is planned from: what is seen, with what is to run by what is remembered, which is carried on first.
    fn planned_from(&mut self) -> Snapshot {
        let seen = self.seen();
        let (Some(memory), Ok(desired)) = (&mut self.memory, &seen.desired) else { return seen };
        let history = memory.rollouts.entry("web".into()).or_default();
        advance(history, Seen { input: &seen.input(&seen.observed), declared: &desired.services["web"] });
        Snapshot { desired: Ok(effective(desired, memory)), ..seen }
    }

    /// Plans, checks the plan, and begins its lanes.
    pub fn turn(&mut self) -> Plan {
        self.snapshot.history.dependencies = dependencies(&self.snapshot.input(&self.snapshot.observed));
        let seen = self.planned_from();
        let plan = seen.plan();
        self.snapshot.history.awaited = awaited(&seen.input(&seen.observed), &plan);
        let subject = |lane: &Lane| (lane.steps[0].action.instance().cloned(), lane.steps[0].action.runtime());
        let busy: Vec<_> = self.under_way.iter().map(|(lane, _)| subject(lane)).collect();
        let new = plan.lanes.iter().filter(|lane| !busy.contains(&subject(lane)));
        self.under_way.extend(new.map(|lane| (lane.clone(), 0)));
        plan
    }

    /// Carries out the next step of one lane.
    pub fn advance(&mut self, choice: usize) {
        let Some(index) = choice.checked_rem(self.under_way.len()) else { return };
        let (lane, done) = self.under_way[index].clone();
        self.carry_out(&lane.steps[done].action);
        if done + 1 == lane.steps.len() {
            self.under_way.remove(index);
            self.forget_failure(&lane);
        } else {
            self.under_way[index].1 += 1;
        }
    }

    /// Lets the next step of one lane fail.
    pub fn fail(&mut self, choice: usize) {
        let Some(index) = choice.checked_rem(self.under_way.len()) else { return };
        let (lane, _) = self.under_way.remove(index);
        let Some(id) = lane.steps[0].action.instance() else { return };
        let key = (id.service.clone(), id.slot);
        let failures = &mut self.snapshot.history.failures;
        let before = failures.get(&key).filter(|failure| failure.revision == id.revision);
        let failure = Failure {
            revision: id.revision.clone(),
            count: before.map_or(0, |before| before.count) + 1,
            at: self.snapshot.now,
            kind: ErrorKind::Failed,
            retryable: true,
            message: "no space left".into(),
        };
        failures.insert(key, failure);
    }

    /// The controller dies and comes back: what it had begun stays as it is, and it has probed nothing yet.
    pub fn restart_controller(&mut self) {
        self.under_way.clear();
        for instance in &mut self.snapshot.observed {
            instance.judge(Some(HealthState::Unknown { why: NOT_CHECKED.into() }));
        }
    }

    /// Health checks of one instance fail.
    pub fn fail_checks(&mut self, choice: usize) {
        let mut running = self.running();
        if let Some(index) = choice.checked_rem(running.len()) {
            running[index]
                .judge(Some(HealthState::Unhealthy { last: "no route".into(), passed: choice.is_multiple_of(2) }));
        }
    }

    pub fn running(&mut self) -> Vec<&mut Instance> {
        let running = |instance: &&mut Instance| matches!(instance.phase, Phase::Running { .. });
        self.snapshot.observed.iter_mut().filter(running).collect()
    }

    pub fn crash(&mut self, choice: usize) {
        let now = self.snapshot.now;
        let mut running = self.running();
        if let Some(index) = choice.checked_rem(running.len()) {
            let since = running[index].phase.started_at();
            running[index].phase = Phase::Exited(Exit::from_code(1, since, now));
        }
    }

    /// Lets one instance crash that has not run for so long yet.
    pub fn crash_within(&mut self, age: Duration, choice: usize) {
        let now = self.snapshot.now;
        let is_young = |instance: &&mut Instance| {
            instance.phase.started_at().is_some_and(|since| (now - since).to_std().is_ok_and(|ran| ran < age))
        };
        let mut young: Vec<&mut Instance> = self.running().into_iter().filter(is_young).collect();
        if let Some(index) = choice.checked_rem(young.len()) {
            let since = young[index].phase.started_at();
            young[index].phase = Phase::Exited(Exit::from_code(1, since, now));
        }
    }

    pub fn pause(&mut self, choice: usize) {
        let mut running = self.running();
        if let Some(index) = choice.checked_rem(running.len()) {
            let since = running[index].phase.started_at().expect("it runs");
            running[index].phase = Phase::Paused { since };
        }
    }

    /// Makes one unready instance ready. Returns whether there was one.
    pub fn make_ready(&mut self, choice: usize) -> bool {
        let mut unready: Vec<&mut Instance> =
            self.running().into_iter().filter(|instance| !instance.phase.is_ready()).collect();
        let Some(index) = choice.checked_rem(unready.len()) else { return false };
        unready[index].judge(Some(HealthState::Healthy));
        true
    }

    /// Makes one unready instance of this revision ready. Returns whether there was one.
    pub fn make_ready_of(&mut self, letter: char) -> bool {
        let mut running = self.running().into_iter();
        let found = running.find(|instance| !instance.phase.is_ready() && instance.id.revision == revision(letter));
        found.map(|instance| instance.judge(Some(HealthState::Healthy))).is_some()
    }

    /// Somebody removes an instance behind the controller's back.
    pub fn lose(&mut self, choice: usize) {
        if let Some(index) = choice.checked_rem(self.snapshot.observed.len()) {
            self.snapshot.observed.remove(index);
        }
    }

    pub fn wait(&mut self, seconds: i64) {
        self.snapshot.now += TimeDelta::seconds(seconds);
    }

    pub fn web(&mut self) -> &mut DesiredService {
        self.snapshot.desired.as_mut().expect("declared").services.get_mut("web").expect("web")
    }

    pub fn is_busy(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Lets everything go well until nothing is left to do.
    pub fn settle(&mut self) {
        const TURNS: usize = 3_000;
        for turn in 0..TURNS {
            let plan = self.turn();
            if self.is_busy() {
                self.advance(turn * 7);
            } else if !self.make_ready(turn * 5) && !self.end_unknown() {
                match plan.next_look {
                    Some(at) => self.snapshot.now = at,
                    None => return,
                }
            }
        }
        panic!("not settled after {TURNS} turns: {:#?}", self.snapshot);
    }

    /// Lets everything happen as it is expected.
    pub fn follow(&mut self, forecast: &Forecast) {
        for stage in &forecast.stages {
            match stage {
                Stage::Act { at, lanes } => {
                    self.snapshot.now = *at;
                    for lane in lanes {
                        lane.steps.iter().for_each(|step| self.carry_out(&step.action));
                        self.forget_failure(lane);
                    }
                    self.serve_what_is_unchecked();
                }
                Stage::Wait { at, waits } => {
                    self.snapshot.now = waits.iter().filter_map(Wait::until).min().unwrap_or(*at);
                    for wait in waits.iter().filter(|wait| matches!(wait, Wait::NotReady { until: None, .. })) {
                        let id = wait.instance().expect("an instance");
                        let mut running = self.running().into_iter();
                        let instance = running.find(|one| one.id == *id).expect("it runs");
                        instance.judge(Some(HealthState::Healthy));
                    }
                }
            }
        }
    }

    /// Lets what no check has to pass be ready as soon as it runs.
    pub fn serve_what_is_unchecked(&mut self) {
        if self.web().spec.health.is_none() {
            let starting = |instance: &&mut Instance| matches!(instance.health, Some(HealthState::Starting { .. }));
            self.running().into_iter().filter(starting).for_each(|instance| instance.judge(None));
        }
    }

    fn end_unknown(&mut self) -> bool {
        let now = self.snapshot.now;
        let unknown = self.snapshot.observed.iter_mut().find(|one| matches!(one.phase, Phase::Unknown { .. }));
        unknown.map(|one| one.phase = Phase::Exited(Exit::from_code(1, None, now))).is_some()
    }

    /// Whether each slot holds exactly one ready instance of the desired template, and nothing else lives.
    #[track_caller]
    pub fn assert_converged(&mut self) {
        let web = self.web().clone();
        let mut slots: Vec<u32> = Vec::new();
        for instance in &self.snapshot.observed {
            if matches!(instance.phase, Phase::Exited(_)) {
                continue;
            }
            let wanted = instance.id.revision == web.revision && instance.runtime == web.runtime;
            assert!(wanted && instance.phase.is_ready(), "{instance:?} in {:#?}", self.snapshot);
            slots.push(instance.id.slot);
        }
        slots.sort_unstable();
        assert_eq!(slots, (0..web.replicas).collect::<Vec<_>>(), "{:#?}", self.snapshot);
        for slot in 0..web.replicas {
            let dead = self.snapshot.observed.iter().filter(|one| one.id.slot == slot).count() - 1;
            assert!(dead <= 1, "slot {slot} keeps {dead} dead instances");
        }
        assert_eq!(self.snapshot.plan(), Plan::default(), "a second plan does something");
    }

    fn carry_out(&mut self, action: &Action) {
        let now = self.snapshot.now;
        let target = action.instance().map(|id| (id.clone(), action.runtime()));
        let existing = target.as_ref().and_then(|(id, runtime)| find(&mut self.snapshot.observed, id, *runtime));
        match (action, existing) {
            (Action::Create { id, runtime, restarts, streak, .. }, None) => {
                let made = made(id, *runtime, &self.snapshot).restarted(*restarts, *streak);
                self.snapshot.observed.push(made);
            }
            (Action::StartCreated { .. } | Action::Start { .. }, Some(instance)) => {
                instance.phase = Phase::Running { since: now, ready: false };
                instance.judge(Some(HealthState::Starting { last: None }));
            }
            (Action::Resume { .. }, Some(instance)) => {
                if let Phase::Paused { since } = instance.phase {
                    instance.phase = Phase::Running { since, ready: false };
                    instance.judge(instance.health.clone());
                }
            }
            (Action::Suspend { .. }, Some(instance)) => {
                if let Phase::Running { since, .. } = instance.phase {
                    instance.phase = Phase::Paused { since };
                    let runtime_id = instance.runtime_id.clone();
                    self.snapshot.history.lives.suspended.insert(runtime_id, now);
                }
            }
            (Action::Stop { stop, .. }, Some(instance)) => {
                let since = instance.phase.started_at();
                let mut exit = Exit::from_code(143, since, now);
                exit.ended_by = EndedBy::Request(stop.cause);
                instance.phase = Phase::Exited(exit);
            }
            (Action::Remove { instance, .. }, Some(_)) => {
                self.snapshot.observed.retain(|one| one.as_ref() != *instance);
            }
            _ => {}
        }
    }

    fn forget_failure(&mut self, lane: &Lane) {
        if let Some(id) = lane.steps[0].action.instance() {
            self.snapshot.history.failures.remove(&(id.service.clone(), id.slot));
        }
    }
}

fn find<'a>(observed: &'a mut [Instance], id: &InstanceId, runtime: RuntimeKind) -> Option<&'a mut Instance> {
    observed.iter_mut().find(|instance| instance.id == *id && instance.runtime == runtime)
}

/// An instance that was just created.
fn made(id: &InstanceId, runtime: RuntimeKind, snapshot: &Snapshot) -> Instance {
    up(0, 'a').phase(Phase::Created).on(runtime).change(|instance| {
        instance.id = id.clone();
        instance.runtime_id = id.runtime_name();
        instance.created_at = snapshot.now;
    })
}

/// The letter of the revision after this one, of three.
pub fn next_letter(world: &mut World) {
    let letter = world.web().revision.short().chars().next();
    world.web().revision = revision(match letter {
        Some('a') => 'b',
        Some('b') => 'c',
        _ => 'a',
    });
}
