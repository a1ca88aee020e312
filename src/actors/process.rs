//! The ProcessActor, one for each instance. It turns messages into inputs of the lifecycle machine,
//! and the machine's effects into orders to the host.
//!
//! It holds what belongs to the running incarnation (its key at the host, its checks) and drops it
//! with the incarnation. If the actor itself crashes, dropping its state kills the process, so that
//! no process is left without an owner.

mod attempt;
mod guard;

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use attempt::{attempt, environment};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::AbortHandle;
use tracing::Span;
use tracing::field::{Empty, display};

use super::hooks::{HookRun, InstanceHooks};
use super::messages::{GraphMsg, SupervisorMsg};
use super::system::Registered;
use super::timer::Timer;
use super::{ActorContext, Inheritance, end_unwanted, tell};
use crate::actors::messages::ProcessMsg;
use crate::decide::group::Slot;
use crate::decide::lifecycle::{InstanceEffect, InstanceInput, Machine};
use crate::decide::message::{Address, Message, Step};
use crate::decide::node::{InstanceSend, sent_by_instance};
use crate::decide::operation::{Ack, CommandInput, InstanceSnapshot};
use crate::decide::probe::{CheckStreak, Pauses};
use crate::decide::recovery::{StartKind, continuation, release_orphaned_holds};
use crate::decide::start_gate::GateInput;
use crate::host::{Host, HostEvent, HostEventSink, OutputTarget, Owner, ProcessKey, SpawnOrder, env, probe};
use crate::logs::LogConfig;
use crate::model::cause::CheckKind;
use crate::model::event::{InstanceFact, TreeFact};
use crate::model::spec::Hook;
use crate::model::{
    Check, CheckTarget, CommandLine, Exit, Fact, Incarnation, InstanceId, LogTarget, Name, ReadyTarget,
    ServiceSpec, SourceId,
};

use crate::runner::Runner;

pub(crate) use guard::{BrokenActor, ProcessGuard};

/// The arguments of a new process actor.
pub(crate) struct ProcessArgs {
    pub(crate) context: Arc<ActorContext>,
    pub(crate) id: InstanceId,
    pub(crate) spec: Arc<ServiceSpec>,
    pub(crate) group: Option<Name>,
    pub(crate) slot: Slot,
    pub(crate) parent: ActorRef<SupervisorMsg>,
    pub(crate) root: ActorRef<SupervisorMsg>,
    pub(crate) dependencies: Registered<GraphMsg>,
    pub(crate) guard: Arc<ProcessGuard>,
    /// The crashed actor that this one replaces.
    pub(crate) broken: Option<BrokenActor>,
}

pub(crate) struct ProcessActor;

pub(crate) struct ProcessState {
    context: Arc<ActorContext>,
    id: InstanceId,
    /// The service as its manifest declares it.
    declared: Arc<ServiceSpec>,
    /// The service as it was resolved at the last start: its env files may have changed since.
    spec: Arc<ServiceSpec>,
    slot: Slot,
    /// The source of the instance's output.
    source: SourceId,
    parent: ActorRef<SupervisorMsg>,
    root: ActorRef<SupervisorMsg>,
    dependencies: Registered<GraphMsg>,
    guard: Arc<ProcessGuard>,
    machine: Machine,
    process: Option<Live>,
    timer: Timer,
    effects: Vec<InstanceEffect>,
    /// A process whose end is being reported.
    gone: Option<(Arc<dyn Runner>, ProcessKey)>,
    hooks: Arc<InstanceHooks>,
}

/// What belongs to the running incarnation.
struct Live {
    /// The host of its stop command.
    host: Arc<dyn Host>,
    runner: Arc<dyn Runner>,
    incarnation: Incarnation,
    key: ProcessKey,
    pid: Option<u32>,
    /// How its output was to be kept when it was ordered, until it runs.
    kept: Option<LogConfig>,
    /// The declaration that it was ordered with.
    asked_by: Option<Arc<ServiceSpec>>,
    checks: Vec<Watch>,
    stop_command: Option<ProcessKey>,
    gone: bool,
    /// The start or the stop that is under way, for those who follow `tracing`.
    span: Span,
}

