//! One-shot commands: [`Tasks`] is the program's way to a worker pool and its scaler.
//!
//! It checks what it is given and turns refusals into answers. The queue, the workers and the cache
//! are the pool's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use ractor::{Actor, ActorRef};
use tokio::sync::{oneshot, watch};

use super::StartError;
use crate::actors::ActorContext;
use crate::actors::messages::SupervisorMsg;
use crate::actors::scaler::{PoolSettings, Scaler, ScalerArgs, ScalerMsg};
use crate::actors::worker_pool::{
    CacheKey, Finished, KeepResults, PoolArgs, PoolMsg, PoolSnapshot, Results, Stage, TaskContext,
    TaskLifetime, TaskPersistence, TaskRules, Ticket, WorkerPool, key_of,
};
use crate::decide::cache::{Cache, CacheCounts};
use crate::decide::ledger::{KeptResult, Ledger};
use crate::decide::pool::{MOST_WORKERS, PoolInput, PoolRefusal};
use crate::decide::progress;
use crate::decide::scaler::ScalePolicy;
use crate::model::sample::Sample;
use crate::model::stats::{CacheStats, Performance, PoolStats, ScalerStats, Thresholds};
use crate::model::task::{ProgressReport, TaskId, TaskResult, TaskSpec, TaskStatus};
use crate::model::{Denial, DenialCode, Name};
use crate::sys::clock::Clock;
use crate::sys::ids;

/// The most bytes of each output stream that a result carries, unless the caller asks for more.
pub const IN_A_RESULT: usize = 1 << 20;

/// A worker pool of the tree. The handle is cheap to clone.
#[derive(Clone)]
pub struct Tasks {
    actor: ActorRef<PoolMsg>,
    scaler: ActorRef<ScalerMsg>,
    results: Arc<Mutex<Results>>,
    ledger: Option<Arc<dyn Ledger>>,
    /// The time when the cache was last cleared; kept results from before it no longer count.
    cleared: Arc<Mutex<Option<SystemTime>>>,
    clock: Clock,
    disk_full: f64,
    load_high: f64,
}

impl Tasks {
    pub(super) async fn start(
        (rules, task_context, name): (TaskRules, Arc<TaskContext>, Option<Name>),
        (scales_services, lasting): (Option<ActorRef<SupervisorMsg>>, TaskPersistence),
        context: &Arc<ActorContext>,
        samples: watch::Receiver<Option<Arc<Sample>>>,
        root: ractor::ActorCell,
    ) -> Result<Tasks, StartError> {
        let clock = task_context.clock();
        let results = Arc::new(Mutex::new(Cache::new(rules.cache)));
        let policy = ScalePolicy { min: rules.size.min, max: rules.size.max, ..rules.scale };
        let (disk_full, load_high, mode) = (rules.disk_full, rules.load_high, rules.mode);
        // Only the default pool keeps its results in the ledger; a named pool has a cache in memory alone.
        let ledger = context.ledger.clone().filter(|_| rules.keep == KeepResults::InLedger && name.is_none());
        let args = PoolArgs {
            rules,
            task_context,
            results: Arc::clone(&results),
            samples: samples.clone(),
            ledger: ledger.clone(),
            lasting,
        };
        let broken = |error: ractor::SpawnErr| StartError::Tree(error.to_string());
        let (actor, _) =
            WorkerPool::spawn_linked(None, WorkerPool, args, root.clone()).await.map_err(broken)?;
        let args = ScalerArgs {
            context: Arc::clone(context),
            name,
            pool: actor.clone(),
            root: scales_services,
            policy,
            mode,
            samples,
        };
        let (scaler, _) = Scaler::spawn_linked(None, Scaler, args, root).await.map_err(broken)?;
        let cleared = Arc::default();
        Ok(Tasks { actor, scaler, results, ledger, cleared, clock, disk_full, load_high })
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> PoolMsg) -> Result<T, Denial> {
        let (answer, answered) = oneshot::channel();
        self.actor.cast(message(answer)).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
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
        let (who, count) = (who.to_owned(), specs.len());
        let taken = self.ask(|answer| PoolMsg::Submit(specs, who, lives, answer)).await?;
        taken.map_err(|refusal| match refusal {
            PoolRefusal::Full { queue: 0, .. } if count == 1 => {
                denial(DenialCode::TooManyRequests, "no worker is free, and no task may wait")
            }
            PoolRefusal::Full { waiting, queue } if count > 1 => {
                let reason =
                    format!("{count} tasks at once do not fit: {waiting} tasks wait, of at most {queue}");
                denial(DenialCode::TooManyRequests, &reason)
            }
            other => refused(other),
        })
    }

