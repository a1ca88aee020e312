//! The messages that the actors of the tree send each other.
//!
//! They are kept apart from the actors, so that a child's actor and its supervisor need not know
//! each other's file.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::decide::lifecycle::InstanceInput;
use crate::decide::message::Message;
use crate::decide::operation::DirectiveNumber;
use crate::decide::probe::CheckOutcome;
use crate::decide::start_gate::GateInput;
use crate::host::HostEvent;
use crate::model::cause::CheckKind;
use crate::model::{Answer, Denial, Incarnation, IssuedCommand, ServiceSpec};

/// A message to a supervisor.
pub enum SupervisorMsg {
    /// A message for the supervisor's node of the tree.
    Node(Message),
    /// The timer fired.
    Timer,
    /// A user's command, and where to send its answer (root only).
    Command(IssuedCommand, CommandReply),
    /// Stop everything, dependents first (root only). The text is the cause, for the events.
    Shutdown(String),
    /// Kill everything at once (root only).
    KillAll,
    /// The dependency graph is another one: every instance below repeats its request.
    AskAgain,
}

/// Receives a command's answer.
pub type CommandReply = oneshot::Sender<Result<Answer, Denial>>;

/// A message to a process actor.
pub enum ProcessMsg {
    /// An input of the instance's machine: the start gate's answer, or a directive of its group.
    Input(InstanceInput),
    /// A command's directive, which is acknowledged to the root.
    Directive(InstanceInput, DirectiveNumber),
    /// An event of the host about a process.
    News(HostEvent),
    /// The result of one attempt of a check.
    Checked(Incarnation, CheckKind, CheckOutcome),
    /// The service as the plan has it now. It may be unchanged.
    Spec(Arc<ServiceSpec>),
    /// The dependency graph is another one: the instance repeats its request, where it has one.
    AskAgain,
    /// The timer fired.
    Timer,
}

/// A message to the dependency graph.
#[derive(Debug)]
pub enum GraphMsg {
    /// An input about an instance or a service.
    Input(GateInput),
}