/// A check that is repeated.
struct Watch {
    kind: CheckKind,
    thresholds: CheckStreak,
    task: AbortHandle,
}

impl Live {
    fn new(host: &Arc<dyn Host>, runner: Arc<dyn Runner>, incarnation: Incarnation, key: ProcessKey) -> Live {
        Live {
            host: Arc::clone(host),
            runner,
            incarnation,
            key,
            pid: None,
            kept: None,
            asked_by: None,
            checks: Vec::new(),
            stop_command: None,
            gone: false,
            span: Span::none(),
        }
    }

    fn end_checks(&mut self) {
        for watch in self.checks.drain(..) {
            watch.task.abort();
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.end_checks();
        if let Some(key) = self.stop_command.take() {
            self.host.kill(key);
        }
        // True only after a crash of the actor: otherwise the process was reported gone before.
        if !self.gone {
            self.runner.kill(self.key);
        }
    }
}

impl Actor for ProcessActor {
    type Msg = ProcessMsg;
    type State = ProcessState;
    type Arguments = ProcessArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<ProcessMsg>,
        args: ProcessArgs,
    ) -> Result<ProcessState, ActorProcessingErr> {
        let ProcessArgs { context, id, spec, group, slot, parent, root, dependencies, guard, broken } = args;
        let held = guard.take_over(&myself);
        let mut state = ProcessState {
            machine: Machine::new(id.clone(), group),
            source: context.sources.source(&id),
            context,
            id,
            declared: Arc::clone(&spec),
            spec,
            slot,
            parent,
            root,
            dependencies,
            guard,
            process: None,
            timer: Timer::default(),
            effects: Vec::new(),
            gone: None,
            hooks: Arc::default(),
        };
        if let Some(keep) = state.keep() {
            state.context.sources.kept_in(state.source, keep);
        }
        state.inherits_output();
        let lives = &state.context.inherited_lives;
        let inherited = lives.lock().unwrap_or_else(PoisonError::into_inner).remove(&state.id);
        if let Some(inheritance) = inherited.or_else(|| state.known_again()) {
            state.inherit(&myself, inheritance);
        }
        if let Some(BrokenActor { goal, last, message }) = broken {
            let runner = state.context.runners.of(&state.spec);
            state.process =
                held.map(|held| Live::new(&state.context.host, runner, held.incarnation, held.key));
            let left = held.map(|held| held.inherited);
            state.step(&myself, InstanceInput::Inherit { goal, last, left, message });
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<ProcessMsg>,
        message: ProcessMsg,
        state: &mut ProcessState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ProcessMsg::Directive(input, number) => {
                let before = state.snapshot();
                let message = state.context.log.describe(|| Message::Directive(input.clone(), number));
                state.take(&myself, input, message);
                let (after, instance) = (state.snapshot(), state.id.clone());
                let ack = Ack { number, instance, before, after };
                // Sent after the facts that the directive caused at once, which the log has passed on
                // by now.
                let message = Message::Command(CommandInput::Acknowledged(ack));
                tell(&state.root, SupervisorMsg::Node(message));
            }
            message => {
                if let Some(input) = state.input(message) {
                    state.step(&myself, input);
                }
                if let Some((runner, key)) = state.gone.take() {
                    state.context.settle(&runner, key);
                }
            }
        }
        Ok(())
    }
}

