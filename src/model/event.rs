//! Facts: past tense, numbered by one writer. Everything a user sees is a fold over them.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::command::{Command, Denial, Requester};
use super::exit::ExitOutcome;
use super::id::{Incarnation, InstanceId, Name};
use super::plan::{Addition, GiveUp, PlanChange, Strategy};
use super::record::InstanceRecord;
use super::spec::{Condition, Naming, seconds};
use super::status::{Goal, Health, State};

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

/// When a command of `on` is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// It became ready.
    Ready,
    /// It will not come back.
    Fail,
    /// It fell and will come back.
    Retry,
    /// It rests, because somebody asked.
    Stop,
    /// Its process, and all of its tree, is gone, however.
    Exit,
}

impl Hook {
    /// All of them.
    pub const ALL: [Hook; 5] = [Hook::Ready, Hook::Fail, Hook::Retry, Hook::Stop, Hook::Exit];

    /// Its key in a manifest.
    pub fn key(self) -> &'static str {
        match self {
            Hook::Ready => "ready",
            Hook::Fail => "fail",
            Hook::Retry => "retry",
            Hook::Stop => "stop",
            Hook::Exit => "exit",
        }
    }

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

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key())
    }
}

/// A condition that is not met yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct UnmetCondition {
    /// Of which service.
    pub service: Name,
    /// What.
    pub condition: Condition,
}

impl fmt::Display for UnmetCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.condition {
            Condition::Ready => write!(f, "{}", self.service),
            Condition::Started | Condition::Completed | Condition::Exited => {
                write!(f, "{} ({})", self.service, self.condition)
            }
        }
    }
}

/// Which of the two checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// `ready`.
    Ready,
    /// `health`.
    Health,
}

impl fmt::Display for CheckKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CheckKind::Ready => "ready",
            CheckKind::Health => "health",
        })
    }
}

/// Why a process is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StartCause {
    /// The tree came up.
    Boot,
    /// Somebody asked.
    Command,
    /// It fell, and its policy brings it back.
    Policy,
    /// Its group restarts it.
    Group,
    /// What it depends on came back.
    Dependency,
}

impl StartCause {
    /// Whether it counts as a restart; what a person asked for doesn't.
    pub fn is_restart(self) -> bool {
        match self {
            StartCause::Policy | StartCause::Group => true,
            StartCause::Boot | StartCause::Command | StartCause::Dependency => false,
        }
    }
}

/// Why a process is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StopCause {
    /// Somebody asked.
    Command,
    /// Somebody asked for a restart.
    Restart,
    /// It is taken out of the tree: its service goes, or is to have fewer copies.
    Removed,
    /// The whole tree goes down.
    Shutdown,
    /// Its group restarts, or is restarted.
    Group,
    /// Its group gave up.
    GaveUp,
    /// A group of its project gave up, and took the project down.
    ProjectGaveUp,
    /// Not ready by its deadline.
    Timeout,
    /// Its health check failed too often.
    Health,
    /// Its main process is gone and left others behind.
    LeftBehind,
    /// What it depends on fell.
    Dependency,
    /// Its group goes down, since significant members have ended.
    AutoShutdown,
    /// The actor that kept it broke: a fault in regrow itself.
    Internal,
}

impl fmt::Display for StopCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StopCause::Command => "stopped by hand",
            StopCause::Restart => "restarted by hand",
            StopCause::Removed => "taken out",
            StopCause::Shutdown => "shutting down",
            StopCause::Group => "its group restarts",
            StopCause::GaveUp => "its group gave up",
            StopCause::ProjectGaveUp => "its project gave up",
            StopCause::Timeout => "not ready in time",
            StopCause::Health => "unhealthy",
            StopCause::LeftBehind => "its main process is gone",
            StopCause::Dependency => "what it depends on fell",
            StopCause::AutoShutdown => "its group is done",
            StopCause::Internal => "regrow lost hold of it",
        })
    }
}

/// Why an instance will not come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum FailureReason {
    /// Its end is one that its policy does not answer.
    Exit {
        /// How it ended.
        exit: ExitOutcome,
    },
    /// It came back `max_retries` times and fell again.
    Retries {
        /// The last end.
        exit: ExitOutcome,
        /// How many times it came back.
        retries: u32,
    },
    /// It could not be started, for a reason that time won't mend.
    Spawn {
        /// What went wrong.
        exit: ExitOutcome,
    },
    /// Something it depends on failed for good.
    Dependency {
        /// What.
        on: Name,
    },
    /// Its group gave up.
    Group {
        /// Which; `None` for the root.
        group: Option<Name>,
    },
    /// A group of its project gave up, and took the project down.
    Project,
    /// The manifest that declares it has faults.
    Manifest {
        /// The first of them.
        message: String,
    },
    /// regrow itself broke while looking after it.
    Internal {
        /// What the actor said last.
        message: String,
    },
}

impl FailureReason {
    /// The end behind it, where there is one.
    pub fn exit(&self) -> Option<&ExitOutcome> {
        match self {
            FailureReason::Exit { exit }
            | FailureReason::Retries { exit, .. }
            | FailureReason::Spawn { exit } => Some(exit),
            FailureReason::Dependency { .. }
            | FailureReason::Group { .. }
            | FailureReason::Project
            | FailureReason::Manifest { .. }
            | FailureReason::Internal { .. } => None,
        }
    }

    /// One word for `--json` and scripts.
    pub fn word(&self) -> &'static str {
        match self {
            FailureReason::Exit { .. } => "exit",
            FailureReason::Retries { .. } => "retries",
            FailureReason::Spawn { .. } => "spawn",
            FailureReason::Dependency { .. } => "dependency",
            FailureReason::Group { .. } => "group",
            FailureReason::Project => "project",
            FailureReason::Manifest { .. } => "manifest",
            FailureReason::Internal { .. } => "internal",
        }
    }
}

impl fmt::Display for FailureReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FailureReason::Exit { exit } | FailureReason::Spawn { exit } => write!(f, "{exit}"),
            FailureReason::Retries { exit, retries } => {
                write!(f, "{exit}, after {retries} {}", if *retries == 1 { "retry" } else { "retries" })
            }
            FailureReason::Dependency { on } => write!(f, "dependency: {on} failed"),
            FailureReason::Group { group: Some(group) } => write!(f, "group {group} gave up"),
            FailureReason::Project => f.write_str("its project gave up"),
            FailureReason::Group { group: None } => f.write_str("the root group gave up"),
            FailureReason::Manifest { message } => write!(f, "its manifest is faulty: {message}"),
            FailureReason::Internal { message } => write!(f, "a fault in regrow itself: {message}"),
        }
    }
}

pub(crate) mod rfc3339 {
    //! Times as RFC 3339 in UTC, to the millisecond.
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_millis(*at))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map_err(serde::de::Error::custom)
    }
}
