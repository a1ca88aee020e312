//! The faults that a supervisor meets, on real processes. Each test names the row of the fault
//! table that it covers.

use std::collections::HashMap;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use super::daemon::Machine;
use super::harness::{Project, Run, end, eventually, free_port, installed, is_alive, named, pid_of};

fn events(project: &Project, kind: &str) -> Vec<Value> {
    let all = project.json(&["events", "--json"]);
    let all = all["events"].as_array().unwrap().clone();
    all.into_iter().filter(|e| e["event"] == kind).collect()
}

/// P1: another process that was given an ended process's pid is not touched.
#[test]
fn p1_a_reused_pid_is_spared() {
    let last_pid = Path::new("/proc/sys/kernel/ns_last_pid");
    if std::fs::OpenOptions::new().write(true).open(last_pid).is_err() {
        assert!(
            std::env::var_os("REGROW_TEST_REQUIRE_ALL").is_none(),
            "p1 needs a writable {}",
            last_pid.display()
        );
        eprintln!("SKIPPED p1_a_reused_pid_is_spared: {} can't be written", last_pid.display());
        return;
    }
    // There are several, since other programs on this machine take pids too, and may keep one.
    const COUNT: usize = 8;
    let mut manifest = "[service.stays]\ncommand = \"sleep 1000\"\n".to_owned();
    for n in 0..COUNT {
        manifest.push_str(&format!("[service.gone{n}]\ncommand = \"sleep 1000\"\nrestart = \"never\"\n"));
    }
    let project = Project::new(&manifest);
    let mut run = project.run(&[]);
    run.line(&format!("all {} are up", COUNT + 1));
    let gone: Vec<(String, u32)> =
        (0..COUNT).map(|n| format!("gone{n}")).map(|n| (n.clone(), project.pid(&n))).collect();
    for (name, pid) in &gone {
        end(*pid);
        run.line(&format!("{name}  * failed: SIGKILL"));
    }
    let decoy = gone.iter().cycle().take(1_000).find_map(|(name, pid)| {
        std::fs::write(last_pid, (pid - 1).to_string()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        if child.id() == *pid {
            return Some((name, *pid, child));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        None
    });
    let (name, pid, mut decoy) = decoy.expect("a number is given again");
    assert_eq!(project.regrow(&["stop", name]).code, 0);
    run.stop();
    assert!(is_alive(pid), "the stranger lives");
    decoy.kill().unwrap();
    decoy.wait().unwrap();
}

/// P2: only one place waits for processes; no status is lost or mixed up.
#[test]
fn p2_every_exit_is_reported_as_it_was() {
    let mut manifest = String::new();
    for n in 0..100 {
        manifest.push_str(&format!("[service.seven{n}]\nshell = \"exit 7\"\nrestart = \"never\"\n"));
    }
    for n in 0..20 {
        // The service leaves orphans that end by themselves, with another code.
        let script =
            "for i in 1 2 3 4 5; do (sh -c 'sh -c \\\"sleep 0.0$i; exit 3\\\" &'); done; sleep 0.2; exit 9";
        manifest.push_str(&format!("[service.fork{n}]\nshell = \"{script}\"\nrestart = \"never\"\n"));
    }
    let project = Project::new(&manifest);
    let mut run = project.run(&[]);
    assert_eq!(run.code(), 1);
    let text = run.text();
    for n in 0..100 {
        assert!(text.contains(&format!("  seven{n}: exit code 7\n")), "seven{n}");
    }
    for n in 0..20 {
        assert!(text.contains(&format!("  fork{n}: exit code 9")), "fork{n}\n{text}");
    }
}

/// P3: a process that left the session is part of the service all the same.
#[test]
fn p3_a_stop_ends_the_whole_tree() {
    let tag = std::process::id();
    let project = Project::new(&format!(
        "[service.family]\nshell = \"setsid sleep 30{tag}1 & (setsid sh -c 'setsid sleep 30{tag}2 & sleep 30{tag}3' &) ; sleep 0.1; echo up; exec sleep 30{tag}4\"\n[service.other]\ncommand = \"sleep 1000\"\n"
    ));
    let mut run = project.run(&[]);
    run.line("family | up");
    eventually("the family is complete", || named(&format!("sleep 30{tag}")).len() >= 4);
    let stop = project.regrow(&["stop", "family"]);
    assert_eq!((stop.code, stop.stdout.as_str()), (0, "family: stopped\n"));
    assert_eq!(named(&format!("sleep 30{tag}")), [0u32; 0], "gone when stop says so");
    run.stop();
}

/// P3: when the main process dies and leaves others, these end before the next incarnation starts.
#[test]
fn p3_what_a_crash_leaves_behind_is_ended_before_the_return() {
    let tag = std::process::id();
    let project = Project::new(&format!(
        "[service.family]\nshell = \"setsid sleep 31{tag}1 & sleep 31{tag}2 & sleep 0.1; echo up; exec sleep 31{tag}3\"\n"
    ));
    let mut run = project.run(&[]);
    run.line("family | up");
    end(project.pid("family"));
    run.next_line("family | up");
    // The shell's own command line has the same words until it has executed its last command.
    eventually("exactly one family", || {
        [1, 2, 3].iter().all(|n| named(&format!("sleep 31{tag}{n}")).len() == 1)
    });
    run.stop();
}

/// P3: a process that left its session, its parents and its environment still prints to the
/// service's output.
#[test]
fn p3_a_daemon_without_environment_is_ended_too() {
    let tag = std::process::id();
    let project = Project::new(&format!(
        "[service.family]\nshell = \"(env -i setsid sleep 36{tag}1 &) ; exec sleep 36{tag}2\"\n[service.other]\ncommand = \"sleep 1000\"\n"
    ));
    let mut run = project.run(&[]);
    run.line("all 2 are up");
    let left = || named(&format!("sleep 36{tag}1")).len();
    eventually("it has left", || left() == 1);
    for _ in 0..3 {
        assert_eq!(project.regrow(&["restart", "family"]).code, 0);
    }
    eventually("and is there once", || left() == 1);
    assert_eq!(project.regrow(&["stop", "family"]).code, 0);
    assert_eq!(left(), 0, "gone when stop says so");
    run.stop();
}

/// `regrow run` of a project as another user, started through the command `by`.
fn as_user(project: &Project, user: u32, by: &[&str]) -> std::process::Command {
    for path in [project.dir(), project.file("regrow.toml"), project.dir().parent().unwrap().to_owned()] {
        std::os::unix::fs::chown(path, Some(user), Some(user)).unwrap();
    }
    let number = user.to_string();
    let mut command = std::process::Command::new("setpriv");
    command
        .args(["--reuid", &number, "--regid", &number, "--clear-groups"])
        .args(by)
        .args([env!("CARGO_BIN_EXE_regrow"), "run"])
        .current_dir(project.dir())
        .env("REGROW_STATE_DIR", project.state_dir());
    command
}

/// A shell text that leaves its parents, its session, its environment and its output.
fn escape(argument: &str) -> String {
    escape_through(argument, "")
}

/// The same text as [`escape`], run through another program.
fn escape_through(argument: &str, through: &str) -> String {
    let daemon = format!("exec </dev/null >/dev/null 2>&1; cd /; sleep {argument}; true");
    format!("(env -i setsid setsid {through} sh -c '{daemon}' &) ; exec sleep 1000")
}

fn an_escape_fails(project: &Project, mut run: Run, sleep: &str) {
    run.line("all 2 are up");
    let left = || named(sleep).len();
    // The shell's own command line has the same words.
    eventually("it has left", || left() == 2);
    for _ in 0..3 {
        assert_eq!(project.regrow(&["restart", "family"]).code, 0);
        eventually("and is there once", || left() == 2);
    }
    assert_eq!(project.regrow(&["stop", "family"]).code, 0);
    assert_eq!(left(), 0, "gone when stop says so");
    run.stop();
}

/// P3: it is found by its cgroup, where one can be made.
#[test]
fn p3_who_leaves_everything_behind_is_ended_too() {
    let sleep = format!("41{}1", std::process::id());
    let shell = escape(&sleep);
    let project = Project::new(&format!(
        "[service.family]\nshell = \"{shell}\"\n[service.other]\ncommand = \"sleep 1000\"\n"
    ));
    let mut run = project.run(&[]);
    run.line("family * running");
    let root = cgroup_of(project.pid("other"));
    assert_eq!(root.to_string_lossy().contains("/regrow-"), a_cgroup_can_be_made(), "{}", root.display());
    an_escape_fails(&project, run, &sleep);
}

/// P3: where no cgroup can be made, it is found by the mark that it carries unknowingly.
#[test]
fn p3_the_same_without_a_cgroup() {
    const TEST: &str = "p3_the_same_without_a_cgroup";
    const USER: u32 = 64_912;
    if !crate::harness::can_become_another_user(TEST) {
        return;
    }
    // A process that sets one of the limits that are marks keeps the other.
    for (n, through) in ["", "prlimit --rttime=1000000", "prlimit --locks=100"].into_iter().enumerate() {
        let sleep = format!("42{}{n}", std::process::id());
        let shell = escape_through(&sleep, through);
        let project = Project::new(&format!(
            "[service.family]\nshell = \"{shell}\"\n[service.other]\ncommand = \"sleep 1000\"\n"
        ));
        let mut run = project.start(&mut as_user(&project, USER, &[]));
        run.line("other  * running");
        let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", project.pid("other"))).unwrap();
        assert!(!cgroup.contains("/regrow-"), "{cgroup}");
        an_escape_fails(&project, run, &sleep);
    }
}

/// P6: a keeper and a supervisor that are killed at the same instant leave the processes that
/// escaped; the next run there ends these by their cgroups.
#[test]
fn p6_what_a_killed_pair_leaves_is_ended_by_the_next_run() {
    const TEST: &str = "p6_what_a_killed_pair_leaves_is_ended_by_the_next_run";
    let sleep = format!("43{}3", std::process::id());
    // There are more than can get a cgroup each; the others are known by their marks.
    const COUNT: usize = 30;
    let manifest: String =
        (0..COUNT).map(|n| format!("[service.family{n}]\nshell = \"{}\"\n", escape(&sleep))).collect();
    let project = Project::new(&manifest);
    let mut run = project.run(&[]);
    run.line(&format!("all {COUNT} are up"));
    let folders = (0..COUNT).map(|n| cgroup_of(project.pid(&format!("family{n}"))));
    let folder = folders.into_iter().find(|folder| folder.to_string_lossy().contains("/regrow-"));
    if !a_cgroup_can_be_made() {
        eprintln!("SKIPPED {TEST}: no cgroup can be made here");
        run.stop();
        return;
    }
    let root = folder.expect("one has a cgroup").parent().unwrap().to_owned();
    eventually("they have left", || named(&sleep).len() == 2 * COUNT);
    let supervisor = project.json(&["status", "--json"])["daemon"]["pid"].as_u64().unwrap();
    let keeper = parent_of(u32::try_from(supervisor).unwrap());
    // Both are stopped first, so that neither sees the other's end.
    for pid in [keeper, u32::try_from(supervisor).unwrap()] {
        kill(pid_of(pid), Signal::SIGSTOP).unwrap();
    }
    end(keeper);
    end(u32::try_from(supervisor).unwrap());
    run.code();
    // No process was left to end it; the run of another test may have done so by now.
    let other = Project::new("[service.s]\ncommand = \"sleep 1000\"\n");
    let mut next = other.run(&[]);
    next.line("s      * running");
    eventually("the next run ends it", || named(&sleep).is_empty());
    eventually("and its cgroup is gone", || !root.exists());
    let of_next = cgroup_of(other.pid("s")).parent().unwrap().to_owned();
    assert!(of_next.exists());
    next.stop();
    assert!(!of_next.exists(), "a run leaves no cgroup behind: {}", of_next.display());
}

/// P6: when the keeper is killed, the supervisor takes everything with it, its cgroups too.
#[test]
fn p6_a_killed_keeper_leaves_no_cgroup() {
    let project = Project::new("[service.s]\ncommand = \"sleep 1000\"\n");
    let mut run = project.run(&[]);
    run.line("s      * running");
    let root = cgroup_of(project.pid("s")).parent().unwrap().to_owned();
    let supervisor = project.json(&["status", "--json"])["daemon"]["pid"].as_u64().unwrap();
    end(parent_of(u32::try_from(supervisor).unwrap()));
    run.code();
    if a_cgroup_can_be_made() {
        eventually("the cgroup is gone", || !root.exists());
    }
}

/// Whether a cgroup can be made below the one that this test is in.
pub(crate) fn a_cgroup_can_be_made() -> bool {
    let probe = cgroup_of(std::process::id()).join(format!("probe-{}", std::process::id()));
    std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe)).is_ok()
}

