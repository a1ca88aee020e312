//! Log files: what a process prints, byte for byte, whoever is killed meanwhile.
//!
//! Output moves from its pipe to the end of a file by splice(2), one call that takes away exactly
//! what it has written: there is no moment in which a byte is in neither or in both. What was
//! written is then read back for those who follow. So the file is the truth, and its size is where
//! the next one goes on, be it a daemon after this one or the keeper meanwhile.
//!
//! Beside each file lies an index of when which part came (a pair of eight-byte numbers, the place
//! and the time in microseconds since 1970); it may lack its last entries.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};

use super::{SourceId, Stream};

/// Where the output of an instance is kept, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    /// The files are this with `.stdout.log` and `.stderr.log` behind it, older ones with a number
    /// behind that.
    pub stem: PathBuf,
    /// Bytes from which on a file is put aside and another begun.
    pub max_size: u64,
    /// How many there are of each stream, the one that grows included.
    pub max_files: u32,
}

impl Keep {
    /// The file that a stream's output goes to.
    pub fn file(&self, stream: Stream) -> PathBuf {
        let suffix = match stream {
            Stream::Out => ".stdout.log",
            Stream::Err => ".stderr.log",
        };
        with_suffix(&self.stem, suffix)
    }
}

/// What a look into a pipe gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Took {
    /// So many bytes, now in the buffer.
    Bytes(usize),
    /// Nothing at the moment.
    Nothing,
    /// Nothing any more.
    End,
}

/// Every log file that is open.
#[derive(Default)]
pub(super) struct Logs {
    open: Mutex<HashMap<SourceId, [LogFile; 2]>>,
    later: Mutex<HashMap<SourceId, Keep>>,
}

/// What became of the bytes that a log file could not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Loss {
    /// They are not kept from now on.
    Begins(String),
    /// They are kept again; so many were not.
    Over(u64),
}

/// A log file that grows.
struct LogFile {
    path: PathBuf,
    file: File,
    index: Option<File>,
    size: u64,
    max_size: u64,
    max_files: u32,
    /// Bytes that it could not take, since the disk is full.
    lost: Option<u64>,
    /// What it last took ends a line.
    at_line: bool,
}

impl Logs {
    /// Opens those of a source, where they are not open yet. Returns duplicates, for a keeper.
    pub(super) fn open(&self, source: SourceId, keep: &Keep) -> io::Result<[OwnedFd; 2]> {
        lock(&self.later).remove(&source);
        let mut open = self.lock();
        let [out, err] = match open.entry(source) {
            Entry::Occupied(there) => {
                let files = there.into_mut();
                for (file, stream) in files.iter_mut().zip([Stream::Out, Stream::Err]) {
                    // Somebody has taken it away, or put another in its place.
                    if !file.is_in_place() {
                        *file = LogFile::open(keep, stream)?;
                    }
                }
                files
            }
            Entry::Vacant(place) => {
                place.insert([LogFile::open(keep, Stream::Out)?, LogFile::open(keep, Stream::Err)?])
            }
        };
        Ok([out.file.try_clone()?.into(), err.file.try_clone()?.into()])
    }

    /// Those of a source are opened when it prints again: a daemon that takes a thousand over is
    /// ready before.
    pub(super) fn open_later(&self, source: SourceId, keep: Keep) {
        lock(&self.later).insert(source, keep);
    }

    /// A source prints no more.
    pub(super) fn close(&self, source: SourceId) {
        lock(&self.later).remove(&source);
        self.lock().remove(&source);
    }

    /// A source prints nothing until its next start, which opens its files again. Those that could not
    /// take all of it stay, to say so.
    pub(super) fn rest(&self, source: SourceId) {
        let mut open = self.lock();
        if open.get(&source).is_some_and(|files| files.iter().all(|file| file.lost.is_none())) {
            open.remove(&source);
        }
    }

    /// Opens those that were to be opened later. Returns what each ends with of a line that is not
    /// over.
    pub(super) fn open_if_due(&self, source: SourceId) -> Option<[Vec<u8>; 2]> {
        let keep = lock(&self.later).remove(&source)?;
        if let Err(error) = self.open(source, &keep) {
            tracing::error!(%error, path = %keep.stem.display(), "its output is not kept");
            return None;
        }
        self.lock().get(&source).map(|files| [files[0].unfinished(), files[1].unfinished()])
    }

