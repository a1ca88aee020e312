//! The keeper of a daemon: the parent of every service and of the daemon itself, and so small and
//! so idle that nothing should ever end it.
//!
//! It has one thread and no runtime, and sleeps in poll(2). It spawns processes as it is told. It
//! holds a duplicate of every output pipe, and the exit of every process until the daemon has
//! recorded it. It starts the daemon again when it dies. While there is no daemon, it empties the
//! pipes into their log files, so that no service blocks on its output.
//!
//! It alone reaps: its own children, and without a word all orphans that are reparented to it.
//! Deliberately absent: any decision about services.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::handover::{self, Handed, HandedEntry};
use super::standby::Standby;
use super::wire::{Came, Frame, FromKeeper, Inbox, Outbox, Takes, ToKeeper, VERSION};
use super::{NewLine, complain};
use crate::decide::succession::DaemonIntent;
use crate::host::spawn::{Begun, Placed, Program, Spawner, Ties};
use crate::logs;
use crate::model::Exit;
use crate::sys::{clock, memory, pidfd, proc};

mod life;

/// How long after a daemon's end the keeper waits before it reads output in the daemon's place.
const AWAY: Duration = Duration::from_secs(1);
/// How long the daemon of another build may take to greet its keeper.
const COMING_UP: Duration = Duration::from_secs(30);
/// How often the keeper reads output while there is no daemon.
const DRAIN_EVERY: Duration = Duration::from_millis(100);
/// After this long without anything to do the keeper gives back memory that it does not need for
/// sleeping.
const RESTS_AFTER: Duration = Duration::from_secs(1);
/// The most names that are held, because a frame carries no more descriptors.
const MOST_HELD: usize = 8;
/// The most bytes of output that are moved at a time.
const PIECE: usize = 256 * 1024;

/// A process that the keeper keeps.
struct Entry {
    pid: u32,
    pidfd: OwnedFd,
    pipes: [Option<OwnedFd>; 2],
    logs: [Option<OwnedFd>; 2],
    about: Box<str>,
    exit: Option<Exit>,
    /// Whether an earlier keeper spawned it, which is dead. Then it is not this keeper's child, and
    /// its end is read from the kernel.
    foreign: bool,
}

/// A process that is being spawned.
struct Pending {
    key: u64,
    begun: Begun,
    about: Box<str>,
    logs: [Option<OwnedFd>; 2],
    exit: Option<Exit>,
    fate: Fate,
}

/// What becomes of a start that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The daemon that ordered it waits for it.
    Wanted,
    /// The daemon that ordered it has ended, and the next one orders it anew.
    Abandoned,
}

enum Daemon {
    Up {
        pid: u32,
        pulse: Pulse,
        since: Instant,
        line: OwnedFd,
        inbox: Inbox,
        outbox: Outbox,
        /// Whether the daemon has greeted the keeper.
        greeted: bool,
        /// What the daemon wants to follow its end.
        then: DaemonIntent,
    },
    Down {
        since: Instant,
        start_at: Instant,
        /// How long the next daemon waits before it begins.
        pause: Duration,
    },
}

/// Whether a daemon lives, even before the kernel reports its end.
enum Pulse {
    /// The daemon lives while the other end of this pipe is held. `None`: this daemon holds no such
    /// pipe.
    Beats(Option<OwnedFd>),
    /// The daemon was killed at this time. What follows waits until the kernel reports its end.
    Over(Instant),
}

impl Daemon {
    /// No daemon runs, and the next one is to be started at once, with this pause.
    fn down(pause: Duration) -> Daemon {
        Daemon::Down { since: Instant::now(), start_at: Instant::now(), pause }
    }

    /// A daemon that has just been started or handed over.
    fn up(pid: u32, line: OwnedFd, pulse: Option<OwnedFd>, greeted: bool) -> Daemon {
        let (inbox, outbox) = (Inbox::default(), Outbox::default());
        let pulse = Pulse::Beats(pulse);
        Daemon::Up {
            pid,
            pulse,
            since: Instant::now(),
            line,
            inbox,
            outbox,
            greeted,
            then: DaemonIntent::Again,
        }
    }
}

/// The result of a fork, on either side.
enum Made {
    Child { pid: u32, line: OwnedFd, pulse: OwnedFd },
    Daemon(NewLine),
}

