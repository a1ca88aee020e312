//! A supervisor node: what the fall of one child means for its siblings, and when the
//! group gives up. OTP's `supervisor`, as a machine.
//!
//! Children are stopped one after the other in reverse order, each within its own stop
//! time, and started in order once all of them are down, each when the process of the one before has been
//! made. Deliberately absent: backoff
//! and policy (the child decided those before it said that it fell) and dependencies
//! (a start that a group orders still waits for the graph).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::lifecycle::Activity;
use super::window::Window;
use crate::model::cause::StartCause;
use crate::model::plan::{AutoShutdown, GiveUp};
use crate::model::{Fact, GroupSpec, Name, Policy, ServiceSpec, StopCause, Strategy};

/// The place of a child in its group, in declared order. That of a child that was removed is
/// never given again.
pub type Slot = usize;

/// What a group is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupInput {
    /// A child fell and would return after this delay.
    #[serde(rename = "fell")]
    Crashed(Slot, Duration),
    /// A child ended by itself and is not to come back.
    Ended(Slot),
    /// A child changed what it is up to.
    Reported(Slot, Activity),
    /// Start every child that is to start: at boot those with autostart, later those that a
    /// group stopped (which they know themselves).
    Start(StartCause),
    /// Stop every child, in reverse order, and report when all are down.
    Stop(StopCause),
    /// A child, which is down, was taken out.
    Removed(Slot),
    /// A deadline may have passed.
    Tick,
}

/// What the actor is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupEffect {
    /// Let a fallen child return by itself after its delay.
    Permit(Slot),
    /// Stop a child.
    Stop(Slot, StopCause),
    /// Start a child.
    Start(Slot, StartCause),
    /// Tell the parent that this group fell and would return at once.
    Crashed,
    /// Tell the parent that this group has ended by itself.
    Ended,
    /// Tell the parent what this group is up to.
    Report(Activity),
    /// Take the whole tree down: the group gave up.
    ExitTree,
    /// Take the whole tree down: its root has ended by itself.
    EndTree,
    /// Write a fact down.
    Emit(GroupFact),
}

/// The facts of a group; the actor adds the children's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupFact {
    /// Several children are restarted.
    Restarting {
        /// Whose fall it answers.
        fallen: Slot,
        /// Who is stopped, in order.
        stopping: Vec<Slot>,
        /// Who is started afterwards, in order.
        starting: Vec<Slot>,
    },
    /// The group goes down, since significant children have ended.
    ShutDown {
        /// Whose end it answers.
        ended: Slot,
    },
    /// The group gave up.
    GaveUp {
        /// Restarts counted within the period.
        restarts: u32,
        /// What follows.
        then: GiveUp,
    },
}

impl GroupFact {
    /// The fact as the event log keeps it.
    pub fn named(self, group: Option<&Name>, spec: &GroupSpec, name: impl Fn(Slot) -> String) -> Fact {
        let names = |slots: Vec<Slot>| slots.into_iter().map(&name).collect();
        match self {
            GroupFact::Restarting { fallen, stopping, starting } => Fact::GroupRestarting {
                group: group.cloned(),
                strategy: spec.strategy,
                fallen: name(fallen),
                stopping: names(stopping),
                starting: names(starting),
            },
            GroupFact::ShutDown { ended } => {
                Fact::GroupShutDown { group: group.cloned(), ended: name(ended) }
            }
            GroupFact::GaveUp { restarts, then } => {
                Fact::GroupGaveUp { group: group.cloned(), restarts, period: spec.period, then }
            }
        }
    }
}

/// What a group is to know of a new child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewChild {
    /// Its policy is not `never`.
    pub returns: bool,
    /// It starts with the tree.
    pub autostart: bool,
    /// Its end by itself counts for the group's.
    pub significant: bool,
}

impl NewChild {
    /// An instance of this service.
    pub fn instance(spec: &ServiceSpec) -> NewChild {
        NewChild {
            returns: spec.restart.policy != Policy::Never || spec.rerun,
            autostart: spec.autostart,
            significant: spec.significant,
        }
    }

    /// A nested group.
    pub fn group(spec: &GroupSpec) -> NewChild {
        NewChild { returns: true, autostart: true, significant: spec.significant }
    }
}

/// What a group knows of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Member {
    activity: Activity,
    /// Its policy is not `never`; groups always return.
    returns: bool,
    /// It starts with the tree.
    autostart: bool,
    /// Its end counts for the group's.
    significant: bool,
    /// It has ended by itself since it last started.
    ended: bool,
}

