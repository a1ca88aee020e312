//! What follows when the keeper or the daemon of a tree dies: each of the two restarts the other.
//!
//! The keeper is the parent of the daemon and forks another as soon as one has ended. The pause
//! between daemons that die early is slept by the new daemon, so that there are two processes
//! again at once. A daemon whose keeper is dead first forks a *standby*, which waits until no
//! other process is left to carry on. The daemon then executes the keeper in its own place. So
//! supervision is lost only when both die before the survivor has made its first step; the next
//! start by hand then finds everything by store and marks.
//!
//! Deliberately absent: processes, descriptors, clocks. `tests/succession.rs` goes through every
//! order in which the processes can make their steps and die.

use std::time::Duration;

use crate::model::Exit;

/// What a daemon wants to follow its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DaemonIntent {
    /// The daemon said nothing: it is started again.
    Again,
    /// Another program is to be started in its place, at once.
    Replaced,
    /// Everything is down: the keeper ends with this exit code.
    End(u8),
}

/// What a keeper knows about a daemon that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DaemonEnd {
    /// How the daemon ended; `None`: the kernel has not reported it yet.
    pub exit: Option<Exit>,
    /// How long the daemon lived.
    pub lived: Duration,
    /// Whether the daemon had said hello, and so supervised.
    pub greeted: bool,
    /// Whether no daemon of this keeper has ever said hello.
    pub first: bool,
    /// Whether it ran another program than the daemon before it, and never said hello.
    pub on_trial: bool,
    /// What the daemon wanted to follow its end.
    pub directive: DaemonIntent,
    /// How many daemons in a row before this one ended soon after their start.
    pub failures: u32,
}

/// What a keeper does when its daemon has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterDaemon {
    /// End with this exit code.
    End(i32),
    /// Fork another daemon at once.
    Start {
        /// How long the new daemon sleeps before it begins.
        pause: Duration,
        /// Whether it runs the program of the daemon before the one that ended.
        program_before: bool,
        /// The number of failures in a row from now on.
        failures: u32,
    },
}

/// A daemon that lived for longer than this did not fail at its start.
const SETTLED: Duration = Duration::from_secs(10);
/// The longest pause after a daemon that had said hello.
const LONGEST_BREATH: Duration = Duration::from_millis(100);
/// The longest pause after a daemon that had not said hello.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Decides what a keeper does when its daemon has ended.
pub fn after_daemon(end: &DaemonEnd) -> AfterDaemon {
    let start = |pause, program_before, failures| AfterDaemon::Start { pause, program_before, failures };
    match end.directive {
        DaemonIntent::End(code) => return AfterDaemon::End(code.into()),
        DaemonIntent::Replaced => return start(Duration::ZERO, false, 0),
        DaemonIntent::Again => {}
    }
    // The first daemon refused what it was started with, by an exit code.
    if end.first
        && let Some(Exit::Code(code)) = end.exit
    {
        return AfterDaemon::End(code);
    }
    if end.on_trial {
        return start(Duration::ZERO, true, end.failures);
    }
    let failures = if end.lived > SETTLED { 0 } else { end.failures + 1 };
    let pause = match failures {
        0 | 1 => Duration::ZERO,
        // The daemon came up: whatever ended it, the tree is unsupervised for a moment only.
        n if end.greeted => LONGEST_BREATH.min(Duration::from_millis(2) * n),
        n => LONGEST_PAUSE.min(Duration::from_millis(50) * 2u32.saturating_pow(n.min(16))),
    };
    start(pause, false, failures)
}

/// What a daemon does when the keeper's socket has closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterKeeper {
    /// End silently: the keeper lives, and forks another daemon.
    GiveWay,
    /// End with this exit code: everything is down, and nothing is left to supervise.
    End(u8),
    /// Execute the keeper in its own place.
    Carry {
        /// Whether the next daemon runs the program that was asked for instead of this one.
        other_program: bool,
    },
}

