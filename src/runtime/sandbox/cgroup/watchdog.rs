//! Memory of an instance that no control group limits: looked at again and again.

use std::time::{Duration, Instant};

use super::facts::memory;
use super::members::Members;

/// Time between two looks. A look costs some microseconds for each process; a program that takes memory as fast as it
/// can gets about a GiB in that time.
pub const MEMORY_WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// Watches the memory of an instance.
#[derive(Debug)]
pub struct MemoryWatch {
    members: Members,
    limit: u64,
    next: Instant,
}

impl MemoryWatch {
    /// A watch that lets the instance have so many bytes.
    pub fn new(members: Members, limit: u64) -> Self {
        Self { members, limit, next: Instant::now() }
    }

    /// When it wants to look next.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Looks, where it is time to, and says whether the limit is exceeded.
    pub fn is_exceeded(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        self.next = now + MEMORY_WATCH_INTERVAL;
        self.members.now().is_ok_and(|seen| memory(&seen, self.limit) > self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(limit: u64) -> MemoryWatch {
        MemoryWatch::new(Members::Below(std::process::id().cast_signed()), limit)
    }

    #[test]
    fn it_looks_once_in_an_interval() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut small = watch(1);
        let now = Instant::now();
        assert!(small.is_exceeded(now));
        assert!(!small.is_exceeded(now + MEMORY_WATCH_INTERVAL - Duration::from_millis(1)));
        assert!(small.is_exceeded(now + MEMORY_WATCH_INTERVAL));
        assert!(!watch(u64::MAX).is_exceeded(now));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
