//! The host's processes: how they are spawned, watched, read, killed and handed on to a later
//! daemon.
//!
//! Actors reach processes through one trait, [`Host`], so they can be tested without real processes
//! ([`fake::FakeHost`]) and can later run on another host unchanged. The module may use `sys`,
//! `logs`, `vault` and the pure modules. Deliberately absent: the decision when a process is to
//! start or end.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{
    Exit, Incarnation, InstanceId, ResourceUsage, ServiceSpec, SourceId, SpawnFailure, Stream,
};

pub(crate) mod cgroup;
pub mod collect;
pub mod env;
pub mod fake;
pub mod files_changed;
pub(crate) mod journal;
pub mod keeper;
pub(crate) mod lines;
pub(crate) mod marks;
pub mod native;
pub(crate) mod notify;
pub mod probe;
pub mod processes;
pub mod progress;
pub(crate) mod reaper;
pub(crate) mod spawn;
pub(crate) mod stall;
pub(crate) mod start_queue;
pub mod waiting_tasks;

/// A process that SIGKILL has not ended after this time is stuck in the kernel, and nobody waits
/// for it any longer.
const STUCK: Duration = Duration::from_secs(5);

/// The key of one process that a host was asked to spawn; no key is ever used twice in one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessKey(pub u64);

impl fmt::Display for ProcessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Takes the output of processes. The host's own threads call it, so it must not block for long.
pub trait OutputSink: Send + Sync + 'static {
    /// A source is about to print. Another process may have printed under the same source before:
    /// its output that is kept in files is recalled first.
    fn begins(&self, source: SourceId);
    /// Hands over whole lines from one read, each with its newline.
    fn lines(&self, source: SourceId, stream: Stream, lines: &[u8]);
    /// The output of a source is kept in these files from now on.
    fn moves(&self, source: SourceId, keep: &crate::logs::LogConfig);
}

/// Gives each instance the source under which its output is known.
pub trait SourceNames: Send + Sync + 'static {
    /// Returns the source of an instance: a new one the first time the instance is asked for.
    fn source(&self, instance: &InstanceId) -> SourceId;
    /// The output of this source, present and past, is kept in these files.
    fn kept_in(&self, source: SourceId, keep: crate::logs::LogConfig);
    /// Sets whether the output of this source also goes to the supervisor's own output.
    fn inherits(&self, source: SourceId, inherits: bool);
    /// Drops what is kept in memory of an instance that no longer exists.
    fn forget(&self, instance: &InstanceId);
}

/// Where a process's output goes.
#[derive(Clone)]
pub enum OutputTarget {
    /// Lines go to the sink under this source; the first line that matches the pattern is reported
    /// once.
    Lines(SourceId, Option<regex::bytes::Regex>),
    /// Lines go to the sink under the source of the process that this one accompanies (as a hook or
    /// a stop command does), and into that process's log files while these are open.
    Beside(SourceId),
    /// The first bytes, up to this number, are kept and come with the exit.
    Capture(usize),
    /// All output goes to this collector.
    Collect(Arc<collect::Collector>),
}

/// A host's order to spawn one process.
pub struct SpawnOrder {
    /// The key of the process, from [`Host::next_key`].
    pub key: ProcessKey,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The working directory.
    pub dir: PathBuf,
    /// The recipe of its environment, composed only when the order's turn comes, because a thousand
    /// orders may wait.
    pub env: env::EnvRecipe,
    /// The standard input of the process; `None` stands for an empty one.
    pub input: Option<OwnedFd>,
    /// The descriptor 3 of the process, beside the three standard ones. It is given only where the
    /// host itself spawns the process, without a keeper.
    pub extra: Option<Arc<OwnedFd>>,
    /// Where the output of the process goes.
    pub output: OutputTarget,
    /// The owner by which a later daemon knows the process. A process without an owner is ended
    /// with the daemon that asked for it.
    pub owner: Option<Owner>,
    /// The log files that keep its output, besides what `output` says.
    pub keep: Option<crate::logs::LogConfig>,
    /// The sink that is told of every event of the process.
    pub news: HostEventSink,
}

/// The instance and incarnation that a process belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The id of the instance, in its printed form.
    pub instance: String,
    /// The number of this process in the life of its instance.
    pub incarnation: Incarnation,
}

/// A process that an earlier daemon asked for and that its keeper has kept.
#[derive(Debug)]
pub struct KeptProcess {
    /// The key under which the earlier daemon spawned it.
    pub key: ProcessKey,
    /// The pid of the process.
    pub pid: u32,
    /// The owner of the process, if the order named one.
    pub owner: Option<Owner>,
    /// How the process ended, if it has; other processes of its tree may still live.
    pub exit: Option<Exit>,
}

/// Receives the events of one process. The host's own threads call it.
pub type HostEventSink = Arc<dyn Fn(HostEvent) + Send + Sync>;

