//! Spawns a process at the same small price however large this process is.
//!
//! One `clone` (`clone3`, where the child starts in a cgroup) with CLONE_VM on a stack of its own:
//! no page table is copied, and the child's few steps before `execve` (session, directory,
//! descriptors, signals) are plain system calls in our memory. With [`Spawner::spawn`] the calling
//! thread is blocked meanwhile (CLONE_VFORK). With [`Spawner::begin`] it goes on, and a pipe that
//! the program's start closes tells the end: a keeper has one thread, and a directory on a network
//! may block. CLONE_FILES with `close_range(CLOSE_RANGE_UNSHARE)` avoids copying the descriptor
//! table, which with thousands of services would cost more than the process.
//!
//! Where the kernel is too old for that or refuses it, the same steps run in a forked copy
//! ([`Sharing::Nothing`]).
//!
//! [`Spawner`]s are made once, by threads that live as long as the host: the kernel kills the
//! children (PR_SET_PDEATHSIG) when the *thread* that spawned them ends.
//!
//! Deliberately absent: environments, the making of cgroups, and what becomes of the process
//! afterwards.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::{io, ptr};

use child::{ChildIds, ChildPlan, Report, Step, child};
use nix::errno::Errno;
use nix::libc::{self, c_char, c_int, c_void};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::resource::{Resource, getrlimit};

use super::marks::MARKED;
use crate::model::{SpawnFailure, SpawnStage};
use crate::sys::clone3::{self, CloneArgs};
use crate::sys::limits::Limits;

pub(crate) use program::Program;

mod child;
mod program;

/// A process that was spawned and has executed its program.
pub(crate) struct Spawned {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    pub(crate) placed: Placed,
}

/// Where a process was spawned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placed {
    /// The process is in the cgroup that was asked for.
    InCgroup,
    /// The process is in the cgroup of this process, since no other was asked for.
    WithUs,
    /// The process is in the cgroup of this process, because the kernel refused the one that was
    /// asked for.
    Refused(Errno),
}

/// Why a process could not be spawned: the stage and the error number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) stage: SpawnStage,
    pub(crate) errno: Errno,
}

/// How much the child shares with this process until it executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// The child shares memory and descriptors.
    All,
    /// The child shares memory only: `close_range` can't unshare (before Linux 5.9).
    Memory,
    /// The child is a forked copy: the kernel refuses to share.
    Nothing,
}

/// The size of the child's stack in bytes. The child makes system calls and nothing else.
const STACK: usize = 64 * 1024;

/// The clone flag of [`Spawner::begin`]. The caller goes on during the child's steps only where the
/// child can make them without libc, whose error number both would share.
const GOES_ON: c_int = if cfg!(target_arch = "x86_64") { 0 } else { libc::CLONE_VFORK };

/// How many descriptors are reserved for everything except services.
const HEADROOM: u64 = 24;

/// How many descriptors this process can still open for services, without the reserved ones.
pub(crate) fn descriptors_left() -> u64 {
    // The lowest free number is given first.
    let Ok(probe) = std::fs::File::open("/") else {
        return 0;
    };
    let used = u64::try_from(probe.as_raw_fd()).unwrap_or(u64::MAX);
    descriptor_limit().saturating_sub(used).saturating_sub(HEADROOM)
}

/// A child's stack, and the place where the child reports a failed step.
struct ChildStack {
    stack: *mut c_void,
    report: *mut Report,
}

// SAFETY: the two mappings belong to this value alone, and it is used by one thread at a time.
unsafe impl Send for ChildStack {}

impl ChildStack {
    fn new() -> io::Result<ChildStack> {
        let stack = map(STACK, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK)?;
        let report = map(size_of::<Report>(), libc::MAP_SHARED | libc::MAP_ANONYMOUS)?.cast::<Report>();
        Ok(ChildStack { stack, report })
    }
}

impl Drop for ChildStack {
    fn drop(&mut self) {
        // SAFETY: both mappings are ours, of these sizes, and no child uses them any more.
        unsafe {
            libc::munmap(self.stack, STACK);
            libc::munmap(self.report.cast(), size_of::<Report>());
        }
    }
}

