//! Thresholds of checks: how many results in a row change what we believe.

use crate::model::Health;
use crate::model::event::CheckKind;

/// The result of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeded.
    Pass,
    /// It failed; the words say how, with the check's own output.
    Fail(String),
    /// It could not be made at all, which says nothing about the service.
    Unable(String),
}

/// What a check printed or answered, as part of a one-line message: no line breaks, no
/// control characters, not too long.
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

/// What an attempt changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Enough successes in a row: good now, and was not before.
    Good,
    /// The first failure of a series, worth telling.
    Failing(String),
    /// Enough failures in a row: bad now, and was not before.
    Bad {
        /// How many in a row.
        in_a_row: u32,
        /// The last one.
        message: String,
    },
    /// The first attempt of a series that could not be made.
    Unable(String),
}

/// Counts results of one check of one incarnation.
#[derive(Debug, Clone)]
pub struct Thresholds {
    kind: CheckKind,
    successes: u32,
    failures: u32,
    passed: u32,
    failed: u32,
    unable: u32,
    believed: Health,
}

impl Thresholds {
    /// Nothing is believed yet. A readiness check is never `Bad`: it just isn't ready yet.
    pub fn new(kind: CheckKind, successes: u32, failures: u32) -> Thresholds {
        Thresholds {
            kind,
            successes: successes.max(1),
            failures: failures.max(1),
            passed: 0,
            failed: 0,
            unable: 0,
            believed: Health::Unknown,
        }
    }

    /// Takes one result. `grace`: it came within the start period, so failures don't count.
    pub fn take(&mut self, outcome: Outcome, grace: bool) -> Option<Change> {
        match outcome {
            Outcome::Pass => {
                self.failed = 0;
                self.unable = 0;
                self.passed = self.passed.saturating_add(1);
                if self.passed >= self.successes && self.believed != Health::Healthy {
                    self.believed = Health::Healthy;
                    return Some(Change::Good);
                }
                None
            }
            Outcome::Fail(message) => {
                self.passed = 0;
                self.unable = 0;
                if grace {
                    return None;
                }
                self.failed = self.failed.saturating_add(1);
                let may_be_bad = match self.kind {
                    CheckKind::Health => true,
                    CheckKind::Ready => false,
                };
                if may_be_bad && self.failed >= self.failures && self.believed != Health::Unhealthy {
                    self.believed = Health::Unhealthy;
                    return Some(Change::Bad { in_a_row: self.failed, message });
                }
                (self.failed == 1).then_some(Change::Failing(message))
            }
            Outcome::Unable(message) => {
                self.unable = self.unable.saturating_add(1);
                (self.unable == 1).then_some(Change::Unable(message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail() -> Outcome {
        Outcome::Fail("refused".into())
    }

    #[test]
    fn what_a_check_says_can_not_pass_for_our_own_lines() {
        let line = one_line(b"\x1b[2Jevil\nfake   * ready\n\xff");
        assert_eq!(line, "[2Jevil fake * ready \u{fffd}");
        assert!(one_line(&b"word ".repeat(500)).len() < 310);
    }

    #[test]
    fn a_flapping_check_never_reaches_the_threshold() {
        let mut health = Thresholds::new(CheckKind::Health, 1, 3);
        assert_eq!(health.take(Outcome::Pass, false), Some(Change::Good));
        for _ in 0..50 {
            assert_eq!(health.take(fail(), false), Some(Change::Failing("refused".into())));
            assert_eq!(health.take(fail(), false), None);
            assert_eq!(health.take(Outcome::Pass, false), None);
        }
    }

    #[test]
    fn thresholds_hold_both_ways() {
        let mut health = Thresholds::new(CheckKind::Health, 2, 2);
        assert_eq!(health.take(Outcome::Pass, false), None);
        assert_eq!(health.take(Outcome::Pass, false), Some(Change::Good));
        assert_eq!(health.take(fail(), false), Some(Change::Failing("refused".into())));
        assert_eq!(health.take(fail(), false), Some(Change::Bad { in_a_row: 2, message: "refused".into() }));
        assert_eq!(health.take(fail(), false), None, "told once");
        assert_eq!(health.take(Outcome::Pass, false), None);
        assert_eq!(health.take(Outcome::Pass, false), Some(Change::Good));
    }

    #[test]
    fn unable_is_neither_good_nor_bad_and_told_once_a_series() {
        let mut health = Thresholds::new(CheckKind::Health, 1, 1);
        let unable = || Outcome::Unable("no descriptors".into());
        assert_eq!(health.take(unable(), false), Some(Change::Unable("no descriptors".into())));
        assert_eq!(health.take(unable(), false), None);
        assert_eq!(health.take(Outcome::Pass, false), Some(Change::Good));
        assert_eq!(health.take(unable(), false), Some(Change::Unable("no descriptors".into())));
    }

    #[test]
    fn failures_in_the_start_period_do_not_count() {
        let mut health = Thresholds::new(CheckKind::Health, 1, 1);
        assert_eq!(health.take(fail(), true), None);
        assert!(matches!(health.take(fail(), false), Some(Change::Bad { in_a_row: 1, .. })));
    }

    #[test]
    fn a_readiness_check_is_never_bad() {
        let mut ready = Thresholds::new(CheckKind::Ready, 1, 1);
        assert_eq!(ready.take(fail(), false), Some(Change::Failing("refused".into())));
        for _ in 0..100 {
            assert_eq!(ready.take(fail(), false), None);
        }
        assert_eq!(ready.take(Outcome::Pass, false), Some(Change::Good));
    }
}
