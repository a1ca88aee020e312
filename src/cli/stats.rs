//! `pool` and `stats`: how many commands run at a time, and what they come to.

use std::time::Duration;

use super::remote::{print_json, say, talk};
use super::{Common, PoolVerb, StatsArgs, code, format, usage_error};
use crate::control::protocol::SetPool;
use crate::decide::words::short;
use crate::model::stats::{CacheStats, Performance, PoolStats, Stats};

pub(super) fn pool(verb: PoolVerb) -> u8 {
    let (set, common) = match verb {
        PoolVerb::Status { common } => {
            return talk(&common, async |mut client| {
                let stats: Stats = client.get("/v1/stats").await?;
                show_pool(&stats.pool, &common);
                Ok(code::DONE)
            });
        }
        PoolVerb::Set { min, max, auto, common } => (SetPool { min, max, auto, workers: None }, common),
        PoolVerb::Scale { workers, common } => {
            (SetPool { workers: Some(workers), auto: Some(false), ..SetPool::default() }, common)
        }
    };
    if set == SetPool::default() {
        return usage_error("pool", "say --min, --max or --auto");
    }
    talk(&common, async |mut client| {
        let pool: PoolStats = client.post("/v1/pool", &set).await?;
        show_pool(&pool, &common);
        Ok(code::DONE)
    })
}

fn show_pool(pool: &PoolStats, common: &Common) {
    if common.json {
        print_json(pool);
    } else {
        say(&pool_in_words(pool));
    }
}

fn pool_in_words(pool: &PoolStats) -> String {
    let PoolStats { workers, busy, wanted, min, max, queued, queue, retrying } = pool;
    let again = if *retrying > 0 { format!(", {retrying} to be run again") } else { String::new() };
    format!(
        "{busy} of {workers} workers busy ({wanted} wanted, {min} to {max}), {queued} of {queue} waiting{again}"
    )
}

pub(super) fn stats(args: StatsArgs) -> u8 {
    let StatsArgs { common } = args;
    talk(&common, async |mut client| {
        let stats: Stats = client.get("/v1/stats").await?;
        if common.json {
            print_json(&stats);
        } else {
            in_words(&stats).iter().for_each(|line| say(line));
        }
        Ok(code::DONE)
    })
}

fn seconds(seconds: f64) -> String {
    short(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

fn in_words(stats: &Stats) -> Vec<String> {
    let Stats { daemon, pool, cache, resources, scaler, processes, thresholds, performance } = stats;
    let mut lines = vec![format!(
        "{}: pid {}, regrow {}, up {}",
        daemon.project,
        daemon.pid,
        daemon.version,
        format::uptime(daemon.uptime_s)
    )];
    lines.push(format!("pool       {}", pool_in_words(pool)));
    let by_itself = if scaler.auto { "by itself" } else { "by hand" };
    let last = scaler.last.as_ref().map(|last| format!("; last {last}")).unwrap_or_default();
    lines.push(format!("scaling    {by_itself}{last}"));
    let CacheStats { entries, max_entries, bytes, hits, misses, joined, hit_rate, evictions, .. } = cache;
    lines.push(format!(
        "cache      {entries} of {max_entries} results, {}; {hits} hits, {joined} joined, {misses} misses ({:.0} %), \
         {evictions} evicted",
        format::size(*bytes),
        hit_rate * 100.0
    ));
    lines.push(match resources {
        Some(machine) => format!(
            "machine    CPU {}, memory {} of {}, load {:.2} on {} cores; busy above {:.0} % and {:.0} %",
            machine.cpu_percent.map_or("-".to_owned(), |cpu| format!("{cpu:.0} %")),
            format::size(machine.memory_used_bytes),
            format::size(machine.memory_total_bytes),
            machine.load[0],
            machine.cores,
            thresholds.cpu,
            thresholds.memory
        ),
        None => "machine    not looked at yet".to_owned(),
    });
    lines.push(format!(
        "processes  {} of {} instances run, {} tasks",
        processes.running, processes.instances, processes.tasks
    ));
    let Performance { executions, failures, success_rate, p50_s, p90_s, p99_s, max_s, slowest, .. } =
        performance;
    lines.push(match success_rate {
        Some(rate) => format!(
            "commands   {executions} run, {failures} failed ({:.1} % well); half within {}, 90 % within {}, 99 % \
             within {}, all within {}",
            rate * 100.0,
            seconds(*p50_s),
            seconds(*p90_s),
            seconds(*p99_s),
            seconds(*max_s)
        ),
        None => "commands   none run yet".to_owned(),
    });
    for slow in slowest.iter().take(5) {
        lines.push(format!("  {:>9}  {}", seconds(slow.duration_s), slow.command));
    }
    lines
}
