//! Tasks, the commands that run once: their requests, their status and their results.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::exit::{Exit, SpawnFailure};
use super::spec::CommandLine;
use super::time::{opt_seconds, rfc3339, seconds};

/// The id of a task: unique and in the order of time (UUID version 7, RFC 9562).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(pub Uuid);

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for TaskId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<TaskId, uuid::Error> {
        Uuid::try_parse(text).map(TaskId)
    }
}

#[cfg(feature = "control")]
impl schemars::JsonSchema for TaskId {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TaskId".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "format": "uuid" })
    }
}

/// What a task reads on its standard input.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TaskInput {
    /// The standard input is empty.
    #[default]
    Nothing,
    /// The task reads this text.
    Text(String),
    /// The task reads these bytes, given in base64.
    Base64(String),
    /// The task reads the file at this absolute path.
    File(PathBuf),
}

impl TaskInput {
    /// Input from bytes: text where they are UTF-8, base64 otherwise.
    pub fn of(bytes: Vec<u8>) -> TaskInput {
        match String::from_utf8(bytes) {
            Ok(text) if text.is_empty() => TaskInput::Nothing,
            Ok(text) => TaskInput::Text(text),
            Err(error) => TaskInput::Base64(STANDARD.encode(error.as_bytes())),
        }
    }

    /// The bytes of the input; `None` when they are in a file. An error when the base64 is invalid.
    pub fn bytes(&self) -> Result<Option<Vec<u8>>, String> {
        match self {
            TaskInput::Nothing => Ok(Some(Vec::new())),
            TaskInput::Text(text) => Ok(Some(text.clone().into_bytes())),
            TaskInput::Base64(text) => STANDARD.decode(text).map(Some).map_err(|error| error.to_string()),
            TaskInput::File(_) => Ok(None),
        }
    }
}

/// The request to run a command once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct TaskSpec {
    /// The command to run.
    pub command: CommandLine,
    /// The working directory, absolute; `None`: the supervisor's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// The environment variables that the task shares with the others of its request.
    #[serde(skip)]
    #[cfg_attr(feature = "control", schemars(skip))]
    pub common_env: Arc<Vec<(String, String)>>,
    /// The task's own environment variables, which override the shared ones.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Whether the task inherits nothing of the supervisor's environment but `PATH`.
    #[serde(default)]
    pub env_clear: bool,
    /// The standard input of the task.
    #[serde(default)]
    pub input: TaskInput,
    /// The time after which a running task is ended; `None`: no limit.
    #[serde(default, with = "opt_seconds", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "control", schemars(with = "Option<f64>"))]
    pub timeout: Option<Duration>,
    /// The time between SIGTERM and SIGKILL when the task is ended.
    #[serde(default = "grace", with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub grace: Duration,
    /// The priority in the queue: tasks with a higher one run first.
    #[serde(default)]
    pub priority: i32,
    /// The number of times that a failed task is run again.
    #[serde(default)]
    pub retries: u32,
    /// The delay before the first retry; each further one is twice as long.
    #[serde(default = "retry_delay", with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub retry_delay: Duration,
    /// How long a successful result is shared between runs of the same command; `None`: not at all.
    #[serde(default, with = "opt_seconds", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "control", schemars(with = "Option<f64>"))]
    pub cache: Option<Duration>,
    /// The variables that take part in the cache key; `None`: all of them, but for those that differ
    /// from shell to shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_env: Option<Vec<String>>,
}

/// The default time between SIGTERM and SIGKILL when a task is ended.
pub const GRACE: Duration = Duration::from_secs(30);
/// The default delay before the first retry of a failed task.
pub const RETRY_DELAY: Duration = Duration::from_secs(1);

fn grace() -> Duration {
    GRACE
}

fn retry_delay() -> Duration {
    RETRY_DELAY
}

impl TaskSpec {
    /// A task that runs this command, with the defaults for everything else.
    ///
    /// ```
    /// use regrow::model::TaskSpec;
    /// let spec = TaskSpec::new(["echo", "hello"]);
    /// assert_eq!(spec.command.to_string(), "echo hello");
    /// ```
    pub fn new<I, S>(argv: I) -> TaskSpec
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        TaskSpec::of(CommandLine { argv: argv.into_iter().map(Into::into).collect(), shell: false })
    }

    /// A task that runs a text with `/bin/sh -c`, with the defaults for everything else.
    pub fn shell(text: &str) -> TaskSpec {
        let argv = vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()];
        TaskSpec::of(CommandLine { argv, shell: true })
    }

    fn of(command: CommandLine) -> TaskSpec {
        TaskSpec {
            command,
            dir: None,
            common_env: Arc::default(),
            env: Vec::new(),
            env_clear: false,
            input: TaskInput::Nothing,
            timeout: None,
            grace: GRACE,
            priority: 0,
            retries: 0,
            retry_delay: RETRY_DELAY,
            cache: None,
            cache_env: None,
        }
    }
}

