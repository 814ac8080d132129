//! `keel delete`: remove deployments.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

use super::connect::synced_status;
use super::converge::Baseline;
use super::exit::{Exit, Outcome, Usage};
use super::files::Files;
use super::goal::goals;
use super::output::note;
use super::problems;
use super::reconnecting::{Reconnecting, Unattended, change, observe_existing};
use super::text::duration;
use super::tries::{Tries, Words, unless_interrupted};
use crate::api::{ApiError, Client};
use crate::config::Options;
use crate::controller::{Applied, Change, DeleteRequest, SpecFile};
use crate::runtime::Volumes;
use crate::spec::{ParsedFile, parse};

/// Longest wait when none is named: ten times the default `stop_grace_period`, instances being stopped side by side.
const TIMEOUT: &str = "5m";

const WORDS: Words = Words {
    nothing_done: NOTHING_REMOVED,
    not_carried_out: "no controller runs, so nothing is stopped until `keel run` or `keel delete` without --no-wait",
    stands: "the removal stands",
};

const NOTHING_REMOVED: &str = "nothing was removed";

/// Remove deployments, by name or as files declare them
///
/// Named volumes stay unless --volumes is given. A deployment that the directory of a running controller declares is
/// removed by removing its file; where it was applied as well, only what was applied goes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel delete demo\n  keel delete -f specs/demo.yaml --volumes\n\n\
Exit codes: 0 everything is gone, 1 it failed or a name is not found, 124 --timeout ran out first, 130 interrupted. In \
the last two cases the removal goes on where a controller runs.")]
pub struct Args {
    /// Deployments
    #[arg(value_name = "NAME", required_unless_present = "paths", conflicts_with = "paths")]
    names: Vec<String>,
    #[command(flatten)]
    files: Files,
    /// Remove their named volumes, with the data in them
    #[arg(long)]
    volumes: bool,
    /// Return as soon as the removal is asked for
    #[arg(long)]
    no_wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = TIMEOUT, value_parser = duration)]
    timeout: Duration,
    /// Names that are not found are no error
    #[arg(long)]
    ignore_not_found: bool,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let Some(mut engine) = observe_existing(options).await? else { return self.nothing(options) };
        let wanted = match self.files.paths.is_empty() {
            true => self.named(),
            false => self.declared(&mut engine).await,
        };
        let found = match wanted {
            Ok(wanted) => engine.ask(async |client| find(client, &wanted).await).await,
            Err(error) => Err(error),
        };
        engine.close().await;
        let Found { known, missing } = found?;
        // Volumes may be left of what nothing else is known of.
        let (asked, missing) = match (self.volumes, self.ignore_not_found) {
            (true, _) => (&known | &missing, BTreeSet::new()),
            (false, true) => (known, BTreeSet::new()),
            (false, false) => (known, missing),
        };
        for name in &missing {
            tell_not_found(name);
        }
        let exit = if missing.is_empty() { Exit::Success } else { Exit::Failure };
        if asked.is_empty() {
            return Ok(exit);
        }
        let began = Instant::now();
        let mut engine = change(options, self.unattended(), self.timeout).await?;
        let outcome = self.delete(&mut engine, began, &asked).await;
        engine.close().await;
        Ok(match outcome? {
            Exit::Success => exit,
            other => other,
        })
    }

    fn unattended(&self) -> Unattended {
        if self.no_wait { Unattended::Recorded } else { Unattended::CarriedOut }
    }

    /// Where no installation was made.
    fn nothing(&self, options: &Options) -> Outcome {
        self.files.read(None)?;
        let why = format!(
            "nothing to delete: nothing was ever run or applied with the state directory {}; is it the right one \
             (--state-dir, KEEL_STATE_DIR)?",
            options.state_dir.display()
        );
        if !self.ignore_not_found {
            bail!(why);
        }
        note(why);
        Ok(Exit::Success)
    }

    fn named(&self) -> anyhow::Result<BTreeSet<String>> {
        let named = self.names.iter().map(|name| {
            // As `get -o name` and `apply` print it.
            let bare = ["deployment/", "deploy/"].iter().find_map(|kind| name.strip_prefix(kind)).unwrap_or(name);
            if bare.contains('/') {
                return Err(Usage(format!(
                    "{name:?} is not a deployment; services are removed by removing them from the deployment's file"
                ))
                .into());
            }
            Ok(bare.to_owned())
        });
        named.collect()
    }

    /// The deployments that the files declare. Problems of files don't matter where it can be told all the same: what was
    /// applied once must be found.
    async fn declared(&self, engine: &mut Reconnecting<'_>) -> anyhow::Result<BTreeSet<String>> {
        let mut request = self.files.read(None)?;
        // Without its directory, nothing counts as missing from it.
        request.origins.clear();
        if let Some(named) = named_in(&request.files) {
            return Ok(named);
        }
        let expected = engine.ask(async |client| client.dry_run(&request).await).await?;
        if !expected.problems.is_empty() {
            problems::report(&expected.problems, NOTHING_REMOVED);
            bail!("name the deployments instead: keel delete NAME");
        }
        let declared = expected.results.into_iter().filter(|(_, change)| *change != Change::Pruned);
        Ok(declared.map(|(name, _)| name).collect())
    }

    /// Has them removed, and waits; once more with the next engine where the controller ends meanwhile, for what is left
    /// by then.
    async fn delete(&self, engine: &mut Reconnecting<'_>, began: Instant, deployments: &BTreeSet<String>) -> Outcome {
        let mut tries = Tries::new(WORDS, self.no_wait, began, self.timeout);
        let (mut has_asked, mut unknown, mut sent) = (false, BTreeSet::new(), BTreeSet::new());
        let remove = async |client: &Client| -> Outcome {
            let Found { known, missing } = find(client, deployments).await?;
            let baseline = Baseline::of(&client.status().await?);
            let before = sent.clone();
            // Of what nothing is known, nobody can tell whether a request that was not answered removed anything.
            sent.extend(known.iter().cloned());
            let left = if self.volumes { &known | &missing } else { known };
            let mut answer = self.take_back(client, left).await?;
            // What a try before had removed may be gone by the time that it is asked for again, also where nobody answered that.
            if !std::mem::replace(&mut has_asked, true) {
                unknown = &unknown_of(deployments, &answer.results) - &before;
            }
            let goals = goals(&answer.results);
            answer.results = results(&(deployments - &unknown), &answer.results);
            tries.end(client, &answer, &goals, &baseline).await
        };
        let done = unless_interrupted(engine.ask(remove)).await;
        let outcome = tries.outcome(done, engine.client().has_controller())?;
        if !self.ignore_not_found {
            unknown.iter().for_each(|name| tell_not_found(name));
        }
        let is_missed = !unknown.is_empty() && !self.ignore_not_found;
        Ok(if is_missed && outcome == Exit::Success { Exit::Failure } else { outcome })
    }

    /// Those of which nothing is known are passed over, and are not in the answer.
    async fn take_back(&self, client: &Client, deployments: BTreeSet<String>) -> Result<Applied, ApiError> {
        if deployments.is_empty() {
            return Ok(Applied::default());
        }
        let volumes = if self.volumes { Volumes::Remove } else { Volumes::Keep };
        let deployments = deployments.into_iter().collect();
        client.delete(&DeleteRequest { deployments, volumes, ignore_not_found: true }).await
    }
}

