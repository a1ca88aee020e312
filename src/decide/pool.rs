//! The worker pool: which waiting task runs next, on which worker, and until when.
//!
//! A worker runs one task at a time. The pool keeps the wanted number of workers, between two
//! bounds; a surplus worker retires when its task is over. The waiting task with the highest
//! priority runs first, and the oldest among equals. Time is an argument. Deliberately absent:
//! processes and actors. They report on a task by an input that names its worker; a late report
//! from a worker that is gone is dropped.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::model::task::{TaskEnd, TaskId, TaskState};

/// The number of a worker; never used twice in one pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u64);

/// The largest number of workers that a pool may have.
pub const MOST_WORKERS: u32 = 1_000;

/// The bounds of a pool: of its workers and of its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSize {
    /// The smallest number of workers.
    pub min: u32,
    /// The largest number of workers.
    pub max: u32,
    /// How many tasks may wait beyond those that idle workers take at once.
    pub queue: usize,
}

/// The terms on which a pool runs a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskTerms {
    /// The priority of the task: higher ones run first.
    pub priority: i32,
    /// The longest time that one run may take before it is ended; `None`: no limit.
    pub timeout: Option<Duration>,
    /// The time between the request to end and the kill; zero: the process is killed at once.
    pub grace: Duration,
    /// How often the task may be run again after a failed run.
    pub retries: u32,
    /// The delay before the first retry; it doubles with each further one, up to five minutes.
    pub retry_delay: Duration,
}

/// The longest delay between two runs of one task.
const LONGEST_DELAY: Duration = Duration::from_secs(300);

/// The outcome of one run of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunOutcome {
    /// The process ended with success.
    Success,
    /// The process ended without success.
    Failure,
    /// No process could be made and a retry would not help: there is no such program, for example.
    NotStarted,
    /// No process could be made for want of memory, descriptors or the like; a retry may help.
    Shortage,
}

/// An input of a [`Pool`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolInput {
    /// The process of a task was started.
    Started(WorkerId, TaskId),
    /// One run of a task is over.
    Done(WorkerId, TaskId, RunOutcome),
    /// A worker failed, and the process that it ran was ended.
    WorkerDied(WorkerId),
    /// A task is cancelled; `true`: its process is killed at once, without the grace time.
    Cancel(TaskId, bool),
    /// A running task is to be paused.
    Pause(TaskId),
    /// A paused task is to go on.
    Resume(TaskId),
    /// The wanted number of workers, which the pool keeps within its bounds.
    Scale(u32),
    /// The smallest and the largest number of workers from now on.
    Bounds(u32, u32),
    /// The pool takes no new tasks, and runs those that it has.
    Drain,
    /// The pool takes no new tasks, and all it has are cancelled; `true`: killed at once.
    Close(bool),
    /// Time has passed; deadlines may be due.
    Tick,
}

/// An effect that the caller carries out for its [`Pool`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolEffect {
    /// Make a worker.
    Make(WorkerId),
    /// Let an idle worker go.
    Retire(WorkerId),
    /// Run a task on a worker; the number counts its runs, from 1.
    Run(WorkerId, TaskId, u32),
    /// Ask the process of a task to end.
    Ask(WorkerId, TaskId),
    /// Kill the process of a task.
    Kill(WorkerId, TaskId),
    /// Halt the process of a task.
    Halt(WorkerId, TaskId),
    /// Let the halted process of a task go on.
    Continue(WorkerId, TaskId),
    /// A run has failed, and the task is queued again at this time.
    Again(TaskId, Duration),
    /// A task is over: how it ended, and whether force was needed.
    Over(TaskId, TaskEnd, bool),
}

/// Why the pool refuses new tasks or an input about one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolRefusal {
    /// The queue has no room for the new tasks.
    Full {
        /// The number of tasks that wait.
        waiting: usize,
        /// The number of tasks that may wait.
        queue: usize,
    },
    /// The pool is draining or closed and takes no new tasks.
    Closing,
    /// The task is unknown, or over.
    Unknown,
    /// The task is in this state: only a running task can be paused, and only a paused one resumed.
    NotRunning(TaskState),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Open,
    /// No new tasks are taken; those in the pool are run.
    Draining,
    Closed,
}

