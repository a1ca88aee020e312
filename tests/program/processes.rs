//! Faults of single processes: reused pids, exits, signals, descriptors, shortages.

use std::collections::HashMap;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::harness::{Project, end, eventually, installed, is_alive, named, own_nice, pid_of};
use crate::rules::{as_user, events};

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
        logs.contains(&format!(
            "number | uid 12345 gid {daemon} groups {daemon} mask 0022 nice {}",
            own_nice()
        )),
        "{logs}"
    );
    let failed = project.status("nobody-else");
    assert_eq!((&failed["exit"]["stage"], &failed["state"]), (&"user".into(), &"failed".into()), "{failed}");
    assert_eq!(failed["exit"]["message"], "there is no user \"no-such-user\" here");
    run.stop();
}
