//! The deaths of the daemon and of its keeper, in any order and at any interval: the process that
//! is left goes on, and services are not touched.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::disks::Disk;
use crate::harness::{end, eventually, eventually_or, named, pid_of};
use crate::machine::Machine;

/// Services that do nothing, and one whose process leaves everything behind but its mark.
fn manifest(count: usize) -> String {
    (0..count).map(|n| format!("[service.s{n}]\ncommand = \"sleep 1000\"\n")).collect()
}

/// Waits in a loop for the interval between two deaths, which is what these tests vary.
fn after(distance: Duration) {
    let until = Instant::now() + distance;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// Asserts that exactly one keeper and one daemon supervise, and that every service has the process
/// it had.
fn assert_undisturbed(machine: &Machine, before: &BTreeMap<String, Option<u64>>, what: &str) {
    eventually_or(
        || format!("{what}: nobody supervises, of {:?}", supervisors(machine)),
        || machine.regrow(&["status"]).code == 0,
    );
    eventually_or(
        || format!("{what}: {:?}", supervisors(machine)),
        || supervisors(machine).len() == 2 && machine.all_pids() == *before,
    );
}

/// The processes of all services, once each has one.
fn all_up(machine: &Machine) -> BTreeMap<String, Option<u64>> {
    eventually("all are up", || machine.all_pids().values().all(Option::is_some));
    machine.all_pids()
}

/// Every process of this program that keeps, supervises or stands by, without the test's own
/// commands.
fn supervisors(machine: &Machine) -> Vec<u32> {
    let config = format!("REGROW_STATE_DIR={}", machine.project.state_dir().display());
    crate::harness::processes(|pid| {
        let of_it = std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
            environ.split(|byte| *byte == 0).any(|variable| variable == config.as_bytes())
        });
        let is_regrow = std::fs::read_link(format!("/proc/{pid}/exe"))
            .is_ok_and(|exe| exe == Path::new(env!("CARGO_BIN_EXE_regrow")));
        let daemon = std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == b"daemon"));
        of_it && is_regrow && daemon
    })
}

/// The one of the two that is left makes the other before it does anything else: a few milliseconds
/// between the deaths are enough.
#[test]
fn any_single_process_that_is_left_carries_on() {
    let mut machine = Machine::started(&[("many.toml", &manifest(40))]);
    let before = all_up(&machine);
    for millis in [10, 12, 20, 45] {
        let distance = Duration::from_millis(millis);
        let (daemon, keeper) = machine.pids();
        end(daemon);
        after(distance);
        end(keeper);
        assert_undisturbed(&machine, &before, &format!("the keeper {millis} ms after the daemon"));
        let (daemon, keeper) = machine.pids();
        end(keeper);
        after(distance);
        end(daemon);
        assert_undisturbed(&machine, &before, &format!("the daemon {millis} ms after the keeper"));
    }
    // The first keeper, which is the test's own child, was killed.
    machine.run = None;
}

/// A request to a daemon whose keeper is dead is not lost, nor is the daemon.
#[test]
fn an_upgrade_and_the_keepers_death_at_once_cost_nobody() {
    let mut machine = Machine::started(&[("many.toml", &manifest(40))]);
    let before = all_up(&machine);
    let same = env!("CARGO_BIN_EXE_regrow");
    for millis in [0, 5, 10, 20] {
        let (_, keeper) = machine.pids();
        end(keeper);
        after(Duration::from_millis(millis));
        let upgraded = machine.regrow(&["upgrade", "--binary", same]);
        assert_eq!(upgraded.code, 0, "{}{}", upgraded.stdout, upgraded.stderr);
        assert_undisturbed(&machine, &before, &format!("an upgrade {millis} ms after the keeper's death"));
        let (_, keeper) = machine.pids();
        let mut upgrade = machine.project.command(&["upgrade", "--binary", same]).spawn().unwrap();
        after(Duration::from_millis(millis));
        end(keeper);
        upgrade.wait().unwrap();
        assert_undisturbed(&machine, &before, &format!("the keeper {millis} ms after an upgrade began"));
    }
    machine.run = None;
}

