//! The shell: actors turn messages into inputs of the machines in `decide`, and the effects
//! into calls of the host.
//!
//! Wishes go down the tree of supervisors, facts come up through the event log, nobody
//! talks sideways. No handler waits: what takes time comes back as a message. Not here yet:
//! Scaler, WorkerPool and Cache, which have their place beside the ResourceMonitor.

pub mod event_log;
pub mod graph;
pub mod monitor;
pub mod process;
pub mod supervisor;

mod errand;
mod timer;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use crate::os::clock::Clock;
use crate::os::{Host, Sources};

use event_log::EventLog;

/// What every actor of a tree shares: nothing of it changes.
pub struct Context {
    /// What processes inherit of the environment.
    pub inherited: Arc<Vec<(OsString, OsString)>>,
    /// Where processes come from.
    pub host: Arc<dyn Host>,
    /// The tree's clock: every deadline and every event is told by it.
    pub clock: Clock,
    /// The one writer of events.
    pub log: EventLog,
    /// Under which name each instance's output is known.
    pub sources: Arc<dyn Sources>,
    /// The control socket, for the environment of services.
    pub socket: Option<PathBuf>,
    /// The hooks that run, for people.
    pub hooks: watch::Sender<Vec<String>>,
    /// Turns true when hooks are not waited for any more.
    pub no_hooks: watch::Sender<bool>,
}

/// Sends a message to an actor that may be gone. What becomes of those is told by their
/// supervisor; whoever only wrote to them goes on.
fn tell<M: ractor::Message>(actor: &ractor::ActorRef<M>, message: M) {
    if actor.cast(message).is_err() {
        tracing::debug!(actor = %actor.get_id(), "a message to an actor that is gone");
    }
}
