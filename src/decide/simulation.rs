//! The whole tree as one value: every machine, and who tells whom.
//!
//! The actors are the same machines, each with a mailbox of its own. Here they stand side by
//! side, so that a test can deliver messages in any order that mailboxes allow, and a
//! recorded run can be told again. Deliberately absent: mailboxes, time that passes by itself
//! and processes; whoever drives the world has those.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::graph::Graph;
use super::group::{Group, GroupEffect, GroupInput, NewChild, Slot};
use super::lifecycle::{InstanceEffect, InstanceInput, Machine};
use super::operation::{
    Ack, BranchNumber, CommandEffect, CommandInput, CommandNumber, DirectiveNumber, InstanceSnapshot,
    Operations,
};
use super::plan_edit::Branch;
use super::start_gate::{GateInput, StartGate};
use super::tree_state::TreeState;
use crate::model::cause::StartCause;
use crate::model::{Answer, Child, Denial, Event, Fact, GroupSpec, InstanceId, Name, Plan, ServiceSpec};

/// One that takes messages one after the other: an actor.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Node {
    /// A process actor.
    Instance(InstanceId),
    /// A supervisor; `None`: the root.
    Group(Option<Name>),
    /// The dependency graph.
    Graph,
}

/// What a node is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// To an instance.
    Input(InstanceInput),
    /// To an instance: a command's wish, to be acknowledged.
    #[serde(rename = "wish")]
    Directive(InstanceInput, DirectiveNumber),
    /// To a group: for its own machine.
    Group(GroupInput),
    /// To a group: an answer of the graph for an instance below.
    Relay(InstanceId, InstanceInput),
    /// To a group: a command's wish for an instance below.
    #[serde(rename = "relay_wish")]
    RelayDirective(InstanceId, InstanceInput, DirectiveNumber),
    /// To a group: what was added there or below.
    Adopt(Branch),
    /// To a group: what there is was changed in place.
    Reconfigured,
    /// To a group: what was removed there or below.
    Dismiss(Branch, BranchNumber),
    /// To the root: about commands.
    #[serde(rename = "desk")]
    Command(CommandInput),
    /// To the graph.
    Graph(GateInput),
}

/// A message that was delivered, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Since the start.
    pub at: Duration,
    /// To whom.
    pub to: Node,
    /// What.
    pub message: Message,
}

/// Takes down what the machines of a tree are told, and what happens: each step before the
/// events that follow from it at once.
pub trait StepSink: Send {
    /// A machine was told something.
    fn step(&mut self, step: &Step);
    /// It was written down.
    fn event(&mut self, event: &Event);
}

/// What follows from a message.
#[derive(Debug, Clone, PartialEq)]
pub enum SimulationOutput {
    /// Tell another node.
    Send(Node, Message),
    /// The host is to do something for an instance.
    Host(InstanceId, InstanceEffect),
    /// It was written down.
    Fact(Arc<Event>),
    /// Tell the root this before anything else.
    Again(CommandInput),
    /// This node is no more: what lies in its mailbox is lost.
    Ended(Node),
    /// A command is answered.
    Answer(CommandNumber, Result<Answer, Denial>),
    /// Everything is down.
    Down,
}

struct Supervisor {
    spec: GroupSpec,
    machine: Group,
    parent: Option<(Node, Slot)>,
    children: BTreeMap<Slot, Node>,
    routes: HashMap<InstanceId, Slot>,
}

impl Supervisor {
    fn slot_of(&self, group: &Name) -> Option<Slot> {
        let is = |node: &Node| matches!(node, Node::Group(Some(name)) if name == group);
        self.children.iter().find(|(_, node)| is(node)).map(|(slot, _)| *slot)
    }

    /// The slots of a member: one a copy of a service.
    fn slots(&self, child: &Child, copies: &[InstanceId]) -> Vec<Slot> {
        let is = |node: &Node| match (node, child) {
            (Node::Instance(id), Child::Service(name)) => id.service() == name && copies.contains(id),
            (Node::Group(Some(group)), Child::Group(name)) => group == name,
            (Node::Instance(_) | Node::Group(_) | Node::Graph, _) => false,
        };
        self.children.iter().filter(|(_, node)| is(node)).map(|(slot, _)| *slot).collect()
    }
}

struct Instance {
    spec: Arc<ServiceSpec>,
    machine: Machine,
    parent: Node,
    slot: Slot,
}

