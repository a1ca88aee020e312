//! Moves trees that were spawned without a cgroup, in a burst of starts, into cgroups of their own.
//!
//! To move a process stops every fork of the machine for a moment. So processes are moved one by
//! one, on the thread that removes directories, while no service starts. Processes that the leader
//! forked by then are searched for and moved until no new one turns up; what a moved process forks
//! starts out inside. Only processes in the cgroup of this process are moved: any other was put
//! where it is on purpose.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::host::marks;
use crate::sys::{pidfd, proc};

/// A tree that waits for a cgroup.
pub(crate) struct WithoutCgroup {
    pub(crate) key: u64,
    /// The pid of its leader.
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    /// The mark by which processes that left the leader are known.
    pub(crate) mark: u64,
}

/// The most searches for new processes. A tree that forks faster is known by its marks.
const ROUNDS: usize = 8;

/// Moves trees into directories of their own. Returns the keys of those that have one now.
pub(super) fn take_in(dir: &OwnedFd, root: &Path, trees: &[WithoutCgroup]) -> Vec<u64> {
    let Some(outside) = root.parent() else {
        return Vec::new();
    };
    // The cgroup of this process as the kernel names it, from the root of the hierarchy.
    let Some(own) = proc::cgroup(std::process::id()) else {
        return Vec::new();
    };
    let mut homes: HashMap<u64, Membership> = HashMap::new();
    for tree in trees {
        let name = tree.key.to_string();
        if nix::sys::stat::mkdirat(dir, name.as_str(), Mode::from_bits_truncate(0o755)).is_ok() {
            let inside = root.join(&name);
            homes.insert(tree.key, Membership { inside, takes: true });
        }
    }
    let mut seen: HashSet<(u32, u64)> = HashSet::new();
    for _ in 0..ROUNDS {
        let all = proc::all();
        let mut news = false;
        for (tree, stat) in members(trees, &all) {
            let Some(home) = homes.get_mut(&tree.key).filter(|home| home.takes) else {
                continue;
            };
            if !seen.insert((stat.pid, stat.started)) {
                continue;
            }
            news = true;
            let is_leader = stat.pid == tree.pid;
            let is_in = proc::cgroup(stat.pid).is_some_and(|at| at == own)
                && moved(&stat, is_leader.then_some(&tree.pidfd), &home.inside, outside);
            // A tree whose leader was not moved gets no cgroup.
            home.takes = is_in || !is_leader;
        }
        if !news {
            break;
        }
    }
    let mut taken = Vec::new();
    for tree in trees {
        match homes.get(&tree.key) {
            Some(home) if home.takes && seen.iter().any(|(pid, _)| *pid == tree.pid) => taken.push(tree.key),
            Some(home) => drop(std::fs::remove_dir(&home.inside)),
            None => {}
        }
    }
    taken
}

struct Membership {
    inside: PathBuf,
    /// Whether the leader is inside, or may still be moved.
    takes: bool,
}

/// The living processes with the trees that they belong to: by session or group, by a parent, or by
/// the mark.
fn members<'a>(trees: &'a [WithoutCgroup], all: &[proc::Stat]) -> Vec<(&'a WithoutCgroup, proc::Stat)> {
    let leaders: HashMap<u32, &WithoutCgroup> = trees.iter().map(|tree| (tree.pid, tree)).collect();
    let marks: HashMap<u64, &WithoutCgroup> = trees.iter().map(|tree| (tree.mark, tree)).collect();
    let parents: HashMap<u32, u32> = all.iter().map(|stat| (stat.pid, stat.parent)).collect();
    let by_parent = |stat: &proc::Stat| {
        // A parent's pid may be stale and lead in a circle; no tree is this deep.
        let line = std::iter::successors(Some(stat.pid), |pid| parents.get(pid).copied()).take(64);
        line.into_iter().find_map(|pid| leaders.get(&pid))
    };
    let of = |stat: &proc::Stat| {
        let direct = leaders.get(&stat.session).or_else(|| leaders.get(&stat.group));
        direct.or_else(|| by_parent(stat)).or_else(|| marks.get(&marks::mark(stat.pid)?)).copied()
    };
    let mut found: Vec<_> = all.iter().filter_map(|stat| Some((of(stat)?, *stat))).collect();
    // Parents come first, so that what they fork from then on starts out inside.
    found.sort_by_key(|(_, stat)| stat.started);
    found
}

