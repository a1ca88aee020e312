//! The declaration of one service in a manifest, typed and checked.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::digest::fnv;
use super::exit::{Exit, signal_name, signal_number};
use super::id::{InstanceId, Name};
use super::time::{opt_seconds, seconds};
use super::words::words;

/// One `[service.NAME]` of a manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ServiceSpec {
    /// The name of the service.
    pub name: Name,
    /// The program and its arguments.
    pub command: CommandLine,
    /// Whether the service is to stay up or to run to completion.
    pub kind: Kind,
    /// The working directory, absolute.
    pub dir: PathBuf,
    /// The user, group, umask and priority that the processes run with.
    #[serde(default, skip_serializing_if = "RunAs::is_ours")]
    pub run_as: RunAs,
    /// How the environment differs from the supervisor's. It is never serialized.
    #[serde(skip)]
    pub env: EnvSpec,
    /// The conditions that must hold before the service starts.
    pub depends_on: Vec<Dependency>,
    /// How readiness is detected; `None`: the service is ready once it runs.
    pub ready: Option<ReadySpec>,
    /// How health is checked; `None`: the service is healthy while it is alive.
    pub health: Option<HealthSpec>,
    /// When and after what delay the service restarts.
    pub restart: RestartSpec,
    /// How the service is stopped.
    pub stop: StopSpec,
    /// The commands that run when something happens to the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<HookSpec>,
    /// How the output is kept in files; `None`: by the settings that hold for all services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogSpec>,
    /// The number of instances, at least 1. For a service with `scale`, the present number.
    pub replicas: u32,
    /// What the Scaler adjusts the number of instances by; `None`: it leaves the number alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<ScaleSpec>,
    /// Whether the service starts with the tree, without being named in a command.
    pub autostart: bool,
    /// What happens to the service when one of its dependencies crashes.
    #[serde(default)]
    pub on_dependency_restart: OnDependencyRestart,
    /// Whether a restart of its group runs the service again even when it has completed or its policy
    /// would keep it down.
    #[serde(default)]
    pub rerun: bool,
    /// Whether the service's end by itself counts for `auto_shutdown` of its group (OTP's significant
    /// child).
    #[serde(default)]
    pub significant: bool,
    /// The profiles that the service belongs to; empty: it belongs to all of them.
    pub profiles: Vec<String>,
    /// Free labels that commands select by.
    pub tags: Vec<String>,
    /// The project that the service belongs to, where a tree has several projects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The runner that starts the instances, by the name under which the program has brought it along
    /// ([`Options`](crate::runtime::Options)); `None`: they are processes of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<Name>,
    /// The fault of the manifest; while there is one, the service can't be started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// How the declaration is read again at each start; `None`: it is read only once.
    #[serde(skip)]
    pub renewal: Option<SpecRefresh>,
}

/// The means to read again the parts of a service outside its manifest. Env files count as they
/// are when the service starts (`EnvironmentFile=` of systemd.exec(5)).
#[derive(Clone)]
pub struct SpecRefresh {
    files: Arc<[PathBuf]>,
    /// A hash of everything in the manifest that the result depends on, before variables are put in.
    written: u64,
    read: Arc<ReadAgain>,
}

type ReadAgain = dyn Fn(&ServiceSpec) -> Result<ServiceSpec, String> + Send + Sync;

impl SpecRefresh {
    /// `read` turns a service as declared into the service as it is now, or says why it can't; it may
    /// wait for a disk. `written` must differ wherever `read` may give a different result.
    pub fn new(
        files: Vec<PathBuf>,
        written: u64,
        read: impl Fn(&ServiceSpec) -> Result<ServiceSpec, String> + Send + Sync + 'static,
    ) -> SpecRefresh {
        SpecRefresh { files: files.into(), written, read: Arc::new(read) }
    }

    /// The files that `read` reads.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

impl fmt::Debug for SpecRefresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SpecRefresh").field(&self.files).finish()
    }
}

impl PartialEq for SpecRefresh {
    /// Whether both would give the same result.
    fn eq(&self, other: &SpecRefresh) -> bool {
        self.files == other.files && self.written == other.written
    }
}

