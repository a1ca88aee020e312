//! What a worker pool is told, and what it and its workers share.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{oneshot, watch};

use crate::actors::worker_pool::outcome::{CacheKey, Finished, Stage, Ticket};
use crate::actors::worker_pool::worker::RunReport;
use crate::decide::cache::Flight;
use crate::decide::ledger::KeptResult;
use crate::decide::pool::{PoolCounts, PoolInput, PoolRefusal, PoolSize, RunOutcome, WorkerId};
use crate::host::Host;
use crate::model::stats::{CacheStats, Performance};
use crate::model::task::ProgressReport;
use crate::model::{TaskId, TaskSpec, TaskStatus};
use crate::sys::clock::Clock;
use crate::vault::secrets::Vault;

/// Makes the host for tasks, when the first one is to run.
pub(crate) type HostFactory = Box<dyn Fn() -> io::Result<Arc<dyn Host>> + Send + Sync>;

/// What all workers share.
pub struct TaskContext {
    pub(super) clock: Clock,
    /// The working directory of tasks that name none.
    pub(super) dir: PathBuf,
    pub(super) inherited: Arc<Vec<(OsString, OsString)>>,
    pub(super) vault: Arc<Vault>,
    pub(super) socket: Option<PathBuf>,
    host: Mutex<Option<Arc<dyn Host>>>,
    make_host: HostFactory,
}

impl TaskContext {
    pub(crate) fn new(
        clock: Clock,
        (dir, socket): (PathBuf, Option<PathBuf>),
        inherited: Arc<Vec<(OsString, OsString)>>,
        vault: Arc<Vault>,
        make_host: HostFactory,
    ) -> TaskContext {
        TaskContext { clock, dir, inherited, vault, socket, host: Mutex::new(None), make_host }
    }

    /// The tree's clock.
    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// The host that makes the tasks' processes. The first call makes the host.
    pub(super) fn host(&self) -> io::Result<Arc<dyn Host>> {
        let mut host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = &*host {
            return Ok(Arc::clone(host));
        }
        let made = (self.make_host)()?;
        *host = Some(Arc::clone(&made));
        Ok(made)
    }
}

/// The state of a pool.
#[derive(Debug, Clone)]
pub struct PoolSnapshot {
    /// The numbers of workers and tasks.
    pub snapshot: PoolCounts,
    /// The bounds of the pool's size.
    pub size: PoolSize,
    /// Metrics of the tasks that have run.
    pub performance: Performance,
}

/// How long a task lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskLifetime {
    /// Until it is finished, by whichever daemon runs it.
    OnItsOwn,
    /// While its client waits for it. The client's connection ends with this daemon.
    WithItsClient,
}

/// Receives the tickets of tasks that were accepted.
pub(crate) type SubmitReply = oneshot::Sender<Result<Vec<Ticket>, PoolRefusal>>;

/// A result that is being made for everybody who asks for it.
pub(crate) type CacheFlight = Flight<CacheKey>;

/// What the cache knows of a task that is submitted.
#[derive(Debug, Clone)]
pub(crate) enum CacheAnswer {
    /// The task's result is not for the cache.
    NotCached,
    /// This is the task's result.
    Hit(Arc<Finished>),
    /// The task makes the result, which nobody makes yet.
    Leads(CacheFlight),
    /// The result is being made already, as far as the cache knows.
    Joins(CacheFlight),
}

/// A task as it comes to the pool.
pub(crate) struct Submitted {
    pub(crate) id: TaskId,
    pub(crate) spec: TaskSpec,
    pub(crate) at: SystemTime,
    pub(crate) cached: CacheAnswer,
}

/// A message to the cache of a pool's results.
pub(crate) enum CacheMsg {
    /// Look for the results of these commands, and pass them on to the pool. The flag turns true when
    /// the pool has them.
    Submit(Vec<TaskSpec>, String, TaskLifetime, SubmitReply, Arc<AtomicBool>),
    /// Ask for a result that is younger than this.
    Peek(CacheKey, Duration, oneshot::Sender<Option<Arc<Finished>>>),
    /// Ask which of these results the cache does not know.
    Unknown(Vec<CacheKey>, oneshot::Sender<Vec<CacheKey>>),
    /// Take these results that earlier supervisors have kept.
    Restore(Vec<(CacheKey, KeptResult)>),
    /// A flight has ended: its result with its bytes and its time to live, where it is to be kept, and
    /// as the ledger keeps it.
    Made(CacheFlight, Option<(Arc<Finished>, u64, Duration)>, Option<Box<KeptResult>>),
    /// Nobody makes the result of this flight.
    GivenUp(CacheFlight),
    /// The pool makes the result of this flight.
    Flies(CacheFlight),
    /// Drop what has expired.
    Expire,
    /// Drop all results. The answer is how many there were.
    Clear(oneshot::Sender<usize>),
    /// Ask for the counts of the cache.
    Stand(oneshot::Sender<CacheStats>),
}

/// A message to the pool.
pub(crate) enum PoolMsg {
    /// Submit these tasks, all or none, for this user.
    Submit(Vec<Submitted>, String, TaskLifetime, SubmitReply),
    /// The cache has heard of the end of this flight.
    Landed(CacheFlight),
    /// The cache is another one, which knows nothing yet.
    CacheIsNew,
    /// Follow a task. `None`: the task is unknown.
    Follow(TaskId, oneshot::Sender<Option<watch::Receiver<Stage>>>),
    /// The status of all tasks, oldest first.
    List(oneshot::Sender<Vec<TaskStatus>>),
    /// The status of one task. `None`: the task is unknown.
    Status(TaskId, oneshot::Sender<Option<TaskStatus>>),
    /// A request about a task or about the pool.
    Directive(PoolInput, oneshot::Sender<Result<(), PoolRefusal>>),
    /// Forget all finished tasks. The answer is how many there were.
    Cleanup(oneshot::Sender<usize>),
    /// Ask for the pool's state.
    Stand(oneshot::Sender<PoolSnapshot>),
    /// Ask how many tasks end with this daemon, and how many the next one will run.
    Left(oneshot::Sender<(usize, usize)>),
    /// Answered when no task is left.
    Empty(oneshot::Sender<()>),
    /// A worker's task runs, with this pid.
    Started(WorkerId, TaskId, Option<u32>),
    /// A worker's task has reported its progress.
    Progress(TaskId, ProgressReport),
    /// A client reports the progress of a task.
    Report(TaskId, ProgressReport, oneshot::Sender<Result<(), PoolRefusal>>),
    /// A worker's run is over.
    Done(WorkerId, TaskId, RunOutcome, Box<RunReport>),
    /// The timer fired.
    Timer,
}
