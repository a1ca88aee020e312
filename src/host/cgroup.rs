//! Gives each process tree a cgroup of its own, where one can be made. The kernel itself then tells
//! which processes belong to the tree, whatever session, environment or output they took on, and
//! kills all of them at once.
//!
//! Only version 2 is used, without any controller: nothing is limited here. Below the cgroup of
//! this process lies one of this run, named after its owner, which holds a lock on it. Below that
//! lies one for each spawned process, named by its key. A cgroup that was killed through stays
//! deadly, and a service may change its own at will: those are used once. The cgroup of a command
//! passes on to the next command while it is as it was made. In a burst of starts the host asks for
//! none (see `native`), and those trees are moved when there is time for it (`moving`).
//!
//! `lifetime` makes and removes the directories, `reuse` passes them on, `sweep` ends what an owner that
//! was killed left behind. Limits will have a file of their own beside them: no controller is used yet.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use nix::errno::Errno;
use nix::fcntl::{Flock, OFlag};
use nix::sys::stat::Mode;

use lifetime::{
    folders_in, made_and_held, made_and_shared, name_of, open_dir, own_cgroup, pid_namespace, remove_all,
};
use reuse::{ReusableCgroup, ReusePool, SETTINGS, SPARE, is_populated, rights};

use crate::sys::{clone3, proc};

pub(crate) use moving::WithoutCgroup;
pub(crate) use sweep::{end_marked_but, end_of, end_one, sweep};

mod lifetime;
mod moving;
mod reuse;
mod sweep;

/// The cgroups of one run.
pub(crate) struct Cgroups {
    root: PathBuf,
    dir: OwnedFd,
    /// Becomes false when the kernel refuses to spawn processes in them.
    usable: AtomicBool,
    /// The work that a thread does when it has time.
    jobs: mpsc::Sender<Job>,
    /// The cgroups that several trees use, one after the other.
    again: Mutex<ReusePool>,
}

/// Work that need not be done at once.
enum Job {
    /// Removes the directory of a tree that is gone.
    Remove(u64),
    /// Moves trees into directories of their own, then calls the function with the keys of those
    /// that have one.
    TakeIn(Vec<WithoutCgroup>, Box<dyn FnOnce(Vec<u64>) + Send>),
}

/// Whether a tree may get a cgroup that another tree had before, and pass it on to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// The tree gets a new cgroup, which is removed after it, because its program may change the
    /// cgroup at will.
    Once,
    Again,
}

impl Cgroups {
    /// Makes the cgroup of this run. `run` is the number that the run's processes carry in their
    /// limits. `None` where no cgroup can be made.
    pub(crate) fn make(run: u32) -> Option<Cgroups> {
        if !clone3::AVAILABLE {
            return None;
        }
        let root = own_cgroup()?.join(format!("{}-{run:x}", name_of(std::process::id())?));
        let held = made_and_held(&root)?;
        Cgroups::over(root, Some(held))
    }

    /// The cgroups below a directory. `held`: the lock that says who owns it.
    fn over(root: PathBuf, held: Option<Flock<fs::File>>) -> Option<Cgroups> {
        let dir = open_dir(nix::fcntl::AT_FDCWD, &root).ok()?;
        let (jobs, todo) = mpsc::channel();
        let (inside, folder) = (dir.try_clone().ok()?, root.clone());
        let clean = move || {
            for job in todo {
                match job {
                    Job::Remove(key) => remove(&inside, &folder, key),
                    Job::TakeIn(trees, told) => told(moving::take_in(&inside, &folder, &trees)),
                }
            }
            // The host is gone. Cgroups with living processes stay; the next run checks them again.
            remove_all(&folder);
            drop(held);
        };
        std::thread::Builder::new().name("regrow-cgroup".into()).stack_size(128 * 1024).spawn(clean).ok()?;
        Some(Cgroups { root, dir, usable: AtomicBool::new(true), jobs, again: Mutex::default() })
    }

    /// Makes the cgroup of a daemon, or takes over what its predecessors made. Their processes
    /// outlive them, and nobody sweeps it while a daemon holds it or a process lives in it.
    pub(crate) fn make_lasting(run: u32) -> Option<Cgroups> {
        if !clone3::AVAILABLE {
            return None;
        }
        let root = own_cgroup()?.join(format!("regrowd-{}-{run:x}", pid_namespace()?));
        Cgroups::over(root.clone(), Some(made_and_shared(&root)?))
    }

    /// The keys that name the directories below it.
    pub(crate) fn keys(&self) -> Vec<u64> {
        folders_in(&self.root)
            .iter()
            .filter_map(|folder| folder.file_name()?.to_str()?.parse().ok())
            .collect()
    }

    /// The cgroups that an earlier daemon made in this directory.
    pub(crate) fn join(root: &Path) -> Option<Cgroups> {
        Cgroups::over(root.to_owned(), None)
    }

    /// The directory that holds the cgroups.
    pub(crate) fn folder(&self) -> &Path {
        &self.root
    }

    fn again(&self) -> MutexGuard<'_, ReusePool> {
        self.again.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key that names the directory of a tree.
    fn folder_of(&self, key: u64) -> u64 {
        self.seat(key).map_or(key, |seat| seat.folder)
    }

