//! The reaper's side of a keeper: the keeper spawns processes as it is told and reports how they
//! end. Where the keeper dies, this process takes its place.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::known_members::KnownMembers;
use super::memberships::Membership;
use super::orders::{Expected, Leave, Watched};
use super::{Parent, Process, Reaper, reclaim};
use crate::decide::succession::{AfterKeeper, DaemonIntent, after_keeper, makes_a_standby};
use crate::host::cgroup::Cgroups;
use crate::host::journal::Journal;
use crate::host::keeper::Sentinel;
use crate::host::keeper::client::{Client, Kept, Welcome};
use crate::host::keeper::handover::{self, Lent, State};
use crate::host::keeper::standby::Standby;
use crate::host::keeper::wire::{Came, Frame, FromKeeper, Inbox};
use crate::host::marks::Marks;
use crate::host::reaper::note::KeeperNote;
use crate::host::spawn::Failed;
use crate::host::{HostEvent, HostEventSink, KeptProcess, OutputTarget, ProcessKey};
use crate::logs::LogConfig;
use crate::model::{Exit, SourceId};
use crate::sys::pidfd;

/// The reaper's link to the keeper.
pub(crate) struct KeeperLink {
    client: Arc<Client>,
    pid: u32,
    /// The keeper's pidfd, by which its end is seen.
    alive: Option<OwnedFd>,
    /// When the first keeper started, by the monotonic clock.
    since: Duration,
    inbox: Inbox,
    expected: HashMap<u64, Expected>,
    /// Answers that arrived before the order they answer was known here.
    early: Vec<Frame<FromKeeper>>,
    found: HashMap<u64, Kept>,
    /// Ended processes, until their end is recorded durably.
    gone: HashMap<u64, Gone>,
    /// The highest key that was asked for.
    highest: u64,
    /// The cgroups of earlier daemons, by their directory.
    joined: HashMap<PathBuf, Arc<Cgroups>>,
    /// Called before this process becomes the keeper, so that what must not be lost is written
    /// first.
    before_change: Arc<dyn Fn() + Send + Sync>,
    /// How this daemon announced that it leaves, if it did.
    leave: Option<Leave>,
    /// The process that goes on if this one dies while it takes the keeper's place.
    standby: Option<Standby>,
    /// The sentinel, which watches the keeper's socket until the reaper's thread does.
    sentinel: Option<Sentinel>,
    /// What the keeper holds, to be handed on if this process takes its place.
    held: HashMap<String, (String, Option<OwnedFd>)>,
    journal: Arc<Journal>,
}

/// How long a keeper that is being killed may take to die.
const DYING: Duration = Duration::from_secs(2);
/// The wait before this process tries again to become the keeper, after a failed attempt.
const SUCCEED_AGAIN: Duration = Duration::from_millis(200);

/// What is kept of a process whose tree is gone.
struct Gone {
    pid: u32,
    pidfd: OwnedFd,
    about: String,
    exit: Exit,
}

impl KeeperLink {
    pub(crate) fn new(
        client: Arc<Client>,
        welcome: Welcome,
        sentinel: Sentinel,
        journal: Arc<Journal>,
        before_change: Arc<dyn Fn() + Send + Sync>,
    ) -> KeeperLink {
        let Welcome { keeper, since, kept, inbox, held, .. } = welcome;
        let held = held.into_iter().map(|held| (held.name, (held.text, held.fd))).collect();
        KeeperLink {
            client,
            pid: keeper,
            alive: pidfd::open(keeper).ok(),
            since,
            inbox,
            expected: HashMap::new(),
            early: Vec::new(),
            found: kept.into_iter().map(|kept| (kept.key, kept)).collect(),
            gone: HashMap::new(),
            highest: 0,
            joined: HashMap::new(),
            before_change,
            leave: None,
            standby: None,
            sentinel: Some(sentinel),
            held,
            journal,
        }
    }

    /// Keeps a process that nobody has kept so far, and has the keeper keep it, too.
    pub(crate) fn reclaim(&mut self, kept: Kept) {
        if !self.found.contains_key(&kept.key) {
            self.client.adopt(&kept);
            self.found.insert(kept.key, kept);
        }
    }

