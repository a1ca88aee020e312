//! Compression of log files that were put aside, one at a time on a thread of its own.
//!
//! A compressed file appears whole: it is written beside the plain one and renamed once it is safe
//! on the disk. The plain file may be renamed meanwhile, when another one is put aside; so it is
//! looked up again at the end. A kill in between leaves the plain file or both, and then the plain
//! one counts.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::file::{Turns, made_like};
use super::past::{GAP, open};
use super::{compressed, lock, numbered, with_suffix};
use crate::sys::limits::lower_priority;

/// The compressing thread, which starts with the first job and ends when this value is dropped.
#[derive(Debug, Default)]
pub(crate) struct Compressor {
    jobs: Mutex<Option<Sender<PathBuf>>>,
    /// The log files that wait for the thread.
    waiting: Waiting,
}

type Waiting = Arc<Mutex<HashSet<PathBuf>>>;

impl Compressor {
    /// Queues a log file: its numbered files will be compressed.
    pub(crate) fn compress(&self, path: &Path, turns: &Turns) {
        if !lock(&self.waiting).insert(path.to_owned()) {
            return;
        }
        let mut sender = lock(&self.jobs);
        if sender.is_none() {
            let (jobs, work) = channel();
            let (turns, waiting) = (turns.clone(), Arc::clone(&self.waiting));
            let thread = std::thread::Builder::new().name("regrow-compress".into());
            // The encoder builds all of its tables on the stack.
            match thread.stack_size(2 << 20).spawn(move || run(&work, &turns, &waiting)) {
                Ok(_) => *sender = Some(jobs),
                Err(error) => {
                    lock(&self.waiting).clear();
                    tracing::warn!(%error, "log files are not compressed");
                }
            }
        }
        if let Some(sender) = &*sender {
            // The thread ends only when this sender is gone.
            let _ = sender.send(path.to_owned());
        }
    }
}

fn run(work: &Receiver<PathBuf>, turns: &Turns, waiting: &Waiting) {
    // Services have priority over compression.
    lower_priority();
    for path in work {
        lock(waiting).remove(&path);
        if let Err(error) = all_of(&path, turns) {
            tracing::warn!(%error, path = %path.display(), "can't compress what was put aside");
        }
    }
}

fn all_of(path: &Path, turns: &Turns) -> io::Result<()> {
    let beside = with_suffix(path, ".gz.part");
    // A killed process may have left a partial file.
    let _ = fs::remove_file(&beside);
    while let Some((number, plain)) = oldest(path)? {
        let done = one(&plain, &beside).and_then(|()| {
            let _turn = turns.take(path);
            let Some(there) = where_is(&plain, path, number)? else {
                // The plain file was dropped meanwhile.
                return fs::remove_file(&beside);
            };
            fs::rename(&beside, compressed(&there))?;
            fs::remove_file(&there)
        });
        if done.is_err() {
            let _ = fs::remove_file(&beside);
            return done;
        }
    }
    Ok(())
}

/// The uncompressed numbered file with the highest number, and that number. It needs no turn: files
/// that are put aside meanwhile only move up.
fn oldest(path: &Path) -> io::Result<Option<(u32, File)>> {
    let is_plain = |at: &(u32, PathBuf)| fs::symlink_metadata(&at.1).is_ok_and(|at| at.is_file());
    let Some((number, last)) = put_aside(path, 1).filter(is_plain).last() else {
        return Ok(None);
    };
    match open(&last) {
        Ok(file) => Ok(Some((number, file))),
        // The file was moved or removed meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn one(plain: &File, beside: &Path) -> io::Result<()> {
    let made = made_like(plain, beside)?;
    let mut encoder = GzEncoder::new(made, Compression::default());
    io::copy(&mut &*plain, &mut encoder)?;
    let made = encoder.finish()?;
    if let Ok(written) = plain.metadata()?.modified() {
        made.set_modified(written)?;
    }
    made.sync_all()
}

/// The path at which a file lies now that had this number before. `None` when it was dropped.
fn where_is(plain: &File, path: &Path, number: u32) -> io::Result<Option<PathBuf>> {
    let own = plain.metadata()?;
    let is_it = |at: &PathBuf| {
        fs::symlink_metadata(at).is_ok_and(|found| (found.dev(), found.ino()) == (own.dev(), own.ino()))
    };
    Ok(put_aside(path, number).map(|(_, at)| at).find(is_it))
}

/// The numbers and paths of the numbered files, compressed or not, up to a gap of more than [`GAP`]
/// missing ones.
fn put_aside(path: &Path, from: u32) -> impl Iterator<Item = (u32, PathBuf)> {
    let mut missed = 0;
    (from..).map(move |number| (number, numbered(path, number))).take_while(move |(_, plain)| {
        let is_there = fs::symlink_metadata(plain).is_ok() || compressed(plain).exists();
        missed = if is_there { 0 } else { missed + 1 };
        missed <= GAP
    })
}
