//! `keel rollout history`: what was rolled out before.

use chrono::{DateTime, Utc};

use super::exit::{Exit, Outcome};
use super::fields::masked;
use super::output::{Columns, DataFormat, note, print, print_data};
use super::reconnecting::observe;
use super::text::age;
use crate::config::Options;
use crate::controller::{RevisionView, RolloutView};
use crate::state::Target;

const HEADER: [&str; 6] = ["REVISION", "TEMPLATE", "STATUS", "AGE", "IMAGE", "CHANGE-CAUSE"];

/// Show the revisions of services
///
/// A revision that is rolled out again gets the next number. `rollout.history` says how many are kept. Values of secrets are
/// masked.
#[derive(Debug, clap::Args)]
#[command(after_help = "Names: DEPLOYMENT or DEPLOYMENT/SERVICE.\n\n\
Examples:\n  keel rollout history demo\n  keel rollout history demo/web --revision 2\n  \
keel rollout history demo/web -o json\n\n\
Works with a running controller and without one. Exit code 1 when a name or a revision is not found.")]
pub struct Args {
    /// DEPLOYMENT[/SERVICE]
    #[arg(value_name = "NAME")]
    name: Target,
    /// Show the spec of this revision
    #[arg(long, value_name = "NUMBER")]
    revision: Option<u64>,
    /// How to print; a table when nothing is named
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<DataFormat>,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let mut engine = observe(options).await?;
        let found = engine.ask(async |client| client.rollouts(&self.name).await).await;
        engine.close().await;
        let mut found = found?;
        for revision in found.iter_mut().flat_map(|rollout| &mut rollout.revisions) {
            revision.spec = masked(std::mem::take(&mut revision.spec));
        }
        match self.revision {
            Some(number) => self.show_revision(&found, number),
            None => self.show_all(&found),
        }
    }

    fn show_all(&self, found: &[RolloutView]) -> Outcome {
        if let Some(format) = self.output {
            print_data(format, &found)?;
            return Ok(Exit::Success);
        }
        let tables = found.iter().map(|rollout| table(rollout, Utc::now()));
        print(&tables.collect::<Vec<_>>().join("\n"))?;
        Ok(Exit::Success)
    }

    fn show_revision(&self, found: &[RolloutView], number: u64) -> Outcome {
        let mut shown = found.iter().flat_map(|rollout| {
            let named = rollout.revisions.iter().filter(|revision| revision.number == number);
            named.map(move |revision| (rollout, revision))
        });
        let (Some((rollout, revision)), None) = (shown.next(), shown.next()) else {
            let known = |rollout: &RolloutView| {
                let numbers: Vec<String> = rollout.revisions.iter().map(|one| one.number.to_string()).collect();
                format!("{}/{} has {}", rollout.deployment, rollout.service, numbers.join(", "))
            };
            let known: Vec<String> = found.iter().map(known).collect();
            note(format_args!("error: which revision {number} is meant is not known: {}", known.join("; ")));
            return Ok(Exit::Failure);
        };
        match self.output {
            Some(format) => print_data(format, revision)?,
            None => {
                let spec = serde_yaml::to_string(&revision.spec)?;
                let head = format!(
                    "service/{}/{} with revision {number} ({}, {}, declared in {})",
                    rollout.deployment,
                    rollout.service,
                    revision.revision.short(),
                    status(revision),
                    revision.source
                );
                print(&format!("{head}\n{spec}"))?;
            }
        }
        Ok(Exit::Success)
    }
}

fn table(rollout: &RolloutView, now: DateTime<Utc>) -> String {
    let rows: Vec<Vec<String>> = rollout.revisions.iter().map(|revision| row(revision, now)).collect();
    let table = Columns::default().render(Some(&HEADER), &rows);
    format!("service/{}/{}\n{table}", rollout.deployment, rollout.service)
}

fn row(revision: &RevisionView, now: DateTime<Utc>) -> Vec<String> {
    vec![
        revision.number.to_string(),
        revision.revision.short().to_owned(),
        status(revision),
        age((now - revision.declared_at).to_std().unwrap_or_default()),
        revision.image.clone(),
        revision.source.clone(),
    ]
}

/// What became of it, and whether it is what is declared.
fn status(revision: &RevisionView) -> String {
    let status = match (revision.failed, revision.wanted, revision.completed_at) {
        (true, ..) if revision.paused => "failed (paused)",
        (true, ..) => "failed",
        (_, true, Some(_)) => "current",
        (_, true, None) => "rolling out",
        (_, false, Some(_)) => "complete",
        (_, false, None) => "incomplete",
    };
    match revision.declared && !revision.wanted {
        true => format!("{status}, declared"),
        false => status.to_owned(),
    }
}
