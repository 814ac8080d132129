//! `keel diff`: what applying files would change.

use serde::Serialize;

use super::exit::{Exit, Outcome, Usage};
use super::fields::{FieldChange, changes, masked_steps};
use super::output::{Colours, print, print_data, stdout_is_terminal};
use super::preview::{PreviewArgs, is_nothing, preview, section, verdict};
use super::problems;
use super::reconnecting::observe;
use super::text::harmless;
use crate::config::Options;
use crate::controller::{Change, DeploymentPreview};

/// Show what applying files would change: fields, then steps
///
/// Compares with what is declared and with what runs; changes nothing. The steps, and what is waited for after them, are
/// those of `keel plan`. Values of secrets (variables whose name says so, references to secrets, addresses with a
/// password, tokens that begin as well-known ones do) are shown as ***.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel diff -f specs/\n  keel diff -f web.yaml -o json\n\n\
Exit codes: 0 nothing to do, 1 there is, 2 could not tell.")]
pub struct Args {
    #[command(flatten)]
    of: PreviewArgs,
}

/// One deployment as `-o json` prints it.
#[derive(Debug, Serialize)]
struct DeploymentDiff<'a> {
    deployment: &'a str,
    change: Change,
    fields: Vec<FieldChange>,
    steps: &'a [String],
    waits: &'a [String],
    forecast: serde_json::Value,
    cut_short: Option<&'a str>,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let PreviewArgs { files, output } = self.of;
        if files.paths.is_empty() {
            return Err(Usage("name what to compare with -f FILE, -f DIR or -f -".to_owned()).into());
        }
        let request = files.read(options.runtime)?;
        let mut engine = observe(options).await?;
        let preview = engine.ask(async |client| preview(client, &request).await).await;
        engine.close().await;
        let (preview, synced) = preview?;
        if !preview.problems.is_empty() {
            problems::report(&preview.problems, "could not tell what would change");
            return Ok(Exit::CouldNotTell);
        }
        match output {
            Some(format) => print_data(format, &preview.deployments.iter().map(diff).collect::<Vec<_>>())?,
            None => {
                let colours = Colours::for_stream(stdout_is_terminal());
                print(&preview.deployments.iter().map(|one| text(one, colours)).collect::<String>())?;
            }
        }
        Ok(verdict(&preview, synced))
    }
}

fn diff(preview: &DeploymentPreview) -> DeploymentDiff<'_> {
    DeploymentDiff {
        deployment: &preview.deployment,
        change: preview.change,
        fields: changes(preview),
        steps: &preview.steps,
        waits: &preview.waits,
        forecast: masked_steps(preview.forecast.clone()),
        cut_short: preview.cut_short.as_deref(),
    }
}

/// Nothing for a deployment to which nothing would be done.
fn text(preview: &DeploymentPreview, colours: Colours) -> String {
    if is_nothing(preview) {
        return String::new();
    }
    let mut text = format!("deployment/{} {}\n", preview.deployment, preview.change.name());
    for field in changes(preview) {
        let line = harmless(&field.to_string());
        let line = match (&field.old, &field.new) {
            (None, _) => colours.green(&line),
            (_, None) => colours.red(&line),
            _ => colours.yellow(&line),
        };
        text.push_str(&format!("  {line}\n"));
    }
    text.push_str(&section("steps", &preview.course));
    // Where steps are missing, this says why.
    text.push_str(&section("waits", &preview.waits));
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn preview(change: Change, old: Value, new: Value, steps: &[&str]) -> DeploymentPreview {
        let steps: Vec<String> = steps.iter().map(|step| (*step).to_owned()).collect();
        DeploymentPreview {
            deployment: "demo".to_owned(),
            change,
            old: Some(old),
            new: Some(new),
            course: steps.clone(),
            steps,
            waits: Vec::new(),
            plan: Value::Null,
            forecast: Value::Null,
            cut_short: None,
        }
    }

    #[test]
    fn fields_come_before_the_steps_that_follow_from_them() {
        let old = json!({"services": {"web": {"scale": {"replicas": 1}}}});
        let new = json!({"services": {"web": {"scale": {"replicas": 2}}}});
        assert_eq!(
            text(&preview(Change::Configured, old, new, &["create demo/web/1"]), Colours::OFF),
            "deployment/demo configured\n  services.web.scale.replicas: 1 -> 2\n  steps:\n    create demo/web/1\n"
        );
        assert_eq!(text(&preview(Change::Unchanged, json!({}), json!({}), &[]), Colours::OFF), "");
    }

    #[test]
    fn a_service_that_will_not_run_is_told_instead_of_steps() {
        let mut created = preview(Change::Created, json!({}), json!({}), &[]);
        created.waits.push("leave web alone: the docker runtime can't run host".to_owned());
        assert_eq!(
            text(&created, Colours::OFF),
            "deployment/demo created\n  waits:\n    leave web alone: the docker runtime can't run host\n"
        );
    }
}
