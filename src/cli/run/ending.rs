//! When and how a run ends: a decision on what the run hears. It has no clock and prints nothing.

use std::time::Duration;

use super::{LINGERING, SILENCE, TWICE};
use crate::cli::code;
use crate::cli::format::Tint;
use crate::model::event::{InstanceFact, TreeFact};
use crate::model::{Event, Exit, ExitOutcome, Fact, Name};
use crate::present::units::short;
use crate::sys::signals::SignalAction;

/// Why a run ends.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Reason {
    /// Nothing runs, and nothing is to come.
    Finished,
    /// The service of `--exit-on-end` has ended: the run exits with this code.
    Ended(u8),
    /// Not everything was ready within `--timeout`.
    TimedOut,
    /// A signal asked for the end.
    Signal(SignalAction),
    /// The reader of the output has gone away.
    ReaderGone,
    /// The end came from the tree: by `regrow down`, or because a group gave up.
    Elsewhere,
    /// A fault in regrow itself.
    Broke,
}

/// How the tree stands once the events so far are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Something runs or is about to.
    Busy,
    /// Something is still to start by itself.
    Starting,
    /// Nothing runs, and something was stopped by hand.
    Idle,
    /// Nothing runs, and nothing will by itself; `is_empty`: no instance is left at all.
    Finished { is_empty: bool },
}

/// What a run hears.
#[derive(Debug)]
pub(super) enum Heard<'a> {
    /// A signal came.
    Signal(SignalAction),
    /// Something happened in the tree; whether it was shown.
    Event(&'a Event, bool),
    /// The events so far are read.
    Settled(Standing),
    /// The reader of the output has gone away.
    ReaderGone,
    /// The time of `--timeout` is over; these are not ready.
    TimeOver(String),
    /// Nothing was said for a while; these are waited for.
    Silence(String),
    /// Everything is down. The words are those of a fault in regrow itself.
    Down(Option<String>),
}

/// What a run does.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Act {
    /// Note which instances have failed by now: what the end does to the others does not count.
    NoteFailures,
    /// Print a line.
    Say(String, Tint),
    /// Keep a line at the bottom of the terminal, where there is one; elsewhere print it.
    Remind(String),
    /// Take that line away.
    ClearReminder,
    /// Take everything down, for this reason.
    Shutdown(String),
    /// Kill everything at once.
    KillAll,
}

/// How a run is to end.
#[derive(Debug)]
pub(super) struct Ending {
    exit_on_end: Option<Name>,
    timeout: Option<Duration>,
    is_terminal: bool,
    reason: Option<Reason>,
    first_signal: Option<Duration>,
    /// The exit code of the last process of `exit_on_end`, until the next fact tells whether it comes
    /// back.
    ended: Option<u8>,
    /// When something was last said.
    spoken: Duration,
    told_idle: bool,
}

impl Ending {
    /// A run that has just started.
    pub(super) fn new(exit_on_end: Option<Name>, timeout: Option<Duration>, is_terminal: bool) -> Ending {
        Ending {
            exit_on_end,
            timeout,
            is_terminal,
            reason: None,
            first_signal: None,
            ended: None,
            spoken: Duration::ZERO,
            told_idle: false,
        }
    }

    /// When a word is due about what is waited for; `None` while nothing is.
    pub(super) fn next_word(&self, all_ready: bool) -> Option<Duration> {
        match (&self.reason, all_ready) {
            (Some(_), _) => Some(self.spoken + LINGERING),
            (None, false) => Some(self.spoken + SILENCE),
            (None, true) => None,
        }
    }

    /// When the time of `--timeout` is over, where that still counts.
    pub(super) fn deadline(&self, all_ready: bool) -> Option<Duration> {
        self.timeout.filter(|_| self.reason.is_none() && !all_ready)
    }

    /// Whether the run is about to end.
    pub(super) fn is_over(&self) -> bool {
        self.reason.is_some()
    }

