//! Commands under way: who is meant, whether it may be, in which order, and when it is done.
//!
//! A command becomes one wish an instance and is answered exactly once, when every part
//! of it is done, has failed, or was overtaken by a later command: the last one wins.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use growing::Leaving;
use serde::{Deserialize, Serialize};

use super::budget::StopBudget;
use super::graph::StopOrder;
use super::lifecycle::InstanceInput;
use super::plan_edit::{self, Branch, Removal};
use super::resolve::resolve;
use super::tree_state::{InstanceState, TreeState};
use crate::model::cause::{FailureReason, StartCause};
use crate::model::command::InstanceAnswer;
use crate::model::{
    Answer, Command, Condition, Denial, DenialCode, Dependency, Event, Fact, Goal, InstanceId, IssuedCommand,
    Kind, Name, OnDependencyRestart, Policy, ServiceSpec, State, StopCause, spec,
};

/// The number of a command under way.
pub type CommandNumber = u64;

/// The number of a wish that was sent; never used twice.
pub type DirectiveNumber = u64;

/// The number of a branch that was removed; never used twice.
pub type BranchNumber = u64;

/// How an instance stands, as its own machine says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSnapshot {
    /// Its state.
    pub state: State,
    /// Whether it is ready.
    pub ready: bool,
}

/// An instance's word that it has taken a wish. Until it comes, what is told of the instance
/// is the doing of earlier wishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Of which wish.
    pub number: DirectiveNumber,
    /// Whose.
    pub instance: InstanceId,
    /// How it stood before.
    pub before: InstanceSnapshot,
    /// How it stands now.
    pub after: InstanceSnapshot,
}

/// What the desk is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandInput {
    /// A command, to be answered under this number.
    Command(CommandNumber, IssuedCommand),
    /// Take everything down, dependents first, for this reason.
    Shutdown(String),
    /// A group (`None`: the root) gave up, and takes its project down, or the tree.
    GaveUp(Option<Name>),
    /// What a command added is in the tree: these services, which are to be started.
    Added(CommandNumber, Vec<Name>),
    /// Copies of a service have come to those that there were, and are to be as they are.
    Copied {
        /// What is answered then.
        ticket: CommandNumber,
        /// Of which service.
        service: Name,
        /// So many there were.
        from: u32,
        /// What is wanted of them.
        goal: Goal,
    },
    /// The machines of this branch, which a command removed, are no more.
    Dismissed(BranchNumber),
    /// An instance has taken a wish.
    #[serde(rename = "taken")]
    Acknowledged(Ack),
    /// Something happened.
    Observed(Arc<Event>),
}

/// What the actor is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum CommandEffect {
    /// Hand an input to an instance, which is to send a [`Ack`].
    Directive(InstanceId, InstanceInput, DirectiveNumber),
    /// Make the machines of what was added. Before any wish for them.
    Adopt(Branch),
    /// What there is was changed in place: every machine is to look.
    Reconfigured,
    /// End the machines of what was removed, and say when they are no more.
    Dismiss(Branch, BranchNumber),
    /// Come back to the desk with this before anything else, when all that is written down here
    /// is on the board.
    Again(CommandInput),
    /// Answer a command.
    Answer(CommandNumber, Result<Answer, Denial>),
    /// Write a fact down.
    Emit(Fact),
    /// Say that the whole tree is down.
    Down,
}

/// What is left of one instance's part.
#[derive(Debug, Clone, PartialEq)]
enum Part {
    /// Its turn has not come.
    Queued,
    /// The wish was sent and may still lie in a mailbox; the last event at that time.
    Sent(DirectiveNumber, u64),
    /// The instance has taken it: what happens now is its doing.
    Taken,
    /// It is down, and goes up again when the others of its command are down.
    Down,
    /// It is answered; `None`: there is nothing to tell.
    Done(Option<InstanceAnswer>),
}

/// What a command does with its instances.
#[derive(Debug)]
enum Work {
    Start(StartCause),
    Stop(StopOrder),
    /// Down in order, and out of the tree when all are.
    Remove(StopOrder, Removal),
    /// The same with copies of a service that stays, of which there are so many then, and what is
    /// wanted of those that come.
    Shrink {
        order: StopOrder,
        of: Arc<ServiceSpec>,
        to: u32,
        goal: Goal,
    },
    /// Each by itself: nothing among them depends on another.
    Restart,
    /// Down in order, then up again.
    RestartInOrder(StopOrder),
    /// What they depend on fell: down in order, then up again as far as that lets them.
    Cascade(StopOrder),
    Pause,
    Resume,
    /// Its project gave up.
    GiveUp(StopOrder),
    Shutdown(StopOrder),
}

