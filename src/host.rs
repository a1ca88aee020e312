//! Processes of ours: how they are made, watched, read, ended and handed on.
//!
//! Actors see it through one trait, [`Host`], so that they are tested without processes
//! ([`fake::FakeHost`]) and later run on another host without change. The room may use `sys`, `logs`,
//! `vault`, and the pure rooms. Deliberately absent: when a process is to start or end.

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

/// What SIGKILL has not ended in this time is stuck in the kernel, and nobody waits for it.
const STUCK: Duration = Duration::from_secs(5);

/// A process that a host was asked to make; never used twice in one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessKey(pub u64);

impl fmt::Display for ProcessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Takes what processes print. Called on the host's own thread: it must not block for long.
pub trait OutputSink: Send + Sync + 'static {
    /// A source is about to print, after somebody else who may have printed under its name: what is
    /// kept of that in files comes first.
    fn begins(&self, source: SourceId);
    /// Whole lines, each with its newline, of one read.
    fn lines(&self, source: SourceId, stream: Stream, lines: &[u8]);
    /// What a source prints is kept in these files from now on.
    fn moves(&self, source: SourceId, keep: &crate::logs::LogConfig);
}

/// Gives each instance the name that its output goes by.
pub trait SourceNames: Send + Sync + 'static {
    /// That of an instance: a new one the first time it is asked.
    fn source(&self, instance: &InstanceId) -> SourceId;
    /// What this source prints, and has printed in earlier lives, is kept in these files.
    fn kept_in(&self, source: SourceId, keep: crate::logs::LogConfig);
    /// Whether what this source prints goes to this process's own output, too.
    fn inherits(&self, source: SourceId, inherits: bool);
    /// Drops what is kept of one that is there no more.
    fn forget(&self, instance: &InstanceId);
}

/// What becomes of a process's output.
#[derive(Clone)]
pub enum OutputTarget {
    /// Lines go to the sink under this name; a line that matches is told once.
    Lines(SourceId, Option<regex::bytes::Regex>),
    /// Lines go to the sink under the name of one beside which this is run (a hook, a stop command),
    /// and into its files while these are open.
    Beside(SourceId),
    /// The first so many bytes are kept and come with the exit.
    Capture(usize),
    /// All of it goes there.
    Collect(Arc<collect::Collector>),
}

/// What a host is told to run.
pub struct SpawnOrder {
    /// Under this key.
    pub key: ProcessKey,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Working folder.
    pub dir: PathBuf,
    /// Its environment, composed when its turn comes: a thousand orders may wait.
    pub env: env::EnvRecipe,
    /// What it reads; `None`: nothing.
    pub input: Option<OwnedFd>,
    /// What it has as its descriptor 3, beside the three that all have. Only where the host makes the
    /// process itself.
    pub extra: Option<Arc<OwnedFd>>,
    /// What becomes of its output.
    pub output: OutputTarget,
    /// For whom, where it is to be known by that to a later daemon; what has no owner is ended
    /// with the daemon that asked for it.
    pub owner: Option<Owner>,
    /// Where its output is kept in files, beside what becomes of it otherwise.
    pub keep: Option<crate::logs::LogConfig>,
    /// Who is told of it.
    pub news: HostEventSink,
}

/// What a process is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The instance, as it is printed.
    pub instance: String,
    /// Its number in the life of it.
    pub incarnation: Incarnation,
}

/// A process that an earlier daemon asked for, and that a keeper has kept.
#[derive(Debug)]
pub struct KeptProcess {
    /// By this it is known.
    pub key: ProcessKey,
    /// Its process id.
    pub pid: u32,
    /// Whose it is.
    pub owner: Option<Owner>,
    /// How it ended, if it has; others of its tree may live.
    pub exit: Option<Exit>,
}

/// Hears of one process. Called on the host's own threads.
pub type HostEventSink = Arc<dyn Fn(HostEvent) + Send + Sync>;

