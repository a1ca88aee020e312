//! Processes that are not ours, watched until they are gone.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::{pidfd, proc};

/// The end of some processes.
pub struct End(Vec<OwnedFd>);

impl End {
    /// Of a supervisor and its keeper, as far as they can be told.
    pub fn of_supervisor(pid: u32) -> End {
        let own = std::process::id();
        let keeper = proc::stat(pid).map(|stat| stat.parent).filter(|keeper| *keeper > 1 && *keeper != own);
        // Of a container's first process nobody sees the end.
        let all = [Some(pid).filter(|pid| *pid > 1), keeper].into_iter().flatten();
        End(all.filter_map(|pid| pidfd::open(pid).ok()).collect())
    }

    /// Returns when all of them are gone, or the time is over: then `false`.
    pub fn wait(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut processes = self.0.iter();
        processes.all(|process| {
            pidfd::ends_within(process.as_fd(), until.saturating_duration_since(Instant::now()))
        })
    }
}