#[derive(Debug)]
struct Operation {
    /// `None`: nobody asked for it.
    ticket: Option<CommandNumber>,
    work: Work,
    /// What there is for all of it, where that is limited.
    budget: Option<StopBudget>,
    /// Who is among the targets without being named, because another needs it or with all
    /// others: not told of where there was nothing to do.
    implied: HashSet<InstanceId>,
    parts: Vec<(InstanceId, Part)>,
    places: HashMap<InstanceId, usize>,
    /// Parts that are not done: of each service, and of all.
    left_of: HashMap<Name, usize>,
    left: usize,
}

/// Numbers wishes, and knows when they are made.
#[derive(Debug, Default)]
struct DirectiveNumbers {
    last: DirectiveNumber,
    now: Duration,
}

impl DirectiveNumbers {
    fn next(&mut self) -> DirectiveNumber {
        self.last += 1;
        self.last
    }
}

/// All commands under way.
#[derive(Debug, Default)]
pub struct Operations {
    running: Vec<Operation>,
    leaving: Vec<Leaving>,
    directives: DirectiveNumbers,
    branches: BranchNumber,
}

impl Operations {
    /// Takes one input and appends what is to be done to `out`; `tree_state` has all that was
    /// written down so far.
    pub fn step(
        &mut self,
        tree_state: &TreeState,
        now: Duration,
        input: CommandInput,
        out: &mut Vec<CommandEffect>,
    ) {
        self.directives.now = now;
        match input {
            CommandInput::Command(ticket, IssuedCommand { command, by }) => {
                let by = by.map(Box::new);
                let before = out.len();
                match self.submit(tree_state, ticket, &command, out) {
                    // It comes before what it causes.
                    Ok(()) => {
                        let command = Box::new(command);
                        out.insert(before, CommandEffect::Emit(Fact::CommandAccepted { command, by }));
                    }
                    Err(denial) => {
                        out.push(CommandEffect::Emit(Fact::CommandDenied {
                            command: Box::new(command),
                            by,
                            denial: Box::new(denial.clone()),
                        }));
                        out.push(CommandEffect::Answer(ticket, Err(denial)));
                    }
                }
            }
            CommandInput::Shutdown(cause) => {
                if !tree_state.shutting_down() {
                    out.push(CommandEffect::Emit(Fact::ShutdownStarted { cause }));
                    self.shutdown(tree_state, out);
                }
            }
            CommandInput::GaveUp(group) => {
                if !tree_state.shutting_down() {
                    self.give_up(tree_state, group, out);
                }
            }
            CommandInput::Added(ticket, names) => self.added(tree_state, ticket, &names, out),
            CommandInput::Copied { ticket, service, from, goal } => {
                self.copied(tree_state, ticket, &service, (from, goal), out);
            }
            CommandInput::Dismissed(number) => self.dismissed(tree_state, number, out),
            CommandInput::Acknowledged(ack) => self.taken(tree_state, &ack, out),
            CommandInput::Observed(event) => self.observe(tree_state, &event, out),
        }
    }

