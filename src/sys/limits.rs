//! Resource limits of this process (getrlimit(2)), and the original ones, which its children get
//! back.

use nix::libc::{self, rlimit};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The limits that this process was started with, and may have changed for itself since.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The limit on open descriptors: programs that still use select(2) rely on a low one.
    pub(crate) files: rlimit,
    /// The largest size of a core file, in bytes.
    pub(crate) core: rlimit,
}

impl Limits {
    /// Raises the soft limit on open descriptors to the hard one. Returns the limits from before.
    pub(crate) fn raise() -> Limits {
        let limits = Limits::of_this_process();
        if limits.files.rlim_cur < limits.files.rlim_max {
            // When the kernel refuses, the old limit stays, and a later error names it.
            let _ = setrlimit(Resource::RLIMIT_NOFILE, limits.files.rlim_max, limits.files.rlim_max);
        }
        limits
    }

    pub(crate) fn of_this_process() -> Limits {
        let of = |resource, otherwise| {
            let (rlim_cur, rlim_max) = getrlimit(resource).unwrap_or(otherwise);
            rlimit { rlim_cur, rlim_max }
        };
        Limits {
            files: of(Resource::RLIMIT_NOFILE, (1024, 1024)),
            core: of(Resource::RLIMIT_CORE, (0, libc::RLIM_INFINITY)),
        }
    }
}

/// The number of descriptors that this process may have open.
pub(crate) fn open_files() -> u64 {
    Limits::of_this_process().files.rlim_cur
}

/// Keeps this process's memory out of core files: it may hold environments with secrets. Only for a
/// process that runs regrow and nothing else.
pub fn leave_no_core() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_CORE) {
        // With a limit of 1 byte the kernel writes no file and starts no program that would take the
        // core. With a limit of 0 it does start one (core(5), core_pattern with a pipe). Lowering a
        // limit is always allowed.
        let _ = setrlimit(Resource::RLIMIT_CORE, hard.min(1), hard);
    }
}

/// Lowers the priority of the calling thread alone (nice value 10).
pub(crate) fn lower_priority() {
    // SAFETY: it takes numbers and touches no memory; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
}