/// How the children of a spawner depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ties {
    /// Whether children get SIGKILL when the thread that spawned them ends.
    pub(crate) die_with_us: bool,
    /// Whether children can read their own output pipes, so that a pipe never breaks when its
    /// reader ends.
    pub(crate) outlive_readers: bool,
}

/// What one thread needs to spawn processes.
pub(crate) struct Spawner {
    /// Stacks for reuse, whose children have executed or ended.
    rooms: Vec<ChildStack>,
    null: OwnedFd,
    /// Low descriptors that the child's ends of the pipes are moved to, which keeps the child's
    /// table short: its two outputs, and the pipe that its start closes.
    slots: [OwnedFd; 3],
    sharing: Sharing,
    /// The limits that this process was started with; children get them back.
    limits: Limits,
    /// Which of the [`MARKED`] limits are unlimited here, so that they can carry marks.
    unlimited: [bool; 2],
    ties: Ties,
    /// This process's own limit on descriptors, as last read.
    limit: u64,
}

/// A process that is being spawned.
pub(crate) struct Begun {
    /// The pipe that is closed when the child executes or ends.
    status: OwnedFd,
    pid: u32,
    pidfd: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    placed: Placed,
    room: ChildStack,
    /// What the child reads until it executes: these three fields.
    _program: Program,
    _plan: Box<ChildPlan>,
    _pointers: [Vec<*const c_char>; 2],
}

impl Begun {
    /// The descriptor that becomes readable, or hangs up, once the outcome is known.
    pub(crate) fn status(&self) -> BorrowedFd<'_> {
        self.status.as_fd()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The error if the kernel refused the cgroup that was asked for.
    pub(crate) fn refused(&self) -> Option<Errno> {
        match self.placed {
            Placed::Refused(errno) => Some(errno),
            Placed::InCgroup | Placed::WithUs => None,
        }
    }
}

impl Spawner {
    /// Makes a spawner. `limits`: the limits that children get.
    pub(crate) fn new(limits: Limits, ties: Ties) -> io::Result<Spawner> {
        let null = OwnedFd::from(std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?);
        let slots = [null.try_clone()?, null.try_clone()?, null.try_clone()?];
        Ok(Spawner {
            rooms: Vec::new(),
            null,
            slots,
            sharing: Sharing::All,
            limits,
            // A mark that an outer regrow left may be overwritten, because it limits nothing.
            unlimited: MARKED.map(|(resource, _)| {
                getrlimit(resource).is_ok_and(|(soft, hard)| soft >= 1 << 62 && hard == libc::RLIM_INFINITY)
            }),
            ties,
            limit: descriptor_limit(),
        })
    }

