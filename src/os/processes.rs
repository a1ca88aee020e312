//! Processes that are not ours, watched until they are gone.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::{pidfd, proc};

/// A supervisor whose keeper is gone, and whose end is not told so long after, has a thread that stands still in
/// the kernel, over a disk that does not answer, and decides nothing more.
const GIVEN: Duration = Duration::from_millis(200);

/// The end of a supervisor and its keeper.
pub struct End {
    supervisor: Option<(u32, OwnedFd)>,
    keeper: Option<OwnedFd>,
}

impl End {
    /// As far as they can be told.
    pub fn of_supervisor(pid: u32) -> End {
        let own = std::process::id();
        let keeper = proc::stat(pid).map(|stat| stat.parent).filter(|keeper| *keeper > 1 && *keeper != own);
        // Of a container's first process nobody sees the end.
        let supervisor = Some(pid).filter(|pid| *pid > 1).and_then(|pid| Some((pid, pidfd::open(pid).ok()?)));
        End { supervisor, keeper: keeper.and_then(|keeper| pidfd::open(keeper).ok()) }
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
