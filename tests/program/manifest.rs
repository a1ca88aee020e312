//! Good and bad manifests: `check`, `plan`, `init`, and that nothing starts from a faulty one.

use super::harness::Project;

#[test]
fn every_fault_is_told_at_once_with_its_place_and_a_hint() {
    let project = Project::new(
        r#"[project]
nam = "x"

[service.web]
comand = "npm run dev"
command = ["true"]
depends_on = ["apii"]
replicas = "two"

[service.api]
command = "python3 ${NO_SUCH_VARIABLE}"
restart = "sometimes"
watch = ["*.py"]
"#,
    );
    let output = project.regrow(&["check"]);
    assert_eq!(output.code, 3);
    assert_eq!(output.stdout, "");
    let want = r#"error: unknown key "nam" in [project]
 --> regrow.toml:2:1
  |
2 | nam = "x"
  | ^^^ no such key
  |
  = help: did you mean "name"?

error: unknown key "comand" in [service.web]
 --> regrow.toml:5:1
  |
5 | comand = "npm run dev"
  | ^^^^^^ no such key
  |
  = help: did you mean "command"?

error: service "web" depends on "apii", which is not declared
 --> regrow.toml:7:15
  |
7 | depends_on = ["apii"]
  |               ^^^^^^ no such service
  |
  = help: did you mean "api"?

error: "replicas" must be a whole number, not a string
 --> regrow.toml:8:12
  |
8 | replicas = "two"
  |            ^^^^^ this is a string
  |
  = help: write it without quotes: 2

error: service "api": undefined variable "NO_SUCH_VARIABLE"
  --> regrow.toml:11:11
   |
11 | command = "python3 ${NO_SUCH_VARIABLE}"
   |           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ used here
   |
   = help: set it, or give a default: ${NO_SUCH_VARIABLE:-...}

error: "restart" can't have the value "sometimes"
  --> regrow.toml:12:11
   |
12 | restart = "sometimes"
   |           ^^^^^^^^^^^ unknown value
   |
   = help: write one of never, on-failure, always, unless-stopped

error: unknown key "watch" in [service.api]
  --> regrow.toml:13:1
   |
13 | watch = ["*.py"]
   | ^^^^^ no such key
   |
   = help: the known keys are command, shell, kind, dir, env, env_file, env_clear, env_deny, user, group, umask, nice, depends_on, ready, health, restart, stop, on, log, replicas, autostart, on_dependency_restart, rerun, significant, profiles, tags

error: regrow.toml has 7 faults; nothing was started
"#;
    pretty(&output.stderr, want);
    let run = project.regrow(&["run"]);
    assert_eq!(run.code, 3);
    assert_eq!(run.stderr, output.stderr, "run tells the same and starts nothing");
}

/// Compares line by line, so that a failure names the line.
fn pretty(got: &str, want: &str) {
    for (at, (got, want)) in got.lines().zip(want.lines()).enumerate() {
        assert_eq!(got, want, "line {}", at + 1);
    }
    assert_eq!(got.lines().count(), want.lines().count(), "{got}");
}

