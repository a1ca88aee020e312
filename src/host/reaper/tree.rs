//! The processes of a tree: who belongs to it, and how all of them are signalled.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::keeper_side::KeeperLink;
use super::{Killing, LONGEST_HALT, MARK, PAUSE_ROUNDS, Parent, Process, Token, Watcher};
use crate::host::cgroup::Cgroups;
use crate::host::{HostEvent, ProcessKey, marks};
use crate::sys::pidfd::{self, has_ended};
use crate::sys::proc;

impl Watcher {
    /// Whether nothing of a tree is left; what is found is pinned and watched.
    pub(super) fn is_empty(&mut self, key: u64) -> bool {
        let Some(process) = self.processes.get(&key) else {
            return true;
        };
        let in_group = match pidfd::signal_group(&process.pidfd, 0) {
            Ok(()) => true,
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => true,
            Err(_) => false,
        };
        if in_group {
            self.find_by_session(key);
        }
        self.find_by_cgroup(key);
        self.find_seen(key);
        !self.needs_rescan.contains(&key) && self.processes.get(&key).is_none_or(|p| p.remnants.is_empty())
    }

    fn cgroups_of(&self, key: u64) -> Option<Arc<Cgroups>> {
        self.processes.get(&key)?.home.cgroups().cloned()
    }

    /// Children of this process that its main thread has. Hosts make theirs on other threads, and
    /// the kernel gives those that lost their parent to the main one. Below a keeper: all of its
    /// children but us; it is given them in our place.
    pub(super) fn orphans(&mut self) -> Vec<u32> {
        let me = std::process::id();
        let above = self.above.as_ref().map_or(me, KeeperLink::pid);
        let mut found = self.children.of_main_thread(above);
        found.retain(|pid| *pid != me);
        found
    }

    /// Pins whom the kernel knows to be of a tree, where the tree has a cgroup.
    fn find_by_cgroup(&mut self, key: u64) {
        let Some(cgroups) = self.cgroups_of(key) else {
            return;
        };
        match cgroups.is_populated(key) {
            Ok(false) => return,
            Ok(true) => {}
            Err(_) => {
                self.needs_rescan.insert(key);
                return;
            }
        }
        self.pin_by_cgroup(key, |_| true);
        let over = |process: &Process| process.exit.is_some() && process.remnants.is_empty();
        if self.processes.get(&key).is_some_and(over) {
            // Somebody lives who was not seen: on the way out, or just made by one who is.
            self.needs_rescan.insert(key);
        }
    }

    /// Pins those in a tree's cgroup that are not its leader and fit.
    fn pin_by_cgroup(&mut self, key: u64, fits: impl Fn(&proc::Stat) -> bool) {
        let Some(cgroups) = self.cgroups_of(key) else {
            return;
        };
        let leader = self.processes.get(&key).filter(|p| p.exit.is_none()).map(|p| p.pid);
        for pid in cgroups.processes(key).into_iter().filter(|pid| Some(*pid) != leader) {
            // Asked again behind the look at it: the number may have been given away since the
            // list was read, and `pin` makes sure that it is still the one that was looked at.
            if let Some(stat) = proc::stat(pid)
                && fits(&stat)
                && proc::cgroup(pid).is_some_and(|path| cgroups.key_of(&path) == Some(key))
            {
                self.pin(key, &stat);
            }
        }
    }

    /// Looks through all processes for those of a tree's session or group. Only where the
    /// kernel said, or can't say, that there are some.
    pub(super) fn find_by_session(&mut self, key: u64) {
        let Some(process) = self.processes.get(&key) else {
            return;
        };
        let (pid, alive) = (process.pid, process.exit.is_none());
        for stat in proc::all() {
            let of_tree = stat.session == pid || stat.group == pid;
            if of_tree && !(alive && stat.pid == pid) {
                self.pin(key, &stat);
            }
        }
    }

    /// Takes over what was left to this process: reaps the dead, and gives the living to the
    /// tree they came from.
    pub(super) fn adopt(&mut self) {
        for pid in self.orphans() {
            if self.leaders.contains_key(&pid) {
                continue;
            }
            let Some(stat) = proc::stat(pid) else {
                continue;
            };
            let owner = self.owner(&stat);
            // What is a keeper's is reaped by it.
            let reaped = stat.state == b'Z'
                && (owner.is_some() || self.reap_all)
                && matches!(pidfd::reap_pid(pid), Ok(Some(_)));
            match owner {
                Some(key) if reaped => self.dead.push(key),
                Some(key) => self.pin(key, &stat),
                None => {}
            }
        }
    }

