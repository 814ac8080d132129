//! What is remembered of the rollouts of a service. It outlives the controller; losing it loses history, and what users
//! ordered, never workloads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::super::LifeOrders;
use super::{DeadlineClock, FollowedImage};
use crate::spec::{Revision, RuntimeKind, ServiceSpec};
use crate::state::{DesiredService, Failed, GoesOn, Pause, RolloutFailure, SourceRef};

/// What is remembered of one deployment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    /// What is remembered of it as a whole.
    pub orders: Orders,
    /// Rollouts, by service.
    pub rollouts: BTreeMap<String, RolloutHistory>,
}

/// What is remembered of one deployment as a whole: what users ordered, how it is scaled, and in which order it
/// ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// Nothing is created, stopped or removed.
    #[serde(default)]
    pub suspended: bool,
    /// Replicas of services whose `scale.mode` is `manual`.
    #[serde(default)]
    pub replicas: BTreeMap<String, u32>,
    /// Replicas that services whose `scale.mode` is `adaptive` were last to have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub adaptive: BTreeMap<String, u32>,
    /// On what each service depends, as [`dependencies`](crate::plan::dependencies) gives it: it tells the order of the end
    /// when nothing declares the deployment any more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dependencies: BTreeMap<String, BTreeSet<String>>,
    /// What is to stay down, is held, or is to be brought back.
    #[serde(default)]
    pub lives: LifeOrders,
}

/// What is remembered of the rollouts of one service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RolloutHistory {
    /// Revisions that are or were to run, by number.
    pub revisions: Vec<KnownRevision>,
    /// The rollout that goes on, or went last.
    pub rollout: Option<RolloutProgress>,
    /// An earlier revision is to run, until something else is declared.
    pub pin: Option<Pin>,
    /// Nothing is replaced for now.
    pub pause: Option<Pause>,
    /// All instances were to be replaced although their template is the same.
    pub restart: Option<Restart>,
    /// The last order failed, and what is declared runs as it did before, until something else is declared or ordered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_order: Option<FailedOrder>,
    /// When somebody last asked that what is to run be tried anew, until its rollout is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried_anew: Option<DateTime<Utc>>,
    /// When the health checks of a template that stayed the same were last declared otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks_changed: Option<DateTime<Utc>>,
    /// What the tag of its image stands for, where that is followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<FollowedImage>,
}

/// A revision that is or was to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KnownRevision {
    /// Counts the rollouts of the service, from 1; a revision that is rolled out again gets the next number (as in
    /// Kubernetes).
    pub number: u64,
    /// Its template.
    pub revision: Revision,
    /// Another revision that means the same on its runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equivalent: Option<Revision>,
    /// The runtime that it was declared for.
    pub runtime: RuntimeKind,
    /// As it was declared last.
    pub spec: Arc<ServiceSpec>,
    /// Where.
    pub source: SourceRef,
    /// When it was first to run.
    pub declared_at: DateTime<Utc>,
    /// When its last rollout was complete; absent where it never was, or has failed since.
    pub completed_at: Option<DateTime<Utc>>,
    /// Whether it ran for long enough then to be trusted.
    #[serde(default)]
    pub settled: bool,
    /// Whether its rollouts were complete only where no replicas were to run, so that nobody knows whether it works.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub untried: bool,
    /// Whether its rollout failed, and none was complete since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failed: bool,
    /// Whether it was complete, and all that failed since is that it waited in vain for what it depends on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waited_in_vain: bool,
}

impl KnownRevision {
    /// Whether it is this revision, by either of its names.
    pub fn is(&self, revision: &Revision) -> bool {
        self.revision == *revision || self.equivalent.as_ref() == Some(revision)
    }
}

/// What was declared, but for the number of replicas: as long as it is the same, what failed will fail again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Declaration {
    revision: Revision,
    spec: Arc<ServiceSpec>,
}

impl Declaration {
    /// Of this service.
    pub fn of(service: &DesiredService) -> Self {
        Self { revision: service.revision.clone(), spec: service.spec.clone() }
    }

    /// Whether the service is declared like this.
    pub fn is(&self, service: &DesiredService) -> bool {
        let same_spec = || *self.spec == *service.spec || unscaled(&self.spec) == unscaled(&service.spec);
        service.is_made_from(&self.revision) && same_spec()
    }

    /// Whether the service is declared like this, but for the image: its tag was not known yet to stand for that one.
    pub(super) fn is_but_for_image(&self, service: &DesiredService) -> bool {
        let before = ServiceSpec { image: service.spec.image.clone(), ..unscaled(&self.spec) };
        service.is_made_from(&self.revision) && before == unscaled(&service.spec)
    }
}

/// The spec without what may change while a rollout goes on.
fn unscaled(spec: &ServiceSpec) -> ServiceSpec {
    ServiceSpec { scale: None, ..spec.clone() }
}

/// An earlier revision is to run, until something else is declared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pin {
    /// What is declared and not to run.
    pub declared: Declaration,
    /// The revision that was to run before.
    pub from: Revision,
    /// The one that is to run now.
    pub to: Revision,
    /// Since when.
    pub since: DateTime<Utc>,
    /// Why; absent where somebody asked for it.
    pub failure: Option<RolloutFailure>,
    /// Whether what failed is an earlier revision that somebody had asked for, and not what is declared.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_undo: bool,
}

