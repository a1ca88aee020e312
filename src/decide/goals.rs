//! The goals that were set by hand, if a start of the tree would not set the same ones.
//!
//! They are few, and so they are held in more than one place: none is lost with a store that is
//! lost, or older than it should be.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::tree_state::{InstanceState, TreeState};
use crate::model::{Goal, InstanceRecord, State, StopCause};

/// The goals that differ from those that a start of the tree sets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManualGoals {
    /// The number of the event after which these were the goals.
    pub seq: u64,
    /// The goals, by the printed names of their instances.
    pub goals: BTreeMap<String, Goal>,
}

impl ManualGoals {
    /// The manual goals of all instances of a tree.
    pub fn of(tree_state: &TreeState) -> ManualGoals {
        let mut held = ManualGoals { seq: tree_state.last_event(), goals: BTreeMap::new() };
        for entry in tree_state.entries() {
            held.note(entry);
        }
        held
    }

    /// Notes the goal of one instance; returns whether that changed anything.
    pub fn note(&mut self, entry: &InstanceState) -> bool {
        let name = entry.id.to_string();
        let goal = entry.past().goal;
        // An instance that was never started has no goal yet.
        let usual = usual(entry) == goal || entry.state == State::Registered;
        match usual {
            true => self.goals.remove(&name).is_some(),
            false => self.goals.insert(name, goal) != Some(goal),
        }
    }

    /// Corrects the record of an instance by the goal that was set last; `None` if there is neither a
    /// record nor a manual goal.
    pub fn correct(
        &self,
        entry: &InstanceState,
        past: Option<InstanceRecord>,
        today: SystemTime,
    ) -> Option<InstanceRecord> {
        let wanted = self.goals.get(&entry.id.to_string()).copied();
        let Some(mut past) = past else {
            let wanted = wanted?;
            let state = if wanted == Goal::Up { State::Waiting } else { State::Stopped };
            let stopped_for = (wanted == Goal::Down).then_some(StopCause::Command);
            return Some(InstanceRecord {
                goal: wanted,
                state,
                stopped_for,
                ..InstanceRecord::new(entry.id.clone(), today)
            });
        };
        let wanted = wanted.unwrap_or_else(|| usual(entry));
        if past.state == State::Registered || past.goal == wanted {
            return Some(past);
        }
        past.goal = wanted;
        match (wanted, past.state) {
            (Goal::Up, State::Stopped) => past.state = State::Waiting,
            (Goal::Down, State::Waiting | State::Crashed) => {
                past.state = State::Stopped;
                past.stopped_for = Some(StopCause::Command);
            }
            _ => {}
        }
        Some(past)
    }
}

/// The goal that a start of the tree sets.
fn usual(entry: &InstanceState) -> Goal {
    if entry.spec.autostart { Goal::Up } else { Goal::Down }
}

#[cfg(test)]
mod tests {
    use crate::model::InstanceFact;
    use std::sync::Arc;

    use super::*;
    use crate::model::cause::StartCause;
    use crate::model::{Event, Fact, Incarnation, InstanceId, Name, Plan, ServiceSpec};

    const TODAY: SystemTime = SystemTime::UNIX_EPOCH;

    fn tree_state(autostart: bool) -> (TreeState, InstanceId) {
        let name = Name::new("web").unwrap();
        let spec = ServiceSpec { autostart, ..ServiceSpec::new(name.clone(), ["web"]) };
        (TreeState::new(Arc::new(Plan::of("test", vec![spec])), TODAY).unwrap(), InstanceId::sole(name))
    }

    fn tell(tree_state: &mut TreeState, id: &InstanceId, goal: Goal) {
        let seq = tree_state.last_event() + 1;
        let instance = id.clone();
        let facts = [
            Fact::Instance(InstanceFact::GoalSet { instance: instance.clone(), goal }),
            match goal {
                Goal::Up => Fact::Instance(InstanceFact::Starting {
                    instance,
                    incarnation: Incarnation(seq),
                    cause: StartCause::Command,
                }),
                Goal::Down => Fact::Instance(InstanceFact::Stopped { instance, held: false }),
            },
        ];
        for (fact, more) in facts.into_iter().zip(0..) {
            tree_state.apply(&Event {
                seq: seq + more,
                at: TODAY,
                since_start: std::time::Duration::ZERO,
                fact,
            });
        }
    }

    #[test]
    fn only_unusual_goals_are_held_and_they_correct_older_ones() {
        for autostart in [true, false] {
            let (mut tree_state, id) = tree_state(autostart);
            let mut held = ManualGoals::of(&tree_state);
            assert_eq!(held.goals.len(), 0);
            let (usual, other) = if autostart { (Goal::Up, Goal::Down) } else { (Goal::Down, Goal::Up) };
            tell(&mut tree_state, &id, usual);
            let older = tree_state.entry(&id).unwrap().past();
            assert!(!held.note(tree_state.entry(&id).unwrap()));
            tell(&mut tree_state, &id, other);
            let entry = tree_state.entry(&id).unwrap();
            assert!(held.note(entry) && !held.note(entry), "told once");
            assert_eq!(ManualGoals::of(&tree_state).goals, held.goals);
            assert_eq!(held.correct(entry, Some(older), TODAY).unwrap().goal, other);
            let lost = held.correct(entry, None, TODAY).unwrap();
            assert_eq!(lost.goal, other);
            let newer = entry.past();
            tell(&mut tree_state, &id, usual);
            let entry = tree_state.entry(&id).unwrap();
            assert!(held.note(entry));
            assert_eq!(held.correct(entry, Some(newer), TODAY).unwrap().goal, usual);
            assert_eq!(held.correct(entry, None, TODAY), None);
        }
    }
}
