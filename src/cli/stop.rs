//! `keel stop`: have something stay down.

use super::exit::Outcome;
use super::ordering::{Alone, order};
use crate::config::Options;
use crate::controller::Order;
use crate::state::Target;

/// Stop instances and have them stay down
///
/// They keep their declaration, and come back with `keel start`, or as soon as another template of their service is to run: it
/// changes, is undone or rolled back, or is restarted with `keel rollout restart`. The stop is over for good then, also where
/// the former template comes back. It holds over restarts of the controller. Jobs are not stopped; `keel suspend` stops making their runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel stop demo/agent\n  keel stop demo/agent/1")]
pub struct Args {
    /// DEPLOYMENT, DEPLOYMENT/SERVICE or DEPLOYMENT/SERVICE/SLOT
    #[arg(value_name = "NAME")]
    name: Target,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        order(options, &Order::Stop { target: self.name.to_string() }, Alone::Declared).await
    }
}
