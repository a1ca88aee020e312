//! The watcher: one thread that waits on every process and every pipe at once.
//!
//! It is the one owner of wait for the children of a host: each is reaped through its
//! pidfd when the kernel says that it ended, never by polling. It reads output, fairly,
//! one piece a pipe and round, and empties a dead process's pipes before it tells of the
//! death. It ends trees: through their cgroup where there is one, the group by the leader's
//! pidfd, and what left the group by walking down from it, each pinned by a pidfd of its own.
//!
//! What a process leaves behind when it dies is given to us (child subreaper) or found by its
//! session, its cgroup, the mark in a limit or in its environment, or the pipe that it prints to.
//!
//! Below a keeper, processes are the keeper's children: it reaps, and tells (`kept`).

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
use self::memberships::{HOUSING_MILLIS, Housing, Membership};
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
pub(crate) use orders::{Expected, Leave, WatchOrder, Watched, WatcherHandle};
pub(crate) use reclaim::{Reclaimed, reclaim, reclaim_marked};

/// One read takes this much at most, so that no pipe keeps the others waiting.
const PIECE: usize = 64 * 1024;
/// A line longer than this is handed on in parts.
const LONGEST_LINE: usize = 1024 * 1024;
/// At most this much is read from a dead process's pipe that somebody else still fills.
const LAST_WORDS: usize = 2 * 1024 * 1024;

/// After a look at who was left to us and has died, the next is so much later, or a little more. Trees of
/// which not all was seen are looked at again after as long.
const DEAF_MILLIS: u16 = 20;

/// While output waits for a disk, it is looked so often whether it is to go elsewhere.
const STUCK_MILLIS: u16 = 200;

/// Starts the thread. `sink` gets the lines; `reap_all`: every child that is left to this
/// process is ours to reap, because nobody else in it makes children.
pub(crate) fn start(
    sink: Arc<dyn OutputSink>,
    reap_all: bool,
    cgroups: Option<Arc<Cgroups>>,
    logs: Arc<Logs>,
    above: Option<KeeperLink>,
    relief: &Arc<StallMonitor>,
) -> std::io::Result<WatcherHandle> {
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
    let line = WatcherHandle::new(wake);
    // So short that nobody notices, and longer than a disk takes that is only busy.
    let desk = BlockingCall::new(relief, 2, Takeover::Lasting, Watcher::relieve);
    let watcher = Box::new(Watcher {
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
        desk,
        thread: nix::unistd::gettid(),
        last_loan: 0,
        loan: None,
        overdue: HashMap::new(),
        stuck: HashMap::new(),
        changes: VecDeque::new(),
        left: VecDeque::new(),
        homeless: Vec::new(),
        housing: Housing::Rests(Instant::now()),
        needs_rescan: HashSet::new(),
        die_with: None,
        ending_strays: Vec::new(),
        strays_since: Instant::now(),
        strays_left: 0,
        leaders: HashMap::new(),
        index: Index::default(),
        marked_looked: None,
        succession_tried: None,
        children,
        deaths,
        sigchld_debounce_until: None,
    });
    std::thread::Builder::new().name("regrow-watch".into()).stack_size(256 * 1024).spawn(|| watcher.run())?;
    Ok(line)
}

/// What an epoll event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Wake,
    DieWith,
    /// The line to the keeper.
    Keeper,
    /// A child of this process has died.
    Children,
    Leader(u64),
    Out(u64),
    Err(u64),
    /// One of the others of a tree; which, is seen by looking.
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

/// A pipe that is read.
struct Pipe {
    fd: Arc<OwnedFd>,
    /// Both ends of a pipe have the same.
    inode: u64,
    /// The start of a line whose end has not come yet.
    partial: Vec<u8>,
}

/// Whose child a tree's leader is; to that one the kernel gives whoever loses a parent in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parent {
    /// This process, or its keeper.
    Ours,
    /// A keeper that is dead: orphans go to whoever was above it, and are found by their marks alone.
    Dead,
}

/// A process and its tree.
struct Process {
    pid: u32,
    pidfd: OwnedFd,
    since: Instant,
    pipes: [Option<Pipe>; 2],
    output: OutputTarget,
    captured: Vec<u8>,
    usage: Option<ResourceUsage>,
    marks: Marks,
    home: Membership,
    sight: KnownMembers,
    /// What the keeper says of it to a later daemon.
    about: Option<String>,
    parent: Parent,
    news: HostEventSink,
    /// The leader's end, once reaped.
    exit: Option<Exit>,
    /// Whether that end was told.
    told: bool,
    /// Others of its tree that were found, each pinned.
    remnants: HashMap<u32, OwnedFd>,
    killing: Option<Killing>,
}

