//! `keel approve`: confirm that what is kept without a declaration may go.

use super::exit::{Exit, Outcome};
use super::output::{note, print};
use super::reconnecting::{Unattended, change};
use crate::api::Client;
use crate::config::Options;

/// Confirm that deployments may be removed which are kept although the watched directory does not declare them
///
/// When more than three and more than half of the deployments are gone at once, or the directory itself is, the controller
/// removes nothing until the directory is back or this command confirms the loss; without a controller, the next one
/// removes them. `keel run --allow-empty` confirms it for as long as that controller runs.
///
/// What another directory declared, which a controller watched before, stays until a controller watches that directory
/// again. Where no loss is held, this command confirms that all of it may go; `keel delete NAME` removes one deployment.
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let (gone, has_controller) = if options.is_untouched() {
            (Vec::new(), false)
        } else {
            let mut engine = change(options, Unattended::Recorded).await?;
            let approved = engine.ask(Client::approve).await;
            let has_controller = engine.client().has_controller();
            engine.close().await;
            (approved?, has_controller)
        };
        if gone.is_empty() {
            note("nothing is held; there is nothing to approve");
        }
        print(&gone.iter().map(|name| format!("deployment/{name} pruned\n")).collect::<String>())?;
        if !gone.is_empty() && !has_controller {
            note("no controller runs, so nothing is stopped until `keel run` or `keel delete`");
        }
        Ok(Exit::Success)
    }
}