    /// The tree that a process came from.
    pub(super) fn owner(&self, stat: &proc::Stat) -> Option<u64> {
        let index = &self.index;
        let in_cgroup = || {
            let path = proc::cgroup(stat.pid)?;
            self.key_of(&path)
        };
        let by_limit = || index.of_limit(marks::mark(stat.pid)?);
        let marked = || index.of_variable(&proc::variable(stat.pid, MARK)?);
        // One that left the session and cleared its environment may still print to us.
        let by_output = || proc::output_pipes(stat.pid).find_map(|inode| index.of_pipe(inode));
        let found = index.of_session(stat.session, stat.group).or_else(|| index.of_pinned(stat.pid));
        found.or_else(in_cgroup).or_else(by_limit).or_else(marked).or_else(by_output)
    }

    /// The tree whose cgroup this is.
    fn key_of(&self, path: &Path) -> Option<u64> {
        let joined = self.above.iter().flat_map(KeeperLink::joined);
        self.cgroups.iter().chain(joined).find_map(|cgroups| {
            let key = cgroups.key_of(path)?;
            let of = self.processes.get(&key)?.home.cgroups()?;
            Arc::ptr_eq(of, cgroups).then_some(key)
        })
    }

    /// Whether the orphans of a tree come neither to us nor to our keeper, and the kernel does not say
    /// who is of it.
    pub(super) fn needs_marks(&self, key: u64) -> bool {
        self.processes
            .get(&key)
            .is_some_and(|process| process.parent == Parent::Dead && !process.home.knows_all())
    }

    /// Pins whoever carries the mark of such a tree, whoever its parent is: all processes of the machine are
    /// looked through, once for all that ask. `false`: that was done a moment ago, and is to be asked for
    /// again a moment later, so that it never takes more than a part of this thread's time.
    pub(super) fn find_marked(&mut self) -> bool {
        if let Some((at, took)) = self.marked_looked
            && at.elapsed() < took * 2
        {
            return false;
        }
        let begun = Instant::now();
        for stat in proc::all() {
            if self.leaders.contains_key(&stat.pid) || self.index.of_pinned(stat.pid).is_some() {
                continue;
            }
            if let Some(key) = self.marked_as(&stat)
                && self.needs_marks(key)
            {
                self.pin(key, &stat);
            }
        }
        self.marked_looked = Some((Instant::now(), begun.elapsed()));
        true
    }

    /// Whether a tree that forked while it was killed is not gone after all. The kernel's list of children is
    /// sure only as long as none of them ends, and numbers begin anew at some point: so all processes are looked
    /// through before such a one is said to be gone, and once more behind that.
    pub(super) fn has_forked_away(&mut self, key: u64) -> bool {
        let has_forked = |process: &Process| {
            !process.home.knows_all() && process.killing.is_some_and(|it| it.came.is_some())
        };
        if !self.processes.get(&key).is_some_and(has_forked) {
            return false;
        }
        for _ in 0..2 {
            for stat in proc::all() {
                if stat.state != b'Z'
                    && !self.leaders.contains_key(&stat.pid)
                    && self.index.of_pinned(stat.pid).is_none()
                    && self.marked_as(&stat) == Some(key)
                {
                    self.pin(key, &stat);
                }
            }
            if self.processes.get(&key).is_some_and(|process| !process.remnants.is_empty()) {
                return true;
            }
        }
        self.needs_rescan.contains(&key)
    }

    /// The tree of which a process is by its session, or by its marks.
    fn marked_as(&self, stat: &proc::Stat) -> Option<u64> {
        let index = &self.index;
        let marked = || index.of_limit(marks::mark(stat.pid)?);
        let named = || index.of_variable(&proc::variable(stat.pid, MARK)?);
        index.of_session(stat.session, stat.group).or_else(marked).or_else(named)
    }

