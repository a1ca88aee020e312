//! What the actors of the tree tell each other.
//!
//! The messages stand apart from the actors, so that a child's actor and its supervisor's need not
//! know each other's file.

use std::sync::Arc;
use std::time::Duration;

use ractor::ActorRef;
use tokio::sync::oneshot;

use crate::decide::group::{GroupInput, Slot};
use crate::decide::lifecycle::{Activity, InstanceInput};
use crate::decide::operation::{Ack, BranchNumber, DirectiveNumber};
use crate::decide::plan_edit::Branch;
use crate::decide::probe::CheckOutcome;
use crate::decide::start_gate::GateInput;
use crate::host::HostEvent;
use crate::model::cause::CheckKind;
use crate::model::{Answer, Denial, Event, Incarnation, InstanceId, IssuedCommand, Name, ServiceSpec};

/// What a supervisor is told.
pub enum SupervisorMsg {
    /// A child's news.
    Child(Slot, ChildEvent),
    /// The graph's answer for an instance below.
    Answer(InstanceId, InstanceInput),
    /// A command's wish for an instance below.
    Directive(InstanceId, InstanceInput, AckTo),
    /// What a command added there or below.
    Adopt(Branch),
    /// What there is was changed in place: look.
    Reconfigured,
    /// What a command removed there or below; the root is to hear when it is gone.
    Dismiss(Branch, AckTo),
    /// What a command removed is no more (the root only).
    Dismissed(BranchNumber),
    /// An instance has taken a command's wish (the root only).
    Acknowledged(Ack),
    /// A wish of the parent's, or the boot.
    Group(GroupInput),
    /// The timer rang.
    Timer,
    /// A command (the root only).
    Command(IssuedCommand, CommandReply),
    /// Take everything down, dependents first (the root only).
    Shutdown(String),
    /// A group gave up, and takes its project down with it, or the tree (the root only).
    GaveUp(Option<Name>),
    /// Take everything down at once (the root only).
    KillAll,
    /// Something happened while commands are under way (the root only).
    Observed(Arc<Event>),
}

/// Where a command's answer goes.
pub type CommandReply = oneshot::Sender<Result<Answer, Denial>>;

/// What a child tells its supervisor.
#[derive(Debug, Clone, Copy)]
pub enum ChildEvent {
    /// It fell and would return after this delay.
    Crashed(Duration),
    /// It ended by itself and is not to come back.
    Ended,
    /// What it is up to now.
    Activity(Activity),
}

/// What a process actor is told.
pub enum ProcessMsg {
    /// The graph's or the group's answer, or a wish of the group's.
    Input(InstanceInput),
    /// A command's wish, which is to be acknowledged.
    Directive(InstanceInput, AckTo),
    /// The host's news of a process.
    News(HostEvent),
    /// One attempt of a check has come to a result.
    Checked(Incarnation, CheckKind, CheckOutcome),
    /// What its manifest says of it now, which may be what it said before.
    Spec(Arc<ServiceSpec>),
    /// The timer rang.
    Timer,
}

/// Who hears that a wish was taken.
#[derive(Clone)]
pub struct AckTo {
    pub(crate) root: ActorRef<SupervisorMsg>,
    pub(crate) number: DirectiveNumber,
}

/// What the graph is told.
#[derive(Debug)]
pub enum GraphMsg {
    /// The root, to which releases go; first of all.
    Root(ActorRef<SupervisorMsg>),
    /// Of an instance or a service.
    Input(GateInput),
}
