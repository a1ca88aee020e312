//! The WorkerPool: it accepts tasks, has its workers run them, and keeps their results for a while.
//!
//! [`Pool`] decides what to do, and the cache (`cache`) which tasks need not run at all. This actor
//! starts workers (each linked to it), passes requests on to them, and informs those who wait for a
//! task, or for one that runs the same command. Its own handlers do not wait for a task.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{oneshot, watch};

use self::worker::{RunReport, TaskRun, Worker, WorkerMsg};
use super::system::Registered;
use super::timer::Timer;
use crate::actors::worker_pool::rules::{BURST, LARGEST_KEPT, LOW_PRIORITY};
use crate::decide::cache::Flight;
use crate::decide::ledger::{KeptResult, Ledger};
use crate::decide::pool::{Pool, PoolEffect, PoolInput, PoolRefusal, TaskTerms, WorkerId};
use crate::decide::progress;
use crate::decide::task_metrics::TaskMetrics;
use crate::host::collect::{CaptureLimit, Collector};
use crate::host::waiting_tasks::WaitingTasks;
use crate::model::sample::Sample;
use crate::model::task::{ProgressReport, TaskEnd, TaskId, TaskProgress, TaskSpec, TaskState, TaskStatus};
use crate::model::{Exit, Stream};
use crate::sys::memory;

pub(crate) mod cache;
mod lasting;
mod messages;
mod outcome;
mod rules;
mod worker;

pub(crate) use lasting::TaskPersistence;
use lasting::{kept, millis};
use messages::CacheFlight;
pub(crate) use messages::HostFactory;
pub(crate) use messages::{CacheAnswer, CacheMsg, PoolMsg, Submitted};
pub use messages::{PoolSnapshot, TaskContext, TaskLifetime};
pub(crate) use outcome::{CacheKey, key_of};
pub use outcome::{Finished, Running, Stage, Ticket};
pub use rules::{KeepResults, ScalingMode, TaskRules};

fn terms_of(spec: &TaskSpec) -> TaskTerms {
    TaskTerms {
        priority: spec.priority,
        timeout: spec.timeout,
        grace: spec.grace,
        retries: spec.retries,
        retry_delay: spec.retry_delay,
    }
}

#[derive(Default)]
pub(crate) struct WorkerPool;

pub(crate) struct PoolArgs {
    pub(crate) rules: TaskRules,
    pub(crate) task_context: Arc<TaskContext>,
    pub(crate) cache: Registered<CacheMsg>,
    pub(crate) samples: watch::Receiver<Option<Arc<Sample>>>,
    /// Whether results for later commands are kept beyond this supervisor.
    pub(crate) keeps_results: bool,
    /// Keeps tasks beyond this supervisor, with what an earlier one has left.
    pub(crate) lasting: TaskPersistence,
}

pub(crate) struct PoolState {
    rules: TaskRules,
    task_context: Arc<TaskContext>,
    cache: Registered<CacheMsg>,
    samples: watch::Receiver<Option<Arc<Sample>>>,
    keeps_results: bool,
    /// The results that tasks make for everybody who asks for them.
    flights: HashMap<CacheFlight, Sharing>,
    /// Keeps finished tasks beyond this supervisor.
    over: Option<Arc<dyn Ledger>>,
    /// Keeps unfinished tasks beyond this supervisor.
    waiting: Option<Arc<WaitingTasks>>,
    /// When the task metrics were last stored, and whether they have changed since.
    tally_kept: Option<Duration>,
    tally_changed: bool,
    pool: Pool,
    workers: HashMap<WorkerId, ActorRef<WorkerMsg>>,
    records: BTreeMap<TaskId, Record>,
    /// The finished tasks, in the order in which they ended, with the time of their end.
    finished: VecDeque<(Duration, TaskId)>,
    wait_empty: Vec<oneshot::Sender<()>>,
    metrics: TaskMetrics,
    timer: Timer,
    /// How many tasks have finished since memory was last returned to the kernel.
    ended: usize,
    /// Effects that are still to be carried out.
    effects: Vec<PoolEffect>,
}

