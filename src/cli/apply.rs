//! `keel apply`: declare what files say, and wait until it runs.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::converge::{Baseline, TIMEOUT, Waited, not_done, report, wait};
use super::exit::{Exit, Outcome};
use super::files::Files;
use super::goal::{Goals, Results, goals};
use super::output::{note, print};
use super::problems;
use super::reconnecting::{Reconnecting, Unattended, change, observe};
use super::text::harmless;
use crate::api::Client;
use crate::config::Options;
use crate::controller::{Applied, ApplyRequest, Change};

/// Declare what files say, and wait until it runs
///
/// What was applied from the same file or directory before and is not there any more is removed (pruned); what came
/// from standard input stays until it is deleted. Files that declare nothing at all are refused. Works with a running
/// controller, which then keeps it running, and without one: then this command does the work itself and
/// leaves what runs behind; nothing watches over it until the next `keel run` or `keel apply`.
///
/// What --runtime says is remembered with each deployment that is declared, until an apply says another one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel apply -f specs/\n  keel apply -f web.yaml -f db.yaml --timeout 2m\n  \
cat web.yaml | keel apply -f -\n  keel apply -f specs/ --dry-run\n\n\
Exit codes: 0 everything runs as declared, 1 it failed (why, and the last lines of what crashed, is printed), \
124 --timeout ran out first (what is missing and why is printed), 130 interrupted. In the last two cases the \
declaration stands.")]
pub struct Args {
    #[command(flatten)]
    files: Files,
    /// Return as soon as it is declared
    #[arg(long)]
    no_wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = TIMEOUT, value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print what would be declared, and change nothing; `keel diff` and `keel plan` say more
    #[arg(long)]
    dry_run: bool,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        if self.files.paths.is_empty() {
            anyhow::bail!("name what to apply with -f FILE, -f DIR or -f -");
        }
        let request = self.files.read(options.runtime)?;
        let effect = if self.dry_run { "nothing would be applied" } else { "nothing was applied" };
        let Some(expected) = dry_run(options, &request, effect).await? else { return Ok(Exit::Failure) };
        if self.dry_run {
            print_results(&expected, " (dry run)")?;
            return Ok(Exit::Success);
        }
        let unattended = if self.no_wait { Unattended::Recorded } else { Unattended::CarriedOut };
        let mut engine = change(options, unattended).await?;
        let outcome = self.apply(&mut engine, request, expected.results).await;
        engine.close().await;
        outcome
    }

    /// Declares it, and waits; once more with the next engine where the controller ends meanwhile, which then finds it
    /// declared. What was expected tells what an answer said that was lost.
    async fn apply(&self, engine: &mut Reconnecting<'_>, mut request: ApplyRequest, expected: Results) -> Outcome {
        let deadline = Instant::now() + self.timeout;
        let (mut results, mut baseline) = (expected, None);
        let (mut has_asked, mut is_told) = (false, false);
        let declare = async |client: &Client| -> Outcome {
            let baseline = match &mut baseline {
                Some(baseline) => &*baseline,
                none => none.insert(Baseline::of(&client.status().await?)),
            };
            let is_retry = std::mem::replace(&mut has_asked, true);
            request.attend_to = results.iter().filter(|_| is_retry).map(|(name, _)| name.clone()).collect();
            let applied = client.apply(&request).await?;
            if !applied.problems.is_empty() {
                problems::report(&applied.problems, "nothing was applied");
                return Ok(Exit::Failure);
            }
            results = if is_retry { after_retry(&results, applied.results) } else { applied.results };
            if !is_told {
                print_results(&Applied { results: results.clone(), notes: applied.notes, ..Applied::default() }, "")?;
                is_told = true;
            }
            if self.no_wait {
                if !client.has_controller() {
                    note(
                        "no controller runs, so nothing is started until `keel run` or `keel apply` without --no-wait",
                    );
                }
                return Ok(Exit::Success);
            }
            finish(client, &goals(&results), baseline, deadline, self.timeout).await
        };
        match unless_interrupted(engine.ask(declare)).await {
            Some(outcome) => outcome,
            None if is_told => Ok(interrupted("what was declared stands")),
            None => Ok(interrupted("see `keel get deployments` for what is declared")),
        }
    }
}

