//! The screen of `regrow run`: the prefixed lines of services and regrow's own lines, in one order.
//!
//! One thread writes; all others queue. A reader of the output that is slower than the services
//! first slows them down a little (as it would without regrow), then loses lines, which are counted
//! and reported: supervision never waits for a terminal.

use std::collections::HashMap;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use unicode_width::UnicodeWidthStr;

use super::format::{self, Tint};
use crate::model::{InstanceId, Stream};
use crate::record::output::{Chunk, ChunkSink};
use crate::sys::terminal;

/// The most bytes that may wait to be written.
const QUEUE: usize = 8 * 1024 * 1024;
/// The longest that a full queue holds up a writer before lines are dropped.
const PATIENCE: Duration = Duration::from_millis(200);
/// Lines that follow a write sooner than this are written together.
const BURST: Duration = Duration::from_millis(1);
/// The width of the widest prefix, in columns.
const PREFIX: usize = 24;

/// The queue in front of standard output.
pub(super) struct Console {
    shared: Arc<Shared>,
    /// The prefix of each name's lines.
    names: Mutex<HashMap<String, Arc<Prefix>>>,
    /// The width of the widest name so far, at most `PREFIX`.
    width: AtomicUsize,
    colour: bool,
    terminal: bool,
}

/// The prefix of one instance's lines, in its variants.
struct Prefix {
    width: usize,
    colour: &'static str,
    out: Vec<u8>,
    err: Vec<u8>,
    about: Vec<u8>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    filled: Condvar,
    emptied: Condvar,
    reader_gone: tokio::sync::Notify,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// The line that stays below all others until it is replaced.
    status: Option<String>,
    status_changed: bool,
    writing: bool,
    dropped: u64,
    /// The reader did not keep up and still does not: nobody waits for it any more.
    stalled: bool,
    /// Standard output can't be written any more.
    broken: bool,
}

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Console {
    /// Starts the writer for these instances; others may join later.
    pub(super) fn start(names: &[InstanceId]) -> std::io::Result<Arc<Console>> {
        let colour = format::colour_on_stdout();
        let width = names.iter().map(|n| n.to_string().width()).max().unwrap_or(0).clamp(6, PREFIX);
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("regrow-console".into())
            .stack_size(128 * 1024)
            .spawn(move || write_all(&writer))?;
        let terminal = terminal::stdout_is_terminal() && std::env::var_os("CI").is_none();
        let width = AtomicUsize::new(width);
        let console = Console { shared, names: Mutex::default(), width, colour, terminal };
        for name in names {
            console.prefix(&name.to_string());
        }
        Ok(Arc::new(console))
    }

    /// The prefix of a name's lines. It is made anew when the name is new or a wider name has come.
    fn prefix(&self, name: &str) -> Arc<Prefix> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let known = names.get(name);
        let paints = self.colour;
        let width = match known {
            Some(_) => self.width.load(Ordering::Relaxed),
            None => {
                let own = name.width().min(PREFIX);
                self.width.fetch_max(own, Ordering::Relaxed).max(own)
            }
        };
        if let Some(prefix) = known.filter(|prefix| prefix.width == width) {
            return Arc::clone(prefix);
        }
        let colour = known.map_or(PALETTE[names.len() % PALETTE.len()], |prefix| prefix.colour);
        let padded = format!("{:width$}", format::shorten(name, width));
        let padded = if paints { format!("\x1b[{colour}m{padded}\x1b[0m") } else { padded };
        let before = |bar, tint: Tint| format!("{padded} {} ", tint.paint(bar, paints)).into_bytes();
        let (out, err) = (before("|", Tint::Faint), before("!", Tint::Bad));
        let about = before("*", Tint::Faint);
        let prefix = Arc::new(Prefix { width, colour, out, err, about });
        names.insert(name.to_owned(), Arc::clone(&prefix));
        prefix
    }

    /// Whether standard output is a terminal, where lines can be replaced.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Prints a line of regrow's about an instance.
    pub(super) fn about(&self, name: &str, text: &str, tint: Tint) {
        let mut line = self.prefix(name).about.clone();
        line.extend_from_slice(tint.paint(text, self.colour).as_bytes());
        line.push(b'\n');
        self.push(&line, true);
    }

    /// Prints a line of regrow's own.
    pub(super) fn say(&self, text: &str, tint: Tint) {
        self.push(format!("{}\n", tint.paint(text, self.colour)).as_bytes(), true);
    }

    /// Sets the line that stays at the bottom; does nothing without a terminal.
    pub(super) fn status(&self, text: Option<String>) {
        if self.terminal {
            let mut state = lock(&self.shared);
            if state.status != text {
                // Three columns are left for the "^C" that a terminal shows, which would make the line
                // wrap.
                let width = terminal::width().unwrap_or(80).saturating_sub(3);
                state.status = text.map(|t| format::shorten(&t, width));
                state.status_changed = true;
                self.shared.filled.notify_one();
            }
        }
    }

    /// Returns when the reader of a pipe on standard output has gone away.
    pub(super) async fn reader_gone(&self) {
        self.shared.reader_gone.notified().await;
    }

    /// Waits until everything is written, or the reader takes nothing more.
    pub(super) fn flush(&self) {
        self.status(None);
        let mut state = lock(&self.shared);
        let mut left = state.waiting.len();
        let mut progress = Instant::now();
        while (!state.waiting.is_empty() || state.writing || state.status_changed) && !state.broken {
            let waited = self.shared.emptied.wait_timeout(state, Duration::from_millis(100));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.waiting.len() != left {
                left = state.waiting.len();
                progress = Instant::now();
            } else if progress.elapsed() > Duration::from_secs(2) {
                return;
            }
        }
    }

    /// Queues whole lines. regrow's own lines (`always`) are few, and are never dropped.
    fn push(&self, lines: &[u8], always: bool) {
        let mut state = lock(&self.shared);
        if state.broken {
            return;
        }
        let full = |state: &State| state.waiting.len() + lines.len() > QUEUE && !always;
        if full(&state) && !state.stalled {
            let until = Instant::now() + PATIENCE;
            while full(&state) && Instant::now() < until {
                let waited = self.shared.emptied.wait_timeout(state, PATIENCE);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            state.stalled = full(&state);
        }
        if full(&state) {
            state.dropped += lines.iter().filter(|b| **b == b'\n').count() as u64;
            return;
        }
        if state.dropped > 0 {
            let note =
                format!("regrow: {} lines were not shown: this output is read too slowly\n", state.dropped);
            state.waiting.extend_from_slice(note.as_bytes());
            state.dropped = 0;
        }
        state.stalled = false;
        let was_empty = state.waiting.is_empty();
        state.waiting.extend_from_slice(lines);
        if was_empty {
            self.shared.filled.notify_one();
        }
    }
}