pub(super) struct Keeper {
    signals: SignalFd,
    spawner: Spawner,
    entries: BTreeMap<u64, Entry>,
    pids: HashMap<u32, u64>,
    pending: Vec<Pending>,
    daemon: Daemon,
    /// The program of the next daemon; `None` stands for the program that this process runs.
    program: Option<CString>,
    /// The program of the last daemon that greeted the keeper, while another program is tried.
    before: Option<Option<CString>>,
    args: Vec<CString>,
    last_key: u64,
    since: Duration,
    /// How many daemons in a row ended soon after their start.
    failures: u32,
    /// Whether no daemon has ever greeted the keeper.
    fresh: bool,
    /// Signals that arrived while there was no daemon to pass them on to.
    signalled: Vec<Signal>,
    /// What daemons had the keeper hold for those that follow, by name.
    held: BTreeMap<String, (String, Option<OwnedFd>)>,
    /// The pids of daemons that have a successor and whose end the kernel has not reported yet.
    dying: HashSet<u32>,
    /// Orders of the last daemon, to be carried out once there is another.
    late: Vec<Frame<ToKeeper>>,
    /// Whether the keeper before this one was killed and no daemon has greeted this one since.
    orphaned: bool,
    /// A process that waits until no other is left to carry on.
    standby: Option<Standby>,
    /// When the keeper last had something to do; `None` after it has given back the memory that it
    /// needed for that.
    busy: Option<Instant>,
}

/// The signals that a keeper waits for: those of a terminal or service manager, and SIGCHLD.
pub(super) fn heard() -> SigSet {
    [
        Signal::SIGCHLD,
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ]
    .into_iter()
    .collect()
}

