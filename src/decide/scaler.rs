//! How many workers, or copies of a service, there should be: one more worker when tasks wait and
//! the machine has room, one fewer when the machine has none.
//!
//! Pure: a decision takes a policy, the time of the last step and an observation. Within the bounds
//! each step is by one, and comes only when the effect of the last one could show. Between the low
//! and the high thresholds nothing happens, so the number settles.

use std::time::Duration;

use crate::model::spec::{ScaleOn, ScaleSpec};
use crate::present::units::{percent, size as size_of};

/// When to scale, and how far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScalePolicy {
    /// The least number of workers.
    pub min: u32,
    /// The highest number of workers.
    pub max: u32,
    /// The machine's CPU use, in percent, above which there is one worker fewer.
    pub cpu_high: f64,
    /// The machine's memory in use, in percent, above which there is one worker fewer.
    pub memory_high: f64,
    /// The machine's CPU use, in percent, below which there may be one worker more.
    pub cpu_low: f64,
    /// The machine's memory in use, in percent, below which there may be one worker more.
    pub memory_low: f64,
    /// One worker more needs more waiting tasks than this.
    pub waiting: usize,
    /// The least time between two steps; in a tree, the time between two samples.
    pub pause: Duration,
}

impl Default for ScalePolicy {
    fn default() -> ScalePolicy {
        ScalePolicy {
            min: 4,
            max: 32,
            cpu_high: 85.0,
            memory_high: 90.0,
            cpu_low: 60.0,
            memory_low: 70.0,
            waiting: 2,
            pause: Duration::from_secs(15),
        }
    }
}

/// What was seen of the machine and the pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PoolObservation {
    /// The machine's CPU use, in percent; `None` while that is not known yet.
    pub cpu: Option<f64>,
    /// The machine's memory in use, in percent.
    pub memory: f64,
    /// How many tasks wait.
    pub waiting: usize,
}

/// One step of the scaler.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaleStep {
    /// The new number of workers or copies.
    pub to: u32,
    /// The reason for the step, in words.
    pub reason: String,
}

/// The next step of a pool with `size` workers, if there is one. `last` is when the last step
/// was made.
pub fn decide(
    policy: &ScalePolicy,
    now: Duration,
    last: Option<Duration>,
    size: u32,
    seen: PoolObservation,
) -> Option<ScaleStep> {
    let to = |to: u32, reason: String| Some(ScaleStep { to, reason });
    // The bounds may have changed since: the pool goes to them at once.
    if size > policy.max {
        return to(policy.max, format!("{} is the maximum", policy.max));
    }
    if size < policy.min {
        return to(policy.min, format!("{} is the minimum", policy.min));
    }
    if last.is_some_and(|last| now.saturating_sub(last) < policy.pause) {
        return None;
    }
    let cpu = seen.cpu?;
    let high = match (cpu > policy.cpu_high, seen.memory > policy.memory_high) {
        (true, _) => Some(format!("CPU is at {}, above {}", percent(cpu), percent(policy.cpu_high))),
        (false, true) => {
            Some(format!("memory is at {}, above {}", percent(seen.memory), percent(policy.memory_high)))
        }
        (false, false) => None,
    };
    if let Some(reason) = high {
        return if size > policy.min { to(size - 1, reason) } else { None };
    }
    let room = cpu < policy.cpu_low && seen.memory < policy.memory_low;
    if room && seen.waiting > policy.waiting && size < policy.max {
        let reason = format!(
            "{} tasks are waiting, with CPU at {} and memory at {}",
            seen.waiting,
            percent(cpu),
            percent(seen.memory)
        );
        return to(size + 1, reason);
    }
    None
}

/// What was seen of a service's copies, all of which run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CopiesObservation {
    /// The machine's CPU use, in percent; `None` while that is not known yet.
    pub cpu: Option<f64>,
    /// The machine's memory in use, in percent.
    pub memory: f64,
    /// The average use of one copy, in percent of a core or in bytes, depending on what the service
    /// is scaled on; `None` while that is not known.
    pub each: Option<f64>,
}

/// How many pauses pass before one copy fewer: a start costs more than the copy saves.
const PATIENCE: u32 = 4;
/// The part of the target that the remaining copies have to stay below.
const ROOM: f64 = 0.8;

