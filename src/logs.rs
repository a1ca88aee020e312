//! Log files: what a process prints, byte for byte, whoever is killed meanwhile.
//!
//! Output moves from its pipe to the end of a file by splice(2), one call that takes away exactly
//! what it has written: there is no moment in which a byte is in neither or in both. What was
//! written is then read back for those who follow. So the file is the truth, and its size is where
//! the next one goes on, be it a daemon after this one or the keeper meanwhile.
//!
//! Beside each file lies an index of when which part came (`past`). A file that is full is put
//! aside under a number (`file`), and those may be compressed (`compress`). Who keeps what, and
//! where, is decided elsewhere; a [`LogConfig`] says it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use compress::Compressor;
use file::{LogFile, Scratch, Turns, When};
use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::model::spec::put_aside_of;
use crate::model::{SourceId, Stream};

mod compress;
mod file;
pub mod own;
mod past;

pub use past::{LogRange, Part, Tail, last_of};

/// Where the output of an instance is kept, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// In which files.
    pub place: LogPaths,
    /// Where it goes while it can't go there: a file for each stream, as in [`LogPaths::Streams`].
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
pub enum LogPaths {
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

impl LogConfig {
    /// The file that a stream's output goes to.
    pub fn file(&self, stream: Stream) -> PathBuf {
        match &self.place {
            LogPaths::Streams(stem) => with_suffix(stem, of_stream(stream, ".stdout.log", ".stderr.log")),
            LogPaths::One { file, .. } => file.clone(),
        }
    }

    fn index(&self, stream: Stream) -> PathBuf {
        match &self.place {
            LogPaths::Streams(stem) => with_suffix(stem, of_stream(stream, ".stdout.idx", ".stderr.idx")),
            LogPaths::One { index, .. } => index.clone(),
        }
    }

    /// The same where it can't be kept as it should be, if there is another place.
    pub fn instead(&self) -> Option<LogConfig> {
        let place = LogPaths::Streams(self.otherwise.clone()?);
        Some(LogConfig { place, otherwise: None, access: FileAccess::default(), ..self.clone() })
    }

    /// For people.
    pub fn shown(&self) -> impl std::fmt::Display + '_ {
        match &self.place {
            LogPaths::Streams(path) | LogPaths::One { file: path, .. } => path.display(),
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
pub(crate) enum PipeRead {
    /// So many bytes, now in the buffer.
    Bytes(usize),
    /// Nothing at the moment.
    Nothing,
    /// Nothing any more.
    End,
}

/// What became of the bytes that a log file could not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LostOutput {
    /// They are not kept from now on.
    Begins(String),
    /// They are kept again; so many were not.
    Over(u64),
}

/// Every log file that is open.
///
/// A file may lie on a disk that does not answer, and whoever works with it then waits in the kernel. So
/// the files of each source have a lock of their own, held by whoever does, and what others must know of
/// them is known without it. Functions that may wait say so; the watcher calls them where another goes on
/// in its place.
#[derive(Default)]
pub(crate) struct Logs {
    open: Mutex<HashMap<SourceId, Arc<Slot>>>,
    later: Mutex<HashMap<SourceId, LogConfig>>,
    /// Folders in which somebody waits for a file already, and how many do.
    hung: Mutex<HashMap<PathBuf, i32>>,
    /// What nobody has any more, and is still open.
    leaving: Mutex<Vec<Arc<Slot>>>,
    turns: Turns,
    scratch: Mutex<Vec<Scratch>>,
    compressor: Compressor,
}

/// Files that are open, and not yet those of their source.
pub(crate) struct Fresh {
    slot: Arc<Slot>,
    files: [OwnedFd; 2],
}

/// The same for a source that has printed before, and what each stream ends with of a line that is not over.
pub(crate) struct Due {
    slot: Arc<Slot>,
    unfinished: [Vec<u8>; 2],
    keep: LogConfig,
}

/// What became of a piece of output.
#[derive(Debug)]
pub(crate) enum WriteResult {
    /// Nothing yet: a keeper is to be told first that output goes there from now on.
    Moves([OwnedFd; 2]),
    Took(PipeRead, Option<LostOutput>),
}

/// The files of a source, and what is known of them while somebody works with them.
pub(crate) struct Slot {
    known: Mutex<Known>,
    open: Mutex<Open>,
}

struct Known {
    keep: LogConfig,
    /// Device and number of each.
    files: Vec<(u64, u64)>,
}

impl Slot {
    fn new(mut open: Open) -> Arc<Slot> {
        let known = Mutex::new(open.known());
        Arc::new(Slot { known, open: Mutex::new(open) })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }

