//! `log`: which files output is kept in, and that all of it is there.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::harness::{Project, eventually};
use crate::machine::Machine;

/// The contents of a log file and of its rotated files, oldest first.
fn all_of(file: &Path) -> String {
    let numbered = |number: u32, suffix: &str| PathBuf::from(format!("{}.{number}{suffix}", file.display()));
    let mut text = String::new();
    for number in (1..1_000).rev() {
        if let Ok(file) = std::fs::File::open(numbered(number, "")) {
            std::io::BufReader::new(file).read_to_string(&mut text).unwrap();
        } else if let Ok(file) = std::fs::File::open(numbered(number, ".gz")) {
            flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
        }
    }
    std::fs::File::open(file).unwrap().read_to_string(&mut text).unwrap();
    text
}

fn assert_counts(file: &Path, to: usize) {
    let text = all_of(file);
    for (want, line) in text.lines().enumerate() {
        assert_eq!(line.parse(), Ok(want + 1), "{} after {want} lines", file.display());
    }
    assert_eq!(text.lines().count(), to, "{}", file.display());
}

#[test]
fn l2_a_million_lines_at_64_kib() {
    for log in [
        "{ max_size = \"64KiB\", max_files = 500 }",
        "{ max_size = \"64KiB\", max_files = 500, compress = true }",
        "{ file = \"out/web.log\", max_size = \"64KiB\", max_files = 500, compress = true }",
    ] {
        let shop = format!(
            "[service.web]\ncommand = \"seq 1000000\"\nrestart = \"never\"\nkind = \"task\"\nlog = {log}\n"
        );
        let machine = Machine::started(&[("shop.toml", &shop)]);
        let output = machine.regrow(&["wait", "web", "--for", "completed", "--timeout", "60s"]);
        assert_eq!(output.code, 0, "{log}: {}", output.stderr);
        let file = match log.contains("file = ") {
            true => machine.project.file("services/out/web.log"),
            false => machine.log("shop/web.stdout.log"),
        };
        let aside = (1..500).filter(|number| {
            let plain = format!("{}.{number}", file.display());
            Path::new(&plain).exists() || Path::new(&format!("{plain}.gz")).exists()
        });
        let count = aside.count();
        assert!((104..=106).contains(&count), "{log}: {count} files of 64 KiB");
        assert_counts(&file, 1_000_000);
        if log.contains("compress") {
            let plain = |number: u32| Path::new(&format!("{}.{number}", file.display())).exists();
            eventually("all that was put aside is compressed", || !(1..500).any(plain));
            assert_counts(&file, 1_000_000);
            // `logs` reads the compressed files.
            let logs = machine.regrow(&["logs", "web", "-n", "100000"]);
            assert!(logs.stdout.starts_with("web | 900001\n"), "{}", &logs.stdout[..60]);
            assert_eq!(logs.stdout.lines().count(), 100_000);
        }
    }
}

#[test]
fn a_run_keeps_what_its_manifest_says_in_a_file_per_copy() {
    let project = Project::new(
        "[service.web]\nshell = \"echo out; echo err >&2; echo up; exec sleep 1000\"\nreplicas = 2\n\
         ready = { log = \"up\" }\nenv = { WHERE = \"logs\" }\nlog = { file = \"${WHERE}/web.log\" }\n\
         [service.other]\nshell = \"echo other; exec sleep 1000\"\nready = { log = \"other\" }\nlog = {}\n\
         [service.none]\nshell = \"echo none; exec sleep 1000\"\nready = { log = \"none\" }\n",
    );
    let mut run = project.run(&[]);
    run.line("all 4 are up");
    eventually("all is up", || project.regrow(&["wait", "web", "other", "none"]).code == 0);
    for n in [1, 2] {
        let text = std::fs::read_to_string(project.file(&format!("logs/web.{n}.log"))).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["err", "out", "up"]);
    }
    let mut kept: Vec<String> = Vec::new();
    for run in std::fs::read_dir(project.state_dir().join("run")).unwrap() {
        let logs = std::fs::read_dir(run.unwrap().path().join("logs")).unwrap();
        kept.extend(logs.map(|file| file.unwrap().file_name().into_string().unwrap()));
    }
    kept.sort();
    let of_other = ["other.stderr.idx", "other.stderr.log", "other.stdout.idx", "other.stdout.log"];
    assert_eq!(kept[..4], of_other);
    // The other files have an index each, named after the file.
    assert_eq!(kept.len(), 6, "{kept:?}");
    assert!(kept[4].starts_with("web.1.") && kept[5].starts_with("web.2."), "{kept:?}");
    let logs = project.regrow(&["logs", "web.1"]);
    let mut lines: Vec<&str> = logs.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["web.1 ! err", "web.1 | out", "web.1 | up"]);
    run.stop();
}

