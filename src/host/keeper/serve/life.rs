//! The life of the daemon below a keeper: how it is started, how long it may take to come up, and
//! what follows its end.
//!
//! Deliberately absent: the rules of what follows, which are in `decide::succession`.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::ForkResult;

use super::{COMING_UP, Daemon, Fate, Keeper, Made, Pulse, signal};
use crate::decide::succession::{AfterDaemon, DaemonEnd, DaemonIntent, after_daemon};
use crate::host::keeper::standby::Standby;
use crate::host::keeper::wire::{Came, Inbox, Outbox, ToKeeper, pair};
use crate::host::keeper::{LINE, NewLine, STANDS_STILL, as_daemon, assignment, complain, handover, pulse};
use crate::model::Exit;
use crate::sys::{pidfd, proc};

/// Whoever kills daemon and keeper together means both. So no new daemon is started until this long
/// after the daemon's death.
const TOGETHER: Duration = Duration::from_micros(500);
/// How long the keeper waits after a failed fork before it tries again.
const AGAIN: Duration = Duration::from_millis(100);

impl Keeper {
    /// Starts another daemon while the last one is dying, before the kernel reports how it ended.
    /// `false`: the last one had not greeted the keeper, or had said that it ends for good, and its
    /// end is waited for.
    pub(super) fn replace_dying(&mut self) -> bool {
        self.hear_it_out();
        let Daemon::Up { pid, greeted: true, then: DaemonIntent::Again | DaemonIntent::Replaced, .. } =
            &self.daemon
        else {
            if let Daemon::Up { pulse, .. } = &mut self.daemon {
                *pulse = Pulse::Over(Instant::now());
            }
            return false;
        };
        self.dying.insert(*pid);
        std::thread::sleep(TOGETHER);
        self.daemon_ended(None);
        true
    }

    /// Goes on although a thread of the dead daemon is blocked in the kernel.
    pub(super) fn wait_no_more_for_what_stands_still(&mut self) {
        if let Daemon::Up { pid, pulse: Pulse::Over(since), .. } = &self.daemon
            && since.elapsed() >= STANDS_STILL
            && let Some(exit) = proc::exit_of_zombie(*pid)
        {
            complain("a thread of the daemon is stuck in the kernel: a disk does not answer");
            self.daemon_ended(Some(exit));
        }
    }

    /// Reads what a dead daemon had sent. Its orders remain valid, and are carried out once the
    /// next daemon is there.
    fn hear_it_out(&mut self) {
        let Daemon::Up { line, inbox, then, .. } = &mut self.daemon else {
            return;
        };
        while let Ok(Came::Something) = inbox.fill(line.as_fd(), false) {}
        while let Ok(Some(frame)) = inbox.next::<ToKeeper>() {
            match frame.say {
                ToKeeper::Bye { code } => *then = DaemonIntent::End(code),
                ToKeeper::Replace { program } => {
                    let program = CString::new(program.into_os_string().into_vec()).ok();
                    self.before = Some(std::mem::replace(&mut self.program, program));
                    *then = DaemonIntent::Replaced;
                }
                _ => self.late.push(frame),
            }
        }
    }

    /// Decides what follows the daemon's end. `exit`: how it ended, if the kernel has reported that
    /// already.
    pub(super) fn daemon_ended(&mut self, exit: Option<Exit>) {
        self.hear_it_out();
        let Daemon::Up { pid, since, greeted, then, .. } =
            std::mem::replace(&mut self.daemon, Daemon::down(Duration::ZERO))
        else {
            return;
        };
        if then == DaemonIntent::Replaced {
            // The daemon's end was wanted, and need not be reported.
            self.dying.remove(&pid);
        }
        let on_trial = then == DaemonIntent::Again && self.before.is_some();
        let (lived, first, failures) = (since.elapsed(), self.fresh, self.failures);
        match after_daemon(&DaemonEnd { exit, lived, greeted, first, on_trial, directive: then, failures }) {
            AfterDaemon::End(code) => {
                self.carry_out_late();
                self.end(code);
            }
            AfterDaemon::Start { pause, program_before, failures } => {
                self.failures = failures;
                self.daemon = Daemon::down(pause);
                if program_before {
                    self.program = self.before.take().flatten();
                    let how = exit.map(|exit| format!(" by {exit}")).unwrap_or_default();
                    complain(&format!(
                        "the new daemon was ended{how} before it was up; the old one is started again"
                    ));
                } else if let (DaemonIntent::Again, Some(exit)) = (then, exit) {
                    self.tell_end_of_daemon(exit);
                }
            }
        }
    }

