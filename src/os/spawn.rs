//! Making a process, at the same small price however large this one is.
//!
//! One `clone` (`clone3`, where it is to be born in a cgroup) with CLONE_VM and CLONE_VFORK on a
//! stack of its own: no page table is copied, and the child's few steps before `execve` (session, folder, descriptors,
//! signals) are plain system calls in our memory while the calling thread stands still.
//! CLONE_FILES with `close_range(CLOSE_RANGE_UNSHARE)` spares copying the descriptor table,
//! which with thousands of services would cost more than the process.
//!
//! Where the kernel is older than that or refuses it, the same steps run in a forked copy
//! ([`Sharing::Nothing`]).
//!
//! [`Spawner`]s are made once, by threads that live as long as the host: the kernel ends
//! the children (PR_SET_PDEATHSIG) when the *thread* that made them ends.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;

use nix::errno::Errno;
use nix::libc::{self, c_char, c_int, c_long, c_void};
use nix::sys::resource::{Resource, getrlimit};

use super::clone3::{self, CloneArgs};
use super::env;
use crate::model::{SpawnFailure, SpawnStage};

/// A process that runs.
pub(super) struct Spawned {
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) placed: Placed,
}

/// Where a process was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placed {
    /// In the cgroup that it was to be made in.
    InCgroup,
    /// In this process's own, as it was to be.
    WithUs,
    /// There, too: the kernel would not make it in its cgroup.
    Refused(Errno),
}

/// How much the child shares until it executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// Memory and descriptors.
    All,
    /// Memory only: `close_range` can't unshare (before Linux 5.9).
    Memory,
    /// Nothing: the kernel refuses to share.
    Nothing,
}

/// Bytes of the child's stack. It calls a dozen system calls and nothing else.
const STACK: usize = 64 * 1024;

/// Descriptors that are left for everything but services.
const HEADROOM: u64 = 24;

/// Where the child leaves word of a failed step. In shared memory, so that even a forked
/// child's word arrives.
#[repr(C)]
struct Report {
    stage: c_int,
    errno: c_int,
}

/// What one thread needs to make processes.
pub(super) struct Spawner {
    stack: *mut c_void,
    report: *mut Report,
    null: OwnedFd,
    /// Low descriptors that the child's ends of the pipes are moved to, so that the child
    /// keeps a short table.
    slots: [OwnedFd; 2],
    sharing: Sharing,
    /// The limit on descriptors that this process came with; children get it back.
    files: libc::rlimit,
    /// Real-time computing is not limited here, so that a limit can be a mark.
    unlimited: bool,
    die_with_us: bool,
    /// This process's own limit, when it was last looked at.
    limit: u64,
}

// SAFETY: the two mappings belong to this value alone, and it is used by one thread at a time.
unsafe impl Send for Spawner {}

impl Spawner {
    /// `files`: the limit on open descriptors that children get.
    /// `die_with_us`: children get SIGKILL when the thread that made them ends.
    pub(super) fn new(files: libc::rlimit, die_with_us: bool) -> io::Result<Spawner> {
        let null = OwnedFd::from(std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?);
        let slots = [null.try_clone()?, null.try_clone()?];
        let stack = map(STACK, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK)?;
        let report = map(size_of::<Report>(), libc::MAP_SHARED | libc::MAP_ANONYMOUS)?.cast::<Report>();
        Ok(Spawner {
            stack,
            report,
            null,
            slots,
            sharing: Sharing::All,
            files,
            // A mark that an outer regrow left may go: it is no limit.
            unlimited: getrlimit(Resource::RLIMIT_RTTIME)
                .is_ok_and(|(soft, hard)| soft >= 1 << 62 && hard == libc::RLIM_INFINITY),
            die_with_us,
            limit: descriptor_limit(),
        })
    }

