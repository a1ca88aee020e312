//! A supervisor may die in any state of an instance. Another one goes on from the record and from
//! the surviving process: all that was under way is restored, or begins anew.

use std::sync::Arc;
use std::time::SystemTime;

use super::*;
use crate::decide::recovery::{StartKind, SurvivingProcess, continuation};
use crate::decide::tree_state::TreeState;
use crate::model::{Event, Plan, TreeFact};

/// One instance, with as much of a kernel as it needs.
struct Life {
    bench: Bench,
    tree_state: TreeState,
    written: u64,
    /// The process of the instance, while it runs.
    process: Option<Incarnation>,
    asked: Option<Incarnation>,
    halting: bool,
    ending: bool,
    permit: bool,
    question: Option<StartRequest>,
    stop_command: bool,
    checks: Option<CheckKind>,
    /// Whether the process has printed its readiness line, which is read only once.
    printed: bool,
}

fn event(seq: u64, fact: Fact, at: Duration) -> Event {
    Event { seq, at: SystemTime::UNIX_EPOCH, since_start: at, fact }
}

impl Life {
    fn new(spec: &ServiceSpec) -> Life {
        let plan = Arc::new(Plan::of("test", vec![spec.clone()]));
        Life {
            bench: Bench::new(spec.clone()),
            tree_state: TreeState::new(plan, SystemTime::UNIX_EPOCH).unwrap(),
            written: 0,
            process: None,
            asked: None,
            halting: false,
            ending: false,
            permit: false,
            question: None,
            stop_command: false,
            checks: None,
            printed: false,
        }
    }

    fn give(&mut self, input: InstanceInput) {
        for effect in self.bench.give(input) {
            match effect {
                InstanceEffect::Emit(fact) => {
                    self.written += 1;
                    self.tree_state.apply(&event(self.written, fact, self.bench.now));
                }
                InstanceEffect::Spawn(incarnation) => self.asked = Some(incarnation),
                InstanceEffect::Ask(question) => self.question = Some(question),
                InstanceEffect::Withdraw => self.question = None,
                InstanceEffect::WatchReady(_) => self.checks = Some(CheckKind::Ready),
                InstanceEffect::WatchHealth(_) => self.checks = Some(CheckKind::Health),
                InstanceEffect::EndChecks => self.checks = None,
                InstanceEffect::Terminate(..) | InstanceEffect::KillTree(_) => self.ending = true,
                InstanceEffect::Pause(_) => self.halting = true,
                InstanceEffect::Resume(_) => self.halting = false,
                InstanceEffect::StopCommand(_) => self.stop_command = true,
                InstanceEffect::Crashed(_) => self.permit = true,
                InstanceEffect::Ended | InstanceEffect::Report(_) => {}
            }
        }
    }

    fn roll_exit(&mut self, exit: Exit) {
        if let Some(incarnation) = self.process.take() {
            (self.ending, self.halting, self.stop_command) = (false, false, false);
            self.give(InstanceInput::Exited { incarnation, exit, remains: false, roll: 0.5 });
        }
    }

    /// Takes one of many possible steps, by `choice`.
    fn go_on(&mut self, choice: u8) {
        let live = self.process;
        match choice % 14 {
            0 => self.give(InstanceInput::Start(StartCause::Command)),
            1 => self.give(InstanceInput::Stop(StopCause::Command)),
            2 => self.give(InstanceInput::Restart),
            3 | 4 => self.give(InstanceInput::Pause),
            5 => self.give(InstanceInput::Resume),
            6 => self.roll_exit(Exit::Code(i32::from(choice > 100))),
            7 => {
                self.bench.now += Duration::from_millis(u64::from(choice) * 10);
                self.give(InstanceInput::Tick);
            }
            8 | 9 => {
                self.print(live);
            }
            _ => {
                self.answer();
            }
        }
    }

    /// Prints the readiness line, if the spec waits for one and it was not printed before.
    fn print(&mut self, incarnation: Option<Incarnation>) -> bool {
        let target = self.bench.spec.ready.as_ref().map(|ready| &ready.target);
        let waited_for = matches!(target, Some(ReadyTarget::Log(_)));
        match incarnation.filter(|_| waited_for && !self.printed) {
            Some(incarnation) => {
                self.printed = true;
                self.give(InstanceInput::LogMatched { incarnation });
                true
            }
            None => false,
        }
    }