/// The folder of a process's cgroup (version 2).
fn cgroup_of(pid: u32) -> std::path::PathBuf {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default().to_owned();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    let point = mount.and_then(|line| line.split(' ').nth(4)).unwrap_or("/sys/fs/cgroup");
    Path::new(point).join(path)
}

fn parent_of(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// P4: every service has a session of its own.
#[test]
fn p4_a_signal_to_its_own_group_spares_the_others() {
    let project = Project::new(
        "[service.a]\nshell = \"sleep 0.2; kill -9 0\"\nrestart = \"never\"\n[service.b]\nshell = \"echo up; exec sleep 1000\"\n",
    );
    let mut run = project.run(&[]);
    run.line("b      | up");
    let b = project.pid("b");
    run.line("a      * failed: SIGKILL");
    assert_eq!(project.pid("b"), b);
    run.stop();
}

/// A pause stops the whole tree, including sessions of its own; a stop still ends it in time.
#[test]
fn a_paused_tree_stands_still_and_can_be_stopped() {
    let tag = std::process::id();
    let project = Project::new(&format!(
        "[service.family]\nshell = \"setsid sh -c 'while :; do sleep 37{tag}1; done' & while :; do sleep 37{tag}2; done\"\nstop = {{ command = \"true\", timeout = \"5s\" }}\n"
    ));
    let mut run = project.run(&[]);
    run.line("family * running");
    let tree = || named(&format!("37{tag}"));
    let stands_still = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T"))
    };
    eventually("the family is complete", || tree().len() == 4);
    for _ in 0..3 {
        assert_eq!(project.regrow(&["pause", "family"]).stdout, "family: paused\n");
        assert_eq!(project.status("family")["state"], "paused");
        assert!(tree().iter().all(stands_still), "{:?}", tree());
        assert_eq!(project.regrow(&["resume", "--all"]).stdout, "family: resumed\n");
        eventually("it goes on", || !tree().iter().any(stands_still));
    }
    assert_eq!(project.regrow(&["pause", "family"]).code, 0);
    let stop = project.regrow(&["stop", "family"]);
    assert_eq!((stop.code, stop.stdout.as_str()), (0, "family: stopped\n"));
    assert!(tree().is_empty());
    let pause = project.regrow(&["pause", "family"]);
    assert_eq!(
        (pause.code, pause.stderr.as_str()),
        (1, "family: is stopped: only what runs can be paused\n")
    );
    run.stop();
}

