//! The wiring of one supervisor: its children, the way to every instance below, and what follows
//! from each message.
//!
//! A [`SupervisorNode`] holds the machine of its group, and at the root the commands under way. The
//! supervisor actor and the [simulation](super::simulation) both drive this one body: they make and end what
//! an effect says, and send what it says. Deliberately absent: mailboxes, references to actors,
//! and the machines of instances.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::graph::Graph;
use super::group::{Group, GroupEffect, GroupInput, NewChild, Slot};
use super::lifecycle::{InstanceEffect, InstanceInput};
use super::message::Message;
use super::operation::{
    BranchNumber, CommandEffect, CommandInput, CommandNumber, DirectiveNumber, Operations,
};
use super::plan_edit::Branch;
use super::start_gate::GateInput;
use super::tree_state::TreeState;
use crate::model::cause::StartCause;
use crate::model::event::InstanceFact;
use crate::model::{Answer, Child, Denial, Event, Fact, GroupSpec, InstanceId, Name, Plan, ServiceSpec};

/// Where a node's facts are written down, and where it reads the state of the tree.
pub trait TreeLog {
    /// Lets `decide` look at the state, and writes its facts down before anybody else's.
    fn decide<T>(&mut self, decide: impl FnOnce(&TreeState) -> (T, Vec<Fact>)) -> T;
}

/// A child of a supervisor.
#[derive(Debug, Clone, PartialEq)]
pub enum Member {
    /// One instance of a service, with the service as the plan has it.
    Instance(InstanceId, Arc<ServiceSpec>),
    /// A group, which has a node of its own.
    Group(Name),
}

impl Member {
    /// The printed name of the child.
    pub fn name(&self) -> String {
        match self {
            Member::Instance(id, _) => id.to_string(),
            Member::Group(name) => name.to_string(),
        }
    }
}

/// What whoever drives a node is to do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeEffect {
    /// Make the machine of a new child, and of a group all below it.
    Make(Slot, Member),
    /// Send a message to a child.
    Tell(Slot, Message),
    /// Send the parent an input that tells of this node, by the slot that this node has there.
    TellParent(GroupInput),
    /// Send the root a message.
    TellRoot(Message),
    /// End the child that had this slot, and everything below it.
    End(Slot, Member),
    /// Forget what is kept of an instance beside its machine: it was removed.
    Forget(InstanceId),
    /// Step with this before anything else that is sent to the root.
    Again(CommandInput),
    /// Answer a command.
    Answer(CommandNumber, Result<Answer, Denial>),
    /// Tell whoever waits that everything is down.
    Down,
}

/// The plan and its graph at one moment.
struct Shape {
    plan: Arc<Plan>,
    graph: Arc<Graph>,
}

impl Shape {
    fn of(log: &mut impl TreeLog) -> Shape {
        let copy =
            |state: &TreeState| Shape { plan: Arc::clone(state.plan()), graph: Arc::clone(state.graph()) };
        log.decide(|state| (copy(state), Vec::new()))
    }
}

/// One supervisor of a tree.
pub struct SupervisorNode {
    /// `None` is the root.
    name: Option<Name>,
    spec: GroupSpec,
    /// The slot that this node has at its parent; `None` at the root.
    place: Option<Slot>,
    machine: Group,
    children: BTreeMap<Slot, Member>,
    /// The child through which each instance below is reached.
    routes: HashMap<InstanceId, Slot>,
    /// The commands under way, at the root alone.
    commands: Option<Operations>,
}

impl SupervisorNode {
    /// The node of a group as the plan has it, with all of its members, whose machines `out` says to make.
    /// `place` is the slot of the group at its parent; the root has none.
    pub fn new(
        name: Option<Name>,
        place: Option<Slot>,
        log: &mut impl TreeLog,
        out: &mut Vec<NodeEffect>,
    ) -> SupervisorNode {
        let shape = Shape::of(log);
        let spec = shape.plan.group(name.as_ref()).cloned().unwrap_or_default();
        let is_root = name.is_none();
        let mut node = SupervisorNode {
            machine: Group::new(&spec, is_root),
            name,
            place,
            children: BTreeMap::new(),
            routes: HashMap::new(),
            commands: is_root.then(Operations::default),
            spec,
        };
        for child in node.spec.children.clone() {
            node.adopt(&shape, &child, None, out);
        }
        node
    }

    /// The name of the group; `None` is the root.
    pub fn name(&self) -> Option<&Name> {
        self.name.as_ref()
    }

    /// The slot that this node has at its parent; `None` at the root.
    pub fn place(&self) -> Option<Slot> {
        self.place
    }

    /// The machine of the group.
    pub fn machine(&self) -> &Group {
        &self.machine
    }

    /// The child of a slot.
    pub fn child(&self, slot: Slot) -> Option<&Member> {
        self.children.get(&slot)
    }