    pub(super) fn tell_end_of_daemon(&self, exit: Exit) {
        let lives = self.entries.values().filter(|entry| entry.exit.is_none()).count();
        complain(&format!(
            "the daemon was ended by {exit}; its {lives} processes keep running, and it is started again"
        ));
    }

    /// Carries out the orders of the last daemon, except its starts.
    pub(super) fn carry_out_late(&mut self) {
        let late = std::mem::take(&mut self.late);
        for frame in late {
            match frame.say {
                // The next daemon orders these starts anew.
                ToKeeper::Spawn { key, .. } => self.last_key = self.last_key.max(key),
                ToKeeper::Hello { .. } => {}
                order => self.obey(order, &frame.bytes, frame.fds),
            }
        }
    }

    /// Kills the processes whose start is not settled. The next daemon is not told of them, and
    /// orders them anew.
    fn abandon_starts(&mut self) {
        self.settle_starts();
        for pending in &mut self.pending {
            let _ = pidfd::signal(pending.begun.pidfd(), nix::libc::SIGKILL);
            pending.fate = Fate::Abandoned;
        }
    }

    /// Ends the keeper, as the daemon asked: every process that is left is killed.
    fn end(&mut self, code: i32) -> ! {
        self.abandon_starts();
        for entry in self.entries.values().filter(|entry| entry.exit.is_none()) {
            let _ = pidfd::signal(&entry.pidfd, nix::libc::SIGKILL);
        }
        std::process::exit(code)
    }

    /// Starts a daemon, if that is due. In the new daemon, returns its end of the keeper's socket.
    pub(super) fn start_daemon_if_due(&mut self) -> Option<NewLine> {
        let Daemon::Down { start_at, pause, .. } = &self.daemon else {
            return None;
        };
        let pause = *pause;
        if *start_at > Instant::now() {
            return None;
        }
        match self.start_daemon(pause) {
            Ok(Made::Daemon(line)) => return Some(line),
            Ok(Made::Child { pid, line, pulse }) => {
                self.daemon = Daemon::up(pid, line, Some(pulse), false);
                if let Daemon::Up { since, .. } = &mut self.daemon {
                    *since += pause;
                }
                if self.orphaned {
                    complain("the keeper was ended; this process has taken its place");
                }
                self.abandon_starts();
            }
            Err(error) => {
                complain(&format!("the daemon can't be started: {error}"));
                if let Daemon::Down { start_at, .. } = &mut self.daemon {
                    *start_at = Instant::now() + AGAIN;
                }
            }
        }
        None
    }

    /// A daemon of the same program is a fork of this process, which has kept itself as it was at
    /// its start. A daemon of another program is executed.
    fn start_daemon(&mut self, pause: Duration) -> io::Result<Made> {
        let (here, there) = pair()?;
        let (pulse, held) = pulse::pair()?;
        // SAFETY: this process has one thread, so the child's copy of memory is whole.
        match unsafe { nix::unistd::fork() }? {
            ForkResult::Child => {
                if let Err(error) = as_daemon() {
                    complain(&format!("a daemon process can't be set up: {error}"));
                    std::process::exit(127);
                }
                let (since, standby) = (self.since, self.standby.take());
                let follows = !self.fresh;
                let line = NewLine { line: there, since, pause, follows, pulse: Some(held), standby };
                let Some(program) = self.program.take() else {
                    self.entries.clear();
                    return Ok(Made::Daemon(line));
                };
                let Err(error) = self.execute(&program, &line);
                complain(&format!("{} can't be executed: {error}", program.to_string_lossy()));
                std::process::exit(127)
            }
            ForkResult::Parent { child } => {
                Ok(Made::Child { pid: child.as_raw().cast_unsigned(), line: here, pulse })
            }
        }
    }

