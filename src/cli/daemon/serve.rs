//! The daemon at work: it prepares, starts its tree, follows it, and concludes.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::journal::{log, tell_event};
use super::places::{card_of, listen, open_store, tokens_of};
use super::reloads::{Reloads, changed_by_hand, last_good, loader, selected, watch_folder};
use crate::actors::event_log::NextEvent;
use crate::actors::worker_pool::{KeepResults, ScalingMode, TaskRules};
use crate::actors::{LogRetention, OutputPolicy};
use crate::cli::inherit::OwnOutput;
use crate::cli::{code, format, report};
use crate::control::{instance_dir, server, tls};
use crate::decide::ledger::{Ledger, Memory};
use crate::decide::tree_state::TreeState;
use crate::host::files_changed::FolderWatch;
use crate::host::keeper::KeeperSocket;
use crate::host::native::HostOptions;
use crate::logs::own::OwnLog;
use crate::manifest::config::{Config, TasksConfig};
use crate::manifest::folder::{Folder, FolderReader};
use crate::manifest::{Environment, LoadError};
use crate::model::Plan;
use crate::record::store::Store;
use crate::runtime::{Handle, KeeperOptions, Options, StartError, UnclaimedPolicy};
use crate::sys::signals::{SignalAction, Signals};
use crate::sys::{clock, memory};
use crate::vault::tokens::Tokens;

/// The interval at which the daemon checks that its instance directory still names it, and that its
/// log file is in place.
const LOOKING: Duration = Duration::from_secs(5);

/// The time that answers under way have at the end of the daemon.
pub(super) const FAREWELL: Duration = Duration::from_millis(500);

/// Prepares, starts, follows and concludes. Returns the exit code.
pub(super) async fn serve(config: &Config, keeper_socket: KeeperSocket, own_log: Option<&OwnLog>) -> u8 {
    let prepared = match prepare(config, &keeper_socket) {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    let (Running { handle, mut serving, reloads }, signals) =
        match start(config, keeper_socket, prepared).await {
            Ok(running) => running,
            Err(code) => return code,
        };
    let end = follow(config, own_log, &handle, signals, &mut serving.upgrades, reloads).await;
    conclude(config, &handle, serving, end).await
}

/// What a daemon has before its tree starts.
struct Prepared {
    manifests: Arc<FolderReader>,
    watch: Option<FolderWatch>,
    ledger: Option<Store>,
    memory: Memory,
    /// Whether an earlier daemon of this boot was not taken down.
    follows: bool,
    plan: Plan,
    /// The paths of the manifests that were read.
    files: usize,
    faults: Vec<LoadError>,
    signals: Signals,
    listener: Option<UnixListener>,
    own_output: Arc<OwnOutput>,
}

/// Reads the manifests and the store, and opens the socket. `Err`: what is wrong was told, and this is the
/// exit code.
fn prepare(config: &Config, keeper_socket: &KeeperSocket) -> Result<Prepared, u8> {
    let failed = |words: String| {
        tell!("{}: {words}", format::error_word());
        code::FAILED
    };
    let environment = environment();
    // The watch is set up before the folder is read, so that no change is missed in between.
    let watch = watch_folder(config);
    let (ledger, memory) = open_store(config);
    let follows = memory.boot.is_some() && memory.boot == clock::boot() && !memory.ended;
    let texts = last_good(&config.home.join("manifests.json"), follows);
    let manifests = Arc::new(FolderReader::new(config.manifests.clone(), environment.clone(), texts));
    let folder = manifests.read(None).map_err(|error| {
        failed(format!("the manifests in {} can't be read: {error}", config.manifests.display()))
    })?;
    report::warn(&folder.warnings);
    folder.faults.iter().for_each(report::tell_beside_others);
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
    let signals = Signals::listen().map_err(|error| failed(format!("can't listen to signals: {error}")))?;
    instance_dir::tell_daemon(&config.home, &card_of(config));
    // A daemon that follows another goes on with the socket of that one, which the keeper has held.
    let listener =
        match keeper_socket.follows() {
            true => None,
            false => Some(listen(config).map_err(|error| {
                failed(format!("no control socket at {}: {error}", config.socket.display()))
            })?),
        };
    let own_output = OwnOutput::start().map_err(|error| failed(error.to_string()))?;
    let files = files.len();
    Ok(Prepared {
        manifests,
        watch,
        ledger,
        memory,
        follows,
        plan,
        files,
        faults,
        signals,
        listener,
        own_output,
    })
}

/// A tree that runs, and who serves it.
struct Running {
    handle: Handle,
    serving: Serving,
    reloads: Reloads,
}

/// The server of the API, and what ends with it.
struct Serving {
    server: JoinHandle<()>,
    close: watch::Sender<bool>,
    upgrades: mpsc::UnboundedReceiver<PathBuf>,
    ledger: Option<Store>,
    own_output: Arc<OwnOutput>,
}

/// Starts the tree and its server, and says that it is up. `Err` is the exit code, as above.
async fn start(
    config: &Config,
    keeper_socket: KeeperSocket,
    prepared: Prepared,
) -> Result<(Running, Signals), u8> {
    let Prepared {
        manifests,
        watch,
        ledger,
        memory,
        follows,
        plan,
        files,
        faults,
        signals,
        listener,
        own_output,
    } = prepared;
    let services = plan.services.len();
    let options = options(config, &own_output);
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
        Err(StartError::Over) => return Err(code::DONE),
        Err(error) => {
            tell!("{}: {error}", format::error_word());
            return Err(code::FAILED);
        }
    };
    let listener = listener.or_else(|| handle.take_listener(&config.socket)).or_else(|| {
        let told = |error: &std::io::Error| {
            let path = config.socket.display();
            tell!("regrow: no control socket at {path} yet: {error}");
        };
        listen(config).inspect_err(told).ok()
    });
    if let Some(listener) = &listener {
        handle.hold_listener(listener, &config.socket);
    }
    let load = loader(config, manifests);
    handle.tell_faulty(faults.iter().map(LoadError::in_short).collect());
    let (close, closing) = watch::channel(false);
    let (upgrade, upgrades) = mpsc::unbounded_channel();
    let daemon = server::Daemon {
        store: ledger.clone(),
        load: Arc::clone(&load),
        manifests: config.manifests.clone(),
        writing: tokio::sync::Mutex::new(()),
        upgrade,
    };
    let (listeners, served) = (listeners(config, listener), handle.clone());
    let server = tokio::spawn(async move {
        if let Err(error) = server::serve(listeners, served, closing, Some(daemon)).await {
            tracing::error!(%error, "the control socket is gone");
        }
    });
    announce(config, &handle, (services, files, faults.len()));
    let reloads = Reloads { watch, plan: None, load, store: ledger.clone() };
    if config.watch && follows {
        // This covers changes to the folder while no daemon was watching.
        reloads.begin(&handle, "watch");
    }
    let serving = Serving { server, close, upgrades, ledger, own_output };
    Ok((Running { handle, serving, reloads }, signals))
}

