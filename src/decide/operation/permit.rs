//! Which other instances a command concerns, and when its dependencies deny it.

use std::collections::HashSet;

use super::{Operations, services};
use crate::decide::tree_state::TreeState;
use crate::model::{Denial, DenialCode, Goal, InstanceId, Name, State};

impl Operations {
    /// The targets, and those of their dependencies that are down and would not start by themselves.
    pub(super) fn with_resting_dependencies(
        &self,
        tree_state: &TreeState,
        targets: &[InstanceId],
    ) -> Vec<InstanceId> {
        let wanted: HashSet<&InstanceId> = targets.iter().collect();
        let mut found = Vec::new();
        let concerned: HashSet<Name> =
            tree_state.graph().with_dependencies(services(targets)).into_iter().collect();
        // Dependencies come first, so that their dependents find them on their way.
        let in_order =
            tree_state.graph().start_waves().into_iter().flatten().filter(|name| concerned.contains(name));
        for name in in_order {
            for entry in tree_state.instances_of(&name) {
                // Down, or on the way there because somebody wants it so.
                let rests = match entry.state {
                    State::Completed => false,
                    State::Failed | State::Paused => true,
                    State::Registered
                    | State::Stopped
                    | State::Waiting
                    | State::Starting
                    | State::Running
                    | State::Stopping
                    | State::Crashed => self.goal(entry) == Goal::Down,
                };
                if wanted.contains(&entry.id) || (rests && !targets.iter().any(|t| *t.service() == name)) {
                    found.push(entry.id.clone());
                }
            }
        }
        found
    }

    /// Denies the start or restart of an instance that would then wait for a dependency that
    /// somebody keeps down.
    pub(super) fn refuse_without_dependencies(
        &self,
        tree_state: &TreeState,
        targets: &[InstanceId],
    ) -> Result<(), Denial> {
        let wanted: HashSet<&Name> = services(targets).collect();
        for target in targets {
            let Some(spec) = tree_state.graph().service(target.service()) else {
                continue;
            };
            let unmet = crate::decide::start_gate::waits_for(tree_state, spec);
            let holds_up = |on: &Name| {
                tree_state.instances_of(on).find(|entry| {
                    let missing = unmet.iter().any(|unmet| unmet.service == *on);
                    let down = missing && entry.goal == Goal::Down && entry.state != State::Completed;
                    let going_down = entry.goal == Goal::Up && self.goal(entry) == Goal::Down;
                    let paused = missing && entry.state == State::Paused;
                    (down && self.goal(entry) == Goal::Down) || going_down || paused
                })
            };
            let others = spec.depends_on.iter().map(|d| &d.on).filter(|on| !wanted.contains(on));
            if let Some(on) = others.filter_map(holds_up).next() {
                let is = if on.state == State::Paused { "paused" } else { "down" };
                let on = &on.spec.name;
                return Err(Denial {
                    code: DenialCode::DependencyDown,
                    reason: format!("{target} depends on {on}, which is {is} by request"),
                    hint: Some(format!("\"regrow start {target}\" starts both")),
                });
            }
        }
        Ok(())
    }

    /// Denies the stop of an instance while others that depend on it run.
    pub(super) fn refuse_while_needed(
        &self,
        tree_state: &TreeState,
        targets: &[InstanceId],
    ) -> Result<(), Denial> {
        let stopped: HashSet<&InstanceId> = targets.iter().collect();
        let mut needed: Vec<(String, String)> = Vec::new();
        for target in targets {
            // A crashed instance that is about to restart is needed as much as one that runs.
            let there =
                tree_state.entry(target).is_some_and(|e| e.state.has_process() || e.state == State::Crashed);
            if !there {
                continue;
            }
            for dependent in tree_state.graph().dependents(target.service()) {
                for entry in tree_state.instances_of(&dependent.name) {
                    // A dependent that is to go down itself does not count.
                    let needs = entry.state.has_process()
                        && entry.state != State::Stopping
                        && self.goal(entry) == Goal::Up;
                    if needs && !stopped.contains(&entry.id) {
                        needed.push((target.to_string(), entry.id.to_string()));
                    }
                }
            }
        }
        if needed.is_empty() {
            return Ok(());
        }
        let mut by_target: Vec<(String, Vec<String>)> = Vec::new();
        for (target, dependent) in needed {
            match by_target.iter_mut().find(|(t, _)| *t == target) {
                Some((_, list)) => list.push(dependent),
                None => by_target.push((target, vec![dependent])),
            }
        }
        let reason = by_target
            .iter()
            .map(|(target, list)| {
                let verb = if list.len() == 1 { "depends" } else { "depend" };
                format!(
                    "{} {verb} on {target} and {} running",
                    list.join(", "),
                    if list.len() == 1 { "is" } else { "are" }
                )
            })
            .collect::<Vec<_>>()
            .join("; ");
        Err(Denial {
            code: DenialCode::HasDependents,
            reason,
            hint: Some("stop them too, or use --force".to_owned()),
        })
    }
}