impl Keeper {
    /// Makes the keeper of a process that has one thread and blocks the signals in [`heard`].
    pub(super) fn new(handed: Option<Handed>) -> io::Result<Keeper> {
        let limits = super::limits_of_children();
        let mut keeper = Keeper {
            signals: SignalFd::with_flags(&heard(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
            spawner: Spawner::new(limits, Ties { die_with_us: false, outlive_readers: true })?,
            entries: BTreeMap::new(),
            pids: HashMap::new(),
            pending: Vec::new(),
            daemon: Daemon::down(Duration::ZERO),
            program: None,
            before: None,
            args: std::env::args_os().filter_map(|arg| CString::new(arg.into_vec()).ok()).collect(),
            last_key: 0,
            since: clock::monotonic(),
            failures: 0,
            fresh: true,
            signalled: Vec::new(),
            held: BTreeMap::new(),
            dying: HashSet::new(),
            late: Vec::new(),
            orphaned: false,
            standby: None,
            busy: Some(Instant::now()),
        };
        if let Some(handed) = handed {
            keeper.take(handed);
        }
        Ok(keeper)
    }

    /// Takes what an earlier keeper, or a daemon whose keeper is dead, has handed over.
    fn take(&mut self, handed: Handed) {
        let Handed { since, last_key, daemon, next, orphaned, standby, held, entries } = handed;
        self.held = held.into_iter().map(|(name, text, fd)| (name, (text, fd))).collect();
        self.since = since;
        self.orphaned = orphaned;
        self.standby = standby;
        if let Some(next) = next.and_then(|next| CString::new(next.into_os_string().into_vec()).ok()) {
            self.before = Some(self.program.replace(next));
        }
        self.last_key = last_key;
        self.fresh = false;
        if let Some((pid, line, pulse)) = daemon {
            self.daemon = Daemon::up(pid, line, pulse, true);
        }
        for entry in entries {
            let HandedEntry { key, pid, about, exit, foreign, pidfd, pipes, logs } = entry;
            if exit.is_none() {
                self.pids.insert(pid, key);
            }
            let about = about.into_boxed_str();
            self.entries.insert(key, Entry { pid, pidfd, pipes, logs, about, exit, foreign });
        }
    }

    /// Runs the keeper's loop. It returns only in the daemons that it forks.
    pub(super) fn run(mut self) -> NewLine {
        let _ = nix::sys::prctl::set_name(c"keeper");
        loop {
            if let Some(line) = self.start_daemon_if_due() {
                return line;
            }
            self.carry_out_late();
            self.wait();
            self.hear_signals();
            self.hear_daemon();
            if self.daemon_is_dying() && self.replace_dying() {
                continue;
            }
            self.settle_starts();
            self.look_at_foreign();
            self.reap();
            self.wait_no_more_for_what_stands_still();
            self.give_up_on_a_silent_one();
            self.drain_if_away();
        }
    }

    /// Sleeps until there is something to do.
    fn wait(&mut self) {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let mut timeout = None;
        match &self.daemon {
            Daemon::Up { line, pulse, outbox, greeted, since, .. } => {
                match pulse {
                    Pulse::Beats(pulse) => {
                        fds.extend(pulse.iter().map(|pulse| PollFd::new(pulse.as_fd(), PollFlags::empty())));
                    }
                    Pulse::Over(_) => timeout = Some(DRAIN_EVERY),
                }
                let mut flags = PollFlags::POLLIN;
                if !outbox.is_empty() {
                    flags |= PollFlags::POLLOUT;
                }
                fds.push(PollFd::new(line.as_fd(), flags));
                if !greeted && timeout.is_none() {
                    timeout = Some(AWAY.saturating_sub(since.elapsed()).max(DRAIN_EVERY));
                }
            }
            Daemon::Down { start_at, .. } => {
                let left = start_at.saturating_duration_since(Instant::now());
                timeout = Some(left.min(DRAIN_EVERY));
            }
        }
        fds.extend(self.pending.iter().map(|pending| PollFd::new(pending.begun.status(), PollFlags::POLLIN)));
        let foreign = self.entries.values().filter(|entry| entry.foreign && entry.exit.is_none());
        fds.extend(foreign.map(|entry| PollFd::new(entry.pidfd.as_fd(), PollFlags::POLLIN)));
        if let Some(busy) = self.busy {
            let left = RESTS_AFTER.saturating_sub(busy.elapsed());
            timeout = Some(timeout.map_or(left, |timeout| timeout.min(left)));
        }
        let timeout = timeout.map_or(PollTimeout::NONE, |left| {
            // Rounded up, so that the loop does not spin for the last part of a millisecond.
            PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
        });
        let ready = match self.busy {
            None if timeout.is_none() => memory::shed_and_sleep(&mut fds, timeout),
            Some(_) | None => poll(&mut fds, timeout),
        };
        match ready {
            Ok(1..) => self.busy = Some(Instant::now()),
            _ => {
                if self.busy.is_some_and(|busy| busy.elapsed() >= RESTS_AFTER) && self.pending.is_empty() {
                    self.busy = None;
                    self.rest();
                }
            }
        }
    }

    /// Packs what is kept into little memory, and gives the rest back to the kernel.
    fn rest(&mut self) {
        self.spawner.rest();
        self.pids.shrink_to_fit();
        if let Daemon::Up { inbox, .. } = &mut self.daemon {
            inbox.rest();
        }
        // After a burst of starts, the kept texts lie scattered between memory that was needed for
        // a moment. They are moved into two large pieces, the heap is given back, and new copies
        // then lie together.
        let mut texts = String::new();
        let mut aside: Vec<(u64, Entry, usize)> = Vec::with_capacity(self.entries.len());
        for (key, mut entry) in std::mem::take(&mut self.entries) {
            let about = std::mem::take(&mut entry.about);
            texts.push_str(&about);
            aside.push((key, entry, about.len()));
        }
        memory::give_back();
        let mut rest = texts.as_str();
        let entries = aside.into_iter().map(|(key, mut entry, length)| {
            let (about, after) = rest.split_at(length);
            rest = after;
            entry.about = about.into();
            (key, entry)
        });
        self.entries = entries.collect();
        drop(texts);
    }

    fn hear_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let Ok(signal) = Signal::try_from(info.ssi_signo.cast_signed()) else {
                continue;
            };
            if signal != Signal::SIGCHLD {
                self.pass_on(signal);
            }
        }
    }

    fn pass_on(&mut self, signal: Signal) {
        match &self.daemon {
            // A daemon that has not greeted the keeper may not handle signals yet, and would die of
            // one.
            Daemon::Up { pid, greeted: true, .. } => self::signal(*pid, signal),
            Daemon::Up { .. } | Daemon::Down { .. } => {
                self.signalled.push(signal);
                if let Daemon::Down { start_at, .. } = &mut self.daemon {
                    *start_at = Instant::now();
                }
            }
        }
    }

