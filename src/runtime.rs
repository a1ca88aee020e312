//! Wiring: a plan becomes a running tree, and a [`Handle`] to it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use below::Taken;
use pools::PoolsArgs;
use ractor::{Actor, ActorRef};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinHandle;

use crate::actors::event_log::{EventLog, EventReader, NextEvent};
use crate::actors::graph::DependencyGraph;
use crate::actors::messages::{GraphMsg, SupervisorMsg};
use crate::actors::monitor::{self, Measured, ResourceMonitor};
use crate::actors::supervisor::{Position, RootChannel, ServiceSupervisor, SupervisorArgs};
use crate::actors::worker_pool::{HostFactory, TaskContext, TaskPersistence, TaskRules};
use crate::actors::{ActorContext, CHECKS_AT_ONCE, LogRetention, hooks};
use crate::decide::graph::Graph;
use crate::decide::group::GroupInput;
use crate::decide::ledger::Ledger;
use crate::decide::message::{Message, StepSink};
use crate::decide::node::{heard_by_gate, is_heard_by_root};
use crate::decide::operation::CommandInput;
use crate::decide::start_gate::waits_for;
use crate::decide::tree_state::TreeState;
use crate::host::native::{self, HostOptions, NativeHost};
use crate::host::waiting_tasks::WaitingTasks;
use crate::host::{Host, OutputSink, SourceNames};
use crate::model::cause::StartCause;
use crate::model::history::ResourceHistory;
use crate::model::sample::Sample;
use crate::model::stats::{ProcessStats, Resources, Stats, Thresholds};
use crate::model::status::{DaemonStatus, FaultyManifest, TreeStatus};
use crate::model::{
    Addition, Answer, Command, Denial, DenialCode, Event, Fact, InstanceId, IssuedCommand, Name, Plan,
    Selector, StatusReport,
};
use crate::record::output::{ChunkSink, OutputHub};
use crate::sys::clock::Clock;
use crate::sys::files;
use crate::vault::secrets::Vault;

pub use below::{KeeperOptions, UnclaimedPolicy};
pub use blocking::BlockingPool;
pub use pools::Pools;
pub use tasks::Tasks;

mod below;
pub mod blocking;
pub mod pools;
pub mod reload;
pub mod tasks;

/// How often the ResourceMonitor samples, unless told otherwise.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(15);

/// Nobody waits longer for the store.
const WRITING: Duration = Duration::from_secs(2);

/// At the end of everything tasks have so long, whatever their own grace.
const FAREWELL_OF_TASKS: Duration = Duration::from_secs(5);

/// What a runtime is made with.
pub struct Options {
    /// How the process that it lives in is treated.
    pub host: HostOptions,
    /// How often resources are sampled.
    pub sample_interval: Duration,
    /// Gets all output as it comes.
    pub console: Option<Arc<dyn ChunkSink>>,
    /// Takes the output of services whose `log` says `inherit`.
    pub own_output: Option<Arc<dyn ChunkSink>>,
    /// The control socket, for the environment of services.
    pub socket: Option<PathBuf>,
    /// Takes down every step and event of the run.
    pub recorder: Option<Box<dyn StepSink>>,
    /// The folder of the secrets that environments name; `None`: `secrets` in the state folder.
    pub secrets: Option<PathBuf>,
    /// How commands are run that are no services; `None`: by the contract's rules, with what they print
    /// beyond memory in `tasks` in the state folder.
    pub tasks: Option<TaskRules>,
    /// How output is kept in files. Unless told otherwise only that of services with `log`, those
    /// without a `file` in `logs` in the state folder, where two programs must not have the same names.
    pub keep: LogRetention,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            host: HostOptions::default(),
            sample_interval: SAMPLE_INTERVAL,
            console: None,
            own_output: None,
            socket: None,
            recorder: None,
            secrets: None,
            tasks: None,
            keep: LogRetention::declared(files::state_dir().join("logs")),
        }
    }
}