    /// Takes what was heard `now`, since the start of the run, and says what is to be done, in order.
    pub(super) fn step(&mut self, now: Duration, heard: Heard<'_>) -> Vec<Act> {
        match heard {
            Heard::Signal(signal) => self.signal(now, signal),
            Heard::Event(event, was_shown) => {
                if was_shown {
                    self.spoken = now;
                }
                self.event(event)
            }
            Heard::Settled(standing) => self.settled(standing),
            Heard::ReaderGone => self.ends(
                Reason::ReaderGone,
                vec![Act::NoteFailures, Act::Shutdown("nobody reads the output any more".to_owned())],
            ),
            Heard::TimeOver(missing) => {
                self.spoken = now;
                let limit = short(self.timeout.unwrap_or_default());
                self.ends(
                    Reason::TimedOut,
                    vec![
                        Act::NoteFailures,
                        Act::ClearReminder,
                        Act::Say(format!("not ready within {limit}: {missing}"), Tint::Bad),
                        Act::Shutdown("not ready in time".to_owned()),
                    ],
                )
            }
            Heard::Silence(words) => {
                self.spoken = now;
                if self.reason.is_some() && !self.is_terminal {
                    // Without a terminal, a line every five seconds is enough.
                    self.spoken += Duration::from_secs(4);
                }
                let what = if self.reason.is_some() { "still stopping" } else { "still waiting" };
                (!words.is_empty()).then(|| Act::Remind(format!("{what}: {words}"))).into_iter().collect()
            }
            Heard::Down(broke) => {
                let mut acts = Vec::new();
                if let Some(words) = broke {
                    acts.push(Act::Say(words, Tint::Bad));
                    self.reason = Some(Reason::Broke);
                }
                if self.reason.is_none() {
                    // The tree went down faster than its events were read; failed instances stay failed.
                    acts.push(Act::NoteFailures);
                }
                acts
            }
        }
    }

    fn ends(&mut self, reason: Reason, acts: Vec<Act>) -> Vec<Act> {
        if self.reason.is_some() {
            return Vec::new();
        }
        self.reason = Some(reason);
        acts
    }

    fn signal(&mut self, now: Duration, signal: SignalAction) -> Vec<Act> {
        if let Some(first) = self.first_signal {
            let again = now.saturating_sub(first) > TWICE;
            return match signal {
                SignalAction::Interrupt | SignalAction::Quit if again => {
                    vec![Act::Say("killing everything".to_owned(), Tint::Bad), Act::KillAll]
                }
                _ => Vec::new(),
            };
        }
        (self.first_signal, self.spoken) = (Some(now), now);
        let what = match signal {
            SignalAction::Interrupt => "Ctrl-C: stopping (press it again to kill)",
            SignalAction::Terminate => "SIGTERM: stopping",
            SignalAction::HangUp => "SIGHUP: stopping",
            SignalAction::Quit => "SIGQUIT: killing everything",
        };
        self.reason = Some(Reason::Signal(signal));
        let end = match signal {
            SignalAction::Quit => Act::KillAll,
            _ => Act::Shutdown(what.to_owned()),
        };
        vec![Act::NoteFailures, Act::ClearReminder, Act::Say(what.to_owned(), Tint::Warn), end]
    }

    /// What an event means for the run as a whole.
    fn event(&mut self, event: &Event) -> Vec<Act> {
        if self.reason.is_some() {
            return Vec::new();
        }
        if matches!(event.fact, Fact::Tree(TreeFact::ShutdownStarted { .. })) {
            return self.ends(Reason::Elsewhere, vec![Act::NoteFailures]);
        }
        let Some(instance) = event.fact.instance().filter(|i| self.exit_on_end.as_ref() == Some(i.service()))
        else {
            return Vec::new();
        };
        match &event.fact {
            Fact::Instance(InstanceFact::Exited { exit, .. }) => {
                self.ended = Some(code_of(exit));
                Vec::new()
            }
            // An instance that is restarted, by hand or with its group, has not ended.
            Fact::Instance(
                InstanceFact::Starting { .. }
                | InstanceFact::Waiting { .. }
                | InstanceFact::Stopped { held: true, .. },
            ) => {
                self.ended = None;
                Vec::new()
            }
            Fact::Instance(
                InstanceFact::Completed { .. }
                | InstanceFact::Crashed { .. }
                | InstanceFact::Failed { .. }
                | InstanceFact::Stopped { .. },
            ) => {
                // An instance without an exit never ran: a dependency failed, or its group gave up.
                let code = self.ended.take().unwrap_or(code::FAILED);
                let acts = vec![
                    Act::Say(format!("{instance} has ended: stopping"), Tint::Faint),
                    Act::Shutdown(format!("{instance} has ended")),
                    Act::NoteFailures,
                ];
                self.ends(Reason::Ended(code), acts)
            }
            _ => Vec::new(),
        }
    }

