//! What reaches the core: reports from its own tasks, and commands of callers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::cache::Mark;
use super::explain::IdleReport;
use super::flight::FlightId;
use super::jobs::{JobChanges, Trigger};
use super::ledger::{Sampled, UseId, Used};
use super::lists::ListNumber;
use super::orders::{Order, Taken};
use super::orphans::OrphanView;
use super::remnants::RemnantNews;
use super::scaling::Measured;
use super::sessions::{SessionCommand, SessionMessage};
use super::{EngineError, RolloutView};
use crate::execute::Report;
use crate::plan::Snapshot;
use crate::probe::Verdict;
use crate::runtime::{Listing, Result, Runtime, RuntimeEvent};
use crate::spec::RuntimeKind;
use crate::state::{DesiredDeployment, Instance, InstanceRef, Signal, Target};
use crate::store::RemovalRequest;

/// What reaches the core.
pub enum Message {
    /// A runtime answers for the first time.
    Attached(Arc<dyn Runtime>),
    /// A runtime can't be reached.
    Unreachable(RuntimeKind, String),
    /// Events arrive from now on, after none did.
    Subscribed(RuntimeKind),
    /// A runtime reports a change.
    Event(RuntimeKind, RuntimeEvent),
    /// A full list has ended.
    Listed(RuntimeKind, ListCall, Result<Listing>),
    /// A step has ended.
    Reported(FlightId, Box<Report>),
    /// A step is getting on, in the runtime's words.
    Progress(FlightId, String),
    /// A lane has ended.
    Landed(FlightId),
    /// A health check found something new.
    Checked(Verdict),
    /// It was found out what an adaptive service uses.
    Measured(Measured),
    /// A registry told what a tag stands for, or didn't.
    ImageFound(RuntimeKind, String, Result<String>),
    /// It was found out what instances of a deployment use whose idleness is limited.
    Sampled(String, Sampled),
    /// Somebody uses an instance.
    Used(UseNews),
    /// What was to be remembered of the jobs of a deployment is kept, or could not be.
    Remembered(String, JobChanges, std::result::Result<(), String>),
    /// News of what is left of instances that are gone.
    Remnants(RuntimeKind, RemnantNews),
    /// News of sessions.
    Session(Box<SessionMessage>),
    /// A caller asks.
    Command(Command),
}

/// News of the use of instances.
#[derive(Debug)]
pub enum UseNews {
    /// A use begins, and lasts until its end is told.
    Begin {
        /// Its number, which no other has.
        id: UseId,
        /// What kind.
        signal: Signal,
        /// Of what.
        used: Used,
        /// Answered whether it was taken: not where a step for the instance is under way, such as its stop for idleness.
        reply: oneshot::Sender<bool>,
    },
    /// It has ended.
    End(UseId),
    /// A use that is over at once.
    Once {
        /// What kind.
        signal: Signal,
        /// Of what.
        used: Used,
    },
}

/// Which full list of a runtime has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListCall {
    /// Its place among the lists of this runtime.
    pub number: ListNumber,
    /// What was known when it began.
    pub began: Mark,
}

/// What callers ask of the core.
pub enum Command {
    /// Have it noted how much of the deadlines of rollouts is spent, as the controller ends.
    NoteClocks(oneshot::Sender<()>),
    /// Answers when everything that was declared before is planned and visible in the status.
    Settle(oneshot::Sender<()>),
    /// What would be planned from if these deployments were declared like this, or not at all.
    Preview(Vec<(String, Option<DesiredDeployment>)>, oneshot::Sender<Vec<Snapshot>>),
    /// What is planned from for everything that is known, by deployment name.
    Snapshots(oneshot::Sender<Vec<Snapshot>>),
    /// The instances that a target covers, dead ones too.
    Instances(Target, oneshot::Sender<Vec<Instance>>),
    /// Why an instance was stopped or is gone, in a sentence; nothing where it runs on.
    WhyStopped(InstanceRef, oneshot::Sender<Option<String>>),
    /// Adapter of a runtime.
    Runtime(RuntimeKind, oneshot::Sender<Option<Arc<dyn Runtime>>>),
    /// Remove these deployments, whatever declares them.
    Remove(BTreeMap<String, RemovalRequest>, oneshot::Sender<()>),
    /// Make a run of a job or cron service.
    Trigger(Trigger),
    /// These deployments are wanted: forget that their removal was asked for, and try again what was refused.
    Want(BTreeSet<String>, oneshot::Sender<()>),
    /// What a user orders of what is declared; answers what was ordered, or why it can't be.
    Order(Order, oneshot::Sender<std::result::Result<Taken, EngineError>>),
    /// The rollouts of the services that a target covers.
    Rollouts(Target, oneshot::Sender<std::result::Result<Vec<RolloutView>, EngineError>>),
    /// Have an instance of this target brought back that is down or suspended for idleness.
    Wake(Target, oneshot::Sender<std::result::Result<(), EngineError>>),
    /// What this target covers is in use; answers what that is.
    Touch(Target, oneshot::Sender<std::result::Result<Vec<String>, EngineError>>),
    /// What is known of the use of the instances that this target covers.
    ExplainIdle(Target, oneshot::Sender<std::result::Result<Vec<IdleReport>, EngineError>>),
    /// What belongs to this installation and nothing declares.
    Orphans(oneshot::Sender<Vec<OrphanView>>),
    /// Have what is left of instances that are gone taken away, by the rules of orphans.
    ClearRemnants(oneshot::Sender<()>),
    /// What is asked about sessions.
    Session(SessionCommand),
    /// Where only some deployments are worked on: work on these too.
    AttendTo(BTreeSet<String>, oneshot::Sender<()>),
}
