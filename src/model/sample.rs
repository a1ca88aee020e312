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

/// What the machine as a whole does. Rates are of the time between the last two samples, and `None` until
/// there are two.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct MachineSample {
    /// All cores together, 0 to 100; `None` until there are two readings.
    pub cpu_percent: Option<f64>,
    /// Number of cores.
    pub cores: usize,
    /// Each core.
    #[serde(default)]
    pub per_core: Vec<CoreSample>,
    /// Physical memory.
    pub memory_total_bytes: u64,
    /// Memory that is not available to new processes.
    pub memory_used_bytes: u64,
    /// Swap that there is.
    #[serde(default)]
    pub swap_total_bytes: u64,
    /// Swap in use.
    pub swap_used_bytes: u64,
    /// Load averages over 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// File systems on disks, by where they are mounted; each once.
    #[serde(default)]
    pub disks: Vec<DiskSample>,
    /// Network interfaces.
    #[serde(default)]
    pub networks: Vec<NetworkSample>,
    /// How long work has stood still for want of something; `None` where the kernel does not tell
    /// (Documentation/accounting/psi.rst).
    #[serde(default)]
    pub pressure: Option<Pressure>,
    /// What could not be read this time, and why; what is said of it here is of an earlier reading.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
}

impl MachineSample {
    /// Memory in use, 0 to 100.
    pub fn memory_percent(&self) -> f64 {
        percent(self.memory_used_bytes, self.memory_total_bytes)
    }

    /// Load of the last minute for each core.
    pub fn load_per_core(&self) -> f64 {
        self.load[0] / self.cores.max(1) as f64
    }

    /// The file system with the least room.
    pub fn fullest(&self) -> Option<&DiskSample> {
        self.disks.iter().max_by(|one, other| one.used_percent.total_cmp(&other.used_percent))
    }
}

/// So much of so much, 0 to 100.
pub fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 * 100.0 }
}

/// One core.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct CoreSample {
    /// 0 to 100; `None` until there are two readings.
    pub cpu_percent: Option<f64>,
    /// Its frequency; `None` where the kernel does not tell.
    pub frequency_mhz: Option<u64>,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct DiskSample {
    /// Where it is mounted.
    pub mount: String,
    /// What is mounted there.
    pub device: String,
    /// Of which kind it is.
    pub file_system: String,
    /// How large it is.
    pub total_bytes: u64,
    /// What others than root can't have of it any more.
    pub used_bytes: u64,
    /// That of all, 0 to 100.
    pub used_percent: f64,
    /// Read of its device.
    pub read_bytes_per_s: Option<f64>,
    /// Written to it.
    pub written_bytes_per_s: Option<f64>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct NetworkSample {
    /// Its name.
    pub interface: String,
    /// Taken in.
    pub received_bytes_per_s: Option<f64>,
    /// Given out.
    pub sent_bytes_per_s: Option<f64>,
    /// Packets that were faulty, both ways, since the machine came up.
    pub errors: u64,
}

/// Of the last ten seconds, the percentage in which some work stood still for want of something.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Pressure {
    /// For want of a core.
    pub cpu_percent: f64,
    /// For want of memory.
    pub memory_percent: f64,
    /// For want of input or output.
    pub io_percent: f64,
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
