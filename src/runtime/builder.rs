//! How a plan becomes a running tree: the actors, in their order, and who listens to whom.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorRef};
use tokio::sync::{Semaphore, watch};

use super::Inner;
use crate::actors::event_log::EventLog;
use crate::actors::graph::{DependencyGraph, RootPlace};
use crate::actors::messages::{GraphMsg, SupervisorMsg};
use crate::actors::monitor::{Measured, ResourceMonitor};
use crate::actors::supervisor::{Position, RootChannel, ServiceSupervisor, SupervisorArgs};
use crate::actors::system::{Registered, SystemMsg, SystemSupervisor, supervise};
use crate::actors::worker_pool::{HostFactory, TaskContext, TaskPersistence, TaskRules};
use crate::actors::{ActorContext, CHECKS_AT_ONCE, LogRetention, hooks};
use crate::decide::group::GroupInput;
use crate::decide::ledger::Ledger;
use crate::decide::message::{Message, StepSink};
use crate::decide::node::{heard_by_gate, is_heard_by_root};
use crate::decide::operation::CommandInput;
use crate::decide::tree_state::TreeState;
use crate::host::native::{self, HostOptions, NativeHost};
use crate::host::waiting_tasks::WaitingTasks;
use crate::host::{Host, OutputSink, SourceNames};
use crate::model::cause::StartCause;
use crate::model::{Fact, Name, TreeFact};
use crate::record::output::OutputHub;
use crate::runner::{Runner, Runners};
use crate::runtime::Handle;
use crate::runtime::options::StartError;
use crate::runtime::pools::{Pools, PoolsArgs};
use crate::runtime::takeover::{self, Taken};
use crate::sys::clock::Clock;
use crate::sys::files;
use crate::vault::secrets::Vault;

/// The place of the tasks' host, which is made once there is a task to run.
pub(super) type TaskHost = Arc<Mutex<Option<Arc<NativeHost>>>>;

/// Makes the context that workers run tasks with. With `apart`, tasks get a host of their own, made
/// when the first task needs it: `apart` is the place for that host and the identity of the daemon.
pub(super) fn task_context(
    context: &Arc<ActorContext>,
    folder: &Path,
    apart: Option<(TaskHost, String)>,
) -> TaskContext {
    let host = Arc::clone(&context.host);
    let ending = apart.as_ref().map(|(_, identity)| ending_of_left_tasks(identity.clone()));
    let ending = Mutex::new(ending.flatten());
    let make: HostFactory = match apart {
        None => Box::new(move || Ok(Arc::clone(&host))),
        Some((place, identity)) => Box::new(move || {
            // The tasks of this daemon carry the same marks as those that an earlier one left, so those
            // must be ended before a new one is made.
            if let Some(ending) = ending.lock().unwrap_or_else(PoisonError::into_inner).take() {
                let _ = ending.join();
            }
            // The output of tasks does not go through this sink.
            let sink: Arc<dyn OutputSink> = Arc::new(OutputHub::new(None));
            let options = HostOptions { subreaper: true, owns_process: true, die_with_us: true };
            let native = Arc::new(NativeHost::start_for_tasks(sink, options, &identity)?);
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&native));
            Ok(native as Arc<dyn Host>)
        }),
    };
    let ActorContext { clock, socket, inherited, vault, .. } = &**context;
    TaskContext::new(
        *clock,
        (folder.to_owned(), socket.clone()),
        Arc::clone(inherited),
        Arc::clone(vault),
        make,
    )
}

/// How the tasks of a tree outlive the daemon: only below a keeper, which holds those that wait.
pub(super) fn lasting(
    ledger: Option<Arc<dyn Ledger>>,
    native: Option<&Arc<NativeHost>>,
    held: Option<OwnedFd>,
    going_down: bool,
) -> TaskPersistence {
    let Some(native) = native.filter(|native| native.keeper_pid().is_some()) else {
        return TaskPersistence::default();
    };
    let keeper = Arc::clone(native);
    let hold = Box::new(move |file| keeper.hold(takeover::TASKS, String::new(), Some(file)));
    match WaitingTasks::open(held, hold) {
        Ok((waiting, left)) => {
            let left = if going_down { Vec::new() } else { left };
            TaskPersistence {
                over: ledger,
                waiting: Some(Arc::new(waiting)),
                left,
                ..TaskPersistence::default()
            }
        }
        Err(error) => {
            tracing::warn!(%error, "waiting tasks will be lost when this daemon ends");
            TaskPersistence { over: ledger, ..TaskPersistence::default() }
        }
    }
}

