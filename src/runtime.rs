//! The runtime module wires the parts together: it turns a plan into a running tree and gives out a
//! [`Handle`] to it.
//!
//! It is where the decisions, the actors and the host meet. It decides nothing itself, and it
//! parses and prints nothing.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use builder::RuntimeBuilder;
use ractor::ActorRef;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::actors::event_log::{EventReader, NextEvent};
use crate::actors::messages::SupervisorMsg;
use crate::actors::monitor::{self, Measured};
use crate::actors::{ActorContext, hooks};
use crate::decide::graph::Graph;
use crate::decide::message::StepSink;
use crate::decide::start_gate::waits_for;
use crate::decide::tree_state::TreeState;
use crate::host::native::NativeHost;
use crate::host::{Host, OutputSink};
use crate::model::event::TreeFact;
use crate::model::history::ResourceHistory;
use crate::model::sample::Sample;
use crate::model::stats::{ProcessStats, Resources, Stats, Thresholds};
use crate::model::status::{DaemonStatus, FaultyManifest, TreeStatus};
use crate::model::{
    Addition, Answer, Command, Denial, DenialCode, Event, Fact, InstanceId, IssuedCommand, Name, Plan,
    Selector, StatusReport,
};
use crate::record::output::OutputHub;
use crate::runner::Runner;
use crate::runtime::builder::TaskHost;

pub use blocking::BlockingPool;
pub use options::{Options, SAMPLE_INTERVAL, StartError, TreeBroke};
pub use pools::Pools;
pub use takeover::{KeeperOptions, UnclaimedPolicy};
pub use tasks::Tasks;

pub mod blocking;
mod builder;
mod options;
pub mod pools;
pub mod reload;
mod takeover;
pub mod tasks;
#[cfg(test)]
mod tests;

/// The longest that [`Handle::written`] waits for the store.
const WRITING: Duration = Duration::from_secs(2);

/// The time that tasks have to end when the whole tree goes down, whatever their own grace.
const FAREWELL_OF_TASKS: Duration = Duration::from_secs(5);

/// A running tree. Cheap to clone; the tree lives until it is shut down.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

struct Inner {
    context: Arc<ActorContext>,
    root: ActorRef<SupervisorMsg>,
    /// The value turns true when the whole tree is down; its sender ends with the root.
    down: watch::Receiver<bool>,
    output: Arc<OutputHub>,
    /// The lock is held while the tree is changed into that of another plan.
    reloading: tokio::sync::Mutex<()>,
    /// The control socket of an earlier supervisor with its path, until [`Handle::take_listener`] takes
    /// it.
    listener: Mutex<Option<(PathBuf, OwnedFd)>>,
    /// The manifests that can't be used as they stand on disk, with what is wrong with each.
    faulty: Mutex<Vec<FaultyManifest>>,
    measured: Measured,
    /// The host that makes real processes; `None` on a fake host.
    native: Option<Arc<NativeHost>>,
    pools: Pools,
    /// The host of tasks, where it is not the host of services.
    task_host: TaskHost,
}

