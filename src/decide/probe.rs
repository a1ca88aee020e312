//! Readiness and health checks: when the next attempt is made, and how many results in a row change
//! the verdict.
//!
//! Deliberately absent: the attempts themselves, whose results the caller passes in.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::Health;
use crate::model::cause::CheckKind;
use crate::model::keys::service::SHORTEST_INTERVAL;

/// The result of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckOutcome {
    /// The check succeeded.
    Pass,
    /// The check failed; the text says how, with the check's own output.
    Fail(String),
    /// The check could not be made at all, which says nothing about the service.
    Unable(String),
}

/// What a check printed or answered, as part of a one-line message: without line breaks and
/// control characters, and about 300 bytes at most.
pub fn one_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let mut words = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()) {
        if words.len() + word.len() > 300 {
            words.push_str(" ...");
            break;
        }
        if !words.is_empty() {
            words.push(' ');
        }
        words.push_str(word);
    }
    words
}

/// The pauses between the attempts of a check.
#[derive(Debug, Clone)]
pub struct Pauses {
    next: Duration,
    interval: Duration,
}

impl Pauses {
    /// The pauses of a check with this interval. A service is often ready within milliseconds, so
    /// its readiness check begins quickly and slows down to the interval.
    pub fn new(kind: CheckKind, interval: Duration) -> Pauses {
        let interval = interval.max(SHORTEST_INTERVAL);
        let next = match kind {
            CheckKind::Ready => FIRST_PAUSE.min(interval),
            CheckKind::Health => interval,
        };
        Pauses { next, interval }
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.next;
        self.next = (pause * 2).min(self.interval);
        Some(pause)
    }
}

/// The pause after the first attempt of a readiness check; it doubles up to the interval.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// What an attempt changed, if that is worth telling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckChange {
    /// Enough successes in a row: the service is good now, and was not before.
    Good,
    /// A failure worth telling: the first of a series, and then one with another message once the
    /// series is at least twice as long as at the last one told.
    Failing {
        /// How many failures there were in a row.
        in_a_row: u32,
        /// How the attempt failed.
        message: String,
    },
    /// Enough failures in a row: the service is bad now, and was not before.
    Bad {
        /// How many failures there were in a row.
        in_a_row: u32,
        /// How the last attempt failed.
        message: String,
    },
    /// The first attempt of a series that could not be made, with the reason.
    Unable(String),
}

/// Counts the results of one check of one incarnation.
#[derive(Debug, Clone)]
pub struct CheckStreak {
    kind: CheckKind,
    successes: u32,
    failures: u32,
    passed: u32,
    failed: u32,
    unable: u32,
    believed: Health,
    /// The length of this series of failures when one was told last, and its message.
    told: Option<(u32, String)>,
    /// Failures before this time don't count.
    grace_until: Duration,
}

impl CheckStreak {
    /// A streak without any result. `successes` and `failures` are the thresholds, at least 1.
    /// A readiness check never turns `Bad`: the service just isn't ready yet. Failures before
    /// `grace_until` don't count.
    pub fn new(kind: CheckKind, successes: u32, failures: u32, grace_until: Duration) -> CheckStreak {
        CheckStreak {
            kind,
            successes: successes.max(1),
            failures: failures.max(1),
            passed: 0,
            failed: 0,
            unable: 0,
            believed: Health::Unknown,
            told: None,
            grace_until,
        }
    }