/// Where a group stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mode {
    /// Children live their lives.
    Steady,
    /// The affected are being stopped; then they start, not before the delays of those whose falls
    /// this answers.
    Restarting { queue: VecDeque<Slot>, affected: Range<Slot>, delays: BTreeMap<Slot, Duration> },
    /// The affected are being started, one when the process of the one before has been made, or is not
    /// going to be. `coming`: the one of which that is not known yet.
    Starting { queue: VecDeque<Slot>, affected: Range<Slot>, coming: Option<Slot> },
    /// Everything is being stopped.
    Stopping { queue: VecDeque<Slot>, cause: StopCause, then: Then },
    /// It gave up and waits for a start by hand.
    Failed,
    /// It gave up, and its parent decides.
    Escalated,
}

/// What follows when everything is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The parent wanted it.
    Report,
    /// Its significant children have ended.
    End,
    /// It gave up and is marked.
    Mark,
    /// It gave up and its parent counts a death.
    Escalate,
}

/// One group's machine.
#[derive(Debug, Clone)]
pub struct Group {
    strategy: Strategy,
    intensity: Option<u32>,
    period: Duration,
    on_give_up: GiveUp,
    auto_shutdown: AutoShutdown,
    root: bool,
    members: BTreeMap<Slot, Member>,
    /// The slot of the next child.
    next: Slot,
    window: Window,
    mode: Mode,
    reported: Activity,
}

impl Group {
    /// A group at rest. `root`: it has no parent, so escalation ends the tree.
    pub fn new(spec: &GroupSpec, root: bool) -> Group {
        let on_give_up = match spec.on_give_up {
            GiveUp::Escalate if root => GiveUp::Exit,
            other => other,
        };
        Group {
            strategy: spec.strategy,
            intensity: spec.intensity,
            period: spec.period,
            on_give_up,
            auto_shutdown: spec.auto_shutdown,
            root,
            members: BTreeMap::new(),
            next: 0,
            window: Window::default(),
            mode: Mode::Steady,
            reported: Activity::Resting,
        }
    }

    /// Adds a child behind the others.
    pub fn add(&mut self, child: NewChild) -> Slot {
        let NewChild { returns, autostart, significant } = child;
        let activity = Activity::Resting;
        let slot = self.next;
        self.next += 1;
        self.members.insert(slot, Member { activity, returns, autostart, significant, ended: false });
        slot
    }

    /// Goes by this from now on; its children stay.
    pub fn reconfigure(&mut self, spec: &GroupSpec) {
        let now = Group::new(spec, self.root);
        self.strategy = now.strategy;
        (self.intensity, self.period) = (now.intensity, now.period);
        (self.on_give_up, self.auto_shutdown) = (now.on_give_up, now.auto_shutdown);
    }

    /// What it knows of a child is this from now on.
    pub fn reconfigure_child(&mut self, slot: Slot, child: NewChild) {
        if let Some(member) = self.members.get_mut(&slot) {
            let NewChild { returns, autostart, significant } = child;
            *member = Member { returns, autostart, significant, ..*member };
        }
    }

    /// When it wants a [`GroupInput::Tick`], if it does.
    pub fn next_deadline(&self) -> Option<Duration> {
        match &self.mode {
            Mode::Restarting { queue, delays, .. } if queue.is_empty() => {
                Some(delays.values().copied().max().unwrap_or_default())
            }
            Mode::Restarting { .. }
            | Mode::Starting { .. }
            | Mode::Steady
            | Mode::Stopping { .. }
            | Mode::Failed
            | Mode::Escalated => None,
        }
    }

    /// Whether it gave up and was not started since.
    pub fn is_failed(&self) -> bool {
        self.mode == Mode::Failed
    }

