//! How tasks outlive the supervisor that runs them: the finished ones, the waiting ones, and the
//! task metrics.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::messages::{CacheAnswer, Submitted};
use super::outcome::key_of;
use super::worker::RunReport;
use super::{Finished, LARGEST_KEPT, PoolState, Record, Stage};
use crate::actors::system::Life;
use crate::decide::cache::Flight;
use crate::decide::ledger::{KeptTask, Ledger};
use crate::decide::task_metrics::TaskMetrics;
use crate::host::waiting_tasks::{Waiting, WaitingTasks};
use crate::model::Exit;
use crate::model::task::{TaskEnd, TaskId, TaskSpec};

/// What keeps tasks beyond this supervisor, and beyond a pool that breaks.
#[derive(Default, Clone)]
pub(crate) struct TaskPersistence {
    /// Keeps finished tasks.
    pub(crate) over: Option<Arc<dyn Ledger>>,
    /// Keeps unfinished tasks.
    pub(crate) waiting: Option<Arc<WaitingTasks>>,
    /// The unfinished tasks of an earlier supervisor, or of a pool that broke.
    pub(crate) left: Vec<Waiting>,
    /// Whether a pool broke that had these tasks.
    pub(crate) life: Life,
}

impl TaskPersistence {
    /// The same for a pool that takes the place of a broken one.
    pub(crate) fn again(&self) -> TaskPersistence {
        let left = self.waiting.as_ref().map_or(Ok(Vec::new()), |waiting| waiting.left());
        let left = left.inspect_err(|error| tracing::error!(%error, "waiting tasks are lost"));
        TaskPersistence { left: left.unwrap_or_default(), life: Life::Again, ..self.clone() }
    }
}

/// How long to wait at least before the task metrics are stored again.
const TALLY_KEPT: Duration = Duration::from_secs(1);

pub(super) fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A finished task in the form in which the ledger keeps it.
pub(super) fn kept(record: &Record, task: TaskId, finished: &Finished) -> KeptTask {
    let most = usize::try_from(LARGEST_KEPT).unwrap_or(usize::MAX) / 2;
    KeptTask {
        command: record.spec.command.clone(),
        priority: record.spec.priority,
        submitted: record.submitted,
        over: SystemTime::now(),
        result: finished.result(task, most),
    }
}

impl PoolState {
    /// Stores a step of an unfinished task. When this fails, the task may be lost if the daemon dies.
    pub(super) fn write_down(&self, step: impl FnOnce(&WaitingTasks) -> io::Result<()>) {
        if let Some(waiting) = &self.waiting
            && let Err(error) = step(waiting)
        {
            tracing::warn!(%error, "waiting tasks can't be recorded for the next daemon");
        }
    }

    /// Restores what an earlier supervisor has left: finished tasks, metrics, and tasks still to run. A
    /// task that was running is lost, unless it may be retried.
    pub(super) fn restore(&mut self, left: Vec<Waiting>, life: Life) {
        if let Some(over) = self.over.clone() {
            self.restore_finished(&*over);
        }
        self.restore_waiting(left, life);
    }

    fn restore_finished(&mut self, over: &dyn Ledger) {
        let (now, today) = (self.now(), SystemTime::now());
        let told = over.kept_tally().and_then(|text| TaskMetrics::restored(&text));
        let counted = told.map_or(0, |(metrics, until)| {
            self.metrics = metrics;
            until
        });
        for kept in over.kept_tasks(self.rules.kept_for, self.rules.kept) {
            let KeptTask { command, priority, submitted, over, result } = kept;
            let (task, old) = (result.id, today.duration_since(over).unwrap_or_default());
            if millis(over) > counted && result.attempts > 0 && !result.cached {
                let took = result.pid.map(|_| result.duration);
                let success = result.ended == TaskEnd::Exited && result.exit == Some(Exit::SUCCESS);
                self.metrics.count(task, || command.to_string(), success, took);
                self.tally_changed = true;
            }
            let mut spec = TaskSpec::new([""]);
            (spec.command, spec.priority) = (command, priority);
            let attempts = result.attempts;
            let finished = Arc::new(Finished::restored(result));
            let record = Record { attempts, ..Record::new(spec, submitted, Stage::Over(finished)) };
            self.records.insert(task, record);
            self.finished.push_back((now.saturating_sub(old), task));
        }
    }

    fn restore_waiting(&mut self, left: Vec<Waiting>, life: Life) {
        for Waiting { id, who, mut spec, submitted, attempts, .. } in left {
            if self.records.contains_key(&id) {
                self.write_down(|waiting| waiting.over(id));
                continue;
            }
            let submitted = SystemTime::UNIX_EPOCH + Duration::from_millis(submitted);
            let runs_again = attempts == 0 || attempts <= spec.retries;
            spec.retries = spec.retries.saturating_sub(attempts);
            let cached = match spec.cache {
                None => CacheAnswer::NotCached,
                Some(_) => CacheAnswer::Joins(Flight::first(key_of(&spec, &who))),
            };
            let task = Submitted { id, spec: spec.clone(), at: submitted, cached };
            let taken = runs_again.then(|| self.admit(vec![task]));
            if let Some(record) = self.records.get_mut(&id) {
                record.earlier = attempts;
            }
            if taken.is_none_or(|taken| taken.is_err()) {
                let error = match (runs_again, life) {
                    (true, _) => "there was no room for it when another daemon or pool went on",
                    (false, Life::First) => {
                        "the daemon that ran it is gone, and its process was ended with it"
                    }
                    (false, Life::Again) => {
                        "the worker pool that ran it broke, and its process was ended with it"
                    }
                };
                let error = error.to_owned();
                let report = RunReport { error: Some(error), ..RunReport::default() };
                let (ended, collector) = (TaskEnd::Lost, None);
                let lost = Finished { id, ended, by_force: true, report, attempts, collector };
                self.records.insert(id, Record { attempts, ..Record::new(spec, submitted, Stage::Waiting) });
                self.finish(id, Arc::new(lost));
            }
        }
    }

    /// Stores the task metrics, but not after every task. Returns when the next store is due, if one
    /// is.
    pub(super) fn keep_tally(&mut self) -> Option<Duration> {
        let (over, now) = (self.over.as_ref().filter(|_| self.tally_changed)?, self.now());
        let due = self.tally_kept.map_or(now, |at| at.saturating_add(TALLY_KEPT));
        if due > now {
            return Some(due);
        }
        over.keep_tally(self.metrics.written(millis(SystemTime::now())));
        (self.tally_kept, self.tally_changed) = (Some(now), false);
        None
    }
}
