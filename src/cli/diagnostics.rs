//! What regrow tells about itself: the subscriber of `tracing`, and where its lines go.
//!
//! A thread of its own writes the lines, so that a reader that stands still, or a disk that does not
//! answer, holds up nobody: what comes too fast is left out and counted. What a pipe or a terminal takes
//! at once is written at once, so that it is there when the program ends right behind it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::FmtSpan;

use super::format;
use crate::manifest::config::{DiagnosticsConfig, LogFormat, LogLevel};
use crate::model::Stream;
use crate::sys::{files, terminal};

/// The most bytes that may wait to be written.
const QUEUE: usize = 1024 * 1024;
/// The longest line that a pipe with room takes without making its writer wait (pipe(7)).
const AT_ONCE: usize = 4096;
/// The size at which a file of diagnostics is begun anew; the one before it is kept.
const MAX_SIZE: u64 = 10 * 1024 * 1024;

/// Where the lines go.
#[derive(Debug)]
pub(super) enum DiagnosticsTarget {
    /// To standard error.
    Stderr,
    /// To a file, which is made when there is something to tell.
    File(PathBuf),
}

/// The lines that are still to be written.
#[derive(Clone)]
pub(super) struct Diagnostics(Arc<Queue>);

#[derive(Default)]
struct Queue {
    /// Whether the lines go to standard error.
    to_stderr: bool,
    state: Mutex<State>,
    filled: Condvar,
    written: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Vec<u8>>,
    size: usize,
    /// The lines that were left out since the last report.
    dropped: usize,
    /// How many lines were taken in, and how many of them are done with.
    taken: u64,
    done: u64,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Begins to tell what regrow has to say about itself. `given` is what the command line asks for; it
/// wins over `RUST_LOG`, and that over `configured`.
pub(super) fn start(
    target: DiagnosticsTarget,
    given: Option<LogLevel>,
    configured: DiagnosticsConfig,
) -> io::Result<Diagnostics> {
    let colour = matches!(target, DiagnosticsTarget::Stderr) && format::colour_on_stderr();
    let to_stderr = matches!(target, DiagnosticsTarget::Stderr);
    let diagnostics = Diagnostics(Arc::new(Queue { to_stderr, ..Queue::default() }));
    let queue = Arc::clone(&diagnostics.0);
    let thread = std::thread::Builder::new().name("regrow-tells".into()).stack_size(128 * 1024);
    thread.spawn(move || write_all(&queue, target))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(given, configured.level))
        .with_span_events(FmtSpan::CLOSE)
        // Such errors would go to standard error, with a panic where that can't be written.
        .log_internal_errors(false)
        .with_writer(diagnostics.clone())
        .with_ansi(colour);
    match configured.format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(diagnostics)
}

fn filter(given: Option<LogLevel>, configured: LogLevel) -> EnvFilter {
    let asked = std::env::var("RUST_LOG").ok().filter(|asked| given.is_none() && !asked.trim().is_empty());
    if let Some(asked) = asked {
        match EnvFilter::try_new(&asked) {
            Ok(filter) => return filter,
            Err(error) => tell!("regrow: RUST_LOG can't be used: {error}"),
        }
    }
    EnvFilter::new(directives(given.unwrap_or(configured)))
}

/// A level, as `RUST_LOG` would say it. What libraries say of themselves is left out as long as nobody
/// looks for a fault.
fn directives(level: LogLevel) -> String {
    let others = match level {
        LogLevel::Off => LogLevel::Off,
        LogLevel::Error | LogLevel::Warn | LogLevel::Info => LogLevel::Error,
        LogLevel::Debug | LogLevel::Trace => LogLevel::Warn,
    };
    format!("{others},regrow={level}")
}

impl Diagnostics {
    /// Waits until everything is written, but no longer than `within`.
    pub(super) fn finish(&self, within: Duration) {
        let is_behind = |state: &mut State| state.done < state.taken;
        let _ = self.0.written.wait_timeout_while(self.0.lock(), within, is_behind);
    }
}

impl<'a> MakeWriter<'a> for Diagnostics {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { queue: &self.0 }
    }
}

