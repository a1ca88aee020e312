//! The configuration of the worker pool: its size, what is kept of finished commands, the cache of
//! results, and the thresholds at which the machine counts as busy.

use std::time::Duration;

use serde::Deserialize;

use super::super::size::Size;
use super::Span;
use crate::decide::cache::CacheLimits;
use crate::decide::pool;
use crate::decide::scaler::ScalePolicy;

/// The configuration of the worker pool and its cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TasksConfig {
    /// The number of workers, and of commands that may wait.
    pub pool: pool::PoolSize,
    /// Whether the pool scales by itself.
    pub auto: bool,
    /// The bytes of each output stream of a command that are held in memory.
    pub memory: u64,
    /// The bytes of each output stream of a command that are kept at all.
    pub output: u64,
    /// The number of finished commands that are kept ...
    pub kept: usize,
    /// ... and how long each is kept.
    pub kept_for: Duration,
    /// The size of the cache of results that need not be made again.
    pub cache: CacheLimits,
    /// Whether the cache outlives the daemon, in its store.
    pub cache_persists: bool,
    /// The thresholds at which the pool gets one worker fewer or one more.
    pub scale: ScalePolicy,
    /// The use of a file system above which it is reported as full, in percent.
    pub disk_full: f64,
    /// The load of each core above which the load is reported as high.
    pub load_high: f64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PoolKeys {
    min: Option<Workers>,
    max: Option<Workers>,
    queue: Option<usize>,
    auto: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TaskKeys {
    memory: Option<Size>,
    output: Option<Size>,
    keep: Option<usize>,
    keep_for: Option<Span>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CacheKeys {
    entries: Option<usize>,
    size: Option<Size>,
    persist: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ThresholdKeys {
    cpu: Option<Percent>,
    cpu_low: Option<Percent>,
    memory: Option<Percent>,
    memory_low: Option<Percent>,
    waiting: Option<usize>,
    disk: Option<Percent>,
    load: Option<Load>,
}

// These types are checked where they are read, so that a fault names its line.

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "i64")]
struct Workers(u32);

impl TryFrom<i64> for Workers {
    type Error = String;

    fn try_from(number: i64) -> Result<Workers, String> {
        let fits = u32::try_from(number).ok().filter(|number| (1..=pool::MOST_WORKERS).contains(number));
        fits.map(Workers).ok_or_else(|| format!("a pool has from 1 to {} workers", pool::MOST_WORKERS))
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "f64")]
struct Percent(f64);

impl TryFrom<f64> for Percent {
    type Error = &'static str;

    fn try_from(number: f64) -> Result<Percent, &'static str> {
        Some(number)
            .filter(|number| (0.0..=100.0).contains(number))
            .map(Percent)
            .ok_or("a percentage is from 0 to 100")
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "f64")]
struct Load(f64);

impl TryFrom<f64> for Load {
    type Error = &'static str;

    fn try_from(number: f64) -> Result<Load, &'static str> {
        Some(number)
            .filter(|number| number.is_finite() && *number > 0.0)
            .map(Load)
            .ok_or("a load must be above 0")
    }
}

pub(super) fn complete(
    pool: &PoolKeys,
    tasks: &TaskKeys,
    cache: &CacheKeys,
    thresholds: &ThresholdKeys,
) -> Result<TasksConfig, String> {
    let usual = ScalePolicy::default();
    let workers = |written: Option<Workers>, usual: u32| written.map_or(usual, |Workers(number)| number);
    let (min, max) = (workers(pool.min, usual.min), workers(pool.max, usual.max));
    if min > max {
        return Err(format!("min in [pool] is above max: {min} and {max}"));
    }
    let percent = |written: Option<Percent>, usual: f64| written.map_or(usual, |Percent(number)| number);
    let cpu_high = percent(thresholds.cpu, usual.cpu_high);
    let cpu_low = percent(thresholds.cpu_low, usual.cpu_low);
    let memory_high = percent(thresholds.memory, usual.memory_high);
    let memory_low = percent(thresholds.memory_low, usual.memory_low);
    for (name, low, high) in [("cpu", cpu_low, cpu_high), ("memory", memory_low, memory_high)] {
        if low > high {
            return Err(format!("{name}_low in [thresholds] is above {name}: {low} and {high}"));
        }
    }
    let bytes = |size: &Option<Size>, usual: u64| size.as_ref().map_or(usual, |size| size.0);
    Ok(TasksConfig {
        pool: pool::PoolSize { min, max, queue: pool.queue.unwrap_or(10_000) },
        auto: pool.auto.unwrap_or(true),
        memory: bytes(&tasks.memory, 64 << 10),
        output: bytes(&tasks.output, 1 << 30),
        kept: tasks.keep.unwrap_or(1_000),
        kept_for: tasks.keep_for.map_or(Duration::from_secs(3600), |span| span.0),
        cache: CacheLimits { entries: cache.entries.unwrap_or(2_000), bytes: bytes(&cache.size, 256 << 20) },
        cache_persists: cache.persist,
        scale: ScalePolicy {
            min,
            max,
            cpu_high,
            cpu_low,
            memory_high,
            memory_low,
            waiting: thresholds.waiting.unwrap_or(usual.waiting),
            ..usual
        },
        disk_full: percent(thresholds.disk, 95.0),
        load_high: thresholds.load.map_or(0.8, |Load(number)| number),
    })
}
