//! `keel touch`: say that instances are in use.

use super::exit::{Exit, Outcome};
use super::output::print;
use super::reconnecting::observe_existing;
use crate::config::Options;
use crate::state::Target;

/// Say that instances are in use
///
/// Their idleness (`lifecycle.max_idle`) counts from now on; one that is suspended for idleness runs on. What is stopped is
/// started with `keel start`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  keel touch demo/agent/0")]
pub struct Args {
    /// DEPLOYMENT, DEPLOYMENT/SERVICE or DEPLOYMENT/SERVICE/SLOT
    #[arg(value_name = "NAME")]
    name: Target,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let Some(mut engine) = observe_existing(options).await? else {
            anyhow::bail!("{} has no running instance; see keel get instances", self.name);
        };
        let touched = engine.ask(async |client| client.touch(&self.name).await).await;
        engine.close().await;
        print(&touched?.iter().map(|told| format!("instance/{told}\n")).collect::<String>())?;
        Ok(Exit::Success)
    }
}