/// A tree that SIGKILL was sent to.
#[derive(Debug, Clone, Copy)]
struct Killing {
    since: Instant,
    /// When one of it last came to light only then: it was forked meanwhile.
    came: Option<Instant>,
    told: bool,
}

/// Of a tree that is not gone so long after SIGKILL it is told when it forks away.
const FORKS_AWAY: Duration = Duration::from_secs(1);

struct Watcher {
    line: WatcherHandle,
    epoll: Epoll,
    sink: Arc<dyn OutputSink>,
    reap_all: bool,
    cgroups: Option<Arc<Cgroups>>,
    logs: Arc<Logs>,
    /// The keeper, where there is one.
    above: Option<KeeperLink>,
    processes: HashMap<u64, Process>,
    /// Whose leader or remnant ended in this round.
    dead: Vec<u64>,
    /// Empty while it is needed, and after another has gone on with it.
    buffer: Vec<u8>,
    /// Where all of this is left while something is done that may last ([`hung`]).
    desk: Arc<BlockingCall<Box<Watcher>>>,
    /// The thread that this runs on.
    thread: nix::unistd::Pid,
    /// Counts what may last.
    last_loan: u64,
    /// What this thread has left all of it for, at the moment.
    loan: Option<Loan>,
    /// What other threads stand still in.
    overdue: HashMap<u64, Loan>,
    /// Whose output waits for a disk.
    stuck: HashMap<SourceId, Stuck>,
    /// Sources that are to be kept in other files, or by other rules.
    changes: VecDeque<(SourceId, LogConfig)>,
    /// What dead processes have left in their pipes, which waited for a disk.
    left: VecDeque<Remainder>,
    /// Trees that were made without a cgroup.
    homeless: Vec<u64>,
    housing: Housing,
    /// Trees with processes that could not be pinned for want of descriptors, or that live and
    /// were not seen: to be looked at again.
    needs_rescan: HashSet<u64>,
    die_with: Option<OwnedFd>,
    ending_strays: Vec<Box<dyn FnOnce() + Send>>,
    /// Since when nothing more of them has ended, and how many there were.
    strays_since: Instant,
    strays_left: usize,
    /// Who leads which tree and has not ended.
    leaders: HashMap<u32, u64>,
    index: Index,
    /// When all processes were last looked through for marks, and how long that took.
    marked_looked: Option<(Instant, Duration)>,
    /// When this process last tried in vain to go on as the keeper, which is dead.
    succession_tried: Option<Instant>,
    /// Where those are that were left to us.
    children: proc::Children,
    /// Tells when one of them may have died; a keeper tells of its own.
    deaths: Option<ChildDeaths>,
    /// What is not heard until then is looked for then.
    sigchld_debounce_until: Option<Instant>,
}

impl Process {
    /// What it prints goes to the files of this one.
    fn source(&self) -> Option<SourceId> {
        match self.output {
            OutputTarget::Lines(source, _) | OutputTarget::Beside(source) => Some(source),
            OutputTarget::Capture(_) | OutputTarget::Collect(_) => None,
        }
    }
}

impl Watcher {
    fn run(mut self: Box<Self>) {
        if self.above.as_mut().is_some_and(|above| !above.begin()) {
            // The keeper is gone, and another thread goes on as one this very moment.
            loop {
                std::thread::park();
            }
        }
        self.go_on();
    }

