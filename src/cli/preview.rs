//! What `diff` and `plan` share: what they are asked, and what there is to do.

use super::connect::synced_status;
use super::exit::Exit;
use super::files::Files;
use super::output::{DataFormat, note};
use super::text::harmless;
use crate::api::{ApiError, Client};
use crate::controller::{ApplyRequest, Change, DeploymentPreview, Preview};

/// What is looked at, and how it is printed.
#[derive(Debug, clap::Args)]
pub struct PreviewArgs {
    #[command(flatten)]
    pub files: Files,
    /// How to print; text when nothing is named
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<DataFormat>,
}

/// What applying would do, and whether what exists was known by then.
pub async fn preview(client: &Client, request: &ApplyRequest) -> Result<(Preview, bool), ApiError> {
    let synced = synced_status(client).await?.synced;
    let preview = client.preview(request).await?;
    for line in &preview.notes {
        note(harmless(line));
    }
    Ok((preview, synced))
}

/// Whether applying would do anything. Where a runtime does not answer, what runs there is not known, so neither is
/// that; why is told on standard error.
pub fn verdict(preview: &Preview, synced: bool) -> Exit {
    let blind: Vec<String> = preview.deployments.iter().filter_map(unknown).collect();
    for line in &blind {
        note(format_args!("error: {}", harmless(line)));
    }
    for line in preview.deployments.iter().filter_map(cut_short) {
        note(format_args!("warning: {line}"));
    }
    let is_open = preview.deployments.iter().any(|one| one.cut_short.is_some() && one.steps.is_empty());
    match preview.deployments.iter().all(is_nothing) {
        _ if !blind.is_empty() || !synced => Exit::CouldNotTell,
        true if is_open => Exit::CouldNotTell,
        true => Exit::Success,
        false => Exit::Failure,
    }
}

/// Whether nothing is declared differently and nothing is to be done.
pub fn is_nothing(preview: &DeploymentPreview) -> bool {
    preview.change == Change::Unchanged && preview.steps.is_empty()
}

/// Why not all steps of a deployment are told.
fn cut_short(preview: &DeploymentPreview) -> Option<String> {
    Some(format!("deployment/{}: {}", preview.deployment, preview.cut_short.as_ref()?))
}

/// Why the steps of a deployment could not be told.
fn unknown(preview: &DeploymentPreview) -> Option<String> {
    let waits = preview.plan.get("waits")?.as_array()?;
    waits.iter().find_map(|wait| {
        let of = |key| wait.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
        let runtime = of("runtime");
        let why = match of("wait") {
            "runtime_unreachable" => format!("because the {runtime} runtime does not answer: {}", of("error")),
            "runtime_absent" => format!("because nothing is run on {runtime}: {}", of("why")),
            _ => return None,
        };
        Some(format!("deployment/{}: could not tell what is to be done, {why}", preview.deployment))
    })
}

/// Lines under a heading; nothing where there are none.
pub fn section(heading: &str, lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let lines: String = lines.iter().map(|line| format!("    {}\n", harmless(line))).collect();
    format!("  {heading}:\n{lines}")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::plan::{Plan, Wait};
    use crate::spec::RuntimeKind;

    fn preview(change: Change, steps: &[&str]) -> DeploymentPreview {
        let steps: Vec<String> = steps.iter().map(|step| (*step).to_owned()).collect();
        DeploymentPreview {
            deployment: "demo".to_owned(),
            change,
            old: None,
            new: None,
            course: steps.clone(),
            steps,
            waits: Vec::new(),
            plan: Value::Null,
            forecast: Value::Null,
            cut_short: None,
        }
    }

    fn previews(one: DeploymentPreview) -> Preview {
        Preview { deployments: vec![one], ..Preview::default() }
    }

    #[test]
    fn a_difference_is_a_change_of_the_declaration_or_a_step() {
        let of = |change, steps: &[&str]| verdict(&previews(preview(change, steps)), true);
        assert_eq!(of(Change::Unchanged, &[]), Exit::Success);
        assert_eq!(of(Change::Unchanged, &["start demo/web/0"]), Exit::Failure);
        assert_eq!(of(Change::Configured, &[]), Exit::Failure);
    }

    #[test]
    fn what_was_not_looked_at_is_not_nothing() {
        let of = |change, steps: &[&str]| DeploymentPreview {
            cut_short: Some("there was no time".to_owned()),
            ..preview(change, steps)
        };
        let waits = of(Change::Unchanged, &[]);
        assert_eq!(cut_short(&waits).as_deref(), Some("deployment/demo: there was no time"));
        assert_eq!(verdict(&previews(waits), true), Exit::CouldNotTell);
        assert_eq!(verdict(&previews(of(Change::Configured, &[])), true), Exit::Failure);
        assert_eq!(verdict(&previews(of(Change::Unchanged, &["start demo/web/0"])), true), Exit::Failure);
    }

    #[test]
    fn what_could_not_be_seen_is_not_nothing() {
        let mut unchanged = preview(Change::Unchanged, &[]);
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
