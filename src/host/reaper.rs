//! The reaper: one thread that waits on every process and every pipe at once.
//!
//! The reaper alone waits for the children of a host. It reaps each child through its pidfd once
//! the kernel reports the end, never by polling. It reads output fairly, one piece per pipe and
//! round, and empties a dead process's pipes before it reports the death. It ends trees through
//! their cgroup where there is one, the process group through the leader's pidfd, and processes
//! that left the group by walking down the tree, each pinned by a pidfd of its own.
//!
//! Processes that outlive their parent are reparented to this process (child subreaper), or found
//! by their session, their cgroup, the mark in a limit or in their environment, or the pipe that
//! they print to.
//!
//! Below a keeper, processes are the keeper's children: the keeper reaps them and reports it
//! (`keeper_side`).

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use index::Index;
use lines::take;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use self::blocked_io::{Loan, Remainder, Stuck};
use self::known_members::KnownMembers;
use self::memberships::{HOUSING_MILLIS, Membership, MembershipMoves};
use super::cgroup::Cgroups;
use super::stall::{BlockingCall, StallMonitor, Takeover};
use super::{HostEvent, HostEventSink, OutputSink, OutputTarget, ProcessKey, STUCK};
use crate::logs::{LogConfig, Logs};
use crate::model::{Exit, ResourceUsage, SourceId, Stream};
use crate::sys::pidfd::{self, has_ended};
use crate::sys::proc;
use crate::sys::signals::ChildDeaths;

pub(crate) use self::keeper_side::KeeperLink;
pub(crate) use super::marks::Marks;
pub(crate) use orders::{Expected, Leave, ReaperHandle, ReaperOrder, Watched};
pub(crate) use reclaim::{Reclaimed, reclaim, reclaim_marked};

/// The most bytes of one read, so that no pipe keeps the others waiting.
const PIECE: usize = 64 * 1024;
/// The most bytes that are read from a dead process's pipe, which another process may still fill.
const LAST_WORDS: usize = 2 * 1024 * 1024;

/// The pause between two searches for orphans that died, in milliseconds. Trees of which not every
/// process was seen are scanned again after the same time.
const DEAF_MILLIS: u16 = 20;

/// While output waits for a disk, it is checked at this interval whether the output is to go to
/// other files.
const STUCK_MILLIS: u16 = 200;

/// Starts the reaper's thread. `sink` gets the lines. `reap_all`: every child of this process may
/// be reaped, because nothing else in it starts children.
pub(crate) fn start(
    sink: Arc<dyn OutputSink>,
    reap_all: bool,
    cgroups: Option<Arc<Cgroups>>,
    logs: Arc<Logs>,
    above: Option<KeeperLink>,
    stall_monitor: &Arc<StallMonitor>,
) -> std::io::Result<ReaperHandle> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, Token::Wake.pack()))?;
    if let Some(above) = &above {
        epoll.add(above.socket(), EpollEvent::new(EpollFlags::EPOLLIN, Token::Keeper.pack()))?;
    }
    let children = proc::Children::of(above.as_ref().map_or(std::process::id(), KeeperLink::pid));
    let deaths = if above.is_none() { Some(ChildDeaths::listen()?) } else { None };
    if let Some(deaths) = &deaths {
        epoll.add(deaths.wake(), EpollEvent::new(EpollFlags::EPOLLIN, Token::Children.pack()))?;
    }
    let line = ReaperHandle::new(wake);
    // Too short for anybody to notice, and longer than a disk that is merely busy takes.
    let call = BlockingCall::new(stall_monitor, 2, Takeover::Lasting, Reaper::relieve);
    let watcher = Box::new(Reaper {
        line: line.clone(),
        epoll,
        sink,
        reap_all,
        cgroups,
        logs,
        above,
        processes: HashMap::new(),
        dead: Vec::new(),
        buffer: Vec::new(),
        io: BlockedIo {
            call,
            thread: nix::unistd::gettid(),
            last_loan: 0,
            loan: None,
            overdue: HashMap::new(),
            stuck: HashMap::new(),
            changes: VecDeque::new(),
            left: VecDeque::new(),
        },
        housing: Housing {
            homeless: Vec::new(),
            moves: MembershipMoves::Rests(Instant::now()),
            needs_rescan: HashSet::new(),
        },
        strays: Strays { ending: Vec::new(), since: Instant::now(), left: 0 },
        known: Known { leaders: HashMap::new(), index: Index::default(), looked: None },
        children: Children { of: children, deaths, debounce_until: None },
        die_with: None,
        succession_tried: None,
    });
    std::thread::Builder::new()
        .name("regrow-reaper".into())
        .stack_size(256 * 1024)
        .spawn(|| watcher.run())?;
    Ok(line)
}

