//! A project in a folder of its own, and a running `regrow` in it.
//!
//! Every wait is for an event and is bounded. Every process that a project starts carries the
//! project's state folder in its environment; when the project is dropped, none of them may be
//! left.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The bound of every wait; none should come near it.
pub(crate) const BOUND: Duration = Duration::from_secs(30);

pub(crate) struct Project {
    folder: tempfile::TempDir,
}

/// Whoever runs the tests under nohup(1) hands an ignored SIGHUP on, which a run would then ignore, too.
fn hear_of_a_hang_up() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default action installs no handler that could run in an unsound context.
    unsafe { signal(Signal::SIGHUP, SigHandler::SigDfl) }.unwrap();
}

/// The nice value of the tests themselves, which children inherit.
pub(crate) fn own_nice() -> String {
    let printed = Command::new("nice").output().unwrap().stdout;
    String::from_utf8(printed).unwrap().trim().to_owned()
}

pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Project {
    pub(crate) fn new(manifest: &str) -> Project {
        hear_of_a_hang_up();
        let project = Project { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(project.path("shop")).unwrap();
        project.write("regrow.toml", manifest);
        project
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The project's folder.
    pub(crate) fn dir(&self) -> PathBuf {
        self.path("shop").canonicalize().unwrap()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.file(name), text).unwrap();
    }

    pub(crate) fn script(&self, name: &str, text: &str) {
        self.write(name, text);
        std::fs::set_permissions(self.file(name), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.path("state")
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_regrow"));
        command
            .args(args)
            .current_dir(self.dir())
            .env("REGROW_STATE_DIR", self.state_dir())
            .env_remove("REGROW_SOCKET")
            .env_remove("RUST_LOG")
            .env_remove("CI")
            .stdin(Stdio::null());
        command
    }

    /// Runs a verb to its end, and returns what it printed and its exit code.
    pub(crate) fn regrow(&self, args: &[&str]) -> Output {
        let output = self.command(args).output().unwrap();
        Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The JSON that a verb prints.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let output = self.regrow(args);
        serde_json::from_str(&output.stdout)
            .unwrap_or_else(|error| panic!("{args:?}: {error}: {}{}", output.stdout, output.stderr))
    }

    /// The row of an instance in `status --json`.
    pub(crate) fn status(&self, name: &str) -> Value {
        let report = self.json(&["status", "--json"]);
        let rows = report["services"].as_array().unwrap();
        rows.iter()
            .find(|row| row["name"] == name || row["id"] == name)
            .unwrap_or_else(|| panic!("no {name} in {report}"))
            .clone()
    }

    /// The pid of an instance, once it has one.
    pub(crate) fn pid(&self, name: &str) -> u32 {
        let mut pid = None;
        eventually(&format!("{name} has a pid"), || {
            pid = self.status(name)["pid"].as_u64();
            pid.is_some()
        });
        pid.and_then(|pid| u32::try_from(pid).ok()).unwrap()
    }

    /// `regrow run` in the background.
    pub(crate) fn run(&self, args: &[&str]) -> Run {
        let mut words = vec!["run"];
        words.extend(args);
        let mut command = self.command(&words);
        self.start(&mut command)
    }

    pub(crate) fn start(&self, command: &mut Command) -> Run {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let streams: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                    if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                        return;
                    }
                }
            });
        }
        Run { child, lines, seen: Vec::new(), ended: None }
    }

    /// The number of lines that a log file of a daemon has.
    pub(crate) fn log_lines(&self, path: &str) -> usize {
        let text = std::fs::read(self.state_dir().join("logs").join(path)).unwrap_or_default();
        text.iter().filter(|byte| **byte == b'\n').count()
    }

    /// The living processes of this project.
    pub(crate) fn alive(&self) -> Vec<u32> {
        let mark = format!("REGROW_STATE_DIR={}", self.state_dir().display());
        processes(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|b| *b == 0).any(|entry| entry == mark.as_bytes())
        })
    }

    /// Waits until no process of the project lives.
    pub(crate) fn assert_nothing_left(&self) {
        eventually("nothing is left", || self.alive().is_empty());
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for pid in self.alive() {
                end(pid);
            }
        } else {
            self.assert_nothing_left();
        }
    }
}

