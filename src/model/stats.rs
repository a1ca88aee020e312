//! `regrow stats`: the pool, the cache, the machine and what commands have come to, in one object.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Name;
use super::history::{Measure, Trend};
use super::sample::MachineSample;
use super::status::DaemonStatus;
use super::task::TaskId;

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Stats {
    /// Who answers.
    pub daemon: DaemonStatus,
    /// The worker pool.
    pub pool: PoolStats,
    /// Results that need not be made again.
    pub cache: CacheStats,
    /// The machine; `null` until it was looked at.
    pub resources: Option<Resources>,
    /// Who makes the pool larger and smaller.
    pub scaler: ScalerStats,
    /// What runs.
    pub processes: ProcessStats,
    /// From where on the machine counts as busy.
    pub thresholds: Thresholds,
    /// What commands have come to since the supervisor's start.
    pub performance: Performance,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Resources {
    /// As it was seen last.
    #[serde(flatten)]
    pub machine: MachineSample,
    /// What became of it over the last day, as far as that is known.
    pub trends: BTreeMap<Measure, Trend>,
}

/// The worker pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct PoolStats {
    /// Workers, those that are to go included.
    pub workers: usize,
    /// Of these, those that run something.
    pub busy: usize,
    /// So many are wanted.
    pub wanted: u32,
    /// So many at least.
    pub min: u32,
    /// And at most.
    pub max: u32,
    /// Tasks that wait for a worker.
    pub queued: usize,
    /// So many may.
    pub queue: usize,
    /// Tasks that wait to be run again.
    pub retrying: usize,
}

/// Results that need not be made again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct CacheStats {
    /// Results that are kept.
    pub entries: usize,
    /// So many may be.
    pub max_entries: usize,
    /// Their bytes.
    pub bytes: u64,
    /// So many may be kept.
    pub max_bytes: u64,
    /// Asked for, and here.
    pub hits: u64,
    /// Asked for, and not here.
    pub misses: u64,
    /// Asked for while it was being made.
    pub joined: u64,
    /// Of all that were asked for, those that were not run: 0 to 1.
    pub hit_rate: f64,
    /// Dropped for want of room.
    pub evictions: u64,
    /// Dropped since their time was over.
    pub expirations: u64,
}

/// Who makes the pool larger and smaller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ScalerStats {
    /// Whether it does so by itself.
    pub auto: bool,
    /// What it did last, and why.
    pub last: Option<String>,
    /// Services whose copies it counts.
    #[serde(default)]
    pub services: Vec<ServiceScale>,
}

/// A service that is scaled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ServiceScale {
    /// Which.
    pub service: Name,
    /// So many copies there are.
    pub replicas: u32,
    /// So many at least.
    pub min: u32,
    /// And at most.
    pub max: u32,
    /// What was done last, and why.
    pub last: Option<String>,
}

/// What runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ProcessStats {
    /// Instances of services.
    pub instances: usize,
    /// Of these, those that have a process.
    pub running: usize,
    /// Tasks that run.
    pub tasks: usize,
}

/// From where on the machine counts as busy: percent, and load for each core.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Thresholds {
    /// Above this there is one worker fewer, and new commands get a lower priority.
    pub cpu: f64,
    /// Above this there is one worker fewer.
    pub memory: f64,
    /// Below this there may be one more.
    pub cpu_low: f64,
    /// The same of memory.
    pub memory_low: f64,
    /// A file system that is fuller than this is said to be full.
    pub disk: f64,
    /// A load for each core above this is said to be high.
    pub load: f64,
    /// Those that the machine is above, in words.
    pub exceeded: Vec<String>,
}

impl Thresholds {
    /// What of the machine is above them, in words.
    pub fn exceeded_by(&self, machine: Option<&MachineSample>) -> Vec<String> {
        let Some(machine) = machine else {
            return Vec::new();
        };
        let above = |what: &str, value: f64, most: f64| {
            (value > most).then(|| format!("{what} at {value:.0} %, above {most:.0} %"))
        };
        let cpu = machine.cpu_percent.and_then(|cpu| above("CPU", cpu, self.cpu));
        let memory = above("memory", machine.memory_percent(), self.memory);
        let disks = machine
            .disks
            .iter()
            .filter_map(|disk| above(&format!("disk {}", disk.mount), disk.used_percent, self.disk));
        let load = machine.load_per_core();
        let load = (load > self.load).then(|| format!("load at {load:.2} a core, above {:.2}", self.load));
        cpu.into_iter().chain(memory).chain(disks).chain(load).collect()
    }
}

/// What commands have come to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Performance {
    /// Tasks that are over and were run.
    pub executions: u64,
    /// Of these, those that were no success.
    pub failures: u64,
    /// The others, of all: 0 to 1; `null` while there are none.
    pub success_rate: Option<f64>,
    /// How long they took, in seconds: the median.
    pub p50_s: f64,
    /// Nine of ten took no longer.
    pub p90_s: f64,
    /// Ninety-nine of a hundred took no longer.
    pub p99_s: f64,
    /// The longest.
    pub max_s: f64,
    /// All of them together.
    pub mean_s: f64,
    /// Those that took longest, the longest first.
    pub slowest: Vec<SlowCommand>,
}

/// A command that took long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct SlowCommand {
    /// Which.
    pub id: TaskId,
    /// What it was.
    pub command: String,
    /// How long it took.
    pub duration_s: f64,
}
