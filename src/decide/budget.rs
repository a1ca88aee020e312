//! How long each may take to stop where all of them together have so long.
//!
//! Who is stopped first must not use up what the others need: of what is left, a service gets one part of
//! as many as there are services one after the other from it down (itself, what it depends on, what that
//! depends on, ...). So the last one, however deaf those before it were, is still asked before it is
//! killed; and where they are quick, the later ones get what they have left. Times are since the start of
//! the tree.

use std::collections::HashMap;
use std::time::Duration;

use super::graph::StopOrder;
use crate::model::plan::StopTimes;
use crate::model::{Name, ServiceSpec};

/// What a stop of many has for all of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// When all of them are to be down.
    tree: Option<Duration>,
    /// When those of a project are.
    projects: HashMap<String, Duration>,
    /// How many are stopped one after the other, from this one down.
    depths: HashMap<Name, u32>,
}

impl Budget {
    /// Of a stop that begins now; `None`: nothing is said. `runs`: who has anything to stop.
    pub(super) fn new(
        now: Duration,
        times: &StopTimes,
        order: &StopOrder,
        runs: impl Fn(&Name) -> bool,
    ) -> Option<Budget> {
        if times.is_empty() {
            return None;
        }
        let tree = times.tree.map(|time| now.saturating_add(time));
        let projects = times.projects.iter().map(|(name, time)| (name.clone(), now.saturating_add(*time)));
        Some(Budget { tree, projects: projects.collect(), depths: order.depths(runs) })
    }

    /// What this service gets when its turn comes now; `None`: its own time alone counts.
    pub(super) fn share(&self, now: Duration, spec: &ServiceSpec) -> Option<Duration> {
        let project = spec.project.as_ref().and_then(|project| self.projects.get(project));
        let until = [self.tree, project.copied()].into_iter().flatten().min()?;
        let depth = self.depths.get(&spec.name).copied().unwrap_or(1).max(1);
        Some(until.saturating_sub(now) / depth)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::decide::graph::Graph;
    use crate::model::{Condition, Dependency};

    fn name(at: usize) -> Name {
        Name::new(&format!("s{at}")).unwrap()
    }

    /// Services, each of which depends on some of those before it.
    fn services(needs: &[Vec<usize>]) -> Vec<Arc<ServiceSpec>> {
        let service = |(at, on): (usize, &Vec<usize>)| {
            let mut spec = ServiceSpec::new(name(at), ["run"]);
            let on =
                on.iter().map(|on| Dependency { on: name(*on), condition: Condition::Ready, required: true });
            spec.depends_on = on.collect();
            Arc::new(spec)
        };
        needs.iter().enumerate().map(service).collect()
    }

    fn times(tree: u64) -> StopTimes {
        StopTimes { tree: Some(Duration::from_secs(tree)), ..StopTimes::default() }
    }

    #[test]
    fn a_chain_shares_and_the_quick_leave_to_the_slow() {
        let all = services(&[vec![], vec![0], vec![1]]);
        let graph = Arc::new(Graph::new(&all).unwrap());
        let names: Vec<Name> = (0..3).map(name).collect();
        let order = StopOrder::new(&graph, &names);
        let begun = Duration::from_secs(100);
        let budget = Budget::new(begun, &times(9), &order, |_| true).unwrap();
        let share = |after, at: usize| budget.share(begun + Duration::from_secs(after), &all[at]);
        assert_eq!(share(0, 2), Some(Duration::from_secs(3)));
        // The first was deaf, the second quick.
        assert_eq!(share(3, 1), Some(Duration::from_secs(3)));
        assert_eq!(share(3, 0), Some(Duration::from_secs(6)));
        // Who has nothing to stop needs no part.
        let budget = Budget::new(begun, &times(9), &order, |who| *who != name(1)).unwrap();
        assert_eq!(budget.share(begun, &all[2]), Some(Duration::from_millis(4_500)));
        assert_eq!(Budget::new(begun, &StopTimes::default(), &order, |_| true), None);
    }

    #[test]
    fn a_project_has_its_own_within_that_of_all() {
        let mut spec = ServiceSpec::new(name(0), ["run"]);
        spec.project = Some("shop".to_owned());
        let graph = Arc::new(Graph::new(&[Arc::new(spec.clone())]).unwrap());
        let order = StopOrder::new(&graph, [&spec.name]);
        for (tree, project, want) in [(9, 4, 4), (3, 4, 3)] {
            let projects = [("shop".to_owned(), Duration::from_secs(project))].into();
            let times = StopTimes { projects, ..times(tree) };
            let budget = Budget::new(Duration::ZERO, &times, &order, |_| true).unwrap();
            assert_eq!(budget.share(Duration::ZERO, &spec), Some(Duration::from_secs(want)));
        }
    }

    proptest! {
        /// However long each takes of what it gets, all are asked with time left, and all are down in time.
        #[test]
        fn everybody_is_asked_and_the_whole_keeps_to_its_time(
            needs in proptest::collection::vec(proptest::collection::vec(any::<prop::sample::Index>(), 0..3), 1..12),
            takes in proptest::collection::vec(0..=100u32, 12),
        ) {
            let needs: Vec<Vec<usize>> = needs
                .iter()
                .enumerate()
                .map(|(at, on)| if at == 0 { Vec::new() } else { on.iter().map(|on| on.index(at)).collect() })
                .collect();
            let all = services(&needs);
            let graph = Arc::new(Graph::new(&all).unwrap());
            let names: Vec<Name> = (0..all.len()).map(name).collect();
            let mut order = StopOrder::new(&graph, &names);
            let budget = Budget::new(Duration::ZERO, &times(9), &order, |_| true).unwrap();
            let mut now = Duration::ZERO;
            let mut ending: Vec<(Duration, Name)> = Vec::new();
            loop {
                while let Some(next) = order.let_go() {
                    let at = names.iter().position(|name| *name == next).unwrap();
                    let share = budget.share(now, &all[at]).unwrap();
                    prop_assert!(share > Duration::from_millis(500), "{next}: {share:?}");
                    ending.push((now + share * takes[at] / 100, next));
                }
                ending.sort();
                if ending.is_empty() {
                    break;
                }
                let (at, down) = ending.remove(0);
                now = at;
                order.down(&down);
            }
            prop_assert!(now <= Duration::from_secs(9), "{now:?}");
        }
    }
}
