//! Keeping sight of trees without a cgroup.
//!
//! As long as a keeper lives, who loses a parent comes to it, and carries marks. After its death those come to
//! nobody here, and who has shed even the marks is not found any more. So who is of such a tree is noted now and
//! then, by number and start time, while it can be told; that goes on to the next daemon with all else. And
//! where one without marks was lost sight of, what it may have started is not known, which is said.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::Watcher;
use super::memberships::Membership;
use crate::host::marks;
use crate::sys::proc::{self, Stat};

/// One of a tree that is neither its leader nor in the leader's session or group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    pid: u32,
    /// In ticks since boot: with the number, one process for ever.
    started: u64,
    tie: Tie,
}

/// By what one was known to be of its tree when it was last looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Tie {
    Mark,
    /// It is held, and what it starts is found below it.
    Held,
    /// By nothing that whoever it starts has, too.
    Nothing,
}

/// Who was seen of a tree.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct KnownMembers {
    members: Vec<Member>,
    /// So many without marks have ended unseen.
    lost: usize,
}

impl KnownMembers {
    /// Whether there is anything to know of it.
    pub(super) fn is_plain(&self) -> bool {
        self.members.is_empty() && self.lost == 0
    }

    /// So many without marks have ended, and what they have started is not known.
    pub(super) fn lost(&self) -> usize {
        self.lost
    }

    fn has(&self, stat: &Stat) -> bool {
        self.members.iter().any(|member| member.pid == stat.pid && member.started == stat.started)
    }
}

impl Watcher {
    /// Notes who is of each tree without a cgroup.
    pub(super) fn look_around(&mut self) {
        let trees: Vec<u64> = self
            .processes
            .iter()
            .filter(|(_, process)| matches!(process.home, Membership::None) && process.exit.is_none())
            .map(|(key, _)| *key)
            .collect();
        if trees.is_empty() {
            return;
        }
        let mut seen: HashMap<u64, Vec<Stat>> = HashMap::new();
        let known: HashMap<(u32, u64), u64> = trees
            .iter()
            .flat_map(|key| self.processes[key].sight.members.iter().map(move |member| (member, *key)))
            .map(|(member, key)| ((member.pid, member.started), key))
            .collect();
        for pid in self.orphans() {
            if !self.leaders.contains_key(&pid)
                && let Some(stat) = proc::stat(pid)
            {
                let known = || known.get(&(stat.pid, stat.started)).copied();
                if let Some(key) = self.owner(&stat).or_else(known) {
                    seen.entry(key).or_default().push(stat);
                }
            }
        }
        for key in trees {
            let process = &self.processes[&key];
            let mut all = seen.remove(&key).unwrap_or_default();
            all.extend(proc::descendants(process.pid).into_iter().filter_map(proc::stat));
            for member in &process.sight.members {
                let below: Vec<Stat> =
                    proc::descendants(member.pid).into_iter().filter_map(proc::stat).collect();
                // Its number may be another's by now, whose children are nobody's here.
                if lives(member) {
                    all.extend(below);
                }
            }
            self.note(key, &all);
        }
    }

    fn note(&mut self, key: u64, seen: &[Stat]) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        let (leader, mark) = (process.pid, process.marks.limit);
        for stat in seen {
            if stat.session != leader && stat.group != leader && !process.sight.has(stat) {
                let Stat { pid, started, .. } = *stat;
                process.sight.members.push(Member { pid, started, tie: Tie::Mark });
            }
        }
        let (mut lost, remnants) = (0, &process.remnants);
        process.sight.members.retain_mut(|member| {
            if !lives(member) {
                lost += usize::from(member.tie == Tie::Nothing);
                return false;
            }
            let tie = match marks::mark(member.pid) == Some(mark) {
                true => Tie::Mark,
                false if remnants.contains_key(&member.pid) => Tie::Held,
                false => Tie::Nothing,
            };
            // Of one that ended in between nothing is said.
            if lives(member) {
                member.tie = tie;
            }
            true
        });
        process.sight.lost += lost;
    }

    /// Pins those of a tree that were seen and live; of the others it is known from then on that they are lost.
    pub(super) fn find_seen(&mut self, key: u64) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        let (living, gone): (Vec<Member>, Vec<Member>) =
            std::mem::take(&mut process.sight.members).into_iter().partition(lives);
        process.sight.lost += gone.iter().filter(|member| member.tie == Tie::Nothing).count();
        for mut member in living {
            if let Some(stat) = proc::stat(member.pid).filter(|stat| stat.started == member.started) {
                self.pin(key, &stat);
            }
            if let Some(process) = self.processes.get_mut(&key) {
                if process.remnants.contains_key(&member.pid) {
                    member.tie = Tie::Held;
                }
                // Whoever goes on from here is to know them as well.
                process.sight.members.push(member);
            }
        }
    }

    /// The kernel says of these from now on who is of them.
    pub(super) fn need_not_be_seen(&mut self, key: u64, is_inside: impl Fn(u32) -> bool) {
        if let Some(process) = self.processes.get_mut(&key) {
            process.sight.members.retain(|member| !is_inside(member.pid));
        }
    }
}

fn lives(member: &Member) -> bool {
    proc::stat(member.pid).is_some_and(|stat| stat.started == member.started && stat.state != b'Z')
}