/// What an epoll event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Wake,
    DieWith,
    /// The socket to the keeper.
    Keeper,
    /// A child of this process has died.
    Children,
    Leader(u64),
    Out(u64),
    Err(u64),
    /// Another process of a tree ended; a look at the tree tells which.
    Remnant(u64),
}

impl Token {
    fn pack(self) -> u64 {
        match self {
            Token::Wake => 0,
            Token::DieWith => 1,
            Token::Keeper => 6,
            Token::Children => 7,
            Token::Leader(key) => key << 3 | 2,
            Token::Out(key) => key << 3 | 3,
            Token::Err(key) => key << 3 | 4,
            Token::Remnant(key) => key << 3 | 5,
        }
    }

    fn unpack(data: u64) -> Token {
        match (data & 7, data >> 3) {
            (2, key) => Token::Leader(key),
            (3, key) => Token::Out(key),
            (4, key) => Token::Err(key),
            (5, key) => Token::Remnant(key),
            (1, _) => Token::DieWith,
            (6, _) => Token::Keeper,
            (7, _) => Token::Children,
            _ => Token::Wake,
        }
    }
}

/// A pipe that the reaper reads.
struct Pipe {
    fd: Arc<OwnedFd>,
    /// The inode number, which both ends of the pipe share.
    inode: u64,
    /// The beginning of a line whose end has not been read yet.
    partial: Vec<u8>,
}

/// The parent of a tree's leader. The kernel reparents orphans of the tree to that process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parent {
    /// This process, or its keeper.
    Ours,
    /// A keeper that is dead: orphans were reparented to a process above it and are found by their
    /// marks alone.
    Dead,
}

/// A process that the host spawned or took over, and its tree.
struct Process {
    pid: u32,
    pidfd: OwnedFd,
    since: Instant,
    pipes: [Option<Pipe>; 2],
    output: OutputTarget,
    captured: Vec<u8>,
    usage: Option<ResourceUsage>,
    marks: Marks,
    membership: Membership,
    known_members: KnownMembers,
    /// The note that the keeper holds about it for a later daemon.
    about: Option<String>,
    parent: Parent,
    news: HostEventSink,
    /// How the leader ended, once it was reaped.
    exit: Option<Exit>,
    /// Whether the leader's end was reported.
    told: bool,
    /// The other processes of its tree that were found, each pinned by a pidfd.
    remnants: HashMap<u32, OwnedFd>,
    killing: Option<Killing>,
}

/// A tree that SIGKILL was sent to.
#[derive(Debug, Clone, Copy)]
struct Killing {
    since: Instant,
    /// When a process of the tree was last found that had not been known before: it was forked
    /// meanwhile.
    came: Option<Instant>,
    told: bool,
}

/// A tree that still lives this long after SIGKILL is reported, if it keeps forking.
const FORKS_AWAY: Duration = Duration::from_secs(1);

struct Reaper {
    line: ReaperHandle,
    epoll: Epoll,
    sink: Arc<dyn OutputSink>,
    reap_all: bool,
    cgroups: Option<Arc<Cgroups>>,
    logs: Arc<Logs>,
    /// The link to the keeper, where there is one.
    above: Option<KeeperLink>,
    processes: HashMap<u64, Process>,
    /// The keys of trees whose leader or remnant ended in this round.
    dead: Vec<u64>,
    /// The buffer for reads. Empty while it is in use, and after another thread took over while it
    /// was.
    buffer: Vec<u8>,
    io: BlockedIo,
    housing: Housing,
    strays: Strays,
    known: Known,
    children: Children,
    die_with: Option<OwnedFd>,
    /// When this process last failed to become the keeper, which is dead.
    succession_tried: Option<Instant>,
}

/// Work with log files, which may wait for a disk ([`blocked_io`]).
struct BlockedIo {
    /// The blocking call with which the reaper's state is left during such work.
    call: Arc<BlockingCall<Box<Reaper>>>,
    /// The thread that the reaper runs on at the moment.
    thread: nix::unistd::Pid,
    /// The number of the last loan, counted up for each.
    last_loan: u64,
    /// The work that is under way at the moment.
    loan: Option<Loan>,
    /// Loans that other threads are still blocked in, by their number.
    overdue: HashMap<u64, Loan>,
    /// Sources whose output waits for a disk.
    stuck: HashMap<SourceId, Stuck>,
    /// Sources that are to be kept in other files, or by other rules.
    changes: VecDeque<(SourceId, LogConfig)>,
    /// Pipes of dead processes whose output still waits for a disk.
    left: VecDeque<Remainder>,
}