impl Handle {
    /// Brings a plan up and starts the services that start with it. It must be called within a tokio
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
            runners: options.runners,
            ..RuntimeBuilder::new(tree_state, host, output)
        };
        made.start(options.sample_interval).await
    }

    /// Brings a plan up on a host of the caller's, for tests of the tree without processes; `recorder`
    /// records every step and event.
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

    /// Brings a plan up on a host and with runners of the caller's, as [`Handle::start_on`] does.
    pub async fn start_with(
        plan: Plan,
        host: Arc<dyn Host>,
        runners: BTreeMap<Name, Arc<dyn Runner>>,
    ) -> Result<Handle, StartError> {
        let plan = Arc::new(plan);
        let tree_state = TreeState::new(Arc::clone(&plan), SystemTime::now()).map_err(StartError::Cycles)?;
        let output = Arc::new(OutputHub::new(None));
        let made = RuntimeBuilder { runners, ..RuntimeBuilder::new(tree_state, host, output) };
        made.start(SAMPLE_INTERVAL).await
    }

    /// The plan as it stands now, with everything that commands have added and removed.
    pub fn plan(&self) -> Arc<Plan> {
        self.tree_state(|tree_state| Arc::clone(tree_state.plan()))
    }

    /// The dependency graph of the plan as it stands now.
    pub fn graph(&self) -> Arc<Graph> {
        self.tree_state(|tree_state| Arc::clone(tree_state.graph()))
    }

    /// Carries a command out. Returns its answer when the command is done, or the reason why it was
    /// refused.
    pub async fn command(&self, command: impl Into<IssuedCommand>) -> Result<Answer, Denial> {
        let (reply, answer) = oneshot::channel();
        let gone =
            || Denial { code: DenialCode::Internal, reason: "the tree is gone".to_owned(), hint: None };
        self.inner.root.cast(SupervisorMsg::Command(command.into(), reply)).map_err(|_| gone())?;
        let answer = answer.await.unwrap_or_else(|_| Err(gone()));
        // A caller that gets the answer may rely on it being in the store.
        self.written().await;
        let well = self.inner.context.ledger.as_ref().is_none_or(|ledger| ledger.is_well());
        answer.map(|answer| self.shown(if well { answer } else { unwritten(answer) }))
    }

    /// Shortens the names in an answer for people, where the short name means only one service.
    fn shown(&self, mut answer: Answer) -> Answer {
        self.tree_state(|tree_state| {
            for result in &mut answer.results {
                result.name = tree_state.shown_text(&result.name);
            }
        });
        answer
    }

    /// Returns when everything that has happened so far is in the store, or when that takes too long.
    /// Returns at once where there is no store.
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

    /// Stops services and takes them out of the tree; selected groups go with everything below them.
    /// Returns when they are removed, or says why not.
    pub async fn remove(&self, select: Selector) -> Result<Answer, Denial> {
        self.command(Command::Remove { select }).await
    }

    /// The status of the daemon, the machine, all instances and all groups.
    pub fn status(&self) -> StatusReport {
        self.status_of(|_| true)
    }

    /// The same report as [`Handle::status`], with only the instances that `wanted` accepts.
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

    /// Takes the control socket that an earlier supervisor listened on at this path and that the keeper
    /// has held. Connections made meanwhile wait in its backlog.
    pub fn take_listener(&self, path: &Path) -> Option<UnixListener> {
        let held = self.inner.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        held.filter(|(at, _)| at == path).map(|(_, listener)| UnixListener::from(listener))
    }

    /// Has the keeper hold the control socket for later supervisors. Does nothing without a keeper.
    pub fn hold_listener(&self, listener: &UnixListener, path: &Path) {
        if let (Some(native), Ok(copy), Some(path)) =
            (&self.inner.native, listener.try_clone(), path.to_str())
        {
            native.hold(takeover::LISTENER, path.to_owned(), Some(copy.into()));
        }
    }

    /// The manifests that can't be used as they are.
    pub fn faulty(&self) -> Vec<FaultyManifest> {
        self.inner.faulty.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the list of manifests that can't be used as they are, which `status` shows.
    pub fn tell_faulty(&self, faulty: Vec<FaultyManifest>) {
        *self.inner.faulty.lock().unwrap_or_else(PoisonError::into_inner) = faulty;
    }

    /// The status of a supervisor and everything below it; without a `group`, of the root. Returns
    /// `None` for a group that does not exist. This is OTP's `which_children` and `count_children` in
    /// one.
    pub fn tree(&self, group: Option<&Name>) -> Option<TreeStatus> {
        self.tree_state(|tree_state| tree_state.tree(group))
    }

    /// Calls a function with the tree state, which is the fold of all events so far.
    pub fn tree_state<T>(&self, look: impl FnOnce(&TreeState) -> T) -> T {
        self.inner.context.log.tree_state(look)
    }

    /// A reader of the events from this number on; 0 stands for all that are kept.
    pub fn events_from(&self, seq: u64) -> EventReader {
        self.inner.context.log.read_from(seq)
    }

    /// A reader of the events from now on.
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
    /// A slow callback delays nobody else; it misses the events that are dropped from the log before it
    /// reads them.
    pub fn on_event(&self, mut callback: impl FnMut(&Event) + Send + 'static) -> JoinHandle<()> {
        let mut events = self.events();
        tokio::spawn(async move {
            loop {
                if let NextEvent::Event(event) = events.next().await {
                    callback(&event);
                    if matches!(event.fact, Fact::Tree(TreeFact::ShutdownDone)) {
                        return;
                    }
                }
            }
        })
    }

    /// The hub of the output that the processes print.
    pub fn output(&self) -> &Arc<OutputHub> {
        &self.inner.output
    }

    /// A receiver of the latest sample of resources and of the samples after it.
    pub fn samples(&self) -> watch::Receiver<Option<Arc<Sample>>> {
        self.inner.measured.latest.subscribe()
    }

    /// The measurements of the last `since`, of the machine or of the instance that `of` names as it is
    /// printed. Measurements are kept for a day, also those of instances that are removed.
    pub fn resources(&self, of: Option<&str>, since: Duration) -> ResourceHistory {
        let now = monitor::now(&self.inner.context);
        self.inner.measured.history.lock().unwrap_or_else(PoisonError::into_inner).since(of, since, now)
    }

    /// The default worker pool, for one-shot commands.
    pub fn tasks(&self) -> &Tasks {
        self.inner.pools.commands()
    }

    /// The pools of this program, for commands and for blocking functions.
    pub fn pools(&self) -> &Pools {
        &self.inner.pools
    }

    /// The figures of the worker pool, the cache, the machine and the tasks that have run.
    pub async fn stats(&self) -> Result<Stats, Denial> {
        let (pool, performance) = self.tasks().snapshot().await?;
        let (scaler, thresholds) = self.tasks().scaler().await?;
        let StatusReport { daemon, machine, services, .. } = self.status();
        let now = monitor::now(&self.inner.context);
        let trends = self.inner.measured.history.lock().unwrap_or_else(PoisonError::into_inner).trends(now);
        let exceeded = crate::present::machine::exceeded(&thresholds, machine.as_ref());
        let thresholds = Thresholds { exceeded, ..thresholds };
        let running = services.iter().filter(|row| row.pid.is_some()).count();
        Ok(Stats {
            daemon,
            cache: self.tasks().cache().await?,
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

    /// Begins to take everything down, dependents first. [`Handle::wait_down`] waits for the end.
    pub fn begin_shutdown(&self, cause: &str) {
        // Sending fails only when the root, and so the whole tree, has ended already.
        let _ = self.inner.root.cast(SupervisorMsg::Shutdown(cause.to_owned()));
    }

    /// Kills everything at once with SIGKILL, including hooks.
    pub fn kill_all(&self) {
        let _ = self.inner.root.cast(SupervisorMsg::KillAll);
        self.inner.context.no_hooks.send_replace(true);
    }

    /// The names of the hooks that are running, for people.
    pub fn running_hooks(&self) -> Vec<String> {
        self.inner.context.hooks.borrow().iter().map(|kept| kept.name.clone()).collect()
    }

    /// The longest time that the running hooks may still take.
    pub fn hooks_may_take(&self) -> Duration {
        let limits = hooks::longest(&self.inner.context.hooks.borrow());
        self.stop_time_left().map_or(limits, |left| left.min(limits))
    }

    /// The time that is left for the stop of the whole tree; `None` before it has begun, or where it
    /// has no limit.
    fn stop_time_left(&self) -> Option<Duration> {
        let now = self.uptime();
        self.tree_state(|tree_state| {
            let until = tree_state.shutting_down_since()?.saturating_add(tree_state.plan().stop.tree?);
            Some(until.saturating_sub(now))
        })
    }

    /// Returns when a shutdown has ended every service. Hooks may still run; [`Handle::wait_down`]
    /// waits for them too.
    pub async fn wait_stopped(&self) -> Result<(), TreeBroke> {
        let mut down = self.inner.down.clone();
        down.wait_for(|down| *down).await.map(drop).map_err(|_| TreeBroke)
    }

    /// The instances, with their pids, that still have a process after a shutdown: SIGKILL has not
    /// ended them.
    pub fn stuck(&self) -> Vec<(String, Option<u32>)> {
        self.tree_state(|tree_state| {
            let left = tree_state.entries().iter().filter(|entry| entry.state.has_process());
            left.map(|entry| (tree_state.shown(&entry.id), entry.pid)).collect()
        })
    }

    /// The instances of whose processes not all are known any more after a stop, each with the number
    /// of processes that had shed their marks.
    pub fn lost_sight(&self) -> Vec<(String, usize)> {
        self.tree_state(|tree_state| {
            let lost = tree_state.entries().iter().filter(|entry| !entry.state.has_process());
            lost.filter_map(|entry| Some((tree_state.shown(&entry.id), entry.lost_sight?))).collect()
        })
    }

    /// Returns when a shutdown is done and nothing of the tree is left. `Err` means that the tree ended
    /// by a fault of its own; what it left behind is ended all the same.
    pub async fn wait_down(&self) -> Result<(), TreeBroke> {
        let ended = self.wait_stopped().await;
        // Each hook has a time limit of its own.
        let mut hooks = self.inner.context.hooks.subscribe();
        let done = async { hooks.wait_for(Vec::is_empty).await.map(drop) };
        match self.stop_time_left() {
            None => drop(done.await),
            Some(left) => {
                if tokio::time::timeout(left, done).await.is_err() {
                    let hooks = self.running_hooks().join(", ");
                    tracing::warn!(
                        "hooks killed, since the stop timeout of the whole tree has passed: {hooks}"
                    );
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

    /// Asks all tasks to end, and kills those that do not end in time.
    async fn end_tasks(&self) {
        let pools = &self.inner.pools;
        pools.close_blocking();
        let all = pools.of_commands();
        let close = async |at_once: bool| {
            // Every pool is told to close at once; only then is the end of each waited for.
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

    /// Takes everything down, dependents first, and ends the actors of the tree.
    pub async fn shutdown(&self) -> Result<(), TreeBroke> {
        self.begin_shutdown("the program asked");
        let ended = self.wait_down().await;
        let _ = self.inner.root.stop_and_wait(None, None).await;
        ended
    }

    /// Whether a process belongs to a service of this tree.
    pub fn is_of_service(&self, pid: u32) -> bool {
        self.inner.native.as_ref().is_some_and(|host| host.is_of_tree(pid))
    }

    /// The host, where it makes real processes.
    pub fn native_host(&self) -> Option<&Arc<NativeHost>> {
        self.inner.native.as_ref()
    }
}

/// Notes in an answer that the store could not be written.
fn unwritten(mut answer: Answer) -> Answer {
    for result in answer.results.iter_mut().filter(|result| result.ok) {
        result.message.push_str("; not recorded, since the store can't be written: the keeper holds it");
    }
    answer
}
