//! Pulls and loads of images: a few at a time, and one of each.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use tokio::sync::{Mutex, Semaphore};

use crate::runtime::{ErrorKind, Result, RuntimeError};

/// Images that come at the same time. Docker fetches three layers of an image at once by default
/// (`max-concurrent-downloads`), so more images only share the same line and disk.
const TRANSFERS: usize = 4;

/// Transfers that run or wait.
#[derive(Debug)]
pub(super) struct Transfers {
    permits: Semaphore,
    /// By the image's name; an entry goes when nobody uses it any more.
    images: std::sync::Mutex<HashMap<String, Arc<Image>>>,
}

/// Transfers of one image.
#[derive(Debug)]
struct Image {
    /// How many have ended.
    ended: AtomicU64,
    /// Held while one runs; how the last one ended.
    last: Mutex<Result<()>>,
}

impl Default for Transfers {
    fn default() -> Self {
        Self { permits: Semaphore::new(TRANSFERS), images: std::sync::Mutex::default() }
    }
}

impl Transfers {
    /// Does this transfer of an image, or takes the end of another one of the same image that it waited for.
    pub(super) async fn once(&self, image: &str, transfer: impl Future<Output = Result<()>>) -> Result<()> {
        let image = self.image(image);
        let before = image.ended.load(Ordering::Acquire);
        let mut last = image.last.lock().await;
        if image.ended.load(Ordering::Acquire) != before {
            return last.clone();
        }
        let _permit = self.permits.acquire().await.map_err(|closed| {
            // Nobody closes them.
            RuntimeError::new(ErrorKind::Failed, format!("waiting for other images: {closed}"))
        })?;
        *last = transfer.await;
        image.ended.fetch_add(1, Ordering::Release);
        last.clone()
    }

    fn image(&self, name: &str) -> Arc<Image> {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.retain(|_, image| Arc::strong_count(image) > 1);
        let new = || Arc::new(Image { ended: AtomicU64::new(0), last: Mutex::new(Ok(())) });
        images.entry(name.to_owned()).or_insert_with(new).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use futures::future::join_all;

    use super::*;

    /// Counts transfers that begin, and the most that run at once.
    #[derive(Default)]
    struct Count {
        begun: AtomicUsize,
        running: AtomicUsize,
        most: AtomicUsize,
    }

    impl Count {
        async fn transfer(&self, ends: Result<()>) -> Result<()> {
            self.begun.fetch_add(1, Ordering::SeqCst);
            let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(running, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.running.fetch_sub(1, Ordering::SeqCst);
            ends
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_image_comes_once_for_all_that_wait() {
        for ends in [Ok(()), Err(RuntimeError::new(ErrorKind::ImageUnavailable, "no such image"))] {
            let (transfers, count) = (Transfers::default(), Count::default());
            let all = (0..100).map(|_| transfers.once("a", count.transfer(ends.clone())));
            for result in join_all(all).await {
                assert_eq!(result.map_err(|error| error.kind), ends.clone().map_err(|error| error.kind));
            }
            assert_eq!(count.begun.load(Ordering::SeqCst), 1);
            // A later one begins anew, and nothing is kept of the earlier.
            let _ended = transfers.once("a", count.transfer(ends)).await;
            assert_eq!(count.begun.load(Ordering::SeqCst), 2);
            let _other = transfers.image("b");
            assert_eq!(transfers.images.lock().unwrap().len(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_images_come_at_once() {
        let (transfers, count) = (Transfers::default(), Count::default());
        let names: Vec<_> = (0..10).map(|number| number.to_string()).collect();
        join_all(names.iter().map(|name| transfers.once(name, count.transfer(Ok(()))))).await;
        assert_eq!((count.begun.load(Ordering::SeqCst), count.most.load(Ordering::SeqCst)), (10, TRANSFERS));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_given_up_leaves_it_to_the_next() {
        let (transfers, count) = (Transfers::default(), Count::default());
        let first = tokio::time::timeout(Duration::from_millis(500), transfers.once("a", count.transfer(Ok(()))));
        let (first, second) = tokio::join!(first, transfers.once("a", count.transfer(Ok(()))));
        assert!(first.is_err());
        assert!(second.is_ok());
        assert_eq!(count.begun.load(Ordering::SeqCst), 2);
    }
}