    /// `None`: somebody works with them.
    fn lock_if_free(&self) -> Option<MutexGuard<'_, Open>> {
        match self.open.try_lock() {
            Ok(open) => Some(open),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// To be called by whoever has changed them.
    fn note(&self, open: &mut Open) {
        *lock(&self.known) = open.known();
    }
}

/// Those of a source.
struct Open {
    keep: LogConfig,
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
    fn new(keep: &LogConfig) -> io::Result<Open> {
        let open = |stream| LogFile::open(keep.file(stream), keep.index(stream), &keep.access);
        let files = match &keep.place {
            LogPaths::Streams(_) => Files::Two([open(Stream::Out)?, open(Stream::Err)?]),
            LogPaths::One { .. } => Files::One(open(Stream::Out)?),
        };
        Ok(Open { keep: keep.clone(), files, news: true, uncompressed: keep.compress })
    }

    fn known(&mut self) -> Known {
        let files = self.files.all().iter().filter_map(LogFile::identity).collect();
        Known { keep: self.keep.clone(), files }
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
    fn is_in_place_of(&mut self, other: &mut Open) {
        for stream in [Stream::Out, Stream::Err] {
            if let Some(lost) = other.files.of(stream).take_loss() {
                self.files.of(stream).lost_before(lost);
            }
        }
    }

    /// Before a piece is taken: what is full is put aside where something waits in the pipe, and what is
    /// not in its place any more is opened again. Whether a file is another one now.
    fn prepare(&mut self, stream: Stream, pipe: BorrowedFd<'_>, turns: &Turns) -> bool {
        let Open { keep, files, news, uncompressed } = self;
        let file = files.of(stream);
        let mut changed = file.look_now_and_then();
        // Its last words stay where they are as long as there are no others.
        if file.is_full(keep.max_size) && holds_something(pipe) {
            // Who compresses has the turn for moments, and may stand still in one: at the next piece, then.
            if let Some(_turn) = turns.take_if_free(file.path()) {
                match file.rotate(keep.max_files) {
                    Ok(()) => (changed, *uncompressed) = (true, *uncompressed || keep.compress),
                    Err(error) => file.cant_rotate(&error),
                }
            }
        }
        *news |= changed;
        changed
    }
}

/// Whether it is a file that another source has open, by whatever name.
fn is_taken(open: &HashMap<SourceId, Arc<Slot>>, source: SourceId, fresh: &Slot) -> io::Result<()> {
    let fresh = lock(&fresh.known);
    if let LogPaths::Streams(_) = fresh.keep.place {
        return Ok(());
    }
    for (_, other) in open.iter().filter(|(of, _)| **of != source) {
        if lock(&other.known).files.iter().any(|file| fresh.files.contains(file)) {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, TAKEN));
        }
    }
    Ok(())
}

const TAKEN: &str = "another service's output goes there";

/// Others whose rotation would take a file for one of theirs, or the other way round.
fn clashes(open: &HashMap<SourceId, Arc<Slot>>, source: SourceId, keep: &LogConfig) -> io::Result<()> {
    let LogPaths::One { file, .. } = &keep.place else {
        return Ok(());
    };
    let wanted = [Some(file.as_path()), put_aside_of(file)];
    let other = open.iter().filter(|(of, _)| **of != source).any(|(_, other)| {
        let other = lock(&other.known);
        [Stream::Out, Stream::Err].map(|stream| other.keep.file(stream)).iter().any(|theirs| {
            wanted.contains(&Some(theirs.as_path())) || put_aside_of(theirs) == Some(file.as_path())
        })
    });
    if other {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, TAKEN));
    }
    Ok(())
}

