//! What the watcher is told, and the line by which it is told.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;

use crate::host::cgroup::Cgroups;
use crate::host::marks::Marks;
use crate::host::spawn::Program;
use crate::host::start_queue::StartPermit;
use crate::host::{HostEventSink, OutputTarget, ProcessKey};
use crate::logs::{Due, Fresh, LogConfig, Slot, WriteResult};
use crate::model::{SourceId, Stream};

/// What the watcher is told.
pub(crate) enum WatchOrder {
    /// Look after this process.
    Watch(Box<Watched>),
    /// Signal a whole tree, and SIGCONT after it.
    Signal(ProcessKey, i32),
    /// SIGSTOP a whole tree, and say so.
    Pause(ProcessKey),
    /// SIGCONT a whole tree.
    Resume(ProcessKey),
    /// SIGKILL a whole tree until it is empty.
    Kill(ProcessKey),
    /// When this process dies, end everything at once and exit.
    DieWith(OwnedFd),
    /// End whatever was left to us and belongs to nobody; then say so.
    EndStrays(Box<dyn FnOnce() + Send>),
    /// The keeper was asked for this process.
    Expect(Box<Expected>),
    /// Look after a process that the keeper has kept.
    Adopt(ProcessKey, OutputTarget, Option<LogConfig>, HostEventSink),
    /// What is kept of a process that is gone may go.
    Settle(ProcessKey),
    /// What a source prints is kept like this from now on.
    Keep(SourceId, LogConfig),
    /// A source prints no more.
    Forget(SourceId),
    /// Note who is of trees that have no cgroup.
    LookAround,
    /// These trees have a cgroup now.
    Housed(Vec<u64>),
    /// What was relieved has come to its end after all.
    Late(u64, Box<Late>),
    /// The keeper is to hold this text, and this descriptor, for the daemons that follow.
    Hold(String, String, Option<OwnedFd>),
    /// This process is about to end, and its keeper is told what follows.
    Leave(Leave),
    /// End.
    Quit,
}

/// How a daemon leaves.
pub(crate) enum Leave {
    /// Everything is down; the keeper knows, or is dead.
    Down(u8),
    /// Another program goes on. Called when the keeper has noted that.
    Replaced(PathBuf, Box<dyn FnOnce() + Send>),
}

/// A process to look after.
pub(crate) struct Watched {
    pub(crate) key: ProcessKey,
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    /// Since when it is this host's.
    pub(crate) since: Instant,
    pub(crate) pipes: [Option<OwnedFd>; 2],
    pub(crate) output: OutputTarget,
    pub(crate) marks: Marks,
    /// The cgroup of its own that it was made in lies there.
    pub(crate) cgroups: Option<Arc<Cgroups>>,
    pub(crate) news: HostEventSink,
}

/// A process that a keeper is making.
pub(crate) struct Expected {
    pub(crate) key: ProcessKey,
    pub(crate) output: OutputTarget,
    pub(crate) marks: Marks,
    /// Where it is to have its cgroup.
    pub(crate) cgroups: Option<Arc<Cgroups>>,
    /// What the keeper says of it to a later daemon; `None`: nothing, it is to end with us.
    pub(crate) about: Option<String>,
    /// What is run, for words about a failure.
    pub(crate) program: Program,
    pub(crate) news: HostEventSink,
    /// Its descriptors are still to come.
    pub(crate) coming: StartPermit,
}

/// Orders, and since when the first of them waits.
#[derive(Default)]
struct Orders {
    list: Vec<WatchOrder>,
    since: Option<Instant>,
}

/// How others reach the watcher.
#[derive(Clone)]
pub(crate) struct WatcherHandle {
    inner: Arc<Inner>,
}

struct Inner {
    orders: Mutex<Orders>,
    wake: EventFd,
}

impl WatcherHandle {
    pub(super) fn new(wake: EventFd) -> WatcherHandle {
        WatcherHandle { inner: Arc::new(Inner { orders: Mutex::default(), wake }) }
    }

    /// Gives an order and wakes the watcher.
    pub(crate) fn send(&self, order: WatchOrder) {
        self.orders().list.push(order);
        self.wake();
    }

    /// Gives an order without waking the watcher for it, unless many wait already. The
    /// caller is to wake it before it rests.
    pub(crate) fn send_later(&self, order: WatchOrder) {
        let mut orders = self.orders();
        orders.list.push(order);
        orders.since.get_or_insert_with(Instant::now);
        let many = orders.list.len().is_multiple_of(BATCH);
        drop(orders);
        if many {
            self.wake();
        }
    }

    /// Wakes the watcher where orders have waited for long: before something that may take
    /// its time.
    pub(crate) fn wake_if_late(&self) {
        let late = self.orders().since.is_some_and(|since| since.elapsed() > LATE);
        if late {
            self.wake();
        }
    }

    /// Wakes the watcher where orders wait.
    pub(crate) fn wake(&self) {
        if !self.orders().list.is_empty() {
            // It can only fail when the counter is full, and then the watcher is awake anyway.
            let _ = self.inner.wake.write(1);
        }
    }

    /// What was ordered since the last call.
    pub(super) fn take(&self) -> Vec<WatchOrder> {
        let _ = self.inner.wake.read();
        std::mem::take(&mut *self.orders()).list
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.inner.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In a burst of starts the watcher is woken for so many at once.
const BATCH: usize = 32;
/// And nothing waits longer than this while more processes are made.
const LATE: Duration = Duration::from_millis(1);

/// What came of a loan, too late.
pub(crate) enum Late {
    Poured { source: SourceId, key: u64, stream: Stream, poured: WriteResult, buffer: Vec<u8> },
    Emptied { source: SourceId, stream: Stream, emptied: Emptied },
    Opened(SourceId, Option<Due>),
    Changed(SourceId, Box<Change>),
    Closed,
}

/// Other files for a source.
pub(crate) struct Change {
    pub(super) keep: LogConfig,
    pub(super) files: std::io::Result<Option<Fresh>>,
    /// What the source had when it was begun: what has come since counts more.
    pub(super) before: Option<Arc<Slot>>,
    /// Why it goes there, where nobody has asked for it.
    pub(super) instead_of: Option<String>,
}

/// What was in the pipe of a process that is gone.
pub(crate) struct Emptied {
    pub(super) bytes: Vec<u8>,
    pub(super) buffer: Vec<u8>,
    /// A keeper is to be told of these first; then there may be more in it.
    pub(super) moves: Option<[OwnedFd; 2]>,
}
