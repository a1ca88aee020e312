//! Faults of process trees: what leaves its parent, its session or its group, and what a killed run leaves.

use std::path::Path;

use nix::sys::signal::{Signal, kill};

use crate::harness::{Project, Run, end, eventually, installed, is_alive, named, pid_of};
use crate::machine::Machine;
use crate::rules::as_user;

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

/// The folder of a process's cgroup (version 2).
pub(crate) fn cgroup_of(pid: u32) -> std::path::PathBuf {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default().to_owned();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    let point = mount.and_then(|line| line.split(' ').nth(4)).unwrap_or("/sys/fs/cgroup");
    Path::new(point).join(path)
}

pub(crate) fn parent_of(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
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
        (1, "family: is stopped: only a running instance can be paused\n")
    );
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

/// The processes that have a word in their command line. Whatever becomes of the test, they are ended:
/// all are halted first, since they fork faster than they are killed one by one.
struct Colony(String);

impl Drop for Colony {
    fn drop(&mut self) {
        let signal_all = |signal| {
            let found = named(&self.0);
            for pid in &found {
                let _ = kill(pid_of(*pid), signal);
            }
            found.len()
        };
        for _ in 0..1_000 {
            while signal_all(Signal::SIGSTOP) != signal_all(Signal::SIGSTOP) {}
            if signal_all(Signal::SIGKILL) == 0 {
                return;
            }
        }
    }
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
    let _ended = Colony(word.clone());
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

/// Whether a cgroup can be made below the one that this test is in.
pub(crate) fn a_cgroup_can_be_made() -> bool {
    let probe = cgroup_of(std::process::id()).join(format!("probe-{}", std::process::id()));
    std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe)).is_ok()
}