    /// `Err`: it is denied and nothing was done.
    fn submit(
        &mut self,
        tree_state: &TreeState,
        ticket: CommandNumber,
        command: &Command,
        out: &mut Vec<CommandEffect>,
    ) -> Result<(), Denial> {
        if tree_state.shutting_down() {
            return Err(Denial {
                code: DenialCode::ShuttingDown,
                reason: "the tree is going down".to_owned(),
                hint: None,
            });
        }
        let mut targets = match command.select() {
            Some(select) => resolve(tree_state, select)?,
            None => Vec::new(),
        };
        let mut implied = HashSet::new();
        let work = match command {
            Command::Start { no_deps, .. } => {
                if *no_deps {
                    self.refuse_without_dependencies(tree_state, &targets)?;
                } else {
                    let all = self.with_resting_dependencies(tree_state, &targets);
                    let named: HashSet<&InstanceId> = targets.iter().collect();
                    implied = all.iter().filter(|id| !named.contains(id)).cloned().collect();
                    targets = all;
                }
                Work::Start(StartCause::Command)
            }
            Command::Stop { force, .. } => {
                if !force {
                    self.refuse_while_needed(tree_state, &targets)?;
                }
                Work::Stop(StopOrder::new(tree_state.graph(), services(&targets)))
            }
            Command::Restart { .. } => {
                self.refuse_without_dependencies(tree_state, &targets)?;
                let names: HashSet<&Name> = targets.iter().map(InstanceId::service).collect();
                let tangled =
                    names.iter().any(|n| tree_state.graph().dependents(n).any(|d| names.contains(&d.name)));
                if tangled {
                    Work::RestartInOrder(StopOrder::new(tree_state.graph(), services(&targets)))
                } else {
                    Work::Restart
                }
            }
            Command::Add { addition } => {
                plan_edit::with_graph(tree_state.plan(), addition)?;
                self.refuse_leaving(plan_edit::printed(&addition.services, addition.groups.keys()))?;
                out.push(CommandEffect::Emit(Fact::Added { addition: Arc::clone(addition) }));
                out.push(CommandEffect::Adopt(Branch::of_addition(tree_state, addition)));
                let names = addition.services.iter().map(|spec| spec.name.clone()).collect();
                out.push(CommandEffect::Again(CommandInput::Added(ticket, names)));
                return Ok(());
            }
            Command::Reconfigure { change } => {
                plan_edit::reconfigured(tree_state.plan(), change)?;
                out.push(CommandEffect::Emit(Fact::Reconfigured { change: Arc::clone(change) }));
                out.push(CommandEffect::Reconfigured);
                let names = change.services.iter().map(|spec| spec.name.to_string());
                let names = names.chain(change.groups.keys().map(ToString::to_string));
                let changed = |name| InstanceAnswer { name, ok: true, message: "changed".to_owned() };
                out.push(CommandEffect::Answer(
                    ticket,
                    Ok(Answer { ok: true, results: names.map(changed).collect() }),
                ));
                return Ok(());
            }
            Command::Scale { service, replicas } => {
                let scaled = plan_edit::scaled(tree_state.plan(), service, *replicas)?;
                let Some(spec) = tree_state.graph().service(service) else {
                    let names = tree_state.graph().services().iter().map(|spec| spec.name.as_str());
                    return Err(super::resolve::not_found("service", service.as_str(), names));
                };
                let (gone, came) = spec::scaled(service, spec.replicas, *replicas, spec.naming());
                self.refuse_leaving(came.iter().map(ToString::to_string))?;
                let goal = self.goal_of(tree_state, service);
                if gone.is_empty() && came.is_empty() {
                    out.push(CommandEffect::Answer(ticket, Ok(Answer { ok: true, results: Vec::new() })));
                    return Ok(());
                }
                if gone.is_empty() {
                    out.push(CommandEffect::Emit(Fact::Scaled {
                        service: service.clone(),
                        from: spec.replicas,
                        to: scaled.service(service.as_str()).map_or(1, |spec| spec.replicas),
                        naming: spec.naming(),
                    }));
                    out.push(CommandEffect::Adopt(Branch::of_copies(tree_state, service, came)));
                    let (service, from) = (service.clone(), spec.replicas);
                    out.push(CommandEffect::Again(CommandInput::Copied { ticket, service, from, goal }));
                    return Ok(());
                }
                targets = gone;
                let order = StopOrder::new(tree_state.graph(), [service]);
                Work::Shrink { order, of: Arc::clone(spec), to: *replicas, goal }
            }
            Command::Remove { select } => {
                let removal = plan_edit::removal(tree_state, select)?;
                // All copies of each, also of one that is named by its group.
                targets = tree_state.entries().iter().map(|e| e.id.clone()).collect();
                targets.retain(|id| removal.services.contains_key(id.service()));
                Work::Remove(StopOrder::new(tree_state.graph(), removal.services.keys()), removal)
            }
            Command::Pause { select } | Command::Resume { select } => {
                let named = |id: &&InstanceId| {
                    select
                        .services
                        .iter()
                        .any(|text| id.service().as_str() == text || id.to_string() == *text)
                };
                implied = targets.iter().filter(|id| !named(id)).cloned().collect();
                if matches!(command, Command::Pause { .. }) { Work::Pause } else { Work::Resume }
            }
        };
        // A stop of all that runs is one of everything.
        let budget = match &work {
            Work::Stop(order) => {
                let named: HashSet<&InstanceId> = targets.iter().collect();
                let mut runs = tree_state.entries().iter().filter(|entry| entry.state.has_process());
                runs.all(|entry| named.contains(&entry.id)).then(|| self.budget(tree_state, order)).flatten()
            }
            _ => None,
        };
        let operation = Operation { implied, budget, ..Operation::new(Some(ticket), work, targets) };
        self.begin(tree_state, operation, out);
        Ok(())
    }