    /// Gives the answer that is waited for: by the host, the start gate, the group or the checks.
    /// Returns `false` if nothing is waited for.
    fn answer(&mut self) -> bool {
        if let Some(incarnation) = self.asked.take() {
            self.process = Some(incarnation);
            self.printed = false;
            self.give(InstanceInput::Spawned { incarnation, pid: Some(7) });
        } else if let Some(question) = self.question.take() {
            self.give(InstanceInput::Answered(question, GateReply::Release));
        } else if std::mem::take(&mut self.permit) {
            self.give(InstanceInput::Permit);
        } else if let Some(incarnation) = self.process.filter(|_| std::mem::take(&mut self.stop_command)) {
            self.give(InstanceInput::StopCommandDone { incarnation, trouble: None });
        } else if self.ending {
            self.roll_exit(Exit::Signal { signal: 15, core_dumped: false });
        } else if let Some(incarnation) = self.process.filter(|_| std::mem::take(&mut self.halting)) {
            self.give(InstanceInput::Halted { incarnation });
        } else if let Some(incarnation) = self.process
            && self.bench.state() == State::Running
            && !self.bench.machine.is_ready()
            && self.checks == Some(CheckKind::Ready)
        {
            self.give(InstanceInput::Checked {
                incarnation,
                kind: CheckKind::Ready,
                change: CheckChange::Good,
            });
        } else if self.bench.state() == State::Running && self.print(self.process) {
            // A process prints the line once, whoever reads it.
        } else if self.bench.machine.next_deadline().is_some() {
            self.bench.now += Duration::from_secs(3600);
            self.give(InstanceInput::Tick);
        } else {
            return false;
        }
        true
    }

    /// Another supervisor takes over. `process_too`: the process has ended as well, and nobody knows
    /// how.
    fn die(&mut self, process_too: bool) {
        if process_too {
            self.process = None;
        }
        let id = self.bench.machine.id.clone();
        let spec = self.bench.spec.clone();
        let written = self.tree_state.entry(&id).map(|entry| entry.past());
        let left = self.process.map(|incarnation| SurvivingProcess { incarnation, pid: 7 });
        let now = self.bench.now;
        let today = SystemTime::UNIX_EPOCH;
        let goes_on = continuation(&id, &spec, StartKind::Follows, written, left, now, today);
        let process = self.process.filter(|_| goes_on.adopts);
        let bench = Bench { now, ..Bench::new(spec.clone()) };
        *self = Life { process, bench, printed: self.printed, ..Life::new(&spec) };
        let Some(past) = goes_on.past else {
            return;
        };
        self.written += 1;
        let taken = Fact::Tree(TreeFact::TakenOver {
            instances: vec![past.clone()],
            failed_groups: Vec::new(),
            failed_projects: Vec::new(),
        });
        self.tree_state.apply(&event(self.written, taken, now));
        self.give(InstanceInput::Restore(Box::new(past)));
    }

    fn settle(&mut self) {
        for _ in 0..200 {
            if !self.answer() {
                return;
            }
        }
        panic!("it never comes to rest: {:?}", self.bench.machine);
    }
}

fn specs() -> impl Strategy<Value = ServiceSpec> {
    let check = || Check {
        target: CheckTarget::Tcp("127.0.0.1:1".into()),
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        successes: 1,
    };
    let target = prop_oneof![
        Just(None),
        Just(Some(ReadyTarget::Log("up".into()))),
        Just(Some(ReadyTarget::After(Duration::from_secs(5)))),
        Just(Some(ReadyTarget::Check(check()))),
    ];
    let policy = prop_oneof![Just(Policy::OnFailure), Just(Policy::Always), Just(Policy::UnlessStopped)];
    (target, policy, any::<bool>(), any::<bool>()).prop_map(move |(target, policy, health, command)| {
        let mut spec = spec();
        spec.ready = target.map(|target| ReadySpec { target, deadline: Some(Duration::from_secs(10)) });
        spec.restart.policy = policy;
        spec.health =
            health.then(|| HealthSpec { check: check(), failures: 1, start_period: Duration::ZERO });
        spec.stop.command = command.then(|| CommandLine { argv: vec!["x".into()], shell: false });
        spec
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// Whatever the state and the kind of death, the goal is kept. An instance whose goal is up runs,
    /// gets ready and is checked; a pause lasts until it is resumed; and nothing waits for ever.
    #[test]
    fn a_life_goes_on_below_another_supervisor(
        spec in specs(),
        lives in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..25), any::<bool>()), 1..4),
    ) {
        let mut life = Life::new(&spec);
        for (choices, process_too) in lives {
            for choice in choices {
                life.go_on(choice);
            }
            let (goal, was) = (life.bench.machine.goal(), life.bench.state());
            // A spawn without an answer is lost with its supervisor: no process lives on.
            let lives_on = life.process.is_some() && !process_too;
            life.die(process_too);
            prop_assert_eq!(life.bench.machine.goal(), goal);
            if was == State::Paused && lives_on {
                prop_assert_eq!(life.bench.state(), State::Paused);
            }
        }
        life.settle();
        if life.bench.state() == State::Paused {
            life.give(InstanceInput::Resume);
            life.settle();
        }
        let (machine, state) = (&life.bench.machine, life.bench.state());
        match machine.goal() {
            Goal::Down => prop_assert!(
                matches!(state, State::Registered | State::Stopped | State::Completed | State::Failed),
                "{:?}", machine
            ),
            Goal::Up => match state {
                State::Running => {
                    prop_assert!(machine.is_ready(), "{:?}", machine);
                    let checked = life.checks == Some(CheckKind::Health);
                    prop_assert_eq!(checked, life.bench.spec.health.is_some(), "{:?}", machine);
                }
                State::Completed | State::Failed => {}
                _ => prop_assert!(false, "it waits for ever: {:?}", machine),
            },
        }
    }
}
