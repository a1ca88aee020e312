//! The host of real processes. It either spawns them itself ([`NativeHost::start`], for `regrow
//! run` and programs that embed the tree) or has a keeper spawn them, which is the parent of this
//! process as well ([`NativeHost::below`], for `regrow daemon`).

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use spawners::{SpawnContext, Spawners, Spawning};

use super::cgroup::{self, Cgroups};
use super::journal::{self, Journal};
use super::keeper::KeeperSocket;
use super::keeper::client::Client;
use super::reaper::{self, KeeperLink, Leave, ReaperHandle, ReaperOrder, Reclaimed};
use super::spawn::{Spawner, Ties};
use super::stall::StallMonitor;
use super::start_queue::Starts;
use super::{Host, HostEventSink, KeptProcess, OutputSink, OutputTarget, ProcessKey, SpawnOrder};
use crate::host::marks::{self, number_of, run_of};
use crate::logs::{LogConfig, Logs};
use crate::model::SourceId;
use crate::sys::limits::{Limits, leave_no_core};

pub(crate) use spawners::Prepared;

mod spawners;

/// How a [`NativeHost`] treats the process that it runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostOptions {
    /// Whether this process becomes a child subreaper (prctl(2)): processes that a service leaves
    /// behind are then reparented to this process and ended with it. The setting affects every
    /// child of the process.
    pub subreaper: bool,
    /// Whether this host may reap every child of this process, because nothing else in it starts
    /// children. Right for `regrow`, wrong for a program with children of its own.
    pub owns_process: bool,
    /// Whether the kernel sends SIGKILL to services when this process dies.
    pub die_with_us: bool,
}

impl Default for HostOptions {
    fn default() -> HostOptions {
        HostOptions { subreaper: true, owns_process: false, die_with_us: true }
    }
}

/// The [`Host`] that spawns real processes, by itself or through a keeper.
pub struct NativeHost {
    line: ReaperHandle,
    keeper: Option<Keeper>,
    cgroups: Option<Arc<Cgroups>>,
    /// The number in the marks of its processes and those of earlier daemons, which no other
    /// processes carry.
    run: u32,
    stall_monitor: Arc<StallMonitor>,
    starts: Option<Starts<Prepared>>,
    keys: AtomicU64,
    chance: AtomicU64,
}

/// A host below a keeper, and what it found there.
pub struct Joined {
    /// The host itself, ready for use.
    pub host: NativeHost,
    /// When the first keeper started, by the monotonic clock.
    pub since: Duration,
    /// The processes that earlier daemons left: each is to be adopted ([`Host::adopt`]).
    pub found: Vec<KeptProcess>,
    /// Whether this is the first daemon below this keeper and its predecessors.
    pub first: bool,
    /// The names, texts and descriptors that earlier daemons had the keeper hold
    /// ([`NativeHost::hold`]).
    pub held: Vec<(String, String, Option<OwnedFd>)>,
}

/// Whether an error means that the other end of a connection is gone.
fn is_hang_up(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof
    )
}

/// The keeper, which outlives this process, and the connection to it.
struct Keeper {
    client: Arc<Client>,
    pid: u32,
}

impl NativeHost {
    /// Starts the host's threads: the reaper, and a few spawners.
    pub fn start(sink: Arc<dyn OutputSink>, options: HostOptions) -> io::Result<NativeHost> {
        NativeHost::start_marked(sink, options, RandomState::new().build_hasher().finish())
    }

    /// Starts a host for the tasks of a daemon. Its marks follow from the daemon's identity, so the
    /// next daemon can end what this one leaves ([`end_left_tasks`]).
    pub fn start_for_tasks(
        sink: Arc<dyn OutputSink>,
        options: HostOptions,
        identity: &str,
    ) -> io::Result<NativeHost> {
        NativeHost::start_marked(sink, options, mark_of_tasks(identity))
    }

