//! Who follows output. Engines end a follower before it has read all, and what it then reads once more is gone with the
//! container; so a container that has ended is removed when its followers are done. Whoever removes it waits for that
//! first, without holding up other calls.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// Longest time that a removal waits. Docker ends a follower within milliseconds of a container's end, and Podman, which
/// looks at the file four times a second, within half a second; a follower that nobody reads from holds up nothing for
/// longer.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Followers by container, as many as are connected.
#[derive(Debug, Default)]
pub(super) struct Readers {
    following: watch::Sender<HashMap<String, usize>>,
}

/// A follower, for as long as it lives.
#[derive(Debug)]
pub(super) struct Following {
    readers: Arc<Readers>,
    container: String,
}

impl Readers {
    /// Somebody follows the output of a container.
    pub fn follow(self: &Arc<Self>, container: &str) -> Following {
        self.following.send_modify(|following| *following.entry(container.to_owned()).or_default() += 1);
        Following { readers: self.clone(), container: container.to_owned() }
    }

    /// Waits until nobody follows a container that has ended, and not for long.
    pub async fn done(&self, container: &str) {
        let mut following = self.following.subscribe();
        let done = following.wait_for(|following| !following.contains_key(container));
        if tokio::time::timeout(LAST_LINES, done).await.is_err() {
            tracing::debug!(container, "it is removed although its output is still read");
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.readers.following.send_modify(|following| {
            if let Some(count) = following.get_mut(&self.container) {
                *count -= 1;
                if *count == 0 {
                    following.remove(&self.container);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_removal_waits_for_every_follower_of_its_container() {
        let readers = Arc::new(Readers::default());
        let (first, second, _other) = (readers.follow("a"), readers.follow("a"), readers.follow("b"));
        let began = Instant::now();
        drop(first);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(second);
        });
        readers.done("a").await;
        assert_eq!(began.elapsed(), Duration::from_secs(1));
        readers.done("a").await;
        assert_eq!(began.elapsed(), Duration::from_secs(1), "nobody is left");
    }

    #[tokio::test(start_paused = true)]
    async fn a_removal_does_not_wait_for_ever() {
        let readers = Arc::new(Readers::default());
        let _stuck = readers.follow("a");
        let began = Instant::now();
        readers.done("a").await;
        assert_eq!(began.elapsed(), LAST_LINES);
    }
}
