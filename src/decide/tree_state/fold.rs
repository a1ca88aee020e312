//! How one event changes the tree state: the fold itself.
//!
//! Everything that shows or waits for a state folds the same events. Deliberately absent: the
//! queries on the state, which are in the parent module.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use super::super::plan_edit;
use super::{InstanceState, TreeState};
use crate::decide::graph::Graph;
use crate::decide::resolve::resolve;
use crate::decide::tree_state::is_busy;
use crate::model::cause::StartCause;
use crate::model::event::{GroupFact, InstanceFact, PoolFact, TreeFact};
use crate::model::plan::{GiveUp, PlanChange};
use crate::model::spec::scaled;
use crate::model::{Addition, Command, Event, Fact, Goal, Health, InstanceId, InstanceRecord, Name, State};

impl TreeState {
    fn grow(&mut self, addition: &Addition, now: SystemTime) {
        // The edit was checked before its event was recorded.
        let Ok((plan, graph)) = plan_edit::with_graph(&self.plan, addition) else {
            return;
        };
        (self.plan, self.graph) = (Arc::new(plan), Arc::new(graph));
        let mut parents: HashMap<&Name, &Name> = HashMap::new();
        for (name, group) in &addition.groups {
            parents.extend(group.children.iter().map(|child| (child.name(), name)));
        }
        if let Some(into) = &addition.into {
            parents.extend(addition.children.iter().map(|child| (child.name(), into)));
        }
        for spec in &addition.services {
            self.register(spec, parents.get(&spec.name).copied(), now);
        }
        for (name, group) in &addition.groups {
            self.register_group(name, group, parents.get(name).copied());
        }
        if let Some(parent) = addition.into.as_ref().and_then(|into| self.groups.get_mut(into)) {
            parent.members.extend(addition.children.iter().map(|child| child.name().clone()));
        }
    }

    fn reconfigure(&mut self, change: &PlanChange) {
        // The edit was checked before its event was recorded.
        let Ok((plan, graph)) = plan_edit::reconfigured(&self.plan, change) else {
            return;
        };
        (self.plan, self.graph) = (Arc::new(plan), Arc::new(graph));
        for spec in &change.services {
            let range = self.services.get(&spec.name).cloned().unwrap_or(0..0);
            for entry in &mut self.entries[range] {
                entry.spec = Arc::clone(spec);
            }
        }
    }

    fn shrink(&mut self, services: &[Name], groups: &[Name]) {
        let plan = plan_edit::without(&self.plan, services, groups);
        let Ok(graph) = Graph::new(&plan.services) else {
            return;
        };
        (self.plan, self.graph) = (Arc::new(plan), Arc::new(graph));
        let gone: HashSet<&Name> = services.iter().collect();
        self.entries.retain(|entry| !gone.contains(&entry.spec.name));
        self.find_places();
        self.groups.retain(|name, _| !groups.contains(name));
        for status in self.groups.values_mut() {
            status.members.retain(|name| !services.contains(name) && !groups.contains(name));
        }
    }

    fn scale(&mut self, service: &Name, replicas: u32, now: SystemTime) {
        // The edit was checked before its event was recorded.
        let Ok(plan) = plan_edit::scaled(&self.plan, service, replicas) else {
            return;
        };
        let (Ok(graph), Some(spec)) = (Graph::new(&plan.services), plan.service(service.as_str()).cloned())
        else {
            return;
        };
        (self.plan, self.graph) = (Arc::new(plan), Arc::new(graph));
        let range = self.services.get(service).cloned().unwrap_or(0..0);
        let group = self.entries.get(range.start).and_then(|entry| entry.group.clone());
        let mut was: Vec<InstanceState> = self.entries.drain(range.clone()).collect();
        let is = spec.instances().map(|id| match was.iter().position(|entry| entry.id == id) {
            Some(at) => InstanceState { spec: Arc::clone(&spec), ..was.swap_remove(at) },
            None => InstanceState::new(id, &spec, group.as_ref(), now),
        });
        let is: Vec<InstanceState> = is.collect();
        self.entries.splice(range.start..range.start, is);
        self.find_places();
    }

    /// Applies one event.
    pub fn apply(&mut self, event: &Event) {
        self.last_event = event.seq;
        match &event.fact {
            Fact::Instance(fact) => self.apply_to_instance(event, fact),
            Fact::Group(fact) => self.apply_to_group(fact),
            Fact::Tree(fact) => self.apply_to_tree(event, fact),
            // The pools are not part of the tree.
            Fact::Pool(PoolFact::Scaled { .. }) => {}
        }
    }

