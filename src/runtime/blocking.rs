//! Pools of an embedding program for functions that block. A pool runs a limited number of
//! functions at a time on tokio's blocking threads; the others wait in order.
//!
//! A function can't be ended from outside; one that may run long looks at its [`Cancel`] now and
//! then.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use crate::model::{Denial, DenialCode, Name};

/// The size of a pool of blocking functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockingSize {
    /// The most functions that run at a time; at least 1.
    pub workers: usize,
    /// The most functions that may wait.
    pub queue: usize,
}

impl Default for BlockingSize {
    /// The default matches the largest worker pool: 32 functions at a time, and 10,000 that may wait.
    fn default() -> BlockingSize {
        BlockingSize { workers: 32, queue: 10_000 }
    }
}

/// The status of a pool of blocking functions, as numbers of functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockingSnapshot {
    /// Functions that run.
    pub running: usize,
    /// Functions that wait.
    pub queued: usize,
    /// Functions that have ended, including those that panicked.
    pub done: u64,
    /// Functions that ended by a panic; `done` counts them too.
    pub panicked: u64,
    /// Functions that were cancelled before they ran.
    pub cancelled: u64,
}

/// The state of one function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    /// The function waits for a thread.
    Queued,
    /// The function runs.
    Running,
    /// The function has ended.
    Done,
    /// The function was cancelled before it ran.
    Cancelled,
}

/// The reason why a function has no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobError {
    /// The function was cancelled before it ran, or its pool was closed.
    Cancelled,
    /// The function panicked, with this message.
    Panicked(String),
    /// The program's tokio runtime has ended.
    Gone,
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JobError::Cancelled => f.write_str("the job was cancelled before it ran"),
            JobError::Panicked(words) => write!(f, "the job panicked: {words}"),
            JobError::Gone => f.write_str("the runtime has ended"),
        }
    }
}

impl std::error::Error for JobError {}

/// Tells a function that nobody wants its value any more. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Whether the function is to end early.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A pool of blocking functions. Cheap to clone; it lives until it is closed and its last function has
/// ended.
#[derive(Clone)]
pub struct BlockingPool {
    inner: Arc<Inner>,
}

struct Inner {
    name: Name,
    size: BlockingSize,
    threads: Handle,
    state: Mutex<State>,
    /// Notified when no worker is left.
    empty: Notify,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Open,
    Closed,
}

