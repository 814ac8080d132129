//! `keel rollout`: how rollouts stand, what was rolled out before, and how to go on.

use super::exit::Outcome;
use super::ordering::{Alone, order};
use super::{rollout_history, rollout_status};
use crate::config::Options;
use crate::controller::Order;
use crate::state::Target;

/// See and steer how changes reach the replicas
///
/// A changed template replaces the replicas step by step. A rollout that fails goes back to the last revision that was
/// complete, unless `rollout.on_failure` says otherwise, and the failed one is not tried again until its spec changes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Names: DEPLOYMENT or DEPLOYMENT/SERVICE.\n\n\
Examples:\n  keel rollout status demo\n  keel rollout history demo/web --revision 2\n  keel rollout undo demo/web\n  \
keel rollout restart demo")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Status(rollout_status::Args),
    History(rollout_history::Args),
    Undo(Undo),
    Pause(Pause),
    Resume(Resume),
    Restart(Restart),
}

/// Run an earlier revision in place of the declared one
///
/// It runs until the spec of the service changes, or until the declared revision is asked for by its number. One that failed
/// is run only where it is named with `--to-revision`. `keel apply` fails as long as it is not what is declared that runs; `keel rollout status` waits for what was asked for.
#[derive(Debug, clap::Args)]
struct Undo {
    /// DEPLOYMENT/SERVICE; DEPLOYMENT where it has one service
    #[arg(value_name = "NAME")]
    name: Target,
    /// Number of the revision, as `keel rollout history` shows it [default: the last one before that was complete and has not failed since]
    #[arg(long, value_name = "NUMBER")]
    to_revision: Option<u64>,
}

/// Replace nothing for now
///
/// What dies is filled again from the last revision that was complete, and scaling still works. The time does not count for
/// `rollout.progress_deadline`.
#[derive(Debug, clap::Args)]
struct Pause {
    /// DEPLOYMENT[/SERVICE]
    #[arg(value_name = "NAME")]
    name: Target,
}

/// Go on with a rollout that is paused
#[derive(Debug, clap::Args)]
struct Resume {
    /// DEPLOYMENT[/SERVICE]
    #[arg(value_name = "NAME")]
    name: Target,
}

/// Replace every instance, by the rules of a rollout
///
/// Where the declared revision had failed and was rolled back, it is tried again. What `keel stop` holds down starts too.
#[derive(Debug, clap::Args)]
struct Restart {
    /// DEPLOYMENT[/SERVICE]
    #[arg(value_name = "NAME")]
    name: Target,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let (what, alone) = match self.verb {
            Verb::Status(args) => return args.run(options).await,
            Verb::History(args) => return args.run(options).await,
            Verb::Undo(Undo { name, to_revision }) => {
                (Order::Undo { target: name.to_string(), to_revision }, Alone::Settled)
            }
            Verb::Pause(Pause { name }) => (Order::Pause { target: name.to_string() }, Alone::Recorded),
            Verb::Resume(Resume { name }) => (Order::Resume { target: name.to_string() }, Alone::Recorded),
            Verb::Restart(Restart { name }) => (Order::Restart { target: name.to_string() }, Alone::Declared),
        };
        order(options, &what, alone).await
    }
}
