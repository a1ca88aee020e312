//! Runs commands and blocking functions through the pools of a Rust program: the two default ones,
//! and two of its own.
//!
//! `cargo run --no-default-features --example pools`

use std::sync::Arc;
use std::time::Duration;

use regrow::actors::worker_pool::TaskRules;
use regrow::decide::pool::PoolSize;
use regrow::model::{Name, Plan, TaskSpec};
use regrow::runtime::blocking::BlockingSize;
use regrow::runtime::pools::PoolStatus;
use regrow::runtime::{Handle, Options};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut plan = Plan::of("pools", Vec::new());
    plan.inherited = Arc::new(std::env::vars_os().collect());
    let tree = Handle::start(plan, Options::default()).await?;
    let pools = tree.pools();

    // A command can be run to its end, or submitted and awaited later.
    let hello = pools.commands().run(TaskSpec::new(["echo", "hello"]), "me").await?;
    println!("{} said {:?}", hello.pid.unwrap_or(0), String::from_utf8_lossy(&hello.stdout.bytes));

    // Commands that run one at a time, in a pool of their own.
    let rules = TaskRules { size: PoolSize { min: 1, max: 1, queue: 100 }, ..pools.rules().clone() };
    let builds = pools.create_commands(Name::new("builds")?, rules).await?;
    let mut slow = TaskSpec::new(["sleep", "1000"]);
    slow.grace = Duration::from_secs(1);
    let ids = builds.submit(vec![slow, TaskSpec::shell("echo built")], "me").await?;
    println!("the second is {}", builds.status(ids[1]).await?.state);
    builds.cancel(ids[0], false).await?;
    println!("and then said {:?}", String::from_utf8_lossy(&builds.result(ids[1], 1024).await?.stdout.bytes));

    // Blocking functions, four at a time.
    let size = BlockingSize { workers: 4, queue: 1_000 };
    let sums = pools.create_blocking(Name::new("sums")?, size)?;
    let jobs: Vec<_> =
        (0..8u64).map(|n| sums.submit(move || (0..=n * 1_000_000).sum::<u64>())).collect::<Result<_, _>>()?;
    for job in jobs {
        println!("{}", job.await?);
    }

    for (name, status) in pools.list().await {
        match status {
            PoolStatus::Commands(pool) => println!("{name}: {} of {} workers busy", pool.busy, pool.workers),
            PoolStatus::Blocking(size, pool) => {
                println!("{name}: {} done, {} at a time", pool.done, size.workers);
            }
        }
    }
    pools.remove("builds", true).await?;
    pools.remove("sums", true).await?;
    tree.shutdown().await?;
    Ok(())
}
