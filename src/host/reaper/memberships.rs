//! The cgroups of trees that were made in a burst of starts, without one: they get one when no more come.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Watcher;
use super::orders::WatchOrder;
use crate::host::cgroup::{Cgroups, Homeless};

/// So often it is looked whether there is time for it, while there are some.
pub(super) const HOUSING_MILLIS: u16 = 500;

/// There is time when nobody has come for so long.
const QUIET: Duration = Duration::from_secs(1);

/// So many at a time: each takes a descriptor meanwhile.
const BATCH: usize = 256;

/// Whether a tree has a cgroup, and among which.
pub(super) enum Membership {
    /// By its marks alone it is known who is of it.
    None,
    /// Its leader was born there: the kernel says who is of it.
    Born(Arc<Cgroups>),
    /// It was moved there with all that was known of it by then; somebody may have left it before.
    Moved(Arc<Cgroups>),
}

impl Membership {
    pub(super) fn cgroups(&self) -> Option<&Arc<Cgroups>> {
        match self {
            Membership::None => None,
            Membership::Born(cgroups) | Membership::Moved(cgroups) => Some(cgroups),
        }
    }

    /// Whether the kernel knows all that are of the tree.
    pub(super) fn knows_all(&self) -> bool {
        matches!(self, Membership::Born(_))
    }
}

/// Whether trees are being moved.
pub(super) enum Housing {
    /// The last that needs it came then.
    Rests(Instant),
    /// A thread is at it.
    Moves,
}

impl Watcher {
    /// A service was made.
    pub(super) fn one_came(&mut self, key: u64, home: &Membership) {
        if let Housing::Rests(since) = &mut self.housing {
            *since = Instant::now();
        }
        if self.cgroups.is_some() && matches!(home, Membership::None) {
            self.homeless.push(key);
        }
    }

    /// Whether some wait for it.
    pub(super) fn houses_soon(&self) -> bool {
        !self.homeless.is_empty() && matches!(self.housing, Housing::Rests(_))
    }

    /// Has some moved into cgroups of their own, when there is time.
    pub(super) fn house(&mut self) {
        let is_quiet = matches!(self.housing, Housing::Rests(since) if since.elapsed() >= QUIET);
        let Some(cgroups) = self.cgroups.as_ref().filter(|_| is_quiet && !self.homeless.is_empty()) else {
            return;
        };
        let batch = self.homeless.split_off(self.homeless.len().saturating_sub(BATCH));
        let living = batch.into_iter().filter_map(|key| {
            let process = self.processes.get(&key)?;
            let lives = process.exit.is_none() && matches!(process.home, Membership::None);
            let pidfd = process.pidfd.try_clone().ok().filter(|_| lives)?;
            Some(Homeless { key, pid: process.pid, pidfd, mark: process.marks.limit })
        });
        let (trees, line): (Vec<Homeless>, _) = (living.collect(), self.line.clone());
        if !trees.is_empty() && cgroups.take_in(trees, move |keys| line.send(WatchOrder::Housed(keys))) {
            self.housing = Housing::Moves;
        }
    }

    /// These have a cgroup now.
    pub(super) fn housed(&mut self, keys: &[u64]) {
        // The next ones follow at once.
        let quiet = Instant::now().checked_sub(QUIET).unwrap_or_else(Instant::now);
        self.housing = Housing::Rests(quiet);
        let Some(cgroups) = self.cgroups.clone() else {
            return;
        };
        for key in keys {
            match self.processes.get_mut(key) {
                Some(process) if matches!(process.home, Membership::None) => {
                    process.home = Membership::Moved(Arc::clone(&cgroups));
                    self.need_not_be_seen(*key, |pid| cgroups.has(*key, pid));
                }
                Some(_) => {}
                // It is gone by now.
                None => cgroups.discard(*key),
            }
        }
    }
}
