//! Tests of a group whose children obey at once, so that only the order matters.

use super::*;

/// The state of a simulated child.
#[derive(Clone, Copy, PartialEq)]
enum Child {
    Up,
    Fallen,
    Held,
    Down,
}

struct Bench {
    group: Group,
    returns: Vec<bool>,
    children: Vec<Child>,
    now: Duration,
    told: Vec<String>,
}

impl Bench {
    fn new(strategy: Strategy, limit: Option<u32>, on_give_up: GiveUp, returns: &[bool]) -> Bench {
        let spec = GroupSpec { strategy, intensity: limit, on_give_up, ..GroupSpec::default() };
        let mut group = Group::new(&spec, false);
        for returns in returns {
            group.add(NewChild { returns: *returns, autostart: true, significant: false });
        }
        let mut bench = Bench {
            group,
            returns: returns.to_vec(),
            children: vec![Child::Down; returns.len()],
            now: Duration::ZERO,
            told: Vec::new(),
        };
        bench.give(GroupInput::Start(StartCause::Boot));
        bench.told.clear();
        bench
    }

    fn give(&mut self, input: GroupInput) {
        let mut todo = VecDeque::from([input]);
        while let Some(input) = todo.pop_front() {
            match input {
                GroupInput::Crashed(slot, _) => self.children[slot] = Child::Fallen,
                GroupInput::Reported(slot, Activity::Active) => self.children[slot] = Child::Up,
                GroupInput::Reported(slot, Activity::Resting) if self.children[slot] != Child::Held => {
                    self.children[slot] = Child::Down;
                }
                _ => {}
            }
            let mut out = Vec::new();
            self.group.step(self.now, input, &mut out);
            for effect in out {
                match effect {
                    GroupEffect::Start(slot, cause) => {
                        let boot = cause == StartCause::Boot;
                        if boot || matches!(self.children[slot], Child::Held | Child::Fallen) {
                            self.told.push(format!("start {slot}"));
                            todo.push_back(GroupInput::Reported(slot, Activity::Coming));
                            todo.push_back(GroupInput::Reported(slot, Activity::Active));
                        } else {
                            // A child that stays as it is reports that.
                            let up = self.children[slot] == Child::Up;
                            let is = if up { Activity::Active } else { Activity::Resting };
                            todo.push_back(GroupInput::Reported(slot, is));
                        }
                    }
                    GroupEffect::Stop(slot, cause) => {
                        self.told.push(format!("stop {slot}"));
                        let held = cause == StopCause::Group && self.returns[slot];
                        self.children[slot] = if held { Child::Held } else { Child::Down };
                        todo.push_back(GroupInput::Reported(slot, Activity::Resting));
                    }
                    GroupEffect::Permit(slot) => {
                        self.told.push(format!("permit {slot}"));
                        todo.push_back(GroupInput::Reported(slot, Activity::Active));
                    }
                    GroupEffect::Crashed => self.told.push("fell".into()),
                    GroupEffect::ExitTree => self.told.push("exit".into()),
                    GroupEffect::Ended => self.told.push("ended".into()),
                    GroupEffect::EndTree => self.told.push("end".into()),
                    GroupEffect::Emit(GroupReport::ShutDown { ended }) => {
                        self.told.push(format!("over with {ended}"));
                    }
                    GroupEffect::Emit(GroupReport::GaveUp { restarts, .. }) => {
                        self.told.push(format!("gave up {restarts}"));
                    }
                    GroupEffect::Emit(GroupReport::Restarting { .. }) | GroupEffect::Report(_) => {}
                }
            }
        }
    }

    fn fall(&mut self, slot: Slot) -> String {
        self.told.clear();
        self.give(GroupInput::Crashed(slot, Duration::ZERO));
        self.told.join(", ")
    }
}

/// For each strategy and crashed child: which children stop and start, and in which order.
#[test]
fn strategies() {
    use Strategy::{OneForAll, OneForOne, RestForOne};
    for (strategy, fallen, want) in [
        (OneForOne, 1, "permit 1"),
        (OneForAll, 1, "stop 3, stop 2, stop 0, start 0, start 1, start 2, start 3"),
        (OneForAll, 3, "stop 2, stop 1, stop 0, start 0, start 1, start 2, start 3"),
        (RestForOne, 0, "stop 3, stop 2, stop 1, start 0, start 1, start 2, start 3"),
        (RestForOne, 2, "stop 3, start 2, start 3"),
        (RestForOne, 3, "start 3"),
    ] {
        let mut bench = Bench::new(strategy, None, GiveUp::Mark, &[true; 4]);
        assert_eq!(bench.fall(fallen), want, "{strategy} {fallen}");
    }
}

