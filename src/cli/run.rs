//! `run`: supervises a tree in the foreground, until it is down.
//!
//! It prepares, starts, follows and concludes; `ending` decides when and how a run ends, `screen` what
//! is shown of the tree.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ending::{Act, Ending, Heard, Standing};
use screen::Screen;
use tokio::sync::watch;

use super::args::develop::RunArgs;
use super::console::Console;
use super::diagnostics::{self, Diagnostics, DiagnosticsTarget};
use super::format::{self, Tint};
use super::{code, report, supervisors_runtime, usage_error};
use crate::actors::LogRetention;
use crate::actors::event_log::NextEvent;
use crate::control::instance_dir::{self, Card, InstanceDir, InstanceDirError};
use crate::control::server::{self, Listeners};
use crate::decide::message::StepSink;
use crate::decide::select::{Selection, select};
use crate::decide::tree_state::InstanceState;
use crate::host::native::HostOptions;
use crate::host::{keeper, processes};
use crate::manifest::Loaded;
use crate::manifest::config::DiagnosticsConfig;
use crate::model::{InstanceId, Name, Plan, State};
use crate::record::recording::Recorder;
use crate::runtime::{Handle, Options};
use crate::sys::signals::Signals;
use crate::sys::{files, sockets};

mod ending;
mod screen;

/// After this long without a line, the run names the instances that it waits for.
const SILENCE: Duration = Duration::from_secs(3);
/// After this long in a stop, the run names the instances that it waits for.
const LINGERING: Duration = Duration::from_secs(1);
/// A second Ctrl-C sooner than this is the first one, heard twice: some wrappers signal a
/// process and its group.
const TWICE: Duration = Duration::from_millis(50);

/// The time that answers under way have at the end of the run.
const FAREWELL: Duration = Duration::from_millis(500);

pub(super) fn run(mut args: RunArgs) -> u8 {
    // `run --only web dev-env.toml`: the last word is the manifest.
    if args.file.is_none()
        && args.only.len() > 1
        && args.only.last().is_some_and(|last| last.ends_with(".toml"))
    {
        args.file = args.only.pop().map(PathBuf::from);
    }
    // The process divides in two here, so it must not have started any thread yet.
    let above = match keeper::divide() {
        Ok(above) => above,
        Err(error) => {
            tell!("{}: can't start a keeper: {error}", format::error_word());
            return code::FAILED;
        }
    };
    let (path, plan) = match planned(&args) {
        Ok(planned) => planned,
        Err(code) => return code,
    };
    let runtime = match supervisors_runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            tell!("{}: {error}", format::error_word());
            return code::FAILED;
        }
    };
    let ended = runtime.block_on(supervise(args, path, plan, above));
    // Everything is down and reported, so the rest of this process may go at once.
    processes::exit(i32::from(ended))
}

/// The manifest's path, and the plan of what is to run of it. `Err`: what is wrong was told, and this is the
/// exit code.
fn planned(args: &RunArgs) -> Result<(PathBuf, Plan), u8> {
    let (path, loaded) = report::load_or_tell(args.file.as_deref(), &args.env_file)?;
    let Loaded { plan, graph, .. } = loaded;
    let mut only = args.only.clone();
    if let Some(name) = &args.exit_on_end {
        if plan.service(name).is_none() {
            return Err(usage_error("run", &format!("--exit-on-end: there is no service {name:?}")));
        }
        if !only.is_empty() && !only.contains(name) {
            only.push(name.clone());
        }
    }
    let selection = Selection { only, no_deps: args.no_deps, profiles: args.profile.clone() };
    let plan = select(&plan, &graph, &selection).map_err(|denial| {
        let hint = denial.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
        usage_error("run", &format!("{}{hint}", denial.reason))
    })?;
    if let Some(name) = &args.exit_on_end
        && !plan.service(name).is_some_and(|service| service.autostart)
    {
        return Err(usage_error("run", &format!("--exit-on-end: {name} is not started by this run")));
    }
    Ok((path, plan))
}

