//! `daemon`: the tree of an operator's machine, below a keeper that outlives the daemon.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::args::daemon::DaemonArgs;
use super::diagnostics::{self, DiagnosticsTarget};
use super::inherit::OwnOutput;
use super::verbs::admin::reloaded_in_words;
use super::{code, format, report, supervisors_runtime};
use crate::actors::event_log::NextEvent;
use crate::actors::worker_pool::{KeepResults, ScalingMode, TaskRules};
use crate::actors::{LogRetention, OutputPolicy};
use crate::cli::config_file::default_paths;
use crate::control::instance_dir::{self, Card};
use crate::control::server::{self, Load};
use crate::control::tls;
use crate::decide::graph::Graph;
use crate::decide::ledger::{Ledger, Memory};
use crate::decide::plan_edit;
use crate::decide::select::{Selection, select};
use crate::decide::tree_state::TreeState;
use crate::host::files_changed::FolderWatch;
use crate::host::keeper::{self, KeeperSocket};
use crate::host::native::HostOptions;
use crate::logs::own::OwnLog;
use crate::manifest::config::{Config, ConfigError, DEFAULT, TasksConfig, load_config};
use crate::manifest::folder::{Folder, FolderReader};
use crate::manifest::last_good::LastGood;
use crate::manifest::{Environment, LoadError, load_addition};
use crate::model::event::{GroupFact, InstanceFact, PoolFact, TreeFact};
use crate::model::{Addition, Denial, DenialCode, Event, Fact, Plan, Requester, SpecRefresh};
use crate::present::fact_in_words;
use crate::record::store::{ManualChange, Retention, Store};
use crate::runtime::{Handle, KeeperOptions, Options, StartError, UnclaimedPolicy};
use crate::sys::signals::{SignalAction, Signals};
use crate::sys::{clock, files, locks, memory, programs, sockets};
use crate::vault::tokens::Tokens;

/// The interval at which the daemon checks that its instance directory still names it, and that its
/// log file is in place.
const LOOKING: Duration = Duration::from_secs(5);

/// The time that answers under way have at the end of the daemon.
const FAREWELL: Duration = Duration::from_millis(500);

/// The time that `--detach` waits for the daemon to report that it is up.
const DETACHING: Duration = Duration::from_secs(60);

/// The variable that `--detach` gives the daemon that it starts, so that it does not detach again:
/// the path of the file it prints to.
const DETACHED: &str = "REGROW_DETACHED";

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

/// The log file of this daemon, where it prints to one.
fn own_log(config: &Config) -> Option<OwnLog> {
    let path = std::env::var_os(DETACHED).map(PathBuf::from).filter(|path| path.is_absolute())?;
    let log = OwnLog::new(path, config.log_size, config.log_files, config.log_compress);
    // An earlier daemon may have rotated the file that this one inherited from the keeper.
    let _ = log.look();
    Some(log)
}

