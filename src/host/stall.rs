//! Work that may block in the kernel, and who goes on meanwhile.
//!
//! A read, a write or an open on a disk that does not answer can't be interrupted and has no
//! deadline. So before a thread does one, it leaves its state with a [`BlockingCall`]. Usually the
//! work ends at once and the thread takes the state back. If it does not, another thread goes on
//! with the state; the late thread then finds nothing to take back and may only report its result.
//!
//! One thread looks after all blocking calls of a host ([`StallMonitor`]), and sleeps while none is
//! in use. It counts checks and not time: in a process that was stopped (Ctrl-Z, a frozen machine)
//! no work has lasted.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// How often blocking calls are checked while one is in use.
const LOOK: Duration = Duration::from_millis(50);

/// How many threads of this process were taken over from and have not returned.
static AWAY: AtomicUsize = AtomicUsize::new(0);

/// Whether a thread of this process is blocked in the kernel. Such a thread can't be ended, and the
/// process can neither end nor execute anything before it returns.
pub(crate) fn somebody_stands_still() -> bool {
    AWAY.load(SeqCst) > 0
}

/// Looks after the blocking calls of a host.
pub(crate) struct StallMonitor {
    desks: Mutex<Vec<Weak<dyn Looked>>>,
    /// Whether the thread checks the calls at intervals; otherwise it sleeps.
    looks: AtomicBool,
    /// Whether there is a thread that checks.
    has_thread: AtomicBool,
    /// Whether the host is gone.
    over: AtomicBool,
    asleep: Mutex<()>,
    wake: Condvar,
}

/// Holds one thread's state while that thread does work that may block.
pub(crate) struct BlockingCall<T> {
    left: Mutex<Left<T>>,
    /// After this many checks of the same work another thread goes on.
    patience: u32,
    go_on: Box<dyn Fn(T) + Send + Sync>,
    going_on: Takeover,
    stall_monitor: Arc<StallMonitor>,
}

/// How long it takes to go on with a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takeover {
    /// A moment, in which no other blocking call is checked.
    Moment,
    /// For as long as the host lives, so it takes a thread of its own.
    Lasting,
}

struct Left<T> {
    /// The state; `None` while no work is under way, or after another thread went on with it.
    state: Option<T>,
    /// The number of the present piece of work, counted up for each.
    piece: u64,
    /// The last piece that a check saw, and how many further checks saw it since.
    seen: (u64, u32),
}

/// The result of a check.
enum Look {
    /// No work was under way since the last check.
    Quiet,
    Busy,
    /// Work has lasted too long: this function goes on with its state, and takes a thread.
    Lasting(Box<dyn FnOnce()>),
}

trait Looked: Send + Sync {
    fn look(self: Arc<Self>) -> Look;
}

impl<T: Send + 'static> BlockingCall<T> {
    /// Makes a blocking call. `go_on` gets the state when a piece of work lasts longer than
    /// `patience` times [`LOOK`].
    pub(crate) fn new(
        stall_monitor: &Arc<StallMonitor>,
        patience: u32,
        going_on: Takeover,
        go_on: impl Fn(T) + Send + Sync + 'static,
    ) -> Arc<BlockingCall<T>> {
        let left = Left { state: None, piece: 0, seen: (0, 0) };
        let stall_monitor = Arc::clone(stall_monitor);
        let call = Arc::new(BlockingCall {
            left: Mutex::new(left),
            patience,
            go_on: Box::new(go_on),
            going_on,
            stall_monitor,
        });
        let weak: Weak<BlockingCall<T>> = Arc::downgrade(&call);
        lock(&call.stall_monitor.desks).push(weak);
        call
    }

    /// The monitor that looks after it.
    pub(crate) fn stall_monitor(&self) -> &Arc<StallMonitor> {
        &self.stall_monitor
    }

    /// Leaves the state, does the work, and takes the state back. `None` if another thread has gone
    /// on with the state meanwhile.
    pub(crate) fn work<R>(&self, state: T, work: impl FnOnce() -> R) -> (Option<T>, R) {
        let piece = {
            let mut left = lock(&self.left);
            left.piece += 1;
            left.state = Some(state);
            left.piece
        };
        self.stall_monitor.look_from_now_on();
        let done = work();
        let mut left = lock(&self.left);
        // The thread that went on may be at a piece of work of its own by now.
        let state = if left.piece == piece { left.state.take() } else { None };
        if state.is_none() {
            AWAY.fetch_sub(1, SeqCst);
        }
        (state, done)
    }
}

