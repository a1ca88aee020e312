//! Where a running tree's socket lies, and how a command finds it without configuration.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::manifest;
use crate::model::digest::fnv;
use crate::sys::files;
use crate::sys::files::Lock;

/// What a running tree writes beside its socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// The process that supervises.
    pub pid: u32,
    /// The manifest.
    pub manifest: PathBuf,
    /// The folder it was started in.
    pub cwd: PathBuf,
    /// The socket, where `--socket` chose another than the usual one.
    #[serde(default)]
    pub socket: Option<PathBuf>,
}

impl Card {
    /// That of a daemon, which belongs to no folder.
    pub fn of_daemon(pid: u32, config: Option<&Path>, socket: &Path) -> Card {
        Card {
            pid,
            manifest: config.map(Path::to_owned).unwrap_or_default(),
            cwd: PathBuf::new(),
            socket: Some(socket.to_owned()),
        }
    }
}

/// One that was killed holds its lock a moment longer: until the last of its threads is gone.
const LETTING_GO: std::time::Duration = std::time::Duration::from_millis(200);

/// Takes the place of the daemon of a state folder, for as long as this process, one that it
/// becomes, or one below it that inherits its descriptors lives.
pub fn take_daemon(home: &Path, card: &Card) -> Result<(), InstanceDirError> {
    files::private_dir(home).map_err(InstanceDirError::Unusable)?;
    let until = std::time::Instant::now() + LETTING_GO;
    // By its path as well: the folder may have been removed under one that runs, and made again.
    let path = home.canonicalize().unwrap_or_else(|_| home.to_owned());
    match files::take_path(&path, LETTING_GO) {
        Some(Ok(lock)) => lock.keep_for_ever().map_err(InstanceDirError::Unusable)?,
        None => {}
        Some(Err(pid)) => {
            return Err(InstanceDirError::ByAnother(daemon_of(home).unwrap_or(Card { pid, ..card.clone() })));
        }
    }
    let taken = loop {
        match files::lock_folder(home).map_err(InstanceDirError::Unusable)? {
            None if std::time::Instant::now() < until => std::thread::sleep(LETTING_GO / 20),
            taken => break taken,
        }
    };
    match taken {
        Some(lock) => {
            tell_daemon(home, card);
            lock.keep_for_ever().map_err(InstanceDirError::Unusable)
        }
        None => {
            let unknown = Card { pid: 0, ..card.clone() };
            Err(InstanceDirError::ByAnother(daemon_of(home).unwrap_or(unknown)))
        }
    }
}

/// Writes down who supervises there now, under the lock of its keeper.
pub fn tell_daemon(home: &Path, card: &Card) {
    let text = serde_json::to_string(card).unwrap_or_default();
    if let Err(error) = files::replace(&home.join(CARD), &text) {
        tracing::warn!(%error, "nobody can read who supervises here");
    }
}

/// Who supervises in a state folder, or did last.
pub fn daemon_of(home: &Path) -> Option<Card> {
    serde_json::from_slice(&files::read_own(&home.join(CARD)).ok()?).ok()
}

/// A place that was taken.
#[derive(Debug)]
pub struct InstanceDir {
    /// The socket.
    pub socket: PathBuf,
    _lock: Lock,
}

/// Why no place could be taken.
#[derive(Debug)]
pub enum InstanceDirError {
    /// The same manifest runs already.
    ByAnother(Card),
    /// The state folder is of no use.
    Unusable(io::Error),
}

/// Takes the place of a manifest for this process.
pub fn take(manifest: &Path, card: &Card) -> Result<InstanceDir, InstanceDirError> {
    let folder = folder_of(manifest);
    let text = serde_json::to_string(card).map_err(|e| InstanceDirError::Unusable(io::Error::other(e)))?;
    let runs = runs_dir();
    files::private_dir(&runs)
        .and_then(|()| files::private_dir(&folder))
        .map_err(InstanceDirError::Unusable)?;
    match files::lock(&folder.join("lock"), &text).map_err(InstanceDirError::Unusable)? {
        Ok(lock) => {
            let socket = card.socket.clone().unwrap_or_else(|| folder.join(SOCKET));
            Ok(InstanceDir { socket, _lock: lock })
        }
        Err(other) => match serde_json::from_str(&other) {
            Ok(card) => Err(InstanceDirError::ByAnother(card)),
            // The other is just about to write it.
            Err(_) => Err(InstanceDirError::ByAnother(Card {
                pid: 0,
                manifest: manifest.to_owned(),
                cwd: PathBuf::new(),
                socket: None,
            })),
        },
    }
}

