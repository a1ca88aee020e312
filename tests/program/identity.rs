//! A service belongs to its project alone, whatever other projects come and go; and which tree a
//! verb means.

use std::path::Path;

use crate::harness::{Project, eventually, installed};
use crate::machine::Machine;

const WEB: &str = "[service.web]\ncommand = \"sleep 1000\"\n";

/// R17: another project's service of the same name comes and goes, and changes no process, history,
/// goal or token grant.
#[test]
fn r17_another_project_of_the_same_names_changes_nothing() {
    let copies = "[service.api]\ncommand = \"sleep 1000\"\nreplicas = 2\n";
    let machine = Machine::started(&[("shop.toml", &format!("{WEB}{copies}"))]);
    let project = &machine.project;
    assert_eq!(project.regrow(&["wait", "web", "shop/web", "api", "shop/api.2", "--timeout", "20s"]).code, 0);
    assert_eq!(project.regrow(&["restart", "shop/web"]).code, 0);
    let before = machine.all_pids();
    let row = project.status("web");
    assert_eq!(
        (&row["name"], &row["id"], &row["project"]),
        (&"web".into(), &"shop/web".into(), &"shop".into())
    );
    for (name, text) in [("other.toml", WEB), ("more.toml", copies)] {
        project.write(&format!("services/{name}"), text);
        let done = project.regrow(&["reload"]);
        assert_eq!(done.code, 0, "{}", done.stderr);
        assert!(
            done.stdout.starts_with(&format!("added: {}/", name.trim_end_matches(".toml"))),
            "{}",
            done.stdout
        );
    }
    let now = machine.all_pids();
    assert_eq!((now["shop/web"], now["shop/api.2"]), (before["web"], before["api.2"]));
    assert!(now["other/web"].is_some() && now["more/api.1"].is_some(), "{now:?}");
    for (words, meant) in [
        (["status", "web"], "other/web, shop/web"),
        (["stop", "api"], "more/api, shop/api"),
        (["logs", "api.1"], "more/api, shop/api"),
        (["history", "web"], "other/web, shop/web"),
    ] {
        let asked = project.regrow(&words);
        assert_eq!(asked.code, 1, "{words:?}");
        assert!(asked.stderr.contains(&format!("{:?} is ambiguous: {meant}", words[1])), "{}", asked.stderr);
    }
    let history = |name: &str| {
        let told = project.json(&["history", name, "--json"]);
        told["services"][0]["incarnations"].as_array().unwrap().len()
    };
    assert_eq!((history("shop/web"), history("other/web")), (2, 1));
    assert_eq!(project.regrow(&["stop", "other/web"]).code, 0);
    machine.kill_daemon();
    assert_eq!(project.status("other/web")["state"], "stopped");
    assert_eq!(project.status("shop/web")["pid"].as_u64(), before["web"]);
    for name in ["other.toml", "more.toml"] {
        std::fs::remove_file(project.file(&format!("services/{name}"))).unwrap();
    }
    assert_eq!(project.regrow(&["reload"]).code, 0);
    assert_eq!(machine.all_pids(), before);
}