/// Why a tree did not come up.
#[derive(Debug)]
pub enum StartError {
    /// Dependencies in a circle: each path leads back to its first name.
    Cycles(Vec<Vec<Name>>),
    /// A group names something that is not in the plan, or an actor did not start.
    Tree(String),
    /// The kernel refused what every run needs.
    Host(io::Error),
    /// The supervisor before this one came to an end in order, and could not tell its keeper any more:
    /// nothing is to be started.
    Over,
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StartError::Cycles(cycles) => {
                f.write_str("dependencies in a circle:")?;
                for cycle in cycles {
                    let words: Vec<&str> = cycle.iter().map(Name::as_str).collect();
                    write!(f, " {}", words.join(" -> "))?;
                }
                Ok(())
            }
            StartError::Tree(reason) => f.write_str(reason),
            StartError::Host(error) => write!(f, "the host can't start: {error}"),
            StartError::Over => f.write_str("everything is down already"),
        }
    }
}

impl std::error::Error for StartError {}

/// The root of a tree broke: a fault in regrow itself, told in the program's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeBroke;

impl std::fmt::Display for TreeBroke {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the tree has ended by a fault in regrow itself")
    }
}

impl std::error::Error for TreeBroke {}

/// A running tree. Cheap to clone; the tree lives until it is shut down.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

struct Inner {
    context: Arc<ActorContext>,
    root: ActorRef<SupervisorMsg>,
    /// Turns true when all is down; its sender ends with the root.
    down: watch::Receiver<bool>,
    output: Arc<OutputHub>,
    /// Held while the tree is made that of another plan.
    reloading: tokio::sync::Mutex<()>,
    /// The control socket of an earlier supervisor, until somebody takes it.
    listener: Mutex<Option<(PathBuf, OwnedFd)>>,
    /// What is wrong with the manifests as they lie there.
    faulty: Mutex<Vec<FaultyManifest>>,
    measured: Measured,
    /// `None` on a fake host.
    native: Option<Arc<NativeHost>>,
    pools: Pools,
    /// Of tasks, where it is not the one of services.
    task_host: TaskHost,
}

/// Made once there is a task to run.
type TaskHost = Arc<Mutex<Option<Arc<NativeHost>>>>;

impl Handle {
    /// Brings a plan up and starts what is to start with it. Must be called within a tokio
    /// runtime whose I/O and time are enabled.
    pub async fn start(plan: Plan, options: Options) -> Result<Handle, StartError> {
        let plan = Arc::new(plan);
        let tree_state = TreeState::new(Arc::clone(&plan), SystemTime::now()).map_err(StartError::Cycles)?;
        let output = Arc::new(OutputHub::new(options.console).with_own(options.own_output));
        let sink: Arc<dyn OutputSink> = Arc::clone(&output) as Arc<dyn OutputSink>;
        let native = NativeHost::start(sink, options.host).map_err(StartError::Host)?;
        let native = Arc::new(native);
        let host: Arc<dyn Host> = Arc::clone(&native) as Arc<dyn Host>;
        let made = RuntimeBuilder {
            socket: options.socket,
            native: Some(native),
            recorder: options.recorder,
            secrets: options.secrets,
            keep: options.keep,
            tasks: options.tasks,
            ..RuntimeBuilder::new(tree_state, host, output)
        };
        made.start(options.sample_interval).await
    }

    /// On a host of the caller's, for tests of the tree without processes; `recorder` takes
    /// down every step and event.
    pub async fn start_on(
        plan: Plan,
        host: Arc<dyn Host>,
        recorder: Option<Box<dyn StepSink>>,
    ) -> Result<Handle, StartError> {
        let plan = Arc::new(plan);
        let tree_state = TreeState::new(Arc::clone(&plan), SystemTime::now()).map_err(StartError::Cycles)?;
        let output = Arc::new(OutputHub::new(None));
        let made = RuntimeBuilder { recorder, ..RuntimeBuilder::new(tree_state, host, output) };
        made.start(SAMPLE_INTERVAL).await
    }

    /// What there is by now.
    pub fn plan(&self) -> Arc<Plan> {
        self.tree_state(|tree_state| Arc::clone(tree_state.plan()))
    }

    /// Its dependencies.
    pub fn graph(&self) -> Arc<Graph> {
        self.tree_state(|tree_state| Arc::clone(tree_state.graph()))
    }

