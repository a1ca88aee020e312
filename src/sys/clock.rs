//! The monotonic clock. Tokio's, so that a test with paused time sees one time only.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use tokio::time::Instant;

/// What names this boot: of the machine, and of the container where this is one, whose processes are all
/// gone when its process 1 is, though the kernel runs on.
pub fn boot() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let space = std::fs::metadata("/proc/self/ns/pid").map_or(0, |space| space.ino());
    // Where others' processes are hidden from us, the rest has to do.
    let first = super::proc::stat(1).map_or(0, |first| first.started);
    Some(format!("{} {space} {first}", text.trim()))
}

/// The kernel's monotonic clock, which all processes of a boot share.
pub fn monotonic() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    time.map_or(Duration::ZERO, Duration::from)
}

/// Counts from its making.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    zero: Instant,
}

impl Clock {
    /// Starts at zero.
    pub fn start() -> Clock {
        Clock { zero: Instant::now() }
    }

    /// Whose zero was when the monotonic clock stood there: another process's, of the same boot.
    pub fn since(zero: Duration) -> Clock {
        let now = Instant::now();
        let age = monotonic().saturating_sub(zero);
        Clock { zero: now.checked_sub(age).unwrap_or(now) }
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.zero.elapsed()
    }

    /// The instant at which [`Clock::now`] will be `at`.
    pub fn instant(&self, at: Duration) -> Instant {
        self.zero + at
    }
}
