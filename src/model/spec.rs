//! What a manifest declares of one service, typed and checked.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::digest::fnv;
use super::exit::{Exit, signal_name, signal_number};
use super::id::{InstanceId, Name};
use super::time::{opt_seconds, seconds};

/// One `[service.NAME]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ServiceSpec {
    /// Its name.
    pub name: Name,
    /// The program and its arguments.
    pub command: CommandLine,
    /// Whether it is to stay up or to run to completion.
    pub kind: Kind,
    /// Working folder, absolute.
    pub dir: PathBuf,
    /// Whom it runs as, and how.
    #[serde(default, skip_serializing_if = "RunAs::is_ours")]
    pub run_as: RunAs,
    /// How its environment differs from the supervisor's.
    #[serde(skip)]
    pub env: EnvSpec,
    /// What must be true before it starts.
    pub depends_on: Vec<Dependency>,
    /// How to tell that it is ready; `None`: once running.
    pub ready: Option<ReadySpec>,
    /// How to tell that it is healthy; `None`: while alive.
    pub health: Option<HealthSpec>,
    /// When and how it comes back.
    pub restart: RestartSpec,
    /// How it is stopped.
    pub stop: StopSpec,
    /// Commands that are run when something happens to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<HookSpec>,
    /// How what it prints is kept in files; `None`: as it is for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogSpec>,
    /// Number of instances, at least 1; of one that is scaled, those that there are at first, and by now.
    pub replicas: u32,
    /// By what the Scaler changes their number; `None`: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<ScaleSpec>,
    /// Whether it starts with the tree, without being asked for by name.
    pub autostart: bool,
    /// What becomes of it when something that it depends on falls.
    #[serde(default)]
    pub on_dependency_restart: OnDependencyRestart,
    /// Whether a restart of its group runs it again though it has completed, or would stay
    /// down by its policy.
    #[serde(default)]
    pub rerun: bool,
    /// Whether its end by itself counts for `auto_shutdown` of its group (OTP's significant
    /// child).
    #[serde(default)]
    pub significant: bool,
    /// Profiles it belongs to; none: all.
    pub profiles: Vec<String>,
    /// Free labels that commands select by.
    pub tags: Vec<String>,
    /// The project that it belongs to, where a tree has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// What is wrong with its manifest: it can't be started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// How it is read again when it starts; `None`: it stays as it was read once.
    #[serde(skip)]
    pub renewal: Option<SpecRefresh>,
}

/// Reads again what a service is made of outside of its manifest: its env files, which count as they are
/// when it starts (`EnvironmentFile=` of systemd.exec(5)).
#[derive(Clone)]
pub struct SpecRefresh {
    files: Arc<[PathBuf]>,
    /// A number for all that is read with them: what the manifest says, before anything is put in.
    written: u64,
    read: Arc<ReadAgain>,
}

type ReadAgain = dyn Fn(&ServiceSpec) -> Result<ServiceSpec, String> + Send + Sync;

impl SpecRefresh {
    /// `read` makes of a service as it was declared what it is now, or says why it can't be. It may wait
    /// for a disk. `written`: another number where something else may come of it.
    pub fn new(
        files: Vec<PathBuf>,
        written: u64,
        read: impl Fn(&ServiceSpec) -> Result<ServiceSpec, String> + Send + Sync + 'static,
    ) -> SpecRefresh {
        SpecRefresh { files: files.into(), written, read: Arc::new(read) }
    }

    /// The files that it reads.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

impl fmt::Debug for SpecRefresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Renewal").field(&self.files).finish()
    }
}

impl PartialEq for SpecRefresh {
    /// Whether the same would come of it.
    fn eq(&self, other: &SpecRefresh) -> bool {
        self.files == other.files && self.written == other.written
    }
}

impl ServiceSpec {
    /// What it is when it starts now. It may wait for a disk.
    ///
    /// # Errors
    /// Words for people, where what it is made of can't be read any more.
    pub fn renewed(self: &Arc<Self>) -> Result<Arc<ServiceSpec>, String> {
        match &self.renewal {
            None => Ok(Arc::clone(self)),
            Some(renewal) => (renewal.read)(self).map(Arc::new),
        }
    }
}