impl ServiceSpec {
    /// The service as it is when it starts now. The call may wait for a disk.
    ///
    /// # Errors
    /// A message for people, when a file of the service can't be read any more.
    pub fn renewed(self: &Arc<Self>) -> Result<Arc<ServiceSpec>, String> {
        match &self.renewal {
            None => Ok(Arc::clone(self)),
            Some(renewal) => (renewal.read)(self).map(Arc::new),
        }
    }
}

impl ServiceSpec {
    /// A service with the defaults of a manifest, for programs that build a plan themselves.
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
            runner: None,
            fault: None,
            renewal: None,
        }
    }

    /// The instances of the service, in order.
    pub fn instances(&self) -> impl Iterator<Item = InstanceId> + '_ {
        copies(&self.name, self.replicas, self.naming())
    }

    /// The largest number of copies: `max` of `scale`, otherwise `replicas`.
    pub fn most_copies(&self) -> u32 {
        self.scale.map_or(self.replicas, |scale| scale.max)
    }

    /// How the copies of the service are named.
    pub fn naming(&self) -> Naming {
        if self.scale.is_some() { Naming::Numbered } else { Naming::OneAlone }
    }
}

impl ServiceSpec {
    /// A hash of everything that a process of the service is made with. Where it differs, the process
    /// would differ, too. Every build computes the same number, because settings that are not set are
    /// left out.
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
        // Both halves of the hash count.
        u32::try_from((hash >> 32) ^ (hash & 0xffff_ffff)).unwrap_or_default()
    }
}

/// The ids of `count` copies of a service, in order; at least one.
pub fn copies(service: &Name, count: u32, naming: Naming) -> impl Iterator<Item = InstanceId> + '_ {
    let count = count.max(1);
    (1..=count).map(move |index| match (count, naming) {
        (1, Naming::OneAlone) => InstanceId::sole(service.clone()),
        (_, Naming::OneAlone | Naming::Numbered) => InstanceId::numbered(service.clone(), index),
    })
}

/// The copies that are removed and the copies that are added when `from` copies become `to`
/// copies.
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
    /// A single copy has the service's name; several copies have numbers.
    #[default]
    OneAlone,
    /// All copies have numbers, even a single one, so that copies keep their names when others come
    /// and go.
    Numbered,
}

impl Naming {
    /// Whether this is the naming of most services.
    pub fn is_usual(&self) -> bool {
        *self == Naming::OneAlone
    }
}

/// How the Scaler adjusts the number of copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ScaleSpec {
    /// The smallest number of copies.
    pub min: u32,
    /// The largest number of copies.
    pub max: u32,
    /// The target for the average usage of one copy.
    pub on: ScaleOn,
}

/// The usage that the number of copies follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ScaleOn {
    /// The most CPU for the whole process tree of a copy; 100 is one core.
    Cpu(u32),
    /// The most resident memory for a copy, in bytes.
    Memory(u64),
}

/// The default target for CPU, in percent of a core, where the manifest gives no number.
pub const SCALE_ON_CPU: u32 = 80;

/// The program and its arguments; the first word is the program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct CommandLine {
    /// The words as the kernel gets them. Never empty.
    pub argv: Vec<String>,
    /// Whether the manifest used `shell`, which makes `argv` `/bin/sh -c TEXT`.
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

/// `kind`: what a service is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The service stays up.
    Service,
    /// The service runs to completion; a success is final.
    Task,
}

words!(Kind { Service = "service", Task = "task" });

/// `user`, `group`, `umask` and `nice`; `None` keeps the supervisor's own setting.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct RunAs {
    /// The name or number of a user; the user's groups apply as well.
    pub user: Option<String>,
    /// The name or number of a group, in place of the user's own.
    pub group: Option<String>,
    /// The file mode creation mask (umask(2)).
    pub umask: Option<u32>,
    /// The scheduling priority, from -20 (highest) to 19.
    pub nice: Option<i32>,
}

impl RunAs {
    /// Whether nothing differs from the supervisor's own settings.
    pub fn is_ours(&self) -> bool {
        *self == RunAs::default()
    }
}

