//! What is told of a pool: how many members there are, how claims went, and how many members would have done.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::members::Members;
use crate::plan::Input;
use crate::state::{DesiredService, Instance, InstanceRef, Session, SessionEnd, SessionState};

/// How many members a pool has, by what they are to it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PoolFigures {
    /// Those that can be handed out, longest-warm first, with the time of their creation.
    pub warm: Vec<(InstanceRef, DateTime<Utc>)>,
    /// Those that a session has.
    pub claimed: u32,
    /// Those that are being made or are not ready yet.
    pub starting: u32,
    /// All that exist or are being made or removed, dead ones aside.
    pub total: u32,
}

/// Counts the members of a pool.
pub fn pool_figures(input: &Input<'_>, desired: &DesiredService) -> PoolFigures {
    let mine = |instance: &&Instance| instance.id.deployment == input.deployment && instance.id.service == desired.name;
    let instances: Vec<&Instance> = input.observed.iter().filter(mine).collect();
    let members = Members::of(input, desired, &instances);
    let warm = members.warm().into_iter().map(|member| (member.as_ref(), member.created_at)).collect();
    let (claimed, starting, total) = (members.claimed(), members.making(), members.live());
    PoolFigures { warm, claimed, starting, total }
}

/// How a number is spread; milliseconds here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Half of them are at most that.
    pub p50: f64,
    /// Of a hundred, 99 are at most that.
    pub p99: f64,
    /// Arithmetic mean.
    pub avg: f64,
}

impl Distribution {
    /// Of these numbers, by nearest rank; none of none.
    pub fn of(numbers: impl Iterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = numbers.collect();
        sorted.sort_by(f64::total_cmp);
        let rank = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied();
        let avg = sorted.iter().sum::<f64>() / sorted.len() as f64;
        Some(Self { p50: rank(50)?, p99: rank(99)?, avg })
    }
}

/// How claims went, as far as sessions are kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClaimFigures {
    /// Sessions that were handed out: claims that were answered.
    pub created: u64,
    /// Sessions with an attached client, those among them that were never answered.
    pub active: u64,
    /// Sessions whose client has gone.
    pub detached: u64,
    /// Sessions whose sandbox is frozen.
    pub suspended: u64,
    /// Sessions that reached a timeout.
    pub timeouts: u64,
    /// Claims that got no member, as none was free in time or at all, since the controller runs; the last 1,000 at most.
    #[serde(default)]
    pub unmet: u64,
    /// Claims that found a member ready, as a share of all, those that got none among them: 0 to 1; absent before the first.
    pub hit_rate: Option<f64>,
    /// From a claim to its answer, in milliseconds.
    pub claim_ms: Option<Distribution>,
    /// From the creation of a member until its program ran, in milliseconds.
    pub creation_ms: Option<Distribution>,
    /// Milliseconds that claims would have waited longer without the pool.
    pub saved_ms: f64,
    /// The smallest `pool.min_warm` at which every claim would have found a member ready, also those that got none, were they to
    /// come again as they did: the most that came within the time that it takes to make one. Absent before the first.
    pub recommended_min_warm: Option<u32>,
}

/// How claims went: those that became sessions, and those that got no member, by the time of the claim.
pub fn claim_figures<'a>(
    sessions: impl Iterator<Item = &'a Session> + Clone,
    unmet: impl Iterator<Item = DateTime<Utc>> + Clone,
) -> ClaimFigures {
    let is_lost =
        |state: &SessionState| matches!(state, SessionState::Ended { why: SessionEnd::NotHandedOut { .. }, .. });
    let sessions = sessions.filter(move |session| !is_lost(&session.state));
    let count = |test: fn(&Session) -> bool| sessions.clone().filter(|session| test(session)).count() as u64;
    let answered = sessions.clone().filter(|session| session.answered);
    let created = count(|session| session.answered);
    let all = created + unmet.clone().count() as u64;
    let hits = count(|session| session.answered && session.warm);
    let creation_ms = Distribution::of(answered.clone().map(|session| session.made_ms));
    let saved = answered.clone().filter(|session| session.warm).map(|one| (one.made_ms - one.elapsed_ms).max(0.0));
    ClaimFigures {
        created,
        active: count(|session| session.state == SessionState::Active),
        detached: count(|session| session.state == SessionState::Detached),
        suspended: count(|session| session.state == SessionState::Suspended),
        timeouts: count(|one| matches!(one.state, SessionState::Ended { why: SessionEnd::Timeout { .. }, .. })),
        unmet: all - created,
        hit_rate: (all > 0).then(|| hits as f64 / all as f64),
        claim_ms: Distribution::of(answered.clone().map(|session| session.elapsed_ms)),
        creation_ms,
        // The sum of no numbers is a negative zero.
        saved_ms: saved.fold(0.0, |sum, one| sum + one),
        recommended_min_warm: creation_ms
            .map(|making| busiest(answered.map(|one| one.created_at).chain(unmet), making.p99)),
    }
}

/// The most claims that came within any span of so many milliseconds.
fn busiest(claims: impl Iterator<Item = DateTime<Utc>>, span: f64) -> u32 {
    let mut times: Vec<DateTime<Utc>> = claims.collect();
    times.sort();
    // A float that is too large becomes the largest integer.
    let span = TimeDelta::try_milliseconds(span.ceil() as i64).unwrap_or(TimeDelta::MAX);
    let mut most = 0;
    let mut first = 0;
    for (last, at) in times.iter().enumerate() {
        while times.get(first).is_some_and(|began| *at - *began > span) {
            first += 1;
        }
        most = most.max(last + 1 - first);
    }
    u32::try_from(most).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_numbers_that_occurred() {
        assert_eq!(Distribution::of(std::iter::empty()), None);
        assert_eq!(Distribution::of([7.0].into_iter()), Some(Distribution { p50: 7.0, p99: 7.0, avg: 7.0 }));
        let hundred = Distribution::of((1..=100).rev().map(f64::from));
        assert_eq!(hundred, Some(Distribution { p50: 50.0, p99: 99.0, avg: 50.5 }));
    }

    #[test]
    fn as_many_members_are_recommended_as_claims_came_while_one_was_made() {
        let at = |ms: i64| DateTime::UNIX_EPOCH + TimeDelta::milliseconds(ms);
        let claims = [0, 10, 20, 1000, 1005, 5000];
        assert_eq!(busiest(claims.map(at).into_iter(), 20.0), 3);
        assert_eq!(busiest(claims.map(at).into_iter(), 19.5), 3);
        assert_eq!(busiest(claims.map(at).into_iter(), 5.0), 2);
        assert_eq!(busiest(claims.map(at).into_iter(), 1e18), 6);
        assert_eq!(busiest(std::iter::empty(), 20.0), 0);
    }
}
