//! `run`: supervises a tree in the foreground, until it is down.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

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
use crate::model::event::{InstanceFact, TreeFact};
use crate::model::{Event, Exit, ExitOutcome, Fact, InstanceId, Name, Plan, State};
use crate::present::units::short;
use crate::record::recording::Recorder;
use crate::runtime::{Handle, Options};
use crate::sys::signals::{SignalAction, Signals};
use crate::sys::sockets;

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
    let foreground = Foreground { handle, console, screen, exit_on_end, ended: None, timeout: args.timeout };
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

/// Why a run ends.
#[derive(Debug, Clone, PartialEq)]
enum Reason {
    /// Nothing runs, and nothing is to come.
    Finished,
    /// The service of `--exit-on-end` has ended: the run exits with this code.
    Ended(u8),
    /// Not everything was ready within `--timeout`.
    TimedOut,
    /// A signal asked for the end.
    Signal(SignalAction),
    /// The reader of the output has gone away.
    ReaderGone,
    /// The end came from the tree: by `regrow down`, or because a group gave up.
    Elsewhere,
    /// A fault in regrow itself.
    Broke,
}

struct Foreground {
    handle: Handle,
    console: Arc<Console>,
    screen: Screen,
    exit_on_end: Option<Name>,
    /// The exit code of the last process of `exit_on_end`, until the next fact tells whether it comes
    /// back.
    ended: Option<u8>,
    timeout: Option<Duration>,
}

