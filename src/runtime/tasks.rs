//! One-shot commands: [`Tasks`] is the program's way to a worker pool and its scaler.
//!
//! It checks what it is given and turns refusals into answers. The queue, the workers and the cache
//! are the pool's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use ractor::ActorRef;
use tokio::sync::{oneshot, watch};

use super::StartError;
use crate::actors::ActorContext;
use crate::actors::messages::SupervisorMsg;
use crate::actors::scaler::{PoolSettings, Scaler, ScalerArgs, ScalerMsg};
use crate::actors::system::{Life, Registered, SystemMsg, release, supervise};
use crate::actors::worker_pool::cache::{Cache, CacheArgs};
use crate::actors::worker_pool::{
    CacheAnswer, CacheKey, CacheMsg, KeepResults, PoolArgs, PoolMsg, PoolSnapshot, Stage, Submitted,
    TaskContext, TaskLifetime, TaskPersistence, TaskRules, Ticket, WorkerPool, key_of,
};
use crate::decide::ledger::{KeptResult, Ledger};
use crate::decide::pool::{MOST_WORKERS, PoolInput, PoolRefusal};
use crate::decide::progress;
use crate::decide::scaler::ScalePolicy;
use crate::model::sample::Sample;
use crate::model::stats::{CacheStats, Performance, PoolStats, ScalerStats, Thresholds};
use crate::model::task::{ProgressReport, TaskId, TaskResult, TaskSpec, TaskStatus};
use crate::model::{Denial, DenialCode, Name};
use crate::sys::ids;

/// The most bytes of each output stream that a result carries, unless the caller asks for more.
pub const IN_A_RESULT: usize = 1 << 20;

/// A worker pool of the tree. The handle is cheap to clone.
#[derive(Clone)]
pub struct Tasks {
    pool: Registered<PoolMsg>,
    cache: Registered<CacheMsg>,
    scaler: Registered<ScalerMsg>,
    pub(super) system: ActorRef<SystemMsg>,
    ledger: Option<Arc<dyn Ledger>>,
    disk_full: f64,
    load_high: f64,
}

impl Tasks {
    pub(super) async fn start(
        (rules, task_context, name): (TaskRules, Arc<TaskContext>, Option<Name>),
        (scales_services, lasting): (Option<ActorRef<SupervisorMsg>>, TaskPersistence),
        context: &Arc<ActorContext>,
        samples: watch::Receiver<Option<Arc<Sample>>>,
        system: &ActorRef<SystemMsg>,
    ) -> Result<Tasks, StartError> {
        let clock = task_context.clock();
        let policy = ScalePolicy { min: rules.size.min, max: rules.size.max, ..rules.scale };
        let (disk_full, load_high) = (rules.disk_full, rules.load_high);
        let settings = Arc::new(Mutex::new((policy, rules.mode)));
        // Only the default pool keeps its results in the ledger; a named pool has a cache in memory alone.
        let ledger = context.ledger.clone().filter(|_| rules.keep == KeepResults::InLedger && name.is_none());
        let broken = |error: ractor::SpawnErr| StartError::Tree(error.to_string());
        let called = |what: &str| match &name {
            Some(name) => format!("{what} of the pool {name}"),
            None => what.to_owned(),
        };
        let (pool, cache) = (Registered::default(), Registered::default());
        let scaler: Registered<ScalerMsg> = Registered::default();

        let (limits, of, kept_in) = (rules.cache, pool.clone(), ledger.clone());
        let args = move |_| CacheArgs { limits, clock, pool: of.clone(), ledger: kept_in.clone() };
        let of = pool.clone();
        let is_new = move || {
            let _ = of.send(PoolMsg::CacheIsNew);
        };
        let about = (called("cache"), "results that were not in the store");
        supervise::<Cache>(system, about, &cache, args, is_new).await.map_err(broken)?;

        let (results, keeps_results, measured) = (cache.clone(), ledger.is_some(), samples.clone());
        let lost = match lasting.waiting {
            Some(_) => "tasks that were running and may not run again, and who waited for one",
            None => "its tasks",
        };
        let lasting = Mutex::new(lasting);
        let args = move |life| {
            let mut lasting = lasting.lock().unwrap_or_else(PoisonError::into_inner);
            let left = std::mem::take(&mut lasting.left);
            let lasting = match life {
                Life::First => TaskPersistence { left, ..lasting.clone() },
                Life::Again => lasting.again(),
            };
            PoolArgs {
                rules: rules.clone(),
                task_context: Arc::clone(&task_context),
                cache: results.clone(),
                samples: measured.clone(),
                keeps_results,
                lasting,
            }
        };
        let of = scaler.clone();
        let is_new = move || {
            let _ = of.send(ScalerMsg::PoolIsNew);
        };
        supervise::<WorkerPool>(system, (called("worker pool"), lost), &pool, args, is_new)
            .await
            .map_err(broken)?;

        let (about, of) = ((called("Scaler"), "its last decision"), pool.clone());
        let context = Arc::clone(context);
        let args = move |_| ScalerArgs {
            context: Arc::clone(&context),
            name: name.clone(),
            pool: of.clone(),
            root: scales_services.clone(),
            settings: Arc::clone(&settings),
            samples: samples.clone(),
        };
        supervise::<Scaler>(system, about, &scaler, args, || {}).await.map_err(broken)?;
        Ok(Tasks { pool, cache, scaler, system: system.clone(), ledger, disk_full, load_high })
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> PoolMsg) -> Result<T, Denial> {
        self.pool.ask(message).await.ok_or_else(gone)
    }