/// Why a file is not opened while another in its folder does not come.
pub(crate) const HUNG: &str = "its disk does not answer";

impl Logs {
    /// Opens those of a source that starts, or looks after them where they are open. May wait; others are not
    /// the source's before they are placed.
    pub(crate) fn make(&self, source: SourceId, keep: &LogConfig) -> io::Result<Fresh> {
        lock(&self.later).remove(&source);
        clashes(&self.lock(), source, keep)?;
        let there = self.of(source).filter(|there| lock(&there.known).keep.place == keep.place);
        let Some(slot) = there else {
            return self.make_another(keep);
        };
        let mut open = slot.lock();
        // Somebody has taken one away, or put another in its place.
        for file in open.files.all() {
            file.look(When::Now)?;
            file.belong(&keep.access)?;
        }
        open.keep = keep.clone();
        slot.note(&mut open);
        let files = open.duplicates()?;
        drop(open);
        Ok(Fresh { slot, files })
    }

    /// They are the source's from now on. Returns duplicates, for a keeper.
    pub(crate) fn place(&self, source: SourceId, fresh: Fresh) -> io::Result<[OwnedFd; 2]> {
        let Fresh { slot, files } = fresh;
        let mut open = self.lock();
        if let Err(error) = is_taken(&open, source, &slot) {
            lock(&self.leaving).push(slot);
            return Err(error);
        }
        // Whatever was to be opened for it later.
        lock(&self.later).remove(&source);
        // They go to a keeper with the start that they are opened for.
        if let Some(mut own) = slot.lock_if_free() {
            own.news = false;
        }
        let before = open.insert(source, Arc::clone(&slot));
        drop(open);
        self.leaves(before, &slot);
        self.tidy(source);
        Ok(files)
    }

    /// What a source had is not its any more.
    fn leaves(&self, before: Option<Arc<Slot>>, now: &Arc<Slot>) {
        if let Some(before) = before.filter(|before| !Arc::ptr_eq(before, now)) {
            if let (Some(mut other), Some(mut own)) = (before.lock_if_free(), now.lock_if_free()) {
                own.is_in_place_of(&mut other);
            }
            lock(&self.leaving).push(before);
        }
    }

    /// Whether there are some that nobody has any more, and that are to be closed.
    pub(crate) fn some_leave(&self) -> bool {
        !lock(&self.leaving).is_empty()
    }

    /// Closes those. May wait.
    pub(crate) fn close_those_that_leave(&self) {
        let leaving = std::mem::take(&mut *lock(&self.leaving));
        drop(leaving);
    }

    /// Somebody waits for a file that does not come.
    pub(crate) fn hangs(&self, keep: &LogConfig) {
        self.count_hung(keep, 1);
    }

    /// It has come, which may be told first.
    pub(crate) fn hangs_no_more(&self, keep: &LogConfig) {
        self.count_hung(keep, -1);
    }

    fn count_hung(&self, keep: &LogConfig, more: i32) {
        let mut hung = lock(&self.hung);
        let folder = folder_of(keep);
        let waiting = hung.entry(folder.clone()).or_insert(0);
        *waiting += more;
        if *waiting == 0 {
            hung.remove(&folder);
        }
    }

    /// Whether somebody waits for a file in the same folder, longer than files take to come.
    pub(crate) fn is_hung(&self, keep: &LogConfig) -> bool {
        lock(&self.hung).get(&folder_of(keep)).is_some_and(|waiting| *waiting > 0)
    }

