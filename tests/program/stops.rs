//! How long a stop of the whole tree takes, and what it says meanwhile.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::Project;
use crate::machine::Machine;

/// A service that ignores SIGTERM, and writes a word when it is asked to stop.
fn deaf(name: &str, on: &str) -> String {
    format!(
        "[service.{name}]\nshell = \"trap 'echo {name} asked >> story' TERM; echo up; while :; do sleep 0.05; done\"\n\
         ready = {{ log = \"up\" }}\n{on}\n"
    )
}

fn chain() -> String {
    // A database behind two applications that ignore SIGTERM, and a quick service beside them.
    let db = "[service.db]\nshell = \"trap 'echo db asked >> story; sleep 0.3; echo db done >> story; exit 0' TERM; echo up; while :; do sleep 0.01; done\"\nready = { log = \"up\" }\n";
    format!(
        "{db}{}{}[service.quick]\ncommand = \"sleep 1000\"\ndepends_on = [\"db\"]\n",
        deaf("mid", "depends_on = [\"db\"]"),
        deaf("app", "depends_on = [\"mid\"]")
    )
}

fn story(project: &Project, at: &str) -> String {
    std::fs::read_to_string(project.file(at)).unwrap_or_default().replace('\n', ", ")
}

const STORY: &str = "app asked, mid asked, db asked, db done, ";

/// The stop of a whole project keeps to its time limit, and the last service is still asked and has
/// its time to stop.
#[test]
fn a_run_goes_down_within_its_time_and_everybody_is_asked() {
    let project = Project::new(&format!("[project]\nstop_timeout = \"3s\"\n{}", chain()));
    let mut run = project.run(&[]);
    run.line("all 4 are up");
    let since = Instant::now();
    run.interrupt();
    assert_eq!(run.code(), 130);
    let took = since.elapsed();
    assert!(took > Duration::from_millis(1_900) && took < Duration::from_secs(5), "{took:?}");
    assert_eq!(story(&project, "story"), STORY);
}

/// A daemon keeps to its time limit as well, stopped by a signal as a container runtime sends it,
/// where one of its projects has less time.
#[test]
fn a_daemon_stops_within_its_time_and_a_project_within_less() {
    let shop = format!("[project]\nstop_timeout = \"1500ms\"\n{}", chain());
    let other = deaf("alone", "stop = { timeout = \"1m\" }");
    let mut machine = Machine::new(&[("shop.toml", &shop), ("other.toml", &other)]);
    machine.project.write("daemon.toml", "manifests = \"services\"\nstop_timeout = \"3s\"\n");
    machine.start();
    assert_eq!(machine.regrow(&["wait", "app", "quick", "alone", "--timeout", "20s"]).code, 0);
    let mut run = machine.run.take().unwrap();
    let since = Instant::now();
    run.signal(Signal::SIGTERM);
    assert_eq!(run.code(), 0, "{}", run.text());
    let took = since.elapsed();
    assert!(took > Duration::from_millis(2_900) && took < Duration::from_secs(6), "{took:?}");
    let all = story(&machine.project, "services/story");
    assert_eq!(all.replace("alone asked, ", ""), STORY, "{all}");
    let stopping = run.text();
    assert!(!stopping.contains("stuck"), "{stopping}");
    machine
        .project
        .write("services/shop.toml", "[project]\nstop_timeout = \"0s\"\n[service.a]\ncommand = \"true\"\n");
    let faulty = machine.regrow(&["check", "services/shop.toml"]);
    assert!(faulty.code == 3 && faulty.stderr.contains("services/shop.toml:2:1"), "{}", faulty.stderr);
}

/// A stop of all running services keeps to the limit of the whole stop.
#[test]
fn a_stop_of_all_keeps_to_the_time_too() {
    let mut machine = Machine::new(&[("shop.toml", &deaf("deaf", "stop = { timeout = \"1m\" }"))]);
    machine.project.write("daemon.toml", "manifests = \"services\"\nstop_timeout = \"1s\"\n");
    machine.start();
    assert_eq!(machine.regrow(&["wait", "deaf", "--timeout", "20s"]).code, 0);
    let since = Instant::now();
    assert_eq!(machine.regrow(&["stop", "--all"]).code, 0);
    assert!(since.elapsed() < Duration::from_secs(10));
    machine.down();
}

/// `down` says what it still waits for, and for how long at most.
#[test]
fn down_says_that_it_waits_for_hooks() {
    let hook = "[service.web]\ncommand = \"sleep 1000\"\non = { stop = [\"sh\", \"-c\", \"sleep 1; echo hooked >> story\"], timeout = \"7s\" }\n";
    let mut machine = Machine::started(&[("shop.toml", hook)]);
    assert_eq!(machine.regrow(&["wait", "web", "--timeout", "20s"]).code, 0);
    let down = machine.regrow(&["down"]);
    assert_eq!(down.code, 0, "{}", down.stderr);
    let (first, last) = down.stdout.split_once('\n').unwrap();
    assert!(
        first.starts_with("every service is down; waiting for the stop hook of shop/web, 7")
            && first.ends_with("s at most"),
        "{first}"
    );
    assert!(last.starts_with("everything is down: stopped daemon"), "{last}");
    assert_eq!(story(&machine.project, "services/story"), "hooked, ");
    assert_eq!(machine.run.take().unwrap().code(), 0);
    // Within a time limit for the whole stop, hooks get what is left of it.
    machine.project.write("daemon.toml", "manifests = \"services\"\nstop_timeout = \"400ms\"\n");
    machine.start();
    assert_eq!(machine.regrow(&["wait", "web", "--timeout", "20s"]).code, 0);
    machine.down();
    assert_eq!(story(&machine.project, "services/story"), "hooked, ");
}