/// One fault of each kind: the text of the manifest, the place of the fault, and the message.
#[test]
fn one_fault_of_each_kind() {
    let chain = |names: &[(&str, &str)]| {
        names
            .iter()
            .map(|(name, on)| format!("[service.{name}]\ncommand = \"true\"\ndepends_on = [\"{on}\"]\n"))
            .collect::<String>()
    };
    let one = |line: &str| format!("[service.web]\ncommand = \"true\"\n{line}\n");
    let two = |first: &str, second: &str| {
        let file = |path: &str| format!("command = \"true\"\nlog = {{ file = \"{path}\" }}\n");
        format!("[service.web]\n{}[service.b]\n{}", file(first), file(second))
    };
    let cases: Vec<(String, &str, &str)> = vec![
        (chain(&[("a", "b"), ("b", "c"), ("c", "a")]), "3:15", "dependency cycle: a -> b -> c -> a"),
        (chain(&[("a", "a")]), "3:15", "service \"a\" depends on itself: a -> a"),
        (
            "[service.\"../x\"]\ncommand = \"true\"".into(),
            "1:10",
            "\"../x\" is not a valid name for a service",
        ),
        ("[service.\"a\\nb\"]\ncommand = \"true\"".into(), "1:10", "is not a valid name for a service"),
        (format!("[service.{}]\ncommand = \"true\"", "x".repeat(5_000)), "1:10", "but this one has 5000"),
        ("[service.web]".into(), "1:10", "service \"web\" has no command"),
        (one("shell = \"true\""), "3:1", "has both \"command\" and \"shell\""),
        (one("command = \"again\""), "3:1", "invalid TOML"),
        ("[service.web]\ncommand = 5".into(), "2:11", "\"command\" must be a string or a list of strings"),
        ("[service.web]\ncommand = \"a 'b\"".into(), "2:11", "an unclosed quote"),
        ("[service.web]\ncommand = []".into(), "2:11", "\"command\" is empty"),
        ("[service.web]\ncommand = \"a\\u0000b\"".into(), "2:11", "contains a NUL character"),
        (one("ready = { tcp = \"nowhere\" }"), "3:17", "not a valid address"),
        (one("ready = { http = \"https://127.0.0.1/\" }"), "3:18", "not a URL that can be checked"),
        (one("ready = { log = \"(\" }"), "3:17", "not a valid regular expression"),
        (one("ready = { tcp = \"a:1\", log = \"x\" }"), "3:30", "both \"tcp\" and \"log\""),
        (one("ready = { after = \"2s\", interval = \"1s\" }"), "3:25", "has no effect"),
        (one("ready = { interval = \"1s\" }"), "3:9", "\"ready\" needs one of"),
        (one("health = { log = \"x\" }"), "3:12", "unknown key \"log\" in health"),
        (one("stop = \"SIGNOPE\""), "3:8", "\"SIGNOPE\" is not a signal"),
        (one("stop = { timeout = 5 }"), "3:20", "\"timeout\" needs a unit"),
        (
            one("restart = { policy = \"always\", backoff = { initial = \"2m\", max = \"1s\" } }"),
            "3:42",
            "longer than",
        ),
        (one("restart = { never_on = [300] }"), "3:25", "exit code from 0 to 255"),
        (one("replicas = 0"), "3:12", "from 1 to"),
        (one("replicas = { min = 5, max = 2 }"), "3:29", "more than \"max\""),
        (one("replicas = { min = 2 }"), "3:12", "no \"max\""),
        (one("replicas = { max = 2, scale_on = \"mem\" }"), "3:34", "one of cpu"),
        (one("replicas = { max = 2, scale_on = { cpu = 1, memory = 1 } }"), "3:34", "name one of"),
        (one("replicas = { max = 2, scale_on = 7 }"), "3:34", "a table such as"),
        (
            one("replicas = { max = 3 }\n[service.\"web.3\"]\ncommand = \"true\""),
            "4:10",
            "instance 3 of \"web\"",
        ),
        (one("depends_on = [\"web2\", \"web2\"]\n[service.web2]\ncommand = \"true\""), "3:23", "twice"),
        (
            one("depends_on = { web2 = \"redy\" }\n[service.web2]\ncommand = \"true\""),
            "3:23",
            "can't have the value \"redy\"",
        ),
        (one("dir = \"${A_A_A}\""), "3:7", "undefined variable \"A_A_A\""),
        (
            one("env = { A = \"${B}\", B = \"${A}\" }"),
            "3:13",
            "variables refer to each other in a cycle: A -> B",
        ),
        (one("env_file = \"no.env\""), "3:12", "can't read the env file"),
        (one("[group.g]\nmembers = [\"web\", \"nope\"]"), "4:19", "names \"nope\", which is not declared"),
        (one("[group.g]"), "3:8", "group \"g\" has no members"),
        (one("[group.web]\nmembers = [\"web\"]"), "3:8", "is the name of both a service and a group"),
        (
            one("[group.g]\nmembers = [\"web\"]\n[group.h]\nmembers = [\"web\"]"),
            "6:12",
            "a member of \"g\" and of \"h\"",
        ),
        (
            one("[group.g]\nmembers = [\"h\"]\n[group.h]\nmembers = [\"g\"]"),
            "3:8",
            "a group can't contain itself",
        ),
        (one("[group.g]\nmembers = [\"web\"]\nintensity = -1"), "5:13", "\"intensity\" must be"),
        (
            one(
                "ready = { tcp = \"127.0.0.1:80\" }\n[service.b]\ncommand = \"true\"\nready = { http = \"http://localhost/\" }",
            ),
            "6:18",
            "port 80 is used by two services",
        ),
        (one("log = \"web.log\""), "3:7", "\"log\" must be a table such as { file = \"web.log\""),
        (one("log = { fiel = \"x\" }"), "3:9", "unknown key \"fiel\" in log"),
        (one("log = { file = \"logs/\" }"), "3:16", "\"logs/\" is not a file path"),
        (one("log = { file = \"${NOT_SET}\" }"), "3:16", "undefined variable \"NOT_SET\""),
        (one("log = { max_size = \"many\" }"), "3:20", "\"max_size\" must be a size"),
        (one("log = { max_size = 0 }"), "3:20", "\"max_size\" must be a size"),
        (one("log = { max_size = true }"), "3:20", "\"max_size\" must be a size such as \"64KiB\""),
        (one("log = { max_files = 0 }"), "3:21", "\"max_files\" must be a whole number from 1 to 1000"),
        (one("log = { compress = 1 }"), "3:20", "\"compress\" must be true or false"),
        (
            one("log = { file = \"x.log\" }\n[service.b]\ncommand = \"true\"\nlog = { file = \"./x.log\" }"),
            "6:16",
            "x.log is used by two services: \"web\" and \"b\"",
        ),
        (one("log = { file = \"~/x.log\" }"), "3:16", "\"~\" is not expanded in a path"),
        (one("log = { file = \".\" }"), "3:16", "\".\" is not a file path"),
        (two("x.log", "y/../x.log"), "6:16", "x.log is used by two services"),
        (two("x.log", "x.log.2"), "6:16", "x.log.2 is used by two services"),
        (two("x.log.2.gz", "x.log"), "6:16", "x.log is used by two services"),
        (
            one(
                "replicas = 2\nlog = { file = \"x.log\" }\n[service.b]\ncommand = \"true\"\nlog = { file = \"x.2.log\" }",
            ),
            "7:16",
            "x.2.log is used by two services",
        ),
        (one("replicas = 2\n[service.\"web.2\"]\ncommand = \"true\""), "4:10", "instance 2 of \"web\""),
        ("service = 5".into(), "1:11", "\"service\" must be a table"),
        (String::new(), "1:1", "declares no service"),
    ];
    let project = Project::new("");
    for (manifest, place, message) in cases {
        project.write("regrow.toml", &manifest);
        let output = project.regrow(&["check", "regrow.toml"]);
        assert_eq!(output.code, 3, "{manifest}\n{}", output.stderr);
        let found =
            output.stderr.contains(&format!("--> regrow.toml:{place}\n")) && output.stderr.contains(message);
        assert!(found, "wanted {place} {message:?} for\n{manifest}\n{}", output.stderr);
    }
}

