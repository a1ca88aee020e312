//! The life of one instance as a machine: phase x input -> phase and effects.
//!
//! Goal and phase are two fields: what is wanted, and what is. Every input about a
//! process carries its incarnation; news of an older one is dropped before it can
//! matter. While a process may exist (`Starting`, `Running`, `Stopping`) no other is
//! made, and only `TreeGone` or an exit that left nothing behind ends that: so two
//! incarnations never live together.
//!
//! Deliberately absent: how long a restart of the group takes (`group`), whether the
//! dependencies are there (`graph`), and anything that touches a process.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use turn::Turn;

use super::probe::CheckChange;
use super::start_gate::{GateReply, StartRequest};
use crate::model::cause::{CheckKind, FailureReason, StartCause};
use crate::model::exit::{EndReason, SpawnFailure};
use crate::model::{
    Exit, Fact, Goal, Incarnation, InstanceId, InstanceRecord, Name, ServiceSpec, State, StopCause,
};

/// How long after SIGKILL a tree that is still there counts as stuck.
pub const STUCK_AFTER: Duration = Duration::from_secs(5);

/// What happened to an instance, or is wanted of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceInput {
    /// Start it.
    Start(StartCause),
    /// End it.
    Stop(StopCause),
    /// The same, where it has this time at most, however much its manifest gives it.
    StopWithin(StopCause, Duration),
    /// End it now, by SIGKILL.
    Kill(StopCause),
    /// Stop it, then start it, by hand.
    Restart,
    /// Halt it.
    Pause,
    /// Let it go on.
    Resume,
    /// All of its tree stands still.
    Halted {
        /// Which.
        incarnation: Incarnation,
    },
    /// The graph answers the last question, or corrects an answer to it.
    Answered(StartRequest, GateReply),
    /// The group lets it return after its delay.
    Permit,
    /// The process runs.
    Spawned {
        /// Which.
        incarnation: Incarnation,
        /// Its process id.
        pid: u32,
    },
    /// The process could not be made.
    SpawnFailed {
        /// Which.
        incarnation: Incarnation,
        /// Why.
        failure: SpawnFailure,
        /// Chance for the jitter of a retry, 0 to 1.
        roll: f64,
    },
    /// Its main process ended, and all it printed has been read.
    Exited {
        /// Which.
        incarnation: Incarnation,
        /// How.
        exit: Exit,
        /// Whether others of its tree live on.
        remains: bool,
        /// Chance for the jitter of a retry, 0 to 1.
        roll: f64,
    },
    /// The last of its tree is gone.
    TreeGone {
        /// Which.
        incarnation: Incarnation,
        /// Chance for the jitter of a retry, 0 to 1.
        roll: f64,
    },
    /// The stop command has ended.
    StopCommandDone {
        /// Which.
        incarnation: Incarnation,
        /// What went wrong with it.
        trouble: Option<String>,
    },
    /// A line of its output matched.
    LogMatched {
        /// Which.
        incarnation: Incarnation,
    },
    /// A check changed what is believed.
    Checked {
        /// Which.
        incarnation: Incarnation,
        /// Of which check.
        kind: CheckKind,
        /// What changed.
        change: CheckChange,
    },
    /// A deadline may have passed.
    Tick,
    /// What its manifest says of it has changed: it is another spec from this step on.
    Reconfigured,
    /// What an earlier supervisor has left of it, which goes on. The first input of a machine or
    /// none.
    Restore(Box<InstanceRecord>),
    /// The actor that drove another machine for this instance broke; this one takes its place.
    /// The first input of a machine or none.
    Inherit {
        /// What is wanted of it.
        goal: Goal,
        /// The number of the last process that was made for it.
        last: Incarnation,
        /// What may still live of it.
        left: Option<InheritedProcess>,
        /// What broke.
        message: String,
    },
}

/// The process that a broken actor leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InheritedProcess {
    /// It was asked for, and the host has not answered yet.
    Making,
    /// It runs, or others of its tree do.
    Alive {
        /// How its main process ended, if it has.
        exit: Option<Exit>,
    },
}

