//! Moves output from pipes into files.
//!
//! Any work with a file may block, so it is lent out (`blocked_io`). Functions that may lose the
//! reaper's state to another thread take it by value.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::blocked_io::About;
use super::lines::take;
use super::orders::{Change, Late};
use super::{LAST_WORDS, PIECE, Process, Reaper};
use crate::host::{HostEvent, OutputTarget, ProcessKey};
use crate::logs::{self, Due, LogConfig, Logs, LostOutput, PipeRead, WriteResult};
use crate::model::{SourceId, Stream};

impl Reaper {
    /// Reads the output that a dead process left in its pipes.
    pub(super) fn read_last_words(mut self: Box<Self>, key: u64) -> Option<Box<Self>> {
        let fresh = self.processes.get(&key).is_some_and(|p| p.exit.is_some() && !p.told);
        if !fresh {
            return Some(self);
        }
        if let Some(source) = self.processes.get(&key).and_then(Process::source)
            && self.is_stuck(source)
        {
            // Its last output goes to other files at once, where it can.
            self = self.move_elsewhere(source)?;
        }
        for stream in [Stream::Out, Stream::Err] {
            let (mut total, mut read) = (0, 1);
            while read > 0 && total <= LAST_WORDS {
                (self, read) = self.read(key, stream)?;
                total += read;
            }
            self.flush_partial(key, stream);
        }
        Some(self)
    }

    /// Reads once; returns the number of bytes.
    pub(super) fn read(mut self: Box<Self>, key: u64, stream: Stream) -> Option<(Box<Self>, usize)> {
        let Some(process) = self.processes.get(&key) else {
            return Some((self, 0));
        };
        let Some(pipe) = process.pipes[stream as usize].as_ref().map(|pipe| Arc::clone(&pipe.fd)) else {
            return Some((self, 0));
        };
        let (took, loss) = match process.source() {
            None => {
                let mut buffer = self.buffer();
                let took = logs::read(pipe.as_fd(), &mut buffer);
                self.buffer = buffer;
                (took, None)
            }
            Some(source) => {
                if let OutputTarget::Lines(..) = process.output {
                    self = self.open_if_due(source)?;
                }
                if self.is_stuck(source) {
                    self.listen_no_more(source);
                    return Some((self, 0));
                }
                if self.is_held(key, stream) {
                    self.listen_to_no_more(key, stream);
                    return Some((self, 0));
                }
                let mut poured;
                loop {
                    let (mut buffer, pipe) = (self.buffer(), Arc::clone(&pipe));
                    let work =
                        move |logs: &Logs| (logs.pour(source, stream, pipe.as_fd(), &mut buffer), buffer);
                    let late = move |(poured, buffer)| Late::Poured { source, key, stream, poured, buffer };
                    let about = About { of: Some(source), keep: None, pipe: Some((key, stream)) };
                    (self, poured) = self.lend(about, work, late)?;
                    let (poured, buffer) = poured;
                    self.buffer = buffer;
                    match poured {
                        WriteResult::Moves(files) => self.tell_keeper(source, Some(files)),
                        WriteResult::Took(took, loss) => break (took, loss),
                    }
                }
            }
        };
        let read = self.took(key, stream, took, loss);
        Some((self, read))
    }

