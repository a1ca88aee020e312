//! The directories of runs and daemons: where they lie, how they are made and held, and how they are
//! removed.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::Mode;

use crate::sys::proc;

/// Makes the directory of a run and locks it. A directory that nobody holds is taken for a dead
/// owner's, even between its making and the lock; then it is made again.
pub(super) fn made_and_held(root: &Path) -> Option<Flock<fs::File>> {
    for _ in 0..10 {
        match fs::create_dir(root) {
            Ok(()) => {
                if let Some(held) = hold(root).filter(|_| root.exists()) {
                    return Some(held);
                }
                remove_all(root);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(_) => return None,
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    None
}

/// Makes the directory of a daemon and locks it. Others of its kind may share the lock: a daemon
/// that is ending, and the next one.
pub(super) fn made_and_shared(root: &Path) -> Option<Flock<fs::File>> {
    for _ in 0..10 {
        match fs::create_dir(root) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return None,
            _ => {}
        }
        // A sweep holds the directory for a moment, and may remove it.
        let file = fs::File::open(root).ok();
        let held = file.and_then(|file| Flock::lock(file, FlockArg::LockShared).ok());
        let is_it = |held: &Flock<fs::File>| {
            fs::metadata(root).is_ok_and(|at| held.metadata().is_ok_and(|held| held.ino() == at.ino()))
        };
        if let Some(held) = held.filter(is_it) {
            return Some(held);
        }
    }
    None
}

/// Locks the directory of a run while the returned value lives. `None`: another process holds it.
pub(super) fn hold(folder: &Path) -> Option<Flock<fs::File>> {
    let file = fs::File::open(folder).ok()?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()
}

/// The name of a run's cgroup, which is unique by its owner's pid namespace, pid and start time.
pub(super) fn name_of(pid: u32) -> Option<String> {
    Some(format!("regrow-{}-{pid}-{}", pid_namespace()?, proc::stat(pid)?.started))
}

pub(super) fn pid_namespace() -> Option<u64> {
    fs::metadata("/proc/self/ns/pid").ok().map(|space| space.ino())
}

/// The directory of this process's own cgroup. `None` where the hierarchy is not mounted.
pub(super) fn own_cgroup() -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| below_mount(line, path))
}

/// The path of a cgroup in the file system, if this line of mountinfo (proc(5)) is the mount that
/// shows it.
pub(super) fn below_mount(line: &str, path: &str) -> Option<PathBuf> {
    let (mount, kind) = line.split_once(" - ")?;
    if !kind.starts_with("cgroup2 ") {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let inside = Path::new(path).strip_prefix(root).ok()?;
    // The cgroup lies outside of this namespace's root.
    if inside.iter().any(|part| part == "..") {
        return None;
    }
    Some(Path::new(point).join(inside))
}

pub(super) fn folders_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()).collect()
}

/// Removes a cgroup and the cgroups below it, as far as they are empty.
pub(super) fn remove_all(folder: &Path) {
    for inner in folders_in(folder) {
        remove_all(&inner);
    }
    let _ = fs::remove_dir(folder);
}

pub(super) fn open_dir(at: impl std::os::fd::AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::openat(at, path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_found_by_the_mount() {
        let unified = "31 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        let hybrid = "42 32 0:39 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        let part = "50 40 0:26 /user.slice /sys/fs/cgroup rw - cgroup2 cgroup rw";
        let old = "33 32 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        for (line, path, want) in [
            (unified, "/", Some("/sys/fs/cgroup/")),
            (unified, "/user.slice/x.scope", Some("/sys/fs/cgroup/user.slice/x.scope")),
            (hybrid, "/a", Some("/sys/fs/cgroup/unified/a")),
            (part, "/user.slice/x", Some("/sys/fs/cgroup/x")),
            (part, "/system.slice", None),
            (unified, "/../outside", None),
            (old, "/", None),
        ] {
            assert_eq!(below_mount(line, path).as_deref(), want.map(Path::new), "{line} {path}");
        }
    }
}
