//! The event log: it numbers facts, keeps the latest events, and applies them to the tree state.
//!
//! It is no actor but a lock that is held for microseconds. So a writer can read its fact back at
//! once, and a command's answer never comes before the status shows its effect. Each reader has its
//! own position in the ring; a slow reader delays nobody and is told how many events it missed.
//! Listeners are called in order with the lock held: they pass a message on and do nothing else.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::decide::ledger::Ledger;
use crate::decide::message::{Step, StepSink};
use crate::decide::tree_state::TreeState;
use crate::model::{Event, Fact};
use crate::sys::clock::Clock;

/// How many events are kept for late or slow readers.
pub const KEPT: usize = 16_384;

type Listener = Box<dyn Fn(&Arc<Event>, &TreeState) + Send + Sync>;

/// The only writer of events. Clones share one log.
#[derive(Clone)]
pub struct EventLog {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    latest: watch::Sender<u64>,
    /// Whether steps are recorded, and so must be described.
    recording: AtomicBool,
    clock: Clock,
}

struct State {
    next: u64,
    ring: VecDeque<Arc<Event>>,
    tree_state: TreeState,
    recorder: Option<Box<dyn StepSink>>,
    ledger: Option<Arc<dyn Ledger>>,
    listeners: Vec<Listener>,
}

impl EventLog {
    /// An empty log over this tree state.
    pub fn new(tree_state: TreeState, clock: Clock) -> EventLog {
        EventLog::behind(tree_state, clock, 0)
    }

    /// An empty log whose numbers follow the last event of an earlier supervisor.
    pub fn behind(tree_state: TreeState, clock: Clock, last: u64) -> EventLog {
        let state = State {
            next: last + 1,
            ring: VecDeque::new(),
            tree_state,
            recorder: None,
            ledger: None,
            listeners: Vec::new(),
        };
        let inner = Inner {
            state: Mutex::new(state),
            latest: watch::Sender::new(0),
            recording: AtomicBool::new(false),
            clock,
        };
        EventLog { inner: Arc::new(inner) }
    }

    /// Adds a listener that is called with every later event.
    pub(crate) fn listen(&self, listener: impl Fn(&Arc<Event>, &TreeState) + Send + Sync + 'static) {
        self.state().listeners.push(Box::new(listener));
    }

    /// Passes every later event to a ledger. To be called once, before the tree starts.
    pub(crate) fn keep_in(&self, ledger: Arc<dyn Ledger>) {
        self.state().ledger = Some(ledger);
    }

    /// Passes every later step and event to a recorder. To be called once, before the tree starts.
    pub(crate) fn record_to(&self, recorder: Box<dyn StepSink>) {
        self.state().recorder = Some(recorder);
        self.inner.recording.store(true, Ordering::SeqCst);
    }

    /// Appends facts in order, without other facts between them.
    pub fn append(&self, facts: impl IntoIterator<Item = Fact>) {
        let mut state = self.state();
        let before = state.next;
        self.write(&mut state, facts);
        self.tell_readers(state, before);
    }

    /// Describes a step for the recording. `None` when nothing is recorded.
    pub fn describe<T>(&self, what: impl FnOnce() -> T) -> Option<T> {
        self.inner.recording.load(Ordering::Relaxed).then(what)
    }

    /// Records an input of a machine, and appends the facts that the machine decided on.
    pub fn commit(&self, step: Option<Step>, facts: impl IntoIterator<Item = Fact>) {
        let mut state = self.state();
        let before = state.next;
        if let (Some(recorder), Some(step)) = (&mut state.recorder, &step) {
            recorder.step(step);
        }
        self.write(&mut state, facts);
        self.tell_readers(state, before);
    }

    /// Lets a machine decide on the current tree state, and appends its facts before anybody else's.
    pub fn decide<T>(&self, step: Option<Step>, decide: impl FnOnce(&TreeState) -> (T, Vec<Fact>)) -> T {
        let mut state = self.state();
        let before = state.next;
        if let (Some(recorder), Some(step)) = (&mut state.recorder, &step) {
            recorder.step(step);
        }
        let (decided, facts) = decide(&state.tree_state);
        self.write(&mut state, facts);
        self.tell_readers(state, before);
        decided
    }

    fn write(&self, state: &mut State, facts: impl IntoIterator<Item = Fact>) {
        let since_start = self.inner.clock.now();
        let at = SystemTime::now();
        for fact in facts {
            let event = Arc::new(Event { seq: state.next, at, since_start, fact });
            state.next += 1;
            state.tree_state.apply(&event);
            if let Some(recorder) = &mut state.recorder {
                recorder.event(&event);
            }
            if state.ring.len() == KEPT {
                state.ring.pop_front();
            }
            state.ring.push_back(Arc::clone(&event));
            if let Some(ledger) = &state.ledger {
                ledger.event(&event, &state.tree_state);
            }
            for listener in &state.listeners {
                listener(&event, &state.tree_state);
            }
        }
    }