    /// Duplicates of those that are open.
    pub(super) fn files(&self, source: SourceId) -> Option<[OwnedFd; 2]> {
        self.open_if_due(source);
        let open = self.lock();
        let [out, err] = open.get(&source)?;
        Some([out.file.try_clone().ok()?.into(), err.file.try_clone().ok()?.into()])
    }

    /// Moves a piece of output into its file, and into the buffer.
    pub(super) fn take(
        &self,
        source: SourceId,
        stream: Stream,
        pipe: BorrowedFd<'_>,
        buffer: &mut [u8],
    ) -> (Took, Option<Loss>) {
        match self.lock().get_mut(&source) {
            Some(files) => files[stream as usize].take(pipe, buffer),
            None => (read(pipe, buffer), None),
        }
    }

    /// Puts a source's full files aside. Returns duplicates of the new ones, for the keeper.
    pub(super) fn rotate_if_full(&self, source: SourceId) -> Option<[OwnedFd; 2]> {
        let mut open = self.lock();
        let files = open.get_mut(&source)?;
        let mut changed = false;
        for file in files.iter_mut().filter(|file| file.is_full()) {
            match file.rotate() {
                Ok(()) => changed = true,
                Err(error) => {
                    tracing::warn!(%error, path = %file.path.display(), "can't put a log file aside");
                    // Tried again when it has grown by as much again.
                    file.max_size = file.size.saturating_mul(2);
                }
            }
        }
        let [out, err] = files;
        let both = || Some([out.file.try_clone().ok()?.into(), err.file.try_clone().ok()?.into()]);
        if changed { both() } else { None }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SourceId, [LogFile; 2]>> {
        lock(&self.open)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One read, without a file.
pub(super) fn read(pipe: BorrowedFd<'_>, buffer: &mut [u8]) -> Took {
    match nix::unistd::read(pipe, buffer) {
        Ok(0) => Took::End,
        Ok(length) => Took::Bytes(length),
        Err(_) => Took::Nothing,
    }
}

impl LogFile {
    fn open(keep: &Keep, stream: Stream) -> io::Result<LogFile> {
        let path = keep.file(stream);
        super::files::private_parent(&path)?;
        let file = own_file(&path)?;
        let size = file.metadata()?.len();
        let index = own_file(&index_of(&path)).and_then(|mut index| {
            // A torn last entry would shift all that follow.
            let whole = index.metadata()?.len() / ENTRY * ENTRY;
            index.set_len(whole)?;
            index.seek(SeekFrom::End(0))?;
            Ok(index)
        });
        let mut last = [b'\n'];
        if size > 0 {
            file.read_exact_at(&mut last, size - 1)?;
        }
        let (max_size, max_files) = (keep.max_size.max(1), keep.max_files.max(1));
        let at_line = last == [b'\n'];
        Ok(LogFile { path, file, index: index.ok(), size, max_size, max_files, lost: None, at_line })
    }

    fn take(&mut self, pipe: BorrowedFd<'_>, buffer: &mut [u8]) -> (Took, Option<Loss>) {
        match splice_at(pipe, self.file.as_fd(), self.size, buffer.len()) {
            Ok(0) => (Took::End, None),
            Ok(length) => {
                let at = self.size;
                self.size += length as u64;
                self.note(at);
                let got = match self.file.read_exact_at(&mut buffer[..length], at) {
                    Ok(()) => Took::Bytes(length),
                    Err(error) => {
                        tracing::warn!(%error, path = %self.path.display(), "can't read what was written");
                        Took::Nothing
                    }
                };
                self.at_line = buffer[..length].ends_with(b"\n");
                (got, self.lost.take().map(Loss::Over))
            }
            Err(Errno::EAGAIN | Errno::EINTR) => (Took::Nothing, None),
            // The disk is full, or the file can't be written: the service lives on, and what it
            // prints still reaches those who follow.
            Err(errno) => {
                let took = read(pipe, buffer);
                let Took::Bytes(length) = took else {
                    return (took, None);
                };
                let begins = self.lost.is_none().then(|| Loss::Begins(errno.desc().to_owned()));
                *self.lost.get_or_insert(0) += length as u64;
                (took, begins)
            }
        }
    }

    /// The begin of a line whose end has not come yet.
    fn unfinished(&self) -> Vec<u8> {
        if self.at_line {
            return Vec::new();
        }
        let from = self.size.saturating_sub(LONGEST_LINE);
        let mut tail = vec![0; usize::try_from(self.size - from).unwrap_or_default()];
        if self.file.read_exact_at(&mut tail, from).is_err() {
            return Vec::new();
        }
        let begin = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        tail.split_off(begin)
    }

    /// When what begins here came.
    fn note(&mut self, at: u64) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let micros = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let entry = [at.to_le_bytes(), micros.to_le_bytes()].concat();
        if let Some(index) = &mut self.index
            && index.write_all(&entry).is_err()
        {
            // Half an entry may be there.
            let whole = index.metadata().map_or(0, |index| index.len()) / ENTRY * ENTRY;
            let _ = index.set_len(whole);
            let _ = index.seek(SeekFrom::End(0));
        }
    }

    fn is_in_place(&self) -> bool {
        let at = fs::symlink_metadata(&self.path);
        at.is_ok_and(|at| {
            self.file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (at.dev(), at.ino()))
        })
    }

    fn is_full(&self) -> bool {
        // Between two lines, unless the line is endless.
        self.size >= self.max_size && (self.at_line || self.size >= self.max_size.saturating_add(1 << 20))
    }

    /// Renames `x.log` to `x.log.1`, what that was to `x.log.2`, and so on.
    fn rotate(&mut self) -> io::Result<()> {
        let oldest = self.max_files - 1;
        for path in [self.path.clone(), index_of(&self.path)] {
            if oldest == 0 {
                fs::remove_file(&path)?;
                continue;
            }
            for number in (1..oldest).rev() {
                rename_if_there(&numbered(&path, number), &numbered(&path, number + 1))?;
            }
            rename_if_there(&path, &numbered(&path, 1))?;
        }
        self.file = own_file(&self.path)?;
        self.index = own_file(&index_of(&self.path)).ok();
        self.size = 0;
        self.at_line = true;
        Ok(())
    }
}

/// Of a line that another has begun to read so much is looked at.
const LONGEST_LINE: u64 = 64 * 1024;

/// Bytes of an entry of the index.
const ENTRY: u64 = 16;

fn index_of(path: &Path) -> PathBuf {
    path.with_extension("idx")
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    with_suffix(path, &format!(".{number}"))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Opens a file that is ours alone, never through a link.
fn own_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC)
        .open(path)
}

