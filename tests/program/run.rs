//! `run`: order, output, signals, exit codes.

use nix::sys::signal::Signal;

use super::harness::{Project, eventually, free_port};

#[test]
fn comes_up_in_order_and_goes_down_in_reverse() {
    let project = Project::new(
        r#"
[service.web]
shell = "echo web up; exec sleep 1000"
depends_on = { api = "ready", migrate = "completed" }
[service.api]
shell = "echo api up; exec sleep 1000"
depends_on = ["db"]
ready = { log = "api up" }
[service.db]
shell = "echo db up; exec sleep 1000"
ready = { log = "^db up$" }
[service.migrate]
shell = "echo migrating"
kind = "task"
depends_on = ["db"]
"#,
    );
    let mut run = project.run(&[]);
    run.line("all 4 are up");
    let text = run.stop();
    let at = |words: &str| text.find(words).unwrap_or_else(|| panic!("no {words:?} in\n{text}"));
    for (first, second) in [
        ("db      * ready", "api     * ready"),
        ("db      * ready", "migrate * completed"),
        ("api     * ready", "web     * running"),
        ("migrate * completed", "web     * running"),
        ("web     * stopped", "api     * stopped"),
        ("api     * stopped", "db      * stopped"),
    ] {
        assert!(at(first) < at(second), "{first:?} before {second:?}\n{text}");
    }
    assert!(text.contains("web     * waiting for api, migrate (completed)"), "{text}");
}

#[test]
fn ends_with_zero_if_all_completed_and_with_one_on_failure() {
    let project = Project::new(
        "[service.a]\nshell = \"echo one\"\nkind = \"task\"\n[service.b]\nshell = \"echo two\"\nkind = \"task\"\n",
    );
    let mut run = project.run(&[]);
    assert_eq!(run.code(), 0, "{}", run.text());
    project.write(
        "regrow.toml",
        "[service.bad]\nshell = \"echo last words; exit 3\"\nrestart = \"never\"\n[service.good]\nshell = \"true\"\n",
    );
    let output = project.regrow(&["run"]);
    assert_eq!(output.code, 1);
    assert!(output.stdout.contains("bad    * failed: exit code 3"), "{}", output.stdout);
    assert_eq!(output.stderr, "regrow: 1 service failed\n  bad: exit code 3\n    last words\n");
}

#[test]
fn one_that_can_not_start_does_not_keep_the_others_from_it() {
    let project = Project::new(
        r#"
[service.missing]
command = "no-such-program-at-all"
[service.plain]
command = "./plain.txt"
[service.homeless]
command = "true"
dir = "nowhere"
[service.orphan]
command = "./script"
[service.fine]
shell = "echo fine; exec sleep 1000"
"#,
    );
    project.write("plain.txt", "x");
    project.script("script", "#!/no/such/interpreter\n");
    let mut run = project.run(&[]);
    run.line("fine     | fine");
    for (name, words, stage, errno) in [
        ("missing", "there is no program \"no-such-program-at-all\" in PATH", "exec", 2),
        ("plain", "plain.txt is not executable", "exec", 13),
        ("homeless", "nowhere does not exist", "chdir", 2),
        ("orphan", "needs the interpreter /no/such/interpreter", "exec", 2),
    ] {
        run.line(words);
        let row = project.status(name);
        assert_eq!(row["state"], "failed", "{row}");
        assert_eq!(row["exit"]["reason"], "spawn", "{row}");
        assert_eq!(row["exit"]["stage"], stage, "{row}");
        assert_eq!(row["exit"]["errno"], errno, "{row}");
        assert_eq!(row["restarts"], 0, "no restart storm: {row}");
    }
    run.interrupt();
    assert_eq!(run.code(), 130);
    assert!(run.text().contains("regrow: 4 services failed"), "{}", run.text());
}

#[test]
fn stdout_and_stderr_are_told_apart_and_lines_stay_whole() {
    let project = Project::new(
        r#"
[service.talker]
shell = "printf 'half '; sleep 0.1; echo line; echo oops >&2; printf tail; printf bad >&2"
kind = "task"
"#,
    );
    let mut run = project.run(&[]);
    assert_eq!(run.code(), 0);
    let text = run.text();
    for line in ["talker | half line", "talker ! oops", "talker | tail", "talker ! bad"] {
        assert!(text.lines().any(|l| l == line), "{line:?} in\n{text}");
    }
}