/// Why a run is being ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    TimedOut,
    Cancelled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Queued,
    /// A run has failed, and the task waits to be run again.
    Resting {
        until: Duration,
    },
    /// A worker is making the process.
    Starting {
        worker: WorkerId,
    },
    Running {
        worker: WorkerId,
        deadline: Option<Duration>,
    },
    /// The process is halted; `left` is what remains of its timeout.
    Halted {
        worker: WorkerId,
        left: Option<Duration>,
    },
    /// The process was asked to end and is killed at `kill_at`.
    Asked {
        worker: WorkerId,
        why: Reason,
        kill_at: Duration,
    },
    Killed {
        worker: WorkerId,
        why: Reason,
    },
}

impl Phase {
    /// When the pool must act on the phase; `None`: it waits for an input.
    fn deadline(self) -> Option<Duration> {
        match self {
            Phase::Resting { until } => Some(until),
            Phase::Running { deadline, .. } => deadline,
            Phase::Asked { kill_at, .. } => Some(kill_at),
            Phase::Queued | Phase::Starting { .. } | Phase::Halted { .. } | Phase::Killed { .. } => None,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Task {
    terms: TaskTerms,
    number: u64,
    attempt: u32,
    phase: Phase,
}

/// The status of a pool in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolCounts {
    /// The number of workers, including those that are to retire.
    pub workers: usize,
    /// The number of workers that run a task.
    pub busy: usize,
    /// The wanted number of workers.
    pub wanted: u32,
    /// The number of tasks that wait for a worker.
    pub queued: usize,
    /// The number of tasks that wait to be run again after a failure.
    pub retrying: usize,
}

/// A pool of workers and its tasks.
#[derive(Debug)]
pub struct Pool {
    size: PoolSize,
    wanted: u32,
    door: Door,
    /// Every worker, with the task that it runs.
    workers: BTreeMap<WorkerId, Option<TaskId>>,
    leaving: BTreeSet<WorkerId>,
    queue: BTreeMap<(Reverse<i32>, u64), TaskId>,
    tasks: HashMap<TaskId, Task>,
    deadlines: BTreeSet<(Duration, TaskId)>,
    made: u64,
    taken: u64,
}

impl Pool {
    /// A pool without workers; the first input, whatever it is, makes them.
    pub fn new(size: PoolSize) -> Pool {
        let size = PoolSize { min: size.min.min(size.max), max: size.max.max(1), queue: size.queue };
        Pool {
            size,
            wanted: size.min.max(1),
            door: Door::Open,
            workers: BTreeMap::new(),
            leaving: BTreeSet::new(),
            queue: BTreeMap::new(),
            tasks: HashMap::new(),
            deadlines: BTreeSet::new(),
            made: 0,
            taken: 0,
        }
    }

    /// Queues tasks, all of them or none.
    pub fn submit(
        &mut self,
        tasks: &[(TaskId, TaskTerms)],
        effects: &mut Vec<PoolEffect>,
    ) -> Result<(), PoolRefusal> {
        if self.door != Door::Open {
            return Err(PoolRefusal::Closing);
        }
        let idle = self.workers.values().filter(|runs| runs.is_none()).count();
        let idle = if self.workers.is_empty() { self.wanted as usize } else { idle };
        if self.queue.len() + tasks.len() > self.size.queue.saturating_add(idle) {
            return Err(PoolRefusal::Full { waiting: self.queue.len(), queue: self.size.queue });
        }
        for (task, terms) in tasks {
            self.taken += 1;
            let fresh = Task { terms: *terms, number: self.taken, attempt: 1, phase: Phase::Queued };
            self.queue.insert((Reverse(terms.priority), self.taken), *task);
            self.tasks.insert(*task, fresh);
        }
        self.adjust(effects);
        Ok(())
    }

    /// Takes one input and appends its effects. `Err`: the input is refused.
    pub fn step(
        &mut self,
        now: Duration,
        input: PoolInput,
        effects: &mut Vec<PoolEffect>,
    ) -> Result<(), PoolRefusal> {
        match input {
            PoolInput::Started(worker, task) => {
                if let Some(Task { terms, phase: Phase::Starting { worker: of }, .. }) = self.tasks.get(&task)
                    && *of == worker
                {
                    let deadline = terms.timeout.map(|timeout| now.saturating_add(timeout));
                    self.enter(task, Phase::Running { worker, deadline });
                }
            }
            PoolInput::Done(worker, task, outcome) => self.done(now, worker, task, outcome, effects),
            PoolInput::WorkerDied(worker) => {
                let Some(task) = self.workers.remove(&worker) else {
                    return Ok(());
                };
                self.leaving.remove(&worker);
                if let Some(task) = task {
                    self.ended(now, task, None, effects);
                }
            }
            PoolInput::Cancel(task, at_once) => self.cancel(now, task, at_once, effects)?,
            PoolInput::Pause(task) => match self.phase(task)? {
                Phase::Running { worker, deadline } => {
                    let left = deadline.map(|deadline| deadline.saturating_sub(now));
                    self.enter(task, Phase::Halted { worker, left });
                    effects.push(PoolEffect::Halt(worker, task));
                }
                _ => return Err(self.not_running(task)),
            },
            PoolInput::Resume(task) => match self.phase(task)? {
                Phase::Halted { worker, left } => {
                    let deadline = left.map(|left| now.saturating_add(left));
                    self.enter(task, Phase::Running { worker, deadline });
                    effects.push(PoolEffect::Continue(worker, task));
                }
                _ => return Err(self.not_running(task)),
            },
            PoolInput::Scale(wanted) => self.wanted = wanted.clamp(self.size.min.max(1), self.size.max),
            PoolInput::Bounds(min, max) => {
                self.size = PoolSize { min: min.min(max), max: max.max(1), queue: self.size.queue };
                self.wanted = self.wanted.clamp(self.size.min.max(1), self.size.max);
            }
            PoolInput::Drain => self.door = Door::Draining,
            PoolInput::Close(at_once) => {
                self.door = Door::Closed;
                let mut all: Vec<(u64, TaskId)> =
                    self.tasks.iter().map(|(task, of)| (of.number, *task)).collect();
                all.sort_unstable();
                for (_, task) in all {
                    self.cancel(now, task, at_once, effects)?;
                }
            }
            PoolInput::Tick => self.tick(now, effects),
        }
        self.adjust(effects);
        Ok(())
    }

    /// When the pool wants the next [`PoolInput::Tick`]; `None`: it has no deadline.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// The numbers of the pool at this moment.
    pub fn snapshot(&self) -> PoolCounts {
        let resting = |task: &&Task| matches!(task.phase, Phase::Resting { .. });
        PoolCounts {
            workers: self.workers.len(),
            busy: self.workers.values().flatten().count(),
            wanted: self.wanted,
            queued: self.queue.len(),
            retrying: self.tasks.values().filter(resting).count(),
        }
    }

    /// The bounds of the pool.
    pub fn size(&self) -> PoolSize {
        self.size
    }

    /// Whether the pool has no task left.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// The state of a task; `None` when it is unknown or over.
    pub fn state(&self, task: TaskId) -> Option<TaskState> {
        Some(match self.tasks.get(&task)?.phase {
            Phase::Queued => TaskState::Queued,
            Phase::Resting { .. } => TaskState::Retrying,
            Phase::Starting { .. } | Phase::Running { .. } => TaskState::Running,
            Phase::Halted { .. } => TaskState::Paused,
            Phase::Asked { .. } | Phase::Killed { .. } => TaskState::Stopping,
        })
    }

    fn phase(&self, task: TaskId) -> Result<Phase, PoolRefusal> {
        self.tasks.get(&task).map(|task| task.phase).ok_or(PoolRefusal::Unknown)
    }

    fn not_running(&self, task: TaskId) -> PoolRefusal {
        self.state(task).map_or(PoolRefusal::Unknown, PoolRefusal::NotRunning)
    }

    fn enter(&mut self, task: TaskId, phase: Phase) {
        if let Some(of) = self.tasks.get_mut(&task) {
            if let Some(before) = of.phase.deadline() {
                self.deadlines.remove(&(before, task));
            }
            if let Some(at) = phase.deadline() {
                self.deadlines.insert((at, task));
            }
            of.phase = phase;
        }
    }

    fn forget(&mut self, task: TaskId) {
        if let Some(of) = self.tasks.remove(&task) {
            if let Some(at) = of.phase.deadline() {
                self.deadlines.remove(&(at, task));
            }
            self.queue.remove(&(Reverse(of.terms.priority), of.number));
        }
    }

    fn cancel(
        &mut self,
        now: Duration,
        task: TaskId,
        at_once: bool,
        effects: &mut Vec<PoolEffect>,
    ) -> Result<(), PoolRefusal> {
        let why = Reason::Cancelled;
        match self.phase(task)? {
            Phase::Queued | Phase::Resting { .. } => {
                self.forget(task);
                effects.push(PoolEffect::Over(task, TaskEnd::Cancelled, false));
            }
            Phase::Starting { worker } | Phase::Running { worker, .. } | Phase::Halted { worker, .. } => {
                self.end(now, task, worker, why, at_once, effects);
            }
            Phase::Asked { worker, why, .. } if at_once => {
                self.enter(task, Phase::Killed { worker, why });
                effects.push(PoolEffect::Kill(worker, task));
            }
            Phase::Asked { .. } | Phase::Killed { .. } => {}
        }
        Ok(())
    }

    fn end(
        &mut self,
        now: Duration,
        task: TaskId,
        worker: WorkerId,
        why: Reason,
        at_once: bool,
        effects: &mut Vec<PoolEffect>,
    ) {
        let grace = self.tasks.get(&task).map_or(Duration::ZERO, |task| task.terms.grace);
        if at_once || grace.is_zero() {
            self.enter(task, Phase::Killed { worker, why });
            effects.push(PoolEffect::Kill(worker, task));
        } else {
            self.enter(task, Phase::Asked { worker, why, kill_at: now.saturating_add(grace) });
            effects.push(PoolEffect::Ask(worker, task));
        }
    }

    fn tick(&mut self, now: Duration, effects: &mut Vec<PoolEffect>) {
        while let Some((at, task)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            let Ok(phase) = self.phase(task) else {
                self.deadlines.remove(&(at, task));
                continue;
            };
            match phase {
                Phase::Resting { .. } => {
                    self.enter(task, Phase::Queued);
                    if let Some(of) = self.tasks.get(&task) {
                        self.queue.insert((Reverse(of.terms.priority), of.number), task);
                    }
                }
                Phase::Running { worker, .. } => {
                    self.end(now, task, worker, Reason::TimedOut, false, effects);
                }
                Phase::Asked { worker, why, .. } => {
                    self.enter(task, Phase::Killed { worker, why });
                    effects.push(PoolEffect::Kill(worker, task));
                }
                // These have no deadline.
                Phase::Queued | Phase::Starting { .. } | Phase::Halted { .. } | Phase::Killed { .. } => {
                    self.deadlines.remove(&(at, task));
                }
            }
        }
    }

    fn done(
        &mut self,
        now: Duration,
        worker: WorkerId,
        task: TaskId,
        outcome: RunOutcome,
        effects: &mut Vec<PoolEffect>,
    ) {
        // A late report: the worker is gone, or runs another task by now.
        if self.workers.get(&worker) != Some(&Some(task)) {
            return;
        }
        self.workers.insert(worker, None);
        self.ended(now, task, Some(outcome), effects);
    }

    /// Ends or repeats a task whose run is over; `outcome` is `None` when its worker failed.
    fn ended(
        &mut self,
        now: Duration,
        task: TaskId,
        outcome: Option<RunOutcome>,
        effects: &mut Vec<PoolEffect>,
    ) {
        let Some(Task { terms, attempt, phase, .. }) = self.tasks.get(&task).copied() else {
            return;
        };
        let of = |why| match why {
            Reason::TimedOut => TaskEnd::TimedOut,
            Reason::Cancelled => TaskEnd::Cancelled,
        };
        let (end, by_force) = match (phase, outcome) {
            (Phase::Asked { why, .. }, _) => (of(why), false),
            (Phase::Killed { why, .. }, _) => (of(why), true),
            (_, None) => (TaskEnd::Lost, true),
            (_, Some(RunOutcome::NotStarted | RunOutcome::Shortage)) => (TaskEnd::NotStarted, false),
            (_, Some(RunOutcome::Success | RunOutcome::Failure)) => (TaskEnd::Exited, false),
        };
        let again = match (end, outcome) {
            (TaskEnd::Cancelled, _) | (_, Some(RunOutcome::NotStarted)) => false,
            (TaskEnd::Exited, Some(RunOutcome::Success)) => false,
            _ => attempt <= terms.retries && self.door != Door::Closed,
        };
        if !again {
            self.forget(task);
            effects.push(PoolEffect::Over(task, end, by_force));
            return;
        }
        let factor = 1u32.checked_shl(attempt - 1).unwrap_or(u32::MAX);
        let until = now.saturating_add(terms.retry_delay.saturating_mul(factor).min(LONGEST_DELAY));
        self.enter(task, Phase::Resting { until });
        if let Some(of) = self.tasks.get_mut(&task) {
            of.attempt += 1;
        }
        effects.push(PoolEffect::Again(task, until));
    }

    /// Makes or retires workers up to the wanted number, and gives waiting tasks to idle workers.
    fn adjust(&mut self, effects: &mut Vec<PoolEffect>) {
        let wanted =
            if self.door == Door::Closed && self.tasks.is_empty() { 0 } else { self.wanted as usize };
        loop {
            let staying = self.workers.len() - self.leaving.len();
            if staying < wanted {
                // A worker that was to retire stays instead.
                if let Some(worker) = self.leaving.pop_last() {
                    debug_assert!(self.workers.contains_key(&worker));
                    continue;
                }
                self.made += 1;
                let worker = WorkerId(self.made);
                self.workers.insert(worker, None);
                effects.push(PoolEffect::Make(worker));
            } else if staying > wanted {
                let newest = self.workers.iter().rev().filter(|(worker, _)| !self.leaving.contains(worker));
                let idle = newest.clone().find(|(_, runs)| runs.is_none());
                let Some(worker) = idle.or(newest.clone().next()).map(|(worker, _)| *worker) else {
                    break;
                };
                self.leaving.insert(worker);
            } else {
                break;
            }
        }
        let gone: Vec<WorkerId> =
            self.leaving.iter().copied().filter(|worker| self.workers.get(worker) == Some(&None)).collect();
        for worker in gone {
            self.leaving.remove(&worker);
            self.workers.remove(&worker);
            effects.push(PoolEffect::Retire(worker));
        }
        while !self.queue.is_empty() {
            let free = |(worker, runs): &(&WorkerId, &Option<TaskId>)| {
                runs.is_none() && !self.leaving.contains(*worker)
            };
            let Some(worker) = self.workers.iter().find(free).map(|(worker, _)| *worker) else {
                break;
            };
            let Some((_, task)) = self.queue.pop_first() else {
                break;
            };
            self.workers.insert(worker, Some(task));
            self.enter(task, Phase::Starting { worker });
            let attempt = self.tasks.get(&task).map_or(1, |task| task.attempt);
            effects.push(PoolEffect::Run(worker, task, attempt));
        }
    }
}

#[cfg(test)]
mod tests;
