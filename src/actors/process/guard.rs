//! What outlives a process actor that breaks: where the host's events go, and which process may be there.

use std::sync::{Mutex, MutexGuard, PoisonError};

use ractor::ActorRef;

use crate::actors::messages::ProcessMsg;
use crate::decide::lifecycle::InheritedProcess;
use crate::host::{HostEvent, ProcessKey};
use crate::model::{Goal, Incarnation};

/// What survives a crash of the actor: the actor that receives the host's events, and the process
/// that may exist.
#[derive(Default)]
pub(crate) struct ProcessGuard(Mutex<Ends>);

#[derive(Default)]
pub(super) struct Ends {
    pub(super) actor: Option<ActorRef<ProcessMsg>>,
    pub(super) process: Option<Held>,
}

/// A process that was ordered from the host and has not been reported gone.
#[derive(Clone, Copy)]
pub(super) struct Held {
    pub(super) key: ProcessKey,
    pub(super) incarnation: Incarnation,
    pub(super) inherited: InheritedProcess,
}

impl ProcessGuard {
    pub(super) fn ends(&self) -> MutexGuard<'_, Ends> {
        // No code panics while the lock is held, and each write is complete.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the host's events to this actor from now on. Returns the process that an earlier actor has
    /// left.
    pub(super) fn take_over(&self, actor: &ActorRef<ProcessMsg>) -> Option<Held> {
        let mut ends = self.ends();
        ends.actor = Some(actor.clone());
        ends.process
    }

    /// Notes a process that is running already.
    pub(super) fn holds(&self, key: ProcessKey, incarnation: Incarnation) {
        self.ends().process =
            Some(Held { key, incarnation, inherited: InheritedProcess::Alive { exit: None } });
    }

    pub(super) fn asked_for(&self, key: ProcessKey, incarnation: Incarnation) {
        self.ends().process = Some(Held { key, incarnation, inherited: InheritedProcess::Making });
    }

    /// Notes what is left of the process, and passes the event on. `false`: no actor receives it.
    pub(super) fn pass_on(&self, news: HostEvent) -> bool {
        let mut ends = self.ends();
        match &news {
            HostEvent::Spawned { .. } => ends.leaves(Some(InheritedProcess::Alive { exit: None })),
            HostEvent::Exited { exit, remains: true, .. } => {
                ends.leaves(Some(InheritedProcess::Alive { exit: Some(*exit) }));
            }
            HostEvent::SpawnFailed { .. }
            | HostEvent::Exited { remains: false, .. }
            | HostEvent::TreeGone { .. } => {
                ends.leaves(None);
            }
            HostEvent::Renewed { .. }
            | HostEvent::LogMatched { .. }
            | HostEvent::Paused { .. }
            | HostEvent::Unkept { .. }
            | HostEvent::KeptElsewhere { .. }
            | HostEvent::ForksAway { .. }
            | HostEvent::LostSight { .. } => {}
        }
        // Sent under the lock: an actor that takes over finds the event either noted or in its own
        // mailbox.
        ends.actor.as_ref().is_some_and(|actor| actor.cast(ProcessMsg::News(news)).is_ok())
    }
}

impl Ends {
    pub(super) fn leaves(&mut self, inherited: Option<InheritedProcess>) {
        self.process = match (self.process, inherited) {
            (Some(held), Some(inherited)) => Some(Held { inherited, ..held }),
            (_, None) | (None, Some(_)) => None,
        };
    }
}

/// The crash of the actor that this one replaces.
pub(crate) struct BrokenActor {
    pub(crate) goal: Goal,
    pub(crate) last: Incarnation,
    pub(crate) message: String,
}