    /// `None`: another thread goes on.
    fn go_on(mut self: Box<Self>) -> Option<Box<Self>> {
        self.thread = nix::unistd::gettid();
        let mut events = vec![EpollEvent::empty(); 256];
        loop {
            // Strays that are being ended may be children of each other, whose end only
            // their parent is told: look again soon while that goes on, and only then.
            let again = self.sigchld_debounce_until.is_some() || self.succession_tried.is_some();
            let timeout = match (self.ending_strays.is_empty(), self.needs_rescan.is_empty()) {
                // Another was at it, and has not come to its end.
                _ if self.is_in_the_middle() => EpollTimeout::ZERO,
                (true, true) if !again && !self.stuck.is_empty() => EpollTimeout::from(STUCK_MILLIS),
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
            self.dead.extend(self.needs_rescan.drain());
            self = self.tell_deaths()?;
            self = self.look_after_what_waits()?;
            self.house();
            self.go_on_ending_strays();
        }
    }

    /// It may be one that was left to us. Many die a second of which is heard otherwise: those that follow
    /// are looked for together.
    fn child_died(&mut self) {
        if let Some(deaths) = &self.deaths {
            deaths.woke();
            self.sigchld_debounce_until = Some(Instant::now() + Duration::from_millis(DEAF_MILLIS.into()));
            self.adopt();
        }
    }

    fn hear_again(&mut self) {
        if let Some(deaths) = &self.deaths
            && self.sigchld_debounce_until.is_some_and(|until| until <= Instant::now())
        {
            self.sigchld_debounce_until = None;
            deaths.hear_again();
            self.adopt();
        }
    }

    /// `false`: the watcher is to end.
    fn take_orders(&mut self) -> bool {
        for order in self.line.take() {
            match order {
                WatchOrder::Watch(watched) => self.watch(*watched),
                WatchOrder::Signal(key, signal) => {
                    self.signal_tree(key.0, signal);
                    self.signal_found(key.0, nix::libc::SIGCONT);
                }
                WatchOrder::Pause(key) => self.pause_tree(key.0),
                WatchOrder::Resume(key) => self.signal_tree(key.0, nix::libc::SIGCONT),
                WatchOrder::Kill(key) => self.kill_tree(key.0),
                WatchOrder::DieWith(fd) => {
                    let event = EpollEvent::new(EpollFlags::EPOLLIN, Token::DieWith.pack());
                    if self.epoll.add(&fd, event).is_ok() {
                        self.die_with = Some(fd);
                    }
                }
                WatchOrder::EndStrays(done) => {
                    self.strays_since = Instant::now();
                    self.ending_strays.push(done);
                }
                WatchOrder::Expect(expected) => self.expect(*expected),
                WatchOrder::Adopt(key, output, keep, news) => self.take_over(key.0, output, keep, news),
                WatchOrder::Settle(key) => self.settled(key.0),
                WatchOrder::Keep(source, keep) => self.changes.push_back((source, keep)),
                WatchOrder::LookAround => self.look_around(),
                WatchOrder::Housed(keys) => self.housed(&keys),
                WatchOrder::Late(loan, late) => self.is_late(loan, *late),
                WatchOrder::Forget(source) => self.logs.close(source),
                WatchOrder::Hold(name, text, fd) => self.hold(name, text, fd),
                WatchOrder::Leave(leave) => self.leave(leave),
                WatchOrder::Quit => return false,
            }
        }
        true
    }

    fn watch(&mut self, watched: Watched) {
        let (key, pid, tell) = (watched.key, watched.pid, Arc::clone(&watched.news));
        self.look_after(watched, None, Parent::Ours);
        // Told from here, so that no signal can come before the process is known and no exit
        // before its start.
        tell(HostEvent::Spawned { key, pid, life: None });
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
        self.index.add(key, pid, &marks, pipes.iter().flatten().map(|pipe| pipe.inode));
        // A keeper tells how its children end.
        if self.above.is_none() {
            let leader = EpollEvent::new(EpollFlags::EPOLLIN, Token::Leader(key).pack());
            if let Err(error) = self.epoll.add(&pidfd, leader) {
                tracing::error!(%error, pid, "can't watch a process");
            }
        }
        self.leaders.insert(pid, key);
        let home = cgroups.map_or(Membership::None, Membership::Born);
        // A command is over before it would have one.
        if let OutputTarget::Lines(..) = &output {
            self.one_came(key, &home);
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
                home,
                sight: KnownMembers::default(),
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
                // Somebody else in this program reaped our child: its status is lost.
                tracing::error!(%error, pid = process.pid, "a child was reaped by someone else");
                Exit::Unknown
            }
        };
        let _ = self.epoll.delete(&process.pidfd);
        self.ended(key, exit);
    }

    /// A leader has ended, and was reaped.
    fn ended(&mut self, key: u64, exit: Exit) {
        if let Some(process) = self.processes.get_mut(&key)
            && process.exit.is_none()
        {
            process.exit = Some(exit);
            if self.leaders.get(&process.pid) == Some(&key) {
                self.leaders.remove(&process.pid);
            }
            self.dead.push(key);
        }
    }