    /// Runs a program.
    pub(super) fn spawn(
        &mut self,
        argv: &[String],
        dir: &Path,
        environment: &[CString],
        mark: u64,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Spawned, SpawnFailure> {
        let folder = folder(dir)?;
        let program = find(argv.first().map_or("", String::as_str), dir, environment)?;
        let words =
            argv.iter().map(|word| CString::new(word.as_str())).collect::<Result<Vec<_>, _>>().map_err(
                |_| failure(SpawnStage::Prepare, Errno::EINVAL, "an argument contains a NUL character"),
            )?;
        let argv_ptrs = pointers(&words);
        let env_ptrs = pointers(environment);
        let (stdout, out) = self.pipe(0)?;
        let (stderr, err) = self.pipe(1)?;
        let plan = ChildPlan {
            program: program.path.as_ptr(),
            argv: argv_ptrs.as_ptr(),
            envp: env_ptrs.as_ptr(),
            dir: folder.as_ptr(),
            null: self.null.as_raw_fd(),
            out,
            err,
            highest: out.max(err).max(self.null.as_raw_fd()),
            unshare: self.sharing == Sharing::All,
            files: self.files,
            mark: self.unlimited.then_some(libc::rlimit { rlim_cur: mark, rlim_max: libc::RLIM_INFINITY }),
            parent: if self.die_with_us { std::process::id().cast_signed() } else { 0 },
            report: self.report,
        };
        let made = self.clone_child(&plan, cgroup);
        self.empty_slots();
        match made {
            Ok((pid, pidfd)) => {
                let placed = if cgroup.is_some() { Placed::InCgroup } else { Placed::WithUs };
                Ok(Spawned { pid, pidfd, stdout, stderr, placed })
            }
            Err(Trouble::Cgroup(errno)) => {
                let made = self.spawn(argv, dir, environment, mark, None)?;
                Ok(Spawned { placed: Placed::Refused(errno), ..made })
            }
            Err(Trouble::Share) => {
                self.sharing = match self.sharing {
                    Sharing::All => Sharing::Memory,
                    Sharing::Memory | Sharing::Nothing => Sharing::Nothing,
                };
                self.spawn(argv, dir, environment, mark, cgroup)
            }
            Err(Trouble::Fork(errno)) => {
                let message = match errno {
                    Errno::EAGAIN => "the kernel allows no further process (a limit on processes is reached)",
                    Errno::ENOMEM => "there is not enough memory for another process",
                    Errno::EMFILE | Errno::ENFILE => "there are no descriptors left for another process",
                    _ => "the kernel would not make another process",
                };
                Err(failure(SpawnStage::Fork, errno, message))
            }
            Err(Trouble::Child(stage, errno)) => Err(explain(stage, errno, &program, dir)),
        }
    }

    /// A pipe whose writing end lies in a slot.
    fn pipe(&mut self, slot: usize) -> Result<(OwnedFd, c_int), SpawnFailure> {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(no_descriptors)?;
        // Descriptors are given lowest first, so a high number means that few are left. The
        // control socket must still answer then.
        let needed = u64::try_from(write.as_raw_fd()).unwrap_or(0) + HEADROOM;
        if needed > self.limit {
            // It may have been raised from outside since.
            self.limit = descriptor_limit();
            if needed > self.limit {
                return Err(no_descriptors(Errno::EMFILE));
            }
        }
        nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
            .map_err(no_descriptors)?;
        let place = self.slots[slot].as_raw_fd();
        // SAFETY: both are open descriptors of ours; `place` stays owned by `slots`.
        if unsafe { libc::dup3(write.as_raw_fd(), place, libc::O_CLOEXEC) } < 0 {
            return Err(no_descriptors(Errno::last()));
        }
        Ok((read, place))
    }

    /// Puts `/dev/null` back, so that the pipes' writing ends are the child's alone.
    fn empty_slots(&self) {
        for slot in &self.slots {
            // SAFETY: both are open descriptors of ours, and stay so.
            unsafe { libc::dup3(self.null.as_raw_fd(), slot.as_raw_fd(), libc::O_CLOEXEC) };
        }
    }

    fn clone_child(
        &mut self,
        plan: &ChildPlan,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<(u32, OwnedFd), Trouble> {
        // SAFETY: `report` is our mapping, and no child is using it.
        unsafe { self.report.write_volatile(Report { stage: 0, errno: 0 }) };
        let flags = libc::CLONE_VFORK
            | libc::CLONE_PIDFD
            | match self.sharing {
                Sharing::All => libc::CLONE_VM | libc::CLONE_FILES,
                Sharing::Memory => libc::CLONE_VM,
                Sharing::Nothing => 0,
            };
        let mut pidfd: c_int = -1;
        let mut all = [u64::MAX; 2];
        let mut before = [0u64; 2];
        // Every signal is blocked meanwhile: in a child that shares our memory no handler of
        // ours may run. Raw calls, since libc's own leave its internal signals open.
        // SAFETY: both masks are 8 valid bytes, as the last argument says.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                all.as_mut_ptr(),
                before.as_mut_ptr(),
                8,
            );
        }
        let plan = ptr::from_ref(plan).cast_mut().cast::<c_void>();
        let made = match cgroup {
            None => {
                // SAFETY: the stack is ours, unused and large enough for `child`; `plan` and all it
                // points to outlive the call, since CLONE_VFORK holds this thread until the child
                // has executed or ended; `child` only makes system calls and never returns into
                // our frames.
                let pid = unsafe {
                    libc::clone(
                        child,
                        self.stack.byte_add(STACK),
                        flags | libc::SIGCHLD,
                        plan,
                        &raw mut pidfd,
                        ptr::null_mut::<c_void>(),
                        ptr::null_mut::<c_int>(),
                    )
                };
                if pid < 0 { Err(Errno::last()) } else { Ok(pid) }
            }
            Some(cgroup) => {
                let args = CloneArgs {
                    flags: u64::from(flags.cast_unsigned()) | clone3::INTO_CGROUP,
                    pidfd: (&raw mut pidfd).expose_provenance() as u64,
                    exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
                    stack: self.stack.expose_provenance() as u64,
                    stack_size: STACK as u64,
                    cgroup: u64::from(cgroup.as_raw_fd().cast_unsigned()),
                    ..CloneArgs::default()
                };
                // SAFETY: as above; the stack's end is that of a mapping, and so aligned.
                unsafe { clone3::clone3(&args, child, plan) }
            }
        };
        // SAFETY: as above.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                before.as_ptr(),
                ptr::null::<u64>(),
                8,
            );
        }
        let pid = match made {
            Ok(pid) => pid,
            // What is short will be short without a cgroup, too.
            Err(errno @ (Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE)) => {
                return Err(Trouble::Fork(errno));
            }
            Err(errno) if cgroup.is_some() => return Err(Trouble::Cgroup(errno)),
            Err(Errno::EINVAL | Errno::EPERM | Errno::ENOSYS) if self.sharing != Sharing::Nothing => {
                return Err(Trouble::Share);
            }
            Err(errno) => return Err(Trouble::Fork(errno)),
        };
        // SAFETY: CLONE_PIDFD made this descriptor for us, and nobody else has it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        // SAFETY: the child has executed or ended, so nobody writes to it any more.
        let report = unsafe { self.report.read_volatile() };
        if report.stage == 0 {
            return Ok((pid.cast_unsigned(), pidfd));
        }
        // It has ended; its exit was not told to anybody else, so it is ours to reap.
        while let Ok(None) = super::pidfd::reap(&pidfd) {
            std::thread::yield_now();
        }
        let errno = Errno::from_raw(report.errno);
        match Step::from_number(report.stage) {
            Some(Step::Unshare) => Err(Trouble::Share),
            Some(Step::Session) => Err(Trouble::Child(SpawnStage::Session, errno)),
            Some(Step::Chdir) => Err(Trouble::Child(SpawnStage::Chdir, errno)),
            Some(Step::Stdio) => Err(Trouble::Child(SpawnStage::Stdio, errno)),
            Some(Step::Exec) | None => Err(Trouble::Child(SpawnStage::Exec, errno)),
        }
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        // SAFETY: both mappings are ours, of these sizes, and no child uses them any more.
        unsafe {
            libc::munmap(self.stack, STACK);
            libc::munmap(self.report.cast(), size_of::<Report>());
        }
    }
}