    /// Holds on to one of a tree's other processes.
    pub(super) fn pin(&mut self, key: u64, stat: &proc::Stat) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        if process.remnants.contains_key(&stat.pid) {
            return;
        }
        let fd = match pidfd::open(stat.pid) {
            Ok(fd) => fd,
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return,
            Err(_) => {
                self.needs_rescan.insert(key);
                return;
            }
        };
        // A zombie may have threads that still run; only its pidfd knows.
        if stat.state == b'Z' && has_ended(fd.as_fd()) {
            return;
        }
        // Between the look and the open it may have died and its number been given away.
        if proc::stat(stat.pid).map(|s| s.started) != Some(stat.started) {
            return;
        }
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Token::Remnant(key).pack());
        if let Err(error) = self.epoll.add(&fd, event) {
            tracing::warn!(%error, pid = stat.pid, "can't watch a process");
            self.needs_rescan.insert(key);
        } else {
            process.remnants.insert(stat.pid, fd);
            if let Some(killing) = &mut process.killing {
                killing.came = Some(Instant::now());
            }
            self.index.pin(key, stat.pid);
        }
    }

    /// Pins every process of a tree that is not in its leader's group.
    pub(super) fn find_tree(&mut self, key: u64) {
        self.adopt();
        if self.needs_marks(key) {
            // Where that was done just now, whoever is missed is found when the others have ended.
            self.find_marked();
        }
        self.find_seen(key);
        let Some(process) = self.processes.get(&key) else {
            return;
        };
        let group = process.pid;
        let leader = (!has_ended(process.pidfd.as_fd())).then_some(process.pid);
        let roots = process.remnants.keys().copied().chain(leader);
        // Also where there is a cgroup: somebody may have moved them to another.
        let mut found: Vec<u32> = roots.flat_map(proc::descendants).collect();
        found.sort_unstable();
        found.dedup();
        for pid in found {
            // The group is signalled as one, by a descriptor.
            if let Some(stat) = proc::stat(pid)
                && stat.group != group
            {
                self.pin(key, &stat);
            }
        }
        self.pin_by_cgroup(key, |stat| stat.group != group);
    }

    pub(super) fn signal_tree(&mut self, key: u64, signal: i32) {
        self.find_tree(key);
        self.signal_found(key, signal);
    }

    /// Signals all of a tree that was found just before.
    pub(super) fn signal_found(&self, key: u64, signal: i32) {
        let Some(process) = self.processes.get(&key) else {
            return;
        };
        // Each gets it once: to some programs a second one means that it is urgent.
        let outside: Vec<&OwnedFd> = process
            .remnants
            .iter()
            .filter(|(pid, _)| proc::stat(**pid).is_some_and(|stat| stat.group != process.pid))
            .map(|(_, fd)| fd)
            .collect();
        let all = !self.signal_group(process, signal);
        for fd in process.remnants.values().filter(|_| all).chain(outside.iter().copied().filter(|_| !all)) {
            let _ = pidfd::signal(fd, signal);
        }
    }

    /// Halts a tree. What was forked while that was going on is found by looking again, until
    /// nothing new is there: who stands still makes no more.
    pub(super) fn pause_tree(&mut self, key: u64) {
        self.halt(key);
        if let Some(process) = self.processes.get(&key) {
            let news = Arc::clone(&process.news);
            news(HostEvent::Paused { key: ProcessKey(key) });
        }
    }

    fn halt(&mut self, key: u64) {
        let mut known: Option<Vec<u32>> = None;
        let begun = Instant::now();
        for _ in 0..PAUSE_ROUNDS {
            if begun.elapsed() > LONGEST_HALT {
                // Others wait for this thread, too.
                break;
            }
            if self.needs_marks(key) {
                // Each round is to see who came since the last one, however long a look takes.
                self.marked_looked = None;
            }
            self.signal_tree(key, nix::libc::SIGSTOP);
            let Some(process) = self.processes.get(&key) else {
                return;
            };
            let mut now: Vec<u32> = process.remnants.keys().copied().collect();
            now.extend(proc::descendants(process.pid));
            now.sort_unstable();
            now.dedup();
            if known.as_ref() == Some(&now) {
                break;
            }
            known = Some(now);
        }
    }

    /// Signals the leader's group; where the kernel can't do that by descriptor, the group
    /// by number while the leader is not reaped (so its number is not given away), and else
    /// nobody: those left are pinned one by one. Returns whether the group was reached.
    pub(super) fn signal_group(&self, process: &Process, signal: i32) -> bool {
        match pidfd::signal_group(&process.pidfd, signal) {
            // A keeper may have reaped it before we hear of it.
            Err(error)
                if error.kind() == std::io::ErrorKind::Unsupported && !has_ended(process.pidfd.as_fd()) =>
            {
                let group = nix::unistd::Pid::from_raw(process.pid.cast_signed());
                nix::sys::signal::Signal::try_from(signal)
                    .is_ok_and(|signal| nix::sys::signal::killpg(group, signal).is_ok())
            }
            Ok(()) => true,
            Err(_) => false,
        }
    }

    pub(super) fn kill_tree(&mut self, key: u64) {
        self.find_tree(key);
        // Who is killed one by one has time to fork away; who stands still has not.
        let alone =
            |process: &Process| process.remnants.is_empty() && proc::descendants(process.pid).is_empty();
        if self.processes.get(&key).is_some_and(|process| !process.home.knows_all() && !alone(process)) {
            self.halt(key);
        }
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        process.killing.get_or_insert(Killing { since: Instant::now(), came: None, told: false });
        // All of it at once, before anything can fork again; what is left is found one by one.
        if let Some(cgroups) = self.cgroups_of(key) {
            cgroups.kill(key);
        }
        let process = &self.processes[&key];
        self.signal_group(process, nix::libc::SIGKILL);
        for fd in process.remnants.values() {
            let _ = pidfd::signal(fd, nix::libc::SIGKILL);
        }
    }
}