    /// Puts the results of these commands that earlier supervisors have kept into the cache.
    async fn recall(&self, ledger: &Arc<dyn Ledger>, specs: &[TaskSpec], who: &str) {
        let results = || self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = specs.iter().filter(|spec| spec.cache.is_some()).map(|spec| key_of(spec, who));
        let unknown: Vec<CacheKey> = keys.filter(|key| !results().knows(key)).collect();
        if unknown.is_empty() {
            return;
        }
        let ledger = Arc::clone(ledger);
        let read = move || -> Vec<(KeptResult, CacheKey)> {
            let keys: Vec<&[u8]> = unknown.iter().map(|key| &**key).collect();
            let kept = ledger.kept_results(&keys);
            kept.into_iter().zip(unknown).filter_map(|(kept, key)| Some((kept?, key))).collect()
        };
        // Reading the ledger blocks on a file.
        let found = tokio::task::spawn_blocking(read).await;
        let (now, wall) = (self.clock.now(), SystemTime::now());
        let cleared = self.cleared.lock().unwrap_or_else(PoisonError::into_inner);
        for (KeptResult { result, since, until }, key) in found.unwrap_or_default() {
            if cleared.is_some_and(|cleared| since <= cleared) {
                continue;
            }
            // The age of a result is unknown where its timestamp lies in the future, because the clock was
            // ahead then.
            let (Ok(old), Ok(left)) = (wall.duration_since(since), until.duration_since(wall)) else {
                continue;
            };
            let finished = Arc::new(Finished::restored(result));
            let bytes = finished.bytes();
            results().put(&key, now, (finished, bytes), left, old);
        }
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
        if let Some(result) = self.remembered(&spec, who) {
            return Ok(result);
        }
        let Some(mut ticket) = self.begin(vec![spec], who).await?.pop() else {
            return Err(denial(DenialCode::Internal, "one task was submitted, and not one taken"));
        };
        let finished = ticket.over().await.ok_or_else(gone)?;
        Ok(finished.result(ticket.id, IN_A_RESULT))
    }

    /// The cached result of an earlier run of the command, where one is recent enough.
    pub fn remembered(&self, spec: &TaskSpec, who: &str) -> Option<TaskResult> {
        let (age, key) = (spec.cache?, key_of(spec, who));
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let found = results.peek(&key, self.clock.now(), age);
        drop(results);
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
                Err(denial(DenialCode::WrongState, &format!("task {id} does not run: it is {state}")))
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
                Err(denial(DenialCode::WrongState, &format!("task {id} is over")))
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
            let hint = Some("\"regrow pool set --min N --max N\" sets others".to_owned());
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
                "a pool has from 1 to {MOST_WORKERS} workers, and not fewer at most than at least: {min} to {max}"
            );
            return Err(denial(DenialCode::Invalid, &reason));
        }
        self.ask_scaler(|answer| ScalerMsg::Set(bounds, answer)).await
    }

    async fn ask_scaler<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<T>) -> ScalerMsg,
    ) -> Result<T, Denial> {
        let (answer, answered) = oneshot::channel();
        self.scaler.cast(message(answer)).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
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
    pub fn cache(&self) -> CacheStats {
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let (entries, bytes) = results.size();
        let CacheCounts { hits, misses, joined, evictions, expirations } = results.counts();
        let asked = hits + misses + joined;
        CacheStats {
            entries,
            max_entries: results.bounds().entries,
            bytes,
            max_bytes: results.bounds().bytes,
            hits,
            misses,
            joined,
            hit_rate: if asked == 0 { 0.0 } else { (hits + joined) as f64 / asked as f64 },
            evictions,
            expirations,
        }
    }

    /// Drops all cached and kept results, and returns how many the cache had.
    pub fn clear_cache(&self) -> usize {
        let mut cleared = self.cleared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ledger) = &self.ledger {
            ledger.forget_results();
            *cleared = Some(SystemTime::now());
        }
        results.clear()
    }

    /// Whether both handles are of the same pool.
    pub(super) fn is(&self, other: &Tasks) -> bool {
        self.actor.get_id() == other.actor.get_id()
    }

    /// Stops the actors of the pool, once it has nothing left to do.
    pub(super) fn end(&self) {
        self.scaler.stop(None);
        self.actor.stop(None);
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
    denial(DenialCode::ShuttingDown, "the worker pool is gone")
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
        PoolRefusal::Closing => denial(DenialCode::ShuttingDown, "the worker pool takes nothing more"),
        PoolRefusal::Unknown => denial(DenialCode::NotFound, "there is no such task"),
        PoolRefusal::NotRunning(state) => {
            denial(DenialCode::WrongState, &format!("only what runs can be halted or go on: it is {state}"))
        }
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
        return wrong("a timeout of 0 leaves no time for anything");
    }
    let times = [spec.timeout, Some(spec.grace), Some(spec.retry_delay), spec.cache];
    if times.into_iter().flatten().any(|time| time > LONGEST) {
        return wrong("a time is longer than ten years");
    }
    if spec.env.iter().any(|(name, _)| name.is_empty() || name.contains(['=', '\0'])) {
        return wrong("a variable has no name, or one with \"=\" in it");
    }
    Ok(())
}