    /// Whether the keeper has the process that this text describes.
    pub(crate) fn has(&self, life: &str) -> bool {
        let key =
            serde_json::from_str::<serde_json::Value>(life).ok().and_then(|life| life.get("key")?.as_u64());
        key.is_some_and(|key| self.found.contains_key(&key))
    }

    /// The processes that earlier daemons left, in the order in which they were spawned.
    pub(crate) fn found(&self) -> Vec<KeptProcess> {
        let mut found: Vec<KeptProcess> = self
            .found
            .values()
            .map(|kept| KeptProcess {
                key: ProcessKey(kept.key),
                pid: kept.pid,
                owner: serde_json::from_str::<KeeperNote>(&kept.about).ok().map(|about| about.owner),
                exit: kept.exit,
            })
            .collect();
        found.sort_by_key(|found| found.key);
        found
    }

    pub(super) fn socket(&self) -> std::os::fd::BorrowedFd<'_> {
        self.client.socket()
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether a start was reported, or will be, that has not been handled here yet.
    fn awaits(&self, key: u64) -> bool {
        let of_it = |frame: &Frame<FromKeeper>| matches!(&frame.say, FromKeeper::Spawned { key: other, .. } if *other == key);
        self.expected.contains_key(&key) || self.early.iter().any(of_it)
    }

    /// Hands the socket over from the sentinel to the reaper. `false`: the keeper was gone before.
    pub(super) fn begin(&mut self) -> bool {
        self.sentinel.take().is_none_or(|sentinel| sentinel.retire())
    }

    /// The cgroups of earlier daemons.
    pub(super) fn joined(&self) -> impl Iterator<Item = &Arc<Cgroups>> {
        self.joined.values()
    }

    /// Notes that nothing of a process's tree is left.
    pub(super) fn gone(&mut self, key: u64, process: Process) {
        if process.about.is_some() {
            self.journal.gone(key);
        }
        match (process.about, process.exit) {
            (Some(about), Some(exit)) => {
                let gone = Gone { pid: process.pid, pidfd: process.pidfd, about, exit };
                self.gone.insert(key, gone);
            }
            _ => self.client.forget(key),
        }
    }

    /// The cgroups under the directory in which a process's cgroup was made.
    fn join(&mut self, folder: PathBuf, own: Option<&Arc<Cgroups>>) -> Option<Arc<Cgroups>> {
        if let Some(own) = own
            && own.folder() == folder
        {
            return Some(Arc::clone(own));
        }
        if !self.joined.contains_key(&folder) {
            let joined = Cgroups::join(&folder)?;
            self.joined.insert(folder.clone(), Arc::new(joined));
        }
        self.joined.get(&folder).cloned()
    }
}

impl Reaper {
    pub(super) fn expect(&mut self, expected: Expected) {
        let Some(above) = &mut self.above else {
            return;
        };
        let key = expected.key.0;
        above.highest = above.highest.max(key);
        above.expected.insert(key, expected);
        let early = std::mem::take(&mut above.early);
        for frame in early {
            self.hear(frame);
        }
    }