impl ProcessState {
    /// What an earlier supervisor has left of an instance that joins the tree only now, because its
    /// manifest could not be read before. Reports the takeover, as for the instances that were there
    /// from the start.
    fn known_again(&self) -> Option<Inheritance> {
        let strangers = &self.context.strangers;
        let name = self.id.to_string();
        let stranger = strangers.lock().unwrap_or_else(PoisonError::into_inner).remove(&name)?;
        let (left, process) = stranger.left.unzip();
        let (now, today) = (self.context.clock.now(), SystemTime::now());
        let goes_on =
            continuation(&self.id, &self.spec, StartKind::Follows, stranger.written, left, now, today);
        if let Some(key) = process.filter(|_| !goes_on.adopts) {
            end_unwanted(&self.context.host, key, Duration::ZERO);
        }
        let mut past = [goes_on.past?];
        release_orphaned_holds(&mut past, |_, _| false);
        let [past] = past;
        let (instances, failed_groups, failed_projects) = (vec![past.clone()], Vec::new(), Vec::new());
        self.context.log.append([Fact::Tree(TreeFact::TakenOver {
            instances,
            failed_groups,
            failed_projects,
        })]);
        Some(Inheritance { past, process: process.filter(|_| goes_on.adopts) })
    }

    /// Continues with what an earlier supervisor has left.
    fn inherit(&mut self, myself: &ActorRef<ProcessMsg>, inheritance: Inheritance) {
        let Inheritance { past, process } = inheritance;
        // Output that went to the other place still goes there.
        let keep = match (self.keep(), &past.output) {
            (Some(keep), Some(_)) => Some(keep.instead().unwrap_or(keep)),
            (keep, _) => keep,
        };
        if let Some(keep) = keep.clone() {
            self.context.sources.kept_in(self.source, keep);
        }
        if let Some(key) = process {
            // Only processes outlive a supervisor.
            let runner = Arc::clone(self.context.runners.processes());
            let mut live = Live::new(&self.context.host, runner, past.incarnation, key);
            live.pid = past.pid;
            self.process = Some(live);
            self.guard.holds(key, past.incarnation);
            let output = OutputTarget::Lines(self.source, self.pattern());
            self.context.host.adopt(key, output, keep, self.news(key));
        }
        self.step(myself, InstanceInput::Restore(Box::new(past)));
    }

    /// The pattern that the output is searched for until the instance is ready.
    fn pattern(&self) -> Option<regex::bytes::Regex> {
        match self.spec.ready.as_ref().map(|ready| &ready.target) {
            // The pattern was checked with the manifest; a plan that a program has made may still be
            // wrong.
            Some(ReadyTarget::Log(pattern)) => regex::bytes::Regex::new(pattern)
                .map_err(|error| tracing::error!(instance = %self.id, %error, "ready can't match"))
                .ok(),
            Some(ReadyTarget::Check(_) | ReadyTarget::After(_)) | None => None,
        }
    }

    fn keep(&self) -> Option<LogConfig> {
        self.context.keep.of(&self.id, &self.spec)
    }

    fn inherits_output(&self) {
        let inherits = self.spec.log.as_ref().is_some_and(|log| log.file == LogTarget::Inherit);
        self.context.sources.inherits(self.source, inherits);
    }

    /// Changes the log files of the running process to what the manifest declares now.
    fn keep_as_declared(&self) {
        if let Some(keep) = self.keep() {
            self.context.host.keep(self.source, keep);
        }
    }

    /// A sink that passes the host's events about a process to the current actor.
    fn news(&self, key: ProcessKey) -> HostEventSink {
        let live = self.process.as_ref().filter(|live| live.key == key);
        let runner = live
            .map_or_else(|| Arc::clone(self.context.runners.processes()), |live| Arc::clone(&live.runner));
        let guard = Arc::clone(&self.guard);
        Arc::new(move |news| {
            let made = matches!(news, HostEvent::Spawned { .. });
            // The process was made for a tree that is gone: nobody else would end it.
            if !guard.pass_on(news) && made {
                runner.kill(key);
            }
        })
    }

