//! Readings for the ResourceMonitor: the machine, and every managed tree of processes.
//!
//! A tree consists of its leader's session, process group and descendants. `/proc` is listed once
//! per round. The `stat` file of a managed process stays open between rounds while descriptors can
//! be spared: that saves opening it again, and an open file is never taken for a later process with
//! the same pid.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::machine::Machine;
use crate::model::InstanceId;
use crate::model::sample::{Sample, Usage};
use crate::sys::{limits, proc};

/// How many parents a search goes up. A parent's pid can be stale and lead in a circle; trees are
/// not this deep.
const DEEPEST: usize = 64;

/// The share of this process's descriptors that may stay open for `stat` files: one in this many.
const SHARE: u64 = 8;

/// Reads processes, and remembers the previous reading: CPU usage is the difference between two.
pub struct Sampler {
    machine: Machine,
    /// The processes of the managed trees at the last reading, by pid.
    known: HashMap<u32, Known>,
    last: Option<Duration>,
    /// When the last reading was taken, in clock ticks since boot.
    boot_ticks: u64,
    ticks_per_second: f64,
    page: u64,
    /// How many files may stay open between rounds.
    spare: usize,
}

/// A process of a managed tree, as it was at the last reading.
struct Known {
    /// The open `stat` file. `None` when no descriptor could be spared.
    file: Option<File>,
    stat: proc::Stat,
    of: InstanceId,
}

impl Default for Sampler {
    fn default() -> Sampler {
        Sampler::new()
    }
}

impl Sampler {
    /// A sampler that has read nothing yet.
    pub fn new() -> Sampler {
        let sysconf = |name| nix::unistd::sysconf(name).ok().flatten().and_then(|n| u64::try_from(n).ok());
        Sampler {
            machine: Machine::new(),
            known: HashMap::new(),
            last: None,
            boot_ticks: 0,
            ticks_per_second: sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap_or(100) as f64,
            page: sysconf(nix::unistd::SysconfVar::PAGE_SIZE).unwrap_or(4096),
            spare: usize::try_from(limits::open_files() / SHARE).unwrap_or(usize::MAX),
        }
    }

    /// Takes one reading. `leaders` names the process of each instance. This reads all of `/proc` and
    /// takes milliseconds, so no thread that others wait for may call it.
    pub fn read(&mut self, now: Duration, leaders: &HashMap<u32, InstanceId>) -> Sample {
        let machine = self.machine.read(now);
        let instances = self.trees(now, leaders);
        Sample { at: now, machine, instances }
    }

    /// The resource usage of every managed tree.
    pub fn trees(&mut self, now: Duration, leaders: &HashMap<u32, InstanceId>) -> HashMap<InstanceId, Usage> {
        let elapsed = self.last.map(|last| now.saturating_sub(last).as_secs_f64()).filter(|s| *s > 0.0);
        let mut before = std::mem::take(&mut self.known);
        let mut open = 0;
        let mut fresh: Vec<(proc::Stat, Option<File>)> = Vec::new();
        for pid in proc::pids() {
            // The open file of a process that is gone fails to read. Another process may have its pid
            // by now.
            if let Some(Known { file: Some(file), of, .. }) = before.get(&pid)
                && let Some(stat) = read_at_start(file)
            {
                let of = of.clone();
                let file = before.get_mut(&pid).and_then(|known| known.file.take());
                open += 1;
                self.known.insert(pid, Known { file, stat, of });
            } else if let Ok(file) = File::open(format!("/proc/{pid}/stat"))
                && let Some(stat) = read_at_start(&file)
            {
                // Most processes of a machine are in no managed tree, and their files are closed. This
                // test finds nearly all that are in one.
                let managed = [stat.pid, stat.session, stat.group].iter().any(|id| leaders.contains_key(id));
                let file = (managed && open < self.spare).then_some(file);
                open += usize::from(file.is_some());
                fresh.push((stat, file));
            }
        }
        let mut parents: HashMap<u32, u32> = fresh.iter().map(|(stat, _)| (stat.pid, stat.parent)).collect();
        parents.extend(self.known.iter().map(|(pid, known)| (*pid, known.stat.parent)));
        for (stat, file) in fresh {
            let same = before.get(&stat.pid).filter(|known| known.stat.started == stat.started);
            let of = tree_of(&stat, leaders, &parents).or_else(|| same.map(|known| &known.of));
            if let Some(of) = of.cloned() {
                self.known.insert(stat.pid, Known { file, stat, of });
            }
        }
        let live: HashSet<&InstanceId> = leaders.values().collect();
        self.known.retain(|_, known| live.contains(&known.of));
        let ticks = used(&before, &self.known, self.boot_ticks);
        (self.last, self.boot_ticks) = (Some(now), (since_boot() * self.ticks_per_second) as u64);
        let mut trees: HashMap<InstanceId, Usage> = HashMap::new();
        for known in self.known.values() {
            let usage = trees.entry(known.of.clone()).or_default();
            usage.memory_bytes += known.stat.pages * self.page;
            usage.processes += 1;
        }
        for (instance, usage) in &mut trees {
            let ticks = ticks.get(instance).copied().unwrap_or(0) as f64;
            usage.cpu_percent = elapsed.map(|seconds| ticks / self.ticks_per_second / seconds * 100.0);
        }
        trees
    }
}

fn since_boot() -> f64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.map_or(0.0, |now| Duration::from(now).as_secs_f64())
}

fn read_at_start(file: &File) -> Option<proc::Stat> {
    let mut buffer = [0u8; 1024];
    let length = file.read_at(&mut buffer, 0).ok()?;
    proc::parse(&buffer[..length])
}

