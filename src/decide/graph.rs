//! Dependencies: what may start now, what must stop first, and what can never start.
//!
//! [`Graph`] is acyclic by construction. [`Frontier`] holds who asked to start and is not
//! released; it reads the [`Board`] that folds the events, so it never keeps a second
//! opinion of what runs. [`StopOrder`] releases stops: dependents before what they depend on.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::status::{Board, Entry};
use crate::model::event::{FailedWhy, Unmet};
use crate::model::{Condition, Dependency, Goal, InstanceId, Name, ServiceSpec, State};

/// The place of a service in the graph, from 0, in declared order.
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
    /// Builds it, or returns every cycle: each as the path of names that leads back to its
    /// first. Dependencies on services that are not in the list are left out.
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

    /// Those that depend on a service directly, in declared order.
    pub fn dependents(&self, name: &Name) -> impl Iterator<Item = &Arc<ServiceSpec>> {
        let list = self.nodes.get(name).map_or(&[][..], |&node| &self.needed_by[node][..]);
        list.iter().map(|&node| &self.services[node])
    }

    /// All that these services depend on, themselves included, in declared order.
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

    /// The waves of a start: each needs only what lies in earlier ones.
    pub fn start_waves(&self) -> Vec<Vec<Name>> {
        self.waves(&self.needs, &self.needed_by)
    }

    /// The waves of a stop: each is needed only by what lies in earlier ones.
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

    /// One path for each knot of services that depend on each other.
    fn cycles(&self) -> Vec<Vec<Name>> {
        // What waves can't reach lies on a cycle or behind one.
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
        // Each stuck node needs a stuck one: walking on must come back to the walk.
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
                    // The same knot reads the same wherever the walk came in.
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

/// How a dependency stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Met,
    Pending,
    /// Not met, and nothing will come by itself.
    Impossible,
}

/// A question of an instance, numbered by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Question(pub u64);

impl Question {
    /// The one after it.
    #[must_use]
    pub fn next(self) -> Question {
        Question(self.0 + 1)
    }
}

/// What the graph answers an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Start.
    Release,
    /// Wait, for these.
    Blocked(Vec<Unmet>),
    /// This dependency failed for good.
    Failed(Name),
    /// The one that had failed may come after all.
    Back,
}

/// Who asked, and how they stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    Waiting,
    Failed,
}

/// The instances that want to start and may not yet.
#[derive(Debug, Clone, Default)]
pub struct Frontier {
    /// By service, since news comes by service.
    asking: HashMap<Name, BTreeMap<InstanceId, (Question, Asking)>>,
}

/// What the frontier is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// An instance wants to start.
    Ask(InstanceId, Question),
    /// It no longer does.
    Withdraw(InstanceId),
    /// Something about a service changed.
    Changed(Name),
}

impl Frontier {
    /// Takes one input; returns who is told what. `board` has all that was written down so far.
    pub fn step(
        &mut self,
        graph: &Graph,
        board: &Board,
        input: &Input,
    ) -> Vec<(InstanceId, Question, Reply)> {
        match input {
            Input::Ask(instance, question) => {
                vec![(instance.clone(), *question, self.ask(graph, board, instance, *question))]
            }
            Input::Withdraw(instance) => {
                self.withdraw(instance);
                Vec::new()
            }
            Input::Changed(service) => self.changed(graph, board, service),
        }
    }

    /// An instance wants to start.
    fn ask(&mut self, graph: &Graph, board: &Board, instance: &InstanceId, question: Question) -> Reply {
        let Some(spec) = graph.service(instance.service()) else {
            return Reply::Release;
        };
        // Whatever it asked before is settled by this.
        self.withdraw(instance);
        let (reply, asking) = match judge(board, spec) {
            Judgement::Free => return Reply::Release,
            Judgement::Blocked(unmet) => (Reply::Blocked(unmet), Asking::Waiting),
            Judgement::Failed(on) => (Reply::Failed(on), Asking::Failed),
        };
        self.asking
            .entry(instance.service().clone())
            .or_default()
            .insert(instance.clone(), (question, asking));
        reply
    }

    fn withdraw(&mut self, instance: &InstanceId) {
        if let Some(instances) = self.asking.get_mut(instance.service()) {
            instances.remove(instance);
            if instances.is_empty() {
                self.asking.remove(instance.service());
            }
        }
    }

    /// Whom does a change of this service let go?
    fn changed(
        &mut self,
        graph: &Graph,
        board: &Board,
        service: &Name,
    ) -> Vec<(InstanceId, Question, Reply)> {
        let mut replies = Vec::new();
        let dependents: Vec<Arc<ServiceSpec>> = graph.dependents(service).cloned().collect();
        for spec in dependents {
            let Some(instances) = self.asking.get_mut(&spec.name) else {
                continue;
            };
            match judge(board, &spec) {
                Judgement::Free => {
                    for (instance, (question, asking)) in std::mem::take(instances) {
                        // One that was given up is told so first; it then asks again by itself.
                        let reply = match asking {
                            Asking::Waiting => Reply::Release,
                            Asking::Failed => Reply::Back,
                        };
                        replies.push((instance, question, reply));
                    }
                    self.asking.remove(&spec.name);
                }
                Judgement::Blocked(_) => {
                    instances.retain(|instance, (question, asking)| match asking {
                        Asking::Waiting => true,
                        Asking::Failed => {
                            replies.push((instance.clone(), *question, Reply::Back));
                            false
                        }
                    });
                }
                Judgement::Failed(on) => {
                    for (instance, (question, asking)) in instances.iter_mut() {
                        if *asking == Asking::Waiting {
                            *asking = Asking::Failed;
                            replies.push((instance.clone(), *question, Reply::Failed(on.clone())));
                        }
                    }
                }
            }
        }
        replies
    }
}