impl<T: Send + 'static> Looked for BlockingCall<T> {
    fn look(self: Arc<Self>) -> Look {
        let mut left = lock(&self.left);
        let (piece, looks) = left.seen;
        if left.state.is_none() || left.piece != piece {
            left.seen = (left.piece, 0);
            return if left.piece == piece { Look::Quiet } else { Look::Busy };
        }
        left.seen = (piece, looks + 1);
        if looks + 1 < self.patience {
            return Look::Busy;
        }
        let Some(state) = left.state.take() else {
            return Look::Busy;
        };
        AWAY.fetch_add(1, SeqCst);
        drop(left);
        match self.going_on {
            Takeover::Moment => {
                (self.go_on)(state);
                Look::Busy
            }
            Takeover::Lasting => Look::Lasting(Box::new(move || (self.go_on)(state))),
        }
    }
}

impl StallMonitor {
    /// Starts the monitor with its thread.
    pub(crate) fn start() -> io::Result<Arc<StallMonitor>> {
        let stall_monitor = Arc::new(StallMonitor {
            desks: Mutex::default(),
            looks: AtomicBool::new(false),
            has_thread: AtomicBool::new(false),
            over: AtomicBool::new(false),
            asleep: Mutex::default(),
            wake: Condvar::new(),
        });
        stall_monitor.begin()?;
        Ok(stall_monitor)
    }

    /// Starts a thread that checks, if there is none.
    pub(crate) fn begin(self: &Arc<StallMonitor>) -> io::Result<()> {
        if self.has_thread.swap(true, SeqCst) {
            return Ok(());
        }
        let stall_monitor = Arc::clone(self);
        let thread = std::thread::Builder::new().name("regrow-stall".into()).stack_size(256 * 1024);
        let begun = thread.spawn(move || stall_monitor.run());
        self.has_thread.store(begun.is_ok(), SeqCst);
        begun.map(drop)
    }

    /// Ends the monitor's thread, because the host is gone.
    pub(crate) fn end(&self) {
        self.over.store(true, SeqCst);
        drop(lock(&self.asleep));
        self.wake.notify_all();
    }

    /// Has blocking calls checked from now on. It costs a system call only if none was in use for a
    /// while.
    fn look_from_now_on(&self) {
        if !self.looks.load(SeqCst) && !self.looks.swap(true, SeqCst) {
            // Once this lock was held, the thread either sleeps or is yet to see the flag.
            drop(lock(&self.asleep));
            self.wake.notify_all();
        }
    }

    /// Called by a thread that was taken over from and has returned: it becomes the monitor's
    /// thread, if there is none. Returns when there is nothing left for it to do.
    pub(crate) fn take_its_place(self: &Arc<StallMonitor>) {
        if !self.has_thread.swap(true, SeqCst) {
            Arc::clone(self).run();
        }
    }

