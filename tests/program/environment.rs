//! Every start of a service reads its env files as they are then, whatever causes the start.

use crate::harness::{Project, end, eventually};
use crate::machine::Machine;

const SHOP: &str = "[project]\nenv_file = [\"../common.env\"]\n\
    [service.web]\nshell = \"echo got $WORD $COMMON; exec sleep 1000\"\nenv_file = [\"../web.env\"]\n\
    [service.arg]\ncommand = [\"sh\", \"-c\", \"echo got ${WORD}; exec sleep 1000\"]\n\
    env = { WORD = \"${COMMON:-none}!\" }\n";

fn says(project: &Project, service: &str, words: &str) {
    eventually(&format!("{service} says {words:?}"), || {
        project.regrow(&["logs", service]).stdout.lines().last().is_some_and(|line| line.ends_with(words))
    });
}

/// Starts by hand, after a crash, and after the daemon has died in between; in a command's words as
/// in variables.
#[test]
fn each_start_reads_the_env_files() {
    let mut machine =
        Machine::new(&[("shop.toml", SHOP), ("other.toml", "[service.apart]\ncommand = \"sleep 1000\"\n")]);
    machine.project.write("web.env", "WORD=1\n");
    machine.project.write("common.env", "COMMON=a\n");
    machine.start();
    let project = &machine.project;
    says(project, "web", "got 1 a");
    says(project, "arg", "got a!");
    project.write("web.env", "WORD=\"2 two\"\n");
    assert_eq!(project.regrow(&["restart", "web"]).code, 0);
    says(project, "web", "got 2 two a");
    project.write("common.env", "# other\nCOMMON=b\n");
    end(project.pid("arg"));
    says(project, "arg", "got b!");
    // A process that already runs with the current values is not replaced, whichever daemon compares.
    let before = machine.all_pids();
    machine.kill_daemon();
    let reloaded = project.regrow(&["reload"]);
    assert_eq!(reloaded.code, 0, "{}", reloaded.stderr);
    let now = machine.all_pids();
    assert_eq!((now["arg"], now["apart"]), (before["arg"], before["apart"]), "{}", reloaded.stdout);
    assert_ne!(now["web"], before["web"], "it still had the old one: {}", reloaded.stdout);
    // Where a value no longer comes from an env file, the manifest counts, even though the result is
    // the same.
    let before = project.pid("arg");
    project.write("services/shop.toml", SHOP.replace("${COMMON:-none}!", "b!"));
    let reloaded = project.regrow(&["reload"]);
    assert!(reloaded.stdout.contains("arg (env_file)"), "{}{}", reloaded.stdout, reloaded.stderr);
    assert_eq!(project.pid("arg"), before);
    project.write("common.env", "COMMON=c\n");
    assert_eq!(project.regrow(&["restart", "arg"]).code, 0);
    says(project, "arg", "got b!");
    project.write("common.env", "COMMON=b\n");
    // While the env file can't be read, a start says why, and comes back by itself.
    std::fs::remove_file(project.file("web.env")).unwrap();
    let restarted = project.regrow(&["restart", "web"]);
    assert_eq!(restarted.code, 1, "{}", restarted.stdout);
    let told = format!("{}{}", restarted.stdout, restarted.stderr);
    assert!(told.contains("web.env: No such file") && told.contains("shop.toml:5"), "{told}");
    project.write("web.env", "WORD=3\n");
    says(project, "web", "got 3 b");
    let events = project.regrow(&["events"]).stdout;
    assert!(events.contains("web: starts with the current contents of its env files"), "{events}");
}

/// An env file that is missing when a daemon starts ends nothing, and a service whose start waits
/// for the file keeps waiting.
#[test]
fn a_missing_env_file_ends_nothing_below_the_next_daemon() {
    let shop = "[project]\nenv_file = [\"../common.env\"]\n[service.plain]\ncommand = \"sleep 1000\"\n\
        [service.web]\ncommand = \"sh -c 'exec sleep ${TIME}'\"\n";
    let mut machine = Machine::new(&[("shop.toml", shop)]);
    machine.project.write("common.env", "TIME=1001\n");
    machine.start();
    let project = &machine.project;
    assert_eq!(project.regrow(&["wait", "plain", "web", "--timeout", "20s"]).code, 0);
    std::fs::remove_file(project.file("common.env")).unwrap();
    let before = machine.all_pids();
    for words in [&["reload"][..], &["upgrade"], &["reload"]] {
        project.regrow(words);
        assert_eq!(machine.all_pids(), before, "{words:?}");
        machine.kill_daemon();
        assert_eq!(machine.all_pids(), before, "{words:?}, killed");
    }
    end(u32::try_from(before["web"].unwrap()).unwrap());
    eventually("it waits for its env file", || project.status("web")["state"] == "crashed");
    machine.kill_daemon();
    eventually("and goes on waiting", || project.status("web")["state"] == "crashed");
    project.write("common.env", "TIME=1001\n");
    eventually("until it is there", || project.status("web")["state"] == "running");
    assert_eq!(project.status("plain")["pid"].as_u64(), before["plain"]);
}

#[test]
fn a_run_reads_them_at_each_start_too() {
    let project = Project::new(
        "[service.web]\nshell = \"echo got $WORD; exec sleep 1000\"\nenv_file = [\"web.env\"]\n",
    );
    project.write("web.env", "export WORD='one'\n");
    let mut run = project.run(&[]);
    run.line("got one");
    project.write("web.env", "WORD=two # 2\n");
    assert_eq!(project.regrow(&["restart", "web"]).code, 0);
    run.line("got two");
    run.stop();
}

/// A daemon that watches reacts to an env file as to a manifest; an edit that does not change the
/// values restarts nothing.
#[test]
fn a_watched_edit_restarts_nothing_if_it_means_the_same() {
    let mut machine = Machine::new(&[(
        "shop.toml",
        "[service.web]\ncommand = \"sleep 1000\"\nenv_file = [\"../web.env\"]\nenv = { A = \"1\", B = \"2\" }\nenv_deny = [\"X*\", \"Y*\"]\n",
    )]);
    machine.project.write("web.env", "WORD=1\nOTHER=2\n");
    machine.project.write("daemon.toml", "manifests = \"services\"\nwatch = true\n");
    machine.start();
    let project = &machine.project;
    let pid = project.pid("web");
    let run = machine.run.as_mut().unwrap();
    for (file, text) in [
        ("web.env", "# swapped\nOTHER='2'\n\nexport WORD=1\n"),
        (
            "services/shop.toml",
            "# swapped\n[service.web]\nenv_deny = [\"Y*\", \"X*\"]\nenv = { B = \"2\", A = \"1\" } # and\nenv_file = [\"../web.env\"]\ncommand = [\"sleep\", \"1000\"]\n",
        ),
    ] {
        project.write(file, text);
        run.next_line("reloaded: nothing has changed");
        assert_eq!(project.pid("web"), pid, "{file}");
    }
    project.write("web.env", "OTHER=2\nWORD=other\n");
    run.next_line("reloaded: restarted: web (env)");
    let now = project.pid("web");
    assert_ne!(now, pid);
    // Changes while no daemon watches are seen as well.
    let (daemon, _) = machine.pids();
    nix::sys::signal::kill(crate::harness::pid_of(daemon), nix::sys::signal::Signal::SIGSTOP).unwrap();
    machine.project.write("web.env", "OTHER=2\nWORD=third\n");
    end(daemon);
    machine.run.as_mut().unwrap().next_line("reloaded: restarted: web (");
    assert_ne!(machine.project.pid("web"), now);
}
