//! Commands that are run once: what is asked for, how one stands, and what became of it.

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

/// A task's id: unique, and in the order of time (UUID version 7, RFC 9562).
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
    /// Nothing.
    #[default]
    Nothing,
    /// This text.
    Text(String),
    /// These bytes, in base64.
    Base64(String),
    /// What a file holds, by its absolute path.
    File(PathBuf),
}

impl TaskInput {
    /// Bytes, as text where they are that.
    pub fn of(bytes: Vec<u8>) -> TaskInput {
        match String::from_utf8(bytes) {
            Ok(text) if text.is_empty() => TaskInput::Nothing,
            Ok(text) => TaskInput::Text(text),
            Err(error) => TaskInput::Base64(STANDARD.encode(error.as_bytes())),
        }
    }

    /// What of it is here; `None`: it is in a file. An error where that is not what it says.
    pub fn bytes(&self) -> Result<Option<Vec<u8>>, String> {
        match self {
            TaskInput::Nothing => Ok(Some(Vec::new())),
            TaskInput::Text(text) => Ok(Some(text.clone().into_bytes())),
            TaskInput::Base64(text) => STANDARD.decode(text).map(Some).map_err(|error| error.to_string()),
            TaskInput::File(_) => Ok(None),
        }
    }
}

/// A command that is to be run once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct TaskSpec {
    /// What.
    pub command: CommandLine,
    /// In this folder, absolute; `None`: the supervisor's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// With these variables, which it has in common with others that came with it ...
    #[serde(skip)]
    #[cfg_attr(feature = "control", schemars(skip))]
    pub common_env: Arc<Vec<(String, String)>>,
    /// ... and with these, which win over those.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// And with none of the supervisor's own, `PATH` aside.
    #[serde(default)]
    pub env_clear: bool,
    /// What it reads.
    #[serde(default)]
    pub input: TaskInput,
    /// It is ended when it has run for so long.
    #[serde(default, with = "opt_seconds", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "control", schemars(with = "Option<f64>"))]
    pub timeout: Option<Duration>,
    /// Who is ended gets SIGTERM, and after so long SIGKILL.
    #[serde(default = "grace", with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub grace: Duration,
    /// Higher ones are run first.
    #[serde(default)]
    pub priority: i32,
    /// So often it is run again when it fails.
    #[serde(default)]
    pub retries: u32,
    /// After so long the first time, and each time twice as long.
    #[serde(default = "retry_delay", with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub retry_delay: Duration,
    /// A success of the same command within so long is taken for this one's, and this one's for later ones.
    #[serde(default, with = "opt_seconds", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "control", schemars(with = "Option<f64>"))]
    pub cache: Option<Duration>,
    /// Of its environment only these variables are part of what the result is one of; `None`: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_env: Option<Vec<String>>,
}

/// Tasks that are ended have so long for it.
pub const GRACE: Duration = Duration::from_secs(30);
/// A task that has failed is run again after so long.
pub const RETRY_DELAY: Duration = Duration::from_secs(1);

fn grace() -> Duration {
    GRACE
}

fn retry_delay() -> Duration {
    RETRY_DELAY
}

impl TaskSpec {
    /// A command without anything else.
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

    /// The same of a text for /bin/sh.
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

/// How a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// It waits for a worker.
    Queued,
    /// It runs.
    Running,
    /// It is halted.
    Paused,
    /// It is being ended.
    Stopping,
    /// It has failed, and is run again in a while.
    Retrying,
    /// It waits for one that runs the same command for it, too.
    Joined,
    /// It is over.
    Finished,
}

impl TaskState {
    /// All of them.
    pub const ALL: [TaskState; 7] = [
        TaskState::Queued,
        TaskState::Running,
        TaskState::Paused,
        TaskState::Stopping,
        TaskState::Retrying,
        TaskState::Joined,
        TaskState::Finished,
    ];

    /// As every output spells it.
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

/// How a task came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TaskEnd {
    /// Its process ended by itself, well or badly.
    Exited,
    /// It was not done in time, and was ended.
    TimedOut,
    /// Somebody cancelled it.
    Cancelled,
    /// No process came to be.
    NotStarted,
    /// Whoever ran it broke, or was taken down.
    Lost,
}

