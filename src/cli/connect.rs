//! A verb's conversation with a running tree: which tree is meant, the connection, and how its errors are told.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::cli::aim::{self, Aim};
use crate::cli::args::{Common, Patience, Select};
use crate::cli::config_file::default_paths;
use crate::cli::{code, format, runtime, usage_error};
use crate::control::client::{Client, Error, encode};
use crate::control::instance_dir;
use crate::control::protocol::{ErrorBody, FaultBody};
use crate::manifest::Source;
use crate::manifest::config::load_config;
use crate::manifest::fault::{Fault, LoadError};
use crate::model::{Answer, Command, Denial, DenialCode, Selector, State};
use crate::present::units::short;
use crate::sys::{locks, terminal};

/// Prints one JSON object and a newline.
pub(super) fn print_json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => say(&text),
        Err(error) => tell!("{}: {error}", format::error_word()),
    }
}

/// Shows a text in place of the one shown before; without a terminal, below it.
pub(super) fn picture(text: &str) {
    if !terminal::stdout_is_terminal() {
        return say(text);
    }
    // The cursor goes home, the new picture overwrites the old one line by line, and whatever is left
    // below is cleared. A picture higher than the screen would scroll its own head away, so it is cut.
    let height = terminal::height().map_or(usize::MAX, |height| height.saturating_sub(1).max(1));
    let picture: String = text.lines().take(height).map(|line| format!("{line}\x1b[K\n")).collect();
    let _ = write!(std::io::stdout(), "\x1b[H{picture}\x1b[J").and_then(|()| std::io::stdout().flush());
}

pub(super) fn say(line: &str) {
    say!("{line}");
}

/// The result of a conversation: an exit code.
pub(super) type Conversation = Result<u8, Error>;

/// Runs a conversation with the running tree, and reports what goes wrong.
pub(super) fn talk<F>(common: &Common, conversation: F) -> u8
where
    F: AsyncFnOnce(Client) -> Conversation,
{
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            tell!("{}: {error}", format::error_word());
            return code::FAILED;
        }
    };
    let ended = runtime.block_on(async {
        match client(common).await {
            Ok(client) => conversation(client).await.map_err(Ok),
            Err(reason) => Err(Err(reason)),
        }
    });
    match ended {
        Ok(code) => code,
        Err(Err(reason)) => {
            if common.json {
                print_json(&not_running(&reason));
            }
            tell!("{}: {reason}", format::error_word());
            code::NOT_RUNNING
        }
        Err(Ok(error)) => {
            if common.json {
                print_json(&match &error {
                    Error::Denied(denial) => ErrorBody { error: denial.clone(), faults: Vec::new() },
                    Error::Faulty(denial, faults) => {
                        ErrorBody { error: denial.clone(), faults: faults.clone() }
                    }
                    Error::NotRunning(_) | Error::Broken(_) | Error::Silent(_) | Error::Unreadable(_) => {
                        not_running(&error.to_string())
                    }
                });
            }
            if let Error::Faulty(denial, faults) = error {
                let outcome = denial.reason.rsplit("; ").next().unwrap_or_default();
                match with_text(&faults) {
                    Some(faults) => super::report::tell_and(&LoadError::Faulty(faults), outcome),
                    None => tell_by_place(&faults),
                }
                return code::MANIFEST;
            }
            tell!("{}: {error}", format::error_word());
            match error {
                Error::NotRunning(_) => code::NOT_RUNNING,
                Error::Denied(Denial { hint, code: denied, .. }) => {
                    if let Some(hint) = hint {
                        tell!("  = help: {hint}");
                    }
                    match denied {
                        DenialCode::TimedOut => code::TIMED_OUT,
                        DenialCode::Invalid => code::USAGE,
                        DenialCode::NotRunning => code::NOT_RUNNING,
                        DenialCode::Faulty => code::MANIFEST,
                        DenialCode::NotFound
                        | DenialCode::Ambiguous
                        | DenialCode::NoSuchMethod
                        | DenialCode::Unauthorized
                        | DenialCode::Forbidden
                        | DenialCode::Misdirected
                        | DenialCode::TooLarge
                        | DenialCode::TooManyRequests
                        | DenialCode::KeyReused
                        | DenialCode::Exists
                        | DenialCode::WrongState
                        | DenialCode::HasDependents
                        | DenialCode::DependencyDown
                        | DenialCode::ShuttingDown
                        | DenialCode::Internal => code::FAILED,
                    }
                }
                Error::Broken(_) | Error::Silent(_) | Error::Unreadable(_) | Error::Faulty(..) => {
                    code::FAILED
                }
            }
        }
    }
}

