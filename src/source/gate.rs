//! Whether a loss is believed.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use super::bounds::{MOST_NAMED, SMALL_LOSS};
use crate::store::HoldRecord;

/// What a scan does not find any more.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// How many deployments were declared before.
    pub known: usize,
    /// Those that are declared no more, and how that came.
    pub lost: BTreeMap<String, Loss>,
    /// Those of them that have only just vanished: they may be back at once.
    pub settling: BTreeSet<String>,
}

impl Losses {
    /// Those that stayed away for as long as it takes to count.
    pub(super) fn settled(&self) -> impl Iterator<Item = &String> {
        self.lost.keys().filter(|name| !self.settling.contains(*name))
    }
}

/// How a deployment was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Loss {
    /// Its file, or its document, is not there.
    Undeclared,
    /// Nothing of its root is there, and the root is not what it was; says what happened to the root.
    RootGone(String),
}

/// Decides whether pruning is held.
///
/// A hold begins when a root is gone, or when more than three and more than half of what was declared is lost at
/// once. It ends when all that it was begun for is declared again, for a root may come back bit by bit; confirming a loss
/// takes the deployments out of what was declared, so that they are not lost any more.
///
/// What has only just vanished begins nothing by itself. It counts as soon as something settles, so that files that go
/// one after the other are one loss.
pub(super) fn hold(before: Option<&HoldRecord>, losses: &Losses, now: DateTime<Utc>) -> Option<HoldRecord> {
    let Losses { known, lost, settling } = losses;
    let still: BTreeSet<String> =
        before.into_iter().flat_map(|hold| &hold.missing).filter(|name| lost.contains_key(*name)).cloned().collect();
    let mut fresh: BTreeMap<&String, &Loss> = lost.iter().filter(|(name, _)| !still.contains(*name)).collect();
    if fresh.keys().all(|name| settling.contains(*name)) {
        fresh.clear();
    }
    let roots: BTreeSet<&str> = fresh
        .values()
        .filter_map(|loss| match loss {
            Loss::RootGone(what) => Some(what.as_str()),
            Loss::Undeclared => None,
        })
        .collect();
    let too_many = fresh.len() > SMALL_LOSS && fresh.len() * 2 > *known;
    let reason = if !roots.is_empty() {
        Some(roots.into_iter().collect::<Vec<_>>().join("; "))
    } else if too_many {
        Some(MOST_VANISHED.to_owned())
    } else {
        None
    };
    let since = before.filter(|_| !still.is_empty()).map_or(now, |hold| hold.since);
    match (reason, before) {
        (Some(reason), _) => {
            let fresh = fresh.into_keys().cloned();
            Some(HoldRecord { reason, since, missing: still.into_iter().chain(fresh).collect() })
        }
        (None, Some(before)) if !still.is_empty() => {
            Some(HoldRecord { reason: before.reason.clone(), since, missing: still })
        }
        (None, _) => None,
    }
}

/// What happened to a root that is not there: what follows its path in the reason of a hold.
pub(super) const VANISHED: &str = "vanished";

/// Why a hold began whose root is there.
const MOST_VANISHED: &str = "more than half of the deployments vanished from the source at once";

/// What to do about a hold, for people.
const HOLD_HELP: &str = "pruning is stopped: restore the files, or confirm with `keel approve`";

/// Why pruning is held, for how many of the deployments that were declared, and what to do, for people.
pub(super) fn describe(hold: &HoldRecord, missing: &BTreeSet<String>, losses: &Losses) -> String {
    let known = losses.known;
    // Of another directory in its place nobody can tell whether it is the old one.
    let is_back =
        hold.reason.ends_with(VANISHED) && missing.iter().all(|name| losses.lost.get(name) == Some(&Loss::Undeclared));
    let of = match missing.len() {
        0 => String::new(),
        count => {
            let names: Vec<&str> = missing.iter().map(String::as_str).take(MOST_NAMED).collect();
            let verb = if count == 1 { "is" } else { "are" };
            let rest = match count.saturating_sub(MOST_NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!(": {count} of {known} {verb} missing ({}{rest})", names.join(", "))
        }
    };
    let back = if is_back { ", and is back without all that was in it" } else { "" };
    format!("{}{back}{of}; {HOLD_HELP}", hold.reason)
}
