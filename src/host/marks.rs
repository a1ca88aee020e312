//! The marks that a tree of processes carries, by which it is found again where it has no cgroup.
//!
//! A mark is a variable of the environment, and a number in two limits that limit nothing: children
//! inherit both without knowing. Deliberately absent: who looks for marks, and what is done with whom they find.

use std::fs;

use nix::libc;
use nix::sys::resource::Resource;

/// The limits that carry a mark, and as what /proc/PID/limits has them: both limit nothing that anybody does, and
/// who sets one of them on purpose keeps the other. That on file locks is nothing to the kernel.
pub(crate) const MARKED: [(Resource, &str); 2] =
    [(Resource::RLIMIT_RTTIME, "Max realtime timeout"), (Resource::RLIMIT_LOCKS, "Max file locks")];

/// The mark that a process carries, of whichever run.
pub(crate) fn mark(pid: u32) -> Option<u64> {
    let number = libc::pid_t::try_from(pid).ok()?;
    for (resource, _) in MARKED {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limit` is valid for writes for the length of the call; a null new limit changes nothing.
        let asked = unsafe { libc::prlimit(number, resource as _, std::ptr::null(), &raw mut limit) };
        if asked != 0 {
            return mark_that_is_read(pid);
        }
        if run_of(limit.rlim_cur).is_some() {
            return Some(limit.rlim_cur);
        }
    }
    None
}

/// Of one that has become another user it is only to be read.
fn mark_that_is_read(pid: u32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    MARKED.iter().find_map(|(_, name)| {
        let soft = limits.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?;
        soft.parse().ok().filter(|soft| run_of(*soft).is_some())
    })
}

/// A number for a tree that its processes hand on without knowing, as limits that limit nothing: see
/// [`MARKED`]. Of real-time computing it is over a hundred thousand years.
pub(crate) fn limit_mark(run: u64, key: u64) -> u64 {
    1 << 62 | u64::from(number_of(run)) << 32 | (key & 0xffff_ffff)
}

/// The part of a run's mark that goes into limits.
pub(crate) fn number_of(run: u64) -> u32 {
    u32::try_from(run & 0x3fff_ffff).unwrap_or_default()
}

/// The run that a limit is a mark of, if it is one.
pub(crate) fn run_of(mark: u64) -> Option<u32> {
    // Unlimited has every bit set.
    (mark >> 62 == 1).then(|| number_of(mark >> 32))
}

/// By what a tree is known that has no cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marks {
    /// `NAME=VALUE` in its environment that no other process tree has.
    pub(crate) variable: String,
    /// Its limit that no other process tree has.
    pub(crate) limit: u64,
}

impl Marks {
    /// Those of a run's process.
    pub(crate) fn of(run: u64, key: u64) -> Marks {
        Marks { variable: format!("{run:016x}.{key}"), limit: limit_mark(run, key) }
    }
}
