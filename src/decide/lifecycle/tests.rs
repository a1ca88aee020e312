//! Tests of the machine, by tables of cases and by random inputs.

use proptest::prelude::*;

use super::*;
use crate::model::exit::SpawnStage;
use crate::model::{
    Check, CheckTarget, CommandLine, Condition, Dependency, EndedBy, ExitOutcome, HealthSpec, InstanceFact,
    Policy, ReadySpec, ReadyTarget,
};

mod deaths;

fn spec() -> ServiceSpec {
    ServiceSpec::new(Name::new("web").unwrap(), ["web"])
}

/// A machine with its spec and its clock.
struct Bench {
    machine: Machine,
    spec: ServiceSpec,
    now: Duration,
}

impl Bench {
    fn new(spec: ServiceSpec) -> Bench {
        Bench { machine: Machine::new(InstanceId::sole(spec.name.clone()), None), spec, now: Duration::ZERO }
    }

    fn give(&mut self, input: InstanceInput) -> Vec<InstanceEffect> {
        let mut out = Vec::new();
        self.machine.step(&self.spec, self.now, input, &mut out);
        out
    }

    fn later(&mut self, millis: u64) -> Vec<InstanceEffect> {
        self.now += Duration::from_millis(millis);
        self.give(InstanceInput::Tick)
    }

    /// A bench whose instance is running.
    fn up(spec: ServiceSpec) -> Bench {
        let mut bench = Bench::new(spec);
        bench.give(InstanceInput::Start(StartCause::Boot));
        bench.give(InstanceInput::Spawned { incarnation: Incarnation(1), pid: Some(7) });
        assert_eq!(bench.machine.state(), State::Running);
        bench
    }

    fn exit(&mut self, incarnation: u64, exit: Exit, remains: bool) -> Vec<InstanceEffect> {
        self.give(InstanceInput::Exited { incarnation: Incarnation(incarnation), exit, remains, roll: 0.5 })
    }

    fn state(&self) -> State {
        self.machine.state()
    }
}

fn facts(effects: &[InstanceEffect]) -> Vec<String> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            InstanceEffect::Emit(fact) => {
                let value = serde_json::to_value(fact).unwrap();
                Some(value["event"].as_str().unwrap().to_owned())
            }
            _ => None,
        })
        .collect()
}

#[test]
fn a_life_from_start_to_return() {
    let mut bench = Bench::new(spec());
    let out = bench.give(InstanceInput::Start(StartCause::Boot));
    assert_eq!(facts(&out), ["goal_set", "starting"]);
    assert!(out.contains(&InstanceEffect::Spawn(Incarnation(1))));
    let out = bench.give(InstanceInput::Spawned { incarnation: Incarnation(1), pid: Some(7) });
    assert_eq!(facts(&out), ["running", "ready"]);
    let out = bench.exit(1, Exit::Code(3), false);
    assert_eq!(facts(&out), ["exited", "crashed"]);
    assert!(out.contains(&InstanceEffect::Crashed(Duration::from_millis(100))));
    assert_eq!(bench.state(), State::Crashed);
    bench.give(InstanceInput::Permit);
    assert_eq!(bench.machine.next_deadline(), Some(Duration::from_millis(100)));
    assert!(bench.later(99).is_empty());
    assert!(bench.later(1).contains(&InstanceEffect::Spawn(Incarnation(2))));
}

#[test]
fn a_stop_is_asked_then_forced() {
    let mut bench = Bench::up(spec());
    let out = bench.give(InstanceInput::Stop(StopCause::Command));
    assert!(out.contains(&InstanceEffect::Terminate(Incarnation(1), 15)));
    assert!(bench.later(9_999).is_empty());
    let out = bench.later(1);
    assert_eq!(facts(&out), ["killed"], "the KILL is named");
    assert!(out.contains(&InstanceEffect::KillTree(Incarnation(1))));
    let out = bench.exit(1, Exit::Signal { signal: 9, core_dumped: false }, false);
    let exited = out.iter().find_map(|effect| match effect {
        InstanceEffect::Emit(Fact::Instance(InstanceFact::Exited {
            exit: ExitOutcome::Process { ended, .. },
            ..
        })) => Some(*ended),
        _ => None,
    });
    assert_eq!(exited, Some(EndedBy::ByForce));
    assert_eq!(bench.state(), State::Stopped);
}

