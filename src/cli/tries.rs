//! What the tries of a command that changes declarations have in common: how they end, and what is told of them.

use std::time::Duration;

use tokio::time::Instant;

use super::converge::{Baseline, Failed, Waited, not_done, report, wait};
use super::exit::{Exit, Outcome};
use super::goal::{Goal, Goals};
use super::output::{note, print};
use super::problems;
use super::text::harmless;
use crate::api::Client;
use crate::controller::{Applied, Change};
use crate::status::{JobKind, Status};

/// The tries of one command that changes declarations: each ends in the same way, and what was done is told once.
#[derive(Debug)]
pub struct Tries {
    words: Words,
    no_wait: bool,
    timeout: Duration,
    deadline: Instant,
    is_told: bool,
}

/// What a command says of its tries.
#[derive(Debug)]
pub struct Words {
    /// Of files that have problems.
    pub nothing_done: &'static str,
    /// Where nobody is there to do what was recorded.
    pub not_carried_out: &'static str,
    /// Of what was recorded, where somebody does not wait for the end.
    pub stands: &'static str,
}

impl Tries {
    /// None was made; the command began then, and may take that long in all.
    pub fn new(words: Words, no_wait: bool, began: Instant, timeout: Duration) -> Self {
        Self { words, no_wait, timeout, deadline: began + timeout, is_told: false }
    }

    /// Ends a try that was answered with this: tells it, unless an earlier one did, and waits for the goals where somebody
    /// is to.
    pub async fn end(&mut self, client: &Client, answer: &Applied, goals: &Goals, baseline: &Baseline) -> Outcome {
        if !answer.problems.is_empty() {
            problems::report(&answer.problems, self.words.nothing_done);
            return Ok(Exit::Failure);
        }
        // That something is deleted is told when it is gone, by whoever waits for that.
        let is_going = |(_, change): &&(String, Change)| !self.no_wait && *change == Change::Deleted;
        let (going, told): (Vec<_>, Vec<_>) = answer.results.iter().partition(is_going);
        if !self.is_told {
            print_changes(&told, "")?;
            print_notes(answer);
            self.is_told = true;
        }
        if !self.no_wait {
            return self.wait(client, goals, baseline, &going).await;
        }
        if !client.has_controller() {
            note(self.words.not_carried_out);
        }
        Ok(Exit::Success)
    }

    /// Waits for the goals for as long as there is time, and tells how it ended.
    async fn wait(&self, client: &Client, goals: &Goals, baseline: &Baseline, going: &[&(String, Change)]) -> Outcome {
        let waited = wait(client, goals, baseline, self.deadline).await?;
        let left: &[Failed] = match &waited {
            Waited::Reached => &[],
            Waited::Failed(left) | Waited::TimedOut(left) => left,
        };
        let is_gone = |(name, _): &&(String, Change)| !left.iter().any(|failed| failed.deployment == *name);
        print_changes(&going.iter().copied().filter(is_gone).collect::<Vec<_>>(), "")?;
        match waited {
            Waited::Reached => {
                print_completed(&client.status().await?, goals)?;
                Ok(Exit::Success)
            }
            Waited::Failed(failures) => {
                report(client, "failed", &failures).await;
                Ok(Exit::Failure)
            }
            Waited::TimedOut(missing) => {
                let after = not_done(self.timeout);
                if missing.is_empty() {
                    note(format_args!("error: {after}: what runs has not run for long enough to count"));
                }
                report(client, &after, &missing).await;
                Ok(Exit::TimedOut)
            }
        }
    }

    /// How the command ends after its tries; none where somebody pressed control-C first.
    pub fn outcome(&self, done: Option<Outcome>, is_attended: bool) -> Outcome {
        let told = if self.is_told { self.words.stands } else { "see `keel get deployments` for what is declared" };
        done.unwrap_or_else(|| {
            note(format_args!("interrupted; {told}"));
            if self.is_told && !is_attended {
                note("no controller runs: what was begun stays as it is, and the rest waits for `keel run` or another try");
            }
            Ok(Exit::Interrupted)
        })
    }
}

/// Does this to its end; `None` where somebody presses control-C first.
pub async fn unless_interrupted<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        Ok(()) = tokio::signal::ctrl_c() => None,
    }
}

/// Prints `job/x/y completed`, one line per job of these deployments.
fn print_completed(status: &Status, goals: &Goals) -> anyhow::Result<()> {
    let wanted = status.services.iter().filter(|view| goals.get(&view.deployment) == Some(&Goal::Running));
    let jobs = wanted.filter(|view| view.job.as_ref().is_some_and(|job| job.kind == JobKind::Job));
    print(&jobs.map(|view| format!("job/{}/{} completed\n", view.deployment, view.service)).collect::<String>())
}

/// Prints `deployment/x created`, one line per deployment, and what else there is to know.
pub fn print_results(applied: &Applied, suffix: &str) -> anyhow::Result<()> {
    print_changes(&applied.results.iter().collect::<Vec<_>>(), suffix)?;
    print_notes(applied);
    Ok(())
}

fn print_changes(changes: &[&(String, Change)], suffix: &str) -> anyhow::Result<()> {
    let line = |(name, change): &(String, Change)| format!("deployment/{name} {}{suffix}\n", change.name());
    print(&changes.iter().map(|change| line(change)).collect::<String>())
}

fn print_notes(applied: &Applied) {
    for text in &applied.notes {
        note(harmless(text));
    }
}
