//! `keel approve`: confirm that what is kept without a declaration may go.

use std::time::Duration;

use super::connect::synced_status;
use super::exit::{Exit, Outcome};
use super::output::{note, print};
use super::reconnecting::{Unattended, change};
use crate::api::{ApiError, Client, Kind};
use crate::config::Options;
use crate::status::Status;

/// Confirm that deployments may be removed which are kept although the watched directory does not declare them
///
/// When more than three and more than half of the deployments are gone at once, or the directory itself is, the controller
/// removes nothing until the directory is back or this command confirms the loss; without a controller, the next one
/// removes them. `keel run --allow-empty` confirms it for as long as that controller runs.
///
/// What another directory declared, which a controller watched before, stays until a controller watches that directory
/// again. Where no loss is held, this command confirms that all of it may go; `keel delete NAME` removes one deployment.
/// The same is true of what no file declares after the state database (keel.db) was lost: nobody knows then what was to be
/// kept. Its instances end within two minutes.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// How long another command that works on the state directory is waited for: most are done within seconds, and somebody
/// waits for the answer.
const PATIENCE: Duration = Duration::from_secs(60);

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let (gone, has_controller) = if options.is_untouched() {
            (Vec::new(), false)
        } else {
            let mut engine = change(options, Unattended::Recorded, PATIENCE).await?;
            let mut before = None;
            let approved = engine.ask(async |client| approve(client, &mut before).await).await;
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

/// Confirms what is held, and gives the names. Whoever was asked before may have confirmed it although its answer was lost;
/// what is held once that is done, or besides, is another decision, and not made here.
async fn approve(client: &Client, before: &mut Option<Vec<String>>) -> Result<Vec<String>, ApiError> {
    let status = synced_status(client).await?;
    match before {
        Some(before) if !before.iter().any(|name| is_kept(&status, name)) => return Ok(before.clone()),
        Some(before) if *before != held(&status) => {
            let message = "what is held changed while the controller ended; look at it with keel get deployments, and approve again";
            return Err(ApiError::new(Kind::Conflict, message));
        }
        Some(_) => {}
        None => *before = Some(held(&status)),
    }
    client.approve().await
}

/// What would be confirmed: the loss that is held or, where none is, what other directories declared and what a lost
/// database may have remembered.
fn held(status: &Status) -> Vec<String> {
    match &status.hold {
        Some(hold) => hold.missing.clone(),
        None => {
            let unwatched = status.unwatched.iter().map(|view| &view.deployment);
            unwatched.chain(status.reset.iter().flat_map(|reset| &reset.kept)).cloned().collect()
        }
    }
}

/// Whether a deployment is kept although nothing declares it.
fn is_kept(status: &Status, name: &str) -> bool {
    let missing = status.hold.iter().flat_map(|hold| &hold.missing);
    let forgotten = status.reset.iter().flat_map(|reset| &reset.kept);
    missing.chain(status.unwatched.iter().map(|view| &view.deployment)).chain(forgotten).any(|kept| kept == name)
}
