//! Processes by file descriptor (pidfd), so that a reused pid is never mistaken for the process
//! that was meant.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::libc;

use crate::model::{Exit, ResourceUsage};

/// `PIDFD_SIGNAL_PROCESS_GROUP` (Linux 6.9).
const TO_GROUP: libc::c_uint = 1 << 2;

/// Opens a descriptor for a process that exists now.
pub(crate) fn open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only; the result is checked before it is owned.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) })
}

/// Sends a signal to exactly this process.
pub(crate) fn signal(fd: impl AsFd, signal: i32) -> io::Result<()> {
    send(fd.as_fd().as_raw_fd(), signal, 0)
}

/// Sends a signal to the group that this process led. Exact, since the descriptor pins the
/// group's identity even when the leader is gone; `Unsupported` before Linux 6.9.
pub(crate) fn signal_group(fd: impl AsFd, number: i32) -> io::Result<()> {
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

/// Reaps a child if it has ended. `Ok(None)`: it still runs. `Err(ECHILD)`: it is not a child of
/// this process.
pub(crate) fn reap(fd: impl AsFd) -> io::Result<Option<Exit>> {
    Ok(reap_with_usage(fd)?.map(|(exit, _)| exit))
}

/// Like [`reap`], and also returns the resources that the kernel counted for the process.
pub(crate) fn reap_with_usage(fd: impl AsFd) -> io::Result<Option<(Exit, ResourceUsage)>> {
    let id = fd.as_fd().as_raw_fd().cast_unsigned();
    Ok(wait(libc::P_PIDFD, id)?.map(|(_, exit, usage)| (exit, usage)))
}

/// Reaps any child that has ended. Only for a program that owns every child of its process.
pub(crate) fn reap_any() -> io::Result<Option<(u32, Exit)>> {
    Ok(wait(libc::P_ALL, 0)?.map(|(pid, exit, _)| (pid, exit)))
}

/// Whether the process behind a pidfd has ended.
pub(crate) fn has_ended(fd: BorrowedFd<'_>) -> bool {
    let mut poll = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
    matches!(nix::poll::poll(&mut poll, nix::poll::PollTimeout::ZERO), Ok(1..))
}

/// Whether the process behind a pidfd has ended, or does so within this time.
pub(crate) fn ends_within(fd: BorrowedFd<'_>, time: Duration) -> bool {
    let mut poll = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
    let time = nix::poll::PollTimeout::try_from(time.as_millis()).unwrap_or(nix::poll::PollTimeout::MAX);
    matches!(nix::poll::poll(&mut poll, time), Ok(1..))
}

/// `struct pidfd_info` of Linux 6.15, in its first version.
#[repr(C)]
#[derive(Default)]
struct Info {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// `PIDFD_GET_INFO`: _IOWR(0xFF, 11, struct pidfd_info).
const GET_INFO: libc::c_ulong = 0xC040_FF0B;
/// `PIDFD_INFO_EXIT`.
const INFO_EXIT: u64 = 1 << 3;

/// How a process ended that another process, its parent, has reaped. The kernel keeps this as long
/// as a pidfd is open (Linux 6.15). `None` when the kernel can't say.
pub(crate) fn exit_of(fd: impl AsFd) -> Option<Exit> {
    let mut info = Info { mask: INFO_EXIT, ..Info::default() };
    // SAFETY: `info` is valid for writes for the length of the call, and as large as the request
    // says.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), GET_INFO, &raw mut info) };
    (result == 0 && info.mask & INFO_EXIT != 0).then(|| of_status(info.exit_code))
}

/// Decodes a wait status, as wait(2) gives it.
pub(crate) fn of_status(status: i32) -> Exit {
    match status & 0x7f {
        0 => Exit::Code(status >> 8 & 0xff),
        signal => Exit::Signal { signal, core_dumped: status & 0x80 != 0 },
    }
}

/// Like [`reap`], by pid. Only for pids that are known to be unreaped children.
pub(crate) fn reap_pid(pid: u32) -> io::Result<Option<Exit>> {
    Ok(wait(libc::P_PID, pid)?.map(|(_, exit, _)| exit))
}

fn wait(kind: libc::idtype_t, id: u32) -> io::Result<Option<(u32, Exit, ResourceUsage)>> {
    // SAFETY: all zeroes is a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: all zeroes is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG;
    // The system call itself: libc's waitid takes no pointer for the resource usage.
    // SAFETY: `info` and `usage` are valid for writes for the length of the call.
    let result = unsafe { libc::syscall(libc::SYS_waitid, kind, id, &raw mut info, flags, &raw mut usage) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid filled the SIGCHLD fields, or left the zeroes, which these read as 0.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let exit = match info.si_code {
        libc::CLD_EXITED => Exit::Code(status),
        code => Exit::Signal { signal: status, core_dumped: code == libc::CLD_DUMPED },
    };
    Ok(Some((pid.cast_unsigned(), exit, counted(&usage))))
}

fn counted(usage: &libc::rusage) -> ResourceUsage {
    let number = |number: i64| u64::try_from(number).unwrap_or_default();
    let time = |time: libc::timeval| {
        Duration::from_secs(number(time.tv_sec)) + Duration::from_micros(number(time.tv_usec))
    };
    ResourceUsage {
        user_s: time(usage.ru_utime),
        system_s: time(usage.ru_stime),
        // `ru_maxrss` is in KiB, and the block counts are in units of 512 bytes (getrusage(2)).
        peak_memory_bytes: number(usage.ru_maxrss) * 1024,
        minor_faults: number(usage.ru_minflt),
        major_faults: number(usage.ru_majflt),
        read_bytes: number(usage.ru_inblock) * 512,
        written_bytes: number(usage.ru_oublock) * 512,
        voluntary_switches: number(usage.ru_nvcsw),
        involuntary_switches: number(usage.ru_nivcsw),
    }
}
