//! The keeper: a small process above a supervisor or daemon. A keeper of a foreground supervisor
//! ends whatever that supervisor leaves when it dies; a keeper of a daemon spawns the daemon's
//! processes and outlives it (`serve`).
//!
//! [`divide`] forks before any thread or runtime exists. The caller goes on as the supervisor, in a
//! process group of its own; the parent stays behind as the keeper. The keeper is a child
//! subreaper, so the kernel reparents to it whatever the supervisor leaves when it dies, including
//! processes in sessions of their own, and the keeper ends them all. The supervisor in turn watches
//! the keeper by a pidfd ([`ForegroundKeeper`]).
//!
//! As process 1 (of a container or a pid namespace) the keeper also reaps all other orphans.
//!
//! The shell waits for the keeper. So the keeper passes on signals (the terminal sends them to it
//! alone), stops and continues with its supervisor, and ends with the supervisor's exit code.

use std::io::Write;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{ForkResult, Pid, getpid, setpgid};

use super::STUCK;
use crate::model::Exit;
use crate::sys::limits::{Limits, leave_no_core};
use crate::sys::{pidfd, proc};

pub(super) mod client;
pub(super) mod handover;
mod pulse;
mod sentinel;
mod serve;
pub(super) mod standby;
pub(super) mod wire;

pub(super) use sentinel::Sentinel;

/// Names the environment variable of a re-executed daemon. It holds the descriptor of the keeper's
/// socket, when the first keeper started (in nanoseconds of the monotonic clock), how many
/// milliseconds the daemon is to wait first, and the descriptor that it is to hold as long as it
/// lives.
const LINE: &str = "REGROW_KEEPER_LINE";

/// A daemon's end of the socket to its keeper.
#[derive(Debug)]
pub struct KeeperSocket {
    pub(super) line: OwnedFd,
    /// Makes sure that there is a keeper until the host takes that over.
    pub(super) sentinel: Sentinel,
    /// Whether another daemon, or another keeper, ran before.
    follows: bool,
}

impl KeeperSocket {
    /// Whether this daemon continues an earlier one. Then it supervises whatever it may lack.
    pub fn follows(&self) -> bool {
        self.follows
    }
}

/// The end of the keeper's socket in a daemon that has just started.
struct NewLine {
    line: OwnedFd,
    since: Duration,
    pause: Duration,
    follows: bool,
    /// The descriptor to hold, see [`pulse`].
    pulse: Option<OwnedFd>,
    standby: Option<standby::Standby>,
}

impl NewLine {
    /// Waits for the pause, or until the keeper is gone, and then starts the sentinel.
    fn begin(self) -> std::io::Result<KeeperSocket> {
        let NewLine { line, since, pause, follows, pulse, standby } = self;
        if let Some(pulse) = pulse {
            pulse::hold(pulse)?;
        }
        sentinel::rest(&line, pause);
        let sentinel = Sentinel::over(&line, since, standby)?;
        Ok(KeeperSocket { line, sentinel, follows })
    }

    /// Takes what a keeper left in the environment of the daemon that it executed. `None` if no
    /// keeper executed this process.
    fn inherited() -> Option<NewLine> {
        let text = std::env::var(LINE).ok()?;
        // SAFETY: called before any thread is made.
        unsafe { std::env::remove_var(LINE) };
        let mut parts = text.split(':');
        let fd = parts.next()?.parse().ok()?;
        let mut number = || parts.next().and_then(|part| part.parse().ok());
        // Older keepers pass neither of these two.
        let since = number().map_or_else(crate::sys::clock::monotonic, Duration::from_nanos);
        let pause = Duration::from_millis(number().unwrap_or_default());
        let own = |fd| {
            // SAFETY: the keeper left it open for us, and nobody else here knows of it.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).ok()?;
            Some(fd)
        };
        let pulse = parts.next().and_then(|part| part.parse().ok()).and_then(own);
        // The first daemon is forked and never executed, so this one follows another.
        let follows = true;
        Some(NewLine { line: own(fd)?, since, pause, follows, pulse, standby: standby::Standby::inherited() })
    }