    /// Spawns a program that reads `input`, or nothing, and has `extra` as its descriptor 3.
    /// Returns when the program runs.
    pub(crate) fn spawn(
        &mut self,
        program: &Program,
        [input, extra]: [Option<BorrowedFd<'_>>; 2],
        mark: u64,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Spawned, Failed> {
        let room = self.room()?;
        let pointers = [pointers(&program.argv), pointers(&program.env)];
        let (stdout, out) = self.pipe(0)?;
        let (stderr, err) = self.pipe(1)?;
        let mut plan = self.plan(program, &pointers, [out, err], None, mark, &room);
        if let Some(input) = &input {
            plan.input = input.as_raw_fd();
            plan.highest = plan.highest.max(plan.input);
        }
        if let Some(extra) = &extra {
            plan.extra = extra.as_raw_fd();
            plan.highest = plan.highest.max(plan.extra);
        }
        let made = self.clone_child(&plan, &room, cgroup, libc::CLONE_VFORK);
        self.empty_slots();
        self.rooms.push(room);
        let trouble = match made {
            Ok((pid, pidfd)) => {
                let Some(trouble) = self.last_word() else {
                    let placed = if cgroup.is_some() { Placed::InCgroup } else { Placed::WithUs };
                    return Ok(Spawned { pid, pidfd, stdout, stderr, placed });
                };
                bury(&pidfd);
                trouble
            }
            Err(trouble) => trouble,
        };
        match trouble {
            Trouble::Cgroup(errno) => {
                let made = self.spawn(program, [input, extra], mark, None)?;
                Ok(Spawned { placed: Placed::Refused(errno), ..made })
            }
            Trouble::Share => {
                self.share_less();
                self.spawn(program, [input, extra], mark, cgroup)
            }
            Trouble::Failed(failed) => Err(failed),
        }
    }

    /// Begins to spawn a program; [`Spawner::settle`] returns the outcome.
    pub(crate) fn begin(
        &mut self,
        program: Program,
        mark: u64,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Begun, Failed> {
        let room = self.room()?;
        let pointers = [pointers(&program.argv), pointers(&program.env)];
        let (stdout, out) = self.pipe(0)?;
        let (stderr, err) = self.pipe(1)?;
        let (status, told) = self.status()?;
        let plan = Box::new(self.plan(&program, &pointers, [out, err], Some(told), mark, &room));
        let made = self.clone_child(&plan, &room, cgroup, GOES_ON);
        let trouble = match made {
            Ok((pid, pidfd)) => {
                // From its first step on the child has its own descriptors; until then it uses the
                // slots.
                let heard = heard_first(&status, &pidfd);
                self.empty_slots();
                let placed = if cgroup.is_some() { Placed::InCgroup } else { Placed::WithUs };
                if heard {
                    let (_program, _plan, _pointers) = (program, plan, pointers);
                    return Ok(Begun {
                        status,
                        pid,
                        pidfd,
                        stdout,
                        stderr,
                        placed,
                        room,
                        _program,
                        _plan,
                        _pointers,
                    });
                }
                // The child could not unshare, or was killed at once.
                bury(&pidfd);
                self.rooms.push(room);
                self.last_word()
                    .unwrap_or(Trouble::Failed(Failed { stage: SpawnStage::Fork, errno: Errno::ECHILD }))
            }
            Err(trouble) => {
                self.empty_slots();
                self.rooms.push(room);
                trouble
            }
        };
        match trouble {
            Trouble::Cgroup(errno) => {
                let made = self.begin(program, mark, None)?;
                Ok(Begun { placed: Placed::Refused(errno), ..made })
            }
            Trouble::Share => {
                self.share_less();
                self.begin(program, mark, cgroup)
            }
            Trouble::Failed(failed) => Err(failed),
        }
    }

    /// Returns the outcome of a start whose status is readable. A child that failed is not reaped
    /// here.
    pub(crate) fn settle(&mut self, begun: Begun) -> Result<Spawned, Failed> {
        let Begun { pid, pidfd, stdout, stderr, placed, room, .. } = begun;
        self.rooms.push(room);
        match self.last_word() {
            // Sharing failed after the clone; the caller asks for the process again.
            Some(Trouble::Share | Trouble::Cgroup(_)) => {
                Err(Failed { stage: SpawnStage::Fork, errno: Errno::EAGAIN })
            }
            Some(Trouble::Failed(failed)) => Err(failed),
            None => Ok(Spawned { pid, pidfd, stdout, stderr, placed }),
        }
    }

    /// Gives back the stacks that a burst needed.
    pub(crate) fn rest(&mut self) {
        self.rooms.clear();
    }

    fn room(&mut self) -> Result<ChildStack, Failed> {
        match self.rooms.pop() {
            Some(room) => Ok(room),
            None => ChildStack::new().map_err(|_| Failed { stage: SpawnStage::Fork, errno: Errno::ENOMEM }),
        }
    }

    fn share_less(&mut self) {
        self.sharing = match self.sharing {
            Sharing::All => Sharing::Memory,
            Sharing::Memory | Sharing::Nothing => Sharing::Nothing,
        };
    }

    fn plan(
        &self,
        program: &Program,
        pointers: &[Vec<*const c_char>; 2],
        [out, err]: [c_int; 2],
        status: Option<c_int>,
        mark: u64,
        room: &ChildStack,
    ) -> ChildPlan {
        let status = status.unwrap_or(-1);
        ChildPlan {
            program: program.path.as_ptr(),
            argv: pointers[0].as_ptr(),
            envp: pointers[1].as_ptr(),
            dir: program.dir.as_ptr(),
            input: self.null.as_raw_fd(),
            out,
            err,
            extra: -1,
            status,
            highest: out.max(err).max(status).max(self.null.as_raw_fd()),
            unshare: self.sharing == Sharing::All,
            limits: self.limits,
            ids: program.credentials.ids.as_ref().map(|ids| ChildIds {
                uid: ids.uid,
                gid: ids.gid,
                groups: ids.groups.as_ptr(),
                count: ids.groups.len(),
            }),
            umask: program.credentials.umask,
            nice: program.credentials.nice,
            marked: self.unlimited,
            mark: libc::rlimit { rlim_cur: mark, rlim_max: libc::RLIM_INFINITY },
            parent: if self.ties.die_with_us { std::process::id().cast_signed() } else { 0 },
            report: room.report,
        }
    }

    /// Makes a pipe whose writing end lies in a slot.
    fn pipe(&mut self, slot: usize) -> Result<(OwnedFd, c_int), Failed> {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(no_descriptors)?;
        // The lowest free number is given first, so a high number means that few are left. The
        // control socket must still be able to answer then.
        let needed = u64::try_from(write.as_raw_fd()).unwrap_or(0) + HEADROOM;
        if needed > self.limit {
            // The limit may have been raised from outside since.
            self.limit = descriptor_limit();
            if needed > self.limit {
                return Err(no_descriptors(Errno::EMFILE));
            }
        }
        nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
            .map_err(no_descriptors)?;
        let write = if self.ties.outlive_readers { readable_too(write) } else { write };
        Ok((read, self.put_into_slot(slot, &write)?))
    }

    /// Makes the pipe that tells when a child has executed. Reads from it block.
    fn status(&mut self) -> Result<(OwnedFd, c_int), Failed> {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(no_descriptors)?;
        Ok((read, self.put_into_slot(2, &write)?))
    }

    fn put_into_slot(&self, slot: usize, fd: &OwnedFd) -> Result<c_int, Failed> {
        let place = self.slots[slot].as_raw_fd();
        // SAFETY: both are open descriptors of ours; `place` stays owned by `slots`.
        if unsafe { libc::dup3(fd.as_raw_fd(), place, libc::O_CLOEXEC) } < 0 {
            return Err(no_descriptors(Errno::last()));
        }
        Ok(place)
    }

    /// Puts `/dev/null` back into the slots, so that the child alone has the pipes' writing ends.
    fn empty_slots(&self) {
        for slot in &self.slots {
            // SAFETY: both are open descriptors of ours, and stay so.
            unsafe { libc::dup3(self.null.as_raw_fd(), slot.as_raw_fd(), libc::O_CLOEXEC) };
        }
    }

    /// Clones the child. `flags` are added to those of sharing.
    fn clone_child(
        &mut self,
        plan: &ChildPlan,
        room: &ChildStack,
        cgroup: Option<BorrowedFd<'_>>,
        flags: c_int,
    ) -> Result<(u32, OwnedFd), Trouble> {
        // SAFETY: `report` is our mapping, and no child is using it.
        unsafe { room.report.write_volatile(Report { stage: 0, errno: 0 }) };
        let flags = flags
            | libc::CLONE_PIDFD
            | match self.sharing {
                Sharing::All => libc::CLONE_VM | libc::CLONE_FILES,
                Sharing::Memory => libc::CLONE_VM,
                Sharing::Nothing => 0,
            };
        let mut pidfd: c_int = -1;
        let mut all = [u64::MAX; 2];
        let mut before = [0u64; 2];
        // Every signal is blocked meanwhile, because no handler of ours may run in a child that
        // shares our memory. Raw calls are used, since libc's own leave its internal signals open.
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
                // SAFETY: the stack is this child's alone and large enough for `child`; `plan` and
                // all it points to live until the child has executed or ended: with CLONE_VFORK
                // this thread stands still until then, without it `Begun` holds them; `child` only
                // makes system calls and never returns into our frames.
                let pid = unsafe {
                    libc::clone(
                        child,
                        room.stack.byte_add(STACK),
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
                    stack: room.stack.expose_provenance() as u64,
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
            // A resource that is short will be short without a cgroup, too.
            Err(errno @ (Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE)) => {
                return Err(Trouble::Failed(Failed { stage: SpawnStage::Fork, errno }));
            }
            Err(errno) if cgroup.is_some() => return Err(Trouble::Cgroup(errno)),
            Err(Errno::EINVAL | Errno::EPERM | Errno::ENOSYS) if self.sharing != Sharing::Nothing => {
                return Err(Trouble::Share);
            }
            Err(errno) => return Err(Trouble::Failed(Failed { stage: SpawnStage::Fork, errno })),
        };
        // SAFETY: CLONE_PIDFD made this descriptor for us, and nobody else has it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok((pid.cast_unsigned(), pidfd))
    }

    /// The failure that the last finished child reported; `None` if it executed.
    fn last_word(&self) -> Option<Trouble> {
        let room = self.rooms.last()?;
        // SAFETY: the child has executed or ended, so nobody writes to it any more.
        let report = unsafe { room.report.read_volatile() };
        if report.stage == 0 {
            return None;
        }
        let errno = Errno::from_raw(report.errno);
        let failed = |stage| Some(Trouble::Failed(Failed { stage, errno }));
        match Step::from_number(report.stage) {
            Some(Step::Unshare) => Some(Trouble::Share),
            Some(Step::Session) => failed(SpawnStage::Session),
            Some(Step::Chdir) => failed(SpawnStage::Chdir),
            Some(Step::User) => failed(SpawnStage::User),
            Some(Step::Stdio) => failed(SpawnStage::Stdio),
            Some(Step::Exec) | None => failed(SpawnStage::Exec),
        }
    }
}

/// Reaps a child that is ending and whose exit nobody else is told of.
fn bury(pidfd: &OwnedFd) {
    while let Ok(None) = crate::sys::pidfd::reap(pidfd) {
        std::thread::yield_now();
    }
}

/// Waits for a child's first message; `false`: the child ended without one.
fn heard_first(status: &OwnedFd, pidfd: &OwnedFd) -> bool {
    loop {
        let mut both =
            [PollFd::new(status.as_fd(), PollFlags::POLLIN), PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        if matches!(nix::poll::poll(&mut both, PollTimeout::NONE), Err(Errno::EINTR)) {
            continue;
        }
        if both[0].any() == Some(true) {
            return matches!(nix::unistd::read(status, &mut [0u8; 1]), Ok(1));
        }
        return false;
    }
}

/// Opens the writing end of a pipe for reading too, so that the pipe always has a reader.
fn readable_too(write: OwnedFd) -> OwnedFd {
    let path = format!("/proc/self/fd/{}", write.as_raw_fd());
    let flags = nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_CLOEXEC;
    // Without /proc the pipe breaks when its last reader ends.
    nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty()).unwrap_or(write)
}

enum Trouble {
    /// The kernel refuses this way of sharing.
    Share,
    /// The kernel refuses to spawn a child in this cgroup.
    Cgroup(Errno),
    Failed(Failed),
}

fn map(size: usize, flags: c_int) -> io::Result<*mut c_void> {
    // SAFETY: an anonymous mapping at a place of the kernel's choice.
    let at = unsafe { libc::mmap(ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at) }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

fn no_descriptors(errno: Errno) -> Failed {
    Failed { stage: SpawnStage::Prepare, errno }
}

fn failure(stage: SpawnStage, errno: Errno, message: &str) -> SpawnFailure {
    SpawnFailure { stage, errno: errno as i32, errno_name: format!("{errno:?}"), message: message.to_owned() }
}

fn descriptor_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft)
}

#[cfg(test)]
mod tests;