/// A death of the keeper is no failure of a service: starts wait until there is another keeper.
#[test]
fn starts_wait_for_a_keeper_and_count_against_nobody() {
    let tries: String = (0..30)
        .map(|n| format!("[service.t{n}]\ncommand = \"sleep 1000\"\nrestart = {{ max_retries = 1 }}\n"))
        .collect();
    let mut machine = Machine::started(&[("tries.toml", &tries)]);
    all_up(&machine);
    for _ in 0..3 {
        let (_, keeper) = machine.pids();
        end(keeper);
        let restarted = machine.regrow(&["restart", "--all"]);
        assert_eq!(restarted.code, 0, "{}{}", restarted.stdout, restarted.stderr);
        let report = machine.project.json(&["status", "--json"]);
        for row in report["services"].as_array().unwrap() {
            assert_eq!((&row["state"], &row["restarts"]), (&"running".into(), &0.into()), "{row}");
        }
    }
    machine.run = None;
}

/// A shutdown that was asked for before both died does not bind the next keeper.
#[test]
fn p17_the_next_start_does_not_finish_a_cut_short_shutdown() {
    let deaf = "trap '' TERM; while :; do sleep 0.1; done";
    let text = format!(
        "[service.deaf]\nshell = \"{deaf}\"\nstop = {{ timeout = \"5s\" }}\n[service.other]\ncommand = \"sleep 1000\"\n"
    );
    let mut machine = Machine::started(&[("deaf.toml", &text)]);
    let (_, keeper) = machine.pids();
    nix::sys::signal::kill(pid_of(keeper), Signal::SIGTERM).unwrap();
    eventually("the other is down", || machine.project.status("other")["state"] == "stopped");
    machine.kill_both();
    machine.start();
    eventually("both are up again", || {
        ["deaf", "other"].iter().all(|name| {
            let row = machine.project.status(name);
            row["state"] == "running" && row["ready"] == true
        })
    });
    machine.regrow(&["stop", "deaf", "--force"]);
    let deaf = machine.project.status("deaf");
    if let Some(pid) = deaf["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()) {
        end(pid);
    }
}

/// A pause holds whichever daemon supervises, and a service that was ready is ready again when it
/// resumes.
#[test]
fn a_pause_outlives_every_death_and_a_resume_brings_all_back() {
    let mut machine = Machine::started(&[(
        "a.toml",
        "[service.plain]\ncommand = \"sleep 1000\"\nhealth = { exec = \"true\", interval = \"50ms\" }\n\
         [service.told]\nshell = \"echo up; exec sleep 1000\"\nready = { log = \"up\" }\n\
         health = { exec = \"true\", interval = \"50ms\" }\n",
    )]);
    let both = ["plain", "told"];
    let same = env!("CARGO_BIN_EXE_regrow");
    for death in ["daemon", "keeper", "upgrade", "both"] {
        eventually(&format!("both are well before {death}"), || {
            both.iter().all(|name| machine.project.status(name)["health"] == "healthy")
        });
        let before = machine.all_pids();
        assert_eq!(machine.regrow(&["pause", "plain", "told"]).code, 0);
        let (_, keeper) = machine.pids();
        match death {
            "daemon" => machine.kill_daemon(),
            "keeper" => {
                end(keeper);
                machine.run = None;
                eventually("another keeps", || {
                    machine.regrow(&["status"]).code == 0 && machine.pids().1 != keeper
                });
            }
            "upgrade" => assert_eq!(machine.regrow(&["upgrade", "--binary", same]).code, 0),
            _ => {
                machine.kill_both();
                machine.start();
            }
        }
        for name in both {
            let row = machine.project.status(name);
            assert_eq!((&row["state"], &row["ready"]), (&"paused".into(), &false.into()), "{death}: {row}");
        }
        let resumed = machine.regrow(&["resume", "plain", "told"]);
        assert_eq!(resumed.code, 0, "{death}: {}{}", resumed.stdout, resumed.stderr);
        let waited = machine.regrow(&["wait", "plain", "told", "--for", "ready", "--timeout", "5s"]);
        assert_eq!(waited.code, 0, "{death}: {}", waited.stderr);
        eventually(&format!("checks go on after {death}"), || {
            both.iter().all(|name| machine.project.status(name)["health"] == "healthy")
        });
        assert_eq!(machine.all_pids(), before, "{death}");
    }
}