/// Ends the tasks that an earlier daemon left, on a thread of its own. Where no thread can be made,
/// they are left to the next daemon.
pub(super) fn ending_of_left_tasks(identity: String) -> Option<std::thread::JoinHandle<()>> {
    let thread = std::thread::Builder::new().name("regrow-left".into()).stack_size(256 * 1024);
    let ended = thread.spawn(move || native::end_left_tasks(&identity));
    ended
        .map_err(
            |error| tracing::warn!(%error, "processes that earlier tasks left behind are not searched for"),
        )
        .ok()
}

pub(super) struct RuntimeBuilder {
    pub(super) tree_state: TreeState,
    pub(super) host: Arc<dyn Host>,
    pub(super) output: Arc<OutputHub>,
    pub(super) socket: Option<PathBuf>,
    pub(super) native: Option<Arc<NativeHost>>,
    pub(super) runners: BTreeMap<Name, Arc<dyn Runner>>,
    pub(super) recorder: Option<Box<dyn StepSink>>,
    pub(super) secrets: Option<PathBuf>,
    pub(super) clock: Clock,
    pub(super) keep: LogRetention,
    pub(super) tasks: Option<TaskRules>,
    /// The identity of the daemon, where tasks have a host beside that of the services, which is a
    /// keeper's.
    pub(super) tasks_apart: Option<String>,
    pub(super) ledger: Option<Arc<dyn Ledger>>,
    /// What an earlier supervisor has left for this one.
    pub(super) taken: Taken,
    /// The control socket that the earlier supervisor listened on, with its path.
    pub(super) listener: Option<(PathBuf, OwnedFd)>,
    /// The file of the tasks that the earlier supervisor had not finished.
    pub(super) tasks_held: Option<OwnedFd>,
}

impl RuntimeBuilder {
    pub(super) fn new(tree_state: TreeState, host: Arc<dyn Host>, output: Arc<OutputHub>) -> RuntimeBuilder {
        RuntimeBuilder {
            tree_state,
            host,
            output,
            socket: None,
            native: None,
            runners: BTreeMap::new(),
            recorder: None,
            secrets: None,
            clock: Clock::start(),
            keep: LogRetention::declared(files::state_dir().join("logs")),
            tasks: None,
            tasks_apart: None,
            ledger: None,
            taken: Taken::default(),
            listener: None,
            tasks_held: None,
        }
    }

    pub(super) async fn start(mut self, sample_interval: Duration) -> Result<Handle, StartError> {
        let mut rules =
            self.tasks.take().unwrap_or_else(|| TaskRules::usual(files::state_dir().join("tasks")));
        // The scaler decides on every sample.
        rules.scale.pause = sample_interval;
        let (apart, native) = (self.tasks_apart.take(), self.native.take());
        let (tasks_held, listener) = (self.tasks_held.take(), self.listener.take());
        let output = Arc::clone(&self.output);
        let folder = self.tree_state.plan().folder.clone();
        let (context, going_down) = self.context();

        let Root { root, system, observing, down } = start_root(&context).await?;
        let measured = Measured::default();
        let (of, told) = (Arc::clone(&context), measured.clone());
        let args = move |life| (Arc::clone(&of), sample_interval, told.clone(), life);
        let about = ("monitor".to_owned(), "one sample");
        let monitor = Registered::default();
        supervise::<ResourceMonitor>(&system, about, &monitor, args, || {}).await.map_err(broken)?;

        let task_host = TaskHost::default();
        let apart = apart.map(|identity| (Arc::clone(&task_host), identity));
        let args = PoolsArgs {
            rules,
            task_context: task_context(&context, &folder, apart),
            lasting: lasting(context.ledger.clone(), native.as_ref(), tasks_held, going_down.is_some()),
            context: Arc::clone(&context),
            samples: measured.latest.clone(),
            root: root.clone(),
            system: system.clone(),
        };
        let pools = Pools::start(args).await?;

        let listening_root = root.clone();
        context.log.listen(move |event, tree_state| {
            if is_heard_by_root(tree_state, event, observing.load(Ordering::SeqCst)) {
                let observed = Message::Command(CommandInput::Observed(Arc::clone(event)));
                let _ = listening_root.cast(SupervisorMsg::Node(observed));
            }
        });
        let begin = match going_down {
            // The earlier supervisor was going down, and the shutdown goes on.
            Some(cause) => SupervisorMsg::Shutdown(cause),
            None => SupervisorMsg::Node(Message::Group(GroupInput::Start(StartCause::Boot))),
        };
        root.cast(begin).map_err(|error| StartError::Tree(error.to_string()))?;
        let reloading = tokio::sync::Mutex::new(());
        let (faulty, listener) = (Mutex::default(), Mutex::new(listener));
        let inner = Inner {
            context,
            root,
            down,
            output,
            reloading,
            faulty,
            listener,
            measured,
            native,
            pools,
            task_host,
        };
        Ok(Handle { inner: Arc::new(inner) })
    }

