//! The answer to `regrow stats`: the pool, the cache, the machine and the performance of commands.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Name;
use super::history::{Measure, Trend};
use super::sample::MachineSample;
use super::status::DaemonStatus;
use super::task::TaskId;

/// All statistics of one supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Stats {
    /// The supervisor that answers.
    pub daemon: DaemonStatus,
    /// The worker pool.
    pub pool: PoolStats,
    /// The cache of task results.
    pub cache: CacheStats,
    /// The machine; `null` until its first reading.
    pub resources: Option<Resources>,
    /// The Scaler, which resizes the worker pool and the scaled services.
    pub scaler: ScalerStats,
    /// The number of instances and tasks.
    pub processes: ProcessStats,
    /// The levels from which the machine counts as busy.
    pub thresholds: Thresholds,
    /// The counts and durations of the commands that were run as tasks.
    pub performance: Performance,
}

/// The machine and its recent history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Resources {
    /// The latest reading.
    #[serde(flatten)]
    pub machine: MachineSample,
    /// The trend of each measure over the last day, as far as it is known.
    pub trends: BTreeMap<Measure, Trend>,
}

/// The size and the load of the worker pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct PoolStats {
    /// The present workers, including those that will leave after their task.
    pub workers: usize,
    /// The workers that run a task.
    pub busy: usize,
    /// The number of workers that the pool is to have.
    pub wanted: u32,
    /// The smallest number allowed.
    pub min: u32,
    /// The largest number allowed.
    pub max: u32,
    /// The tasks that wait for a worker.
    pub queued: usize,
    /// The most tasks that may wait for a worker.
    pub queue: usize,
    /// The failed tasks that wait for their next attempt.
    pub retrying: usize,
}

/// The cache of task results.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct CacheStats {
    /// The results in the cache.
    pub entries: usize,
    /// The most results that the cache may hold.
    pub max_entries: usize,
    /// The size of the cached results, in bytes.
    pub bytes: u64,
    /// The largest size of all cached results, in bytes.
    pub max_bytes: u64,
    /// Requests answered from the cache.
    pub hits: u64,
    /// Requests whose result was not in the cache.
    pub misses: u64,
    /// Requests that waited for a running task with the same result.
    pub joined: u64,
    /// The share of requests that needed no run of their own, 0 to 1.
    pub hit_rate: f64,
    /// Results dropped for want of room.
    pub evictions: u64,
    /// Results dropped because their time was over.
    pub expirations: u64,
}

/// The Scaler, which resizes the worker pool and the scaled services.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ScalerStats {
    /// Whether the pool is resized automatically; `false` while its size is set by hand.
    pub auto: bool,
    /// The last automatic change of the pool's size, and its reason; `null` before the first.
    pub last: Option<String>,
    /// The services whose number of copies the Scaler adjusts.
    #[serde(default)]
    pub services: Vec<ServiceScale>,
}

/// The scaling of one service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ServiceScale {
    /// The name of the service.
    pub service: Name,
    /// The present number of copies.
    pub replicas: u32,
    /// The smallest number allowed.
    pub min: u32,
    /// The largest number allowed.
    pub max: u32,
    /// The last decision about the service, and its reason; `null` before the first.
    pub last: Option<String>,
}

/// The number of instances and tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ProcessStats {
    /// The instances of all services.
    pub instances: usize,
    /// The instances that have a process.
    pub running: usize,
    /// The tasks that run.
    pub tasks: usize,
}

/// The levels from which the machine counts as busy: percentages, and the load for each core.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Thresholds {
    /// CPU above this shrinks the pool by one worker, and new commands get a lower priority.
    pub cpu: f64,
    /// Memory use above this shrinks the pool by one worker.
    pub memory: f64,
    /// The pool may grow by a worker only while CPU is below this.
    pub cpu_low: f64,
    /// The pool may grow by a worker only while memory use is below this.
    pub memory_low: f64,
    /// A file system above this counts as full.
    pub disk: f64,
    /// A load for each core above this counts as high.
    pub load: f64,
    /// The levels that the machine exceeds, in words.
    pub exceeded: Vec<String>,
}

/// The counts and durations of the commands that were run as tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Performance {
    /// The finished tasks that were run at least once.
    pub executions: u64,
    /// The finished tasks that were run and did not succeed.
    pub failures: u64,
    /// The share of successful executions, 0 to 1; `null` while there are none.
    pub success_rate: Option<f64>,
    /// The median duration, in seconds.
    pub p50_s: f64,
    /// The duration in seconds that nine of ten tasks did not exceed.
    pub p90_s: f64,
    /// The duration in seconds that ninety-nine of a hundred tasks did not exceed.
    pub p99_s: f64,
    /// The longest duration, in seconds.
    pub max_s: f64,
    /// The mean duration, in seconds.
    pub mean_s: f64,
    /// The tasks that took longest, the longest first.
    pub slowest: Vec<SlowCommand>,
}

/// A task that took long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct SlowCommand {
    /// The id of the task.
    pub id: TaskId,
    /// The command, shortened.
    pub command: String,
    /// The duration, in seconds.
    pub duration_s: f64,
}