/// How a result is shared.
enum Sharing {
    /// A task makes it, and these wait for it.
    Flying { joined: Vec<TaskId> },
    /// It is there. The cache has yet to hear of it, and may still say of a task that it joins.
    Landed(Arc<Finished>),
}

struct Record {
    spec: Arc<TaskSpec>,
    lives: TaskLifetime,
    submitted: SystemTime,
    /// When its last run began, on the tree's clock.
    started: Option<Duration>,
    pid: Option<u32>,
    attempts: u32,
    /// How many runs earlier supervisors have made.
    earlier: u32,
    /// The progress that its last run has reported.
    progress: Option<ProgressReport>,
    /// The task's part in the cache, if it makes a result for others or waits for one.
    flight: Option<Flight<CacheKey>>,
    /// Whether the task waits for another one that runs the same command.
    joined: bool,
    report: Option<RunReport>,
    stage: watch::Sender<Stage>,
}

impl Record {
    fn new(spec: TaskSpec, submitted: SystemTime, stage: Stage) -> Record {
        Record {
            submitted,
            lives: TaskLifetime::OnItsOwn,
            started: None,
            pid: None,
            attempts: 0,
            earlier: 0,
            progress: None,
            flight: None,
            joined: false,
            report: None,
            stage: watch::Sender::new(stage),
            spec: Arc::new(spec),
        }
    }
}

impl Actor for WorkerPool {
    type Msg = PoolMsg;
    type State = PoolState;
    type Arguments = PoolArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<PoolMsg>,
        args: PoolArgs,
    ) -> Result<PoolState, ActorProcessingErr> {
        let PoolArgs { rules, task_context, cache, samples, keeps_results, lasting } = args;
        let TaskPersistence { over, waiting, left, life } = lasting;
        let mut state = PoolState {
            pool: Pool::new(rules.size),
            rules,
            task_context,
            cache,
            samples,
            keeps_results,
            flights: HashMap::new(),
            over,
            waiting,
            tally_kept: None,
            tally_changed: false,
            workers: HashMap::new(),
            records: BTreeMap::new(),
            finished: VecDeque::new(),
            wait_empty: Vec::new(),
            metrics: TaskMetrics::default(),
            timer: Timer::default(),
            ended: 0,
            effects: Vec::new(),
        };
        state.restore(left, life);
        state.carry_out(&myself).await;
        state.after(&myself);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<PoolMsg>,
        message: PoolMsg,
        state: &mut PoolState,
    ) -> Result<(), ActorProcessingErr> {
        state.take(message);
        state.carry_out(&myself).await;
        state.after(&myself);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<PoolMsg>,
        event: SupervisionEvent,
        state: &mut PoolState,
    ) -> Result<(), ActorProcessingErr> {
        let (gone, why) = match event {
            SupervisionEvent::ActorFailed(actor, error) => (actor, error.to_string()),
            SupervisionEvent::ActorTerminated(actor, _, reason) => (actor, reason.unwrap_or_default()),
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => return Ok(()),
        };
        let worker = state.workers.iter().find(|(_, actor)| actor.get_id() == gone.get_id());
        if let Some(worker) = worker.map(|(worker, _)| *worker) {
            tracing::error!(worker = worker.0, "a worker broke: {why}");
            state.workers.remove(&worker);
            state.step(PoolInput::WorkerDied(worker));
            state.carry_out(&myself).await;
            state.after(&myself);
        }
        Ok(())
    }
}

impl PoolState {
    fn now(&self) -> Duration {
        self.task_context.clock.now()
    }

    fn step(&mut self, input: PoolInput) {
        // A refusal means that the input came late, for a task that is over.
        let _ = self.pool.step(self.now(), input, &mut self.effects);
    }