    fn hear_daemon(&mut self) {
        let Daemon::Up { line, inbox, outbox, .. } = &mut self.daemon else {
            return;
        };
        // If the daemon is gone, SIGCHLD reports its death.
        let _ = outbox.flush(line.as_fd());
        while let Ok(Came::Something) = inbox.fill(line.as_fd(), false) {}
        self.take_orders();
    }

    /// Whether the daemon is dead, even if the kernel has not taken it apart yet.
    fn daemon_is_dying(&self) -> bool {
        let Daemon::Up { pulse: Pulse::Beats(Some(pulse)), .. } = &self.daemon else {
            return false;
        };
        matches!(poll(&mut [PollFd::new(pulse.as_fd(), PollFlags::empty())], PollTimeout::ZERO), Ok(1..))
    }

    fn take_orders(&mut self) {
        loop {
            // Orders of a dead daemon wait until there is another, because carrying them out takes
            // time.
            let is_over = matches!(self.daemon, Daemon::Up { pulse: Pulse::Over(_), .. });
            if is_over || self.daemon_is_dying() {
                return;
            }
            let Daemon::Up { inbox, .. } = &mut self.daemon else {
                return;
            };
            match inbox.next::<ToKeeper>() {
                Ok(Some(frame)) => self.obey(frame.say, &frame.bytes, frame.fds),
                Ok(None) => return,
                Err(error) => {
                    complain(&format!("the daemon sent an unreadable message and is started again: {error}"));
                    if let Daemon::Up { pid, inbox, .. } = &mut self.daemon {
                        inbox.give_up();
                        signal(*pid, Signal::SIGKILL);
                    }
                    return;
                }
            }
        }
    }

    fn obey(&mut self, order: ToKeeper, bytes: &[u8], fds: Vec<OwnedFd>) {
        match order {
            ToKeeper::Hello { .. } => self.welcome(),
            ToKeeper::Spawn { key, mark, about, takes, credentials } => {
                let program = Program::from_bytes(bytes).map(|program| program.with(credentials));
                self.spawn(key, mark, about, &takes, program, fds);
            }
            ToKeeper::Logs { key } => {
                if let Some(entry) = self.entries.get_mut(&key) {
                    let mut fds = fds.into_iter();
                    entry.logs = [fds.next(), fds.next()];
                }
            }
            ToKeeper::Adopt { key, pid, about, pipes } => {
                let mut fds = fds.into_iter();
                if let Some(pidfd) = fds.next() {
                    self.last_key = self.last_key.max(key);
                    self.pids.insert(pid, key);
                    let pipes = pipes.map(|there| if there { fds.next() } else { None });
                    let about = about.into_boxed_str();
                    let entry =
                        Entry { pid, pidfd, pipes, logs: [None, None], about, exit: None, foreign: true };
                    self.entries.insert(key, entry);
                }
            }
            ToKeeper::Forget { key } => {
                if let Some(entry) = self.entries.remove(&key)
                    && self.pids.get(&entry.pid) == Some(&key)
                {
                    self.pids.remove(&entry.pid);
                }
            }
            ToKeeper::Hold { name, text } => {
                if self.held.len() < MOST_HELD || self.held.contains_key(&name) {
                    self.held.insert(name, (text, fds.into_iter().next()));
                }
            }
            ToKeeper::Notify { text } => crate::host::notify::send(&text),
            ToKeeper::Bye { code } => self.after(DaemonIntent::End(code)),
            ToKeeper::Replace { program } => {
                let program = CString::new(program.into_os_string().into_vec()).ok();
                self.before = Some(std::mem::replace(&mut self.program, program));
                self.after(DaemonIntent::Replaced);
                self.tell(&FromKeeper::Noted, &[]);
            }
            ToKeeper::Renew { program } => self.renew(program.into_os_string()),
            // An order of a newer daemon. It checks the keeper's version before it relies on one.
            ToKeeper::Unknown => {}
        }
    }

    fn after(&mut self, what: DaemonIntent) {
        if let Daemon::Up { then, .. } = &mut self.daemon {
            *then = what;
        }
    }

