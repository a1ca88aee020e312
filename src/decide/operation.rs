//! The commands under way: which instances a command means, whether it is allowed, in which
//! order it is carried out, and when it is done.
//!
//! A command becomes one directive for each instance. It is answered exactly once, when every
//! part of it is done, has failed, or was overtaken by a later command: the last one wins.

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
use crate::model::event::{InstanceFact, TreeFact};
use crate::model::plan::PlanChange;
use crate::model::{
    Addition, Answer, Command, Condition, Denial, DenialCode, Dependency, Event, Fact, Goal, InstanceId,
    IssuedCommand, Kind, Name, OnDependencyRestart, Policy, ServiceSpec, State, StopCause, spec,
};

/// The number of a command under way.
pub type CommandNumber = u64;

/// The number of a directive that was sent; never used twice.
pub type DirectiveNumber = u64;

/// The number of a branch that was removed; never used twice.
pub type BranchNumber = u64;

/// The status of an instance, as its own state machine reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSnapshot {
    /// The state of the instance.
    pub state: State,
    /// Whether the instance is ready.
    pub ready: bool,
}

/// The acknowledgement of a directive by its instance. Facts about the instance that come before
/// it follow from earlier directives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The directive that is acknowledged.
    pub number: DirectiveNumber,
    /// The instance that acknowledges it.
    pub instance: InstanceId,
    /// The status of the instance before it took the directive.
    pub before: InstanceSnapshot,
    /// The status of the instance after it took the directive.
    pub after: InstanceSnapshot,
}

/// An input of [`Operations`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandInput {
    /// A command, to be answered under this number.
    Command(CommandNumber, IssuedCommand),
    /// The whole tree is to go down, dependents first, for this reason.
    Shutdown(String),
    /// A group (`None`: the root) gave up, and its project or the whole tree goes down.
    GaveUp(Option<Name>),
    /// The services that a command added are in the tree and are to be started.
    Added(CommandNumber, Vec<Name>),
    /// Copies were added to a service. They are to run if the service is to run.
    Copied {
        /// The command that is answered when they are started.
        ticket: CommandNumber,
        /// The service that was scaled.
        service: Name,
        /// The number of copies before.
        from: u32,
        /// The goal of the service, and so of the new copies.
        goal: Goal,
    },
    /// The state machines of this branch, which a command removed, have ended.
    Dismissed(BranchNumber),
    /// An instance has acknowledged a directive.
    #[serde(rename = "taken")]
    Acknowledged(Ack),
    /// An event was recorded.
    Observed(Arc<Event>),
}

/// An effect that the actor carries out for [`Operations`].
#[derive(Debug, Clone, PartialEq)]
pub enum CommandEffect {
    /// Hand an input to an instance, which answers it with an [`Ack`].
    Directive(InstanceId, InstanceInput, DirectiveNumber),
    /// Make the state machines of what was added, before any directive for them.
    Adopt(Branch),
    /// The plan was changed in place: every state machine takes its settings from it again.
    Reconfigured,
    /// End the state machines of what was removed, and answer with [`CommandInput::Dismissed`].
    Dismiss(Branch, BranchNumber),
    /// Give this input to [`Operations`] before any other, once every fact emitted here is in the
    /// tree state.
    Again(CommandInput),
    /// Answer a command.
    Answer(CommandNumber, Result<Answer, Denial>),
    /// Record a fact in the event log.
    Emit(Fact),
    /// Report that the whole tree is down.
    Down,
}

/// How far a command has come with one instance.
#[derive(Debug, Clone, PartialEq)]
enum Part {
    /// The directive was not sent yet: its turn has not come.
    Queued,
    /// The directive was sent and may still lie in a mailbox; with the last event at that time.
    Sent(DirectiveNumber, u64),
    /// The instance has acknowledged the directive: what happens now follows from it.
    Taken,
    /// The instance is down, and goes up again when the other instances of its command are down.
    Down,
    /// The part is done; `None`: the answer leaves it out.
    Done(Option<InstanceAnswer>),
}

/// What a command does with its instances.
#[derive(Debug)]
enum Work {
    Start(StartCause),
    Stop(StopOrder),
    /// Stops in order, then removes all of them from the tree.
    Remove(StopOrder, Removal),
    /// The same for copies of a service that stays: `of` is its spec, `to` the new number of
    /// copies, `goal` the goal of copies that are added.
    Shrink {
        order: StopOrder,
        of: Arc<ServiceSpec>,
        to: u32,
        goal: Goal,
    },
    /// Restarts each by itself, since no target depends on another.
    Restart,
    /// Stops in order, then starts again.
    RestartInOrder(StopOrder),
    /// A dependency crashed: stops in order, then starts again as far as the dependency allows.
    Cascade(StopOrder),
    Pause,
    Resume,
    /// Stops in order, because the project of the targets gave up.
    GiveUp(StopOrder),
    Shutdown(StopOrder),
}