    /// Takes one input and appends what is to be done to `out`.
    pub fn step(&mut self, now: Duration, input: GroupInput, out: &mut Vec<GroupEffect>) {
        // Its parent starts its members one after the other, and waits for a word of each.
        let answers = matches!(input, GroupInput::Start(StartCause::Group));
        match input {
            // From one that was removed since.
            GroupInput::Crashed(slot, _) | GroupInput::Ended(slot) | GroupInput::Reported(slot, _)
                if !self.members.contains_key(&slot) => {}
            GroupInput::Crashed(slot, delay) => {
                self.set_activity(slot, Activity::Fallen);
                self.came(slot);
                self.fell(slot, delay, now, out);
            }
            GroupInput::Ended(slot) => self.ended(slot, out),
            GroupInput::Reported(slot, activity) => self.reported(slot, activity, out),
            GroupInput::Removed(slot) => {
                // Its last word may not have come yet, and somebody may wait for it.
                self.reported(slot, Activity::Resting, out);
                self.members.remove(&slot);
                if let Mode::Starting { queue, .. } = &mut self.mode {
                    queue.retain(|other| *other != slot);
                }
            }
            GroupInput::Start(cause) => self.start(cause, out),
            GroupInput::Stop(cause) => {
                let then = Then::Report;
                self.stop_all(cause, then, out);
            }
            GroupInput::Tick => {}
        }
        self.proceed(now, out);
        let activity = self.activity();
        if (answers || activity != self.reported)
            && !matches!(self.mode, Mode::Stopping { then: Then::Escalate, .. })
        {
            self.reported = activity;
            out.push(GroupEffect::Report(activity));
        }
    }

    fn set_activity(&mut self, slot: Slot, activity: Activity) {
        if let Some(member) = self.members.get_mut(&slot) {
            member.activity = activity;
        }
    }

    fn rests(&self, slot: Slot) -> bool {
        rests(&self.members, slot)
    }

    fn activity(&self) -> Activity {
        match &self.mode {
            Mode::Restarting { .. } | Mode::Stopping { .. } => Activity::Active,
            Mode::Starting { .. } => Activity::Coming,
            Mode::Escalated => Activity::Fallen,
            Mode::Steady | Mode::Failed => {
                if self.members.values().any(|m| m.activity != Activity::Resting) {
                    Activity::Active
                } else {
                    Activity::Resting
                }
            }
        }
    }

    fn fell(&mut self, slot: Slot, delay: Duration, now: Duration, out: &mut Vec<GroupEffect>) {
        match &mut self.mode {
            Mode::Steady | Mode::Starting { .. } => {}
            // Its turn to be stopped comes, and it will be found down.
            Mode::Restarting { affected, .. } if affected.contains(&slot) => return,
            // One that is not affected: its own fall counts and is answered below.
            Mode::Restarting { .. } => {}
            Mode::Stopping { queue, cause, .. } => {
                if !queue.contains(&slot) {
                    // It came up behind the group's back; it goes down with the rest.
                    queue.push_back(slot);
                    if queue.len() == 1 {
                        out.push(GroupEffect::Stop(slot, *cause));
                    }
                }
                return;
            }
            // Someone started it by hand; that clears the mark (see `reported`).
            Mode::Failed | Mode::Escalated => self.mode = Mode::Steady,
        }
        if let Some(intensity) = self.intensity
            && !self.window.allow(intensity, self.period, now)
        {
            self.give_up(out);
            return;
        }
        let mut affected = match self.strategy {
            Strategy::OneForOne => {
                out.push(GroupEffect::Permit(slot));
                return;
            }
            Strategy::OneForAll => 0..self.next,
            Strategy::RestForOne => slot..self.next,
        };
        let mut delays = BTreeMap::from([(slot, now + delay)]);
        // Not affected yet, it lies before those that are, or was added since; or not all of those have been
        // started yet.
        if let Mode::Restarting { affected: earlier, .. } | Mode::Starting { affected: earlier, .. } =
            &self.mode
        {
            affected = affected.start.min(earlier.start)..affected.end.max(earlier.end);
        }
        if let Mode::Restarting { delays: others, .. } = &self.mode {
            delays.extend(others);
        }
        let held = |s: &Slot| matches!(&self.mode, Mode::Starting { queue, .. } if queue.contains(s));
        let active = |s: &Slot| *s != slot && !self.rests(*s);
        let stopping: Vec<Slot> =
            self.members.range(affected.clone()).map(|(s, _)| *s).rev().filter(active).collect();
        let starts = |(s, member): &(&Slot, &Member)| {
            **s == slot || ((member.activity != Activity::Resting || held(s)) && member.returns)
        };
        let starting: Vec<Slot> =
            self.members.range(affected.clone()).filter(starts).map(|(s, _)| *s).collect();
        out.push(GroupEffect::Emit(GroupFact::Restarting {
            fallen: slot,
            stopping: stopping.clone(),
            starting,
        }));
        let queue: VecDeque<Slot> = stopping.into();
        self.stop_next(&queue, StopCause::Group, out);
        self.mode = Mode::Restarting { queue, affected, delays };
    }