impl ServiceSpec {
    /// A service with the contract's defaults, for programs that build a plan themselves.
    ///
    /// ```
    /// use regrow::model::{Name, ServiceSpec};
    /// let spec = ServiceSpec::new(Name::new("ticker").unwrap(), ["sleep", "60"]);
    /// assert_eq!(spec.command.argv[0], "sleep");
    /// ```
    pub fn new<I, S>(name: Name, argv: I) -> ServiceSpec
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        ServiceSpec {
            name,
            command: CommandLine { argv: argv.into_iter().map(Into::into).collect(), shell: false },
            kind: Kind::Service,
            dir: PathBuf::from("."),
            run_as: RunAs::default(),
            env: EnvSpec::default(),
            depends_on: Vec::new(),
            ready: None,
            health: None,
            restart: RestartSpec::default(),
            stop: StopSpec::default(),
            on: None,
            log: None,
            replicas: 1,
            scale: None,
            autostart: true,
            on_dependency_restart: OnDependencyRestart::Restart,
            rerun: false,
            significant: false,
            profiles: Vec::new(),
            tags: Vec::new(),
            project: None,
            fault: None,
            renewal: None,
        }
    }

    /// Its instances, in order.
    pub fn instances(&self) -> impl Iterator<Item = InstanceId> + '_ {
        copies(&self.name, self.replicas, self.naming())
    }

    /// So many copies there are at most.
    pub fn most_copies(&self) -> u32 {
        self.scale.map_or(self.replicas, |scale| scale.max)
    }

    /// How its copies are named.
    pub fn naming(&self) -> Naming {
        if self.scale.is_some() { Naming::Numbered } else { Naming::OneAlone }
    }
}

impl ServiceSpec {
    /// A number for all that a process of it is made with: where it is another, the process would be,
    /// too. The same by every build: what is not set is not counted.
    pub fn spawn_fingerprint(&self) -> u32 {
        let mut text: Vec<u8> = Vec::new();
        let mut add = |key: &str, words: &[&str]| {
            for word in [key].iter().chain(words) {
                text.extend(word.as_bytes());
                text.push(0);
            }
            text.push(1);
        };
        let CommandLine { argv, shell } = &self.command;
        add(if *shell { "shell" } else { "command" }, &argv.iter().map(String::as_str).collect::<Vec<_>>());
        add("dir", &[&self.dir.to_string_lossy()]);
        let RunAs { user, group, umask, nice } = &self.run_as;
        let (umask, nice) = (umask.map(|n| n.to_string()), nice.map(|n| n.to_string()));
        for (key, value) in [("user", user), ("group", group), ("umask", &umask), ("nice", &nice)] {
            if let Some(value) = value {
                add(key, &[value]);
            }
        }
        let EnvSpec { clear, deny, set, secrets } = &self.env;
        if *clear {
            add("env_clear", &[]);
        }
        for pattern in deny {
            add("env_deny", &[pattern]);
        }
        for (name, value) in set {
            add("env", &[name, value]);
        }
        for (name, secret) in secrets {
            add("secret", &[name, secret.as_str()]);
        }
        let hash = fnv(&text);
        // Both halves count.
        u32::try_from((hash >> 32) ^ (hash & 0xffff_ffff)).unwrap_or_default()
    }
}

/// So many copies of a service, in order; at least one.
pub fn copies(service: &Name, count: u32, naming: Naming) -> impl Iterator<Item = InstanceId> + '_ {
    let count = count.max(1);
    (1..=count).map(move |index| match (count, naming) {
        (1, Naming::OneAlone) => InstanceId::sole(service.clone()),
        (_, Naming::OneAlone | Naming::Numbered) => InstanceId::numbered(service.clone(), index),
    })
}

/// The copies that go, and those that come, when there are to be so many.
pub fn scaled(service: &Name, from: u32, to: u32, naming: Naming) -> (Vec<InstanceId>, Vec<InstanceId>) {
    let all = |count| copies(service, count, naming).collect::<Vec<_>>();
    let (was, is) = (all(from), all(to));
    let gone = was.iter().filter(|id| !is.contains(id)).cloned().collect();
    let came = is.iter().filter(|id| !was.contains(id)).cloned().collect();
    (gone, came)
}

/// How the copies of a service are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Naming {
    /// One alone has the service's name, several have numbers.
    #[default]
    OneAlone,
    /// All have numbers, also one alone: those that stay keep their names when others come and go.
    Numbered,
}

impl Naming {
    /// Whether it is that of most services.
    pub fn is_usual(&self) -> bool {
        *self == Naming::OneAlone
    }
}

/// How the Scaler changes the number of copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ScaleSpec {
    /// So many at least.
    pub min: u32,
    /// And at most.
    pub max: u32,
    /// What each of them is to use at most, on the average.
    pub on: ScaleOn,
}

/// What the number of copies follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ScaleOn {
    /// CPU of a copy's whole tree; 100 is one core.
    Cpu(u32),
    /// Its resident memory, in bytes.
    Memory(u64),
}

