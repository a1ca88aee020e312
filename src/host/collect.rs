//! Collects what a task prints: the first part in memory, and all of it in a file without a name
//! once that is too much, so that nothing is left of it whatever is killed. Output beyond the limit
//! is only counted.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::model::Stream;

/// How much of each stream is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureLimit {
    /// The most bytes of a stream that are held in memory.
    pub memory: usize,
    /// The most bytes of a stream that are kept in all.
    pub limit: u64,
    /// The directory in which the files are made; they keep no name in it.
    pub folder: PathBuf,
}

/// The output of one process.
#[derive(Debug)]
pub struct Collector {
    room: CaptureLimit,
    streams: [Mutex<Kept>; 2],
    /// The number of bytes of both streams so far; `None` once the output has ended.
    grown: Mutex<Option<watch::Sender<u64>>>,
    follow: watch::Receiver<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    head: Vec<u8>,
    /// The file with all of the stream, once it exceeds what memory may hold.
    file: Option<File>,
    kept: u64,
    dropped: u64,
}

impl Collector {
    /// Makes a collector without any output.
    pub fn new(room: CaptureLimit) -> Collector {
        let (grown, follow) = watch::channel(0);
        Collector { room, streams: <[Mutex<Kept>; 2]>::default(), grown: Mutex::new(Some(grown)), follow }
    }

    /// Makes a collector of output that was printed before: its standard output and its standard
    /// error.
    ///
    /// Each comes with the total number of bytes that were printed; the bytes beyond the kept ones
    /// count as dropped.
    pub fn of(printed: [(&[u8], u64); 2]) -> Collector {
        let all = CaptureLimit { memory: usize::MAX, limit: u64::MAX, folder: PathBuf::new() };
        let collector = Collector::new(all);
        for (stream, (bytes, total)) in [Stream::Out, Stream::Err].into_iter().zip(printed) {
            collector.take(stream, bytes);
            lock(&collector.streams[stream as usize]).dropped = total.saturating_sub(bytes.len() as u64);
        }
        collector.close();
        collector
    }

    /// Takes further output. The host's thread calls it.
    pub(crate) fn take(&self, stream: Stream, bytes: &[u8]) {
        lock(&self.streams[stream as usize]).take(bytes, &self.room);
        if let Some(grown) = &*lock(&self.grown) {
            grown.send_modify(|all| *all += bytes.len() as u64);
        }
    }

    /// Notes that the output has ended.
    pub fn close(&self) {
        *lock(&self.grown) = None;
    }

    /// Returns kept bytes of a stream from an offset on, at most `most`.
    pub fn read(&self, stream: Stream, from: u64, most: usize) -> io::Result<Vec<u8>> {
        let kept = lock(&self.streams[stream as usize]);
        let left = usize::try_from(kept.kept.saturating_sub(from)).unwrap_or(usize::MAX).min(most);
        match &kept.file {
            None => {
                let from = usize::try_from(from).unwrap_or(usize::MAX).min(kept.head.len());
                Ok(kept.head[from..from + left].to_vec())
            }
            Some(file) => {
                let mut bytes = vec![0; left];
                file.read_exact_at(&mut bytes, from)?;
                Ok(bytes)
            }
        }
    }

    /// How many bytes of a stream are kept, and how many were dropped.
    pub fn size(&self, stream: Stream) -> (u64, u64) {
        let kept = lock(&self.streams[stream as usize]);
        (kept.kept, kept.dropped)
    }

    /// A receiver that changes whenever there is more output, and closes when the output ends.
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.follow.clone()
    }
}

impl Kept {
    fn take(&mut self, bytes: &[u8], room: &CaptureLimit) {
        let left = usize::try_from(room.limit.saturating_sub(self.kept)).unwrap_or(usize::MAX);
        // Bytes after a gap are not kept either.
        let fits = if self.dropped > 0 { 0 } else { bytes.len().min(left) };
        let kept = self.keep(&bytes[..fits], room);
        self.kept += kept as u64;
        self.dropped += (bytes.len() - kept) as u64;
    }

