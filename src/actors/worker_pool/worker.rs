//! A worker of the pool: it runs one task at a time, and reports to the pool.
//!
//! Processes that a task leaves behind are killed. If the worker crashes, dropping its state kills
//! the task's process, and the pool hears of the crash as the worker's supervisor.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::JoinHandle;
use tracing::Span;
use tracing::field::Empty;

use super::{PoolMsg, TaskContext};
use crate::actors::tell;
use crate::decide::pool::{RunOutcome, WorkerId};
use crate::decide::progress;
use crate::host::collect::{Collector, holding, reading};
use crate::host::progress::{DESCRIPTOR, ProgressPipe};
use crate::host::{Host, HostEvent, HostEventSink, OutputTarget, ProcessKey, SpawnOrder, env};
use crate::model::task::{ProgressReport, ResourceUsage, TaskId, TaskInput, TaskSpec};
use crate::model::{EnvSpec, Exit, SpawnFailure};

/// A message to a worker.
pub(super) enum WorkerMsg {
    /// Run this task.
    Run(Box<TaskRun>),
    /// Send SIGTERM to the task's process tree.
    Ask(TaskId),
    /// Send SIGKILL to the task's process tree.
    Kill(TaskId),
    /// Send SIGSTOP to the task's process tree.
    Halt(TaskId),
    /// Send SIGCONT to the task's process tree.
    Continue(TaskId),
    /// An event of the host about a process.
    News(HostEvent),
    /// The task may have reported progress.
    Progress,
}

/// One run of a task.
pub(super) struct TaskRun {
    pub(super) task: TaskId,
    pub(super) spec: Arc<TaskSpec>,
    pub(super) collector: Arc<Collector>,
    /// A higher nice value than usual, while the CPU is busy.
    pub(super) nice: Option<i32>,
}

/// The report of one run.
#[derive(Debug, Clone, Default)]
pub(crate) struct RunReport {
    pub(super) exit: Option<Exit>,
    pub(super) pid: Option<u32>,
    pub(super) usage: Option<ResourceUsage>,
    pub(super) duration: Duration,
    pub(super) error: Option<String>,
    /// Why no process could be made.
    pub(super) failure: Option<SpawnFailure>,
}

pub(super) struct Worker;

pub(super) struct WorkerState {
    id: WorkerId,
    pool: ActorRef<PoolMsg>,
    task_context: Arc<TaskContext>,
    current: Option<Current>,
    /// The pipe by which tasks report progress, from the first task on.
    progress: Option<Listening>,
}

/// A progress pipe, and the task that waits for it to become readable.
struct Listening {
    pipe: ProgressPipe,
    waits: JoinHandle<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.waits.abort();
    }
}

/// How long to wait between two reads of progress, at least.
const READING: Duration = Duration::from_millis(50);

/// The run that is under way.
struct Current {
    host: Arc<dyn Host>,
    task: TaskId,
    key: ProcessKey,
    collector: Arc<Collector>,
    report: RunReport,
    process: Process,
    /// Tells the host's thread that this run was dropped.
    given_up: Arc<AtomicBool>,
    /// The run, for those who follow `tracing`.
    span: Span,
}

/// The state of the run's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    /// The process is being made, and the host can't end it yet. The ending, if any, is carried out
    /// once it runs.
    Making(Option<Ending>),
    Runs,
    Gone,
}

/// How to end a process, the gentler way first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    Ask,
    Kill,
}

impl Current {
    fn end(&mut self, how: Ending) {
        match (&mut self.process, how) {
            (Process::Making(then), how) => *then = (*then).max(Some(how)),
            (Process::Runs, Ending::Ask) => self.host.signal(self.key, 15),
            (Process::Runs, Ending::Kill) => self.host.kill(self.key),
            (Process::Gone, Ending::Ask | Ending::Kill) => {}
        }
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        self.collector.close();
        // The process still runs only after a crash of the worker. One that is being made is killed
        // when it is reported.
        self.given_up.store(true, Ordering::SeqCst);
        if self.process == Process::Runs {
            self.host.kill(self.key);
        }
    }
}

impl Actor for Worker {
    type Msg = WorkerMsg;
    type State = WorkerState;
    type Arguments = (WorkerId, ActorRef<PoolMsg>, Arc<TaskContext>);

