//! `status`: prints the table or the tree, and prints the table again as it changes.

use std::time::Duration;

use super::admin::faulty_in_words;
use crate::cli::args::observe::StatusArgs;
use crate::cli::code;
use crate::cli::connect::{picture, print_json, query, say, socket, states, talk};
use crate::cli::format::{self, Table, Tint};
use crate::control::client::{Client, Error};
use crate::model::status::{ChildCount, ChildStatus, TreeStatus};
use crate::model::{Goal, Health, ServiceStatus, State, StatusReport};
use crate::present::units::{self, short};
use crate::sys::terminal;

pub(in crate::cli) fn status(args: StatusArgs) -> u8 {
    let StatusArgs { services, state, watch, tree, common } = args;
    if tree {
        return talk(&common, async |mut client| {
            let tree: TreeStatus = client.get("/v1/tree").await?;
            if common.json {
                print_json(&tree);
            } else {
                tree_lines(&tree).iter().for_each(|line| say(line));
            }
            Ok(code::DONE)
        });
    }
    let path = format!("/v1/status?{}{}", query(&services), states(&state)).replace("?&", "?");
    talk(&common, async |mut client| {
        let report: StatusReport = client.get(&path).await?;
        show_status(&report, common.json, watch);
        if !watch {
            return Ok(code::DONE);
        }
        let socket = socket(&common).map_err(|e| Error::NotRunning(std::io::Error::other(e)))?;
        let mut events = Client::connect(&socket).await?;
        let since = report.daemon.last_event;
        let mut stream = events.follow(&format!("/v1/events?follow=true&since={since}")).await?;
        loop {
            // Something happened, or enough time passed that the numbers have moved.
            let next = tokio::time::timeout(Duration::from_secs(2), stream.next()).await;
            if matches!(next, Ok(Ok(None) | Err(_))) {
                return Ok(code::DONE);
            }
            // Events that come close together are shown together.
            while let Ok(Ok(Some(_))) = tokio::time::timeout(Duration::from_millis(50), stream.next()).await {
            }
            match client.get(&path).await {
                Ok(report) => show_status(&report, common.json, watch),
                Err(Error::Broken(_)) => return Ok(code::DONE),
                Err(error) => return Err(error),
            }
        }
    })
}

/// The lines of a supervisor and of everything below it.
fn tree_lines(tree: &TreeStatus) -> Vec<String> {
    let name = tree.group.as_ref().map_or("root".to_owned(), |name| format!("group {name}"));
    let ChildCount { specs, active, supervisors, workers } = tree.count;
    let failed = if tree.failed { ", failed" } else { "" };
    let noun = |count: usize, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
    let mut of = vec![];
    if supervisors > 0 {
        of.push(noun(supervisors, "group"));
    }
    if workers > 0 {
        of.push(noun(workers, "instance"));
    }
    let of: String = of.iter().map(|words| format!(", {words}")).collect();
    let mut lines = vec![format!("{name} ({}{failed}): {active} of {specs} active{of}", tree.strategy)];
    let last = tree.children.len().saturating_sub(1);
    for (at, child) in tree.children.iter().enumerate() {
        let (branch, below) = if at == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        match child {
            ChildStatus::Group(group) => {
                let leads = std::iter::once(branch).chain(std::iter::repeat(below));
                lines.extend(leads.zip(tree_lines(group)).map(|(lead, text)| format!("{lead}{text}")));
            }
            ChildStatus::Instance { name, state, ready, pid, restarts } => {
                let pid = pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
                let ready = if *ready { ", ready" } else { "" };
                let restarts = match restarts {
                    0 => String::new(),
                    1 => ", 1 restart".to_owned(),
                    count => format!(", {count} restarts"),
                };
                lines.push(format!("{branch}{name}: {state}{ready}{pid}{restarts}"));
            }
        }
    }
    lines
}

fn show_status(report: &StatusReport, json: bool, watch: bool) {
    if json {
        print_json(report);
        return;
    }
    let colour = format::colour_on_stdout();
    let text = status_text(report, terminal::width(), colour);
    if watch {
        picture(&text);
    } else {
        say(&text);
    }
}