/// Every machine of a tree.
pub struct Simulation {
    tree_state: TreeState,
    /// All that was written down: event n is at n - 1.
    written: Vec<Arc<Event>>,
    /// Each instance by its printed form.
    names: HashMap<String, InstanceId>,
    instances: BTreeMap<InstanceId, Instance>,
    groups: BTreeMap<Option<Name>, Supervisor>,
    frontier: StartGate,
    commands: Operations,
}

impl Simulation {
    /// Everything registered, nothing started. `Err`: the cycles of its dependencies.
    pub fn new(plan: Arc<Plan>) -> Result<Simulation, Vec<Vec<Name>>> {
        let mut world = Simulation {
            tree_state: TreeState::new(plan, SystemTime::UNIX_EPOCH)?,
            written: Vec::new(),
            names: HashMap::new(),
            instances: BTreeMap::new(),
            groups: BTreeMap::new(),
            frontier: StartGate::default(),
            commands: Operations::default(),
        };
        world.raise(None, None);
        Ok(world)
    }

    /// Makes the machines of a group and of all below it.
    fn raise(&mut self, name: Option<&Name>, parent: Option<(Node, Slot)>) {
        let spec = self.tree_state.plan().group(name).cloned().unwrap_or_default();
        let machine = Group::new(&spec, name.is_none());
        let children = spec.children.clone();
        let supervisor =
            Supervisor { spec, machine, parent, children: BTreeMap::new(), routes: HashMap::new() };
        self.groups.insert(name.cloned(), supervisor);
        for child in &children {
            self.adopt(name, child, None);
        }
    }

    /// Makes the machines of one member of a group, and of all below it.
    fn adopt(&mut self, name: Option<&Name>, child: &Child, copies: Option<&[InstanceId]>) {
        let me = Node::Group(name.cloned());
        let Some(group) = self.groups.get_mut(&name.cloned()) else {
            return;
        };
        match child {
            Child::Service(service) => {
                let Some(spec) = self.tree_state.graph().service(service).cloned() else {
                    return;
                };
                for id in spec.instances().filter(|id| copies.is_none_or(|copies| copies.contains(id))) {
                    let slot = group.machine.add(NewChild::instance(&spec));
                    let instance = Instance {
                        spec: Arc::clone(&spec),
                        machine: Machine::new(id.clone(), name.cloned()),
                        parent: me.clone(),
                        slot,
                    };
                    self.instances.insert(id.clone(), instance);
                    self.names.insert(id.to_string(), id.clone());
                    group.routes.insert(id.clone(), slot);
                    group.children.insert(slot, Node::Instance(id));
                }
            }
            Child::Group(inner) => {
                let plan = Arc::clone(self.tree_state.plan());
                let spec = plan.group(Some(inner)).cloned().unwrap_or_default();
                let slot = group.machine.add(NewChild::group(&spec));
                for service in plan.services_below(inner.as_str()) {
                    let ids =
                        self.tree_state.graph().service(&service).into_iter().flat_map(|s| s.instances());
                    group.routes.extend(ids.map(|id| (id, slot)));
                }
                group.children.insert(slot, Node::Group(Some(inner.clone())));
                self.raise(Some(inner), Some((me, slot)));
            }
        }
    }

    /// What was added under a group: made here, or by a group below, which is told.
    fn add(&mut self, name: &Option<Name>, branch: Branch) -> Option<SimulationOutput> {
        let instances = branch.instances.clone();
        match branch.descend() {
            Ok((next, branch)) => {
                let group = self.groups.get_mut(name)?;
                let slot = group.slot_of(&next)?;
                group.routes.extend(instances.into_iter().map(|id| (id, slot)));
                Some(SimulationOutput::Send(Node::Group(Some(next)), Message::Adopt(branch)))
            }
            Err(here) => {
                // The board that it was raised from may have had some already.
                let routes = &self.groups.get(name)?.routes;
                let new = |id: &&InstanceId| !routes.contains_key(*id);
                let copies: Vec<InstanceId> = here.instances.iter().filter(new).cloned().collect();
                for child in &here.children {
                    if matches!(child, Child::Service(_))
                        || self.groups.get(name)?.slots(child, &[]).is_empty()
                    {
                        self.adopt(name.as_ref(), child, Some(&copies));
                    }
                }
                None
            }
        }
    }