async fn serve(config: &Config, keeper_socket: KeeperSocket, own_log: Option<&OwnLog>) -> u8 {
    let environment = environment();
    // The watch is set up before the folder is read, so that no change is missed in between.
    let watch = watch_folder(config);
    let (ledger, memory) = open_store(config);
    let follows = memory.boot.is_some() && memory.boot == clock::boot() && !memory.ended;
    let texts = last_good(&config.home.join("manifests.json"), follows);
    let manifests = Arc::new(FolderReader::new(config.manifests.clone(), environment.clone(), texts));
    let loaded = manifests.read(None);
    let folder = match loaded {
        Ok(folder) => folder,
        Err(error) => {
            let path = config.manifests.display();
            tell!("{}: the manifests in {path} can't be read: {error}", format::error_word());
            return code::FAILED;
        }
    };
    report::warn(&folder.warnings);
    for fault in &folder.faults {
        report::tell_beside_others(fault);
    }
    let Folder { plan, graph, files, faults, .. } = folder;
    let mut plan = selected(plan, &graph, &config.profiles);
    plan.stop.tree = config.stop_timeout;
    if let Some(store) = &ledger {
        match follows {
            true => plan = changed_by_hand(plan, store, &environment),
            false => store.forget_change(None),
        }
        store.register(&plan);
    }
    let signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            tell!("{}: can't listen to signals: {error}", format::error_word());
            return code::FAILED;
        }
    };
    instance_dir::tell_daemon(&config.home, &card_of(config));
    // A daemon that follows another goes on with the socket of that one, which the keeper has held.
    let listener = match keeper_socket.follows() {
        true => None,
        false => match listen(config) {
            Ok(listener) => Some(listener),
            Err(error) => {
                let path = config.socket.display();
                tell!("{}: can't create the control socket {path}: {error}", format::error_word());
                return code::FAILED;
            }
        },
    };
    let services = plan.services.len();
    let own_output = match OwnOutput::start() {
        Ok(own_output) => own_output,
        Err(error) => {
            tell!("{}: {error}", format::error_word());
            return code::FAILED;
        }
    };
    let options = Options {
        host: HostOptions { subreaper: false, owns_process: true, die_with_us: false },
        sample_interval: config.sample_interval,
        console: None,
        own_output: Some(Arc::clone(&own_output) as Arc<_>),
        socket: Some(config.socket.clone()),
        recorder: None,
        secrets: Some(config.secrets.clone()),
        tasks: Some(task_rules(config)),
        runners: BTreeMap::new(),
        keep: LogRetention {
            folder: config.logs.clone(),
            max_size: config.log_size,
            max_files: config.log_files,
            compress: config.log_compress,
            whose: OutputPolicy::All,
        },
    };
    let below = KeeperOptions {
        keeper_socket,
        identity: config.home.display().to_string(),
        journal: config.home.join("processes.jsonl"),
        ledger: ledger.clone().map(|store| (Arc::new(store) as Arc<dyn Ledger>, memory)),
        strangers: if faults.is_empty() && config.manifests.is_dir() {
            UnclaimedPolicy::End
        } else {
            UnclaimedPolicy::Leave
        },
    };
    let handle = match Handle::start_below(plan, options, below).await {
        Ok(handle) => handle,
        Err(StartError::Over) => return code::DONE,
        Err(error) => {
            tell!("{}: {error}", format::error_word());
            return code::FAILED;
        }
    };
    let listener = listener.or_else(|| handle.take_listener(&config.socket)).or_else(|| {
        let told = |error: &std::io::Error| {
            let path = config.socket.display();
            tell!("regrow: can't create the control socket {path} yet: {error}");
        };
        listen(config).inspect_err(told).ok()
    });
    if let Some(listener) = &listener {
        handle.hold_listener(listener, &config.socket);
    }
    let host = handle.native_host().cloned();
    let (close, closing) = watch::channel(false);
    let served = handle.clone();
    let (upgrade, mut upgrades) = mpsc::unbounded_channel();
    let load = loader(config, manifests);
    handle.tell_faulty(faults.iter().map(LoadError::in_short).collect());
    let network = config.api.clone().map(|api| {
        if let Some(Err(why)) = api.tls.as_ref().map(tls::check) {
            tell!("regrow: the API can't speak TLS: {why}");
        }
        server::NetworkListener { api, tokens: Tokens::at(tokens_of(config)) }
    });
    let doors = server::Listeners {
        local: listener,
        path: config.socket.clone(),
        access: config.access.clone(),
        network,
    };
    let daemon = server::Daemon {
        store: ledger.clone(),
        load: Arc::clone(&load),
        manifests: config.manifests.clone(),
        writing: tokio::sync::Mutex::new(()),
        upgrade,
    };
    let server = tokio::spawn(async move {
        if let Err(error) = server::serve(doors, served, closing, Some(daemon)).await {
            tracing::error!(%error, "the control socket is gone");
        }
    });
    let noun = |count: usize, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
    log(&format!(
        "regrow {}: {} from {} in {}{}",
        env!("CARGO_PKG_VERSION"),
        noun(services, "service"),
        noun(files.len(), "manifest"),
        config.manifests.display(),
        if faults.is_empty() { String::new() } else { format!(", {} faulty", faults.len()) },
    ));
    if let Some(host) = &host {
        host.notify(&format!(
            "READY=1\nSTATUS={} from {}",
            noun(services, "service"),
            config.manifests.display()
        ));
    }
    memory::give_back();
    tokio::spawn(async {
        tokio::time::sleep(AT_REST).await;
        memory::settle();
    });
    if let Some(host) = &host {
        // A daemon of another build brings a keeper of its own build.
        host.renew_keeper_if_other();
    }
    let reloads = Reloads { watch, plan: None, load, store: ledger.clone() };
    if config.watch && follows {
        // This covers changes to the folder while no daemon was watching.
        reloads.begin(&handle, "watch");
    }
    let end = follow(config, own_log, &handle, signals, &mut upgrades, reloads).await;
    if let (Some(host), End::Down { .. }) = (&host, &end) {
        host.notify("STOPPING=1");
    }
    close.send_replace(true);
    // The client that asked for the end is to get its answer; a client that does not read is not waited
    // for.
    let _ = tokio::time::timeout(FAREWELL, server).await;
    // A daemon that goes on needs the socket.
    if matches!(end, End::Down { .. }) {
        let _ = std::fs::remove_file(&config.socket);
    }
    if let Some(store) = &ledger {
        store.flush();
    }
    // The last lines that services printed still go out.
    own_output.finish(FAREWELL);
    let ended = match end {
        End::Down { failed: false } | End::Replaced(_) => code::DONE,
        End::Down { failed: true } => code::FAILED,
    };
    match (&host, end) {
        (Some(host), End::Down { .. }) => host.bye(ended),
        (Some(host), End::Replaced(program)) => host.replace_with(&program).await,
        (None, _) => {}
    }
    ended
}