    pub(super) fn hear_keeper(&mut self) {
        loop {
            let Some(above) = &mut self.above else {
                return;
            };
            let came = above.inbox.fill(above.client.socket(), false);
            loop {
                let Some(above) = &mut self.above else {
                    return;
                };
                match above.inbox.next::<FromKeeper>() {
                    Ok(Some(frame)) => self.hear(frame),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::error!(%error, "the keeper sent an unreadable message");
                        return self.keeper_ended();
                    }
                }
            }
            match came {
                Ok(Came::Something) => {}
                Ok(Came::Nothing) => return,
                Ok(Came::End) => return self.keeper_ended(),
                Err(error) => {
                    tracing::error!(%error, "the connection to the keeper is broken");
                    return self.keeper_ended();
                }
            }
        }
    }

    fn hear(&mut self, frame: Frame<FromKeeper>) {
        let Some(above) = &mut self.above else {
            return;
        };
        match &frame.say {
            FromKeeper::Spawned { key, .. } | FromKeeper::Failed { key, .. }
                if !above.expected.contains_key(key) =>
            {
                above.early.push(frame);
            }
            FromKeeper::Spawned { key, pid, in_cgroup, refused } => {
                let (key, pid, in_cgroup) = (*key, *pid, *in_cgroup);
                let Some(expected) = above.expected.remove(&key) else {
                    return;
                };
                let Expected { output, marks, cgroups, about, news, permit, .. } = expected;
                // Its descriptors have arrived with this message.
                drop(permit);
                if !in_cgroup && let Some(cgroups) = &cgroups {
                    match refused {
                        Some(errno) => cgroups.refused(key, nix::errno::Errno::from_raw(*errno)),
                        None => cgroups.discard(key),
                    }
                }
                let mut fds = frame.fds.into_iter();
                let Some(pidfd) = fds.next() else {
                    return;
                };
                let (id, tell) = (ProcessKey(key), Arc::clone(&news));
                let pipes = [fds.next(), fds.next()];
                let cgroups = cgroups.filter(|_| in_cgroup);
                let life = about.as_ref().and_then(|about| {
                    let [out, err] = &pipes;
                    let pipes = [out, err].map(|pipe| pipe.as_ref().map(AsFd::as_fd));
                    reclaim::life_of(key, pid, about, pipes)
                });
                let since = Instant::now();
                let watched = Watched { key: id, pid, pidfd, since, pipes, output, marks, cgroups, news };
                if let (Some(above), Some(life)) = (&self.above, &life) {
                    above.journal.runs(key, life);
                }
                self.look_after(watched, about, Parent::Ours);
                tell(HostEvent::Spawned { key: id, pid: Some(pid), life });
            }
            FromKeeper::Failed { key, stage, errno, .. } => {
                if let Some(expected) = above.expected.remove(key) {
                    above.journal.gone(*key);
                    if let Some(cgroups) = &expected.cgroups {
                        cgroups.remove(*key);
                    }
                    if let OutputTarget::Lines(source, _) = &expected.output {
                        self.logs.rest(*source);
                    }
                    let failed = Failed { stage: *stage, errno: nix::errno::Errno::from_raw(*errno) };
                    let failure = expected.program.explain(failed);
                    (expected.news)(HostEvent::SpawnFailed { key: expected.key, failure });
                }
            }
            // An exit whose start is not handled here yet: it waits behind that start.
            FromKeeper::Exited { key, .. } if above.awaits(*key) => above.early.push(frame),
            FromKeeper::Exited { key, exit } => match above.found.get_mut(key) {
                Some(kept) => kept.exit = Some(*exit),
                None => self.ended(*key, *exit),
            },
            FromKeeper::Noted => {
                if let Some(Leave::Replaced(_, noted)) = above.leave.take() {
                    noted();
                }
            }
            FromKeeper::Welcome { .. } | FromKeeper::Kept { .. } | FromKeeper::Unknown => {}
        }
    }

    /// Takes over a process that an earlier daemon spawned.
    pub(super) fn take_over(
        &mut self,
        key: u64,
        output: OutputTarget,
        keep: Option<LogConfig>,
        news: HostEventSink,
    ) {
        let own = self.cgroups.clone();
        let Some(above) = &mut self.above else {
            return;
        };
        let Some(kept) = above.found.remove(&key) else {
            return;
        };
        let about: Option<KeeperNote> = serde_json::from_str(&kept.about).ok();
        let cgroups = about.as_ref().and_then(|about| about.cgroups.clone());
        let known_members = about.as_ref().map(|about| about.known_members.clone()).unwrap_or_default();
        let cgroups = cgroups.and_then(|folder| above.join(folder, own.as_ref()));
        // A process without a note has no marks; its session and its group alone identify it.
        let marks = about
            .as_ref()
            .map_or_else(|| Marks { variable: String::new(), limit: 0 }, |about| Marks::of(about.run, key));
        if let (OutputTarget::Lines(source, _), Some(keep)) = (&output, keep) {
            self.logs.open_later(*source, keep);
        }
        let Kept { pid, pidfd, pipes, exit, about: text, foreign, .. } = kept;
        let parent = if foreign { Parent::Dead } else { Parent::Ours };
        let since = Instant::now();
        let watched =
            Watched { key: ProcessKey(key), pid, pidfd, since, pipes, output, marks, cgroups, news };
        self.look_after(watched, about.map(|_| text), parent);
        if let Some(process) = self.processes.get_mut(&key) {
            process.known_members = known_members;
        }
        // An earlier daemon may have had it moved into a cgroup.
        if let (Some(own), Some(process)) = (own, self.processes.get_mut(&key))
            && matches!(process.membership, Membership::None)
            && own.has(key, pid)
        {
            process.membership = Membership::Moved(own);
        }
        if let Some(exit) = exit {
            self.ended(key, exit);
        }
    }

    pub(super) fn settled(&mut self, key: u64) {
        if let Some(above) = &mut self.above
            && above.gone.remove(&key).is_some()
        {
            above.client.forget(key);
        }
    }

    /// Tells the keeper which files take a source's output now; after that, rotated files may be
    /// compressed.
    pub(super) fn tell_keeper(&self, source: SourceId, files: Option<[OwnedFd; 2]>) {
        if let Some(files) = files
            && let Some(above) = &self.above
        {
            for (key, process) in &self.processes {
                if process.about.is_some()
                    && matches!(&process.output, OutputTarget::Lines(of, _) if *of == source)
                {
                    above.client.logs(*key, [files[0].as_fd(), files[1].as_fd()]);
                }
            }
        }
        self.logs.tidy(source);
    }

    /// Has the keeper, or whatever takes its place, hold a text and a descriptor.
    pub(super) fn hold(&mut self, name: String, text: String, fd: Option<OwnedFd>) {
        if let Some(above) = &mut self.above {
            above.client.hold(&name, &text, fd.as_ref().map(AsFd::as_fd));
            above.held.insert(name, (text, fd));
        }
    }

    /// Notes that this process is about to end, and what is to follow it.
    pub(super) fn leave(&mut self, leave: Leave) {
        let Some(above) = &mut self.above else {
            return;
        };
        match leave {
            Leave::Replaced(program, noted) => {
                if above.client.replace(&program) {
                    above.leave = Some(Leave::Replaced(program, noted));
                } else {
                    noted();
                }
            }
            Leave::Down(code) => above.leave = Some(Leave::Down(code)),
        }
    }

    /// Handles the end of the socket to the keeper.
    pub(super) fn keeper_ended(&mut self) {
        let Some(above) = &mut self.above else {
            return;
        };
        let directive = match &above.leave {
            None => DaemonIntent::Again,
            Some(Leave::Replaced(..)) => DaemonIntent::Replaced,
            Some(Leave::Down(code)) => DaemonIntent::End(*code),
        };
        // Before anything else, since from here on this process may die, too.
        if makes_a_standby(above.standby.as_ref().is_some_and(Standby::waits), directive) {
            crate::host::keeper::quieten();
            above.standby = handover::standby(above.since)
                .inspect_err(|error| tracing::warn!(%error, "no standby process could be started while the keeper is replaced"))
                .ok();
        }
        // The keeper's end of the socket is closed before the kernel reports its death.
        let lives = above.alive.as_ref().is_some_and(|keeper| !pidfd::ends_within(keeper.as_fd(), DYING));
        match after_keeper(lives, directive) {
            AfterKeeper::GiveWay => {
                // The keeper lives and starts another daemon, which is told everything anew.
                tracing::error!("the connection to the keeper is broken: this daemon gives way to another");
                if let Some(standby) = above.standby.take() {
                    standby.dismiss();
                }
                (above.before_change)();
                std::process::exit(1);
            }
            AfterKeeper::End(code) => crate::host::processes::exit(code.into()),
            AfterKeeper::Carry { other_program } => self.take_the_keepers_place(other_program),
        }
    }

    pub(super) fn try_succession_again(&mut self) {
        if self.succession_tried.is_some_and(|tried| tried.elapsed() >= SUCCEED_AGAIN) {
            self.keeper_ended();
        }
    }

    /// Makes this process the keeper, with all that it holds; it then starts a daemon of its own.
    /// While it can't be re-executed, nothing can be started.
    fn take_the_keepers_place(&mut self, other_program: bool) {
        let Some(above) = &mut self.above else {
            return;
        };
        let first = self.succession_tried.replace(Instant::now()).is_none();
        if first {
            // It is told by the keeper that this process becomes: nothing goes before the first step, which
            // is to make another process.
            let _ = self.epoll.delete(above.client.socket());
        }
        (above.before_change)();
        let Some(above) = &self.above else {
            return;
        };
        let files: HashMap<u64, [OwnedFd; 2]> = self
            .processes
            .iter()
            .filter_map(|(key, process)| match &process.output {
                OutputTarget::Lines(source, _) => Some((*key, self.logs.files(*source)?)),
                OutputTarget::Beside(_) | OutputTarget::Capture(_) | OutputTarget::Collect(_) => None,
            })
            .collect();
        let abouts: HashMap<u64, String> = self
            .processes
            .iter()
            .filter_map(|(key, process)| {
                Some((*key, with_sight(process.about.as_deref()?, &process.known_members)))
            })
            .collect();
        let living = self.processes.iter().filter_map(|(key, process)| {
            let [out, err] = &process.pipes;
            Some(Lent {
                key: *key,
                pid: process.pid,
                about: abouts.get(key)?,
                exit: process.exit,
                foreign: true,
                pidfd: process.pidfd.as_fd(),
                pipes: [out, err].map(|pipe| pipe.as_ref().map(|pipe| pipe.fd.as_fd())),
                logs: match files.get(key) {
                    Some([out, err]) => [Some(out.as_fd()), Some(err.as_fd())],
                    None => [None, None],
                },
            })
        });
        let gone = above.gone.iter().map(|(key, gone)| Lent {
            key: *key,
            pid: gone.pid,
            about: &gone.about,
            exit: Some(gone.exit),
            foreign: true,
            pidfd: gone.pidfd.as_fd(),
            pipes: [None, None],
            logs: [None, None],
        });
        let unclaimed = above.found.values().map(|kept| Lent {
            key: kept.key,
            pid: kept.pid,
            about: &kept.about,
            exit: kept.exit,
            foreign: true,
            pidfd: kept.pidfd.as_fd(),
            pipes: [kept.pipes[0].as_ref().map(AsFd::as_fd), kept.pipes[1].as_ref().map(AsFd::as_fd)],
            logs: [None, None],
        });
        let entries: Vec<Lent<'_>> = living.chain(gone).chain(unclaimed).collect();
        let last_key = entries.iter().map(|entry| entry.key).max().unwrap_or_default().max(above.highest);
        let next = match &above.leave {
            Some(Leave::Replaced(program, _)) if other_program => Some(program.as_path()),
            _ => None,
        };
        let args = handover::own_args();
        let state = State {
            since: above.since,
            // Orders to the dead keeper that were never carried out have keys, too.
            last_key: last_key + 1_000_000,
            daemon: None,
            program: handover::SELF,
            next,
            orphaned: true,
            standby: above.standby.as_ref(),
            held: above
                .held
                .iter()
                .map(|(name, (text, fd))| (name.as_str(), text.as_str(), fd.as_ref().map(AsFd::as_fd)))
                .collect(),
            args: &args,
            entries,
        };
        let error = handover::execute(state);
        if first {
            tracing::error!(%error, "the keeper can't be executed, and nothing can be started until there is one");
        }
    }
}

/// The note for a later daemon, with the processes that were seen in the tree.
fn with_sight(about: &str, known_members: &KnownMembers) -> String {
    let text = about.to_owned();
    match serde_json::from_str::<KeeperNote>(&text) {
        Ok(known) if !known_members.is_plain() || !known.known_members.is_plain() => {
            serde_json::to_string(&KeeperNote { known_members: known_members.clone(), ..known })
                .unwrap_or(text)
        }
        Ok(_) | Err(_) => text,
    }
}
