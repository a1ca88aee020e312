//! The starts that are to be carried out, and the threads that take them: one wakes for one.
//!
//! A channel whose receiver is shared behind a lock wakes two, and one of those that several may receive
//! from looks many times before it rests; both cost a short command more than this.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use super::{HostEvent, SpawnOrder};
use crate::model::{SpawnFailure, SpawnStage};

/// A start that was prepared, and is told when nobody is left to carry it out.
pub(crate) trait Refused {
    /// Answers it with a failure.
    fn fail(&self, failure: SpawnFailure);
}

/// One that is to be carried out.
pub(crate) enum Start<P> {
    New(Box<SpawnOrder>),
    /// Its log files did not come, and it is to go on without those.
    Prepared(Box<P>),
}

/// Where they are given; closed when this is dropped.
pub(crate) struct Starts<P: Refused>(Arc<Shared<P>>);

/// Where a thread takes them.
pub(crate) struct Taker<P: Refused>(Arc<Shared<P>>);

struct Shared<P> {
    queue: Mutex<Queue<P>>,
    given: Condvar,
}

struct Queue<P> {
    list: VecDeque<Start<P>>,
    takers: usize,
    closed: bool,
}

impl<P> Shared<P> {
    fn queue(&self) -> MutexGuard<'_, Queue<P>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: Refused> Starts<P> {
    pub(crate) fn new() -> Starts<P> {
        let queue = Queue { list: VecDeque::new(), takers: 0, closed: false };
        Starts(Arc::new(Shared { queue: Mutex::new(queue), given: Condvar::new() }))
    }

    /// One more who takes.
    pub(crate) fn taker(&self) -> Taker<P> {
        self.0.queue().takers += 1;
        Taker(Arc::clone(&self.0))
    }

    pub(crate) fn give(&self, order: SpawnOrder) {
        let mut queue = self.0.queue();
        if queue.takers == 0 {
            drop(queue);
            return refuse(Start::<P>::New(Box::new(order)));
        }
        queue.list.push_back(Start::New(Box::new(order)));
        drop(queue);
        self.0.given.notify_one();
    }

    /// Who gives back what was taken.
    pub(crate) fn giver(&self) -> Giver<P> {
        Giver(Arc::downgrade(&self.0))
    }
}

/// By whom a start is given back that goes on before all others.
pub(crate) struct Giver<P>(Weak<Shared<P>>);

impl<P> Clone for Giver<P> {
    fn clone(&self) -> Giver<P> {
        Giver(Weak::clone(&self.0))
    }
}

impl<P: Refused> Giver<P> {
    pub(crate) fn give_back(&self, start: Start<P>) {
        if let Some(shared) = self.0.upgrade() {
            shared.queue().list.push_front(start);
            shared.given.notify_one();
        }
    }

    /// One more who takes. `None`: there is nothing to take any more.
    pub(crate) fn taker(&self) -> Option<Taker<P>> {
        let shared = self.0.upgrade()?;
        let mut queue = shared.queue();
        if queue.closed {
            return None;
        }
        queue.takers += 1;
        drop(queue);
        Some(Taker(shared))
    }
}

impl<P: Refused> Drop for Starts<P> {
    fn drop(&mut self) {
        self.0.queue().closed = true;
        self.0.given.notify_all();
    }
}

impl<P: Refused> Taker<P> {
    /// One that waits already, and how many others do.
    pub(crate) fn take_waiting(&self) -> Option<(Start<P>, usize)> {
        let mut queue = self.0.queue();
        let order = queue.list.pop_front()?;
        Some((order, queue.list.len()))
    }

    /// The next one, and how many others wait. `None`: there will be none.
    pub(crate) fn take(&self) -> Option<(Start<P>, usize)> {
        let idle = |queue: &mut Queue<P>| queue.list.is_empty() && !queue.closed;
        let mut queue = self.0.given.wait_while(self.0.queue(), idle).unwrap_or_else(PoisonError::into_inner);
        let order = queue.list.pop_front()?;
        Some((order, queue.list.len()))
    }
}

impl<P: Refused> Drop for Taker<P> {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.takers -= 1;
        let left = if queue.takers == 0 { std::mem::take(&mut queue.list) } else { VecDeque::new() };
        drop(queue);
        left.into_iter().for_each(refuse);
    }
}

/// Only a panic of every thread that carries them out leaves one to be answered here.
fn refuse<P: Refused>(start: Start<P>) {
    let failure = SpawnFailure {
        stage: SpawnStage::Prepare,
        errno: 0,
        errno_name: String::new(),
        message: "the threads that make processes are gone".to_owned(),
    };
    match start {
        Start::New(order) => (order.news)(HostEvent::SpawnFailed { key: order.key, failure }),
        Start::Prepared(prepared) => prepared.fail(failure),
    }
}

/// A start that is under way at the keeper, until it is dropped.
pub(crate) struct StartPermit(pub(super) Arc<AtomicUsize>);

impl Drop for StartPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::host::{OutputTarget, ProcessKey, env};
    use crate::model::EnvSpec;
    use crate::vault::secrets::Vault;

    /// Nothing is prepared here.
    enum Nothing {}

    impl Refused for Nothing {
        fn fail(&self, _failure: SpawnFailure) {
            match *self {}
        }
    }

    fn order(key: u64, news: &mpsc::Sender<u64>) -> SpawnOrder {
        let news = news.clone();
        SpawnOrder {
            key: ProcessKey(key),
            argv: vec!["true".to_owned()],
            dir: "/".into(),
            env: env::EnvRecipe {
                inherited: Arc::default(),
                of: env::EnvFor::Task(EnvSpec::default(), None),
                given: Vec::new(),
                vault: Arc::new(Vault::at("/nowhere".into())),
            },
            input: None,
            extra: None,
            output: OutputTarget::Capture(0),
            owner: None,
            keep: None,
            news: Arc::new(move |heard| {
                if let HostEvent::SpawnFailed { key, .. } = heard {
                    news.send(key.0).unwrap();
                }
            }),
        }
    }

    #[test]
    fn each_start_is_taken_once_in_its_turn_or_answered_when_nobody_is_left() {
        let (news, heard) = mpsc::channel();
        let starts = Starts::<Nothing>::new();
        let [one, other] = [starts.taker(), starts.taker()];
        assert!(one.take_waiting().is_none());
        (1..=4).for_each(|key| starts.give(order(key, &news)));
        let key = |taken: Option<(Start<Nothing>, usize)>| match taken {
            Some((Start::New(order), waiting)) => Some((order.key.0, waiting)),
            Some((Start::Prepared(_), _)) | None => None,
        };
        assert_eq!(key(one.take()), Some((1, 3)));
        assert_eq!(key(other.take_waiting()), Some((2, 2)));
        drop(one);
        assert!(heard.try_recv().is_err(), "another is there to take them");
        drop(other);
        starts.give(order(5, &news));
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), [3, 4, 5]);
    }

    #[test]
    fn who_waits_hears_that_there_will_be_none() {
        let starts = Starts::<Nothing>::new();
        let taker = starts.taker();
        let thread = std::thread::spawn(move || taker.take().is_none());
        drop(starts);
        assert!(thread.join().unwrap());
    }
}