    /// What every actor shares, with the events written down that come before the first of them starts. The
    /// second is the cause of a shutdown that an earlier supervisor had begun.
    fn context(self) -> (Arc<ActorContext>, Option<String>) {
        let Taken { facts, lives, strangers, last_event, going_down } = self.taken;
        let plan = Arc::clone(self.tree_state.plan());
        let log = EventLog::behind(self.tree_state, self.clock, last_event);
        if let Some(recorder) = self.recorder {
            log.record_to(recorder);
        }
        let secrets = self.secrets.unwrap_or_else(|| files::state_dir().join("secrets"));
        let output = Arc::clone(&self.output) as Arc<dyn OutputSink>;
        let context = Arc::new(ActorContext {
            inherited: Arc::clone(&plan.inherited),
            runners: Runners::new(&self.host, self.runners, output),
            host: self.host,
            clock: self.clock,
            log,
            sources: self.output as Arc<dyn SourceNames>,
            socket: self.socket,
            hooks: watch::Sender::new(Vec::new()),
            hook_turns: Semaphore::new(hooks::IN_ALL),
            check_turns: Semaphore::new(CHECKS_AT_ONCE),
            no_hooks: watch::Sender::new(false),
            vault: Arc::new(Vault::at(secrets)),
            keep: self.keep,
            ledger: self.ledger,
            inherited_lives: Mutex::new(lives),
            strangers: Mutex::new(strangers),
        });
        if let Some(ledger) = &context.ledger {
            context.log.keep_in(Arc::clone(ledger));
            let log = context.log.clone();
            ledger.report_to(Box::new(move |lost_events, reason| {
                log.append([Fact::Tree(TreeFact::StoreLost { lost_events, reason })]);
            }));
        }
        let started = Fact::Tree(TreeFact::SupervisorStarted {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            project: plan.project.clone(),
            services: plan.services.len(),
        });
        context.log.append([started].into_iter().chain(facts));
        (context, going_down)
    }
}

/// The root of a tree, with what it shares with whoever waits for it.
struct Root {
    root: ActorRef<SupervisorMsg>,
    system: ActorRef<SystemMsg>,
    observing: Arc<AtomicBool>,
    down: watch::Receiver<bool>,
}

fn broken(error: ractor::SpawnErr) -> StartError {
    StartError::Tree(error.to_string())
}

/// Starts the supervisor of what the tree consists of, the dependency graph, and the root with every
/// actor below it.
async fn start_root(context: &Arc<ActorContext>) -> Result<Root, StartError> {
    let made = SystemSupervisor::spawn(None, SystemSupervisor, Arc::clone(context)).await;
    let (system, _) = made.map_err(broken)?;
    let dependencies: Registered<GraphMsg> = Registered::default();
    let place = RootPlace::default();
    let (of, told) = (Arc::clone(context), Arc::clone(&place));
    let args = move |_| (Arc::clone(&of), Arc::clone(&told));
    let told = Arc::clone(&place);
    let replaced = move || {
        if let Some(root) = told.get() {
            let _ = root.cast(SupervisorMsg::AskAgain);
        }
    };
    let about = ("dependency graph".to_owned(), "nothing: every instance asks again");
    supervise::<DependencyGraph>(&system, about, &dependencies, args, replaced).await.map_err(broken)?;
    let told = dependencies.clone();
    context.log.listen(move |event, tree_state| {
        if let Some(changed) = heard_by_gate(tree_state, event) {
            let _ = told.send(GraphMsg::Input(changed));
        }
    });
    let observing = Arc::new(AtomicBool::new(false));
    let (down_sender, down) = watch::channel(false);
    let channel = RootChannel { observing: Arc::clone(&observing), down: down_sender };
    let position = Position::Root(channel, place);
    let args = SupervisorArgs { context: Arc::clone(context), dependencies, position };
    let (root, _) = ServiceSupervisor::spawn(None, ServiceSupervisor, args).await.map_err(broken)?;
    // What the tree consists of ends with the root, and so does everything that it holds.
    system.link(root.get_cell());
    Ok(Root { root, system, observing, down })
}