    /// OTP's auto_shutdown.
    fn ended(&mut self, slot: Slot, out: &mut Vec<GroupEffect>) {
        let Some(member) = self.members.get_mut(&slot) else {
            return;
        };
        member.ended = true;
        let counts = member.significant;
        // The last of those that were active, as in OTP: who rests is not waited for.
        let mut significant = self.members.values().filter(|m| m.significant);
        let over = match self.auto_shutdown {
            AutoShutdown::Never => false,
            AutoShutdown::Any => counts,
            AutoShutdown::All => counts && significant.all(|m| m.ended || m.activity == Activity::Resting),
        };
        match self.mode {
            Mode::Steady | Mode::Restarting { .. } | Mode::Starting { .. } if over => {
                out.push(GroupEffect::Emit(GroupFact::ShutDown { ended: slot }));
                self.stop_all(StopCause::AutoShutdown, Then::End, out);
            }
            // It goes down already, or is down.
            Mode::Steady
            | Mode::Restarting { .. }
            | Mode::Starting { .. }
            | Mode::Stopping { .. }
            | Mode::Failed
            | Mode::Escalated => {}
        }
    }

    fn give_up(&mut self, out: &mut Vec<GroupEffect>) {
        let restarts = u32::try_from(self.window.count()).unwrap_or(u32::MAX);
        out.push(GroupEffect::Emit(GroupFact::GaveUp { restarts, then: self.on_give_up }));
        match self.on_give_up {
            GiveUp::Exit => {
                self.mode = Mode::Failed;
                out.push(GroupEffect::ExitTree);
            }
            GiveUp::Mark => self.stop_all(StopCause::GaveUp, Then::Mark, out),
            GiveUp::Escalate => self.stop_all(StopCause::Group, Then::Escalate, out),
        }
    }

    fn stop_all(&mut self, cause: StopCause, then: Then, out: &mut Vec<GroupEffect>) {
        let (resting, active): (Vec<Slot>, Vec<Slot>) =
            self.members.keys().rev().copied().partition(|slot| self.rests(*slot));
        if matches!(cause, StopCause::GaveUp | StopCause::AutoShutdown) {
            // One that an earlier restart holds rests already, and is marked with the others;
            // there is nothing to wait for.
            out.extend(resting.into_iter().map(|slot| GroupEffect::Stop(slot, cause)));
        }
        let queue: VecDeque<Slot> = active.into();
        self.stop_next(&queue, cause, out);
        self.mode = Mode::Stopping { queue, cause, then };
    }

    fn stop_next(&self, queue: &VecDeque<Slot>, cause: StopCause, out: &mut Vec<GroupEffect>) {
        if let Some(slot) = queue.front() {
            out.push(GroupEffect::Stop(*slot, cause));
        }
    }

    /// The process of a member was made, or is not going to be for now: the next one is started.
    fn came(&mut self, slot: Slot) {
        if let Mode::Starting { coming, .. } = &mut self.mode
            && *coming == Some(slot)
        {
            *coming = None;
        }
    }

    fn reported(&mut self, slot: Slot, activity: Activity, out: &mut Vec<GroupEffect>) {
        self.set_activity(slot, activity);
        if activity != Activity::Coming {
            self.came(slot);
        }
        if activity != Activity::Resting {
            if let Some(member) = self.members.get_mut(&slot) {
                member.ended = false;
            }
            if matches!(self.mode, Mode::Failed | Mode::Escalated) {
                self.mode = Mode::Steady;
                self.window.clear();
            }
            return;
        }
        match &mut self.mode {
            Mode::Restarting { queue, delays, .. } => {
                // Not by this group: somebody stopped it or took it out, and with it its delay.
                if !queue.contains(&slot) {
                    delays.remove(&slot);
                }
                let next = advance(queue, slot, &self.members, false);
                out.extend(next.into_iter().map(|slot| GroupEffect::Stop(slot, StopCause::Group)));
            }
            Mode::Stopping { queue, cause, .. } => {
                let next = advance(
                    queue,
                    slot,
                    &self.members,
                    matches!(cause, StopCause::GaveUp | StopCause::AutoShutdown),
                );
                out.extend(next.into_iter().map(|slot| GroupEffect::Stop(slot, *cause)));
            }
            Mode::Steady | Mode::Starting { .. } | Mode::Failed | Mode::Escalated => {}
        }
    }

