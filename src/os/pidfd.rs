//! Processes by descriptor, so that a reused pid is never mistaken for the one that was meant.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;

use crate::model::Exit;

/// `PIDFD_SIGNAL_PROCESS_GROUP` of Linux 6.9.
const TO_GROUP: libc::c_uint = 1 << 2;

/// A descriptor for a process that exists at the moment.
pub(super) fn open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only; the result is checked before it is owned.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) })
}

/// Sends a signal to exactly this process.
pub(super) fn signal(fd: impl AsFd, signal: i32) -> io::Result<()> {
    send(fd.as_fd().as_raw_fd(), signal, 0)
}

/// Sends a signal to the group that this process led. Exact, since the descriptor pins the
/// group's identity even when the leader is gone; `Unsupported` before Linux 6.9.
pub(super) fn signal_group(fd: impl AsFd, number: i32) -> io::Result<()> {
    static MISSING: AtomicBool = AtomicBool::new(false);
    if MISSING.load(Ordering::Relaxed) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    match send(fd.as_fd().as_raw_fd(), number, TO_GROUP) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            MISSING.store(true, Ordering::Relaxed);
            Err(io::ErrorKind::Unsupported.into())
        }
        other => other,
    }
}

fn send(fd: i32, signal: i32, flags: libc::c_uint) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed and means that of kill(2).
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, none, flags) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reaps a child if it has ended. `Ok(None)`: it has not. `Err(ECHILD)`: it is no child of ours.
pub(super) fn reap(fd: impl AsFd) -> io::Result<Option<Exit>> {
    let id = fd.as_fd().as_raw_fd().cast_unsigned();
    wait(libc::P_PIDFD, id)
}

/// The same by pid; only for pids that are known to be unreaped children.
pub(super) fn reap_pid(pid: u32) -> io::Result<Option<Exit>> {
    wait(libc::P_PID, pid)
}

fn wait(kind: libc::idtype_t, id: u32) -> io::Result<Option<Exit>> {
    // SAFETY: all zeroes is a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is valid for writes for the length of the call.
    let result = unsafe { libc::waitid(kind, id, &raw mut info, libc::WEXITED | libc::WNOHANG) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid filled the SIGCHLD fields, or left the zeroes, which these read as 0.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    Ok(Some(match info.si_code {
        libc::CLD_EXITED => Exit::Code(status),
        code => Exit::Signal { signal: status, core_dumped: code == libc::CLD_DUMPED },
    }))
}
