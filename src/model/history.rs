//! The measurements of the last day: points in time and the trends they form.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::time::rfc3339;

/// A quantity that is measured regularly, of the machine or of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// CPU time. Of the machine: 0 to 100. Of an instance: 100 is one core.
    CpuPercent,
    /// Memory in use, of the machine, 0 to 100.
    MemoryPercent,
    /// Resident memory of an instance's process tree.
    MemoryBytes,
    /// Swap in use, of the machine, 0 to 100.
    SwapPercent,
    /// The load average of the last minute divided by the number of cores, of the machine.
    LoadPerCore,
    /// The use of the fullest file system, of the machine, 0 to 100.
    DiskPercent,
    /// Bytes a second read from all disks of the machine.
    DiskReadBytesPerS,
    /// Bytes a second written to all disks of the machine.
    DiskWrittenBytesPerS,
    /// Bytes a second received on all network interfaces but the loopback.
    ReceivedBytesPerS,
    /// Bytes a second sent on all network interfaces but the loopback.
    SentBytesPerS,
    /// The share of time in which some work waited for a core, 0 to 100.
    CpuPressurePercent,
    /// The share of time in which some work waited for memory, 0 to 100.
    MemoryPressurePercent,
    /// The share of time in which some work waited for input or output, 0 to 100.
    IoPressurePercent,
    /// The number of processes in an instance's tree.
    Processes,
}

/// The values of one measure within one point.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Level {
    /// The mean of the samples.
    pub mean: f64,
    /// The highest sample.
    pub peak: f64,
}

/// The measurements of one step of time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct HistoryPoint {
    /// The time at which the step began.
    #[serde(with = "rfc3339")]
    #[cfg_attr(feature = "control", schemars(with = "String"))]
    pub at: SystemTime,
    /// The number of samples in the point.
    pub samples: u32,
    /// The level of each measure; one that could not be measured is missing.
    pub levels: BTreeMap<Measure, Level>,
}

/// The course of one measure over all points.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Trend {
    /// The mean over all points.
    pub average: f64,
    /// The highest sample.
    pub peak: f64,
    /// The time of the peak.
    #[serde(with = "rfc3339")]
    #[cfg_attr(feature = "control", schemars(with = "String"))]
    pub peak_at: SystemTime,
    /// The growth in an hour: the slope of the straight line that fits best (least squares). `null`
    /// while there are too few points for a line.
    pub slope_per_hour: Option<f64>,
}

/// The history of the machine or of one instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ResourceHistory {
    /// The instance; `null` for the machine.
    pub of: Option<String>,
    /// The length of a point, in seconds.
    pub step_s: f64,
    /// The trend of each measure.
    pub trends: BTreeMap<Measure, Trend>,
    /// The points, the oldest first.
    pub points: Vec<HistoryPoint>,
}
