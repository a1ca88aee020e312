//! The ServiceSupervisor: the root of the tree, and one a group.
//!
//! Each owns its children (process actors and nested supervisors) and decides, by the
//! machine of `decide::group`, what the fall of one means for the others. The root also
//! takes commands and carries them through ([`Operations`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;

use super::Context;
use super::graph::GraphMsg;
use super::process::{ProcessActor, ProcessArgs, ProcessMsg};
use crate::decide::group::{self, Group, Slot};
use crate::decide::lifecycle::{Activity, Input};
use crate::decide::operation::{self, Operations, Ticket};
use crate::model::event::StartCause;
use crate::model::{
    Answer, Child, Command, Denial, Event, Fact, GroupSpec, Incarnation, InstanceId, Name, Policy,
    ServiceSpec, StopCause,
};

/// What a supervisor is told.
pub enum SupervisorMsg {
    /// A child's news.
    Child(Slot, ChildNews),
    /// A wish for an instance below.
    Wish(InstanceId, Input),
    /// A wish of the parent's, or the boot.
    Group(group::Input),
    /// The timer rang.
    Timer,
    /// A command (the root only).
    Command(Command, Reply),
    /// Take everything down, dependents first (the root only).
    Shutdown(String),
    /// Take everything down at once (the root only).
    KillAll,
    /// Something happened while commands are under way (the root only).
    Observed(Arc<Event>),
}

/// Where a command's answer goes.
pub type Reply = oneshot::Sender<Result<Answer, Denial>>;

/// What a child tells its supervisor.
#[derive(Debug, Clone, Copy)]
pub enum ChildNews {
    /// It fell and would return after this delay.
    Fell(Duration),
    /// What it is up to now.
    Activity(Activity),
}

/// What the root shares with whoever waits for it.
#[derive(Clone)]
pub(crate) struct RootLine {
    /// Whether commands are under way, so that events are worth a message.
    pub(crate) observing: Arc<AtomicBool>,
    /// Turns true when every process is gone after a shutdown.
    pub(crate) down: watch::Sender<bool>,
}

/// How a supervisor is made.
pub(crate) struct SupervisorArgs {
    pub(crate) context: Arc<Context>,
    /// `None`: the root.
    pub(crate) name: Option<Name>,
    pub(crate) parent: Option<(ActorRef<SupervisorMsg>, Slot)>,
    pub(crate) dependencies: ActorRef<GraphMsg>,
    pub(crate) root: Option<RootLine>,
}

pub(crate) struct ServiceSupervisor;

enum Kid {
    Process { id: InstanceId, actor: ActorRef<ProcessMsg> },
    Group { name: Name, actor: ActorRef<SupervisorMsg> },
}

impl Kid {
    fn name(&self) -> String {
        match self {
            Kid::Process { id, .. } => id.to_string(),
            Kid::Group { name, .. } => name.to_string(),
        }
    }

    fn actor_id(&self) -> ActorId {
        match self {
            Kid::Process { actor, .. } => actor.get_id(),
            Kid::Group { actor, .. } => actor.get_id(),
        }
    }
}

/// Commands under way, at the root.
struct Desk {
    line: RootLine,
    operations: Operations,
    replies: HashMap<Ticket, Reply>,
    next: Ticket,
}