    fn variable(&self) -> String {
        use std::os::fd::AsRawFd;
        let (line, since, pause) = (self.line.as_raw_fd(), self.since.as_nanos(), self.pause.as_millis());
        let pulse = self.pulse.as_ref().map(|pulse| pulse.as_raw_fd().to_string()).unwrap_or_default();
        format!("{line}:{since}:{pause}:{pulse}")
    }
}

/// The socket of a daemon that a re-executed keeper has forked.
static MADE: OnceLock<Mutex<Option<NewLine>>> = OnceLock::new();

/// Becomes the keeper, if this process was executed for that; the call then returns only in the
/// daemons that the keeper forks. To be called before anything else.
pub fn resume() {
    let Some(handed) = handover::receive() else {
        return;
    };
    let made = as_keeper(&serve::heard()).and_then(|()| serve::Keeper::new(Some(handed?)));
    match made {
        // This is now a daemon that the keeper forked.
        Ok(keeper) => {
            let _ = MADE.set(Mutex::new(Some(keeper.run())));
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "regrow: the keeper can't go on: {error}");
            std::process::exit(1);
        }
    }
}

/// The environment variables with the limits on descriptors and core files that the first keeper
/// started with.
const LIMITS: [&str; 2] = ["REGROW_KEEPER_FILES", "REGROW_KEEPER_CORE"];

/// The limits for services: those of the process that started the first keeper, whatever has been
/// executed since.
fn limits_of_children() -> Limits {
    let mut limits = Limits::raise();
    leave_no_core();
    for (name, limit) in LIMITS.into_iter().zip([&mut limits.files, &mut limits.core]) {
        match std::env::var(name).ok().and_then(|text| text.parse().ok()) {
            Some(soft) => limit.rlim_cur = soft,
            // SAFETY: a keeper has one thread.
            None => unsafe { std::env::set_var(name, limit.rlim_cur.to_string()) },
        }
    }
    limits
}

/// Whether a keeper started this process as its daemon.
pub fn is_above() -> bool {
    std::env::var_os(LINE).is_some() || MADE.get().is_some()
}

/// Becomes a keeper, and returns in the daemons that it forks, one after the other. If a keeper
/// executed this process, it is the daemon already and the call returns at once.
///
/// To be called before any thread is made.
pub fn over_daemon() -> std::io::Result<KeeperSocket> {
    let made = MADE.get().and_then(|made| made.lock().unwrap_or_else(PoisonError::into_inner).take());
    if let Some(line) = made.or_else(NewLine::inherited) {
        return line.begin();
    }
    as_keeper(&serve::heard())?;
    serve::Keeper::new(None)?.run().begin()
}

/// Blocks the signals that a keeper waits for, in the thread that is about to execute one.
pub(super) fn quieten() {
    let _ = serve::heard().thread_block();
}

/// Sets this process up as a keeper: child subreaper, with the signals that it waits for blocked.
fn as_keeper(heard: &SigSet) -> std::io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true)?;
    heard.thread_block()?;
    // An ignored SIGCHLD is inherited, and would reap children without our knowledge.
    // SAFETY: no handler of ours is set, so none can run in an unsound context.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
    Ok(())
}