/// The state of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// The task waits for a worker.
    Queued,
    /// The process of the task runs.
    Running,
    /// The processes of the task are halted.
    Paused,
    /// The process of the task is being ended.
    Stopping,
    /// The task has failed and waits for its next attempt.
    Retrying,
    /// The task waits for another task that runs the same command, and takes over its result.
    Joined,
    /// The task is over.
    Finished,
}

impl TaskState {
    /// All states, in the order of their declaration.
    pub const ALL: [TaskState; 7] = [
        TaskState::Queued,
        TaskState::Running,
        TaskState::Paused,
        TaskState::Stopping,
        TaskState::Retrying,
        TaskState::Joined,
        TaskState::Finished,
    ];

    /// The word that every output uses.
    pub fn word(self) -> &'static str {
        match self {
            TaskState::Queued => "queued",
            TaskState::Running => "running",
            TaskState::Paused => "paused",
            TaskState::Stopping => "stopping",
            TaskState::Retrying => "retrying",
            TaskState::Joined => "joined",
            TaskState::Finished => "finished",
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TaskEnd {
    /// The process ended by itself, successfully or not.
    Exited,
    /// The task exceeded its timeout and was ended.
    TimedOut,
    /// Somebody cancelled the task.
    Cancelled,
    /// No process could be started.
    NotStarted,
    /// The worker of the task broke or was taken down.
    Lost,
}

impl TaskEnd {
    /// The word that every output uses.
    pub fn word(self) -> &'static str {
        match self {
            TaskEnd::Exited => "exited",
            TaskEnd::TimedOut => "timed_out",
            TaskEnd::Cancelled => "cancelled",
            TaskEnd::NotStarted => "not_started",
            TaskEnd::Lost => "lost",
        }
    }
}

/// The resources of a process and of those children that it waited for, as the kernel counts them
/// (wait4(2)).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ResourceUsage {
    /// CPU time in user mode.
    #[serde(with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub user_s: Duration,
    /// CPU time in kernel mode.
    #[serde(with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub system_s: Duration,
    /// The peak of resident memory. The kernel starts to count before the program starts, so the value
    /// is never less than what the supervisor used when it started the process.
    pub peak_memory_bytes: u64,
    /// Page faults that needed no read from disk.
    pub minor_faults: u64,
    /// Page faults that needed a read from disk.
    pub major_faults: u64,
    /// Bytes read from disks.
    pub read_bytes: u64,
    /// Bytes written to disks.
    pub written_bytes: u64,
    /// How often the process gave up the CPU by itself.
    pub voluntary_switches: u64,
    /// How often the kernel took the CPU from the process.
    pub involuntary_switches: u64,
}

/// The output of one stream. It serializes as text where it is UTF-8 and as base64 otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutputText {
    /// The part of the output that was kept.
    pub bytes: Vec<u8>,
    /// The size of the whole output, in bytes.
    pub total: u64,
}

impl OutputText {
    /// Whether a part of the output is missing.
    pub fn is_cut(&self) -> bool {
        (self.bytes.len() as u64) < self.total
    }
}

/// The result of a task: the same object for a success, a failure and a failed start.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskResult {
    /// The id of the task.
    pub id: TaskId,
    /// The standard output.
    pub stdout: OutputText,
    /// The standard error.
    pub stderr: OutputText,
    /// How the process ended; `None` when it was never started.
    pub exit: Option<Exit>,
    /// How the task ended.
    pub ended: TaskEnd,
    /// Whether SIGKILL had to end the process.
    pub by_force: bool,
    /// The time from the start of the process to its end.
    pub duration: Duration,
    /// The pid of the process; `None` when it was never started.
    pub pid: Option<u32>,
    /// Whether the result is that of another task, which ran before or on behalf of this one too.
    pub cached: bool,
    /// The number of runs.
    pub attempts: u32,
    /// The resources that the process used; `None` where they are not known.
    pub usage: Option<ResourceUsage>,
    /// What went wrong, in words; `None` when nothing did.
    pub error: Option<String>,
    /// Why no process was started.
    pub failure: Option<SpawnFailure>,
}

impl TaskResult {
    /// Whether its process ended by itself with code 0.
    pub fn success(&self) -> bool {
        self.ended == TaskEnd::Exited && self.exit == Some(Exit::SUCCESS)
    }
}

/// The wire form of [`TaskResult`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
struct ResultWire {
    id: TaskId,
    success: bool,
    stdout: String,
    stderr: String,
    /// `base64` when the output is not UTF-8 text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stdout_encoding: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stderr_encoding: Option<String>,
    /// The size of the whole output in bytes; `stdout` may hold only its first part.
    stdout_bytes: u64,
    stderr_bytes: u64,
    truncated: bool,
    exit_code: Option<i32>,
    signal: Option<i32>,
    ended: TaskEnd,
    by_force: bool,
    duration_s: f64,
    pid: Option<u32>,
    cached: bool,
    attempts: u32,
    resource_usage: Option<ResourceUsage>,
    error: Option<String>,
    /// Why no process was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failure: Option<SpawnFailure>,
}

