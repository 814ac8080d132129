//! How pools stand.

use serde::{Deserialize, Serialize};

use super::facts::PoolFacts;
use crate::plan::ClaimFigures;
use crate::spec::Pool;
use crate::state::Condition;

/// A pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolView {
    /// Members that can be handed out.
    pub warm: u32,
    /// Members that a session has.
    pub claimed: u32,
    /// Members that are being made or are not ready yet.
    pub starting: u32,
    /// All members, those on their way out among them.
    pub total: u32,
    /// Claims that wait for a member.
    pub waiting: u32,
    /// Fewest free members, as declared.
    pub min_warm: u32,
    /// Most free members, as declared.
    pub max_warm: u32,
    /// Most members, as declared.
    pub max_total: u32,
    /// Claims that found a member ready, as a share of all, those that got none among them: 0 to 1; absent before the first.
    pub hit_rate: Option<f64>,
    /// Half of all claims were answered within so many milliseconds.
    pub claim_p50_ms: Option<f64>,
    /// 99 of 100 claims were.
    pub claim_p99_ms: Option<f64>,
    /// Bytes of memory that free members hold; absent until it was measured.
    pub memory_bytes: Option<u64>,
    /// Milliseconds that claims would have waited longer without the pool.
    pub saved_ms: f64,
    /// The smallest `min_warm` at which every claim would have found a member ready; absent before the first.
    pub recommended_min_warm: Option<u32>,
    /// Sessions that are kept, and how claims went.
    pub sessions: ClaimFigures,
}

impl PoolView {
    /// How a pool stands that is declared like this.
    pub(super) fn of(pool: &Pool, facts: &PoolFacts) -> Self {
        let PoolFacts { members, claims, waiting, memory_bytes } = facts;
        Self {
            warm: u32::try_from(members.warm.len()).unwrap_or(u32::MAX),
            claimed: members.claimed,
            starting: members.starting,
            total: members.total,
            waiting: *waiting,
            min_warm: pool.min_warm(),
            max_warm: pool.max_warm(),
            max_total: pool.max_total(),
            hit_rate: claims.hit_rate,
            claim_p50_ms: claims.claim_ms.map(|spread| spread.p50),
            claim_p99_ms: claims.claim_ms.map(|spread| spread.p99),
            memory_bytes: *memory_bytes,
            saved_ms: claims.saved_ms,
            recommended_min_warm: claims.recommended_min_warm,
            sessions: claims.clone(),
        }
    }

    /// Free members that there should be: `pool.min_warm`, or what its sessions leave of `pool.max_total`.
    pub fn wanted(&self) -> u32 {
        self.min_warm.min(self.max_total.saturating_sub(self.claimed))
    }

    /// `2 warm, 1 claimed`, and what else there is.
    pub fn summary(&self) -> String {
        let claims = if self.waiting == 1 { "claim waiting" } else { "claims waiting" };
        let more = [(self.starting, "starting"), (self.waiting, claims)];
        let more = more.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!(", {count} {what}"));
        format!("{} warm, {} claimed{}", self.warm, self.claimed, more.collect::<String>())
    }

    pub(super) fn conditions(&self) -> [Condition; 2] {
        let summary = self.summary();
        let available = match self.warm > 0 || self.wanted() == 0 {
            true => Condition::holds("Available", "MembersWarm", summary.clone()),
            false => Condition::fails("Available", "NoMemberWarm", summary.clone()),
        };
        let filling = match self.warm >= self.wanted() && self.waiting == 0 {
            true => Condition::fails("Progressing", "Complete", summary),
            false => Condition::holds("Progressing", "Filling", summary),
        };
        [available, filling]
    }
}