    /// Keeps bytes, and returns how many could be kept.
    fn keep(&mut self, bytes: &[u8], room: &CaptureLimit) -> usize {
        if self.file.is_none() {
            if self.head.len() + bytes.len() <= room.memory {
                self.head.extend_from_slice(bytes);
                return bytes.len();
            }
            if bytes.is_empty() {
                return 0;
            }
            match nameless(&room.folder).and_then(|mut file| file.write_all(&self.head).map(|()| file)) {
                Ok(file) => {
                    self.file = Some(file);
                    self.head = Vec::new();
                }
                Err(error) => {
                    tracing::warn!(%error, folder = %room.folder.display(), "a task's output can't be kept");
                    let fits = room.memory.saturating_sub(self.head.len()).min(bytes.len());
                    self.head.extend_from_slice(&bytes[..fits]);
                    return fits;
                }
            }
        }
        let Some(file) = &mut self.file else {
            return 0;
        };
        let mut written = 0;
        while written < bytes.len() {
            match file.write(&bytes[written..]) {
                Ok(0) | Err(_) => break,
                Ok(more) => written += more,
            }
        }
        written
    }
}

/// Opens a new file without a name.
fn nameless(folder: &Path) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let made = options.clone().custom_flags(nix::libc::O_TMPFILE | nix::libc::O_CLOEXEC).open(folder);
    // Not every file system supports O_TMPFILE.
    made.or_else(|_| {
        let name = folder.join(format!("{}-{:016x}", std::process::id(), number()));
        let file = options.create_new(true).open(&name)?;
        std::fs::remove_file(&name)?;
        Ok(file)
    })
}

fn number() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

/// Makes a file in memory with these bytes, ready to be read from its start as a process's input.
pub fn holding(bytes: &[u8]) -> io::Result<std::os::fd::OwnedFd> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let file = memfd_create(c"regrow-input", MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(bytes)?;
    io::Seek::rewind(&mut file)?;
    Ok(file.into())
}

/// Opens a file as a process's input. Only a regular file is accepted, because a pipe may have no
/// other end.
pub fn reading(path: &Path) -> io::Result<std::os::fd::OwnedFd> {
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file.into())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
    }
}

/// A text that changes when the file does.
pub fn fingerprint(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map_or_else(
        |error| error.to_string(),
        |at| format!("{} {} {} {}.{:09}", at.dev(), at.ino(), at.len(), at.mtime(), at.mtime_nsec()),
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_fills_memory_then_a_file_and_the_excess_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let room = CaptureLimit { memory: 10, limit: 25, folder: folder.path().join("tasks") };
        let collector = Collector::new(room);
        let mut follow = collector.follow();
        collector.take(Stream::Out, b"0123456789");
        assert!(!folder.path().join("tasks").exists());
        assert_eq!(collector.read(Stream::Out, 8, 100).unwrap(), b"89");
        collector.take(Stream::Out, b"abc");
        assert_eq!(std::fs::read_dir(folder.path().join("tasks")).unwrap().count(), 0, "it has no name");
        assert_eq!(collector.read(Stream::Out, 9, 2).unwrap(), b"9a");
        collector.take(Stream::Out, b"ABCDEFGHIJKLMNOP");
        collector.take(Stream::Err, b"!");
        assert_eq!(collector.size(Stream::Out), (25, 4));
        collector.take(Stream::Out, b"x");
        assert_eq!(collector.size(Stream::Out), (25, 5));
        assert_eq!(collector.read(Stream::Out, 0, 100).unwrap(), b"0123456789abcABCDEFGHIJKL");
        assert_eq!(collector.size(Stream::Err), (1, 0));
        assert_eq!(*follow.borrow_and_update(), 31);
        collector.close();
        assert!(follow.has_changed().is_err());
    }

    #[test]
    fn where_no_file_can_be_made_memory_is_all_there_is() {
        let room = CaptureLimit { memory: 4, limit: 100, folder: "/proc/nowhere".into() };
        let collector = Collector::new(room);
        collector.take(Stream::Out, b"0123456");
        collector.take(Stream::Out, b"7");
        assert_eq!(collector.size(Stream::Out), (4, 4));
        assert_eq!(collector.read(Stream::Out, 0, 9).unwrap(), b"0123");
    }
}