struct State {
    door: Door,
    /// The functions in order; cancelled ones may still be among them.
    queue: VecDeque<Arc<dyn Work>>,
    /// The number of functions in the queue that are still to be run.
    waiting: usize,
    /// The number of threads that take from the queue, or were asked for and have not begun yet.
    workers: usize,
    running: usize,
    done: u64,
    panicked: u64,
    cancelled: u64,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A function in the queue. Its state (queued, running or cancelled) changes only under the pool's
/// lock.
trait Work: Send + Sync {
    /// Marks the function as running; returns whether it is to be run, and the caller then runs it.
    fn begin(&self) -> bool;
    /// Runs the function, and returns whether it panicked.
    fn run(&self) -> bool;
    /// Cancels the function; returns whether it was still waiting, and the caller then discards what it
    /// holds.
    fn cancel(&self) -> bool;
    /// Drops what the function holds. The caller must not hold the pool's lock: a destructor may use
    /// the pool.
    fn discard(&self, why: JobError);
    fn is_cancelled(&self) -> bool;
}

const QUEUED: u8 = 0;
const RUNNING: u8 = 1;
const DONE: u8 = 2;
const CANCELLED: u8 = 3;

type Function<T> = Box<dyn FnOnce(&Cancel) -> T + Send>;
/// A function, and the channel that its value goes to.
type Parts<T> = (Function<T>, oneshot::Sender<Result<T, JobError>>);

struct Shared<T> {
    state: AtomicU8,
    cancel: Cancel,
    /// The function and its channel, until it is run or cancelled.
    parts: Mutex<Option<Parts<T>>>,
}

impl<T> Shared<T> {
    fn leave_queue(&self, to: u8) -> bool {
        self.state.compare_exchange(QUEUED, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn parts(&self) -> Option<Parts<T>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<T: Send + 'static> Work for Shared<T> {
    fn begin(&self) -> bool {
        self.leave_queue(RUNNING)
    }

    fn run(&self) -> bool {
        let Some((function, answer)) = self.parts() else {
            return false;
        };
        let value = catch_unwind(AssertUnwindSafe(|| function(&self.cancel)));
        self.state.store(DONE, Ordering::Release);
        let panicked = value.is_err();
        let value = value.map_err(|panic| {
            let words = words(panic.as_ref());
            apart(|| drop(panic));
            JobError::Panicked(words)
        });
        apart(|| {
            // The send fails where nobody waits for the value.
            let _ = answer.send(value);
        });
        panicked
    }

    fn cancel(&self) -> bool {
        self.cancel.0.store(true, Ordering::Relaxed);
        self.leave_queue(CANCELLED)
    }

    fn discard(&self, why: JobError) {
        if let Some((function, answer)) = self.parts() {
            apart(|| drop(function));
            let _ = answer.send(Err(why));
        }
    }

    fn is_cancelled(&self) -> bool {
        self.state.load(Ordering::Acquire) == CANCELLED
    }
}

/// Does work that may drop values of the program: a panic in their destructors is logged, and goes
/// no further.
fn apart(work: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
        tracing::error!(
            "a value of a pool's function panicked when it was dropped: {}",
            words(panic.as_ref())
        );
        // Dropping what the panic carries may panic too.
        std::mem::forget(panic);
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// A function that the pool has accepted, as the future of its value. Dropping the job does not
/// cancel the function.
pub struct Job<T> {
    pool: Arc<Inner>,
    shared: Arc<Shared<T>>,
    answer: oneshot::Receiver<Result<T, JobError>>,
}

impl<T> Drop for Job<T> {
    /// A value that nobody takes is dropped here, and a panic of its own `Drop` is not the caller's.
    fn drop(&mut self) {
        self.answer.close();
        apart(|| drop(self.answer.try_recv()));
    }
}

impl<T: Send + 'static> Job<T> {
    /// The state of the function.
    pub fn state(&self) -> JobState {
        match self.shared.state.load(Ordering::Acquire) {
            QUEUED => JobState::Queued,
            RUNNING => JobState::Running,
            DONE => JobState::Done,
            _ => JobState::Cancelled,
        }
    }

    /// Takes the function out of the queue. A function that runs already is told by its [`Cancel`].
    /// Returns whether the function had not begun.
    pub fn cancel(&self) -> bool {
        let mut state = self.pool.state();
        let cancelled = self.shared.cancel();
        if cancelled {
            (state.cancelled, state.waiting) = (state.cancelled + 1, state.waiting - 1);
            drop(state);
            self.shared.discard(JobError::Cancelled);
        }
        cancelled
    }
}

impl<T> Future for Job<T> {
    type Output = Result<T, JobError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|answer| answer.unwrap_or(Err(JobError::Gone)))
    }
}

impl BlockingPool {
    /// Makes a pool on the threads of the tokio runtime that this is called in.
    pub(super) fn new(name: Name, size: BlockingSize) -> BlockingPool {
        let state = State {
            door: Door::Open,
            queue: VecDeque::new(),
            waiting: 0,
            workers: 0,
            running: 0,
            done: 0,
            panicked: 0,
            cancelled: 0,
        };
        let size = BlockingSize { workers: size.workers.max(1), ..size };
        let inner =
            Inner { name, size, threads: Handle::current(), state: Mutex::new(state), empty: Notify::new() };
        BlockingPool { inner: Arc::new(inner) }
    }

    /// Whether both handles are of the same pool.
    pub(super) fn is(&self, other: &BlockingPool) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The name of the pool.
    pub fn name(&self) -> &Name {
        &self.inner.name
    }

