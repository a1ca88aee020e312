//! Keeps a disk that does not answer from delaying anything else.
//!
//! Before the reaper touches a file, it leaves its whole state with a [`BlockingCall`](crate::host::stall::BlockingCall) and takes it
//! back afterwards. Functions that may lose the state take it by value. If the work does not end in
//! time, another thread takes over the state as the reaper and avoids the files of that source.
//! When the blocked work ends, its result arrives as an order.
//!
//! Meanwhile the output waits in its pipes. If that lasts, it goes to the fallback files of the
//! source. The pipes of dead processes are kept until they are empty.
//!
//! Deliberately absent: the writing itself, which `logs` does.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::unistd::Pid;

use super::orders::ReaperOrder;
use super::{LAST_WORDS, Pipe, Process, Reaper, Token};
use crate::host::reaper::orders::{Emptied, Late};
use crate::logs::{self, HUNG, LogConfig, Logs, PipeRead, Slot, WriteResult};
use crate::model::{SourceId, Stream};
use crate::sys::signals;

/// Output that waits this long for a disk goes to other files.
const ELSEWHERE: Duration = Duration::from_secs(3);

/// When this many sources of one device wait, the other files of that device are not even tried.
const SUSPICIOUS: usize = 2;

/// Work that may block, for which the reaper left its state.
#[derive(Debug, Clone)]
pub(super) struct Loan {
    number: u64,
    /// The source whose output waits for the end of the work.
    of: Option<SourceId>,
    /// The log files that are being opened, if they are not the source's own.
    keep: Option<LogConfig>,
    /// The device of the files, where it is known.
    device: Option<u64>,
    /// The pipe that is being read, by the key of its process.
    pipe: Option<(u64, Stream)>,
    /// The thread that does the work.
    thread: Pid,
}

impl Loan {
    /// Whether this loan and a waiting source concern the same place: the same device or, where no
    /// device is known, the same directory.
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

/// The subject of a loan: a source, log files, a pipe.
#[derive(Default)]
pub(super) struct About {
    pub(super) of: Option<SourceId>,
    pub(super) keep: Option<LogConfig>,
    pub(super) pipe: Option<(u64, Stream)>,
}

/// Why the output of a source waits.
pub(super) struct Stuck {
    since: Instant,
    /// The files that do not answer. Fallback files that the source has got since are not stuck.
    slot: Option<Arc<Slot>>,
    keep: Option<LogConfig>,
    device: Option<u64>,
    /// Whether a thread is blocked over it; otherwise its disk is only suspected.
    waits: bool,
    /// Whether the output was already told to go elsewhere.
    was_moved: bool,
    /// How the output is to be kept once the disk answers.
    pub(super) change: Option<LogConfig>,
    /// How many bytes of waiting output were lost.
    lost: u64,
}

/// A pipe of a dead process that still holds output.
pub(super) struct Remainder {
    source: SourceId,
    stream: Stream,
    pipe: Arc<OwnedFd>,
}

impl Reaper {
    /// Takes over as the reaper where another thread is blocked.
    pub(super) fn relieve(mut self: Box<Self>) {
        if let Some(mut loan) = self.io.loan.take() {
            tracing::debug!(?loan, "a disk does not answer");
            // The pipe may be held by the thread that blocks first: then it is not these files that
            // don't answer.
            let held = loan.pipe.is_some() && self.io.overdue.values().any(|other| other.pipe == loan.pipe);
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
            self.io.overdue.insert(loan.number, loan);
        }
        self.go_on();
    }

    /// Notes that the output of a source waits. `waits`: whether a thread is blocked over it.
    pub(super) fn is_stuck_over(&mut self, source: SourceId, keep: Option<LogConfig>, waits: bool) {
        let (slot, device, since) = (self.logs.of(source), self.logs.device(source), Instant::now());
        let (was_moved, change, lost) = (false, None, 0);
        let stuck = Stuck { since, slot, keep, device, waits, was_moved, change, lost };
        self.io.stuck.entry(source).or_insert(stuck).waits |= waits;
        self.listen_no_more(source);
    }