/// P5: a service that ignores SIGTERM or is stopped ends within its time, and the SIGKILL is
/// reported.
#[test]
fn p5_deaf_and_stopped_processes_end_in_time() {
    let project = Project::new(
        r#"
[service.deaf]
shell = "trap '' TERM; echo up; while :; do sleep 1000; done"
stop = { timeout = "300ms" }
[service.held]
shell = "echo up; exec sleep 1000"
stop = { timeout = "20s" }
"#,
    );
    let mut run = project.run(&[]);
    run.line("deaf   | up");
    run.line("held   | up");
    let held = project.pid("held");
    kill(pid_of(held), Signal::SIGSTOP).unwrap();
    assert_eq!(project.regrow(&["stop", "deaf", "held"]).code, 0);
    let killed = events(&project, "killed");
    assert_eq!(killed.len(), 1, "only the deaf one needs it: {killed:?}");
    assert_eq!(killed[0]["instance"], "deaf");
    assert!(killed[0]["after_s"].as_f64().unwrap() >= 0.3);
    assert_eq!(project.status("deaf")["exit"]["ended"], "by_force");
    assert_eq!(project.status("held")["exit"]["ended"], "gracefully");
    run.stop();
}

/// P6, the foreground half: nothing survives the supervisor, or its keeper.
#[test]
fn p6_nothing_survives_a_killed_run() {
    let tag = std::process::id();
    for victim in ["supervisor", "keeper"] {
        let project = Project::new(&format!(
            "[service.family]\nshell = \"setsid sleep 32{tag}1 & (setsid sh -c 'setsid sleep 32{tag}2 & sleep 32{tag}3' &) ; env -i setsid sleep 32{tag}4 & sleep 0.1; echo up; exec sleep 32{tag}5\"\n"
        ));
        let mut run = project.run(&[]);
        run.line("family | up");
        eventually("the family is complete", || named(&format!("sleep 32{tag}")).len() >= 5);
        let supervisor = project.json(&["status", "--json"])["daemon"]["pid"].as_u64().unwrap();
        let supervisor = u32::try_from(supervisor).unwrap();
        assert_ne!(supervisor, run.pid(), "the keeper is another process");
        match victim {
            "supervisor" => {
                end(supervisor);
                assert_eq!(run.code(), 137);
            }
            _ => {
                end(run.pid());
                assert_eq!(run.code(), -9);
            }
        }
        eventually("nothing is left", || {
            named(&format!("sleep 32{tag}")).is_empty() && !is_alive(supervisor)
        });
    }
}

