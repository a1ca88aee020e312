//! Remembers the members of trees without a cgroup.
//!
//! While the keeper lives, orphans are reparented to it and carry marks. After its death they are
//! reparented to neither keeper nor daemon, and a process that shed its marks as well can't be
//! found any more. So the members of such a tree are noted now and then, by pid and start time,
//! while their tree can still be told; the notes pass on to the next daemon. If an unmarked member
//! ended unobserved, processes that it started may live on unknown, which is reported
//! ([`LostSight`](crate::host::HostEvent::LostSight)).

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::Reaper;
use super::memberships::Membership;
use crate::host::marks;
use crate::sys::proc::{self, Stat};

/// A process of a tree, but not its leader nor in the leader's session or group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    pid: u32,
    /// The start time in ticks since boot: with the pid it names one process for ever.
    started: u64,
    tie: Tie,
}

/// What tied a process to its tree when it was last looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Tie {
    Mark,
    /// A pidfd is held on it, so its children are found below it.
    Held,
    /// Nothing that its children would inherit.
    Nothing,
}

/// The members that were seen of a tree.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct KnownMembers {
    members: Vec<Member>,
    /// How many members without marks ended unobserved.
    lost: usize,
}

impl KnownMembers {
    /// Whether there is nothing to note.
    pub(super) fn is_plain(&self) -> bool {
        self.members.is_empty() && self.lost == 0
    }

    /// How many members without marks ended unobserved; processes that they started are not known.
    pub(super) fn lost(&self) -> usize {
        self.lost
    }

    fn has(&self, stat: &Stat) -> bool {
        self.members.iter().any(|member| member.pid == stat.pid && member.started == stat.started)
    }
}

impl Reaper {
    /// Notes the members of each tree without a cgroup.
    pub(super) fn look_around(&mut self) {
        let trees: Vec<u64> = self
            .processes
            .iter()
            .filter(|(_, process)| matches!(process.membership, Membership::None) && process.exit.is_none())
            .map(|(key, _)| *key)
            .collect();
        if trees.is_empty() {
            return;
        }
        let mut seen: HashMap<u64, Vec<Stat>> = HashMap::new();
        let known: HashMap<(u32, u64), u64> = trees
            .iter()
            .flat_map(|key| {
                self.processes[key].known_members.members.iter().map(move |member| (member, *key))
            })
            .map(|(member, key)| ((member.pid, member.started), key))
            .collect();
        for pid in self.orphans() {
            if !self.known.leaders.contains_key(&pid)
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
            for member in &process.known_members.members {
                let below: Vec<Stat> =
                    proc::descendants(member.pid).into_iter().filter_map(proc::stat).collect();
                // The pid may belong to another process by now, whose children are not of this
                // tree.
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
            if stat.session != leader && stat.group != leader && !process.known_members.has(stat) {
                let Stat { pid, started, .. } = *stat;
                process.known_members.members.push(Member { pid, started, tie: Tie::Mark });
            }
        }
        let (mut lost, remnants) = (0, &process.remnants);
        process.known_members.members.retain_mut(|member| {
            if !lives(member) {
                lost += usize::from(member.tie == Tie::Nothing);
                return false;
            }
            let tie = match marks::mark(member.pid) == Some(mark) {
                true => Tie::Mark,
                false if remnants.contains_key(&member.pid) => Tie::Held,
                false => Tie::Nothing,
            };
            // A member that ended in between keeps its last tie.
            if lives(member) {
                member.tie = tie;
            }
            true
        });
        process.known_members.lost += lost;
    }

    /// Pins the noted members of a tree that live. Those that ended without a tie count as lost.
    pub(super) fn find_seen(&mut self, key: u64) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        let (living, gone): (Vec<Member>, Vec<Member>) =
            std::mem::take(&mut process.known_members.members).into_iter().partition(lives);
        process.known_members.lost += gone.iter().filter(|member| member.tie == Tie::Nothing).count();
        for mut member in living {
            if let Some(stat) = proc::stat(member.pid).filter(|stat| stat.started == member.started) {
                self.pin(key, &stat);
            }
            if let Some(process) = self.processes.get_mut(&key) {
                if process.remnants.contains_key(&member.pid) {
                    member.tie = Tie::Held;
                }
                // A daemon or keeper that takes over must know them as well.
                process.known_members.members.push(member);
            }
        }
    }

    /// Forgets members that a cgroup contains now, because the kernel tracks those.
    pub(super) fn need_not_be_seen(&mut self, key: u64, is_inside: impl Fn(u32) -> bool) {
        if let Some(process) = self.processes.get_mut(&key) {
            process.known_members.members.retain(|member| !is_inside(member.pid));
        }
    }
}

fn lives(member: &Member) -> bool {
    proc::stat(member.pid).is_some_and(|stat| stat.started == member.started && stat.state != b'Z')
}
