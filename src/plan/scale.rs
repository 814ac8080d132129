//! How many replicas an adaptive service is to have, by its load.
//!
//! The rules are those of Kubernetes' horizontal pod autoscaler: the count follows the ratio of what is used to what is aimed
//! at, small deviations count for nothing, more comes at once and less only when nothing asked for more for a while. What
//! could not be measured never leads to fewer replicas.

use std::collections::VecDeque;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::time::{after, elapsed};
use crate::spec::ScaleTargets;

/// How often load is measured and decided on: the period of Kubernetes' controller.
pub const SCALE_EVERY: Duration = Duration::from_secs(15);

/// Deviation from the target that changes nothing, as a share of it: Kubernetes' default.
pub const SCALE_TOLERANCE: f64 = 0.1;

/// How far back the highest demand counts when there are to be fewer replicas: Kubernetes' default for scaling down.
pub const SCALE_STABILISATION: Duration = Duration::from_secs(300);

/// Demands that are remembered: those of the stabilisation at [`SCALE_EVERY`], with room for decisions that come sooner.
const MOST_DEMANDS: usize = 64;

/// Replicas that may come in one decision where doubling would be fewer: Kubernetes' default.
const STEP_UP: u32 = 4;

/// Between which bounds a service is scaled, and by what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScaleRule {
    /// Fewest replicas.
    pub min: u32,
    /// Most replicas; at least `min`.
    pub max: u32,
    /// Time between two changes.
    pub cooldown: Duration,
    /// Loads to aim at.
    pub targets: ScaleTargets,
}

/// What a load is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// CPU use in percent of the limit.
    Cpu,
    /// Memory use in percent of the limit.
    Memory,
    /// Requests per second and replica, a connection being one.
    Rps,
}

impl std::fmt::Display for Metric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cpu => "% cpu",
            Self::Memory => "% memory",
            Self::Rps => "requests/s",
        })
    }
}

/// The mean of a load over the instances in which it could be measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mean {
    /// The mean, in the unit of its metric.
    pub value: f64,
    /// Over so many instances; at least 1.
    pub of: u32,
}

/// What a service's instances use at one time; absent where it could not be measured in any.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    /// CPU use in percent of the limit.
    pub cpu: Option<Mean>,
    /// Memory use in percent of the limit.
    pub memory: Option<Mean>,
    /// Requests per second and instance.
    pub rps: Option<Mean>,
    /// Whether instances are being replaced or are not ready: then what they use says nothing of fewer being enough.
    pub moving: bool,
}

/// A change of the number of replicas, with what led to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScaleDecision {
    /// Replicas before.
    pub from: u32,
    /// Replicas from now on.
    pub to: u32,
    /// What decided.
    pub metric: Metric,
    /// What was measured.
    pub mean: Mean,
    /// What is aimed at.
    pub target: u32,
}

impl std::fmt::Display for ScaleDecision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { from, to, metric, mean: Mean { value, of }, target } = self;
        // Of few requests, tenths matter.
        let decimals = if *metric == Metric::Rps { 1 } else { 0 };
        write!(
            f,
            "{from} to {to} replicas: {value:.decimals$} {metric} on average in {of} of {from}, {target} is aimed at"
        )
    }
}

/// How many replicas an adaptive service has, and what was asked of it lately.
#[derive(Debug, Clone, PartialEq)]
pub struct Scaling {
    replicas: u32,
    changed_at: Option<DateTime<Utc>>,
    /// What each measurement asked for, oldest first.
    demands: VecDeque<(DateTime<Utc>, u32)>,
}

impl Scaling {
    /// Begins with as many replicas as there are.
    pub fn new(replicas: u32, now: DateTime<Utc>) -> Self {
        Self { replicas, changed_at: None, demands: VecDeque::from([(now, replicas)]) }
    }

    /// Replicas that there are to be, within the bounds of the rule.
    pub fn replicas(&self, rule: &ScaleRule) -> u32 {
        self.replicas.clamp(rule.min, rule.max.max(rule.min))
    }

    /// Takes a measurement, and changes the number of replicas where it asks for that.
    pub fn decide(&mut self, rule: &ScaleRule, load: &Load, now: DateTime<Utc>) -> Option<ScaleDecision> {
        let from = self.replicas(rule);
        self.replicas = from;
        let Some(demand) = demand(rule, load, from) else {
            // What is not known may need as many as there are.
            self.note(from, now);
            return None;
        };
        let wanted = demand.replicas.clamp(rule.min, rule.max.max(rule.min));
        let highest = self.note(wanted, now);
        // Fewer only when nothing asked for more for a while.
        let to = if wanted < from { highest.min(from) } else { wanted.min(from.saturating_mul(2).max(from + STEP_UP)) };
        let cools = self.changed_at.is_some_and(|at| at <= now && elapsed(at, now) < rule.cooldown);
        if to == from || cools {
            return None;
        }
        self.replicas = to;
        self.changed_at = Some(now);
        Some(ScaleDecision { from, to, metric: demand.metric, mean: demand.mean, target: demand.target })
    }

