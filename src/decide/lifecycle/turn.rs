//! One step of the machine: phase x input -> phase and effects, with every pair named.

use std::time::Duration;

use super::{
    Abort, Activity, Halt, InstanceEffect, InstanceInput, Life, Machine, Next, Paused, Phase, Readiness,
    Retry, STUCK_AFTER, Step, Stopping,
};
use crate::decide::probe::CheckChange;
use crate::decide::restart::{self, Verdict};
use crate::decide::start_gate::GateReply;
use crate::model::cause::{CheckKind, FailureReason, StartCause};
use crate::model::event::InstanceFact;
use crate::model::exit::{EndReason, SpawnFailure, signal_name};
use crate::model::{
    EndedBy, Exit, ExitOutcome, Fact, Goal, Health, Incarnation, Policy, ReadyTarget, ServiceSpec, StopCause,
};
use crate::present::units::short;

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
            // Only a running process can be paused, and only a paused one resumed.
            (phase, InstanceInput::Pause | InstanceInput::Resume) => phase,
            (Phase::Paused(Paused { life, since, halt: Halt::Asked }), InstanceInput::Halted { .. }) => {
                let (instance, incarnation) = (self.machine.id.clone(), life.incarnation);
                self.emit(Fact::Instance(InstanceFact::Paused { instance, incarnation }));
                Phase::Paused(Paused { life, since, halt: Halt::Done })
            }
            // A stop or a resume came first.
            (phase, InstanceInput::Halted { .. }) => phase,
            (phase, InstanceInput::Stop(cause)) => self.stop(phase, cause, false),
            (phase, InstanceInput::StopWithin(cause, time)) => {
                self.machine.stop_by = Some(self.now + time);
                self.stop(phase, cause, false)
            }
            (phase, InstanceInput::Kill(cause)) => self.stop(phase, cause, true),

            (Phase::Waiting { cause }, InstanceInput::Answered(_, GateReply::Release)) => self.spawn(cause),
            (Phase::Waiting { cause }, InstanceInput::Answered(_, GateReply::Blocked(unmet))) => {
                self.emit(Fact::Instance(InstanceFact::Waiting {
                    instance: self.machine.id.clone(),
                    for_: unmet,
                }));
                Phase::Waiting { cause }
            }
            (Phase::Waiting { .. }, InstanceInput::Answered(_, GateReply::Failed(on))) => {
                self.fail(FailureReason::Dependency { on })
            }
            (
                Phase::Failed(FailureReason::Dependency { .. }),
                InstanceInput::Answered(_, GateReply::Back),
            ) if self.machine.goal == Goal::Up => self.begin(StartCause::Dependency),
            // The start gate answers a request that a stop has overtaken.
            (phase, InstanceInput::Answered(..)) => phase,

            (Phase::Crashed(Retry::Asked(delay)), InstanceInput::Permit) => {
                if delay.is_zero() {
                    self.begin(StartCause::Policy)
                } else {
                    Phase::Crashed(Retry::At(self.now + delay))
                }
            }
            // A stop or a start by hand came between the crash and the permit.
            (phase, InstanceInput::Permit) => phase,

            (Phase::Starting { incarnation, asked, abort }, InstanceInput::Spawned { pid, .. }) => {
                self.spawned(incarnation, asked, abort, pid)
            }
            (
                Phase::Starting { incarnation, abort, .. },
                InstanceInput::SpawnFailed { failure, roll, .. },
            ) => self.spawn_failed(incarnation, abort, failure, roll),
            // The host answers each spawn once, while the instance is `Starting`.
            (phase, InstanceInput::Spawned { .. } | InstanceInput::SpawnFailed { .. }) => phase,

            (
                Phase::Running(life) | Phase::Paused(Paused { life, .. }),
                InstanceInput::Exited { exit, remains, roll, .. },
            ) => self.exited(life, exit, remains, roll),
            (Phase::Stopping(stopping), InstanceInput::Exited { exit, remains, roll, .. }) => {
                let stopping = Stopping { exit: Some(exit), ..stopping };
                if remains {
                    // The rest of the tree has what is left of the stop timeout.
                    Phase::Stopping(stopping)
                } else {
                    self.finish(stopping, roll)
                }
            }
            (Phase::Stopping(stopping), InstanceInput::TreeGone { roll, .. }) => self.finish(stopping, roll),
            // The host tells of a tree's end only after the exit, which is still to come.
            (phase, InstanceInput::Exited { .. } | InstanceInput::TreeGone { .. }) => phase,

            (Phase::Stopping(stopping), InstanceInput::StopCommandDone { trouble, .. }) => {
                match stopping.step {
                    Step::Command { deadline } => {
                        // Within a stop budget, the signal gets all the time that is left.
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
                    // The stop has already gone on without the command.
                    Step::Terminating { .. } | Step::Killing { .. } => Phase::Stopping(stopping),
                }
            }
            // A stop command runs only while stopping.
            (phase, InstanceInput::StopCommandDone { .. }) => phase,

            (Phase::Running(life), InstanceInput::LogMatched { .. }) => self.ready(life),
            // The process printed the line before it was halted. The fact is emitted at once: the line
            // will not be read again, not even by a later supervisor.
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
            // A late result: the process is paused or being stopped, or its spawn is not answered yet.
            (phase, InstanceInput::LogMatched { .. } | InstanceInput::Checked { .. }) => phase,

            (phase, InstanceInput::Tick) => self.tick(phase),
            (phase, InstanceInput::Reconfigured) => self.reconfigured(phase),

            (Phase::Registered, InstanceInput::Inherit { goal, last, left, message }) => {
                self.inherit(goal, last, left, message)
            }
            (Phase::Registered, InstanceInput::Restore(past)) => self.restore(*past),
            // A machine that has begun has nothing to take over.
            (phase, InstanceInput::Inherit { .. } | InstanceInput::Restore(_)) => phase,
        }
    }

    /// Applies the new spec: asks the start gate anew, or begins the new checks.
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
                    // The new spec has no readiness condition.
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
            // The manifest's fault is gone, and the goal is up.
            Phase::Failed(FailureReason::Manifest { .. })
                if self.machine.goal == Goal::Up && self.spec.fault.is_none() =>
            {
                self.begin(StartCause::Command)
            }
            // These phases read the spec when they next need it.
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
        // A restored instance goes on without a start.
        if cause == StartCause::Boot && phase != Phase::Registered {
            return phase;
        }
        let by_hand = match cause {
            StartCause::Boot | StartCause::Command => true,
            StartCause::Policy | StartCause::Group | StartCause::Dependency => false,
        };
        // The stop that such a start follows; `None`: the start may follow any.
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
            // A crashed instance waits for its group alone.
            Phase::Crashed(_) if cause == StartCause::Dependency => phase,
            // A group or a dependency only starts an instance that was stopped to be started again.
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
            // A start by hand ends a pause, too.
            Phase::Paused(paused) if by_hand => self.resume(paused),
            Phase::Waiting { .. } | Phase::Running(_) | Phase::Paused(_) => phase,
            // The instance is being stopped for another cause: its policy decides what follows.
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
            // Only a running instance stops with its dependency; others ask the start gate anyway.
            StopCause::Dependency
                if !matches!(
                    phase,
                    Phase::Running(_) | Phase::Paused(_) | Phase::Starting { abort: None, .. }
                ) =>
            {
                return phase;
            }
            // The group is done with the instance: a later restart does not bring it back.
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
            // The instance rests because it was stopped, and the next supervisor has to know that.
            Phase::Registered if for_good => self.rest(cause),
            Phase::Registered => Phase::Registered,
            Phase::Waiting { .. } => {
                self.out.push(InstanceEffect::Withdraw);
                match cause {
                    // The instance has not run yet: whatever its policy, it is still to run.
                    StopCause::Group if self.machine.goal == Goal::Up => {
                        self.emit(Fact::Instance(InstanceFact::Stopped {
                            instance: self.machine.id.clone(),
                            held: true,
                        }));
                        Phase::Stopped { held: true }
                    }
                    cause => self.rest(cause),
                }
            }
            Phase::Crashed(_) => self.rest(cause),
            // The start gate must not bring it back.
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
                // A stop command talks to the process, which must be able to listen.
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
                    // The tree was reported as stuck already: this stop gets a report, too.
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

    /// Lets a paused process run on: its deadlines, and the uptime that counts, move by the pause.
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
            self.emit(Fact::Instance(InstanceFact::Resumed {
                instance: self.machine.id.clone(),
                incarnation: life.incarnation,
                ready: matches!(ready, Readiness::Since(_)),
            }));
        }
        let life = Life { ready, ..life };
        match ready {
            // The spec has no readiness condition, and a pause came before readiness was reported.
            Readiness::Not { at: None, .. } if self.spec.ready.is_none() => self.ready(life),
            Readiness::Not { .. } | Readiness::Since(_) => Phase::Running(life),
        }
    }

    fn checks_readiness(&self) -> bool {
        self.spec.ready.as_ref().is_some_and(|ready| matches!(ready.target, ReadyTarget::Check(_)))
    }

    /// Sets the goal, and emits a fact if that is a change.
    fn aim(&mut self, goal: Goal) {
        if self.machine.goal != goal {
            self.machine.goal = goal;
            self.emit(Fact::Instance(InstanceFact::GoalSet { instance: self.machine.id.clone(), goal }));
        }
    }

    /// Begins a start: through the start gate if the service has dependencies.
    fn begin(&mut self, cause: StartCause) -> Phase {
        if let Some(fault) = &self.spec.fault {
            return self.fail(FailureReason::Manifest { message: fault.clone() });
        }
        if self.spec.depends_on.is_empty() {
            self.spawn(cause)
        } else {
            // This fact comes before the answer: dependents see that the instance is on its way.
            self.emit(Fact::Instance(InstanceFact::Waiting {
                instance: self.machine.id.clone(),
                for_: Vec::new(),
            }));
            self.machine.question = self.machine.question.next();
            self.out.push(InstanceEffect::Ask(self.machine.question));
            Phase::Waiting { cause }
        }
    }

    fn spawn(&mut self, cause: StartCause) -> Phase {
        let incarnation = self.machine.last.next();
        self.machine.last = incarnation;
        self.emit(Fact::Instance(InstanceFact::Starting {
            instance: self.machine.id.clone(),
            incarnation,
            cause,
        }));
        self.machine.stop_by = None;
        self.out.push(InstanceEffect::Spawn(incarnation));
        Phase::Starting { incarnation, asked: self.now, abort: None }
    }

    fn spawned(
        &mut self,
        incarnation: Incarnation,
        asked: Duration,
        abort: Option<Abort>,
        pid: Option<u32>,
    ) -> Phase {
        self.emit(Fact::Instance(InstanceFact::Running {
            instance: self.machine.id.clone(),
            incarnation,
            pid,
        }));
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
        self.emit(Fact::Instance(InstanceFact::Exited {
            instance: self.machine.id.clone(),
            incarnation,
            exit: exit.clone(),
            uptime: Duration::ZERO,
        }));
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
                    // A process gets ready once; from here on only health counts.
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
        self.emit(Fact::Instance(InstanceFact::Ready {
            instance: self.machine.id.clone(),
            incarnation: life.incarnation,
            after: self.now.saturating_sub(life.started),
        }));
    }

    fn checked(&mut self, life: Life, kind: CheckKind, change: CheckChange) -> Phase {
        let instance = self.machine.id.clone();
        let incarnation = life.incarnation;
        match (kind, change) {
            (CheckKind::Ready, CheckChange::Good) => self.ready(life),
            (CheckKind::Health, CheckChange::Good) => {
                self.emit(Fact::Instance(InstanceFact::HealthChanged {
                    instance,
                    incarnation,
                    health: Health::Healthy,
                }));
                Phase::Running(life)
            }
            (CheckKind::Ready | CheckKind::Health, CheckChange::Failing { in_a_row, message }) => {
                self.emit(Fact::Instance(InstanceFact::CheckFailed {
                    instance,
                    incarnation,
                    check: kind,
                    in_a_row,
                    message,
                }));
                Phase::Running(life)
            }
            (CheckKind::Ready | CheckKind::Health, CheckChange::Unable(message)) => {
                self.emit(Fact::Instance(InstanceFact::CheckUnable {
                    instance,
                    incarnation,
                    check: kind,
                    message,
                }));
                Phase::Running(life)
            }
            (CheckKind::Health, CheckChange::Bad { in_a_row, message }) => {
                self.emit(Fact::Instance(InstanceFact::CheckFailed {
                    instance: instance.clone(),
                    incarnation,
                    check: kind,
                    in_a_row,
                    message,
                }));
                self.emit(Fact::Instance(InstanceFact::HealthChanged {
                    instance,
                    incarnation,
                    health: Health::Unhealthy,
                }));
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
        self.emit(Fact::Instance(InstanceFact::LeftBehind {
            instance: self.machine.id.clone(),
            incarnation: life.incarnation,
            exit: ExitOutcome::Process { exit, ended: EndedBy::ByItself, reason: None },
        }));
        self.out.push(InstanceEffect::Terminate(life.incarnation, self.spec.stop.signal));
        Phase::Stopping(stopping)
    }

    fn begin_stop(&mut self, life: Life, cause: StopCause, next: Next) -> Phase {
        self.out.push(InstanceEffect::EndChecks);
        let incarnation = life.incarnation;
        let by_command = self.spec.stop.command.is_some();
        let timeout = match (self.machine.stop_by, by_command) {
            // The signal after the command needs a part of the budget.
            (Some(by), true) => self.stop_time().min(by.saturating_sub(self.now) / 2),
            _ => self.stop_time(),
        };
        let deadline = self.now + timeout;
        self.emit(Fact::Instance(InstanceFact::Stopping {
            instance: self.machine.id.clone(),
            incarnation,
            cause,
            signal: (!by_command).then(|| signal_name(self.spec.stop.signal)),
            timeout,
        }));
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

    /// How long the process may take to end from now on: its own timeout, cut by a stop budget.
    fn stop_time(&self) -> Duration {
        let own = self.spec.stop.timeout;
        self.machine.stop_by.map_or(own, |by| own.min(by.saturating_sub(self.now)))
    }

    fn stop_command_trouble(&mut self, stopping: &Stopping, trouble: Option<String>) {
        if let Some(message) = trouble {
            self.emit(Fact::Instance(InstanceFact::StopCommandFailed {
                instance: self.machine.id.clone(),
                incarnation: stopping.life.incarnation,
                message,
            }));
        }
    }

    fn end_by_force(&mut self, life: Life, cause: StopCause, next: Next) -> Phase {
        self.out.push(InstanceEffect::EndChecks);
        let (asked, step) = (self.now, Step::Killing { stuck_at: None });
        self.kill(Stopping { life, cause, asked, exit: None, step, next, reason: None })
    }

    fn kill(&mut self, stopping: Stopping) -> Phase {
        let incarnation = stopping.life.incarnation;
        self.emit(Fact::Instance(InstanceFact::Killed {
            instance: self.machine.id.clone(),
            incarnation,
            after: self.now.saturating_sub(stopping.asked),
        }));
        self.out.push(InstanceEffect::KillTree(incarnation));
        let step = Step::Killing { stuck_at: Some(self.now + STUCK_AFTER) };
        Phase::Stopping(Stopping { step, ..stopping })
    }

    /// Reports the rest between two incarnations: the group may be waiting for it.
    fn rested_for_a_moment(&mut self) {
        self.out.push(InstanceEffect::Report(Activity::Resting));
        self.out.push(InstanceEffect::Report(Activity::Active));
    }

    /// Ends a stop: the whole process tree is gone.
    fn finish(&mut self, stopping: Stopping, roll: f64) -> Phase {
        let Stopping { life, cause, exit, step, next, reason, .. } = stopping;
        let by_force = match step {
            Step::Killing { .. } => true,
            Step::Command { .. } | Step::Terminating { .. } => false,
        };
        // A SIGKILL before regrow sent one came from somebody else.
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
        self.emit(Fact::Instance(InstanceFact::Exited {
            instance: self.machine.id.clone(),
            incarnation: life.incarnation,
            exit: outcome.clone(),
            uptime: self.now.saturating_sub(life.started),
        }));
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

    /// Lets the restart policy decide about an end that nobody asked for.
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
                self.emit(Fact::Instance(InstanceFact::Completed { instance: self.machine.id.clone() }));
                self.out.push(InstanceEffect::Ended);
                Phase::Completed
            }
            Verdict::Fail => match outcome {
                ExitOutcome::Spawn(_) => self.fail(FailureReason::Spawn { exit: outcome }),
                ExitOutcome::Process { .. } => {
                    // As with OTP's temporary child, any end is final.
                    if self.spec.restart.policy == Policy::Never {
                        self.out.push(InstanceEffect::Ended);
                    }
                    self.fail(FailureReason::Exit { exit: outcome })
                }
            },
            Verdict::Return => {
                // A success that comes back counts, too: otherwise the limit might never be reached.
                if let Some(max) = self.spec.restart.max_retries
                    && self.machine.attempts >= max
                {
                    return self.fail(FailureReason::Retries { exit: outcome, retries: max });
                }
                let delay = restart::delay(&self.spec.restart.backoff, self.machine.attempts, roll);
                self.machine.attempts = self.machine.attempts.saturating_add(1);
                self.emit(Fact::Instance(InstanceFact::Crashed {
                    instance: self.machine.id.clone(),
                    exit: outcome,
                    retry_in: delay,
                    attempt: self.machine.attempts,
                }));
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
                // As with OTP's temporary child, a stop by its group is final.
                let stays_down = self.spec.restart.policy == Policy::Never && !self.spec.rerun;
                if cause == StopCause::Group && stays_down {
                    self.aim(Goal::Down);
                }
                // These causes are followed by a start, unless the instance was stopped by hand.
                let again = matches!(cause, StopCause::Group | StopCause::Restart | StopCause::Dependency);
                let held = again && self.machine.goal == Goal::Up;
                self.emit(Fact::Instance(InstanceFact::Stopped { instance: self.machine.id.clone(), held }));
                Phase::Stopped { held }
            }
        }
    }

    fn fail(&mut self, why: FailureReason) -> Phase {
        self.emit(Fact::Instance(InstanceFact::Failed {
            instance: self.machine.id.clone(),
            why: why.clone(),
        }));
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
                // As in systemd, the signal gets a timeout of its own.
                Step::Command { deadline } if due(Some(deadline)) => {
                    let limit = short(deadline.saturating_sub(stopping.asked));
                    self.stop_command_trouble(&stopping, Some(format!("it did not end within {limit}")));
                    self.out
                        .push(InstanceEffect::Terminate(stopping.life.incarnation, self.spec.stop.signal));
                    self.emit(Fact::Instance(InstanceFact::Stopping {
                        instance: self.machine.id.clone(),
                        incarnation: stopping.life.incarnation,
                        cause: stopping.cause,
                        signal: Some(signal_name(self.spec.stop.signal)),
                        timeout: self.stop_time(),
                    }));
                    let deadline = self.now + self.stop_time();
                    Phase::Stopping(Stopping { step: Step::Terminating { deadline }, ..stopping })
                }
                Step::Terminating { deadline } if due(Some(deadline)) => self.kill(stopping),
                Step::Killing { stuck_at } if due(stuck_at) => {
                    self.emit(Fact::Instance(InstanceFact::Stuck {
                        instance: self.machine.id.clone(),
                        incarnation: stopping.life.incarnation,
                    }));
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
