//! `keel suspend`: leave a deployment as it is.

use super::exit::Outcome;
use super::ordering::{Alone, order};
use crate::config::Options;
use crate::controller::Order;
use crate::state::Target;

/// Do nothing about a deployment until it is resumed
///
/// Its instances are left as they are: none is created, stopped or removed, whatever is declared and whatever happens to them.
/// It holds over restarts of the controller. `keel delete` removes it all the same.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  keel suspend demo")]
pub struct Args {
    /// DEPLOYMENT
    #[arg(value_name = "NAME")]
    name: Target,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let what = Order::Suspend { deployment: self.name.to_string(), suspend: true };
        order(options, &what, Alone::Recorded).await
    }
}
