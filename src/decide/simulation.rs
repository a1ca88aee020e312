//! The whole tree as one value: every machine, and who tells whom.
//!
//! The actors drive the same machines and the same [nodes](super::node), each with a mailbox of its own. Here
//! they stand side by side, so that a test can deliver messages in any order that mailboxes allow, and a
//! recorded run can be told again. Deliberately absent: mailboxes, time that passes by itself
//! and processes, which whoever drives the simulation has.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::graph::Graph;
use super::group::{Group, Slot};
use super::lifecycle::{InstanceEffect, InstanceInput, Machine};
use super::message::{Address, Message, Step};
use super::node::{
    InstanceSend, Member, NodeEffect, SupervisorNode, TreeLog, heard_by_gate, is_heard_by_root,
    sent_by_instance,
};
use super::operation::{Ack, CommandInput, CommandNumber, DirectiveNumber, InstanceSnapshot};
use super::plan_edit::Branch;
use super::start_gate::{GateInput, StartGate};
use super::tree_state::TreeState;
use crate::model::{Answer, Denial, Event, Fact, InstanceId, Name, Plan, ServiceSpec};

/// What follows from a message.
#[derive(Debug, Clone, PartialEq)]
pub enum SimulationOutput {
    /// Tell another actor.
    Send(Address, Message),
    /// The host is to do something for an instance.
    Host(InstanceId, InstanceEffect),
    /// An event was written down.
    Fact(Arc<Event>),
    /// Tell the root this before anything else.
    Again(CommandInput),
    /// This actor is no more: what lies in its mailbox is lost.
    Ended(Address),
    /// A command is answered.
    Answer(CommandNumber, Result<Answer, Denial>),
    /// Everything is down.
    Down,
}

struct Instance {
    spec: Arc<ServiceSpec>,
    machine: Machine,
    /// The group that the instance is a child of; `None` is the root.
    group: Option<Name>,
    slot: Slot,
}

struct Supervisor {
    node: SupervisorNode,
    /// Who the node's parent is; the root has none.
    parent: Option<Address>,
}

/// The events of a simulation, and the state that they come to.
struct Written {
    tree_state: TreeState,
    /// Event n is at n - 1.
    events: Vec<Arc<Event>>,
}

impl Written {
    /// Writes a fact down. Whoever listens to facts is told at once, as by the event log.
    fn write(&mut self, now: Duration, fact: Fact, is_busy: bool, out: &mut Vec<SimulationOutput>) {
        let seq = self.events.len() as u64 + 1;
        let event = Arc::new(Event { seq, at: SystemTime::UNIX_EPOCH, since_start: now, fact });
        self.tree_state.apply(&event);
        self.events.push(Arc::clone(&event));
        if let Some(changed) = heard_by_gate(&self.tree_state, &event) {
            out.push(SimulationOutput::Send(Address::Graph, Message::Graph(changed)));
        }
        if is_heard_by_root(&self.tree_state, &event, is_busy) {
            let observed = Message::Command(CommandInput::Observed(Arc::clone(&event)));
            out.push(SimulationOutput::Send(Address::Group(None), observed));
        }
        out.push(SimulationOutput::Fact(event));
    }
}

/// The log of one step.
struct StepLog<'a> {
    written: &'a mut Written,
    now: Duration,
    is_busy: bool,
    out: &'a mut Vec<SimulationOutput>,
}

impl TreeLog for StepLog<'_> {
    fn decide<T>(&mut self, decide: impl FnOnce(&TreeState) -> (T, Vec<Fact>)) -> T {
        let (decided, facts) = decide(&self.written.tree_state);
        for fact in facts {
            self.written.write(self.now, fact, self.is_busy, self.out);
        }
        decided
    }
}

fn address_of(member: &Member) -> Address {
    match member {
        Member::Instance(id, _) => Address::Instance(id.clone()),
        Member::Group(name) => Address::Group(Some(name.clone())),
    }
}

/// Every machine of a tree.
pub struct Simulation {
    written: Written,
    /// Each instance by its printed form.
    names: HashMap<String, InstanceId>,
    instances: BTreeMap<InstanceId, Instance>,
    groups: BTreeMap<Option<Name>, Supervisor>,
    gate: StartGate,
}

