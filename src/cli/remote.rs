//! The verbs that talk to a running tree over its control socket, and what they share: finding the
//! tree, asking it, and reporting what goes wrong.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use events::show_event;
use serde::Serialize;
use status::note;

use super::aim::{self, Aim};
use super::{
    AddArgs, Common, DownArgs, EventsArgs, LogsArgs, Patience, PlainArgs, Select, StartArgs, StopArgs,
    WaitArgs, WhyArgs, code, format, runtime, usage_error,
};
use crate::control::client::{Client, Error, encode};
use crate::control::instance_dir;
use crate::control::protocol::{
    Add, Added, Down, ErrorBody, Events, FaultBody, LogLine, Logs, LogsEnd, StreamName, Wait, Waited,
    WhyReport,
};
use crate::decide::humanize::{few, lost_sight, short};
use crate::host::processes;
use crate::manifest::{Fault, LoadError, Source};
use crate::model::{Answer, Command, Denial, DenialCode, Event, Fact, Selector, State, StatusReport};
use crate::sys::terminal;

pub(super) use admin::{
    api_schema, audit, called, history, reload, reloaded_in_words, tell_reloaded, tell_trouble, upgrade,
};
pub(super) use events::fact_in_words;
pub(super) use status::status;

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
fn with_text(faults: &[FaultBody]) -> Option<Vec<Fault>> {
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

fn tell_by_place(faults: &[FaultBody]) {
    for FaultBody { file, line, column, message, hint, .. } in faults {
        tell!("{}: {}:{line}:{column}: {message}", format::error_word(), file.display());
        if let Some(hint) = hint {
            tell!("  = help: {hint}");
        }
    }
}

fn not_running(reason: &str) -> ErrorBody {
    let error = Denial { code: DenialCode::NotRunning, reason: reason.to_owned(), hint: None };
    ErrorBody { error, faults: Vec::new() }
}

/// The time that a supervisor has to end after it is down, beyond that of its hooks; only then is
/// it safe to start the tree again.
const LEAVING: Duration = Duration::from_secs(15);
/// The time that a reader of logs waits for its turn while others read.
const TURN: Duration = Duration::from_secs(30);
/// The time after its last message in which a supervisor that ends in order removes its socket.
const CLOSING: Duration = Duration::from_secs(1);
/// A wait that is longer than this is announced.
const WORDLESS: Duration = Duration::from_millis(300);

/// The time that a command waits for a daemon whose keeper is about to start it.
const COMING: Duration = Duration::from_secs(5);

/// A connection to the tree that is meant. It waits where a keeper is just starting the daemon
/// again, and returns the reason where there is no connection.
async fn client(common: &Common) -> Result<Client, String> {
    let since = tokio::time::Instant::now();
    loop {
        let why = match socket(common) {
            Ok(path) => match Client::connect(&path).await {
                Ok(client) => return Ok(client),
                Err(error) => error.to_string(),
            },
            Err(why) => why,
        };
        let kept = may_be_the_daemon(common) && super::daemon::is_kept();
        if kept && since.elapsed() > COMING {
            return Err("a daemon is there, and does not answer on its control socket".to_owned());
        }
        if !kept {
            return Err(why);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether to wait for a daemon that is being started again: not where another tree is meant.
fn may_be_the_daemon(common: &Common) -> bool {
    let own = !common.daemon && aim::given() == Aim::Own;
    common.socket.is_some()
        || !own
        || super::here()
            .is_ok_and(|cwd| instance_dir::own_manifest(&cwd, super::daemon::reached().as_ref()).is_none())
}

fn socket(common: &Common) -> Result<PathBuf, String> {
    if let Some(socket) = &common.socket {
        return Ok(socket.clone());
    }
    let aim = if common.daemon { Aim::Daemon } else { aim::given() };
    if aim == Aim::Daemon {
        return super::daemon::reached()
            .map(|daemon| daemon.socket)
            .filter(|socket| socket.exists())
            .ok_or_else(|| "no daemon runs (regrow daemon)".to_owned());
    }
    // Inside a service, the supervisor of that service is meant.
    if let Some(socket) = std::env::var_os("REGROW_SOCKET").filter(|s| !s.is_empty()) {
        return Ok(PathBuf::from(socket));
    }
    let cwd = super::here()?;
    let daemon = super::daemon::reached();
    match aim {
        Aim::Own => instance_dir::find_own(&cwd, daemon.as_ref()),
        Aim::Looks | Aim::Daemon => instance_dir::find(&cwd, daemon.as_ref()),
    }
}

pub(super) fn query(services: &[String]) -> String {
    services.iter().map(|s| format!("&service={}", encode(s))).collect()
}

fn states(states: &[State]) -> String {
    states.iter().map(|state| format!("&state={state}")).collect()
}

fn selector(select: Select) -> Selector {
    Selector { services: select.services, all: select.all, groups: select.group, tags: select.tag }
}

pub(super) fn start(args: StartArgs) -> u8 {
    let StartArgs { select, patience, no_deps, common } = args;
    command("start", Command::Start { select: selector(select), no_deps }, &patience, &common)
}

pub(super) fn stop(args: StopArgs) -> u8 {
    let StopArgs { select, patience, force, common } = args;
    command("stop", Command::Stop { select: selector(select), force }, &patience, &common)
}

pub(super) fn restart(args: PlainArgs) -> u8 {
    let PlainArgs { select, patience, common } = args;
    command("restart", Command::Restart { select: selector(select) }, &patience, &common)
}

pub(super) fn pause(args: PlainArgs) -> u8 {
    let PlainArgs { select, patience, common } = args;
    command("pause", Command::Pause { select: selector(select) }, &patience, &common)
}

pub(super) fn resume(args: PlainArgs) -> u8 {
    let PlainArgs { select, patience, common } = args;
    command("resume", Command::Resume { select: selector(select) }, &patience, &common)
}

pub(super) fn add(args: AddArgs) -> u8 {
    let AddArgs { file, group, patience, common } = args;
    let unreadable = |error| {
        super::report::tell(&LoadError::Unreadable { path: file.clone(), error });
        code::MANIFEST
    };
    let read = file.canonicalize().and_then(|file| {
        if std::fs::metadata(&file)?.len() > LARGEST_ADDITION {
            return Err(std::io::Error::other("it is larger than 16 MiB; add it in parts"));
        }
        Ok((std::fs::read_to_string(&file)?, file))
    });
    let (manifest, file) = match read {
        Ok(read) => read,
        Err(error) => return unreadable(error),
    };
    let body = Add { manifest, file, group };
    ask("/v1/add", &body, &patience, &common, |added: &Added| {
        if let Some(warnings) = with_text(&added.warnings) {
            super::report::warn(&warnings);
        }
        &added.answer
    })
}

/// The size of the largest manifest that is sent, in bytes.
const LARGEST_ADDITION: u64 = 16 << 20;

pub(super) fn remove(args: PlainArgs) -> u8 {
    let PlainArgs { select, patience, common } = args;
    command("remove", Command::Remove { select: selector(select) }, &patience, &common)
}

fn command(verb: &str, command: Command, patience: &Patience, common: &Common) -> u8 {
    if command.select().is_some_and(Selector::is_empty) {
        return usage_error(verb, "name services, or say --all, --group or --tag");
    }
    ask("/v1/command", &command, patience, common, |answer: &Answer| answer)
}

/// The answer, or an error where it does not come in time.
async fn within<T>(patience: &Patience, asked: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let Some(limit) = patience.timeout else {
        return asked.await;
    };
    tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| {
        Err(Error::Denied(Denial {
            code: DenialCode::TimedOut,
            reason: format!("not done within {}; it goes on", short(limit)),
            hint: Some("\"regrow why SERVICE\" tells what it waits for".to_owned()),
        }))
    })
}

/// Sends a request that is answered when it is done.
fn ask<T: Serialize + serde::de::DeserializeOwned>(
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

pub(super) fn logs(args: LogsArgs) -> u8 {
    let LogsArgs { services, follow, lines, since, grep, common } = args;
    let pattern = match grep.as_deref().map(regex::Regex::new).transpose() {
        Ok(pattern) => pattern,
        Err(error) => return usage_error("logs", &format!("--grep: {error}")),
    };
    let fits = |line: &LogLine| pattern.as_ref().is_none_or(|p| p.is_match(&line.text));
    // With a pattern, the last N matching lines are meant, so all lines are asked for.
    let asked = if pattern.is_some() { None } else { lines };
    let mut path = format!("/v1/logs?{}", query(&services).trim_start_matches('&'));
    if let Some(lines) = asked {
        path.push_str(&format!("&lines={lines}"));
    }
    if let Some(since) = since {
        path.push_str(&format!("&since_s={}", since.as_secs_f64()));
    }
    let path = path.replace("?&", "?");
    talk(&common, async |mut client| {
        if !follow {
            let since = tokio::time::Instant::now();
            let mut found: Logs = loop {
                match client.get(&path).await {
                    // Other readers are being served first.
                    Err(Error::Denied(denial))
                        if denial.code == DenialCode::TooManyRequests && since.elapsed() < TURN =>
                    {
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                    found => break found?,
                }
            };
            found.lines.retain(&fits);
            if let Some(lines) = lines {
                found.lines.drain(..found.lines.len().saturating_sub(lines));
            }
            if common.json {
                print_json(&found);
            } else {
                let width = found.lines.iter().map(|l| l.name.len()).max().unwrap_or(0);
                found.lines.iter().for_each(|line| show_line(line, width));
            }
            let LogsEnd { cut, files } = &found.end;
            if *cut && lines.is_none_or(|lines| found.lines.len() < lines) {
                let files = few(files.iter().map(|file| file.display().to_string()));
                tell!(
                    "regrow: older lines are left out, they are too many for one answer; they are in {files}"
                );
            }
            return Ok(code::DONE);
        }
        let at = socket(&common).ok();
        let separator = if path.ends_with('?') { "" } else { "&" };
        let mut stream = client.follow(&format!("{path}{separator}follow=true")).await?;
        let mut width = services.iter().map(String::len).max().unwrap_or(0);
        loop {
            while let Some(event) = stream.next().await? {
                match event.name.as_str() {
                    "line" => {
                        let line: LogLine =
                            serde_json::from_str(&event.data).map_err(|e| Error::Broken(e.to_string()))?;
                        if !fits(&line) {
                            continue;
                        }
                        width = width.max(line.name.len());
                        if common.json { say(&event.data) } else { show_line(&line, width) }
                    }
                    "dropped" => tell!("regrow: {} lines were not shown: they came too fast", event.data),
                    _ => {}
                }
            }
            if !super::daemon::is_kept() {
                return Ok(followed_to_its_end(at.as_deref(), false).await);
            }
            // Only lines from now on are shown.
            let goes_on = format!("/v1/logs?follow=true&lines=0{}", query(&services));
            stream = match client.follow_again(&goes_on).await {
                Ok(stream) => stream,
                Err(Error::NotRunning(_) | Error::Broken(_)) => {
                    return Ok(followed_to_its_end(at.as_deref(), false).await);
                }
                Err(error) => return Err(error),
            };
            tell!("regrow: another supervisor goes on; \"regrow logs\" has what was printed meanwhile");
        }
    })
}

fn show_line(line: &LogLine, width: usize) {
    let bar = match line.stream {
        StreamName::Stdout => "|",
        StreamName::Stderr => "!",
    };
    say(&format!("{:width$} {bar} {}", line.name, line.text));
}

pub(super) fn why(args: WhyArgs) -> u8 {
    let WhyArgs { service, common } = args;
    talk(&common, async |mut client| {
        let report: WhyReport = client.get(&format!("/v1/why?service={}", encode(&service))).await?;
        if common.json {
            print_json(&report);
            return Ok(code::DONE);
        }
        for (at, why) in report.services.iter().enumerate() {
            if at > 0 {
                say("");
            }
            for (depth, link) in why.chain.iter().enumerate() {
                let arrow =
                    if depth == 0 { String::new() } else { format!("{}└─ ", "   ".repeat(depth - 1)) };
                say(&format!("{arrow}{} is {}: {}", link.name, link.state, link.because));
            }
            // A healthy service needs no last lines.
            if let Some(end) = why.chain.last()
                && !why.last_lines.is_empty()
                && (matches!(end.state, State::Failed | State::Crashed) || why.check.is_some())
            {
                say(&format!("last lines of {}:", end.name));
                why.last_lines.iter().for_each(|line| say(&format!("  {line}")));
            }
        }
        Ok(code::DONE)
    })
}

pub(super) fn events(args: EventsArgs) -> u8 {
    let EventsArgs { services, follow, state, since, common } = args;
    let mut path = format!("/v1/events?follow={follow}{}{}", query(&services), states(&state));
    if let Some(since) = since {
        match (since.parse::<u64>(), super::duration(&since)) {
            (Ok(number), _) => path.push_str(&format!("&since={number}")),
            (Err(_), Ok(age)) => path.push_str(&format!("&since_s={}", age.as_secs_f64())),
            (Err(_), Err(error)) => return usage_error("events", &format!("--since: {error}")),
        }
    }
    talk(&common, async |mut client| {
        if !follow {
            let found: Events = client.get(&path).await?;
            if common.json {
                print_json(&found);
            } else {
                found.events.iter().for_each(show_event);
            }
            return Ok(code::DONE);
        }
        let at = socket(&common).ok();
        let mut stream = client.follow(&path).await?;
        let mut last: Option<Event> = None;
        loop {
            while let Some(event) = stream.next().await? {
                match event.name.as_str() {
                    "event" => {
                        let read: Event =
                            serde_json::from_str(&event.data).map_err(|e| Error::Broken(e.to_string()))?;
                        if common.json {
                            say(&event.data);
                        } else {
                            show_event(&read);
                        }
                        last = Some(read);
                    }
                    "missed" => tell!("regrow: {} events were not shown: they came too fast", event.data),
                    "reset" => tell!("regrow: the numbers begin anew: the store of the events was lost"),
                    _ => {}
                }
            }
            // The supervisor has ended. Unless it meant to, a next one goes on.
            let Some(Event { seq, fact, .. }) = &last else {
                return Ok(code::DONE);
            };
            let ended = matches!(fact, Fact::ShutdownDone);
            if ended || !super::daemon::is_kept() {
                return Ok(followed_to_its_end(at.as_deref(), ended).await);
            }
            let goes_on = format!("/v1/events?follow=true&since={seq}{}{}", query(&services), states(&state));
            stream = match client.follow_again(&goes_on).await {
                Ok(stream) => stream,
                Err(Error::NotRunning(_) | Error::Broken(_)) => {
                    return Ok(followed_to_its_end(at.as_deref(), false).await);
                }
                Err(error) => return Err(error),
            };
        }
    })
}

/// Reports the end of what was followed, where no supervisor goes on. It counts as a kill unless
/// the supervisor has said so (`ended`) or has removed its socket.
async fn followed_to_its_end(socket: Option<&Path>, ended: bool) -> u8 {
    let until = tokio::time::Instant::now() + CLOSING;
    let is_there = || socket.is_some_and(Path::exists);
    while !ended && is_there() {
        if tokio::time::Instant::now() > until {
            tell!("{}: who was followed was killed, and nobody goes on", format::error_word());
            return code::NOT_RUNNING;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    code::DONE
}

pub(super) fn wait(args: WaitArgs) -> u8 {
    let WaitArgs { services, for_, timeout, common } = args;
    let wait = Wait { services, for_: for_.into(), timeout_s: timeout.map(|t| t.as_secs_f64()) };
    talk(&common, async |mut client| {
        let waited: Waited = client.post("/v1/wait", &wait).await?;
        if common.json {
            print_json(&waited);
        } else if !waited.ok {
            for service in &waited.services {
                let note = note(service);
                let note = if note.is_empty() { note } else { format!(" ({note})") };
                tell!("{}: {}{note}", service.name, service.state);
            }
            let is_there = |name: &String| {
                waited.services.iter().any(|s| {
                    s.name == *name
                        || s.id == *name
                        || s.service.short() == name
                        || s.service.as_str() == name
                })
            };
            for name in wait.services.iter().filter(|name| !is_there(name)) {
                tell!("{name}: removed");
            }
        }
        Ok(match (waited.ok, waited.timed_out) {
            (true, _) => code::DONE,
            (false, true) => {
                if !common.json {
                    tell!("{}: not {} in time", format::error_word(), wait.for_);
                }
                code::TIMED_OUT
            }
            (false, false) => code::FAILED,
        })
    })
}

pub(super) fn down(args: DownArgs) -> u8 {
    let DownArgs { common } = args;
    talk(&common, async |mut client| {
        let status: StatusReport = client.get("/v1/status").await?;
        // The process is pinned while it lives: its pid may belong to another process afterwards.
        let ends = processes::SupervisorEnd::of_supervisor(status.daemon.pid);
        let down: Down = client.post("/v1/down", &()).await?;
        drop(client);
        let services = status.services.len();
        let longest = Duration::try_from_secs_f64(down.hooks_may_take_s).unwrap_or(Duration::MAX);
        let leaving = LEAVING.saturating_add(longest);
        // A hook of the tree, or a service of it, must not wait: the supervisor waits for it to end.
        let waits = std::env::var_os("REGROW_SOCKET").is_none();
        // A short wait is not announced.
        let mut gone = !waits || (!down.hooks.is_empty() && ends.wait(WORDLESS));
        if !gone && !down.hooks.is_empty() && !common.json {
            let names = few(&down.hooks);
            let down = if down.stuck.is_empty() { "every service is down" } else { "all else is down" };
            say(&format!("{down}; waiting for {names}, {} at most", short(longest)));
        }
        gone = gone || ends.wait(leaving);
        if common.json {
            print_json(&down);
        } else if !down.stuck.is_empty() || !down.lost_sight.is_empty() {
            for lost in &down.lost_sight {
                tell!("{}: {}: {}", format::error_word(), lost.name, lost_sight(lost.of));
            }
            for stuck in &down.stuck {
                let pid = stuck.pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
                tell!(
                    "{}: {}{pid} is stuck in the kernel: SIGKILL has not ended it; all else is down",
                    format::error_word(),
                    stuck.name
                );
            }
        } else {
            let what = match status.daemon.manifest {
                None if status.daemon.is_daemon => "daemon".to_owned(),
                _ => status.daemon.project.clone(),
            };
            let noun = if services == 1 { "service" } else { "services" };
            let tasks = match down.tasks {
                0 => String::new(),
                1 => ", 1 command of the pool was ended".to_owned(),
                count => format!(", {count} commands of the pool were ended"),
            };
            say(&format!(
                "everything is down: stopped {what} (pid {}, {services} {noun}{tasks})",
                status.daemon.pid
            ));
        }
        if !gone {
            tell!(
                "regrow: the supervisor (pid {}) has not ended within {}",
                status.daemon.pid,
                short(leaving)
            );
            return Ok(code::FAILED);
        }
        Ok(if down.ok { code::DONE } else { code::FAILED })
    })
}

mod admin;
mod events;
mod status;