    /// The machine's input for a message. `None` when the message is late or has no effect on the
    /// machine.
    fn input(&mut self, message: ProcessMsg) -> Option<InstanceInput> {
        match message {
            ProcessMsg::Input(input) | ProcessMsg::Directive(input, _) => Some(input),
            ProcessMsg::Timer => {
                self.timer.rang();
                Some(InstanceInput::Tick)
            }
            ProcessMsg::Spec(spec) => {
                if Arc::ptr_eq(&spec, &self.declared) {
                    return None;
                }
                self.declared = Arc::clone(&spec);
                self.spec = spec;
                self.inherits_output();
                self.keep_as_declared();
                Some(InstanceInput::Reconfigured)
            }
            ProcessMsg::AskAgain => {
                if let Some((request, asking)) = self.machine.request() {
                    let resume = GateInput::Resume(self.id.clone(), request, asking);
                    let _ = self.dependencies.send(GraphMsg::Input(resume));
                }
                None
            }
            ProcessMsg::News(news) => self.heard(news),
            ProcessMsg::Checked(incarnation, kind, outcome) => {
                let live = self.process.as_mut().filter(|live| live.incarnation == incarnation)?;
                let watch = live.checks.iter_mut().find(|w| w.kind == kind)?;
                let change = watch.thresholds.take(outcome, self.context.clock.now())?;
                Some(InstanceInput::Checked { incarnation, kind, change })
            }
        }
    }

    fn heard(&mut self, news: HostEvent) -> Option<InstanceInput> {
        let host = Arc::clone(&self.context.host);
        let Some(live) = self.process.as_mut() else {
            // A stop command that was still being started when the service ended.
            if let HostEvent::Spawned { key, .. } = news {
                host.kill(key);
            }
            return None;
        };
        let of = |key: ProcessKey| (key == live.key).then_some(live.incarnation);
        match news {
            HostEvent::Renewed { key, spec } => {
                let incarnation = of(key)?;
                let spawn_fingerprint = spec.spawn_fingerprint();
                // A newer declaration takes precedence over the one that the process was ordered with.
                if live.asked_by.as_ref().is_some_and(|by| Arc::ptr_eq(by, &self.declared)) {
                    self.spec = spec;
                }
                if spawn_fingerprint != self.declared.spawn_fingerprint() {
                    let instance = self.id.clone();
                    self.context.log.append([Fact::Instance(InstanceFact::EnvRenewed {
                        instance,
                        incarnation,
                        spawn_fingerprint,
                    })]);
                }
                None
            }
            HostEvent::Spawned { key, .. } if key != live.key && live.stop_command != Some(key) => {
                // A stop command that was given up while it was being started.
                host.kill(key);
                None
            }
            HostEvent::Spawned { key, pid, life } => {
                let incarnation = of(key)?;
                live.pid = pid;
                std::mem::replace(&mut live.span, Span::none()).record("pid", pid);
                let made = std::mem::take(&mut live.kept);
                if let (Some(ledger), Some(life)) = (&self.context.ledger, life) {
                    ledger.life(&self.id, incarnation, life);
                }
                // The host has not heard of changes that came while the process was being made.
                if made != self.keep() {
                    self.keep_as_declared();
                }
                Some(InstanceInput::Spawned { incarnation, pid })
            }
            HostEvent::SpawnFailed { key, failure } => {
                if live.stop_command == Some(key) {
                    live.stop_command = None;
                    let trouble = Some(failure.to_string());
                    return Some(InstanceInput::StopCommandDone { incarnation: live.incarnation, trouble });
                }
                let incarnation = of(key)?;
                live.gone = true;
                live.span.record("failure", display(&failure));
                self.process = None;
                Some(InstanceInput::SpawnFailed { incarnation, failure, roll: host.roll() })
            }
            HostEvent::Paused { key } => Some(InstanceInput::Halted { incarnation: of(key)? }),
            HostEvent::LogMatched { key } => Some(InstanceInput::LogMatched { incarnation: of(key)? }),
            HostEvent::Exited { key, exit, remains, .. } => {
                if live.stop_command == Some(key) {
                    live.stop_command = None;
                    // Processes that the stop command left behind are killed too.
                    host.kill(key);
                    let trouble = (exit != Exit::SUCCESS).then(|| exit.to_string());
                    return Some(InstanceInput::StopCommandDone { incarnation: live.incarnation, trouble });
                }
                let incarnation = of(key)?;
                live.span.record("exit", display(&exit));
                if !remains {
                    live.gone = true;
                    self.gone = Some((Arc::clone(&live.runner), key));
                    self.process = None;
                }
                Some(InstanceInput::Exited { incarnation, exit, remains, roll: host.roll() })
            }
            HostEvent::ForksAway { key, left } => {
                let (instance, incarnation) = (self.id.clone(), of(key)?);
                self.context.log.append([Fact::Instance(InstanceFact::ForksAway {
                    instance,
                    incarnation,
                    left,
                })]);
                None
            }
            HostEvent::LostSight { key, of: count } => {
                let (instance, incarnation) = (self.id.clone(), of(key)?);
                self.context.log.append([Fact::Instance(InstanceFact::LostSight {
                    instance,
                    incarnation,
                    of: count,
                })]);
                None
            }
            HostEvent::KeptElsewhere { place, reason, .. } => {
                let (instance, file) = (self.id.clone(), place);
                self.context.log.append([Fact::Instance(InstanceFact::OutputElsewhere {
                    instance,
                    file,
                    reason,
                })]);
                None
            }
            HostEvent::Unkept { lost, reason, .. } => {
                let (instance, lost_bytes) = (self.id.clone(), lost);
                self.context.log.append([Fact::Instance(InstanceFact::OutputLost {
                    instance,
                    lost_bytes,
                    reason,
                })]);
                None
            }
            HostEvent::TreeGone { key } => {
                let incarnation = of(key)?;
                live.gone = true;
                self.gone = Some((Arc::clone(&live.runner), key));
                self.process = None;
                Some(InstanceInput::TreeGone { incarnation, roll: host.roll() })
            }
        }
    }

