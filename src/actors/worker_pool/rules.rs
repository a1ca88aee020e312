//! The rules that a worker pool keeps: its bounds, its limits, and what is kept of results.

use std::path::PathBuf;
use std::time::Duration;

use crate::decide::cache::CacheLimits;
use crate::decide::pool::PoolSize;
use crate::decide::scaler::ScalePolicy;

/// Where the results of commands are kept for later commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepResults {
    /// In memory, until the supervisor ends.
    InMemory,
    /// In the supervisor's ledger as well, if it has one.
    InLedger,
}

/// The size in bytes from which on a result is kept in memory alone.
pub(super) const LARGEST_KEPT: u64 = 256 * 1024;

/// Whether a pool changes its size by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScalingMode {
    /// The Scaler resizes the pool by the samples of the machine.
    Auto,
    /// The pool is resized only on request.
    ByHand,
}

/// The settings of a pool.
#[derive(Debug, Clone)]
pub struct TaskRules {
    /// The number of workers, and of tasks that may wait.
    pub size: PoolSize,
    /// The limits of the cache of results.
    pub cache: CacheLimits,
    /// How many bytes of each stream of a task's output are held in memory.
    pub memory: usize,
    /// How many bytes of each stream are kept at all.
    pub output: u64,
    /// The folder for output that exceeds `memory`.
    pub folder: PathBuf,
    /// How many finished tasks are kept.
    pub kept: usize,
    /// How long a finished task is kept.
    pub kept_for: Duration,
    /// When workers are added and removed. Above its high CPU threshold new tasks run at a lower
    /// priority.
    pub scale: ScalePolicy,
    /// Whether the pool scales by itself at first.
    pub mode: ScalingMode,
    /// Whether results outlive the supervisor.
    pub keep: KeepResults,
    /// The usage in percent above which a file system counts as full.
    pub disk_full: f64,
    /// The load per core above which the load counts as high.
    pub load_high: f64,
}

impl TaskRules {
    /// The default settings.
    pub fn usual(folder: PathBuf) -> TaskRules {
        TaskRules {
            size: PoolSize { min: 4, max: 32, queue: 10_000 },
            cache: CacheLimits { entries: 2_000, bytes: 256 << 20 },
            memory: 64 * 1024,
            output: 1 << 30,
            folder,
            kept: 1_000,
            kept_for: Duration::from_secs(3600),
            scale: ScalePolicy::default(),
            mode: ScalingMode::Auto,
            keep: KeepResults::InMemory,
            disk_full: 95.0,
            load_high: 0.8,
        }
    }
}

/// After how many finished tasks the memory that they took is returned to the kernel.
pub(super) const BURST: usize = 2_000;

/// The nice value of new tasks while the CPU is busy (nice(2)).
pub(super) const LOW_PRIORITY: i32 = 10;