    /// Does work that may block. `None`: it took too long, and another thread has taken over as the
    /// reaper. That thread gets the result as an order.
    pub(super) fn lend<R>(
        mut self: Box<Self>,
        about: About,
        work: impl FnOnce(&Logs) -> R,
        late: impl FnOnce(R) -> Late,
    ) -> Option<(Box<Self>, R)> {
        let (call, logs, line) = (Arc::clone(&self.io.call), Arc::clone(&self.logs), self.line.clone());
        self.io.last_loan += 1;
        let number = self.io.last_loan;
        let About { of, keep, pipe } = about;
        self.io.loan = Some(Loan { number, of, keep, device: None, pipe, thread: self.io.thread });
        match call.work(self, || work(&logs)) {
            (Some(mut back), done) => {
                back.io.loan = None;
                Some((back, done))
            }
            (None, done) => {
                line.send(ReaperOrder::Late(number, Box::new(late(done))));
                drop((logs, line));
                call.stall_monitor().take_its_place();
                None
            }
        }
    }

    /// Whether a round was begun that is still to be finished.
    pub(super) fn is_in_the_middle(&self) -> bool {
        let is_free = |left: &Remainder| !self.io.stuck.contains_key(&left.source);
        !self.dead.is_empty()
            || !self.io.changes.is_empty()
            || self.io.left.iter().any(is_free)
            || self.logs.some_leave()
    }

    /// Takes the result of a blocked loan, which has now ended.
    pub(super) fn is_late(&mut self, number: u64, late: Late) {
        let Some(loan) = self.io.overdue.remove(&number) else {
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
            // An order that was given since then takes precedence.
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
        let free: Vec<SourceId> = self.io.stuck.iter().filter_map(is_free).collect();
        free.into_iter().for_each(|source| self.is_stuck_no_more(source));
    }

    /// Hands on output of a process that is gone.
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
            // The pipe may be registered already.
            let _ = self.epoll.add(&pipe.fd, EpollEvent::new(EpollFlags::EPOLLIN, token.pack()));
        }
    }

    pub(super) fn listen_to_no_more(&self, key: u64, stream: Stream) {
        let pipe = self.processes.get(&key).and_then(|process| process.pipes[stream as usize].as_ref());
        let _ = pipe.map(|pipe| self.epoll.delete(&pipe.fd));
    }

    /// Whether two threads are blocked over one pipe: then the first of them holds it.
    pub(super) fn is_held(&self, key: u64, stream: Stream) -> bool {
        self.io.overdue.values().filter(|loan| loan.pipe == Some((key, stream))).count() > 1
    }