    fn execute(&self, program: &CString, line: &NewLine) -> io::Result<std::convert::Infallible> {
        let env: Vec<CString> = std::env::vars_os()
            .chain([(LINE.into(), line.variable().into())])
            .chain(line.standby.as_ref().map(Standby::variable))
            .filter_map(|(name, value)| assignment(&name, &value))
            .collect();
        let stay = [Some(&line.line), line.pulse.as_ref(), line.standby.as_ref().map(Standby::held)];
        for fd in stay.into_iter().flatten() {
            nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
        }
        Ok(nix::unistd::execve(program, &self.args, &env)?)
    }

    /// Finishes every frame that is half received or half sent, because neither can be handed over.
    fn come_to_an_end_of_talk(&mut self) {
        loop {
            self.take_orders();
            let Daemon::Up { line, inbox, outbox, .. } = &mut self.daemon else {
                return;
            };
            if inbox.is_empty() && outbox.is_empty() {
                return;
            }
            let mut flags = PollFlags::POLLIN;
            if !outbox.is_empty() {
                flags |= PollFlags::POLLOUT;
            }
            let _ = poll(&mut [PollFd::new(line.as_fd(), flags)], PollTimeout::NONE);
            if outbox.flush(line.as_fd()).is_err()
                || matches!(inbox.fill(line.as_fd(), false), Ok(Came::End) | Err(_))
            {
                // The daemon is gone, and with it the rest of what it was sending.
                (*inbox, *outbox) = (Inbox::default(), Outbox::default());
            }
        }
    }

    /// Re-executes the keeper as another build of itself.
    pub(super) fn renew(&mut self, program: OsString) {
        self.come_to_an_end_of_talk();
        // A start that is under way can't be handed over.
        while !self.pending.is_empty() {
            let mut fds: Vec<PollFd<'_>> = self
                .pending
                .iter()
                .map(|pending| PollFd::new(pending.begun.status(), PollFlags::POLLIN))
                .collect();
            let _ = poll(&mut fds, PollTimeout::NONE);
            self.settle_starts();
        }
        // Children that have ended are reported by a signal that the next program would not receive
        // again.
        self.reap();
        let daemon = match &self.daemon {
            Daemon::Up { pid, line, pulse, .. } => {
                let pulse = match pulse {
                    Pulse::Beats(pulse) => pulse.as_ref().map(AsFd::as_fd),
                    Pulse::Over(_) => None,
                };
                Some((*pid, line.as_fd(), pulse))
            }
            Daemon::Down { .. } => None,
        };
        let entries = self.entries.iter().map(|(key, entry)| entry.handed(*key)).collect();
        let Ok(program) = CString::new(program.into_vec()) else {
            return;
        };
        let error = handover::execute(handover::State {
            since: self.since,
            last_key: self.last_key,
            daemon,
            program: &program,
            next: None,
            orphaned: self.orphaned,
            standby: self.standby.as_ref(),
            held: self
                .held
                .iter()
                .map(|(name, (text, fd))| (name.as_str(), text.as_str(), fd.as_ref().map(AsFd::as_fd)))
                .collect(),
            args: &self.args,
            entries,
        });
        complain(&format!("the keeper can't be replaced and continues as it is: {error}"));
    }

    /// Kills the daemon of another build that has not greeted the keeper in time, so that the one
    /// before is started again.
    pub(super) fn give_up_on_a_silent_one(&mut self) {
        if let Daemon::Up { pid, since, greeted: false, .. } = &self.daemon
            && self.before.is_some()
            && since.elapsed() > COMING_UP
        {
            signal(*pid, Signal::SIGKILL);
        }
    }
}
