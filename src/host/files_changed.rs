//! Reports that a manifest in a directory has changed, or one of some files elsewhere.
//!
//! Deliberately absent: reading the files, and what follows from the change.

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

/// How long a change must be followed by no other: programs write a file in several steps.
const SETTLED: Duration = Duration::from_millis(200);
/// How often the path is checked for another directory: a symbolic link on the way may be switched,
/// which no watch of the directory reports.
const LOOKING: Duration = Duration::from_secs(1);

/// The facts by which a changed file is known: device, inode, length, and modification time.
type Version = (u64, u64, u64, (i64, i64));

fn version_of(path: &Path) -> Option<Version> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.len(), (file.mtime(), file.mtime_nsec())))
}

/// Watches the manifests of a directory (inotify(7)), and of any directory that takes its path
/// later.
pub struct FolderWatch {
    path: PathBuf,
    inotify: Inotify,
    readable: AsyncFd<OwnedFd>,
    /// The watch of the present directory, with its device and inode.
    watched: Option<(WatchDescriptor, (u64, u64))>,
    /// Files elsewhere that count as well, with their version when last checked; `None` while a
    /// file is missing.
    others: BTreeMap<PathBuf, Option<Version>>,
    /// When a change was last seen that is not reported yet.
    changed: Option<Instant>,
    look: tokio::time::Interval,
}

impl FolderWatch {
    /// Starts to watch. Must be called within a tokio runtime. The directory need not exist yet.
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
        // The caller reads the present manifests itself.
        watch.changed = None;
        Ok(watch)
    }

    /// Replaces the list of files elsewhere whose changes are reported, too. They are checked once
    /// a second, because a symbolic link on the way to one may be switched.
    pub fn also<'a>(&mut self, files: impl Iterator<Item = &'a PathBuf>) {
        let mut known = std::mem::take(&mut self.others);
        self.others = files
            .map(|path| known.remove_entry(path).unwrap_or_else(|| (path.clone(), version_of(path))))
            .collect();
    }

    /// Checks the files elsewhere, on a thread for blocking work, since a disk may take its time.
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

    /// Watches the directory that is at the path now, if it is another one.
    fn look_again(&mut self) {
        let there = std::fs::metadata(&self.path).ok().filter(std::fs::Metadata::is_dir);
        let there = there.map(|folder| (folder.dev(), folder.ino()));
        if there == self.watched.as_ref().map(|(_, folder)| *folder) {
            return;
        }
        if let Some((old, _)) = self.watched.take() {
            // The kernel has removed the watch already if the directory was removed.
            let _ = self.inotify.rm_watch(old);
        }
        let what = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE;
        if let (Some(folder), Ok(watch)) = (there, self.inotify.add_watch(&self.path, what)) {
            self.watched = Some((watch, folder));
            // A directory that has vanished is not reported; the next one at its path is.
            self.changed = Some(Instant::now());
        }
    }

    /// Returns when a manifest or file has changed and no further change follows for a moment. If
    /// the future is dropped half way, the change is reported the next time.
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