/// What a run has around its tree.
struct Surroundings {
    /// The instance directory and the control socket in it; `None` where none can be had.
    place: Option<InstanceDir>,
    listener: Option<UnixListener>,
    names: Vec<InstanceId>,
    console: Arc<Console>,
    signals: Signals,
    recorder: Option<Box<dyn StepSink>>,
    /// `None` where there is no place for what regrow has to say about itself.
    diagnostics: Option<Diagnostics>,
}

/// Takes the run's place, and opens its console, its socket and its recording. `Err`: what is wrong was told,
/// and this is the exit code.
fn prepare(args: &RunArgs, path: &Path, manifest: &Path, plan: &Plan) -> Result<Surroundings, u8> {
    let failed = |words: String| {
        tell!("{}: {words}", format::error_word());
        code::FAILED
    };
    let place = take_place(args, path, manifest)?;
    let diagnostics = diagnose(args, place.as_ref()).map_err(|error| failed(error.to_string()))?;
    let names: Vec<InstanceId> =
        plan.services.iter().flat_map(|service| service.instances().collect::<Vec<_>>()).collect();
    let console = Console::start(&names).map_err(|error| failed(error.to_string()))?;
    let signals = Signals::listen().map_err(|error| failed(format!("can't listen to signals: {error}")))?;
    let listen = |place: &InstanceDir| sockets::listen(&place.socket, sockets::SocketAccess::Owner);
    let listener = place.as_ref().and_then(|place| listen(place).map_err(without_socket).ok());
    let recorder: Option<Box<dyn StepSink>> =
        match &args.record {
            None => None,
            Some(path) => Some(Box::new(Recorder::create(path, plan).map_err(|error| {
                failed(format!("can't create the recording {}: {error}", path.display()))
            })?)),
        };
    Ok(Surroundings { place, listener, names, console, signals, recorder, diagnostics })
}

/// Begins to write down what regrow has to say about itself.
fn diagnose(args: &RunArgs, place: Option<&InstanceDir>) -> std::io::Result<Option<Diagnostics>> {
    if let Some(file) = args.log_file.as_ref().filter(|file| file.as_os_str() != "-")
        && let Err(error) = files::own_file(file)
    {
        tell!("regrow: nothing is written about regrow itself: {} can't be used: {error}", file.display());
        return Ok(None);
    }
    let target = match (&args.log_file, place) {
        (Some(file), _) if file.as_os_str() == "-" => DiagnosticsTarget::Stderr,
        (Some(file), _) => DiagnosticsTarget::File(std::path::absolute(file)?),
        (None, Some(place)) => DiagnosticsTarget::File(place.folder.join("diagnostics.log")),
        (None, None) => return Ok(None),
    };
    let configured = DiagnosticsConfig { format: args.log_format, ..DiagnosticsConfig::default() };
    diagnostics::start(target, args.log_level, configured).map(Some)
}

fn without_socket(error: std::io::Error) {
    tell!("regrow: can't create the control socket, so other commands won't find this run: {error}");
}

fn take_place(args: &RunArgs, path: &Path, manifest: &Path) -> Result<Option<InstanceDir>, u8> {
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let card = Card {
        pid: std::process::id(),
        manifest: manifest.to_owned(),
        cwd: std::env::current_dir().unwrap_or_default(),
        socket: args.socket.as_ref().map(absolute),
    };
    match instance_dir::take(manifest, &card) {
        Ok(place) => Ok(Some(place)),
        Err(InstanceDirError::ByAnother(other)) if processes::is_dead_but_for_a_thread(other.pid) => {
            tell!(
                "{}: the run of {} (pid {}) has ended, but one of its threads still waits for a disk that does not answer",
                format::error_word(),
                path.display(),
                other.pid
            );
            Err(code::FAILED)
        }
        Err(InstanceDirError::ByAnother(other)) => {
            tell!("{}: {} is running already (pid {})", format::error_word(), path.display(), other.pid);
            tell!("  = help: \"regrow status\" shows it, \"regrow down\" ends it");
            Err(code::FAILED)
        }
        Err(InstanceDirError::Unusable(error)) => {
            without_socket(error);
            Ok(None)
        }
    }
}

