//! One group's state machine: OTP's `supervisor`. It decides what the crash of one child means
//! for its siblings, and when the group gives up.
//!
//! Children are stopped one at a time in reverse order, each within its own stop time. Once all
//! of them are down they are started in order, each when the process of the one before has been
//! made. Deliberately absent: backoff and policy (the child decides those before it reports its
//! crash) and dependencies (a start that a group orders still waits for the start gate).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::lifecycle::Activity;
use super::window::Window;
use crate::model::cause::StartCause;
use crate::model::event::GroupFact;
use crate::model::plan::{AutoShutdown, GiveUp};
use crate::model::{Fact, GroupSpec, Name, Policy, ServiceSpec, StopCause, Strategy};

/// The place of a child in its group, in declared order. The slot of a removed child is never
/// used again.
pub type Slot = usize;

/// An input of a [`Group`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupInput {
    /// A child crashed and would restart after this delay.
    #[serde(rename = "fell")]
    Crashed(Slot, Duration),
    /// A child ended by itself and is not restarted.
    Ended(Slot),
    /// A child reported its activity.
    Reported(Slot, Activity),
    /// Start the children that are to start: at boot those with autostart, later those that a
    /// group stopped (each child knows that itself).
    Start(StartCause),
    /// Stop every child in reverse order, and report when all are down.
    Stop(StopCause),
    /// A child that is down was removed.
    Removed(Slot),
    /// A deadline may have passed.
    Tick,
}

/// An effect that the actor carries out for its [`Group`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupEffect {
    /// Let a crashed child restart by itself after its delay.
    Permit(Slot),
    /// Stop a child.
    Stop(Slot, StopCause),
    /// Start a child.
    Start(Slot, StartCause),
    /// Tell the parent that this group crashed and would restart at once.
    Crashed,
    /// Tell the parent that this group has ended by itself.
    Ended,
    /// Report the activity of this group to the parent.
    Report(Activity),
    /// Take the project down, or the whole tree: the group gave up.
    ExitTree,
    /// Take the whole tree down: its root group has ended by itself.
    EndTree,
    /// Record a fact in the event log.
    Emit(GroupReport),
}

/// The facts of a group, with slots in place of the children's names ([`GroupReport::named`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupReport {
    /// Several children are restarted.
    Restarting {
        /// The crashed child that caused the restart.
        fallen: Slot,
        /// The children that are stopped, in order.
        stopping: Vec<Slot>,
        /// The children that are started afterwards, in order.
        starting: Vec<Slot>,
    },
    /// The group goes down because significant children have ended (`auto_shutdown`).
    ShutDown {
        /// The child whose end caused the shutdown.
        ended: Slot,
    },
    /// The group gave up.
    GaveUp {
        /// The number of restarts counted within the period.
        restarts: u32,
        /// What the group does next, as its `on_give_up` says.
        then: GiveUp,
    },
}

impl GroupReport {
    /// The fact as the event log keeps it.
    pub fn named(self, group: Option<&Name>, spec: &GroupSpec, name: impl Fn(Slot) -> String) -> Fact {
        let names = |slots: Vec<Slot>| slots.into_iter().map(&name).collect();
        match self {
            GroupReport::Restarting { fallen, stopping, starting } => Fact::Group(GroupFact::Restarting {
                group: group.cloned(),
                strategy: spec.strategy,
                fallen: name(fallen),
                stopping: names(stopping),
                starting: names(starting),
            }),
            GroupReport::ShutDown { ended } => {
                Fact::Group(GroupFact::ShutDown { group: group.cloned(), ended: name(ended) })
            }
            GroupReport::GaveUp { restarts, then } => {
                Fact::Group(GroupFact::GaveUp { group: group.cloned(), restarts, period: spec.period, then })
            }
        }
    }
}

/// What a group needs to know of a new child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewChild {
    /// Whether its policy restarts it at all, or it has `rerun`; always `true` for a group.
    pub returns: bool,
    /// Whether it starts with the tree.
    pub autostart: bool,
    /// Whether its end by itself counts for the `auto_shutdown` of the group.
    pub significant: bool,
}

impl NewChild {
    /// The entry for an instance of this service.
    pub fn instance(spec: &ServiceSpec) -> NewChild {
        NewChild {
            returns: spec.restart.policy != Policy::Never || spec.rerun,
            autostart: spec.autostart,
            significant: spec.significant,
        }
    }

    /// The entry for a nested group.
    pub fn group(spec: &GroupSpec) -> NewChild {
        NewChild { returns: true, autostart: true, significant: spec.significant }
    }
}

/// What a group knows of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Member {
    activity: Activity,
    /// As [`NewChild::returns`].
    returns: bool,
    /// Whether it starts with the tree.
    autostart: bool,
    /// Whether its end by itself counts for the `auto_shutdown` of the group.
    significant: bool,
    /// Whether it has ended by itself since it last started.
    ended: bool,
}

/// The mode of a group: what it is doing with its children at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mode {
    /// The group stops and starts nobody.
    Steady,
    /// The affected children are being stopped. They start once all are down and the delays of the
    /// crashed children have passed.
    Restarting { queue: VecDeque<Slot>, affected: Range<Slot>, delays: BTreeMap<Slot, Duration> },
    /// The affected children are being started, each when it is settled whether the process of the
    /// one before is made. `coming`: the child for which that is still open.
    Starting { queue: VecDeque<Slot>, affected: Range<Slot>, coming: Option<Slot> },
    /// All children are being stopped for `cause`; `then` says what follows.
    Stopping { queue: VecDeque<Slot>, cause: StopCause, then: Then },
    /// The group gave up and waits for a start by hand.
    Failed,
    /// The group gave up, and its parent decides what follows.
    Escalated,
}

