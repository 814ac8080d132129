//! Tries of one request in a row that bring nothing: how many, for how long, and how far apart.

use std::time::Duration;

use tokio::time::Instant;

use super::bounds::{FIRST_WAIT, LONGEST_WAIT, MOST_TRIES, TRYING};
use super::http::HttpError;

/// Tries of one request since something came of it.
#[derive(Debug)]
pub struct Tries {
    made: u32,
    /// When the first of them began, or the last byte came.
    since: Instant,
}

impl Tries {
    /// With the first one, which begins now.
    pub fn first() -> Self {
        Self { made: 1, since: Instant::now() }
    }

    /// The last one brought something: those that follow count anew.
    pub fn brought(&mut self) {
        *self = Self { made: 0, since: Instant::now() };
    }

    /// The last one was answered, by too little to count: there are no more tries for that, but time for those that are left.
    pub fn answered(&mut self) {
        self.since = Instant::now();
    }

    /// Whether more than one was made.
    pub const fn are_several(&self) -> bool {
        self.made > 1
    }

    /// The wait before another one; `None` where the request is given up. It is then, too, where the tries were few and
    /// long: one that a server left without an answer is not worth another.
    pub fn again(&mut self, error: &HttpError) -> Option<Duration> {
        let least = error.retry.filter(|_| self.made < MOST_TRIES && self.since.elapsed() < TRYING)?;
        let wait = back_off(self.made.max(1), least);
        self.made += 1;
        Some(wait)
    }
}

/// The wait before another try.
fn back_off(tries: u32, least: Duration) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(1 << tries.saturating_sub(1).min(16));
    doubled.max(least).min(LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many tries are made that each take this long, and the time that they take in all.
    async fn tries(each: Duration) -> (u32, Duration) {
        let (begin, error) = (Instant::now(), HttpError::passing("nothing"));
        let (mut tries, mut count) = (Tries::first(), 1);
        loop {
            tokio::time::sleep(each).await;
            let Some(wait) = tries.again(&error) else { return (count, begin.elapsed()) };
            tokio::time::sleep(wait).await;
            count += 1;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_refuses_is_asked_a_few_times_and_one_that_says_nothing_once() {
        assert_eq!(tries(Duration::ZERO).await, (MOST_TRIES, Duration::from_millis(6_200)));
        assert_eq!(tries(super::super::bounds::ANSWER_LIMIT).await.0, 1);
        let (count, taken) = tries(Duration::from_secs(25)).await;
        assert_eq!((count, taken.as_secs()), (3, 75), "no try begins once it took a minute");
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_begins_them_anew_and_what_lasts_ends_them() {
        let mut tries = Tries::first();
        tokio::time::sleep(TRYING).await;
        tries.brought();
        assert_eq!(tries.again(&HttpError::passing("cut")), Some(FIRST_WAIT));
        assert_eq!(tries.again(&HttpError::lasting("no such image")), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_answer_is_taken_up_again_and_not_for_ever() {
        let mut tries = Tries::first();
        for _ in 1..MOST_TRIES {
            tokio::time::sleep(TRYING * 2).await;
            tries.answered();
            assert!(tries.again(&HttpError::passing("cut")).is_some());
        }
        tries.answered();
        assert_eq!(tries.again(&HttpError::passing("cut")), None);
    }

    #[test]
    fn waits_double_up_to_their_bound() {
        let waits: Vec<u128> = (1..=8).map(|tries| back_off(tries, Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(back_off(1, Duration::from_secs(4)), Duration::from_secs(4));
        assert_eq!(back_off(u32::MAX, Duration::MAX), LONGEST_WAIT);
    }
}
