//! Readings of the machine as a whole, from sysinfo and `/proc/pressure`.
//!
//! When a reading fails, the previous values stay and the failure is reported in the sample. File
//! systems are read on a thread of their own: a network file system whose server is gone blocks
//! nothing else.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;
use std::{fs, io};

use sysinfo::{CpuRefreshKind, DiskRefreshKind, Disks, MemoryRefreshKind, Networks, RefreshKind, System};

use crate::decide::progress;
use crate::model::sample::{CoreSample, DiskSample, MachineSample, NetworkSample, Pressure, percent};

/// How long a reading waits for the file systems.
const DISKS: Duration = Duration::from_millis(500);

/// Reads the machine, and remembers the previous reading.
pub(crate) struct Machine {
    /// `None` when sysinfo can't read the machine.
    system: Option<System>,
    networks: Option<Networks>,
    disks: DiskReader,
    /// When the previous reading was taken, on the tree's clock.
    last: Option<Duration>,
    before: MachineSample,
}

impl Machine {
    pub(crate) fn new() -> Machine {
        Machine {
            system: System::new_with_specifics(RefreshKind::nothing()).ok(),
            networks: Networks::new().ok(),
            disks: DiskReader::Idle(Disks::new().ok().map(Box::new), None),
            last: None,
            before: MachineSample::default(),
        }
    }

    pub(crate) fn read(&mut self, now: Duration) -> MachineSample {
        let elapsed = self.last.map(|last| now.saturating_sub(last).as_secs_f64()).filter(|s| *s > 0.0);
        let mut unread = Vec::new();
        let mut sample = MachineSample { unread: Vec::new(), ..self.before.clone() };
        match &mut self.system {
            Some(system) => read_system(system, self.last.is_some(), &mut sample, &mut unread),
            None => unread.push("cpu, memory: the machine does not report them".to_owned()),
        }
        match &mut self.networks {
            Some(networks) => {
                networks.refresh(true);
                sample.networks = networks_of(networks, elapsed);
            }
            None => unread.push("network: the machine does not report it".to_owned()),
        }
        match self.disks.read(now) {
            Ok(disks) => sample.disks = disks,
            Err(why) => unread.push(format!("disks: {why}")),
        }
        match pressure() {
            Ok(pressure) => sample.pressure = pressure,
            Err(error) => unread.push(format!("pressure: {error}")),
        }
        self.before = sample.clone();
        self.last = Some(now);
        sample.unread = unread;
        sample
    }
}

fn read_system(system: &mut System, again: bool, sample: &mut MachineSample, unread: &mut Vec<String>) {
    let kinds = RefreshKind::nothing()
        .with_cpu(CpuRefreshKind::nothing().with_usage().with_frequency())
        .with_memory(MemoryRefreshKind::everything());
    system.refresh_specifics(kinds);
    if system.cpus().is_empty() {
        unread.push("cpu: /proc/stat names no core".to_owned());
    } else {
        let usage = |percent: f32| again.then(|| f64::from(percent));
        sample.cpu_percent = usage(system.global_cpu_usage());
        sample.cores = system.cpus().len();
        let core = |cpu: &sysinfo::Cpu| CoreSample {
            cpu_percent: usage(cpu.usage()),
            frequency_mhz: Some(cpu.frequency()).filter(|mhz| *mhz > 0),
        };
        sample.per_core = system.cpus().iter().map(core).collect();
    }
    if system.total_memory() == 0 {
        unread.push("memory: /proc/meminfo does not report it".to_owned());
    } else {
        (sample.memory_total_bytes, sample.memory_used_bytes) = (system.total_memory(), system.used_memory());
        (sample.swap_total_bytes, sample.swap_used_bytes) = (system.total_swap(), system.used_swap());
    }
    match System::load_average() {
        Ok(load) => sample.load = [load.one, load.five, load.fifteen],
        Err(error) => unread.push(format!("load: {error}")),
    }
}

