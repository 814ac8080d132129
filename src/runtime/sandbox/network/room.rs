//! How many connections are handed on at a time: as many as there are descriptors for, of which every port has some to
//! itself, so that one whose clients take all they can get leaves the others theirs.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Descriptors of one connection: one on each side.
const EACH: usize = 2;

/// The room that one port has.
#[derive(Debug, Clone)]
pub struct Room {
    own: Arc<Semaphore>,
    common: Arc<Semaphore>,
}

/// Room for one connection, until it is dropped.
pub type Place = OwnedSemaphorePermit;

impl Room {
    /// Divides descriptors between ports: half of them equally, the other half is for whoever needs them first. Each port
    /// has room for one connection at least.
    pub fn divide(descriptors: usize, ports: usize) -> Vec<Self> {
        let all = (descriptors / EACH).min(Semaphore::MAX_PERMITS);
        let own = (all / 2).checked_div(ports).unwrap_or_default().max(1);
        let common = Arc::new(Semaphore::new(all.saturating_sub(own.saturating_mul(ports))));
        (0..ports).map(|_| Self { own: Arc::new(Semaphore::new(own)), common: Arc::clone(&common) }).collect()
    }

    /// Waits until there is room for one more.
    pub async fn take(&self) -> Place {
        loop {
            let (own, common) = (Arc::clone(&self.own), Arc::clone(&self.common));
            let taken = tokio::select! {
                biased;
                place = common.acquire_owned() => place,
                place = own.acquire_owned() => place,
            };
            // Nobody closes them.
            if let Ok(place) = taken {
                return place;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn takes(room: &Room, most: usize) -> Vec<Place> {
        (0..most).map_while(|_| room.take().now_or_never()).collect()
    }

    #[tokio::test]
    async fn a_port_that_takes_all_it_can_leaves_the_others_their_own() {
        let rooms = Room::divide(48, 3);
        let greedy = takes(&rooms[0], 100);
        assert_eq!(greedy.len(), 12 + 4, "what is common, and its own of 24");
        let modest: Vec<_> = rooms[1..].iter().map(|room| takes(room, 100)).collect();
        assert_eq!(modest.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4]);
        assert!(rooms[1].take().now_or_never().is_none());
        drop(greedy);
        assert_eq!(takes(&rooms[1], 100).len(), 12, "what is common again");
    }

    #[tokio::test]
    async fn whoever_waits_is_let_in_when_one_ends() {
        let rooms = Room::divide(0, 1);
        let first = rooms[0].take().await;
        let mut second = std::pin::pin!(rooms[0].take());
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        drop(second.await);
    }

    #[test]
    fn as_many_descriptors_as_there_are_numbers_are_divided() {
        assert_eq!(Room::divide(usize::MAX, 2).len(), 2);
        assert_eq!(Room::divide(usize::MAX, 0).len(), 0);
    }
}
