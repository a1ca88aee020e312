//! Deaths of the daemon, of its keeper and of both, and upgrades: what lives on, and what is known afterwards.

use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{end, eventually, eventually_or, is_alive};
use crate::machine::{COUNTER, Machine, assert_counts, stands_still};

#[test]
fn p6_services_live_on_when_their_daemon_is_killed() {
    let ticks = format!("[service.ticks]\nshell = \"\"\"{COUNTER}\"\"\"\n");
    let other = "[service.rests]\ncommand = \"sleep 1000\"\n[service.done]\nshell = \"exit 0\"\nkind = \"task\"\n\
                 [service.halted]\ncommand = \"sleep 1001\"\n\
                 [service.web]\ncommand = \"sleep 1000\"\nready = { after = \"10ms\" }\n";
    let machine = Machine::started(&[("a.toml", &ticks), ("b.toml", other)]);
    assert_eq!(machine.regrow(&["wait", "ticks", "web", "done", "--timeout", "20s"]).code, 0);
    assert_eq!(machine.regrow(&["stop", "rests"]).code, 0);
    assert_eq!(machine.regrow(&["pause", "halted"]).code, 0);
    let before = machine.all_pids();
    for round in 0..10 {
        machine.kill_daemon();
        assert_eq!(machine.all_pids(), before, "round {round}");
    }
    let report = machine.project.json(&["status", "--json"]);
    let row = |name: &str| {
        let rows = report["services"].as_array().unwrap();
        rows.iter().find(|row| row["name"] == name).unwrap().clone()
    };
    for (name, state, goal, ready) in [
        ("ticks", "running", "up", true),
        ("web", "running", "up", true),
        ("rests", "stopped", "down", false),
        ("done", "completed", "up", false),
        ("halted", "paused", "up", false),
    ] {
        let row = row(name);
        assert_eq!(
            (&row["state"], &row["goal"], &row["ready"]),
            (&state.into(), &goal.into(), &ready.into()),
            "{row}"
        );
        assert_eq!(row["restarts"], 0);
    }
    // The process is the same, and started earlier.
    assert!(row("ticks")["uptime_s"].as_f64().unwrap() > 0.1, "{}", row("ticks"));
    assert_eq!(machine.regrow(&["resume", "halted"]).code, 0);
    // A service that crashes while there is a daemon again is handled as ever.
    let pid = u32::try_from(row("web")["pid"].as_u64().unwrap()).unwrap();
    end(pid);
    eventually("web is back", || {
        let row = machine.project.status("web");
        row["restarts"] == 1 && row["state"] == "running" && row["pid"] != u64::from(pid)
    });
    let count = assert_counts(&machine.log("a/ticks.stdout.log"));
    let logs = machine.regrow(&["logs", "ticks"]);
    assert!(logs.stdout.lines().count() >= count, "all that was kept is shown");
    assert!(
        logs.stdout.starts_with("ticks | 0\nticks | 1\n"),
        "{}",
        &logs.stdout[..100.min(logs.stdout.len())]
    );
}

