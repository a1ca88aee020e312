//! The monotonic clock. It is tokio's, so that a test with paused time sees a single time.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use tokio::time::Instant;

/// A text that identifies this boot of the machine. In a container it identifies the container's
/// run as well: when process 1 of a PID namespace ends, all processes in it end, though the kernel
/// runs on. `None` when `/proc` does not give a boot id.
pub fn boot() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let space = std::fs::metadata("/proc/self/ns/pid").map_or(0, |space| space.ino());
    // Process 1 may be hidden from us (hidepid); the boot id and the namespace then have to do.
    let first = super::proc::stat(1).map_or(0, |first| first.started);
    Some(format!("{} {space} {first}", text.trim()))
}

/// The kernel's monotonic clock, which all processes of a boot share.
pub fn monotonic() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    time.map_or(Duration::ZERO, Duration::from)
}

/// A clock that counts from the moment it was made.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    zero: Instant,
}

impl Clock {
    /// Makes a clock whose zero is now.
    pub fn start() -> Clock {
        Clock { zero: Instant::now() }
    }

    /// Makes a clock whose zero is the given time of the monotonic clock. It continues the clock of
    /// another process of the same boot.
    pub fn since(zero: Duration) -> Clock {
        let now = Instant::now();
        let age = monotonic().saturating_sub(zero);
        Clock { zero: now.checked_sub(age).unwrap_or(now) }
    }

    /// The time since the clock's zero.
    pub fn now(&self) -> Duration {
        self.zero.elapsed()
    }

    /// The instant at which [`Clock::now`] will be `at`.
    pub fn instant(&self, at: Duration) -> Instant {
        self.zero + at
    }
}