#[test]
fn files_that_can_not_be_read() {
    let project = Project::new("");
    let missing = project.regrow(&["run", "nope.toml"]);
    assert_eq!(missing.code, 3);
    assert_eq!(missing.stderr, "error: can't read the manifest nope.toml: there is no such file\n");
    let folder = project.regrow(&["check", "."]);
    assert_eq!(folder.code, 3);
    assert!(folder.stderr.contains("can't read the manifest .: it is a folder"), "{}", folder.stderr);
    project.write("bytes.toml", b"[service.a]\ncommand = \"\xff\"\n");
    let bytes = project.regrow(&["check", "bytes.toml"]);
    assert_eq!(bytes.code, 3);
    assert!(
        bytes.stderr.contains("not UTF-8") && bytes.stderr.contains("bytes.toml:2:12"),
        "{}",
        bytes.stderr
    );
    std::fs::remove_file(project.file("regrow.toml")).unwrap();
    let none = project.regrow(&["run"]);
    assert_eq!(none.code, 3);
    assert!(none.stderr.contains("no regrow.toml or dev-env.toml"), "{}", none.stderr);
    assert_eq!(project.regrow(&["run", "--no-such-flag"]).code, 2);
}

#[test]
fn ten_thousand_services_and_ten_megabytes_are_no_trouble() {
    let mut manifest = String::new();
    for n in 0..10_000 {
        manifest.push_str(&format!("[service.s{n}]\ncommand = \"true\"\n"));
        if n > 0 {
            manifest.push_str(&format!("depends_on = [\"s{}\"]\n", n - 1));
        }
        manifest.push_str(&format!("# {}\n", "x".repeat(950)));
    }
    assert!(manifest.len() > 10_000_000);
    let project = Project::new(&manifest);
    let output = project.regrow(&["check"]);
    assert_eq!((output.code, output.stdout.as_str()), (0, "regrow.toml: ok (10000 services)\n"));
    project.write("regrow.toml", manifest.replace("[service.s9999]\ncommand", "[service.s9999]\ncomand"));
    let output = project.regrow(&["check"]);
    assert_eq!(output.code, 3);
    assert!(output.stderr.contains("did you mean \"command\"?"), "{}", output.stderr);
}