/// Percent of a core that a copy is to use at most, where the manifest says no number.
pub const SCALE_ON_CPU: u32 = 80;

/// The program that runs and its arguments; the first word is the program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct CommandLine {
    /// Words as the kernel gets them. Never empty.
    pub argv: Vec<String>,
    /// Whether the manifest said `shell`, so that `argv` is `/bin/sh -c TEXT`.
    pub shell: bool,
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.shell {
            return f.write_str(self.argv.last().map_or("", String::as_str));
        }
        for (at, word) in self.argv.iter().enumerate() {
            if at > 0 {
                f.write_str(" ")?;
            }
            match shlex::try_quote(word) {
                Ok(quoted) => f.write_str(&quoted)?,
                Err(_) => write!(f, "{word:?}")?,
            }
        }
        Ok(())
    }
}

/// `kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// To stay up.
    Service,
    /// To run to completion; a success is final.
    Task,
}

/// `user`, `group`, `umask`, `nice`: `None` is the supervisor's own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct RunAs {
    /// A user's name or number; its groups come with it.
    pub user: Option<String>,
    /// A group's name or number, in place of the user's own.
    pub group: Option<String>,
    /// The mask of files that it makes (umask(2)).
    pub umask: Option<u32>,
    /// Its priority, from -20 (first) to 19.
    pub nice: Option<i32>,
}

impl RunAs {
    /// Nothing of it is said.
    pub fn is_ours(&self) -> bool {
        *self == RunAs::default()
    }
}

/// How a service's environment is made from the supervisor's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EnvSpec {
    /// Start from nothing (`PATH` aside, without which no program is found).
    pub clear: bool,
    /// Patterns (`*` matches any run of characters) taken out of what is inherited.
    pub deny: Vec<String>,
    /// What the manifest and its env files set, in order, without repeats.
    pub set: Vec<(String, String)>,
    /// Variables that are secrets, by the names of these; the values are nowhere here.
    pub secrets: Vec<(String, Name)>,
}

/// One entry of `depends_on`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Dependency {
    /// The service waited for.
    pub on: Name,
    /// What must be true of it.
    pub condition: Condition,
    /// `false`: its final failure, or its absence, lets the dependent start all the same.
    pub required: bool,
}

/// What a dependent waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// Its process runs (or ran and completed).
    Started,
    /// It is ready (or has completed).
    Ready,
    /// It ended with success.
    Completed,
    /// It ended, however.
    Exited,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Condition::Started => "started",
            Condition::Ready => "ready",
            Condition::Completed => "completed",
            Condition::Exited => "exited",
        })
    }
}

/// What a check does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CheckTarget {
    /// Connect to `HOST:PORT`.
    Tcp(String),
    /// GET an `http://` URL; 200 to 399 is a success.
    Http(String),
    /// Run a command; exit code 0 is a success.
    Exec(CommandLine),
}

impl fmt::Display for CheckTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckTarget::Tcp(address) => write!(f, "tcp {address}"),
            CheckTarget::Http(url) => write!(f, "http {url}"),
            CheckTarget::Exec(command) => write!(f, "exec {command}"),
        }
    }
}

/// A check and how often it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Check {
    /// What it does.
    pub target: CheckTarget,
    /// Time between the end of one attempt and the next.
    #[serde(with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub interval: Duration,
    /// How long one attempt may take before it is cut off.
    #[serde(with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub timeout: Duration,
    /// Successes in a row that count as good.
    pub successes: u32,
}

/// `ready`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ReadySpec {
    /// How it shows.
    #[serde(flatten)]
    pub target: ReadyTarget,
    /// Not ready this long after its start: it is ended, reason `timeout`.
    #[serde(with = "opt_seconds", default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "control", schemars(with = "Option<f64>"))]
    pub deadline: Option<Duration>,
}

/// The forms of `ready`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ReadyTarget {
    /// A check that is repeated until it succeeds.
    Check(Check),
    /// A line of its output matches this regular expression.
    Log(String),
    /// It has run for this long.
    After(
        #[serde(with = "seconds")]
        #[cfg_attr(feature = "control", schemars(with = "f64"))]
        Duration,
    ),
}

impl fmt::Display for ReadyTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadyTarget::Check(check) => write!(f, "{}", check.target),
            ReadyTarget::Log(regex) => write!(f, "log /{regex}/"),
            ReadyTarget::After(delay) => write!(f, "after {}", humantime::format_duration(*delay)),
        }
    }
}

/// `health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct HealthSpec {
    /// The check.
    pub check: Check,
    /// Failures in a row that make it unhealthy.
    pub failures: u32,
    /// Failures this early after the start don't count.
    #[serde(with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub start_period: Duration,
}

