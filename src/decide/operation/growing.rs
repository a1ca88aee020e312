//! The commands that edit the plan: starting what was added, and removing what is down.
//!
//! Deliberately absent: what the edited plan is and whether it is valid, which
//! `plan_edit` decides.

use std::collections::HashSet;
use std::sync::Arc;

use super::{BranchNumber, CommandEffect, CommandInput, CommandNumber, Operation, Operations, Part, Work};
use crate::decide::graph::StopOrder;
use crate::decide::plan_edit::{self, Branch};
use crate::decide::tree_state::{InstanceState, TreeState};
use crate::model::cause::StartCause;
use crate::model::command::InstanceAnswer;
use crate::model::event::TreeFact;
use crate::model::{Answer, Denial, DenialCode, Fact, Goal, InstanceId, Name, ServiceSpec, State, spec};

/// A removal whose state machines may still exist. Its names can't be used again before they
/// have ended; then the command is answered.
#[derive(Debug)]
pub(super) struct Leaving {
    /// The printed names of its instances, services and groups.
    pub(super) names: HashSet<String>,
    pub(super) branches: HashSet<BranchNumber>,
    ticket: Option<CommandNumber>,
    results: Vec<InstanceAnswer>,
}

impl Operations {
    /// Starts what was added, as a start by hand would.
    pub(super) fn added(
        &mut self,
        tree_state: &TreeState,
        ticket: CommandNumber,
        names: &[Name],
        out: &mut Vec<CommandEffect>,
    ) {
        let new: Vec<&InstanceState> = names.iter().flat_map(|name| tree_state.instances_of(name)).collect();
        // An instance that is known from earlier may have been stopped by hand.
        let starts = |entry: &&InstanceState| {
            let rests = entry.state == State::Stopped && entry.goal == Goal::Down;
            entry.spec.autostart && !rests
        };
        self.start_new(tree_state, ticket, new.into_iter().partition(starts), out);
    }

    /// Starts the copies that were added to a service, or leaves them down as the others are.
    pub(super) fn copied(
        &mut self,
        tree_state: &TreeState,
        ticket: CommandNumber,
        service: &Name,
        (from, goal): (u32, Goal),
        out: &mut Vec<CommandEffect>,
    ) {
        let naming = tree_state.graph().service(service).map(|spec| spec.naming()).unwrap_or_default();
        let before: HashSet<InstanceId> = spec::copies(service, from, naming).collect();
        let new = tree_state.instances_of(service).filter(|entry| !before.contains(&entry.id));
        let (start, leave): (Vec<&InstanceState>, Vec<&InstanceState>) = new.partition(|_| goal == Goal::Up);
        let rest: Vec<InstanceId> = leave.iter().map(|entry| entry.id.clone()).collect();
        self.start_new(tree_state, ticket, (start, leave), out);
        if !rest.is_empty() {
            // They stay down by a stop, so that their goal is recorded as that of the others is.
            let order = StopOrder::new(tree_state.graph(), [service]);
            self.begin(tree_state, Operation::new(None, Work::Stop(order), rest), out);
        }
    }

    /// Denies a name that is not free yet, because its last owner is still leaving the tree.
    pub(super) fn refuse_leaving(&self, mut names: impl Iterator<Item = String>) -> Result<(), Denial> {
        match names.find(|name| self.leaving.iter().any(|leaving| leaving.names.contains(name))) {
            None => Ok(()),
            Some(name) => Err(Denial {
                code: DenialCode::Exists,
                reason: format!("{name} is still being removed from the tree"),
                hint: Some("wait until the command that removes it is answered".to_owned()),
            }),
        }
    }

    /// The goal of a service: up if the goal of any of its copies is up.
    pub(super) fn goal_of(&self, tree_state: &TreeState, service: &Name) -> Goal {
        let up = tree_state.instances_of(service).any(|entry| self.goal(entry) == Goal::Up);
        if up { Goal::Up } else { Goal::Down }
    }