enum Judgement {
    Free,
    Blocked(Vec<Unmet>),
    Failed(Name),
}

fn judge(board: &Board, spec: &ServiceSpec) -> Judgement {
    let unmet = unmet(board, spec);
    if let Some(on) = unmet.iter().find(|(_, standing)| *standing == Standing::Impossible) {
        return Judgement::Failed(on.0.service.clone());
    }
    if unmet.is_empty() {
        Judgement::Free
    } else {
        Judgement::Blocked(unmet.into_iter().map(|(unmet, _)| unmet).collect())
    }
}

fn unmet(board: &Board, spec: &ServiceSpec) -> Vec<(Unmet, Standing)> {
    spec.depends_on
        .iter()
        .filter_map(|dependency| {
            let unmet = || Unmet { service: dependency.on.clone(), condition: dependency.condition };
            match standing(board, dependency) {
                Standing::Met => None,
                other => Some((unmet(), other)),
            }
        })
        .collect()
}

/// What a service waits for at the moment.
pub fn waits_for(board: &Board, spec: &ServiceSpec) -> Vec<Unmet> {
    unmet(board, spec).into_iter().map(|(unmet, _)| unmet).collect()
}

fn standing(board: &Board, dependency: &Dependency) -> Standing {
    let mut all = Standing::Met;
    for entry in board.instances_of(&dependency.on) {
        match of_instance(entry, dependency.condition) {
            Standing::Met => {}
            Standing::Pending => all = Standing::Pending,
            Standing::Impossible => {
                all = Standing::Impossible;
                break;
            }
        }
    }
    let absent = || {
        board.instances_of(&dependency.on).all(|e| match e.state {
            // One that starts with the tree may not have heard of it yet.
            State::Registered => !e.spec.autostart,
            State::Stopped => e.goal == Goal::Down,
            _ => false,
        })
    };
    match all {
        Standing::Impossible if !dependency.required => Standing::Met,
        Standing::Pending if !dependency.required && absent() => Standing::Met,
        other => other,
    }
}

fn of_instance(entry: &Entry, condition: Condition) -> Standing {
    let met = match condition {
        Condition::Started => matches!(entry.state, State::Running | State::Paused | State::Completed),
        Condition::Ready => entry.ready || entry.state == State::Completed,
        Condition::Completed => entry.state == State::Completed,
        Condition::Exited => match entry.state {
            State::Completed => true,
            State::Failed => !matches!(entry.failed, Some(FailedWhy::Dependency { .. })),
            State::Stopped => entry.exit.is_some(),
            State::Registered
            | State::Waiting
            | State::Starting
            | State::Running
            | State::Paused
            | State::Stopping
            | State::Crashed => false,
        },
    };
    match (met, entry.state) {
        (true, _) => Standing::Met,
        (false, State::Failed) => Standing::Impossible,
        (false, _) => Standing::Pending,
    }
}

/// The order in which a set of services is stopped: one is let go when all that depend on
/// it, within the set, are down.
#[derive(Debug, Clone, Default)]
pub struct StopOrder {
    /// For each service of the set: how many of its dependents are not down yet.
    holding: HashMap<Node, usize>,
    free: VecDeque<Node>,
}

impl StopOrder {
    /// For these services.
    pub fn new<'a>(graph: &Graph, names: impl IntoIterator<Item = &'a Name>) -> StopOrder {
        let mut holding: HashMap<Node, usize> =
            names.into_iter().filter_map(|n| graph.nodes.get(n)).map(|&node| (node, 0)).collect();
        let members: Vec<Node> = holding.keys().copied().collect();
        for node in members {
            let count = graph.needed_by[node].iter().filter(|n| holding.contains_key(*n)).count();
            holding.insert(node, count);
        }
        let mut free: Vec<Node> = holding.iter().filter(|(_, count)| **count == 0).map(|(n, _)| *n).collect();
        // The last declared first: the reverse of the start.
        free.sort_unstable_by(|a, b| b.cmp(a));
        StopOrder { holding, free: free.into() }
    }

    /// The next service that may be stopped now.
    pub fn next(&mut self, graph: &Graph) -> Option<Name> {
        self.free.pop_front().map(|node| graph.services[node].name.clone())
    }

    /// A service that was let go is down.
    pub fn down(&mut self, graph: &Graph, name: &Name) {
        let Some(&node) = graph.nodes.get(name) else {
            return;
        };
        if self.holding.remove(&node).is_none() {
            return;
        }
        let mut freed = Vec::new();
        for on in &graph.needs[node] {
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
        let graph =
            Graph::new(&[service("db", &[]), service("api", &["db"]), service("web", &["api"])]).unwrap();
        let all: Vec<Name> = graph.services().iter().map(|s| s.name.clone()).collect();
        let mut order = StopOrder::new(&graph, &all);
        for want in ["web", "api", "db"] {
            assert_eq!(order.next(&graph), Some(name(want)));
            assert_eq!(order.next(&graph), None, "nothing else before {want} is down");
            order.down(&graph, &name(want));
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
            let graph = Graph::new(&services).unwrap();
            let all: Vec<Name> = services.iter().map(|s| s.name.clone()).collect();
            let mut order = StopOrder::new(&graph, &all);
            let mut down: Vec<Name> = Vec::new();
            while let Some(next) = order.next(&graph) {
                for dependent in graph.dependents(&next) {
                    prop_assert!(down.contains(&dependent.name), "{} before {}", next, dependent.name);
                }
                order.down(&graph, &next);
                down.push(next);
            }
            prop_assert_eq!(down.len(), 30);
        }
    }
}
