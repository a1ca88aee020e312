//! The monotonic clock. Tokio's, so that a test with paused time sees one time only.

use std::time::Duration;

use tokio::time::Instant;

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

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.zero.elapsed()
    }

    /// The instant at which [`Clock::now`] will be `at`.
    pub fn instant(&self, at: Duration) -> Instant {
        self.zero + at
    }
}
