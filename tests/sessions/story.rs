//! What happens in one story, drawn by its seed.

use std::collections::BTreeSet;
use std::time::Duration;

use evenkeel::controller::{AcquireRequest, Acquired, EngineError, Entry, SessionVerb};
use evenkeel::runtime::sim::{Faults, Rng};
use evenkeel::spec::HumanDuration;
use evenkeel::state::{Phase, SessionId, Token};
use tokio::sync::oneshot;

use crate::check::{Ledger, check, check_bounds};
use crate::stage::{Stage, Trace, spec};

/// Things that happen in one story.
const EVENTS: u64 = 25;

/// Longest time until everything is at rest: longer than any timeout of a session, and than any pause after a failed call
/// or a crash.
const LONGEST_END: Duration = Duration::from_secs(600);

/// Between two looks whether it is.
const END_LOOK: Duration = Duration::from_secs(5);

/// A session as a client knows it.
pub struct Known {
    pub id: SessionId,
    pub token: Token,
    /// Tokens that gave the right to it before.
    pub old: Vec<Token>,
    /// Whether somebody said that it is over.
    pub ended: bool,
}

/// A claim that is not answered yet.
type Pending = oneshot::Receiver<Result<Acquired, EngineError>>;

pub struct Story {
    pub stage: Stage,
    pub ledger: Ledger,
    rng: Rng,
    known: Vec<Known>,
    pending: Vec<Pending>,
    inside: Vec<Entry>,
    bounds: Bounds,
    template: u64,
}

/// Of the pool.
pub struct Bounds {
    pub min_warm: u64,
    pub max_warm: u64,
    pub max_total: u64,
}

impl Bounds {
    fn draw(rng: &mut Rng) -> Self {
        let max_total = 1 + rng.below(6);
        let max_warm = 1 + rng.below(max_total);
        Self { min_warm: rng.below(max_warm + 1), max_warm, max_total }
    }

    fn spec(&self, template: u64) -> String {
        let Self { min_warm, max_warm, max_total } = self;
        let fields = format!(
            "    env: {{TEMPLATE: \"{template}\"}}\n    \
             pool: {{min_warm: {min_warm}, max_warm: {max_warm}, max_total: {max_total}, warm_ttl: 2m}}\n    \
             session: {{idle_timeout: 60s, detach_timeout: 90s, suspend_timeout: 2m}}\n"
        );
        spec("sim/slow:150ms", &fields)
    }
}

/// Tells the story of a seed.
pub async fn tell(seed: u64, trace: Trace) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let bounds = Bounds::draw(&mut rng);
    let faults = Faults {
        latency: Duration::from_millis(rng.below(20)),
        fails: if rng.chance(0.3) { 0.1 } else { 0.0 },
        answer_lost: if rng.chance(0.2) { 0.05 } else { 0.0 },
        outlives_caller: 0.5,
        ..Faults::none()
    };
    let stage = Stage::new(seed, faults, bounds.spec(0), trace).await;
    stage.note(bounds.spec(0));
    let mut story = Story {
        stage,
        ledger: Ledger::default(),
        rng,
        known: Vec::new(),
        pending: Vec::new(),
        inside: Vec::new(),
        bounds,
        template: 0,
    };
    for _ in 0..EVENTS {
        story.event().await?;
        story.answers()?;
        check(&story.stage, &story.ledger).await?;
    }
    story.end().await
}

impl Story {
    fn pause(&mut self) -> Duration {
        // Mostly a moment, sometimes long enough for a timeout.
        match self.rng.below(10) {
            0 => Duration::from_secs(20 + self.rng.below(120)),
            1..=3 => Duration::from_millis(self.rng.below(2000)),
            _ => Duration::from_millis(self.rng.below(8)),
        }
    }

    async fn event(&mut self) -> Result<(), String> {
        if !self.stage.is_up() {
            tokio::time::sleep(Duration::from_millis(self.rng.below(3000))).await;
            self.stage.start();
            return Ok(());
        }
        match self.rng.below(20) {
            0..=5 => self.claim().await,
            6..=11 => return self.use_session().await,
            12 => self.crash_member(),
            13 => {
                self.stage.trace.count(5, 1);
                self.stage.crash().await;
                // Whoever was inside is not any more, as the controller carried its input.
                self.inside.clear();
                self.pending.clear();
            }
            14 if self.rng.chance(0.3) => {
                self.template += 1;
                self.stage.note(format!("template {}", self.template));
                self.stage.declare(self.bounds.spec(self.template));
            }
            15 => return self.visit().await,
            16 => self.inside.clear(),
            _ => {
                let pause = self.pause();
                tokio::time::sleep(pause).await;
            }
        }
        Ok(())
    }

