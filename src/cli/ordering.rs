//! What the verbs have in common that order something of what is declared.

use std::time::Duration;

use tokio::time::Instant;

use super::converge::{Baseline, Waited, not_done, report, wait};
use super::exit::{Exit, Outcome};
use super::goal::Goal;
use super::output::{note, print};
use super::reconnecting::{Unattended, change};
use super::tries::unless_interrupted;
use crate::api::{ApiError, Client, Kind};
use crate::config::Options;
use crate::controller::{Order, RolloutView};
use crate::spec::Revision;
use crate::state::Target;
use crate::status::Status;

/// How long another command that works on the state directory is waited for, and the end of what is ordered where this
/// process does it itself: the progress deadline of a rollout.
const PATIENCE: Duration = Duration::from_secs(600);

/// What becomes of an order where no controller runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alone {
    /// It is recorded, and nobody does anything about it.
    Recorded,
    /// This process has it done, until all runs as declared.
    Declared,
    /// This process has it done, until one revision of each service runs, whichever that is.
    Settled,
}

/// Orders this, and says what came of it. It is asked for once: where the answer is lost, nobody knows whether it counts, and
/// a second time it may mean another thing.
pub async fn order(options: &Options, order: &Order, alone: Alone) -> Outcome {
    let unattended = if alone == Alone::Recorded { Unattended::Recorded } else { Unattended::CarriedOut };
    let engine = change(options, unattended, PATIENCE).await?;
    let done = unless_interrupted(carry_out(engine.client(), order, alone)).await;
    engine.close().await;
    done.unwrap_or_else(|| {
        note("interrupted; what was ordered counts");
        Ok(Exit::Interrupted)
    })
}

async fn carry_out(client: &Client, order: &Order, alone: Alone) -> Outcome {
    let baseline = Baseline::of(&client.status().await?);
    let ordered = client.order(order).await?;
    let asked_for = wanted(client, &ordered.deployment).await?;
    print(&ordered.results.iter().map(|result| format!("{result}\n")).collect::<String>())?;
    let deadline = Instant::now() + PATIENCE;
    match alone {
        _ if client.has_controller() => Ok(Exit::Success),
        Alone::Recorded => {
            note("no controller runs, so nothing comes of it until `keel run` or `keel apply`");
            Ok(Exit::Success)
        }
        Alone::Declared => {
            let goals = [(ordered.deployment, Goal::Running)].into();
            match wait(client, &goals, &baseline, deadline).await? {
                Waited::Reached => Ok(Exit::Success),
                Waited::Failed(failures) => {
                    report(client, "failed", &failures).await;
                    Ok(Exit::Failure)
                }
                Waited::TimedOut(missing) => {
                    report(client, &not_done(PATIENCE), &missing).await;
                    Ok(Exit::TimedOut)
                }
            }
        }
        Alone::Settled => match tokio::time::timeout_at(deadline, settled(client, &ordered.deployment)).await {
            Ok(settled) => {
                settled?;
                left_again(client, &ordered.deployment, &asked_for).await
            }
            Err(_) => {
                note(format_args!("error: deployment/{} {}", ordered.deployment, not_done(PATIENCE)));
                Ok(Exit::TimedOut)
            }
        },
    }
}

/// Revision that is to run of each service of a deployment.
type Targets = Vec<(String, Revision)>;

async fn wanted(client: &Client, deployment: &str) -> Result<Targets, ApiError> {
    let target = Target { deployment: deployment.to_owned(), service: None, slot: None };
    let views = match client.rollouts(&target).await {
        // It may have jobs alone.
        Err(ApiError { kind: Kind::NotFound | Kind::Invalid, .. }) => return Ok(Vec::new()),
        views => views?,
    };
    let of = |view: RolloutView| {
        let wanted = view.revisions.into_iter().find(|revision| revision.wanted)?;
        Some((view.service, wanted.revision))
    };
    Ok(views.into_iter().filter_map(of).collect())
}

/// Whether something else runs by now than was asked for, as that failed.
async fn left_again(client: &Client, deployment: &str, asked_for: &Targets) -> Outcome {
    let now = wanted(client, deployment).await?;
    let left =
        asked_for.iter().find(|(service, revision)| now.iter().any(|(of, now)| of == service && now != revision));
    let Some((service, _)) = left else { return Ok(Exit::Success) };
    note(format_args!(
        "error: what was asked for of {deployment}/{service} failed, and another revision runs; see `keel describe {deployment}/{service}`"
    ));
    Ok(Exit::Failure)
}

/// Waits until each service of a deployment has one ready instance in each slot, all of the revision that is to run, and
/// nothing else.
async fn settled(client: &Client, deployment: &str) -> Result<(), ApiError> {
    let mut status = client.status().await?;
    while !is_settled(&status, deployment, &wanted(client, deployment).await?) {
        status = client.status_after(status.generation).await?;
    }
    Ok(())
}

fn is_settled(status: &Status, deployment: &str, targets: &Targets) -> bool {
    status.services.iter().filter(|service| service.deployment == deployment).all(|service| {
        let mine =
            || status.instances.iter().filter(|one| one.deployment == deployment && one.service == service.service);
        let target = targets.iter().find(|(of, _)| *of == service.service).map(|(_, target)| target.to_string());
        let first = target.or_else(|| mine().next().map(|first| first.revision.clone()));
        let alike = |revision: &String| first.as_ref().is_none_or(|first| service.are_made_alike(first, revision));
        mine().count() == service.desired as usize && mine().all(|one| one.ready && alike(&one.revision))
    })
}
