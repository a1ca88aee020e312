//! The folder of a running tree: where its socket lies, how it is locked, and how a command finds
//! it without configuration.
//!
//! May use `sys::files` and the search for manifests. Nothing is sent over the socket here.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::manifest;
use crate::model::digest::fnv;
use crate::sys::locks::{self, Lock};
use crate::sys::{files, sockets};

/// What a running tree writes down about itself, so that commands find it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// The pid of the supervisor.
    pub pid: u32,
    /// The manifest that the tree was made from. For a daemon, its configuration file; empty where it
    /// has none.
    pub manifest: PathBuf,
    /// The folder that the tree was started in; empty for a daemon.
    pub cwd: PathBuf,
    /// The path of the control socket, where `--socket` chose another than the usual one, or where a
    /// daemon listens.
    #[serde(default)]
    pub socket: Option<PathBuf>,
}

impl Card {
    /// The card of a daemon, which belongs to no folder.
    pub fn of_daemon(pid: u32, config: Option<&Path>, socket: &Path) -> Card {
        Card {
            pid,
            manifest: config.map(Path::to_owned).unwrap_or_default(),
            cwd: PathBuf::new(),
            socket: Some(socket.to_owned()),
        }
    }
}

/// How long a killed process may still hold its lock: until the last of its threads is gone.
const LETTING_GO: std::time::Duration = std::time::Duration::from_millis(200);