enum Trouble {
    /// This way of sharing is not to be had here.
    Share,
    /// A child can't be made in this cgroup.
    Cgroup(Errno),
    Fork(Errno),
    Child(SpawnStage, Errno),
}

/// All that the child needs, as plain values and pointers.
struct ChildPlan {
    program: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    dir: *const c_char,
    null: c_int,
    out: c_int,
    err: c_int,
    highest: c_int,
    unshare: bool,
    files: libc::rlimit,
    /// See `limit_mark` of the host.
    mark: Option<libc::rlimit>,
    parent: c_int,
    report: *mut Report,
}

/// The child's steps, as numbers in the report.
#[derive(Clone, Copy)]
enum Step {
    Unshare = 1,
    Session = 2,
    Chdir = 3,
    Stdio = 4,
    Exec = 5,
}

impl Step {
    fn from_number(number: c_int) -> Option<Step> {
        [Step::Unshare, Step::Session, Step::Chdir, Step::Stdio, Step::Exec]
            .into_iter()
            .find(|step| *step as c_int == number)
    }
}

/// Runs in the child, in our memory, with every signal blocked. Allocates nothing, takes no
/// lock, and never returns.
extern "C" fn child(plan: *mut c_void) -> c_int {
    // SAFETY: the parent passed a `ChildPlan` that lives until we execute or end.
    let plan = unsafe { &*plan.cast::<ChildPlan>() };
    // SAFETY: system calls with values from the plan, whose pointers are valid C strings and
    // null-terminated arrays of them.
    unsafe {
        if plan.unshare {
            let first = c_long::from(plan.highest) + 1;
            let last = c_long::from(u32::MAX);
            if libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_UNSHARE) != 0 {
                fail(plan, Step::Unshare);
            }
        }
        if plan.parent != 0 {
            libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::syscall(libc::SYS_getppid) != c_long::from(plan.parent) {
                // The supervisor died in between: no signal will come for that.
                fail(plan, Step::Session);
            }
        }
        if libc::syscall(libc::SYS_setsid) < 0 {
            fail(plan, Step::Session);
        }
        if libc::syscall(libc::SYS_chdir, plan.dir) != 0 {
            fail(plan, Step::Chdir);
        }
        for (from, to) in [(plan.null, 0), (plan.out, 1), (plan.err, 2)] {
            if libc::syscall(libc::SYS_dup3, from, to, 0) < 0 {
                fail(plan, Step::Stdio);
            }
        }
        // What we inherited ourselves and nobody marked close-on-exec goes as well.
        if libc::syscall(libc::SYS_close_range, 3, c_long::from(u32::MAX), 0) != 0 {
            for fd in 3..=plan.highest {
                libc::syscall(libc::SYS_close, fd);
            }
        }
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            libc::RLIMIT_NOFILE,
            &raw const plan.files,
            ptr::null::<libc::rlimit>(),
        );
        if let Some(mark) = &plan.mark {
            libc::syscall(
                libc::SYS_prlimit64,
                0,
                libc::RLIMIT_RTTIME,
                ptr::from_ref(mark),
                ptr::null::<libc::rlimit>(),
            );
        }
        // The default action for every signal: ignored ones outlive an exec. A zeroed
        // kernel sigaction is SIG_DFL without flags on every architecture.
        let default = [0u64; 4];
        for signal in 1..=64 {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null::<u64>(), 8);
        }
        let none = 0u64;
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, ptr::null::<u64>(), 8);
        libc::syscall(libc::SYS_execve, plan.program, plan.argv, plan.envp);
        fail(plan, Step::Exec)
    }
}

