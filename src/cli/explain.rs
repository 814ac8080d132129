//! `keel explain`: why something is as it is.

use chrono::{DateTime, SecondsFormat, Utc};
use clap::Subcommand;

use super::connect::synced_status;
use super::exit::{Exit, Outcome};
use super::output::{Columns, DataFormat, print, print_data};
use super::reconnecting::observe_existing;
use crate::config::Options;
use crate::controller::IdleReport;
use crate::plan::idle::Limit;
use crate::spec::HumanDuration;
use crate::state::Target;

/// Explain why something is as it is
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Idle(Idle),
}

/// Show what counts as use of instances, and which limit strikes next
///
/// What is seen of use: commands and people inside (exec, attach, logs -f), keel touch and the API, sessions, connections, and
/// bytes over interfaces of its own and time of the processor, sampled where `lifecycle.max_idle` is set. The weight says how
/// much of that limit counts after a use; while it lasts, every use counts. What was before somebody watched counts as use.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel explain idle demo/agent\n  keel explain idle demo/agent/0 -o json\n\n\
Only a running controller watches. Exit code 1 when a name is not found.")]
struct Idle {
    /// DEPLOYMENT, DEPLOYMENT/SERVICE or DEPLOYMENT/SERVICE/SLOT
    #[arg(value_name = "NAME")]
    name: Target,
    /// How to print; text when nothing is named
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<DataFormat>,
}

const HEADER: [&str; 3] = ["SIGNAL", "WEIGHT", "LAST SEEN"];

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let What::Idle(Idle { name, output }) = self.what;
        let Some(mut engine) = observe_existing(options).await? else {
            anyhow::bail!("{name} has no instance; see keel get instances");
        };
        let reports = engine
            .ask(async |client| {
                synced_status(client).await?;
                client.explain_idle(&name).await
            })
            .await;
        engine.close().await;
        let reports = reports?;
        match output {
            Some(format) => print_data(format, &reports)?,
            None => {
                let now = Utc::now();
                let texts: Vec<String> = reports.iter().map(|report| text(report, now)).collect();
                print(&texts.join("\n"))?;
            }
        }
        Ok(Exit::Success)
    }
}

/// A report as people read it.
fn text(report: &IdleReport, now: DateTime<Utc>) -> String {
    let doing = match (report.doing, report.ended) {
        (Some(doing), _) => doing.name().to_owned(),
        (None, Some(ended)) => format!("not running: it ended at {} ({})", time(ended), ago(ended, now)),
        (None, None) => "not known: no controller watches it".to_owned(),
    };
    let mut lines = vec![
        format!("{} is {doing}", report.name),
        match report.max_idle {
            Some(limit) => format!("  lifecycle.max_idle: {limit}"),
            None => "  lifecycle.max_idle: none, so that it is never idle".to_owned(),
        },
    ];
    if let Some(since) = report.idle_since {
        lines.push(format!("  idle since: {} ({})", time(since), ago(since, now)));
    }
    if let (Some(counted), Some(since)) = (report.counted_since, report.idle_since)
        && time(counted) != time(since)
    {
        let why = if counted > since { "time without a watcher does not count" } else { "by the weight of the use" };
        lines.push(format!("  limit counts from: {} ({why})", time(counted)));
    }
    lines.push(match report.next {
        Some(next) => {
            let limit = match next.limit {
                Limit::MaxIdle => "max_idle",
                Limit::MaxLifetime => "max_lifetime",
            };
            format!("  next limit: {limit} at {} ({}): {}", time(next.at), until(next.at, now), next.strike.name())
        }
        None if report.rests => format!("  next limit: none; `keel start {}` wakes it", report.name),
        None if report.ended.is_some() => format!("  next limit: none; `keel start {}` starts it", report.name),
        None => "  next limit: none".to_owned(),
    });
    if let Some(held) = report.held_until {
        lines.push(format!("  held until: {} ({})", time(held), until(held, now)));
    }
    if let Some(since) = report.watched_since {
        lines.push(format!("  watched since: {}", time(since)));
    }
    let rows: Vec<Vec<String>> = report
        .signals
        .iter()
        .map(|seen| {
            let last = match (seen.ongoing, seen.last) {
                (true, _) => "now".to_owned(),
                (false, Some(last)) => format!("{} ({})", time(last), ago(last, now)),
                (false, None) => "never".to_owned(),
            };
            vec![seen.signal.name().to_owned(), format!("{}%", seen.weight), last]
        })
        .collect();
    let table = Columns::default().render(Some(&HEADER), &rows);
    lines.extend(table.lines().map(|line| format!("  {line}")));
    lines.into_iter().map(|line| format!("{line}\n")).collect()
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn ago(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    format!("{} ago", seconds(at, now))
}

fn until(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    format!("in {}", seconds(now, at))
}

fn seconds(from: DateTime<Utc>, to: DateTime<Utc>) -> HumanDuration {
    HumanDuration(std::time::Duration::from_secs((to - from).to_std().unwrap_or_default().as_secs()))
}
