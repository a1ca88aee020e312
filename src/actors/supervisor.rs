//! The ServiceSupervisor: the root of the tree, and one a group.
//!
//! Each owns its children (process actors and nested supervisors) and decides, by the
//! machine of `decide::group`, what the fall of one means for the others. The root also
//! takes commands and carries them through ([`Operations`]).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::watch;

use super::messages::{AckTo, GraphMsg, ProcessMsg};
use super::process::{BrokenActor, ProcessActor, ProcessArgs, ProcessGuard};
use super::timer::Timer;
use super::{ActorContext, tell};
use crate::actors::messages::{ChildEvent, CommandReply, SupervisorMsg};
use crate::decide::graph::Graph;
use crate::decide::group::{Group, GroupEffect, GroupInput, NewChild, Slot};
use crate::decide::lifecycle::InstanceInput;
use crate::decide::operation::{CommandEffect, CommandInput, CommandNumber, Operations};
use crate::decide::plan_edit::Branch;
use crate::decide::simulation::{Message, Node, Step};
use crate::model::cause::StartCause;
use crate::model::{Child, Fact, GroupSpec, InstanceId, IssuedCommand, Name, Plan, ServiceSpec, StopCause};

/// What the root shares with whoever waits for it. It ends with the root.
pub(crate) struct RootChannel {
    /// Whether commands are under way, so that events are worth a message.
    pub(crate) observing: Arc<AtomicBool>,
    /// Turns true when every process is gone after a shutdown.
    pub(crate) down: watch::Sender<bool>,
}

/// How a supervisor is made.
pub(crate) struct SupervisorArgs {
    pub(crate) context: Arc<ActorContext>,
    /// `None`: the root.
    pub(crate) name: Option<Name>,
    pub(crate) parent: Option<(ActorRef<SupervisorMsg>, Slot)>,
    pub(crate) dependencies: ActorRef<GraphMsg>,
    pub(crate) root: Option<RootChannel>,
}

pub(crate) struct ServiceSupervisor;

/// What there is at one moment.
struct Shape {
    plan: Arc<Plan>,
    graph: Arc<Graph>,
}

impl Shape {
    fn of(context: &ActorContext) -> Shape {
        context.log.tree_state(|b| Shape { plan: Arc::clone(b.plan()), graph: Arc::clone(b.graph()) })
    }
}

enum ChildActor {
    Process { id: InstanceId, actor: ActorRef<ProcessMsg>, guard: Arc<ProcessGuard> },
    Group { name: Name, actor: ActorRef<SupervisorMsg> },
}

impl ChildActor {
    fn name(&self) -> String {
        match self {
            ChildActor::Process { id, .. } => id.to_string(),
            ChildActor::Group { name, .. } => name.to_string(),
        }
    }

    /// Ends its actor, and waits for that.
    async fn end(self) {
        // An error means that it is gone already.
        let _ = match self {
            ChildActor::Process { actor, .. } => actor.stop_and_wait(None, None).await,
            ChildActor::Group { actor, .. } => actor.stop_and_wait(None, None).await,
        };
    }

    fn actor_id(&self) -> ActorId {
        match self {
            ChildActor::Process { actor, .. } => actor.get_id(),
            ChildActor::Group { actor, .. } => actor.get_id(),
        }
    }
}

/// Commands under way, at the root.
struct CommandDesk {
    line: RootChannel,
    operations: Operations,
    replies: HashMap<CommandNumber, CommandReply>,
    next: CommandNumber,
}

