//! `keel apply`: declare what files say, and wait until it runs.

use std::time::Duration;

use tokio::time::Instant;

use super::converge::{Baseline, Waited, report, wait};
use super::exit::{Exit, Outcome};
use super::files::Files;
use super::goal::{Goals, goals};
use super::output::{note, print};
use super::problems;
use super::reconnecting::{Reconnecting, Unattended, change, observe};
use super::text::harmless;
use crate::api::Client;
use crate::config::Options;
use crate::controller::{Applied, ApplyRequest, Change};
use crate::spec::HumanDuration;

/// Longest wait when none is named: the progress deadline of a rollout (Kubernetes' `progressDeadlineSeconds`).
const TIMEOUT: &str = "10m";

/// Declare what files say, and wait until it runs
///
/// What was applied from the same file or directory before and is not there any more is removed (pruned); what came
/// from standard input stays until it is deleted. Files that declare nothing at all are refused. Works with a running
/// controller, which then keeps it running, and without one: then this command does the work itself and
/// leaves what runs behind; nothing watches over it until the next `keel run` or `keel apply`.
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
        if self.dry_run {
            return dry_run(options, &request).await;
        }
        if !is_right(options, &request).await? {
            return Ok(Exit::Failure);
        }
        let unattended = if self.no_wait { Unattended::Recorded } else { Unattended::CarriedOut };
        let mut engine = change(options, unattended).await?;
        let outcome = self.apply(&mut engine, &request).await;
        engine.close().await;
        outcome
    }

    /// Declares it, and waits; once more with the next engine where the controller ends meanwhile, which then finds it
    /// declared.
    async fn apply(&self, engine: &mut Reconnecting<'_>, request: &ApplyRequest) -> Outcome {
        let deadline = Instant::now() + self.timeout;
        let (mut baseline, mut is_told) = (None, false);
        let declare = async |client: &Client| -> Outcome {
            let baseline = match &mut baseline {
                Some(baseline) => &*baseline,
                none => none.insert(Baseline::of(&client.status().await?)),
            };
            let applied = client.apply(request).await?;
            if !applied.problems.is_empty() {
                problems::report(&applied.problems, "nothing was applied");
                return Ok(Exit::Failure);
            }
            if !is_told {
                print_results(&applied, "")?;
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
            finish(client, &goals(&applied), baseline, deadline, self.timeout).await
        };
        engine.ask(declare).await
    }
}

/// Whether the files can be applied; tells why not. Asked before anything is made where no controller runs; a controller
/// says so itself.
async fn is_right(options: &Options, request: &ApplyRequest) -> anyhow::Result<bool> {
    let mut engine = observe(options).await?;
    let problems = engine.ask(async |client| match client.has_controller() {
        true => Ok(Vec::new()),
        false => client.preview(request).await.map(|preview| preview.problems),
    });
    let problems = problems.await;
    engine.close().await;
    let problems = problems?;
    if !problems.is_empty() {
        problems::report(&problems, "nothing was applied");
    }
    Ok(problems.is_empty())
}

async fn dry_run(options: &Options, request: &ApplyRequest) -> Outcome {
    let mut engine = observe(options).await?;
    let preview = engine.ask(async |client| client.preview(request).await).await;
    engine.close().await;
    let preview = preview?;
    if !preview.problems.is_empty() {
        problems::report(&preview.problems, "nothing would be applied");
        return Ok(Exit::Failure);
    }
    let results = preview.deployments.into_iter().map(|preview| (preview.deployment, preview.change)).collect();
    print_results(&Applied { results, ..Applied::default() }, " (dry run)")?;
    Ok(Exit::Success)
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
            let after = format!("not done after {}", HumanDuration(timeout));
            if missing.is_empty() {
                note(format_args!("error: {after}: what runs has not run for long enough to count"));
            }
            report(client, &after, &missing).await;
            Ok(Exit::TimedOut)
        }
        Waited::Interrupted => {
            note("interrupted; what was declared stands");
            Ok(Exit::Interrupted)
        }
    }
}