pub(crate) struct SupervisorState {
    context: Arc<Context>,
    name: Option<Name>,
    spec: GroupSpec,
    parent: Option<(ActorRef<SupervisorMsg>, Slot)>,
    dependencies: ActorRef<GraphMsg>,
    machine: Group,
    kids: Vec<Kid>,
    /// The child through which each instance below is reached.
    routes: HashMap<InstanceId, Slot>,
    timer: Option<(Duration, AbortHandle)>,
    desk: Option<Desk>,
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
        let spec = match &name {
            Some(name) => context.plan.groups.get(name).cloned().unwrap_or_default(),
            None => context.plan.root.clone(),
        };
        let mut state = SupervisorState {
            machine: Group::new(&spec, name.is_none()),
            context,
            name,
            spec,
            parent,
            dependencies,
            kids: Vec::new(),
            routes: HashMap::new(),
            timer: None,
            desk: root.map(|line| Desk {
                line,
                operations: Operations::default(),
                replies: HashMap::new(),
                next: 1,
            }),
        };
        for child in state.spec.children.clone() {
            state.adopt(&myself, &child).await?;
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
            SupervisorMsg::Child(slot, ChildNews::Fell(delay)) => {
                state.step(&myself, group::Input::Fell(slot, delay))?;
            }
            SupervisorMsg::Child(slot, ChildNews::Activity(activity)) => {
                state.step(&myself, group::Input::Reported(slot, activity))?;
            }
            SupervisorMsg::Wish(instance, input) => state.hand_down(&instance, input)?,
            SupervisorMsg::Group(input) => state.step(&myself, input)?,
            SupervisorMsg::Timer => {
                state.timer = None;
                state.step(&myself, group::Input::Tick)?;
            }
            SupervisorMsg::Command(command, reply) => state.command(command, reply)?,
            SupervisorMsg::Shutdown(cause) => state.shutdown(cause)?,
            SupervisorMsg::KillAll => state.kill_all()?,
            SupervisorMsg::Observed(event) => state.observed(&event)?,
        }
        Ok(())
    }

    /// A child actor ends only with the tree, or because regrow itself broke.
    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<SupervisorMsg>,
        event: SupervisionEvent,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(actor, error) = event {
            let slot = state.kids.iter().position(|kid| kid.actor_id() == actor.get_id());
            if let Some(slot) = slot {
                tracing::error!(child = %state.kids[slot].name(), %error, "an actor broke");
                state.replace(&myself, slot, &error.to_string()).await?;
            }
        }
        Ok(())
    }
}