    /// Every child with its slot, in declared order.
    pub fn children(&self) -> impl Iterator<Item = (Slot, &Member)> {
        self.children.iter().map(|(slot, member)| (*slot, member))
    }

    /// Every instance at or below this node.
    pub fn instances(&self) -> impl Iterator<Item = &InstanceId> {
        self.routes.keys()
    }

    /// Whether commands are under way here, so that whatever happens is to be heard of.
    pub fn is_busy(&self) -> bool {
        self.commands.as_ref().is_some_and(Operations::any)
    }

    /// Takes one message at time `now`. Facts are written to `log` before any effect is added.
    pub fn step(
        &mut self,
        log: &mut impl TreeLog,
        now: Duration,
        message: Message,
        out: &mut Vec<NodeEffect>,
    ) {
        match message {
            Message::Group(input) => self.step_group(log, now, input, out),
            Message::Relay(id, input) => self.relay(id, input, out),
            Message::RelayDirective(id, input, number) => self.relay_directive(id, input, number, out),
            Message::Adopt(branch) => self.add(log, branch, out),
            Message::Reconfigured => self.reconfigure(log, out),
            Message::Dismiss(branch, number) => self.dismiss(log, now, branch, number, out),
            Message::Command(input) => self.step_commands(log, now, input, out),
            // Nobody sends a supervisor what an instance or the graph takes.
            Message::Input(_) | Message::Directive(..) | Message::Graph(_) => {}
        }
    }

    /// Adds one member; of a service's instances those of `copies` alone, where that is given.
    fn adopt(
        &mut self,
        shape: &Shape,
        child: &Child,
        copies: Option<&[InstanceId]>,
        out: &mut Vec<NodeEffect>,
    ) {
        match child {
            Child::Service(name) => {
                let Some(spec) = shape.graph.service(name) else {
                    return;
                };
                for id in spec.instances().filter(|id| copies.is_none_or(|copies| copies.contains(id))) {
                    let slot = self.machine.add(NewChild::instance(spec));
                    self.routes.insert(id.clone(), slot);
                    self.join(slot, Member::Instance(id, Arc::clone(spec)), out);
                }
            }
            Child::Group(name) => {
                let inner = shape.plan.groups.get(name).cloned().unwrap_or_default();
                let slot = self.machine.add(NewChild::group(&inner));
                for service in shape.plan.services_below(name.as_str()) {
                    let ids = shape.graph.service(&service).into_iter().flat_map(|spec| spec.instances());
                    self.routes.extend(ids.map(|id| (id, slot)));
                }
                self.join(slot, Member::Group(name.clone()), out);
            }
        }
    }

    fn join(&mut self, slot: Slot, member: Member, out: &mut Vec<NodeEffect>) {
        self.children.insert(slot, member.clone());
        out.push(NodeEffect::Make(slot, member));
    }

    /// Adds a branch: to this node, or to the node below that it belongs to, which is told.
    fn add(&mut self, log: &mut impl TreeLog, branch: Branch, out: &mut Vec<NodeEffect>) {
        let shape = Shape::of(log);
        let instances = branch.instances.clone();
        match branch.descend() {
            Ok((next, branch)) => {
                if let Some(slot) = self.slot_of(&next) {
                    self.routes.extend(instances.into_iter().map(|id| (id, slot)));
                    out.push(NodeEffect::Tell(slot, Message::Adopt(branch)));
                }
            }
            Err(here) => {
                // The state that this node was made from may have had some of them.
                let new = |id: &&InstanceId| !self.routes.contains_key(*id);
                let copies: Vec<InstanceId> = here.instances.iter().filter(new).cloned().collect();
                for child in &here.children {
                    if matches!(child, Child::Service(_)) || self.slots(child, &[]).is_empty() {
                        self.adopt(&shape, child, Some(&copies), out);
                    }
                }
            }
        }
    }

    /// Looks at what this node and its children are to be now, and tells those that changed.
    fn reconfigure(&mut self, log: &mut impl TreeLog, out: &mut Vec<NodeEffect>) {
        let shape = Shape::of(log);
        if let Some(spec) = shape.plan.group(self.name.as_ref()) {
            self.spec = spec.clone();
            self.machine.reconfigure(spec);
        }
        for (slot, member) in &mut self.children {
            match member {
                Member::Instance(id, spec) => {
                    if let Some(now) = shape.graph.service(id.service())
                        && !Arc::ptr_eq(now, spec)
                    {
                        *spec = Arc::clone(now);
                        self.machine.reconfigure_child(*slot, NewChild::instance(now));
                        out.push(NodeEffect::Tell(*slot, Message::Input(InstanceInput::Reconfigured)));
                    }
                }
                Member::Group(name) => {
                    if let Some(spec) = shape.plan.groups.get(name) {
                        self.machine.reconfigure_child(*slot, NewChild::group(spec));
                    }
                    out.push(NodeEffect::Tell(*slot, Message::Reconfigured));
                }
            }
        }
    }

