//! Turns the bytes of a pipe into whole lines.
//!
//! Deliberately absent: the reading of the pipe, and the log files.

use super::{LONGEST_LINE, Process};
use crate::host::{HostEvent, OutputSink, OutputTarget, ProcessKey};
use crate::model::Stream;

/// Takes bytes of a stream: whole lines are handed on, and an unfinished line waits for its end.
pub(super) fn take(
    process: &mut Process,
    stream: Stream,
    bytes: &[u8],
    sink: &dyn OutputSink,
    key: ProcessKey,
) {
    let source = match &process.output {
        OutputTarget::Capture(limit) => {
            let room = limit.saturating_sub(process.captured.len());
            process.captured.extend_from_slice(&bytes[..bytes.len().min(room)]);
            return;
        }
        OutputTarget::Collect(collector) => {
            collector.take(stream, bytes);
            return;
        }
        OutputTarget::Lines(source, _) | OutputTarget::Beside(source) => *source,
    };
    let Some(pipe) = &mut process.pipes[stream as usize] else {
        return;
    };
    let (whole, rest) = match bytes.iter().rposition(|b| *b == b'\n') {
        Some(at) => bytes.split_at(at + 1),
        None => (&bytes[..0], bytes),
    };
    let mut matched = false;
    if !whole.is_empty() {
        if pipe.partial.is_empty() {
            sink.lines(source, stream, whole);
            matched = matches_a_line(&process.output, whole);
        } else {
            pipe.partial.extend_from_slice(whole);
            sink.lines(source, stream, &pipe.partial);
            matched = matches_a_line(&process.output, &pipe.partial);
            pipe.partial = Vec::new();
        }
    }
    pipe.partial.extend_from_slice(rest);
    // A prompt has no newline, and still says that the program is ready.
    matched |= !pipe.partial.is_empty() && matches_a_line(&process.output, &pipe.partial);
    if pipe.partial.len() >= LONGEST_LINE {
        pipe.partial.push(b'\n');
        sink.lines(source, stream, &pipe.partial);
        matched |= matches_a_line(&process.output, &pipe.partial);
        pipe.partial = Vec::new();
    }
    if matched {
        // Reported once: later output is not matched any more.
        process.output = OutputTarget::Lines(source, None);
        (process.news)(HostEvent::LogMatched { key });
    }
}

fn matches_a_line(output: &OutputTarget, lines: &[u8]) -> bool {
    match output {
        OutputTarget::Lines(_, Some(regex)) => lines.split(|b| *b == b'\n').any(|line| {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            !line.is_empty() && regex.is_match(line)
        }),
        OutputTarget::Lines(_, None)
        | OutputTarget::Beside(_)
        | OutputTarget::Capture(_)
        | OutputTarget::Collect(_) => false,
    }
}
