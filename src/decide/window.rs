//! How often a group may restart: OTP's intensity and period, on a monotonic clock.

use std::collections::VecDeque;
use std::time::Duration;

/// Counts restarts within a sliding period.
#[derive(Debug, Clone, Default)]
pub struct Window {
    times: VecDeque<Duration>,
}

impl Window {
    /// Counts one restart now. Returns `false` if there are now more than `intensity` restarts
    /// within `period` (as in `supervisor:add_restart/1`, exactly N is still fine).
    pub fn allow(&mut self, intensity: u32, period: Duration, now: Duration) -> bool {
        while self.times.front().is_some_and(|at| now.saturating_sub(*at) > period) {
            self.times.pop_front();
        }
        self.times.push_back(now);
        self.times.len() <= intensity as usize
    }

    /// How many restarts were within the period when the last one was counted.
    pub fn count(&self) -> usize {
        self.times.len()
    }

    /// Forgets all restarts, as a start by hand requires.
    pub fn clear(&mut self) {
        self.times.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn trips_at_more_than_n_in_the_period() {
        let mut window = Window::default();
        let rows = [(0, true), (1, true), (2, true), (3, false)];
        for (second, fine) in rows {
            assert_eq!(window.allow(3, at(10), at(second)), fine, "second {second}");
        }
        let mut slow = Window::default();
        for second in (0..100).step_by(4) {
            assert!(slow.allow(3, at(10), at(second)), "second {second}");
        }
    }

    #[test]
    fn intensity_zero_trips_at_the_first() {
        assert!(!Window::default().allow(0, at(10), at(5)));
    }

    proptest! {
        #[test]
        fn allowed_exactly_while_at_most_n_lie_within_the_period(
            steps in prop::collection::vec(0u64..5_000, 1..60), n in 0u32..6, period in 1u64..10_000,
        ) {
            let period = Duration::from_millis(period);
            let mut window = Window::default();
            let mut times: Vec<Duration> = Vec::new();
            let mut now = Duration::ZERO;
            for step in steps {
                now += Duration::from_millis(step);
                times.push(now);
                let within = times.iter().filter(|t| now - **t <= period).count();
                prop_assert_eq!(window.allow(n, period, now), within <= n as usize);
            }
        }
    }
}
