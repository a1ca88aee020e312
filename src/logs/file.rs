//! One growing log file, and the numbered files that were put aside.
//!
//! Other programs may rename the file (as logrotate does), truncate it, or remove its folder. The
//! next write notices that, at most a second late, and continues in a new file at the same path. A
//! symbolic link or anything but a regular file is never written to.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, tee};
use nix::unistd::pipe2;

use super::past::{ENTRY, entry};
use super::{FileAccess, LostOutput, PipeRead, Stream, compressed, numbered, read, splice_at, with_suffix};
use crate::logs::past::LONGEST_LINE;
use crate::sys::credentials;

/// Turns at renaming the numbered files of a log: one thread per log has the turn. A thread that
/// blocks on one log delays nobody who works on another.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    taken: Mutex<HashSet<PathBuf>>,
    free: Condvar,
}

/// One thread's turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    shared: &'a Shared,
    path: PathBuf,
}

impl Shared {
    fn taken(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turns {
    pub(crate) fn take(&self, path: &Path) -> Turn<'_> {
        let is_taken = |taken: &mut HashSet<PathBuf>| !taken.insert(path.to_owned());
        let waited = self.0.free.wait_while(self.0.taken(), is_taken);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        Turn { shared: &self.0, path: path.to_owned() }
    }

    pub(crate) fn take_if_free(&self, path: &Path) -> Option<Turn<'_>> {
        let is_free = self.0.taken().insert(path.to_owned());
        is_free.then(|| Turn { shared: &self.0, path: path.to_owned() })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.shared.taken().remove(&self.path);
        self.shared.free.notify_all();
    }
}

/// How long a file counts as still being at its path without another look.
const LOOK: Duration = Duration::from_secs(1);

/// How long the rest of an unfinished line is awaited after its file was put aside.
const LINES_END: Duration = Duration::from_secs(3);

/// A growing log file.
pub(crate) struct LogFile {
    path: PathBuf,
    index_path: PathBuf,
    file: File,
    index: Option<File>,
    size: u64,
    /// The size at which a failed rotation is tried again.
    patience: u64,
    /// Bytes that were lost because the file could not take them. `None`: none since the last report.
    lost: Option<u64>,
    /// Whether the last bytes written end a line.
    at_line: bool,
    access: FileAccess,
    /// Whether the next line does not fit any more.
    full: bool,
    looked: Instant,
    /// Why the file could not be opened again at its path.
    away: Option<String>,
    /// Since when the file has been away from its path with an unfinished line, the rest of which still
    /// goes there.
    leaving: Option<Instant>,
}

/// When to leave a file that another program has put aside for a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// At the end of the current line.
    BetweenLines,
    Now,
}

