//! What regrow tells about itself: how much, in what form, and where.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::{Project, end, eventually, installed};

const ONE: &str = "[service.web]\ncommand = \"sleep 1000\"\n";

/// The diagnostics of the only run in a state folder.
fn of_the_run(project: &Project) -> PathBuf {
    let runs = project.state_dir().join("run");
    let run = std::fs::read_dir(runs).unwrap().next().unwrap().unwrap();
    run.path().join("diagnostics.log")
}

#[test]
fn a_run_keeps_its_diagnostics_in_its_state_folder() {
    let project = Project::new(ONE);
    let mut run = project.run(&["--log-level", "info"]);
    run.line("running after");
    let path = of_the_run(&project);
    eventually("the start is told", || {
        std::fs::read_to_string(&path)
            .is_ok_and(|text| text.contains("start{instance=web incarnation=1 pid="))
    });
    assert_eq!(project.regrow(&["stop", "web"]).code, 0);
    eventually("the stop and the request are told", || {
        let text = std::fs::read_to_string(&path).unwrap();
        text.contains("stop{instance=web incarnation=1") && text.contains("request{method=POST")
    });
    let shown = run.stop();
    assert!(!shown.contains("INFO"), "{shown}");
}

#[test]
fn without_a_word_to_say_a_run_makes_no_file() {
    let project = Project::new(ONE);
    let mut run = project.run(&[]);
    run.line("running after");
    assert!(!of_the_run(&project).exists());
    run.stop();
}

#[test]
fn diagnostics_are_json_where_that_is_asked_for() {
    let project = Project::new(ONE);
    let mut run = project.run(&["--log-level", "info", "--log-format", "json", "--log-file", "own.log"]);
    run.line("running after");
    let path = project.file("own.log");
    eventually("the start is told", || {
        std::fs::read_to_string(&path).is_ok_and(|text| text.contains("start"))
    });
    run.stop();
    for line in std::fs::read_to_string(&path).unwrap().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["level"], "INFO", "{line}");
        assert_eq!(line["span"]["instance"], "web", "{line}");
    }
}

#[test]
fn a_bad_log_file_is_told_and_the_run_goes_on() {
    let project = Project::new(ONE);
    let mut run = project.run(&["--log-file", "no/such/folder/own.log"]);
    run.line("nothing is written about regrow itself: no/such/folder/own.log can't be used");
    run.line("running after");
    run.stop();
}

#[test]
fn a_level_that_is_none_is_refused_with_the_nearest() {
    let project = Project::new(ONE);
    let refused = project.regrow(&["run", "--log-level", "wran"]);
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("did you mean \"warn\"?"), "{}", refused.stderr);
}

#[test]
fn a_daemon_on_a_terminal_speaks_first_itself() {
    const TEST: &str = "a_daemon_on_a_terminal_speaks_first_itself";
    if !installed(TEST, Path::new("/usr/bin/script")) {
        return;
    }
    let project = Project::new("");
    std::fs::create_dir_all(project.file("services")).unwrap();
    project.write("services/web.toml", ONE);
    project.write("daemon.toml", "manifests = \"services\"\n");
    let program = format!("{} daemon --config daemon.toml", env!("CARGO_BIN_EXE_regrow"));
    let mut terminal = Command::new("/usr/bin/script")
        .args(["-qfc", &program, "typescript"])
        .current_dir(project.dir())
        .env("REGROW_STATE_DIR", project.state_dir())
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let said = || std::fs::read_to_string(project.file("typescript")).unwrap_or_default();
    eventually("the daemon is up", || said().contains("1 service from 1 manifest"));
    let first =
        said().lines().find(|line| !line.starts_with("Script started")).unwrap_or_default().to_owned();
    assert!(first.contains("regrow "), "{}", said());
    assert_eq!(project.regrow(&["down", "--daemon"]).code, 0);
    eventually("the terminal is free", || terminal.try_wait().unwrap().is_some());
    if terminal.try_wait().unwrap().is_none() {
        end(terminal.id());
    }
}
