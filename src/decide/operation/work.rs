//! What a command means for one instance: which commands give way to which, and what an
//! acknowledgement or a fact says about its part.

use super::{InstanceSnapshot, Work};
use crate::decide::tree_state::InstanceState;
use crate::model::cause::{FailureReason, StartCause};
use crate::model::event::InstanceFact;
use crate::model::{Fact, Goal, Kind, ServiceSpec, State};
use crate::present::units::{forks_away, in_time, lost_sight, short};

const STUCK: &str = "SIGKILL has not ended it: a process is stuck in the kernel";

impl Work {
    /// Whether this command gives up its part when `later` has the same instance as a target.
    pub(super) fn loses_to(&self, later: &Work) -> bool {
        match (self, later) {
            // Nobody asked for a cascade: a pause leaves it alone, any other work takes its place.
            (Work::Cascade(_), Work::Pause | Work::Resume) => false,
            (Work::Cascade(_), _) => true,
            (
                Work::Start(_) | Work::Restart | Work::RestartInOrder(_),
                Work::Stop(_) | Work::Remove(..) | Work::Shrink { .. } | Work::GiveUp(_) | Work::Shutdown(_),
            ) => true,
            (
                Work::Stop(_) | Work::Remove(..) | Work::Shrink { .. } | Work::GiveUp(_),
                Work::Start(_) | Work::Restart | Work::RestartInOrder(_),
            ) => true,
            (Work::GiveUp(_), _) => false,
            // The instance goes down either way, which is what the command asked for.
            (Work::Stop(_) | Work::Remove(..) | Work::Shrink { .. }, Work::GiveUp(_)) => false,
            // An instance that goes down with the tree is not removed from it.
            (Work::Remove(..) | Work::Shrink { .. }, Work::Shutdown(_)) => true,
            // The later restart makes its own incarnation; that is the one that becomes ready.
            (Work::Start(_), Work::RestartInOrder(_)) => true,
            (Work::RestartInOrder(_), Work::Start(_) | Work::Restart | Work::RestartInOrder(_)) => true,
            (Work::Restart, Work::RestartInOrder(_)) => true,
            (Work::Start(_) | Work::Restart, Work::Start(_) | Work::Restart) => false,
            (Work::Stop(_), Work::Stop(_) | Work::Remove(..) | Work::Shrink { .. } | Work::Shutdown(_)) => {
                false
            }
            (
                Work::Remove(..) | Work::Shrink { .. },
                Work::Stop(_) | Work::Remove(..) | Work::Shrink { .. },
            ) => false,
            // The instance does not become paused, or does not stay so.
            (
                Work::Pause,
                Work::Resume
                | Work::Start(_)
                | Work::Stop(_)
                | Work::Remove(..)
                | Work::Shrink { .. }
                | Work::Restart
                | Work::RestartInOrder(_)
                | Work::GiveUp(_)
                | Work::Shutdown(_),
            ) => true,
            (Work::Pause, Work::Pause | Work::Cascade(_)) => false,
            // A resume is answered as soon as it is acknowledged.
            (Work::Resume, _) => false,
            // The command goes on; its result comes a little later.
            (
                Work::Start(_)
                | Work::Stop(_)
                | Work::Remove(..)
                | Work::Shrink { .. }
                | Work::Restart
                | Work::RestartInOrder(_),
                Work::Cascade(_) | Work::Pause | Work::Resume,
            ) => false,
            (Work::Shutdown(_), _) => false,
        }
    }

    /// The start cause for what this command stopped and starts again.
    pub(super) fn again(&self) -> StartCause {
        match self {
            Work::Cascade(_) => StartCause::Dependency,
            Work::Start(cause) => *cause,
            Work::Stop(_)
            | Work::Remove(..)
            | Work::Shrink { .. }
            | Work::Restart
            | Work::RestartInOrder(_)
            | Work::Pause
            | Work::Resume
            | Work::GiveUp(_)
            | Work::Shutdown(_) => StartCause::Command,
        }
    }

    /// The goal that this command sets for its targets; `None`: it leaves their goals alone.
    pub(super) fn goal(&self) -> Option<Goal> {
        match self {
            Work::Start(_) | Work::Restart | Work::RestartInOrder(_) | Work::Cascade(_) => Some(Goal::Up),
            Work::Stop(_) | Work::Remove(..) | Work::Shrink { .. } | Work::Shutdown(_) => Some(Goal::Down),
            // A project that gives up does not change the goals of its services.
            Work::Pause | Work::Resume | Work::GiveUp(_) => None,
        }
    }

