//! A connection can be opened.

use std::time::Duration;

use tokio::io::AsyncReadExt;

use super::Place;
use crate::probe::schedule::Outcome;
use crate::runtime::{AnsweredBy, Dialed};

/// Time in which what is in front of an instance ends a connection that nobody takes inside: it finds out within
/// milliseconds, on a busy machine within tens of them.
const RELAYED: Duration = Duration::from_millis(200);

pub(super) async fn run(place: &Place<'_>, port: u16) -> Outcome {
    match place.dial(port).await {
        Ok(dialed) => is_taken(dialed).await,
        Err(outcome) => outcome,
    }
}

/// Whether somebody took a connection that was made.
pub async fn is_taken(mut dialed: Dialed) -> Outcome {
    if dialed.answered_by == AnsweredBy::Instance {
        return Outcome::Passed;
    }
    let mut byte = [0];
    match tokio::time::timeout(RELAYED, dialed.stream.read(&mut byte)).await {
        Err(_) | Ok(Ok(1..)) => Outcome::Passed,
        Ok(Ok(0) | Err(_)) => Outcome::Failed("nothing listens: the connection was closed at once".to_owned()),
    }
}
