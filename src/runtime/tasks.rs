//! Commands that are run once: the way to the worker pool.

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

/// Bytes of each stream that a result carries along, unless more are asked for.
pub const IN_A_RESULT: usize = 1 << 20;

/// The worker pool of a tree. Cheap to clone.
#[derive(Clone)]
pub struct Tasks {
    actor: ActorRef<PoolMsg>,
    scaler: ActorRef<ScalerMsg>,
    results: Arc<Mutex<Results>>,
    ledger: Option<Arc<dyn Ledger>>,
    /// When the cache was cleared last: what was kept before counts no more.
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
        // A named pool has a cache of its own.
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

    /// Takes commands, all of them or none; `who`: for whom, which results are kept apart by.
    pub async fn submit(&self, specs: Vec<TaskSpec>, who: &str) -> Result<Vec<TaskId>, Denial> {
        Ok(self.begin(specs, who).await?.into_iter().map(|ticket| ticket.id).collect())
    }

    /// The same; what comes of them is known by their tickets, also when they are forgotten here.
    pub async fn begin(&self, specs: Vec<TaskSpec>, who: &str) -> Result<Vec<Ticket>, Denial> {
        self.begin_that_lives(TaskLifetime::OnItsOwn, specs, who).await
    }

    /// The same, `lives`: whether they are run by the daemon after this one, too.
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

