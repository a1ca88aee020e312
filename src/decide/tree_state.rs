//! The tree state: the plan of a tree and the state of each of its instances, folded from the
//! events. Status, commands and the start gate all read it.
//!
//! Deliberately absent: the fold of one event, which is in `fold`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::graph::Graph;
use crate::model::cause::{FailureReason, UnmetCondition};
use crate::model::id::short_of;
use crate::model::sample::Sample;
use crate::model::status::{ChildCount, ChildStatus, GroupStatus, TreeStatus};
use crate::model::{
    Child, ExitOutcome, Goal, GroupSpec, Health, Incarnation, InstanceId, InstanceRecord, Name, Plan,
    ServiceSpec, ServiceStatus, State, StopCause,
};

/// The state of one instance, as its events tell it.
#[derive(Debug, Clone)]
pub struct InstanceState {
    /// The id of the instance.
    pub id: InstanceId,
    /// The spec of its service.
    pub spec: Arc<ServiceSpec>,
    /// The group that it is a child of; `None`: the root group.
    pub group: Option<Name>,
    /// The state that it is in.
    pub state: State,
    /// Whether it is ready.
    pub ready: bool,
    /// Its health, as its health checks report it.
    pub health: Health,
    /// The goal that its state machine pursues.
    pub goal: Goal,
    /// The pid of its process, while one runs.
    pub pid: Option<u32>,
    /// The incarnation of its current or last process; 0 before the first.
    pub incarnation: Incarnation,
    /// The number of the event by which its current or last process was started.
    pub born: u64,
    /// The number of restarts that nobody asked for.
    pub restarts: u64,
    /// The number of its restarts in a row, for `max_retries` and the backoff.
    pub attempts: u32,
    /// The goal that was last asked for; a shutdown or a removal does not change it.
    pub own_goal: Goal,
    /// When its process was started, since the start of the tree; `None` without a process.
    pub started: Option<Duration>,
    /// The wall-clock time at which it entered its state.
    pub since: SystemTime,
    /// How its last process ended; `None` before the first exit.
    pub exit: Option<ExitOutcome>,
    /// Why it failed, while it is in the state `failed`.
    pub failed: Option<FailureReason>,
    /// The conditions that it waits for, while it is in the state `waiting`.
    pub waiting_for: Vec<UnmetCondition>,
    /// When it restarts after a crash, since the start of the tree.
    pub retry_at: Option<Duration>,
    /// When SIGKILL follows while it is being stopped, since the start of the tree.
    pub kill_at: Option<Duration>,
    /// Why it was last stopped; `None` once it is started again.
    pub stopped_for: Option<StopCause>,
    /// The last failing check or stop command since its start, in words; `None` once it is ready or
    /// healthy.
    pub failing: Option<String>,
    /// How many of its processes SIGKILL has not ended, because they fork too fast to be found.
    pub forks_away: Option<usize>,
    /// How many of its processes had shed their marks and have ended unseen.
    pub lost_sight: Option<usize>,
    /// Why its output is not kept at the moment; `None` while it is kept.
    pub unkept: Option<String>,
    /// A note, in words, that its output is kept elsewhere than was asked for.
    pub output: Option<String>,
    /// The spawn fingerprint of its current or last process, where it is known.
    pub spawn_fingerprint: Option<u32>,
    /// Whether it is ready again when it is resumed; only meaningful while it is paused.
    ready_again: bool,
}

/// The plan of a tree, and the state of its instances and groups.
#[derive(Debug, Clone)]
pub struct TreeState {
    plan: Arc<Plan>,
    graph: Arc<Graph>,
    /// In declared order.
    entries: Vec<InstanceState>,
    places: HashMap<InstanceId, usize>,
    services: HashMap<Name, std::ops::Range<usize>>,
    groups: BTreeMap<Name, GroupStatus>,
    root_failed: bool,
    /// Projects that have given up, and were not started since.
    failed_projects: BTreeSet<String>,
    /// When the shutdown began, since the start of the tree; `None`: there is none.
    shutting_down: Option<Duration>,
    last_event: u64,
    /// The number of instances that have a process or are on their way to one.
    busy: usize,
    /// How many instances have each short name.
    shorts: HashMap<String, usize>,
    /// Instances that a command is removing. Their stop does not change `directive`.
    leaving: HashSet<InstanceId>,
}

