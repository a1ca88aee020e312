//! Why the worker pool is not ractor's factory: the cost of handing on a job in each, and what
//! becomes of a job whose worker panics.
//!
//! `cargo bench --bench factory` prints the figures that docs/decisions cite.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ractor::factory::queues::DefaultQueue;
use ractor::factory::routing::QueuerRouting;
use ractor::factory::{
    Factory, FactoryArguments, FactoryMessage, Job, JobOptions, Worker, WorkerBuilder, WorkerId,
};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use regrow::decide::pool::{Pool, PoolEffect, PoolInput, PoolSize, RunOutcome, TaskTerms};
use regrow::model::TaskId;
use regrow::sys::ids;

const JOBS: u64 = 200_000;

struct Counts {
    done: AtomicU64,
    /// The interval of jobs that make their worker panic; 0 for none.
    breaks: u64,
}

struct Counter(Arc<Counts>);

impl Worker for Counter {
    type Key = u64;
    type Message = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(
        &self,
        _: WorkerId,
        _: &ActorRef<FactoryMessage<u64, ()>>,
        (): (),
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: WorkerId,
        _: &ActorRef<FactoryMessage<u64, ()>>,
        job: Job<u64, ()>,
        (): &mut (),
    ) -> Result<u64, ActorProcessingErr> {
        if self.0.breaks > 0 && job.key.is_multiple_of(self.0.breaks) {
            return Err("broken".into());
        }
        self.0.done.fetch_add(1, Ordering::Relaxed);
        Ok(job.key)
    }
}

struct Build(Arc<Counts>);

impl WorkerBuilder<Counter, ()> for Build {
    fn build(&mut self, _: WorkerId) -> (Counter, ()) {
        (Counter(Arc::clone(&self.0)), ())
    }
}

/// How many of `jobs` jobs a factory does, and in what time.
async fn factory(jobs: u64, breaks: u64) -> (u64, Duration) {
    let counts = Arc::new(Counts { done: AtomicU64::new(0), breaks });
    let definition =
        Factory::<u64, (), (), Counter, QueuerRouting<u64, ()>, DefaultQueue<u64, ()>>::default();
    let arguments = FactoryArguments::builder()
        .num_initial_workers(4)
        .queue(DefaultQueue::default())
        .router(QueuerRouting::default())
        .worker_builder(Box::new(Build(Arc::clone(&counts))) as Box<dyn WorkerBuilder<Counter, ()>>)
        .build();
    let (factory, ended) = Actor::spawn(None, definition, arguments).await.unwrap();
    let begin = Instant::now();
    for key in 1..=jobs {
        let job = Job { key, msg: (), options: JobOptions::default(), accepted: None };
        factory.cast(FactoryMessage::Dispatch(job)).unwrap();
    }
    let expected = jobs - jobs.checked_div(breaks).unwrap_or(0);
    let enough = Instant::now() + Duration::from_secs(10);
    while counts.done.load(Ordering::Relaxed) < expected && Instant::now() < enough {
        tokio::task::yield_now().await;
    }
    let took = begin.elapsed();
    factory.stop(None);
    ended.await.unwrap();
    (counts.done.load(Ordering::Relaxed), took)
}

/// The time that the pool needs to decide on as many tasks, from the queue to the end.
fn decisions() -> Duration {
    let size = PoolSize { min: 4, max: 4, queue: 10_000 };
    let terms = TaskTerms {
        priority: 0,
        timeout: None,
        grace: Duration::from_secs(30),
        retries: 0,
        retry_delay: Duration::from_secs(1),
    };
    let mut pool = Pool::new(size);
    let (mut effects, mut over) = (Vec::new(), 0);
    let begin = Instant::now();
    while over < JOBS {
        let tasks: Vec<(TaskId, TaskTerms)> = (0..1_000).map(|_| (ids::task(), terms)).collect();
        pool.submit(&tasks, &mut effects).unwrap();
        while let Some(effect) = effects.pop() {
            let now = begin.elapsed();
            match effect {
                PoolEffect::Run(worker, task, _) => {
                    pool.step(now, PoolInput::Started(worker, task), &mut effects).unwrap();
                    pool.step(now, PoolInput::Done(worker, task, RunOutcome::Success), &mut effects).unwrap();
                }
                PoolEffect::Over(..) => over += 1,
                _ => {}
            }
        }
    }
    begin.elapsed()
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (_, took) = runtime.block_on(factory(JOBS, 0));
    let micros = |took: Duration| took.as_secs_f64() * 1e6 / JOBS as f64;
    println!("{:<60} {:>8.2} us", "ractor's factory, a job that does nothing", micros(took));
    println!("{:<60} {:>8.2} us", "the pool's decisions for a task, ids included", micros(decisions()));
    let (done, _) = runtime.block_on(factory(1_000, 100));
    println!(
        "{:<60} {:>8}",
        "ractor's factory, of 1000 jobs with 10 that break their worker",
        format!("{done} done")
    );
}
