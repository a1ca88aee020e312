//! The JSON bodies of requests and answers on the control socket and the network API.
//!
//! The doc comments of these types and fields are the descriptions in the OpenAPI document. The
//! requests themselves are listed in `operations`; `regrow api-schema` describes them. Nothing here
//! reads a socket or decides anything.

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

/// The answer to `GET /v1/events`, where `follow` is not asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Events {
    /// The events, oldest first.
    pub events: Vec<Event>,
}

/// The answer to `GET /v1/why`: why services are in the state they are in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct WhyReport {
    /// One explanation for each instance that was asked about.
    pub services: Vec<Why>,
}

/// The answer to `GET /v1/logs`, where `follow` is not asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Logs {
    /// The lines, oldest first.
    pub lines: Vec<LogLine>,
    /// What the answer says about the lines that it leaves out.
    #[serde(flatten)]
    pub end: LogsEnd,
}

/// What an answer says about the log lines that it leaves out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct LogsEnd {
    /// Whether older lines were left out because one answer holds at most 16 MiB and 200,000 lines.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// The log files of the services asked for, which hold the lines left out. Empty unless `cut` is
    /// true.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PathBuf>,
}

/// One line that a process of a service printed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LogLine {
    /// The name of the instance.
    pub name: String,
    /// The output stream that the process printed the line to: `stdout` or `stderr`.
    pub stream: StreamName,
    /// When the supervisor read the line, as RFC 3339 in UTC.
    #[serde(with = "crate::model::time::rfc3339")]
    #[schemars(with = "String")]
    pub at: SystemTime,
    /// The line without its line ending. Bytes that are not UTF-8 are replaced by U+FFFD.
    pub text: String,
}

/// One of the two output streams of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StreamName {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The body of `POST /v1/wait`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Wait {
    /// The names of the instances or services to wait for. An empty list means all that the caller may
    /// read.
    pub services: Vec<String>,
    /// The condition to wait for; it must come true for every instance.
    #[serde(rename = "for")]
    pub for_: WaitFor,
    /// The longest time to wait, in seconds from 0; `null` means no limit.
    #[serde(default)]
    pub timeout_s: Option<f64>,
}

/// The condition that `POST /v1/wait` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WaitFor {
    /// The instance is ready. A task counts when it has completed, too.
    Ready,
    /// The instance has ended with success.
    Completed,
    /// The instance has no process, and none is to come: it is registered, stopped, completed, failed
    /// or removed.
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

/// The answer to `POST /v1/wait`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Waited {
    /// Whether the condition came true for every instance.
    pub ok: bool,
    /// Whether the time limit passed first. If this and `ok` are false, the condition can't come true
    /// any more.
    pub timed_out: bool,
    /// The status of each instance that was waited for, when the wait ended.
    pub services: Vec<ServiceStatus>,
}

/// The answer to `POST /v1/down`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Down {
    /// Whether every process of the services is known to be gone. Hooks may still run.
    pub ok: bool,
    /// Processes that SIGKILL has not ended. The supervisor ends all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stuck: Vec<StuckProcess>,
    /// Instances whose known processes are gone, but which may have left processes that nothing shows
    /// to be theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost_sight: Vec<LostSight>,
    /// The hooks that still run. The supervisor ends when they have ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<String>,
    /// The longest time that these hooks may take, in seconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hooks_may_take_s: f64,
    /// The number of commands of the worker pool that ran or waited when the stop began, and are ended.
    #[serde(default)]
    pub tasks: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it a reference to the field")]
fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

/// An instance whose processes can't all be accounted for any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LostSight {
    /// The name of the instance.
    pub name: String,
    /// The number of the instance's processes that shed the marks by which they are known, and ended
    /// unseen.
    pub of: usize,
}

/// A process that is stuck in the kernel, so that SIGKILL has not ended it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct StuckProcess {
    /// The name of the instance that the process belongs to.
    pub name: String,
    /// The pid of the instance's main process; `null` where it is not known.
    pub pid: Option<u32>,
}

/// The answer to `GET /v1/history`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct History {
    /// One history for each instance that was asked for.
    pub services: Vec<InstanceHistory>,
}

/// The processes that one instance has had.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct InstanceHistory {
    /// The full name of the instance, with its project where it has one.
    pub name: String,
    /// The incarnations of the instance, newest first.
    pub incarnations: Vec<IncarnationRecord>,
}

/// The answer to `GET /v1/audit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Audit {
    /// The entries of the audit trail, oldest first.
    pub entries: Vec<AuditEntry>,
}

/// The answer to `GET /v1/manifests`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Manifests {
    /// The folder that holds the daemon's manifests.
    pub folder: PathBuf,
    /// The manifests that the caller may see, ordered by the path of the file.
    pub manifests: Vec<ManifestFile>,
}

/// One manifest in a daemon's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ManifestFile {
    /// The name of the manifest: its file name without `.toml`.
    pub name: String,
    /// The path of the manifest's file.
    pub file: PathBuf,
}

/// The answer to `GET /v1/manifests/{name}`: the manifest of this name, else the one that declares
/// a service of this name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Manifest {
    /// The name of the manifest: its file name without `.toml`.
    pub name: String,
    /// The path of the manifest's file.
    pub file: PathBuf,
    /// The whole text of the manifest.
    pub text: String,
}

