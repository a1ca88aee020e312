//! One step of the machine: phase x input -> phase and effects, every pair by name.

use std::time::Duration;

use super::{
    Abort, Activity, Halt, InstanceEffect, InstanceInput, Life, Machine, Next, Paused, Phase, Readiness,
    Retry, STUCK_AFTER, Step, Stopping,
};
use crate::decide::humanize::short;
use crate::decide::probe::CheckChange;
use crate::decide::restart::{self, Verdict};
use crate::decide::start_gate::GateReply;
use crate::model::cause::{CheckKind, FailureReason, StartCause};
use crate::model::exit::{EndReason, SpawnFailure, signal_name};
use crate::model::{
    EndedBy, Exit, ExitOutcome, Fact, Goal, Health, Incarnation, Policy, ReadyTarget, ServiceSpec, StopCause,
};

mod inherit;

/// One step in progress: the machine without its phase, and what the step may use.
pub(super) struct Turn<'a> {
    pub(super) machine: &'a mut Machine,
    pub(super) spec: &'a ServiceSpec,
    pub(super) now: Duration,
    pub(super) out: &'a mut Vec<InstanceEffect>,
}

impl Turn<'_> {
    pub(super) fn turn(mut self, phase: Phase, input: InstanceInput) -> Phase {
        match (phase, input) {
            (phase, InstanceInput::Start(cause)) => self.start(phase, cause),
            (phase, InstanceInput::Restart) => self.restart(phase),
            (Phase::Running(life), InstanceInput::Pause) => {
                self.out.extend([InstanceEffect::EndChecks, InstanceEffect::Pause(life.incarnation)]);
                Phase::Paused(Paused { life, since: self.now, halt: Halt::Asked })
            }
            (Phase::Paused(paused), InstanceInput::Resume) => self.resume(paused),
            // Only what runs can be paused, only what is paused resumed.
            (phase, InstanceInput::Pause | InstanceInput::Resume) => phase,
            (Phase::Paused(Paused { life, since, halt: Halt::Asked }), InstanceInput::Halted { .. }) => {
                let (instance, incarnation) = (self.machine.id.clone(), life.incarnation);
                self.emit(Fact::Paused { instance, incarnation });
                Phase::Paused(Paused { life, since, halt: Halt::Done })
            }
            // A stop or a resume was faster.
            (phase, InstanceInput::Halted { .. }) => phase,
            (phase, InstanceInput::Stop(cause)) => self.stop(phase, cause, false),
            (phase, InstanceInput::StopWithin(cause, time)) => {
                self.machine.stop_by = Some(self.now + time);
                self.stop(phase, cause, false)
            }
            (phase, InstanceInput::Kill(cause)) => self.stop(phase, cause, true),

            (Phase::Waiting { cause }, InstanceInput::Answered(_, GateReply::Release)) => self.spawn(cause),
            (Phase::Waiting { cause }, InstanceInput::Answered(_, GateReply::Blocked(unmet))) => {
                self.emit(Fact::Waiting { instance: self.machine.id.clone(), for_: unmet });
                Phase::Waiting { cause }
            }
            (Phase::Waiting { .. }, InstanceInput::Answered(_, GateReply::Failed(on))) => {
                self.fail(FailureReason::Dependency { on })
            }
            (
                Phase::Failed(FailureReason::Dependency { .. }),
                InstanceInput::Answered(_, GateReply::Back),
            ) if self.machine.goal == Goal::Up => self.begin(StartCause::Dependency),
            // The graph answers a question that a stop has overtaken.
            (phase, InstanceInput::Answered(..)) => phase,

            (Phase::Crashed(Retry::Asked(delay)), InstanceInput::Permit) => {
                if delay.is_zero() {
                    self.begin(StartCause::Policy)
                } else {
                    Phase::Crashed(Retry::At(self.now + delay))
                }
            }
            // A stop or a start by hand came between the question and the permit.
            (phase, InstanceInput::Permit) => phase,

            (Phase::Starting { incarnation, asked, abort }, InstanceInput::Spawned { pid, .. }) => {
                self.spawned(incarnation, asked, abort, pid)
            }
            (
                Phase::Starting { incarnation, abort, .. },
                InstanceInput::SpawnFailed { failure, roll, .. },
            ) => self.spawn_failed(incarnation, abort, failure, roll),
            // The host answers each spawn once, while it is `Starting`.
            (phase, InstanceInput::Spawned { .. } | InstanceInput::SpawnFailed { .. }) => phase,

            (
                Phase::Running(life) | Phase::Paused(Paused { life, .. }),
                InstanceInput::Exited { exit, remains, roll, .. },
            ) => self.exited(life, exit, remains, roll),
            (Phase::Stopping(stopping), InstanceInput::Exited { exit, remains, roll, .. }) => {
                let stopping = Stopping { exit: Some(exit), ..stopping };
                if remains {
                    // The others of its tree have what is left of the stop timeout.
                    Phase::Stopping(stopping)
                } else {
                    self.finish(stopping, roll)
                }
            }
            (Phase::Stopping(stopping), InstanceInput::TreeGone { roll, .. }) => self.finish(stopping, roll),
            // Without an exit before it there is no such news; the exit's own will come.
            (phase, InstanceInput::Exited { .. } | InstanceInput::TreeGone { .. }) => phase,

            (Phase::Stopping(stopping), InstanceInput::StopCommandDone { trouble, .. }) => {
                match stopping.step {
                    Step::Command { deadline } => {
                        // Of a budget the signal gets all that is left.
                        let deadline = match self.machine.stop_by {
                            Some(_) => self.now + self.stop_time(),
                            None => deadline,
                        };
                        self.stop_command_trouble(&stopping, trouble);
                        self.out.push(InstanceEffect::Terminate(
                            stopping.life.incarnation,
                            self.spec.stop.signal,
                        ));
                        Phase::Stopping(Stopping { step: Step::Terminating { deadline }, ..stopping })
                    }
                    // Its time ran out first, which was told.
                    Step::Terminating { .. } | Step::Killing { .. } => Phase::Stopping(stopping),
                }
            }
            // A stop command runs only while stopping.
            (phase, InstanceInput::StopCommandDone { .. }) => phase,

            (Phase::Running(life), InstanceInput::LogMatched { .. }) => self.ready(life),
            // It said so before it stood still. Told at once: the line will not be read again, by no later
            // supervisor either.
            (Phase::Paused(paused), InstanceInput::LogMatched { .. }) => match paused.life.ready {
                Readiness::Since(_) => Phase::Paused(paused),
                Readiness::Not { .. } => {
                    self.tell_ready(&paused.life);
                    let ready = Readiness::Since(paused.since);
                    Phase::Paused(Paused { life: Life { ready, ..paused.life }, ..paused })
                }
            },
            (Phase::Running(life), InstanceInput::Checked { kind, change, .. }) => {
                self.checked(life, kind, change)
            }
            // Late news of a check: the process is on its way out, or not yet known to be in.
            (phase, InstanceInput::LogMatched { .. } | InstanceInput::Checked { .. }) => phase,

            (phase, InstanceInput::Tick) => self.tick(phase),
            (phase, InstanceInput::Reconfigured) => self.reconfigured(phase),

            (Phase::Registered, InstanceInput::Inherit { goal, last, left, message }) => {
                self.inherit(goal, last, left, message)
            }
            (Phase::Registered, InstanceInput::Restore(past)) => self.restore(*past),
            // One that has begun has nothing to inherit.
            (phase, InstanceInput::Inherit { .. } | InstanceInput::Restore(_)) => phase,
        }
    }

    /// Goes by its new spec: other dependencies are asked for anew, other checks begin.
    fn reconfigured(&mut self, phase: Phase) -> Phase {
        match phase {
            Phase::Waiting { cause } => {
                self.out.push(InstanceEffect::Withdraw);
                self.begin(cause)
            }
            Phase::Running(life) => {
                self.out.push(InstanceEffect::EndChecks);
                match life.ready {
                    Readiness::Since(_) => {
                        if self.spec.health.is_some() {
                            self.out.push(InstanceEffect::WatchHealth(life.incarnation));
                        }
                        Phase::Running(life)
                    }
                    // Nothing is asked of it any more.
                    Readiness::Not { .. } if self.spec.ready.is_none() => self.ready(life),
                    Readiness::Not { .. } => {
                        let ready = self.readiness(life.started, self.now);
                        if self.checks_readiness() {
                            self.out.push(InstanceEffect::WatchReady(life.incarnation));
                        }
                        Phase::Running(Life { ready, ..life })
                    }
                }
            }
            // It can be started now, and is to run.
            Phase::Failed(FailureReason::Manifest { .. })
                if self.machine.goal == Goal::Up && self.spec.fault.is_none() =>
            {
                self.begin(StartCause::Command)
            }
            // They come to the spec when they come to something of it.
            Phase::Registered
            | Phase::Starting { .. }
            | Phase::Paused(_)
            | Phase::Stopping(_)
            | Phase::Stopped { .. }
            | Phase::Completed
            | Phase::Crashed(_)
            | Phase::Failed(_) => phase,
        }
    }

    /// What a process that is not ready yet waits for; its deadline counts from `since`.
    fn readiness(&self, started: Duration, since: Duration) -> Readiness {
        let ready = self.spec.ready.as_ref();
        let at = match ready.map(|ready| &ready.target) {
            Some(ReadyTarget::After(delay)) => Some(started + *delay),
            Some(ReadyTarget::Check(_) | ReadyTarget::Log(_)) | None => None,
        };
        let deadline = ready.and_then(|ready| ready.deadline).map(|limit| since + limit);
        Readiness::Not { at, deadline }
    }

    fn start(&mut self, phase: Phase, cause: StartCause) -> Phase {
        // What an earlier supervisor has left goes on without being started.
        if cause == StartCause::Boot && phase != Phase::Registered {
            return phase;
        }
        let by_hand = match cause {
            StartCause::Boot | StartCause::Command => true,
            StartCause::Policy | StartCause::Group | StartCause::Dependency => false,
        };
        // Who stopped it to start it again; `None`: anybody may start it.
        let stopped_by = match cause {
            StartCause::Group => Some(StopCause::Group),
            StartCause::Dependency => Some(StopCause::Dependency),
            StartCause::Boot | StartCause::Command | StartCause::Policy => None,
        };
        if by_hand {
            self.aim(Goal::Up);
            self.machine.attempts = 0;
        } else if self.machine.goal == Goal::Down {
            return phase;
        }
        match phase {
            Phase::Completed if cause == StartCause::Group && self.spec.rerun => self.begin(cause),
            // What fell waits for its group, and for nobody else.
            Phase::Crashed(_) if cause == StartCause::Dependency => phase,
            // What was not stopped to be started again is left alone.
            Phase::Registered | Phase::Stopped { held: false } | Phase::Completed | Phase::Failed(_)
                if stopped_by.is_some() =>
            {
                phase
            }
            Phase::Registered
            | Phase::Stopped { .. }
            | Phase::Completed
            | Phase::Crashed(_)
            | Phase::Failed(_) => self.begin(cause),
            // Who wants it started wants it to run.
            Phase::Paused(paused) if by_hand => self.resume(paused),
            Phase::Waiting { .. } | Phase::Running(_) | Phase::Paused(_) => phase,
            // It is on its way down for a reason of its own: its policy decides what follows.
            Phase::Starting { abort: Some(Abort { cause: stop, .. }), .. }
            | Phase::Stopping(Stopping { cause: stop, .. })
                if stopped_by.is_some_and(|by| by != stop) =>
            {
                phase
            }
            Phase::Starting { incarnation, asked, abort } => Phase::Starting {
                incarnation,
                asked,
                abort: abort.map(|abort| Abort { next: Next::Start(cause), ..abort }),
            },
            Phase::Stopping(stopping) => {
                let step = match stopping.step {
                    Step::Killing { stuck_at: None } => {
                        Step::Killing { stuck_at: Some(self.now + STUCK_AFTER) }
                    }
                    step => step,
                };
                Phase::Stopping(Stopping { step, next: Next::Start(cause), ..stopping })
            }
        }
    }

    fn restart(&mut self, phase: Phase) -> Phase {
        let next = Next::Start(StartCause::Command);
        match phase {
            Phase::Running(life) | Phase::Paused(Paused { life, .. }) => {
                if matches!(phase, Phase::Paused(_)) {
                    self.out.push(InstanceEffect::Resume(life.incarnation));
                }
                self.aim(Goal::Up);
                self.machine.attempts = 0;
                self.begin_stop(life, StopCause::Restart, next)
            }
            Phase::Starting { incarnation, asked, .. } => {
                self.aim(Goal::Up);
                let abort = Some(Abort { cause: StopCause::Restart, by_force: false, next });
                Phase::Starting { incarnation, asked, abort }
            }
            Phase::Registered
            | Phase::Waiting { .. }
            | Phase::Stopping(_)
            | Phase::Stopped { .. }
            | Phase::Completed
            | Phase::Crashed(_)
            | Phase::Failed(_) => self.start(phase, StartCause::Command),
        }
    }

    fn stop(&mut self, phase: Phase, cause: StopCause, by_force: bool) -> Phase {
        match cause {
            StopCause::Command | StopCause::Removed | StopCause::Shutdown => self.aim(Goal::Down),
            // Only what runs goes with what it depends on; the rest asks the graph anyway.
            StopCause::Dependency
                if !matches!(
                    phase,
                    Phase::Running(_) | Phase::Paused(_) | Phase::Starting { abort: None, .. }
                ) =>
            {
                return phase;
            }
            // Nobody wants it any more: what a later restart brings back is not this one.
            StopCause::AutoShutdown => self.aim(Goal::Down),
            StopCause::Dependency => {}
            StopCause::Restart
            | StopCause::Group
            | StopCause::GaveUp
            | StopCause::ProjectGaveUp
            | StopCause::Timeout
            | StopCause::Health
            | StopCause::LeftBehind
            | StopCause::Internal => {}
        }
        let for_good = matches!(cause, StopCause::Command | StopCause::Removed);
        match phase {
            // It rests because it is to, and the next supervisor is to know that.
            Phase::Registered if for_good => self.rest(cause),
            Phase::Registered => Phase::Registered,
            Phase::Waiting { .. } => {
                self.out.push(InstanceEffect::Withdraw);
                match cause {
                    // It has not run yet: whatever its policy, it is still to.
                    StopCause::Group if self.machine.goal == Goal::Up => {
                        self.emit(Fact::Stopped { instance: self.machine.id.clone(), held: true });
                        Phase::Stopped { held: true }
                    }
                    cause => self.rest(cause),
                }
            }
            Phase::Crashed(_) => self.rest(cause),
            // The graph must not bring it back.
            Phase::Failed(FailureReason::Dependency { .. }) if for_good => {
                self.out.push(InstanceEffect::Withdraw);
                self.rest(cause)
            }
            Phase::Stopped { held: true } => self.rest(cause),
            Phase::Stopped { held: false } | Phase::Completed => phase,
            Phase::Failed(why) => match cause {
                StopCause::Command | StopCause::Removed => self.rest(cause),
                StopCause::Shutdown
                | StopCause::Restart
                | StopCause::Group
                | StopCause::GaveUp
                | StopCause::ProjectGaveUp
                | StopCause::Timeout
                | StopCause::Health
                | StopCause::LeftBehind
                | StopCause::Dependency
                | StopCause::AutoShutdown
                | StopCause::Internal => Phase::Failed(why),
            },
            Phase::Starting { incarnation, asked, abort } => {
                let by_force = by_force || abort.is_some_and(|a| a.by_force);
                Phase::Starting {
                    incarnation,
                    asked,
                    abort: Some(Abort { cause, by_force, next: Next::Rest }),
                }
            }
            // Even by force it goes through `Stopping`: only the host tells when a tree is gone.
            Phase::Running(life) | Phase::Paused(Paused { life, .. }) if by_force => {
                self.end_by_force(life, cause, Next::Rest)
            }
            Phase::Running(life) => self.begin_stop(life, cause, Next::Rest),
            Phase::Paused(Paused { life, .. }) => {
                // A stop command talks to it, so it must be able to listen.
                self.out.push(InstanceEffect::Resume(life.incarnation));
                self.begin_stop(life, cause, Next::Rest)
            }
            Phase::Stopping(stopping) => {
                let step = match (stopping.step, self.machine.stop_by) {
                    (Step::Command { deadline }, Some(by)) => {
                        let half = self.now + by.saturating_sub(self.now) / 2;
                        Step::Command { deadline: deadline.min(half) }
                    }
                    (Step::Terminating { deadline }, Some(by)) => {
                        Step::Terminating { deadline: deadline.min(by) }
                    }
                    (step, _) => step,
                };
                let stopping = Stopping { cause, step, next: Next::Rest, ..stopping };
                match stopping.step {
                    Step::Command { .. } | Step::Terminating { .. } if by_force => self.kill(stopping),
                    // Told to be stuck already: whoever asks now is to hear it, too.
                    Step::Killing { stuck_at: None } => {
                        let step = Step::Killing { stuck_at: Some(self.now + STUCK_AFTER) };
                        Phase::Stopping(Stopping { step, ..stopping })
                    }
                    Step::Command { .. } | Step::Terminating { .. } | Step::Killing { .. } => {
                        Phase::Stopping(stopping)
                    }
                }
            }
        }
    }

    /// It goes on where it stood: its deadlines, and the uptime that counts, move with it.
    fn resume(&mut self, paused: Paused) -> Phase {
        let Paused { life, since, halt } = paused;
        let still = self.now.saturating_sub(since);
        let ready = match life.ready {
            Readiness::Since(at) => Readiness::Since(at + still),
            Readiness::Not { at, deadline } => {
                Readiness::Not { at: at.map(|at| at + still), deadline: deadline.map(|d| d + still) }
            }
        };
        self.out.push(InstanceEffect::Resume(life.incarnation));
        match ready {
            Readiness::Since(_) if self.spec.health.is_some() => {
                self.out.push(InstanceEffect::WatchHealth(life.incarnation));
            }
            Readiness::Not { .. } if self.checks_readiness() => {
                self.out.push(InstanceEffect::WatchReady(life.incarnation));
            }
            Readiness::Since(_) | Readiness::Not { .. } => {}
        }
        if halt == Halt::Done {
            self.emit(Fact::Resumed {
                instance: self.machine.id.clone(),
                incarnation: life.incarnation,
                ready: matches!(ready, Readiness::Since(_)),
            });
        }
        let life = Life { ready, ..life };
        match ready {
            // Nothing is asked of it: it was halted before it could be told that it is ready.
            Readiness::Not { at: None, .. } if self.spec.ready.is_none() => self.ready(life),
            Readiness::Not { .. } | Readiness::Since(_) => Phase::Running(life),
        }
    }

    fn checks_readiness(&self) -> bool {
        self.spec.ready.as_ref().is_some_and(|ready| matches!(ready.target, ReadyTarget::Check(_)))
    }

    /// Sets the goal and says so when that is a change.
    fn aim(&mut self, goal: Goal) {
        if self.machine.goal != goal {
            self.machine.goal = goal;
            self.emit(Fact::GoalSet { instance: self.machine.id.clone(), goal });
        }
    }

    /// On the way up: through the graph where there is something to wait for.
    fn begin(&mut self, cause: StartCause) -> Phase {
        if let Some(fault) = &self.spec.fault {
            return self.fail(FailureReason::Manifest { message: fault.clone() });
        }
        if self.spec.depends_on.is_empty() {
            self.spawn(cause)
        } else {
            // Told before the graph answers: whoever depends on it sees that it is on its way.
            self.emit(Fact::Waiting { instance: self.machine.id.clone(), for_: Vec::new() });
            self.machine.question = self.machine.question.next();
            self.out.push(InstanceEffect::Ask(self.machine.question));
            Phase::Waiting { cause }
        }
    }

    fn spawn(&mut self, cause: StartCause) -> Phase {
        let incarnation = self.machine.last.next();
        self.machine.last = incarnation;
        self.emit(Fact::Starting { instance: self.machine.id.clone(), incarnation, cause });
        self.machine.stop_by = None;
        self.out.push(InstanceEffect::Spawn(incarnation));
        Phase::Starting { incarnation, asked: self.now, abort: None }
    }

    fn spawned(
        &mut self,
        incarnation: Incarnation,
        asked: Duration,
        abort: Option<Abort>,
        pid: u32,
    ) -> Phase {
        self.emit(Fact::Running { instance: self.machine.id.clone(), incarnation, pid });
        let never_ready = Readiness::Not { at: None, deadline: None };
        let life = Life { incarnation, started: asked, ready: never_ready };
        if let Some(abort) = abort {
            return if abort.by_force {
                self.end_by_force(life, abort.cause, abort.next)
            } else {
                self.begin_stop(life, abort.cause, abort.next)
            };
        }
        let Some(ready) = &self.spec.ready else {
            return self.ready(life);
        };
        let deadline = ready.deadline.map(|d| self.now + d);
        let at = match &ready.target {
            ReadyTarget::After(delay) => Some(self.now + *delay),
            ReadyTarget::Check(_) => {
                self.out.push(InstanceEffect::WatchReady(incarnation));
                None
            }
            // The host watches the output; the pattern went with the spawn.
            ReadyTarget::Log(_) => None,
        };
        Phase::Running(Life { ready: Readiness::Not { at, deadline }, ..life })
    }

    fn spawn_failed(
        &mut self,
        incarnation: Incarnation,
        abort: Option<Abort>,
        failure: SpawnFailure,
        roll: f64,
    ) -> Phase {
        let exit = ExitOutcome::Spawn(Box::new(failure));
        self.emit(Fact::Exited {
            instance: self.machine.id.clone(),
            incarnation,
            exit: exit.clone(),
            uptime: Duration::ZERO,
        });
        match abort {
            Some(Abort { next: Next::Start(cause), .. }) => {
                self.rested_for_a_moment();
                self.begin(cause)
            }
            Some(Abort { next: Next::Rest, cause, .. }) => self.rest(cause),
            Some(Abort { next: Next::Fail(why), .. }) => self.fail(why),
            None => self.judge(exit, None, roll),
        }
    }

    fn ready(&mut self, life: Life) -> Phase {
        match life.ready {
            Readiness::Since(_) => Phase::Running(life),
            Readiness::Not { .. } => {
                let incarnation = life.incarnation;
                self.tell_ready(&life);
                if self.checks_readiness() {
                    // Ready is for once; from here on health counts.
                    self.out.push(InstanceEffect::EndChecks);
                }
                if self.spec.health.is_some() {
                    self.out.push(InstanceEffect::WatchHealth(incarnation));
                }
                Phase::Running(Life { ready: Readiness::Since(self.now), ..life })
            }
        }
    }

    fn tell_ready(&mut self, life: &Life) {
        self.emit(Fact::Ready {
            instance: self.machine.id.clone(),
            incarnation: life.incarnation,
            after: self.now.saturating_sub(life.started),
        });
    }

    fn checked(&mut self, life: Life, kind: CheckKind, change: CheckChange) -> Phase {
        let instance = self.machine.id.clone();
        let incarnation = life.incarnation;
        match (kind, change) {
            (CheckKind::Ready, CheckChange::Good) => self.ready(life),
            (CheckKind::Health, CheckChange::Good) => {
                self.emit(Fact::HealthChanged { instance, incarnation, health: Health::Healthy });
                Phase::Running(life)
            }
            (CheckKind::Ready | CheckKind::Health, CheckChange::Failing { in_a_row, message }) => {
                self.emit(Fact::CheckFailed { instance, incarnation, check: kind, in_a_row, message });
                Phase::Running(life)
            }
            (CheckKind::Ready | CheckKind::Health, CheckChange::Unable(message)) => {
                self.emit(Fact::CheckUnable { instance, incarnation, check: kind, message });
                Phase::Running(life)
            }
            (CheckKind::Health, CheckChange::Bad { in_a_row, message }) => {
                self.emit(Fact::CheckFailed {
                    instance: instance.clone(),
                    incarnation,
                    check: kind,
                    in_a_row,
                    message,
                });
                self.emit(Fact::HealthChanged { instance, incarnation, health: Health::Unhealthy });
                self.begin_stop(life, StopCause::Health, Next::Rest)
            }
            // `probe` never calls a readiness check bad.
            (CheckKind::Ready, CheckChange::Bad { .. }) => Phase::Running(life),
        }
    }

    fn exited(&mut self, life: Life, exit: Exit, remains: bool, roll: f64) -> Phase {
        let stopping = Stopping {
            life,
            cause: StopCause::LeftBehind,
            asked: self.now,
            exit: Some(exit),
            step: Step::Terminating { deadline: self.now + self.stop_time() },
            next: Next::Rest,
            reason: None,
        };
        if !remains {
            self.out.push(InstanceEffect::EndChecks);
            return self.finish(stopping, roll);
        }
        self.out.push(InstanceEffect::EndChecks);
        self.emit(Fact::LeftBehind {
            instance: self.machine.id.clone(),
            incarnation: life.incarnation,
            exit: ExitOutcome::Process { exit, ended: EndedBy::ByItself, reason: None },
        });
        self.out.push(InstanceEffect::Terminate(life.incarnation, self.spec.stop.signal));
        Phase::Stopping(stopping)
    }

    fn begin_stop(&mut self, life: Life, cause: StopCause, next: Next) -> Phase {
        self.out.push(InstanceEffect::EndChecks);
        let incarnation = life.incarnation;
        let by_command = self.spec.stop.command.is_some();
        let timeout = match (self.machine.stop_by, by_command) {
            // What comes after the command needs a part of it.
            (Some(by), true) => self.stop_time().min(by.saturating_sub(self.now) / 2),
            _ => self.stop_time(),
        };
        let deadline = self.now + timeout;
        self.emit(Fact::Stopping {
            instance: self.machine.id.clone(),
            incarnation,
            cause,
            signal: (!by_command).then(|| signal_name(self.spec.stop.signal)),
            timeout,
        });
        let step = if by_command {
            self.out.push(InstanceEffect::StopCommand(incarnation));
            Step::Command { deadline }
        } else {
            self.out.push(InstanceEffect::Terminate(incarnation, self.spec.stop.signal));
            Step::Terminating { deadline }
        };
        let reason = match cause {
            StopCause::Timeout => Some(EndReason::Timeout),
            StopCause::Health => Some(EndReason::Health),
            StopCause::Command
            | StopCause::Restart
            | StopCause::Removed
            | StopCause::Shutdown
            | StopCause::Group
            | StopCause::GaveUp
            | StopCause::ProjectGaveUp
            | StopCause::LeftBehind
            | StopCause::Dependency
            | StopCause::AutoShutdown
            | StopCause::Internal => None,
        };
        Phase::Stopping(Stopping { life, cause, asked: self.now, exit: None, step, next, reason })
    }

    /// So long it may take to end from now on.
    fn stop_time(&self) -> Duration {
        let own = self.spec.stop.timeout;
        self.machine.stop_by.map_or(own, |by| own.min(by.saturating_sub(self.now)))
    }

    fn stop_command_trouble(&mut self, stopping: &Stopping, trouble: Option<String>) {
        if let Some(message) = trouble {
            self.emit(Fact::StopCommandFailed {
                instance: self.machine.id.clone(),
                incarnation: stopping.life.incarnation,
                message,
            });
        }
    }

    fn end_by_force(&mut self, life: Life, cause: StopCause, next: Next) -> Phase {
        self.out.push(InstanceEffect::EndChecks);
        let (asked, step) = (self.now, Step::Killing { stuck_at: None });
        self.kill(Stopping { life, cause, asked, exit: None, step, next, reason: None })
    }

    fn kill(&mut self, stopping: Stopping) -> Phase {
        let incarnation = stopping.life.incarnation;
        self.emit(Fact::Killed {
            instance: self.machine.id.clone(),
            incarnation,
            after: self.now.saturating_sub(stopping.asked),
        });
        self.out.push(InstanceEffect::KillTree(incarnation));
        let step = Step::Killing { stuck_at: Some(self.now + STUCK_AFTER) };
        Phase::Stopping(Stopping { step, ..stopping })
    }

    /// Its group may be waiting for it to be down: it was, between two lives.
    fn rested_for_a_moment(&mut self) {
        self.out.push(InstanceEffect::Report(Activity::Resting));
        self.out.push(InstanceEffect::Report(Activity::Active));
    }

    /// The whole tree is gone.
    fn finish(&mut self, stopping: Stopping, roll: f64) -> Phase {
        let Stopping { life, cause, exit, step, next, reason, .. } = stopping;
        let by_force = match step {
            Step::Killing { .. } => true,
            Step::Command { .. } | Step::Terminating { .. } => false,
        };
        // SIGKILL before its time is somebody else's.
        let by_kill = matches!(exit, Some(Exit::Signal { signal: 9, .. }));
        let killed = by_kill && !by_force && self.spec.stop.signal != 9;
        let unasked = matches!(cause, StopCause::LeftBehind) || killed;
        let ended = match (unasked, by_force) {
            (true, _) => EndedBy::ByItself,
            (false, true) => EndedBy::ByForce,
            (false, false) => EndedBy::Gracefully,
        };
        // A tree is reported gone only after its main process was.
        let exit = exit.unwrap_or(Exit::Signal { signal: 9, core_dumped: false });
        let outcome = ExitOutcome::Process { exit, ended, reason };
        self.emit(Fact::Exited {
            instance: self.machine.id.clone(),
            incarnation: life.incarnation,
            exit: outcome.clone(),
            uptime: self.now.saturating_sub(life.started),
        });
        match (cause, next) {
            (_, Next::Start(cause)) => {
                self.rested_for_a_moment();
                self.begin(cause)
            }
            (_, Next::Fail(why)) => self.fail(why),
            (StopCause::LeftBehind | StopCause::Timeout | StopCause::Health, Next::Rest) => {
                self.judge(outcome, Some(life), roll)
            }
            (
                StopCause::Command
                | StopCause::Restart
                | StopCause::Removed
                | StopCause::Shutdown
                | StopCause::Group
                | StopCause::GaveUp
                | StopCause::ProjectGaveUp
                | StopCause::Dependency
                | StopCause::AutoShutdown
                | StopCause::Internal,
                Next::Rest,
            ) => self.rest(cause),
        }
    }

    /// An end that nobody asked for: the policy decides.
    fn judge(&mut self, outcome: ExitOutcome, life: Option<Life>, roll: f64) -> Phase {
        if self.machine.goal == Goal::Down {
            return self.rest(StopCause::Command);
        }
        if let Some(Life { ready: Readiness::Since(since), .. }) = life
            && self.now.saturating_sub(since) >= self.spec.restart.reset_after
        {
            self.machine.attempts = 0;
        }
        match restart::verdict(self.spec.kind, &self.spec.restart, &outcome) {
            Verdict::Complete => {
                self.emit(Fact::Completed { instance: self.machine.id.clone() });
                self.out.push(InstanceEffect::Ended);
                Phase::Completed
            }
            Verdict::Fail => match outcome {
                ExitOutcome::Spawn(_) => self.fail(FailureReason::Spawn { exit: outcome }),
                ExitOutcome::Process { .. } => {
                    // As OTP's temporary child: however it ended, it has.
                    if self.spec.restart.policy == Policy::Never {
                        self.out.push(InstanceEffect::Ended);
                    }
                    self.fail(FailureReason::Exit { exit: outcome })
                }
            },
            Verdict::Return => {
                // A success that always returns counts, too: a limit must be one that is reached.
                if let Some(max) = self.spec.restart.max_retries
                    && self.machine.attempts >= max
                {
                    return self.fail(FailureReason::Retries { exit: outcome, retries: max });
                }
                let delay = restart::delay(&self.spec.restart.backoff, self.machine.attempts, roll);
                self.machine.attempts = self.machine.attempts.saturating_add(1);
                self.emit(Fact::Crashed {
                    instance: self.machine.id.clone(),
                    exit: outcome,
                    retry_in: delay,
                    attempt: self.machine.attempts,
                });
                self.out.push(InstanceEffect::Crashed(delay));
                Phase::Crashed(Retry::Asked(delay))
            }
        }
    }

    fn rest(&mut self, cause: StopCause) -> Phase {
        match cause {
            StopCause::ProjectGaveUp => self.fail(FailureReason::Project),
            StopCause::GaveUp => self.fail(FailureReason::Group { group: self.machine.group.clone() }),
            StopCause::Command
            | StopCause::Restart
            | StopCause::Removed
            | StopCause::Shutdown
            | StopCause::Group
            | StopCause::Timeout
            | StopCause::Health
            | StopCause::LeftBehind
            | StopCause::Dependency
            | StopCause::AutoShutdown
            | StopCause::Internal => {
                // OTP's temporary child: once its group has stopped it, nobody wants it any more.
                let stays_down = self.spec.restart.policy == Policy::Never && !self.spec.rerun;
                if cause == StopCause::Group && stays_down {
                    self.aim(Goal::Down);
                }
                // Whoever stopped it will start it again; never what was stopped by hand.
                let again = matches!(cause, StopCause::Group | StopCause::Restart | StopCause::Dependency);
                let held = again && self.machine.goal == Goal::Up;
                self.emit(Fact::Stopped { instance: self.machine.id.clone(), held });
                Phase::Stopped { held }
            }
        }
    }

    fn fail(&mut self, why: FailureReason) -> Phase {
        self.emit(Fact::Failed { instance: self.machine.id.clone(), why: why.clone() });
        Phase::Failed(why)
    }

    fn tick(&mut self, phase: Phase) -> Phase {
        let due = |at: Option<Duration>| at.is_some_and(|at| at <= self.now);
        match phase {
            Phase::Running(life) => match life.ready {
                Readiness::Not { at, .. } if due(at) => self.ready(life),
                Readiness::Not { deadline, .. } if due(deadline) => {
                    self.begin_stop(life, StopCause::Timeout, Next::Rest)
                }
                Readiness::Not { .. } | Readiness::Since(_) => Phase::Running(life),
            },
            Phase::Stopping(stopping) => match stopping.step {
                // As systemd has it: the signal gets a time of its own.
                Step::Command { deadline } if due(Some(deadline)) => {
                    let limit = short(deadline.saturating_sub(stopping.asked));
                    self.stop_command_trouble(&stopping, Some(format!("it did not end within {limit}")));
                    self.out
                        .push(InstanceEffect::Terminate(stopping.life.incarnation, self.spec.stop.signal));
                    self.emit(Fact::Stopping {
                        instance: self.machine.id.clone(),
                        incarnation: stopping.life.incarnation,
                        cause: stopping.cause,
                        signal: Some(signal_name(self.spec.stop.signal)),
                        timeout: self.stop_time(),
                    });
                    let deadline = self.now + self.stop_time();
                    Phase::Stopping(Stopping { step: Step::Terminating { deadline }, ..stopping })
                }
                Step::Terminating { deadline } if due(Some(deadline)) => self.kill(stopping),
                Step::Killing { stuck_at } if due(stuck_at) => {
                    self.emit(Fact::Stuck {
                        instance: self.machine.id.clone(),
                        incarnation: stopping.life.incarnation,
                    });
                    Phase::Stopping(Stopping { step: Step::Killing { stuck_at: None }, ..stopping })
                }
                Step::Command { .. } | Step::Terminating { .. } | Step::Killing { .. } => {
                    Phase::Stopping(stopping)
                }
            },
            Phase::Crashed(Retry::At(at)) if due(Some(at)) => self.begin(StartCause::Policy),
            // A timer that fired early, or for a phase that is over.
            Phase::Registered
            | Phase::Waiting { .. }
            | Phase::Starting { .. }
            | Phase::Paused(_)
            | Phase::Stopped { .. }
            | Phase::Completed
            | Phase::Crashed(_)
            | Phase::Failed(_) => phase,
        }
    }

    fn emit(&mut self, fact: Fact) {
        self.out.push(InstanceEffect::Emit(fact));
    }
}