/// The daemon of an ordinary user has no cgroups. After its keeper's death, processes that services
/// have left are found by their marks alone, since orphans then go to another process.
#[test]
fn marked_processes_are_found_after_the_keepers_death() {
    const TEST: &str = "marked_processes_are_found_after_the_keepers_death";
    const USER: u32 = 64_913;
    if !crate::harness::can_become_another_user(TEST) {
        return;
    }
    let words = |n: u32| format!("5{n}{}{n}", std::process::id());
    let (one, two, three) = (words(1), words(2), words(3));
    let mut machine = Machine::new(&[(
        "a.toml",
        &format!(
            "[service.one]\nshell = \"(setsid sleep {one} &); exec sleep 1000\"\n\
             [service.two]\nshell = \"(env -i setsid sh -c 'exec sleep {two}' </dev/null >/dev/null 2>&1 &); exec sleep 1000\"\n\
             [service.three]\nshell = \"(env -i setsid prlimit --rttime=1000000 sh -c 'exec sleep {three}' </dev/null >/dev/null 2>&1 &); exec sleep 1000\"\n"
        ),
    )]);
    let project = &machine.project;
    let folders = [project.dir(), project.file("services"), project.dir().parent().unwrap().to_owned()];
    for path in folders {
        std::os::unix::fs::chown(path, Some(USER), Some(USER)).unwrap();
    }
    let number = USER.to_string();
    let mut command = std::process::Command::new("setpriv");
    command
        .args(["--reuid", &number, "--regid", &number, "--clear-groups", env!("CARGO_BIN_EXE_regrow")])
        .args(["daemon", "--config", "daemon.toml"])
        .current_dir(project.dir())
        .env("REGROW_STATE_DIR", project.state_dir());
    let mut run = project.start(&mut command);
    run.line(concat!("regrow ", env!("CARGO_PKG_VERSION"), ": "));
    let left = || (named(&one).len(), named(&two).len(), named(&three).len());
    // `env -i` and the shell that it runs show the same words for a moment; `named` counts them.
    eventually("all have left", || left() == (1, 1, 1));
    let (_, keeper) = machine.pids();
    end(keeper);
    eventually("another keeps", || machine.regrow(&["status"]).code == 0 && machine.pids().1 != keeper);
    let pid = machine.project.pid("two");
    end(pid);
    eventually("it came back", || machine.project.status("two")["restarts"] == 1);
    eventually("and is there once", || left() == (1, 1, 1));
    let stopped = machine.regrow(&["stop", "one", "three"]);
    assert_eq!(stopped.code, 0, "{}", stopped.stderr);
    assert_eq!(left(), (0, 1, 0), "gone when stop says so");
    // The processes are killed together with the daemon, and found by the next one.
    machine.kill_both();
    let mut run = machine.project.start(&mut command);
    run.line(concat!("regrow ", env!("CARGO_PKG_VERSION"), ": "));
    let down = machine.regrow(&["down"]);
    assert_eq!((down.code, left()), (0, (0, 0, 0)), "{}", down.stderr);
    assert_eq!(run.code(), 0);
    machine.run = None;
}