    /// Carries a command out. Returns when it is done, or says why not.
    pub async fn command(&self, command: impl Into<IssuedCommand>) -> Result<Answer, Denial> {
        let (reply, answer) = oneshot::channel();
        let gone =
            || Denial { code: DenialCode::Internal, reason: "the tree is gone".to_owned(), hint: None };
        self.inner.root.cast(SupervisorMsg::Command(command.into(), reply)).map_err(|_| gone())?;
        let answer = answer.await.unwrap_or_else(|_| Err(gone()));
        // Whoever hears that it is done may rely on it.
        self.written().await;
        let well = self.inner.context.ledger.as_ref().is_none_or(|ledger| ledger.is_well());
        answer.map(|answer| self.shown(if well { answer } else { unwritten(answer) }))
    }

    /// An answer in the words of people: short names where they mean one service.
    fn shown(&self, mut answer: Answer) -> Answer {
        self.tree_state(|tree_state| {
            for result in &mut answer.results {
                result.name = tree_state.shown_text(&result.name);
            }
        });
        answer
    }

    /// Returns when all that has happened so far is written down where it lasts, or that takes too
    /// long; at once where nothing is.
    pub async fn written(&self) {
        if let Some(ledger) = &self.inner.context.ledger {
            let (done, wait) = oneshot::channel();
            ledger.after(Box::new(move || {
                let _ = done.send(());
            }));
            let _ = tokio::time::timeout(WRITING, wait).await;
        }
    }