    fn take(&mut self, message: PoolMsg) {
        match message {
            PoolMsg::Submit(tasks, who, lives, answer) => {
                // The client may be gone.
                let _ = answer.send(self.submit(tasks, &who, lives));
            }
            PoolMsg::Landed(flight) => {
                if let Some(Sharing::Landed(_)) = self.flights.get(&flight) {
                    self.flights.remove(&flight);
                }
            }
            PoolMsg::CacheIsNew => {
                self.flights.retain(|_, sharing| matches!(sharing, Sharing::Flying { .. }));
                for flight in self.flights.keys() {
                    let _ = self.cache.send(CacheMsg::Flies(flight.clone()));
                }
            }
            PoolMsg::Follow(task, answer) => {
                let _ = answer.send(self.records.get(&task).map(|record| record.stage.subscribe()));
            }
            PoolMsg::List(answer) => {
                let _ =
                    answer.send(self.records.iter().map(|(id, record)| self.status(*id, record)).collect());
            }
            PoolMsg::Status(task, answer) => {
                let _ = answer.send(self.records.get(&task).map(|record| self.status(task, record)));
            }
            PoolMsg::Directive(input, answer) => {
                let _ = answer.send(self.directive(input));
            }
            PoolMsg::Cleanup(answer) => {
                let finished = std::mem::take(&mut self.finished);
                for (_, task) in &finished {
                    self.records.remove(task);
                }
                if let Some(over) = &self.over {
                    over.forget_tasks();
                }
                let _ = answer.send(finished.len());
            }
            PoolMsg::Stand(answer) => {
                // This is asked with each sample. Expired results are dropped then, since they may hold
                // files.
                let _ = self.cache.send(CacheMsg::Expire);
                let (snapshot, size) = (self.pool.snapshot(), self.pool.size());
                let _ = answer.send(PoolSnapshot { snapshot, size, performance: self.metrics.performance() });
            }
            PoolMsg::Left(answer) => {
                let snapshot = self.pool.snapshot();
                let waits = |record: &&Record| matches!(*record.stage.borrow(), Stage::Waiting);
                let bound =
                    self.records.values().filter(|record| record.lives == TaskLifetime::WithItsClient);
                let (bound, waiting) = (bound.filter(waits).count(), snapshot.queued + snapshot.retrying);
                let _ = answer.send((snapshot.busy + bound, waiting.saturating_sub(bound)));
            }
            PoolMsg::Empty(answer) => self.wait_empty.push(answer),
            PoolMsg::Started(worker, task, pid) => {
                let now = self.now();
                if let Some(record) = self.records.get_mut(&task) {
                    (record.pid, record.started) = (pid, Some(now));
                }
                self.step(PoolInput::Started(worker, task));
            }
            PoolMsg::Progress(task, report) => {
                // A refused report comes late: a worker reports progress before the end of its task.
                let _ = self.hear_progress(task, report);
            }
            PoolMsg::Report(task, report, answer) => {
                let _ = answer.send(self.hear_progress(task, report));
            }
            PoolMsg::Done(worker, task, outcome, report) => {
                if let Some(record) = self.records.get_mut(&task) {
                    record.pid = None;
                    record.report = Some(*report);
                }
                self.step(PoolInput::Done(worker, task, outcome));
            }
            PoolMsg::Timer => {
                self.timer.rang();
                self.step(PoolInput::Tick);
            }
        }
    }

    fn submit(
        &mut self,
        tasks: Vec<Submitted>,
        who: &str,
        lives: TaskLifetime,
    ) -> Result<Vec<Ticket>, PoolRefusal> {
        let submitted = tasks.first().map_or(SystemTime::UNIX_EPOCH, |task| task.at);
        let tickets = self.admit(tasks)?;
        // Stored before the answer is sent: an accepted task is run, even if this daemon dies.
        for Ticket { id, .. } in &tickets {
            if let Some(record) = self.records.get_mut(id) {
                record.lives = lives;
            }
            if lives == TaskLifetime::OnItsOwn
                && let Some(record) = self.records.get(id)
                && !matches!(*record.stage.borrow(), Stage::Over(_))
            {
                let spec = Arc::clone(&record.spec);
                self.write_down(|waiting| waiting.taken(*id, who, &spec, millis(submitted)));
            }
        }
        Ok(tickets)
    }

