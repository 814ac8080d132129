//! `keel explain`: why something is as it is.

use chrono::{DateTime, SecondsFormat, Utc};
use clap::Subcommand;

use super::connect::synced_status;
use super::exit::{Exit, Outcome};
use super::output::{Columns, DataFormat, print, print_data};
use super::reconnecting::observe_existing;
use crate::config::Options;
use crate::controller::{IdleReport, Membership};
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
        match (&report.member, report.max_idle) {
            (Some(Membership::Free { .. }), _) => "  a free member of its pool".to_owned(),
            (Some(Membership::Session { id, .. }), _) => format!("  session: {id}"),
            (None, Some(limit)) => format!("  lifecycle.max_idle: {limit}"),
            (None, None) => "  lifecycle.max_idle: none, so that it is never idle".to_owned(),
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
    lines.push(format!("  next limit: {}", next_limit(report, now)));
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

/// Which limit strikes next, and when.
fn next_limit(report: &IdleReport, now: DateTime<Utc>) -> String {
    let at = |at: DateTime<Utc>| format!("at {} ({})", time(at), until(at, now));
    match (&report.member, report.next) {
        (Some(Membership::Free { until }), _) => format!("pool.warm_ttl {}: replace", at(*until)),
        (Some(Membership::Session { until: Some(end), .. }), _) => {
            format!("its session ends {} if it is left unused", at(*end))
        }
        (Some(Membership::Session { until: None, .. }), _) => "none while its session is used".to_owned(),
        (None, Some(next)) => {
            let limit = match next.limit {
                Limit::MaxIdle => "max_idle",
                Limit::MaxLifetime => "max_lifetime",
            };
            format!("{limit} {}: {}", at(next.at), next.strike.name())
        }
        (None, None) if report.rests => format!("none; `keel start {}` wakes it", report.name),
        (None, None) if report.ended.is_some() => format!("none; `keel start {}` starts it", report.name),
        (None, None) => "none".to_owned(),
    }
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
