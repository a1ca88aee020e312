//! Two hundred services, random kills, and random commands from ten clients. At the end everything
//! whose goal is up is up, exactly once; nothing else lives, nothing has leaked, and the recording
//! of the run decides the same again.
//!
//! It runs for three seconds; `REGROW_TEST_TORTURE_SECONDS=60` makes it long.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use super::harness::{Chance, Project, eventually, eventually_or, is_alive, pid_of, processes};

const SERVICES: usize = 200;

/// Groups of ten with every strategy, chains of dependencies, and services that leave others
/// behind, ignore SIGTERM, run out of memory, or end by themselves.
fn manifest() -> String {
    let mut text = String::new();
    let mut groups: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for n in 0..SERVICES {
        let body = match n % 8 {
            0 => "setsid sleep 100000 & exec sleep 100000",
            1 => "trap '' TERM; while :; do sleep 1; done",
            2 => "(setsid sleep 100000 &); while :; do sleep 1; done",
            3 => "ulimit -v 20000; sleep 0.4; exec python3 -c 'x = bytearray(10**9)'",
            4 => "sleep 0.7; exit 1",
            _ => "exec sleep 100000",
        };
        text.push_str(&format!(
            "[service.s{n}]\nshell = \"{body}\"\nrestart = {{ policy = \"always\", backoff = {{ initial = \"10ms\", max = \"300ms\" }} }}\nstop = {{ timeout = \"300ms\" }}\n"
        ));
        if n % 5 == 4 {
            text.push_str(&format!("depends_on = {{ s{} = \"started\" }}\n", n - 1));
        }
        groups.entry(n / 10).or_default().push(format!("\"s{n}\""));
    }
    for (n, members) in groups {
        let strategy = ["one-for-one", "one-for-all", "rest-for-one"][n % 3];
        text.push_str(&format!(
            "[group.g{n}]\nmembers = [{}]\nstrategy = \"{strategy}\"\n",
            members.join(", ")
        ));
    }
    text
}

fn rows(project: &Project) -> Vec<Value> {
    project.json(&["status", "--json"])["services"].as_array().unwrap().clone()
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// The resident memory of a process, in KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn torment(project: &Project, client: u64, chance: &mut Chance, until: Instant) {
    let mut commands = 0;
    // Each client has a service of its own that comes and goes, under some group.
    let own = format!("x{client}");
    let file = project.file(&format!("{own}.toml"));
    std::fs::write(&file, format!("[service.{own}]\nshell = \"setsid sleep 100000 & exec sleep 100000\"\n"))
        .unwrap();
    while Instant::now() < until {
        let name = format!("s{}", chance.of(SERVICES));
        let group = format!("g{}", chance.of(SERVICES / 10));
        let file = file.to_str().unwrap();
        let verbs: &[&str] = match chance.of(10) {
            8 => &["add", "--group", &group, file],
            9 => &["remove", &own],
            0 => &["start"],
            1 => &["stop", "--force"],
            2 | 3 => &["restart"],
            4 => &["pause"],
            5 => &["resume"],
            _ => {
                // The signal goes to a process that is ours: its pid is one that the supervisor has not
                // reaped.
                let row = project.status(&name);
                let signal = [Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGTERM][chance.of(3)];
                if let Some(pid) = row["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()) {
                    let _ = kill(pid_of(pid), signal);
                    if signal == Signal::SIGSTOP {
                        let _ = kill(pid_of(pid), Signal::SIGKILL);
                    }
                }
                continue;
            }
        };
        let mut args = verbs.to_vec();
        if !["add", "remove"].contains(&args[0]) {
            args.push(&name);
        }
        args.extend(["--timeout", "20s"]);
        let output = project.regrow(&args);
        // The command is carried out or denied, but it is answered.
        let there_already = output.code == 3 && args[0] == "add" && output.stderr.contains("already exists");
        assert!(
            [0, 1].contains(&output.code) || there_already,
            "{args:?}: {}{}",
            output.stdout,
            output.stderr
        );
        commands += 1;
    }
    assert!(commands > 0);
}