    fn shutdown(&mut self, tree_state: &TreeState, out: &mut Vec<CommandEffect>) {
        let targets: Vec<InstanceId> = tree_state.entries().iter().map(|e| e.id.clone()).collect();
        let order = StopOrder::new(tree_state.graph(), services(&targets));
        let budget = self.budget(tree_state, &order);
        let operation = Operation { budget, ..Operation::new(None, Work::Shutdown(order), targets) };
        self.begin(tree_state, operation, out);
    }

    fn budget(&self, tree_state: &TreeState, order: &StopOrder) -> Option<StopBudget> {
        let runs = |name: &Name| tree_state.instances_of(name).any(|entry| entry.state.has_process());
        let project = |name: &Name| tree_state.graph().service(name)?.project.clone();
        StopBudget::new(self.directives.now, &tree_state.plan().stop, order, project, runs)
    }

    /// Whether any command is under way.
    pub fn any(&self) -> bool {
        !self.running.is_empty() || !self.leaving.is_empty()
    }

    /// What followed from a wish at once is on the board.
    fn taken(&mut self, tree_state: &TreeState, ack: &Ack, out: &mut Vec<CommandEffect>) {
        let Ack { number, instance, before, after } = ack;
        let Some(entry) = tree_state.entry(instance) else {
            return;
        };
        let mut settled = false;
        for operation in &mut self.running {
            let Some(&at) = operation.places.get(instance) else {
                continue;
            };
            if !matches!(operation.parts[at].1, Part::Sent(sent, _) if sent == *number) {
                continue;
            }
            let left = operation.left;
            operation.parts[at].1 = Part::Taken;
            if matches!(operation.work, Work::Cascade(_)) && !after.state.has_process() {
                // It is down by itself meanwhile, and its policy or the graph has it.
                operation.settle(at, None);
            } else if let Some((ok, message)) = operation.work.at_once(&entry.spec, *before, *after) {
                let rests = matches!(
                    after.state,
                    State::Registered | State::Stopped | State::Completed | State::Failed
                );
                let nothing_to_do = match operation.work {
                    Work::Pause | Work::Resume => !ok && rests,
                    _ => true,
                };
                let silent = nothing_to_do && operation.implied.contains(instance);
                operation.settle(at, (!silent).then_some((ok, message)));
            }
            settled |= operation.left < left;
            operation.send(tree_state, &mut self.directives, out);
        }
        // What a command that is over had wanted of it is wanted no more.
        let is_left_down = settled && self.goal(entry) == Goal::Down;
        if is_left_down || self.waits_in_vain_for(tree_state, entry, &mut HashSet::new()).is_some() {
            self.settle_stranded(tree_state, out);
        }
        self.answer_finished(tree_state, out);
    }

    fn observe(&mut self, tree_state: &TreeState, event: &Event, out: &mut Vec<CommandEffect>) {
        let fact = &event.fact;
        let Some(entry) = fact.instance().and_then(|instance| tree_state.entry(instance)) else {
            return;
        };
        for operation in &mut self.running {
            let Some(&at) = operation.places.get(&entry.id) else {
                continue;
            };
            let outcome = match (&operation.parts[at].1, fact) {
                (Part::Taken, fact) => operation.work.outcome(fact, entry),
                // What lay in the actor's mailbox is gone with it.
                (Part::Sent(_, since), Fact::ActorBroke { message, .. }) if event.seq > *since => {
                    Some((false, FailureReason::Internal { message: message.clone() }.to_string()))
                }
                (Part::Sent(..) | Part::Queued | Part::Down | Part::Done(_), _) => None,
            };
            let goes_up_again = matches!(operation.work, Work::RestartInOrder(_) | Work::Cascade(_));
            if outcome.is_some() && goes_up_again && matches!(fact, Fact::Stuck { .. }) {
                // Nobody waits for it; when the kernel lets it go, it is to come up again.
                let again = InstanceInput::Start(operation.work.again());
                out.push(CommandEffect::Directive(entry.id.clone(), again, self.directives.next()));
            }
            if let Some((ok, message)) = outcome {
                operation.settle(at, Some((ok, message)));
                operation.send(tree_state, &mut self.directives, out);
            }
        }
        match fact {
            Fact::GoalSet { goal: Goal::Down, .. } | Fact::Stopped { .. } | Fact::Paused { .. } => {
                self.settle_stranded(tree_state, out);
            }
            // If its own wait is in vain, so is that of who waits for it.
            Fact::Waiting { .. }
                if self.waits_in_vain_for(tree_state, entry, &mut HashSet::new()).is_some() =>
            {
                self.settle_stranded(tree_state, out);
            }
            _ => {}
        }
        if matches!(fact, Fact::Crashed { .. } | Fact::Failed { .. }) && !tree_state.shutting_down() {
            self.cascade(tree_state, entry, event.seq, out);
        }
        self.answer_finished(tree_state, out);
    }