    /// A group looks at what it and its children are to be now, and tells them.
    fn reconfigured(&mut self, name: &Option<Name>) -> Vec<SimulationOutput> {
        let Some(group) = self.groups.get_mut(name) else {
            return Vec::new();
        };
        let plan = self.tree_state.plan();
        if let Some(spec) = plan.group(name.as_ref()) {
            group.spec = spec.clone();
            group.machine.reconfigure(spec);
        }
        let mut out = Vec::new();
        for (slot, child) in &group.children {
            match child {
                Node::Instance(id) => {
                    let spec = self.tree_state.graph().service(id.service());
                    let now = self.instances.get(id).map(|instance| &instance.spec);
                    if let (Some(spec), Some(now)) = (spec, now)
                        && !Arc::ptr_eq(spec, now)
                    {
                        group.machine.reconfigure_child(*slot, NewChild::instance(spec));
                        let message = Message::Input(InstanceInput::Reconfigured);
                        out.push(SimulationOutput::Send(child.clone(), message));
                    }
                }
                Node::Group(Some(inner)) => {
                    if let Some(spec) = plan.groups.get(inner) {
                        group.machine.reconfigure_child(*slot, NewChild::group(spec));
                    }
                    out.push(SimulationOutput::Send(child.clone(), Message::Reconfigured));
                }
                Node::Group(None) | Node::Graph => {}
            }
        }
        out
    }

    /// What was removed under a group.
    fn dismiss(
        &mut self,
        now: Duration,
        name: &Option<Name>,
        (branch, number): (Branch, BranchNumber),
        out: &mut Vec<SimulationOutput>,
    ) {
        let Some(group) = self.groups.get_mut(name) else {
            return;
        };
        for id in &branch.instances {
            group.routes.remove(id);
        }
        let here = match branch.descend() {
            Ok((next, branch)) => {
                out.push(SimulationOutput::Send(Node::Group(Some(next)), Message::Dismiss(branch, number)));
                return;
            }
            Err(here) => here,
        };
        for child in &here.children {
            let slots = self.groups.get(name).map(|group| group.slots(child, &here.instances));
            let slots = slots.unwrap_or_default();
            for slot in slots {
                self.supervisor(now, name, GroupInput::Removed(slot), out);
                let child = self.groups.get_mut(name).and_then(|group| group.children.remove(&slot));
                self.end(child, out);
            }
        }
        out.push(SimulationOutput::Send(
            Node::Group(None),
            Message::Command(CommandInput::Dismissed(number)),
        ));
    }

    /// Forgets a node and all below it.
    fn end(&mut self, node: Option<Node>, out: &mut Vec<SimulationOutput>) {
        let Some(node) = node else {
            return;
        };
        match &node {
            Node::Instance(id) => {
                self.instances.remove(id);
            }
            Node::Group(name) => {
                let group = self.groups.remove(name);
                for child in group.into_iter().flat_map(|group| group.children.into_values()) {
                    self.end(Some(child), out);
                }
            }
            Node::Graph => {}
        }
        out.push(SimulationOutput::Ended(node));
    }

    /// The fold of all that was written down.
    pub fn tree_state(&self) -> &TreeState {
        &self.tree_state
    }

    /// Its dependencies.
    pub fn graph(&self) -> &Graph {
        self.tree_state.graph()
    }

    /// Every instance's machine.
    pub fn machines(&self) -> impl Iterator<Item = (&InstanceId, &Machine)> {
        self.instances.iter().map(|(id, instance)| (id, &instance.machine))
    }

    /// An instance's machine.
    pub fn machine(&self, id: &InstanceId) -> Option<&Machine> {
        self.instances.get(id).map(|instance| &instance.machine)
    }

    /// Every group; `None` is the root.
    pub fn groups(&self) -> impl Iterator<Item = Option<&Name>> {
        self.groups.keys().map(Option::as_ref)
    }

    /// A group's machine; `None` is the root.
    pub fn group(&self, name: Option<&Name>) -> Option<&Group> {
        self.groups.get(&name.cloned()).map(|group| &group.machine)
    }

    /// When the next deadline is, and whose.
    pub fn next_deadline(&self) -> Option<(Duration, Node)> {
        let of_instances = self
            .instances
            .iter()
            .filter_map(|(id, i)| Some((i.machine.next_deadline()?, Node::Instance(id.clone()))));
        let of_groups = self
            .groups
            .iter()
            .filter_map(|(name, g)| Some((g.machine.next_deadline()?, Node::Group(name.clone()))));
        of_instances.chain(of_groups).min()
    }

