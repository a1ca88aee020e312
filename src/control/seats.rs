//! Places for connections: how many there are, how many one peer may have, and who makes room in a crowd.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Seats for connections: a limit for all of them, and a limit for each peer.
pub(super) struct Seats<K> {
    all: Arc<Semaphore>,
    of_one: usize,
    taken: SeatCounts<K>,
}

/// The number of seats that each peer has taken.
type SeatCounts<K> = Arc<Mutex<HashMap<K, usize>>>;

/// A seat for one connection, which is free again when this is dropped.
pub(super) struct Seat<K: Eq + Hash> {
    _permit: Option<OwnedSemaphorePermit>,
    of: Option<(K, SeatCounts<K>)>,
}

impl<K: Eq + Hash + Clone> Seats<K> {
    pub(super) fn new(all: usize, of_one: usize) -> Seats<K> {
        Seats { all: Arc::new(Semaphore::new(all)), of_one, taken: Arc::default() }
    }

    /// Waits until a seat is free, and takes it.
    pub(super) async fn next(&self) -> Seat<K> {
        // Acquiring fails only on a closed semaphore, and this one is never closed.
        Seat { _permit: Arc::clone(&self.all).acquire_owned().await.ok(), of: None }
    }

    /// Gives a seat to a peer; `None` where that peer has as many as it may have.
    pub(super) fn given(&self, mut place: Seat<K>, to: K) -> Option<Seat<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(to.clone()).or_insert(0);
        if *count >= self.of_one {
            return None;
        }
        *count += 1;
        drop(taken);
        place.of = Some((to, Arc::clone(&self.taken)));
        Some(place)
    }
}

impl<K: Eq + Hash> Drop for Seat<K> {
    fn drop(&mut self) {
        let Some((of, taken)) = self.of.take() else {
            return;
        };
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&of) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&of);
            }
        }
    }
}

/// Connections that wait for a seat, and the idle ones that could make room for them.
///
/// A connection without a request takes a seat all the same. When another one waits, any that has
/// been idle for [`IDLE_IN_A_CROWD`] is closed.
#[derive(Default)]
pub(super) struct Crowd {
    make_room: tokio::sync::Notify,
}

/// How long a connection may be idle while others wait for a seat.
const IDLE_IN_A_CROWD: Duration = Duration::from_millis(500);

impl Crowd {
    /// Waits for a seat, and asks idle connections to make room until there is one.
    pub(super) async fn wait_for<T>(&self, place: impl Future<Output = T>) -> T {
        let mut place = std::pin::pin!(place);
        loop {
            match tokio::time::timeout(IDLE_IN_A_CROWD / 2, place.as_mut()).await {
                Ok(place) => return place,
                Err(_) => self.make_room.notify_waiters(),
            }
        }
    }

    /// Returns when this connection has been idle for too long while others wait.
    pub(super) async fn sent_out(&self, asked: &Asked) {
        loop {
            self.make_room.notified().await;
            if asked.idle_for().is_some_and(|idle| idle >= IDLE_IN_A_CROWD) {
                return;
            }
        }
    }
}

/// The requests under way on one connection: their number, and when one last ended.
pub(super) struct Asked(Mutex<(usize, Instant)>);

impl Asked {
    pub(super) fn new() -> Arc<Asked> {
        Arc::new(Asked(Mutex::new((0, Instant::now()))))
    }

    /// Notes that a request has begun; it is under way until the result is dropped.
    pub(super) fn begin(self: &Arc<Asked>) -> UnderWay {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 += 1;
        UnderWay(Arc::clone(self))
    }

    fn idle_for(&self) -> Option<Duration> {
        let (under_way, since) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (under_way == 0).then(|| since.elapsed())
    }
}

/// A request whose answer is not given to its end yet.
pub(super) struct UnderWay(Arc<Asked>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut asked = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        *asked = (asked.0.saturating_sub(1), Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_peer_leaves_places_for_others() {
        let places = Seats::new(3, 2);
        let first = places.given(places.next().await, "a").unwrap();
        let _second = places.given(places.next().await, "a").unwrap();
        assert!(places.given(places.next().await, "a").is_none());
        let other = places.given(places.next().await, "b").unwrap();
        drop(first);
        let third = places.given(places.next().await, "a");
        assert!(third.is_some());
        drop((third, other));
        assert_eq!(places.taken.lock().unwrap().len(), 1);
    }
}
