//! `replay`: runs a recording through the same machines again, step by step, and prints what each
//! was told and decided. It reports every step where they now decide otherwise or break an
//! invariant.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use crate::cli::args::develop::ReplayArgs;
use crate::cli::{code, format};
use crate::decide::lifecycle::{InstanceEffect, InstanceInput};
use crate::decide::message::{Address, Message, Step};
use crate::decide::operation::CommandInput;
use crate::decide::simulation::{Simulation, SimulationOutput};
use crate::model::event::{InstanceFact, TreeFact};
use crate::model::{Event, Fact, Goal, Incarnation, InstanceId};
use crate::present::fact_in_words;
use crate::record::recording::{ReadError, RecordingLine, RecordingReader};

/// The result of a replay, for `--json`.
#[derive(Debug, Default, Serialize)]
struct Verdict {
    steps: u64,
    events: u64,
    commands: u64,
    /// Whether the recording reaches the end of its run; that of a killed run does not.
    complete: bool,
    /// The decisions that differ from the recorded ones, and those that must never be.
    faults: Vec<String>,
}

pub(in crate::cli) fn replay(args: &ReplayArgs) -> u8 {
    let shown = args.file.display();
    let mut reading = match RecordingReader::open(&args.file) {
        Ok(reading) => reading,
        Err(error) => {
            tell!("{}: can't read {shown}: {error}", format::error_word());
            return code::FAILED;
        }
    };
    let plan = Arc::new(reading.head.plan.clone());
    let Ok(world) = Simulation::new(Arc::clone(&plan)) else {
        tell!("{}: the plan of {shown} has a dependency cycle", format::error_word());
        return code::FAILED;
    };
    let known = |name: &String| {
        let is_service = plan.services.iter().any(|service| {
            service.name.as_str() == name || service.instances().any(|id| id.to_string() == *name)
        });
        is_service || plan.groups.contains_key(name.as_str())
    };
    if let Some(name) = args.services.iter().find(|name| !known(name)) {
        tell!("{}: there is no service or group {name:?} in {shown}", format::error_word());
        return code::FAILED;
    }
    if !args.json {
        say!(
            "{} recorded by regrow {}, {} services",
            plan.project,
            reading.head.version,
            plan.services.len()
        );
    }
    let mut told = Told {
        world,
        only: args.services.clone(),
        quiet: args.json,
        awaited: VecDeque::new(),
        live: HashMap::new(),
        answered: HashMap::new(),
        verdict: Verdict::default(),
    };
    loop {
        match reading.next_line() {
            Ok(Some((number, RecordingLine::Step(step)))) => told.step(number, step),
            Ok(Some((number, RecordingLine::Event(event)))) => told.event(number, &event),
            Ok(None) => break,
            Err(ReadError::Io(error)) => {
                tell!("{}: can't read {shown}: {error}", format::error_word());
                return code::FAILED;
            }
            Err(error @ ReadError::NotOurs(_)) => {
                tell!("{}: {shown}: {error}", format::error_word());
                return code::FAILED;
            }
        }
    }
    told.conclude()
}

struct Told {
    world: Simulation,
    /// The services, instances and groups whose steps are shown; all, if the list is empty.
    only: Vec<String>,
    quiet: bool,
    /// The facts that the machines have decided on and the recording has not told yet.
    awaited: VecDeque<Fact>,
    live: HashMap<InstanceId, Incarnation>,
    answered: HashMap<u64, u32>,
    verdict: Verdict,
}

impl Told {
    fn step(&mut self, number: usize, step: Step) {
        self.settle(number);
        self.verdict.steps += 1;
        let step = self.world.own(step);
        let who = match &step.to {
            Address::Instance(id) => id.to_string(),
            Address::Group(Some(name)) => format!("group {name}"),
            Address::Group(None) => "root".to_owned(),
            Address::Graph => "graph".to_owned(),
        };
        let shown =
            !self.quiet && (self.only.is_empty() || self.only.iter().any(|name| is_about(&step.to, name)));
        if shown {
            say!("{:>10.6}  {who} <- {}", step.at.as_secs_f64(), in_words(&step.message));
        }
        match &step.message {
            Message::Input(
                InstanceInput::SpawnFailed { .. }
                | InstanceInput::TreeGone { .. }
                | InstanceInput::Exited { remains: false, .. },
            ) => {
                if let Address::Instance(id) = &step.to {
                    self.live.remove(id);
                }
            }
            Message::Command(CommandInput::Command(ticket, _)) => {
                self.verdict.commands += 1;
                self.answered.insert(*ticket, 0);
            }
            _ => {}
        }
        let mut out = Vec::new();
        self.world.deliver(step.at, &step.to, step.message, &mut out);
        for output in out {
            match output {
                SimulationOutput::Fact(event) => self.awaited.push_back(event.fact.clone()),
                SimulationOutput::Host(id, effect) => {
                    if shown {
                        say!("            {who} -> {effect:?}");
                    }
                    self.ordered(number, &id, &effect);
                }
                SimulationOutput::Answer(ticket, _) => *self.answered.entry(ticket).or_default() += 1,
                SimulationOutput::Send(..)
                | SimulationOutput::Again(_)
                | SimulationOutput::Ended(_)
                | SimulationOutput::Down => {}
            }
        }
    }