    /// Whether a fall of this service is of any account to others.
    pub fn has_followers(tree_state: &TreeState, service: &Name) -> bool {
        tree_state.graph().dependents(service).any(|dependent| follows(dependent, service))
    }

    /// What depends on a fallen instance is restarted with it.
    fn cascade(
        &mut self,
        tree_state: &TreeState,
        fallen: &InstanceState,
        since: u64,
        out: &mut Vec<CommandEffect>,
    ) {
        // Another copy goes on serving them.
        if tree_state.instances_of(fallen.id.service()).any(|other| other.id != fallen.id && other.ready) {
            return;
        }
        let mut targets: Vec<InstanceId> = Vec::new();
        let mut todo = vec![fallen.spec.name.clone()];
        while let Some(service) = todo.pop() {
            for dependent in tree_state.graph().dependents(&service).filter(|spec| follows(spec, &service)) {
                let runs = |entry: &&InstanceState| {
                    let up = entry.state.has_process() && entry.state != State::Stopping;
                    // One that was made since then was made knowing of it.
                    up && entry.born < since && self.goal(entry) == Goal::Up
                };
                let ids = tree_state.instances_of(&dependent.name).filter(runs).map(|entry| entry.id.clone());
                let new: Vec<InstanceId> = ids.filter(|id| !targets.contains(id)).collect();
                if !new.is_empty() {
                    targets.extend(new);
                    todo.push(dependent.name.clone());
                }
            }
        }
        if !targets.is_empty() {
            let order = StopOrder::new(tree_state.graph(), services(&targets));
            self.begin(tree_state, Operation::new(None, Work::Cascade(order), targets), out);
        }
    }

    /// Whoever waits for what somebody keeps down may wait for ever: who asked hears of it.
    fn settle_stranded(&mut self, tree_state: &TreeState, out: &mut Vec<CommandEffect>) {
        let mut stranded = Vec::new();
        // What is on its way, or waits for such: looked at once, however many wait for it.
        let mut hopeful = HashSet::new();
        for (number, operation) in self.running.iter().enumerate() {
            if operation.work.goal() != Some(Goal::Up) || operation.left == 0 {
                continue;
            }
            for (at, (id, part)) in operation.parts.iter().enumerate() {
                if let (Part::Taken, Some(entry)) = (part, tree_state.entry(id))
                    && let Some(on) = self.waits_in_vain_for(tree_state, entry, &mut hopeful)
                {
                    let is = if on.state == State::Paused { "paused" } else { "down" };
                    let on = &on.spec.name;
                    let message = format!("waits for {on}, which is {is} because somebody wants it so");
                    stranded.push((number, at, message));
                }
            }
        }
        for (number, at, message) in stranded {
            self.running[number].settle(at, Some((false, message)));
            self.running[number].send(tree_state, &mut self.directives, out);
        }
    }