    async fn claim(&mut self) {
        let request = AcquireRequest {
            client: format!("client-{}", self.rng.below(3)),
            fresh: self.rng.chance(0.2),
            timeout: Some(HumanDuration(Duration::from_millis(100 + self.rng.below(5000)))),
            ..AcquireRequest::default()
        };
        self.stage.note(format!("{} claims{}", request.client, if request.fresh { " a fresh one" } else { "" }));
        let mut answer = self.stage.claim(request).await;
        match self.rng.below(10) {
            // The client goes away.
            0 => drop(answer),
            1..=4 => {
                let answered = tokio::time::timeout(Duration::from_millis(50), &mut answer).await;
                match answered {
                    Ok(Ok(answer)) => self.answered(answer),
                    Ok(Err(_)) => {}
                    Err(_) => self.pending.push(answer),
                }
            }
            _ => self.pending.push(answer),
        }
    }

    /// Takes the answers that have come.
    fn answers(&mut self) -> Result<(), String> {
        for mut pending in std::mem::take(&mut self.pending) {
            match pending.try_recv() {
                Ok(answer) => self.answered(answer),
                Err(oneshot::error::TryRecvError::Empty) => self.pending.push(pending),
                Err(oneshot::error::TryRecvError::Closed) if self.stage.is_up() => {
                    return Err("a claim was dropped without an answer".to_owned());
                }
                Err(oneshot::error::TryRecvError::Closed) => {}
            }
        }
        Ok(())
    }

    fn answered(&mut self, answer: Result<Acquired, EngineError>) {
        match answer {
            Ok(acquired) => {
                self.stage.trace.count(0, 1);
                self.stage.note(format!("{} has {}", acquired.view.session, acquired.view.instance));
                self.ledger.handed_out(&acquired);
                let (id, token) = (acquired.view.session, acquired.token);
                self.known.push(Known { id, token, old: Vec::new(), ended: false });
            }
            Err(why) => {
                self.stage.trace.count(1, 1);
                self.stage.note(format!("refused: {why}"));
            }
        }
    }

    /// Does something with a session, maybe with a token that is not its.
    async fn use_session(&mut self) -> Result<(), String> {
        let Some(place) = self.rng.next_u64().checked_rem(self.known.len() as u64) else { return Ok(()) };
        let place = place as usize;
        let verb = match self.rng.below(10) {
            0 => SessionVerb::Detach,
            1 => SessionVerb::Attach { takeover: false },
            2 => SessionVerb::Attach { takeover: true },
            3 => SessionVerb::Suspend,
            4 => SessionVerb::Resume,
            5 => SessionVerb::Touch,
            6 => SessionVerb::Terminate,
            7 | 8 => SessionVerb::Release,
            _ => return self.enter(place).await,
        };
        let wrong = self.wrong_token(place);
        if let Some(token) = wrong.filter(|_| self.rng.chance(0.2)) {
            let id = self.known[place].id.clone();
            return match self.stage.change(&id, &token, verb).await {
                Err(_) => Ok(()),
                Ok(_) => Err(format!("{verb:?} of {id} was done with a token that is not its")),
            };
        }
        let (id, token) = (self.known[place].id.clone(), self.known[place].token.clone());
        self.stage.note(format!("{verb:?} {id}"));
        let done = self.stage.change(&id, &token, verb).await;
        let known = &mut self.known[place];
        match (done, verb) {
            (Ok(_), _) if known.ended => return Err(format!("{verb:?} of {id} was done after its end")),
            (Ok(changed), SessionVerb::Attach { takeover: true }) => {
                self.stage.trace.count(4, 1);
                let token = changed.token.ok_or_else(|| format!("{id} was taken over without another token"))?;
                known.old.push(std::mem::replace(&mut known.token, token));
            }
            (Ok(_), SessionVerb::Release | SessionVerb::Terminate) => {
                known.ended = true;
                self.ledger.ended.insert(id);
            }
            _ => {}
        }
        Ok(())
    }

