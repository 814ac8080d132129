//! `keel scale`: set the replicas of a service whose scale is left to commands.

use super::exit::Outcome;
use super::ordering::{Alone, order};
use crate::config::Options;
use crate::controller::Order;
use crate::state::Target;

/// Set the replicas of a service whose `scale.mode` is `manual`
///
/// The number is kept when the file is applied again and when the controller restarts, until the service is declared no more
/// or with another mode. Where the spec says how many there
/// are, it is edited there.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  keel scale demo/web --replicas 5")]
pub struct Args {
    /// DEPLOYMENT/SERVICE
    #[arg(value_name = "NAME")]
    name: Target,
    /// How many there should be; 0 keeps the declaration and runs nothing
    #[arg(long, value_name = "COUNT")]
    replicas: u32,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let what = Order::Scale { target: self.name.to_string(), replicas: self.replicas };
        order(options, &what, Alone::Declared).await
    }
}