/// Turns faults that came over the socket back into faults with the text of their files, which are
/// read again. Returns `None` if the text has changed since.
pub(super) fn with_text(faults: &[FaultBody]) -> Option<Vec<Fault>> {
    let mut sources: HashMap<&Path, Arc<Source>> = HashMap::new();
    let cwd = super::here().ok();
    let shown = |path: &Path| {
        let relative = cwd.as_ref().and_then(|cwd| path.strip_prefix(cwd).ok());
        relative.unwrap_or(path).to_owned()
    };
    let mut found = Vec::new();
    for fault in faults {
        let source = match sources.get(fault.file.as_path()) {
            Some(source) => Arc::clone(source),
            None => {
                let text = std::fs::read_to_string(&fault.file).ok()?;
                let source = Arc::new(Source::new(shown(&fault.file), text));
                sources.insert(&fault.file, Arc::clone(&source));
                source
            }
        };
        let also = fault.also.iter().map(|(span, _)| span.end);
        let fits = also.chain([fault.span.end]).all(|end| end <= source.text.len());
        if !fits || source.place(fault.span.start) != (fault.line, fault.column) {
            return None;
        }
        found.push(fault.clone().with(source));
    }
    Some(found)
}

pub(super) fn tell_by_place(faults: &[FaultBody]) {
    for FaultBody { file, line, column, message, hint, .. } in faults {
        tell!("{}: {}:{line}:{column}: {message}", format::error_word(), file.display());
        if let Some(hint) = hint {
            tell!("  = help: {hint}");
        }
    }
}

pub(super) fn not_running(reason: &str) -> ErrorBody {
    let error = Denial { code: DenialCode::NotRunning, reason: reason.to_owned(), hint: None };
    ErrorBody { error, faults: Vec::new() }
}

/// The time that a supervisor has to end after it is down, beyond that of its hooks; only then is
/// it safe to start the tree again.
pub(super) const LEAVING: Duration = Duration::from_secs(15);

/// The time that a reader of logs waits for its turn while others read.
pub(super) const TURN: Duration = Duration::from_secs(30);

/// The time after its last message in which a supervisor that ends in order removes its socket.
pub(super) const CLOSING: Duration = Duration::from_secs(1);

/// A wait that is longer than this is announced.
pub(super) const WORDLESS: Duration = Duration::from_millis(300);

/// The time that a command waits for a daemon whose keeper is about to start it.
pub(super) const COMING: Duration = Duration::from_secs(5);

