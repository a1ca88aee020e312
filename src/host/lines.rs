//! Whole lines out of the bytes that come from a stream.
//!
//! Deliberately absent: where the bytes come from, and where the lines go.

use regex::bytes::Regex;

/// A line longer than this is handed on in parts.
const LONGEST_LINE: usize = 1024 * 1024;

/// Hands on the whole lines of what has come. `partial` is the unfinished line, before and after.
pub(crate) fn cut(partial: &mut Vec<u8>, bytes: &[u8], hand_on: &mut dyn FnMut(&[u8])) {
    let (whole, rest) = match bytes.iter().rposition(|b| *b == b'\n') {
        Some(at) => bytes.split_at(at + 1),
        None => (&bytes[..0], bytes),
    };
    if !whole.is_empty() {
        if partial.is_empty() {
            hand_on(whole);
        } else {
            partial.extend_from_slice(whole);
            hand_on(partial);
            *partial = Vec::new();
        }
    }
    partial.extend_from_slice(rest);
    if partial.len() >= LONGEST_LINE {
        partial.push(b'\n');
        hand_on(partial);
        *partial = Vec::new();
    }
}

/// Whether a pattern matches one of these lines.
pub(crate) fn any_matches(pattern: &Regex, lines: &[u8]) -> bool {
    lines.split(|b| *b == b'\n').any(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        !line.is_empty() && pattern.is_match(line)
    })
}
