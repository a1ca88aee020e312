//! Faults of the rules: storms, clocks, dependencies, checks, last words, and names from outside.

use std::path::Path;

use serde_json::Value;

use crate::harness::{Project, end, eventually, free_port, installed, named};

pub(crate) fn events(project: &Project, kind: &str) -> Vec<Value> {
    let all = project.json(&["events", "--json"]);
    let all = all["events"].as_array().unwrap().clone();
    all.into_iter().filter(|e| e["event"] == kind).collect()
}

/// `regrow run` of a project as another user, started through the command `by`.
pub(crate) fn as_user(project: &Project, user: u32, by: &[&str]) -> std::process::Command {
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
        "error: api depends on db and is running\n  = help: stop them too, or use --force\n"
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
    assert!(refused.stderr.contains("api depends on db, which is down by request"), "{}", refused.stderr);
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
    run.line("blind  * health check could not be run: no-such-check-program");
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
