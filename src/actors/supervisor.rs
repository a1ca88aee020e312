//! The ServiceSupervisor: the root of the tree, and one for each group.
//!
//! The actor drives a [`SupervisorNode`], which holds the wiring and every decision: it makes, links and
//! ends the actors of its children, sends what the node says, and puts a new actor in the place of a
//! broken one. The root also takes the commands of users. Deliberately absent: any rule of its own.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::watch;

use super::event_log::EventLog;
use super::messages::{CommandReply, GraphMsg, ProcessMsg, SupervisorMsg};
use super::process::{BrokenActor, ProcessActor, ProcessArgs, ProcessGuard};
use super::system::Registered;
use super::timer::Timer;
use super::{ActorContext, tell};
use crate::actors::graph::RootPlace;
use crate::decide::group::{GroupInput, Slot};
use crate::decide::lifecycle::InstanceInput;
use crate::decide::message::{Address, Message, Step};
use crate::decide::node::{Member, NodeEffect, SupervisorNode, TreeLog};
use crate::decide::operation::{CommandInput, CommandNumber};
use crate::decide::tree_state::TreeState;
use crate::model::{Fact, InstanceId, IssuedCommand, Name, ServiceSpec, StopCause};

/// What the root shares with whoever waits for it. It ends with the root.
pub(crate) struct RootChannel {
    /// Whether commands are under way, so that every event is worth a message to the root.
    pub(crate) observing: Arc<AtomicBool>,
    /// Turns true when every process is gone after a shutdown.
    pub(crate) down: watch::Sender<bool>,
}

/// What a supervisor is made with.
pub(crate) struct SupervisorArgs {
    pub(crate) context: Arc<ActorContext>,
    pub(crate) dependencies: Registered<GraphMsg>,
    pub(crate) position: Position,
}

/// Where a supervisor stands in the tree.
pub(crate) enum Position {
    /// It is the root, which the dependency graph finds in this place.
    Root(RootChannel, RootPlace),
    /// It is the supervisor of a group.
    Group {
        name: Name,
        parent: ActorRef<SupervisorMsg>,
        /// The slot of the group at its parent.
        slot: Slot,
        root: ActorRef<SupervisorMsg>,
    },
}

pub(crate) struct ServiceSupervisor;

enum ChildActor {
    Process { actor: ActorRef<ProcessMsg>, guard: Arc<ProcessGuard> },
    Group { actor: ActorRef<SupervisorMsg> },
}

impl ChildActor {
    /// Ends the actor, and waits for that.
    async fn end(self) {
        // An error means that it is gone already.
        let _ = match self {
            ChildActor::Process { actor, .. } => actor.stop_and_wait(None, None).await,
            ChildActor::Group { actor } => actor.stop_and_wait(None, None).await,
        };
    }

    fn actor_id(&self) -> ActorId {
        match self {
            ChildActor::Process { actor, .. } => actor.get_id(),
            ChildActor::Group { actor } => actor.get_id(),
        }
    }
}

/// Who waits for commands, and for the tree's end, at the root.
struct Waiting {
    channel: RootChannel,
    replies: HashMap<CommandNumber, CommandReply>,
    next: CommandNumber,
}

pub(crate) struct SupervisorState {
    context: Arc<ActorContext>,
    dependencies: Registered<GraphMsg>,
    /// `None` at the root.
    parent: Option<ActorRef<SupervisorMsg>>,
    root: ActorRef<SupervisorMsg>,
    node: SupervisorNode,
    actors: BTreeMap<Slot, ChildActor>,
    timer: Timer,
    /// At the root alone.
    waiting: Option<Waiting>,
}

/// The log of one step: what is written down first is the step itself.
struct StepLog<'a> {
    log: &'a EventLog,
    step: Option<Step>,
}

impl TreeLog for StepLog<'_> {
    fn decide<T>(&mut self, decide: impl FnOnce(&TreeState) -> (T, Vec<Fact>)) -> T {
        self.log.decide(self.step.take(), decide)
    }
}

