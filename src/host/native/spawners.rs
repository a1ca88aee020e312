//! The spawner threads. Each takes a start, prepares all that the process needs, opens its log
//! files, and has it spawned, by this process or by a keeper. A start that blocks delays no other.
//!
//! Deliberately absent: what becomes of a spawned process; the reaper is told of it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use nix::errno::Errno;

use super::is_hang_up;
use crate::host::cgroup::{Cgroups, Use};
use crate::host::journal::Journal;
use crate::host::keeper::client::Client;
use crate::host::marks::Marks;
use crate::host::reaper::note::KeeperNote;
use crate::host::reaper::{Expected, MARK, ReaperHandle, ReaperOrder, Watched};
use crate::host::spawn::{Failed, Placed, Program, Spawner, descriptors_left};
use crate::host::stall::{BlockingCall, StallMonitor, Takeover};
use crate::host::start_queue::{Giver, Refused, Start, StartPermit, Taker};
use crate::host::{HostEvent, HostEventSink, OutputSink, OutputTarget, Owner, ProcessKey, SpawnOrder, env};
use crate::logs::{HUNG, LogConfig, Logs};
use crate::model::{SpawnFailure, SpawnStage, Stream};
use crate::sys::credentials;

/// When at least this many starts wait, a process is spawned without a cgroup, which would cost an
/// eighth of the time that a thousand starts take. Its tree is still known by its marks.
const BURST: usize = 16;

/// The next order, and how many wait behind it. In a burst the reaper is woken once for many
/// orders. It is always woken before a wait and before the last order of a burst: spawning may take
/// long (a directory on a network), and the processes spawned before must be reported meanwhile.
fn next(starts: &Taker<Prepared>, line: &ReaperHandle) -> Option<(Start<Prepared>, usize)> {
    if let Some((order, waiting)) = starts.take_waiting() {
        if waiting == 0 {
            line.wake();
        } else {
            line.wake_if_late();
        }
        return Some((order, waiting));
    }
    line.wake();
    starts.take()
}

/// The spawner threads and what they share.
pub(super) struct Spawners {
    pub(super) work: SpawnContext,
    pub(super) giver: Giver<Prepared>,
    pub(super) stall_monitor: Arc<StallMonitor>,
    pub(super) by: Box<dyn Fn() -> io::Result<Spawning> + Send + Sync>,
    /// How many threads were added since the start.
    pub(super) more: AtomicUsize,
}

/// The most threads that are ever added: each takes the place of one that blocks or has blocked.
const MOST_MORE: usize = 16;

/// After this many checks of the stall monitor a blocked start gets another thread for the other
/// starts, and a start that waits for its log files goes on without them.
const PATIENCE: u32 = 20;

impl Spawners {
    pub(super) fn begin(self: &Arc<Spawners>, starts: Taker<Prepared>) -> io::Result<()> {
        let (mut by, spawners) = ((self.by)()?, Arc::clone(self));
        let run = move || {
            let (giver, others) = (spawners.giver.clone(), Arc::downgrade(&spawners));
            let logs = Arc::clone(&spawners.work.logs);
            let go_on = move |prepared: Box<Prepared>| {
                prepared.keep.iter().for_each(|keep| logs.hangs(keep));
                giver.give_back(Start::Prepared(prepared.without()));
            };
            let files = BlockingCall::new(&spawners.stall_monitor, PATIENCE, Takeover::Moment, go_on);
            let start = BlockingCall::new(&spawners.stall_monitor, PATIENCE, Takeover::Moment, move |()| {
                if let Some(spawners) = others.upgrade() {
                    spawners.begin_another();
                }
            });
            let work = &spawners.work;
            while let Some((next, waiting)) = next(&starts, &work.line) {
                start.work((), || work.carry_out(&mut by, next, waiting >= BURST, &files));
            }
        };
        std::thread::Builder::new().name("regrow-spawn".into()).stack_size(256 * 1024).spawn(run)?;
        Ok(())
    }

