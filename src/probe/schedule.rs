//! When a run is checked next, and what the results lead to. Pure: times come in as arguments.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use tokio::time::Instant;

use crate::spec::Health;
use crate::state::{HealthState, NOT_CHECKED};

/// Time after a start before the first check: most small servers listen within a few milliseconds.
const FIRST: Duration = Duration::from_millis(50);

/// Longest pause between two checks of what has not passed yet, so that a rollout goes on soon after it could; the
/// kubelet's startup probes are made as often at most.
const UNPASSED: Duration = Duration::from_secs(1);

/// Time over which the first checks are spread of what already ran for a while: a controller that has just started
/// neither floods the machine nor leaves readiness unknown for long.
const ADOPTION: Duration = Duration::from_secs(2);

/// Part of that time for each run that is given other checks at once: one is checked right away, and many are spread.
const CHANGE: Duration = Duration::from_millis(10);

/// Age up to which a run counts as new, where its grace is shorter.
const NEW: Duration = Duration::from_secs(1);

/// Part of the interval by which the name of an instance brings its checks forward, in percent.
const JITTER_PERCENT: u32 = 10;

/// Shortest time between two messages of one run that differ in nothing but what the check said: some say the time.
const RETELL: Duration = Duration::from_secs(5);

/// The numbers of a health block, defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Time after the start in which failures do not count.
    pub grace: Duration,
    /// Time between two checks.
    pub interval: Duration,
    /// Longest time for one check.
    pub timeout: Duration,
    /// Failures in a row that make a run unhealthy; at least 1.
    pub retries: u32,
}

impl Rules {
    /// Those of this block.
    pub fn of(health: &Health) -> Self {
        Self {
            grace: health.start_grace(),
            interval: health.interval(),
            timeout: health.timeout(),
            retries: health.retries(),
        }
    }
}

/// What came of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It failed, and says why.
    Failed(String),
    /// It could not be made, which says nothing of the instance; why.
    NotMade(String),
}

/// What is known of a run of this age that no check was made of.
pub fn unchecked(health: &Health, age: Duration) -> HealthState {
    match age <= health.start_grace().max(NEW) {
        true => HealthState::Starting { last: None },
        false => HealthState::Unknown { why: NOT_CHECKED.to_owned() },
    }
}

/// The course of the checks of one run.
#[derive(Debug)]
pub struct Course {
    rules: Rules,
    /// Where the name lies between 0 and 1000, for spreading.
    place: u32,
    /// When the run started, where the machine's clock reaches back so far.
    started: Option<Instant>,
    /// Whether it was seen from its start on.
    is_new: bool,
    stage: Stage,
    /// Whether a check passed since these rules hold.
    passed: bool,
    /// Failures in a row that count.
    failures: u32,
    /// When the last of them was.
    counted_at: Option<Instant>,
    /// Why a check that is due was not made for so long, where that is so.
    held_up: Option<String>,
    /// What was told last, and when.
    told: Option<(News, Instant)>,
}

/// What is worth telling of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// What is known of it.
    pub health: HealthState,
    /// Why the check that is due was not made for longer than it should have waited, where that is so.
    pub held_up: Option<String>,
}

/// How far a run has come.
#[derive(Debug)]
enum Stage {
    /// No check has passed; what the last one said, and the pause before the next.
    Unpassed { last: Option<String>, pause: Duration },
    /// No check could be made.
    NotMade { why: String },
    /// Checks pass.
    Healthy,
    /// Too many failed.
    Unhealthy { last: String },
}

impl Course {
    /// The course of a run of this age, and when it is checked first. One that `served` until now, when nothing checked
    /// it, counts as healthy until its checks say otherwise.
    pub fn begin(rules: Rules, name: &str, age: Duration, served: bool, now: Instant) -> (Self, Instant) {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let place = (hasher.finish() % 1001) as u32;
        let is_new = age <= rules.grace.max(NEW);
        let course = Self {
            rules,
            place,
            started: now.checked_sub(age),
            is_new,
            stage: if served { Stage::Healthy } else { Stage::Unpassed { last: None, pause: FIRST } },
            passed: false,
            failures: 0,
            counted_at: None,
            held_up: None,
            told: None,
        };
        let wait = match is_new {
            true => FIRST.saturating_sub(age),
            false => course.part_of(rules.interval.min(ADOPTION)),
        };
        (course, now + wait)
    }

