//! Tests of the pool, with random sequences of inputs.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn task(n: u64) -> TaskId {
    TaskId(Uuid::from_u64_pair(0, n))
}

const TERMS: TaskTerms = TaskTerms {
    priority: 0,
    timeout: None,
    grace: Duration::from_secs(5),
    retries: 0,
    retry_delay: Duration::from_secs(1),
};

fn pool(min: u32, max: u32, queue: usize) -> Pool {
    Pool::new(PoolSize { min, max, queue })
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[derive(Debug, Clone)]
enum Act {
    Submit { priority: i32, timeout: Option<u64>, retries: u32 },
    Spawned(usize),
    Done(usize, bool),
    NotStarted(usize),
    Late(usize),
    Dies(usize),
    Cancel(usize, bool),
    Pause(usize),
    Resume(usize),
    Scale(u32),
    Pass(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let which = 0..12usize;
    prop_oneof![
        5 => (-1..2i32, proptest::option::of(1..5u64), 0..3u32)
            .prop_map(|(priority, timeout, retries)| Act::Submit { priority, timeout, retries }),
        4 => which.clone().prop_map(Act::Spawned),
        4 => (which.clone(), any::<bool>()).prop_map(|(n, well)| Act::Done(n, well)),
        1 => which.clone().prop_map(Act::NotStarted),
        1 => which.clone().prop_map(Act::Late),
        1 => which.clone().prop_map(Act::Dies),
        2 => (which.clone(), any::<bool>()).prop_map(|(n, at_once)| Act::Cancel(n, at_once)),
        1 => which.clone().prop_map(Act::Pause),
        1 => which.prop_map(Act::Resume),
        1 => (0..8u32).prop_map(Act::Scale),
        3 => (0..4u64).prop_map(Act::Pass),
    ]
}

/// The simulated surroundings of a pool: what its effects add up to.
#[derive(Default)]
struct World {
    workers: HashMap<WorkerId, Option<TaskId>>,
    /// How often each task was reported as over.
    over: HashMap<TaskId, u32>,
    submitted: Vec<TaskId>,
    asked: HashSet<TaskId>,
}

impl World {
    fn see(&mut self, pool: &Pool, effects: &[PoolEffect]) -> Result<(), TestCaseError> {
        for effect in effects {
            match *effect {
                PoolEffect::Make(worker) => {
                    prop_assert!(self.workers.insert(worker, None).is_none(), "a worker is made once");
                }
                PoolEffect::Retire(worker) => {
                    prop_assert_eq!(self.workers.remove(&worker), Some(None), "only who does nothing goes");
                }
                PoolEffect::Run(worker, task, _) => {
                    prop_assert_eq!(self.workers.get(&worker), Some(&None), "one task at a time");
                    prop_assert!(!self.workers.values().any(|runs| *runs == Some(task)), "a task runs once");
                    prop_assert!(!self.over.contains_key(&task), "what is over stays over");
                    self.workers.insert(worker, Some(task));
                    self.asked.remove(&task);
                }
                PoolEffect::Ask(worker, task) => {
                    prop_assert_eq!(self.workers.get(&worker), Some(&Some(task)));
                    prop_assert!(self.asked.insert(task), "asked once");
                }
                PoolEffect::Kill(worker, task)
                | PoolEffect::Halt(worker, task)
                | PoolEffect::Continue(worker, task) => {
                    prop_assert_eq!(self.workers.get(&worker), Some(&Some(task)), "whose process it is");
                }
                PoolEffect::Again(task, _) => prop_assert!(!self.over.contains_key(&task)),
                PoolEffect::Over(task, ..) => *self.over.entry(task).or_default() += 1,
            }
        }
        let PoolCounts { workers, busy, wanted, queued, .. } = pool.snapshot();
        prop_assert_eq!(workers, self.workers.len());
        prop_assert_eq!(busy, self.workers.values().flatten().count());
        let staying = workers - pool.leaving.len();
        prop_assert_eq!(staying, wanted as usize, "as many as are wanted");
        prop_assert!(workers - busy == 0 || queued == 0, "nobody rests while somebody waits");
        prop_assert!(self.over.values().all(|times| *times == 1), "each ends once");
        prop_assert_eq!(self.over.len() + pool.tasks.len(), self.submitted.len(), "none is lost");
        let deadlines = pool.tasks.values().filter(|task| task.phase.deadline().is_some()).count();
        prop_assert_eq!(deadlines, pool.deadlines.len());
        Ok(())
    }

    /// A busy worker and its task, picked by `n`; `None` when no worker is busy.
    fn busy(&self, n: usize) -> Option<(WorkerId, TaskId)> {
        let mut busy: Vec<_> = self.workers.iter().filter_map(|(w, t)| Some((*w, (*t)?))).collect();
        busy.sort_unstable();
        (!busy.is_empty()).then(|| busy[n % busy.len()])
    }
}

proptest! {
    #[test]
    fn whatever_happens_each_task_ends_once_and_no_worker_has_two(
        acts in proptest::collection::vec(act(), 1..150)
    ) {
        let (mut pool, mut world, mut now) = (pool(1, 6, 20), World::default(), seconds(0));
        for (number, act) in acts.into_iter().enumerate() {
            let mut effects = Vec::new();
            let e = &mut effects;
            let any = |n: usize, world: &World| {
                let all = &world.submitted;
                (!all.is_empty()).then(|| all[n % all.len()])
            };
            match act {
                Act::Submit { priority, timeout, retries } => {
                    let task = task(number as u64);
                    let terms = TaskTerms { priority, timeout: timeout.map(seconds), retries, ..TERMS };
                    let before = pool.snapshot();
                    match pool.submit(&[(task, terms)], e) {
                        Ok(()) => world.submitted.push(task),
                        Err(_) => prop_assert!(before.queued >= 20, "refused only where it is full"),
                    }
                }
                Act::Spawned(n) => {
                    if let Some((worker, task)) = world.busy(n) {
                        let _ = pool.step(now, PoolInput::Started(worker, task), e);
                    }
                }
                Act::Done(n, well) => {
                    if let Some((worker, task)) = world.busy(n) {
                        let outcome = if well { RunOutcome::Success } else { RunOutcome::Failure };
                        world.workers.insert(worker, None);
                        let _ = pool.step(now, PoolInput::Done(worker, task, outcome), e);
                    }
                }
                Act::NotStarted(n) => {
                    if let Some((worker, task)) = world.busy(n) {
                        world.workers.insert(worker, None);
                        let _ = pool.step(now, PoolInput::Done(worker, task, RunOutcome::NotStarted), e);
                    }
                }
                Act::Late(n) => {
                    // A report about a task that the worker does not run, and one from an unknown worker.
                    if let (Some(task), Some((worker, other))) = (any(n, &world), world.busy(n))
                        && other != task
                    {
                        let _ = pool.step(now, PoolInput::Done(worker, task, RunOutcome::Success), e);
                        let _ = pool.step(now, PoolInput::Done(WorkerId(9_999), other, RunOutcome::Success), e);
                        prop_assert!(e.is_empty(), "late news changes nothing: {e:?}");
                    }
                }
                Act::Dies(n) => {
                    if let Some((worker, _)) = world.busy(n) {
                        world.workers.remove(&worker);
                        let _ = pool.step(now, PoolInput::WorkerDied(worker), e);
                    }
                }
                Act::Cancel(n, at_once) => {
                    if let Some(task) = any(n, &world) {
                        let known = pool.state(task).is_some();
                        prop_assert_eq!(pool.step(now, PoolInput::Cancel(task, at_once), e).is_ok(), known);
                    }
                }
                Act::Pause(n) => {
                    if let Some(task) = any(n, &world) {
                        let _ = pool.step(now, PoolInput::Pause(task), e);
                    }
                }
                Act::Resume(n) => {
                    if let Some(task) = any(n, &world) {
                        let _ = pool.step(now, PoolInput::Resume(task), e);
                    }
                }
                Act::Scale(n) => {
                    let _ = pool.step(now, PoolInput::Scale(n), e);
                }
                Act::Pass(n) => {
                    now += seconds(n);
                    let _ = pool.step(now, PoolInput::Tick, e);
                    prop_assert!(pool.next_deadline().is_none_or(|at| at > now), "nothing is left undone");
                }
            }
            if !pool.workers.is_empty() || !effects.is_empty() {
                world.see(&pool, &effects)?;
            }
        }
        // A close ends every task that is left.
        let mut effects = Vec::new();
        let _ = pool.step(now, PoolInput::Close(false), &mut effects);
        for _ in 0..10 {
            for effect in std::mem::take(&mut effects) {
                match effect {
                    PoolEffect::Make(worker) => { world.workers.insert(worker, None); }
                    PoolEffect::Retire(worker) => { world.workers.remove(&worker); }
                    PoolEffect::Run(..) => prop_assert!(false, "nothing is run any more"),
                    PoolEffect::Over(task, ..) => *world.over.entry(task).or_default() += 1,
                    PoolEffect::Kill(worker, task) => {
                        world.workers.insert(worker, None);
                        let _ = pool.step(now, PoolInput::Done(worker, task, RunOutcome::Failure), &mut effects);
                    }
                    PoolEffect::Ask(..) | PoolEffect::Halt(..) | PoolEffect::Continue(..) | PoolEffect::Again(..) => {}
                }
            }
            now += seconds(5);
            let _ = pool.step(now, PoolInput::Tick, &mut effects);
        }
        // The kills from before the close are still unanswered.
        let killed: Vec<(WorkerId, TaskId)> =
            pool.workers.iter().filter_map(|(worker, runs)| Some((*worker, (*runs)?))).collect();
        for (worker, task) in killed {
            let _ = pool.step(now, PoolInput::Done(worker, task, RunOutcome::Failure), &mut effects);
        }
        prop_assert!(pool.is_empty() && pool.workers.is_empty(), "{pool:?}");
    }
}

fn runs(effects: &[PoolEffect]) -> Vec<TaskId> {
    effects
        .iter()
        .filter_map(|effect| if let PoolEffect::Run(_, task, _) = effect { Some(*task) } else { None })
        .collect()
}

#[test]
fn the_first_of_the_highest_priority_goes_first() {
    let (mut pool, mut effects) = (pool(1, 1, 10), Vec::new());
    let terms = |priority| TaskTerms { priority, ..TERMS };
    let all: Vec<_> = [0, 0, 5, 5, -1].iter().zip(1..).map(|(p, n)| (task(n), terms(*p))).collect();
    pool.submit(&all, &mut effects).unwrap();
    let mut order = runs(&effects);
    while let Some(last) = order.last().copied().filter(|_| order.len() < 5) {
        let mut effects = Vec::new();
        pool.step(seconds(0), PoolInput::Done(WorkerId(1), last, RunOutcome::Success), &mut effects).unwrap();
        order.extend(runs(&effects));
    }
    assert_eq!(order, [3, 4, 1, 2, 5].map(task));
}

#[test]
fn a_full_queue_says_so_and_takes_none_of_a_batch() {
    let (mut pool, mut effects) = (pool(2, 2, 3), Vec::new());
    let batch: Vec<_> = (1..=6).map(|n| (task(n), TERMS)).collect();
    assert_eq!(pool.submit(&batch, &mut effects), Err(PoolRefusal::Full { waiting: 0, queue: 3 }));
    assert!(pool.is_empty());
    pool.submit(&batch[..5], &mut effects).unwrap();
    assert_eq!(runs(&effects).len(), 2);
    assert_eq!(pool.submit(&batch[5..], &mut effects), Err(PoolRefusal::Full { waiting: 3, queue: 3 }));
}

#[test]
fn who_overruns_its_time_is_killed_but_a_pause_does_not_count() {
    let (mut pool, mut effects) = (pool(1, 1, 3), Vec::new());
    let terms = TaskTerms { timeout: Some(seconds(10)), ..TERMS };
    pool.submit(&[(task(1), terms)], &mut effects).unwrap();
    let one = WorkerId(1);
    pool.step(seconds(0), PoolInput::Started(one, task(1)), &mut effects).unwrap();
    pool.step(seconds(4), PoolInput::Pause(task(1)), &mut effects).unwrap();
    assert_eq!(
        pool.step(seconds(4), PoolInput::Pause(task(1)), &mut effects),
        Err(PoolRefusal::NotRunning(TaskState::Paused))
    );
    assert_eq!(pool.next_deadline(), None, "its time stands still");
    pool.step(seconds(100), PoolInput::Resume(task(1)), &mut effects).unwrap();
    assert_eq!(pool.next_deadline(), Some(seconds(106)));
    effects.clear();
    pool.step(seconds(106), PoolInput::Tick, &mut effects).unwrap();
    pool.step(seconds(111), PoolInput::Tick, &mut effects).unwrap();
    assert_eq!(effects, [PoolEffect::Ask(one, task(1)), PoolEffect::Kill(one, task(1))]);
    effects.clear();
    pool.step(seconds(112), PoolInput::Done(one, task(1), RunOutcome::Failure), &mut effects).unwrap();
    assert_eq!(effects, [PoolEffect::Over(task(1), TaskEnd::TimedOut, true)]);
}

#[test]
fn failures_are_retried_ever_later_and_dead_workers_replaced() {
    let (mut pool, mut effects) = (pool(1, 1, 3), Vec::new());
    let terms = TaskTerms { retries: 2, ..TERMS };
    pool.submit(&[(task(1), terms)], &mut effects).unwrap();
    effects.clear();
    pool.step(seconds(0), PoolInput::Done(WorkerId(1), task(1), RunOutcome::Failure), &mut effects).unwrap();
    assert_eq!(effects, [PoolEffect::Again(task(1), seconds(1))]);
    effects.clear();
    pool.step(seconds(1), PoolInput::Tick, &mut effects).unwrap();
    assert_eq!(effects, [PoolEffect::Run(WorkerId(1), task(1), 2)]);
    effects.clear();
    pool.step(seconds(5), PoolInput::WorkerDied(WorkerId(1)), &mut effects).unwrap();
    assert_eq!(effects, [PoolEffect::Again(task(1), seconds(7)), PoolEffect::Make(WorkerId(2))]);
    effects.clear();
    pool.step(seconds(7), PoolInput::Tick, &mut effects).unwrap();
    pool.step(seconds(8), PoolInput::WorkerDied(WorkerId(2)), &mut effects).unwrap();
    let over = PoolEffect::Over(task(1), TaskEnd::Lost, true);
    assert_eq!(effects[1..], [over, PoolEffect::Make(WorkerId(3))]);
}

#[test]
fn a_smaller_pool_lets_what_runs_end() {
    let (mut pool, mut effects) = (pool(1, 4, 10), Vec::new());
    pool.step(seconds(0), PoolInput::Scale(4), &mut effects).unwrap();
    let batch: Vec<_> = (1..=6).map(|n| (task(n), TERMS)).collect();
    pool.submit(&batch, &mut effects).unwrap();
    effects.clear();
    pool.step(seconds(0), PoolInput::Scale(1), &mut effects).unwrap();
    assert!(effects.is_empty(), "nobody is cut off: {effects:?}");
    pool.step(seconds(1), PoolInput::Done(WorkerId(4), task(4), RunOutcome::Success), &mut effects).unwrap();
    assert_eq!(effects[1..], [PoolEffect::Retire(WorkerId(4))], "and takes nothing more");
}

#[test]
fn a_draining_pool_takes_nothing_and_a_closing_one_kills() {
    let (mut pool, mut effects) = (pool(1, 1, 10), Vec::new());
    pool.submit(&[(task(1), TERMS), (task(2), TERMS)], &mut effects).unwrap();
    pool.step(seconds(0), PoolInput::Drain, &mut effects).unwrap();
    assert_eq!(pool.submit(&[(task(3), TERMS)], &mut effects), Err(PoolRefusal::Closing));
    effects.clear();
    pool.step(seconds(0), PoolInput::Done(WorkerId(1), task(1), RunOutcome::Success), &mut effects).unwrap();
    assert_eq!(runs(&effects), [task(2)]);
    effects.clear();
    pool.step(seconds(0), PoolInput::Close(true), &mut effects).unwrap();
    assert_eq!(effects, [PoolEffect::Kill(WorkerId(1), task(2))]);
}
