//! `keel orphans`: what belongs to this installation and nothing declares.

use std::time::Duration;

use chrono::Utc;
use serde::Serialize;
use tokio::time::Instant;

use super::connect::{synced_status, warn_about};
use super::exit::{Exit, Outcome};
use super::output::{Columns, DataFormat, note, print, print_data};
use super::reconnecting::{Unattended, change, observe};
use super::text::{age, duration};
use super::tries::unless_interrupted;
use crate::api::{ApiError, Client};
use crate::config::Options;
use crate::controller::{OrphanKind, OrphanView};

/// How long orphans are waited for when nothing else is said: the two sightings are a minute apart, and many go a few at a time.
const TIMEOUT: &str = "5m";

/// Between two looks while orphans are waited for.
const PACE: Duration = Duration::from_millis(500);

const HEADER: [&str; 7] = ["KIND", "NAME", "RUNTIME", "AGE", "FIRST SEEN", "DUE", "REASON"];

/// List what belongs to this installation and nothing declares
///
/// Instances, with their supervisors, control groups, mounts and directories, and networks; what is left of these where somebody
/// took the directory of an instance away; and images that were not used for a week. A controller removes them by itself:
/// what it has seen for a minute without a declaration or a need and is a minute old, ten at a time, each looked at again right
/// before, and each removal is logged. Named volumes stay. What other installations or other tools made is not listed, and never touched; nor is what a lost
/// database may have remembered, until `keel approve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel orphans\n  keel orphans --reap\n  keel orphans --reap --dry-run -o json\n\n\
Exit code 1 when something could not be removed, 124 when --timeout ran out.")]
pub struct Args {
    /// Wait until they are removed; without a controller, this command removes them
    #[arg(long)]
    reap: bool,
    /// Change nothing: only show what would be removed, and when
    #[arg(long)]
    dry_run: bool,
    /// How long to wait for their removal
    #[arg(long, value_name = "DURATION", default_value = TIMEOUT, value_parser = duration)]
    timeout: Duration,
    /// How to print; a table when nothing is named
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<DataFormat>,
}

/// What came of one orphan.
#[derive(Debug, Serialize)]
struct Reaped {
    #[serde(flatten)]
    orphan: OrphanView,
    /// `removed`, `kept`, `failed` or `left`.
    result: &'static str,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        if self.reap && !self.dry_run {
            return self.reap(options).await;
        }
        let mut engine = observe(options).await?;
        let looked =
            engine.ask(async |client| Ok::<_, ApiError>((synced_status(client).await?, client.orphans().await?))).await;
        engine.close().await;
        let (status, orphans) = looked?;
        warn_about(&status);
        match self.output {
            Some(format) => print_data(format, &orphans)?,
            None if orphans.is_empty() => note("No orphans found"),
            None => print(&Columns::default().render(Some(&HEADER), &orphans.iter().map(cells).collect::<Vec<_>>()))?,
        }
        Ok(Exit::Success)
    }

    async fn reap(self, options: &Options) -> Outcome {
        let deadline = Instant::now() + self.timeout;
        let engine = change(options, Unattended::CarriedOut, self.timeout).await?;
        let reaped = unless_interrupted(watch(engine.client(), deadline)).await;
        engine.close().await;
        let Some(reaped) = reaped else {
            note("interrupted; a controller goes on with it");
            return Ok(Exit::Interrupted);
        };
        let reaped = reaped?;
        match self.output {
            Some(format) => print_data(format, &reaped)?,
            None if reaped.is_empty() => note("No orphans found"),
            None => print(&reaped.iter().map(line).collect::<String>())?,
        }
        Ok(match () {
            () if reaped.iter().any(|one| one.result == "failed") => Exit::Failure,
            () if reaped.iter().any(|one| one.result == "left") => Exit::TimedOut,
            () => Exit::Success,
        })
    }
}

/// Has orphans removed, and waits until those are gone that were there.
async fn watch(client: &Client, deadline: Instant) -> Result<Vec<Reaped>, ApiError> {
    synced_status(client).await?;
    let first = client.reap().await?;
    let key = |orphan: &OrphanView| (orphan.name.clone(), orphan.runtime.as_str(), orphan.runtime_id.clone());
    let mut left = first.clone();
    // What has no time at which it goes is kept.
    while left.iter().any(|orphan| orphan.due.is_some()) && Instant::now() < deadline {
        tokio::time::sleep(PACE).await;
        left = client.orphans().await?;
    }
    let of = |orphan: OrphanView| {
        let now = left.iter().find(|one| key(one) == key(&orphan)).cloned();
        let result = match now.as_ref().map(|now| (now.failed.is_some(), now.due.is_some())) {
            None => "removed",
            Some((true, _)) => "failed",
            Some((false, true)) => "left",
            Some((false, false)) => "kept",
        };
        Reaped { orphan: now.unwrap_or(orphan), result }
    };
    Ok(first.into_iter().map(of).collect())
}

fn line(reaped: &Reaped) -> String {
    let Reaped { orphan, result } = reaped;
    let why = orphan.failed.as_ref().filter(|_| *result == "failed").unwrap_or(&orphan.reason);
    format!("{}/{} {result}: {why}\n", kind(orphan.kind), orphan.name)
}

const fn kind(kind: OrphanKind) -> &'static str {
    match kind {
        OrphanKind::Instance => "instance",
        OrphanKind::Network => "network",
        OrphanKind::Supervisor => "supervisor",
        OrphanKind::ControlGroup => "control-group",
        OrphanKind::Mount => "mount",
        OrphanKind::Device => "device",
        OrphanKind::Directory => "directory",
        OrphanKind::Image => "image",
    }
}

fn cells(orphan: &OrphanView) -> Vec<String> {
    let now = Utc::now();
    let since = |at: chrono::DateTime<Utc>| age((now - at).to_std().unwrap_or_default());
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "<none>".to_owned());
    vec![
        kind(orphan.kind).to_owned(),
        orphan.name.clone(),
        orphan.runtime.to_string(),
        or_none(orphan.created_at.map(since)),
        or_none(orphan.first_seen.map(|at| format!("{} ago", since(at)))),
        match orphan.due {
            Some(at) if at <= now => "now".to_owned(),
            Some(at) => format!("in {}", age((at - now).to_std().unwrap_or_default())),
            None => "never".to_owned(),
        },
        orphan.failed.as_ref().map_or_else(|| orphan.reason.clone(), |why| format!("{}; {why}", orphan.reason)),
    ]
}