mod fold;

impl TreeState {
    /// The state with every instance registered and none started. `now` is the wall-clock time.
    /// `Err`: the cycles among the dependencies of the plan.
    pub fn new(plan: Arc<Plan>, now: SystemTime) -> Result<TreeState, Vec<Vec<Name>>> {
        let mut tree_state = TreeState {
            graph: Arc::new(Graph::new(&plan.services)?),
            plan: Arc::clone(&plan),
            entries: Vec::new(),
            places: HashMap::new(),
            services: HashMap::new(),
            groups: BTreeMap::new(),
            root_failed: false,
            failed_projects: BTreeSet::new(),
            shutting_down: None,
            last_event: 0,
            busy: 0,
            shorts: HashMap::new(),
            leaving: HashSet::new(),
        };
        let mut parents: HashMap<&Name, &Name> = HashMap::new();
        for (name, group) in &plan.groups {
            for child in &group.children {
                parents.insert(child.name(), name);
            }
        }
        for spec in &plan.services {
            tree_state.register(spec, parents.get(&spec.name).copied(), now);
        }
        for (name, group) in &plan.groups {
            tree_state.register_group(name, group, parents.get(name).copied());
        }
        Ok(tree_state)
    }

    fn register(&mut self, spec: &Arc<ServiceSpec>, group: Option<&Name>, now: SystemTime) {
        let first = self.entries.len();
        for id in spec.instances() {
            self.places.insert(id.clone(), self.entries.len());
            *self.shorts.entry(id.short()).or_default() += 1;
            self.entries.push(InstanceState::new(id, spec, group, now));
        }
        self.services.insert(spec.name.clone(), first..self.entries.len());
    }

    fn register_group(&mut self, name: &Name, spec: &GroupSpec, parent: Option<&Name>) {
        let status = GroupStatus {
            name: name.clone(),
            parent: parent.cloned(),
            failed: false,
            members: spec.children.iter().map(|c| c.name().clone()).collect(),
        };
        self.groups.insert(name.clone(), status);
    }

    /// The groups from the root down to this one, itself the last; empty for the root.
    pub fn path_to(&self, group: Option<&Name>) -> Vec<Name> {
        let mut path: Vec<Name> = Vec::new();
        let mut at = group;
        while let Some(name) = at {
            path.push(name.clone());
            at = self.groups.get(name).and_then(|status| status.parent.as_ref());
        }
        path.reverse();
        path
    }

    /// Recomputes the indexes and counts over the entries after some were added or removed.
    fn find_places(&mut self) {
        self.places = self.entries.iter().map(|entry| entry.id.clone()).zip(0..).collect();
        self.services.clear();
        self.shorts.clear();
        for (at, entry) in self.entries.iter().enumerate() {
            *self.shorts.entry(entry.id.short()).or_default() += 1;
            self.services.entry(entry.spec.name.clone()).or_insert(at..at).end = at + 1;
        }
        self.busy = self.entries.iter().filter(|entry| is_busy(entry.state)).count();
        self.leaving.retain(|id| self.places.contains_key(id));
    }

    /// The plan of the tree, with all edits so far.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// The dependency graph of the plan.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// Every instance, in declared order.
    pub fn entries(&self) -> &[InstanceState] {
        &self.entries
    }

    /// The state of the instance with this id.
    pub fn entry(&self, id: &InstanceId) -> Option<&InstanceState> {
        self.places.get(id).map(|&at| &self.entries[at])
    }

    /// The instances of a service, in order; none for an unknown one.
    pub fn instances_of(&self, service: &Name) -> impl DoubleEndedIterator<Item = &InstanceState> {
        let range = self.services.get(service).cloned().unwrap_or(0..0);
        self.entries[range].iter()
    }

    /// The groups, by name.
    pub fn groups(&self) -> impl Iterator<Item = &GroupStatus> {
        self.groups.values()
    }