impl Actor for ServiceSupervisor {
    type Msg = SupervisorMsg;
    type State = SupervisorState;
    type Arguments = SupervisorArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<SupervisorMsg>,
        args: SupervisorArgs,
    ) -> Result<SupervisorState, ActorProcessingErr> {
        let SupervisorArgs { context, dependencies, position } = args;
        let (name, place, parent, root, waiting) = match position {
            Position::Root(channel, place) => {
                // Before anybody below asks the dependency graph for anything.
                let _ = place.set(myself.clone());
                let waiting = Waiting { channel, replies: HashMap::new(), next: 1 };
                (None, None, None, myself.clone(), Some(waiting))
            }
            Position::Group { name, parent, slot, root } => {
                (Some(name), Some(slot), Some(parent), root, None)
            }
        };
        let mut effects = Vec::new();
        let mut log = StepLog { log: &context.log, step: None };
        let node = SupervisorNode::new(name, place, &mut log, &mut effects);
        let (actors, timer) = (BTreeMap::new(), Timer::default());
        let mut state = SupervisorState { context, dependencies, parent, root, node, actors, timer, waiting };
        state.perform(&myself, effects).await?;
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<SupervisorMsg>,
        message: SupervisorMsg,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMsg::Node(message) => state.step(&myself, message).await,
            SupervisorMsg::Timer => {
                state.timer.rang();
                state.step(&myself, Message::Group(GroupInput::Tick)).await
            }
            SupervisorMsg::Command(command, reply) => state.command(&myself, command, reply).await,
            SupervisorMsg::Shutdown(cause) => {
                state.step(&myself, Message::Command(CommandInput::Shutdown(cause))).await
            }
            SupervisorMsg::KillAll => state.kill_all(&myself).await,
            SupervisorMsg::AskAgain => {
                for child in state.actors.values() {
                    match child {
                        ChildActor::Process { actor, .. } => tell(actor, ProcessMsg::AskAgain),
                        ChildActor::Group { actor } => tell(actor, SupervisorMsg::AskAgain),
                    }
                }
                Ok(())
            }
        }
    }

    /// Whoever waits for the end of a supervisor waits for that of all below it.
    async fn post_stop(
        &self,
        _myself: ActorRef<SupervisorMsg>,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        for child in std::mem::take(&mut state.actors).into_values() {
            child.end().await;
        }
        Ok(())
    }

    /// A child actor ends with what it is for, with the tree, or because regrow itself broke.
    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<SupervisorMsg>,
        event: SupervisionEvent,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(actor, error) = event {
            let broken = state.actors.iter().find(|(_, child)| child.actor_id() == actor.get_id());
            if let Some(slot) = broken.map(|(slot, _)| *slot) {
                state.replace(&myself, slot, &error.to_string()).await?;
            } else {
                // It is the SystemSupervisor, which itself does nothing that could break.
                return Err(format!("what the tree consists of broke: {error}").into());
            }
        }
        Ok(())
    }
}

impl SupervisorState {
    /// Steps the node with one message, and with what it wants to be told before anything else.
    async fn step(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        message: Message,
    ) -> Result<(), ActorProcessingErr> {
        let mut messages = VecDeque::from([message]);
        while let Some(message) = messages.pop_front() {
            let effects = self.decide(message);
            for (at, next) in self.perform(myself, effects).await?.into_iter().enumerate() {
                messages.insert(at, Message::Command(next));
            }
        }
        let deadline = self.node.machine().next_deadline();
        self.timer.set(deadline, self.context.clock, myself, || SupervisorMsg::Timer);
        Ok(())
    }

    fn decide(&mut self, message: Message) -> Vec<NodeEffect> {
        let ActorContext { log, clock, .. } = &*self.context;
        let (now, mut effects) = (clock.now(), Vec::new());
        if let (Message::Command(_), Some(waiting)) = (&message, &self.waiting) {
            // Before the first directive is out: what it causes is to be heard of.
            waiting.channel.observing.store(true, Ordering::SeqCst);
        }
        let to = || Address::Group(self.node.name().cloned());
        let step = log.describe(|| Step { at: now, to: to(), message: message.clone() });
        self.node.step(&mut StepLog { log, step }, now, message, &mut effects);
        if let Some(waiting) = &self.waiting {
            waiting.channel.observing.store(self.node.is_busy(), Ordering::SeqCst);
        }
        effects
    }

    /// Does what the node says, in its order. Returns what the root is to be told before anything else.
    async fn perform(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        effects: Vec<NodeEffect>,
    ) -> Result<Vec<CommandInput>, ActorProcessingErr> {
        let mut next = Vec::new();
        for effect in effects {
            match effect {
                NodeEffect::Make(slot, member) => {
                    let actor = self.make(myself, slot, member).await?;
                    self.actors.insert(slot, actor);
                }
                NodeEffect::Tell(slot, message) => self.tell_child(slot, message),
                NodeEffect::TellParent(input) => {
                    if let Some(parent) = &self.parent {
                        tell(parent, SupervisorMsg::Node(Message::Group(input)));
                    }
                }
                NodeEffect::TellRoot(message) => tell(&self.root, SupervisorMsg::Node(message)),
                NodeEffect::End(slot, _) => {
                    // It rests: at most it is at a message that changes nothing.
                    if let Some(child) = self.actors.remove(&slot) {
                        child.end().await;
                    }
                }
                NodeEffect::Forget(id) => {
                    self.context.host.forget(self.context.sources.source(&id));
                    self.context.sources.forget(&id);
                }
                NodeEffect::Again(input) => next.push(input),
                NodeEffect::Answer(number, answer) => {
                    let reply = self.waiting.as_mut().and_then(|waiting| waiting.replies.remove(&number));
                    if let Some(reply) = reply {
                        // Nobody waits any more when the client has hung up.
                        let _ = reply.send(answer);
                    }
                }
                NodeEffect::Down => {
                    if let Some(waiting) = &self.waiting {
                        waiting.channel.down.send_replace(true);
                    }
                }
            }
        }
        Ok(next)
    }

