//! The queue of starts that are to be carried out, and the threads that take them: each start wakes
//! one thread.
//!
//! A channel whose receiver is shared behind a lock wakes two threads, and a channel with several
//! receivers polls many times before it sleeps. Both cost a short command more than this queue.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use super::{HostEvent, SpawnOrder};
use crate::model::{SpawnFailure, SpawnStage};

/// A prepared start, which must be answered if no thread is left to carry it out.
pub(crate) trait Refused {
    /// Answers the start with a failure.
    fn fail(&self, failure: SpawnFailure);
}

/// A start that is to be carried out.
pub(crate) enum Start<P> {
    New(Box<SpawnOrder>),
    /// A start whose log files did not open in time, and which goes on without them.
    Prepared(Box<P>),
}

/// The end of the queue where starts are given; the queue closes when this is dropped.
pub(crate) struct Starts<P: Refused>(Arc<Shared<P>>);

/// The end of the queue where a thread takes starts.
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

    /// Adds a thread that takes starts.
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

    /// Returns a handle to give back a start that was taken.
    pub(crate) fn giver(&self) -> Giver<P> {
        Giver(Arc::downgrade(&self.0))
    }
}

/// Gives back starts, which then go before all others.
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

    /// Adds a thread that takes starts. `None` if the queue is closed.
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
    /// Takes a start that is already waiting, with the number of starts behind it.
    pub(crate) fn take_waiting(&self) -> Option<(Start<P>, usize)> {
        let mut queue = self.0.queue();
        let order = queue.list.pop_front()?;
        Some((order, queue.list.len()))
    }

    /// Waits for the next start, and takes it with the number of starts behind it. `None` when the
    /// queue is closed and empty.
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

/// Answers a start with a failure. That happens only after a panic of every thread that takes
/// starts.
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

/// Counts a start as under way at the keeper until it is dropped.
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

    /// Stands for prepared starts, of which these tests have none.
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
    fn each_start_is_taken_once_in_turn_or_answered_untaken() {
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
