//! `keel plan`: the steps that would be taken.

use super::connect::warn_about;
use super::exit::{Exit, Outcome};
use super::fields::masked_steps;
use super::output::{note, print, print_data};
use super::preview::{PreviewArgs, preview, section, verdict};
use super::problems;
use super::reconnecting::observe;
use crate::api::{ApiError, Client};
use crate::config::Options;
use crate::controller::{ApplyRequest, DeploymentPreview, Preview};
use crate::status::Status;

/// Show the steps that would be taken, why, and what would be waited for
///
/// With -f, as if the files were applied; without, for what is declared now. Shows everything that is expected until
/// nothing is left to do, if all of it succeeds: what has the same number happens side by side. Instances for which
/// the same is done share a line, and what comes again and again is told once; -o json has every step. Changes
/// nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel plan -f specs/\n  keel plan\n  keel plan -o json\n\n\
Exit codes: 0 nothing to do, 1 there is, 2 could not tell.")]
pub struct Args {
    #[command(flatten)]
    of: PreviewArgs,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let PreviewArgs { files, output } = self.of;
        let request = files.read(options.runtime)?;
        let of_everything = files.paths.is_empty();
        let (preview, synced) = if of_everything && options.is_untouched() {
            (Preview::default(), true)
        } else {
            let mut engine = observe(options).await?;
            let found = engine.ask(async |client| preview_with_status(client, &request).await).await;
            engine.close().await;
            let (preview, synced, status) = found?;
            if of_everything {
                warn_about(&status);
            }
            (preview, synced)
        };
        if of_everything && synced && preview.deployments.is_empty() {
            note("nothing is declared");
        }
        if !preview.problems.is_empty() {
            problems::report(&preview.problems, "could not tell what would be done");
            return Ok(Exit::CouldNotTell);
        }
        match output {
            Some(format) => print_data(format, &preview.deployments.iter().map(value).collect::<Vec<_>>())?,
            None => print(&preview.deployments.iter().map(text).collect::<String>())?,
        }
        Ok(verdict(&preview, synced))
    }
}

async fn preview_with_status(client: &Client, request: &ApplyRequest) -> Result<(Preview, bool, Status), ApiError> {
    let (preview, synced) = preview(client, request).await?;
    Ok((preview, synced, client.status().await?))
}

fn value(preview: &DeploymentPreview) -> serde_json::Value {
    serde_json::json!({
        "deployment": preview.deployment,
        "change": preview.change,
        "steps": preview.steps,
        "waits": preview.waits,
        "plan": masked_steps(serde_json::json!(preview.plan)),
        "forecast": masked_steps(preview.forecast.clone()),
        "cut_short": preview.cut_short,
    })
}

fn text(preview: &DeploymentPreview) -> String {
    let nothing = if preview.course.is_empty() && preview.waits.is_empty() { ": nothing to do" } else { "" };
    let steps = section("steps", &preview.course);
    let waits = section("waits", &preview.waits);
    format!("deployment/{} {}{nothing}\n{steps}{waits}", preview.deployment, preview.change.name())
}
