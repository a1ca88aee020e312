//! Who wants to start and may not yet.
//!
//! [`Frontier`] holds who asked and is not released. It reads the [`Board`] that folds the
//! events, so it never keeps a second opinion of what runs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::status::{Board, Entry};
use crate::model::event::{FailedWhy, Unmet};
use crate::model::{Condition, Dependency, Goal, InstanceId, Name, ServiceSpec, State};

/// How a dependency stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Met,
    Pending,
    /// Not met, and nothing will come by itself.
    Impossible,
}

/// A question of an instance, numbered by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Question(pub u64);

impl Question {
    /// The one after it.
    #[must_use]
    pub fn next(self) -> Question {
        Question(self.0 + 1)
    }
}

/// What the graph answers an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Start.
    Release,
    /// Wait, for these.
    Blocked(Vec<Unmet>),
    /// This dependency failed for good.
    Failed(Name),
    /// The one that had failed may come after all.
    Back,
}

/// Who asked, and how they stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    Waiting,
    Failed,
}

/// The instances that want to start and may not yet.
#[derive(Debug, Clone, Default)]
pub struct Frontier {
    /// By service, since news comes by service.
    asking: HashMap<Name, BTreeMap<InstanceId, (Question, Asking)>>,
}

/// What the frontier is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// An instance wants to start.
    Ask(InstanceId, Question),
    /// It no longer does.
    Withdraw(InstanceId),
    /// Something about a service changed.
    Changed(Name),
}

impl Frontier {
    /// Takes one input; returns who is told what. `board` has all that was written down so far.
    pub fn step(&mut self, board: &Board, input: &Input) -> Vec<(InstanceId, Question, Reply)> {
        match input {
            Input::Ask(instance, question) => {
                vec![(instance.clone(), *question, self.ask(board, instance, *question))]
            }
            Input::Withdraw(instance) => {
                self.withdraw(instance);
                Vec::new()
            }
            Input::Changed(service) => self.changed(board, service),
        }
    }

    /// An instance wants to start.
    fn ask(&mut self, board: &Board, instance: &InstanceId, question: Question) -> Reply {
        let Some(spec) = board.graph().service(instance.service()) else {
            return Reply::Release;
        };
        // Whatever it asked before is settled by this.
        self.withdraw(instance);
        let (reply, asking) = match judge(board, spec) {
            Judgement::Free => return Reply::Release,
            Judgement::Blocked(unmet) => (Reply::Blocked(unmet), Asking::Waiting),
            Judgement::Failed(on) => (Reply::Failed(on), Asking::Failed),
        };
        self.asking
            .entry(instance.service().clone())
            .or_default()
            .insert(instance.clone(), (question, asking));
        reply
    }

    fn withdraw(&mut self, instance: &InstanceId) {
        if let Some(instances) = self.asking.get_mut(instance.service()) {
            instances.remove(instance);
            if instances.is_empty() {
                self.asking.remove(instance.service());
            }
        }
    }

    /// Whom does a change of this service let go?
    fn changed(&mut self, board: &Board, service: &Name) -> Vec<(InstanceId, Question, Reply)> {
        let mut replies = Vec::new();
        let dependents: Vec<Arc<ServiceSpec>> = board.graph().dependents(service).cloned().collect();
        for spec in dependents {
            let Some(instances) = self.asking.get_mut(&spec.name) else {
                continue;
            };
            match judge(board, &spec) {
                Judgement::Free => {
                    for (instance, (question, asking)) in std::mem::take(instances) {
                        // One that was given up is told so first; it then asks again by itself.
                        let reply = match asking {
                            Asking::Waiting => Reply::Release,
                            Asking::Failed => Reply::Back,
                        };
                        replies.push((instance, question, reply));
                    }
                    self.asking.remove(&spec.name);
                }
                Judgement::Blocked(_) => {
                    instances.retain(|instance, (question, asking)| match asking {
                        Asking::Waiting => true,
                        Asking::Failed => {
                            replies.push((instance.clone(), *question, Reply::Back));
                            false
                        }
                    });
                }
                Judgement::Failed(on) => {
                    for (instance, (question, asking)) in instances.iter_mut() {
                        if *asking == Asking::Waiting {
                            *asking = Asking::Failed;
                            replies.push((instance.clone(), *question, Reply::Failed(on.clone())));
                        }
                    }
                }
            }
        }
        replies
    }
}

enum Judgement {
    Free,
    Blocked(Vec<Unmet>),
    Failed(Name),
}

fn judge(board: &Board, spec: &ServiceSpec) -> Judgement {
    let unmet = unmet(board, spec);
    if let Some(on) = unmet.iter().find(|(_, standing)| *standing == Standing::Impossible) {
        return Judgement::Failed(on.0.service.clone());
    }
    if unmet.is_empty() {
        Judgement::Free
    } else {
        Judgement::Blocked(unmet.into_iter().map(|(unmet, _)| unmet).collect())
    }
}

fn unmet(board: &Board, spec: &ServiceSpec) -> Vec<(Unmet, Standing)> {
    spec.depends_on
        .iter()
        .filter_map(|dependency| {
            let unmet = || Unmet { service: dependency.on.clone(), condition: dependency.condition };
            match standing(board, dependency) {
                Standing::Met => None,
                other => Some((unmet(), other)),
            }
        })
        .collect()
}

/// What a service waits for at the moment.
pub fn waits_for(board: &Board, spec: &ServiceSpec) -> Vec<Unmet> {
    unmet(board, spec).into_iter().map(|(unmet, _)| unmet).collect()
}

fn standing(board: &Board, dependency: &Dependency) -> Standing {
    let mut all = Standing::Met;
    for entry in board.instances_of(&dependency.on) {
        match of_instance(entry, dependency.condition) {
            Standing::Met => {}
            Standing::Pending => all = Standing::Pending,
            Standing::Impossible => {
                all = Standing::Impossible;
                break;
            }
        }
    }
    let absent = || {
        board.instances_of(&dependency.on).all(|e| match e.state {
            // One that starts with the tree may not have heard of it yet.
            State::Registered => !e.spec.autostart,
            State::Stopped => e.goal == Goal::Down,
            _ => false,
        })
    };
    match all {
        Standing::Impossible if !dependency.required => Standing::Met,
        Standing::Pending if !dependency.required && absent() => Standing::Met,
        other => other,
    }
}

fn of_instance(entry: &Entry, condition: Condition) -> Standing {
    let met = match condition {
        Condition::Started => matches!(entry.state, State::Running | State::Paused | State::Completed),
        Condition::Ready => entry.ready || entry.state == State::Completed,
        Condition::Completed => entry.state == State::Completed,
        Condition::Exited => match entry.state {
            State::Completed => true,
            State::Failed => !matches!(entry.failed, Some(FailedWhy::Dependency { .. })),
            State::Stopped => entry.exit.is_some(),
            State::Registered
            | State::Waiting
            | State::Starting
            | State::Running
            | State::Paused
            | State::Stopping
            | State::Crashed => false,
        },
    };
    match (met, entry.state) {
        (true, _) => Standing::Met,
        (false, State::Failed) => Standing::Impossible,
        (false, _) => Standing::Pending,
    }
}
