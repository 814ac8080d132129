//! `keel logs`: what instances wrote.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::exit::{Exit, Outcome};
use super::log_reader::Reader;
use super::reconnecting::observe_existing;
use crate::api::LogQuery;
use crate::config::Options;
use crate::state::Target;

/// Print what instances wrote
///
/// Works for instances that ended, with a running controller and without one. Where several instances are covered,
/// each line begins with the instance that wrote it. Pipes and files get every byte as it was
/// written (Docker itself replaces those that are no UTF-8); a line of over 64 KiB is broken where something else was
/// written in the middle of it.
///
/// With --follow it goes on with what comes: with the replacement of an instance that was restarted, rolled or created
/// anew, from its first line on, and with further replicas. Where something is declared and no instance of it runs (yet),
/// it waits for one and says so on standard error. It outlasts the controller: it goes on without one, and with the next one
/// that runs. It ends when nothing of that name is declared or exists any more, or
/// with control-C.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel logs demo/web/0\n  keel logs demo/web -f --tail 10\n  \
keel logs demo/web/0 --previous\n  keel logs demo --since 5m --timestamps\n\n\
Exit code: 0; 1 when nothing of that name is declared or exists, or output could not be read; 130 after control-C.")]
pub struct Args {
    /// DEPLOYMENT, DEPLOYMENT/SERVICE or DEPLOYMENT/SERVICE/SLOT
    target: Target,
    /// Go on with lines as they are written, by replacements and further replicas too
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines of each instance, or `all` (-1); with --follow, of those that exist already
    #[arg(long, value_name = "N", default_value = "all", allow_hyphen_values = true, value_parser = tail)]
    tail: Tail,
    /// Of the run before the newest, also while that one is dead and waits for its restart; there is nothing to follow
    /// then
    #[arg(short, long)]
    previous: bool,
    /// Only lines since then: a duration (5m) or a time (2024-05-01T10:00:00Z)
    #[arg(long, value_name = "WHEN", value_parser = since)]
    since: Option<DateTime<Utc>>,
    /// Begin each line with the time at which it was written
    #[arg(long)]
    timestamps: bool,
}

/// How many of the last lines; all of them where there is no number.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Tail(Option<u64>);

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        // As docker and as kubectl write it.
        "all" | "-1" => Ok(Tail(None)),
        number => {
            number.parse().map(|lines| Tail(Some(lines))).map_err(|_| "write a number of lines, or all".to_owned())
        }
    }
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let Some(mut engine) = observe_existing(options).await? else {
            anyhow::bail!("{} has no instance", self.target);
        };
        let query = LogQuery {
            target: self.target.to_string(),
            follow: self.follow,
            tail: self.tail.0,
            previous: self.previous,
            since: self.since,
            runtime_id: None,
        };
        let mut reader = Reader::new(query, self.timestamps);
        let outcome = tokio::select! {
            outcome = reader.read(&mut engine) => outcome,
            _ = tokio::signal::ctrl_c() => Ok(Exit::Interrupted),
        };
        engine.close().await;
        let outcome = outcome?;
        reader.finish()?;
        Ok(outcome)
    }
}

/// A time, or a duration before now.
fn since(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(time) = text.parse::<DateTime<Utc>>() {
        return Ok(time);
    }
    let ago: Duration = humantime::parse_duration(text)
        .map_err(|_| "write a duration such as 5m, or a time such as 2024-05-01T10:00:00Z".to_owned())?;
    chrono::Duration::from_std(ago)
        .ok()
        .and_then(|ago| Utc::now().checked_sub_signed(ago))
        .ok_or_else(|| "that is too long ago".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_takes_a_time_or_a_duration() {
        assert_eq!(since("1970-01-01T00:00:00Z"), Ok(DateTime::UNIX_EPOCH));
        let before = Utc::now();
        let since_then = since("5m").unwrap();
        let five_minutes = chrono::Duration::minutes(5);
        assert!(since_then >= before - five_minutes && since_then <= Utc::now() - five_minutes, "{since_then}");
        assert!(since("yesterday").is_err());
    }
}
