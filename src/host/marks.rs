//! The marks that a process tree carries, by which it is found again where it has no cgroup.
//!
//! A mark is a variable of the environment, and a number in two limits that limit nothing. Children
//! inherit both. Deliberately absent: the search for marks, and what is done with the processes it
//! finds.

use std::fs;

use nix::libc;
use nix::sys::resource::Resource;

/// The limits that carry a mark, with their names in /proc/PID/limits. Neither limits anything in
/// practice, and a program that sets one of them on purpose keeps the other. The kernel ignores the
/// limit on file locks.
pub(crate) const MARKED: [(Resource, &str); 2] =
    [(Resource::RLIMIT_RTTIME, "Max realtime timeout"), (Resource::RLIMIT_LOCKS, "Max file locks")];

/// The mark that a process carries in its limits, of any run; `None` if it carries none.
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

/// The mark of a process of another user, whose limits can only be read from /proc.
fn mark_that_is_read(pid: u32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    MARKED.iter().find_map(|(_, name)| {
        let soft = limits.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?;
        soft.parse().ok().filter(|soft| run_of(*soft).is_some())
    })
}

/// The number that a tree's processes inherit in the limits of [`MARKED`]. As a limit on real-time
/// computing it amounts to over a hundred thousand years.
pub(crate) fn limit_mark(run: u64, key: u64) -> u64 {
    1 << 62 | u64::from(number_of(run)) << 32 | (key & 0xffff_ffff)
}

/// The part of a run's mark that fits into the limits.
pub(crate) fn number_of(run: u64) -> u32 {
    u32::try_from(run & 0x3fff_ffff).unwrap_or_default()
}

/// The run that a limit's value is a mark of; `None` if the value is no mark.
pub(crate) fn run_of(mark: u64) -> Option<u32> {
    // An unlimited value has every bit set.
    (mark >> 62 == 1).then(|| number_of(mark >> 32))
}

/// The marks by which a tree without a cgroup is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marks {
    /// The value of the variable `REGROW_MARK` in its environment; no other process tree has it.
    pub(crate) variable: String,
    /// The value in its limits; no other process tree has it.
    pub(crate) limit: u64,
}

impl Marks {
    /// The marks of the process with this key in this run.
    pub(crate) fn of(run: u64, key: u64) -> Marks {
        Marks { variable: format!("{run:016x}.{key}"), limit: limit_mark(run, key) }
    }
}
