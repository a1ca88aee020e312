//! What is, as every output shows it.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::cause::{FailureReason, UnmetCondition};
use super::exit::ExitOutcome;
use super::id::Name;
use super::plan::Strategy;
use super::sample::MachineSample;

/// The state of an instance. Readiness and health stand beside it, never inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Known, never started.
    Registered,
    /// Wants to start; a dependency is not there yet.
    Waiting,
    /// Its process is being made.
    Starting,
    /// Its process runs.
    Running,
    /// Its processes are held by SIGSTOP.
    Paused,
    /// It is being ended.
    Stopping,
    /// It rests because somebody asked.
    Stopped,
    /// It ended well and is not to come back.
    Completed,
    /// It fell and will come back: backing off.
    Crashed,
    /// It will not come back.
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
    /// All of them.
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

    /// Whether there is, or is about to be, a process.
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

/// What the user wants, kept apart from what is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// To run.
    Up,
    /// To rest.
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

/// What the health checks say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// No check, or none has come to a result yet.
    Unknown,
    /// The last ones succeeded.
    Healthy,
    /// Too many failed in a row.
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

/// `status --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct StatusReport {
    /// The supervisor itself.
    pub daemon: DaemonStatus,
    /// The machine, from the last sample; missing before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineSample>,
    /// Every instance, in declared order.
    pub services: Vec<ServiceStatus>,
    /// Every group, by name; the root is not among them.
    pub groups: Vec<GroupStatus>,
}

/// The process that supervises.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct DaemonStatus {
    /// Its process id (not the keeper's).
    pub pid: u32,
    /// regrow's version.
    pub version: String,
    /// How long it has been up.
    pub uptime_s: f64,
    /// The project's name.
    pub project: String,
    /// The manifest, where there is one.
    #[serde(default)]
    pub manifest: Option<String>,
    /// Whether it is a machine's daemon, which has a folder of manifests, and no `run`.
    #[serde(default)]
    pub is_daemon: bool,
    /// Manifests that can't be used as they are: what they said before runs on, if they ever were right.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faulty: Vec<FaultyManifest>,
    /// Whether the tree is going down.
    pub stopping: bool,
    /// The number of the last event that this report includes.
    pub last_event: u64,
}

/// The first fault of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct FaultyManifest {
    /// The file.
    pub file: PathBuf,
    /// The line of the fault, from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ServiceStatus {
    /// The instance within its project: the service's name, with `.N` where there are several replicas.
    pub name: String,
    /// What it is known by in all of a machine's trees: `project/name`.
    #[serde(default)]
    pub id: String,
    /// The service.
    pub service: Name,
    /// The project that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The group it hangs under; `null` for the root.
    pub group: Option<Name>,
    /// What is.
    pub state: State,
    /// Whether it is ready.
    pub ready: bool,
    /// What its health checks say.
    pub health: Health,
    /// What is wanted.
    pub goal: Goal,
    /// Its process, while there is one.
    pub pid: Option<u32>,
    /// The number of its current or last process; 0 before the first.
    pub incarnation: u64,
    /// How many times it came back without being asked to.
    pub restarts: u64,
    /// How long its process has run.
    pub uptime_s: Option<f64>,
    /// When it came into its state.
    #[serde(with = "super::time::rfc3339")]
    #[cfg_attr(feature = "control", schemars(with = "String"))]
    pub since: SystemTime,
    /// How its last process ended.
    pub exit: Option<ExitOutcome>,
    /// Why it failed, while it is `failed`.
    pub failed: Option<FailureReason>,
    /// What it waits for, while it is `waiting`.
    pub waiting_for: Vec<UnmetCondition>,
    /// Time until it comes back, while it is `crashed`.
    pub retry_in_s: Option<f64>,
    /// CPU of its whole tree of processes; 100 is one core. `null` before two samples.
    pub cpu_percent: Option<f64>,
    /// Resident memory of its whole tree. `null` before the first sample.
    pub memory_bytes: Option<u64>,
    /// Number of processes in its tree. `null` before the first sample.
    pub processes: Option<u32>,
    /// What is wrong with where its output is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

/// One group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct GroupStatus {
    /// Its name.
    pub name: Name,
    /// The group above it; `null` for the root.
    pub parent: Option<Name>,
    /// Whether it gave up and has not been started again.
    pub failed: bool,
    /// Its members, in order.
    pub members: Vec<Name>,
}

/// `status --tree`: a supervisor and what hangs under it, as OTP's `which_children` and
/// `count_children` tell it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct TreeStatus {
    /// The group; `null` for the root.
    pub group: Option<Name>,
    /// What the fall of one means for the others.
    pub strategy: Strategy,
    /// Whether it gave up and has not been started again.
    pub failed: bool,
    /// How many there are below.
    pub count: ChildCount,
    /// Its members, in declared order.
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
        /// Who.
        name: String,
        /// What is.
        state: State,
        /// Whether it is ready.
        ready: bool,
        /// Its process, while there is one.
        pid: Option<u32>,
        /// How many times it came back without being asked to.
        restarts: u64,
    },
}

/// How many children a supervisor has itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ChildCount {
    /// All of them.
    pub specs: usize,
    /// Those that have a process, and groups.
    pub active: usize,
    /// Groups.
    pub supervisors: usize,
    /// Instances.
    pub workers: usize,
}