    fn ordered(&mut self, number: usize, id: &InstanceId, effect: &InstanceEffect) {
        let InstanceEffect::Spawn(incarnation) = effect else {
            return;
        };
        if let Some(other) = self.live.insert(id.clone(), *incarnation) {
            self.fault(number, &format!("{id}: #{incarnation} is started while #{other} is alive"));
        }
        let goal = self.world.machine(id).map(|machine| machine.goal());
        if goal != Some(Goal::Up) {
            self.fault(number, &format!("{id}: #{incarnation} is started although its goal is down"));
        }
    }

    fn event(&mut self, number: usize, event: &Event) {
        self.verdict.events += 1;
        self.verdict.complete |= matches!(event.fact, Fact::Tree(TreeFact::ShutdownDone));
        if matches!(
            event.fact,
            Fact::Tree(TreeFact::SupervisorStarted { .. }) | Fact::Instance(InstanceFact::HookFailed { .. })
        ) {
            // No machine decides on this fact.
            self.world.note(event.since_start, event.fact.clone());
            return;
        }
        let about = |name: &String| {
            event.fact.instance().is_some_and(|id| id.to_string() == *name || id.service().as_str() == name)
        };
        if !self.quiet && (self.only.is_empty() || self.only.iter().any(about)) {
            say!("            {:>5} {}", event.seq, fact_in_words(&event.fact));
        }
        match self.awaited.pop_front() {
            Some(fact) if same(&fact, &event.fact) => {}
            Some(fact) => self.fault(
                number,
                &format!("decided now: {}; recorded: {}", fact_in_words(&fact), fact_in_words(&event.fact)),
            ),
            None => {
                self.fault(number, &format!("recorded, and not decided now: {}", fact_in_words(&event.fact)));
            }
        }
    }

    /// Checks that every fact decided on was recorded too.
    fn settle(&mut self, number: usize) {
        while let Some(fact) = self.awaited.pop_front() {
            self.fault(number, &format!("decided now, and not recorded: {}", fact_in_words(&fact)));
        }
    }

    fn fault(&mut self, number: usize, words: &str) {
        let words = format!("line {number}: {words}");
        if !self.quiet {
            say!("BROKEN      {words}");
        }
        self.verdict.faults.push(words);
    }

    fn conclude(mut self) -> u8 {
        for (ticket, count) in &self.answered {
            if *count > 1 {
                self.verdict.faults.push(format!("command {ticket} was answered {count} times"));
            }
        }
        for (id, machine) in self.world.machines() {
            let entry = self.world.tree_state().entry(id);
            if entry.is_none_or(|entry| entry.state != machine.state() || entry.goal != machine.goal()) {
                self.verdict.faults.push(format!("{id}: the tree state differs from the state machine"));
            }
        }
        let Verdict { steps, events, commands, complete, faults } = &self.verdict;
        if !self.quiet && !complete {
            say!("the recording stops before the run's end");
        }
        if self.quiet {
            match serde_json::to_string_pretty(&self.verdict) {
                Ok(text) => say!("{text}"),
                Err(error) => tell!("{}: {error}", format::error_word()),
            }
        } else if faults.is_empty() {
            say!(
                "{steps} steps, {events} events, {commands} commands: decided as recorded, all invariants hold"
            );
        } else {
            say!("{steps} steps, {events} events, {commands} commands: {} faults", faults.len());
        }
        if faults.is_empty() { code::DONE } else { code::FAILED }
    }
}

/// Whether two facts look the same to a reader of the events: facts are equal when they are written
/// the same.
fn same(one: &Fact, other: &Fact) -> bool {
    serde_json::to_value(one).ok() == serde_json::to_value(other).ok()
}

fn is_about(node: &Address, name: &str) -> bool {
    match node {
        Address::Instance(id) => id.to_string() == name || id.service().as_str() == name,
        Address::Group(group) => group.as_ref().is_some_and(|group| group.as_str() == name),
        Address::Graph => false,
    }
}

fn in_words(message: &Message) -> String {
    if let Message::Command(CommandInput::Observed(event)) = message {
        return format!("observed event {}", event.seq);
    }
    match serde_json::to_value(message) {
        Ok(value) => words(&value),
        Err(error) => error.to_string(),
    }
}

/// The words of a JSON value: `{"input": {"start": "boot"}}` becomes `input start boot`.
fn words(value: &Value) -> String {
    match value {
        Value::Object(map) if map.len() == 1 => {
            map.iter().map(|(key, value)| format!("{key} {}", words(value))).collect()
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
