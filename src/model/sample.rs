//! Readings of the machine and of process trees. Samples travel apart from events: the latest one
//! counts, and a lost one does no harm.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::id::InstanceId;

/// What one process tree uses.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Usage {
    /// CPU time between the last two samples; 100 is one core. `None` until there are two samples.
    pub cpu_percent: Option<f64>,
    /// Resident memory of all processes in the tree.
    pub memory_bytes: u64,
    /// The number of processes in the tree.
    pub processes: u32,
}

/// A reading of the whole machine. Rates cover the time between the last two samples and are
/// `None` until there are two.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct MachineSample {
    /// CPU use of all cores together, 0 to 100; `None` until there are two samples.
    pub cpu_percent: Option<f64>,
    /// The number of cores.
    pub cores: usize,
    /// One reading for each core.
    #[serde(default)]
    pub per_core: Vec<CoreSample>,
    /// Physical memory in all.
    pub memory_total_bytes: u64,
    /// Memory that is not available to new processes.
    pub memory_used_bytes: u64,
    /// Swap space in all.
    #[serde(default)]
    pub swap_total_bytes: u64,
    /// Swap space in use.
    pub swap_used_bytes: u64,
    /// Load averages over 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// The file systems on disks; each device once, by its shortest mount point.
    #[serde(default)]
    pub disks: Vec<DiskSample>,
    /// The network interfaces, sorted by name.
    #[serde(default)]
    pub networks: Vec<NetworkSample>,
    /// How long work waited for CPU, memory or I/O; `None` where the kernel doesn't report it
    /// (Documentation/accounting/psi.rst).
    #[serde(default)]
    pub pressure: Option<Pressure>,
    /// What could not be read this time, and why; the fields concerned hold an earlier reading.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
}

impl MachineSample {
    /// Memory in use, 0 to 100.
    pub fn memory_percent(&self) -> f64 {
        percent(self.memory_used_bytes, self.memory_total_bytes)
    }

    /// The load average of the last minute divided by the number of cores.
    pub fn load_per_core(&self) -> f64 {
        self.load[0] / self.cores.max(1) as f64
    }

    /// The file system with the highest use; `None` when there is none.
    pub fn fullest(&self) -> Option<&DiskSample> {
        self.disks.iter().max_by(|one, other| one.used_percent.total_cmp(&other.used_percent))
    }
}

/// `part` as a percentage of `whole`, 0 to 100; 0 when `whole` is 0.
pub fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 * 100.0 }
}

/// A reading of one core.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct CoreSample {
    /// CPU use of the core, 0 to 100; `None` until there are two samples.
    pub cpu_percent: Option<f64>,
    /// The frequency of the core; `None` where the kernel doesn't report it.
    pub frequency_mhz: Option<u64>,
}

/// A reading of one file system.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct DiskSample {
    /// The mount point.
    pub mount: String,
    /// The mounted device.
    pub device: String,
    /// The type of the file system, such as `ext4`.
    pub file_system: String,
    /// The size of the file system.
    pub total_bytes: u64,
    /// The space that is not available to users other than root.
    pub used_bytes: u64,
    /// `used_bytes` as a percentage of `total_bytes`, 0 to 100.
    pub used_percent: f64,
    /// The read rate of the device; `None` while it is unknown.
    pub read_bytes_per_s: Option<f64>,
    /// The write rate of the device; `None` while it is unknown.
    pub written_bytes_per_s: Option<f64>,
}

/// A reading of one network interface.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct NetworkSample {
    /// The name of the interface.
    pub interface: String,
    /// The receive rate; `None` until there are two samples.
    pub received_bytes_per_s: Option<f64>,
    /// The send rate; `None` until there are two samples.
    pub sent_bytes_per_s: Option<f64>,
    /// Faulty packets in both directions since the machine booted.
    pub errors: u64,
}

/// The percentage of the last ten seconds in which some work waited for a resource.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Pressure {
    /// Waiting for a core.
    pub cpu_percent: f64,
    /// Waiting for memory.
    pub memory_percent: f64,
    /// Waiting for input or output.
    pub io_percent: f64,
}

/// One reading of the ResourceMonitor.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// The time of the reading, since the supervisor's start.
    pub at: Duration,
    /// The reading of the machine.
    pub machine: MachineSample,
    /// The usage of every instance that has a process.
    pub instances: HashMap<InstanceId, Usage>,
}
