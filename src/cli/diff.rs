//! `keel diff`: what applying files would change.

use serde::Serialize;

use super::connect::{observe, synced_status};
use super::exit::{Exit, Outcome};
use super::fields::{FieldChange, changes};
use super::files::Files;
use super::output::{Colours, DataFormat, note, print, print_data, stdout_is_terminal};
use super::problems;
use super::text::harmless;
use crate::api::Client;
use crate::config::Options;
use crate::controller::{ApplyRequest, Change, DeploymentPreview, Preview};

/// Show what applying files would change: fields, then steps
///
/// Compares with what is declared and with what runs; changes nothing. Values of secrets (variables whose name says
/// so, references to secrets, addresses with a password) are shown as ***.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel diff -f specs/\n  keel diff -f web.yaml -o json\n\n\
Exit codes: 0 nothing to do, 1 there is, 2 could not tell.")]
pub struct Args {
    #[command(flatten)]
    files: Files,
    /// How to print; text when nothing is named
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<DataFormat>,
}

/// One deployment as `-o json` prints it.
#[derive(Debug, Serialize)]
struct DeploymentDiff {
    deployment: String,
    change: Change,
    fields: Vec<FieldChange>,
    steps: Vec<String>,
    waits: Vec<String>,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        if self.files.paths.is_empty() {
            anyhow::bail!("name what to compare with -f FILE, -f DIR or -f -");
        }
        let request = self.files.read()?;
        let client = observe(options).await?;
        let preview = preview(&client, &request).await;
        client.close().await;
        let (preview, synced) = preview?;
        if !preview.problems.is_empty() {
            problems::report(&preview.problems, "could not tell what would change");
            return Ok(Exit::CouldNotTell);
        }
        let exit = verdict(&preview, synced);
        let diffs: Vec<DeploymentDiff> = preview.deployments.into_iter().map(DeploymentDiff::from).collect();
        match self.output {
            Some(format) => print_data(format, &diffs)?,
            None => {
                let colours = Colours::for_stream(stdout_is_terminal());
                print(&diffs.iter().map(|diff| diff.text(colours)).collect::<String>())?;
            }
        }
        Ok(exit)
    }
}

/// What applying would do, and whether what exists was known by then.
pub async fn preview(client: &Client, request: &ApplyRequest) -> anyhow::Result<(Preview, bool)> {
    let synced = synced_status(client).await?.synced;
    Ok((client.preview(request).await?, synced))
}

/// Whether applying would do anything. Where a runtime does not answer, what runs there is not known, so neither is
/// that; why is told on standard error.
pub fn verdict(preview: &Preview, synced: bool) -> Exit {
    let blind: Vec<String> = preview.deployments.iter().filter_map(unknown).collect();
    for line in &blind {
        note(format_args!("error: {}", harmless(line)));
    }
    let nothing = |one: &DeploymentPreview| one.change == Change::Unchanged && one.steps.is_empty();
    match preview.deployments.iter().all(nothing) {
        _ if !blind.is_empty() || !synced => Exit::CouldNotTell,
        true => Exit::Success,
        false => Exit::Failure,
    }
}

/// Why the steps of a deployment could not be told.
fn unknown(preview: &DeploymentPreview) -> Option<String> {
    let waits = preview.plan.get("waits")?.as_array()?;
    let wait = waits.iter().find(|wait| wait.get("wait").is_some_and(|kind| kind == "runtime_unreachable"))?;
    let of = |key| wait.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
    Some(format!(
        "deployment/{}: could not tell what is to be done, because the {} runtime does not answer: {}",
        preview.deployment,
        of("runtime"),
        of("error")
    ))
}

impl From<DeploymentPreview> for DeploymentDiff {
    fn from(preview: DeploymentPreview) -> Self {
        let fields = changes(&preview);
        let DeploymentPreview { deployment, change, old: _, new: _, steps, waits, plan: _ } = preview;
        Self { deployment, change, fields, steps, waits }
    }
}

impl DeploymentDiff {
    /// Nothing for a deployment to which nothing would be done.
    fn text(&self, colours: Colours) -> String {
        if self.change == Change::Unchanged && self.steps.is_empty() {
            return String::new();
        }
        let mut text = format!("deployment/{} {}\n", self.deployment, self.change.name());
        for field in &self.fields {
            let line = harmless(&field.to_string());
            let line = match (&field.old, &field.new) {
                (None, _) => colours.green(&line),
                (_, None) => colours.red(&line),
                _ => colours.yellow(&line),
            };
            text.push_str(&format!("  {line}\n"));
        }
        text.push_str(&super::plan::section("steps", &self.steps));
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::{Plan, Wait};
    use crate::spec::RuntimeKind;

    fn preview(change: Change, old: Value, new: Value, steps: &[&str]) -> DeploymentPreview {
        let present = |value: Value| (!value.is_null()).then_some(value);
        DeploymentPreview {
            deployment: "demo".to_owned(),
            change,
            old: present(old),
            new: present(new),
            steps: steps.iter().map(|step| (*step).to_owned()).collect(),
            waits: Vec::new(),
            plan: Value::Null,
        }
    }

    fn previews(one: DeploymentPreview) -> Preview {
        Preview { deployments: vec![one], problems: Vec::new() }
    }

    fn text(preview: DeploymentPreview) -> String {
        DeploymentDiff::from(preview).text(Colours::OFF)
    }

    #[test]
    fn fields_come_before_the_steps_that_follow_from_them() {
        let old = json!({"services": {"web": {"scale": {"replicas": 1}}}});
        let new = json!({"services": {"web": {"scale": {"replicas": 2}}}});
        assert_eq!(
            text(preview(Change::Configured, old, new, &["create demo/web/1"])),
            "deployment/demo configured\n  services.web.scale.replicas: 1 -> 2\n  steps:\n    create demo/web/1\n"
        );
    }

    #[test]
    fn a_difference_is_a_change_of_the_declaration_or_a_step() {
        let of = |change, steps: &[&str]| verdict(&previews(preview(change, json!({}), json!({}), steps)), true);
        assert_eq!(of(Change::Unchanged, &[]), Exit::Success);
        assert_eq!(of(Change::Unchanged, &["start demo/web/0"]), Exit::Failure);
        assert_eq!(of(Change::Configured, &[]), Exit::Failure);
        assert_eq!(text(preview(Change::Unchanged, json!({}), json!({}), &[])), "");
    }

    #[test]
    fn what_could_not_be_seen_is_not_nothing() {
        let mut unchanged = preview(Change::Unchanged, json!({}), json!({}), &[]);
        assert_eq!(verdict(&previews(unchanged.clone()), false), Exit::CouldNotTell);
        let wait = Wait::RuntimeUnreachable { runtime: RuntimeKind::Docker, error: "connection refused".to_owned() };
        unchanged.plan = serde_json::to_value(Plan { waits: vec![wait], ..Plan::default() }).unwrap();
        assert_eq!(
            unknown(&unchanged).as_deref(),
            Some(
                "deployment/demo: could not tell what is to be done, because the docker runtime does not answer: \
                 connection refused"
            )
        );
        assert_eq!(verdict(&previews(unchanged), true), Exit::CouldNotTell);
    }
}
