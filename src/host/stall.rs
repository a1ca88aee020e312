//! Work that may stand still in the kernel, and who goes on meanwhile.
//!
//! A read, a write or an open on a disk that does not answer can't be ended and has no deadline. So
//! before a thread does one, it leaves what it works with at a [`BlockingCall`]. Usually it is back at once and
//! takes it again. If it is not, another thread goes on with it, and who comes back late finds nothing
//! there, and may only tell what it has found.
//!
//! One thread looks after all desks of a host ([`StallMonitor`]), and sleeps as long as nobody works at one. It
//! counts looks and not time: in a process that stood still (Ctrl-Z, a frozen machine) no work has lasted.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// So often desks are looked at while somebody works.
const LOOK: Duration = Duration::from_millis(50);

/// How many threads of this process were relieved, and have not come back.
static AWAY: AtomicUsize = AtomicUsize::new(0);

/// Whether a thread of this process stands still in the kernel. It can't be ended, and neither can the process be
/// ended or execute anything before that thread comes back.
pub(crate) fn somebody_stands_still() -> bool {
    AWAY.load(SeqCst) > 0
}

/// Looks after desks.
pub(crate) struct StallMonitor {
    desks: Mutex<Vec<Weak<dyn Looked>>>,
    /// Somebody looks at them now and then; otherwise the thread sleeps.
    looks: AtomicBool,
    /// There is a thread for it.
    has_thread: AtomicBool,
    /// The host is gone.
    over: AtomicBool,
    asleep: Mutex<()>,
    wake: Condvar,
}

/// Where one thread leaves what it works with.
pub(crate) struct BlockingCall<T> {
    left: Mutex<Left<T>>,
    /// After so many looks at one piece of work another goes on.
    patience: u32,
    go_on: Box<dyn Fn(T) + Send + Sync>,
    going_on: Takeover,
    relief: Arc<StallMonitor>,
}

/// What going on takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takeover {
    /// A moment, in which nobody looks after other desks.
    Moment,
    /// A thread of its own, for as long as the host lives.
    Lasting,
}

struct Left<T> {
    /// `None`: nobody works, or another goes on with it.
    state: Option<T>,
    /// Counts pieces of work.
    piece: u64,
    /// The last piece that was seen, and at how many looks since.
    seen: (u64, u32),
}

/// What a look at a desk has shown.
enum Look {
    /// Nobody has worked there since the last one.
    Quiet,
    Busy,
    /// A piece of work has lasted too long: this is to be called, and takes a thread.
    Lasting(Box<dyn FnOnce()>),
}

trait Looked: Send + Sync {
    fn look(self: Arc<Self>) -> Look;
}