    /// Those of a source are opened when it prints again: a daemon that takes a thousand over is
    /// ready before.
    pub(crate) fn open_later(&self, source: SourceId, keep: LogConfig) {
        lock(&self.later).insert(source, keep);
    }

    /// A source that prints is to be kept like this from now on. Returns the files for it, where they are
    /// others; an error where that can't be: then it is kept as it was. May wait.
    pub(crate) fn change(&self, source: SourceId, keep: &LogConfig) -> io::Result<Option<Fresh>> {
        clashes(&self.lock(), source, keep)?;
        let Some(slot) = self.of(source) else {
            self.open_later(source, keep.clone());
            return Ok(None);
        };
        if lock(&slot.known).keep.place != keep.place {
            return self.make_another(keep).map(Some);
        }
        let mut open = slot.lock();
        for file in open.files.all() {
            file.belong(&keep.access)?;
        }
        open.uncompressed |= keep.compress;
        open.keep = keep.clone();
        slot.note(&mut open);
        Ok(None)
    }

    /// Opens others for a source, whatever it has. May wait; nothing is changed before they are placed.
    pub(crate) fn make_another(&self, keep: &LogConfig) -> io::Result<Fresh> {
        let mut open = Open::new(keep)?;
        let files = open.duplicates()?;
        Ok(Fresh { slot: Slot::new(open), files })
    }

    /// A source prints no more.
    pub(crate) fn close(&self, source: SourceId) {
        lock(&self.later).remove(&source);
        let before = self.lock().remove(&source);
        lock(&self.leaving).extend(before);
    }

    /// A source prints nothing until its next start, which opens its files again. Those that could not
    /// take all of it stay, to say so.
    pub(crate) fn rest(&self, source: SourceId) {
        let mut open = self.lock();
        let rests = |slot: &Arc<Slot>| {
            slot.lock_if_free().is_some_and(|mut open| open.files.all().iter().all(|file| !file.loses()))
        };
        if open.get(&source).is_some_and(rests) {
            let before = open.remove(&source);
            lock(&self.leaving).extend(before);
        }
    }

    /// Whether those of a source are to be opened when it prints.
    pub(crate) fn is_due(&self, source: SourceId) -> bool {
        lock(&self.later).contains_key(&source)
    }

    /// How those of a source are to be opened, if they are to be now.
    pub(crate) fn due(&self, source: SourceId) -> Option<LogConfig> {
        lock(&self.later).remove(&source)
    }

