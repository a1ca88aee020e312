//! The standard streams and the terminal that they are connected to.

use std::io::IsTerminal;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::model::Stream;

/// Writes bytes to standard output or standard error, until all are written or the reader is gone.
/// It doesn't take std's lock: a thread that held the lock while nobody reads would block every
/// other one that prints.
pub fn write(stream: Stream, mut bytes: &[u8]) {
    let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
    let to = if stream == Stream::Err { stderr.as_fd() } else { stdout.as_fd() };
    while !bytes.is_empty() {
        match nix::unistd::write(to, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let _ = poll(&mut [PollFd::new(to, PollFlags::POLLOUT)], PollTimeout::NONE);
            }
            // The reader is gone.
            Err(_) => return,
        }
    }
}

/// Whether standard error takes a line of at most a page at once: it is a pipe, a socket or a terminal,
/// and has room.
pub fn stderr_takes_a_line() -> bool {
    let stderr = std::io::stderr();
    let is_a_file = nix::sys::stat::fstat(&stderr).is_ok_and(|at| at.st_mode & libc::S_IFMT == libc::S_IFREG);
    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    !is_a_file && poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready == 1)
}

/// Whether standard output is a terminal.
pub fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Whether standard input is a regular file, so that reading it to the end terminates.
pub fn input_is_a_file() -> bool {
    nix::sys::stat::fstat(std::io::stdin()).is_ok_and(|at| at.st_mode & libc::S_IFMT == libc::S_IFREG)
}

/// Columns of the terminal on standard output. `None` when it is not a terminal.
pub fn width() -> Option<usize> {
    size().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Lines of the terminal on standard output. `None` when it is not a terminal.
pub fn height() -> Option<usize> {
    size().map(|size| usize::from(size.ws_row)).filter(|lines| *lines > 0)
}

fn size() -> Option<libc::winsize> {
    // SAFETY: all zeroes is a valid winsize.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: `size` is valid for writes for the length of the call.
    let result = unsafe { libc::ioctl(std::io::stdout().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0).then_some(size)
}