pub(crate) struct SupervisorState {
    context: Arc<ActorContext>,
    name: Option<Name>,
    spec: GroupSpec,
    parent: Option<(ActorRef<SupervisorMsg>, Slot)>,
    dependencies: ActorRef<GraphMsg>,
    machine: Group,
    children: BTreeMap<Slot, ChildActor>,
    /// The child through which each instance below is reached.
    routes: HashMap<InstanceId, Slot>,
    timer: Timer,
    commands: Option<CommandDesk>,
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
        let SupervisorArgs { context, name, parent, dependencies, root } = args;
        if root.is_some() {
            // Before anybody below asks it for anything.
            tell(&dependencies, GraphMsg::Root(myself.clone()));
        }
        let shape = Shape::of(&context);
        let spec = shape.plan.group(name.as_ref()).cloned().unwrap_or_default();
        let mut state = SupervisorState {
            machine: Group::new(&spec, name.is_none()),
            context,
            name,
            spec,
            parent,
            dependencies,
            children: BTreeMap::new(),
            routes: HashMap::new(),
            timer: Timer::default(),
            commands: root.map(|line| CommandDesk {
                line,
                operations: Operations::default(),
                replies: HashMap::new(),
                next: 1,
            }),
        };
        for child in state.spec.children.clone() {
            state.adopt(&myself, &shape, &child, None).await?;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<SupervisorMsg>,
        message: SupervisorMsg,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMsg::Child(slot, ChildEvent::Crashed(delay)) => {
                state.step(&myself, GroupInput::Crashed(slot, delay));
            }
            SupervisorMsg::Child(slot, ChildEvent::Ended) => state.step(&myself, GroupInput::Ended(slot)),
            SupervisorMsg::Child(slot, ChildEvent::Activity(activity)) => {
                state.step(&myself, GroupInput::Reported(slot, activity));
            }
            SupervisorMsg::Answer(instance, input) => state.hand_down(instance, input),
            SupervisorMsg::Directive(instance, input, sender) => {
                state.hand_down_directive(instance, input, sender);
            }
            SupervisorMsg::Adopt(branch) => state.add(&myself, branch).await?,
            SupervisorMsg::Reconfigured => state.reconfigured(),
            SupervisorMsg::Dismiss(branch, sender) => state.dismiss(&myself, branch, sender).await,
            SupervisorMsg::Dismissed(number) => {
                state.step_commands(&myself, CommandInput::Dismissed(number)).await?;
            }
            SupervisorMsg::Acknowledged(ack) => {
                state.step_commands(&myself, CommandInput::Acknowledged(ack)).await?;
            }
            SupervisorMsg::Group(input) => state.step(&myself, input),
            SupervisorMsg::Timer => {
                state.timer.rang();
                state.step(&myself, GroupInput::Tick);
            }
            SupervisorMsg::Command(command, reply) => state.command(&myself, command, reply).await?,
            SupervisorMsg::Shutdown(cause) => state.shutdown(&myself, cause).await?,
            SupervisorMsg::GaveUp(group) => match &state.parent {
                Some((parent, _)) => tell(parent, SupervisorMsg::GaveUp(group)),
                None => state.step_commands(&myself, CommandInput::GaveUp(group)).await?,
            },
            SupervisorMsg::KillAll => state.kill_all(&myself).await?,
            SupervisorMsg::Observed(event) => {
                state.step_commands(&myself, CommandInput::Observed(event)).await?;
            }
        }
        Ok(())
    }

    /// Whoever waits for the end of a supervisor waits for that of all below it.
    async fn post_stop(
        &self,
        _myself: ActorRef<SupervisorMsg>,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        for child in std::mem::take(&mut state.children).into_values() {
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
            let broke = state.children.iter().find(|(_, child)| child.actor_id() == actor.get_id());
            if let Some((slot, child)) = broke.map(|(slot, child)| (*slot, child.name())) {
                tracing::error!(%child, %error, "an actor broke");
                state.replace(&myself, slot, &error.to_string()).await?;
            } else if actor.get_id() == state.dependencies.get_id() {
                // Without it whatever depends on something would wait for ever.
                return Err(format!("the dependency graph broke: {error}").into());
            } else {
                tracing::error!(%error, "the monitor, a pool or its Scaler broke, and is gone");
            }
        }
        Ok(())
    }
}