    /// The result that is known with the acknowledgement: what the instance was already, or what it
    /// became at once. `None`: a later fact tells it.
    pub(super) fn at_once(
        &self,
        spec: &ServiceSpec,
        before: InstanceSnapshot,
        after: InstanceSnapshot,
    ) -> Option<(bool, String)> {
        let words = |already: &str, now: &str| {
            Some((true, if before.state == after.state { already.to_owned() } else { now.to_owned() }))
        };
        match self {
            Work::Start(_) | Work::Restart if let Some(fault) = &spec.fault => {
                Some((false, format!("failed: {}", FailureReason::Manifest { message: fault.clone() })))
            }
            Work::Start(_) => {
                let up = after.state == State::Running && after.ready && spec.kind == Kind::Service;
                up.then_some(()).and_then(|()| words("already ready", "resumed"))
            }
            Work::Restart => None,
            Work::Pause => match (before.state, after.state) {
                (State::Paused, _) => Some((true, "already paused".to_owned())),
                // The result comes when all processes of the instance are paused.
                (State::Running, _) => None,
                (state, _) => Some((false, format!("is {state}: only a running instance can be paused"))),
            },
            Work::Resume => match (before.state, after.state) {
                (State::Paused, State::Running) => Some((true, "resumed".to_owned())),
                (State::Running, _) => Some((true, "already running".to_owned())),
                (state, _) => Some((false, format!("is {state}: only a paused instance can be resumed"))),
            },
            Work::Stop(_)
            | Work::Remove(..)
            | Work::Shrink { .. }
            | Work::RestartInOrder(_)
            | Work::Cascade(_)
            | Work::GiveUp(_)
            | Work::Shutdown(_) => {
                match after.state {
                    State::Registered => Some((true, "was not started".to_owned())),
                    State::Stopped if before.state == State::Registered => {
                        Some((true, "was not started".to_owned()))
                    }
                    State::Stopped => words("already stopped", "stopped"),
                    State::Completed => words("already completed", "completed"),
                    // It stays failed when the tree goes down; a stop by hand clears the failure.
                    State::Failed => Some((true, "failed".to_owned())),
                    State::Waiting
                    | State::Starting
                    | State::Running
                    | State::Paused
                    | State::Stopping
                    | State::Crashed => None,
                }
            }
        }
    }

    /// What a fact means for an acknowledged part; `None`: the part is not done yet.
    pub(super) fn outcome(&self, fact: &Fact, entry: &InstanceState) -> Option<(bool, String)> {
        match self {
            Work::Pause => match fact {
                Fact::Instance(InstanceFact::Paused { .. }) => Some((true, "paused".to_owned())),
                Fact::Instance(InstanceFact::Exited { exit, .. }) => {
                    Some((false, format!("has ended meanwhile: {exit}")))
                }
                Fact::Instance(InstanceFact::Stopping { .. })
                | Fact::Instance(InstanceFact::LeftBehind { .. }) => {
                    Some((false, "is stopping: only a running instance can be paused".to_owned()))
                }
                _ => None,
            },
            // A resume was answered when it was acknowledged.
            Work::Resume => None,
            Work::Start(_) | Work::Restart => match fact {
                Fact::Instance(InstanceFact::Ready { after, .. }) if entry.spec.kind == Kind::Service => {
                    Some((true, format!("ready after {}", short(*after))))
                }
                Fact::Instance(InstanceFact::Completed { .. }) => Some((true, "completed".to_owned())),
                Fact::Instance(InstanceFact::Failed { why, .. }) => Some((false, format!("failed: {why}"))),
                Fact::Instance(InstanceFact::Crashed { exit, retry_in, .. }) => {
                    Some((false, format!("crashed: {exit}; comes back {}", in_time(*retry_in))))
                }
                // The group stopped the instance after it had acknowledged the directive.
                Fact::Instance(InstanceFact::Stopped { held: false, .. }) => {
                    Some((false, "stopped meanwhile".to_owned()))
                }
                Fact::Instance(InstanceFact::Paused { .. }) => Some((false, "paused meanwhile".to_owned())),
                Fact::Instance(InstanceFact::Stuck { .. }) => {
                    Some((false, entry.forks_away.map_or_else(|| STUCK.to_owned(), forks_away)))
                }
                _ => None,
            },
            Work::Stop(_)
            | Work::Remove(..)
            | Work::Shrink { .. }
            | Work::RestartInOrder(_)
            | Work::Cascade(_)
            | Work::GiveUp(_)
            | Work::Shutdown(_) => match fact {
                // The exit is enough: the group may start the instance again at once.
                Fact::Instance(InstanceFact::Exited { .. })
                    if matches!(self, Work::RestartInOrder(_) | Work::Cascade(_)) =>
                {
                    Some((true, "stopped".to_owned()))
                }
                Fact::Instance(InstanceFact::Stopped { .. }) => match entry.lost_sight {
                    None => Some((true, "stopped".to_owned())),
                    Some(of) => Some((false, lost_sight(of))),
                },
                Fact::Instance(InstanceFact::Completed { .. }) => Some((true, "completed".to_owned())),
                Fact::Instance(InstanceFact::Failed { why, .. }) => Some((true, format!("failed: {why}"))),
                Fact::Instance(InstanceFact::Stuck { .. }) => {
                    Some((false, entry.forks_away.map_or_else(|| STUCK.to_owned(), forks_away)))
                }
                _ => None,
            },
        }
    }
}
