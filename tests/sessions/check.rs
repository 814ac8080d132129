//! What has to be true at any time.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel::controller::{Acquired, SessionStats, SessionView};
use evenkeel::state::{Phase, SessionId};

use crate::stage::Stage;
use crate::story::Bounds;

/// What clients and operators were given.
#[derive(Default)]
pub struct Ledger {
    /// By the runtime's own id of the member.
    handed_out: BTreeMap<String, SessionId>,
    visited: BTreeSet<String>,
    /// Sessions of which it was said that they are over.
    pub ended: BTreeSet<SessionId>,
    broken: Option<String>,
}

impl Ledger {
    /// A member was handed out.
    pub fn handed_out(&mut self, acquired: &Acquired) {
        let (member, session) = (&acquired.view.runtime_id, &acquired.view.session);
        if self.visited.contains(member) {
            self.broken = Some(format!("{member} was handed out after somebody had been inside"));
        }
        if let Some(before) = self.handed_out.insert(member.clone(), session.clone()) {
            self.broken = Some(format!("{member} was handed out to {session} after {before} had it"));
        }
    }

    /// Somebody was let into a member without a token.
    pub fn visited(&mut self, member: &str) -> Result<(), String> {
        match self.handed_out.get(member) {
            Some(session) if !self.ended.contains(session) => {
                // It may have ended by itself, which the caller looks at.
                Ok(())
            }
            Some(session) => Err(format!("somebody was let into {member}, which {session} had")),
            None => {
                self.visited.insert(member.to_owned());
                Ok(())
            }
        }
    }

    /// Members that somebody has had.
    pub fn had(&self) -> impl Iterator<Item = &str> {
        self.handed_out.keys().chain(&self.visited).map(String::as_str)
    }
}

/// Looks at everything.
pub async fn check(stage: &Stage, ledger: &Ledger) -> Result<(), String> {
    if let Some(broken) = &ledger.broken {
        return Err(broken.clone());
    }
    if !stage.is_up() {
        return Ok(());
    }
    let views = stage.sessions().await;
    one_owner_each(&views)?;
    all_are_remembered(&views, ledger)?;
    statistics_are_derived(stage).await
}

/// The pool was never larger than it may be.
pub fn check_bounds(stage: &Stage, bounds: &Bounds) -> Result<(), String> {
    let most = stage.world.changes().iter().map(|change| u64::from(change.counts.live)).max().unwrap_or(0);
    match most > bounds.max_total {
        true => Err(format!("{most} members lived at a time, at most {} may", bounds.max_total)),
        false => Ok(()),
    }
}

/// No member has two sessions that live.
fn one_owner_each(views: &[SessionView]) -> Result<(), String> {
    let mut owners = BTreeMap::new();
    for view in views.iter().filter(|view| view.ended_at.is_none()) {
        if let Some(other) = owners.insert(&view.runtime_id, &view.session) {
            return Err(format!("{} has two owners, {other} and {}", view.instance, view.session));
        }
    }
    Ok(())
}

/// Every session that a client was told of is known, with the member that it was told, and one that ended stays so.
fn all_are_remembered(views: &[SessionView], ledger: &Ledger) -> Result<(), String> {
    for (member, session) in &ledger.handed_out {
        let Some(view) = views.iter().find(|view| view.session == *session) else {
            return Err(format!("{session} is not known any more"));
        };
        if view.runtime_id != *member {
            return Err(format!("{session} had {member} and has {}", view.runtime_id));
        }
        if ledger.ended.contains(session) && view.ended_at.is_none() {
            return Err(format!("{session} had ended and lives again"));
        }
    }
    Ok(())
}

/// Statistics say what sessions and members say.
async fn statistics_are_derived(stage: &Stage) -> Result<(), String> {
    let view = stage.view().await.and_then(|view| view.pool).ok_or("the pool is not shown")?;
    // Nothing happens between these two, as nobody waits for anything but the core's answer.
    let (views, stats) = (stage.sessions().await, stage.stats().await.ok_or("there are no statistics")?);
    let views: Vec<&SessionView> =
        views.iter().filter(|view| view.reason.as_deref() != Some("not_handed_out")).collect();
    let count = |test: &dyn Fn(&SessionView) -> bool| views.iter().filter(|view| test(view)).count() as u64;
    // A controller that was killed before it answered has served nobody.
    let warm = count(&|view| view.answered && view.warm);
    let created = count(&|view| view.answered);
    let expected = SessionStats {
        created,
        active: count(&|view| view.state == "active"),
        detached: count(&|view| view.state == "detached"),
        suspended: count(&|view| view.state == "suspended"),
        timeouts: count(&|view| view.reason.as_deref() == Some("timeout")),
        pool_hit_rate: (created + stats.unmet > 0).then(|| warm as f64 / (created + stats.unmet) as f64),
        // These are compared on their own: of claims that got nothing no session tells.
        unmet: stats.unmet,
        pool_size: stats.pool_size,
        claim_ms: stats.claim_ms,
        creation_ms: stats.creation_ms,
    };
    if stats != expected {
        return Err(format!("statistics are {stats:?}, the sessions say {expected:?}"));
    }
    let mut elapsed: Vec<f64> = views.iter().filter(|view| view.answered).map(|view| view.elapsed_ms).collect();
    elapsed.sort_by(f64::total_cmp);
    let median = elapsed.get((elapsed.len().max(1) - 1) / 2).copied();
    if stats.claim_ms.map(|spread| spread.p50) != median {
        return Err(format!("half of the claims took {:?} ms, the sessions say {median:?}", stats.claim_ms));
    }
    let running = stage.members().iter().filter(|one| matches!(one.phase, Phase::Running { .. })).count() as u64;
    match u64::from(view.warm) > running || stats.pool_size > running {
        true => Err(format!("{} members are said to be warm, {running} run", view.warm)),
        false => Ok(()),
    }
}
