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
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{SourceId, Stream};
use crate::model::spec::put_aside_of;
use compress::Compressor;
use file::{LogFile, Scratch, Turns, When};

mod compress;
mod file;
pub mod own;
mod past;

pub use past::{Part, Reach, Tail, last_of};

/// Where the output of an instance is kept, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    /// In which files.
    pub place: Place,
    /// Where it goes while it can't go there: a file for each stream, as in [`Place::Streams`].
    pub otherwise: Option<PathBuf>,
    /// Whose they are.
    pub access: FileAccess,
    /// Bytes from which on a file is put aside and another begun.
    pub max_size: u64,
    /// How many there are of each, the one that grows included.
    pub max_files: u32,
    /// Whether those that were put aside are compressed (gzip).
    pub compress: bool,
}

/// Whose log files are, and who may read them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileAccess {
    /// `user`, `user:group` or `:group`; `None`: this process's own.
    pub owner: Option<String>,
    /// chmod(2); `None`: its owner alone may.
    pub mode: Option<u32>,
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

    /// The same where it can't be kept as it should be, if there is another place.
    pub fn instead(&self) -> Option<Keep> {
        let place = Place::Streams(self.otherwise.clone()?);
        Some(Keep { place, otherwise: None, access: FileAccess::default(), ..self.clone() })
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

/// The files of a source that starts.
#[derive(Debug)]
pub(super) struct Opened {
    /// For a keeper.
    pub(super) files: [OwnedFd; 2],
    /// What they are.
    pub(super) keep: Keep,
    /// Why they are not those that were wanted.
    pub(super) instead_of: Option<String>,
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
        let open = |stream| LogFile::open(keep.file(stream), keep.index(stream), &keep.access);
        let files = match &keep.place {
            Place::Streams(_) => Files::Two([open(Stream::Out)?, open(Stream::Err)?]),
            Place::One { .. } => Files::One(open(Stream::Out)?),
        };
        Ok(Open { keep: keep.clone(), files, news: true, uncompressed: keep.compress })
    }

    fn duplicates(&mut self) -> io::Result<[OwnedFd; 2]> {
        Ok([self.files.of(Stream::Out).duplicate()?, self.files.of(Stream::Err).duplicate()?])
    }

    /// What a keeper is to be told, if anything.
    fn told(&mut self) -> Option<[OwnedFd; 2]> {
        if !self.news {
            return None;
        }
        let duplicates = self.duplicates().ok()?;
        self.news = false;
        Some(duplicates)
    }

    /// In place of another, which may not have taken all that was printed.
    fn in_place_of(mut self, other: &mut Open) -> Open {
        for stream in [Stream::Out, Stream::Err] {
            if let Some(lost) = other.files.of(stream).take_loss() {
                self.files.of(stream).lost_before(lost);
            }
        }
        self
    }
}

/// Whether it is a file that another source has open, by whatever name.
fn is_taken(open: &mut HashMap<SourceId, Open>, source: SourceId, fresh: &mut Open) -> io::Result<()> {
    if let Place::Streams(_) = fresh.keep.place {
        return Ok(());
    }
    let which = fresh.files.of(Stream::Out).identity();
    for (_, other) in open.iter_mut().filter(|(of, _)| **of != source) {
        if which.is_some() && other.files.all().iter().any(|file| file.identity() == which) {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, TAKEN));
        }
    }
    Ok(())
}

const TAKEN: &str = "another service's output goes there";

/// Others whose rotation would take a file for one of theirs, or the other way round.
fn clashes(open: &HashMap<SourceId, Open>, source: SourceId, keep: &Keep) -> io::Result<()> {
    let Place::One { file, .. } = &keep.place else {
        return Ok(());
    };
    let wanted = [Some(file.as_path()), put_aside_of(file)];
    let other = open.iter().filter(|(of, _)| **of != source).any(|(_, other)| {
        [Stream::Out, Stream::Err].map(|stream| other.keep.file(stream)).iter().any(|theirs| {
            wanted.contains(&Some(theirs.as_path())) || put_aside_of(theirs) == Some(file.as_path())
        })
    });
    if other {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, TAKEN));
    }
    Ok(())
}

impl Logs {
    /// Opens those of a source, where they are not open yet; those that it has instead, where that can't be:
    /// then with the reason. Returns duplicates, for a keeper.
    pub(super) fn open(&self, source: SourceId, keep: &Keep) -> Result<Opened, Vec<String>> {
        let why = match self.open_these(source, keep) {
            Ok(files) => return Ok(Opened { files, keep: keep.clone(), instead_of: None }),
            Err(error) => format!("{}: {error}", keep.shown()),
        };
        let Some(instead) = keep.instead() else {
            return Err(vec![why]);
        };
        match self.open_these(source, &instead) {
            Ok(files) => Ok(Opened { files, keep: instead, instead_of: Some(why) }),
            Err(error) => Err(vec![why, format!("{}: {error}", instead.shown())]),
        }
    }