    /// Answers a new daemon's greeting with all that it needs to go on.
    fn welcome(&mut self) {
        // There are a keeper and a daemon now, so no standby is needed.
        if let Some(standby) = self.standby.take() {
            standby.dismiss();
        }
        let first = std::mem::replace(&mut self.fresh, false);
        let orphaned = std::mem::replace(&mut self.orphaned, false);
        self.before = None;
        let Daemon::Up { pid, line, outbox, greeted, .. } = &mut self.daemon else {
            return;
        };
        *greeted = true;
        let welcome = FromKeeper::Welcome {
            version: VERSION,
            pid: std::process::id(),
            last_key: self.last_key,
            since: u64::try_from(self.since.as_nanos()).unwrap_or(u64::MAX),
            kept: self.entries.len(),
            first,
            orphaned,
            held: self
                .held
                .iter()
                .map(|(name, (text, fd))| (name.clone(), text.clone(), fd.is_some()))
                .collect(),
        };
        let fds: Vec<BorrowedFd<'_>> =
            self.held.values().filter_map(|(_, fd)| Some(fd.as_ref()?.as_fd())).collect();
        let _ = outbox.send(line.as_fd(), &welcome, &fds);
        for (key, entry) in &self.entries {
            let kept = FromKeeper::Kept {
                key: *key,
                pid: entry.pid,
                about: entry.about.to_string(),
                exit: entry.exit,
                pipes: entry.which(),
                foreign: entry.foreign,
            };
            let _ = outbox.send(line.as_fd(), &kept, &entry.descriptors());
        }
        for signal in self.signalled.drain(..) {
            self::signal(*pid, signal);
        }
    }