/// Trees that were spawned without a cgroup ([`memberships`]).
struct Housing {
    /// The keys of these trees.
    homeless: Vec<u64>,
    moves: MembershipMoves,
    /// Trees with processes that could not be pinned for want of descriptors, or that live and were
    /// not seen: they need a rescan.
    needs_rescan: HashSet<u64>,
}

/// Processes that belong to no tree and are ended before the host is gone.
struct Strays {
    /// Who waits for their end.
    ending: Vec<Box<dyn FnOnce() + Send>>,
    /// When their number last changed, or one of them was last reaped.
    since: Instant,
    left: usize,
}

/// Which process belongs to which tree ([`known_members`]).
struct Known {
    /// The keys of trees by the pid of their leader, while it lives.
    leaders: HashMap<u32, u64>,
    index: Index,
    /// When all processes were last searched for marks, and how long that took.
    looked: Option<(Instant, Duration)>,
}

/// The children of this process, or of its keeper.
struct Children {
    of: proc::Children,
    /// Tells that a child may have died. `None` below a keeper, which reports its own children.
    deaths: Option<ChildDeaths>,
    /// Until when signals of dead children are held back; a search for orphans follows.
    debounce_until: Option<Instant>,
}

impl Process {
    /// The source whose log files take the output of this process, if any do.
    fn source(&self) -> Option<SourceId> {
        match self.output {
            OutputTarget::Lines(source, _) | OutputTarget::Beside(source) => Some(source),
            OutputTarget::Capture(_) | OutputTarget::Collect(_) => None,
        }
    }
}

impl Reaper {
    fn run(mut self: Box<Self>) {
        if self.above.as_mut().is_some_and(|above| !above.begin()) {
            // The keeper is gone, and another thread is becoming the keeper at this moment.
            loop {
                std::thread::park();
            }
        }
        self.go_on();
    }

    /// The reaper's loop. `None`: another thread took the loop over.
    fn go_on(mut self: Box<Self>) -> Option<Box<Self>> {
        self.io.thread = nix::unistd::gettid();
        let mut events = vec![EpollEvent::empty(); 256];
        loop {
            // Strays that are being ended may be children of each other, and only their parent is
            // told of their end: look again soon while that lasts, and only then.
            let again = self.children.debounce_until.is_some() || self.succession_tried.is_some();
            let timeout = match (self.strays.ending.is_empty(), self.housing.needs_rescan.is_empty()) {
                // Another thread began a round and did not finish it.
                _ if self.is_in_the_middle() => EpollTimeout::ZERO,
                (true, true) if !again && !self.io.stuck.is_empty() => EpollTimeout::from(STUCK_MILLIS),
                (true, true) if !again && self.houses_soon() => EpollTimeout::from(HOUSING_MILLIS),
                (true, true) if !again => EpollTimeout::NONE,
                (true, _) => EpollTimeout::from(DEAF_MILLIS),
                (false, _) => EpollTimeout::from(2u16),
            };
            let ready = match self.epoll.wait(&mut events, timeout) {
                Ok(ready) => ready,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => {
                    tracing::error!(%error, "the watcher can't wait any more");
                    return Some(self);
                }
            };
            for event in &events[..ready] {
                match Token::unpack(event.data()) {
                    Token::Wake => {
                        if !self.take_orders() {
                            return Some(self);
                        }
                    }
                    Token::DieWith => self.end_everything_now(),
                    Token::Keeper => self.hear_keeper(),
                    Token::Children => self.child_died(),
                    Token::Leader(key) => self.leader_ended(key),
                    Token::Remnant(key) => self.remnants_ended(key),
                    Token::Out(key) => self = self.read(key, Stream::Out)?.0,
                    Token::Err(key) => self = self.read(key, Stream::Err)?.0,
                }
            }
            self.hear_again();
            self.try_succession_again();
            self = self.make_changes()?;
            self.dead.extend(self.housing.needs_rescan.drain());
            self = self.tell_deaths()?;
            self = self.look_after_what_waits()?;
            self.house();
            self.go_on_ending_strays();
        }
    }

