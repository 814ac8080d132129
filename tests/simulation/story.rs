//! Stories: what happens is drawn step by step from the seed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use evenkeel::controller::Order;
use evenkeel::plan::revisions::{KnownRevision, Outcome};
use evenkeel::runtime::sim::{Change, Faults, Rng};
use evenkeel::runtime::{CreateRequest, Runtime};
use evenkeel::spec::ServiceSpec;
use evenkeel::state::{InstanceId, Owner};
use tokio::time::sleep;

use crate::check;
use crate::shop::{Service, Services, is_bad, pick};
use crate::stage::{Stage, Trace, owner};

/// Tells the script's course apart from the machine's.
const SCRIPT: u64 = 0x0005_eed0_f570_21e5;

/// Tells the story of a seed and judges it.
pub async fn tell(seed: u64, trace: Trace) -> Result<(), String> {
    let mut rng = Rng::new(seed ^ SCRIPT);
    let weather = Weather::random(&mut rng);
    let mut story = Story { stage: Stage::new(seed, weather.faults(), trace), weather, foreign: vec![], rng };
    story.stage.note(format!("seed {seed}, {weather:?} weather"));
    let strangers = story.furnish().await;
    for _ in 0..4 + story.rng.below(20) {
        story.step().await;
        let pause = story.pause();
        sleep(pause).await;
    }
    story.end().await;
    check::converges(&mut story.stage).await?;
    check::history(&story.stage, weather.slack())?;
    if weather.is_fair() {
        check::rollbacks(&story.stage, weather.slack().lag)?;
    }
    check::strangers(&story.stage, &strangers)?;
    check::is_quiet(&mut story.stage).await?;
    // What happens in one instant has no order: it depends on which of several tasks that were ended goes first.
    let mut changes: Vec<String> = story.stage.world.changes().iter().map(what_happened).collect();
    changes.sort();
    story.stage.note(format!("the end, after {changes:?}"));
    Ok(())
}

fn what_happened(change: &Change) -> String {
    format!("{} {} {:?}", change.at, change.id.runtime_name(), change.what)
}

/// How bad it gets.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Weather {
    /// Nothing goes wrong but what the story does.
    Calm,
    /// Calls take time and may outlive the controller.
    Slow,
    /// Calls are fine, events are not, and instances crash soon after their start.
    Deaf,
    /// Everything goes wrong.
    Harsh,
}

impl Weather {
    fn random(rng: &mut Rng) -> Self {
        pick(rng, &[Self::Calm, Self::Slow, Self::Deaf, Self::Harsh, Self::Harsh])
    }

    fn faults(self) -> Faults {
        let harsh = Faults::harsh();
        match self {
            Self::Calm => Faults::none(),
            Self::Slow => Faults {
                latency: harsh.latency,
                slow: harsh.slow,
                slow_for: harsh.slow_for,
                outlives_caller: harsh.outlives_caller,
                ..Faults::none()
            },
            Self::Deaf => Faults {
                event_lost: harsh.event_lost,
                event_duplicated: harsh.event_duplicated,
                event_delayed: harsh.event_delayed,
                event_delay: harsh.event_delay,
                crash: 0.3,
                crash_within: Duration::from_secs(15),
                ..Faults::none()
            },
            Self::Harsh => harsh,
        }
    }

    /// Whether no call fails, no event is lost and nothing crashes by itself.
    fn is_fair(self) -> bool {
        matches!(self, Self::Calm | Self::Slow)
    }

    /// The grace of a stop, and the slowest call where calls take time.
    fn slack(self) -> check::Slack {
        let seconds = match self {
            Self::Calm | Self::Deaf => 7,
            Self::Slow | Self::Harsh => 90,
        };
        let lag = chrono::Duration::seconds(seconds);
        let unheard = if self.faults().event_lost > 0.0 { check::NEXT_LIST.max(lag) } else { lag };
        check::Slack { lag, unheard, outlives: self.faults().outlives_caller > 0.0 }
    }
}

struct Story {
    stage: Stage,
    weather: Weather,
    /// Names that somebody else took from us.
    foreign: Vec<String>,
    rng: Rng,
}

/// What belongs to somebody else and has to stay as it is: a stranger's instances and things of no owner.
pub struct Strangers {
    pub owner: Owner,
    pub instances: usize,
    pub foreign: String,
}