/// A process that has shed every mark is still known by its pid and start time, if it was seen
/// before the keeper's death. Where such a process has ended unseen, a stop says no more than can
/// be known.
#[test]
fn who_was_seen_unmarked_is_remembered_and_the_lost_are_told() {
    const TEST: &str = "who_was_seen_unmarked_is_remembered_and_the_lost_are_told";
    const USER: u32 = 64_914;
    if !crate::harness::can_become_another_user(TEST) {
        return;
    }
    let words = |n: u32| format!("4{n}{}{n}", std::process::id());
    let (kept, lost) = (words(1), words(2));
    // On a line in the FIFO the parent ends; the process that shed its marks lived below it until then.
    let sheds = |word: &str| {
        format!(
            "mkfifo go-{word}; (env -i setsid prlimit --rttime=1000000 --locks=100 sh -c 'exec sleep {word}' </dev/null >/dev/null 2>&1 & read x < go-{word}) & exec sleep 1000"
        )
    };
    let mut machine = Machine::new(&[(
        "a.toml",
        &format!(
            "[service.kept]\nshell = \"{}\"\ndir = \"..\"\n[service.lost]\nshell = \"{}\"\ndir = \"..\"\n",
            sheds(&kept),
            sheds(&lost)
        ),
    )]);
    machine.project.write("daemon.toml", "manifests = \"services\"\n[samples]\ninterval = \"100ms\"\n");
    machine.start_as(USER);
    let sleepers = |word: &str| {
        let line = format!("sleep\0{word}\0");
        crate::harness::processes(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|of| of == line.as_bytes())
        })
    };
    eventually("both have shed their marks", || [&kept, &lost].iter().all(|word| sleepers(word).len() == 1));
    // Both have been sampled since: as part of the tree, and without marks.
    let samples = || machine.project.json(&["status", "--json"])["machine"].clone();
    for _ in 0..3 {
        let before = samples();
        eventually("another look", || samples() != before);
    }
    for word in [&kept, &lost] {
        std::fs::write(machine.project.file(&format!("go-{word}")), "go\n").unwrap();
        let pid = sleepers(word)[0];
        eventually("it has lost its parent", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap() == machine.pids().1.to_string()
        });
    }
    machine.kill_keeper();
    end(sleepers(&lost)[0]);
    let stopped = machine.regrow(&["stop", "kept"]);
    assert_eq!((stopped.code, sleepers(&kept).len()), (0, 0), "{}{}", stopped.stdout, stopped.stderr);
    let stopped = machine.regrow(&["stop", "lost"]);
    let said = format!("{}{}", stopped.stdout, stopped.stderr);
    assert_eq!(stopped.code, 1, "{said}");
    assert!(said.contains("lost: gone as far as can be seen; 1 process of it has shed its marks"), "{said}");
    let down = machine.regrow(&["down"]);
    assert_eq!(down.code, 1, "{}{}", down.stdout, down.stderr);
    assert!(
        !down.stdout.contains("everything is down") && down.stderr.contains("lost: gone as far"),
        "{}",
        down.stderr
    );
}

/// Services that are started in such numbers that not all get a cgroup at once have one soon after,
/// with everything they have forked by then. The next daemon knows the cgroups, and a stop after
/// the keeper's death ends all of it.
#[test]
fn trees_that_were_made_in_a_burst_get_a_cgroup_afterwards() {
    const TEST: &str = "trees_that_were_made_in_a_burst_get_a_cgroup_afterwards";
    let word = format!("57{}7", std::process::id());
    let family = |n: usize| {
        // Two of the processes leave their parents.
        format!(
            "[service.f{n}]\nshell = \"(setsid sleep {word} &); (setsid sleep {word} &); exec sleep 1000\"\n"
        )
    };
    const COUNT: usize = 60;
    let mut machine = Machine::started(&[("many.toml", &(0..COUNT).map(family).collect::<String>())]);
    all_up(&machine);
    if !crate::trees::a_cgroup_can_be_made() {
        return crate::harness::skip(TEST, "no cgroup can be made here");
    }
    let cgroup = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let own = |text: &str| text.lines().any(|line| line.starts_with("0::") && line.contains("/regrowd-"));
    let all = || {
        let mut all = named(&word);
        all.extend(machine.all_pids().values().flatten().filter_map(|pid| u32::try_from(*pid).ok()));
        all
    };
    eventually("all have left their parents", || named(&word).len() == 2 * COUNT && all().len() == 3 * COUNT);
    eventually("each is in a cgroup of its tree", || all().into_iter().all(|pid| own(&cgroup(pid))));
    let trees: std::collections::HashSet<String> = all().into_iter().map(cgroup).collect();
    assert_eq!(trees.len(), COUNT);
    let before = machine.all_pids();
    machine.kill_daemon();
    assert_eq!(machine.all_pids(), before);
    machine.kill_keeper();
    let stopped = machine.regrow(&["stop", "f0", "f59"]);
    assert_eq!(stopped.code, 0, "{}", stopped.stderr);
    assert_eq!(named(&word).len(), 2 * COUNT - 4, "gone when stop says so");
    let pid = machine.project.pid("f1");
    end(pid);
    eventually("it came back", || machine.project.status("f1")["restarts"] == 1);
    eventually("and is there once", || named(&word).len() == 2 * COUNT - 4);
    let down = machine.regrow(&["down"]);
    assert_eq!((down.code, named(&word).len()), (0, 0), "{}", down.stderr);
    let gone = |tree: &String| {
        let path = tree.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
        ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .iter()
            .all(|root| !Path::new(&format!("{root}{path}")).exists())
    };
    eventually("and no folder is left", || trees.iter().all(gone));
}

