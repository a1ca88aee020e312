//! The daemon's configuration: where its file is found, what it says, and the defaults for the
//! rest.
//!
//! Nothing is opened or started here but the file itself.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use diagnostics::{DiagnosticsConfig, LogFormat, LogLevel};
pub use tasks::TasksConfig;
use tasks::{CacheKeys, PoolKeys, TaskKeys, ThresholdKeys};

use super::size::Size;
use crate::decide::access::Permission;
use crate::model::spec::{MAX_FILES, MAX_SIZE, MOST_FILES};

pub mod diagnostics;
mod tasks;

/// The documented configuration file, in which every value is the default.
pub const DEFAULT: &str = include_str!("../../config/regrow.toml");

/// The whole configuration, with absolute paths.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file that the configuration comes from; `None` where there is no file.
    pub file: Option<PathBuf>,
    /// The folder of the manifests.
    pub manifests: PathBuf,
    /// The profiles whose services start with the tree.
    pub profiles: Vec<String>,
    /// Whether the folder of the manifests is watched, and read again when it changes.
    pub watch: bool,
    /// How long a stop of the whole tree may take; `None` means no limit.
    pub stop_timeout: Option<Duration>,
    /// The daemon's own folder, within the state folder.
    pub home: PathBuf,
    /// The path of the control socket.
    pub socket: PathBuf,
    /// The path of the store's database, or `:memory:`.
    pub store: PathBuf,
    /// The number of events that the store keeps.
    pub events: u64,
    /// How long the store keeps samples of resources.
    pub samples: Duration,
    /// The folder for what services print.
    pub logs: PathBuf,
    /// The size in bytes at which a log file is rotated.
    pub log_size: u64,
    /// The number of log files that are kept of each output stream.
    pub log_files: u32,
    /// Whether rotated log files are compressed.
    pub log_compress: bool,
    /// The folder of the secrets.
    pub secrets: PathBuf,
    /// The time between two samples of resources.
    pub sample_interval: Duration,
    /// How the worker pool runs commands.
    pub tasks: TasksConfig,
    /// The network API; `None` where it is not configured.
    pub api: Option<Api>,
    /// What other users of this machine may do.
    pub access: Vec<LocalAccess>,
    /// What the daemon tells about itself on its standard error.
    pub diagnostics: DiagnosticsConfig,
}

/// The configuration of the network API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Api {
    /// The address that the API listens on.
    pub listen: SocketAddr,
    /// The names by which clients may call the API, besides the address itself and `localhost`.
    pub hosts: Vec<String>,
    /// The certificate for TLS; `None` where the API speaks plain HTTP.
    pub tls: Option<TlsFiles>,
    /// The largest body of a request, in bytes.
    pub max_body: u64,
    /// The requests that each token may send in a second, and each address that shows no token.
    pub requests: u32,
    /// The number of connections at a time.
    pub connections: usize,
    /// How long a client may take to send a request or to take an answer; after that it is cut off.
    pub timeout: Duration,
}

/// The paths of a certificate and of its key, both in PEM format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// What a user or a group of this machine may do on the control socket.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalAccess {
    /// The user or the group.
    pub who: LocalIdentity,
    /// The permissions that are granted.
    pub permissions: Vec<Permission>,
}

/// A user or a group of this machine, by name or number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalIdentity {
    /// One user.
    User(String),
    /// All users of a group.
    Group(String),
}

/// The paths that count where the configuration does not set them.
#[derive(Debug, Clone)]
pub struct DefaultPaths {
    /// The state folder.
    pub state: PathBuf,
    /// The folder of the user's configuration.
    pub config: PathBuf,
    /// The configuration file that `$REGROW_CONFIG` names.
    pub named: Option<PathBuf>,
}