    /// Accepts tasks, all or none. Tasks whose results are there finish at once.
    fn admit(&mut self, tasks: Vec<Submitted>) -> Result<Vec<Ticket>, PoolRefusal> {
        let mut fresh = Vec::with_capacity(tasks.len());
        let (mut run, mut hits) = (Vec::new(), Vec::new());
        // The flights that tasks of this call lead, and whether the cache knows that.
        let mut led: Vec<(CacheFlight, bool)> = Vec::new();
        for Submitted { id, spec, at, cached } in tasks {
            let mut record = Record::new(spec, at, Stage::Waiting);
            let (flight, is_known) = match cached {
                CacheAnswer::NotCached => (None, false),
                CacheAnswer::Hit(finished) => {
                    hits.push((id, finished));
                    fresh.push((id, record));
                    continue;
                }
                CacheAnswer::Leads(flight) => (Some(flight), true),
                CacheAnswer::Joins(flight) => (Some(flight), false),
            };
            // What the pool knows counts: whoever made the result may be over, or was refused.
            match flight.as_ref().and_then(|flight| self.flights.get(flight)) {
                Some(Sharing::Landed(finished)) => hits.push((id, Arc::clone(finished))),
                Some(Sharing::Flying { .. }) => (record.flight, record.joined) = (flight, true),
                None => match flight {
                    Some(flight) if led.iter().any(|(other, _)| *other == flight) => {
                        (record.flight, record.joined) = (Some(flight), true);
                    }
                    flight => {
                        run.push((id, terms_of(&record.spec)));
                        led.extend(flight.clone().map(|flight| (flight, is_known)));
                        record.flight = flight;
                    }
                },
            }
            fresh.push((id, record));
        }
        if let Err(refusal) = self.pool.submit(&run, &mut self.effects) {
            // No task runs, so none makes a result.
            for (flight, _) in led {
                let _ = self.cache.send(CacheMsg::GivenUp(flight));
            }
            return Err(refusal);
        }
        for (flight, is_known) in led {
            if !is_known {
                let _ = self.cache.send(CacheMsg::Flies(flight.clone()));
            }
            self.flights.insert(flight, Sharing::Flying { joined: Vec::new() });
        }
        for (id, record) in fresh.iter().filter(|(_, record)| record.joined) {
            if let Some(Sharing::Flying { joined }) =
                record.flight.as_ref().and_then(|flight| self.flights.get_mut(flight))
            {
                joined.push(*id);
            }
        }
        let ticket = |(id, record): &(TaskId, Record)| Ticket { id: *id, stages: record.stage.subscribe() };
        let tickets = fresh.iter().map(ticket).collect();
        self.records.extend(fresh);
        for (id, finished) in hits {
            self.finish(id, finished);
        }
        Ok(tickets)
    }

    fn hear_progress(&mut self, task: TaskId, report: ProgressReport) -> Result<(), PoolRefusal> {
        let now = self.now();
        let state = self.pool.state(task);
        let record = self.records.get_mut(&task).ok_or(PoolRefusal::Unknown)?;
        if record.joined {
            return Err(PoolRefusal::NotRunning(TaskState::Joined));
        }
        match state {
            Some(TaskState::Running | TaskState::Paused | TaskState::Stopping) => {}
            Some(state) => return Err(PoolRefusal::NotRunning(state)),
            None => return Err(PoolRefusal::Unknown),
        }
        let known = record.progress.get_or_insert_default();
        progress::fold(known, report);
        let runtime = record.started.map(|since| now.saturating_sub(since)).unwrap_or_default();
        let seen = progress::seen(known, runtime);
        record.stage.send_if_modified(|stage| match stage {
            Stage::Running(running) => {
                running.progress = Some(seen);
                true
            }
            Stage::Waiting | Stage::Over(_) => false,
        });
        Ok(())
    }

