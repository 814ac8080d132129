//! Waits for another status than the one that somebody has.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::engine::Engine;
use crate::status::Status;

/// Between two looks at the declarations while somebody waits and nobody watches them: what other commands declare, or
/// take back, before or after the runtimes tell of it.
const LOOK: Duration = Duration::from_secs(2);

/// Most times that the declarations are read for one answer. More is only to be expected where instances change with
/// every read, and what is declared then is part of the next answer.
const MOST_READS: usize = 3;

impl Engine {
    /// What there is, as soon as it differs from this generation, or the same after that time. Where nobody watches the
    /// declarations, they are read again meanwhile, and before anything is told: whatever the instances are like, they
    /// are held against what was declared by then.
    pub async fn status_after(&self, generation: u64, limit: Duration) -> Arc<Status> {
        let deadline = Instant::now() + limit;
        let mut watch = self.watch();
        loop {
            let until = if self.inner.reread.is_some() { deadline.min(Instant::now() + LOOK) } else { deadline };
            let changed = watch.wait_for(|status| status.generation != generation);
            if let Ok(Err(_)) = tokio::time::timeout_at(until, changed).await {
                // An engine that is shutting down tells what there is.
                return self.status();
            }
            self.read_declarations().await;
            let status = self.status();
            if status.generation != generation || deadline <= Instant::now() {
                return status;
            }
        }
    }

    /// Reads the declarations where nobody watches them, and once more where the status has changed by then: what it
    /// tells may have been declared later than it was read. Nothing is to be told before everything was listed.
    async fn read_declarations(&self) {
        let Some(reread) = &self.inner.reread else { return };
        for _ in 0..MOST_READS {
            let before = self.status();
            if !before.synced {
                return;
            }
            if let Err(error) = reread.settle(Instant::now(), &self.inner.messages).await {
                tracing::debug!(%error, "what is declared stays as it was");
                return;
            }
            if self.status().generation == before.generation {
                return;
            }
        }
    }
}
