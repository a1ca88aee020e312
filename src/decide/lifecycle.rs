//! The lifecycle of one instance as a state machine: phase x input -> phase and effects.
//!
//! ```text
//!                      start                 the gate allows
//!   Registered, ------------------> Waiting ----------------> Starting --- spawned ---> Running <--.
//!   Stopped, Completed,               ^                          |                      |     |    | resume
//!   Failed                            |                          | spawn failed   pause |     |    |
//!      ^   ^                          |                          |                      v     |    |
//!      |   |                          |                          |                    Paused -|----'
//!      |   |        delay is over,    |        would return      |                      |     |
//!      |   |        group permits  Crashed <---------------------+                      |     |
//!      |   |                          ^                          |                      |     |
//!      |   |                          |        stop, unready,    |         .------------'     |
//!      |   |                          |        unhealthy, or     v         v                  |
//!      |   |                          |        others remain  Stopping <----------------------+
//!      |   |                          |                          |                            |
//!      |   |                          |     the tree is gone     |         exit, nothing left |
//!      |   |                          '--------------------------+----------------------------+
//!      |   '--- no return: completed, failed, or stopped --------+----------------------------'
//!      '------- stop by hand, from any phase without a process
//! ```
//!
//! Goal and phase are two fields: what is wanted, and what is. Every input about a process carries
//! its incarnation, and the machine drops inputs about any other one. While a process may exist
//! (`Starting`, `Running`, `Paused`, `Stopping`) the machine asks for no second one. Only
//! `TreeGone`, an exit that left nothing behind or a failed spawn ends that, so two incarnations
//! never run at the same time.
//!
//! Deliberately absent: the restart of a whole group (`group`), whether the dependencies are met
//! (`start_gate`), and anything that touches a process.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use turn::Turn;

use super::probe::CheckChange;
use super::start_gate::{Asking, GateReply, StartRequest};
use crate::model::cause::{CheckKind, FailureReason, StartCause};
use crate::model::exit::{EndReason, SpawnFailure};
use crate::model::{
    Exit, Fact, Goal, Incarnation, InstanceId, InstanceRecord, Name, ServiceSpec, State, StopCause,
};

/// How long after SIGKILL a process tree that still exists counts as stuck.
pub const STUCK_AFTER: Duration = Duration::from_secs(5);

/// News about an instance, or a directive for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceInput {
    /// Start the instance.
    Start(StartCause),
    /// Stop the instance: by its stop command or signal, then by SIGKILL when its time is over.
    Stop(StopCause),
    /// Stop the instance within this time at most, even if its manifest gives it more.
    StopWithin(StopCause, Duration),
    /// Kill the instance at once, by SIGKILL.
    Kill(StopCause),
    /// Stop the instance, if it runs, and start it again: a restart by hand.
    Restart,
    /// Pause the instance: halt all of its processes.
    Pause,
    /// Let a paused instance run on.
    Resume,
    /// The host has halted the whole process tree.
    Halted {
        /// The incarnation that the input is about.
        incarnation: Incarnation,
    },
    /// The start gate answers the last request, or corrects its answer.
    Answered(StartRequest, GateReply),
    /// The group permits the instance to return after a crash; the delay begins now.
    Permit,
    /// The host has started the process.
    Spawned {
        /// The incarnation that the input is about.
        incarnation: Incarnation,
        /// The pid of the main process.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
    },
    /// The host could not start the process.
    SpawnFailed {
        /// The incarnation that the input is about.
        incarnation: Incarnation,
        /// The stage and the error of the failed spawn.
        failure: SpawnFailure,
        /// A random number from 0 to 1, for the jitter of a retry.
        roll: f64,
    },
    /// The main process ended, and all of its output has been read.
    Exited {
        /// The incarnation that the input is about.
        incarnation: Incarnation,
        /// How the main process ended.
        exit: Exit,
        /// Whether other processes of the tree still run.
        remains: bool,
        /// A random number from 0 to 1, for the jitter of a retry.
        roll: f64,
    },
    /// The last process of the tree has ended, after the main process.
    TreeGone {
        /// The incarnation that the input is about.
        incarnation: Incarnation,
        /// A random number from 0 to 1, for the jitter of a retry.
        roll: f64,
    },
    /// The stop command has ended, or could not be started.
    StopCommandDone {
        /// The incarnation that the input is about.
        incarnation: Incarnation,
        /// What went wrong with the stop command; `None` if it succeeded.
        trouble: Option<String>,
    },
    /// A line of the output matched the readiness pattern.
    LogMatched {
        /// The incarnation that the input is about.
        incarnation: Incarnation,
    },
    /// A check has a change to report.
    Checked {
        /// The incarnation that the input is about.
        incarnation: Incarnation,
        /// Whether the readiness check or the health check reports.
        kind: CheckKind,
        /// What the last attempt changed.
        change: CheckChange,
    },
    /// A deadline may have passed.
    Tick,
    /// The instance's spec has changed: from this step on the machine gets the new one.
    Reconfigured,
    /// The instance goes on from this record of an earlier supervisor. Only ever the first input of
    /// a machine.
    Restore(Box<InstanceRecord>),
    /// The actor that drove an earlier machine of this instance broke; this machine takes over.
    /// Only ever the first input of a machine.
    Inherit {
        /// The goal of the instance.
        goal: Goal,
        /// The last incarnation that the broken actor asked for.
        last: Incarnation,
        /// The process that may still exist; `None` if there is none.
        left: Option<InheritedProcess>,
        /// What broke, in words.
        message: String,
    },
}

