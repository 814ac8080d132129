//! `keel plan`: the steps that would be taken.

use super::connect::{observe, warn_about};
use super::diff::{preview, verdict};
use super::exit::{Exit, Outcome};
use super::files::Files;
use super::output::{DataFormat, note, print, print_data};
use super::problems;
use super::text::harmless;
use crate::api::Client;
use crate::config::Options;
use crate::controller::{ApplyRequest, DeploymentPreview, Preview};

/// Show the steps that would be taken, why, and what would be waited for
///
/// With -f, as if the files were applied; without, for what is declared now. Only the steps that may be taken at once
/// are shown: a rolling update plans the next ones when these are done. Changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel plan -f specs/\n  keel plan\n  keel plan -o json\n\n\
Exit codes: 0 nothing to do, 1 there is, 2 could not tell.")]
pub struct Args {
    #[command(flatten)]
    files: Files,
    /// How to print; text when nothing is named
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<DataFormat>,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let request = self.files.read()?;
        let (preview, synced) = if self.files.paths.is_empty() && options.is_untouched() {
            (Preview::default(), true)
        } else {
            let client = observe(options).await?;
            let preview = self.preview(&client, &request).await;
            client.close().await;
            preview?
        };
        if self.files.paths.is_empty() && synced && preview.deployments.is_empty() {
            note("nothing is declared");
        }
        if !preview.problems.is_empty() {
            problems::report(&preview.problems, "could not tell what would be done");
            return Ok(Exit::CouldNotTell);
        }
        match self.output {
            Some(format) => print_data(format, &plans(&preview))?,
            None => print(&preview.deployments.iter().map(text).collect::<String>())?,
        }
        Ok(verdict(&preview, synced))
    }

    async fn preview(&self, client: &Client, request: &ApplyRequest) -> anyhow::Result<(Preview, bool)> {
        let previewed = preview(client, request).await?;
        if self.files.paths.is_empty() {
            warn_about(&client.status().await?);
        }
        Ok(previewed)
    }
}

fn plans(preview: &Preview) -> Vec<serde_json::Value> {
    let one = |preview: &DeploymentPreview| {
        serde_json::json!({
            "deployment": preview.deployment,
            "change": preview.change,
            "steps": preview.steps,
            "waits": preview.waits,
            "plan": preview.plan,
        })
    };
    preview.deployments.iter().map(one).collect()
}

fn text(preview: &DeploymentPreview) -> String {
    let nothing = if preview.steps.is_empty() && preview.waits.is_empty() { ": nothing to do" } else { "" };
    let steps = section("steps", &preview.steps);
    let waits = section("waits", &preview.waits);
    format!("deployment/{} {}{nothing}\n{steps}{waits}", preview.deployment, preview.change.name())
}

/// Lines under a heading; nothing where there are none.
pub fn section(heading: &str, lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let lines: String = lines.iter().map(|line| format!("    {}\n", harmless(line))).collect();
    format!("  {heading}:\n{lines}")
}