/// Locks a daemon's state folder. The lock lasts as long as this process, a program that it
/// executes, or any process that inherits its descriptors.
pub fn take_daemon(home: &Path, card: &Card) -> Result<(), InstanceDirError> {
    files::private_dir(home).map_err(InstanceDirError::Unusable)?;
    let until = std::time::Instant::now() + LETTING_GO;
    // The path is locked as well, since the folder may be removed under a running daemon and made
    // again.
    let path = home.canonicalize().unwrap_or_else(|_| home.to_owned());
    match locks::take_path(&path, LETTING_GO) {
        Some(Ok(lock)) => lock.keep_for_ever().map_err(InstanceDirError::Unusable)?,
        None => {}
        Some(Err(pid)) => {
            return Err(InstanceDirError::ByAnother(daemon_of(home).unwrap_or(Card { pid, ..card.clone() })));
        }
    }
    let taken = loop {
        match locks::lock_folder(home).map_err(InstanceDirError::Unusable)? {
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

/// Writes down which process supervises there now. The daemon's keeper holds the lock.
pub fn tell_daemon(home: &Path, card: &Card) {
    let text = serde_json::to_string(card).unwrap_or_default();
    if let Err(error) = files::replace(&home.join(CARD), &text) {
        tracing::warn!(%error, "the file that tells other commands about this daemon can't be written");
    }
}

/// The card of the daemon that supervises in a state folder, or last did.
pub fn daemon_of(home: &Path) -> Option<Card> {
    serde_json::from_slice(&files::read_own(&home.join(CARD)).ok()?).ok()
}

/// A tree's folder that this process has locked.
#[derive(Debug)]
pub struct InstanceDir {
    /// The folder itself.
    pub folder: PathBuf,
    /// The path of the control socket.
    pub socket: PathBuf,
    _lock: Lock,
}

/// Why a folder could not be locked.
#[derive(Debug)]
pub enum InstanceDirError {
    /// The same manifest, or a daemon of the same folder, runs already.
    ByAnother(Card),
    /// The state folder can't be used.
    Unusable(io::Error),
}

/// Locks the folder of a manifest for this process.
pub fn take(manifest: &Path, card: &Card) -> Result<InstanceDir, InstanceDirError> {
    let folder = folder_of(manifest);
    let text = serde_json::to_string(card).map_err(|e| InstanceDirError::Unusable(io::Error::other(e)))?;
    let runs = runs_dir();
    files::private_dir(&runs)
        .and_then(|()| files::private_dir(&folder))
        .map_err(InstanceDirError::Unusable)?;
    match locks::lock(&folder.join("lock"), &text).map_err(InstanceDirError::Unusable)? {
        Ok(lock) => {
            let socket = card.socket.clone().unwrap_or_else(|| folder.join(SOCKET));
            Ok(InstanceDir { folder, socket, _lock: lock })
        }
        Err(other) => match serde_json::from_str(&other) {
            Ok(card) => Err(InstanceDirError::ByAnother(card)),
            // The other process is just about to write its card.
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
        // If the socket stays, the next run replaces it.
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// The daemon that a command would reach, whether it runs or not.
pub struct Reached {
    /// The path of the socket that the daemon listens on.
    pub socket: PathBuf,
    /// The daemon's configuration file, where there is one.
    pub configuration: Option<PathBuf>,
}

impl Reached {
    fn answers(&self) -> bool {
        sockets::connect(&self.socket).is_ok()
    }
}

/// A list of trees for people, each with the option that selects it.
fn named<'a>(trees: impl IntoIterator<Item = &'a (PathBuf, Card)>) -> String {
    let name = |(socket, card): &(PathBuf, Card)| {
        format!("{} (--socket {})", card.manifest.display(), socket.display())
    };
    trees.into_iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Finds the socket for a command that was typed in `cwd`. It is that of the manifest that `run`
/// would take there; else that of a tree that was started from there, or whose folder contains
/// `cwd`; else the daemon's. `Err` says why there is none.
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
                return Err(format!(
                    "several trees run from this folder: {}",
                    named(same.into_iter().copied())
                ));
            }
            Ok(socket.clone())
        }
        None => match (manifest, &running[..]) {
            _ if let Some(daemon) = daemon.filter(|daemon| daemon.answers()) => Ok(daemon.socket.clone()),
            (Some(manifest), _) => {
                Err(format!("{} is not running (start it with \"regrow run\")", manifest.display()))
            }
            (None, []) => Err("nothing is running (start something with \"regrow run\")".to_owned()),
            (None, others) => Err(format!("nothing runs from this folder; elsewhere: {}", named(others))),
        },
    }
}

/// The manifest that a command typed in `cwd` means. A daemon's configuration, which may have the
/// same file name, is none.
pub fn own_manifest(cwd: &Path, daemon: Option<&Reached>) -> Option<PathBuf> {
    let configuration = daemon.and_then(|daemon| daemon.configuration.as_ref()?.canonicalize().ok());
    let manifest = manifest::discover(cwd)?.canonicalize().ok()?;
    (Some(&manifest) != configuration.as_ref()).then_some(manifest)
}

/// Finds the socket for a command that changes something. Where this folder or a parent has a
/// manifest, only a tree that runs from it counts; another tree is never taken in its place.
pub fn find_own(cwd: &Path, daemon: Option<&Reached>) -> Result<PathBuf, String> {
    let Some(manifest) = own_manifest(cwd, daemon) else {
        return find(cwd, daemon);
    };
    if let Some((socket, _)) = answering(&folder_of(&manifest)) {
        return Ok(socket);
    }
    // A tree may have been started from here with a manifest of another name.
    let own = |card: &Card| card.cwd == cwd || card.manifest.parent() == manifest.parent();
    let mut running = running();
    running.retain(|(_, card)| own(card));
    match &running[..] {
        [(socket, _)] => Ok(socket.clone()),
        [] => {
            let shown = manifest.display();
            let hint = match daemon.is_some_and(Reached::answers) {
                true => "; use --daemon for the machine's daemon",
                false => "",
            };
            Err(format!("{shown} is not running (start it with \"regrow run\"){hint}"))
        }
        several => Err(format!("several trees run from this folder: {}", named(several))),
    }
}

/// Every tree of this user that answers, with its card; daemons are not among them.
pub fn trees() -> Vec<(PathBuf, Card)> {
    running()
}

/// The socket and the card of every tree of this user that answers.
fn running() -> Vec<(PathBuf, Card)> {
    let Ok(entries) = std::fs::read_dir(runs_dir()) else {
        return Vec::new();
    };
    let mut found: Vec<(PathBuf, Card)> =
        entries.filter_map(|entry| answering(&entry.ok()?.path())).collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// The socket and the card of the tree that this folder belongs to, if it answers.
fn answering(folder: &Path) -> Option<(PathBuf, Card)> {
    let card: Card = serde_json::from_slice(&std::fs::read(folder.join("lock")).ok()?).ok()?;
    let socket = card.socket.clone().unwrap_or_else(|| folder.join(SOCKET));
    sockets::connect(&socket).ok()?;
    Some((socket, card))
}

const SOCKET: &str = "control.sock";
/// The name of a daemon's card in its folder, whose lock the keeper holds.
const CARD: &str = "daemon.json";

/// The folder for the log files of a manifest's run that have no other place.
pub fn logs_of(manifest: &Path) -> PathBuf {
    folder_of(manifest).join("logs")
}

fn runs_dir() -> PathBuf {
    files::state_dir().join("run")
}

/// The folder of a manifest: its name is readable for people, and unique by a hash of the whole
/// path.
fn folder_of(manifest: &Path) -> PathBuf {
    let parent = manifest.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let readable: String =
        parent.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).take(40).collect();
    runs_dir().join(format!("{readable}-{:016x}", fnv(manifest.as_os_str().as_encoded_bytes())))
}
