//! What happens to one instance.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::cause::{CheckKind, FailureReason, StartCause, StopCause, UnmetCondition};
use crate::model::spec::Hook;
use crate::model::time::seconds;
use crate::model::{ExitOutcome, Goal, Health, Incarnation, InstanceId, State};

/// A fact about one instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum InstanceFact {
    /// The goal of an instance changed.
    GoalSet {
        /// The instance that the event is about.
        instance: InstanceId,
        /// The new goal.
        goal: Goal,
    },
    /// An instance is to start and asks for its dependencies. A list that is not empty says that they
    /// keep it from starting.
    Waiting {
        /// The instance that the event is about.
        instance: InstanceId,
        /// The conditions that are not met yet; empty while the answer is still open.
        #[serde(rename = "for")]
        for_: Vec<UnmetCondition>,
    },
    /// A process is being started.
    Starting {
        /// The instance that the event is about.
        instance: InstanceId,
        /// The number of the process that the event is about.
        incarnation: Incarnation,
        /// Why the process is started.
        cause: StartCause,
    },
    /// The program runs.
    Running {
        /// The instance that the event is about.
        instance: InstanceId,
        /// The number of the process that the event is about.
        incarnation: Incarnation,
        /// The pid of the process; `None` for what is no process of this machine.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
    },
    /// The instance became ready.
    Ready {
        /// The instance that the event is about.
        instance: InstanceId,
        /// The number of the process that the event is about.
        incarnation: Incarnation,
        /// The time from the start of the process until readiness, in seconds.
        #[serde(rename = "after_s", with = "seconds")]
        #[cfg_attr(feature = "control", schemars(with = "f64"))]
        after: Duration,
    },
    /// A check failed. The event is emitted at the start of a series of failures, at ever longer
    /// intervals when the message changes, and when the failures make the instance unhealthy.
    CheckFailed {
        /// The instance that the event is about.
        instance: InstanceId,
        /// The number of the process that the event is about.
        incarnation: Incarnation,
        /// The kind of the check.
        check: CheckKind,
        /// The number of failures in a row.
        in_a_row: u32,
        /// What went wrong, with the check's own output.
        message: String,
    },
    /// A check could not be performed, which says nothing about the service.
    CheckUnable {
        /// The instance that the event is about.
        instance: InstanceId,
        /// The number of the process that the event is about.
        incarnation: Incarnation,
        /// The kind of the check.
        check: CheckKind,
        /// Why the check could not be performed.
        message: String,
    },
    /// The health of an instance changed.
    HealthChanged {
        /// The instance that the event is about.
        instance: InstanceId,
        /// The number of the process that the event is about.
        incarnation: Incarnation,
        /// The new health.
        health: Health,
    },
    /// The whole process tree is halted (SIGSTOP).
    Paused {
        /// The instance that the event is about.
        instance: InstanceId,
        /// The number of the process that the event is about.
        incarnation: Incarnation,
    },
    /// A paused instance runs again.
    Resumed {
        /// The instance that the event is about.
        instance: InstanceId,
        /// The number of the process that the event is about.
        incarnation: Incarnation,
        /// Whether the instance is ready, as it was before.
        ready: bool,
    },
    /// The process tree is being stopped.
    Stopping {
        /// The instance that the event is about.
        instance: InstanceId,
        /// The number of the process that the event is about.
        incarnation: Incarnation,
        /// Why the instance is stopped.
        cause: StopCause,
        /// The signal that is sent first; `None` when a stop command runs first.
        signal: Option<String>,
        /// The time until SIGKILL, in seconds.
        #[serde(rename = "timeout_s", with = "seconds")]
        #[cfg_attr(feature = "control", schemars(with = "f64"))]
        timeout: Duration,
    },
    /// A stop command failed; the signal follows all the same.
    StopCommandFailed {
        /// The instance that the event is about.
        instance: InstanceId,
        /// The number of the process that the event is about.
        incarnation: Incarnation,
        /// How the command failed.
        message: String,
    },
    /// The main process ended by itself while other processes of its tree live on; they are stopped
    /// now.
    LeftBehind {
        /// The instance that the event is about.
        instance: InstanceId,
        /// The number of the process that the event is about.
        incarnation: Incarnation,
        /// How the main process ended.
        exit: ExitOutcome,
    },
    /// SIGKILL was sent to every remaining process of the tree.
    Killed {
        /// The instance that the event is about.
        instance: InstanceId,
        /// The number of the process that the event is about.
        incarnation: Incarnation,
        /// The time since the stop began, in seconds.
        #[serde(rename = "after_s", with = "seconds")]
        #[cfg_attr(feature = "control", schemars(with = "f64"))]
        after: Duration,
    },
    /// Even SIGKILL has not emptied the process tree: a process is stuck in the kernel.
    Stuck {
        /// The instance that the event is about.
        instance: InstanceId,
        /// The number of the process that the event is about.
        incarnation: Incarnation,
    },
    /// The actor of an instance broke by a fault in regrow itself; another has taken its place.
    ActorBroke {
        /// The instance that the event is about.
        instance: InstanceId,
        /// The last message of the actor that broke.
        message: String,
    },
    /// A hook failed; nothing else follows from that.
    HookFailed {
        /// The instance that the event is about.
        instance: InstanceId,
        /// The hook that failed.
        hook: Hook,
        /// How the command failed.
        message: String,
    },
    /// The instance starts with its env files as they are now; they changed since its manifest was
    /// read.
    EnvRenewed {
        /// The instance that starts.
        instance: InstanceId,
        /// The number of the process that is started.
        incarnation: Incarnation,
        /// The fingerprint with the new env files (`ServiceSpec::spawn_fingerprint`).
        spawn_fingerprint: u32,
    },
    /// SIGKILL doesn't end a process tree without a cgroup: its processes fork faster than regrow
    /// finds them.
    ForksAway {
        /// The instance that the tree belongs to.
        instance: InstanceId,
        /// The number of the process that the tree started from.
        incarnation: Incarnation,
        /// The number of processes at the moment.
        left: usize,
    },
    /// A process tree without a cgroup is gone, as far as regrow can see. Some of its processes had
    /// dropped their marks and ended unseen, so processes that they started may live on unknown.
    LostSight {
        /// The instance that the tree belonged to.
        instance: InstanceId,
        /// The number of the process that the tree started from.
        incarnation: Incarnation,
        /// The number of processes that ended unseen.
        of: usize,
    },
    /// The output goes to another file than the manifest's, because that one can't be used.
    OutputElsewhere {
        /// The instance whose output it is.
        instance: InstanceId,
        /// The file of the standard output.
        file: PathBuf,
        /// Why the manifest's file can't be used, with its name.
        reason: String,
    },
    /// Output can't be kept in its log files, or can be again. Followers of the output still receive
    /// it.
    OutputLost {
        /// The instance that the event is about.
        instance: InstanceId,
        /// The number of bytes that were not kept, once they can be again; `None` when the loss begins.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lost_bytes: Option<u64>,
        /// The reason for the loss; it may be empty when the loss is over.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    },
    /// The process and its whole tree are gone, or the process could not be started.
    Exited {
        /// The instance that the event is about.
        instance: InstanceId,
        /// The number of the process that the event is about.
        incarnation: Incarnation,
        /// How the process ended, or why it did not start.
        exit: ExitOutcome,
        /// How long the process ran, in seconds.
        #[serde(rename = "uptime_s", with = "seconds")]
        #[cfg_attr(feature = "control", schemars(with = "f64"))]
        uptime: Duration,
    },
    /// The instance was stopped.
    Stopped {
        /// The instance that the event is about.
        instance: InstanceId,
        /// Whether the group, the restart or the dependency that caused the stop starts the instance
        /// again.
        held: bool,
    },
    /// The process ended successfully, and the instance is not to restart.
    Completed {
        /// The instance that the event is about.
        instance: InstanceId,
    },
    /// The process ended, or failed to start, and the instance will restart.
    Crashed {
        /// The instance that the event is about.
        instance: InstanceId,
        /// How the process ended, or why it did not start.
        exit: ExitOutcome,
        /// The delay before the restart, in seconds.
        #[serde(rename = "retry_in_s", with = "seconds")]
        #[cfg_attr(feature = "control", schemars(with = "f64"))]
        retry_in: Duration,
        /// The number of this restart in a row, counted from 1.
        attempt: u32,
    },
    /// The instance will not come back.
    Failed {
        /// The instance that the event is about.
        instance: InstanceId,
        /// Why the instance failed.
        why: FailureReason,
    },
}