/// When a service comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Never.
    Never,
    /// After a failure: a code that is no success, a signal regrow did not send, a
    /// missed deadline, a health kill.
    OnFailure,
    /// After every end.
    Always,
    /// After every end; a stop by hand outlives a restart of the supervisor.
    UnlessStopped,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Policy::Never => "never",
            Policy::OnFailure => "on-failure",
            Policy::Always => "always",
            Policy::UnlessStopped => "unless-stopped",
        })
    }
}

/// `on_dependency_restart`: what becomes of a running service when something that it depends
/// on falls and will return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnDependencyRestart {
    /// It is stopped, dependents first, and starts again when the other is back.
    #[default]
    Restart,
    /// It runs on.
    Ignore,
}

/// `restart`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct RestartSpec {
    /// When it comes back.
    pub policy: Policy,
    /// How often in a row it comes back before it stays `failed`; `None`: no limit.
    pub max_retries: Option<u32>,
    /// Uptime after which earlier failures are forgotten.
    #[serde(with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub reset_after: Duration,
    /// The growing delay between attempts.
    pub backoff: Backoff,
    /// Exit codes that are a success.
    pub success_codes: Vec<i32>,
    /// Ends after which it never comes back, before policy is asked.
    pub never_on: Vec<ExitMatch>,
    /// Ends after which it always comes back, before policy is asked.
    pub always_on: Vec<ExitMatch>,
}

impl Default for RestartSpec {
    fn default() -> RestartSpec {
        RestartSpec {
            policy: Policy::OnFailure,
            max_retries: None,
            reset_after: Duration::from_secs(60),
            backoff: Backoff::default(),
            success_codes: vec![0],
            never_on: Vec::new(),
            always_on: Vec::new(),
        }
    }
}

/// `restart.backoff`: attempt n waits `initial * factor^n`, at most `max`, spread by jitter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Backoff {
    /// Delay before the first return; zero for at once.
    #[serde(with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub initial: Duration,
    /// The longest delay.
    #[serde(with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub max: Duration,
    /// Growth from one attempt to the next, at least 1.
    pub factor: f64,
    /// Spread: 0.25 makes a delay 75 % to 125 % of itself.
    pub jitter: f64,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff {
            initial: Duration::from_millis(100),
            max: Duration::from_secs(30),
            factor: 2.0,
            jitter: 0.25,
        }
    }
}

/// One entry of `never_on` or `always_on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitMatch {
    /// This exit code.
    Code(i32),
    /// This signal.
    Signal(i32),
}

impl ExitMatch {
    /// Whether an end is this one.
    pub fn matches(self, exit: Exit) -> bool {
        match (self, exit) {
            (ExitMatch::Code(want), Exit::Code(code)) => want == code,
            (ExitMatch::Signal(want), Exit::Signal { signal, .. }) => want == signal,
            (ExitMatch::Code(_), Exit::Signal { .. } | Exit::Unknown)
            | (ExitMatch::Signal(_), Exit::Code(_) | Exit::Unknown) => false,
        }
    }
}

impl Serialize for ExitMatch {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            ExitMatch::Code(code) => serializer.serialize_i32(*code),
            ExitMatch::Signal(signal) => serializer.serialize_str(&signal_name(*signal)),
        }
    }
}

impl<'de> Deserialize<'de> for ExitMatch {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<ExitMatch, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Code(i32),
            Signal(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Code(code) => Ok(ExitMatch::Code(code)),
            Either::Signal(name) => signal_number(&name)
                .map(ExitMatch::Signal)
                .ok_or_else(|| serde::de::Error::custom(format!("{name:?} is no signal"))),
        }
    }
}

/// `stop`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct StopSpec {
    /// The first signal, to the whole tree of the service.
    #[serde(with = "signal_text")]
    #[cfg_attr(feature = "control", schemars(with = "String"))]
    pub signal: i32,
    /// How long it may take before SIGKILL.
    #[serde(with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub timeout: Duration,
    /// A command that asks it to stop; the signal follows when the command has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandLine>,
}

impl Default for StopSpec {
    fn default() -> StopSpec {
        StopSpec { signal: 15, timeout: Duration::from_secs(10), command: None }
    }
}

/// `on`: commands that are run when something happens, with the event in their environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct HookSpec {
    /// What is run when.
    pub commands: Vec<(Hook, CommandLine)>,
    /// How long each may take before it is killed.
    #[serde(with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub timeout: Duration,
}

