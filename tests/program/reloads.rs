//! Manifests that change below a running daemon: by a reload, by watching, and from the command line.

use std::path::PathBuf;
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::harness::{end, eventually, eventually_or, is_alive};
use crate::machine::Machine;

#[test]
fn a_reload_touches_only_what_has_changed_and_names_the_keys() {
    let mut machine = Machine::started(&[
        ("a.toml", "[service.keeps]\ncommand = \"sleep 1000\"\n[service.limits]\ncommand = \"sleep 1000\"\n"),
        ("b.toml", "[service.env]\ncommand = \"sleep 1000\"\n[service.goes]\ncommand = \"sleep 1000\"\n"),
        (
            "c.toml",
            "[service.copies]\ncommand = \"sleep 1000\"\n\
             [service.needs]\ncommand = \"sleep 1000\"\ndepends_on = [\"copies\"]\n",
        ),
    ]);
    assert_eq!(
        machine.regrow(&["wait", "keeps", "limits", "env", "goes", "needs", "--timeout", "20s"]).code,
        0
    );
    let before = machine.all_pids();
    let project = &machine.project;
    assert_eq!(project.regrow(&["reload"]).stdout, "nothing has changed\n");
    project.write(
        "services/a.toml",
        "[service.keeps]\ncommand = \"sleep 1000\"\n\
         [service.limits]\ncommand = \"sleep 1000\"\nrestart = \"never\"\nstop = { timeout = \"1s\" }\n",
    );
    project.write("services/b.toml", "[service.env]\ncommand = \"sleep 1000\"\nenv = { A = \"b\" }\n");
    project.write(
        "services/c.toml",
        "[service.copies]\ncommand = \"sleep 1000\"\nreplicas = 2\n\
         [service.needs]\ncommand = \"sleep 1000\"\ndepends_on = [\"copies\"]\n",
    );
    project.write("services/d.toml", "[service.new]\ncommand = \"sleep 1000\"\n");
    let done = project.json(&["reload", "--json"]);
    assert_eq!(done["ok"], true, "{done}");
    for (what, want) in [
        ("added", r#"["d/new"]"#),
        ("removed", r#"["b/goes"]"#),
        ("changed", r#"[{"service":"a/limits","keys":["restart","stop"]}]"#),
        ("unchanged", r#"["a/keeps","c/needs"]"#),
    ] {
        assert_eq!(
            done[what].to_string().replace(
                "\"keys\":[\"restart\",\"stop\"],\"service\":\"a/limits\"",
                "\"service\":\"a/limits\",\"keys\":[\"restart\",\"stop\"]"
            ),
            want,
            "{what}: {done}"
        );
    }
    let restarted: Vec<&str> =
        done["restarted"].as_array().unwrap().iter().map(|r| r["service"].as_str().unwrap()).collect();
    assert_eq!(restarted, ["b/env", "c/copies"]);
    let after = machine.all_pids();
    for same in ["keeps", "limits", "needs"] {
        assert_eq!(before[same], after[same], "{same} is not touched");
    }
    assert!(after["env"].is_some() && before["env"] != after["env"], "env has another process");
    assert!(after["copies.1"].is_some() && after["copies.2"].is_some() && !after.contains_key("goes"));
    // The new policy is in force.
    end(u32::try_from(after["limits"].unwrap()).unwrap());
    eventually("it does not come back", || project.status("limits")["state"] == "failed");

    // A faulty manifest keeps its services as they were and does not hold up the others, except with
    // --strict.
    project.write("services/d.toml", "[service.new]\ncommand = \"sleep 999\"\n[service.other]\n");
    project.write("services/e.toml", "[service.another]\ncommand = \"sleep 1000\"\n");
    let refused = project.regrow(&["reload", "--strict"]);
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(refused.stderr.contains("d.toml:3:10"), "{}", refused.stderr);
    let unchanged = machine.all_pids();
    assert!(unchanged["new"] == after["new"] && !unchanged.contains_key("another"), "{unchanged:?}");
    let done = project.regrow(&["reload"]);
    assert_eq!((done.code, done.stdout.as_str()), (3, "added: another\nunchanged: 6\n"), "{}", done.stderr);
    let file = project.file("services/d.toml");
    assert_eq!(
        done.stderr,
        format!(
            "warning: {}:3: service \"other\" has no command; its running services continue unchanged\n",
            file.display()
        )
    );
    let now = machine.all_pids();
    assert!(now["new"] == after["new"] && now["another"].is_some() && !now.contains_key("other"), "{now:?}");
    let report = project.json(&["status", "--json"]);
    assert_eq!(report["daemon"]["faulty"][0]["line"], 3, "{report}");
    // A manifest that was never right counts as well: its service has failed, by the same fault.
    project.write("services/f.toml", "[service.never]\ncomand = \"x\"\n");
    assert_eq!(project.regrow(&["reload"]).code, 3);
    assert_eq!(project.status("never")["state"], "failed");
    std::fs::remove_file(project.file("services/f.toml")).unwrap();
    project.regrow(&["reload"]);
    let made = project.regrow(&["service", "create", "single", "--", "sleep", "1000"]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    assert_eq!(project.regrow(&["service", "remove", "single"]).code, 0);
    std::fs::remove_file(project.file("services/e.toml")).unwrap();
    std::fs::remove_file(project.file("services/a.toml")).unwrap();
    // SIGHUP is a reload, too.
    project.write("services/d.toml", "[service.new]\ncommand = \"sleep 999\"\n");
    machine.run.as_ref().unwrap().signal(Signal::SIGHUP);
    machine
        .run
        .as_mut()
        .unwrap()
        .line("reloaded: removed: keeps, limits, another; restarted: new (command); unchanged: 3");
    // The same holds after a death of the daemon: the tree is that of the folder.
    let pids = machine.all_pids();
    machine.kill_daemon();
    assert_eq!(machine.all_pids(), pids);
}

#[test]
fn a_folder_that_is_watched_is_reloaded_when_it_changes() {
    let mut machine = Machine::new(&[("a.toml", "[service.a]\ncommand = \"sleep 1000\"\n")]);
    machine.project.write("daemon.toml", "manifests = \"services\"\nwatch = true\n");
    machine.start();
    machine.project.write("services/b.toml", "[service.b]\ncommand = \"sleep 1000\"\n");
    eventually("b is there", || machine.all_pids().get("b").is_some_and(Option::is_some));
    std::fs::remove_file(machine.project.file("services/a.toml")).unwrap();
    eventually("a is gone", || !machine.all_pids().contains_key("a"));
}

#[test]
fn a_service_is_made_changed_and_removed_from_the_command_line() {
    let machine = Machine::started(&[("a.toml", "[service.a]\ncommand = \"sleep 1000\"\n")]);
    let project = &machine.project;
    let made = project.regrow(&[
        "service",
        "create",
        "web",
        "--env",
        "GREET=a$b",
        "--",
        "sh",
        "-c",
        "echo $GREET; exec sleep 1000",
    ]);
    assert_eq!(project.regrow(&["wait", "web", "--timeout", "20s"]).code, 0);
    let wrote = format!("wrote {}", project.file("services/web.toml").display());
    let now =
        |what: &str| format!("{wrote}\n{what}: web\nweb: running, ready (pid {})\n", project.pid("web"));
    assert_eq!((made.code, made.stdout.as_str()), (0, now("added").as_str()), "{}", made.stderr);
    eventually("it has printed", || machine.regrow(&["logs", "web"]).stdout.contains("a$b"));
    let file = project.file("services/web.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("max_retries = 3") && text.contains("initial = \"5s\""), "{text}");
    let again = project.regrow(&["service", "create", "web", "--", "true"]);
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("a manifest web already exists"), "{}", again.stderr);
    for bad in ["../x", "a/b", "a b", ""] {
        let refused = project.regrow(&["service", "create", bad, "--", "true"]);
        assert_eq!(refused.code, 2, "{bad}: {}", refused.stderr);
    }
    // A key is changed in place; the comments stay.
    std::fs::write(&file, format!("{text}# mine\n")).unwrap();
    let pid = project.pid("web");
    let changed = project.regrow(&["service", "config", "web", "restart.max_retries=9"]);
    assert_eq!(
        (changed.code, changed.stdout.as_str()),
        (0, now("changed in place").replace("web\nweb:", "web (restart)\nweb:").as_str()),
        "{}",
        changed.stderr
    );
    let told = now;
    let now = std::fs::read_to_string(&file).unwrap();
    assert_eq!(now, format!("{text}# mine\n").replace("max_retries = 3", "max_retries = 9"));
    assert_eq!(project.pid("web"), pid);
    assert_eq!(project.regrow(&["service", "config", "web"]).stdout, now);
    // A change that would make the manifest faulty is not written.
    let faulty = project.regrow(&["service", "config", "web", "comand=x"]);
    assert_eq!(faulty.code, 3, "{}", faulty.stderr);
    assert!(faulty.stderr.contains("unknown key \"comand\""), "{}", faulty.stderr);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), now);
    let restarted = project.regrow(&["service", "config", "web", "env.MORE=1"]);
    assert_eq!(
        restarted.stdout,
        told("restarted").replace("web\nweb:", "web (env)\nweb:"),
        "{}",
        restarted.stderr
    );
    assert_ne!(project.pid("web"), pid);
    let list = project.regrow(&["service", "list"]);
    assert!(
        list.stdout.lines().any(|line| line.starts_with("web") && line.contains("running")),
        "{}",
        list.stdout
    );
    // The service outlives a death of the daemon.
    machine.kill_daemon();
    assert_eq!(project.status("web")["state"], "running");
    let removed = project.regrow(&["service", "remove", "web"]);
    assert_eq!(removed.stdout, "removed: web\nunchanged: 1\n", "{}", removed.stderr);
    assert!(!file.exists());
    assert_eq!(project.regrow(&["service", "remove", "web"]).code, 1);
}

#[test]
fn one_that_was_removed_and_made_again_is_found_again() {
    let mut machine =
        Machine::started(&[("a.toml", "[service.web]\ncommand = \"sleep 1000\"\nreplicas = 3\n")]);
    assert_eq!(machine.regrow(&["wait", "web", "--timeout", "20s"]).code, 0);
    machine.project.write("services/a.toml", "[service.web]\ncommand = \"sleep 1000\"\nreplicas = 2\n");
    assert_eq!(machine.regrow(&["reload"]).code, 0);
    let before = machine.all_pids();
    assert_eq!(before.len(), 2);
    machine.kill_both();
    machine.start();
    assert_eq!(machine.all_pids(), before);
    // A manifest that can't be read for a while ends no service.
    machine.project.write("services/a.toml", "[service.web");
    machine.kill_daemon();
    machine.project.write("services/a.toml", "[service.web]\ncommand = \"sleep 1000\"\nreplicas = 2\n");
    machine.kill_daemon();
    assert_eq!(machine.all_pids(), before);
    std::fs::rename(machine.project.file("services"), machine.project.file("away")).unwrap();
    assert_eq!(machine.regrow(&["reload"]).code, 3);
    machine.kill_daemon();
    std::fs::rename(machine.project.file("away"), machine.project.file("services")).unwrap();
    machine.kill_daemon();
    assert_eq!(machine.all_pids(), before);
}

/// Copies come and go by a reload, and the other copies are not touched; the copies of a stopped
/// service stay down.
#[test]
fn copies_come_and_go_and_the_others_live_on() {
    let manifest = |replicas: u32| {
        format!(
            "[service.web]\ncommand = \"sleep 1000\"\nreplicas = {replicas}\n\
             [service.api]\ncommand = \"sleep 1000\"\ndepends_on = [\"web\"]\n"
        )
    };
    let machine = Machine::started(&[("shop.toml", &manifest(2))]);
    assert_eq!(machine.regrow(&["wait", "api", "web", "--timeout", "20s"]).code, 0);
    let first = machine.all_pids();
    let to = |replicas: u32| {
        machine.project.write("services/shop.toml", manifest(replicas));
        let done = machine.regrow(&["reload"]);
        assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
        done.stdout
    };
    assert_eq!(to(4), "changed in place: web (replicas)\nunchanged: 1\n");
    let four = machine.all_pids();
    assert_eq!(four.len(), 5, "{four:?}");
    assert!(four.values().all(Option::is_some), "{four:?}");
    assert!(first.iter().all(|(name, pid)| four[name] == *pid), "{first:?} {four:?}");
    // The next daemon knows the copies that have come.
    machine.kill_daemon();
    assert_eq!(machine.all_pids(), four);
    assert_eq!(to(2), "changed in place: web (replicas)\nunchanged: 1\n");
    assert_eq!(machine.all_pids(), first);
    for name in ["web.3", "web.4"] {
        let pid = u32::try_from(four[name].unwrap()).unwrap();
        assert!(!is_alive(pid), "{name}");
    }
    machine.kill_daemon();
    assert_eq!(machine.all_pids(), first);
    // A single copy has another name; the service that depends on it runs on.
    assert_eq!(to(1), "restarted: web (replicas)\nunchanged: 1\n");
    let one = machine.all_pids();
    assert!(one.len() == 2 && one["web"].is_some() && one["api"] == first["api"], "{one:?}");
    // No copy of a service that was stopped by hand comes up, under this daemon or the next.
    assert_eq!(machine.regrow(&["stop", "api", "web"]).code, 0);
    to(3);
    let stopped = |machine: &Machine| {
        for name in ["web.1", "web.2", "web.3"] {
            let row = machine.project.status(name);
            assert_eq!((&row["state"], &row["goal"]), (&"stopped".into(), &"down".into()), "{row}");
        }
    };
    stopped(&machine);
    machine.kill_daemon();
    stopped(&machine);
    assert_eq!(machine.regrow(&["start", "web"]).code, 0);
    assert!(machine.all_pids().iter().all(|(name, pid)| pid.is_some() == (name != "api")));
}

/// A daemon that comes up after an edit adopts the running processes; a reload knows what they were
/// made with.
#[test]
fn another_daemon_compares_what_runs_with_the_manifests_too() {
    let manifest = |word: &str| {
        format!("[service.web]\ncommand = \"sleep {word}\"\n[service.db]\ncommand = \"sleep 1000\"\n")
    };
    let mut machine = Machine::started(&[("shop.toml", &manifest("1000"))]);
    assert_eq!(machine.regrow(&["wait", "web", "db", "--timeout", "20s"]).code, 0);
    let before = machine.all_pids();
    machine.project.write("services/shop.toml", manifest("1001"));
    machine.kill_daemon();
    assert_eq!(machine.all_pids(), before);
    assert_eq!(machine.regrow(&["reload"]).stdout, "restarted: web (manifest)\nunchanged: 1\n");
    let after = machine.all_pids();
    assert!(after["web"] != before["web"] && after["db"] == before["db"], "{before:?} {after:?}");
    assert_eq!(machine.regrow(&["reload"]).stdout, "nothing has changed\n");
    // A manifest that is faulty for a while costs nothing, whether a reload or a new daemon reads it.
    machine.project.write("services/shop.toml", "[service.web]\ncomand = \"x\"\n");
    let faulty = machine.regrow(&["reload"]);
    assert_eq!(faulty.code, 3);
    assert_eq!(faulty.stdout, "nothing has changed; a faulty manifest was left as it was\n");
    assert!(faulty.stderr.ends_with("its running services continue unchanged\n"), "{}", faulty.stderr);
    machine.kill_daemon();
    machine.project.write("services/shop.toml", manifest("1001"));
    let mended = machine.regrow(&["reload"]);
    assert_eq!(mended.code, 0, "{}{}", mended.stdout, mended.stderr);
    eventually_or(|| format!("{after:?} {:?}", machine.all_pids()), || machine.all_pids() == after);
    // The next daemon reads it again, whatever happened to keeper and daemon meanwhile.
    machine.kill_both();
    machine.start();
    assert_eq!(machine.all_pids(), after);
}

/// A manifest that can't be read changes the name of no other service.
#[test]
fn names_stay_while_another_file_cannot_be_read() {
    let dep = "[service.dep]\ncommand = \"sleep 1000\"\n";
    let mut machine = Machine::started(&[("shop.toml", dep), ("blog.toml", dep)]);
    assert_eq!(machine.regrow(&["wait", "shop/dep", "blog/dep", "--timeout", "20s"]).code, 0);
    let before = machine.all_pids();
    machine.project.write("services/shop.toml", "x = [");
    machine.kill_both();
    machine.start();
    // Services of an unreadable manifest are known by its last good text.
    assert_eq!(machine.all_pids(), before);
    machine.project.write("services/shop.toml", dep);
    assert_eq!(machine.regrow(&["reload"]).code, 0);
    assert_eq!(machine.all_pids(), before);
    // The service stays the same, whichever others have the name or had it.
    assert_eq!(machine.regrow(&["stop", "shop/dep"]).code, 0);
    machine.kill_daemon();
    std::fs::remove_file(machine.project.file("services/blog.toml")).unwrap();
    assert_eq!(machine.regrow(&["reload"]).code, 0);
    let row = machine.project.status("dep");
    assert_eq!((&row["state"], &row["goal"]), (&"stopped".into(), &"down".into()), "{row}");
}

/// A wait for a service that is slow to become ready holds up no other reload, and the later reload
/// wins.
#[test]
fn a_slow_start_holds_up_no_other_reload() {
    let machine = Machine::started(&[("a.toml", "[service.one]\ncommand = \"sleep 1000\"\n")]);
    let slow = "[service.slow]\ncommand = \"sleep 1000\"\nready = { after = \"10m\" }\n";
    machine.project.write("services/b.toml", slow);
    let first = machine.project.command(&["reload"]).stdout(Stdio::piped()).spawn().unwrap();
    eventually("it is under way", || {
        machine.project.json(&["status", "--json"])["services"].as_array().unwrap().len() == 2
    });
    machine.project.write("services/c.toml", "[service.two]\ncommand = \"sleep 1000\"\n");
    let second = machine.regrow(&["reload", "--timeout", "20s"]);
    assert_eq!((second.code, second.stdout.as_str()), (0, "added: two\nunchanged: 2\n"), "{}", second.stderr);
    std::fs::remove_file(machine.project.file("services/b.toml")).unwrap();
    let third = machine.regrow(&["reload", "--timeout", "20s"]);
    assert_eq!((third.code, third.stdout.as_str()), (0, "removed: slow\nunchanged: 2\n"), "{}", third.stderr);
    let output = first.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("added: slow\n"));
    machine.project.write("services/b.toml", slow);
    assert_eq!(machine.regrow(&["reload", "--timeout", "300ms"]).code, 5);
}