    fn directive(&mut self, input: PoolInput) -> Result<(), PoolRefusal> {
        if let PoolInput::Cancel(task, _) = input
            && let Some(record) = self.records.get(&task).filter(|record| record.joined)
        {
            // The task runs nothing itself, and the one that it joined goes on.
            if let Some(Sharing::Flying { joined }) =
                record.flight.as_ref().and_then(|flight| self.flights.get_mut(flight))
            {
                joined.retain(|other| *other != task);
            }
            let over = Finished {
                id: task,
                ended: TaskEnd::Cancelled,
                by_force: false,
                report: RunReport::default(),
                attempts: 0,
                collector: None,
            };
            self.finish(task, Arc::new(over));
            return Ok(());
        }
        let now = self.now();
        self.pool.step(now, input, &mut self.effects)
    }

    /// Carries out effects until no more follow.
    async fn carry_out(&mut self, myself: &ActorRef<PoolMsg>) {
        while !self.effects.is_empty() {
            for effect in std::mem::take(&mut self.effects) {
                match effect {
                    PoolEffect::Make(worker) => {
                        let args = (worker, myself.clone(), Arc::clone(&self.task_context));
                        match Actor::spawn_linked(None, Worker, args, myself.get_cell()).await {
                            Ok((actor, _)) => {
                                self.workers.insert(worker, actor);
                            }
                            Err(error) => {
                                tracing::error!(%error, "no worker could be made");
                                self.step(PoolInput::WorkerDied(worker));
                            }
                        }
                    }
                    PoolEffect::Retire(worker) => {
                        if let Some(actor) = self.workers.remove(&worker) {
                            actor.stop(None);
                        }
                    }
                    // A worker that could not be started has been reported, and its task is over.
                    PoolEffect::Run(worker, ..) if !self.workers.contains_key(&worker) => {}
                    PoolEffect::Run(worker, task, attempt) => self.run(worker, task, attempt),
                    PoolEffect::Ask(worker, task) => self.tell(worker, WorkerMsg::Ask(task)),
                    PoolEffect::Kill(worker, task) => self.tell(worker, WorkerMsg::Kill(task)),
                    PoolEffect::Halt(worker, task) => self.tell(worker, WorkerMsg::Halt(task)),
                    PoolEffect::Continue(worker, task) => self.tell(worker, WorkerMsg::Continue(task)),
                    PoolEffect::Again(task, _) => {
                        if let Some(record) = self.records.get(&task) {
                            let before = record.stage.send_replace(Stage::Waiting);
                            before.close();
                        }
                    }
                    PoolEffect::Over(task, ended, by_force) => self.over(task, ended, by_force),
                }
            }
        }
    }

    fn tell(&self, worker: WorkerId, message: WorkerMsg) {
        if let Some(actor) = self.workers.get(&worker) {
            super::tell(actor, message);
        }
    }

    fn run(&mut self, worker: WorkerId, task: TaskId, attempt: u32) {
        let busy = self.samples.borrow().as_ref().and_then(|sample| sample.machine.cpu_percent);
        let nice = busy.is_some_and(|cpu| cpu > self.rules.scale.cpu_high).then_some(LOW_PRIORITY);
        let TaskRules { memory, output, folder, .. } = &self.rules;
        let room = CaptureLimit { memory: *memory, limit: *output, folder: folder.clone() };
        let collector = Arc::new(Collector::new(room));
        let Some(record) = self.records.get_mut(&task) else {
            return;
        };
        record.attempts = attempt;
        (record.report, record.progress) = (None, None);
        let job = TaskRun { task, spec: Arc::clone(&record.spec), collector: Arc::clone(&collector), nice };
        record.stage.send_replace(Stage::Running(Running { collector, progress: None }));
        // Stored before there is a process, so that a task that may have run is not run again beyond
        // its retries.
        let attempts = record.earlier + attempt;
        self.write_down(|waiting| waiting.runs(task, attempts));
        self.tell(worker, WorkerMsg::Run(Box::new(job)));
    }

