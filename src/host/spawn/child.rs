//! The steps of the child from its first moment to `execve`: raw system calls in the memory of the
//! process that cloned it, or in a copy of it. Nothing here allocates, locks or returns.

use std::ptr;

use nix::libc::{self, c_char, c_int, c_long, c_void};

use crate::host::marks::MARKED;
use crate::sys::limits::Limits;

/// Where the child reports a failed step. In shared memory, so that even a forked child's report
/// arrives.
#[repr(C)]
pub(super) struct Report {
    pub(super) stage: c_int,
    pub(super) errno: c_int,
}

/// All that the child needs, as plain values and pointers.
pub(super) struct ChildPlan {
    pub(super) program: *const c_char,
    pub(super) argv: *const *const c_char,
    pub(super) envp: *const *const c_char,
    pub(super) dir: *const c_char,
    /// The standard input of the child.
    pub(super) input: c_int,
    pub(super) out: c_int,
    pub(super) err: c_int,
    /// The first descriptor after the standard three; -1 if there is none.
    pub(super) extra: c_int,
    /// The pipe on which the child says that its descriptors are its own, and which its start
    /// closes; -1 if nobody listens.
    pub(super) status: c_int,
    pub(super) highest: c_int,
    pub(super) unshare: bool,
    pub(super) limits: Limits,
    pub(super) ids: Option<ChildIds>,
    pub(super) umask: Option<u32>,
    pub(super) nice: Option<i32>,
    /// Which of the [`MARKED`] limits get the mark.
    pub(super) marked: [bool; 2],
    /// The value of those limits, see `limit_mark` in `host::marks`.
    pub(super) mark: libc::rlimit,
    pub(super) parent: c_int,
    pub(super) report: *mut Report,
}

/// The user and the groups that the child runs as.
pub(super) struct ChildIds {
    pub(super) uid: libc::uid_t,
    pub(super) gid: libc::gid_t,
    pub(super) groups: *const libc::gid_t,
    pub(super) count: usize,
}

/// The child's steps, by their numbers in the report.
#[derive(Clone, Copy)]
pub(super) enum Step {
    Unshare = 1,
    Session = 2,
    Chdir = 3,
    Stdio = 4,
    Exec = 5,
    User = 6,
}

impl Step {
    pub(super) fn from_number(number: c_int) -> Option<Step> {
        [Step::Unshare, Step::Session, Step::Chdir, Step::Stdio, Step::Exec, Step::User]
            .into_iter()
            .find(|step| *step as c_int == number)
    }
}

/// Makes a system call of the child and returns its result, or the error number negated. libc's own
/// function would write that number to a variable of the thread that cloned the child and that goes
/// on meanwhile.
///
/// # Safety
/// Those of the system call itself: pointer arguments must be what the call takes them for.
#[cfg(target_arch = "x86_64")]
unsafe fn raw(number: c_long, args: [c_long; 5]) -> c_long {
    let result;
    // SAFETY: the clobbered registers of a system call are declared; the caller answers for what
    // the call does with the arguments.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// Makes a system call on an architecture without a raw one here: there the cloning thread is
/// blocked until the child has executed.
///
/// # Safety
/// As for the raw call.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn raw(number: c_long, args: [c_long; 5]) -> c_long {
    // SAFETY: as its caller says.
    let result = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4]) };
    if result < 0 { -c_long::from(nix::errno::Errno::last_raw()) } else { result }
}

/// A value that fits into one argument of a system call.
trait Word {
    fn word(self) -> c_long;
}

impl Word for c_int {
    fn word(self) -> c_long {
        c_long::from(self)
    }
}

impl Word for c_long {
    fn word(self) -> c_long {
        self
    }
}

impl Word for u32 {
    fn word(self) -> c_long {
        c_long::from(self)
    }
}

impl Word for usize {
    fn word(self) -> c_long {
        self as c_long
    }
}

impl<T> Word for *const T {
    fn word(self) -> c_long {
        self.expose_provenance() as c_long
    }
}

/// Calls [`raw`] with up to five arguments.
macro_rules! sys {
    ($number:expr $(, $argument:expr)* $(,)?) => {{
        let mut args = [0 as c_long; 5];
        let given = [$(Word::word($argument)),*];
        let mut at = 0;
        while at < given.len() {
            args[at] = given[at];
            at += 1;
        }
        raw($number, args)
    }};
}

