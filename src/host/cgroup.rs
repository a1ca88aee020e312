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
//! What an owner that was killed left behind is ended by its keeper ([`end_of`]), or by the next
//! run in the same place ([`sweep`]).

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::{FileStat, Mode};

use super::marks::run_of;
use crate::host::marks;
use crate::sys::{clone3, pidfd, proc};

pub(crate) use moving::WithoutCgroup;

mod moving;

/// The cgroups of one run.
pub(crate) struct Cgroups {
    root: PathBuf,
    dir: OwnedFd,
    /// Becomes false when the kernel refuses to spawn processes in them.
    usable: AtomicBool,
    /// The work that a thread does when it has time.
    jobs: mpsc::Sender<Job>,
    /// The cgroups that several trees use, one after the other.
    again: Mutex<Again>,
}

/// Work that need not be done at once.
enum Job {
    /// Removes the directory of a tree that is gone.
    Remove(u64),
    /// Moves trees into directories of their own, then calls the function with the keys of those
    /// that have one.
    TakeIn(Vec<WithoutCgroup>, Box<dyn FnOnce(Vec<u64>) + Send>),
}

/// Cgroups for reuse. To make and remove one costs a short command an eighth of its time, so a
/// cgroup that a command left as it was is given to the next.
#[derive(Default)]
struct Again {
    /// The seats that trees have, by the tree's key. Every other tree has a directory named by its
    /// own key.
    of: HashMap<u64, Arc<Seat>>,
    /// The seats that no tree has.
    spare: Vec<Arc<Seat>>,
}

/// A cgroup's directory that passes from tree to tree, held open.
struct Seat {
    /// The key of the first tree, which names the directory.
    folder: u64,
    dir: Arc<OwnedFd>,
    /// The owner, the group and the mode of the directory.
    rights: (u32, u32, u32),
    /// The open `cgroup.events` file.
    events: fs::File,
    /// The files of [`SETTINGS`], each with its content when the cgroup was made.
    settings: Vec<(fs::File, Vec<u8>)>,
    /// Whether the cgroup was killed through once: a process spawned in it later would be killed,
    /// too.
    killed: AtomicBool,
}

/// The settings that a command may change in its own cgroup, if it has the rights. The next command
/// would be frozen, for instance.
const SETTINGS: [&str; 5] =
    ["cgroup.freeze", "cgroup.type", "cgroup.subtree_control", "cgroup.max.depth", "cgroup.max.descendants"];

