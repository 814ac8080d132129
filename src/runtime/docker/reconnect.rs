//! When the engine's event stream is asked for again, after it broke off or could not be had. Pure.

use std::time::Duration;

/// First and longest wait before connecting again. The first is short because an engine that restarts is back in about
/// a second; the longest bounds how late its return is noticed.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Longest wait where the engine answers and its stream ends at once, as Podman's does with `events_logger = "none"`. Every
/// try lists and inspects all containers, so it bounds that work, and how late a change is noticed.
const LONGEST_BARREN_WAIT: Duration = Duration::from_secs(30);

/// A stream that lasted this long was there, whether or not it told anything.
pub(super) const LASTING: Duration = Duration::from_secs(10);

/// Streams that ended at once, in a row, after which there is no stream to be had: one or two break while an engine ends.
const BARREN: u32 = 3;

/// What a stream was good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// It lasted, or told of a change.
    Good,
    /// It ended at once.
    Barren,
}

/// Counts tries.
#[derive(Debug)]
pub(super) struct Retries {
    wait: Duration,
    barren: u32,
}

impl Retries {
    pub(super) const fn new() -> Self {
        Self { wait: FIRST_WAIT, barren: 0 }
    }

    /// The engine could not be reached: how long to wait.
    pub(super) fn away(&mut self) -> Duration {
        self.barren = 0;
        self.pause(LONGEST_WAIT)
    }

    /// The stream broke off: how long to wait.
    pub(super) fn broke(&mut self, stream: Stream) -> Duration {
        match stream {
            Stream::Good => {
                *self = Self::new();
                self.pause(LONGEST_WAIT)
            }
            Stream::Barren => {
                self.barren = self.barren.saturating_add(1);
                self.pause(LONGEST_BARREN_WAIT)
            }
        }
    }

    /// Whether the stream that just broke off was the first of its row that ended at once, or one that was there.
    pub(super) const fn is_news(&self) -> bool {
        self.barren <= 1
    }

    /// Whether there is no stream to be had since just now.
    pub(super) const fn gives_up(&self) -> bool {
        self.barren == BARREN
    }

    fn pause(&mut self, longest: Duration) -> Duration {
        let wait = self.wait.min(longest);
        self.wait = (wait * 2).min(longest);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(tries: usize, mut wait: impl FnMut() -> Duration) -> Vec<u128> {
        (0..tries).map(|_| wait().as_millis()).collect()
    }

    #[test]
    fn an_engine_that_is_away_is_looked_for_every_few_seconds() {
        let mut retries = Retries::new();
        assert_eq!(millis(8, || retries.away()), [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(millis(2, || retries.broke(Stream::Good)), [100, 100], "a stream that was there begins anew");
    }

    #[test]
    fn a_stream_that_ends_at_once_is_asked_for_less_and_less_and_told_once() {
        let mut retries = Retries::new();
        let mut told = (Vec::new(), Vec::new());
        let waits = millis(11, || {
            let wait = retries.broke(Stream::Barren);
            told.0.push(retries.is_news());
            told.1.push(retries.gives_up());
            wait
        });
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
        assert_eq!(told.0, [true, false, false, false, false, false, false, false, false, false, false]);
        assert_eq!(told.1, [false, false, true, false, false, false, false, false, false, false, false]);
    }
}
