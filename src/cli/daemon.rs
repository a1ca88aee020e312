//! `daemon`: the tree of an operator's machine, below a keeper that outlives the daemon.

use super::args::daemon::DaemonArgs;
use super::diagnostics::{self, DiagnosticsTarget};
use super::{code, format, supervisors_runtime};
use crate::cli::config_file::default_paths;
use crate::control::instance_dir;
use crate::host::keeper;
use crate::manifest::config::{Config, DEFAULT, load_config};
use crate::sys::locks;

mod detach;
mod journal;
mod places;
mod reloads;
mod serve;

use detach::{DETACHED, detach, own_log};
use places::card_of;
use serve::{FAREWELL, serve};

pub(super) use places::{card, secrets, tokens};

pub(super) fn daemon(args: &DaemonArgs) -> u8 {
    if args.print_config {
        use std::io::Write as _;
        if let Err(error) = std::io::stdout().write_all(DEFAULT.as_bytes()) {
            super::unwritten(error);
        }
        return code::DONE;
    }
    // A daemon with a keeper above it first rests for as long as the keeper wants: it may be the next
    // of many that found no usable configuration.
    let rested = keeper::is_above().then(keeper::over_daemon);
    let config = match load_config(args.config.as_deref(), &default_paths()) {
        Ok(config) => config,
        Err(unusable) => {
            let path = unusable.path.display();
            tell!("{}: the configuration {path} can't be used: {}", format::error_word(), unusable.why);
            return code::MANIFEST;
        }
    };
    if args.detach && std::env::var_os(DETACHED).is_none() {
        if locks::is_locked(&config.home) {
            return taken(&config, instance_dir::daemon_of(&config.home).map_or(0, |card| card.pid));
        }
        return detach(args, &config);
    }
    // A keeper that starts a daemon again already holds the lock.
    if rested.is_none()
        && let Err(ended) = take_lock(&config)
    {
        return ended;
    }
    let keeper_socket = match rested.unwrap_or_else(keeper::over_daemon) {
        Ok(keeper_socket) => keeper_socket,
        Err(error) => {
            tell!("{}: can't start a keeper: {error}", format::error_word());
            return code::FAILED;
        }
    };
    // Later daemons of the same keeper start from here too, and the configuration read above may be old
    // by then.
    let config = match load_config(args.config.as_deref(), &default_paths()) {
        Ok(now) => now,
        Err(unusable) => {
            let path = unusable.path.display();
            tell!("regrow: the configuration {path} can't be used, and stays as it was: {}", unusable.why);
            config
        }
    };
    let own_log = own_log(&config);
    let diagnostics = match diagnostics::start(DiagnosticsTarget::Stderr, None, config.diagnostics) {
        Ok(diagnostics) => diagnostics,
        Err(error) => {
            tell!("{}: {error}", format::error_word());
            return code::FAILED;
        }
    };
    let runtime = match supervisors_runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            tell!("{}: {error}", format::error_word());
            return code::FAILED;
        }
    };
    let ended = runtime.block_on(serve(&config, keeper_socket, own_log.as_ref()));
    diagnostics.finish(FAREWELL);
    crate::host::processes::exit(i32::from(ended))
}

/// Takes the lock of the state folder. It is held for as long as this process, the keeper it
/// becomes, or a daemon below that one lives.
fn take_lock(config: &Config) -> Result<(), u8> {
    match instance_dir::take_daemon(&config.home, &card_of(config)) {
        Ok(()) => Ok(()),
        Err(instance_dir::InstanceDirError::ByAnother(other)) => Err(taken(config, other.pid)),
        Err(instance_dir::InstanceDirError::Unusable(error)) => {
            tell!("{}: {}: {error}", format::error_word(), config.home.display());
            Err(code::FAILED)
        }
    }
}

/// Prints which process holds the lock.
fn taken(config: &Config, pid: u32) -> u8 {
    if crate::host::processes::is_dead_but_for_a_thread(pid) {
        tell!(
            "{}: the daemon in {} (pid {pid}) has ended, but one of its threads still waits for a disk that does not answer",
            format::error_word(),
            config.home.display()
        );
        return code::FAILED;
    }
    tell!("{}: a daemon is already running in {} (pid {pid})", format::error_word(), config.home.display());
    tell!("  = help: \"regrow status\" shows it, \"regrow down\" ends it");
    code::FAILED
}