/// The process that a broken actor leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InheritedProcess {
    /// The spawn was asked for, and the host has not answered yet.
    Making,
    /// The main process runs, or others of its tree do.
    Alive {
        /// How the main process ended; `None` while it runs.
        exit: Option<Exit>,
    },
}

impl InstanceInput {
    /// The incarnation that the input is about; `None` if it is about the instance as a whole.
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

/// What the instance's actor has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum InstanceEffect {
    /// Ask the start gate whether the instance may start.
    Ask(StartRequest),
    /// Withdraw the request at the start gate.
    Withdraw,
    /// Start the process of this incarnation.
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
    /// Send SIGKILL to the tree until it is empty.
    KillTree(Incarnation),
    /// Tell the group that the instance crashed and would return after this delay.
    Crashed(Duration),
    /// Tell the group that the instance ended by itself and is not to come back.
    Ended,
    /// Tell the group the instance's activity.
    Report(Activity),
    /// Write this fact to the event log.
    Emit(Fact),
}

/// What a group needs to know about a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// The child runs, waits to start or is being stopped.
    Active,
    /// The child's process is being started.
    Coming,
    /// The child crashed and is to return.
    Fallen,
    /// The child has no process, and will not start by itself.
    Resting,
}

/// The life of one incarnation so far.
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

/// The phase of an instance, with what the machine has to remember in it.
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

/// A directive to end a process that is still being started.
#[derive(Debug, Clone, PartialEq)]
struct Abort {
    cause: StopCause,
    by_force: bool,
    next: Next,
}

/// The life of a paused process.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Paused {
    life: Life,
    /// When the pause was asked for: the deadlines of the life move on by its length.
    since: Duration,
    halt: Halt,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Halt {
    /// The host was told to halt the tree.
    Asked,
    /// The whole tree is halted.
    Done,
}

#[derive(Debug, Clone, PartialEq)]
struct Stopping {
    life: Life,
    cause: StopCause,
    asked: Duration,
    /// How the main process ended; `None` until that is known.
    exit: Option<Exit>,
    step: Step,
    next: Next,
    /// Set when the process is ended for being unready or unhealthy; a later stop keeps it.
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

/// What follows once the process tree is gone.
#[derive(Debug, Clone, PartialEq)]
enum Next {
    Rest,
    Start(StartCause),
    /// The instance fails: regrow itself is to blame.
    Fail(FailureReason),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Retry {
    /// The group was told of the crash, and has not given its permit for this delay yet.
    Asked(Duration),
    /// The group gave its permit: the instance starts at this time.
    At(Duration),
}

/// The state machine of one instance.
#[derive(Debug, Clone)]
pub struct Machine {
    id: InstanceId,
    group: Option<Name>,
    goal: Goal,
    phase: Phase,
    last: Incarnation,
    /// The last request to the start gate; the machine drops answers to earlier ones.
    question: StartRequest,
    /// The number of automatic restarts in a row, for `max_retries` and the backoff.
    attempts: u32,
    /// When a stop has to be over, whatever the spec's own timeout; the next spawn clears it.
    stop_by: Option<Duration>,
}

impl Machine {
    /// A new instance, registered and at rest. `group` is the group that it belongs to.
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

    /// The goal of the instance.
    pub fn goal(&self) -> Goal {
        self.goal
    }

    /// The state that outputs show for the phase.
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

    /// The request with which the instance goes on at a new start gate, where it still has one.
    pub fn request(&self) -> Option<(StartRequest, Asking)> {
        let asking = match &self.phase {
            Phase::Waiting { .. } => Asking::Waiting,
            Phase::Failed(FailureReason::Dependency { .. }) => Asking::Failed,
            Phase::Registered
            | Phase::Starting { .. }
            | Phase::Running(_)
            | Phase::Paused(_)
            | Phase::Stopping(_)
            | Phase::Stopped { .. }
            | Phase::Completed
            | Phase::Crashed(_)
            | Phase::Failed(_) => return None,
        };
        Some((self.question, asking))
    }

    /// Whether the process runs and is ready; a paused one is not.
    pub fn is_ready(&self) -> bool {
        matches!(&self.phase, Phase::Running(Life { ready: Readiness::Since(_), .. }))
    }

    /// The incarnation that may have a process; `None` in the phases without one.
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

    /// The activity that the group is told.
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

    /// The last incarnation; 0 before the first one.
    pub fn last(&self) -> Incarnation {
        self.last
    }

    /// When the machine needs an [`InstanceInput::Tick`]; `None` if it waits for no deadline.
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
            // While a process is paused, its deadlines stand still.
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

    /// Takes one input at time `now` and appends the effects to `out`.
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
        // The group knows an earlier machine of this instance, so it is told in any case.
        let anew = matches!(input, InstanceInput::Inherit { .. } | InstanceInput::Restore(_));
        // A group starts its members one after the other, and waits for a report of each.
        let answers = matches!(input, InstanceInput::Start(StartCause::Group));
        let before = (!anew).then(|| self.activity());
        let phase = std::mem::replace(&mut self.phase, Phase::Registered);
        self.phase = Turn { machine: self, spec, now, out }.turn(phase, input);
        let after = self.activity();
        // `Crashed` tells the group of a crash, and carries the delay.
        if answers || (before != Some(after) && after != Activity::Fallen) {
            out.push(InstanceEffect::Report(after));
        }
    }
}

mod turn;

#[cfg(test)]
mod tests;
