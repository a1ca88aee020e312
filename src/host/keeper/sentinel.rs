//! Watches the keeper's socket while a daemon starts. To read manifests and open the store may take
//! long, and a keeper that is killed meanwhile must have a successor at once.
//!
//! Once the host's reaper listens to the socket, the sentinel retires.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::handover;
use super::standby::Standby;
use crate::decide::succession::{DaemonIntent, makes_a_standby};

/// A thread that waits for the end of the keeper's socket.
#[derive(Debug)]
pub(crate) struct Sentinel {
    duty: Arc<Duty>,
}

#[derive(Debug)]
struct Duty {
    /// Set first by whoever handles the keeper's succession: the sentinel or the reaper.
    taken: AtomicBool,
    /// Wakes the sentinel's thread when it retires.
    wake: EventFd,
    line: OwnedFd,
    since: Duration,
    standby: Option<Standby>,
}

impl Sentinel {
    pub(super) fn over(line: &OwnedFd, since: Duration, standby: Option<Standby>) -> io::Result<Sentinel> {
        let duty = Arc::new(Duty {
            taken: AtomicBool::new(false),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            line: line.try_clone()?,
            since,
            standby,
        });
        let watched = Arc::clone(&duty);
        let watch = move || watched.watch();
        std::thread::Builder::new().name("regrow-sentinel".into()).stack_size(128 * 1024).spawn(watch)?;
        Ok(Sentinel { duty })
    }

    /// Ends the sentinel's duty: the keeper sent its welcome, and the reaper listens to the socket
    /// from now on. `false`: the socket has ended already, and this process is about to become the
    /// keeper.
    pub(crate) fn retire(&self) -> bool {
        let mine = !self.duty.taken.swap(true, Ordering::SeqCst);
        if mine {
            let _ = self.duty.wake.write(1);
        }
        mine
    }
}

impl Duty {
    fn watch(&self) {
        let ended = loop {
            let mut fds = [
                PollFd::new(self.line.as_fd(), PollFlags::empty()),
                PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
            ];
            if poll(&mut fds, PollTimeout::NONE).is_ok() {
                break fds[0].revents().is_some_and(|events| !events.is_empty());
            }
        };
        if ended && !self.taken.swap(true, Ordering::SeqCst) {
            carry_on(self.since, self.standby.as_ref());
        }
    }
}

/// Becomes a keeper to which nothing was handed. If the process can't be re-executed, that is tried
/// until it can.
fn carry_on(since: Duration, standby: Option<&Standby>) -> ! {
    super::quieten();
    // An inherited standby waits for this process as well, unless the keeper dismissed it before it
    // was killed.
    let standby = standby.filter(|standby| standby.waits());
    let mut made = None;
    if makes_a_standby(standby.is_some(), DaemonIntent::Again) {
        match handover::standby(since) {
            Ok(standby) => made = Some(standby),
            Err(error) => super::complain(&format!("a standby process can't be started: {error}")),
        }
    }
    loop {
        let error = handover::execute_with_nothing(since, standby.or(made.as_ref()));
        super::complain(&format!("a keeper can't be executed, trying again: {error}"));
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Waits for the pause, or until the keeper's end of the socket is closed.
pub(super) fn rest(line: &OwnedFd, pause: Duration) {
    let line: BorrowedFd<'_> = line.as_fd();
    let pause = PollTimeout::try_from(pause.as_millis()).unwrap_or(PollTimeout::MAX);
    if pause != PollTimeout::ZERO {
        let _ = poll(&mut [PollFd::new(line, PollFlags::empty())], pause);
    }
}
