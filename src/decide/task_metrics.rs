//! The metrics of one-shot commands: how many ran, how many failed, and how long they took.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::model::stats::{Performance, SlowCommand};
use crate::model::task::TaskId;

/// How many of the slowest commands are kept.
const SLOWEST: usize = 10;
/// The longest command text that is kept, in characters.
const SHOWN: usize = 200;
/// The longest time that is recorded, in microseconds (a week); longer ones count as this.
const LONGEST: u64 = 7 * 24 * 3600 * 1_000_000;

/// The counts since the metrics were made. Their size is fixed, however many commands they count.
#[derive(Debug)]
pub struct TaskMetrics {
    executions: u64,
    failures: u64,
    /// The run times in microseconds, to two digits; `None` if the histogram could not be made.
    times: Option<Histogram<u64>>,
    slowest: Vec<SlowCommand>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    at: u64,
    executions: u64,
    failures: u64,
    times: Vec<(u64, u64)>,
    slowest: Vec<SlowCommand>,
}

impl Default for TaskMetrics {
    fn default() -> TaskMetrics {
        TaskMetrics {
            executions: 0,
            failures: 0,
            times: Histogram::new_with_bounds(1, LONGEST, 2).ok(),
            slowest: Vec::new(),
        }
    }
}

impl TaskMetrics {
    /// Counts a command that is over. `took`: how long it ran; `None` if it never ran.
    pub fn count(
        &mut self,
        id: TaskId,
        command: impl FnOnce() -> String,
        success: bool,
        took: Option<Duration>,
    ) {
        self.executions += 1;
        self.failures += u64::from(!success);
        let Some(took) = took else {
            return;
        };
        if let Some(times) = &mut self.times {
            times.saturating_record(u64::try_from(took.as_micros()).unwrap_or(LONGEST).max(1));
        }
        let duration_s = took.as_secs_f64();
        let place = self.slowest.partition_point(|slow| slow.duration_s >= duration_s);
        if place < SLOWEST {
            let command = command().chars().take(SHOWN).collect();
            self.slowest.insert(place, SlowCommand { id, command, duration_s });
            self.slowest.truncate(SLOWEST);
        }
    }

    /// The metrics as a text, for a later supervisor. `at`: the time up to which they count, in
    /// milliseconds since 1970.
    pub fn written(&self, at: u64) -> String {
        let times = self.times.iter().flat_map(Histogram::iter_recorded);
        let times = times.map(|step| (step.value_iterated_to(), step.count_at_value())).collect();
        let TaskMetrics { executions, failures, slowest, .. } = self;
        let written =
            Written { at, executions: *executions, failures: *failures, times, slowest: slowest.clone() };
        serde_json::to_string(&written).unwrap_or_default()
    }

    /// The metrics from such a text, and the time up to which they count. `None`: the text is invalid.
    pub fn restored(text: &str) -> Option<(TaskMetrics, u64)> {
        let Written { at, executions, failures, times, slowest } = serde_json::from_str(text).ok()?;
        let mut metrics = TaskMetrics { executions, failures, slowest, ..TaskMetrics::default() };
        for (value, count) in times {
            if let Some(times) = &mut metrics.times {
                times.saturating_record_n(value, count);
            }
        }
        Some((metrics, at))
    }

    /// The metrics as the API reports them, with quantiles in seconds.
    pub fn performance(&self) -> Performance {
        let seconds = |micros: u64| Duration::from_micros(micros).as_secs_f64();
        let at = |quantile: f64| {
            self.times.as_ref().map_or(0.0, |times| seconds(times.value_at_quantile(quantile)))
        };
        let rate = || (self.executions - self.failures) as f64 / self.executions as f64;
        Performance {
            executions: self.executions,
            failures: self.failures,
            success_rate: (self.executions > 0).then(rate),
            p50_s: at(0.5),
            p90_s: at(0.9),
            p99_s: at(0.99),
            max_s: self.slowest.first().map_or(0.0, |slow| slow.duration_s),
            mean_s: self.times.as_ref().map_or(0.0, |times| times.mean() / 1e6),
            slowest: self.slowest.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_hundred_commands_are_told_by_their_times() {
        let mut metrics = TaskMetrics::default();
        assert_eq!(metrics.performance().success_rate, None);
        for n in 1..=100u64 {
            let id = TaskId(Uuid::from_u64_pair(0, n));
            metrics.count(id, || format!("sleep {n}"), n % 4 != 0, Some(Duration::from_millis(n * 10)));
        }
        let told = metrics.performance();
        assert_eq!((told.executions, told.failures, told.success_rate), (100, 25, Some(0.75)));
        for (got, want) in [(told.p50_s, 0.5), (told.p90_s, 0.9), (told.p99_s, 0.99), (told.mean_s, 0.505)] {
            assert!((got - want).abs() <= want * 0.02, "{got} is not about {want}");
        }
        assert_eq!(told.max_s, 1.0);
        let slowest: Vec<&str> = told.slowest.iter().map(|slow| slow.command.as_str()).collect();
        assert_eq!((slowest.len(), slowest[0], slowest[9]), (10, "sleep 100", "sleep 91"));
        let (restored, at) = TaskMetrics::restored(&metrics.written(7)).unwrap();
        assert_eq!((restored.performance(), at), (told, 7));
    }
}
