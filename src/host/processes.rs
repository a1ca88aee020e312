//! The end of this process, and of supervisors that are not its children, watched until they are
//! gone.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::libc;

use super::stall;
use crate::sys::{pidfd, proc};

/// Ends this process. If one of its threads is blocked over a disk that does not answer, the kernel
/// keeps the process until that thread returns. So the process first closes what it holds (locks,
/// sockets, the store).
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

/// Whether a process has ended except for a thread that is blocked in the kernel.
pub fn is_dead_but_for_a_thread(pid: u32) -> bool {
    proc::exit_of_zombie(pid).is_some()
}

/// How long after its keeper's end a supervisor may take to be reported dead. After that, a zombie
/// has a thread that is blocked in the kernel over a disk that does not answer, and decides nothing
/// more.
const GIVEN: Duration = Duration::from_millis(200);

/// The end of a supervisor and its keeper, to be waited for.
pub struct SupervisorEnd {
    supervisor: Option<(u32, OwnedFd)>,
    keeper: Option<OwnedFd>,
}

impl SupervisorEnd {
    /// Opens the supervisor and the keeper above it, as far as they can be found.
    pub fn of_supervisor(pid: u32) -> SupervisorEnd {
        let own = std::process::id();
        let keeper = proc::stat(pid).map(|stat| stat.parent).filter(|keeper| *keeper > 1 && *keeper != own);
        // Nobody sees the end of a container's first process.
        let supervisor = Some(pid).filter(|pid| *pid > 1).and_then(|pid| Some((pid, pidfd::open(pid).ok()?)));
        SupervisorEnd { supervisor, keeper: keeper.and_then(|keeper| pidfd::open(keeper).ok()) }
    }

    /// Waits until both are gone. Returns `false` if the time runs out first.
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
            // Its main thread has ended, and so have all that could.
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