impl Simulation {
    /// Everything registered, nothing started. `Err`: the cycles of its dependencies.
    pub fn new(plan: Arc<Plan>) -> Result<Simulation, Vec<Vec<Name>>> {
        let tree_state = TreeState::new(plan, SystemTime::UNIX_EPOCH)?;
        let mut simulation = Simulation {
            written: Written { tree_state, events: Vec::new() },
            names: HashMap::new(),
            instances: BTreeMap::new(),
            groups: BTreeMap::new(),
            gate: StartGate::default(),
        };
        // Making machines tells nobody anything.
        simulation.make_group(Duration::ZERO, None, None, &mut Vec::new());
        Ok(simulation)
    }

    /// Makes the machines of a group and of all below it. `place`: its parent, and its slot there.
    fn make_group(
        &mut self,
        now: Duration,
        name: Option<Name>,
        place: Option<(Address, Slot)>,
        out: &mut Vec<SimulationOutput>,
    ) {
        let (parent, slot) = place.unzip();
        let (mut effects, is_busy) = (Vec::new(), self.is_busy());
        let mut log = StepLog { written: &mut self.written, now, is_busy, out };
        let node = SupervisorNode::new(name.clone(), slot, &mut log, &mut effects);
        self.groups.insert(name.clone(), Supervisor { node, parent });
        self.perform(now, &name, effects, out);
    }

    fn is_busy(&self) -> bool {
        self.groups.get(&None).is_some_and(|root| root.node.is_busy())
    }

    /// The fold of all that was written down.
    pub fn tree_state(&self) -> &TreeState {
        &self.written.tree_state
    }

    /// The dependencies of the services.
    pub fn graph(&self) -> &Graph {
        self.written.tree_state.graph()
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
        self.groups.get(&name.cloned()).map(|group| group.node.machine())
    }

    /// When the next deadline is, and whose.
    pub fn next_deadline(&self) -> Option<(Duration, Address)> {
        let of_instances = self
            .instances
            .iter()
            .filter_map(|(id, i)| Some((i.machine.next_deadline()?, Address::Instance(id.clone()))));
        let of_groups = self
            .groups
            .iter()
            .filter_map(|(name, g)| Some((g.node.machine().next_deadline()?, Address::Group(name.clone()))));
        of_instances.chain(of_groups).min()
    }

    /// Delivers one message at time `now`; what follows from it is appended to `out`, facts
    /// first.
    pub fn deliver(
        &mut self,
        now: Duration,
        to: &Address,
        message: Message,
        out: &mut Vec<SimulationOutput>,
    ) {
        match (to, message) {
            (Address::Instance(id), Message::Input(input)) => self.instance(now, id, input, None, out),
            (Address::Instance(id), Message::Directive(input, number)) => {
                self.instance(now, id, input, Some(number), out);
            }
            (Address::Group(name), message) => self.supervisor(now, name, message, out),
            (Address::Graph, Message::Graph(input)) => {
                for (instance, request, reply) in self.gate.step(&self.written.tree_state, &input) {
                    let message = Message::Relay(instance, InstanceInput::Answered(request, reply));
                    out.push(SimulationOutput::Send(Address::Group(None), message));
                }
            }
            // Nobody sends another what that one can't take.
            (Address::Instance(_) | Address::Graph, _) => {}
        }
    }

