//! The pipe on which a worker's tasks report their progress. Every task has it as the same
//! descriptor, which its environment names. The worker keeps both ends, and runs one task at a
//! time.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The descriptor's number in a task: the first free one, and of one digit, since some shells
/// accept no others.
pub const DESCRIPTOR: i32 = 3;

/// The longest line in bytes; a longer one is ignored.
const LONGEST: usize = 4 * 1024;
/// How many pieces are read at a time at most: together they are as much as a pipe holds.
const PIECES: usize = 16;

/// Both ends of the progress pipe.
pub struct ProgressPipe {
    read: Arc<AsyncFd<OwnedFd>>,
    write: Arc<OwnedFd>,
    /// The beginning of a line whose end has not been read yet.
    part: Vec<u8>,
}

/// Tells when the pipe has something to read.
pub struct Readable(Arc<AsyncFd<OwnedFd>>);

impl Readable {
    /// Returns when there may be unread bytes. An error means that there never will be.
    pub async fn ready(&self) -> io::Result<()> {
        // [`ProgressPipe::lines`] clears the readiness once nothing is left.
        self.0.readable().await.map(|mut guard| guard.retain_ready())
    }
}

impl ProgressPipe {
    /// Makes the pipe. It needs a tokio runtime with I/O.
    pub fn new() -> io::Result<ProgressPipe> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        // Only the reading end is non-blocking: a task that writes faster than the worker reads
        // waits.
        fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // SAFETY: an owned descriptor is open, and the same, as long as its owner, which this becomes.
        let read = unsafe { AsyncFd::register_with_interest(read, Interest::READABLE) }?;
        Ok(ProgressPipe { read: Arc::new(read), write: Arc::new(write), part: Vec::new() })
    }

    /// The writing end, for a task.
    pub fn writer(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.write)
    }

    /// Returns a handle to wait for something to read.
    pub fn readable(&self) -> Readable {
        Readable(Arc::clone(&self.read))
    }

    /// Returns the whole lines that have arrived. One call reads a limited number of bytes, and the
    /// next call the rest.
    pub fn lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut part = std::mem::take(&mut self.part);
        self.read_all(|bytes| {
            for byte in bytes {
                match byte {
                    b'\n' if part.len() <= LONGEST => {
                        lines.push(String::from_utf8_lossy(&std::mem::take(&mut part)).into_owned());
                    }
                    b'\n' => part.clear(),
                    // One byte more than a line may have marks the line as too long.
                    _ if part.len() <= LONGEST => part.push(*byte),
                    _ => {}
                }
            }
        });
        self.part = part;
        lines
    }

    /// Drops what an earlier task left in the pipe.
    pub fn empty(&mut self) {
        self.part.clear();
        self.read_all(|_| {});
    }

    fn read_all(&self, mut each: impl FnMut(&[u8])) {
        let mut buffer = [0; 4 * 1024];
        let told = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
            _ => tracing::warn!(%error, "the progress that a task reports can't be read"),
        };
        // A task that writes without end is not read without end.
        for _ in 0..PIECES {
            // Read directly: the readiness that the runtime knows of may be older than the bytes.
            match nix::unistd::read(self.read.get_ref(), &mut buffer) {
                Ok(length) => each(&buffer[..length]),
                Err(Errno::EAGAIN) => {
                    // Clears the readiness, so that nobody is woken before there is more.
                    let read = |fd: &OwnedFd| nix::unistd::read(fd, &mut buffer).map_err(io::Error::from);
                    return match self.read.try_io(Interest::READABLE, read) {
                        Ok(length) => each(&buffer[..length]),
                        Err(error) => told(error),
                    };
                }
                Err(error) => return told(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_come_whole_and_those_that_are_too_long_not_at_all() {
        let mut pipe = ProgressPipe::new().unwrap();
        let write = |pipe: &ProgressPipe, text: &[u8]| nix::unistd::write(&*pipe.write, text).unwrap();
        let readable = pipe.readable();
        write(&pipe, b"0.1\n0.");
        readable.ready().await.unwrap();
        // The pipe stays readable until it is read.
        readable.ready().await.unwrap();
        assert_eq!(pipe.lines(), ["0.1"]);
        write(&pipe, b"2\n\xff\n");
        readable.ready().await.unwrap();
        assert_eq!(pipe.lines(), ["0.2", "\u{fffd}"]);
        write(&pipe, &[b'x'; LONGEST + 100]);
        write(&pipe, b"\n0.3\n0.4");
        assert_eq!(pipe.lines(), ["0.3"]);
        write(&pipe, b"5\n0.");
        pipe.empty();
        write(&pipe, b"1\n");
        assert_eq!(pipe.lines(), ["1"], "what was there before is gone, half lines too");
        assert!(pipe.lines().is_empty());
    }
}