impl<T: Send + 'static> BlockingCall<T> {
    /// `go_on` is called when a piece of work lasts longer than `patience` times [`LOOK`], with what was
    /// left.
    pub(crate) fn new(
        relief: &Arc<StallMonitor>,
        patience: u32,
        going_on: Takeover,
        go_on: impl Fn(T) + Send + Sync + 'static,
    ) -> Arc<BlockingCall<T>> {
        let left = Left { state: None, piece: 0, seen: (0, 0) };
        let relief = Arc::clone(relief);
        let desk = Arc::new(BlockingCall {
            left: Mutex::new(left),
            patience,
            go_on: Box::new(go_on),
            going_on,
            relief,
        });
        let weak: Weak<BlockingCall<T>> = Arc::downgrade(&desk);
        lock(&desk.relief.desks).push(weak);
        desk
    }

    /// Who looks after it.
    pub(crate) fn relief(&self) -> &Arc<StallMonitor> {
        &self.relief
    }

    /// Leaves this, works, and takes it again. `None` where another has gone on with it meanwhile.
    pub(crate) fn work<R>(&self, state: T, work: impl FnOnce() -> R) -> (Option<T>, R) {
        let piece = {
            let mut left = lock(&self.left);
            left.piece += 1;
            left.state = Some(state);
            left.piece
        };
        self.relief.look_from_now_on();
        let done = work();
        let mut left = lock(&self.left);
        // Who went on may be at a piece of its own by now.
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
    /// Starts the thread.
    pub(crate) fn start() -> io::Result<Arc<StallMonitor>> {
        let relief = Arc::new(StallMonitor {
            desks: Mutex::default(),
            looks: AtomicBool::new(false),
            has_thread: AtomicBool::new(false),
            over: AtomicBool::new(false),
            asleep: Mutex::default(),
            wake: Condvar::new(),
        });
        relief.begin()?;
        Ok(relief)
    }

    /// Starts a thread, where there is none.
    pub(crate) fn begin(self: &Arc<StallMonitor>) -> io::Result<()> {
        if self.has_thread.swap(true, SeqCst) {
            return Ok(());
        }
        let relief = Arc::clone(self);
        let thread = std::thread::Builder::new().name("regrow-relief".into()).stack_size(256 * 1024);
        let begun = thread.spawn(move || relief.run());
        self.has_thread.store(begun.is_ok(), SeqCst);
        begun.map(drop)
    }

    /// The host is gone, and the thread ends.
    pub(crate) fn end(&self) {
        self.over.store(true, SeqCst);
        drop(lock(&self.asleep));
        self.wake.notify_all();
    }

    /// Somebody works. It costs a call to the kernel only where nobody has for a while.
    fn look_from_now_on(&self) {
        if !self.looks.load(SeqCst) && !self.looks.swap(true, SeqCst) {
            // Behind this lock the thread is asleep, or has yet to see it.
            drop(lock(&self.asleep));
            self.wake.notify_all();
        }
    }

    /// The calling thread was relieved, and has come back: it takes the place of the one that went on, where
    /// that is free. Returns when there is nothing for it to do.
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
                // Who began just before has not woken anybody.
                seen = self.look();
                if !matches!(seen, Look::Quiet) {
                    self.looks.store(true, SeqCst);
                }
            }
            if let Look::Lasting(go_on) = seen {
                self.has_thread.store(false, SeqCst);
                if let Err(error) = self.begin() {
                    tracing::warn!(%error, "nobody is left to go on where a disk does not answer");
                }
                return go_on();
            }
        }
    }

    /// Looks at all desks.
    fn look(&self) -> Look {
        let desks: Vec<_> = {
            let mut desks = lock(&self.desks);
            desks.retain(|desk| desk.strong_count() > 0);
            desks.iter().filter_map(Weak::upgrade).collect()
        };
        let mut all = Look::Quiet;
        for desk in desks {
            match desk.look() {
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

    /// A desk whose state is told when another goes on with it.
    fn desk(
        going_on: Takeover,
        patience: u32,
    ) -> (Arc<StallMonitor>, Arc<BlockingCall<u32>>, mpsc::Receiver<u32>) {
        let relief = StallMonitor::start().unwrap();
        let (tell, told) = mpsc::channel();
        let desk = BlockingCall::new(&relief, patience, going_on, move |state| tell.send(state).unwrap());
        (relief, desk, told)
    }

    #[test]
    fn who_is_back_in_time_has_its_state_again() {
        let (relief, desk, told) = desk(Takeover::Moment, u32::MAX);
        for state in 0..1000 {
            assert_eq!(desk.work(state, || state * 2), (Some(state), state * 2));
        }
        assert!(told.try_recv().is_err());
        relief.end();
    }

    #[test]
    fn another_goes_on_with_what_lasts_and_who_is_late_has_its_result_alone() {
        for going_on in [Takeover::Moment, Takeover::Lasting] {
            let (relief, desk, told) = desk(going_on, 10);
            let (let_go, gate) = mpsc::channel::<()>();
            let late = {
                let (desk, gate) = (Arc::clone(&desk), gate);
                std::thread::spawn(move || desk.work(7, || gate.recv()))
            };
            let gone_on = told.recv_timeout(Duration::from_secs(30)).unwrap();
            assert_eq!(gone_on, 7);
            // Who went on works at the same desk.
            assert_eq!(desk.work(8, || "done"), (Some(8), "done"));
            let_go.send(()).unwrap();
            assert_eq!(late.join().unwrap(), (None, Ok(())), "{going_on:?}");
            // And is relieved as well, if it has to be.
            let (let_go, gate) = mpsc::channel::<()>();
            let again = Arc::clone(&desk);
            let late = std::thread::spawn(move || again.work(9, || gate.recv()));
            assert_eq!(told.recv_timeout(Duration::from_secs(30)), Ok(9), "{going_on:?}");
            drop(let_go);
            assert_eq!(late.join().unwrap().0, None);
            relief.end();
        }
    }

    #[test]
    fn nobody_looks_while_nobody_works() {
        let (relief, desk, _told) = desk(Takeover::Moment, u32::MAX);
        desk.work(1, || ());
        let begun = std::time::Instant::now();
        while relief.looks.load(SeqCst) {
            assert!(begun.elapsed() < Duration::from_secs(30), "it sleeps");
            std::thread::yield_now();
        }
        assert!(desk.work(1, || relief.looks.load(SeqCst)).1, "it is awake");
        relief.end();
    }
}