    /// Whether all parts of a removal are down and stay down; otherwise they say why not.
    fn goes(
        &self,
        tree_state: &TreeState,
        parts: &mut [(InstanceId, Part)],
        in_the_way: Option<&String>,
        is_meant: impl Fn(&InstanceState) -> bool,
    ) -> bool {
        let mut goes = in_the_way.is_none();
        for (id, part) in parts {
            let Part::Done(Some(answer)) = part else {
                continue;
            };
            let returns =
                |entry: &InstanceState| is_meant(entry) && (is_up(entry) || self.goal(entry) == Goal::Up);
            if let Some(reason) = in_the_way.filter(|_| answer.ok) {
                (answer.ok, answer.message) = (false, format!("not removed: {reason}"));
            } else if answer.ok && tree_state.entry(id).is_some_and(returns) {
                let message = "not removed: it was started again meanwhile".to_owned();
                (answer.ok, answer.message) = (false, message);
            }
            goes &= answer.ok;
        }
        goes
    }

    fn start_new(
        &mut self,
        tree_state: &TreeState,
        ticket: CommandNumber,
        (start, leave): (Vec<&InstanceState>, Vec<&InstanceState>),
        out: &mut Vec<CommandEffect>,
    ) {
        let ids =
            |entries: Vec<&InstanceState>| entries.into_iter().map(|e| e.id.clone()).collect::<Vec<_>>();
        let (named, left) = (ids(start), ids(leave));
        let mut targets = self.with_resting_dependencies(tree_state, &named);
        let implied = targets.iter().filter(|id| !named.contains(id)).cloned().collect();
        let first_left = targets.len();
        targets.extend(left.into_iter().filter(|id| !targets.contains(id)).collect::<Vec<_>>());
        let work = Work::Start(StartCause::Command);
        let mut operation = Operation { implied, ..Operation::new(Some(ticket), work, targets) };
        for at in first_left..operation.parts.len() {
            operation.settle(at, Some((true, "added".to_owned())));
        }
        self.begin(tree_state, operation, out);
    }

    /// Whether another command has directives under way for what this one removes. They would
    /// never be acknowledged after it.
    pub(super) fn is_held_up(&self, removing: &Operation) -> bool {
        let unanswered = |other: &Operation, id: &InstanceId| {
            let part = other.places.get(id).map(|at| &other.parts[*at].1);
            part.is_some_and(|part| !matches!(part, Part::Done(_)))
        };
        // A group must stay until it has dealt with every leaving branch below it.
        if matches!(&removing.work, Work::Remove(_, removal) if !removal.groups.is_empty())
            && !self.leaving.is_empty()
        {
            return true;
        }
        // A command that starts it again has decided that it stays.
        let waits = |other: &&Operation| other.left > 0 && other.work.goal() != Some(Goal::Up);
        matches!(removing.work, Work::Remove(..) | Work::Shrink { .. })
            && self
                .running
                .iter()
                .filter(waits)
                .any(|other| removing.parts.iter().any(|(id, _)| unanswered(other, id)))
    }

    /// Notes that the state machines of a removed branch have ended.
    pub(super) fn dismissed(
        &mut self,
        tree_state: &TreeState,
        number: BranchNumber,
        out: &mut Vec<CommandEffect>,
    ) {
        for leaving in &mut self.leaving {
            leaving.branches.remove(&number);
        }
        self.answer_gone(out);
        self.answer_finished(tree_state, out);
    }

    pub(super) fn answer_gone(&mut self, out: &mut Vec<CommandEffect>) {
        let (gone, still) =
            std::mem::take(&mut self.leaving).into_iter().partition(|leaving| leaving.branches.is_empty());
        self.leaving = still;
        let gone: Vec<Leaving> = gone;
        for Leaving { ticket, results, .. } in gone {
            out.extend(ticket.map(|ticket| CommandEffect::Answer(ticket, Ok(Answer { ok: true, results }))));
        }
    }