/// P8: as process 1 it reaps processes that it never started, and handles signals.
#[test]
fn p8_as_process_one_nothing_stays_a_zombie() {
    let probe = std::process::Command::new("unshare").args(["-pf", "--mount-proc", "true"]).output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        assert!(std::env::var_os("REGROW_TEST_REQUIRE_ALL").is_none(), "this needs unshare(1), as root");
        eprintln!("SKIPPED p8_as_process_one_nothing_stays_a_zombie: no namespace can be made here");
        return;
    }
    let tag = std::process::id();
    let project = Project::new(&format!(
        "[service.orphans]\nshell = \"n=0; while [ $n -lt 1000 ]; do (true &); n=$((n+1)); done; echo made; exec sleep 38{tag}\"\n"
    ));
    let mut command = std::process::Command::new("unshare");
    command
        .args(["-pf", "--mount-proc", env!("CARGO_BIN_EXE_regrow"), "run"])
        .current_dir(project.dir())
        .env("REGROW_STATE_DIR", project.state_dir());
    let mut run = project.start(&mut command);
    run.line("orphans | made");
    let children = |pid: u32| -> Vec<u32> {
        let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        list.split_whitespace().map(|word| word.parse().unwrap()).collect()
    };
    let keeper = children(run.pid())[0];
    // These processes come from outside, and go to process 1 when their parent ends.
    for _ in 0..20 {
        let enter = std::process::Command::new("nsenter")
            .args(["-t", &keeper.to_string(), "-p", "sh", "-c", "sleep 0.05 & sleep 0.06 &"])
            .status();
        assert!(enter.unwrap().success());
    }
    let zombie = |pid: &u32| !is_alive(*pid) && Path::new(&format!("/proc/{pid}")).exists();
    let supervisor = children(keeper)[0];
    eventually("nothing but the supervisor is left to process 1", || children(keeper) == [supervisor]);
    eventually("no zombie is left", || !children(supervisor).iter().any(zombie));
    kill(pid_of(keeper), Signal::SIGTERM).unwrap();
    assert_eq!(run.code(), 143, "{}", run.text());
    assert!(named(&format!("sleep 38{tag}")).is_empty());
}

/// P9: children get the descriptors 0, 1 and 2, whatever regrow was started with.
#[test]
fn p9_no_descriptor_leaks() {
    let mut manifest = String::new();
    for n in 0..100 {
        manifest.push_str(&format!(
            "[service.s{n}]\nshell = \"echo fds $(echo /proc/self/fd/*)\"\nkind = \"task\"\n"
        ));
    }
    let project = Project::new(&manifest);
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", &format!("exec 7</dev/null 8>/dev/null; exec {} run", env!("CARGO_BIN_EXE_regrow"))])
        .current_dir(project.dir())
        .env("REGROW_STATE_DIR", project.state_dir());
    let mut run = project.start(&mut command);
    assert_eq!(run.code(), 0);
    let text = run.text();
    let listed: Vec<&str> = text.lines().filter_map(|l| l.split("fds ").nth(1)).collect();
    assert_eq!(listed.len(), 100);
    for fds in listed {
        // The shell itself reads the folder through 3, and writes into its own pipe.
        let known = ["/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "/proc/self/fd/3"];
        assert!(fds.split(' ').all(|fd| known.contains(&fd)), "{fds}");
    }
}

/// P10: whatever the signal settings that regrow was started with, children get the defaults.
#[test]
fn p10_signals_are_fresh_in_the_child() {
    let project =
        Project::new("[service.s]\nshell = \"grep -E 'Sig(Blk|Ign)' /proc/self/status\"\nkind = \"task\"\n");
    if !installed("p10_signals_are_fresh_in_the_child", Path::new("/usr/bin/env")) {
        return;
    }
    // `trap ''` ignores; env --block-signal blocks, across the exec.
    let mut command = std::process::Command::new("sh");
    command
        .args([
            "-c",
            &format!(
                "trap '' HUP USR1; exec env --block-signal=TERM,USR2 {} run",
                env!("CARGO_BIN_EXE_regrow")
            ),
        ])
        .current_dir(project.dir())
        .env("REGROW_STATE_DIR", project.state_dir());
    let mut run = project.start(&mut command);
    assert_eq!(run.code(), 0, "{}", run.text());
    let text = run.text();
    for mask in ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"] {
        assert!(text.contains(mask), "{text}");
    }
}

/// P10: whatever the signal settings that regrow was started with, its own signal handling works.
#[test]
fn p10_signals_work_whatever_was_inherited() {
    for (options, signal, code) in [
        ("--block-signal=TERM", Signal::SIGTERM, 143),
        ("--block-signal", Signal::SIGINT, 130),
        ("--ignore-signal=TERM", Signal::SIGTERM, 143),
        ("--ignore-signal=CHLD", Signal::SIGTERM, 143),
    ] {
        let project = Project::new("[service.s]\nshell = \"echo up; exec sleep 1000\"\n");
        let mut command = std::process::Command::new("env");
        command
            .args([options, env!("CARGO_BIN_EXE_regrow"), "run"])
            .current_dir(project.dir())
            .env("REGROW_STATE_DIR", project.state_dir());
        let mut run = project.start(&mut command);
        run.line("s      | up");
        run.signal(signal);
        assert_eq!(run.code(), code, "{options}: {}", run.text());
    }
}

/// P11: shortages are failures that are counted, backed off and recovered from, and the
/// supervisor answers meanwhile.
#[test]
fn p11_a_shortage_of_descriptors_passes() {
    let mut manifest = String::new();
    for n in 0..24 {
        manifest.push_str(&format!(
            "[service.s{n}]\nshell = \"sleep 1000\"\nrestart = {{ backoff = {{ max = \"500ms\" }} }}\n"
        ));
    }
    let project = Project::new(&manifest);
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", &format!("ulimit -n 100; exec {} run", env!("CARGO_BIN_EXE_regrow"))])
        .current_dir(project.dir())
        .env("REGROW_STATE_DIR", project.state_dir());
    let mut run = project.start(&mut command);
    // Each service has been tried once; those that run by then keep their place.
    for n in 0..24 {
        run.line(&format!("s{n:<3}"));
    }
    run.line("no descriptors left");
    let rows = project.json(&["status", "--json"]);
    let short: Vec<&Value> =
        rows["services"].as_array().unwrap().iter().filter(|r| r["state"] == "crashed").collect();
    assert!(!short.is_empty());
    assert_eq!(short[0]["exit"]["stage"], "prepare");
    assert_eq!(short[0]["exit"]["errno_name"], "EMFILE");
    // Room is made by hand, and the services that were short take it, also one that is just being tried
    // again.
    let rows = rows["services"].as_array().unwrap().iter();
    let (running, short): (Vec<&Value>, Vec<&Value>) = rows.partition(|row| row["state"] == "running");
    let name = |row: &&Value| row["name"].as_str().unwrap().to_owned();
    let (running, short): (Vec<String>, Vec<String>) =
        (running.iter().map(name).collect(), short.iter().map(name).collect());
    // One more than those must stop: the one that is started below takes a descriptor, too.
    assert!(running.len() > short.len(), "{running:?} leave room for {short:?}");
    let mut stop = vec!["stop"];
    stop.extend(running.iter().take(short.len() + 1).map(String::as_str));
    assert_eq!(project.regrow(&stop).code, 0);
    let mut wait = vec!["wait", "--timeout", "60s"];
    wait.extend(short.iter().map(String::as_str));
    let code = project.regrow(&wait).code;
    assert_eq!(code, 0, "all recover: {}\n{}", project.regrow(&["status"]).stdout, run.text());
    run.stop();
}

