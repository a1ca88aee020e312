//! The cgroups of trees. A tree that was spawned without one in a burst of starts is moved into one
//! once the burst is over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Reaper;
use super::orders::ReaperOrder;
use crate::host::cgroup::{Cgroups, WithoutCgroup};

/// How often the reaper checks whether trees can be moved, in milliseconds, while some wait for it.
pub(super) const HOUSING_MILLIS: u16 = 500;

/// Trees are moved once no service has been spawned for this long.
const QUIET: Duration = Duration::from_secs(1);

/// The most trees that are moved at a time, because each takes a descriptor meanwhile.
const BATCH: usize = 256;

/// Whether a tree has a cgroup, and which directory holds it.
pub(super) enum Membership {
    /// The tree has no cgroup: its marks alone tell its members.
    None,
    /// The leader was spawned in the cgroup, so the kernel knows every member.
    Born(Arc<Cgroups>),
    /// The members that were known by then were moved into the cgroup. A process that left the tree
    /// before may not be in it.
    Moved(Arc<Cgroups>),
}

impl Membership {
    pub(super) fn cgroups(&self) -> Option<&Arc<Cgroups>> {
        match self {
            Membership::None => None,
            Membership::Born(cgroups) | Membership::Moved(cgroups) => Some(cgroups),
        }
    }

    /// Whether the kernel knows every member of the tree.
    pub(super) fn knows_all(&self) -> bool {
        matches!(self, Membership::Born(_))
    }
}

/// Whether trees are being moved into cgroups.
pub(super) enum MembershipMoves {
    /// Nothing is being moved; the last service was spawned at this time.
    Rests(Instant),
    /// A thread is moving trees.
    Moves,
}

impl Reaper {
    /// Notes that a service was spawned or taken over.
    pub(super) fn one_came(&mut self, key: u64, membership: &Membership) {
        if let MembershipMoves::Rests(since) = &mut self.housing.moves {
            *since = Instant::now();
        }
        if self.cgroups.is_some() && matches!(membership, Membership::None) {
            self.housing.homeless.push(key);
        }
    }

    /// Whether trees wait to be moved, and none is being moved.
    pub(super) fn houses_soon(&self) -> bool {
        !self.housing.homeless.is_empty() && matches!(self.housing.moves, MembershipMoves::Rests(_))
    }

    /// Has a batch of trees moved into cgroups of their own, if no burst is under way.
    pub(super) fn house(&mut self) {
        let is_quiet =
            matches!(self.housing.moves, MembershipMoves::Rests(since) if since.elapsed() >= QUIET);
        let Some(cgroups) = self.cgroups.as_ref().filter(|_| is_quiet && !self.housing.homeless.is_empty())
        else {
            return;
        };
        let batch = self.housing.homeless.split_off(self.housing.homeless.len().saturating_sub(BATCH));
        let living = batch.into_iter().filter_map(|key| {
            let process = self.processes.get(&key)?;
            let lives = process.exit.is_none() && matches!(process.membership, Membership::None);
            let pidfd = process.pidfd.try_clone().ok().filter(|_| lives)?;
            Some(WithoutCgroup { key, pid: process.pid, pidfd, mark: process.marks.limit })
        });
        let (trees, line): (Vec<WithoutCgroup>, _) = (living.collect(), self.line.clone());
        if !trees.is_empty() && cgroups.take_in(trees, move |keys| line.send(ReaperOrder::Housed(keys))) {
            self.housing.moves = MembershipMoves::Moves;
        }
    }

    /// Notes that these trees have a cgroup now.
    pub(super) fn housed(&mut self, keys: &[u64]) {
        // The next batch follows at once.
        let quiet = Instant::now().checked_sub(QUIET).unwrap_or_else(Instant::now);
        self.housing.moves = MembershipMoves::Rests(quiet);
        let Some(cgroups) = self.cgroups.clone() else {
            return;
        };
        for key in keys {
            match self.processes.get_mut(key) {
                Some(process) if matches!(process.membership, Membership::None) => {
                    process.membership = Membership::Moved(Arc::clone(&cgroups));
                    self.need_not_be_seen(*key, |pid| cgroups.has(*key, pid));
                }
                Some(_) => {}
                // The tree is gone by now.
                None => cgroups.discard(*key),
            }
        }
    }
}
