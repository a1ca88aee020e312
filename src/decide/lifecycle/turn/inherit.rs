//! How a machine takes over from another: from that of an earlier supervisor, or from that of an
//! actor that broke.

use std::time::Duration;

use super::super::InheritedProcess;
use super::Turn;
use crate::decide::lifecycle::{
    Abort, Halt, InstanceEffect, Life, Next, Paused, Phase, Readiness, Retry, Step, Stopping,
};
use crate::model::cause::{FailureReason, StartCause};
use crate::model::event::InstanceFact;
use crate::model::{Fact, Goal, Incarnation, InstanceRecord, State, StopCause};

impl Turn<'_> {
    /// Goes on from the record of an earlier supervisor.
    pub(super) fn restore(&mut self, past: InstanceRecord) -> Phase {
        self.machine.goal = past.goal;
        self.machine.last = past.incarnation;
        self.machine.attempts = past.attempts;
        let wanted = past.goal == Goal::Up;
        match past.state {
            State::Registered => Phase::Registered,
            // The group begins its restart anew.
            State::Stopped if wanted => Phase::Stopped { held: true },
            State::Waiting if wanted => self.begin(StartCause::Boot),
            State::Stopped => Phase::Stopped { held: false },
            State::Waiting => self.rest(StopCause::Command),
            State::Completed => Phase::Completed,
            State::Failed => match past.failed {
                Some(FailureReason::Dependency { .. }) if wanted => self.begin(StartCause::Dependency),
                why => Phase::Failed(why.unwrap_or(FailureReason::Internal {
                    message: "the reason for the failure was not recorded".to_owned(),
                })),
            },
            State::Crashed => {
                let delay = past.retry_at.map_or(Duration::ZERO, |at| at.saturating_sub(self.now));
                self.out.push(InstanceEffect::Crashed(delay));
                Phase::Crashed(Retry::Asked(delay))
            }
            State::Starting | State::Running | State::Paused | State::Stopping => self.live_on(&past),
        }
    }

    /// Goes on with a process that survived the earlier supervisor.
    fn live_on(&mut self, past: &InstanceRecord) -> Phase {
        let incarnation = past.incarnation;
        let started = past.started.unwrap_or(self.now);
        let ready = match past.ready {
            true => Readiness::Since(started),
            // The deadline begins anew: nobody checked while there was no supervisor.
            false => self.readiness(started, self.now),
        };
        let life = Life { incarnation, started, ready };
        let wanted = past.goal == Goal::Up;
        let stopping = (past.state == State::Stopping).then_some(past.stopped_for).flatten();
        match (stopping, past.goal) {
            // A stop that was under way begins anew.
            (Some(cause), _) => {
                let next = match cause {
                    StopCause::Restart if wanted => Next::Start(StartCause::Command),
                    StopCause::Dependency if wanted => Next::Start(StartCause::Dependency),
                    StopCause::Restart
                    | StopCause::Dependency
                    | StopCause::Group
                    | StopCause::Command
                    | StopCause::Removed
                    | StopCause::Shutdown
                    | StopCause::GaveUp
                    | StopCause::ProjectGaveUp
                    | StopCause::Timeout
                    | StopCause::Health
                    | StopCause::LeftBehind
                    | StopCause::AutoShutdown
                    | StopCause::Internal => Next::Rest,
                };
                self.begin_stop(life, cause, next)
            }
            (None, Goal::Down) => self.begin_stop(life, StopCause::Command, Next::Rest),
            (None, Goal::Up) if past.state == State::Paused => {
                // The tree is halted once more: processes that it has forked since may run.
                self.out.push(InstanceEffect::Pause(incarnation));
                Phase::Paused(Paused { life, since: self.now, halt: Halt::Done })
            }
            (None, Goal::Up) => match ready {
                Readiness::Since(_) => {
                    if self.spec.health.is_some() {
                        self.out.push(InstanceEffect::WatchHealth(incarnation));
                    }
                    Phase::Running(life)
                }
                Readiness::Not { .. } if self.spec.ready.is_none() => self.ready(life),
                Readiness::Not { .. } => {
                    if self.checks_readiness() {
                        self.out.push(InstanceEffect::WatchReady(incarnation));
                    }
                    Phase::Running(life)
                }
            },
        }
    }

    /// Kills what is left of a broken actor's process. The instance is then `failed` until it is
    /// started by hand: what broke once may break again.
    pub(super) fn inherit(
        &mut self,
        goal: Goal,
        last: Incarnation,
        left: Option<InheritedProcess>,
        message: String,
    ) -> Phase {
        self.machine.goal = goal;
        self.machine.last = last;
        self.emit(Fact::Instance(InstanceFact::ActorBroke {
            instance: self.machine.id.clone(),
            message: message.clone(),
        }));
        let why = FailureReason::Internal { message };
        let (cause, next) = (StopCause::Internal, Next::Fail(why.clone()));
        match left {
            None => self.fail(why),
            Some(InheritedProcess::Making) => Phase::Starting {
                incarnation: last,
                asked: self.now,
                abort: Some(Abort { cause, by_force: true, next }),
            },
            Some(InheritedProcess::Alive { exit }) => {
                let ready = Readiness::Not { at: None, deadline: None };
                let life = Life { incarnation: last, started: self.now, ready };
                self.kill(Stopping {
                    life,
                    cause,
                    asked: self.now,
                    exit,
                    step: Step::Killing { stuck_at: None },
                    next,
                    reason: None,
                })
            }
        }
    }
}