/// P11: a shortage of processes, by a limit that only another user has, is counted, answered, and
/// over when the limit is raised.
#[test]
fn p11_a_shortage_of_processes_passes() {
    const TEST: &str = "p11_a_shortage_of_processes_passes";
    // The user has no other processes, since the limit counts all threads of a user.
    const USER: u32 = 64_911;
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root || !installed(TEST, Path::new("/usr/bin/prlimit")) {
        assert!(std::env::var_os("REGROW_TEST_REQUIRE_ALL").is_none(), "{TEST} needs root");
        eprintln!("SKIPPED {TEST}: only root can become another user");
        return;
    }
    let manifest: String = (0..40)
        .map(|n| {
            format!(
                "[service.s{n}]\ncommand = \"sleep 1000\"\nrestart = {{ backoff = {{ max = \"300ms\" }} }}\n"
            )
        })
        .collect();
    let project = Project::new(&manifest);
    let mut run = project.start(&mut as_user(&project, USER, &["prlimit", "--nproc=25:1000"]));
    let user = USER.to_string();
    run.line("the kernel allows no further process");
    let rows = project.json(&["status", "--json"]);
    let supervisor = rows["daemon"]["pid"].as_u64().unwrap().to_string();
    eventually("one is backed off, and says why", || {
        let rows = project.json(&["status", "--json"]);
        let rows = rows["services"].as_array().unwrap();
        rows.iter().any(|row| row["exit"]["stage"] == "fork" && row["exit"]["errno_name"] == "EAGAIN")
    });
    let raised = std::process::Command::new("setpriv")
        .args(["--reuid", &user, "--regid", &user, "--clear-groups"])
        .args(["prlimit", "--pid", &supervisor, "--nproc=1000:1000"])
        .status();
    assert!(raised.unwrap().success());
    let names: Vec<String> = (0..40).map(|n| format!("s{n}")).collect();
    let mut wait = vec!["wait", "--timeout", "25s"];
    wait.extend(names.iter().map(String::as_str));
    let waited = project.regrow(&wait);
    assert_eq!(waited.code, 0, "all recover: {}{}", waited.stdout, waited.stderr);
    run.stop();
}

/// P15: a code and a signal are different things.
#[test]
fn p15_exit_137_and_sigkill_read_differently() {
    let project = Project::new(
        "[service.code]\nshell = \"exit 137\"\nrestart = \"never\"\n[service.killed]\nshell = \"kill -9 $$\"\nrestart = \"never\"\n[service.idle]\ncommand = \"sleep 1000\"\n",
    );
    let mut run = project.run(&[]);
    run.line("code   * failed: exit code 137");
    run.line("killed * failed: SIGKILL");
    assert_eq!(project.status("code")["exit"], serde_json::json!({"code": 137, "ended": "by_itself"}));
    assert_eq!(
        project.status("killed")["exit"],
        serde_json::json!({"signal": 9, "name": "SIGKILL", "core_dumped": false, "ended": "by_itself"})
    );
    run.stop();
}

/// R1: a storm of crashes is slowed down, and the supervisor answers throughout.
#[test]
fn r1_a_crash_storm_is_backed_off() {
    let mut manifest = String::new();
    for n in 0..50 {
        manifest.push_str(&format!("[service.s{n}]\nshell = \"exit 1\"\n"));
    }
    let project = Project::new(&manifest);
    let run = project.run(&[]);
    // The backoff is 100 ms doubling: the sixth restart comes 3.2 s after the fifth.
    eventually("all have come back four times", || {
        let output = project.regrow(&["status", "--json"]);
        let Ok(report) = serde_json::from_str::<Value>(&output.stdout) else { return false };
        report["services"]
            .as_array()
            .is_some_and(|rows| rows.iter().all(|r| r["restarts"].as_u64().unwrap() >= 4))
    });
    let report = project.json(&["status", "--json"]);
    let uptime = report["daemon"]["uptime_s"].as_f64().unwrap();
    for row in report["services"].as_array().unwrap() {
        // At least 75 % of 0.1 + 0.2 + ... + 0.1 * 2^(n-1) seconds have passed for n restarts.
        let returns = i32::try_from(row["restarts"].as_u64().unwrap()).unwrap();
        assert!(uptime >= 0.75 * 0.1 * (2f64.powi(returns) - 1.0), "{uptime} {row}");
    }
    run.stop();
}

/// A library that moves the wall clock of the process that loads it by the number of seconds in a
/// file.
const JUMP: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    int file = clock == CLOCK_REALTIME ? open(getenv("JUMP"), O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        char text[32] = {0};
        read(file, text, 31);
        close(file);
        time->tv_sec += atol(text);
    }
    return result;
}
"#;