    fn apply_to_group(&mut self, fact: &GroupFact) {
        match fact {
            // A group that escalates is not marked as failed: its parent decides what follows.
            GroupFact::GaveUp { then: GiveUp::Escalate, .. } => {}
            GroupFact::GaveUp { group: Some(group), .. } => self.mark_as_failed(group),
            GroupFact::GaveUp { group: None, .. } => self.root_failed = true,
            GroupFact::Restarting { .. } | GroupFact::ShutDown { .. } => {}
        }
    }

    fn mark_as_failed(&mut self, group: &Name) {
        if let Some(status) = self.groups.get_mut(group) {
            status.failed = true;
        }
    }

    fn apply_to_tree(&mut self, event: &Event, fact: &TreeFact) {
        match fact {
            TreeFact::ShutdownStarted { .. } => self.shutting_down = Some(event.since_start),
            TreeFact::Added { addition } => self.grow(addition, event.at),
            TreeFact::Reconfigured { change } => self.reconfigure(change),
            TreeFact::Removed { services, groups } => self.shrink(services, groups),
            TreeFact::Scaled { service, to, .. } => self.scale(service, *to, event.at),
            TreeFact::ProjectGaveUp { project, .. } => {
                self.failed_projects.insert(project.clone());
            }
            TreeFact::TakenOver { instances, failed_groups, failed_projects } => {
                self.failed_projects.extend(failed_projects.iter().cloned());
                instances.iter().for_each(|past| self.take_over(past));
                failed_groups.iter().for_each(|group| self.mark_as_failed(group));
            }
            TreeFact::CommandAccepted { command, .. } => self.take_leave(command),
            TreeFact::SupervisorStarted { .. }
            | TreeFact::StoreLost { .. }
            | TreeFact::ScaleDecided { .. }
            | TreeFact::ActorBroke { .. }
            | TreeFact::CommandDenied { .. }
            | TreeFact::ShutdownDone => {}
        }
    }

    /// Notes the instances that a command is going to remove, if it succeeds.
    fn take_leave(&mut self, command: &Command) {
        let leaving: Vec<InstanceId> = match command {
            Command::Remove { select } => {
                let all = resolve(self, select).unwrap_or_default();
                all.iter().flat_map(|id| self.instances_of(id.service())).map(|e| e.id.clone()).collect()
            }
            Command::Scale { service, replicas } => match self.graph.service(service) {
                Some(spec) => scaled(service, spec.replicas, *replicas, spec.naming()).0,
                None => Vec::new(),
            },
            Command::Start { .. }
            | Command::Stop { .. }
            | Command::Restart { .. }
            | Command::Pause { .. }
            | Command::Resume { .. }
            | Command::Add { .. }
            | Command::Reconfigure { .. } => return,
        };
        self.leaving.extend(leaving);
    }

    fn take_over(&mut self, past: &InstanceRecord) {
        let Some(entry) = self.places.get(&past.instance).map(|at| &mut self.entries[*at]) else {
            return;
        };
        let before = is_busy(entry.state);
        entry.state = past.state;
        entry.ready = past.ready && past.state != State::Paused;
        entry.ready_again = past.ready && past.state == State::Paused;
        (entry.goal, entry.own_goal) = (past.goal, past.goal);
        entry.pid = past.pid;
        entry.incarnation = past.incarnation;
        (entry.restarts, entry.attempts) = (past.restarts, past.attempts);
        (entry.started, entry.retry_at) = (past.started, past.retry_at);
        entry.since = past.since;
        entry.exit.clone_from(&past.exit);
        entry.failed.clone_from(&past.failed);
        entry.stopped_for = past.stopped_for;
        entry.spawn_fingerprint = past.spawn_fingerprint;
        entry.output.clone_from(&past.output);
        match (before, is_busy(past.state)) {
            (false, true) => self.busy += 1,
            (true, false) => self.busy -= 1,
            (true, true) | (false, false) => {}
        }
    }

    fn apply_to_instance(&mut self, event: &Event, fact: &InstanceFact) {
        let Some(at) = self.places.get(fact.instance()).copied() else {
            return;
        };
        let entry = &mut self.entries[at];
        // A late fact about an earlier incarnation does not change the state.
        if fact.incarnation().is_some_and(|told| told < entry.incarnation) {
            return;
        }
        let before = entry.state;
        if let Some(state) = fact.state() {
            entry.settle(state);
        }
        entry.apply(event, fact);
        match fact {
            InstanceFact::GoalSet { goal, .. } => {
                let leaves = match goal {
                    Goal::Down => self.leaving.contains(&entry.id),
                    Goal::Up => self.leaving.remove(&entry.id),
                };
                // Neither a shutdown nor a removal counts as the user's own goal for the service.
                if self.shutting_down.is_none() && (*goal == Goal::Up || !leaves) {
                    entry.own_goal = *goal;
                }
            }
            InstanceFact::Starting { cause: StartCause::Command, .. } => self.clear_mark(at),
            _ => {}
        }
        self.stamp(at, before, event);
    }

