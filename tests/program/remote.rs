//! The verbs that talk to a running tree, and the socket as any HTTP client sees it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::Value;

use super::harness::{Project, end, is_alive};

fn shop() -> Project {
    Project::new(
        r#"
[project]
name = "shop"
[service.db]
shell = "echo db up; echo db warns >&2; exec sleep 1000"
ready = { log = "db up" }
tags = ["data"]
[service.api]
shell = "echo api up; exec sleep 1000"
depends_on = ["db"]
[service.idle]
command = "sleep 1000"
autostart = false
[group.web]
members = ["api"]
"#,
    )
}

#[test]
fn without_a_running_tree_every_verb_says_so() {
    let project = shop();
    for verb in [
        &["status"][..],
        &["start", "db"],
        &["stop", "db"],
        &["restart", "db"],
        &["logs"],
        &["why", "db"],
        &["events"],
        &["wait", "db"],
        &["down"],
    ] {
        let output = project.regrow(verb);
        assert_eq!(output.code, 4, "{verb:?}: {}", output.stderr);
        assert!(
            output.stderr.contains("regrow.toml is not running (start it with \"regrow run\")"),
            "{}",
            output.stderr
        );
    }
}

#[test]
fn status_as_object_and_as_table() {
    let project = shop();
    let mut run = project.run(&[]);
    run.line("all 2 are up");
    let report = project.json(&["status", "--json"]);
    let daemon = &report["daemon"];
    assert_eq!(daemon["project"], "shop");
    assert_eq!(daemon["version"], env!("CARGO_PKG_VERSION"));
    assert!(daemon["uptime_s"].is_f64() && daemon["pid"].is_u64());
    let api = project.status("api");
    for key in [
        "name",
        "service",
        "group",
        "state",
        "ready",
        "health",
        "goal",
        "pid",
        "incarnation",
        "restarts",
        "uptime_s",
        "since",
        "exit",
        "failed",
        "waiting_for",
        "retry_in_s",
        "cpu_percent",
        "memory_bytes",
        "processes",
    ] {
        assert!(api.get(key).is_some(), "{key} in {api}");
    }
    assert_eq!((&api["group"], &api["goal"], &api["ready"]), (&"web".into(), &"up".into(), &true.into()));
    assert_eq!(project.status("idle")["state"], "registered");
    let table = project.regrow(&["status", "db", "api"]).stdout;
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("shop: pid "), "{table}");
    assert!(lines[2].starts_with("NAME  GROUP  STATE    READY  HEALTH   "), "{table}");
    assert!(lines[3].starts_with("db           running  yes    unknown  "), "{table}");
    assert!(lines[4].starts_with("api   web    running  yes    unknown  "), "{table}");
    run.stop();
}

#[test]
fn commands_return_when_it_is_done_or_say_why_not() {
    let project = shop();
    let mut run = project.run(&[]);
    run.line("all 2 are up");
    let ok = |args: &[&str], want: &str| {
        let output = project.regrow(args);
        assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (0, want, ""), "{args:?}");
    };
    let done = |args: &[&str], starts: &str| {
        let output = project.regrow(args);
        assert_eq!(output.code, 0, "{args:?}: {}", output.stderr);
        assert!(output.stdout.starts_with(starts), "{args:?}: {}", output.stdout);
    };
    ok(&["start", "db"], "db: already ready\n");
    let before = project.pid("db");
    done(&["restart", "db"], "db: ready after ");
    assert_ne!(project.pid("db"), before);
    ok(&["stop", "--group", "web"], "api: stopped\n");
    ok(&["stop", "--tag", "data"], "db: stopped\n");
    ok(&["stop", "db"], "db: already stopped\n");
    done(&["start", "api"], "db: ready after ");
    assert_eq!(project.status("db")["state"], "running", "a start brings what it needs");
    let order: Vec<(u32, u32)> = vec![(project.pid("db"), project.pid("api"))];
    done(&["restart", "--all"], "db: ready after ");
    assert_ne!(order, [(project.pid("db"), project.pid("api"))]);
    ok(&["stop", "--all"], "db: stopped\napi: stopped\nidle: stopped\n");
    run.line("nothing is running");
    let unknown = project.regrow(&["stop", "dbb"]);
    assert_eq!(unknown.code, 1);
    assert_eq!(unknown.stderr, "error: there is no service \"dbb\"\n  = help: did you mean \"db\"?\n");
    let denied: Value = serde_json::from_str(&project.regrow(&["stop", "dbb", "--json"]).stdout).unwrap();
    assert_eq!(denied["error"]["code"], "not_found");
    assert_eq!(project.regrow(&["stop"]).code, 2);
    let down = project.regrow(&["down"]).stdout;
    assert!(down.starts_with("everything is down: stopped shop (pid "), "{down}");
    assert_eq!(run.code(), 0);
}