    /// Other checks, and these rules, hold from now on, for so many runs at once. What passed the ones before counts as
    /// healthy until these say otherwise; that it failed those, or that they could not be made, says nothing any more. Gives
    /// when the first of them is due.
    pub fn adjust(&mut self, rules: Rules, runs: usize, now: Instant) -> Instant {
        self.rules = rules;
        (self.passed, self.failures, self.counted_at, self.held_up) = (false, 0, None, None);
        // That the new ones pass is news.
        self.told = None;
        if !matches!(self.stage, Stage::Healthy) {
            self.stage = Stage::Unpassed { last: None, pause: FIRST };
        }
        let spread = CHANGE.saturating_mul(u32::try_from(runs).unwrap_or(u32::MAX)).min(ADOPTION);
        now + self.part_of(spread.min(rules.interval))
    }

    /// The rules that hold.
    pub const fn rules(&self) -> Rules {
        self.rules
    }

    /// How long a check that is due may wait for its turn before that is worth telling: a rollout may hang on the first one.
    pub fn patience(&self) -> Duration {
        match self.stage {
            Stage::Unpassed { .. } => UNPASSED,
            Stage::NotMade { .. } | Stage::Healthy | Stage::Unhealthy { .. } => self.rules.interval.max(UNPASSED),
        }
    }

    /// Notes that a check has waited for its turn for that long, and why.
    pub fn hold_up(&mut self, why: String) {
        self.held_up = Some(why);
    }

    /// Notes that a check begins.
    pub fn has_turn(&mut self) {
        self.held_up = None;
    }

    /// Takes the result of a check that began and ended then; gives when the next one is due.
    pub fn take(&mut self, outcome: Outcome, began: Instant, ended: Instant) -> Instant {
        match outcome {
            Outcome::Passed => {
                (self.passed, self.failures, self.counted_at) = (true, 0, None);
                self.stage = Stage::Healthy;
            }
            Outcome::Failed(last) => self.failed(last, began),
            // What was known stays true as far as is known.
            Outcome::NotMade(why) => {
                if matches!(self.stage, Stage::Unpassed { .. } | Stage::NotMade { .. }) {
                    self.stage = Stage::NotMade { why };
                }
            }
        }
        ended + self.pause()
    }

    fn failed(&mut self, last: String, began: Instant) {
        if self.counts(began) {
            self.failures = self.failures.saturating_add(1);
            self.counted_at = Some(began);
        }
        let exhausted = self.failures >= self.rules.retries;
        self.stage = match std::mem::replace(&mut self.stage, Stage::Healthy) {
            _ if exhausted => Stage::Unhealthy { last },
            Stage::Unpassed { pause, .. } => Stage::Unpassed { last: Some(last), pause },
            Stage::NotMade { .. } => Stage::Unpassed { last: Some(last), pause: FIRST },
            Stage::Healthy => Stage::Healthy,
            Stage::Unhealthy { .. } => Stage::Unhealthy { last },
        };
    }

    /// Whether a failure of a check that began then counts: not in the grace, and once in an interval, so that being
    /// checked more often before the first success takes no time from a slow start.
    fn counts(&self, began: Instant) -> bool {
        let apart = self.rules.interval - self.rules.interval * JITTER_PERCENT / 100;
        let in_grace = self.started.is_some_and(|started| began < started + self.rules.grace);
        !in_grace && self.counted_at.is_none_or(|counted| began >= counted + apart)
    }

    fn pause(&mut self) -> Duration {
        let interval = self.rules.interval;
        match &mut self.stage {
            Stage::Unpassed { pause, .. } => {
                let next = *pause;
                *pause = (next * 2).min(UNPASSED).min(interval);
                next.min(interval)
            }
            Stage::NotMade { .. } | Stage::Healthy | Stage::Unhealthy { .. } => {
                interval.saturating_sub(self.part_of(interval * JITTER_PERCENT / 100))
            }
        }
    }

    /// As much of a time as the name's place says.
    fn part_of(&self, time: Duration) -> Duration {
        time * self.place / 1000
    }