/// Sets this process up as a daemon below a keeper: process group and signals.
fn as_daemon() -> std::io::Result<()> {
    // In a process group of its own, so that the terminal's signals reach the keeper alone and each
    // arrives once.
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    // The daemon is now in the background of its terminal, and may still write to it.
    // SAFETY: the signal is ignored; no handler can run.
    unsafe { nix::sys::signal::signal(Signal::SIGTTOU, SigHandler::SigIgn) }?;
    // The daemon receives every signal, whatever mask it was started with.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

fn complain(what: &str) {
    let _ = writeln!(std::io::stderr(), "regrow: {what}");
}

/// Joins a variable's name and value to `NAME=VALUE`. `None` if either contains a NUL.
fn assignment(name: &std::ffi::OsStr, value: &std::ffi::OsStr) -> Option<std::ffi::CString> {
    let bytes = [name.as_encoded_bytes(), b"=", value.as_encoded_bytes()].concat();
    std::ffi::CString::new(bytes).ok()
}

/// The keeper as its foreground supervisor sees it.
#[derive(Debug)]
pub struct ForegroundKeeper {
    /// The keeper's pidfd, readable when the keeper dies; to be handed to
    /// [`super::native::NativeHost::die_with`].
    pub pidfd: OwnedFd,
}

/// Divides this process in two and returns in the supervisor; the keeper never returns.
///
/// To be called before any thread is made. It fails where the kernel would not fork.
pub fn divide() -> std::io::Result<ForegroundKeeper> {
    let keeper = getpid();
    let keeper_fd = pidfd::open(keeper.as_raw().cast_unsigned())?;
    // The signals of a terminal's foreground process group as well.
    let mut heard = serve::heard();
    heard.add(Signal::SIGTSTP);
    heard.add(Signal::SIGWINCH);
    // Blocked before the fork, so that no signal is lost between the two.
    as_keeper(&heard)?;
    let signals = SignalFd::with_flags(&heard, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let (ends, held) = pulse::pair()?;
    // SAFETY: this process has one thread (the contract of this function), so the child's
    // copy of memory is whole, no lock is held by a thread that is not there.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => {
            drop((signals, ends));
            as_daemon()?;
            pulse::hold(held)?;
            Ok(ForegroundKeeper { pidfd: keeper_fd })
        }
        ForkResult::Parent { child } => {
            drop((keeper_fd, held));
            // The supervisor's start time, read before its pid can be reused.
            let started = proc::stat(child.as_raw().cast_unsigned()).map(|stat| stat.started);
            // Under another name, so that a command that kills every "regrow" spares the keeper.
            let _ = nix::sys::prctl::set_name(c"keeper");
            leave_no_core();
            keep(child, started, &signals, &ends)
        }
    }
}

/// How many interrupts kill the supervisor. The second one already makes it kill the services; this
/// many mean that it no longer responds.
const IMPATIENT: u32 = 4;

/// A killed supervisor whose end is not reported after this time has a thread that is blocked in
/// the kernel, over a disk that does not answer.
const STANDS_STILL: Duration = Duration::from_secs(2);

fn keep(supervisor: Pid, started: Option<u64>, signals: &SignalFd, ends: &OwnedFd) -> ! {
    let number = supervisor.as_raw().cast_unsigned();
    let mut interrupts = 0;
    let mut dead_since: Option<Instant> = None;
    // From here on the keeper only waits.
    crate::sys::memory::settle();
    loop {
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let timeout = match dead_since {
            None => {
                fds.push(PollFd::new(ends.as_fd(), PollFlags::empty()));
                PollTimeout::NONE
            }
            Some(_) => PollTimeout::from(100u8),
        };
        let _ = poll(&mut fds, timeout);
        if fds.get(1).is_some_and(|end| end.any().unwrap_or_default()) {
            dead_since = Some(Instant::now());
        }
        if dead_since.is_some_and(|since| since.elapsed() >= STANDS_STILL)
            && let Some(exit) = proc::exit_of_zombie(number)
        {
            let _ = writeln!(
                std::io::stderr(),
                "regrow: a thread of the supervisor (pid {number}) is stuck in the kernel: a disk does not answer"
            );
            end(exit, number, started);
        }
        while let Ok(Some(info)) = signals.read_signal() {
            match Signal::try_from(info.ssi_signo.cast_signed()) {
                Ok(Signal::SIGCHLD) => {
                    // One SIGCHLD may stand for several deaths. Only the supervisor's matters; the
                    // others are orphans of a keeper that is process 1, and are reaped without a
                    // word.
                    match pidfd::reap_pid(number) {
                        Ok(Some(exit)) => end(exit, number, started),
                        Ok(None) => {}
                        Err(_) => end(Exit::Code(1), number, started),
                    }
                    reap_others(number);
                }
                Ok(Signal::SIGTSTP) => {
                    let _ = kill(supervisor, Signal::SIGSTOP);
                    // SIGSTOP can't be blocked: the keeper stops here until the shell continues it.
                    let _ = nix::sys::signal::raise(Signal::SIGSTOP);
                    let _ = kill(supervisor, Signal::SIGCONT);
                }
                Ok(other) => {
                    interrupts += u32::from(other == Signal::SIGINT);
                    let last = interrupts >= IMPATIENT && other == Signal::SIGINT;
                    let _ = kill(supervisor, if last { Signal::SIGKILL } else { other });
                    let _ = kill(supervisor, Signal::SIGCONT);
                }
                Err(_) => {}
            }
        }
    }
}