    /// What is at the end of a wait, if only a command will move it and none is under way.
    fn waits_in_vain_for<'a>(
        &self,
        tree_state: &'a TreeState,
        entry: &'a InstanceState,
        hopeful: &mut HashSet<&'a InstanceId>,
    ) -> Option<&'a InstanceState> {
        let mut seen: HashSet<&InstanceId> = HashSet::new();
        let mut todo = vec![entry];
        while let Some(waiting) = todo.pop() {
            if waiting.state != State::Waiting || hopeful.contains(&waiting.id) || !seen.insert(&waiting.id) {
                continue;
            }
            for unmet in super::start_gate::waits_for(tree_state, &waiting.spec) {
                for on in tree_state.instances_of(&unmet.service) {
                    match on.state {
                        State::Registered | State::Stopped if self.goal(on) == Goal::Down => return Some(on),
                        State::Paused => return Some(on),
                        State::Waiting => todo.push(on),
                        State::Registered
                        | State::Stopped
                        | State::Starting
                        | State::Running
                        | State::Stopping
                        | State::Completed
                        | State::Crashed
                        | State::Failed => {}
                    }
                }
            }
        }
        hopeful.extend(seen);
        None
    }

    fn begin(&mut self, tree_state: &TreeState, mut operation: Operation, out: &mut Vec<CommandEffect>) {
        for earlier in &mut self.running {
            // Those that come in the place of what is stopped by hand meanwhile stay down, too.
            if let (Work::Shrink { goal, .. }, Work::Stop(_)) = (&mut earlier.work, &operation.work)
                && operation.parts.iter().any(|(id, _)| earlier.places.contains_key(id))
            {
                *goal = Goal::Down;
            }
            if !earlier.work.loses_to(&operation.work) {
                continue;
            }
            for (id, _) in &operation.parts {
                let Some(&at) = earlier.places.get(id) else {
                    continue;
                };
                earlier.overtake(at);
            }
            earlier.send(tree_state, &mut self.directives, out);
        }
        operation.send(tree_state, &mut self.directives, out);
        self.running.push(operation);
        self.answer_finished(tree_state, out);
    }

    /// What is wanted of an instance: by the last command that has not come to it yet, or
    /// as it says itself.
    fn goal(&self, entry: &InstanceState) -> Goal {
        let under_way = |operation: &Operation| {
            let at = *operation.places.get(&entry.id)?;
            match operation.parts[at].1 {
                Part::Done(_) => None,
                Part::Queued | Part::Sent(..) | Part::Taken | Part::Down => operation.work.goal(),
            }
        };
        self.running.iter().rev().find_map(under_way).unwrap_or(entry.goal)
    }

    /// A pause comes to an instance behind whatever an earlier command still holds back for
    /// it: otherwise a start would let go on what was paused since.
    fn send_pauses(&mut self, tree_state: &TreeState, out: &mut Vec<CommandEffect>) {
        let is_pause = |operation: &Operation| matches!(operation.work, Work::Pause | Work::Resume);
        if !self.running.iter().any(is_pause) {
            return;
        }
        let mut held_back: HashSet<InstanceId> = HashSet::new();
        for operation in &mut self.running {
            if is_pause(operation) {
                operation.send_but(&held_back, tree_state, &mut self.directives, out);
            }
            // What is stopped to go up again has its start still to come.
            let goes_up_again = matches!(operation.work, Work::RestartInOrder(_) | Work::Cascade(_));
            let holds = |part: &Part| match part {
                Part::Queued | Part::Down => true,
                Part::Sent(..) | Part::Taken => goes_up_again,
                Part::Done(_) => false,
            };
            held_back.extend(operation.parts.iter().filter(|(_, p)| holds(p)).map(|(id, _)| id.clone()));
        }
    }

    fn answer_finished(&mut self, tree_state: &TreeState, out: &mut Vec<CommandEffect>) {
        self.send_pauses(tree_state, out);
        for operation in self.running.iter_mut().filter(|op| op.left == 0) {
            if operation.go_up_again() {
                operation.send(tree_state, &mut self.directives, out);
            }
        }
        let removes = |op: &Operation| matches!(op.work, Work::Remove(..) | Work::Shrink { .. });
        let over = |op: &mut Operation| op.left == 0 && !removes(op);
        let finished: Vec<Operation> = self.running.extract_if(.., over).collect();
        for operation in finished {
            operation.answer(Vec::new(), out);
        }
        let ready = |all: &Operations| {
            all.running.iter().position(|op| op.left == 0 && removes(op) && !all.is_held_up(op))
        };
        while let Some(at) = ready(self) {
            let mut operation = self.running.remove(at);
            let left = match operation.work {
                Work::Shrink { .. } => self.shrink(tree_state, &mut operation, out),
                _ => self.remove(tree_state, &mut operation, out),
            };
            let leaving = match left {
                Ok(leaving) => leaving,
                Err(of_groups) => {
                    operation.answer(of_groups, out);
                    continue;
                }
            };
            let took_something = !leaving.branches.is_empty();
            self.leaving.push(leaving);
            self.answer_gone(out);
            if took_something {
                // The next one is to find on the board what this one leaves.
                return;
            }
        }
    }
}

