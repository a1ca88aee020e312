//! A process that waits until nobody else is left to carry on, and then does. It is made by a daemon
//! whose keeper is dead, before that daemon takes the keeper's place, and dismissed when there are a
//! keeper and a daemon again.
//!
//! All who would carry on hold one end of a pipe: over an execution, and over a fork. The standby
//! holds the other end, and reads its end of file when the last of them has died.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Names the process and the descriptor to who is executed.
const STANDBY: &str = "REGROW_KEEPER_STANDBY";

/// The standby of this process and of those that it has told of it.
#[derive(Debug)]
pub(crate) struct Standby {
    pid: u32,
    /// As long as anybody holds it, the standby waits.
    alive: OwnedFd,
}

impl Standby {
    /// Makes one that executes this program when it comes to that. Other threads may run.
    pub(crate) fn make(program: &CString, args: &[CString], env: &[CString]) -> io::Result<Standby> {
        let (wait, alive) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
            strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (args, env) = (pointers(args), pointers(env));
        // SAFETY: a fork by the bare system call; the child has its own copy of memory, in which it only
        // makes system calls until it executes or ends, so that no lock of another thread matters.
        let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        if pid == 0 {
            wait_and_execute(wait.as_raw_fd(), alive.as_raw_fd(), program, &args, &env);
        }
        Ok(Standby { pid: u32::try_from(pid).unwrap_or_default(), alive })
    }

    /// That of the program that has executed this one, if it had one. Before any thread is made.
    pub(super) fn inherited() -> Option<Standby> {
        let text = std::env::var(STANDBY).ok()?;
        // SAFETY: called before any thread is made.
        unsafe { std::env::remove_var(STANDBY) };
        let (pid, fd) = text.split_once(':')?;
        let (pid, fd) = (pid.parse().ok()?, fd.parse::<RawFd>().ok()?);
        // SAFETY: whoever executed us left it open for us, and nobody else here knows of it.
        let alive = unsafe { OwnedFd::from_raw_fd(fd) };
        fcntl(&alive, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
        Some(Standby { pid, alive })
    }

    /// What the program is told that is executed next.
    pub(super) fn variable(&self) -> (std::ffi::OsString, std::ffi::OsString) {
        (STANDBY.into(), format!("{}:{}", self.pid, self.alive.as_raw_fd()).into())
    }

    /// Whether a variable is that of a standby.
    pub(super) fn is_variable(name: &std::ffi::OsStr) -> bool {
        name == STANDBY
    }

    /// Whether it is there: the kernel tells who holds the writing end of a pipe when nobody can read it.
    pub(crate) fn waits(&self) -> bool {
        let mut fds = [PollFd::new(self.alive.as_fd(), PollFlags::empty())];
        !poll(&mut fds, PollTimeout::ZERO)
            .is_ok_and(|_| fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR)))
    }

    /// The descriptor that is to stay open over an execution.
    pub(super) fn held(&self) -> &OwnedFd {
        &self.alive
    }

    /// It is not needed any more. To be called by its parent, which is to reap it.
    pub(crate) fn dismiss(self) {
        // Nobody has reaped it: its number is not given away.
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.pid.cast_signed()),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
}

/// Behind so many numbers in a row that are not open there is none that is: they are given lowest first.
const GAP: RawFd = 4096;

/// In the standby: system calls alone.
fn wait_and_execute(
    wait: RawFd,
    alive: RawFd,
    program: &CString,
    args: &[*const libc::c_char],
    env: &[*const libc::c_char],
) -> ! {
    // SAFETY: raw system calls on descriptors of this process, a buffer of its own, and strings that its
    // copy of memory holds.
    unsafe {
        libc::syscall(libc::SYS_close, alive);
        // What would be closed when it executes is closed now: a socket that others are to listen on, say.
        let (mut fd, mut open) = (3, 3);
        while fd - open < GAP {
            let flags = libc::syscall(libc::SYS_fcntl, fd, libc::F_GETFD);
            if flags >= 0 {
                open = fd;
                if fd != wait && flags & i64::from(libc::FD_CLOEXEC) != 0 {
                    libc::syscall(libc::SYS_close, fd);
                }
            }
            fd += 1;
        }
        libc::syscall(libc::SYS_prctl, libc::PR_SET_NAME, c"standby".as_ptr(), 0, 0, 0);
        let mut byte = 0u8;
        while libc::syscall(libc::SYS_read, wait, &raw mut byte, 1) != 0 {}
        libc::syscall(libc::SYS_execve, program.as_ptr(), args.as_ptr(), env.as_ptr());
        libc::_exit(1)
    }
}
