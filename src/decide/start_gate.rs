//! The start gate: which instances want to start, and may not before their dependencies allow.
//!
//! [`StartGate`] holds the instances that asked and were not released. It reads the
//! [`TreeState`] that folds the events, so it keeps no record of its own of what runs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::tree_state::{InstanceState, TreeState};
use crate::model::cause::{FailureReason, UnmetCondition};
use crate::model::{Condition, Dependency, Goal, InstanceId, Name, ServiceSpec, State};

/// The status of one dependency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DependencyStatus {
    Met,
    Pending,
    /// The dependency is not met, and won't be by itself.
    Impossible,
}

/// The number of an instance's request to start; each instance counts its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StartRequest(pub u64);

impl StartRequest {
    /// The number of the next request.
    #[must_use]
    pub fn next(self) -> StartRequest {
        StartRequest(self.0 + 1)
    }
}

/// The reply of the start gate to an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateReply {
    /// The instance may start.
    Release,
    /// The instance must wait for these conditions.
    Blocked(Vec<UnmetCondition>),
    /// This dependency failed, and won't recover by itself.
    Failed(Name),
    /// The dependency that had failed may be met after all; the instance asks again.
    Back,
}

/// What an asking instance was last told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Asking {
    /// That it must wait.
    Waiting,
    /// That a dependency of it failed.
    Failed,
}

/// The instances that want to start and may not yet.
#[derive(Debug, Clone, Default)]
pub struct StartGate {
    /// The asking instances by service, since changes are reported by service.
    asking: HashMap<Name, BTreeMap<InstanceId, (StartRequest, Asking)>>,
}

/// An input of the [`StartGate`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateInput {
    /// An instance wants to start.
    Ask(InstanceId, StartRequest),
    /// An instance no longer wants to start.
    Withdraw(InstanceId),
    /// An instance that asked a gate before this one, and was last told this. It still wants to start.
    Resume(InstanceId, StartRequest, Asking),
    /// The state of a service's instances changed.
    Changed(Name),
}

impl StartGate {
    /// Takes one input and returns the replies, each to one request of an instance. `tree_state`
    /// includes every fact that was recorded so far.
    pub fn step(
        &mut self,
        tree_state: &TreeState,
        input: &GateInput,
    ) -> Vec<(InstanceId, StartRequest, GateReply)> {
        match input {
            GateInput::Ask(instance, question) => {
                vec![(instance.clone(), *question, self.ask(tree_state, instance, *question))]
            }
            GateInput::Withdraw(instance) => {
                self.withdraw(instance);
                Vec::new()
            }
            GateInput::Resume(instance, question, asking) => {
                self.resume(tree_state, instance, (*question, *asking)).into_iter().collect()
            }
            GateInput::Changed(service) => self.changed(tree_state, service),
        }
    }

    /// Goes on with a request that an earlier gate had, and answers it where the last answer does not hold
    /// or may have been lost.
    fn resume(
        &mut self,
        tree_state: &TreeState,
        instance: &InstanceId,
        (question, asking): (StartRequest, Asking),
    ) -> Option<(InstanceId, StartRequest, GateReply)> {
        let judgement = match tree_state.graph().service(instance.service()) {
            Some(spec) => judge(tree_state, spec),
            None => Judgement::Free,
        };
        let (reply, asks) = match (asking, judgement) {
            (Asking::Waiting, Judgement::Free) => (Some(GateReply::Release), None),
            // The answer of the earlier gate may have been lost.
            (Asking::Waiting, Judgement::Blocked(unmet)) => {
                (Some(GateReply::Blocked(unmet)), Some(Asking::Waiting))
            }
            (Asking::Waiting, Judgement::Failed(on)) => (Some(GateReply::Failed(on)), Some(Asking::Failed)),
            (Asking::Failed, Judgement::Failed(_)) => (None, Some(Asking::Failed)),
            // It asks again.
            (Asking::Failed, Judgement::Free | Judgement::Blocked(_)) => (Some(GateReply::Back), None),
        };
        self.withdraw(instance);
        if let Some(asking) = asks {
            let of_service = self.asking.entry(instance.service().clone()).or_default();
            of_service.insert(instance.clone(), (question, asking));
        }
        reply.map(|reply| (instance.clone(), question, reply))
    }