    fn over(&mut self, task: TaskId, ended: TaskEnd, by_force: bool) {
        let Some(record) = self.records.get_mut(&task) else {
            return;
        };
        let collector = match &*record.stage.borrow() {
            Stage::Running(running) => Some(Arc::clone(&running.collector)),
            Stage::Waiting | Stage::Over(_) => None,
        };
        // The worker has closed it, unless the worker crashed. Readers must see the end.
        if let Some(collector) = &collector {
            collector.close();
        }
        let mut report = record.report.take().unwrap_or_default();
        report.error = match ended {
            TaskEnd::Exited => report.error,
            TaskEnd::NotStarted => report.error.or_else(|| Some("it could not be started".to_owned())),
            TaskEnd::TimedOut => Some(match record.spec.timeout {
                Some(limit) => format!("not done within {}", humantime::format_duration(limit)),
                None => "not done in time".to_owned(),
            }),
            TaskEnd::Cancelled => Some("it was cancelled".to_owned()),
            TaskEnd::Lost => Some("the worker that ran it broke; its process was ended".to_owned()),
        };
        let attempts = record.attempts;
        let finished = Arc::new(Finished { id: task, ended, by_force, report, attempts, collector });
        if attempts > 0 {
            // The duration of a task that never ran would say nothing.
            let took = finished.report.pid.map(|_| finished.report.duration);
            self.tally_changed = true;
            self.metrics.count(task, || record.spec.command.to_string(), finished.success(), took);
        }
        let flight = record.flight.take();
        let ttl = record.spec.cache;
        self.finish(task, Arc::clone(&finished));
        let Some(flight) = flight else {
            return;
        };
        let mut joined = match self.flights.remove(&flight) {
            Some(Sharing::Flying { joined }) => joined,
            Some(Sharing::Landed(_)) | None => Vec::new(),
        };
        if ended == TaskEnd::Cancelled {
            if joined.is_empty() {
                let _ = self.cache.send(CacheMsg::GivenUp(flight));
                return;
            }
            // The tasks that joined still want the result: the first of them runs.
            let next = joined.remove(0);
            self.flights.insert(flight.clone(), Sharing::Flying { joined });
            return self.lead(next, flight);
        }
        let kept = finished
            .success()
            .then_some(())
            .and(ttl)
            .map(|ttl| (Arc::clone(&finished), finished.bytes(), ttl));
        let written = kept.as_ref().and_then(|kept| self.to_write_down(kept));
        // Without a cache nobody can be told to join any more.
        if self.cache.send(CacheMsg::Made(flight.clone(), kept, written)) {
            self.flights.insert(flight, Sharing::Landed(Arc::clone(&finished)));
        }
        for other in joined {
            self.finish(other, Arc::clone(&finished));
        }
    }

    /// A result as the ledger keeps it. `None` when it is not to be kept there.
    fn to_write_down(
        &self,
        (finished, bytes, ttl): &(Arc<Finished>, u64, Duration),
    ) -> Option<Box<KeptResult>> {
        if !self.keeps_results || *bytes > LARGEST_KEPT {
            return None;
        }
        let (since, result) = (SystemTime::now(), finished.result(finished.id, usize::MAX));
        // A result with truncated output is not what the command printed.
        let is_whole = !result.stdout.is_cut() && !result.stderr.is_cut();
        let until = since.checked_add(*ttl).filter(|_| is_whole)?;
        Some(Box::new(KeptResult { result, since, until }))
    }

    /// Runs a task that has waited for another one.
    fn lead(&mut self, task: TaskId, flight: Flight<CacheKey>) {
        let Some(record) = self.records.get_mut(&task) else {
            return;
        };
        record.joined = false;
        record.flight = Some(flight);
        let terms = terms_of(&record.spec);
        if self.pool.submit(&[(task, terms)], &mut self.effects).is_err() {
            self.over(task, TaskEnd::Lost, false);
        }
    }