impl SupervisorState {
    /// Makes the actors of one member; of a service's copies just these, where they are given.
    async fn adopt(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        shape: &Shape,
        child: &Child,
        copies: Option<&[InstanceId]>,
    ) -> Result<(), ActorProcessingErr> {
        let Shape { plan, graph } = shape;
        match child {
            Child::Service(name) => {
                let Some(spec) = graph.service(name).cloned() else {
                    return Err(format!("{name} is in no plan").into());
                };
                for id in spec.instances().filter(|id| copies.is_none_or(|copies| copies.contains(id))) {
                    let slot = self.machine.add(NewChild::instance(&spec));
                    let guard = Arc::default();
                    let actor = self.process(myself, &id, &spec, slot, &guard, None).await?;
                    self.routes.insert(id.clone(), slot);
                    self.children.insert(slot, ChildActor::Process { id, actor, guard });
                }
            }
            Child::Group(name) => {
                let inner = plan.groups.get(name).cloned().unwrap_or_default();
                let slot = self.machine.add(NewChild::group(&inner));
                let args = SupervisorArgs {
                    context: Arc::clone(&self.context),
                    name: Some(name.clone()),
                    parent: Some((myself.clone(), slot)),
                    dependencies: self.dependencies.clone(),
                    root: None,
                };
                // Boxed: a supervisor makes supervisors.
                let made = Box::pin(ServiceSupervisor::spawn_linked(
                    None,
                    ServiceSupervisor,
                    args,
                    myself.get_cell(),
                ));
                let (actor, _) = made.await?;
                for service in plan.services_below(name.as_str()) {
                    let ids = graph.service(&service).into_iter().flat_map(|s| s.instances());
                    self.routes.extend(ids.map(|id| (id, slot)));
                }
                self.children.insert(slot, ChildActor::Group { name: name.clone(), actor });
            }
        }
        Ok(())
    }