    fn start_marked(sink: Arc<dyn OutputSink>, options: HostOptions, mark: u64) -> io::Result<NativeHost> {
        if options.subreaper {
            nix::sys::prctl::set_child_subreaper(true)?;
        }
        let limits = Limits::raise();
        if options.owns_process {
            leave_no_core();
        }
        cgroup::sweep();
        let cgroups = Cgroups::make(number_of(mark)).map(Arc::new);
        let (logs, stall_monitor) = (Arc::<Logs>::default(), StallMonitor::start()?);
        let (own, kept) = (cgroups.clone(), Arc::clone(&logs));
        let line = reaper::start(Arc::clone(&sink), options.owns_process, own, kept, None, &stall_monitor)
            .inspect_err(|_| stall_monitor.end())?;
        let ties = Ties { die_with_us: options.die_with_us, outlive_readers: false };
        let work = SpawnContext {
            line: line.clone(),
            sink,
            cgroups,
            logs,
            mark,
            journal: None,
            permits: Arc::default(),
        };
        let by = move || Ok(Spawning::Ourselves(Spawner::new(limits, ties)?));
        NativeHost::with(line, None, 1, work, stall_monitor, by)
    }

    /// Starts a host that has a keeper spawn its processes, which outlive this process.
    ///
    /// - `identity`: the text that all daemons that follow each other share, and no others.
    /// - `lives`: the texts by which processes are found again that no keeper has (see
    ///   [`HostEvent::Spawned`](super::HostEvent::Spawned)).
    /// - `journal`: the file in which this host notes its processes, as earlier daemons did.
    /// - `before_change`: called when the keeper was killed and this process is about to become the
    ///   keeper.
    pub fn below(
        keeper_socket: KeeperSocket,
        identity: &str,
        lives: &[String],
        journal: &Path,
        sink: Arc<dyn OutputSink>,
        before_change: Arc<dyn Fn() + Send + Sync>,
    ) -> io::Result<Joined> {
        let noted = journal::read(journal);
        let _ = Limits::raise();
        leave_no_core();
        let boot = crate::sys::clock::boot().unwrap_or_default();
        let mark = crate::model::digest::fnv(format!("{boot} {identity}").as_bytes());
        let cgroups = Cgroups::make_lasting(number_of(mark)).map(Arc::new);
        let KeeperSocket { line, sentinel, .. } = keeper_socket;
        let (client, welcome) = match Client::greet(line) {
            Ok(greeted) => greeted,
            // The keeper was killed, and the sentinel is about to become the keeper.
            Err(error) if is_hang_up(&error) => loop {
                std::thread::park();
            },
            Err(error) => return Err(error),
        };
        let client = Arc::new(client);
        let (since, mut last_key, pid) = (welcome.since, welcome.last_key, welcome.keeper);
        let (first, orphaned) = (welcome.first, welcome.orphaned);
        let writes = Arc::new(Journal::begin(journal.to_owned(), noted.iter().cloned()));
        let held: Vec<(String, String, Option<OwnedFd>)> = welcome
            .held
            .iter()
            .map(|held| {
                (held.name.clone(), held.text.clone(), held.fd.as_ref().and_then(|fd| fd.try_clone().ok()))
            })
            .collect();
        let mut above =
            KeeperLink::new(Arc::clone(&client), welcome, sentinel, Arc::clone(&writes), before_change);
        let fresh = above.found().is_empty();
        let mut known_lives: HashSet<u64> = HashSet::new();
        let noted_lives = noted.iter().filter_map(|noted| noted.life.as_ref());
        for life in lives.iter().chain(noted_lives).filter(|life| !above.has(life)).collect::<Vec<_>>() {
            match reaper::reclaim(life) {
                Reclaimed::Alive(kept) => {
                    last_key = last_key.max(kept.key);
                    known_lives.insert(kept.key);
                    above.reclaim(kept);
                }
                Reclaimed::Gone { key } => last_key = last_key.max(key),
                Reclaimed::Nobody => {}
            }
        }
        last_key = noted.iter().map(|noted| noted.key).max().unwrap_or_default().max(last_key);
        if fresh || orphaned {
            // Processes asked for just before daemon and keeper died may exist, and nothing more is
            // known of them.
            let unknown =
                noted.iter().filter(|noted| noted.life.is_none() && !known_lives.contains(&noted.key));
            let unknown: Vec<(u64, &str)> = unknown.map(|noted| (noted.key, noted.about.as_str())).collect();
            if !unknown.is_empty() {
                reaper::reclaim_marked(&unknown).into_iter().flatten().for_each(|kept| above.reclaim(kept));
            }
        }
        let found = above.found();
        if fresh || orphaned {
            // Ends what a killed pair of daemon and keeper had spawned and no record names.
            let known = found.iter().map(|found| found.key.0 & 0xffff_ffff).collect();
            end_unknown(number_of(mark), cgroups.as_deref(), &known);
            last_key += UNWRITTEN;
        }
        let lives_on: HashSet<u64> = found.iter().map(|found| found.key.0).collect();
        noted.iter().filter(|noted| !lives_on.contains(&noted.key)).for_each(|noted| writes.gone(noted.key));
        let (logs, stall_monitor) = (Arc::<Logs>::default(), StallMonitor::start()?);
        let (own, kept) = (cgroups.clone(), Arc::clone(&logs));
        let line = reaper::start(Arc::clone(&sink), true, own, kept, Some(above), &stall_monitor)
            .inspect_err(|_| stall_monitor.end())?;
        let work = SpawnContext {
            line: line.clone(),
            sink,
            cgroups,
            logs,
            mark,
            journal: Some(writes),
            permits: Arc::default(),
        };
        let keeper = Keeper { client: Arc::clone(&client), pid };
        let by = move || Ok(Spawning::Keeper(Arc::clone(&client)));
        let host = NativeHost::with(line, Some(keeper), last_key + 1, work, stall_monitor, by)?;
        Ok(Joined { host, since, found, first, held })
    }