    /// Clears the failed marks of the groups and the project above an instance that is started by
    /// hand.
    fn clear_mark(&mut self, at: usize) {
        let mut above = self.entries[at].group.clone();
        self.root_failed = false;
        if let Some(project) = &self.entries[at].spec.project {
            self.failed_projects.remove(project);
        }
        while let Some(name) = above {
            let Some(group) = self.groups.get_mut(&name) else {
                break;
            };
            group.failed = false;
            above = group.parent.clone();
        }
    }

    fn stamp(&mut self, at: usize, before: State, event: &Event) {
        let entry = &mut self.entries[at];
        if entry.state != before {
            entry.since = event.at;
            match (is_busy(before), is_busy(entry.state)) {
                (false, true) => self.busy += 1,
                (true, false) => self.busy -= 1,
                (true, true) | (false, false) => {}
            }
        }
    }
}

impl InstanceState {
    /// Applies a fact about this instance.
    fn apply(&mut self, event: &Event, fact: &InstanceFact) {
        match fact {
            // The tree knows whether the goal is the user's own.
            InstanceFact::GoalSet { goal, .. } => self.goal = *goal,
            InstanceFact::Waiting { for_, .. } => self.waiting_for.clone_from(for_),
            InstanceFact::Starting { incarnation, cause, .. } => {
                self.born = event.seq;
                self.incarnation = *incarnation;
                self.spawn_fingerprint = Some(self.spec.spawn_fingerprint());
                self.started = Some(event.since_start);
                self.health = Health::Unknown;
                self.failing = None;
                (self.output, self.unkept) = (None, None);
                (self.forks_away, self.lost_sight) = (None, None);
                self.stopped_for = None;
                self.restarts += u64::from(cause.is_restart());
                if *cause == StartCause::Command || *cause == StartCause::Boot {
                    self.attempts = 0;
                }
            }
            InstanceFact::ForksAway { left, .. } => self.forks_away = Some(*left),
            InstanceFact::LostSight { of, .. } => self.lost_sight = Some(*of),
            InstanceFact::OutputElsewhere { file, reason, .. } => {
                self.output = Some(crate::present::units::goes_elsewhere(file, reason));
            }
            InstanceFact::OutputLost { lost_bytes, reason, .. } => {
                self.unkept = lost_bytes.is_none().then(|| crate::present::units::not_kept(reason));
            }
            InstanceFact::EnvRenewed { spawn_fingerprint, .. } => {
                self.spawn_fingerprint = Some(*spawn_fingerprint);
            }
            InstanceFact::Running { pid, .. } => self.pid = *pid,
            InstanceFact::Ready { .. } => {
                match self.state {
                    State::Paused => self.ready_again = true,
                    _ => self.ready = true,
                }
                self.failing = None;
            }
            InstanceFact::CheckFailed { message, check, .. }
            | InstanceFact::CheckUnable { message, check, .. } => {
                self.failing = Some(format!("{check} check: {message}"));
            }
            InstanceFact::HealthChanged { health, .. } => {
                self.health = *health;
                if *health == Health::Healthy {
                    self.failing = None;
                }
            }
            InstanceFact::Paused { .. } => self.ready_again = std::mem::take(&mut self.ready),
            InstanceFact::Killed { .. } => self.ready = false,
            InstanceFact::Resumed { ready, .. } => self.ready = *ready,
            InstanceFact::Stopping { timeout, cause, .. } => {
                self.stopped_for = Some(*cause);
                self.ready = false;
                self.kill_at = Some(event.since_start + *timeout);
            }
            InstanceFact::LeftBehind { .. } => {
                self.ready = false;
                self.kill_at = Some(event.since_start + self.spec.stop.timeout);
            }
            InstanceFact::StopCommandFailed { message, .. } => {
                self.failing = Some(format!("stop command: {message}"));
            }
            InstanceFact::Stuck { .. }
            | InstanceFact::ActorBroke { .. }
            | InstanceFact::HookFailed { .. } => {}
            InstanceFact::Exited { exit, .. } => {
                self.exit = Some(exit.clone());
                self.pid = None;
                self.ready = false;
                self.started = None;
                self.health = Health::Unknown;
            }
            InstanceFact::Crashed { retry_in, attempt, .. } => {
                self.attempts = *attempt;
                self.retry_at = Some(event.since_start + *retry_in);
            }
            InstanceFact::Failed { why, .. } => self.failed = Some(why.clone()),
            InstanceFact::Stopped { .. } | InstanceFact::Completed { .. } => {}
        }
    }
}