    /// Submits commands, all of them or none. `who` names the requester: cached results are kept apart
    /// by requester.
    pub async fn submit(&self, specs: Vec<TaskSpec>, who: &str) -> Result<Vec<TaskId>, Denial> {
        Ok(self.begin(specs, who).await?.into_iter().map(|ticket| ticket.id).collect())
    }

    /// Submits commands as [`Tasks::submit`] does, and returns tickets: a ticket tells a task's result
    /// even after the pool has forgotten the task.
    pub async fn begin(&self, specs: Vec<TaskSpec>, who: &str) -> Result<Vec<Ticket>, Denial> {
        self.begin_that_lives(TaskLifetime::OnItsOwn, specs, who).await
    }

    /// Submits commands as [`Tasks::begin`] does; `lives` says whether a later daemon runs them too.
    pub(crate) async fn begin_that_lives(
        &self,
        lives: TaskLifetime,
        specs: Vec<TaskSpec>,
        who: &str,
    ) -> Result<Vec<Ticket>, Denial> {
        for spec in &specs {
            sane(spec)?;
        }
        if let Some(ledger) = &self.ledger {
            self.recall(ledger, &specs, who).await;
        }
        let count = specs.len();
        self.pass_on(lives, specs, who).await?.map_err(|refusal| match refusal {
            PoolRefusal::Full { queue: 0, .. } if count == 1 => {
                denial(DenialCode::TooManyRequests, "no worker is free, and the queue has no room")
            }
            PoolRefusal::Full { waiting, queue } if count > 1 => {
                let reason =
                    format!("{count} tasks at once do not fit: {waiting} tasks wait, of at most {queue}");
                denial(DenialCode::TooManyRequests, &reason)
            }
            other => refused(other),
        })
    }