    async fn make(
        &self,
        myself: &ActorRef<SupervisorMsg>,
        slot: Slot,
        member: Member,
    ) -> Result<ChildActor, ActorProcessingErr> {
        match member {
            Member::Instance(id, spec) => {
                let guard = Arc::default();
                let actor = self.make_process(myself, slot, &id, &spec, &guard, None).await?;
                Ok(ChildActor::Process { actor, guard })
            }
            Member::Group(name) => {
                let (parent, root) = (myself.clone(), self.root.clone());
                let args = SupervisorArgs {
                    context: Arc::clone(&self.context),
                    dependencies: self.dependencies.clone(),
                    position: Position::Group { name, parent, slot, root },
                };
                let supervisor =
                    ServiceSupervisor::spawn_linked(None, ServiceSupervisor, args, myself.get_cell());
                // Boxed: a supervisor makes supervisors.
                let (actor, _) = Box::pin(supervisor).await?;
                Ok(ChildActor::Group { actor })
            }
        }
    }

    async fn make_process(
        &self,
        myself: &ActorRef<SupervisorMsg>,
        slot: Slot,
        id: &InstanceId,
        spec: &Arc<ServiceSpec>,
        guard: &Arc<ProcessGuard>,
        broken: Option<BrokenActor>,
    ) -> Result<ActorRef<ProcessMsg>, ActorProcessingErr> {
        let args = ProcessArgs {
            context: Arc::clone(&self.context),
            id: id.clone(),
            spec: Arc::clone(spec),
            group: self.node.name().cloned(),
            slot,
            parent: myself.clone(),
            root: self.root.clone(),
            dependencies: self.dependencies.clone(),
            guard: Arc::clone(guard),
            broken,
        };
        let (actor, _) = ProcessActor::spawn_linked(None, ProcessActor, args, myself.get_cell()).await?;
        Ok(actor)
    }

    /// Puts a new actor in the place of a broken one; see [`InstanceInput::Inherit`].
    async fn replace(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        slot: Slot,
        error: &str,
    ) -> Result<(), ActorProcessingErr> {
        let Some(member) = self.node.child(slot) else {
            return Ok(());
        };
        tracing::error!(child = member.name(), %error, "an actor broke");
        let (id, guard) = match (member, self.actors.get(&slot)) {
            (Member::Instance(id, _), Some(ChildActor::Process { guard, .. })) => {
                (id.clone(), Arc::clone(guard))
            }
            (Member::Group(name), _) => {
                return Err(format!("the supervisor of group {name} broke: {error}").into());
            }
            (Member::Instance(..), _) => return Ok(()),
        };
        let found = self.context.log.tree_state(|state| {
            let entry = state.entry(&id)?;
            let message = error.to_owned();
            let broken = BrokenActor { goal: entry.goal, last: entry.incarnation, message };
            Some((Arc::clone(&entry.spec), broken))
        });
        let Some((spec, broken)) = found else {
            return Ok(());
        };
        let actor = self.make_process(myself, slot, &id, &spec, &guard, Some(broken)).await?;
        self.actors.insert(slot, ChildActor::Process { actor, guard });
        Ok(())
    }

    fn tell_child(&self, slot: Slot, message: Message) {
        match (self.actors.get(&slot), message) {
            (Some(ChildActor::Process { actor, .. }), Message::Input(InstanceInput::Reconfigured)) => {
                if let Some(Member::Instance(_, spec)) = self.node.child(slot) {
                    tell(actor, ProcessMsg::Spec(Arc::clone(spec)));
                }
            }
            (Some(ChildActor::Process { actor, .. }), Message::Input(input)) => {
                tell(actor, ProcessMsg::Input(input));
            }
            (Some(ChildActor::Process { actor, .. }), Message::Directive(input, number)) => {
                tell(actor, ProcessMsg::Directive(input, number));
            }
            (Some(ChildActor::Group { actor }), message) => tell(actor, SupervisorMsg::Node(message)),
            // A node tells an instance nothing else, and nobody in an empty slot.
            (Some(ChildActor::Process { .. }) | None, _) => {}
        }
    }

    async fn command(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        command: IssuedCommand,
        reply: CommandReply,
    ) -> Result<(), ActorProcessingErr> {
        let Some(waiting) = &mut self.waiting else {
            return Ok(());
        };
        let number = waiting.next;
        waiting.next += 1;
        waiting.replies.insert(number, reply);
        self.step(myself, Message::Command(CommandInput::Command(number, command))).await
    }

    async fn kill_all(&mut self, myself: &ActorRef<SupervisorMsg>) -> Result<(), ActorProcessingErr> {
        self.step(myself, Message::Command(CommandInput::Shutdown("killed".to_owned()))).await?;
        let instances: Vec<InstanceId> = self.node.instances().cloned().collect();
        for id in instances {
            self.step(myself, Message::Relay(id, InstanceInput::Kill(StopCause::Shutdown))).await?;
        }
        Ok(())
    }
}
