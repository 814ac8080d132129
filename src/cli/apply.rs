//! `keel apply`: declare what files say, and wait until it runs.

use std::collections::BTreeSet;
use std::time::Duration;

use super::converge::{Baseline, TIMEOUT};
use super::exit::{Exit, Outcome, Usage};
use super::files::Files;
use super::goal::{Results, goals};
use super::problems;
use super::reconnecting::{Reconnecting, Unattended, change, observe};
use super::text::duration;
use super::tries::{Tries, Words, print_results, unless_interrupted};
use crate::api::Client;
use crate::config::Options;
use crate::controller::{Applied, ApplyRequest, Change};
use tokio::time::Instant;

const WORDS: Words = Words {
    nothing_done: "nothing was applied",
    not_carried_out: "no controller runs, so nothing is started or stopped until `keel run` or `keel apply` without --no-wait",
    stands: "what was declared stands",
};

/// Declare what files say, and wait until it runs
///
/// What was applied from the same file or directory before and is not there any more is removed (pruned), also where an
/// earlier apply did not come to the end of that; what came from standard input stays until it is deleted. Files that
/// declare nothing at all are refused. Works with a running controller, which then keeps it running, and without one: then
/// this command does the work itself and leaves what runs behind; nothing watches over it until the next `keel run` or
/// `keel apply`.
///
/// What --runtime says is remembered with each deployment that is declared, until an apply says another one. For a
/// file that a running controller watches it changes nothing, which is told.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel apply -f specs/\n  keel apply -f web.yaml -f db.yaml --timeout 2m\n  \
cat web.yaml | keel apply -f -\n  keel apply -f specs/ --dry-run\n\n\
Exit codes: 0 everything runs as declared and its rollouts are complete, 1 it failed (why, and the last lines of what crashed, is printed), \
124 --timeout ran out first (what is missing and why is printed), 130 interrupted. In the last two cases the \
declaration stands.")]
pub struct Args {
    #[command(flatten)]
    files: Files,
    /// Return as soon as it is declared
    #[arg(long)]
    no_wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = TIMEOUT, value_parser = duration)]
    timeout: Duration,
    /// Print what would be declared, and change nothing; `keel diff` and `keel plan` say more
    #[arg(long)]
    dry_run: bool,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        if self.files.paths.is_empty() {
            return Err(Usage("name what to apply with -f FILE, -f DIR or -f -".to_owned()).into());
        }
        let request = self.files.read(options.runtime)?;
        let effect = if self.dry_run { "nothing would be applied" } else { "nothing was applied" };
        let Some(expected) = dry_run(options, &request, effect).await? else { return Ok(Exit::Failure) };
        if self.dry_run {
            print_results(&expected, " (dry run)")?;
            return Ok(Exit::Success);
        }
        let unattended = if self.no_wait { Unattended::Recorded } else { Unattended::CarriedOut };
        let began = Instant::now();
        let mut engine = change(options, unattended, self.timeout).await?;
        let outcome = self.apply(&mut engine, began, request, expected.results).await;
        engine.close().await;
        outcome
    }

    /// Declares it, and waits; once more with the next engine where the controller ends meanwhile, which then finds it
    /// declared. What was expected tells what an answer said that was lost.
    async fn apply(
        &self,
        engine: &mut Reconnecting<'_>,
        began: Instant,
        mut request: ApplyRequest,
        expected: Results,
    ) -> Outcome {
        let mut tries = Tries::new(WORDS, self.no_wait, began, self.timeout);
        let (mut results, mut baseline, mut has_asked) = (expected, None, false);
        let declare = async |client: &Client| -> Outcome {
            let baseline = match &mut baseline {
                Some(baseline) => &*baseline,
                none => none.insert(Baseline::of(&client.status().await?)),
            };
            let is_retry = std::mem::replace(&mut has_asked, true);
            request.attend_to = results.iter().filter(|_| is_retry).map(|(name, _)| name.clone()).collect();
            let mut applied = client.apply(&request).await?;
            if is_retry {
                applied.results = after_retry(&results, applied.results);
            }
            results.clone_from(&applied.results);
            tries.end(client, &applied, &goals(&results), baseline).await
        };
        let done = unless_interrupted(engine.ask(declare)).await;
        tries.outcome(done, engine.client().has_controller())
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
