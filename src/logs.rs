//! Log files: they keep what a process prints, byte for byte, even when regrow is killed meanwhile.
//!
//! Output moves from its pipe to the end of a file by splice(2), one call that removes from the
//! pipe exactly what it has written: at no moment is a byte in neither or in both. The written
//! bytes are then read back for the followers. So the file is the truth, and its size says where
//! the next writer continues, be it a later daemon or the keeper in between.
//!
//! Beside each file lies an index of the times at which its parts came (`past`). A full file is put
//! aside under a number (`file`), and numbered files may be compressed (`compress`). Deliberately
//! absent: the decision which output is kept where, which a [`LogConfig`] states.

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
    /// The files that the output goes to.
    pub place: LogPaths,
    /// The path prefix to use while `place` can't be used. The output then goes to one file per stream,
    /// as in [`LogPaths::Streams`]. `None`: there is no other place.
    pub otherwise: Option<PathBuf>,
    /// The owner and the mode of the files.
    pub access: FileAccess,
    /// The size in bytes from which on a file is put aside and another one begun.
    pub max_size: u64,
    /// How many files are kept of each log, the growing one included.
    pub max_files: u32,
    /// Whether files that were put aside are compressed (gzip).
    pub compress: bool,
}

/// The owner of log files, and who may read them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileAccess {
    /// The owner as `user`, `user:group` or `:group`. `None`: the user of this process.
    pub owner: Option<String>,
    /// The permission bits, as in chmod(2). `None`: only the owner may read the files.
    pub mode: Option<u32>,
}

/// The log files that grow. Older files have a number appended to their name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogPaths {
    /// One file per stream: this path with `.stdout.log` or `.stderr.log` appended.
    Streams(PathBuf),
    /// One file for both streams, in the order in which their output comes.
    One {
        /// The path of the log file.
        file: PathBuf,
        /// The path of the index, which says when each part came and on which stream.
        index: PathBuf,
    },
}

impl LogConfig {
    /// The log file of a stream.
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

    /// The configuration to use while this one can't be used. `None` when it names no other place.
    pub fn instead(&self) -> Option<LogConfig> {
        let place = LogPaths::Streams(self.otherwise.clone()?);
        Some(LogConfig { place, otherwise: None, access: FileAccess::default(), ..self.clone() })
    }

    /// The path for messages to people.
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

/// The result of reading from a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PipeRead {
    /// The number of bytes that are now in the buffer.
    Bytes(usize),
    /// The pipe is empty at the moment.
    Nothing,
    /// The pipe has no writer any more.
    End,
}

/// A change in whether a log file takes the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LostOutput {
    /// From now on output is lost, for this reason.
    Begins(String),
    /// Output is kept again. The number is how many bytes were lost.
    Over(u64),
}

/// Every open log file.
///
/// A file may lie on a disk that does not answer, and a thread that works with the file is then
/// blocked in the kernel. So the files of each source have a lock of their own, which that thread
/// holds, and what other threads must know about the files is kept outside of that lock. Functions
/// that may block say "may block"; the reaper calls them where another thread can take over its
/// work.
#[derive(Default)]
pub(crate) struct Logs {
    open: Mutex<HashMap<SourceId, Arc<Slot>>>,
    later: Mutex<HashMap<SourceId, LogConfig>>,
    /// Folders in which a thread waits for a file, with the number of such threads.
    hung: Mutex<HashMap<PathBuf, i32>>,
    /// Files that no source uses any more, and that are still open.
    leaving: Mutex<Vec<Arc<Slot>>>,
    turns: Turns,
    scratch: Mutex<Vec<Scratch>>,
    compressor: Compressor,
}

/// Files that are open, but not yet assigned to their source.
pub(crate) struct Fresh {
    slot: Arc<Slot>,
    files: [OwnedFd; 2],
}

/// Files like [`Fresh`] of a source that has printed before, with the unfinished last line of each
/// stream.
pub(crate) struct Due {
    slot: Arc<Slot>,
    unfinished: [Vec<u8>; 2],
    keep: LogConfig,
}

/// The result of moving one piece of output.
#[derive(Debug)]
pub(crate) enum WriteResult {
    /// Nothing has moved yet: first the keeper must be told that output goes to these files from now
    /// on.
    Moves([OwnedFd; 2]),
    Took(PipeRead, Option<LostOutput>),
}

/// The files of a source, and the facts about them that can be read while another thread works with
/// them.
pub(crate) struct Slot {
    known: Mutex<Known>,
    open: Mutex<Open>,
}

