//! `pool` and `stats`: how many commands run at a time, how they have ended, and how the machine is
//! doing.

use std::time::Duration;

use crate::cli::args::Common;
use crate::cli::args::commands::PoolVerb;
use crate::cli::connect::{picture, print_json, say, talk};
use crate::cli::{StatsArgs, code, format, usage_error};
use crate::control::client::Error;
use crate::control::protocol::SetPool;
use crate::model::history::Measure;
use crate::model::sample::{CoreSample, NetworkSample, Pressure};
use crate::model::stats::{CacheStats, Performance, PoolStats, Resources, ServiceScale, Stats, Thresholds};
use crate::present::units::{self, short};
use crate::sys::terminal;

pub(in crate::cli) fn pool(verb: PoolVerb) -> u8 {
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
        return usage_error("pool", "give --min, --max or --auto");
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

pub(in crate::cli) fn stats(args: StatsArgs) -> u8 {
    let StatsArgs { watch, every, common } = args;
    talk(&common, async |mut client| {
        let mut shown = false;
        loop {
            let stats: Stats = match client.get("/v1/stats").await {
                // The tree that was watched has ended.
                Err(Error::Broken(_)) if shown => return Ok(code::DONE),
                stats => stats?,
            };
            shown = true;
            if common.json {
                print_json(&stats);
            } else if watch {
                let width = terminal::width().unwrap_or(usize::MAX);
                let lines: Vec<String> =
                    in_words(&stats).iter().map(|line| format::shorten(line, width)).collect();
                picture(&lines.join("\n"));
            } else {
                in_words(&stats).iter().for_each(|line| say(line));
            }
            if !watch {
                return Ok(code::DONE);
            }
            tokio::time::sleep(every).await;
        }
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
        units::uptime(daemon.uptime_s)
    )];
    lines.push(format!("pool       {}", pool_in_words(pool)));
    let by_itself = if scaler.auto { "automatic" } else { "by hand" };
    let last = scaler.last.as_ref().map(|last| format!("; last {last}")).unwrap_or_default();
    lines.push(format!("scaling    {by_itself}{last}"));
    for ServiceScale { service, replicas, min, max, last } in &scaler.services {
        let last = last.as_ref().map(|last| format!("; last {last}")).unwrap_or_default();
        lines.push(format!("  scaled   {service}: {replicas} ({min} to {max}){last}"));
    }
    let CacheStats { entries, max_entries, bytes, hits, misses, joined, hit_rate, evictions, .. } = cache;
    lines.push(format!(
        "cache      {entries} of {max_entries} results, {}; {hits} hits, {joined} joined, {misses} misses ({}), \
         {evictions} evicted",
        units::size(*bytes),
        units::percent(hit_rate * 100.0)
    ));
    match resources {
        Some(resources) => lines.extend(machine_in_words(resources)),
        None => lines.push("machine    not measured yet".to_owned()),
    }
    let Thresholds { cpu, memory, disk, load, exceeded, .. } = thresholds;
    let above = if exceeded.is_empty() { "none exceeded".to_owned() } else { exceeded.join("; ") };
    lines.push(format!(
        "thresholds CPU {}, memory {}, disk {}, load {load:.2} per core: {above}",
        units::percent(*cpu),
        units::percent(*memory),
        units::percent(*disk)
    ));
    lines.push(format!(
        "processes  {} of {} instances run, {} tasks",
        processes.running, processes.instances, processes.tasks
    ));
    let Performance { executions, failures, success_rate, p50_s, p90_s, p99_s, max_s, slowest, .. } =
        performance;
    lines.push(match success_rate {
        Some(rate) => format!(
            "commands   {executions} run, {failures} failed ({} succeeded); half within {}, 90% within {}, 99% \
             within {}, all within {}",
            units::percent(rate * 100.0),
            seconds(*p50_s),
            seconds(*p90_s),
            seconds(*p99_s),
            seconds(*max_s)
        ),
        None => "commands   none run yet".to_owned(),
    });
    for slow in slowest.iter().take(5) {
        lines.push(format!("  {:>9}  {}", seconds(slow.duration_s), format::plain(&slow.command)));
    }
    lines
}

/// One line for each part of the machine, followed by the figures of the last day.
fn machine_in_words(resources: &Resources) -> Vec<String> {
    let Resources { machine, trends } = resources;
    let trend = |measure: Measure| {
        let Some(trend) = trends.get(&measure) else {
            return String::new();
        };
        let slope = trend.slope_per_hour.map(|slope| format!(", {slope:+.1} an hour")).unwrap_or_default();
        format!(" (average {}, peak {}{slope})", units::percent(trend.average), units::percent(trend.peak))
    };
    let percent = |cpu: Option<f64>| cpu.map_or("-".to_owned(), units::percent);
    let mut lines = vec![format!(
        "machine    CPU {}{}, load {:.2} on {} cores",
        percent(machine.cpu_percent),
        trend(Measure::CpuPercent),
        machine.load[0],
        machine.cores
    )];
    if machine.cores > 1 {
        let core = |(number, core): (usize, &CoreSample)| {
            let frequency = core.frequency_mhz.map(|mhz| format!(" {mhz} MHz")).unwrap_or_default();
            format!("{number}: {}{frequency}", percent(core.cpu_percent))
        };
        let cores: Vec<String> = machine.per_core.iter().enumerate().map(core).collect();
        lines.push(format!("  cores    {}", cores.join(", ")));
    }
    let swap = match machine.swap_total_bytes {
        0 => "no swap".to_owned(),
        total => format!("swap {} of {}", units::size(machine.swap_used_bytes), units::size(total)),
    };
    lines.push(format!(
        "  memory   {} of {}{}, {swap}",
        units::size(machine.memory_used_bytes),
        units::size(machine.memory_total_bytes),
        trend(Measure::MemoryPercent)
    ));
    let rate =
        |bytes: Option<f64>| bytes.map_or("-".to_owned(), |rate| format!("{}/s", units::size(rate as u64)));
    for disk in &machine.disks {
        lines.push(format!(
            "  disk     {}: {} of {} ({}), read {}, written {}",
            disk.mount,
            units::size(disk.used_bytes),
            units::size(disk.total_bytes),
            units::percent(disk.used_percent),
            rate(disk.read_bytes_per_s),
            rate(disk.written_bytes_per_s)
        ));
    }
    for NetworkSample { interface, received_bytes_per_s: received, sent_bytes_per_s: sent, .. } in
        &machine.networks
    {
        // Many machines have interfaces without any traffic.
        if received.unwrap_or(0.0) + sent.unwrap_or(0.0) > 0.0 {
            lines.push(format!("  network  {interface}: received {}, sent {}", rate(*received), rate(*sent)));
        }
    }
    if let Some(Pressure { cpu_percent, memory_percent, io_percent }) = machine.pressure {
        lines.push(format!(
            "  stalled  waiting for CPU {}, memory {}, I/O {} of the time",
            units::percent(cpu_percent),
            units::percent(memory_percent),
            units::percent(io_percent)
        ));
    }
    lines.extend(machine.unread.iter().map(|unread| format!("  not read {unread}")));
    lines
}
