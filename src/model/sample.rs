//! Readings of the machine and of process trees. Samples travel apart from events:
//! the latest wins, a missed one is not missed.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::id::InstanceId;

/// What one tree of processes uses.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Usage {
    /// CPU over the time between the last two samples; 100 is one core. `None` until
    /// there are two.
    pub cpu_percent: Option<f64>,
    /// Resident memory of all its processes.
    pub memory_bytes: u64,
    /// How many processes it has.
    pub processes: u32,
}

/// What the machine as a whole does.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct MachineSample {
    /// All cores together, 0 to 100; `None` until there are two readings.
    pub cpu_percent: Option<f64>,
    /// Number of cores.
    pub cores: usize,
    /// Physical memory.
    pub memory_total_bytes: u64,
    /// Memory that is not available to new processes.
    pub memory_used_bytes: u64,
    /// Swap in use.
    pub swap_used_bytes: u64,
    /// Load averages over 1, 5 and 15 minutes.
    pub load: [f64; 3],
}

/// One round of the ResourceMonitor.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// When, since the supervisor's start.
    pub at: Duration,
    /// The machine.
    pub machine: MachineSample,
    /// Every instance that has a process.
    pub instances: HashMap<InstanceId, Usage>,
}