    async fn pre_start(
        &self,
        _myself: ActorRef<WorkerMsg>,
        (id, pool, task_context): Self::Arguments,
    ) -> Result<WorkerState, ActorProcessingErr> {
        Ok(WorkerState { id, pool, task_context, current: None, progress: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<WorkerMsg>,
        message: WorkerMsg,
        state: &mut WorkerState,
    ) -> Result<(), ActorProcessingErr> {
        let key_of = |task: TaskId| {
            let current = state.current.as_ref().filter(|current| current.task == task)?;
            Some((Arc::clone(&current.host), current.key))
        };
        match message {
            WorkerMsg::Run(job) => state.run(&myself, *job),
            WorkerMsg::News(news) => state.hear(news),
            WorkerMsg::Progress => state.hear_progress(),
            WorkerMsg::Ask(task) => state.end(task, Ending::Ask),
            WorkerMsg::Kill(task) => state.end(task, Ending::Kill),
            WorkerMsg::Halt(task) => {
                if let Some((host, key)) = key_of(task) {
                    host.pause(key);
                }
            }
            WorkerMsg::Continue(task) => {
                if let Some((host, key)) = key_of(task) {
                    host.resume(key);
                }
            }
        }
        Ok(())
    }
}

impl WorkerState {
    fn run(&mut self, myself: &ActorRef<WorkerMsg>, job: TaskRun) {
        let TaskRun { task, spec, collector, nice } = job;
        let failed = |error: String| RunReport { error: Some(error), ..RunReport::default() };
        let host = match self.task_context.host() {
            Ok(host) => host,
            Err(error) => {
                collector.close();
                let report = failed(format!("no process can be made: {error}"));
                return self.tell_end(task, RunOutcome::Shortage, report);
            }
        };
        let input = match input(&spec.input) {
            Ok(input) => input,
            Err(error) => {
                collector.close();
                return self.tell_end(task, RunOutcome::NotStarted, failed(error));
            }
        };
        let key = host.next_key();
        let (actor, ending) = (myself.clone(), Arc::clone(&host));
        let given_up = Arc::new(AtomicBool::new(false));
        let nobody = Arc::clone(&given_up);
        let news: HostEventSink = Arc::new(move |news| {
            let made = matches!(news, HostEvent::Spawned { .. });
            // The process was made for a worker that is gone: nobody else would end it.
            let heard = actor.cast(WorkerMsg::News(news)).is_ok() && !nobody.load(Ordering::SeqCst);
            if made && !heard {
                ending.kill(key);
            }
        });
        self.current = Some(Current {
            host: Arc::clone(&host),
            task,
            key,
            collector: Arc::clone(&collector),
            report: RunReport::default(),
            process: Process::Making(None),
            given_up,
            span: tracing::info_span!("task", %task, pid = Empty, outcome = Empty),
        });
        let extra = self.listen(myself);
        host.spawn(SpawnOrder {
            key,
            argv: spec.command.argv.clone(),
            dir: spec.dir.clone().unwrap_or_else(|| self.task_context.dir.clone()),
            env: self.environment(task, &spec, nice, extra.is_some()),
            input,
            extra,
            output: OutputTarget::Collect(collector),
            owner: None,
            keep: None,
            news,
        });
    }

    /// The task's end of the progress pipe, emptied of earlier reports. `None`: there is no pipe, and
    /// the task runs without reporting progress.
    fn listen(&mut self, myself: &ActorRef<WorkerMsg>) -> Option<Arc<OwnedFd>> {
        if let Some(listening) = &mut self.progress {
            listening.pipe.empty();
            return Some(listening.pipe.writer());
        }
        let pipe = ProgressPipe::new().map_err(|error| tracing::warn!(%error, "no progress pipe")).ok()?;
        let (readable, writer, actor) = (pipe.readable(), pipe.writer(), myself.clone());
        let waits = tokio::spawn(async move {
            while readable.ready().await.is_ok() && actor.cast(WorkerMsg::Progress).is_ok() {
                tokio::time::sleep(READING).await;
            }
        });
        self.progress = Some(Listening { pipe, waits });
        Some(writer)
    }

    fn hear_progress(&mut self) {
        let Some(current) = &self.current else {
            // A process outside of the ended task's tree holds the other end. Its reports belong to no
            // task.
            self.progress = None;
            return;
        };
        let Some(listening) = &mut self.progress else {
            return;
        };
        let mut said = ProgressReport::default();
        for line in listening.pipe.lines() {
            match progress::parse(&line) {
                Ok(report) => progress::fold(&mut said, report),
                Err(why) => tracing::debug!(task = %current.task, "its progress: {why}"),
            }
        }
        if said != ProgressReport::default() {
            tell(&self.pool, PoolMsg::Progress(current.task, said));
        }
    }

    fn environment(
        &self,
        task: TaskId,
        spec: &TaskSpec,
        nice: Option<i32>,
        has_progress: bool,
    ) -> env::EnvRecipe {
        let own = |name: &String| spec.env.iter().any(|(other, _)| other == name);
        let common = spec.common_env.iter().filter(|(name, _)| !own(name));
        let set = common.chain(&spec.env).cloned().collect();
        let env = EnvSpec { clear: spec.env_clear, set, ..EnvSpec::default() };
        let mut given = vec![("REGROW_TASK", task.to_string())];
        if has_progress {
            given.push(("REGROW_PROGRESS_FD", DESCRIPTOR.to_string()));
        }
        if let Some(socket) = &self.task_context.socket {
            given.push(("REGROW_SOCKET", socket.display().to_string()));
        }
        env::EnvRecipe {
            inherited: Arc::clone(&self.task_context.inherited),
            of: env::EnvFor::Task(env, nice),
            given,
            vault: Arc::clone(&self.task_context.vault),
        }
    }

    fn end(&mut self, task: TaskId, how: Ending) {
        if let Some(current) = self.current.as_mut().filter(|current| current.task == task) {
            current.end(how);
        }
    }

    fn hear(&mut self, news: HostEvent) {
        let Some(current) = &mut self.current else {
            return;
        };
        match news {
            HostEvent::Spawned { key, pid, .. } if key == current.key => {
                current.report.pid = pid;
                current.span.record("pid", pid);
                let before = std::mem::replace(&mut current.process, Process::Runs);
                if let Process::Making(Some(how)) = before {
                    current.end(how);
                }
                tell(&self.pool, PoolMsg::Started(self.id, current.task, pid));
            }
            HostEvent::SpawnFailed { key, failure } if key == current.key => {
                current.process = Process::Gone;
                let outcome =
                    if failure.is_transient() { RunOutcome::Shortage } else { RunOutcome::NotStarted };
                self.over(outcome, |report| {
                    report.error = Some(failure.message.clone());
                    report.failure = Some(failure);
                });
            }
            HostEvent::Exited { key, exit, remains, usage, lasted, .. } if key == current.key => {
                let report = &mut current.report;
                (report.exit, report.usage) = (Some(exit), usage);
                report.duration = lasted;
                current.collector.close();
                if remains {
                    // The result does not wait for the processes left behind, but the worker does.
                    report.error = Some("it left processes behind, which were ended".to_owned());
                    current.host.kill(key);
                } else {
                    self.ended();
                }
            }
            HostEvent::TreeGone { key } if key == current.key => self.ended(),
            // Events of an earlier run, and events without meaning for a task.
            HostEvent::Renewed { .. }
            | HostEvent::Spawned { .. }
            | HostEvent::SpawnFailed { .. }
            | HostEvent::Exited { .. }
            | HostEvent::TreeGone { .. }
            | HostEvent::LogMatched { .. }
            | HostEvent::Paused { .. }
            | HostEvent::KeptElsewhere { .. }
            | HostEvent::ForksAway { .. }
            | HostEvent::LostSight { .. }
            | HostEvent::Unkept { .. } => {}
        }
    }

    fn ended(&mut self) {
        let Some(current) = &mut self.current else {
            return;
        };
        current.process = Process::Gone;
        let success = current.report.exit == Some(Exit::SUCCESS);
        self.over(if success { RunOutcome::Success } else { RunOutcome::Failure }, |_| {});
    }

    fn over(&mut self, outcome: RunOutcome, complete: impl FnOnce(&mut RunReport)) {
        self.hear_progress();
        if let Some(mut current) = self.current.take() {
            complete(&mut current.report);
            current.span.record("outcome", tracing::field::debug(outcome));
            let (task, report) = (current.task, std::mem::take(&mut current.report));
            drop(current);
            self.tell_end(task, outcome, report);
        }
    }

    fn tell_end(&self, task: TaskId, outcome: RunOutcome, report: RunReport) {
        tell(&self.pool, PoolMsg::Done(self.id, task, outcome, Box::new(report)));
    }
}

/// Opens the input of a task. An error says why that failed.
fn input(input: &TaskInput) -> Result<Option<OwnedFd>, String> {
    if let TaskInput::File(path) = input {
        return reading(path).map(Some).map_err(|error| format!("its input {}: {error}", path.display()));
    }
    let bytes = input.bytes().map_err(|error| format!("its input is not base64: {error}"))?;
    match bytes {
        Some(bytes) if !bytes.is_empty() => {
            holding(&bytes).map(Some).map_err(|error| format!("its input: {error}"))
        }
        _ => Ok(None),
    }
}