/// Runs in the child, in our memory, with every signal blocked. Allocates nothing, takes no
/// lock, and never returns.
pub(super) extern "C" fn child(plan: *mut c_void) -> c_int {
    // SAFETY: the parent passed a `ChildPlan` that lives until we execute or end.
    let plan = unsafe { &*plan.cast::<ChildPlan>() };
    // SAFETY: system calls with values from the plan, whose pointers are valid C strings and
    // null-terminated arrays of them.
    unsafe {
        if plan.unshare {
            let first = c_long::from(plan.highest) + 1;
            let last = c_long::from(u32::MAX);
            done(plan, Step::Unshare, sys!(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_UNSHARE));
        }
        if plan.status >= 0 {
            sys!(libc::SYS_write, plan.status, b"U".as_ptr(), 1);
        }
        if plan.parent != 0 {
            sys!(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if sys!(libc::SYS_getppid) != c_long::from(plan.parent) {
                // The supervisor died in between, and no signal will report that.
                fail(plan, Step::Session, -c_long::from(libc::ESRCH));
            }
        }
        done(plan, Step::Session, sys!(libc::SYS_setsid));
        if let Some(nice) = plan.nice {
            done(plan, Step::User, sys!(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, nice));
        }
        if let Some(umask) = plan.umask {
            sys!(libc::SYS_umask, umask);
        }
        if let Some(ids) = &plan.ids {
            // The child can open its output again through /proc only if it owns the pipes.
            for output in [plan.out, plan.err] {
                sys!(libc::SYS_fchown, output, ids.uid, ids.gid);
            }
            // The groups come first, because after the change of user nobody may set them any more.
            // Raw calls are used, since libc's own would change the other threads of the process
            // whose memory is shared.
            done(plan, Step::User, sys!(libc::SYS_setgroups, ids.count, ids.groups));
            done(plan, Step::User, sys!(libc::SYS_setresgid, ids.gid, ids.gid, ids.gid));
            done(plan, Step::User, sys!(libc::SYS_setresuid, ids.uid, ids.uid, ids.uid));
            if plan.parent != 0 {
                // A change of user clears the signal, so the child asks for it once more.
                sys!(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if sys!(libc::SYS_getppid) != c_long::from(plan.parent) {
                    fail(plan, Step::Session, -c_long::from(libc::ESRCH));
                }
            }
        }
        done(plan, Step::Chdir, sys!(libc::SYS_chdir, plan.dir));
        for (from, to) in [(plan.input, 0), (plan.out, 1), (plan.err, 2)] {
            done(plan, Step::Stdio, sys!(libc::SYS_dup3, from, to, 0));
        }
        let mut own = 3;
        if plan.extra >= 0 {
            // The descriptor may already have this number, and would be closed on execution.
            let put = match plan.extra {
                3 => sys!(libc::SYS_fcntl, 3, libc::F_SETFD, 0),
                extra => sys!(libc::SYS_dup3, extra, 3, 0),
            };
            done(plan, Step::Stdio, put);
            own = 4;
        }
        // Descriptors that this process inherited without close-on-exec are closed as well. The
        // pipe that tells of the start stays open until then.
        if plan.status < 0 {
            close_between(own, c_int::MAX, plan.highest);
        } else {
            if plan.status > own {
                close_between(own, plan.status - 1, plan.highest);
            }
            close_between(plan.status + 1, c_int::MAX, plan.highest);
        }
        let Limits { files, core } = &plan.limits;
        for (resource, limit) in [(libc::RLIMIT_NOFILE, files), (libc::RLIMIT_CORE, core)] {
            sys!(libc::SYS_prlimit64, 0, resource, ptr::from_ref(limit), ptr::null::<libc::rlimit>());
        }
        for ((resource, _), _) in MARKED.iter().zip(plan.marked).filter(|(_, marked)| *marked) {
            let resource = *resource as c_int;
            sys!(libc::SYS_prlimit64, 0, resource, ptr::from_ref(&plan.mark), ptr::null::<libc::rlimit>());
        }
        // The default action for every signal: ignored ones outlive an exec. A zeroed
        // kernel sigaction is SIG_DFL without flags on every architecture.
        let default = [0u64; 4];
        for signal in 1..=64 {
            sys!(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null::<u64>(), 8);
        }
        let none = 0u64;
        sys!(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, ptr::null::<u64>(), 8);
        let failed = sys!(libc::SYS_execve, plan.program, plan.argv, plan.envp);
        fail(plan, Step::Exec, failed)
    }
}

/// Closes a range of the child's descriptors.
///
/// # Safety
/// To be called by the child alone.
unsafe fn close_between(first: c_int, last: c_int, highest: c_int) {
    // SAFETY: plain system calls on the child's own table.
    unsafe {
        if sys!(libc::SYS_close_range, first, last, 0) != 0 {
            for fd in first..=last.min(highest) {
                sys!(libc::SYS_close, fd);
            }
        }
    }
}

/// Ends the child if a step has failed.
fn done(plan: &ChildPlan, step: Step, result: c_long) {
    if result < 0 {
        fail(plan, step, result);
    }
}

/// Reports the failed step and ends the child. `result`: the error number negated.
fn fail(plan: &ChildPlan, step: Step, result: c_long) -> ! {
    let errno = -result as c_int;
    // SAFETY: the report is a live shared mapping that only this child writes to now.
    unsafe {
        plan.report.write_volatile(Report { stage: step as c_int, errno });
        loop {
            sys!(libc::SYS_exit_group, 127);
        }
    }
}