/// When the store is lost together with both processes, no service and no goal is lost: the marks
/// tell whose each process is.
#[test]
fn a_store_lost_with_both_costs_neither_processes_nor_goals() {
    let text = format!(
        "{}[service.stopped]\ncommand = \"sleep 1000\"\n[service.started]\ncommand = \"sleep 1000\"\nautostart = false\n\
         [service.counts]\nshell = \"i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done\"\n",
        manifest(20)
    );
    let mut machine = Machine::started(&[("many.toml", &text)]);
    let folder = machine.project.state_dir().join("daemon");
    type Loss = dyn Fn(&Path);
    let losses: [(&str, &Loss); 4] = [
        ("all of it removed", &|folder| {
            for name in ["regrow.db", "regrow.db-wal", "regrow.db-shm"] {
                let _ = std::fs::remove_file(folder.join(name));
            }
        }),
        ("its log removed", &|folder| {
            let _ = std::fs::remove_file(folder.join("regrow.db-wal"));
        }),
        ("its log cut short", &|folder| {
            if let Ok(log) = std::fs::OpenOptions::new().write(true).open(folder.join("regrow.db-wal")) {
                log.set_len(100).unwrap();
            }
        }),
        ("cut short", &|folder| {
            let file = std::fs::OpenOptions::new().write(true).open(folder.join("regrow.db")).unwrap();
            file.set_len(5_000).unwrap();
        }),
    ];
    assert_eq!(machine.regrow(&["start", "started"]).code, 0);
    for (what, lose) in losses {
        // The last goal before the loss is one that only the log has.
        assert_eq!(machine.regrow(&["start", "stopped"]).code, 0, "{what}");
        assert_eq!(machine.regrow(&["stop", "stopped"]).code, 0, "{what}");
        eventually("all are up", || {
            machine.all_pids().iter().all(|(name, pid)| pid.is_some() || name == "stopped")
        });
        let before = machine.all_pids();
        machine.kill_both();
        lose(&folder);
        machine.start();
        assert_eq!(machine.all_pids(), before, "{what}");
        assert_eq!(machine.project.status("stopped")["goal"], "down", "{what}");
    }
    let log = std::fs::read_to_string(machine.log("many/counts.stdout.log")).unwrap();
    let whole = log.rfind('\n').map_or("", |end| &log[..end]);
    for (want, line) in whole.lines().enumerate() {
        assert_eq!(line.parse(), Ok(want), "after {want} lines");
    }
}

/// A process that was made just as both died belongs to its service, with every line that it has
/// printed.
#[test]
fn what_is_made_as_both_die_is_known_by_the_next() {
    let shell = "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); done; exec sleep 1000";
    let mut machine = Machine::started(&[(
        "a.toml",
        &format!(
            "[service.a]\nshell = \"{shell}\"\nautostart = false\n[service.b]\ncommand = \"sleep 1000\"\n"
        ),
    )]);
    for round in 0..6 {
        let started = machine.project.log_lines("a/a.stdout.log");
        let mut start = machine.project.command(&["start", "a"]).spawn().unwrap();
        after(Duration::from_millis(2 + round * 2));
        machine.kill_both();
        start.wait().unwrap();
        machine.start();
        assert_eq!(machine.regrow(&["start", "a"]).code, 0);
        // It has printed all its lines once, or twice where it had not been made yet.
        eventually_or(
            || format!("round {round}: {:?} lines", machine.project.log_lines("a/a.stdout.log") - started),
            || {
                let lines = machine.project.log_lines("a/a.stdout.log") - started;
                lines >= 300 && lines.is_multiple_of(300)
            },
        );
        assert_eq!(machine.regrow(&["stop", "a"]).code, 0);
    }
}