    fn start(&mut self, cause: StartCause, out: &mut Vec<GroupEffect>) {
        let boot = match cause {
            StartCause::Boot => true,
            StartCause::Command | StartCause::Policy | StartCause::Group | StartCause::Dependency => false,
        };
        match self.mode {
            // Its members are, or will be, failed with it until somebody starts them.
            Mode::Failed | Mode::Stopping { then: Then::Mark, .. } => return,
            // Its parent hears of it when all are down, and then decides.
            Mode::Stopping { then: Then::Escalate | Then::End, .. } => return,
            Mode::Steady
            | Mode::Restarting { .. }
            | Mode::Starting { .. }
            | Mode::Stopping { .. }
            | Mode::Escalated => {}
        }
        // A restart that was under way when an earlier supervisor ended goes on beside the boot of what
        // is new.
        if !(boot && matches!(self.mode, Mode::Restarting { .. } | Mode::Starting { .. })) {
            self.window.clear();
            self.mode = Mode::Steady;
        }
        if cause == StartCause::Group {
            let queue = self.members.keys().copied().collect();
            self.mode = Mode::Starting { queue, affected: 0..self.next, coming: None };
            return;
        }
        for (slot, member) in &self.members {
            if !boot || member.autostart {
                out.push(GroupEffect::Start(*slot, cause));
            }
        }
    }

    /// Moves on where nothing is waited for any more.
    fn proceed(&mut self, now: Duration, out: &mut Vec<GroupEffect>) {
        match &mut self.mode {
            Mode::Restarting { queue, affected, delays }
                if queue.is_empty() && delays.values().all(|until| *until <= now) =>
            {
                let affected = affected.clone();
                let queue = self.members.range(affected.clone()).map(|(slot, _)| *slot).collect();
                self.mode = Mode::Starting { queue, affected, coming: None };
                self.start_next(out);
            }
            Mode::Starting { coming: None, .. } => self.start_next(out),
            Mode::Stopping { queue, then, .. } if queue.is_empty() => match then {
                Then::Report => {
                    // Also when a member was started meanwhile: the parent waits for this word.
                    self.mode = Mode::Steady;
                    self.reported = Activity::Resting;
                    out.push(GroupEffect::Report(Activity::Resting));
                }
                Then::Mark => self.mode = Mode::Failed,
                Then::End => {
                    self.mode = Mode::Steady;
                    out.push(if self.root { GroupEffect::EndTree } else { GroupEffect::Ended });
                }
                Then::Escalate => {
                    self.mode = Mode::Escalated;
                    self.reported = Activity::Fallen;
                    out.push(GroupEffect::Crashed);
                }
            },
            Mode::Restarting { .. }
            | Mode::Starting { .. }
            | Mode::Stopping { .. }
            | Mode::Steady
            | Mode::Failed
            | Mode::Escalated => {}
        }
    }

    /// Each member knows whether a group stopped it, and stays down where not; it says so.
    fn start_next(&mut self, out: &mut Vec<GroupEffect>) {
        let Mode::Starting { queue, coming, .. } = &mut self.mode else {
            return;
        };
        *coming = queue.pop_front();
        match *coming {
            Some(slot) => out.push(GroupEffect::Start(slot, StartCause::Group)),
            None => self.mode = Mode::Steady,
        }
    }
}

/// Whether there is nothing to stop: it is down, or was removed.
fn rests(members: &BTreeMap<Slot, Member>, slot: Slot) -> bool {
    members.get(&slot).is_none_or(|member| member.activity == Activity::Resting)
}

/// Takes a child that is down off the queue, and those that went down by themselves
/// meanwhile. Who is next to be told to stop: of those, all where `marks`, since they are to
/// be marked though they rest; and the new first one.
fn advance(
    queue: &mut VecDeque<Slot>,
    down: Slot,
    members: &BTreeMap<Slot, Member>,
    marks: bool,
) -> Vec<Slot> {
    let first = queue.front().copied();
    let mut next = Vec::new();
    queue.retain(|slot| {
        let rests = rests(members, *slot);
        if rests && marks && Some(*slot) != first {
            next.push(*slot);
        }
        *slot != down && !rests
    });
    if first == Some(down) {
        next.extend(queue.front());
    }
    next
}

#[cfg(test)]
mod tests;