impl InstanceFact {
    /// The state that the fact brings its instance into, if it changes the state.
    pub fn state(&self) -> Option<State> {
        match self {
            InstanceFact::Waiting { .. } => Some(State::Waiting),
            InstanceFact::Starting { .. } => Some(State::Starting),
            InstanceFact::Running { .. } | InstanceFact::Resumed { .. } => Some(State::Running),
            InstanceFact::Paused { .. } => Some(State::Paused),
            InstanceFact::Stopping { .. } | InstanceFact::LeftBehind { .. } | InstanceFact::Killed { .. } => {
                Some(State::Stopping)
            }
            InstanceFact::Stopped { .. } => Some(State::Stopped),
            InstanceFact::Completed { .. } => Some(State::Completed),
            InstanceFact::Crashed { .. } => Some(State::Crashed),
            InstanceFact::Failed { .. } => Some(State::Failed),
            _ => None,
        }
    }

    /// The number of the process that the fact is about, if it is about one.
    pub fn incarnation(&self) -> Option<Incarnation> {
        match self {
            InstanceFact::Starting { incarnation, .. }
            | InstanceFact::Running { incarnation, .. }
            | InstanceFact::Ready { incarnation, .. }
            | InstanceFact::CheckFailed { incarnation, .. }
            | InstanceFact::CheckUnable { incarnation, .. }
            | InstanceFact::HealthChanged { incarnation, .. }
            | InstanceFact::Paused { incarnation, .. }
            | InstanceFact::Resumed { incarnation, .. }
            | InstanceFact::Stopping { incarnation, .. }
            | InstanceFact::StopCommandFailed { incarnation, .. }
            | InstanceFact::LeftBehind { incarnation, .. }
            | InstanceFact::Killed { incarnation, .. }
            | InstanceFact::Stuck { incarnation, .. }
            | InstanceFact::EnvRenewed { incarnation, .. }
            | InstanceFact::ForksAway { incarnation, .. }
            | InstanceFact::LostSight { incarnation, .. }
            | InstanceFact::Exited { incarnation, .. } => Some(*incarnation),
            _ => None,
        }
    }

