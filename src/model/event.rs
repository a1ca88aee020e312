//! Events: facts in the past tense, numbered by a single writer. Every output for a user is a fold
//! over them.
//!
//! This module holds only the data; it neither stores an event nor decides what follows from one.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::id::{Incarnation, InstanceId};
use super::status::State;
use super::time::{rfc3339, seconds};
use crate::model::spec::Hook;
use crate::model::{CommandLine, HookSpec};

mod group;
mod instance;
mod pool;
mod tree;

pub use group::GroupFact;
pub use instance::InstanceFact;
pub use pool::PoolFact;
pub use tree::TreeFact;

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

/// The facts that an event can report, in families: a new family is a file here, a part of the fold
/// and a part of `present`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Fact {
    /// About one instance.
    Instance(InstanceFact),
    /// About a group.
    Group(GroupFact),
    /// About the tree, its plan, or the supervisor itself.
    Tree(TreeFact),
    /// About a worker pool.
    Pool(PoolFact),
}

impl Fact {
    /// The fact about an instance, if it is about one.
    fn of_instance(&self) -> Option<&InstanceFact> {
        match self {
            Fact::Instance(fact) => Some(fact),
            Fact::Group(_) | Fact::Tree(_) | Fact::Pool(_) => None,
        }
    }

    /// The state that the fact brings its instance into, if it changes the state.
    pub fn state(&self) -> Option<State> {
        self.of_instance()?.state()
    }

    /// The number of the process that the fact is about, if it is about one.
    pub fn incarnation(&self) -> Option<Incarnation> {
        self.of_instance()?.incarnation()
    }

    /// The instance that the fact is about, if it is about one.
    pub fn instance(&self) -> Option<&InstanceId> {
        self.of_instance().map(InstanceFact::instance)
    }
}

impl From<InstanceFact> for Fact {
    fn from(fact: InstanceFact) -> Fact {
        Fact::Instance(fact)
    }
}

impl From<GroupFact> for Fact {
    fn from(fact: GroupFact) -> Fact {
        Fact::Group(fact)
    }
}

impl From<TreeFact> for Fact {
    fn from(fact: TreeFact) -> Fact {
        Fact::Tree(fact)
    }
}

impl From<PoolFact> for Fact {
    fn from(fact: PoolFact) -> Fact {
        Fact::Pool(fact)
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
            Fact::Instance(InstanceFact::Ready { .. }) => Some(Hook::Ready),
            Fact::Instance(InstanceFact::Failed { .. }) => Some(Hook::Fail),
            Fact::Instance(InstanceFact::Crashed { .. }) => Some(Hook::Retry),
            Fact::Instance(InstanceFact::Stopped { .. }) => Some(Hook::Stop),
            Fact::Instance(InstanceFact::Exited { .. }) => Some(Hook::Exit),
            _ => None,
        }
    }
}
