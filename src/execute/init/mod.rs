//! Steps before a start (`init.steps`): waits for servers, and commands in an instance of their own.

mod helper;
mod reach;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

pub use self::helper::spec_of_helper;
use super::Gate;
use crate::runtime::{CreateRequest, ErrorKind, Runtime, RuntimeError};
use crate::spec::{HumanDuration, InitAction, InitStep, RuntimeKind};
use crate::state::Instance;

/// Pause before a step that failed is tried again; as between failed calls.
const PAUSE: Duration = Duration::from_secs(1);

/// What steps before a start see of their deployment.
#[derive(Clone)]
pub struct Surroundings {
    /// Its instances as they were observed last, helpers of steps among them.
    pub observed: watch::Receiver<Arc<Vec<Instance>>>,
    /// Names of its services.
    pub services: BTreeSet<String>,
    /// The runtimes that answer.
    pub runtimes: BTreeMap<RuntimeKind, Arc<dyn Runtime>>,
}

impl Surroundings {
    /// Those of a lane without such steps.
    pub fn none() -> Self {
        Self { observed: watch::channel(Arc::default()).1, services: BTreeSet::new(), runtimes: BTreeMap::new() }
    }
}

/// Everything that a step needs.
pub(super) struct Init<'a> {
    pub(super) step: &'a InitStep,
    /// What would create the instance that is to be started.
    pub(super) request: CreateRequest,
    pub(super) runtime: &'a dyn Runtime,
    pub(super) gate: &'a Gate,
    pub(super) around: Surroundings,
    /// Told what is being waited for, in words.
    pub(super) say: &'a (dyn Fn(String) + Send + Sync),
}

/// What a try may take besides its own time: the calls that create, start and remove the instance of a command, each of
/// which is bounded, and the reading of its last lines.
const BEYOND_TRY: Duration = Duration::from_secs(4 * helper::CALL.as_secs());

/// Longest time that a step takes with all of its tries.
pub(super) fn longest(step: &InitStep) -> Duration {
    step.timeout().saturating_add(PAUSE).saturating_add(BEYOND_TRY).saturating_mul(step.tries())
}

impl Init<'_> {
    /// Carries the step out: as often as it says, until a try succeeds.
    ///
    /// # Errors
    /// `InitFailed` when no try succeeds; what the runtime says where it does not answer.
    pub(super) async fn run(mut self) -> Result<(), RuntimeError> {
        let step = self.step;
        let Some(action) = step.action() else {
            return Err(failed(step, 0, "its inputs make no sense"));
        };
        let tries = step.tries();
        for number in 1..=tries {
            let why = match self.attempt(&action).await {
                Ok(()) => return Ok(()),
                Err(error) if error.means_unreachable() => return Err(error),
                Err(error) => error.message,
            };
            if number == tries {
                return Err(failed(step, tries, &why));
            }
            (self.say)(format!("init step {}: try {number} of {tries} failed: {why}", step.id));
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn attempt(&mut self, action: &InitAction) -> Result<(), RuntimeError> {
        match action {
            InitAction::Run { command, workdir } => self.command(command, workdir.as_deref()).await,
            InitAction::WaitTcp { interval, .. } | InitAction::WaitHttp { interval, .. } => {
                self.wait(action, *interval).await
            }
        }
    }

    /// Looks again and again until somebody answers as is wanted, or the time of the try is over.
    async fn wait(&mut self, action: &InitAction, interval: Duration) -> Result<(), RuntimeError> {
        let limit = self.step.timeout();
        let mut last = "nobody was asked".to_owned();
        let looking = async {
            loop {
                match self.look(action).await {
                    Ok(()) => return,
                    Err(why) => last = why,
                }
                (self.say)(format!("init step {}: {last}", self.step.id));
                tokio::time::sleep(interval).await;
            }
        };
        let looked = tokio::time::timeout(limit, looking).await;
        looked.map_err(|_| {
            RuntimeError::new(ErrorKind::InitFailed, format!("not within {}: {last}", HumanDuration(limit)))
        })
    }
}

fn failed(step: &InitStep, tries: u32, why: &str) -> RuntimeError {
    let times = if tries > 1 { format!(" {tries} times") } else { String::new() };
    RuntimeError::new(ErrorKind::InitFailed, format!("init step {} ({}) failed{times}: {why}", step.id, step.uses))
}