#[derive(Debug)]
struct Operation {
    /// The command to answer; `None`: nobody asked for this operation.
    ticket: Option<CommandNumber>,
    work: Work,
    /// The time that all of its stops share, where the plan limits it.
    budget: Option<StopBudget>,
    /// Targets that the command did not name: another target depends on them, or a selector
    /// covers them. The answer leaves them out where there was nothing to do.
    implied: HashSet<InstanceId>,
    parts: Vec<(InstanceId, Part)>,
    places: HashMap<InstanceId, usize>,
    /// The number of unfinished parts of each service; `left` counts all of them.
    left_of: HashMap<Name, usize>,
    left: usize,
}

/// Numbers the directives, and keeps the time at which they are made.
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
    /// Takes one input and appends its effects to `out`. `tree_state` includes every fact that was
    /// recorded so far.
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
                    // The acceptance comes before the effects that it causes.
                    Ok(()) => {
                        let command = Box::new(command);
                        out.insert(
                            before,
                            CommandEffect::Emit(Fact::Tree(TreeFact::CommandAccepted { command, by })),
                        );
                    }
                    Err(denial) => {
                        out.push(CommandEffect::Emit(Fact::Tree(TreeFact::CommandDenied {
                            command: Box::new(command),
                            by,
                            denial: Box::new(denial.clone()),
                        })));
                        out.push(CommandEffect::Answer(ticket, Err(denial)));
                    }
                }
            }
            CommandInput::Shutdown(cause) => {
                if !tree_state.shutting_down() {
                    out.push(CommandEffect::Emit(Fact::Tree(TreeFact::ShutdownStarted { cause })));
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

    /// Checks a command and begins it. `Err`: it is denied and nothing was done.
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
                restart_of(tree_state, &targets)
            }
            Command::Add { addition } => return self.add(tree_state, ticket, addition, out),
            Command::Reconfigure { change } => return reconfigure(tree_state, ticket, change, out),
            Command::Scale { service, replicas } => {
                match self.scale(tree_state, ticket, (service, *replicas), out)? {
                    None => return Ok(()),
                    Some((work, gone)) => {
                        targets = gone;
                        work
                    }
                }
            }
            Command::Remove { select } => {
                let removal = plan_edit::removal(tree_state, select)?;
                // Every copy of each service goes, also when only its group was named.
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
        let budget = self.budget_of_a_stop(tree_state, &work, &targets);
        let operation = Operation { implied, budget, ..Operation::new(Some(ticket), work, targets) };
        self.begin(tree_state, operation, out);
        Ok(())
    }

    fn add(
        &self,
        tree_state: &TreeState,
        ticket: CommandNumber,
        addition: &Arc<Addition>,
        out: &mut Vec<CommandEffect>,
    ) -> Result<(), Denial> {
        plan_edit::with_graph(tree_state.plan(), addition)?;
        self.refuse_leaving(plan_edit::printed(&addition.services, addition.groups.keys()))?;
        out.push(CommandEffect::Emit(Fact::Tree(TreeFact::Added { addition: Arc::clone(addition) })));
        out.push(CommandEffect::Adopt(Branch::of_addition(tree_state, addition)));
        let names = addition.services.iter().map(|spec| spec.name.clone()).collect();
        out.push(CommandEffect::Again(CommandInput::Added(ticket, names)));
        Ok(())
    }

    /// Begins to scale a service. Copies that come are added at once; for copies that go the work is
    /// returned, with them.
    fn scale(
        &self,
        tree_state: &TreeState,
        ticket: CommandNumber,
        (service, replicas): (&Name, u32),
        out: &mut Vec<CommandEffect>,
    ) -> Result<Option<(Work, Vec<InstanceId>)>, Denial> {
        let scaled = plan_edit::scaled(tree_state.plan(), service, replicas)?;
        let Some(spec) = tree_state.graph().service(service) else {
            let names = tree_state.graph().services().iter().map(|spec| spec.name.as_str());
            return Err(super::resolve::not_found("service", service.as_str(), names));
        };
        let (gone, came) = spec::scaled(service, spec.replicas, replicas, spec.naming());
        self.refuse_leaving(came.iter().map(ToString::to_string))?;
        let goal = self.goal_of(tree_state, service);
        if gone.is_empty() && came.is_empty() {
            out.push(CommandEffect::Answer(ticket, Ok(Answer { ok: true, results: Vec::new() })));
            return Ok(None);
        }
        if gone.is_empty() {
            out.push(CommandEffect::Emit(Fact::Tree(TreeFact::Scaled {
                service: service.clone(),
                from: spec.replicas,
                to: scaled.service(service.as_str()).map_or(1, |spec| spec.replicas),
                naming: spec.naming(),
            })));
            out.push(CommandEffect::Adopt(Branch::of_copies(tree_state, service, came)));
            let (service, from) = (service.clone(), spec.replicas);
            out.push(CommandEffect::Again(CommandInput::Copied { ticket, service, from, goal }));
            return Ok(None);
        }
        let order = StopOrder::new(tree_state.graph(), [service]);
        Ok(Some((Work::Shrink { order, of: Arc::clone(spec), to: replicas, goal }, gone)))
    }

    fn shutdown(&mut self, tree_state: &TreeState, out: &mut Vec<CommandEffect>) {
        let targets: Vec<InstanceId> = tree_state.entries().iter().map(|e| e.id.clone()).collect();
        let order = StopOrder::new(tree_state.graph(), services(&targets));
        let budget = self.budget(tree_state, &order);
        let operation = Operation { budget, ..Operation::new(None, Work::Shutdown(order), targets) };
        self.begin(tree_state, operation, out);
    }

    /// A stop of all that runs has the time limits of a shutdown.
    fn budget_of_a_stop(
        &self,
        tree_state: &TreeState,
        work: &Work,
        targets: &[InstanceId],
    ) -> Option<StopBudget> {
        let Work::Stop(order) = work else {
            return None;
        };
        let named: HashSet<&InstanceId> = targets.iter().collect();
        let mut runs = tree_state.entries().iter().filter(|entry| entry.state.has_process());
        runs.all(|entry| named.contains(&entry.id)).then(|| self.budget(tree_state, order)).flatten()
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

    /// Handles an acknowledgement. The immediate effects of its directive are in the tree state.
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
                // The instance went down by itself meanwhile: its policy or the start gate decides.
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
        // The goal of a part that is done no longer counts for the instance.
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
                // A directive in the actor's mailbox is lost with the actor.
                (Part::Sent(_, since), Fact::Instance(InstanceFact::ActorBroke { message, .. }))
                    if event.seq > *since =>
                {
                    Some((false, FailureReason::Internal { message: message.clone() }.to_string()))
                }
                (Part::Sent(..) | Part::Queued | Part::Down | Part::Done(_), _) => None,
            };
            let goes_up_again = matches!(operation.work, Work::RestartInOrder(_) | Work::Cascade(_));
            if outcome.is_some()
                && goes_up_again
                && matches!(fact, Fact::Instance(InstanceFact::Stuck { .. }))
            {
                // The command stops waiting; the instance starts again when its process has ended.
                let again = InstanceInput::Start(operation.work.again());
                out.push(CommandEffect::Directive(entry.id.clone(), again, self.directives.next()));
            }
            if let Some((ok, message)) = outcome {
                operation.settle(at, Some((ok, message)));
                operation.send(tree_state, &mut self.directives, out);
            }
        }
        match fact {
            Fact::Instance(InstanceFact::GoalSet { goal: Goal::Down, .. })
            | Fact::Instance(InstanceFact::Stopped { .. })
            | Fact::Instance(InstanceFact::Paused { .. }) => {
                self.settle_stranded(tree_state, out);
            }
            // If this instance waits in vain, so does every instance that waits for it.
            Fact::Instance(InstanceFact::Waiting { .. })
                if self.waits_in_vain_for(tree_state, entry, &mut HashSet::new()).is_some() =>
            {
                self.settle_stranded(tree_state, out);
            }
            _ => {}
        }
        if matches!(
            fact,
            Fact::Instance(InstanceFact::Crashed { .. }) | Fact::Instance(InstanceFact::Failed { .. })
        ) && !tree_state.shutting_down()
        {
            self.cascade(tree_state, entry, event.seq, out);
        }
        self.answer_finished(tree_state, out);
    }

    /// Whether a crash of this service restarts any of its dependents.
    pub fn has_followers(tree_state: &TreeState, service: &Name) -> bool {
        tree_state.graph().dependents(service).any(|dependent| follows(dependent, service))
    }

    /// Restarts what depends on a crashed instance.
    fn cascade(
        &mut self,
        tree_state: &TreeState,
        fallen: &InstanceState,
        since: u64,
        out: &mut Vec<CommandEffect>,
    ) {
        // Another ready copy goes on serving the dependents.
        if tree_state.instances_of(fallen.id.service()).any(|other| other.id != fallen.id && other.ready) {
            return;
        }
        let mut targets: Vec<InstanceId> = Vec::new();
        let mut todo = vec![fallen.spec.name.clone()];
        while let Some(service) = todo.pop() {
            for dependent in tree_state.graph().dependents(&service).filter(|spec| follows(spec, &service)) {
                let runs = |entry: &&InstanceState| {
                    let up = entry.state.has_process() && entry.state != State::Stopping;
                    // A process that was started after the crash stays.
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

    /// Fails the parts of instances that wait for something that only a command can bring up, so
    /// that no command waits for ever.
    fn settle_stranded(&mut self, tree_state: &TreeState, out: &mut Vec<CommandEffect>) {
        let mut stranded = Vec::new();
        // The instances that don't wait in vain: each is looked at once, however many wait for it.
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
                    let message = format!("waits for {on}, which is {is} by request");
                    stranded.push((number, at, message));
                }
            }
        }
        for (number, at, message) in stranded {
            self.running[number].settle(at, Some((false, message)));
            self.running[number].send(tree_state, &mut self.directives, out);
        }
    }

    /// The instance at the end of a wait that only a command can move, where none is under way;
    /// `None`: the wait may end by itself.
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
            // Copies that replace those that are now stopped by hand stay down, too.
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

    /// The goal of an instance: that of the latest command under way for it, or its own.
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

    /// Sends pauses and resumes. Each waits while an earlier command still has a directive to send
    /// to the instance; otherwise the start of an earlier command would undo a pause.
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
            // An instance that is stopped to be started again still has its start to come.
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
                // The next removal is to find the result of this one in the tree state.
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

    /// Marks one part as done, or as down where it goes up again.
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

    /// Ends a part that a later command has taken over.
    fn overtake(&mut self, at: usize) {
        let message = "superseded by a later command".to_owned();
        let (id, part) = &mut self.parts[at];
        match part {
            Part::Done(_) => {}
            // A part that is down no longer counts in `left`.
            Part::Down => {
                *part = Part::Done(Some(InstanceAnswer { name: id.to_string(), ok: false, message }));
            }
            Part::Queued | Part::Sent(..) | Part::Taken => self.settle(at, Some((false, message))),
        }
    }

    /// Begins the second half of a restart in order: the parts that are down go up again, whatever
    /// became of the others. `false`: no part is down.
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

    /// Sends every directive whose turn has come.
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
                // `Operations::send_pauses` sends these.
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

    /// Sends a pause or a resume to all queued parts except those of `held_back`.
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

    /// The positions of the parts whose turn to start has come. A part waits until the targets that
    /// it depends on have acknowledged their directives, so that the start gate finds those on
    /// their way, not failed or stopped.
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

    /// Answers the command once every part is done. `also`: further results for the answer.
    fn answer(self, also: Vec<InstanceAnswer>, out: &mut Vec<CommandEffect>) {
        let answers = self.parts.into_iter().filter_map(|(_, part)| match part {
            Part::Done(answer) => answer,
            Part::Queued | Part::Sent(..) | Part::Taken | Part::Down => None,
        });
        let results: Vec<InstanceAnswer> = answers.chain(also).collect();
        match self.work {
            Work::Shutdown(_) => {
                out.extend([CommandEffect::Emit(Fact::Tree(TreeFact::ShutdownDone)), CommandEffect::Down]);
            }
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

/// Whether a crash of `on` restarts this service while it runs. A service that runs to
/// completion, or never restarts by itself, is left alone.
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

/// A restart of each by itself, or in order where some depend on others.
fn restart_of(tree_state: &TreeState, targets: &[InstanceId]) -> Work {
    let names: HashSet<&Name> = targets.iter().map(InstanceId::service).collect();
    let is_tangled =
        names.iter().any(|name| tree_state.graph().dependents(name).any(|spec| names.contains(&spec.name)));
    match is_tangled {
        true => Work::RestartInOrder(StopOrder::new(tree_state.graph(), services(targets))),
        false => Work::Restart,
    }
}

/// Changes services and groups in place.
fn reconfigure(
    tree_state: &TreeState,
    ticket: CommandNumber,
    change: &Arc<PlanChange>,
    out: &mut Vec<CommandEffect>,
) -> Result<(), Denial> {
    plan_edit::reconfigured(tree_state.plan(), change)?;
    out.push(CommandEffect::Emit(Fact::Tree(TreeFact::Reconfigured { change: Arc::clone(change) })));
    out.push(CommandEffect::Reconfigured);
    let names = change.services.iter().map(|spec| spec.name.to_string());
    let names = names.chain(change.groups.keys().map(ToString::to_string));
    let changed = |name| InstanceAnswer { name, ok: true, message: "changed".to_owned() };
    let answer = Answer { ok: true, results: names.map(changed).collect() };
    out.push(CommandEffect::Answer(ticket, Ok(answer)));
    Ok(())
}
