//! A process that waits until no other is left to carry on, and then becomes the keeper. A daemon
//! whose keeper is dead starts it before taking the keeper's place; it is dismissed once there are
//! a keeper and a daemon again.
//!
//! Every process that would carry on holds one end of a pipe, across executions and forks. The
//! standby holds the other end, and reads end of file when the last of those processes has died.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The environment variable that names the standby's pid and the descriptor to an executed program.
const STANDBY: &str = "REGROW_KEEPER_STANDBY";

/// The standby, as the processes see it that it waits for.
#[derive(Debug)]
pub(crate) struct Standby {
    pid: u32,
    /// The writing end of the pipe: while any process holds it, the standby waits.
    alive: OwnedFd,
}

impl Standby {
    /// Forks a standby that executes this program when its turn comes. Other threads may run.
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

    /// The standby of the program that executed this one, if it had one. To be called before any
    /// thread is made.
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

    /// The environment variable that passes the standby on to the next executed program.
    pub(super) fn variable(&self) -> (std::ffi::OsString, std::ffi::OsString) {
        (STANDBY.into(), format!("{}:{}", self.pid, self.alive.as_raw_fd()).into())
    }

    /// Whether this is the name of a standby's variable.
    pub(super) fn is_variable(name: &std::ffi::OsStr) -> bool {
        name == STANDBY
    }

    /// Whether the standby lives: poll(2) reports POLLERR on the writing end once nobody can read
    /// the pipe.
    pub(crate) fn waits(&self) -> bool {
        let mut fds = [PollFd::new(self.alive.as_fd(), PollFlags::empty())];
        !poll(&mut fds, PollTimeout::ZERO)
            .is_ok_and(|_| fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR)))
    }

    /// The descriptor that must stay open across an execution.
    pub(super) fn held(&self) -> &OwnedFd {
        &self.alive
    }

    /// Kills the standby, which is no longer needed. To be called by its parent, which reaps it.
    pub(crate) fn dismiss(self) {
        // The standby has not been reaped, so its pid can't have been reused.
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.pid.cast_signed()),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
}

/// After this many unused numbers in a row no descriptor is open: the kernel gives the lowest free
/// number first.
const GAP: RawFd = 4096;

/// The code of the standby, which makes system calls and nothing else.
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
        // Closes now what execution would close: a socket that another process is to listen on, for
        // instance.
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