impl Operation {
    fn new(ticket: Option<CommandNumber>, work: Work, targets: Vec<InstanceId>) -> Operation {
        let mut left_of: HashMap<Name, usize> = HashMap::new();
        for id in &targets {
            *left_of.entry(id.service().clone()).or_default() += 1;
        }
        Operation {
            ticket,
            work,
            implied: HashSet::new(),
            budget: None,
            places: targets.iter().cloned().zip(0..).collect(),
            left: targets.len(),
            left_of,
            parts: targets.into_iter().map(|id| (id, Part::Queued)).collect(),
        }
    }

    /// One part is done, or half done where it goes up again.
    fn settle(&mut self, at: usize, answer: Option<(bool, String)>) {
        let (id, part) = &mut self.parts[at];
        *part = match (&self.work, answer) {
            (Work::RestartInOrder(_) | Work::Cascade(_), Some((true, _))) => Part::Down,
            (_, answer) => {
                Part::Done(answer.map(|(ok, message)| InstanceAnswer { name: id.to_string(), ok, message }))
            }
        };
        self.left -= 1;
        let Some(left) = self.left_of.get_mut(id.service()) else {
            return;
        };
        *left -= 1;
        if *left > 0 {
            return;
        }
        match &mut self.work {
            Work::Stop(order)
            | Work::Remove(order, _)
            | Work::Shrink { order, .. }
            | Work::RestartInOrder(order)
            | Work::Cascade(order)
            | Work::GiveUp(order)
            | Work::Shutdown(order) => {
                order.down(id.service());
            }
            Work::Start(_) | Work::Restart | Work::Pause | Work::Resume => {}
        }
    }

    /// A later command has taken this part over.
    fn overtake(&mut self, at: usize) {
        let message = "overtaken by a later command".to_owned();
        let (id, part) = &mut self.parts[at];
        match part {
            Part::Done(_) => {}
            // It counts as done already.
            Part::Down => {
                *part = Part::Done(Some(InstanceAnswer { name: id.to_string(), ok: false, message }));
            }
            Part::Queued | Part::Sent(..) | Part::Taken => self.settle(at, Some((false, message))),
        }
    }

    /// The second half of a restart in order: what came down goes up again, whatever became
    /// of the others. `false`: there is nothing of the kind.
    fn go_up_again(&mut self) -> bool {
        let down = |(_, part): &&(InstanceId, Part)| matches!(part, Part::Down);
        self.left = self.parts.iter().filter(down).count();
        if self.left == 0 {
            return false;
        }
        self.work = Work::Start(self.work.again());
        for (id, part) in &mut self.parts {
            if matches!(part, Part::Down) {
                *part = Part::Queued;
                *self.left_of.entry(id.service().clone()).or_default() += 1;
            }
        }
        true
    }

    /// Sends what may be sent by now.
    fn send(
        &mut self,
        tree_state: &TreeState,
        directives: &mut DirectiveNumbers,
        out: &mut Vec<CommandEffect>,
    ) {
        let directive = match &self.work {
            Work::Start(cause) => InstanceInput::Start(*cause),
            Work::Restart => InstanceInput::Restart,
            Work::Stop(_) => InstanceInput::Stop(StopCause::Command),
            Work::Remove(..) | Work::Shrink { .. } => InstanceInput::Stop(StopCause::Removed),
            Work::RestartInOrder(_) => InstanceInput::Stop(StopCause::Restart),
            Work::Cascade(_) => InstanceInput::Stop(StopCause::Dependency),
            Work::GiveUp(_) => InstanceInput::Stop(StopCause::ProjectGaveUp),
            Work::Shutdown(_) => InstanceInput::Stop(StopCause::Shutdown),
            Work::Pause => InstanceInput::Pause,
            Work::Resume => InstanceInput::Resume,
        };
        loop {
            let turn: Vec<usize> = match &mut self.work {
                Work::Start(_) => self.startable(tree_state),
                Work::Restart => (0..self.parts.len()).collect(),
                // See `Operations::send_pauses`.
                Work::Pause | Work::Resume => return,
                Work::Stop(order)
                | Work::Remove(order, _)
                | Work::Shrink { order, .. }
                | Work::RestartInOrder(order)
                | Work::Cascade(order)
                | Work::GiveUp(order)
                | Work::Shutdown(order) => {
                    let Some(name) = order.let_go() else {
                        return;
                    };
                    // The last instance first: the reverse of the start.
                    let ids = tree_state.instances_of(&name).map(|e| &e.id).rev();
                    ids.filter_map(|id| self.places.get(id).copied()).collect()
                }
            };
            for at in turn {
                let (id, part) = &mut self.parts[at];
                if *part != Part::Queued {
                    continue;
                }
                let number = directives.next();
                *part = Part::Sent(number, tree_state.last_event());
                let share = || {
                    let spec = tree_state.graph().service(id.service())?;
                    self.budget.as_ref()?.share(directives.now, spec)
                };
                let directive = match (directive.clone(), share()) {
                    (InstanceInput::Stop(cause), Some(time)) => InstanceInput::StopWithin(cause, time),
                    (directive, _) => directive,
                };
                out.push(CommandEffect::Directive(id.clone(), directive, number));
            }
            if matches!(self.work, Work::Start(_) | Work::Restart) {
                return;
            }
        }
    }

