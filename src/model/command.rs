//! The commands that a user can give, and their answers. A command may be denied, with a reason;
//! events tell what happens after it was accepted.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::id::Name;
use super::plan::{Addition, PlanChange};

/// A command of a user to the tree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", tag = "verb")]
pub enum Command {
    /// Set the goal to up; answered when each instance is ready (each task: completed).
    Start {
        /// The services that the command is about.
        #[serde(flatten)]
        select: Selector,
        /// Don't start the dependencies that are down.
        #[serde(default)]
        no_deps: bool,
    },
    /// Set the goal to down; answered when every process of each instance's tree is gone.
    Stop {
        /// The services that the command is about.
        #[serde(flatten)]
        select: Selector,
        /// Stop them even while running services depend on them.
        #[serde(default)]
        force: bool,
    },
    /// Stop each instance, then start it again.
    Restart {
        /// The services that the command is about.
        #[serde(flatten)]
        select: Selector,
    },
    /// Halt running instances with their whole process trees (SIGSTOP); timers and checks stand still
    /// meanwhile.
    Pause {
        /// The services that the command is about.
        #[serde(flatten)]
        select: Selector,
    },
    /// Let paused instances go on (SIGCONT).
    Resume {
        /// The services that the command is about.
        #[serde(flatten)]
        select: Selector,
    },
    /// Add services and groups to the tree and start those with `autostart`; answered as a start is
    /// (OTP's `start_child`).
    Add {
        /// The new services and groups, and the group to add them to.
        addition: Arc<Addition>,
    },
    /// Change services and groups in place. Running processes stay as they were started until their
    /// next start.
    Reconfigure {
        /// The services and groups as they are to be.
        change: Arc<PlanChange>,
    },
    /// Change the number of replicas of a service. New copies start as if by hand; surplus copies are
    /// stopped and taken out of the tree.
    Scale {
        /// The service to scale.
        service: Name,
        /// The number of replicas, at least one.
        replicas: u32,
    },
    /// Stop services and take them out of the tree (OTP's `terminate_child` and `delete_child`). A
    /// group is removed with everything below it. Only whole services can be removed, and none that
    /// another service depends on.
    Remove {
        /// The services that the command is about.
        #[serde(flatten)]
        select: Selector,
    },
}

impl Command {
    /// The verb of the command as a user types it.
    pub fn verb(&self) -> &'static str {
        match self {
            Command::Start { .. } => "start",
            Command::Stop { .. } => "stop",
            Command::Restart { .. } => "restart",
            Command::Pause { .. } => "pause",
            Command::Resume { .. } => "resume",
            Command::Add { .. } => "add",
            Command::Reconfigure { .. } => "reconfigure",
            Command::Scale { .. } => "scale",
            Command::Remove { .. } => "remove",
        }
    }

    /// The same command for other services; a command without a selector stays as it is.
    #[must_use]
    pub fn about(self, select: Selector) -> Command {
        match self {
            Command::Start { no_deps, .. } => Command::Start { select, no_deps },
            Command::Stop { force, .. } => Command::Stop { select, force },
            Command::Restart { .. } => Command::Restart { select },
            Command::Pause { .. } => Command::Pause { select },
            Command::Resume { .. } => Command::Resume { select },
            Command::Remove { .. } => Command::Remove { select },
            own @ (Command::Add { .. } | Command::Reconfigure { .. } | Command::Scale { .. }) => own,
        }
    }

    /// The selector of the command; `None` for a command without one.
    pub fn select(&self) -> Option<&Selector> {
        match self {
            Command::Start { select, .. }
            | Command::Stop { select, .. }
            | Command::Restart { select }
            | Command::Pause { select }
            | Command::Resume { select }
            | Command::Remove { select } => Some(select),
            Command::Add { .. } | Command::Reconfigure { .. } | Command::Scale { .. } => None,
        }
    }
}

/// The user or the part of regrow that gave a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Requester {
    /// `user:NAME`, `token:NAME`, `signal:NAME`, or `watch` (the watch over the folder of manifests).
    pub who: String,
    /// The `Idempotency-Key` of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl Requester {
    /// A requester without an idempotency key.
    pub fn new(who: impl Into<String>) -> Requester {
        Requester { who: who.into(), key: None }
    }
}

/// A command together with its requester.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IssuedCommand {
    /// The command.
    #[serde(flatten)]
    pub command: Command,
    /// The requester; `None` when the program itself gave the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Requester>,
}

impl From<Command> for IssuedCommand {
    fn from(command: Command) -> IssuedCommand {
        IssuedCommand { command, by: None }
    }
}

/// The services that a command is about: the union of all the parts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Selector {
    /// Names of services or instances.
    pub services: Vec<String>,
    /// Whether every service is meant.
    pub all: bool,
    /// Names of groups; every service below them is meant.
    pub groups: Vec<String>,
    /// Tags; every service with one of them is meant.
    pub tags: Vec<String>,
}

impl Selector {
    /// Selects these names alone.
    pub fn named<I, S>(names: I) -> Selector
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Selector { services: names.into_iter().map(Into::into).collect(), ..Selector::default() }
    }

    /// Selects every service.
    pub fn all() -> Selector {
        Selector { all: true, ..Selector::default() }
    }

    /// Whether the selector selects nothing at all.
    pub fn is_empty(&self) -> bool {
        !self.all && self.services.is_empty() && self.groups.is_empty() && self.tags.is_empty()
    }
}

/// The outcome of a command, instance by instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Answer {
    /// Whether the command succeeded for every instance.
    pub ok: bool,
    /// The outcomes, in the order in which the command reached the instances.
    pub results: Vec<InstanceAnswer>,
}

/// The outcome of a command for one instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct InstanceAnswer {
    /// The printed name of the instance.
    pub name: String,
    /// Whether the command succeeded for this instance.
    pub ok: bool,
    /// The new status, or why the command failed, in words.
    pub message: String,
}

/// Why a command was denied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Denial {
    /// The reason as a stable word, for programs.
    pub code: DenialCode,
    /// The reason as a sentence, for people.
    pub reason: String,
    /// What the user can do about it, where anything helps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl std::fmt::Display for Denial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Denial {}

/// The stable words of a [`Denial`], for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DenialCode {
    /// No service, group, tag or other thing has that name.
    NotFound,
    /// The name matches more than one thing.
    Ambiguous,
    /// Running services depend on the service.
    HasDependents,
    /// A dependency of the service was stopped by hand.
    DependencyDown,
    /// Something of that name exists already.
    Exists,
    /// The state of the target doesn't allow the command: a finished task can't be cancelled.
    WrongState,
    /// No supervisor runs that could carry out the command.
    NotRunning,
    /// The tree is going down.
    ShuttingDown,
    /// The request makes no sense as it stands.
    Invalid,
    /// The path of the request doesn't know this method.
    NoSuchMethod,
    /// The request carries no valid credentials.
    Unauthorized,
    /// The requester may not give this command.
    Forbidden,
    /// The request's `Host` is not one of this daemon's names.
    Misdirected,
    /// The body of the request is too large.
    TooLarge,
    /// Too many requests came at once.
    TooManyRequests,
    /// The `Idempotency-Key` was used for a different request.
    KeyReused,
    /// The manifest in the request has faults.
    Faulty,
    /// The request, or the wait for its result, took too long.
    TimedOut,
    /// The runtime is gone, or a part of it failed.
    Internal,
}