/// `log`: `None` is what holds for all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct LogSpec {
    /// Where it goes.
    pub file: LogTarget,
    /// Bytes from which on a file is put aside and another begun.
    pub max_size: Option<u64>,
    /// How many there are, the one that grows included.
    pub max_files: Option<u32>,
    /// Whether those that were put aside are compressed.
    pub compress: Option<bool>,
    /// Whose the file is: `user`, `user:group` or `:group`, by name or number; `None`: the supervisor's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Who may read and write it (chmod(2)); `None`: its owner alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

/// Where a service's output is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(from = "Option<PathBuf>", into = "Option<PathBuf>")]
pub enum LogTarget {
    /// In files of its own in the state folder, one for each stream.
    #[default]
    StateFolder,
    /// In this file, absolute, both streams as they come.
    File(PathBuf),
    /// In none: it goes to the supervisor's own standard output and standard error.
    Inherit,
}

/// How a manifest spells [`LogTarget::Inherit`]; a file is absolute, and never this.
pub const INHERIT: &str = "inherit";

impl From<Option<PathBuf>> for LogTarget {
    fn from(file: Option<PathBuf>) -> LogTarget {
        match file {
            None => LogTarget::StateFolder,
            Some(file) if file.as_os_str() == INHERIT => LogTarget::Inherit,
            Some(file) => LogTarget::File(file),
        }
    }
}

impl From<LogTarget> for Option<PathBuf> {
    fn from(to: LogTarget) -> Option<PathBuf> {
        match to {
            LogTarget::StateFolder => None,
            LogTarget::File(file) => Some(file),
            LogTarget::Inherit => Some(INHERIT.into()),
        }
    }
}

/// A log file that has grown to so many bytes is put aside, unless something else is said.
pub const MAX_SIZE: u64 = 100 << 20;
/// More log files than this can't be asked for: each is renamed whenever one is put aside.
pub const MOST_FILES: u32 = 1_000;
/// So many log files are kept, unless something else is said.
pub const MAX_FILES: u32 = 5;

impl LogSpec {
    /// The file of an instance: each copy has one of its own, `web.log` becomes `web.2.log`.
    ///
    /// ```
    /// use regrow::model::{InstanceId, LogSpec, LogTo, Name};
    /// let log = LogSpec { file: LogTo::File("/srv/web.log".into()), ..LogSpec::default() };
    /// let copy = InstanceId::numbered(Name::new("web").unwrap(), 2);
    /// assert_eq!(log.file_of(&copy), Some("/srv/web.2.log".into()));
    /// ```
    pub fn file_of(&self, instance: &InstanceId) -> Option<PathBuf> {
        let LogTarget::File(file) = &self.file else {
            return None;
        };
        let Some(index) = instance.index() else {
            return Some(file.clone());
        };
        let mut name = file.file_stem()?.to_owned();
        name.push(format!(".{index}"));
        if let Some(extension) = file.extension() {
            name.push(".");
            name.push(extension);
        }
        Some(file.with_file_name(name))
    }
}

/// The file that one of this name would have been before it was put aside.
///
/// ```
/// use std::path::Path;
/// use regrow::model::spec::put_aside_of;
/// assert_eq!(put_aside_of(Path::new("web.log.3.gz")), Some(Path::new("web.log")));
/// assert_eq!(put_aside_of(Path::new("web.log")), None);
/// ```
pub fn put_aside_of(path: &Path) -> Option<&Path> {
    let text = path.to_str()?;
    let plain = text.strip_suffix(".gz").unwrap_or(text);
    let (file, number) = plain.rsplit_once('.')?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let of = if is_number { Some(file) } else { text.strip_suffix(".gz.part") };
    of.or_else(|| text.strip_suffix(".next")).map(Path::new)
}

/// A signal as people name it.
mod signal_text {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::model::exit::{signal_name, signal_number};

    pub(super) fn serialize<S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&signal_name(*value))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
        let text = String::deserialize(deserializer)?;
        signal_number(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no signal")))
    }
}

/// When a command of `on` is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// It became ready.
    Ready,
    /// It will not come back.
    Fail,
    /// It fell and will come back.
    Retry,
    /// It rests, because somebody asked.
    Stop,
    /// Its process, and all of its tree, is gone, however.
    Exit,
}

impl Hook {
    /// All of them.
    pub const ALL: [Hook; 5] = [Hook::Ready, Hook::Fail, Hook::Retry, Hook::Stop, Hook::Exit];

    /// Its key in a manifest.
    pub fn key(self) -> &'static str {
        match self {
            Hook::Ready => "ready",
            Hook::Fail => "fail",
            Hook::Retry => "retry",
            Hook::Stop => "stop",
            Hook::Exit => "exit",
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key())
    }
}