/// What a host tells of a process.
#[derive(Debug, Clone, PartialEq)]
pub enum HostEvent {
    /// A service is about to be made with what its env files say now.
    Renewed {
        /// The process that is about to be made.
        key: ProcessKey,
        /// The service as its manifest and its env files describe it now.
        spec: Arc<ServiceSpec>,
    },
    /// The program runs.
    Spawned {
        /// Which.
        key: ProcessKey,
        /// Its process id.
        pid: u32,
        /// By what it is found again when nobody has kept it, where that may come to pass.
        life: Option<String>,
    },
    /// It does not.
    SpawnFailed {
        /// Which.
        key: ProcessKey,
        /// Why.
        failure: SpawnFailure,
    },
    /// A line of its output matched.
    LogMatched {
        /// Which.
        key: ProcessKey,
    },
    /// All of its tree stands still.
    Paused {
        /// Which.
        key: ProcessKey,
    },
    /// The process ended, and all it printed has been handed on.
    Exited {
        /// Which.
        key: ProcessKey,
        /// How.
        exit: Exit,
        /// Whether others of its tree live on; then [`HostEvent::TreeGone`] follows once they don't.
        remains: bool,
        /// What was captured.
        captured: Vec<u8>,
        /// What the kernel counted for it, where it is this process's own child.
        usage: Option<ResourceUsage>,
        /// How long it ran, as far as this host had it.
        lasted: Duration,
    },
    /// The last of its tree is gone.
    TreeGone {
        /// Which.
        key: ProcessKey,
    },
    /// SIGKILL does not end its tree: it forks faster than it is found, and has no cgroup.
    ForksAway {
        /// The process that the tree began with.
        key: ProcessKey,
        /// How many are there at the moment.
        left: usize,
    },
    /// Its tree is gone, as far as can be seen. But of those that had shed its marks so many have ended unseen,
    /// and what they may have started is not known.
    LostSight {
        /// The process that the tree began with.
        key: ProcessKey,
        /// How many.
        of: usize,
    },
    /// What it prints goes to other files than it should, where those can't be used.
    KeptElsewhere {
        /// The process that prints.
        key: ProcessKey,
        /// The file of its standard output.
        place: PathBuf,
        /// Why the other files can't be used, naming them.
        reason: String,
    },
    /// What it prints can't be kept in its log files, or can again.
    Unkept {
        /// Which.
        key: ProcessKey,
        /// How many bytes were not kept, now that it can.
        lost: Option<u64>,
        /// Why not.
        reason: String,
    },
}

/// Makes processes, ends them, and tells what becomes of them.
///
/// None of its methods waits: an order is taken and answered by [`HostEvent`].
pub trait Host: Send + Sync + 'static {
    /// Chance, from 0 to 1.
    fn roll(&self) -> f64;
    /// A key for the next process.
    fn next_key(&self) -> ProcessKey;
    /// Makes a process. Answered once, by `Spawned` or `SpawnFailed`.
    fn spawn(&self, order: SpawnOrder);
    /// Sends a signal, and SIGCONT after it, to every process of a tree.
    fn signal(&self, key: ProcessKey, signal: i32);
    /// Halts every process of a tree (SIGSTOP); answered by [`HostEvent::Paused`].
    fn pause(&self, key: ProcessKey);
    /// Lets every process of a tree go on (SIGCONT).
    fn resume(&self, key: ProcessKey);
    /// Sends SIGKILL to every process of a tree until it is empty.
    fn kill(&self, key: ProcessKey);
    /// Takes over one that was [`KeptProcess`]; from here on it is as one that was spawned, which is not
    /// told again. A host whose processes end with it never finds any.
    fn adopt(
        &self,
        _key: ProcessKey,
        _output: OutputTarget,
        _keep: Option<crate::logs::LogConfig>,
        _news: HostEventSink,
    ) {
    }
    /// All facts of its end are written down where they last: what is kept of a process that is
    /// gone may go.
    fn settle(&self, _key: ProcessKey) {}
    /// To be called now and then: who is of which tree is noted where the kernel does not know it for good.
    fn look_around(&self) {}
    /// What a source prints is kept like this from now on, without another start.
    fn keep(&self, _source: SourceId, _keep: crate::logs::LogConfig) {}
    /// A source will print no more.
    fn forget(&self, _source: SourceId) {}
}