impl Foreground {
    async fn go(mut self, mut signals: Signals) -> u8 {
        let mut events = self.handle.events_from(0);
        let mut reason: Option<Reason> = None;
        let mut failed_before: Vec<InstanceId> = Vec::new();
        let mut first_signal: Option<Instant> = None;
        let started = Instant::now();
        let mut spoken = Instant::now();
        let mut told_idle = false;
        let handle = self.handle.clone();
        let console = Arc::clone(&self.console);
        let mut down = std::pin::pin!(handle.wait_down());
        loop {
            // The timer runs only while the run waits for something.
            let next_word = match (&reason, self.screen.all_ready) {
                (Some(_), _) => Some(spoken + LINGERING),
                (None, false) => Some(spoken + SILENCE),
                (None, true) => None,
            };
            let deadline = match (&reason, self.screen.all_ready, self.timeout) {
                (None, false, Some(timeout)) => Some(started + timeout),
                _ => None,
            };
            let sleep = async |at: Option<Instant>| match at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            };
            tokio::select! {
                biased;
                heard = signals.next() => {
                    let again = first_signal.is_some_and(|at| at.elapsed() > TWICE);
                    if first_signal.is_none() {
                        first_signal = Some(Instant::now());
                        failed_before = self.failed();
                        self.console.status(None);
                        let what = match heard {
                            SignalAction::Interrupt => "Ctrl-C: stopping (press it again to kill)",
                            SignalAction::Terminate => "SIGTERM: stopping",
                            SignalAction::HangUp => "SIGHUP: stopping",
                            SignalAction::Quit => "SIGQUIT: killing everything",
                        };
                        self.console.say(what, Tint::Warn);
                        reason = Some(Reason::Signal(heard));
                        if heard == SignalAction::Quit {
                            self.handle.kill_all();
                        } else {
                            self.handle.begin_shutdown(what);
                        }
                        spoken = Instant::now();
                    } else if again && matches!(heard, SignalAction::Interrupt | SignalAction::Quit) {
                        self.console.say("killing everything", Tint::Bad);
                        self.handle.kill_all();
                    }
                }
                ended = &mut down => {
                    if let Err(broke) = ended {
                        self.console.say(&broke.to_string(), Tint::Bad);
                        reason = Some(Reason::Broke);
                    }
                    while let Some(read) = events.try_next() {
                        self.screen.show(&read);
                    }
                    if reason.is_none() {
                        // The tree went down faster than its events were read; failed instances stay
                        // failed.
                        failed_before = self.failed();
                    }
                    break;
                }
                read = events.next() => {
                    let mut read = read;
                    loop {
                        if self.screen.show(&read) {
                            spoken = Instant::now();
                        }
                        if reason.is_none()
                            && let NextEvent::Event(event) = &read
                        {
                            reason = self.follow(event);
                            if reason.is_some() {
                                failed_before = self.failed();
                            }
                        }
                        match events.try_next() {
                            Some(next) => read = next,
                            None => break,
                        }
                    }
                    if reason.is_none() && self.is_finished() {
                        failed_before = self.failed();
                        reason = Some(Reason::Finished);
                        if self.handle.tree_state(|tree_state| tree_state.entries().is_empty()) {
                            self.console.say("no service is left", Tint::Faint);
                        }
                        self.handle.begin_shutdown("everything has ended");
                    } else if reason.is_none() && self.is_idle() && !told_idle {
                        told_idle = true;
                        self.console.say("nothing is running: start a service with \"regrow start\", or end this run with Ctrl-C", Tint::Faint);
                    } else if self.handle.tree_state(|b| b.busy()) > 0 {
                        told_idle = false;
                    }
                }
                () = console.reader_gone(), if reason.is_none() => {
                    failed_before = self.failed();
                    reason = Some(Reason::ReaderGone);
                    self.handle.begin_shutdown("the output is no longer read");
                }
                () = sleep(deadline) => {
                    failed_before = self.failed();
                    let missing = self.screen.not_ready(&self.handle);
                    let limit = short(self.timeout.unwrap_or_default());
                    self.console.status(None);
                    self.console.say(&format!("not ready within {limit}: {missing}"), Tint::Bad);
                    reason = Some(Reason::TimedOut);
                    self.handle.begin_shutdown("not ready in time");
                    spoken = Instant::now();
                }
                () = sleep(next_word) => {
                    let words = match reason {
                        Some(_) => self.screen.lingering(&self.handle),
                        None => self.screen.not_ready(&self.handle),
                    };
                    if !words.is_empty() {
                        let line = if reason.is_some() {
                            format!("still stopping: {words}")
                        } else {
                            format!("still waiting: {words}")
                        };
                        if self.console.is_terminal() {
                            self.console.status(Some(line));
                        } else {
                            self.console.say(&line, Tint::Faint);
                        }
                    }
                    spoken = Instant::now();
                    if reason.is_some() && !self.console.is_terminal() {
                        // Without a terminal, a line every five seconds is enough.
                        spoken += Duration::from_secs(4);
                    }
                }
            }
        }
        self.console.flush();
        self.conclude(reason.unwrap_or(Reason::Elsewhere), &failed_before)
    }

    /// What an event means for the run as a whole.
    fn follow(&mut self, event: &Event) -> Option<Reason> {
        let awaited = event.fact.instance().filter(|i| self.exit_on_end.as_ref() == Some(i.service()));
        match &event.fact {
            Fact::Instance(InstanceFact::Exited { exit, .. }) if awaited.is_some() => {
                self.ended = Some(match exit {
                    ExitOutcome::Process { exit: Exit::Code(code), .. } => u8::try_from(*code).unwrap_or(1),
                    ExitOutcome::Process { exit: Exit::Signal { signal, .. }, .. } => {
                        u8::try_from(128 + signal).unwrap_or(1)
                    }
                    ExitOutcome::Process { exit: Exit::Unknown, .. } | ExitOutcome::Spawn(_) => code::FAILED,
                });
                None
            }
            // An instance that is restarted, by hand or with its group, has not ended.
            Fact::Instance(InstanceFact::Starting { .. })
            | Fact::Instance(InstanceFact::Waiting { .. })
            | Fact::Instance(InstanceFact::Stopped { held: true, .. })
                if awaited.is_some() =>
            {
                self.ended = None;
                None
            }
            Fact::Instance(InstanceFact::Completed { instance })
            | Fact::Instance(InstanceFact::Crashed { instance, .. })
            | Fact::Instance(InstanceFact::Failed { instance, .. })
            | Fact::Instance(InstanceFact::Stopped { instance, .. })
                if awaited.is_some() =>
            {
                // An instance without an exit never ran: a dependency failed, or its group gave up.
                let code = self.ended.take().unwrap_or(code::FAILED);
                self.console.say(&format!("{instance} has ended: stopping"), Tint::Faint);
                self.handle.begin_shutdown(&format!("{instance} has ended"));
                Some(Reason::Ended(code))
            }
            Fact::Tree(TreeFact::ShutdownStarted { .. }) => Some(Reason::Elsewhere),
            _ => None,
        }
    }

    /// Whether nothing runs, nothing will by itself, and nothing was stopped by hand.
    fn is_finished(&self) -> bool {
        self.is_idle() && self.handle.tree_state(|b| !b.entries().iter().any(|e| e.state == State::Stopped))
    }

    /// Whether nothing runs, and nothing will by itself.
    fn is_idle(&self) -> bool {
        let will_start = |entry: &InstanceState| entry.state == State::Registered && entry.spec.autostart;
        self.handle
            .tree_state(|tree_state| tree_state.busy() == 0 && !tree_state.entries().iter().any(will_start))
    }

    fn failed(&self) -> Vec<InstanceId> {
        let failed = |e: &&InstanceState| e.state == State::Failed;
        self.handle.tree_state(|tree_state| {
            tree_state.entries().iter().filter(failed).map(|e| e.id.clone()).collect()
        })
    }

    /// Prints the final report on standard error, and returns the exit code.
    fn conclude(&self, reason: Reason, failed: &[InstanceId]) -> u8 {
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
        match reason {
            Reason::Signal(SignalAction::Interrupt) => code::INTERRUPTED,
            // The code is that of a process that SIGPIPE has ended.
            Reason::ReaderGone => 128 + 13,
            Reason::Signal(other) => u8::try_from(128 + other.number()).unwrap_or(code::FAILED),
            Reason::TimedOut => code::TIMED_OUT,
            Reason::Ended(ended) => ended,
            Reason::Finished | Reason::Elsewhere if !failed.is_empty() || gave_up => code::FAILED,
            Reason::Finished | Reason::Elsewhere => code::DONE,
            Reason::Broke => code::FAILED,
        }
    }
}

mod screen;