    /// Answers an instance that wants to start.
    fn ask(&mut self, tree_state: &TreeState, instance: &InstanceId, question: StartRequest) -> GateReply {
        let Some(spec) = tree_state.graph().service(instance.service()) else {
            return GateReply::Release;
        };
        // This request replaces any earlier one of the instance.
        self.withdraw(instance);
        let (reply, asking) = match judge(tree_state, spec) {
            Judgement::Free => return GateReply::Release,
            Judgement::Blocked(unmet) => (GateReply::Blocked(unmet), Asking::Waiting),
            Judgement::Failed(on) => (GateReply::Failed(on), Asking::Failed),
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

    /// The replies that follow from a change of this service, for those that depend on it.
    fn changed(
        &mut self,
        tree_state: &TreeState,
        service: &Name,
    ) -> Vec<(InstanceId, StartRequest, GateReply)> {
        let mut replies = Vec::new();
        let dependents: Vec<Arc<ServiceSpec>> = tree_state.graph().dependents(service).cloned().collect();
        for spec in dependents {
            let Some(instances) = self.asking.get_mut(&spec.name) else {
                continue;
            };
            match judge(tree_state, &spec) {
                Judgement::Free => {
                    for (instance, (question, asking)) in std::mem::take(instances) {
                        // An instance whose dependency had failed is told to ask again.
                        let reply = match asking {
                            Asking::Waiting => GateReply::Release,
                            Asking::Failed => GateReply::Back,
                        };
                        replies.push((instance, question, reply));
                    }
                    self.asking.remove(&spec.name);
                }
                Judgement::Blocked(_) => {
                    instances.retain(|instance, (question, asking)| match asking {
                        Asking::Waiting => true,
                        Asking::Failed => {
                            replies.push((instance.clone(), *question, GateReply::Back));
                            false
                        }
                    });
                }
                Judgement::Failed(on) => {
                    for (instance, (question, asking)) in instances.iter_mut() {
                        if *asking == Asking::Waiting {
                            *asking = Asking::Failed;
                            replies.push((instance.clone(), *question, GateReply::Failed(on.clone())));
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
    Blocked(Vec<UnmetCondition>),
    Failed(Name),
}

fn judge(tree_state: &TreeState, spec: &ServiceSpec) -> Judgement {
    let unmet = unmet(tree_state, spec);
    if let Some(on) =
        unmet.iter().find(|(_, dependency_status)| *dependency_status == DependencyStatus::Impossible)
    {
        return Judgement::Failed(on.0.service.clone());
    }
    if unmet.is_empty() {
        Judgement::Free
    } else {
        Judgement::Blocked(unmet.into_iter().map(|(unmet, _)| unmet).collect())
    }
}

fn unmet(tree_state: &TreeState, spec: &ServiceSpec) -> Vec<(UnmetCondition, DependencyStatus)> {
    spec.depends_on
        .iter()
        .filter_map(|dependency| {
            let unmet = || UnmetCondition { service: dependency.on.clone(), condition: dependency.condition };
            match dependency_status(tree_state, dependency) {
                DependencyStatus::Met => None,
                other => Some((unmet(), other)),
            }
        })
        .collect()
}

/// The unmet conditions that a service waits for at the moment.
pub fn waits_for(tree_state: &TreeState, spec: &ServiceSpec) -> Vec<UnmetCondition> {
    unmet(tree_state, spec).into_iter().map(|(unmet, _)| unmet).collect()
}

fn dependency_status(tree_state: &TreeState, dependency: &Dependency) -> DependencyStatus {
    let mut all = DependencyStatus::Met;
    for entry in tree_state.instances_of(&dependency.on) {
        match of_instance(entry, dependency.condition) {
            DependencyStatus::Met => {}
            DependencyStatus::Pending => all = DependencyStatus::Pending,
            DependencyStatus::Impossible => {
                all = DependencyStatus::Impossible;
                break;
            }
        }
    }
    let absent = || {
        tree_state.instances_of(&dependency.on).all(|e| match e.state {
            // An instance that starts with the tree may not have been told yet.
            State::Registered => !e.spec.autostart,
            State::Stopped => e.goal == Goal::Down,
            _ => false,
        })
    };
    match all {
        DependencyStatus::Impossible if !dependency.required => DependencyStatus::Met,
        DependencyStatus::Pending if !dependency.required && absent() => DependencyStatus::Met,
        other => other,
    }
}

fn of_instance(entry: &InstanceState, condition: Condition) -> DependencyStatus {
    let met = match condition {
        Condition::Started => matches!(entry.state, State::Running | State::Paused | State::Completed),
        Condition::Ready => entry.ready || entry.state == State::Completed,
        Condition::Completed => entry.state == State::Completed,
        Condition::Exited => match entry.state {
            State::Completed => true,
            State::Failed => !matches!(entry.failed, Some(FailureReason::Dependency { .. })),
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
        (true, _) => DependencyStatus::Met,
        (false, State::Failed) => DependencyStatus::Impossible,
        (false, _) => DependencyStatus::Pending,
    }
}