fn status_text(report: &StatusReport, width: Option<usize>, colour: bool) -> String {
    let daemon = &report.daemon;
    let mut head = format!("{}: pid {}, up {}", daemon.project, daemon.pid, units::uptime(daemon.uptime_s));
    if let Some(machine) = &report.machine {
        let cpu = machine.cpu_percent.map(|c| format!("cpu {}, ", units::percent(c))).unwrap_or_default();
        head.push_str(&format!(
            "; machine: {cpu}memory {} of {}, load {:.2}",
            units::size(machine.memory_used_bytes),
            units::size(machine.memory_total_bytes),
            machine.load[0]
        ));
    }
    if daemon.stopping {
        head.push_str("; stopping");
    }
    let head = width.map_or(head.clone(), |w| format::shorten(&head, w));
    let grouped = report.services.iter().any(|s| s.group.is_some());
    let mut columns = vec!["NAME"];
    if grouped {
        columns.push("GROUP");
    }
    columns.extend(["STATE", "READY", "HEALTH", ">PID", ">RESTARTS", ">UPTIME", ">CPU", ">MEMORY", "NOTE"]);
    let mut table = Table::new(&columns);
    let shared = |name: &str| report.services.iter().filter(|other| other.name == name).count() > 1;
    for service in &report.services {
        let name = if shared(&service.name) { &service.id } else { &service.name };
        let mut cells = vec![(name.clone(), Tint::None)];
        if grouped {
            cells.push((
                service.group.as_ref().map_or(String::new(), |group| group.short().to_owned()),
                Tint::Faint,
            ));
        }
        let state_tint = match service.state {
            State::Running | State::Completed => Tint::Good,
            State::Failed | State::Crashed => Tint::Bad,
            State::Waiting | State::Starting | State::Stopping | State::Paused => Tint::Warn,
            State::Registered | State::Stopped => Tint::Faint,
        };
        let health_tint = match service.health {
            Health::Healthy => Tint::Good,
            Health::Unhealthy => Tint::Bad,
            Health::Unknown => Tint::Faint,
        };
        let dash = || "-".to_owned();
        cells.extend([
            (service.state.to_string(), state_tint),
            (if service.ready { "yes" } else { "no" }.to_owned(), Tint::None),
            (service.health.to_string(), health_tint),
            (service.pid.map_or_else(dash, |p| p.to_string()), Tint::None),
            (service.restarts.to_string(), Tint::None),
            (service.uptime_s.map_or_else(dash, units::uptime), Tint::None),
            (service.cpu_percent.map_or_else(dash, units::percent), Tint::None),
            (service.memory_bytes.map_or_else(dash, units::size), Tint::None),
            (note(service), Tint::Faint),
        ]);
        table.row(cells);
    }
    let faulty = daemon.faulty.iter().map(|fault| {
        let line = format!("{}: {}", format::warning_word(), faulty_in_words(fault));
        format!("\n{line}")
    });
    let faulty: String = faulty.collect();
    let gap = if faulty.is_empty() { "" } else { "\n" };
    format!("{head}\n\n{}{gap}{faulty}", table.render(width, colour))
}

/// What the other columns of a row don't say.
pub(in crate::cli) fn note(service: &ServiceStatus) -> String {
    match service.state {
        State::Waiting => {
            let words: Vec<String> = service.waiting_for.iter().map(ToString::to_string).collect();
            format!("for {}", words.join(", "))
        }
        State::Crashed => {
            let exit = service.exit.as_ref().map(ToString::to_string).unwrap_or_default();
            let left =
                service.retry_in_s.and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or_default();
            if left.is_zero() {
                format!("{exit}; back with its group")
            } else {
                format!("{exit}; back in {}", short(left))
            }
        }
        State::Failed => service.failed.as_ref().map(ToString::to_string).unwrap_or_default(),
        State::Stopped if service.goal == Goal::Up => "to be started again".to_owned(),
        State::Running | State::Paused => service.output.clone().unwrap_or_default(),
        State::Registered | State::Starting | State::Stopping | State::Stopped | State::Completed => {
            String::new()
        }
    }
}
