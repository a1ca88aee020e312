//! What outlives a supervisor: the state that the next one goes on from.
//!
//! This module has only the trait and its data. Where and how the data is kept is the affair of
//! `record`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::goals::ManualGoals;
use super::history::ClosedPoint;
use super::tree_state::TreeState;
use crate::model::{CommandLine, Event, Incarnation, InstanceId, InstanceRecord, Name, TaskResult};

/// What the last supervisor left in the store.
#[derive(Debug, Default)]
pub struct Memory {
    /// The record of each instance, by its printed name.
    pub pasts: HashMap<String, InstanceRecord>,
    /// Each process whose end is not recorded: the printed name of its instance, its incarnation,
    /// and the text by which the host finds the process again.
    pub lives: Vec<(String, Incarnation, String)>,
    /// The groups that had given up.
    pub failed_groups: Vec<Name>,
    /// The projects that had given up.
    pub failed_projects: Vec<String>,
    /// The number of the last event; 0 if there is none.
    pub last_event: u64,
    /// The machine's boot in which the last supervisor ran; `None` if that is not recorded.
    pub boot: Option<String>,
    /// Whether the last supervisor ended in order.
    pub ended: bool,
    /// Why the tree was being shut down; `None` if it was not, or the shutdown was finished.
    pub going_down: Option<String>,
    /// When the tree came up, by the monotonic clock of that boot.
    pub since: Option<Duration>,
    /// What is wrong with the store, in words for people; `None` if nothing is.
    pub trouble: Option<String>,
    /// The goals that were set by hand, as they were held beside the store.
    pub goals: ManualGoals,
}

/// The result of a command that need not be run again.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptResult {
    /// The whole result of the command.
    pub result: TaskResult,
    /// When the command gave this result.
    pub since: SystemTime,
    /// When the result expires.
    pub until: SystemTime,
}

/// A finished task, as it outlives the supervisor that ran it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptTask {
    /// The command that ran.
    pub command: CommandLine,
    /// The priority of the task; tasks with a higher one run first.
    pub priority: i32,
    /// When the task was submitted.
    pub submitted: SystemTime,
    /// When the task was finished.
    pub over: SystemTime,
    /// The result of the task, with as much of the output as is kept.
    pub result: TaskResult,
}

/// Keeps what happened, so that a later supervisor knows it.
///
/// The event log calls [`Ledger::event`] under its lock, so a method that writes only passes its
/// data on.
pub trait Ledger: Send + Sync + 'static {
    /// Begins the record of a supervisor, with the boot of the machine and the time at which the
    /// tree came up by that boot's monotonic clock. `alone` lists the instances that nobody
    /// supervises now and whose processes live on.
    fn begin(&self, boot: &str, since: Duration, alone: Vec<String>);
    /// Sets who is told when nothing can be written, with the reason, and when writing works again,
    /// with the number of events that were lost.
    fn report_to(&self, told: Box<dyn Fn(Option<u64>, String) + Send>);
    /// Sets a second holder of the goals that were set by hand: each change calls it with all of
    /// them, as a text.
    fn hold_goals_by(&self, _hold: Box<dyn Fn(String) + Send + Sync>) {}
    /// Whether events are being written down at the moment.
    fn is_well(&self) -> bool {
        true
    }
    /// Keeps an event; `tree_state` is the state of the tree after it.
    fn event(&self, event: &Arc<Event>, tree_state: &TreeState);
    /// Keeps the text by which a process is found again if no keeper holds it. Only [`crate::host`]
    /// can read the text.
    fn life(&self, instance: &InstanceId, incarnation: Incarnation, life: String);
    /// Keeps points of the metrics history that are over.
    fn resources(&self, points: Vec<ClosedPoint>);
    /// Passes the points of this last span of time to `each`, oldest first; they may be many. It must
    /// not run on a thread that others wait for.
    fn past_resources(&self, within: Duration, each: &mut dyn FnMut(ClosedPoint));
    /// Keeps the result of a command under its key, for a later supervisor.
    fn keep_result(&self, key: &[u8], kept: KeptResult);
    /// The kept results, one for each key. It reads a file, and so must not run on a thread that
    /// others wait for.
    fn kept_results(&self, keys: &[&[u8]]) -> Vec<Option<KeptResult>>;
    /// Drops all kept results.
    fn forget_results(&self);
    /// Keeps a finished task.
    fn keep_task(&self, _task: KeptTask) {}
    /// The tasks that were finished within this last span of time, at most this many of the newest,
    /// oldest first. It reads a file.
    fn kept_tasks(&self, _within: Duration, _most: usize) -> Vec<KeptTask> {
        Vec::new()
    }
    /// Drops all kept tasks.
    fn forget_tasks(&self) {}
    /// Keeps the task metrics, as a text.
    fn keep_tally(&self, _text: String) {}
    /// The task metrics, as they were kept last. It reads a file.
    fn kept_tally(&self) -> Option<String> {
        None
    }
    /// Calls back when every event so far is written, or is known to be lost.
    fn after(&self, then: Box<dyn FnOnce() + Send>);
    /// Waits until everything is written, but only for a short time.
    fn flush(&self);
}