impl LogFile {
    pub(crate) fn open(path: PathBuf, index_path: PathBuf, access: &FileAccess) -> io::Result<LogFile> {
        // No file is made for an unknown owner.
        access.owner.as_deref().map(credentials::of_owner).transpose()?;
        make_folder(&path, access)?;
        let file = own_file(&path)?;
        belong(&file, access)?;
        let size = file.metadata()?.len();
        let index = open_index(&index_path, size);
        let mut last = [b'\n'];
        if size > 0 {
            file.read_exact_at(&mut last, size - 1)?;
        }
        Ok(LogFile {
            path,
            index_path,
            file,
            index,
            size,
            patience: 0,
            lost: None,
            at_line: last == [b'\n'],
            full: false,
            looked: Instant::now(),
            away: None,
            leaving: None,
            access: access.clone(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// Whether output was lost since the last report.
    pub(crate) fn loses(&self) -> bool {
        self.lost.is_some()
    }

    /// The device and inode number of the file.
    pub(crate) fn identity(&self) -> Option<(u64, u64)> {
        self.file.metadata().ok().map(|own| (own.dev(), own.ino()))
    }

    pub(crate) fn take_loss(&mut self) -> Option<u64> {
        self.lost.take()
    }

    /// Adds bytes that the previous file could not take.
    pub(crate) fn lost_before(&mut self, lost: u64) {
        *self.lost.get_or_insert(0) += lost;
    }

    /// Opens the file again if it is no longer at its path, unless it was checked within the last
    /// second. Returns whether it is another file now.
    pub(crate) fn look_now_and_then(&mut self) -> bool {
        // The reason for a failure is reported with the lost output.
        let due = self.leaving.is_some() && self.at_line || self.looked.elapsed() >= LOOK;
        due && self.look(When::BetweenLines).unwrap_or(false)
    }

    /// Whether the file only takes the rest of a line.
    #[cfg(test)]
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// Notes the access that the file has had since it was made.
    pub(crate) fn belongs_already(&mut self, access: &FileAccess) {
        self.access = access.clone();
    }

    /// Gives the file this owner and mode.
    pub(crate) fn belong(&mut self, access: &FileAccess) -> io::Result<()> {
        if self.access != *access {
            // A setting that was removed falls back to its default.
            if self.access.owner.is_some() && access.owner.is_none() {
                let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
                fchown(&self.file, Some(uid), Some(gid))?;
            }
            if self.access.mode.is_some() && access.mode.is_none() {
                self.file.set_permissions(Permissions::from_mode(0o600))?;
            }
            belong(&self.file, access)?;
            self.access = access.clone();
        }
        Ok(())
    }

    /// Opens the file again if it is no longer at its path. Returns whether it is another file now.
    pub(crate) fn look(&mut self, when: When) -> io::Result<bool> {
        self.looked = Instant::now();
        if self.is_in_place() {
            self.away = None;
            self.leaving = None;
            if self.index.is_none() {
                self.index = open_index(&self.index_path, self.size);
            }
            return Ok(false);
        }
        let is_somewhere = || self.file.metadata().is_ok_and(|at| at.nlink() > 0);
        let since = *self.leaving.get_or_insert_with(Instant::now);
        let waits = when == When::BetweenLines && since.elapsed() < LINES_END;
        if waits && !self.at_line && self.away.is_none() && is_somewhere() {
            return Ok(false);
        }
        match LogFile::open(self.path.clone(), self.index_path.clone(), &self.access) {
            Ok(fresh) => {
                *self = LogFile { lost: self.lost, ..fresh };
                Ok(true)
            }
            // The old file is still open and can be used.
            Err(error) if is_shortage(&error) => Err(error),
            Err(error) => {
                self.away = Some(error.to_string());
                Err(error)
            }
        }
    }

    fn is_in_place(&self) -> bool {
        let at = fs::symlink_metadata(&self.path);
        at.is_ok_and(|at| self.identity() == Some((at.dev(), at.ino())))
    }

    pub(crate) fn take(
        &mut self,
        stream: Stream,
        pipe: BorrowedFd<'_>,
        buffer: &mut [u8],
        (max_size, scratch): (u64, &mut Scratch),
    ) -> (PipeRead, Option<LostOutput>) {
        if let Some(reason) = &self.away {
            let reason = reason.clone();
            return self.lose(pipe, buffer, reason);
        }
        self.mind_its_size();
        let room = self.full_at(max_size).saturating_sub(self.size);
        let near = room < buffer.len() as u64;
        let fitting = match self.leaving.is_some() {
            // Only the rest of the current line goes to this file.
            true => scratch.fitting(pipe, buffer, 0),
            false if near => scratch.fitting(pipe, buffer, room),
            false => None,
        };
        let (most, fills) = fitting.unwrap_or((buffer.len(), false));
        match splice_at(pipe, self.file.as_fd(), self.size, most) {
            Ok(0) => (PipeRead::End, None),
            Ok(length) => {
                let at = self.size;
                self.size += length as u64;
                self.note(at, stream);
                let got = match self.file.read_exact_at(&mut buffer[..length], at) {
                    Ok(()) => PipeRead::Bytes(length),
                    Err(error) => {
                        tracing::warn!(%error, path = %self.path.display(), "can't read what was written");
                        PipeRead::Nothing
                    }
                };
                self.at_line = buffer[..length].ends_with(b"\n");
                self.full = fills && length == most && self.leaving.is_none();
                (got, self.lost.take().map(LostOutput::Over))
            }
            Err(Errno::EAGAIN | Errno::EINTR) => (PipeRead::Nothing, None),
            // The disk is full, or the file can't be written.
            Err(errno) => self.lose(pipe, buffer, errno.desc().to_owned()),
        }
    }

    /// Reads output without keeping it: the service goes on, and its output still reaches the
    /// followers.
    fn lose(
        &mut self,
        pipe: BorrowedFd<'_>,
        buffer: &mut [u8],
        reason: String,
    ) -> (PipeRead, Option<LostOutput>) {
        let took = read(pipe, buffer);
        let PipeRead::Bytes(length) = took else {
            return (took, None);
        };
        let begins = self.lost.is_none().then_some(LostOutput::Begins(reason));
        *self.lost.get_or_insert(0) += length as u64;
        (took, begins)
    }

    /// Adapts to a size that another program has changed: after a truncation the next write would leave
    /// a hole, after an addition it would overwrite that.
    fn mind_its_size(&mut self) {
        let Ok(at) = self.file.metadata() else {
            return;
        };
        if at.len() < self.size {
            self.at_line = true;
            // The index describes bytes that are gone.
            if let Some(index) = &mut self.index {
                let _ = index.set_len(0).and_then(|()| index.rewind());
            }
        }
        self.size = at.len();
    }

    /// The unfinished last line of the file.
    pub(crate) fn unfinished(&self) -> Vec<u8> {
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

    /// Adds an index entry: what begins at this offset came now, on this stream.
    fn note(&mut self, at: u64, stream: Stream) {
        let entry = entry(at, SystemTime::now(), stream);
        if let Some(index) = &mut self.index
            && index.write_all(&entry).is_err()
        {
            // Half an entry may have been written.
            let whole = index.metadata().map_or(0, |index| index.len()) / ENTRY * ENTRY;
            let _ = index.set_len(whole);
            let _ = index.seek(SeekFrom::End(0));
        }
    }

    fn full_at(&self, max_size: u64) -> u64 {
        max_size.max(1).max(self.patience)
    }

    pub(crate) fn is_full(&self, max_size: u64) -> bool {
        let max_size = self.full_at(max_size);
        // A file is left between two lines, unless a line has no end (1 MiB beyond the limit).
        self.away.is_none()
            && self.leaving.is_none()
            && (self.full
                || self.size >= max_size && (self.at_line || self.size >= max_size.saturating_add(1 << 20)))
    }

    pub(crate) fn cant_rotate(&mut self, error: &io::Error) {
        tracing::warn!(%error, path = %self.path.display(), "can't put a log file aside");
        // Rotation is tried again when the file has doubled.
        self.patience = self.size.saturating_mul(2);
        self.full = false;
    }

    /// Renames `x.log` to `x.log.1`, the former `x.log.1` to `x.log.2`, and so on. `max_files` remain,
    /// the growing one included. After an error the growing file is at its path again.
    pub(crate) fn rotate(&mut self, max_files: u32) -> io::Result<()> {
        let oldest = max_files.max(1) - 1;
        // The new file is made before anything is moved: the disk may be full, or no descriptor left.
        let beside = with_suffix(&self.path, ".next");
        remove_if_there(&beside)?;
        let next = made_like(&self.file, &beside)?;
        let moved = move_up(&self.path, oldest).and_then(|()| fs::rename(&beside, &self.path));
        if moved.is_err() {
            let _ = fs::remove_file(&beside);
            // A file that was moved before the failure is moved back, unless another one lies there
            // now.
            if oldest > 0 && !is_there(&self.path) {
                let _ = fs::rename(numbered(&self.path, 1), &self.path);
            }
            return moved;
        }
        self.file = next;
        if let Err(error) = move_up(&self.index_path, oldest) {
            tracing::warn!(%error, path = %self.index_path.display(), "times of what was printed are lost");
        }
        self.index = open_index(&self.index_path, 0);
        (self.size, self.patience, self.at_line, self.full) = (0, 0, true, false);
        Ok(())
    }
}

/// Frees a file's path: the file becomes number 1, and the numbered ones move up by one.
pub(crate) fn move_up(path: &Path, oldest: u32) -> io::Result<()> {
    if oldest == 0 {
        remove_if_there(path)?;
        return Ok(());
    }
    let is_one = |number: &u32| {
        let plain = numbered(path, *number);
        is_there(&plain) || is_there(&compressed(&plain))
    };
    // Files move up as far as the first gap. Without a gap the oldest is removed.
    let end = (1..oldest).find(|number| !is_one(number)).unwrap_or(oldest);
    if end == oldest {
        drop_from(path, oldest)?;
    }
    for number in (1..end).rev() {
        let (older, newer) = (numbered(path, number + 1), numbered(path, number));
        rename_if_there(&compressed(&newer), &compressed(&older))?;
        rename_if_there(&newer, &older)?;
    }
    rename_if_there(path, &numbered(path, 1))
}

/// A pipe of our own, used to look at the content of another pipe.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Option<(OwnedFd, OwnedFd)>);

impl Scratch {
    /// How many bytes of a pipe's content to write to a file with this much room, in whole lines where
    /// possible, and whether they fill the file. `None` when that can't be determined.
    fn fitting(&mut self, pipe: BorrowedFd<'_>, buffer: &mut [u8], room: u64) -> Option<(usize, bool)> {
        if self.0.is_none() {
            self.0 = Some(pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?);
        }
        let (read, write) = self.0.as_ref()?;
        let length = tee(pipe, write, buffer.len(), SpliceFFlags::SPLICE_F_NONBLOCK).ok()?;
        let mut seen = 0;
        while seen < length {
            match nix::unistd::read(read, &mut buffer[seen..length]) {
                Ok(more) if more > 0 => seen += more,
                Ok(_) | Err(_) => {
                    // Bytes that stay in the pipe would be taken for the next look's.
                    self.0 = None;
                    return None;
                }
            }
        }
        let (seen, room) = (&buffer[..seen], usize::try_from(room).unwrap_or(usize::MAX));
        if seen.len() <= room {
            return (!seen.is_empty()).then_some((seen.len(), false));
        }
        let is_end = |byte: &u8| *byte == b'\n';
        let last = seen[..room].iter().rposition(is_end);
        let end = last.or_else(|| Some(room + seen[room..].iter().position(is_end)?));
        Some(end.map_or((seen.len(), false), |end| (end + 1, true)))
    }
}

/// Removes files that are too old, from this number on.
fn drop_from(path: &Path, first: u32) -> io::Result<()> {
    for number in first.. {
        let old = numbered(path, number);
        let there = remove_if_there(&old)? | remove_if_there(&compressed(&old))?;
        if !there && number > first {
            break;
        }
    }
    Ok(())
}

fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes the folder of a file, private to this user, when it is missing. An existing folder stays
/// as it is. For root the folder must belong to root and not be writable by everybody: its owner
/// could otherwise have root write, rename or remove files elsewhere.
fn make_folder(path: &Path, access: &FileAccess) -> io::Result<()> {
    let Some(folder) = path.parent() else {
        return Ok(());
    };
    // Users who may read the file may enter the folder.
    let mode = access.mode.unwrap_or_default();
    let new: Vec<&Path> = folder.ancestors().take_while(|at| !is_there(at)).collect();
    DirBuilder::new().recursive(true).mode(0o700 | mode & 0o055 | (mode & 0o044) >> 2).create(folder)?;
    if let (false, Some(owner)) = (new.is_empty(), &access.owner) {
        // Only the group is given away. The user stays, since regrow makes the files in the folder.
        let (_, group) = credentials::of_owner(owner)?;
        for folder in new {
            std::os::unix::fs::chown(folder, None, group)?;
        }
    }
    let (about, us) = (fs::metadata(folder)?, nix::unistd::geteuid());
    let by_all = about.mode() & 0o1002 == 0o002;
    if us.is_root() && (about.uid() != 0 || by_all) {
        let whose = if by_all { "everybody may write to it" } else { "it belongs to another user" };
        let why = format!("{} is not safe for root's files: {whose}", folder.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(())
}

/// Whether an error means that descriptors, memory or disk space have run out.
fn is_shortage(error: &io::Error) -> bool {
    let short = [Errno::EMFILE, Errno::ENFILE, Errno::ENOSPC, Errno::EDQUOT, Errno::ENOMEM];
    error.raw_os_error().is_some_and(|errno| short.contains(&Errno::from_raw(errno)))
}

/// Opens a file, or makes a private one, and never follows a link. Refuses anything but a regular
/// file, since a pipe may have no other end and a device no size, and a file with several hard
/// links.
fn own_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC | nix::libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(nix::libc::ELOOP) => io::Error::new(error.kind(), "it is a symbolic link"),
            _ => error,
        })?;
    let about = file.metadata()?;
    let refused = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    if !about.is_file() {
        return refused("it is not a regular file");
    }
    if about.nlink() > 1 {
        return refused("it has another name as well (a hard link)");
    }
    Ok(file)
}

/// Gives a file its owner and mode, where they differ.
fn belong(file: &File, access: &FileAccess) -> io::Result<()> {
    let about = file.metadata()?;
    if let Some(owner) = &access.owner {
        let (uid, gid) = credentials::of_owner(owner)?;
        let is = |own: u32, wanted: Option<u32>| wanted.is_none_or(|wanted| wanted == own);
        if !is(about.uid(), uid) || !is(about.gid(), gid) {
            fchown(file, uid, gid).map_err(|error| {
                io::Error::new(error.kind(), format!("it can't be given to {owner}: {error}"))
            })?;
        }
    }
    match access.mode {
        Some(mode) if about.mode() & 0o777 != mode => file.set_permissions(Permissions::from_mode(mode)),
        Some(_) | None => Ok(()),
    }
}

/// Makes a file with the owner and permissions of another one.
pub(crate) fn made_like(other: &File, path: &Path) -> io::Result<File> {
    let about = other.metadata()?;
    let made = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC)
        .open(path)?;
    let given = fchown(&made, Some(about.uid()), Some(about.gid())).is_ok();
    // A file of the wrong group must not be readable by that group.
    let mode = if given { about.mode() & 0o777 } else { about.mode() & 0o700 };
    made.set_permissions(Permissions::from_mode(mode))?;
    Ok(made)
}

fn open_index(path: &Path, size: u64) -> Option<File> {
    let opened = make_folder(path, &FileAccess::default()).and_then(|()| own_index(path, size));
    opened
        .inspect_err(|error| tracing::warn!(%error, path = %path.display(), "no times of what is printed"))
        .ok()
}

/// Opens the index for a file of this size, at the end of the index.
fn own_index(path: &Path, size: u64) -> io::Result<File> {
    let mut index = own_file(path)?;
    // An incomplete last entry would shift all later ones.
    let mut whole = index.metadata()?.len() / ENTRY * ENTRY;
    if whole > 0 {
        let mut last = [0; 8];
        index.read_exact_at(&mut last, whole - ENTRY)?;
        // The index belongs to an earlier file at this path.
        if u64::from_le_bytes(last) >= size {
            whole = 0;
        }
    }
    index.set_len(whole)?;
    index.seek(SeekFrom::End(0))?;
    Ok(index)
}
