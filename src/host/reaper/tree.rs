//! The processes of a tree: which belong to it, and how all of them are signalled.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::keeper_side::KeeperLink;
use super::{Killing, LONGEST_HALT, MARK, PAUSE_ROUNDS, Parent, Process, Reaper, Token};
use crate::host::cgroup::Cgroups;
use crate::host::{HostEvent, ProcessKey, marks};
use crate::sys::pidfd::{self, has_ended};
use crate::sys::proc;

impl Reaper {
    /// Whether nothing of a tree is left; processes that are found are pinned and watched.
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
        !self.housing.needs_rescan.contains(&key)
            && self.processes.get(&key).is_none_or(|p| p.remnants.is_empty())
    }

    fn cgroups_of(&self, key: u64) -> Option<Arc<Cgroups>> {
        self.processes.get(&key)?.membership.cgroups().cloned()
    }

    /// The orphans that were reparented to this process, which are children of its main thread:
    /// hosts spawn on other threads, and the kernel gives orphans to the main one. Below a keeper,
    /// all children of the keeper except this process.
    pub(super) fn orphans(&mut self) -> Vec<u32> {
        let me = std::process::id();
        let above = self.above.as_ref().map_or(me, KeeperLink::pid);
        let mut found = self.children.of.of_main_thread(above);
        found.retain(|pid| *pid != me);
        found
    }

    /// Pins the processes that the kernel knows to be of a tree, if the tree has a cgroup.
    fn find_by_cgroup(&mut self, key: u64) {
        let Some(cgroups) = self.cgroups_of(key) else {
            return;
        };
        match cgroups.is_populated(key) {
            Ok(false) => return,
            Ok(true) => {}
            Err(_) => {
                self.housing.needs_rescan.insert(key);
                return;
            }
        }
        self.pin_by_cgroup(key, |_| true);
        let over = |process: &Process| process.exit.is_some() && process.remnants.is_empty();
        if self.processes.get(&key).is_some_and(over) {
            // A process lives that was not seen: one that is ending, or that an ending one just
            // forked.
            self.housing.needs_rescan.insert(key);
        }
    }

    /// Pins the processes in a tree's cgroup that fit, except its leader.
    fn pin_by_cgroup(&mut self, key: u64, fits: impl Fn(&proc::Stat) -> bool) {
        let Some(cgroups) = self.cgroups_of(key) else {
            return;
        };
        let leader = self.processes.get(&key).filter(|p| p.exit.is_none()).map(|p| p.pid);
        for pid in cgroups.processes(key).into_iter().filter(|pid| Some(*pid) != leader) {
            // Checked again after the look at the process: its pid may have been reused since the
            // list was read. `pin` makes sure that the process is still the one looked at.
            if let Some(stat) = proc::stat(pid)
                && fits(&stat)
                && proc::cgroup(pid).is_some_and(|path| cgroups.key_of(&path) == Some(key))
            {
                self.pin(key, &stat);
            }
        }
    }

    /// Searches all processes for those of a tree's session or group. Only where the kernel said
    /// that there are some, or can't say.
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

    /// Takes over the orphans that were reparented to this process: reaps the dead, and pins the
    /// living to the tree that they came from.
    pub(super) fn adopt(&mut self) {
        for pid in self.orphans() {
            if self.known.leaders.contains_key(&pid) {
                continue;
            }
            let Some(stat) = proc::stat(pid) else {
                continue;
            };
            let owner = self.owner(&stat);
            // The keeper's children are reaped by the keeper.
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

    /// The tree that a process came from; `None` if it is of no known tree.
    pub(super) fn owner(&self, stat: &proc::Stat) -> Option<u64> {
        let index = &self.known.index;
        let in_cgroup = || {
            let path = proc::cgroup(stat.pid)?;
            self.key_of(&path)
        };
        let by_limit = || index.of_limit(marks::mark(stat.pid)?);
        let marked = || index.of_variable(&proc::variable(stat.pid, MARK)?);
        // A process that left the session and cleared its environment may still print to our pipe.
        let by_output = || proc::output_pipes(stat.pid).find_map(|inode| index.of_pipe(inode));
        let found = index.of_session(stat.session, stat.group).or_else(|| index.of_pinned(stat.pid));
        found.or_else(in_cgroup).or_else(by_limit).or_else(marked).or_else(by_output)
    }

    /// The tree that has this cgroup.
    fn key_of(&self, path: &Path) -> Option<u64> {
        let joined = self.above.iter().flat_map(KeeperLink::joined);
        self.cgroups.iter().chain(joined).find_map(|cgroups| {
            let key = cgroups.key_of(path)?;
            let of = self.processes.get(&key)?.membership.cgroups()?;
            Arc::ptr_eq(of, cgroups).then_some(key)
        })
    }

    /// Whether the orphans of a tree are reparented neither to this process nor to its keeper, and
    /// the kernel does not tell its members either.
    pub(super) fn needs_marks(&self, key: u64) -> bool {
        self.processes
            .get(&key)
            .is_some_and(|process| process.parent == Parent::Dead && !process.membership.knows_all())
    }

    /// Pins every process that carries the mark of such a tree, whatever its parent. One scan of
    /// all processes serves all trees. `false`: a scan was made a moment ago, and the caller must
    /// ask again later, so that scans take only a part of this thread's time.
    pub(super) fn find_marked(&mut self) -> bool {
        if let Some((at, took)) = self.known.looked
            && at.elapsed() < took * 2
        {
            return false;
        }
        let begun = Instant::now();
        for stat in proc::all() {
            if self.known.leaders.contains_key(&stat.pid) || self.known.index.of_pinned(stat.pid).is_some() {
                continue;
            }
            if let Some(key) = self.marked_as(&stat)
                && self.needs_marks(key)
            {
                self.pin(key, &stat);
            }
        }
        self.known.looked = Some((Instant::now(), begun.elapsed()));
        true
    }

    /// Whether a tree that forked while it was killed still lives. The kernel's list of children is
    /// reliable only while none of them ends, and pids start over at some point. So all processes
    /// are scanned twice before such a tree counts as gone.
    pub(super) fn has_forked_away(&mut self, key: u64) -> bool {
        let has_forked = |process: &Process| {
            !process.membership.knows_all() && process.killing.is_some_and(|it| it.came.is_some())
        };
        if !self.processes.get(&key).is_some_and(has_forked) {
            return false;
        }
        for _ in 0..2 {
            for stat in proc::all() {
                if stat.state != b'Z'
                    && !self.known.leaders.contains_key(&stat.pid)
                    && self.known.index.of_pinned(stat.pid).is_none()
                    && self.marked_as(&stat) == Some(key)
                {
                    self.pin(key, &stat);
                }
            }
            if self.processes.get(&key).is_some_and(|process| !process.remnants.is_empty()) {
                return true;
            }
        }
        self.housing.needs_rescan.contains(&key)
    }

    /// The tree of a process by its session, group or marks.
    fn marked_as(&self, stat: &proc::Stat) -> Option<u64> {
        let index = &self.known.index;
        let marked = || index.of_limit(marks::mark(stat.pid)?);
        let named = || index.of_variable(&proc::variable(stat.pid, MARK)?);
        index.of_session(stat.session, stat.group).or_else(marked).or_else(named)
    }

    /// Opens a pidfd on another process of a tree and watches it.
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
                self.housing.needs_rescan.insert(key);
                return;
            }
        };
        // A zombie may have threads that still run; only its pidfd tells.
        if stat.state == b'Z' && has_ended(fd.as_fd()) {
            return;
        }
        // Between the look and the open the process may have died and its pid been reused.
        if proc::stat(stat.pid).map(|s| s.started) != Some(stat.started) {
            return;
        }
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Token::Remnant(key).pack());
        if let Err(error) = self.epoll.add(&fd, event) {
            tracing::warn!(%error, pid = stat.pid, "can't watch a process");
            self.housing.needs_rescan.insert(key);
        } else {
            process.remnants.insert(stat.pid, fd);
            if let Some(killing) = &mut process.killing {
                killing.came = Some(Instant::now());
            }
            self.known.index.pin(key, stat.pid);
        }
    }

    /// Pins every process of a tree outside its leader's group.
    pub(super) fn find_tree(&mut self, key: u64) {
        self.adopt();
        if self.needs_marks(key) {
            // If a scan was made just now, the processes it missed are found when the others have
            // ended.
            self.find_marked();
        }
        self.find_seen(key);
        let Some(process) = self.processes.get(&key) else {
            return;
        };
        let group = process.pid;
        let leader = (!has_ended(process.pidfd.as_fd())).then_some(process.pid);
        let roots = process.remnants.keys().copied().chain(leader);
        // Descendants are searched even where there is a cgroup: a process may have been moved out
        // of it.
        let mut found: Vec<u32> = roots.flat_map(proc::descendants).collect();
        found.sort_unstable();
        found.dedup();
        for pid in found {
            // The group is signalled as a whole, by the leader's pidfd.
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

    /// Signals every process of a tree that was found just before.
    pub(super) fn signal_found(&self, key: u64, signal: i32) {
        let Some(process) = self.processes.get(&key) else {
            return;
        };
        // Each process gets the signal once: some programs take a second one to mean that it is
        // urgent.
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

    /// Halts a tree. Processes forked meanwhile are found by searching again, until no new one
    /// turns up: a halted process forks no more.
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
                // Other trees wait for this thread, too.
                break;
            }
            if self.needs_marks(key) {
                // Each round must see the processes forked since the last one, however long a scan
                // takes.
                self.known.looked = None;
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

    /// Signals the leader's group by its pidfd. Where the kernel can't do that, it signals the
    /// group by number while the leader is not reaped, so its pid can't have been reused. Otherwise
    /// nothing is signalled, and the remaining processes are pinned one by one. Returns whether the
    /// group was reached.
    pub(super) fn signal_group(&self, process: &Process, signal: i32) -> bool {
        match pidfd::signal_group(&process.pidfd, signal) {
            // A keeper may have reaped the leader before this process hears of it.
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
        // Processes killed one by one have time to fork away; halted ones have not.
        let alone =
            |process: &Process| process.remnants.is_empty() && proc::descendants(process.pid).is_empty();
        if self.processes.get(&key).is_some_and(|process| !process.membership.knows_all() && !alone(process))
        {
            self.halt(key);
        }
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        process.killing.get_or_insert(Killing { since: Instant::now(), came: None, told: false });
        // The cgroup kills all of it at once, before anything can fork again; the others are killed
        // one by one.
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
