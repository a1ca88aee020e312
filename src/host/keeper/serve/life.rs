//! The life of the daemon below: how it is made, how long it may take to come up, what follows when
//! it ends.

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

/// Who kills daemon and keeper at once means both: within this time after the daemon's death there is no other
/// yet.
const TOGETHER: Duration = Duration::from_micros(500);
/// So long after the kernel would not fork a daemon it is asked again.
const AGAIN: Duration = Duration::from_millis(100);

impl Keeper {
    /// A daemon is dying that was up: another is made before the kernel has told how it ended. `false`: it
    /// was not up, or has said what is to follow, and its end is waited for.
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

    /// What is to follow a daemon's end does not wait for a thread of it that stands still in the kernel.
    pub(super) fn wait_no_more_for_what_stands_still(&mut self) {
        if let Daemon::Up { pid, pulse: Pulse::Over(since), .. } = &self.daemon
            && since.elapsed() >= STANDS_STILL
            && let Some(exit) = proc::exit_of_zombie(*pid)
        {
            complain("a thread of the daemon stands still in the kernel: a disk does not answer");
            self.daemon_ended(Some(exit));
        }
    }

    /// What a dead one has said. What it has ordered it meant: it is carried out for the one that follows, once
    /// that is there.
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

    /// `exit`: how, where the kernel has told that already.
    pub(super) fn daemon_ended(&mut self, exit: Option<Exit>) {
        self.hear_it_out();
        let Daemon::Up { pid, since, greeted, then, .. } =
            std::mem::replace(&mut self.daemon, Daemon::down(Duration::ZERO))
        else {
            return;
        };
        if then == DaemonIntent::Replaced {
            // Its end was wanted, and is no news.
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
            "the daemon was ended by {exit}; its {lives} processes live on, it is started again"
        ));
    }

    /// What the last daemon had ordered; and what it had begun to start is given up.
    pub(super) fn carry_out_late(&mut self) {
        let late = std::mem::take(&mut self.late);
        for frame in late {
            match frame.say {
                // Its starts are begun anew by the next one.
                ToKeeper::Spawn { key, .. } => self.last_key = self.last_key.max(key),
                ToKeeper::Hello { .. } => {}
                order => self.obey(order, &frame.bytes, frame.fds),
            }
        }
    }

    /// A start that has come to nothing yet is not told to the next daemon, which begins it anew.
    fn abandon_starts(&mut self) {
        self.settle_starts();
        for pending in &mut self.pending {
            let _ = pidfd::signal(pending.begun.pidfd(), nix::libc::SIGKILL);
            pending.fate = Fate::Abandoned;
        }
    }

    /// Nothing is left to do: the daemon has seen to that.
    fn end(&mut self, code: i32) -> ! {
        self.abandon_starts();
        for entry in self.entries.values().filter(|entry| entry.exit.is_none()) {
            let _ = pidfd::signal(&entry.pidfd, nix::libc::SIGKILL);
        }
        std::process::exit(code)
    }

    /// In the daemon that was made: the line to its keeper.
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

    /// A daemon of this very program is a copy of this process, which has kept itself as it was at
    /// its start; one of another build is executed.
    fn start_daemon(&mut self, pause: Duration) -> io::Result<Made> {
        let (here, there) = pair()?;
        let (pulse, held) = pulse::pair()?;
        // SAFETY: this process has one thread, so the child's copy of memory is whole.
        match unsafe { nix::unistd::fork() }? {
            ForkResult::Child => {
                if let Err(error) = as_daemon() {
                    complain(&format!("a daemon can't be: {error}"));
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

    /// Hears what was begun to be said, and says what was begun: neither can be handed over.
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
                // It is gone; so is what it had begun to say.
                (*inbox, *outbox) = (Inbox::default(), Outbox::default());
            }
        }
    }

    /// Goes on as another build of itself.
    pub(super) fn renew(&mut self, program: OsString) {
        self.come_to_an_end_of_talk();
        // A start that is half way can't be handed over.
        while !self.pending.is_empty() {
            let mut fds: Vec<PollFd<'_>> = self
                .pending
                .iter()
                .map(|pending| PollFd::new(pending.begun.status(), PollFlags::POLLIN))
                .collect();
            let _ = poll(&mut fds, PollTimeout::NONE);
            self.settle_starts();
        }
        // Who has ended is known by a signal that the next program would not hear again.
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
        complain(&format!("the keeper can't be renewed, and goes on as it is: {error}"));
    }

    /// Another build that says nothing is given up for the one before.
    pub(super) fn give_up_on_a_silent_one(&mut self) {
        if let Daemon::Up { pid, since, greeted: false, .. } = &self.daemon
            && self.before.is_some()
            && since.elapsed() > COMING_UP
        {
            signal(*pid, Signal::SIGKILL);
        }
    }
}