#[test]
fn a_stuck_process_is_told_once_and_the_stop_still_ends() {
    let mut bench = Bench::up(spec());
    bench.give(InstanceInput::Kill(StopCause::Command));
    assert_eq!(facts(&bench.later(5_000)), ["stuck"]);
    assert_eq!(bench.machine.next_deadline(), None);
    bench.exit(1, Exit::Signal { signal: 9, core_dumped: false }, false);
    assert_eq!(bench.state(), State::Stopped);
}

#[test]
fn the_last_command_wins() {
    let mut bench = Bench::up(spec());
    bench.give(InstanceInput::Stop(StopCause::Command));
    bench.give(InstanceInput::Start(StartCause::Command));
    let out = bench.exit(1, Exit::Code(0), false);
    assert!(out.contains(&InstanceEffect::Spawn(Incarnation(2))), "stop, then start");
    bench.give(InstanceInput::Restart);
    bench.give(InstanceInput::Stop(StopCause::Command));
    bench.give(InstanceInput::Spawned { incarnation: Incarnation(2), pid: Some(8) });
    bench.exit(2, Exit::Code(0), false);
    assert_eq!(bench.state(), State::Stopped, "restart while starting, then stop");
}

#[test]
fn a_stop_while_the_process_is_being_made_waits_for_it() {
    let mut bench = Bench::new(spec());
    bench.give(InstanceInput::Start(StartCause::Command));
    assert!(facts(&bench.give(InstanceInput::Stop(StopCause::Command))).contains(&"goal_set".to_owned()));
    assert_eq!(bench.state(), State::Starting);
    let out = bench.give(InstanceInput::Spawned { incarnation: Incarnation(1), pid: Some(7) });
    assert!(out.contains(&InstanceEffect::Terminate(Incarnation(1), 15)));
}

#[test]
fn late_news_changes_nothing() {
    let mut bench = Bench::up(spec());
    bench.give(InstanceInput::Restart);
    bench.exit(1, Exit::Code(0), false);
    bench.give(InstanceInput::Spawned { incarnation: Incarnation(2), pid: Some(8) });
    let before = format!("{:?}", bench.machine);
    for late in [
        InstanceInput::Exited { incarnation: Incarnation(1), exit: Exit::Code(1), remains: false, roll: 0.5 },
        InstanceInput::TreeGone { incarnation: Incarnation(1), roll: 0.5 },
        InstanceInput::Spawned { incarnation: Incarnation(1), pid: Some(9) },
        InstanceInput::LogMatched { incarnation: Incarnation(1) },
        InstanceInput::StopCommandDone { incarnation: Incarnation(1), trouble: None },
    ] {
        assert!(bench.give(late).is_empty());
    }
    assert_eq!(format!("{:?}", bench.machine), before);
}

#[test]
fn what_is_left_behind_is_ended_before_the_return() {
    let mut bench = Bench::up(spec());
    let out = bench.exit(1, Exit::Code(1), true);
    assert_eq!(facts(&out), ["left_behind"]);
    assert!(out.contains(&InstanceEffect::Terminate(Incarnation(1), 15)));
    assert_eq!(bench.state(), State::Stopping);
    assert!(bench.later(10_000).contains(&InstanceEffect::KillTree(Incarnation(1))));
    let out = bench.give(InstanceInput::TreeGone { incarnation: Incarnation(1), roll: 0.5 });
    assert_eq!(facts(&out), ["exited", "crashed"]);
}

#[test]
fn readiness_by_delay_by_log_and_by_deadline() {
    let with = |target, deadline| {
        let mut spec = spec();
        spec.ready = Some(ReadySpec { target, deadline });
        Bench::up(spec)
    };
    let mut after = with(ReadyTarget::After(Duration::from_secs(2)), None);
    assert!(after.later(1_999).is_empty());
    assert_eq!(facts(&after.later(1)), ["ready"]);
    let mut log = with(ReadyTarget::Log("up".into()), Some(Duration::from_secs(5)));
    assert_eq!(facts(&log.give(InstanceInput::LogMatched { incarnation: Incarnation(1) })), ["ready"]);
    assert_eq!(log.machine.next_deadline(), None, "no deadline once ready");
    let mut late = with(ReadyTarget::Log("up".into()), Some(Duration::from_secs(5)));
    assert_eq!(facts(&late.later(5_000)), ["stopping"]);
    let out = late.exit(1, Exit::Code(0), false);
    assert_eq!(facts(&out), ["exited", "crashed"], "a missed deadline is a failure even with code 0");
}