impl TaskEnd {
    /// As every output spells it.
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

/// What the kernel counted for a process and those of its children that it waited for (wait4(2)).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ResourceUsage {
    /// CPU of the program itself.
    #[serde(with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub user_s: Duration,
    /// CPU of the kernel on its behalf.
    #[serde(with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub system_s: Duration,
    /// The most memory that was resident at a time. The kernel begins to count before the program does:
    /// it is never less than what the supervisor had when it made the process.
    pub peak_memory_bytes: u64,
    /// Page faults that needed no reading.
    pub minor_faults: u64,
    /// Page faults that did.
    pub major_faults: u64,
    /// Read from disks.
    pub read_bytes: u64,
    /// Written to disks.
    pub written_bytes: u64,
    /// How often it gave the CPU up by itself.
    pub voluntary_switches: u64,
    /// And how often it had to.
    pub involuntary_switches: u64,
}

/// Bytes of output as text where they are UTF-8, else in base64, which is said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutputText {
    /// What of it is at hand.
    pub bytes: Vec<u8>,
    /// How many there were.
    pub total: u64,
}

impl OutputText {
    /// Whether it is not all of it.
    pub fn is_cut(&self) -> bool {
        (self.bytes.len() as u64) < self.total
    }
}

/// What became of a task: the same object for a success, a failure, and what could not be started.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskResult {
    /// Which.
    pub id: TaskId,
    /// What it printed.
    pub stdout: OutputText,
    /// What it complained of.
    pub stderr: OutputText,
    /// How its process ended, if there was one.
    pub exit: Option<Exit>,
    /// How the task ended.
    pub ended: TaskEnd,
    /// SIGKILL had to end it.
    pub by_force: bool,
    /// From the start of its process to its end.
    pub duration: Duration,
    /// Its process.
    pub pid: Option<u32>,
    /// It is another one's, which ran before, or for this one too.
    pub cached: bool,
    /// How often it was run.
    pub attempts: u32,
    /// What the kernel counted.
    pub usage: Option<ResourceUsage>,
    /// What went wrong, in words.
    pub error: Option<String>,
    /// Why there was no process.
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
    /// `base64` where the output is no UTF-8 text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stdout_encoding: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stderr_encoding: Option<String>,
    /// How much there was; only the first part of it is here where that is more.
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
    /// Why there was no process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failure: Option<SpawnFailure>,
}

fn in_words(printed: &OutputText) -> (String, Option<String>) {
    match std::str::from_utf8(&printed.bytes) {
        Ok(text) => (text.to_owned(), None),
        // A character may have been cut in two.
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
        Some(other) => return Err(format!("an encoding of unknown name: {other}")),
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

/// How far a task has come, as it says itself; what it does not say stays as it was.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ProgressReport {
    /// From 0 to 1.
    #[serde(default)]
    pub progress: Option<f64>,
    /// Bytes that it has worked on.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// What it is at.
    #[serde(default)]
    pub message: Option<String>,
}

/// That, and what follows from it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct TaskProgress {
    /// From 0 to 1; `null`: it has not said.
    pub progress: Option<f64>,
    /// Bytes that it has worked on.
    pub bytes: Option<u64>,
    /// What it is at.
    pub message: Option<String>,
    /// So many seconds are left, at the pace so far: runtime / progress x (1 - progress).
    pub eta_s: Option<f64>,
    /// Bytes a second, so far.
    pub bytes_per_s: Option<f64>,
}

/// A task as lists show it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct TaskStatus {
    /// Which.
    pub id: TaskId,
    /// The command, as a shell would take it.
    pub command: String,
    /// How it stands.
    pub state: TaskState,
    /// Once it is finished: whether it was a success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success: Option<bool>,
    /// Once it is finished: how it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<TaskEnd>,
    /// Its exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Higher ones are run first.
    pub priority: i32,
    /// Its process, while it runs.
    pub pid: Option<u32>,
    /// When it was submitted.
    #[serde(with = "rfc3339")]
    #[cfg_attr(feature = "control", schemars(with = "String"))]
    pub submitted: SystemTime,
    /// For how long it has run, or ran.
    pub runtime_s: f64,
    /// How often it was run.
    pub attempts: u32,
    /// Bytes that it has printed.
    pub printed_bytes: u64,
    /// How far it has come, where it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<TaskProgress>,
    /// Whether it has the result of another.
    pub cached: bool,
}