#[test]
fn a_start_that_fails_says_why() {
    let project = Project::new(
        "[service.bad]\nshell = \"exit 5\"\nautostart = false\nrestart = \"never\"\n[service.back]\nshell = \"exit 6\"\nautostart = false\n[service.a]\ncommand = \"sleep 1000\"\n",
    );
    let mut run = project.run(&[]);
    run.line("a      * running");
    let bad = project.regrow(&["start", "bad"]);
    // Running counts as ready where no check is declared; a quick exit may come before or after that.
    if bad.code == 1 {
        assert_eq!(bad.stderr, "bad: failed: exit code 5\n");
    }
    assert_eq!(project.regrow(&["wait", "bad", "--for", "stopped", "--timeout", "20s"]).code, 0);
    assert_eq!(project.status("bad")["state"], "failed");
    run.stop();
}

#[test]
fn logs_by_service_by_number_by_pattern_and_following() {
    let project = Project::new(
        "[service.a]\nshell = \"for i in 1 2 3 4 5; do echo line $i; done; echo bad >&2; exec sleep 1000\"\n[service.b]\nshell = \"echo other; exec sleep 1000\"\n",
    );
    let mut run = project.run(&[]);
    run.line("a      ! bad");
    run.line("b      | other");
    assert_eq!(project.regrow(&["logs", "a", "-n", "2"]).stdout.lines().count(), 2);
    assert_eq!(project.regrow(&["logs", "b"]).stdout, "b | other\n");
    assert_eq!(project.regrow(&["logs", "--grep", "line [24]"]).stdout, "a | line 2\na | line 4\n");
    let json = project.json(&["logs", "a", "--json"]);
    let streams: Vec<&str> =
        json["lines"].as_array().unwrap().iter().map(|l| l["stream"].as_str().unwrap()).collect();
    assert_eq!(streams.iter().filter(|s| **s == "stderr").count(), 1);
    assert_eq!(streams.len(), 6);
    let mut follow = project.start(&mut project.command(&["logs", "-f", "a", "--grep", "line 5"]));
    follow.line("a | line 5");
    assert_eq!(project.regrow(&["restart", "a"]).code, 0);
    follow.next_line("a | line 5");
    run.stop();
    assert_eq!(follow.code(), 0, "the end of the tree is the end of the story");
}

