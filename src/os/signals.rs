//! The signals that `regrow run` and a supervising program hear.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGHUP: the terminal is gone.
    HangUp,
    /// SIGQUIT: Ctrl-\.
    Quit,
}

impl Heard {
    /// The signal's number.
    pub fn number(self) -> i32 {
        match self {
            Heard::Interrupt => 2,
            Heard::Terminate => 15,
            Heard::HangUp => 1,
            Heard::Quit => 3,
        }
    }
}

/// Listens to the signals that end a foreground run.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    quit: Signal,
    /// `None`: SIGHUP was ignored when we were started (nohup), and stays so.
    hang_up: Option<Signal>,
}

impl Signals {
    /// Starts to listen. Must be called within a tokio runtime.
    pub fn listen() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
            hang_up: if hang_up_is_ignored() { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    /// The next one.
    pub async fn next(&mut self) -> Heard {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Heard::Interrupt,
            _ = self.terminate.recv() => Heard::Terminate,
            _ = self.quit.recv() => Heard::Quit,
            _ = hang_up => Heard::HangUp,
        }
    }
}

/// Listens to SIGCHLD, on behalf of what services leave behind.
#[derive(Debug)]
pub struct ChildSignal(Signal);

impl ChildSignal {
    /// Starts to listen. Must be called within a tokio runtime.
    pub fn listen() -> io::Result<ChildSignal> {
        Ok(ChildSignal(signal(SignalKind::child())?))
    }

    /// Some child died since the last call. `false`: there will be no more news.
    pub async fn next(&mut self) -> bool {
        self.0.recv().await.is_some()
    }
}

fn hang_up_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

/// Ends this process as a closed pipe ends other small programs. The signal itself is ignored until
/// then: a supervisor that goes closes a socket, and that is to be told.
pub fn end_by_broken_pipe() -> ! {
    use nix::sys::signal::{SigHandler, Signal, raise, signal};
    // SAFETY: the default action installs no handler.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    let _ = raise(Signal::SIGPIPE);
    std::process::exit(128 + Signal::SIGPIPE as i32)
}