/// All instances were to be replaced although their template is the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Restart {
    /// The template.
    pub of: Revision,
    /// How often so far; at least 1.
    pub count: u32,
}

/// What somebody ordered failed, and what is declared runs as it did before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FailedOrder {
    /// What is declared.
    pub declared: Declaration,
    /// What was ordered.
    pub order: Ordered,
    /// How it failed.
    pub failure: RolloutFailure,
}

/// What somebody ordered of a rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ordered {
    /// That all instances be replaced; what ran before is made from the same template.
    Restart,
    /// That this earlier revision run.
    Undo(Revision),
}

/// A rollout: the way of a service to one revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RolloutProgress {
    /// Where it leads.
    pub revision: Revision,
    /// What was declared meanwhile.
    pub declaration: Declaration,
    /// When it began.
    pub began: DateTime<Utc>,
    /// From when on failures and crashes count; all of them where nothing is known of the time before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts_from: Option<DateTime<Utc>>,
    /// Time since it last made progress.
    pub clock: DeadlineClock,
    /// Replicas that there were to be when it last made progress.
    pub replicas: u32,
    /// Most new instances that were available at once.
    pub available: u32,
    /// Fewest old instances that were there.
    pub old: u32,
    /// Whether any new instance was ready: what was put to rest for idleness before that was never tried.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub was_ready: bool,
    /// Whether any new instance has been available for long enough to be trusted.
    pub proven: bool,
    /// Those of them that are there, by the runtime's own id. The news of an end may be late or lost, so that what seems to
    /// run for long has ended long ago: once that is known it counts no more.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub trusted: BTreeSet<String>,
    /// How it stands.
    pub outcome: Outcome,
}

/// How a rollout stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It goes on.
    Going,
    /// All is as it should be.
    Complete {
        /// Since when.
        at: DateTime<Utc>,
        /// Whether every instance has been available for long enough to be trusted; crashes count until then.
        settled: bool,
    },
    /// It has failed, and goes on all the same or is paused.
    Failed {
        /// When.
        at: DateTime<Utc>,
        /// How, and why it goes on; without the latter where it is paused.
        failed: Option<Failed>,
    },
}

impl RolloutHistory {
    /// The revision, as it is known.
    pub fn known(&self, revision: &Revision) -> Option<&KnownRevision> {
        self.revisions.iter().find(|known| known.is(revision))
    }

    /// The number of a revision; 0 where it is not known.
    pub fn number(&self, revision: &Revision) -> u64 {
        self.known(revision).map_or(0, |known| known.number)
    }

    /// The revision whose rollout was complete last, besides this one, of those that ever ran; else of all.
    pub fn last_good(&self, except: &Revision) -> Option<&KnownRevision> {
        self.complete(except).max_by_key(|known| (!known.untried, known.completed_at, known.number))
    }

    /// The revision to go back to from this one: the one whose rollout was complete last, of those that serve now; else of
    /// those that can be trusted; else of those that ever ran; else of all.
    pub(super) fn way_back(
        &self,
        except: &Revision,
        serves: impl Fn(&KnownRevision) -> bool,
    ) -> Option<&KnownRevision> {
        self.complete(except)
            .max_by_key(|known| (serves(known), known.settled, !known.untried, known.completed_at, known.number))
    }

    /// The newest revision besides this one that serves and has not failed, though another was declared before its rollout was
    /// complete.
    pub(super) fn serving(&self, except: &Revision, serves: impl Fn(&KnownRevision) -> bool) -> Option<&KnownRevision> {
        let others = self.revisions.iter().filter(|known| !known.is(except) && !known.failed);
        others.filter(|known| serves(known)).max_by_key(|known| known.number)
    }

    fn complete(&self, except: &Revision) -> impl Iterator<Item = &KnownRevision> {
        self.revisions.iter().filter(move |known| !known.is(except) && known.completed_at.is_some())
    }

    /// The revision that was gone back to and has failed as well, where that is what is tried on.
    pub fn failed_way_back(&self) -> Option<&Revision> {
        let rollout = self.rollout.as_ref()?;
        match &rollout.outcome {
            Outcome::Failed { failed: Some(Failed { goes_on: GoesOn::RollingBack, .. }), .. } => {
                Some(&rollout.revision)
            }
            Outcome::Going | Outcome::Complete { .. } | Outcome::Failed { .. } => None,
        }
    }

    /// Lets time count no more until it is carried on: nothing of it may begin now.
    pub fn stand_still(&mut self, now: DateTime<Utc>) {
        if let Some(rollout) = &mut self.rollout {
            rollout.clock.run(false, now);
        }
    }

    /// The same after the controller was away: nobody looked meanwhile, so that this time does not count. What it had
    /// counted does, but for what came after the last [`CLOCK_STEP`](super::CLOCK_STEP) where it was killed.
    #[must_use]
    pub fn resumed(mut self) -> Self {
        if let Some(rollout) = &mut self.rollout {
            rollout.clock.forget_running();
        }
        self
    }
}