    fn snapshot(&self) -> InstanceSnapshot {
        InstanceSnapshot { state: self.machine.state(), ready: self.machine.is_ready() }
    }

    fn step(&mut self, myself: &ActorRef<ProcessMsg>, input: InstanceInput) {
        let message = self.context.log.describe(|| Message::Input(input.clone()));
        self.take(myself, input, message);
    }

    /// Steps the machine. `message` is the input as a recording has it.
    fn take(&mut self, myself: &ActorRef<ProcessMsg>, input: InstanceInput, message: Option<Message>) {
        let now = self.context.clock.now();
        let to = || Address::Instance(self.id.clone());
        let step = message.map(|message| Step { at: now, to: to(), message });
        let within = self.process.as_ref().map_or(Span::none(), |live| live.span.clone());
        let _within = within.entered();
        let mut effects = std::mem::take(&mut self.effects);
        self.machine.step(&self.spec, now, input, &mut effects);
        // Facts come first: an actor that acts on an effect finds them in the log.
        let facts = effects.iter().filter_map(|effect| match effect {
            InstanceEffect::Emit(fact) => Some(fact.clone()),
            _ => None,
        });
        self.context.log.commit(step, facts);
        if let Some(hooks) = &self.spec.on {
            for effect in &effects {
                // An instance that never had a process has nothing for a stop hook to do.
                if let InstanceEffect::Emit(fact) = effect
                    && let Some((hook, command)) = hooks.of(fact)
                    && (hook != Hook::Stop || self.machine.last() > Incarnation(0))
                {
                    self.run_hook(hook, command, fact, hooks.timeout);
                }
            }
        }
        for effect in effects.drain(..) {
            self.perform(myself, effect);
        }
        // A thousand idle services should not hold a thousand empty buffers.
        self.effects = Vec::new();
        self.timer.set(self.machine.next_deadline(), self.context.clock, myself, || ProcessMsg::Timer);
    }

