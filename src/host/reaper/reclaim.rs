//! Finds a process again that nobody has kept, because its keeper and its daemon were killed
//! together.
//!
//! Boot, pid and start time name one process for ever. The process is no longer a child of regrow,
//! but its output is not lost: it holds its own pipes open for reading, and they are opened again
//! through it.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use super::note::KeeperNote;
use crate::host::keeper::client::Kept;
use crate::host::marks::{self, Marks};
use crate::sys::{clock, pidfd, proc};

/// The facts by which a process is found again.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Life {
    boot: String,
    pid: u32,
    /// The start time in ticks since boot.
    start: u64,
    key: u64,
    about: String,
    /// The inode numbers of its output pipes; 0 stands for none.
    pipes: [u64; 2],
}

/// The text to record for a process that has just been spawned.
pub(super) fn life_of(key: u64, pid: u32, about: &str, pipes: [Option<BorrowedFd<'_>>; 2]) -> Option<String> {
    let inode = |pipe: Option<BorrowedFd<'_>>| {
        pipe.and_then(|pipe| nix::sys::stat::fstat(pipe).ok()).map_or(0, |stat| stat.st_ino)
    };
    let life = Life {
        boot: clock::boot()?,
        pid,
        start: proc::stat(pid)?.started,
        key,
        about: about.to_owned(),
        pipes: pipes.map(inode),
    };
    serde_json::to_string(&life).ok()
}

/// The outcome of the search for a process.
pub(crate) enum Reclaimed {
    /// The process lives.
    Alive(Kept),
    /// The process is gone; the rest of its tree was ended.
    Gone { key: u64 },
    /// The record is of another boot, or can't be read.
    Nobody,
}

/// Looks for a process by the text that was recorded for it.
pub(crate) fn reclaim(life: &str) -> Reclaimed {
    let Ok(life) = serde_json::from_str::<Life>(life) else {
        return Reclaimed::Nobody;
    };
    if clock::boot().as_deref() != Some(&life.boot) {
        return Reclaimed::Nobody;
    }
    let is_it = || proc::stat(life.pid).is_some_and(|stat| stat.started == life.start && stat.state != b'Z');
    if is_it()
        && let Ok(pidfd) = pidfd::open(life.pid)
        // Checked again after the open: the pid may have been reused in between.
        && is_it()
    {
        let pipes = life.pipes.map(|inode| reopen(life.pid, inode));
        let Life { key, pid, about, .. } = life;
        return Reclaimed::Alive(Kept { key, pid, about, exit: None, pidfd, pipes, foreign: true });
    }
    if let Ok(about) = serde_json::from_str::<KeeperNote>(&life.about) {
        end_remains(life.key, &about);
    }
    Reclaimed::Gone { key: life.key }
}

/// Looks for processes of which only the order to spawn them was recorded: each by its mark, in one
/// scan of all processes. `None` where the leader does not live.
pub(crate) fn reclaim_marked(noted: &[(u64, &str)]) -> Vec<Option<Kept>> {
    let mut leaders: HashMap<u64, proc::Stat> = HashMap::new();
    for stat in proc::all() {
        // A leader leads its own session: it was spawned that way.
        if stat.session == stat.pid
            && stat.state != b'Z'
            && let Some(limit) = marks::mark(stat.pid)
        {
            let first = leaders.entry(limit).or_insert(stat);
            if stat.started < first.started {
                *first = stat;
            }
        }
    }
    let find = |(key, about): &(u64, &str)| {
        let known: KeeperNote = serde_json::from_str(about).ok()?;
        let limit = Marks::of(known.run, *key).limit;
        let stat = leaders.get(&limit)?;
        let pidfd = pidfd::open(stat.pid).ok()?;
        // Checked again after the open: the pid may have been reused in between.
        let is_it = proc::stat(stat.pid).is_some_and(|now| now.started == stat.started)
            && marks::mark(stat.pid) == Some(limit);
        is_it.then(|| Kept {
            key: *key,
            pid: stat.pid,
            about: (*about).to_owned(),
            exit: None,
            pidfd,
            pipes: [1, 2].map(|fd| own_pipe(stat.pid, fd)),
            foreign: true,
        })
    };
    noted.iter().map(find).collect()
}

/// The pipe that a process has as its output, if regrow gave it that pipe: only such pipes are open
/// for reading and writing.
fn own_pipe(pid: u32, fd: u32) -> Option<OwnedFd> {
    let target = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
    let inode = target.to_str()?.strip_prefix("pipe:[")?.strip_suffix(']')?.parse().ok()?;
    let about = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).ok()?;
    let flags = about.lines().find_map(|line| line.strip_prefix("flags:"))?.trim();
    let flags = i32::from_str_radix(flags, 8).ok()?;
    let both_ways = flags & nix::libc::O_ACCMODE == nix::libc::O_RDWR;
    both_ways.then(|| reopen(pid, inode)).flatten()
}

/// Opens a pipe for reading through a process that holds an end of it.
fn reopen(pid: u32, inode: u64) -> Option<OwnedFd> {
    let folder = format!("/proc/{pid}/fd");
    let name = format!("pipe:[{inode}]");
    let is_it =
        |path: &PathBuf| std::fs::read_link(path).is_ok_and(|target| target.as_os_str() == name.as_str());
    let usual = [1, 2].into_iter().map(|fd| PathBuf::from(format!("{folder}/{fd}"))).find(is_it);
    let path = usual.or_else(|| {
        let others = std::fs::read_dir(&folder).ok()?;
        others.filter_map(|entry| Some(entry.ok()?.path())).find(is_it)
    })?;
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open(&path, flags, Mode::empty()).ok()?;
    // The process may have closed the pipe and opened another file under that number.
    nix::sys::stat::fstat(&fd).is_ok_and(|stat| stat.st_ino == inode).then_some(fd)
}

/// Ends the rest of a tree whose leader died while no daemon ran.
fn end_remains(key: u64, about: &KeeperNote) {
    if let Some(folder) = &about.cgroups {
        crate::host::cgroup::end_one(&folder.join(key.to_string()));
    }
    let Marks { limit, .. } = Marks::of(about.run, key);
    for stat in proc::all() {
        let is_of_it = || marks::mark(stat.pid) == Some(limit);
        if is_of_it()
            && let Ok(fd) = pidfd::open(stat.pid)
            && is_of_it()
        {
            let _ = pidfd::signal(&fd, nix::libc::SIGKILL);
        }
    }
}