/// The last good text of manifests that can't be read now. Only a daemon that follows another uses
/// it.
fn last_good(path: &Path, follows: bool) -> LastGood {
    let written = follows.then(|| files::read_own(path).ok()).flatten();
    let to = path.to_owned();
    LastGood::of(written.as_deref(), move |text| files::replace_quickly(&to, text))
}

fn listen(config: &Config) -> std::io::Result<UnixListener> {
    match config.access.is_empty() {
        true => files::private_parent(&config.socket)
            .and_then(|()| sockets::listen(&config.socket, sockets::SocketAccess::Owner)),
        false => files::open_parent(&config.socket)
            .and_then(|()| sockets::listen(&config.socket, sockets::SocketAccess::Everybody)),
    }
}

/// What only the start needs is released after this time.
const AT_REST: Duration = Duration::from_secs(2);

/// How a daemon ends.
enum End {
    /// Everything is down. The end counts as a failure where the tree gave up, where a process is stuck
    /// in the kernel, and where regrow itself broke.
    Down { failed: bool },
    /// Another program takes over everything.
    Replaced(PathBuf),
}

/// The environment that services inherit: without the variables that only concern the daemon and
/// the process that started it.
fn environment() -> Environment {
    let own =
        ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];
    let mut environment = Environment::of_process();
    environment.vars.retain(|(name, _)| !own.iter().any(|own| name == own));
    environment
}

