//! What is, folded from what happened. The one picture that status, commands and the
//! dependency graph read.

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

/// What is known of one instance.
#[derive(Debug, Clone)]
pub struct InstanceState {
    /// Who.
    pub id: InstanceId,
    /// Its service.
    pub spec: Arc<ServiceSpec>,
    /// The group it hangs under.
    pub group: Option<Name>,
    /// What is.
    pub state: State,
    /// Whether it is ready.
    pub ready: bool,
    /// What its checks say.
    pub health: Health,
    /// What is wanted.
    pub goal: Goal,
    /// Its process.
    pub pid: Option<u32>,
    /// Its current or last process.
    pub incarnation: Incarnation,
    /// The number of the event that told of its making.
    pub born: u64,
    /// Returns that nobody asked for.
    pub restarts: u64,
    /// The same in a row, for `max_retries` and the backoff.
    pub attempts: u32,
    /// What the user wanted before the tree went down.
    pub directive: Goal,
    /// When its process was made.
    pub started: Option<Duration>,
    /// When it came into its state.
    pub since: SystemTime,
    /// How its last process ended.
    pub exit: Option<ExitOutcome>,
    /// Why it failed.
    pub failed: Option<FailureReason>,
    /// What it waits for.
    pub waiting_for: Vec<UnmetCondition>,
    /// When it comes back.
    pub retry_at: Option<Duration>,
    /// When SIGKILL follows, while it is being stopped.
    pub kill_at: Option<Duration>,
    /// Why it was last stopped.
    pub stopped_for: Option<StopCause>,
    /// The last failing check since its start, in words.
    pub failing: Option<String>,
    /// So many of its processes forked away from SIGKILL.
    pub forks_away: Option<usize>,
    /// So many of its processes had shed their marks and have ended unseen.
    pub lost_sight: Option<usize>,
    /// Why its output is not kept at the moment.
    pub unkept: Option<String>,
    /// What is wrong with where its output is kept.
    pub output: Option<String>,
    /// What its process was made with.
    pub spawn_fingerprint: Option<u32>,
    /// While it is paused: whether it is ready when it goes on.
    ready_again: bool,
}

/// What there is, and how each instance of it stands.
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
    /// Since when.
    shutting_down: Option<Duration>,
    last_event: u64,
    /// Instances that have, want or will have a process.
    busy: usize,
    /// How many instances have each short name.
    shorts: HashMap<String, usize>,
    /// Who is being taken out: that they go down for it is nobody's wish for what stays.
    leaving: HashSet<InstanceId>,
}

mod fold;

impl TreeState {
    /// Everything registered, nothing started. `now` is the wall clock, for people. `Err`: the
    /// cycles of the plan's dependencies.
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

    /// Where each entry lies, after some have come or gone.
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

    /// What there is.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Its dependencies.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// Every instance, in declared order.
    pub fn entries(&self) -> &[InstanceState] {
        &self.entries
    }

    /// The instance of that id.
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

    /// A group, `None` for the root, and all that hangs under it. `None` is returned for a group
    /// that is not there.
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

    /// How many instances have, want or will have a process.
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

    /// Whether the tree has given up: by its root, or all its projects one after the other.
    pub fn has_given_up(&self) -> bool {
        self.root_failed || self.would_give_up_with(None)
    }

    /// The same once this project has given up, too.
    pub fn would_give_up_with(&self, project: Option<&str>) -> bool {
        let mut projects = self.plan.services.iter().map(|spec| spec.project.as_deref()).peekable();
        let given_up = |one: Option<&str>| {
            one.is_some_and(|one| project == Some(one) || self.failed_projects.contains(one))
        };
        projects.peek().is_some() && projects.all(given_up)
    }

    /// The project that a group, or its root, belongs to, where the tree has several.
    pub fn project_of_group(&self, group: Option<&Name>) -> Option<&str> {
        let first = self.plan.services_below(group?.as_str()).into_iter().next()?;
        self.graph.service(&first)?.project.as_deref()
    }

    /// Whether the tree is going down.
    pub fn shutting_down(&self) -> bool {
        self.shutting_down.is_some()
    }

    /// Since when it is, by the time since the start.
    pub fn shutting_down_since(&self) -> Option<Duration> {
        self.shutting_down
    }

    /// The number of the last event taken.
    pub fn last_event(&self) -> u64 {
        self.last_event
    }

    /// The rows of `status`, with the last sample beside them.
    pub fn rows(&self, now: Duration, sample: Option<&Sample>) -> Vec<ServiceStatus> {
        self.entries.iter().map(|entry| entry.row(&self.plan.project, now, sample)).collect()
    }

    /// The same of some.
    pub fn rows_of(
        &self,
        now: Duration,
        sample: Option<&Sample>,
        wanted: impl Fn(&InstanceId) -> bool,
    ) -> Vec<ServiceStatus> {
        let entries = self.entries.iter().filter(|entry| wanted(&entry.id));
        entries.map(|entry| entry.row(&self.plan.project, now, sample)).collect()
    }

    /// The same as [`TreeState::shown`], of a printed instance.
    pub fn shown_text(&self, printed: &str) -> String {
        let short = short_of(printed);
        match self.shorts.get(short) {
            Some(2..) => printed.to_owned(),
            // One that was taken out is nobody's any more.
            Some(_) | None => short.to_owned(),
        }
    }

    /// An instance as people are told of it: by its short name where no other instance has that.
    pub fn shown(&self, id: &InstanceId) -> String {
        self.shown_text(&id.to_string())
    }

    /// The same of a service.
    pub fn shown_service(&self, name: &Name) -> String {
        let mut same = self.plan.services.iter().filter(|spec| spec.name.short() == name.short());
        match (same.next(), same.next()) {
            (Some(_), Some(_)) => name.to_string(),
            _ => name.short().to_owned(),
        }
    }
}

/// Whether a state goes on by itself.
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
    /// Registered, and never started.
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
            directive: Goal::Down,
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

    /// Into a state, without what belonged to the one before.
    fn settle(&mut self, state: State) {
        self.state = state;
        self.waiting_for = Vec::new();
        self.retry_at = None;
        self.kill_at = None;
        self.failed = None;
    }

    /// What a later supervisor is to know of it.
    pub fn past(&self) -> InstanceRecord {
        InstanceRecord {
            instance: self.id.clone(),
            goal: self.directive,
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

    /// Its row of `status`.
    /// `tree`: the name of the tree, whose project it is of where it names no other.
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