    /// A token that gives no right to a session: one from before a takeover, or another session's.
    fn wrong_token(&mut self, place: usize) -> Option<Token> {
        let others = self.known.iter().enumerate().filter(|(other, _)| *other != place).map(|(_, known)| &known.token);
        let wrong: Vec<Token> = self.known[place].old.iter().chain(others).cloned().collect();
        let which = self.rng.next_u64().checked_rem(wrong.len() as u64)?;
        wrong.get(which as usize).cloned()
    }

    async fn enter(&mut self, place: usize) -> Result<(), String> {
        let (id, token) = (self.known[place].id.clone(), self.known[place].token.clone());
        if let Ok(entry) = self.stage.enter(&id.to_string(), Some(&token)).await {
            if self.known[place].ended {
                return Err(format!("{id} was entered after its end"));
            }
            self.stage.note(format!("somebody is inside {id}"));
            self.inside.push(entry);
        }
        Ok(())
    }

    /// An operator works inside some member, without a token.
    async fn visit(&mut self) -> Result<(), String> {
        let members = self.stage.members();
        let Some(place) = self.rng.next_u64().checked_rem(members.len() as u64) else { return Ok(()) };
        let member = &members[place as usize];
        let Ok(entry) = self.stage.enter(&member.id.name(), None).await else { return Ok(()) };
        self.stage.note(format!("somebody is inside {} without a session", entry.instance.id));
        self.ledger.visited(&entry.instance.runtime_id)?;
        let live = self.stage.sessions().await;
        if live.iter().any(|view| view.ended_at.is_none() && view.runtime_id == entry.instance.runtime_id) {
            return Err(format!("{} has a session and was entered without its token", entry.instance.id));
        }
        self.inside.push(entry);
        Ok(())
    }

    fn crash_member(&mut self) {
        let members = self.stage.members();
        let Some(place) = self.rng.next_u64().checked_rem(members.len() as u64) else { return };
        let member = &members[place as usize];
        self.stage.trace.count(3, 1);
        match self.rng.below(3) {
            0 => drop(self.stage.world.vanish(&member.runtime_id)),
            1 => drop(self.stage.world.freeze(&member.runtime_id)),
            _ => drop(self.stage.world.kill(&member.runtime_id, 137)),
        }
        self.stage.note(format!("{} comes to harm", member.id));
    }

    /// Everybody goes; after a while only free members are left, and nothing that anybody had.
    async fn end(mut self) -> Result<(), String> {
        self.stage.note("everybody goes");
        self.pending.clear();
        self.inside.clear();
        self.stage.world.set_faults(Faults::none());
        if !self.stage.is_up() {
            self.stage.start();
        }
        for known in &self.known {
            drop(self.stage.change(&known.id, &known.token, SessionVerb::Release).await);
        }
        let mut at_rest = self.at_rest().await;
        for _ in 0..LONGEST_END.as_secs() / END_LOOK.as_secs() {
            if at_rest.is_ok() {
                break;
            }
            tokio::time::sleep(END_LOOK).await;
            at_rest = self.at_rest().await;
        }
        at_rest?;
        check(&self.stage, &self.ledger).await?;
        check_bounds(&self.stage, &self.bounds)?;
        let timeouts = self.stage.stats().await.ok_or("there are no statistics")?.timeouts;
        self.stage.trace.count(2, timeouts);
        Ok(())
    }

    /// Whether nobody has a session, nothing is left that anybody had, and as many members are free as there should be.
    async fn at_rest(&self) -> Result<(), String> {
        let left: Vec<String> = self
            .stage
            .sessions()
            .await
            .iter()
            .filter(|one| one.ended_at.is_none())
            .map(|one| one.session.to_string())
            .collect();
        if !left.is_empty() {
            return Err(format!("sessions live on: {left:?}"));
        }
        let members = self.stage.members();
        let had: BTreeSet<&str> = self.ledger.had().collect();
        if let Some(member) = members.iter().find(|one| had.contains(one.runtime_id.as_str())) {
            return Err(format!("{} was used and is still there", member.id));
        }
        let ready = members.iter().filter(|one| matches!(one.phase, Phase::Running { .. })).count() as u64;
        let Bounds { min_warm, max_warm, .. } = self.bounds;
        match ready < min_warm || ready > max_warm || ready != members.len() as u64 {
            true => {
                Err(format!("{ready} of {} members run in the end, {min_warm} to {max_warm} should", members.len()))
            }
            false => Ok(()),
        }
    }
}
