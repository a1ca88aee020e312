//! The status of the tree, as every output shows it.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::cause::{FailureReason, UnmetCondition};
use super::exit::ExitOutcome;
use super::id::Name;
use super::plan::Strategy;
use super::sample::MachineSample;

/// The state of an instance. Readiness and health are separate fields, never part of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The instance is known and was never started.
    Registered,
    /// The instance is to start, but a condition of a dependency is not met yet.
    Waiting,
    /// The process is being started.
    Starting,
    /// The process runs.
    Running,
    /// The processes are halted by SIGSTOP.
    Paused,
    /// The process tree is being stopped.
    Stopping,
    /// The instance was stopped, by a command, its group, a dependency or a shutdown.
    Stopped,
    /// The process ended successfully, and the instance is not to restart.
    Completed,
    /// The process ended, and the instance will restart after its backoff.
    Crashed,
    /// The instance will not come back.
    Failed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Registered => "registered",
            State::Waiting => "waiting",
            State::Starting => "starting",
            State::Running => "running",
            State::Paused => "paused",
            State::Stopping => "stopping",
            State::Stopped => "stopped",
            State::Completed => "completed",
            State::Crashed => "crashed",
            State::Failed => "failed",
        })
    }
}

impl State {
    /// All states, in the order of their declaration.
    pub const ALL: [State; 10] = [
        State::Registered,
        State::Waiting,
        State::Starting,
        State::Running,
        State::Paused,
        State::Stopping,
        State::Stopped,
        State::Completed,
        State::Crashed,
        State::Failed,
    ];

    /// Whether the instance has a process or is about to get one.
    pub fn has_process(self) -> bool {
        match self {
            State::Starting | State::Running | State::Paused | State::Stopping => true,
            State::Registered
            | State::Waiting
            | State::Stopped
            | State::Completed
            | State::Crashed
            | State::Failed => false,
        }
    }
}

/// What the user wants of an instance, kept apart from its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// The instance is to run.
    Up,
    /// The instance is to be down.
    Down,
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Goal::Up => "up",
            Goal::Down => "down",
        })
    }
}

/// The result of the health checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// The service has no check, or no check has given a result yet.
    Unknown,
    /// The last checks succeeded.
    Healthy,
    /// Too many checks failed in a row.
    Unhealthy,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Health::Unknown => "unknown",
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
        })
    }
}

/// The answer to `status --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct StatusReport {
    /// The supervisor that answers.
    pub daemon: DaemonStatus,
    /// The machine, from the last sample; missing before the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineSample>,
    /// Every instance, in declared order.
    pub services: Vec<ServiceStatus>,
    /// Every group, by name; the root is not among them.
    pub groups: Vec<GroupStatus>,
}

/// The supervisor, as its status shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct DaemonStatus {
    /// The pid of the supervisor (not of its keeper).
    pub pid: u32,
    /// The version of regrow.
    pub version: String,
    /// The time since the supervisor's start, in seconds.
    pub uptime_s: f64,
    /// The project's name.
    pub project: String,
    /// The path of the manifest; `null` without one.
    #[serde(default)]
    pub manifest: Option<String>,
    /// Whether the supervisor is a machine's daemon, with a folder of manifests, and not a `run`.
    #[serde(default)]
    pub is_daemon: bool,
    /// The manifests with faults. The last valid version of each, where there is one, stays in effect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faulty: Vec<FaultyManifest>,
    /// Whether the tree is shutting down.
    pub stopping: bool,
    /// The number of the last event that this report includes.
    pub last_event: u64,
}

/// The first fault of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct FaultyManifest {
    /// The path of the manifest.
    pub file: PathBuf,
    /// The line of the fault, from 1.
    pub line: usize,
    /// The fault, in words.
    pub message: String,
}

/// The status of one instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ServiceStatus {
    /// The name within its project: the service's name, with `.N` where there are several replicas.
    pub name: String,
    /// The name across all projects: `project/name`.
    #[serde(default)]
    pub id: String,
    /// The name of the service.
    pub service: Name,
    /// The project that the instance belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The group that the service is a child of; `null` for the root.
    pub group: Option<Name>,
    /// The state of the instance.
    pub state: State,
    /// Whether the instance is ready.
    pub ready: bool,
    /// The result of the health checks.
    pub health: Health,
    /// What the user wants of the instance.
    pub goal: Goal,
    /// The pid of the process, while one runs.
    pub pid: Option<u32>,
    /// The number of the current or last process; 0 before the first one.
    pub incarnation: u64,
    /// How often the restart policy or the group restarted the instance.
    pub restarts: u64,
    /// How long the process has run, in seconds.
    pub uptime_s: Option<f64>,
    /// The time at which the instance entered its state.
    #[serde(with = "super::time::rfc3339")]
    #[cfg_attr(feature = "control", schemars(with = "String"))]
    pub since: SystemTime,
    /// How the last process ended.
    pub exit: Option<ExitOutcome>,
    /// Why the instance failed, while it is `failed`.
    pub failed: Option<FailureReason>,
    /// The conditions that the instance waits for, while it is `waiting`.
    pub waiting_for: Vec<UnmetCondition>,
    /// The time until the restart in seconds, while the instance is `crashed`.
    pub retry_in_s: Option<f64>,
    /// CPU of the whole process tree; 100 is one core. `null` before two samples.
    pub cpu_percent: Option<f64>,
    /// Resident memory of the whole process tree, in bytes. `null` before the first sample.
    pub memory_bytes: Option<u64>,
    /// The number of processes in the tree. `null` before the first sample.
    pub processes: Option<u32>,
    /// What is wrong with the files that keep the output; `null` when nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

/// The status of one group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct GroupStatus {
    /// The name of the group.
    pub name: Name,
    /// The parent group; `null` for the root.
    pub parent: Option<Name>,
    /// Whether the group gave up and has not been started since.
    pub failed: bool,
    /// The members of the group, in order.
    pub members: Vec<Name>,
}

/// The answer to `status --tree`: a supervisor and its children, as OTP's `which_children` and
/// `count_children` report them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct TreeStatus {
    /// The group; `null` for the root.
    pub group: Option<Name>,
    /// What the crash of one member means for the others.
    pub strategy: Strategy,
    /// Whether the group gave up and has not been started since.
    pub failed: bool,
    /// The number of the group's children.
    pub count: ChildCount,
    /// The members of the group, in declared order.
    pub children: Vec<ChildStatus>,
}

/// A member of a [`TreeStatus`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ChildStatus {
    /// A nested group.
    Group(TreeStatus),
    /// An instance of a service.
    Instance {
        /// The printed name of the instance.
        name: String,
        /// The state of the instance.
        state: State,
        /// Whether the instance is ready.
        ready: bool,
        /// The pid of the process, while one runs.
        pid: Option<u32>,
        /// How often the restart policy or the group restarted the instance.
        restarts: u64,
    },
}

/// The number of a supervisor's direct children, as OTP's `count_children` counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ChildCount {
    /// All children.
    pub specs: usize,
    /// The instances that have a process, and the groups that have not given up.
    pub active: usize,
    /// The child groups.
    pub supervisors: usize,
    /// The child instances.
    pub workers: usize,
}
