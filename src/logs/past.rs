//! Reading output back from log files, with the times at which it came.
//!
//! An index is a list of entries of two eight-byte little-endian numbers: the offset in the file at
//! which a part begins, and the time at which it came, in microseconds since 1970. The highest bit
//! of the second number marks standard error. An index may lack its last entries, and lacks those
//! for output that a keeper wrote; such output counts towards the entry before it.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use flate2::read::GzDecoder;

use super::{LogConfig, LogPaths, Stream, compressed, numbered};

/// How many bytes of an unfinished line are read back, at most.
pub(crate) const LONGEST_LINE: u64 = 64 * 1024;

/// The size of an index entry, in bytes.
pub(crate) const ENTRY: u64 = 16;

/// The bit that marks standard error.
const ERR: u64 = 1 << 63;

/// An index entry: the part at this offset came at this time, on this stream.
pub(crate) fn entry(at: u64, when: SystemTime, stream: Stream) -> [u8; 16] {
    let when = when.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let micros = u64::try_from(when.as_micros()).unwrap_or(u64::MAX) & !ERR;
    let micros = if stream == Stream::Err { micros | ERR } else { micros };
    let mut entry = [0; 16];
    entry[..8].copy_from_slice(&at.to_le_bytes());
    entry[8..].copy_from_slice(&micros.to_le_bytes());
    entry
}

/// A part of the output, with the time at which it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// When the part was read from the pipe, or when its file was last written if no index tells.
    pub at: SystemTime,
    /// The bytes of the part.
    pub bytes: Vec<u8>,
}

/// The end of a stream's output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tail {
    /// The parts, oldest first.
    pub parts: Vec<Part>,
    /// Whether the parts begin with the oldest output that is kept.
    pub complete: bool,
}

/// Which log files to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogRange {
    /// Only uncompressed files, for callers that need the answer fast.
    Plain,
    /// All files.
    All,
}

/// The end of a stream's output, across the files that are kept. Reads the last `most` bytes of
/// them, which may include the other stream's output.
pub fn last_of(keep: &LogConfig, stream: Stream, most: u64, reach: LogRange) -> io::Result<Tail> {
    let file = keep.file(stream);
    let which = || fs::symlink_metadata(&file).ok().map(|at| (at.dev(), at.ino()));
    let mut tries = 0;
    loop {
        // When a file is put aside during the reading, its content may be read twice or not at all.
        let before = which();
        let read = read_all(keep, stream, most, reach);
        tries += 1;
        if before == which() || tries == TRIES {
            return read;
        }
    }
}

const TRIES: u32 = 8;

/// How many files in a row may be missing before the older ones count as gone.
pub(crate) const GAP: u32 = 3;

fn read_all(keep: &LogConfig, stream: Stream, most: u64, reach: LogRange) -> io::Result<Tail> {
    let (file, index) = (keep.file(stream), keep.index(stream));
    let only = match &keep.place {
        LogPaths::Streams(_) => None,
        LogPaths::One { .. } => Some(stream),
    };
    let mut tail = Tail { parts: Vec::new(), complete: false };
    let mut left = most;
    let mut missed = 0;
    for number in 0..keep.max_files.max(1) {
        let (one, its_index) = match number {
            0 => (file.clone(), index.clone()),
            number => (numbered(&file, number), numbered(&index, number)),
        };
        let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let end = match plain_end(&one, left) {
            Err(error) if missing(&error) && number > 0 && reach == LogRange::All => {
                compressed_end(&compressed(&one), left)
            }
            read => read,
        };
        match end {
            Ok(end) => {
                missed = 0;
                left -= (end.bytes.len() as u64).min(left);
                let more = end.from == 0;
                let mut older = parts(end, &times(&its_index).unwrap_or_default(), only);
                older.append(&mut tail.parts);
                tail.parts = older;
                if !more {
                    return Ok(tail);
                }
            }
            // The file was removed, or a process was killed between two renames. Older files may exist.
            Err(error) if missing(&error) => {
                if reach == LogRange::Plain && compressed(&one).exists() {
                    return Ok(tail);
                }
                missed += 1;
                if missed > GAP {
                    break;
                }
                continue;
            }
            // The other files are still useful without this one.
            Err(error) => {
                tracing::warn!(%error, path = %one.display(), "what was printed can't be read");
            }
        }
    }
    tail.complete = true;
    Ok(tail)
}

