//! Pulls and loads of images: a few at a time from each place, and one of each.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use crate::runtime::{Progress, Result};

/// Images that come from one registry, or from files of this machine, at the same time. Docker fetches three layers of an
/// image at once by default (`max-concurrent-downloads`), so more images only share the same line and disk.
const FROM_ONE: usize = 4;

/// Images that come from all registries at the same time: eight of them may keep their clients waiting before others have
/// to wait too.
const FROM_REGISTRIES: usize = 8 * FROM_ONE;

/// Whom progress is told.
pub(super) type Teller<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// Where an image comes from. One that does not answer keeps nothing waiting that comes from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin<'a> {
    /// A registry, by the name that references have for it.
    Registry(&'a str),
    /// A file or directory of this machine.
    Machine,
}

impl<'a> Origin<'a> {
    /// The registry of a reference that is written out.
    pub(super) fn registry_of(reference: &'a str) -> Self {
        Self::Registry(reference.split('/').next().unwrap_or(reference))
    }
}

/// What is told while a registry has not answered yet.
pub(super) fn awaited(registry: &str) -> Progress {
    told(format!("waiting for {registry} to answer"))
}

/// What is told between two tries of a registry's answer.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "the sandbox runtime of Linux alone asks registries"))]
pub(super) fn refused(registry: &str, why: &str, wait: Duration) -> Progress {
    told(format!("{why}, from {registry}; it is asked again after {} s", wait.as_secs_f32()))
}

const fn told(message: String) -> Progress {
    Progress { message, current: None, total: None }
}

/// Transfers that run or wait.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    places: Places,
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

impl Transfers {
    /// Does this transfer of an image, or takes the end of another one of the same image that it waited for. What it waits
    /// for is told.
    pub(super) async fn once(
        &self,
        image: &str,
        origin: Origin<'_>,
        tell: Teller<'_>,
        transfer: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let image = self.image(image);
        let before = image.ended.load(Ordering::Acquire);
        let mut last = match image.last.try_lock() {
            Ok(last) => last,
            Err(_) => {
                tell(told(match origin {
                    Origin::Registry(registry) => format!("it is being fetched from {registry} for another instance"),
                    Origin::Machine => "it is being read for another instance".to_owned(),
                }));
                image.last.lock().await
            }
        };
        if image.ended.load(Ordering::Acquire) != before {
            return last.clone();
        }
        let _held = self.places.take(origin, tell).await;
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

/// Places for transfers.
#[derive(Debug)]
struct Places {
    machine: Arc<Semaphore>,
    registries: Arc<Semaphore>,
    /// By registry; an entry goes when nobody uses it any more.
    each: std::sync::Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            machine: Arc::new(Semaphore::new(FROM_ONE)),
            registries: Arc::new(Semaphore::new(FROM_REGISTRIES)),
            each: std::sync::Mutex::default(),
        }
    }
}

impl Places {
    /// Waits for a place; it is given back when what is returned is dropped.
    async fn take(&self, origin: Origin<'_>, tell: Teller<'_>) -> [Option<OwnedSemaphorePermit>; 2] {
        match origin {
            Origin::Machine => {
                let waits = || "waiting for other images of this machine to be read".to_owned();
                [permit(&self.machine, tell, waits).await, None]
            }
            // Its own first: whoever waits for it takes none of the others' places.
            Origin::Registry(registry) => {
                let own = permit(&self.of(registry), tell, || format!("waiting for other images of {registry}")).await;
                let waits = || "waiting for images of other registries".to_owned();
                [own, permit(&self.registries, tell, waits).await]
            }
        }
    }

    fn of(&self, registry: &str) -> Arc<Semaphore> {
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        each.retain(|_, places| Arc::strong_count(places) > 1);
        each.entry(registry.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(FROM_ONE))).clone()
    }
}