struct Known {
    keep: LogConfig,
    /// The device and inode number of each file.
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

    /// Locks the files. `None` when another thread works with them.
    fn lock_if_free(&self) -> Option<MutexGuard<'_, Open>> {
        match self.open.try_lock() {
            Ok(open) => Some(open),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Updates the facts after a change to the files.
    fn note(&self, open: &mut Open) {
        *lock(&self.known) = open.known();
    }
}

/// The open files of a source.
struct Open {
    keep: LogConfig,
    files: Files,
    /// The keeper may hold files that are no longer the ones that output goes to.
    news: bool,
    /// Some numbered files may still need compression.
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

    /// The files to tell the keeper about. `None` when it has them already.
    fn told(&mut self) -> Option<[OwnedFd; 2]> {
        if !self.news {
            return None;
        }
        let duplicates = self.duplicates().ok()?;
        self.news = false;
        Some(duplicates)
    }

    /// Takes over the count of lost bytes from the files that these replace.
    fn is_in_place_of(&mut self, other: &mut Open) {
        for stream in [Stream::Out, Stream::Err] {
            if let Some(lost) = other.files.of(stream).take_loss() {
                self.files.of(stream).lost_before(lost);
            }
        }
    }

    /// Makes a file ready for the next piece of output: puts it aside when it is full and the pipe
    /// holds something, and opens it again when it is no longer at its path. Returns whether it is
    /// another file now.
    fn prepare(&mut self, stream: Stream, pipe: BorrowedFd<'_>, turns: &Turns) -> bool {
        let Open { keep, files, news, uncompressed } = self;
        let file = files.of(stream);
        let mut changed = file.look_now_and_then();
        // The last output of a source stays in its file as long as no other output follows.
        if file.is_full(keep.max_size) && holds_something(pipe) {
            // The compressor takes the turn for moments, but may block on the disk. Then the next piece
            // tries again.
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

/// Refuses files that another source has open, under any name.
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

/// Refuses a path that would collide with another source's files, or with its numbered ones.
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

/// The reason why a file is not opened while the opening of another one in its folder blocks.
pub(crate) const HUNG: &str = "its disk does not answer";

impl Logs {
    /// Opens the files of a source that starts, or checks the ones that are open. May block. New files
    /// belong to the source only after [`Logs::place`].
    pub(crate) fn make(&self, source: SourceId, keep: &LogConfig) -> io::Result<Fresh> {
        lock(&self.later).remove(&source);
        clashes(&self.lock(), source, keep)?;
        let there = self.of(source).filter(|there| lock(&there.known).keep.place == keep.place);
        let Some(slot) = there else {
            return self.make_another(keep);
        };
        let mut open = slot.lock();
        // A file may have been removed or replaced meanwhile.
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

    /// Assigns opened files to a source. Returns duplicates for the keeper.
    pub(crate) fn place(&self, source: SourceId, fresh: Fresh) -> io::Result<[OwnedFd; 2]> {
        let Fresh { slot, files } = fresh;
        let mut open = self.lock();
        if let Err(error) = is_taken(&open, source, &slot) {
            lock(&self.leaving).push(slot);
            return Err(error);
        }
        // The source has its files now, and needs none to be opened later.
        lock(&self.later).remove(&source);
        // The keeper gets the files with the start that they were opened for.
        if let Some(mut own) = slot.lock_if_free() {
            own.news = false;
        }
        let before = open.insert(source, Arc::clone(&slot));
        drop(open);
        self.leaves(before, &slot);
        self.tidy(source);
        Ok(files)
    }

    /// Sets the files that a source had before aside, to be closed.
    fn leaves(&self, before: Option<Arc<Slot>>, now: &Arc<Slot>) {
        if let Some(before) = before.filter(|before| !Arc::ptr_eq(before, now)) {
            if let (Some(mut other), Some(mut own)) = (before.lock_if_free(), now.lock_if_free()) {
                own.is_in_place_of(&mut other);
            }
            lock(&self.leaving).push(before);
        }
    }

    /// Whether any files wait to be closed.
    pub(crate) fn some_leave(&self) -> bool {
        !lock(&self.leaving).is_empty()
    }

    /// Closes the files that no source uses any more. May block.
    pub(crate) fn close_those_that_leave(&self) {
        let leaving = std::mem::take(&mut *lock(&self.leaving));
        drop(leaving);
    }

    /// Notes that a thread waits for a file in this folder that does not open.
    pub(crate) fn hangs(&self, keep: &LogConfig) {
        self.count_hung(keep, 1);
    }

    /// Notes that the file has opened. This may be reported before [`Logs::hangs`].
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

    /// Whether a thread waits for a file in the same folder, longer than opening usually takes.
    pub(crate) fn is_hung(&self, keep: &LogConfig) -> bool {
        lock(&self.hung).get(&folder_of(keep)).is_some_and(|waiting| *waiting > 0)
    }

    /// Has the files of a source opened only when it prints again. A daemon that takes over a thousand
    /// sources is ready sooner.
    pub(crate) fn open_later(&self, source: SourceId, keep: LogConfig) {
        lock(&self.later).insert(source, keep);
    }

    /// Changes how the output of a running source is kept. Returns new files when the paths change; on
    /// an error the source is kept as before. May block.
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

    /// Opens new files for a source, whatever files it has. May block. Changes nothing before they are
    /// placed.
    pub(crate) fn make_another(&self, keep: &LogConfig) -> io::Result<Fresh> {
        let mut open = Open::new(keep)?;
        let files = open.duplicates()?;
        Ok(Fresh { slot: Slot::new(open), files })
    }

    /// Releases the files of a source that prints no more.
    pub(crate) fn close(&self, source: SourceId) {
        lock(&self.later).remove(&source);
        let before = self.lock().remove(&source);
        lock(&self.leaving).extend(before);
    }

    /// Releases the files of a source that prints nothing until its next start, which opens them again.
    /// Files that could not take all output stay open, so that the loss is reported.
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

    /// Whether the files of a source are to be opened when it prints.
    pub(crate) fn is_due(&self, source: SourceId) -> bool {
        lock(&self.later).contains_key(&source)
    }

    /// Takes the configuration with which the files of a source are to be opened now. `None` when none
    /// are to be opened.
    pub(crate) fn due(&self, source: SourceId) -> Option<LogConfig> {
        lock(&self.later).remove(&source)
    }

    /// Opens files that were to be opened later. May block. Changes nothing before they are placed.
    pub(crate) fn make_due(&self, keep: &LogConfig) -> Option<Due> {
        // The owner was set when the files were made. Looking the user up again might take long.
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

    /// Assigns opened files to a source that has none. Returns the unfinished last line of each stream
    /// and the configuration in use; `None` when the source has other files.
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

    /// Duplicates of a source's files, which are opened first if they were to be opened later. `None`
    /// also while another thread works with the files. May block.
    pub(crate) fn files(&self, source: SourceId) -> Option<[OwnedFd; 2]> {
        if let Some(due) = self.due(source).and_then(|keep| self.make_due(&keep)) {
            self.place_due(source, due);
        }
        self.of(source)?.lock_if_free()?.duplicates().ok()
    }

    /// Duplicates of a source's files, if the keeper does not have them yet.
    pub(crate) fn news(&self, source: SourceId) -> Option<[OwnedFd; 2]> {
        self.of(source)?.lock_if_free()?.told()
    }

    /// Moves one piece of output from its pipe into the source's file and into the buffer. May block.
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

    /// The files of a source. The value is another one when the source has other files.
    pub(crate) fn of(&self, source: SourceId) -> Option<Arc<Slot>> {
        self.lock().get(&source).cloned()
    }

    /// The configuration with which a source's output is kept at the moment.
    pub(crate) fn kept(&self, source: SourceId) -> Option<LogConfig> {
        self.of(source).map(|slot| lock(&slot.known).keep.clone())
    }

    /// The device number of the disk on which a source's files lie.
    pub(crate) fn device(&self, source: SourceId) -> Option<u64> {
        let slot = self.of(source)?;
        let known = lock(&slot.known);
        known.files.first().map(|(device, _)| *device)
    }

    /// Has numbered files compressed, once the keeper knows that they are no longer written.
    pub(crate) fn tidy(&self, source: SourceId) {
        // While another thread works with the files, a later call will do it.
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

/// Whether a pipe holds any bytes. False at its end.
pub(crate) fn holds_something(pipe: BorrowedFd<'_>) -> bool {
    let mut look = [PollFd::new(pipe, PollFlags::POLLIN)];
    let _ = poll(&mut look, PollTimeout::ZERO);
    look[0].revents().is_some_and(|is| is.contains(PollFlags::POLLIN))
}

/// Reads once from a pipe, without writing to a file.
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
