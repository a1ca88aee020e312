//! Tells a keeper of its daemon's death before the kernel has taken the daemon apart.
//!
//! A killed process is reported dead once all of its memory and descriptors are gone, which takes
//! milliseconds where there are many. So one thread of the daemon has a descriptor table of its
//! own, with one end of a pipe in it and nothing else, and does nothing. When that thread ends, the
//! pipe's end is closed at once. By then no thread of the daemon runs any more, because a kill ends
//! all threads.
//!
//! Where the kernel does not let a thread have such a table, the end is closed with all other
//! descriptors.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::mpsc;

use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::signal::SigSet;

/// Makes the two ends of a pipe: the keeper waits on the first, and the daemon holds the second.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

/// In the daemon: gives the pipe's end to a thread that holds it until it is killed.
pub(super) fn hold(end: OwnedFd) -> io::Result<()> {
    let fd = end.as_raw_fd();
    let (tell, heard) = mpsc::channel();
    let thread = move || {
        // A signal handler that ran on this thread would write to descriptors that its table lacks,
        // and its message would be lost.
        let _ = SigSet::all().thread_block();
        // The thread runs only to end, and then before all others, where that priority is allowed.
        // SAFETY: the call takes numbers and touches no memory; 0 is the calling thread.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
        let _ = tell.send(keep_alone(fd));
        loop {
            std::thread::park();
        }
    };
    std::thread::Builder::new().name("regrow-pulse".into()).stack_size(64 * 1024).spawn(thread)?;
    match heard.recv() {
        Ok(true) => drop(end),
        // The end stays open here, and is closed when this process ends.
        Ok(false) | Err(_) => std::mem::forget(end),
    }
    Ok(())
}

/// Gives this thread a descriptor table with this descriptor alone. `false`: the kernel refused.
fn keep_alone(fd: RawFd) -> bool {
    let number = |fd: RawFd| libc::c_uint::try_from(fd).unwrap_or_default();
    // SAFETY: system calls on numbers. From the first on, this thread's table is its own: what is closed
    // in it stays open in that of all other threads, and this thread uses nothing of it.
    unsafe {
        if libc::syscall(libc::SYS_unshare, libc::CLONE_FILES) != 0 {
            return false;
        }
        if fd > 0 {
            libc::syscall(libc::SYS_close_range, 0, number(fd - 1), 0);
        }
        libc::syscall(libc::SYS_close_range, number(fd + 1), libc::c_uint::MAX, 0);
    }
    true
}