    /// The size of the pool.
    pub fn size(&self) -> BlockingSize {
        self.inner.size
    }

    /// Takes a function. Refused when too many wait, or when the pool is closed.
    ///
    /// ```
    /// # async fn example(tree: regrow::runtime::Handle) -> Result<(), Box<dyn std::error::Error>> {
    /// let hosts = tree.pools().blocking().submit(|| std::fs::read_to_string("/etc/hosts"))?;
    /// println!("{}", hosts.await??);
    /// # Ok(())
    /// # }
    /// ```
    pub fn submit<T, F>(&self, function: F) -> Result<Job<T>, Denial>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        self.submit_with(|_| function())
    }

    /// Submits a function that may run long: it is told when nobody wants its value any more.
    pub fn submit_with<T, F>(&self, function: F) -> Result<Job<T>, Denial>
    where
        T: Send + 'static,
        F: FnOnce(&Cancel) -> T + Send + 'static,
    {
        let (sender, answer) = oneshot::channel();
        let shared = Arc::new(Shared {
            state: AtomicU8::new(QUEUED),
            cancel: Cancel::default(),
            parts: Mutex::new(Some((Box::new(function) as Function<T>, sender))),
        });
        let inner = &self.inner;
        let mut state = inner.state();
        if state.door == Door::Closed {
            return Err(denial(
                DenialCode::ShuttingDown,
                format!("the pool {} accepts no more jobs", inner.name),
            ));
        }
        let free = inner.size.workers - state.running.min(inner.size.workers);
        let waiting = state.waiting;
        if waiting >= inner.size.queue.saturating_add(free) {
            let reason = format!("the queue of the pool {} is full: {waiting} jobs are waiting", inner.name);
            return Err(denial(DenialCode::TooManyRequests, reason));
        }
        if waiting < state.queue.len() / 2 {
            state.queue.retain(|work| !work.is_cancelled());
        }
        state.waiting += 1;
        state.queue.push_back(Arc::clone(&shared) as Arc<dyn Work>);
        let needs_a_thread = state.workers < inner.size.workers;
        state.workers += usize::from(needs_a_thread);
        drop(state);
        if needs_a_thread {
            let place = WorkerPlace { pool: Arc::clone(inner), given_up: false };
            // Where the runtime has ended, the closure is dropped instead of run, and so is the worker's
            // place.
            inner.threads.spawn_blocking(move || work(place));
        }
        Ok(Job { pool: Arc::clone(inner), shared, answer })
    }

    /// The status of the pool.
    pub fn snapshot(&self) -> BlockingSnapshot {
        let state = self.inner.state();
        BlockingSnapshot {
            running: state.running,
            queued: state.waiting,
            done: state.done,
            panicked: state.panicked,
            cancelled: state.cancelled,
        }
    }

    /// Accepts no more functions. Waiting functions are cancelled; running ones go on to their end.
    pub fn close(&self) {
        let cancelled = {
            let mut state = self.inner.state();
            state.door = Door::Closed;
            let mut queue = std::mem::take(&mut state.queue);
            queue.retain(|work| work.cancel());
            state.waiting = 0;
            state.cancelled += queue.len() as u64;
            queue
        };
        cancelled.iter().for_each(|work| work.discard(JobError::Cancelled));
    }

    /// Accepts no more functions, and returns when every accepted one is done.
    pub async fn drain(&self) {
        loop {
            // The notification is requested before the check: one that came between the two would be lost.
            let rings = self.inner.empty.notified();
            {
                let mut state = self.inner.state();
                state.door = Door::Closed;
                if state.workers == 0 {
                    return;
                }
            }
            rings.await;
        }
    }
}

/// The place of one worker among those of a pool.
struct WorkerPlace {
    pool: Arc<Inner>,
    given_up: bool,
}