    fn seat(&self, key: u64) -> Option<Arc<ReusableCgroup>> {
        self.again().of.get(&key).cloned()
    }

    /// Returns an empty cgroup in which to spawn a process. `None` where none can be had.
    pub(crate) fn fresh(&self, key: u64, use_: Use) -> Option<Arc<OwnedFd>> {
        if !self.usable.load(Ordering::Relaxed) {
            return None;
        }
        if use_ == Use::Again {
            while let Some(seat) = self.spare() {
                // Checked only here, because a process of the last tree may have changed a setting
                // after that tree's end.
                if seat.is_as_new() {
                    let dir = Arc::clone(&seat.dir);
                    self.again().of.insert(key, seat);
                    return Some(dir);
                }
                self.give_back(seat.folder);
            }
        }
        let name = key.to_string();
        let made = nix::sys::stat::mkdirat(&self.dir, name.as_str(), Mode::from_bits_truncate(0o755));
        let is_there = made.is_ok();
        match made.map_err(io::Error::from).and_then(|()| open_dir(&self.dir, Path::new(&name))) {
            Ok(dir) => {
                let dir = Arc::new(dir);
                if use_ == Use::Again
                    && let Some(seat) = self.seat_of(key, &dir)
                {
                    self.again().of.insert(key, Arc::new(seat));
                }
                Some(dir)
            }
            Err(error) => {
                if is_there {
                    self.discard(key);
                }
                // A limit on the number of cgroups, most likely. The tree can still be known by
                // other means.
                tracing::debug!(%error, key, "no cgroup for a process");
                None
            }
        }
    }

    fn spare(&self) -> Option<Arc<ReusableCgroup>> {
        self.again().spare.pop()
    }

    /// Holds a cgroup open that was just made. `None` if that fails, for want of descriptors for
    /// instance.
    fn seat_of(&self, folder: u64, dir: &Arc<OwnedFd>) -> Option<ReusableCgroup> {
        let rights = rights(&nix::sys::stat::fstat(dir).ok()?);
        let events = self.open(folder, "cgroup.events").ok()?;
        let mut settings = Vec::new();
        for name in SETTINGS {
            let file = match self.open(folder, name) {
                Ok(file) => file,
                // Older kernels lack some of these files.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(_) => return None,
            };
            let mut made = vec![0; 128];
            let length = file.read_at(&mut made, 0).ok()?;
            made.truncate(length);
            settings.push((file, made));
        }
        let (dir, killed) = (Arc::clone(dir), AtomicBool::new(false));
        Some(ReusableCgroup { folder, dir, rights, events, settings, killed })
    }

    /// Notes that the kernel would not spawn a process in the cgroup of a tree. If the reason will
    /// last, no further cgroup is tried.
    pub(crate) fn refused(&self, key: u64, errno: Errno) {
        // In a reused cgroup, the refusal may come from what earlier trees made of it.
        let was_new = self.folder_of(key) == key;
        self.discard(key);
        let for_good =
            [Errno::ENOSYS, Errno::EPERM, Errno::EACCES, Errno::EINVAL, Errno::E2BIG, Errno::EOPNOTSUPP];
        if was_new && for_good.contains(&errno) && self.usable.swap(false, Ordering::Relaxed) {
            tracing::warn!(%errno, "no process can be made in a cgroup here");
        }
    }

    /// Has trees moved into cgroups of their own, as far as that can be done. `told` is called with
    /// the keys of those that have one then. `false`: no cgroup can be made.
    pub(crate) fn take_in(
        &self,
        trees: Vec<WithoutCgroup>,
        told: impl FnOnce(Vec<u64>) + Send + 'static,
    ) -> bool {
        self.usable.load(Ordering::Relaxed) && self.jobs.send(Job::TakeIn(trees, Box::new(told))).is_ok()
    }

    /// Whether a process is in the cgroup of a tree.
    pub(crate) fn has(&self, key: u64, pid: u32) -> bool {
        proc::cgroup(pid).is_some_and(|path| self.key_of(&path) == Some(key))
    }

    /// Whether any process of a tree lives.
    pub(crate) fn is_populated(&self, key: u64) -> io::Result<bool> {
        if let Some(seat) = self.seat(key) {
            return seat.is_populated();
        }
        let mut text = [0u8; 128];
        let length = match self.open(key, "cgroup.events").and_then(|mut file| file.read(&mut text)) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        Ok(is_populated(&text[..length]))
    }

