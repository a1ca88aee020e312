//! The dependency graph: in which waves services start, and in which order they stop.
//!
//! [`Graph`] is acyclic by construction. [`StopOrder`] releases stops: dependents before what
//! they depend on. Deliberately absent: which instance may start at the moment, which the
//! [`start_gate`](super::start_gate) decides.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::model::{Name, ServiceSpec};

/// The position of a service in the graph, from 0, in declared order.
type Node = usize;

/// Services and their dependencies, without cycles.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    services: Vec<Arc<ServiceSpec>>,
    nodes: HashMap<Name, Node>,
    needs: Vec<Vec<Node>>,
    needed_by: Vec<Vec<Node>>,
}

impl Graph {
    /// Builds the graph. `Err`: its cycles, each as the path of names that leads back to its first.
    /// Dependencies on services that are not in the list are left out.
    pub fn new(services: &[Arc<ServiceSpec>]) -> Result<Graph, Vec<Vec<Name>>> {
        let nodes: HashMap<Name, Node> =
            services.iter().enumerate().map(|(node, s)| (s.name.clone(), node)).collect();
        let mut needs = vec![Vec::new(); services.len()];
        let mut needed_by = vec![Vec::new(); services.len()];
        for (node, service) in services.iter().enumerate() {
            for dependency in &service.depends_on {
                if let Some(&on) = nodes.get(&dependency.on) {
                    needs[node].push(on);
                    needed_by[on].push(node);
                }
            }
        }
        let graph = Graph { services: services.to_vec(), nodes, needs, needed_by };
        let cycles = graph.cycles();
        if cycles.is_empty() { Ok(graph) } else { Err(cycles) }
    }

    /// The service of that name.
    pub fn service(&self, name: &Name) -> Option<&Arc<ServiceSpec>> {
        self.nodes.get(name).map(|&node| &self.services[node])
    }

    /// Services in declared order.
    pub fn services(&self) -> &[Arc<ServiceSpec>] {
        &self.services
    }

    /// The services that depend on a service directly, in declared order.
    pub fn dependents(&self, name: &Name) -> impl Iterator<Item = &Arc<ServiceSpec>> {
        let list = self.nodes.get(name).map_or(&[][..], |&node| &self.needed_by[node][..]);
        list.iter().map(|&node| &self.services[node])
    }

    /// These services and all that they depend on, directly or not, in declared order.
    pub fn with_dependencies<'a>(&self, names: impl IntoIterator<Item = &'a Name>) -> Vec<Name> {
        let mut seen = vec![false; self.services.len()];
        let mut todo: Vec<Node> = names.into_iter().filter_map(|n| self.nodes.get(n).copied()).collect();
        while let Some(node) = todo.pop() {
            if !std::mem::replace(&mut seen[node], true) {
                todo.extend(&self.needs[node]);
            }
        }
        (0..seen.len()).filter(|&n| seen[n]).map(|n| self.services[n].name.clone()).collect()
    }

    /// The waves of a start: each service depends only on services of earlier waves.
    pub fn start_waves(&self) -> Vec<Vec<Name>> {
        self.waves(&self.needs, &self.needed_by)
    }

    /// The waves of a stop: each service has dependents only in earlier waves.
    pub fn stop_waves(&self) -> Vec<Vec<Name>> {
        self.waves(&self.needed_by, &self.needs)
    }

    fn waves(&self, before: &[Vec<Node>], after: &[Vec<Node>]) -> Vec<Vec<Name>> {
        let mut missing: Vec<usize> = before.iter().map(Vec::len).collect();
        let mut wave: Vec<Node> = (0..missing.len()).filter(|&n| missing[n] == 0).collect();
        let mut waves = Vec::new();
        while !wave.is_empty() {
            let mut next = Vec::new();
            for &node in &wave {
                for &dependent in &after[node] {
                    missing[dependent] -= 1;
                    if missing[dependent] == 0 {
                        next.push(dependent);
                    }
                }
            }
            next.sort_unstable();
            waves.push(wave.iter().map(|&n| self.services[n].name.clone()).collect());
            wave = next;
        }
        waves
    }

    /// One cycle for each set of services that depend on each other.
    fn cycles(&self) -> Vec<Vec<Name>> {
        // A service that no wave reaches lies on a cycle, or depends on one.
        let mut missing: Vec<usize> = self.needs.iter().map(Vec::len).collect();
        let mut free: Vec<Node> = (0..missing.len()).filter(|&n| missing[n] == 0).collect();
        let mut stuck = vec![true; missing.len()];
        while let Some(node) = free.pop() {
            stuck[node] = false;
            for &dependent in &self.needed_by[node] {
                missing[dependent] -= 1;
                if missing[dependent] == 0 {
                    free.push(dependent);
                }
            }
        }
        // Each stuck node needs a stuck node, so a walk along them must come back to itself.
        let mut cycles = Vec::new();
        let mut told = vec![false; stuck.len()];
        for first in 0..stuck.len() {
            if !stuck[first] || told[first] {
                continue;
            }
            let mut place: HashMap<Node, usize> = HashMap::new();
            let mut path = Vec::new();
            let mut node = first;
            loop {
                if told[node] {
                    break;
                }
                if let Some(&from) = place.get(&node) {
                    let mut cycle: Vec<Node> = path[from..].to_vec();
                    // The cycle begins at its lowest node, wherever the walk entered it.
                    let lowest = cycle.iter().enumerate().min_by_key(|(_, n)| **n).map_or(0, |(at, _)| at);
                    cycle.rotate_left(lowest);
                    cycle.push(cycle[0]);
                    cycles.push(cycle.iter().map(|&n| self.services[n].name.clone()).collect());
                    break;
                }
                place.insert(node, path.len());
                path.push(node);
                match self.needs[node].iter().find(|n| stuck[**n]) {
                    Some(&next) => node = next,
                    None => break,
                }
            }
            for node in path {
                told[node] = true;
            }
        }
        cycles
    }
}