/// Takes one of these places, and tells what it waits for where none is free. A semaphore that is never closed can't refuse.
async fn permit(places: &Arc<Semaphore>, tell: Teller<'_>, waits: impl Fn() -> String) -> Option<OwnedSemaphorePermit> {
    if let Ok(free) = places.clone().try_acquire_owned() {
        return Some(free);
    }
    tell(told(waits()));
    places.clone().acquire_owned().await.ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures::future::join_all;

    use super::*;
    use crate::runtime::{ErrorKind, RuntimeError};

    const HUB: Origin<'_> = Origin::Registry("hub");

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
            let all = (0..100).map(|_| transfers.once("a", HUB, &|_| {}, count.transfer(ends.clone())));
            for result in join_all(all).await {
                assert_eq!(result.map_err(|error| error.kind), ends.clone().map_err(|error| error.kind));
            }
            assert_eq!(count.begun.load(Ordering::SeqCst), 1);
            // A later one begins anew, and nothing is kept of the earlier.
            let _ended = transfers.once("a", HUB, &|_| {}, count.transfer(ends)).await;
            assert_eq!(count.begun.load(Ordering::SeqCst), 2);
            let _other = transfers.image("b");
            assert_eq!(transfers.images.lock().unwrap().len(), 1);
        }
    }

    /// The most images that come at once, of twenty from each of these places.
    async fn most_at_once(origins: &[Origin<'_>]) -> usize {
        let (transfers, count) = (Transfers::default(), Count::default());
        let of = |origin: &Origin<'_>| (0..20).map(|number| format!("{origin:?} {number}")).collect::<Vec<_>>();
        let names: Vec<_> =
            origins.iter().flat_map(|origin| of(origin).into_iter().map(|name| (*origin, name))).collect();
        let come = names.iter().map(|(origin, name)| transfers.once(name, *origin, &|_| {}, count.transfer(Ok(()))));
        join_all(come).await;
        assert_eq!(count.begun.load(Ordering::SeqCst), names.len());
        assert!(transfers.places.each.lock().unwrap().len() <= origins.len());
        count.most.load(Ordering::SeqCst)
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_images_come_at_once_from_each_place_and_more_from_all() {
        assert_eq!(most_at_once(&[HUB]).await, FROM_ONE);
        assert_eq!(most_at_once(&[Origin::Machine]).await, FROM_ONE);
        assert_eq!(most_at_once(&[HUB, Origin::Registry("other"), Origin::Machine]).await, 3 * FROM_ONE);
        let names: Vec<_> = (0..20).map(|number| number.to_string()).collect();
        let many: Vec<_> = names.iter().map(|name| Origin::Registry(name)).collect();
        assert_eq!(most_at_once(&many).await, FROM_REGISTRIES);
    }

    #[tokio::test]
    async fn a_registry_that_does_not_answer_keeps_only_its_own_images_waiting_and_that_is_told() {
        let transfers = Transfers::default();
        let said = std::sync::Mutex::new(Vec::new());
        let tell = |progress: Progress| said.lock().unwrap().push(progress.message);
        let names: Vec<_> = (0..=FROM_ONE).map(|number| number.to_string()).collect();
        let mut stuck: Vec<_> =
            names.iter().map(|name| Box::pin(transfers.once(name, HUB, &tell, std::future::pending()))).collect();
        stuck.push(Box::pin(transfers.once("0", HUB, &tell, std::future::pending())));
        for one in &mut stuck {
            assert!(futures::poll!(one).is_pending());
        }
        let waits = ["waiting for other images of hub", "it is being fetched from hub for another instance"];
        assert_eq!(*said.lock().unwrap(), waits);
        for (name, origin) in [("local", Origin::Machine), ("other", Origin::Registry("other"))] {
            transfers.once(name, origin, &tell, async { Ok(()) }).await.unwrap();
        }
        assert_eq!(said.lock().unwrap().len(), waits.len(), "these waited for nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_given_up_leaves_it_to_the_next() {
        let (transfers, count) = (Transfers::default(), Count::default());
        let first =
            tokio::time::timeout(Duration::from_millis(500), transfers.once("a", HUB, &|_| {}, count.transfer(Ok(()))));
        let (first, second) = tokio::join!(first, transfers.once("a", HUB, &|_| {}, count.transfer(Ok(()))));
        assert!(first.is_err());
        assert!(second.is_ok());
        assert_eq!(count.begun.load(Ordering::SeqCst), 2);
    }
}