    /// The pids of the processes in a tree's cgroup and the cgroups below it.
    pub(crate) fn processes(&self, key: u64) -> Vec<u32> {
        let mut found = Vec::new();
        // A service may have made cgroups of its own: another regrow, for instance.
        let mut folders = vec![self.root.join(self.folder_of(key).to_string())];
        while let Some(folder) = folders.pop() {
            let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            // 0 stands for a process that is not visible from this pid namespace.
            found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid > 0));
            // A directory has a link for each one below it, and two of its own.
            if fs::metadata(&folder).is_ok_and(|folder| folder.nlink() > 2) {
                folders.extend(folders_in(&folder));
            }
        }
        found
    }

    /// Sends SIGKILL to every process of a tree at once (Linux 5.14).
    pub(crate) fn kill(&self, key: u64) {
        if let Some(seat) = self.seat(key) {
            seat.killed.store(true, Ordering::Relaxed);
        }
        // Without `cgroup.kill`, each process is killed by its pidfd, as where there is no cgroup.
        let _ = self.open(key, "cgroup.kill").and_then(|mut file| file.write_all(b"1"));
    }

    /// Gives back the cgroup of a tree that is gone and whose leader exited by itself. A leader
    /// that was killed may have been killed through the cgroup from outside, and a process spawned
    /// in it later would be killed, too: see [`Cgroups::discard`].
    pub(crate) fn remove(&self, key: u64) {
        let mut again = self.again();
        match again.of.remove(&key) {
            Some(seat) if !seat.killed.load(Ordering::Relaxed) && again.spare.len() < SPARE => {
                again.spare.push(seat);
            }
            seat => {
                drop(again);
                self.give_back(seat.map_or(key, |seat| seat.folder));
            }
        }
    }

    /// Removes the cgroup of a tree for good, because it can't be reused.
    pub(crate) fn discard(&self, key: u64) {
        let seat = self.again().of.remove(&key);
        self.give_back(seat.map_or(key, |seat| seat.folder));
    }

    fn give_back(&self, folder: u64) {
        // The thread that takes the jobs lives as long as this value.
        let _ = self.jobs.send(Job::Remove(folder));
    }

    /// Removes all of its cgroups that are empty at once, because this process is about to end.
    pub(crate) fn leave(&self) {
        remove_all(&self.root);
    }

    /// The key of the tree that has this cgroup; `None` if no tree has it.
    pub(crate) fn key_of(&self, path: &Path) -> Option<u64> {
        let run = self.root.file_name()?;
        let mut parts = path.iter().skip_while(|part| *part != run).skip(1);
        let folder = parts.next()?.to_str()?.parse().ok()?;
        let again = self.again();
        match again.of.iter().find(|(_, seat)| seat.folder == folder) {
            Some((key, _)) => Some(*key),
            None => Some(folder).filter(|folder| again.spare.iter().all(|seat| seat.folder != *folder)),
        }
    }

    fn open(&self, key: u64, file: &str) -> io::Result<fs::File> {
        let path = format!("{}/{file}", self.folder_of(key));
        let write = if file == "cgroup.kill" { OFlag::O_WRONLY } else { OFlag::O_RDONLY };
        let fd = nix::fcntl::openat(&self.dir, path.as_str(), write | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(fd.into())
    }
}

fn remove(dir: &OwnedFd, root: &Path, key: u64) {
    let name = key.to_string();
    let gone = nix::unistd::unlinkat(dir, name.as_str(), nix::unistd::UnlinkatFlags::RemoveDir);
    if gone == Err(Errno::EBUSY) {
        remove_all(&root.join(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_used_again_unless_it_was_killed_or_altered() {
        let Some(cgroups) = Cgroups::make(0x2fff_fff1) else {
            // No cgroup can be made here, so there is nothing to test.
            return;
        };
        let folders = || folders_in(cgroups.folder()).len();
        let fresh = |key: u64| assert!(cgroups.fresh(key, Use::Again).is_some(), "{key}");
        fresh(1);
        cgroups.remove(1);
        assert_eq!(folders(), 1, "it is kept");
        fresh(2);
        assert_eq!(folders(), 1, "and used again");
        let path = Path::new(cgroups.folder().file_name().unwrap()).join("1");
        assert_eq!(cgroups.key_of(&path), Some(2), "by another");
        assert!(!cgroups.is_populated(2).unwrap());
        cgroups.kill(2);
        cgroups.remove(2);
        fresh(3);
        assert_eq!(cgroups.folder_of(3), 3, "one that was killed is not used again");
        fs::create_dir(cgroups.folder().join("3/inner")).unwrap();
        cgroups.remove(3);
        fresh(4);
        assert_eq!(cgroups.folder_of(4), 4, "nor one that has others in it");
        for (key, setting, value) in [(4, "cgroup.freeze", "1"), (14, "cgroup.max.descendants", "0")] {
            fs::write(cgroups.folder().join(format!("{key}/{setting}")), value).unwrap();
            cgroups.remove(key);
            fresh(key + 10);
            assert_eq!(
                cgroups.folder_of(key + 10),
                key + 10,
                "nor one of which something was set: {setting}"
            );
        }
        fs::remove_dir(cgroups.folder().join("24")).unwrap();
        assert!(!cgroups.is_populated(24).unwrap(), "nobody is in one that is gone");
        cgroups.remove(24);
        fresh(34);
        assert_eq!(cgroups.folder_of(34), 34);
        cgroups.discard(34);
        assert!(cgroups.fresh(5, Use::Once).is_some());
        cgroups.remove(5);
        fresh(6);
        assert_eq!(cgroups.folder_of(6), 6, "nor one of a service");
        cgroups.leave();
    }
}