/// Leaves word and ends the child.
fn fail(plan: &ChildPlan, step: Step) -> ! {
    let errno = Errno::last_raw();
    // SAFETY: the report is a live shared mapping that only this child writes to now.
    unsafe {
        plan.report.write_volatile(Report { stage: step as c_int, errno });
        loop {
            libc::syscall(libc::SYS_exit_group, 127);
        }
    }
}

fn map(size: usize, flags: c_int) -> io::Result<*mut c_void> {
    // SAFETY: an anonymous mapping at a place of the kernel's choice.
    let at = unsafe { libc::mmap(ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at) }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// A program that was found.
struct Program {
    path: CString,
    /// As the kernel will see it, for messages.
    shown: PathBuf,
}

fn folder(dir: &Path) -> Result<CString, SpawnFailure> {
    let bad = |errno: Errno| explain_folder(errno, dir);
    match std::fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(bad(Errno::ENOTDIR)),
        Err(error) => return Err(bad(Errno::from_raw(error.raw_os_error().unwrap_or(libc::ENOENT)))),
    }
    CString::new(dir.as_os_str().as_bytes()).map_err(|_| bad(Errno::EINVAL))
}

/// The program's file: as it is named when there is a slash in it, else the first in `PATH`.
fn find(name: &str, dir: &Path, environment: &[CString]) -> Result<Program, SpawnFailure> {
    let made = |shown: PathBuf, given: &OsStr| {
        CString::new(given.as_bytes()).map(|path| Program { path, shown }).map_err(|_| {
            failure(SpawnStage::Exec, Errno::EINVAL, "the program's name contains a NUL character")
        })
    };
    if name.contains('/') {
        return made(dir.join(name), OsStr::new(name));
    }
    let missing = || {
        let message = format!("there is no program {name:?} in PATH");
        failure(SpawnStage::Exec, Errno::ENOENT, &message)
    };
    if name.is_empty() {
        return Err(missing());
    }
    let path = env::value_of(environment, "PATH").unwrap_or(OsStr::new(env::DEFAULT_PATH));
    let mut not_executable = None;
    for folder in std::env::split_paths(path) {
        let candidate = dir.join(folder).join(name);
        if !candidate.is_file() {
            continue;
        }
        if nix::unistd::access(&candidate, nix::unistd::AccessFlags::X_OK).is_ok() {
            return made(candidate.clone(), candidate.as_os_str());
        }
        not_executable.get_or_insert(candidate);
    }
    match not_executable {
        Some(path) => {
            let message = format!("{} is not executable", path.display());
            Err(failure(SpawnStage::Exec, Errno::EACCES, &message))
        }
        None => Err(missing()),
    }
}

