//! The orders to the reaper, and the handle that carries them.

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

/// An order to the reaper.
pub(crate) enum ReaperOrder {
    /// Watch this process, which was just spawned.
    Watch(Box<Watched>),
    /// Send a signal to a whole tree, followed by SIGCONT.
    Signal(ProcessKey, i32),
    /// Halt a whole tree with SIGSTOP, and report it.
    Pause(ProcessKey),
    /// Let a whole tree continue, with SIGCONT.
    Resume(ProcessKey),
    /// Send SIGKILL to a whole tree until it is empty.
    Kill(ProcessKey),
    /// When the process behind this pidfd dies, kill everything at once and exit.
    DieWith(OwnedFd),
    /// End all orphans that belong to no known tree, then call this.
    EndStrays(Box<dyn FnOnce() + Send>),
    /// Expect this process, for which the keeper was asked.
    Expect(Box<Expected>),
    /// Take over a process that the keeper has kept.
    Adopt(ProcessKey, OutputTarget, Option<LogConfig>, HostEventSink),
    /// Drop what is kept of a process that is gone: its end is recorded durably.
    Settle(ProcessKey),
    /// Keep the output of a source in these log files from now on.
    Keep(SourceId, LogConfig),
    /// Close the log files of a source that prints no more.
    Forget(SourceId),
    /// Note the members of trees that have no cgroup.
    LookAround,
    /// Note that these trees have a cgroup now.
    Housed(Vec<u64>),
    /// Take the result of a loan, by its number, that another thread took over from and that has
    /// now ended.
    Late(u64, Box<Late>),
    /// Have the keeper hold this text and descriptor under this name, for the daemons that follow.
    Hold(String, String, Option<OwnedFd>),
    /// Note that this process is about to end, and tell the keeper what follows.
    Leave(Leave),
    /// End the reaper's thread.
    Quit,
}

/// How a daemon leaves, and what its keeper does next.
pub(crate) enum Leave {
    /// Everything is down, and the keeper ends with this exit code; the keeper knows, or is dead.
    Down(u8),
    /// This program takes the daemon's place. The function is called once the keeper has noted
    /// that.
    Replaced(PathBuf, Box<dyn FnOnce() + Send>),
}

/// A process for the reaper to watch.
pub(crate) struct Watched {
    pub(crate) key: ProcessKey,
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    /// Since when this host has the process.
    pub(crate) since: Instant,
    pub(crate) pipes: [Option<OwnedFd>; 2],
    pub(crate) output: OutputTarget,
    pub(crate) marks: Marks,
    /// The cgroups that hold its own, if it was spawned in one.
    pub(crate) cgroups: Option<Arc<Cgroups>>,
    pub(crate) news: HostEventSink,
}

/// A process that the keeper is spawning.
pub(crate) struct Expected {
    pub(crate) key: ProcessKey,
    pub(crate) output: OutputTarget,
    pub(crate) marks: Marks,
    /// The cgroups that are to hold its own.
    pub(crate) cgroups: Option<Arc<Cgroups>>,
    /// The note that the keeper holds about it for a later daemon; `None` means that it ends with
    /// this daemon.
    pub(crate) about: Option<String>,
    /// The program, to explain a failure.
    pub(crate) program: Program,
    pub(crate) news: HostEventSink,
    /// Counts the start as under way until its descriptors have arrived.
    pub(crate) permit: StartPermit,
}

/// The waiting orders, and the time since which the first of them waits.
#[derive(Default)]
struct Orders {
    list: Vec<ReaperOrder>,
    since: Option<Instant>,
}

/// The handle by which other threads reach the reaper.
#[derive(Clone)]
pub(crate) struct ReaperHandle {
    inner: Arc<Inner>,
}

struct Inner {
    orders: Mutex<Orders>,
    wake: EventFd,
}

impl ReaperHandle {
    pub(super) fn new(wake: EventFd) -> ReaperHandle {
        ReaperHandle { inner: Arc::new(Inner { orders: Mutex::default(), wake }) }
    }

    /// Gives an order and wakes the reaper.
    pub(crate) fn send(&self, order: ReaperOrder) {
        self.orders().list.push(order);
        self.wake();
    }

    /// Gives an order without waking the reaper for it, unless many orders wait. The caller must
    /// wake the reaper before it waits itself.
    pub(crate) fn send_later(&self, order: ReaperOrder) {
        let mut orders = self.orders();
        orders.list.push(order);
        orders.since.get_or_insert_with(Instant::now);
        let many = orders.list.len().is_multiple_of(BATCH);
        drop(orders);
        if many {
            self.wake();
        }
    }

    /// Wakes the reaper if orders have waited long; to be called before something that may take
    /// time.
    pub(crate) fn wake_if_late(&self) {
        let late = self.orders().since.is_some_and(|since| since.elapsed() > LATE);
        if late {
            self.wake();
        }
    }

    /// Wakes the reaper if orders wait.
    pub(crate) fn wake(&self) {
        if !self.orders().list.is_empty() {
            // The write can only fail when the counter is full, and then the reaper is awake
            // anyway.
            let _ = self.inner.wake.write(1);
        }
    }

    /// Takes all orders since the last call.
    pub(super) fn take(&self) -> Vec<ReaperOrder> {
        let _ = self.inner.wake.read();
        std::mem::take(&mut *self.orders()).list
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.inner.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In a burst of starts the reaper is woken once for this many.
const BATCH: usize = 32;
/// No order waits longer than this while further processes are spawned.
const LATE: Duration = Duration::from_millis(1);

/// The result of a loan that ended after another thread had taken over.
pub(crate) enum Late {
    Poured { source: SourceId, key: u64, stream: Stream, poured: WriteResult, buffer: Vec<u8> },
    Emptied { source: SourceId, stream: Stream, emptied: Emptied },
    Opened(SourceId, Option<Due>),
    Changed(SourceId, Box<Change>),
    Closed,
}

/// A change of the log files of a source.
pub(crate) struct Change {
    pub(super) keep: LogConfig,
    pub(super) files: std::io::Result<Option<Fresh>>,
    /// The source's files when the change was begun: files that it got since then take precedence.
    pub(super) before: Option<Arc<Slot>>,
    /// Why the configured files can't be used, if that is the reason for the change.
    pub(super) instead_of: Option<String>,
}

/// The output that was left in the pipe of a dead process.
pub(crate) struct Emptied {
    pub(super) bytes: Vec<u8>,
    pub(super) buffer: Vec<u8>,
    /// Files that the keeper must be told of first; the pipe may hold more output.
    pub(super) moves: Option<[OwnedFd; 2]>,
}
