//! Readings for the ResourceMonitor: the machine by sysinfo, trees of processes by one walk
//! over `/proc`.

use std::collections::HashMap;
use std::time::Duration;

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use super::proc;
use crate::model::InstanceId;
use crate::model::sample::{MachineSample, Sample, Usage};

/// Reads, and remembers what it read: CPU is a difference between two readings.
pub struct Sampler {
    /// `None` where the machine can't be read.
    system: Option<System>,
    rounds: u64,
    /// Ticks of each process at the last reading, by pid and start.
    ticks: HashMap<(u32, u64), u64>,
    last: Option<Duration>,
    ticks_per_second: f64,
    page: u64,
}

impl Default for Sampler {
    fn default() -> Sampler {
        Sampler::new()
    }
}

impl Sampler {
    /// Nothing read yet.
    pub fn new() -> Sampler {
        let sysconf = |name| nix::unistd::sysconf(name).ok().flatten().and_then(|n| u64::try_from(n).ok());
        Sampler {
            system: System::new_with_specifics(RefreshKind::nothing()).ok(),
            rounds: 0,
            ticks: HashMap::new(),
            last: None,
            ticks_per_second: sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap_or(100) as f64,
            page: sysconf(nix::unistd::SysconfVar::PAGE_SIZE).unwrap_or(4096),
        }
    }

    /// One round. `leaders`: each instance's process. It reads all of `/proc` and takes
    /// milliseconds: not for a thread that others wait for.
    pub fn read(&mut self, now: Duration, leaders: &HashMap<u32, InstanceId>) -> Sample {
        let machine = self.machine();
        let stats = proc::all();
        let elapsed = self.last.map(|last| now.saturating_sub(last).as_secs_f64()).filter(|s| *s > 0.0);
        let parents: HashMap<u32, u32> = stats.iter().map(|s| (s.pid, s.parent)).collect();
        let mut ticks = HashMap::new();
        let mut used: HashMap<InstanceId, (u64, u64, u32)> = HashMap::new();
        for stat in &stats {
            let Some(instance) = tree_of(stat, leaders, &parents) else {
                continue;
            };
            let id = (stat.pid, stat.started);
            // Of a process that is new since the last reading all its time is of this round.
            let before = self.ticks.get(&id).copied().unwrap_or(0);
            ticks.insert(id, stat.ticks);
            let entry = used.entry(instance.clone()).or_default();
            entry.0 += stat.ticks.saturating_sub(before);
            entry.1 += stat.pages * self.page;
            entry.2 += 1;
        }
        self.ticks = ticks;
        self.last = Some(now);
        let instances = used
            .into_iter()
            .map(|(instance, (ticks, memory_bytes, processes))| {
                let percent = |seconds| ticks as f64 / self.ticks_per_second / seconds * 100.0;
                (instance, Usage { cpu_percent: elapsed.map(percent), memory_bytes, processes })
            })
            .collect();
        Sample { at: now, machine, instances }
    }

    fn machine(&mut self) -> MachineSample {
        let Some(system) = &mut self.system else {
            return MachineSample::default();
        };
        let kinds = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_usage())
            .with_memory(MemoryRefreshKind::everything());
        system.refresh_specifics(kinds);
        self.rounds += 1;
        let load = System::load_average().map_or([0.0; 3], |load| [load.one, load.five, load.fifteen]);
        MachineSample {
            cpu_percent: (self.rounds > 1).then(|| f64::from(system.global_cpu_usage())),
            cores: system.cpus().len(),
            memory_total_bytes: system.total_memory(),
            memory_used_bytes: system.used_memory(),
            swap_used_bytes: system.used_swap(),
            load,
        }
    }
}

/// The instance whose tree a process belongs to: by its session or group, or by a parent.
fn tree_of<'a>(
    stat: &proc::Stat,
    leaders: &'a HashMap<u32, InstanceId>,
    parents: &HashMap<u32, u32>,
) -> Option<&'a InstanceId> {
    let direct = leaders.get(&stat.session).or_else(|| leaders.get(&stat.group));
    if direct.is_some() {
        return direct;
    }
    let mut pid = stat.pid;
    // A parent's number can be stale and lead in a circle; trees are not that deep.
    for _ in 0..64 {
        if let Some(instance) = leaders.get(&pid) {
            return Some(instance);
        }
        pid = *parents.get(&pid)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;

    #[test]
    fn a_tree_is_measured_with_its_children() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "echo up; read x; exit 0"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        let id = InstanceId::sole(Name::new("sh").unwrap());
        let leaders = HashMap::from([(child.id(), id.clone())]);
        let mut sampler = Sampler::new();
        let first = sampler.read(Duration::from_secs(1), &leaders);
        assert_eq!(first.instances[&id].processes, 1);
        assert_eq!(first.instances[&id].cpu_percent, None, "one reading tells no rate");
        assert!(first.instances[&id].memory_bytes > 0);
        assert!(first.machine.memory_total_bytes > first.machine.memory_used_bytes);
        let second = sampler.read(Duration::from_secs(2), &leaders);
        let cpu = second.instances[&id].cpu_percent.unwrap();
        assert!((0.0..=100.0).contains(&cpu), "{cpu}");
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!sampler.read(Duration::from_secs(3), &leaders).instances.contains_key(&id));
    }
}