    fn with(
        line: ReaperHandle,
        keeper: Option<Keeper>,
        first_key: u64,
        work: SpawnContext,
        stall_monitor: Arc<StallMonitor>,
        by: impl Fn() -> io::Result<Spawning> + Send + Sync + 'static,
    ) -> io::Result<NativeHost> {
        let (starts, cgroups, run) = (Starts::new(), work.cgroups.clone(), number_of(work.mark));
        let spawners = Arc::new(Spawners {
            work,
            giver: starts.giver(),
            stall_monitor: Arc::clone(&stall_monitor),
            by: Box::new(by),
            more: AtomicUsize::new(0),
        });
        // One more than there are cores: during vfork a spawner sleeps until its child executes.
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(3)) + 1;
        for _ in 0..threads {
            spawners.begin(starts.taker()).inspect_err(|_| {
                stall_monitor.end();
                line.send(ReaperOrder::Quit);
            })?;
        }
        Ok(NativeHost {
            line,
            keeper,
            cgroups,
            run,
            stall_monitor,
            starts: Some(starts),
            keys: AtomicU64::new(first_key),
            chance: AtomicU64::new(RandomState::new().build_hasher().finish()),
        })
    }

    /// Sends a text to the service manager of the keeper, by sd_notify(3). Does nothing without a
    /// keeper.
    pub fn notify(&self, text: &str) {
        if let Some(keeper) = &self.keeper {
            keeper.client.notify(text);
        }
    }

    /// Announces that this process is about to end, and that the keeper is to end with this exit
    /// code.
    pub fn bye(&self, code: u8) {
        if let Some(keeper) = &self.keeper {
            keeper.client.bye(code);
            self.line.send(ReaperOrder::Leave(Leave::Down(code)));
        }
    }

    /// Whether a process belongs to a tree of this host, by the mark that children inherit.
    pub fn is_of_tree(&self, pid: u32) -> bool {
        marks::mark(pid).and_then(run_of) == Some(self.run)
    }

    /// Gives the host's cgroups back, as far as nobody uses them. To be called when no process of
    /// the host lives any more and no further one is asked for.
    pub fn leave(&self) {
        if let Some(cgroups) = &self.cgroups {
            cgroups.leave();
        }
    }

    /// Announces that this process is about to end and that the keeper is to start this program in
    /// its place. Returns when the keeper has noted that. If the keeper is dead, this process
    /// becomes the keeper and the call does not return.
    pub async fn replace_with(&self, program: &Path) {
        if self.keeper.is_some() {
            let (noted, heard) = tokio::sync::oneshot::channel();
            let noted = Box::new(move || {
                let _ = noted.send(());
            });
            self.line.send(ReaperOrder::Leave(Leave::Replaced(program.to_owned(), noted)));
            // The reaper may end without an answer; then there is nothing to wait for.
            let _ = heard.await;
        }
    }

    /// Has the keeper hold a text and a descriptor under this name for the daemons that follow, in
    /// place of what it held before. Does nothing without a keeper.
    pub fn hold(&self, name: &str, text: String, fd: Option<OwnedFd>) {
        if self.keeper.is_some() {
            self.line.send(ReaperOrder::Hold(name.to_owned(), text, fd));
        }
    }

    /// Has the keeper re-execute itself as the program of this process, with all that it keeps, if
    /// it runs another program.
    pub fn renew_keeper_if_other(&self) {
        let Some(Keeper { client, pid, .. }) = &self.keeper else {
            return;
        };
        // Named by the running file, because its path may hold another file by now.
        let mine = format!("/proc/{}/exe", std::process::id());
        let program = |path: &str| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
        let (own, its) = (program(&mine), program(&format!("/proc/{pid}/exe")));
        if own.is_some() && its.is_some() && own != its {
            client.renew(Path::new(&mine));
        }
    }

    /// The pid of the keeper; `None` without one.
    pub fn keeper_pid(&self) -> Option<u32> {
        self.keeper.as_ref().map(|keeper| keeper.pid)
    }

    /// Ties this process to another: when the process behind this pidfd dies, every tree is killed
    /// and this process exits.
    pub fn die_with(&self, process: OwnedFd) {
        self.line.send(ReaperOrder::DieWith(process));
    }

    /// Ends the orphans that services left to this process and that belong to no known tree; `done`
    /// is called when none is left.
    pub fn end_strays(&self, done: impl FnOnce() + Send + 'static) {
        self.line.send(ReaperOrder::EndStrays(Box::new(done)));
    }
}