    /// A step that was read from a recording, with this simulation's own names and events in it: the
    /// printed form of an instance does not tell a replica from a service of that name.
    pub fn own(&self, step: Step) -> Step {
        let names = |id: InstanceId| self.names.get(&id.to_string()).cloned().unwrap_or(id);
        let Step { at, to, message } = step;
        let to = match to {
            Address::Instance(id) => Address::Instance(names(id)),
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
                let own = self.written.events.get(at).cloned();
                Message::Command(CommandInput::Observed(own.unwrap_or(event)))
            }
            Message::Adopt(branch) => {
                // They are in the state of the tree, and have no machines yet.
                let entries = self.written.tree_state.entries().iter();
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
        let is_busy = self.is_busy();
        self.written.write(now, fact, is_busy, &mut Vec::new());
    }

    fn supervisor(
        &mut self,
        now: Duration,
        name: &Option<Name>,
        message: Message,
        out: &mut Vec<SimulationOutput>,
    ) {
        // The root hears of what follows from a command before that is under way.
        let is_busy = self.is_busy() || matches!(message, Message::Command(_));
        let Some(group) = self.groups.get_mut(name) else {
            return;
        };
        let mut effects = Vec::new();
        let mut log = StepLog { written: &mut self.written, now, is_busy, out };
        group.node.step(&mut log, now, message, &mut effects);
        self.perform(now, name, effects, out);
    }

    fn perform(
        &mut self,
        now: Duration,
        name: &Option<Name>,
        effects: Vec<NodeEffect>,
        out: &mut Vec<SimulationOutput>,
    ) {
        for effect in effects {
            match effect {
                NodeEffect::Make(slot, Member::Instance(id, spec)) => {
                    let machine = Machine::new(id.clone(), name.clone());
                    self.names.insert(id.to_string(), id.clone());
                    self.instances.insert(id, Instance { spec, machine, group: name.clone(), slot });
                }
                NodeEffect::Make(slot, Member::Group(inner)) => {
                    let parent = Address::Group(name.clone());
                    self.make_group(now, Some(inner), Some((parent, slot)), out);
                }
                NodeEffect::Tell(slot, message) => {
                    if let Some(child) = self.child(name, slot) {
                        out.push(SimulationOutput::Send(child, message));
                    }
                }
                NodeEffect::TellParent(input) => {
                    if let Some(parent) = self.groups.get(name).and_then(|group| group.parent.clone()) {
                        out.push(SimulationOutput::Send(parent, Message::Group(input)));
                    }
                }
                NodeEffect::TellRoot(message) => {
                    out.push(SimulationOutput::Send(Address::Group(None), message));
                }
                NodeEffect::End(_, member) => self.end(address_of(&member), out),
                // The names stay: a recording may still speak of an instance that is gone.
                NodeEffect::Forget(_) => {}
                NodeEffect::Again(input) => out.push(SimulationOutput::Again(input)),
                NodeEffect::Answer(number, answer) => out.push(SimulationOutput::Answer(number, answer)),
                NodeEffect::Down => out.push(SimulationOutput::Down),
            }
        }
    }

    /// The child of a group in this slot.
    fn child(&self, group: &Option<Name>, slot: Slot) -> Option<Address> {
        self.groups.get(group)?.node.child(slot).map(address_of)
    }

    /// Forgets an actor and all below it.
    fn end(&mut self, address: Address, out: &mut Vec<SimulationOutput>) {
        match &address {
            Address::Instance(id) => {
                self.instances.remove(id);
            }
            Address::Group(name) => {
                let group = self.groups.remove(name);
                let children = group.iter().flat_map(|group| group.node.children());
                for child in children.map(|(_, member)| address_of(member)).collect::<Vec<_>>() {
                    self.end(child, out);
                }
            }
            Address::Graph => {}
        }
        out.push(SimulationOutput::Ended(address));
    }

    fn instance(
        &mut self,
        now: Duration,
        id: &InstanceId,
        input: InstanceInput,
        directive: Option<DirectiveNumber>,
        out: &mut Vec<SimulationOutput>,
    ) {
        let is_busy = self.is_busy();
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let snapshot =
            |machine: &Machine| InstanceSnapshot { state: machine.state(), ready: machine.is_ready() };
        let before = snapshot(&instance.machine);
        if matches!(input, InstanceInput::Inherit { .. }) {
            instance.machine = Machine::new(id.clone(), instance.group.clone());
        }
        let mut effects = Vec::new();
        if matches!(input, InstanceInput::Reconfigured)
            && let Some(spec) = self.written.tree_state.graph().service(id.service())
        {
            instance.spec = Arc::clone(spec);
        }
        instance.machine.step(&instance.spec, now, input, &mut effects);
        let after = snapshot(&instance.machine);
        let (group, slot) = (instance.group.clone(), instance.slot);
        let mut rest = Vec::new();
        for effect in effects {
            match effect {
                InstanceEffect::Emit(fact) => self.written.write(now, fact, is_busy, out),
                other => rest.push(other),
            }
        }
        for effect in rest {
            out.push(match sent_by_instance(id, slot, effect) {
                Ok(InstanceSend::Graph(input)) => {
                    SimulationOutput::Send(Address::Graph, Message::Graph(input))
                }
                Ok(InstanceSend::Parent(input)) => {
                    SimulationOutput::Send(Address::Group(group.clone()), Message::Group(input))
                }
                Err(order) => SimulationOutput::Host(id.clone(), order),
            });
        }
        if let Some(number) = directive {
            let ack = Ack { number, instance: id.clone(), before, after };
            let message = Message::Command(CommandInput::Acknowledged(ack));
            out.push(SimulationOutput::Send(Address::Group(None), message));
        }
    }
}
