//! Log files that were put aside, compressed one after the other on a thread of their own.
//!
//! A compressed file comes into its place whole: it is written beside, and takes the other's name
//! once it is safe on the disk. Where a file is that is being compressed may change meanwhile, since
//! another is put aside; so it is looked for when it is done. Whoever is killed in between leaves the
//! plain file, or both, of which the plain one counts.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::file::Turns;
use super::{compressed, numbered, with_suffix};

/// The thread, once there is something to do for it. It ends with this.
#[derive(Debug, Default)]
pub(super) struct Compressor(Mutex<Option<Sender<PathBuf>>>);

impl Compressor {
    /// Compresses what was put aside of a log file.
    pub(super) fn compress(&self, path: &Path, turns: &Turns) {
        let mut sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sender.is_none() {
            let (jobs, work) = channel();
            let turns = turns.clone();
            let thread = std::thread::Builder::new().name("regrow-compress".into());
            // The encoder is made on the stack, all of its tables.
            match thread.stack_size(2 << 20).spawn(move || run(&work, &turns)) {
                Ok(_) => *sender = Some(jobs),
                Err(error) => tracing::warn!(%error, "log files are not compressed"),
            }
        }
        if let Some(sender) = &*sender {
            // It ends only with its sender.
            let _ = sender.send(path.to_owned());
        }
    }
}

fn run(work: &Receiver<PathBuf>, turns: &Turns) {
    // Services come first. SAFETY: it takes numbers and touches no memory; 0 is this thread.
    unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, 10) };
    for path in work {
        if let Err(error) = all_of(&path, turns) {
            tracing::warn!(%error, path = %path.display(), "can't compress what was put aside");
        }
    }
}

fn all_of(path: &Path, turns: &Turns) -> io::Result<()> {
    let beside = with_suffix(path, ".gz.part");
    // One that somebody was killed over.
    let _ = fs::remove_file(&beside);
    while let Some(plain) = oldest(path, turns)? {
        let done = one(&plain, &beside).and_then(|()| {
            let _turn = turns.take();
            let Some(there) = where_is(&plain, path)? else {
                // It was dropped meanwhile.
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

/// The last one that is not compressed.
fn oldest(path: &Path, turns: &Turns) -> io::Result<Option<File>> {
    let _turn = turns.take();
    let mut last = None;
    for number in 1.. {
        let plain = numbered(path, number);
        match fs::symlink_metadata(&plain) {
            Ok(at) if at.is_file() => last = Some(plain),
            Ok(_) => break,
            Err(_) if compressed(&plain).exists() => {}
            Err(_) => break,
        }
    }
    let open = |path| OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path);
    last.map(open).transpose()
}

fn one(plain: &File, beside: &Path) -> io::Result<()> {
    let about = plain.metadata()?;
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(beside)?;
    // Who may read it stays what it was, and when it was written.
    let _ = fchown(&made, Some(about.uid()), Some(about.gid()));
    let _ = made.set_permissions(Permissions::from_mode(about.mode() & 0o777));
    let mut encoder = GzEncoder::new(made, Compression::default());
    io::copy(&mut &*plain, &mut encoder)?;
    let made = encoder.finish()?;
    if let Ok(written) = about.modified() {
        made.set_modified(written)?;
    }
    made.sync_all()
}

/// Under which number a file lies now.
fn where_is(plain: &File, path: &Path) -> io::Result<Option<PathBuf>> {
    let own = plain.metadata()?;
    for number in 1.. {
        let at = numbered(path, number);
        match fs::symlink_metadata(&at) {
            Ok(found) if (found.dev(), found.ino()) == (own.dev(), own.ino()) => return Ok(Some(at)),
            Ok(_) => {}
            Err(_) if compressed(&at).exists() => {}
            Err(_) => return Ok(None),
        }
    }
    Ok(None)
}
