//! What goes down when a group gives up by `on_give_up = "exit"`: its project alone where the tree has several,
//! else everything.

use super::{Effect, Operation, Operations, StopOrder, Work, services};
use crate::decide::status::Board;
use crate::model::{Fact, InstanceId, Name};

impl Operations {
    /// Of several projects one goes down alone; the tree does when there is no other left.
    pub(super) fn give_up(&mut self, board: &Board, group: Option<Name>, out: &mut Vec<Effect>) {
        let cause =
            group.as_ref().map_or("the root group gave up".to_owned(), |g| format!("group {g} gave up"));
        let several = board.plan().services.iter().any(|spec| spec.project.is_some());
        let Some(project) = board.project_of_group(group.as_ref()).map(str::to_owned) else {
            match group {
                // Of no project among several: added by hand. It goes down alone.
                Some(group) if several => {
                    let below = board.plan().services_below(group.as_str());
                    let of_it = board.entries().iter().filter(|entry| below.contains(&entry.spec.name));
                    return self.give_up_of(board, of_it.map(|entry| entry.id.clone()).collect(), out);
                }
                _ => {
                    out.push(Effect::Emit(Fact::ShutdownStarted { cause }));
                    return self.shutdown(board, out);
                }
            }
        };
        let root = group.as_ref().is_some_and(|group| group.as_str() == project);
        let group = group.filter(|_| !root);
        out.push(Effect::Emit(Fact::ProjectGaveUp { project: project.clone(), group }));
        if board.would_give_up_with(Some(&project)) {
            let cause = "every project has given up".to_owned();
            out.push(Effect::Emit(Fact::ShutdownStarted { cause }));
            return self.shutdown(board, out);
        }
        let of_it = board.entries().iter().filter(|entry| entry.spec.project.as_ref() == Some(&project));
        self.give_up_of(board, of_it.map(|entry| entry.id.clone()).collect(), out);
    }

    fn give_up_of(&mut self, board: &Board, targets: Vec<InstanceId>, out: &mut Vec<Effect>) {
        let order = StopOrder::new(board.graph(), services(&targets));
        let budget = self.budget(board, &order);
        let operation = Operation { budget, ..Operation::new(None, Work::GiveUp(order), targets) };
        self.begin(board, operation, out);
    }
}