/// R20: where the state folder can't be written any more, another daemon still comes up and
/// supervises. A goal that can't be written down is held by the keeper, and the command says so.
#[test]
fn r20_an_unwritable_state_folder_prevents_no_supervision() {
    const TEST: &str = "r20_an_unwritable_state_folder_prevents_no_supervision";
    let mut machine = Machine::new(&[(
        "a.toml",
        "[service.a]\ncommand = \"sleep 1000\"\n[service.b]\ncommand = \"sleep 1000\"\nrestart = \"always\"\n",
    )]);
    let Some(disk) = Disk::mounted_at(&machine.project.file("disk"), &machine.project.state_dir()) else {
        assert!(std::env::var_os("REGROW_TEST_REQUIRE_ALL").is_none(), "{TEST} must be able to mount");
        eprintln!("SKIPPED {TEST}: nothing can be mounted here");
        return;
    };
    machine.start();
    eventually("both run", || machine.all_pids().values().all(Option::is_some));
    let fill = machine.project.state_dir().join("fill");
    for what in ["full", "read-only"] {
        match what {
            "full" => {
                let _ = std::fs::write(&fill, vec![b'x'; 16 << 20]);
            }
            // After an error of the disk, files that are open for writing stay open but can't be written.
            _ => disk.fail(),
        }
        let before = machine.all_pids();
        machine.kill_daemon();
        assert_eq!(machine.all_pids(), before, "{what}");
        let stopped = machine.regrow(&["stop", "a"]);
        assert_eq!(stopped.code, 0, "{what}: {}", stopped.stderr);
        machine.kill_daemon();
        assert_eq!(machine.project.status("a")["state"], "stopped", "{what}: {}", stopped.stdout);
        end(machine.project.pid("b"));
        eventually("b is back", || {
            machine.project.status("b")["pid"].as_u64().is_some_and(|pid| Some(pid) != before["b"])
        });
        let _ = std::fs::remove_file(&fill);
        assert_eq!(machine.regrow(&["start", "a"]).code, 0);
    }
    machine.down();
    drop(disk);
}

/// Daemons that end as soon as they begin follow each other ever more slowly, whichever keeper was
/// there before; the first daemon that can go on finds the services that still run.
#[test]
fn daemons_that_find_no_configuration_rest_between_their_tries() {
    let mut machine = Machine::started(&[("many.toml", &manifest(3))]);
    let before = all_up(&machine);
    let (_, keeper) = machine.pids();
    end(keeper);
    assert_undisturbed(&machine, &before, "the keeper was killed");
    let config = machine.project.file("daemon.toml");
    let text = std::fs::read(&config).unwrap();
    std::fs::remove_file(&config).unwrap();
    let (daemon, _) = machine.pids();
    let run = machine.run.as_mut().unwrap();
    end(daemon);
    let begun = Instant::now();
    for _ in 0..5 {
        run.next_line("the daemon was ended by exit code 3");
    }
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(1), "five tries in {took:?}");
    std::fs::write(&config, text).unwrap();
    assert_undisturbed(&machine, &before, "there is a configuration again");
    machine.run = None;
}

/// A state folder that is removed under a daemon lets no second daemon in: that one would end the
/// services of the first, or make copies of them.
#[test]
fn a_state_folder_that_was_removed_lets_no_second_daemon_in() {
    let machine = Machine::started(&[("many.toml", &manifest(5))]);
    let before = all_up(&machine);
    let (daemon, keeper) = machine.pids();
    let socket = machine.project.state_dir().join("daemon/control.sock");
    std::fs::remove_dir_all(machine.project.state_dir()).unwrap();
    for _ in 0..2 {
        let second = machine.regrow(&["daemon", "--config", "daemon.toml"]);
        assert_eq!(second.code, 1, "{}", second.stdout);
        assert!(second.stderr.contains("a daemon is already running in"), "{}", second.stderr);
    }
    eventually("the first one can be spoken to again", || {
        socket.exists() && machine.regrow(&["status"]).code == 0
    });
    assert_eq!((machine.pids(), machine.all_pids()), ((daemon, keeper), before));
}