impl Drop for WorkerPlace {
    /// Gives the place back where its thread never ran or was cut short. If it was the last place, the
    /// waiting functions will never run and are cancelled.
    fn drop(&mut self) {
        if self.given_up {
            return;
        }
        let left = {
            let mut state = self.pool.state();
            state.workers -= 1;
            let mut left = VecDeque::new();
            if state.workers == 0 {
                left = std::mem::take(&mut state.queue);
                left.retain(|work| work.cancel());
                state.waiting = 0;
                state.cancelled += left.len() as u64;
                self.pool.empty.notify_waiters();
            }
            left
        };
        left.iter().for_each(|work| work.discard(JobError::Gone));
    }
}

/// Runs the functions of the queue until it is empty.
fn work(mut place: WorkerPlace) {
    let pool = Arc::clone(&place.pool);
    let mut state = pool.state();
    loop {
        let Some(work) = state.queue.pop_front() else {
            // The place is given up under the same lock: the next submit then sees that a thread is needed.
            state.workers -= 1;
            place.given_up = true;
            if state.workers == 0 {
                pool.empty.notify_waiters();
            }
            return;
        };
        if !work.begin() {
            continue;
        }
        (state.waiting, state.running) = (state.waiting - 1, state.running + 1);
        drop(state);
        let panicked = work.run();
        drop(work);
        state = pool.state();
        (state.running, state.done) = (state.running - 1, state.done + 1);
        state.panicked += u64::from(panicked);
    }
}