    /// What is known.
    pub fn health(&self) -> HealthState {
        if let (Stage::Unpassed { last: None, .. }, Some(why)) = (&self.stage, &self.held_up) {
            return HealthState::Waiting { why: why.clone() };
        }
        match &self.stage {
            Stage::Unpassed { last, .. } if self.is_new => HealthState::Starting { last: last.clone() },
            Stage::Unpassed { last, .. } => {
                HealthState::Unknown { why: last.clone().unwrap_or_else(|| NOT_CHECKED.to_owned()) }
            }
            Stage::NotMade { why } => HealthState::Unknown { why: why.clone() },
            Stage::Healthy if self.passed => HealthState::Healthy,
            Stage::Healthy => HealthState::Assumed,
            Stage::Unhealthy { last } => HealthState::Unhealthy { last: last.clone(), passed: self.passed },
        }
    }

    /// What is known, where that is worth telling: it is of another kind than what was told last, or words alone changed
    /// and that was a while ago.
    pub fn news(&mut self, now: Instant) -> Option<News> {
        let news = News { health: self.health(), held_up: self.held_up.clone() };
        let known = self.told.as_ref().is_some_and(|(told, at)| {
            let same_kind = std::mem::discriminant(&told.health) == std::mem::discriminant(&news.health)
                && told.held_up.is_some() == news.held_up.is_some();
            *told == news || (same_kind && told.health.message().is_some() && now < *at + RETELL)
        });
        if known {
            return None;
        }
        self.told = Some((news.clone(), now));
        Some(news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        grace: Duration::from_secs(5),
        interval: Duration::from_secs(10),
        timeout: Duration::from_secs(5),
        retries: 3,
    };

    /// Checks a run at once whenever it is due, for this long; what it is at which millisecond, each told once.
    fn play(
        rules: Rules,
        age: Duration,
        length: Duration,
        outcome: impl Fn(Duration) -> Outcome,
    ) -> Vec<(u64, &'static str)> {
        let start = Instant::now();
        let (mut course, mut due) = Course::begin(rules, "demo_web_0", age, false, start);
        let mut seen = Vec::new();
        while due < start + length {
            let after = due - start;
            let next = course.take(outcome(after), due, due);
            if let Some(health) = course.news(due)
                && seen.last().is_none_or(|(_, name)| *name != health.health.name())
            {
                seen.push((after.as_millis() as u64, health.health.name()));
            }
            assert!(next > due, "time goes on");
            due = next;
        }
        seen
    }

    fn failed() -> Outcome {
        Outcome::Failed("connection refused".to_owned())
    }

    /// Fails before that time, and passes from then on.
    fn passes_from(seconds: u64) -> impl Fn(Duration) -> Outcome {
        move |after| if after < Duration::from_secs(seconds) { failed() } else { Outcome::Passed }
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn what_starts_quickly_is_healthy_at_once() {
        assert_eq!(play(RULES, Duration::ZERO, MINUTE, |_| Outcome::Passed), [(50, "healthy")]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_starts_slowly_is_healthy_within_a_second_of_being_so() {
        let seen = play(RULES, Duration::ZERO, MINUTE, passes_from(20));
        assert_eq!(seen[0], (50, "starting"));
        assert!(seen[1].1 == "healthy" && (20_000..21_000).contains(&seen[1].0), "{seen:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_that_fails_is_given_its_grace_and_its_retries_an_interval_apart() {
        let seen = play(RULES, Duration::ZERO, MINUTE, |_| failed());
        // The failures that count lie from 5 s on, 9 s apart at least and 10 s at most: the third at 23 s to 27 s.
        assert_eq!([seen[0].1, seen[1].1], ["starting", "unhealthy"]);
        assert!((23_000..27_000).contains(&seen[1].0), "{seen:?}");
        let one = Rules { retries: 1, ..RULES };
        let seen = play(one, Duration::ZERO, MINUTE, |_| failed());
        assert!((5_000..6_000).contains(&seen[1].0), "{seen:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_the_grace_never_count() {
        let rules = Rules { grace: Duration::from_secs(30), interval: Duration::from_secs(1), retries: 1, ..RULES };
        let seen = play(rules, Duration::ZERO, Duration::from_secs(29), |_| failed());
        assert_eq!(seen, [(50, "starting")]);
        // Neither do those after a first success.
        let stumbles = |after: Duration| if after < Duration::from_secs(2) { Outcome::Passed } else { failed() };
        assert_eq!(play(rules, Duration::ZERO, Duration::from_secs(29), stumbles), [(50, "healthy")]);
    }

    #[tokio::test(start_paused = true)]
    async fn retries_in_a_row_make_it_unhealthy_and_one_success_healthy_again() {
        // Intervals are 9 s to 10 s long.
        let down = |from: u64, to: u64| {
            move |after: Duration| {
                if (from..to).contains(&after.as_secs()) { failed() } else { Outcome::Passed }
            }
        };
        let ten = Duration::from_secs(600);
        assert_eq!(play(RULES, Duration::ZERO, ten, down(100, 118)), [(50, "healthy")], "two at most");
        let seen = play(RULES, Duration::ZERO, ten, down(100, 140));
        assert_eq!(seen.iter().map(|(_, name)| *name).collect::<Vec<_>>(), ["healthy", "unhealthy", "healthy"]);
        assert!((118_000..131_000).contains(&seen[1].0) && (140_000..151_000).contains(&seen[2].0), "{seen:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_run_is_unknown_until_a_check_passes_and_is_checked_soon() {
        let hour = Duration::from_secs(3600);
        let seen = play(RULES, hour, MINUTE, |_| Outcome::Passed);
        assert!(seen.len() == 1 && seen[0].1 == "healthy" && seen[0].0 <= 2_000, "{seen:?}");
        let seen = play(RULES, hour, MINUTE, |_| failed());
        assert_eq!(seen.iter().map(|(_, name)| *name).collect::<Vec<_>>(), ["unknown", "unhealthy"]);
        assert!(seen[1].0 >= 18_000, "the same time as for one that was healthy: {seen:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn first_checks_of_old_runs_are_spread_and_later_ones_differ_by_a_tenth_at_most() {
        let now = Instant::now();
        let mut first = std::collections::BTreeSet::new();
        for slot in 0..200 {
            let (mut course, due) = Course::begin(RULES, &format!("demo_web_{slot}"), MINUTE, false, now);
            assert!(due <= now + ADOPTION);
            first.insert(due);
            let next = course.take(Outcome::Passed, due, due) - due;
            assert!(next <= RULES.interval && next >= RULES.interval * 9 / 10, "{next:?}");
            let (_, due) = Course::begin(RULES, &format!("demo_web_{slot}"), Duration::ZERO, false, now);
            assert_eq!(due, now + FIRST, "a new one is not spread");
        }
        assert!(first.len() > 150, "{}", first.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_can_not_be_made_changes_nothing_that_is_known() {
        let broken = |after: Duration| match after.as_secs() {
            100..200 => Outcome::NotMade("the engine does not answer".to_owned()),
            _ => Outcome::Passed,
        };
        assert_eq!(play(RULES, Duration::ZERO, Duration::from_secs(600), broken), [(50, "healthy")]);
        let never = |_| Outcome::NotMade("there is no shell inside".to_owned());
        assert_eq!(play(RULES, Duration::ZERO, Duration::from_secs(600), never), [(50, "unknown")]);
    }

    #[tokio::test(start_paused = true)]
    async fn words_that_change_with_each_check_are_told_now_and_then() {
        let start = Instant::now();
        let (mut course, _) = Course::begin(RULES, "demo_web_0", Duration::ZERO, false, start);
        let mut told = 0;
        for tenth in 0..100_u64 {
            let now = start + Duration::from_millis(tenth * 100);
            course.take(Outcome::Failed(format!("at {tenth}")), now, now);
            told += u32::from(course.news(now).is_some());
        }
        assert_eq!(told, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn other_rules_keep_that_it_passed() {
        let now = Instant::now();
        let (mut course, _) = Course::begin(RULES, "demo_web_0", MINUTE, false, now);
        course.take(Outcome::Passed, now, now);
        course.take(failed(), now + MINUTE, now + MINUTE);
        let due = course.adjust(Rules { retries: 2, ..RULES }, 1, now + 2 * MINUTE);
        assert!(due <= now + 2 * MINUTE + CHANGE);
        course.take(failed(), due, due);
        let news = |course: &mut Course| course.news(due).map(|news| news.health);
        assert_eq!(news(&mut course), Some(HealthState::Assumed), "failures are counted anew");
        course.take(Outcome::Passed, due, due);
        assert_eq!(news(&mut course), Some(HealthState::Healthy));
        course.adjust(Rules { retries: 2, ..RULES }, 1, due);
        course.take(failed(), due, due);
        course.take(failed(), now + 3 * MINUTE, now + 3 * MINUTE);
        assert_eq!(course.health().name(), "unhealthy");
    }

    #[tokio::test(start_paused = true)]
    async fn what_failed_other_checks_has_all_the_tries_of_the_new_ones() {
        let now = Instant::now();
        let (mut course, mut due) = Course::begin(RULES, "demo_web_0", MINUTE, false, now);
        while course.health().name() != "unhealthy" {
            due = course.take(failed(), due, due);
        }
        due = course.adjust(RULES, 1, due);
        let begun = course.news(due).map(|news| news.health);
        assert_eq!(
            begun,
            Some(HealthState::Unknown { why: NOT_CHECKED.to_owned() }),
            "the old verdict is not told again"
        );
        let mut seen = Vec::new();
        let from = due;
        while due < from + MINUTE && seen.last() != Some(&"unhealthy") {
            due = course.take(failed(), due, due);
            seen.push(course.health().name());
        }
        assert!(due >= from + RULES.interval * 18 / 10, "three failures that count: {seen:?}");
        assert_eq!(seen.last(), Some(&"unhealthy"));
        // What could not be checked in the old way waits for the first check of the new one.
        let (mut course, due) = Course::begin(RULES, "demo_web_0", MINUTE, false, now);
        course.take(Outcome::NotMade("there is no shell inside".to_owned()), due, due);
        course.adjust(RULES, 1, due);
        assert_eq!(course.health(), HealthState::Unknown { why: NOT_CHECKED.to_owned() });
    }

    #[tokio::test(start_paused = true)]
    async fn another_grace_counts_from_the_start() {
        let now = Instant::now();
        let (mut course, _) = Course::begin(RULES, "demo_web_0", MINUTE, false, now);
        let rules = Rules { grace: 2 * MINUTE, retries: 1, ..RULES };
        course.adjust(rules, 1, now);
        course.take(failed(), now + MINUTE / 2, now + MINUTE / 2);
        assert_ne!(course.health().name(), "unhealthy", "it is 90 s old");
        course.take(failed(), now + 2 * MINUTE, now + 2 * MINUTE);
        assert_eq!(course.health().name(), "unhealthy");
    }

    #[tokio::test(start_paused = true)]
    async fn other_checks_of_many_are_spread() {
        let now = Instant::now();
        let mut first = std::collections::BTreeSet::new();
        for slot in 0..200 {
            let (mut course, _) = Course::begin(RULES, &format!("demo_web_{slot}"), MINUTE, false, now);
            let due = course.adjust(RULES, 200, now);
            assert!(due <= now + ADOPTION);
            first.insert(due);
        }
        assert!(first.len() > 150, "{}", first.len());
    }

    #[tokio::test(start_paused = true)]
    async fn what_served_before_it_was_checked_is_healthy_until_its_retries_are_used_up() {
        let now = Instant::now();
        let (mut course, mut due) = Course::begin(RULES, "demo_web_0", MINUTE, true, now);
        for health in ["healthy", "healthy", "unhealthy"] {
            due = course.take(failed(), due, due);
            assert_eq!(course.health().name(), health);
        }
    }

    #[test]
    fn what_was_not_checked_is_starting_in_its_grace_and_unknown_after_it() {
        let health: Health = serde_json::from_value(serde_json::json!({"check": {"type": "tcp", "port": 1}})).unwrap();
        let name = |seconds: u64| unchecked(&health, Duration::from_secs(seconds)).name();
        assert_eq!([name(0), name(5), name(6), name(3600)], ["starting", "starting", "unknown", "unknown"]);
    }
}