fn with_health() -> ServiceSpec {
    let mut spec = spec();
    spec.health = Some(HealthSpec {
        check: Check {
            target: CheckTarget::Exec(CommandLine { argv: vec!["check".into()], shell: false }),
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
            successes: 1,
        },
        failures: 3,
        start_period: Duration::ZERO,
    });
    spec
}

#[test]
fn a_health_kill_is_a_failure_and_a_stop_by_hand_is_not() {
    let bad = || InstanceInput::Checked {
        incarnation: Incarnation(1),
        kind: CheckKind::Health,
        change: CheckChange::Bad { in_a_row: 3, message: "refused".into() },
    };
    let mut bench = Bench::up(with_health());
    assert_eq!(facts(&bench.give(bad())), ["check_failed", "health_changed", "stopping"]);
    let out = bench.exit(1, Exit::Signal { signal: 15, core_dumped: false }, false);
    assert_eq!(facts(&out), ["exited", "crashed"]);
    let mut never = with_health();
    never.restart.policy = Policy::Never;
    let mut bench = Bench::up(never);
    bench.give(bad());
    bench.exit(1, Exit::Code(0), false);
    assert_eq!(bench.state(), State::Failed);
    let mut bench = Bench::up(with_health());
    bench.give(InstanceInput::Stop(StopCause::Command));
    bench.exit(1, Exit::Signal { signal: 15, core_dumped: false }, false);
    assert_eq!(bench.state(), State::Stopped);
}

#[test]
fn retries_are_counted_and_forgotten_after_a_healthy_time() {
    let mut spec = spec();
    spec.restart.max_retries = Some(2);
    spec.restart.backoff.initial = Duration::ZERO;
    let mut bench = Bench::up(spec);
    for n in 1..=2 {
        bench.exit(n, Exit::Code(1), false);
        assert_eq!(bench.state(), State::Crashed);
        bench.give(InstanceInput::Permit);
        bench.give(InstanceInput::Spawned { incarnation: Incarnation(n + 1), pid: Some(7) });
    }
    bench.later(60_000);
    bench.exit(3, Exit::Code(1), false);
    assert_eq!(bench.state(), State::Crashed, "a minute of health forgives");
    for n in 4..=5 {
        bench.give(InstanceInput::Permit);
        bench.give(InstanceInput::Spawned { incarnation: Incarnation(n), pid: Some(7) });
        bench.exit(n, Exit::Code(1), false);
    }
    assert_eq!(bench.state(), State::Failed);
    bench.give(InstanceInput::Start(StartCause::Command));
    assert_eq!(bench.state(), State::Starting, "a start by hand clears failed");
}

#[test]
fn a_missing_program_is_not_tried_again_but_a_full_machine_is() {
    let failure =
        |stage, errno| SpawnFailure { stage, errno, errno_name: String::new(), message: String::new() };
    for (stage, errno, want) in [
        (SpawnStage::Exec, 2, State::Failed),
        (SpawnStage::Chdir, 2, State::Failed),
        (SpawnStage::Fork, 11, State::Crashed),
    ] {
        let mut bench = Bench::new(spec());
        bench.give(InstanceInput::Start(StartCause::Boot));
        bench.give(InstanceInput::SpawnFailed {
            incarnation: Incarnation(1),
            failure: failure(stage, errno),
            roll: 0.5,
        });
        assert_eq!(bench.state(), want, "{stage} {errno}");
    }
}