impl Story {
    /// Puts on the machine what was there before the first controller: a stranger's, nobody's, and an orphan of ours.
    async fn furnish(&mut self) -> Strangers {
        let world = self.stage.world.clone();
        world.set_faults(Faults::none());
        let stranger = Owner("stranger".to_owned());
        let theirs = world.runtime(stranger.clone());
        for slot in 0..3 {
            let created = theirs.create(&furniture("alpha", slot)).await.expect("create");
            theirs.start(&created.as_ref()).await.expect("start");
        }
        let foreign = "somebody-elses-database".to_owned();
        world.add_foreign(&foreign);
        if self.rng.chance(0.3) {
            let ours = self.stage.runtime();
            let orphan = ours.create(&furniture("forgotten", 0)).await.expect("create");
            ours.start(&orphan.as_ref()).await.expect("start");
        }
        world.set_faults(self.weather.faults());
        Strangers { owner: stranger, instances: 3, foreign }
    }

    fn pause(&mut self) -> Duration {
        let most = pick(&mut self.rng, &[0, 50, 2_000, 2_000, 30_000, 30_000, 480_000]);
        self.rng.duration(Duration::from_millis(most))
    }

    async fn step(&mut self) {
        match self.rng.below(20) {
            0..3 => self.restart().await,
            3..6 => self.hurt(),
            6 => self.take_name(),
            7 => self.order().await,
            _ => self.edit(),
        }
    }

    async fn restart(&mut self) {
        if self.stage.is_up() {
            self.stage.crash().await;
            if self.rng.chance(0.1) {
                self.stage.note("the inventory is lost");
                self.stage.source.lose_inventory();
            }
            let pause = self.pause();
            if self.rng.chance(0.5) {
                return;
            }
            sleep(pause).await;
        }
        // A source may take long: longer than it takes for what it has not named yet to look like an orphan.
        let most = pick(&mut self.rng, &[0, 2, 2, 300]);
        let sync = self.rng.duration(Duration::from_secs(most));
        self.stage.start(sync).await;
    }

    /// Somebody restarts, pauses or resumes the rollout of a service.
    async fn order(&mut self) {
        let wants = self.stage.wanted();
        let index = self.rng.below(wants.len().max(1) as u64) as usize;
        let Some(target) = wants.keys().nth(index).map(ToString::to_string) else { return };
        let order = match self.rng.below(3) {
            0 => Order::Restart { target },
            1 => Order::Pause { target },
            _ => Order::Resume { target },
        };
        let text = format!("{order:?}");
        let taken = self.stage.order(order).await;
        self.stage.note(format!("{text}: {taken}"));
    }

    /// What never comes to run is mended, unless it was, or will be, rolled back to something that does. Nothing is paused.
    async fn mend(&mut self) {
        for name in self.stage.wanted().into_keys() {
            self.stage.order(Order::Resume { target: name.to_string() }).await;
            let notes = self.stage.notes.of(&name).unwrap_or_default();
            let Some(service) =
                self.stage.source.shop.get_mut(&name.deployment).and_then(|all| all.get_mut(&name.service))
            else {
                continue;
            };
            let is_good = |known: &KnownRevision| known.settled && !is_bad(&known.spec.image.name.to_string());
            let has_target = notes.rollout.as_ref().is_some_and(|rollout| match &notes.pin {
                Some(pin) => notes.known(&pin.to).is_some_and(is_good),
                // Where events are lost, it may look as if it ran.
                None if matches!(rollout.outcome, Outcome::Complete { .. }) => false,
                None => notes.last_good(&rollout.revision).is_some_and(is_good),
            });
            let goes_back = service.on_failure == "rollback" && has_target && service.replicas > 0;
            if service.is_bad() && !(goes_back && self.rng.chance(0.5)) {
                service.mend();
            }
        }
    }

    /// Somebody does something to one of our instances.
    fn hurt(&mut self) {
        let ours: Vec<_> =
            self.stage.world.instances().into_iter().filter(|(of, _)| *of == owner()).map(|(_, found)| found).collect();
        if ours.is_empty() {
            return;
        }
        self.stage.chronicle.troubles.push(self.stage.now());
        let victim = &ours[self.rng.below(ours.len() as u64) as usize];
        let (id, name) = (&victim.runtime_id, victim.id.runtime_name());
        match self.rng.below(4) {
            0 => self.stage.note(format!("{name} vanishes: {}", self.stage.world.vanish(id))),
            1 => self.stage.note(format!("{name} is frozen: {}", self.stage.world.freeze(id))),
            _ => self.stage.note(format!("{name} is killed: {}", self.stage.world.kill(id, 137))),
        }
    }