impl SupervisorState {
    /// Makes the actors of one member.
    async fn adopt(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        child: &Child,
    ) -> Result<(), ActorProcessingErr> {
        match child {
            Child::Service(name) => {
                let Some(spec) = self.context.graph.service(name).cloned() else {
                    return Err(format!("{name} is in no plan").into());
                };
                for id in spec.instances() {
                    let slot = self.machine.add(spec.restart.policy != Policy::Never, spec.autostart);
                    let actor = self.process(myself, &id, &spec, slot, Incarnation(0)).await?;
                    self.routes.insert(id.clone(), slot);
                    self.kids.push(Kid::Process { id, actor });
                }
            }
            Child::Group(name) => {
                let slot = self.machine.add(true, true);
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
                for service in self.context.plan.services_below(name.as_str()) {
                    for id in self.context.graph.service(&service).into_iter().flat_map(|s| s.instances()) {
                        self.routes.insert(id, slot);
                    }
                }
                self.kids.push(Kid::Group { name: name.clone(), actor });
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
        last: Incarnation,
    ) -> Result<ActorRef<ProcessMsg>, ActorProcessingErr> {
        let args = ProcessArgs {
            context: Arc::clone(&self.context),
            id: id.clone(),
            spec: Arc::clone(spec),
            group: self.name.clone(),
            slot,
            parent: myself.clone(),
            dependencies: self.dependencies.clone(),
            last,
        };
        let (actor, _) = ProcessActor::spawn_linked(None, ProcessActor, args, myself.get_cell()).await?;
        Ok(actor)
    }

    /// Puts a new actor in the place of a broken one. Its instance is `failed` until it is
    /// started by hand: what broke once may break again.
    async fn replace(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        slot: Slot,
        error: &str,
    ) -> Result<(), ActorProcessingErr> {
        let Kid::Process { id, .. } = &self.kids[slot] else {
            return Err(format!("the supervisor of group {} broke: {error}", self.kids[slot].name()).into());
        };
        let id = id.clone();
        let found = self.context.log.board(|b| b.entry(&id).map(|e| (Arc::clone(&e.spec), e.incarnation)));
        let Some((spec, last)) = found else {
            return Ok(());
        };
        let actor = self.process(myself, &id, &spec, slot, last).await?;
        self.context.log.append([ProcessActor::broken(id.clone(), error.to_owned())]);
        self.kids[slot] = Kid::Process { id, actor };
        self.step(myself, group::Input::Reported(slot, Activity::Resting))
    }

    fn step(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        input: group::Input,
    ) -> Result<(), ActorProcessingErr> {
        let mut effects = Vec::new();
        self.machine.step(self.context.clock.now(), input, &mut effects);
        for effect in effects {
            self.perform(myself, effect)?;
        }
        self.arm(myself);
        Ok(())
    }

    fn perform(
        &mut self,
        myself: &ActorRef<SupervisorMsg>,
        effect: group::Effect,
    ) -> Result<(), ActorProcessingErr> {
        match effect {
            group::Effect::Permit(slot) => match &self.kids[slot] {
                Kid::Process { actor, .. } => actor.cast(ProcessMsg::Input(Input::Permit))?,
                Kid::Group { actor, .. } => {
                    actor.cast(SupervisorMsg::Group(group::Input::Start(StartCause::Group)))?;
                }
            },
            group::Effect::Start(slot, cause) => match &self.kids[slot] {
                Kid::Process { actor, .. } => actor.cast(ProcessMsg::Input(Input::Start(cause)))?,
                Kid::Group { actor, .. } => actor.cast(SupervisorMsg::Group(group::Input::Start(cause)))?,
            },
            group::Effect::Stop(slot, cause) => match &self.kids[slot] {
                Kid::Process { actor, .. } => actor.cast(ProcessMsg::Input(Input::Stop(cause)))?,
                Kid::Group { actor, .. } => actor.cast(SupervisorMsg::Group(group::Input::Stop(cause)))?,
            },
            group::Effect::Fell => {
                if let Some((parent, slot)) = &self.parent {
                    parent.cast(SupervisorMsg::Child(*slot, ChildNews::Fell(Duration::ZERO)))?;
                }
            }
            group::Effect::Report(activity) => {
                if let Some((parent, slot)) = &self.parent {
                    parent.cast(SupervisorMsg::Child(*slot, ChildNews::Activity(activity)))?;
                }
            }
            group::Effect::ExitTree => {
                // Down from the root, where every wish starts; its last words are the event's.
                let group = self.name.as_ref().map_or("the root group".to_owned(), |n| format!("group {n}"));
                let cause = format!("{group} gave up");
                match &self.parent {
                    None => myself.cast(SupervisorMsg::Shutdown(cause))?,
                    Some((parent, _)) => parent.cast(SupervisorMsg::Shutdown(cause))?,
                }
            }
            group::Effect::Emit(fact) => {
                let fact = fact.named(self.name.as_ref(), &self.spec, |slot| self.kids[slot].name());
                self.context.log.append([fact]);
            }
        }
        Ok(())
    }

    /// Hands a wish to the child that is, or is above, the instance.
    fn hand_down(&self, instance: &InstanceId, input: Input) -> Result<(), ActorProcessingErr> {
        match self.routes.get(instance).map(|slot| &self.kids[*slot]) {
            Some(Kid::Process { actor, .. }) => actor.cast(ProcessMsg::Input(input))?,
            Some(Kid::Group { actor, .. }) => actor.cast(SupervisorMsg::Wish(instance.clone(), input))?,
            None => {}
        }
        Ok(())
    }

    fn command(&mut self, command: Command, reply: Reply) -> Result<(), ActorProcessingErr> {
        let Some(desk) = &mut self.desk else {
            return Ok(());
        };
        let ticket = desk.next;
        desk.next += 1;
        desk.line.observing.store(true, Ordering::SeqCst);
        let mut effects = Vec::new();
        let context = &self.context;
        let taken = context.log.board(|board| {
            desk.operations.submit(&context.plan, &context.graph, board, ticket, &command, &mut effects)
        });
        match taken {
            Ok(()) => {
                context.log.append([Fact::CommandAccepted { command: Box::new(command) }]);
                desk.replies.insert(ticket, reply);
            }
            Err(denial) => {
                context.log.append([Fact::CommandDenied {
                    command: Box::new(command),
                    denial: Box::new(denial.clone()),
                }]);
                // Nobody waits any more when the client has hung up.
                let _ = reply.send(Err(denial));
            }
        }
        self.carry_out(effects)
    }

    fn shutdown(&mut self, cause: String) -> Result<(), ActorProcessingErr> {
        if self.desk.is_none() {
            if let Some((parent, _)) = &self.parent {
                parent.cast(SupervisorMsg::Shutdown(cause))?;
            }
            return Ok(());
        }
        let Some(desk) = &mut self.desk else {
            return Ok(());
        };
        let already = self.context.log.board(|board| board.shutting_down());
        if already {
            return Ok(());
        }
        desk.line.observing.store(true, Ordering::SeqCst);
        self.context.log.append([Fact::ShutdownStarted { cause }]);
        let mut effects = Vec::new();
        self.context.log.board(|board| {
            desk.operations.shutdown(&self.context.graph, board, &mut effects);
        });
        self.carry_out(effects)
    }

    fn kill_all(&mut self) -> Result<(), ActorProcessingErr> {
        self.shutdown("killed".to_owned())?;
        let all: Vec<InstanceId> = self.routes.keys().cloned().collect();
        for id in all {
            self.hand_down(&id, Input::Kill(StopCause::Shutdown))?;
        }
        Ok(())
    }

    fn observed(&mut self, event: &Event) -> Result<(), ActorProcessingErr> {
        let Some(desk) = &mut self.desk else {
            return Ok(());
        };
        let mut effects = Vec::new();
        self.context.log.board(|board| {
            desk.operations.observe(&self.context.graph, board, event, &mut effects);
        });
        self.carry_out(effects)
    }

    fn carry_out(&mut self, effects: Vec<operation::Effect>) -> Result<(), ActorProcessingErr> {
        for effect in effects {
            match effect {
                operation::Effect::Wish(instance, input) => self.hand_down(&instance, input)?,
                operation::Effect::Answer(ticket, answer) => {
                    let reply = self.desk.as_mut().and_then(|desk| desk.replies.remove(&ticket));
                    if let Some(reply) = reply {
                        // Nobody waits any more when the client has hung up.
                        let _ = reply.send(Ok(answer));
                    }
                }
                operation::Effect::ShutdownDone => {
                    self.context.log.append([Fact::ShutdownDone]);
                    if let Some(desk) = &self.desk {
                        desk.line.down.send_replace(true);
                    }
                }
            }
        }
        if let Some(desk) = &self.desk {
            desk.line.observing.store(desk.operations.any(), Ordering::SeqCst);
        }
        Ok(())
    }

    fn arm(&mut self, myself: &ActorRef<SupervisorMsg>) {
        let wanted = self.machine.next_deadline();
        if self.timer.as_ref().map(|(at, _)| *at) == wanted {
            return;
        }
        if let Some((_, task)) = self.timer.take() {
            task.abort();
        }
        if let Some(at) = wanted {
            let (actor, instant) = (myself.clone(), self.context.clock.instant(at));
            let task = tokio::spawn(async move {
                tokio::time::sleep_until(instant).await;
                let _ = actor.cast(SupervisorMsg::Timer);
            });
            self.timer = Some((at, task.abort_handle()));
        }
    }
}

impl Drop for SupervisorState {
    fn drop(&mut self) {
        if let Some((_, task)) = self.timer.take() {
            task.abort();
        }
    }
}