    fn perform(&mut self, myself: &ActorRef<ProcessMsg>, effect: InstanceEffect) {
        let order = match sent_by_instance(&self.id, self.slot, effect) {
            Ok(InstanceSend::Graph(input)) => {
                // What a broken dependency graph does not hear is repeated to the next one.
                let _ = self.dependencies.send(GraphMsg::Input(input));
                return;
            }
            Ok(InstanceSend::Parent(input)) => {
                return tell(&self.parent, SupervisorMsg::Node(Message::Group(input)));
            }
            Err(order) => order,
        };
        match order {
            InstanceEffect::Spawn(incarnation) => self.spawn(myself, incarnation),
            InstanceEffect::WatchReady(incarnation) => {
                if let Some(ready) = &self.spec.ready
                    && let ReadyTarget::Check(check) = &ready.target
                {
                    let thresholds = CheckStreak::new(CheckKind::Ready, check.successes, 1, Duration::ZERO);
                    let check = check.clone();
                    self.watch(myself, incarnation, CheckKind::Ready, check, thresholds);
                }
            }
            InstanceEffect::WatchHealth(incarnation) => {
                if let Some(health) = &self.spec.health {
                    let check = health.check.clone();
                    let grace_until = self.context.clock.now() + health.start_period;
                    let thresholds =
                        CheckStreak::new(CheckKind::Health, check.successes, health.failures, grace_until);
                    self.watch(myself, incarnation, CheckKind::Health, check, thresholds);
                }
            }
            InstanceEffect::EndChecks => {
                if let Some(live) = &mut self.process {
                    live.end_checks();
                }
            }
            InstanceEffect::Terminate(incarnation, signal) => {
                self.begins_to_stop(incarnation);
                // The time of a stop command that still runs is over.
                if let Some(command) = self.process.as_mut().and_then(|live| live.stop_command.take()) {
                    self.context.host.kill(command);
                }
                if let Some((runner, key)) = self.live(incarnation) {
                    runner.signal(key, signal);
                }
            }
            InstanceEffect::Pause(incarnation) => {
                if let Some((runner, key)) = self.live(incarnation) {
                    runner.pause(key);
                }
            }
            InstanceEffect::Resume(incarnation) => {
                if let Some((runner, key)) = self.live(incarnation) {
                    runner.resume(key);
                }
            }
            InstanceEffect::KillTree(incarnation) => {
                self.begins_to_stop(incarnation);
                if let Some((runner, key)) = self.live(incarnation) {
                    runner.kill(key);
                }
            }
            InstanceEffect::StopCommand(incarnation) => self.stop_command(myself, incarnation),
            // A fact was written down before; the others were sent above.
            InstanceEffect::Emit(_)
            | InstanceEffect::Ask(_)
            | InstanceEffect::Withdraw
            | InstanceEffect::Crashed(_)
            | InstanceEffect::Ended
            | InstanceEffect::Report(_) => {}
        }
    }

    fn run_hook(&self, hook: Hook, command: &CommandLine, fact: &Fact, limit: Duration) {
        let run = HookRun {
            instance: &self.id,
            hook,
            command,
            fact,
            limit,
            dir: self.spec.dir.clone(),
            env: environment(&self.context, &self.spec, &self.id, None),
            output: OutputTarget::Beside(self.source),
        };
        self.hooks.run(&self.context, run);
    }

    /// Opens the span of a stop, at the first thing that is done for it.
    fn begins_to_stop(&mut self, incarnation: Incarnation) {
        let is_open = |live: &Live| live.span.metadata().is_some_and(|span| span.name() == "stop");
        if let Some(live) = self.process.as_mut().filter(|live| live.incarnation == incarnation)
            && !is_open(live)
        {
            live.span =
                tracing::info_span!("stop", instance = %self.id, incarnation = incarnation.0, exit = Empty);
        }
    }

    /// The running incarnation, by its runner and its key there.
    fn live(&self, incarnation: Incarnation) -> Option<(&Arc<dyn Runner>, ProcessKey)> {
        let live = self.process.as_ref().filter(|live| live.incarnation == incarnation)?;
        Some((&live.runner, live.key))
    }