    /// Remembers a demand; gives the highest of the stabilisation. Those that a clock that went back left in the future are
    /// of no use any more.
    fn note(&mut self, wanted: u32, now: DateTime<Utc>) -> u32 {
        self.demands.retain(|(at, _)| *at <= now && after(*at, SCALE_STABILISATION) > now);
        if self.demands.len() == MOST_DEMANDS {
            self.demands.pop_front();
        }
        self.demands.push_back((now, wanted));
        self.demands.iter().map(|(_, wanted)| *wanted).max().unwrap_or(wanted)
    }
}

/// What a measurement asks for.
struct Demand {
    replicas: u32,
    metric: Metric,
    mean: Mean,
    target: u32,
}

/// The highest of what the targets ask for; none where nothing was measured, or where fewer replicas would do and something
/// is not known.
fn demand(rule: &ScaleRule, load: &Load, replicas: u32) -> Option<Demand> {
    let ScaleTargets { cpu, memory, rps } = rule.targets;
    let aims = [
        (Metric::Cpu, cpu.map(u32::from), load.cpu),
        (Metric::Memory, memory.map(u32::from), load.memory),
        (Metric::Rps, rps, load.rps),
    ];
    let aims =
        aims.into_iter().filter_map(|(metric, target, mean)| Some((metric, target.filter(|one| *one > 0)?, mean)));
    let (measured, unknown): (Vec<_>, Vec<_>) =
        aims.partition(|(_, _, mean)| mean.is_some_and(|mean| mean.of > 0 && mean.value.is_finite()));
    let demands = measured.into_iter().filter_map(|(metric, target, mean)| {
        let mean = mean?;
        Some(Demand { replicas: wanted(mean, target, replicas), metric, mean, target })
    });
    let highest = demands.max_by_key(|demand| demand.replicas)?;
    let certain = unknown.is_empty() && !load.moving;
    (certain || highest.replicas > replicas).then_some(highest)
}