    fn settled(&mut self, standing: Standing) -> Vec<Act> {
        match standing {
            Standing::Busy => {
                self.told_idle = false;
                Vec::new()
            }
            _ if self.reason.is_some() => Vec::new(),
            Standing::Finished { is_empty } => {
                let mut acts = vec![Act::NoteFailures];
                acts.extend(is_empty.then(|| Act::Say("nothing is left".to_owned(), Tint::Faint)));
                acts.push(Act::Shutdown("everything has ended".to_owned()));
                self.ends(Reason::Finished, acts)
            }
            Standing::Idle if !self.told_idle => {
                self.told_idle = true;
                let words =
                    "nothing is running: start a service with \"regrow start\", or end this run with Ctrl-C"
                        .to_owned();
                vec![Act::Say(words, Tint::Faint)]
            }
            Standing::Idle | Standing::Starting => Vec::new(),
        }
    }

    /// The exit code of the run. `has_failed`: an instance had failed, or a group had given up.
    pub(super) fn code(&self, has_failed: bool) -> u8 {
        match self.reason.as_ref().unwrap_or(&Reason::Elsewhere) {
            Reason::Signal(SignalAction::Interrupt) => code::INTERRUPTED,
            // The code is that of a process that SIGPIPE has ended.
            Reason::ReaderGone => 128 + 13,
            Reason::Signal(other) => u8::try_from(128 + other.number()).unwrap_or(code::FAILED),
            Reason::TimedOut => code::TIMED_OUT,
            Reason::Ended(ended) => *ended,
            Reason::Finished | Reason::Elsewhere if has_failed => code::FAILED,
            Reason::Finished | Reason::Elsewhere => code::DONE,
            Reason::Broke => code::FAILED,
        }
    }
}

