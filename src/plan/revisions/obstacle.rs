//! What was last seen to be in the way of a rollout.

use chrono::{DateTime, Utc};

use crate::plan::diff::exit_of;
use crate::plan::rollout::crashed;
use crate::plan::{Failure, Input};
use crate::state::{DesiredService, Instance};

/// What is in the way of what is wanted, in a phrase: the call that failed last, else what the checks of the newest instance
/// that is not ready say, else how the newest one that failed ended. Calls and ends count from this time on; none where
/// nothing is known to be amiss, as of a program that takes its time.
pub(super) fn obstacle(
    input: &Input<'_>,
    wanted: &DesiredService,
    counts_from: Option<DateTime<Utc>>,
) -> Option<String> {
    let counts = |at: DateTime<Utc>| counts_from.is_none_or(|from| at >= from || from > input.now);
    let is_ours = |(service, _): &(String, u32), failure: &Failure| {
        *service == wanted.name && wanted.is_made_from(&failure.revision) && counts(failure.at)
    };
    let failed = input.history.failures.iter().filter(|(of, failure)| is_ours(of, failure));
    if let Some(((_, slot), failure)) = failed.max_by_key(|(_, failure)| failure.at) {
        return Some(format!("{}/{}/{slot}: {}", input.deployment, wanted.name, failure.message));
    }
    let is_new = |one: &&Instance| {
        one.id.deployment == input.deployment
            && one.id.service == wanted.name
            && wanted.is_made_from(&one.id.revision)
            && one.runtime == wanted.runtime
    };
    let new = || input.observed.iter().filter(is_new);
    let unready = new().filter(|one| exit_of(one).is_none() && !one.phase.is_ready());
    let unready = unready.filter_map(|one| Some((one, one.health.as_ref()?.message()?)));
    if let Some((one, check)) = unready.max_by_key(|(one, _)| one.recency()) {
        return Some(format!("{} is {}: {check}", one.id, one.health.as_ref().map_or("not ready", |it| it.name())));
    }
    let ended = new().filter(|one| crashed(one)).filter_map(|one| Some((one, exit_of(one)?)));
    let ended = ended.filter(|(_, exit)| counts(exit.finished_at));
    ended.max_by_key(|(_, exit)| exit.finished_at).map(|(one, exit)| format!("{}: {exit}", one.id))
}
