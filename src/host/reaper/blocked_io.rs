//! A disk that does not answer holds up nobody else.
//!
//! Before the watcher does something with a file, it leaves all that it works with at its desk ([`BlockingCall`]) and has
//! it again behind that: functions that may lose it take it by value. Where it does not come back in time,
//! another thread goes on as the watcher, and lets alone what the files of that source are asked for; what was
//! begun is told by an order when it ends.
//!
//! Meanwhile the output waits in its pipes. If that lasts, it goes to the files that the source has
//! otherwise. Of dead processes the pipes are kept until they are empty.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::unistd::Pid;

use super::orders::WatchOrder;
use super::{LAST_WORDS, Pipe, Process, Token, Watcher};
use crate::host::reaper::orders::{Emptied, Late};
use crate::logs::{self, HUNG, LogConfig, Logs, PipeRead, Slot, WriteResult};
use crate::model::{SourceId, Stream};
use crate::sys::signals;

/// Output that waits so long for a disk goes elsewhere.
const ELSEWHERE: Duration = Duration::from_secs(3);

/// Where so many files of one device do not answer, the others there are not even asked.
const SUSPICIOUS: usize = 2;

/// What the watcher has left its work for.
#[derive(Debug, Clone)]
pub(super) struct Loan {
    number: u64,
    /// Whose output waits for its end.
    of: Option<SourceId>,
    /// What is being opened, where that is not what the source has.
    keep: Option<LogConfig>,
    /// The device on which it lies, where that is known.
    device: Option<u64>,
    /// The pipe that is being read.
    pipe: Option<(u64, Stream)>,
    /// Who does it.
    thread: Pid,
}

impl Loan {
    /// Whether this is where that waits: on one device, or where none is known in one folder.
    fn is_where(&self, stuck: &Stuck) -> bool {
        let folder = |keep: &Option<LogConfig>| keep.as_ref().map(logs::folder_of);
        let (same_device, same_folder) =
            (stuck.device == self.device, folder(&stuck.keep) == folder(&self.keep));
        match stuck.device {
            Some(_) => same_device,
            None => same_folder,
        }
    }
}

/// What a loan is about.
#[derive(Default)]
pub(super) struct About {
    pub(super) of: Option<SourceId>,
    pub(super) keep: Option<LogConfig>,
    pub(super) pipe: Option<(u64, Stream)>,
}

/// Why the output of a source waits.
pub(super) struct Stuck {
    since: Instant,
    /// What does not answer. What a source has instead is not stuck.
    slot: Option<Arc<Slot>>,
    keep: Option<LogConfig>,
    device: Option<u64>,
    /// A thread stands still over it; otherwise its disk is only under suspicion.
    waits: bool,
    /// It was to go elsewhere.
    was_moved: bool,
    /// How it is to be kept when its disk answers.
    pub(super) change: Option<LogConfig>,
    /// So many bytes of what waited could not be kept.
    lost: u64,
}

/// A pipe of a process that is gone, with what it has left in it.
pub(super) struct Remainder {
    source: SourceId,
    stream: Stream,
    pipe: Arc<OwnedFd>,
}

impl Watcher {
    /// Goes on where another thread stands still.
    pub(super) fn relieve(mut self: Box<Self>) {
        if let Some(mut loan) = self.loan.take() {
            tracing::debug!(?loan, "a disk does not answer");
            // Who stands still over a pipe may hold it: then it is not the other place that does not answer.
            let held = loan.pipe.is_some() && self.overdue.values().any(|other| other.pipe == loan.pipe);
            if held {
                (loan.of, loan.keep) = (None, None);
            } else {
                loan.keep = loan.keep.take().or_else(|| self.logs.kept(loan.of?));
                loan.device = loan.of.and_then(|source| self.logs.device(source));
            }
            if let Some(keep) = &loan.keep {
                self.logs.hangs(keep);
            }
            if let Some(source) = loan.of {
                self.is_stuck_over(source, loan.keep.clone(), true);
            }
            if let Some((key, stream)) = loan.pipe {
                self.listen_to_no_more(key, stream);
            }
            self.overdue.insert(loan.number, loan);
        }
        self.go_on();
    }

