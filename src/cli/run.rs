//! `run`: the tree in the foreground.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::console::{Console, source_of};
use super::format::Tint;
use super::{RunArgs, code, format, report, runtime, usage_error};
use crate::actors::event_log::Read;
use crate::control::place::{self, Card, Taken};
use crate::control::server;
use crate::decide::select::{Selection, select};
use crate::decide::status::Entry;
use crate::decide::why;
use crate::decide::words::{in_time, short};
use crate::decide::world::StepSink;
use crate::manifest::Loaded;
use crate::model::event::{CheckKind, StartCause, StopCause};
use crate::model::plan::GiveUp;
use crate::model::{Event, Exit, ExitOutcome, Fact, InstanceId, Name, State};
use crate::os::native::HostOptions;
use crate::os::signals::{Heard, Signals};
use crate::os::{files, keeper, memory};
use crate::record::recording::Recorder;
use crate::runtime::{Handle, Options};

/// After this long without a word, what is waited for is named.
const SILENCE: Duration = Duration::from_secs(3);
/// After this long, what a stop waits for is named.
const LINGERING: Duration = Duration::from_secs(1);
/// A second Ctrl-C sooner than this is the first one, heard twice: some wrappers signal a
/// process and its group.
const TWICE: Duration = Duration::from_millis(50);

/// How long the answers that are under way may take at the end.
const FAREWELL: Duration = Duration::from_millis(500);

pub(super) fn run(mut args: RunArgs) -> u8 {
    // `run --only web dev-env.toml`: the last word is the manifest.
    if args.file.is_none()
        && args.only.len() > 1
        && args.only.last().is_some_and(|last| last.ends_with(".toml"))
    {
        args.file = args.only.pop().map(PathBuf::from);
    }
    // Before any thread: the process divides in two.
    let above = match keeper::divide() {
        Ok(above) => above,
        Err(error) => {
            tell!("{}: can't start a keeper: {error}", format::error_word());
            return code::FAILED;
        }
    };
    let (path, loaded) = match report::load_or_tell(args.file.as_deref(), &args.env_file) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let Loaded { plan, graph, .. } = loaded;
    if let Some(name) = &args.exit_on_end
        && plan.service(name).is_none()
    {
        return usage_error("run", &format!("--exit-on-end: there is no service {name:?}"));
    }
    let mut only = args.only.clone();
    if let Some(name) = &args.exit_on_end
        && !only.is_empty()
        && !only.contains(name)
    {
        only.push(name.clone());
    }
    let selection = Selection { only, no_deps: args.no_deps, profiles: args.profile.clone() };
    let plan = match select(&plan, &graph, &selection) {
        Ok(plan) => plan,
        Err(denial) => {
            let hint = denial.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
            return usage_error("run", &format!("{}{hint}", denial.reason));
        }
    };
    if let Some(name) = &args.exit_on_end
        && !plan.service(name).is_some_and(|service| service.autostart)
    {
        return usage_error("run", &format!("--exit-on-end: {name} does not start with this run"));
    }
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            tell!("{}: {error}", format::error_word());
            return code::FAILED;
        }
    };
    let ended = runtime.block_on(async {
        let manifest = plan.file.clone().unwrap_or_else(|| path.clone());
        let card = Card {
            pid: std::process::id(),
            manifest: manifest.clone(),
            cwd: std::env::current_dir().unwrap_or_default(),
            socket: args
                .socket
                .as_ref()
                .map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone())),
        };
        let place = match place::take(&manifest, &card) {
            Ok(place) => Some(place),
            Err(Taken::ByAnother(other)) => {
                tell!("{}: {} is running already (pid {})", format::error_word(), path.display(), other.pid);
                tell!("  = help: \"regrow status\" shows it, \"regrow down\" ends it");
                return code::FAILED;
            }
            Err(Taken::Unusable(error)) => {
                tell!("regrow: no control socket, other commands won't find this run: {error}");
                None
            }
        };
        let names: Vec<InstanceId> =
            plan.services.iter().flat_map(|s| s.instances().collect::<Vec<_>>()).collect();
        let console = match Console::start(&names) {
            Ok(console) => console,
            Err(error) => {
                tell!("{}: {error}", format::error_word());
                return code::FAILED;
            }
        };
        let signals = match Signals::listen() {
            Ok(signals) => signals,
            Err(error) => {
                tell!("{}: can't listen to signals: {error}", format::error_word());
                return code::FAILED;
            }
        };
        let listener = place.as_ref().and_then(|place| match files::listen(&place.socket) {
            Ok(listener) => Some(listener),
            Err(error) => {
                tell!("regrow: no control socket, other commands won't find this run: {error}");
                None
            }
        });
        let starting = plan.services.iter().filter(|s| s.autostart);
        let services = starting.clone().count();
        let instances: usize = starting.map(|service| service.instances().count()).sum();
        let noun = if services == 1 { "service" } else { "services" };
        let copies = if instances == services { String::new() } else { format!(", {instances} instances") };
        console.say(
            &format!(
                "regrow {}: {} from {}, {services} {noun}{copies}",
                env!("CARGO_PKG_VERSION"),
                plan.project,
                path.display()
            ),
            Tint::Faint,
        );
        let recorder: Option<Box<dyn StepSink>> = match &args.record {
            None => None,
            Some(path) => match Recorder::create(path, &plan) {
                Ok(recorder) => Some(Box::new(recorder)),
                Err(error) => {
                    let path = path.display();
                    tell!("{}: can't record into a new file {path}: {error}", format::error_word());
                    return code::FAILED;
                }
            },
        };
        let options = Options {
            host: HostOptions { subreaper: true, owns_process: true, die_with_us: true },
            sample_interval: args.sample_interval,
            console: Some(Arc::clone(&console) as Arc<_>),
            socket: place.as_ref().filter(|_| listener.is_some()).map(|place| place.socket.clone()),
            recorder,
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
        let server = listener.map(|listener| {
            let served = handle.clone();
            tokio::spawn(async move {
                if let Err(error) = server::serve(listener, served, closing).await {
                    tracing::error!(%error, "the control socket is gone");
                }
            })
        });
        let screen = Screen::new(&handle, Arc::clone(&console), names);
        let exit_on_end = args.exit_on_end.as_deref().and_then(|name| Name::new(name).ok());
        let foreground =
            Foreground { handle, console, screen, exit_on_end, ended: None, timeout: args.timeout };
        let ended = foreground.go(signals).await;
        close.send_replace(true);
        if let Some(server) = server {
            // Who asked for the end is to hear of it; who does not listen is not waited for.
            let _ = tokio::time::timeout(FAREWELL, server).await;
        }
        if let Some(place) = place {
            place.leave();
        }
        ended
    });
    // Everything is gone and told: what is left of this process may go at once.
    std::process::exit(i32::from(ended))
}

