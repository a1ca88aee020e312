//! `regrow daemon` on an operator's machine: deaths, upgrades, reloads, shortages and files that
//! others touch.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{Output, Project, Run, end, eventually, eventually_or, is_alive, named};

/// A project whose manifests are in a folder, and the daemon that supervises them.
pub(crate) struct Machine {
    pub(crate) project: Project,
    /// The daemon as it was started last.
    pub(crate) run: Option<Run>,
}

impl Machine {
    /// Makes a machine with these manifests, without starting the daemon.
    pub(crate) fn new(manifests: &[(&str, &str)]) -> Machine {
        let project = Project::new("");
        // The folder is no project's, so what is typed there is meant for the daemon.
        std::fs::remove_file(project.file("regrow.toml")).unwrap();
        std::fs::create_dir(project.file("services")).unwrap();
        project.write("daemon.toml", "manifests = \"services\"\n");
        for (name, text) in manifests {
            project.write(&format!("services/{name}"), text);
        }
        Machine { project, run: None }
    }

    pub(crate) fn started(manifests: &[(&str, &str)]) -> Machine {
        let mut machine = Machine::new(manifests);
        machine.start();
        machine
    }

    /// Starts the daemon and waits until it is up.
    pub(crate) fn start(&mut self) {
        let mut command = self.project.command(&["daemon", "--config", "daemon.toml"]);
        let mut run = self.project.start(&mut command);
        run.line(concat!("regrow ", env!("CARGO_PKG_VERSION"), ": "));
        self.run = Some(run);
    }

    /// Starts the daemon as another user, who can make no cgroup.
    pub(crate) fn start_as(&mut self, user: u32) {
        let mut all = vec![self.project.dir().parent().unwrap().to_owned(), self.project.dir()];
        while let Some(path) = all.pop() {
            std::os::unix::fs::chown(&path, Some(user), Some(user)).unwrap();
            all.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
            all.retain(|path| {
                std::fs::metadata(path).is_ok_and(|at| std::os::unix::fs::MetadataExt::uid(&at) != user)
            });
        }
        let number = user.to_string();
        let mut command = std::process::Command::new("setpriv");
        command
            .args(["--reuid", &number, "--regid", &number, "--clear-groups"])
            .args([env!("CARGO_BIN_EXE_regrow"), "daemon", "--config", "daemon.toml"])
            .current_dir(self.project.dir())
            .env("REGROW_STATE_DIR", self.project.state_dir())
            .env_remove("REGROW_SOCKET")
            .stdin(Stdio::null());
        let mut run = self.project.start(&mut command);
        run.line(concat!("regrow ", env!("CARGO_PKG_VERSION"), ": "));
        self.run = Some(run);
    }

    pub(crate) fn regrow(&self, args: &[&str]) -> Output {
        self.project.regrow(args)
    }

    /// The pids of the daemon and of its keeper.
    pub(crate) fn pids(&self) -> (u32, u32) {
        let report = self.project.json(&["status", "--json"]);
        let daemon = report["daemon"]["pid"].as_u64().unwrap_or_else(|| panic!("{report}"));
        let daemon = u32::try_from(daemon).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{daemon}/stat")).unwrap_or_default();
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
        (daemon, parent.unwrap_or(0))
    }

    /// Kills the daemon, and waits until another supervises.
    pub(crate) fn kill_daemon(&self) {
        let (daemon, _) = self.pids();
        end(daemon);
        eventually("another daemon supervises", || self.pids().0 != daemon);
    }

    /// Kills the keeper, and waits until the daemon has become the keeper of another daemon.
    pub(crate) fn kill_keeper(&mut self) {
        let (daemon, keeper) = self.pids();
        end(keeper);
        eventually("the daemon has become the keeper of another", || {
            let (now, above) = self.pids();
            now != daemon && above == daemon
        });
        // The process that the test started has ended; its successor is not the test's child.
        self.run = None;
    }

    /// Kills the daemon and its keeper at once.
    pub(crate) fn kill_both(&mut self) {
        let (daemon, keeper) = self.pids();
        // The keeper is stopped first, so that it does not see the daemon's end. The other way round the
        // kernel would let the daemon continue when its keeper dies (a stopped process group that is
        // orphaned).
        nix::sys::signal::kill(crate::harness::pid_of(keeper), Signal::SIGSTOP).unwrap();
        eventually("the keeper stands still", || stands_still(keeper));
        end(daemon);
        end(keeper);
        eventually("both are gone", || !is_alive(daemon) && !is_alive(keeper));
        self.run = None;
    }

    pub(crate) fn all_pids(&self) -> BTreeMap<String, Option<u64>> {
        let report = self.project.json(&["status", "--json"]);
        let rows = report["services"].as_array().unwrap();
        // Services go by their short names where these are unambiguous.
        let alike = |name: &Value| rows.iter().filter(|row| row["name"] == *name).count() > 1;
        let key = |row: &Value| if alike(&row["name"]) { row["id"].clone() } else { row["name"].clone() };
        rows.iter().map(|row| (key(row).as_str().unwrap().to_owned(), row["pid"].as_u64())).collect()
    }

    pub(crate) fn log(&self, path: &str) -> PathBuf {
        self.project.state_dir().join("logs").join(path)
    }

    pub(crate) fn down(&mut self) {
        let output = self.regrow(&["down"]);
        assert_eq!(output.code, 0, "{}{}", output.stdout, output.stderr);
        if let Some(mut run) = self.run.take() {
            assert_eq!(run.code(), 0, "{}", run.text());
        }
    }
}

fn stands_still(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.into_iter().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    })
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if self.run.is_some() {
            self.down();
        } else if !self.project.alive().is_empty() {
            let _ = self.regrow(&["down"]);
        }
    }
}

/// A service that prints numbers, counting up, for as long as it lives.
const COUNTER: &str = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.0$((i % 7 + 1)); done";

/// Asserts that the file holds every number from 0, in order and once; returns how many there are.
fn assert_counts(path: &std::path::Path) -> usize {
    let text = std::fs::read_to_string(path).unwrap();
    // The last line may be incomplete.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for (want, line) in whole.lines().enumerate() {
        assert_eq!(line.parse(), Ok(want), "{} after {want} lines", path.display());
    }
    whole.lines().count()
}