impl Drop for NativeHost {
    fn drop(&mut self) {
        // The spawner threads end with their queue. Their end kills whatever still runs, by
        // PR_SET_PDEATHSIG: an orderly shutdown came before.
        self.starts = None;
        self.stall_monitor.end();
        self.line.send(ReaperOrder::Quit);
    }
}

/// How many keys are skipped because a killed daemon may have used them without a record.
const UNWRITTEN: u64 = 1_000_000;

/// Ends every process of a daemon's run that belongs to none of the known trees.
pub(crate) fn end_unknown(run: u32, cgroups: Option<&Cgroups>, known: &HashSet<u64>) {
    for key in cgroups.map(Cgroups::keys).unwrap_or_default() {
        if let Some(cgroups) = cgroups.filter(|_| !known.contains(&(key & 0xffff_ffff))) {
            cgroups.kill(key);
            cgroups.remove(key);
        }
    }
    cgroup::end_marked_but(run, known);
}

fn mark_of_tasks(identity: &str) -> u64 {
    let boot = crate::sys::clock::boot().unwrap_or_default();
    crate::model::digest::fnv(format!("{boot} {identity} tasks").as_bytes())
}

/// Ends what the tasks of an earlier daemon of this identity left. It scans every process, so it
/// belongs on a thread that nobody waits for, and must not run while this daemon has tasks.
pub fn end_left_tasks(identity: &str) {
    cgroup::sweep();
    end_unknown(number_of(mark_of_tasks(identity)), None, &HashSet::new());
}

impl Host for NativeHost {
    fn roll(&self) -> f64 {
        // SplitMix64: jitter needs spread, not secrecy.
        let mut z = self.chance.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // 53 bits are exact in an f64.
        (z >> 11) as f64 / (1u64 << 53) as f64
    }

    fn next_key(&self) -> ProcessKey {
        ProcessKey(self.keys.fetch_add(1, Ordering::Relaxed))
    }

    fn spawn(&self, order: SpawnOrder) {
        if let Some(starts) = &self.starts {
            starts.give(order);
        }
    }

    fn signal(&self, key: ProcessKey, signal: i32) {
        self.line.send(ReaperOrder::Signal(key, signal));
    }

    fn pause(&self, key: ProcessKey) {
        self.line.send(ReaperOrder::Pause(key));
    }

    fn resume(&self, key: ProcessKey) {
        self.line.send(ReaperOrder::Resume(key));
    }

    fn kill(&self, key: ProcessKey) {
        self.line.send(ReaperOrder::Kill(key));
    }

    fn adopt(&self, key: ProcessKey, output: OutputTarget, keep: Option<LogConfig>, news: HostEventSink) {
        self.line.send(ReaperOrder::Adopt(key, output, keep, news));
    }

    fn settle(&self, key: ProcessKey) {
        if self.keeper.is_some() {
            self.line.send(ReaperOrder::Settle(key));
        }
    }

    fn look_around(&self) {
        self.line.send(ReaperOrder::LookAround);
    }

    fn keep(&self, source: SourceId, keep: LogConfig) {
        self.line.send(ReaperOrder::Keep(source, keep));
    }

    fn forget(&self, source: SourceId) {
        self.line.send(ReaperOrder::Forget(source));
    }
}