/// The code with which the end of a service ends the run.
fn code_of(exit: &ExitOutcome) -> u8 {
    match exit {
        ExitOutcome::Process { exit: Exit::Code(code), .. } => u8::try_from(*code).unwrap_or(1),
        ExitOutcome::Process { exit: Exit::Signal { signal, .. }, .. } => {
            u8::try_from(128 + signal).unwrap_or(1)
        }
        ExitOutcome::Process { exit: Exit::Unknown, .. } | ExitOutcome::Spawn(_) => code::FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::InstanceId;

    fn ending(exit_on_end: Option<&str>) -> Ending {
        let name = exit_on_end.map(|name| Name::new(name).unwrap());
        Ending::new(name, Some(Duration::from_secs(9)), false)
    }

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn event(fact: InstanceFact) -> Event {
        let at = std::time::SystemTime::UNIX_EPOCH;
        Event { seq: 1, at, since_start: Duration::ZERO, fact: Fact::Instance(fact) }
    }

    fn web() -> InstanceId {
        InstanceId::sole(Name::new("web").unwrap())
    }

    fn exited(exit: Exit) -> Event {
        let ended = crate::model::EndedBy::ByItself;
        let exit = ExitOutcome::Process { exit, ended, reason: None };
        let (instance, incarnation, uptime) = (web(), crate::model::Incarnation(1), Duration::ZERO);
        event(InstanceFact::Exited { instance, incarnation, exit, uptime })
    }

    #[test]
    fn the_first_signal_stops_and_the_second_kills() {
        let mut ending = ending(None);
        let acts = ending.step(at(100), Heard::Signal(SignalAction::Interrupt));
        assert_eq!(acts.first(), Some(&Act::NoteFailures));
        assert!(matches!(acts.last(), Some(Act::Shutdown(_))));
        // Some wrappers signal a process and its group: that is one signal, heard twice.
        assert!(ending.step(at(120), Heard::Signal(SignalAction::Interrupt)).is_empty());
        assert!(ending.step(at(200), Heard::Signal(SignalAction::Terminate)).is_empty());
        assert_eq!(ending.step(at(300), Heard::Signal(SignalAction::Interrupt)).last(), Some(&Act::KillAll));
        assert_eq!(ending.code(true), code::INTERRUPTED);
    }

    #[test]
    fn each_reason_has_its_code() {
        for (heard, failed, code) in [
            (Heard::Settled(Standing::Finished { is_empty: false }), false, code::DONE),
            (Heard::Settled(Standing::Finished { is_empty: true }), true, code::FAILED),
            (Heard::TimeOver("web".to_owned()), false, code::TIMED_OUT),
            (Heard::ReaderGone, false, 141),
            (Heard::Signal(SignalAction::Terminate), true, 143),
            (Heard::Signal(SignalAction::HangUp), true, 129),
            (Heard::Signal(SignalAction::Quit), true, 131),
            (Heard::Down(None), false, code::DONE),
            (Heard::Down(None), true, code::FAILED),
            (Heard::Down(Some("it broke".to_owned())), false, code::FAILED),
        ] {
            let mut ending = ending(None);
            let name = format!("{heard:?}");
            ending.step(at(1), heard);
            assert_eq!(ending.code(failed), code, "{name}");
        }
    }

    #[test]
    fn the_first_reason_stays() {
        let mut ending = ending(None);
        ending.step(at(1), Heard::TimeOver("web".to_owned()));
        for heard in [Heard::ReaderGone, Heard::Settled(Standing::Finished { is_empty: false })] {
            assert!(ending.step(at(2), heard).is_empty());
        }
        assert_eq!(ending.code(false), code::TIMED_OUT);
        // But a signal is a wish of somebody who waits.
        ending.step(at(3), Heard::Signal(SignalAction::Interrupt));
        assert_eq!(ending.code(false), code::INTERRUPTED);
    }

    #[test]
    fn a_run_ends_with_the_code_of_a_service_that_stays_down() {
        let mut over = ending(Some("web"));
        assert!(over.step(at(1), Heard::Event(&exited(Exit::Code(7)), true)).is_empty());
        let completed = event(InstanceFact::Completed { instance: web() });
        assert_eq!(over.step(at(1), Heard::Event(&completed, true)).last(), Some(&Act::NoteFailures));
        assert_eq!(over.code(true), 7);

        let mut restarted = ending(Some("web"));
        restarted.step(at(1), Heard::Event(&exited(Exit::Signal { signal: 9, core_dumped: false }), true));
        let held = InstanceFact::Stopped { instance: web(), held: true };
        assert!(restarted.step(at(1), Heard::Event(&event(held), true)).is_empty());
        assert!(!restarted.is_over());
        // Of another service nothing follows.
        let mut other = ending(Some("db"));
        other.step(at(1), Heard::Event(&completed, true));
        assert!(!other.is_over());
    }

    #[test]
    fn an_idle_run_says_so_once_and_words_come_at_their_times() {
        let mut ending = ending(None);
        assert_eq!(ending.step(at(1), Heard::Settled(Standing::Idle)).len(), 1);
        assert!(ending.step(at(2), Heard::Settled(Standing::Idle)).is_empty());
        ending.step(at(3), Heard::Settled(Standing::Busy));
        assert_eq!(ending.step(at(4), Heard::Settled(Standing::Idle)).len(), 1);
        assert_eq!(ending.next_word(true), None);
        assert_eq!(ending.next_word(false), Some(SILENCE));
        assert_eq!(ending.deadline(false), Some(Duration::from_secs(9)));
        let said = ending.step(at(5_000), Heard::Silence("db".to_owned()));
        assert_eq!(said, [Act::Remind("still waiting: db".to_owned())]);
        assert_eq!(ending.next_word(false), Some(at(5_000) + SILENCE));
        ending.step(at(6_000), Heard::Signal(SignalAction::Interrupt));
        assert_eq!((ending.deadline(false), ending.next_word(true)), (None, Some(at(6_000) + LINGERING)));
        // Without a terminal a reminder comes every five seconds.
        ending.step(at(7_000), Heard::Silence("web".to_owned()));
        assert_eq!(ending.next_word(true), Some(at(11_000) + LINGERING));
    }
}