    /// Adds services and groups to the tree and starts those that start with it. Returns as a
    /// start does: when each is ready (a task: completed), or says why not. What was added stays
    /// in the tree either way.
    ///
    /// ```no_run
    /// # async fn example(handle: regrow::runtime::Handle) -> Result<(), regrow::model::Denial> {
    /// use regrow::model::{Addition, Name, Selector, ServiceSpec};
    /// let worker = ServiceSpec::new(Name::new("worker").unwrap(), ["sleep", "1000"]);
    /// let answer = handle.add(Addition::of(worker)).await?;
    /// assert!(answer.ok);
    /// handle.remove(Selector::named(["worker"])).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn add(&self, addition: Addition) -> Result<Answer, Denial> {
        self.command(Command::Add { addition: Arc::new(addition) }).await
    }

    /// Stops services and takes them out of the tree, and the groups that are selected with all
    /// below them. Returns when they are gone, or says why not.
    pub async fn remove(&self, select: Selector) -> Result<Answer, Denial> {
        self.command(Command::Remove { select }).await
    }

    /// What is.
    pub fn status(&self) -> StatusReport {
        self.status_of(|_| true)
    }

    /// The same, of some instances alone.
    pub fn status_of(&self, wanted: impl Fn(&InstanceId) -> bool) -> StatusReport {
        let inner = &self.inner;
        let now = inner.context.clock.now();
        let sample = inner.measured.latest.borrow().clone();
        inner.context.log.tree_state(|tree_state| {
            let mut services = tree_state.rows_of(now, sample.as_deref(), wanted);
            for row in &mut services {
                if !row.waiting_for.is_empty()
                    && let Some(spec) = tree_state.graph().service(&row.service)
                {
                    row.waiting_for = waits_for(tree_state, spec);
                }
            }
            StatusReport {
                daemon: DaemonStatus {
                    pid: std::process::id(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    uptime_s: now.as_secs_f64(),
                    project: tree_state.plan().project.clone(),
                    manifest: tree_state.plan().file.as_ref().map(|p| p.display().to_string()),
                    is_daemon: inner.context.ledger.is_some()
                        || inner.native.as_ref().is_some_and(|host| host.keeper_pid().is_some()),
                    faulty: self.faulty(),
                    stopping: tree_state.shutting_down(),
                    last_event: tree_state.last_event(),
                },
                machine: sample.as_ref().map(|s| s.machine.clone()),
                services,
                groups: tree_state.groups().cloned().collect(),
            }
        })
    }

    /// The control socket that an earlier supervisor listened on at this path, which a keeper has held: who
    /// connects meanwhile waits there.
    pub fn take_listener(&self, path: &Path) -> Option<UnixListener> {
        let held = self.inner.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        held.filter(|(at, _)| at == path).map(|(_, listener)| UnixListener::from(listener))
    }

    /// Has the keeper hold the control socket for the supervisors that follow; nothing without a keeper.
    pub fn hold_listener(&self, listener: &UnixListener, path: &Path) {
        if let (Some(native), Ok(copy), Some(path)) =
            (&self.inner.native, listener.try_clone(), path.to_str())
        {
            native.hold(below::LISTENER, path.to_owned(), Some(copy.into()));
        }
    }

    /// Manifests that can't be used as they are.
    pub fn faulty(&self) -> Vec<FaultyManifest> {
        self.inner.faulty.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What `status` tells of manifests that can't be used as they are.
    pub fn tell_faulty(&self, faulty: Vec<FaultyManifest>) {
        *self.inner.faulty.lock().unwrap_or_else(PoisonError::into_inner) = faulty;
    }

    /// A supervisor and all that hangs under it; `None` is the root. `None` is returned for a
    /// group that is not there. OTP's `which_children` and `count_children` in one.
    pub fn tree(&self, group: Option<&Name>) -> Option<TreeStatus> {
        self.tree_state(|tree_state| tree_state.tree(group))
    }

    /// Looks at the board, the fold of all events so far.
    pub fn tree_state<T>(&self, look: impl FnOnce(&TreeState) -> T) -> T {
        self.inner.context.log.tree_state(look)
    }

    /// Reads events from this number on; 0 for all that are kept.
    pub fn events_from(&self, seq: u64) -> EventReader {
        self.inner.context.log.read_from(seq)
    }

    /// Reads events from now on.
    pub fn events(&self) -> EventReader {
        self.inner.context.log.read_new()
    }

    /// The events that are kept, oldest first.
    pub fn kept_events(&self) -> Vec<Arc<Event>> {
        self.inner.context.log.kept()
    }

    /// Calls a function for every event from now on, in a task of its own: a hook of the program
    /// that embeds the tree ([`Hook::of`](crate::model::spec::Hook::of) tells what an event is to
    /// the hooks of a manifest). The task ends with the tree, or when it is aborted.
    ///
    /// A slow one holds nobody up, and misses what is no longer kept by the time it comes to it.
    pub fn on_event(&self, mut callback: impl FnMut(&Event) + Send + 'static) -> JoinHandle<()> {
        let mut events = self.events();
        tokio::spawn(async move {
            loop {
                if let NextEvent::Event(event) = events.next().await {
                    callback(&event);
                    if matches!(event.fact, Fact::ShutdownDone) {
                        return;
                    }
                }
            }
        })
    }

    /// What the processes print.
    pub fn output(&self) -> &Arc<OutputHub> {
        &self.inner.output
    }

    /// The latest sample of resources, and those that follow.
    pub fn samples(&self) -> watch::Receiver<Option<Arc<Sample>>> {
        self.inner.measured.latest.subscribe()
    }

    /// What was measured in the last so long, of the machine or of an instance, as it is printed: one that
    /// is gone is known for a day. No more than a day is kept.
    pub fn resources(&self, of: Option<&str>, since: Duration) -> ResourceHistory {
        let now = monitor::now(&self.inner.context);
        self.inner.measured.history.lock().unwrap_or_else(PoisonError::into_inner).since(of, since, now)
    }

    /// The worker pool, for commands that are no services.
    pub fn tasks(&self) -> &Tasks {
        self.inner.pools.commands()
    }

    /// The pools of this program: for commands, and for functions that block.
    pub fn pools(&self) -> &Pools {
        &self.inner.pools
    }

    /// The pool, the cache, the machine and what commands have come to.
    pub async fn stats(&self) -> Result<Stats, Denial> {
        let (pool, performance) = self.tasks().snapshot().await?;
        let (scaler, thresholds) = self.tasks().scaler().await?;
        let StatusReport { daemon, machine, services, .. } = self.status();
        let now = monitor::now(&self.inner.context);
        let trends = self.inner.measured.history.lock().unwrap_or_else(PoisonError::into_inner).trends(now);
        let exceeded = thresholds.exceeded_by(machine.as_ref());
        let thresholds = Thresholds { exceeded, ..thresholds };
        let running = services.iter().filter(|row| row.pid.is_some()).count();
        Ok(Stats {
            daemon,
            cache: self.tasks().cache(),
            resources: machine.map(|machine| Resources { machine, trends }),
            scaler,
            processes: ProcessStats { instances: services.len(), running, tasks: pool.busy },
            thresholds,
            performance,
            pool,
        })
    }

    /// Time since the tree came up.
    pub fn uptime(&self) -> Duration {
        self.inner.context.clock.now()
    }

    /// Begins to take everything down, dependents first. See [`Handle::wait_down`].
    pub fn begin_shutdown(&self, cause: &str) {
        // The root is gone only when everything is.
        let _ = self.inner.root.cast(SupervisorMsg::Shutdown(cause.to_owned()));
    }

    /// Takes everything down at once, by SIGKILL, hooks included.
    pub fn kill_all(&self) {
        let _ = self.inner.root.cast(SupervisorMsg::KillAll);
        self.inner.context.no_hooks.send_replace(true);
    }

    /// The hooks that run, for people.
    pub fn running_hooks(&self) -> Vec<String> {
        self.inner.context.hooks.borrow().iter().map(|kept| kept.name.clone()).collect()
    }

    /// How long those may take at most.
    pub fn hooks_may_take(&self) -> Duration {
        let limits = hooks::longest(&self.inner.context.hooks.borrow());
        self.stop_time_left().map_or(limits, |left| left.min(limits))
    }

    /// What is left of the time that a stop of everything has, where it has begun and that is limited.
    fn stop_time_left(&self) -> Option<Duration> {
        let now = self.uptime();
        self.tree_state(|tree_state| {
            let until = tree_state.shutting_down_since()?.saturating_add(tree_state.plan().stop.tree?);
            Some(until.saturating_sub(now))
        })
    }

    /// Returns when a shutdown has ended every service; hooks may still run. See
    /// [`Handle::wait_down`].
    pub async fn wait_stopped(&self) -> Result<(), TreeBroke> {
        let mut down = self.inner.down.clone();
        down.wait_for(|down| *down).await.map(drop).map_err(|_| TreeBroke)
    }

    /// After a shutdown: whoever SIGKILL has not ended, by instance and pid.
    pub fn stuck(&self) -> Vec<(String, Option<u32>)> {
        self.tree_state(|tree_state| {
            let left = tree_state.entries().iter().filter(|entry| entry.state.has_process());
            left.map(|entry| (tree_state.shown(&entry.id), entry.pid)).collect()
        })
    }

    /// After a stop: of whom not all is known any more, and how many processes had shed their marks.
    pub fn lost_sight(&self) -> Vec<(String, usize)> {
        self.tree_state(|tree_state| {
            let lost = tree_state.entries().iter().filter(|entry| !entry.state.has_process());
            lost.filter_map(|entry| Some((tree_state.shown(&entry.id), entry.lost_sight?))).collect()
        })
    }

    /// Returns when a shutdown is done and nothing of the tree is left. `Err`: the tree ended
    /// by a fault of its own; what it left is ended all the same.
    pub async fn wait_down(&self) -> Result<(), TreeBroke> {
        let ended = self.wait_stopped().await;
        // Each has a time limit of its own.
        let mut hooks = self.inner.context.hooks.subscribe();
        let done = async { hooks.wait_for(Vec::is_empty).await.map(drop) };
        match self.stop_time_left() {
            None => drop(done.await),
            Some(left) => {
                if tokio::time::timeout(left, done).await.is_err() {
                    let hooks = self.running_hooks().join(", ");
                    tracing::warn!("killed, since the time for the whole stop is over: {hooks}");
                    self.inner.context.no_hooks.send_replace(true);
                }
            }
        }
        self.end_tasks().await;
        let apart = self.inner.task_host.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for native in self.inner.native.iter().chain(&apart) {
            let (done, gone) = oneshot::channel();
            native.end_strays(move || {
                let _ = done.send(());
            });
            let _ = gone.await;
            native.leave();
        }
        ended
    }

    /// Tasks are asked to end, and ended.
    async fn end_tasks(&self) {
        let pools = &self.inner.pools;
        pools.close_blocking();
        let all = pools.of_commands();
        let close = async |at_once: bool| {
            // Each takes the wish at once, and its end is waited for then.
            let closing = all.iter().map(|tasks| {
                let tasks = tasks.clone();
                tokio::spawn(async move { tasks.close(at_once).await })
            });
            for closed in closing.collect::<Vec<_>>() {
                let _ = closed.await;
            }
        };
        let time = self.stop_time_left().map_or(FAREWELL_OF_TASKS, |left| left.min(FAREWELL_OF_TASKS));
        if tokio::time::timeout(time, close(false)).await.is_err() {
            let _ = tokio::time::timeout(FAREWELL_OF_TASKS, close(true)).await;
        }
    }

    /// Takes everything down, dependents first, and ends the tree's actors.
    pub async fn shutdown(&self) -> Result<(), TreeBroke> {
        self.begin_shutdown("the program asked");
        let ended = self.wait_down().await;
        let _ = self.inner.root.stop_and_wait(None, None).await;
        ended
    }

    /// Whether a process is of a service of this tree.
    pub fn is_of_service(&self, pid: u32) -> bool {
        self.inner.native.as_ref().is_some_and(|host| host.is_of_tree(pid))
    }

    /// The host, where it makes processes of its own.
    pub fn native_host(&self) -> Option<&Arc<NativeHost>> {
        self.inner.native.as_ref()
    }
}

/// An answer about what could not be written down.
fn unwritten(mut answer: Answer) -> Answer {
    for result in answer.results.iter_mut().filter(|result| result.ok) {
        result.message.push_str("; not written down, since the store can't be written: the keeper holds it");
    }
    answer
}

/// What workers work with; `apart`: where the host of their own is, which is then made at need, and the
/// identity of the daemon.
fn task_context(
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
            // Those that the next daemon would end are not to be made before this one has ended others.
            if let Some(ending) = ending.lock().unwrap_or_else(PoisonError::into_inner).take() {
                let _ = ending.join();
            }
            // What tasks print does not go through it.
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

/// How the tasks of a tree outlive it: below a keeper.
fn lasting(
    ledger: Option<Arc<dyn Ledger>>,
    native: Option<&Arc<NativeHost>>,
    held: Option<OwnedFd>,
    going_down: bool,
) -> TaskPersistence {
    let Some(native) = native.filter(|native| native.keeper_pid().is_some()) else {
        return TaskPersistence::default();
    };
    let keeper = Arc::clone(native);
    let hold = Box::new(move |file| keeper.hold(below::TASKS, String::new(), Some(file)));
    match WaitingTasks::open(held, hold) {
        Ok((waiting, left)) => {
            let left = if going_down { Vec::new() } else { left };
            TaskPersistence { over: ledger, waiting: Some(waiting), left }
        }
        Err(error) => {
            tracing::warn!(%error, "tasks that wait are lost with this daemon");
            TaskPersistence { over: ledger, ..TaskPersistence::default() }
        }
    }
}

/// On a thread of its own; where there is none to be had, those wait for the next daemon.
fn ending_of_left_tasks(identity: String) -> Option<std::thread::JoinHandle<()>> {
    let thread = std::thread::Builder::new().name("regrow-left".into()).stack_size(256 * 1024);
    let ended = thread.spawn(move || native::end_left_tasks(&identity));
    ended.map_err(|error| tracing::warn!(%error, "what earlier tasks have left is not looked for")).ok()
}

struct RuntimeBuilder {
    tree_state: TreeState,
    host: Arc<dyn Host>,
    output: Arc<OutputHub>,
    socket: Option<PathBuf>,
    native: Option<Arc<NativeHost>>,
    recorder: Option<Box<dyn StepSink>>,
    secrets: Option<PathBuf>,
    clock: Clock,
    keep: LogRetention,
    tasks: Option<TaskRules>,
    /// Tasks are made beside the services' host, which is a keeper's; for the daemon of this identity.
    tasks_apart: Option<String>,
    ledger: Option<Arc<dyn Ledger>>,
    /// What an earlier supervisor has left.
    taken: Taken,
    /// The control socket that it listened on.
    listener: Option<(PathBuf, OwnedFd)>,
    /// And the tasks that it had not done.
    tasks_held: Option<OwnedFd>,
}

impl RuntimeBuilder {
    fn new(tree_state: TreeState, host: Arc<dyn Host>, output: Arc<OutputHub>) -> RuntimeBuilder {
        RuntimeBuilder {
            tree_state,
            host,
            output,
            socket: None,
            native: None,
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

    async fn start(mut self, sample_interval: Duration) -> Result<Handle, StartError> {
        let mut rules =
            self.tasks.take().unwrap_or_else(|| TaskRules::usual(files::state_dir().join("tasks")));
        // Each sample is decided on.
        rules.scale.pause = sample_interval;
        let apart = self.tasks_apart.take();
        let RuntimeBuilder {
            tree_state,
            host,
            output,
            socket,
            native,
            recorder,
            secrets,
            clock,
            keep,
            ledger,
            taken,
            listener,
            tasks_held,
            ..
        } = self;
        let Taken { facts, lives, strangers, last_event, going_down } = taken;
        let plan = Arc::clone(tree_state.plan());
        let log = EventLog::behind(tree_state, clock, last_event);
        if let Some(recorder) = recorder {
            log.record_to(recorder);
        }
        let context = Arc::new(ActorContext {
            inherited: Arc::clone(&plan.inherited),
            host,
            clock,
            log,
            sources: Arc::clone(&output) as Arc<dyn SourceNames>,
            socket,
            hooks: watch::Sender::new(Vec::new()),
            hook_turns: Semaphore::new(hooks::IN_ALL),
            check_turns: Semaphore::new(CHECKS_AT_ONCE),
            no_hooks: watch::Sender::new(false),
            vault: Arc::new(Vault::at(secrets.unwrap_or_else(|| files::state_dir().join("secrets")))),
            keep,
            ledger,
            inherited_lives: Mutex::new(lives),
            strangers: Mutex::new(strangers),
        });
        let broken = |error: ractor::SpawnErr| StartError::Tree(error.to_string());
        if let Some(ledger) = &context.ledger {
            context.log.keep_in(Arc::clone(ledger));
            let log = context.log.clone();
            ledger.report_to(Box::new(move |lost_events, reason| {
                log.append([Fact::StoreLost { lost_events, reason }]);
            }));
        }
        let started = Fact::SupervisorStarted {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            project: plan.project.clone(),
            services: plan.services.len(),
        };
        // Told before any actor goes on from there.
        context.log.append([started].into_iter().chain(facts));

        let (dependencies, _) =
            DependencyGraph::spawn(None, DependencyGraph, Arc::clone(&context)).await.map_err(broken)?;
        let told = dependencies.clone();
        context.log.listen(move |event, tree_state| {
            if let Some(changed) = heard_by_gate(tree_state, event) {
                let _ = told.cast(GraphMsg::Input(changed));
            }
        });
        let observing = Arc::new(AtomicBool::new(false));
        let (down_sender, down) = watch::channel(false);
        let args = SupervisorArgs {
            context: Arc::clone(&context),
            dependencies: dependencies.clone(),
            position: Position::Root(RootChannel { observing: Arc::clone(&observing), down: down_sender }),
        };
        let (root, _) = ServiceSupervisor::spawn(None, ServiceSupervisor, args).await.map_err(broken)?;
        // It ends with the root, and with it all that it holds.
        dependencies.link(root.get_cell());
        let measured = Measured::default();
        let monitor = (Arc::clone(&context), sample_interval, measured.clone());
        ResourceMonitor::spawn_linked(None, ResourceMonitor, monitor, root.get_cell())
            .await
            .map_err(broken)?;

        let task_host = TaskHost::default();
        let task_context =
            task_context(&context, &plan.folder, apart.map(|identity| (Arc::clone(&task_host), identity)));
        let lasting = lasting(context.ledger.clone(), native.as_ref(), tasks_held, going_down.is_some());
        let args = PoolsArgs {
            rules,
            task_context,
            lasting,
            context: Arc::clone(&context),
            samples: measured.latest.clone(),
            root: root.clone(),
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
            // It goes on where it was.
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
}