    /// Delivers one message at time `now`; what follows from it is appended to `out`, facts
    /// first.
    pub fn deliver(&mut self, now: Duration, to: &Node, message: Message, out: &mut Vec<SimulationOutput>) {
        match (to, message) {
            (Node::Instance(id), Message::Input(input)) => self.instance(now, id, input, None, out),
            (Node::Instance(id), Message::Directive(input, number)) => {
                self.instance(now, id, input, Some(number), out);
            }
            (Node::Group(name), Message::Group(input)) => self.supervisor(now, name, input, out),
            (Node::Group(name), Message::Relay(id, input)) => {
                out.extend(self.hand_down(name, id, Message::Input, input, Message::Relay));
            }
            (Node::Group(name), Message::RelayDirective(id, input, number)) => {
                out.extend(self.hand_down_directive(name, id, input, number));
            }
            (Node::Group(name), Message::Reconfigured) => out.extend(self.reconfigured(name)),
            (Node::Group(name), Message::Adopt(branch)) => out.extend(self.add(name, branch)),
            (Node::Group(name), Message::Dismiss(branch, number)) => {
                self.dismiss(now, name, (branch, number), out);
            }
            (Node::Group(None), Message::Command(input)) => self.commands(now, input, out),
            (Node::Graph, Message::Graph(input)) => {
                for (instance, question, reply) in self.frontier.step(&self.tree_state, &input) {
                    let message = Message::Relay(instance, InstanceInput::Answered(question, reply));
                    out.push(SimulationOutput::Send(Node::Group(None), message));
                }
            }
            // No node sends another what it can't take.
            (Node::Instance(_) | Node::Group(_) | Node::Graph, _) => {}
        }
    }

    /// A step that was read from a recording, with this world's own names and events in it: the
    /// printed form of an instance does not tell a replica from a service of that name.
    pub fn own(&self, step: Step) -> Step {
        let names = |id: InstanceId| self.names.get(&id.to_string()).cloned().unwrap_or(id);
        let Step { at, to, message } = step;
        let to = match to {
            Node::Instance(id) => Node::Instance(names(id)),
            other => other,
        };
        let message = match message {
            Message::Relay(id, input) => Message::Relay(names(id), input),
            Message::RelayDirective(id, input, number) => Message::RelayDirective(names(id), input, number),
            Message::Graph(GateInput::Ask(id, question)) => {
                Message::Graph(GateInput::Ask(names(id), question))
            }
            Message::Graph(GateInput::Withdraw(id)) => Message::Graph(GateInput::Withdraw(names(id))),
            Message::Command(CommandInput::Acknowledged(ack)) => {
                let instance = names(ack.instance);
                Message::Command(CommandInput::Acknowledged(Ack { instance, ..ack }))
            }
            Message::Command(CommandInput::Observed(event)) => {
                let at = usize::try_from(event.seq).unwrap_or(0).wrapping_sub(1);
                let own = self.written.get(at).cloned();
                Message::Command(CommandInput::Observed(own.unwrap_or(event)))
            }
            Message::Adopt(branch) => {
                // They are on the board, and have no machines yet.
                let entries = self.tree_state.entries().iter();
                let known: HashMap<String, &InstanceId> =
                    entries.map(|entry| (entry.id.to_string(), &entry.id)).collect();
                let own = |id: InstanceId| known.get(&id.to_string()).map_or(id, |own| (*own).clone());
                let instances = branch.instances.into_iter().map(own).collect();
                Message::Adopt(Branch { instances, ..branch })
            }
            Message::Dismiss(branch, number) => {
                let instances = branch.instances.into_iter().map(names).collect();
                Message::Dismiss(Branch { instances, ..branch }, number)
            }
            other => other,
        };
        Step { at, to, message }
    }

    /// Writes down what no machine decided: that the supervisor came up.
    pub fn note(&mut self, now: Duration, fact: Fact) {
        self.write(now, fact, &mut Vec::new());
    }

