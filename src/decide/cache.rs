//! A cache of results by their keys, so that the same command need not run twice.
//!
//! The cache is bounded by number and by bytes, and drops the least recently used result first.
//! Each result expires after the time that was set when it came in, and a caller can ask for a
//! younger one. If several callers ask for a result that nobody has, the first one leads and makes
//! it, and the others join. Deliberately absent: what a success is, so the caller decides which
//! results to keep.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::Duration;

/// How much a cache may keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// The highest number of results.
    pub entries: usize,
    /// The highest number of bytes of all results together.
    pub bytes: u64,
}

/// What a look into the cache gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheLookup<K, V> {
    /// The cache has the result.
    Hit(V),
    /// Somebody is making the result, which will go to this waiter, too.
    Joined(Flight<K>),
    /// Nobody has the result: the caller has to make it now, and to call [`Cache::made`].
    Lead(Flight<K>),
}

/// A result that is being made. A flight from before the cache was cleared is another one than a
/// later flight with the same key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Flight<K> {
    /// The key of the result.
    pub key: K,
    /// How often the cache had been cleared when the flight began.
    clears: u64,
}

impl<K> Flight<K> {
    /// The flight of a cache that was never cleared.
    pub fn first(key: K) -> Flight<K> {
        Flight { key, clears: 0 }
    }
}

/// Counts since the cache was made: [`Cache::clear`] drops results, not counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheCounts {
    /// How many lookups found a result.
    pub hits: u64,
    /// How many lookups found none, and led.
    pub misses: u64,
    /// How many lookups joined a flight.
    pub joined: u64,
    /// How many results were dropped for want of room.
    pub evictions: u64,
    /// How many results were dropped because they had expired.
    pub expirations: u64,
}

struct CachedResult<V> {
    value: V,
    bytes: u64,
    since: Duration,
    /// How old the result was when it came in.
    before: Duration,
    until: Duration,
    used: u64,
}

/// Results `V` by their keys `K`; each waiter for a result is a `W`.
pub struct Cache<K, V, W> {
    bounds: CacheLimits,
    entries: HashMap<K, CachedResult<V>>,
    /// The keys in the order of their last use, by the count of uses at that time.
    order: BTreeMap<u64, K>,
    uses: u64,
    bytes: u64,
    flights: HashMap<Flight<K>, Vec<W>>,
    clears: u64,
    counts: CacheCounts,
}

impl<K: Clone + Eq + Hash, V: Clone, W> Cache<K, V, W> {
    /// An empty cache.
    pub fn new(bounds: CacheLimits) -> Cache<K, V, W> {
        Cache {
            bounds,
            entries: HashMap::new(),
            order: BTreeMap::new(),
            uses: 0,
            bytes: 0,
            flights: HashMap::new(),
            clears: 0,
            counts: CacheCounts::default(),
        }
    }

    /// The result that the cache has, if it is younger than `age`; begins no flight.
    pub fn peek(&mut self, key: &K, now: Duration, age: Duration) -> Option<V> {
        let CachedResult { since, before, until, .. } = self.entries.get(key)?;
        let (until, is_old) = (*until, now.saturating_sub(*since) + *before >= age);
        if until <= now {
            self.drop_entry(key);
            self.counts.expirations += 1;
            return None;
        }
        // Callers that accept an older result may still take it.
        if is_old {
            return None;
        }
        self.uses += 1;
        let entry = self.entries.get_mut(key)?;
        if let Some(key) = self.order.remove(&entry.used) {
            self.order.insert(self.uses, key);
        }
        entry.used = self.uses;
        self.counts.hits += 1;
        Some(entry.value.clone())
    }

    /// Asks for a result that is younger than `age`. `waiter` makes the waiter if the caller joins.
    pub fn ask(
        &mut self,
        key: &K,
        now: Duration,
        age: Duration,
        waiter: impl FnOnce() -> W,
    ) -> CacheLookup<K, V> {
        if let Some(value) = self.peek(key, now, age) {
            return CacheLookup::Hit(value);
        }
        let flight = self.flight(key);
        if let Some(waiters) = self.flights.get_mut(&flight) {
            waiters.push(waiter());
            self.counts.joined += 1;
            return CacheLookup::Joined(flight);
        }
        self.counts.misses += 1;
        self.flights.insert(flight.clone(), Vec::new());
        CacheLookup::Lead(flight)
    }

