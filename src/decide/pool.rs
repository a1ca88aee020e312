//! The worker pool: who of those that wait is run next, by whom, and until when.
//!
//! A worker runs one task at a time. There are as many as are wanted, between two bounds; one that is
//! not wanted any more goes when its task is over. Of those that wait the highest priority goes first,
//! and among equals who came first. Time is an argument; processes and actors are elsewhere, and tell
//! what becomes of a task by an input that names the worker: late news of one that is gone is dropped.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::model::task::{TaskEnd, TaskId, TaskState};

/// A worker; never used twice in one pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u64);

/// The largest pool.
pub const MOST_WORKERS: u32 = 1_000;

/// How large a pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSize {
    /// So many workers at least.
    pub min: u32,
    /// And at most.
    pub max: u32,
    /// So many tasks may wait.
    pub queue: usize,
}

/// What a task is to be to a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskTerms {
    /// Higher ones are run first.
    pub priority: i32,
    /// It is ended when it has run for so long.
    pub timeout: Option<Duration>,
    /// Who is ended has so long before it is killed.
    pub grace: Duration,
    /// So often it is run again when it fails.
    pub retries: u32,
    /// After so long the first time, and each time twice as long.
    pub retry_delay: Duration,
}

/// The longest delay between two runs of one task.
const LONGEST_DELAY: Duration = Duration::from_secs(300);

/// What came of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunOutcome {
    /// It ended with success.
    Success,
    /// It did not.
    Failure,
    /// There was no process, and there will not be one: no such program.
    NotStarted,
    /// There was none for want of memory, descriptors or the like.
    Shortage,
}

/// What a pool is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolInput {
    /// A task's process runs.
    Started(WorkerId, TaskId),
    /// One run of a task is over.
    Done(WorkerId, TaskId, RunOutcome),
    /// A worker broke; its process was ended.
    WorkerDied(WorkerId),
    /// Somebody wants a task no more; `true`: at once.
    Cancel(TaskId, bool),
    /// A task is to stand still.
    Pause(TaskId),
    /// And to go on.
    Resume(TaskId),
    /// So many workers are wanted.
    Scale(u32),
    /// So many at least and at most.
    Bounds(u32, u32),
    /// Nothing new is taken; what there is, is run.
    Drain,
    /// Nothing new is taken, and all there is is cancelled; `true`: at once.
    Close(bool),
    /// It is so late.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolEffect {
    /// Make a worker.
    Make(WorkerId),
    /// A worker that does nothing may go.
    Retire(WorkerId),
    /// Run a task, for the so manieth time.
    Run(WorkerId, TaskId, u32),
    /// Ask its process to end.
    Ask(WorkerId, TaskId),
    /// End it by force.
    Kill(WorkerId, TaskId),
    /// Halt it.
    Halt(WorkerId, TaskId),
    /// Let it go on.
    Continue(WorkerId, TaskId),
    /// It has failed, and is run again at this time.
    Again(TaskId, Duration),
    /// It is over: so, and whether force was needed.
    Over(TaskId, TaskEnd, bool),
}

/// Why a task is not taken, or can't be what somebody wants it to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolRefusal {
    /// So many wait already, of so many that may.
    Full {
        /// Those that wait.
        waiting: usize,
        /// Those that may.
        queue: usize,
    },
    /// The pool takes no more.
    Closing,
    /// There is no such task, or it is over.
    Unknown,
    /// Only what runs can be halted, and only what is halted goes on.
    NotRunning(TaskState),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Open,
    /// What there is, is run.
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
    /// It has failed, and waits to be run again.
    Resting {
        until: Duration,
    },
    /// A worker makes its process.
    Starting {
        worker: WorkerId,
    },
    Running {
        worker: WorkerId,
        deadline: Option<Duration>,
    },
    /// Its time stands still with it.
    Halted {
        worker: WorkerId,
        left: Option<Duration>,
    },
    /// It was asked to end, and is killed then.
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
    /// When something is to be done about it.
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

/// How a pool stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolCounts {
    /// Workers, those that are to go included.
    pub workers: usize,
    /// Of these, those that run something.
    pub busy: usize,
    /// So many are wanted.
    pub wanted: u32,
    /// Tasks that wait for a worker.
    pub queued: usize,
    /// Tasks that wait to be run again.
    pub retrying: usize,
}

/// A pool of workers and its tasks.
#[derive(Debug)]
pub struct Pool {
    size: PoolSize,
    wanted: u32,
    door: Door,
    /// What each runs.
    workers: BTreeMap<WorkerId, Option<TaskId>>,
    leaving: BTreeSet<WorkerId>,
    queue: BTreeMap<(Reverse<i32>, u64), TaskId>,
    tasks: HashMap<TaskId, Task>,
    deadlines: BTreeSet<(Duration, TaskId)>,
    made: u64,
    taken: u64,
}

impl Pool {
    /// Without workers; the first input, whatever it is, has them made.
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

    /// Takes tasks, all of them or none.
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

    /// What follows from what is told.
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

    /// When it wants to be told the time.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// How it stands.
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

    /// How large it is.
    pub fn size(&self) -> PoolSize {
        self.size
    }

    /// Whether there is nothing left to do.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// How a task stands, if it is not over.
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
        // Late news of one that is gone, or does something else by now.
        if self.workers.get(&worker) != Some(&Some(task)) {
            return;
        }
        self.workers.insert(worker, None);
        self.ended(now, task, Some(outcome), effects);
    }

    /// A run is over; `None`: its worker broke.
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

    /// Workers as many as are wanted, and each that can has something to do.
    fn adjust(&mut self, effects: &mut Vec<PoolEffect>) {
        let wanted =
            if self.door == Door::Closed && self.tasks.is_empty() { 0 } else { self.wanted as usize };
        loop {
            let staying = self.workers.len() - self.leaving.len();
            if staying < wanted {
                // One that was to go may stay as well.
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
