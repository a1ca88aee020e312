//! Hearing that something in a folder has changed, or one of some files elsewhere.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// Who writes a file writes it in several steps.
const SETTLED: Duration = Duration::from_millis(200);
/// Whether another folder lies at the path is looked at this often: a link on the way to it may be switched,
/// of which no watch of the folder tells.
const LOOKING: Duration = Duration::from_secs(1);

/// By what another content of a file is known: device, inode, length, and when it was written.
type Version = (u64, u64, u64, (i64, i64));

fn version_of(path: &Path) -> Option<Version> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.len(), (file.mtime(), file.mtime_nsec())))
}

/// Watches the files of a folder (inotify(7)), and of whatever lies at its path later.
pub struct FolderWatch {
    path: PathBuf,
    inotify: Inotify,
    readable: AsyncFd<OwnedFd>,
    /// The folder that is watched, among all that have ever lain there.
    watched: Option<(WatchDescriptor, (u64, u64))>,
    /// Files elsewhere that count as much, and how they were when last looked at.
    others: BTreeMap<PathBuf, Option<Version>>,
    /// When a manifest last changed, until that is told.
    changed: Option<Instant>,
    look: tokio::time::Interval,
}

impl FolderWatch {
    /// Must be called within a tokio runtime. The folder need not be there yet.
    pub fn new(folder: &Path) -> io::Result<FolderWatch> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let duplicate = inotify.as_fd().try_clone_to_owned()?;
        // SAFETY: it owns its descriptor, which stays open and the same until it is dropped.
        let readable = unsafe { AsyncFd::register(duplicate) }?;
        let look = tokio::time::interval(LOOKING);
        let path = folder.to_owned();
        let mut watch = FolderWatch {
            path,
            inotify,
            readable,
            watched: None,
            others: BTreeMap::new(),
            changed: None,
            look,
        };
        watch.look_again();
        // What is there now is read by whoever has made this.
        watch.changed = None;
        Ok(watch)
    }

    /// Tells of these files, too, wherever they lie; of no others any more but those of the folder. They are
    /// looked at once a second: a link on the way to one may be switched.
    pub fn also<'a>(&mut self, files: impl Iterator<Item = &'a PathBuf>) {
        let mut known = std::mem::take(&mut self.others);
        self.others = files
            .map(|path| known.remove_entry(path).unwrap_or_else(|| (path.clone(), version_of(path))))
            .collect();
    }

    /// Beside everything else: a disk may take its time.
    async fn look_at_others(&mut self) {
        if self.others.is_empty() {
            return;
        }
        let paths: Vec<PathBuf> = self.others.keys().cloned().collect();
        let look = move || paths.into_iter().map(|path| (version_of(&path), path)).collect::<Vec<_>>();
        for (now, path) in tokio::task::spawn_blocking(look).await.unwrap_or_default() {
            if let Some(known) = self.others.get_mut(&path)
                && *known != now
            {
                *known = now;
                self.changed = Some(Instant::now());
            }
        }
    }

    /// Watches what lies at the path now, if that is another folder.
    fn look_again(&mut self) {
        let there = std::fs::metadata(&self.path).ok().filter(std::fs::Metadata::is_dir);
        let there = there.map(|folder| (folder.dev(), folder.ino()));
        if there == self.watched.as_ref().map(|(_, folder)| *folder) {
            return;
        }
        if let Some((old, _)) = self.watched.take() {
            // The kernel has done so where it was removed.
            let _ = self.inotify.rm_watch(old);
        }
        let what = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE;
        if let (Some(folder), Ok(watch)) = (there, self.inotify.add_watch(&self.path, what)) {
            self.watched = Some((watch, folder));
            // A folder that is gone says nothing: whatever is there next does.
            self.changed = Some(Instant::now());
        }
    }

    /// Returns when a manifest has changed, and nothing more has for a moment. What was heard is
    /// kept when this is dropped half way.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let settled = self.changed.map(|at| at + SETTLED);
            let settles = async {
                match settled {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ready = self.readable.readable() => {
                    let mut ready = ready?;
                    match self.inotify.read_events() {
                        Ok(events) => {
                            let manifest =
                                |name: &OsStr| Path::new(name).extension().is_some_and(|e| e == "toml");
                            if events.iter().any(|event| event.name.as_deref().is_some_and(manifest)) {
                                self.changed = Some(Instant::now());
                            }
                        }
                        Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
                        Err(errno) => return Err(errno.into()),
                    }
                }
                () = settles => {
                    self.changed = None;
                    return Ok(());
                }
                _ = self.look.tick() => {
                    self.look_again();
                    self.look_at_others().await;
                }
            }
        }
    }
}