    fn order(&self, myself: &ActorRef<ProcessMsg>, key: ProcessKey, command: &CommandLine) -> SpawnOrder {
        let (actor, host) = (myself.clone(), Arc::clone(&self.context.host));
        let news: HostEventSink = Arc::new(move |news| {
            let made = matches!(news, HostEvent::Spawned { .. });
            // The process was made for an actor that is gone: nobody else would end it.
            if actor.cast(ProcessMsg::News(news)).is_err() && made {
                host.kill(key);
            }
        });
        SpawnOrder {
            key,
            argv: command.argv.clone(),
            dir: self.spec.dir.clone(),
            env: environment(&self.context, &self.spec, &self.id, None),
            input: None,
            extra: None,
            output: OutputTarget::Capture(0),
            owner: None,
            keep: None,
            news,
        }
    }

    fn spawn(&mut self, myself: &ActorRef<ProcessMsg>, incarnation: Incarnation) {
        let key = self.context.host.next_key();
        // No process of an earlier incarnation is left: the machine has made sure of that.
        let runner = self.context.runners.of(&self.declared);
        self.process = Some(Live::new(&self.context.host, Arc::clone(&runner), incarnation, key));
        self.guard.asked_for(key, incarnation);
        let mut order = self.order(myself, key, &self.declared.command);
        order.dir.clone_from(&self.declared.dir);
        order.env.of = env::EnvFor::Start(Arc::clone(&self.declared));
        order.output = OutputTarget::Lines(self.source, self.pattern());
        order.owner = Some(Owner { instance: self.id.to_string(), incarnation });
        order.keep = self.keep();
        order.news = self.news(key);
        if let Some(live) = &mut self.process {
            live.span = tracing::info_span!(
                "start",
                instance = %self.id,
                incarnation = incarnation.0,
                pid = Empty,
                failure = Empty
            );
            live.kept.clone_from(&order.keep);
            live.asked_by = Some(Arc::clone(&self.declared));
        }
        self.context.runners.start(&*runner, order);
    }

    fn stop_command(&mut self, myself: &ActorRef<ProcessMsg>, incarnation: Incarnation) {
        let Some(command) = self.spec.stop.command.clone() else {
            return;
        };
        self.begins_to_stop(incarnation);
        let Some(live) = self.process.as_ref().filter(|live| live.incarnation == incarnation) else {
            return;
        };
        let pid = live.pid;
        let key = self.context.host.next_key();
        let mut order = self.order(myself, key, &command);
        order.env = environment(&self.context, &self.spec, &self.id, pid);
        order.output = OutputTarget::Beside(self.source);
        if let Some(live) = &mut self.process {
            live.stop_command = Some(key);
        }
        self.context.host.spawn(order);
    }

    /// Repeats a check until its task is aborted.
    fn watch(
        &mut self,
        myself: &ActorRef<ProcessMsg>,
        incarnation: Incarnation,
        kind: CheckKind,
        check: Check,
        thresholds: CheckStreak,
    ) {
        let pid = self.process.as_ref().and_then(|live| live.pid);
        let env = environment(&self.context, &self.spec, &self.id, pid);
        let (actor, dir) = (myself.clone(), self.spec.dir.clone());
        let context = Arc::clone(&self.context);
        let task = tokio::spawn(async move {
            for pause in Pauses::new(kind, check.interval) {
                let outcome = match &check.target {
                    CheckTarget::Tcp(address) => probe::tcp(address, check.timeout).await,
                    CheckTarget::Http(url) => probe::http(url, check.timeout).await,
                    CheckTarget::Exec(command) => {
                        // The semaphore is never closed.
                        let _turn = context.check_turns.acquire().await;
                        attempt(&context.host, &dir, &env, command, check.timeout).await
                    }
                };
                if actor.cast(ProcessMsg::Checked(incarnation, kind, outcome)).is_err() {
                    return;
                }
                tokio::time::sleep(pause).await;
            }
        });
        if let Some(live) = &mut self.process {
            live.checks.push(Watch { kind, thresholds, task: task.abort_handle() });
        }
    }
}