/// A folder of manifests that is swapped, as deployments do, is followed; a missing folder ends
/// nothing.
#[test]
fn swapped_manifests_count_and_a_missing_folder_ends_nothing() {
    let mut machine = Machine::new(&[]);
    let write = |folder: &str, word: &str| {
        std::fs::create_dir_all(machine.project.file(folder)).unwrap();
        machine
            .project
            .write(&format!("{folder}/a.toml"), format!("[service.{word}]\ncommand = \"sleep 1000\"\n"));
    };
    std::fs::remove_dir(machine.project.file("services")).unwrap();
    let link = |to: &str| {
        let new = machine.project.file("services.new");
        std::os::unix::fs::symlink(machine.project.file(to), &new).unwrap();
        std::fs::rename(new, machine.project.file("services")).unwrap();
    };
    write("one", "one");
    write("two", "two");
    link("one");
    machine.project.write("daemon.toml", "manifests = \"services\"\nwatch = true\n");
    let names = |machine: &Machine| machine.all_pids().into_keys().collect::<Vec<_>>();
    let swap = |machine: &Machine, to: &str, want: &str| {
        eventually(&format!("{to} is followed"), || names(machine) == [want]);
    };
    let project_dir = machine.project.dir();
    let file = |name: &str| project_dir.join(name);
    machine.start();
    swap(&machine, "the first", "one");
    // The link is switched to another folder.
    let _ = std::fs::remove_file(file("services.new"));
    std::os::unix::fs::symlink(file("two"), file("services.new")).unwrap();
    std::fs::rename(file("services.new"), file("services")).unwrap();
    swap(&machine, "a switched link", "two");
    // Another folder is renamed into its place.
    std::fs::remove_file(file("services")).unwrap();
    std::fs::rename(file("one"), file("services")).unwrap();
    swap(&machine, "a renamed folder", "one");
    // A manifest is edited in its new place.
    std::fs::write(file("services/a.toml"), "[service.three]\ncommand = \"sleep 1000\"\n").unwrap();
    swap(&machine, "an edit", "three");
    let before = machine.all_pids();
    std::fs::rename(file("services"), file("away")).unwrap();
    machine.kill_daemon();
    std::fs::rename(file("away"), file("services")).unwrap();
    swap(&machine, "a folder that is back", "three");
    assert_eq!(machine.all_pids(), before);
}

/// A daemon that comes up while a manifest is torn, or the whole folder is gone, goes on with what
/// the daemon before it had; a daemon that begins anew does not.
#[test]
fn what_was_right_once_goes_on_below_the_next_daemon_too() {
    let web = "[service.web]\ncommand = \"sleep 1000\"\ndir = \"/\"\nrestart = { policy = \"always\", backoff = { initial = \"1ms\" } }\n";
    let named = format!("[project]\nname = \"blog\"\n{web}");
    // One manifest depends on the other, which is torn.
    let shop =
        format!("{web}[service.api]\ncommand = \"sleep 1001\"\ndir = \"/\"\ndepends_on = [\"blog/web\"]\n");
    let mut machine = Machine::started(&[("shop.toml", &shop), ("other.toml", &named)]);
    let project = &machine.project;
    assert_eq!(project.regrow(&["wait", "shop/web", "blog/web", "api", "--timeout", "20s"]).code, 0);
    let revives = |name: &str| {
        let before = project.status(name)["pid"].as_u64().unwrap();
        end(u32::try_from(before).unwrap());
        eventually(&format!("{name} is back"), || {
            let row = project.status(name);
            row["state"] == "running" && row["pid"].as_u64() != Some(before)
        });
    };
    let pids = machine.all_pids();
    project.write("services/other.toml", "[service.web\ncommand = ");
    machine.kill_daemon();
    assert_eq!(machine.all_pids(), pids);
    assert_eq!(project.regrow(&["restart", "api"]).code, 0);
    revives("shop/web");
    let status = project.regrow(&["status"]);
    assert!(
        status.stdout.contains("other.toml:1") || status.stderr.contains("other.toml:1"),
        "{}",
        status.stdout
    );
    // A mended manifest is started once, tasks too, by whichever daemon.
    let ran = "[service.once]\nkind = \"task\"\nshell = \"echo ran >> ../ran\"\n[service.new]\ncommand = \"sleep 1003\"\n";
    project.write("services/fresh.toml", format!("{ran}bogus = 1\n"));
    machine.kill_daemon();
    assert_eq!(project.status("new")["state"], "failed");
    project.write("services/fresh.toml", ran);
    assert_eq!(project.regrow(&["reload"]).code, 3, "the other is torn still");
    eventually("it runs, and has run", || {
        project.status("new")["state"] == "running" && project.status("once")["state"] == "completed"
    });
    let history = project.json(&["history", "new", "--json"]);
    assert_eq!(history["services"][0]["incarnations"].as_array().unwrap().len(), 1, "{history}");
    assert_eq!(std::fs::read_to_string(project.file("ran")).unwrap(), "ran\n");
    std::fs::remove_file(project.file("services/fresh.toml")).unwrap();
    assert_eq!(project.regrow(&["reload"]).code, 3);
    // The folder is moved away, and comes back through a link.
    let pids = machine.all_pids();
    std::fs::rename(project.file("services"), project.file("away")).unwrap();
    machine.kill_daemon();
    assert_eq!(machine.all_pids(), pids);
    revives("shop/web");
    revives("blog/web");
    assert_eq!(project.regrow(&["stop", "api"]).code, 0);
    assert_eq!(project.regrow(&["start", "api"]).code, 0);
    project.write("away/other.toml", &named);
    std::os::unix::fs::symlink("away", project.file("services")).unwrap();
    let pids = machine.all_pids();
    let reloaded = project.regrow(&["reload"]);
    assert_eq!(reloaded.code, 0, "{}", reloaded.stderr);
    assert_eq!(machine.all_pids(), pids, "{}", reloaded.stdout);
    // What is removed stays removed, and a new beginning takes nothing from before.
    std::fs::remove_file(project.file("away/shop.toml")).unwrap();
    machine.kill_daemon();
    assert_eq!(machine.all_pids().len(), 1);
    project.write("away/other.toml", "[service.web\ncommand = ");
    machine.down();
    machine.start();
    assert_eq!(machine.project.json(&["status", "--json"])["services"].as_array().unwrap().len(), 0);
}

