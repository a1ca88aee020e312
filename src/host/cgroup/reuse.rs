//! Cgroups that pass from one command to the next, while they are as they were made.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io};

use nix::sys::stat::FileStat;

/// Cgroups for reuse. To make and remove one costs a short command an eighth of its time, so a
/// cgroup that a command left as it was is given to the next.
#[derive(Default)]
pub(super) struct ReusePool {
    /// The seats that trees have, by the tree's key. Every other tree has a directory named by its
    /// own key.
    pub(super) of: HashMap<u64, Arc<ReusableCgroup>>,
    /// The seats that no tree has.
    pub(super) spare: Vec<Arc<ReusableCgroup>>,
}

/// A cgroup's directory that passes from tree to tree, held open.
pub(super) struct ReusableCgroup {
    /// The key of the first tree, which names the directory.
    pub(super) folder: u64,
    pub(super) dir: Arc<OwnedFd>,
    /// The owner, the group and the mode of the directory.
    pub(super) rights: (u32, u32, u32),
    /// The open `cgroup.events` file.
    pub(super) events: fs::File,
    /// The files of [`SETTINGS`], each with its content when the cgroup was made.
    pub(super) settings: Vec<(fs::File, Vec<u8>)>,
    /// Whether the cgroup was killed through once: a process spawned in it later would be killed,
    /// too.
    pub(super) killed: AtomicBool,
}

/// The settings that a command may change in its own cgroup, if it has the rights. The next command
/// would be frozen, for instance.
pub(super) const SETTINGS: [&str; 5] =
    ["cgroup.freeze", "cgroup.type", "cgroup.subtree_control", "cgroup.max.depth", "cgroup.max.descendants"];

impl ReusableCgroup {
    /// Whether any process is in the cgroup.
    pub(super) fn is_populated(&self) -> io::Result<bool> {
        let mut text = [0; 128];
        match self.events.read_at(&mut text, 0) {
            Ok(length) => Ok(is_populated(&text[..length])),
            // Another process removed the cgroup, which the kernel allows only while it is empty.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the cgroup exists, is empty, and nothing was made or set in it.
    pub(super) fn is_as_new(&self) -> bool {
        let mut text = [0; 128];
        let mut says = |file: &fs::File, want: &dyn Fn(&[u8]) -> bool| {
            file.read_at(&mut text, 0).is_ok_and(|length| want(&text[..length]))
        };
        // A directory has a link for each one below it, and two of its own.
        !self.killed.load(Ordering::Relaxed)
            && says(&self.events, &|text| !is_populated(text))
            && self.settings.iter().all(|(file, made)| says(file, &|text| text == made))
            && nix::sys::stat::fstat(&self.dir)
                .is_ok_and(|folder| folder.st_nlink == 2 && rights(&folder) == self.rights)
    }
}

pub(super) fn rights(folder: &FileStat) -> (u32, u32, u32) {
    (folder.st_uid, folder.st_gid, folder.st_mode)
}

/// Whether the text of `cgroup.events` says that the cgroup has processes.
pub(super) fn is_populated(events: &[u8]) -> bool {
    !String::from_utf8_lossy(events).contains("populated 0")
}

/// The most spare cgroups that are held open, with seven descriptors each.
pub(super) const SPARE: usize = 32;