    /// Removes the targets, which have all been down, if they still are. `Err`: they stay; the
    /// parts say why, and the returned answers say why for the groups.
    pub(super) fn remove(
        &mut self,
        tree_state: &TreeState,
        operation: &mut Operation,
        out: &mut Vec<CommandEffect>,
    ) -> Result<Leaving, Vec<InstanceAnswer>> {
        let Work::Remove(_, removal) = &operation.work else {
            return Err(Vec::new());
        };
        let in_the_way = if tree_state.shutting_down() {
            Some("the tree is going down".to_owned())
        } else {
            removal.refusal(tree_state).map(|denial| denial.reason)
        };
        // A service that was added later under the same name is not meant.
        if !self.goes(tree_state, &mut operation.parts, in_the_way.as_ref(), |entry| removal.has(&entry.spec))
        {
            let reason = in_the_way.unwrap_or_else(|| "not all of its members could be removed".to_owned());
            let stays = |name: &Name| InstanceAnswer {
                name: name.to_string(),
                ok: false,
                message: format!("not removed: {reason}"),
            };
            return Err(removal.groups.iter().map(stays).collect());
        }
        // Another command may have removed some of it already.
        let plan = tree_state.plan();
        let meant = plan.services.iter().filter(|spec| removal.has(spec));
        let services: Vec<Name> = meant.map(|spec| spec.name.clone()).collect();
        let groups = removal.groups.iter().filter(|name| plan.groups.contains_key(*name));
        let groups: Vec<Name> = groups.cloned().collect();
        let mut branches = HashSet::new();
        for branch in Branch::of_removal(tree_state, removal) {
            self.branches += 1;
            branches.insert(self.branches);
            out.push(CommandEffect::Dismiss(branch, self.branches));
        }
        let specs: Vec<Arc<ServiceSpec>> =
            services.iter().filter_map(|name| plan.service(name.as_str())).cloned().collect();
        let names = plan_edit::printed(&specs, &groups).collect();
        let removed = |name: String| InstanceAnswer { name, ok: true, message: "removed".to_owned() };
        let ids = operation.parts.iter().map(|(id, _)| id.to_string());
        let results = ids.chain(removal.groups.iter().map(ToString::to_string)).map(removed).collect();
        if !services.is_empty() || !groups.is_empty() {
            out.push(CommandEffect::Emit(Fact::Tree(TreeFact::Removed { services, groups })));
        }
        Ok(Leaving { names, branches, ticket: operation.ticket, results })
    }

    /// Removes the surplus copies, which have all been down, if they still are, and adds the copies
    /// that come in their place. `Err`: they stay, and the parts say why.
    pub(super) fn shrink(
        &mut self,
        tree_state: &TreeState,
        operation: &mut Operation,
        out: &mut Vec<CommandEffect>,
    ) -> Result<Leaving, Vec<InstanceAnswer>> {
        let Work::Shrink { of, to, goal, .. } = &operation.work else {
            return Err(Vec::new());
        };
        let (service, from, to, goal) = (of.name.clone(), of.replicas, (*to).max(1), *goal);
        let is = tree_state.graph().service(&service).filter(|spec| spec.replicas == from);
        let in_the_way = match is {
            _ if tree_state.shutting_down() => Some("the tree is going down".to_owned()),
            None => Some("it was changed meanwhile".to_owned()),
            Some(_) => plan_edit::scaled(tree_state.plan(), &service, to).err().map(|denial| denial.reason),
        };
        if !self.goes(tree_state, &mut operation.parts, in_the_way.as_ref(), |_| true) {
            return Err(Vec::new());
        }
        let naming = of.naming();
        let (gone, came) = spec::scaled(&service, from, to, naming);
        let names = gone.iter().map(ToString::to_string).collect();
        let removed = |id: &InstanceId| InstanceAnswer {
            name: id.to_string(),
            ok: true,
            message: "removed".to_owned(),
        };
        let results = gone.iter().map(removed).collect();
        self.branches += 1;
        out.push(CommandEffect::Dismiss(Branch::of_copies(tree_state, &service, gone), self.branches));
        let came_any = !came.is_empty();
        if came_any {
            out.push(CommandEffect::Adopt(Branch::of_copies(tree_state, &service, came)));
        }
        out.push(CommandEffect::Emit(Fact::Tree(TreeFact::Scaled {
            service: service.clone(),
            from,
            to,
            naming,
        })));
        // Where copies are added, their start answers the command.
        let ticket = if came_any { None } else { operation.ticket };
        if let (true, Some(ticket)) = (came_any, operation.ticket) {
            out.push(CommandEffect::Again(CommandInput::Copied { ticket, service, from, goal }));
        }
        Ok(Leaving { names, branches: HashSet::from([self.branches]), ticket, results })
    }
}

/// Whether an instance has a process or is on its way to one.
fn is_up(entry: &InstanceState) -> bool {
    entry.state.has_process() || matches!(entry.state, State::Waiting | State::Crashed)
}