/// R2: the wall clock moves a year ahead during a backoff, and two back during the next.
#[test]
fn r2_a_clock_that_jumps_moves_no_deadline() {
    const TEST: &str = "r2_a_clock_that_jumps_moves_no_deadline";
    if !installed(TEST, Path::new("/usr/bin/cc")) {
        return;
    }
    let project = Project::new(
        "[service.s]\nshell = \"sleep 0.1; exit 1\"\nrestart = { backoff = { initial = \"1s\", max = \"1s\", jitter = 0.0 } }\n[service.slow]\ncommand = \"sleep 1000\"\nready = { after = \"2s\", deadline = \"20s\" }\n",
    );
    project.write("jump.c", JUMP);
    project.write("jump", "0");
    let library = project.file("jump.so");
    let made = std::process::Command::new("/usr/bin/cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &project.file("jump.c")])
        .status();
    assert!(made.unwrap().success());
    let mut command = project.command(&["run"]);
    command.env("LD_PRELOAD", &library).env("JUMP", project.file("jump"));
    let mut run = project.start(&mut command);
    const OVER_A_YEAR: i64 = 400 * 86_400;
    for offset in [OVER_A_YEAR, -OVER_A_YEAR] {
        run.next_line("s      * exit code 1; comes back in 1.0 s");
        project.write("jump", offset.to_string());
    }
    run.line("slow   * ready after 2.");
    run.next_line("s      * exit code 1; comes back in 1.0 s");
    let all = project.json(&["events", "--json"]);
    let all = all["events"].as_array().unwrap();
    let of = |kind: &str| -> Vec<&Value> {
        all.iter().filter(|e| e["event"] == kind && e["instance"] == "s").collect()
    };
    let (falls, starts) = (of("crashed"), of("starting"));
    for (fall, start) in falls.iter().zip(&starts[1..]) {
        let waited = start["since_start_s"].as_f64().unwrap() - fall["since_start_s"].as_f64().unwrap();
        assert!((1.0..3.0).contains(&waited), "{waited}");
    }
    let year = |event: &Value| event["at"].as_str().unwrap()[..4].parse::<i64>().unwrap();
    let (before, ahead, behind) = (year(falls[0]), year(starts[1]), year(starts[2]));
    assert!(behind < before && before < ahead, "the clock did jump: {before}, {ahead}, {behind}");
    assert!(project.status("slow")["uptime_s"].as_f64().unwrap() < 60.0);
    run.stop();
}

/// R3: whatever ten clients ask for at once, there is never a second copy, and all are answered.
#[test]
fn r3_fifty_commands_at_once() {
    let tag = std::process::id();
    let project = Project::new(&format!(
        "[service.one]\nshell = \"echo $$ >> starts; exec 9> lock; flock -n 9 || echo TWO >> starts; trap 'exit 0' TERM; sleep 33{tag} & wait\"\n[service.idle]\ncommand = \"sleep 1000\"\n"
    ));
    let mut run = project.run(&[]);
    run.line("all 2 are up");
    std::thread::scope(|scope| {
        for client in 0..10 {
            let project = &project;
            scope.spawn(move || {
                for step in 0..5 {
                    let verb = ["start", "stop", "restart"][(client + step) % 3];
                    let output = project.regrow(&[verb, "one", "--json"]);
                    assert!([0, 1].contains(&output.code), "{verb}: {} {}", output.stdout, output.stderr);
                    let answer: Value = serde_json::from_str(&output.stdout).unwrap();
                    assert_eq!(answer["results"][0]["name"], "one", "{answer}");
                }
            });
        }
    });
    // The last command wins.
    assert_eq!(project.regrow(&["start", "one"]).code, 0);
    eventually("the shell and its sleep, once", || named(&format!("sleep 33{tag}")).len() == 2);
    assert_eq!(project.regrow(&["stop", "one"]).code, 0);
    assert!(named(&format!("sleep 33{tag}")).is_empty());
    let starts = std::fs::read_to_string(project.file("starts")).unwrap();
    assert!(!starts.contains("TWO"), "never two at once");
    run.stop();
}

/// R5: a permanent failure goes down the chain of dependents at once, and so does the return.
#[test]
fn r5_dependents_fail_and_come_back_with_what_they_depend_on() {
    let project = Project::new(
        r#"
[service.a]
shell = "test -e fixed && echo up && exec sleep 1000; exit 1"
ready = { log = "up" }
restart = "never"
[service.b]
command = "sleep 1000"
depends_on = ["a"]
[service.c]
command = "sleep 1000"
depends_on = ["b"]
[service.idle]
command = "sleep 1000"
"#,
    );
    let mut run = project.run(&[]);
    run.line("b      * failed: dependency: a failed");
    run.line("c      * failed: dependency: b failed");
    assert_eq!(project.status("c")["failed"]["reason"], "dependency");
    let why = project.regrow(&["why", "c"]).stdout;
    let want = "c is failed: dependency: b failed\n└─ b is failed: dependency: a failed\n   └─ a is failed: exit code 1\n";
    assert_eq!(why, want);
    project.write("fixed", "");
    assert_eq!(project.regrow(&["start", "a"]).code, 0);
    let back = project.regrow(&["wait", "b", "c", "--timeout", "20s"]);
    assert_eq!(back.code, 0, "{}", back.stderr);
    run.stop();
}

/// R6: dependents of a service that will come back keep waiting for it, and are never wedged.
#[test]
fn r6_waiting_ones_start_when_a_crashed_dependency_returns() {
    let project = Project::new(
        r#"
[service.db]
shell = "test -e second || { touch second; exit 1; }; echo db up; exec sleep 1000"
ready = { log = "db up" }
[service.api]
command = "sleep 1000"
depends_on = ["db"]
"#,
    );
    let mut run = project.run(&[]);
    run.line("db     * exit code 1; comes back in");
    run.line("api    * running");
    run.stop();
}

/// R7: a service that others need is not stopped under them, unless forced; no restart of another
/// service revives one that was stopped by hand.
#[test]
fn r7_a_needed_service_is_not_stopped_without_force() {
    let project = Project::new(
        r#"
[service.db]
command = "sleep 1000"
[service.api]
shell = "echo up; exec sleep 1000"
depends_on = ["db"]
"#,
    );
    let mut run = project.run(&[]);
    run.line("api    | up");
    let refused = project.regrow(&["stop", "db"]);
    assert_eq!(refused.code, 1);
    assert_eq!(
        refused.stderr,
        "error: api depends on db and is running\n  = help: stop them too, or say --force\n"
    );
    assert_eq!(project.status("db")["state"], "running");
    assert_eq!(project.regrow(&["stop", "db", "--force"]).code, 0);
    end(project.pid("api"));
    run.line("api    * SIGKILL; comes back in");
    run.next_line("api    * waiting for db");
    assert_eq!(project.status("db")["state"], "stopped");
    assert_eq!(project.status("db")["goal"], "down");
    run.stop();
}

/// R7: a restart that would end in waiting for a service that is kept down is refused.
#[test]
fn r7_a_restart_without_its_dependency_is_refused() {
    let project = Project::new(
        "[service.db]\ncommand = \"sleep 1000\"\n[service.api]\ncommand = \"sleep 1000\"\ndepends_on = [\"db\"]\n",
    );
    let mut run = project.run(&[]);
    run.line("all 2 are up");
    assert_eq!(project.regrow(&["stop", "db", "--force"]).code, 0);
    let api = project.pid("api");
    let refused = project.regrow(&["restart", "api"]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("api depends on db, which is down because somebody wants it so"),
        "{}",
        refused.stderr
    );
    assert_eq!(project.pid("api"), api, "it was not touched");
    run.stop();
}

/// R8: restarts by hand count against no limit, and clear `failed`.
#[test]
fn r8_restarts_by_hand_count_against_nothing() {
    let project = Project::new(
        r#"
[service.a]
shell = "echo up; exec sleep 1000"
restart = { policy = "on-failure", max_retries = 1, backoff = { initial = "10ms" } }
[group.g]
members = ["a"]
intensity = 1
period = "1m"
[service.idle]
command = "sleep 1000"
"#,
    );
    let mut run = project.run(&[]);
    run.line("a      | up");
    for _ in 0..5 {
        assert_eq!(project.regrow(&["restart", "a"]).code, 0);
    }
    assert_eq!(project.status("a")["restarts"], 0);
    for _ in 0..2 {
        end(project.pid("a"));
        eventually("it is not running", || {
            project.status("a")["state"] != "running" || project.status("a")["restarts"] != 0
        });
        project.regrow(&["wait", "a", "--timeout", "5s"]);
        if project.status("a")["state"] == "failed" {
            break;
        }
    }
    assert_eq!(project.status("a")["state"], "failed");
    assert_eq!(project.regrow(&["start", "a"]).code, 0);
    assert_eq!(project.status("a")["state"], "running");
    run.stop();
}

/// R9: a check that hangs is killed with its children; a check that can't be made says nothing
/// about the service.
#[test]
fn r9_hanging_and_impossible_checks() {
    let tag = std::process::id();
    let project = Project::new(&format!(
        r#"
[service.hung]
command = "sleep 1000"
health = {{ exec = ["sh", "-c", "sleep 34{tag}1 & sleep 34{tag}2"], interval = "50ms", timeout = "100ms", failures = 2 }}
restart = "never"
[service.blind]
command = "sleep 1000"
health = {{ exec = "no-such-check-program", interval = "50ms", timeout = "1s", failures = 1 }}
"#
    ));
    let mut run = project.run(&[]);
    run.line("hung   * failed: unhealthy");
    run.line("blind  * health check could not be made: no-such-check-program");
    assert_eq!(project.status("hung")["exit"]["reason"], "health");
    eventually("no check is left", || named(&format!("sleep 34{tag}")).is_empty());
    let blind = project.status("blind");
    assert_eq!((&blind["state"], &blind["health"]), (&Value::from("running"), &Value::from("unknown")));
    run.stop();
}

/// R16: an end that the supervisor causes because something is wrong is a failure; a stop is not.
#[test]
fn r16_health_kill_and_missed_deadline_are_failures() {
    let project = Project::new(&format!(
        r#"
[service.sick]
shell = "echo up; trap 'exit 0' TERM; sleep 1000 & wait"
health = {{ tcp = "127.0.0.1:{}", interval = "20ms", failures = 2 }}
[service.late]
shell = "trap 'exit 0' TERM; sleep 1000 & wait"
ready = {{ log = "never", deadline = "100ms" }}
"#,
        free_port()
    ));
    let mut run = project.run(&[]);
    run.line("sick   * unhealthy, ended with exit code 0; comes back in");
    run.line("late   * not ready in time, ended with exit code 0; comes back in");
    run.stop();
}

/// L1: the last lines of a dying process come before its end, all of them.
#[test]
fn l1_last_words_are_heard() {
    let project = Project::new(
        r#"
[service.killed]
shell = "printf tail; kill -9 $$"
restart = "never"
[service.flood]
shell = "head -c 1000000 /dev/zero | tr '\\0' x | fold -w 99; echo; echo the end"
kind = "task"
[service.orphan]
shell = "setsid sleep 0.3 & echo bye; exit 4"
restart = "never"
"#,
    );
    let mut run = project.run(&[]);
    assert_eq!(run.code(), 1);
    let text = run.text();
    let at = |words: &str| text.find(words).unwrap_or_else(|| panic!("no {words:?}"));
    assert!(at("killed | tail") < at("killed * failed: SIGKILL"));
    assert!(at("flood  | the end") < at("flood  * completed"));
    let crosses: usize =
        text.lines().filter(|l| l.starts_with("flood  | ")).map(|l| l.matches('x').count()).sum();
    assert_eq!(crosses, 1_000_000, "not a byte is lost");
    assert!(at("orphan | bye") < at("orphan * exit code 4"));
}

/// S1: no other user gets in, even where the folder would let them.
#[test]
fn s1_another_user_is_refused() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let project = Project::new("[service.a]\ncommand = \"sleep 1000\"\n");
    let mut run = project.run(&[]);
    run.line("a      * running");
    let runs = project.state_dir().join("run");
    let place = std::fs::read_dir(&runs).unwrap().next().unwrap().unwrap().path();
    let socket = place.join("control.sock");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&place), mode(&socket)), (0o700, 0o600));
    if nix::unistd::geteuid().is_root()
        && installed("s1_another_user_is_refused", Path::new("/usr/bin/setpriv"))
    {
        let open = |path: &Path| std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
        let base = project.state_dir();
        for path in [base.parent().unwrap(), &base, &runs, &place, &socket] {
            open(path);
        }
        let script = format!(
            "import socket; s = socket.socket(socket.AF_UNIX); s.connect({:?}); s.sendall(b'GET /v1/status HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n'); print(len(s.recv(100)))",
            socket.display().to_string()
        );
        let as_user = |user: &str| {
            let output = std::process::Command::new("setpriv")
                .args(["--reuid", user, "--clear-groups", "python3", "-c", &script])
                .output()
                .unwrap();
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        assert_eq!(as_user("0"), "100", "root may");
        let stranger = as_user("65534");
        assert!(stranger.is_empty() || stranger == "0", "a stranger gets nothing: {stranger}");
    }
    run.stop();
}