#[test]
fn a_plan_shows_the_tree_and_both_orders() {
    let project = Project::new(
        r#"
[project]
name = "shop"
[service.redis]
command = ["redis-server", "--save", ""]
ready = { tcp = "127.0.0.1:6379" }
[service.migrate]
shell = "python3 migrate.py && echo done"
kind = "task"
depends_on = ["redis"]
[service.backend]
command = "python3 app.py"
depends_on = { redis = "ready", migrate = "completed" }
replicas = 2
[service.idle]
command = "true"
autostart = false
[group.web]
members = ["backend"]
strategy = "rest-for-one"
intensity = 3
"#,
    );
    let text = project.regrow(&["plan"]);
    pretty(
        &text.stdout,
        r#"shop (regrow.toml)

tree
  ├─ redis: redis-server --save ''; ready: tcp 127.0.0.1:6379
  ├─ migrate (task): python3 migrate.py && echo done; after redis ready
  ├─ idle: true
  └─ [web] rest-for-one, at most 3 restarts in 10.0 s
     └─ backend x2: python3 app.py; after redis ready, migrate completed

start
  1. redis
  2. migrate
  3. backend

stop
  1. backend
  2. migrate
  3. redis

not started
  idle
"#,
    );
    let json = project.json(&["plan", "--format", "json"]);
    assert_eq!(json["start_waves"], serde_json::json!([["redis"], ["migrate"], ["backend"]]));
    assert_eq!(json["services"][2]["replicas"], 2);
    assert_eq!(json["groups"]["web"]["strategy"], "rest-for-one");
    let dot = project.regrow(&["plan", "--format", "dot"]).stdout;
    assert!(
        dot.starts_with("digraph \"shop\" {")
            && dot.contains("\"backend\" -> \"redis\" [label = \"ready\"];")
    );
    let mermaid = project.regrow(&["plan", "--format", "mermaid"]).stdout;
    assert!(mermaid.starts_with("flowchart LR\n") && mermaid.contains("s2 -->|completed| s1"), "{mermaid}");
}

#[test]
fn a_limit_that_can_not_be_reached_is_warned_about() {
    let project = Project::new(
        "[service.a]\ncommand = \"true\"\nrestart = { backoff = { initial = \"30s\" } }\n[group.g]\nmembers = [\"a\"]\nintensity = 3\nperiod = \"10s\"\n",
    );
    let check = project.regrow(&["check"]);
    assert_eq!((check.code, check.stdout.as_str()), (0, "regrow.toml: ok (1 service, 1 group)\n"));
    let warning = "warning: group \"g\" never gives up: with their backoff, its members crash at most 1 times within 10s, and it gives up after more than 3\n --> regrow.toml:4:8\n";
    assert!(check.stderr.starts_with(warning), "{}", check.stderr);
    let json = project.json(&["check", "--json"]);
    assert_eq!((&json["ok"], &json["files"][0]["warnings"][0]["line"]), (&true.into(), &4.into()));
    project.write(
        "regrow.toml",
        "[service.a]\ncommand = \"true\"\n[group.g]\nmembers = [\"a\"]\nintensity = 3\n",
    );
    assert_eq!(project.regrow(&["check"]).stderr, "", "100 ms doubling crashes four times in 10 s");
}

#[test]
fn variables_that_double_with_each_step_are_refused_at_once() {
    let doubling: String = (1..40).map(|n| format!(", A{n} = \"${{A{}}}${{A{}}}\"", n - 1, n - 1)).collect();
    let project = Project::new(&format!(
        "[service.a]\ncommand = \"true\"\nenv = {{ A0 = \"xxxxxxxxxx\"{doubling} }}\n"
    ));
    let check = project.regrow(&["check"]);
    assert_eq!(check.code, 3);
    assert!(check.stderr.contains("the expanded text is longer than 1 MiB"), "{}", &check.stderr[..500]);
    let endless = project.regrow(&["check", "/dev/zero"]);
    assert_eq!(endless.code, 3);
    assert!(endless.stderr.contains("larger than 64 MiB"), "{}", endless.stderr);
}

#[test]
fn init_writes_a_manifest_that_is_right() {
    let project = Project::new("");
    std::fs::remove_file(project.file("regrow.toml")).unwrap();
    assert_eq!(project.regrow(&["init"]).code, 0);
    let check = project.regrow(&["check"]);
    assert_eq!((check.code, check.stdout.as_str()), (0, "regrow.toml: ok (2 services)\n"));
    let again = project.regrow(&["init"]);
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("already exists"));
}