    /// The flight in which the result of this key would be made now.
    fn flight(&self, key: &K) -> Flight<K> {
        Flight { key: key.clone(), clears: self.clears }
    }

    /// Learns of a flight that began before this cache was made, or that another one leads now.
    pub fn resume(&mut self, flight: Flight<K>) {
        self.clears = self.clears.max(flight.clears);
        self.flights.entry(flight).or_default();
    }

    /// Whether the result of a flight is kept: not if the cache was cleared since the flight began.
    pub fn counts_still(&self, flight: &Flight<K>) -> bool {
        flight.clears == self.clears
    }

    /// Ends a flight. `kept` is the result, its size in bytes and the time until it expires; `None`
    /// if it is not to be kept. Returns the waiters who have joined.
    pub fn made(&mut self, flight: &Flight<K>, now: Duration, kept: Option<(V, u64, Duration)>) -> Vec<W> {
        if let Some((value, bytes, ttl)) = kept.filter(|_| self.counts_still(flight)) {
            self.keep(&flight.key, (value, bytes), now.saturating_add(ttl), now, Duration::ZERO);
        }
        self.flights.remove(flight).unwrap_or_default()
    }

    /// Takes a result that was made elsewhere, is `old` already and expires after `left`; unless the
    /// cache has one, or one is being made.
    pub fn put(&mut self, key: &K, now: Duration, (value, bytes): (V, u64), left: Duration, old: Duration) {
        if !self.knows(key) {
            self.keep(key, (value, bytes), now.saturating_add(left), now, old);
        }
    }

    /// Whether the result is in the cache, or being made.
    pub fn knows(&self, key: &K) -> bool {
        self.entries.contains_key(key) || self.flights.contains_key(&self.flight(key))
    }

    /// The leader gives up. Returns the first waiter, who leads from now on; `None` if there is none,
    /// which ends the flight.
    pub fn gave_up(&mut self, flight: &Flight<K>) -> Option<W> {
        let waiters = self.flights.get_mut(flight)?;
        if waiters.is_empty() {
            self.flights.remove(flight);
            return None;
        }
        Some(waiters.remove(0))
    }

    /// Removes the waiters that `is_it` picks: they don't want the result any more.
    pub fn leave(&mut self, flight: &Flight<K>, mut is_it: impl FnMut(&W) -> bool) {
        if let Some(waiters) = self.flights.get_mut(flight) {
            waiters.retain(|waiter| !is_it(waiter));
        }
    }

    fn keep(&mut self, key: &K, (value, bytes): (V, u64), until: Duration, now: Duration, before: Duration) {
        self.drop_entry(key);
        if bytes > self.bounds.bytes || self.bounds.entries == 0 || until <= now {
            return;
        }
        while self.entries.len() >= self.bounds.entries || self.bytes + bytes > self.bounds.bytes {
            let Some((_, oldest)) = self.order.first_key_value() else {
                break;
            };
            let oldest = oldest.clone();
            self.drop_entry(&oldest);
            self.counts.evictions += 1;
        }
        self.uses += 1;
        self.order.insert(self.uses, key.clone());
        self.bytes += bytes;
        self.entries
            .insert(key.clone(), CachedResult { value, bytes, since: now, before, until, used: self.uses });
    }

    fn drop_entry(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }

    /// Drops every result; returns how many there were. A result that is being made goes to those who
    /// wait for it already, and to nobody else.
    pub fn clear(&mut self) -> usize {
        let count = self.entries.len();
        self.clears += 1;
        self.entries.clear();
        self.order.clear();
        self.bytes = 0;
        count
    }

    /// Drops the results that have expired.
    pub fn expire(&mut self, now: Duration) {
        let over: Vec<K> =
            self.entries.iter().filter(|(_, entry)| entry.until <= now).map(|(key, _)| key.clone()).collect();
        for key in &over {
            self.drop_entry(key);
            self.counts.expirations += 1;
        }
    }

    /// How many results there are, and of how many bytes.
    pub fn size(&self) -> (usize, u64) {
        (self.entries.len(), self.bytes)
    }

    /// How much the cache may keep.
    pub fn bounds(&self) -> CacheLimits {
        self.bounds
    }