/// The default time between two samples of resources.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(15);
/// The shortest interval or timeout that the configuration may set.
const SHORTEST: Duration = Duration::from_millis(100);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    manifests: Option<PathBuf>,
    profiles: Vec<String>,
    watch: bool,
    stop_timeout: Option<Interval>,
    state: Option<PathBuf>,
    socket: Socket,
    store: Store,
    logs: Logs,
    samples: Samples,
    pool: PoolKeys,
    tasks: TaskKeys,
    cache: CacheKeys,
    thresholds: ThresholdKeys,
    api: ApiKeys,
    access: Vec<AccessKeys>,
    log_level: Option<LogLevel>,
    log_format: Option<LogFormat>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ApiKeys {
    listen: Option<SocketAddr>,
    hosts: Vec<String>,
    plaintext: bool,
    max_body: Option<Size>,
    requests: Option<NonZeroU32>,
    connections: Option<NonZeroU32>,
    timeout: Option<Interval>,
    tls: TlsKeys,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TlsKeys {
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AccessKeys {
    user: Option<String>,
    group: Option<String>,
    permissions: Vec<Permission>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Socket {
    path: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Store {
    path: Option<PathBuf>,
    events: Option<u64>,
    samples: Option<Span>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Logs {
    folder: Option<PathBuf>,
    max_size: Option<Size>,
    max_files: Option<u32>,
    compress: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Samples {
    interval: Option<Interval>,
}

/// A duration in humantime's format, such as `1m 30s`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct Span(Duration);

impl TryFrom<String> for Span {
    type Error = String;
    fn try_from(text: String) -> Result<Span, String> {
        let span = humantime::parse_duration(&text);
        span.map(Span).map_err(|error| format!("{error} (write \"30s\" or \"1m 30s\")"))
    }
}

/// A duration of at least [`SHORTEST`].
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct Interval(Duration);

impl TryFrom<String> for Interval {
    type Error = String;
    fn try_from(text: String) -> Result<Interval, String> {
        let Span(interval) = Span::try_from(text)?;
        if interval < SHORTEST {
            Err("the duration must be at least 100ms".to_owned())
        } else {
            Ok(Interval(interval))
        }
    }
}

/// Why the configuration can't be used.
#[derive(Debug)]
pub struct ConfigError {
    /// The configuration file; empty where there is none.
    pub path: PathBuf,
    /// What is wrong, for people.
    pub why: String,
}

/// Reads the configuration from `named`, else from the file that `$REGROW_CONFIG` names, else from
/// the first usual place that has one. Without a file, the defaults count.
pub fn load_config(named: Option<&Path>, usual: &DefaultPaths) -> Result<Config, ConfigError> {
    let found = || {
        let folders = [Path::new("/etc/regrow"), &usual.config];
        folders.iter().map(|folder| folder.join("regrow.toml")).find(|path| path.is_file())
    };
    let path = named.map(Path::to_owned).or_else(|| usual.named.clone()).or_else(found);
    let Some(path) = path else {
        return complete(None, Written::default(), usual)
            .map_err(|why| ConfigError { path: PathBuf::new(), why });
    };
    let unusable = |why: String| ConfigError { path: path.clone(), why };
    let absolute = std::path::absolute(&path).map_err(|error| unusable(error.to_string()))?;
    let text = std::fs::read_to_string(&absolute).map_err(|error| {
        unusable(match error.kind() {
            std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
            std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            _ => error.to_string(),
        })
    })?;
    let written: Written = toml::from_str(&text).map_err(|error| unusable(error.to_string()))?;
    if written.logs.max_files.is_some_and(|files| !(1..=MOST_FILES).contains(&files)) {
        return Err(unusable(format!("logs.max_files must be from 1 to {MOST_FILES}")));
    }
    complete(Some(absolute), written, usual).map_err(unusable)
}

fn complete(file: Option<PathBuf>, written: Written, usual: &DefaultPaths) -> Result<Config, String> {
    let base = match file.as_deref().and_then(Path::parent) {
        Some(folder) => folder.to_owned(),
        None => usual.config.clone(),
    };
    let at = |path: PathBuf| base.join(path);
    let state = written.state.map_or_else(|| usual.state.clone(), at);
    let home = state.join("daemon");
    let store = written.store.path.unwrap_or_else(|| home.join("regrow.db"));
    let api = api(written.api, at)?;
    let tasks = tasks::complete(&written.pool, &written.tasks, &written.cache, &written.thresholds)?;
    if !written.access.is_empty() && written.socket.path.is_none() {
        let why = "[[access]] lets other users in, who can't enter the daemon's own folder: \
                   give the socket another place (path = \"/run/regrow/control.sock\" in [socket])";
        return Err(why.to_owned());
    }
    let access = written.access.into_iter().map(local).collect::<Result<_, _>>()?;
    Ok(Config {
        manifests: at(written.manifests.unwrap_or_else(|| PathBuf::from("services"))),
        profiles: written.profiles,
        watch: written.watch,
        stop_timeout: written.stop_timeout.map(|span| span.0),
        socket: written.socket.path.map_or_else(|| home.join("control.sock"), at),
        store: if store.as_os_str() == ":memory:" { store } else { at(store) },
        events: written.store.events.unwrap_or(100_000),
        samples: written.store.samples.map_or(Duration::from_secs(24 * 3600), |span| span.0),
        logs: written.logs.folder.map_or_else(|| state.join("logs"), at),
        log_size: written.logs.max_size.map_or(MAX_SIZE, |size| size.0),
        log_files: written.logs.max_files.unwrap_or(MAX_FILES),
        log_compress: written.logs.compress,
        secrets: state.join("secrets"),
        sample_interval: written.samples.interval.map_or(SAMPLE_INTERVAL, |span| span.0),
        tasks,
        api,
        access,
        diagnostics: DiagnosticsConfig {
            level: written.log_level.unwrap_or_default(),
            format: written.log_format.unwrap_or_default(),
        },
        home,
        file,
    })
}

fn api(written: ApiKeys, at: impl Fn(PathBuf) -> PathBuf) -> Result<Option<Api>, String> {
    let tls = match (written.tls.certificate, written.tls.key) {
        (Some(certificate), Some(key)) => Some(TlsFiles { certificate: at(certificate), key: at(key) }),
        (None, None) => None,
        (Some(_), None) => return Err("[api.tls] has a certificate and no key".to_owned()),
        (None, Some(_)) => return Err("[api.tls] has a key and no certificate".to_owned()),
    };
    if let Some(host) = written.hosts.iter().find(|host| host.contains([':', '/']) && !host.starts_with('['))
    {
        return Err(format!("{host:?} in hosts is not a host name: write it without a scheme and a port"));
    }
    let Some(listen) = written.listen else {
        return match tls {
            Some(_) => Err("[api.tls] is set, but [api] has no address to listen on".to_owned()),
            None => Ok(None),
        };
    };
    if tls.is_none() && !listen.ip().is_loopback() && !written.plaintext {
        return Err(format!(
            "the API would listen on {listen}, open to the network, without TLS: give [api.tls] a certificate and \
             a key, or write plaintext = true in [api] if something else encrypts the connections"
        ));
    }
    let number = |number: Option<NonZeroU32>, usual: u32| number.map_or(usual, NonZeroU32::get);
    Ok(Some(Api {
        listen,
        hosts: written.hosts,
        tls,
        max_body: written.max_body.map_or(1 << 20, |size| size.0),
        requests: number(written.requests, 50),
        connections: usize::try_from(number(written.connections, 64)).unwrap_or(64),
        timeout: written.timeout.map_or(Duration::from_secs(30), |span| span.0),
    }))
}

fn local(written: AccessKeys) -> Result<LocalAccess, String> {
    let who = match (written.user, written.group) {
        (Some(user), None) => LocalIdentity::User(user),
        (None, Some(group)) => LocalIdentity::Group(group),
        (Some(_), Some(_)) | (None, None) => {
            return Err("[[access]] must name a user or a group: one of the two".to_owned());
        }
    };
    Ok(LocalAccess { who, permissions: written.permissions })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_file_is_the_default() {
        let documented: Written = toml::from_str(DEFAULT).unwrap();
        let file = Some(PathBuf::from("/etc/regrow/regrow.toml"));
        let usual =
            DefaultPaths { state: "/var/lib/regrow".into(), config: "/etc/regrow".into(), named: None };
        let said = complete(file.clone(), documented, &usual).unwrap();
        let silent = complete(file.clone(), Written::default(), &usual).unwrap();
        assert_eq!(format!("{said:?}"), format!("{silent:?}"));
        assert_eq!(silent.manifests, Path::new("/etc/regrow/services"));
        // The lines that are commented out are right as well.
        let is_toml = |line: &&str| line.contains(" = ") || line.starts_with('[');
        let said = |line: &'static str| line.strip_prefix("# ").filter(is_toml).unwrap_or(line);
        let all: Vec<&str> = DEFAULT.lines().map(said).collect();
        let all: Written = toml::from_str(&all.join("\n")).unwrap();
        let all = complete(file, all, &usual).unwrap();
        assert!(all.api.is_some_and(|api| api.tls.is_some()) && all.access.len() == 2);
    }

    #[test]
    fn a_pool_that_can_not_be_is_refused() {
        let usual =
            DefaultPaths { state: "/var/lib/regrow".into(), config: "/etc/regrow".into(), named: None };
        for (text, want) in [
            ("[pool]\nmin = 0", "2 | min = 0\n  |       ^\na pool has from 1 to 1000 workers"),
            ("[pool]\nmin = 40", "min in [pool] is above max: 40 and 32"),
            ("[pool]\nmax = 5000", "from 1 to 1000"),
            ("[thresholds]\ncpu = 101", "2 | cpu = 101\n  |       ^^^\na percentage is from 0 to 100"),
            ("[thresholds]\nmemory_low = 95", "memory_low in [thresholds] is above memory"),
            ("[thresholds]\nload = 0", "a load must be above 0"),
            ("[thresholds]\ndisk = -1.5", "2 | disk = -1.5"),
        ] {
            let read = toml::from_str::<Written>(text).map_err(|error| error.to_string());
            let why = read.and_then(|written| complete(None, written, &usual)).unwrap_err();
            assert!(why.contains(want), "{text}: {why}");
        }
        let said = "[pool]\nmin = 2\nmax = 3\nqueue = 7\nauto = false\n[tasks]\nmemory = \"1KiB\"\nkeep_for = \"5m\"";
        let tasks = complete(None, toml::from_str(said).unwrap(), &usual).unwrap().tasks;
        assert_eq!((tasks.pool.min, tasks.pool.max, tasks.pool.queue, tasks.auto), (2, 3, 7, false));
        assert_eq!((tasks.scale.min, tasks.scale.max, tasks.memory), (2, 3, 1024));
        assert_eq!(tasks.kept_for, Duration::from_secs(300));
    }

    #[test]
    fn a_door_that_is_open_by_mistake_is_refused() {
        let usual =
            DefaultPaths { state: "/var/lib/regrow".into(), config: "/etc/regrow".into(), named: None };
        for (text, want) in [
            ("[api]\nlisten = \"127.0.0.1:1\"", None),
            ("[api]\nlisten = \"[::1]:1\"", None),
            ("[api]\nlisten = \"0.0.0.0:1\"", Some("without TLS")),
            ("[api]\nlisten = \"0.0.0.0:1\"\nplaintext = true", None),
            ("[api]\nlisten = \"0.0.0.0:1\"\n[api.tls]\ncertificate = \"c\"\nkey = \"k\"", None),
            ("[api.tls]\ncertificate = \"c\"", Some("no key")),
            ("[api.tls]\ncertificate = \"c\"\nkey = \"k\"", Some("no address")),
            ("[api]\nhosts = [\"a.example:443\"]", Some("without a scheme and a port")),
            ("[[access]]\nuser = \"a\"\npermissions = []", Some("another place")),
            ("[socket]\npath = \"/run/x\"\n[[access]]\nuser = \"a\"\npermissions = [\"read:*\"]", None),
            ("[socket]\npath = \"/run/x\"\n[[access]]\npermissions = []", Some("one of the two")),
        ] {
            let written: Written = toml::from_str(text).unwrap();
            let complete = complete(None, written, &usual);
            match want {
                None => assert!(complete.is_ok(), "{text}: {complete:?}"),
                Some(want) => {
                    let why = complete.unwrap_err();
                    assert!(why.contains(want), "{text}: {why}");
                }
            }
        }
        let no_action = "[[access]]\nuser = \"a\"\npermissions = [\"restrat:*\"]";
        assert!(toml::from_str::<Written>(no_action).unwrap_err().to_string().contains("did you mean"));
    }
}
