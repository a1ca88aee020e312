//! What the actors of a tree tell each other, as plain data: for the simulation, and for recordings.
//!
//! The names that serde writes are those of recordings of format 1, and stay as they are. Deliberately
//! absent: mailboxes and references to actors, which the shell has.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::group::GroupInput;
use super::lifecycle::InstanceInput;
use super::operation::{BranchNumber, CommandInput, DirectiveNumber};
use super::plan_edit::Branch;
use super::start_gate::GateInput;
use crate::model::{Event, InstanceId, Name};

/// An actor of the tree: it takes messages one after the other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Address {
    /// The process actor of an instance.
    Instance(InstanceId),
    /// The supervisor of a group; `None` is the root.
    Group(Option<Name>),
    /// The dependency graph, which holds the start gate.
    Graph,
}

/// A message to an [`Address`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// To an instance: an input of its machine.
    Input(InstanceInput),
    /// To an instance: a command's directive, which is to be acknowledged.
    #[serde(rename = "wish")]
    Directive(InstanceInput, DirectiveNumber),
    /// To a group: an input of its own machine.
    Group(GroupInput),
    /// To a group: the start gate's answer for an instance below it.
    Relay(InstanceId, InstanceInput),
    /// To a group: a command's directive for an instance below it.
    #[serde(rename = "relay_wish")]
    RelayDirective(InstanceId, InstanceInput, DirectiveNumber),
    /// To a group: members that were added to it or below it.
    Adopt(Branch),
    /// To a group: the plan was changed in place, and the group is to look at its own part.
    Reconfigured,
    /// To a group: members that were removed from it or below it.
    Dismiss(Branch, BranchNumber),
    /// To the root: something about the commands under way.
    #[serde(rename = "desk")]
    Command(CommandInput),
    /// To the dependency graph.
    Graph(GateInput),
}

/// A message that was delivered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// When it was delivered, since the start.
    pub at: Duration,
    /// The actor that took it.
    pub to: Address,
    /// The message itself.
    pub message: Message,
}

/// Takes down what the machines of a tree are told, and what happens: each step before the
/// events that follow from it.
pub trait StepSink: Send {
    /// A machine was told something.
    fn step(&mut self, step: &Step);
    /// An event was written down.
    fn event(&mut self, event: &Event);
}