impl InstanceInput {
    /// The incarnation that an input is news of.
    fn incarnation(&self) -> Option<Incarnation> {
        match self {
            InstanceInput::Spawned { incarnation, .. }
            | InstanceInput::SpawnFailed { incarnation, .. }
            | InstanceInput::Exited { incarnation, .. }
            | InstanceInput::TreeGone { incarnation, .. }
            | InstanceInput::StopCommandDone { incarnation, .. }
            | InstanceInput::Halted { incarnation }
            | InstanceInput::LogMatched { incarnation }
            | InstanceInput::Checked { incarnation, .. } => Some(*incarnation),
            InstanceInput::Start(_)
            | InstanceInput::Stop(_)
            | InstanceInput::StopWithin(..)
            | InstanceInput::Kill(_)
            | InstanceInput::Restart
            | InstanceInput::Pause
            | InstanceInput::Resume
            | InstanceInput::Answered(..)
            | InstanceInput::Permit
            | InstanceInput::Tick
            | InstanceInput::Reconfigured
            | InstanceInput::Restore(_)
            | InstanceInput::Inherit { .. } => None,
        }
    }
}

/// What an actor is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum InstanceEffect {
    /// Ask the graph for the release.
    Ask(StartRequest),
    /// Take the question back.
    Withdraw,
    /// Make the process.
    Spawn(Incarnation),
    /// Begin the readiness check.
    WatchReady(Incarnation),
    /// Begin the health check.
    WatchHealth(Incarnation),
    /// End all checks.
    EndChecks,
    /// Send this signal to the whole tree, and SIGCONT after it.
    Terminate(Incarnation, i32),
    /// Halt the whole tree.
    Pause(Incarnation),
    /// Let the whole tree go on.
    Resume(Incarnation),
    /// Run the stop command.
    StopCommand(Incarnation),
    /// SIGKILL the tree until it is empty.
    KillTree(Incarnation),
    /// Tell the group: it fell and would return after this delay.
    Crashed(Duration),
    /// Tell the group that it has ended by itself and is not to come back.
    Ended,
    /// Tell the group what it is up to now.
    Report(Activity),
    /// Write a fact down.
    Emit(Fact),
}

/// What a group needs to know of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// It runs, or is on the way up or down.
    Active,
    /// Its process is being made.
    Coming,
    /// It fell and is to return.
    Fallen,
    /// Nothing of it is there and nothing will come by itself.
    Resting,
}

/// A process's life so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Life {
    incarnation: Incarnation,
    started: Duration,
    ready: Readiness,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Readiness {
    Not { at: Option<Duration>, deadline: Option<Duration> },
    Since(Duration),
}

/// Where an instance stands.
#[derive(Debug, Clone, PartialEq)]
enum Phase {
    Registered,
    Waiting { cause: StartCause },
    Starting { incarnation: Incarnation, asked: Duration, abort: Option<Abort> },
    Running(Life),
    Paused(Paused),
    Stopping(Stopping),
    Stopped { held: bool },
    Completed,
    Crashed(Retry),
    Failed(FailureReason),
}

/// A wish to end a process that is still being made.
#[derive(Debug, Clone, PartialEq)]
struct Abort {
    cause: StopCause,
    by_force: bool,
    next: Next,
}

/// A life that stands still.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Paused {
    life: Life,
    /// When that was asked for; what waited then waits so much longer.
    since: Duration,
    halt: Halt,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Halt {
    /// The host was told.
    Asked,
    /// It has said that all of the tree stands still.
    Done,
}

#[derive(Debug, Clone, PartialEq)]
struct Stopping {
    life: Life,
    cause: StopCause,
    asked: Duration,
    /// The main process's end, once it is known.
    exit: Option<Exit>,
    step: Step,
    next: Next,
    /// It was ended for being unready or unhealthy; a later wish to stop it does not unmake that.
    reason: Option<EndReason>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    /// The stop command runs; the signal follows it.
    Command { deadline: Duration },
    /// The signal was sent.
    Terminating { deadline: Duration },
    /// SIGKILL was sent.
    Killing { stuck_at: Option<Duration> },
}

/// What comes after a stop.
#[derive(Debug, Clone, PartialEq)]
enum Next {
    Rest,
    Start(StartCause),
    /// Regrow itself is to blame.
    Fail(FailureReason),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Retry {
    /// The group was asked.
    Asked(Duration),
    /// It returns then.
    At(Duration),
}

/// One instance's machine.
#[derive(Debug, Clone)]
pub struct Machine {
    id: InstanceId,
    group: Option<Name>,
    goal: Goal,
    phase: Phase,
    last: Incarnation,
    /// The last question to the graph; answers to earlier ones are late.
    question: StartRequest,
    /// Returns in a row that nobody asked for: for `max_retries` and the backoff.
    attempts: u32,
    /// When its stop is to be over, whatever its own time for that; until it starts again.
    stop_by: Option<Duration>,
}

impl Machine {
    /// A new instance, known and at rest. `group`: the one it hangs under.
    pub fn new(id: InstanceId, group: Option<Name>) -> Machine {
        Machine {
            id,
            group,
            goal: Goal::Down,
            phase: Phase::Registered,
            last: Incarnation(0),
            question: StartRequest(0),
            attempts: 0,
            stop_by: None,
        }
    }