#[test]
fn never_members_stay_down_and_resting_ones_are_left_alone() {
    let mut bench = Bench::new(Strategy::OneForAll, None, GiveUp::Mark, &[true, false, true, true]);
    bench.give(GroupInput::Reported(3, Activity::Resting));
    assert_eq!(bench.fall(0), "stop 2, stop 1, start 0, start 2");
    assert_eq!(bench.fall(2), "stop 0, start 0, start 2");
}

#[test]
fn the_fallen_ones_delay_holds_the_start_back() {
    let mut bench = Bench::new(Strategy::OneForAll, None, GiveUp::Mark, &[true; 2]);
    bench.give(GroupInput::Crashed(0, Duration::from_secs(3)));
    assert_eq!(bench.told, ["stop 1"]);
    assert_eq!(bench.group.next_deadline(), Some(Duration::from_secs(3)));
    bench.now = Duration::from_secs(3);
    bench.give(GroupInput::Tick);
    assert_eq!(bench.told, ["stop 1", "start 0", "start 1"]);
}

/// A stop by hand, or the removal, of a crashed child ends its delay.
#[test]
fn a_delay_goes_with_the_one_it_is_for() {
    for input in [GroupInput::Reported(0, Activity::Resting), GroupInput::Removed(0)] {
        let mut bench = Bench::new(Strategy::OneForAll, None, GiveUp::Mark, &[true; 3]);
        bench.give(GroupInput::Crashed(0, Duration::from_secs(3)));
        assert_eq!(bench.told, ["stop 2", "stop 1"]);
        bench.give(input);
        let others: Vec<&str> =
            bench.told[2..].iter().map(String::as_str).filter(|t| *t != "start 0").collect();
        assert_eq!(others, ["start 1", "start 2"], "{input:?}");
    }
    // A child that its group stops keeps the delay.
    let mut bench = Bench::new(Strategy::OneForAll, None, GiveUp::Mark, &[true; 2]);
    bench.give(GroupInput::Crashed(0, Duration::from_secs(3)));
    assert_eq!(bench.group.next_deadline(), Some(Duration::from_secs(3)));
}

/// Nothing starts while one of the affected children is still going down.
#[test]
fn the_next_is_stopped_only_when_the_one_before_is_down() {
    let spec = GroupSpec { strategy: Strategy::OneForAll, ..GroupSpec::default() };
    let mut group = Group::new(&spec, false);
    for _ in 0..3 {
        group.add(NewChild { returns: true, autostart: true, significant: false });
    }
    let mut give = |input| {
        let mut out = Vec::new();
        group.step(Duration::ZERO, input, &mut out);
        out.retain(|e| !matches!(e, GroupEffect::Emit(_) | GroupEffect::Report(_)));
        out
    };
    give(GroupInput::Start(StartCause::Boot));
    for slot in 0..3 {
        give(GroupInput::Reported(slot, Activity::Active));
    }
    let stop = |slot| [GroupEffect::Stop(slot, StopCause::Group)];
    assert_eq!(give(GroupInput::Crashed(1, Duration::ZERO)), stop(2));
    // A child that is still to be stopped crashes by itself: no new restart begins.
    assert_eq!(give(GroupInput::Crashed(0, Duration::ZERO)), []);
    assert_eq!(give(GroupInput::Reported(2, Activity::Resting)), stop(0));
    let start = |slot| [GroupEffect::Start(slot, StartCause::Group)];
    assert_eq!(give(GroupInput::Reported(0, Activity::Resting)), start(0));
    assert_eq!(give(GroupInput::Reported(0, Activity::Coming)), [], "its process is not there yet");
    assert_eq!(give(GroupInput::Reported(0, Activity::Active)), start(1));
    assert_eq!(
        give(GroupInput::Reported(1, Activity::Resting)),
        start(2),
        "one that stays down is not waited for"
    );
    assert_eq!(give(GroupInput::Reported(2, Activity::Coming)), []);
    assert_eq!(give(GroupInput::Reported(2, Activity::Active)), []);
}