    /// Passes commands on to the pool: through the cache, where it may have the result of one.
    async fn pass_on(
        &self,
        lives: TaskLifetime,
        specs: Vec<TaskSpec>,
        who: &str,
    ) -> Result<Result<Vec<Ticket>, PoolRefusal>, Denial> {
        let directly = |specs: Vec<TaskSpec>| {
            let at = SystemTime::now();
            let cached = CacheAnswer::NotCached;
            let tasks = specs.into_iter();
            let tasks =
                tasks.map(|spec| Submitted { id: ids::task(), spec, at, cached: cached.clone() }).collect();
            |answer| PoolMsg::Submit(tasks, who.to_owned(), lives, answer)
        };
        if specs.iter().all(|spec| spec.cache.is_none()) {
            return self.ask(directly(specs)).await;
        }
        let is_passed_on = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_passed_on);
        let submit = |answer| CacheMsg::Submit(specs.clone(), who.to_owned(), lives, answer, flag);
        match self.cache.ask(submit).await {
            Some(taken) => Ok(taken),
            // The cache broke before it passed them on: they run, as if none had been asked for before.
            None if !is_passed_on.load(Ordering::SeqCst) => self.ask(directly(specs)).await,
            None => Err(gone()),
        }
    }

    /// Puts the results of these commands that earlier supervisors have kept into the cache.
    async fn recall(&self, ledger: &Arc<dyn Ledger>, specs: &[TaskSpec], who: &str) {
        let keys = specs.iter().filter(|spec| spec.cache.is_some()).map(|spec| key_of(spec, who));
        let keys: Vec<CacheKey> = keys.collect();
        if keys.is_empty() {
            return;
        }
        let unknown = self.cache.ask(|answer| CacheMsg::Unknown(keys, answer)).await.unwrap_or_default();
        if unknown.is_empty() {
            return;
        }
        let ledger = Arc::clone(ledger);
        let read = move || -> Vec<(CacheKey, KeptResult)> {
            let keys: Vec<&[u8]> = unknown.iter().map(|key| &**key).collect();
            let kept = ledger.kept_results(&keys);
            unknown.iter().cloned().zip(kept).filter_map(|(key, kept)| Some((key, kept?))).collect()
        };
        // Reading the ledger blocks on a file.
        let found = tokio::task::spawn_blocking(read).await.unwrap_or_default();
        let _ = self.cache.send(CacheMsg::Restore(found));
    }

    /// Runs a command to its end: its result, which may be that of an earlier one.
    ///
    /// ```no_run
    /// # async fn example(tree: regrow::runtime::Handle) -> Result<(), regrow::model::Denial> {
    /// use regrow::model::TaskSpec;
    /// let result = tree.tasks().run(TaskSpec::new(["echo", "hello"]), "me").await?;
    /// assert_eq!(result.stdout.bytes, b"hello\n");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn run(&self, spec: TaskSpec, who: &str) -> Result<TaskResult, Denial> {
        if let Some(result) = self.remembered(&spec, who).await {
            return Ok(result);
        }
        let Some(mut ticket) = self.begin(vec![spec], who).await?.pop() else {
            return Err(denial(DenialCode::Internal, "the task was not accepted"));
        };
        let finished = ticket.over().await.ok_or_else(gone)?;
        Ok(finished.result(ticket.id, IN_A_RESULT))
    }

    /// The cached result of an earlier run of the command, where one is recent enough.
    pub async fn remembered(&self, spec: &TaskSpec, who: &str) -> Option<TaskResult> {
        let (age, key) = (spec.cache?, key_of(spec, who));
        let found = self.cache.ask(|answer| CacheMsg::Peek(key, age, answer)).await.flatten();
        found.map(|finished| finished.result(ids::task(), IN_A_RESULT))
    }

    /// Follows a task: the receiver yields its stage, and at the end its result.
    pub async fn follow(&self, id: TaskId) -> Result<watch::Receiver<Stage>, Denial> {
        self.ask(|answer| PoolMsg::Follow(id, answer)).await?.ok_or_else(|| unknown(id))
    }

    /// Waits until a task is over and returns its result, with at most `most` bytes of each output
    /// stream.
    pub async fn result(&self, id: TaskId, most: usize) -> Result<TaskResult, Denial> {
        let mut ticket = Ticket { id, stages: self.follow(id).await? };
        // The pool drops the sender when it forgets the task, which happens only after its end.
        let finished = ticket.over().await.ok_or_else(|| unknown(id))?;
        Ok(finished.result(id, most))
    }

    /// The status of all tasks, oldest first.
    pub async fn list(&self) -> Result<Vec<TaskStatus>, Denial> {
        self.ask(PoolMsg::List).await
    }

    /// The status of one task.
    pub async fn status(&self, id: TaskId) -> Result<TaskStatus, Denial> {
        self.ask(|answer| PoolMsg::Status(id, answer)).await?.ok_or_else(|| unknown(id))
    }

    /// Ends a task with SIGTERM, and with SIGKILL after its grace; with `at_once`, with SIGKILL right
    /// away. A task that still waits is not run.
    pub async fn cancel(&self, id: TaskId, at_once: bool) -> Result<(), Denial> {
        self.directive(id, PoolInput::Cancel(id, at_once)).await
    }

    /// Reports the progress of a running task from outside. A task reports its own progress by lines on
    /// the descriptor that `REGROW_PROGRESS_FD` names: see [`parse`](crate::decide::progress::parse).
    pub async fn report_progress(&self, id: TaskId, report: ProgressReport) -> Result<(), Denial> {
        let report = progress::sane(report).map_err(|why| denial(DenialCode::Invalid, &why))?;
        match self.ask(|answer| PoolMsg::Report(id, report, answer)).await? {
            Err(PoolRefusal::NotRunning(state)) => {
                Err(denial(DenialCode::WrongState, &format!("task {id} is not running: it is {state}")))
            }
            answer => self.over_or(id, answer).await,
        }
    }

    /// Pauses a running task, and the clock of its timeout.
    pub async fn pause(&self, id: TaskId) -> Result<(), Denial> {
        self.directive(id, PoolInput::Pause(id)).await
    }

    /// Resumes a paused task.
    pub async fn resume(&self, id: TaskId) -> Result<(), Denial> {
        self.directive(id, PoolInput::Resume(id)).await
    }

    async fn directive(&self, id: TaskId, input: PoolInput) -> Result<(), Denial> {
        let answer = self.ask(|answer| PoolMsg::Directive(input, answer)).await?;
        self.over_or(id, answer).await
    }

    /// Turns the pool's answer into that of the caller: a task that the pool no longer runs may be over
    /// rather than unknown.
    async fn over_or(&self, id: TaskId, answer: Result<(), PoolRefusal>) -> Result<(), Denial> {
        match answer {
            Err(PoolRefusal::Unknown) if self.follow(id).await.is_ok() => {
                Err(denial(DenialCode::WrongState, &format!("task {id} has already finished")))
            }
            Err(PoolRefusal::Unknown) => Err(unknown(id)),
            other => other.map_err(refused),
        }
    }

    /// Forgets all tasks that are over, and returns how many there were.
    pub async fn cleanup(&self) -> Result<usize, Denial> {
        self.ask(PoolMsg::Cleanup).await
    }

    /// Sets the number of workers, within the bounds of the pool; the pool then no longer scales by
    /// itself.
    pub async fn scale(&self, workers: u32) -> Result<(), Denial> {
        let (_, ScalePolicy { min, max, .. }) = self.ask_scaler(ScalerMsg::Stand).await?;
        if !(min..=max).contains(&workers) {
            let reason = format!("{workers} workers are not within the pool's bounds, {min} to {max}");
            let hint = Some("\"regrow pool set --min N --max N\" changes the bounds".to_owned());
            return Err(Denial { code: DenialCode::Invalid, reason, hint });
        }
        self.ask_scaler(|answer| ScalerMsg::Scale(workers, answer)).await
    }

    /// Sets the bounds of the pool's size, and whether the pool scales by itself.
    pub async fn set_bounds(&self, bounds: PoolSettings) -> Result<(), Denial> {
        let (_, policy) = self.ask_scaler(ScalerMsg::Stand).await?;
        let (min, max) = (bounds.min.unwrap_or(policy.min), bounds.max.unwrap_or(policy.max));
        if min == 0 || min > max || max > MOST_WORKERS {
            let reason = format!(
                "a pool must have from 1 to {MOST_WORKERS} workers, and a minimum not greater than its maximum: {min} to {max}"
            );
            return Err(denial(DenialCode::Invalid, &reason));
        }
        self.ask_scaler(|answer| ScalerMsg::Set(bounds, answer)).await
    }

    async fn ask_scaler<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<T>) -> ScalerMsg,
    ) -> Result<T, Denial> {
        self.scaler.ask(message).await.ok_or_else(gone)
    }

    /// The status of the pool, and the performance figures of its tasks.
    pub async fn snapshot(&self) -> Result<(PoolStats, Performance), Denial> {
        let PoolSnapshot { snapshot, size, performance } = self.ask(PoolMsg::Stand).await?;
        let pool = PoolStats {
            workers: snapshot.workers,
            busy: snapshot.busy,
            wanted: snapshot.wanted,
            min: size.min,
            max: size.max,
            queued: snapshot.queued,
            queue: size.queue,
            retrying: snapshot.retrying,
        };
        Ok((pool, performance))
    }

    /// The number of tasks that end with this supervisor, because they run or because their client
    /// waits for them; and the number of tasks that wait on their own, which a later daemon runs.
    pub async fn left(&self) -> (usize, usize) {
        self.ask(PoolMsg::Left).await.unwrap_or_default()
    }

    /// The status of the scaler, and its thresholds.
    pub async fn scaler(&self) -> Result<(ScalerStats, Thresholds), Denial> {
        let (stats, policy) = self.ask_scaler(ScalerMsg::Stand).await?;
        let thresholds = Thresholds {
            cpu: policy.cpu_high,
            memory: policy.memory_high,
            cpu_low: policy.cpu_low,
            memory_low: policy.memory_low,
            disk: self.disk_full,
            load: self.load_high,
            exceeded: Vec::new(),
        };
        Ok((stats, thresholds))
    }

    /// The status of the cache.
    pub async fn cache(&self) -> Result<CacheStats, Denial> {
        self.cache.ask(CacheMsg::Stand).await.ok_or_else(gone)
    }

    /// Drops all cached and kept results, and returns how many the cache had.
    pub async fn clear_cache(&self) -> Result<usize, Denial> {
        self.cache.ask(CacheMsg::Clear).await.ok_or_else(gone)
    }

    /// Whether both handles are of the same pool.
    pub(super) fn is(&self, other: &Tasks) -> bool {
        self.pool.is(&other.pool)
    }

    /// Stops the actors of the pool, once it has nothing left to do.
    pub(super) fn end(&self) {
        release(&self.system, &self.scaler);
        release(&self.system, &self.cache);
        release(&self.system, &self.pool);
    }

    /// Accepts no more tasks, and returns when every accepted one has run.
    pub async fn drain(&self) -> Result<(), Denial> {
        self.ask(|answer| PoolMsg::Directive(PoolInput::Drain, answer)).await?.map_err(refused)?;
        self.ask(PoolMsg::Empty).await
    }

    /// Accepts no more tasks, ends those that the pool has, and returns when all are over.
    pub async fn close(&self, at_once: bool) -> Result<(), Denial> {
        self.ask(|answer| PoolMsg::Directive(PoolInput::Close(at_once), answer)).await?.map_err(refused)?;
        self.ask(PoolMsg::Empty).await
    }
}

