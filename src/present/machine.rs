//! Readings of the machine in words.

use super::units::percent;
use crate::model::sample::MachineSample;
use crate::model::stats::Thresholds;

/// The thresholds that a reading of the machine exceeds, in words; none without a reading.
pub fn exceeded(thresholds: &Thresholds, machine: Option<&MachineSample>) -> Vec<String> {
    let Some(machine) = machine else {
        return Vec::new();
    };
    let above = |what: &str, value: f64, most: f64| {
        (value > most).then(|| format!("{what} at {}, above {}", percent(value), percent(most)))
    };
    let cpu = machine.cpu_percent.and_then(|cpu| above("CPU", cpu, thresholds.cpu));
    let memory = above("memory", machine.memory_percent(), thresholds.memory);
    let disks = machine
        .disks
        .iter()
        .filter_map(|disk| above(&format!("disk {}", disk.mount), disk.used_percent, thresholds.disk));
    let (load, most) = (machine.load_per_core(), thresholds.load);
    let load = (load > most).then(|| format!("load at {load:.2} per core, above {most:.2}"));
    cpu.into_iter().chain(memory).chain(disks).chain(load).collect()
}