#[test]
fn a_failed_dependency_fails_and_revives_only_who_is_wanted() {
    let mut spec = spec();
    let on = Name::new("db").unwrap();
    spec.depends_on = vec![Dependency { on: on.clone(), condition: Condition::Ready, required: true }];
    let mut bench = Bench::new(spec.clone());
    assert!(
        bench.give(InstanceInput::Start(StartCause::Boot)).contains(&InstanceEffect::Ask(StartRequest(1)))
    );
    bench.give(InstanceInput::Answered(StartRequest(1), GateReply::Failed(on.clone())));
    assert_eq!(bench.state(), State::Failed);
    assert!(
        bench
            .give(InstanceInput::Answered(StartRequest(1), GateReply::Back))
            .contains(&InstanceEffect::Ask(StartRequest(2)))
    );
    bench.give(InstanceInput::Answered(StartRequest(1), GateReply::Failed(on.clone())));
    assert_eq!(bench.state(), State::Waiting, "an answer to the question before is late");
    bench.give(InstanceInput::Answered(StartRequest(2), GateReply::Failed(on)));
    bench.give(InstanceInput::Stop(StopCause::Command));
    let back = InstanceInput::Answered(StartRequest(2), GateReply::Back);
    assert!(bench.give(back).is_empty(), "goal down is never revived");
}

#[test]
fn what_was_stopped_by_hand_is_not_started_by_its_group() {
    let mut bench = Bench::up(spec());
    bench.give(InstanceInput::Stop(StopCause::Command));
    bench.give(InstanceInput::Stop(StopCause::Group));
    bench.exit(1, Exit::Code(0), false);
    let answer = [InstanceEffect::Report(Activity::Resting)];
    assert_eq!(
        bench.give(InstanceInput::Start(StartCause::Group)),
        answer,
        "its group hears that it stays down"
    );
    assert_eq!(bench.state(), State::Stopped);
}

#[test]
fn a_stop_command_comes_before_the_signal() {
    let mut spec = spec();
    spec.stop.command = Some(CommandLine { argv: vec!["bye".into()], shell: false });
    let mut bench = Bench::up(spec);
    let out = bench.give(InstanceInput::Stop(StopCause::Command));
    assert!(out.contains(&InstanceEffect::StopCommand(Incarnation(1))));
    assert!(!out.iter().any(|e| matches!(e, InstanceEffect::Terminate(..))));
    let out = bench.give(InstanceInput::StopCommandDone { incarnation: Incarnation(1), trouble: None });
    assert_eq!(out, [InstanceEffect::Terminate(Incarnation(1), 15)]);
    assert_eq!(bench.machine.next_deadline(), Some(Duration::from_secs(10)), "one time for both");
}

