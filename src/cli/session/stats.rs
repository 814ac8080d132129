//! `keel session stats`: how claims went.

use super::controller;
use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::{DataFormat, print, print_data};
use crate::config::Options;
use crate::controller::SessionStats;
use crate::plan::Distribution;

/// Show statistics of sessions
///
/// Derived from the sessions that are kept, of which each pool keeps the last 1,000 that have ended, and from what runs.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<DataFormat>,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let stats = controller(options).await?.session_stats().await?;
        match self.output {
            Some(format) => print_data(format, &stats)?,
            None => print(&text(&stats))?,
        }
        Ok(Exit::Success)
    }
}

fn text(stats: &SessionStats) -> String {
    let SessionStats { created, active, detached, suspended, timeouts, pool_size, unmet, .. } = stats;
    let rate = stats.pool_hit_rate.map_or("-".to_owned(), |rate| format!("{:.1} %", rate * 100.0));
    let spread = |spread: Option<Distribution>| match spread {
        None => "-".to_owned(),
        Some(Distribution { p50, p99, avg }) => format!("p50 {p50:.2} ms, p99 {p99:.2} ms, mean {avg:.2} ms"),
    };
    format!(
        "sessions   {created} created, {active} active, {detached} detached, {suspended} suspended, {timeouts} timed out\n\
         pools      {pool_size} warm members, hit rate {rate}\nclaims     {}; {unmet} got no member\ncreations  {}\n",
        spread(stats.claim_ms),
        spread(stats.creation_ms)
    )
}
