//! A machine with a folder of manifests, and the daemon that supervises them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{Output, Project, Run, end, eventually, is_alive};

/// A project whose manifests are in a folder, and the daemon that supervises them.
pub(crate) struct Machine {
    pub(crate) project: Project,
    /// The daemon as it was started last.
    pub(crate) run: Option<Run>,
}

impl Machine {
    /// Makes a machine with these manifests, without starting the daemon.
    pub(crate) fn new(manifests: &[(&str, &str)]) -> Machine {
        let project = Project::new("");
        // The folder is no project's, so what is typed there is meant for the daemon.
        std::fs::remove_file(project.file("regrow.toml")).unwrap();
        std::fs::create_dir(project.file("services")).unwrap();
        project.write("daemon.toml", "manifests = \"services\"\n");
        for (name, text) in manifests {
            project.write(&format!("services/{name}"), text);
        }
        Machine { project, run: None }
    }

    pub(crate) fn started(manifests: &[(&str, &str)]) -> Machine {
        let mut machine = Machine::new(manifests);
        machine.start();
        machine
    }

    /// Starts the daemon and waits until it is up.
    pub(crate) fn start(&mut self) {
        let mut command = self.project.command(&["daemon", "--config", "daemon.toml"]);
        let mut run = self.project.start(&mut command);
        run.line(concat!("regrow ", env!("CARGO_PKG_VERSION"), ": "));
        self.run = Some(run);
    }

    /// Starts the daemon as another user, who can make no cgroup.
    pub(crate) fn start_as(&mut self, user: u32) {
        let mut all = vec![self.project.dir().parent().unwrap().to_owned(), self.project.dir()];
        while let Some(path) = all.pop() {
            std::os::unix::fs::chown(&path, Some(user), Some(user)).unwrap();
            all.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
            all.retain(|path| {
                std::fs::metadata(path).is_ok_and(|at| std::os::unix::fs::MetadataExt::uid(&at) != user)
            });
        }
        let number = user.to_string();
        let mut command = std::process::Command::new("setpriv");
        command
            .args(["--reuid", &number, "--regid", &number, "--clear-groups"])
            .args([env!("CARGO_BIN_EXE_regrow"), "daemon", "--config", "daemon.toml"])
            .current_dir(self.project.dir())
            .env("REGROW_STATE_DIR", self.project.state_dir())
            .env_remove("REGROW_SOCKET")
            .stdin(Stdio::null());
        let mut run = self.project.start(&mut command);
        run.line(concat!("regrow ", env!("CARGO_PKG_VERSION"), ": "));
        self.run = Some(run);
    }

    pub(crate) fn regrow(&self, args: &[&str]) -> Output {
        self.project.regrow(args)
    }

    /// The pids of the daemon and of its keeper.
    pub(crate) fn pids(&self) -> (u32, u32) {
        let report = self.project.json(&["status", "--json"]);
        let daemon = report["daemon"]["pid"].as_u64().unwrap_or_else(|| panic!("{report}"));
        let daemon = u32::try_from(daemon).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{daemon}/stat")).unwrap_or_default();
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
        (daemon, parent.unwrap_or(0))
    }

    /// Kills the daemon, and waits until another supervises.
    pub(crate) fn kill_daemon(&self) {
        let (daemon, _) = self.pids();
        end(daemon);
        eventually("another daemon supervises", || self.pids().0 != daemon);
    }

    /// Kills the keeper, and waits until the daemon has become the keeper of another daemon.
    pub(crate) fn kill_keeper(&mut self) {
        let (daemon, keeper) = self.pids();
        end(keeper);
        eventually("the daemon has become the keeper of another", || {
            let (now, above) = self.pids();
            now != daemon && above == daemon
        });
        // The process that the test started has ended; its successor is not the test's child.
        self.run = None;
    }

    /// Kills the daemon and its keeper at once.
    pub(crate) fn kill_both(&mut self) {
        let (daemon, keeper) = self.pids();
        // The keeper is stopped first, so that it does not see the daemon's end. The other way round the
        // kernel would let the daemon continue when its keeper dies (a stopped process group that is
        // orphaned).
        nix::sys::signal::kill(crate::harness::pid_of(keeper), Signal::SIGSTOP).unwrap();
        eventually("the keeper stands still", || stands_still(keeper));
        end(daemon);
        end(keeper);
        eventually("both are gone", || !is_alive(daemon) && !is_alive(keeper));
        self.run = None;
    }

    pub(crate) fn all_pids(&self) -> BTreeMap<String, Option<u64>> {
        let report = self.project.json(&["status", "--json"]);
        let rows = report["services"].as_array().unwrap();
        // Services go by their short names where these are unambiguous.
        let alike = |name: &Value| rows.iter().filter(|row| row["name"] == *name).count() > 1;
        let key = |row: &Value| if alike(&row["name"]) { row["id"].clone() } else { row["name"].clone() };
        rows.iter().map(|row| (key(row).as_str().unwrap().to_owned(), row["pid"].as_u64())).collect()
    }

    pub(crate) fn log(&self, path: &str) -> PathBuf {
        self.project.state_dir().join("logs").join(path)
    }

    pub(crate) fn down(&mut self) {
        let output = self.regrow(&["down"]);
        assert_eq!(output.code, 0, "{}{}", output.stdout, output.stderr);
        if let Some(mut run) = self.run.take() {
            assert_eq!(run.code(), 0, "{}", run.text());
        }
    }
}

pub(crate) fn stands_still(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.into_iter().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    })
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if self.run.is_some() {
            self.down();
        } else if !self.project.alive().is_empty() {
            let _ = self.regrow(&["down"]);
        }
    }
}

/// A service that prints numbers, counting up, for as long as it lives.
pub(crate) const COUNTER: &str = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.0$((i % 7 + 1)); done";

/// Asserts that the file holds every number from 0, in order and once; returns how many there are.
pub(crate) fn assert_counts(path: &std::path::Path) -> usize {
    let text = std::fs::read_to_string(path).unwrap();
    // The last line may be incomplete.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for (want, line) in whole.lines().enumerate() {
        assert_eq!(line.parse(), Ok(want), "{} after {want} lines", path.display());
    }
    whole.lines().count()
}

/// A file system of one megabyte, mounted until this is dropped.
pub(crate) struct Small(PathBuf);

impl Small {
    pub(crate) fn mounted_at(folder: PathBuf) -> Option<Small> {
        std::fs::create_dir_all(&folder).unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs"])
            .arg(&folder)
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Small(folder))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