    /// Removes a branch whose processes are down: from this node, or from the node below that it belongs
    /// to, which is told. The root hears when it is gone.
    fn dismiss(
        &mut self,
        log: &mut impl TreeLog,
        now: Duration,
        branch: Branch,
        number: BranchNumber,
        out: &mut Vec<NodeEffect>,
    ) {
        for id in &branch.instances {
            self.routes.remove(id);
        }
        let here = match branch.descend() {
            Ok((next, branch)) => {
                if let Some(slot) = self.slot_of(&next) {
                    out.push(NodeEffect::Tell(slot, Message::Dismiss(branch, number)));
                }
                return;
            }
            Err(here) => here,
        };
        let slots: Vec<Slot> =
            here.children.iter().flat_map(|child| self.slots(child, &here.instances)).collect();
        for slot in &slots {
            self.step_group(log, now, GroupInput::Removed(*slot), out);
        }
        for slot in slots {
            out.extend(self.children.remove(&slot).map(|member| NodeEffect::End(slot, member)));
        }
        out.extend(here.instances.into_iter().map(NodeEffect::Forget));
        out.push(NodeEffect::TellRoot(Message::Command(CommandInput::Dismissed(number))));
    }

    fn slot_of(&self, group: &Name) -> Option<Slot> {
        let is = |member: &Member| matches!(member, Member::Group(name) if name == group);
        self.children.iter().find(|(_, member)| is(member)).map(|(slot, _)| *slot)
    }

    /// The slots of a member: of a service, one for each of these copies.
    fn slots(&self, child: &Child, copies: &[InstanceId]) -> Vec<Slot> {
        let is = |member: &Member| match (member, child) {
            (Member::Instance(id, _), Child::Service(name)) => id.service() == name && copies.contains(id),
            (Member::Group(group), Child::Group(name)) => group == name,
            (Member::Instance(..), Child::Group(_)) | (Member::Group(_), Child::Service(_)) => false,
        };
        self.children.iter().filter(|(_, member)| is(member)).map(|(slot, _)| *slot).collect()
    }

    /// Hands the start gate's answer down to the child that is, or is above, an instance.
    fn relay(&self, id: InstanceId, input: InstanceInput, out: &mut Vec<NodeEffect>) {
        if let Some((slot, member)) = self.way_to(&id) {
            out.push(NodeEffect::Tell(
                slot,
                match member {
                    Member::Instance(..) => Message::Input(input),
                    Member::Group(_) => Message::Relay(id, input),
                },
            ));
        }
    }

    /// Hands a directive down to the child that is, or is above, an instance.
    fn relay_directive(
        &self,
        id: InstanceId,
        input: InstanceInput,
        number: DirectiveNumber,
        out: &mut Vec<NodeEffect>,
    ) {
        if let Some((slot, member)) = self.way_to(&id) {
            out.push(NodeEffect::Tell(
                slot,
                match member {
                    Member::Instance(..) => Message::Directive(input, number),
                    Member::Group(_) => Message::RelayDirective(id, input, number),
                },
            ));
        }
    }

    fn way_to(&self, id: &InstanceId) -> Option<(Slot, &Member)> {
        let slot = *self.routes.get(id)?;
        Some((slot, self.children.get(&slot)?))
    }

    fn step_group(
        &mut self,
        log: &mut impl TreeLog,
        now: Duration,
        input: GroupInput,
        out: &mut Vec<NodeEffect>,
    ) {
        let effects = log.decide(|_| {
            let mut effects = Vec::new();
            self.machine.step(now, input, &mut effects);
            let name = |slot: Slot| self.children.get(&slot).map(Member::name).unwrap_or_default();
            let facts = effects.iter().filter_map(|effect| match effect {
                GroupEffect::Emit(fact) => Some(fact.clone().named(self.name.as_ref(), &self.spec, name)),
                _ => None,
            });
            let facts = facts.collect();
            (effects, facts)
        });
        for effect in effects {
            match effect {
                GroupEffect::Emit(_) => {}
                GroupEffect::Permit(slot) => {
                    self.tell(slot, InstanceInput::Permit, GroupInput::Start(StartCause::Group), out);
                }
                GroupEffect::Start(slot, cause) => {
                    self.tell(slot, InstanceInput::Start(cause), GroupInput::Start(cause), out);
                }
                GroupEffect::Stop(slot, cause) => {
                    self.tell(slot, InstanceInput::Stop(cause), GroupInput::Stop(cause), out);
                }
                GroupEffect::Crashed => {
                    self.tell_parent(|slot| GroupInput::Crashed(slot, Duration::ZERO), out);
                }
                GroupEffect::Ended => self.tell_parent(GroupInput::Ended, out),
                GroupEffect::Report(activity) => {
                    self.tell_parent(|slot| GroupInput::Reported(slot, activity), out);
                }
                GroupEffect::EndTree => {
                    let cause = "its significant services have ended".to_owned();
                    out.push(NodeEffect::TellRoot(Message::Command(CommandInput::Shutdown(cause))));
                }
                GroupEffect::ExitTree => {
                    let gave_up = CommandInput::GaveUp(self.name.clone());
                    out.push(NodeEffect::TellRoot(Message::Command(gave_up)));
                }
            }
        }
    }