/// Deployments that are to be removed.
struct Found {
    /// Those that there is anything of.
    known: BTreeSet<String>,
    /// The others; volumes may be left of them all the same.
    missing: BTreeSet<String>,
}

/// What is known of these deployments.
async fn find(client: &Client, wanted: &BTreeSet<String>) -> Result<Found, ApiError> {
    let status = synced_status(client).await?;
    let shown = status.deployments.iter().map(|view| &view.deployment);
    let all: BTreeSet<&str> = shown.chain(&status.left_out).map(String::as_str).collect();
    let (known, missing) = wanted.iter().cloned().partition(|name| all.contains(name.as_str()));
    Ok(Found { known, missing })
}

/// The deployments that files name, in documents good or not; none where there is no document, or one that may be a part
/// of any deployment.
fn named_in(files: &[SpecFile]) -> Option<BTreeSet<String>> {
    let parsed: Vec<ParsedFile> = files.iter().map(|file| parse(&file.text)).collect();
    let named: BTreeSet<String> = parsed.iter().flat_map(ParsedFile::deployments).map(str::to_owned).collect();
    (!named.is_empty() && !parsed.iter().any(ParsedFile::may_declare_more)).then_some(named)
}

fn tell_not_found(name: &str) {
    note(format_args!("error: deployments \"{name}\" not found"));
}

/// Those that the answer to the first try says nothing of.
fn unknown_of(deployments: &BTreeSet<String>, answered: &[(String, Change)]) -> BTreeSet<String> {
    let answered: BTreeSet<&String> = answered.iter().map(|(name, _)| name).collect();
    deployments.iter().filter(|name| !answered.contains(name)).cloned().collect()
}

/// What became of all of them: deleted, also by an earlier try, where the answer does not say otherwise.
fn results(deployments: &BTreeSet<String>, answered: &[(String, Change)]) -> Vec<(String, Change)> {
    let change =
        |name: &String| answered.iter().find(|(other, _)| other == name).map_or(Change::Deleted, |(_, one)| *one);
    deployments.iter().map(|name| (name.clone(), change(name))).collect()
}