#[test]
fn the_second_interrupt_kills() {
    let project =
        Project::new("[service.deaf]\nshell = \"trap '' TERM; echo up; while :; do sleep 1000; done\"\n");
    let mut run = project.run(&[]);
    run.line("deaf   | up");
    run.interrupt();
    run.line("press it again to kill");
    // The waiting service is named in time, with the time that it has left.
    let waiting = run.line("still stopping: deaf (SIGKILL in");
    assert!(waiting.contains(" s)"), "{waiting}");
    run.interrupt();
    assert_eq!(run.code(), 130);
    assert!(run.text().contains("deaf   * SIGKILL after"), "{}", run.text());
}

#[test]
fn term_and_hup_stop_in_order_and_are_told_by_the_exit_code() {
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let project = Project::new("[service.a]\nshell = \"echo up; exec sleep 1000\"\n");
        let mut run = project.run(&[]);
        run.line("| up");
        run.signal(signal);
        assert_eq!(run.code(), code, "{}", run.text());
        assert!(run.text().contains("a      * stopped"), "{}", run.text());
    }
}

#[test]
fn exit_on_end_takes_everything_down_and_passes_the_code() {
    let project = Project::new(
        "[service.server]\ncommand = \"sleep 1000\"\n[service.tests]\nshell = \"exit 7\"\ndepends_on = [\"server\"]\n",
    );
    let mut run = project.run(&["--exit-on-end", "tests"]);
    assert_eq!(run.code(), 7, "{}", run.text());
    assert!(run.text().contains("server * stopped"), "{}", run.text());
    assert_eq!(project.regrow(&["run", "--exit-on-end", "nobody"]).code, 2);
}

#[test]
fn what_is_late_to_be_ready_is_named_and_ends_a_run_with_five() {
    let project = Project::new(&format!(
        "[service.slow]\ncommand = \"sleep 1000\"\nready = {{ tcp = \"127.0.0.1:{}\" }}\n",
        free_port()
    ));
    let mut run = project.run(&["--timeout", "500ms"]);
    assert_eq!(run.code(), 5, "{}", run.text());
    assert!(
        run.text().contains("not ready within 500 ms: slow: it runs and is not ready yet"),
        "{}",
        run.text()
    );
}

