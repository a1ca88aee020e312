//! A worker of the pool: it runs one task at a time, and tells the pool what becomes of it.
//!
//! What a task leaves behind is ended with it. Should the worker break, its guard kills the process; the
//! pool hears of it as its supervisor.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::JoinHandle;

use super::{PoolMsg, TaskContext};
use crate::actors::tell;
use crate::decide::pool::{RunOutcome, WorkerId};
use crate::decide::progress;
use crate::host::collect::{Collector, holding, reading};
use crate::host::progress::{DESCRIPTOR, ProgressPipe};
use crate::host::{Host, HostEvent, HostEventSink, OutputTarget, ProcessKey, SpawnOrder, env};
use crate::model::task::{ProgressReport, ResourceUsage, TaskId, TaskInput, TaskSpec};
use crate::model::{EnvSpec, Exit, SpawnFailure};

/// What a worker is told.
pub(super) enum WorkerMsg {
    /// Run this.
    Run(Box<TaskRun>),
    /// SIGTERM to all of its tree.
    Ask(TaskId),
    /// SIGKILL.
    Kill(TaskId),
    /// SIGSTOP.
    Halt(TaskId),
    /// SIGCONT.
    Continue(TaskId),
    /// The host's news.
    News(HostEvent),
    /// Its task may have said how far it has come.
    Progress,
}

/// One run of a task.
pub(super) struct TaskRun {
    pub(super) task: TaskId,
    pub(super) spec: Arc<TaskSpec>,
    pub(super) collector: Arc<Collector>,
    /// A lower priority than its own, since there is much to do.
    pub(super) nice: Option<i32>,
}

/// What came of a run.
#[derive(Debug, Clone, Default)]
pub struct RunReport {
    pub(super) exit: Option<Exit>,
    pub(super) pid: Option<u32>,
    pub(super) usage: Option<ResourceUsage>,
    pub(super) duration: Duration,
    pub(super) error: Option<String>,
    /// Why there was no process.
    pub(super) failure: Option<SpawnFailure>,
}

pub(super) struct Worker;

pub(super) struct WorkerState {
    id: WorkerId,
    pool: ActorRef<PoolMsg>,
    task_context: Arc<TaskContext>,
    current: Option<Current>,
    /// By which its tasks say how far they have come; from the first one on.
    progress: Option<Listening>,
}

/// A progress pipe, and who waits for something in it.
struct Listening {
    pipe: ProgressPipe,
    waits: JoinHandle<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.waits.abort();
    }
}

/// What tasks say of their progress is read this often at most.
const READING: Duration = Duration::from_millis(50);

/// What it runs at the moment.
struct Current {
    host: Arc<dyn Host>,
    task: TaskId,
    key: ProcessKey,
    collector: Arc<Collector>,
    report: RunReport,
    process: Process,
    /// Told to the host's thread when this is dropped.
    given_up: Arc<AtomicBool>,
}

/// How its process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    /// It is being made. The host knows nothing yet that could be ended: that is done then.
    Making(Option<Ending>),
    Runs,
    Gone,
}

/// How a process is to be ended, the gentler way first.
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
        // Only when the worker broke. One that is being made is ended by its first news.
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
            // Made for a worker that is gone: nobody else would end it.
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

    /// The task's end of the progress pipe, in which nothing is left of others. Without one it has no way
    /// to say anything, and runs all the same.
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
            // Somebody outside of the tree that has ended holds the other end: nobody's word.
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
            tell(&self.pool, PoolMsg::Progress(self.id, current.task, said));
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
                current.report.pid = Some(pid);
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
                    // Its result does not wait for what it has left behind, but the worker does.
                    report.error = Some("it left processes behind, which were ended".to_owned());
                    current.host.kill(key);
                } else {
                    self.ended();
                }
            }
            HostEvent::TreeGone { key } if key == current.key => self.ended(),
            // Of an earlier run, or of no account.
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
            let (task, report) = (current.task, std::mem::take(&mut current.report));
            drop(current);
            self.tell_end(task, outcome, report);
        }
    }

    fn tell_end(&self, task: TaskId, outcome: RunOutcome, report: RunReport) {
        tell(&self.pool, PoolMsg::Done(self.id, task, outcome, Box::new(report)));
    }
}

/// What a task is to read, opened. In words, why that can't be.
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
