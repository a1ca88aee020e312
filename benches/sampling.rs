//! The cost of sampling a thousand managed processes and the machine.
//!
//! `cargo bench --bench sampling` prints the CPU time of one round, and from the same run that of
//! sysinfo's own refresh of the same processes.

use std::collections::HashMap;
use std::process::{Child, Command};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use regrow::measure::sample::Sampler;
use regrow::model::{InstanceId, Name};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

const PROCESSES: usize = 1_000;
const ROUNDS: u32 = 30;

/// The processes to sample, which are killed even when the benchmark panics.
struct Herd(Vec<Child>);

impl Drop for Herd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn main() {
    let spawned = (0..PROCESSES).map(|_| Command::new("sleep").arg("1000").spawn().unwrap());
    let herd = Herd(spawned.collect());
    let named = |(number, child): (usize, &Child)| {
        (child.id(), InstanceId::sole(Name::new(&format!("s{number}")).unwrap()))
    };
    let leaders: HashMap<u32, InstanceId> = herd.0.iter().enumerate().map(named).collect();
    let mut sampler = Sampler::new();
    let mut system = System::new_with_specifics(sysinfo::RefreshKind::nothing()).unwrap();
    let kinds = ProcessRefreshKind::nothing().with_cpu().with_memory();
    let (mut trees, mut all, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let now = Duration::from_secs(u64::from(round) + 1);
        let later = now + Duration::from_millis(500);
        trees.push(cpu(|| assert_eq!(sampler.trees(now, &leaders).len(), PROCESSES)));
        all.push(cpu(|| assert_eq!(sampler.read(later, &leaders).instances.len(), PROCESSES)));
        theirs.push(cpu(|| {
            system.refresh_processes_specifics(ProcessesToUpdate::All, true, kinds);
        }));
    }
    println!("CPU time of a round, {PROCESSES} managed processes, median of {ROUNDS}");
    for (what, times) in [
        ("every managed tree", trees),
        ("the same and the machine (disks on a thread apart)", all),
        ("sysinfo's refresh of CPU and memory of all processes", theirs),
    ] {
        println!("{what:<56} {:>8.2} ms", median(times).as_secs_f64() * 1e3);
    }
}

fn cpu(work: impl FnOnce()) -> Duration {
    let used = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    let before = used();
    work();
    used() - before
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
