//! Hearing that something in a folder has changed.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// Who writes a file writes it in several steps.
const SETTLED: Duration = Duration::from_millis(200);

/// Watches the files of a folder (inotify(7)).
pub struct FolderWatch {
    inotify: Inotify,
    readable: AsyncFd<OwnedFd>,
    /// When a manifest last changed, until that is told.
    changed: Option<Instant>,
}

impl FolderWatch {
    /// Must be called within a tokio runtime. An error where there is no such folder.
    pub fn new(folder: &Path) -> io::Result<FolderWatch> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let what = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE;
        inotify.add_watch(folder, what)?;
        let duplicate = inotify.as_fd().try_clone_to_owned()?;
        // SAFETY: it owns its descriptor, which stays open and the same until it is dropped.
        let readable = unsafe { AsyncFd::register(duplicate) }?;
        Ok(FolderWatch { inotify, readable, changed: None })
    }

    /// Returns when a manifest has changed, and nothing more has for a moment. What was heard is
    /// kept when this is dropped half way.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let ready = match self.changed {
                None => self.readable.readable().await,
                Some(at) => match tokio::time::timeout_at(at + SETTLED, self.readable.readable()).await {
                    Ok(ready) => ready,
                    Err(_) => {
                        self.changed = None;
                        return Ok(());
                    }
                },
            };
            let mut ready = ready?;
            match self.inotify.read_events() {
                Ok(events) => {
                    let manifest = |name: &OsStr| Path::new(name).extension().is_some_and(|e| e == "toml");
                    if events.iter().any(|event| event.name.as_deref().is_some_and(manifest)) {
                        self.changed = Some(Instant::now());
                    }
                }
                Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