/// Replicas at which the mean would meet the target. Those that were not measured are taken to use nothing where more are
/// asked for, and what is aimed at where fewer are, so that ignorance changes nothing.
fn wanted(mean: Mean, target: u32, replicas: u32) -> u32 {
    let (target, all, of) = (f64::from(target), f64::from(replicas.max(mean.of)), f64::from(mean.of));
    let used = mean.value.max(0.0) * of;
    let rest = match mean.value > target {
        true => 0.0,
        false => target * (all - of),
    };
    let ratio = (used + rest) / all / target;
    if (ratio - 1.0).abs() <= SCALE_TOLERANCE || (ratio > 1.0) != (mean.value > target) {
        return replicas;
    }
    // Far beyond any bound, and rounded up: a float that is cast ends at the largest number.
    (ratio * all).ceil() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> DateTime<Utc> {
        after(DateTime::UNIX_EPOCH, Duration::from_secs(1_000_000 + seconds))
    }

    fn rule() -> ScaleRule {
        let targets = ScaleTargets { cpu: Some(50), memory: None, rps: None };
        ScaleRule { min: 1, max: 10, cooldown: Duration::ZERO, targets }
    }

    fn cpu(value: f64, of: u32) -> Load {
        Load { cpu: Some(Mean { value, of }), ..Load::default() }
    }

    /// Replicas after one measurement, long after the last one.
    fn after_one(rule: &ScaleRule, before: u32, load: &Load) -> u32 {
        let mut scaling = Scaling::new(before, at(0));
        scaling.decide(rule, load, at(1000));
        scaling.replicas(rule)
    }

    #[test]
    fn the_count_follows_the_ratio_within_bounds_and_tolerance() {
        for (before, load, expected, why) in [
            (2, cpu(100.0, 2), 4, "twice the target doubles"),
            (4, cpu(60.0, 4), 5, "rounded up"),
            (4, cpu(54.0, 4), 4, "eight hundredths above are no reason"),
            (4, cpu(46.0, 4), 4, "eight hundredths below are none either"),
            (4, cpu(44.0, 4), 4, "four tenths of a replica too many stay"),
            (4, cpu(25.0, 4), 2, "half the target halves"),
            (4, cpu(0.0, 4), 1, "never below the least"),
            (8, cpu(400.0, 8), 10, "never above the most"),
            (1, cpu(1000.0, 1), 5, "at most four more at once where that is more than twice"),
            (3, cpu(1000.0, 3), 7, "four more is more than twice three"),
            (5, cpu(1000.0, 5), 10, "at most twice as many at once"),
            (4, cpu(f64::NAN, 4), 4, "what is no number asks for nothing"),
        ] {
            assert_eq!(after_one(&rule(), before, &load), expected, "{why}: {before} {load:?}");
        }
    }

    #[test]
    fn what_was_not_measured_leads_to_nothing() {
        let both = ScaleRule { targets: ScaleTargets { memory: Some(50), ..rule().targets }, ..rule() };
        for (rule, before, load, expected, why) in [
            (rule(), 4, Load::default(), 4, "nothing is known"),
            (rule(), 4, cpu(100.0, 1), 4, "one of four at twice the target may be alone"),
            (rule(), 4, cpu(100.0, 3), 6, "three of four are enough to see"),
            (rule(), 4, cpu(10.0, 1), 4, "the three that are not seen may be at the target"),
            (rule(), 4, cpu(0.0, 3), 1, "one may be at the target, one is enough for it"),
            (both, 4, cpu(10.0, 4), 4, "memory is not known, so fewer may be too few"),
            (both, 4, cpu(100.0, 4), 8, "more are needed whatever memory says"),
            (rule(), 4, Load { moving: true, ..cpu(0.0, 4) }, 4, "instances that start use little"),
            (rule(), 4, Load { moving: true, ..cpu(100.0, 4) }, 8, "more are never too many"),
        ] {
            assert_eq!(after_one(&rule, before, &load), expected, "{why}");
        }
    }

    #[test]
    fn the_target_that_asks_for_most_decides() {
        let targets = ScaleTargets { cpu: Some(50), memory: Some(50), rps: Some(10) };
        let rule = ScaleRule { targets, ..rule() };
        let mean = |value| Some(Mean { value, of: 2 });
        let load = Load { cpu: mean(20.0), memory: mean(150.0), rps: mean(20.0), moving: false };
        let decision = Scaling::new(2, at(0)).decide(&rule, &load, at(1000)).unwrap();
        assert_eq!((decision.from, decision.to, decision.metric), (2, 6, Metric::Memory));
        assert_eq!(decision.to_string(), "2 to 6 replicas: 150 % memory on average in 2 of 2, 50 is aimed at");
    }

    #[test]
    fn fewer_come_only_when_nothing_asked_for_more_in_five_minutes() {
        let rule = rule();
        let mut scaling = Scaling::new(4, at(0));
        let mut course = Vec::new();
        for (second, value) in [(15, 10.0), (30, 40.0), (299, 10.0), (300, 10.0), (329, 10.0), (330, 10.0), (600, 10.0)]
        {
            let of = scaling.replicas(&rule);
            scaling.decide(&rule, &cpu(value, of), at(second));
            course.push((second, scaling.replicas(&rule)));
        }
        // At second 0 there were four; at 30, four at 40 % asked for four again, as all that is within the tolerance does.
        assert_eq!(course, [(15, 4), (30, 4), (299, 4), (300, 4), (329, 4), (330, 1), (600, 1)]);
    }

    #[test]
    fn what_was_not_known_lately_may_have_needed_as_many_as_there_are() {
        let rule = rule();
        let mut scaling = Scaling::new(4, at(0));
        for second in (15..600).step_by(15) {
            scaling.decide(&rule, &Load { moving: true, ..cpu(0.0, 4) }, at(second));
        }
        let mut course = Vec::new();
        for second in [600, 884, 885] {
            scaling.decide(&rule, &cpu(0.0, 4), at(second));
            course.push(scaling.replicas(&rule));
        }
        assert_eq!(course, [4, 4, 1]);
    }

    #[test]
    fn changes_keep_their_distance_and_a_clock_that_goes_back_blocks_none() {
        let rule = ScaleRule { cooldown: Duration::from_secs(60), ..rule() };
        let mut scaling = Scaling::new(1, at(1000));
        let busy = |scaling: &Scaling| cpu(100.0, scaling.replicas(&rule));
        let mut step = |second| {
            let load = busy(&scaling);
            scaling.decide(&rule, &load, at(second)).map(|decision| decision.to)
        };
        assert_eq!(step(1015), Some(2));
        assert_eq!(step(1074), None);
        assert_eq!(step(1075), Some(4));
        assert_eq!(step(500), Some(8));
    }

    #[test]
    fn bounds_that_change_hold_at_once() {
        let scaling = Scaling::new(4, at(0));
        assert_eq!(scaling.replicas(&ScaleRule { min: 6, ..rule() }), 6);
        assert_eq!(scaling.replicas(&ScaleRule { max: 2, ..rule() }), 2);
    }
}