    /// Takes the result of one attempt; returns what it changed, if that is worth telling.
    pub fn take(&mut self, outcome: CheckOutcome, now: Duration) -> Option<CheckChange> {
        match outcome {
            CheckOutcome::Pass => {
                self.failed = 0;
                self.told = None;
                self.unable = 0;
                self.passed = self.passed.saturating_add(1);
                if self.passed >= self.successes && self.believed != Health::Healthy {
                    self.believed = Health::Healthy;
                    return Some(CheckChange::Good);
                }
                None
            }
            CheckOutcome::Fail(message) => {
                self.passed = 0;
                self.unable = 0;
                if now < self.grace_until {
                    return None;
                }
                self.failed = self.failed.saturating_add(1);
                let may_be_bad = match self.kind {
                    CheckKind::Health => true,
                    CheckKind::Ready => false,
                };
                if may_be_bad && self.failed >= self.failures && self.believed != Health::Unhealthy {
                    self.believed = Health::Unhealthy;
                    return Some(CheckChange::Bad { in_a_row: self.failed, message });
                }
                let news = self.told.as_ref().is_none_or(|(at, told)| {
                    // A message that carries the time differs each time.
                    *told != message && self.failed >= at.saturating_mul(2)
                });
                news.then(|| {
                    self.told = Some((self.failed, message.clone()));
                    CheckChange::Failing { in_a_row: self.failed, message }
                })
            }
            CheckOutcome::Unable(message) => {
                self.unable = self.unable.saturating_add(1);
                (self.unable == 1).then_some(CheckChange::Unable(message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(60);

    fn fail() -> CheckOutcome {
        CheckOutcome::Fail("refused".into())
    }

    #[test]
    fn what_a_check_says_can_not_pass_for_our_own_lines() {
        let line = one_line(b"\x1b[2Jevil\nfake   * ready\n\xff");
        assert_eq!(line, "[2Jevil fake * ready \u{fffd}");
        assert!(one_line(&b"word ".repeat(500)).len() < 310);
    }

    #[test]
    fn a_flapping_check_never_reaches_the_threshold() {
        let mut health = CheckStreak::new(CheckKind::Health, 1, 3, Duration::ZERO);
        assert_eq!(health.take(CheckOutcome::Pass, NOW), Some(CheckChange::Good));
        for _ in 0..50 {
            assert_eq!(
                health.take(fail(), NOW),
                Some(CheckChange::Failing { in_a_row: 1, message: "refused".into() })
            );
            assert_eq!(health.take(fail(), NOW), None);
            assert_eq!(health.take(CheckOutcome::Pass, NOW), None);
        }
    }

    #[test]
    fn thresholds_hold_both_ways() {
        let mut health = CheckStreak::new(CheckKind::Health, 2, 2, Duration::ZERO);
        assert_eq!(health.take(CheckOutcome::Pass, NOW), None);
        assert_eq!(health.take(CheckOutcome::Pass, NOW), Some(CheckChange::Good));
        assert_eq!(
            health.take(fail(), NOW),
            Some(CheckChange::Failing { in_a_row: 1, message: "refused".into() })
        );
        assert_eq!(
            health.take(fail(), NOW),
            Some(CheckChange::Bad { in_a_row: 2, message: "refused".into() })
        );
        assert_eq!(health.take(fail(), NOW), None, "told once");
        assert_eq!(health.take(CheckOutcome::Pass, NOW), None);
        assert_eq!(health.take(CheckOutcome::Pass, NOW), Some(CheckChange::Good));
    }

    #[test]
    fn unable_is_neither_good_nor_bad_and_told_once_a_series() {
        let mut health = CheckStreak::new(CheckKind::Health, 1, 1, Duration::ZERO);
        let unable = || CheckOutcome::Unable("no descriptors".into());
        assert_eq!(health.take(unable(), NOW), Some(CheckChange::Unable("no descriptors".into())));
        assert_eq!(health.take(unable(), NOW), None);
        assert_eq!(health.take(CheckOutcome::Pass, NOW), Some(CheckChange::Good));
        assert_eq!(health.take(unable(), NOW), Some(CheckChange::Unable("no descriptors".into())));
    }

    #[test]
    fn failures_in_the_start_period_do_not_count() {
        let mut health = CheckStreak::new(CheckKind::Health, 1, 1, NOW);
        assert_eq!(health.take(fail(), NOW - Duration::from_nanos(1)), None);
        assert!(matches!(health.take(fail(), NOW), Some(CheckChange::Bad { in_a_row: 1, .. })));
    }

    #[test]
    fn a_readiness_check_slows_down_from_quick_to_its_interval() {
        let millis = |kind, interval| -> Vec<u128> {
            Pauses::new(kind, Duration::from_millis(interval)).take(5).map(|p| p.as_millis()).collect()
        };
        assert_eq!(millis(CheckKind::Ready, 100), [10, 20, 40, 80, 100]);
        assert_eq!(millis(CheckKind::Ready, 15), [10, 15, 15, 15, 15]);
        assert_eq!(millis(CheckKind::Health, 0), [10, 10, 10, 10, 10], "no check floods the machine");
        assert_eq!(millis(CheckKind::Health, 100), [100, 100, 100, 100, 100]);
    }

    #[test]
    fn a_new_failure_is_told_but_not_each_that_always_differs() {
        let mut ready = CheckStreak::new(CheckKind::Ready, 1, 1, Duration::ZERO);
        let mut told = Vec::new();
        for n in 1..=100 {
            let message = if n <= 5 { "refused".to_owned() } else { format!("timed out at {n}") };
            if let Some(CheckChange::Failing { in_a_row, .. }) = ready.take(CheckOutcome::Fail(message), NOW)
            {
                told.push(in_a_row);
            }
        }
        assert_eq!(told, [1, 6, 12, 24, 48, 96]);
    }

    #[test]
    fn a_readiness_check_is_never_bad() {
        let mut ready = CheckStreak::new(CheckKind::Ready, 1, 1, Duration::ZERO);
        assert_eq!(
            ready.take(fail(), NOW),
            Some(CheckChange::Failing { in_a_row: 1, message: "refused".into() })
        );
        for _ in 0..100 {
            assert_eq!(ready.take(fail(), NOW), None);
        }
        assert_eq!(ready.take(CheckOutcome::Pass, NOW), Some(CheckChange::Good));
    }
}