    /// Tells a child: `instance` if it is an instance, `group` if it is a group.
    fn tell(&self, slot: Slot, instance: InstanceInput, group: GroupInput, out: &mut Vec<NodeEffect>) {
        match self.children.get(&slot) {
            Some(Member::Instance(..)) => out.push(NodeEffect::Tell(slot, Message::Input(instance))),
            Some(Member::Group(_)) => out.push(NodeEffect::Tell(slot, Message::Group(group))),
            None => {}
        }
    }

    fn tell_parent(&self, input: impl FnOnce(Slot) -> GroupInput, out: &mut Vec<NodeEffect>) {
        if let Some(place) = self.place {
            out.push(NodeEffect::TellParent(input(place)));
        }
    }

    fn step_commands(
        &mut self,
        log: &mut impl TreeLog,
        now: Duration,
        input: CommandInput,
        out: &mut Vec<NodeEffect>,
    ) {
        let Some(commands) = &mut self.commands else {
            return;
        };
        let effects = log.decide(|state| {
            let mut effects = Vec::new();
            commands.step(state, now, input, &mut effects);
            let facts = effects.iter().filter_map(|effect| match effect {
                CommandEffect::Emit(fact) => Some(fact.clone()),
                _ => None,
            });
            let facts = facts.collect();
            (effects, facts)
        });
        for effect in effects {
            match effect {
                CommandEffect::Emit(_) => {}
                CommandEffect::Directive(id, input, number) => self.relay_directive(id, input, number, out),
                CommandEffect::Adopt(branch) => self.add(log, branch, out),
                CommandEffect::Reconfigured => self.reconfigure(log, out),
                CommandEffect::Dismiss(branch, number) => self.dismiss(log, now, branch, number, out),
                CommandEffect::Again(input) => out.push(NodeEffect::Again(input)),
                CommandEffect::Answer(number, answer) => out.push(NodeEffect::Answer(number, answer)),
                CommandEffect::Down => out.push(NodeEffect::Down),
            }
        }
    }
}

/// Where an effect of an instance's machine goes inside the tree.
#[derive(Debug, Clone, PartialEq)]
pub enum InstanceSend {
    /// To the dependency graph.
    Graph(GateInput),
    /// To the supervisor of the instance.
    Parent(GroupInput),
}

/// The message that an effect of an instance's machine is, for the instance in this slot of its supervisor.
/// `Err` gives back what is not a message inside the tree: a fact, or an order to the host.
pub fn sent_by_instance(
    id: &InstanceId,
    slot: Slot,
    effect: InstanceEffect,
) -> Result<InstanceSend, InstanceEffect> {
    Ok(match effect {
        InstanceEffect::Ask(request) => InstanceSend::Graph(GateInput::Ask(id.clone(), request)),
        InstanceEffect::Withdraw => InstanceSend::Graph(GateInput::Withdraw(id.clone())),
        InstanceEffect::Crashed(delay) => InstanceSend::Parent(GroupInput::Crashed(slot, delay)),
        InstanceEffect::Ended => InstanceSend::Parent(GroupInput::Ended(slot)),
        InstanceEffect::Report(activity) => InstanceSend::Parent(GroupInput::Reported(slot, activity)),
        other => return Err(other),
    })
}

/// What the start gate is told of an event: nothing, where nobody depends on the service that it is about.
pub fn heard_by_gate(state: &TreeState, event: &Event) -> Option<GateInput> {
    let service = event.fact.instance()?.service();
    state.graph().dependents(service).next()?;
    Some(GateInput::Changed(service.clone()))
}

/// Whether the root hears of an event: of each while commands are under way (`is_busy`), and otherwise when
/// a service crashed or failed that others follow.
pub fn is_heard_by_root(state: &TreeState, event: &Event, is_busy: bool) -> bool {
    let is_fall = matches!(
        event.fact,
        Fact::Instance(InstanceFact::Crashed { .. }) | Fact::Instance(InstanceFact::Failed { .. })
    );
    let is_followed = || {
        let service = event.fact.instance().map(InstanceId::service);
        service.is_some_and(|service| Operations::has_followers(state, service))
    };
    is_busy || (is_fall && is_followed())
}