    fn is_stuck_no_more(&mut self, source: SourceId) {
        let Some(stuck) = self.io.stuck.remove(&source) else {
            return;
        };
        let stays = is_same(stuck.slot.as_ref(), self.logs.of(source).as_ref());
        if let Some(key) = self.printer(source).filter(|_| stuck.was_moved && stays) {
            self.tell_unkept(key, Some(stuck.lost), String::new());
        }
        self.io.changes.extend(stuck.change.map(|keep| (source, keep)));
        let of_it = self.processes.iter().filter(|(_, process)| process.source() == Some(source));
        for key in of_it.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.listen_to(key, Stream::Out);
            self.listen_to(key, Stream::Err);
        }
    }

    /// Stops listening to the pipes of a source, so that its output waits there.
    pub(super) fn listen_no_more(&self, source: SourceId) {
        for process in self.processes.values().filter(|process| process.source() == Some(source)) {
            for pipe in process.pipes.iter().flatten() {
                let _ = self.epoll.delete(&pipe.fd);
            }
        }
    }

    /// Whether the output of a source must wait for a disk.
    pub(super) fn is_stuck(&mut self, source: SourceId) -> bool {
        if self.io.stuck.is_empty() {
            return false;
        }
        let slot = self.logs.of(source);
        if let Some(stuck) = self.io.stuck.get(&source) {
            return is_same(stuck.slot.as_ref(), slot.as_ref());
        }
        let Some(device) = self.logs.device(source) else {
            return false;
        };
        let there = |stuck: &&Stuck| stuck.waits && stuck.device == Some(device);
        if self.io.stuck.values().filter(there).count() < SUSPICIOUS {
            return false;
        }
        self.is_stuck_over(source, self.logs.kept(source), false);
        true
    }

    /// The output of a source goes elsewhere by now. Wakes the threads that are blocked over its
    /// pipes, so that they take nothing of it when the disk answers.
    pub(super) fn wake_who_stand_still_over(&self, source: SourceId) {
        for loan in self.io.overdue.values().filter(|loan| loan.of == Some(source) && loan.pipe.is_some()) {
            signals::interrupt(loan.thread);
        }
    }

    /// Closes files that are no longer used, and looks after the output that waits for a disk.
    pub(super) fn look_after_what_waits(mut self: Box<Self>) -> Option<Box<Self>> {
        if self.logs.some_leave() {
            (self, ()) = self.lend(About::default(), Logs::close_those_that_leave, |()| Late::Closed)?;
        }
        if self.io.stuck.is_empty() && self.io.left.is_empty() {
            return Some(self);
        }
        if let Err(error) = self.io.call.stall_monitor().begin() {
            tracing::debug!(%error, "no thread is left to continue while a disk does not answer");
        }
        let is_free = |(source, stuck): (&SourceId, &Stuck)| {
            let elsewhere = !is_same(stuck.slot.as_ref(), self.logs.of(*source).as_ref());
            (elsewhere || !self.is_to_be_feared(stuck)).then_some(*source)
        };
        let free: Vec<SourceId> = self.io.stuck.iter().filter_map(is_free).collect();
        free.into_iter().for_each(|source| self.is_stuck_no_more(source));
        self = self.go_elsewhere()?;
        self.empty_what_was_left()
    }

    /// Whether a thread is still blocked over the files that a source waits for. That may be a
    /// spawner, which does not report its end here.
    fn is_to_be_feared(&self, stuck: &Stuck) -> bool {
        stuck.waits
            || stuck.keep.as_ref().is_some_and(|keep| self.logs.is_hung(keep))
            || self.io.overdue.values().any(|loan| loan.is_where(stuck))
    }

    /// Moves output that has waited too long to the fallback files of its source.
    fn go_elsewhere(mut self: Box<Self>) -> Option<Box<Self>> {
        let is_due = |stuck: &Stuck| !stuck.was_moved && stuck.since.elapsed() >= ELSEWHERE;
        let due = |watcher: &Reaper| {
            watcher.io.stuck.iter().find(|(_, stuck)| is_due(stuck)).map(|(source, _)| *source)
        };
        while let Some(source) = due(&self) {
            self = self.move_elsewhere(source)?;
        }
        Some(self)
    }

    /// Moves the output of a source to its fallback files, if it has any that answer.
    pub(super) fn move_elsewhere(mut self: Box<Self>, source: SourceId) -> Option<Box<Self>> {
        let Some(stuck) = self.io.stuck.get_mut(&source).filter(|stuck| !stuck.was_moved) else {
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
                    self.tell_unkept(key, None, format!("{reason}, and the service waits until it does"));
                }
            }
        }
        Some(self)
    }

    /// Keeps the pipes of a process that is gone while their output waits for a disk.
    pub(super) fn keep_what_waits(&mut self, process: &mut Process) {
        let Some(source) = process.source().filter(|source| self.io.stuck.contains_key(source)) else {
            return;
        };
        for (pipe, stream) in process.pipes.iter_mut().zip([Stream::Out, Stream::Err]) {
            if let Some(Pipe { fd: pipe, .. }) = pipe.take()
                && logs::holds_something(pipe.as_fd())
            {
                let of_it = |left: &Remainder| left.source == source;
                if self.io.left.iter().filter(|left| of_it(left)).count() >= MOST_LEFT
                    && let Some(at) = self.io.left.iter().position(of_it)
                    && let Some(oldest) = self.io.left.remove(at)
                {
                    self.is_lost(&oldest);
                }
                self.io.left.push_back(Remainder { source, stream, pipe });
            }
        }
    }

    /// Drops the output of a pipe, because too many wait for the disk, and counts the lost bytes.
    fn is_lost(&mut self, oldest: &Remainder) {
        let (mut buffer, mut lost) = (self.buffer(), 0);
        while lost < LAST_WORDS
            && let PipeRead::Bytes(length) = logs::read(oldest.pipe.as_fd(), &mut buffer)
        {
            lost += length;
        }
        self.buffer = buffer;
        if let Some(stuck) = self.io.stuck.get_mut(&oldest.source) {
            stuck.lost += lost as u64;
        }
    }

    fn empty_what_was_left(mut self: Box<Self>) -> Option<Box<Self>> {
        while let Some(at) = self.io.left.iter().position(|left| !self.io.stuck.contains_key(&left.source)) {
            let source = self.io.left[at].source;
            self = self.open_if_due(source)?;
            if self.io.stuck.contains_key(&source) {
                continue;
            }
            let Remainder { source, stream, pipe } = &self.io.left[at];
            let (source, stream, pipe, mut buffer) = (*source, *stream, Arc::clone(pipe), self.buffer());
            let work = move |logs: &Logs| {
                let (mut bytes, mut moves) = (Vec::new(), None);
                // A process that was lost sight of may print without end.
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
                self.io.left.remove(at);
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

/// The most pipes of dead processes that are kept for one source.
const MOST_LEFT: usize = 16;

fn is_same(one: Option<&Arc<Slot>>, other: Option<&Arc<Slot>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}