    fn tell_readers(&self, state: MutexGuard<'_, State>, before: u64) {
        let last = state.next - 1;
        drop(state);
        if last >= before {
            // Two writers may get here in the opposite order, so the larger number is kept.
            self.inner.latest.send_if_modified(|latest| {
                let newer = last > *latest;
                *latest = last.max(*latest);
                newer
            });
        }
    }

    /// Reads the tree state under the lock.
    pub fn tree_state<T>(&self, look: impl FnOnce(&TreeState) -> T) -> T {
        look(&self.state().tree_state)
    }

    /// A reader from event number `from` on. Numbers start at 1; 0 and 1 mean the oldest event that is
    /// kept.
    pub fn read_from(&self, from: u64) -> EventReader {
        let first = {
            let state = self.state();
            state.next - state.ring.len() as u64
        };
        let next = if from <= 1 { first } else { from };
        EventReader { log: self.clone(), next, latest: self.inner.latest.subscribe() }
    }

    /// A reader of later events only.
    pub fn read_new(&self) -> EventReader {
        let next = self.state().next;
        self.read_from(next)
    }

    /// The events that are kept, oldest first.
    pub fn kept(&self) -> Vec<Arc<Event>> {
        self.state().ring.iter().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in the middle of an append leaves the state usable.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An item that a reader receives.
#[derive(Debug, Clone, PartialEq)]
pub enum NextEvent {
    /// The next event.
    Event(Arc<Event>),
    /// This number of events was dropped before the reader came to them.
    Missed(u64),
}

/// A reader of the log with a position of its own.
pub struct EventReader {
    log: EventLog,
    next: u64,
    latest: watch::Receiver<u64>,
}

impl EventReader {
    /// The number of the event that it reads next.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// The next event. `None` when there is none yet.
    pub fn try_next(&mut self) -> Option<NextEvent> {
        let state = self.log.state();
        if self.next >= state.next {
            return None;
        }
        let first = state.next - state.ring.len() as u64;
        if self.next < first {
            let missed = first - self.next;
            self.next = first;
            return Some(NextEvent::Missed(missed));
        }
        let at = usize::try_from(self.next - first).ok()?;
        let event = Arc::clone(state.ring.get(at)?);
        self.next += 1;
        Some(NextEvent::Event(event))
    }

    /// Waits for the next event.
    pub async fn next(&mut self) -> NextEvent {
        loop {
            if let Some(read) = self.try_next() {
                return read;
            }
            // The sender is part of the log that this reader holds, so it is never closed.
            if self.latest.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Plan;
    use crate::model::TreeFact;

    fn log() -> EventLog {
        let nothing = Plan::of("nothing", Vec::new());
        EventLog::new(TreeState::new(Arc::new(nothing), SystemTime::UNIX_EPOCH).unwrap(), Clock::start())
    }

    #[tokio::test]
    async fn numbers_have_no_gaps_and_readers_find_their_place() {
        let log = log();
        let mut early = log.read_new();
        log.append([Fact::Tree(TreeFact::ShutdownDone), Fact::Tree(TreeFact::ShutdownDone)]);
        log.append([Fact::Tree(TreeFact::ShutdownDone)]);
        let mut late = log.read_from(3);
        let seq = |read| match read {
            Some(NextEvent::Event(event)) => event.seq,
            other => panic!("{other:?}"),
        };
        assert_eq!([1, 2, 3], [0; 3].map(|_| seq(early.try_next())));
        assert_eq!(seq(late.try_next()), 3);
        assert_eq!(late.try_next(), None);
    }

    #[tokio::test]
    async fn a_reader_that_is_too_slow_is_told_how_much_it_missed() {
        let log = log();
        let mut slow = log.read_new();
        log.append(std::iter::repeat_n(Fact::Tree(TreeFact::ShutdownDone), KEPT + 10));
        assert_eq!(slow.try_next(), Some(NextEvent::Missed(10)));
        assert!(matches!(slow.try_next(), Some(NextEvent::Event(event)) if event.seq == 11));
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken() {
        let log = log();
        let mut reader = log.read_new();
        let waiting = tokio::spawn(async move { reader.next().await });
        tokio::task::yield_now().await;
        log.append([Fact::Tree(TreeFact::ShutdownDone)]);
        assert!(matches!(waiting.await.unwrap(), NextEvent::Event(_)));
    }
}