    /// Somebody takes a name that we are going to want.
    fn take_name(&mut self) {
        let wants = self.stage.wanted();
        let Some((service, wanted)) = wants.iter().nth(self.rng.below(wants.len().max(1) as u64) as usize) else {
            return;
        };
        let id = InstanceId {
            deployment: service.deployment.clone(),
            service: service.service.clone(),
            slot: self.rng.below(6) as u32,
            revision: wanted.revision.parse().expect("a revision"),
            attempt: self.rng.below(2) as u32,
            run: None,
        };
        let name = id.runtime_name();
        let exists = self.stage.world.instances().iter().any(|(_, found)| found.id.runtime_name() == name);
        if exists || self.foreign.contains(&name) {
            return;
        }
        self.stage.note(format!("somebody takes the name {name}"));
        self.stage.world.add_foreign(&name);
        self.stage.chronicle.troubles.push(self.stage.now());
        self.foreign.push(name);
    }

    fn edit(&mut self) {
        let rng = &mut self.rng;
        let name = pick(rng, &["alpha", "beta", "gamma"]).to_owned();
        let source = &mut self.stage.source;
        source.rewrite(&name);
        let what = match source.shop.get_mut(&name) {
            None => {
                source.shop.insert(name.clone(), some_services(rng));
                "is declared"
            }
            Some(services) => match rng.below(12) {
                0 => {
                    source.shop.remove(&name);
                    source.broken.remove(&name);
                    "is not declared any more"
                }
                1 | 2 => {
                    // A broken file of which no good version is known is no declaration, so only known ones break.
                    if !source.broken.remove(&name) {
                        source.broken.insert(name.clone());
                    }
                    "breaks or is mended"
                }
                3 => "is written differently",
                4 => {
                    services.insert("extra".to_owned(), Service::random(rng));
                    "gets a service anew"
                }
                5 => {
                    services.remove("extra");
                    "loses a service"
                }
                kind => {
                    change(services, kind, rng);
                    "changes"
                }
            },
        };
        let now = format!("{name} {what}: {:?}", source.shop.get(&name));
        self.stage.note(now);
        self.stage.declare();
    }

    /// Everything that is wrong from outside ends, and a controller is up.
    async fn end(&mut self) {
        self.stage.note("the weather clears");
        self.stage.world.set_faults(Faults::none());
        for name in &self.foreign {
            assert!(self.stage.world.remove_foreign(name), "{name} was taken away from its owner");
        }
        self.stage.source.broken.clear();
        if !self.stage.is_up() {
            self.stage.start(Duration::ZERO).await;
        }
        self.stage.declare();
        sleep(Duration::from_secs(1)).await;
        self.mend().await;
        self.stage.declare();
        // Crashes that are on their way still happen.
        sleep(self.weather.faults().crash_within).await;
    }
}

fn some_services(rng: &mut Rng) -> Services {
    let names = ["web", "worker", "extra"];
    let count = 1 + rng.below(3) as usize;
    names[..count].iter().map(|name| ((*name).to_owned(), Service::random(rng))).collect()
}

fn change(services: &mut Services, kind: u64, rng: &mut Rng) {
    let index = rng.below(services.len().max(1) as u64) as usize;
    let Some(service) = services.values_mut().nth(index) else { return };
    match kind {
        6 | 7 => service.replicas = rng.below(6) as u32,
        8 => service.choose_rollout(rng),
        9 => service.spoil(rng),
        10 if service.is_bad() => service.mend(),
        // Sometimes back to what it was, so that old instances become good again.
        10 => service.version = service.version.saturating_sub(1),
        _ => service.version += 1,
    }
}

/// An instance that the story's files never declare.
fn furniture(deployment: &str, slot: u32) -> CreateRequest {
    let spec: ServiceSpec =
        serde_json::from_value(serde_json::json!({ "image": { "name": "sim/run" } })).expect("a spec");
    let revision = "v1-f00df00df00df00d".parse().expect("a revision");
    let id = InstanceId {
        deployment: deployment.to_owned(),
        service: "web".to_owned(),
        slot,
        revision,
        attempt: 0,
        run: None,
    };
    CreateRequest { id, restarts: 0, streak: 0, spec: Arc::new(spec), env: BTreeMap::new(), source: None }
}
