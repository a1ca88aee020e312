//! Where the lines that a process prints go, and whether one of them says that it is ready.
//!
//! Deliberately absent: the reading of the pipe, and the log files.

use super::Process;
use crate::host::lines::{any_matches, cut};
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
    let pattern = match &process.output {
        OutputTarget::Lines(_, pattern) => pattern.as_ref(),
        OutputTarget::Beside(_) | OutputTarget::Capture(_) | OutputTarget::Collect(_) => None,
    };
    let matches = |lines: &[u8]| pattern.is_some_and(|pattern| any_matches(pattern, lines));
    let mut matched = false;
    cut(&mut pipe.partial, bytes, &mut |lines| {
        sink.lines(source, stream, lines);
        matched |= matches(lines);
    });
    // A prompt has no newline, and still says that the program is ready.
    matched |= !pipe.partial.is_empty() && matches(&pipe.partial);
    if matched {
        // Reported once: later output is not matched any more.
        process.output = OutputTarget::Lines(source, None);
        (process.news)(HostEvent::LogMatched { key });
    }
}
