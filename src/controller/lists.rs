//! The full lists of one runtime: when the next one is due, how many are under way, and whose result counts.

use std::time::Duration;

use tokio::time::Instant;

/// Time between two full lists of a runtime that answers. Events carry the changes; the list only proves that none was
/// missed, so it may be rare (kubelet re-lists every minute, at a cost that shows).
pub(super) const RELIST: Duration = Duration::from_secs(300);

/// First and longest pause between two lists of a runtime that fails to list.
const RELIST_FAILED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Lists of one runtime that may be under way at once: one that hangs, and one that is asked for after the connection
/// was made anew. A runtime that answers neither would not answer a third.
const LISTS_AT_ONCE: usize = 2;

/// Which list of a runtime, in the order in which they begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListNumber(u64);

/// The full lists of one runtime.
#[derive(Debug)]
pub(super) struct Lists {
    next: Option<Instant>,
    under_way: usize,
    begun: u64,
    /// The newest list that has ended.
    newest: Option<ListNumber>,
    pause: Duration,
    succeeded_once: bool,
}

impl Lists {
    /// None has begun, and none is due before it is asked for.
    pub(super) const fn new() -> Self {
        Self { next: None, under_way: 0, begun: 0, newest: None, pause: RELIST_FAILED.0, succeeded_once: false }
    }

    /// When the next list is to begin; absent while that waits for the end of another.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next.filter(|_| self.under_way < LISTS_AT_ONCE)
    }

    /// Whether the runtime was listed completely at least once.
    pub(super) const fn succeeded_once(&self) -> bool {
        self.succeeded_once
    }

    /// Asks for one as soon as possible. One that is under way does not do: it may have begun too early, and may hang.
    pub(super) const fn ask(&mut self, now: Instant) {
        self.next = Some(now);
    }

    /// Begins the next one, where it is due.
    pub(super) fn begin(&mut self, now: Instant) -> Option<ListNumber> {
        self.next().filter(|at| *at <= now)?;
        self.next = None;
        self.under_way += 1;
        self.begun += 1;
        Some(ListNumber(self.begun))
    }

    /// One has ended. Returns whether its result counts: of two, the one that began first may end last, and would bring
    /// back what the other knew to have gone.
    pub(super) fn end(&mut self, number: ListNumber) -> bool {
        self.under_way = self.under_way.saturating_sub(1);
        let counts = self.newest.is_none_or(|newest| newest < number);
        if counts {
            self.newest = Some(number);
        }
        counts
    }

    /// The one that has ended succeeded; the next one is due in a while, unless it is asked for. Returns whether it is
    /// the first that did.
    pub(super) fn succeeded(&mut self, now: Instant) -> bool {
        self.pause = RELIST_FAILED.0;
        self.next.get_or_insert(now + RELIST);
        !std::mem::replace(&mut self.succeeded_once, true)
    }

    /// The one that has ended failed; the next one is due after a pause, unless it is asked for.
    pub(super) fn failed(&mut self, now: Instant) {
        self.next.get_or_insert(now + self.pause);
        self.pause = (self.pause * 2).min(RELIST_FAILED.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_asked_for_begins_beside_one_that_hangs_and_no_third() {
        let now = Instant::now();
        let mut lists = Lists::new();
        assert_eq!((lists.next(), lists.begin(now)), (None, None));
        let mut begun = Vec::new();
        for _ in 0..3 {
            lists.ask(now);
            begun.push(lists.begin(now));
        }
        assert_eq!(begun, [Some(ListNumber(1)), Some(ListNumber(2)), None]);
        assert_eq!(lists.next(), None);
        assert!(lists.end(ListNumber(2)));
        assert_eq!(lists.next(), Some(now), "it was asked for after the others had begun");
        assert_eq!(lists.begin(now), Some(ListNumber(3)));
    }

    #[test]
    fn a_result_counts_unless_that_of_a_newer_one_did() {
        let now = Instant::now();
        let mut lists = Lists::new();
        let begin = |lists: &mut Lists| {
            lists.ask(now);
            lists.begin(now).expect("it is due")
        };
        let (first, second) = (begin(&mut lists), begin(&mut lists));
        assert_eq!((lists.end(first), lists.end(second)), (true, true));
        let (third, fourth) = (begin(&mut lists), begin(&mut lists));
        assert_eq!((lists.end(fourth), lists.end(third)), (true, false));
    }

    #[test]
    fn pauses_double_until_one_succeeds() {
        let now = Instant::now();
        let mut lists = Lists::new();
        let mut pauses = Vec::new();
        for _ in 0..7 {
            lists.next = None;
            lists.failed(now);
            pauses.push((lists.next().expect("the next one") - now).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        lists.next = None;
        assert!(lists.succeeded(now));
        assert_eq!(lists.next(), Some(now + RELIST));
        assert!(!lists.succeeded(now), "only the first is");
        lists.next = None;
        lists.failed(now);
        assert_eq!(lists.next(), Some(now + RELIST_FAILED.0));
    }
}