#[test]
fn p6_an_end_while_there_is_no_daemon_is_told_by_the_next() {
    let machine = Machine::started(&[(
        "a.toml",
        "[service.once]\nshell = \"read x < go; echo last words; exit 7\"\nrestart = \"never\"\n\
         [service.again]\nshell = \"echo up; exec sleep 1000\"\nrestart = { policy = \"always\", backoff = { initial = \"1ms\" } }\n",
    )]);
    let project = &machine.project;
    // The open of a FIFO waits as long as it has no writer.
    nix::unistd::mkfifo(&project.file("services/go"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(machine.regrow(&["restart", "once"]).code, 0);
    assert_eq!(machine.regrow(&["wait", "once", "again", "--timeout", "20s"]).code, 0);
    let again = project.pid("again");
    let (daemon, keeper) = machine.pids();
    // The stopped keeper can't start another daemon before it continues.
    nix::sys::signal::kill(crate::harness::pid_of(keeper), Signal::SIGSTOP).unwrap();
    end(daemon);
    std::fs::write(project.file("services/go"), "\n").unwrap();
    end(again);
    nix::sys::signal::kill(crate::harness::pid_of(keeper), Signal::SIGCONT).unwrap();
    eventually("its end is told", || project.status("once")["state"] == "failed");
    assert_eq!(project.status("once")["exit"]["code"], 7);
    let logs = machine.regrow(&["logs", "once"]);
    assert!(logs.stdout.contains("last words"), "{}", logs.stdout);
    eventually("again is back", || project.status("again")["restarts"] == 1);
    assert_eq!(project.status("again")["exit"]["signal"], 9);
}

#[test]
fn p6_services_live_on_when_their_keeper_is_killed() {
    let ticks =
        format!("[service.ticks]\nshell = \"\"\"{COUNTER}\"\"\"\n[service.web]\ncommand = \"sleep 1000\"\n");
    let mut machine = Machine::started(&[("a.toml", &ticks)]);
    assert_eq!(machine.regrow(&["wait", "ticks", "web", "--timeout", "20s"]).code, 0);
    let before = machine.all_pids();
    machine.kill_keeper();
    assert_eq!(machine.all_pids(), before);
    assert_eq!(machine.regrow(&["stop", "ticks"]).code, 0);
    assert_counts(&machine.log("a/ticks.stdout.log"));
    end(u32::try_from(before["web"].unwrap()).unwrap());
    eventually("web is back, though it was no child of the keeper", || {
        machine.project.status("web")["restarts"] == 1
    });
    let exit = &machine.project.status("web")["exit"];
    assert!(exit["signal"] == 9 || exit["unknown"] == true, "{exit}");
    machine.kill_daemon();
    assert_eq!(machine.project.status("web")["restarts"], 1);
}

#[test]
fn p6_services_are_found_again_after_keeper_and_daemon_die() {
    let ticks = format!(
        "[service.ticks]\nshell = \"\"\"{COUNTER}\"\"\"\n\
         [service.dies]\ncommand = \"sleep 1000\"\nrestart = {{ policy = \"on-failure\", backoff = {{ initial = \"1ms\" }} }}\n\
         [service.rests]\ncommand = \"sleep 1000\"\n"
    );
    let mut machine = Machine::started(&[("a.toml", &ticks)]);
    assert_eq!(machine.regrow(&["wait", "ticks", "dies", "--timeout", "20s"]).code, 0);
    assert_eq!(machine.regrow(&["stop", "rests"]).code, 0);
    let before = machine.all_pids();
    machine.kill_both();
    let dies = u32::try_from(before["dies"].unwrap()).unwrap();
    end(dies);
    eventually("it is gone", || !is_alive(dies));
    machine.start();
    assert_eq!(machine.all_pids()["ticks"], before["ticks"]);
    assert_eq!(machine.project.status("rests")["state"], "stopped");
    eventually("what died meanwhile is back", || machine.project.status("dies")["state"] == "running");
    let row = machine.project.status("dies");
    assert_eq!((&row["exit"]["unknown"], &row["restarts"]), (&true.into(), &1.into()), "{row}");
    assert_eq!(machine.regrow(&["stop", "ticks"]).code, 0);
    assert!(!is_alive(u32::try_from(before["ticks"].unwrap()).unwrap()));
    assert_counts(&machine.log("a/ticks.stdout.log"));
}

/// Fifty services that number what they print, and some that end by a code of their own; thirty
/// deaths of the daemon and twenty upgrades between two builds.
#[test]
fn p7_thirty_deaths_and_twenty_upgrades_cost_nothing() {
    let mut manifest = String::new();
    for n in 0..50 {
        manifest.push_str(&format!("[service.tick-{n}]\nshell = \"\"\"{COUNTER}\"\"\"\n"));
    }
    for n in 0..5 {
        manifest.push_str(&format!(
            "[service.ends-{n}]\nshell = \"echo $$; sleep 0.1{n}; exit {}\"\n\
             restart = {{ policy = \"always\", backoff = {{ initial = \"20ms\", factor = 1 }} }}\n",
            n + 10
        ));
    }
    let mut machine = Machine::started(&[("many.toml", &manifest)]);
    assert_eq!(machine.regrow(&["wait", "tick-0", "tick-49", "--timeout", "20s"]).code, 0);
    eventually("all run", || {
        machine.all_pids().iter().filter(|(name, _)| name.starts_with("tick")).all(|(_, pid)| pid.is_some())
    });
    let ticking = |machine: &Machine| {
        let mut pids = machine.all_pids();
        pids.retain(|name, _| name.starts_with("tick"));
        pids
    };
    let before = ticking(&machine);
    let builds = ["one", "two"].map(|name| {
        let path = machine.project.file(name);
        std::fs::copy(env!("CARGO_BIN_EXE_regrow"), &path).unwrap();
        path
    });
    let mut upgrades = 0;
    for round in 0..50 {
        if round % 5 < 3 {
            let (daemon, _) = machine.pids();
            // The daemon dies at a different moment each time.
            std::thread::park_timeout(std::time::Duration::from_millis(7 * (round % 13)));
            end(daemon);
        } else {
            let build = builds[upgrades % 2].to_str().unwrap();
            let upgraded = machine.regrow(&["upgrade", "--binary", build]);
            assert_eq!(upgraded.code, 0, "{}{}", upgraded.stdout, upgraded.stderr);
            upgrades += 1;
        }
    }
    assert_eq!(upgrades, 20);
    assert_eq!(ticking(&machine), before, "no pid has changed");
    let (daemon, keeper) = machine.pids();
    let last = std::fs::canonicalize(&builds[1]).unwrap();
    for pid in [daemon, keeper] {
        eventually_or(
            || format!("{pid} runs {:?}", std::fs::read_link(format!("/proc/{pid}/exe"))),
            || std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path == last),
        );
    }
    for n in 0..5 {
        let name = format!("ends-{n}");
        assert_eq!(machine.regrow(&["stop", &name]).code, 0);
        let history = machine.project.json(&["history", &name, "-n", "1000", "--json"]);
        let lives = history["services"][0]["incarnations"].as_array().unwrap().clone();
        let mut told: Vec<&Value> = lives.iter().collect();
        told.reverse();
        for (at, life) in told.iter().enumerate() {
            assert_eq!(life["incarnation"], at + 1, "none is missing");
            let asked = at + 1 == told.len() && life["exit"]["signal"] == 15;
            assert!(life["exit"]["code"] == n + 10 || asked, "{name}: {life}");
        }
        let log = std::fs::read_to_string(machine.log(&format!("many/{name}.stdout.log"))).unwrap();
        let printed: Vec<u64> = log.lines().map(|line| line.parse().unwrap()).collect();
        let mut pids: Vec<u64> = told.iter().filter_map(|life| life["pid"].as_u64()).collect();
        if told.last().unwrap()["exit"]["signal"] == 15 && printed.last() != pids.last() {
            // The instance was stopped before it printed anything.
            pids.pop();
        }
        assert_eq!(printed, pids, "each ran once, and no other");
    }
    machine.down();
    for n in 0..50 {
        assert!(assert_counts(&machine.log(&format!("many/tick-{n}.stdout.log"))) > 20);
    }
}

/// Daemon, keeper and services are killed at once, again and again, while commands come.
#[test]
fn r12_after_a_power_cut_the_store_opens_and_goals_are_right() {
    let cuts: usize = std::env::var("REGROW_TEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(25);
    let mut manifest = String::new();
    for n in 0..6 {
        manifest
            .push_str(&format!("[service.s{n}]\ncommand = \"sleep 1000\"\nstop = {{ timeout = \"5s\" }}\n"));
    }
    manifest.push_str("[service.churn]\nshell = \"exit 1\"\nrestart = { policy = \"always\", backoff = { initial = \"1ms\", max = \"5ms\" } }\n");
    let mut machine = Machine::new(&[("a.toml", &manifest)]);
    let mut up = [true; 6];
    for cut in 0..cuts {
        machine.start();
        for (n, up) in up.iter().enumerate() {
            let name = format!("s{n}");
            let word = if *up { "ready" } else { "stopped" };
            let waited = machine.regrow(&["wait", &name, "--for", word, "--timeout", "20s"]);
            assert_eq!(waited.code, 0, "cut {cut}: {name} is to be {word}: {}", waited.stderr);
            let goal = if *up { "up" } else { "down" };
            assert_eq!(machine.project.status(&name)["goal"], goal, "cut {cut}");
        }
        for n in [cut % 6, (cut * 5 + 1) % 6] {
            up[n] = !up[n];
            let name = format!("s{n}");
            let changed = machine.regrow(&[if up[n] { "start" } else { "stop" }, &name]);
            assert_eq!(changed.code, 0, "cut {cut}: {}", changed.stderr);
        }
        let (daemon, keeper) = machine.pids();
        nix::sys::signal::kill(crate::harness::pid_of(keeper), Signal::SIGSTOP).unwrap();
        eventually("the keeper stands still", || stands_still(keeper));
        end(daemon);
        eventually("nothing lives", || {
            let alive = machine.project.alive();
            alive.iter().for_each(|pid| end(*pid));
            alive.is_empty()
        });
        machine.run = None;
        let folder = machine.project.state_dir().join("daemon");
        let aside = std::fs::read_dir(folder).unwrap().filter(|entry| {
            entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().contains("corrupt"))
        });
        assert_eq!(aside.count(), 0, "cut {cut}: the store was beyond use");
    }
}

#[test]
fn the_keeper_reads_in_the_place_of_a_daemon_that_stays_away() {
    let mut machine = Machine::new(&[(
        "a.toml",
        // The service prints more than a pipe holds, as soon as it is told to.
        "[service.prints]\nshell = \"read x < go; i=0; while [ $i -lt 40000 ]; do echo $i; i=$((i+1)); done; touch printed; exec sleep 1000\"\n",
    )]);
    nix::unistd::mkfifo(&machine.project.file("services/go"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    machine.start();
    assert_eq!(machine.regrow(&["wait", "prints", "--timeout", "20s"]).code, 0);
    // A different build, which does not come up.
    let broken = machine.project.file("broken");
    machine.project.script(
        "broken",
        "#!/bin/sh\n[ \"$1\" = --version ] && echo 'regrow 9.9.9' && exit 0\nsleep 3; exit 1\n",
    );
    let (daemon, _) = machine.pids();
    let mut upgrade = machine.project.command(&["upgrade", "--binary", broken.to_str().unwrap()]);
    let mut upgrade = machine.project.start(&mut upgrade);
    eventually("the daemon is gone", || !is_alive(daemon));
    std::fs::write(machine.project.file("services/go"), "\n").unwrap();
    eventually("it need not wait for a reader", || machine.project.file("services/printed").exists());
    // The old build is started again where the new one does not come up.
    machine.run.as_mut().unwrap().line("the old one is started again");
    assert_eq!(upgrade.code(), 1, "{}", upgrade.text());
    assert!(upgrade.text().contains("did not start; the previous build continues"), "{}", upgrade.text());
    assert_eq!(machine.regrow(&["status", "prints"]).code, 0);
    eventually("all is there", || assert_counts(&machine.log("a/prints.stdout.log")) == 40_000);
}

/// Three services that restart together, and take their time to stop.
const TOGETHER: &str = "[project]\nstrategy = \"one-for-all\"\n\
    [service.x]\nshell = \"trap '' TERM; while :; do sleep 0.1; done\"\nstop = { timeout = \"1s\" }\n\
    [service.y]\nshell = \"trap '' TERM; while :; do sleep 0.1; done\"\nstop = { timeout = \"1s\" }\n\
    restart = { backoff = { initial = \"10ms\" } }\n\
    [service.z]\nshell = \"trap '' TERM; while :; do sleep 0.1; done\"\nstop = { timeout = \"1s\" }\n";

fn states(machine: &Machine) -> Vec<(String, String)> {
    let report = machine.project.json(&["status", "--json"]);
    let rows = report["services"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    rows.iter().map(|row| (text(&row["state"]), text(&row["goal"]))).collect()
}

#[test]
fn a_death_amid_a_group_restart_leaves_nobody_behind() {
    let machine = Machine::started(&[("a.toml", TOGETHER)]);
    assert_eq!(machine.regrow(&["wait", "x", "y", "z", "--timeout", "20s"]).code, 0);
    for word in ["stopping", "stopped", "starting"] {
        let before = machine.all_pids();
        end(machine.project.pid("y"));
        // The daemon dies at the beginning of the restart, in its middle, or when it is almost over.
        eventually("it has begun", || {
            let all = states(&machine);
            all.iter().any(|(state, _)| state == word)
                || (word == "starting" && all.iter().all(|(s, _)| s == "running"))
        });
        machine.kill_daemon();
        eventually_or(
            || format!("all run again: {:?}", states(&machine)),
            || states(&machine).iter().all(|(state, goal)| state == "running" && goal == "up"),
        );
        let after = machine.all_pids();
        assert!(before.iter().all(|(name, pid)| after[name] != *pid), "{before:?} {after:?}");
    }
    // A service that is stopped by hand during the restart is not started by it.
    end(machine.project.pid("y"));
    eventually("it has begun", || states(&machine).iter().any(|(state, _)| state == "stopping"));
    let mut stop = machine.project.command(&["stop", "--all"]);
    let stop = machine.project.start(&mut stop);
    eventually("it is wanted down", || states(&machine).iter().all(|(_, goal)| goal == "down"));
    machine.kill_daemon();
    drop(stop);
    eventually_or(
        || format!("all are down: {:?}", states(&machine)),
        || states(&machine).iter().all(|(state, goal)| state == "stopped" && goal == "down"),
    );
}

#[test]
fn a_death_in_the_middle_of_a_down_does_not_end_it() {
    let mut machine = Machine::started(&[("a.toml", TOGETHER)]);
    assert_eq!(machine.regrow(&["wait", "x", "y", "z", "--timeout", "20s"]).code, 0);
    let mut down = machine.project.command(&["down"]);
    let down = machine.project.start(&mut down);
    eventually("it has begun", || states(&machine).iter().any(|(state, _)| state == "stopping"));
    let (daemon, _) = machine.pids();
    end(daemon);
    let mut run = machine.run.take().unwrap();
    assert_eq!(run.code(), 0, "{}", run.text());
    drop(down);
    machine.project.assert_nothing_left();
    // The shutdown set no service's goal to down.
    machine.start();
    assert_eq!(machine.regrow(&["wait", "x", "y", "z", "--timeout", "20s"]).code, 0);
}

/// Services that were added and removed by hand stay so under the next daemon, until the manifests
/// are read again.
#[test]
fn p6_what_was_added_and_removed_by_hand_stays_so() {
    let machine = Machine::started(&[(
        "shop.toml",
        "[service.web]\ncommand = \"sleep 1000\"\n[service.db]\ncommand = \"sleep 1000\"\n",
    )]);
    machine.project.write("more.toml", "[service.extra]\ncommand = \"sleep 1001\"\nenv = { A = \"b\" }\n");
    assert_eq!(machine.regrow(&["add", "more.toml"]).code, 0);
    assert_eq!(machine.regrow(&["add", "more.toml"]).code, 3, "it is there already");
    assert_eq!(machine.regrow(&["remove", "db"]).code, 0);
    let before = machine.all_pids();
    assert_eq!(before.keys().collect::<Vec<_>>(), ["extra", "web"]);
    machine.kill_daemon();
    assert_eq!(machine.all_pids(), before);
    assert_eq!(machine.regrow(&["upgrade"]).code, 0);
    assert_eq!(machine.all_pids(), before);
    let done = machine.regrow(&["reload"]);
    assert_eq!(done.stdout, "added: db\nremoved: extra\nunchanged: 1\n", "{}", done.stderr);
    machine.kill_daemon();
    assert_eq!(machine.all_pids().keys().collect::<Vec<_>>(), ["db", "web"]);
}

/// A removal that was under way in a reload when its daemon died leaves no goal behind.
#[test]
fn a_reload_that_was_cut_leaves_no_wish_behind() {
    let manifest = |replicas: u32| {
        format!(
            "[service.s]\nshell = \"trap '' TERM; while :; do sleep 0.1; done\"\nreplicas = {replicas}\n\
             stop = {{ timeout = \"2s\" }}\n"
        )
    };
    let machine = Machine::started(&[("p.toml", &manifest(4))]);
    assert_eq!(machine.regrow(&["wait", "s", "--timeout", "20s"]).code, 0);
    machine.project.write("services/p.toml", manifest(2));
    let mut reload = machine.project.command(&["reload"]).stdout(Stdio::null()).spawn().unwrap();
    eventually("copies are being stopped", || machine.project.status("s.4")["state"] == "stopping");
    machine.project.write("services/p.toml", manifest(4));
    machine.kill_daemon();
    reload.wait().unwrap();
    eventually("all are up again", || {
        let report = machine.project.json(&["status", "--json"]);
        let rows = report["services"].as_array().unwrap();
        rows.len() == 4 && rows.iter().all(|row| row["state"] == "running" && row["goal"] == "up")
    });
}
