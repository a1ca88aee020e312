//! Where a daemon has its things: its card, its socket, its store, its tokens and its secrets.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::cli::config_file::default_paths;
use crate::control::instance_dir::{self, Card};
use crate::decide::ledger::Memory;
use crate::manifest::config::{Config, ConfigError, load_config};
use crate::record::store::{Retention, Store};
use crate::sys::{files, locks, sockets};
use crate::vault::tokens::Tokens;

/// The folder of this user's secrets.
pub(in crate::cli) fn secrets() -> PathBuf {
    let config = load_config(None, &default_paths());
    config.map_or_else(|_| files::state_dir().join("secrets"), |config| config.secrets)
}

/// The path of the file that holds the tokens.
pub(super) fn tokens_of(config: &Config) -> PathBuf {
    config.home.join("tokens.json")
}

/// The tokens of the daemon with this configuration; without one, of the daemon that this user's
/// commands reach.
pub(in crate::cli) fn tokens(config: Option<&Path>) -> Result<Tokens, ConfigError> {
    load_config(config, &default_paths()).map(|config| Tokens::at(tokens_of(&config)))
}

/// The card of this user's daemon, if one runs: its pid, manifest and socket.
pub(in crate::cli) fn card() -> Option<Card> {
    let config = load_config(None, &default_paths()).ok()?;
    let card = instance_dir::daemon_of(&config.home).filter(|_| locks::is_locked(&config.home))?;
    Some(Card { socket: Some(card.socket.clone().unwrap_or(config.socket)), ..card })
}

pub(super) fn card_of(config: &Config) -> Card {
    Card::of_daemon(std::process::id(), config.file.as_deref(), &config.socket)
}

pub(super) fn listen(config: &Config) -> std::io::Result<UnixListener> {
    match config.access.is_empty() {
        true => files::private_parent(&config.socket)
            .and_then(|()| sockets::listen(&config.socket, sockets::SocketAccess::Owner)),
        false => files::open_parent(&config.socket)
            .and_then(|()| sockets::listen(&config.socket, sockets::SocketAccess::Everybody)),
    }
}

pub(super) fn open_store(config: &Config) -> (Option<Store>, Memory) {
    let tasks = (config.tasks.kept, config.tasks.kept_for);
    let retention = Retention { events: config.events, samples: config.samples, tasks };
    match Store::open(&config.store, retention) {
        Ok((store, memory)) => {
            if let Some(trouble) = &memory.trouble {
                tell!("regrow: {trouble}");
            }
            (Some(store), memory)
        }
        Err(error) => {
            let path = config.store.display();
            tell!("regrow: events are not recorded: the store {path} can't be opened: {error}");
            (None, Memory::default())
        }
    }
}