fn explain(stage: SpawnStage, errno: Errno, program: &Program, dir: &Path) -> SpawnFailure {
    let shown = program.shown.display();
    let message = match (stage, errno) {
        (SpawnStage::Chdir, errno) => return explain_folder(errno, dir),
        (SpawnStage::Exec, Errno::ENOENT) if program.shown.exists() => match interpreter(&program.shown) {
            Some(interpreter) => format!("{shown} needs the interpreter {interpreter}, which does not exist"),
            None => format!("{shown} needs a loader that does not exist (built for another system?)"),
        },
        (SpawnStage::Exec, Errno::ENOENT) => format!("there is no program {shown}"),
        (SpawnStage::Exec, Errno::EACCES) if program.shown.is_dir() => format!("{shown} is a folder"),
        (SpawnStage::Exec, Errno::EACCES) => format!("{shown} is not executable"),
        (SpawnStage::Exec, Errno::ENOEXEC) => {
            format!(
                "{shown} is no program the kernel can run (a script needs a first line such as #!/bin/sh)"
            )
        }
        (SpawnStage::Exec, Errno::ENOTDIR) => format!("part of {shown} is not a folder"),
        (SpawnStage::Exec, Errno::E2BIG) => "arguments and environment are too long together".to_owned(),
        (SpawnStage::Exec, Errno::ETXTBSY) => format!("{shown} is being written"),
        (stage, errno) => format!("{shown}: {stage} failed: {}", errno.desc()),
    };
    failure(stage, errno, &message)
}

fn explain_folder(errno: Errno, dir: &Path) -> SpawnFailure {
    let shown = dir.display();
    let message = match errno {
        Errno::ENOENT => format!("its folder {shown} does not exist"),
        Errno::ENOTDIR => format!("its folder {shown} is not a folder"),
        Errno::EACCES => format!("its folder {shown} may not be entered"),
        other => format!("its folder {shown} can't be entered: {}", other.desc()),
    };
    failure(SpawnStage::Chdir, errno, &message)
}

/// What the first line of a script names.
fn interpreter(path: &Path) -> Option<String> {
    let mut start = [0u8; 256];
    let length = io::Read::read(&mut std::fs::File::open(path).ok()?, &mut start).ok()?;
    let line = start[..length].strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let text = String::from_utf8_lossy(line).trim().to_owned();
    text.split_whitespace().next().map(str::to_owned)
}

fn no_descriptors(errno: Errno) -> SpawnFailure {
    let limit = descriptor_limit();
    let message =
        format!("there are no descriptors left for its output (this process may open {limit} files)");
    failure(SpawnStage::Prepare, errno, &message)
}

fn failure(stage: SpawnStage, errno: Errno, message: &str) -> SpawnFailure {
    SpawnFailure { stage, errno: errno as i32, errno_name: format!("{errno:?}"), message: message.to_owned() }
}

fn descriptor_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft)
}