    fn tell(&mut self, word: &FromKeeper, fds: &[BorrowedFd<'_>]) {
        tell(&mut self.daemon, word, fds);
    }

    fn spawn(
        &mut self,
        key: u64,
        mark: u64,
        about: String,
        takes: &[Takes],
        program: Option<Program>,
        fds: Vec<OwnedFd>,
    ) {
        self.last_key = self.last_key.max(key);
        let (mut cgroup, mut logs) = (None, [None, None]);
        for (what, fd) in takes.iter().zip(fds) {
            match what {
                Takes::Cgroup => cgroup = Some(fd),
                Takes::Out => logs[0] = Some(fd),
                Takes::Err => logs[1] = Some(fd),
            }
        }
        let failed = match program {
            Some(program) => match self.spawner.begin(program, mark, cgroup.as_ref().map(AsFd::as_fd)) {
                Ok(begun) => {
                    let about = about.into_boxed_str();
                    self.pending.push(Pending { key, begun, about, logs, exit: None, fate: Fate::Wanted });
                    return;
                }
                Err(failed) => failed,
            },
            None => {
                crate::host::spawn::Failed { stage: crate::model::SpawnStage::Prepare, errno: Errno::EINVAL }
            }
        };
        let (stage, errno) = (failed.stage, failed.errno as i32);
        self.tell(&FromKeeper::Failed { key, stage, errno }, &[]);
    }

    /// Settles the starts whose outcome is known.
    fn settle_starts(&mut self) {
        let mut at = 0;
        while at < self.pending.len() {
            let mut look = [PollFd::new(self.pending[at].begun.status(), PollFlags::POLLIN)];
            if matches!(poll(&mut look, PollTimeout::ZERO), Ok(1..)) {
                let pending = self.pending.swap_remove(at);
                self.settle(pending);
            } else {
                at += 1;
            }
        }
    }

    fn settle(&mut self, pending: Pending) {
        let Pending { key, begun, about, logs, exit, fate } = pending;
        if fate == Fate::Abandoned {
            // The process was killed, and is reaped like every other child.
            let _ = self.spawner.settle(begun);
            return;
        }
        let refused = begun.refused().map(|errno| errno as i32);
        match self.spawner.settle(begun) {
            Ok(made) => {
                let entry = Entry {
                    pid: made.pid,
                    pidfd: made.pidfd,
                    pipes: [Some(made.stdout), Some(made.stderr)],
                    logs,
                    about,
                    exit,
                    foreign: false,
                };
                let in_cgroup = made.placed == Placed::InCgroup;
                let word = FromKeeper::Spawned { key, pid: made.pid, in_cgroup, refused };
                tell(&mut self.daemon, &word, &entry.descriptors());
                if let Some(exit) = exit {
                    tell(&mut self.daemon, &FromKeeper::Exited { key, exit }, &[]);
                } else {
                    self.pids.insert(made.pid, key);
                }
                self.entries.insert(key, entry);
            }
            // The child of a failed start is reaped like every other child.
            Err(failed) => {
                let (stage, errno) = (failed.stage, failed.errno as i32);
                self.tell(&FromKeeper::Failed { key, stage, errno }, &[]);
            }
        }
    }

    /// Reaps every child that has ended.
    fn reap(&mut self) {
        while let Ok(Some((pid, exit))) = pidfd::reap_any() {
            if let Daemon::Up { pid: daemon, .. } = &self.daemon
                && *daemon == pid
            {
                self.daemon_ended(Some(exit));
            } else if self.dying.remove(&pid) {
                self.tell_end_of_daemon(exit);
            } else if let Some(key) = self.pids.get(&pid).copied() {
                self.ended(key, exit);
            } else if let Some(pending) = self.pending.iter_mut().find(|pending| pending.begun.pid() == pid) {
                pending.exit = Some(exit);
            }
        }
    }

    fn ended(&mut self, key: u64, exit: Exit) {
        if let Some(entry) = self.entries.get_mut(&key)
            && entry.exit.is_none()
        {
            entry.exit = Some(exit);
            // The pid may be reused from now on, or has been already if the process was not our
            // child.
            if self.pids.get(&entry.pid) == Some(&key) {
                self.pids.remove(&entry.pid);
            }
            self.tell(&FromKeeper::Exited { key, exit }, &[]);
        }
    }

    /// Finds processes of earlier keepers that have ended, by their pidfds.
    fn look_at_foreign(&mut self) {
        let over: Vec<(u64, Exit)> = self
            .entries
            .iter()
            .filter(|(_, entry)| {
                entry.foreign && entry.exit.is_none() && pidfd::has_ended(entry.pidfd.as_fd())
            })
            .map(|(key, entry)| {
                // Until its parent has reaped it, its exit can still be read.
                let told = pidfd::exit_of(&entry.pidfd).or_else(|| proc::exit_of_zombie(entry.pid));
                (*key, told.unwrap_or(Exit::Unknown))
            })
            .collect();
        for (key, exit) in over {
            self.ended(key, exit);
        }
    }

    /// Reads output in the daemon's place once it has been away for a while.
    fn drain_if_away(&self) {
        let since = match &self.daemon {
            Daemon::Down { since, .. } => since,
            Daemon::Up { since, greeted: false, .. } => since,
            Daemon::Up { .. } => return,
        };
        if since.elapsed() < AWAY {
            return;
        }
        for entry in self.entries.values() {
            for (pipe, log) in entry.pipes.iter().zip(&entry.logs) {
                if let (Some(pipe), Some(log)) = (pipe, log) {
                    drain(pipe, log);
                }
            }
        }
    }
}

/// Signals a daemon that is the keeper's child and not reaped yet.
fn signal(pid: u32, signal: Signal) {
    let _ = nix::sys::signal::kill(Pid::from_raw(pid.cast_signed()), signal);
}

fn tell(daemon: &mut Daemon, word: &FromKeeper, fds: &[BorrowedFd<'_>]) {
    if let Daemon::Up { line, outbox, greeted: true, .. } = daemon {
        // If the daemon has gone, the next one is told everything.
        let _ = outbox.send(line.as_fd(), word, fds);
    }
}

impl Entry {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let pipes = self.pipes.iter().flatten().map(AsFd::as_fd);
        [self.pidfd.as_fd()].into_iter().chain(pipes).collect()
    }

    /// Which of the two output pipes are there.
    fn which(&self) -> [bool; 2] {
        [self.pipes[0].is_some(), self.pipes[1].is_some()]
    }

    fn handed(&self, key: u64) -> handover::Lent<'_> {
        handover::Lent {
            key,
            pid: self.pid,
            about: &self.about,
            exit: self.exit,
            foreign: self.foreign,
            pidfd: self.pidfd.as_fd(),
            pipes: [self.pipes[0].as_ref().map(AsFd::as_fd), self.pipes[1].as_ref().map(AsFd::as_fd)],
            logs: [self.logs[0].as_ref().map(AsFd::as_fd), self.logs[1].as_ref().map(AsFd::as_fd)],
        }
    }
}

/// Moves what is in a pipe to the end of a file, as far as that succeeds.
fn drain(pipe: &OwnedFd, log: &OwnedFd) {
    // With an empty pipe the disk is not even asked, since it may not answer. One piece is moved
    // and not all, since a process that prints without end would take all of the keeper's time.
    if !logs::holds_something(pipe.as_fd()) {
        return;
    }
    let _ = logs::splice_to_end(pipe.as_fd(), log.as_fd(), PIECE);
}
