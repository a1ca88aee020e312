//! `regrow daemon` on the machine of an operator: its start, its one place, shortages and files that others touch.

use std::process::Stdio;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

use crate::harness::{Run, end, eventually, named};
use crate::machine::{Machine, Small};

#[test]
fn a_manifest_folder_is_a_tree_and_a_bad_file_harms_no_other() {
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
            assert!(run.text().contains("a daemon is already running in"), "{}", run.text());
            others += 1;
        }
    }
    assert_eq!(others, 9);
    machine.run = first;
}

#[test]
fn only_goals_outlive_an_orderly_end_and_the_rest_begins_anew() {
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
    assert!(second.stderr.contains("a daemon is already running"), "{}", second.stderr);
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
fn r14_a_full_disk_costs_no_service_and_losses_are_counted() {
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
    eventually("it is kept again", || told("bytes were lost"));
    eventually("what happened is written down again", || {
        machine.regrow(&["events"]).stdout.contains("events are recorded again; ")
    });
    assert_eq!(machine.all_pids().get("rests"), Some(&None));
    assert!(pids["floods"].is_some());
    machine.kill_daemon();
    assert_eq!(machine.project.status("rests")["state"], "stopped");
    assert_eq!(machine.project.status("floods")["state"], "running");
    machine.down();
}

#[test]
fn s4_a_secret_reaches_only_the_process_that_names_it() {
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
fn r11_a_descriptor_shortage_is_named_and_costs_nobody_else() {
    const TEST: &str = "r11_a_descriptor_shortage_is_named_and_costs_nobody_else";
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