/// Raises this process's own limit on open descriptors as far as it may. Returns the one
/// before, which children are to get back: programs that still use select(2) rely on it.
pub(super) fn raise_descriptor_limit() -> libc::rlimit {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    if soft < hard {
        // A refusal leaves the old limit, which then is what a failing pipe will name.
        let _ = nix::sys::resource::setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    libc::rlimit { rlim_cur: soft, rlim_max: hard }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    fn limits() -> libc::rlimit {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        libc::rlimit { rlim_cur: soft, rlim_max: hard }
    }

    fn run(
        spawner: &mut Spawner,
        argv: &[&str],
        cgroup: Option<BorrowedFd<'_>>,
    ) -> (String, crate::model::Exit) {
        let argv: Vec<String> = argv.iter().map(|w| (*w).to_owned()).collect();
        let env = [CString::new("PATH=/usr/bin:/bin").unwrap(), CString::new("X=1").unwrap()];
        let made = spawner.spawn(&argv, Path::new("/"), &env, 1 << 62, cgroup).unwrap();
        let mut text = String::new();
        let mut pipe = std::fs::File::from(made.stdout);
        nix::fcntl::fcntl(&pipe, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).unwrap();
        pipe.read_to_string(&mut text).unwrap();
        let exit = loop {
            if let Some(exit) = super::super::pidfd::reap(&made.pidfd).unwrap() {
                break exit;
            }
            std::thread::yield_now();
        };
        (text, exit)
    }

    #[test]
    fn every_way_of_sharing_makes_the_same_child() {
        let cgroups = super::super::cgroup::Cgroups::make(1);
        let ways = [Sharing::All, Sharing::Memory, Sharing::Nothing];
        for (key, (sharing, in_cgroup)) in
            (0u64..).zip(ways.iter().flat_map(|way| [(*way, false), (*way, true)]))
        {
            let cgroup = cgroups.as_ref().filter(|_| in_cgroup).and_then(|cgroups| cgroups.fresh(key));
            if in_cgroup && cgroup.is_none() {
                eprintln!("SKIPPED {sharing:?} in a cgroup: none can be made here");
                continue;
            }
            let mut spawner = Spawner::new(limits(), true).unwrap();
            spawner.sharing = sharing;
            let script = "ls /proc/self/fd | tr '\\n' ' '; grep -E 'SigBlk|SigIgn' /proc/self/status; \
                          cat /proc/self/cgroup; echo \"$X $(ps -o sid= -p $$ | tr -d ' ') $$\"; exit 7";
            let (text, exit) = run(&mut spawner, &["sh", "-c", script], cgroup.as_ref().map(AsFd::as_fd));
            let lines: Vec<&str> = text.lines().collect();
            assert!(text.starts_with("0 1 2 3 "), "{sharing:?}: ls itself opens 3: {text}");
            assert_eq!(text.matches("0000000000000000").count(), 2, "{sharing:?}: {text}");
            let last: Vec<&str> = lines.last().unwrap().split(' ').collect();
            assert_eq!((last[0], last[1]), ("1", last[2]), "{sharing:?}: its own session: {text}");
            assert_eq!(exit, crate::model::Exit::Code(7), "{sharing:?}");
            assert_eq!(spawner.sharing, sharing, "no silent fallback");
            let own = lines.iter().any(|line| line.starts_with("0::") && line.ends_with(&format!("/{key}")));
            assert_eq!(own, in_cgroup, "{sharing:?}: {text}");
        }
    }

    #[test]
    fn failures_name_stage_and_reason() {
        let mut spawner = Spawner::new(limits(), true).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("script");
        std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
        let plain = folder.path().join("plain");
        std::fs::write(&plain, "echo hi\n").unwrap();
        let chmod = |path: &Path, mode| {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        };
        chmod(&script, 0o755);
        chmod(&plain, 0o644);
        let mut fails = |program: &str, dir: &Path| {
            let env = [CString::new("PATH=/usr/bin:/bin").unwrap()];
            match spawner.spawn(&[program.to_owned()], dir, &env, 1 << 62, None) {
                Ok(_) => panic!("{program} should not start"),
                Err(failure) => (failure.stage, failure.errno_name, failure.message),
            }
        };
        let root = Path::new("/");
        let path = |p: &Path| p.display().to_string();
        let (stage, errno, message) = fails("no-such-program", root);
        assert_eq!((stage, errno.as_str()), (SpawnStage::Exec, "ENOENT"));
        assert_eq!(message, "there is no program \"no-such-program\" in PATH");
        let (stage, errno, message) = fails(&path(&script), root);
        assert_eq!((stage, errno.as_str()), (SpawnStage::Exec, "ENOENT"));
        assert!(message.contains("interpreter /no/such/interpreter"), "{message}");
        let (_, errno, message) = fails(&path(&plain), root);
        assert_eq!(errno, "EACCES");
        assert!(message.ends_with("is not executable"), "{message}");
        chmod(&plain, 0o755);
        let (_, errno, _) = fails(&path(&plain), root);
        assert_eq!(errno, "ENOEXEC");
        let (stage, errno, message) = fails("true", Path::new("/no/such/folder"));
        assert_eq!((stage, errno.as_str()), (SpawnStage::Chdir, "ENOENT"));
        assert_eq!(message, "its folder /no/such/folder does not exist");
        let (stage, errno, _) = fails("true", &plain);
        assert_eq!((stage, errno.as_str()), (SpawnStage::Chdir, "ENOTDIR"));
    }
}