fn options(config: &Config, own_output: &Arc<OwnOutput>) -> Options {
    Options {
        host: HostOptions { subreaper: false, owns_process: true, die_with_us: false },
        sample_interval: config.sample_interval,
        console: None,
        own_output: Some(Arc::clone(own_output) as Arc<_>),
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
    }
}

/// Where the API listens.
fn listeners(config: &Config, local: Option<UnixListener>) -> server::Listeners {
    let network = config.api.clone().map(|api| {
        if let Some(Err(why)) = api.tls.as_ref().map(tls::check) {
            tell!("regrow: the API can't speak TLS: {why}");
        }
        server::NetworkListener { api, tokens: Tokens::at(tokens_of(config)) }
    });
    server::Listeners { local, path: config.socket.clone(), access: config.access.clone(), network }
}

/// Says that the daemon is up: to its journal, and to the service manager.
fn announce(config: &Config, handle: &Handle, (services, files, faulty): (usize, usize, usize)) {
    let noun = |count: usize, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
    log(&format!(
        "regrow {}: {} from {} in {}{}",
        env!("CARGO_PKG_VERSION"),
        noun(services, "service"),
        noun(files, "manifest"),
        config.manifests.display(),
        if faulty == 0 { String::new() } else { format!(", {faulty} faulty") },
    ));
    if let Some(host) = handle.native_host() {
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
    if let Some(host) = handle.native_host() {
        // A daemon of another build brings a keeper of its own build.
        host.renew_keeper_if_other();
    }
}

/// Answers what is under way, writes down what is to be kept, and tells the keeper how the daemon ends.
async fn conclude(config: &Config, handle: &Handle, serving: Serving, end: End) -> u8 {
    let host = handle.native_host().cloned();
    if let (Some(host), End::Down { .. }) = (&host, &end) {
        host.notify("STOPPING=1");
    }
    serving.close.send_replace(true);
    // The client that asked for the end is to get its answer; a client that does not read is not waited
    // for.
    let _ = tokio::time::timeout(FAREWELL, serving.server).await;
    // A daemon that goes on needs the socket.
    if matches!(end, End::Down { .. }) {
        let _ = std::fs::remove_file(&config.socket);
    }
    if let Some(store) = &serving.ledger {
        store.flush();
    }
    // The last lines that services printed still go out.
    serving.own_output.finish(FAREWELL);
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
