//! Why an instance is in its state: the causal chain from the instance to the first cause.

use std::collections::HashSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::start_gate::waits_for;
use super::tree_state::{InstanceState, TreeState};
use crate::model::cause::FailureReason;
use crate::model::{ExitOutcome, Goal, InstanceId, ReadyTarget, State, StopCause};
use crate::present::units::in_time;

/// The answer to `why SERVICE`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Why {
    /// The instance asked about.
    pub name: String,
    /// The causal chain, from the instance asked about to the first cause.
    pub chain: Vec<CauseLink>,
    /// How the last process of the instance asked about ended.
    pub exit: Option<ExitOutcome>,
    /// The check that fails, with its output.
    pub check: Option<String>,
    /// The last lines of the instance at the end of the chain.
    pub last_lines: Vec<String>,
}

/// One instance in the causal chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct CauseLink {
    /// The id of the instance.
    pub name: String,
    /// The state of the instance.
    pub state: State,
    /// Why the instance is in that state, in words.
    pub because: String,
}

/// The causal chain of an instance, and the instance at its end.
pub fn chain(tree_state: &TreeState, from: &InstanceId, now: Duration) -> (Vec<CauseLink>, InstanceId) {
    let mut links: Vec<CauseLink> = Vec::new();
    let mut seen: HashSet<InstanceId> = HashSet::new();
    let mut end = from.clone();
    let mut todo = vec![from.clone()];
    while let Some(id) = todo.pop() {
        let Some(entry) = tree_state.entry(&id) else {
            continue;
        };
        if !seen.insert(id.clone()) {
            continue;
        }
        links.push(CauseLink {
            name: id.to_string(),
            state: entry.state,
            because: because(tree_state, entry, now),
        });
        end = id;
        // The last one pushed is looked at next, so the order is reversed.
        let mut causes: Vec<InstanceId> = match (entry.state, &entry.failed) {
            (State::Waiting, _) => waits_for(tree_state, &entry.spec)
                .iter()
                .flat_map(|unmet| tree_state.instances_of(&unmet.service).map(|e| e.id.clone()))
                .collect(),
            (State::Failed, Some(FailureReason::Dependency { on })) => tree_state
                .instances_of(on)
                .filter(|e| e.state == State::Failed)
                .map(|e| e.id.clone())
                .collect(),
            _ => Vec::new(),
        };
        causes.reverse();
        todo.extend(causes);
    }
    (links, end)
}

/// Why one instance is in its state, in words, without the causes behind it.
pub fn because(tree_state: &TreeState, entry: &InstanceState, now: Duration) -> String {
    let exit = entry.exit.as_ref().map(ToString::to_string);
    match entry.state {
        State::Registered if !entry.spec.autostart => {
            "it does not start automatically (\"regrow start\" starts it)".to_owned()
        }
        State::Registered => "it has not been started".to_owned(),
        State::Waiting => {
            let unmet = waits_for(tree_state, &entry.spec);
            let words: Vec<String> = unmet
                .iter()
                .map(|u| format!("{} to be {}", tree_state.shown_service(&u.service), u.condition))
                .collect();
            format!("it waits for {}", words.join(", "))
        }
        State::Starting => "its process is being created".to_owned(),
        State::Running if entry.ready => {
            let needed: Vec<String> = tree_state
                .graph()
                .dependents(entry.id.service())
                .map(|d| tree_state.shown_service(&d.name))
                .collect();
            let back = match (&exit, entry.restarts) {
                (Some(exit), 1..) => format!("; it came back after {exit}"),
                _ => String::new(),
            };
            let needed = match needed.len() {
                0 => String::new(),
                1 => format!("; {} depends on it", needed[0]),
                _ => format!("; {} depend on it", needed.join(", ")),
            };
            let failing = entry.failing.iter().chain(&entry.unkept).chain(&entry.output);
            let failing: String = failing.map(|f| format!("; {f}")).collect();
            format!("it is ready{back}{needed}{failing}")
        }
        State::Running => {
            let how = match entry.spec.ready.as_ref().map(|r| &r.target) {
                Some(ReadyTarget::Check(check)) => check.target.to_string(),
                Some(other) => other.to_string(),
                None => "nothing".to_owned(),
            };
            let what = entry.failing.clone().unwrap_or_else(|| format!("waits for {how}"));
            format!("it runs and is not ready yet: {what}")
        }
        State::Paused => "it was paused by hand".to_owned(),
        State::Stopping => "it is being stopped".to_owned(),
        State::Stopped if entry.goal == Goal::Up => "it was stopped, to be started again".to_owned(),
        State::Stopped => match entry.stopped_for {
            Some(
                cause @ (StopCause::AutoShutdown
                | StopCause::Group
                | StopCause::GaveUp
                | StopCause::ProjectGaveUp
                | StopCause::Removed),
            ) => {
                format!("it was stopped: {cause}")
            }
            _ => "it was stopped by hand".to_owned(),
        },
        State::Completed => "it completed successfully".to_owned(),
        State::Crashed => {
            let left = entry.retry_at.map(|at| at.saturating_sub(now));
            let failing = entry.failing.as_ref().map(|f| format!("; {f}")).unwrap_or_default();
            let exit = exit.unwrap_or_else(|| "it crashed".to_owned());
            match left {
                Some(left) if !left.is_zero() => format!("{exit}; it comes back {}{failing}", in_time(left)),
                // The delay has passed and the instance is still down: its group holds it back.
                Some(_) | None => format!("{exit}; it comes back when its group lets it{failing}"),
            }
        }
        State::Failed => {
            let why = entry.failed.as_ref().map_or_else(|| "it failed".to_owned(), ToString::to_string);
            let failing = entry.failing.as_ref().map(|f| format!("; {f}")).unwrap_or_default();
            format!("{why}{failing}")
        }
    }
}