/// Decides what a daemon does when the keeper's socket has closed. `directive`: what the daemon has
/// already asked of its keeper.
pub fn after_keeper(keeper_lives: bool, directive: DaemonIntent) -> AfterKeeper {
    match (keeper_lives, directive) {
        (true, _) => AfterKeeper::GiveWay,
        (false, DaemonIntent::End(code)) => AfterKeeper::End(code),
        (false, directive) => AfterKeeper::Carry { other_program: directive == DaemonIntent::Replaced },
    }
}

/// Whether a daemon whose keeper is gone forks a standby before anything else. `standby_waits`: an
/// earlier standby still waits; it may have been dismissed since.
pub fn makes_a_standby(standby_waits: bool, directive: DaemonIntent) -> bool {
    !standby_waits && !matches!(directive, DaemonIntent::End(_))
}

/// Whether a daemon that was just forked has nothing to do: the one before it ended in order, could
/// not tell its keeper, and left no processes.
pub fn is_over(first: bool, ended_in_order: bool, processes_left: bool) -> bool {
    !first && ended_in_order && !processes_left
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILLED: Exit = Exit::Signal { signal: 9, core_dumped: false };

    fn end() -> DaemonEnd {
        DaemonEnd {
            exit: Some(KILLED),
            lived: Duration::from_secs(1),
            greeted: true,
            first: false,
            on_trial: false,
            directive: DaemonIntent::Again,
            failures: 0,
        }
    }

    fn pause_of(end: DaemonEnd) -> Duration {
        match after_daemon(&end) {
            AfterDaemon::Start { pause, .. } => pause,
            AfterDaemon::End(code) => panic!("it ends with {code}"),
        }
    }

    #[test]
    fn what_follows_a_daemon() {
        let again = |pause, program_before, failures| AfterDaemon::Start {
            pause: Duration::from_millis(pause),
            program_before,
            failures,
        };
        for (end, want) in [
            (end(), again(0, false, 1)),
            (DaemonEnd { failures: 1, ..end() }, again(4, false, 2)),
            (DaemonEnd { failures: 1, greeted: false, ..end() }, again(200, false, 2)),
            (DaemonEnd { failures: 9, lived: Duration::from_secs(11), ..end() }, again(0, false, 0)),
            (
                DaemonEnd { exit: Some(Exit::Code(3)), first: true, greeted: false, ..end() },
                AfterDaemon::End(3),
            ),
            (DaemonEnd { first: true, greeted: false, ..end() }, again(0, false, 1)),
            (DaemonEnd { on_trial: true, greeted: false, ..end() }, again(0, true, 0)),
            (DaemonEnd { directive: DaemonIntent::Replaced, failures: 7, ..end() }, again(0, false, 0)),
            (DaemonEnd { directive: DaemonIntent::End(1), ..end() }, AfterDaemon::End(1)),
        ] {
            assert_eq!(after_daemon(&end), want, "{end:?}");
        }
    }

    #[test]
    fn pauses_have_an_end() {
        for failures in [2, 50, 1_000, u32::MAX - 1] {
            assert!(pause_of(DaemonEnd { failures, ..end() }) <= LONGEST_BREATH);
            assert!(pause_of(DaemonEnd { failures, greeted: false, ..end() }) <= LONGEST_PAUSE);
        }
    }

    #[test]
    fn what_follows_a_keeper() {
        let carry = |other_program| AfterKeeper::Carry { other_program };
        for (lives, directive, want) in [
            (true, DaemonIntent::Again, AfterKeeper::GiveWay),
            (true, DaemonIntent::End(0), AfterKeeper::GiveWay),
            (false, DaemonIntent::Again, carry(false)),
            (false, DaemonIntent::Replaced, carry(true)),
            (false, DaemonIntent::End(1), AfterKeeper::End(1)),
        ] {
            assert_eq!(after_keeper(lives, directive), want, "{lives} {directive:?}");
        }
    }
}
