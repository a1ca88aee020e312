//! `run --record` and `replay`: a replayed run decides as it did when it was recorded.

use super::harness::{Project, end};

/// A run with crashes, commands, a group and a stop that hangs.
fn recorded() -> Project {
    let project = Project::new(
        "[service.db]\nshell = \"echo up; exec sleep 1000\"\nready = { log = \"up\" }\nrestart = { backoff = { initial = \"10ms\" } }\n\
         [service.api]\ncommand = \"sleep 1000\"\ndepends_on = [\"db\"]\n\
         [service.deaf]\nshell = \"trap '' TERM; echo deaf; while :; do sleep 0.01; done\"\nstop = { timeout = \"200ms\" }\n\
         [service.web]\ncommand = \"sleep 1000\"\nreplicas = 2\ndepends_on = [\"api\"]\n\
         [service.gone]\ncommand = \"/no/such/program\"\n\
         [service.job]\nshell = \"exit 0\"\nkind = \"task\"\n\
         [group.g]\nmembers = [\"db\", \"deaf\"]\nstrategy = \"one-for-all\"\nintensity = 5\n",
    );
    let mut run = project.run(&["--record", "run.recording"]);
    run.line("api    * running");
    run.line("deaf   | deaf");
    end(project.pid("db"));
    run.next_line("api    * running");
    assert_eq!(project.regrow(&["restart", "api"]).code, 0);
    assert_eq!(project.regrow(&["stop", "db"]).code, 1);
    assert_eq!(project.regrow(&["pause", "api"]).code, 0);
    assert_eq!(project.regrow(&["resume", "api"]).code, 0);
    run.stop();
    project
}

#[test]
fn a_recorded_run_decides_the_same_again() {
    let project = recorded();
    let replay = project.regrow(&["replay", "run.recording"]);
    assert_eq!((replay.code, replay.stderr.as_str()), (0, ""), "{}", replay.stdout);
    for words in [
        "shop recorded by regrow ",
        "root <- group start boot",
        "api -> Spawn(Incarnation(2))",
        "api: paused",
        "db: crashed (SIGKILL), restart 1 in",
        "decided as recorded, all invariants hold",
    ] {
        assert!(replay.stdout.contains(words), "{words}\n{}", replay.stdout);
    }
    // The steps of one service only.
    let replay = project.regrow(&["replay", "run.recording", "api"]);
    assert!(replay.stdout.contains("api <- ") && !replay.stdout.contains("db <- "), "{}", replay.stdout);
    let verdict = project.json(&["replay", "run.recording", "--json"]);
    assert_eq!(verdict["faults"], serde_json::json!([]));
    assert_eq!(verdict["commands"], 4);
    assert_eq!(verdict["complete"], true);
    let nobody = project.regrow(&["replay", "run.recording", "nobody"]);
    assert_eq!(nobody.code, 1);
    assert!(nobody.stderr.contains("there is no service or group \"nobody\""), "{}", nobody.stderr);
    // A recording contains no environment.
    let text = std::fs::read_to_string(project.file("run.recording")).unwrap();
    assert!(!text.contains("REGROW_STATE_DIR"));
    // An existing recording is never overwritten.
    let again = project.regrow(&["run", "--record", "run.recording"]);
    assert_eq!(again.code, 1);
    assert!(
        again.stderr.contains("can't create the recording run.recording: File exists"),
        "{}",
        again.stderr
    );
}

#[test]
fn a_replay_tells_what_differs_and_why_it_can_not_be_read() {
    let project = recorded();
    let text = std::fs::read_to_string(project.file("run.recording")).unwrap();
    // One event that no machine decides on, and one that is missing.
    let forged = text.replacen("\"event\":\"paused\"", "\"event\":\"stuck\"", 1);
    project.write("forged", forged);
    let replay = project.regrow(&["replay", "forged"]);
    assert_eq!(replay.code, 1);
    assert!(
        replay.stdout.contains("decided now: api: paused; recorded: api: SIGKILL has not ended it"),
        "{}",
        replay.stdout
    );
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains("\"event\":\"paused\"")).collect();
    project.write("missing", lines.join("\n"));
    let replay = project.regrow(&["replay", "missing"]);
    assert_eq!(replay.code, 1);
    assert!(replay.stdout.contains("decided now, and not recorded: api: paused"), "{}", replay.stdout);
    // A recording cut off in the middle of a line, as by a kill, ends there.
    project.write("cut", &text[..text.len() * 2 / 3]);
    let cut = project.regrow(&["replay", "cut"]);
    assert_eq!(cut.code, 0, "{}", cut.stdout);
    assert!(cut.stdout.contains("the recording stops before the run's end"), "{}", cut.stdout);
    for (name, content, words) in [
        ("none", "hello\n".to_owned(), "this is not a recording of regrow"),
        ("empty", String::new(), "this is not a recording of regrow"),
        (
            "later",
            text.replacen("\"regrow_recording\":1", "\"regrow_recording\":7", 1),
            "this recording has format 7; this regrow reads up to 1",
        ),
        ("damaged", text.replacen("{\"step\"", "{\"stop\"", 1), "line 3: unknown variant `stop`"),
    ] {
        project.write(name, content);
        let replay = project.regrow(&["replay", name]);
        assert_eq!(replay.code, 1, "{name}");
        assert!(replay.stderr.contains(words), "{name}: {}", replay.stderr);
    }
}

/// The recording was written by the first version that wrote any; later versions still read it.
#[test]
fn a_recording_of_the_first_format_still_loads() {
    let project = Project::new("[service.s]\ncommand = \"true\"\n");
    project.write("first.recording", include_str!("format-1.recording"));
    let replay = project.regrow(&["replay", "first.recording"]);
    assert_eq!((replay.code, replay.stderr.as_str()), (0, ""), "{}", replay.stdout);
    assert!(
        replay.stdout.ends_with("4 commands: decided as recorded, all invariants hold\n"),
        "{}",
        replay.stdout
    );
}
