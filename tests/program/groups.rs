//! R15: group restart semantics, on real processes.

use super::harness::{Project, Run, end, eventually};
use crate::machine::Machine;

/// Three services that write down when they start and when they are asked to stop.
fn project(strategy: &str, more: &str) -> Project {
    let mut manifest = String::new();
    for name in ["a", "b", "c"] {
        manifest.push_str(&format!(
            "[service.{name}]\nshell = \"echo start {name} >> story; trap 'echo stop {name} >> story; exit 0' TERM; echo up; while :; do sleep 0.01; done\"\nrestart = {{ policy = \"on-failure\", backoff = {{ initial = \"10ms\" }} }}\n"
        ));
    }
    manifest.push_str(&format!(
        "[group.g]\nmembers = [\"a\", \"b\", \"c\"]\nstrategy = \"{strategy}\"\n{more}\n"
    ));
    Project::new(&manifest)
}

fn up(project: &Project) -> Run {
    let mut run = project.run(&[]);
    for name in ["a", "b", "c"] {
        run.line(&format!("{name}      | up"));
    }
    project.write("story", "");
    run
}

fn story(project: &Project) -> String {
    std::fs::read_to_string(project.file("story")).unwrap().trim().replace('\n', ", ")
}

#[test]
fn who_is_stopped_and_started_and_in_which_order() {
    for (strategy, fallen, want) in [
        ("one-for-one", "b", vec!["start b"]),
        ("one-for-all", "b", vec!["stop c", "stop a", "start a", "start b", "start c"]),
        ("rest-for-one", "b", vec!["stop c", "start b", "start c"]),
        ("rest-for-one", "c", vec!["start c"]),
    ] {
        let project = project(strategy, "");
        let run = up(&project);
        end(project.pid(fallen));
        eventually("all of the story", || {
            story(&project).split(", ").filter(|s| !s.is_empty()).count() >= want.len()
        });
        for name in ["a", "b", "c"] {
            assert_eq!(project.regrow(&["wait", name, "--timeout", "20s"]).code, 0);
        }
        let story = story(&project);
        // Stops come one after the other; starts are made in order but run at once.
        let (stops, starts): (Vec<&str>, Vec<&str>) = story.split(", ").partition(|s| s.starts_with("stop"));
        let (want_stops, mut want_starts): (Vec<&str>, Vec<&str>) =
            want.iter().partition(|s| s.starts_with("stop"));
        let mut starts = starts;
        starts.sort_unstable();
        want_starts.sort_unstable();
        assert_eq!(stops, want_stops, "{strategy} {fallen}: {story}");
        assert_eq!(starts, want_starts, "{strategy} {fallen}: {story}");
        let last_stop = story.rfind("stop").map_or(0, |at| at);
        assert!(story[..last_stop].find("start").is_none(), "all are down before one starts: {story}");
        run.stop();
    }
}

#[test]
fn one_group_restart_counts_once_and_more_than_n_gives_up() {
    let project = project("one-for-all", "intensity = 2\nperiod = \"1m\"");
    let mut run = up(&project);
    for _ in 0..2 {
        end(project.pid("a"));
        run.next_line("a      | up");
        for name in ["b", "c"] {
            assert_eq!(project.regrow(&["wait", name, "--timeout", "20s"]).code, 0);
        }
    }
    end(project.pid("a"));
    run.line("group g gave up after 3 crashes within 1m");
    for name in ["a", "b", "c"] {
        run.line(&format!("{name}      * failed: group g gave up"));
    }
    // Everything has failed: the run ends, and its exit code says so.
    assert_eq!(run.code(), 1);
    assert!(run.text().contains("3 services failed"), "{}", run.text());
}

#[test]
fn a_marked_group_is_started_by_hand() {
    let project = project("one-for-one", "intensity = 0");
    project.write(
        "regrow.toml",
        std::fs::read_to_string(project.file("regrow.toml")).unwrap()
            + "[service.idle]\ncommand = \"sleep 1000\"\n",
    );
    let mut run = up(&project);
    end(project.pid("b"));
    run.line("b      * failed: group g gave up");
    run.line("a      * failed: group g gave up");
    let groups = project.json(&["status", "--json"])["groups"].clone();
    assert_eq!(groups[0]["failed"], true);
    assert_eq!(project.regrow(&["start", "--group", "g"]).code, 0);
    let report = project.json(&["status", "--json"]);
    assert_eq!(report["groups"][0]["failed"], false);
    assert!(report["services"].as_array().unwrap().iter().all(|r| r["state"] == "running"));
    run.stop();
}

#[test]
fn giving_up_climbs_to_the_parent_and_to_the_exit() {
    let manifest = |outer: &str| {
        format!(
            r#"
[service.inner]
shell = "echo inner up; exec sleep 1000"
restart = {{ backoff = {{ initial = "10ms" }} }}
[service.sibling]
shell = "echo sibling up; exec sleep 1000"
[group.low]
members = ["inner"]
intensity = 0
on_give_up = "escalate"
[group.high]
members = ["sibling", "low"]
strategy = "one-for-all"
{outer}
"#
        )
    };
    let project = Project::new(&manifest(""));
    let mut run = project.run(&[]);
    run.line("inner   | inner up");
    run.line("sibling | sibling up");
    let sibling = project.pid("sibling");
    end(project.pid("inner"));
    run.line("group low gave up after 1 crash within");
    run.line("group high (one-for-all): low crashed, restarting sibling, low");
    run.next_line("inner   | inner up");
    assert_eq!(project.regrow(&["wait", "sibling", "inner", "--timeout", "20s"]).code, 0);
    assert_ne!(project.pid("sibling"), sibling, "the parent applied its own strategy");
    run.stop();

    let project = Project::new(&manifest("intensity = 0\non_give_up = \"exit\""));
    let mut run = project.run(&[]);
    run.line("inner   | inner up");
    run.line("sibling | sibling up");
    end(project.pid("inner"));
    assert_eq!(run.code(), 1, "{}", run.text());
    assert!(run.text().contains("group high gave up"), "{}", run.text());
}