/// Takes one line, which comes in one piece.
pub(super) struct Line<'a> {
    queue: &'a Queue,
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.queue.lock();
        let is_idle = state.done == state.taken;
        if self.queue.to_stderr && is_idle && line.len() <= AT_ONCE && terminal::stderr_takes_a_line() {
            terminal::write(Stream::Err, line);
            return Ok(line.len());
        }
        if state.size + line.len() > QUEUE {
            state.dropped += 1;
            return Ok(line.len());
        }
        state.size += line.len();
        state.waiting.push_back(line.to_owned());
        state.taken += 1;
        self.queue.filled.notify_one();
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all(queue: &Queue, target: DiagnosticsTarget) {
    let mut sink = Sink::new(target);
    loop {
        let is_idle = |state: &mut State| state.waiting.is_empty();
        let waited = queue.filled.wait_while(queue.lock(), is_idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        let lines = std::mem::take(&mut state.waiting);
        let dropped = std::mem::take(&mut state.dropped);
        state.size = 0;
        drop(state);
        let count = u64::try_from(lines.len()).unwrap_or_default();
        for line in lines {
            sink.put(&line);
        }
        if dropped > 0 {
            sink.put(format!("regrow: {dropped} lines of diagnostics were left out\n").as_bytes());
        }
        let mut state = queue.lock();
        state.done += count;
        drop(state);
        queue.written.notify_all();
    }
}

/// The place that lines are written to. What can't be written is lost: there is nobody to tell.
enum Sink {
    Stderr,
    File { path: PathBuf, open: Option<(File, u64)> },
}

impl Sink {
    fn new(target: DiagnosticsTarget) -> Sink {
        match target {
            DiagnosticsTarget::Stderr => Sink::Stderr,
            DiagnosticsTarget::File(path) => Sink::File { path, open: None },
        }
    }

    fn put(&mut self, line: &[u8]) {
        match self {
            Sink::Stderr => {
                let _ = io::stderr().write_all(line);
            }
            Sink::File { path, open } => {
                if open.as_ref().is_some_and(|(_, size)| *size >= MAX_SIZE) {
                    let mut before = path.clone().into_os_string();
                    before.push(".1");
                    let _ = std::fs::rename(&*path, before);
                    *open = None;
                }
                if open.is_none() {
                    let made = files::own_file(path);
                    *open = made.ok().map(|file| (size_of(&file), file)).map(|(size, file)| (file, size));
                }
                if let Some((file, size)) = open {
                    let _ = file.write_all(line);
                    *size += u64::try_from(line.len()).unwrap_or_default();
                }
            }
        }
    }
}

fn size_of(file: &File) -> u64 {
    file.metadata().map_or(0, |about| about.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_holds_for_regrow_and_libraries_stay_silent() {
        for level in LogLevel::WORDS.iter().map(|(_, level)| *level) {
            assert!(EnvFilter::try_new(directives(level)).is_ok(), "{level}");
        }
        assert_eq!(directives(LogLevel::Off), "off,regrow=off");
        assert_eq!(directives(LogLevel::Warn), "error,regrow=warn");
        assert_eq!(directives(LogLevel::Debug), "warn,regrow=debug");
    }

    #[test]
    fn a_file_that_is_full_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("diagnostics.log");
        let mut sink = Sink::new(DiagnosticsTarget::File(path.clone()));
        assert!(!path.exists());
        let piece = vec![b'x'; usize::try_from(MAX_SIZE).unwrap()];
        sink.put(&piece);
        sink.put(b"next\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"next\n");
        assert_eq!(std::fs::metadata(folder.path().join("diagnostics.log.1")).unwrap().len(), MAX_SIZE);
        // Another run goes on with the same file.
        Sink::new(DiagnosticsTarget::File(path.clone())).put(b"again\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"next\nagain\n");
    }

    #[test]
    fn a_reader_that_stands_still_holds_up_nobody() {
        // Nobody takes the lines out.
        let diagnostics = Diagnostics(Arc::default());
        let begun = std::time::Instant::now();
        let line = vec![b'x'; 10_000];
        for _ in 0..1_000 {
            Line { queue: &diagnostics.0 }.write_all(&line).unwrap();
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        let state = diagnostics.0.lock();
        assert!(state.dropped > 800 && state.size <= QUEUE, "{} {}", state.dropped, state.size);
    }
}