/// The unfinished last line of a stream.
pub(crate) fn unfinished(keep: &LogConfig, stream: Stream) -> Vec<u8> {
    let tail = last_of(keep, stream, LONGEST_LINE, LogRange::Plain).unwrap_or_default();
    let mut bytes: Vec<u8> = tail.parts.into_iter().flat_map(|part| part.bytes).collect();
    let begin = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    bytes.split_off(begin)
}

/// The last bytes of a file.
struct End {
    /// The offset in the file at which the bytes begin.
    from: u64,
    bytes: Vec<u8>,
    /// When the file was last written.
    written: SystemTime,
}

/// Opens a file for reading. Never follows a link, and never waits for a pipe's writer.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::NotFound.into()) }
}

fn plain_end(path: &Path, most: u64) -> io::Result<End> {
    let file = open(path)?;
    let about = file.metadata()?;
    let from = about.len().saturating_sub(most);
    let mut bytes = vec![0; usize::try_from(about.len() - from).unwrap_or_default()];
    file.read_exact_at(&mut bytes, from)?;
    Ok(End { from, bytes, written: about.modified().unwrap_or(SystemTime::UNIX_EPOCH) })
}

/// The end of a compressed file. Holds no more bytes than were asked for (and one buffer).
fn compressed_end(path: &Path, most: u64) -> io::Result<End> {
    let file = open(path)?;
    let written = file.metadata()?.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let mut decoder = GzDecoder::new(io::BufReader::new(file));
    let (mut size, mut last) = (0, VecDeque::new());
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = decoder.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        size += length as u64;
        last.extend(&buffer[..length]);
        last.drain(..last.len().saturating_sub(most));
    }
    let bytes: Vec<u8> = last.into();
    Ok(End { from: size - bytes.len() as u64, bytes, written })
}

/// The offset, the time in microseconds since 1970, and the stream of each part.
type Times = Vec<(u64, u64, Stream)>;

fn times(index: &Path) -> io::Result<Times> {
    let mut bytes = Vec::new();
    open(index)?.read_to_end(&mut bytes)?;
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
    let read = |entry: &[u8]| {
        let (at, micros) = (number(&entry[..8]), number(&entry[8..]));
        (at, micros & !ERR, if micros & ERR == 0 { Stream::Out } else { Stream::Err })
    };
    Ok(bytes.chunks_exact(16).map(read).collect())
}

/// Cuts the end of a file into its parts. With `only`, those of one stream.
fn parts(end: End, times: &Times, only: Option<Stream>) -> Vec<Part> {
    let End { from, bytes, written } = end;
    let size = from + bytes.len() as u64;
    let mut parts: Vec<Part> = Vec::new();
    let mut at = from;
    // The entry that covers the first byte, and all later ones.
    let first = times.partition_point(|(place, ..)| *place <= from).saturating_sub(1);
    let mut times = times[first.min(times.len())..].iter().copied().peekable();
    let (mut time, mut stream) = (None, Stream::Out);
    while at < size {
        while let Some((_, micros, of)) = times.next_if(|(place, ..)| *place <= at) {
            (time, stream) = (Some(micros), of);
        }
        let end = times.peek().map_or(size, |(place, ..)| (*place).min(size));
        let end = if end <= at { size } else { end };
        let slice = |from_at: u64| usize::try_from(from_at - from).unwrap_or_default();
        let when = time.map(|micros| SystemTime::UNIX_EPOCH + Duration::from_micros(micros));
        if only.is_none_or(|only| only == stream) {
            parts.push(Part { at: when.unwrap_or(written), bytes: bytes[slice(at)..slice(end)].to_vec() });
        }
        at = end;
    }
    parts
}
