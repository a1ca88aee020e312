//! The imperative shell: actors turn messages into inputs of the state machines in `decide`, and
//! the machines' effects into calls of the host.
//!
//! Directives go down the supervision tree, facts come up through the event log, and siblings never
//! talk to each other. No handler waits: the result of anything slow comes back as a message.
//! Deliberately absent: decisions, which are all made in `decide`.

pub mod event_log;
pub mod graph;
pub mod messages;
pub mod monitor;
pub mod process;
pub mod scaler;
pub mod supervisor;
pub(crate) mod system;
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
use crate::runner::{Runner, Runners};
use crate::sys::clock::Clock;
use crate::vault::secrets::Vault;

/// What all actors of a tree share. The fields themselves never change.
pub struct ActorContext {
    /// The environment variables that processes inherit.
    pub inherited: Arc<Vec<(OsString, OsString)>>,
    /// The host that makes and signals processes.
    pub host: Arc<dyn Host>,
    /// Every runner of the tree's instances.
    pub(crate) runners: Runners,
    /// The tree's clock, which times every deadline and every event.
    pub clock: Clock,
    /// The event log, the only writer of events.
    pub log: EventLog,
    /// Maps each instance to the source of its output.
    pub sources: Arc<dyn SourceNames>,
    /// The path of the control socket, for the environment of services. `None`: there is no socket.
    pub socket: Option<PathBuf>,
    /// The hooks that run or wait, for messages to people.
    pub hooks: watch::Sender<Vec<hooks::PendingHook>>,
    /// One permit for each hook that may run at once.
    pub hook_turns: Semaphore,
    /// One permit for each check command that may run at once.
    pub check_turns: Semaphore,
    /// Becomes true when running hooks are to be killed and no waiting hook may start.
    pub no_hooks: watch::Sender<bool>,
    /// The vault with the secrets that environments name.
    pub vault: Arc<Vault>,
    /// How output is kept in files.
    pub keep: LogRetention,
    /// Keeps events and results for a later supervisor. `None`: nothing is kept.
    pub ledger: Option<Arc<dyn Ledger>>,
    /// What an earlier supervisor has left of each instance, until the instance's actor starts.
    pub inherited_lives: Mutex<HashMap<InstanceId, Inheritance>>,
    /// What an earlier supervisor has left of instances that no plan has, by their printed names. Their
    /// manifest may be unreadable now, and a manifest that is read later may bring them back.
    pub strangers: Mutex<HashMap<String, UnclaimedProcess>>,
}

/// How many check commands run at once in a tree. The others wait for their turn.
pub const CHECKS_AT_ONCE: usize = 64;

/// How log files are kept when a manifest says nothing else.
#[derive(Debug, Clone)]
pub struct LogRetention {
    /// The folder of the log files, with a subfolder for each project.
    pub folder: PathBuf,
    /// The size in bytes from which on a file is put aside.
    pub max_size: u64,
    /// How many files are kept of each stream, the growing one included.
    pub max_files: u32,
    /// Whether files that were put aside are compressed.
    pub compress: bool,
    /// The instances whose output is kept.
    pub whose: OutputPolicy,
}

/// The instances whose output is kept in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputPolicy {
    /// All instances.
    All,
    /// Only instances whose manifest has `log`.
    Declared,
}

impl LogRetention {
    /// Keeps only the output of instances whose manifest has `log`, with the default limits.
    pub fn declared(folder: PathBuf) -> LogRetention {
        LogRetention {
            folder,
            max_size: MAX_SIZE,
            max_files: MAX_FILES,
            compress: false,
            whose: OutputPolicy::Declared,
        }
    }

    /// How the output of one instance is kept. `None`: it is not kept in files.
    pub fn of(&self, id: &InstanceId, spec: &ServiceSpec) -> Option<LogConfig> {
        let declared = match (&spec.log, self.whose) {
            (None, OutputPolicy::Declared) => return None,
            (None, OutputPolicy::All) => &LogSpec::default(),
            (Some(declared), OutputPolicy::All | OutputPolicy::Declared) => declared,
        };
        // An instance's name contains nothing with a meaning in a path, except the slash after a
        // project's name.
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
                // The index belongs to this file alone: the offsets and times of another file would be
                // wrong.
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
    /// The record of the instance.
    pub past: InstanceRecord,
    /// The surviving process, which the keeper has kept. `None`: there is none.
    pub process: Option<ProcessKey>,
}

/// What an earlier supervisor has left of an instance that is in no plan.
pub struct UnclaimedProcess {
    /// The record of the instance, if one was stored.
    pub written: Option<InstanceRecord>,
    /// The surviving process, which the keeper has kept. `None`: there is none.
    pub left: Option<(SurvivingProcess, ProcessKey)>,
}

/// Ends an unwanted process and its whole tree: by SIGTERM, and after this time by SIGKILL. A zero
/// time kills at once.
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
    /// Lets a runner forget what is gone. With a ledger, only after the facts about its end are stored.
    fn settle(&self, runner: &Arc<dyn Runner>, key: ProcessKey) {
        let runner = Arc::clone(runner);
        match &self.ledger {
            Some(ledger) => ledger.after(Box::new(move || runner.settle(key))),
            None => runner.settle(key),
        }
    }
}

/// Sends a message to an actor that may be gone. The actor's supervisor handles its end; the sender
/// just goes on.
fn tell<M: ractor::Message>(actor: &ractor::ActorRef<M>, message: M) {
    if actor.cast(message).is_err() {
        tracing::debug!(actor = %actor.get_id(), "a message to an actor that is gone");
    }
}