    /// What is wanted of it.
    pub fn goal(&self) -> Goal {
        self.goal
    }

    /// The state as outputs spell it.
    pub fn state(&self) -> State {
        match &self.phase {
            Phase::Registered => State::Registered,
            Phase::Waiting { .. } => State::Waiting,
            Phase::Starting { .. } => State::Starting,
            Phase::Running(_) | Phase::Paused(Paused { halt: Halt::Asked, .. }) => State::Running,
            Phase::Paused(Paused { halt: Halt::Done, .. }) => State::Paused,
            Phase::Stopping(_) => State::Stopping,
            Phase::Stopped { .. } => State::Stopped,
            Phase::Completed => State::Completed,
            Phase::Crashed(_) => State::Crashed,
            Phase::Failed(_) => State::Failed,
        }
    }

    /// Whether it runs and is ready.
    pub fn is_ready(&self) -> bool {
        matches!(&self.phase, Phase::Running(Life { ready: Readiness::Since(_), .. }))
    }

    /// The incarnation that may have a process.
    pub fn live(&self) -> Option<Incarnation> {
        match &self.phase {
            Phase::Starting { incarnation, .. } => Some(*incarnation),
            Phase::Running(life)
            | Phase::Paused(Paused { life, .. })
            | Phase::Stopping(Stopping { life, .. }) => Some(life.incarnation),
            Phase::Registered
            | Phase::Waiting { .. }
            | Phase::Stopped { .. }
            | Phase::Completed
            | Phase::Crashed(_)
            | Phase::Failed(_) => None,
        }
    }

    /// What the group sees.
    pub fn activity(&self) -> Activity {
        match &self.phase {
            Phase::Starting { .. } => Activity::Coming,
            Phase::Waiting { .. } | Phase::Running(_) | Phase::Paused(_) | Phase::Stopping(_) => {
                Activity::Active
            }
            Phase::Crashed(_) => Activity::Fallen,
            Phase::Registered | Phase::Stopped { .. } | Phase::Completed | Phase::Failed(_) => {
                Activity::Resting
            }
        }
    }

    /// The number of its last process; 0 before the first.
    pub fn last(&self) -> Incarnation {
        self.last
    }

    /// When it wants a [`InstanceInput::Tick`], if it does.
    pub fn next_deadline(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Running(Life { ready: Readiness::Not { at, deadline }, .. }) => match (at, deadline) {
                (Some(a), Some(d)) => Some(*a.min(d)),
                (one, other) => one.or(*other),
            },
            Phase::Stopping(Stopping { step, .. }) => match step {
                Step::Command { deadline } | Step::Terminating { deadline } => Some(*deadline),
                Step::Killing { stuck_at } => *stuck_at,
            },
            Phase::Crashed(Retry::At(at)) => Some(*at),
            // It stands still, and so does its time.
            Phase::Paused(_)
            | Phase::Running(Life { ready: Readiness::Since(_), .. })
            | Phase::Crashed(Retry::Asked(_))
            | Phase::Registered
            | Phase::Waiting { .. }
            | Phase::Starting { .. }
            | Phase::Stopped { .. }
            | Phase::Completed
            | Phase::Failed(_) => None,
        }
    }

    /// Takes one input at time `now` and appends what is to be done to `out`.
    pub fn step(
        &mut self,
        spec: &ServiceSpec,
        now: Duration,
        input: InstanceInput,
        out: &mut Vec<InstanceEffect>,
    ) {
        if let Some(incarnation) = input.incarnation()
            && self.live() != Some(incarnation)
        {
            return;
        }
        if matches!(&input, InstanceInput::Answered(question, _) if *question != self.question) {
            return;
        }
        // The group knew another machine in this place.
        let anew = matches!(input, InstanceInput::Inherit { .. } | InstanceInput::Restore(_));
        // A group starts its members one after the other, and waits for a word of each.
        let answers = matches!(input, InstanceInput::Start(StartCause::Group));
        let before = (!anew).then(|| self.activity());
        let phase = std::mem::replace(&mut self.phase, Phase::Registered);
        self.phase = Turn { machine: self, spec, now, out }.turn(phase, input);
        let after = self.activity();
        // A fall is told by `Fell`, which carries the delay.
        if answers || (before != Some(after) && after != Activity::Fallen) {
            out.push(InstanceEffect::Report(after));
        }
    }
}

mod turn;

#[cfg(test)]
mod tests;