/// How a service's environment is made from the supervisor's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EnvSpec {
    /// Whether the environment starts empty, except for `PATH`, which programs are found by.
    pub clear: bool,
    /// Patterns of variables to drop from the inherited ones; `*` matches any run of characters.
    pub deny: Vec<String>,
    /// The variables that the manifest and its env files set, in order, without repeats.
    pub set: Vec<(String, String)>,
    /// The variables that hold secrets, with the names of the secrets; the values are not here.
    pub secrets: Vec<(String, Name)>,
}

/// One entry of `depends_on`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Dependency {
    /// The service that is waited for.
    pub on: Name,
    /// The condition that the service must meet.
    pub condition: Condition,
    /// When `false`, the dependent also starts if the dependency has failed for good or is absent.
    pub required: bool,
}

/// The condition of a dependency that a dependent waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// The process runs, or ran and completed.
    Started,
    /// The service is ready or has completed.
    Ready,
    /// The service ended with success.
    Completed,
    /// The service ended, successfully or not.
    Exited,
}

words!(Condition { Started = "started", Ready = "ready", Completed = "completed", Exited = "exited" });

/// The action that a check performs.
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
    /// What the check does.
    pub target: CheckTarget,
    /// Time between the end of one attempt and the next.
    #[serde(with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub interval: Duration,
    /// The longest time that one attempt may take before it is cut off.
    #[serde(with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub timeout: Duration,
    /// The number of successes in a row that count as good.
    pub successes: u32,
}

/// `ready`: how a service's readiness is detected, and by when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct ReadySpec {
    /// The kind of sign that shows readiness.
    #[serde(flatten)]
    pub target: ReadyTarget,
    /// The latest time after the start. A service that isn't ready by then is stopped with reason
    /// `timeout`.
    #[serde(with = "opt_seconds", default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "control", schemars(with = "Option<f64>"))]
    pub deadline: Option<Duration>,
}

/// The forms of `ready`: the sign that shows readiness.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ReadyTarget {
    /// A check is repeated until it succeeds.
    Check(Check),
    /// A line of output matches this regular expression.
    Log(String),
    /// The service has run for this long.
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

/// `health`: how a running service's health is checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct HealthSpec {
    /// The check that is repeated.
    pub check: Check,
    /// The number of failures in a row that make the service unhealthy.
    pub failures: u32,
    /// Failures within this time after the start don't count.
    #[serde(with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub start_period: Duration,
}

/// `restart.policy`: when a service restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The service never restarts.
    Never,
    /// The service restarts after a failure: an unsuccessful exit code, a signal that regrow did not
    /// send, a missed deadline, or a kill for bad health.
    OnFailure,
    /// The service restarts after every end.
    Always,
    /// The service restarts after every end; a stop by hand survives a restart of the supervisor.
    UnlessStopped,
}

words!(Policy {
    Never = "never",
    OnFailure = "on-failure",
    Always = "always",
    UnlessStopped = "unless-stopped",
});

/// `on_dependency_restart`: what happens to a running service when one of its dependencies crashes
/// and will restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnDependencyRestart {
    /// The service is stopped, dependents first, and starts again when the dependency is back.
    #[default]
    Restart,
    /// The service keeps running.
    Ignore,
}

words!(OnDependencyRestart { Restart = "restart", Ignore = "ignore" });

/// `restart`: when and how a service restarts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct RestartSpec {
    /// When the service restarts.
    pub policy: Policy,
    /// The most restarts in a row before the service stays `failed`; `None`: no limit.
    pub max_retries: Option<u32>,
    /// The uptime, counted from being ready, after which earlier failures are forgotten.
    #[serde(with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub reset_after: Duration,
    /// The growing delay between restarts.
    pub backoff: Backoff,
    /// The exit codes that count as a success.
    pub success_codes: Vec<i32>,
    /// Exits after which the service never restarts, checked before the policy.
    pub never_on: Vec<ExitMatch>,
    /// Exits after which the service always restarts, checked before the policy.
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

/// `restart.backoff`: restart n, from 0, waits `initial * factor^n`, at most `max`, spread by
/// jitter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct Backoff {
    /// The delay before the first restart; zero restarts at once.
    #[serde(with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub initial: Duration,
    /// The longest delay.
    #[serde(with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub max: Duration,
    /// The growth of the delay from one restart to the next, at least 1.
    pub factor: f64,
    /// The relative spread: 0.25 makes a delay 75 % to 125 % of itself.
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
    /// The process ended with this exit code.
    Code(i32),
    /// This signal ended the process.
    Signal(i32),
}