fn in_words(printed: &OutputText) -> (String, Option<String>) {
    match std::str::from_utf8(&printed.bytes) {
        Ok(text) => (text.to_owned(), None),
        // The cut may have split a character in two.
        Err(error) if error.error_len().is_none() && printed.is_cut() => {
            (String::from_utf8_lossy(&printed.bytes[..error.valid_up_to()]).into_owned(), None)
        }
        Err(_) => (STANDARD.encode(&printed.bytes), Some("base64".to_owned())),
    }
}

fn as_bytes(text: String, encoding: Option<&str>, total: u64) -> Result<OutputText, String> {
    let bytes = match encoding {
        None => text.into_bytes(),
        Some("base64") => STANDARD.decode(&text).map_err(|error| error.to_string())?,
        Some(other) => return Err(format!("unknown encoding: {other}")),
    };
    Ok(OutputText { bytes, total })
}

impl Serialize for TaskResult {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (stdout, stdout_encoding) = in_words(&self.stdout);
        let (stderr, stderr_encoding) = in_words(&self.stderr);
        let (exit_code, signal) = match self.exit {
            Some(Exit::Code(code)) => (Some(code), None),
            Some(Exit::Signal { signal, .. }) => (None, Some(signal)),
            Some(Exit::Unknown) | None => (None, None),
        };
        ResultWire {
            id: self.id,
            success: self.success(),
            stdout,
            stderr,
            stdout_encoding,
            stderr_encoding,
            stdout_bytes: self.stdout.total,
            stderr_bytes: self.stderr.total,
            truncated: self.stdout.is_cut() || self.stderr.is_cut(),
            exit_code,
            signal,
            ended: self.ended,
            by_force: self.by_force,
            duration_s: self.duration.as_secs_f64(),
            pid: self.pid,
            cached: self.cached,
            attempts: self.attempts,
            resource_usage: self.usage,
            error: self.error.clone(),
            failure: self.failure.clone(),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for TaskResult {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<TaskResult, D::Error> {
        let wire = ResultWire::deserialize(deserializer)?;
        let bad = serde::de::Error::custom;
        Ok(TaskResult {
            id: wire.id,
            stdout: as_bytes(wire.stdout, wire.stdout_encoding.as_deref(), wire.stdout_bytes).map_err(bad)?,
            stderr: as_bytes(wire.stderr, wire.stderr_encoding.as_deref(), wire.stderr_bytes).map_err(bad)?,
            exit: match (wire.exit_code, wire.signal) {
                (Some(code), _) => Some(Exit::Code(code)),
                (None, Some(signal)) => Some(Exit::Signal { signal, core_dumped: false }),
                (None, None) => None,
            },
            ended: wire.ended,
            by_force: wire.by_force,
            duration: Duration::try_from_secs_f64(wire.duration_s).map_err(|e| bad(e.to_string()))?,
            pid: wire.pid,
            cached: wire.cached,
            attempts: wire.attempts,
            usage: wire.resource_usage,
            error: wire.error,
            failure: wire.failure,
        })
    }
}

#[cfg(feature = "control")]
impl schemars::JsonSchema for TaskResult {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TaskResult".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        ResultWire::json_schema(generator)
    }
}

/// The progress that a task reports of itself; a missing field keeps its earlier value.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ProgressReport {
    /// The progress, from 0 to 1.
    #[serde(default)]
    pub progress: Option<f64>,
    /// The number of bytes that the task has processed.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// What the task is doing.
    #[serde(default)]
    pub message: Option<String>,
}

/// The reported progress of a task, and the pace that follows from it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct TaskProgress {
    /// The progress, from 0 to 1; `null` when the task reported none.
    pub progress: Option<f64>,
    /// The number of bytes that the task has processed.
    pub bytes: Option<u64>,
    /// What the task is doing.
    pub message: Option<String>,
    /// The expected remaining seconds at the pace so far: runtime / progress x (1 - progress).
    pub eta_s: Option<f64>,
    /// Processed bytes a second so far.
    pub bytes_per_s: Option<f64>,
}

/// A task as lists show it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct TaskStatus {
    /// The id of the task.
    pub id: TaskId,
    /// The command, quoted as for a shell.
    pub command: String,
    /// The state of the task.
    pub state: TaskState,
    /// Whether the task succeeded, once it is finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success: Option<bool>,
    /// How the task ended, once it is finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<TaskEnd>,
    /// The exit code of the process, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended the process, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The priority in the queue: tasks with a higher one run first.
    pub priority: i32,
    /// The pid of the process, while it runs.
    pub pid: Option<u32>,
    /// The time at which the task was submitted.
    #[serde(with = "rfc3339")]
    #[cfg_attr(feature = "control", schemars(with = "String"))]
    pub submitted: SystemTime,
    /// How long the task has run, in seconds, or how long it ran if it is over.
    pub runtime_s: f64,
    /// The number of runs.
    pub attempts: u32,
    /// The number of bytes on both output streams.
    pub printed_bytes: u64,
    /// The progress, where the task reports any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<TaskProgress>,
    /// Whether the result is that of another task.
    pub cached: bool,
}
