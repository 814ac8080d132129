//! `keel hold`: keep instances alive for a while.

use std::time::Duration;

use super::exit::{Outcome, Usage};
use super::ordering::{Alone, order};
use super::text::duration;
use crate::config::Options;
use crate::controller::Order;
use crate::state::Target;

/// Keep instances alive for a while
///
/// What is idle is woken; what is stopped or terminated is refused until `keel start` starts it. Until then they are neither idle (`lifecycle.max_idle`) nor recycled for their age
/// (`lifecycle.on_expiry: recycle`). At most 24h at a time; another hold takes the place of the one before.
/// `lifecycle.on_expiry: terminate` is a bound that no hold moves, and a hold keeps nothing from `keel stop`, a rollout, or fewer
/// replicas. It holds over restarts of the controller.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel hold demo/agent --for 30m\n  keel hold demo/agent/1 --release")]
pub struct Args {
    /// DEPLOYMENT, DEPLOYMENT/SERVICE or DEPLOYMENT/SERVICE/SLOT
    #[arg(value_name = "NAME")]
    name: Target,
    /// For how long, from now on
    #[arg(long = "for", value_name = "DURATION", value_parser = duration, required_unless_present = "release")]
    time: Option<Duration>,
    /// Hold them no longer
    #[arg(long, conflicts_with = "time")]
    release: bool,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let seconds = self.time.filter(|_| !self.release).map(|time| time.as_secs());
        if seconds == Some(0) {
            return Err(Usage("a hold is for at least 1s".to_owned()).into());
        }
        order(options, &Order::Hold { target: self.name.to_string(), seconds }, Alone::Recorded).await
    }
}