/// S5: a name never becomes a path.
#[test]
fn s5_names_from_outside_stay_names() {
    let project = Project::new("[service.a]\ncommand = \"sleep 1000\"\n");
    let mut run = project.run(&[]);
    run.line("a      * running");
    for name in ["../x", "a\nb", "", "%00", &"x".repeat(5_000)] {
        for verb in ["stop", "why", "logs"] {
            let output = project.regrow(&[verb, "--", name]);
            assert_eq!(output.code, 1, "{verb} {name:?}: {}{}", output.stdout, output.stderr);
            assert!(output.stderr.contains("there is no service"), "{verb}: {}", output.stderr);
        }
    }
    run.stop();
}

/// Three replicas are three processes, and a killed one comes back alone.
#[test]
fn replicas_are_one_process_each() {
    let project = Project::new(
        "[service.web]\nshell = \"echo $REGROW_SERVICE $REGROW_INSTANCE; exec sleep 1000\"\nreplicas = 3\n",
    );
    let mut run = project.run(&[]);
    for n in 1..=3 {
        run.line(&format!("web.{n}  | web web.{n}"));
        project.pid(&format!("web.{n}"));
    }
    let rows = project.json(&["status", "web", "--json"]);
    let pids: HashMap<u64, String> = rows["services"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| (r["pid"].as_u64().unwrap(), r["name"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(pids.len(), 3);
    end(project.pid("web.2"));
    run.line("web.2  * SIGKILL; comes back");
    run.next_line("web.2  | web web.2");
    assert_eq!(project.status("web.1")["restarts"], 0);
    run.stop();
}

#[test]
fn p13_groups_go_before_the_group_before_the_user() {
    if !nix::unistd::geteuid().is_root() {
        return crate::harness::skip("p13_groups_go_before_the_group_before_the_user", "it takes root");
    }
    let want = |args: &[&str]| {
        let output = std::process::Command::new("id").args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let show = "echo uid $(id -u) gid $(id -g) groups $(id -G) mask $(umask) nice $(nice) home $HOME user $USER; \
                echo again > /dev/stdout; exec sleep 1000";
    let project = Project::new(&format!(
        "[service.named]\nshell = '{show}'\ndir = \"/\"\nuser = \"nobody\"\numask = \"027\"\nnice = 5\nready = {{ log = \"again\" }}\n\
         [service.number]\nshell = '{show}'\ndir = \"/\"\nuser = 12345\ngroup = \"daemon\"\nready = {{ log = \"again\" }}\n\
         [service.nobody-else]\ncommand = \"true\"\ndir = \"/\"\nuser = \"no-such-user\"\n"
    ));
    let mut run = project.run(&[]);
    run.line("3 services");
    assert_eq!(project.regrow(&["wait", "named", "number", "--timeout", "20s"]).code, 0);
    let logs = project.regrow(&["logs"]).stdout;
    let (uid, gid, groups) = (want(&["-u", "nobody"]), want(&["-g", "nobody"]), want(&["-G", "nobody"]));
    let named = format!(
        "named  | uid {uid} gid {gid} groups {groups} mask 0027 nice 5 home /nonexistent user nobody"
    );
    assert!(logs.contains(&named), "{named} in {logs}");
    let daemon = want(&["-g", "daemon"]);
    assert!(
        logs.contains(&format!("number | uid 12345 gid {daemon} groups {daemon} mask 0022 nice 0")),
        "{logs}"
    );
    let failed = project.status("nobody-else");
    assert_eq!((&failed["exit"]["stage"], &failed["state"]), (&"user".into(), &"failed".into()), "{failed}");
    assert_eq!(failed["exit"]["message"], "there is no user \"no-such-user\" here");
    run.stop();
}

/// A tree that keeps forking away into sessions of its own, without a cgroup and with orphans that
/// regrow does not inherit, is brought to a standstill before it is killed, so none is left. Where
/// that does not succeed in time, the report says so.
#[test]
fn who_forks_away_stands_still_before_it_is_killed() {
    const TEST: &str = "who_forks_away_stands_still_before_it_is_killed";
    const USER: u32 = 64_913;
    if !crate::harness::can_become_another_user(TEST) {
        return;
    }
    if !installed(TEST, Path::new("/usr/bin/python3")) {
        return;
    }
    let word = format!("colony-{}", std::process::id());
    let colony = "import os,signal,sys,time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n\
        for n in range(20):\n    if os.fork() == 0:\n        while True:\n            os.setsid() if os.getsid(0) != os.getpid() else None\n            time.sleep(0.02)\n            if os.fork(): os._exit(0)\n\
        print('up', flush=True)\ntime.sleep(1000)\n";
    let mut machine = Machine::new(&[(
        "a.toml",
        &format!(
            "[service.colony]\ncommand = [\"/usr/bin/python3\", \"-c\", '''{colony}''', \"{word}\"]\nready = {{ log = \"up\" }}\nstop = {{ timeout = \"100ms\" }}\n"
        ),
    )]);
    machine.start_as(USER);
    let regrow = |words: &[&str]| machine.regrow(words);
    for kills_keeper in [false, true] {
        assert_eq!(regrow(&["start", "colony"]).code, 0);
        if kills_keeper {
            let (daemon, keeper) = machine.pids();
            end(keeper);
            eventually("another keeper is there", || machine.pids().1 == daemon);
        }
        let stopped = regrow(&["stop", "colony"]);
        let told = format!("{}{}", stopped.stdout, stopped.stderr);
        assert!(
            stopped.code == 0 || (stopped.code == 1 && told.contains("still fork")),
            "{kills_keeper}: {told}"
        );
        assert!(stopped.code == 1 || named(&word).is_empty(), "{told}");
        eventually("none is left", || {
            named(&word).is_empty() && machine.project.status("colony")["state"] == "stopped"
        });
    }
    assert_eq!(regrow(&["down"]).code, 0);
    machine.run = None;
}
