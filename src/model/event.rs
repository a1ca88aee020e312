//! Events: facts in the past tense, numbered by a single writer. Every output for a user is a fold
//! over them.
//!
//! This module holds only the data; it neither stores an event nor decides what follows from one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::command::{Command, Denial, Requester};
use super::exit::ExitOutcome;
use super::id::{Incarnation, InstanceId, Name};
use super::plan::{Addition, GiveUp, PlanChange, Strategy};
use super::record::InstanceRecord;
use super::spec::Naming;
use super::status::{Goal, Health, State};
use super::time::{rfc3339, seconds};
use crate::model::cause::{CheckKind, FailureReason, StartCause, StopCause, UnmetCondition};
use crate::model::spec::Hook;
use crate::model::{CommandLine, HookSpec};

/// A fact with its number and its time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Event {
    /// The number of the event, counted from 1 without gaps.
    pub seq: u64,
    /// The wall-clock time of the event, for people only: no decision reads it.
    #[serde(with = "rfc3339")]
    #[cfg_attr(feature = "control", schemars(with = "String"))]
    pub at: SystemTime,
    /// The time since the supervisor's start, by the monotonic clock.
    #[serde(rename = "since_start_s", with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub since_start: Duration,
    /// The fact that the event reports.
    #[serde(flatten)]
    pub fact: Fact,
}

/// The facts that an event can report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Fact {
    /// The supervisor is up and has read its plan.
    SupervisorStarted {
        /// The pid of the process.
        pid: u32,
        /// The version of regrow.
        version: String,
        /// The project's name.
        project: String,
        /// The number of services in the plan.
        services: usize,
    },
    /// The supervisor has taken over from an earlier one, with the status that it found.
    TakenOver {
        /// The records of the instances that the earlier supervisor knew.
        instances: Vec<InstanceRecord>,
        /// The groups that had given up.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        failed_groups: Vec<Name>,
        /// The projects that had given up.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        failed_projects: Vec<String>,
    },
    /// A command was accepted.
    CommandAccepted {
        /// The command.
        command: Box<Command>,
        /// The requester of the command, where it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Box<Requester>>,
    },
    /// A command was denied.
    CommandDenied {
        /// The command.
        command: Box<Command>,
        /// The requester of the command, where it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Box<Requester>>,
        /// Why the command was denied.
        denial: Box<Denial>,
    },
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
        /// The pid of the process.
        pid: u32,
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
    /// Events can't be written to the store, or can be again. Services are not affected.
    StoreLost {
        /// The number of events that were not written, once they can be again; `None` when the loss
        /// begins.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lost_events: Option<u64>,
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
    /// A group restarts several of its members.
    GroupRestarting {
        /// The group; `None` for the root.
        group: Option<Name>,
        /// The restart strategy of the group.
        strategy: Strategy,
        /// The name of the member whose crash the group answers.
        fallen: String,
        /// The members that are stopped, in that order.
        stopping: Vec<String>,
        /// The members that are then started, in that order.
        starting: Vec<String>,
    },
    /// A group shuts down, because significant members have ended by themselves.
    GroupShutDown {
        /// The group; `None` for the root.
        group: Option<Name>,
        /// The name of the member whose end the group answers.
        ended: String,
    },
    /// A group exceeded its restart limit.
    GroupGaveUp {
        /// The group; `None` for the root.
        group: Option<Name>,
        /// The number of restarts within the period.
        restarts: u32,
        /// The period in which restarts are counted, in seconds.
        #[serde(rename = "period_s", with = "seconds")]
        #[cfg_attr(feature = "control", schemars(with = "f64"))]
        period: Duration,
        /// What follows when the group gives up.
        then: GiveUp,
    },
    /// One project of several shuts down, because one of its groups gave up with `on_give_up =
    /// "exit"`.
    ProjectGaveUp {
        /// The project's name.
        project: String,
        /// The group; `None` for the project's root.
        group: Option<Name>,
    },
    /// Services and groups were added to the tree.
    Added {
        /// The new services and groups.
        addition: Arc<Addition>,
    },
    /// Services and groups were changed in place.
    Reconfigured {
        /// The services and groups as they are from now on.
        change: Arc<PlanChange>,
    },
    /// The number of copies of a service changed; the removed copies are down.
    Scaled {
        /// The name of the service.
        service: Name,
        /// The number of copies before.
        from: u32,
        /// The number of copies from now on.
        to: u32,
        /// How the copies are named.
        #[serde(default, skip_serializing_if = "Naming::is_usual")]
        naming: Naming,
    },
    /// The Scaler decided on another number of copies for a service.
    ScaleDecided {
        /// The name of the service.
        service: Name,
        /// The present number of copies.
        from: u32,
        /// The number of copies that the service is to have.
        to: u32,
        /// Why the number changes, in words.
        reason: String,
    },
    /// A worker pool is to have another number of workers from now on.
    PoolScaled {
        /// The name of the pool; `None` for the tree's own pool.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pool: Option<Name>,
        /// The number of workers that the pool was to have.
        from: u32,
        /// The number of workers that the pool is to have.
        to: u32,
        /// Why the number changes, in words.
        reason: String,
    },
    /// Services and groups were taken out of the tree.
    Removed {
        /// The removed services.
        services: Vec<Name>,
        /// The removed groups.
        groups: Vec<Name>,
    },
    /// The whole tree shuts down.
    ShutdownStarted {
        /// Why the tree shuts down, in words.
        cause: String,
    },
    /// Every process of the tree is gone.
    ShutdownDone,
}