    /// The status of a group (`None`: the root) and of all that is below it. Returns `None` for an
    /// unknown group.
    pub fn tree(&self, group: Option<&Name>) -> Option<TreeStatus> {
        let spec = self.plan.group(group)?;
        let mut children = Vec::new();
        for child in &spec.children {
            match child {
                Child::Group(name) => children.extend(self.tree(Some(name)).map(ChildStatus::Group)),
                Child::Service(name) => {
                    children.extend(self.instances_of(name).map(|entry| ChildStatus::Instance {
                        name: entry.id.to_string(),
                        state: entry.state,
                        ready: entry.ready,
                        pid: entry.pid,
                        restarts: entry.restarts,
                    }));
                }
            }
        }
        let mut count = ChildCount { specs: children.len(), ..ChildCount::default() };
        for child in &children {
            match child {
                ChildStatus::Group(group) => {
                    count.supervisors += 1;
                    count.active += usize::from(!group.failed);
                }
                ChildStatus::Instance { pid, .. } => {
                    count.workers += 1;
                    count.active += usize::from(pid.is_some());
                }
            }
        }
        let failed = match group {
            Some(name) => self.groups.get(name).is_some_and(|group| group.failed),
            None => self.root_failed,
        };
        Some(TreeStatus { group: group.cloned(), strategy: spec.strategy, failed, count, children })
    }

    /// The number of instances that have a process or are on their way to one.
    pub fn busy(&self) -> usize {
        self.busy
    }

    /// Whether the root group gave up.
    pub fn root_failed(&self) -> bool {
        self.root_failed
    }

    /// Projects that have given up by `on_give_up = "exit"`, and were not started since.
    pub fn failed_projects(&self) -> impl Iterator<Item = &String> {
        self.failed_projects.iter()
    }

    /// Whether the tree has given up: its root group, or every one of its projects.
    pub fn has_given_up(&self) -> bool {
        self.root_failed || self.would_give_up_with(None)
    }

    /// Whether every project would have given up if this one did, too.
    pub fn would_give_up_with(&self, project: Option<&str>) -> bool {
        let mut projects = self.plan.services.iter().map(|spec| spec.project.as_deref()).peekable();
        let given_up = |one: Option<&str>| {
            one.is_some_and(|one| project == Some(one) || self.failed_projects.contains(one))
        };
        projects.peek().is_some() && projects.all(given_up)
    }

    /// The project that a group belongs to; `None` for the root, and in a tree without projects.
    pub fn project_of_group(&self, group: Option<&Name>) -> Option<&str> {
        let first = self.plan.services_below(group?.as_str()).into_iter().next()?;
        self.graph.service(&first)?.project.as_deref()
    }

    /// Whether the tree is going down.
    pub fn shutting_down(&self) -> bool {
        self.shutting_down.is_some()
    }

    /// When the shutdown began, since the start of the tree; `None`: there is none.
    pub fn shutting_down_since(&self) -> Option<Duration> {
        self.shutting_down
    }

    /// The number of the last event that was applied.
    pub fn last_event(&self) -> u64 {
        self.last_event
    }

    /// The rows of `status`; `sample` supplies the resource usage.
    pub fn rows(&self, now: Duration, sample: Option<&Sample>) -> Vec<ServiceStatus> {
        self.entries.iter().map(|entry| entry.row(&self.plan.project, now, sample)).collect()
    }

    /// The rows of `status` for the instances that `wanted` accepts.
    pub fn rows_of(
        &self,
        now: Duration,
        sample: Option<&Sample>,
        wanted: impl Fn(&InstanceId) -> bool,
    ) -> Vec<ServiceStatus> {
        let entries = self.entries.iter().filter(|entry| wanted(&entry.id));
        entries.map(|entry| entry.row(&self.plan.project, now, sample)).collect()
    }

    /// Like [`TreeState::shown`], for the printed id of an instance.
    pub fn shown_text(&self, printed: &str) -> String {
        let short = short_of(printed);
        match self.shorts.get(short) {
            Some(2..) => printed.to_owned(),
            // `None`: the instance was removed, and no other has its short name.
            Some(_) | None => short.to_owned(),
        }
    }

