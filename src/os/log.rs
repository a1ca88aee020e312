//! Log files: what a process prints, byte for byte, whoever is killed meanwhile.
//!
//! Output moves from its pipe to the end of a file by splice(2), one call that takes away exactly
//! what it has written: there is no moment in which a byte is in neither or in both. What was
//! written is then read back for those who follow. So the file is the truth, and its size is where
//! the next one goes on, be it a daemon after this one or the keeper meanwhile.
//!
//! Beside each file lies an index of when which part came (`past`). A file that is full is put
//! aside under a number (`file`), and those may be compressed (`compress`). Who keeps what, and
//! where, is decided elsewhere; a [`Keep`] says it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};

use super::{SourceId, Stream};
use compress::Compressor;
use file::{LogFile, Scratch, Turns};

mod compress;
mod file;
mod past;

pub use past::{Part, Tail, last_of};

/// Where the output of an instance is kept, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    /// In which files.
    pub place: Place,
    /// Bytes from which on a file is put aside and another begun.
    pub max_size: u64,
    /// How many there are of each, the one that grows included.
    pub max_files: u32,
    /// Whether those that were put aside are compressed (gzip).
    pub compress: bool,
}

/// The files that grow. Older ones have a number behind their name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A file for each stream: this with `.stdout.log` and `.stderr.log` behind it.
    Streams(PathBuf),
    /// One file for both streams, as they come.
    One {
        /// It.
        file: PathBuf,
        /// Which of its parts came when, and on which stream.
        index: PathBuf,
    },
}

impl Keep {
    /// The file that a stream's output goes to.
    pub fn file(&self, stream: Stream) -> PathBuf {
        match &self.place {
            Place::Streams(stem) => with_suffix(stem, of_stream(stream, ".stdout.log", ".stderr.log")),
            Place::One { file, .. } => file.clone(),
        }
    }

    fn index(&self, stream: Stream) -> PathBuf {
        match &self.place {
            Place::Streams(stem) => with_suffix(stem, of_stream(stream, ".stdout.idx", ".stderr.idx")),
            Place::One { index, .. } => index.clone(),
        }
    }

    /// For people.
    pub fn shown(&self) -> impl std::fmt::Display + '_ {
        match &self.place {
            Place::Streams(path) | Place::One { file: path, .. } => path.display(),
        }
    }
}

