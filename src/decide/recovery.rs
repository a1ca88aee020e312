//! How an instance goes on under a new supervisor, by the record that the last one wrote and by the
//! process that survived it.
//!
//! Within a boot of the machine, and without an orderly end, the instance goes on exactly where it
//! was. Otherwise everything begins anew, except for the goals that were set by hand: a stopped
//! service stays down (unless its policy is `always`), and a started one comes up.

use std::time::{Duration, SystemTime};

use super::restart::{self, Verdict};
use crate::model::cause::FailureReason;
use crate::model::event::InstanceFact;
use crate::model::record::InstanceRecord;
use crate::model::{
    EndedBy, Exit, ExitOutcome, Fact, Goal, Incarnation, InstanceId, Policy, ServiceSpec, State, StopCause,
};

/// Whether this supervisor follows another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartKind {
    /// The last supervisor was killed or replaced: the processes of its services live on.
    Follows,
    /// The machine was booted, or the last supervisor ended in order.
    Afresh,
}

/// A process of an instance that the host still knows, whether it runs or has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SurvivingProcess {
    /// The incarnation whose process it is.
    pub incarnation: Incarnation,
    /// The pid of the process.
    pub pid: u32,
}

/// A process whose exit the last supervisor had heard of, and had not recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnrecordedExit {
    /// The process that ended.
    pub left: SurvivingProcess,
    /// How the process ended.
    pub exit: Exit,
}

/// How an instance goes on.
#[derive(Debug, Clone, PartialEq)]
pub struct Recovery {
    /// The record that the instance goes on from; `None`: it begins as one that was never seen.
    pub past: Option<InstanceRecord>,
    /// Whether the instance adopts the surviving process as its own.
    pub adopts: bool,
}

/// Decides how an instance goes on. `now` is the time since the tree came up; `today` is the wall
/// clock, for people.
pub fn continuation(
    id: &InstanceId,
    spec: &ServiceSpec,
    start: StartKind,
    written: Option<InstanceRecord>,
    left: Option<SurvivingProcess>,
    now: Duration,
    today: SystemTime,
) -> Recovery {
    let known = written.is_some();
    let mut past = written.unwrap_or_else(|| InstanceRecord::new(id.clone(), today));
    past.instance = id.clone();
    // The instance was being removed from the tree when its supervisor ended. Earlier versions
    // recorded a removal like a stop by hand; but after a stop by hand the goal is down.
    let taken_out = matches!(past.stopped_for, Some(StopCause::Command | StopCause::Removed));
    if past.goal == Goal::Up && taken_out {
        match past.state {
            State::Stopping => past.stopped_for = Some(StopCause::Restart),
            State::Stopped => past.state = State::Waiting,
            _ => {}
        }
    }
    if let Some(left) = left.filter(|left| is_current(&past, left)) {
        if left.incarnation > past.incarnation || !past.state.has_process() {
            // The process was started after the last record was written.
            past.ready = false;
            past.started = Some(now);
            past.state = State::Running;
            past.goal = if known { past.goal } else { Goal::Up };
            past.stopped_for = None;
        }
        if past.state == State::Starting {
            past.state = State::Running;
        }
        past.incarnation = left.incarnation;
        past.pid = Some(left.pid);
        past.started = past.started.or(Some(now));
        return Recovery { past: Some(past), adopts: true };
    }
    past.incarnation = past.incarnation.max(left.map_or(Incarnation(0), |left| left.incarnation));
    past.pid = None;
    if !known {
        let past = (past.incarnation > Incarnation(0)).then_some(past);
        return Recovery { past, adopts: false };
    }
    let past = match start {
        StartKind::Follows => vanished(spec, past, now),
        StartKind::Afresh => afresh(spec, past),
    };
    Recovery { past: Some(past), adopts: false }
}