fn gone() -> Denial {
    denial(DenialCode::ShuttingDown, "the worker pool has ended, or broke and is started again")
}

fn denial(code: DenialCode, reason: &str) -> Denial {
    Denial { code, reason: reason.to_owned(), hint: None }
}

fn unknown(id: TaskId) -> Denial {
    let hint = "tasks of a \"regrow run\" end with it, and finished ones are kept for a while only; \"regrow task list\" \
                shows what there is";
    let hint = Some(hint.to_owned());
    Denial { code: DenialCode::NotFound, reason: format!("there is no task {id}"), hint }
}

fn refused(refusal: PoolRefusal) -> Denial {
    match refusal {
        PoolRefusal::Full { waiting, queue } => Denial {
            code: DenialCode::TooManyRequests,
            reason: format!("the queue is full: {waiting} tasks wait, of at most {queue}"),
            hint: Some("try again when some are done".to_owned()),
        },
        PoolRefusal::Closing => denial(DenialCode::ShuttingDown, "the worker pool accepts no more tasks"),
        PoolRefusal::Unknown => denial(DenialCode::NotFound, "there is no such task"),
        PoolRefusal::NotRunning(state) => denial(
            DenialCode::WrongState,
            &format!("only a running task can be paused or resumed: it is {state}"),
        ),
    }
}

/// Refuses a task that nobody can mean: an empty command, a timeout of zero, a time beyond ten
/// years, or a variable without a proper name.
fn sane(spec: &TaskSpec) -> Result<(), Denial> {
    const LONGEST: std::time::Duration = std::time::Duration::from_secs(10 * 366 * 24 * 3600);
    let wrong = |reason: &str| Err(denial(DenialCode::Invalid, reason));
    if spec.command.argv.first().is_none_or(String::is_empty) {
        return wrong("the command is empty");
    }
    let text = spec.command.argv.last().filter(|_| spec.command.shell);
    if text.is_some_and(|text| text.trim().is_empty()) {
        return wrong("the command is empty");
    }
    if spec.timeout.is_some_and(|timeout| timeout.is_zero()) {
        return wrong("the timeout must be longer than 0");
    }
    let times = [spec.timeout, Some(spec.grace), Some(spec.retry_delay), spec.cache];
    if times.into_iter().flatten().any(|time| time > LONGEST) {
        return wrong("a time is longer than ten years");
    }
    if spec.env.iter().any(|(name, _)| name.is_empty() || name.contains(['=', '\0'])) {
        return wrong("a variable's name must not be empty or contain \"=\"");
    }
    Ok(())
}