    fn open_these(&self, source: SourceId, keep: &Keep) -> io::Result<[OwnedFd; 2]> {
        lock(&self.later).remove(&source);
        clashes(&self.lock(), source, keep)?;
        let same = |there: &&mut Open| there.keep.place == keep.place;
        let is_open = self.lock().get_mut(&source).filter(same).is_some();
        // It may take its time, and others don't wait for it.
        let mut fresh = if is_open { None } else { Some(Open::new(keep)?) };
        let mut open = self.lock();
        if let Some(fresh) = &mut fresh {
            is_taken(&mut open, source, fresh)?;
        }
        let there = match (open.entry(source), fresh) {
            (Entry::Occupied(there), Some(fresh)) => {
                let there = there.into_mut();
                *there = fresh.in_place_of(there);
                there
            }
            (Entry::Occupied(there), None) => {
                let there = there.into_mut();
                // Somebody has taken one away, or put another in its place.
                for file in there.files.all() {
                    file.look(When::Now)?;
                    file.belong(&keep.access)?;
                }
                there.keep = keep.clone();
                there
            }
            (Entry::Vacant(place), Some(fresh)) => place.insert(fresh),
            // It was closed in between.
            (Entry::Vacant(place), None) => place.insert(Open::new(keep)?),
        };
        let duplicates = there.duplicates()?;
        // They go to a keeper with the start that they are opened for.
        there.news = false;
        drop(open);
        self.tidy(source);
        Ok(duplicates)
    }

    /// Those of a source are opened when it prints again: a daemon that takes a thousand over is
    /// ready before.
    pub(super) fn open_later(&self, source: SourceId, keep: Keep) {
        lock(&self.later).insert(source, keep);
    }

    /// A source that prints is kept like this from now on. An error where that can't be: then it is
    /// kept as it was.
    pub(super) fn change(&self, source: SourceId, keep: &Keep) -> io::Result<()> {
        let mut open = self.lock();
        clashes(&open, source, keep)?;
        let Some(there) = open.get_mut(&source) else {
            drop(open);
            self.open_later(source, keep.clone());
            return Ok(());
        };
        if there.keep.place == keep.place {
            for file in there.files.all() {
                file.belong(&keep.access)?;
            }
            there.uncompressed |= keep.compress;
            there.keep = keep.clone();
            return Ok(());
        }
        let mut fresh = Open::new(keep)?;
        is_taken(&mut open, source, &mut fresh)?;
        if let Some(there) = open.get_mut(&source) {
            *there = fresh.in_place_of(there);
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
    /// not over, and what they are.
    pub(super) fn open_if_due(&self, source: SourceId) -> Option<([Vec<u8>; 2], Keep)> {
        let keep = lock(&self.later).remove(&source)?;
        // Whose they are was seen to when they were made: to ask again who that is might take its time.
        let as_it_is = Keep { access: FileAccess::default(), ..keep.clone() };
        let opened = Open::new(&as_it_is).or_else(|error| match keep.instead() {
            Some(instead) => Open::new(&instead),
            None => Err(error),
        });
        let mut open = match opened {
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
        if open.keep.place == keep.place {
            for file in open.files.all() {
                file.belongs_already(&keep.access);
            }
            open.keep = keep;
        }
        let used = open.keep.clone();
        self.lock().insert(source, open);
        Some((unfinished, used))
    }

    /// Duplicates of those that are open.
    pub(super) fn files(&self, source: SourceId) -> Option<[OwnedFd; 2]> {
        self.open_if_due(source);
        self.lock().get_mut(&source)?.duplicates().ok()
    }

    /// Before a piece is taken: what is full is put aside where something waits in the pipe, and what is
    /// not in its place any more is opened again. Returns duplicates of what its output goes to, where
    /// that is not what it was; a keeper is to be told before anything is taken.
    pub(super) fn prepare(
        &self,
        source: SourceId,
        stream: Stream,
        pipe: BorrowedFd<'_>,
    ) -> Option<[OwnedFd; 2]> {
        let mut open = self.lock();
        let there = open.get_mut(&source)?;
        let Open { keep, files, news, uncompressed } = there;
        let file = files.of(stream);
        *news |= file.look_now_and_then();
        // Its last words stay where they are as long as there are no others.
        if file.is_full(keep.max_size) && holds_something(pipe) {
            // Who compresses has the turn for moments, and may stand still in one: at the next piece, then.
            if let Some(_turn) = self.turns.take_if_free() {
                match file.rotate(keep.max_files) {
                    Ok(()) => (*news, *uncompressed) = (true, *uncompressed || keep.compress),
                    Err(error) => file.cant_rotate(&error),
                }
            }
        }
        there.told()
    }

    /// Duplicates of what a source's output goes to, where a keeper does not have them.
    pub(super) fn news(&self, source: SourceId) -> Option<[OwnedFd; 2]> {
        self.lock().get_mut(&source)?.told()
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
                let max_size = open.keep.max_size;
                open.files.of(stream).take(stream, pipe, buffer, (max_size, &mut lock(&self.scratch)))
            }
            None => (read(pipe, buffer), None),
        }
    }

    /// What was put aside is compressed: not before a keeper knows that it is not written any more.
    pub(super) fn tidy(&self, source: SourceId) {
        let mut open = self.lock();
        if let Some(open) = open.get_mut(&source)
            && !open.news
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

/// Whether there is something in a pipe; at its end there is not.
fn holds_something(pipe: BorrowedFd<'_>) -> bool {
    let mut look = [PollFd::new(pipe, PollFlags::POLLIN)];
    let _ = poll(&mut look, PollTimeout::ZERO);
    look[0].revents().is_some_and(|is| is.contains(PollFlags::POLLIN))
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