impl Seat {
    /// Whether any process is in the cgroup.
    fn is_populated(&self) -> io::Result<bool> {
        let mut text = [0; 128];
        match self.events.read_at(&mut text, 0) {
            Ok(length) => Ok(is_populated(&text[..length])),
            // Another process removed the cgroup, which the kernel allows only while it is empty.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the cgroup exists, is empty, and nothing was made or set in it.
    fn is_as_new(&self) -> bool {
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

fn rights(folder: &FileStat) -> (u32, u32, u32) {
    (folder.st_uid, folder.st_gid, folder.st_mode)
}

/// Whether the text of `cgroup.events` says that the cgroup has processes.
fn is_populated(events: &[u8]) -> bool {
    !String::from_utf8_lossy(events).contains("populated 0")
}

/// The most spare cgroups that are held open, with seven descriptors each.
const SPARE: usize = 32;

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

    fn again(&self) -> MutexGuard<'_, Again> {
        self.again.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key that names the directory of a tree.
    fn folder_of(&self, key: u64) -> u64 {
        self.seat(key).map_or(key, |seat| seat.folder)
    }

    fn seat(&self, key: u64) -> Option<Arc<Seat>> {
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

    fn spare(&self) -> Option<Arc<Seat>> {
        self.again().spare.pop()
    }

    /// Holds a cgroup open that was just made. `None` if that fails, for want of descriptors for
    /// instance.
    fn seat_of(&self, folder: u64, dir: &Arc<OwnedFd>) -> Option<Seat> {
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
        Some(Seat { folder, dir, rights, events, settings, killed })
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

/// Ends all processes of a run whose owner is dead.
pub(crate) fn end_of(owner: u32, started: u64) {
    let Some(space) = pid_namespace() else {
        return;
    };
    let prefix = format!("regrow-{space}-{owner}-{started}-");
    for folder in own_cgroup().map(|own| folders_in(&own)).unwrap_or_default() {
        if folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)) {
            kill_and_remove(&folder);
        }
    }
}

/// Ends what dead owners of this pid namespace left behind in this place. Runs of other namespaces
/// see their own processes, and this process does not.
pub(crate) fn sweep() {
    let space = pid_namespace();
    let own = own_cgroup();
    own.iter().for_each(|own| sweep_lasting(own, space));
    for folder in own.map(|own| folders_in(&own)).unwrap_or_default() {
        // An owner that lives holds its directory.
        if let Some((of, run)) = run_named(&folder)
            && Some(of) == space
            && let Some(_held) = hold(&folder)
        {
            tracing::warn!(cgroup = %folder.display(), "ending what a run left behind");
            // The directory goes last: as long as it exists, another run can continue where this
            // one ends.
            end_marked(run);
            kill_and_remove(&folder);
        }
    }
}

/// Removes cgroups of daemons in which no process lives and that no daemon holds, for instance
/// because their state directory is gone.
fn sweep_lasting(own: &Path, space: Option<u64>) {
    let Some(prefix) = space.map(|space| format!("regrowd-{space}-")) else {
        return;
    };
    for folder in folders_in(own) {
        let is_one = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        let lives = || fs::read(folder.join("cgroup.events")).map_or(true, |events| is_populated(&events));
        if is_one
            && !lives()
            // A daemon shares the lock with the daemons before and after it.
            && let Some(_held) = hold(&folder)
            && !lives()
        {
            remove_all(&folder);
        }
    }
}

/// Ends every process in the cgroup of one tree, and removes it.
pub(crate) fn end_one(folder: &Path) {
    if folder.is_dir() {
        kill_and_remove(folder);
    }
}

/// The pid namespace and the run's number that a directory is named after. `None`: the name is not
/// a run's, and the directory is not ours to end.
fn run_named(folder: &Path) -> Option<(u64, u32)> {
    let mut parts = folder.file_name()?.to_str()?.strip_prefix("regrow-")?.split('-');
    let space = parts.next()?.parse().ok()?;
    for _ in ["owner", "start"] {
        parts.next()?.parse::<u64>().ok()?;
    }
    let run = u32::from_str_radix(parts.next()?, 16).ok()?;
    parts.next().is_none().then_some((space, run))
}

/// Ends every process that carries a dead run's number in a limit, because not all had a cgroup.
fn end_marked(run: u32) {
    end_marked_but(run, &HashSet::new());
}

/// Ends every process that carries a run's number in a limit, except those of the known trees.
pub(crate) fn end_marked_but(run: u32, known: &HashSet<u64>) {
    let is_of_run = |pid: u32| {
        marks::mark(pid)
            .is_some_and(|mark| run_of(mark) == Some(run) && !known.contains(&(mark & 0xffff_ffff)))
    };
    // Processes that they fork meanwhile carry the number, too.
    for _ in 0..50 {
        let found: Vec<u32> = proc::all().iter().map(|stat| stat.pid).filter(|pid| is_of_run(*pid)).collect();
        if found.is_empty() {
            return;
        }
        for pid in found {
            // Checked again after the open: the pid may have been reused since.
            if let Ok(fd) = pidfd::open(pid)
                && is_of_run(pid)
            {
                let _ = pidfd::signal(&fd, nix::libc::SIGKILL);
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Makes the directory of a run and locks it. A directory that nobody holds is taken for a dead
/// owner's, even between its making and the lock; then it is made again.
fn made_and_held(root: &Path) -> Option<Flock<fs::File>> {
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
fn made_and_shared(root: &Path) -> Option<Flock<fs::File>> {
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
fn hold(folder: &Path) -> Option<Flock<fs::File>> {
    let file = fs::File::open(folder).ok()?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()
}

fn kill_and_remove(root: &Path) {
    let killed = fs::write(root.join("cgroup.kill"), "1");
    if killed.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
        // The cgroup belongs to another user.
        return;
    }
    // Killed processes are gone within moments, unless they are stuck in the kernel.
    for _ in 0..200 {
        remove_all(root);
        if !root.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// The name of a run's cgroup, which is unique by its owner's pid namespace, pid and start time.
fn name_of(pid: u32) -> Option<String> {
    Some(format!("regrow-{}-{pid}-{}", pid_namespace()?, proc::stat(pid)?.started))
}

fn pid_namespace() -> Option<u64> {
    fs::metadata("/proc/self/ns/pid").ok().map(|space| space.ino())
}

/// The directory of this process's own cgroup. `None` where the hierarchy is not mounted.
fn own_cgroup() -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| below_mount(line, path))
}

/// The path of a cgroup in the file system, if this line of mountinfo (proc(5)) is the mount that
/// shows it.
fn below_mount(line: &str, path: &str) -> Option<PathBuf> {
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

fn folders_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()).collect()
}

/// Removes a cgroup and the cgroups below it, as far as they are empty.
fn remove_all(folder: &Path) {
    for inner in folders_in(folder) {
        remove_all(&inner);
    }
    let _ = fs::remove_dir(folder);
}

fn open_dir(at: impl std::os::fd::AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::openat(at, path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_runs_are_ever_swept() {
        let run = |name: &str| run_named(&Path::new("/sys/fs/cgroup").join(name));
        assert_eq!(run("regrow-4026531836-4711-99-1f"), Some((4_026_531_836, 0x1f)));
        for other in [
            "regrow-web.service",
            "regrow-1-2-3",
            "regrow-1-2-3-4.slice",
            "regrow-1-2-3-4-5",
            "regrow-a-2-3-4",
            "system.slice",
        ] {
            assert_eq!(run(other), None, "{other}");
        }
    }

    #[test]
    fn what_a_daemon_has_left_is_removed_when_nobody_has_it() {
        let (Some(own), space) = (own_cgroup(), pid_namespace()) else {
            return;
        };
        let Some(cgroups) = Cgroups::make_lasting(0x2fff_fff3) else {
            // No cgroup can be made here, so there is nothing to test.
            return;
        };
        let folder = cgroups.folder().to_owned();
        assert!(cgroups.fresh(1, Use::Once).is_some());
        let next = Cgroups::make_lasting(0x2fff_fff3).unwrap();
        sweep_lasting(&own, space);
        assert!(folder.join("1").exists(), "two have it");
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(folder.join("1/cgroup.procs"), child.id().to_string()).unwrap();
        drop((cgroups, next));
        // The threads that hold the lock end a moment after their cgroups.
        let begun = std::time::Instant::now();
        while hold(&folder).is_none() {
            assert!(begun.elapsed() < std::time::Duration::from_secs(30), "nobody has it");
            std::thread::yield_now();
        }
        sweep_lasting(&own, space);
        assert!(folder.join("1").exists(), "somebody lives there");
        child.kill().unwrap();
        child.wait().unwrap();
        while folder.exists() {
            assert!(begun.elapsed() < std::time::Duration::from_secs(30), "it is removed");
            sweep_lasting(&own, space);
        }
    }

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

    #[test]
    fn a_folder_goes_on_to_the_next_tree_unless_it_was_killed_or_made_something_else() {
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