/// What follows when all children are down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Report to the parent, which ordered the stop.
    Report,
    /// End the group: its significant children have ended.
    End,
    /// Mark the group as failed: it gave up.
    Mark,
    /// Report a crash to the parent: the group gave up by `escalate`.
    Escalate,
}

/// The state machine of one group.
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
    /// A group at rest without children. `root`: it has no parent, so it exits rather than escalate.
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

    /// Adds a child after the others and returns its slot.
    pub fn add(&mut self, child: NewChild) -> Slot {
        let NewChild { returns, autostart, significant } = child;
        let activity = Activity::Resting;
        let slot = self.next;
        self.next += 1;
        self.members.insert(slot, Member { activity, returns, autostart, significant, ended: false });
        slot
    }

    /// Takes its settings from this spec from now on; the children stay.
    pub fn reconfigure(&mut self, spec: &GroupSpec) {
        let now = Group::new(spec, self.root);
        self.strategy = now.strategy;
        (self.intensity, self.period) = (now.intensity, now.period);
        (self.on_give_up, self.auto_shutdown) = (now.on_give_up, now.auto_shutdown);
    }

    /// Replaces what the group knows of a child's spec.
    pub fn reconfigure_child(&mut self, slot: Slot, child: NewChild) {
        if let Some(member) = self.members.get_mut(&slot) {
            let NewChild { returns, autostart, significant } = child;
            *member = Member { returns, autostart, significant, ..*member };
        }
    }

    /// When the group wants a [`GroupInput::Tick`]; `None`: it waits for no deadline.
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

    /// Whether the group gave up by `mark` or `exit` and was not started since.
    pub fn is_failed(&self) -> bool {
        self.mode == Mode::Failed
    }

    /// Takes one input and appends its effects to `out`.
    pub fn step(&mut self, now: Duration, input: GroupInput, out: &mut Vec<GroupEffect>) {
        // A parent group starts its members one at a time and waits for a report from each.
        let answers = matches!(input, GroupInput::Start(StartCause::Group));
        match input {
            // The child was removed since.
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
                // The child's last report may not have come yet, and the mode may wait for it.
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
            // The restart under way covers this child already; no new one is begun.
            Mode::Restarting { affected, .. } if affected.contains(&slot) => return,
            // The restart under way does not cover this child: its crash counts and is answered below.
            Mode::Restarting { .. } => {}
            Mode::Stopping { queue, cause, .. } => {
                if !queue.contains(&slot) {
                    // The child came up after the stop had begun; it goes down with the rest.
                    queue.push_back(slot);
                    if queue.len() == 1 {
                        out.push(GroupEffect::Stop(slot, *cause));
                    }
                }
                return;
            }
            // Somebody started the child by hand, which clears the mark (see `reported`).
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
        // An earlier restart is unfinished: the new one covers its children, too.
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
        out.push(GroupEffect::Emit(GroupReport::Restarting {
            fallen: slot,
            stopping: stopping.clone(),
            starting,
        }));
        let queue: VecDeque<Slot> = stopping.into();
        self.stop_next(&queue, StopCause::Group, out);
        self.mode = Mode::Restarting { queue, affected, delays };
    }

    /// Handles the end of a child by itself: OTP's `auto_shutdown`.
    fn ended(&mut self, slot: Slot, out: &mut Vec<GroupEffect>) {
        let Some(member) = self.members.get_mut(&slot) else {
            return;
        };
        member.ended = true;
        let counts = member.significant;
        // As in OTP, a significant child that rests is not waited for.
        let mut significant = self.members.values().filter(|m| m.significant);
        let over = match self.auto_shutdown {
            AutoShutdown::Never => false,
            AutoShutdown::Any => counts,
            AutoShutdown::All => counts && significant.all(|m| m.ended || m.activity == Activity::Resting),
        };
        match self.mode {
            Mode::Steady | Mode::Restarting { .. } | Mode::Starting { .. } if over => {
                out.push(GroupEffect::Emit(GroupReport::ShutDown { ended: slot }));
                self.stop_all(StopCause::AutoShutdown, Then::End, out);
            }
            // The group stays up, or it goes down or is down already.
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
        out.push(GroupEffect::Emit(GroupReport::GaveUp { restarts, then: self.on_give_up }));
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
            // A child that an earlier restart holds back rests already. It is marked with the
            // others, and there is nothing to wait for.
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

    /// Notes that it is settled whether a member's process is made, so that the next one can start.
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
                // The group did not stop this child: somebody stopped or removed it, so its delay ends.
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
            // The members fail with the group, and stay failed until somebody starts them.
            Mode::Failed | Mode::Stopping { then: Then::Mark, .. } => return,
            // The parent is told when all members are down, and decides then.
            Mode::Stopping { then: Then::Escalate | Then::End, .. } => return,
            Mode::Steady
            | Mode::Restarting { .. }
            | Mode::Starting { .. }
            | Mode::Stopping { .. }
            | Mode::Escalated => {}
        }
        // A restart that was under way when an earlier supervisor ended goes on during the boot of
        // new children.
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

    /// Goes on to the next start or the next mode when there is nothing left to wait for.
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
                    // The parent waits for this report, even if a member was started meanwhile.
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

    /// Starts the next member in the queue, or ends the start when none is left. A member that no
    /// group stopped stays down, and reports that.
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

/// Whether a member has nothing to stop, because it is down or was removed.
fn rests(members: &BTreeMap<Slot, Member>, slot: Slot) -> bool {
    members.get(&slot).is_none_or(|member| member.activity == Activity::Resting)
}

/// Removes from the queue the child `down` and those that went down by themselves meanwhile.
/// Returns the children to stop next: with `marks` those that went down by themselves, since
/// they are to be marked as well; and the new front of the queue, if the old one is down.
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