impl ChunkSink for Console {
    fn chunk(&self, chunk: &Chunk) {
        let prefix = self.prefix(&chunk.name.to_string());
        let prefix = if chunk.stream == Stream::Err { &prefix.err } else { &prefix.out };
        let mut lines = Vec::with_capacity(chunk.bytes.len() + prefix.len() * 4);
        for line in chunk.lines() {
            lines.extend_from_slice(prefix);
            if self.terminal {
                neutralise(line, &mut lines);
            } else {
                lines.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
            }
            lines.push(b'\n');
        }
        self.push(&lines, false);
    }
}

/// Copies a line with its colours, and without anything else that would move the cursor or control
/// the terminal.
fn neutralise(line: &[u8], into: &mut Vec<u8>) {
    let mut coloured = false;
    let mut at = 0;
    while at < line.len() {
        let byte = line[at];
        if byte == 0x1b {
            let length = escape_length(&line[at..]);
            let sequence = &line[at..at + length];
            if sequence.starts_with(b"\x1b[") && sequence.ends_with(b"m") {
                into.extend_from_slice(sequence);
                coloured = true;
            }
            at += length;
            continue;
        }
        match byte {
            b'\t' | 0x20..=0x7e | 0x80..=0xff => into.push(byte),
            _ => {}
        }
        at += 1;
    }
    if coloured {
        into.extend_from_slice(b"\x1b[0m");
    }
}

/// The length of an escape sequence in bytes: CSI to its final byte, OSC and its like to BEL or ST,
/// and two bytes for any other.
fn escape_length(text: &[u8]) -> usize {
    match text.get(1) {
        Some(b'[') => {
            let end = text[2..].iter().position(|b| (0x40..=0x7e).contains(b));
            end.map_or(text.len(), |n| n + 3)
        }
        Some(b']' | b'P' | b'X' | b'^' | b'_') => {
            let end = text.iter().position(|b| *b == 0x07);
            let st = text[1..].windows(2).position(|w| w == b"\x1b\\").map(|n| n + 2);
            end.or(st).map_or(text.len(), |n| n + 1)
        }
        Some(_) => 2,
        None => 1,
    }
}

/// The loop of the writer thread.
fn write_all(shared: &Shared) {
    let mut shown = false;
    let mut written_at = Instant::now();
    loop {
        let mut state = lock(shared);
        while state.waiting.is_empty() && !state.status_changed {
            state = shared.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        // In a burst many lines go out in one write: waking up for each line would cost more than the line.
        if written_at.elapsed() < BURST {
            state = shared.emptied.wait_timeout(state, BURST).unwrap_or_else(PoisonError::into_inner).0;
        }
        let lines = std::mem::take(&mut state.waiting);
        let status = state.status.clone();
        state.status_changed = false;
        state.writing = true;
        drop(state);
        shared.emptied.notify_all();

        let mut out = Vec::with_capacity(lines.len() + 128);
        if shown {
            out.extend_from_slice(b"\r\x1b[K");
        }
        out.extend_from_slice(&lines);
        if let Some(status) = &status {
            out.extend_from_slice(status.as_bytes());
        }
        shown = status.is_some();
        let mut stdout = std::io::stdout().lock();
        let written = stdout.write_all(&out).and_then(|()| stdout.flush());
        drop(stdout);

        written_at = Instant::now();
        let mut state = lock(shared);
        state.writing = false;
        // The reader (EPIPE) or the terminal (EIO) is gone; the run goes on without it.
        state.broken = written.is_err();
        let broken = state.broken;
        if written.is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
            shared.reader_gone.notify_one();
        }
        drop(state);
        shared.emptied.notify_all();
        if broken {
            return;
        }
    }
}

/// The colours of names: those that read well on dark and on light backgrounds.
const PALETTE: [&str; 10] = ["36", "33", "32", "35", "34", "96", "93", "92", "95", "94"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_colours_reach_a_terminal() {
        for (line, want) in [
            ("plain\ttext", "plain\ttext"),
            ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m\x1b[0m"),
            ("\x1b[2J\x1b[Hcleared", "cleared"),
            ("\x1b]0;title\x07after", "after"),
            ("\x1b]0;title\x1b\\after", "after"),
            ("a\rb\x08c\x07", "abc"),
            ("cut \x1b[31", "cut "),
            ("\x1bcreset", "reset"),
            ("grüß", "grüß"),
        ] {
            let mut got = Vec::new();
            neutralise(line.as_bytes(), &mut got);
            assert_eq!(String::from_utf8(got).unwrap(), want, "{line:?}");
        }
    }
}