    /// The instance that the fact is about.
    pub fn instance(&self) -> &InstanceId {
        match self {
            InstanceFact::GoalSet { instance, .. }
            | InstanceFact::Waiting { instance, .. }
            | InstanceFact::Starting { instance, .. }
            | InstanceFact::Running { instance, .. }
            | InstanceFact::Ready { instance, .. }
            | InstanceFact::CheckFailed { instance, .. }
            | InstanceFact::CheckUnable { instance, .. }
            | InstanceFact::HealthChanged { instance, .. }
            | InstanceFact::Paused { instance, .. }
            | InstanceFact::Resumed { instance, .. }
            | InstanceFact::Stopping { instance, .. }
            | InstanceFact::StopCommandFailed { instance, .. }
            | InstanceFact::LeftBehind { instance, .. }
            | InstanceFact::Killed { instance, .. }
            | InstanceFact::Stuck { instance, .. }
            | InstanceFact::ActorBroke { instance, .. }
            | InstanceFact::HookFailed { instance, .. }
            | InstanceFact::EnvRenewed { instance, .. }
            | InstanceFact::ForksAway { instance, .. }
            | InstanceFact::LostSight { instance, .. }
            | InstanceFact::OutputElsewhere { instance, .. }
            | InstanceFact::OutputLost { instance, .. }
            | InstanceFact::Exited { instance, .. }
            | InstanceFact::Stopped { instance, .. }
            | InstanceFact::Completed { instance }
            | InstanceFact::Crashed { instance, .. }
            | InstanceFact::Failed { instance, .. } => instance,
        }
    }
}
