//! Why something is started, stopped, waited for or given up.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::exit::ExitOutcome;
use super::id::Name;
use super::spec::Condition;

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