impl Fact {
    /// The state that the fact brings its instance into, if it changes the state.
    pub fn state(&self) -> Option<State> {
        match self {
            Fact::Waiting { .. } => Some(State::Waiting),
            Fact::Starting { .. } => Some(State::Starting),
            Fact::Running { .. } | Fact::Resumed { .. } => Some(State::Running),
            Fact::Paused { .. } => Some(State::Paused),
            Fact::Stopping { .. } | Fact::LeftBehind { .. } | Fact::Killed { .. } => Some(State::Stopping),
            Fact::Stopped { .. } => Some(State::Stopped),
            Fact::Completed { .. } => Some(State::Completed),
            Fact::Crashed { .. } => Some(State::Crashed),
            Fact::Failed { .. } => Some(State::Failed),
            _ => None,
        }
    }

    /// The number of the process that the fact is about, if it is about one.
    pub fn incarnation(&self) -> Option<Incarnation> {
        match self {
            Fact::Starting { incarnation, .. }
            | Fact::Running { incarnation, .. }
            | Fact::Ready { incarnation, .. }
            | Fact::CheckFailed { incarnation, .. }
            | Fact::CheckUnable { incarnation, .. }
            | Fact::HealthChanged { incarnation, .. }
            | Fact::Paused { incarnation, .. }
            | Fact::Resumed { incarnation, .. }
            | Fact::Stopping { incarnation, .. }
            | Fact::StopCommandFailed { incarnation, .. }
            | Fact::LeftBehind { incarnation, .. }
            | Fact::Killed { incarnation, .. }
            | Fact::Stuck { incarnation, .. }
            | Fact::EnvRenewed { incarnation, .. }
            | Fact::ForksAway { incarnation, .. }
            | Fact::LostSight { incarnation, .. }
            | Fact::Exited { incarnation, .. } => Some(*incarnation),
            _ => None,
        }
    }

    /// The instance that the fact is about, if it is about one.
    pub fn instance(&self) -> Option<&InstanceId> {
        match self {
            Fact::GoalSet { instance, .. }
            | Fact::Waiting { instance, .. }
            | Fact::Starting { instance, .. }
            | Fact::Running { instance, .. }
            | Fact::Ready { instance, .. }
            | Fact::CheckFailed { instance, .. }
            | Fact::CheckUnable { instance, .. }
            | Fact::HealthChanged { instance, .. }
            | Fact::Paused { instance, .. }
            | Fact::Resumed { instance, .. }
            | Fact::Stopping { instance, .. }
            | Fact::StopCommandFailed { instance, .. }
            | Fact::LeftBehind { instance, .. }
            | Fact::Killed { instance, .. }
            | Fact::Stuck { instance, .. }
            | Fact::ActorBroke { instance, .. }
            | Fact::HookFailed { instance, .. }
            | Fact::EnvRenewed { instance, .. }
            | Fact::ForksAway { instance, .. }
            | Fact::LostSight { instance, .. }
            | Fact::OutputElsewhere { instance, .. }
            | Fact::OutputLost { instance, .. }
            | Fact::Exited { instance, .. }
            | Fact::Stopped { instance, .. }
            | Fact::Completed { instance }
            | Fact::Crashed { instance, .. }
            | Fact::Failed { instance, .. } => Some(instance),
            Fact::SupervisorStarted { .. }
            | Fact::TakenOver { .. }
            | Fact::StoreLost { .. }
            | Fact::CommandAccepted { .. }
            | Fact::CommandDenied { .. }
            | Fact::GroupRestarting { .. }
            | Fact::GroupShutDown { .. }
            | Fact::GroupGaveUp { .. }
            | Fact::Added { .. }
            | Fact::Reconfigured { .. }
            | Fact::Scaled { .. }
            | Fact::ScaleDecided { .. }
            | Fact::PoolScaled { .. }
            | Fact::Removed { .. }
            | Fact::ProjectGaveUp { .. }
            | Fact::ShutdownStarted { .. }
            | Fact::ShutdownDone => None,
        }
    }
}

impl HookSpec {
    /// The hook for a fact and its command, if the service has one.
    pub fn of(&self, fact: &Fact) -> Option<(Hook, &CommandLine)> {
        let hook = Hook::of(fact)?;
        self.commands.iter().find(|(of, _)| *of == hook).map(|(hook, command)| (*hook, command))
    }
}

impl Hook {
    /// The hook that a fact calls for, if any.
    pub fn of(fact: &Fact) -> Option<Hook> {
        match fact {
            Fact::Ready { .. } => Some(Hook::Ready),
            Fact::Failed { .. } => Some(Hook::Fail),
            Fact::Crashed { .. } => Some(Hook::Retry),
            Fact::Stopped { .. } => Some(Hook::Stop),
            Fact::Exited { .. } => Some(Hook::Exit),
            _ => None,
        }
    }
}