    /// Adds a thread in place of one that blocks. The thread is kept for good, because processes
    /// that a thread spawned may end with it.
    fn begin_another(self: &Arc<Spawners>) {
        let Some(starts) = self.giver.taker() else {
            return;
        };
        if self.more.fetch_add(1, Ordering::Relaxed) >= MOST_MORE {
            self.more.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        if let Err(error) = self.begin(starts) {
            self.more.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(%error, "starts are waiting for one that is stuck");
        }
    }
}

/// A start that has all it needs except its log files.
pub(crate) struct Prepared {
    key: ProcessKey,
    program: Program,
    marks: Marks,
    output: OutputTarget,
    input: Option<OwnedFd>,
    extra: Option<Arc<OwnedFd>>,
    owner: Option<Owner>,
    news: HostEventSink,
    permits: StartPermit,
    keep: Option<LogConfig>,
    /// The log files to open later, where there are no others to fall back to.
    waits_for: Option<LogConfig>,
    /// The reasons why the output does not go to the configured files.
    instead_of: Vec<String>,
    burst: bool,
}

impl Refused for Prepared {
    fn fail(&self, failure: SpawnFailure) {
        (self.news)(HostEvent::SpawnFailed { key: self.key, failure });
    }
}

impl Prepared {
    /// Goes on without the log files, which do not open: with the fallback files, or with none.
    fn without(mut self: Box<Self>) -> Box<Self> {
        if let Some(keep) = self.keep.take() {
            self.instead_of.push(format!("{}: {HUNG}", keep.shown()));
            self.keep = keep.instead();
            self.waits_for = Some(keep).filter(|_| self.keep.is_none());
        }
        self
    }

    /// Notes that these log files can't be used, and why, and turns to the fallback files.
    fn cant_use(&mut self, keep: &LogConfig, error: &io::Error) {
        self.instead_of.push(format!("{}: {error}", keep.shown()));
        self.keep = keep.instead();
    }
}

/// What the spawner threads need to carry out orders.
#[derive(Clone)]
pub(super) struct SpawnContext {
    pub(super) line: ReaperHandle,
    pub(super) sink: Arc<dyn OutputSink>,
    pub(super) cgroups: Option<Arc<Cgroups>>,
    pub(super) logs: Arc<Logs>,
    pub(super) mark: u64,
    /// The journal of the processes that outlive this one; `None` without a keeper.
    pub(super) journal: Option<Arc<Journal>>,
    /// How many starts are under way at the keeper.
    pub(super) permits: Arc<AtomicUsize>,
}

/// How many descriptors a service takes in this process: for its pidfd, two pipes, two files and
/// their indices.
const OF_A_SERVICE: u64 = 8;

/// The order for a starting service, renewed by what its env files say now. `None` if they can't be
/// read, which is reported.
fn renewed(order: SpawnOrder) -> Option<SpawnOrder> {
    let env::EnvFor::Start(declared) = &order.env.of else {
        return Some(order);
    };
    if declared.renewal.is_none() {
        return Some(order);
    }
    let key = order.key;
    match declared.renewed() {
        Ok(spec) => {
            (order.news)(HostEvent::Renewed { key, spec: Arc::clone(&spec) });
            let (argv, dir) = (spec.command.argv.clone(), spec.dir.clone());
            let env = env::EnvRecipe { of: env::EnvFor::Service(spec), ..order.env };
            Some(SpawnOrder { argv, dir, env, ..order })
        }
        Err(message) => {
            let (stage, errno, errno_name) = (SpawnStage::EnvFile, 0, String::new());
            let failure = SpawnFailure { stage, errno, errno_name, message };
            (order.news)(HostEvent::SpawnFailed { key, failure });
            None
        }
    }
}

/// Who spawns the processes: this process itself, or its keeper.
pub(super) enum Spawning {
    Ourselves(Spawner),
    Keeper(Arc<Client>),
}

impl SpawnContext {
    fn carry_out(
        &self,
        by: &mut Spawning,
        start: Start<Prepared>,
        burst: bool,
        call: &BlockingCall<Box<Prepared>>,
    ) {
        let prepared = match start {
            Start::New(order) => self.prepare(by, *order, burst),
            Start::Prepared(prepared) => Some(prepared),
        };
        if let Some((prepared, files)) = prepared.and_then(|prepared| self.open(prepared, call)) {
            self.make(by, *prepared, files);
        }
    }