fn of_stream<T>(stream: Stream, out: T, err: T) -> T {
    match stream {
        Stream::Out => out,
        Stream::Err => err,
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

/// What became of the bytes that a log file could not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Loss {
    /// They are not kept from now on.
    Begins(String),
    /// They are kept again; so many were not.
    Over(u64),
}

/// Every log file that is open.
#[derive(Default)]
pub(super) struct Logs {
    open: Mutex<HashMap<SourceId, Open>>,
    later: Mutex<HashMap<SourceId, Keep>>,
    turns: Turns,
    scratch: Mutex<Scratch>,
    compressor: Compressor,
}

/// Those of a source.
struct Open {
    keep: Keep,
    files: Files,
    /// What a keeper above may hold is no longer what output goes to.
    news: bool,
    /// There may be some to compress.
    uncompressed: bool,
}

enum Files {
    Two([LogFile; 2]),
    One(LogFile),
}

impl Files {
    fn of(&mut self, stream: Stream) -> &mut LogFile {
        match self {
            Files::Two([out, err]) => of_stream(stream, out, err),
            Files::One(file) => file,
        }
    }

    fn all(&mut self) -> &mut [LogFile] {
        match self {
            Files::Two(files) => files,
            Files::One(file) => std::slice::from_mut(file),
        }
    }
}

impl Open {
    fn new(keep: &Keep) -> io::Result<Open> {
        let open = |stream| LogFile::open(keep.file(stream), keep.index(stream));
        let files = match &keep.place {
            Place::Streams(_) => Files::Two([open(Stream::Out)?, open(Stream::Err)?]),
            Place::One { .. } => Files::One(open(Stream::Out)?),
        };
        Ok(Open { keep: keep.clone(), files, news: true, uncompressed: keep.compress })
    }

    fn duplicates(&mut self) -> io::Result<[OwnedFd; 2]> {
        Ok([self.files.of(Stream::Out).duplicate()?, self.files.of(Stream::Err).duplicate()?])
    }
}

impl Logs {
    /// Opens those of a source, where they are not open yet. Returns duplicates, for a keeper.
    pub(super) fn open(&self, source: SourceId, keep: &Keep) -> io::Result<[OwnedFd; 2]> {
        lock(&self.later).remove(&source);
        let mut open = self.lock();
        let there = match open.entry(source) {
            Entry::Occupied(there) => {
                let there = there.into_mut();
                if there.keep.place != keep.place {
                    *there = Open::new(keep)?;
                }
                // Somebody has taken one away, or put another in its place.
                for file in there.files.all() {
                    file.look()?;
                }
                there.keep = keep.clone();
                there
            }
            Entry::Vacant(place) => place.insert(Open::new(keep)?),
        };
        let duplicates = there.duplicates()?;
        // They go to a keeper with the start that they are opened for.
        there.news = false;
        Ok(duplicates)
    }

    /// Those of a source are opened when it prints again: a daemon that takes a thousand over is
    /// ready before.
    pub(super) fn open_later(&self, source: SourceId, keep: Keep) {
        lock(&self.later).insert(source, keep);
    }

    /// A source that prints is kept like this from now on. An error where that can't be: then it is
    /// kept as it was.
    pub(super) fn change(&self, source: SourceId, keep: Keep) -> io::Result<()> {
        let mut open = self.lock();
        let Some(there) = open.get_mut(&source) else {
            drop(open);
            self.open_later(source, keep);
            return Ok(());
        };
        if there.keep.place == keep.place {
            there.uncompressed |= keep.compress;
            there.keep = keep;
        } else {
            *there = Open::new(&keep)?;
        }
        Ok(())
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
        if open.get_mut(&source).is_some_and(|open| open.files.all().iter().all(|file| !file.loses())) {
            open.remove(&source);
        }
    }

    /// Opens those that were to be opened later. Returns what each stream ends with of a line that is
    /// not over.
    pub(super) fn open_if_due(&self, source: SourceId) -> Option<[Vec<u8>; 2]> {
        let keep = lock(&self.later).remove(&source)?;
        let mut open = match Open::new(&keep) {
            Ok(open) => open,
            Err(error) => {
                tracing::error!(%error, path = %keep.shown(), "its output is not kept");
                return None;
            }
        };
        let unfinished = match &mut open.files {
            Files::Two(files) => [files[0].unfinished(), files[1].unfinished()],
            Files::One(_) => [Stream::Out, Stream::Err].map(|stream| past::unfinished(&keep, stream)),
        };
        self.lock().insert(source, open);
        Some(unfinished)
    }

    /// Duplicates of those that are open.
    pub(super) fn files(&self, source: SourceId) -> Option<[OwnedFd; 2]> {
        self.open_if_due(source);
        self.lock().get_mut(&source)?.duplicates().ok()
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
            Some(open) => {
                let file = open.files.of(stream);
                let took = file.take(stream, pipe, buffer, (open.keep.max_size, &mut lock(&self.scratch)));
                open.news |= file.is_another();
                took
            }
            None => (read(pipe, buffer), None),
        }
    }

    /// Puts a source's full files aside. Returns duplicates of what its output goes to, where that is
    /// not what it was; a keeper is to be told before [`Logs::tidy`].
    pub(super) fn rotate_if_full(&self, source: SourceId) -> Option<[OwnedFd; 2]> {
        let mut open = self.lock();
        let there = open.get_mut(&source)?;
        let Open { keep, files, news, uncompressed } = there;
        for file in files.all() {
            if !file.is_full(keep.max_size) {
                continue;
            }
            let turn = self.turns.take();
            match file.rotate(keep.max_files) {
                Ok(()) => (*news, *uncompressed) = (true, *uncompressed || keep.compress),
                Err(error) => file.cant_rotate(&error),
            }
            drop(turn);
        }
        if !std::mem::take(&mut there.news) {
            return None;
        }
        there.duplicates().ok()
    }

    /// What was put aside is compressed: not before a keeper knows that it is not written any more.
    pub(super) fn tidy(&self, source: SourceId) {
        let mut open = self.lock();
        if let Some(open) = open.get_mut(&source)
            && std::mem::take(&mut open.uncompressed)
        {
            for file in open.files.all() {
                self.compressor.compress(file.path(), &self.turns);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SourceId, Open>> {
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

fn numbered(path: &Path, number: u32) -> PathBuf {
    with_suffix(path, &format!(".{number}"))
}

fn compressed(path: &Path) -> PathBuf {
    with_suffix(path, ".gz")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
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

#[cfg(test)]
mod tests;
