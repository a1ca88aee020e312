//! What goes down when a group gives up by `on_give_up = "exit"`: its project alone where the
//! tree has several projects, else everything.

use super::{CommandEffect, Operation, Operations, StopOrder, Work, services};
use crate::decide::tree_state::TreeState;
use crate::model::event::TreeFact;
use crate::model::{Fact, InstanceId, Name};

impl Operations {
    /// Takes the project of the group down, or the whole tree where no other project is left.
    pub(super) fn give_up(
        &mut self,
        tree_state: &TreeState,
        group: Option<Name>,
        out: &mut Vec<CommandEffect>,
    ) {
        let cause =
            group.as_ref().map_or("the root group gave up".to_owned(), |g| format!("group {g} gave up"));
        let several = tree_state.plan().services.iter().any(|spec| spec.project.is_some());
        let Some(project) = tree_state.project_of_group(group.as_ref()).map(str::to_owned) else {
            match group {
                // In a tree of several projects, a group of none was added by hand: it goes down alone.
                Some(group) if several => {
                    let below = tree_state.plan().services_below(group.as_str());
                    let of_it = tree_state.entries().iter().filter(|entry| below.contains(&entry.spec.name));
                    return self.give_up_of(tree_state, of_it.map(|entry| entry.id.clone()).collect(), out);
                }
                _ => {
                    out.push(CommandEffect::Emit(Fact::Tree(TreeFact::ShutdownStarted { cause })));
                    return self.shutdown(tree_state, out);
                }
            }
        };
        let root = group.as_ref().is_some_and(|group| group.as_str() == project);
        let group = group.filter(|_| !root);
        out.push(CommandEffect::Emit(Fact::Tree(TreeFact::ProjectGaveUp {
            project: project.clone(),
            group,
        })));
        if tree_state.would_give_up_with(Some(&project)) {
            let cause = "every project has given up".to_owned();
            out.push(CommandEffect::Emit(Fact::Tree(TreeFact::ShutdownStarted { cause })));
            return self.shutdown(tree_state, out);
        }
        let of_it = tree_state.entries().iter().filter(|entry| entry.spec.project.as_ref() == Some(&project));
        self.give_up_of(tree_state, of_it.map(|entry| entry.id.clone()).collect(), out);
    }

    fn give_up_of(&mut self, tree_state: &TreeState, targets: Vec<InstanceId>, out: &mut Vec<CommandEffect>) {
        let order = StopOrder::new(tree_state.graph(), services(&targets));
        let budget = self.budget(tree_state, &order);
        let operation = Operation { budget, ..Operation::new(None, Work::GiveUp(order), targets) };
        self.begin(tree_state, operation, out);
    }
}
