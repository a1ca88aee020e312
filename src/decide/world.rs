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

use super::frontier::{self, Frontier};
use super::graph::Graph;
use super::group::{self, Group, NewChild, Slot};
use super::growth::Branch;
use super::lifecycle::{self, Machine};
use super::operation::{self, BranchNumber, DeskInput, Operations, Receipt, Standing, Ticket, WishNumber};
use super::status::Board;
use crate::model::event::StartCause;
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
    Input(lifecycle::Input),
    /// To an instance: a command's wish, to be acknowledged.
    Wish(lifecycle::Input, WishNumber),
    /// To a group: for its own machine.
    Group(group::Input),
    /// To a group: an answer of the graph for an instance below.
    Relay(InstanceId, lifecycle::Input),
    /// To a group: a command's wish for an instance below.
    RelayWish(InstanceId, lifecycle::Input, WishNumber),
    /// To a group: what was added there or below.
    Adopt(Branch),
    /// To a group: what there is was changed in place.
    Reconfigured,
    /// To a group: what was removed there or below.
    Dismiss(Branch, BranchNumber),
    /// To the root: about commands.
    Desk(DeskInput),
    /// To the graph.
    Graph(frontier::Input),
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
pub enum Output {
    /// Tell another node.
    Send(Node, Message),
    /// The host is to do something for an instance.
    Host(InstanceId, lifecycle::Effect),
    /// It was written down.
    Fact(Arc<Event>),
    /// Tell the root this before anything else.
    Again(DeskInput),
    /// This node is no more: what lies in its mailbox is lost.
    Ended(Node),
    /// A command is answered.
    Answer(Ticket, Result<Answer, Denial>),
    /// Everything is down.
    Down,
}

struct Supervisor {
    spec: GroupSpec,
    machine: Group,
    parent: Option<(Node, Slot)>,
    kids: BTreeMap<Slot, Node>,
    routes: HashMap<InstanceId, Slot>,
}

impl Supervisor {
    fn slot_of(&self, group: &Name) -> Option<Slot> {
        let is = |node: &Node| matches!(node, Node::Group(Some(name)) if name == group);
        self.kids.iter().find(|(_, node)| is(node)).map(|(slot, _)| *slot)
    }

    /// The slots of a member: one a copy of a service.
    fn slots(&self, child: &Child, copies: &[InstanceId]) -> Vec<Slot> {
        let is = |node: &Node| match (node, child) {
            (Node::Instance(id), Child::Service(name)) => id.service() == name && copies.contains(id),
            (Node::Group(Some(group)), Child::Group(name)) => group == name,
            (Node::Instance(_) | Node::Group(_) | Node::Graph, _) => false,
        };
        self.kids.iter().filter(|(_, node)| is(node)).map(|(slot, _)| *slot).collect()
    }
}

struct Instance {
    spec: Arc<ServiceSpec>,
    machine: Machine,
    parent: Node,
    slot: Slot,
}

/// Every machine of a tree.
pub struct World {
    board: Board,
    /// All that was written down: event n is at n - 1.
    written: Vec<Arc<Event>>,
    /// Each instance by its printed form.
    names: HashMap<String, InstanceId>,
    instances: BTreeMap<InstanceId, Instance>,
    groups: BTreeMap<Option<Name>, Supervisor>,
    frontier: Frontier,
    desk: Operations,
}

impl World {
    /// Everything registered, nothing started. `Err`: the cycles of its dependencies.
    pub fn new(plan: Arc<Plan>) -> Result<World, Vec<Vec<Name>>> {
        let mut world = World {
            board: Board::new(plan, SystemTime::UNIX_EPOCH)?,
            written: Vec::new(),
            names: HashMap::new(),
            instances: BTreeMap::new(),
            groups: BTreeMap::new(),
            frontier: Frontier::default(),
            desk: Operations::default(),
        };
        world.raise(None, None);
        Ok(world)
    }