fn open_store(config: &Config) -> (Option<Store>, Memory) {
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

/// The plan with the services and groups that were added and removed by hand since the manifests
/// were last read.
fn changed_by_hand(mut plan: Plan, store: &Store, environment: &Environment) -> Plan {
    let changes = store.changes().unwrap_or_else(|error| {
        tell!("regrow: the services added and removed by hand can't be read: {error}");
        Vec::new()
    });
    for change in changes {
        let made = match &change {
            ManualChange::Removed { services, groups } => Ok(plan_edit::without(&plan, services, groups)),
            ManualChange::Added { manifest, file, group } => {
                load_addition(manifest, file, environment, &plan)
                    .map_err(|faults| faults.first().map(|fault| fault.message.clone()).unwrap_or_default())
                    .and_then(|loaded| {
                        let addition = Addition { into: group.clone(), ..loaded.addition };
                        plan_edit::with(&plan, &addition).map_err(|denial| denial.reason)
                    })
            }
        };
        match made {
            Ok(made) => plan = made,
            Err(why) => tell!("regrow: a change made by hand can't be applied again: {why}"),
        }
    }
    plan
}

fn task_rules(config: &Config) -> TaskRules {
    let TasksConfig {
        pool,
        auto,
        memory,
        output,
        kept,
        kept_for,
        cache,
        scale,
        disk_full,
        load_high,
        cache_persists,
    } = config.tasks;
    TaskRules {
        size: pool,
        cache,
        memory: usize::try_from(memory).unwrap_or(usize::MAX),
        output,
        folder: config.home.join("tasks"),
        kept,
        kept_for,
        scale,
        mode: if auto { ScalingMode::Auto } else { ScalingMode::ByHand },
        keep: if cache_persists { KeepResults::InLedger } else { KeepResults::InMemory },
        disk_full,
        load_high,
    }
}

fn card_of(config: &Config) -> Card {
    Card::of_daemon(std::process::id(), config.file.as_deref(), &config.socket)
}

/// Follows the tree until everything is down or another program is to take over.
async fn follow(
    config: &Config,
    own_log: Option<&OwnLog>,
    handle: &Handle,
    mut signals: Signals,
    upgrades: &mut mpsc::UnboundedReceiver<PathBuf>,
    mut reloads: Reloads,
) -> End {
    let mut events = handle.events();
    let mut asked: Option<Instant> = None;
    let mut look = tokio::time::interval(LOOKING);
    let mut down = std::pin::pin!(handle.wait_down());
    loop {
        tokio::select! {
            biased;
            heard = signals.next() => {
                match (heard, asked) {
                    (SignalAction::HangUp, _) => reloads.begin(handle, "signal:SIGHUP"),
                    (SignalAction::Quit, _) => handle.kill_all(),
                    (SignalAction::Interrupt | SignalAction::Terminate, None) => {
                        asked = Some(Instant::now());
                        let name = if heard == SignalAction::Interrupt { "SIGINT" } else { "SIGTERM" };
                        handle.begin_shutdown(name);
                    }
                    (SignalAction::Interrupt, Some(at)) if at.elapsed() > Duration::from_millis(50) => {
                        handle.kill_all();
                    }
                    (SignalAction::Interrupt | SignalAction::Terminate, Some(_)) => {}
                }
            }
            () = reloads.wanted(handle) => reloads.begin(handle, "watch"),
            // The instance directory or the log file may have been deleted meanwhile.
            _ = look.tick() => {
                // A log file that can't be mended is tried again at the next tick; there is nowhere to
                // report it.
                let _ = own_log.map(OwnLog::look);
                if instance_dir::daemon_of(&config.home).is_none() {
                    instance_dir::tell_daemon(&config.home, &card_of(config));
                }
            }
            Some(program) = upgrades.recv() => {
                log(&format!("replaced by {}; services are not touched", program.display()));
                return End::Replaced(program);
            }
            read = events.next() => {
                if let NextEvent::Event(event) = read {
                    tell_event(&event);
                }
            }
            ended = &mut down => {
                while let Some(NextEvent::Event(event)) = events.try_next() {
                    tell_event(&event);
                }
                let stuck = handle.stuck();
                for (name, pid) in &stuck {
                    let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
                    log(&format!("{name}{pid} is stuck in the kernel: SIGKILL has not ended it"));
                }
                let gave_up = handle.tree_state(TreeState::has_given_up);
                return End::Down { failed: gave_up || ended.is_err() || !stuck.is_empty() };
            }
        }
    }
}

fn loader(config: &Config, manifests: Arc<FolderReader>) -> Load {
    let (folder, profiles) = (config.manifests.clone(), config.profiles.clone());
    let stop_timeout = config.stop_timeout;
    Arc::new(move |now| {
        let unreadable = |error| LoadError::Unreadable { path: folder.clone(), error };
        // At the start the folder may not exist yet; at a reload a missing folder is an error.
        std::fs::read_dir(&folder).map_err(unreadable)?;
        let Folder { mut plan, graph, faults, .. } = manifests.read(Some(now)).map_err(unreadable)?;
        plan.stop.tree = stop_timeout;
        Ok(server::LoadedManifests { plan: selected(plan, &graph, &profiles), faults })
    })
}

fn selected(plan: Plan, graph: &Graph, profiles: &[String]) -> Plan {
    let selection = Selection { profiles: profiles.to_vec(), ..Selection::default() };
    // A profile that no service has does not keep the rest from starting.
    select(&plan, graph, &selection).unwrap_or(plan)
}

/// Reloads that no client asked for: by SIGHUP, or because the folder has changed.
struct Reloads {
    watch: Option<FolderWatch>,
    /// The plan whose env files are watched.
    plan: Option<Arc<Plan>>,
    load: Load,
    store: Option<Store>,
}

fn watch_folder(config: &Config) -> Option<FolderWatch> {
    match config.watch.then(|| FolderWatch::new(&config.manifests))? {
        Ok(watch) => Some(watch),
        Err(error) => {
            tell!("regrow: {} can't be watched: {error}", config.manifests.display());
            None
        }
    }
}

impl Reloads {
    /// Returns when the folder, or an env file that one of its services names, has changed.
    async fn wanted(&mut self, handle: &Handle) {
        match &mut self.watch {
            Some(watch) => {
                let plan = handle.plan();
                if !self.plan.as_ref().is_some_and(|known| Arc::ptr_eq(known, &plan)) {
                    let renewals = plan.services.iter().filter_map(|spec| spec.renewal.as_ref());
                    watch.also(renewals.flat_map(SpecRefresh::files));
                    self.plan = Some(plan);
                }
                if let Err(error) = watch.changed().await {
                    tell!("regrow: the manifests can't be watched any more: {error}");
                    self.watch = None;
                }
            }
            None => std::future::pending().await,
        }
    }

    fn begin(&self, handle: &Handle, by: &'static str) {
        let (load, handle, store) = (Arc::clone(&self.load), handle.clone(), self.store.clone());
        let told = handle.clone();
        tokio::spawn(async move {
            let plan = async move {
                let now = told.plan();
                match tokio::task::spawn_blocking(move || load(&now)).await {
                    Ok(Ok(server::LoadedManifests { plan, faults })) => {
                        faults.iter().for_each(report::tell_beside_others);
                        told.tell_faulty(faults.iter().map(LoadError::in_short).collect());
                        Ok(plan)
                    }
                    Ok(Err(fault)) => {
                        report::tell_beside_others(&fault);
                        let reason = "the manifests can't be read; nothing was changed".to_owned();
                        Err(Denial { code: DenialCode::Faulty, reason, hint: None })
                    }
                    Err(error) => {
                        Err(Denial { code: DenialCode::Internal, reason: error.to_string(), hint: None })
                    }
                }
            };
            match handle.change_to(plan, Some(Requester::new(by))).await {
                Ok(done) => {
                    if let Some(store) = store {
                        store.forget_change(None);
                    }
                    log(&format!(
                        "reloaded: {}",
                        reloaded_in_words(&done.difference, |name| handle
                            .tree_state(|tree_state| tree_state.shown_service(name)))
                        .join("; ")
                    ));
                }
                Err(denial) => log(&format!("not reloaded: {}", denial.reason)),
            }
        });
    }
}

/// Logs the events that an operator looks for in the journal.
fn tell_event(event: &Event) {
    match &event.fact {
        Fact::Instance(InstanceFact::Crashed { .. })
        | Fact::Instance(InstanceFact::Failed { .. })
        | Fact::Group(GroupFact::Restarting { .. })
        | Fact::Group(GroupFact::GaveUp { .. })
        | Fact::Group(GroupFact::ShutDown { .. })
        | Fact::Instance(InstanceFact::Stuck { .. })
        | Fact::Instance(InstanceFact::ActorBroke { .. })
        | Fact::Instance(InstanceFact::HookFailed { .. })
        | Fact::Instance(InstanceFact::EnvRenewed { .. })
        | Fact::Instance(InstanceFact::OutputElsewhere { .. })
        | Fact::Instance(InstanceFact::ForksAway { .. })
        | Fact::Instance(InstanceFact::LostSight { .. })
        | Fact::Instance(InstanceFact::OutputLost { .. })
        | Fact::Tree(TreeFact::StoreLost { .. })
        | Fact::Tree(TreeFact::ActorBroke { .. })
        | Fact::Instance(InstanceFact::StopCommandFailed { .. })
        | Fact::Tree(TreeFact::Added { .. })
        | Fact::Tree(TreeFact::Reconfigured { .. })
        | Fact::Tree(TreeFact::Scaled { .. })
        | Fact::Tree(TreeFact::ScaleDecided { .. })
        | Fact::Pool(PoolFact::Scaled { .. })
        | Fact::Tree(TreeFact::Removed { .. })
        | Fact::Tree(TreeFact::ProjectGaveUp { .. })
        | Fact::Tree(TreeFact::ShutdownStarted { .. })
        | Fact::Tree(TreeFact::ShutdownDone) => log(&fact_in_words(&event.fact)),
        _ => {}
    }
}

fn log(words: &str) {
    let now = humantime::format_rfc3339_millis(std::time::SystemTime::now());
    say!("{now}  {words}");
}

/// Starts the daemon apart from this terminal, and returns when the daemon is up.
fn detach(args: &DaemonArgs, config: &Config) -> u8 {
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

/// The folder of this user's secrets.
pub(super) fn secrets() -> PathBuf {
    let config = load_config(None, &default_paths());
    config.map_or_else(|_| files::state_dir().join("secrets"), |config| config.secrets)
}

/// The path of the file that holds the tokens.
fn tokens_of(config: &Config) -> PathBuf {
    config.home.join("tokens.json")
}

/// The tokens of the daemon with this configuration; without one, of the daemon that this user's
/// commands reach.
pub(super) fn tokens(config: Option<&Path>) -> Result<Tokens, ConfigError> {
    load_config(config, &default_paths()).map(|config| Tokens::at(tokens_of(&config)))
}

/// The card of this user's daemon, if one runs: its pid, manifest and socket.
pub(super) fn card() -> Option<Card> {
    let config = load_config(None, &default_paths()).ok()?;
    let card = instance_dir::daemon_of(&config.home).filter(|_| locks::is_locked(&config.home))?;
    Some(Card { socket: Some(card.socket.clone().unwrap_or(config.socket)), ..card })
}
