//! The keyed delay queue: requests for one key merge, and the earliest time wins.

use std::collections::BTreeMap;

use tokio::time::Instant;

/// Keys and when each is due.
#[derive(Debug, Default)]
pub struct Queue {
    due: BTreeMap<String, Instant>,
}

impl Queue {
    /// Asks for a key at a time; an earlier request stays.
    pub fn add(&mut self, key: &str, at: Instant) {
        match self.due.get_mut(key) {
            Some(due) => *due = at.min(*due),
            None => {
                self.due.insert(key.to_owned(), at);
            }
        }
    }

    /// When the next key is due.
    pub fn next(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }

    /// Takes every key that is due.
    pub fn take_due(&mut self, now: Instant) -> Vec<String> {
        let ready: Vec<String> = self.due.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        for key in &ready {
            self.due.remove(key);
        }
        ready
    }

    /// Forgets a key.
    pub fn remove(&mut self, key: &str) {
        self.due.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_merge_and_the_earliest_wins() {
        let now = Instant::now();
        let later = now + Duration::from_secs(5);
        let mut queue = Queue::default();
        queue.add("a", later);
        queue.add("a", now);
        queue.add("a", later);
        queue.add("b", later);
        assert_eq!(queue.next(), Some(now));
        assert_eq!(queue.take_due(now), ["a"]);
        assert_eq!(queue.take_due(now), Vec::<String>::new());
        assert_eq!(queue.next(), Some(later));
    }
}
