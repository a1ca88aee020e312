//! Facts: past tense, numbered by one writer. Everything a user sees is a fold over them.

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
    /// Its number, from 1, without gaps.
    pub seq: u64,
    /// When, by the wall clock; for people only, no decision reads it.
    #[serde(with = "rfc3339")]
    #[cfg_attr(feature = "control", schemars(with = "String"))]
    pub at: SystemTime,
    /// When, since the supervisor's start, by the monotonic clock.
    #[serde(rename = "since_start_s", with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub since_start: Duration,
    /// What.
    #[serde(flatten)]
    pub fact: Fact,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Fact {
    /// The supervisor is up and has read its plan.
    SupervisorStarted {
        /// Its process id.
        pid: u32,
        /// regrow's version.
        version: String,
        /// The project's name.
        project: String,
        /// How many services the plan has.
        services: usize,
    },
    /// A supervisor after another: what it has taken over, as it stands.
    TakenOver {
        /// Each instance that was known before.
        instances: Vec<InstanceRecord>,
        /// Groups that had given up.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        failed_groups: Vec<Name>,
        /// Projects that had.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        failed_projects: Vec<String>,
    },
    /// A command was taken.
    CommandAccepted {
        /// It.
        command: Box<Command>,
        /// Who gave it, where that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Box<Requester>>,
    },
    /// A command was refused.
    CommandDenied {
        /// It.
        command: Box<Command>,
        /// Who gave it, where that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Box<Requester>>,
        /// Why.
        denial: Box<Denial>,
    },
    /// What the user wants of an instance changed.
    GoalSet {
        /// Whose.
        instance: InstanceId,
        /// To what.
        goal: Goal,
    },
    /// An instance wants to start and asks what it depends on; with a list: it can't yet.
    Waiting {
        /// Who.
        instance: InstanceId,
        /// For what.
        #[serde(rename = "for")]
        for_: Vec<UnmetCondition>,
    },
    /// A process is being made.
    Starting {
        /// Whose.
        instance: InstanceId,
        /// Its number.
        incarnation: Incarnation,
        /// Why now.
        cause: StartCause,
    },
    /// The program runs.
    Running {
        /// Who.
        instance: InstanceId,
        /// Its number.
        incarnation: Incarnation,
        /// Its process id.
        pid: u32,
    },
    /// It is ready.
    Ready {
        /// Who.
        instance: InstanceId,
        /// Its number.
        incarnation: Incarnation,
        /// Since its process was asked for, in seconds.
        #[serde(rename = "after_s", with = "seconds")]
        #[cfg_attr(feature = "control", schemars(with = "f64"))]
        after: Duration,
    },
    /// A check failed. Told when a series of failures begins, when it says something else (at
    /// ever longer distances), and when it ends a process.
    CheckFailed {
        /// Who.
        instance: InstanceId,
        /// Its number.
        incarnation: Incarnation,
        /// Which.
        check: CheckKind,
        /// How many times in a row.
        in_a_row: u32,
        /// What went wrong, with the check's own output.
        message: String,
    },
    /// A check could not be made; that says nothing about the service.
    CheckUnable {
        /// Who.
        instance: InstanceId,
        /// Its number.
        incarnation: Incarnation,
        /// Which.
        check: CheckKind,
        /// Why.
        message: String,
    },
    /// Its health changed.
    HealthChanged {
        /// Who.
        instance: InstanceId,
        /// Its number.
        incarnation: Incarnation,
        /// To what.
        health: Health,
    },
    /// All of its tree is halted (SIGSTOP).
    Paused {
        /// Who.
        instance: InstanceId,
        /// Its number.
        incarnation: Incarnation,
    },
    /// It goes on.
    Resumed {
        /// Who.
        instance: InstanceId,
        /// Its number.
        incarnation: Incarnation,
        /// Whether it is ready, as it was before.
        ready: bool,
    },
    /// It is being ended.
    Stopping {
        /// Who.
        instance: InstanceId,
        /// Its number.
        incarnation: Incarnation,
        /// Why.
        cause: StopCause,
        /// The signal that asks it; `None` where a stop command does.
        signal: Option<String>,
        /// How long until SIGKILL.
        #[serde(rename = "timeout_s", with = "seconds")]
        #[cfg_attr(feature = "control", schemars(with = "f64"))]
        timeout: Duration,
    },
    /// Its stop command failed; the signal follows all the same.
    StopCommandFailed {
        /// Who.
        instance: InstanceId,
        /// Its number.
        incarnation: Incarnation,
        /// How.
        message: String,
    },
    /// Its main process ended by itself and others of its tree live on; they are ended now.
    LeftBehind {
        /// Who.
        instance: InstanceId,
        /// Its number.
        incarnation: Incarnation,
        /// How the main process ended.
        exit: ExitOutcome,
    },
    /// SIGKILL was sent to all that is left of its tree.
    Killed {
        /// Who.
        instance: InstanceId,
        /// Its number.
        incarnation: Incarnation,
        /// How long after the request.
        #[serde(rename = "after_s", with = "seconds")]
        #[cfg_attr(feature = "control", schemars(with = "f64"))]
        after: Duration,
    },
    /// Even SIGKILL has not emptied the tree (a process stuck in the kernel).
    Stuck {
        /// Who.
        instance: InstanceId,
        /// Its number.
        incarnation: Incarnation,
    },
    /// The actor that kept it broke, by a fault in regrow itself; another has taken its place.
    ActorBroke {
        /// Who.
        instance: InstanceId,
        /// What broke.
        message: String,
    },
    /// A hook of it failed; that changes nothing else.
    HookFailed {
        /// Whose.
        instance: InstanceId,
        /// Which.
        hook: Hook,
        /// How.
        message: String,
    },
    /// It starts with what its env files say by now, which is not what they said when its manifest was read.
    EnvRenewed {
        /// The instance that starts.
        instance: InstanceId,
        /// The number of the process that is made.
        incarnation: Incarnation,
        /// The number of what it is made with by that (`ServiceSpec::spawn_fingerprint`).
        spawn_fingerprint: u32,
    },
    /// SIGKILL does not end its tree: its processes fork faster than they are found, and it has no cgroup.
    ForksAway {
        /// The instance whose tree it is.
        instance: InstanceId,
        /// The number of the process that the tree began with.
        incarnation: Incarnation,
        /// How many there were.
        left: usize,
    },
    /// A tree without a cgroup is gone, as far as can be seen. But processes of it had shed its marks and have
    /// ended unseen; what they may have started is not known.
    LostSight {
        /// The instance that the tree was of.
        instance: InstanceId,
        /// The number of the process that the tree began with.
        incarnation: Incarnation,
        /// How many they were.
        of: usize,
    },
    /// What it prints goes to another file than its manifest says, since that can't be used.
    OutputElsewhere {
        /// The instance that prints.
        instance: InstanceId,
        /// The file of its standard output.
        file: PathBuf,
        /// Why the other file can't be used, naming it.
        reason: String,
    },
    /// What it prints can't be kept in its log files; with a number: it can again, and so much was
    /// not kept. It still reaches those who follow.
    OutputLost {
        /// Whose.
        instance: InstanceId,
        /// How many bytes, once that is over.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lost_bytes: Option<u64>,
        /// Why.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    },
    /// What happens can't be written down; with a number: it can again, and so many events were not.
    /// Services are not affected.
    StoreLost {
        /// How many events, once that is over.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lost_events: Option<u64>,
        /// Why.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    },
    /// Its process, and all of its tree, is gone.
    Exited {
        /// Who.
        instance: InstanceId,
        /// Its number.
        incarnation: Incarnation,
        /// How.
        exit: ExitOutcome,
        /// How long it ran.
        #[serde(rename = "uptime_s", with = "seconds")]
        #[cfg_attr(feature = "control", schemars(with = "f64"))]
        uptime: Duration,
    },
    /// It rests because somebody asked.
    Stopped {
        /// Who.
        instance: InstanceId,
        /// Whether it will be started again by the group that stopped it.
        held: bool,
    },
    /// It ended well and is not to come back.
    Completed {
        /// Who.
        instance: InstanceId,
    },
    /// It will come back.
    Crashed {
        /// Who.
        instance: InstanceId,
        /// How it ended, or why it did not start.
        exit: ExitOutcome,
        /// After this delay.
        #[serde(rename = "retry_in_s", with = "seconds")]
        #[cfg_attr(feature = "control", schemars(with = "f64"))]
        retry_in: Duration,
        /// How many times it has come back in a row.
        attempt: u32,
    },
    /// It will not come back.
    Failed {
        /// Who.
        instance: InstanceId,
        /// Why.
        why: FailureReason,
    },
    /// A group restarts several of its members.
    GroupRestarting {
        /// Which; `None` for the root.
        group: Option<Name>,
        /// By which rule.
        strategy: Strategy,
        /// Whose fall it answers.
        fallen: String,
        /// Who is stopped, in that order.
        stopping: Vec<String>,
        /// Who is then started, in that order.
        starting: Vec<String>,
    },
    /// A group goes down, since significant members have ended by themselves.
    GroupShutDown {
        /// Which; `None` for the root.
        group: Option<Name>,
        /// Whose end it answers.
        ended: String,
    },
    /// A group restarted more often than it may.
    GroupGaveUp {
        /// Which; `None` for the root.
        group: Option<Name>,
        /// How many restarts were counted within the period.
        restarts: u32,
        /// The period.
        #[serde(rename = "period_s", with = "seconds")]
        #[cfg_attr(feature = "control", schemars(with = "f64"))]
        period: Duration,
        /// What follows.
        then: GiveUp,
    },
    /// A project of several goes down, since a group of it gave up by `on_give_up = "exit"`.
    ProjectGaveUp {
        /// The project's name.
        project: String,
        /// The group; `None` for the project's root.
        group: Option<Name>,
    },
    /// Services and groups were added to the tree.
    Added {
        /// They.
        addition: Arc<Addition>,
    },
    /// Services and groups were changed in place.
    Reconfigured {
        /// How they are from now on.
        change: Arc<PlanChange>,
    },
    /// There are more or fewer copies of a service from now on; those that go are down.
    Scaled {
        /// Which.
        service: Name,
        /// So many there were.
        from: u32,
        /// So many there are.
        to: u32,
        /// How they are named.
        #[serde(default, skip_serializing_if = "Naming::is_usual")]
        naming: Naming,
    },
    /// The Scaler wants another number of copies of a service.
    ScaleDecided {
        /// Which.
        service: Name,
        /// So many there are.
        from: u32,
        /// So many there are to be.
        to: u32,
        /// Why.
        reason: String,
    },
    /// A worker pool is to have so many workers from now on.
    PoolScaled {
        /// Which; `None`: the tree's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pool: Option<Name>,
        /// So many it was to have.
        from: u32,
        /// So many it is to have.
        to: u32,
        /// Why.
        reason: String,
    },
    /// Services and groups were taken out of the tree.
    Removed {
        /// Which services.
        services: Vec<Name>,
        /// Which groups.
        groups: Vec<Name>,
    },
    /// The whole tree goes down.
    ShutdownStarted {
        /// Why, in words.
        cause: String,
    },
    /// Every process is gone.
    ShutdownDone,
}

impl Fact {
    /// The state that it brings its instance into, if it does.
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

    /// The process it is about, if it is about one.
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

    /// The instance it is about, if it is about one.
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
    /// The hook for a fact, if there is one.
    pub fn of(&self, fact: &Fact) -> Option<(Hook, &CommandLine)> {
        let hook = Hook::of(fact)?;
        self.commands.iter().find(|(of, _)| *of == hook).map(|(hook, command)| (*hook, command))
    }
}

impl Hook {
    /// The one that a fact calls for.
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