    fn finish(&mut self, task: TaskId, finished: Arc<Finished>) {
        let now = self.now();
        if let Some(record) = self.records.get_mut(&task) {
            (record.joined, record.pid) = (false, None);
            record.stage.send_replace(Stage::Over(Arc::clone(&finished)));
            self.finished.push_back((now, task));
            self.ended += 1;
            if let Some(over) = &self.over {
                over.keep_task(kept(record, task, &finished));
            }
            self.write_down(|waiting| waiting.over(task));
        }
    }

    /// Housekeeping after every message: expired tasks, memory, waiting clients, and the timer.
    fn after(&mut self, myself: &ActorRef<PoolMsg>) {
        let now = self.now();
        let too_old = |at: Duration| now.saturating_sub(at) >= self.rules.kept_for;
        while let Some((at, task)) = self.finished.front().copied() {
            if self.finished.len() <= self.rules.kept && !too_old(at) {
                break;
            }
            self.finished.pop_front();
            self.records.remove(&task);
        }
        if self.pool.is_empty() {
            if self.ended >= BURST {
                self.ended = 0;
                // Returning memory takes milliseconds, too long for this thread.
                tokio::task::spawn_blocking(memory::give_back);
            }
            for waiting in self.wait_empty.drain(..) {
                let _ = waiting.send(());
            }
        }
        let forget = self.finished.front().map(|(at, _)| at.saturating_add(self.rules.kept_for));
        let metrics = self.keep_tally();
        let at = [self.pool.next_deadline(), forget, metrics].into_iter().flatten().min();
        self.timer.set(at, self.task_context.clock, myself, || PoolMsg::Timer);
    }

    fn status(&self, id: TaskId, record: &Record) -> TaskStatus {
        let finished = match &*record.stage.borrow() {
            Stage::Over(finished) => Some(Arc::clone(finished)),
            Stage::Waiting | Stage::Running(_) => None,
        };
        let collector = match &*record.stage.borrow() {
            Stage::Running(running) => Some(Arc::clone(&running.collector)),
            Stage::Over(finished) => finished.collector.clone(),
            Stage::Waiting => None,
        };
        let printed = |collector: Arc<Collector>| {
            let of = |stream| {
                let (kept, dropped) = collector.size(stream);
                kept + dropped
            };
            of(Stream::Out) + of(Stream::Err)
        };
        let state = match (&finished, record.joined) {
            (Some(_), _) => TaskState::Finished,
            (None, true) => TaskState::Joined,
            (None, false) => self.pool.state(id).unwrap_or(TaskState::Queued),
        };
        let exit = finished.as_ref().and_then(|finished| finished.report.exit);
        let runs = record.pid.and(record.started).map(|since| self.now().saturating_sub(since));
        let ran = finished.as_ref().map(|finished| finished.report.duration);
        TaskStatus {
            id,
            command: record.spec.command.to_string(),
            state,
            success: finished.as_ref().map(|finished| finished.success()),
            ended: finished.as_ref().map(|finished| finished.ended),
            exit_code: if let Some(Exit::Code(code)) = exit { Some(code) } else { None },
            signal: if let Some(Exit::Signal { signal, .. }) = exit { Some(signal) } else { None },
            priority: record.spec.priority,
            pid: record.pid,
            submitted: record.submitted,
            runtime_s: runs.or(ran).unwrap_or_default().as_secs_f64(),
            attempts: record.attempts,
            printed_bytes: collector.map_or(0, printed),
            progress: record.progress.as_ref().map(|known| {
                let seen = progress::seen(known, runs.or(ran).unwrap_or_default());
                // A finished task has no time left to estimate.
                TaskProgress { eta_s: seen.eta_s.filter(|_| finished.is_none()), ..seen }
            }),
            cached: finished.is_some_and(|finished| finished.id != id),
        }
    }
}