#[test]
fn log_files_change_while_a_service_runs() {
    let shop = |log: &str| {
        format!(
            "[service.web]\nshell = \"echo up; while read n; do echo $n; done < go\"\nready = {{ log = \"up\" }}\n{log}\n"
        )
    };
    let machine = Machine::new(&[("shop.toml", &shop(""))]);
    let go = machine.project.file("services/go");
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut machine = machine;
    machine.start();
    let mut go = std::fs::File::options().read(true).write(true).open(&go).unwrap();
    let mut say = |text: &str| std::io::Write::write_all(&mut go, format!("{text}\n").as_bytes()).unwrap();
    assert_eq!(machine.regrow(&["wait", "web"]).code, 0);
    let pid = machine.project.pid("web");
    let holds = |path: &Path, text: &str| {
        eventually(&format!("{} holds {text:?}", path.display()), || {
            std::fs::read_to_string(path).is_ok_and(|held| held == text)
        });
    };
    let streams = machine.log("shop/web.stdout.log");
    say("one");
    holds(&streams, "up\none\n");
    let reload = |log: &str, want: &str| {
        machine.project.write("services/shop.toml", shop(log));
        let output = machine.regrow(&["reload"]);
        assert_eq!((output.code, output.stdout.trim_end()), (0, want), "{}", output.stderr);
    };
    reload("log = { file = \"web.log\", max_files = 2 }", "changed in place: web (log)");
    say("two");
    let own = machine.project.file("services/web.log");
    holds(&own, "two\n");
    // A smaller limit takes effect at the next line, which rotates the file.
    reload("log = { file = \"web.log\", max_files = 2, max_size = 8 }", "changed in place: web (log)");
    say("three");
    holds(&own, "two\nthree\n");
    say("four");
    holds(&machine.project.file("services/web.log.1"), "two\nthree\n");
    holds(&own, "four\n");
    // The next daemon goes on in the same file, and the keeper does so in between.
    machine.kill_daemon();
    say("five");
    holds(&own, "four\nfive\n");
    // Where the file can't be opened, output stays where it was, and that is reported.
    reload("log = { file = \"/proc/web.log\" }", "changed in place: web (log)");
    say("six");
    holds(&machine.project.file("services/web.log.1"), "four\nfive\n");
    holds(&own, "six\n");
    assert_eq!(machine.regrow(&["logs", "web", "-n", "2"]).stdout, "web | five\nweb | six\n");
    let events = machine.regrow(&["events"]);
    assert!(events.stdout.contains("/proc/web.log: ") && events.stdout.contains("goes where it went before"));
    reload("", "changed in place: web (log)");
    say("seven");
    holds(&streams, "up\none\nseven\n");
    assert_eq!(machine.project.pid("web"), pid, "it is the same process");
}

