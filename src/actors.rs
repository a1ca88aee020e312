//! The shell: actors turn messages into inputs of the machines in `decide`, and the effects
//! into calls of the host.
//!
//! Wishes go down the tree of supervisors, facts come up through the event log, nobody
//! talks sideways. No handler waits: what takes time comes back as a message.

pub mod event_log;
pub mod graph;
pub mod messages;
pub mod monitor;
pub mod process;
pub mod scaler;
pub mod supervisor;
pub mod worker_pool;

pub(crate) mod hooks;
mod oneshot;
mod timer;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_log::EventLog;
use tokio::sync::{Semaphore, watch};

use crate::decide::ledger::Ledger;
use crate::decide::recovery::SurvivingProcess;
use crate::host::{Host, HostEvent, HostEventSink, OutputTarget, ProcessKey, SourceNames};
use crate::logs::{FileAccess, LogConfig, LogPaths};
use crate::model::digest::fnv;
use crate::model::spec::{LogSpec, MAX_FILES, MAX_SIZE};
use crate::model::{InstanceId, InstanceRecord, LogTarget, ServiceSpec};
use crate::sys::clock::Clock;
use crate::vault::secrets::Vault;

/// What every actor of a tree shares: nothing of it changes.
pub struct ActorContext {
    /// What processes inherit of the environment.
    pub inherited: Arc<Vec<(OsString, OsString)>>,
    /// Where processes come from.
    pub host: Arc<dyn Host>,
    /// The tree's clock: every deadline and every event is told by it.
    pub clock: Clock,
    /// The one writer of events.
    pub log: EventLog,
    /// Under which name each instance's output is known.
    pub sources: Arc<dyn SourceNames>,
    /// The control socket, for the environment of services.
    pub socket: Option<PathBuf>,
    /// The hooks that run, for people.
    pub hooks: watch::Sender<Vec<hooks::PendingHook>>,
    /// One a hook that runs.
    pub hook_turns: Semaphore,
    /// One a check's command that runs.
    pub check_turns: Semaphore,
    /// Turns true when hooks are not waited for any more.
    pub no_hooks: watch::Sender<bool>,
    /// Where the secrets are that environments name.
    pub vault: Arc<Vault>,
    /// How output is kept in files.
    pub keep: LogRetention,
    /// What happened is written down there, if anywhere.
    pub ledger: Option<Arc<dyn Ledger>>,
    /// What an earlier supervisor has left of each instance, until its actor is made.
    pub inherited_lives: Mutex<HashMap<InstanceId, Inheritance>>,
    /// What it has left of others, by their printed names: a manifest that can't be read may have
    /// them, and one that is read later may bring them back.
    pub strangers: Mutex<HashMap<String, UnclaimedProcess>>,
}

/// So many commands of checks run at once in a tree; the others wait for their turn.
pub const CHECKS_AT_ONCE: usize = 64;

/// How instances' log files are kept, where their manifests say nothing else.
#[derive(Debug, Clone)]
pub struct LogRetention {
    /// Below this folder, in one a project.
    pub folder: PathBuf,
    /// Bytes from which on a file is put aside.
    pub max_size: u64,
    /// How many there are of each stream.
    pub max_files: u32,
    /// Whether those that were put aside are compressed.
    pub compress: bool,
    /// Whose.
    pub whose: OutputPolicy,
}

/// Whose output is kept in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputPolicy {
    /// Everybody's.
    All,
    /// That of those whose manifests have `log`.
    Declared,
}

impl LogRetention {
    /// Only for those whose manifests have `log`, by the contract's limits.
    pub fn declared(folder: PathBuf) -> LogRetention {
        LogRetention {
            folder,
            max_size: MAX_SIZE,
            max_files: MAX_FILES,
            compress: false,
            whose: OutputPolicy::Declared,
        }
    }

    /// That of one instance, if it is kept.
    pub fn of(&self, id: &InstanceId, spec: &ServiceSpec) -> Option<LogConfig> {
        let declared = match (&spec.log, self.whose) {
            (None, OutputPolicy::Declared) => return None,
            (None, OutputPolicy::All) => &LogSpec::default(),
            (Some(declared), OutputPolicy::All | OutputPolicy::Declared) => declared,
        };
        // A name has no characters that mean anything in a path, but for the slash behind a
        // project's.
        let printed = id.to_string();
        let name = printed.rsplit('/').next().unwrap_or_default().to_owned();
        let folder = match &spec.project {
            Some(project) => self.folder.join(project),
            None => self.folder.clone(),
        };
        if declared.file == LogTarget::Inherit {
            return None;
        }
        let own = folder.join(&name);
        let place = match declared.file_of(id) {
            Some(file) => {
                // Of this file alone: another one's places and times would be taken for its own.
                let of = fnv(file.as_os_str().as_encoded_bytes()) & 0xffff_ffff;
                LogPaths::One { file, index: folder.join(format!("{name}.{of:08x}.idx")) }
            }
            None => LogPaths::Streams(own.clone()),
        };
        let otherwise = (place != LogPaths::Streams(own.clone())).then_some(own);
        Some(LogConfig {
            place,
            otherwise,
            access: FileAccess { owner: declared.owner.clone(), mode: declared.mode },
            max_size: declared.max_size.unwrap_or(self.max_size),
            max_files: declared.max_files.unwrap_or(self.max_files),
            compress: declared.compress.unwrap_or(self.compress),
        })
    }
}

/// What an earlier supervisor has left of an instance.
pub struct Inheritance {
    /// How it stands.
    pub past: InstanceRecord,
    /// Its process, which the keeper has kept.
    pub process: Option<ProcessKey>,
}

/// What an earlier supervisor has left of an instance that no plan has.
pub struct UnclaimedProcess {
    /// How it stood, where that was written down.
    pub written: Option<InstanceRecord>,
    /// Its process, which the keeper has kept.
    pub left: Option<(SurvivingProcess, ProcessKey)>,
}

/// Ends a process that nobody goes on with, and all of its tree: by SIGTERM, and after so long by
/// SIGKILL.
pub(crate) fn end_unwanted(host: &Arc<dyn Host>, key: ProcessKey, after: Duration) {
    let settled = Arc::clone(host);
    let news: HostEventSink = Arc::new(move |news| match news {
        HostEvent::Exited { remains: false, .. } | HostEvent::TreeGone { .. } => settled.settle(key),
        _ => {}
    });
    host.adopt(key, OutputTarget::Capture(0), None, news);
    if after.is_zero() {
        return host.kill(key);
    }
    host.signal(key, 15);
    let host = Arc::clone(host);
    tokio::spawn(async move {
        tokio::time::sleep(after).await;
        host.kill(key);
    });
}

impl ActorContext {
    /// A process is gone, and what happened to it was told: whoever keeps it may forget it when that
    /// is written down.
    fn settle(&self, key: ProcessKey) {
        let host = Arc::clone(&self.host);
        match &self.ledger {
            Some(ledger) => ledger.after(Box::new(move || host.settle(key))),
            None => host.settle(key),
        }
    }
}

/// Sends a message to an actor that may be gone. What becomes of those is told by their
/// supervisor; whoever only wrote to them goes on.
fn tell<M: ractor::Message>(actor: &ractor::ActorRef<M>, message: M) {
    if actor.cast(message).is_err() {
        tracing::debug!(actor = %actor.get_id(), "a message to an actor that is gone");
    }
}