    pub(super) fn buffer(&mut self) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(PIECE, 0);
        buffer
    }

    /// Handles the result of a read, whose bytes are in the buffer; returns their number.
    pub(super) fn took(
        &mut self,
        key: u64,
        stream: Stream,
        took: PipeRead,
        loss: Option<LostOutput>,
    ) -> usize {
        let Some(process) = self.processes.get(&key) else {
            return 0;
        };
        if let Some(loss) = loss {
            let (lost, reason) = match loss {
                LostOutput::Begins(reason) => (None, reason),
                LostOutput::Over(lost) => (Some(lost), String::new()),
            };
            // The process that owns the files is told of it.
            let beside = match process.output {
                OutputTarget::Beside(source) => Some(source),
                OutputTarget::Lines(..) | OutputTarget::Capture(_) | OutputTarget::Collect(_) => None,
            };
            let of = beside.and_then(|source| self.printer(source)).unwrap_or(key);
            self.tell_unkept(of, lost, reason);
        }
        let Some(process) = self.processes.get_mut(&key) else {
            return 0;
        };
        let Some(pipe) = &mut process.pipes[stream as usize] else {
            return 0;
        };
        match took {
            PipeRead::End => {
                let _ = self.epoll.delete(&pipe.fd);
                let inode = pipe.inode;
                self.flush_partial(key, stream);
                if let Some(process) = self.processes.get_mut(&key) {
                    process.pipes[stream as usize] = None;
                }
                self.known.index.close(inode);
                0
            }
            PipeRead::Bytes(length) => {
                take(process, stream, &self.buffer[..length], self.sink.as_ref(), ProcessKey(key));
                length
            }
            PipeRead::Nothing => 0,
        }
    }

    pub(super) fn tell_unkept(&self, key: u64, lost: Option<u64>, reason: String) {
        if let Some(process) = self.processes.get(&key) {
            (process.news)(HostEvent::Unkept { key: ProcessKey(key), lost, reason });
        }
    }

    pub(super) fn open_if_due(mut self: Box<Self>, source: SourceId) -> Option<Box<Self>> {
        let Some(keep) = self.logs.due(source) else {
            return Some(self);
        };
        if self.logs.is_hung(&keep) {
            // Another thread waits for these files already.
            self.logs.open_later(source, keep.clone());
            self.is_stuck_over(source, Some(keep), false);
            return Some(self);
        }
        let work = {
            let (keep, sink) = (keep.clone(), Arc::clone(&self.sink));
            move |logs: &Logs| {
                // The sink reads the log files as they are now.
                sink.begins(source);
                logs.make_due(&keep)
            }
        };
        let late = move |due| Late::Opened(source, due);
        let due;
        (self, due) = self.lend(About { of: Some(source), keep: Some(keep), pipe: None }, work, late)?;
        if let Some(due) = due {
            self.opened(source, due);
        }
        Some(self)
    }

    /// Notes that the log files of a source that printed before are open again.
    pub(super) fn opened(&mut self, source: SourceId, due: Due) {
        let Some((begun, keep)) = self.logs.place_due(source, due) else {
            return;
        };
        self.sink.moves(source, &keep);
        let Some(process) = self.printer(source).and_then(|key| self.processes.get_mut(&key)) else {
            return;
        };
        // Unfinished lines that an earlier daemon had begun to read.
        for (pipe, begun) in process.pipes.iter_mut().zip(begun) {
            if let Some(pipe) = pipe
                && pipe.partial.is_empty()
            {
                pipe.partial = begun;
            }
        }
    }

    /// Applies changes of log files. A source that has no running process takes them at its next
    /// start.
    pub(super) fn make_changes(mut self: Box<Self>) -> Option<Box<Self>> {
        while let Some((source, keep)) = self.io.changes.pop_front() {
            let stays = self.logs.kept(source).is_some_and(|kept| kept.place == keep.place);
            if self.printer(source).is_none() {
                continue;
            }
            if stays && self.is_stuck(source) {
                // The change is made when its disk answers.
                self.io.stuck.entry(source).and_modify(|stuck| stuck.change = Some(keep));
                continue;
            }
            self = self.change(source, keep, None)?;
        }
        Some(self)
    }

    /// Has a source's output kept in other files, or by other rules. `instead_of`: why the
    /// configured files can't be used, if that is the reason.
    pub(super) fn change(
        mut self: Box<Self>,
        source: SourceId,
        keep: LogConfig,
        instead_of: Option<String>,
    ) -> Option<Box<Self>> {
        let is_moved = instead_of.is_some();
        let work = {
            let keep = keep.clone();
            move |logs: &Logs| match is_moved {
                true => logs.make_another(&keep).map(Some),
                false => logs.change(source, &keep),
            }
        };
        let before = self.logs.of(source);
        let late = {
            let (keep, instead_of, before) = (keep.clone(), instead_of.clone(), before.clone());
            move |files| Late::Changed(source, Box::new(Change { keep, files, before, instead_of }))
        };
        // If the files move elsewhere, the present ones are not stuck meanwhile.
        let stays = self.logs.kept(source).is_some_and(|kept| kept.place == keep.place);
        let about = About { of: stays.then_some(source), keep: Some(keep.clone()), pipe: None };
        let files;
        (self, files) = self.lend(about, work, late)?;
        self.changed(source, Change { keep, files, before, instead_of });
        Some(self)
    }

    pub(super) fn changed(&mut self, source: SourceId, change: Change) {
        let Change { keep, files, instead_of, before: _ } = change;
        let placed = files.and_then(|fresh| fresh.map(|fresh| self.logs.place(source, fresh)).transpose());
        let printer = self.printer(source).and_then(|key| self.processes.get(&key).map(|by| (key, by)));
        match placed {
            Ok(files) => {
                if let (Some(reason), Some((key, process))) = (instead_of, printer) {
                    let (key, place) = (ProcessKey(key), keep.file(Stream::Out));
                    (process.news)(HostEvent::KeptElsewhere { key, place, reason });
                }
                self.wake_who_stand_still_over(source);
                self.sink.moves(source, &keep);
                let files = files.or_else(|| self.logs.news(source));
                self.tell_keeper(source, files);
            }
            Err(error) => {
                let reason = match instead_of {
                    None => format!("{}: {error}; the output goes where it went before", keep.shown()),
                    Some(why) => format!("{why}; {}: {error}", keep.shown()),
                };
                if let Some((key, _)) = printer {
                    self.tell_unkept(key, None, reason);
                }
            }
        }
    }
}