#[test]
fn events_are_numbered_without_gaps_and_followed() {
    let project = shop();
    let mut run = project.run(&[]);
    run.line("all 2 are up");
    let found = project.json(&["events", "--json"]);
    let numbers: Vec<u64> =
        found["events"].as_array().unwrap().iter().map(|e| e["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    let last = numbers.len().to_string();
    let mut follow = project.start(&mut project.command(&["events", "-f", "--json", "--since", &last]));
    end(project.pid("api"));
    let crashed: Value = serde_json::from_str(&follow.line("\"crashed\"")).unwrap();
    assert_eq!((&crashed["instance"], &crashed["exit"]["name"]), (&"api".into(), &"SIGKILL".into()));
    let only_db = project.json(&["events", "db", "--json"]);
    assert!(only_db["events"].as_array().unwrap().iter().all(|e| e["instance"] == "db"));
    run.stop();
    follow.code();
}

#[test]
fn wait_for_what_comes_true_and_for_what_does_not() {
    let project = Project::new(
        "[service.slow]\nshell = \"sleep 0.3; echo now; exec sleep 1000\"\nready = { log = \"now\" }\n[service.never]\ncommand = \"sleep 1000\"\nready = { log = \"never\" }\n[service.bad]\nshell = \"exit 1\"\nrestart = \"never\"\n",
    );
    let mut run = project.run(&[]);
    run.line("bad    * failed");
    assert_eq!(project.regrow(&["wait", "slow", "--timeout", "20s"]).code, 0);
    assert_eq!(project.regrow(&["wait", "never", "--timeout", "100ms"]).code, 5);
    assert_eq!(project.regrow(&["wait", "bad", "--timeout", "20s"]).code, 1);
    assert_eq!(project.regrow(&["wait", "bad", "--for", "stopped"]).code, 0);
    let waited = project.json(&["wait", "never", "--timeout", "10ms", "--json"]);
    assert_eq!((&waited["ok"], &waited["timed_out"]), (&false.into(), &true.into()));
    run.stop();
}

#[test]
fn why_leads_from_the_waiting_one_to_the_cause() {
    let project = Project::new(
        "[service.db]\nshell = \"echo can not bind; exit 1\"\nrestart = { backoff = { initial = \"1m\", max = \"1m\" } }\nready = { log = \"listening\" }\n[service.api]\ncommand = \"sleep 1000\"\ndepends_on = [\"db\"]\n",
    );
    let mut run = project.run(&[]);
    run.line("db     * exit code 1; comes back in");
    let why = project.regrow(&["why", "api"]).stdout;
    let lines: Vec<&str> = why.lines().collect();
    assert_eq!(lines[0], "api is waiting: it waits for db to be ready");
    assert!(
        lines[1].starts_with("└─ db is crashed: exit code 1; comes back in ")
            || lines[1].starts_with("└─ db is crashed: exit code 1; it comes back in "),
        "{why}"
    );
    assert_eq!(lines[2..], ["last lines of db:", "  can not bind"]);
    let json = project.json(&["why", "api", "--json"]);
    assert_eq!(json["services"][0]["chain"][1]["state"], "crashed");
    run.stop();
}

/// OTP's which_children and count_children.
#[test]
fn status_as_a_tree() {
    let project = Project::new(
        "[service.web]\ncommand = \"sleep 1000\"\nreplicas = 2\n[service.db]\ncommand = \"sleep 1000\"\n[service.later]\ncommand = \"sleep 1000\"\nautostart = false\n\
         [group.inner]\nmembers = [\"db\"]\n[group.outer]\nmembers = [\"inner\", \"web\"]\nstrategy = \"rest-for-one\"\n",
    );
    let mut run = project.run(&[]);
    run.line("all 3 are up");
    let tree = project.regrow(&["status", "--tree"]).stdout;
    let pid = |name: &str| project.pid(name);
    assert_eq!(
        tree,
        format!(
            "root (one-for-one): 1 of 2 active, 1 group, 1 instance\n\
             ├─ later: registered\n\
             └─ group outer (rest-for-one): 3 of 3 active, 1 group, 2 instances\n   \
             ├─ group inner (one-for-one): 1 of 1 active, 1 instance\n   \
             │  └─ db: running, ready, pid {}\n   \
             ├─ web.1: running, ready, pid {}\n   \
             └─ web.2: running, ready, pid {}\n",
            pid("db"),
            pid("web.1"),
            pid("web.2")
        )
    );
    let json = project.json(&["status", "--tree", "--json"]);
    assert_eq!(json["count"], serde_json::json!({"specs": 2, "active": 1, "supervisors": 1, "workers": 1}));
    assert_eq!(json["children"][1]["children"][0]["children"][0]["name"], "db");
    run.stop();
}

/// The last failure of a check replaces its first one.
#[test]
fn why_gives_the_last_failing_check() {
    let project = Project::new(
        "[service.slow]\ncommand = \"sleep 1000\"\nready = { exec = \"./check\", interval = \"20ms\" }\n",
    );
    project.script(
        "check",
        "#!/bin/sh\nif mkdir flag 2>/dev/null; then echo first trouble; else echo second trouble; fi\nexit 1\n",
    );
    let mut run = project.run(&[]);
    run.line("second trouble");
    let why = project.regrow(&["why", "slow"]).stdout;
    assert!(why.contains("second trouble") && !why.contains("first trouble"), "{why}");
    run.stop();
}

/// If the answer can't be written, the command fails.
#[test]
fn output_that_can_not_be_written_is_a_failure() {
    let project = Project::new("[service.one]\ncommand = \"sleep 1000\"\n");
    let mut run = project.run(&[]);
    run.line("one    * running");
    for verb in [&["status", "--json"][..], &["events"], &["check"], &["plan"], &["--version"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = project.command(verb).stdout(full).output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{verb:?}: {words}");
        assert!(words.contains("can't write the output: No space left on device"), "{verb:?}: {words}");
    }
    run.stop();
}

/// Sends these bytes to the socket, and returns the status and the body of the answer. The protocol
/// is plain HTTP/1.1: this client is forty lines of std.
fn ask(project: &Project, request: &str) -> (u16, String) {
    let place = std::fs::read_dir(project.state_dir().join("run")).unwrap().next().unwrap().unwrap().path();
    let mut stream = UnixStream::connect(place.join("control.sock")).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status: u16 = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn post(project: &Project, path: &str, body: &str) -> (u16, String) {
    let length = body.len();
    let head = "host: x\r\nconnection: close\r\ncontent-type: application/json";
    ask(project, &format!("POST {path} HTTP/1.1\r\n{head}\r\ncontent-length: {length}\r\n\r\n{body}"))
}

#[test]
fn any_http_client_will_do() {
    let project = shop();
    let mut run = project.run(&[]);
    run.line("all 2 are up");
    let get =
        |path: &str| ask(&project, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"));
    let post = |path: &str, body: &str| post(&project, path, body);
    let (status, body) = get("/v1/status?service=db");
    let report: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, report["services"].as_array().unwrap().len()), (200, 1));
    let (status, body) = post("/v1/command", r#"{"verb":"restart","services":["api"]}"#);
    assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()["ok"].clone()), (200, true.into()));
    for (answer, want) in [
        (get("/v1/status?service=nope"), 404),
        (get("/v1/status?srevice=db"), 400),
        (get("/v2/status"), 404),
        (post("/v1/command", "{"), 400),
        (post("/v1/command", r#"{"verb":"explode"}"#), 400),
        (post("/v1/command", r#"{"verb":"stop","services":["db"]}"#), 409),
        (post("/v1/wait", r#"{"services":["db"],"for":"ready","timeout_s":-1}"#), 400),
    ] {
        let error: Value = serde_json::from_str(&answer.1).unwrap_or_default();
        assert_eq!(answer.0, want, "{}", answer.1);
        assert!(error["error"]["reason"].is_string(), "{}", answer.1);
    }
    run.stop();
}

#[test]
fn a_service_reaches_its_own_supervisor() {
    let project = Project::new(&format!(
        "[service.asker]\nshell = \"cd / && {} status --json\"\nkind = \"task\"\n",
        env!("CARGO_BIN_EXE_regrow")
    ));
    let mut run = project.run(&[]);
    assert_eq!(run.code(), 0, "{}", run.text());
    assert!(run.text().contains("\"name\":\"asker\""), "{}", run.text());
}

#[test]
fn a_wait_that_the_end_overtakes_is_answered() {
    let project =
        Project::new("[service.a]\nshell = \"trap 'sleep 0.3; exit 0' TERM; echo up; sleep 1000 & wait\"\n");
    let mut run = project.run(&[]);
    run.line("a      | up");
    let mut wait = project.start(&mut project.command(&["wait", "a", "--for", "completed", "--json"]));
    assert_eq!(project.regrow(&["down"]).code, 0);
    let code = wait.code();
    // The command may also have come after the end.
    assert!([1, 4].contains(&code), "{code}: {}", wait.text());
    assert!(!wait.text().contains("can't be read"), "{}", wait.text());
    run.code();
}

/// The report of a faulty manifest is compared as a whole: line, column, caret and hint.
#[test]
fn services_and_groups_are_added_and_removed_while_it_runs() {
    let project = Project::new(
        "[project]\nenv_file = [\"shared.env\"]\n[service.db]\nshell = \"echo up; exec sleep 1000\"\nready = { log = \"up\" }\n[service.api]\ncommand = \"sleep 1000\"\ndepends_on = [\"db\"]\n",
    );
    project.write("shared.env", "SHARED=of-all\n");
    let mut run = project.run(&[]);
    run.line("all 2 are up");
    let write = |file: &str, text: &str| std::fs::write(project.file(file), text).unwrap();
    std::fs::create_dir(project.file("more")).unwrap();
    write("more/.env", "WORD=hello\n");
    write(
        "more/more.toml",
        "[service.worker]\nshell = \"echo $WORD from $PWD; exec sleep 1000\"\nenv_file = [\".env\"]\ndepends_on = [\"db\"]\n[service.later]\ncommand = \"sleep 1000\"\nautostart = false\n[group.jobs]\nmembers = [\"worker\", \"later\"]\nstrategy = \"one-for-all\"\n",
    );
    let added = project.regrow(&["add", "more/more.toml"]);
    assert_eq!(added.code, 0, "{}", added.stderr);
    let lines: Vec<&str> = added.stdout.lines().collect();
    assert!(lines[0].starts_with("worker: ready after ") && lines[1] == "later: added", "{lines:?}");
    run.line("added: jobs");
    run.line(&format!("worker | hello from {}", project.file("more").canonicalize().unwrap().display()));
    let tree = project.json(&["status", "--tree", "--json"]);
    assert_eq!(tree["count"]["supervisors"], 1);
    assert_eq!(tree["children"][2]["strategy"], "one-for-all");

    write(
        "faulty.toml",
        "[service.db]\ncommand = \"true\"\n[service.x]\ncommand = \"true\"\ndepends_on = [\"apo\"]\n",
    );
    let faulty = project.regrow(&["add", "faulty.toml"]);
    assert_eq!(
        (faulty.code, faulty.stdout.as_str(), faulty.stderr.as_str()),
        (
            3,
            "",
            "error: \"db\" already exists in the running tree
 --> faulty.toml:1:10
  |
1 | [service.db]
  |          ^^ name already taken
  |
  = help: choose another name, or remove it first: \"regrow remove db\"

error: service \"x\" depends on \"apo\", which is not declared
 --> faulty.toml:5:15
  |
5 | depends_on = [\"apo\"]
  |               ^^^^^ no such service
  |
  = help: did you mean \"api\"?

error: faulty.toml has 2 faults; nothing was started
"
        )
    );
    let object = project.regrow(&["add", "faulty.toml", "--json"]);
    let object: Value = serde_json::from_str(&object.stdout).unwrap();
    assert_eq!(object["error"]["code"], "faulty");
    assert_eq!((&object["faults"][1]["line"], &object["faults"][1]["column"]), (&5.into(), &15.into()));

    let needed = project.regrow(&["remove", "db"]);
    assert_eq!(
        (needed.code, needed.stderr.as_str()),
        (1, "error: api depends on db\n  = help: remove api too, or remove it first\n")
    );
    let pid = project.pid("worker");
    let removed = project.regrow(&["remove", "--group", "jobs"]);
    assert_eq!(
        (removed.code, removed.stdout.as_str()),
        (0, "worker: removed\nlater: removed\njobs: removed\n")
    );
    assert!(!is_alive(pid));
    run.line("removed: worker, later, jobs");
    assert_eq!(project.regrow(&["remove", "worker"]).stderr, "error: there is no service \"worker\"\n");
    // Either all or some can be selected, not both.
    assert_eq!(project.regrow(&["remove", "--all", "db"]).code, 2);
    // A wait for a service that is removed ends with an answer.
    write("never.toml", "[service.never]\ncommand = \"sleep 1000\"\nready = { log = \"never\" }\n");
    let wait = || {
        assert_eq!(project.regrow(&["add", "never.toml", "--timeout", "50ms"]).code, 5);
        let waits = |what: &str| {
            let mut command = project.command(&["wait", "never", "--for", what, "--timeout", "20s"]);
            command.stderr(std::process::Stdio::piped()).spawn().unwrap()
        };
        let waiting = [waits("ready"), waits("stopped")];
        assert_eq!(project.regrow(&["remove", "never"]).code, 0);
        waiting.map(|child| {
            let output = child.wait_with_output().unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        })
    };
    // A wait that comes too late is told that there is no such service.
    let in_time =
        |ended: &[(Option<i32>, String); 2]| ended.iter().all(|(_, text)| !text.contains("no service"));
    let [ready, stopped] = (0..100).map(|_| wait()).find(in_time).expect("both come in time once");
    assert_eq!((ready, stopped), ((Some(1), "never: removed\n".to_owned()), (Some(0), String::new())));
    // The project's env files also apply to added services; the prefixes grow with longer names.
    write(
        "wide.toml",
        "[service.worker-alpha]\nshell = \"echo $WORD $SHARED\"\nenv = { WORD = \"${SHARED}!\" }\nkind = \"task\"\n",
    );
    assert_eq!(project.regrow(&["add", "wide.toml"]).code, 0);
    run.line("worker-alpha | of-all! of-all");
    // The socket takes no specification as data: its environment would be lost on the way.
    let text = r#"{"verb":"add","addition":{"children":[],"services":[]}}"#;
    let (status, _) = post(&project, "/v1/command", text);
    assert_eq!(status, 400);
    let (status, answer) = post(
        &project,
        "/v1/add",
        r#"{"manifest":"[service.w]\ncommand = \"sleep 1000\"\n","file":"/nowhere/w.toml"}"#,
    );
    // A manifest must say its own absolute path, since relative paths in it count from there.
    for nowhere in ["w.toml", ""] {
        let text = format!(r#"{{"manifest":"[service.q]\\ncommand = \\"true\\"\\n","file":"{nowhere}"}}"#);
        assert_eq!(post(&project, "/v1/add", &text).0, 400);
    }
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((status, &answer["ok"]), (200, &Value::Bool(false)), "{answer}");
    run.stop();
}
