//! The life of the daemon below: how it is made, how long it may take to come up, what follows when
//! it ends.

use super::*;
use crate::os::keeper::{LINE, as_daemon, assignment};

impl Keeper {
    pub(super) fn daemon_ended(&mut self, exit: Exit) {
        let daemon = std::mem::replace(
            &mut self.daemon,
            Daemon::Down { since: Instant::now(), start_at: Instant::now() },
        );
        let Daemon::Up { since, line, mut inbox, outbox, greeted, then, .. } = daemon else {
            return;
        };
        // What it has ordered it meant: it is carried out for the one that follows.
        while let Ok(Came::Something) = inbox.fill(line.as_fd(), false) {}
        self.daemon = Daemon::Up { pid: ENDED, since, line, inbox, outbox, greeted: true, then };
        self.take_orders();
        self.abandon_starts();
        let down = Daemon::Down { since: Instant::now(), start_at: Instant::now() };
        let Daemon::Up { then, .. } = std::mem::replace(&mut self.daemon, down) else {
            return;
        };
        match then {
            Then::End(code) => self.end(i32::from(code)),
            Then::Replaced => {
                self.failures = 0;
                return;
            }
            Then::Again => {}
        }
        // It did not like what it was started with, and has said so.
        if self.fresh
            && let Exit::Code(code) = exit
        {
            self.end(code);
        }
        if let Some(before) = self.before.take() {
            self.program = before;
            complain(&format!(
                "the new daemon was ended by {exit} before it was up; the old one is started again"
            ));
            return;
        }
        self.failures = if since.elapsed() > SETTLED { 0 } else { self.failures + 1 };
        let pause = match self.failures {
            0 | 1 => Duration::ZERO,
            // It came up: whatever ends it then is to cost nobody more than a moment.
            n if greeted => LONGEST_BREATH.min(Duration::from_millis(2) * n),
            n => LONGEST_PAUSE.min(Duration::from_millis(50) * 2u32.saturating_pow(n.min(16))),
        };
        complain(&format!(
            "the daemon was ended by {exit}; its {} processes live on, it is started again",
            self.entries.values().filter(|entry| entry.exit.is_none()).count()
        ));
        self.daemon = Daemon::Down { since: Instant::now(), start_at: Instant::now() + pause };
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
    pub(super) fn start_daemon_if_due(&mut self) -> Option<Tether> {
        let Daemon::Down { start_at, .. } = &self.daemon else {
            return None;
        };
        if *start_at > Instant::now() {
            return None;
        }
        match self.start_daemon() {
            Ok(Made::Daemon(tether)) => return Some(tether),
            Ok(Made::Child(pid, line)) => self.daemon = Daemon::up(pid, line, false),
            Err(error) => {
                complain(&format!("the daemon can't be started: {error}"));
                if let Daemon::Down { start_at, .. } = &mut self.daemon {
                    *start_at = Instant::now() + Duration::from_secs(1);
                }
            }
        }
        None
    }

    /// A daemon of this very program is a copy of this process, which has kept itself as it was at
    /// its start; one of another build is executed.
    fn start_daemon(&mut self) -> io::Result<Made> {
        let (here, there) = pair()?;
        // SAFETY: this process has one thread, so the child's copy of memory is whole.
        match unsafe { nix::unistd::fork() }? {
            ForkResult::Child => {
                if let Err(error) = as_daemon() {
                    complain(&format!("a daemon can't be: {error}"));
                    std::process::exit(127);
                }
                let Some(program) = self.program.take() else {
                    self.entries.clear();
                    return Ok(Made::Daemon(Tether { line: there }));
                };
                let Err(error) = self.execute(&program, there);
                complain(&format!("{} can't be executed: {error}", program.to_string_lossy()));
                std::process::exit(127)
            }
            ForkResult::Parent { child } => Ok(Made::Child(child.as_raw().cast_unsigned(), here)),
        }
    }

    fn execute(&self, program: &CString, line: OwnedFd) -> io::Result<std::convert::Infallible> {
        let number = line.as_raw_fd().to_string();
        let env: Vec<CString> = std::env::vars_os()
            .chain([(LINE.into(), number.into())])
            .filter_map(|(name, value)| assignment(&name, &value))
            .collect();
        nix::fcntl::fcntl(&line, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
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
            Daemon::Up { pid, line, .. } => Some((*pid, line.as_fd())),
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