/// Files that somebody removes under a daemon come back, and the removal lets no second daemon in.
#[test]
fn what_is_removed_under_a_daemon_comes_back() {
    let mut machine = Machine::started(&[("a.toml", "[service.a]\ncommand = \"sleep 1000\"\n")]);
    let home = machine.project.state_dir().join("daemon");
    let (daemon, keeper) = machine.pids();
    std::fs::remove_file(home.join("control.sock")).unwrap();
    eventually("the socket is there again", || home.join("control.sock").exists());
    assert_eq!(machine.pids().0, daemon);
    for name in ["daemon.json", "control.sock"] {
        std::fs::remove_file(home.join(name)).unwrap();
    }
    let second = machine.regrow(&["daemon", "--config", "daemon.toml"]);
    assert_eq!(second.code, 1, "{}", second.stderr);
    assert!(second.stderr.contains("a daemon is already running"), "{}", second.stderr);
    eventually("its card is there again", || home.join("daemon.json").exists());
    let third = machine.regrow(&["daemon", "--config", "daemon.toml"]);
    assert!(third.stderr.contains(&format!("(pid {daemon})")), "{}", third.stderr);
    eventually("the socket is there again", || home.join("control.sock").exists());
    // A store that is removed is begun anew, with the current state of every instance.
    for name in ["regrow.db", "regrow.db-wal", "regrow.db-shm"] {
        std::fs::remove_file(home.join(name)).unwrap();
    }
    assert_eq!(machine.regrow(&["stop", "a"]).code, 0);
    machine.run.as_mut().unwrap().line("the store was removed and is begun anew");
    machine.kill_daemon();
    let row = machine.project.status("a");
    assert_eq!((&row["state"], &row["goal"]), (&"stopped".into(), &"down".into()), "{row}");
    std::fs::write(home.join("regrow.db"), "").unwrap();
    assert_eq!(machine.regrow(&["start", "a"]).code, 0);
    let pid = machine.project.pid("a");
    machine.kill_both();
    machine.start();
    assert_eq!(machine.project.pid("a"), pid);
    assert!(!is_alive(keeper));
    let cgroups = || {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let folder = PathBuf::from(format!("/sys/fs/cgroup{}", own.trim().rsplit(':').next().unwrap()));
        let all = std::fs::read_dir(folder).map(|all| all.flatten().collect::<Vec<_>>()).unwrap_or_default();
        all.iter().filter(|entry| entry.file_name().to_string_lossy().starts_with("regrowd-")).count()
    };
    let (daemon, _) = machine.pids();
    let before = cgroups();
    let down = machine.regrow(&["down"]);
    assert_eq!(down.code, 0);
    // When `down` returns, the daemon has ended.
    assert!(!is_alive(daemon));
    assert!(before == 0 || cgroups() < before, "its cgroup is gone");
    machine.start();
}