/// Moves one process and no other: if its pid was reused in between, the process that has it now is
/// moved back.
fn moved(stat: &proc::Stat, leader: Option<&OwnedFd>, inside: &Path, outside: &Path) -> bool {
    let is_it = || proc::stat(stat.pid).is_some_and(|now| now.started == stat.started);
    let Ok(fd) = leader.map_or_else(|| pidfd::open(stat.pid), OwnedFd::try_clone) else {
        return false;
    };
    if pidfd::has_ended(fd.as_fd()) || !is_it() || !put(stat.pid, inside) {
        return false;
    }
    if pidfd::has_ended(fd.as_fd()) && !is_it() {
        let procs = std::fs::read_to_string(inside.join("cgroup.procs")).unwrap_or_default();
        if procs.lines().any(|line| line.parse() == Ok(stat.pid)) {
            put(stat.pid, outside);
        }
        return false;
    }
    true
}

fn put(pid: u32, folder: &Path) -> bool {
    let path = folder.join("cgroup.procs");
    let file = nix::fcntl::open(&path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty());
    file.is_ok_and(|file| nix::unistd::write(file, pid.to_string().as_bytes()).is_ok())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    use super::super::Cgroups;
    use super::*;

    fn shell(text: &str) -> Child {
        Command::new("sh").args(["-c", text]).spawn().unwrap()
    }

    fn homeless(key: u64, child: &Child) -> WithoutCgroup {
        WithoutCgroup { key, pid: child.id(), pidfd: pidfd::open(child.id()).unwrap(), mark: 1 << 62 | key }
    }

    /// Spins instead of sleeping, because the awaited change is an event of another process.
    fn eventually(what: &str, mut is: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !is() {
            assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_tree_is_moved_with_all_its_forks_and_with_nobody_else() {
        let Some(cgroups) = Cgroups::make(0x2fff_fff2) else {
            // No cgroup can be made here, so there is nothing to test.
            return;
        };
        let mut family = shell("sleep 1000 & setsid sleep 1000 & wait");
        let mut other = shell("exec sleep 1000");
        let mut gone = shell("exit 0");
        eventually("it has two children", || proc::children(family.id()).len() == 2);
        let gone_fd = pidfd::open(gone.id()).unwrap();
        let of_gone = WithoutCgroup { key: 9, pid: gone.id(), pidfd: gone_fd, mark: 1 << 62 | 9 };
        gone.wait().unwrap();
        let dir = cgroups.dir.try_clone().unwrap();
        let taken = take_in(&dir, cgroups.folder(), &[homeless(7, &family), of_gone]);
        assert_eq!(taken, [7], "one of them is gone");
        let mut inside = cgroups.processes(7);
        let mut all = proc::descendants(family.id());
        all.push(family.id());
        inside.sort_unstable();
        all.sort_unstable();
        assert_eq!(inside, all);
        assert!(!cgroups.folder().join("9").exists());
        let outside = proc::cgroup(std::process::id());
        assert_eq!(proc::cgroup(other.id()), outside);
        // Processes that are in another cgroup stay there.
        assert_eq!(take_in(&dir, cgroups.folder(), &[homeless(8, &family)]), [0; 0]);
        assert!(!cgroups.folder().join("8").exists());
        cgroups.kill(7);
        family.wait().unwrap();
        eventually("all of it is gone", || !cgroups.is_populated(7).unwrap());
        other.kill().unwrap();
        other.wait().unwrap();
        cgroups.leave();
    }
}
