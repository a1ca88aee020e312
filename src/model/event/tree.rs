//! What happens to the tree as a whole: its supervisor, its plan, and the commands of users.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::plan::PlanChange;
use crate::model::spec::Naming;
use crate::model::{Addition, Command, Denial, InstanceRecord, Name, Requester};

/// A fact about the tree, its plan, or the supervisor itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TreeFact {
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
    /// Services and groups were taken out of the tree.
    Removed {
        /// The removed services.
        services: Vec<Name>,
        /// The removed groups.
        groups: Vec<Name>,
    },
    /// An actor that the tree itself consists of broke, which is a fault in regrow. Another one takes its
    /// place; services are not affected.
    ActorBroke {
        /// The name of the actor.
        actor: String,
        /// Why it broke, in words.
        reason: String,
        /// What was lost with it, in words.
        lost: String,
    },
    /// The whole tree shuts down.
    ShutdownStarted {
        /// Why the tree shuts down, in words.
        cause: String,
    },
    /// Every process of the tree is gone.
    ShutdownDone,
}