/// What applying the files would answer, asked before anything is made; `None` where they have problems, which are told.
async fn dry_run(options: &Options, request: &ApplyRequest, effect: &str) -> anyhow::Result<Option<Applied>> {
    let mut engine = observe(options).await?;
    let expected = engine.ask(async |client| client.dry_run(request).await).await;
    engine.close().await;
    let expected = expected?;
    if !expected.problems.is_empty() {
        problems::report(&expected.problems, effect);
        return Ok(None);
    }
    Ok(Some(expected))
}

/// What all tries together did: one that was not answered may have been carried out, and is what the next one finds.
fn after_retry(before: &[(String, Change)], now: Results) -> Results {
    let earlier = |name: &String| before.iter().find(|(other, _)| other == name).map(|(_, change)| *change);
    let named: BTreeSet<String> = now.iter().map(|(name, _)| name.clone()).collect();
    let declared = now.into_iter().map(|(name, change)| match (earlier(&name), change) {
        (Some(made @ (Change::Created | Change::Configured)), Change::Unchanged) => (name, made),
        _ => (name, change),
    });
    let gone = before.iter().filter(|(name, _)| !named.contains(name)).cloned();
    declared.chain(gone).collect()
}

/// Prints `deployment/x created`, one line per deployment, and what else there is to know.
pub fn print_results(applied: &Applied, suffix: &str) -> anyhow::Result<()> {
    let line = |(name, change): &(String, Change)| format!("deployment/{name} {}{suffix}\n", change.name());
    print(&applied.results.iter().map(line).collect::<String>())?;
    for text in &applied.notes {
        note(harmless(text));
    }
    Ok(())
}

/// Waits for the goals until the end of the timeout that was given, and tells how it ended.
pub async fn finish(
    client: &Client,
    goals: &Goals,
    baseline: &Baseline,
    deadline: Instant,
    timeout: Duration,
) -> Outcome {
    match wait(client, goals, baseline, deadline).await? {
        Waited::Reached => Ok(Exit::Success),
        Waited::Failed(failures) => {
            report(client, "failed", &failures).await;
            Ok(Exit::Failure)
        }
        Waited::TimedOut(missing) => {
            let after = not_done(timeout);
            if missing.is_empty() {
                note(format_args!("error: {after}: what runs has not run for long enough to count"));
            }
            report(client, &after, &missing).await;
            Ok(Exit::TimedOut)
        }
    }
}

/// Does this to its end; `None` where somebody presses control-C first.
pub async fn unless_interrupted<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        Ok(()) = tokio::signal::ctrl_c() => None,
    }
}

/// Tells that it was, and what that means.
pub fn interrupted(what: &str) -> Exit {
    note(format_args!("interrupted; {what}"));
    Exit::Interrupted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_tells_what_the_first_try_did() {
        let results = |all: &[(&str, Change)]| all.iter().map(|(name, change)| ((*name).to_owned(), *change)).collect();
        let before: Results = results(&[
            ("a", Change::Created),
            ("b", Change::Configured),
            ("c", Change::Unchanged),
            ("d", Change::Unchanged),
            ("x", Change::Pruned),
            ("y", Change::Pruned),
        ]);
        let now = results(&[
            ("a", Change::Unchanged),
            ("b", Change::Unchanged),
            ("c", Change::Unchanged),
            ("d", Change::Configured),
            ("y", Change::Pruned),
        ]);
        let all = results(&[
            ("a", Change::Created),
            ("b", Change::Configured),
            ("c", Change::Unchanged),
            ("d", Change::Configured),
            ("y", Change::Pruned),
            ("x", Change::Pruned),
        ]);
        assert_eq!(after_retry(&before, now), all);
        let not_carried_out = before.clone();
        assert_eq!(after_retry(&before, not_carried_out), before);
    }
}