/// What a host reports of a process.
#[derive(Debug, Clone, PartialEq)]
pub enum HostEvent {
    /// A service is about to be spawned with what its env files say now.
    Renewed {
        /// The process that is about to be spawned.
        key: ProcessKey,
        /// The service as its manifest and its env files describe it now.
        spec: Arc<ServiceSpec>,
    },
    /// The process was spawned, and its program runs.
    Spawned {
        /// The process that this event is about.
        key: ProcessKey,
        /// The pid of the process; `None` for what is no process of this machine.
        pid: Option<u32>,
        /// A text by which the process is found again even without a keeper. `None` for a process
        /// that ends with its host.
        life: Option<String>,
    },
    /// The process could not be spawned.
    SpawnFailed {
        /// The process that this event is about.
        key: ProcessKey,
        /// The stage at which it failed, and the reason.
        failure: SpawnFailure,
    },
    /// A line of the output matched the pattern of [`OutputTarget::Lines`].
    LogMatched {
        /// The process that this event is about.
        key: ProcessKey,
    },
    /// Every process of the tree is halted.
    Paused {
        /// The process that this event is about.
        key: ProcessKey,
    },
    /// The process ended, and all of its output has been handed on.
    Exited {
        /// The process that this event is about.
        key: ProcessKey,
        /// How the process ended.
        exit: Exit,
        /// Whether other processes of its tree live on; [`HostEvent::TreeGone`] follows once they
        /// don't.
        remains: bool,
        /// The output that [`OutputTarget::Capture`] asked for.
        captured: Vec<u8>,
        /// The kernel's resource counts of the process; `None` unless it was this process's own
        /// child.
        usage: Option<ResourceUsage>,
        /// How long the process ran under this host.
        lasted: Duration,
    },
    /// The last process of the tree is gone.
    TreeGone {
        /// The process that this event is about.
        key: ProcessKey,
    },
    /// SIGKILL does not end the tree: it forks faster than its processes are found, and it has no
    /// cgroup.
    ForksAway {
        /// The process that the tree began with.
        key: ProcessKey,
        /// The number of its processes that are known at the moment.
        left: usize,
    },
    /// The tree is gone, as far as can be seen. But some of its processes had shed their marks and
    /// ended unobserved, so processes that they started may live on.
    LostSight {
        /// The process that the tree began with.
        key: ProcessKey,
        /// The number of processes that ended unobserved.
        of: usize,
    },
    /// The output of the process goes to other files than configured, because the configured ones
    /// can't be used.
    KeptElsewhere {
        /// The process that prints.
        key: ProcessKey,
        /// The file of its standard output.
        place: PathBuf,
        /// The reason why the configured files can't be used, with their names.
        reason: String,
    },
    /// The output of the process can't be kept in its log files, or can be kept again.
    Unkept {
        /// The process that this event is about.
        key: ProcessKey,
        /// The number of bytes that were lost, once output can be kept again; `None` while it
        /// can't.
        lost: Option<u64>,
        /// The reason why the output can't be kept; empty once it can.
        reason: String,
    },
}

/// Spawns processes, kills them, and reports what becomes of them.
///
/// No method waits: each takes an order, which is answered by a [`HostEvent`].
pub trait Host: Send + Sync + 'static {
    /// Returns a random number from 0 (included) to 1 (excluded).
    fn roll(&self) -> f64;
    /// Returns an unused key for the next process.
    fn next_key(&self) -> ProcessKey;
    /// Spawns a process; answered once, by [`HostEvent::Spawned`] or [`HostEvent::SpawnFailed`].
    fn spawn(&self, order: SpawnOrder);
    /// Sends a signal, followed by SIGCONT, to every process of a tree.
    fn signal(&self, key: ProcessKey, signal: i32);
    /// Halts every process of a tree with SIGSTOP; answered by [`HostEvent::Paused`].
    fn pause(&self, key: ProcessKey);
    /// Lets every process of a tree continue, with SIGCONT.
    fn resume(&self, key: ProcessKey);
    /// Sends SIGKILL to every process of a tree until it is empty.
    fn kill(&self, key: ProcessKey);
    /// Takes over a [`KeptProcess`], which from then on is treated like one that this host spawned;
    /// no second [`HostEvent::Spawned`] is sent. A host whose processes end with it never finds
    /// any.
    fn adopt(
        &self,
        _key: ProcessKey,
        _output: OutputTarget,
        _keep: Option<crate::logs::LogConfig>,
        _news: HostEventSink,
    ) {
    }
    /// Everything about the end of this process has been recorded durably, so the host may drop
    /// what it keeps of it.
    fn settle(&self, _key: ProcessKey) {}
    /// To be called now and then: the host notes which processes belong to which tree, where the
    /// kernel does not track this for good.
    fn look_around(&self) {}
    /// The output of a source is kept in these log files from now on, without a restart.
    fn keep(&self, _source: SourceId, _keep: crate::logs::LogConfig) {}
    /// The source will print no more, so the host closes its log files.
    fn forget(&self, _source: SourceId) {}
}