/// A client that follows events or output is told when both were killed and nothing goes on; an
/// orderly end is reported differently.
#[test]
fn who_follows_hears_whether_it_was_an_end_or_a_kill() {
    let mut machine =
        Machine::started(&[("a.toml", "[service.web]\nshell = \"echo up; exec sleep 1000\"\n")]);
    assert_eq!(machine.regrow(&["wait", "web", "--timeout", "20s"]).code, 0);
    let follow = |machine: &Machine, words: &[&str], first: &str| {
        let mut run = machine.project.start(&mut machine.project.command(words));
        run.line(first);
        run
    };
    let mut both = [
        follow(&machine, &["events", "-f"], "web: running #1"),
        follow(&machine, &["logs", "-f", "web"], "web | up"),
    ];
    machine.kill_both();
    for run in &mut both {
        assert_eq!(run.code(), 4, "{}", run.text());
        assert!(run.text().contains("was killed, and no other has taken over"), "{}", run.text());
    }
    machine.start();
    let mut both = [
        follow(&machine, &["events", "-f"], "took over 1 instance, "),
        follow(&machine, &["logs", "-f", "web"], "web | up"),
    ];
    machine.down();
    for run in &mut both {
        assert_eq!(run.code(), 0, "{}", run.text());
    }
}

/// An upgrade is no death: the socket stays where it is, and no client is told of an end.
#[test]
fn an_upgrade_leaves_the_socket_and_says_nothing_of_an_end() {
    let mut machine = Machine::started(&[("a.toml", "[service.web]\ncommand = \"sleep 1000\"\n")]);
    let socket = machine.project.state_dir().join("daemon/control.sock");
    let which = || std::os::unix::fs::MetadataExt::ino(&std::fs::symlink_metadata(&socket).unwrap());
    let before = which();
    assert_eq!(machine.regrow(&["upgrade"]).code, 0);
    assert_eq!(which(), before);
    machine.kill_daemon();
    let mut run = machine.run.take().unwrap();
    run.line("the daemon was ended by SIGKILL");
    assert_eq!(machine.regrow(&["down"]).code, 0);
    assert_eq!(run.code(), 0);
    assert!(
        !run.text().contains("ended by exit code 0") && !run.text().contains("was removed"),
        "{}",
        run.text()
    );
}

/// A service that failed to start because its folder was gone is started by the reload that finds
/// the folder again.
#[test]
fn what_fell_while_its_folder_was_gone_is_started_by_a_reload() {
    let machine = Machine::started(&[(
        "a.toml",
        "[service.web]\ncommand = \"sleep 1000\"\n[service.page]\ncommand = \"sleep 1001\"\ndepends_on = [\"web\"]\n",
    )]);
    let project = &machine.project;
    assert_eq!(project.regrow(&["wait", "page", "--timeout", "20s"]).code, 0);
    std::fs::rename(project.file("services"), project.file("away")).unwrap();
    end(project.pid("web"));
    eventually("it can't be started", || project.status("web")["state"] == "failed");
    std::fs::rename(project.file("away"), project.file("services")).unwrap();
    let reloaded = project.regrow(&["reload"]);
    assert_eq!(reloaded.code, 0, "{}{}", reloaded.stdout, reloaded.stderr);
    assert_eq!(project.regrow(&["wait", "web", "page", "--timeout", "20s"]).code, 0);
}