fn networks_of(networks: &Networks, elapsed: Option<f64>) -> Vec<NetworkSample> {
    let mut samples: Vec<NetworkSample> = networks
        .iter()
        .map(|(name, data)| NetworkSample {
            interface: shown(name),
            received_bytes_per_s: elapsed.map(|seconds| data.received() as f64 / seconds),
            sent_bytes_per_s: elapsed.map(|seconds| data.transmitted() as f64 / seconds),
            errors: data.total_errors_on_received() + data.total_errors_on_transmitted(),
        })
        .collect();
    samples.sort_by(|one, other| one.interface.cmp(&other.interface));
    samples
}

/// Makes a name printable: a user who may mount can give any name.
fn shown(name: &(impl AsRef<OsStr> + ?Sized)) -> String {
    progress::shown(&name.as_ref().to_string_lossy()).collect()
}

/// The answer of the thread: the disks, for the next reading, and their samples.
type Answer = (Box<Disks>, Vec<DiskSample>);

enum DiskReader {
    /// No reading is under way. The disks are `None` when the machine can't be read; the time is that
    /// of the last reading.
    Idle(Option<Box<Disks>>, Option<Duration>),
    /// A thread has been reading the disks since this time.
    Away(Receiver<Answer>, Duration),
}

impl DiskReader {
    fn read(&mut self, now: Duration) -> Result<Vec<DiskSample>, String> {
        let away = match self {
            DiskReader::Away(answer, since) => match answer.try_recv() {
                Ok((disks, samples)) => {
                    *self = DiskReader::Idle(Some(disks), Some(*since));
                    return Ok(samples);
                }
                Err(TryRecvError::Empty) => {
                    let stuck = now.saturating_sub(*since).as_secs();
                    return Err(format!("a file system has not answered for {stuck} s"));
                }
                Err(TryRecvError::Disconnected) => None,
            },
            DiskReader::Idle(disks, last) => disks.take().map(|disks| (disks, *last)),
        };
        let Some((disks, last)) = away else {
            *self = DiskReader::Idle(Disks::new().ok().map(Box::new), None);
            return Err("the machine does not report them".to_owned());
        };
        let elapsed = last.map(|last| now.saturating_sub(last).as_secs_f64()).filter(|s| *s > 0.0);
        let (answer, answered) = mpsc::channel();
        let thread = std::thread::Builder::new().name("regrow-disks".into()).stack_size(256 * 1024);
        let asked = thread.spawn(move || {
            let mut disks = disks;
            let kinds = DiskRefreshKind::nothing().with_storage().with_io_usage();
            disks.refresh_specifics(true, kinds);
            let samples = disks_of(&disks, elapsed);
            // The reader may have been dropped meanwhile.
            let _ = answer.send((disks, samples));
        });
        if let Err(error) = asked {
            *self = DiskReader::Idle(Disks::new().ok().map(Box::new), None);
            return Err(error.to_string());
        }
        match answered.recv_timeout(DISKS) {
            Ok((disks, samples)) => {
                *self = DiskReader::Idle(Some(disks), Some(now));
                Ok(samples)
            }
            Err(RecvTimeoutError::Timeout) => {
                *self = DiskReader::Away(answered, now);
                Err("a file system does not answer".to_owned())
            }
            Err(RecvTimeoutError::Disconnected) => {
                *self = DiskReader::Idle(Disks::new().ok().map(Box::new), None);
                Err("the reading failed".to_owned())
            }
        }
    }
}

