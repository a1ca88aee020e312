//! The lookup from a process to its tree, by what the kernel says of the process; nothing is
//! searched for. After a burst of deaths there are as many orphans as exits, and each is looked up.
//!
//! Deliberately absent: the reading of those facts from the kernel.

use std::collections::HashMap;

use crate::host::marks::Marks;

/// The properties by which the processes of each tree are known, and the tree's key for each.
#[derive(Default)]
pub(super) struct Index {
    /// Leaders by their pid, including leaders that have ended: the pid remains the number of the
    /// session and group as long as any process is in these.
    leaders: HashMap<u32, u64>,
    limits: HashMap<u64, u64>,
    variables: HashMap<String, u64>,
    pipes: HashMap<u64, u64>,
    pinned: HashMap<u32, u64>,
}

impl Index {
    pub(super) fn add(&mut self, key: u64, pid: u32, marks: &Marks, pipes: impl IntoIterator<Item = u64>) {
        self.leaders.insert(pid, key);
        // A tree without marks is known by its other properties alone.
        if marks.limit != 0 {
            self.limits.insert(marks.limit, key);
            self.variables.insert(marks.variable.clone(), key);
        }
        for inode in pipes {
            self.pipes.insert(inode, key);
        }
    }

    pub(super) fn remove(
        &mut self,
        key: u64,
        pid: u32,
        marks: &Marks,
        pinned: impl IntoIterator<Item = u32>,
    ) {
        if self.leaders.get(&pid) == Some(&key) {
            self.leaders.remove(&pid);
        }
        self.limits.remove(&marks.limit);
        self.variables.remove(&marks.variable);
        for pid in pinned {
            self.unpin(key, pid);
        }
    }

    /// Forgets a pipe that is no longer read, because its inode number may be reused.
    pub(super) fn close(&mut self, inode: u64) {
        self.pipes.remove(&inode);
    }

    pub(super) fn pin(&mut self, key: u64, pid: u32) {
        self.pinned.insert(pid, key);
    }

    pub(super) fn unpin(&mut self, key: u64, pid: u32) {
        if self.pinned.get(&pid) == Some(&key) {
            self.pinned.remove(&pid);
        }
    }

    /// Looks a tree up by the session of a process, or else by its group.
    pub(super) fn of_session(&self, session: u32, group: u32) -> Option<u64> {
        self.leaders.get(&session).or_else(|| self.leaders.get(&group)).copied()
    }

    pub(super) fn of_pinned(&self, pid: u32) -> Option<u64> {
        self.pinned.get(&pid).copied()
    }

    pub(super) fn of_limit(&self, limit: u64) -> Option<u64> {
        self.limits.get(&limit).copied()
    }

    pub(super) fn of_variable(&self, variable: &str) -> Option<u64> {
        self.variables.get(variable).copied()
    }

    pub(super) fn of_pipe(&self, inode: u64) -> Option<u64> {
        self.pipes.get(&inode).copied()
    }
}
