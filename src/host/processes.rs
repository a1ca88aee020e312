//! The end of this process, and of others that are not ours, watched until they are gone.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::libc;

use super::stall;
use crate::sys::{pidfd, proc};

/// Ends this process. Where a thread of it stands still over a disk that does not answer, the kernel keeps the
/// process until that comes back; so what it holds (locks, sockets, the store) is let go of first.
pub fn exit(code: i32) -> ! {
    if stall::somebody_stands_still() {
        let _ = std::io::stdout().flush();
        close_all();
    }
    std::process::exit(code)
}

/// Closes every descriptor of this process, which is about to end.
pub(crate) fn close_all() {
    // SAFETY: a system call on numbers. Whoever still uses a descriptor has an error from now on, and ends within
    // moments with this process; none is opened that could be mistaken for another.
    unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) };
}

/// Whether a process has ended but for a thread that stands still in the kernel.
pub fn is_dead_but_for_a_thread(pid: u32) -> bool {
    proc::exit_of_zombie(pid).is_some()
}

/// A supervisor whose keeper is gone, and whose end is not told so long after, has a thread that stands still in
/// the kernel, over a disk that does not answer, and decides nothing more.
const GIVEN: Duration = Duration::from_millis(200);

/// The end of a supervisor and its keeper.
pub struct SupervisorEnd {
    supervisor: Option<(u32, OwnedFd)>,
    keeper: Option<OwnedFd>,
}

impl SupervisorEnd {
    /// As far as they can be told.
    pub fn of_supervisor(pid: u32) -> SupervisorEnd {
        let own = std::process::id();
        let keeper = proc::stat(pid).map(|stat| stat.parent).filter(|keeper| *keeper > 1 && *keeper != own);
        // Of a container's first process nobody sees the end.
        let supervisor = Some(pid).filter(|pid| *pid > 1).and_then(|pid| Some((pid, pidfd::open(pid).ok()?)));
        SupervisorEnd { supervisor, keeper: keeper.and_then(|keeper| pidfd::open(keeper).ok()) }
    }

    /// Returns when both are gone, or the time is over: then `false`.
    pub fn wait(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let ends_within = |process: &OwnedFd, most: Duration| {
            let left = until.saturating_duration_since(Instant::now());
            pidfd::ends_within(process.as_fd(), left.min(most))
        };
        if !self.keeper.as_ref().is_none_or(|keeper| ends_within(keeper, Duration::MAX)) {
            return false;
        }
        let Some((pid, supervisor)) = &self.supervisor else {
            return true;
        };
        while !ends_within(supervisor, GIVEN) {
            // Its first thread has ended, which it does with all others.
            if proc::exit_of_zombie(*pid).is_some() {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
        }
        true
    }
}
