//! `keel resume`: go on with a deployment that is suspended.

use super::exit::Outcome;
use super::ordering::{Alone, order};
use crate::config::Options;
use crate::controller::Order;
use crate::state::Target;

/// Go on with a deployment that is suspended
///
/// What is declared by then is rolled out.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  keel resume demo")]
pub struct Args {
    /// DEPLOYMENT
    #[arg(value_name = "NAME")]
    name: Target,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let what = Order::Suspend { deployment: self.name.to_string(), suspend: false };
        order(options, &what, Alone::Recorded).await
    }
}