impl InstanceDir {
    /// Removes the socket at the end.
    pub fn leave(self) {
        // Whatever is left is replaced by the next run.
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// The daemon that a command would reach, whether it runs or not.
pub struct Reached {
    /// Where it listens.
    pub socket: PathBuf,
    /// The file that it is configured by, where there is one.
    pub configuration: Option<PathBuf>,
}

impl Reached {
    fn answers(&self) -> bool {
        files::connect(&self.socket).is_ok()
    }
}

/// Trees, each with the option that means it.
fn named<'a>(trees: impl IntoIterator<Item = &'a (PathBuf, Card)>) -> String {
    let name = |(socket, card): &(PathBuf, Card)| {
        format!("{} (--socket {})", card.manifest.display(), socket.display())
    };
    trees.into_iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Finds the socket for a command typed in `cwd`: that of the manifest that `run` would
/// take there; else of a tree that was started from there or whose folder this is in; else the
/// daemon's. `Err`: why there is none.
pub fn find(cwd: &Path, daemon: Option<&Reached>) -> Result<PathBuf, String> {
    let manifest = manifest::discover(cwd).and_then(|path| path.canonicalize().ok());
    if let Some(manifest) = &manifest
        && let Some((socket, _)) = answering(&folder_of(manifest))
    {
        return Ok(socket);
    }
    let running = running();
    let near = |card: &Card| {
        let folder = card.manifest.parent().unwrap_or(Path::new("/"));
        card.cwd == cwd || cwd.starts_with(folder)
    };
    let depth = |card: &Card| card.manifest.components().count();
    let nearest: Vec<&(PathBuf, Card)> = running.iter().filter(|(_, card)| near(card)).collect();
    match nearest.iter().max_by_key(|(_, card)| depth(card)) {
        Some((socket, card)) => {
            let same: Vec<_> =
                nearest.iter().filter(|(_, c)| c.manifest.parent() == card.manifest.parent()).collect();
            if same.len() > 1 {
                return Err(format!("several trees run from here: {}", named(same.into_iter().copied())));
            }
            Ok(socket.clone())
        }
        None => match (manifest, &running[..]) {
            _ if let Some(daemon) = daemon.filter(|daemon| daemon.answers()) => Ok(daemon.socket.clone()),
            (Some(manifest), _) => Err(format!("{} is not running (regrow run)", manifest.display())),
            (None, []) => Err("nothing is running (regrow run)".to_owned()),
            (None, others) => Err(format!("nothing runs from this folder; elsewhere: {}", named(others))),
        },
    }
}

/// The manifest that is meant in `cwd`. A daemon's configuration may have the name of one.
pub fn own_manifest(cwd: &Path, daemon: Option<&Reached>) -> Option<PathBuf> {
    let configuration = daemon.and_then(|daemon| daemon.configuration.as_ref()?.canonicalize().ok());
    let manifest = manifest::discover(cwd)?.canonicalize().ok()?;
    (Some(&manifest) != configuration.as_ref()).then_some(manifest)
}

/// The same for a verb that changes something: where this folder or a parent has a manifest, only what
/// runs from it is meant. Another tree is never taken in its place.
pub fn find_own(cwd: &Path, daemon: Option<&Reached>) -> Result<PathBuf, String> {
    let Some(manifest) = own_manifest(cwd, daemon) else {
        return find(cwd, daemon);
    };
    if let Some((socket, _)) = answering(&folder_of(&manifest)) {
        return Ok(socket);
    }
    // One that was started from here by another manifest's name.
    let own = |card: &Card| card.cwd == cwd || card.manifest.parent() == manifest.parent();
    let mut running = running();
    running.retain(|(_, card)| own(card));
    match &running[..] {
        [(socket, _)] => Ok(socket.clone()),
        [] => {
            let shown = manifest.display();
            let hint = match daemon.is_some_and(Reached::answers) {
                true => "; the machine's daemon is meant by --daemon",
                false => "",
            };
            Err(format!("{shown} is not running (regrow run){hint}"))
        }
        several => Err(format!("several trees run from here: {}", named(several))),
    }
}

/// Every tree of this user that answers, but for a daemon's, with its card.
pub fn trees() -> Vec<(PathBuf, Card)> {
    running()
}

/// Every tree of this user that answers.
fn running() -> Vec<(PathBuf, Card)> {
    let Ok(entries) = std::fs::read_dir(runs_dir()) else {
        return Vec::new();
    };
    let mut found: Vec<(PathBuf, Card)> =
        entries.filter_map(|entry| answering(&entry.ok()?.path())).collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// The tree whose place this is, if it answers.
fn answering(folder: &Path) -> Option<(PathBuf, Card)> {
    let card: Card = serde_json::from_slice(&std::fs::read(folder.join("lock")).ok()?).ok()?;
    let socket = card.socket.clone().unwrap_or_else(|| folder.join(SOCKET));
    files::connect(&socket).ok()?;
    Some((socket, card))
}

const SOCKET: &str = "control.sock";
/// Where a daemon's card lies in its folder, whose lock its keeper holds.
const CARD: &str = "daemon.json";

/// Where the log files of a manifest's run lie that have no other place.
pub fn logs_of(manifest: &Path) -> PathBuf {
    folder_of(manifest).join("logs")
}

fn runs_dir() -> PathBuf {
    files::state_dir().join("run")
}

/// One folder a manifest: readable for people, unique by a hash of the whole path.
fn folder_of(manifest: &Path) -> PathBuf {
    let parent = manifest.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let readable: String =
        parent.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).take(40).collect();
    runs_dir().join(format!("{readable}-{:016x}", fnv(manifest.as_os_str().as_encoded_bytes())))
}