pub(crate) fn end(pid: u32) {
    let _ = nix::sys::signal::kill(pid_of(pid), nix::sys::signal::Signal::SIGKILL);
}

pub(crate) fn pid_of(pid: u32) -> nix::unistd::Pid {
    nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap())
}

/// The living processes that `fits` accepts; zombies don't count.
pub(crate) fn processes(fits: impl Fn(u32) -> bool) -> Vec<u32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| is_alive(*pid) && fits(*pid))
        .collect()
}

pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z") && !rest.starts_with(" X"))
}

/// The living processes whose command line contains this text.
pub(crate) fn named(text: &str) -> Vec<u32> {
    processes(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(text)
    })
}

/// Polls until a condition is true: what only `/proc` can tell has no event to wait for.
pub(crate) fn eventually(what: &str, is: impl FnMut() -> bool) {
    eventually_or(|| what.to_owned(), is);
}

/// Polls as [`eventually`] does, with words for what is wrong at the end.
pub(crate) fn eventually_or(words: impl Fn() -> String, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + BOUND;
    while !is() {
        assert!(Instant::now() < until, "not within {BOUND:?}: {}", words());
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Choices that are the same for the same seed (SplitMix64): a failure names its seed.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    /// A number from 0 to `count` - 1.
    pub(crate) fn of(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % count as u64).unwrap()
    }
}

pub(crate) struct Run {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    ended: Option<i32>,
}

impl Run {
    /// Waits for a line that contains the text.
    pub(crate) fn line(&mut self, text: &str) -> String {
        if let Some(found) = self.seen.iter().find(|line| line.contains(text)) {
            return found.clone();
        }
        self.next_line(text)
    }

    /// Waits for a line that contains the text, among the lines that were not looked at before.
    pub(crate) fn next_line(&mut self, text: &str) -> String {
        let until = Instant::now() + BOUND;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("no line {text:?} in:\n{}", self.seen.join("\n")),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("it ended without a line {text:?}:\n{}", self.seen.join("\n"))
                }
            }
        }
    }

    /// The process that was started: the keeper.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(pid_of(self.child.id()), signal).unwrap();
    }

    pub(crate) fn interrupt(&self) {
        self.signal(nix::sys::signal::Signal::SIGINT);
    }

    /// Waits for the end of the process; returns its exit code, or minus the number of its signal.
    pub(crate) fn code(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        // The end of its output is the event to wait for; the status follows at once.
        let until = Instant::now() + BOUND;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end:\n{}", self.seen.join("\n")),
            }
        }
        let status = self.child.wait().unwrap();
        let code = status.code().unwrap_or_else(|| -status.signal().unwrap_or(0));
        self.ended = Some(code);
        code
    }

    /// Everything that it has printed, once it has ended.
    pub(crate) fn text(&self) -> String {
        self.seen.join("\n")
    }

    /// Sends Ctrl-C, waits for the end, and returns the output.
    pub(crate) fn stop(mut self) -> String {
        self.interrupt();
        assert_eq!(self.code(), 130, "{}", self.text());
        self.text()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Reports that a test can't be run here; where every test is required, that is a failure.
pub(crate) fn skip(test: &str, why: &str) {
    assert!(std::env::var_os("REGROW_TEST_REQUIRE_ALL").is_none(), "{test}: {why}");
    eprintln!("SKIPPED {test}: {why}");
}

/// Whether this test can become another user; where every test is required it must.
pub(crate) fn can_become_another_user(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        skip(test, "only root can become another user");
        return false;
    }
    installed(test, Path::new("/usr/bin/setpriv"))
}

/// Whether a program is installed; where every test is required its absence is a failure.
pub(crate) fn installed(test: &str, program: &Path) -> bool {
    if program.is_file() {
        return true;
    }
    assert!(
        std::env::var_os("REGROW_TEST_REQUIRE_ALL").is_none(),
        "{test} needs {}, which is not installed",
        program.display()
    );
    eprintln!("SKIPPED {test}: {} is not installed", program.display());
    false
}
