//! `keel logs`: what instances wrote.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use futures::StreamExt;

use super::connect::look;
use super::exit::{Exit, Outcome};
use super::output::{Colours, note, print, stdout_is_terminal};
use super::text::harmless;
use crate::api::{ApiError, Client, LogItem, LogQuery};
use crate::config::Options;
use crate::runtime::io::LogLine;
use crate::state::Target;

/// Print what instances wrote
///
/// Works for instances that ended, with a running controller and without one. Where several instances are covered,
/// each line begins with the instance that wrote it.
///
/// With --follow it goes on with what comes: with the replacement of an instance that was restarted, rolled or created
/// anew, from its first line on, and with further replicas. Where something is declared and no instance of it runs (yet),
/// it waits for one and says so on standard error. It ends when nothing of that name is declared or exists any more, or
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
    /// Only the last N lines of each instance; with --follow, of those that exist already
    #[arg(long, value_name = "N")]
    tail: Option<u64>,
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

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let Some(client) = look(options).await? else {
            anyhow::bail!("{} has no instance", self.target);
        };
        let outcome = tokio::select! {
            outcome = self.print(&client) => outcome,
            _ = tokio::signal::ctrl_c() => Ok(Exit::Interrupted),
        };
        client.close().await;
        outcome
    }

    async fn print(&self, client: &Client) -> Outcome {
        let query = LogQuery {
            target: self.target.to_string(),
            follow: self.follow,
            tail: self.tail,
            previous: self.previous,
            since: self.since,
        };
        let mut items = client.logs(&query).await?;
        let terminal = stdout_is_terminal();
        let mut printer = Printer { timestamps: self.timestamps, terminal, prefixes: BTreeMap::new() };
        let mut exit = Exit::Success;
        while let Some(item) = items.next().await {
            match item? {
                LogItem::Instances(names) => printer.set_instances(&names),
                LogItem::Line { instance, line } => print(&printer.line(&instance, &line))?,
                LogItem::Failed { instance, error } => {
                    note(format_args!("error: reading the output of {instance} failed: {}", error.error));
                    exit = Exit::Failure;
                }
                LogItem::Interrupted { instance, error } => note(format_args!(
                    "warning: the output of {instance} can't be read at present and is tried again: {}",
                    error.error
                )),
                LogItem::Waiting => self.tell_waiting(client),
                LogItem::Gone => {
                    note(format_args!("{} is not declared any more and its last instance is gone", self.target));
                }
                LogItem::Broken(error) => return Err(ApiError::from(error).into()),
            }
        }
        Ok(exit)
    }

    fn tell_waiting(&self, client: &Client) {
        let hint = if client.has_controller() { "" } else { "; no controller runs that would start one, see keel run" };
        note(format_args!("waiting for an instance of {} to run{hint}", self.target));
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

struct Printer {
    timestamps: bool,
    terminal: bool,
    /// What lines begin with, by instance; nothing where there is one instance alone.
    prefixes: BTreeMap<String, String>,
}

impl Printer {
    fn set_instances(&mut self, names: &[String]) {
        if names.len() < 2 {
            return;
        }
        let width = names.iter().map(String::len).max().unwrap_or(0);
        let colours = Colours::for_stream(self.terminal);
        let prefix =
            |(number, name): (usize, &String)| (name.clone(), colours.nth(number, &format!("{name:width$} | ")));
        self.prefixes = names.iter().enumerate().map(prefix).collect();
    }

    /// The line as it is printed: as it was written, on a terminal made harmless.
    fn line(&self, instance: &str, line: &LogLine) -> String {
        let prefix = self.prefixes.get(instance).map_or("", String::as_str);
        let time =
            if self.timestamps { line.at.to_rfc3339_opts(SecondsFormat::Nanos, true) + " " } else { String::new() };
        let text = if self.terminal { harmless(&line.text) } else { line.text.clone() };
        format!("{prefix}{time}{text}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::io::OutputStream;

    fn printer(terminal: bool) -> Printer {
        Printer { timestamps: false, terminal, prefixes: BTreeMap::new() }
    }

    fn line(text: &str) -> LogLine {
        LogLine { at: DateTime::UNIX_EPOCH, stream: OutputStream::Stdout, text: text.to_owned() }
    }

    #[test]
    fn lines_of_one_instance_are_printed_as_they_are() {
        let mut printer = printer(false);
        printer.set_instances(&["demo/web/0".to_owned()]);
        assert_eq!(printer.line("demo/web/0", &line("hi \u{1b}[2J")), "hi \u{1b}[2J\n");
    }

    #[test]
    fn lines_of_several_instances_say_whose_they_are() {
        let mut printer = printer(false);
        printer.set_instances(&["d/web/9".to_owned(), "d/web/10".to_owned()]);
        assert_eq!(printer.line("d/web/9", &line("hi")), "d/web/9  | hi\n");
    }

    #[test]
    fn a_terminal_is_not_steered_by_what_instances_write() {
        assert_eq!(printer(true).line("d/web/0", &line("hi\u{1b}[2J")), "hi\\u{1b}[2J\n");
    }

    #[test]
    fn timestamps_come_first() {
        let printer = Printer { timestamps: true, ..printer(false) };
        assert_eq!(printer.line("d/web/0", &line("hi")), "1970-01-01T00:00:00.000000000Z hi\n");
    }

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