#[test]
fn variables_come_from_the_process_env_files_and_the_service() {
    let project = Project::new(
        r#"
[project]
env_file = [".env", ".env.local", "missing.env"]
[service.show]
command = ["sh", "-c", "echo $$A $$B $$C $$D ${FROM_FILE} $$PATH_OWN; env | grep -c SECRET"]
env = { B = "own-${B}", C = "${C_UNSET:-fallback}", D = "${B}/d", PATH_OWN = "x:${HOME}" }
env_deny = ["*SECRET*"]
kind = "task"
restart = "never"
"#,
    );
    project.write(".env", "A=first\nB=file\nFROM_FILE=here\n");
    project.write(".env.local", "export A='second'\n");
    let mut command = project.command(&["run"]);
    command.env("HOME", "/home/ada").env("MY_SECRET", "s").env("B", "process");
    let mut run = project.start(&mut command);
    run.line("second own-file fallback own-file/d here x:/home/ada");
    run.line("show   | 0");
    // grep -c ends with 1 when it counts none.
    assert_eq!(run.code(), 1);
    assert!(run.text().contains("there is no env file missing.env"), "{}", run.text());
}

#[test]
fn what_can_have_no_effect_is_warned_about() {
    for (manifest, warning) in [
        (
            "[service.a]\ncommand = \"true\"\nsignificant = true\n",
            "\"a\" is significant, and the root group has no \"auto_shutdown\"\n --> regrow.toml:1:10\n",
        ),
        (
            "[service.a]\ncommand = \"true\"\n[group.g]\nmembers = [\"a\"]\nauto_shutdown = \"any\"\n",
            "group \"g\" has \"auto_shutdown\", but no significant member whose exit could cause it\n --> regrow.toml:3:8\n",
        ),
        (
            "[project]\nauto_shutdown = \"all\"\n[service.a]\ncommand = \"true\"\nsignificant = true\nrestart = \"always\"\n",
            "\"a\" is significant, but its restart policy always restarts it\n --> regrow.toml:3:10\n",
        ),
    ] {
        let project = Project::new(manifest);
        let check = project.regrow(&["check"]);
        assert_eq!(check.code, 0, "{}", check.stderr);
        assert!(check.stderr.starts_with(&format!("warning: {warning}")), "{}", check.stderr);
    }
    let project = Project::new(
        "[project]\nauto_shutdown = \"any\"\n[service.a]\ncommand = \"true\"\nsignificant = true\n",
    );
    assert_eq!(project.regrow(&["check"]).stderr, "");
}

/// Many variables take as many steps, and a chain of them is refused before the stack overflows.
#[test]
fn many_variables_are_read_and_deep_ones_refused() {
    let project = Project::new("");
    let all: String = (0..50_000).map(|n| format!("V{n} = \"${{W{n}}}\"\n")).collect();
    let files: String = (0..50_000).map(|n| format!("W{n}=x{n}\n")).collect();
    project.write("many.env", files);
    project.write(
        "many.toml",
        format!(
            "[service.a]\ncommand = \"echo ${{V49999}}\"\nenv_file = [\"many.env\"]\n[service.a.env]\n{all}"
        ),
    );
    let checked = project.regrow(&["check", "many.toml"]);
    assert_eq!((checked.code, checked.stderr.as_str()), (0, ""));
    let deep: String = (0..20_000).map(|n| format!("V{n} = \"${{V{}}}\"\n", n + 1)).collect();
    project.write(
        "deep.toml",
        format!("[service.a]\ncommand = \"true\"\n[service.a.env]\n{deep}V20000 = \"x\"\n"),
    );
    let checked = project.regrow(&["check", "deep.toml"]);
    assert_eq!(checked.code, 3);
    assert!(
        checked
            .stderr
            .contains("refers to other variables, which refer to others: more than 100 levels deep")
    );
}

#[test]
fn no_group_is_called_as_the_root_is() {
    let project = Project::new("[service.a]\ncommand = \"true\"\n[group.root]\nmembers = [\"a\"]\n");
    let checked = project.regrow(&["check"]);
    assert_eq!(checked.code, 3);
    assert!(checked.stderr.contains("no group can be named \"root\""), "{}", checked.stderr);
    assert!(checked.stderr.contains("regrow.toml:3:8"), "{}", checked.stderr);
}