    /// To the child of a group that is, or is above, an instance.
    fn hand_down<T>(
        &self,
        group: &Option<Name>,
        id: InstanceId,
        arrives: impl FnOnce(T) -> Message,
        what: T,
        passes: impl FnOnce(InstanceId, T) -> Message,
    ) -> Option<SimulationOutput> {
        let group = self.groups.get(group)?;
        let child = group.children.get(group.routes.get(&id)?)?.clone();
        let message = match child {
            Node::Instance(_) => arrives(what),
            Node::Group(_) | Node::Graph => passes(id, what),
        };
        Some(SimulationOutput::Send(child, message))
    }

    fn hand_down_directive(
        &self,
        group: &Option<Name>,
        id: InstanceId,
        input: InstanceInput,
        number: DirectiveNumber,
    ) -> Option<SimulationOutput> {
        let passes = |id, (input, number)| Message::RelayDirective(id, input, number);
        self.hand_down(
            group,
            id,
            |(input, number)| Message::Directive(input, number),
            (input, number),
            passes,
        )
    }

    /// Writes a fact down; who listens to facts is told at once, as in the event log.
    fn write(&mut self, now: Duration, fact: Fact, out: &mut Vec<SimulationOutput>) {
        let seq = self.written.len() as u64 + 1;
        let event = Arc::new(Event { seq, at: SystemTime::UNIX_EPOCH, since_start: now, fact });
        self.tree_state.apply(&event);
        self.written.push(Arc::clone(&event));
        if let Some(instance) = event.fact.instance()
            && self.tree_state.graph().dependents(instance.service()).next().is_some()
        {
            let changed = GateInput::Changed(instance.service().clone());
            out.push(SimulationOutput::Send(Node::Graph, Message::Graph(changed)));
        }
        let falls = matches!(event.fact, Fact::Crashed { .. } | Fact::Failed { .. });
        let followed = |id: &InstanceId| Operations::has_followers(&self.tree_state, id.service());
        if self.commands.any() || (falls && event.fact.instance().is_some_and(followed)) {
            let observed = CommandInput::Observed(Arc::clone(&event));
            out.push(SimulationOutput::Send(Node::Group(None), Message::Command(observed)));
        }
        out.push(SimulationOutput::Fact(event));
    }

