//! What the actors of the tree tell each other.
//!
//! The messages stand apart from the actors, so that a child's actor and its supervisor's need not
//! know each other's file.

use std::sync::Arc;

use ractor::ActorRef;
use tokio::sync::oneshot;

use crate::decide::lifecycle::InstanceInput;
use crate::decide::message::Message;
use crate::decide::operation::DirectiveNumber;
use crate::decide::probe::CheckOutcome;
use crate::decide::start_gate::GateInput;
use crate::host::HostEvent;
use crate::model::cause::CheckKind;
use crate::model::{Answer, Denial, Incarnation, IssuedCommand, ServiceSpec};

/// What a supervisor is told.
pub enum SupervisorMsg {
    /// A message for its node.
    Node(Message),
    /// The timer rang.
    Timer,
    /// A user's command (the root only).
    Command(IssuedCommand, CommandReply),
    /// Take everything down, dependents first (the root only). The text is the cause, for the events.
    Shutdown(String),
    /// Take everything down at once (the root only).
    KillAll,
}

/// Where a command's answer goes.
pub type CommandReply = oneshot::Sender<Result<Answer, Denial>>;

/// What a process actor is told.
pub enum ProcessMsg {
    /// An input of its machine: the start gate's answer, or what its group wants.
    Input(InstanceInput),
    /// A command's directive, which the root is to hear acknowledged.
    Directive(InstanceInput, DirectiveNumber),
    /// The host's news of a process.
    News(HostEvent),
    /// One attempt of a check has come to a result.
    Checked(Incarnation, CheckKind, CheckOutcome),
    /// The service as the plan has it now.
    Spec(Arc<ServiceSpec>),
    /// The timer rang.
    Timer,
}

/// What the graph is told.
#[derive(Debug)]
pub enum GraphMsg {
    /// The root, to which releases go; first of all.
    Root(ActorRef<SupervisorMsg>),
    /// Of an instance or a service.
    Input(GateInput),
}