/// The next step for the copies of a service, if there is one: one copy more when they use more
/// than the target and the machine has room, one fewer when the others would still stay clearly
/// below the target. `machine` says when the machine has no room, and gives the pause.
pub fn decide_copies(
    machine: &ScalePolicy,
    service: &ScaleSpec,
    now: Duration,
    last: Option<Duration>,
    size: u32,
    seen: CopiesObservation,
) -> Option<ScaleStep> {
    let to = |to: u32, reason: String| Some(ScaleStep { to, reason });
    let rested = |pause: Duration| last.is_none_or(|last| now.saturating_sub(last) >= pause);
    if !rested(machine.pause) {
        return None;
    }
    // Bounds may have changed; a copy at a time, since each has to start or stop.
    if size > service.max {
        return to(size - 1, format!("{} is the maximum", service.max));
    }
    if size < service.min {
        return to(size + 1, format!("{} is the minimum", service.min));
    }
    let each = seen.each?;
    let (target, used, limit) = match service.on {
        ScaleOn::Cpu(target) => {
            (f64::from(target), format!("{} of a core", percent(each)), percent(f64::from(target)))
        }
        ScaleOn::Memory(target) => {
            (target as f64, format!("{} of memory", size_of(each as u64)), size_of(target))
        }
    };
    if each > target {
        let full = seen.cpu? > machine.cpu_high || seen.memory > machine.memory_high;
        if full || size >= service.max {
            return None;
        }
        return to(size + 1, format!("an instance uses {used}, above {limit}"));
    }
    let then = each * f64::from(size) / f64::from(size.saturating_sub(1).max(1));
    if size > service.min && then < target * ROOM && rested(machine.pause * PATIENCE) {
        return to(
            size - 1,
            format!("an instance uses {used}, and with one fewer it would stay below {limit}"),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy() -> ScalePolicy {
        ScalePolicy::default()
    }

    #[test]
    fn the_rule_row_by_row() {
        let now = Duration::from_secs(100);
        for (cpu, memory, waiting, size, want) in [
            (86.0, 0.0, 9, 8, Some(7)),
            (85.0, 0.0, 9, 8, None),
            (10.0, 91.0, 9, 8, Some(7)),
            (99.0, 99.0, 9, 4, None),
            (59.0, 69.0, 3, 8, Some(9)),
            (59.0, 69.0, 2, 8, None),
            (60.0, 69.0, 3, 8, None),
            (59.0, 70.0, 3, 8, None),
            (10.0, 10.0, 99, 32, None),
            (70.0, 10.0, 99, 40, Some(32)),
            (70.0, 10.0, 0, 1, Some(4)),
        ] {
            let seen = PoolObservation { cpu: Some(cpu), memory, waiting };
            let got = decide(&policy(), now, None, size, seen).map(|step| step.to);
            assert_eq!(got, want, "CPU {cpu}, memory {memory}, {waiting} wait, {size} there");
        }
        let unknown = PoolObservation { cpu: None, memory: 0.0, waiting: 99 };
        assert_eq!(decide(&policy(), now, None, 8, unknown), None);
        let seen = PoolObservation { cpu: Some(1.0), ..unknown };
        assert_eq!(decide(&policy(), now, Some(Duration::from_secs(90)), 8, seen), None, "not so soon");
        let step = decide(&policy(), now, Some(Duration::from_secs(85)), 8, seen).unwrap();
        assert_eq!(step.reason, "99 tasks are waiting, with CPU at 1% and memory at 0%");
    }

    fn service(on: ScaleOn) -> ScaleSpec {
        ScaleSpec { min: 1, max: 5, on }
    }

    #[test]
    fn the_rule_of_copies_row_by_row() {
        let now = Duration::from_secs(1000);
        for (cpu, each, size, want) in [
            (50.0, 81.0, 2, Some(3)),
            (50.0, 80.0, 2, None),
            (90.0, 95.0, 2, None),
            (50.0, 95.0, 5, None),
            (50.0, 33.0, 2, None),
            (50.0, 31.0, 2, Some(1)),
            (99.0, 31.0, 2, Some(1)),
            (50.0, 0.0, 1, None),
            (50.0, 50.0, 7, Some(6)),
            (50.0, 50.0, 0, Some(1)),
        ] {
            let seen = CopiesObservation { cpu: Some(cpu), memory: 10.0, each: Some(each) };
            let got = decide_copies(&policy(), &service(ScaleOn::Cpu(80)), now, None, size, seen);
            assert_eq!(got.map(|step| step.to), want, "CPU {cpu}, {each} each, {size} there");
        }
        let seen = CopiesObservation { cpu: Some(10.0), memory: 10.0, each: Some(f64::from(600 << 20)) };
        let on = service(ScaleOn::Memory(512 << 20));
        let step = decide_copies(&policy(), &on, now, None, 1, seen).unwrap();
        assert_eq!(step.reason, "an instance uses 600 MiB of memory, above 512 MiB");
        let unknown = CopiesObservation { each: None, ..seen };
        assert_eq!(decide_copies(&policy(), &on, now, None, 2, unknown), None);
        assert!(decide_copies(&policy(), &on, now, None, 9, unknown).is_some(), "bounds hold all the same");
        let low = CopiesObservation { each: Some(0.0), ..seen };
        let ago = |seconds| now.checked_sub(Duration::from_secs(seconds));
        assert_eq!(decide_copies(&policy(), &on, now, ago(20), 2, low), None, "not so soon");
        assert!(decide_copies(&policy(), &on, now, ago(60), 2, low).is_some());
    }

    proptest! {
        /// Copies that share a constant load stay within bounds, change by one, and settle.
        #[test]
        fn copies_settle(load in 0.0..600.0f64, first in 1..5u32, target in 10..100u32) {
            let (mut size, mut now, mut last, mut steps) = (first, Duration::ZERO, None, Vec::new());
            let on = service(ScaleOn::Cpu(target));
            for round in 0..200 {
                now += Duration::from_secs(15);
                let each = Some(load / f64::from(size));
                let seen = CopiesObservation { cpu: Some(50.0), memory: 10.0, each };
                if let Some(step) = decide_copies(&policy(), &on, now, last, size, seen) {
                    prop_assert!((on.min..=on.max).contains(&step.to) && step.to.abs_diff(size) == 1);
                    (size, last) = (step.to, Some(now));
                    steps.push(round);
                }
            }
            prop_assert!(steps.last().is_none_or(|last| *last < 40), "{steps:?}");
            prop_assert!(steps.len() <= 5, "there is no way back: {steps:?}");
        }

        /// The size is never outside its bounds, and never takes two steps at once.
        #[test]
        fn within_bounds_and_one_step_at_a_time(
            seen in proptest::collection::vec((0.0..100.0f64, 0.0..100.0f64, 0..20usize, 0..40u64), 1..200)
        ) {
            let (mut size, mut now, mut last) = (4u32, Duration::ZERO, None);
            for (cpu, memory, waiting, passes) in seen {
                now += Duration::from_secs(passes);
                let seen = PoolObservation { cpu: Some(cpu), memory, waiting };
                if let Some(ScaleStep { to, .. }) = decide(&policy(), now, last, size, seen) {
                    prop_assert!((policy().min..=policy().max).contains(&to));
                    prop_assert_eq!(to.abs_diff(size), 1);
                    prop_assert!(last.is_none_or(|last: Duration| now - last >= policy().pause));
                    (size, last) = (to, Some(now));
                }
            }
        }

        /// If the load is constant and each worker takes its part of the CPU, the size settles.
        #[test]
        fn it_settles(each in 0.5..20.0f64, base in 0.0..50.0f64) {
            let (mut size, mut now, mut last, mut steps) = (4u32, Duration::ZERO, None, Vec::new());
            for round in 0..200 {
                now += Duration::from_secs(15);
                let cpu = (base + each * f64::from(size)).min(100.0);
                let seen = PoolObservation { cpu: Some(cpu), memory: 10.0, waiting: 100 };
                if let Some(step) = decide(&policy(), now, last, size, seen) {
                    (size, last) = (step.to, Some(now));
                    steps.push(round);
                }
            }
            prop_assert!(steps.last().is_none_or(|last| *last < 40), "{steps:?}");
        }
    }
}
