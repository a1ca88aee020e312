//! Wishes and their answers. A command may be denied, with its reason; what then
//! happened is told by events.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::id::Name;
use super::plan::{Addition, PlanChange};

/// What a user wants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", tag = "verb")]
pub enum Command {
    /// Goal up; answered when each is ready (a task: completed).
    Start {
        /// Which.
        #[serde(flatten)]
        select: Selector,
        /// Leave dependencies alone that are down.
        #[serde(default)]
        no_deps: bool,
    },
    /// Goal down; answered when each tree of processes is gone.
    Stop {
        /// Which.
        #[serde(flatten)]
        select: Selector,
        /// Also while running services depend on them.
        #[serde(default)]
        force: bool,
    },
    /// Stop, then start.
    Restart {
        /// Which.
        #[serde(flatten)]
        select: Selector,
    },
    /// Halt what runs, with all of its tree; timers and checks stand still meanwhile.
    Pause {
        /// Which.
        #[serde(flatten)]
        select: Selector,
    },
    /// Let it go on.
    Resume {
        /// Which.
        #[serde(flatten)]
        select: Selector,
    },
    /// Add services and groups to the tree and start what starts with it; answered as a start
    /// is (OTP's `start_child`).
    Add {
        /// What, and where.
        addition: Arc<Addition>,
    },
    /// Change services and groups in place; what their processes were started with stays as it is
    /// until they are started again.
    Reconfigure {
        /// How they are to be.
        change: Arc<PlanChange>,
    },
    /// Change how many copies there are of a service: those that are new start as a start by hand
    /// would, those that go are stopped and taken out of the tree.
    Scale {
        /// Which.
        service: Name,
        /// So many, at least one.
        replicas: u32,
    },
    /// Stop services and take them out of the tree (OTP's `terminate_child` and `delete_child`);
    /// a group goes with all below it. Whole services only, and none that another depends on.
    Remove {
        /// Which.
        #[serde(flatten)]
        select: Selector,
    },
}

impl Command {
    /// The verb as it is typed.
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

    /// The same for others; what brings its own stays as it is.
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

    /// Which services of the tree it is about, where a user says so.
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

/// Who has given a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Requester {
    /// `user:NAME`, `token:NAME`, `signal:NAME`, or `watch` (of the folder of manifests).
    pub who: String,
    /// The `Idempotency-Key` that came with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl Requester {
    /// Without a key.
    pub fn new(who: impl Into<String>) -> Requester {
        Requester { who: who.into(), key: None }
    }
}

/// A command, and who has given it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IssuedCommand {
    /// The command.
    #[serde(flatten)]
    pub command: Command,
    /// Who; `None`: the program itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Requester>,
}

impl From<Command> for IssuedCommand {
    fn from(command: Command) -> IssuedCommand {
        IssuedCommand { command, by: None }
    }
}

/// Which services a command is about; the parts add up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Selector {
    /// By name of service or instance.
    pub services: Vec<String>,
    /// Every service.
    pub all: bool,
    /// Those below these groups.
    pub groups: Vec<String>,
    /// Those with these tags.
    pub tags: Vec<String>,
}

impl Selector {
    /// Just these names.
    pub fn named<I, S>(names: I) -> Selector
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Selector { services: names.into_iter().map(Into::into).collect(), ..Selector::default() }
    }

    /// Everything.
    pub fn all() -> Selector {
        Selector { all: true, ..Selector::default() }
    }

    /// Whether it names nothing at all.
    pub fn is_empty(&self) -> bool {
        !self.all && self.services.is_empty() && self.groups.is_empty() && self.tags.is_empty()
    }
}

/// What became of a command, instance by instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Answer {
    /// Whether every part of it was done.
    pub ok: bool,
    /// In the order the instances were dealt with.
    pub results: Vec<InstanceAnswer>,
}

/// One instance's part of an [`Answer`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct InstanceAnswer {
    /// The instance.
    pub name: String,
    /// Whether it was done.
    pub ok: bool,
    /// What is true now, or why not, in words.
    pub message: String,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Denial {
    /// For programs.
    pub code: DenialCode,
    /// For people.
    pub reason: String,
    /// What would help, if something would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl std::fmt::Display for Denial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Denial {}

/// Stable words for [`Denial`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DenialCode {
    /// No service, group or tag of that name.
    NotFound,
    /// Several have that name.
    Ambiguous,
    /// Running services depend on it.
    HasDependents,
    /// It depends on something that was stopped by hand.
    DependencyDown,
    /// Something of that name is there already.
    Exists,
    /// What it is about is not in a state that allows it: a task that is over can't be cancelled.
    WrongState,
    /// Nothing is running that could be asked.
    NotRunning,
    /// The tree is going down.
    ShuttingDown,
    /// The request makes no sense as it stands.
    Invalid,
    /// What is at that path does not know this method.
    NoSuchMethod,
    /// Nobody knows who asks.
    Unauthorized,
    /// Who asks may not.
    Forbidden,
    /// It was meant for another: its `Host` is none of this daemon's.
    Misdirected,
    /// Its body is too large.
    TooLarge,
    /// Too many came at once.
    TooManyRequests,
    /// Its `Idempotency-Key` was used for something else.
    KeyReused,
    /// The manifest that came with it has faults.
    Faulty,
    /// It took longer than the caller would wait.
    TimedOut,
    /// The runtime is gone, or part of it failed.
    Internal,
}