/// The facts that are still to be told about processes before the last one, in their order: the
/// supervisor had reacted to their exits, and was killed before it recorded them. `written` is
/// the record as it was written; this adds to it what those facts would have changed.
pub fn untold(
    id: &InstanceId,
    written: &mut Option<InstanceRecord>,
    gone: impl IntoIterator<Item = UnrecordedExit>,
    now: Duration,
) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut changed = written.clone();
    for UnrecordedExit { left: SurvivingProcess { incarnation, pid }, exit } in gone {
        let known = written.as_ref().filter(|past| past.incarnation >= incarnation);
        let runs = known.filter(|past| past.incarnation == incarnation && past.state.has_process());
        match (known, runs) {
            (Some(_), None) => continue,
            (Some(_), Some(_)) => {}
            (None, _) => {
                facts.push(Fact::Instance(InstanceFact::Running {
                    instance: id.clone(),
                    incarnation,
                    pid: Some(pid),
                }));
            }
        }
        let asked = runs.is_some_and(|past| past.state == State::Stopping);
        let ended = if asked { EndedBy::Gracefully } else { EndedBy::ByItself };
        let started = runs.and_then(|past| past.started).unwrap_or(now);
        let exit = ExitOutcome::Process { exit, ended, reason: None };
        if let Some(past) = &mut changed {
            past.exit = Some(exit.clone());
            // The instance has come back since. After a stop that was asked for, that is no restart.
            let counts = u32::from(ended == EndedBy::ByItself);
            past.restarts += u64::from(counts);
            past.attempts += counts;
        }
        facts.push(Fact::Instance(InstanceFact::Exited {
            instance: id.clone(),
            incarnation,
            exit,
            uptime: now.saturating_sub(started),
        }));
    }
    *written = changed;
    facts
}

/// Releases instances that their group had stopped for a restart when its supervisor ended. If a
/// crashed member is still to come back, the group begins the restart anew and the others wait
/// for that. If there is none, each held instance starts by itself. `together` tells whether the
/// crash of one instance concerns the other.
pub fn release_orphaned_holds(
    pasts: &mut [InstanceRecord],
    together: impl Fn(&InstanceId, &InstanceId) -> bool,
) {
    let fallen: Vec<InstanceId> =
        pasts.iter().filter(|past| past.state == State::Crashed).map(|past| past.instance.clone()).collect();
    for past in pasts.iter_mut().filter(|past| past.goal == Goal::Up) {
        let waits = past.stopped_for == Some(StopCause::Group)
            && fallen.iter().any(|fallen| together(fallen, &past.instance));
        match past.state {
            State::Stopped if !waits => past.state = State::Waiting,
            State::Stopping if past.stopped_for == Some(StopCause::Group) && !waits => {
                past.stopped_for = Some(StopCause::Restart);
            }
            _ => {}
        }
    }
}

/// Undoes a shutdown of the tree that is over, or was cut short when its supervisor ended: the
/// instances that it stopped, or was about to stop, are to be up again.
pub fn up_again(pasts: &mut [InstanceRecord]) {
    let by_end =
        |past: &&mut InstanceRecord| past.goal == Goal::Up && past.stopped_for == Some(StopCause::Shutdown);
    for past in pasts.iter_mut().filter(by_end) {
        match past.state {
            State::Stopped => past.state = State::Waiting,
            State::Stopping => past.stopped_for = Some(StopCause::Restart),
            _ => {}
        }
    }
}

/// Whether the surviving process is the current one of its instance. It is not if its exit is
/// recorded, and only its keeper was not told so.
fn is_current(past: &InstanceRecord, left: &SurvivingProcess) -> bool {
    left.incarnation > past.incarnation
        || (left.incarnation == past.incarnation
            && (past.state.has_process() || past.state == State::Starting))
}

/// The record of an instance without a surviving process, of whose end nobody knows.
fn vanished(spec: &ServiceSpec, mut past: InstanceRecord, now: Duration) -> InstanceRecord {
    past.ready = false;
    match past.state {
        // The process was never started: the next try gets the same incarnation.
        State::Starting => {
            past.incarnation = Incarnation(past.incarnation.0.saturating_sub(1));
            past.state = if past.goal == Goal::Up { State::Waiting } else { State::Stopped };
        }
        State::Running | State::Paused | State::Stopping => {
            let exit = ExitOutcome::Process { exit: Exit::Unknown, ended: EndedBy::ByItself, reason: None };
            past.exit = Some(exit.clone());
            past.started = None;
            let asked = matches!(
                past.stopped_for.filter(|_| past.state == State::Stopping),
                Some(StopCause::Restart | StopCause::Group | StopCause::Dependency)
            );
            past.state = match restart::verdict(spec.kind, &spec.restart, &exit) {
                _ if past.goal == Goal::Down => State::Stopped,
                _ if asked => State::Waiting,
                Verdict::Return => {
                    past.retry_at = Some(now);
                    State::Crashed
                }
                Verdict::Complete => State::Completed,
                Verdict::Fail => {
                    past.failed = Some(FailureReason::Exit { exit });
                    State::Failed
                }
            };
        }
        State::Registered
        | State::Waiting
        | State::Stopped
        | State::Completed
        | State::Crashed
        | State::Failed => {}
    }
    past
}

