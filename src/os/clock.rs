//! The monotonic clock. Tokio's, so that a test with paused time sees one time only.

use std::time::Duration;

use tokio::time::Instant;

/// The number of this boot of the machine.
pub fn boot() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
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