/// A connection to the tree that is meant. It waits where a keeper is just starting the daemon
/// again, and returns the reason where there is no connection.
pub(super) async fn client(common: &Common) -> Result<Client, String> {
    let since = tokio::time::Instant::now();
    loop {
        let why = match socket(common) {
            Ok(path) => match Client::connect(&path).await {
                Ok(client) => return Ok(client),
                Err(error) => error.to_string(),
            },
            Err(why) => why,
        };
        let kept = may_be_the_daemon(common) && is_kept();
        if kept && since.elapsed() > COMING {
            return Err("a daemon is running but does not answer on its control socket".to_owned());
        }
        if !kept {
            return Err(why);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether to wait for a daemon that is being started again: not where another tree is meant.
pub(super) fn may_be_the_daemon(common: &Common) -> bool {
    let own = !common.daemon && aim::given() == Aim::Own;
    common.socket.is_some()
        || !own
        || super::here().is_ok_and(|cwd| instance_dir::own_manifest(&cwd, reached().as_ref()).is_none())
}

pub(super) fn socket(common: &Common) -> Result<PathBuf, String> {
    if let Some(socket) = &common.socket {
        return Ok(socket.clone());
    }
    let aim = if common.daemon { Aim::Daemon } else { aim::given() };
    if aim == Aim::Daemon {
        return reached()
            .map(|daemon| daemon.socket)
            .filter(|socket| socket.exists())
            .ok_or_else(|| "no daemon is running (start one with \"regrow daemon\")".to_owned());
    }
    // Inside a service, the supervisor of that service is meant.
    if let Some(socket) = std::env::var_os("REGROW_SOCKET").filter(|s| !s.is_empty()) {
        return Ok(PathBuf::from(socket));
    }
    let cwd = super::here()?;
    let daemon = reached();
    match aim {
        Aim::Own => instance_dir::find_own(&cwd, daemon.as_ref()),
        Aim::Looks | Aim::Daemon => instance_dir::find(&cwd, daemon.as_ref()),
    }
}

pub(super) fn query(services: &[String]) -> String {
    services.iter().map(|s| format!("&service={}", encode(s))).collect()
}

pub(super) fn states(states: &[State]) -> String {
    states.iter().map(|state| format!("&state={state}")).collect()
}

pub(super) fn selector(select: Select) -> Selector {
    Selector { services: select.services, all: select.all, groups: select.group, tags: select.tag }
}

pub(super) fn command(verb: &str, command: Command, patience: &Patience, common: &Common) -> u8 {
    if command.select().is_some_and(Selector::is_empty) {
        return usage_error(verb, "name services, or use --all, --group or --tag");
    }
    ask("/v1/command", &command, patience, common, |answer: &Answer| answer)
}

/// The answer, or an error where it does not come in time.
pub(super) async fn within<T>(
    patience: &Patience,
    asked: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let Some(limit) = patience.timeout else {
        return asked.await;
    };
    tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| {
        Err(Error::Denied(Denial {
            code: DenialCode::TimedOut,
            reason: format!("the command was not done within {}; it continues", short(limit)),
            hint: Some("\"regrow why SERVICE\" shows what it waits for".to_owned()),
        }))
    })
}

/// Sends a request that is answered when it is done.
pub(super) fn ask<T: Serialize + serde::de::DeserializeOwned>(
    path: &str,
    body: &impl Serialize,
    patience: &Patience,
    common: &Common,
    answer_of: impl FnOnce(&T) -> &Answer,
) -> u8 {
    talk(common, async |mut client| {
        let got: T = within(patience, client.post(path, body)).await?;
        let answer = answer_of(&got);
        if common.json {
            print_json(&got);
        } else {
            for result in &answer.results {
                let line = format!("{}: {}", result.name, result.message);
                if result.ok {
                    say(&line);
                } else {
                    tell!("{line}");
                }
            }
        }
        Ok(if answer.ok { code::DONE } else { code::FAILED })
    })
}

/// Whether a keeper or a daemon of this user exists, even when it does not answer.
pub(super) fn is_kept() -> bool {
    load_config(None, &default_paths()).is_ok_and(|config| locks::is_locked(&config.home))
}

/// The socket of the daemon that this user's commands reach. The daemon's own word comes first,
/// since it may have been started with another configuration.
pub(super) fn reached() -> Option<instance_dir::Reached> {
    let config = load_config(None, &default_paths()).ok()?;
    let card = instance_dir::daemon_of(&config.home);
    let configuration = card.as_ref().map(|card| card.manifest.clone());
    Some(instance_dir::Reached {
        socket: card.and_then(|card| card.socket).unwrap_or(config.socket),
        configuration: configuration.filter(|path| !path.as_os_str().is_empty()),
    })
}
