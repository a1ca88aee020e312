//! What the standard streams are connected to.

use std::io::IsTerminal;
use std::os::fd::AsRawFd;

use nix::libc;

/// Whether standard output is a terminal.
pub fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Whether standard input is a file on a disk: reading all of it ends.
pub fn input_is_a_file() -> bool {
    nix::sys::stat::fstat(std::io::stdin()).is_ok_and(|at| at.st_mode & libc::S_IFMT == libc::S_IFREG)
}

/// Columns of the terminal on standard output; `None` where it is none.
pub fn width() -> Option<usize> {
    size().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Its lines.
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
