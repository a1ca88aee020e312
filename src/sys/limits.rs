//! Limits of this process (getrlimit(2)), and those that its children get back.

use nix::libc::{self, rlimit};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What this process was started with, where it has changed that for itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Open descriptors: programs that still use select(2) rely on a low one.
    pub(crate) files: rlimit,
    /// Bytes of a core file.
    pub(crate) core: rlimit,
}

impl Limits {
    /// Raises the limit on open descriptors as far as it may be. Returns those before.
    pub(crate) fn raise() -> Limits {
        let limits = Limits::of_this_process();
        if limits.files.rlim_cur < limits.files.rlim_max {
            // A refusal leaves the old limit, which then is what a failing pipe will name.
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

/// So many descriptors this process may have open.
pub(crate) fn open_files() -> u64 {
    Limits::of_this_process().files.rlim_cur
}

/// What this process holds is not left in a core file should it crash: environments with secrets may
/// be among it. Only for a process that is regrow's alone.
pub fn leave_no_core() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_CORE) {
        // A file is not begun for so little, and the kernel starts no program to take a core either,
        // which it does in spite of 0 (core(5), core_pattern with a pipe). Lowering is always allowed.
        let _ = setrlimit(Resource::RLIMIT_CORE, hard.min(1), hard);
    }
}

/// Lowers the priority of the calling thread alone (nice value 10).
pub(crate) fn lower_priority() {
    // SAFETY: it takes numbers and touches no memory; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
}