    /// Prepares a start. `None` if the process can't be spawned, which is reported.
    fn prepare(&self, by: &Spawning, order: SpawnOrder, burst: bool) -> Option<Box<Prepared>> {
        let order = renewed(order)?;
        let SpawnOrder { key, argv, dir, env, input, extra, output, owner, keep, news } = order;
        let failed = |failure| news(HostEvent::SpawnFailed { key, failure });
        let resolved = credentials::resolve(&env.run_as()).map_err(failed).ok()?;
        let secrets = env.vault.assignments(&env.env().secrets).map_err(failed).ok()?;
        let mut env = env.compose_for(&resolved.env);
        env.extend(secrets.iter().filter_map(|(variable, secret)| secret.assignment(variable)));
        let marks = Marks::of(self.mark, key.0);
        if let Ok(entry) = std::ffi::CString::new(format!("{MARK}={}", marks.variable)) {
            env.push(entry);
        }
        let program = Program::find(&argv, &dir, env).map_err(failed).ok()?.with(resolved.credentials);
        // The descriptors of starts under way arrive only once the keeper has spawned the
        // processes.
        let permits = Arc::clone(&self.permits);
        let expected = permits.fetch_add(1, Ordering::Relaxed) as u64 + 1;
        let permits = StartPermit(permits);
        if matches!(by, Spawning::Keeper(_)) && descriptors_left() < expected * OF_A_SERVICE {
            failed(program.explain(Failed { stage: SpawnStage::Prepare, errno: Errno::EMFILE }));
            return None;
        }
        let keep = keep.filter(|_| matches!(output, OutputTarget::Lines(..)));
        let (waits_for, instead_of) = (None, Vec::new());
        let prepared = Prepared {
            key,
            program,
            marks,
            output,
            input,
            extra,
            owner,
            news,
            permits,
            keep,
            waits_for,
            instead_of,
            burst,
        };
        Some(Box::new(prepared))
    }

    /// Opens the log files of a start. `None` if they do not open in time, and another thread goes
    /// on with the start.
    fn open(
        &self,
        mut prepared: Box<Prepared>,
        call: &BlockingCall<Box<Prepared>>,
    ) -> Option<(Box<Prepared>, Option<[OwnedFd; 2]>)> {
        let OutputTarget::Lines(source, _) = prepared.output else {
            return Some((prepared, None));
        };
        while let Some(keep) = prepared.keep.clone() {
            if self.logs.is_hung(&keep) {
                prepared = prepared.without();
                continue;
            }
            let (back, made) = call.work(prepared, || {
                // The sink reads the log files as they are now.
                self.sink.begins(source);
                self.logs.make(source, &keep)
            });
            let Some(back) = back else {
                // The thread that went on had marked these log files as hung.
                self.logs.hangs_no_more(&keep);
                return None;
            };
            prepared = back;
            match made.and_then(|made| self.logs.place(source, made)) {
                Ok(files) => {
                    self.sink.moves(source, &keep);
                    if !prepared.instead_of.is_empty() {
                        let (key, place) = (prepared.key, keep.file(Stream::Out));
                        let reason = prepared.instead_of.join("; ");
                        (prepared.news)(HostEvent::KeptElsewhere { key, place, reason });
                    }
                    return Some((prepared, Some(files)));
                }
                Err(error) => prepared.cant_use(&keep, &error),
            }
        }
        if let Some(keep) = prepared.waits_for.take() {
            // Its output waits for these files; that is reported once there is output.
            self.logs.open_later(source, keep);
        } else if !prepared.instead_of.is_empty() {
            // The process runs all the same, and its output still reaches those who follow it.
            let reason = prepared.instead_of.join("; ");
            (prepared.news)(HostEvent::Unkept { key: prepared.key, lost: None, reason });
        }
        Some((prepared, None))
    }

