//! Whether a process that ended is started again, and after which delay.
//!
//! The rule is the manifest's `restart` section and the exit. Deliberately absent: how often a
//! group may restart (`window`), and `max_retries` and the goal (`lifecycle`).

use std::time::Duration;

use crate::model::exit::EndReason;
use crate::model::{Backoff, Exit, ExitOutcome, Kind, Policy, RestartSpec};

/// What follows an end that nobody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The instance comes back.
    Return,
    /// The process succeeded, and the instance rests.
    Complete,
    /// The process failed, and the instance rests.
    Fail,
}

/// Whether an end is a success for this service.
///
/// An end that regrow had to cause never is: after a missed deadline or a failed health check it
/// is a failure, whatever the exit code.
pub fn is_success(spec: &RestartSpec, exit: &ExitOutcome) -> bool {
    match exit {
        ExitOutcome::Process { exit: Exit::Code(code), reason: None, .. } => {
            spec.success_codes.contains(code)
        }
        // An end that is not known to be a success counts as a failure.
        ExitOutcome::Process { exit: Exit::Signal { .. } | Exit::Unknown, .. }
        | ExitOutcome::Process { reason: Some(EndReason::Timeout | EndReason::Health), .. }
        | ExitOutcome::Spawn(_) => false,
    }
}

/// Judges an end by `never_on`, then `always_on`, then the policy; the caller has looked at the
/// goal. After a failed spawn only a transient error lets the instance come back.
pub fn verdict(kind: Kind, spec: &RestartSpec, outcome: &ExitOutcome) -> Verdict {
    let success = is_success(spec, outcome);
    let rest = if success { Verdict::Complete } else { Verdict::Fail };
    if let ExitOutcome::Spawn(failure) = outcome {
        let comes_back = failure.is_transient() && spec.policy != Policy::Never;
        return if comes_back { Verdict::Return } else { Verdict::Fail };
    }
    if let Some(exit) = outcome.exit() {
        if spec.never_on.iter().any(|m| m.matches(exit)) {
            return rest;
        }
        if spec.always_on.iter().any(|m| m.matches(exit)) {
            return Verdict::Return;
        }
    }
    match spec.policy {
        Policy::Never => rest,
        Policy::OnFailure if success => Verdict::Complete,
        Policy::OnFailure => Verdict::Return,
        // A task runs to completion: a success ends it under any policy.
        Policy::Always | Policy::UnlessStopped if success && kind == Kind::Task => Verdict::Complete,
        Policy::Always | Policy::UnlessStopped => Verdict::Return,
    }
}

