//! Why an instance is started, stopped, waits or has failed.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::exit::ExitOutcome;
use super::id::Name;
use super::spec::Condition;

/// A condition that is not met yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct UnmetCondition {
    /// The service that the condition is about.
    pub service: Name,
    /// What must become true of that service.
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

/// The two kinds of checks that a manifest can declare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// The readiness check (`ready`).
    Ready,
    /// The health check (`health`).
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

/// Why a process is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StartCause {
    /// The tree starts.
    Boot,
    /// A command asks for it.
    Command,
    /// The process ended, and the restart policy of its service starts it again.
    Policy,
    /// The group of the instance restarts it.
    Group,
    /// A dependency of the instance came back.
    Dependency,
}

impl StartCause {
    /// Whether the start counts as a restart; a start by a command doesn't.
    pub fn is_restart(self) -> bool {
        match self {
            StartCause::Policy | StartCause::Group => true,
            StartCause::Boot | StartCause::Command | StartCause::Dependency => false,
        }
    }
}

/// Why an instance is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StopCause {
    /// A command asks for it.
    Command,
    /// A command asks for a restart.
    Restart,
    /// The instance is taken out of the tree: its service is removed or scaled down.
    Removed,
    /// The whole tree shuts down.
    Shutdown,
    /// The group of the instance restarts, or is restarted by its parent.
    Group,
    /// The group of the instance gave up.
    GaveUp,
    /// A group of the project gave up and took the project down.
    ProjectGaveUp,
    /// The instance was not ready by its deadline.
    Timeout,
    /// The health check of the instance failed too often in a row.
    Health,
    /// The main process ended and left other processes of its tree behind.
    LeftBehind,
    /// A dependency of the instance crashed.
    Dependency,
    /// The group shuts down by its `auto_shutdown`, since significant members have ended.
    AutoShutdown,
    /// The actor of the instance broke: a fault in regrow itself.
    Internal,
}

impl fmt::Display for StopCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StopCause::Command => "stopped by hand",
            StopCause::Restart => "restarted by hand",
            StopCause::Removed => "removed",
            StopCause::Shutdown => "shutting down",
            StopCause::Group => "its group restarts",
            StopCause::GaveUp => "its group gave up",
            StopCause::ProjectGaveUp => "its project gave up",
            StopCause::Timeout => "not ready in time",
            StopCause::Health => "unhealthy",
            StopCause::LeftBehind => "its main process is gone",
            StopCause::Dependency => "what it depends on crashed",
            StopCause::AutoShutdown => "its group is done",
            StopCause::Internal => "regrow lost track of it",
        })
    }
}

/// Why an instance has failed and will not come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum FailureReason {
    /// The process ended in a way that its restart policy doesn't restart.
    Exit {
        /// How the process ended.
        exit: ExitOutcome,
    },
    /// The process ended again after `max_retries` restarts in a row.
    Retries {
        /// How the last process ended.
        exit: ExitOutcome,
        /// How many restarts in a row there were.
        retries: u32,
    },
    /// The process could not be started, for a reason that time doesn't mend.
    Spawn {
        /// The step of the start that failed, with the error.
        exit: ExitOutcome,
    },
    /// A dependency of the instance has failed for good.
    Dependency {
        /// The dependency that failed.
        on: Name,
    },
    /// The group of the instance gave up.
    Group {
        /// The group that gave up; `None` for the root.
        group: Option<Name>,
    },
    /// A group of the project gave up and took the project down.
    Project,
    /// The manifest that declares the service has faults.
    Manifest {
        /// The first fault of the manifest.
        message: String,
    },
    /// regrow itself broke while it looked after the instance.
    Internal {
        /// The last message of the actor that broke.
        message: String,
    },
}

impl FailureReason {
    /// How the process ended, where the reason carries an exit.
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

    /// The reason in one word, as `--json` and scripts read it.
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
