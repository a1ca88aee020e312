//! Disks that fail or do not answer: services that have nothing to do with them are not touched.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::harness::{Run, end, eventually, eventually_or, is_alive, skip};
use crate::machine::Machine;

/// A small ext4 in a file, which turns read-only when it has an error.
pub(crate) struct Disk(PathBuf);

impl Disk {
    /// Makes a disk at a machine's `frozen`, with a folder for logs; where every test is required it
    /// must be possible.
    fn of(machine: &Machine, test: &str) -> Option<(Disk, PathBuf)> {
        let (image, folder) = (machine.project.file("image"), machine.project.file("frozen"));
        let Some(disk) = Disk::mounted_at(&image, &folder) else {
            skip(test, "nothing can be mounted here");
            return None;
        };
        std::fs::create_dir(folder.join("logs")).unwrap();
        Some((disk, folder))
    }

    pub(crate) fn mounted_at(image: &Path, folder: &Path) -> Option<Disk> {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::File::create(image).unwrap().set_len(8 << 20).unwrap();
        let run = |program: &str, words: &[&str], last: &Path| {
            let done = std::process::Command::new(program).args(words).arg(last).output();
            done.is_ok_and(|output| output.status.success())
        };
        let image = image.to_str().unwrap();
        let made = run("mkfs.ext4", &["-q", "-F"], image.as_ref())
            && run("mount", &["-o", "loop,errors=remount-ro", image], folder);
        made.then(|| Disk(folder.to_owned()))
    }

    pub(crate) fn fail(&self) {
        // The kernel does the same on an error of the journal (ext4(5), "abort").
        let done = std::process::Command::new("mount").args(["-o", "remount,abort"]).arg(&self.0).output();
        assert!(std::fs::write(self.0.join("probe"), "x").is_err(), "{done:?}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A disk that can't be written until this is dropped.
struct Frozen<'a>(&'a Path);

impl<'a> Frozen<'a> {
    fn of(folder: &'a Path) -> Frozen<'a> {
        assert!(Frozen::turn("-f", folder), "fsfreeze freezes {}", folder.display());
        Frozen(folder)
    }

    fn turn(how: &str, folder: &Path) -> bool {
        let done = std::process::Command::new("fsfreeze").arg(how).arg(folder).status();
        done.is_ok_and(|status| status.success())
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let thawed = Frozen::turn("-u", self.0);
        assert!(thawed || std::thread::panicking(), "{} is thawed again", self.0.display());
    }
}

/// P18: a process that is stuck in the kernel is named, and "everything is down" is not said; after
/// the thaw of its disk the service and its dependents come up.
#[test]
fn p18_what_is_stuck_in_the_kernel_is_named_and_recovers() {
    const TEST: &str = "p18_what_is_stuck_in_the_kernel_is_named_and_recovers";
    let mut machine = Machine::new(&[(
        "a.toml",
        "[service.writes]\nshell = \"while :; do echo x >> frozen/file; sleep 0.02; done\"\ndir = \"..\"\nstop = { timeout = \"1s\" }\n\
         [service.needs]\ncommand = \"sleep 1000\"\ndepends_on = [\"writes\"]\n",
    )]);
    let Some((disk, folder)) = Disk::of(&machine, TEST) else {
        return;
    };
    machine.start();
    eventually("it writes", || folder.join("file").exists());
    let pid = machine.project.pid("writes");
    let frozen = Frozen::of(&folder);
    eventually("it is stuck", || {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") D "))
    });
    let down = machine.regrow(&["down"]);
    let code = machine.run.take().unwrap().code();
    machine.start();
    drop(frozen);
    assert_eq!(down.code, 1, "{}", down.stdout);
    assert!(down.stderr.contains(&format!("writes (pid {pid}) is stuck in the kernel")), "{}", down.stderr);
    assert!(!down.stdout.contains("everything is down"), "{}", down.stdout);
    assert_eq!(code, 1);
    eventually("both come up", || {
        ["writes", "needs"].iter().all(|name| machine.project.status(name)["state"] == "running")
    });
    machine.down();
    drop(disk);
}

/// A service that prints numbers to a file of its own on the disk.
fn counter(name: &str, place: &str) -> String {
    format!(
        "[service.{name}]\nshell = \"i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done\"\n\
         log = {{ file = \"{place}/{name}.log\" }}\n"
    )
}

/// Services that print to a disk at `frozen`, and others that do not.
fn manifest(folder: &Path) -> String {
    let counters = ["one", "two", "three"].map(|name| counter(name, folder.to_str().unwrap()));
    counters.concat()
        + "[service.other]\ncommand = \"sleep 1000\"\n\
           [service.deaf]\nshell = \"trap '' TERM; while :; do sleep 0.05; done\"\nstop = { timeout = \"300ms\" }\n"
}

/// The number of threads of a process that are blocked in the kernel.
fn standing_still(pid: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stands = |task: std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("stat")).is_ok_and(|stat| stat.contains(") D "))
    };
    tasks.filter_map(|task| stands(task).then_some(())).count()
}