/// Why a run ends.
#[derive(Debug, Clone, PartialEq)]
enum Reason {
    /// Nothing is left to do.
    Finished,
    /// `--exit-on-end`: with this code.
    Ended(u8),
    /// `--timeout`.
    TimedOut,
    /// A signal.
    Signal(Heard),
    /// Nobody reads our output any more.
    ReaderGone,
    /// `regrow down`, or a group that gave up.
    Elsewhere,
    /// A fault in regrow itself.
    Broke,
}

struct Foreground {
    handle: Handle,
    console: Arc<Console>,
    screen: Screen,
    exit_on_end: Option<Name>,
    /// The code of the process of `exit_on_end` whose fate the next fact tells.
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
            // Timers exist only while somebody waits for something.
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
                            Heard::Interrupt => "Ctrl-C: stopping (once more kills)",
                            Heard::Terminate => "SIGTERM: stopping",
                            Heard::HangUp => "SIGHUP: stopping",
                            Heard::Quit => "SIGQUIT: killing everything",
                        };
                        self.console.say(what, Tint::Warn);
                        reason = Some(Reason::Signal(heard));
                        if heard == Heard::Quit {
                            self.handle.kill_all();
                        } else {
                            self.handle.begin_shutdown(what);
                        }
                        spoken = Instant::now();
                    } else if again && matches!(heard, Heard::Interrupt | Heard::Quit) {
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
                        // It went down faster than its events were read; what failed stays failed.
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
                            && let Read::Event(event) = &read
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
                        self.handle.begin_shutdown("everything has ended");
                    } else if reason.is_none() && self.is_idle() && !told_idle {
                        told_idle = true;
                        self.console.say("nothing runs: \"regrow start\" or Ctrl-C", Tint::Faint);
                    } else if self.handle.board(|b| b.busy()) > 0 {
                        told_idle = false;
                    }
                }
                () = console.reader_gone(), if reason.is_none() => {
                    failed_before = self.failed();
                    reason = Some(Reason::ReaderGone);
                    self.handle.begin_shutdown("nobody reads the output any more");
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
                        // On paper every fifth second is enough.
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
            Fact::Exited { exit, .. } if awaited.is_some() => {
                self.ended = Some(match exit {
                    ExitOutcome::Process { exit: Exit::Code(code), .. } => u8::try_from(*code).unwrap_or(1),
                    ExitOutcome::Process { exit: Exit::Signal { signal, .. }, .. } => {
                        u8::try_from(128 + signal).unwrap_or(1)
                    }
                    ExitOutcome::Spawn(_) => code::FAILED,
                });
                None
            }
            // One that was restarted, by hand or with its group, has not ended.
            Fact::Starting { .. } | Fact::Waiting { .. } | Fact::Stopped { held: true, .. }
                if awaited.is_some() =>
            {
                self.ended = None;
                None
            }
            Fact::Completed { instance }
            | Fact::Crashed { instance, .. }
            | Fact::Failed { instance, .. }
            | Fact::Stopped { instance, .. }
                if awaited.is_some() =>
            {
                // Without an exit it never ran: a dependency failed, or its group gave up.
                let code = self.ended.take().unwrap_or(code::FAILED);
                self.console.say(&format!("{instance} has ended: stopping"), Tint::Faint);
                self.handle.begin_shutdown(&format!("{instance} has ended"));
                Some(Reason::Ended(code))
            }
            Fact::ShutdownStarted { .. } => Some(Reason::Elsewhere),
            _ => None,
        }
    }

    /// Nothing runs, nothing will by itself, and nobody stopped anything by hand.
    fn is_finished(&self) -> bool {
        self.handle.board(|board| {
            board.busy() == 0
                && board.untouched() <= self.screen.never_started
                && !board.entries().iter().any(|e| e.state == State::Stopped)
        })
    }

    fn is_idle(&self) -> bool {
        self.handle.board(|board| board.busy() == 0 && board.untouched() <= self.screen.never_started)
    }

    fn failed(&self) -> Vec<InstanceId> {
        let failed = |e: &&Entry| e.state == State::Failed;
        self.handle.board(|board| board.entries().iter().filter(failed).map(|e| e.id.clone()).collect())
    }

    /// The last words, on standard error, and the exit code.
    fn conclude(&self, reason: Reason, failed: &[InstanceId]) -> u8 {
        let gave_up = self.screen.gave_up;
        if !failed.is_empty() {
            let noun = if failed.len() == 1 { "service" } else { "services" };
            tell!("regrow: {} {noun} failed", failed.len());
            for id in failed {
                let why = self
                    .handle
                    .board(|board| board.entry(id).and_then(|e| e.failed.as_ref()).map(ToString::to_string));
                // The shutdown's own end must not hide what it found.
                let why = why.or_else(|| self.screen.failures.get(id).cloned()).unwrap_or_default();
                tell!("  {id}: {why}");
                let lines = source_of(&self.screen.names, id).map(|s| self.handle.output().last_lines(s, 10));
                for line in lines.unwrap_or_default() {
                    tell!("    {line}");
                }
            }
        }
        match reason {
            Reason::Signal(Heard::Interrupt) => code::INTERRUPTED,
            // As the signal for it would have been.
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

/// Turns events into lines.
struct Screen {
    console: Arc<Console>,
    names: Vec<InstanceId>,
    /// Who is still on the way up for the first time.
    pending: HashSet<InstanceId>,
    all_ready: bool,
    never_started: usize,
    gave_up: bool,
    /// A shutdown is under way.
    stopping: bool,
    uptimes: HashMap<InstanceId, Duration>,
    failures: HashMap<InstanceId, String>,
    starting: usize,
    with_check: HashSet<InstanceId>,
    pids: HashMap<InstanceId, u32>,
}

impl Screen {
    fn new(handle: &Handle, console: Arc<Console>, names: Vec<InstanceId>) -> Screen {
        let services = &handle.plan().services;
        let of = |autostart: bool| {
            services
                .iter()
                .filter(move |s| s.autostart == autostart)
                .flat_map(|s| s.instances().collect::<Vec<_>>())
        };
        let pending: HashSet<InstanceId> = of(true).collect();
        let checked = services.iter().filter(|s| s.ready.is_some());
        Screen {
            console,
            names,
            all_ready: pending.is_empty(),
            starting: pending.len(),
            pending,
            never_started: of(false).count(),
            gave_up: false,
            stopping: false,
            uptimes: HashMap::new(),
            failures: HashMap::new(),
            with_check: checked.flat_map(|s| s.instances().collect::<Vec<_>>()).collect(),
            pids: HashMap::new(),
        }
    }

    /// Shows an event; whether that made a line.
    fn show(&mut self, read: &Read) -> bool {
        let event = match read {
            Read::Event(event) => event,
            Read::Missed(count) => {
                self.console.say(&format!("{count} events were not shown"), Tint::Warn);
                return true;
            }
        };
        let line = self.line(event);
        let told = line.is_some();
        if let Some((name, text, tint)) = line {
            match name {
                Some(name) => self.console.about(&name, &text, tint),
                None => self.console.say(&text, tint),
            }
        }
        self.count(event);
        told
    }

    fn line(&mut self, event: &Event) -> Option<(Option<String>, String, Tint)> {
        let about = |id: &InstanceId, text: String, tint| Some((Some(id.to_string()), text, tint));
        match &event.fact {
            Fact::Waiting { for_, .. } if for_.is_empty() => None,
            Fact::Waiting { instance, for_ } => {
                let words: Vec<String> = for_.iter().map(ToString::to_string).collect();
                about(instance, format!("waiting for {}", words.join(", ")), Tint::Faint)
            }
            Fact::Starting { instance, cause, .. } => match cause {
                StartCause::Boot => None,
                StartCause::Policy => about(instance, "starting again".to_owned(), Tint::Warn),
                StartCause::Group => about(instance, "starting again with its group".to_owned(), Tint::Warn),
                StartCause::Command => None,
                StartCause::Dependency => {
                    about(instance, "starting: what it depends on is back".to_owned(), Tint::Faint)
                }
            },
            Fact::Running { instance, pid, .. } => {
                self.pids.insert(instance.clone(), *pid);
                None
            }
            Fact::Ready { instance, after, .. } => {
                let word = if self.with_check.contains(instance) { "ready" } else { "running" };
                let pid = self.pids.get(instance).map(|pid| format!(" (pid {pid})")).unwrap_or_default();
                about(instance, format!("{word} after {}{pid}", short(*after)), Tint::Good)
            }
            Fact::CheckFailed { instance, check: CheckKind::Health, message, .. } => {
                about(instance, format!("health check failed: {message}"), Tint::Warn)
            }
            // A server that does not answer yet is what a readiness check is for.
            Fact::CheckFailed { check: CheckKind::Ready, .. } => None,
            Fact::CheckUnable { instance, check, message, .. } => {
                about(instance, format!("{check} check could not be made: {message}"), Tint::Warn)
            }
            Fact::Stopping { instance, cause, .. } => match cause {
                StopCause::Timeout | StopCause::Health => {
                    about(instance, format!("{cause}: ending it"), Tint::Bad)
                }
                StopCause::Command
                | StopCause::Restart
                | StopCause::Group
                | StopCause::GaveUp
                | StopCause::Dependency
                | StopCause::AutoShutdown => about(instance, format!("stopping ({cause})"), Tint::Faint),
                StopCause::Shutdown | StopCause::LeftBehind | StopCause::Internal => None,
            },
            Fact::StopCommandFailed { instance, message, .. } => {
                about(instance, format!("its stop command failed: {message}"), Tint::Warn)
            }
            Fact::LeftBehind { instance, exit, .. } => {
                about(instance, format!("{exit}, and left processes behind: ending them"), Tint::Warn)
            }
            Fact::Killed { instance, after, .. } => {
                let text = if after.is_zero() {
                    "SIGKILL".to_owned()
                } else {
                    format!("SIGKILL after {}", short(*after))
                };
                about(instance, text, Tint::Bad)
            }
            Fact::Stuck { instance, .. } => {
                about(instance, "SIGKILL has not ended it: stuck in the kernel".to_owned(), Tint::Bad)
            }
            Fact::Paused { instance, .. } => about(instance, "paused".to_owned(), Tint::Warn),
            Fact::Resumed { instance, .. } => about(instance, "resumed".to_owned(), Tint::Good),
            Fact::HookFailed { instance, hook, message } => {
                about(instance, format!("its {hook} hook failed: {message}"), Tint::Warn)
            }
            Fact::ActorBroke { instance, message } => {
                about(instance, format!("a fault in regrow itself: {message}"), Tint::Bad)
            }
            Fact::Exited { instance, uptime, .. } => {
                self.uptimes.insert(instance.clone(), *uptime);
                None
            }
            Fact::Stopped { instance, .. } => match self.uptimes.remove(instance) {
                Some(uptime) => about(instance, format!("stopped, ran {}", short(uptime)), Tint::Faint),
                // It never ran: at the end that is no news.
                None if self.stopping => None,
                None => about(instance, "stopped".to_owned(), Tint::Faint),
            },
            Fact::Completed { instance } => {
                let after = self.uptimes.remove(instance).map(|u| format!(" after {}", short(u)));
                about(instance, format!("completed{}", after.unwrap_or_default()), Tint::Good)
            }
            Fact::Crashed { instance, exit, retry_in, .. } => {
                about(instance, format!("{exit}; comes back {}", in_time(*retry_in)), Tint::Bad)
            }
            Fact::Failed { instance, why } => {
                self.failures.insert(instance.clone(), why.to_string());
                about(instance, format!("failed: {why}"), Tint::Bad)
            }
            Fact::GroupRestarting { group, strategy, fallen, starting, .. } => {
                let group = group.as_ref().map_or("the root group".to_owned(), |g| format!("group {g}"));
                let text = format!("{group} ({strategy}): {fallen} fell, restarting {}", starting.join(", "));
                Some((None, text, Tint::Warn))
            }
            Fact::GroupShutDown { group, ended } => {
                let group = group.as_ref().map_or("the root group".to_owned(), |g| format!("group {g}"));
                Some((None, format!("{group} goes down: {ended} has ended"), Tint::Faint))
            }
            Fact::GroupGaveUp { group, restarts, period, then } => {
                let group = group.as_ref().map_or("the root group".to_owned(), |g| format!("group {g}"));
                let then = match then {
                    GiveUp::Mark => "its members are failed until started by hand",
                    GiveUp::Escalate => "its parent decides",
                    GiveUp::Exit => "everything goes down",
                };
                let text =
                    format!("{group} gave up after {restarts} restarts within {}: {then}", short(*period));
                Some((None, text, Tint::Bad))
            }
            Fact::CommandDenied { command, denial } => {
                Some((None, format!("{} was refused: {}", command.verb(), denial.reason), Tint::Faint))
            }
            Fact::ShutdownStarted { cause } => {
                self.stopping = true;
                (cause == "regrow down").then(|| (None, "regrow down: stopping".to_owned(), Tint::Warn))
            }
            Fact::SupervisorStarted { .. }
            | Fact::CommandAccepted { .. }
            | Fact::GoalSet { .. }
            | Fact::HealthChanged { .. }
            | Fact::ShutdownDone => None,
        }
    }

    fn count(&mut self, event: &Event) {
        if let Fact::GroupGaveUp { then: GiveUp::Exit | GiveUp::Escalate, group: None, .. }
        | Fact::GroupGaveUp { then: GiveUp::Exit, .. } = &event.fact
        {
            self.gave_up = true;
        }
        let arrived = match &event.fact {
            Fact::Ready { instance, .. } | Fact::Completed { instance } => self.pending.remove(instance),
            _ => false,
        };
        if arrived && self.pending.is_empty() && !self.all_ready {
            self.all_ready = true;
            self.console.status(None);
            memory::give_back();
            if !self.stopping && self.starting > 1 {
                let after = short(event.since_start);
                self.console.say(
                    &format!("all {} are up after {after}; Ctrl-C stops them", self.starting),
                    Tint::Good,
                );
            }
        }
    }

    /// Who is not ready, and why, in declared order.
    fn not_ready(&self, handle: &Handle) -> String {
        let now = handle.uptime();
        let pending: Vec<&InstanceId> = self.names.iter().filter(|id| self.pending.contains(id)).collect();
        handle.board(|board| {
            let words = pending.iter().filter_map(|id| {
                let entry = board.entry(id)?;
                Some(format!("{id}: {}", why::because(handle.graph(), board, entry, now)))
            });
            listed(words, pending.len(), 4)
        })
    }

    /// Who is not gone, and how long it has left.
    fn lingering(&self, handle: &Handle) -> String {
        let now = handle.uptime();
        let hooks = handle.running_hooks();
        handle.board(|board| {
            let lingering: Vec<&Entry> =
                board.entries().iter().filter(|e| e.state == State::Stopping).collect();
            let words = lingering.iter().map(|entry| match entry.kill_at.filter(|at| *at > now) {
                Some(at) => {
                    format!("{} (SIGKILL in {:.0} s)", entry.id, (at - now).as_secs_f64().ceil())
                }
                None => format!("{} (SIGKILL sent)", entry.id),
            });
            listed(words.chain(hooks.iter().cloned()), lingering.len() + hooks.len(), 6)
        })
    }
}

/// The first few, and how many more there are.
fn listed(words: impl Iterator<Item = String>, count: usize, most: usize) -> String {
    let first = words.take(most).collect::<Vec<_>>().join("; ");
    if count <= most { first } else { format!("{first} and {} more", count - most) }
}
