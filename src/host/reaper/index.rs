//! Which tree a process is of: looked up by what the kernel says of the process, never searched for.
//! After a burst of deaths there are as many orphans as there were exits, and each is asked about.

use std::collections::HashMap;

use crate::host::marks::Marks;

/// By what the processes of trees are known.
#[derive(Default)]
pub(super) struct Index {
    /// The leaders, also those that have ended: their number is their session's and their group's as
    /// long as anybody is in these.
    leaders: HashMap<u32, u64>,
    limits: HashMap<u64, u64>,
    variables: HashMap<String, u64>,
    pipes: HashMap<u64, u64>,
    pinned: HashMap<u32, u64>,
}

impl Index {
    pub(super) fn add(&mut self, key: u64, pid: u32, marks: &Marks, pipes: impl IntoIterator<Item = u64>) {
        self.leaders.insert(pid, key);
        // An unmarked tree is known by the rest alone.
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

    /// A pipe is not read any more: its number may be given away.
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

    /// By its session, or its group.
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
