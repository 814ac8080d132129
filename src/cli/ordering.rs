//! What the verbs have in common that order something of what is declared.

use std::time::Duration;

use tokio::time::Instant;

use super::converge::{Baseline, Waited, not_done, report, wait};
use super::exit::{Exit, Outcome};
use super::goal::Goal;
use super::output::{note, print};
use super::reconnecting::{Unattended, change};
use super::tries::unless_interrupted;
use crate::api::{ApiError, Client};
use crate::config::Options;
use crate::controller::Order;
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
            Ok(settled) => settled.map(|()| Exit::Success).map_err(Into::into),
            Err(_) => {
                note(format_args!("error: deployment/{} {}", ordered.deployment, not_done(PATIENCE)));
                Ok(Exit::TimedOut)
            }
        },
    }
}

/// Waits until each service of a deployment has one ready instance in each slot, all of one revision, and nothing else.
async fn settled(client: &Client, deployment: &str) -> Result<(), ApiError> {
    let mut status = client.status().await?;
    while !is_settled(&status, deployment) {
        status = client.status_after(status.generation).await?;
    }
    Ok(())
}

fn is_settled(status: &Status, deployment: &str) -> bool {
    status.services.iter().filter(|service| service.deployment == deployment).all(|service| {
        let mine =
            || status.instances.iter().filter(|one| one.deployment == deployment && one.service == service.service);
        let first = mine().next().map(|first| &first.revision);
        let alike = |revision: &String| first.is_none_or(|first| service.are_made_alike(first, revision));
        mine().count() == service.desired as usize && mine().all(|one| one.ready && alike(&one.revision))
    })
}