/// The CPU time that a process has used, in hundredths of a second.
fn ticks_of(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Waits until a thread is blocked for longer than a disk takes that is only busy.
fn wait_until_one_stands_still(pid: u32) {
    let mut since = None;
    eventually("somebody stands still over it", || {
        match standing_still(pid) {
            0 => since = None,
            _ => drop(since.get_or_insert_with(Instant::now)),
        }
        since.is_some_and(|since: Instant| since.elapsed() > Duration::from_millis(200))
    });
}

/// Asserts that all numbers were printed to these files, one after the other; a new process begins
/// with 1 again.
fn assert_none_is_missing(files: &[PathBuf]) {
    let text: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap_or_default()).collect();
    let numbers: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert!(numbers.len() > 20, "{files:?}: {numbers:?}");
    for pair in numbers.windows(2) {
        assert!(pair[1] == pair[0] + 1 || pair[1] == 1, "{files:?}: {pair:?}");
    }
}

/// The numbers that the first process has printed to a file.
fn first_life(file: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(file).unwrap();
    let numbers: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
    let end = numbers.windows(2).position(|pair| pair[1] <= pair[0]).map_or(numbers.len(), |at| at + 1);
    numbers[..end].to_vec()
}

/// L6: log files on a disk that does not answer hold up no reaping, no deadline, no command and no
/// output of other services. Their own output goes elsewhere, which is reported; after the thaw
/// none of it is missing.
#[test]
fn l6_log_files_on_a_hung_disk_hold_up_nobody_else() {
    on_a_hung_disk("l6_log_files_on_a_hung_disk_hold_up_nobody_else", Dies::Daemon);
}