#[test]
fn a_group_leaves_members_alone_that_are_meant_to_stay_down() {
    let project = Project::new(
        r#"
[service.a]
shell = "echo up; exec sleep 1000"
restart = { backoff = { initial = "10ms" } }
[service.hand]
command = "sleep 1000"
[service.never]
shell = "exec sleep 1000"
restart = "never"
[service.task]
shell = "true"
kind = "task"
[group.g]
members = ["a", "hand", "never", "task"]
strategy = "one-for-all"
"#,
    );
    let mut run = project.run(&[]);
    run.line("all 4 are up");
    run.line("a      | up");
    assert_eq!(project.regrow(&["stop", "hand"]).code, 0);
    end(project.pid("a"));
    run.next_line("a      | up");
    let state = |name: &str| project.status(name)["state"].as_str().unwrap().to_owned();
    assert_eq!([state("hand"), state("never"), state("task")], ["stopped", "stopped", "completed"]);
    run.stop();
}

/// A member that is restarted by hand while its group stops it does not keep the group from
/// starting the one that crashed.
#[test]
fn a_restart_by_hand_during_a_group_restart_wedges_nobody() {
    let project = Project::new(
        r#"
[service.k]
shell = "echo k up; exec sleep 1000"
restart = { backoff = { initial = "10ms" } }
[service.slow]
shell = "trap 'echo slow asked; sleep 0.5; exit 0' TERM; echo slow up; while :; do sleep 0.05; done"
[group.g]
members = ["k", "slow"]
strategy = "one-for-all"
"#,
    );
    let mut run = project.run(&[]);
    run.line("k      | k up");
    run.line("slow   | slow up");
    end(project.pid("k"));
    run.line("slow   | slow asked");
    assert_eq!(project.regrow(&["restart", "slow"]).code, 0);
    run.next_line("k      | k up");
    run.stop();
}

/// In a daemon `on_give_up = "exit"` takes down only the project of the group, dependents first.
/// The daemon ends, as a failure, when no project is left.
#[test]
fn a_project_gives_up_alone_and_the_daemon_ends_with_the_last() {
    let gives_up = |on: &str| {
        format!(
            "[service.db]\ncommand = \"sleep 1000\"\n\
             [service.web]\nshell = \"until test -e go; do sleep 0.01; done; exit 1\"\ndepends_on = [\"db\"]\n\
             restart = {{ backoff = {{ initial = \"1ms\" }} }}\n{on}"
        )
    };
    // The project gives up by a group of its own, or by its root, which has no parent to escalate to.
    let group = gives_up("[group.front]\nmembers = [\"web\"]\nintensity = 1\non_give_up = \"exit\"\n");
    let root = gives_up("[project]\nintensity = 0\non_give_up = \"escalate\"\n")
        .replace("test -e go", "test -e go2");
    let mut machine = Machine::started(&[("shop.toml", &group), ("blog.toml", &root)]);
    let project = &machine.project;
    assert_eq!(project.regrow(&["wait", "shop/web", "blog/web", "--timeout", "20s"]).code, 0);
    let blog = project.status("blog/web")["pid"].clone();
    project.write("services/go", "");
    for name in ["shop/web", "shop/db"] {
        eventually(&format!("{name} is failed"), || project.status(name)["state"] == "failed");
    }
    let why = project.regrow(&["why", "shop/db"]).stdout;
    assert!(why.contains("its project gave up"), "{why}");
    assert_eq!(project.status("blog/web")["pid"], blog);
    machine.run.as_mut().unwrap().line("project shop goes down: group shop/front gave up");
    // It stays down over a death of the daemon; a start by hand brings it back, and clears the failure.
    machine.kill_daemon();
    assert_eq!(project.status("shop/db")["state"], "failed");
    assert_eq!(project.regrow(&["start", "shop/db"]).code, 0);
    std::fs::remove_file(project.file("services/go")).unwrap();
    assert_eq!(project.regrow(&["start", "shop/web"]).code, 0);
    project.write("services/go", "");
    eventually("it has given up again", || project.status("shop/db")["state"] == "failed");
    // The other project gives up too, so none is left.
    machine.kill_daemon();
    project.write("services/go2", "");
    let mut run = machine.run.take().unwrap();
    assert_eq!(run.code(), 1, "{}", run.text());
    assert!(run.text().contains("going down: every project has given up"), "{}", run.text());
    assert!(run.text().contains("project blog goes down: it gave up"), "{}", run.text());
    project.assert_nothing_left();
    // The next daemon starts anew.
    for name in ["services/go", "services/go2"] {
        std::fs::remove_file(project.file(name)).unwrap();
    }
    machine.start();
    assert_eq!(machine.regrow(&["wait", "shop/web", "blog/web", "--timeout", "20s"]).code, 0);
    // Nothing from before counts any more, also under the next daemon.
    machine.kill_daemon();
    let project = &machine.project;
    project.write("services/go2", "");
    eventually("blog has given up", || project.status("blog/db")["state"] == "failed");
    assert_eq!(project.status("shop/db")["state"], "running");
}