/// Reaps every dead child except the supervisor.
fn reap_others(supervisor: u32) {
    for pid in proc::children(std::process::id()) {
        if pid != supervisor && proc::stat(pid).is_some_and(|stat| stat.state == b'Z') {
            let _ = pidfd::reap_pid(pid);
        }
    }
}

/// Handles the supervisor's death: ends what it left, then exits as it did.
fn end(exit: Exit, supervisor: u32, started: Option<u64>) -> ! {
    // While a thread of the supervisor is blocked, orphans are reparented to that thread's process
    // and not to the keeper.
    let begun = Instant::now();
    loop {
        let left: Vec<OwnedFd> =
            proc::descendants(supervisor).into_iter().filter_map(|pid| pidfd::open(pid).ok()).collect();
        if left.is_empty() || begun.elapsed() >= STUCK {
            break;
        }
        for process in &left {
            let _ = pidfd::signal(process, libc::SIGKILL);
            pidfd::ends_within(process.as_fd(), Duration::from_millis(10));
        }
    }
    let (ended, stuck) = end_all_children_but(supervisor);
    if let Some(started) = started {
        super::cgroup::end_of(supervisor, started);
    }
    let code = match exit {
        Exit::Code(code) => code,
        Exit::Unknown => 1,
        Exit::Signal { signal, .. } => {
            let name = crate::model::exit::signal_name(signal);
            let _ = writeln!(
                std::io::stderr(),
                "regrow: the supervisor was ended by {name}; {ended} {} it left behind {} ended",
                if ended == 1 { "process" } else { "processes" },
                if ended == 1 { "was" } else { "were" },
            );
            128 + signal
        }
    };
    if !stuck.is_empty() {
        let pids: Vec<String> = stuck.iter().map(ToString::to_string).collect();
        let _ = writeln!(
            std::io::stderr(),
            "regrow: SIGKILL has not ended what is stuck in the kernel: pid {}",
            pids.join(", ")
        );
    }
    std::process::exit(code)
}

/// Kills every child except the supervisor, which may never end, and their children as they are
/// reparented here, until none is left. Returns how many were ended, and the pids that can't be.
fn end_all_children_but(supervisor: u32) -> (usize, Vec<u32>) {
    let me = std::process::id();
    let mut ended = std::collections::BTreeSet::new();
    let mut since = Instant::now();
    loop {
        let mut children = proc::children(me);
        children.retain(|pid| *pid != supervisor);
        for pid in &children {
            if proc::stat(*pid).is_some_and(|s| s.state != b'Z') {
                ended.insert(*pid);
            }
            // A child's pid is not reused before the keeper reaps it.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        loop {
            // SAFETY: waits for any child; a null status is allowed.
            match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } {
                1.. => since = Instant::now(),
                0 => break,
                _ if Errno::last() == Errno::ECHILD => return (ended.len(), Vec::new()),
                _ => break,
            }
        }
        if children.is_empty() {
            return (ended.len(), Vec::new());
        }
        let left = STUCK.saturating_sub(since.elapsed());
        if left.is_zero() {
            ended.retain(|pid| !children.contains(pid));
            return (ended.len(), children);
        }
        wait_for_a_death(left);
    }
}

/// Waits until a child dies; SIGCHLD is blocked here, so none is missed.
fn wait_for_a_death(at_most: Duration) {
    let mut deaths = SigSet::empty();
    deaths.add(Signal::SIGCHLD);
    let time = nix::sys::time::TimeSpec::from(at_most);
    // SAFETY: both point to valid values; a null info is allowed.
    unsafe { libc::sigtimedwait(deaths.as_ref(), std::ptr::null_mut(), time.as_ref()) };
}