    /// A child has died, perhaps an orphan. Where many die each second, other means report most of
    /// them, so the orphans among those that follow are searched for together.
    fn child_died(&mut self) {
        if let Some(deaths) = &self.children.deaths {
            deaths.woke();
            self.children.debounce_until = Some(Instant::now() + Duration::from_millis(DEAF_MILLIS.into()));
            self.adopt();
        }
    }

    fn hear_again(&mut self) {
        if let Some(deaths) = &self.children.deaths
            && self.children.debounce_until.is_some_and(|until| until <= Instant::now())
        {
            self.children.debounce_until = None;
            deaths.hear_again();
            self.adopt();
        }
    }

    /// `false` means that the reaper is to end.
    fn take_orders(&mut self) -> bool {
        for order in self.line.take() {
            match order {
                ReaperOrder::Watch(watched) => self.watch(*watched),
                ReaperOrder::Signal(key, signal) => {
                    self.signal_tree(key.0, signal);
                    self.signal_found(key.0, nix::libc::SIGCONT);
                }
                ReaperOrder::Pause(key) => self.pause_tree(key.0),
                ReaperOrder::Resume(key) => self.signal_tree(key.0, nix::libc::SIGCONT),
                ReaperOrder::Kill(key) => self.kill_tree(key.0),
                ReaperOrder::DieWith(fd) => {
                    let event = EpollEvent::new(EpollFlags::EPOLLIN, Token::DieWith.pack());
                    if self.epoll.add(&fd, event).is_ok() {
                        self.die_with = Some(fd);
                    }
                }
                ReaperOrder::EndStrays(done) => {
                    self.strays.since = Instant::now();
                    self.strays.ending.push(done);
                }
                ReaperOrder::Expect(expected) => self.expect(*expected),
                ReaperOrder::Adopt(key, output, keep, news) => self.take_over(key.0, output, keep, news),
                ReaperOrder::Settle(key) => self.settled(key.0),
                ReaperOrder::Keep(source, keep) => self.io.changes.push_back((source, keep)),
                ReaperOrder::LookAround => self.look_around(),
                ReaperOrder::Housed(keys) => self.housed(&keys),
                ReaperOrder::Late(loan, late) => self.is_late(loan, *late),
                ReaperOrder::Forget(source) => self.logs.close(source),
                ReaperOrder::Hold(name, text, fd) => self.hold(name, text, fd),
                ReaperOrder::Leave(leave) => self.leave(leave),
                ReaperOrder::Quit => return false,
            }
        }
        true
    }

    fn watch(&mut self, watched: Watched) {
        let (key, pid, tell) = (watched.key, watched.pid, Arc::clone(&watched.news));
        self.look_after(watched, None, Parent::Ours);
        // Reported from here, so that no signal can come before the process is known and no exit
        // before its start.
        tell(HostEvent::Spawned { key, pid: Some(pid), life: None });
    }

