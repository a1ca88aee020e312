//! The signals that `regrow run` and a supervising program react to, and the deaths of children.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use nix::libc;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Has a thread of this process that is blocked in a system call return from it with EINTR as soon
/// as it can. Uses a real-time signal; does nothing where the program itself has a handler for that
/// signal.
pub(crate) fn interrupt(thread: Pid) {
    static CAN: OnceLock<bool> = OnceLock::new();
    extern "C" fn nothing(_: libc::c_int) {}
    // Near the end of the real-time signals, which have no fixed use.
    let signal = libc::SIGRTMAX() - 2;
    let can = CAN.get_or_init(|| {
        // SAFETY: a zeroed sigaction is valid, and both pointers are valid for the length of the calls. The
        // handler does nothing, which may be done at any moment.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, std::ptr::null(), &raw mut action) != 0
                || action.sa_sigaction != libc::SIG_DFL
            {
                return false;
            }
            // Without SA_RESTART: the system call that it interrupts is not restarted.
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut()) == 0
        }
    });
    if *can {
        // SAFETY: numbers; a thread that is gone is none of this process, and nobody is signalled.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread.as_raw(), signal) };
    }
}

/// A signal that a foreground run reacts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalAction {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGHUP: the terminal was closed.
    HangUp,
    /// SIGQUIT: Ctrl-\.
    Quit,
}

impl SignalAction {
    /// The signal's number.
    pub fn number(self) -> i32 {
        match self {
            SignalAction::Interrupt => 2,
            SignalAction::Terminate => 15,
            SignalAction::HangUp => 1,
            SignalAction::Quit => 3,
        }
    }
}

/// Listens for the signals that end a foreground run.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    quit: Signal,
    /// `None` when SIGHUP was ignored when this process was started (nohup); it then stays ignored.
    hang_up: Option<Signal>,
}

impl Signals {
    /// Starts to listen. Must be called inside a tokio runtime.
    pub fn listen() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
            hang_up: if hang_up_is_ignored() { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) -> SignalAction {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => SignalAction::Interrupt,
            _ = self.terminate.recv() => SignalAction::Terminate,
            _ = self.quit.recv() => SignalAction::Quit,
            _ = hang_up => SignalAction::HangUp,
        }
    }
}

/// Wakes a thread when a child of this process has died. It wakes once, for the first death since
/// [`ChildDeaths::hear_again`], and not for each: the end of most children is seen by other means.
///
/// It has a signal handler of its own, beside those of the program: a runtime that passed every
/// signal on would be woken for each.
pub(crate) struct ChildDeaths {
    inner: Arc<Deaths>,
    action: signal_hook_registry::SigId,
}

struct Deaths {
    heard: AtomicBool,
    wake: EventFd,
}

impl ChildDeaths {
    /// Starts to listen. Dropping the value stops it.
    pub(crate) fn listen() -> io::Result<ChildDeaths> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let inner = Arc::new(Deaths { heard: AtomicBool::new(false), wake });
        let deaths = Arc::clone(&inner);
        let hear = move || {
            if !deaths.heard.swap(true, Ordering::SeqCst) {
                let _ = deaths.wake.write(1);
            }
        };
        // SAFETY: it changes an atomic and writes to a descriptor that it owns, both of which a signal handler
        // may (signal-safety(7)); the registry keeps errno, and frees the handler outside of any signal.
        let action = unsafe { signal_hook_registry::register(libc::SIGCHLD, hear) }?;
        Ok(ChildDeaths { inner, action })
    }

    /// A descriptor that becomes readable when a child has died.
    pub(crate) fn wake(&self) -> BorrowedFd<'_> {
        self.inner.wake.as_fd()
    }

    /// Acknowledges the wake-up. No further death is reported until [`ChildDeaths::hear_again`].
    pub(crate) fn woke(&self) {
        let _ = self.inner.wake.read();
    }

    /// Has the next death wake again. The caller looks for dead children after this call, and so misses
    /// none.
    pub(crate) fn hear_again(&self) {
        self.inner.heard.store(false, Ordering::SeqCst);
    }
}

impl Drop for ChildDeaths {
    fn drop(&mut self) {
        signal_hook_registry::unregister(self.action);
    }
}

fn hang_up_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

/// Ends this process by SIGPIPE, as other small programs end. Until then SIGPIPE is ignored: a
/// supervisor that exits closes a socket, and the user must be told.
pub fn end_by_broken_pipe() -> ! {
    use nix::sys::signal::{SigHandler, Signal, raise, signal};
    // SAFETY: the default action installs no handler.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    let _ = raise(Signal::SIGPIPE);
    std::process::exit(128 + Signal::SIGPIPE as i32)
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    /// Other tests of this process have children too; the assertions hold whenever those die.
    #[test]
    fn a_death_is_heard_once_until_the_next_is_to_be() {
        let deaths = ChildDeaths::listen().unwrap();
        let is_readable = |timeout: u16| {
            let mut fds = [PollFd::new(deaths.wake(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(timeout)).unwrap_or(0) == 1
        };
        let die = || assert!(std::process::Command::new("true").status().unwrap().success());
        die();
        assert!((0..100).any(|_| is_readable(100)), "it is heard");
        deaths.woke();
        die();
        assert!(!is_readable(0), "the next is not");
        deaths.hear_again();
        die();
        assert!((0..100).any(|_| is_readable(100)), "and the one after that is again");
    }
}