/// Services of other projects are named in manifests and on the command line.
#[test]
fn services_depend_on_others_of_the_machine_by_their_names() {
    let machine = Machine::started(&[]);
    let project = &machine.project;
    let create = |words: &[&str]| project.regrow(&[&["service", "create"], words].concat());
    assert_eq!(create(&["gw", "--", "sleep", "1000"]).code, 0);
    let auth = create(&["auth", "--depends-on", "gw", "--", "sleep", "1001"]);
    assert_eq!(auth.code, 0, "{}{}", auth.stdout, auth.stderr);
    let text = std::fs::read_to_string(project.file("services/auth.toml")).unwrap();
    assert!(text.contains("depends_on = [\"gw/gw\"]"), "{text}");
    let refused = project.regrow(&["stop", "gw"]);
    assert!(refused.code == 1 && refused.stderr.contains("auth"), "{}", refused.stderr);
    project.write(
        "services/shop.toml",
        "[service.page]\ncommand = \"sleep 1002\"\ndepends_on = [\"auth/auth\"]\n",
    );
    assert_eq!(project.regrow(&["reload"]).code, 0);
    assert_eq!(project.regrow(&["wait", "page", "--timeout", "20s"]).code, 0);
    let unknown = create(&["lost", "--depends-on", "nowhere", "--", "true"]);
    assert_eq!(unknown.code, 3, "{}", unknown.stderr);
    assert!(unknown.stderr.contains("depends on \"nowhere\", which is not declared"), "{}", unknown.stderr);
    assert!(!project.file("services/lost.toml").exists());
    // A circle over several manifests is reported where it is, and harms no other service.
    project
        .write("services/gw.toml", "[service.gw]\ncommand = \"sleep 1000\"\ndepends_on = [\"shop/page\"]\n");
    let circle = project.regrow(&["reload", "--strict"]);
    assert_eq!(circle.code, 3);
    assert!(circle.stderr.contains("auth/auth -> gw/gw -> shop/page -> auth/auth"), "{}", circle.stderr);
    assert_eq!(project.status("gw")["state"], "running");
}

/// What was typed runs as it was typed, whatever characters it has; and a plain word keeps the
/// table it stands for.
#[test]
fn words_on_the_command_line_are_literal() {
    let machine = Machine::started(&[]);
    let project = &machine.project;
    let text = "printf '%s|' \"$0\" \"$1\" \"$2\" \"$WORD\"; exec sleep 1000";
    let words = ["$$HOME", "${X:-y}", "a \"b\" 'c'"];
    let made = project.regrow(
        &[&["service", "create", "say", "--env", "WORD=$A${B}", "--", "sh", "-c", text], &words[..]].concat(),
    );
    assert_eq!(made.code, 0, "{}", made.stderr);
    let want = "$$HOME|${X:-y}|a \"b\" 'c'|$A${B}|";
    eventually("it says what was typed", || project.regrow(&["logs", "say"]).stdout.contains(want));
    for (set, key, shown) in [
        ("restart=always", "restart", "policy = \"always\", max_retries = 3"),
        ("env.WORD=\"${Q}\" $$", "env", "'\"$${Q}\" $$$$'"),
        ("command=[\"sh\", \"-c\", \"echo $$; exec sleep 1000\"]", "command", "echo $$$$; exec sleep 1000"),
    ] {
        let changed = project.regrow(&["service", "config", "say/say", set]);
        assert_eq!(changed.code, 0, "{set}: {}", changed.stderr);
        assert!(
            changed.stdout.starts_with(&format!("wrote {}", project.file("services/say.toml").display()))
        );
        let now = std::fs::read_to_string(project.file("services/say.toml")).unwrap();
        assert!(now.contains(shown), "{key}: {now}");
    }
    // A service of a manifest with several services is configured by the name that is listed.
    project.write("services/shop.toml", format!("# ours\n{WEB}"));
    assert_eq!(project.regrow(&["reload"]).code, 0);
    let changed = project.regrow(&["service", "config", "web", "env.A=1"]);
    assert_eq!(changed.code, 0, "{}", changed.stderr);
    let now = std::fs::read_to_string(project.file("services/shop.toml")).unwrap();
    assert_eq!(now, format!("# ours\n{WEB}env = {{ A = \"1\" }}\n"));
}