    fn run(self: Arc<StallMonitor>) {
        loop {
            {
                let sleeps = |(): &mut ()| !self.looks.load(SeqCst) && !self.over.load(SeqCst);
                let woken = self.wake.wait_while(lock(&self.asleep), sleeps);
                let asleep = woken.unwrap_or_else(PoisonError::into_inner);
                let runs = |(): &mut ()| !self.over.load(SeqCst);
                let _ = self.wake.wait_timeout_while(asleep, LOOK, runs);
            }
            if self.over.load(SeqCst) {
                return;
            }
            let mut seen = self.look();
            if matches!(seen, Look::Quiet) {
                self.looks.store(false, SeqCst);
                // Work that began just before has woken nobody.
                seen = self.look();
                if !matches!(seen, Look::Quiet) {
                    self.looks.store(true, SeqCst);
                }
            }
            if let Look::Lasting(go_on) = seen {
                self.has_thread.store(false, SeqCst);
                if let Err(error) = self.begin() {
                    tracing::warn!(%error, "no thread is left to continue while a disk does not answer");
                }
                return go_on();
            }
        }
    }

    /// Checks all blocking calls.
    fn look(&self) -> Look {
        let desks: Vec<_> = {
            let mut desks = lock(&self.desks);
            desks.retain(|call| call.strong_count() > 0);
            desks.iter().filter_map(Weak::upgrade).collect()
        };
        let mut all = Look::Quiet;
        for call in desks {
            match call.look() {
                Look::Quiet => {}
                Look::Busy => all = Look::Busy,
                lasting @ Look::Lasting(_) => return lasting,
            }
        }
        all
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Makes a blocking call that sends its state when another thread goes on with it.
    fn call(
        going_on: Takeover,
        patience: u32,
    ) -> (Arc<StallMonitor>, Arc<BlockingCall<u32>>, mpsc::Receiver<u32>) {
        let stall_monitor = StallMonitor::start().unwrap();
        let (tell, told) = mpsc::channel();
        let call =
            BlockingCall::new(&stall_monitor, patience, going_on, move |state| tell.send(state).unwrap());
        (stall_monitor, call, told)
    }

    #[test]
    fn who_is_back_in_time_has_its_state_again() {
        let (stall_monitor, call, told) = call(Takeover::Moment, u32::MAX);
        for state in 0..1000 {
            assert_eq!(call.work(state, || state * 2), (Some(state), state * 2));
        }
        assert!(told.try_recv().is_err());
        stall_monitor.end();
    }

    #[test]
    fn another_thread_goes_on_and_a_late_one_has_only_its_result() {
        for going_on in [Takeover::Moment, Takeover::Lasting] {
            let (stall_monitor, call, told) = call(going_on, 10);
            let (let_go, gate) = mpsc::channel::<()>();
            let late = {
                let (call, gate) = (Arc::clone(&call), gate);
                std::thread::spawn(move || call.work(7, || gate.recv()))
            };
            let gone_on = told.recv_timeout(Duration::from_secs(30)).unwrap();
            assert_eq!(gone_on, 7);
            // The thread that went on uses the same blocking call.
            assert_eq!(call.work(8, || "done"), (Some(8), "done"));
            let_go.send(()).unwrap();
            assert_eq!(late.join().unwrap(), (None, Ok(())), "{going_on:?}");
            // And it can be taken over from as well.
            let (let_go, gate) = mpsc::channel::<()>();
            let again = Arc::clone(&call);
            let late = std::thread::spawn(move || again.work(9, || gate.recv()));
            assert_eq!(told.recv_timeout(Duration::from_secs(30)), Ok(9), "{going_on:?}");
            drop(let_go);
            assert_eq!(late.join().unwrap().0, None);
            stall_monitor.end();
        }
    }

    #[test]
    fn nobody_looks_while_nobody_works() {
        let (stall_monitor, call, _told) = call(Takeover::Moment, u32::MAX);
        call.work(1, || ());
        let begun = std::time::Instant::now();
        while stall_monitor.looks.load(SeqCst) {
            assert!(begun.elapsed() < Duration::from_secs(30), "it sleeps");
            std::thread::yield_now();
        }
        assert!(call.work(1, || stall_monitor.looks.load(SeqCst)).1, "it is awake");
        stall_monitor.end();
    }
}
