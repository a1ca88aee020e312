//! What outlives a supervisor: how everything stood, as the next one is told of it.
//!
//! The seam alone; who keeps it where is `record`'s.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::goals::ManualGoals;
use super::history::ClosedPoint;
use super::tree_state::TreeState;
use crate::model::{CommandLine, Event, Incarnation, InstanceId, InstanceRecord, Name, TaskResult};

/// What the last supervisor has left.
#[derive(Debug, Default)]
pub struct Memory {
    /// How each instance stood, by its printed name.
    pub pasts: HashMap<String, InstanceRecord>,
    /// By what processes that ran then are found again.
    pub lives: Vec<(String, Incarnation, String)>,
    /// Groups that had given up.
    pub failed_groups: Vec<Name>,
    /// Projects that had.
    pub failed_projects: Vec<String>,
    /// The number of the last event.
    pub last_event: u64,
    /// The boot of the machine in which it was written.
    pub boot: Option<String>,
    /// Whether it came to an end in order.
    pub ended: bool,
    /// Why it was going down, if it was and did not come to an end.
    pub going_down: Option<String>,
    /// When the tree came up, by the monotonic clock of that boot.
    pub since: Option<Duration>,
    /// What is wrong with the store, for people.
    pub trouble: Option<String>,
    /// What was wished by hand, as it was held beside the store.
    pub goals: ManualGoals,
}

/// The result of a command that need not be run again.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptResult {
    /// What came of it, all of it.
    pub result: TaskResult,
    /// When.
    pub since: SystemTime,
    /// Until then it counts.
    pub until: SystemTime,
}

/// A task that is over, as it outlives the supervisor that ran it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptTask {
    /// The command that ran.
    pub command: CommandLine,
    /// Higher ones were run first.
    pub priority: i32,
    /// When it was taken.
    pub submitted: SystemTime,
    /// When it was over.
    pub over: SystemTime,
    /// Its result, with as much of its output as is kept.
    pub result: TaskResult,
}

/// Keeps what happened, so that a later supervisor knows it.
///
/// Called under the event log's lock: it passes on and does nothing else.
pub trait Ledger: Send + Sync + 'static {
    /// Under which circumstances what follows is written: the boot of the machine, and when the
    /// tree came up by its monotonic clock. `alone`: instances that nobody supervises now and whose
    /// processes live on.
    fn begin(&self, boot: &str, since: Duration, alone: Vec<String>);
    /// Whom to tell when nothing can be written, with the reason, and when it can again, with the
    /// number of events that were lost.
    fn report_to(&self, told: Box<dyn Fn(Option<u64>, String) + Send>);
    /// Who else is to hold what is wished by hand, as a text: called with each change.
    fn hold_goals_by(&self, _hold: Box<dyn Fn(String) + Send + Sync>) {}
    /// Whether what is told is written down at the moment.
    fn is_well(&self) -> bool {
        true
    }
    /// An event, and what is since.
    fn event(&self, event: &Arc<Event>, tree_state: &TreeState);
    /// By what a process is found again when nobody has kept it; for [`crate::host`] alone to read.
    fn life(&self, instance: &InstanceId, incarnation: Incarnation, life: String);
    /// Points of measurements that are over.
    fn resources(&self, points: Vec<ClosedPoint>);
    /// The points of the last so long, oldest first, one by one: they may be many. Not for a thread that
    /// others wait for.
    fn past_resources(&self, within: Duration, each: &mut dyn FnMut(ClosedPoint));
    /// The result of a command, by what it is one of, for a later supervisor.
    fn keep_result(&self, key: &[u8], kept: KeptResult);
    /// Those that are kept, by their keys. It reads a file: not for a thread that others wait for.
    fn kept_results(&self, keys: &[&[u8]]) -> Vec<Option<KeptResult>>;
    /// None of them counts any more.
    fn forget_results(&self);
    /// A task is over.
    fn keep_task(&self, _task: KeptTask) {}
    /// Those that are over since so long, the last so many, oldest first. It reads a file.
    fn kept_tasks(&self, _within: Duration, _most: usize) -> Vec<KeptTask> {
        Vec::new()
    }
    /// They are forgotten.
    fn forget_tasks(&self) {}
    /// What commands have come to, as a text.
    fn keep_tally(&self, _text: String) {}
    /// The same, as it was kept last. It reads a file.
    fn kept_tally(&self) -> Option<String> {
        None
    }
    /// Calls back when every event so far is written, or is known never to be.
    fn after(&self, then: Box<dyn FnOnce() + Send>);
    /// Waits until everything is written; not for long.
    fn flush(&self);
}
