//! The daemon's configuration: where it is found, and what it says.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

/// The documented file, in which everything is the default.
pub const DEFAULT: &str = include_str!("../../config/regrow.toml");

/// All of it, with absolute paths.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it comes from, if there is one.
    pub file: Option<PathBuf>,
    /// The folder of the manifests.
    pub manifests: PathBuf,
    /// Profiles that start with the tree.
    pub profiles: Vec<String>,
    /// The folder is watched, and read again when it changes.
    pub watch: bool,
    /// The daemon's own folder.
    pub home: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// The database, or `:memory:`.
    pub store: PathBuf,
    /// So many events are kept.
    pub events: u64,
    /// Samples are kept for so long.
    pub samples: Duration,
    /// What services print lies below this folder.
    pub logs: PathBuf,
    /// Bytes from which on a log file is put aside.
    pub log_size: u64,
    /// So many log files are kept of each stream.
    pub log_files: u32,
    /// The folder of the secrets.
    pub secrets: PathBuf,
    /// How often resources are sampled.
    pub sample_interval: Duration,
}

/// Where things lie unless something else is said.
#[derive(Debug, Clone)]
pub struct Usual {
    /// The state folder.
    pub state: PathBuf,
    /// The folder of this user's configuration.
    pub config: PathBuf,
    /// What `$REGROW_CONFIG` says.
    pub named: Option<PathBuf>,
}

/// Samples are taken so often.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(15);
/// The shortest interval of samples.
const SHORTEST: Duration = Duration::from_millis(100);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    manifests: Option<PathBuf>,
    profiles: Vec<String>,
    watch: bool,
    state: Option<PathBuf>,
    socket: Socket,
    store: Store,
    logs: Logs,
    samples: Samples,
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
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Samples {
    interval: Option<Interval>,
}

/// A duration as humantime writes it.
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

/// The same, not so short that it is harmful.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct Interval(Duration);

impl TryFrom<String> for Interval {
    type Error = String;
    fn try_from(text: String) -> Result<Interval, String> {
        let Span(interval) = Span::try_from(text)?;
        if interval < SHORTEST { Err("at least 100ms".to_owned()) } else { Ok(Interval(interval)) }
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct Size(u64);

impl TryFrom<String> for Size {
    type Error = String;
    fn try_from(text: String) -> Result<Size, String> {
        size(&text).map(Size).ok_or_else(|| format!("{text:?} is no size (write \"64KiB\" or \"100MiB\")"))
    }
}

fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "kb" => 1_000,
        "m" | "mib" => 1 << 20,
        "mb" => 1_000_000,
        "g" | "gib" => 1 << 30,
        "gb" => 1_000_000_000,
        _ => return None,
    };
    number.checked_mul(unit).filter(|size| *size > 0)
}

/// Why there is no configuration.
#[derive(Debug)]
pub struct Unusable {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

/// The configuration of a file, or of the first that is there, or the default.
pub fn load_config(named: Option<&Path>, usual: &Usual) -> Result<Config, Unusable> {
    let found = || {
        let folders = [Path::new("/etc/regrow"), &usual.config];
        folders.iter().map(|folder| folder.join("regrow.toml")).find(|path| path.is_file())
    };
    let path = named.map(Path::to_owned).or_else(|| usual.named.clone()).or_else(found);
    let Some(path) = path else {
        return Ok(complete(None, Written::default(), usual));
    };
    let unusable = |why: String| Unusable { path: path.clone(), why };
    let absolute = std::path::absolute(&path).map_err(|error| unusable(error.to_string()))?;
    let text = std::fs::read_to_string(&absolute).map_err(|error| {
        unusable(match error.kind() {
            std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
            std::io::ErrorKind::PermissionDenied => "it may not be read".to_owned(),
            _ => error.to_string(),
        })
    })?;
    let written: Written = toml::from_str(&text).map_err(|error| unusable(error.to_string()))?;
    if written.logs.max_files == Some(0) {
        return Err(unusable("logs.max_files must be at least 1".to_owned()));
    }
    Ok(complete(Some(absolute), written, usual))
}

fn complete(file: Option<PathBuf>, written: Written, usual: &Usual) -> Config {
    let base = match file.as_deref().and_then(Path::parent) {
        Some(folder) => folder.to_owned(),
        None => usual.config.clone(),
    };
    let at = |path: PathBuf| base.join(path);
    let state = written.state.map_or_else(|| usual.state.clone(), at);
    let home = state.join("daemon");
    let store = written.store.path.unwrap_or_else(|| home.join("regrow.db"));
    Config {
        manifests: at(written.manifests.unwrap_or_else(|| PathBuf::from("services"))),
        profiles: written.profiles,
        watch: written.watch,
        socket: written.socket.path.map_or_else(|| home.join("control.sock"), at),
        store: if store.as_os_str() == ":memory:" { store } else { at(store) },
        events: written.store.events.unwrap_or(100_000),
        samples: written.store.samples.map_or(Duration::from_secs(24 * 3600), |span| span.0),
        logs: written.logs.folder.map_or_else(|| state.join("logs"), at),
        log_size: written.logs.max_size.map_or(100 << 20, |size| size.0),
        log_files: written.logs.max_files.unwrap_or(5),
        secrets: state.join("secrets"),
        sample_interval: written.samples.interval.map_or(SAMPLE_INTERVAL, |span| span.0),
        home,
        file,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_file_is_the_default() {
        let documented: Written = toml::from_str(DEFAULT).unwrap();
        let file = Some(PathBuf::from("/etc/regrow/regrow.toml"));
        let usual = Usual { state: "/var/lib/regrow".into(), config: "/etc/regrow".into(), named: None };
        let said = complete(file.clone(), documented, &usual);
        let silent = complete(file, Written::default(), &usual);
        assert_eq!(format!("{said:?}"), format!("{silent:?}"));
        assert_eq!(silent.manifests, Path::new("/etc/regrow/services"));
        // What is commented out, said, is right as well.
        let said = |line: &'static str| line.strip_prefix("# ").filter(|l| l.contains(" = ")).unwrap_or(line);
        let all: Vec<&str> = DEFAULT.lines().map(said).collect();
        toml::from_str::<Written>(&all.join("\n")).unwrap();
    }

    #[test]
    fn sizes() {
        for (text, want) in [
            ("100MiB", Some(100 << 20)),
            ("64 KiB", Some(64 << 10)),
            ("7", Some(7)),
            ("1gb", Some(1_000_000_000)),
            ("0", None),
            ("-1", None),
            ("99999999999GiB", None),
            ("many", None),
        ] {
            assert_eq!(size(text), want, "{text}");
        }
    }
}