/// A hook runs under the name of its service, and leaves the service's files alone.
#[test]
fn a_hook_that_ends_closes_no_file_of_its_service() {
    let mut machine = Machine::new(&[(
        "shop.toml",
        "[service.web]\nshell = \"echo up; while read n; do echo $n; done < go\"\nready = { log = \"up\" }\n\
         on = { ready = [\"sh\", \"-c\", \"echo hook; echo done > hooked\"] }\n\
         stop = { command = [\"echo\", \"asked\"] }\n",
    )]);
    let go = machine.project.file("services/go");
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
    machine.start();
    let mut go = std::fs::File::options().read(true).write(true).open(&go).unwrap();
    assert_eq!(machine.regrow(&["wait", "web"]).code, 0);
    eventually("the hook has run", || machine.project.file("services/hooked").exists());
    let file = machine.log("shop/web.stdout.log");
    let mut n = 0;
    // The hook has surely ended, and its output is reported.
    eventually("the hook's words are there", || {
        n += 1;
        std::io::Write::write_all(&mut go, format!("{n}\n").as_bytes()).unwrap();
        n > 20 && std::fs::read_to_string(&file).is_ok_and(|text| text.contains("hook"))
    });
    let want: Vec<String> = (1..=n).map(|n| n.to_string()).collect();
    let numbers = || -> Vec<String> {
        let text = std::fs::read_to_string(&file).unwrap();
        text.lines().filter(|line| line.bytes().all(|b| b.is_ascii_digit())).map(str::to_owned).collect()
    };
    eventually("all that it printed is there", || numbers() == want);
    assert_eq!(machine.regrow(&["stop", "web"]).code, 0);
    assert!(std::fs::read_to_string(&file).unwrap().ends_with("asked\n"));
}