/// Random directives, and random news that is true or late.
fn inputs() -> impl Strategy<Value = Vec<(u8, u8, u64)>> {
    prop::collection::vec((0u8..18, 0u8..4, 0u64..20_000), 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]
    #[test]
    fn never_two_live_incarnations_and_every_stop_ends(steps in inputs(), depends in any::<bool>()) {
        let mut spec = with_health();
        spec.restart.policy = Policy::Always;
        if depends {
            let on = Name::new("db").unwrap();
            spec.depends_on = vec![Dependency { on, condition: Condition::Ready, required: true }];
        }
        let mut bench = Bench::new(spec);
        // The kernel's side: the incarnations asked for and not answered yet, and those that run.
        let mut asked: Vec<Incarnation> = Vec::new();
        let mut alive: Vec<Incarnation> = Vec::new();
        for (what, which, millis) in steps {
            bench.now += Duration::from_millis(millis);
            let goal_before = bench.machine.goal();
            let late = Incarnation(u64::from(which));
            let input = match what {
                0 => InstanceInput::Start(StartCause::Command),
                1 => InstanceInput::Start(StartCause::Group),
                2 => InstanceInput::Stop(StopCause::Command),
                3 => InstanceInput::Stop(StopCause::Group),
                4 => InstanceInput::Stop(StopCause::GaveUp),
                5 => InstanceInput::Kill(StopCause::Command),
                6 => InstanceInput::Restart,
                7 => InstanceInput::Answered(bench.machine.question, GateReply::Release),
                8 => InstanceInput::Answered(bench.machine.question, GateReply::Failed(Name::new("db").unwrap())),
                9 => InstanceInput::Answered(bench.machine.question, GateReply::Back),
                10 => InstanceInput::Permit,
                11 | 12 => match asked.pop() {
                    Some(incarnation) if which > 0 => {
                        alive.push(incarnation);
                        InstanceInput::Spawned { incarnation, pid: Some(7) }
                    }
                    Some(incarnation) => InstanceInput::SpawnFailed {
                        incarnation,
                        failure: SpawnFailure {
                            stage: SpawnStage::Fork,
                            errno: 11,
                            errno_name: String::new(),
                            message: String::new(),
                        },
                        roll: 0.5,
                    },
                    None => InstanceInput::Tick,
                },
                13 | 14 => match alive.pop() {
                    Some(incarnation) => {
                        InstanceInput::Exited { incarnation, exit: Exit::Code(i32::from(which)), remains: false, roll: 0.5 }
                    }
                    None => InstanceInput::Exited { incarnation: late, exit: Exit::Code(1), remains: false, roll: 0.5 },
                },
                15 => InstanceInput::Checked {
                    incarnation: late,
                    kind: CheckKind::Health,
                    change: CheckChange::Bad { in_a_row: 3, message: String::new() },
                },
                16 => InstanceInput::LogMatched { incarnation: late },
                _ => InstanceInput::Tick,
            };
            // An exit of an incarnation that lives can't be invented as late news.
            if let InstanceInput::Exited { incarnation, .. } = &input
                && bench.machine.live() == Some(*incarnation)
                && asked.contains(incarnation)
            {
                continue;
            }
            if matches!(&input, InstanceInput::Exited { incarnation, .. } if alive.contains(incarnation)) {
                continue;
            }
            let by_hand = matches!(input, InstanceInput::Start(StartCause::Command) | InstanceInput::Restart);
            for effect in bench.give(input) {
                if let InstanceEffect::Spawn(incarnation) = effect {
                    prop_assert!(alive.is_empty() && asked.is_empty(), "two live incarnations");
                    prop_assert!(goal_before == Goal::Up || by_hand, "goal down is never revived");
                    asked.push(incarnation);
                }
            }
        }
        // From anywhere, a stop comes to rest when the kernel does its part.
        bench.give(InstanceInput::Stop(StopCause::Command));
        for incarnation in asked {
            bench.give(InstanceInput::Spawned { incarnation, pid: Some(7) });
            alive.push(incarnation);
        }
        bench.now += Duration::from_secs(20_000);
        bench.give(InstanceInput::Tick);
        for incarnation in alive {
            bench.exit(incarnation.0, Exit::Signal { signal: 9, core_dumped: false }, false);
        }
        prop_assert!(bench.machine.live().is_none());
        prop_assert_eq!(bench.machine.activity(), Activity::Resting);
    }
}

#[test]
fn a_bad_stop_command_is_told_and_the_signal_gets_its_time() {
    let mut spec = spec();
    spec.stop.command = Some(CommandLine { argv: vec!["bye".into()], shell: false });
    let mut bench = Bench::up(spec.clone());
    bench.give(InstanceInput::Stop(StopCause::Command));
    let trouble = Some("exit code 3".to_owned());
    let out = bench.give(InstanceInput::StopCommandDone { incarnation: Incarnation(1), trouble });
    assert_eq!(facts(&out), ["stop_command_failed"]);
    let mut bench = Bench::up(spec);
    bench.give(InstanceInput::Stop(StopCause::Command));
    let out = bench.later(10_000);
    assert_eq!(facts(&out), ["stop_command_failed", "stopping"]);
    assert!(out.contains(&InstanceEffect::Terminate(Incarnation(1), 15)));
    assert!(bench.later(10_000).contains(&InstanceEffect::KillTree(Incarnation(1))));
}

#[test]
fn a_waiting_group_hears_of_the_rest_before_the_next_start() {
    let mut bench = Bench::up(spec());
    bench.give(InstanceInput::Stop(StopCause::Group));
    bench.give(InstanceInput::Restart);
    let out = bench.exit(1, Exit::Code(0), false);
    let reports: Vec<&InstanceEffect> =
        out.iter().filter(|e| matches!(e, InstanceEffect::Report(_))).collect();
    assert_eq!(
        reports,
        [Activity::Resting, Activity::Active, Activity::Coming]
            .map(InstanceEffect::Report)
            .iter()
            .collect::<Vec<_>>()
    );
}