/// A crash before all affected children have been started begins the restart anew, for all of
/// them.
#[test]
fn a_fall_amid_the_starts_includes_who_was_not_started_yet() {
    let spec = GroupSpec { strategy: Strategy::RestForOne, ..GroupSpec::default() };
    let mut group = Group::new(&spec, false);
    for _ in 0..4 {
        group.add(NewChild { returns: true, autostart: true, significant: false });
    }
    let mut give = |input| {
        let mut out = Vec::new();
        group.step(Duration::ZERO, input, &mut out);
        out.retain(|e| !matches!(e, GroupEffect::Report(_)));
        out
    };
    give(GroupInput::Start(StartCause::Boot));
    for slot in 0..4 {
        give(GroupInput::Reported(slot, Activity::Active));
    }
    give(GroupInput::Crashed(0, Duration::ZERO));
    for slot in [3, 2, 1] {
        give(GroupInput::Reported(slot, Activity::Resting));
    }
    give(GroupInput::Reported(0, Activity::Active));
    // Child 1 was told to start and crashes; 2 and 3 are still to be started.
    let out = give(GroupInput::Crashed(1, Duration::ZERO));
    assert_eq!(
        out,
        [
            GroupEffect::Emit(GroupReport::Restarting {
                fallen: 1,
                stopping: vec![0],
                starting: vec![0, 1, 2, 3]
            }),
            GroupEffect::Stop(0, StopCause::Group)
        ],
        "all that were affected before are"
    );
}

#[test]
fn a_group_restart_counts_once_and_more_than_n_gives_up() {
    let mut bench = Bench::new(Strategy::OneForAll, Some(2), GiveUp::Mark, &[true; 3]);
    assert!(bench.fall(0).ends_with("start 2"));
    assert!(bench.fall(1).ends_with("start 2"));
    assert_eq!(bench.fall(2), "gave up 3, stop 2, stop 1, stop 0");
    assert!(bench.group.is_failed());
    bench.give(GroupInput::Reported(1, Activity::Active));
    assert!(!bench.group.is_failed(), "a start by hand clears the mark");
    assert!(bench.fall(1).ends_with("start 1"), "and the count");
}

#[test]
fn falls_outside_the_period_are_forgotten() {
    let mut bench = Bench::new(Strategy::OneForOne, Some(1), GiveUp::Mark, &[true]);
    for _ in 0..20 {
        bench.now += Duration::from_secs(11);
        assert_eq!(bench.fall(0), "permit 0");
    }
    assert_eq!(bench.fall(0), "gave up 2, stop 0");
}

#[test]
fn giving_up_escalates_or_exits() {
    let mut up = Bench::new(Strategy::OneForOne, Some(0), GiveUp::Escalate, &[true; 2]);
    assert_eq!(up.fall(0), "gave up 1, stop 1, stop 0, fell");
    up.told.clear();
    up.give(GroupInput::Start(StartCause::Group));
    assert_eq!(up.told, ["start 0", "start 1"], "the parent restarts it whole");
    let mut exit = Bench::new(Strategy::OneForOne, Some(0), GiveUp::Exit, &[true; 2]);
    assert_eq!(exit.fall(0), "gave up 1, exit");
    let spec = GroupSpec { intensity: Some(0), on_give_up: GiveUp::Escalate, ..GroupSpec::default() };
    let mut root = Group::new(&spec, true);
    root.add(NewChild { returns: true, autostart: true, significant: false });
    let mut out = Vec::new();
    root.step(Duration::ZERO, GroupInput::Crashed(0, Duration::ZERO), &mut out);
    assert!(out.contains(&GroupEffect::ExitTree), "the root has no parent");
}

#[test]
fn a_group_that_is_stopped_reports_when_all_are_down() {
    let mut bench = Bench::new(Strategy::OneForOne, None, GiveUp::Mark, &[true; 3]);
    bench.give(GroupInput::Stop(StopCause::Group));
    assert_eq!(bench.told, ["stop 2", "stop 1", "stop 0"]);
    bench.told.clear();
    bench.give(GroupInput::Start(StartCause::Group));
    assert_eq!(bench.told, ["start 0", "start 1", "start 2"]);
}