#[test]
fn log_files_that_are_taken_or_have_other_names_are_refused() {
    let service = |name: &str, file: &str| {
        format!("[service.{name}]\ncommand = \"sleep 1000\"\nlog = {{ file = \"{file}\" }}\n")
    };
    let manifests = [
        ("a.toml", service("one", "web.log")),
        ("b.toml", service("two", "web.log")),
        ("c.toml", service("aside", "web.log.1")),
        ("d.toml", service("link", "link.log")),
        ("e.toml", service("hard", "hard.log")),
    ];
    let mut machine = Machine::new(&manifests.each_ref().map(|(name, text)| (*name, text.as_str())));
    let victim = machine.project.file("victim");
    std::fs::write(&victim, "precious").unwrap();
    std::os::unix::fs::symlink(&victim, machine.project.file("services/link.log")).unwrap();
    std::fs::hard_link(&victim, machine.project.file("services/hard.log")).unwrap();
    machine.start();
    let told = |text: &str| {
        let events = machine.regrow(&["events"]).stdout;
        events.lines().filter(|line| line.contains("its output goes to ") && line.contains(text)).count()
    };
    eventually("two of three", || told("another service's output goes there") >= 1);
    eventually("the link", || told("link.log: it is a symbolic link") == 1);
    eventually("the other name", || told("hard.log: it has another name as well") == 1);
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn both_streams_in_one_file_survive_deaths_of_the_daemon() {
    let shop = "[service.web]\nshell = \"i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo $i; i=$((i+1)); echo $i >&2; sleep 0.001; done\"\n\
                restart = \"never\"\nkind = \"task\"\nlog = { file = \"web.log\", max_size = \"1KiB\", max_files = 900, compress = true }\n";
    let machine = Machine::started(&[("shop.toml", shop)]);
    let mut rounds = 0;
    while machine.project.status("web")["state"] != "completed" {
        machine.kill_daemon();
        rounds += 1;
    }
    assert!(rounds > 3, "{rounds}");
    // The two streams are two pipes: each is in order, whatever lies between its lines.
    let text = all_of(&machine.project.file("services/web.log"));
    let numbers: Vec<usize> = text.lines().map(|line| line.parse().unwrap()).collect();
    for odd in [0, 1] {
        let of: Vec<usize> = numbers.iter().copied().filter(|n| n % 2 == odd).collect();
        let want: Vec<usize> = (1..=2000).filter(|n| n % 2 == odd).collect();
        assert_eq!(of, want);
    }
}

/// L6: a path that can't be a log file is reported by `check` where that can be seen, and costs no
/// line.
#[test]
fn l6_an_unusable_log_file_is_told_and_the_default_is_used() {
    let service = |name: &str, file: &str| {
        format!(
            "[service.{name}]\nshell = \"echo words of {name}; exec sleep 1000\"\nlog = {{ file = \"{file}\" }}\n"
        )
    };
    let shop = [
        service("folder", "taken"),
        service("fifo", "pipe"),
        service("device", "/dev/stderr"),
        service("linked", "link"),
        service("below", "plain/web.log"),
        service("fine", "fine.log"),
    ];
    let mut machine = Machine::new(&[("shop.toml", &shop.concat())]);
    let project = &machine.project;
    std::fs::create_dir(project.file("services/taken")).unwrap();
    nix::unistd::mkfifo(&project.file("services/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("elsewhere", project.file("services/link")).unwrap();
    project.write("services/plain", "");
    let check = project.regrow(&["check", "services/shop.toml"]);
    assert_eq!(check.code, 0, "{}", check.stderr);
    for words in [
        "taken can't be a log file: it is a folder",
        "it is a pipe",
        "it is a device",
        "a symbolic link",
        "plain is not a folder",
    ] {
        assert!(check.stderr.contains(words), "{words}: {}", check.stderr);
    }
    assert!(
        check.stderr.contains("file = \"inherit\"") && !check.stderr.contains("fine.log"),
        "{}",
        check.stderr
    );
    machine.start();
    let project = &machine.project;
    for name in ["folder", "fifo", "device", "linked", "below", "fine"] {
        assert_eq!(project.regrow(&["wait", name, "--timeout", "20s"]).code, 0);
        eventually("its words are there", || {
            project.regrow(&["logs", name]).stdout == format!("{name} | words of {name}\n")
        });
    }
    let status = project.regrow(&["status"]).stdout;
    for name in ["folder", "fifo", "device", "linked", "below"] {
        let file = machine.log(&format!("shop/{name}.stdout.log"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("words of {name}\n"));
        let told = format!("its output goes to {}: ", file.display());
        assert!(status.lines().any(|line| line.starts_with(name) && line.contains(&told)), "{status}");
        assert!(project.regrow(&["why", name]).stdout.contains(&told));
        assert!(project.status(name)["output"].as_str().unwrap().starts_with(&told));
    }
    assert!(!machine.log("shop/fine.stdout.log").exists());
    // The same holds after a death of the daemon, and ends when the path can be used.
    machine.kill_daemon();
    assert!(project.status("folder")["output"].is_string());
    eventually("and what it said is shown", || {
        project.regrow(&["logs", "folder"]).stdout == "folder | words of folder\n"
    });
    std::fs::remove_dir(project.file("services/taken")).unwrap();
    assert_eq!(project.regrow(&["restart", "folder"]).code, 0);
    assert!(project.status("folder")["output"].is_null());
    eventually("it is used", || project.file("services/taken").is_file());
}

/// The owner and the readers of a log file and of its rotated files.
#[test]
fn a_log_file_belongs_to_whom_the_manifest_says() {
    use std::os::unix::fs::MetadataExt;
    if !nix::unistd::geteuid().is_root() {
        return crate::harness::skip(
            "a_log_file_belongs_to_whom_the_manifest_says",
            "only root gives files away",
        );
    }
    let shop = "[service.web]\nshell = \"seq 500; exec sleep 1000\"\n\
        log = { file = \"out/web.log\", owner = \"nobody:4242\", mode = \"640\", max_size = \"1KiB\" }\n\
        [service.own]\nshell = \"echo own; exec sleep 1000\"\nlog = { mode = 0o644 }\n\
        [service.lost]\nshell = \"echo lost; exec sleep 1000\"\nlog = { file = \"lost.log\", owner = \"nosuchuser\" }\n";
    let machine = Machine::started(&[("shop.toml", shop)]);
    let project = &machine.project;
    let is = |path: &str| {
        let at = std::fs::metadata(project.file(path)).unwrap();
        (at.uid(), at.gid(), at.mode() & 0o777)
    };
    eventually("some are put aside", || project.file("services/out/web.log.1").exists());
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap().uid.as_raw();
    assert_eq!(is("services/out/web.log"), (nobody, 4242, 0o640));
    assert_eq!(is("services/out/web.log.1"), (nobody, 4242, 0o640));
    assert_eq!(is("services/out"), (0, 4242, 0o750));
    let own = std::fs::metadata(machine.log("shop/own.stdout.log")).unwrap();
    assert_eq!(own.mode() & 0o777, 0o644);
    let lost = project.status("lost")["output"].as_str().unwrap().to_owned();
    assert!(
        lost.contains("shop/lost.stdout.log: ") && lost.contains("there is no user \"nosuchuser\""),
        "{lost}"
    );
    // The owner is changed while the service runs.
    project.write(
        "services/shop.toml",
        shop.replace("mode = \"640\"", "mode = \"600\"").replace("4242", "4343"),
    );
    assert_eq!(project.regrow(&["reload"]).code, 0);
    eventually("it belongs to another", || is("services/out/web.log") == (nobody, 4343, 0o600));
    for (text, words) in [("mode = \"755\"", "nobody execute"), ("owner = \"a b\"", "is not a valid owner")] {
        project.write("bad.toml", format!("[service.a]\ncommand = \"true\"\nlog = {{ {text} }}\n"));
        let check = project.regrow(&["check", "bad.toml"]);
        assert!(check.code == 3 && check.stderr.contains(words), "{}", check.stderr);
    }
}

/// `inherit`: both streams appear unchanged on the daemon's own, in addition to `logs`, also after
/// a death of the daemon.
#[test]
fn what_is_inherited_is_printed_by_the_daemon() {
    let shop = "[service.web]\nshell = \"echo '{\\\"level\\\": 1}'; echo oh >&2; read x < go; echo later; exec sleep 1000\"\nlog = { file = \"inherit\" }\n\
        [service.quiet]\nshell = \"echo quiet; exec sleep 1000\"\n";
    let mut machine = Machine::new(&[("shop.toml", shop)]);
    nix::unistd::mkfifo(&machine.project.file("services/go"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    machine.start();
    let mut run = machine.run.take().unwrap();
    assert_eq!(run.line("level"), "{\"level\": 1}");
    assert_eq!(run.line("oh"), "oh");
    let project = &machine.project;
    eventually("logs has it", || project.regrow(&["logs", "web"]).stdout.lines().count() == 2);
    assert!(!machine.log("shop/web.stdout.log").exists() && machine.log("shop/quiet.stdout.log").exists());
    machine.kill_daemon();
    std::fs::write(project.file("services/go"), "\n").unwrap();
    assert_eq!(run.line("later"), "later");
    machine.run = Some(run);
    machine.down();
}

/// The daemon's own log is rotated when it is full, and reopened when another program has rotated
/// it.
#[test]
fn the_log_of_a_detached_daemon_is_rotated_and_opened_again() {
    let mut machine = Machine::new(&[("shop.toml", "[service.web]\ncommand = \"sleep 1000\"\n")]);
    machine
        .project
        .write("daemon.toml", "manifests = \"services\"\n[logs]\nmax_size = \"2KiB\"\nmax_files = 3\n");
    assert_eq!(machine.regrow(&["daemon", "--detach", "--config", "daemon.toml"]).code, 0);
    let log = machine.project.state_dir().join("daemon/daemon.log");
    let aside = |number: u32| log.with_extension(format!("log.{number}"));
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let reload = || {
        assert_eq!(machine.regrow(&["service", "config", "web", "tags=[\"a\"]"]).code, 0);
        assert_eq!(machine.regrow(&["service", "config", "web", "tags=[\"b\"]"]).code, 0);
    };
    while read(&log).len() < 2048 {
        reload();
    }
    let before = read(&log);
    eventually("it is put aside", || read(&aside(1)).starts_with(&before));
    // The next daemon inherits the descriptor that its keeper was started with, and finds the right
    // file.
    machine.kill_daemon();
    reload();
    eventually("it goes on in the new one", || {
        read(&log).contains("reloaded") || read(&log).contains("changed")
    });
    assert!(!read(&aside(1)).contains("tags=") && read(&aside(1)).ends_with('\n'));
    std::fs::rename(&log, machine.project.file("taken")).unwrap();
    eventually("it is opened again", || log.exists());
    let len = read(&machine.project.file("taken")).len();
    reload();
    eventually("and goes on there", || !read(&log).is_empty());
    assert_eq!(read(&machine.project.file("taken")).len(), len);
    // The log of an earlier daemon is still there.
    assert_eq!(machine.regrow(&["down"]).code, 0);
    let last = read(&log);
    assert_eq!(machine.regrow(&["daemon", "--detach", "--config", "daemon.toml"]).code, 0);
    assert_eq!(read(&aside(1)), last);
    machine.down();
}