fn splice_at(pipe: BorrowedFd<'_>, file: BorrowedFd<'_>, at: u64, most: usize) -> Result<usize, Errno> {
    let mut at = i64::try_from(at).map_err(|_| Errno::EFBIG)?;
    splice(pipe, None, file, Some(&mut at), most, SpliceFFlags::SPLICE_F_NONBLOCK)
}

/// Moves a piece of output to the end of a file.
pub(super) fn splice_to_end(pipe: BorrowedFd<'_>, file: BorrowedFd<'_>, most: usize) -> Result<usize, Errno> {
    let size = nix::sys::stat::fstat(file)?.st_size;
    splice_at(pipe, file, size.cast_unsigned(), most)
}

/// A part of what was printed, with the time at which it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// When it was read.
    pub at: SystemTime,
    /// It.
    pub bytes: Vec<u8>,
}

/// The last of a stream, oldest first: at most so many bytes, over all files that are kept.
pub fn last_of(keep: &Keep, stream: Stream, most: u64) -> io::Result<Vec<Part>> {
    let path = keep.file(stream);
    let (mut parts, mut left) = (Vec::new(), most);
    for number in 0..keep.max_files.max(1) {
        let one = if number == 0 { path.clone() } else { numbered(&path, number) };
        let index = if number == 0 { index_of(&path) } else { numbered(&index_of(&path), number) };
        if left == 0 {
            break;
        }
        match last_of_file(&one, &index, left) {
            Ok(mut older) => {
                left -= older.iter().map(|part| part.bytes.len() as u64).sum::<u64>().min(left);
                older.append(&mut parts);
                parts = older;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        }
    }
    Ok(parts)
}

fn last_of_file(path: &Path, index: &Path, most: u64) -> io::Result<Vec<Part>> {
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path)?;
    let size = file.metadata()?.len();
    let from = size.saturating_sub(most);
    let mut times = Vec::new();
    if let Ok(mut index) = OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(index) {
        let mut bytes = Vec::new();
        index.read_to_end(&mut bytes)?;
        for entry in bytes.chunks_exact(16) {
            if let (Some((at, _)), Some((_, micros))) =
                (entry.split_first_chunk::<8>(), entry.split_last_chunk::<8>())
            {
                times.push((u64::from_le_bytes(*at), u64::from_le_bytes(*micros)));
            }
        }
    }
    let unknown = file.metadata().and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut bytes = vec![0; usize::try_from(size - from).unwrap_or_default()];
    file.read_exact_at(&mut bytes, from)?;
    let mut parts: Vec<Part> = Vec::new();
    let mut at = from;
    // The entry that what we begin with belongs to, and all behind it.
    let first = times.partition_point(|(place, _)| *place <= from).saturating_sub(1);
    let mut times = times[first.min(times.len())..].iter().copied().peekable();
    let mut time = None;
    while at < size {
        while let Some((_, micros)) = times.next_if(|(place, _)| *place <= at) {
            time = Some(micros);
        }
        let end = times.peek().map_or(size, |(place, _)| (*place).min(size));
        let end = if end <= at { size } else { end };
        let slice = |from_at: u64| usize::try_from(from_at - from).unwrap_or_default();
        let when = time.map(|micros| SystemTime::UNIX_EPOCH + Duration::from_micros(micros));
        parts.push(Part { at: when.unwrap_or(unknown), bytes: bytes[slice(at)..slice(end)].to_vec() });
        at = end;
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn keep(folder: &tempfile::TempDir, max_size: u64, max_files: u32) -> Keep {
        Keep { stem: folder.path().join("logs/web"), max_size, max_files }
    }

    fn pipe() -> (OwnedFd, File) {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        (read, write.into())
    }

    #[test]
    fn what_goes_in_comes_out_of_the_files_and_of_the_buffer() {
        let folder = tempfile::tempdir().unwrap();
        let keep = keep(&folder, 1000, 3);
        let (logs, source) = (Logs::default(), SourceId(0));
        logs.open(source, &keep).unwrap();
        let (read, mut write) = pipe();
        let mut buffer = vec![0; 4096];
        let mut printed = Vec::new();
        for n in 0..300 {
            let line = format!("line {n}\n");
            write.write_all(line.as_bytes()).unwrap();
            printed.extend_from_slice(line.as_bytes());
            let (took, loss) = logs.take(source, Stream::Out, read.as_fd(), &mut buffer);
            assert_eq!((took, loss), (Took::Bytes(line.len()), None));
            assert_eq!(&buffer[..line.len()], line.as_bytes());
            logs.rotate_if_full(source);
        }
        assert_eq!(logs.take(source, Stream::Out, read.as_fd(), &mut buffer).0, Took::Nothing);
        drop(write);
        assert_eq!(logs.take(source, Stream::Out, read.as_fd(), &mut buffer).0, Took::End);
        let parts = last_of(&keep, Stream::Out, u64::MAX).unwrap();
        let kept: Vec<u8> = parts.iter().flat_map(|part| part.bytes.clone()).collect();
        assert_eq!(kept, printed[printed.len() - kept.len()..], "the last of it, whole lines");
        assert!(kept.len() > 2000 && kept.starts_with(b"line "), "three files");
        assert!(parts.windows(2).all(|pair| pair[0].at <= pair[1].at));
        let last: Vec<u8> =
            last_of(&keep, Stream::Out, 9).unwrap().iter().flat_map(|part| part.bytes.clone()).collect();
        assert_eq!(last, b"line 299\n");
        assert!(!numbered(&keep.file(Stream::Out), 3).exists());
    }

    #[test]
    fn another_goes_on_where_the_last_one_was() {
        let folder = tempfile::tempdir().unwrap();
        let keep = keep(&folder, 1 << 20, 2);
        let (read, mut write) = pipe();
        let mut buffer = vec![0; 4096];
        for text in ["one\n", "two\n"] {
            let logs = Logs::default();
            let [out, _] = logs.open(SourceId(7), &keep).unwrap();
            write.write_all(text.as_bytes()).unwrap();
            assert_eq!(logs.take(SourceId(7), Stream::Out, read.as_fd(), &mut buffer).0, Took::Bytes(4));
            // As the keeper does meanwhile.
            write.write_all(b"away\n").unwrap();
            drop(logs);
            assert_eq!(splice_to_end(read.as_fd(), out.as_fd(), 100), Ok(5));
        }
        assert_eq!(fs::read(keep.file(Stream::Out)).unwrap(), b"one\naway\ntwo\naway\n");
    }

    #[test]
    fn a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let keep = keep(&folder, 1 << 20, 2);
        fs::create_dir(folder.path().join("logs")).unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, keep.file(Stream::Out)).unwrap();
        assert!(Logs::default().open(SourceId(0), &keep).is_err());
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    }
}