    async fn process(
        &self,
        myself: &ActorRef<SupervisorMsg>,
        id: &InstanceId,
        spec: &Arc<ServiceSpec>,
        slot: Slot,
        guard: &Arc<ProcessGuard>,
        broke: Option<BrokenActor>,
    ) -> Result<ActorRef<ProcessMsg>, ActorProcessingErr> {
        let args = ProcessArgs {
            context: Arc::clone(&self.context),
            id: id.clone(),
            spec: Arc::clone(spec),
            group: self.name.clone(),
            slot,
            parent: myself.clone(),
            dependencies: self.dependencies.clone(),
            guard: Arc::clone(guard),
            broke,
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
        let (id, guard) = match self.children.get(&slot) {
            Some(ChildActor::Process { id, guard, .. }) => (id.clone(), Arc::clone(guard)),
            Some(ChildActor::Group { name, .. }) => {
                return Err(format!("the supervisor of group {name} broke: {error}").into());
            }
            None => return Ok(()),
        };
        let found = self.context.log.tree_state(|tree_state| {
            let entry = tree_state.entry(&id)?;
            let message = error.to_owned();
            Some((
                Arc::clone(&entry.spec),
                BrokenActor { goal: entry.goal, last: entry.incarnation, message },
            ))
        });
        let Some((spec, broke)) = found else {
            return Ok(());
        };
        let actor = self.process(myself, &id, &spec, slot, &guard, Some(broke)).await?;
        self.children.insert(slot, ChildActor::Process { id, actor, guard });
        Ok(())
    }

    /// What was added: made here, or by a supervisor below, which is told.
    async fn add(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        branch: Branch,
    ) -> Result<(), ActorProcessingErr> {
        let instances = branch.instances.clone();
        match branch.descend() {
            Ok((next, branch)) => {
                if let Some((slot, actor)) = self.group_below(&next) {
                    self.routes.extend(instances.into_iter().map(|id| (id, slot)));
                    tell(&actor, SupervisorMsg::Adopt(branch));
                }
            }
            Err(branch) => {
                let shape = Shape::of(&self.context);
                self.note(self.context.clock.now(), || Message::Adopt(branch.clone()));
                // Some may have been there when this supervisor was made.
                let new = |id: &&InstanceId| !self.routes.contains_key(*id);
                let copies: Vec<InstanceId> = branch.instances.iter().filter(new).cloned().collect();
                for child in &branch.children {
                    if matches!(child, Child::Service(_)) || self.slots(child, &[]).is_empty() {
                        self.adopt(myself, &shape, child, Some(&copies)).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Looks at what it and its children are to be now, and tells them.
    fn reconfigured(&mut self) {
        self.note(self.context.clock.now(), || Message::Reconfigured);
        let shape = Shape::of(&self.context);
        if let Some(spec) = shape.plan.group(self.name.as_ref()) {
            self.spec = spec.clone();
            self.machine.reconfigure(spec);
        }
        for (slot, child) in &self.children {
            match child {
                ChildActor::Process { id, actor, .. } => {
                    if let Some(spec) = shape.graph.service(id.service()) {
                        self.machine.reconfigure_child(*slot, NewChild::instance(spec));
                        tell(actor, ProcessMsg::Spec(Arc::clone(spec)));
                    }
                }
                ChildActor::Group { name, actor } => {
                    if let Some(spec) = shape.plan.groups.get(name) {
                        self.machine.reconfigure_child(*slot, NewChild::group(spec));
                    }
                    tell(actor, SupervisorMsg::Reconfigured);
                }
            }
        }
    }

    /// What was removed, and is down: forgotten here, or by a supervisor below, which is told.
    async fn dismiss(&mut self, myself: &ActorRef<SupervisorMsg>, branch: Branch, sender: AckTo) {
        for id in &branch.instances {
            self.routes.remove(id);
        }
        let branch = match branch.descend() {
            Ok((next, branch)) => {
                if let Some((_, actor)) = self.group_below(&next) {
                    tell(&actor, SupervisorMsg::Dismiss(branch, sender));
                }
                return;
            }
            Err(branch) => branch,
        };
        let now = self.context.clock.now();
        self.note(now, || Message::Dismiss(branch.clone(), sender.number));
        let slots: Vec<Slot> =
            branch.children.iter().flat_map(|child| self.slots(child, &branch.instances)).collect();
        for slot in &slots {
            self.run(myself, GroupInput::Removed(*slot), now, None);
        }
        for slot in slots {
            // It rests: at most it is at a message that changes nothing.
            if let Some(child) = self.children.remove(&slot) {
                child.end().await;
            }
        }
        for id in &branch.instances {
            self.context.host.forget(self.context.sources.source(id));
            self.context.sources.forget(id);
        }
        tell(&sender.root, SupervisorMsg::Dismissed(sender.number));
    }

    /// Writes down what this supervisor was told; at the root that is part of the desk's step.
    fn note(&self, at: Duration, message: impl FnOnce() -> Message) {
        if self.commands.is_none() {
            let to = Node::Group(self.name.clone());
            let step = self.context.log.describe(|| Step { at, to, message: message() });
            self.context.log.commit(step, []);
        }
    }

    fn group_below(&self, group: &Name) -> Option<(Slot, ActorRef<SupervisorMsg>)> {
        self.children.iter().find_map(|(slot, child)| match child {
            ChildActor::Group { name, actor } if name == group => Some((*slot, actor.clone())),
            ChildActor::Group { .. } | ChildActor::Process { .. } => None,
        })
    }

    /// The slots of a member: of a service those of these copies.
    fn slots(&self, child: &Child, copies: &[InstanceId]) -> Vec<Slot> {
        let is = |made: &ChildActor| match (made, child) {
            (ChildActor::Process { id, .. }, Child::Service(name)) => {
                id.service() == name && copies.contains(id)
            }
            (ChildActor::Group { name: group, .. }, Child::Group(name)) => group == name,
            (ChildActor::Process { .. } | ChildActor::Group { .. }, _) => false,
        };
        self.children.iter().filter(|(_, child)| is(child)).map(|(slot, _)| *slot).collect()
    }

    fn step(&mut self, myself: &ActorRef<SupervisorMsg>, input: GroupInput) {
        let now = self.context.clock.now();
        let step = self.context.log.describe(|| Step {
            at: now,
            to: Node::Group(self.name.clone()),
            message: Message::Group(input),
        });
        self.run(myself, input, now, step);
    }

    fn run(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        input: GroupInput,
        now: Duration,
        step: Option<Step>,
    ) {
        let mut effects = Vec::new();
        self.machine.step(now, input, &mut effects);
        // Facts first: whoever acts on an effect finds it told.
        let name = |slot: Slot| self.children.get(&slot).map(ChildActor::name).unwrap_or_default();
        let facts = effects.iter().filter_map(|effect| match effect {
            GroupEffect::Emit(fact) => Some(fact.clone().named(self.name.as_ref(), &self.spec, name)),
            _ => None,
        });
        self.context.log.commit(step, facts);
        for effect in effects {
            self.perform(myself, effect);
        }
        self.timer.set(self.machine.next_deadline(), self.context.clock, myself, || SupervisorMsg::Timer);
    }

    fn perform(&mut self, myself: &ActorRef<SupervisorMsg>, effect: GroupEffect) {
        match effect {
            GroupEffect::Permit(slot) => {
                self.tell_kid(slot, InstanceInput::Permit, GroupInput::Start(StartCause::Group));
            }
            GroupEffect::Start(slot, cause) => {
                self.tell_kid(slot, InstanceInput::Start(cause), GroupInput::Start(cause));
            }
            GroupEffect::Stop(slot, cause) => {
                self.tell_kid(slot, InstanceInput::Stop(cause), GroupInput::Stop(cause));
            }
            GroupEffect::Crashed => self.tell_parent(ChildEvent::Crashed(Duration::ZERO)),
            GroupEffect::Report(activity) => self.tell_parent(ChildEvent::Activity(activity)),
            GroupEffect::Ended => self.tell_parent(ChildEvent::Ended),
            GroupEffect::EndTree => {
                let cause = "its significant services have ended".to_owned();
                tell(myself, SupervisorMsg::Shutdown(cause));
            }
            GroupEffect::ExitTree => {
                // Down from the root, where every wish starts.
                let above = self.parent.as_ref().map_or(myself, |(parent, _)| parent);
                tell(above, SupervisorMsg::GaveUp(self.name.clone()));
            }
            GroupEffect::Emit(_) => {}
        }
    }

    /// Tells a child: the first if it is a process, the second if it is a group.
    fn tell_kid(&self, slot: Slot, process: InstanceInput, group: GroupInput) {
        match self.children.get(&slot) {
            Some(ChildActor::Process { actor, .. }) => tell(actor, ProcessMsg::Input(process)),
            Some(ChildActor::Group { actor, .. }) => tell(actor, SupervisorMsg::Group(group)),
            None => {}
        }
    }

    fn tell_parent(&self, news: ChildEvent) {
        if let Some((parent, slot)) = &self.parent {
            tell(parent, SupervisorMsg::Child(*slot, news));
        }
    }

    /// Hands something to the child that is, or is above, the instance.
    fn hand_down(&self, instance: InstanceId, input: InstanceInput) {
        match self.routes.get(&instance).and_then(|slot| self.children.get(slot)) {
            Some(ChildActor::Process { actor, .. }) => tell(actor, ProcessMsg::Input(input)),
            Some(ChildActor::Group { actor, .. }) => tell(actor, SupervisorMsg::Answer(instance, input)),
            None => {}
        }
    }

    fn hand_down_directive(&self, instance: InstanceId, input: InstanceInput, sender: AckTo) {
        match self.routes.get(&instance).and_then(|slot| self.children.get(slot)) {
            Some(ChildActor::Process { actor, .. }) => tell(actor, ProcessMsg::Directive(input, sender)),
            Some(ChildActor::Group { actor, .. }) => {
                tell(actor, SupervisorMsg::Directive(instance, input, sender));
            }
            None => {}
        }
    }

    async fn command(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        command: IssuedCommand,
        reply: CommandReply,
    ) -> Result<(), ActorProcessingErr> {
        let Some(commands) = &mut self.commands else {
            return Ok(());
        };
        let ticket = commands.next;
        commands.next += 1;
        commands.replies.insert(ticket, reply);
        self.step_commands(myself, CommandInput::Command(ticket, command)).await
    }

    async fn shutdown(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        cause: String,
    ) -> Result<(), ActorProcessingErr> {
        match &self.parent {
            Some((parent, _)) => tell(parent, SupervisorMsg::Shutdown(cause)),
            None => self.step_commands(myself, CommandInput::Shutdown(cause)).await?,
        }
        Ok(())
    }

    async fn kill_all(&mut self, myself: &ActorRef<SupervisorMsg>) -> Result<(), ActorProcessingErr> {
        self.shutdown(myself, "killed".to_owned()).await?;
        for id in self.routes.keys() {
            self.hand_down(id.clone(), InstanceInput::Kill(StopCause::Shutdown));
        }
        Ok(())
    }

    /// A step of the commands under way, at the root.
    async fn step_commands(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        input: CommandInput,
    ) -> Result<(), ActorProcessingErr> {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            // Each before anything else that the desk is told.
            for (at, next) in self.step_commands_once(myself, input).await?.into_iter().enumerate() {
                inputs.insert(at, next);
            }
        }
        Ok(())
    }

    /// What the desk wants to be told next, before anything else.
    async fn step_commands_once(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        input: CommandInput,
    ) -> Result<Vec<CommandInput>, ActorProcessingErr> {
        let Some(commands) = &mut self.commands else {
            return Ok(Vec::new());
        };
        // Before the first wish is out: what it causes is to be heard of.
        commands.line.observing.store(true, Ordering::SeqCst);
        let ActorContext { log, clock, .. } = &*self.context;
        let now = clock.now();
        let step = log.describe(|| Step {
            at: now,
            to: Node::Group(None),
            message: Message::Command(input.clone()),
        });
        let effects = log.decide(step, |tree_state| {
            let mut effects = Vec::new();
            commands.operations.step(tree_state, now, input, &mut effects);
            let facts = effects.iter().filter_map(|effect| match effect {
                CommandEffect::Emit(fact) => Some(fact.clone()),
                _ => None,
            });
            let facts: Vec<Fact> = facts.collect();
            (effects, facts)
        });
        commands.line.observing.store(commands.operations.any(), Ordering::SeqCst);
        let mut next = Vec::new();
        for effect in effects {
            match effect {
                CommandEffect::Emit(_) => {}
                CommandEffect::Directive(instance, input, number) => {
                    self.hand_down_directive(instance, input, AckTo { root: myself.clone(), number });
                }
                CommandEffect::Adopt(branch) => self.add(myself, branch).await?,
                CommandEffect::Reconfigured => self.reconfigured(),
                CommandEffect::Dismiss(branch, number) => {
                    self.dismiss(myself, branch, AckTo { root: myself.clone(), number }).await;
                }
                CommandEffect::Again(input) => next.push(input),
                CommandEffect::Answer(ticket, answer) => {
                    if let Some(reply) =
                        self.commands.as_mut().and_then(|commands| commands.replies.remove(&ticket))
                    {
                        // Nobody waits any more when the client has hung up.
                        let _ = reply.send(answer);
                    }
                }
                CommandEffect::Down => {
                    if let Some(commands) = &self.commands {
                        commands.line.down.send_replace(true);
                    }
                }
            }
        }
        Ok(next)
    }
}
