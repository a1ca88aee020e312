//! What was measured over the last day: points in time, and what they come to.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::time::rfc3339;

/// A quantity that is measured again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Of the machine 0 to 100; of an instance 100 is one core.
    CpuPercent,
    /// Of the machine: memory in use, 0 to 100.
    MemoryPercent,
    /// Of an instance: resident memory of its tree.
    MemoryBytes,
    /// Of the machine: swap in use, 0 to 100.
    SwapPercent,
    /// Of the machine: load of a minute for each core.
    LoadPerCore,
    /// Of the machine: its fullest file system, 0 to 100.
    DiskPercent,
    /// Of the machine: read of all disks.
    DiskReadBytesPerS,
    /// Written to all disks.
    DiskWrittenBytesPerS,
    /// Taken in by all networks but the loopback.
    ReceivedBytesPerS,
    /// Given out.
    SentBytesPerS,
    /// Work that stood still for want of a core, 0 to 100.
    CpuPressurePercent,
    /// For want of memory.
    MemoryPressurePercent,
    /// For want of input or output.
    IoPressurePercent,
    /// Of an instance: processes in its tree.
    Processes,
}

/// What was measured in a while.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Level {
    /// On the average.
    pub mean: f64,
    /// At its highest.
    pub peak: f64,
}

/// A while, and what was measured in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct HistoryPoint {
    /// When it began.
    #[serde(with = "rfc3339")]
    #[cfg_attr(feature = "control", schemars(with = "String"))]
    pub at: SystemTime,
    /// So many samples are in it.
    pub samples: u32,
    /// What could be measured.
    pub levels: BTreeMap<Measure, Level>,
}

/// What became of one quantity.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Trend {
    /// On the average.
    pub average: f64,
    /// At its highest.
    pub peak: f64,
    /// When that was.
    #[serde(with = "rfc3339")]
    #[cfg_attr(feature = "control", schemars(with = "String"))]
    pub peak_at: SystemTime,
    /// How much it grows in an hour: that of the straight line which fits best (least squares); `null`
    /// while there is too little for a line.
    pub slope_per_hour: Option<f64>,
}

/// What was measured of the machine or of an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ResourceHistory {
    /// Of which instance; `null`: of the machine.
    pub of: Option<String>,
    /// How long a point is, in seconds.
    pub step_s: f64,
    /// What the points come to.
    pub trends: BTreeMap<Measure, Trend>,
    /// Oldest first.
    pub points: Vec<HistoryPoint>,
}