impl ExitMatch {
    /// Whether an exit is the one that the entry describes.
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
                .ok_or_else(|| serde::de::Error::custom(format!("{name:?} is not a signal"))),
        }
    }
}

/// `stop`: how a service is stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct StopSpec {
    /// The first signal, sent to every process of the service's tree.
    #[serde(with = "signal_text")]
    #[cfg_attr(feature = "control", schemars(with = "String"))]
    pub signal: i32,
    /// The time after which SIGKILL is sent.
    #[serde(with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub timeout: Duration,
    /// A command that asks the service to stop; the signal follows when the command has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandLine>,
}

impl Default for StopSpec {
    fn default() -> StopSpec {
        StopSpec { signal: 15, timeout: Duration::from_secs(10), command: None }
    }
}

/// `on`: commands that run when something happens, with the event in their environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
pub struct HookSpec {
    /// The commands, each with the moment that it runs at.
    pub commands: Vec<(Hook, CommandLine)>,
    /// The longest time that a command may take before it is killed.
    #[serde(with = "seconds")]
    #[cfg_attr(feature = "control", schemars(with = "f64"))]
    pub timeout: Duration,
}

/// `log`: how the output of a service is kept; `None` in a field keeps the setting for all
/// services.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct LogSpec {
    /// The place that the output is kept in.
    pub file: LogTarget,
    /// The size in bytes from which a log file is rotated.
    pub max_size: Option<u64>,
    /// The number of files to keep, including the one being written.
    pub max_files: Option<u32>,
    /// Whether rotated files are compressed.
    pub compress: Option<bool>,
    /// The owner of the file: `user`, `user:group` or `:group`, by name or number; `None`: the
    /// supervisor's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The permissions of the file (chmod(2)); `None`: its owner alone may read and write it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

/// Where a service's output is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(from = "Option<PathBuf>", into = "Option<PathBuf>")]
pub enum LogTarget {
    /// Files of the service's own in the state folder, one for each stream.
    #[default]
    StateFolder,
    /// This file, absolute; both streams go there in the order in which they arrive.
    File(PathBuf),
    /// No file: the output goes to the supervisor's own standard output and standard error.
    Inherit,
}

/// The word that a manifest uses for [`LogTarget::Inherit`]; a file path is absolute and never
/// equals it.
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

/// The size from which a log file is rotated, in bytes, unless the manifest gives another.
pub const MAX_SIZE: u64 = 100 << 20;
/// The most log files that a manifest can ask for: each one is renamed at every rotation.
pub const MOST_FILES: u32 = 1_000;
/// The number of log files that are kept, unless the manifest gives another.
pub const MAX_FILES: u32 = 5;

impl LogSpec {
    /// The log file of an instance: each copy has its own, as `web.log` becomes `web.2.log`.
    ///
    /// ```
    /// use regrow::model::{InstanceId, LogSpec, LogTarget, Name};
    /// let log = LogSpec { file: LogTarget::File("/srv/web.log".into()), ..LogSpec::default() };
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

/// The log file to which a file of this name belongs since a rotation; `None` for any other name.
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

/// A signal in its text form, as in a manifest.
mod signal_text {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::model::exit::{signal_name, signal_number};

    pub(super) fn serialize<S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&signal_name(*value))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
        let text = String::deserialize(deserializer)?;
        signal_number(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a signal")))
    }
}

/// The moment at which a command of `on` runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "control", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// The instance became ready.
    Ready,
    /// The instance has failed and will not come back.
    Fail,
    /// The process ended and the instance will restart.
    Retry,
    /// The instance stopped because somebody asked.
    Stop,
    /// The process and its whole tree are gone, for whatever reason.
    Exit,
}

impl Hook {
    /// All hooks, in the order of their declaration.
    pub const ALL: [Hook; 5] = [Hook::Ready, Hook::Fail, Hook::Retry, Hook::Stop, Hook::Exit];

    /// The key of the hook in a manifest.
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