#[test]
fn a_folder_of_manifests_is_one_tree_and_a_faulty_file_harms_no_other() {
    let mut machine = Machine::started(&[
        (
            "shop.toml",
            "[service.db]\ncommand = \"sleep 1000\"\n[service.web]\ncommand = \"sleep 1000\"\ndepends_on = [\"db\"]\n",
        ),
        ("blog.toml", "[service.db]\ncommand = \"sleep 1000\"\n"),
        ("bad.toml", "[service.bad]\ncomand = \"x\"\n"),
    ]);
    let report = machine.project.json(&["status", "--json"]);
    let state = |name: &str| {
        let rows = report["services"].as_array().unwrap();
        rows.iter()
            .find(|row| row["name"] == name || row["id"] == name)
            .map(|row| row["state"].as_str().unwrap().to_owned())
    };
    for name in ["shop/db", "blog/db", "web"] {
        assert_eq!(machine.regrow(&["wait", name, "--timeout", "20s"]).code, 0, "{name}");
    }
    assert_eq!(state("bad").as_deref(), Some("failed"));
    let why = machine.regrow(&["why", "bad"]);
    assert!(
        why.stdout.contains("its manifest is faulty: ") && why.stdout.contains("bad.toml:1:10"),
        "{}",
        why.stdout
    );
    let start = machine.regrow(&["start", "bad"]);
    assert_eq!(start.code, 1, "{}", start.stderr);
    machine.run.as_mut().unwrap().line("help: did you mean \"command\"?");
}

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
fn p6_services_are_found_again_when_keeper_and_daemon_are_killed_at_once() {
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

#[test]
fn r13_of_ten_daemons_one_runs_and_the_others_name_it() {
    let mut machine = Machine::started(&[("a.toml", "[service.a]\ncommand = \"sleep 1000\"\n")]);
    let (daemon, _) = machine.pids();
    std::fs::remove_file(machine.project.state_dir().join("daemon/control.sock")).unwrap();
    for _ in 0..3 {
        let second = machine.regrow(&["daemon", "--config", "daemon.toml"]);
        assert_eq!(second.code, 1);
        assert!(second.stderr.contains(&format!("(pid {daemon})")), "{}", second.stderr);
    }
    end(daemon);
    eventually("another has made its socket", || machine.regrow(&["status"]).code == 0);
    machine.down();
    let all: Vec<Run> = (0..10)
        .map(|_| {
            let mut command = machine.project.command(&["daemon", "--config", "daemon.toml"]);
            machine.project.start(&mut command)
        })
        .collect();
    eventually("one is up", || machine.regrow(&["status"]).code == 0);
    let (_, keeper) = machine.pids();
    let (mut first, mut others) = (None, 0);
    for mut run in all {
        if run.pid() == keeper {
            first = Some(run);
        } else {
            assert_eq!(run.code(), 1);
            assert!(run.text().contains("a daemon runs already in"), "{}", run.text());
            others += 1;
        }
    }
    assert_eq!(others, 9);
    machine.run = first;
}

#[test]
fn goals_outlive_an_orderly_end_and_everything_else_begins_anew() {
    let mut machine = Machine::started(&[(
        "a.toml",
        "[service.up]\ncommand = \"sleep 1000\"\n\
         [service.down]\ncommand = \"sleep 1000\"\nrestart = \"unless-stopped\"\n\
         [service.always]\ncommand = \"sleep 1000\"\nrestart = \"always\"\n\
         [service.extra]\ncommand = \"sleep 1000\"\nautostart = false\n\
         [service.idle]\ncommand = \"sleep 1000\"\nautostart = false\n\
         [service.task]\nshell = \"echo ran\"\nkind = \"task\"\n",
    )]);
    assert_eq!(machine.regrow(&["wait", "up", "down", "always", "task", "--timeout", "20s"]).code, 0);
    assert_eq!(machine.regrow(&["stop", "down", "always"]).code, 0);
    assert_eq!(machine.regrow(&["start", "extra"]).code, 0);
    machine.down();
    machine.start();
    assert_eq!(machine.regrow(&["wait", "up", "always", "extra", "task", "--timeout", "20s"]).code, 0);
    for (name, state) in [("down", "stopped"), ("idle", "registered"), ("task", "completed")] {
        assert_eq!(machine.project.status(name)["state"], state, "{name}");
    }
    assert_eq!(machine.regrow(&["start", "down"]).code, 0);
    let ran = std::fs::read_to_string(machine.log("a/task.stdout.log")).unwrap();
    assert_eq!(ran, "ran\nran\n");
}

/// Daemon, keeper and services are killed at once, again and again, while commands come.
#[test]
fn r12_after_every_power_cut_the_store_opens_and_goals_are_right() {
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
fn a_daemon_detaches_when_it_is_up_and_says_why_it_is_not() {
    let machine = Machine::new(&[("a.toml", "[service.a]\ncommand = \"sleep 1000\"\n")]);
    let detached = machine.regrow(&["daemon", "--detach", "--config", "daemon.toml"]);
    assert_eq!(detached.code, 0, "{}", detached.stderr);
    assert!(detached.stdout.contains("is up"), "{}", detached.stdout);
    let status = machine.project.status("a");
    assert_ne!(status["state"], "registered");
    let second = machine.regrow(&["daemon", "--detach", "--config", "daemon.toml"]);
    assert_eq!(second.code, 1);
    assert!(second.stderr.contains("a daemon runs already"), "{}", second.stderr);
    machine.project.write("wrong.toml", "manifest = 3\n");
    let wrong = machine.regrow(&["daemon", "--config", "wrong.toml"]);
    assert_eq!(wrong.code, 3);
    assert!(wrong.stderr.contains("unknown field `manifest`"), "{}", wrong.stderr);
}

#[test]
fn p8_a_daemon_is_process_one_of_a_container() {
    let mut machine = Machine::new(&[(
        "a.toml",
        // Each service leaves grandchildren that it does not wait for.
        "[service.forks]\nshell = \"for i in $(seq 1000); do (sleep 0.01 &) ; done; echo forked; exec sleep 1002\"\n\
         ready = { log = \"forked\" }\n",
    )]);
    let project = &machine.project;
    let mut command = std::process::Command::new("unshare");
    let inner = project.command(&["daemon", "--config", "daemon.toml"]);
    command.args(["-pf", "--mount-proc"]).arg(inner.get_program()).args(inner.get_args());
    command.current_dir(project.dir()).env("REGROW_STATE_DIR", project.state_dir()).stdin(Stdio::null());
    let mut run = project.start(&mut command);
    run.line(concat!("regrow ", env!("CARGO_PKG_VERSION"), ": "));
    assert_eq!(machine.regrow(&["wait", "forks", "--timeout", "20s"]).code, 0);
    // Processes of other tests may sleep for as long.
    let sleeper = || named("sleep 1002").iter().filter(|pid| machine.project.alive().contains(pid)).count();
    // The last child that it forked may show the shell's command line until it executes.
    eventually("it is the only one", || sleeper() == 1);
    let zombies = || {
        let inside = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let stat = std::fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
            (stat.contains("(sleep) Z") || stat.contains("(sh) Z")).then_some(())
        });
        inside.count()
    };
    eventually("no zombie is left", || zombies() == 0);
    // As a container is stopped: process 1 gets SIGTERM.
    let one = named("daemon --config daemon.toml").into_iter().find(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/status"))
            .is_ok_and(|text| text.lines().any(|l| l.starts_with("NSpid:") && l.ends_with("\t1")))
    });
    nix::sys::signal::kill(crate::harness::pid_of(one.unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(run.code(), 0, "{}", run.text());
    assert_eq!(sleeper(), 0);
    machine.run = None;
}

#[test]
fn a_reload_touches_only_what_has_changed_and_says_by_which_key() {
    let mut machine = Machine::started(&[
        ("a.toml", "[service.keeps]\ncommand = \"sleep 1000\"\n[service.limits]\ncommand = \"sleep 1000\"\n"),
        ("b.toml", "[service.env]\ncommand = \"sleep 1000\"\n[service.goes]\ncommand = \"sleep 1000\"\n"),
        (
            "c.toml",
            "[service.copies]\ncommand = \"sleep 1000\"\n\
             [service.needs]\ncommand = \"sleep 1000\"\ndepends_on = [\"copies\"]\n",
        ),
    ]);
    assert_eq!(
        machine.regrow(&["wait", "keeps", "limits", "env", "goes", "needs", "--timeout", "20s"]).code,
        0
    );
    let before = machine.all_pids();
    let project = &machine.project;
    assert_eq!(project.regrow(&["reload"]).stdout, "nothing has changed\n");
    project.write(
        "services/a.toml",
        "[service.keeps]\ncommand = \"sleep 1000\"\n\
         [service.limits]\ncommand = \"sleep 1000\"\nrestart = \"never\"\nstop = { timeout = \"1s\" }\n",
    );
    project.write("services/b.toml", "[service.env]\ncommand = \"sleep 1000\"\nenv = { A = \"b\" }\n");
    project.write(
        "services/c.toml",
        "[service.copies]\ncommand = \"sleep 1000\"\nreplicas = 2\n\
         [service.needs]\ncommand = \"sleep 1000\"\ndepends_on = [\"copies\"]\n",
    );
    project.write("services/d.toml", "[service.new]\ncommand = \"sleep 1000\"\n");
    let done = project.json(&["reload", "--json"]);
    assert_eq!(done["ok"], true, "{done}");
    for (what, want) in [
        ("added", r#"["d/new"]"#),
        ("removed", r#"["b/goes"]"#),
        ("changed", r#"[{"service":"a/limits","keys":["restart","stop"]}]"#),
        ("unchanged", r#"["a/keeps","c/needs"]"#),
    ] {
        assert_eq!(
            done[what].to_string().replace(
                "\"keys\":[\"restart\",\"stop\"],\"service\":\"a/limits\"",
                "\"service\":\"a/limits\",\"keys\":[\"restart\",\"stop\"]"
            ),
            want,
            "{what}: {done}"
        );
    }
    let restarted: Vec<&str> =
        done["restarted"].as_array().unwrap().iter().map(|r| r["service"].as_str().unwrap()).collect();
    assert_eq!(restarted, ["b/env", "c/copies"]);
    let after = machine.all_pids();
    for same in ["keeps", "limits", "needs"] {
        assert_eq!(before[same], after[same], "{same} is not touched");
    }
    assert!(after["env"].is_some() && before["env"] != after["env"], "env has another process");
    assert!(after["copies.1"].is_some() && after["copies.2"].is_some() && !after.contains_key("goes"));
    // The new policy is in force.
    end(u32::try_from(after["limits"].unwrap()).unwrap());
    eventually("it does not come back", || project.status("limits")["state"] == "failed");

    // A faulty manifest keeps its services as they were and does not hold up the others, except with
    // --strict.
    project.write("services/d.toml", "[service.new]\ncommand = \"sleep 999\"\n[service.other]\n");
    project.write("services/e.toml", "[service.another]\ncommand = \"sleep 1000\"\n");
    let refused = project.regrow(&["reload", "--strict"]);
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(refused.stderr.contains("d.toml:3:10"), "{}", refused.stderr);
    let unchanged = machine.all_pids();
    assert!(unchanged["new"] == after["new"] && !unchanged.contains_key("another"), "{unchanged:?}");
    let done = project.regrow(&["reload"]);
    assert_eq!((done.code, done.stdout.as_str()), (3, "added: another\nunchanged: 6\n"), "{}", done.stderr);
    let file = project.file("services/d.toml");
    assert_eq!(
        done.stderr,
        format!(
            "warning: {}:3: service \"other\" has no command; what ran of it goes on as it was\n",
            file.display()
        )
    );
    let now = machine.all_pids();
    assert!(now["new"] == after["new"] && now["another"].is_some() && !now.contains_key("other"), "{now:?}");
    let report = project.json(&["status", "--json"]);
    assert_eq!(report["daemon"]["faulty"][0]["line"], 3, "{report}");
    // A manifest that was never right counts as well: its service has failed, by the same fault.
    project.write("services/f.toml", "[service.never]\ncomand = \"x\"\n");
    assert_eq!(project.regrow(&["reload"]).code, 3);
    assert_eq!(project.status("never")["state"], "failed");
    std::fs::remove_file(project.file("services/f.toml")).unwrap();
    project.regrow(&["reload"]);
    let made = project.regrow(&["service", "create", "single", "--", "sleep", "1000"]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    assert_eq!(project.regrow(&["service", "remove", "single"]).code, 0);
    std::fs::remove_file(project.file("services/e.toml")).unwrap();
    std::fs::remove_file(project.file("services/a.toml")).unwrap();
    // SIGHUP is a reload, too.
    project.write("services/d.toml", "[service.new]\ncommand = \"sleep 999\"\n");
    machine.run.as_ref().unwrap().signal(Signal::SIGHUP);
    machine
        .run
        .as_mut()
        .unwrap()
        .line("reloaded: removed: keeps, limits, another; restarted: new (command); unchanged: 3");
    // The same holds after a death of the daemon: the tree is that of the folder.
    let pids = machine.all_pids();
    machine.kill_daemon();
    assert_eq!(machine.all_pids(), pids);
}

#[test]
fn a_folder_that_is_watched_is_reloaded_when_it_changes() {
    let mut machine = Machine::new(&[("a.toml", "[service.a]\ncommand = \"sleep 1000\"\n")]);
    machine.project.write("daemon.toml", "manifests = \"services\"\nwatch = true\n");
    machine.start();
    machine.project.write("services/b.toml", "[service.b]\ncommand = \"sleep 1000\"\n");
    eventually("b is there", || machine.all_pids().get("b").is_some_and(Option::is_some));
    std::fs::remove_file(machine.project.file("services/a.toml")).unwrap();
    eventually("a is gone", || !machine.all_pids().contains_key("a"));
}

#[test]
fn a_service_is_made_changed_and_removed_from_the_command_line() {
    let machine = Machine::started(&[("a.toml", "[service.a]\ncommand = \"sleep 1000\"\n")]);
    let project = &machine.project;
    let made = project.regrow(&[
        "service",
        "create",
        "web",
        "--env",
        "GREET=a$b",
        "--",
        "sh",
        "-c",
        "echo $GREET; exec sleep 1000",
    ]);
    assert_eq!(project.regrow(&["wait", "web", "--timeout", "20s"]).code, 0);
    let wrote = format!("wrote {}", project.file("services/web.toml").display());
    let now =
        |what: &str| format!("{wrote}\n{what}: web\nweb: running, ready (pid {})\n", project.pid("web"));
    assert_eq!((made.code, made.stdout.as_str()), (0, now("added").as_str()), "{}", made.stderr);
    eventually("it has printed", || machine.regrow(&["logs", "web"]).stdout.contains("a$b"));
    let file = project.file("services/web.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("max_retries = 3") && text.contains("initial = \"5s\""), "{text}");
    let again = project.regrow(&["service", "create", "web", "--", "true"]);
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("there is a manifest web already"), "{}", again.stderr);
    for bad in ["../x", "a/b", "a b", ""] {
        let refused = project.regrow(&["service", "create", bad, "--", "true"]);
        assert_eq!(refused.code, 2, "{bad}: {}", refused.stderr);
    }
    // A key is changed in place; the comments stay.
    std::fs::write(&file, format!("{text}# mine\n")).unwrap();
    let pid = project.pid("web");
    let changed = project.regrow(&["service", "config", "web", "restart.max_retries=9"]);
    assert_eq!(
        (changed.code, changed.stdout.as_str()),
        (0, now("changed in place").replace("web\nweb:", "web (restart)\nweb:").as_str()),
        "{}",
        changed.stderr
    );
    let told = now;
    let now = std::fs::read_to_string(&file).unwrap();
    assert_eq!(now, format!("{text}# mine\n").replace("max_retries = 3", "max_retries = 9"));
    assert_eq!(project.pid("web"), pid);
    assert_eq!(project.regrow(&["service", "config", "web"]).stdout, now);
    // A change that would make the manifest faulty is not written.
    let faulty = project.regrow(&["service", "config", "web", "comand=x"]);
    assert_eq!(faulty.code, 3, "{}", faulty.stderr);
    assert!(faulty.stderr.contains("unknown key \"comand\""), "{}", faulty.stderr);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), now);
    let restarted = project.regrow(&["service", "config", "web", "env.MORE=1"]);
    assert_eq!(
        restarted.stdout,
        told("restarted").replace("web\nweb:", "web (env)\nweb:"),
        "{}",
        restarted.stderr
    );
    assert_ne!(project.pid("web"), pid);
    let list = project.regrow(&["service", "list"]);
    assert!(
        list.stdout.lines().any(|line| line.starts_with("web") && line.contains("running")),
        "{}",
        list.stdout
    );
    // The service outlives a death of the daemon.
    machine.kill_daemon();
    assert_eq!(project.status("web")["state"], "running");
    let removed = project.regrow(&["service", "remove", "web"]);
    assert_eq!(removed.stdout, "removed: web\nunchanged: 1\n", "{}", removed.stderr);
    assert!(!file.exists());
    assert_eq!(project.regrow(&["service", "remove", "web"]).code, 1);
}

/// A file system of one megabyte, mounted until this is dropped.
pub(crate) struct Small(PathBuf);

impl Small {
    pub(crate) fn mounted_at(folder: PathBuf) -> Option<Small> {
        std::fs::create_dir_all(&folder).unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs"])
            .arg(&folder)
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Small(folder))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn r14_a_full_disk_costs_no_service_and_what_is_lost_is_counted() {
    let mut machine = Machine::new(&[(
        "a.toml",
        "[service.floods]\nshell = \"head -c 3000000 /dev/zero | tr '\\\\\\\\0' 'x' | fold -w 999; echo flooded; while :; do echo tick; sleep 0.05; done\"\nautostart = false\nready = { log = \"flooded\" }\n\
         [service.rests]\ncommand = \"sleep 1000\"\n",
    )]);
    let Some(_small) = Small::mounted_at(machine.project.state_dir()) else {
        return crate::harness::skip("r14_a_full_disk", "no file system can be mounted here");
    };
    machine.start();
    let ballast = machine.project.state_dir().join("ballast");
    std::fs::write(&ballast, vec![0; 300_000]).unwrap();
    assert_eq!(machine.regrow(&["wait", "rests", "--timeout", "20s"]).code, 0);
    let started = machine.regrow(&["start", "floods"]);
    assert_eq!(started.code, 0, "it becomes ready though nothing can be kept: {}", started.stderr);
    let pids = machine.all_pids();
    let told = |words: &str| {
        let events = machine.regrow(&["events", "floods"]);
        assert_eq!(events.code, 0, "{}", events.stderr);
        events.stdout.contains(words)
    };
    eventually("the loss is told", || told("its output can't be kept"));
    // Lines that follow are shown all the same.
    let follow = machine.project.command(&["logs", "floods", "-f", "-n", "0"]);
    let mut follow = follow;
    let mut follow = machine.project.start(&mut follow);
    follow.line("tick");
    drop(follow);
    assert_eq!(machine.regrow(&["stop", "rests"]).code, 0);
    std::fs::remove_file(&ballast).unwrap();
    eventually("it is kept again", || told("bytes were not"));
    eventually("what happened is written down again", || {
        machine.regrow(&["events"]).stdout.contains("what happens is written down again; ")
    });
    assert_eq!(machine.all_pids().get("rests"), Some(&None));
    assert!(pids["floods"].is_some());
    machine.kill_daemon();
    assert_eq!(machine.project.status("rests")["state"], "stopped");
    assert_eq!(machine.project.status("floods")["state"], "running");
    machine.down();
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
    assert!(upgrade.text().contains("did not come up; the build before goes on"), "{}", upgrade.text());
    assert_eq!(machine.regrow(&["status", "prints"]).code, 0);
    eventually("all is there", || assert_counts(&machine.log("a/prints.stdout.log")) == 40_000);
}

#[test]
fn s4_a_secret_reaches_the_process_that_names_it_and_nothing_else() {
    const CANARY: &str = "canary-8f2e11c7";
    let mut machine = Machine::new(&[(
        "a.toml",
        "[service.uses]\nshell = \"echo length ${#DB_PASSWORD}; exec sleep 1000\"\n\
         env = { DB_PASSWORD = { secret = \"db\" }, PLAIN = \"x\" }\nready = { log = \"length\" }\n\
         [service.other]\ncommand = \"sleep 1000\"\n\
         [service.lacks]\ncommand = \"sleep 1000\"\nenv = { A = { secret = \"none\" } }\n",
    )]);
    let set = |value: &str| {
        let mut command = machine.project.command(&["secret", "set", "db"]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), value.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    };
    set(&format!("{CANARY}\n"));
    let (_, most) = getrlimit(Resource::RLIMIT_CORE).unwrap();
    setrlimit(Resource::RLIMIT_CORE, most, most).unwrap();
    machine.start();
    let project = &machine.project;
    assert_eq!(project.regrow(&["wait", "uses", "other", "--timeout", "20s"]).code, 0);
    assert!(project.regrow(&["logs", "uses"]).stdout.contains(&format!("length {}", CANARY.len())));
    let environment = |pid: u32| {
        String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/environ")).unwrap()).into_owned()
    };
    assert!(environment(project.pid("uses")).contains(&format!("DB_PASSWORD={CANARY}\0")));
    let (daemon, keeper) = machine.pids();
    for pid in [project.pid("other"), daemon, keeper] {
        assert!(!environment(pid).contains(CANARY), "{pid}");
    }
    // A secret would not be in a core file either (1: no core is written, and no program is given one);
    // the core limits of the services are unchanged.
    let core = |pid: u32| {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        line.split_whitespace().nth(4).unwrap().to_owned()
    };
    let ours = core(std::process::id());
    let cores = || {
        let (daemon, keeper) = machine.pids();
        [daemon, keeper, project.pid("uses"), project.pid("other")].map(core)
    };
    assert_eq!(cores(), ["1", "1", &ours, &ours]);
    assert_eq!(project.status("lacks")["state"], "failed");
    assert_eq!(project.status("lacks")["exit"]["stage"], "secret");
    machine.kill_daemon();
    assert_eq!(project.regrow(&["restart", "uses"]).code, 0);
    assert_eq!(cores(), ["1", "1", &ours, &ours], "another daemon");
    let said: Vec<String> = [
        &["status", "--json"][..],
        &["events", "--json"],
        &["history", "--json"],
        &["why", "lacks"],
        &["logs"],
        &["service", "list", "--json"],
        &["service", "config", "a"],
        &["secret", "list", "--json"],
        &["reload", "--json"],
        &["plan", "--json", "services/a.toml"],
    ]
    .iter()
    .map(|args| {
        let output = project.regrow(args);
        format!("{args:?}: {}{}", output.stdout, output.stderr)
    })
    .collect();
    for text in &said {
        assert!(!text.contains(CANARY), "{text}");
    }
    assert!(said.iter().any(|text| text.contains("{\"secrets\":[{\"name\":\"db\",\"updated\":")), "{said:?}");
    // The secret is not in any file of the state folder either.
    let mut folders = vec![project.state_dir()];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files += 1;
                let bytes = std::fs::read(entry.path()).unwrap();
                assert!(
                    !bytes.windows(CANARY.len()).any(|part| part == CANARY.as_bytes()),
                    "{:?}",
                    entry.path()
                );
                let mode = std::os::unix::fs::PermissionsExt::mode(&entry.metadata().unwrap().permissions());
                assert_eq!(mode & 0o077, 0, "{:?}", entry.path());
            }
        }
    }
    assert!(files > 5);
    assert_eq!(project.regrow(&["secret", "remove", "db"]).code, 0);
    assert_eq!(project.regrow(&["secret", "remove", "db"]).code, 1);
    let restarted = project.regrow(&["restart", "uses"]);
    assert_eq!(restarted.code, 1);
    assert!(
        restarted.stderr.contains("there is no secret db")
            || restarted.stdout.contains("there is no secret db")
    );
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
fn a_death_in_the_middle_of_a_group_restart_leaves_nobody_behind() {
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

#[test]
fn one_that_was_removed_and_made_again_is_found_again() {
    let mut machine =
        Machine::started(&[("a.toml", "[service.web]\ncommand = \"sleep 1000\"\nreplicas = 3\n")]);
    assert_eq!(machine.regrow(&["wait", "web", "--timeout", "20s"]).code, 0);
    machine.project.write("services/a.toml", "[service.web]\ncommand = \"sleep 1000\"\nreplicas = 2\n");
    assert_eq!(machine.regrow(&["reload"]).code, 0);
    let before = machine.all_pids();
    assert_eq!(before.len(), 2);
    machine.kill_both();
    machine.start();
    assert_eq!(machine.all_pids(), before);
    // A manifest that can't be read for a while ends no service.
    machine.project.write("services/a.toml", "[service.web");
    machine.kill_daemon();
    machine.project.write("services/a.toml", "[service.web]\ncommand = \"sleep 1000\"\nreplicas = 2\n");
    machine.kill_daemon();
    assert_eq!(machine.all_pids(), before);
    std::fs::rename(machine.project.file("services"), machine.project.file("away")).unwrap();
    assert_eq!(machine.regrow(&["reload"]).code, 3);
    machine.kill_daemon();
    std::fs::rename(machine.project.file("away"), machine.project.file("services")).unwrap();
    machine.kill_daemon();
    assert_eq!(machine.all_pids(), before);
}

/// Copies come and go by a reload, and the other copies are not touched; the copies of a stopped
/// service stay down.
#[test]
fn copies_come_and_go_and_the_others_live_on() {
    let manifest = |replicas: u32| {
        format!(
            "[service.web]\ncommand = \"sleep 1000\"\nreplicas = {replicas}\n\
             [service.api]\ncommand = \"sleep 1000\"\ndepends_on = [\"web\"]\n"
        )
    };
    let machine = Machine::started(&[("shop.toml", &manifest(2))]);
    assert_eq!(machine.regrow(&["wait", "api", "web", "--timeout", "20s"]).code, 0);
    let first = machine.all_pids();
    let to = |replicas: u32| {
        machine.project.write("services/shop.toml", manifest(replicas));
        let done = machine.regrow(&["reload"]);
        assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
        done.stdout
    };
    assert_eq!(to(4), "changed in place: web (replicas)\nunchanged: 1\n");
    let four = machine.all_pids();
    assert_eq!(four.len(), 5, "{four:?}");
    assert!(four.values().all(Option::is_some), "{four:?}");
    assert!(first.iter().all(|(name, pid)| four[name] == *pid), "{first:?} {four:?}");
    // The next daemon knows the copies that have come.
    machine.kill_daemon();
    assert_eq!(machine.all_pids(), four);
    assert_eq!(to(2), "changed in place: web (replicas)\nunchanged: 1\n");
    assert_eq!(machine.all_pids(), first);
    for name in ["web.3", "web.4"] {
        let pid = u32::try_from(four[name].unwrap()).unwrap();
        assert!(!is_alive(pid), "{name}");
    }
    machine.kill_daemon();
    assert_eq!(machine.all_pids(), first);
    // A single copy has another name; the service that depends on it runs on.
    assert_eq!(to(1), "restarted: web (replicas)\nunchanged: 1\n");
    let one = machine.all_pids();
    assert!(one.len() == 2 && one["web"].is_some() && one["api"] == first["api"], "{one:?}");
    // No copy of a service that was stopped by hand comes up, under this daemon or the next.
    assert_eq!(machine.regrow(&["stop", "api", "web"]).code, 0);
    to(3);
    let stopped = |machine: &Machine| {
        for name in ["web.1", "web.2", "web.3"] {
            let row = machine.project.status(name);
            assert_eq!((&row["state"], &row["goal"]), (&"stopped".into(), &"down".into()), "{row}");
        }
    };
    stopped(&machine);
    machine.kill_daemon();
    stopped(&machine);
    assert_eq!(machine.regrow(&["start", "web"]).code, 0);
    assert!(machine.all_pids().iter().all(|(name, pid)| pid.is_some() == (name != "api")));
}

/// A daemon that comes up after an edit adopts the running processes; a reload knows what they were
/// made with.
#[test]
fn what_runs_is_compared_with_what_the_manifests_say_even_by_another_daemon() {
    let manifest = |word: &str| {
        format!("[service.web]\ncommand = \"sleep {word}\"\n[service.db]\ncommand = \"sleep 1000\"\n")
    };
    let mut machine = Machine::started(&[("shop.toml", &manifest("1000"))]);
    assert_eq!(machine.regrow(&["wait", "web", "db", "--timeout", "20s"]).code, 0);
    let before = machine.all_pids();
    machine.project.write("services/shop.toml", manifest("1001"));
    machine.kill_daemon();
    assert_eq!(machine.all_pids(), before);
    assert_eq!(machine.regrow(&["reload"]).stdout, "restarted: web (manifest)\nunchanged: 1\n");
    let after = machine.all_pids();
    assert!(after["web"] != before["web"] && after["db"] == before["db"], "{before:?} {after:?}");
    assert_eq!(machine.regrow(&["reload"]).stdout, "nothing has changed\n");
    // A manifest that is faulty for a while costs nothing, whether a reload or a new daemon reads it.
    machine.project.write("services/shop.toml", "[service.web]\ncomand = \"x\"\n");
    let faulty = machine.regrow(&["reload"]);
    assert_eq!(faulty.code, 3);
    assert_eq!(faulty.stdout, "nothing has changed; a faulty manifest was left as it was\n");
    assert!(faulty.stderr.ends_with("what ran of it goes on as it was\n"), "{}", faulty.stderr);
    machine.kill_daemon();
    machine.project.write("services/shop.toml", manifest("1001"));
    let mended = machine.regrow(&["reload"]);
    assert_eq!(mended.code, 0, "{}{}", mended.stdout, mended.stderr);
    eventually_or(|| format!("{after:?} {:?}", machine.all_pids()), || machine.all_pids() == after);
    // The next daemon reads it again, whatever happened to keeper and daemon meanwhile.
    machine.kill_both();
    machine.start();
    assert_eq!(machine.all_pids(), after);
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

/// A manifest that can't be read changes the name of no other service.
#[test]
fn names_stay_while_another_file_cannot_be_read() {
    let dep = "[service.dep]\ncommand = \"sleep 1000\"\n";
    let mut machine = Machine::started(&[("shop.toml", dep), ("blog.toml", dep)]);
    assert_eq!(machine.regrow(&["wait", "shop/dep", "blog/dep", "--timeout", "20s"]).code, 0);
    let before = machine.all_pids();
    machine.project.write("services/shop.toml", "x = [");
    machine.kill_both();
    machine.start();
    // Services of an unreadable manifest are known by its last good text.
    assert_eq!(machine.all_pids(), before);
    machine.project.write("services/shop.toml", dep);
    assert_eq!(machine.regrow(&["reload"]).code, 0);
    assert_eq!(machine.all_pids(), before);
    // The service stays the same, whichever others have the name or had it.
    assert_eq!(machine.regrow(&["stop", "shop/dep"]).code, 0);
    machine.kill_daemon();
    std::fs::remove_file(machine.project.file("services/blog.toml")).unwrap();
    assert_eq!(machine.regrow(&["reload"]).code, 0);
    let row = machine.project.status("dep");
    assert_eq!((&row["state"], &row["goal"]), (&"stopped".into(), &"down".into()), "{row}");
}

/// A wait for a service that is slow to become ready holds up no other reload, and the later reload
/// wins.
#[test]
fn a_slow_start_holds_up_no_other_reload() {
    let machine = Machine::started(&[("a.toml", "[service.one]\ncommand = \"sleep 1000\"\n")]);
    let slow = "[service.slow]\ncommand = \"sleep 1000\"\nready = { after = \"10m\" }\n";
    machine.project.write("services/b.toml", slow);
    let first = machine.project.command(&["reload"]).stdout(Stdio::piped()).spawn().unwrap();
    eventually("it is under way", || {
        machine.project.json(&["status", "--json"])["services"].as_array().unwrap().len() == 2
    });
    machine.project.write("services/c.toml", "[service.two]\ncommand = \"sleep 1000\"\n");
    let second = machine.regrow(&["reload", "--timeout", "20s"]);
    assert_eq!((second.code, second.stdout.as_str()), (0, "added: two\nunchanged: 2\n"), "{}", second.stderr);
    std::fs::remove_file(machine.project.file("services/b.toml")).unwrap();
    let third = machine.regrow(&["reload", "--timeout", "20s"]);
    assert_eq!((third.code, third.stdout.as_str()), (0, "removed: slow\nunchanged: 2\n"), "{}", third.stderr);
    let output = first.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("added: slow\n"));
    machine.project.write("services/b.toml", slow);
    assert_eq!(machine.regrow(&["reload", "--timeout", "300ms"]).code, 5);
}

/// Files that somebody removes under a daemon come back, and the removal lets no second daemon in.
#[test]
fn what_is_removed_under_a_daemon_comes_back() {
    let mut machine = Machine::started(&[("a.toml", "[service.a]\ncommand = \"sleep 1000\"\n")]);
    let home = machine.project.state_dir().join("daemon");
    let (daemon, keeper) = machine.pids();
    std::fs::remove_file(home.join("control.sock")).unwrap();
    eventually("the socket is there again", || home.join("control.sock").exists());
    assert_eq!(machine.pids().0, daemon);
    for name in ["daemon.json", "control.sock"] {
        std::fs::remove_file(home.join(name)).unwrap();
    }
    let second = machine.regrow(&["daemon", "--config", "daemon.toml"]);
    assert_eq!(second.code, 1, "{}", second.stderr);
    assert!(second.stderr.contains("a daemon runs already"), "{}", second.stderr);
    eventually("its card is there again", || home.join("daemon.json").exists());
    let third = machine.regrow(&["daemon", "--config", "daemon.toml"]);
    assert!(third.stderr.contains(&format!("(pid {daemon})")), "{}", third.stderr);
    eventually("the socket is there again", || home.join("control.sock").exists());
    // A store that is removed is begun anew, with the current state of every instance.
    for name in ["regrow.db", "regrow.db-wal", "regrow.db-shm"] {
        std::fs::remove_file(home.join(name)).unwrap();
    }
    assert_eq!(machine.regrow(&["stop", "a"]).code, 0);
    machine.run.as_mut().unwrap().line("the store was removed and is begun anew");
    machine.kill_daemon();
    let row = machine.project.status("a");
    assert_eq!((&row["state"], &row["goal"]), (&"stopped".into(), &"down".into()), "{row}");
    std::fs::write(home.join("regrow.db"), "").unwrap();
    assert_eq!(machine.regrow(&["start", "a"]).code, 0);
    let pid = machine.project.pid("a");
    machine.kill_both();
    machine.start();
    assert_eq!(machine.project.pid("a"), pid);
    assert!(!is_alive(keeper));
    let cgroups = || {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let folder = PathBuf::from(format!("/sys/fs/cgroup{}", own.trim().rsplit(':').next().unwrap()));
        let all = std::fs::read_dir(folder).map(|all| all.flatten().collect::<Vec<_>>()).unwrap_or_default();
        all.iter().filter(|entry| entry.file_name().to_string_lossy().starts_with("regrowd-")).count()
    };
    let (daemon, _) = machine.pids();
    let before = cgroups();
    let down = machine.regrow(&["down"]);
    assert_eq!(down.code, 0);
    // When `down` returns, the daemon has ended.
    assert!(!is_alive(daemon));
    assert!(before == 0 || cgroups() < before, "its cgroup is gone");
    machine.start();
}

/// S2: a link that somebody has planted where a file of the daemon belongs is not followed.
#[test]
fn s2_planted_links_are_not_followed() {
    let mut machine = Machine::new(&[("shop.toml", "[service.web]\nshell = \"echo hello; sleep 1000\"\n")]);
    let state = machine.project.state_dir();
    for folder in ["daemon", "logs/shop", "secrets"] {
        std::fs::create_dir_all(state.join(folder)).unwrap();
    }
    let victim = machine.project.file("victim");
    for planted in [
        "daemon/daemon.json",
        "daemon/daemon.json.new",
        "daemon/tokens.json",
        "daemon/tokens.json.new",
        "daemon/tokens.lock",
        "daemon/regrow.db",
        "daemon/daemon.log",
        "logs/shop/web.stdout.log",
        "logs/shop/web.stderr.log",
        "secrets/vault.json",
        "secrets/lock",
        "secrets/key",
        "daemon/control.sock",
    ] {
        std::fs::write(&victim, "precious").unwrap();
        let at = state.join(planted);
        let _ = std::fs::remove_file(&at);
        std::os::unix::fs::symlink(&victim, &at).unwrap();
        let made = machine.regrow(&["token", "create", "x", "--allow", "read:*", "--config", "daemon.toml"]);
        let _ = machine.regrow(&["token", "revoke", "x", "--config", "daemon.toml"]);
        let mut secret = machine.project.command(&["secret", "set", "x"]);
        let mut secret = secret.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut secret.stdin.take().unwrap(), b"value").unwrap();
        let set = secret.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&set.stderr);
        assert_eq!(said.contains(planted), planted.starts_with("secrets/"), "{planted}: {said}");
        let started = machine.regrow(&["daemon", "--config", "daemon.toml", "--detach"]);
        let is_up = started.code == 0;
        assert_eq!(
            is_up,
            planted != "daemon/control.sock",
            "{planted}: {}{}",
            started.stdout,
            started.stderr
        );
        if is_up {
            assert_eq!(machine.regrow(&["wait", "web", "--timeout", "20s"]).code, 0, "{planted}");
            assert_eq!(machine.regrow(&["down"]).code, 0, "{planted}");
        }
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious", "{planted}: {}", made.stderr);
        let _ = std::fs::remove_file(&at);
    }
    machine.start();
}