/// The first line of a run.
fn announce(console: &Console, plan: &Plan, path: &Path) {
    let starting = plan.services.iter().filter(|service| service.autostart);
    let services = starting.clone().count();
    let instances: usize = starting.map(|service| service.instances().count()).sum();
    let noun = if services == 1 { "service" } else { "services" };
    let copies = if instances == services { String::new() } else { format!(", {instances} instances") };
    let (version, project) = (env!("CARGO_PKG_VERSION"), &plan.project);
    let line = format!("regrow {version}: {project} from {}, {services} {noun}{copies}", path.display());
    console.say(&line, Tint::Faint);
}

/// Prepares, starts, follows and concludes a run. Returns its exit code.
async fn supervise(args: RunArgs, path: PathBuf, plan: Plan, above: keeper::ForegroundKeeper) -> u8 {
    let manifest = plan.file.clone().unwrap_or_else(|| path.clone());
    let prepared = prepare(&args, &path, &manifest, &plan);
    let Surroundings { place, listener, names, console, signals, recorder, diagnostics } = match prepared {
        Ok(surroundings) => surroundings,
        Err(code) => return code,
    };
    announce(&console, &plan, &path);
    let socket = place.as_ref().filter(|_| listener.is_some()).map(|place| place.socket.clone());
    let options = Options {
        host: HostOptions { subreaper: true, owns_process: true, die_with_us: true },
        sample_interval: args.sample_interval,
        console: Some(Arc::clone(&console) as Arc<_>),
        // A run shows such output on its console, like all other output.
        own_output: None,
        socket: socket.clone(),
        recorder,
        secrets: Some(super::daemon::secrets()),
        keep: LogRetention::declared(instance_dir::logs_of(&manifest)),
        tasks: None,
        runners: BTreeMap::new(),
    };
    let handle = match Handle::start(plan, options).await {
        Ok(handle) => handle,
        Err(error) => {
            tell!("{}: {error}", format::error_word());
            return code::FAILED;
        }
    };
    if let Some(host) = handle.native_host() {
        host.die_with(above.pidfd);
    }
    let (close, closing) = watch::channel(false);
    let server = listener.zip(socket).map(|(listener, socket)| {
        let served = handle.clone();
        tokio::spawn(async move {
            if let Err(error) = server::serve(Listeners::local(listener, socket), served, closing, None).await
            {
                tracing::error!(%error, "the control socket is gone");
            }
        })
    });
    let screen = Screen::new(&handle, Arc::clone(&console), names);
    let exit_on_end = args.exit_on_end.as_deref().and_then(|name| Name::new(name).ok());
    let ending = Ending::new(exit_on_end, args.timeout, console.is_terminal());
    let foreground = Foreground { handle, console, screen, ending, failed_before: Vec::new() };
    let ended = foreground.go(signals).await;
    close.send_replace(true);
    if let Some(server) = server {
        // The client that asked for the end is to get its answer; a client that does not read is not
        // waited for.
        let _ = tokio::time::timeout(FAREWELL, server).await;
    }
    if let Some(place) = place {
        place.leave();
    }
    if let Some(diagnostics) = diagnostics {
        diagnostics.finish(FAREWELL);
    }
    ended
}

struct Foreground {
    handle: Handle,
    console: Arc<Console>,
    screen: Screen,
    ending: Ending,
    /// The instances that had failed when the end began.
    failed_before: Vec<InstanceId>,
}