    /// Makes the machines of a group and of all below it.
    fn raise(&mut self, name: Option<&Name>, parent: Option<(Node, Slot)>) {
        let spec = self.board.plan().group(name).cloned().unwrap_or_default();
        let machine = Group::new(&spec, name.is_none());
        let children = spec.children.clone();
        let supervisor = Supervisor { spec, machine, parent, kids: BTreeMap::new(), routes: HashMap::new() };
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
                let Some(spec) = self.board.graph().service(service).cloned() else {
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
                    group.kids.insert(slot, Node::Instance(id));
                }
            }
            Child::Group(inner) => {
                let plan = Arc::clone(self.board.plan());
                let spec = plan.group(Some(inner)).cloned().unwrap_or_default();
                let slot = group.machine.add(NewChild::group(&spec));
                for service in plan.services_below(inner.as_str()) {
                    let ids = self.board.graph().service(&service).into_iter().flat_map(|s| s.instances());
                    group.routes.extend(ids.map(|id| (id, slot)));
                }
                group.kids.insert(slot, Node::Group(Some(inner.clone())));
                self.raise(Some(inner), Some((me, slot)));
            }
        }
    }

    /// What was added under a group: made here, or by a group below, which is told.
    fn add(&mut self, name: &Option<Name>, branch: Branch) -> Option<Output> {
        let instances = branch.instances.clone();
        match branch.descend() {
            Ok((next, branch)) => {
                let group = self.groups.get_mut(name)?;
                let slot = group.slot_of(&next)?;
                group.routes.extend(instances.into_iter().map(|id| (id, slot)));
                Some(Output::Send(Node::Group(Some(next)), Message::Adopt(branch)))
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
    fn reconfigured(&mut self, name: &Option<Name>) -> Vec<Output> {
        let Some(group) = self.groups.get_mut(name) else {
            return Vec::new();
        };
        let plan = self.board.plan();
        if let Some(spec) = plan.group(name.as_ref()) {
            group.spec = spec.clone();
            group.machine.reconfigure(spec);
        }
        let mut out = Vec::new();
        for (slot, kid) in &group.kids {
            match kid {
                Node::Instance(id) => {
                    let spec = self.board.graph().service(id.service());
                    let now = self.instances.get(id).map(|instance| &instance.spec);
                    if let (Some(spec), Some(now)) = (spec, now)
                        && !Arc::ptr_eq(spec, now)
                    {
                        group.machine.reconfigure_child(*slot, NewChild::instance(spec));
                        let message = Message::Input(lifecycle::Input::Reconfigured);
                        out.push(Output::Send(kid.clone(), message));
                    }
                }
                Node::Group(Some(inner)) => {
                    if let Some(spec) = plan.groups.get(inner) {
                        group.machine.reconfigure_child(*slot, NewChild::group(spec));
                    }
                    out.push(Output::Send(kid.clone(), Message::Reconfigured));
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
        out: &mut Vec<Output>,
    ) {
        let Some(group) = self.groups.get_mut(name) else {
            return;
        };
        for id in &branch.instances {
            group.routes.remove(id);
        }
        let here = match branch.descend() {
            Ok((next, branch)) => {
                out.push(Output::Send(Node::Group(Some(next)), Message::Dismiss(branch, number)));
                return;
            }
            Err(here) => here,
        };
        for child in &here.children {
            let slots = self.groups.get(name).map(|group| group.slots(child, &here.instances));
            let slots = slots.unwrap_or_default();
            for slot in slots {
                self.supervisor(now, name, group::Input::Removed(slot), out);
                let kid = self.groups.get_mut(name).and_then(|group| group.kids.remove(&slot));
                self.end(kid, out);
            }
        }
        out.push(Output::Send(Node::Group(None), Message::Desk(DeskInput::Dismissed(number))));
    }

    /// Forgets a node and all below it.
    fn end(&mut self, node: Option<Node>, out: &mut Vec<Output>) {
        let Some(node) = node else {
            return;
        };
        match &node {
            Node::Instance(id) => {
                self.instances.remove(id);
            }
            Node::Group(name) => {
                let group = self.groups.remove(name);
                for kid in group.into_iter().flat_map(|group| group.kids.into_values()) {
                    self.end(Some(kid), out);
                }
            }
            Node::Graph => {}
        }
        out.push(Output::Ended(node));
    }

    /// The fold of all that was written down.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// Its dependencies.
    pub fn graph(&self) -> &Graph {
        self.board.graph()
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
    pub fn deliver(&mut self, now: Duration, to: &Node, message: Message, out: &mut Vec<Output>) {
        match (to, message) {
            (Node::Instance(id), Message::Input(input)) => self.instance(now, id, input, None, out),
            (Node::Instance(id), Message::Wish(input, number)) => {
                self.instance(now, id, input, Some(number), out);
            }
            (Node::Group(name), Message::Group(input)) => self.supervisor(now, name, input, out),
            (Node::Group(name), Message::Relay(id, input)) => {
                out.extend(self.hand_down(name, id, Message::Input, input, Message::Relay));
            }
            (Node::Group(name), Message::RelayWish(id, input, number)) => {
                out.extend(self.hand_down_wish(name, id, input, number));
            }
            (Node::Group(name), Message::Reconfigured) => out.extend(self.reconfigured(name)),
            (Node::Group(name), Message::Adopt(branch)) => out.extend(self.add(name, branch)),
            (Node::Group(name), Message::Dismiss(branch, number)) => {
                self.dismiss(now, name, (branch, number), out);
            }
            (Node::Group(None), Message::Desk(input)) => self.desk(now, input, out),
            (Node::Graph, Message::Graph(input)) => {
                for (instance, question, reply) in self.frontier.step(&self.board, &input) {
                    let message = Message::Relay(instance, lifecycle::Input::Answered(question, reply));
                    out.push(Output::Send(Node::Group(None), message));
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
            Message::RelayWish(id, input, number) => Message::RelayWish(names(id), input, number),
            Message::Graph(frontier::Input::Ask(id, question)) => {
                Message::Graph(frontier::Input::Ask(names(id), question))
            }
            Message::Graph(frontier::Input::Withdraw(id)) => {
                Message::Graph(frontier::Input::Withdraw(names(id)))
            }
            Message::Desk(DeskInput::Taken(receipt)) => {
                let instance = names(receipt.instance);
                Message::Desk(DeskInput::Taken(Receipt { instance, ..receipt }))
            }
            Message::Desk(DeskInput::Observed(event)) => {
                let at = usize::try_from(event.seq).unwrap_or(0).wrapping_sub(1);
                let own = self.written.get(at).cloned();
                Message::Desk(DeskInput::Observed(own.unwrap_or(event)))
            }
            Message::Adopt(branch) => {
                // They are on the board, and have no machines yet.
                let entries = self.board.entries().iter();
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
    ) -> Option<Output> {
        let group = self.groups.get(group)?;
        let kid = group.kids.get(group.routes.get(&id)?)?.clone();
        let message = match kid {
            Node::Instance(_) => arrives(what),
            Node::Group(_) | Node::Graph => passes(id, what),
        };
        Some(Output::Send(kid, message))
    }

    fn hand_down_wish(
        &self,
        group: &Option<Name>,
        id: InstanceId,
        input: lifecycle::Input,
        number: WishNumber,
    ) -> Option<Output> {
        let passes = |id, (input, number)| Message::RelayWish(id, input, number);
        self.hand_down(group, id, |(input, number)| Message::Wish(input, number), (input, number), passes)
    }

    /// Writes a fact down; who listens to facts is told at once, as in the event log.
    fn write(&mut self, now: Duration, fact: Fact, out: &mut Vec<Output>) {
        let seq = self.written.len() as u64 + 1;
        let event = Arc::new(Event { seq, at: SystemTime::UNIX_EPOCH, since_start: now, fact });
        self.board.apply(&event);
        self.written.push(Arc::clone(&event));
        if let Some(instance) = event.fact.instance()
            && self.board.graph().dependents(instance.service()).next().is_some()
        {
            let changed = frontier::Input::Changed(instance.service().clone());
            out.push(Output::Send(Node::Graph, Message::Graph(changed)));
        }
        let falls = matches!(event.fact, Fact::Crashed { .. } | Fact::Failed { .. });
        let followed = |id: &InstanceId| Operations::has_followers(&self.board, id.service());
        if self.desk.any() || (falls && event.fact.instance().is_some_and(followed)) {
            let observed = DeskInput::Observed(Arc::clone(&event));
            out.push(Output::Send(Node::Group(None), Message::Desk(observed)));
        }
        out.push(Output::Fact(event));
    }

    fn instance(
        &mut self,
        now: Duration,
        id: &InstanceId,
        input: lifecycle::Input,
        wish: Option<WishNumber>,
        out: &mut Vec<Output>,
    ) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let standing = |machine: &Machine| Standing { state: machine.state(), ready: machine.is_ready() };
        let before = standing(&instance.machine);
        if matches!(input, lifecycle::Input::Inherit { .. }) {
            let Node::Group(group) = &instance.parent else {
                return;
            };
            instance.machine = Machine::new(id.clone(), group.clone());
        }
        let mut effects = Vec::new();
        if matches!(input, lifecycle::Input::Reconfigured)
            && let Some(spec) = self.board.graph().service(id.service())
        {
            instance.spec = Arc::clone(spec);
        }
        instance.machine.step(&instance.spec, now, input, &mut effects);
        let after = standing(&instance.machine);
        let (parent, slot) = (instance.parent.clone(), instance.slot);
        let (facts, rest): (Vec<_>, Vec<_>) =
            effects.into_iter().partition(|effect| matches!(effect, lifecycle::Effect::Emit(_)));
        for fact in facts {
            if let lifecycle::Effect::Emit(fact) = fact {
                self.write(now, fact, out);
            }
        }
        for effect in rest {
            out.push(match effect {
                lifecycle::Effect::Ask(question) => {
                    Output::Send(Node::Graph, Message::Graph(frontier::Input::Ask(id.clone(), question)))
                }
                lifecycle::Effect::Withdraw => {
                    Output::Send(Node::Graph, Message::Graph(frontier::Input::Withdraw(id.clone())))
                }
                lifecycle::Effect::Fell(delay) => {
                    Output::Send(parent.clone(), Message::Group(group::Input::Fell(slot, delay)))
                }
                lifecycle::Effect::Ended => {
                    Output::Send(parent.clone(), Message::Group(group::Input::Ended(slot)))
                }
                lifecycle::Effect::Report(activity) => {
                    Output::Send(parent.clone(), Message::Group(group::Input::Reported(slot, activity)))
                }
                order => Output::Host(id.clone(), order),
            });
        }
        if let Some(number) = wish {
            let receipt = Receipt { number, instance: id.clone(), before, after };
            out.push(Output::Send(Node::Group(None), Message::Desk(DeskInput::Taken(receipt))));
        }
    }

    fn supervisor(&mut self, now: Duration, name: &Option<Name>, input: group::Input, out: &mut Vec<Output>) {
        let Some(group) = self.groups.get_mut(name) else {
            return;
        };
        let mut effects = Vec::new();
        group.machine.step(now, input, &mut effects);
        let shown = |slot: Slot| match group.kids.get(&slot) {
            Some(Node::Instance(id)) => id.to_string(),
            Some(Node::Group(Some(name))) => name.to_string(),
            Some(Node::Group(None) | Node::Graph) | None => String::new(),
        };
        let facts: Vec<Fact> = effects
            .iter()
            .filter_map(|effect| match effect {
                group::Effect::Emit(fact) => Some(fact.clone().named(name.as_ref(), &group.spec, shown)),
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
            let tell = |slot: Slot, instance: lifecycle::Input, inner: group::Input| {
                let kid = group.kids.get(&slot)?.clone();
                let message = match kid {
                    Node::Instance(_) => Message::Input(instance),
                    Node::Group(_) | Node::Graph => Message::Group(inner),
                };
                Some(Output::Send(kid, message))
            };
            let to_parent = |input: &dyn Fn(Slot) -> group::Input| {
                let (parent, slot) = group.parent.as_ref()?;
                Some(Output::Send(parent.clone(), Message::Group(input(*slot))))
            };
            match effect {
                group::Effect::Permit(slot) => {
                    let inner = group::Input::Start(StartCause::Group);
                    out.extend(tell(slot, lifecycle::Input::Permit, inner));
                }
                group::Effect::Start(slot, cause) => {
                    out.extend(tell(slot, lifecycle::Input::Start(cause), group::Input::Start(cause)));
                }
                group::Effect::Stop(slot, cause) => {
                    out.extend(tell(slot, lifecycle::Input::Stop(cause), group::Input::Stop(cause)));
                }
                group::Effect::Fell => {
                    out.extend(to_parent(&|slot| group::Input::Fell(slot, Duration::ZERO)));
                }
                group::Effect::Report(activity) => {
                    out.extend(to_parent(&|slot| group::Input::Reported(slot, activity)));
                }
                group::Effect::Ended => out.extend(to_parent(&group::Input::Ended)),
                group::Effect::EndTree => {
                    let shutdown = DeskInput::Shutdown("its significant services have ended".to_owned());
                    out.push(Output::Send(Node::Group(None), Message::Desk(shutdown)));
                }
                group::Effect::ExitTree => {
                    let gave_up = Message::Desk(DeskInput::GaveUp(name.clone()));
                    out.push(Output::Send(Node::Group(None), gave_up));
                }
                group::Effect::Emit(_) => {}
            }
        }
    }

    fn desk(&mut self, now: Duration, input: DeskInput, out: &mut Vec<Output>) {
        let mut effects = Vec::new();
        self.desk.step(&self.board, now, input, &mut effects);
        let (facts, rest): (Vec<_>, Vec<_>) =
            effects.into_iter().partition(|effect| matches!(effect, operation::Effect::Emit(_)));
        for fact in facts {
            if let operation::Effect::Emit(fact) = fact {
                self.write(now, fact, out);
            }
        }
        for effect in rest {
            match effect {
                operation::Effect::Emit(_) => {}
                operation::Effect::Wish(id, input, number) => {
                    out.extend(self.hand_down_wish(&None, id, input, number));
                }
                operation::Effect::Adopt(branch) => out.extend(self.add(&None, branch)),
                operation::Effect::Reconfigured => out.extend(self.reconfigured(&None)),
                operation::Effect::Dismiss(branch, number) => {
                    self.dismiss(now, &None, (branch, number), out);
                }
                operation::Effect::Again(input) => out.push(Output::Again(input)),
                operation::Effect::Answer(ticket, answer) => out.push(Output::Answer(ticket, answer)),
                operation::Effect::Down => out.push(Output::Down),
            }
        }
    }
}