    fn remnants_ended(&mut self, key: u64) {
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        let (epoll, index) = (&self.epoll, &mut self.index);
        process.remnants.retain(|pid, fd| {
            if !has_ended(fd.as_fd()) {
                return true;
            }
            // Ours to reap when it was left to us; otherwise its parent is.
            let _ = pidfd::reap(&*fd);
            let _ = epoll.delete(&*fd);
            index.unpin(key, *pid);
            false
        });
        self.dead.push(key);
    }

    /// Tells of the deaths of this round, each after its last words.
    fn tell_deaths(mut self: Box<Self>) -> Option<Box<Self>> {
        // Settling one may find that others have ended meanwhile.
        while !self.dead.is_empty() {
            self.dead.sort_unstable();
            self.dead.dedup();
            // They stay in the list until all was read: who goes on in our place begins with them again.
            for at in 0..self.dead.len() {
                let key = self.dead[at];
                self = self.read_last_words(key)?;
            }
            let dead = std::mem::take(&mut self.dead);
            // A keeper's children are many; those of trees with a cgroup are known by that.
            let unsure = |key: &u64| self.processes.get(key).is_some_and(|p| !p.home.knows_all());
            if self.above.is_none() || dead.iter().any(unsure) {
                self.adopt();
            }
            // Where orphans go to somebody else, nothing is known before all have been looked through.
            let known = dead.iter().all(|key| !self.needs_marks(*key)) || self.find_marked();
            for key in dead {
                if known || !self.needs_marks(key) {
                    self.settle(key);
                } else {
                    self.needs_rescan.insert(key);
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

    /// Tells what is true of a process whose leader or remnants have ended.
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
        if empty && process.sight.lost() > 0 {
            news(HostEvent::LostSight { key: id, of: process.sight.lost() });
        }
        if let (true, OutputTarget::Lines(source, _)) = (empty, &process.output)
            && !self.stuck.contains_key(source)
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

    /// Whose own output a source is.
    fn printer(&self, source: SourceId) -> Option<u64> {
        let of_it =
            |process: &Process| matches!(&process.output, OutputTarget::Lines(of, _) if *of == source);
        self.processes.iter().filter(|(_, process)| of_it(process)).map(|(key, _)| *key).max()
    }

    /// Hands on a line without its end, with one.
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
                self.index.close(pipe.inode);
            }
            self.keep_what_waits(&mut process);
            self.index.remove(key, process.pid, &process.marks, process.remnants.keys().copied());
            for fd in process.remnants.values() {
                let _ = self.epoll.delete(fd);
            }
            if self.leaders.get(&process.pid) == Some(&key) {
                self.leaders.remove(&process.pid);
            }
            if let Some(cgroups) = process.home.cgroups() {
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

    /// Ends what was left to us and belongs to no tree that we know.
    fn go_on_ending_strays(&mut self) {
        if self.ending_strays.is_empty() {
            return;
        }
        let mut left = Vec::new();
        let mut orphans = self.orphans();
        orphans.retain(|pid| self.reap_all && !self.leaders.contains_key(pid));
        for pid in orphans {
            left.push(pid);
            if let Ok(fd) = pidfd::open(pid) {
                let _ = pidfd::signal(&fd, nix::libc::SIGKILL);
                if let Ok(Some(_)) = pidfd::reap(&fd) {
                    self.strays_since = Instant::now();
                }
            }
        }
        if left.len() != self.strays_left {
            self.strays_left = left.len();
            self.strays_since = Instant::now();
        }
        let stuck = self.strays_since.elapsed() > STUCK;
        if stuck && !left.is_empty() {
            tracing::error!(pids = ?left, "SIGKILL has not ended them: stuck in the kernel");
        }
        if left.is_empty() || stuck {
            for done in self.ending_strays.drain(..) {
                done();
            }
        }
    }

    /// The one we were to die with is dead.
    fn end_everything_now(&mut self) {
        let keys: Vec<u64> = self.processes.keys().copied().collect();
        for key in keys {
            self.kill_tree(key);
        }
        // What dies leaves its children to us: until none comes any more.
        let mut since = Instant::now();
        while since.elapsed() < STUCK {
            let left = proc::children(std::process::id());
            if left.is_empty() {
                break;
            }
            // All of them first: who forks is to have no time for it.
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

/// So often is looked for what a tree forks while it is being halted.
const PAUSE_ROUNDS: usize = 20;

/// And for so long at most.
const LONGEST_HALT: Duration = Duration::from_millis(200);

/// The name of the variable that marks a tree.
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