fn denial(code: DenialCode, reason: String) -> Denial {
    Denial { code, reason, hint: None }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    use super::*;

    fn pool(workers: usize, queue: usize) -> BlockingPool {
        BlockingPool::new(Name::new("test").unwrap(), BlockingSize { workers, queue })
    }

    #[tokio::test]
    async fn values_come_back_and_a_panic_is_told() {
        let pool = pool(2, 100);
        let jobs: Vec<Job<u32>> = (0..100).map(|n| pool.submit(move || n * 2).unwrap()).collect();
        for (n, job) in (0..).zip(jobs) {
            assert_eq!(job.await, Ok(n * 2));
        }
        let broken = pool.submit(|| -> u32 { panic!("no {}", "luck") }).unwrap();
        assert_eq!(broken.await, Err(JobError::Panicked("no luck".to_owned())));
        assert_eq!(pool.submit(|| 7).unwrap().await, Ok(7), "the pool goes on");
        pool.drain().await;
        let snapshot = pool.snapshot();
        assert_eq!((snapshot.done, snapshot.panicked, snapshot.running), (102, 1, 0));
        assert_eq!(pool.submit(|| ()).err().unwrap().code, DenialCode::ShuttingDown);
    }

    #[tokio::test]
    async fn never_more_run_than_the_pool_has_workers() {
        let pool = pool(3, 1_000);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        // Three can only meet if three run at a time.
        let meet = Arc::new(Barrier::new(3));
        let job = |number: usize| {
            let (now, most, meet) = (Arc::clone(&now), Arc::clone(&most), Arc::clone(&meet));
            pool.submit(move || {
                let running = now.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(running, Ordering::SeqCst);
                if number < 3 {
                    meet.wait();
                }
                now.fetch_sub(1, Ordering::SeqCst);
            })
        };
        let jobs: Vec<Job<()>> = (0..300).map(|number| job(number).unwrap()).collect();
        for job in jobs {
            job.await.unwrap();
        }
        assert_eq!(most.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_what_waits_can_be_cancelled() {
        let pool = pool(1, 2);
        let (go, wait) = mpsc::channel::<()>();
        let (begun, begins) = oneshot::channel();
        let first = pool.submit_with(move |cancel| {
            begun.send(()).unwrap();
            let _ = wait.recv();
            cancel.is_cancelled()
        });
        let first = first.unwrap();
        begins.await.unwrap();
        let (second, third) = (pool.submit(|| 2).unwrap(), pool.submit(|| 3).unwrap());
        let refused = pool.submit(|| 4).err().unwrap();
        assert_eq!(refused.code, DenialCode::TooManyRequests);
        assert_eq!(refused.reason, "the queue of the pool test is full: 2 jobs are waiting");
        assert_eq!((first.state(), second.state()), (JobState::Running, JobState::Queued));
        assert!(second.cancel() && !second.cancel(), "once");
        assert_eq!((second.state(), pool.snapshot().queued), (JobState::Cancelled, 1));
        assert_eq!(second.await, Err(JobError::Cancelled), "known at once, not when a thread is free");
        let fourth = pool.submit(|| 4).unwrap();
        assert!(!first.cancel(), "what runs is told, and not ended");
        go.send(()).unwrap();
        assert_eq!((first.await, third.await, fourth.await), (Ok(true), Ok(3), Ok(4)));
        pool.drain().await;
        assert_eq!(pool.snapshot().cancelled, 1);
    }

    #[tokio::test]
    async fn a_function_may_use_its_own_pool_also_when_it_is_thrown_away() {
        struct Asks(BlockingPool);
        impl Drop for Asks {
            fn drop(&mut self) {
                self.0.snapshot();
            }
        }
        let pool = pool(1, 10);
        let inner = pool.clone();
        let outer = pool.submit(move || inner.submit(|| 1).unwrap()).unwrap();
        assert_eq!(outer.await.unwrap().await, Ok(1), "submitted from within");
        let (go, wait) = mpsc::channel::<()>();
        let (begun, begins) = oneshot::channel();
        let first = pool.submit(move || {
            begun.send(()).unwrap();
            wait.recv()
        });
        let first = first.unwrap();
        begins.await.unwrap();
        for _ in 0..2 {
            let asks = Asks(pool.clone());
            let job = pool.submit(move || drop(asks)).unwrap();
            job.cancel();
        }
        let asks = Asks(pool.clone());
        let last = pool.submit(move || drop(asks)).unwrap();
        pool.close();
        assert_eq!(last.await, Err(JobError::Cancelled));
        drop(go);
        assert!(first.await.unwrap().is_err());
        pool.drain().await;
    }

    #[tokio::test]
    async fn a_value_that_panics_when_it_is_dropped_costs_no_thread() {
        struct Breaks;
        impl Drop for Breaks {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        let pool = pool(1, 10);
        drop(pool.submit(|| Breaks).unwrap());
        // Its value is there before it is dropped.
        let done = pool.submit(|| Breaks).unwrap();
        assert_eq!(pool.submit(|| 0).unwrap().await, Ok(0));
        drop(done);
        assert_eq!(pool.submit(|| 1).unwrap().await, Ok(1));
        let breaks = pool.submit(|| std::panic::panic_any(Breaks)).unwrap();
        assert!(matches!(breaks.await, Err::<(), _>(JobError::Panicked(_))));
        assert_eq!(pool.submit(|| 2).unwrap().await, Ok(2));
        pool.drain().await;
        assert_eq!((pool.snapshot().running, pool.snapshot().panicked), (0, 1));
    }

    #[test]
    fn without_its_runtime_a_pool_says_so_and_hangs_nobody() {
        let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
        let first = runtime();
        let pool = first.block_on(async { pool(1, 10) });
        drop(first);
        runtime().block_on(async {
            let job = pool.submit(|| 1).unwrap();
            assert_eq!(job.await, Err(JobError::Gone));
            pool.drain().await;
        });
    }

    #[tokio::test]
    async fn closing_cancels_what_waits_and_lets_run_what_runs() {
        let pool = pool(1, 10);
        let (go, wait) = mpsc::channel::<()>();
        let (begun, begins) = oneshot::channel();
        let first = pool.submit_with(move |cancel| {
            begun.send(()).unwrap();
            let _ = wait.recv();
            cancel.is_cancelled()
        });
        begins.await.unwrap();
        let second = pool.submit(|| 2).unwrap();
        pool.close();
        assert_eq!(second.await, Err(JobError::Cancelled));
        go.send(()).unwrap();
        assert_eq!(first.unwrap().await, Ok(false), "nobody cancelled it");
        pool.drain().await;
    }
}