fn disks_of(disks: &Disks, elapsed: Option<f64>) -> Vec<DiskSample> {
    let mut samples: Vec<DiskSample> = disks
        .iter()
        .filter(|disk| disk.total_space() > 0)
        .map(|disk| {
            let (total, free) = (disk.total_space(), disk.available_space());
            let used = total.saturating_sub(free);
            let (mut read, mut written) = (None, None);
            if let Some(seconds) = elapsed {
                let usage = disk.usage();
                // A device without counters has no rates, and a new one has none yet.
                let (of_read, of_written) = (usage.total_read_bytes, usage.total_written_bytes);
                let is_new = usage.read_bytes == of_read && usage.written_bytes == of_written;
                if of_read + of_written > 0 && !is_new {
                    read = Some(usage.read_bytes as f64 / seconds);
                    written = Some(usage.written_bytes as f64 / seconds);
                }
            }
            DiskSample {
                mount: shown(disk.mount_point().as_os_str()),
                device: shown(disk.name()),
                file_system: shown(disk.file_system()),
                total_bytes: total,
                used_bytes: used,
                used_percent: percent(used, total),
                read_bytes_per_s: read,
                written_bytes_per_s: written,
            }
        })
        .collect();
    // A device may be mounted in many places (bind mounts, containers). It is listed under its shortest
    // path.
    samples.sort_by(|one, other| (one.mount.len(), &one.mount).cmp(&(other.mount.len(), &other.mount)));
    let mut seen = HashSet::new();
    samples.retain(|disk| seen.insert((disk.device.clone(), disk.total_bytes)));
    samples
}

/// The pressure of the last ten seconds. `None` when this kernel does not count it.
fn pressure() -> io::Result<Option<Pressure>> {
    let of = |what: &str| -> io::Result<f64> {
        let text = fs::read_to_string(format!("/proc/pressure/{what}"))?;
        some_avg10(&text).ok_or_else(|| io::Error::other("it has another form"))
    };
    let read = || -> io::Result<Pressure> {
        Ok(Pressure { cpu_percent: of("cpu")?, memory_percent: of("memory")?, io_percent: of("io")? })
    };
    match read() {
        Ok(pressure) => Ok(Some(pressure)),
        // Pressure is not built into the kernel, or switched off (psi=0).
        Err(error) if matches!(error.raw_os_error(), Some(2 | 95)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn some_avg10(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split(' ').find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_read_with_all_its_parts() {
        let mut machine = Machine::new();
        let first = machine.read(Duration::from_secs(1));
        assert_eq!(first.cpu_percent, None, "one reading tells no rate");
        assert!(first.memory_total_bytes > first.memory_used_bytes);
        assert_eq!(first.per_core.len(), first.cores);
        let second = machine.read(Duration::from_secs(2));
        assert!(second.cpu_percent.is_some_and(|cpu| (0.0..=100.0).contains(&cpu)));
        assert!(second.networks.iter().all(|network| network.received_bytes_per_s.is_some()));
        assert!(second.disks.iter().all(|disk| disk.used_bytes <= disk.total_bytes));
        let mut mounts: Vec<_> = second.disks.iter().map(|disk| &disk.mount).collect();
        mounts.sort();
        mounts.dedup();
        assert_eq!(mounts.len(), second.disks.len());
    }

    #[test]
    fn a_silent_file_system_is_reported_and_holds_up_nothing() {
        let (answer, answered) = mpsc::channel();
        let mut reader = DiskReader::Away(answered, Duration::from_secs(10));
        let why = reader.read(Duration::from_secs(40)).unwrap_err();
        assert_eq!(why, "a file system has not answered for 30 s");
        answer.send((Box::new(Disks::new().unwrap()), Vec::new())).unwrap();
        assert_eq!(reader.read(Duration::from_secs(50)), Ok(Vec::new()));
        assert!(matches!(reader, DiskReader::Idle(Some(_), Some(_))));
    }

    #[test]
    fn pressure_is_of_the_line_some() {
        let text = "some avg10=1.50 avg60=0.00 avg300=0.00 total=12\nfull avg10=9.00 avg60=0.00 avg300=0.00 total=1\n";
        assert_eq!(some_avg10(text), Some(1.5));
        assert_eq!(some_avg10("full avg10=9.00"), None);
    }
}