    /// Opens those that were to be opened later. May wait; nothing is changed before they are placed.
    pub(crate) fn make_due(&self, keep: &LogConfig) -> Option<Due> {
        // Whose they are was seen to when they were made: to ask again who that is might take its time.
        let as_it_is = LogConfig { access: FileAccess::default(), ..keep.clone() };
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
            Files::One(_) => [Stream::Out, Stream::Err].map(|stream| past::unfinished(keep, stream)),
        };
        if open.keep.place == keep.place {
            for file in open.files.all() {
                file.belongs_already(&keep.access);
            }
            open.keep = keep.clone();
        }
        let keep = open.keep.clone();
        Some(Due { slot: Slot::new(open), unfinished, keep })
    }

    /// They are the source's, unless it has others. Returns what each stream ends with of a line that is
    /// not over, and what they are.
    pub(crate) fn place_due(&self, source: SourceId, due: Due) -> Option<([Vec<u8>; 2], LogConfig)> {
        let Due { slot, unfinished, keep } = due;
        match self.lock().entry(source) {
            Entry::Occupied(_) => {
                lock(&self.leaving).push(slot);
                None
            }
            Entry::Vacant(place) => {
                place.insert(slot);
                Some((unfinished, keep))
            }
        }
    }

    /// Duplicates of those that are open, or are to be now. `None` as well where somebody works with them. May
    /// wait.
    pub(crate) fn files(&self, source: SourceId) -> Option<[OwnedFd; 2]> {
        if let Some(due) = self.due(source).and_then(|keep| self.make_due(&keep)) {
            self.place_due(source, due);
        }
        self.of(source)?.lock_if_free()?.duplicates().ok()
    }

    /// Duplicates of what a source's output goes to, where a keeper does not have them.
    pub(crate) fn news(&self, source: SourceId) -> Option<[OwnedFd; 2]> {
        self.of(source)?.lock_if_free()?.told()
    }

    /// Moves a piece of output into its file, and into the buffer. May wait.
    pub(crate) fn pour(
        &self,
        source: SourceId,
        stream: Stream,
        pipe: BorrowedFd<'_>,
        buffer: &mut [u8],
    ) -> WriteResult {
        let Some(slot) = self.of(source) else {
            return WriteResult::Took(read(pipe, buffer), None);
        };
        let mut open = slot.lock();
        if open.prepare(stream, pipe, &self.turns) {
            slot.note(&mut open);
        }
        if let Some(files) = open.told() {
            return WriteResult::Moves(files);
        }
        let mut scratch = lock(&self.scratch).pop().unwrap_or_default();
        let max_size = open.keep.max_size;
        let (took, loss) = open.files.of(stream).take(stream, pipe, buffer, (max_size, &mut scratch));
        let mut spare = lock(&self.scratch);
        if spare.is_empty() {
            spare.push(scratch);
        }
        WriteResult::Took(took, loss)
    }

    /// What a source's output goes to; it is another one where its files are others.
    pub(crate) fn of(&self, source: SourceId) -> Option<Arc<Slot>> {
        self.lock().get(&source).cloned()
    }

    /// How a source is kept at the moment.
    pub(crate) fn kept(&self, source: SourceId) -> Option<LogConfig> {
        self.of(source).map(|slot| lock(&slot.known).keep.clone())
    }

    /// The device on which a source's files lie.
    pub(crate) fn device(&self, source: SourceId) -> Option<u64> {
        let slot = self.of(source)?;
        let known = lock(&slot.known);
        known.files.first().map(|(device, _)| *device)
    }

    /// What was put aside is compressed: not before a keeper knows that it is not written any more.
    pub(crate) fn tidy(&self, source: SourceId) {
        // Where somebody works with them, there is a next time.
        if let Some(slot) = self.of(source)
            && let Some(mut open) = slot.lock_if_free()
            && !open.news
            && std::mem::take(&mut open.uncompressed)
        {
            for file in open.files.all() {
                self.compressor.compress(file.path(), &self.turns);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SourceId, Arc<Slot>>> {
        lock(&self.open)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether there is something in a pipe; at its end there is not.
pub(crate) fn holds_something(pipe: BorrowedFd<'_>) -> bool {
    let mut look = [PollFd::new(pipe, PollFlags::POLLIN)];
    let _ = poll(&mut look, PollTimeout::ZERO);
    look[0].revents().is_some_and(|is| is.contains(PollFlags::POLLIN))
}

/// One read, without a file.
pub(crate) fn read(pipe: BorrowedFd<'_>, buffer: &mut [u8]) -> PipeRead {
    match nix::unistd::read(pipe, buffer) {
        Ok(0) => PipeRead::End,
        Ok(length) => PipeRead::Bytes(length),
        Err(_) => PipeRead::Nothing,
    }
}

pub(crate) fn folder_of(keep: &LogConfig) -> PathBuf {
    keep.file(Stream::Out).parent().map(Path::to_owned).unwrap_or_default()
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
pub(crate) fn splice_to_end(pipe: BorrowedFd<'_>, file: BorrowedFd<'_>, most: usize) -> Result<usize, Errno> {
    let size = nix::sys::stat::fstat(file)?.st_size;
    splice_at(pipe, file, size.cast_unsigned(), most)
}

#[cfg(test)]
mod tests;