    /// The counts so far.
    pub fn counts(&self) -> CacheCounts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Act {
        Ask(u8),
        Made(u8, u64, u64),
        GiveUp(u8),
        Pass(u64),
        Clear,
        Expire,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => (0..6u8).prop_map(Act::Ask),
            3 => (0..6u8, 1..40u64, 0..20u64).prop_map(|(key, bytes, ttl)| Act::Made(key, bytes, ttl)),
            1 => (0..6u8).prop_map(Act::GiveUp),
            2 => (0..10u64).prop_map(Act::Pass),
            1 => Just(Act::Clear),
            1 => Just(Act::Expire),
        ]
    }

    /// The same cache, as simple as can be: a list in the order of use.
    #[derive(Default)]
    struct Model {
        entries: Vec<(u8, u64, u64, u64)>,
        /// The flights; those from before the last clearing are marked with `true`.
        flights: Vec<(u8, Vec<usize>, bool)>,
    }

    const BOUNDS: CacheLimits = CacheLimits { entries: 4, bytes: 100 };

    impl Model {
        /// The value; if there is none, whether the caller joined a flight.
        fn ask(&mut self, key: u8, now: u64, who: usize) -> Result<u64, bool> {
            if let Some(at) = self.entries.iter().position(|entry| entry.0 == key) {
                let entry = self.entries.remove(at);
                if entry.3 > now {
                    self.entries.push(entry);
                    return Ok(entry.1);
                }
            }
            match self.flights.iter_mut().find(|flight| flight.0 == key && !flight.2) {
                Some(flight) => {
                    flight.1.push(who);
                    Err(true)
                }
                None => {
                    self.flights.push((key, Vec::new(), false));
                    Err(false)
                }
            }
        }

        fn made(&mut self, flight: usize, now: u64, (value, bytes, ttl): (u64, u64, u64)) -> Vec<usize> {
            let (key, waiters, is_old) = self.flights.remove(flight);
            if is_old {
                return waiters;
            }
            self.entries.retain(|entry| entry.0 != key);
            if bytes <= BOUNDS.bytes && ttl > 0 {
                let total =
                    |entries: &[(u8, u64, u64, u64)]| entries.iter().map(|entry| entry.2).sum::<u64>();
                while self.entries.len() >= BOUNDS.entries || total(&self.entries) + bytes > BOUNDS.bytes {
                    self.entries.remove(0);
                }
                self.entries.push((key, value, bytes, now + ttl));
            }
            waiters
        }
    }

    proptest! {
        #[test]
        fn it_does_what_the_simplest_one_does(acts in proptest::collection::vec(act(), 1..200)) {
            let mut cache: Cache<u8, u64, usize> = Cache::new(BOUNDS);
            let (mut model, mut now) = (Model::default(), 0);
            // The cache's flights, in the same order as those of the model.
            let mut flights: Vec<Flight<u8>> = Vec::new();
            for (who, act) in acts.into_iter().enumerate() {
                let at = Duration::from_secs(now);
                match act {
                    Act::Ask(key) => {
                        let looked = match cache.ask(&key, at, Duration::MAX, || who) {
                            CacheLookup::Hit(value) => Ok(value),
                            CacheLookup::Joined(flight) => {
                                prop_assert!(flights.contains(&flight));
                                Err(true)
                            }
                            CacheLookup::Lead(flight) => {
                                flights.push(flight);
                                Err(false)
                            }
                        };
                        prop_assert_eq!(looked, model.ask(key, now, who));
                    }
                    Act::Made(one, bytes, ttl) if !flights.is_empty() => {
                        let one = usize::from(one) % flights.len();
                        let kept = Some((who as u64, bytes, Duration::from_secs(ttl)));
                        let made = cache.made(&flights.remove(one), at, kept);
                        prop_assert_eq!(made, model.made(one, now, (who as u64, bytes, ttl)));
                    }
                    Act::GiveUp(one) if !flights.is_empty() => {
                        let one = usize::from(one) % flights.len();
                        let waiters = &mut model.flights[one].1;
                        let want = (!waiters.is_empty()).then(|| waiters.remove(0));
                        prop_assert_eq!(cache.gave_up(&flights[one]), want);
                        if want.is_none() {
                            model.flights.remove(one);
                            flights.remove(one);
                        }
                    }
                    Act::Made(..) | Act::GiveUp(_) => {}
                    Act::Pass(seconds) => now += seconds,
                    Act::Clear => {
                        cache.clear();
                        model.entries.clear();
                        model.flights.iter_mut().for_each(|flight| flight.2 = true);
                    }
                    Act::Expire => {
                        cache.expire(at);
                        model.entries.retain(|entry| entry.3 > now);
                    }
                }
                let (entries, bytes) = cache.size();
                prop_assert!(entries <= BOUNDS.entries && bytes <= BOUNDS.bytes, "bounded");
                prop_assert_eq!(entries, model.entries.len());
                prop_assert_eq!(bytes, model.entries.iter().map(|entry| entry.2).sum::<u64>());
                prop_assert_eq!(cache.order.len(), entries, "each has its place in the order of use");
            }
        }
    }

    #[test]
    fn of_a_thousand_who_ask_at_once_one_leads_and_all_get_it() {
        let mut cache: Cache<&str, u8, usize> = Cache::new(BOUNDS);
        let asked: Vec<_> =
            (0..1000).map(|who| cache.ask(&"k", Duration::ZERO, Duration::MAX, || who)).collect();
        let leads: Vec<_> = asked
            .into_iter()
            .filter_map(|looked| match looked {
                CacheLookup::Lead(flight) => Some(flight),
                CacheLookup::Hit(_) | CacheLookup::Joined(_) => None,
            })
            .collect();
        assert_eq!(leads.len(), 1);
        // A failure is not kept, and goes to all waiters.
        assert_eq!(cache.made(&leads[0], Duration::ZERO, None).len(), 999);
        led(cache.ask(&"k", Duration::ZERO, Duration::MAX, || 0));
    }

    #[test]
    fn after_a_clearing_nobody_gets_what_was_begun_before_it() {
        let mut cache: Cache<&str, u8, usize> = Cache::new(BOUNDS);
        let ask = |cache: &mut Cache<_, _, _>, who| cache.ask(&"k", Duration::ZERO, Duration::MAX, || who);
        let before = led(ask(&mut cache, 0));
        assert_eq!(ask(&mut cache, 1), CacheLookup::Joined(before.clone()));
        cache.clear();
        let after = led(ask(&mut cache, 2));
        let made = |value| Some((value, 1, Duration::MAX));
        assert_eq!(cache.made(&before, Duration::ZERO, made(1)), [1], "who waited for it has it");
        assert_eq!(ask(&mut cache, 3), CacheLookup::Joined(after.clone()), "and nobody else");
        assert_eq!(cache.made(&after, Duration::ZERO, made(2)), [3]);
        assert_eq!(ask(&mut cache, 4), CacheLookup::Hit(2));
    }

    fn led<K: std::fmt::Debug, V: std::fmt::Debug>(looked: CacheLookup<K, V>) -> Flight<K> {
        match looked {
            CacheLookup::Lead(flight) => flight,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_that_was_made_elsewhere_keeps_its_age() {
        let mut cache: Cache<u8, u64, ()> = Cache::new(CacheLimits { entries: 9, bytes: 99 });
        let seconds = Duration::from_secs;
        cache.put(&1, seconds(5), (7, 1), seconds(100), seconds(50));
        assert_eq!(cache.peek(&1, seconds(6), seconds(60)), Some(7));
        assert_eq!(cache.peek(&1, seconds(6), seconds(51)), None, "it is 51 s old by now");
        assert_eq!(cache.peek(&1, seconds(105), seconds(1000)), None, "its time is over");
        // A result that is in the cache or being made is newer.
        led(cache.ask(&2, seconds(5), seconds(60), || ()));
        assert!(cache.knows(&2));
        cache.put(&2, seconds(5), (8, 1), seconds(100), seconds(0));
        assert_eq!(cache.peek(&2, seconds(5), seconds(60)), None);
    }

    #[test]
    fn only_who_wants_a_younger_result_has_it_made_anew() {
        let mut cache: Cache<&str, u8, ()> = Cache::new(BOUNDS);
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        let first = led(cache.ask(&"k", Duration::ZERO, minute, || ()));
        cache.made(&first, Duration::ZERO, Some((1, 1, minute)));
        let later = Duration::from_secs(5);
        let second_one = led(cache.ask(&"k", later, second, || ()));
        assert_eq!(cache.ask(&"k", later, minute, || ()), CacheLookup::Hit(1));
        cache.made(&second_one, later, Some((2, 1, minute)));
        assert_eq!(cache.ask(&"k", later, second, || ()), CacheLookup::Hit(2));
    }
}