    fn make(&self, by: &mut Spawning, prepared: Prepared, files: Option<[OwnedFd; 2]>) {
        let Prepared { key, program, marks, output, input, extra, owner, news, permits, burst, .. } =
            prepared;
        let limit = marks.limit;
        let cgroups = self.cgroups.as_ref().filter(|_| !burst);
        // A command is short and leaves its cgroup as it was; a service may change its cgroup at
        // will.
        let use_ = if matches!(output, OutputTarget::Collect(_)) { Use::Again } else { Use::Once };
        let cgroup = cgroups.and_then(|cgroups| cgroups.fresh(key.0, use_));
        let cgroups = cgroups.filter(|_| cgroup.is_some());
        let inside = cgroup.as_ref().map(AsFd::as_fd);
        match by {
            Spawning::Ourselves(spawner) => {
                let given = [input.as_ref().map(AsFd::as_fd), extra.as_ref().map(|extra| extra.as_fd())];
                let since = Instant::now();
                let made = spawner.spawn(&program, given, limit, inside);
                let placed = made.as_ref().map_or(Placed::WithUs, |made| made.placed);
                if let Some(cgroups) = cgroups
                    && placed != Placed::InCgroup
                {
                    match placed {
                        Placed::Refused(errno) => cgroups.refused(key.0, errno),
                        Placed::InCgroup | Placed::WithUs => cgroups.discard(key.0),
                    }
                }
                match made {
                    Ok(made) => self.line.send_later(ReaperOrder::Watch(Box::new(Watched {
                        key,
                        pid: made.pid,
                        pidfd: made.pidfd,
                        since,
                        pipes: [Some(made.stdout), Some(made.stderr)],
                        output,
                        marks,
                        cgroups: cgroups.filter(|_| placed == Placed::InCgroup).cloned(),
                        news,
                    }))),
                    Err(failed) => news(HostEvent::SpawnFailed { key, failure: program.explain(failed) }),
                }
            }
            Spawning::Keeper(keeper) => {
                let folder = cgroups.map(|cgroups| cgroups.folder().to_owned());
                let about = owner.map(|owner| KeeperNote::new(owner, self.mark, folder));
                let about = about.and_then(|about| serde_json::to_string(&about).ok());
                if let (Some(journal), Some(about)) = (&self.journal, &about) {
                    journal.asked(key.0, about);
                }
                let (told, failed) = (about.clone().unwrap_or_default(), Arc::clone(&news));
                let cgroups = cgroups.cloned();
                let words = program.clone();
                self.line.send(ReaperOrder::Expect(Box::new(Expected {
                    key,
                    output,
                    marks,
                    cgroups,
                    about,
                    program: words,
                    news,
                    permit: permits,
                })));
                let logs = files.as_ref().map(|[out, err]| [out.as_fd(), err.as_fd()]);
                // If the keeper is dead, this process is about to become the keeper, and the next
                // daemon spawns what was not spawned: the failure counts against nobody.
                if let Err(error) = keeper.spawn(key.0, limit, told, &program, inside, logs)
                    && !is_hang_up(&error)
                {
                    let failure = SpawnFailure {
                        stage: SpawnStage::Prepare,
                        errno: error.raw_os_error().unwrap_or_default(),
                        errno_name: String::new(),
                        message: format!("the keeper can't be asked for a process: {error}"),
                    };
                    failed(HostEvent::SpawnFailed { key, failure });
                }
            }
        }
    }
}