/// The body of `PUT /v1/manifests/{name}`. The daemon checks the text, writes it, and makes the
/// tree what the folder says then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Write {
    /// The new text of the manifest, in TOML.
    pub text: String,
    /// Whether the manifest is new. If true, the request is refused where a manifest of that name
    /// exists with another text; if false, it is refused where none exists.
    #[serde(default)]
    pub create: bool,
}

/// The body of `POST /v1/upgrade`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Upgrade {
    /// The program that takes over, as an absolute path. `null` means the file that now lies where the
    /// daemon's own program lay.
    #[serde(default)]
    pub binary: Option<PathBuf>,
}

/// The answer to `POST /v1/upgrade`, given just before the daemon is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Upgrading {
    /// The program that replaces the daemon.
    pub binary: PathBuf,
    /// The version that this program reports of itself.
    pub version: String,
    /// The pid of the daemon that ends.
    pub pid: u32,
    /// The number of commands of the worker pool that end with this daemon, because they run or because
    /// a client waits for them.
    #[serde(default)]
    pub tasks_running: usize,
    /// The number of commands that wait on their own; the next daemon runs them.
    #[serde(default)]
    pub tasks_waiting: usize,
}

/// The body of `POST /v1/add`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Add {
    /// The text of a manifest, in TOML, with the services and groups to add. They may depend on
    /// services of the running tree.
    pub manifest: String,
    /// The absolute path of the file that the text comes from. Relative paths in the manifest count
    /// from this file's folder.
    #[schemars(regex(pattern = "^/"))]
    pub file: PathBuf,
    /// The name of the group to add to; `null` means the root.
    #[serde(default)]
    pub group: Option<String>,
}

/// The answer to `POST /v1/add`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Added {
    /// The result for each instance, as in the answer to a start.
    #[serde(flatten)]
    pub answer: Answer,
    /// Warnings about the manifest: what is allowed, and still worth a look.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<FaultBody>,
}

/// The body of every answer that refuses a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ErrorBody {
    /// Why the request was refused: a stable code, a sentence for people and, where possible, a hint.
    pub error: Denial,
    /// What is wrong with the manifest, where the code is `faulty`. Otherwise empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<FaultBody>,
}

/// One fault of a manifest, or one warning about it, with its place in the text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct FaultBody {
    /// The path of the file that has the fault.
    pub file: PathBuf,
    /// The line where the fault begins, counted from 1.
    pub line: usize,
    /// The column where the fault begins, in characters counted from 1.
    pub column: usize,
    /// The bytes of the file that the fault covers: from `start`, up to but not including `end`.
    pub span: Range<usize>,
    /// One sentence that says what is wrong.
    pub message: String,
    /// A few words to show at that place of the text.
    pub label: String,
    /// Another place of the same file that has to do with the fault: its bytes, and a few words to show
    /// there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub also: Option<(Range<usize>, String)>,
    /// What would mend the fault, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl FaultBody {
    /// Makes the body that describes this fault.
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

    /// Turns the body back into a fault of this text.
    pub fn with(self, source: Arc<Source>) -> Fault {
        let FaultBody { span, message, label, also, hint, .. } = self;
        Fault { source, span, message, label, also, hint }
    }
}

/// The body of `POST /v1/tasks`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Submit {
    /// The commands to run. The worker pool takes all of them or none.
    pub tasks: Vec<TaskSpec>,
    /// Environment variables that every command gets, as pairs of name and value. A command's own `env`
    /// wins over them.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Whether the answer comes only when all of the commands are over. Otherwise it comes when they
    /// are taken.
    #[serde(default)]
    pub wait: bool,
}

/// The answer to `POST /v1/tasks`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Submitted {
    /// The ids of the tasks, in the order of the request.
    pub ids: Vec<TaskId>,
    /// How the tasks ended, where the request asked to wait for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<TasksDone>,
}

/// How many of a request's tasks succeeded, and how many failed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TasksDone {
    /// The number of tasks that ended with exit code 0.
    pub succeeded: usize,
    /// The number of all other tasks of the request.
    pub failed: usize,
}

/// The answer to `GET /v1/tasks`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TaskList {
    /// The tasks that the worker pool knows, oldest first.
    pub tasks: Vec<TaskStatus>,
}

/// The body of `POST /v1/tasks/{id}/cancel`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct CancelTask {
    /// Whether the task gets SIGKILL at once. Otherwise it gets SIGTERM, and SIGKILL after its grace.
    #[serde(default)]
    pub at_once: bool,
}

/// The answer to a request that removes or cancels tasks, or clears the cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Removed {
    /// The number of tasks or results that were removed or cancelled.
    pub removed: usize,
}

/// A piece of a task's output: the data of a server-sent `output` event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TaskOutput {
    /// The output stream that the task printed the bytes to.
    pub stream: StreamName,
    /// The bytes in base64; at most 48 KiB before they are encoded.
    pub data: String,
}

/// The answer to `GET /v1/resources`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ResourceHistories {
    /// One history for each instance that was asked for, or one of the machine where none was named.
    pub histories: Vec<ResourceHistory>,
}

/// The body of `POST /v1/pool`. A field that is left out stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SetPool {
    /// The least number of workers, from 1 to 1000.
    #[serde(default)]
    pub min: Option<u32>,
    /// The greatest number of workers, from 1 to 1000 and not below the least.
    #[serde(default)]
    pub max: Option<u32>,
    /// Whether the pool changes its number of workers by itself, within these bounds.
    #[serde(default)]
    pub auto: Option<bool>,
    /// The number of workers from now on, within the bounds. Setting it stops the pool from scaling by
    /// itself.
    #[serde(default)]
    pub workers: Option<u32>,
}