#[test]
fn l6_nor_do_they_when_the_keeper_dies() {
    on_a_hung_disk("l6_nor_do_they_when_the_keeper_dies", Dies::Keeper);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dies {
    Daemon,
    Keeper,
}

fn on_a_hung_disk(test: &str, dies: Dies) {
    let mut machine = Machine::new(&[]);
    let Some((disk, folder)) = Disk::of(&machine, test) else {
        return;
    };
    let folder_of_logs = folder.join("logs");
    machine.project.write("services/a.toml", manifest(&folder_of_logs));
    machine.start();
    let names = ["one", "two", "three"];
    let own = |name: &str| folder_of_logs.join(format!("{name}.log"));
    let file_of = |name: &str| machine.log(&format!("a/{name}.stdout.log"));
    let project = &machine.project;
    eventually("all print", || names.iter().all(|name| own(name).metadata().is_ok_and(|at| at.len() > 0)));
    let daemon = machine.pids().0;
    let frozen = Frozen::of(&folder);
    wait_until_one_stands_still(daemon);
    // Deaths, deadlines and commands of the other services work.
    let before = project.pid("other");
    end(before);
    eventually("it grows back", || {
        project.status("other")["pid"].as_u64().is_some_and(|pid| pid != u64::from(before))
    });
    for words in [&["stop", "deaf"][..], &["start", "deaf"], &["restart", "other"], &["exec", "--", "true"]] {
        let done = project.regrow(words);
        assert_eq!(done.code, 0, "{words:?}: {}{}", done.stdout, done.stderr);
    }
    // Their own output goes elsewhere, which is reported.
    for name in names {
        eventually_or(
            || format!("{name} prints to another file: {}", project.status(name)),
            || file_of(name).metadata().is_ok_and(|at| at.len() > 0),
        );
        let said = project.status(name)["output"].to_string();
        let own = own(name);
        assert!(said.contains(&format!("{}: its disk does not answer", own.display())), "{said}");
    }
    // The service itself can be stopped and started as well.
    let done = project.regrow(&["restart", "one"]);
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    // A daemon or keeper that is killed with threads that can't die is followed by another one, though
    // such a daemon can't become a keeper.
    let (two, other) = (project.pid("two"), project.pid("other"));
    let (_, keeper) = machine.pids();
    end(if dies == Dies::Keeper { keeper } else { daemon });
    eventually("another daemon supervises", || machine.pids().0 != daemon);
    assert_eq!((project.pid("two"), project.pid("other")), (two, other));
    let done = project.regrow(&["restart", "other"]);
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    let size = file_of("three").metadata().unwrap().len();
    eventually("what it prints goes elsewhere below the next one, too", || {
        file_of("three").metadata().unwrap().len() > size
    });
    let next = machine.pids().0;
    drop(frozen);
    eventually("nobody stands still any more", || standing_still(daemon) + standing_still(next) == 0);
    // From its next start on, the service prints to its own file.
    let size = own("two").metadata().unwrap().len();
    let done = project.regrow(&["restart", "two"]);
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    eventually("it prints there again", || own("two").metadata().unwrap().len() > size);
    assert_eq!(project.status("two")["output"], serde_json::Value::Null);
    if dies == Dies::Keeper {
        // The test's own child was the first keeper.
        machine.run = None;
    }
    machine.down();
    assert_none_is_missing(&[own("three"), machine.log("a/three.stdout.log")]);
    drop(disk);
}

/// Where the folder of all logs hangs, at the start already, output waits, which is reported; none
/// of it is missing after the thaw.
#[test]
fn what_can_go_nowhere_else_waits() {
    const TEST: &str = "what_can_go_nowhere_else_waits";
    let text = "[service.one]\nshell = \"i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done\"\n\
                [service.ends]\nshell = \"seq 1 30; read x < go; seq 31 60\"\ndir = \"..\"\nrestart = \"never\"\n";
    let mut machine = Machine::new(&[("a.toml", text)]);
    let Some((disk, folder)) = Disk::of(&machine, TEST) else {
        return;
    };
    nix::unistd::mkfifo(&machine.project.file("go"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let config = format!("manifests = \"services\"\n[logs]\nfolder = \"{}/logs\"\n", folder.display());
    machine.project.write("daemon.toml", config);
    let frozen = Frozen::of(&folder);
    machine.start();
    let said = |name: &str| machine.project.status(name)["output"].to_string();
    for name in ["one", "ends"] {
        eventually_or(
            || format!("it is said of {name}: {}", said(name)),
            || said(name).contains("its disk does not answer"),
        );
    }
    std::fs::write(machine.project.file("go"), "on\n").unwrap();
    eventually("its end is heard of", || machine.project.status("ends")["state"] == "completed");
    drop(frozen);
    eventually("it is over", || machine.project.status("one")["output"] == serde_json::Value::Null);
    let log = |name: &str| folder.join(format!("logs/a/{name}.stdout.log"));
    eventually("the last words of the other one are there", || {
        std::fs::read_to_string(log("ends")).is_ok_and(|text| text.lines().count() == 60)
    });
    machine.down();
    ["one", "ends"].iter().for_each(|name| assert_none_is_missing(&[log(name)]));
    drop(disk);
}

/// A write that was blocked by the disk does not repeat output that has gone elsewhere by then, and
/// the order stays.
#[test]
fn diverted_output_stays_in_order_when_the_disk_answers_again() {
    const TEST: &str = "diverted_output_stays_in_order_when_the_disk_answers_again";
    let mut machine = Machine::new(&[]);
    let Some((disk, folder)) = Disk::of(&machine, TEST) else {
        return;
    };
    let folder_of_logs = folder.join("logs");
    machine.project.write("services/a.toml", manifest(&folder_of_logs));
    machine.start();
    let names = ["one", "two", "three"];
    let own = |name: &str| folder_of_logs.join(format!("{name}.log"));
    let other = |name: &str| machine.log(&format!("a/{name}.stdout.log"));
    eventually("all print", || names.iter().all(|name| own(name).metadata().is_ok_and(|at| at.len() > 0)));
    let daemon = machine.pids().0;
    let frozen = Frozen::of(&folder);
    wait_until_one_stands_still(daemon);
    let length = |path: PathBuf| path.metadata().map_or(0, |at| at.len());
    eventually("all go elsewhere", || names.iter().all(|name| length(other(name)) > 0));
    drop(frozen);
    eventually("nobody stands still any more", || standing_still(daemon) == 0);
    let before = names.map(|name| length(other(name)));
    eventually("and they go on there", || {
        names.iter().zip(before).all(|(name, before)| length(other(name)) > before)
    });
    let printed = machine.regrow(&["logs", "one", "-n", "50"]).stdout;
    let numbers: Vec<u64> =
        printed.lines().filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    assert!(numbers.len() > 10 && numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{printed}");
    machine.down();
    for name in names {
        let other = machine.log(&format!("a/{name}.stdout.log"));
        assert_none_is_missing(&[own(name), other]);
    }
    drop(disk);
}

/// A disk that is only slow costs nothing: output that waited goes where it should, without a
/// report.
#[test]
fn what_waited_for_a_moment_goes_where_it_should() {
    const TEST: &str = "what_waited_for_a_moment_goes_where_it_should";
    let mut machine = Machine::new(&[]);
    let Some((disk, folder)) = Disk::of(&machine, TEST) else {
        return;
    };
    let folder_of_logs = folder.join("logs");
    // The last lines of a service that ends meanwhile wait, too.
    let last = format!(
        "[service.last]\nshell = \"read x < go; seq 1 30; exit 1\"\nrestart = \"never\"\n\
         log = {{ file = \"{}/last.log\" }}\ndir = \"..\"\n",
        folder_of_logs.display()
    );
    machine.project.write("services/a.toml", manifest(&folder_of_logs) + &last);
    nix::unistd::mkfifo(&machine.project.file("go"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    machine.start();
    let own = |name: &str| folder_of_logs.join(format!("{name}.log"));
    eventually("it prints", || own("one").metadata().is_ok_and(|at| at.len() > 0));
    let daemon = machine.pids().0;
    let frozen = Frozen::of(&folder);
    wait_until_one_stands_still(daemon);
    std::fs::write(machine.project.file("go"), "on\n").unwrap();
    eventually("its end is heard of", || machine.project.status("last")["state"] == "failed");
    // No thread spins meanwhile.
    let (ticks, begun) = (ticks_of(daemon), Instant::now());
    eventually("a while", || begun.elapsed() > Duration::from_millis(500));
    let spent = ticks_of(daemon) - ticks;
    assert!(spent < 25, "{spent} ticks of 50");
    drop(frozen);
    eventually("nobody stands still any more", || standing_still(daemon) == 0);
    // The last lines could not wait with the others: they come before the service's end.
    let words = std::fs::read_to_string(machine.log("a/last.stdout.log")).unwrap();
    assert_eq!(words, (1..=30).map(|n| format!("{n}\n")).collect::<String>());
    let size = own("one").metadata().unwrap().len();
    eventually("it prints there again", || own("one").metadata().unwrap().len() > size);
    assert_eq!(machine.project.status("one")["output"], serde_json::Value::Null);
    let events = machine.regrow(&["events"]).stdout;
    assert!(
        events.lines().filter(|line| line.contains("does not answer")).all(|line| line.contains("a/last: "))
    );
    machine.down();
    ["one", "two", "three"].iter().for_each(|name| assert_none_is_missing(&[own(name)]));
    drop(disk);
}

/// `down` completes, and says why one of its processes does not end.
#[test]
fn a_tree_goes_down_while_a_disk_does_not_answer() {
    const TEST: &str = "a_tree_goes_down_while_a_disk_does_not_answer";
    for is_daemon in [false, true] {
        let mut machine = Machine::new(&[]);
        let Some((disk, folder)) = Disk::of(&machine, TEST) else {
            return;
        };
        let text = manifest(&folder.join("logs"));
        let mut run: Run = if is_daemon {
            machine.project.write("services/a.toml", text);
            machine.start();
            machine.run.take().unwrap()
        } else {
            machine.project.write("regrow.toml", text);
            machine.project.run(&[])
        };
        let own = folder.join("logs/one.log");
        eventually("it prints", || own.metadata().is_ok_and(|at| at.len() > 0));
        let supervisor = machine.pids().0;
        let frozen = Frozen::of(&folder);
        wait_until_one_stands_still(supervisor);
        let down = machine.regrow(&["down"]);
        assert_eq!(down.code, 0, "{}{}", down.stdout, down.stderr);
        assert!(down.stdout.contains("everything is down"), "{}", down.stdout);
        let who =
            if is_daemon { "the daemon".to_owned() } else { format!("the supervisor (pid {supervisor})") };
        run.line(&format!("a thread of {who} is stuck in the kernel: a disk does not answer"));
        eventually("who has started it gets its prompt back", || !is_alive(run.pid()));
        // What the process held is free at once, whatever its last thread waits for.
        if is_daemon {
            machine.start();
        } else {
            machine.run = Some(machine.project.run(&[]));
            machine.run.as_mut().unwrap().line("all 5 are up");
        }
        drop(frozen);
        assert_eq!(run.code(), 0);
        eventually("all of it is gone", || !Path::new(&format!("/proc/{supervisor}")).exists());
        assert_eq!(machine.regrow(&["down"]).code, 0);
        assert_eq!(machine.run.take().unwrap().code(), 0);
        if is_daemon {
            // Its last lines were kept as well.
            let [first, second] = [own, machine.log("a/one.stdout.log")].map(|path| first_life(&path));
            assert_eq!(second.first(), first.last().map(|last| last + 1).as_ref(), "{first:?} {second:?}");
        }
        drop(disk);
    }
}