    fn look_after(&mut self, watched: Watched, about: Option<String>, parent: Parent) {
        let key = watched.key.0;
        let Watched { pid, pidfd, since, pipes, output, marks, cgroups, news, .. } = watched;
        let [out, err] = pipes;
        let pipes = [(out, Token::Out(key)), (err, Token::Err(key))].map(|(fd, token)| {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, token.pack());
            let fd = fd?;
            let inode = nix::sys::stat::fstat(&fd).map_or(0, |stat| stat.st_ino);
            self.epoll.add(&fd, event).ok().map(|()| Pipe { fd: Arc::new(fd), inode, partial: Vec::new() })
        });
        self.known.index.add(key, pid, &marks, pipes.iter().flatten().map(|pipe| pipe.inode));
        // A keeper reports how its children end.
        if self.above.is_none() {
            let leader = EpollEvent::new(EpollFlags::EPOLLIN, Token::Leader(key).pack());
            if let Err(error) = self.epoll.add(&pidfd, leader) {
                tracing::error!(%error, pid, "can't watch a process");
            }
        }
        self.known.leaders.insert(pid, key);
        let membership = cgroups.map_or(Membership::None, Membership::Born);
        // A command is over before it would be moved into a cgroup.
        if let OutputTarget::Lines(..) = &output {
            self.one_came(key, &membership);
        }
        self.processes.insert(
            key,
            Process {
                pid,
                pidfd,
                since,
                pipes,
                output,
                captured: Vec::new(),
                usage: None,
                marks,
                membership,
                known_members: KnownMembers::default(),
                about,
                parent,
                news,
                exit: None,
                told: false,
                remnants: HashMap::new(),
                killing: None,
            },
        );
    }

    fn leader_ended(&mut self, key: u64) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        if process.exit.is_some() {
            return;
        }
        let exit = match pidfd::reap_with_usage(&process.pidfd) {
            Ok(Some((exit, usage))) => {
                process.usage = Some(usage);
                exit
            }
            Ok(None) => return,
            Err(error) => {
                // Other code in this program reaped the child, so its status is lost.
                tracing::error!(%error, pid = process.pid, "a child was reaped by someone else");
                Exit::Unknown
            }
        };
        let _ = self.epoll.delete(&process.pidfd);
        self.ended(key, exit);
    }

    /// Notes that a leader has ended and was reaped.
    fn ended(&mut self, key: u64, exit: Exit) {
        if let Some(process) = self.processes.get_mut(&key)
            && process.exit.is_none()
        {
            process.exit = Some(exit);
            if self.known.leaders.get(&process.pid) == Some(&key) {
                self.known.leaders.remove(&process.pid);
            }
            self.dead.push(key);
        }
    }

    fn remnants_ended(&mut self, key: u64) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        let (epoll, index) = (&self.epoll, &mut self.known.index);
        process.remnants.retain(|pid, fd| {
            if !has_ended(fd.as_fd()) {
                return true;
            }
            // It is ours to reap if it was reparented to us; otherwise its parent reaps it.
            let _ = pidfd::reap(&*fd);
            let _ = epoll.delete(&*fd);
            index.unpin(key, *pid);
            false
        });
        self.dead.push(key);
    }

    /// Reports the deaths of this round, each after the last of its output.
    fn tell_deaths(mut self: Box<Self>) -> Option<Box<Self>> {
        // To settle one death may bring up others that happened meanwhile.
        while !self.dead.is_empty() {
            self.dead.sort_unstable();
            self.dead.dedup();
            // The keys stay in the list until all pipes were read, because a thread that takes over
            // begins with them again.
            for at in 0..self.dead.len() {
                let key = self.dead[at];
                self = self.read_last_words(key)?;
            }
            let dead = std::mem::take(&mut self.dead);
            // A keeper has many children; processes of trees with a cgroup are known by it.
            let unsure = |key: &u64| self.processes.get(key).is_some_and(|p| !p.membership.knows_all());
            if self.above.is_none() || dead.iter().any(unsure) {
                self.adopt();
            }
            // Where orphans are reparented elsewhere, nothing is known until all processes have
            // been searched.
            let known = dead.iter().all(|key| !self.needs_marks(*key)) || self.find_marked();
            for key in dead {
                if known || !self.needs_marks(key) {
                    self.settle(key);
                } else {
                    self.housing.needs_rescan.insert(key);
                    self.tell_if_it_forks_away(key);
                }
            }
        }
        Some(self)
    }

    fn tell_if_it_forks_away(&mut self, key: u64) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        if let Some(killing) = &mut process.killing
            && killing.came.is_some_and(|came| came.elapsed() < FORKS_AWAY)
            && killing.since.elapsed() >= FORKS_AWAY
            && !std::mem::replace(&mut killing.told, true)
        {
            (process.news)(HostEvent::ForksAway {
                key: ProcessKey(key),
                left: process.remnants.len().max(1),
            });
        }
    }

    /// Reports the state of a tree whose leader or remnants have ended.
    fn settle(&mut self, key: u64) {
        let Some(exit) = self.processes.get(&key).and_then(|p| p.exit) else {
            return;
        };
        let empty = self.is_empty(key) && !self.has_forked_away(key);
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        let told = std::mem::replace(&mut process.told, true);
        let news = Arc::clone(&process.news);
        let id = ProcessKey(key);
        if empty && process.known_members.lost() > 0 {
            news(HostEvent::LostSight { key: id, of: process.known_members.lost() });
        }
        if let (true, OutputTarget::Lines(source, _)) = (empty, &process.output)
            && !self.io.stuck.contains_key(source)
        {
            self.logs.rest(*source);
        }
        if !told {
            let (captured, usage) = (std::mem::take(&mut process.captured), process.usage);
            let lasted = process.since.elapsed();
            let killing = process.killing.is_some();
            if empty {
                self.forget(key);
            }
            news(HostEvent::Exited { key: id, exit, remains: !empty, captured, usage, lasted });
            if !empty && killing {
                self.kill_tree(key);
            }
        } else if empty {
            self.forget(key);
            news(HostEvent::TreeGone { key: id });
        } else if process.killing.is_some() {
            self.tell_if_it_forks_away(key);
            self.kill_tree(key);
        }
    }

    /// The newest process whose own output goes to this source.
    fn printer(&self, source: SourceId) -> Option<u64> {
        let of_it =
            |process: &Process| matches!(&process.output, OutputTarget::Lines(of, _) if *of == source);
        self.processes.iter().filter(|(_, process)| of_it(process)).map(|(key, _)| *key).max()
    }

    /// Hands on an unfinished line, with a newline added.
    fn flush_partial(&mut self, key: u64, stream: Stream) {
        if let Some(process) = self.processes.get_mut(&key)
            && process.pipes[stream as usize].as_ref().is_some_and(|p| !p.partial.is_empty())
        {
            take(process, stream, b"\n", self.sink.as_ref(), ProcessKey(key));
        }
    }

    fn forget(&mut self, key: u64) {
        for stream in [Stream::Out, Stream::Err] {
            self.flush_partial(key, stream);
        }
        if let Some(mut process) = self.processes.remove(&key) {
            for pipe in process.pipes.iter().flatten() {
                let _ = self.epoll.delete(&pipe.fd);
                self.known.index.close(pipe.inode);
            }
            self.keep_what_waits(&mut process);
            self.known.index.remove(key, process.pid, &process.marks, process.remnants.keys().copied());
            for fd in process.remnants.values() {
                let _ = self.epoll.delete(fd);
            }
            if self.known.leaders.get(&process.pid) == Some(&key) {
                self.known.leaders.remove(&process.pid);
            }
            if let Some(cgroups) = process.membership.cgroups() {
                match process.exit {
                    Some(Exit::Code(_)) => cgroups.remove(key),
                    Some(Exit::Signal { .. } | Exit::Unknown) | None => cgroups.discard(key),
                }
            }
            if let Some(above) = &mut self.above {
                above.gone(key, process);
            }
        }
    }

    /// Kills orphans that were reparented to this process and belong to no known tree.
    fn go_on_ending_strays(&mut self) {
        if self.strays.ending.is_empty() {
            return;
        }
        let mut left = Vec::new();
        let mut orphans = self.orphans();
        orphans.retain(|pid| self.reap_all && !self.known.leaders.contains_key(pid));
        for pid in orphans {
            left.push(pid);
            if let Ok(fd) = pidfd::open(pid) {
                let _ = pidfd::signal(&fd, nix::libc::SIGKILL);
                if let Ok(Some(_)) = pidfd::reap(&fd) {
                    self.strays.since = Instant::now();
                }
            }
        }
        if left.len() != self.strays.left {
            self.strays.left = left.len();
            self.strays.since = Instant::now();
        }
        let stuck = self.strays.since.elapsed() > STUCK;
        if stuck && !left.is_empty() {
            tracing::error!(pids = ?left, "SIGKILL has not ended them: stuck in the kernel");
        }
        if left.is_empty() || stuck {
            for done in self.strays.ending.drain(..) {
                done();
            }
        }
    }

    /// Kills everything and exits, because the process that this one was tied to is dead.
    fn end_everything_now(&mut self) {
        let keys: Vec<u64> = self.processes.keys().copied().collect();
        for key in keys {
            self.kill_tree(key);
        }
        // The children of each process that dies are reparented to us: go on until none is left.
        let mut since = Instant::now();
        while since.elapsed() < STUCK {
            let left = proc::children(std::process::id());
            if left.is_empty() {
                break;
            }
            // Signal all of them before any is reaped, so that none has time to fork.
            for fd in left.iter().filter_map(|pid| pidfd::open(*pid).ok()) {
                let _ = pidfd::signal(&fd, nix::libc::SIGKILL);
            }
            let reaped = left.iter().filter(|pid| matches!(pidfd::reap_pid(**pid), Ok(Some(_)))).count();
            if reaped > 0 {
                since = Instant::now();
            } else {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        if let Some(cgroups) = &self.cgroups {
            cgroups.leave();
        }
        std::process::exit(137);
    }
}

/// How many times the processes that a tree forks are searched for while it is being halted.
const PAUSE_ROUNDS: usize = 20;

/// The longest time that such a search may take.
const LONGEST_HALT: Duration = Duration::from_millis(200);

/// The name of the environment variable that marks a tree.
pub(crate) const MARK: &str = "REGROW_MARK";

mod blocked_io;
mod index;
mod keeper_side;
mod known_members;
mod lines;
mod memberships;
pub(crate) mod note;
mod orders;
mod output;
mod reclaim;
mod tree;