    /// `waits`: a thread stands still over it.
    pub(super) fn is_stuck_over(&mut self, source: SourceId, keep: Option<LogConfig>, waits: bool) {
        let (slot, device, since) = (self.logs.of(source), self.logs.device(source), Instant::now());
        let (was_moved, change, lost) = (false, None, 0);
        let stuck = Stuck { since, slot, keep, device, waits, was_moved, change, lost };
        self.stuck.entry(source).or_insert(stuck).waits |= waits;
        self.listen_no_more(source);
    }

    /// Does what may last. `None`: it has, another goes on as the watcher, and hears of it by an order.
    pub(super) fn lend<R>(
        mut self: Box<Self>,
        about: About,
        work: impl FnOnce(&Logs) -> R,
        late: impl FnOnce(R) -> Late,
    ) -> Option<(Box<Self>, R)> {
        let (desk, logs, line) = (Arc::clone(&self.desk), Arc::clone(&self.logs), self.line.clone());
        self.last_loan += 1;
        let number = self.last_loan;
        let About { of, keep, pipe } = about;
        self.loan = Some(Loan { number, of, keep, device: None, pipe, thread: self.thread });
        match desk.work(self, || work(&logs)) {
            (Some(mut back), done) => {
                back.loan = None;
                Some((back, done))
            }
            (None, done) => {
                line.send(WatchOrder::Late(number, Box::new(late(done))));
                drop((logs, line));
                desk.relief().take_its_place();
                None
            }
        }
    }

    /// Whether something was begun that this round is to go on with.
    pub(super) fn is_in_the_middle(&self) -> bool {
        let is_free = |left: &Remainder| !self.stuck.contains_key(&left.source);
        !self.dead.is_empty()
            || !self.changes.is_empty()
            || self.left.iter().any(is_free)
            || self.logs.some_leave()
    }

    /// What another thread was relieved of has ended.
    pub(super) fn is_late(&mut self, number: u64, late: Late) {
        let Some(loan) = self.overdue.remove(&number) else {
            return;
        };
        if let Some(keep) = &loan.keep {
            self.logs.hangs_no_more(keep);
        }
        match late {
            Late::Poured { source, key, stream, poured: WriteResult::Took(took, loss), buffer } => {
                self.buffer = buffer;
                match (self.processes.contains_key(&key), took) {
                    (false, PipeRead::Bytes(length)) => {
                        self.hand_on(source, stream, self.buffer[..length].to_vec());
                    }
                    _ => drop(self.took(key, stream, took, loss)),
                }
            }
            Late::Poured { source, poured: WriteResult::Moves(files), .. } => {
                self.tell_keeper(source, Some(files));
            }
            Late::Emptied { source, stream, emptied } => self.emptied(source, stream, emptied),
            // What was ordered since then counts more.
            Late::Opened(source, Some(_)) if self.logs.is_due(source) => {}
            Late::Opened(source, Some(due)) => self.opened(source, due),
            Late::Changed(source, change) => {
                if is_same(change.before.as_ref(), self.logs.of(source).as_ref()) {
                    self.changed(source, *change);
                }
            }
            Late::Opened(_, None) | Late::Closed => {}
        }
        if let Some((key, stream)) = loan.pipe {
            self.listen_to(key, stream);
        }
        let is_free = |(source, stuck): (&SourceId, &Stuck)| {
            let is_free = loan.of == Some(*source) || (!stuck.waits && loan.is_where(stuck));
            is_free.then_some(*source)
        };
        let free: Vec<SourceId> = self.stuck.iter().filter_map(is_free).collect();
        free.into_iter().for_each(|source| self.is_stuck_no_more(source));
    }

    /// What a process has printed that is gone.
    fn hand_on(&self, source: SourceId, stream: Stream, mut bytes: Vec<u8>) {
        if !bytes.is_empty() {
            if !bytes.ends_with(b"\n") {
                bytes.push(b'\n');
            }
            self.sink.lines(source, stream, &bytes);
        }
    }

    fn listen_to(&self, key: u64, stream: Stream) {
        let token = if stream == Stream::Out { Token::Out(key) } else { Token::Err(key) };
        let pipe = self.processes.get(&key).and_then(|process| process.pipes[stream as usize].as_ref());
        if let Some(pipe) = pipe {
            // It may be there already.
            let _ = self.epoll.add(&pipe.fd, EpollEvent::new(EpollFlags::EPOLLIN, token.pack()));
        }
    }

    pub(super) fn listen_to_no_more(&self, key: u64, stream: Stream) {
        let pipe = self.processes.get(&key).and_then(|process| process.pipes[stream as usize].as_ref());
        let _ = pipe.map(|pipe| self.epoll.delete(&pipe.fd));
    }

