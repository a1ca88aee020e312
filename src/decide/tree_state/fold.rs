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
            // A group that escalates is not marked as failed: its parent decides what follows.
            Fact::GroupGaveUp { then: GiveUp::Escalate, .. } => {}
            Fact::GroupGaveUp { group: Some(group), .. } => {
                if let Some(status) = self.groups.get_mut(group) {
                    status.failed = true;
                }
            }
            Fact::GroupGaveUp { group: None, .. } => self.root_failed = true,
            Fact::ShutdownStarted { .. } => self.shutting_down = Some(event.since_start),
            Fact::Added { addition } => self.grow(addition, event.at),
            Fact::Reconfigured { change } => self.reconfigure(change),
            Fact::Removed { services, groups } => self.shrink(services, groups),
            Fact::Scaled { service, to, .. } => self.scale(service, *to, event.at),
            Fact::ProjectGaveUp { project, .. } => {
                self.failed_projects.insert(project.clone());
            }
            Fact::TakenOver { instances, failed_groups, failed_projects } => {
                self.failed_projects.extend(failed_projects.iter().cloned());
                for past in instances {
                    self.take_over(past);
                }
                for group in failed_groups {
                    if let Some(status) = self.groups.get_mut(group) {
                        status.failed = true;
                    }
                }
            }
            Fact::CommandAccepted { command, .. } => self.take_leave(command),
            Fact::SupervisorStarted { .. }
            | Fact::StoreLost { .. }
            | Fact::ScaleDecided { .. }
            | Fact::PoolScaled { .. }
            | Fact::CommandDenied { .. }
            | Fact::GroupRestarting { .. }
            | Fact::GroupShutDown { .. }
            | Fact::ShutdownDone => {}
            fact => self.apply_to_instance(event, fact),
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
        (entry.goal, entry.directive) = (past.goal, past.goal);
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

    fn apply_to_instance(&mut self, event: &Event, fact: &Fact) {
        let Some(at) = fact.instance().and_then(|id| self.places.get(id)).copied() else {
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
        match fact {
            Fact::GoalSet { goal, .. } => {
                entry.goal = *goal;
                let leaves = match goal {
                    Goal::Down => self.leaving.contains(&entry.id),
                    Goal::Up => self.leaving.remove(&entry.id),
                };
                // Neither a shutdown nor a removal counts as a directive for the service.
                if self.shutting_down.is_none() && (*goal == Goal::Up || !leaves) {
                    entry.directive = *goal;
                }
            }
            Fact::Waiting { for_, .. } => entry.waiting_for.clone_from(for_),
            Fact::Starting { incarnation, cause, .. } => {
                entry.born = event.seq;
                entry.incarnation = *incarnation;
                entry.spawn_fingerprint = Some(entry.spec.spawn_fingerprint());
                entry.started = Some(event.since_start);
                entry.health = Health::Unknown;
                entry.failing = None;
                (entry.output, entry.unkept) = (None, None);
                (entry.forks_away, entry.lost_sight) = (None, None);
                entry.stopped_for = None;
                entry.restarts += u64::from(cause.is_restart());
                if *cause == StartCause::Command || *cause == StartCause::Boot {
                    entry.attempts = 0;
                }
                if *cause == StartCause::Command {
                    self.clear_mark(at);
                    return self.stamp(at, before, event);
                }
            }
            Fact::ForksAway { left, .. } => entry.forks_away = Some(*left),
            Fact::LostSight { of, .. } => entry.lost_sight = Some(*of),
            Fact::OutputElsewhere { file, reason, .. } => {
                entry.output = Some(crate::present::units::goes_elsewhere(file, reason));
            }
            Fact::OutputLost { lost_bytes, reason, .. } => {
                entry.unkept = lost_bytes.is_none().then(|| crate::present::units::not_kept(reason));
            }
            Fact::EnvRenewed { spawn_fingerprint, .. } => entry.spawn_fingerprint = Some(*spawn_fingerprint),
            Fact::Running { pid, .. } => entry.pid = Some(*pid),
            Fact::Ready { .. } => {
                match entry.state {
                    State::Paused => entry.ready_again = true,
                    _ => entry.ready = true,
                }
                entry.failing = None;
            }
            Fact::CheckFailed { message, check, .. } | Fact::CheckUnable { message, check, .. } => {
                entry.failing = Some(format!("{check} check: {message}"));
            }
            Fact::HealthChanged { health, .. } => {
                entry.health = *health;
                if *health == Health::Healthy {
                    entry.failing = None;
                }
            }
            Fact::Paused { .. } => entry.ready_again = std::mem::take(&mut entry.ready),
            Fact::Killed { .. } => entry.ready = false,
            Fact::Resumed { ready, .. } => entry.ready = *ready,
            Fact::Stopping { timeout, cause, .. } => {
                entry.stopped_for = Some(*cause);
                entry.ready = false;
                entry.kill_at = Some(event.since_start + *timeout);
            }
            Fact::LeftBehind { .. } => {
                entry.ready = false;
                entry.kill_at = Some(event.since_start + entry.spec.stop.timeout);
            }
            Fact::StopCommandFailed { message, .. } => {
                entry.failing = Some(format!("stop command: {message}"));
            }
            Fact::Stuck { .. } | Fact::ActorBroke { .. } | Fact::HookFailed { .. } => {}
            Fact::Exited { exit, .. } => {
                entry.exit = Some(exit.clone());
                entry.pid = None;
                entry.ready = false;
                entry.started = None;
                entry.health = Health::Unknown;
            }
            Fact::Crashed { retry_in, attempt, .. } => {
                entry.attempts = *attempt;
                entry.retry_at = Some(event.since_start + *retry_in);
            }
            Fact::Failed { why, .. } => entry.failed = Some(why.clone()),
            Fact::Stopped { .. }
            | Fact::Completed { .. }
            | Fact::SupervisorStarted { .. }
            | Fact::TakenOver { .. }
            | Fact::StoreLost { .. }
            | Fact::CommandAccepted { .. }
            | Fact::CommandDenied { .. }
            | Fact::GroupRestarting { .. }
            | Fact::GroupShutDown { .. }
            | Fact::GroupGaveUp { .. }
            | Fact::ProjectGaveUp { .. }
            | Fact::Added { .. }
            | Fact::Reconfigured { .. }
            | Fact::Scaled { .. }
            | Fact::ScaleDecided { .. }
            | Fact::PoolScaled { .. }
            | Fact::Removed { .. }
            | Fact::ShutdownStarted { .. }
            | Fact::ShutdownDone => {}
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
