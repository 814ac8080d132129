//! `keel start`: bring back what is idle, stopped or terminated.

use super::exit::Outcome;
use super::ordering::{Alone, order};
use crate::config::Options;
use crate::controller::Order;
use crate::state::Target;

/// Bring back what is down or suspended
///
/// What was stopped or suspended for idleness (`lifecycle.max_idle`), what reached its age and stays down
/// (`lifecycle.on_expiry: terminate`), what was stopped with `keel stop`, and what ended and is not started again. What runs
/// is left alone. `keel exec` and `keel attach` wake what is idle by themselves.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel start demo/agent\n  keel start demo/agent/1")]
pub struct Args {
    /// DEPLOYMENT, DEPLOYMENT/SERVICE or DEPLOYMENT/SERVICE/SLOT
    #[arg(value_name = "NAME")]
    name: Target,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        order(options, &Order::Start { target: self.name.to_string() }, Alone::Declared).await
    }
}