impl Foreground {
    async fn go(mut self, mut signals: Signals) -> u8 {
        let mut events = self.handle.events_from(0);
        let started = Instant::now();
        let (handle, console) = (self.handle.clone(), Arc::clone(&self.console));
        let mut down = std::pin::pin!(handle.wait_down());
        // The timer runs only while the run waits for something.
        let sleep = async |at: Option<Duration>| match at {
            Some(at) => tokio::time::sleep_until((started + at).into()).await,
            None => std::future::pending().await,
        };
        loop {
            let all_ready = self.screen.all_ready;
            let (deadline, next_word) = (self.ending.deadline(all_ready), self.ending.next_word(all_ready));
            tokio::select! {
                biased;
                signal = signals.next() => self.hear(started.elapsed(), Heard::Signal(signal)),
                ended = &mut down => {
                    self.hear(started.elapsed(), Heard::Down(ended.err().map(|broke| broke.to_string())));
                    while let Some(read) = events.try_next() {
                        self.screen.show(&read);
                    }
                    break;
                }
                read = events.next() => {
                    self.read(started.elapsed(), &read);
                    while let Some(read) = events.try_next() {
                        self.read(started.elapsed(), &read);
                    }
                    let standing = self.standing();
                    self.hear(started.elapsed(), Heard::Settled(standing));
                }
                () = console.reader_gone(), if !self.ending.is_over() => {
                    self.hear(started.elapsed(), Heard::ReaderGone);
                }
                () = sleep(deadline) => {
                    let missing = self.screen.not_ready(&self.handle);
                    self.hear(started.elapsed(), Heard::TimeOver(missing));
                }
                () = sleep(next_word) => {
                    let words = match self.ending.is_over() {
                        true => self.screen.lingering(&self.handle),
                        false => self.screen.not_ready(&self.handle),
                    };
                    self.hear(started.elapsed(), Heard::Silence(words));
                }
            }
        }
        self.console.flush();
        self.conclude()
    }

    fn read(&mut self, now: Duration, read: &NextEvent) {
        let was_shown = self.screen.show(read);
        if let NextEvent::Event(event) = read {
            self.hear(now, Heard::Event(event, was_shown));
        }
    }

    /// Takes what was heard, and does what follows from it.
    fn hear(&mut self, now: Duration, heard: Heard<'_>) {
        for act in self.ending.step(now, heard) {
            match act {
                Act::NoteFailures => self.failed_before = self.failed(),
                Act::Say(words, tint) => self.console.say(&words, tint),
                Act::Remind(words) if self.console.is_terminal() => self.console.status(Some(words)),
                Act::Remind(words) => self.console.say(&words, Tint::Faint),
                Act::ClearReminder => self.console.status(None),
                Act::Shutdown(cause) => self.handle.begin_shutdown(&cause),
                Act::KillAll => self.handle.kill_all(),
            }
        }
    }

    fn standing(&self) -> Standing {
        let will_start = |entry: &InstanceState| entry.state == State::Registered && entry.spec.autostart;
        self.handle.tree_state(|tree_state| {
            let entries = tree_state.entries();
            if tree_state.busy() > 0 {
                Standing::Busy
            } else if entries.iter().any(will_start) {
                Standing::Starting
            } else if entries.iter().any(|entry| entry.state == State::Stopped) {
                Standing::Idle
            } else {
                Standing::Finished { is_empty: entries.is_empty() }
            }
        })
    }

    fn failed(&self) -> Vec<InstanceId> {
        let failed = |e: &&InstanceState| e.state == State::Failed;
        self.handle.tree_state(|tree_state| {
            tree_state.entries().iter().filter(failed).map(|e| e.id.clone()).collect()
        })
    }

    /// Prints the final report on standard error, and returns the exit code.
    fn conclude(&self) -> u8 {
        let failed = &self.failed_before;
        let gave_up = self.screen.gave_up;
        if !failed.is_empty() {
            let noun = if failed.len() == 1 { "service" } else { "services" };
            tell!("regrow: {} {noun} failed", failed.len());
            for id in failed {
                let why = self.handle.tree_state(|tree_state| {
                    tree_state.entry(id).and_then(|e| e.failed.as_ref()).map(ToString::to_string)
                });
                // The end of the shutdown must not hide the reason that was seen before.
                let why = why.or_else(|| self.screen.failures.get(id).cloned()).unwrap_or_default();
                tell!("  {id}: {why}");
                let output = self.handle.output();
                let lines = output.source_of(id).map(|source| output.last_lines(source, 10));
                for line in lines.unwrap_or_default() {
                    tell!("    {line}");
                }
            }
        }
        self.ending.code(!failed.is_empty() || gave_up)
    }
}