/// The order in which a set of services is stopped: a service is released when all services of
/// the set that depend on it are down.
#[derive(Debug, Clone)]
pub struct StopOrder {
    /// The graph as it was when the order was made; later additions do not change the order.
    graph: Arc<Graph>,
    /// For each service of the set that is not down: how many of its dependents are not down yet.
    holding: HashMap<Node, usize>,
    free: VecDeque<Node>,
}

impl StopOrder {
    /// The stop order of these services.
    pub fn new<'a>(graph: &Arc<Graph>, names: impl IntoIterator<Item = &'a Name>) -> StopOrder {
        let mut holding: HashMap<Node, usize> =
            names.into_iter().filter_map(|n| graph.nodes.get(n)).map(|&node| (node, 0)).collect();
        let members: Vec<Node> = holding.keys().copied().collect();
        for node in members {
            let count = graph.needed_by[node].iter().filter(|n| holding.contains_key(*n)).count();
            holding.insert(node, count);
        }
        let mut free: Vec<Node> = holding.iter().filter(|(_, count)| **count == 0).map(|(n, _)| *n).collect();
        // The last declared comes first: the reverse of the start.
        free.sort_unstable_by(|a, b| b.cmp(a));
        StopOrder { graph: Arc::clone(graph), holding, free: free.into() }
    }

    /// Computes a value for each service of the set: `join` makes it from the service's own value
    /// (`own`) and from that of the services it depends on, which are stopped after it. `both`
    /// combines the values of several dependencies.
    pub fn gathered_from_below<T: Copy>(
        &self,
        own: impl Fn(&Name) -> T,
        join: impl Fn(T, Option<T>) -> T,
        both: impl Fn(T, T) -> T,
    ) -> HashMap<Name, T> {
        let graph = &self.graph;
        let inside = |nodes: &[Node]| nodes.iter().filter(|n| self.holding.contains_key(n)).count();
        let mut waits: HashMap<Node, usize> =
            self.holding.keys().map(|node| (*node, inside(&graph.needs[*node]))).collect();
        let mut next: Vec<Node> =
            waits.iter().filter(|(_, left)| **left == 0).map(|(node, _)| *node).collect();
        let mut found: HashMap<Node, T> = HashMap::new();
        while let Some(node) = next.pop() {
            let below = graph.needs[node].iter().filter_map(|on| found.get(on)).copied().reduce(&both);
            found.insert(node, join(own(&graph.services[node].name), below));
            for above in &graph.needed_by[node] {
                if let Some(left) = waits.get_mut(above) {
                    *left -= 1;
                    if *left == 0 {
                        next.push(*above);
                    }
                }
            }
        }
        found.into_iter().map(|(node, of)| (graph.services[node].name.clone(), of)).collect()
    }

    /// The next service that may be stopped now.
    pub fn let_go(&mut self) -> Option<Name> {
        self.free.pop_front().map(|node| self.graph.services[node].name.clone())
    }

    /// Notes that a service is down, which may release the services it depends on.
    pub fn down(&mut self, name: &Name) {
        let Some(&node) = self.graph.nodes.get(name) else {
            return;
        };
        if self.holding.remove(&node).is_none() {
            return;
        }
        let mut freed = Vec::new();
        for on in &self.graph.needs[node] {
            if let Some(count) = self.holding.get_mut(on) {
                *count -= 1;
                if *count == 0 {
                    freed.push(*on);
                }
            }
        }
        freed.sort_unstable_by(|a, b| b.cmp(a));
        self.free.extend(freed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Condition, Dependency};

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn service(text: &str, needs: &[&str]) -> Arc<ServiceSpec> {
        let mut spec = ServiceSpec::new(name(text), ["true"]);
        spec.depends_on = needs
            .iter()
            .map(|on| Dependency { on: name(on), condition: Condition::Ready, required: true })
            .collect();
        Arc::new(spec)
    }

    fn words(names: &[Name]) -> String {
        names.iter().map(Name::as_str).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn waves_go_up_and_down() {
        let graph = Graph::new(&[
            service("web", &["api", "migrate"]),
            service("api", &["db"]),
            service("db", &[]),
            service("migrate", &["db"]),
            service("lone", &[]),
        ])
        .unwrap();
        let up: Vec<String> = graph.start_waves().iter().map(|w| words(w)).collect();
        assert_eq!(up, ["db lone", "api migrate", "web"]);
        let down: Vec<String> = graph.stop_waves().iter().map(|w| words(w)).collect();
        assert_eq!(down, ["web lone", "api migrate", "db"]);
    }

    #[test]
    fn every_cycle_is_told_with_its_whole_path() {
        let cycles = Graph::new(&[
            service("a", &["b"]),
            service("b", &["c"]),
            service("c", &["a"]),
            service("behind", &["a"]),
            service("self", &["self"]),
            service("fine", &[]),
        ])
        .unwrap_err();
        let told: Vec<String> = cycles.iter().map(|c| words(c)).collect();
        assert_eq!(told, ["a b c a", "self self"]);
    }

    #[test]
    fn a_chain_of_ten_thousand_is_fine() {
        let mut services = vec![service("s0", &[])];
        for n in 1..10_000 {
            services.push(service(&format!("s{n}"), &[&format!("s{}", n - 1)]));
        }
        assert_eq!(Graph::new(&services).unwrap().start_waves().len(), 10_000);
    }

    #[test]
    fn stops_wait_for_dependents_through_the_whole_chain() {
        let list = [service("db", &[]), service("api", &["db"]), service("web", &["api"])];
        let graph = Arc::new(Graph::new(&list).unwrap());
        let all: Vec<Name> = graph.services().iter().map(|s| s.name.clone()).collect();
        let mut order = StopOrder::new(&graph, &all);
        for want in ["web", "api", "db"] {
            assert_eq!(order.let_go(), Some(name(want)));
            assert_eq!(order.let_go(), None, "nothing else before {want} is down");
            order.down(&name(want));
        }
    }

    proptest! {
        #[test]
        fn dependents_stop_before_what_they_depend_on(
            edges in prop::collection::vec((0usize..30, 0usize..30), 0..80),
        ) {
            let services: Vec<Arc<ServiceSpec>> = (0..30)
                .map(|n| {
                    let needs: Vec<String> = edges
                        .iter()
                        .filter(|(from, on)| *from == n && on < from)
                        .map(|(_, on)| format!("s{on}"))
                        .collect();
                    service(&format!("s{n}"), &needs.iter().map(String::as_str).collect::<Vec<_>>())
                })
                .collect();
            let graph = Arc::new(Graph::new(&services).unwrap());
            let all: Vec<Name> = services.iter().map(|s| s.name.clone()).collect();
            let mut order = StopOrder::new(&graph, &all);
            let mut down: Vec<Name> = Vec::new();
            while let Some(next) = order.let_go() {
                for dependent in graph.dependents(&next) {
                    prop_assert!(down.contains(&dependent.name), "{} before {}", next, dependent.name);
                }
                order.down(&next);
                down.push(next);
            }
            prop_assert_eq!(down.len(), 30);
        }
    }
}
