//! How commands are run: the pool, what is kept of them, the cache, and when the machine is busy.

use std::time::Duration;

use serde::Deserialize;

use super::super::size::Size;
use super::Span;
use crate::decide::cache::Bounds;
use crate::decide::pool;
use crate::decide::scaler::ScalePolicy;

/// All of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TasksConfig {
    /// Workers, and commands that may wait.
    pub pool: pool::Size,
    /// Whether the pool scales by itself.
    pub auto: bool,
    /// Bytes of each stream of a command's output that are held in memory.
    pub memory: u64,
    /// Bytes of each that are kept at all.
    pub output: u64,
    /// So many finished ones are kept ...
    pub kept: usize,
    /// ... and for so long.
    pub kept_for: Duration,
    /// Results that need not be made again.
    pub cache: Bounds,
    /// Whether these outlive the daemon, in its store.
    pub cache_persists: bool,
    /// When there is one worker fewer, and one more.
    pub scale: ScalePolicy,
    /// Percent above which a file system is said to be full.
    pub disk_full: f64,
    /// Load of a core above which it is said to be high.
    pub load_high: f64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PoolKeys {
    min: Option<u32>,
    max: Option<u32>,
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
    cpu: Option<f64>,
    cpu_low: Option<f64>,
    memory: Option<f64>,
    memory_low: Option<f64>,
    waiting: Option<usize>,
    disk: Option<f64>,
    load: Option<f64>,
}

/// The largest pool.
const MOST_WORKERS: u32 = 1_000;

pub(super) fn complete(
    pool: &PoolKeys,
    tasks: &TaskKeys,
    cache: &CacheKeys,
    thresholds: &ThresholdKeys,
) -> Result<TasksConfig, String> {
    let usual = ScalePolicy::default();
    let (min, max) = (pool.min.unwrap_or(usual.min), pool.max.unwrap_or(usual.max));
    if min == 0 || min > max || max > MOST_WORKERS {
        return Err(format!(
            "[pool] must have from 1 to {MOST_WORKERS} workers, and min not above max: {min} to {max}"
        ));
    }
    let percent = |name: &str, value: Option<f64>, usual: f64| {
        let value = value.unwrap_or(usual);
        match (0.0..=100.0).contains(&value) {
            true => Ok(value),
            false => Err(format!("{name} in [thresholds] is a percentage, from 0 to 100: {value}")),
        }
    };
    let (cpu_high, cpu_low) = (
        percent("cpu", thresholds.cpu, usual.cpu_high)?,
        percent("cpu_low", thresholds.cpu_low, usual.cpu_low)?,
    );
    let memory_high = percent("memory", thresholds.memory, usual.memory_high)?;
    let memory_low = percent("memory_low", thresholds.memory_low, usual.memory_low)?;
    for (name, low, high) in [("cpu", cpu_low, cpu_high), ("memory", memory_low, memory_high)] {
        if low > high {
            return Err(format!("{name}_low in [thresholds] is above {name}: {low} and {high}"));
        }
    }
    let load_high = thresholds.load.unwrap_or(0.8);
    if !load_high.is_finite() || load_high <= 0.0 {
        return Err(format!("load in [thresholds] must be above 0: {load_high}"));
    }
    let bytes = |size: &Option<Size>, usual: u64| size.as_ref().map_or(usual, |size| size.0);
    Ok(TasksConfig {
        pool: pool::Size { min, max, queue: pool.queue.unwrap_or(10_000) },
        auto: pool.auto.unwrap_or(true),
        memory: bytes(&tasks.memory, 64 << 10),
        output: bytes(&tasks.output, 1 << 30),
        kept: tasks.keep.unwrap_or(1_000),
        kept_for: tasks.keep_for.map_or(Duration::from_secs(3600), |span| span.0),
        cache: Bounds { entries: cache.entries.unwrap_or(2_000), bytes: bytes(&cache.size, 256 << 20) },
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
        disk_full: percent("disk", thresholds.disk, 95.0)?,
        load_high,
    })
}