#[test]
fn two_hundred_services_under_torture() {
    let seconds =
        std::env::var("REGROW_TEST_TORTURE_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3.0);
    let seed = std::env::var("REGROW_TEST_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or_else(|| {
        u64::from(std::process::id()) << 20 | u64::from(Instant::now().elapsed().subsec_nanos())
    });
    println!("REGROW_TEST_SEED={seed}");
    let project = Project::new(&manifest());
    let mut run = project.run(&["--record", "torture.recording"]);
    run.line("s199");
    let supervisor =
        u32::try_from(project.json(&["status", "--json"])["daemon"]["pid"].as_u64().unwrap()).unwrap();
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    std::thread::scope(|scope| {
        for client in 0..10 {
            let project = &project;
            scope.spawn(move || torment(project, client, &mut Chance(seed ^ (client << 40)), until));
        }
    });
    // From here on no client acts; only the services that end by themselves still do.
    for client in 0..10 {
        // The removal of a service that no longer exists is denied.
        project.regrow(&["remove", &format!("x{client}")]);
    }
    project.regrow(&["resume", "--all"]);
    let steady = |row: &Value| {
        let number: usize = row["name"].as_str().unwrap()[1..].parse().unwrap();
        ![3, 4].contains(&(number % 8))
    };
    let needs_the_restless = |row: &Value| {
        let number: usize = row["name"].as_str().unwrap()[1..].parse().unwrap();
        let group = number / 10;
        // Something keeps crashing in its group, or before it in a chain.
        !group.is_multiple_of(3) || (number % 5 == 4 && [3, 4].contains(&((number - 1) % 8)))
    };
    let not_right = || -> Vec<Value> {
        let rows = rows(&project);
        // Some services may wait for one that a client has stopped by force.
        let is_down = |name: &Value| rows.iter().any(|row| row["name"] == *name && row["goal"] == "down");
        let is_right = |row: &&Value| match (row["goal"].as_str().unwrap(), row["state"].as_str().unwrap()) {
            ("up", "running") => row["ready"] == true,
            ("up", "waiting") => is_down(&row["waiting_for"][0]["service"]),
            ("up", _) => false,
            _ => row["pid"].is_null(),
        };
        let looked_at = |row: &&Value| steady(row) && !needs_the_restless(row);
        rows.iter().filter(looked_at).filter(|row| !is_right(row)).cloned().collect()
    };
    eventually_or(|| format!("seed {seed}: {:#?}", not_right()), || not_right().is_empty());
    // Everything goes down: no process of any service is left, though many had left their sessions.
    let stop = project.regrow(&["stop", "--all", "--timeout", "60s"]);
    assert_eq!(stop.code, 0, "{}{}", stop.stdout, stop.stderr);
    let ours: BTreeSet<u32> = [run.pid(), supervisor].into();
    let left: Vec<u32> = project.alive().into_iter().filter(|pid| !ours.contains(pid)).collect();
    assert!(left.is_empty(), "seed {seed}: {left:?}");
    let children = processes(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok())
            == Some(supervisor)
    });
    assert!(children.is_empty(), "seed {seed}: {children:?}");
    // With nothing running, the supervisor holds what it held at the start: a few dozen descriptors.
    eventually("descriptors are given back", || descriptors(supervisor) < 60);
    let memory = resident(supervisor);
    assert!(memory < 64 * 1024, "{memory} KiB resident");
    // Everything comes up again, once.
    assert!(project.regrow(&["start", "--group", "g0", "--timeout", "20s"]).code <= 1);
    let again: Vec<Value> = rows(&project).into_iter().filter(|row| row["group"] == "g0").collect();
    assert!(again.iter().filter(|row| steady(row)).all(|row| row["pid"].is_u64()), "{again:?}");
    run.stop();
    assert!(!is_alive(supervisor));
    let replay = project.regrow(&["replay", "torture.recording", "--json"]);
    assert_eq!(replay.code, 0, "seed {seed}: {}", &replay.stdout[..replay.stdout.len().min(4_000)]);
}