    fn instance(
        &mut self,
        now: Duration,
        id: &InstanceId,
        input: InstanceInput,
        directive: Option<DirectiveNumber>,
        out: &mut Vec<SimulationOutput>,
    ) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let snapshot =
            |machine: &Machine| InstanceSnapshot { state: machine.state(), ready: machine.is_ready() };
        let before = snapshot(&instance.machine);
        if matches!(input, InstanceInput::Inherit { .. }) {
            let Node::Group(group) = &instance.parent else {
                return;
            };
            instance.machine = Machine::new(id.clone(), group.clone());
        }
        let mut effects = Vec::new();
        if matches!(input, InstanceInput::Reconfigured)
            && let Some(spec) = self.tree_state.graph().service(id.service())
        {
            instance.spec = Arc::clone(spec);
        }
        instance.machine.step(&instance.spec, now, input, &mut effects);
        let after = snapshot(&instance.machine);
        let (parent, slot) = (instance.parent.clone(), instance.slot);
        let (facts, rest): (Vec<_>, Vec<_>) =
            effects.into_iter().partition(|effect| matches!(effect, InstanceEffect::Emit(_)));
        for fact in facts {
            if let InstanceEffect::Emit(fact) = fact {
                self.write(now, fact, out);
            }
        }
        for effect in rest {
            out.push(match effect {
                InstanceEffect::Ask(question) => {
                    SimulationOutput::Send(Node::Graph, Message::Graph(GateInput::Ask(id.clone(), question)))
                }
                InstanceEffect::Withdraw => {
                    SimulationOutput::Send(Node::Graph, Message::Graph(GateInput::Withdraw(id.clone())))
                }
                InstanceEffect::Crashed(delay) => {
                    SimulationOutput::Send(parent.clone(), Message::Group(GroupInput::Crashed(slot, delay)))
                }
                InstanceEffect::Ended => {
                    SimulationOutput::Send(parent.clone(), Message::Group(GroupInput::Ended(slot)))
                }
                InstanceEffect::Report(activity) => SimulationOutput::Send(
                    parent.clone(),
                    Message::Group(GroupInput::Reported(slot, activity)),
                ),
                order => SimulationOutput::Host(id.clone(), order),
            });
        }
        if let Some(number) = directive {
            let ack = Ack { number, instance: id.clone(), before, after };
            out.push(SimulationOutput::Send(
                Node::Group(None),
                Message::Command(CommandInput::Acknowledged(ack)),
            ));
        }
    }

    fn supervisor(
        &mut self,
        now: Duration,
        name: &Option<Name>,
        input: GroupInput,
        out: &mut Vec<SimulationOutput>,
    ) {
        let Some(group) = self.groups.get_mut(name) else {
            return;
        };
        let mut effects = Vec::new();
        group.machine.step(now, input, &mut effects);
        let shown = |slot: Slot| match group.children.get(&slot) {
            Some(Node::Instance(id)) => id.to_string(),
            Some(Node::Group(Some(name))) => name.to_string(),
            Some(Node::Group(None) | Node::Graph) | None => String::new(),
        };
        let facts: Vec<Fact> = effects
            .iter()
            .filter_map(|effect| match effect {
                GroupEffect::Emit(fact) => Some(fact.clone().named(name.as_ref(), &group.spec, shown)),
                _ => None,
            })
            .collect();
        for fact in facts {
            self.write(now, fact, out);
        }
        let Some(group) = self.groups.get(name) else {
            return;
        };
        for effect in effects {
            let tell = |slot: Slot, instance: InstanceInput, inner: GroupInput| {
                let child = group.children.get(&slot)?.clone();
                let message = match child {
                    Node::Instance(_) => Message::Input(instance),
                    Node::Group(_) | Node::Graph => Message::Group(inner),
                };
                Some(SimulationOutput::Send(child, message))
            };
            let to_parent = |input: &dyn Fn(Slot) -> GroupInput| {
                let (parent, slot) = group.parent.as_ref()?;
                Some(SimulationOutput::Send(parent.clone(), Message::Group(input(*slot))))
            };
            match effect {
                GroupEffect::Permit(slot) => {
                    let inner = GroupInput::Start(StartCause::Group);
                    out.extend(tell(slot, InstanceInput::Permit, inner));
                }
                GroupEffect::Start(slot, cause) => {
                    out.extend(tell(slot, InstanceInput::Start(cause), GroupInput::Start(cause)));
                }
                GroupEffect::Stop(slot, cause) => {
                    out.extend(tell(slot, InstanceInput::Stop(cause), GroupInput::Stop(cause)));
                }
                GroupEffect::Crashed => {
                    out.extend(to_parent(&|slot| GroupInput::Crashed(slot, Duration::ZERO)));
                }
                GroupEffect::Report(activity) => {
                    out.extend(to_parent(&|slot| GroupInput::Reported(slot, activity)));
                }
                GroupEffect::Ended => out.extend(to_parent(&GroupInput::Ended)),
                GroupEffect::EndTree => {
                    let shutdown = CommandInput::Shutdown("its significant services have ended".to_owned());
                    out.push(SimulationOutput::Send(Node::Group(None), Message::Command(shutdown)));
                }
                GroupEffect::ExitTree => {
                    let gave_up = Message::Command(CommandInput::GaveUp(name.clone()));
                    out.push(SimulationOutput::Send(Node::Group(None), gave_up));
                }
                GroupEffect::Emit(_) => {}
            }
        }
    }

    fn commands(&mut self, now: Duration, input: CommandInput, out: &mut Vec<SimulationOutput>) {
        let mut effects = Vec::new();
        self.commands.step(&self.tree_state, now, input, &mut effects);
        let (facts, rest): (Vec<_>, Vec<_>) =
            effects.into_iter().partition(|effect| matches!(effect, CommandEffect::Emit(_)));
        for fact in facts {
            if let CommandEffect::Emit(fact) = fact {
                self.write(now, fact, out);
            }
        }
        for effect in rest {
            match effect {
                CommandEffect::Emit(_) => {}
                CommandEffect::Directive(id, input, number) => {
                    out.extend(self.hand_down_directive(&None, id, input, number));
                }
                CommandEffect::Adopt(branch) => out.extend(self.add(&None, branch)),
                CommandEffect::Reconfigured => out.extend(self.reconfigured(&None)),
                CommandEffect::Dismiss(branch, number) => {
                    self.dismiss(now, &None, (branch, number), out);
                }
                CommandEffect::Again(input) => out.push(SimulationOutput::Again(input)),
                CommandEffect::Answer(ticket, answer) => out.push(SimulationOutput::Answer(ticket, answer)),
                CommandEffect::Down => out.push(SimulationOutput::Down),
            }
        }
    }
}