/// The delay before restart number `attempt` (from 0). `roll` is a random number from 0 to 1.
///
/// The delay is never more than `max`, whatever the jitter; an initial delay of zero stays zero.
pub fn delay(backoff: &Backoff, attempt: u32, roll: f64) -> Duration {
    let max = backoff.max.as_secs_f64();
    let growth = backoff.factor.max(1.0).powi(attempt.min(1_000).cast_signed());
    let grown = (backoff.initial.as_secs_f64() * growth).min(max);
    let jitter = backoff.jitter.clamp(0.0, 1.0);
    let spread = 1.0 - jitter + 2.0 * jitter * roll.clamp(0.0, 1.0);
    let seconds = (grown * spread).min(max);
    Duration::try_from_secs_f64(seconds).unwrap_or(backoff.max)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::exit::{EndedBy, SpawnFailure, SpawnStage};
    use crate::model::spec::ExitMatch;

    fn code(code: i32) -> ExitOutcome {
        ExitOutcome::Process { exit: Exit::Code(code), ended: EndedBy::ByItself, reason: None }
    }

    fn signal(signal: i32) -> ExitOutcome {
        ExitOutcome::Process {
            exit: Exit::Signal { signal, core_dumped: false },
            ended: EndedBy::ByItself,
            reason: None,
        }
    }

    fn reason(reason: EndReason) -> ExitOutcome {
        ExitOutcome::Process { exit: Exit::Code(0), ended: EndedBy::Gracefully, reason: Some(reason) }
    }

    fn spawn(stage: SpawnStage, errno: i32) -> ExitOutcome {
        ExitOutcome::Spawn(Box::new(SpawnFailure {
            stage,
            errno,
            errno_name: String::new(),
            message: String::new(),
        }))
    }

    #[test]
    fn policy_by_end() {
        use Policy::{Always, Never, OnFailure, UnlessStopped};
        use Verdict::{Complete, Fail, Return};
        let rows = [
            (code(0), [Complete, Complete, Return, Return]),
            (code(1), [Fail, Return, Return, Return]),
            (code(137), [Fail, Return, Return, Return]),
            (signal(9), [Fail, Return, Return, Return]),
            (signal(15), [Fail, Return, Return, Return]),
            (reason(EndReason::Timeout), [Fail, Return, Return, Return]),
            (reason(EndReason::Health), [Fail, Return, Return, Return]),
            (spawn(SpawnStage::Exec, 2), [Fail; 4]),
            (spawn(SpawnStage::Chdir, 2), [Fail; 4]),
            (spawn(SpawnStage::Fork, 11), [Fail, Return, Return, Return]),
            (spawn(SpawnStage::Exec, 26), [Fail, Return, Return, Return]),
        ];
        for (outcome, wants) in rows {
            for (policy, want) in [Never, OnFailure, Always, UnlessStopped].into_iter().zip(wants) {
                let spec = RestartSpec { policy, ..RestartSpec::default() };
                assert_eq!(verdict(Kind::Service, &spec, &outcome), want, "{policy} {outcome:?}");
            }
        }
    }

    #[test]
    fn a_success_ends_a_task_under_any_policy() {
        for policy in [Policy::Never, Policy::OnFailure, Policy::Always, Policy::UnlessStopped] {
            let spec = RestartSpec { policy, ..RestartSpec::default() };
            assert_eq!(verdict(Kind::Task, &spec, &code(0)), Verdict::Complete, "{policy}");
        }
    }

    #[test]
    fn never_on_is_asked_before_always_on_and_both_before_policy() {
        let spec = RestartSpec {
            policy: Policy::Always,
            never_on: vec![ExitMatch::Code(3), ExitMatch::Signal(11)],
            always_on: vec![ExitMatch::Code(3), ExitMatch::Code(4)],
            ..RestartSpec::default()
        };
        assert_eq!(verdict(Kind::Service, &spec, &code(3)), Verdict::Fail);
        assert_eq!(verdict(Kind::Service, &spec, &signal(11)), Verdict::Fail);
        assert_eq!(verdict(Kind::Service, &spec, &code(4)), Verdict::Return);
        let never = RestartSpec { policy: Policy::Never, ..spec };
        assert_eq!(verdict(Kind::Service, &never, &code(4)), Verdict::Return);
        assert_eq!(verdict(Kind::Service, &never, &code(5)), Verdict::Fail);
    }

    #[test]
    fn success_codes_are_the_manifests() {
        let spec = RestartSpec { success_codes: vec![0, 143], ..RestartSpec::default() };
        assert!(is_success(&spec, &code(143)));
        assert!(!is_success(&spec, &code(1)));
        assert!(!is_success(&spec, &signal(15)), "a signal is no code");
    }

    #[test]
    fn delays_double_to_the_limit() {
        let backoff = Backoff { jitter: 0.0, ..Backoff::default() };
        let millis: Vec<u128> = (0..11).map(|n| delay(&backoff, n, 0.5).as_millis()).collect();
        assert_eq!(millis, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
        let at_once = Backoff { initial: Duration::ZERO, ..backoff };
        assert_eq!(delay(&at_once, 40, 1.0), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn a_delay_is_never_over_max_and_never_below_its_jitter(
            attempt in 0u32..5_000, roll in 0.0f64..=1.0, initial in 0u64..100_000, max in 1u64..100_000,
            factor in 0.0f64..10.0, jitter in 0.0f64..2.0,
        ) {
            let backoff = Backoff {
                initial: Duration::from_millis(initial), max: Duration::from_millis(max), factor, jitter,
            };
            let got = delay(&backoff, attempt, roll);
            prop_assert!(got <= backoff.max);
            let floor = backoff.initial.min(backoff.max).as_secs_f64() * (1.0 - jitter.clamp(0.0, 1.0));
            prop_assert!(got.as_secs_f64() >= floor - 1e-9);
        }
    }
}