    /// Sends a pause or a resume to all but these.
    fn send_but(
        &mut self,
        held_back: &HashSet<InstanceId>,
        tree_state: &TreeState,
        directives: &mut DirectiveNumbers,
        out: &mut Vec<CommandEffect>,
    ) {
        let directive =
            if matches!(self.work, Work::Pause) { InstanceInput::Pause } else { InstanceInput::Resume };
        for (id, part) in &mut self.parts {
            if *part == Part::Queued && !held_back.contains(id) {
                let number = directives.next();
                *part = Part::Sent(number, tree_state.last_event());
                out.push(CommandEffect::Directive(id.clone(), directive.clone(), number));
            }
        }
    }

    /// Those whose turn to start has come. Whoever needs another of them waits until that
    /// one has taken its wish: so the graph finds it on its way, not failed or at rest.
    fn startable(&self, tree_state: &TreeState) -> Vec<usize> {
        let is_on_its_way = |id: &InstanceId| match self.places.get(id).map(|at| &self.parts[*at].1) {
            Some(Part::Queued | Part::Sent(..)) => false,
            Some(Part::Taken | Part::Down | Part::Done(_)) | None => true,
        };
        let may_start = |id: &InstanceId| {
            let needs =
                tree_state.graph().service(id.service()).into_iter().flat_map(|spec| &spec.depends_on);
            needs.flat_map(|needed| tree_state.instances_of(&needed.on)).all(|on| is_on_its_way(&on.id))
        };
        let queued = self.parts.iter().enumerate().filter(|(_, (_, part))| *part == Part::Queued);
        queued.filter(|(_, (id, _))| may_start(id)).map(|(at, _)| at).collect()
    }

    /// Every part is done; `also`: what is to be said besides.
    fn answer(self, also: Vec<InstanceAnswer>, out: &mut Vec<CommandEffect>) {
        let answers = self.parts.into_iter().filter_map(|(_, part)| match part {
            Part::Done(answer) => answer,
            Part::Queued | Part::Sent(..) | Part::Taken | Part::Down => None,
        });
        let results: Vec<InstanceAnswer> = answers.chain(also).collect();
        match self.work {
            Work::Shutdown(_) => out.extend([CommandEffect::Emit(Fact::ShutdownDone), CommandEffect::Down]),
            Work::RestartInOrder(_)
            | Work::Cascade(_)
            | Work::Start(_)
            | Work::Stop(_)
            | Work::Remove(..)
            | Work::Shrink { .. }
            | Work::Pause
            | Work::Resume
            | Work::GiveUp(_)
            | Work::Restart => {
                let ok = results.iter().all(|r| r.ok);
                out.extend(
                    self.ticket.map(|ticket| CommandEffect::Answer(ticket, Ok(Answer { ok, results }))),
                );
            }
        }
    }
}

/// Whether a fall of `on` restarts this service while it runs. What runs to completion, or never
/// comes back by itself, is left alone.
fn follows(spec: &ServiceSpec, on: &Name) -> bool {
    let stays_up = spec.kind == Kind::Service && spec.restart.policy != Policy::Never;
    let needs_it = |d: &Dependency| {
        d.on == *on && d.required && matches!(d.condition, Condition::Started | Condition::Ready)
    };
    stays_up
        && spec.on_dependency_restart == OnDependencyRestart::Restart
        && spec.depends_on.iter().any(needs_it)
}

fn services(targets: &[InstanceId]) -> impl Iterator<Item = &Name> {
    targets.iter().map(InstanceId::service)
}

mod giving_up;
mod growing;
mod permit;
mod work;
