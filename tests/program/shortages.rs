//! Shortages and floods: the commands that would cure them are still answered, and no client locks
//! the others out.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::harness::{eventually, pid_of};
use crate::machine::Machine;

/// A cgroup (version 1) with a limit on the number of processes.
struct Pids(PathBuf);

impl Pids {
    fn of(most: u32) -> Option<Pids> {
        let root = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new);
        let root = root.into_iter().find(|root| root.join("cgroup.procs").exists())?;
        let folder = root.join(format!("regrow-test-{}", std::process::id()));
        std::fs::create_dir(&folder).ok()?;
        let pids = Pids(folder);
        std::fs::write(pids.0.join("pids.max"), most.to_string()).ok()?;
        Some(pids)
    }

    fn takes(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    fn count(&self) -> u32 {
        let text = std::fs::read_to_string(self.0.join("pids.current")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }
}

impl Drop for Pids {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn has_python() -> bool {
    std::process::Command::new("python3").arg("-c").arg("").status().is_ok_and(|status| status.success())
}

/// Where no more processes and threads can be made, every command is still taken and answered.
#[test]
fn at_a_limit_on_processes_everything_can_still_be_said() {
    const TEST: &str = "at_a_limit_on_processes_everything_can_still_be_said";
    if !has_python() {
        return crate::harness::skip(TEST, "there is no python3");
    }
    let Some(pids) = Pids::of(40) else {
        return eprintln!("SKIPPED {TEST}: no cgroup with a limit on processes can be made here");
    };
    let forker = "import os,time\nwhile True:\n    try:\n        if os.fork() == 0: time.sleep(10000)\n    except OSError: time.sleep(0.01)\n";
    let mut machine = Machine::new(&[(
        "a.toml",
        "[service.forks]\ncommand = \"python3 forker.py\"\ndir = \"..\"\nautostart = false\n\
         [service.web]\ncommand = \"sleep 1000\"\n[service.other]\ncommand = \"sleep 1000\"\nautostart = false\n",
    )]);
    machine.project.write("forker.py", forker);
    machine.start();
    let (daemon, keeper) = machine.pids();
    pids.takes(keeper);
    pids.takes(daemon);
    assert_eq!(machine.regrow(&["start", "forks"]).code, 0);
    eventually("no more can be made", || pids.count() >= 40);
    for (words, code) in [
        (&["pause", "web"][..], 0),
        (&["resume", "web"], 0),
        (&["reload"], 0),
        (&["logs", "web"], 0),
        (&["history", "web"], 0),
        (&["service", "config", "web", "env.A=1"], 3),
        (&["start", "other"], 1),
        (&["exec", "--", "true"], 126),
        (&["events"], 0),
        (&["stop", "forks"], 0),
        (&["start", "other"], 0),
        (&["exec", "--", "true"], 0),
    ] {
        let done = machine.regrow(words);
        // A manifest with several words is read and refused as ever.
        let fits = if words[0] == "service" { done.code <= 3 } else { done.code == code };
        assert!(fits, "{words:?}: {} {}{}", done.code, done.stdout, done.stderr);
    }
    assert_eq!(machine.pids().1, keeper);
    machine.down();
    eventually("they are gone", || pids.count() == 0);
}

/// Connections with no request or half a request lock no one out: neither the owner's connections
/// nor those of services, all of which know the socket.
#[test]
fn idle_connections_make_room() {
    if !has_python() {
        return crate::harness::skip("idle_connections_make_room", "there is no python3");
    }
    let machine = Machine::started(&[("a.toml", "[service.web]\ncommand = \"sleep 1000\"\n")]);
    let socket = machine.project.state_dir().join("daemon/control.sock");
    let mut idle: Vec<UnixStream> = Vec::new();
    for number in 0..120 {
        let mut stream = UnixStream::connect(&socket).unwrap();
        if number % 2 == 0 {
            stream.write_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n").unwrap();
        }
        idle.push(stream);
    }
    assert_eq!(machine.regrow(&["status"]).code, 0);
    assert_eq!(machine.regrow(&["restart", "web"]).code, 0);
    // A follower is not idle, however few events there are.
    let mut follow = machine.project.command(&["events", "-f"]);
    let mut follow = machine.project.start(&mut follow);
    follow.line("web: running #2");
    let more: Vec<UnixStream> = (0..120).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    assert_eq!(machine.regrow(&["stop", "web"]).code, 0);
    follow.line("web: goal down");
    drop((idle, more, follow));
    // Services may have only a few connections at a time, and take no place from other clients.
    machine.project.write(
        "greedy.py",
        "import os,socket,time\nc=[]\nfor i in range(200):\n    s=socket.socket(socket.AF_UNIX); s.connect(os.environ['REGROW_SOCKET']); c.append(s)\n\
         open('done','w').close()\ntime.sleep(1000)\n",
    );
    machine
        .project
        .write("services/g.toml", "[service.greedy]\ncommand = \"python3 greedy.py\"\ndir = \"..\"\n");
    assert_eq!(machine.regrow(&["reload"]).code, 0);
    eventually("it has connected often", || machine.project.file("done").exists());
    for _ in 0..5 {
        assert_eq!(machine.regrow(&["status"]).code, 0);
    }
}

/// A command to a daemon that is stopped gives up, with a message.
#[test]
fn a_command_to_a_daemon_that_stands_still_gives_up() {
    let machine = Machine::started(&[("a.toml", "[service.web]\ncommand = \"sleep 1000\"\n")]);
    let (daemon, _) = machine.pids();
    nix::sys::signal::kill(pid_of(daemon), Signal::SIGSTOP).unwrap();
    let stopped = machine.regrow(&["stop", "web"]);
    nix::sys::signal::kill(pid_of(daemon), Signal::SIGCONT).unwrap();
    assert_eq!(stopped.code, 1);
    assert!(stopped.stderr.contains("the supervisor does not answer"), "{}", stopped.stderr);
}

/// A service that is restarted faster than its hooks run has only a few of them running, and the
/// hooks that were left out are reported. Checks don't flood the machine.
#[test]
fn hooks_and_checks_are_bounded() {
    let word = format!("55{}5", std::process::id());
    let text = format!(
        "[service.storm]\ncommand = \"false\"\nrestart = {{ policy = \"always\", backoff = {{ initial = \"1ms\", max = \"1ms\" }} }}\n\
         on = {{ exit = \"sleep {word}\", timeout = \"3s\" }}\n"
    );
    let machine = Machine::started(&[("a.toml", &text)]);
    let mut most = 0;
    eventually("it was restarted often", || {
        most = most.max(crate::harness::named(&word).len());
        machine.project.status("storm")["restarts"].as_u64() > Some(200)
    });
    assert!((1..=4).contains(&most), "{most} hooks at once");
    assert!(machine.regrow(&["events"]).stdout.contains("was not run: 16 hooks of"), "it is told");
    assert_eq!(machine.regrow(&["stop", "storm"]).code, 0);
    machine.project.write(
        "services/b.toml",
        "[service.b]\ncommand = \"sleep 1000\"\nhealth = { exec = \"true\", interval = \"1ns\" }\n",
    );
    let faulty = machine.regrow(&["reload", "--strict"]);
    assert!(
        faulty.code == 3 && faulty.stderr.contains("\"interval\" must be at least 10ms"),
        "{}",
        faulty.stderr
    );
    std::fs::remove_file(machine.project.file("services/b.toml")).unwrap();
}

/// However long a line is, and however many clients ask for it, an answer is bounded and takes
/// memory only while it lasts. A client that finds too many others before it is told what to do.
#[test]
fn logs_are_bounded_and_their_memory_is_given_back() {
    let machine = Machine::started(&[(
        "a.toml",
        "[service.long]\nshell = \"head -c 30000000 /dev/zero | tr '\\\\0' x; echo; echo last; exec sleep 1000\"\n",
    )]);
    let project = &machine.project;
    eventually("all of it is there", || {
        project.regrow(&["logs", "-n", "1", "long"]).stdout == "long | last\n"
    });
    let memory = |what: &str| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", machine.pids().0)).unwrap();
        let line = status.lines().find(|line| line.starts_with(what)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    let before = memory("RssAnon");
    let one = project.regrow(&["logs", "long"]);
    assert_eq!(one.code, 0, "{}", one.stderr);
    assert!(one.stdout.len() > 10 << 20 && one.stdout.len() < 20 << 20, "{}", one.stdout.len());
    assert!(one.stdout.ends_with("long | last\n"));
    let file = machine.log("a/long.stdout.log");
    assert!(one.stderr.contains(&format!("they are in {}", file.display())), "{}", one.stderr);
    eventually("the memory is given back", || memory("RssAnon") < before + 8);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(|| project.regrow(&["logs", "long"]))).collect();
        for done in all.into_iter().map(|one| one.join().unwrap()) {
            let refused = done.stderr.contains("too many requests are reading log files")
                && done.stderr.contains("try again");
            assert!(
                done.stdout.len() > 10 << 20 || (done.code == 1 && refused),
                "{} {}",
                done.code,
                done.stderr
            );
        }
    });
    let peak = memory("VmHWM");
    assert!(peak < before + 200, "{peak} MiB");
    eventually("the memory is given back", || memory("RssAnon") < before + 8);
}