    /// Whether threads stand still over a pipe in two places: the first of them holds it.
    pub(super) fn is_held(&self, key: u64, stream: Stream) -> bool {
        self.overdue.values().filter(|loan| loan.pipe == Some((key, stream))).count() > 1
    }

    fn is_stuck_no_more(&mut self, source: SourceId) {
        let Some(stuck) = self.stuck.remove(&source) else {
            return;
        };
        let stays = is_same(stuck.slot.as_ref(), self.logs.of(source).as_ref());
        if let Some(key) = self.printer(source).filter(|_| stuck.was_moved && stays) {
            self.tell_unkept(key, Some(stuck.lost), String::new());
        }
        self.changes.extend(stuck.change.map(|keep| (source, keep)));
        let of_it = self.processes.iter().filter(|(_, process)| process.source() == Some(source));
        for key in of_it.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.listen_to(key, Stream::Out);
            self.listen_to(key, Stream::Err);
        }
    }

    /// What a source prints waits in its pipes.
    pub(super) fn listen_no_more(&self, source: SourceId) {
        for process in self.processes.values().filter(|process| process.source() == Some(source)) {
            for pipe in process.pipes.iter().flatten() {
                let _ = self.epoll.delete(&pipe.fd);
            }
        }
    }

    /// Whether what a source prints is to wait for a disk.
    pub(super) fn is_stuck(&mut self, source: SourceId) -> bool {
        if self.stuck.is_empty() {
            return false;
        }
        let slot = self.logs.of(source);
        if let Some(stuck) = self.stuck.get(&source) {
            return is_same(stuck.slot.as_ref(), slot.as_ref());
        }
        let Some(device) = self.logs.device(source) else {
            return false;
        };
        let there = |stuck: &&Stuck| stuck.waits && stuck.device == Some(device);
        if self.stuck.values().filter(there).count() < SUSPICIOUS {
            return false;
        }
        self.is_stuck_over(source, self.logs.kept(source), false);
        true
    }

    /// What a source prints goes elsewhere by now: who stands still over its pipes is to take nothing of that when
    /// the disk answers.
    pub(super) fn wake_who_stand_still_over(&self, source: SourceId) {
        for loan in self.overdue.values().filter(|loan| loan.of == Some(source) && loan.pipe.is_some()) {
            signals::interrupt(loan.thread);
        }
    }

    /// Closes what nobody has any more, and looks after what waits for a disk.
    pub(super) fn look_after_what_waits(mut self: Box<Self>) -> Option<Box<Self>> {
        if self.logs.some_leave() {
            (self, ()) = self.lend(About::default(), Logs::close_those_that_leave, |()| Late::Closed)?;
        }
        if self.stuck.is_empty() && self.left.is_empty() {
            return Some(self);
        }
        if let Err(error) = self.desk.relief().begin() {
            tracing::debug!(%error, "nobody is left to go on where a disk does not answer");
        }
        let is_free = |(source, stuck): (&SourceId, &Stuck)| {
            let elsewhere = !is_same(stuck.slot.as_ref(), self.logs.of(*source).as_ref());
            (elsewhere || !self.is_to_be_feared(stuck)).then_some(*source)
        };
        let free: Vec<SourceId> = self.stuck.iter().filter_map(is_free).collect();
        free.into_iter().for_each(|source| self.is_stuck_no_more(source));
        self = self.go_elsewhere()?;
        self.empty_what_was_left()
    }

    /// Whether somebody still stands over what it waits for. Who makes processes may do, too, and tells nobody of
    /// its end.
    fn is_to_be_feared(&self, stuck: &Stuck) -> bool {
        stuck.waits
            || stuck.keep.as_ref().is_some_and(|keep| self.logs.is_hung(keep))
            || self.overdue.values().any(|loan| loan.is_where(stuck))
    }

    /// What waits for long goes to the files that it has otherwise.
    fn go_elsewhere(mut self: Box<Self>) -> Option<Box<Self>> {
        let is_due = |stuck: &Stuck| !stuck.was_moved && stuck.since.elapsed() >= ELSEWHERE;
        let due = |watcher: &Watcher| {
            watcher.stuck.iter().find(|(_, stuck)| is_due(stuck)).map(|(source, _)| *source)
        };
        while let Some(source) = due(&self) {
            self = self.move_elsewhere(source)?;
        }
        Some(self)
    }

    /// What a source prints goes to the files that it has otherwise, if it has such that answer.
    pub(super) fn move_elsewhere(mut self: Box<Self>, source: SourceId) -> Option<Box<Self>> {
        let Some(stuck) = self.stuck.get_mut(&source).filter(|stuck| !stuck.was_moved) else {
            return Some(self);
        };
        stuck.was_moved = true;
        let Some(keep) = stuck.keep.clone() else {
            return Some(self);
        };
        let reason = format!("{}: {HUNG}", keep.shown());
        match keep.instead().filter(|instead| !self.logs.is_hung(instead)) {
            Some(instead) => {
                self = self.change(source, instead, Some(reason))?;
                if !self.is_stuck(source) {
                    self.is_stuck_no_more(source);
                }
            }
            None => {
                if let Some(key) = self.printer(source) {
                    self.tell_unkept(key, None, format!("{reason}, and it waits until that does"));
                }
            }
        }
        Some(self)
    }

    /// A process is gone, and what is in its pipes waits for a disk.
    pub(super) fn keep_what_waits(&mut self, process: &mut Process) {
        let Some(source) = process.source().filter(|source| self.stuck.contains_key(source)) else {
            return;
        };
        for (pipe, stream) in process.pipes.iter_mut().zip([Stream::Out, Stream::Err]) {
            if let Some(Pipe { fd: pipe, .. }) = pipe.take()
                && logs::holds_something(pipe.as_fd())
            {
                let of_it = |left: &Remainder| left.source == source;
                if self.left.iter().filter(|left| of_it(left)).count() >= MOST_LEFT
                    && let Some(at) = self.left.iter().position(of_it)
                    && let Some(oldest) = self.left.remove(at)
                {
                    self.is_lost(&oldest);
                }
                self.left.push_back(Remainder { source, stream, pipe });
            }
        }
    }

    /// Too much waits for a disk: this can't be kept any more.
    fn is_lost(&mut self, oldest: &Remainder) {
        let (mut buffer, mut lost) = (self.buffer(), 0);
        while lost < LAST_WORDS
            && let PipeRead::Bytes(length) = logs::read(oldest.pipe.as_fd(), &mut buffer)
        {
            lost += length;
        }
        self.buffer = buffer;
        if let Some(stuck) = self.stuck.get_mut(&oldest.source) {
            stuck.lost += lost as u64;
        }
    }

    fn empty_what_was_left(mut self: Box<Self>) -> Option<Box<Self>> {
        while let Some(at) = self.left.iter().position(|left| !self.stuck.contains_key(&left.source)) {
            let source = self.left[at].source;
            self = self.open_if_due(source)?;
            if self.stuck.contains_key(&source) {
                continue;
            }
            let Remainder { source, stream, pipe } = &self.left[at];
            let (source, stream, pipe, mut buffer) = (*source, *stream, Arc::clone(pipe), self.buffer());
            let work = move |logs: &Logs| {
                let (mut bytes, mut moves) = (Vec::new(), None);
                // Somebody who was lost sight of may print without end.
                while bytes.len() < LAST_WORDS {
                    match logs.pour(source, stream, pipe.as_fd(), &mut buffer) {
                        WriteResult::Took(PipeRead::Bytes(length), _) => {
                            bytes.extend_from_slice(&buffer[..length]);
                        }
                        WriteResult::Took(PipeRead::Nothing | PipeRead::End, _) => break,
                        WriteResult::Moves(files) => {
                            moves = Some(files);
                            break;
                        }
                    }
                }
                Emptied { bytes, buffer, moves }
            };
            let late = move |emptied| Late::Emptied { source, stream, emptied };
            let emptied;
            (self, emptied) = self.lend(About { of: Some(source), ..About::default() }, work, late)?;
            let again = emptied.moves.is_some();
            self.emptied(source, stream, emptied);
            if !again {
                self.left.remove(at);
            }
        }
        Some(self)
    }

    fn emptied(&mut self, source: SourceId, stream: Stream, emptied: Emptied) {
        let Emptied { bytes, buffer, moves } = emptied;
        self.buffer = buffer;
        self.hand_on(source, stream, bytes);
        if moves.is_some() {
            self.tell_keeper(source, moves);
        }
    }
}

/// So many pipes of dead processes of one source are kept at most.
const MOST_LEFT: usize = 16;

fn is_same(one: Option<&Arc<Slot>>, other: Option<&Arc<Slot>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}