/// R11: a shortage of descriptors is reported by name, and services that have theirs go on.
#[test]
fn r11_a_shortage_of_descriptors_is_named_and_costs_nobody_else() {
    const TEST: &str = "r11_a_shortage_of_descriptors_is_named_and_costs_nobody_else";
    if !crate::harness::installed(TEST, std::path::Path::new("/usr/bin/prlimit")) {
        return;
    }
    let one = "command = \"sleep 1000\"\nrestart = { backoff = { initial = \"50ms\", max = \"500ms\" } }";
    let manifest: String = (0..120).map(|n| format!("[service.s{n}]\n{one}\n")).collect();
    let mut machine = Machine::new(&[("many.toml", &manifest)]);
    let mut command = std::process::Command::new("/usr/bin/prlimit");
    command
        .args(["--nofile=256:256", env!("CARGO_BIN_EXE_regrow"), "daemon", "--config", "daemon.toml"])
        .current_dir(machine.project.dir())
        .env("REGROW_STATE_DIR", machine.project.state_dir());
    let mut run = machine.project.start(&mut command);
    run.line("120 services");
    machine.run = Some(run);
    let states = |machine: &Machine| {
        let report = machine.project.json(&["status", "--json"]);
        report["services"].as_array().cloned().unwrap_or_default()
    };
    let runs = |machine: &Machine| states(machine).iter().filter(|row| row["state"] == "running").count();
    eventually("some run, and the others say what is missing", || {
        let short = states(&machine)
            .iter()
            .filter(|row| row["exit"]["errno_name"] == "EMFILE" && row["state"] == "crashed")
            .count();
        short > 0 && runs(&machine) > 5
    });
    let both = machine.pids();
    let mut stop = vec!["stop".to_owned()];
    stop.extend((0..105).map(|n| format!("s{n}")));
    let words: Vec<&str> = stop.iter().map(String::as_str).collect();
    assert_eq!(machine.regrow(&words).code, 0);
    eventually("the others run when there is room", || runs(&machine) == 15);
    assert_eq!(machine.pids(), both);
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

/// A stop by hand still holds after a start that finds other copies, another name, or a manifest
/// that could not be read for a while.
#[test]
fn what_was_stopped_by_hand_stays_down_whatever_a_start_finds() {
    let a = "[service.a]\ncommand = \"sleep 1000\"\n";
    let all = "[service.b]\ncommand = \"sleep 1000\"\n[service.c]\ncommand = \"sleep 1000\"\n";
    let mut machine = Machine::started(&[("p.toml", &format!("{a}{all}"))]);
    assert_eq!(machine.regrow(&["wait", "a", "b", "c", "--timeout", "20s"]).code, 0);
    assert_eq!(machine.regrow(&["stop", "a"]).code, 0);
    let down = |machine: &Machine, name: &str| {
        let row = machine.project.status(name);
        assert_eq!((&row["state"], &row["goal"]), (&"stopped".into(), &"down".into()), "{row}");
    };
    let before = machine.all_pids();
    // The manifest is unreadable for a while; all of it is known again, also after the next death of
    // both.
    machine.project.write("services/p.toml", "[[[");
    machine.kill_both();
    machine.start();
    machine.project.write("services/p.toml", format!("{a}{all}"));
    assert_eq!(machine.regrow(&["reload"]).code, 0);
    assert_eq!(machine.all_pids(), before);
    down(&machine, "a");
    machine.kill_both();
    machine.start();
    assert_eq!(machine.all_pids(), before);
    down(&machine, "a");
    // The service has several copies, and then one again.
    machine.project.write("services/p.toml", format!("{a}replicas = 2\n{all}"));
    machine.kill_daemon();
    down(&machine, "a.1");
    down(&machine, "a.2");
    machine.project.write("services/p.toml", format!("{a}{all}"));
    machine.kill_daemon();
    down(&machine, "a");
    // The service goes under another name; a service with its old name is new, and starts.
    machine.project.write("services/q.toml", a);
    machine.kill_daemon();
    down(&machine, "a");
    eventually("the other runs", || machine.project.status("q/a")["state"] == "running");
    std::fs::remove_file(machine.project.file("services/q.toml")).unwrap();
    machine.kill_daemon();
    down(&machine, "a");
    let now = machine.all_pids();
    assert!(now["b"] == before["b"] && now["c"] == before["c"], "{before:?} {now:?}");
}

/// With a store in memory, everything that the store answers is answered, for as long as the daemon
/// lives.
#[test]
fn a_store_in_memory_answers_history_and_audit() {
    let mut machine = Machine::new(&[("a.toml", "[service.web]\ncommand = \"sleep 1000\"\n")]);
    machine.project.write("daemon.toml", "manifests = \"services\"\n[store]\npath = \":memory:\"\n");
    machine.start();
    let project = &machine.project;
    assert_eq!(project.regrow(&["wait", "web", "--timeout", "20s"]).code, 0);
    assert_eq!(project.regrow(&["restart", "web"]).code, 0);
    let history = project.json(&["history", "web", "--json"]);
    assert_eq!(history["services"][0]["incarnations"].as_array().unwrap().len(), 2, "{history}");
    let audit = project.regrow(&["audit"]);
    assert!(audit.code == 0 && audit.stdout.contains("restart:web"), "{}{}", audit.stdout, audit.stderr);
    assert!(project.regrow(&["events", "--since", "1"]).stdout.contains("web: running #2"));
    assert!(!project.state_dir().join("daemon/regrow.db").exists());
}
