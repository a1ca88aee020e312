//! The Cache of a pool: the results of commands that need not run again.
//!
//! It wraps [`decide::cache`](crate::decide::cache). What is submitted to be cached comes through here to
//! the pool, so that the pool hears of it in the order in which the cache has answered. Who waits for a
//! result is the pool's to know: a cache that breaks comes back empty, and nobody waits in vain.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::messages::{CacheAnswer, CacheMsg, PoolMsg, Submitted};
use super::outcome::{CacheKey, Finished, key_of};
use crate::actors::system::Registered;
use crate::decide::cache::{Cache as Results, CacheCounts, CacheLimits, CacheLookup};
use crate::decide::ledger::{KeptResult, Ledger};
use crate::model::stats::CacheStats;
use crate::sys::clock::Clock;
use crate::sys::ids;

#[derive(Default)]
pub(crate) struct Cache;

pub(crate) struct CacheArgs {
    pub(crate) limits: CacheLimits,
    pub(crate) clock: Clock,
    pub(crate) pool: Registered<PoolMsg>,
    /// Keeps results beyond this supervisor. `None`: they are kept in memory alone.
    pub(crate) ledger: Option<Arc<dyn Ledger>>,
}

pub(crate) struct CacheState {
    results: Results<CacheKey, Arc<Finished>, ()>,
    clock: Clock,
    pool: Registered<PoolMsg>,
    ledger: Option<Arc<dyn Ledger>>,
    /// The time when the cache was last cleared; kept results from before it no longer count.
    cleared: Option<SystemTime>,
}

impl Actor for Cache {
    type Msg = CacheMsg;
    type State = CacheState;
    type Arguments = CacheArgs;

    async fn pre_start(
        &self,
        _myself: ActorRef<CacheMsg>,
        args: CacheArgs,
    ) -> Result<CacheState, ActorProcessingErr> {
        let CacheArgs { limits, clock, pool, ledger } = args;
        Ok(CacheState { results: Results::new(limits), clock, pool, ledger, cleared: None })
    }

    async fn handle(
        &self,
        _myself: ActorRef<CacheMsg>,
        message: CacheMsg,
        state: &mut CacheState,
    ) -> Result<(), ActorProcessingErr> {
        let now = state.clock.now();
        match message {
            CacheMsg::Submit(specs, who, lives, reply, is_passed_on) => {
                let at = SystemTime::now();
                let submitted = specs.into_iter().map(|spec| {
                    let cached = match spec.cache {
                        None => CacheAnswer::NotCached,
                        Some(age) => match state.results.ask(&key_of(&spec, &who), now, age, || ()) {
                            CacheLookup::Hit(finished) => CacheAnswer::Hit(finished),
                            CacheLookup::Lead(flight) => CacheAnswer::Leads(flight),
                            CacheLookup::Joined(flight) => CacheAnswer::Joins(flight),
                        },
                    };
                    Submitted { id: ids::task(), spec, at, cached }
                });
                let submitted = submitted.collect();
                is_passed_on.store(true, Ordering::SeqCst);
                let _ = state.pool.send(PoolMsg::Submit(submitted, who, lives, reply));
            }
            CacheMsg::Peek(key, age, answer) => {
                let _ = answer.send(state.results.peek(&key, now, age));
            }
            CacheMsg::Unknown(mut keys, answer) => {
                keys.retain(|key| !state.results.knows(key));
                let _ = answer.send(keys);
            }
            CacheMsg::Restore(kept) => {
                for (key, result) in kept {
                    state.restore(&key, result);
                }
            }
            CacheMsg::Made(flight, kept, written) => {
                if state.results.counts_still(&flight)
                    && let (Some(ledger), Some(written)) = (&state.ledger, written)
                {
                    ledger.keep_result(&flight.key, *written);
                }
                state.results.made(&flight, now, kept);
                let _ = state.pool.send(PoolMsg::Landed(flight));
            }
            CacheMsg::GivenUp(flight) => drop(state.results.made(&flight, now, None)),
            CacheMsg::Flies(flight) => state.results.resume(flight),
            CacheMsg::Expire => state.results.expire(now),
            CacheMsg::Clear(answer) => {
                if let Some(ledger) = &state.ledger {
                    ledger.forget_results();
                    state.cleared = Some(SystemTime::now());
                }
                let _ = answer.send(state.results.clear());
            }
            CacheMsg::Stand(answer) => {
                let _ = answer.send(state.stats());
            }
        }
        Ok(())
    }
}

impl CacheState {
    fn restore(&mut self, key: &CacheKey, kept: KeptResult) {
        let (now, wall) = (self.clock.now(), SystemTime::now());
        let KeptResult { result, since, until } = kept;
        if self.cleared.is_some_and(|cleared| since <= cleared) {
            return;
        }
        // The age of a result is unknown where its timestamp lies in the future, because the clock was
        // ahead then.
        let (Ok(old), Ok(left)) = (wall.duration_since(since), until.duration_since(wall)) else {
            return;
        };
        let finished = Arc::new(Finished::restored(result));
        let bytes = finished.bytes();
        self.results.put(key, now, (finished, bytes), left, old);
    }

    fn stats(&self) -> CacheStats {
        let (entries, bytes) = self.results.size();
        let CacheCounts { hits, misses, joined, evictions, expirations } = self.results.counts();
        let asked = hits + misses + joined;
        CacheStats {
            entries,
            max_entries: self.results.bounds().entries,
            bytes,
            max_bytes: self.results.bounds().bytes,
            hits,
            misses,
            joined,
            hit_rate: if asked == 0 { 0.0 } else { (hits + joined) as f64 / asked as f64 },
            evictions,
            expirations,
        }
    }
}