/// R19: in a folder with a manifest, a verb that changes something means only that manifest's tree.
#[test]
fn r19_a_changing_verb_never_falls_back_to_the_daemon() {
    let mut machine = Machine::started(&[("shop.toml", WEB)]);
    let pid = machine.project.pid("web");
    machine.project.write("regrow.toml", "[service.other]\ncommand = \"sleep 1000\"\n");
    let project = &machine.project;
    for words in [
        &["down"][..],
        &["stop", "web"],
        &["restart", "--all"],
        &["start", "web"],
        &["pause", "web"],
        &["remove", "web"],
        &["exec", "--", "true"],
        &["task", "submit", "--", "true"],
        &["cache", "clear"],
        &["pool", "set", "--max", "9"],
    ] {
        let refused = project.regrow(words);
        assert_eq!(refused.code, 4, "{words:?}: {}{}", refused.stdout, refused.stderr);
        assert!(refused.stderr.contains("regrow.toml is not running"), "{words:?}: {}", refused.stderr);
        assert!(refused.stderr.contains("--daemon"), "{words:?}: {}", refused.stderr);
    }
    assert_eq!(project.pid("web"), pid);
    let mut run = project.run(&[]);
    run.line("other  * running");
    let trees = project.json(&["ls", "--json"]);
    let kinds: Vec<&str> =
        trees["trees"].as_array().unwrap().iter().map(|t| t["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["daemon", "run"], "{trees}");
    let down = project.regrow(&["down"]);
    assert!(down.code == 0 && down.stdout.contains("stopped shop (pid "), "{}{}", down.stdout, down.stderr);
    assert_eq!(run.code(), 0);
    assert_eq!(project.regrow(&["down"]).code, 4, "the daemon is not hit");
    // A verb that only the daemon has means it anywhere, and so does every verb with --daemon.
    assert_eq!(project.regrow(&["service", "restart", "web"]).code, 0);
    assert_eq!(project.regrow(&["restart", "web", "--daemon"]).code, 0);
    let down = project.regrow(&["down", "--daemon"]);
    assert!(
        down.stdout.contains("stopped daemon (pid ") && down.stdout.contains(", 1 service)"),
        "{}",
        down.stdout
    );
    assert_eq!(machine.run.take().unwrap().code(), 0);
}

/// A daemon's own configuration is not a project's manifest, whatever its name: in its folder the
/// daemon is meant.
#[test]
fn beside_its_configuration_the_daemon_is_meant() {
    let mut machine = Machine::new(&[("shop.toml", WEB)]);
    machine.project.write("regrow.toml", "manifests = \"services\"\n");
    let mut command = machine.project.command(&["daemon", "--config", "regrow.toml"]);
    let mut run = machine.project.start(&mut command);
    run.line(concat!("regrow ", env!("CARGO_PKG_VERSION"), ": "));
    machine.run = Some(run);
    let restarted = machine.regrow(&["restart", "web"]);
    assert_eq!(restarted.code, 0, "{}", restarted.stderr);
    machine.down();
}

/// Every socket works in a folder whose path is longer than that of a socket may be. A user without
/// an entry still has a home and a name, and never those of root.
#[test]
fn long_paths_and_users_without_an_entry() {
    const TEST: &str = "long_paths_and_users_without_an_entry";
    let project = Project::new("");
    std::fs::remove_file(project.file("regrow.toml")).unwrap();
    let state = project.dir().join("a-folder-with-a-long-name".repeat(5)).join("and-one-below-it".repeat(4));
    std::fs::create_dir_all(project.file("services")).unwrap();
    project.write("services/a.toml", WEB);
    project.write("daemon.toml", "manifests = \"services\"\n");
    let regrow = |words: &[&str]| {
        let mut command = project.command(words);
        command.env("REGROW_STATE_DIR", &state).env("REGROW_CONFIG", project.file("daemon.toml"));
        command.output().unwrap()
    };
    let up = regrow(&["daemon", "--detach"]);
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    assert!(regrow(&["wait", "web", "--timeout", "20s"]).status.success());
    assert!(regrow(&["exec", "--", "true"]).status.success());
    if nix::unistd::geteuid().is_root() && installed(TEST, Path::new("/usr/bin/env")) {
        let text = "[service.who]\nuser = \"64917\"\nshell = \"echo $HOME $USER $LOGNAME; exec sleep 1000\"\ndir = \"/\"\n";
        project.write("services/who.toml", text);
        assert!(regrow(&["reload"]).status.success());
        eventually("it says who it is", || {
            String::from_utf8_lossy(&regrow(&["logs", "who"]).stdout).contains("/ 64917 64917")
        });
    }
    assert!(regrow(&["down"]).status.success());
}