    /// Puts into the cache what earlier supervisors have kept of these commands.
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
        // It reads a file.
        let found = tokio::task::spawn_blocking(read).await;
        let (now, wall) = (self.clock.now(), SystemTime::now());
        let cleared = self.cleared.lock().unwrap_or_else(PoisonError::into_inner);
        for (KeptResult { result, since, until }, key) in found.unwrap_or_default() {
            if cleared.is_some_and(|cleared| since <= cleared) {
                continue;
            }
            // By a clock that was ahead, nothing is known of its age.
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

    /// The result of an earlier command, where it need not be run.
    pub fn remembered(&self, spec: &TaskSpec, who: &str) -> Option<TaskResult> {
        let (age, key) = (spec.cache?, key_of(spec, who));
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let found = results.peek(&key, self.clock.now(), age);
        drop(results);
        found.map(|finished| finished.result(ids::task(), IN_A_RESULT))
    }

    /// Follows a task: where it stands, and where it comes to.
    pub async fn follow(&self, id: TaskId) -> Result<watch::Receiver<Stage>, Denial> {
        self.ask(|answer| PoolMsg::Follow(id, answer)).await?.ok_or_else(|| unknown(id))
    }

    /// The result of a task, when it is over, with at most so many bytes of each stream.
    pub async fn result(&self, id: TaskId, most: usize) -> Result<TaskResult, Denial> {
        let mut ticket = Ticket { id, stages: self.follow(id).await? };
        // Its sender goes when it is forgotten, which is after it is over.
        let finished = ticket.over().await.ok_or_else(|| unknown(id))?;
        Ok(finished.result(id, most))
    }

    /// How all of them stand, oldest first.
    pub async fn list(&self) -> Result<Vec<TaskStatus>, Denial> {
        self.ask(PoolMsg::List).await
    }

    /// How one stands.
    pub async fn status(&self, id: TaskId) -> Result<TaskStatus, Denial> {
        self.ask(|answer| PoolMsg::Status(id, answer)).await?.ok_or_else(|| unknown(id))
    }

    /// Ends a task: SIGTERM, and SIGKILL after its grace; `at_once`: SIGKILL. One that waits is not run.
    pub async fn cancel(&self, id: TaskId, at_once: bool) -> Result<(), Denial> {
        self.directive(id, PoolInput::Cancel(id, at_once)).await
    }

    /// Says for a task that runs how far it has come. A task says it itself by lines on the descriptor
    /// that `REGROW_PROGRESS_FD` names: see [`parse`](crate::decide::progress::parse).
    pub async fn report_progress(&self, id: TaskId, report: ProgressReport) -> Result<(), Denial> {
        let report = progress::sane(report).map_err(|why| denial(DenialCode::Invalid, &why))?;
        match self.ask(|answer| PoolMsg::Report(id, report, answer)).await? {
            Err(PoolRefusal::NotRunning(state)) => {
                Err(denial(DenialCode::WrongState, &format!("task {id} does not run: it is {state}")))
            }
            answer => self.over_or(id, answer).await,
        }
    }

    /// Halts a task that runs, and its time.
    pub async fn pause(&self, id: TaskId) -> Result<(), Denial> {
        self.directive(id, PoolInput::Pause(id)).await
    }

    /// Lets it go on.
    pub async fn resume(&self, id: TaskId) -> Result<(), Denial> {
        self.directive(id, PoolInput::Resume(id)).await
    }

    async fn directive(&self, id: TaskId, input: PoolInput) -> Result<(), Denial> {
        let answer = self.ask(|answer| PoolMsg::Directive(input, answer)).await?;
        self.over_or(id, answer).await
    }

    /// What the pool does not know any more may be over.
    async fn over_or(&self, id: TaskId, answer: Result<(), PoolRefusal>) -> Result<(), Denial> {
        match answer {
            Err(PoolRefusal::Unknown) if self.follow(id).await.is_ok() => {
                Err(denial(DenialCode::WrongState, &format!("task {id} is over")))
            }
            Err(PoolRefusal::Unknown) => Err(unknown(id)),
            other => other.map_err(refused),
        }
    }

    /// Forgets tasks that are over; how many there were.
    pub async fn cleanup(&self) -> Result<usize, Denial> {
        self.ask(PoolMsg::Cleanup).await
    }

    /// So many workers from now on, within the bounds; the pool does not scale by itself then.
    pub async fn scale(&self, workers: u32) -> Result<(), Denial> {
        let (_, ScalePolicy { min, max, .. }) = self.ask_scaler(ScalerMsg::Stand).await?;
        if !(min..=max).contains(&workers) {
            let reason = format!("{workers} workers are not within the pool's bounds, {min} to {max}");
            let hint = Some("\"regrow pool set --min N --max N\" sets others".to_owned());
            return Err(Denial { code: DenialCode::Invalid, reason, hint });
        }
        self.ask_scaler(|answer| ScalerMsg::Scale(workers, answer)).await
    }

    /// Sets how large the pool may be, and whether it scales by itself.
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

    /// How the pool stands, and what commands have come to.
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

    /// How many end with this supervisor, since they run or since their client waits for them, and how many wait
    /// on their own: a daemon after this one runs those.
    pub async fn left(&self) -> (usize, usize) {
        self.ask(PoolMsg::Left).await.unwrap_or_default()
    }

    /// Who makes the pool larger and smaller, and by which thresholds.
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

    /// How the cache stands.
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

    /// Drops all kept results; how many there were.
    pub fn clear_cache(&self) -> usize {
        let mut cleared = self.cleared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ledger) = &self.ledger {
            ledger.forget_results();
            *cleared = Some(SystemTime::now());
        }
        results.clear()
    }

    /// Whether they are one pool.
    pub(super) fn is(&self, other: &Tasks) -> bool {
        self.actor.get_id() == other.actor.get_id()
    }

    /// Ends its actors: nothing is left for them to do.
    pub(super) fn end(&self) {
        self.scaler.stop(None);
        self.actor.stop(None);
    }

    /// Takes nothing more, and returns when all that there is was run.
    pub async fn drain(&self) -> Result<(), Denial> {
        self.ask(|answer| PoolMsg::Directive(PoolInput::Drain, answer)).await?.map_err(refused)?;
        self.ask(PoolMsg::Empty).await
    }

    /// Takes nothing more, and ends all that there is; returns when it is over.
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

/// What nobody means.
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
