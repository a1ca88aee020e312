//! The one timer of an actor: a message to itself at its machine's next deadline.

use std::time::Duration;

use ractor::{ActorRef, Message};
use tokio::task::AbortHandle;

use crate::sys::clock::Clock;

/// Fires once. Setting it again or dropping it cancels the earlier setting.
#[derive(Default)]
pub(super) struct Timer {
    set: Option<(Duration, AbortHandle)>,
}

impl Timer {
    /// Has the timer fire at this time, or with `None` not at all.
    pub(super) fn set<M: Message>(
        &mut self,
        at: Option<Duration>,
        clock: Clock,
        actor: &ActorRef<M>,
        ring: impl FnOnce() -> M + Send + 'static,
    ) {
        if self.set.as_ref().map(|(at, _)| *at) == at {
            return;
        }
        self.silence();
        if let Some(at) = at {
            let (actor, instant) = (actor.clone(), clock.instant(at));
            let task = tokio::spawn(async move {
                tokio::time::sleep_until(instant).await;
                super::tell(&actor, ring());
            });
            self.set = Some((at, task.abort_handle()));
        }
    }

    /// Notes that the timer has fired: the next deadline is set anew, even for the same time.
    pub(super) fn rang(&mut self) {
        self.set = None;
    }

    fn silence(&mut self) {
        if let Some((_, task)) = self.set.take() {
            task.abort();
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.silence();
    }
}