    /// The name by which an instance is shown: its short name if no other instance has that one.
    pub fn shown(&self, id: &InstanceId) -> String {
        self.shown_text(&id.to_string())
    }

    /// The name by which a service is shown: its short name if no other service has that one.
    pub fn shown_service(&self, name: &Name) -> String {
        let mut same = self.plan.services.iter().filter(|spec| spec.name.short() == name.short());
        match (same.next(), same.next()) {
            (Some(_), Some(_)) => name.to_string(),
            _ => name.short().to_owned(),
        }
    }
}

/// Whether an instance in this state has a process or is on its way to one.
fn is_busy(state: State) -> bool {
    match state {
        State::Waiting
        | State::Starting
        | State::Running
        | State::Paused
        | State::Stopping
        | State::Crashed => true,
        State::Registered | State::Stopped | State::Completed | State::Failed => false,
    }
}

impl InstanceState {
    /// An instance that is registered and was never started.
    fn new(id: InstanceId, spec: &Arc<ServiceSpec>, group: Option<&Name>, now: SystemTime) -> InstanceState {
        InstanceState {
            id,
            spec: Arc::clone(spec),
            group: group.cloned(),
            state: State::Registered,
            ready: false,
            health: Health::Unknown,
            goal: Goal::Down,
            pid: None,
            incarnation: Incarnation(0),
            born: 0,
            restarts: 0,
            attempts: 0,
            own_goal: Goal::Down,
            started: None,
            since: now,
            exit: None,
            failed: None,
            waiting_for: Vec::new(),
            retry_at: None,
            kill_at: None,
            stopped_for: None,
            failing: None,
            output: None,
            forks_away: None,
            lost_sight: None,
            unkept: None,
            spawn_fingerprint: None,
            ready_again: false,
        }
    }

    /// Enters a state, and clears what belonged to the one before.
    fn settle(&mut self, state: State) {
        self.state = state;
        self.waiting_for = Vec::new();
        self.retry_at = None;
        self.kill_at = None;
        self.failed = None;
    }

    /// The record of the instance for a later supervisor.
    pub fn past(&self) -> InstanceRecord {
        InstanceRecord {
            instance: self.id.clone(),
            goal: self.own_goal,
            state: self.state,
            ready: match self.state {
                State::Paused => self.ready_again,
                _ => self.ready,
            },
            incarnation: self.incarnation,
            restarts: self.restarts,
            attempts: self.attempts,
            pid: self.pid,
            started: self.started,
            retry_at: self.retry_at,
            since: self.since,
            exit: self.exit.clone(),
            failed: self.failed.clone(),
            stopped_for: self.stopped_for,
            spawn_fingerprint: self.spawn_fingerprint,
            output: self.unkept.clone().or_else(|| self.output.clone()),
        }
    }

    /// The row of the instance in `status`. `tree`: the name of the tree, which stands in for the
    /// project where the service has none.
    pub fn row(&self, tree: &str, now: Duration, sample: Option<&Sample>) -> ServiceStatus {
        let project = self.spec.project.as_deref().unwrap_or(tree);
        let usage = sample.and_then(|s| s.instances.get(&self.id)).filter(|_| self.state.has_process());
        ServiceStatus {
            name: self.id.short(),
            id: format!("{project}/{}", self.id.short()),
            service: self.spec.name.clone(),
            project: Some(project.to_owned()),
            group: self.group.clone(),
            state: self.state,
            ready: self.ready,
            health: self.health,
            goal: self.goal,
            pid: self.pid,
            incarnation: self.incarnation.0,
            restarts: self.restarts,
            uptime_s: self.started.map(|at| now.saturating_sub(at).as_secs_f64()),
            since: self.since,
            exit: self.exit.clone(),
            failed: self.failed.clone(),
            waiting_for: self.waiting_for.clone(),
            retry_in_s: self.retry_at.map(|at| at.saturating_sub(now).as_secs_f64()),
            cpu_percent: usage.and_then(|u| u.cpu_percent),
            memory_bytes: usage.map(|u| u.memory_bytes),
            processes: usage.map(|u| u.processes),
            output: self.unkept.clone().or_else(|| self.output.clone()),
        }
    }
}
