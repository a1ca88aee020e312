//! The output of services with `log = { file = "inherit" }`: it goes unchanged to the daemon's own
//! standard output and standard error, for containers whose runtime keeps logs.
//!
//! One thread writes. A reader that does not keep up loses lines, which are counted and reported;
//! it never holds up supervision.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::model::Stream;
use crate::record::output::{Chunk, ChunkSink};
use crate::sys::terminal;

/// The most bytes that may wait to be written.
const QUEUE: usize = 8 * 1024 * 1024;

/// The queue in front of standard output and standard error.
pub(super) struct OwnOutput(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    filled: Condvar,
    emptied: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(Stream, Arc<[u8]>)>,
    size: usize,
    /// The bytes that were dropped since the last report.
    dropped: usize,
    writing: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OwnOutput {
    /// Starts the writer thread.
    pub(super) fn start() -> std::io::Result<Arc<OwnOutput>> {
        let shared = Arc::<Shared>::default();
        let writer = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("regrow-inherit".into()).stack_size(64 * 1024);
        thread.spawn(move || write_all(&writer))?;
        Ok(Arc::new(OwnOutput(shared)))
    }

    /// Waits until everything is written, but no longer than `within`.
    pub(super) fn finish(&self, within: Duration) {
        let busy = |state: &mut State| state.writing || !state.waiting.is_empty();
        let _ = self.0.emptied.wait_timeout_while(self.0.lock(), within, busy);
    }
}

impl ChunkSink for OwnOutput {
    fn chunk(&self, chunk: &Chunk) {
        let mut state = self.0.lock();
        if state.size + chunk.bytes.len() > QUEUE {
            state.dropped += chunk.bytes.len();
            return;
        }
        state.size += chunk.bytes.len();
        state.waiting.push_back((chunk.stream, Arc::clone(&chunk.bytes)));
        drop(state);
        self.0.filled.notify_one();
    }
}

fn write_all(shared: &Shared) {
    loop {
        let mut state = shared
            .filled
            .wait_while(shared.lock(), |state| state.waiting.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let taken = std::mem::take(&mut state.waiting);
        let dropped = std::mem::take(&mut state.dropped);
        (state.size, state.writing) = (0, true);
        drop(state);
        for (stream, lines) in taken {
            terminal::write(stream, &lines);
        }
        if dropped > 0 {
            let words = format!(
                "regrow: {dropped} bytes of services' output were dropped: nothing reads this output\n"
            );
            terminal::write(Stream::Err, words.as_bytes());
        }
        shared.lock().writing = false;
        shared.emptied.notify_all();
    }
}