#[test]
fn only_profiles_and_no_deps_choose_what_starts() {
    let project = Project::new(
        r#"
[service.db]
shell = "echo db; exec sleep 1000"
[service.api]
shell = "echo api; exec sleep 1000"
depends_on = ["db"]
[service.lone]
shell = "echo lone; exec sleep 1000"
[service.debug]
shell = "echo debug; exec sleep 1000"
profiles = ["dev"]
"#,
    );
    let started = |args: &[&str]| {
        let mut run = project.run(args);
        run.line("regrow 0");
        let rows = loop {
            let rows = project.json(&["status", "--json"])["services"].as_array().unwrap().clone();
            if rows.iter().all(|r| r["state"] == "registered" || r["ready"] == true) {
                break rows;
            }
        };
        run.stop();
        let up = rows.iter().filter(|r| r["state"] == "running").map(|r| r["name"].as_str().unwrap());
        up.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(started(&[]), "db api lone");
    assert_eq!(started(&["--only", "api"]), "db api");
    assert_eq!(started(&["--only", "api", "--no-deps"]), "api");
    assert_eq!(started(&["--profile", "dev"]), "db api lone debug");
    assert_eq!(project.regrow(&["run", "--only", "apy"]).code, 2);
}

#[test]
fn a_second_run_of_the_same_manifest_is_refused() {
    let project = Project::new("[service.a]\ncommand = \"sleep 1000\"\n");
    let mut run = project.run(&[]);
    run.line("a      * running");
    let second = project.regrow(&["run"]);
    assert_eq!(second.code, 1);
    let daemon = project.json(&["status", "--json"])["daemon"]["pid"].clone();
    assert!(second.stderr.contains(&format!("running already (pid {daemon})")), "{}", second.stderr);
    run.stop();
}

#[test]
fn a_reader_that_goes_away_ends_the_run_in_order() {
    let project = Project::new("[service.a]\nshell = \"while :; do echo x; sleep 0.01; done\"\n");
    let mut command = std::process::Command::new("sh");
    let script = format!("({} run; echo code $? >&2) | head -n 5", env!("CARGO_BIN_EXE_regrow"));
    command.args(["-c", &script]).current_dir(project.dir()).env("REGROW_STATE_DIR", project.state_dir());
    let mut pipe = project.start(&mut command);
    pipe.line("code 141");
    pipe.code();
    project.assert_nothing_left();
}

#[test]
fn after_down_a_failed_service_still_makes_the_code_one() {
    let project = Project::new(
        "[service.ok]\ncommand = \"sleep 1000\"\n[service.bad]\nshell = \"echo boom; exit 3\"\nrestart = \"never\"\n",
    );
    let mut run = project.run(&[]);
    run.line("bad    * failed: exit code 3");
    let down = project.regrow(&["down"]);
    assert_eq!((down.code, down.stderr.as_str()), (0, ""));
    assert!(down.stdout.starts_with("everything is down: stopped shop (pid "), "{}", down.stdout);
    assert_eq!(run.code(), 1);
    // The two streams are read side by side; each is in order by itself.
    for line in ["  bad: exit code 3", "    boom"] {
        assert!(run.text().lines().any(|l| l == line), "{line:?} in\n{}", run.text());
    }
}

#[test]
fn exit_on_end_outlives_a_restart_by_hand() {
    let project = Project::new("[service.web]\nshell = \"echo up; exec sleep 1000\"\n");
    let mut run = project.run(&["--exit-on-end", "web"]);
    run.line("web    | up");
    assert_eq!(project.regrow(&["restart", "web"]).code, 0);
    run.next_line("web    | up");
    super::harness::end(project.pid("web"));
    assert_eq!(run.code(), 137, "{}", run.text());
}

/// Hooks get the event in their environment and have a time limit; the end of the run waits for
/// them.
#[test]
fn hooks_are_run_with_the_event_and_never_hold_anything_up() {
    let project = Project::new(
        "[service.web]\nshell = \"echo up; sleep 0.05; if mkdir once; then exit 3; fi; exec sleep 1000\"\nready = { log = \"up\" }\nrestart = { backoff = { initial = \"10ms\" } }\non = { ready = \"./hook\", retry = \"./hook\", exit = \"./hook\", stop = [\"./slow\"], fail = \"./hook\", timeout = \"2s\" }\n\
         [service.never]\nshell = \"kill -9 $$\"\nrestart = \"never\"\non = { fail = \"./hook\", exit = \"/no/such/hook\" }\n\
         [service.hangs]\ncommand = \"sleep 1000\"\non = { ready = \"sleep 777\", timeout = \"100ms\" }\n",
    );
    project.script(
        "hook",
        "#!/bin/sh\necho \"$REGROW_INSTANCE $REGROW_EVENT $REGROW_EXIT_CODE$REGROW_EXIT_SIGNAL $REGROW_ATTEMPT\" >> story\necho said by a hook\n",
    );
    project.script(
        "slow",
        "#!/bin/sh\nsleep 0.3; echo \"$REGROW_INSTANCE $REGROW_EVENT, and the end has waited\" >> story\n",
    );
    let mut run = project.run(&[]);
    run.line("web    | said by a hook");
    run.line("never  * its exit hook failed: /no/such/hook: ");
    run.line("hangs  * its ready hook failed: sleep 777 did not end within 100ms");
    let story = || std::fs::read_to_string(project.file("story")).unwrap_or_default();
    eventually("all of the story", || {
        story().lines().filter(|line| line.starts_with("web ready")).count() == 2
    });
    eventually("the end of the other", || story().contains("never fail SIGKILL"));
    let story_so_far = story();
    for line in ["web exit 3 ", "web retry 3 1"] {
        assert!(story_so_far.lines().any(|l| l == line), "{line:?} in\n{story_so_far}");
    }
    run.stop();
    let story = story();
    assert!(
        story.contains("web exit SIGTERM") && story.contains("web stop, and the end has waited"),
        "{story}"
    );
}

#[test]
fn a_hook_may_take_all_down_and_a_second_interrupt_ends_hooks() {
    let regrow = env!("CARGO_BIN_EXE_regrow");
    let project = Project::new(&format!(
        "[service.a]\nshell = \"echo up; sleep 0.1; exit 1\"\nrestart = \"never\"\non = {{ fail = \"{regrow} down\" }}\n[service.b]\ncommand = \"sleep 1000\"\n"
    ));
    let mut run = project.run(&[]);
    assert_eq!(run.code(), 1, "{}", run.text());
    assert!(!run.text().contains("hook failed"), "{}", run.text());
    let project = Project::new(
        "[service.b]\nshell = \"echo up; exec sleep 1000\"\non = { exit = \"sleep 999\", timeout = \"10m\" }\n",
    );
    let mut run = project.run(&[]);
    run.line("b      | up");
    run.interrupt();
    run.line("still stopping: the exit hook of b");
    run.interrupt();
    assert_eq!(run.code(), 130, "{}", run.text());
}