/// The CPU ticks that each tree has used since the previous reading.
///
/// When a process is waited for, its ticks are added to its parent's. The part that an earlier
/// reading counted already is not counted again.
fn used(before: &HashMap<u32, Known>, now: &HashMap<u32, Known>, last: u64) -> HashMap<InstanceId, u64> {
    let same = |pid: u32, started: u64| before.get(&pid).filter(|known| known.stat.started == started);
    let mut ticks: HashMap<InstanceId, u64> = HashMap::new();
    let mut inherited: HashMap<u32, u64> = HashMap::new();
    for known in now.values() {
        let Known { stat, of, .. } = known;
        // All ticks of a new process belong to this round. Of an older process that only joined the
        // tree, none do.
        let (own, children) = match same(stat.pid, stat.started) {
            Some(Known { stat: was, .. }) => (was.ticks, was.child_ticks),
            None if stat.started < last => (stat.ticks, stat.child_ticks),
            None => (0, 0),
        };
        let grown = stat.child_ticks.saturating_sub(children);
        *ticks.entry(of.clone()).or_default() += stat.ticks.saturating_sub(own) + grown;
        inherited.insert(stat.pid, grown);
    }
    for known in before.values() {
        let Known { stat, of, .. } = known;
        let lives = now.get(&stat.pid).is_some_and(|known| known.stat.started == stat.started);
        if lives {
            continue;
        }
        // The parent may have ended too, and have passed both counts on to its own parent.
        let mut heir = stat.parent;
        for _ in 0..DEEPEST {
            match before.get(&heir).filter(|_| !inherited.contains_key(&heir)) {
                Some(gone) => heir = gone.stat.parent,
                None => break,
            }
        }
        let Some(left) = inherited.get_mut(&heir) else {
            continue;
        };
        let counted = (stat.ticks + stat.child_ticks).min(*left);
        *left -= counted;
        if let Some(ticks) = ticks.get_mut(of) {
            *ticks = ticks.saturating_sub(counted);
        }
    }
    ticks
}

/// The instance whose tree a process belongs to: by its session, its group, or an ancestor.
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
    for _ in 0..DEEPEST {
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

    fn instance(name: &str) -> InstanceId {
        InstanceId::sole(Name::new(name).unwrap())
    }

    #[test]
    fn a_tree_is_measured_with_its_children() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sleep 1000 & echo up; read x; kill $!; wait $!; exit 0"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        let id = instance("sh");
        let leaders = HashMap::from([(child.id(), id.clone())]);
        // A service has a session of its own. Here only the pid of the leader is known.
        for (spare, want) in [(usize::MAX, 1), (0, 0)] {
            let mut sampler = Sampler { spare, ..Sampler::new() };
            let first = sampler.read(Duration::from_secs(1), &leaders);
            assert_eq!(first.instances[&id].processes, 2);
            assert_eq!(first.instances[&id].cpu_percent, None, "one reading tells no rate");
            assert!(first.instances[&id].memory_bytes > 0);
            let second = sampler.read(Duration::from_secs(2), &leaders);
            let cpu = second.instances[&id].cpu_percent.unwrap();
            assert!((0.0..=100.0).contains(&cpu), "{cpu}");
            let open = sampler.known.values().filter(|known| known.file.is_some()).count();
            assert_eq!(open, want, "no more files stay open than there is room for");
        }
        let mut sampler = Sampler::new();
        assert!(sampler.read(Duration::from_secs(1), &leaders).instances.contains_key(&id));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!sampler.read(Duration::from_secs(3), &leaders).instances.contains_key(&id));
    }

    /// Makes processes from rows of pid, parent, own ticks and ticks of children.
    fn processes(rows: &[(u32, u32, u64, u64)]) -> HashMap<u32, Known> {
        let known = |&(pid, parent, ticks, child_ticks)| {
            let stat = proc::Stat {
                pid,
                state: b'S',
                parent,
                group: 1,
                session: 1,
                ticks,
                child_ticks,
                started: u64::from(pid),
                pages: 1,
            };
            (pid, Known { file: None, stat, of: instance("a") })
        };
        rows.iter().map(known).collect()
    }

    #[test]
    fn time_of_children_that_have_ended_is_counted_once() {
        let ticks = |before: &[_], now: &[_]| {
            used(&processes(before), &processes(now), 1).get(&instance("a")).copied().unwrap_or(0)
        };
        // A child started and ended between two readings.
        assert_eq!(ticks(&[(1, 0, 5, 0)], &[(1, 0, 6, 40)]), 41);
        // Only the new ticks of a child that was seen count.
        assert_eq!(ticks(&[(1, 0, 5, 0), (2, 1, 30, 0)], &[(1, 0, 5, 40)]), 10);
        // A child that nobody in the tree has waited for takes nothing away.
        assert_eq!(ticks(&[(1, 0, 5, 0), (2, 1, 30, 0)], &[(1, 0, 9, 0)]), 4);
        // A grandchild's ticks go up through its parent.
        assert_eq!(ticks(&[(1, 0, 0, 0), (2, 1, 10, 0), (3, 2, 20, 0)], &[(1, 0, 0, 35)]), 5);
        assert_eq!(ticks(&[], &[(1, 0, 7, 0)]), 7);
        // A process that is older than the last reading and new to the tree.
        assert_eq!(used(&processes(&[]), &processes(&[(1, 0, 7, 0)]), 5).get(&instance("a")), Some(&0));
    }
}
