//! What goes over the socket.
//!
//! The requests themselves are listed in `operations`; `regrow api-schema` describes them.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::decide::why::Why;
use crate::manifest::{Fault, Source};
use crate::model::history::ResourceHistory;
use crate::model::{Answer, Denial, Event, ServiceStatus, TaskId, TaskSpec, TaskStatus};
use crate::record::store::{AuditEntry, IncarnationRecord};

/// `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Events {
    /// Oldest first.
    pub events: Vec<Event>,
}

/// `GET /v1/why`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct WhyReport {
    /// One an instance.
    pub services: Vec<Why>,
}

/// `GET /v1/logs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Logs {
    /// Oldest first.
    pub lines: Vec<LogLine>,
    /// What is behind them.
    #[serde(flatten)]
    pub end: LogsEnd,
}

/// What is told of lines that are not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct LogsEnd {
    /// Older lines were left out: they are more than is told in one answer (16 MiB, 200,000 lines).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// Where they are, then.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PathBuf>,
}

/// One line that a process printed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LogLine {
    /// The instance.
    pub name: String,
    /// `stdout` or `stderr`.
    pub stream: StreamName,
    /// When it was read.
    #[serde(with = "crate::model::time::rfc3339")]
    #[schemars(with = "String")]
    pub at: SystemTime,
    /// Without its newline; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// Which output stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StreamName {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// `POST /v1/wait`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Wait {
    /// Instances or services.
    pub services: Vec<String>,
    /// For what.
    #[serde(rename = "for")]
    pub for_: WaitFor,
    /// How long at most; none: for ever.
    #[serde(default)]
    pub timeout_s: Option<f64>,
}

/// What `wait` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WaitFor {
    /// Ready (a task: ready or completed).
    Ready,
    /// Ended with success.
    Completed,
    /// No process, and none to come: stopped, completed or failed.
    Stopped,
}

impl std::fmt::Display for WaitFor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            WaitFor::Ready => "ready",
            WaitFor::Completed => "completed",
            WaitFor::Stopped => "stopped",
        })
    }
}

/// The answer to a wait.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Waited {
    /// Whether it came true for all.
    pub ok: bool,
    /// Whether the time ran out first.
    pub timed_out: bool,
    /// How they stand.
    pub services: Vec<ServiceStatus>,
}

/// The answer to `down`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Down {
    /// Everything is gone.
    pub ok: bool,
    /// Who is not: SIGKILL has not ended them, and the supervisor ends all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stuck: Vec<StuckProcess>,
    /// Services that are gone as far as can be seen, and may have left processes that nothing tells to be theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost_sight: Vec<LostSight>,
    /// Hooks that still run; the supervisor ends when they have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<String>,
    /// How many seconds they may take at most.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hooks_may_take_s: f64,
    /// Commands of the worker pool that ran or waited, and are ended.
    #[serde(default)]
    pub tasks: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it a reference to the field")]
fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

/// A service of which not all is known any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LostSight {
    /// The instance.
    pub name: String,
    /// So many of its processes had shed their marks and have ended unseen.
    pub of: usize,
}

/// A process that is stuck in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct StuckProcess {
    /// Of which instance.
    pub name: String,
    /// Its main process.
    pub pid: Option<u32>,
}

/// `GET /v1/history`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct History {
    /// One an instance.
    pub services: Vec<InstanceHistory>,
}

/// The processes that an instance has had.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct InstanceHistory {
    /// Which.
    pub name: String,
    /// Newest first.
    pub incarnations: Vec<IncarnationRecord>,
}

/// `GET /v1/audit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Audit {
    /// Oldest first.
    pub entries: Vec<AuditEntry>,
}

/// `GET /v1/manifests`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Manifests {
    /// Where they lie.
    pub folder: PathBuf,
    /// By name.
    pub manifests: Vec<ManifestFile>,
}

/// One of a daemon's manifests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ManifestFile {
    /// The file's, without `.toml`.
    pub name: String,
    /// The file.
    pub file: PathBuf,
}

/// `GET /v1/manifests/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Manifest {
    /// The file's, without `.toml`.
    pub name: String,
    /// The file.
    pub file: PathBuf,
    /// What it says.
    pub text: String,
}

