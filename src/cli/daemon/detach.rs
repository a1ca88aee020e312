//! `daemon --detach`: starts the daemon apart from this terminal, and the log file that it prints to.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cli::args::daemon::DaemonArgs;
use crate::cli::{code, format};
use crate::control::instance_dir;
use crate::logs::own::OwnLog;
use crate::manifest::config::Config;
use crate::sys::{files, programs, sockets};

/// The time that `--detach` waits for the daemon to report that it is up.
const DETACHING: Duration = Duration::from_secs(60);

/// The variable that `--detach` gives the daemon that it starts, so that it does not detach again:
/// the path of the file it prints to.
pub(super) const DETACHED: &str = "REGROW_DETACHED";

/// The log file of this daemon, where it prints to one.
pub(super) fn own_log(config: &Config) -> Option<OwnLog> {
    let path = std::env::var_os(DETACHED).map(PathBuf::from).filter(|path| path.is_absolute())?;
    let log = OwnLog::new(path, config.log_size, config.log_files, config.log_compress);
    // An earlier daemon may have rotated the file that this one inherited from the keeper.
    let _ = log.look();
    Some(log)
}

/// Starts the daemon apart from this terminal, and returns when the daemon is up.
pub(super) fn detach(args: &DaemonArgs, config: &Config) -> u8 {
    let failed = |what: String| {
        tell!("{}: {what}", format::error_word());
        code::FAILED
    };
    if let Err(error) = files::private_dir(&config.home) {
        return failed(format!("{}: {error}", config.home.display()));
    }
    let log = config.home.join("daemon.log");
    let ended =
        sockets::abstract_socket().and_then(|(heard, ready)| start_apart(args, config, &log, &ready, &heard));
    match ended {
        Ok(Ok(())) => code::DONE,
        Ok(Err(ended)) => {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            for line in text.lines().rev().take(20).collect::<Vec<_>>().into_iter().rev() {
                tell!("{line}");
            }
            failed(format!("the daemon did not start; its output is in {}", log.display()));
            ended
        }
        Err(error) => failed(error.to_string()),
    }
}

fn start_apart(
    args: &DaemonArgs,
    config: &Config,
    log: &Path,
    ready: &std::ffi::OsStr,
    heard: &std::os::unix::net::UnixDatagram,
) -> std::io::Result<Result<(), u8>> {
    // The log of the last daemon is put aside, so that the reason for its end can still be found.
    OwnLog::new(log.to_owned(), 0, config.log_files, false).put_aside()?;
    let file = files::own_file(log)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("daemon").arg("--detach");
    if let Some(path) = &args.config {
        command.arg("--config").arg(std::path::absolute(path).unwrap_or_else(|_| path.clone()));
    }
    command
        .env(DETACHED, std::path::absolute(log)?)
        .env("NOTIFY_SOCKET", ready)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    let mut child = programs::in_own_session(&mut command).spawn()?;
    let until = Instant::now() + DETACHING;
    heard.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut buffer = [0u8; 4096];
    while Instant::now() < until {
        if let Ok(length) = heard.recv(&mut buffer)
            && String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == "READY=1")
        {
            let pid = instance_dir::daemon_of(&config.home).map_or_else(|| child.id(), |card| card.pid);
            say!("regrow daemon (pid {pid}) is up; its output goes to {}", log.display());
            return Ok(Ok(()));
        }
        if let Some(status) = child.try_wait()? {
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(code::FAILED);
            return Ok(Err(code.max(code::FAILED)));
        }
    }
    Ok(Err(code::TIMED_OUT))
}