fn afresh(spec: &ServiceSpec, past: InstanceRecord) -> InstanceRecord {
    // A stop by a group, or by its automatic shutdown, is no stop by hand.
    let by_hand = !matches!(past.stopped_for, Some(StopCause::AutoShutdown | StopCause::Group));
    let state = match past.goal {
        Goal::Down if by_hand && spec.autostart && spec.restart.policy != Policy::Always => State::Stopped,
        Goal::Up if !spec.autostart => State::Waiting,
        Goal::Up | Goal::Down => State::Registered,
    };
    let goal = if state == State::Registered { Goal::Down } else { past.goal };
    InstanceRecord {
        goal,
        state,
        ready: false,
        restarts: 0,
        attempts: 0,
        started: None,
        retry_at: None,
        failed: None,
        ..past
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;

    const NOW: Duration = Duration::from_secs(100);
    const TODAY: SystemTime = SystemTime::UNIX_EPOCH;

    fn web() -> (InstanceId, ServiceSpec) {
        let name = Name::new("web").unwrap();
        (InstanceId::sole(name.clone()), ServiceSpec::new(name, ["web"]))
    }

    fn past(state: State, goal: Goal, incarnation: u64) -> InstanceRecord {
        let (id, _) = web();
        InstanceRecord {
            state,
            goal,
            incarnation: Incarnation(incarnation),
            ..InstanceRecord::new(id, TODAY)
        }
    }

    #[test]
    fn what_a_cut_short_shutdown_has_stopped_is_up_again() {
        let stopped_for =
            |state, goal, cause| InstanceRecord { stopped_for: Some(cause), ..past(state, goal, 1) };
        let mut pasts = [
            stopped_for(State::Stopped, Goal::Up, StopCause::Shutdown),
            stopped_for(State::Stopping, Goal::Up, StopCause::Shutdown),
            stopped_for(State::Stopped, Goal::Down, StopCause::Command),
            stopped_for(State::Stopping, Goal::Up, StopCause::Dependency),
            past(State::Completed, Goal::Up, 1),
        ];
        up_again(&mut pasts);
        let now = pasts.map(|past| (past.state, past.stopped_for));
        assert_eq!(
            now,
            [
                (State::Waiting, Some(StopCause::Shutdown)),
                (State::Stopping, Some(StopCause::Restart)),
                (State::Stopped, Some(StopCause::Command)),
                (State::Stopping, Some(StopCause::Dependency)),
                (State::Completed, None),
            ]
        );
    }

    fn go_on(start: StartKind, written: Option<InstanceRecord>, left: Option<u64>) -> Recovery {
        let (id, spec) = web();
        let left = left.map(|number| SurvivingProcess { incarnation: Incarnation(number), pid: 7 });
        continuation(&id, &spec, start, written, left, NOW, TODAY)
    }

    #[test]
    fn where_it_stood_it_goes_on() {
        use Goal::{Down, Up};
        // state, goal, recorded incarnation, surviving one => state, incarnation, adopted
        for (state, goal, number, left, want, last, adopts) in [
            (State::Running, Up, 3, Some(3), State::Running, 3, true),
            (State::Paused, Up, 3, Some(3), State::Paused, 3, true),
            (State::Stopping, Down, 3, Some(3), State::Stopping, 3, true),
            (State::Starting, Up, 3, Some(3), State::Running, 3, true),
            // The process was started after the last record.
            (State::Crashed, Up, 3, Some(4), State::Running, 4, true),
            (State::Starting, Up, 3, Some(4), State::Running, 4, true),
            // The exit was recorded already.
            (State::Crashed, Up, 3, Some(3), State::Crashed, 3, false),
            (State::Completed, Up, 3, Some(2), State::Completed, 3, false),
            // The process was asked for, and never started.
            (State::Starting, Up, 4, None, State::Waiting, 3, false),
            (State::Starting, Down, 4, None, State::Stopped, 3, false),
            // The process is gone, and nobody knows how it ended.
            (State::Running, Up, 3, None, State::Crashed, 3, false),
            (State::Running, Down, 3, None, State::Stopped, 3, false),
            (State::Failed, Up, 3, None, State::Failed, 3, false),
            (State::Stopped, Down, 3, None, State::Stopped, 3, false),
        ] {
            let found = go_on(StartKind::Follows, Some(past(state, goal, number)), left);
            let now = found.past.unwrap();
            assert_eq!(
                (now.state, now.incarnation.0, now.goal, found.adopts),
                (want, last, goal, adopts),
                "{state:?} {left:?}"
            );
        }
        assert_eq!(go_on(StartKind::Follows, None, None), Recovery { past: None, adopts: false });
        let unwritten = go_on(StartKind::Follows, None, Some(1));
        assert!(unwritten.adopts && unwritten.past.unwrap().goal == Up);
    }

    #[test]
    fn ends_that_were_answered_and_not_written_down_are_told_once() {
        let (id, _) = web();
        let gone = |number: u64| UnrecordedExit {
            left: SurvivingProcess { incarnation: Incarnation(number), pid: 7 },
            exit: Exit::Code(13),
        };
        let told = |written: Option<InstanceRecord>| -> Vec<String> {
            let mut after = written.clone();
            let facts = untold(&id, &mut after, [gone(3), gone(4)], NOW);
            let ends = facts
                .iter()
                .filter(|fact| matches!(fact, Fact::Instance(InstanceFact::Exited { .. })))
                .count();
            let counted = |past: &Option<InstanceRecord>| past.as_ref().map_or(0, |past| past.attempts);
            assert_eq!(
                counted(&after) - counted(&written),
                u32::try_from(ends).unwrap() * u32::from(after.is_some())
            );
            let words = facts.iter().map(|fact| match fact {
                Fact::Instance(InstanceFact::Running { incarnation, .. }) => format!("running {incarnation}"),
                Fact::Instance(InstanceFact::Exited { incarnation, exit, .. }) => {
                    format!("{incarnation} {exit}")
                }
                other => format!("{other:?}"),
            });
            words.collect()
        };
        for (written, want) in [
            (
                Some(past(State::Running, Goal::Up, 3)),
                &["#3 exit code 13", "running #4", "#4 exit code 13"][..],
            ),
            (Some(past(State::Crashed, Goal::Up, 3)), &["running #4", "#4 exit code 13"]),
            (Some(past(State::Starting, Goal::Up, 4)), &["#4 exit code 13"]),
            (Some(past(State::Crashed, Goal::Up, 4)), &[]),
            (Some(past(State::Running, Goal::Up, 5)), &[]),
        ] {
            assert_eq!(told(written.clone()), want, "{written:?}");
        }
        assert_eq!(told(None).len(), 4);
    }

    #[test]
    fn a_boot_keeps_what_was_wished_by_hand() {
        let (id, mut spec) = web();
        for (policy, autostart, goal, want) in [
            (Policy::OnFailure, true, Goal::Down, State::Stopped),
            (Policy::UnlessStopped, true, Goal::Down, State::Stopped),
            (Policy::Always, true, Goal::Down, State::Registered),
            (Policy::OnFailure, true, Goal::Up, State::Registered),
            (Policy::OnFailure, false, Goal::Up, State::Waiting),
            (Policy::OnFailure, false, Goal::Down, State::Registered),
        ] {
            (spec.restart.policy, spec.autostart) = (policy, autostart);
            let written = Some(past(State::Running, goal, 5));
            let found = continuation(&id, &spec, StartKind::Afresh, written, None, NOW, TODAY);
            assert_eq!(found.past.map(|past| past.state), Some(want), "{policy} {autostart} {goal:?}");
        }
    }
}