/// `PUT /v1/manifests/NAME`: it is checked, written, and the tree made what the folder says then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Write {
    /// What it is to say.
    pub text: String,
    /// It is new: refused where there is one. Otherwise it is changed: refused where there is none.
    #[serde(default)]
    pub create: bool,
}

/// `POST /v1/upgrade`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Upgrade {
    /// The program that takes over, absolute; none: what lies now where the daemon's own lay.
    #[serde(default)]
    pub binary: Option<PathBuf>,
}

/// The answer to it: the daemon is about to be replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Upgrading {
    /// By this program.
    pub binary: PathBuf,
    /// What it says of itself.
    pub version: String,
    /// The daemon that ends.
    pub pid: u32,
    /// Commands of the worker pool that run, and are ended with it.
    #[serde(default)]
    pub tasks_running: usize,
    /// Commands that wait, and are run by the next one.
    #[serde(default)]
    pub tasks_waiting: usize,
}

/// `POST /v1/add`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Add {
    /// A manifest of what is new. It may depend on what is there.
    pub manifest: String,
    /// The file that it comes from, absolute: its paths count from that file's folder.
    #[schemars(regex(pattern = "^/"))]
    pub file: PathBuf,
    /// The group that it is added to; none: the root.
    #[serde(default)]
    pub group: Option<String>,
}

/// The answer to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Added {
    /// As to a start.
    #[serde(flatten)]
    pub answer: Answer,
    /// What is allowed and still worth a word.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<FaultBody>,
}

/// Every error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ErrorBody {
    /// What and why.
    pub error: Denial,
    /// With `faulty`: what is wrong with the manifest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<FaultBody>,
}

/// A fault of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct FaultBody {
    /// Of which file.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The bytes of the file.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// A few words about that place.
    pub label: String,
    /// Another place that has to do with it, and a few words about that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub also: Option<(Range<usize>, String)>,
    /// What would help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl FaultBody {
    /// As it goes over the socket.
    pub fn of(fault: &Fault) -> FaultBody {
        let (line, column) = fault.place();
        FaultBody {
            file: fault.source.path.clone(),
            line,
            column,
            span: fault.span.clone(),
            message: fault.message.clone(),
            label: fault.label.clone(),
            also: fault.also.clone(),
            hint: fault.hint.clone(),
        }
    }

    /// As it was, with the text that it is about.
    pub fn with(self, source: Arc<Source>) -> Fault {
        let FaultBody { span, message, label, also, hint, .. } = self;
        Fault { source, span, message, label, also, hint }
    }
}

/// `POST /v1/tasks`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Submit {
    /// All of them or none.
    pub tasks: Vec<TaskSpec>,
    /// Variables of each, before its own.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Answered when all of them are over.
    #[serde(default)]
    pub wait: bool,
}

/// The answer to [`Submit`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Submitted {
    /// In the order in which they were given.
    pub ids: Vec<TaskId>,
    /// What became of them, where that was waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<TasksDone>,
}

/// What became of many.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TasksDone {
    /// Those that ended with code 0.
    pub succeeded: usize,
    /// The others.
    pub failed: usize,
}

/// `GET /v1/tasks`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TaskList {
    /// Oldest first.
    pub tasks: Vec<TaskStatus>,
}

/// `POST /v1/tasks/{id}/cancel`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct CancelTask {
    /// By SIGKILL.
    #[serde(default)]
    pub at_once: bool,
}

/// The answer where something was done with so many.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Removed {
    /// So many.
    pub removed: usize,
}

/// A piece of a task's output, as a server-sent event carries it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TaskOutput {
    /// Which stream.
    pub stream: StreamName,
    /// The bytes, in base64.
    pub data: String,
}

/// `GET /v1/resources`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ResourceHistories {
    /// Of the machine alone, or of each instance that was asked for.
    pub histories: Vec<ResourceHistory>,
}

/// `POST /v1/pool`: what is not said stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SetPool {
    /// So many workers at least.
    #[serde(default)]
    pub min: Option<u32>,
    /// And at most.
    #[serde(default)]
    pub max: Option<u32>,
    /// Whether the pool scales by itself.
    #[serde(default)]
    pub auto: Option<bool>,
    /// So many workers from now on; it does not scale by itself then.
    #[serde(default)]
    pub workers: Option<u32>,
}
