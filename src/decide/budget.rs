//! How long each service may take to stop when one stop time has to do for all of them.
//!
//! A service that is stopped early must not use up the time that the others need. So each service
//! gets an equal share of the time that is left: the shares are as many as the services that are
//! stopped one after the other from it down (itself, a dependency, a dependency of that, ...). The
//! last one is then still asked to stop before it is killed, even if those before it did not react;
//! and the time that quick services save goes to the later ones. Times are since the start of the
//! tree.

use std::collections::HashMap;
use std::time::Duration;

use super::graph::StopOrder;
use crate::model::plan::StopTimes;
use crate::model::{Name, ServiceSpec};

/// The time that a stop of several services has for all of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StopBudget {
    /// For each service: how many services are stopped one after the other from it down, and the
    /// earliest time by which one of these has to be down; `None` if no time is set.
    shares: HashMap<Name, (u32, Option<Duration>)>,
}

impl StopBudget {
    /// The budget of a stop that begins now; `None` if the plan sets no stop time. `project` gives
    /// the project of a service, and `runs` tells whether the service has anything to stop.
    pub(super) fn new(
        now: Duration,
        times: &StopTimes,
        order: &StopOrder,
        project: impl Fn(&Name) -> Option<String>,
        runs: impl Fn(&Name) -> bool,
    ) -> Option<StopBudget> {
        if times.is_empty() {
            return None;
        }
        let own = |name: &Name| {
            let of_project = project(name).and_then(|project| times.projects.get(&project).copied());
            let time = [times.tree, of_project].into_iter().flatten().min();
            (u32::from(runs(name)), time.map(|time| now.saturating_add(time)))
        };
        let earliest = |a: Option<Duration>, b: Option<Duration>| [a, b].into_iter().flatten().min();
        let both = |(a, at): (u32, Option<Duration>), (b, bt)| (a.max(b), earliest(at, bt));
        // A dependency is stopped later, and may have less time if it is another project's.
        let join = |(own, at), below: Option<(u32, Option<Duration>)>| match below {
            Some((below, bt)) => (own + below, earliest(at, bt)),
            None => (own, at),
        };
        Some(StopBudget { shares: order.gathered_from_below(own, join, both) })
    }

    /// The time that this service gets if its turn comes now; `None` if only its own timeout counts.
    pub(super) fn share(&self, now: Duration, spec: &ServiceSpec) -> Option<Duration> {
        let (depth, until) = self.shares.get(&spec.name).copied()?;
        Some(until?.saturating_sub(now) / depth.max(1))
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
        let budget = StopBudget::new(begun, &times(9), &order, |_| None, |_| true).unwrap();
        let share = |after, at: usize| budget.share(begun + Duration::from_secs(after), &all[at]);
        assert_eq!(share(0, 2), Some(Duration::from_secs(3)));
        // The first one used up its share, the second one was quick.
        assert_eq!(share(3, 1), Some(Duration::from_secs(3)));
        assert_eq!(share(3, 0), Some(Duration::from_secs(6)));
        // A service that has nothing to stop needs no share.
        let budget = StopBudget::new(begun, &times(9), &order, |_| None, |who| *who != name(1)).unwrap();
        assert_eq!(budget.share(begun, &all[2]), Some(Duration::from_millis(4_500)));
        assert_eq!(StopBudget::new(begun, &StopTimes::default(), &order, |_| None, |_| true), None);
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
            let shop = |_: &Name| Some("shop".to_owned());
            let budget = StopBudget::new(Duration::ZERO, &times, &order, shop, |_| true).unwrap();
            assert_eq!(budget.share(Duration::ZERO, &spec), Some(Duration::from_secs(want)));
        }
    }

    /// A service that depends on another project's service leaves that one its time.
    #[test]
    fn what_is_below_of_another_project_is_left_its_time() {
        let all = services(&[vec![], vec![0]]);
        let graph = Arc::new(Graph::new(&all).unwrap());
        let names = [name(0), name(1)];
        let order = StopOrder::new(&graph, &names);
        for (tree, want) in [(None, 2), (Some(9), 2), (Some(2), 1)] {
            let tree = tree.map(Duration::from_secs);
            let times = StopTimes { tree, projects: [("infra".to_owned(), Duration::from_secs(4))].into() };
            let project = |of: &Name| (*of == name(0)).then(|| "infra".to_owned());
            let budget = StopBudget::new(Duration::ZERO, &times, &order, project, |_| true).unwrap();
            assert_eq!(budget.share(Duration::ZERO, &all[1]), Some(Duration::from_secs(want)));
            let later = Duration::from_secs(want);
            assert_eq!(budget.share(later, &all[0]), Some(Duration::from_secs(want)));
        }
    }

    proptest! {
        /// Whatever part of its share each service uses, all are asked with time left and end in time.
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
            let budget = StopBudget::new(Duration::ZERO, &times(9), &order, |_| None, |_| true).unwrap();
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
